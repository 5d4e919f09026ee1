"""The frozen victim, and the crops an attack may learn from."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.data.records import Dataset, Record
from vireid_lite.data.store import ImageStore, cached
from vireid_lite.errors import InputError, check_choice, whole
from vireid_lite.models.two_stream import evaluating

# Whom a universal attack may learn from: the victim's own people, or some whom neither it nor anyone else has seen.
LEARN_FROM = ("train", "traffic")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a victim still inside the block: eval mode, no parameter asks for a gradient; both are put back after it.

    Gradients of images can be had inside it, within torch.inference_mode too, if the victim was made outside that.
    """
    if any(weight.is_inference() for weight in (*model.parameters(), *model.buffers())):
        raise InputError("attack: the victim's weights were made inside torch.inference_mode; make or load it outside")
    recording = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    asking = [parameter.requires_grad_(False) for parameter in model.parameters() if parameter.requires_grad]
    try:
        with recording, evaluating(model):
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def images_of(store: ImageStore, rows: np.ndarray, model: nn.Module) -> Tensor:
    """Return crops of a store on the model's device, in its precision and memory format."""
    weight = next(model.parameters())
    return store.batch(rows, weight.device).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def training_store(
    train: Dataset | ImageStore, identities: int | None = None, progress: bool = False, split: str = "train"
) -> ImageStore:
    """Return a store as given, or the crops of a data set's first `identities` people of a split, or of all."""
    if hasattr(train, "clean"):
        raise InputError("fit: these crops are attacked already; pass the clean ones")
    if isinstance(train, ImageStore):
        return train
    if not isinstance(train, Dataset):
        found = f"got {type(train).__name__}, which has no reader"
        raise InputError(f"fit: a data set or an ImageStore is needed, {found}; pass its data set")
    return cached(train, taught(train, identities, split), progress)


def taught(train: Dataset, identities: int | None, split: str = "train") -> list[Record]:
    """Return the records of the first `identities` people in one of LEARN_FROM, or of all; InputError for more."""
    check_choice("attack", "learn_from", split, LEARN_FROM)
    known = getattr(train, split)
    there = sorted({record.identity for record in known})
    found = f"attack: {train.name} has {len(there):,} people to learn from" + f" in {split}" * (split != "train")
    if not there and split != "train":
        raise InputError(f"{found}; leave learn_from out")
    if identities is not None:
        there = there[: whole(found, "identities", identities, 1, len(there), int)]
    kept = set(there)
    return [record for record in known if record.identity in kept]


class Stream(IntEnum):
    """What an attack draws from its seed; each has a stream of its own, and every draw of a stream further numbers."""

    CMPS_BANK, CMPS_START, CMPS_GREY, CMPS_ERASED, NOISE, GREY, ALTERED = 2, 3, 4, 5, 11, 12, 13
    FEATURE_NOISE, HEADS, RESTART = 21, 22, 31


def generator_for(*numbers: int) -> torch.Generator:
    """Return a CPU generator that depends on these numbers alone, such as (seed, stream, step)."""
    numbers = [whole("attack", "seed", number) for number in numbers]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def coins(count: int, probability: float, *numbers: int) -> Tensor | None:
    """Return which of `count` crops are changed, (count,) bool, drawn from these numbers; None where none can be."""
    return torch.rand(count, generator=generator_for(*numbers)) < probability if probability else None


def noise(kind: str, shape: tuple[int, ...], *numbers: int) -> Tensor:
    """Return noise drawn from these numbers alone: "uniform" in [-1, 1), or its "sign"."""
    drawn = 2 * torch.rand(shape, generator=generator_for(*numbers)) - 1
    return torch.where(drawn < 0, -1.0, 1.0) if kind == "sign" else drawn


def weights_hash(model: nn.Module | dict[str, Tensor]) -> str:
    """Return 16 hex digits that change with any weight or statistic of a model, or any of some named tensors."""
    named = model.items() if isinstance(model, dict) else model.state_dict().items()
    parts = (name.encode() + value.detach().cpu().contiguous().numpy().tobytes() for name, value in named)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
