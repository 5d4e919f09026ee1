"""The numbers of a run card, made small: columns for tables, short decimals, and lists of numbers in one packed text.

Without this package a file reads so. Where a table has a number a row and all are equal, it stands once; rows of
`scores*`, `clean` and `within` are the directions, those of `anatomy` clean and attacked of each. What `scores_8_bit`,
`scores_query` and `scores_clean` do not say is as in `scores`. A short decimal within 5e-7 of n / `trials` is that.
"20/360" is a list of 20 numbers in 360ths, rounded to six places; its numerators are next in the card's `lists`::

    raw = lzma.decompress(base64.b85decode(card["lists"]), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1}])
    numerators = np.frombuffer(raw, "u1").reshape(4, -1).T.copy().view("<i4")  # set by set, direction by direction
"""

from __future__ import annotations

import base64
import itertools
import lzma
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vireid_lite.data import Modality
from vireid_lite.metrics.anatomy import QueryState
from vireid_lite.metrics.evaluation import direction_name

DIRECTIONS = tuple(direction_name(modality) for modality in Modality)

# Always said: they decide the defaults of what stands beside them, or are there or not.
SAID = ("name", "model", "mode", "difficulty", "modification")
SETS = ("scores", "scores_8_bit", "scores_query", "scores_clean")
CHANCE = ("chance", "chance_cmc", "minimum")
LISTS = ("cmc", "chance_cmc", "identity_rank1", "identity_AP", "identity_queries")
FIELDS = ("rank1", "mAP", "mINP", "cmc", "trials", *CHANCE, *LISTS[2:], "difference", "broken")
STATES = ("clean", "attacked")  #: of an anatomy
MEASURED = ("craft_seconds", "train_seconds", "wall_seconds", "peak_memory_mib")
LZMA = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA1}]}


def packed(results: dict) -> dict:
    """Return results as the file holds them; history, anatomy and what was measured to six significant digits."""
    found = {name: _six_digits(item) if name in MEASURED else item for name, item in results.items()}
    numerators: list[int] = []
    for name in (name for name in (*SETS, "clean", "within") if name in results):
        rows = []
        for way in DIRECTIONS:
            row, trials = dict(results[name][way]), results["scores"][way]["trials"]
            count = sum(trial["valid_queries"] for trial in trials)
            if name in SETS:
                row["trials"] = count if _trial(row, count) == trials else dict(enumerate(row["trials"]))
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
        ways = [results["anatomy"][way] for way in DIRECTIONS]
        for field in ("rank1", "mAP"):
            if [way[state][field] for way in ways for state in STATES] == _scored(results, field):
                del found["anatomy"][field]
    if results.get("history"):
        steps = mapped(results["history"], _six_digits)
        found["history"] = {name: [step[name] for step in steps] for name in steps[0]}
    raw = np.array(numerators, "<i4").view("u1").reshape(-1, 4).T.tobytes()
    return {**found, "lists": base64.b85encode(lzma.compress(raw, **LZMA)).decode()}


def unpacked(card: dict) -> dict:
    """Return the opposite of `packed`."""
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
                own_trials = row["trials"]
                row["trials"] = list(own_trials.values()) if isinstance(own_trials, dict) else _trial(row, own_trials)
                row = {field: row[field] for field in FIELDS if field in row}
            found[name][way] = row
    if "anatomy" in card:
        whole = {field: _scored(found, field) for field in ("rank1", "mAP")} | card["anatomy"]
        states = iter(_rows({name: whole[name] for name in whole if name in QueryState._fields}, 4))
        rest = _rows({name: item for name, item in whole.items() if name not in QueryState._fields}, 2)
        found["anatomy"] = {way: {s: next(states) for s in STATES} | rest[n] for n, way in enumerate(DIRECTIONS)}
    if card.get("history"):
        steps = zip(*card["history"].values(), strict=True)
        found["history"] = [dict(zip(card["history"], step, strict=True)) for step in steps]
    return found


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


def _trial(scores: dict, count: int) -> list[dict]:
    """Return the only trial of some scores, of so many valid queries."""
    return [{**{name: scores[name] for name in FIELDS[:3]}, "valid_queries": count}]


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
    if isinstance(rows[0], dict) and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return {name: _columns([row[name] for row in rows]) for name in rows[0]}
    return rows[0] if all(row == rows[0] for row in rows) else rows


def _rows(columns: object, count: int) -> list:
    """Return the opposite of `_columns`."""
    if isinstance(columns, dict):
        found = {name: _rows(column, count) for name, column in columns.items()}
        return [{name: column[row] for name, column in found.items()} for row in range(count)]
    return columns if isinstance(columns, list) else [columns] * count
