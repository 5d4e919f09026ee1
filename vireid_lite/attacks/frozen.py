"""The frozen victim, and the crops an attack may learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.data.records import Dataset
from vireid_lite.data.store import ImageStore, cached
from vireid_lite.errors import InputError
from vireid_lite.models.two_stream import evaluating


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a victim still inside the block: eval mode, no parameter asks for a gradient; both are put back after it."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def images_of(store: ImageStore, rows: np.ndarray, model: nn.Module) -> Tensor:
    """Return crops of a store on the model's device, in its precision and memory format."""
    weight = next(model.parameters())
    return store.batch(rows, weight.device).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def training_store(train: Dataset | ImageStore, identities: int | None = None, progress: bool = False) -> ImageStore:
    """Return the crops an attack may learn from: a data set's training images, or the store as given.

    identities: keep the first so many training identities of a data set; None keeps all.
    Raises InputError for anything else than a data set or a store.
    """
    if isinstance(train, ImageStore):
        return train
    if not isinstance(train, Dataset):
        raise InputError(
            f"fit: training data must be a data set (its training images are read) or an ImageStore, got "
            f"{type(train).__name__}; a list of records has no reader, so pass the data set it came from"
        )
    kept = set(sorted({record.identity for record in train.train})[:identities])
    return cached(train, [record for record in train.train if record.identity in kept], progress)


def generator_for(*numbers: int) -> torch.Generator:
    """Return a CPU generator that depends on these numbers alone, such as (seed, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def weights_hash(model: nn.Module) -> str:
    """Return 16 hex digits that change with any weight or statistic of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
