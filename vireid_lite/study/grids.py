"""The papers' tables as grids: which runs a row needs, what of them is done, and what stands beside each number.

A grid is a TOML file of `study/grids` (or a reader's own). It names data sets, directions, victims, attacks, budgets
and seeds and, by tier, the tables of a campaign's run that they stand for; each run writes one card. A card counts
wherever it came from: what a campaign ran in the same configuration is not run again.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from vireid_lite.data import Modality
from vireid_lite.errors import InputError, check_choice
from vireid_lite.metrics.evaluation import direction_name
from vireid_lite.study.campaign import Plan, Results, Run, check, merge, parse, read_toml, where
from vireid_lite.study.cards import is_stale, spread
from vireid_lite.victims import tier_named

FOLDER = Path(__file__).parent / "grids"
GRIDS = ("smoke", "cmps-tables", "cmps-figures", "feature-level-tables", "transfer")
# What became of a reported number; where two tiers' cards say two things, what stands first.
STATUS = ("rerun on the same data", "a stand-in disagrees", "a stand-in agrees", "a stand-in is undecided")
STATUS += ("clean row of a stand-in", "open without licensed data", "not built")
MARGIN = 0.1  #: of rank-1 or mAP, below which a fall is no spoiled ranking
OFFICIAL = {"sysu": "infrared", "llcm": "infrared", "regdb": "visible"}  #: query modality
REPORTED = "source table dataset setting query gallery victim attack metric percent"  #: columns
QUERIES = {modality.name.lower(): direction_name(modality) for modality in Modality}

# What a file, a [[table]] of it and what a name stands for may hold, and what a table is where it says nothing.
CONTENT = {"title": str, "source": str, "seeds": list, "table": list}
CONTENT |= dict.fromkeys(("data", "victims", "attacks", "not-built"), dict)
AXES = ("query", "data", "victims", "attacks", "eps", "surrogates", "learned-on")
TABLE = dict.fromkeys(("name", "dataset", "setting", "note"), str) | dict.fromkeys((*AXES, "seeds"), list)
USUAL = {"query": list(QUERIES), "attacks": ["none"], "eps": [""], "surrogates": [""], "learned-on": [""]}
USUAL |= {"data": [], "victims": [], "dataset": "", "setting": ""}
SETTABLE = ("dataset", "victim", "train", "attack", "modified")
ENTRY = dict.fromkeys((*SETTABLE, "each", "grid", "compute"), dict)
NETWORK = SETTABLE[:3]


@dataclass(frozen=True)
class Row:
    """One line of a table: a direction of a setting, and the runs (a seed or a split each) it is the mean of.

    Names are as the paper prints them (`reported.csv`). reason: why no run is built, or "".
    """

    table: str
    dataset: str
    setting: str
    query: str
    victim: str
    attack: str
    eps: str
    data: str
    surrogate: str
    learned_on: str
    runs: tuple[Run, ...] = field(repr=False)
    reason: str

    def __str__(self) -> str:
        parts = [self.table, self.dataset, self.setting, f"[{self.data}]", self.victim]
        parts += [f"from {self.surrogate}" if self.surrogate else "", self.learned_on, self.attack]
        return ", ".join(filter(None, [*parts, f"eps {self.eps}" if self.eps else "", QUERIES[self.query]]))


@dataclass(frozen=True)
class Grid:
    """A grid file at one tier. runs: every run once, the first seed of all rows before the second."""

    name: str
    title: str
    source: str
    tier: str
    rows: tuple[Row, ...]

    @property
    def runs(self) -> list[Run]:
        waves = itertools.chain(*itertools.zip_longest(*(row.runs for row in self.rows)))
        return list({run.key: run for run in waves if run is not None}.values())


def read_grid(
    name: str | Path,
    tier: str = "lite",
    *,
    seeds: Sequence[int] | None = None,
    settings: dict | None = None,
    only: str | None = None,
) -> Grid:
    """Return a shipped grid by name, or one of a TOML file, as it stands at a tier; InputError where it is none.

    Args:
        seeds: instead of the grid's own.
        settings: values for keys such as "train.epochs", set in every run (and surrogate) that has the table.
        only: keep the rows whose line, as a dry run prints it, holds this text.
    """
    path = FOLDER / f"{name}.toml" if name in GRIDS else Path(name)
    if path.suffix != ".toml":
        raise InputError(f"grid {name!r} is unknown; choose from {', '.join(GRIDS)}, or give a .toml file")
    tier_named(tier)
    for key in settings or {}:
        if key.partition(".")[0] not in SETTABLE or not key.partition(".")[2]:
            raise InputError(f"--set {key}: give TABLE.KEY=VALUE, of dataset, victim, train, attack or modified")
    content, rows, chosen = read_toml("grid", path), [], {} if seeds is None else {"seeds": list(seeds)}
    with where(f"grid {path.stem if name in GRIDS else path}"):
        check("it", content, CONTENT)
        if not content.get("table"):
            raise InputError("it has no [[table]]")
        for number, table in enumerate(content["table"], 1):
            with where(f"table {number}"):
                check("it", table, TABLE)
                if "name" not in table:
                    raise InputError("it has no name")
                own = {"seeds": content.get("seeds", [0]), **USUAL, **table, **chosen}
                rows += _rows(own, content, tier, settings or {})
        if only and not (rows := [row for row in rows if only.lower() in str(row).lower()]):
            raise InputError(f"no row holds {only!r}; --dry-run --verbose prints the rows")
    return Grid(path.stem, content.get("title", ""), content.get("source", ""), tier, tuple(rows))


def _rows(table: dict, content: dict, tier: str, settings: dict) -> list[Row]:
    """Return the rows of one [[table]] of a grid file."""
    for axis in (*AXES, "seeds"):
        if not table[axis]:
            raise InputError(f"{axis} must be a list of at least one value, got []")
    for query in table["query"]:
        check_choice("table", "query", query, QUERIES)
    rows, said = [], content.get("not-built", {})  # a reason by name, or one a tier
    missing = {name: why.get(tier, "") if isinstance(why, dict) else why for name, why in said.items()}
    for data, victim, attack, eps, surrogate, learned in itertools.product(*(table[axis] for axis in AXES[1:])):
        reason, runs = next(filter(None, map(missing.get, (victim, surrogate, attack))), ""), []
        if not reason:
            names = {"data": data, "victims": victim} | ({"attacks": attack} if attack != "none" else {})
            run = {"name": "bench", "tier": tier, "seeds": table["seeds"], **_tables(content, tier, settings, names)}
            if eps and "attack" in run:
                run = merge(run, {"attack": {"eps": settings.get("attack.eps", eps)}})
            if surrogate:
                # Every victim serves as target and, of another seed, as surrogate: none is trained for one role alone.
                its = _tables(content, tier, settings, {"data": learned or data, "victims": surrogate})
                its = {"victim": {}, "train": {}, **{key: its[key] for key in NETWORK if key in its}, "seed": "next"}
                run |= {"name": "transfer", "surrogate": its}
            runs = parse(run)
        printed = table["name"], table["dataset"], table["setting"].format(surrogate=surrogate, eps=eps)
        made_of = victim, attack, eps, data, surrogate, learned, tuple(runs), reason
        rows += [Row(*printed, query, *made_of) for query in table["query"]]
    return rows


def _tables(content: dict, tier: str, settings: dict, names: dict[str, str]) -> dict:
    """Return the tables of a run that names stand for: of each its "any", then the tier's own, then the settings.

    Between the last two stands what a name has for a tier on one data set, such as "full on regdb".
    """
    found: dict = {}
    tiers = ("any", "lite", "standard", "full")
    allowed = dict.fromkeys(
        (*tiers, *(f"{each} on {data}" for each in tiers for data in content.get("data", {}))), dict
    )
    for kind, name in names.items():
        known = content.get(kind, {})
        if name not in known:
            raise InputError(f"{kind} {name!r} is unknown; the grid names {', '.join(known) or 'none'}")
        check(f"{kind} {name}", known[name], allowed)
        for part in ("any", tier, f"{tier} on {names['data']}"):
            check(f"{kind} {name}, {part}", known[name].get(part, {}), ENTRY)
            found = merge(found, known[name].get(part, {}))
    for key, value in settings.items():
        part, _, option = key.partition(".")
        if part in NETWORK or found.get(part):
            found = merge(found, {part: {option: value}})
    return found


@cache
def reported() -> pd.DataFrame:
    """Return every number the two papers report, percent, one a row: the package's `grids/reported.csv`."""
    try:
        rows = pd.read_csv(path := FOLDER / "reported.csv", keep_default_na=False)
        if " ".join(rows.columns) != REPORTED or not rows.percent.between(0, 100).all():
            raise ValueError(f"columns {REPORTED}, the last from 0 to 100, are needed")
        return rows
    except (OSError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({said}); install the package again") from None


def _printed(row: Row, source: str) -> pd.DataFrame:
    """Return the reported numbers that a row is about."""
    rows, names = reported(), ["table", "dataset", "setting", "victim", "attack"]
    same = (rows[names] == [getattr(row, name) for name in names]).all(axis=1) & (rows.source == source)
    # Where a paper names no direction, the benchmark's official one is meant.
    unsaid = [""] if OFFICIAL.get(row.dataset, row.query) == row.query else []
    return rows[same & rows["query"].isin([row.query, *unsaid])]


def table(grid: Grid, results: Results) -> pd.DataFrame:
    """Return one line for each row of a grid, scores in percent, of attacked images as a file of 8 bits holds them.

    Columns: those of `Row` but its runs; done and runs (how many of its runs have a card); rank-1 and mAP, each as
    text "mean (lowest to highest)" over seeds and splits; rank-1 clean, on the same victims; chance low and high (the
    interval of rank-1) and minimum (of mAP); stale (cards); paper r1 and paper mAP where the
    paper prints them for this line, with "off r1" (ours minus the paper's) at tier full alone, where the data are the
    same.
    """
    lines = []
    for row in grid.rows:
        cards = [card for run in row.runs if (card := results.card(run))]
        line = {**vars(row), "done": len(cards), "runs": len(row.runs), "stale": sum(map(is_stale, cards))}
        line |= _scores(QUERIES[row.query], cards) if cards else {}
        printed = _printed(row, grid.source).drop_duplicates("metric").set_index("metric").percent
        line |= {f"paper {metric}": float(printed.get(metric, "nan")) for metric in ("r1", "mAP")}
        line |= {"off r1": line["mean"] - line["paper r1"]} if grid.tier == "full" and cards else {}
        lines.append(line)
    return pd.DataFrame(lines)


def _scores(direction: str, cards: list[dict]) -> dict:
    """Return a row's scores in percent, over the cards there are."""
    exact = [card["scores"][direction] for card in cards]
    scores = [card.get("scores_8_bit", card["scores"])[direction] for card in cards]
    clean = [card.get("clean", card.get("scores_clean", card["scores"]))[direction] for card in cards]
    return {
        "mean": statistics.fmean(100 * score["rank1"] for score in scores),
        "rank-1": spread(100 * score["rank1"] for score in scores),
        "mAP": spread(100 * score["mAP"] for score in scores),
        "rank-1 clean": spread(100 * score["rank1"] for score in clean),
        "chance low": 100 * min(score["chance"]["rank1"]["low"] for score in exact),
        "chance high": 100 * max(score["chance"]["rank1"]["high"] for score in exact),
        "minimum": 100 * min(score["minimum"]["mAP"] for score in exact),
    }


def status(results: Results, grids: Iterable[str] = GRIDS) -> pd.DataFrame:
    """Return `reported()` with what became of each number: columns grid, status (of `STATUS`) and reason.

    A number is rerun where cards of tier full exist for its line. Cards of another tier are a stand-in: a clean row, or
    what `_stand_in` says of the number's own score. It is open where neither exists, and not built, with the reason,
    where the grids say so or name no such line.
    """
    rows = reported().assign(grid="", status="not built", reason="no shipped grid has this line")
    for name, tier in itertools.product(grids, sorted({card["tier"] for card in results.cards} | {"lite", "full"})):
        grid = read_grid(name, tier)
        for row in grid.rows:
            cards = [card for run in row.runs if (card := results.card(run))]
            for index, metric in _printed(row, grid.source).metric.items():
                state = STATUS[-1 if row.reason else -2]
                if cards:
                    state = STATUS[0] if tier == "full" else _stand_in(row, metric, cards)
                if rows.at[index, "grid"] == "" or STATUS.index(state) < STATUS.index(rows.at[index, "status"]):
                    rows.loc[index, ["grid", "status", "reason"]] = [name, state, row.reason]
    return rows


def _stand_in(row: Row, metric: str, cards: list[dict]) -> str:
    """Return what cards of other data say of a printed score under attack: does theirs fall, too?

    It agrees where rank-1 or mAP falls clear of clean in every one of at least two seeds, and disagrees where each
    excludes a fall by `MARGIN`. All else is undecided: one seed, scores that nothing compares, and retrained victims.
    """
    if row.attack == "none":
        return "clean row of a stand-in"
    score, way = {"r1": "rank1", "mAP": "mAP"}.get(metric), QUERIES[row.query]
    compared = score and len(cards) > 1 and not any("modification" in card for card in cards)
    falls = [card["scores_8_bit"][way]["difference"][score] for card in cards] if compared else []
    if falls and all(fall["high"] < 0 for fall in falls):
        return "a stand-in agrees"
    spared = falls and all(fall["low"] > -MARGIN for fall in falls)
    return "a stand-in disagrees" if spared else "a stand-in is undecided"


def describe_plan(grid: Grid, found: Plan, verbose: bool = True) -> str:
    """Return what a dry run prints: what is done of every row, or of every table and victim, and the estimate."""
    todo, parts = {run.key for run in found.todo}, {}
    wide = max(len(row.table) for row in grid.rows)
    for row in grid.rows:
        parts.setdefault(f"{row}:" if verbose else f"{row.table:{wide}}  {row.victim:12} ", []).append(row)
    lines = [f"{grid.title} (tier {grid.tier})"]
    for name, rows in parts.items():
        runs = {run.key for row in rows for run in row.runs}
        reasons = " ".join(dict.fromkeys(f"not built: {row.reason}" for row in rows if row.reason))
        state = f"{len(runs - todo)} of {len(runs)} done" if runs else reasons
        lines.append(f"  {name} {state}"[: None if verbose else 100])
    many, done, unknown = len(found.todo), len(found.done), found.unknown
    lines.append(f"{many + done} runs: {done} done ({len(found.stale)} stale), {many} to do")
    about = f"about {found.seconds / 60:.0f} min for {many - unknown} of them, by the cards there are"
    guesses = [about] * (many > unknown) + [f"no card tells how long {unknown} of them take"] * (unknown > 0)
    return "\n".join([*lines, "; ".join(guesses)] if guesses else lines)


def describe(grid: Grid, results: Results) -> str:
    """Return a grid's tables as text: rank-1 in percent after the attack, clean, chance, and the paper's number."""
    lines = []
    for row, line in zip(grid.rows, table(grid, results).to_dict("records"), strict=True):
        text = f"not built: {row.reason}" if row.reason else "pending"
        if line["done"]:
            text = f"rank-1 {line['rank-1']} %, mAP {line['mAP']} %; clean {line['rank-1 clean']} %; "
            text += f"chance {line['chance low']:.1f} to {line['chance high']:.1f} %; {line['done']} of {line['runs']}"
            text += f"; the paper, on {row.dataset}: {line['paper r1']:.1f} %" if line["paper r1"] >= 0 else ""
        lines.append(f"{row}: {text}")
    return "\n".join(lines)
