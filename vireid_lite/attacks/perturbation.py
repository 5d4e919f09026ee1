"""What a universal attack makes, on crops of another size than it was made on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from vireid_lite.attacks.base import UniversalPerturbation
from vireid_lite.errors import InputError


def resized(made: UniversalPerturbation, size: tuple[int, int]) -> UniversalPerturbation:
    """Return a universal perturbation for crops of another size, projected to its own budget again.

    Each delta is interpolated bilinearly (corners not aligned, no antialiasing), then clipped to [-eps, eps]; a colour
    lattice has no size and stays. Interpolation only averages, so the projection guards against rounding alone, and a
    delta of +-eps everywhere loses strength.

    Args:
        size: (height, width) of the target's crops in pixels; the same size returns `made` itself.

    Raises:
        InputError: for what is no perturbation of fixed pixels (a generator).
    """
    if not isinstance(made, UniversalPerturbation):
        raise InputError(f"transfer: {type(made).__name__} has no delta to resize; use crops of one size for both")

    def fit(delta: Tensor) -> Tensor:
        if tuple(delta.shape[-2:]) == tuple(size):
            return delta
        options = {"mode": "bilinear", "align_corners": False, "antialias": False}
        return F.interpolate(delta[None], size=tuple(size), **options)[0].clamp(-made.eps, made.eps)

    if isinstance(made.delta, dict):
        deltas = {modality: fit(delta) for modality, delta in made.delta.items()}
        same = all(deltas[modality] is delta for modality, delta in made.delta.items())
    else:
        deltas = fit(made.delta)
        same = deltas is made.delta
    return made if same else replace(made, delta=deltas)
