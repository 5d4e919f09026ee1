"""Anybody's own aligned pairs: `visible/` and `infrared/` with the same file stems, and an optional `boxes.json`."""

import re
from pathlib import Path
from typing import ClassVar

from vireid_lite.data.benchmarks.lists import YES, Benchmark, image_names, other_files
from vireid_lite.data.records import Box, Modality, Record, opened, turned
from vireid_lite.errors import InputError
from vireid_lite.files import parse_json

FOLDERS = {Modality.VISIBLE: "visible", Modality.INFRARED: "infrared"}
MARGIN = 0.03  #: a box is widened by this share of its height on every side


class PairedFolder(Benchmark):
    """Aligned-pair matching: find the infrared crop that was taken at the same instant as a visible one.

    It is no re-identification: both crops of a pair show the same instant and pose, and every box (or every whole
    frame, without `boxes.json`) is a pseudo-identity of its own. There is nothing to train on: `train` and `val` are
    empty. Visible crops are camera 1, infrared ones camera 2.

    `boxes.json` maps a frame's stem to a list of {"box": [x, y, width, height]} in pixels, the same in both upright
    images; a box is widened by 3 % of its height on every side and clipped to the frame. Frames it does not name give
    no crop.

    Keyword Args:
        one_frame_per_sequence: keep the first frame (with a box) of each sequence only, as the same people recur in
            neighbouring frames. A sequence is the stem without its last `_` and frame number: `set06_V001` for
            `set06_V001_I00459`; a stem without one is a sequence of its own.

    Raises:
        InputError: as `Benchmark`, or for a frame without its partner, a malformed `boxes.json`, a frame in it that is
            absent, a pair of frames of unequal size, or fewer than two crops.
    """

    name, title, folders, usual_size = "paired_folder", "paired_folder", tuple(FOLDERS.values()), (128, 64)
    choices: ClassVar = {"one_frame_per_sequence": YES}

    def _load(self, seed: int) -> None:
        alone = self.options["one_frame_per_sequence"]
        pairs = _find_pairs(self.root)
        boxes = _read_boxes(self.root, pairs)
        stems = sorted(pairs) if boxes is None else [stem for stem in sorted(pairs) if boxes.get(stem)]
        boxed = len(stems)
        if alone:
            stems = sorted({re.sub(r"(?<=.)_[^_\d]*\d+$", "", stem): stem for stem in reversed(stems)}.values())
        for stem in stems:
            for box in [None] if boxes is None else _clip(self.root, pairs[stem], boxes[stem]):
                identity = len(self.test) // 2
                for modality, source in pairs[stem].items():
                    self.test.append(Record(source, identity, 1 + modality, modality, box))
        if len(stems) < boxed:
            self.left_out = f"one_frame_per_sequence leaves out {boxed - len(stems)} of {boxed} pairs"
        unread = other_files(self.root, "visible/*", "infrared/*")
        unread = f", {unread}" if unread else ""
        if len(self.test) < 4:
            give = "load it with -o one_frame_per_sequence=false (one_frame_per_sequence=False in Python)"
            remedy = give if self.left_out else "add pairs"
            found = f"{len(self.test) // 2} crops from {len(stems)} of {len(pairs)} pairs{unread}"
            raise InputError(f"paired_folder: {self.root} gives {found}, and two are needed; {remedy}")
        self.left_out = (self.left_out + unread).removeprefix(", ")


def _find_pairs(root: Path) -> dict[str, dict[Modality, str]]:
    """Return, per stem, the two sources; the extensions of a pair may differ."""
    pairs: dict[str, dict[Modality, str]] = {}
    for modality, folder in FOLDERS.items():
        for name in image_names(root / folder):
            pair = pairs.setdefault(stem := Path(name).stem, {})
            if modality in pair:
                raise InputError(f"paired_folder: {root / folder} has two images named {stem}; keep one of them")
            pair[modality] = f"{folder}/{name}"
    for pair in pairs.values():
        for modality, have in pair.items():
            if modality.other not in pair:
                lacking = root / FOLDERS[modality.other]
                raise InputError(f"paired_folder: {have} has no partner in {lacking}; add it, or remove {have}")
    return pairs


def _read_boxes(root: Path, pairs: dict) -> dict[str, list[list[float]]] | None:
    """Return the checked boxes of `boxes.json` per stem, or None where there is no such file."""
    path = root / "boxes.json"
    try:
        table = parse_json(path.read_text(encoding="utf-8"))
        boxes = {stem: [item["box"] for item in items] for stem, items in table.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"paired_folder: {path} is not readable JSON ({error}); mend or remove it") from None
    except (AttributeError, KeyError, TypeError):
        form = 'lists of {"box": [x, y, width, height]}'
        raise InputError(f"paired_folder: {path} must map frame names to {form}; mend it") from None
    for stem, frame in boxes.items():
        if twice := next((box for place, box in enumerate(frame) if box in frame[:place]), None):
            raise InputError(f"paired_folder: {path}: {stem} has the box {str(twice)[:60]} twice; remove one")
        if stem not in pairs:
            raise InputError(f"paired_folder: {path} lists {stem!r}, which is not under {root / 'visible'}; remove it")
        for box in frame:
            numbers = isinstance(box, list) and len(box) == 4 and all(type(n) in (int, float) for n in box)
            if not (numbers and all(abs(n) < 1e6 for n in box) and min(box[2:]) > 0):
                found = f"{stem} has {str(box)[:60]}, not [x, y, width, height] in pixels"
                raise InputError(f"paired_folder: {path}: {found}; mend it")
    return boxes


def _clip(root: Path, pair: dict[Modality, str], boxes: list[list[float]]) -> list[Box]:
    """Return the boxes widened by the margin and clipped to the frame, from the headers of the pair's files alone."""
    sizes = {}
    for source in pair.values():
        with opened(root / source, "paired_folder") as image:
            swapped = turned(image) >= 5 and image.format != "TIFF"  # Pillow gives a TIFF's size upright
            sizes[source] = image.size[::-1] if swapped else image.size
    if len(set(sizes.values())) > 1:
        found = " and ".join(f"{source} is {wide}x{high}" for source, (wide, high) in sizes.items())
        raise InputError(f"paired_folder: {found} pixels; boxes need aligned frames of one size")
    (width, height), clipped = sizes[source], []
    for x, y, w, h in boxes:
        left, right = max(0, round(x - MARGIN * h)), min(width, round(x + w + MARGIN * h))
        top, bottom = max(0, round(y - MARGIN * h)), min(height, round(y + h + MARGIN * h))
        if right - left < 2 or bottom - top < 2:
            frame = f"{pair[Modality.VISIBLE]} ({width}x{height} pixels)"
            raise InputError(f"paired_folder: boxes.json: {[x, y, w, h]} lies outside {frame}; mend it")
        clipped.append((left, top, right - left, bottom - top))
    return clipped
