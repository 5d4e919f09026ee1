"""The feature-level paper read literally: the victim itself is retrained, on perturbed images, with its three parts.

Every hyper-parameter the paper prints belongs to a training (SGD, 60 epochs, warm-up), and its commands train a network
and test it. Whoever can do this owns the victim, so its scores never stand beside those of a bounded attack. The same
loop trains a victim with FSAM, SE or ECA and its usual losses, to see what they do where nobody attacks.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vireid_lite import losses, models
from vireid_lite.attacks.budget import EPS, check_eps, clip
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.attacks.universal import SignNoise, UniformNoise
from vireid_lite.data import Dataset, Modality, PKSampler, Record, cached, fingerprint
from vireid_lite.errors import InputError
from vireid_lite.files import ATTACK_CODE, cache_folder, exclusive, source_hash, stable_hash, write_atomically
from vireid_lite.losses import TRIPLETS, class_centres, quadruple_loss
from vireid_lite.machine import device_name, peak_memory_mib, pick_device
from vireid_lite.models.insertion import Tap, check_blocks, insert, staged
from vireid_lite.models.two_stream import TwoStream, generalised_mean
from vireid_lite.training import (
    TrainSettings,
    _batch,
    _note,
    _resume,
    contiguous_labels,
    learning_rate_factor,
    optimiser_for,
)
from vireid_lite.victims import Recipe, load_or_train

CHOICES = {
    "attention": ("fsam", "se", "eca", "none"),
    "loss": ("quadruple", "identity", "recipe"),
    "form": ("hinge", "linear"),
    "noise": ("sign", "uniform", "none"),
    "start": ("victim", "scratch"),
}


@dataclass(frozen=True, kw_only=True)
class Modification:
    """What is changed about a victim's training; the defaults are the paper's method.

    attention: what stands after each of `blocks`: "fsam", "se", "eca" or "none". sfm: a second attention after block 4.
    loss: beside the identity loss, the "quadruple" loss, nothing ("identity"), or the recipe's own triplet ("recipe").
    form, alpha, normalise: of the quadruple loss. noise: the perturbation the images carry in training and test, drawn
    once for each modality: "sign" (+-eps), "uniform" in [-eps, eps], or "none". eps: in [0, 1] pixels.
    start: the weights before the first step, those of the trained "victim" (the paper's start from ImageNet) or drawn
    ("scratch"). epochs: of this training; None for the recipe's.
    Raises InputError for unknown values.
    """

    attention: str = "fsam"
    blocks: tuple[int, ...] = (0, 4)
    sfm: bool = True
    loss: str = "quadruple"
    form: str = "hinge"
    alpha: float = 0.2
    normalise: bool = False
    noise: str = "sign"
    eps: float = EPS
    start: str = "victim"
    epochs: int | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"modification: {name} {getattr(self, name)!r} is unknown; choose {', '.join(known)}")
        for name in ("sfm", "normalise"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"modification: {name} must be true or false, got {getattr(self, name)!r}")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 <= self.alpha < math.inf:
            raise InputError(f"modification: alpha must be a number of at least 0, got {self.alpha!r}")
        if self.epochs is not None and (type(self.epochs) is not int or self.epochs < 1):
            raise InputError(f"modification: epochs must be a whole number of at least 1, got {self.epochs!r}")
        check_eps(self.eps)
        object.__setattr__(self, "blocks", check_blocks("modification", self.blocks))

    def perturbation(self, size: tuple[int, int], seed: int) -> UniversalPerturbation | None:
        """Return the noise that training and test images carry, one delta for each modality, or None.

        size: (height, width). Which delta the paper adds is not stated; "no gradients of the model" fits noise.
        """
        if self.noise == "none":
            return None
        kind = {"sign": SignNoise, "uniform": UniformNoise}[self.noise](eps=self.eps)
        # Two draws of one seed each: the modalities carry different noise.
        deltas = {m: kind.start((3, *size), 2 * seed + int(m))["delta"] for m in Modality}
        return UniversalPerturbation(deltas, self.eps, made_by={"name": kind.name, "seed": seed})

    def change(self, model: TwoStream) -> Tap:
        """Insert the modules into a network, for good, and return the tap that reads stage 1 (before SFM)."""
        modules, tap = staged(model, self.attention, self.blocks, self.sfm)
        insert(model, modules)
        return tap


class ModifiedVictim(NamedTuple):
    """A trained network with its modules inside (`model`), the perturbation it was trained on, and its card."""

    model: TwoStream
    perturbation: UniversalPerturbation | None
    card: dict


def train_modified_victim(
    recipe: Recipe,
    dataset: Dataset,
    modification: Modification | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "auto",
    folder: Path | None = None,
    progress: bool = True,
) -> ModifiedVictim:
    """Return a victim trained with `modification`, loaded where it was trained before.

    recipe: of the victim it starts from; network, schedule and augmentation are kept, and its triplet is used with
    loss="recipe" alone. folder: where it is kept;
    None stands for a folder of the cache, keyed by everything the result depends on. A killed training resumes.
    Card keys: key, recipe, modification, dataset, seed, history, seconds, wall_seconds, peak_memory_mib, device.
    Raises InputError where `folder` holds another victim.
    """
    modification = modification or Modification()
    device = pick_device(device) if isinstance(device, str) else device
    code = source_hash(*ATTACK_CODE)
    described = [recipe.describe(), asdict(modification), dataset.describe(), fingerprint(dataset.train), seed, code]
    key = stable_hash(described)
    folder = folder or cache_folder() / "modified" / key
    path = folder / "modified.safetensors"
    # Trained before the modules are drawn and the folder is held, as it may take long.
    start = modification.start == "victim"
    victim = load_or_train(recipe, dataset, seed=seed, device=device, progress=progress)[0] if start else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        count = len({record.identity for record in dataset.train})
        model = models.build(recipe.model, count, recipe.backbone, recipe.pretrained and victim is None)
        if victim is not None:
            model.load_state_dict(victim.state_dict())
        tap = modification.change(model)
    perturbation = modification.perturbation(dataset.size, seed)
    with exclusive(folder):
        if not path.exists():
            started = time.perf_counter()
            note = folder / "state.pt"
            settings = replace(recipe.settings, epochs=modification.epochs or recipe.settings.epochs)
            history = _train(
                model, tap, perturbation, dataset, settings, modification, seed, note, key, device, progress
            )
            card = {
                "key": key,
                "recipe": recipe.describe(),
                "modification": asdict(modification),
                "dataset": dataset.describe(),
                "seed": seed,
                "history": history,
                "seconds": sum(epoch["seconds"] for epoch in history),
                "wall_seconds": time.perf_counter() - started,
                "peak_memory_mib": peak_memory_mib(device),
                "device": device_name(device),
            }
            state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
            write_atomically(path, safetensors.torch.save(state, metadata={"card": json.dumps(card)}))
            note.unlink(missing_ok=True)
    card = _load(path, model, key)
    return ModifiedVictim(model.to(device).eval(), perturbation, card)


def _load(path: Path, model: nn.Module, key: str) -> dict:
    """Load a kept victim into a network of its shape; return its card."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file, no dict)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a modified victim ({reason}); delete it to train it again") from None
    if card.get("key") != key:
        raise InputError(f"{path} holds a victim of other settings, data, seed or code; choose another folder")
    model.load_state_dict(state)
    return card


