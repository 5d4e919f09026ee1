"""Verify a reader's own copy of a benchmark: known counts, files that are missing, files that do not decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from vireid_lite.data.benchmarks.lists import TEST_IDENTITY_OFFSET, open_root, read_list
from vireid_lite.data.benchmarks.llcm import LLCM, read_test_groups
from vireid_lite.data.benchmarks.llcm import SPECTRA as LLCM_SPECTRA
from vireid_lite.data.benchmarks.paired_folder import PairedFolder
from vireid_lite.data.benchmarks.regdb import SPECTRA as REGDB_SPECTRA
from vireid_lite.data.benchmarks.regdb import RegDB
from vireid_lite.data.benchmarks.sysu import SYSU
from vireid_lite.data.records import Modality, Record
from vireid_lite.errors import InputError

NAMED = 20  # files named one by one in a report

# What a complete copy holds (identities, visible images, infrared images).
SYSU_KNOWN = {"train": (296, 20_284, 9_929), "val": (99, 1_974, 1_980), "test": (96, 6_775, 3_803)}

# The data set's page counts every image of its six camera folders, the lists name fewer people.
SYSU_IMAGES = 30_071 + 15_792

REGDB_KNOWN = (206, 2_060)  # identities and images that each of the forty lists names

REGDB_IMAGES = 4_120  # of each modality

LLCM_IDENTITIES = {"train": 713, "test": 351}  # 1,064 in all

LLCM_IMAGES = 46_767

LLCM_UNVERIFIED = {"train": (16_946, 13_975), "test": (8_680, 7_166)}  # from memory; they sum to the known total


@dataclass
class CheckReport:
    """What `check` found: `ok` where `errors` is empty; `counts` by name; `str()` is the report for a terminal."""

    name: str
    root: str
    partial: bool = False
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True where nothing is wrong beyond warnings."""
        return not self.errors

    def misfit(self, what: str) -> None:
        """Note what does not fit a complete copy: an error, or a warning where a partial copy was announced."""
        if self.partial:
            self.warnings.append(f"partial copy: {what}")
        else:
            self.errors.append(what)

    def count(self, what: str, found: int, known: int, verified: bool = True) -> None:
        """Keep a count and compare it with the known one; an unverified one only warns."""
        self.counts[what] = found
        if found != known and verified:
            self.misfit(f"{what}: {found:,} found, a complete copy has {known:,}")
        elif found != known:
            self.warnings.append(f"{what}: {found:,} found, {known:,} expected (an unverified number)")

    def files(self, problem: str, names: list[str]) -> None:
        """Note files with a problem as errors: the first twenty by name, then how many more."""
        self.errors += [f"{problem}: {name}" for name in names[:NAMED]]
        if len(names) > NAMED:
            self.errors.append(f"{problem}: and {len(names) - NAMED:,} more")

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"{len(self.errors)} problem{'s' * (len(self.errors) > 1)}"
        lines = [f"{self.name} at {self.root}: {verdict}{' (partial copy)' * (self.ok and self.partial)}"]
        lines += [f"  {count:>7,}  {what}" for what, count in self.counts.items()]
        lines += [f"  warning: {text}" for text in self.warnings] + [f"  error: {text}" for text in self.errors]
        return "\n".join(lines)


def check(name: str, root: str | Path | None, partial: bool = False, progress: bool = True) -> CheckReport:
    """Verify a copy of "sysu", "regdb", "llcm" or "paired_folder": counts, listed files, and every image decoded.

    root: the folder that `load_dataset` takes. progress: show a bar on stderr.
    partial: accept a subset: counts that do not fit are warnings that say "partial copy". Lists have to fit the subset,
        as the readers refuse a listed file that is absent, and unreadable files fail in any case.
    Raises InputError for an unknown name or a root that is no folder; all else is in the report.
    """
    if name not in SURVEYS:
        raise InputError(f"data check: name must be one of {', '.join(SURVEYS)}; got {name!r}")
    folder = open_root(name, root)
    report = CheckReport(name, str(root), partial)
    missing: list[str] = []
    try:
        sources = SURVEYS[name](folder, report, missing)
    except InputError as error:
        report.errors.append(str(error))
        return report
    report.files("missing", missing)
    gone = {line.split(" (")[0] for line in missing}
    report.files("unreadable", unreadable(folder, sorted(set(sources) - gone), progress))
    return report


def unreadable(root: Path, sources: list[str], progress: bool = True) -> list[str]:
    """Decode every image fully and return those that fail, each with the reason."""
    with ThreadPoolExecutor(4) as pool:  # Pillow releases the interpreter while it decodes
        problems = pool.map(lambda source: _problem(root / source), sources)
        bar = tqdm(problems, total=len(sources), desc="decoding", unit="image", disable=not progress)
        return [f"{source} ({problem})" for source, problem in zip(sources, bar, strict=True) if problem]


