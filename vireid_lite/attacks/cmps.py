"""CMPS, the cross-modality perturbation synergy attack: as its paper has it, as its code was released, and between.

Source: Gong et al., NeurIPS 2024, arXiv 2401.10090, equations 1 to 9 and algorithm 1. The paper's eta is `delta` here,
its rho `margin`, its theta `momentum`, its alpha `step_share * eps`. C^p, which a feature is pushed from, is `push`;
C^n, which it is pulled to, is `pull`. Both modes descend, as the released code does; equations 6 and 9 print an ascent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.attacks.budget import clip, l1_normalised, luma, tie_infrared
from vireid_lite.attacks.descent import UniversalAttack
from vireid_lite.attacks.features import identity_centroids, kmeans_centroids
from vireid_lite.attacks.frozen import generator_for, images_of
from vireid_lite.data.batches import Batches
from vireid_lite.data.records import Modality
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError

EMBED_ROWS = 256  # crops embedded at once while centroids are made

CHOICES = {
    "update": ("alternate", "joint", "look-ahead"),
    "modalities": ("both", "visible", "infrared"),
    "bank": ("cross", "same", "mixed"),
    "centroids": ("kmeans", "identity"),
    "choice": ("similarity", "identity"),
    "score": ("cosine", "dot"),
    "feature": ("embedding", "pooled"),
    "distance": ("euclidean", "squared"),
    "centroid_input": ("normalised", "raw"),
    "stem": ("own", "visible"),
    "grey": ("every", "first"),
    "grey_anchor": (False, True),
    "initial": ("zero", "uniform"),
    "clip": ("straight-through", "masked"),
    "rescale": (False, True),
    "shuffle": (False, True),
}

PRESETS = {
    "paper": {
        "update": "alternate",
        "bank": "cross",
        "score": "cosine",
        "feature": "embedding",
        "distance": "euclidean",
        "centroid_input": "normalised",
        "stem": "own",
        "grey": "every",
        "clip": "straight-through",
        "rescale": False,
        "shuffle": True,
        "step_share": 1 / 12,
        "decay": 0.0,
        "clusters": 0,
    },
    "released": {
        "update": "look-ahead",
        "bank": "mixed",
        "score": "dot",
        "feature": "pooled",
        "distance": "euclidean",
        "centroid_input": "raw",
        "stem": "visible",
        "grey": "first",
        "clip": "masked",
        "rescale": True,
        "shuffle": False,
        "step_share": 1 / 10,
        "decay": 0.01,
        "clusters": 206,
    },
}


@dataclass(frozen=True)
class Problem:
    """What a fit never changes: the crops, the centroids, and which of them each crop is pulled to and pushed from.

    centroids: (K, D), all banks one after the other. pull, push: (3, N) rows of `centroids` for each crop in the first
    pass, in the second one, and where it was turned grey and that counts. batches: of each modality, and "mixed".
    """

    store: ImageStore
    centroids: Tensor
    pull: Tensor
    push: Tensor
    batches: dict


@dataclass(frozen=True, kw_only=True)
class CMPS(UniversalAttack):
    """The universal cross-modality attack; one delta for both spectra.

    mode: "paper" or "released". It sets every switch below that is left at None; `PRESETS` holds both sets.

    update: "alternate" (a visible step, then an infrared step, on one delta), "joint" (both gradients, one step) or
    "look-ahead" (the released step: a gradient at delta and one at the delta that would follow, on one mixed batch).
    modalities: "both", or images of one modality alone at the same number of gradient evaluations.
    bank: where centroids come from. "cross" as in equation 1: visible is pulled to grey and pushed from infrared,
    infrared pulled to visible and pushed from grey; "same": the image's own modality; "mixed": two banks of both
    modalities, for the first and the second pass.
    centroids: "kmeans", or one per "identity". clusters: k of the k-means, 0 for min(256, training identities).
    choice: pushed from the most and pulled to the least similar centroid of the clean feature ("similarity", the rule
    of UAP-Retrieval; the paper names none), or pushed from its own "identity", pulled to the least similar other. With
    mixed banks a crop turned grey is compared by its grey feature, as released.
    score: similarity with L2-normalised centroids ("cosine") or with centroids as they are ("dot").
    feature: "embedding" (what is ranked: L2-normalised, after the BNNeck) or "pooled" (before it, not normalised).
    distance: "euclidean", in both modes, or "squared". centroid_input: with the network's mean and std ("normalised"),
    or "raw" without them. stem: each image's "own", or the "visible" one for all.
    grey_probability: how often a crop is replaced by its luma; grey: in "every" pass or only in the "first".
    grey_anchor: a visible crop that was replaced takes equation 1's middle term instead of the first.
    initial: "zero", or "uniform": Rand(0, 1) of 255 levels, the paper's text. clip: how [0, 1] passes gradients.
    rescale: halve delta at an epoch's start where more than half of it is saturated and that share stands still.
    shuffle: a new order each epoch, or crops grouped by identity, then camera. step_share: step size as a share of
    eps, times exp(-decay (epoch + 1)). margin: rho. momentum: theta.
    The published batch order, seed and epochs are unknown, so `steps` and `batch_size` are the caller's.
    Raises InputError for unknown values.
    """

    name: ClassVar[str] = "cmps"
    gradients_per_step: ClassVar[int] = 2

    mode: str = "paper"
    update: str | None = None
    modalities: str = "both"
    bank: str | None = None
    centroids: str = "kmeans"
    clusters: int | None = None
    choice: str = "similarity"
    score: str | None = None
    feature: str | None = None
    distance: str | None = None
    centroid_input: str | None = None
    stem: str | None = None
    grey_probability: float = 0.2
    grey: str | None = None
    grey_anchor: bool = False
    initial: str = "zero"
    clip: str | None = None
    rescale: bool | None = None
    shuffle: bool | None = None
    step_share: float | None = None
    decay: float | None = None
    margin: float = 0.5
    momentum: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in PRESETS:
            raise InputError(f"cmps: mode {self.mode!r} is unknown; choose from {', '.join(PRESETS)}")
        for name, value in PRESETS[self.mode].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise InputError(f"cmps: {name} {getattr(self, name)!r} is unknown; choose from {listed}")
        for name, low, high in (
            ("grey_probability", 0, 1),
            ("step_share", 1e-9, 2),
            ("decay", 0, math.inf),
            ("margin", 0, math.inf),
            ("momentum", 0, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(f"cmps: {name} must be a number from {low} to {high}, got {value!r}")
        if type(self.clusters) is not int or self.clusters < 0:
            raise InputError(f"cmps: clusters must be a whole number, 0 for as many as identities; got {self.clusters}")
        if self.choice == "identity" and self.centroids != "identity":
            raise InputError("cmps: choice='identity' needs centroids='identity'")
        if self.modalities != "both" and self.update != "alternate":
            raise InputError("cmps: one modality alone needs update='alternate'")
        if self.grey_anchor and self.bank != "cross":
            raise InputError("cmps: grey_anchor is a term of equation 1 and needs bank='cross'")

    def features(self, model: nn.Module, images: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return the features the triplet is about, (N, D), of images (N, 3, H, W) in [0, 1]."""
        through = Modality.VISIBLE if self.stem == "visible" else modality
        if self.feature == "embedding":
            return model.embed(images, through)
        return model(images, through).pooled

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return the centroids of clean features and each crop's two: what it is pulled to, what it is pushed from."""
        identities = np.array([record.identity for record in store.records])
        modalities = store.modalities.numpy()
        order = np.arange(len(store))
        if not self.shuffle:
            order = np.lexsort((modalities, [record.camera for record in store.records], identities))
        batches: dict = {
            modality: Batches(order[modalities[order] == modality], self.batch_size, seed + 1 + modality, self.shuffle)
            for modality in Modality
        }
        batches["mixed"] = Batches(order, self.batch_size, seed, self.shuffle)
        clean = self._embed_all(model, store)
        made = clean if self.centroid_input == "normalised" else self._embed_all(model, store, raw=True)
        banks = list(self._banks(model, store, made, identities, seed))
        centroids, first = torch.cat([bank for bank, _ in banks]), np.cumsum([0] + [len(bank) for bank, _ in banks])

        if min(len(bank) for bank, _ in banks) < 2:
            raise InputError("cmps: 1 centroid leaves nothing to be pulled to; give 2 training identities or clusters")

        def pick(seen: Tensor, rows: np.ndarray, pull_bank: int, push_bank: int) -> tuple[Tensor, Tensor]:
            own = identities[rows] if self.choice == "identity" else None
            pull = self._choose(seen[rows], *banks[pull_bank], own, nearest=False)
            push = self._choose(seen[rows], *banks[push_bank], own, nearest=True)
            return pull + int(first[pull_bank]), push + int(first[push_bank])

        pull, push = torch.zeros(2, 3, len(store), dtype=torch.int64, device=clean.device)
        everything = np.arange(len(store))
        visible, infrared = (np.flatnonzero(modalities == modality) for modality in Modality)
        if self.bank == "mixed":
            # A crop turned grey is compared as it is, grey (CMPS_attack.py:44-54).
            grey = self._embed_all(model, store, grey="all")
            plan = [(0, clean, everything, 0, 0), (1, clean, everything, 1, 1), (2, grey, everything, 0, 0)]
        elif self.bank == "same":
            plan = [(p, clean, rows, b, b) for p in (0, 1) for rows, b in ((visible, 0), (infrared, 1))]
        else:  # equation 1; banks are visible 0, infrared 1, grey 2
            plan = [(p, clean, *term) for p in (0, 1) for term in ((visible, 2, 1), (infrared, 0, 2))]
            plan.append((2, clean, visible, 1, 0))
        for turn, seen, rows, pull_bank, push_bank in plan:
            pull[turn, rows], push[turn, rows] = pick(seen, rows, pull_bank, push_bank)
        return Problem(store, centroids, pull, push, batches)

    def _embed_all(
        self,
        model: nn.Module,
        store: ImageStore,
        rows: np.ndarray | None = None,
        *,
        raw: bool = False,
        grey: str = "none",
        seed: int = 0,
    ) -> Tensor:
        """Return clean features of a store's rows, or of all, (N, D); grey: "none", "all", or "some" of them."""
        stems = model.stages[0]
        parts = []
        draw = torch.rand(len(store), generator=generator_for(seed, 2))
        everything = np.arange(len(store)) if rows is None else rows
        for start in range(0, len(everything), EMBED_ROWS):
            rows = everything[start : start + EMBED_ROWS]
            images = images_of(store, rows, model)
            if grey != "none":
                images = luma(images, draw[rows] < (1.0 if grey == "all" else self.grey_probability))
            if raw:  # what reaches the first convolution is then the image as it is
                images = images * stems.std + stems.mean
            with torch.no_grad():
                parts.append(self.features(model, images, store.modalities[rows]))
        return torch.cat(parts)

    def _banks(
        self, model: nn.Module, store: ImageStore, made: Tensor, identities: np.ndarray, seed: int
    ) -> Iterator[tuple[Tensor, np.ndarray | None]]:
        """Yield (centroids, their identities or None): mixed A and B, or visible, infrared and grey."""
        raw = self.centroid_input == "raw"
        modalities = store.modalities.numpy()
        clusters = self.clusters or min(256, len(np.unique(identities)))
        if self.bank == "mixed":
            some = self._embed_all(model, store, raw=raw, grey="some", seed=seed)
            sets = [(some, np.arange(len(store))), (made, np.arange(len(store)))]
        else:
            rows = [np.flatnonzero(modalities == modality) for modality in Modality]
            sets = [(made[group], group) for group in rows]
            if self.bank == "cross":
                sets.append((self._embed_all(model, store, rows[0], raw=raw, grey="all"), rows[0]))
        for features, group in sets:
            if self.centroids == "identity":
                yield identity_centroids(features, identities[group])
            else:
                yield kmeans_centroids(features, clusters, seed), None

    def _choose(self, clean: Tensor, bank: Tensor, names: np.ndarray | None, own: np.ndarray | None, *, nearest: bool):
        """Return the row of the bank that each clean feature is pushed from (`nearest`) or pulled to, (N,)."""
        if self.score == "cosine":
            bank = nn.functional.normalize(bank)
        scores = clean @ bank.T
        if own is not None:
            mine = torch.from_numpy(own[:, None] == names).to(scores.device)
            if not mine.any(1).all():
                raise InputError("cmps: choice='identity' needs every training identity in both modalities")
            # Its own identity is the nearest by decree, so that it is pushed from it and never pulled to it.
            scores = scores.masked_fill(mine, math.inf)
        return scores.argmax(1) if nearest else scores.argmin(1)

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return delta, the momentum, and the saturated share at the last epoch's start."""
        state = super().start(shape, seed)
        state["saturation"] = torch.zeros(())
        if self.initial == "uniform":
            state["delta"] = (torch.rand(shape, generator=generator_for(seed, 3)) / 255).clamp(max=self.eps)
        return state

    def objective(
        self, model: nn.Module, problem: Problem, delta: Tensor, rows: np.ndarray, turn: int = 0, chosen=None
    ) -> tuple[Tensor, Tensor]:
        """Return the triplet loss of some crops under delta and the share of them whose hinge is active.

        turn: 0 for the first pass (or the visible step), 1 for the second. chosen: (n,) bool, crops replaced by luma.
        """
        images, modality = images_of(problem.store, rows, model), problem.store.modalities[rows]
        turns = torch.full((len(rows),), turn)
        if chosen is not None:
            images = luma(images, chosen)
            if self.grey_anchor:
                turns[chosen & (modality == Modality.VISIBLE)] = 2
            elif self.bank == "mixed" and turn == 0:
                turns[chosen] = 2
        if (modality == modality[0]).all():
            modality = Modality(int(modality[0]))  # one modality: no splitting of the batch in the stems
        added = tie_infrared(delta, modality) if self.tied else delta
        attacked = clip(images + added, masked=self.clip == "masked")
        features = self.features(model, attacked, modality)
        where = torch.from_numpy(rows)
        pull, push = (
            self._distance(features, problem.centroids[index[turns, where]]) for index in (problem.pull, problem.push)
        )
        terms = pull - push + self.margin
        return terms.clamp(min=0).mean(), (terms.detach() > 0).float().mean()

    def _distance(self, features: Tensor, centroids: Tensor) -> Tensor:
        difference = features - centroids
        return difference.square().sum(1) if self.distance == "squared" else torch.linalg.vector_norm(difference, dim=1)

    def gradient(
        self, model: nn.Module, problem: Problem, delta: Tensor, rows: np.ndarray, turn: int = 0, chosen=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of `objective` with respect to delta, (3, H, W), and what `objective` returns."""
        delta = delta.detach().requires_grad_()
        loss, active = self.objective(model, problem, delta, rows, turn, chosen)
        return torch.autograd.grad(loss, delta)[0], loss.detach(), active

    def step(self, model: nn.Module, problem: Problem, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Make one iteration: algorithm 1's two steps, one joint step, or the released step."""
        mixed = self.update == "look-ahead"
        per_epoch = problem.batches["mixed" if mixed else Modality.VISIBLE].per_epoch
        epoch, place = divmod(step, per_epoch)
        if self.rescale and place == 0:
            self._rescale(state)
        size = self.step_share * self.eps * math.exp(-self.decay * (epoch + 1) if self.decay else 0.0)
        delta, momentum = state["delta"], state["momentum"]

        def draw(part: int, rows: np.ndarray) -> Tensor | None:
            if not self.grey_probability or (self.grey == "first" and part == 1):
                return None
            return torch.rand(len(rows), generator=generator_for(seed, 4, step, part)) < self.grey_probability

        if mixed:
            rows = problem.batches["mixed"].at(step)
            first, loss, active = self.gradient(model, problem, delta, rows, 0, draw(0, rows))
            ahead = delta - size * (self.momentum * momentum + l1_normalised(first)).sign()
            inside = ahead.abs() <= self.eps
            ahead = ahead.clamp(-self.eps, self.eps)
            second, other, also = self.gradient(model, problem, ahead, rows, 1, draw(1, rows))
            momentum = self.momentum * momentum + l1_normalised(first + second * inside)
            delta = (delta - size * momentum.sign()).clamp(-self.eps, self.eps)
        else:
            turns = self._turns(problem, step)
            if self.update == "joint":
                found = [
                    self.gradient(model, problem, delta, rows, turn, draw(part, rows))
                    for part, (turn, rows) in enumerate(turns)
                ]
                momentum = self.momentum * momentum + l1_normalised(found[0][0] + found[1][0])
                delta = (delta - size * momentum.sign()).clamp(-self.eps, self.eps)
            else:
                found = []
                for part, (turn, rows) in enumerate(turns):
                    found.append(self.gradient(model, problem, delta, rows, turn, draw(part, rows)))
                    momentum = self.momentum * momentum + l1_normalised(found[-1][0])
                    delta = (delta - size * momentum.sign()).clamp(-self.eps, self.eps)
            (_, loss, active), (_, other, also) = found
        state["delta"], state["momentum"] = delta, momentum
        values = torch.stack([loss, other, active.to(loss), also.to(loss)]).tolist()
        saturated = float((delta.abs() >= self.eps * (1 - 1e-6)).float().mean())
        return dict(zip(("loss", "second_loss", "active", "second_active"), values, strict=True), saturated=saturated)

    def _turns(self, problem: Problem, step: int) -> list[tuple[int, np.ndarray]]:
        """Return (turn, rows) of the two gradients of a step: visible then infrared, or two of one modality."""
        if self.modalities == "both":
            return [(int(modality), problem.batches[modality].at(step)) for modality in Modality]
        modality = Modality[self.modalities.upper()]
        return [(int(modality), problem.batches[modality].at(2 * step + part)) for part in (0, 1)]

    def _rescale(self, state: dict[str, Tensor]) -> None:
        """Halve delta where more than half of it is saturated and that share has stood still (MI_SGD.py:61-71)."""
        share = (state["delta"].abs() >= self.eps * (1 - 1e-6)).to(state["saturation"]).mean()
        if share > 0.5 and (share - state["saturation"]).abs() < 1e-5:
            state["delta"] = state["delta"] / 2
        state["saturation"] = share
