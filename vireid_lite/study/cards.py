"""Run cards: one small JSON file a run, with everything its numbers depend on and nothing of anybody's images.

A card leaves out what a run has by default; `read_card` puts it back. `card_key` hashes only the rest, so that a new
option, whose default is what was done before, renames no card; to change a default is to change what cards mean. What
does not stand in the file as it is, table by table, is read without this package so::

    json.loads(lzma.decompress(base64.b85decode(card["packed"])))
"""

import base64
import json
import lzma
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from vireid_lite.attacks import Modification, build_attack
from vireid_lite.behaviour import made_with
from vireid_lite.data import DATASETS, Modality, load_dataset
from vireid_lite.errors import TIERS as DATASET_OF_TIER
from vireid_lite.errors import InputError, check_choice, check_number, check_table
from vireid_lite.files import UNSEALED, check_seal, parse_json, readable, sealed, stable_hash, write_atomically
from vireid_lite.machine import Compute
from vireid_lite.metrics.evaluation import direction_name
from vireid_lite.victims import tier_named

SCHEMA = 3  # 2: read beside the defaults of the former lite victim
CARDS = "*-s*-*.json"  #: the file names of `card_name`
# What every card has, and of what kind; of a run's configuration the key holds the rest.
REQUIRED = {"schema": int, **dict.fromkeys(("key", "kind", "tier", "date"), str), "seed": int}
REQUIRED |= {**dict.fromkeys(("dataset", "victim", "scores", "made_with"), dict), "attack": dict | None}
REQUIRED["wall_seconds"] = int | float
CONFIGURATION = ("tier", "dataset", "victim", "attack", "seed", "split", "modification", "surrogate", "compute")
# Always said: they decide the defaults of what stands beside them, or are there or not.
SAID = ("name", "model", "mode", "difficulty", "modification")
EXACT = ("scores", "scores_8_bit", "scores_query", "scores_clean", "clean", "within")  #: what is not rounded
SAME = ("tier", "dataset", "victim", "seed")  #: what two cards of one victim share
SCORES = ("rank1", "mAP")  #: what the file shows of "clean" and "scores", and what an anatomy repeats unrounded
DIRECTIONS = tuple(direction_name(modality) for modality in Modality)
OPTIONAL = {"modification": Modification, "compute": Compute}
LZMA = [{"id": lzma.FILTER_LZMA1, "pb": 0, "dict_size": 2**16}]


def data_described(tier: str, given: dict) -> dict:
    """Return a tier's data set, with what is given of name and options, as cards hold it; no data need be there."""
    return _data(tier, json.dumps(given))


@cache
def _data(tier: str, options: str) -> dict:
    given, chosen = json.loads(options), tier_named(tier)
    name = given.pop("name", None) or DATASET_OF_TIER[tier]
    own = chosen.options if name == DATASET_OF_TIER[tier] else {}
    if name == "synthetic":
        return load_dataset(name, **{"size": chosen.size, **own, **given}).describe()
    check_choice("dataset", "name", name, DATASETS)
    usual = {"name": name, "seed": 0} | {each: first for each, (first, _) in DATASETS[name].choices.items()} | own
    usual["size"] = list(chosen.size or DATASETS[name].usual_size)
    for option in given:
        check_choice(name, "option", option, usual)
    return {**usual, **given}


def defaults(run: dict) -> dict:
    """Return the configuration of a run that says no more than this one's tier, names, mode and difficulty."""
    tier, recipe = run["tier"], tier_named(run["tier"]).recipe
    recipe = replace(recipe, model=run.get("victim", {}).get("model", recipe.model))
    data = {name: item for name, item in run.get("dataset", {}).items() if name in ("name", "difficulty")}
    found = {"dataset": data_described(tier, data), "victim": recipe.describe()}
    if attack := run.get("attack"):
        found["attack"] = {**_usual(attack), "identities": None}
        found["attack"] |= {"start": _usual(attack["start"])} if "start" in attack else {}
    found |= {part: asdict(kind()) for part, kind in OPTIONAL.items() if part in run}
    if "surrogate" in run:
        found["surrogate"] = defaults({**run["surrogate"], "tier": tier})
    return json.loads(json.dumps(found))


