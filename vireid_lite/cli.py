"""The command line: what the chapters do, with the same names for the same parameters."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import typer

from vireid_lite import options as take
from vireid_lite.errors import BuildError, InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, help="Verify a copy of a data set.")
app.add_typer(data_app, name="data")


def _dataset(tier: str, dataset: str | None, root: Path | None, size: str | None, options: list[str] | None):
    from vireid_lite.victims import tier_dataset

    sides = size.lower().split("x") if size is not None else None
    if sides and not (len(sides) == 2 and all(map(str.isdecimal, sides))):
        raise InputError(f"--size {size!r}: give HEIGHTxWIDTH in pixels, such as 128x64")
    own = {"name": "dataset", **{key: key for key in ("tier", "dataset", "root", "size")}}
    given = _parse_pairs("-o", options, "difficulty=hard", own)
    return tier_dataset(tier, dataset, root, size=sides and tuple(map(int, sides)), **given)


def _numbers(option: str, text: str | None, what: str) -> list[int] | None:
    """Read numbers with commas between them."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(map(str.isdecimal, parts)):
        raise InputError(f"{option} {text!r}: give {what}")
    return [int(part) for part in parts] or None


def _split_pair(option: str, pair: str, example: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not (name and equals):
        raise InputError(f"{option} {pair!r}: a name and a value are needed, such as {option} {example}")
    return name, value


def _parse_pairs(option: str, pairs: list[str] | None, example: str, own: dict[str, str] | None = None) -> dict:
    """Read KEY=VALUE pairs; a value is a JSON number, true or false, or plain text. own: keys with another option."""
    options = {}
    for key, value in (_split_pair(option, pair, example) for pair in pairs or []):
        if key in (own or {}):
            raise InputError(f"{option} {key}: give it as an option of its own, --{own[key]}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


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
    tier: take.Tier = "lite",
    dataset: take.DatasetName = None,
    data_root: take.DataRoot = None,
    option: take.Options = None,
    size: take.Size = None,
    model: take.Network = None,
    set_: take.NetworkSet = None,
    triplet: take.Triplet = None,
    backbone: take.Backbone = None,
    pretrained: take.Pretrained = None,
    epochs: take.Epochs = None,
    learning_rate: take.LearningRate = None,
    seed: take.Seed = 0,
    device: take.Device = "auto",
    out_dir: take.OutDir = Path("victim"),
) -> None:
    """Train a victim, or resume a killed training; write OUT_DIR/victim.safetensors and its card."""
    from vireid_lite.victims import load_or_train, tier_recipe

    network = {"options": _parse_pairs("--set", set_, "hetero_centre=0.5"), "backbone": backbone, "triplet": triplet}
    settings = {"pretrained": pretrained, "epochs": epochs, "learning_rate": learning_rate}
    recipe = tier_recipe(tier, model=model, **network, **settings)
    data = _dataset(tier, dataset, data_root, size, option)
    _, card = load_or_train(recipe, data, seed=seed, device=device, folder=out_dir)
    history, seconds = card["history"], card["seconds"]
    print(
        f"{out_dir / 'victim.safetensors'}: {len(history)} epochs in {seconds:.0f} s on {card['device']}, "
        f"accuracy in the last one {history[-1]['accuracy']:.3f}"
    )


def _victim_and_data(tier, dataset, root, option, size, checkpoint, official, split, seed, device):
    """Return the victim on its device, its card, and the data set at the size the victim was trained on."""
    from vireid_lite.study.run import victim_and_data

    if split not in ("test", "val"):
        raise InputError(f"--split {split!r}: give test or val")
    if checkpoint and official:
        raise InputError("--official names a victim already; leave out --checkpoint")
    if checkpoint is None and official is None and dataset not in (None, "synthetic", "paired_folder"):
        raise InputError(f"{dataset}: give --checkpoint; `vireid-lite train --dataset {dataset}` makes one")

    def open_data(trained: list | None):
        return _dataset(tier, dataset, root, size or (f"{trained[0]}x{trained[1]}" if trained else None), option)

    return victim_and_data(tier, checkpoint, official, open_data, seed, device)


def _scores_line(data, direction: str, result, what: str = "") -> str:
    _, low, high = (100 * value for value in result.chance.independent.rank1)
    rank1, mean, least = 100 * result.rank1, 100 * result.mAP, 100 * result.mINP
    scores = f"rank-1 {rank1:.1f} %, mAP {mean:.1f} %, mINP {least:.1f} %"
    return f"{data.name}, {direction}{what}: {scores}; chance rank-1 {low:.1f} to {high:.1f} %"


def _save_figure(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    from vireid_lite.files import write_atomically

    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    write_atomically(path, picture.getvalue())


@app.command()
def evaluate(
    tier: take.Tier = "lite",
    dataset: take.DatasetName = None,
    data_root: take.DataRoot = None,
    option: take.Options = None,
    size: take.Size = None,
    checkpoint: take.Checkpoint = None,
    official: take.Official = None,
    perturbation: take.Perturbation = None,
    query_modality: take.QueryModality = "both",
    split: take.Split = "test",
    seed: take.Seed = 0,
    device: take.Device = "auto",
    out_dir: take.OutDir = Path("evaluation"),
) -> None:
    """Rank queries against a gallery; write OUT_DIR/scores.json and a figure of rankings for each direction.

    With --perturbation the scores are those of attacked queries, beside the clean ones, and the figures show both.
    """
    from vireid_lite.attacks import load_perturbation
    from vireid_lite.chapters.plots import ranking_strips, set_style
    from vireid_lite.data import Modality
    from vireid_lite.files import exclusive
    from vireid_lite.machine import pick_device
    from vireid_lite.metrics.evaluation import direction_name, ranked
    from vireid_lite.study.run import evaluate_victim, trials_of

    named = {modality.name.lower(): [modality] for modality in Modality} | {"both": list(Modality)}
    if query_modality not in named:
        raise InputError(f"--query-modality {query_modality!r}: give visible, infrared or both")
    chosen = pick_device(device)
    made = load_perturbation(perturbation) if perturbation else None
    victim = _victim_and_data(tier, dataset, data_root, option, size, checkpoint, official, split, seed, chosen)
    model, _, data = victim
    set_style()
    with exclusive(out_dir):
        found = evaluate_victim(victim, named[query_modality], out_dir, split, made, chosen)
        for clean, attacked, moved in found:
            direction, trial = direction_name(clean.query_modality), trials_of(data, clean.query_modality, split)[0]
            print(_scores_line(data, direction, clean))
            strips = ranked(model, data, trial, queries=6, device=chosen)
            _save_figure(ranking_strips(data, *strips), out_dir / f"rankings_{direction.replace(' ', '_')}.png")
            if attacked is not None:
                low, high = 100 * moved["rank1"]["low"], 100 * moved["rank1"]["high"]
                print(_scores_line(data, direction, attacked, ", attacked") + f"; change {low:+.1f} to {high:+.1f}")
                _attacked_figures(made, model, data, trial, strips[0], chosen, out_dir)
    print(f"scores and rankings: {out_dir}")


def _attacked_figures(made, model, data, trial, queries, device, out_dir: Path) -> None:
    """Write the rankings of attacked queries, and the queries before and after at true scale and magnified."""
    import numpy as np

    from vireid_lite.chapters.plots import attack_sheet, picture, ranking_strips
    from vireid_lite.data import cached
    from vireid_lite.metrics.evaluation import direction_name, ranked

    store, modality = cached(data, trial.query, False), queries[0].modality
    clean, name = store.batch(np.array([store.row[query] for query in queries])), direction_name(modality)
    attacked = made.apply_rounded(clean, modality)
    strips = ranked(model, data, trial, queries=queries, perturb=made.apply_rounded, device=device)
    figure = ranking_strips(data, *strips, crops=[picture(image) for image in attacked])
    _save_figure(figure, out_dir / f"rankings_{name.replace(' ', '_')}_attacked.png")
    sheet = attack_sheet(clean[:4], attacked[:4], made.eps, [f"query {n + 1}" for n in range(len(clean[:4]))])
    _save_figure(sheet, out_dir / f"attacked_{name.replace(' ', '_')}.png")


@app.command()
def attack(
    name: take.AttackName,
    eps: take.Eps = "8/255",
    tied: take.Tied = False,
    gradients: take.Gradients = None,
    identities: take.Identities = None,
    set_: take.AttackSet = None,
    tier: take.Tier = "lite",
    dataset: take.DatasetName = None,
    data_root: take.DataRoot = None,
    option: take.Options = None,
    size: take.Size = None,
    checkpoint: take.Checkpoint = None,
    official: take.Official = None,
    split: take.Split = "test",
    seed: take.Seed = 0,
    device: take.Device = "auto",
    out_dir: take.OutDir = Path("attack"),
) -> None:
    """Attack a frozen victim, score both directions, or resume a killed attack.

    Writes OUT_DIR/scores.json and, for a universal attack, OUT_DIR/perturbation.safetensors, which
    `vireid-lite evaluate --perturbation` applies to other data or another victim.
    """
    from vireid_lite.attacks import UniversalAttack, build_attack
    from vireid_lite.chapters.plots import set_style
    from vireid_lite.errors import fraction
    from vireid_lite.files import exclusive
    from vireid_lite.machine import pick_device
    from vireid_lite.metrics.evaluation import direction_name
    from vireid_lite.study.run import attack_victim, trials_of

    try:
        budget = fraction(eps)
    except ValueError as error:
        raise InputError(f"--eps {eps!r}: {error} is needed") from None
    own = {key: key for key in ("eps", "gradients", "identities", "name", "tied")}
    given = _parse_pairs("--set", set_, "mode=released", own)
    made = build_attack(name, gradients=gradients, eps=budget, tied=tied, **given)
    universal = isinstance(made, UniversalAttack)
    refused = {"gradients": gradients} if not (universal and made.gradients_per_step) else {}
    refused |= {"identities": identities} if not universal else {}
    for wrong in (key for key, asked in refused.items() if asked is not None):
        raise InputError(f"{name} takes no --{wrong}: it learns nothing from training images; leave it out")
    chosen = pick_device(device)
    victim = _victim_and_data(tier, dataset, data_root, option, size, checkpoint, official, split, seed, chosen)
    model, _, data = victim
    set_style()
    with exclusive(out_dir):
        found = attack_victim(made, victim, out_dir, split, seed=seed, identities=identities, device=chosen)
        for before, exact, rounded in zip(found.clean, found.exact, found.rounded, strict=True):
            for what, scores in (("", before), (", attacked", exact), (", attacked, 8 bits", rounded)):
                print(_scores_line(data, direction_name(before.query_modality), scores, what))
            if found.made is not None:
                trial = trials_of(data, before.query_modality, split)[0]
                queries = trial.query[:: max(1, len(trial.query) // 6)][:6]
                _attacked_figures(found.made, model, data, trial, queries, chosen, out_dir)
    print(f"{'scores and perturbation' if found.made is not None else 'scores'}: {out_dir}")


@app.command()
def campaign(
    file: take.CampaignFile,
    out_dir: take.OutDir = Path("book/results"),
    data_root: take.DataRoot = None,
    workers: take.Processes = 1,
    device: take.Device = "auto",
    rerun_stale: take.RerunStale = False,
) -> None:
    """Run every run of FILE that has no card yet, one card each."""
    from vireid_lite.study.workers import run_campaign

    report = run_campaign(file, out_dir, workers=workers, device=device, root=data_root, rerun_stale=rerun_stale)
    for state, names in report.items():
        print(f"{state}: {len(names)}" + "".join(f"\n  {name}" for name in names))


@app.command()
def bench(
    name: take.GridName,
    tier: take.Tier = "lite",
    dry_run: take.DryRun = False,
    verbose: take.Verbose = False,
    out_dir: take.OutDir = Path("book/results"),
    data_root: take.DataRoots = None,
    only: take.Only = None,
    seeds: take.Seeds = None,
    set_: take.RunSet = None,
    workers: take.Workers = 1,
    scheduler: take.Scheduler = None,
    threads: take.Threads = 1,
    device: take.Device = "auto",
    rerun_stale: take.RerunStale = False,
) -> None:
    """Run what a grid of the papers' tables has no card for yet, and print its tables."""
    from vireid_lite.study import grids
    from vireid_lite.study.workers import run_grid

    wanted = _numbers("--seeds", seeds, "whole numbers with commas between them, such as 0,1,2")
    pairs = [_split_pair("--data-root", pair, "sysu=/data/SYSU-MM01") for pair in data_root or []]
    roots = {dataset: Path(folder) for dataset, folder in pairs} or None
    settings = _parse_pairs("--set", set_, "train.epochs=2")
    grid = grids.read_grid(name, tier, seeds=wanted, settings=settings, only=only)
    if dry_run:
        found = grids.Results(out_dir).plan(grid.runs, rerun_stale=rerun_stale)
        print(grids.describe_plan(grid, found, verbose=verbose or only is not None))
        return
    options = {"workers": workers, "scheduler": scheduler, "threads": threads, "device": device, "root": roots}
    report = run_grid(grid.runs, out_dir, rerun_stale=rerun_stale, title=grid.name, **options)
    print(grids.describe(grid, grids.Results(out_dir)))
    print("; ".join(f"{state}: {len(names)}" for state, names in report.items()))


@app.command()
def book(
    tier: take.Tier = "lite",
    chapters: take.Chapters = None,
    parameter: take.Parameters = None,
    out_dir: take.OutDir = Path("_build"),
    execute_only: take.ExecuteOnly = False,
    force: take.Force = False,
    measure: take.Measure = False,
    edition: take.Edition = None,
    pdf: take.Pdf = False,
    sync: take.Sync = False,
) -> None:
    """Execute the chapters that changed and render the book; open OUT_DIR/html/index.html."""
    chosen = _numbers("--chapters", chapters, "numbers with commas between them, such as 1,3")
    given = dict(_split_pair("-p", pair, "EPS 4/255") for pair in parameter or [])
    options = {"tier": tier, "chapters": chosen, "execute_only": execute_only, "force": force, "measure": measure}
    _production("book").book(given, out_dir, edition, pdf, sync, **options)


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


def _join_parameters(arguments: list[str]) -> list[str]:
    """Turn papermill's `-p NAME VALUE` into `-p NAME=VALUE`, which one option can hold."""
    joined = list(arguments)
    for place in range(len(joined) - 3, -1, -1):
        if joined[place] in ("-p", "--parameter", "--parameters") and "=" not in joined[place + 1]:
            joined[place + 1 : place + 3] = [f"{joined[place + 1]}={joined[place + 2]}"]
    return joined


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2, a book that fails exit code 1."""
    try:
        sys.exit(app(_join_parameters(sys.argv[1:]), standalone_mode=False))
    except (typer.Abort, KeyboardInterrupt):
        message, code = "interrupted; what is finished is kept, the same command resumes", 130
    except BuildError as error:
        message, code = str(error), 1
    except InputError as error:
        message, code = str(error), 2
    except Exception as error:
        # typer brings its own click, whose usage errors have no public name.
        if not hasattr(error, "format_message"):
            raise
        message, code = " ".join(error.format_message().split()), 2
    print(f"vireid-lite: {message}", file=sys.stderr)
    sys.exit(code)
