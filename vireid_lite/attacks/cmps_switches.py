"""CMPS with one switch at a time: what paper and released code do otherwise, and controls; see `cmps`."""

from dataclasses import dataclass, make_dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import clip, luma, pillow_luma, tie_infrared
from vireid_lite.attacks.descent import Found, SignDescent, State
from vireid_lite.attacks.features import Problem, centroids_for, extremes, identity_centroids, over_crops
from vireid_lite.attacks.frozen import Stream, coins, generator_for, images_of
from vireid_lite.data.batches import Batches
from vireid_lite.data.records import Modality
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError, check_choice, check_flag

# Where each switch stands in the two modes, and what else it may be.
SWITCHES = {
    "update": {"paper": "alternate", "released": "look-ahead", "else": "joint"},
    "modalities": {"paper": "both", "released": "both", "else": "visible", "or": "infrared"},
    "bank": {"paper": "cross", "released": "mixed", "else": "same"},
    "centroids": {"paper": "kmeans", "released": "kmeans", "else": "identity"},
    "choice": {"paper": "similarity", "released": "similarity", "else": "identity"},
    "score": {"paper": "cosine", "released": "dot"},
    "feature": {"paper": "embedding", "released": "pooled"},
    "centroid_input": {"paper": "normalised", "released": "raw"},
    "stem": {"paper": "own", "released": "visible", "else": "other"},
    "grey": {"paper": "every", "released": "first"},
    "grey_anchor": {"paper": False, "released": False, "else": True},
    "erased": {"paper": False, "released": False, "else": True},
    "initial": {"paper": "zero", "released": "zero", "else": "uniform"},
    "clip": {"paper": "straight-through", "released": "masked"},
    "shuffle": {"paper": True, "released": False},
}
NUMBERS = {
    "step_share": {"paper": 1 / 12, "released": 1 / 10},
    "decay": {"paper": 0.0, "released": 0.01},
    "rescale": {"paper": False, "released": True},
    "clusters": {"paper": 0, "released": 206},
}

