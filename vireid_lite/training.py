"""Training a victim by its own objective: resumable after a kill, the same weights bit for bit on CPU."""

import io
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vireid_lite.data import Augmentation, ImageStore, Modality, PKSampler, Record, cached, people
from vireid_lite.errors import MANY, InputError, check_choice, check_flag, check_number, whole
from vireid_lite.files import UNSEALED, clear_unreadable, sealed, stable_hash, write_atomically
from vireid_lite.losses import TRIPLETS
from vireid_lite.machine import pick_device
from vireid_lite.models.two_stream import Batch, TwoStream

MUON_RATE = 50  #: of Muon's learning rate, over that of AdamW beside it
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the polynomial (K. Jordan, "Muon", 2024)


@dataclass(frozen=True)
class TrainSettings:
    """How a victim is trained; the defaults are AGW's published recipe (train.py:205-233, utils.py:68-89)."""

    epochs: int = 81  #: passes over the larger modality
    identities: int = 8  #: in a batch
    images: int = 4  #: of each identity, in each modality
    optimiser: str = "sgd"  #: with momentum 0.9, Nesterov; "adamw"; or "muon", see `optimiser_for`
    learning_rate: float = 0.1  #: of the BNNeck and the classifier
    backbone_factor: float = 0.1  #: of the learning rate, for everything else
    weight_decay: float = 5e-4
    schedule: str = "agw"  #: "deen", "cosine" or "linear", see `learning_rate_factor`
    triplet: str | None = None  #: "wrt", "hard", "adp" or "none"; None is the network's own
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    shuffle_labels: bool = False  #: train on identities permuted over the images, a control that must end at chance
    half: bool = False  #: round weights and statistics to half precision at the end, as they are shipped

    def __post_init__(self) -> None:
        check_choice("training", "optimiser", self.optimiser, ["sgd", "adamw", "muon"])
        check_choice("training", "schedule", self.schedule, ["agw", "deen", "cosine", "linear"])
        check_choice("training", "triplet", "none" if self.triplet is None else self.triplet, TRIPLETS)
        for name in ("shuffle_labels", "half"):
            check_flag("training", name, getattr(self, name))
        if not isinstance(self.augmentation, Augmentation):
            raise InputError(f"training: augmentation must be an Augmentation, got {self.augmentation!r}")
        for name, least in (("epochs", 1), ("identities", 2), ("images", 2)):
            whole("training", name, getattr(self, name), least, MANY, int)
        check_number("training", "learning_rate", self.learning_rate, 1e-12, 1e12)
        for name, high in (("backbone_factor", 1e6), ("weight_decay", 1e6), ("label_smoothing", 1)):
            check_number("training", name, getattr(self, name), 0, high)


def learning_rate_factor(settings: TrainSettings, epoch: float) -> float:
    """Return what the learning rate is multiplied by after so many epochs, a fraction.

    "agw" warms up over 10 epochs and steps down at 20 and 50 (train.py:205-233), "deen" at 20 and 80 (its train.py);
    both are constant within an epoch. "cosine" warms up over the first tenth, "linear" over a thirtieth, then
    they go down to zero.
    """
    if settings.schedule == "deen":
        return learning_rate_factor(replace(settings, schedule="agw"), epoch if epoch >= 80 else min(epoch, 49))
    if settings.schedule == "agw":
        whole = int(epoch)
        return (whole + 1) / 10 if whole < 10 else 1.0 if whole < 20 else 0.1 if whole < 50 else 0.01
    if epoch < (warm_up := settings.epochs / (30 if settings.schedule == "linear" else 10)):
        return 0.01 + 0.99 * epoch / warm_up
    past, rest = epoch - warm_up, settings.epochs - warm_up
    return 1 - past / rest if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * past / rest))


def contiguous_labels(records: list[Record]) -> np.ndarray:
    """Return labels 0..n-1 for the records' identities, in the order of the identities' numbers: int64 (N,)."""
    return np.unique([record.identity for record in records], return_inverse=True)[1].astype(np.int64)


