"""What a run is: one value, read once from the tables of a campaign or of a grid, which are one language.

A campaign is a TOML file of [[run]] tables. Each takes name, tier, seeds, dataset (data set options, with `name` and
`size`), victim (model, options, backbone, pretrained), train (fields of TrainSettings), attack (name, gradients,
identities, learn_from, one of LEARN_FROM, seed, the victim's unless said, and the attack's own options; for one made
for each image also start, the table of a universal attack from whose delta it starts, eps, tied and identities its own
unless said), modified (fields of Modification: the victim itself is trained so), surrogate (dataset, victim, train,
seed: the network attacked instead, of the run's own where it says nothing; allow_seen_people, true where it may know
people that are ranked), compute (fields of Compute), split ("test", or "val" where a choice is made), anatomy (take the
drop apart) and grid: lists of values for keys such as "attack.tied", or of tables for "attack", of which every
combination is run; each: such lists for the data set alone. What the file's top level sets is every run's default;
tables are merged. A number in [0, 1] may be written as "8/255". What a [[tune]] table takes on top is said in `tuning`.
"""

import contextlib
import json
import re
import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from vireid_lite.attacks import ImageAttack, Modification, UniversalAttack, build_attack
from vireid_lite.attacks.frozen import LEARN_FROM, taught
from vireid_lite.data import Augmentation, Dataset, Modality, fingerprint, load_dataset
from vireid_lite.errors import DATASETS, SPLITS, InputError, check_choice, fraction, whole
from vireid_lite.errors import check_table as check
from vireid_lite.files import readable
from vireid_lite.machine import Compute
from vireid_lite.study.cards import (
    CARDS,
    card_key,
    card_name,
    data_described,
    is_stale,
    read_card,
    records,
    same_training,
    victim_of,
)
from vireid_lite.victims import Recipe, tier_recipe

TABLES = ("dataset", "victim", "train", "attack", "modified", "surrogate", "compute")
SURROGATE_SEED = 100  #: how far a surrogate's seed lies from its target's, where it is not given
VICTIM = {"model": str, "backbone": str, "pretrained": bool, "options": dict}
SURROGATE = {"dataset": dict, "victim": dict, "train": dict, "seed": object, "allow_seen_people": bool}
RUN = {"name": str, "tier": str, "seeds": list, "split": str, "anatomy": bool}
RUN |= {"grid": dict, "each": dict, **dict.fromkeys(TABLES, dict)}

ASIDE = {"identities": int, "learn_from": str, "seed": int, "start": dict}  #: of a run, in its attack's table

Root = Path | dict[str, Path] | None  #: one folder, or one for each data set by name


@dataclass(frozen=True)
class Run:
    """One run: what its card says of it, and nothing that only its data or its results tell."""

    kind: str  #: the name of its cards
    tier: str
    dataset: dict  #: as cards hold it
    recipe: Recipe
    seed: int
    attack: UniversalAttack | ImageAttack | None = None
    identities: int | None = None  #: how many a universal attack learns from, None for all
    learn_from: str = "train"  #: whose they are
    start: UniversalAttack | None = None  #: from whose delta an image-specific attack starts
    modification: Modification | None = None
    surrogate: "Run | None" = None
    allow_seen_people: bool = False  #: that a surrogate may have been trained on people its target ranks
    compute: Compute = field(default_factory=Compute)
    split: str = "test"
    anatomy: bool = False
    attack_seed: int | None = None  #: of the perturbation, None for the victim's

    @cached_property
    def configuration(self) -> dict:
        """The run as its card says it, plain values, without fingerprints of images."""
        found = {"kind": self.kind, "tier": self.tier, "dataset": self.dataset, "victim": self.recipe.describe()}
        found |= {"attack": None, "seed": self.seed}
        if self.attack:
            found["attack"] = {**self.attack.describe(), "identities": self.identities}
            found["attack"] |= {} if self.attack_seed is None else {"seed": self.attack_seed}
            found["attack"] |= {"learn_from": self.learn_from} if self.learn_from != "train" else {}
            found["attack"] |= {"start": self.start.describe()} if self.start else {}
            found |= {"split": self.split} if self.split != "test" else {}
        if self.modification:
            found["modification"] = asdict(self.modification)
        if its := self.surrogate:
            who = "shared" if _population(its.dataset) == _population(self.dataset) else "others"
            network = {"dataset": its.dataset, "victim": its.recipe.describe(), "seed": its.seed}
            found["surrogate"] = {**network, "identities": who}
            found["surrogate"] |= {"allow_seen_people": True} if its.allow_seen_people else {}
        if self.compute != Compute():
            found["compute"] = self.compute.describe()
        return json.loads(json.dumps(found))

    @cached_property
    def key(self) -> str:
        """What the run asks for; two ways of writing it, and a card of it, have one key."""
        return card_key(self.configuration)

    def open(self, root: Root = None) -> Dataset:
        """Return the data set. Raises InputError where it cannot be opened."""
        return _open(self.dataset, root)[0]

    def with_images(self, root: Root = None) -> dict:
        """Return the configuration with the fingerprints of the data sets' records; InputError where people lack."""
        taught((self.surrogate or self).open(root), self.identities, self.learn_from)
        whole = {**self.configuration, "dataset": {**self.dataset, "records": _open(self.dataset, root)[1]}}
        if its := self.surrogate:
            whole["surrogate"] = whole["surrogate"] | {"dataset": its.with_images(root)["dataset"]}
        return whole

    def card_name(self, root: Root = None) -> str:
        """Return the file name of the run's card."""
        return card_name(self.with_images(root))


