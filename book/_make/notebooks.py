"""What all of book production shares: the checkout, its chapters and their pairs, and what a run noted of itself."""

import hashlib
import json
import re
import tomllib
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from yaml import YAMLError

from vireid_lite.chapters.costs import COST
from vireid_lite.errors import TIERS, InputError
from vireid_lite.files import damaged, read_json, readable, stable_hash, write_atomically

OWN = ("tags", "mystnb", "lines_to_next_cell")  # metadata of cells that a chapter's source holds
RECORD = {**COST, "key": str, "tier": str, "parameters": dict, "versions": dict}
RECORD |= dict.fromkeys(MEASURED := ("training_minutes", "shipped_minutes", "gpu_gib"), int | float | None)
COSTS = "book/results/costs.json"  # what each chapter costs from empty caches, by tier


def repository_root() -> Path:
    """Return the folder of the book's sources: the working directory, or the checkout that this file is in."""
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "_toc.yml").is_file():
            return folder.resolve()
    raise InputError(f"{Path.cwd()}: no _toc.yml here; run vireid-lite book in a checkout of the repository")


def repository_url(root: Path) -> str:
    """Return the project's public address, which `pyproject.toml` alone holds, without a slash at the end."""
    path = root / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))["project"]["urls"]["Repository"].rstrip("/")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise damaged(path) from None


def find_chapters(root: Path) -> list[Path]:
    """Return the chapters' reviewed sources `notebooks/NN_name.py`, in order."""
    return sorted(path for path in readable(root / "notebooks").glob("*.py") if re.match(r"\d\d_\w+$", path.stem))


def paired_notebook(source: Path) -> bytes:
    """Return the notebook that a chapter's percent source stands for: no outputs, the same bytes every time."""
    try:
        return _paired(source.stem, source.read_text(encoding="utf-8"))
    except (TypeError, ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source} is no chapter in the percent format ({reason}); mend or restore it") from None


@cache
def _paired(stem: str, text: str) -> bytes:
    import jupytext
    import nbformat

    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = hashlib.sha256(f"{stem}/{index}".encode()).hexdigest()[:8]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata["vireid_pair"] = _look(nbformat.writes(notebook).encode())[0]  # tells an edit of one side
    return (nbformat.writes(notebook, ensure_ascii=False).rstrip("\n") + "\n").encode()


def _look(notebook: bytes) -> tuple[str, str, bool]:
    """Return hashes of what is written in a notebook and of what was when it was paired; whether it holds outputs."""
    try:
        cells, metadata = (json.loads(notebook)[part] for part in ("cells", "metadata"))
        texts = [[cell["cell_type"], "".join(cell["source"]), *map(cell["metadata"].get, OWN[:2])] for cell in cells]
        outputs = any(cell.get("outputs") for cell in cells)
        return stable_hash([text for text in texts if text[1].strip()]), metadata.get("vireid_pair", ""), outputs
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):  # damaged
        return "", "", True


def check_pairs(root: Path) -> None:
    """Raise InputError where a chapter's notebook is missing or its cells are not what its source says."""
    for source in find_chapters(root):
        notebook = source.with_suffix(".ipynb")
        if not notebook.exists() or _look(notebook.read_bytes())[0] != _look(paired_notebook(source))[0]:
            apart = f"notebooks/{notebook.name} is not in step with {source.name}"
            raise InputError(f"{apart}; run vireid-lite book --sync, which loses neither side")


def keep_copy(notebook: Path, known: str = "") -> None:
    """Copy a notebook, before it is written, where it holds what neither a pairing put there nor is `known`."""
    written, paired, outputs = _look(data := notebook.read_bytes() if notebook.exists() else b"")
    if data and (outputs or written not in (paired, known)):
        copies = (notebook.with_suffix(f".yours{number or ''}.ipynb") for number in count())
        copy = next(path for path in copies if not path.exists() or path.read_bytes() == data)
        if update(copy, data):
            print(f"{notebook}: as it was kept in {copy.name}")


def sync_pair(source: Path) -> list[Path]:
    """Write a chapter's notebook, after its source where only the notebook was edited; return what changed."""
    import jupytext

    notebook, changed = source.with_suffix(".ipynb"), []
    if notebook.exists() and notebook.read_bytes() != paired_notebook(source):
        known, (written, paired, _) = _look(paired_notebook(source))[0], _look(notebook.read_bytes())
        keep_copy(notebook, known)
        if written != paired == known:
            held = jupytext.read(notebook)
            held.cells = [cell for cell in held.cells if cell.source.strip()]
            for cell in held.cells:
                cell.metadata = {name: cell.metadata[name] for name in OWN if name in cell.metadata}
            head = source.read_text(encoding="utf-8").partition("# %%")[0]
            text = jupytext.writes(held, fmt="py:percent").partition("# %%")
            changed += [source] * update(source, (head + "".join(text[1:])).encode())
    return changed + [notebook] * update(notebook, paired_notebook(source))


def read_record(notebook: Path) -> dict[str, Any]:
    """Return what a run noted in an executed copy of a chapter: nothing where there is none."""
    metadata = read_json(notebook).get("metadata", {})
    record = metadata.get("vireid_run", {}) if isinstance(metadata, dict) else None
    if record != {}:
        fits = _holds(record, RECORD) and record["tier"] in TIERS
        if not fits or not all(0 <= (record.get(name) or 0) < 1e9 for name in ("minutes", "memory_gib", *MEASURED)):
            raise damaged(notebook)
    return record


def _holds(value: Any, kinds: dict[str, Any]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def executed_chapters(folder: Path) -> list[Path]:
    """Return the chapters in a folder of executed ones, without those that failed."""
    return sorted(
        path for path in readable(folder).glob("[0-9][0-9]_*.ipynb") if not path.name.endswith(".failed.ipynb")
    )


def update(path: Path, data: bytes) -> bool:
    """Write a file whose content differs, so that times say what has changed; return whether it did."""
    if changed := not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
    return changed


def replace_files(folder: Path, files: dict[str, bytes], keep: str = "$") -> None:
    """Make a folder hold these files, by name, and no others but those whose name begins with the pattern `keep`."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files and not re.match(keep, name):
            path.unlink()
    for name, data in files.items():
        update(folder / name, data)
