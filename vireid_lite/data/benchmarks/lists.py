"""What the file readers share: roots and lists, held-out identities, the direction of a trial, the gallery draw."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vireid_lite.data.records import Dataset, Modality, Record
from vireid_lite.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")

# RegDB and LLCM number the people of their training lists from 0, and those of their tests in a range that overlaps it.
# Test identities are moved by this much, so that one number never means two people.
TEST_IDENTITY_OFFSET = 10_000


class Entry(NamedTuple):
    """One line of a file list: its number, the POSIX path relative to the root, the label."""

    line: int
    path: str
    label: int


def require(name: str, option: str, value: object, allowed: Collection) -> None:
    """Raise InputError unless `value` is one of `allowed`, type included (True is not 1)."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise InputError(f"{name}: {option} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def open_root(name: str, root: str | Path | None) -> Path:
    """Return the data set's folder, or raise InputError where it is not given or not a folder."""
    if root is None:
        raise InputError(f"{name}: no root given; pass the folder of your own copy with --root")
    path = Path(root)
    if not path.is_dir():
        raise InputError(f"{name}: {root} is not a folder; check --root or the download")
    return path


def require_folders(name: str, root: Path, folders: Iterable[str]) -> None:
    """Raise InputError where one of the folders of the official layout is absent."""
    for folder in folders:
        if not (root / folder).is_dir():
            raise InputError(f"{name}: the folder {folder} is not under {root}; check --root or the download")


def image_names(folder: Path) -> list[str]:
    """Return the sorted names of the images in a folder; empty where the folder is absent."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))


def _read_text(name: str, root: Path, listing: str) -> str:
    try:
        return (root / listing).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{name}: the list {listing} is not under {root}; check --root or the download") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: the list {listing} under {root} is not readable ({error}); fetch it again") from None


def read_identities(name: str, root: Path, listing: str) -> list[int]:
    """Return the sorted identities on the first line of a list, comma-separated whole numbers (AGW, data_manager.py).

    Raises InputError, with file and line, where the list is absent, malformed, or names an identity twice.
    """
    line = _read_text(name, root, listing).split("\n")[0].strip()
    words = [word.strip() for word in line.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words) or len({int(word) for word in words}) < len(words):
        raise InputError(
            f"{name}: {listing} line 1 is not a list of different identities like 1,2,3: {line[:60]!r}; fetch it again"
        )
    return sorted(map(int, words))


def _state(base: Path, path: PurePosixPath, folders: dict[PurePosixPath, bool]) -> str:
    """Say whether a listed file is "here", "absent" or "outside" the root, links followed; one lstat for most files."""
    if path.is_absolute() or ".." in path.parts:
        return "outside"
    try:
        if path.parent not in folders:
            folders[path.parent] = (base / path.parent).resolve().is_relative_to(base)
        if not folders[path.parent]:
            return "outside"
        mode = os.lstat(base / path).st_mode
        if stat.S_ISLNK(mode):
            target = (base / path).resolve(strict=True)
            if not target.is_relative_to(base):
                return "outside"
            mode = target.stat().st_mode
    except (OSError, RuntimeError, ValueError):  # absent; a loop of links (RuntimeError before 3.13); a NUL in the name
        return "absent"
    return "here" if stat.S_ISREG(mode) else "absent"


def read_list(name: str, root: Path, listing: str, missing: list[str] | None = None) -> list[Entry]:
    """Return the entries of a list of `relative/path label` lines (AGW, data_loader.py:133-140), blank lines skipped.

    missing: where given, listed files that are absent are appended to it instead of being raised.
    Raises InputError, with file and line, where the list is absent, a line is malformed, a path climbs out of the root
    (absolute, `..`, or through a link), or a listed file is absent.
    """
    base, folders, entries = root.resolve(), {}, []
    for number, line in enumerate(_read_text(name, root, listing).split("\n"), 1):
        path, _, label = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not (path.strip() and label.isascii() and label.isdigit()):
            raise InputError(
                f"{name}: {listing} line {number} is not 'relative/path label': {line[:60]!r}; fetch the list again"
            )
        relative = PurePosixPath(path.strip())
        state = _state(base, relative, folders)
        if state == "outside":
            raise InputError(
                f"{name}: {listing} line {number} lists {path!r}, which climbs out of {root}; remove that line"
            )
        if state == "absent" and missing is None:
            raise InputError(
                f"{name}: {listing} line {number} lists {path}, which is not under {root}; check --root or the download"
            )
        if state == "absent":
            missing.append(f"{relative} ({listing} line {number})")
        entries.append(Entry(number, str(relative), int(label)))
    if not entries:
        raise InputError(f"{name}: the list {listing} under {root} is empty; fetch it again")
    return entries


def hold_out(name: str, records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Split training records into (train, val): a tenth of the identities, at least one, drawn from `seed`, is val."""
    identities = sorted({record.identity for record in records})
    if len(identities) < 2:
        raise InputError(f"{name}: validation=True needs two training identities or more; this copy has one")
    held = set(random.Random(seed).sample(identities, max(1, len(identities) // 10)))
    return [r for r in records if r.identity not in held], [r for r in records if r.identity in held]


def query_direction(dataset: Dataset, query_modality: Modality | int | None) -> Modality:
    """Return the modality of the queries; None stands for the data set's official direction."""
    if query_modality is None:
        return dataset.default_query
    try:
        return Modality(query_modality)
    except ValueError:
        raise InputError(
            f"{dataset.name}: query_modality must be Modality.VISIBLE or Modality.INFRARED; got {query_modality!r}"
        ) from None


def draw_gallery(groups: Iterable[Sequence[Record]], trial: int) -> list[Record]:
    """Return one record of every group, drawn as AGW draws the gallery of a trial (data_manager.py:39-58; LLCM alike).

    groups: the sorted images of one (identity, camera) each, identities ascending, then cameras; empty ones skipped.
    The same images as `random.seed(trial)` and one `random.choice` per group, without touching the global generator.
    """
    generator = random.Random(trial)
    return [generator.choice(group) for group in groups if group]
