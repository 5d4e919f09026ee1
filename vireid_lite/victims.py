"""The three tiers, and the victim a chapter, a command or a campaign asks for: loaded if it exists, else trained.

Some victims come with the package, in `weights/`. They are taken where the code still does what it did when they were
trained, which their probe tells: what a network's training and the rendered data are on a small problem.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vireid_lite.behaviour import (
    Found,
    Painted,
    aside,
    counted,
    crops,
    differs,
    entries,
    features,
    history,
    named,
    plain,
)
from vireid_lite.data import Augmentation, Dataset, fingerprint, load_dataset
from vireid_lite.errors import TIERS as DATASET_OF_TIER
from vireid_lite.errors import InputError, check_choice, check_number, check_table, whole
from vireid_lite.files import (
    PACKAGE,
    VICTIM_CODE,
    cache_folder,
    clear_unreadable,
    damaged,
    exclusive,
    parse_json,
    read_json,
    source_hash,
    stable_hash,
    write_atomically,
)
from vireid_lite.machine import Compute, device_name, peak_memory_mib, pick_device, versions
from vireid_lite.models.checkpoints import NETWORKS, build, load_checkpoint, save_checkpoint
from vireid_lite.models.two_stream import TwoStream
from vireid_lite.training import TrainSettings, learning_rate_factor, train

# Options of data sets that do not touch training: victims are shared over them.
TEST_ONLY = ("search", "shot", "draw", "num_trials", "official_vis2ir")
TEST_ONLY += ("val_identities", "tuning_identities", "test_identities", "traffic_identities")

TRAINED = {"history": list, "device": str, **dict.fromkeys(("seconds", "wall_seconds", "peak_memory_mib"), int | float)}

WEIGHTS = PACKAGE / "weights"  # of the victims that come with the package, and the sha256 of each file

# Key to seconds of training, for each victim that this process found in a cache: what a chapter run alone costs on top;
# and for each that comes with the package: what it would cost on top with RETRAIN.
found_trained: dict[str, float] = {}
found_shipped: dict[str, float] = {}


@dataclass(frozen=True)
class Recipe:
    """A victim before it is trained: the network, its options (as `models.build` takes them), how it is trained."""

    model: str = "agw"
    backbone: str = "resnet50"
    pretrained: bool = False
    settings: TrainSettings = field(default_factory=TrainSettings)
    options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("models", "network", self.model, NETWORKS)
        _ = self.triplet
        if mixed := {"name", "num_identities", "backbone", "pretrained"} & self.options.keys():
            raise InputError(f"models: {min(mixed)} is no option of a network's own; give it beside the options")

    @property
    def triplet(self) -> str | None:
        """The name of the triplet it is trained with; None for a network that takes none, and refuses one."""
        return NETWORKS[self.model].chosen_triplet(self.settings.triplet)

    def describe(self) -> dict:
        """Return the recipe as plain values, for run cards and keys; triplet and options only where there are any."""
        described = asdict(self)
        described["settings"]["triplet"] = self.triplet
        if self.triplet is None:
            del described["settings"]["triplet"]
        if not self.options:
            del described["options"]
        return described


@dataclass(frozen=True)
class Tier:
    """One size of every chapter: (height, width) of its crops (None: the data set's own), its options, its victim."""

    size: tuple[int, int] | None
    options: dict
    recipe: Recipe


# Without ImageNet weights, at `lite` and `standard`. What lite's recipe is against the one before is measured by
# benchmarks/lite_victim.py.
FROM_SCRATCH = TrainSettings(images=2, backbone_factor=1.0, weight_decay=5e-2)
LITE = replace(FROM_SCRATCH, epochs=4, optimiser="muon", schedule="linear", learning_rate=2e-3, half=True)
LITE = replace(LITE, augmentation=Augmentation(pad=4, channels=True))
STANDARD = replace(FROM_SCRATCH, epochs=24, optimiser="adamw", schedule="cosine", learning_rate=5e-4, identities=16)
STANDARD = replace(STANDARD, label_smoothing=0.1, augmentation=Augmentation(erasing=0.5, channels=True))

FEW = {"num_identities": 1000, "images_per_modality": 6, "val_identities": 150, "tuning_identities": 150}
FEW["traffic_identities"] = 2000
MANY = {"num_identities": 2000, "images_per_modality": 10, "test_identities": 200}

TIERS = {
    "lite": Tier((96, 48), FEW, Recipe(backbone="lite", settings=LITE)),
    "standard": Tier((256, 128), MANY, Recipe(settings=STANDARD)),
    "full": Tier(None, {"validation": False}, Recipe(pretrained=True)),
}


def tier_named(name: str) -> Tier:
    """Return a tier."""
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
    chosen, name = tier_named(tier), dataset or DATASET_OF_TIER[tier]
    defaults = chosen.options if name == DATASET_OF_TIER[tier] else {}
    return load_dataset(name, root or None, size=size or chosen.size, seed=seed, **{**defaults, **options})


def tier_recipe(tier: str, *, options: dict | None = None, **changes: object) -> Recipe:
    """Return a tier's recipe, changed; None keeps the tier's value.

    Args:
        options: the network's own.
        changes: `model`, `backbone`, `pretrained`, and fields of TrainSettings.
    """
    recipe = tier_named(tier).recipe
    given = {name: value for name, value in changes.items() if value is not None}
    network = {name: given.pop(name) for name in ("model", "backbone", "pretrained") if name in given}
    for name in given:
        check_choice("training", "setting", name, TrainSettings.__dataclass_fields__)
    return replace(recipe, **network, options=options or {}, settings=replace(recipe.settings, **given))


def load_or_train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    device: torch.device | str = "auto",
    folder: Path | None = None,
    compute: Compute | None = None,
    progress: bool = True,
    retrain: bool = False,
) -> tuple[TwoStream, dict]:
    """Return the trained victim in eval mode and its checkpoint card.

    It is keyed by recipe, training data, seed, the code of all training and `compute`, the precision it is trained in
    (None: float32), and kept in `folder`, or in `files.cache_folder`. A killed training resumes at its last epoch.
    Card keys beside those of `trained_card`: compute, threads, versions, and `shipped`, what `weights` has it under.

    Args:
        retrain: train it even where it comes with the package.
    """
    device, seed = pick_device(device), whole("training", "seed", seed)
    asked, retrain = described(recipe, dataset, seed), retrain or compute is not None
    how = [compute.describe()] if compute else ["retrained"] if retrain else []
    key = stable_hash([*asked, source_hash(*VICTIM_CODE), *how])
    path = (folder or cache_folder() / "victims" / key) / "victim.safetensors"
    with exclusive(path.parent, whole=path):
        if not (existed := path.exists()) and not retrain and (given := shipped(stable_hash(asked), recipe.model)):
            model, card = given
            print(f"victim: {card['shipped']}, as it comes with the package", file=sys.stderr)
            save_checkpoint(path, model, card | {"key": key})
        elif not existed:  # another process may have trained it while this one waited
            compute, note = compute or Compute(), path.with_name("state.pt")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = untrained(recipe, dataset, recipe.pretrained)
            how = {"key": key, "seed": seed, "state_path": note, "progress": progress}
            with compute.on(model, device):
                card = trained_card(model, recipe, dataset, recipe.settings, device, **how)
            card |= {"compute": compute.describe(), "threads": torch.get_num_threads(), "versions": versions()}
            save_checkpoint(path, model.cpu(), card)
            note.unlink(missing_ok=True)
    model, card = load_checkpoint(path)
    if card.get("key") != key:
        raise InputError(f"{path} holds a victim of other settings, data, seed or code; choose another folder")
    check_trained(card, path)
    if existed or "shipped" in card:
        (found_shipped if "shipped" in card else found_trained)[key] = card["seconds"]
    return model.to(device).eval(), card


