"""DMR, deep mis-ranking: a small network that draws a perturbation for each image, trained against a frozen victim.

Source: Wang et al., "Transferable, Controllable, and Inconspicuous Adversarial Attacks on Person Re-identification With
Deep Mis-Ranking", CVPR 2020, section 3.1 for the loss. Not here: the multi-stage discriminator and the perceptual term
that keep the published perturbation inconspicuous (the l-infinity budget replaces them), the classification term (the
ranking is the target), and the mask that spares pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vireid_lite.attacks.budget import ModalityLike, clip, project, tie_infrared, to_8_bits
from vireid_lite.attacks.descent import UniversalAttack, check_number, check_whole
from vireid_lite.attacks.features import Problem, batch_mates, clean_outputs, triplet
from vireid_lite.attacks.frozen import images_of
from vireid_lite.data.batches import IdentityBatches
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically
from vireid_lite.models.two_stream import check_images


class Generator(nn.Module):
    """An encoder and decoder of two scales with skips: images (N, 3, H, W) in [0, 1] to shifts in (-1, 1).

    width: channels of the first scale; 24 gives 50,000 weights.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down1 = block(3, width, 2)
        self.down2 = block(width, 2 * width, 2)
        self.middle = block(2 * width, 2 * width)
        self.up2 = block(2 * width, width)
        self.up1 = block(width, width)
        self.out = nn.Conv2d(width, 12, 3, padding=1)  # four pixels of three channels: no layer at full size is needed

    def forward(self, images: Tensor) -> Tensor:
        """Return the shifts, (N, 3, H, W)."""
        first = self.down1(images * 2 - 1)
        second = self.down2(first)
        second = second + self.middle(second)
        first = first + self.up2(F.interpolate(second, size=first.shape[-2:]))
        maps = self.out(first + self.up1(first))
        # Without this the quickest way down is one colour for the whole crop, which saturates tanh and ends learning.
        maps = maps - maps.mean((2, 3), keepdim=True)
        full = F.pixel_shuffle(maps, 2)
        return full[:, :, : images.shape[-2], : images.shape[-1]].tanh()


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, a norm and a ReLU."""
    # Groups of an image's own channels are normalised, so its perturbation depends on that image alone.
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(4, outputs), nn.ReLU())


def run(generator: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """Return what a generator of these weights, one flat vector in the order of its parameters, draws on images."""
    names, like = zip(*generator.named_parameters(), strict=True)
    parts = weights.split([parameter.numel() for parameter in like])
    shaped = {name: part.view_as(parameter) for name, part, parameter in zip(names, parts, like, strict=True)}
    return functional_call(generator, shaped, (images,))


@dataclass
class GeneratorPerturbation:
    """What DMR leaves behind: a perturbation that is a function of the image.

    weights: flat vector of a `Generator` of `width`. size: (height, width) in pixels of the crops it was trained on.
    eps, tied, history, made_by: as in `base.UniversalPerturbation`, whose methods this has.
    """

    weights: Tensor
    size: tuple[int, int]
    eps: float
    width: int = 24
    tied: bool = False
    history: list[dict] = field(default_factory=list)
    made_by: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = tuple(self.size)
        self._generator = Generator(self.width).requires_grad_(False)
        needed = sum(parameter.numel() for parameter in self._generator.parameters())
        if self.weights.shape != (needed,):
            raise InputError(f"dmr: a generator of width {self.width} has {needed} weights, got {self.weights.numel()}")

    def apply(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images, (N, 3, H, W) in [0, 1], as floats; the input is left as it is.

        modality: one Modality for the batch, or int64 (N,). No gradient flows.
        Raises InputError for images of another size than the training crops, outside [0, 1] or not finite.
        """
        check_images(images)
        if images.shape[-2:] != self.size:
            raise InputError(
                f"perturbation: made for crops of {self.size[0]}x{self.size[1]} pixels, got "
                f"{images.shape[-2]}x{images.shape[-1]}; load the data at that size"
            )
        with torch.no_grad():
            shift = self.eps * run(self._generator, self.weights.to(images), images)
            if self.tied:
                shift = tie_infrared(shift, modality)
            return project(images + shift, images, self.eps)

    def apply_rounded(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images rounded to 8 bits; otherwise as `apply`."""
        return to_8_bits(self.apply(images, modality), images, self.eps)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, whole or not at all. Raises InputError where that fails."""
        facts = {name: getattr(self, name) for name in ("size", "eps", "width", "tied", "history", "made_by")}
        content = safetensors.torch.save({"weights": self.weights.contiguous()}, {"generator": json.dumps(facts)})
        write_atomically(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> GeneratorPerturbation:
        """Return the perturbation of a file. Raises InputError where it is missing, damaged or something else."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such perturbation; make one with `vireid-lite attack`, or check the path")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return cls(file.get_tensor("weights"), **json.loads((file.metadata() or {})["generator"]))
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path}: not a generator saved by this package ({reason})") from None


@dataclass(frozen=True, kw_only=True)
class DMR(UniversalAttack):
    """Train a generator to mis-rank: pull each attacked image to others, push it from its own identity.

    The loss is the mean of max(0, |f - far| - |f - near| + margin): far is the clean feature of the farthest other
    identity of the batch, near that of the nearest other image of its own, over both modalities (published: attacked
    features on both sides, one modality; a gallery here is clean). Adam, learning rate as given. instances: images per
    identity of a batch. width: of the `Generator`. steps: updates, one forward and backward pass each.
    """

    name: ClassVar[str] = "dmr"
    knows: ClassVar[str] = "the victim's weights; training images with identities; a perturbation for each image"

    learning_rate: float = 1e-3
    margin: float = 0.3
    instances: int = 8
    width: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "learning_rate", 1e-9, 1)
        check_number(self, "margin", 0, math.inf)
        check_whole(self, "instances", 2)
        check_whole(self, "width", 8)
        if self.width % 8:
            raise InputError(f"{self.name}: width must be a multiple of 8, got {self.width}")

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return the generator's first weights, Adam's two moments, and the size of the crops."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(self.width)
        weights = torch.cat([parameter.detach().flatten() for parameter in generator.parameters()])
        zeros = torch.zeros_like(weights)
        return {"weights": weights, "first": zeros, "second": zeros.clone(), "size": torch.tensor(shape[1:])}

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> tuple[Problem, nn.Module]:
        """Return the clean features, batches of identities, and the generator's frame."""
        features, _ = clean_outputs(model, store)
        problem = Problem(store, IdentityBatches(store, self.batch_size, seed, self.instances), features)
        return problem, Generator(self.width).to(features)

    def step(
        self, model: nn.Module, problem: tuple[Problem, nn.Module], state: dict[str, Tensor], step: int, seed: int
    ) -> dict:
        """Make one step of Adam (betas .9 and .999)."""
        fixed, generator = problem
        rows = fixed.batches.at(step)
        weights = state["weights"].detach().requires_grad_()
        loss = self.loss(model, fixed, generator, weights, rows)
        (gradient,) = torch.autograd.grad(loss, weights)
        state["first"] = 0.9 * state["first"] + 0.1 * gradient
        state["second"] = 0.999 * state["second"] + 0.001 * gradient.square()
        mean, square = state["first"] / (1 - 0.9 ** (step + 1)), state["second"] / (1 - 0.999 ** (step + 1))
        state["weights"] = state["weights"] - self.learning_rate * mean / (square.sqrt() + 1e-8)
        return {"loss": loss.item()}

    def loss(
        self, model: nn.Module, problem: Problem, generator: nn.Module, weights: Tensor, rows: np.ndarray
    ) -> Tensor:
        """Return the mis-ranking loss of a batch of several images of each identity."""
        images, modality = images_of(problem.store, rows, model), problem.store.modalities[rows]
        index = torch.from_numpy(rows)
        clean = problem.points[index]
        identities = torch.from_numpy(problem.batches.identities)[index].to(clean.device)
        far, near = batch_mates(clean, identities, own="nearest")
        shift = self.eps * run(generator, weights, images)
        if self.tied:
            shift = tie_infrared(shift, modality)
        features = model.embed(clip(images + shift), modality)
        return triplet(features, clean[far], clean[near], self.margin)

    def finish(self, state: dict[str, Tensor], history: list[dict], seed: int) -> GeneratorPerturbation:
        """Return the perturbation that a generator draws."""
        made_by = {**self.describe(), "seed": seed}
        size = tuple(int(side) for side in state["size"])
        weights = state["weights"].detach().cpu().clone()
        return GeneratorPerturbation(weights, size, self.eps, self.width, self.tied, history, made_by)
