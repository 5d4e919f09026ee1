"""Many runs from one file, one card each: a killed campaign resumes, and never repeats or loses a run."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import re
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vireid_lite import metrics, models
from vireid_lite.attacks import (
    ImageAttack,
    Modification,
    ModifiedVictim,
    UniversalAttack,
    build_attack,
    craft,
    load_perturbation,
    train_modified_victim,
)
from vireid_lite.attacks.frozen import training_store
from vireid_lite.behaviour import made_with
from vireid_lite.cards import card_name, is_stale, read_card, write_card
from vireid_lite.data import Augmentation, Dataset, Modality, Trial, cached, fingerprint
from vireid_lite.errors import TIERS as DATASET_OF_TIER
from vireid_lite.errors import InputError
from vireid_lite.files import ATTACK_CODE, cache_folder, exclusive, source_hash, stable_hash, write_atomically
from vireid_lite.machine import Compute, device_name, peak_memory_mib, pick_device, versions
from vireid_lite.metrics.anatomy import Anatomy, anatomy, within_modality
from vireid_lite.metrics.evaluation import Evaluation, direction_name, distinct, evaluate
from vireid_lite.transfer import broken, resized
from vireid_lite.victims import Recipe, load_or_train, tier_dataset, tier_named, tier_recipe

TABLES = ("dataset", "victim", "train", "attack", "modified", "surrogate", "compute")

SURROGATE_SEED = 100  # how far a surrogate's seed lies from its target's, where it is not given

VICTIM = {"model": str, "backbone": str, "pretrained": bool, "options": dict}

SURROGATE = {"dataset": dict, "victim": dict, "train": dict, "seed": int}

RUN = {
    "name": str,
    "tier": str,
    "seeds": list,
    "split": str,
    "anatomy": bool,
    "grid": dict,
    **dict.fromkeys(TABLES, dict),
}


def read_campaign(path: Path) -> list[dict]:
    """Return the runs of a TOML file, one dict for each seed and each cell of a grid.

    Each [[run]] takes name, tier, seeds, dataset (data set options, with `name` and `size`), victim (model, options,
    backbone, pretrained), train (fields of TrainSettings), attack (name, gradients, identities, and the attack's own
    options), modified (fields of Modification: the victim itself is trained so), surrogate (dataset, victim, train,
    seed: the network the attack is made on instead, of the run's own where it says nothing), compute (fields of
    Compute), split ("test", or "val" where a choice is made), anatomy (take the drop apart) and grid: lists of values
    for keys such as "attack.tied", or of tables for "attack", of which every combination is run. What the file's top
    level sets is every run's default; tables are merged. Raises InputError for anything else.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"campaign {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"campaign {path} is not readable TOML: {error}") from None
    runs = content.pop("run", [])
    where = f"campaign {path}"
    _check(where, content, {key: kind for key, kind in RUN.items() if key != "name"})
    if not isinstance(runs, list) or not runs:
        raise InputError(f"{where}: it has no [[run]]")
    expanded = []
    for number, run in enumerate(runs, 1):
        here = f"{where}: run {number}"
        _check(here, run, RUN)
        merged = {**content, **run}
        for table in TABLES:
            merged[table] = {**content.get(table, {}), **run.get(table, {})}
        merged |= {table: {} for table in ("attack", "modified", "surrogate") if table not in run}
        if run.get("modified") == {} and not any(key.startswith("modified") for key in run.get("grid", {})):
            raise InputError(f'{here}: modified is empty; name at least its loss, such as {{ loss = "quadruple" }}')
        for cell in _grid(here, merged):
            expanded += checked(here, cell)
    return expanded


def _grid(here: str, run: dict) -> list[dict]:
    """Return the run once for every combination of its grid's values, the first key changing slowest."""
    grid = run.pop("grid", {})
    for key, values in grid.items():
        table, dot, name = key.partition(".")
        fits = isinstance(values, list) and values and table in TABLES and bool(dot) == bool(name)
        if not fits or not (name or all(isinstance(value, dict) for value in values)):
            raise InputError(
                f'{here}: grid needs lists, of values for keys such as "attack.tied" or of tables for one of '
                f"{', '.join(TABLES)}; got {key!r} = {values!r}"
            )
    cells = []
    for values in itertools.product(*grid.values()):
        cell = copy.deepcopy(run)
        for key, value in zip(grid, values, strict=True):
            table, _, name = key.partition(".")
            cell[table] |= {name: value} if name else value
        cells.append(cell)
    return cells


