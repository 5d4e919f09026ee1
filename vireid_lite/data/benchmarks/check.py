"""Verify a reader's own copy of a benchmark: known counts, files that are missing, files that do not decode."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath

from PIL import ImageChops
from tqdm import tqdm

from vireid_lite.data.benchmarks import llcm, regdb
from vireid_lite.data.benchmarks.lists import TEST_IDENTITY_OFFSET, image_names, open_root, read_list
from vireid_lite.data.benchmarks.paired_folder import PairedFolder
from vireid_lite.data.benchmarks.sysu import SYSU
from vireid_lite.data.records import Modality, Record, decoded, opened, turned
from vireid_lite.errors import InputError, check_choice

# Where each data set has its infrared images.
INFRARED = re.compile(r"cam[36]/|Thermal/|(test_)?nir/|infrared/")

NAMED = 20  #: files named one by one in a report

# What a complete copy holds (identities, visible images, infrared images).
SYSU_KNOWN = {"train": (296, 20_284, 9_929), "val": (99, 1_974, 1_980), "test": (96, 6_775, 3_803)}
SYSU_IMAGES = 30_071 + 15_792  #: in all six camera folders, as its page counts; the lists name fewer people
REGDB_KNOWN = (206, 2_060)  #: identities and images that each of the forty lists names
REGDB_IMAGES = 4_120  #: of each modality
LLCM_IDENTITIES = {"train": 713, "test": 351}  #: 1,064 in all
LLCM_IMAGES = 46_767


@dataclass
class CheckReport:
    """What `check` found: `ok` where `errors` is empty; `counts` by name; `str()` is the report for a terminal."""

    name: str
    root: str
    partial: bool = False
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  #: listed files that are absent, and where they are listed

    @property
    def ok(self) -> bool:
        """True where nothing is wrong beyond warnings."""
        return not self.errors

    def misfit(self, what: str) -> None:
        """Note what does not fit a complete copy: an error, or a warning where a partial copy was announced."""
        (self.warnings if self.partial else self.errors).append("partial copy: " * self.partial + what)

    def count(self, what: str, found: int, known: int | None = None) -> None:
        """Keep a count and compare it with the known one, if a source says what it should be."""
        self.counts[what] = found
        if known not in (None, found):
            self.misfit(f"{what}: {found:,} found, a complete copy has {known:,}")

    def part(self, part: str, records: list[Record], known: Sequence[int | None]) -> None:
        """Count the identities and the visible and infrared images of a split."""
        self.count(f"{part} identities", len({record.identity for record in records}), known[0])
        for modality, expected in zip(Modality, known[1:], strict=True):
            found = sum(record.modality == modality for record in records)
            self.count(f"{part} {modality.name.lower()} images", found, expected)

    def files(self, problem: str, names: list[str]) -> None:
        """Note files with a problem as errors: the first twenty by name, then how many more."""
        self.errors += [f"{problem}: {name}" for name in names[:NAMED]]
        self.errors += [f"{problem}: and {len(names) - NAMED:,} more"] * (len(names) > NAMED)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"{len(self.errors)} problem{'s' * (len(self.errors) > 1)}"
        lines = [f"{self.name} at {self.root}: {verdict}{' (partial copy)' * (self.ok and self.partial)}"]
        lines += [f"  {count:>7,}  {what}" for what, count in self.counts.items()]
        lines += [f"  warning: {text}" for text in self.warnings] + [f"  error: {text}" for text in self.errors]
        return "\n".join(lines)


def check(name: str, root: str | Path | None, partial: bool = False, progress: bool = True) -> CheckReport:
    """Verify a copy of "sysu", "regdb", "llcm" or "paired_folder": counts, listed files, and every image decoded.

    Args:
        partial: accept a subset: counts that do not fit are warnings that say "partial copy". Lists have to fit the
            subset, as the readers refuse a listed file that is absent, and unreadable files fail in any case.

    Raises:
        InputError: for an unknown name or a root that is no folder; all else is in the report.
    """
    check_choice("data check", "name", name, SURVEYS)
    folder, report = open_root(name, root), CheckReport(name, str(root), partial)
    try:
        sources = SURVEYS[name](folder, report)
    except InputError as error:
        report.errors.append(str(error))
        return report
    report.files("missing", [f"{source} ({where})" for source, where in sorted(report.missing.items())])
    present = sorted(set(sources) - report.missing.keys())
    with ThreadPoolExecutor(4) as pool:  # Pillow releases the interpreter while it decodes
        found = pool.map(lambda source: _decoding(folder / source), present)
        bar = tqdm(found, total=len(present), desc="decoding", unit="image", disable=not progress)
        looks = dict(zip(present, bar, strict=True))
    report.files("unreadable", [f"{source} ({why})" for source, (why, _, _) in looks.items() if why])
    if lying := [source for source, (_, lies, _) in looks.items() if lies]:
        what = f"{len(lying):,} images are turned upright, as their EXIF orientation says, first {lying[0]}"
        report.warnings.append(what)
    if coloured := [source for source, (_, _, unequal) in looks.items() if unequal and INFRARED.match(source)]:
        what = f"{len(coloured):,} infrared images have unequal channels, first {coloured[0]}"
        report.warnings.append(f"{what}; they are read as their luma, which published code does not do")
    return report


def _decoding(path: Path) -> tuple[str, bool, bool]:
    """Return why a reader would refuse a file, or ""; whether it is turned upright; whether its channels differ."""
    try:
        with opened(path, "") as image:
            lies = turned(image) > 1
        image = decoded(path, "")
    except InputError as error:
        return str(error).removeprefix(f": {path} ").split("\n")[0], False, False
    red, *others = image.split() if image.mode == "RGB" else (image,)
    differ = (ImageChops.difference(red, other).getextrema()[1] > 2 for other in others)  # levels: JPEG rounds
    return "", lies, any(differ)


def _survey_sysu(root: Path, report: CheckReport) -> Iterable[str]:
    data = SYSU(root)
    splits = {"train": data.train, "val": data.val, "test": [r for group in data.test_groups for r in group]}
    for split, records in splits.items():
        report.part(split, records, SYSU_KNOWN[split])
        for identity in sorted(set(data.identities[split]) - {record.identity for record in records})[:NAMED]:
            report.misfit(f"exp/{split}_id.txt lists identity {identity}: no image in any cam*/{identity:04d}")
    every = sum(len(image_names(folder)) for folder in root.glob("cam[1-6]/*"))
    report.count("images in the camera folders", every)
    if every != SYSU_IMAGES:
        report.warnings.append(f"images in the camera folders: {every:,} found, its page counts {SYSU_IMAGES:,}")
    return [record.source for records in splits.values() for record in records]


def _survey_regdb(root: Path, report: CheckReport) -> Iterable[str]:
    sources: dict[Modality, set[str]] = {modality: set() for modality in Modality}
    for split, part, (spectrum, modality) in product(range(1, 11), ("train", "test"), regdb.SPECTRA.items()):
        listing = f"idx/{part}_{spectrum}_{split}.txt"
        entries = read_list("RegDB", root, listing, report.missing)
        paths, people = {entry.path for entry in entries}, len({entry.label for entry in entries})
        sources[modality] |= paths
        if (people, len(paths)) != REGDB_KNOWN:
            known = f"a complete copy {REGDB_KNOWN[1]:,} of {REGDB_KNOWN[0]}"
            report.misfit(f"{listing} lists {len(paths):,} images of {people} identities, {known}")
    for modality, found in sources.items():
        report.count(f"{modality.name.lower()} images", len(found), REGDB_IMAGES)
    for split in range(1, 11) if not report.missing else ():
        regdb.RegDB(root, split=split)  # refuses what else is wrong with a split
    return set().union(*sources.values())


def _survey_llcm(root: Path, report: CheckReport) -> Iterable[str]:
    lists = {m: read_list("LLCM", root, f"idx/train_{name}.txt", report.missing) for name, m in llcm.SPECTRA.items()}
    train = [Record(entry.path, entry.label, 0, modality) for modality, each in lists.items() for entry in each]
    if not report.missing:
        llcm.LLCM(root)  # refuses what else is wrong
    test = [record for groups in llcm.read_test_groups(root).values() for group in groups for record in group]
    for part, records in (("train", train), ("test", test)):
        report.part(part, records, (LLCM_IDENTITIES[part], None, None))
    report.count("images", len(train) + len(test), LLCM_IMAGES)
    people = {record.identity for record in test}
    folders = {PurePosixPath(record.source).parent.name for record in train}
    if leaked := sorted(f for f in folders if f.isdigit() and int(f) + TEST_IDENTITY_OFFSET in people):
        report.warnings.append(f"training lists name {len(leaked)} folders of test identities, first {leaked[0]}")
    return [record.source for record in train + test]


def _survey_pairs(root: Path, report: CheckReport) -> Iterable[str]:
    records = PairedFolder(root, one_frame_per_sequence=False).test
    sources = {record.source for record in records}
    report.counts |= {"pairs with a crop": len(sources) // 2, "crops of each modality": len(records) // 2}
    return sources


SURVEYS = {"sysu": _survey_sysu, "regdb": _survey_regdb, "llcm": _survey_llcm, "paired_folder": _survey_pairs}