def _train(
    model: TwoStream,
    tap: Tap,
    perturbation: UniversalPerturbation | None,
    dataset: Dataset,
    settings: TrainSettings,
    modification: Modification,
    seed: int,
    note: Path,
    key: str,
    device: torch.device,
    progress: bool,
) -> list[dict]:
    """Train the network in place; with nothing modified, every draw and every weight is that of `training.train`."""
    store = cached(dataset, dataset.train, progress)
    labels = contiguous_labels(store.records)
    named = [Record(r.source, int(label), r.camera, r.modality) for r, label in zip(store.records, labels, strict=True)]
    sampler = PKSampler(named, settings.identities, settings.images, seed)
    triplet = TRIPLETS[settings.triplet] if modification.loss == "recipe" else None
    deltas = None
    if perturbation is not None:
        deltas = torch.stack([perturbation.delta[modality] for modality in Modality]).to(device)
    model.to(device, memory_format=torch.channels_last)
    optimiser = optimiser_for(model, settings)
    history, first = _resume(note, key, model, optimiser, device)
    model.train()
    bar = tqdm(total=settings.epochs * len(sampler), initial=first * len(sampler), unit="step", disable=not progress)
    with bar:
        for epoch in range(first, settings.epochs):
            started = time.perf_counter()
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            sums = torch.zeros(4, device=device)
            for step, rows in enumerate(sampler.epoch(epoch)):
                factor = learning_rate_factor(settings, epoch + step / len(sampler))
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * factor
                images, modality, target = _batch(store, labels, rows, settings.augmentation, generator, device)
                if deltas is not None:
                    images = clip(images + deltas[modality.to(device)])
                output = model(images, modality)
                identity = losses.identity_loss(output.logits, target, settings.label_smoothing)
                other = active = torch.zeros((), device=device)
                if triplet:
                    other = triplet(output.pooled, target)
                elif modification.loss == "quadruple":
                    other, active = _quadruple(model, tap, output.pooled, target, modality, modification)
                optimiser.zero_grad(set_to_none=True)
                (identity + other).backward()
                optimiser.step()
                right = (output.logits.argmax(1) == target).float().mean()
                sums += torch.stack([identity.detach(), other.detach(), active.to(sums), right])
                bar.update()
            means = (sums / len(sampler)).tolist()
            if not math.isfinite(sum(means)):
                raise InputError(f"the loss is not finite in epoch {epoch}; lower the learning rate")
            names = ("identity_loss", "other_loss", "active", "accuracy")
            took = time.perf_counter() - started
            history.append({"epoch": epoch, **dict(zip(names, means, strict=True)), "seconds": took})
            _note(note, key, model, optimiser, history)
    model.eval()
    return history


def _quadruple(
    model: TwoStream, tap: Tap, pooled: Tensor, target: Tensor, modality: Tensor, modification: Modification
) -> tuple[Tensor, Tensor]:
    """Return L_AQAL of a batch and the share of its hinges above zero."""
    stage1 = generalised_mean(tap.maps, getattr(model, "gem_p", 3.0))
    first, second = (class_centres(features, target, modality) for features in (stage1, pooled))
    options = {"alpha": modification.alpha, "form": modification.form, "normalise": modification.normalise}
    return quadruple_loss(*first, *second, **options)
