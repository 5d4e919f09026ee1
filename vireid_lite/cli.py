"""The command line: what the chapters do, with the same names for the same parameters."""

import contextlib
import importlib
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType

import typer

from vireid_lite import options as take
from vireid_lite.errors import BuildError, InputError
from vireid_lite.files import exclusive

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
INTERRUPTED = "interrupted; what is finished is kept, the same command resumes"
data_app = typer.Typer(help="Verify a copy of a data set.")
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(name: take.DataCopy, root: take.CheckRoot, partial: take.Partial = False) -> None:
    """Verify a copy of a data set: its counts, and every image decoded once."""
    from vireid_lite.data.benchmarks.check import check

    report = check(name, root, partial=partial)
    print(report)
    if not report.ok:
        raise InputError(f"{name}: {root} did not pass ({len(report.errors)} problems, listed above)")


@app.command()
def train(
    tier: take.Tier = "lite", dataset: take.DatasetName = None, data_root: take.DataRoot = None,
    option: take.Options = None, size: take.Size = None,
    model: take.Network = None, set_: take.NetworkSet = None, triplet: take.Triplet = None,
    backbone: take.Backbone = None, pretrained: take.Pretrained = None,
    epochs: take.Epochs = None, learning_rate: take.LearningRate = None, seed: take.Seed = 0,
    device: take.Device = "auto", out_dir: take.OutDir = Path("victim"), retrain: take.Retrain = False,
) -> None:  # fmt: skip
    """Train a victim, or resume a killed training; write OUT_DIR/victim.safetensors and its card.

    One that comes with the package is copied there, unless --retrain says otherwise.
    """
    from vireid_lite.victims import load_or_train, tier_dataset, tier_recipe

    network = {"model": model, "options": dict(set_ or ()), "backbone": backbone, "pretrained": pretrained}
    recipe = tier_recipe(tier, **network, triplet=triplet, epochs=epochs, learning_rate=learning_rate)
    data = tier_dataset(tier, dataset, data_root, size=size, **dict(option or ()))
    _, card = load_or_train(recipe, data, seed=seed, device=device, folder=out_dir, retrain=retrain)
    history, took = card["history"], f"in {card['seconds']:.0f} s on {card['device']}"
    accuracy = f"accuracy in the last one {history[-1]['accuracy']:.3f}"
    print(f"{out_dir / 'victim.safetensors'}: {len(history)} epochs {took}, {accuracy}")


def _check_victim(dataset: str | None, checkpoint: Path | None, official: Path | None, kind: str | None) -> None:
    if checkpoint and official:
        raise InputError("--official names a victim already; leave out --checkpoint")
    if kind and not official:
        raise InputError(f"--model {kind} names the network of --official; leave it out, a checkpoint knows its own")
    if checkpoint is None and official is None and dataset not in (None, "synthetic", "paired_folder"):
        raise InputError(f"{dataset}: give --checkpoint; `vireid-lite train --dataset {dataset}` makes one")


def _victim(checkpoint, official, kind, seed, device, tier, dataset, root, size, option, seen):
    """Return the victim on its device, its card, and the data set at the size asked for, or that of its training."""
    from vireid_lite.study.run import victim_and_data
    from vireid_lite.victims import tier_dataset

    def open_data(trained: list | tuple | None):
        if trained == () and size is None:
            raise InputError(f"{checkpoint}: its card lacks the size it was trained on; give --size HEIGHTxWIDTH")
        return tier_dataset(tier, dataset, root, size=size or trained, **dict(option or ()))

    return victim_and_data(tier, checkpoint, official and (official, kind), open_data, seed, device, seen)


def _scores_line(data, direction: str, result, what: str = "") -> str:
    _, low, high = (100 * value for value in result.chance.independent.rank1)
    rank1, mean, least = 100 * result.rank1, 100 * result.mAP, 100 * result.mINP
    scores = f"rank-1 {rank1:.1f} %, mAP {mean:.1f} %, mINP {least:.1f} %"
    line = f"{data.name}, {direction}{what}: {scores}; chance rank-1 {low:.1f} to {high:.1f} %"
    people, scored = len(result.per_identity.identity), result.trials[0].valid_queries
    only = f" ({scored:,} with a match in a trial)" * (scored < len(result.query))
    of = f"{len(result.query):,} queries{only} of {people:,} people, {len(result.gallery):,} gallery images"
    of += f" in {len(result.trials)} trials" * (len(result.trials) > 1)
    return "; ".join(filter(None, (line, of, data.left_out)))


