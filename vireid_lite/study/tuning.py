"""Tuning: settings of an attack drawn by a seed and tried on one victim, the best of them on a second.

A campaign's [[tune]] table takes what a [[run]] takes, two seeds of victims that no evidence is on, and

- draw: what is tuned, by option of the attack: a list of values, or { low = .., high = .. } for a number even on a log
  scale. One is how many gradients it has: `gradients` of a universal attack, `steps` of an image-specific one;
- trials, finalists, doublings (16, 4, 2): how many settings the first victim tries, how many of them the second, and
  how often, at most, the gradients of the winner are doubled.

The settings are a Latin hypercube (McKay et al. 1979), so that each range is covered evenly. The winner is where mAP
falls furthest, the mean over both victims and both directions. It is run to its end where twice the gradients gain less
than half a point; otherwise twice is what it gets. Trials are run cards in the cache, so that a killed tuning goes on;
all trials of one attack on one victim then stand in one small card.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vireid_lite.attacks import UniversalAttack
from vireid_lite.data import Modality
from vireid_lite.errors import InputError, check_number, check_table, whole
from vireid_lite.files import (
    UNSEALED,
    cache_folder,
    check_seal,
    parse_json,
    readable,
    sealed,
    stable_hash,
    write_atomically,
)
from vireid_lite.study.campaign import ASIDE, RUN, Root, Run, cells, completed_tables, merge, parse, tables_of, where
from vireid_lite.study.cards import DIRECTIONS, defaults, is_stale, read_card, same_training, shortened
from vireid_lite.study.run import trials_of

EVIDENCE = range(10)  #: seeds of the victims that evidence is on, by which no setting is chosen
ENOUGH = 0.005  #: of mAP, what twice the gradients must gain to be worth it
TUNED = "tuned_*.json"  #: the file names of tuning cards; none is one of `cards.CARDS`
SEARCH = {"draw": dict, "trials": int, "finalists": int, "doublings": int}
COUNTS = ("gradients", "steps")
# Beyond these a knob cannot go, or need not: whether more gradients would help is what doublings tell.
NATURAL = {"momentum": (0, 1), "step_share": (0, 2), "restarts": (1, math.inf)}
NATURAL |= dict.fromkeys(COUNTS, (math.inf, -math.inf))
SAME = ("schema", "tier", "dataset", "victim", "attack", "split", "search", "made_with")  #: of both cards of a tuning
CARD = {"tier": str, "seed": int, "clean": list, "trials": list, "seconds": int, "date": str}
CARD |= dict.fromkeys(("dataset", "victim", "attack", "search", "made_with"), dict)

Trial = tuple[tuple, int]  #: a setting, the values of what is drawn, in its order; and the victim's seed


class Tuned(NamedTuple):
    """What a search ended with."""

    setting: dict
    fall: float  #: of mAP, the mean over both victims and directions
    edges: list[str]  #: what is best at the outermost value tried, natural limits apart: the best may lie beyond
    gain: float | None  #: of mAP, by the last doubling of the gradients; None where none was asked for

    @property
    def ended(self) -> bool:
        """Whether it is run to its end."""
        return self.gain is not None and self.gain < ENOUGH


@dataclass(frozen=True)
class Search:
    """How settings are looked for, whatever is tuned."""

    draw: dict
    seeds: list[int]
    trials: int = 16
    finalists: int = 4
    doublings: int = 2

    def __post_init__(self) -> None:
        if len(self.seeds) != 2 or len({*map(str, self.seeds), *map(str, EVIDENCE)}) < 2 + len(EVIDENCE):
            wanted = f"two different victims, and none of {EVIDENCE[0]} to {EVIDENCE[-1]}, which evidence is on"
            raise InputError(f"seeds: {wanted}; got {self.seeds}")
        whole("tune", "trials", self.trials, 2, 1000)
        whole("tune", "finalists", self.finalists, 1, self.trials)
        whole("tune", "doublings", self.doublings, 0, 6)
        for knob, values in self.draw.items():
            if isinstance(values, dict):
                check_table(f"draw, {knob}", values, dict.fromkeys(("low", "high"), object))
                check_number(f"draw, {knob}", "low", values.get("low"), 1e-12)
                check_number(f"draw, {knob}", "high", values.get("high"), values["low"])
            elif not isinstance(values, list) or not values or any(isinstance(each, list | dict) for each in values):
                raise InputError(f"draw, {knob}: a list of values, or low and high, is needed; got {values!r}")

    @property
    def settings(self) -> list[tuple]:
        """The settings to try; numbers of a range have two digits, so that they can be typed."""
        rng, columns = np.random.default_rng(self.seeds[0]), []
        for values in self.draw.values():
            shares = (rng.permutation(self.trials) + rng.random(self.trials)) / self.trials
            if isinstance(values, dict):
                low, ratio = values["low"], values["high"] / values["low"]
                columns.append([float(f"{low * ratio**share:.2g}") for share in shares])
            else:
                columns.append([values[int(share * len(values))] for share in shares])
        return list(dict.fromkeys(zip(*columns, strict=True)))

    def after(self, falls: dict[Trial, list[float]]) -> tuple[list[Trial], Tuned | None]:
        """Return the trials to run next, given how far mAP fell in others; where there are none, what came out."""

        def fall(setting: tuple, seeds: list[int]) -> float:
            return float(np.mean([falls[setting, seed] for seed in seeds]))

        first, settings = self.seeds[:1], self.settings
        if todo := [(setting, *first) for setting in settings if (setting, *first) not in falls]:
            return todo, None
        best = sorted(settings, key=lambda setting: -fall(setting, first))[: self.finalists]
        if todo := [(setting, self.seeds[1]) for setting in best if (setting, self.seeds[1]) not in falls]:
            return todo, None
        setting, gain = max(best, key=lambda setting: fall(setting, self.seeds)), None
        edges = [knob for knob, *tried in zip(self.draw, setting, *settings, strict=True) if self._edge(knob, *tried)]
        for _ in range(self.doublings):
            more = tuple(2 * v if knob in COUNTS else v for knob, v in zip(self.draw, setting, strict=True))
            if todo := [(more, seed) for seed in self.seeds if (more, seed) not in falls]:
                return todo, None
            gain = fall(more, self.seeds) - fall(setting, self.seeds)
            if gain < ENOUGH:
                break
            setting = more
        return [], Tuned(dict(zip(self.draw, setting, strict=True)), fall(setting, self.seeds), edges, gain)

    def _edge(self, knob: str, value: object, *tried: object) -> bool:
        """Return whether nothing was tried beyond a value on one side, though there is something to try."""
        if len(set(tried)) == 1 or any(type(each) not in (int, float) for each in tried):
            return False
        known, (least, most) = self.draw[knob], NATURAL.get(knob, (-math.inf, math.inf))
        low, high = (known["low"], known["high"]) if isinstance(known, dict) else (min(known), max(known))
        return (value == min(tried) and low > least) or (value == max(tried) and high < most)


@dataclass(frozen=True)
class Tuning:
    """One attack to tune: the tables of its runs, and how."""

    tables: dict
    search: Search

    def run(self, trial: Trial) -> Run:
        """Return the run of a trial."""
        setting, seed = trial
        knobs = dict(zip(self.search.draw, setting, strict=True))
        (run,) = parse({**merge(self.tables, {"attack": knobs}), "grid": {}, "each": {}, "seeds": [seed]})
        return run

    def check(self, root: Root = None) -> None:
        """Raise InputError unless its galleries have the test's size, on which mAP depends."""
        run = self.run((self.search.settings[0], self.search.seeds[0]))
        for modality in Modality:
            ours, test = (len(trials_of(run.open(root), modality, each)[0].gallery) for each in (run.split, "test"))
            if ours != test:
                mend = f"let dataset have as many {run.split}_identities as test_identities"
                raise InputError(f"tune: a gallery of {run.split} has {ours} images, of test {test}; {mend}")

    def about(self, seed: int, root: Root = None) -> dict:
        """Return what the card of a victim says beside results."""
        asked = self.run((self.search.settings[0], seed)).with_images(root)
        short = shortened(asked, defaults(asked))
        short["attack"] = {k: v for k, v in short["attack"].items() if k != "steps" and k not in self.search.draw}
        parts = ("tier", "dataset", "victim", "attack", "split", "seed")
        return {"schema": 1, **{name: short[name] for name in parts}, "search": asdict(self.search)}

    def name(self, seed: int, root: Root = None) -> str:
        """Return the file name of the card of a victim."""
        about = self.about(seed, root)
        data, attack = about["dataset"], about["attack"]
        words = [attack["name"], attack.get("mode"), about["tier"], data["name"], data.get("difficulty"), seed]
        return "_".join(["tuned", *(str(word) for word in words if word is not None), stable_hash(about)[:8]]) + ".json"

    def rows(self, found: dict[str, dict]) -> tuple[dict[Trial, list[float]], list[Run]]:
        """Return how far mAP fell in both directions, five digits, by cards known by their run's key; what lacks."""
        rows: dict[Trial, list[float]] = {}
        while todo := self.search.after(rows)[0]:
            cards = {trial: found.get(self.run(trial).key) for trial in todo}
            if missing := [self.run(trial) for trial, card in cards.items() if card is None]:
                return rows, missing
            for trial, card in cards.items():
                moved = [card["scores_8_bit"][way]["difference"]["mAP"] for way in DIRECTIONS]
                rows[trial] = [round(-each["difference"], 5) for each in moved]
        return rows, []

    def write(self, found: dict[str, dict], folder: Path, root: Root = None) -> list[str]:
        """Write the card of either victim from the cards of all trials; return their names."""
        rows, _ = self.rows(found)
        known = {trial: found[self.run(trial).key] for trial in rows}
        made_with = {part: made for card in known.values() for part, made in card["made_with"].items()}
        for seed in self.search.seeds:
            own = {setting: row for (setting, of), row in rows.items() if of == seed}
            cards = [known[setting, seed] for setting in own]
            if not all(same_training(cards[0], card) for card in cards):
                what = f"its trials are on two trainings of victim {seed}"
                raise InputError(f"tune {self.name(seed, root)}: {what}; empty {cache_folder() / 'tuning'}")
            card = self.about(seed, root) | {"clean": [cards[0]["clean"][way]["mAP"] for way in DIRECTIONS]}
            card |= {"trials": [[*setting, *row] for setting, row in own.items()], "made_with": made_with}
            card |= {"seconds": round(sum(each["wall_seconds"] for each in cards))}
            card |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "seal": UNSEALED.decode()}
            text = ",\n".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in card.items())
            write_atomically(folder / self.name(seed, root), sealed(f"{{{text}}}\n".encode()))
        return [self.name(seed, root) for seed in self.search.seeds]


