"""The loop of every universal attack, and the sign step of those that follow a gradient."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from vireid_lite.attacks.alterations import ALTERATIONS
from vireid_lite.attacks.budget import EPS, check_eps, clip, l1_normalised, luma, tie_infrared
from vireid_lite.attacks.features import Problem
from vireid_lite.attacks.frozen import Stream, coins, frozen, images_of, training_store, weights_hash
from vireid_lite.attacks.perturbation import Perturbation, UniversalPerturbation
from vireid_lite.data.records import Dataset, Modality, people
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import MANY, InputError, check_choice, check_flag, check_number, whole
from vireid_lite.files import stable_hash
from vireid_lite.training import note, resume

NOTE_EVERY = 25  #: steps between two notes of a fit that can be resumed

Found = tuple[Tensor, Tensor]  #: a loss, and the share of crops whose hinge is above zero
State = dict[str, Tensor | nn.Module | Optimizer]  #: what a step changes, by name

# What an attack's numbers may be: the least whole number, or a range.
WHOLE = {"steps": 1, "batch_size": 2, "clusters": 0, "instances": 2, "levels": 2, "width": 8, "cells": 0}
RANGES = {"step_share": (1e-9, 2), "grey_probability": (0, 1), "learning_rate": (1e-9, 1), "scale": (1e-9, math.inf)}
RANGES |= dict.fromkeys(("momentum", "decay", "margin", "alpha", "head_rate"), (0, math.inf))


@dataclass(frozen=True, kw_only=True)
class UniversalAttack:
    """Its parameters and the loop of `fit`.

    A subclass has `prepare(model, store, seed)`, which returns what its steps need beside the state (a `Problem`);
    `start(shape, seed)`, which returns the tensors of the first state for crops of a shape (3, H, W); and
    `step(model, problem, state, step, seed)`, which makes one update of the state and returns what the history notes.

    Args:
        eps: budget in [0, 1] pixels.
        batch_size: images of one gradient evaluation.
        tied: what infrared images receive has three equal channels.
        altered: a control made of the learned delta, one of `alterations.ALTERATIONS`.
    """

    name: ClassVar[str]
    knows: ClassVar[str] = "the victim's weights; unlabelled training images"
    stays: ClassVar[str] = "what it adds there is zero, or leaves [0, 1]"  # why an image may be left as it was
    gradients_per_step: ClassVar[int] = 1
    delta_alone: ClassVar[bool] = True  # whether delta is all that it learns
    choices: ClassVar[dict[str, tuple]] = {}  # parameters that are one of a few words
    eps: float = EPS
    steps: int = 200
    batch_size: int = 32
    tied: bool = False
    altered: str = "no"

    def __post_init__(self) -> None:
        check_eps(self.eps)
        check_choice(self.name, "altered", self.altered, ALTERATIONS if self.delta_alone else ("no",))
        for field in fields(self):
            given = self.name, field.name, getattr(self, field.name)
            if field.name in self.choices:
                check_choice(*given, self.choices[field.name])
            elif type(field.default) is bool:
                check_flag(*given)
            elif field.name in WHOLE:
                whole(*given, WHOLE[field.name], MANY, int)
            elif field.name in RANGES:
                check_number(*given, *RANGES[field.name])

    def describe(self) -> dict:
        """Return name and parameters as plain values, for run cards and keys."""
        return {"name": self.name, **asdict(self)}

    def learned(self, model: nn.Module, problem: Problem, seed: int) -> State:
        """Return the modules that the steps train beside delta, and their optimiser: a part of the state."""
        return {}

    def begin(self, model: nn.Module, store: ImageStore, seed: int) -> tuple[Problem, State]:
        """Return the problem and the state before the first step, on the model's device; the victim must be frozen."""
        problem, weight = self.prepare(model, store, seed), next(model.parameters())
        start = self.start((3, *store.images.shape[1:3]), seed)
        return problem, {name: part.to(weight) for name, part in start.items()} | self.learned(model, problem, seed)

    def finish(self, state: State, history: list[dict], seed: int) -> Perturbation:
        """Return the perturbation that a state stands for."""
        delta, made_by = state["delta"].detach().cpu().clone(), {**self.describe(), "seed": seed}
        return UniversalPerturbation(delta, self.eps, self.tied, history, made_by=made_by)

    def fit(
        self, model: nn.Module, train: Dataset | ImageStore, seed=0, *, state_path=None, watch=None, progress=False
    ) -> Perturbation:
        """Return a perturbation learned on training images, on the model's device; the victim is left bit-identical.

        Args:
            train: a data set, whose training images are read, or an ImageStore.
            state_path: the file where a killed fit is noted and found again.
            watch: called as watch(step, perturbation) after every step, for figures.

        Raises:
            InputError: where a modality has no image, or the note at state_path is of another fit.
        """
        seed, store = whole(self.name, "seed", seed), training_store(train, progress=progress)
        for modality in Modality:
            if not (store.modalities == modality).any():
                raise InputError(f"{self.name}: no {modality.name.lower()} training image; both modalities are needed")
        with frozen(model), torch.enable_grad():
            problem, state = self.begin(model, store, seed)
            key = state_path and stable_hash([self.describe(), seed, store.fingerprint(), weights_hash(model)])
            history = resume(state_path, key, state)
            bar = {"initial": len(history), "total": self.steps, "desc": self.name, "disable": not progress}
            for step in tqdm(range(len(history), self.steps), unit="step", **bar):
                history.append({"step": step, **self.step(model, problem, state, step, seed)})
                if watch is not None:
                    watch(step, self.finish(state, list(history), seed))
                if state_path is not None and (step + 1) % NOTE_EVERY == 0 and step + 1 < self.steps:
                    note(state_path, key, state, history)
            if not all(math.isfinite(value) for value in history[-1].values()):
                raise InputError(f"{self.name}: the loss is not finite; check the victim's weights")
            made = self.finish(state, history, seed)
            if store.dataset is not None and self.gradients_per_step:  # noise learns from nobody
                made.made_by["people"] = " ".join(sorted(people(store.dataset, store.records)))
            return self.alter(made, seed)

    def alter(self, made: Perturbation, seed: int) -> Perturbation:
        """Return what was learned, altered as `altered` says."""
        if self.altered == "no":
            return made
        change, delta = ALTERATIONS[self.altered], made.delta
        many = isinstance(delta, dict)
        delta = {m: change(each, seed) for m, each in delta.items()} if many else change(delta, seed)
        return replace(made, delta=delta, made_by={**made.made_by, "altered": self.altered})


