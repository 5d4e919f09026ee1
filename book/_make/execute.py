"""Chapters run by papermill, each in a kernel of its own, and kept under a key of all that their results depend on."""

import ast
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from tqdm import tqdm

from _make.notebooks import executed_chapters, find_chapters, paired_notebook, read_record
from vireid_lite.chapters.costs import read_costs
from vireid_lite.chapters.parameters import check_machine, check_values, read_parameters
from vireid_lite.errors import BuildError, InputError
from vireid_lite.files import PACKAGE, source_hash, write_atomically
from vireid_lite.machine import device_name, pick_device, versions

TELL_EVERY = (60, 1)  # seconds; the second one at a terminal
TRACEBACK_LINES = 25  # of a cell that failed
# A chapter's import of something that reads run cards.
READS_CARDS = re.compile(r"(from|import) vireid_lite(\.| import .*)\b(study|cards|tables|benchmark)\b")


def injected(source: Path, asked: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return what papermill is to inject, checked: the parameters asked for that differ from the chapter's defaults."""
    root = source.parents[1]
    defaults, own = read_parameters(source.with_suffix(".ipynb"))
    asked = {"OUT_DIR": os.path.relpath(out / "chapters", root), **asked}
    try:
        values = check_values({**defaults, **asked}, own)
        # Chapters run in `root`, so that is where they look for a relative folder.
        check_machine({**values, "DATA_ROOT": values["DATA_ROOT"] and root / values["DATA_ROOT"]})
        standing = check_values(defaults, own)
    except InputError as error:
        known = {path.stem[:2]: read_parameters(path.with_suffix(".ipynb"))[0] for path in find_chapters(root)}
        fit = [str(int(number)) for number, names in known.items() if asked.keys() <= names.keys()]
        elsewhere = f"; for those that have it: --chapters {','.join(fit)}" if fit and asked.keys() - defaults else ""
        raise InputError(f"{source.stem}: {error}{elsewhere}") from None
    # In the reader's own spelling where it is text ("4/255"), so that the page shows what was asked for.
    return {name: asked[name] for name in sorted(asked) if values[name] != standing[name]}


def chapter_key(source: Path, given: Mapping[str, Any]) -> str:
    """Return a hash of a chapter, its parameters, the package, and the run cards where it imports what reads them."""
    digest = hashlib.sha256(json.dumps([package_key(), given]).encode() + paired_notebook(source))
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    if any(isinstance(node, ast.Import | ast.ImportFrom) and READS_CARDS.match(ast.unparse(node)) for node in nodes):
        for path in sorted((source.parents[1] / "book" / "results").rglob("*.json")):
            if path.name != "costs.json":
                digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def package_key() -> str:
    """Return a hash of the machine, what is installed, and the package: code without docstrings and comments, grids."""
    digest = hashlib.sha256(json.dumps([versions(), device_name(pick_device("auto")), source_hash()]).encode())
    for path in sorted([*PACKAGE.rglob("grids/*"), *PACKAGE.glob("behaviour.json")]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def environment(out: Path, cache: Path | None = None, at_once: int = 1) -> Any:
    """Let chapters run in this interpreter, with none of the user's Jupyter settings; crops and victims in `cache`.

    at_once: how many share the cores, unless the user says how many threads each has (OMP_NUM_THREADS).
    """
    own = out / "jupyter"
    own.mkdir(parents=True, exist_ok=True)
    settings = {
        "JUPYTER_PATH": "",
        "JUPYTER_DATA_DIR": str(own),
        "IPYTHONDIR": str(own / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once))),
        "VIREID_CACHE": str(cache or os.environ.get("VIREID_CACHE") or out / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
    }
    return patch.dict(os.environ, settings)


# Runs last in every chapter's kernel and is taken out again: what the chapter cost.
COST_CELL = """
import json, os, platform, sys
try:
    import resource
    _peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
except ImportError:  # Windows does not say
    _peaks = [0]
_gib = max(_peaks) / (2**30 if sys.platform == "darwin" else 2**20)
_cost = {"memory_gib": round(_gib, 2), "device": f"{platform.machine()} CPU, {os.cpu_count()} cores"}
_torch, _victims = sys.modules.get("torch"), sys.modules.get("vireid_lite.victims")
if _torch and _torch.cuda.is_initialized():
    _cost |= {"device": _torch.cuda.get_device_name(), "gpu_gib": round(_torch.cuda.max_memory_reserved() / 2**30, 2)}
if _victims:
    _cost["training_minutes"] = round(sum(_victims.found_trained.values()) / 60, 2)
    _cost["shipped_minutes"] = round(sum(_victims.found_shipped.values()) / 60, 2)
print(json.dumps(_cost))
"""


class _Told(NBClientEngine):
    """papermill's engine; its bar says for how long the running cell runs, and what that cell said last."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, *arguments, **options):
        def tell() -> None:
            while not ended.wait(TELL_EVERY[sys.stderr.isatty()]):
                for cell in nb_man.nb.cells:
                    if cell.metadata.papermill["status"] == "running":
                        took = datetime.now(UTC) - datetime.fromisoformat(cell.metadata.papermill["start_time"])
                        said = "".join(part.get("text", "") for part in cell.get("outputs", [])[-9:])
                        last = re.split(r"[\r\n]+", said.strip())[-1]
                        nb_man.pbar.set_postfix_str(f"this cell {str(took).partition('.')[0]} {last}".strip())

        ended, teller = threading.Event(), threading.Thread(target=tell)
        teller.start()
        try:
            super().execute_managed_notebook(nb_man, *arguments, **options)
        finally:
            ended.set()
            teller.join()


papermill_engines.register("told", _Told)


def execute(source: Path, given: Mapping[str, Any], folder: Path, force: bool = False) -> None:
    """Run one chapter unless its executed copy in `folder` has its key; the copy keeps outputs, key and cost.

    Raises BuildError where a cell fails, with the end of its traceback as a note, or where the kernel dies; the copy
    that stopped stays beside the finished one.
    """
    finished, failed = folder / f"{source.stem}.ipynb", folder / f"{source.stem}.failed.ipynb"
    key = chapter_key(source, given)
    if not force and read_record(finished).get("key") == key:
        tqdm.write(f"{source.stem}: unchanged, executed before")
        return
    notebook = nbformat.reads(paired_notebook(source).decode(), as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(COST_CELL))
    options = {"engine_name": "told", "kernel_name": "python3", "language": "python", "cwd": source.parents[1]}
    options["extra_arguments"] = ["--IPKernelApp.log_level=50"]
    options["progress_bar"] = {"desc": source.stem, "leave": False}
    started = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(notebook, failed, given, **options)
    except papermill.PapermillExecutionError as error:
        lines = (line.strip() for line in error.source.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        problem = f"{error.ename}: {error.evalue}".splitlines()[0]
        failure = BuildError(f"{source.stem}, cell [{error.exec_count}] `{first}`: {problem} (see {failed})")
        failure.add_note("\n".join(str(error).splitlines()[-TRACEBACK_LINES:]))
        raise failure from None
    except DeadKernelError:
        raise BuildError(f"{source.stem}: its kernel died, often for want of memory (see {failed})") from None
    cost = json.loads("".join(output.get("text", "") for output in notebook.cells.pop().outputs).splitlines()[-1])
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "Warning" in output.text:
                tqdm.write(f"{source.stem}, cell [{cell.execution_count}] warns: {output.text.splitlines()[0]}")
    defaults, own = read_parameters(source.with_suffix(".ipynb"))
    values = check_values({**defaults, **given}, own)
    asked = {name: given[name] for name in given if name not in ("TIER", "DATASET", "DATA_ROOT", "OUT_DIR")}
    made = {"key": key, "tier": values["TIER"], "dataset": values["DATASET"], "parameters": asked}
    del notebook.metadata["papermill"]
    notebook.metadata["vireid_run"] = {**made, "versions": versions(), "minutes": round(seconds / 60, 2), **cost}
    write_atomically(finished, (nbformat.writes(notebook) + "\n").encode())
    failed.unlink(missing_ok=True)
    tqdm.write(f"{source.stem}: executed in {seconds:.0f} s, {cost['memory_gib']:.1f} GiB")


def write_costs(folder: Path, path: Path) -> Path:
    """Merge what chapters in `folder` cost into the table `path`: with the training of victims found in a cache, and as
    "retrained" with that of victims that come with the package too."""
    table = read_costs(path)
    for notebook in executed_chapters(folder):
        if record := read_record(notebook):
            cost = {name: record[name] for name in ("memory_gib", "gpu_gib", "device") if name in record}
            cost["minutes"] = round(record["minutes"] + record.get("training_minutes", 0), 2)
            if shipped := record.get("shipped_minutes"):
                cost["retrained"] = round(cost["minutes"] + shipped, 2)
            table.setdefault(notebook.stem, {})[record["tier"]] = cost
    write_atomically(path, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())
    return path
