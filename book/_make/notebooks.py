"""What all of book production shares: the checkout, its chapters and their pairs, and what a run noted of itself."""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically

COSTS = "book/results/costs.json"  # what each chapter costs from empty caches, by tier


def repository_root() -> Path:
    """Return the folder of the book's sources: the working directory, or the checkout that this file is in."""
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "_toc.yml").is_file():
            return folder.resolve()
    raise InputError(f"{Path.cwd()}: no _toc.yml here; run vireid-lite book in a checkout of the repository")


def repository_url(root: Path) -> str:
    """Return the project's public address, which `pyproject.toml` alone holds, without a slash at the end."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].rstrip("/")


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


def check_pairs(root: Path) -> None:
    """Raise InputError where a chapter's notebook is missing or is not what its source says."""
    for source in find_chapters(root):
        notebook = source.with_suffix(".ipynb")
        if not notebook.exists() or notebook.read_bytes() != paired_notebook(source):
            apart = f"notebooks/{notebook.name} is not in step with {source.name}"
            raise InputError(f"{apart}; run vireid-lite book --sync")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds, nothing where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_record(notebook: Path) -> dict[str, Any]:
    """Return what a run noted in an executed copy of a chapter: nothing where there is none."""
    return read_json(notebook).get("metadata", {}).get("vireid_run", {})


def executed_chapters(folder: Path) -> list[Path]:
    """Return the chapters in a folder of executed ones, without those that failed."""
    return sorted(path for path in folder.glob("[0-9][0-9]_*.ipynb") if not path.name.endswith(".failed.ipynb"))


def update(path: Path, data: bytes) -> bool:
    """Write a file whose content differs, so that times say what has changed; return whether it did."""
    if changed := not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
    return changed


def replace_files(folder: Path, files: dict[str, bytes], keep: str = "") -> None:
    """Make a folder hold these files, by name, and no others but those below `keep`."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files and not (keep and name.startswith(keep)):
            path.unlink()
    for name, data in files.items():
        update(folder / name, data)
