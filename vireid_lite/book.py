"""From source to page: pair, execute (papermill, cached), stage, render (jupyter-book, warnings are errors).

Sources are `notebooks/NN_name.py` (jupytext percent) with their pairs `NN_name.ipynb`, `book/`, `_config.yml` and
`_toc.yml`. A build writes under its output folder alone, files whole or not at all, so it may be killed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vireid_lite.chapters.parameters import check_machine, check_values, read_parameters
from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically
from vireid_lite.machine import device_name, pick_device, versions

PACKAGE = Path(__file__).parent

NOT_READ_BY_CHAPTERS = (
    "book.py",
    "claims.py",
    "cli.py",
    "editions.py",
    "landing.py",
    "printing.py",
    "publishing.py",
)

DERIVED = ("README.md", "CITATION.cff", "CONTRIBUTING.md", "book/*.md", "notebooks/*.py")


class BuildError(RuntimeError):
    """A chapter that fails, or pages that do not render; the message is one line that says where."""


def repository_root() -> Path:
    """Return the folder of the book's sources: the working directory, or the checkout this package runs from."""
    for folder in (Path.cwd(), PACKAGE.parent):
        if (folder / "_toc.yml").is_file():
            return folder
    raise InputError(f"{Path.cwd()}: no _toc.yml here; run vireid-lite book in a checkout of the repository")


def repository_url(root: Path) -> str:
    """Return the project's public address, which `pyproject.toml` alone holds, without a slash at the end."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"].rstrip(
        "/"
    )


def find_chapters(root: Path) -> list[Path]:
    """Return the chapters' reviewed sources `notebooks/NN_name.py`, in order."""
    return sorted(path for path in (root / "notebooks").glob("*.py") if re.match(r"\d\d_\w+$", path.stem))


def paired_notebook(source: Path) -> bytes:
    """Return the notebook that a chapter's percent source stands for: no outputs, the same bytes every time."""
    import jupytext
    import nbformat

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{source.stem}/{index}".encode()).hexdigest()[:8]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return (nbformat.writes(notebook, ensure_ascii=False).rstrip("\n") + "\n").encode()


def sync(root: Path | None = None) -> list[Path]:
    """Write what is derived from a source: notebooks, the claims page, measured costs, the public address.

    The address that CITATION.cff holds is taken as the former one and replaced in the files that quote it.
    Returns the files that changed.
    """
    root = root or repository_root()
    changed = []

    def update(path: Path, data: bytes) -> None:
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
            changed.append(path)

    url, citation = repository_url(root), root / "CITATION.cff"
    quoted = citation.read_text(encoding="utf-8") if citation.exists() else ""
    former = re.search(r"^repository-code:\s*\"?([^\s\"]+?)/?\"?\s*$", quoted, re.MULTILINE)
    if former and former[1] != url:
        names = [address.removeprefix("https://github.com/") for address in (former[1], url)]
        for pattern in DERIVED:
            for path in sorted(root.glob(pattern)):
                text = path.read_text(encoding="utf-8").replace(former[1], url)
                update(path, text.replace(f"/github/{names[0]}/", f"/github/{names[1]}/").encode())
    for source in find_chapters(root):
        update(source.with_suffix(".ipynb"), paired_notebook(source))
    if (root / "book" / "claims.toml").exists():
        from vireid_lite.claims import page  # only here: it needs torch, and a build does not

        update(root / "book" / "claims.md", page(root).encode())
    if (root / "book" / "instructors").is_dir():
        from vireid_lite.editions import instructor_pages  # reads this module

        for path, data in instructor_pages(root).items():
            update(path, data)
    return changed


def check_pairs(root: Path) -> None:
    """Raise InputError where a chapter's notebook is missing or is not what its source says."""
    for source in find_chapters(root):
        notebook = source.with_suffix(".ipynb")
        if not notebook.exists() or notebook.read_bytes() != paired_notebook(source):
            raise InputError(
                f"notebooks/{notebook.name} is not in step with {source.name}; run vireid-lite book --sync"
            )


