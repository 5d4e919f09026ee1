"""CMPS, the cross-modality perturbation synergy attack, as its paper has it, and with the released step.

Source: Gong et al., NeurIPS 2024, arXiv 2401.10090, equations 1 to 9 and algorithm 1, and the released code at 78126a2,
CMPS_attack.py and MI_SGD.py. The paper's eta is `delta` here, its rho `margin`, its theta `momentum`, its alpha
`step_share * eps`. C^p, which a feature is pushed from, is `push`; C^n, which it is pulled to, is `pull`. Both modes
descend, as the released code does; equations 6 and 9 print an ascent.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import clip, luma, pillow_luma, tie_infrared
from vireid_lite.attacks.descent import Found, SignDescent, State
from vireid_lite.attacks.features import Problem, centroids_for, extremes, over_crops
from vireid_lite.attacks.frozen import Stream, coins, images_of
from vireid_lite.data.batches import Batches
from vireid_lite.data.records import Modality, one_modality
from vireid_lite.data.store import ImageStore


@dataclass(frozen=True, kw_only=True)
class CMPS(SignDescent):
    """Algorithm 1: a visible step, then an infrared step, over and over, on one delta for both spectra.

    The published batch order, seed and epochs are unknown. Given a switch too, such as `CMPS(bank="same")`, it is a
    `SwitchedCMPS`.

    Args:
        mode: "paper", or "released" for a `ReleasedCMPS`, whose step size, decay, rescaling and clusters are others.
        step_share: alpha as a share of eps.
        margin: rho.
        grey_probability: how often a crop is replaced by its luma.
        clusters: k of the k-means, 0 for min(256, training identities).
    """

    name: ClassVar[str] = "cmps"
    gradients_per_step: ClassVar[int] = 2
    choices: ClassVar[dict[str, tuple]] = {"mode": ("paper", "released")}
    switches: ClassVar[dict[str, dict]]  # these two are those of `cmps_switches`; `attacks` ties them to this class
    switched: ClassVar[type[SignDescent]]
    mode: str = "paper"
    step_share: float = 1 / 12
    margin: float = 0.5
    grey_probability: float = 0.2
    clusters: int = 0

    def __new__(cls, *, mode: str = "paper", **options: object) -> SignDescent:
        if cls.switches.keys() & options.keys():
            return cls.switched(mode=mode, **options)
        return super().__new__(ReleasedCMPS if mode == "released" else cls)

    def describe(self) -> dict:
        return {**super().describe(), **{name: position[self.mode] for name, position in self.switches.items()}}

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return batches by modality, and C^n and C^p of each crop, which the paper leaves open.

        As in UAP-Retrieval, C^n is the one least similar to the crop's clean feature, C^p the most similar one.
        """
        rows = [np.flatnonzero(store.modalities.numpy() == modality) for modality in Modality]
        features = over_crops(model.embed, model, store)
        grey = over_crops(model.embed, model, store, rows[0], grey=torch.ones(len(store), dtype=torch.bool))
        banks = [centroids_for(f, store, self.clusters, seed) for f in (features[rows[0]], features[rows[1]], grey)]
        first = np.cumsum([0, *map(len, banks)]).tolist()
        pull, push = torch.zeros(2, 2, len(store), dtype=torch.int64, device=features.device)
        # Equation 1: visible is pulled to grey and pushed from infrared, infrared pulled to visible, pushed from grey.
        for modality, n, p in ((Modality.VISIBLE, 2, 1), (Modality.INFRARED, 0, 2)):
            own = rows[modality]
            pull[modality, own] = extremes(features[own], banks[n])[0] + first[n]
            push[modality, own] = extremes(features[own], banks[p])[1] + first[p]
        batches = {m: Batches(rows[m], self.batch_size, seed + 1 + m) for m in Modality}
        return Problem(store, batches, torch.cat(banks), pull, push)

    def objective(self, model: nn.Module, problem: Problem, delta: Tensor, rows, modality: int, grey=None) -> Found:
        """Return equation 1's term for crops of one modality under delta, and the share of them where it is above zero.

        The crops that `grey` chooses, (n,) bool, are replaced by their luma.
        """
        images, modality = images_of(problem.store, rows, model), one_modality(modality)
        if grey is not None:
            images = luma(images, grey)  # equations 2 and 3
        f = model.embed(clip(images + tie_infrared(delta, modality, self.tied)), modality)
        c_n, c_p = problem.picked(rows, modality)
        # Equation 1: [|C^n - f| - |C^p - f| + rho]_+
        terms = torch.linalg.vector_norm(f - c_n, dim=1) - torch.linalg.vector_norm(f - c_p, dim=1) + self.margin
        return terms.clamp(min=0).mean(), (terms.detach() > 0).float().mean()

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        """Make one iteration of algorithm 1: equations 4 to 6 for visible crops, then 7 to 9 for infrared ones."""
        size, found = self.step_size(problem.batches[Modality.VISIBLE].per_epoch, state, step), []
        for modality in Modality:
            rows, delta = problem.batches[modality].at(step), state["delta"].detach().requires_grad_()
            grey = coins(len(rows), self.grey_probability, seed, Stream.CMPS_GREY, step, modality)
            found.append(self.objective(model, problem, delta, rows, modality, grey))
            (gradient,) = torch.autograd.grad(found[-1][0], delta)  # equations 4 and 7
            self.descend(state, gradient, size)  # equations 5 and 6, 8 and 9
        return self.noted(found, state["delta"])


