"""Universal attacks that CMPS is compared with, and noise as a control: one delta for every image of both spectra.

All but the noise descend on their loss with the sign of a momentum of L1-normalised gradients. Features are the ranked
ones (L2-normalised, after the BNNeck), each image passes the stem of its own modality, and half of each batch is
visible, half infrared, unless a class says otherwise. The sources' other features, spaces and data sets are in the
docstrings, so that what is compared here is the idea of an attack under one contract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import clip, l1_normalised, luma, tie_infrared
from vireid_lite.attacks.descent import SignDescent, UniversalAttack, check_number, check_whole
from vireid_lite.attacks.features import Problem, batch_mates, centroids_for, clean_outputs, extremes, triplet
from vireid_lite.attacks.frozen import generator_for, images_of
from vireid_lite.attacks.perturbation import UniversalPerturbation, lattice_shift
from vireid_lite.data.batches import IdentityBatches, MixedBatches
from vireid_lite.data.records import Modality
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError

NOISE, GREY = 11, 12  # what a seed is drawn for


@dataclass(frozen=True, kw_only=True)
class UniformNoise(UniversalAttack):
    """Control: noise drawn once, uniform in [-eps, eps] in each pixel and channel; no gradient.

    Tied, infrared images receive one drawn channel in all three: the mean of three would be weaker noise.
    """

    name: ClassVar[str] = "uniform-noise"
    knows: ClassVar[str] = "nothing"
    gradients_per_step: ClassVar[int] = 0

    steps: int = 1

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> None:
        """Return nothing: noise needs no preparation."""

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return the noise itself."""
        return {"delta": self.eps * self.draw(torch.rand(shape, generator=generator_for(seed, NOISE)))}

    def draw(self, uniform: Tensor) -> Tensor:
        """Return noise in [-1, 1] from numbers in [0, 1)."""
        return 2 * uniform - 1

    def step(self, model: nn.Module, problem: None, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Change nothing."""
        return {}

    def finish(self, state: dict[str, Tensor], history: list[dict], seed: int) -> UniversalPerturbation:
        """Return the noise; tied, with the first channel in all three for infrared images."""
        found = super().finish(state, history, seed)
        if self.tied:
            delta = found.delta
            found.delta = {Modality.VISIBLE: delta, Modality.INFRARED: delta[:1].expand_as(delta).clone()}
        return found


@dataclass(frozen=True, kw_only=True)
class SignNoise(UniformNoise):
    """Control: +eps or -eps, drawn once in each pixel and channel; the strongest noise of its budget. No gradient."""

    name: ClassVar[str] = "sign-noise"

    def draw(self, uniform: Tensor) -> Tensor:
        """Return -1 or 1 from numbers in [0, 1)."""
        return torch.where(uniform < 0.5, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class UAP(SignDescent):
    """The class attack: away from the class the victim predicts for the clean image, whatever the ranking does.

    The loss is minus the mean cross-entropy, so that it falls. This is the gradient form of the universal adversarial
    perturbation of Moosavi-Dezfooli et al., CVPR 2017, whose DeepFool inner loop is left out.
    """

    name: ClassVar[str] = "uap"

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return the predicted class of every crop, in `push`."""
        features, classes = clean_outputs(model, store)
        return Problem(store, MixedBatches(store, self.batch_size, seed), features[:0], push=classes)

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        """Return minus the cross-entropy of the classes predicted on the clean crops."""
        logits = model(images, problem.store.modalities[rows]).logits
        return -F.cross_entropy(logits, problem.push[torch.from_numpy(rows)])


@dataclass(frozen=True, kw_only=True)
class UAPRetrieval(SignDescent):
    """UAP-Retrieval: pulled to the least and pushed from the most similar centroid of clean features, of any modality.

    The triplet is about features times 10, margin .8. clusters: k of the k-means over all images; 0 stands for
    min(256, training identities), as in CMPS; published: 512. grey_probability: how often a crop is replaced by its
    luma. Left out: the list-wise and class terms, random resizing of delta (256 to 1024 pixels), early stopping.
    Source: Li et al., "Universal Perturbation Attack Against Image Retrieval", ICCV 2019; UAPR attack.py:359-467.
    """

    name: ClassVar[str] = "uap-retrieval"

    decay: float = 0.01
    rescale: bool = True
    margin: float = 0.8
    scale: float = 10.0
    clusters: int = 0
    grey_probability: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("margin", 0, math.inf), ("scale", 1e-9, math.inf), ("grey_probability", 0, 1)):
            check_number(self, name, low, high)
        check_whole(self, "clusters", 0)

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return the centroids of all clean features, and each crop's least and most similar one."""
        features, _ = clean_outputs(model, store)
        centroids = centroids_for(features, store, self.clusters, seed)
        return Problem(store, MixedBatches(store, self.batch_size, seed), centroids, *extremes(features, centroids))

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        """Return the triplet loss."""
        features = self.scale * model.embed(images, problem.store.modalities[rows])
        pull, push = (
            self.scale * problem.points[index[torch.from_numpy(rows)]] for index in (problem.pull, problem.push)
        )
        return triplet(features, pull, push, self.margin)

    def crops(self, model: nn.Module, problem: Problem, rows: np.ndarray, step: int, seed: int) -> Tensor:
        """Return the clean crops that a step attacks, some of them grey."""
        images = super().crops(model, problem, rows, step, seed)
        if not self.grey_probability:
            return images
        chosen = torch.rand(len(rows), generator=generator_for(seed, GREY, step)) < self.grey_probability
        return luma(images, chosen)