def build_book(
    tier: str = "lite",
    chapters: Sequence[int] | None = None,
    parameters: Mapping[str, Any] | None = None,
    out: Path | str = "_build",
    execute_only: bool = False,
    force: bool = False,
    root: Path | None = None,
    progress: bool = True,
    measure: bool = False,
) -> Path:
    """Execute the chapters that changed, then render the book; return the page to open (or the executed folder).

    tier: "lite", "standard" or "full". chapters: numbers to execute, all by default; the others are shown as they last
    ran. parameters: set in every chapter executed, on top of the tier. out: folder for everything made, relative to the
    repository. force: execute again what is cached. The cache is keyed by chapter, parameters, package and run cards.
    measure: instead, run each chapter with empty caches, as if opened alone, and note its cost in the sources'
    `book/results/costs.json`, which is returned. A victim is trained once; its training counts for every chapter that
    asks for it.
    Raises InputError before anything runs (a stale pair, an unknown chapter or parameter), BuildError after.
    """
    root = (root or repository_root()).resolve()
    out = root / out
    check_pairs(root)
    chosen = _choose(find_chapters(root), chapters)
    jobs = [(source, _parameters(source, {**(parameters or {}), "TIER": tier}, out, root)) for source in chosen]
    shared = _shared_key(root)
    folder = out / ("measured" if measure else "executed")
    folder.mkdir(parents=True, exist_ok=True)
    for source, given in jobs:
        digest = hashlib.sha256(json.dumps([shared, given]).encode() + source.with_suffix(".ipynb").read_bytes())
        if measure:
            _forget(folder / "cache", keep="victims" if source != jobs[0][0] else "")
        with _kernel(out, folder / "cache" if measure else None):
            _execute(source, given, digest.hexdigest()[:16], folder, root, force or measure, progress)
    if measure:
        return write_costs(folder, root / "book" / "results" / "costs.json")
    write_costs(folder)
    if execute_only:
        return folder
    complete = _stage(root, out)
    return _render(out, strict=complete)


def _forget(cache: Path, keep: str) -> None:
    """Empty a folder of caches but for the one named `keep`."""
    for path in cache.glob("*"):
        if path.name != keep:
            shutil.rmtree(path)


def _choose(sources: list[Path], chapters: Sequence[int] | None) -> list[Path]:
    if not sources:
        raise InputError("notebooks/ holds no chapter NN_name.py")
    numbers = {int(source.stem[:2]): source for source in sources}
    for number in chapters or ():
        if number not in numbers:
            raise InputError(f"--chapters {number}: there is no such chapter; there are {', '.join(map(str, numbers))}")
    return [numbers[number] for number in sorted(set(chapters))] if chapters else sources


def _parameters(source: Path, asked: Mapping[str, Any], out: Path, root: Path) -> dict[str, Any]:
    """Return what papermill is to inject, checked: the parameters asked for that differ from the chapter's defaults."""
    defaults, own = read_parameters(source.with_suffix(".ipynb"))
    asked = {"OUT_DIR": os.path.relpath(out / "chapters", root), **asked}
    try:
        values = check_values({**defaults, **asked}, own)
        # Chapters run in `root`, so that is where they look for a relative folder.
        check_machine({**values, "DATA_ROOT": values["DATA_ROOT"] and root / values["DATA_ROOT"]})
        standing = check_values(defaults, own)
    except InputError as error:
        raise InputError(f"{source.stem}: {error}{_elsewhere(asked, defaults, root)}") from None
    # In the reader's own spelling where it is text ("4/255"), so that the page shows what was asked for.
    return {name: asked[name] for name in sorted(asked) if values[name] != standing[name]}


def _elsewhere(asked: Mapping[str, Any], defaults: Mapping[str, Any], root: Path) -> str:
    """Name the chapters that have every parameter asked for, where one that was chosen lacks some."""
    if set(asked) <= set(defaults):
        return ""
    notebooks = {int(source.stem[:2]): source.with_suffix(".ipynb") for source in find_chapters(root)}
    fit = [str(number) for number, path in notebooks.items() if set(asked) <= set(read_parameters(path)[0])]
    return f"; for those that have it: --chapters {','.join(fit)}" if fit else ""