def _usual(attack: dict) -> dict:
    """Return what describes an attack that says no more than this one's name and mode."""
    return build_attack(attack["name"], **({"mode": attack["mode"]} if "mode" in attack else {})).describe()


def shortened(value: dict, usual: dict) -> dict:
    """Return what differs from the usual, table by table."""
    short = {}
    for name, item in value.items():
        table = isinstance(item, dict) and isinstance(usual.get(name), dict)
        own = shortened(item, usual[name]) if table else item
        if name in SAID or (own if table else name not in usual or item != usual[name]):
            short[name] = own
    return short


def completed(short: dict, usual: dict) -> dict:
    """Return the opposite of `shortened`."""
    both = {name for name, item in short.items() if isinstance(item, dict) and isinstance(usual.get(name), dict)}
    return {**usual, **short, **{name: completed(short[name], usual[name]) for name in both}}


def card_key(configuration: dict) -> str:
    """Return the key of a run: what it asks for beside the defaults; not its name, whose images, code or results."""

    def alike(value: dict) -> dict:  # one file writes 2/255, another 0.0078431373
        bare = {"object_hook": lambda table: {name: item for name, item in table.items() if name != "records"}}
        return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 8), **bare)

    short = shortened(alike(configuration), alike(defaults(configuration)))
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


def what_ran(name: str) -> str:
    """Return the end of a card's file name: what ran, whatever the name of the run."""
    return name[-13:]