def optimiser_for(model: TwoStream, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser, the backbone at the reduced rate, BNNeck and classifier at the full one.

    With "muon" AdamW moves all but the weights of convolutions of several channels, which Muon moves at 50 times the
    backbone's rate.
    """
    rate, decay, muon = settings.learning_rate, settings.weight_decay, settings.optimiser == "muon"
    factors = settings.backbone_factor, 1, MUON_RATE * settings.backbone_factor
    body, head, matrices = groups = [{"params": [], "base_lr": rate * factor} for factor in factors]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            own = matrices if muon and weight.ndim == 4 and min(weight.shape[:2]) > 1 else body
            (head if name.startswith(("bottleneck", "classifier")) else own)["params"].append(weight)
    if muon:
        return Muon([body, head, matrices | {"momentum": 0.9}], lr=rate, weight_decay=decay)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups[:2], lr=rate, weight_decay=decay)
    return torch.optim.SGD(groups[:2], lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)


class Muon(torch.optim.AdamW):
    """AdamW, but groups that hold a "momentum" are moved by Muon with Nesterov's momentum.

    A weight (out, in, kh, kw) is read as a matrix, out x rest. Weight decay is decoupled, as in AdamW.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every weight that has a gradient; the gradients of Muon's weights are spent."""
        for group in self.param_groups:
            for weight in group["params"] if "momentum" in group else ():
                state = self.state[weight]
                if not state:  # AdamW asks for a step where it loads a note
                    state |= {"step": torch.zeros(()), "moving": torch.zeros_like(weight)}
                moving = state["moving"]
                moving.mul_(group["momentum"]).add_(weight.grad)
                step = orthogonal(weight.grad.add(moving, alpha=group["momentum"]).flatten(1))
                rows, columns = step.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step.view_as(weight), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
                weight.grad = None
        super().step()


def orthogonal(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return roughly U V^T of a matrix U S V^T, by Newton-Schulz steps on the smaller Gram matrix."""
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.mT, steps).mT
    matrix, (first, second, third) = matrix / (matrix.norm() + 1e-7), NEWTON_SCHULZ
    gram, product = matrix @ matrix.mT, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(steps):
        polynomial = second * gram + third * gram @ gram
        polynomial.diagonal().add_(first)
        product, gram = polynomial @ product, polynomial @ gram @ polynomial
    return product @ matrix


@torch.inference_mode(False)
def train(
    model, dataset, settings, *, objective=None, seed=0, state_path=None, key=None, device="cpu", progress=True
) -> list[dict]:
    """Train a `TwoStream` in place on a `Dataset` by `TrainSettings`; return its history, one dict an epoch.

    With `state_path` the run is noted there after each epoch, and resumes from a note of the same key: on CPU the final
    weights equal an uninterrupted run's bit for bit at the same thread count. History keys: epoch, NAME_loss for each
    loss of the objective, what it notes beside them, accuracy (share of the batch classified right), seconds.

    Args:
        objective: (`Batch`) -> `Objective`, what is minimised; None for the model's own.
        key: what decides the run beside settings, data and seed: the initial weights and the code.

    Raises:
        InputError: where the note is another run's, the network takes no triplet, or the loss is not finite.
    """
    device, objective = pick_device(device), objective or model.objective
    triplet = TRIPLETS[model.chosen_triplet(settings.triplet) or "none"]
    store = cached(dataset, dataset.train, progress)
    model.people = (model.people or set()) | people(dataset, store.records)
    labels = contiguous_labels(store.records)
    if settings.shuffle_labels:
        labels = _shuffled_within_modality(labels, store.modalities.numpy(), seed)
    labelled = [replace(record, identity=int(label)) for record, label in zip(store.records, labels, strict=True)]
    sampler = PKSampler(labelled, settings.identities, settings.images, seed)
    model.to(device, memory_format=torch.channels_last).train()
    optimiser = optimiser_for(model, settings)
    key = state_path and stable_hash([asdict(settings), dataset.describe(), store.fingerprint(), seed, key])
    state = {"model": model, "optimiser": optimiser}
    history = resume(state_path, key, state)
    steps, first = len(sampler), len(history)
    with tqdm(None, "train", settings.epochs * steps, unit="step", initial=first * steps, disable=not progress) as bar:
        for epoch in range(first, settings.epochs):
            started, sums = time.perf_counter(), 0
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            for step, rows in enumerate(sampler.epoch(epoch)):
                factor = learning_rate_factor(settings, epoch + step / steps)
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * factor
                batch = _batch(store, labels, rows, settings.augmentation, generator, device)
                found = objective(Batch(*batch, settings.label_smoothing, triplet, history, generator))
                optimiser.zero_grad(set_to_none=True)
                sum(found.losses.values()).backward()
                optimiser.step()
                right = (found.logits.argmax(1) == found.labels).float().mean()
                row = {f"{name}_loss": loss.detach() for name, loss in found.losses.items()} | (found.noted or {})
                sums = sums + torch.stack([*row.values(), right])
                bar.update()
            *means, accuracy = (sums / steps).tolist()
            if not math.isfinite(sum(means)):
                raise InputError(f"the loss is not finite in epoch {epoch}; lower the learning rate (--learning-rate)")
            noted = dict(zip(row, means, strict=True))
            history.append({"epoch": epoch, **noted, "accuracy": accuracy, "seconds": time.perf_counter() - started})
            bar.set_postfix(noted, refresh=False)
            if state_path is not None:
                note(state_path, key, state, history)
    if settings.half:
        model.half().float()
    model.eval()
    return history


def _shuffled_within_modality(labels: np.ndarray, modalities: np.ndarray, seed: int) -> np.ndarray:
    """Return the labels permuted over the images of each modality."""
    generator, shuffled = np.random.default_rng([seed, 1]), labels.copy()
    for rows in (np.flatnonzero(modalities == modality) for modality in Modality):
        shuffled[rows] = labels[generator.permutation(rows)]
    return shuffled


def _batch(store: ImageStore, labels, rows, augmentation, generator, device) -> tuple:
    """Return images, modality and labels of one step: augmented visible crops, then augmented infrared ones."""
    parts = [augmentation(store.batch(rows[modality], device), modality, generator) for modality in Modality]
    images, chosen = torch.cat(parts).contiguous(memory_format=torch.channels_last), np.concatenate(rows)
    # The modality stays on the CPU: the model splits the batch by it without waiting for the GPU.
    return images, store.modalities[chosen], torch.from_numpy(labels[chosen]).to(device, non_blocking=True)


def note(path: Path, key: str, state: dict, history: list[dict]) -> None:
    """Write everything the rest of a run depends on, whole or not at all: tensors, modules and optimisers by name."""
    plain = {name: part.cpu() if isinstance(part, Tensor) else part.state_dict() for name, part in state.items()}
    torch.save({"key": key, "state": plain, "history": history}, buffer := io.BytesIO())
    write_atomically(path, sealed(buffer.getvalue() + UNSEALED))


def resume(path: Path | None, key: str | None, state: dict) -> list[dict]:
    """Load a note of the same run into `state`, if there is one; return its history."""
    if path is None or not os.path.exists(path):
        return []
    with clear_unreadable(path):
        whole = Path(path).read_bytes()
    if sealed(whole[:-16] + UNSEALED) != whole:
        raise InputError(f"{path} is no whole note of a run; delete it to start over")
    found = torch.load(io.BytesIO(whole[:-16]), map_location="cpu", weights_only=True)
    its_key, noted = found["key"], found["state"]
    if its_key != key or noted.keys() != state.keys():
        raise InputError(f"{path} notes a run with other settings; choose another folder, or delete it to start over")
    for name, part in state.items():
        if isinstance(part, Tensor):
            state[name] = noted[name].to(part)
        else:
            part.load_state_dict(noted[name])
    return found["history"]
