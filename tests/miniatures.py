"""Tiny copies of the licensed benchmarks in their official layouts, with real image files that carry the identity."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def paint(path: Path, identity: int, infrared: bool, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Write one image of (height, width): bands that say who it is in both spectra, colours in one, and noise."""
    height, width = size
    person = np.random.default_rng(identity)
    bands, colours = person.uniform(40, 215, 6), person.uniform(-40, 40, (6, 3))
    rows = np.minimum(np.arange(height) * 6 // height, 5)
    pixels = bands[rows][:, None, None] + (0 if infrared else colours[rows][:, None, :])
    pixels = np.broadcast_to(pixels, (height, width, 3)) + rng.normal(0, 8, (height, width, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def published_draw(root: Path, folders: Iterable[str], trial: int) -> list[str]:
    """Draw a file of each folder as AGW's code does, by Python's global generator, which is put back."""
    state = random.getstate()
    random.seed(trial)
    found = [sorted((root / folder).iterdir()) for folder in folders if (root / folder).is_dir()]
    chosen = [random.choice(paths).relative_to(root).as_posix() for paths in found]
    random.setstate(state)
    return chosen


def make_sysu(
    root: Path,
    *,
    train: Sequence[int] = (1, 2, 4, 5),
    val: Sequence[int] = (3, 8),
    test: Sequence[int] = (6, 10, 27),
    images: int = 3,
    permutations: bool = False,
    size: tuple[int, int] = (48, 24),
) -> Path:
    """Write `cam{1..6}/{identity:04d}/{n:04d}.jpg` and `exp/`; every third test identity is absent from cameras 2, 3.

    permutations: also write `exp/rand_perm_cam.mat` (needs images >= 10 to serve ten shots).
    """
    rng = np.random.default_rng(0)
    cells = np.empty((6, 1), dtype=object)
    for camera in range(6):
        cells[camera, 0] = np.empty((max(*train, *val, *test), 1), dtype=object)
        for identity in range(len(cells[camera, 0])):
            cells[camera, 0][identity, 0] = np.empty((0, 0))
    for identity in (*train, *val, *test):
        outdoors = identity in test[2::3]
        for camera in range(1, 7):
            if outdoors and camera in (2, 3):
                continue
            count = images + (identity + camera) % 2
            for number in range(1, count + 1):
                path = root / f"cam{camera}/{identity:04d}/{number:04d}.jpg"
                paint(path, identity, camera in (3, 6), size, rng)
            rows = np.stack([rng.permutation(count) + 1 for _ in range(10)])
            cells[camera - 1, 0][identity - 1, 0] = rows.astype(float)
    (root / "exp").mkdir()
    for split, identities in {"train": train, "val": val, "test": test}.items():
        (root / f"exp/{split}_id.txt").write_text(",".join(map(str, identities)) + "\n")
    if permutations:
        from scipy.io import savemat

        savemat(root / "exp/rand_perm_cam.mat", {"rand_perm_cam": cells})
    return root


def make_regdb(root: Path, *, identities: int = 8, images: int = 3, size: tuple[int, int] = (48, 24)) -> Path:
    """Write `Visible/`, `Thermal/` and the forty lists; each split trains on another random half of the identities."""
    rng = np.random.default_rng(0)
    files: dict[str, dict[int, list[str]]] = {"visible": {}, "thermal": {}}
    for spectrum, people in files.items():
        for person in range(1, identities + 1):
            people[person] = [
                f"{spectrum.title()}/{person}/male_front_{spectrum[0]}_{n:05d}_{person}.bmp" for n in range(images)
            ]
            for path in people[person]:
                paint(root / path, person, spectrum == "thermal", size, rng)
    (root / "idx").mkdir()
    for split in range(1, 11):
        people = random.Random(split).sample(range(1, identities + 1), identities)
        halves = {"train": people[: identities // 2], "test": people[identities // 2 :]}
        for part, half in halves.items():
            for spectrum in files:
                lines = [f"{path} {label}" for label, p in enumerate(sorted(half)) for path in files[spectrum][p]]
                (root / f"idx/{part}_{spectrum}_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def make_llcm(
    root: Path,
    *,
    train: Sequence[int] = (1, 2, 4, 6),
    test: Sequence[int] = (3, 5, 12),
    cameras: Sequence[int] = (1, 3, 9),
    images: int = 2,
    size: tuple[int, int] = (48, 24),
) -> Path:
    """Write `vis/`, `nir/` with their training lists, and `test_vis/`, `test_nir/`; NIR has no camera 3."""
    rng = np.random.default_rng(0)
    for spectrum in ("vis", "nir"):
        lines = []
        for identity in (*train, *test):
            for camera in cameras:
                if spectrum == "nir" and camera == 3:
                    continue
                for number in range(images):
                    name = f"{identity:04d}_c{camera:02d}_s{100000 + number}_f{number:04d}_{spectrum}.jpg"
                    folder = f"{spectrum}/{identity:04d}"
                    if identity in test:
                        folder = f"test_{spectrum}/cam{camera}/{identity:04d}"
                    else:
                        lines.append(f"{folder}/{name} {train.index(identity)}")
                    paint(root / folder / name, identity, spectrum == "nir", size, rng)
        (root / "idx").mkdir(exist_ok=True)
        (root / f"idx/train_{spectrum}.txt").write_text("\n".join(lines))
    (root / "idx/test_id.txt").write_text(",".join(map(str, test)))
    return root


def make_pairs(
    root: Path, *, sequences: int = 3, frames: int = 2, boxes: int = 2, size: tuple[int, int] = (96, 128)
) -> Path:
    """Write `visible/*.png` and `infrared/*.jpg` of one stem, and `boxes.json` with `boxes` a frame (0: no file)."""
    rng = np.random.default_rng(0)
    table: dict[str, list[dict]] = {}
    for sequence in range(sequences):
        for frame in range(frames):
            stem = f"set{sequence:02d}_V000_I{20 * frame + 19:05d}"
            paint(root / f"visible/{stem}.png", 100 * sequence + frame, False, size, rng)
            paint(root / f"infrared/{stem}.jpg", 100 * sequence + frame, True, size, rng)
            table[stem] = [{"box": [40 * n, 10 + sequence, 30, 70], "tag": ""} for n in range(boxes)]
    if boxes:
        (root / "boxes.json").write_text(json.dumps(table))
    return root