@dataclass(frozen=True, kw_only=True)
class ReleasedCMPS(CMPS):
    """The released step: a gradient at delta, one at the delta that would follow, and an update along their sum.

    Two banks of both spectra, for the first and the second pass. Everything goes through the visible stem; features are
    pooled and not normalised, and long centroids are favoured.

    "Released" is the rule and not the digits: its step takes a sign, which a last bit turns, and k-means is not that of
    FAISS. By that alone half of delta's entries differ after 15 steps, and 86 % of the signs agree.
    Source: the CMPS repository at 78126a2, CMPS_attack.py and MI_SGD.py.
    """

    mode: str = "released"
    step_share: float = 1 / 10
    decay: float = 0.01
    rescale: bool = True
    clusters: int = 206

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return unshuffled batches, and each crop's two in the first pass, in the second, and in the first if grey."""

        def pooled(grey: Tensor | None = None, stem: nn.Module | None = None) -> Tensor:
            def read(images: Tensor, modality: Tensor) -> Tensor:
                # With mean and std undone, the first convolution sees the image as it is (utils.py:36-45).
                return model(images if stem is None else images * stem.std + stem.mean, Modality.VISIBLE).pooled

            return over_crops(read, model, store, grey=grey, turn=pillow_luma)

        some = coins(len(store), self.grey_probability, seed, Stream.CMPS_BANK)
        banks = [centroids_for(pooled(each, model.stages[0]), store, self.clusters, seed) for each in (some, None)]
        clean, grey = pooled(), pooled(torch.ones(len(store), dtype=torch.bool))
        # A crop turned grey is compared as it is, grey (CMPS_attack.py:44-54).
        passes = (clean, banks[0], 0), (clean, banks[1], len(banks[0])), (grey, banks[0], 0)
        picked = [torch.stack(extremes(seen, bank, score="dot")) + first for seen, bank, first in passes]
        keys = [(each.identity, each.camera, each.modality) for each in store.records]
        batches = Batches(np.lexsort(np.transpose(keys)[::-1]), self.batch_size, seed, shuffle=False, rest=True)
        return Problem(store, batches, torch.cat(banks), *torch.stack(picked, 1))

    def objective(self, model: nn.Module, problem: Problem, delta: Tensor, rows, turn: int = 0, grey=None) -> Found:
        """Return the triplet loss of crops of both modalities in the first pass (turn 0) or the second; see `CMPS`."""
        images, turns = images_of(problem.store, rows, model), torch.full((len(rows),), turn)
        if grey is not None:
            images, turns[grey] = pillow_luma(images, grey), 2
        shift = tie_infrared(delta, problem.store.modalities[rows], self.tied)
        f = model(clip(images + shift, masked=True), Modality.VISIBLE).pooled
        far, near = problem.picked(rows, turns)
        terms = F.pairwise_distance(f, far) - F.pairwise_distance(f, near) + self.margin  # with PyTorch's eps, 1e-6
        return terms.clamp(min=0).mean(), (terms.detach() > 0).float().mean()

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        """Make one look-ahead step (MI_SGD.py:73-104); sign() lets no second derivative through."""
        size = self.step_size(problem.batches.per_epoch, state, step)
        rows, delta = problem.batches.at(step), state["delta"].detach().requires_grad_()
        grey = coins(len(rows), self.grey_probability, seed, Stream.CMPS_GREY, step, 0)
        one = self.objective(model, problem, delta, rows, 0, grey)
        (first,) = torch.autograd.grad(one[0], delta)
        ahead, inside = self.look_ahead(state, first, size)
        two = self.objective(model, problem, ahead.requires_grad_(), rows, 1)
        (second,) = torch.autograd.grad(two[0], ahead)
        self.descend(state, first + second * inside, size)
        return self.noted([one, two], state["delta"])
