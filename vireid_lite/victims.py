"""The three tiers, and the victim a chapter, a command or a campaign asks for: loaded if it exists, else trained."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from vireid_lite import models
from vireid_lite.data import Augmentation, Dataset, fingerprint, load_dataset
from vireid_lite.errors import TIERS as DATASET_OF_TIER
from vireid_lite.errors import InputError
from vireid_lite.files import VICTIM_CODE, cache_folder, exclusive, source_hash, stable_hash
from vireid_lite.machine import Compute, device_name, peak_memory_mib, pick_device, versions
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
from vireid_lite.training import TrainSettings, train, train_by_objective

# Options of the licensed data sets that decide the test alone: victims are shared over them.
TEST_ONLY = ("search", "shot", "draw", "num_trials", "official_vis2ir")

# Key to seconds of training, for each victim that this process found in a cache: what a chapter run alone costs on top.
found_trained: dict[str, float] = {}


@dataclass(frozen=True)
class Recipe:
    """A victim before it is trained: the network, its options (as `models.build` takes them), how it is trained."""

    model: str = "agw"
    backbone: str = "resnet50"
    pretrained: bool = False
    settings: TrainSettings = field(default_factory=TrainSettings)
    options: dict = field(default_factory=dict)

    def describe(self) -> dict:
        """Return the recipe as plain values, for run cards and keys; options only where there are any."""
        described = asdict(self)
        return described if self.options else {name: v for name, v in described.items() if name != "options"}


@dataclass(frozen=True)
class Tier:
    """One size of every chapter: the crops' size, the options of the tier's data set, and the victim's recipe.

    size: (height, width) in pixels; None stands for the data set's own, which `parameters.TIERS` names.
    """

    size: tuple[int, int] | None
    options: dict
    recipe: Recipe


TIERS = {
    "lite": Tier(
        (96, 48),
        {"num_identities": 1000, "images_per_modality": 6},
        Recipe(
            backbone="lite",
            settings=TrainSettings(
                epochs=10,
                identities=16,
                images=2,
                optimiser="adamw",
                learning_rate=2e-3,
                backbone_factor=1.0,
                weight_decay=5e-2,
                schedule="cosine",
                label_smoothing=0.1,
                augmentation=Augmentation(pad=4, erasing=0.2, channels=True),
            ),
        ),
    ),
    "standard": Tier(
        (256, 128),
        {"num_identities": 2000, "images_per_modality": 10, "test_identities": 200},
        Recipe(
            backbone="resnet50",
            settings=TrainSettings(
                epochs=24,
                identities=16,
                images=2,
                optimiser="adamw",
                learning_rate=5e-4,
                backbone_factor=1.0,
                weight_decay=5e-2,
                schedule="cosine",
                label_smoothing=0.1,
                augmentation=Augmentation(erasing=0.5, channels=True),
            ),
        ),
    ),
    "full": Tier(None, {"validation": False}, Recipe(backbone="resnet50", pretrained=True)),
}


def tier_named(name: str) -> Tier:
    """Return a tier, or raise InputError naming the three there are."""
    if name not in TIERS:
        raise InputError(f"TIER {name!r} is unknown; choose from {', '.join(TIERS)}")
    return TIERS[name]


def tier_dataset(
    tier: str,
    dataset: str | None = None,
    root: str | Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    **options: object,
) -> Dataset:
    """Return a tier's data set, or the named one at the tier's size; `options` override the tier's."""
    chosen = tier_named(tier)
    name = dataset or DATASET_OF_TIER[tier]
    defaults = chosen.options if name == DATASET_OF_TIER[tier] else {}
    return load_dataset(name, root or None, size=size or chosen.size, seed=seed, **{**defaults, **options})


def tier_recipe(
    tier: str,
    *,
    model: str | None = None,
    backbone: str | None = None,
    pretrained: bool | None = None,
    options: dict | None = None,
    **settings: object,
) -> Recipe:
    """Return a tier's recipe with named fields of its TrainSettings replaced; None keeps the tier's value.

    model, options: another network than the tier's, and its own options.
    """
    recipe = tier_named(tier).recipe
    given = {name: value for name, value in settings.items() if value is not None}
    unknown = sorted(set(given) - set(TrainSettings.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"training setting {unknown[0]!r} is unknown; it takes {', '.join(TrainSettings.__dataclass_fields__)}"
        )
    return replace(
        recipe,
        model=model or recipe.model,
        options=options or {},
        backbone=backbone or recipe.backbone,
        pretrained=recipe.pretrained if pretrained is None else pretrained,
        settings=replace(recipe.settings, **given),
    )


def load_or_train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    device: torch.device | str = "auto",
    folder: Path | None = None,
    compute: Compute | None = None,
    progress: bool = True,
) -> tuple[nn.Module, dict]:
    """Return the trained victim in eval mode and its checkpoint card.

    The victim is keyed by recipe, training data, seed, the code of all training and `compute`, the precision it is
    trained in (None: float32), and kept in `folder`, or among everything that can be made again
    (`provenance.cache_folder`). A killed training resumes at its last epoch.
    Card keys beside the builder's own: recipe, dataset, seed, history, wall_seconds, peak_memory_mib, device, code.
    """
    device = pick_device(device) if isinstance(device, str) else device
    code = source_hash(*VICTIM_CODE)
    trained_on = {name: value for name, value in dataset.describe().items() if name not in TEST_ONLY}
    key = stable_hash(
        [
            recipe.describe(),
            trained_on,
            fingerprint(dataset.train),
            seed,
            code,
            *([compute.describe()] if compute else []),
        ]
    )
    folder = folder or cache_folder() / "victims" / key
    path = folder / "victim.safetensors"
    with exclusive(folder):
        existed = path.exists()
        if not existed:
            _train_and_save(recipe, dataset, seed, device, folder, key, code, compute or Compute(), progress)
    model, card = load_checkpoint(path)
    if card.get("key") != key:
        raise InputError(f"{path} holds a victim of other settings, data, seed or code; choose another folder")
    if existed:
        found_trained[key] = card["seconds"]
    return model.to(device).eval(), card


def _train_and_save(
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    folder: Path,
    key: str,
    code: str,
    compute: Compute,
    progress: bool,
) -> None:
    if not dataset.train:
        raise InputError(f"{dataset.name} has no training images; train on another data set")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        num_identities = len({record.identity for record in dataset.train})
        model = models.build(recipe.model, num_identities, recipe.backbone, recipe.pretrained, **recipe.options)
    started = time.perf_counter()
    state_path = folder / "state.pt"
    learn = train_by_objective if hasattr(model, "objective") else train
    with compute.on(model, device):
        history = learn(
            model, dataset, recipe.settings, seed=seed, state_path=state_path, key=key, device=device, progress=progress
        )
    card = {
        "key": key,
        "recipe": recipe.describe(),
        "dataset": dataset.describe(),
        "seed": seed,
        "history": history,
        "seconds": sum(epoch["seconds"] for epoch in history),
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_mib": peak_memory_mib(device),
        "device": device_name(device),
        "compute": compute.describe(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "code": code,
    }
    save_checkpoint(folder / "victim.safetensors", model.cpu(), card)
    state_path.unlink(missing_ok=True)