@dataclass(frozen=True, kw_only=True)
class UAPRetrievalGrey(UAPRetrieval):
    """UAP-Retrieval with every fifth crop grey: the augmentation of CMPS alone, without its cross-modality triplet."""

    name: ClassVar[str] = "uap-retrieval-grey"

    grey_probability: float = 0.2


@dataclass(frozen=True, kw_only=True)
class MetaAttack(SignDescent):
    """MetaAttack: a gradient at delta, one on other data at the delta that would follow, and one step along their sum.

    The loss is ten times the triplet of UAP-Retrieval plus max(0, mean similarity to the own centroid - mean similarity
    to the best other one), each over the batch. The published "meta-test" batch comes from another data set, PersonX,
    with centroids of its own; here it comes from the other modality, which is our choice, and the modalities take turns
    at being the meta-test. The gradient at the look-ahead counts where the look-ahead was not clipped; sign() lets no
    second derivative through.
    Source: Yang et al., "Learning to Attack Real-World Models for Person Re-identification via Virtual-Guided
    Meta-Learning", AAAI 2021; the step is that of the code of CMPS, MI_SGD.py:73-104.
    """

    name: ClassVar[str] = "meta-attack"
    gradients_per_step: ClassVar[int] = 2

    decay: float = 0.01
    rescale: bool = True
    margin: float = 0.5
    clusters: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "margin", 0, math.inf)
        check_whole(self, "clusters", 0)

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return each modality's centroids, one after the other, and each crop's least and most similar of its own."""
        features, _ = clean_outputs(model, store)
        pull, push = torch.zeros(2, len(store), dtype=torch.int64, device=features.device)
        banks: list[Tensor] = []
        for modality in Modality:
            rows = (store.modalities == modality).nonzero().flatten().to(features.device)
            bank = centroids_for(features[rows], store, self.clusters, seed)
            for index, found in zip((pull, push), extremes(features[rows], bank), strict=True):
                index[rows] = found + sum(map(len, banks))
            banks.append(bank)
        bank = torch.cat(
            [torch.full((len(bank),), int(modality)) for modality, bank in zip(Modality, banks, strict=True)]
        )
        # Both batches of a step are of one modality and of full size.
        return Problem(
            store, MixedBatches(store, 2 * self.batch_size, seed), torch.cat(banks), pull, push, bank.to(pull.device)
        )

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        """Return the loss of a batch of one modality."""
        index = torch.from_numpy(rows)
        modality = Modality(int(problem.store.modalities[rows[0]]))
        features = model.embed(images, modality)
        own = problem.push[index]
        loss = 10 * triplet(features, problem.points[problem.pull[index]], problem.points[own], self.margin)
        similarity = features @ problem.points.T
        others = (problem.bank == modality).expand(similarity.shape).scatter(1, own[:, None], False)
        best = similarity.masked_fill(~others, -math.inf).amax(1)
        return loss + F.relu(similarity.gather(1, own[:, None]).mean() - best.mean())

    def step(self, model: nn.Module, problem: Problem, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Make one update from a batch of each modality."""
        size = self.step_size(problem, state, step)
        train, test = [batches.at(step) for batches in problem.batches.each.values()][:: -1 if step % 2 else 1]
        found, loss = self.gradient(model, problem, state["delta"], train, images_of(problem.store, train, model))
        ahead = state["delta"] - size * (self.momentum * state["momentum"] + l1_normalised(found)).sign()
        images = images_of(problem.store, test, model)
        other, meta = self.gradient(model, problem, ahead.clamp(-self.eps, self.eps), test, images)
        self.descend(state, found + other * (ahead.abs() <= self.eps), size)
        return {"loss": loss.item(), "meta_loss": meta.item()}


