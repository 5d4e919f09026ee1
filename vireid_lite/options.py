"""The arguments and options of the command line, each with what --help says of it."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _takes(kind: Any, text: str, *names: str, **limits: object) -> Any:
    """Return the type of an option: its value's, what --help says of it, its names where they are not the usual."""
    return Annotated[kind, typer.Option(*names, help=text, **limits)]


Text, Pairs, File = str | None, list[str] | None, Path | None

# What several commands take.
Tier = _takes(str, "lite, standard or full: the size of data and victim")
DatasetName = _takes(Text, "synthetic, sysu, regdb, llcm or paired_folder; default: the tier's")
DataRoot = _takes(File, "folder of your own copy of the data set", "--data-root", "--root")
Options = _takes(Pairs, "KEY=VALUE for the data set, such as difficulty=hard or search=indoor", "--option", "-o")
Size = _takes(Text, "HEIGHTxWIDTH of the crops in pixels; default: the tier's")
Checkpoint = _takes(File, "victim.safetensors; default: the tier's synthetic victim, trained if need be")
Official = _takes(File, "checkpoint of the published AGW, CAJ, DDAG or DEEN code (.t or .pth), not --checkpoint")
Kind = _takes(Text, "network of --official, where its keys do not tell: caj, as they are agw's", "--model")
Split = _takes(str, "test, or val where a choice is made")
Seed = _takes(int, "seed of initialisation, batches and augmentation", min=0, max=2**63 - 1)
Device = _takes(str, "auto, cpu, cuda or cuda:N")
OutDir = _takes(Path, "folder for what the command writes")
RerunStale = _takes(bool, "make cards again whose code has changed", "--rerun-stale")

# What one command takes.
DataCopy = Annotated[str, typer.Argument(help="sysu, regdb, llcm or paired_folder")]
CheckRoot = _takes(Path, "folder of your own copy", "--root", "--data-root")
Partial = _takes(bool, "accept a subset: counts that do not fit only warn", "--partial")
Network = _takes(Text, "agw, caj, ddag, deen, ide or pcb; default: the tier's")
NetworkSet = _takes(Pairs, "KEY=VALUE for the network, such as hetero_centre=0.5", "--set")
Triplet = _takes(Text, "wrt, hard, adp or none, in agw and caj; the others have losses of their own")
Backbone = _takes(Text, "lite, resnet18 or resnet50; default: the tier's")
Pretrained = _takes(
    bool | None, "ImageNet weights through torchvision; default: the tier's", "--pretrained/--from-scratch"
)
Epochs = _takes(int | None, "passes over the training images; default: the tier's")
LearningRate = _takes(float | None, "peak learning rate; default: the tier's")
Perturbation = _takes(File, "what `vireid-lite attack` saved; applied to the queries, in 8 bits")
QueryModality = _takes(str, "visible, infrared or both")
AttackNames = "cmps, uap, uap-retrieval, m-fgsm, sign-noise, ...; a wrong one lists all"
AttackName = Annotated[str, typer.Argument(help=AttackNames)]
Eps = _takes(str, "largest change of a pixel in [0, 1], such as 8/255 or 0.03")
Tied = _takes(bool, "three equal channels on infrared images", "--tied")
Gradients = _takes(int | None, "batches forward and backward in all; default: the attack's own steps", min=1)
Identities = _takes(int | None, "training identities a universal attack learns from; default: all", min=2)
AttackSet = _takes(Pairs, "KEY=VALUE for the attack, such as mode=released or steps=400", "--set")
CampaignFile = Annotated[Path, typer.Argument(help="TOML file of runs")]
Processes = _takes(int, "processes side by side", min=1)
GridNames = "smoke, cmps-tables, cmps-figures, feature-level-tables, transfer, or a .toml file"
GridName = Annotated[str, typer.Argument(help=GridNames)]
DryRun = _takes(bool, "print what is done and what is to do, a line a table and victim", "--dry-run")
Verbose = _takes(bool, "with --dry-run: every row", "--verbose")
DataRoots = _takes(Pairs, "NAME=FOLDER of your own copy, such as sysu=/data/SYSU", "--data-root", "--root")
Only = _takes(Text, 'rows whose line holds this text, such as "regdb, [regdb], AGW, CMPS"')
Seeds = _takes(Text, "such as 0,1,2; default: the grid's")
RunSet = _takes(Pairs, "TABLE.KEY=VALUE in every run, such as train.epochs=2", "--set")
Workers = _takes(int, "processes of a Dask cluster on this machine", min=1)
Scheduler = _takes(Text, "address of a running Dask cluster, tcp://HOST:PORT")
Threads = _takes(int, "PyTorch's, of a run; on a CPU scores are equal to the bit at equal numbers", min=1)
Chapters = _takes(Text, "numbers to execute, such as 1,3; default: all")
Parameters = _takes(Pairs, "NAME VALUE, as papermill's -p, or NAME=VALUE", "--parameters", "--parameter", "-p")
ExecuteOnly = _takes(bool, "do not render", "--execute-only")
Force = _takes(bool, "execute again what has not changed", "--force")
Measure = _takes(bool, "start from empty caches and note in book/results what chapters cost", "--measure")
Edition = _takes(Text, "student (no solutions) or instructor: build that edition in OUT_DIR/EDITION")
Pdf = _takes(bool, "print the rendered book to OUT_DIR/vireid-lite.pdf too; needs Chromium", "--pdf")
Sync = _takes(bool, "only write what derives from the sources: notebooks, URL", "--sync")
