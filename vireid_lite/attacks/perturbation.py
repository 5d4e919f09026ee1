"""What an attack leaves behind: one perturbation for every image, or one that is a function of the image."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from vireid_lite.attacks.budget import ModalityLike, check_eps, project, tie_infrared, to_8_bits
from vireid_lite.data.records import Modality, check_modality, one_modality
from vireid_lite.errors import InputError, check_flag, check_table
from vireid_lite.files import parse_json, read_tensors, write_tensors
from vireid_lite.models.two_stream import check_images


class Perturbation:
    """What both kinds share: `apply` to images, in floats or in 8 bits, and one safetensors file.

    A kind has `shift(images, modality)`, what is added before channels are tied and the sum is projected; the fields
    that a file keeps are its `tensors()` and `facts`, from which it is `read`.
    """

    kind: ClassVar[str] = "perturbation"  # what its files are called
    facts: ClassVar[tuple[str, ...]]
    size: tuple[int, int]  # (height, width) of the crops it was made for
    eps: float
    tied: bool
    double = False

    def __post_init__(self) -> None:
        check_eps(self.eps)
        check_flag(self.kind, "tied", self.tied)
        check_flag(self.kind, "double", self.double)
        check_table(self.kind, {"history": self.history, "made_by": self.made_by}, {"history": list, "made_by": dict})
        check_table(f"{self.kind}, made_by", self.made_by, {"people": str}, others=True)
        for name, tensor in self.tensors().items():
            floats = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype.itemsize > 1
            if not (floats and tensor.float().isfinite().all()):
                raise InputError(f"{self.kind}: {name} must hold finite floats of 16 bits or more; make it again")

    @property
    def people(self) -> set[str]:
        """Whom it was learned from, as `data.people` names them; empty where that was nobody, or nothing says."""
        return set(self.made_by.get("people", "").split())

    @property
    def budget(self) -> float:
        """The largest change of a pixel."""
        return 2 * self.eps if self.double else self.eps

    def apply(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images (N, 3, H, W) in [0, 1], as floats; the modality is one for all, or int64 (N,).

        Raises InputError for images of another size than it was made for, outside [0, 1] or not finite.
        """
        check_images(images)
        modality = check_modality(modality, len(images))
        if tuple(images.shape[-2:]) != tuple(self.size):
            made, got = (f"{height}x{width}" for height, width in (self.size, images.shape[-2:]))
            raise InputError(f"perturbation: made for crops of {made} pixels, got {got}; load the data at that size")
        return project(images + tie_infrared(self.shift(images, modality), modality, self.tied), images, self.budget)

    def apply_rounded(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images rounded to 8 bits; otherwise as `apply`."""
        return to_8_bits(self.apply(images, modality), images, self.budget)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, whole or not at all."""
        facts = json.dumps({name: getattr(self, name) for name in self.facts})
        write_tensors(Path(path), self.tensors(), self.kind, facts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return what `save` wrote, of either kind or of this one alone. Raises InputError where a file is neither."""
        path = Path(path)
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such perturbation; make one with `vireid-lite attack`, or check the path")
        try:
            tensors, texts = read_tensors(path)
            for kind in cls.__subclasses__() or [cls]:
                if kind.kind in texts:
                    facts = parse_json(texts[kind.kind])
                    if not isinstance(facts, dict) or (odd := set(kind.facts) ^ facts.keys()):
                        raise ValueError(f"{min(odd)} is missing or unknown" if isinstance(facts, dict) else "no facts")
                    return kind.read(tensors, facts)
            raise KeyError("of another kind")
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path}: not a {cls.kind} saved by this package ({reason})") from None

    @classmethod
    def read(cls, tensors: dict[str, Tensor], facts: dict) -> Self:
        return cls(**tensors, **facts)


@dataclass
class UniversalPerturbation(Perturbation):
    """One perturbation for every image.

    Args:
        delta: (3, H, W) float, `|delta| <= eps`, or a dict from Modality to one; CMPS's paper calls it eta.
        eps: budget in [0, 1] pixels.
        tied: on infrared images the three channels of the perturbation are equal (`tie`).
        lattice: (3, 25, 25, 25) colour displacement added to delta before the projection (Col.+Del.), or None.
        double: the lattice and delta keep a budget of eps each, as published; else their sum keeps eps.
        history, made_by: one dict a step; what made it, for run cards.
    """

    facts: ClassVar[tuple[str, ...]] = ("eps", "tied", "double", "history", "made_by")
    delta: Tensor | dict[Modality, Tensor]
    eps: float
    tied: bool = False
    history: list[dict] = field(default_factory=list)
    lattice: Tensor | None = None
    double: bool = False
    made_by: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.delta, dict) and set(self.delta) != set(Modality):
            raise InputError("perturbation: delta must be one tensor, or one for each Modality")
        super().__post_init__()
        (shape, *others), nodes = ({tuple(t.shape) for n, t in self.tensors().items() if n != "lattice"}), (3, 2, 2, 2)
        nodes = nodes if self.lattice is None else tuple(self.lattice.shape)
        if (
            others
            or len(shape) != 3
            or shape[0] != 3
            or not all(shape)
            or nodes != (3, *nodes[1:2] * 3)
            or nodes[1] < 2
        ):
            needed = "delta must be (3, height, width), a lattice (3, K, K, K) with K of at least 2"
            raise InputError(f"perturbation: {needed}; got {[shape, *others]} and {nodes}")

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the crops it was made for."""
        return next(iter(self.tensors().values())).shape[-2:]

    def shift(self, images: Tensor, modality: ModalityLike) -> Tensor:
        delta = self.delta
        if isinstance(delta, dict):
            delta = torch.stack([delta[each] for each in Modality]).to(images)[modality]
        delta = delta.to(images)
        return delta if self.lattice is None else delta + lattice_shift(self.lattice.to(images), images)

    def tensors(self) -> dict[str, Tensor]:
        named = {"delta": self.delta}
        if isinstance(self.delta, dict):
            named = {f"delta.{one_modality(each).name.lower()}": delta for each, delta in self.delta.items()}
        return named if self.lattice is None else {**named, "lattice": self.lattice}

    @classmethod
    def read(cls, tensors: dict[str, Tensor], facts: dict) -> Self:
        each = {f"delta.{modality.name.lower()}": modality for modality in Modality}
        if (names := tensors.keys() - {"lattice"}) not in ({"delta"}, set(each)):
            raise ValueError(f"it holds {', '.join(sorted(names)) or 'no delta'}")
        delta = tensors["delta"] if "delta" in names else {each[name]: tensors[name] for name in each}
        found = cls(delta=delta, lattice=tensors.get("lattice"), **facts)
        worst = max(float(tensor.abs().max()) for name, tensor in tensors.items() if name != "lattice")
        if not worst <= found.eps * (1 + 1e-6):
            raise ValueError(f"delta reaches {worst:g}, above its own budget of {found.eps:g}; make it again")
        return found


def lattice_shift(lattice: Tensor, images: Tensor) -> Tensor:
    """Return what a colour lattice (3, K, K, K) adds to each pixel, (N, 3, H, W), trilinear between its nodes.

    It holds the displacement of R, G and B at K levels of red, green and blue (in this order).
    """
    # grid_sample reads the last axis by the first coordinate, so colours are given as (blue, green, red).
    grid = images.permute(0, 2, 3, 1).flip(-1)[:, None] * 2 - 1
    volume = lattice[None].expand(len(images), -1, -1, -1, -1)
    return F.grid_sample(volume, grid, padding_mode="border", align_corners=True)[:, :, 0]


def resized(made: UniversalPerturbation, size: tuple[int, int]) -> UniversalPerturbation:
    """Return a universal perturbation for crops of another size, (height, width), projected to its own budget again.

    Each delta is interpolated bilinearly (corners not aligned, no antialiasing), then clipped to [-eps, eps]; a colour
    lattice has no size and stays. Interpolation only averages, so a delta of +-eps everywhere loses strength.
    Raises InputError for what is no perturbation of fixed pixels (a generator).
    """
    if not isinstance(made, UniversalPerturbation):
        raise InputError(f"transfer: {type(made).__name__} has no delta to resize; use crops of one size for both")
    if tuple(made.size) == tuple(size):
        return made

    def fit(delta: Tensor) -> Tensor:
        return F.interpolate(delta[None], size=tuple(size), mode="bilinear")[0].clamp(-made.eps, made.eps)

    many = isinstance(made.delta, dict)
    return replace(made, delta={m: fit(delta) for m, delta in made.delta.items()} if many else fit(made.delta))