def _shared_key(root: Path) -> str:
    """Return what every chapter's result may depend on: the package's sources and grids, run cards and versions."""
    digest = hashlib.sha256(json.dumps([versions(), device_name(pick_device("auto"))]).encode())
    sources = [
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() not in NOT_READ_BY_CHAPTERS
    ]
    sources += (PACKAGE / "study" / "grids").glob("*")
    cards = [path for path in (root / "book" / "results").rglob("*") if path.is_file()]
    for path in sorted(sources) + sorted(cards):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _kernel(out: Path, cache: Path | None = None) -> Iterator[None]:
    """Let `python3` mean this interpreter, with none of the user's own IPython settings, while a chapter runs.

    cache: where victims and crops are kept; default: VIREID_CACHE, or `out`/cache.
    """
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.log_level=50"],
        "display_name": "Python 3",
        "language": "python",
        "env": {
            "IPYTHONDIR": str(out / "jupyter" / "ipython"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "VIREID_CACHE": str(cache or os.environ.get("VIREID_CACHE") or out / "cache"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        },
    }
    write_atomically(out / "jupyter" / "kernels" / "python3" / "kernel.json", json.dumps(spec, indent=1).encode())
    former = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(out / "jupyter"), former]))
    try:
        yield
    finally:
        os.environ.pop("JUPYTER_PATH") if former is None else os.environ.update(JUPYTER_PATH=former)


# Runs last in every chapter's kernel and is taken out again: what the chapter cost.
COST_CELL = """
import json, os, platform, resource, sys
_scale = 2**30 if sys.platform == "darwin" else 2**20
_peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
_cost = {"memory_gib": round(max(_peaks) / _scale, 2), "device": f"{platform.machine()} CPU, {os.cpu_count()} cores"}
if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
    _torch = sys.modules["torch"]
    _cost |= {"device": _torch.cuda.get_device_name(), "gpu_gib": round(_torch.cuda.max_memory_reserved() / 2**30, 2)}
if "vireid_lite.victims" in sys.modules:
    _found = sys.modules["vireid_lite.victims"].found_trained
    _cost["training_minutes"] = round(sum(_found.values()) / 60, 2)
print(json.dumps(_cost))
"""