@dataclass(frozen=True, kw_only=True)
class ColDel(SignDescent):
    """Col.+Del.: a lattice that moves colours, then an additive delta, both learned together; it knows identities.

    The loss is ten times the triplet that pulls an image to the clean feature of the farthest other identity of its
    batch and pushes it from the farthest of its own, margin .5. levels: K nodes per colour of the (3, K, K, K) lattice,
    which is read trilinearly. budget: "total" keeps the sum within eps, in training too; "double", as published, keeps
    eps for each. instances: images per identity of a batch.
    An infrared image has equal channels and so reads the grey diagonal of the lattice alone: three tone curves, or,
    tied, one curve, their mean; "colour" there is an intensity dependent brightness that a sensor could deliver.
    Source: Yang et al., "Towards Robust Person Re-identification by Defending Against Universal Attackers", TPAMI 2023;
    MAD:61-102,496-531, without its meta-test batch, which has no effect there beyond a second step.
    """

    name: ClassVar[str] = "col-del"
    knows: ClassVar[str] = "the victim's weights; training images with identities"

    budget: str = "total"
    levels: int = 25
    margin: float = 0.5
    instances: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "margin", 0, math.inf)
        check_whole(self, "levels", 2)
        check_whole(self, "instances", 2)
        if self.budget not in ("total", "double"):
            raise InputError(f"{self.name}: budget {self.budget!r} is unknown; choose from total, double")

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return delta and lattice at zero, each with its momentum."""
        lattice = torch.zeros(3, self.levels, self.levels, self.levels)
        return {**super().start(shape, seed), "lattice": lattice, "lattice_momentum": lattice.clone()}

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return the clean features and batches of identities."""
        features, _ = clean_outputs(model, store)
        return Problem(store, IdentityBatches(store, self.batch_size, seed, self.instances), features)

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        """Return the triplet loss of a batch of several images of each identity."""
        index = torch.from_numpy(rows)
        clean = problem.points[index]
        identities = torch.from_numpy(problem.batches.identities)[index].to(clean.device)
        pull, push = batch_mates(clean, identities, own="farthest")
        features = model.embed(images, problem.store.modalities[rows])
        return 10 * triplet(features, clean[pull], clean[push], self.margin)

    def step(self, model: nn.Module, problem: Problem, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Make one update of delta and lattice from one backward pass."""
        size = self.step_size(problem, state, step)
        rows = problem.batches.at(step)
        images = images_of(problem.store, rows, model)
        delta, lattice = (state[what].detach().requires_grad_() for what in ("delta", "lattice"))
        shift = delta + lattice_shift(lattice, images)
        if self.tied:
            shift = tie_infrared(shift, problem.store.modalities[rows])
        if self.budget == "total":
            shift = clip(shift, -self.eps, self.eps)
        loss = self.loss(model, problem, clip(images + shift), rows)
        for what, gradient in zip(("delta", "lattice"), torch.autograd.grad(loss, (delta, lattice)), strict=True):
            self.descend(state, gradient, size, what)
        return {"loss": loss.item()}

    def finish(self, state: dict[str, Tensor], history: list[dict], seed: int) -> UniversalPerturbation:
        """Return delta and the lattice."""
        found = super().finish(state, history, seed)
        found.lattice, found.double = state["lattice"].detach().cpu().clone(), self.budget == "double"
        return found


UNIVERSAL = {
    attack.name: attack for attack in (UniformNoise, SignNoise, UAP, UAPRetrieval, UAPRetrievalGrey, MetaAttack, ColDel)
}