def write_card(folder: Path, configuration: dict, results: dict) -> Path:
    """Write the card of a run's configuration, plain values, and its results, whole or not at all; return its path."""
    card = {"schema": SCHEMA, "key": card_key(configuration), **shortened(configuration, defaults(configuration))}
    card |= {"made_with": made_with(configuration), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    card |= {"seal": UNSEALED.decode(), **packed(results)}
    lines = (f"{json.dumps(name)}:{json.dumps(item, separators=(',', ':'))}" for name, item in card.items())
    path = folder / card_name(configuration)
    write_atomically(path, sealed(("{" + ",\n".join(lines) + "}\n").encode()))
    return path


def packed(results: dict) -> dict:
    """Return results as the file holds them: six digits of what is no score, tables compressed."""

    def short(table: dict) -> dict:
        rounded = {name: float(f"{item:.6g}") for name, item in table.items() if isinstance(item, float)}
        return {**table, **{name: item for name, item in rounded.items() if name not in SCORES}}

    text = json.dumps(results, default=plain)
    exact = {name: item for name, item in json.loads(text).items() if name in EXACT}
    whole = json.loads(text, object_hook=short) | exact
    shown = {name: item for name, item in whole.items() if name not in (*EXACT, "anatomy", "history")}
    for name in (name for name in ("clean", "scores") if name in whole):
        shown[name] = {way: {score: row[score] for score in SCORES} for way, row in whole[name].items()}
    rest = json.dumps(shortened(whole, shown), separators=(",", ":")).encode()
    return {**shown, "packed": base64.b85encode(lzma.compress(rest, lzma.FORMAT_ALONE, filters=LZMA)).decode()}


def plain(value: object) -> object:
    """Return a NumPy value as JSON has it, floats in arrays rounded to six places."""
    if isinstance(value, np.ndarray):
        return [round(item, 6) if isinstance(item, float) else item for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a run card")


def read_card(path: Path) -> dict:
    """Return a card, its defaults and packed numbers put back. Raises InputError where the file is not one.

    A card that was edited or damaged after it was written is refused by its seal; older cards, without one, are read.
    """
    try:
        card = parse_json(text := path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable run card ({error}); delete it and run its campaign again") from None
    missing = [name for name in REQUIRED if not isinstance(card, dict) or name not in card]
    if missing or card["schema"] != SCHEMA:
        what = f"lacks {missing[0]!r}" if missing else f"has schema {card['schema']}, not {SCHEMA}"
        raise InputError(f"{path} {what}, so it is not a run card of this version; move it elsewhere")
    try:
        check_seal(text.encode(), card.pop("seal", None))
        card |= completed({name: card[name] for name in CONFIGURATION if name in card}, defaults(card))
        rest = card.pop("packed", None)
        card = completed(parse_json(lzma.decompress(base64.b85decode(rest))), card) if rest else card
        check_table("it", card, REQUIRED, others=True)
        if card["key"] != card_key(card):
            raise ValueError("its key is of another run")
        for name in filter(card.get, EXACT):
            needed = {"within": {"clean"}, "scores": {*SCORES, "chance", "minimum"}}.get(name, {*SCORES})
            if card[name].keys() != set(DIRECTIONS) or any(needed - row.keys() for row in card[name].values()):
                raise ValueError(f"{name} lacks a direction or a score")
            _check_shares(name, card[name])
        return card
    except (LookupError, TypeError, ValueError, AttributeError, lzma.LZMAError) as error:
        raise InputError(f"{path} is not a readable run card ({error}); move it elsewhere") from None


def _check_shares(name: str, value: object) -> None:
    """Raise InputError unless every number is a share, or of a difference; counts apart, and what had none to break."""
    listed = name.split()[-1].startswith(("cmc", "chance_cmc", "trials", "identity_"))
    if isinstance(value, dict) or (isinstance(value, list) and listed):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_shares(f"{name} {key}", item)
    elif not name.endswith("broken"):
        check_number("scores", name, value, -1, 2**53 if re.search("queries|moved", name) else 1)


def read_cards(folder: Path, **wanted: object) -> list[dict]:
    """Return the folder's run cards in name order, only those whose top-level fields equal `wanted`."""
    cards = [read_card(path) for path in sorted(readable(Path(folder)).glob(CARDS))]
    return [card for card in cards if all(card.get(name) == value for name, value in wanted.items())]


def is_stale(card: dict) -> bool:
    """Return whether a part of the card's run behaves otherwise now than when it was made, or has no entry."""
    made = made_with(card, card["made_with"])
    return card["made_with"] != made or not all(made.values())


def same_behaviour(first: dict, second: dict) -> bool:
    """Return whether the parts that two cards share behaved alike when either was made."""
    one, other = (card.get("made_with", {}) for card in (first, second))
    shared = one.keys() & other.keys()
    return one == other or (bool(shared) and all(one[part] == other[part] for part in shared))


def victim_of(card: dict) -> str:
    """Return what says on which victim a card is, its training apart."""
    return str([card[part] for part in SAME])


def same_training(first: dict, second: dict) -> bool:
    """Return whether two cards of one recipe, data set and seed tell of one training of the victim.

    A training differs a little from machine to machine: its clean mAP, by more than a thousandth, gives it away.
    """
    clean = [[row["mAP"] for row in card.get("clean", card["scores"]).values()] for card in (first, second)]
    return max(abs(one - two) for one, two in zip(*clean, strict=True)) < 1e-3


def stale_note(cards: Iterable[dict]) -> str:
    """Return one sentence for a page: how many of its cards were made by code that has changed since."""
    stale = [is_stale(card) for card in cards]
    return f"{sum(stale)} of {len(stale)} run cards are stale: the code behind them has changed." if any(stale) else ""


def spread(values: Iterable[float]) -> str:
    """Return "mean (lowest to highest)" of some seeds' scores in percent, one decimal."""
    values = np.asarray(list(values), dtype=float)
    return f"{values.mean():.1f}" + (f" ({values.min():.1f} to {values.max():.1f})" if len(values) > 1 else "")
