"""The pixel-space contract of every attack: budget, projection, sign step, frozen victim, 8 bits, tied channels.

A universal attack is a subclass of `UniversalAttack`, which holds the loop; it says how delta starts and what one step
does. Everything here works on images (N, 3, H, W) float in [0, 1].
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vireid_lite.attacks.budget import EPS, check_eps, clip, l1_normalised, tie_infrared
from vireid_lite.attacks.features import Problem
from vireid_lite.attacks.frozen import frozen, images_of, training_store, weights_hash
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.data.records import Dataset, Modality, fingerprint
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError
from vireid_lite.files import stable_hash, write_atomically

NOTE_EVERY = 25  # steps between two notes of a fit that can be resumed


@dataclass(frozen=True, kw_only=True)
class UniversalAttack:
    """What every universal attack shares: its parameters and the loop of `fit`.

    eps: budget in [0, 1] pixels. steps: updates. batch_size: images of one gradient evaluation. tied: what infrared
    images receive has three equal channels. Raises InputError for values out of range.
    """

    name: ClassVar[str]
    knows: ClassVar[str] = "the victim's weights; unlabelled training images"
    gradients_per_step: ClassVar[int] = 1

    eps: float = EPS
    steps: int = 200
    batch_size: int = 32
    tied: bool = False

    def __post_init__(self) -> None:
        check_eps(self.eps)
        for name, least in (("steps", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"{self.name}: {name} must be a whole number of at least {least}, got {value!r}")
        if type(self.tied) is not bool:
            raise InputError(f"{self.name}: tied must be true or false, got {self.tied!r}")

    def describe(self) -> dict:
        """Return the attack's name and every parameter as plain values, for run cards and keys."""
        return {"name": self.name, **asdict(self)}

    def prepare(self, model: nn.Module, store: ImageStore, seed: int) -> object:
        """Return whatever the steps need and never change: batches, centroids of clean features."""
        raise NotImplementedError

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return the state before the first step: "delta" (3, H, W) and what else changes from step to step."""
        return {"delta": torch.zeros(shape), "momentum": torch.zeros(shape)}

    def step(self, model: nn.Module, problem: object, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Make one update of the state in place of its tensors; return what the history notes, such as the loss."""
        raise NotImplementedError

    def finish(self, state: dict[str, Tensor], history: list[dict], seed: int) -> UniversalPerturbation:
        """Return the perturbation that a state stands for."""
        made_by = {**self.describe(), "seed": seed}
        delta = state["delta"].detach().cpu().clone()
        return UniversalPerturbation(delta, self.eps, self.tied, history, made_by=made_by)

    def fit(
        self,
        model: nn.Module,
        train: Dataset | ImageStore,
        seed: int = 0,
        *,
        state_path: Path | None = None,
        watch: Callable[[int, UniversalPerturbation], None] | None = None,
        progress: bool = False,
    ) -> UniversalPerturbation:
        """Return a perturbation learned on training images against a frozen victim; runs on the model's device.

        train: a data set, whose training images are read, or an ImageStore. seed: of every draw; the same seed gives
        the same bits on one device and thread count. state_path: where a killed fit is noted and found again.
        watch: called as watch(step, perturbation) after every step, for figures; what it draws is its own.
        The victim is bit-identical afterwards: weights, statistics, mode and requires_grad.
        Raises InputError where a modality has no image, or the note at state_path belongs to another fit.
        """
        store = training_store(train, progress=progress)
        for modality in Modality:
            if not (store.modalities == modality).any():
                raise InputError(f"{self.name}: no {modality.name.lower()} training image; both modalities are needed")
        weight = next(model.parameters())
        with frozen(model), torch.enable_grad():
            problem = self.prepare(model, store, seed)
            shape = (3, *store.images.shape[1:3])
            state = {name: value.to(weight) for name, value in self.start(shape, seed).items()}
            key = state_path and stable_hash([self.describe(), seed, fingerprint(store.records), weights_hash(model)])
            history = _resume(state_path, key, state)
            bar = tqdm(total=self.steps, initial=len(history), unit="step", desc=self.name, disable=not progress)
            with bar:
                for step in range(len(history), self.steps):
                    history.append({"step": step, **self.step(model, problem, state, step, seed)})
                    if watch is not None:
                        watch(step, self.finish(state, list(history), seed))
                    if state_path is not None and (step + 1) % NOTE_EVERY == 0 and step + 1 < self.steps:
                        _note(state_path, key, state, history)
                    bar.update()
        if not all(math.isfinite(value) for value in history[-1].values()):
            raise InputError(f"{self.name}: the loss is not finite; check the victim's weights")
        return self.finish(state, history, seed)


