"""Run cards: one small JSON file a run, with everything its numbers depend on and nothing of anybody's images.

A card leaves out what a run has by default; `read_card` puts it back. `card_key` hashes only the rest, so that a new
option, whose default is what was done before, renames no card; to change a default is to change what cards mean.

Without this package a file reads so. Where a table has a number a row and all are equal, it stands once; rows of
`scores*`, `clean` and `within` are the directions, those of `anatomy` clean and attacked of each. What `scores_8_bit`,
`scores_query` and `scores_clean` do not say is as in `scores`. A short decimal within 5e-7 of n / `trials` is that.
"20/360" is a list of 20 numbers in 360ths, rounded to six places; its numerators are next in the card's `lists`:

    raw = lzma.decompress(base64.b85decode(card["lists"]), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1}])
    numerators = np.frombuffer(raw, "u1").reshape(4, -1).T.copy().view("<i4")  # set by set, direction by direction
"""

from __future__ import annotations

import base64
import inspect
import itertools
import json
import lzma
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vireid_lite.acceleration import Compute
from vireid_lite.anatomy import QueryState
from vireid_lite.attacks import Modification, build_attack
from vireid_lite.behaviour import made_with
from vireid_lite.data import DATASETS, Modality, load_dataset
from vireid_lite.errors import InputError
from vireid_lite.evaluation import direction_name
from vireid_lite.parameters import TIERS as DATASET_OF_TIER
from vireid_lite.provenance import stable_hash, write_atomically
from vireid_lite.victims import Recipe, tier_named

SCHEMA = 2
CARDS = "*-s*-*.json"  # the file names of `card_name`
DIRECTIONS = tuple(direction_name(modality) for modality in Modality)
REQUIRED = ("schema", "key", "kind", "tier", "dataset", "victim", "attack", "seed", "scores", "made_with")
CONFIGURATION = ("tier", "dataset", "victim", "attack", "seed", "split", "modification", "surrogate", "compute")
# Always said: they decide the defaults of what stands beside them, or are there or not.
SAID = ("name", "model", "mode", "difficulty", "modification")
OWN_LOSSES = ("ide", "pcb", "ddag", "deen")  # networks that read no `TrainSettings.triplet`
SETS = ("scores", "scores_8_bit", "scores_query", "scores_clean")
CHANCE = ("chance", "chance_cmc", "minimum")
LISTS = ("cmc", "chance_cmc", "identity_rank1", "identity_AP", "identity_queries")
FIELDS = ("rank1", "mAP", "mINP", "cmc", "trials", *CHANCE, *LISTS[2:], "difference", "broken")
STATES = ("clean", "attacked")  # of an anatomy
MEASURED = ("craft_seconds", "train_seconds", "wall_seconds", "peak_memory_mib")
LZMA = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA1}]}


def described(recipe: Recipe) -> dict:
    """Return a recipe as cards hold it: without the triplet where the network brings all its losses itself."""
    found = json.loads(json.dumps(recipe.describe()))
    if recipe.model in OWN_LOSSES:
        del found["settings"]["triplet"]
    return found


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
    known = inspect.signature(DATASETS[name]).parameters.values()
    options = {option.name: option.default for option in known if option.name != "root"} | options
    return {"name": name, **options, "size": list(chosen.size or options["size"])}


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


def shortened(value: dict, usual: dict) -> dict:
    """Return what differs from the usual, table by table."""
    short = {}
    for name, item in value.items():
        table = isinstance(item, dict) and isinstance(usual.get(name), dict)
        differs = shortened(item, usual[name]) if table else name not in usual or item != usual[name]
        if differs or name in SAID:
            short[name] = differs if table else item
    return short


def completed(short: dict, usual: dict) -> dict:
    """Return the opposite of `shortened`."""
    both = {name for name, item in short.items() if isinstance(item, dict) and isinstance(usual.get(name), dict)}
    return {**usual, **short, **{name: completed(short[name], usual[name]) for name in both}}