@app.command()
def evaluate(
    tier: take.Tier = "lite", dataset: take.DatasetName = None, data_root: take.DataRoot = None,
    option: take.Options = None, size: take.Size = None,
    checkpoint: take.Checkpoint = None, official: take.Official = None, kind: take.Kind = None,
    perturbation: take.Perturbation = None,
    query_modality: take.QueryModality = "both", split: take.Split = "test", seen: take.SeenPeople = False,
    seed: take.Seed = 0, device: take.Device = "auto", out_dir: take.OutDir = Path("evaluation"),
) -> None:  # fmt: skip
    """Rank queries against a gallery; write OUT_DIR/scores.json and a figure of rankings for each direction.

    With --perturbation the scores are those of attacked queries, beside the clean ones, and the figures show both.
    """
    _check_victim(dataset, checkpoint, official, kind)
    from vireid_lite.attacks import load_perturbation
    from vireid_lite.chapters import plots
    from vireid_lite.data import Modality
    from vireid_lite.machine import pick_device
    from vireid_lite.metrics.evaluation import direction_name, ranked
    from vireid_lite.study.run import ROUNDED, evaluate_victim, told_moved, trials_of

    chosen = pick_device(device)
    made = load_perturbation(perturbation) if perturbation else None
    if made and seen:
        made.made_by.pop("people", None)
    victim = _victim(checkpoint, official, kind, seed, chosen, tier, dataset, data_root, size, option, seen)
    model, _, data = victim
    directions = [modality for modality in Modality if query_modality in ("both", modality.name.lower())]
    plots.set_style()
    with exclusive(out_dir):
        found = evaluate_victim(victim, directions, out_dir, split, made, chosen)
        if made is not None:
            print(told_moved(ROUNDED, [attacked for _, attacked, _ in found]))
        for clean, attacked, moved in found:
            name, trial = direction_name(clean.query_modality), trials_of(data, clean.query_modality, split)[0]
            print(_scores_line(data, name, clean))
            strips = ranked(model, data, trial, queries=6, device=chosen)
            plots.save(plots.ranking_strips(data, *strips), out_dir, f"rankings {name}")
            if attacked is not None:
                low, high = 100 * moved["rank1"]["low"], 100 * moved["rank1"]["high"]
                print(_scores_line(data, name, attacked, ", attacked") + f"; change {low:+.1f} to {high:+.1f}")
                _attacked_figures(made, model, data, trial, chosen, out_dir)
    print(f"scores and rankings: {out_dir}")


def _attacked_figures(made, model, data, trial, device, out_dir: Path) -> None:
    """Write the rankings of attacked queries, and the queries before and after at true scale and magnified."""
    from vireid_lite.chapters import plots
    from vireid_lite.data import cached
    from vireid_lite.metrics.evaluation import direction_name, ranked

    queries, rankings = ranked(model, data, trial, queries=6, perturb=made.apply_rounded, device=device)
    store, modality = cached(data, trial.query, False), queries[0].modality
    clean, name = store.batch([store.row[query] for query in queries]), direction_name(modality)
    attacked = made.apply_rounded(clean, modality)
    strips = plots.ranking_strips(data, queries, rankings, crops=map(plots.picture, attacked))
    plots.save(strips, out_dir, f"rankings {name} attacked")
    sheet = plots.attack_sheet(clean[:4], attacked[:4], made.eps, [f"query {n + 1}" for n in range(len(clean[:4]))])
    plots.save(sheet, out_dir, f"attacked {name}")


