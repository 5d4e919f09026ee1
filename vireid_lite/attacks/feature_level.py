"""The feature-level attack under the common threat model: a bounded delta for each modality against a frozen victim.

The paper (Yang et al., NeurIPS 2024, OpenReview RaNct2xkyI) never says how delta is made, and its text reads as
training the victim itself. This file is the reading that can be compared with other attacks: FSAM and SFM are heads
that stand in the victim while delta is learned and are thrown away, so that what is left is delta alone, and it is
scored on the victim as it was. The literal reading is `modified_victim.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import clip, tie_infrared
from vireid_lite.attacks.descent import SignDescent, State
from vireid_lite.attacks.features import Problem, predicted
from vireid_lite.attacks.frozen import Stream, generator_for, images_of, noise
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.data.batches import IdentityBatches
from vireid_lite.data.records import Modality
from vireid_lite.data.store import ImageStore
from vireid_lite.losses import class_centres, quadruple_loss
from vireid_lite.models.insertion import check_blocks, inserted, staged
from vireid_lite.models.two_stream import generalised_mean


@dataclass(frozen=True, kw_only=True)
class FeatureLevelAttack(SignDescent):
    """The bounded feature-level attack: delta descends on L_AQAL + L_id through heads that are then thrown away.

    Source: equations of section 3, hyper-parameters of section 4; the step is this book's, as none is published.

    Args:
        attention, blocks: the head after each of `blocks`: "fsam", "se" or "eca" in its place, or "none".
        sfm, quadruple: switch another part; without quadruple loss and identity delta stays the noise it was.
        form, alpha: "hinge" as published, or "linear"; the margin.
        normalise: divide class centres by their length; the paper names no normalisation.
        identity: L_id is minimised ("on", as in the paper's sum, which works against the attack), left out ("off") or
            maximised ("reversed"); its target is the class that the victim predicts for the clean image.
        heads: "learned" with delta, by the paper's SGD on the same loss at the rate `head_rate`, or "frozen" as drawn.
        learn_delta: false leaves delta as it started (heads only).
        shared: one delta for both modalities instead of one each.
        initial: noise, "uniform" or of "sign", or "zero".
        instances: images of an identity in a batch, half of each modality (AGW: 4 and 4).
    """

    name: ClassVar[str] = "feature-level"
    knows: ClassVar[str] = "the victim's weights and its classifier; training images with identities"
    choices: ClassVar[dict[str, tuple]] = {
        "attention": ("fsam", "se", "eca", "none"),
        "form": ("hinge", "linear"),
        "identity": ("on", "off", "reversed"),
        "heads": ("learned", "frozen"),
        "initial": ("uniform", "sign", "zero"),
    }
    attention: str = "fsam"
    blocks: tuple[int, ...] = (0, 4)
    sfm: bool = True
    quadruple: bool = True
    form: str = "hinge"
    alpha: float = 0.2
    normalise: bool = False
    identity: str = "on"
    heads: str = "learned"
    head_rate: float = 0.1
    learn_delta: bool = True
    shared: bool = False
    initial: str = "uniform"
    instances: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", check_blocks(self.name, self.blocks))
        super().__post_init__()

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        batches = IdentityBatches(store, self.batch_size, seed, self.instances)
        classes = predicted(model, store) if self.identity != "off" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator_for(seed, Stream.HEADS))))
            heads, tap = staged(model, self.attention, self.blocks, self.sfm)
        modules = nn.ModuleList([module for stack in heads.values() for module in stack])
        modules.to(next(model.parameters())).requires_grad_(self.heads == "learned")
        return Problem(store, batches, classes=classes, heads=heads, tap=tap, modules=modules)

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        found = super().start((1 if self.shared else 2, *shape), seed)
        if self.initial != "zero":
            found["delta"] = self.eps * noise(self.initial, found["delta"].shape, seed, Stream.FEATURE_NOISE)
        return found

    def learned(self, model: nn.Module, problem: Problem, seed: int) -> State:
        weights = [weight for weight in problem.modules.parameters() if weight.requires_grad]
        if not weights:
            return {}
        sgd = torch.optim.SGD(weights, self.head_rate, momentum=0.9, weight_decay=5e-4)
        return {"heads": problem.modules, "sgd": sgd}

    def objective(self, model: nn.Module, problem: Problem, delta: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
        """Return "loss", its parts "quadruple" and "identity", and "active", the share of hinges above zero.

        Args:
            delta: (1 or 2, 3, H, W).
            rows: crops of the store, visible first.
        """
        modality = problem.store.modalities[rows]
        shift = tie_infrared(delta[0] if self.shared else delta[modality.to(delta.device)], modality, self.tied)
        with inserted(model, problem.heads):
            output = model(clip(images_of(problem.store, rows, model) + shift), modality)
        loss = quadruple = identity = active = output.pooled.new_zeros(())
        if self.quadruple:
            labels = torch.from_numpy(problem.batches.identities[rows])
            stages = generalised_mean(problem.tap.maps, getattr(model, "gem_p", 3.0)), output.pooled
            first, second = (class_centres(stage, labels, modality) for stage in stages)
            given = {"alpha": self.alpha, "form": self.form, "normalise": self.normalise}
            quadruple, active = quadruple_loss(*first, *second, **given)
            loss = loss + quadruple
        if self.identity != "off":
            identity = F.cross_entropy(output.logits, problem.classes[torch.from_numpy(rows)])
            loss = loss + (identity if self.identity == "on" else -identity)
        return {"loss": loss, "quadruple": quadruple, "identity": identity, "active": active}

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        if not self.quadruple and self.identity == "off":  # nothing to descend on
            return dict.fromkeys(("loss", "quadruple", "identity", "active"), 0.0)
        size, rows = self.step_size(problem.batches.per_epoch, state, step), problem.batches.at(step)
        delta = state["delta"].detach().requires_grad_(self.learn_delta)
        found = self.objective(model, problem, delta, rows)
        if found["loss"].requires_grad:
            found["loss"].backward()
        if self.learn_delta:
            self.descend(state, delta.grad, size)
        if "sgd" in state:
            state["sgd"].step()
            state["sgd"].zero_grad()
        values = torch.stack([value.detach().to(delta) for value in found.values()]).tolist()
        return dict(zip(found, values, strict=True))

    def finish(self, state: State, history: list[dict], seed: int) -> UniversalPerturbation:
        deltas = state["delta"].detach().cpu().clone()
        found = super().finish({"delta": deltas[0]}, history, seed)
        if not self.shared:
            found.delta = {modality: deltas[modality] for modality in Modality}
        return found
