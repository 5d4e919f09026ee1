"""Run cards: one small JSON file a run, with everything its numbers depend on and nothing of anybody's images.

A card leaves out what a run has by default; `read_card` puts it back. `card_key` hashes only the rest, so that a new
option, whose default is what was done before, renames no card; to change a default is to change what cards mean.
How its numbers are packed, and read without this package, is said in `packing`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from vireid_lite.attacks import Modification, build_attack
from vireid_lite.behaviour import made_with
from vireid_lite.data import DATASETS, load_dataset
from vireid_lite.errors import TIERS as DATASET_OF_TIER
from vireid_lite.errors import InputError
from vireid_lite.files import stable_hash, write_atomically
from vireid_lite.machine import Compute
from vireid_lite.study.packing import completed, packed, shortened, unpacked
from vireid_lite.victims import Recipe, tier_named

SCHEMA = 2
CARDS = "*-s*-*.json"  #: the file names of `card_name`
REQUIRED = ("schema", "key", "kind", "tier", "dataset", "victim", "attack", "seed", "scores", "made_with")
CONFIGURATION = ("tier", "dataset", "victim", "attack", "seed", "split", "modification", "surrogate", "compute")


def described(recipe: Recipe) -> dict:
    """Return a recipe as cards hold it."""
    return json.loads(json.dumps(recipe.describe()))


@cache
def data_defaults(tier: str, name: str | None, difficulty: str | None) -> dict:
    """Return what a tier's data set is where nothing is said, as cards hold it; known without the data themselves."""
    chosen, name = tier_named(tier), name or DATASET_OF_TIER[tier]
    options = dict(chosen.options) if name == DATASET_OF_TIER[tier] else {}
    if name == "synthetic":
        options |= {"difficulty": difficulty} if difficulty else {}
        return load_dataset(name, size=chosen.size, **options).describe()
    if name not in DATASETS:
        raise InputError(f"data set {name!r} is unknown; choose from {', '.join(DATASETS)}")
    reader = DATASETS[name]
    options = {"seed": 0, **{each: usual for each, (usual, _) in reader.choices.items()}, **options}
    return {"name": name, **options, "size": list(chosen.size or reader.usual_size)}


def defaults(run: dict) -> dict:
    """Return the configuration of a run that says no more than this one's tier, names, mode and difficulty."""
    tier, data, recipe = run["tier"], run.get("dataset", {}), tier_named(run["tier"]).recipe
    recipe = replace(recipe, model=run.get("victim", {}).get("model", recipe.model))
    found = {"dataset": data_defaults(tier, data.get("name"), data.get("difficulty")), "victim": described(recipe)}
    if attack := run.get("attack"):
        mode = {"mode": attack["mode"]} if "mode" in attack else {}
        found["attack"] = {**build_attack(attack["name"], **mode).describe(), "identities": None}
    for name, kind in (("modification", Modification), ("compute", Compute)):
        if name in run:
            found[name] = json.loads(json.dumps(asdict(kind())))
    if "surrogate" in run:
        found["surrogate"] = defaults({**run["surrogate"], "tier": tier})
    return found


def _rounded(value: object) -> object:
    """Return plain values with floats to eight places: one file writes 2/255, another 0.0078431373."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items() if name != "records"}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 8) if isinstance(value, float) else value


def card_key(configuration: dict) -> str:
    """Return the key of a run: what it asks for beside the defaults; not its name, whose images, code or results."""
    short = shortened(_rounded(configuration), _rounded(defaults(configuration)))
    return stable_hash({name: short[name] for name in CONFIGURATION if short.get(name) is not None})


def records(configuration: dict) -> list[str | None]:
    """Return the fingerprints of the images of a run and of its surrogate, None where there is none."""
    other = configuration.get("surrogate", {"dataset": {}})
    return [data.get("records") for data in (configuration["dataset"], other["dataset"])]


def card_name(configuration: dict) -> str:
    """Return the file name of a run's card: readable parts, then enough of its key and records to be unique."""
    dataset, attack = configuration["dataset"], (configuration["attack"] or {}).get("name")
    parts = [configuration["kind"], attack, configuration["tier"], dataset["name"], dataset.get("difficulty")]
    unique = stable_hash([card_key(configuration), *records(configuration)])[:8]
    return "-".join(str(part) for part in parts if part) + f"-s{configuration['seed']}-{unique}.json"


def write_card(folder: Path, configuration: dict, results: dict) -> Path:
    """Write the card of a run's configuration, plain values, and its results, whole or not at all; return its path."""
    card = {"schema": SCHEMA, "key": card_key(configuration), **shortened(configuration, defaults(configuration))}
    card |= {"made_with": made_with(configuration), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    card |= packed(json.loads(json.dumps(results, default=plain)))
    lines = (f"{json.dumps(name)}:{json.dumps(item, separators=(',', ':'))}" for name, item in card.items())
    path = folder / card_name(configuration)
    write_atomically(path, ("{" + ",\n".join(lines) + "}\n").encode())
    return path


def plain(value: object) -> object:
    """Return a NumPy value as JSON has it, floats in arrays rounded to six places."""
    if isinstance(value, np.ndarray):
        return [round(item, 6) if isinstance(item, float) else item for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a run card")


def read_card(path: Path) -> dict:
    """Return a card, its defaults and lists put back. Raises InputError where the file is not one."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable run card ({error}); delete it and run its campaign again") from None
    missing = [name for name in REQUIRED if not isinstance(card, dict) or name not in card]
    if missing or card["schema"] != SCHEMA:
        what = f"lacks {missing[0]!r}" if missing else f"has schema {card['schema']}, not {SCHEMA}"
        raise InputError(f"{path} {what}, so it is not a run card of this version; move it elsewhere")
    try:
        card |= completed({name: card[name] for name in CONFIGURATION if name in card}, defaults(card))
        return unpacked(card) if "lists" in card else card
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, lzma.LZMAError) as error:
        raise InputError(f"{path} is not a readable run card ({error}); move it elsewhere") from None


def read_cards(folder: Path, **wanted: object) -> list[dict]:
    """Return the folder's run cards in name order, only those whose top-level fields equal `wanted`."""
    cards = [read_card(path) for path in sorted(Path(folder).glob(CARDS))]
    return [card for card in cards if all(card.get(name) == value for name, value in wanted.items())]


def is_stale(card: dict) -> bool:
    """Return whether a part of the card's run behaves otherwise now than when it was made, or has no entry."""
    made = made_with(card)
    return card["made_with"] != made or not all(made.values())


def stale_note(cards: Iterable[dict]) -> str:
    """Return one sentence for a page: how many of its cards were made by code that has changed since."""
    stale = [is_stale(card) for card in cards]
    return f"{sum(stale)} of {len(stale)} run cards are stale: the code behind them has changed." if any(stale) else ""
