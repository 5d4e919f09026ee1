"""Universal attacks that CMPS is compared with, and noise as a control: one delta for every image of both spectra.

Features are the ranked ones, each image passes the stem of its own modality, and half of each batch is visible, half
infrared, unless a class says otherwise.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import clip, tie_infrared
from vireid_lite.attacks.descent import SignDescent, State, UniversalAttack
from vireid_lite.attacks.features import Problem, centroids_for, clean_features, extremes, predicted, triplet
from vireid_lite.attacks.frozen import Stream, images_of, noise
from vireid_lite.attacks.perturbation import UniversalPerturbation, lattice_shift
from vireid_lite.data import ImageStore, Modality
from vireid_lite.data.batches import IdentityBatches, MixedBatches


@dataclass(frozen=True, kw_only=True)
class UniformNoise(UniversalAttack):
    """Control: noise drawn once, uniform in [-eps, eps] in each pixel and channel; no gradient.

    Args:
        cells: rows of the grid that it is drawn on instead, with columns in proportion, and bicubic between them: few
            for noise of low frequency (Co et al., "Procedural noise adversarial examples", CCS 2019, theirs Perlin's),
            1 for a constant shift of colour; 0: every pixel.
    """

    name: ClassVar[str] = "uniform-noise"
    knows: ClassVar[str] = "nothing"
    gradients_per_step: ClassVar[int] = 0
    steps: int = 1
    cells: int = 0

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> None:
        return None

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        kind, (channels, height, width) = self.name.removesuffix("-noise"), shape
        if not self.cells:
            return {"delta": self.eps * noise(kind, shape, seed, Stream.NOISE)}
        grid = noise("uniform", (channels, self.cells, max(1, round(self.cells * width / height))), seed, Stream.NOISE)
        drawn = F.interpolate(grid[None], (height, width), mode="bicubic")[0].clamp(-1, 1)
        return {"delta": self.eps * (torch.where(drawn < 0, -1.0, 1.0) if kind == "sign" else drawn)}

    def step(self, model: nn.Module, problem: None, state: State, step: int, seed: int) -> dict:
        return {}

    def finish(self, state: State, history: list[dict], seed: int) -> UniversalPerturbation:
        found = super().finish(state, history, seed)
        if self.tied:  # one drawn channel in all three, as the mean of three would be weaker noise
            one = found.delta[:1].expand_as(found.delta).clone()
            found.delta = {Modality.VISIBLE: found.delta, Modality.INFRARED: one}
        return found


@dataclass(frozen=True, kw_only=True)
class SignNoise(UniformNoise):
    """Control: +eps or -eps, drawn once in each pixel and channel; the strongest noise of its budget. No gradient."""

    name: ClassVar[str] = "sign-noise"


@dataclass(frozen=True, kw_only=True)
class UAP(SignDescent):
    """The class attack: away from the class the victim predicts for the clean image; the loss is minus cross-entropy.

    Source: Moosavi-Dezfooli et al., "Universal Adversarial Perturbations", CVPR 2017; its DeepFool loop is left out.
    """

    name: ClassVar[str] = "uap"

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        return Problem(store, MixedBatches(store, self.batch_size, seed), classes=predicted(model, store))

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        logits = model(images, problem.store.modalities[rows]).logits
        return -F.cross_entropy(logits, problem.classes[torch.from_numpy(rows)])


@dataclass(frozen=True, kw_only=True)
class UAPRetrieval(SignDescent):
    """UAP-Retrieval: pulled to the least and pushed from the most similar centroid of clean features, of any modality.

    Left out: the list-wise and class terms, random resizing of delta (256 to 1024 pixels), early stopping.
    Source: Li et al., "Universal Perturbation Attack Against Image Retrieval", ICCV 2019; UAPR attack.py:359-467.

    Args:
        published: compare centroids by dot product instead of cosine, another for 3 to 25 % of the images, and clip
            with torch.clamp instead of passing gradients straight through.
        scale: what features are multiplied by before the triplet.
        clusters: k of the k-means, 0 for min(256, training identities), as in CMPS; published: 512.
        grey_probability: how often a crop is replaced by its luma.
    """

    name: ClassVar[str] = "uap-retrieval"
    published: bool = False
    decay: float = 0.01
    rescale: bool = True
    margin: float = 0.8
    scale: float = 10.0
    clusters: int = 0
    grey_probability: float = 0.0

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        features = clean_features(model, store)
        centroids = centroids_for(features, store, self.clusters, seed)
        found = extremes(features, centroids, score="dot" if self.published else "cosine")
        return Problem(store, MixedBatches(store, self.batch_size, seed), centroids, *found)

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        compared = model.embed(images, problem.store.modalities[rows]), *problem.picked(rows)
        return triplet(*(self.scale * each for each in compared), self.margin)


@dataclass(frozen=True, kw_only=True)
class UAPRetrievalGrey(UAPRetrieval):
    """UAP-Retrieval with every fifth crop grey: the augmentation of CMPS alone, without its cross-modality triplet."""

    name: ClassVar[str] = "uap-retrieval-grey"
    grey_probability: float = 0.2


@dataclass(frozen=True, kw_only=True)
class MetaAttack(SignDescent):
    """MetaAttack: a gradient at delta, one on other data at the delta that would follow, and one step along their sum.

    The loss is ten times UAP-Retrieval's triplet plus max(0, mean similarity to the own centroid - mean similarity to
    the best other one). The other data are of the other modality, with centroids of its own, and the two take turns;
    published: of another data set, PersonX.
    Source: Yang et al., "Learning to Attack Real-World Models for Person Re-identification via Virtual-Guided
    Meta-Learning", AAAI 2021; the step is that of the code of CMPS, MI_SGD.py:73-104.
    """

    name: ClassVar[str] = "meta-attack"
    gradients_per_step: ClassVar[int] = 2
    decay: float = 0.01
    rescale: bool = True
    margin: float = 0.5
    clusters: int = 0

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        features, banks = clean_features(model, store), []
        found = torch.zeros(2, len(store), dtype=torch.int64, device=features.device)
        for modality in Modality:
            own = (store.modalities == modality).to(features.device)
            banks.append(centroids_for(features[own], store, self.clusters, seed))
            found[:, own] = torch.stack(extremes(features[own], banks[-1])) + sum(map(len, banks[:-1]))
        bank = torch.repeat_interleave(torch.tensor([len(bank) for bank in banks])).to(features.device)
        batches = MixedBatches(store, 2 * self.batch_size, seed)  # both of a step are of one modality and of full size
        return Problem(store, batches, torch.cat(banks), *found, bank)

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        modality = Modality(int(problem.store.modalities[rows[0]]))
        features, own = model.embed(images, modality), problem.push[torch.from_numpy(rows)][:, None]
        similarity = features @ problem.centroids.T
        others = (problem.bank == modality).expand(similarity.shape).scatter(1, own, False)
        best = similarity.masked_fill(~others, -math.inf).amax(1)
        apart = F.relu(similarity.gather(1, own).mean() - best.mean())
        return 10 * triplet(features, *problem.picked(rows), self.margin) + apart

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        size = self.step_size(problem.batches.per_epoch, state, step)
        train, test = [batches.at(step) for batches in problem.batches.each.values()][:: -1 if step % 2 else 1]
        found, loss = self.gradient(model, problem, state["delta"], train)
        ahead, inside = self.look_ahead(state, found, size)
        other, meta = self.gradient(model, problem, ahead, test)
        self.descend(state, found + other * inside, size)
        return {"loss": loss.item(), "meta_loss": meta.item()}


@dataclass(frozen=True, kw_only=True)
class ColDel(SignDescent):
    """Col.+Del.: a lattice that moves colours, then an additive delta, both learned together; it knows identities.

    The loss is ten times the triplet that pulls an image to the clean feature of the farthest other identity of its
    batch and pushes it from the farthest of its own. Infrared images read the grey diagonal of the lattice alone.
    Source: Yang et al., "Towards Robust Person Re-identification by Defending Against Universal Attackers", TPAMI 2023;
    MAD:61-102,496-531, without its meta-test batch, which has no effect there beyond a second step.

    Args:
        budget: "total" keeps the sum within eps, in training too; "double", as published, keeps eps for each.
        levels, instances: nodes per colour of the lattice; images per identity of a batch.
    """

    name: ClassVar[str] = "col-del"
    knows: ClassVar[str] = "the victim's weights; training images with identities"
    delta_alone: ClassVar[bool] = False
    choices: ClassVar[dict[str, tuple]] = {"budget": ("total", "double")}
    budget: str = "total"
    levels: int = 25
    margin: float = 0.5
    instances: int = 8

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        lattice = torch.zeros(3, self.levels, self.levels, self.levels)
        return {**super().start(shape, seed), "lattice": lattice, "lattice_momentum": lattice.clone()}

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        batches = IdentityBatches(store, self.batch_size, seed, self.instances)
        return Problem(store, batches, clean=clean_features(model, store))

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        features = model.embed(images, problem.store.modalities[rows])
        return 10 * triplet(features, *problem.mates(rows, "farthest"), self.margin)

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        size, rows = self.step_size(problem.batches.per_epoch, state, step), problem.batches.at(step)
        images = images_of(problem.store, rows, model)
        delta, lattice = (state[what].detach().requires_grad_() for what in ("delta", "lattice"))
        shift = tie_infrared(delta + lattice_shift(lattice, images), problem.store.modalities[rows], self.tied)
        if self.budget == "total":
            shift = clip(shift, -self.eps, self.eps)
        loss = self.loss(model, problem, clip(images + shift), rows)
        for what, gradient in zip(("delta", "lattice"), torch.autograd.grad(loss, (delta, lattice)), strict=True):
            self.descend(state, gradient, size, what)
        return {"loss": loss.item()}

    def finish(self, state: State, history: list[dict], seed: int) -> UniversalPerturbation:
        found = super().finish(state, history, seed)
        found.lattice, found.double = state["lattice"].detach().cpu().clone(), self.budget == "double"
        return found


UNIVERSAL = {a.name: a for a in (UniformNoise, SignNoise, UAP, UAPRetrieval, UAPRetrievalGrey, MetaAttack, ColDel)}
