"""Data sets as records, readers and trials; crops cached on disk; batches and their augmentation."""

from pathlib import Path

from vireid_lite.data.augment import Augmentation
from vireid_lite.data.batches import PKSampler
from vireid_lite.data.benchmarks.llcm import LLCM
from vireid_lite.data.benchmarks.paired_folder import PairedFolder
from vireid_lite.data.benchmarks.regdb import RegDB
from vireid_lite.data.benchmarks.sysu import SYSU
from vireid_lite.data.records import Dataset, Modality, Record, Size, Trial, all_against_all, fingerprint, people
from vireid_lite.data.store import ImageStore, cached
from vireid_lite.data.synthetic.people import DIFFICULTIES, Knobs, SyntheticVI
from vireid_lite.errors import InputError, check_choice

__all__ = ["DATASETS", "DIFFICULTIES", "LLCM", "SYSU", "Augmentation", "Dataset", "ImageStore", "Knobs", "Modality"]
__all__ += ["PKSampler", "PairedFolder", "Record", "RegDB", "SyntheticVI", "Trial", "all_against_all", "cached"]
__all__ += ["fingerprint", "load_dataset", "people"]

DATASETS = {"synthetic": SyntheticVI, "sysu": SYSU, "regdb": RegDB, "llcm": LLCM, "paired_folder": PairedFolder}


def load_dataset(
    name: str, /, root: str | Path | None = None, *, size: Size | None = None, seed: int = 0, **options: object
) -> Dataset:
    """Return a data set by name: "synthetic", "sysu", "regdb", "llcm" or "paired_folder".

    Args:
        root: the folder of the reader's own copy; the synthetic set takes none.
        size: (height, width) of the crops in pixels; None stands for the data set's usual size.
        seed: decides rendering and held-out identities.
        options: those of the data set's class.

    Raises:
        InputError: for an unknown name or option, a missing root, or a root where none belongs.
    """
    check_choice("load_dataset", "data set", name, DATASETS)
    if name != "synthetic":
        options["root"] = root
    elif root is not None:
        raise InputError(f"synthetic: images are rendered, so it takes no root; got {root}")
    return DATASETS[name](seed=seed, **({} if size is None else {"size": size}), **options)
