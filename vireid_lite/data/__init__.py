"""Data sets as records, readers and trials; crops cached on disk; batches and their augmentation."""

from __future__ import annotations

import inspect
from pathlib import Path

from vireid_lite.data.augment import Augmentation
from vireid_lite.data.batches import PKSampler
from vireid_lite.data.benchmarks.llcm import LLCM
from vireid_lite.data.benchmarks.paired_folder import PairedFolder
from vireid_lite.data.benchmarks.regdb import RegDB
from vireid_lite.data.benchmarks.sysu import SYSU
from vireid_lite.data.records import Dataset, Modality, Record, Trial, all_against_all, fingerprint
from vireid_lite.data.store import ImageStore, cached
from vireid_lite.data.synthetic.people import DIFFICULTIES, Knobs, SyntheticVI
from vireid_lite.errors import InputError

__all__ = [
    "DATASETS",
    "DIFFICULTIES",
    "LLCM",
    "SYSU",
    "Augmentation",
    "Dataset",
    "ImageStore",
    "Knobs",
    "Modality",
    "PKSampler",
    "PairedFolder",
    "Record",
    "RegDB",
    "SyntheticVI",
    "Trial",
    "all_against_all",
    "cached",
    "fingerprint",
    "load_dataset",
]

DATASETS = {"synthetic": SyntheticVI, "sysu": SYSU, "regdb": RegDB, "llcm": LLCM, "paired_folder": PairedFolder}


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    **options: object,
) -> Dataset:
    """Return a data set by name: "synthetic", "sysu", "regdb", "llcm" or "paired_folder".

    root: the folder of the reader's own copy; the synthetic set takes none. size: (height, width) of the crops in
    pixels; None stands for the data set's usual size. seed: decides rendering and held-out identities.
    options: the named options of the data set's class (SyntheticVI, SYSU, RegDB, LLCM, PairedFolder).
    Raises InputError for an unknown name or option, a missing root, or a root where none belongs.
    """
    if name not in DATASETS:
        raise InputError(f"data set {name!r} is unknown; choose from {', '.join(DATASETS)}")
    reader = DATASETS[name]
    known = [p.name for p in inspect.signature(reader).parameters.values() if p.kind is not p.VAR_KEYWORD]
    if name == "synthetic":
        known += list(Knobs.__dataclass_fields__)
        if root is not None:
            raise InputError(f"synthetic: images are rendered, so it takes no root; got {root}")
        arguments = {}
    else:
        if root is None:
            raise InputError(f"{name}: give the folder of your own copy with --root (DATA_ROOT in a chapter)")
        if not Path(root).is_dir():
            raise InputError(f"{name}: {root} is not a folder; check --root")
        arguments = {"root": Path(root)}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"{name}: option {unknown[0]!r} is unknown; it takes {', '.join(k for k in known if k != 'root')}"
        )
    if size is not None:
        arguments["size"] = tuple(size)
    return reader(**arguments, seed=seed, **options)