def _open(data: dict, root: Root) -> tuple[Dataset, str]:
    """Return a data set, and the fingerprint of all its records."""
    if isinstance(root, dict):
        for name in root:
            check_choice("data root", "data set", name, DATASETS[1:])
        root = root.get(data["name"])
    return opened(json.dumps(data), None if data["name"] == "synthetic" else root)


@cache
def opened(described: str, root: Path | None) -> tuple[Dataset, str]:
    """Return a data set and the fingerprint of all its images; `cache_clear` where files may have changed."""
    options = json.loads(described)
    dataset = load_dataset(options.pop("name"), root, **options.pop("knobs", {}), **options)
    ways = [None] if dataset.root is None else Modality  # where the gallery of either is a draw
    tests = (record for way in ways for trial in dataset.trials(way) for side in trial for record in side)
    return dataset, fingerprint([*dataset.train, *dataset.val, *dataset.tuning, *tests], dataset)


def _population(data: dict) -> tuple:
    """Return what decides who the people of a data set are: synthetic ones come from its seed, whatever the knobs."""
    return data["name"], data["seed"] if data["name"] == "synthetic" else data.get("split")


def read_campaign(path: Path) -> list[Run]:
    """Return the runs of a TOML file, one for each seed and cell of a grid. Raises InputError for anything else."""
    found = []
    for number, run in tables_of(path, "run", RUN):
        with where(f"campaign {path}: run {number}"):
            found += parse(run)
    return found


def tables_of(path: Path, kind: str, known: dict) -> Iterator[tuple[int, dict]]:
    """Yield number and content of a campaign's [[run]] or [[tune]] tables, over what the file's top level sets."""
    content = read_toml("campaign", path)
    tables = {each: content.pop(each, []) for each in ("run", "tune")}
    with where(f"campaign {path}"):
        check("it", content, {key: kind for key, kind in RUN.items() if key != "name"})
        if not all(isinstance(each, list) for each in tables.values()) or not any(tables.values()):
            raise InputError("it has no [[run]]")
    for number, table in enumerate(tables[kind], 1):
        with where(f"campaign {path}: {kind} {number}"):
            check("it", table, known)
            if table.get("modified") == {} and not any(key.startswith("modified") for key in table.get("grid", {})):
                raise InputError('modified is empty; name at least its loss, such as { loss = "quadruple" }')
        own = ("attack", "modified", "surrogate")
        yield number, merge({key: v for key, v in content.items() if key not in own or key in table}, table)


def read_toml(kind: str, path: Path) -> dict:
    """Return a TOML file's content. Raises InputError where there is none; kind: what the file is."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{kind} {path} is not readable TOML: {error}") from None


@contextlib.contextmanager
def where(here: str) -> Iterator[None]:
    """Say where an InputError comes from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{here}: {error}") from None


def merge(base: dict, more: dict) -> dict:
    """Return the tables of both, those of `more` on top, key by key."""
    return {**base, **{key: {**base.get(key, {}), **v} if isinstance(v, dict) else v for key, v in more.items()}}


def parse(tables: dict) -> list[Run]:
    """Return the runs that a run's merged tables describe, for every cell of their grid one a seed, or InputError.

    A surrogate's seed "next" is the seed after the run's own among its seeds, or in number where that is the only one.
    """
    tables = completed_tables(tables)
    seeds, split, name = tables["seeds"], tables["split"], tables.get("name")
    check_choice("run", "split", split, SPLITS)
    if name is not None and not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise InputError(f"name {name!r} must be small letters, digits and hyphens")
    if not seeds:
        raise InputError("seeds must be a list of at least one value, got []")
    if wrong := [seed for seed in seeds if type(seed) is not int or not 0 <= seed < 2**63]:
        raise InputError(f"a seed must be a whole number of at least 0, got {wrong[0]!r}")
    after = seeds[1:] + seeds[:1] if len(seeds) > 1 else [seed + 1 for seed in seeds]
    return [_run(cell, *pair) for cell in cells(tables) for pair in zip(seeds, after, strict=True)]


