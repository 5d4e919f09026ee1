"""Many runs from one file, one card each: a killed campaign resumes, and never repeats or loses a run."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm import tqdm

from vireid_lite.cards import card_name, code_modules, is_stale, read_card, write_card
from vireid_lite.data import Augmentation, Dataset, Modality, fingerprint
from vireid_lite.errors import InputError
from vireid_lite.evaluation import Evaluation, direction_name, evaluate
from vireid_lite.provenance import device_name, exclusive, peak_memory_mib, pick_device, versions
from vireid_lite.victims import Recipe, load_or_train, tier_dataset, tier_recipe


def read_campaign(path: Path) -> list[dict]:
    """Return the runs of a TOML file, one dict a seed: name, tier, dataset, victim, train, seed.

    The file's top level may set tier and seeds; each [[run]] may override them and takes name, dataset (data set
    options, with `name` and `size`), victim (backbone, pretrained) and train (fields of TrainSettings).
    Raises InputError for anything else.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"campaign {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"campaign {path} is not readable TOML: {error}") from None
    runs = content.pop("run", [])
    where = f"campaign {path}"
    _check(where, content, {"tier": str, "seeds": list})
    if not isinstance(runs, list) or not runs:
        raise InputError(f"{where}: it has no [[run]]")
    expanded = []
    for number, run in enumerate(runs, 1):
        here = f"{where}: run {number}"
        _check(here, run, {"name": str, "tier": str, "dataset": dict, "victim": dict, "train": dict, "seeds": list})
        _check(f"{here}, victim", run.get("victim", {}), {"backbone": str, "pretrained": bool})
        _check(f"{here}, dataset", run.get("dataset", {}), {"name": str, "size": list}, others=True)
        if misplaced := sorted({"backbone", "pretrained"} & set(run.get("train", {}))):
            raise InputError(f"{here}: {misplaced[0]} belongs to victim, not to train")
        size, name = run.get("dataset", {}).get("size", [1, 1]), run.get("name", "victim")
        if len(size) != 2 or not all(type(side) is int for side in size):
            raise InputError(f"{here}: size must be [height, width] in pixels, got {size}")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise InputError(f"{here}: name {name!r} must be small letters, digits and hyphens")
        for seed in run.get("seeds", content.get("seeds", [0])):
            if type(seed) is not int or not 0 <= seed < 2**63:
                raise InputError(f"{here}: a seed must be a whole number of at least 0, got {seed!r}")
            tables = {key: run.get(key, {}) for key in ("dataset", "victim", "train")}
            tier = run.get("tier", content.get("tier", "lite"))
            expanded.append({"name": name, "tier": tier, **tables, "seed": seed})
    return expanded


def _check(where: str, table: object, kinds: dict[str, type], others: bool = False) -> None:
    """Raise InputError unless `table` is a table of known keys, each of its kind."""
    if not isinstance(table, dict):
        raise InputError(f"{where}: a table is needed, got {table!r}")
    for key, value in table.items():
        if key not in kinds and not others:
            raise InputError(f"{where} has an unknown key {key!r}; it takes {', '.join(kinds)}")
        if key in kinds and not isinstance(value, kinds[key]):
            raise InputError(f"{where}: {key} must be of type {kinds[key].__name__}, got {value!r}")


def prepare(run: dict, root: Path | None = None) -> tuple[Dataset, Recipe, dict]:
    """Return a run's data set, recipe and configuration; the configuration keys its card."""
    options = dict(run["dataset"])
    dataset = tier_dataset(run["tier"], options.pop("name", None), root, size=options.pop("size", None), **options)
    settings = dict(run["train"])
    if "augmentation" in settings:
        _check("augmentation", settings["augmentation"], dict.fromkeys(Augmentation.__dataclass_fields__, object))
        settings["augmentation"] = Augmentation(**settings["augmentation"])
    recipe = tier_recipe(run["tier"], **run["victim"], **settings)
    everything = [*dataset.train, *dataset.val, *(r for trial in dataset.trials() for side in trial for r in side)]
    configuration = {
        "kind": run["name"],
        "tier": run["tier"],
        "dataset": {**dataset.describe(), "records": fingerprint(everything)},
        "victim": recipe.describe(),
        "attack": None,
        "seed": run["seed"],
    }
    return dataset, recipe, configuration


def run_one(run: dict, out: Path, device: str = "auto", root: Path | None = None, progress: bool = False) -> Path:
    """Train, or load, the victim of one run, score it in both directions, and write its card."""
    dataset, recipe, configuration = prepare(run, root)
    chosen = pick_device(device)
    model, trained = load_or_train(recipe, dataset, seed=run["seed"], device=chosen, progress=progress)
    started = time.perf_counter()
    results = [evaluate(model, dataset, modality, device=chosen, progress=progress) for modality in Modality]
    return write_card(
        out,
        configuration,
        {
            "scores": {direction_name(result.query_modality): scores_for_card(result) for result in results},
            "history": trained["history"],
            "train_seconds": trained["seconds"],
            "wall_seconds": trained["wall_seconds"] + time.perf_counter() - started,
            "peak_memory_mib": max(trained["peak_memory_mib"], peak_memory_mib(chosen)),
            "device": device_name(chosen),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
        code_modules(dataset.name, recipe.model),
    )


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
    root: Path | None = None,
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
    with exclusive(out, wait=False), tqdm(total=len(todo), unit="run", desc=path.stem, disable=not progress) as bar:
        for written in _run_all(todo, out, workers, device, root, progress):
            report["ran"].append(written.name)
            bar.update()
    return report


def _run_all(todo: list[dict], out: Path, workers: int, device: str, root: Path | None, progress: bool):
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
