"""95 % intervals over people: the bootstrap and its paired form."""

from typing import NamedTuple

import numpy as np
import torch

from vireid_lite.errors import InputError, whole

MOST = 10**6  #: the most repeats


class Interval(NamedTuple):
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference (after - before) and the bounds of its interval."""

    difference: float
    low: float
    high: float


def bootstrap(values, identities, counts=None, repeats: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of a score and its interval over identities, which are resampled with replacement.

    Args:
        values: (N,) one score per valid query, or per identity.
        identities: (N,) integers, who each value belongs to; the queries of one person are not independent.
        counts: (N,) how many queries each value is the mean of (`PerIdentity.queries`), or None for one.

    Raises:
        InputError: on unlike shapes, values that are not finite, or fewer than two identities.
    """
    values, repeats = numbers(values, "values"), whole("metrics", "repeats", repeats, 2, MOST)
    people, member = np.unique(labels(identities, "identities", len(values)), return_inverse=True)
    weights = np.ones(len(values)) if counts is None else numbers(counts, "counts")
    if weights.shape != values.shape or not (weights > 0).all():
        raise InputError("metrics: bootstrap needs one finite value per query or identity, and positive counts if any")
    if len(people) < 2:
        raise InputError("metrics: a bootstrap over identities needs at least two of them")
    sums, totals = np.bincount(member, values * weights), np.bincount(member, weights)
    rng = np.random.default_rng(whole("metrics", "seed", seed))
    draws = (rng.integers(len(people), size=len(people)) for _ in range(repeats))
    return interval([sums[draw].sum() / totals[draw].sum() for draw in draws], sums.sum() / totals.sum())


def paired_bootstrap(before, after, identities, counts=None, repeats: int = 2000, seed: int = 0) -> Difference:
    """Return the mean of after - before, (N,) each on the same queries or identities; all else as in `bootstrap`."""
    before, after = numbers(before, "before"), numbers(after, "after")
    if before.shape != after.shape:
        raise InputError(f"metrics: before and after must be on the same queries, got {before.shape}, {after.shape}")
    return Difference(*bootstrap(after - before, identities, counts, repeats, seed))


def interval(samples, mean: float) -> Interval:
    """Return a mean beside the bounds that hold the middle 95 % of its samples, of which it needs two."""
    if len(samples) < 2:
        raise InputError(f"metrics: an interval needs repeats >= 2, got {len(samples)}")
    return Interval(float(mean), *map(float, np.quantile(samples, [(1 - 0.95) / 2, (1 + 0.95) / 2])))


def numbers(values, name: str) -> np.ndarray:
    """Return scores or counts as float64 (N,)."""
    values = dense(values, name)
    values = values.double().numpy(force=True) if isinstance(values, torch.Tensor) else values
    if values.dtype.kind in "fiub" and values.ndim == 1 and np.isfinite(values := values.astype(np.float64)).all():
        return values
    raise InputError(f"metrics: {name} must be finite real numbers, one for each query or identity")


def dense(values, name: str):
    """Return a tensor as it is, anything else as an array. Raises InputError for what has no number in some place."""
    if isinstance(values, torch.Tensor):
        if values.layout == torch.strided and not values.is_meta:
            return values
        raise InputError(f"metrics: {name} must be a dense tensor with data, got {values.layout} on {values.device}")
    if any(map(np.ma.is_masked, values if isinstance(values, list | tuple) else [values])):
        raise InputError(f"metrics: {name} has masked values; leave those rows out, or fill them")
    try:
        return np.asarray(values)
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"metrics: {name} must be numbers in rows of one length, as an array or tensor") from None


def labels(values, name: str, length: int | None = None) -> np.ndarray:
    """Return identities or cameras as an integer array of the length asked for."""
    values = dense(values, name)
    if isinstance(values, torch.Tensor):  # NumPy has no bfloat16
        values = (values.double() if values.is_floating_point() else values).numpy(force=True)
    if values.ndim != 1 or values.dtype.kind not in "iu" or length not in (None, len(values)):
        wanted = "(N,)" if length is None else f"({length},)"
        raise InputError(f"metrics: {name} must be integers of shape {wanted}, got {values.dtype} {values.shape}")
    return values.astype(np.int64)
