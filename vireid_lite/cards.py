"""Run cards: one JSON file a run, with everything its numbers depend on and nothing of anybody's images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from vireid_lite.behaviour import made_with
from vireid_lite.errors import InputError
from vireid_lite.files import stable_hash, write_atomically

SCHEMA = 1

CARDS = "*-s*-*.json"  # the file names of `card_name`

REQUIRED = ("schema", "key", "kind", "tier", "dataset", "victim", "attack", "seed", "scores", "made_with")


def card_key(configuration: dict) -> str:
    """Return the key of a run: its configuration, data and seed, not its code and not its results."""
    return stable_hash(configuration)


def card_name(configuration: dict) -> str:
    """Return the file name of a run's card: readable parts, then enough of the key to be unique."""
    dataset = configuration["dataset"]
    attack = (configuration["attack"] or {}).get("name")
    parts = [configuration["kind"], attack, configuration["tier"], dataset["name"], dataset.get("difficulty")]
    return "-".join(str(p) for p in parts if p) + f"-s{configuration['seed']}-{card_key(configuration)[:8]}.json"


def write_card(folder: Path, configuration: dict, results: dict, made: dict[str, str] | None = None) -> Path:
    """Write a card whole or not at all, and return its path.

    configuration: kind, tier, dataset, victim, attack, seed, all plain values. results: scores and the rest.
    made: `behaviour.made_with` of the configuration, where the run began with it.
    """
    card = {
        "schema": SCHEMA,
        "key": card_key(configuration),
        **configuration,
        **results,
        "made_with": made or made_with(configuration),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    path = folder / card_name(configuration)
    text = json.dumps(card, indent=1, default=plain)
    # A list of numbers stands on one line, so that a card stays small and its changes readable.
    text = re.sub(r"\[[\s\d.,eE+-]+\]", lambda found: " ".join(found[0].split()), text)
    write_atomically(path, (text + "\n").encode())
    return path


def plain(value: object) -> object:
    """Return a NumPy value as JSON has it, floats rounded to six places."""
    if isinstance(value, np.ndarray):
        return [round(item, 6) if isinstance(item, float) else item for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a run card")


def read_card(path: Path) -> dict:
    """Return a card. Raises InputError where the file is not one."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable run card ({error}); delete it and run its campaign again") from None
    missing = [name for name in REQUIRED if not isinstance(card, dict) or name not in card]
    if missing or card["schema"] != SCHEMA:
        what = f"lacks {missing[0]!r}" if missing else f"has schema {card['schema']}, not {SCHEMA}"
        raise InputError(f"{path} {what}, so it is not a run card of this version; move it elsewhere")
    return card


def read_cards(folder: Path, **wanted: object) -> list[dict]:
    """Return the folder's run cards in name order, only those whose top-level fields equal `wanted`."""
    cards = [read_card(path) for path in sorted(Path(folder).glob(CARDS))]
    return [card for card in cards if all(card.get(name) == value for name, value in wanted.items())]


def is_stale(card: dict) -> bool:
    """Return whether a part of the card's run behaves otherwise now than when it was made, or has no entry."""
    made = made_with(card)
    return card["made_with"] != made or not all(made.values())


def stale_note(cards: Iterable[dict]) -> str:
    """Return one sentence for a page: how many of its cards were made by code that behaved otherwise."""
    cards = list(cards)
    stale = sum(is_stale(card) for card in cards)
    return f"{stale} of {len(cards)} run cards are stale: the code behind them has changed." if stale else ""
