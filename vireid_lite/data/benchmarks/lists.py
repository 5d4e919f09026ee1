"""What the file readers share: a data set in a folder, its lists, held-out identities, the draw of a gallery."""

import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

from vireid_lite.data.records import Dataset, Modality, Record, Size
from vireid_lite.errors import InputError, check_choice, whole
from vireid_lite.files import clear_unreadable

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  #: in small letters or capitals
# RegDB and LLCM number the people of their training lists from 0, and those of their tests in a range that overlaps it.
# Test identities are moved by this much, so that one number never means two people.
TEST_IDENTITY_OFFSET = 10_000
# Options that several have: each one's usual value, and what it may be.
NO, YES, NUM_TRIALS = (False, (False, True)), (True, (False, True)), (10, range(1, 11))


def open_root(name: str, root: str | Path | None) -> Path:
    """Return a data set's folder, or raise InputError where it is not given or not a folder."""
    if root is None:
        raise InputError(f"{name}: give the folder of your own copy with --root (DATA_ROOT in a chapter)")
    if not os.path.isdir(folder := Path(os.path.expanduser(root))):
        raise InputError(f"{name}: {root} is not a folder; check --root or the download")
    return folder


class Benchmark(Dataset):
    """A data set in the reader's own folder.

    Args:
        root: the folder.
        size: (height, width) of the crops in pixels; None stands for `usual_size`.
        seed: decides which identities are held out, where some are.

    Raises:
        InputError: for an unknown option, a missing root, folder or list, a malformed line, or a listed file that is
            absent, climbs out of the root, or is listed for two people; for lists that contradict each other.
    """

    name: str  #: as `load_dataset` takes it
    title: str  #: what messages call it
    usual_size: Size = (288, 144)
    folders: Sequence[str] = ()  #: what `root` must hold
    #: each option's usual value, and what it may be, type included (True is not 1)
    choices: ClassVar[dict[str, tuple[object, Collection]]]

    def __init__(
        self, /, root: str | Path | None, *, size: Size | None = None, seed: int = 0, **options: object
    ) -> None:
        seed = whole(self.title, "seed", seed)
        for option, value in options.items():
            check_choice(self.title, "option", option, self.choices)
            known = [repr(choice) for choice in self.choices[option][1]]
            if repr(value) not in known:
                told = " (false, true on the command line)" if known == ["False", "True"] else ""
                raise InputError(f"{self.title}: {option} must be one of {', '.join(known)}{told}; got {value!r}")
        usual = {option: first for option, (first, _) in self.choices.items()}
        super().__init__(self.name, open_root(self.name, root), size or self.usual_size, usual | options)
        for folder in self.folders:
            if not os.path.isdir(self.root / folder):
                raise InputError(f"{self.title}: the folder {folder} is not under {root}; check --root or the download")
        self._load(seed)
        seen: dict[str, Record] = {}
        for one in (*self.train, *self.val, *self.test):
            other = seen.setdefault(one.source, one)
            if one.box is None and (one.identity, one.modality) != (other.identity, other.modality):
                found = f"{one.source} is listed for two people, two spectra, or both training and test"
                raise InputError(f"{self.title}: {found}; fetch the lists again")

    def _load(self, seed: int) -> None:
        """Fill `train`, `val` and `test`, or what `trials` needs, from the files under `root`."""
        raise NotImplementedError

    def hold_out(self, seed: int) -> None:
        """Move a tenth of the training identities, at least one, drawn from `seed`, from `train` to `val`."""
        identities = sorted({record.identity for record in self.train})
        if len(identities) < 2:
            raise InputError(f"{self.title}: validation=True needs two training identities or more; this copy has one")
        held = set(
            random.Random(seed := whole(self.name, "seed", seed)).sample(identities, max(1, len(identities) // 10))
        )
        self.val = [record for record in self.train if record.identity in held]
        self.train = [record for record in self.train if record.identity not in held]
        self.options["seed"] = seed


def image_names(folder: Path) -> list[str]:
    """Return the sorted names of the images in a folder; empty where the folder is absent."""
    names: list[str] = []
    with clear_unreadable(folder), suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(folder)
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))


def other_files(root: Path, *places: str) -> str:
    """Return how many files of which kind are no images, such as "2 .gif files are not read"; "" where all are."""
    files = (path for place in places for path in root.glob(place) if path.suffix.lower() not in IMAGE_SUFFIXES)
    kinds = Counter(path.suffix.lower() or "without suffix" for path in files if path.name[0] != "." and path.is_file())
    found = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    return found and f"{found} files are not read"


def left_out(root: Path, listed: list[int], people: set[int], *places: str) -> str:
    """Return how many of a list's people have no image, and which `other_files` there are; "" where nothing is."""
    lacking = len(set(listed) - people)
    without = f"{lacking:,} of {len(listed):,} listed people have no image" if lacking else ""
    return ", ".join(filter(None, (without, other_files(root, *places))))


