"""Which rows of a store a step sees: every draw derives from a seed and a step or an epoch."""

from collections.abc import Iterator, Sequence

import numpy as np

from vireid_lite.data.records import Modality, Record
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError, whole


class Batches:
    """Batches of rows, epoch after epoch; a step's depends on (seed, step) alone.

    Args:
        rows: (N,) what to draw from.
        size: cut to what there is.
        shuffle: a new order every epoch; else the given order.
        rest: an epoch ends with the rows that fill no batch; else they are left out.
    """

    def __init__(self, rows: np.ndarray, size: int, seed: int, shuffle: bool = True, rest: bool = False) -> None:
        self.rows, self.size = rows, min(whole("batches", "size", size, 1), whole("batches", "rows", len(rows), 1))
        self.seed, self.shuffle = whole("batches", "seed", seed), shuffle
        self.per_epoch = (len(rows) + rest * (self.size - 1)) // self.size

    def at(self, step: int) -> np.ndarray:
        """Return the rows of a step, (size,)."""
        epoch, place = divmod(step, self.per_epoch)
        rows = np.random.default_rng([self.seed, epoch]).permutation(self.rows) if self.shuffle else self.rows
        return rows[place * self.size : (place + 1) * self.size]


def _halves(size: int) -> dict[Modality, int]:
    size = whole("batches", "size", size, 2)
    return {Modality.VISIBLE: size - size // 2, Modality.INFRARED: size // 2}


class MixedBatches:
    """Rows of both modalities by step: half visible, then half infrared, each in its own seeded order."""

    def __init__(self, store: ImageStore, size: int, seed: int) -> None:
        modalities, seed = store.modalities.numpy(), whole("batches", "seed", seed)
        self.each = {m: Batches(np.flatnonzero(modalities == m), half, seed + m) for m, half in _halves(size).items()}
        self.per_epoch = max(batches.per_epoch for batches in self.each.values())

    def at(self, step: int) -> np.ndarray:
        """Return the rows of a step, visible first."""
        return np.concatenate([batches.at(step) for batches in self.each.values()])


def rows_of(records: Sequence[Record]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return, by identity in ascending order, the rows of the visible and of the infrared images."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for row, record in enumerate(records):
        found.setdefault(record.identity, ([], []))[record.modality].append(row)
    return {identity: tuple(np.array(rows, int) for rows in both) for identity, both in sorted(found.items())}


class IdentityBatches:
    """Rows by step: as many identities as fit, up to `instances` images of each from both modalities, visible first.

    `identities` is the place of each row's identity among all of them, (N,).

    Raises:
        InputError: for fewer than two identities, or a batch too small for them.
    """

    def __init__(self, store: ImageStore, size: int, seed: int, instances: int = 8) -> None:
        self.seed, self.rows = whole("batches", "seed", seed), list(rows_of(store.records).values())
        self.identities = np.unique([record.identity for record in store.records], return_inverse=True)[1]
        if len(self.rows) < 2:
            raise InputError("attack: images of at least 2 training identities are needed, as others are pulled to")
        if whole("batches", "size", size) < 4:
            raise InputError(f"attack: batch_size must be at least 4, for 2 images of 2 identities; got {size}")
        instances = min(instances, size // 2)
        self.count, self.shares = min(size // instances, len(self.rows)), _halves(instances)
        self.per_epoch = max(1, len(store) // size)

    def at(self, step: int) -> np.ndarray:
        """Return the rows of a step, visible first."""
        generator = np.random.default_rng([self.seed, step])
        chosen = generator.choice(len(self.rows), self.count, replace=False)
        drawn = ((self.rows[index][modality], share) for modality, share in self.shares.items() for index in chosen)
        return np.concatenate([generator.permutation(rows)[:share] for rows, share in drawn])


class PKSampler:
    """P identities a batch, K images of each in each modality, as AGW samples (utils.py:68-89), by (seed, epoch).

    Raises:
        InputError: where fewer than two identities have both modalities; others are left out.
    """

    def __init__(self, records: Sequence[Record], identities: int = 8, images: int = 4, seed: int = 0) -> None:
        self.rows = {identity: both for identity, both in rows_of(records).items() if all(map(len, both))}
        if (found := len(self.rows)) < 2:
            raise InputError(f"training needs at least 2 identities with images in both modalities; got {found}")
        self.identities = min(whole("training", "identities", identities, 1), found)
        self.images, self.seed = whole("training", "images", images, 1), whole("training", "seed", seed)
        larger = max(sum(len(both[modality]) for both in self.rows.values()) for modality in Modality)
        self.steps = larger // (self.identities * self.images) + 1

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (visible rows, infrared rows), each (P * K,), identities in the same order in both."""
        generator = np.random.default_rng([self.seed, number])
        names = np.array(list(self.rows))
        for _ in range(self.steps):
            chosen = generator.choice(names, self.identities, replace=False)
            drawn = ([generator.choice(self.rows[name][m], self.images) for name in chosen] for m in Modality)
            yield tuple(map(np.concatenate, drawn))
