"""The feature-level attack under the common threat model: a bounded delta for each modality against a frozen victim.

The paper (Yang et al., NeurIPS 2024, OpenReview RaNct2xkyI) never says how delta is made, and its text reads as
training the victim itself. This file is the reading that can be compared with other attacks: FSAM and SFM are heads
that stand in the victim while delta is learned and are thrown away, so that what is left is delta alone, and it is
scored on the victim as it was. The literal reading is `modified_victim.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import clip, tie_infrared
from vireid_lite.attacks.descent import SignDescent, check_number, check_whole
from vireid_lite.attacks.features import clean_outputs
from vireid_lite.attacks.frozen import generator_for, images_of
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.data.batches import IdentityBatches
from vireid_lite.data.records import Modality
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError
from vireid_lite.losses import class_centres, quadruple_loss
from vireid_lite.models.insertion import Tap, check_blocks, inserted, staged
from vireid_lite.models.two_stream import generalised_mean

NOISE, HEADS = 21, 22  # what a seed is drawn for

HEAD_MOMENTUM, HEAD_DECAY = 0.9, 5e-4  # of the paper's SGD

CHOICES = {
    "attention": ("fsam", "se", "eca", "none"),
    "form": ("hinge", "linear"),
    "identity": ("on", "off", "reversed"),
    "heads": ("learned", "frozen"),
    "initial": ("uniform", "sign", "zero"),
}

SWITCHES = ("sfm", "quadruple", "normalise", "shared", "learn_delta")


@dataclass(frozen=True)
class Problem:
    """What a fit never changes: crops, batches, labels, the classes predicted on clean crops, and the heads' place.

    labels: int64 (N,). classes: int64 (N,), or None where no identity term asks for them. parameters: of the heads;
    their values are part of the state.
    """

    store: ImageStore
    batches: IdentityBatches
    labels: Tensor
    classes: Tensor | None
    heads: dict[int, list[nn.Module]]
    tap: Tap
    parameters: list[nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class FeatureLevelAttack(SignDescent):
    """The bounded feature-level attack: delta descends on L_AQAL + L_id through heads that are then thrown away.

    attention: the head after each of `blocks`: "fsam", "se" or "eca" in its place, or "none". sfm, quadruple: switch
    the other parts; without the quadruple loss and with identity "off" nothing is learned, and delta stays noise.
    form: "hinge" as published, or "linear". alpha: the hinge's margin. normalise: divide class centres by their length;
    the paper names no normalisation. identity: L_id is minimised ("on", as the paper's sum has it, which works against
    the attack), left out ("off") or maximised ("reversed"); its target is the class that the victim predicts for the
    clean image. heads: "learned" together with delta, by SGD on the same loss, or "frozen" as drawn. head_rate: their
    learning rate. learn_delta: false leaves delta as it started (heads only). shared: one delta for both modalities
    instead of one each. initial: noise, "uniform" or of "sign", or "zero". instances: images of an identity in a
    batch, half of each modality (AGW: 4 and 4).
    Raises InputError for unknown values.
    Source: equations of section 3, hyper-parameters of section 4; the step is this book's, as none is published.
    """

    name: ClassVar[str] = "feature-level"
    knows: ClassVar[str] = "the victim's weights and its classifier; training images with identities"

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
        super().__post_init__()
        object.__setattr__(self, "blocks", check_blocks(self.name, self.blocks))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                listed = ", ".join(known)
                raise InputError(f"{self.name}: {name} {getattr(self, name)!r} is unknown; choose from {listed}")
        for name in SWITCHES:
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{self.name}: {name} must be true or false, got {getattr(self, name)!r}")
        check_number(self, "alpha", 0, 1e9)
        check_number(self, "head_rate", 0, 1e9)
        check_whole(self, "instances", 2)

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> Problem:
        """Return batches of whole identities, labels, the clean crops' predicted classes, and the heads."""
        batches = IdentityBatches(store, self.batch_size, seed, self.instances)
        classes = clean_outputs(model, store)[1] if self.identity != "off" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator_for(seed, HEADS))))
            heads, tap = staged(model, self.attention, self.blocks, self.sfm)
        modules = nn.ModuleList([module for stack in heads.values() for module in stack]).to(next(model.parameters()))
        labels = torch.from_numpy(batches.identities)
        return Problem(store, batches, labels, classes, heads, tap, list(modules.parameters()))

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return delta as (1, 3, H, W), or (2, 3, H, W) with one for each modality, its momentum, and the heads'."""
        shape = (1 if self.shared else 2, *shape)
        delta = 2 * torch.rand(shape, generator=generator_for(seed, NOISE)) - 1
        delta = {"uniform": delta, "sign": torch.where(delta < 0, -1.0, 1.0), "zero": 0 * delta}[self.initial]
        state = {"delta": self.eps * delta, "momentum": torch.zeros(shape), "saturation": torch.zeros(())}
        # Empty until the first step: the heads start as `prepare` drew them.
        return {**state, "heads": torch.zeros(0), "heads_momentum": torch.zeros(0)}

    def objective(self, model: nn.Module, problem: Problem, delta: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
        """Return "loss", its parts "quadruple" and "identity", and "active", the share of hinges above zero.

        delta: (1 or 2, 3, H, W). rows: crops of the store, visible first. The heads stand in the victim meanwhile.
        """
        modality = problem.store.modalities[rows]
        shift = delta[0] if self.shared else delta[modality.to(delta.device)]
        if self.tied:
            shift = tie_infrared(shift, modality)
        with inserted(model, problem.heads):
            output = model(clip(images_of(problem.store, rows, model) + shift), modality)
        loss = quadruple = identity = active = output.pooled.new_zeros(())
        if self.quadruple:
            labels = problem.labels[rows]
            stage1 = generalised_mean(problem.tap.maps, getattr(model, "gem_p", 3.0))
            first, second = (class_centres(features, labels, modality) for features in (stage1, output.pooled))
            options = {"alpha": self.alpha, "form": self.form, "normalise": self.normalise}
            quadruple, active = quadruple_loss(*first, *second, **options)
            loss = loss + quadruple
        if self.identity != "off":
            identity = F.cross_entropy(output.logits, problem.classes[torch.from_numpy(rows)])
            loss = loss + (identity if self.identity == "on" else -identity)
        return {"loss": loss, "quadruple": quadruple, "identity": identity, "active": active}

    def step(self, model: nn.Module, problem: Problem, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Make one sign step of delta and one SGD step of the heads, from one gradient of one batch."""
        if not self.quadruple and self.identity == "off":  # nothing to descend on
            return dict.fromkeys(("loss", "quadruple", "identity", "active"), 0.0)
        size, rows = self.step_size(problem, state, step), problem.batches.at(step)
        learned = problem.parameters if self.heads == "learned" else []
        if learned and not len(state["heads"]):
            state["heads"] = nn.utils.parameters_to_vector(learned).detach()
            state["heads_momentum"] = torch.zeros_like(state["heads"])
        if learned:
            nn.utils.vector_to_parameters(state["heads"], learned)
        delta = state["delta"].detach().requires_grad_(self.learn_delta)
        found = self.objective(model, problem, delta, rows)
        asked = [*([delta] if self.learn_delta else []), *learned]
        if asked:
            gradients = list(torch.autograd.grad(found["loss"], asked, materialize_grads=True))
            if self.learn_delta:
                self.descend(state, gradients.pop(0), size)
            if learned:
                slope = torch.cat([gradient.flatten() for gradient in gradients]) + HEAD_DECAY * state["heads"]
                state["heads_momentum"] = HEAD_MOMENTUM * state["heads_momentum"] + slope
                state["heads"] = state["heads"] - self.head_rate * state["heads_momentum"]
        values = torch.stack([value.detach().to(delta) for value in found.values()]).tolist()
        return dict(zip(found, values, strict=True))

    def finish(self, state: dict[str, Tensor], history: list[dict], seed: int) -> UniversalPerturbation:
        """Return delta, one for both modalities or a dict; the heads are dropped."""
        found = super().finish(state, history, seed)
        found.delta = found.delta[0] if self.shared else {modality: found.delta[modality] for modality in Modality}
        return found