def records_in(root: Path, folder: str, identity: int, camera: int, modality: Modality) -> list[Record]:
    """Return the records of the images in one person's folder, by name."""
    return [Record(f"{folder}/{name}", identity, camera, modality) for name in image_names(root / folder)]


def _lines(name: str, root: Path, listing: str) -> list[tuple[str, str]]:
    """Return the lines of a list that are not blank, each with where it stands."""
    try:
        lines = (root / listing).read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{name}: the list {listing} is not under {root}; check --root or the download") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: the list {listing} under {root} is not readable ({error}); fetch it again") from None
    found = [(f"{listing} line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{name}: the list {listing} under {root} is empty; fetch it again")
    return found


def read_identities(name: str, root: Path, listing: str) -> list[int]:
    """Return the sorted identities of a list: different whole numbers, comma-separated, on one line or on several."""
    found: set[int] = set()
    for where, line in _lines(name, root, listing):
        words = [word.strip() for word in line.removesuffix(",").split(",")]
        if not all(map(_is_number, words)) or found & (new := set(map(int, words))) or len(new) < len(words):
            problem = f"{where} is not a list of different identities like 1,2,3: {line[:60]!r}"
            raise InputError(f"{name}: {problem}; fetch it again")
        found |= new
    return sorted(found)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10


class Entry(NamedTuple):
    """One line of a file list."""

    where: str  #: list and line
    path: str  #: relative to the root (POSIX separators)
    label: int


def read_list(name: str, root: Path, listing: str, missing: dict[str, str] | None = None) -> list[Entry]:
    """Return the entries of a list of files under `root`, one `relative/path label` a line.

    Args:
        missing: where given, a listed file that is absent is noted there with its line instead of being raised.

    Raises:
        InputError: with file and line; a path climbs out of the root if it is absolute, or by `..`, or through a link.
    """
    base, entries, labels = root.resolve(), [], {}
    for where, line in _lines(name, root, listing):
        path, _, label = (part.strip() for part in line.rpartition(" "))
        if not (path and _is_number(label)):
            raise InputError(f"{name}: {where} is not 'relative/path label': {line[:60]!r}; fetch the list again")
        path = PurePosixPath(path)
        try:
            target = (base / path).resolve()
            outside = path.is_absolute() or ".." in path.parts or not target.is_relative_to(base)
            absent = not target.is_file()
        except (OSError, RuntimeError, ValueError):  # a loop of links (RuntimeError before 3.13); a NUL in the name
            outside, absent = False, True
        if outside:
            raise InputError(f"{name}: {where} lists '{path}', which climbs out of {root}; remove that line")
        if absent and missing is None:
            raise InputError(f"{name}: {where} lists {path}, which is not under {root}; check --root or the download")
        if absent:
            missing.setdefault(str(path), where)
        if int(label) >= TEST_IDENTITY_OFFSET:
            raise InputError(f"{name}: {where} has a label over {TEST_IDENTITY_OFFSET - 1:,}; fetch the list again")
        if labels.get(str(path), label) != label:
            raise InputError(f"{name}: {where} lists {path} as {label}, and a line before as another; mend the list")
        if str(path) in labels:  # a line that stands twice is one image
            continue
        labels[str(path)] = label
        entries.append(Entry(where, str(path), int(label)))
    return entries


def check_people(name: str, records: Sequence[Record]) -> None:
    """Raise InputError where training and test lists contradict each other about who is who.

    A label has images of both spectra and, where folders are named by a number, one folder; a folder has one label.
    """
    known: dict[object, Record] = {}
    spectra: dict[int, set[Modality]] = {}
    for one in records:
        spectra.setdefault(one.identity, set()).add(one.modality)
        folder = PurePosixPath(one.source).parent.name
        for who in (folder, one.identity) if _is_number(folder) else ():
            other = known.setdefault(who, one)
            if (PurePosixPath(other.source).parent.name, other.identity) != (folder, one.identity):
                found = f"{other.source} is listed with {_label(other)}, {one.source} with {_label(one)}"
                raise InputError(f"{name}: {found}; a person has one folder and one label, so fetch the lists again")
    for one in records:
        if len(spectra[one.identity]) < 2:
            found = f"{one.source} is listed with {_label(one)}, and no image of the other spectrum is"
            raise InputError(f"{name}: {found}; fetch the lists again")


def _label(record: Record) -> str:
    part, label = divmod(record.identity, TEST_IDENTITY_OFFSET)
    return f"label {label} of {'a test' if part else 'a training'} list"


def draw_gallery(groups: Iterable[Sequence[Record]], trial: int) -> list[Record]:
    """Return one record of every group, drawn as AGW draws the gallery of a trial (data_manager.py:39-58; LLCM alike).

    Args:
        groups: the sorted images of one (identity, camera) each, identities ascending, then cameras.
    """
    generator = random.Random(trial)  # draws what the published code draws from the global generator
    return [generator.choice(group) for group in groups]