def read_tunings(path: Path) -> list[list[Tuning]]:
    """Return what a campaign's [[tune]] tables ask for, an attack each. Raises InputError where one cannot be run."""
    groups = []
    for number, table in tables_of(path, "tune", RUN | SEARCH):
        with where(f"campaign {path}: tune {number}"):
            table = completed_tables({"name": "tuning", "split": "tuning", **table})
            how = {name: table.pop(name) for name in SEARCH if name in table}
            if not how.get("draw") or table["split"] == "test" or table["modified"] or table["surrogate"]:
                raise InputError("it needs draw, and takes neither the split test, nor modified, nor surrogate")
            groups.append([Tuning(cell, Search(**how, seeds=table["seeds"])) for cell in cells(table)])
            for tuning in groups[-1]:
                attacks = [tuning.run((each, tuning.search.seeds[0])).attack for each in tuning.search.settings]
                count = COUNTS[not isinstance(attacks[0], UniversalAttack)]
                if [knob for knob in COUNTS if knob in how["draw"]] != [count]:
                    raise InputError(f"draw: {attacks[0].name} needs {count}, how many gradients it has")
    return groups


def read_tuned(path: Path) -> dict:
    """Return a tuning card. Raises InputError where the file is none, or was changed after it was written."""
    try:
        card = parse_json(text := path.read_text(encoding="utf-8"))
        check_seal(text.encode(), card.pop("seal"))
        check_table("it", {name: card[name] for name in CARD}, CARD)
        return card
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a readable tuning card ({error}); delete it and tune again") from None