def checked(here: str, run: dict) -> list[dict]:
    """Check one run, whose tables are all there, and return it once for every seed. Raises InputError; here: where."""
    _check_network(here, run)
    attack = run["attack"]
    if run["surrogate"]:
        _check(f"{here}, surrogate", run["surrogate"], SURROGATE)
        _check_network(f"{here}, surrogate", {"dataset": {}, "victim": {}, "train": {}, **run["surrogate"]})
        if not attack:
            raise InputError(f"{here}: a surrogate is there to be attacked; give the run an attack")
    try:
        compute = Compute(**run["compute"])
    except TypeError:
        raise InputError(
            f"{here}: compute takes {', '.join(Compute.__dataclass_fields__)}; got {', '.join(run['compute'])}"
        ) from None
    except InputError as error:
        raise InputError(f"{here}: {error}") from None
    if run["modified"] and compute != Compute():
        raise InputError(f"{here}: a modified victim is trained in float32; leave compute out")
    name = run.get("name", "attack" if attack else "victim")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise InputError(f"{here}: name {name!r} must be small letters, digits and hyphens")
    split = run.get("split", "test")
    if split not in ("test", "val"):
        raise InputError(f"{here}: split {split!r} must be test or val")
    if attack:
        _check(f"{here}, attack", attack, {"name": str, "identities": int}, others=True)
        if "name" not in attack:
            raise InputError(f"{here}: attack needs a name, such as cmps")
        try:
            attack_of(attack)
        except InputError as error:
            raise InputError(f"{here}: {error}") from None
    if modified := run["modified"]:
        _check(f"{here}, modified", modified, dict.fromkeys(Modification.__dataclass_fields__, object))
        if attack or split != "test":
            raise InputError(f"{here}: a modified victim is scored on test, and without an attack; leave those out")
        if run["train"].get("shuffle_labels"):
            raise InputError(f"{here}: a modified victim is trained on the right labels; leave shuffle_labels out")
        try:
            Modification(**modified)
        except InputError as error:
            raise InputError(f"{here}: {error}") from None
    found = []
    for seed in run.get("seeds", [0]):
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise InputError(f"{here}: a seed must be a whole number of at least 0, got {seed!r}")
        if run["surrogate"] and run["surrogate"].get("seed", seed + SURROGATE_SEED) == seed:
            raise InputError(f"{here}: surrogate and target share the seed {seed}; give the surrogate another")
        tables = {key: run[key] for key in TABLES}
        more = {"tier": run.get("tier", "lite"), "split": split, "anatomy": run.get("anatomy", False)}
        found.append({"name": name, **more, **tables, "seed": seed})
    return found


def _check_network(here: str, run: dict) -> None:
    """Raise InputError unless the tables dataset, victim and train of a run, or of its surrogate, are well-formed."""
    _check(f"{here}, victim", run["victim"], VICTIM)
    _check(f"{here}, dataset", run["dataset"], {"name": str, "size": list}, others=True)
    if misplaced := sorted(set(VICTIM) & set(run["train"])):
        raise InputError(f"{here}: {misplaced[0]} belongs to victim, not to train")
    model = run["victim"].get("model", "agw")
    if model not in models.NETWORKS:
        raise InputError(f"{here}: unknown network {model!r}; choose one of {', '.join(models.NETWORKS)}")
    size = run["dataset"].get("size", [1, 1])
    if len(size) != 2 or not all(type(side) is int for side in size):
        raise InputError(f"{here}: size must be [height, width] in pixels, got {size}")


def _check(where: str, table: object, kinds: dict[str, type], others: bool = False) -> None:
    """Raise InputError unless `table` is a table of known keys, each of its kind."""
    if not isinstance(table, dict):
        raise InputError(f"{where}: a table is needed, got {table!r}")
    for key, value in table.items():
        if key not in kinds and not others:
            raise InputError(f"{where} has an unknown key {key!r}; it takes {', '.join(kinds)}")
        if key in kinds and not isinstance(value, kinds[key]):
            raise InputError(f"{where}: {key} must be of type {kinds[key].__name__}, got {value!r}")


