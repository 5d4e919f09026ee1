"""The pixel-space contract of every attack: budget, projection, sign step, frozen victim, 8 bits, tied channels.

A universal attack is a subclass of `UniversalAttack`, which holds the loop; it says how delta starts and what one step
does. Everything here works on images (N, 3, H, W) float in [0, 1].
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vireid_lite.data.loading import ImageStore, cached
from vireid_lite.data.records import Dataset, Modality, fingerprint
from vireid_lite.errors import InputError
from vireid_lite.models.two_stream import check_images, evaluating
from vireid_lite.provenance import stable_hash, write_atomically

EPS = 8 / 255
NOTE_EVERY = 25  # steps between two notes of a fit that can be resumed

ModalityLike = Modality | Tensor  # one modality for the batch, or int64 (N,) of 0 (visible) and 1 (infrared)


class _StraightThroughClip(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor, low: float, high: float) -> Tensor:
        return values.clamp(low, high)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _MaskedClip(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor, low: float, high: float) -> Tensor:
        context.save_for_backward((values >= low) & (values <= high))
        return values.clamp(low, high)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * context.saved_tensors[0], None, None


def clip(values: Tensor, low: float = 0.0, high: float = 1.0, *, masked: bool = False) -> Tensor:
    """Clip to [low, high]; the gradient passes straight through, as torch versions differ at the boundary.

    masked: the gradient of what lies outside is 0 and on the boundary 1, as in the torch that CMPS was published with.
    """
    return (_MaskedClip if masked else _StraightThroughClip).apply(values, low, high)


def check_eps(eps: float) -> float:
    """Return eps, or raise InputError unless it is a number in (0, 1], a share of the pixel range."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= 1:
        raise InputError(f"eps {eps!r}: a number above 0 and at most 1 is needed, as pixels lie in [0, 1]; try 8/255")
    return float(eps)


def tie(delta: Tensor) -> Tensor:
    """Return delta (..., 3, H, W) with each channel replaced by the mean of the three, equal to the bit.

    This is what reaches a network when the signal of a one-channel infrared sensor is perturbed.
    """
    return delta.mean(-3, keepdim=True).expand_as(delta)


def tie_infrared(delta: Tensor, modality: ModalityLike) -> Tensor:
    """Return delta, (3, H, W) or (N, 3, H, W), tied where it falls on infrared images."""
    if isinstance(modality, Tensor):
        infrared = (modality == Modality.INFRARED).view(-1, 1, 1, 1).to(delta.device)
        return torch.where(infrared, tie(delta), delta)
    return tie(delta) if modality == Modality.INFRARED else delta


