"""The arguments and options of the command line: what --help says of each, and what is refused before torch loads."""

import contextlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vireid_lite.errors import DATASETS, LARGEST_SEED, MANY, TIERS, InputError, check_choice, fraction, number

# Names known without torch; a test holds them equal to those of the modules.
NETWORKS = ("agw", "caj", "ddag", "deen", "ide", "pcb")
BACKBONES = ("lite", "resnet18", "resnet50")
TRIPLETS = ("wrt", "hard", "adp", "none")
UNIVERSAL = "uniform-noise sign-noise uap uap-retrieval uap-retrieval-grey meta-attack col-del dmr cmps feature-level"
ATTACKS = (*UNIVERSAL.split(), "fgsm", "pgd", "metric-fgsm", "m-fgsm", "sma", "fna", "odfa", "lta")


def _takes(kind: Any, text: str, *names: str, read: Callable | None = None, how: Any = typer.Option, **limits) -> Any:
    """Return the type of an option; read: takes the option's name and a value that is given."""

    def callback(param: typer.CallbackParam, value: Any) -> Any:
        return value if value in (None, [], ()) else read(param.opts[0], value)

    return Annotated[kind, how(*names, help=text, callback=callback if read else None, **limits)]


def _formed(pattern: str, expected: str, read: Callable, option: str, value: str) -> Any:
    with contextlib.suppress(ValueError):
        if re.fullmatch(pattern, value):
            return read(value)
    raise InputError(f"{option} {value!r}: give {expected}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _plain(text: str) -> Any:
    with contextlib.suppress(RecursionError, ValueError):
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    with contextlib.suppress(ValueError):
        return number(text, float, "a quotient, as campaigns take") if "/" in text else text
    return text


def _file(remedy: str, option: str, path: Path) -> Path:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{option} {path} {found}; {remedy}, or check the path")
    return path


def _folder(option: str, path: Path) -> Path:
    there, why = next(each for each in (path, *path.absolute().parents) if each.exists()), "looks like an option"
    if not there.is_dir():
        why = f"lies below {there}, a file" if there != path else "is a file"
    elif not str(path).startswith("-"):
        return path
    raise InputError(f"{option} {path}: {why}; give a folder, which is made if need be")


def _pairs(text: str, example: str, *names: str, read: Callable = _plain, own: str = "", known: tuple = ()) -> Any:
    """Return the type of an option of KEY=VALUE pairs; own: keys that have an option of their own; known: all keys."""

    def read_pairs(option: str, pairs: list[str]) -> list[tuple[str, Any]]:
        split = [pair.partition("=") for pair in pairs]
        for pair, (name, equals, _) in zip(pairs, split, strict=True):
            if not (name and equals):
                raise InputError(f"{option} {pair!r}: a name and a value are needed, such as {option} {example}")
            if name in own.split():
                raise InputError(f"{option} {name}: not given here; --help says whether the command takes --{name}")
            if known:
                check_choice(option, "name", name, known)
            if [other for other, _, _ in split].count(name) > 1:
                raise InputError(f"{option} {name} is given twice; give it once")
        return [(name, read(value)) for name, _, value in split]

    return _takes(list[str] | None, f"{text}, such as {example}", *names, read=read_pairs)


Text, File = str | None, Path | None
ROOT, ROOTS = {"exists": True, "file_okay": False}, ("--data-root", "--root")
SIZE = partial(_formed, r"\d+[xX]\d+", "HEIGHTxWIDTH in pixels, such as 128x64", _numbers)
NUMBERS = partial(_formed, r"\s*\d+\s*(,\s*\d+\s*)*", "whole numbers with commas between them, such as 0,1,2", _numbers)
DEVICE = partial(_formed, "auto|cpu|mps|cuda(:[0-9]+)?", "auto, cpu, mps, cuda or cuda:N", str)
EPS = partial(_formed, ".*", "a fraction in [0, 1], such as 8/255 or 0.03", fraction)
GRIDS = r"smoke|cmps-(tables|figures)|feature-level-tables|transfer|.*\.toml"
GRID = "smoke, cmps-tables, cmps-figures, feature-level-tables, transfer, or a .toml file"

# What several commands take.
Tier = _takes(Literal[tuple(TIERS)], "the size of data and victim")
DatasetName = _takes(Literal[DATASETS] | None, "default: the tier's")
DataRoot = _takes(File, "folder of your own copy of the data set", *ROOTS, **ROOT)
Options = _pairs("KEY=VALUE for the data set", "difficulty=hard", "-o", "--option", own="tier dataset root size")
Size = _takes(Text, "HEIGHTxWIDTH of the crops in pixels; default: the tier's", read=SIZE)
TRAIN, ATTACK = "`vireid-lite train` writes victim.safetensors", "`vireid-lite attack` writes perturbation.safetensors"
CHECKPOINT = "victim.safetensors; default: the tier's synthetic victim, trained if need be"
Checkpoint = _takes(File, CHECKPOINT, read=partial(_file, TRAIN))
OFFICIAL = "checkpoint of the published AGW, CAJ, DDAG or DEEN code (.t or .pth)"
Official = _takes(File, OFFICIAL, read=partial(_file, "give what the published code saved"))
Kind = _takes(
    Literal["agw", "caj", "ddag", "deen"] | None,
    "network of --official, where its keys do not tell: caj, as they are agw's",
    "--model",
)
Retrain = _takes(bool, "train a victim even where it comes with the package", "--retrain")
SeenPeople = _takes(bool, "rank people whom victim or perturbation has seen, otherwise refused", "--allow-seen-people")
Split = _takes(Literal["test", "val", "tuning"], "test; val where a victim is chosen; tuning where an attack is")
Seed = _takes(int, "seed of initialisation, batches and augmentation", min=0, max=LARGEST_SEED)
Device = _takes(str, "auto, cpu, mps, cuda or cuda:N", read=DEVICE)
OutDir = _takes(Path, "folder for what the command writes", read=_folder)
RerunStale = _takes(bool, "make cards again whose code has changed", "--rerun-stale")

# What one command takes.
DataCopy = _takes(Literal[DATASETS[1:]], "data set", how=typer.Argument)
CheckRoot = _takes(Path, "folder of your own copy", "--root", "--data-root", **ROOT)
Partial = _takes(bool, "accept a subset: counts that do not fit only warn", "--partial")
Network = _takes(Literal[NETWORKS] | None, "default: the tier's")
NetworkSet = _pairs("KEY=VALUE for the network", "hetero_centre=0.5", "--set")
Triplet = _takes(Literal[TRIPLETS] | None, "in agw and caj; the others have losses of their own")
Backbone = _takes(Literal[BACKBONES] | None, "default: the tier's")
Pretrained = _takes(bool | None, "ImageNet weights, or none; default: the tier's", "--pretrained/--from-scratch")
Epochs = _takes(int | None, "passes over the training images; default: the tier's", min=1, max=MANY)
LearningRate = _takes(float | None, "peak learning rate; default: the tier's", min=1e-12, max=1e12)
PERTURBATION = "what `vireid-lite attack` saved; applied to the queries, in 8 bits"
Perturbation = _takes(File, PERTURBATION, read=partial(_file, ATTACK))
QueryModality = _takes(Literal["visible", "infrared", "both"], "whose images are queries")
AttackName = _takes(Literal[ATTACKS], "attack", how=typer.Argument)
Eps = _takes(str, "largest change of a pixel in [0, 1], such as 8/255 or 0.03", read=EPS)
Tied = _takes(bool, "three equal channels on infrared images", "--tied")
Gradients = _takes(int | None, "batches forward and backward in all; default: the attack's own steps", min=1, max=MANY)
Identities = _takes(int | None, "training identities a universal attack learns from; default: all", min=2, max=MANY)
AttackSet = _pairs("KEY=VALUE for the attack", "mode=released", "--set", own="eps gradients identities name tied")
LabGradients = _takes(int, "batches forward and backward that a perturbation is learned from", min=2, max=MANY)
LabIdentities = _takes(int, "training identities it is learned from", min=2, max=MANY)
CampaignFile = _takes(Path, "TOML file of runs", how=typer.Argument, read=partial(_file, "write one"))
Processes = _takes(int, "processes side by side", min=1, max=1024)
GridName = _takes(str, GRID, how=typer.Argument, read=partial(_formed, GRIDS, GRID, str))
DryRun = _takes(bool, "print what is done and what is to do, a line a table and victim", "--dry-run")
Verbose = _takes(bool, "with --dry-run: every row", "--verbose")
DataRoots = _pairs("NAME=FOLDER of your own copy", "sysu=/data/SYSU-MM01", *ROOTS, read=Path, known=DATASETS[1:])
Only = _takes(Text, 'rows whose line holds this text, such as "regdb, [regdb], AGW, CMPS"')
Seeds = _takes(Text, "such as 0,1,2; default: the grid's", read=NUMBERS)
RunSet = _pairs("TABLE.KEY=VALUE in every run", "train.epochs=2", "--set")
Workers = _takes(int, "processes of a Dask cluster on this machine", min=1, max=1024)
Scheduler = _takes(Text, "address of a running Dask cluster, tcp://HOST:PORT")
Threads = _takes(int, "PyTorch's, of a run; on a CPU scores are equal to the bit at equal numbers", min=1, max=1024)
Chapters = _takes(Text, "numbers to execute, such as 1,3; default: all", read=NUMBERS)
Parameters = _pairs("NAME VALUE or NAME=VALUE", "EPS 4/255", "-p", "--parameter", "--parameters", read=str)
ExecuteOnly = _takes(bool, "do not render", "--execute-only")
Force = _takes(bool, "execute again what has not changed", "--force")
Measure = _takes(bool, "start from empty caches and note in book/results what chapters cost", "--measure")
Edition = _takes(Literal["student", "instructor"] | None, "built in OUT_DIR/EDITION; the student's has no solutions")
Pdf = _takes(bool, "print the rendered book to OUT_DIR/vireid-lite.pdf too; needs Chromium", "--pdf")
Sync = _takes(bool, "only write what derives from the sources: notebooks, URL", "--sync")