@dataclass(frozen=True, kw_only=True)
class SignDescent(UniversalAttack):
    """What the gradient attacks share: `m <- momentum m + g/|g|_1`, `delta <- clip(delta - step_size sign m, +-eps)`.

    A subclass has `loss(model, problem, images, rows)`, of attacked crops of some rows, or a `step` of its own.

    Args:
        step_share, decay: step size as a share of eps, times exp(-decay (epoch + 1)).
        rescale: halve delta at an epoch's start where more than half of it is saturated and that share has moved by
            less than 1e-5 (UAP-Retrieval, MetaAttack; MI_SGD.py:61-71).
    """

    published: ClassVar[bool] = False  # what is outside [0, 1] gets no gradient
    grey_probability: ClassVar[float] = 0.0  # how often `step` replaces a crop by its luma
    step_share: float = 0.1
    momentum: float = 1.0
    decay: float = 0.0
    rescale: bool = False

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        return {"delta": torch.zeros(shape), "momentum": torch.zeros(shape), "saturation": torch.zeros(())}

    def gradient(self, model: nn.Module, problem: Problem, delta: Tensor, rows: np.ndarray, grey=None) -> tuple:
        """Return the gradient of the loss with respect to delta, (3, H, W), and the loss; some crops may turn grey."""
        images, delta = images_of(problem.store, rows, model), delta.detach().requires_grad_()
        images = images if grey is None else luma(images, grey)
        shift = tie_infrared(delta, problem.store.modalities[rows], self.tied)
        loss = self.loss(model, problem, clip(images + shift, masked=self.published), rows)
        return torch.autograd.grad(loss, delta)[0], loss.detach()

    def saturated(self, delta: Tensor) -> Tensor:
        """Return the share of delta that lies on the budget, a number in a tensor."""
        return (delta.abs() >= self.eps * (1 - 1e-6)).to(delta).mean()

    def noted(self, found: list[Found], delta: Tensor) -> dict[str, float]:
        """Return what the history says of a CMPS step: losses and active shares of both parts, delta's saturation."""
        values = [value for pair in zip(*found, strict=True) for value in pair] + [self.saturated(delta)]
        names = ("loss", "second_loss", "active", "second_active", "saturated")
        return dict(zip(names, torch.stack([value.detach().to(delta) for value in values]).tolist(), strict=True))

    def step_size(self, per_epoch: int, state: State, step: int) -> float:
        """Return the step size; halve a delta that stands still first, where that is asked for."""
        epoch, place = divmod(step, per_epoch)
        if self.rescale and place == 0:
            share = self.saturated(state["delta"])
            if share > 0.5 and (share - state["saturation"]).abs() < 1e-5:
                state["delta"] = state["delta"] / 2
            state["saturation"] = share
        return self.step_share * self.eps * math.exp(-self.decay * (epoch + 1))

    def descend(self, state: State, gradient: Tensor, size: float, what: str = "delta") -> None:
        """Make one sign step of `state[what]`, with its own momentum."""
        buffer = "momentum" if what == "delta" else f"{what}_momentum"
        state[buffer] = self.momentum * state[buffer] + l1_normalised(gradient)
        state[what] = (state[what] - size * state[buffer].sign()).clamp(-self.eps, self.eps)

    def look_ahead(self, state: State, gradient: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """Return the delta that would follow a gradient, (3, H, W), and where it is within the budget unclipped."""
        ahead = state["delta"] - size * (self.momentum * state["momentum"] + l1_normalised(gradient)).sign()
        return ahead.clamp(-self.eps, self.eps), ahead.abs() <= self.eps

    def step(self, model: nn.Module, problem: Problem, state: State, step: int, seed: int) -> dict:
        """Make one update from one batch of both modalities."""
        size, rows = self.step_size(problem.batches.per_epoch, state, step), problem.batches.at(step)
        grey = coins(len(rows), self.grey_probability, seed, Stream.GREY, step)
        gradient, loss = self.gradient(model, problem, state["delta"], rows, grey)
        self.descend(state, gradient, size)
        return {"loss": loss.item()}