Root = Path | dict[str, Path] | None  # one folder, or one for each data set by name


def prepare(run: dict, root: Root = None) -> tuple[Dataset, Recipe, dict]:
    """Return a run's data set, recipe and configuration; the configuration keys its card."""
    dataset, records, recipe = _network(run["tier"], run, root)
    configuration = {
        "kind": run["name"],
        "tier": run["tier"],
        "dataset": {**dataset.describe(), "records": records},
        "victim": recipe.describe(),
        "attack": None,
        "seed": run["seed"],
    }
    if run["attack"]:
        attack, identities = attack_of(run["attack"])
        configuration["attack"] = {**attack.describe(), "identities": identities}
        if run["split"] != "test":
            configuration["split"] = run["split"]
    if run["modified"]:
        configuration["modification"] = asdict(Modification(**run["modified"]))
    if run.get("surrogate"):
        its_data, its_records, its_recipe = _network(run["tier"], surrogate_of(run), root)
        if its_data.size != dataset.size and not isinstance(attack, UniversalAttack):
            raise InputError(f"{attack.name}: crafted for one image each; surrogate and target need crops of one size")
        configuration["surrogate"] = {
            "dataset": {**its_data.describe(), "records": its_records},
            "victim": its_recipe.describe(),
            "seed": surrogate_of(run)["seed"],
            "identities": "shared" if _population(its_data) == _population(dataset) else "others",
        }
    if run.get("compute"):
        configuration["compute"] = Compute(**run["compute"]).describe()
    return dataset, recipe, configuration


def surrogate_of(run: dict) -> dict:
    """Return the tables dataset, victim and train, and the seed, of the network a run's attack is made on.

    Where the surrogate's own table says nothing it is the target's; a data set of another name starts from nothing.
    """
    own = run["surrogate"]
    data = own.get("dataset", {})
    same = data.get("name", run["dataset"].get("name")) == run["dataset"].get("name")
    return {
        "dataset": {**run["dataset"], **data} if same else data,
        "victim": own.get("victim", run["victim"]),
        "train": own.get("train", run["train"]),
        "seed": own.get("seed", run["seed"] + SURROGATE_SEED),
    }


def _population(dataset: Dataset) -> tuple:
    """Return what decides who the people of a data set are: synthetic ones come from its seed, whatever the knobs."""
    options = dataset.describe()
    return dataset.name, options.get("seed") if dataset.name == "synthetic" else options.get("split")


def _network(tier: str, run: dict, root: Root) -> tuple[Dataset, str, Recipe]:
    """Return the data set, the fingerprint of its records and the recipe that a run's tables describe."""
    tier_named(tier)
    name = run["dataset"].get("name") or DATASET_OF_TIER[tier]
    if isinstance(root, dict):
        root = root.get(name)
    dataset, records = _dataset(tier, json.dumps(run["dataset"], sort_keys=True), None if name == "synthetic" else root)
    return dataset, records, recipe_of(tier, run)


def recipe_of(tier: str, run: dict) -> Recipe:
    """Return the recipe that a run's tables victim and train describe."""
    settings = dict(run["train"])
    if "augmentation" in settings:
        _check("augmentation", settings["augmentation"], dict.fromkeys(Augmentation.__dataclass_fields__, object))
        settings["augmentation"] = Augmentation(**settings["augmentation"])
    return tier_recipe(tier, **run["victim"], **settings)


@cache
def _dataset(tier: str, options: str, root: Path | None) -> tuple[Dataset, str]:
    """Return a run's data set and the fingerprint of all its records, made once a process; options: JSON."""
    given = json.loads(options)
    dataset = tier_dataset(tier, given.pop("name", None), root, size=given.pop("size", None), **given)
    tests = (record for trial in dataset.trials() for side in trial for record in side)
    return dataset, fingerprint([*dataset.train, *dataset.val, *tests])


def attack_of(table: dict) -> tuple[UniversalAttack | ImageAttack, int | None]:
    """Return the attack a run's table describes, and how many training identities it learns from (None: all)."""
    options = dict(table)
    identities = options.pop("identities", None)
    attack = build_attack(str(options.pop("name")), **options)
    return attack, identities if isinstance(attack, UniversalAttack) else None