def completed_tables(tables: dict) -> dict:
    """Return a run's tables with what it says nothing of, and every text such as "8/255" as the number it is."""
    usual = {**{table: {} for table in TABLES}, "seeds": [0], "split": "test", "anatomy": False, "tier": "lite"}
    return usual | {key: _read(item) if isinstance(item, dict) else item for key, item in tables.items()}


def _read(value: object) -> object:
    """Return tables with every text such as "8/255" as the number it is."""
    if isinstance(value, dict):
        return {name: _read(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not (isinstance(value, str) and value[:1].isdigit() and "/" in value):
        return value
    try:
        return fraction(value)
    except ValueError as error:
        raise InputError(f"{value!r}: {error} is needed") from None


def cells(tables: dict) -> list[dict]:
    """Return the tables once for every combination of their grid's values, the first key changing slowest."""
    grid = {**{f"dataset.{key}": values for key, values in tables.get("each", {}).items()}, **tables.get("grid", {})}
    found = [tables]
    for key, values in grid.items():
        table, dot, name = key.partition(".")
        fits = isinstance(values, list) and values and table in TABLES and bool(dot) == bool(name)
        if not fits or not (name or all(isinstance(value, dict) for value in values)):
            what = f'lists, of values for keys such as "attack.tied" or of tables for one of {", ".join(TABLES)}'
            raise InputError(f"grid needs {what}; got {key!r} = {values!r}")
        found = [merge(cell, {table: {name: value} if name else value}) for cell in found for value in values]
    return found


def _run(cell: dict, seed: int, following: int) -> Run:
    """Return the run of some tables and a seed; `following`: the seed after it."""
    dataset, recipe = _network(cell, cell["tier"])
    compute, table = _fields("compute", Compute, cell["compute"]), cell["attack"]
    attack = start = modification = None
    if table:
        attack = _attack("attack", table, ASIDE)
        check_choice("attack", "learn_from", table.get("learn_from", "train"), LEARN_FROM)
        whole("attack", "seed", table.get("seed", 0), kind=int)
    if "start" in table:
        if not isinstance(attack, ImageAttack):
            raise InputError("attack.start is of an attack that is made for one image each, such as sma; leave it out")
        own = {"eps": attack.eps, "tied": attack.tied, **table["start"]}
        start = _attack("attack.start", own, {"identities": int})
        if not isinstance(start, UniversalAttack):
            raise InputError(f"attack.start: {start.name} makes no delta for all images; name one such as cmps")
    if cell["modified"]:
        if attack or cell["split"] != "test" or compute != Compute() or recipe.settings.shuffle_labels:
            what = "trained in float32 on the right labels, and scored on test without an attack"
            raise InputError(f"a modified victim is {what}; leave compute, shuffle_labels, split and attack out")
        modification = _fields("modified", Modification, cell["modified"])
    kind = cell.get("name") or ("attack" if attack else "victim")
    how = {"compute": compute, "split": cell["split"], "anatomy": cell["anatomy"], "attack_seed": table.get("seed")}
    if isinstance(start or attack, UniversalAttack):
        how["identities"] = {**table, **table.get("start", {})}.get("identities")
        how["learn_from"] = table.get("learn_from", "train")
    run = Run(kind, cell["tier"], dataset, recipe, seed, attack, start=start, modification=modification, **how)
    return replace(run, surrogate=_surrogate(cell, run, following)) if cell["surrogate"] else run


def _attack(what: str, table: dict, aside: dict) -> UniversalAttack | ImageAttack:
    """Return the attack of a table; aside: the kinds of what the table may hold beside the attack's own."""
    check(what, table, {"name": str, **aside}, others=True)
    if "name" not in table:
        raise InputError(f"{what} needs a name, such as cmps")
    return build_attack(**{name: value for name, value in table.items() if name not in aside})


def _fields(what: str, kind: type, table: object) -> object:
    """Return a dataclass of a table's values."""
    check(what, table, dict.fromkeys(kind.__dataclass_fields__, object))
    return kind(**table)


def _surrogate(cell: dict, run: Run, following: int) -> Run:
    """Return the surrogate's run: where its table says nothing it is the target's or, of other data, the tier's."""
    own = cell["surrogate"]
    check("surrogate", own, SURROGATE)
    if not run.attack:
        raise InputError("a surrogate is there to be attacked; give the run an attack")
    seed = following if own.get("seed") == "next" else own.get("seed", run.seed + SURROGATE_SEED)
    if seed == run.seed or type(seed) is not int:
        raise InputError(f"surrogate and target share the seed {run.seed}; give the surrogate another")
    data = own.get("dataset", {})
    same = data.get("name", run.dataset["name"]) == run.dataset["name"]
    network = {"victim": cell["victim"], "train": cell["train"], **own}
    network["dataset"] = {**cell["dataset"], **data} if same else data
    with where("surrogate"):
        dataset, recipe = _network(network, run.tier)
    if dataset["size"] != run.dataset["size"] and not isinstance(run.attack, UniversalAttack):
        raise InputError(f"{run.attack.name}: crafted for one image each; surrogate and target need crops of one size")
    allowed = own.get("allow_seen_people", False)
    return Run("victim", run.tier, dataset, recipe, seed, allow_seen_people=allowed)


def _network(tables: dict, tier: str) -> tuple[dict, Recipe]:
    """Return the data set, as cards hold it, and the recipe that the tables dataset, victim and train describe."""
    check("victim", tables["victim"], VICTIM)
    check("dataset", tables["dataset"], {"name": str, "size": list}, others=True)
    if misplaced := sorted(set(VICTIM) & set(tables["train"])):
        raise InputError(f"{misplaced[0]} belongs to victim, not to train")
    size = tables["dataset"].get("size", [1, 1])
    if len(size) != 2 or not all(type(side) is int for side in size):
        raise InputError(f"size must be [height, width] in pixels, got {size}")
    settings = dict(tables["train"])
    if "augmentation" in settings:
        settings["augmentation"] = _fields("augmentation", Augmentation, settings["augmentation"])
    return data_described(tier, tables["dataset"]), tier_recipe(tier, **tables["victim"], **settings)


class Plan(NamedTuple):
    """What some runs still need."""

    todo: list[Run]  #: without a card
    done: list[str]  #: names of cards
    stale: list[str]  #: names of cards of code that has changed
    seconds: float  #: an estimate for `todo` from cards of the same kind, on whatever machine made those
    unknown: int  #: how many of `todo` no card tells anything about


class Results:
    """The run cards of a folder, each with its "file" name, found by what a run asks for; read once."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(readable(Path(folder)).glob(CARDS))
        self.cards = [{**read_card(path), "file": path.name} for path in paths]
        self._found: dict[str, list[dict]] = {}
        victims: dict[str, list[dict]] = {}
        for card in self.cards:
            self._found.setdefault(card["key"], []).append(card)
            if "modification" not in card:
                victims.setdefault(victim_of(card), []).append(card)

        def rank(card: dict) -> tuple:
            company = (same_training(card, other) for other in victims.get(victim_of(card), []))
            return not is_stale(card), sum(company), card["date"]

        for cards in self._found.values():
            if len(cards) > 1:
                cards.sort(key=rank, reverse=True)

    def card(self, run: Run, root: Root = None, data: bool = False) -> dict | None:
        """Return a run's card, or None: of several one that is not stale, then of the training most cards are of.

        Two folders' cards may attack two trainings of one victim, and no table may mix them. Among equals the newest.

        data: whether the run's licensed data are at hand, so that a card of other images can be told apart.
        """
        found = self._found.get(run.key, [])
        if found and (data or run.dataset["name"] == "synthetic"):
            own = records(run.with_images(root))
            found = [card for card in found if records(card) == own]
        return found[0] if found else None

    def plan(self, runs: list[Run], root: Root = None, data: bool = False, rerun_stale: bool = False) -> Plan:
        """Return what is done and what is to do. data: as in `card`. rerun_stale: count stale cards as to do."""
        found = [(run, self.card(run, root, data)) for run in runs]
        stale = [card["file"] for _, card in found if card and is_stale(card)]
        again = stale if rerun_stale else ()
        todo = [run for run, card in found if card is None or card["file"] in again]
        done = [card["file"] for _, card in found if card and card["file"] not in again]
        kinds: dict[tuple, list[float]] = {}
        for card in self.cards:
            kinds.setdefault(_kind(card), []).append(card["wall_seconds"])
        known = [statistics.median(kinds[kind]) for run in todo if (kind := _kind(run.configuration)) in kinds]
        return Plan(todo, done, stale, sum(known), len(todo) - len(known))


def _kind(card: dict) -> tuple:
    """Return what a run's seconds depend on most."""
    return card["tier"], card["victim"]["model"], (card["attack"] or {}).get("name"), "modification" in card