Switches = make_dataclass("Switches", [(name, object, None) for name in SWITCHES], frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class SwitchedCMPS(Switches, SignDescent):
    """CMPS with every difference between paper and released code as a switch, for controls and for what each one costs.

    It shares neither `prepare`, `objective` nor `step` with `CMPS`, so that it means something that both are equal to
    the bit where nothing is switched.

    Args:
        mode: "paper" or "released"; it sets everything that is left at None, as `SWITCHES` and `NUMBERS` say, and
            three details: released luma is Pillow's, distances have PyTorch's eps, and no crop of an epoch is left out.
        update: "alternate" (a visible, then an infrared step), "joint" (one along both gradients) or "look-ahead" (a
            gradient at delta, one at the delta that would follow, and one step along their sum: MI_SGD.py:73-104).
        modalities: "both", or images of one modality alone at the same number of gradient evaluations.
        bank: where centroids come from. "cross": as in equation 1; "same": the image's own modality; "mixed": two banks
            of both modalities, for the first and the second pass, and a crop turned grey compared by its grey feature.
        centroids, choice: "kmeans", or one per "identity"; pushed from the most similar one, or from the own identity.
        score: similarity with L2-normalised centroids ("cosine") or with centroids as they are ("dot").
        feature: "embedding" (what is ranked: L2-normalised, after the BNNeck) or "pooled" (before it, not normalised).
        centroid_input: with the network's mean and std ("normalised"), or "raw" without them (utils.py:36-45).
        stem: each image's "own", the "visible" one for all, or the "other" one, which imitates a network that crosses
            (Bian et al., "Modality Unified Attack", arXiv 2501.12761).
        erased: each gradient is taken with a rectangle of delta set to 0 on each crop, so that it leans on no one place
            (Bian et al., MTGA, arXiv 2409.04208; how large it is there is not known here).
        grey, grey_anchor: crops turn grey in "every" pass or only in the "first"; a visible one then takes equation 1's
            middle term instead of the first.
        initial: "zero", or "uniform": Rand(0, 1) of 255 levels, the paper's text.
        clip: how [0, 1] passes gradients.
        shuffle: a new order each epoch, or crops grouped by identity, then camera.
    """

    name: ClassVar[str] = "cmps"
    gradients_per_step: ClassVar[int] = 2
    choices: ClassVar[dict[str, tuple]] = {name: tuple(dict.fromkeys(at.values())) for name, at in SWITCHES.items()}
    mode: str = "paper"
    step_share: float | None = None
    decay: float | None = None
    rescale: bool | None = None
    clusters: int | None = None
    margin: float = 0.5
    grey_probability: float = 0.2

    def __post_init__(self) -> None:
        check_choice(self.name, "mode", self.mode, ("paper", "released"))
        for name, at in {**SWITCHES, **NUMBERS}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, at[self.mode])
        super().__post_init__()
        check_flag(self.name, "rescale", self.rescale)
        if self.choice == "identity" and self.centroids != "identity":
            raise InputError("cmps: choice='identity' needs centroids='identity'")
        if self.modalities != "both" and self.update != "alternate":
            raise InputError("cmps: one modality alone needs update='alternate'")
        if self.grey_anchor and self.bank != "cross":
            raise InputError("cmps: grey_anchor is a term of equation 1 and needs bank='cross'")

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        found = super().start(shape, seed)
        if self.initial == "uniform":
            drawn = torch.rand(shape, generator=generator_for(seed, Stream.CMPS_START)) / 255
            found["delta"] = drawn.clamp(max=self.eps)
        return found

    def features(self, model: nn.Module, images: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return the features the triplet is about, (N, D), of images (N, 3, H, W) in [0, 1]."""
        other = 1 - modality if isinstance(modality, Tensor) else modality.other
        stem = {"own": modality, "visible": Modality.VISIBLE, "other": other}[self.stem]
        return model.embed(images, stem) if self.feature == "embedding" else model(images, stem).pooled

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        identities, cameras = np.array([(record.identity, record.camera) for record in store.records]).T
        modalities, everything, stem = store.modalities.numpy(), np.arange(len(store)), model.stages[0]
        order = everything if self.shuffle else np.lexsort((modalities, cameras, identities))
        released, turn = self.mode == "released", pillow_luma if self.mode == "released" else luma
        sets = {"mixed": order, **{m: order[modalities[order] == m] for m in Modality}}
        batches = {m: Batches(sets[m], self.batch_size, seed + n, self.shuffle, released) for n, m in enumerate(sets)}

        def embedded(rows: np.ndarray, grey: Tensor | None = None, raw: bool = False) -> Tensor:
            mean, std = (stem.mean, stem.std) if raw else (0, 1)
            return over_crops(
                lambda x, m: self.features(model, x * std + mean, m), model, store, rows, grey=grey, turn=turn
            )

        def centroids(rows: np.ndarray, grey: Tensor | None = None) -> tuple[Tensor, np.ndarray | None]:
            made = ungreyed[rows] if grey is None else embedded(rows, grey, raw)
            if self.centroids == "identity":
                return identity_centroids(made, identities[rows])
            return centroids_for(made, store, self.clusters, seed), None

        raw, every = self.centroid_input == "raw", torch.ones(len(store), dtype=torch.bool)
        clean, (visible, infrared) = embedded(everything), (np.flatnonzero(modalities == m) for m in Modality)
        ungreyed, both = embedded(everything, raw=True) if raw else clean, slice(2)
        # By turn (the first pass or visible step, the second, the first where a crop turned grey and that counts): the
        # features compared, of which rows, with which banks to be pulled to and pushed from.
        if self.bank == "mixed":
            some = coins(len(store), self.grey_probability, seed, Stream.CMPS_BANK)
            banks, grey = [centroids(everything, some), centroids(everything)], embedded(everything, every)
            plan = [(0, clean, everything, 0, 0), (1, clean, everything, 1, 1), (2, grey, everything, 0, 0)]
        elif self.bank == "same":
            banks = [centroids(visible), centroids(infrared)]
            plan = [(both, clean, visible, 0, 0), (both, clean, infrared, 1, 1)]
        else:  # equation 1
            banks = [centroids(visible), centroids(infrared), centroids(visible, every)]
            plan = [(both, clean, visible, 2, 1), (both, clean, infrared, 0, 2), (2, clean, visible, 1, 0)]
        first = np.cumsum([0, *(len(bank) for bank, _ in banks)]).tolist()
        found = torch.zeros(2, 3, len(store), dtype=torch.int64, device=clean.device)
        for turns, seen, rows, *numbers in plan:
            for most, number in enumerate(numbers):
                (bank, names), own = banks[number], None
                if self.choice == "identity":
                    own = torch.from_numpy(identities[rows][:, None] == names).to(seen.device)
                    if not own.any(1).all():
                        raise InputError("cmps: choice='identity' needs every training identity in both modalities")
                chosen = extremes(seen[rows], bank, score=self.score, own=own)[most]
                found[most][turns, rows] = chosen + first[number]
        return Problem(store, batches, torch.cat([bank for bank, _ in banks]), *found)

    def objective(self, model: nn.Module, problem: Problem, delta: Tensor, rows, turn: int = 0, chosen=None) -> Found:
        """Return the triplet loss of some crops under delta and the share of them whose hinge is active.

        The turn is 0 for the first pass or the visible step, else 1; the crops `chosen`, (n,) bool, turned grey.
        """
        images, modality = images_of(problem.store, rows, model), problem.store.modalities[rows]
        turns = torch.full((len(rows),), turn)
        if chosen is not None:
            images = (pillow_luma if self.mode == "released" else luma)(images, chosen)
            if self.grey_anchor:
                turns[chosen & (modality == Modality.VISIBLE)] = 2
            elif self.bank == "mixed" and turn == 0:
                turns[chosen] = 2
        attacked = clip(images + tie_infrared(delta, modality, self.tied), masked=self.clip == "masked")
        features = self.features(model, attacked, modality)
        eps = 1e-6 if self.mode == "released" else 0
        pull, push = (F.pairwise_distance(features, each, eps=eps) for each in problem.picked(rows, turns))
        terms = pull - push + self.margin
        return terms.clamp(min=0).mean(), (terms.detach() > 0).float().mean()

    def gradient(self, model: nn.Module, problem: Problem, delta: Tensor, rows, turn: int = 0, chosen=None) -> tuple:
        """Return the gradient of `objective` with respect to delta, (3, H, W), and what `objective` returns."""
        delta = delta.detach().requires_grad_()
        loss, active = self.objective(model, problem, delta, rows, turn, chosen)
        return torch.autograd.grad(loss, delta)[0], loss.detach(), active

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        batches, mixed = problem.batches, self.update == "look-ahead"
        size = self.step_size(batches["mixed" if mixed else Modality.VISIBLE].per_epoch, state, step)
        if mixed:
            turns = [(turn, batches["mixed"].at(step)) for turn in (0, 1)]
        elif self.modalities == "both":
            turns = [(int(modality), batches[modality].at(step)) for modality in Modality]
        else:  # two of one modality
            turns = [(int(m := Modality[self.modalities.upper()]), batches[m].at(2 * step + part)) for part in (0, 1)]
        found, inside, delta = [], 1, state["delta"]
        for part, (turn, rows) in enumerate(turns):
            probability = 0 if self.grey == "first" and part else self.grey_probability
            chosen = coins(len(rows), probability, seed, Stream.CMPS_GREY, step, part)
            kept = erasing(len(rows), delta, seed, Stream.CMPS_ERASED, step, part) if self.erased else None
            under = kept * delta if self.erased else delta
            gradient, *noted = self.gradient(model, problem, under, rows, turn, chosen)
            found.append(((kept * gradient).sum(0) if self.erased else gradient, *noted))
            if self.update == "alternate":
                self.descend(state, found[-1][0], size)
                delta = state["delta"]
            elif mixed and part == 0:
                delta, inside = self.look_ahead(state, found[0][0], size)
        if self.update != "alternate":
            self.descend(state, found[0][0] + found[1][0] * inside, size)
        return self.noted([each[1:] for each in found], state["delta"])


def erasing(count: int, delta: Tensor, *numbers: int) -> Tensor:
    """Return 0 in a rectangle of each crop, of 0.2 to 0.6 of its sides, and 1 around it, (count, 1, H, W)."""
    side, place = torch.rand(2, count, 2, generator=generator_for(*numbers))
    side = 0.2 + 0.4 * side
    middle = side / 2 + place * (1 - side)
    y, x = ((torch.arange(length) + 0.5) / length for length in delta.shape[-2:])
    inside = [(at - middle[:, axis, None]).abs() < side[:, axis, None] / 2 for axis, at in enumerate((y, x))]
    return (~(inside[0][:, None, :, None] & inside[1][:, None, None])).to(delta)