def check_trained(card: dict, path: Path) -> None:
    """Raise InputError unless a card tells of its training what is read of `trained_card`."""
    try:
        check_table("it", {name: card[name] for name in TRAINED}, TRAINED)
        for epoch in (card["history"][-1], *card["history"]):
            check_number("it", "accuracy", epoch["accuracy"], 0, 1)
    except (LookupError, TypeError, InputError):
        raise damaged(path) from None


def described(recipe: Recipe, dataset: Dataset, seed: int) -> list:
    """Return what decides a victim beside code and machine, as plain values."""
    trained_on = {name: value for name, value in dataset.describe().items() if name not in TEST_ONLY}
    return [recipe.describe(), trained_on, fingerprint(dataset.train, dataset), seed]


def shipped(asked: str, network: str) -> tuple[TwoStream, dict] | None:
    """Return the victim, and its card, that comes with the package for what is asked; None where there is none.

    There is none either where the code's probes of its training and its data give other numbers than they did.

    Raises:
        InputError: where the weights are not those that the package came with.
    """
    for path in WEIGHTS.glob(f"*-{asked}.safetensors"):
        with clear_unreadable(path):
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != read_json(WEIGHTS / "sha256.json").get(path.name):
            raise InputError(f"{path} is damaged or another file; install the package again, or train with --retrain")
        if not _behaves(network):
            return None
        model, card = load_checkpoint(path)
        return model, {name: value for name, value in card.items() if name != "model"} | {"shipped": path.stem}
    return None