def project(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the adversarial images moved into [images - eps, images + eps] and [0, 1]."""
    return (images + (adversarial - images).clamp(-eps, eps)).clamp(0, 1)


def to_8_bits(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the adversarial images as an image file holds them: the nearest of 256 levels that keeps the budget.

    images: the clean images, themselves of 8 bits. Equal channels stay equal to the bit. The budget is kept to a
    thousandth of a level.
    """
    # A level may lie on the budget itself; the slack absorbs float32's rounding of 255 * eps, never a whole level.
    low, high = ((images - eps) * 255 - 1e-3).ceil(), ((images + eps) * 255 + 1e-3).floor()
    return (adversarial * 255).round().clamp(low, high).clamp(0, 255) / 255


def luma(images: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Return images (N, 3, H, W) with those chosen, (N,) bool, or all, as their luma in three channels.

    .299 R + .587 G + .114 B, equations 2 and 3 of CMPS; a grey image stays what it is, up to float rounding.
    """
    red, green, blue = images.unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue).clamp(0, 1)[:, None].expand_as(images)
    return grey if chosen is None else torch.where(chosen.view(-1, 1, 1, 1).to(images.device), grey, images)


def l1_normalised(gradient: Tensor) -> Tensor:
    """Return gradient / |gradient|_1 over the whole tensor; zero stays zero."""
    return gradient / gradient.abs().sum().clamp(min=torch.finfo(gradient.dtype).tiny)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a victim still inside the block: eval mode, no parameter asks for a gradient; both are put back after it."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def images_of(store: ImageStore, rows: np.ndarray, model: nn.Module) -> Tensor:
    """Return crops of a store on the model's device, in its precision and memory format."""
    weight = next(model.parameters())
    return store.batch(rows, weight.device).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def training_store(train: Dataset | ImageStore, identities: int | None = None, progress: bool = False) -> ImageStore:
    """Return the crops an attack may learn from: a data set's training images, or the store as given.

    identities: keep the first so many training identities of a data set; None keeps all.
    Raises InputError for anything else than a data set or a store.
    """
    if isinstance(train, ImageStore):
        return train
    if not isinstance(train, Dataset):
        raise InputError(
            f"fit: training data must be a data set (its training images are read) or an ImageStore, got "
            f"{type(train).__name__}; a list of records has no reader, so pass the data set it came from"
        )
    kept = set(sorted({record.identity for record in train.train})[:identities])
    return cached(train, [record for record in train.train if record.identity in kept], progress)


def generator_for(*numbers: int) -> torch.Generator:
    """Return a CPU generator that depends on these numbers alone, such as (seed, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


class Batches:
    """Batches of rows, epoch after epoch; the batch of a step depends on (seed, step) alone, so a fit can resume.

    rows: (N,) what to draw from. size: cut to what there is. shuffle: a new order every epoch; else the given order.
    Each epoch leaves out the rest that fills no batch.
    """

    def __init__(self, rows: np.ndarray, size: int, seed: int, shuffle: bool = True) -> None:
        self.rows, self.size, self.seed, self.shuffle = rows, min(size, len(rows)), seed, shuffle
        self.per_epoch = len(rows) // self.size

    def at(self, step: int) -> np.ndarray:
        """Return the rows of a step, (size,)."""
        epoch, place = divmod(step, self.per_epoch)
        rows = self.rows
        if self.shuffle:
            rows = np.random.default_rng([self.seed, epoch]).permutation(rows)
        return rows[place * self.size : (place + 1) * self.size]


@dataclass
class UniversalPerturbation:
    """One perturbation for every image: what a universal attack leaves behind.

    delta: (3, H, W) float, |delta| <= eps, or a dict from Modality to one; CMPS's paper calls it eta.
    eps: budget in [0, 1] pixels.
    tied: on infrared images the three channels of the perturbation are equal (`tie`). history: one dict a step.
    lattice: (3, 25, 25, 25) colour displacement added to delta before the projection (Col.+Del.), or None.
    double: the lattice and delta keep a budget of eps each, as published; else their sum keeps eps.
    made_by: what made it, for run cards.
    """

    delta: Tensor | dict[Modality, Tensor]
    eps: float
    tied: bool = False
    history: list[dict] = field(default_factory=list)
    lattice: Tensor | None = None
    double: bool = False
    made_by: dict = field(default_factory=dict)

    def apply(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images, (N, 3, H, W) in [0, 1], as floats; the input is left as it is.

        modality: one Modality for the batch, or int64 (N,).
        Raises InputError for images of another size than delta, outside [0, 1] or not finite.
        """
        check_images(images)
        delta = self._delta(modality).to(images)
        if images.shape[-2:] != delta.shape[-2:]:
            raise InputError(
                f"perturbation: made for crops of {delta.shape[-2]}x{delta.shape[-1]} pixels, got "
                f"{images.shape[-2]}x{images.shape[-1]}; load the data at that size"
            )
        budget = self.eps
        if self.lattice is not None:
            delta = delta + lattice_shift(self.lattice.to(images), images)
            budget = 2 * self.eps if self.double else self.eps
        if self.tied:
            delta = tie_infrared(delta, modality)
        return project(images + delta, images, budget)

    def apply_rounded(self, images: Tensor, modality: ModalityLike) -> Tensor:
        """Return the attacked images rounded to 8 bits; otherwise as `apply`."""
        return to_8_bits(self.apply(images, modality), images, 2 * self.eps if self.double else self.eps)

    def _delta(self, modality: ModalityLike) -> Tensor:
        if not isinstance(self.delta, dict):
            return self.delta
        if isinstance(modality, Tensor):
            return torch.stack([self.delta[Modality(int(value))] for value in modality])
        return self.delta[modality]

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, whole or not at all. Raises InputError where that fails."""
        deltas = self.delta if isinstance(self.delta, dict) else {None: self.delta}
        tensors = {f"delta.{m.name.lower()}" if m is not None else "delta": d.contiguous() for m, d in deltas.items()}
        if self.lattice is not None:
            tensors["lattice"] = self.lattice.contiguous()
        facts = {name: getattr(self, name) for name in ("eps", "tied", "double", "history", "made_by")}
        write_atomically(Path(path), safetensors.torch.save(tensors, metadata={"perturbation": json.dumps(facts)}))

    @classmethod
    def load(cls, path: str | Path) -> UniversalPerturbation:
        """Return the perturbation of a file. Raises InputError where it is missing, damaged or something else."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such perturbation; make one with `vireid-lite attack`, or check the path")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
                facts = json.loads((file.metadata() or {})["perturbation"])
            lattice = tensors.pop("lattice", None)
            named = {Modality[name.partition(".")[2].upper()]: d for name, d in tensors.items() if name != "delta"}
            found = cls(delta=named or tensors["delta"], lattice=lattice, **facts)
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path}: not a perturbation saved by this package ({reason})") from None
        worst = max(float(d.abs().max()) for d in (named or tensors).values())
        if not worst <= found.eps * (1 + 1e-6):
            raise InputError(f"{path}: delta reaches {worst:g}, above its own budget of {found.eps:g}; make it again")
        return found


def lattice_shift(lattice: Tensor, images: Tensor) -> Tensor:
    """Return what a colour lattice adds to each pixel, (N, 3, H, W), trilinear between its nodes.

    lattice: (3, K, K, K), the displacement of R, G and B at K levels of red, green and blue (in this order).
    """
    # grid_sample reads the last axis by the first coordinate, so colours are given as (blue, green, red).
    grid = images.permute(0, 2, 3, 1).flip(-1)[:, None] * 2 - 1
    volume = lattice[None].expand(len(images), -1, -1, -1, -1)
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
    return torch.nn.functional.grid_sample(volume, grid, **options)[:, :, 0]


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


def weights_hash(model: nn.Module) -> str:
    """Return 16 hex digits that change with any weight or statistic of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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