def outcome(cards: Iterable[dict]) -> Tuned:
    """Return what the two cards of a tuning came to. Raises InputError for cards of two tunings, or half of one."""
    first, *others = cards
    if any(card.get(name) != first.get(name) for card in others for name in SAME):
        raise InputError("tune: cards of two tunings have no one best setting; take one at a time")
    rows = {(tuple(row[:-2]), card["seed"]): row[-2:] for card in (first, *others) for row in card["trials"]}
    todo, found = Search(**first["search"]).after(rows)
    if todo:
        what = f"{first['attack']['name']}: trials on victim {todo[0][1]} are missing"
        raise InputError(f"tune: {what}; run its campaign again")
    return found


def tuned(folder: Path) -> Iterator[tuple[dict, Tuned]]:
    """Yield every tuning of a folder: one of its cards, and what came out."""
    groups: dict[str, list[dict]] = {}
    for path in sorted(readable(Path(folder)).glob(TUNED)):
        card = read_tuned(path)
        groups.setdefault(stable_hash([card.get(name) for name in SAME]), []).append(card)
    yield from ((cards[0], outcome(cards)) for cards in groups.values())


def typed(card: dict, found: Tuned) -> str:
    """Return an attack as it came out, as a campaign's table has it, and what is to be said of the search."""
    options = {name: value for name, value in card["attack"].items() if name not in ASIDE} | found.setting
    said = [f"mAP -{100 * found.fall:.1f}", *(f"{knob} at the edge" for knob in found.edges)]
    if found.gain is not None:
        said.append(f"twice the gradients {100 * found.gain:+.2f}" + ("" if found.ended else ", not run to its end"))
    return f"{{ {', '.join(f'{key} = {json.dumps(v)}' for key, v in options.items())} }}  # {'; '.join(said)}"