def _execute(
    source: Path, given: dict[str, Any], key: str, folder: Path, root: Path, force: bool, progress: bool
) -> None:
    """Run one chapter unless its executed copy has this key; the copy keeps its outputs, its key and its cost."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    finished, failed = folder / f"{source.stem}.ipynb", folder / f"{source.stem}.failed.ipynb"
    if not force and finished.exists() and _record(finished).get("key") == key:
        print(f"{source.stem}: unchanged, executed before")
        return
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(COST_CELL))
    bar = {"desc": source.stem, "leave": False} if progress else False
    started = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(
            notebook, failed, given, kernel_name="python3", language="python", progress_bar=bar, cwd=root
        )
    except papermill.PapermillExecutionError as error:
        lines = (line.strip() for line in error.source.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        problem = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise BuildError(f"{source.stem}, cell [{error.exec_count}] `{first}`: {problem} (see {failed})") from None
    except DeadKernelError:
        raise BuildError(f"{source.stem}: its kernel died, often for want of memory (see {failed})") from None
    cost = json.loads("".join(output.get("text", "") for output in notebook.cells.pop().outputs).splitlines()[-1])
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "Warning" in output.text:
                print(f"{source.stem}, cell [{cell.execution_count}] warns: {output.text.splitlines()[0]}")
    defaults, own = read_parameters(source.with_suffix(".ipynb"))
    values = check_values({**defaults, **given}, own)
    asked = {name: given[name] for name in given if name not in ("TIER", "DATASET", "DATA_ROOT", "OUT_DIR")}
    made = {"key": key, "tier": values["TIER"], "dataset": values["DATASET"], "parameters": asked}
    del notebook.metadata["papermill"]
    notebook.metadata["vireid_run"] = {**made, "versions": versions(), "minutes": round(seconds / 60, 2), **cost}
    write_atomically(finished, (nbformat.writes(notebook) + "\n").encode())
    failed.unlink(missing_ok=True)
    print(f"{source.stem}: executed in {seconds:.0f} s, {cost['memory_gib']:.1f} GiB")


def _record(notebook: Path) -> dict[str, Any]:
    """Return what `_execute` noted in an executed copy."""
    return json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("vireid_run", {})


def write_costs(folder: Path, path: Path | None = None) -> Path:
    """Merge what the executed chapters in `folder` cost into `path` (`costs.json` beside them), and return it.

    The table is {chapter: {tier: {"minutes", "memory_gib", "device", and "gpu_gib" on a GPU}}}; to the minutes of the
    run those are added that training the victims took which it found in a cache.
    """
    path = path or folder / "costs.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for notebook in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        if record := _record(notebook) if not notebook.name.endswith(".failed.ipynb") else {}:
            cost = {name: record[name] for name in ("minutes", "memory_gib", "gpu_gib", "device") if name in record}
            cost["minutes"] = round(cost["minutes"] + record.get("training_minutes", 0), 2)
            table.setdefault(notebook.stem, {})[record["tier"]] = cost
    write_atomically(path, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())
    return path


def _stage(root: Path, out: Path) -> bool:
    """Gather in `out`/stage what is rendered, as the repository lays it out; return whether every chapter has been run.

    Only files that differ are written, so that their times tell Sphinx which pages to read again.
    """
    import yaml

    files = {name: (root / name).read_bytes() for name in ("_config.yml", "_toc.yml")}
    config = yaml.safe_load(files["_config.yml"])
    config.setdefault("repository", {})["url"] = repository_url(root)
    files["_config.yml"] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    for path in (root / "book").rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith("book/results/") and "__pycache__" not in name:
            files[name] = path.read_bytes()
    if "book/index.md" in files:
        from vireid_lite.landing import fill_landing  # reads this module

        files |= fill_landing(files["book/index.md"].decode(), root, out / "executed")
    if "book/status.md" in files:
        from vireid_lite.publishing import fill_status  # reads this module

        files["book/status.md"] = fill_status(files["book/status.md"].decode(), root, out / "executed").encode()
    complete = True
    for source in find_chapters(root):
        executed = out / "executed" / f"{source.stem}.ipynb"
        complete &= executed.exists()
        chapter = executed if executed.exists() else source.with_suffix(".ipynb")
        files[f"notebooks/{source.stem}.ipynb"] = chapter.read_bytes()
    stage = out / "stage"
    for path in stage.rglob("*"):
        if path.is_file() and path.relative_to(stage).as_posix() not in files:
            path.unlink()
    for name, data in files.items():
        path = stage / name
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
    return complete


def _render(out: Path, strict: bool) -> Path:
    """Render `out`/stage with jupyter-book and put the finished pages in place at once; return the front page.

    strict: a warning stops the build; left off only while some chapter has never been run.
    """
    work, html, log = out / "sphinx", out / "html", out / "sphinx.log"
    # Sphinx repeats no warning about a page it has read, so after a failed or killed rendering it must start afresh.
    unfinished = work / "unfinished"
    if unfinished.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    if not strict:
        print("some chapters have not been executed yet: they are shown without results, and warnings stop nothing")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(out / "stage")]
    started = time.perf_counter()
    with log.open("w") as stream:
        done = subprocess.run(
            [*command, "--path-output", str(work), *(["-n", "-W", "--keep-going"] if strict else [])],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "NO_COLOR": "1"},
        )
    if done.returncode:
        lines = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8", errors="replace")).splitlines()
        problems = [line for line in lines if re.search(r"WARNING|ERROR|Error", line)] or lines[-1:]
        problem = problems[0].replace(f"{out / 'stage'}/", "") if problems else f"exit code {done.returncode}"
        raise BuildError(f"rendering: {problem} ({len(problems)} such; see {log})")
    fresh, former = out / "html.new", out / "html.old"
    for folder in (fresh, former):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "_build" / "html", fresh, ignore=shutil.ignore_patterns(".buildinfo"))
    if html.exists():
        html.rename(former)
    fresh.rename(html)
    shutil.rmtree(former, ignore_errors=True)
    unfinished.unlink()
    print(f"rendered in {time.perf_counter() - started:.0f} s: {html / 'index.html'}")
    return html / "index.html"
