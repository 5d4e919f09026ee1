"""The papers' tables as grids: which runs a row needs, what of them is done, and what stands beside each number.

A grid is a TOML file of `vireid_lite/grids` (or a reader's own). It names data sets, directions, victims, attacks,
budgets and seeds and, by tier, the runs they stand for; each run writes one card, as in a campaign. A card counts
wherever it came from: what a campaign ran in the same configuration is not run again.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from vireid_lite.campaign import Root, cell_key, checked, prepare, recipe_of, run_cells
from vireid_lite.cards import CARDS, is_stale, read_card
from vireid_lite.data import Modality
from vireid_lite.errors import InputError, fraction
from vireid_lite.files import stable_hash
from vireid_lite.metrics.evaluation import direction_name
from vireid_lite.tables import spread
from vireid_lite.victims import tier_named

FOLDER = Path(__file__).parent / "grids"

GRIDS = ("smoke", "cmps-tables", "cmps-figures", "feature-level-tables", "transfer")

CONFIGURATION = ("tier", "dataset", "victim", "attack", "seed", "split", "modification", "surrogate", "compute")

KEYS = {
    "": ("title", "source", "seeds", "data", "victims", "attacks", "not-built", "table"),
    "table": (
        *("name", "dataset", "setting", "data", "query", "victims", "attacks", "eps", "surrogates", "learned-on"),
        *("seeds", "note"),
    ),
    "entry": ("dataset", "victim", "train", "attack", "modified", "each", "compute"),
}

OFFICIAL = {"sysu": "infrared", "llcm": "infrared", "regdb": "visible"}  # query modality

QUERIES = {modality.name.lower(): direction_name(modality) for modality in Modality}


@dataclass(frozen=True)
class Row:
    """One line of a table: a direction of a setting, and the runs (a seed or a split each) it is the mean of.

    table, dataset, setting, query, victim, attack: as the paper prints them (`reported.csv`). data: what the runs use.
    surrogate, learned_on: where the attack is made on another network. reason: why no run is built, or "".
    """

    table: str
    dataset: str
    setting: str
    query: str
    victim: str
    attack: str
    eps: str
    data: str
    surrogate: str = ""
    learned_on: str = ""
    runs: tuple[dict, ...] = field(default=(), repr=False)
    reason: str = ""


@dataclass(frozen=True)
class Grid:
    """A grid file at one tier. runs: every run once, the first seed of all rows before the second."""

    name: str
    title: str
    source: str
    tier: str
    rows: tuple[Row, ...]

    @property
    def runs(self) -> list[dict]:
        waves = itertools.chain(*itertools.zip_longest(*(row.runs for row in self.rows)))
        return list({cell_key(run): run for run in waves if run is not None}.values())


def read_grid(
    name: str | Path,
    tier: str = "lite",
    *,
    seeds: Sequence[int] | None = None,
    settings: dict | None = None,
    only: str | None = None,
) -> Grid:
    """Return a shipped grid by name, or one of a TOML file, as it stands at a tier.

    seeds: instead of the grid's own. settings: values for keys such as "train.epochs" or "attack.gradients", set in
    every run that has the table (a surrogate's as well). only: keep the rows whose line, as a dry run prints it, holds
    this text. Raises InputError, one line, for what is not a grid, and where no row is kept.
    """
    path = FOLDER / f"{name}.toml" if name in GRIDS else Path(name)
    if name not in GRIDS and path.suffix != ".toml":
        raise InputError(f"grid {name!r} is unknown; choose from {', '.join(GRIDS)}, or give a .toml file")
    tier_named(tier)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"grid {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"grid {path} is not readable TOML: {error}") from None
    where = f"grid {path.stem if name in GRIDS else path}"
    _known(where, content, KEYS[""])
    tables = content.get("table", [])
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{where}: it has no [[table]]")
    rows = []
    for number, table in enumerate(tables, 1):
        here = f"{where}: table {number}"
        _known(here, table, KEYS["table"])
        if "name" not in table:
            raise InputError(f"{here}: it has no name")
        rows += _rows(here, table, content, tier, seeds, settings or {})
    if only:
        rows = [row for row in rows if only.lower() in f"{_title(row)}, {QUERIES[row.query]}".lower()]
        if not rows:
            raise InputError(f"{where}: no row holds {only!r}; --dry-run prints the rows")
    return Grid(path.stem, content.get("title", ""), content.get("source", ""), tier, tuple(rows))


def _known(where: str, table: object, keys: Sequence[str]) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{where}: a table is needed, got {table!r}")
    for key in table:
        if key not in keys:
            raise InputError(f"{where} has an unknown key {key!r}; it takes {', '.join(keys)}")


def _list(where: str, table: dict, key: str, default: list) -> list:
    values = table.get(key, default)
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: {key} must be a list of at least one value, got {values!r}")
    return values


def _entry(where: str, content: dict, kind: str, name: object, tier: str) -> dict:
    """Return what a named data set, victim or attack adds to a run at a tier: its "any", then the tier's own."""
    known = content.get(kind, {})
    if name not in known:
        raise InputError(f"{where}: {kind} {name!r} is unknown; the grid names {', '.join(known) or 'none'}")
    _known(f"{where}, {kind} {name}", known[name], ("any", "lite", "standard", "full"))
    merged: dict = {}
    for part in ("any", tier):
        if part in known[name]:
            _known(f"{where}, {kind} {name}, {part}", known[name][part], KEYS["entry"])
            _merge(merged, known[name][part])
    return merged


def _merge(run: dict, part: dict) -> dict:
    """Add a part's tables to a run's, key by key, in place; return the run."""
    for table, values in copy.deepcopy(part).items():
        run[table] = {**run.get(table, {}), **values} if isinstance(values, dict) else values
    return run


def _rows(where: str, table: dict, content: dict, tier: str, seeds: Sequence[int] | None, settings: dict) -> list[Row]:
    """Return the rows of one [[table]] of a grid file."""
    chosen = list(seeds) if seeds is not None else _list(where, {**content, **table}, "seeds", [0])
    queries = _list(where, table, "query", list(QUERIES))
    if wrong := [query for query in queries if query not in QUERIES]:
        raise InputError(f"{where}: query {wrong[0]!r} is unknown; choose from {', '.join(QUERIES)}")
    rows = []
    for data, victim, attack, eps, surrogate, learned in itertools.product(
        _list(where, table, "data", []),
        _list(where, table, "victims", []),
        _list(where, table, "attacks", ["none"]),
        _list(where, table, "eps", [""]),
        _list(where, table, "surrogates", [""]),
        _list(where, table, "learned-on", [""]),
    ):
        setting = table.get("setting", "").format(surrogate=surrogate, eps=eps)
        words = {"table": table["name"], "dataset": table.get("dataset", ""), "setting": setting, "data": data}
        words |= {"victim": victim, "attack": attack, "eps": eps, "surrogate": surrogate, "learned_on": learned}
        reasons = [content.get("not-built", {}).get(name) for name in (victim, attack)]
        if reason := next(filter(None, reasons), ""):
            rows += [Row(**words, query=query, reason=reason) for query in queries]
            continue
        run = {name: {} for name in ("dataset", "victim", "train", "attack", "modified", "surrogate", "compute")}
        run |= {"name": "bench", "tier": tier, "split": "test", "anatomy": False}
        for kind, name in (("data", data), ("victims", victim), ("attacks", attack)):
            if not (kind == "attacks" and name == "none"):
                _merge(run, _entry(where, content, kind, name, tier))
        if eps and run["attack"]:
            run["attack"]["eps"] = _budget(where, eps)
        if surrogate:
            its = {"dataset": {}, "victim": {}, "train": {}}
            for kind, name in (("data", learned or data), ("victims", surrogate)):
                _merge(its, _entry(where, content, kind, name, tier))
            its.pop("each", None)
            run |= {"name": "transfer", "surrogate": its}
        runs = _each(where, run, chosen, settings)
        rows += [Row(**words, query=query, runs=tuple(runs)) for query in queries]
    return rows


def _budget(where: str, eps: object) -> float:
    try:
        return fraction(eps)
    except ValueError as error:
        raise InputError(f"{where}: eps {eps!r}: {error} is needed") from None


def _each(where: str, run: dict, seeds: Sequence[int], settings: dict) -> list[dict]:
    """Return the run once for every seed and every combination of its "each" lists (RegDB's ten splits), checked."""
    for key, value in settings.items():
        name, _, option = key.partition(".")
        if name not in ("dataset", "victim", "train", "attack", "modified") or not option:
            raise InputError(f"--set {key}: give TABLE.KEY=VALUE, of dataset, victim, train, attack or modified")
        for part in (run, run["surrogate"]):
            if part and (name in ("dataset", "victim", "train") or part.get(name)):
                part.setdefault(name, {})[option] = value
    each = run.pop("each", {})
    runs = []
    for values in itertools.product(*each.values()):
        one = copy.deepcopy(run)
        one["dataset"] |= dict(zip(each, values, strict=True))
        for place, seed in enumerate(seeds):
            again = copy.deepcopy(one)
            if again["surrogate"]:
                # Every victim serves as target and, of another seed, as surrogate: none is trained for one role alone.
                again["surrogate"]["seed"] = seeds[(place + 1) % len(seeds)] if len(seeds) > 1 else seed + 1
                if each:
                    again["surrogate"]["dataset"] = {**again["dataset"], **again["surrogate"]["dataset"]}
            runs += checked(where, {**again, "seeds": [seed]})
    try:
        for one in runs:
            recipe_of(one["tier"], one)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return runs


class Results:
    """The run cards of a folder, found by what a run asks for; read once.

    Raises InputError for a card that cannot be read, naming it.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(Path(folder).glob(CARDS))
        self.cards = [read_card(path) for path in paths]
        self._names = {id(card): path.name for path, card in zip(paths, self.cards, strict=True)}
        self._by_configuration: dict[str, dict] = {}
        self._by_cell: dict[str, dict] = {}
        for card in sorted(self.cards, key=lambda card: (not is_stale(card), card["date"])):
            self._by_configuration[_configuration_key(card)] = card
            if "cell" in card:
                self._by_cell[card["cell"]] = card

    def name(self, card: dict) -> str:
        """Return the file name of one of these cards."""
        return self._names[id(card)]

    def card(self, run: dict, root: Root = None, data: bool = False) -> dict | None:
        """Return the newest card of a run that is not stale, else the newest, or None.

        data: whether the run's licensed data are at hand, so that a card of other images can be told apart.
        """
        if data or run["dataset"].get("name", _default(run)) == "synthetic":
            return self._by_configuration.get(_prepared_key(json.dumps(run, sort_keys=True), _hashable(root)))
        return self._by_cell.get(cell_key(run))


def _default(run: dict) -> str:
    return "synthetic" if run["tier"] != "full" else ""


def _configuration_key(configuration: dict) -> str:
    kept = {name: configuration[name] for name in CONFIGURATION if configuration.get(name) is not None}
    return stable_hash(_rounded(kept))


def _rounded(value: object) -> object:
    """Return plain values with floats to eight places: one grid writes 2/255, another 0.0078431373."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 8) if isinstance(value, float) else value


def _hashable(root: Root) -> tuple:
    return tuple(sorted(root.items())) if isinstance(root, dict) else (root,)


@cache
def _prepared_key(run: str, root: tuple) -> str:
    folder = dict(root) if root and isinstance(root[0], tuple) else root[0] if root else None
    return _configuration_key(prepare(json.loads(run), folder)[2])


@dataclass(frozen=True)
class Plan:
    """What a grid still has to run. todo: runs without a card, done: card names, stale: cards of code that changed.

    seconds: an estimate for `todo` from cards of the same kind, on whatever machine made those; unknown: how many of
    `todo` no card tells anything about.
    """

    todo: list[dict]
    done: list[str]
    stale: list[str]
    seconds: float
    unknown: int


def plan(grid: Grid, results: Results, root: Root = None, data: bool = False, rerun_stale: bool = False) -> Plan:
    """Return what is done and what is to do. data: as in `Results.card`. rerun_stale: count stale cards as to do."""
    todo, done, stale = [], [], []
    for run in grid.runs:
        card = results.card(run, root, data)
        if card is not None and is_stale(card):
            stale.append(results.name(card))
        if card is None or (rerun_stale and is_stale(card)):
            todo.append(run)
        else:
            done.append(results.name(card))
    known = [_estimate(run, results.cards) for run in todo]
    return Plan(todo, done, stale, sum(filter(None, known)), known.count(None))


def _estimate(run: dict, cards: Iterable[dict]) -> float | None:
    """Return the median seconds of cards of the run's tier, network and attack; None where there are none."""
    model, attack = run["victim"].get("model", "agw"), run["attack"].get("name")

    def alike(card: dict) -> bool:
        named = (card["attack"] or {}).get("name")
        changed = ("modification" in card) == bool(run["modified"])
        return (card["tier"], card["victim"]["model"], named) == (run["tier"], model, attack) and changed

    seconds = [card["wall_seconds"] for card in cards if alike(card)]
    return statistics.median(seconds) if seconds else None


def run_grid(
    grid: Grid,
    out: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    threads: int = 1,
    device: str = "auto",
    root: Root = None,
    rerun_stale: bool = False,
    progress: bool = True,
) -> dict[str, list[str]]:
    """Run what a grid has no card for in `out`; return card names under "done", "ran" and "stale".

    workers, scheduler: processes of a Dask cluster on this machine, or the address of a running one; otherwise one run
    after the other. threads: PyTorch's, of a run; on a CPU the scores are the same to the bit at the same number, here
    as on a cluster of this machine (workers of a scheduler have what Dask was told: --nthreads). A killed grid
    resumes. Raises InputError as a campaign does.
    """
    found = plan(grid, Results(out), root, data=True, rerun_stale=rerun_stale)
    report = {"done": found.done, "ran": [], "stale": found.stale}
    options = {
        "cluster": True,
        "threads": threads,
        "device": device,
        "root": root,
        "progress": progress,
        "title": grid.name,
    }
    for written in run_cells(found.todo, out, workers, scheduler=scheduler, **options):
        report["ran"].append(written.name)
    return report


@cache
def reported() -> pd.DataFrame:
    """Return every number the two papers report, percent, one a row: the package's `grids/reported.csv`."""
    return pd.read_csv(FOLDER / "reported.csv", keep_default_na=False)


def _printed(row: Row, source: str) -> pd.DataFrame:
    """Return the reported numbers that a row is about."""
    rows = reported()
    keep = (rows.source == source) & (rows.table == row.table) & (rows.dataset == row.dataset)
    keep &= (rows.setting == row.setting) & (rows.victim == row.victim) & (rows.attack == row.attack)
    # Where a paper names no direction, the benchmark's official one is meant.
    unsaid = ["", row.query] if OFFICIAL.get(row.dataset, row.query) == row.query else [row.query]
    return rows[keep & rows["query"].isin(unsaid)]


def table(grid: Grid, results: Results, precision: str = "8-bit") -> pd.DataFrame:
    """Return one line for each row of a grid, scores in percent.

    Columns: those of `Row` but its runs; done and runs (how many of its runs have a card); rank-1 and mAP, each as
    text "mean (lowest to highest)" over seeds and splits; rank-1 clean, on the same victims; chance low and high (the
    interval of rank-1) and minimum (of mAP); seconds (median run); stale (cards); paper r1 and paper mAP where the
    paper prints them for this line, with "off r1" (ours minus the paper's) at tier full alone, where the data are the
    same.
    """
    lines = []
    for row in grid.rows:
        cards = [card for card in (results.card(run) for run in row.runs) if card is not None]
        line = {name: getattr(row, name) for name in Row.__dataclass_fields__ if name != "runs"}
        line |= {"done": len(cards), "runs": len(row.runs), "stale": sum(map(is_stale, cards))}
        line |= _scores(row, cards, precision)
        printed = _printed(row, grid.source)
        for metric in ("r1", "mAP"):
            values = printed[printed.metric == metric].percent
            line[f"paper {metric}"] = float(values.iloc[0]) if len(values) else float("nan")
        if grid.tier == "full" and cards:
            line["off r1"] = line["mean"] - line["paper r1"]
        lines.append(line)
    return pd.DataFrame(lines)


def _scores(row: Row, cards: list[dict], precision: str) -> dict:
    """Return a row's scores in percent, over the cards there are."""
    if not cards:
        return {}
    direction = QUERIES[row.query]
    field_ = "scores" if precision == "float" else "scores_8_bit"
    scores = [card.get(field_, card["scores"])[direction] for card in cards]
    exact = [card["scores"][direction] for card in cards]
    rank1, mean_ap = ([100 * score[name] for score in scores] for name in ("rank1", "mAP"))
    clean = [card["clean"][direction] if "clean" in card else card["scores"][direction] for card in cards]
    clean = [card.get("scores_clean", {}).get(direction, score) for card, score in zip(cards, clean, strict=True)]
    chance = [score["chance"]["rank1"] for score in exact]
    line = {
        "mean": statistics.fmean(rank1),
        "rank-1": spread(rank1),
        "mAP": spread(mean_ap),
        "rank-1 clean": spread([100 * score["rank1"] for score in clean]),
        "chance low": 100 * min(level["low"] for level in chance),
        "chance high": 100 * max(level["high"] for level in chance),
        "minimum": 100 * min(score["minimum"]["mAP"] for score in exact),
        "seconds": statistics.median(card["wall_seconds"] for card in cards),
    }
    if "broken" in scores[0]:
        line["broken"] = spread([100 * score["broken"] for score in scores])
    return line


STATUS = (
    "rerun on the same data",
    "mechanism shown on synthetic data",
    "open without licensed data",
    "not built",
)


def status(results: Results, grids: Iterable[str] = GRIDS) -> pd.DataFrame:
    """Return `reported()` with what became of each number: columns grid, status (of `STATUS`) and reason.

    A number is rerun where cards of tier full exist for its line; its mechanism is shown where cards of another tier
    do; it is open where neither does, and not built, with the reason, where the grids say so or name no such line.
    """
    rows = reported().copy()
    rows["grid"], rows["status"], rows["reason"] = "", "not built", "no shipped grid has this line"
    rank = {name: place for place, name in enumerate(STATUS)}
    tiers = {card["tier"] for card in results.cards} | {"lite", "full"}
    for name in grids:
        for tier in sorted(tiers):
            grid = read_grid(name, tier)
            for row in grid.rows:
                printed = _printed(row, grid.source)
                if printed.empty:
                    continue
                state, reason = "open without licensed data", ""
                if row.reason:
                    state, reason = "not built", row.reason
                elif any(results.card(run) is not None for run in row.runs):
                    state = "rerun on the same data" if tier == "full" else "mechanism shown on synthetic data"
                for index in printed.index:
                    fresh = rows.at[index, "grid"] == ""
                    if fresh or rank[state] < rank[rows.at[index, "status"]]:
                        rows.loc[index, ["grid", "status", "reason"]] = [name, state, reason]
    return rows


def describe_plan(grid: Grid, found: Plan) -> str:
    """Return what a dry run prints: every row with what is done of it, rows that are not built, and the estimate."""
    todo = {cell_key(run) for run in found.todo}
    lines = [f"{grid.title} (tier {grid.tier})"]
    for row in grid.rows:
        open_ = sum(cell_key(run) in todo for run in row.runs)
        state = f"not built: {row.reason}" if row.reason else f"{len(row.runs) - open_} of {len(row.runs)} done"
        lines.append(f"  {_title(row)}, {QUERIES[row.query]}: {state}")
    runs = len(found.todo) + len(found.done)
    lines.append(f"{runs} runs: {len(found.done)} done ({len(found.stale)} stale), {len(found.todo)} to do")
    if found.todo:
        known = len(found.todo) - found.unknown
        guess = f"about {found.seconds / 60:.0f} min for {known} of them, by the cards there are" if known else ""
        rest = f"no card tells how long {found.unknown} of them take" if found.unknown else ""
        lines.append("; ".join(filter(None, (guess, rest))))
    return "\n".join(lines)


def _title(row: Row) -> str:
    parts = [row.table, row.dataset, row.setting, f"[{row.data}]", row.victim]
    parts += [f"from {row.surrogate}" if row.surrogate else "", row.learned_on, row.attack]
    parts += [f"eps {row.eps}" if row.eps else ""]
    return ", ".join(filter(None, parts))


def describe(grid: Grid, results: Results) -> str:
    """Return a grid's tables as text: rank-1 in percent after the attack, clean, chance, and the paper's number."""
    lines = []
    for row, line in zip(grid.rows, table(grid, results).to_dict("records"), strict=True):
        if row.reason:
            text = f"not built: {row.reason}"
        elif not line["done"]:
            text = "pending"
        else:
            text = f"rank-1 {line['rank-1']} %, mAP {line['mAP']} %; clean {line['rank-1 clean']} %; "
            text += f"chance {line['chance low']:.1f} to {line['chance high']:.1f} %; {line['done']} of {line['runs']}"
            if line["paper r1"] == line["paper r1"]:
                text += f"; the paper, on {row.dataset}: {line['paper r1']:.1f} %"
        lines.append(f"{_title(row)}, {QUERIES[row.query]}: {text}")
    return "\n".join(lines)
