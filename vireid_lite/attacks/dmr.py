"""DMR, deep mis-ranking: a small network that draws a perturbation for each image, trained against a frozen victim.

Source: Wang et al., "Transferable, Controllable, and Inconspicuous Adversarial Attacks on Person Re-identification With
Deep Mis-Ranking", CVPR 2020, section 3.1 for the loss. Not here: the multi-stage discriminator and the perceptual term
(the l-infinity budget replaces them), the classification term (the ranking is the target), and the pixel mask.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vireid_lite.attacks.budget import ModalityLike, clip, tie_infrared
from vireid_lite.attacks.descent import State, UniversalAttack
from vireid_lite.attacks.features import Problem, clean_features, triplet
from vireid_lite.attacks.frozen import images_of
from vireid_lite.attacks.perturbation import Perturbation
from vireid_lite.data.batches import IdentityBatches
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import MANY, InputError, check_table, whole


class Generator(nn.Module):
    """An encoder and decoder of two scales with skips: images (N, 3, H, W) in [0, 1] to shifts in (-1, 1)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down1, self.down2 = block(3, width, 2), block(width, 2 * width, 2)
        self.middle, self.up2, self.up1 = block(2 * width, 2 * width), block(2 * width, width), block(width, width)
        self.out = nn.Conv2d(width, 12, 3, padding=1)  # four pixels of three channels: no layer at full size is needed

    def forward(self, images: Tensor) -> Tensor:
        first = self.down1(images * 2 - 1)
        second = self.down2(first)
        second = second + self.middle(second)
        first = first + self.up2(F.interpolate(second, size=first.shape[-2:]))
        maps = self.out(first + self.up1(first))
        # Without this the quickest way down is one colour for the whole crop, which saturates tanh and ends learning.
        maps = maps - maps.mean((2, 3), keepdim=True)
        return F.pixel_shuffle(maps, 2)[:, :, : images.shape[-2], : images.shape[-1]].tanh()


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, a norm of groups of an image's own channels, so that it depends on no other, and a ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(4, outputs), nn.ReLU())


@dataclass
class GeneratorPerturbation(Perturbation):
    """What DMR leaves behind: the flat `weights` of a `Generator`, for crops of `size`, (height, width)."""

    kind: ClassVar[str] = "generator"
    facts: ClassVar[tuple[str, ...]] = ("size", "eps", "width", "tied", "history", "made_by")
    weights: Tensor
    size: tuple[int, int]
    eps: float
    width: int = 24
    tied: bool = False
    history: list[dict] = field(default_factory=list)
    made_by: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_table("dmr", {"size": self.size}, {"size": list | tuple})
        for number in (self.width, *self.size):
            whole("dmr", "width and size", number, 1, MANY, int)
        if len(self.size) != 2 or self.width % 8 or self.width**2 > self.weights.numel():
            found = f"size {self.size} and width {self.width} with {self.weights.numel()} weights"
            raise InputError(f"dmr: {found} make no generator; it is of (height, width) and a multiple of 8")
        self.size, self._generator = tuple(self.size), Generator(self.width).requires_grad_(False)
        needed = sum(parameter.numel() for parameter in self._generator.parameters())
        if self.weights.shape != (needed,):
            raise InputError(f"dmr: a generator of width {self.width} has {needed} weights, got {self.weights.numel()}")

    @torch.no_grad()
    def shift(self, images: Tensor, modality: ModalityLike) -> Tensor:
        vector_to_parameters(self.weights.to(images), self._generator.to(images).parameters())
        return self.eps * self._generator(images)

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights}


@dataclass(frozen=True, kw_only=True)
class DMR(UniversalAttack):
    """Train a generator to mis-rank: pull each attacked image to others, push it from its own identity.

    The loss is the `triplet` between the clean features of the farthest other identity of the batch and of the nearest
    other image of its own, over both modalities (published: of attacked features, in one modality).
    """

    name: ClassVar[str] = "dmr"
    knows: ClassVar[str] = "the victim's weights; training images with identities; a perturbation for each image"
    delta_alone: ClassVar[bool] = False
    learning_rate: float = 1e-3
    margin: float = 0.3
    instances: int = 8
    width: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 8:
            raise InputError(f"{self.name}: width must be a multiple of 8, got {self.width}")

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        batches = IdentityBatches(store, self.batch_size, seed, self.instances)
        return Problem(store, batches, clean=clean_features(model, store))

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        return {"size": torch.tensor(shape[1:])}

    def learned(self, model: nn.Module, problem: Problem, seed: int) -> State:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(self.width).to(next(model.parameters()))
        return {"generator": generator, "adam": torch.optim.Adam(generator.parameters(), self.learning_rate)}

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        loss = self.loss(model, problem, state["generator"], problem.batches.at(step))
        state["adam"].zero_grad()
        loss.backward()
        state["adam"].step()
        return {"loss": loss.item()}

    def loss(self, model, problem, generator: Generator, rows: np.ndarray) -> Tensor:
        images, modality = images_of(problem.store, rows, model), problem.store.modalities[rows]
        shift = tie_infrared(self.eps * generator(images), modality, self.tied)
        return triplet(model.embed(clip(images + shift), modality), *problem.mates(rows, "nearest"), self.margin)

    def finish(self, state: State, history: list[dict], seed: int) -> GeneratorPerturbation:
        weights = parameters_to_vector(state["generator"].parameters()).detach().cpu().clone()
        size, made_by = tuple(map(int, state["size"])), {**self.describe(), "seed": seed}
        return GeneratorPerturbation(weights, size, self.eps, self.width, self.tied, history, made_by)