@app.command()
def attack(
    name: take.AttackName, eps: take.Eps = "8/255", tied: take.Tied = False,
    gradients: take.Gradients = None, identities: take.Identities = None, set_: take.AttackSet = None,
    tier: take.Tier = "lite", dataset: take.DatasetName = None, data_root: take.DataRoot = None,
    option: take.Options = None, size: take.Size = None,
    checkpoint: take.Checkpoint = None, official: take.Official = None, kind: take.Kind = None,
    split: take.Split = "test", seen: take.SeenPeople = False, seed: take.Seed = 0,
    device: take.Device = "auto", out_dir: take.OutDir = Path("attack"),
) -> None:  # fmt: skip
    """Attack a frozen victim, score both directions, or resume a killed attack.

    Writes OUT_DIR/scores.json and, for a universal attack, OUT_DIR/perturbation.safetensors, which
    `vireid-lite evaluate --perturbation` applies to other data or another victim.
    """
    _check_victim(dataset, checkpoint, official, kind)
    from vireid_lite.attacks import UniversalAttack, build_attack
    from vireid_lite.chapters import plots
    from vireid_lite.machine import pick_device
    from vireid_lite.metrics.evaluation import direction_name
    from vireid_lite.study.run import attack_victim, told_moved, trials_of

    made = build_attack(name, gradients=gradients, eps=eps, tied=tied, **dict(set_ or ()))
    learns = isinstance(made, UniversalAttack)
    steps = learns and made.gradients_per_step
    for wrong, value, taken in (("gradients", gradients, steps), ("identities", identities, learns)):
        if value is not None and not taken:
            raise InputError(f"{name} takes no --{wrong}: it learns nothing from training images; leave it out")
    chosen = pick_device(device)
    victim = _victim(checkpoint, official, kind, seed, chosen, tier, dataset, data_root, size, option, seen)
    model, _, data = victim
    plots.set_style()
    with exclusive(out_dir):
        found = attack_victim(made, victim, out_dir, split, seed=seed, identities=identities, device=chosen)
        print(told_moved(made.stays, found.exact, found.rounded))
        for before, exact, rounded in zip(found.clean, found.exact, found.rounded, strict=True):
            for what, scores in (("", before), (", attacked", exact), (", attacked, 8 bits", rounded)):
                print(_scores_line(data, direction_name(before.query_modality), scores, what))
            if found.made is not None:
                trial = trials_of(data, before.query_modality, split)[0]
                _attacked_figures(found.made, model, data, trial, chosen, out_dir)
    print(f"{'scores and perturbation' if found.made is not None else 'scores'}: {out_dir}")


@app.command()
def lab(
    tier: take.Tier = "lite", option: take.Options = None, size: take.Size = None, checkpoint: take.Checkpoint = None,
    gradients: take.LabGradients = 120, identities: take.LabIdentities = 200,
    seed: take.Seed = 0, device: take.Device = "auto", out_dir: take.OutDir = Path("book/_static/lab/data"),
) -> None:  # fmt: skip
    """Export what the attack lab's page runs: a lite victim in 8 bits, perturbations learned for it, a gallery."""
    from vireid_lite.chapters.lab import export
    from vireid_lite.machine import pick_device

    chosen = pick_device(device)
    victim = _victim(checkpoint, None, None, seed, chosen, tier, "synthetic", None, size, option, False)
    made = export(victim, out_dir, seed=seed, gradients=gradients, identities=identities, device=chosen)
    size = sum(each["bytes"] for each in made["files"].values())
    print(f"{out_dir}: {made['name']}, {len(made['perturbations'])} perturbations, {size:,} bytes")


@app.command()
def campaign(
    file: take.CampaignFile, out_dir: take.OutDir = Path("book/results"), data_root: take.DataRoot = None,
    workers: take.Processes = 1, device: take.Device = "auto", rerun_stale: take.RerunStale = False,
) -> None:  # fmt: skip
    """Run every run of FILE that has no card yet, one card each, then what it asks to tune, two cards an attack."""
    from vireid_lite.study.tuning import read_tunings, tune
    from vireid_lite.study.workers import run_all, run_campaign

    options = {"workers": workers, "device": device, "root": data_root, "rerun_stale": rerun_stale}
    asked = read_tunings(file)  # what is wrong with it is said before anything runs
    report = run_campaign(file, out_dir, **options)
    for state, names in (tune(file, out_dir, run_all, **options) if asked else {}).items():
        report[state] = report.get(state, []) + names
    for state, names in report.items():
        print(f"{state}: {len(names)}" + "".join(f"\n  {name}" for name in names))


@app.command()
def bench(
    name: take.GridName, tier: take.Tier = "lite", dry_run: take.DryRun = False, verbose: take.Verbose = False,
    out_dir: take.OutDir = Path("book/results"), data_root: take.DataRoots = None,
    only: take.Only = None, seeds: take.Seeds = None, set_: take.RunSet = None,
    workers: take.Workers = 1, scheduler: take.Scheduler = None, threads: take.Threads = 1,
    device: take.Device = "auto", rerun_stale: take.RerunStale = False,
) -> None:  # fmt: skip
    """Run what a grid of the papers' tables has no card for yet, and print its tables."""
    from vireid_lite.study import grids
    from vireid_lite.study.workers import run_grid

    grid = grids.read_grid(name, tier, seeds=seeds, settings=dict(set_ or ()), only=only)
    if dry_run:
        found = grids.Results(out_dir).plan(grid.runs, rerun_stale=rerun_stale)
        print(grids.describe_plan(grid, found, verbose=verbose or only is not None))
        return
    options = {"workers": workers, "scheduler": scheduler, "threads": threads, "device": device}
    options["root"] = dict(data_root or ()) or None
    report = run_grid(grid.runs, out_dir, rerun_stale=rerun_stale, title=grid.name, **options)
    print(grids.describe(grid, grids.Results(out_dir)))
    print("; ".join(f"{state}: {len(names)}" for state, names in report.items()))


