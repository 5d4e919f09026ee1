"""More kinds of files for `test_mutations.py`: of the package, of caches, of outputs, of a book."""

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import make_sysu
from mutations import Kind

from _make import lab, notebooks
from vireid_lite import files, victims
from vireid_lite.attacks.modified_victim import Modification, train_modified_victim
from vireid_lite.data import Dataset, Modality, Record, SyntheticVI, cached, load_dataset
from vireid_lite.errors import InputError
from vireid_lite.models.checkpoints import save_checkpoint
from vireid_lite.study import grids, run
from vireid_lite.training import TrainSettings

ROOT = Path(__file__).parents[1]
LAB = ROOT / lab.FOLDER
RECIPE = victims.Recipe(backbone="lite", settings=TrainSettings(epochs=1, identities=2, images=2))
ASKED = "drop permuted flipped truncated empty twice"  # of what a person writes: it asks for something else
OTHER = ASKED + " extra empty value out-of-range"


def digest(*tensors: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors)).hexdigest()


def crops(count: int = 2, size: tuple[int, int] = (32, 16)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def embedded(model: torch.nn.Module) -> str:
    with torch.no_grad():
        return digest(*(model.embed(crops(), modality) for modality in Modality))


def small() -> SyntheticVI:
    return SyntheticVI(4, 2, size=(32, 16), val_identities=2, test_identities=2)


@contextlib.contextmanager
def caching(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Keep caches in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIREID_CACHE", str(folder))
        yield patch


# What comes with the package.


def ship(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        model = victims.untrained(RECIPE, small(), False)
        card = {"history": [{"accuracy": 0.5}], "device": "a CPU", "key": "k"}
        card |= dict.fromkeys(("seconds", "wall_seconds", "peak_memory_mib"), 1.0)
        path = folder / f"tiny-{files.stable_hash(victims.described(RECIPE, small(), 0))}.safetensors"
        save_checkpoint(path, model, card)
        (folder / "sha256.json").write_text(json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest()}))
        return folder / (name or path.name)

    return make


def shipped(path: Path) -> object:
    with caching(path.parent / "cache") as patch:
        patch.setattr(victims, "WEIGHTS", path.parent)
        patch.setattr(victims, "_behaves", lambda network: True)
        model, card = victims.shipped(files.stable_hash(victims.described(RECIPE, small(), 0)), "agw")
    return embedded(model), card


def behaves(path: Path) -> object:
    with caching(path.parents[1]) as patch:
        patch.setattr(victims, "PROBES", dict.fromkeys(("victim/agw", "data/synthetic"), dict))
        patch.setattr(victims, "differs", lambda part, found: ["it is 1, and was 2"] * part.startswith("victim"))
        return victims._behaves("agw")


def save_behaves(folder: Path) -> Path:
    behaves(folder / "behaves" / "note")
    (note,) = (folder / "behaves").iterdir()
    return note


def reported(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "FOLDER", path.parent)
        return grids.reported.__wrapped__().to_csv()


# What a cache and an output folder keep.


class Numbers(Dataset):
    """Crops that are their own number; `broken` cannot be read."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        super().__init__("numbers", None, (16, 8), {})
        self.train, self.broken = [Record(n, n, 1, Modality.VISIBLE) for n in range(count)], broken

    def read(self, record: Record) -> np.ndarray:
        if record.source == self.broken:
            raise InputError("broken")
        return np.full((16, 8, 3), record.source % 251, np.uint8)


def save_crops(folder: Path) -> Path:
    with caching(folder):
        cached(data := Numbers(2), data.train, False)
    return next(folder.rglob("images.u8"))


def save_rows(folder: Path) -> Path:
    with caching(folder), contextlib.suppress(InputError):
        cached(data := Numbers(300, 290), data.train, False)
    return next(folder.rglob("rows.json"))


def decoded(path: Path) -> object:
    with tempfile.TemporaryDirectory() as folder, caching(shutil.copytree(path.parents[2], Path(folder) / "cache")):
        data = Numbers(300 if path.name == "rows.json" else 2)
        if path.name != "rows.json":
            data.read = None
        return digest(cached(data, data.train, False).images)


def modified(path: Path) -> object:
    with caching(path.parent):
        how = {"device": "cpu", "folder": path.parent, "progress": False}
        found = train_modified_victim(RECIPE, small(), Modification(loss="identity", start="scratch"), **how)
    return embedded(found.model), found.card["people"]


def save_modified(folder: Path) -> Path:
    modified(folder / "modified.safetensors")
    return folder / "modified.safetensors"


def claimed(path: Path) -> object:
    torch.manual_seed(0)
    return run._claim(path.parent, (torch.nn.Linear(2, 2), {}, small()), "test", ["x"])


def save_scores(folder: Path) -> Path:
    (folder / "scores.json").write_text(json.dumps({"key": claimed(folder / "scores.json"), "scores": {"rank1": 0.5}}))
    return folder / "scores.json"


# What a reader has beside the images, and a book is made of.


def save_permutations(folder: Path) -> Path:
    return make_sysu(folder, permutations=True, train=(1,), val=(3,), test=(2, 4)) / "exp/rand_perm_cam.mat"


def drawn(path: Path) -> object:
    return repr(load_dataset("sysu", path.parents[1], draw="official").trials())


def lab_file(name: str) -> Callable[[Path], Path]:
    return lambda folder: shutil.copytree(LAB, folder / "data") / name


def placed(path: Path) -> object:
    page = lab.place({f"{lab.FOLDER}{file.name}": file.read_bytes() for file in path.parent.iterdir()})
    return re.sub(' data-manifest="[0-9a-f]{64}"', "", page)  # by which the page refuses another manifest


CHAPTER = """# %% [markdown]
# # A chapter
# %% tags=["parameters"]
TIER: str = "lite"
SEED: int = 0
# %%
check_parameters(globals(), own={})
"""


def save_pair(folder: Path) -> Path:
    (folder / "notebooks").mkdir()
    (folder / "notebooks/01_one.py").write_text(CHAPTER)
    notebooks.sync_pair(folder / "notebooks/01_one.py")
    return folder / "notebooks/01_one.ipynb"


def paired(path: Path) -> object:
    notebooks.check_pairs(path.parents[1])
    return notebooks.read_record(path), path.with_suffix(".py").read_text()


def save_executed(folder: Path) -> Path:
    record = {"key": "k", "tier": "lite", "dataset": "synthetic", "parameters": {}, "versions": {}, "minutes": 1.5}
    record |= {"memory_gib": 2.0, "device": "a CPU", "training_minutes": 0.5, "shipped_minutes": 0.0, "gpu_gib": 1.0}
    (folder / "01_one.ipynb").write_text(json.dumps({"cells": [], "metadata": {"vireid_run": record}}))
    return folder / "01_one.ipynb"


def a_copy(source: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copy(source, folder))


def project(path: Path) -> object:
    return notebooks.repository_url(path.parent)


# A draw, a printed number and a run's record have no seal: another valid one passes.
MORE = {
    "shipped hashes": Kind(ship("sha256.json"), shipped),
    "shipped weights": Kind(ship(""), shipped, "hashed tensors"),
    "note of behaviour": Kind(save_behaves, behaves),
    "reported": Kind(a_copy(grids.FOLDER / "reported.csv"), reported, "csv", other=OTHER),
    "crops": Kind(save_crops, decoded, "raw"),
    "rows": Kind(save_rows, decoded, "lines"),
    "modified victim": Kind(save_modified, modified, "tensors", "key history name", "permuted"),
    "scores": Kind(save_scores, claimed),
    "permutations": Kind(save_permutations, drawn, "mat", other="drop permuted twice extra"),
    "lab manifest": Kind(lab_file("manifest.json"), placed, free="seed behaviour"),
    "lab scores": Kind(lab_file("scores.json"), placed, "hashed"),
    "notebook": Kind(save_pair, paired),
    "executed copy": Kind(save_executed, notebooks.read_record, other=OTHER),
    "project": Kind(a_copy(ROOT / "pyproject.toml"), project, "toml", other=OTHER),
}
