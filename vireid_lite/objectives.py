"""Training a network that brings its own losses: the loop of `training.train` around `model.objective`."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vireid_lite.data import Dataset, PKSampler, Record, cached, fingerprint
from vireid_lite.errors import InputError
from vireid_lite.provenance import stable_hash
from vireid_lite.training import (
    TrainSettings,
    _batch,
    _note,
    _resume,
    _shuffled_within_modality,
    contiguous_labels,
    learning_rate_factor,
    optimiser_for,
)


class Batch(NamedTuple):
    """What an objective is computed from.

    images: (N, 3, H, W) float in [0, 1], augmented, visible ones first. modality: int64 (N,) on the CPU. labels: int64
    (N,), contiguous, on the images' device. history: one dict for each finished epoch, as `train_by_objective` returns
    them. generator: on the CPU; every draw of an objective comes from it, so that a killed training resumes.
    """

    images: Tensor
    modality: Tensor
    labels: Tensor
    settings: TrainSettings
    history: list[dict]
    generator: torch.Generator


class Objective(NamedTuple):
    """What an objective returns for a batch.

    losses: name to scalar, weighted already; their sum is minimised. The names are the same at every step.
    logits, labels: (M, num_identities) and (M,), of which the accuracy is noted.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    labels: Tensor


def train_by_objective(
    model: nn.Module,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    seed: int = 0,
    state_path: Path | None = None,
    key: str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[dict]:
    """Train the model in place by its `objective(batch: Batch) -> Objective`; return one dict an epoch.

    Draws, schedule, notes and errors are those of `training.train`: an objective of identity loss and triplet gives
    the same weights, bit for bit. History keys: epoch, NAME_loss for each loss, accuracy, seconds.
    """
    device = torch.device(device)
    store = cached(dataset, dataset.train, progress)
    labels = contiguous_labels(store.records)
    if settings.shuffle_labels:
        labels = _shuffled_within_modality(labels, store.modalities.numpy(), seed)
    named = [Record(r.source, int(label), r.camera, r.modality) for r, label in zip(store.records, labels, strict=True)]
    sampler = PKSampler(named, settings.identities, settings.images, seed)
    model.to(device, memory_format=torch.channels_last)
    optimiser = optimiser_for(model, settings)
    key = stable_hash([asdict(settings), dataset.describe(), fingerprint(store.records), seed, key])
    history, first = _resume(state_path, key, model, optimiser, device)
    model.train()
    steps = len(sampler)
    bar = tqdm(total=settings.epochs * steps, initial=first * steps, unit="step", desc="train", disable=not progress)
    with bar:
        for epoch in range(first, settings.epochs):
            started, sums = time.perf_counter(), None
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            for step, rows in enumerate(sampler.epoch(epoch)):
                factor = learning_rate_factor(settings, epoch + step / steps)
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * factor
                images, modality, target = _batch(store, labels, rows, settings.augmentation, generator, device)
                found = model.objective(Batch(images, modality, target, settings, history, generator))
                optimiser.zero_grad(set_to_none=True)
                sum(found.losses.values()).backward()
                optimiser.step()
                right = (found.logits.argmax(1) == found.labels).float().mean()
                row = torch.stack([*(loss.detach() for loss in found.losses.values()), right])
                sums = row if sums is None else sums + row
                bar.update()
            *means, accuracy = (sums / steps).tolist()
            if not math.isfinite(sum(means)):
                raise InputError(f"the loss is not finite in epoch {epoch}; lower --learning-rate")
            noted = {f"{name}_loss": mean for name, mean in zip(found.losses, means, strict=True)}
            took = time.perf_counter() - started
            history.append({"epoch": epoch, **noted, "accuracy": accuracy, "seconds": took})
            shown = {name.removesuffix("_loss"): f"{mean:.2f}" for name, mean in noted.items()}
            bar.set_postfix(shown, refresh=False)
            if state_path is not None:
                _note(state_path, key, model, optimiser, history)
    model.eval()
    return history