def run_one(run: dict, out: Path, device: str = "auto", root: Root = None, progress: bool = False) -> Path:
    """Train, or load, the victim of one run, attack it if the run says so, score both directions, write the card.

    With a surrogate the attack is made on that network and its data, trained or loaded first.
    """
    dataset, recipe, configuration = prepare(run, root)
    chosen = pick_device(device)
    compute = Compute(**run["compute"]) if run.get("compute") else None
    options = {"device": chosen, "compute": compute, "progress": progress}
    note, attack = None, None
    if run["attack"]:
        attack, identities = attack_of(run["attack"])
    if run.get("surrogate"):
        source = surrogate_of(run)
        its_data, _, its_recipe = _network(run["tier"], source, root)
    # Read, and kept, before anything runs: a file edited meanwhile is not what made the card.
    code, made = source_hash(*ATTACK_CODE), made_with(configuration)
    trained_in = 0.0
    if run["modified"]:
        modified = train_modified_victim(
            recipe, dataset, Modification(**run["modified"]), seed=run["seed"], device=chosen, progress=progress
        )
        trained, started = modified.card, time.perf_counter()
        results = score_modified(modified, dataset, chosen)
        results |= {"history": trained["history"], "train_seconds": trained["seconds"]}
        trained_in, memory = trained["wall_seconds"], max(trained["peak_memory_mib"], peak_memory_mib(chosen))
    else:
        model, trained = load_or_train(recipe, dataset, seed=run["seed"], **options)
        surrogate = None
        if run.get("surrogate"):
            attacked, its_card = load_or_train(its_recipe, its_data, seed=source["seed"], **options)
            surrogate = attacked, its_data
        started = time.perf_counter()
        with contextlib.ExitStack() as running:
            for network in (model, surrogate[0]) if surrogate else (model,):
                running.enter_context((compute or Compute()).on(network, chosen))
            if attack is not None:
                note = cache_folder() / "attacks" / f"{stable_hash([configuration, trained['key']])}.pt"
                clean = _clean_scores(model, dataset, trained["key"], run["split"], chosen)
                how = {"identities": identities, "split": run["split"], "take_apart": run["anatomy"]}
                how |= {"state_path": note, "clean": clean, "device": chosen, "progress": progress}
                if surrogate:
                    made_by = [its_card["key"], configuration["attack"], run["seed"], code]
                    how["keep"] = cache_folder() / "attacks" / f"{stable_hash(made_by)}.safetensors"
                results = run_attack(attack, model, dataset, seed=run["seed"], surrogate=surrogate, **how).describe()
                memory = peak_memory_mib(chosen)
            else:
                evaluated = clean_scores(model, dataset, device=chosen, progress=progress)
                results = {
                    "scores": {direction_name(result.query_modality): scores_for_card(result) for result in evaluated},
                    "history": trained["history"],
                    "train_seconds": trained["seconds"],
                }
                trained_in, memory = trained["wall_seconds"], max(trained["peak_memory_mib"], peak_memory_mib(chosen))
    path = write_card(
        out,
        configuration,
        {
            **results,
            "cell": cell_key(run),
            "wall_seconds": trained_in + time.perf_counter() - started,
            "peak_memory_mib": memory,
            "device": device_name(chosen),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
        made,
    )
    if note is not None:
        note.unlink(missing_ok=True)
    return path


def cell_key(run: dict) -> str:
    """Return 16 hex digits of what a run asks for, its name apart: known without its data, unlike the card's own key.

    Two ways of writing one attack, victim or modification have one key.
    """
    asked = {name: run[name] for name in ("tier", "split", "dataset", "seed")}
    asked["victim"] = recipe_of(run["tier"], run).describe()
    if run["attack"]:
        attack, identities = attack_of(run["attack"])
        asked["attack"] = {**attack.describe(), "identities": identities}
    if run["modified"]:
        asked["modified"] = asdict(Modification(**run["modified"]))
    if run.get("surrogate"):
        source = surrogate_of(run)
        asked["surrogate"] = [source["dataset"], recipe_of(run["tier"], source).describe(), source["seed"]]
    if run.get("compute"):
        asked["compute"] = Compute(**run["compute"]).describe()
    return stable_hash(asked)


def score_modified(modified: ModifiedVictim, dataset: Dataset, device: torch.device | str = "cpu") -> dict:
    """Return a modified victim's scores as its card holds them, by direction.

    "scores": queries and gallery perturbed as in training (clean, where it was trained without noise), the reading of
    the paper's text. "scores_query": queries alone perturbed. "scores_clean": nothing perturbed. "within": rank-1 of
    queries ranked against clean images of their own modality, "clean" and "perturbed".
    """
    model, perturbation = modified.model, modified.perturbation
    options = {"device": device, "progress": False}
    results: dict = {"scores": {}}
    perturb = perturbation and perturbation.apply
    for modality in Modality:
        name, trials = direction_name(modality), dataset.trials(modality)
        clean = evaluate(model, dataset, modality, trials=trials, **options)
        identities = np.array([record.identity for record in distinct(trials, "query")])
        within = {"clean": within_modality(clean.query, clean.query, identities)[0]}
        if perturb is None:
            results["scores"][name] = scores_for_card(clean)
        else:
            query = evaluate(model, dataset, modality, trials=trials, perturb=perturb, clean=clean, **options)
            both = evaluate(
                model, dataset, modality, trials=trials, perturb=perturb, perturb_gallery=perturb, **options
            )
            within["perturbed"] = within_modality(query.query, clean.query, identities)[0]
            results["scores"][name] = scores_for_card(both)
            for key, scored in (("scores_query", query), ("scores_clean", clean)):
                results.setdefault(key, {})[name] = scores_for_card(scored)
        results.setdefault("within", {})[name] = within
    return results


class Attacked(NamedTuple):
    """What one attack did to one victim: `made`, the perturbation of a universal attack or None, and its scores.

    clean, exact, rounded: the scores of both directions without the attack, with attacked images as floats, and after
    rounding these to 8 bits. anatomies: of the rounded images, or None. seconds: of crafting, without scoring.
    transferred: whether another network than the one scored was attacked.
    """

    made: object
    clean: list[Evaluation]
    exact: list[Evaluation]
    rounded: list[Evaluation]
    anatomies: list[Anatomy] | None
    seconds: float
    transferred: bool = False

    def describe(self) -> dict:
        """Return everything as a run card holds it, directions by name, `history` thinned to a dozen steps.

        Each set of attacked scores gains "difference": rank-1 and mAP minus the clean ones on the same queries, with
        the 95 % interval of the paired bootstrap over identities; a transferred attack's also "broken"
        (`transfer.broken`).
        """
        names = [direction_name(result.query_modality) for result in self.clean]
        results: dict = {"clean": {}, "scores": {}, "scores_8_bit": {}}
        for name, clean, exact, rounded in zip(names, self.clean, self.exact, self.rounded, strict=True):
            results["clean"][name] = {"rank1": clean.rank1, "mAP": clean.mAP, "mINP": clean.mINP}
            results["scores"][name] = {**scores_for_card(exact), "difference": difference(clean, exact)}
            # What does not depend on the attack stands once, beside the exact scores.
            kept = {key: v for key, v in scores_for_card(rounded).items() if "chance" not in key and key != "minimum"}
            results["scores_8_bit"][name] = {**kept, "difference": difference(clean, rounded)}
            if self.transferred:
                results["scores_8_bit"][name]["broken"] = broken(clean, rounded)
        if self.anatomies is not None:
            results["anatomy"] = {n: a.describe() for n, a in zip(names, self.anatomies, strict=True)}
        history = self.made.history if self.made is not None else []
        results["history"] = history[:: max(1, len(history) // 10)] + history[-1:]
        return {**results, "craft_seconds": self.seconds}


def run_attack(
    attack: UniversalAttack | ImageAttack,
    model: nn.Module,
    dataset: Dataset,
    *,
    seed: int = 0,
    identities: int | None = None,
    split: str = "test",
    state_path: Path | None = None,
    take_apart: bool = False,
    surrogate: tuple[nn.Module, Dataset] | None = None,
    keep: Path | None = None,
    clean: list[Evaluation] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Attacked:
    """Attack the queries of both directions and score them, as floats and after rounding to 8 bits.

    identities: how many training identities a universal attack learns from; None for all. split: "test" or "val".
    state_path: where a killed fit is noted. take_apart: compute the anatomy of the drop as well.
    surrogate: the network the attack is made on instead, and the data set whose training images a universal attack
    learns from; what it makes is resized to the target's crops (`transfer.resized`). keep: where a universal attack's
    perturbation is kept, and read from if it is there: one surrogate serves many targets.
    clean: scores without the attack where they are known already (`clean_scores`).
    """
    made, attacked, trials = None, [], {m: trials_of(dataset, m, split) for m in Modality}
    clean = clean or clean_scores(model, dataset, split, device)
    started = time.perf_counter()
    attacked_model, learned_from = surrogate or (model, dataset)
    if isinstance(attack, UniversalAttack):
        if keep is not None and keep.exists():
            made = load_perturbation(keep)
            started -= made.made_by["fit_seconds"]  # as long as it took when it was made
        else:
            store = training_store(learned_from, identities, progress)
            made = attack.fit(attacked_model, store, seed, state_path=state_path, progress=progress)
            if keep is not None:
                made.made_by = {**made.made_by, "fit_seconds": time.perf_counter() - started}
                made.save(keep)
        if learned_from.size != dataset.size:
            made = resized(made, dataset.size)
        attacked = [({"perturb": made.apply}, {"perturb": made.apply_rounded}) for _ in Modality]
    else:
        for modality in Modality:
            records = list(dict.fromkeys(record for trial in trials[modality] for record in trial.query))
            crafted = craft(attack, attacked_model, cached(dataset, records, progress), seed=seed, progress=progress)
            attacked.append(({"query_store": crafted}, {"query_store": crafted.rounded(attack.eps)}))
    seconds = time.perf_counter() - started
    exact, rounded = (
        [
            evaluate(
                model, dataset, m, trials=trials[m], clean=clean[m], device=device, progress=False, **how[precision]
            )
            for m, how in zip(Modality, attacked, strict=True)
        ]
        for precision in (0, 1)
    )
    anatomies = None
    if take_apart:
        # One trial: of several, the first.
        known = [(clean[m], rounded[m]) if len(trials[m]) == 1 else None for m in Modality]
        anatomies = [
            anatomy(model, dataset, m, trial=trials[m][0], evaluated=known[m], device=device, **attacked[m][1])
            for m in Modality
        ]
    return Attacked(made, clean, exact, rounded, anatomies, seconds, surrogate is not None)


def trials_of(dataset: Dataset, query_modality: Modality, split: str) -> list[Trial]:
    """Return the trials of one direction, of "test" or of "val"."""
    return dataset.trials(query_modality) if split == "test" else [dataset.val_trial(query_modality)]


def clean_scores(
    model: nn.Module,
    dataset: Dataset,
    split: str = "test",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[Evaluation]:
    """Return the scores of both directions without any attack."""
    return [
        evaluate(model, dataset, m, trials=trials_of(dataset, m, split), device=device, progress=progress)
        for m in Modality
    ]


def difference(clean: Evaluation, attacked: Evaluation) -> dict[str, dict[str, float]]:
    """Return attacked minus clean rank-1 and mAP, each with its 95 % interval: mean, low, high."""
    before, after = clean.per_identity, attacked.per_identity
    return {
        name: metrics.paired_bootstrap(
            getattr(before, field), getattr(after, field), before.identity, before.queries
        )._asdict()
        for name, field in (("rank1", "rank1"), ("mAP", "ap"))
    }


_CLEAN: dict[str, list[Evaluation]] = {}


def _clean_scores(model: nn.Module, dataset: Dataset, key: str, split: str, device: torch.device) -> list[Evaluation]:
    """Return a victim's clean scores, computed once a process; one victim serves several searches of SYSU-MM01."""
    where = stable_hash([key, dataset.describe(), split])
    if where not in _CLEAN:
        _CLEAN[where] = clean_scores(model, dataset, split, device)
    return _CLEAN[where]


def scores_for_card(result: Evaluation) -> dict:
    """Return one direction's scores as a card holds them: no path, no label, identities in a fixed anonymous order."""
    return {
        "rank1": result.rank1,
        "mAP": result.mAP,
        "mINP": result.mINP,
        "cmc": result.cmc,
        "trials": [
            {"rank1": float(t.cmc[0]), "mAP": t.mAP, "mINP": t.mINP, "valid_queries": t.valid_queries}
            for t in result.trials
        ],
        "chance": {name: getattr(result.chance.independent, name)._asdict() for name in ("rank1", "mAP", "mINP")},
        "chance_cmc": result.chance.independent.cmc,
        "minimum": result.chance.minimum._asdict(),
        "identity_rank1": result.per_identity.rank1,
        "identity_AP": result.per_identity.ap,
        "identity_queries": result.per_identity.queries,
    }


def run_campaign(
    path: Path,
    out: Path,
    *,
    workers: int = 1,
    device: str = "auto",
    root: Root = None,
    rerun_stale: bool = False,
    progress: bool = True,
) -> dict[str, list[str]]:
    """Run every run of the file whose card is not in `out` yet; return card names under "done", "ran" and "stale".

    workers: processes side by side; each takes its share of the cores. A card made by code that has changed since is
    stale: it is kept and named, and made again with `rerun_stale`.
    Raises InputError where a run cannot be made; the cards of the others are kept.
    """
    todo, report = [], {"done": [], "ran": [], "stale": []}
    for run in read_campaign(path):
        name = card_name(prepare(run, root)[2])
        stale = (out / name).exists() and is_stale(read_card(out / name))
        if stale:
            report["stale"].append(name)
        if not (out / name).exists() or (stale and rerun_stale):
            todo.append(run)
        elif not stale:
            report["done"].append(name)
    for written in run_cells(todo, out, workers, device=device, root=root, progress=progress, title=path.stem):
        report["ran"].append(written.name)
    return report


def run_cells(
    todo: list[dict],
    out: Path,
    workers: int = 1,
    *,
    scheduler: str | None = None,
    cluster: bool = False,
    threads: int | None = None,
    device: str = "auto",
    root: Root = None,
    progress: bool = True,
    title: str = "",
) -> Iterator[Path]:
    """Run the runs and yield the path of each card as it is written; the folder is held against other processes.

    workers: processes side by side on this machine. cluster: let a local Dask cluster of so many workers run them, one
    that survives the death of a worker; scheduler: the address of a running cluster instead. threads: PyTorch's, of
    each run in this process or on a local cluster; on a CPU the bits of a score depend on it. None: all there are.
    Raises InputError where a run cannot be made; the cards of the others are kept.
    """
    with exclusive(out, wait=False), tqdm(total=len(todo), unit="run", desc=title, disable=not progress) as bar:
        if scheduler or (cluster and workers > 1):
            written = _run_on_cluster(todo, out, workers, scheduler, threads, device, root, progress)
        else:
            written = _run_all(todo, out, workers, device, root, progress)
        former = torch.get_num_threads()
        torch.set_num_threads(threads or former)
        try:
            for path in written:
                bar.update()
                yield path
        finally:
            torch.set_num_threads(former)


def _run_on_cluster(todo, out: Path, workers: int, scheduler, threads: int | None, device: str, root: Root, progress):
    from vireid_lite.cluster import run_on_cluster  # runs `run_one` of this module

    options = {"scheduler": scheduler, "workers": workers, "threads": threads}
    options |= {"device": device, "root": root, "progress": progress}
    # Closed by name: what goes wrong here must not leave workers behind.
    with contextlib.closing(run_on_cluster(todo, **options)) as cards:
        for name, card in cards:
            write_atomically(out / name, card)
            yield out / name


def _run_all(todo: list[dict], out: Path, workers: int, device: str, root: Root, progress: bool):
    if workers <= 1 or len(todo) <= 1:
        for run in todo:
            yield run_one(run, out, device, root, progress)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(threads,)) as pool:
        waiting = [pool.submit(run_one, run, out, device, root) for run in todo]
        try:
            for finished in as_completed(waiting):
                yield finished.result()
        except BrokenProcessPool:
            raise InputError("campaign: a worker died; what is finished is kept, run the same command again") from None
        except (KeyboardInterrupt, InputError):
            # What runs now is resumed by the next campaign; nobody should wait for it.
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    """Take this worker's share of the cores, and end with the campaign even when that is killed."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