@app.command()
def book(
    tier: take.Tier = "lite", chapters: take.Chapters = None, parameter: take.Parameters = None,
    out_dir: take.OutDir = Path("_build"), execute_only: take.ExecuteOnly = False, force: take.Force = False,
    measure: take.Measure = False, edition: take.Edition = None, pdf: take.Pdf = False, sync: take.Sync = False,
) -> None:  # fmt: skip
    """Execute the chapters that changed and render the book; open OUT_DIR/html/index.html."""
    options = {"tier": tier, "chapters": chapters, "execute_only": execute_only, "force": force, "measure": measure}
    _production("book").book(dict(parameter or ()), out_dir, edition, pdf, sync, **options)


@app.command("publish-check")
def publish_check(out_dir: take.OutDir = Path("_build")) -> None:
    """Refuse a built book with a page from licensed or private images; the publishing workflow runs it first."""
    _production("publish-check").publish_check(out_dir)


def _production(command: str):
    """Return the book production of the working directory, or of the checkout that this package runs from."""
    for folder in (Path.cwd() / "book", Path(__file__).parents[1] / "book"):
        if (folder / "_make" / "cli.py").is_file():
            sys.path.insert(0, str(folder))
            try:
                return importlib.import_module("_make.cli")
            except ModuleNotFoundError as error:
                raise InputError(f"{command}: {error.name} is not installed; pip install 'vireid-lite[book]'") from None
    raise InputError(f"{Path.cwd()}: no book here; run vireid-lite {command} in a checkout of the repository")


def _read_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments, papermill's `-p NAME VALUE` as `-p NAME=VALUE` and a leading `~` as the home folder.

    Raises InputError for an empty one, which would be read as the working directory.
    """
    parts = (re.match(r"((?:[\w-]+=)?)(.*)", argument, re.DOTALL).groups() for argument in arguments)
    joined = [name + os.path.expanduser(value) for name, value in parts]
    for place in range(len(joined) - 3, -1, -1):
        if joined[place] in ("-p", "--parameter", "--parameters") and "=" not in joined[place + 1]:
            joined[place + 1 : place + 3] = [f"{joined[place + 1]}={joined[place + 2]}"]
    for before, argument in zip(["vireid-lite", *joined], joined, strict=False):
        if re.fullmatch(r"(--[\w-]+=)?", argument):
            raise InputError(f"{argument or before}: an empty value; give one, or leave it out")
    return joined


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End with 128 and the signal's number, as a shell has it.

    That is at once inside an import: a module half loaded swallows an exception, or fails later.
    """
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), f"\nvireid-lite: {INTERRUPTED}\n".encode())
            os._exit(128 + number)
        frame = frame.f_back
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; what stops it is one line on stderr.

    The exit code is 2 for bad input or a book that fails, 130 for SIGINT, 143 for SIGTERM.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file opened would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a path need not be text
    message, code = "", 0
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupted)
        code = app(_read_arguments(sys.argv[1:]), standalone_mode=False) or 0
        message = INTERRUPTED if code == 130 else ""  # as typer has it, without a message
        sys.stdout.flush()
    except SystemExit as ended:
        message, code = INTERRUPTED, ended.code
    except (BuildError, InputError) as error:
        message, code = str(error), 2
    except OSError as error:
        where, what = error.filename or "what is printed", error.strerror or error
        message, code = f"{where}: {what}; check the path, the rights to it and the space left", 2
    except Exception as error:
        # typer brings its own click, whose usage errors have no public name.
        if hasattr(error, "format_message"):
            how = f"; {error.ctx.command_path} --help lists what it takes" if getattr(error, "ctx", None) else ""
            message, code = error.format_message().replace("Value error, ", "").rstrip(".") + how, 2
        elif isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
            message, code = "not enough memory; ask for less at once: smaller crops, fewer images or people", 2
        else:
            raise
    if message := " ".join(message.split()):
        with contextlib.suppress(OSError):  # what was given may be of any length
            short = message if len(message) < 1000 else f"{message[:300]} ... {message[-300:]}"
            print("vireid-lite:", short, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # as the interpreter would find out once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