def _rounded(value: object) -> object:
    """Return plain values with floats to eight places: one file writes 2/255, another 0.0078431373."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items() if name != "records"}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 8) if isinstance(value, float) else value


def card_key(configuration: dict) -> str:
    """Return the key of a run: what it asks for beside the defaults; not its name, whose images, its code or results."""
    short = shortened(_rounded(configuration), _rounded(defaults(configuration)))
    return stable_hash({name: short[name] for name in CONFIGURATION if short.get(name) is not None})


def records(configuration: dict) -> list[str | None]:
    """Return the fingerprints of the images of a run and of its surrogate, None where there is none."""
    networks = configuration, configuration.get("surrogate", {"dataset": {}})
    return [network["dataset"].get("records") for network in networks]


def card_name(configuration: dict) -> str:
    """Return the file name of a run's card: readable parts, then enough of its key and records to be unique."""
    dataset, attack = configuration["dataset"], (configuration["attack"] or {}).get("name")
    parts = [configuration["kind"], attack, configuration["tier"], dataset["name"], dataset.get("difficulty")]
    unique = stable_hash([card_key(configuration), *records(configuration)])[:8]
    return "-".join(str(part) for part in parts if part) + f"-s{configuration['seed']}-{unique}.json"


def write_card(folder: Path, configuration: dict, results: dict) -> Path:
    """Write a card whole or not at all, and return its path.

    configuration: kind, tier, dataset, victim, attack, seed ..., all plain values. results: scores and the rest.
    """
    card = {"schema": SCHEMA, "key": card_key(configuration), **shortened(configuration, defaults(configuration))}
    card |= {"made_with": made_with(configuration), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    card |= _packed(json.loads(json.dumps(results, default=plain)))
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
    card |= completed({name: card[name] for name in CONFIGURATION if name in card}, defaults(card))
    return _unpacked(card) if "lists" in card else card


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
    cards = list(cards)
    stale = sum(is_stale(card) for card in cards)
    return f"{stale} of {len(cards)} run cards are stale: the code behind them has changed." if stale else ""


def _packed(results: dict) -> dict:
    """Return results as the file holds them; history, anatomy and what was measured to six significant digits."""
    found = {name: _six_digits(item) if name in MEASURED else item for name, item in results.items()}
    numerators: list[int] = []
    for name in (name for name in (*SETS, "clean", "within") if name in results):
        rows = []
        for way in DIRECTIONS:
            row, trials = dict(results[name][way]), results["scores"][way]["trials"]
            count = sum(trial["valid_queries"] for trial in trials)
            if name in SETS:
                same = [{field: row[field] for field in FIELDS[:3]} | {"valid_queries": count}] == row["trials"]
                row["trials"] = count if same else dict(enumerate(row["trials"]))
                of = {"cmc": count, "identity_rank1": math.lcm(*row["identity_queries"]), "identity_queries": 1}
                for field in (field for field in LISTS if field in row):
                    own, denominator = _numerators(row[field], of.get(field, 10**6))
                    numerators += own
                    row[field] = f"{len(own)}/{denominator}".replace("1000000", "1e6")
            rows.append(mapped(row, lambda value, count=count: _cut(value, count)))
        found[name] = _columns(rows)
        if name in SETS[1:]:
            found[name] = shortened(found[name], _usual_scores(found, name))
    if "anatomy" in results:
        ways = mapped([results["anatomy"][way] for way in DIRECTIONS], _six_digits)
        found["anatomy"] = _columns([way[state] for way in ways for state in STATES])
        found["anatomy"] |= _columns([{name: way[name] for name in way if name not in STATES} for way in ways])
        for field in ("rank1", "mAP"):
            if [way[state][field] for way in results["anatomy"].values() for state in STATES] == _scored(
                results, field
            ):
                del found["anatomy"][field]
    if results.get("history"):
        steps = mapped(results["history"], _six_digits)
        found["history"] = {name: [step[name] for step in steps] for name in steps[0]}
    raw = np.array(numerators, "<i4").view("u1").reshape(-1, 4).T.tobytes()
    return {**found, "lists": base64.b85encode(lzma.compress(raw, **LZMA)).decode()}


def _unpacked(card: dict) -> dict:
    """Return the opposite of `_packed`."""
    raw = np.frombuffer(lzma.decompress(base64.b85decode(card.pop("lists")), **LZMA), "u1")
    numerators = iter(raw.reshape(4, -1).T.copy().view("<i4").ravel().tolist())
    found = dict(card)
    for name in (name for name in (*SETS, "clean", "within") if name in card):
        own = completed(card[name], _usual_scores(card, name)) if name in SETS[1:] else card[name]
        found[name] = {}
        for way, row, usual in zip(DIRECTIONS, _rows(own, 2), _rows(card["scores"], 2), strict=True):
            trials = usual["trials"]
            count = sum(t["valid_queries"] for t in trials.values()) if isinstance(trials, dict) else trials
            row = mapped(row, lambda value, count=count: _whole(value, count))
            if name in SETS:
                for field in (field for field in LISTS if field in row):
                    length, denominator = (int(float(part)) for part in row[field].split("/"))
                    values = list(itertools.islice(numerators, length))
                    row[field] = values if denominator == 1 else [round(value / denominator, 6) for value in values]
                single = [{field: row[field] for field in FIELDS[:3]} | {"valid_queries": row["trials"]}]
                row["trials"] = list(row["trials"].values()) if isinstance(row["trials"], dict) else single
                row = {field: row[field] for field in FIELDS if field in row}
            found[name][way] = row
    if "anatomy" in card:
        whole = {field: _scored(found, field) for field in ("rank1", "mAP")} | card["anatomy"]
        states = {name: whole[name] for name in whole if name in QueryState._fields}
        rest = _rows({name: item for name, item in card["anatomy"].items() if name not in states}, 2)
        states = _rows(states, 4)
        found["anatomy"] = {
            way: {**dict(zip(STATES, states[2 * n : 2 * n + 2], strict=True)), **rest[n]}
            for n, way in enumerate(DIRECTIONS)
        }
    if card.get("history"):
        steps = zip(*card["history"].values(), strict=True)
        found["history"] = [dict(zip(card["history"], step, strict=True)) for step in steps]
    return found


def _scored(card: dict, field: str) -> list:
    """Return the clean and the attacked score of each direction, as an anatomy of the only trial repeats them."""
    return [card[name][way][field] for way in DIRECTIONS for name in ("clean", "scores_8_bit")]


def _usual_scores(card: dict, name: str) -> dict:
    """Return what a set of scores is where it says nothing: `scores`, of which the 8-bit ones repeat no chance."""
    return {field: v for field, v in card["scores"].items() if name != "scores_8_bit" or field not in CHANCE}


def _numerators(values: list, usual: int) -> tuple[list[int], int]:
    """Return a list's numerators and their denominator: the usual one if it gives every value back, or a million."""
    for denominator in (usual, 10**6):
        numerators = [round(value * denominator) for value in values]
        if denominator <= 10**6 and [round(n / denominator, 6) for n in numerators] == values:
            break
    return numerators, denominator


def _cut(value: object, count: int) -> object:
    """Return a float as a short decimal if `_whole` gives it back."""
    short = round(value, 6) if isinstance(value, float) else value
    return short if _whole(short, count) == value else value


def _whole(value: object, count: int) -> object:
    """Return n / count for a short decimal beside it, anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value) or round(value, 6) != value:
        return value
    near = round(value * count) / count
    return near if near != value and abs(near - value) <= 5e-7 else value


def _six_digits(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def mapped(value: object, change: Callable) -> object:
    """Return plain values with everything in their tables and lists changed."""
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}
    return [mapped(item, change) for item in value] if isinstance(value, list) else change(value)


def _columns(rows: list) -> Any:
    """Return rows as columns, a value once where all rows have it."""
    if isinstance(rows[0], dict):
        return {name: _columns([row[name] for row in rows]) for name in rows[0]}
    return rows[0] if all(row == rows[0] for row in rows) else rows


def _rows(columns: object, count: int) -> list:
    """Return the opposite of `_columns`."""
    if isinstance(columns, dict):
        found = {name: _rows(column, count) for name, column in columns.items()}
        return [{name: column[row] for name, column in found.items()} for row in range(count)]
    return columns if isinstance(columns, list) else [columns] * count