def _behaves(network: str) -> bool:
    """Return whether training and rendered data are still what they were.

    It is asked once for each state of the code, of what is installed and of what they were.
    """
    parts = f"victim/{network}", "data/synthetic"
    key = stable_hash([source_hash(), versions(), *map(entries().get, parts)])
    note = cache_folder() / "behaves" / f"{network}-{key}.json"
    if not note.exists():
        found = [differs(part, PROBES[part]()) for part in parts]
        write_atomically(note, json.dumps([found, stable_hash(found)]).encode())
    with clear_unreadable(note):
        text = note.read_bytes()
    try:
        found, seal = parse_json(text)
        if seal != stable_hash(found):
            raise ValueError
        return not any(found)
    except (TypeError, ValueError):
        raise damaged(note) from None


def untrained(recipe: Recipe, dataset: Dataset, pretrained: bool) -> TwoStream:
    """Return a recipe's network for the identities of a data set, drawn from torch's global generator."""
    if not dataset.train:
        raise InputError(f"{dataset.name} has no training images; train on another data set")
    count = len({record.identity for record in dataset.train})
    return build(recipe.model, count, recipe.backbone, pretrained, **recipe.options)


def trained_card(
    model: TwoStream, recipe: Recipe, dataset: Dataset, settings: TrainSettings, device: torch.device, **options
) -> dict:
    """Train a network in place, `options` as of `training.train`, and return what its card says of that."""
    started = time.perf_counter()
    history = train(model, dataset, settings, device=device, **options)
    return {
        "key": options["key"],
        "recipe": recipe.describe(),
        "dataset": dataset.describe(),
        "seed": options["seed"],
        "history": history,
        "seconds": sum(epoch["seconds"] for epoch in history),
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_mib": peak_memory_mib(device),
        "device": device_name(device),
    }


# Of each network beside the tiers: what it is trained with, as `tier_recipe` takes it, at the lite tier unless told.
CENTRED = {"hetero-centre": {"options": {"hetero_centre": 0.5}}}
HARD, ADP = {"triplet": "hard"}, {"triplet": "adp"}
VARIANTS: dict[str, dict[str, dict]] = {
    "agw": {
        "hard triplet": HARD,
        "adp triplet": ADP,
        "no triplet": {"triplet": "none"},
        "shuffled": {"shuffle_labels": True},
        "grey": {"tier": "full", "augmentation": Augmentation(pad=2, grey=0.5)},
        "average": {"options": {"gem_p": 1.0, "non_local_channels": 0}},
    },
    "caj": {"adp triplet": {**ADP, "augmentation": Augmentation(pad=4, erasing=0.2)}, "hard triplet": HARD},
    "deen": {"flipped": {"tier": "full", "options": {"flip": True}}},
    "ide": CENTRED,
    "pcb": CENTRED,
}


def victim(model: str) -> Found:
    """Return what training a network does: first losses in float32, then two epochs of every way it is trained."""
    found: Found = {}
    for tier, kind in TIERS.items():
        settings, halves = kind.recipe.settings, 1 if tier == "full" else 2
        places = np.arange(halves * settings.epochs) / halves
        found[f"schedule of {tier}"] = plain([learning_rate_factor(settings, place) for place in places])

    def trained(dtype: torch.dtype = torch.float64, tier: str = "lite", epochs: int = 2, **way) -> Found:
        recipe = tier_recipe(tier, model=model, backbone="lite", pretrained=False, epochs=epochs, **way)
        with aside(dtype) as folder:
            how = {"seed": 1, "device": "cpu", "folder": folder / "victim", "progress": False}
            network, card = load_or_train(recipe, data := Painted(), **how)
            return {**history(card["history"]), "features": features(network, data, data.test)}

    first = trained(torch.float32, epochs=1)
    found |= named("float32", {name: first[name] for name in ("identity_loss", "other")})
    for name, way in ({tier: {"tier": tier} for tier in TIERS} | VARIANTS.get(model, {})).items():
        found |= named(name, trained(**way))
    return found


def synthetic() -> Found:
    """Return statistics of rendered crops: both spectra of both difficulties, heat, other sizes, another population."""
    found: Found = {}
    ways = {"easy": {"difficulty": "easy"}, "hard": {"difficulty": "hard"}, "thermal": {"thermal": True}}
    ways |= {"small": {"size": (64, 32)}, "other people": {"seed": 1}}
    with aside(torch.float32):
        for name, given in ways.items():
            data = tier_dataset("lite", **given)
            tests = (side for trial in data.trials() for side in trial)
            found[f"{name} records"] = counted([data.train, data.val, data.tuning, *tests])
            some = ((data.train, (0, 9)), (data.val, (13, 20)), (data.test, (2, 7, 700)))
            chosen = [side[place] for side, places in some for place in places]
            found |= named(name, crops(data, chosen if name in ("easy", "hard") else chosen[:2]))
        data = tier_dataset("standard")
        return found | named("standard", crops(data, data.test[5:15:9]))


PROBES: dict[str, Callable[[], Found]] = {f"victim/{model}": partial(victim, model) for model in NETWORKS}
PROBES["data/synthetic"] = synthetic