def tune(
    path: Path, out: Path, run_all: Callable, *, root: Root = None, rerun_stale: bool = False, **options: object
) -> dict[str, list[str]]:
    """Run what a campaign's [[tune]] tables ask for and write two cards an attack; a table's attacks go side by side.

    Args:
        run_all: `workers.run_all`, which takes the options.
        rerun_stale: tune again what is stale, and only named otherwise.

    Returns:
        Names of cards under "done", "ran" and "stale"; under "chosen" the attacks as they came out.
    """
    report: dict[str, list[str]] = {"done": [], "ran": [], "stale": [], "chosen": []}
    groups, folder = read_tunings(path), cache_folder() / "tuning"
    for group in groups:
        todo, found = [], {}
        for tuning in group:
            names = [tuning.name(seed, root) for seed in tuning.search.seeds]
            there = [read_tuned(out / name) for name in names if (out / name).exists()]
            stale = any(is_stale(card) for card in there)
            report["stale"] += names if stale else []
            if len(there) < len(names) or (stale and rerun_stale):
                tuning.check(root)
                todo.append(tuning)
            else:
                report["done"] += [] if stale else names
        while runs := {run.card_name(root): run for tuning in todo for run in tuning.rows(found)[1]}:
            made = [name for name in runs if (folder / name).exists() and not is_stale(read_card(folder / name))]
            missing = [run for name, run in runs.items() if name not in made]
            for _ in run_all(missing, folder, root=root, title=path.stem, **options):
                pass
            found |= {run.key: read_card(folder / name) for name, run in runs.items()}
        for tuning in todo:
            report["ran"] += tuning.write(found, out, root)
        for tuning in group:
            cards = [read_tuned(out / tuning.name(seed, root)) for seed in tuning.search.seeds]
            report["chosen"].append(typed(cards[0], outcome(cards)))
    return report
