"""What an attack leaves behind: one perturbation for every image, or one that is a function of the image."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from vireid_lite.attacks.budget import ModalityLike, project, tie_infrared, to_8_bits
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically
from vireid_lite.models.two_stream import check_images


class Perturbation:
    """What both kinds share: `apply` to images, in floats or in 8 bits, and one safetensors file."""

    kind: ClassVar[str]  # what its files are called
    facts: ClassVar[tuple[str, ...]]  # the fields of a file that are no tensors; `tensors()` are the others
    eps: float
    double = False

    @property
    def budget(self) -> float:
        """The largest change of a pixel."""
        return 2 * self.eps if self.double else self.eps

    def apply_rounded(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images rounded to 8 bits; otherwise as `apply`."""
        return to_8_bits(self.apply(images, modality), images, self.budget)

    def check(self, images: Tensor, size: tuple[int, ...]) -> None:
        """Raise InputError unless `images` may be attacked, and are of the (height, width) it was made for."""
        check_images(images)
        if tuple(images.shape[-2:]) != tuple(size):
            made, got = (f"{height}x{width}" for height, width in (size, images.shape[-2:]))
            raise InputError(f"perturbation: made for crops of {made} pixels, got {got}; load the data at that size")

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, whole or not at all. Raises InputError where that fails."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        facts = json.dumps({name: getattr(self, name) for name in self.facts})
        write_atomically(Path(path), safetensors.torch.save(tensors, metadata={self.kind: facts}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the perturbation of a file. Raises InputError where it is missing, damaged or something else."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such perturbation; make one with `vireid-lite attack`, or check the path")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
                return cls.read(tensors, json.loads((file.metadata() or {})[cls.kind]))
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path}: not a {cls.kind} saved by this package ({reason})") from None


@dataclass
class UniversalPerturbation(Perturbation):
    """One perturbation for every image.

    Args:
        delta: (3, H, W) float, `|delta| <= eps`, or a dict from Modality to one; CMPS's paper calls it eta.
        eps: budget in [0, 1] pixels.
        tied: on infrared images the three channels of the perturbation are equal (`tie`).
        history: one dict a step.
        lattice: (3, 25, 25, 25) colour displacement added to delta before the projection (Col.+Del.), or None.
        double: the lattice and delta keep a budget of eps each, as published; else their sum keeps eps.
        made_by: what made it, for run cards.
    """

    kind: ClassVar[str] = "perturbation"
    facts: ClassVar[tuple[str, ...]] = ("eps", "tied", "double", "history", "made_by")

    delta: Tensor | dict[Modality, Tensor]
    eps: float
    tied: bool = False
    history: list[dict] = field(default_factory=list)
    lattice: Tensor | None = None
    double: bool = False
    made_by: dict = field(default_factory=dict)

    def apply(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images, (N, 3, H, W) in [0, 1], as floats; the input is left as it is.

        Args:
            images: (N, 3, H, W) float in [0, 1].
            modality: one Modality for the batch, or int64 (N,).

        Raises:
            InputError: for images of another size than it was made for, outside [0, 1] or not finite.
        """
        delta = self._delta(modality)
        self.check(images, delta.shape[-2:])
        delta = delta.to(images)
        if self.lattice is not None:
            delta = delta + lattice_shift(self.lattice.to(images), images)
        if self.tied:
            delta = tie_infrared(delta, modality)
        return project(images + delta, images, self.budget)

    def _delta(self, modality: ModalityLike) -> Tensor:
        if not isinstance(self.delta, dict):
            return self.delta
        if isinstance(modality, Tensor):
            return torch.stack([self.delta[Modality(int(value))] for value in modality])
        return self.delta[modality]

    def tensors(self) -> dict[str, Tensor]:
        deltas = self.delta if isinstance(self.delta, dict) else {None: self.delta}
        named = {"delta" if m is None else f"delta.{m.name.lower()}": delta for m, delta in deltas.items()}
        return named if self.lattice is None else {**named, "lattice": self.lattice}

    @classmethod
    def read(cls, tensors: dict[str, Tensor], facts: dict) -> Self:
        lattice = tensors.pop("lattice", None)
        worst = max(float(delta.abs().max()) for delta in tensors.values())
        if not worst <= facts["eps"] * (1 + 1e-6):
            raise ValueError(f"delta reaches {worst:g}, above its own budget of {facts['eps']:g}; make it again")
        named = {Modality[name.partition(".")[2].upper()]: d for name, d in tensors.items() if name != "delta"}
        return cls(delta=named or tensors["delta"], lattice=lattice, **facts)


def lattice_shift(lattice: Tensor, images: Tensor) -> Tensor:
    """Return what a colour lattice adds to each pixel, (N, 3, H, W), trilinear between its nodes.

    Args:
        lattice: (3, K, K, K), the displacement of R, G and B at K levels of red, green and blue (in this order).
    """
    # grid_sample reads the last axis by the first coordinate, so colours are given as (blue, green, red).
    grid = images.permute(0, 2, 3, 1).flip(-1)[:, None] * 2 - 1
    volume = lattice[None].expand(len(images), -1, -1, -1, -1)
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
    return torch.nn.functional.grid_sample(volume, grid, **options)[:, :, 0]


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