def _problem(path: Path) -> str | None:
    try:
        if path.stat().st_size == 0:
            return "empty file"
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        return "absent"
    except Image.UnidentifiedImageError:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
        return "an HTML page, not an image" if start.startswith((b"<!doctype", b"<html")) else "not an image"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        return f"{error or type(error).__name__}".split("\n")[0]
    return None


def _per_modality(records: Iterable[Record]) -> tuple[int, int]:
    modalities = [record.modality for record in records]
    return modalities.count(Modality.VISIBLE), modalities.count(Modality.INFRARED)


def _survey_sysu(root: Path, report: CheckReport, missing: list[str]) -> list[str]:
    data = SYSU(root)
    splits = {"train": data.train, "val": data.val, "test": [r for group in data.test_groups for r in group]}
    for split, records in splits.items():
        identities = {record.identity for record in records}
        visible, infrared = _per_modality(records)
        known = SYSU_KNOWN[split]
        report.count(f"{split} identities", len(identities), known[0])
        report.count(f"{split} visible images", visible, known[1])
        report.count(f"{split} infrared images", infrared, known[2])
        for identity in [i for i in data.identities[split] if i not in identities][:NAMED]:
            report.misfit(f"exp/{split}_id.txt lists identity {identity}: no image in any cam*/{identity:04d}")
    every = sum(1 for path in root.glob("cam[1-6]/*/*.jpg") if not path.name.startswith("."))
    report.count("images in the camera folders", every, SYSU_IMAGES, verified=False)
    return [record.source for records in splits.values() for record in records]


def _survey_regdb(root: Path, report: CheckReport, missing: list[str]) -> list[str]:
    sources: dict[str, set[str]] = {spectrum: set() for spectrum in REGDB_SPECTRA}
    absent: dict[str, None] = {}
    for split in range(1, 11):
        for part in ("train", "test"):
            for spectrum in REGDB_SPECTRA:
                listing, found = f"idx/{part}_{spectrum}_{split}.txt", []
                entries = read_list("RegDB", root, listing, found)
                absent |= dict.fromkeys(line.split(" (")[0] for line in found)
                sources[spectrum] |= {entry.path for entry in entries}
                names = len({entry.label for entry in entries}), len({entry.path for entry in entries})
                if names != REGDB_KNOWN:
                    report.misfit(
                        f"{listing} lists {names[1]:,} images of {names[0]} identities, "
                        f"a complete copy {REGDB_KNOWN[1]:,} of {REGDB_KNOWN[0]}"
                    )
    missing += sorted(absent)
    for spectrum, modality in REGDB_SPECTRA.items():
        report.count(f"{modality.name.lower()} images", len(sources[spectrum]), REGDB_IMAGES)
    if not missing:
        for split in range(1, 11):
            RegDB(root, split=split)  # refuses what else is wrong with a split
    return sorted(set().union(*sources.values()))


def _survey_llcm(root: Path, report: CheckReport, missing: list[str]) -> list[str]:
    train = {spectrum: read_list("LLCM", root, f"idx/train_{spectrum}.txt", missing) for spectrum in LLCM_SPECTRA}
    if not missing:
        LLCM(root)  # refuses what else is wrong
    test = [record for groups in read_test_groups(root).values() for group in groups for record in group]
    labels = {entry.label for entries in train.values() for entry in entries}
    people = {record.identity for record in test}
    report.count("train identities", len(labels), LLCM_IDENTITIES["train"])
    report.count("test identities", len(people), LLCM_IDENTITIES["test"])
    images = {"train": tuple(len(entries) for entries in train.values()), "test": _per_modality(test)}
    for split, found in images.items():
        for spectrum, number, expected in zip(("visible", "infrared"), found, LLCM_UNVERIFIED[split], strict=True):
            report.count(f"{split} {spectrum} images", number, expected, verified=False)
    report.count("images", sum(map(sum, images.values())), LLCM_IMAGES)
    sources = [entry.path for entries in train.values() for entry in entries]
    folders = {PurePosixPath(source).parent.name for source in sources}
    if leaked := sorted(f for f in folders if f.isdigit() and int(f) + TEST_IDENTITY_OFFSET in people):
        report.warnings.append(f"training lists name {len(leaked)} folders of test identities, first {leaked[0]}")
    return sources + [record.source for record in test]


def _survey_pairs(root: Path, report: CheckReport, missing: list[str]) -> list[str]:
    records = PairedFolder(root, one_frame_per_sequence=False).test
    sources = sorted({record.source for record in records})
    report.counts |= {"pairs with a crop": len(sources) // 2, "crops of each modality": len(records) // 2}
    return sources


SURVEYS: dict[str, Callable[[Path, CheckReport, list[str]], list[str]]] = {
    "sysu": _survey_sysu,
    "regdb": _survey_regdb,
    "llcm": _survey_llcm,
    "paired_folder": _survey_pairs,
}