def _note(path: Path, key: str, state: dict[str, Tensor], history: list[dict]) -> None:
    """Write everything the next step depends on, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"key": key, "state": {name: value.cpu() for name, value in state.items()}, "history": history}, buffer)
    write_atomically(path, buffer.getvalue())


def _resume(path: Path | None, key: str | None, state: dict[str, Tensor]) -> list[dict]:
    """Load a note of the same fit into `state`, if there is one; return its history."""
    if path is None or not Path(path).exists():
        return []
    try:
        note = torch.load(path, map_location="cpu", weights_only=True)
        found = note["key"]
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, TypeError, KeyError):
        raise InputError(f"{path} is no note of an attack; delete it to start over") from None
    if found != key:
        raise InputError(f"{path} notes an attack with other settings; choose another folder, or delete it")
    for name in state:
        state[name] = note["state"][name].to(state[name])
    return note["history"]


@dataclass(frozen=True, kw_only=True)
class SignDescent(UniversalAttack):
    """What the gradient attacks share: m <- momentum m + g/|g|_1, delta <- clip(delta - step_size sign m, +-eps).

    step_share: step size as a share of eps, times exp(-decay (epoch + 1)). rescale: halve delta at an epoch's start
    where more than half of it is saturated and that share has moved by less than 1e-5 (UAP-Retrieval, MetaAttack).
    """

    step_share: float = 0.1
    momentum: float = 1.0
    decay: float = 0.0
    rescale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("step_share", 1e-9, 2), ("momentum", 0, math.inf), ("decay", 0, math.inf)):
            check_number(self, name, low, high)
        if type(self.rescale) is not bool:
            raise InputError(f"{self.name}: rescale must be true or false, got {self.rescale!r}")

    def start(self, shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
        """Return delta and momentum at zero, and the saturated share at the last epoch's start."""
        return {**super().start(shape, seed), "saturation": torch.zeros(())}

    def loss(self, model: nn.Module, problem: Problem, images: Tensor, rows: np.ndarray) -> Tensor:
        """Return the loss to descend on, of attacked crops `images` of the store's `rows`."""
        raise NotImplementedError

    def crops(self, model: nn.Module, problem: Problem, rows: np.ndarray, step: int, seed: int) -> Tensor:
        """Return the clean crops that a step attacks, (n, 3, H, W)."""
        return images_of(problem.store, rows, model)

    def gradient(
        self, model: nn.Module, problem: Problem, delta: Tensor, rows: np.ndarray, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the loss with respect to delta, (3, H, W), and the loss."""
        delta = delta.detach().requires_grad_()
        shift = tie_infrared(delta, problem.store.modalities[rows]) if self.tied else delta
        loss = self.loss(model, problem, clip(images + shift), rows)
        return torch.autograd.grad(loss, delta)[0], loss.detach()

    def step_size(self, problem: Problem, state: dict[str, Tensor], step: int) -> float:
        """Return the step size; halve a delta that stands still first, where that is asked for."""
        epoch, place = divmod(step, problem.batches.per_epoch)
        if self.rescale and place == 0:
            share = (state["delta"].abs() >= self.eps * (1 - 1e-6)).to(state["delta"]).mean()
            if share > 0.5 and (share - state["saturation"]).abs() < 1e-5:
                state["delta"] = state["delta"] / 2
            state["saturation"] = share
        return self.step_share * self.eps * (math.exp(-self.decay * (epoch + 1)) if self.decay else 1.0)

    def descend(self, state: dict[str, Tensor], gradient: Tensor, size: float, what: str = "delta") -> None:
        """Make one sign step of `state[what]`, with its own momentum."""
        buffer = "momentum" if what == "delta" else f"{what}_momentum"
        state[buffer] = self.momentum * state[buffer] + l1_normalised(gradient)
        state[what] = (state[what] - size * state[buffer].sign()).clamp(-self.eps, self.eps)

    def step(self, model: nn.Module, problem: Problem, state: dict[str, Tensor], step: int, seed: int) -> dict:
        """Make one update from one batch of both modalities."""
        size = self.step_size(problem, state, step)
        rows = problem.batches.at(step)
        images = self.crops(model, problem, rows, step, seed)
        gradient, loss = self.gradient(model, problem, state["delta"], rows, images)
        self.descend(state, gradient, size)
        return {"loss": loss.item()}


def check_number(attack: UniversalAttack, name: str, low: float, high: float) -> None:
    """Raise InputError unless an attack's field is a number from low to high."""
    value = getattr(attack, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{attack.name}: {name} must be a number from {low} to {high}, got {value!r}")


def check_whole(attack: UniversalAttack, name: str, least: int) -> None:
    """Raise InputError unless an attack's field is a whole number of at least `least`."""
    value = getattr(attack, name)
    if type(value) is not int or value < least:
        raise InputError(f"{attack.name}: {name} must be a whole number of at least {least}, got {value!r}")
