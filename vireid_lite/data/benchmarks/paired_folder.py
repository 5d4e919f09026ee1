"""Anybody's own aligned pairs: `visible/` and `infrared/` with the same file stems, and an optional `boxes.json`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from PIL import Image

from vireid_lite.data.benchmarks.lists import image_names, open_root, query_direction, require, require_folders
from vireid_lite.data.records import Dataset, Modality, Record, Trial, all_against_all
from vireid_lite.errors import InputError

FOLDERS = {Modality.VISIBLE: "visible", Modality.INFRARED: "infrared"}

MARGIN = 0.03  # a box is widened by this share of its height on every side


class PairedFolder(Dataset):
    """Aligned-pair matching: find the infrared crop that was taken at the same instant as a visible one.

    It is no re-identification: both crops of a pair show the same instant and pose, and every box (or every whole
    frame, without `boxes.json`) is a pseudo-identity of its own. There is nothing to train on: `train` and `val` are
    empty. Visible crops are camera 1, infrared ones camera 2.

    `boxes.json` maps a frame's stem to a list of {"box": [x, y, width, height]} in pixels, the same in both images; a
    box is widened by 3 % of its height on every side and clipped to the frame. Frames it does not name give no crop.

    root: the folder that holds `visible` and `infrared`. size: (height, width) in pixels of a crop. seed: not used.
    one_frame_per_sequence: keep the first frame (with a box) of each sequence only, as the same people recur in
        neighbouring frames. A sequence is the stem without its last `_` and frame number: `set06_V001` for
        `set06_V001_I00459`; a stem without one is a sequence of its own.
    Raises InputError for a missing folder, a frame without its partner, a malformed `boxes.json`, a frame in it that is
    absent, a pair of frames of unequal size, or fewer than two crops.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        size: tuple[int, int] = (128, 64),
        seed: int = 0,
        one_frame_per_sequence: bool = True,
    ) -> None:
        require("paired_folder", "one_frame_per_sequence", one_frame_per_sequence, (False, True))
        folder = open_root("paired_folder", root)
        super().__init__("paired_folder", folder, size, {"one_frame_per_sequence": one_frame_per_sequence})
        require_folders("paired_folder", folder, FOLDERS.values())
        pairs = _find_pairs(folder)
        boxes = _read_boxes(folder, pairs)
        stems = sorted(pairs) if boxes is None else [stem for stem in sorted(pairs) if boxes.get(stem)]
        if one_frame_per_sequence:
            first = {_sequence(stem): stem for stem in reversed(stems)}
            stems = sorted(first.values())
        self.test: list[Record] = []
        for stem in stems:
            for box in [None] if boxes is None else _clip(folder, pairs[stem], boxes[stem]):
                identity = len(self.test) // 2
                for modality, source in pairs[stem].items():
                    self.test.append(Record(source, identity, 1 + modality, modality, box))
        if len(self.test) < 4:
            remedy = "pass one_frame_per_sequence=False" if one_frame_per_sequence else "add pairs"
            raise InputError(
                f"paired_folder: {root} gives {len(self.test) // 2} crops from {len(stems)} of {len(pairs)} pairs, "
                f"and two are needed; {remedy}"
            )

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return the single trial of one direction: every crop of one modality against every crop of the other."""
        return [all_against_all(self.test, query_direction(self, query_modality))]


def _sequence(stem: str) -> str:
    match = re.fullmatch(r"(.+)_[^_\d]*\d+", stem)
    return match[1] if match else stem


def _find_pairs(root: Path) -> dict[str, dict[Modality, str]]:
    """Return, per stem, the two sources; the extensions of a pair may differ."""
    pairs: dict[str, dict[Modality, str]] = {}
    for modality, folder in FOLDERS.items():
        for name in image_names(root / folder):
            stem = Path(name).stem
            if modality in pairs.setdefault(stem, {}):
                raise InputError(f"paired_folder: {root / folder} has two images named {stem}; keep one of them")
            pairs[stem][modality] = f"{folder}/{name}"
    for stem, pair in pairs.items():
        for modality, folder in FOLDERS.items():
            if modality not in pair:
                have = pair[modality.other]
                raise InputError(f"paired_folder: {have} has no partner in {root / folder}; add it, or remove {stem}")
    return pairs


def _read_boxes(root: Path, pairs: dict) -> dict[str, list[list[float]]] | None:
    """Return the checked boxes of `boxes.json` per stem, or None where there is no such file."""
    path = root / "boxes.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        boxes = {stem: [item["box"] for item in items] for stem, items in table.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"paired_folder: {path} is not readable JSON ({error}); mend or remove it") from None
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f'paired_folder: {path} must map frame names to lists of {{"box": [x, y, width, height]}}; mend it'
        ) from None
    for stem, frame in boxes.items():
        if stem not in pairs:
            raise InputError(f"paired_folder: {path} lists {stem!r}, which is not under {root / 'visible'}; remove it")
        for box in frame:
            numbers = isinstance(box, list) and len(box) == 4 and all(type(n) in (int, float) for n in box)
            if not (numbers and all(math.isfinite(n) and abs(n) < 1e6 for n in box) and box[2] > 0 and box[3] > 0):
                raise InputError(
                    f"paired_folder: {path}: {stem} has {str(box)[:60]}, not [x, y, width, height] in pixels; mend it"
                )
    return boxes


def _clip(root: Path, pair: dict[Modality, str], boxes: list[list[float]]) -> list[tuple[int, int, int, int]]:
    """Return the boxes widened by the margin and clipped to the frame, from the headers of the pair's files alone."""
    sizes = []
    for source in pair.values():
        try:
            with Image.open(root / source) as image:
                sizes.append(image.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"paired_folder: {root / source} is not a readable image ({error}); fetch the file again"
            ) from None
    (width, height), other = sizes
    if other != (width, height):
        raise InputError(
            f"paired_folder: {pair[Modality.VISIBLE]} is {width}x{height} and {pair[Modality.INFRARED]} is "
            f"{other[0]}x{other[1]} pixels; boxes need aligned frames of one size"
        )
    clipped = []
    for x, y, w, h in boxes:
        left, right = max(0, round(x - MARGIN * h)), min(width, round(x + w + MARGIN * h))
        top, bottom = max(0, round(y - MARGIN * h)), min(height, round(y + h + MARGIN * h))
        if right - left < 2 or bottom - top < 2:
            raise InputError(
                f"paired_folder: boxes.json: {[x, y, w, h]} lies outside {pair[Modality.VISIBLE]} "
                f"({width}x{height} pixels); mend it"
            )
        clipped.append((left, top, right - left, bottom - top))
    return clipped
