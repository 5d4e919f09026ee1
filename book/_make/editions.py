"""Two editions from one source: the instructor's has everything, the student's neither solutions nor teachers' pages.

An edition is a folder like the repository's own, which `vireid-lite book` builds. A solution: cells with that tag.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from _make import execute, notebooks
from vireid_lite.errors import InputError
from vireid_lite.files import damaged

EDITIONS = ("student", "instructor")
PAGES = "book/instructors"
MARK = "EDITION.txt"
BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")  # lead to the full chapters
NEEDED, ALONG = ("_config.yml", "_toc.yml", "pyproject.toml"), ("LICENSE", "CITATION.cff")
TAGGED = re.compile(r'# %%.*\btags=\[[^\]]*"solution"')


def write_edition(root: Path, edition: str, out: Path) -> Path:
    """Write the "student" or the "instructor" edition of the book in `root` to the folder `out`, and return it.

    A former edition in `out` is replaced, what was built from it is kept. Current results in `root` come along.
    Raises InputError for an unknown edition, a notebook out of step, untagged solutions, or an `out` of something else.
    """
    root, out = root.resolve(), Path(out).resolve()
    if edition not in EDITIONS:
        raise InputError(f"--edition {edition!r}: give {' or '.join(EDITIONS)}")
    if out == root or any(out.is_relative_to(root / part) for part in ("book", "notebooks")):
        raise InputError(f"{out}: the sources are here; write an edition elsewhere, such as _build/{edition}")
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something that is no edition; give an empty or a new folder")
    notebooks.check_pairs(root)
    for source in notebooks.find_chapters(out):
        notebooks.keep_copy(source.with_suffix(".ipynb"))
    files = _files(root, student=edition == "student")
    notebooks.replace_files(out, files, keep=r"_build/|notebooks/.+\.yours\d*\.ipynb$")
    for source in notebooks.find_chapters(root):
        _pair(source, root / "_build" / "executed" / f"{source.stem}.ipynb", out)
    return out


def _pair(full: Path, executed: Path, out: Path) -> None:
    """Write the notebook of a chapter in an edition, and take its results along unless they must be made again."""
    import nbformat

    source = out / "notebooks" / full.name
    notebooks.update(source.with_suffix(".ipynb"), notebooks.paired_notebook(source))
    if notebooks.read_record(executed).get("key") != execute.chapter_key(full, {}):
        return
    try:
        notebook = nbformat.read(executed, as_version=4)
        if source.read_bytes() != full.read_bytes():
            notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", ())]
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = _unlinked(cell.source)
    except (AttributeError, KeyError, TypeError, ValueError, nbformat.ValidationError):
        raise damaged(executed) from None
    notebook.metadata["vireid_run"]["key"] = execute.chapter_key(source, {})
    notebooks.update(out / "_build" / "executed" / executed.name, (nbformat.writes(notebook) + "\n").encode())


def _files(root: Path, student: bool) -> dict[str, bytes]:
    """Return what an edition holds, by name, but for what is derived: chapters as sources, pages, cards, licence."""
    paths = [root / name for name in (*NEEDED, *ALONG) if name in NEEDED or (root / name).exists()]
    paths += [path for path in (root / "book").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in [*paths, *notebooks.find_chapters(root)]}
    if student:
        files = {name: data for name, data in files.items() if not name.startswith(f"{PAGES}/")}
        for name, data in files.items():
            if name.endswith(".md") and name.startswith("book/"):
                files[name] = _unlinked(data.decode()).encode()
            elif name.startswith("notebooks/"):
                files[name] = _unlinked(without_solutions(data.decode(), name)).encode()
        contents, config = (yaml.safe_load(files[name]) for name in ("_toc.yml", "_config.yml"))
        config["title"] += ", student edition"
        config.pop("launch_buttons", None)
        config.setdefault("html", {}).update(dict.fromkeys(BUTTONS, False))
        for name, value in (("_toc.yml", _student_contents(contents)), ("_config.yml", config)):
            files[name] = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()
    kind = "Student edition: no solutions, no pages for instructors." if student else "Instructor edition: everything."
    files[MARK] = f"{kind}\nMade from {notebooks.repository_url(root)}, whose licence and citation apply.\n".encode()
    return files


def without_solutions(source: str, name: str = "chapter") -> str:
    """Return a percent source without the cells tagged "solution"; InputError where the wrong cells have that tag."""
    kept, inside = [], False
    for cell in re.split(r"(?m)^(?=# %%)", source):
        gates, tagged = re.findall(r"\{(solution|exercise)-(start|end)\}", cell), bool(TAGGED.match(cell))
        borders = [where for kind, where in gates if kind == "solution"]
        if tagged != bool(inside or borders) or (tagged and len(borders) < len(gates)):
            first = " ".join(cell.strip().splitlines()[:2])
            rule = "every cell from {solution-start} to {solution-end}, and no other, has the tag solution"
            raise InputError(f"{name}: {rule}, and none of them holds an exercise; see the cell `{first}`")
        inside = borders[-1] == "start" if borders else inside
        if not tagged:
            kept.append(cell)
    return "".join(kept)


def _unlinked(text: str) -> str:
    """Return a page without links to the instructors' pages, table rows with them, and list items that end with one."""
    link = re.compile(r"\[([^\]]*)\]\([^)\s]*instructors/[^)\s]*\)|\{doc\}`([^`<]*?)\s*<[^`]*instructors/[^`]*>`")
    gone = re.compile(rf"\|.*(?:{link.pattern})|- .*(?:{link.pattern})$")
    lines = (line for line in text.splitlines(keepends=True) if not gone.match(line))
    return link.sub(lambda found: found[1] or found[2] or "the instructor edition", "".join(lines))


def _student_contents(entry: Any) -> Any:
    """Return a table of contents without the instructors' pages, and without a part that held nothing else."""
    if isinstance(entry, list):
        return [kept for each in entry if (kept := _student_contents(each))]
    if not isinstance(entry, dict):
        return entry
    entry = {name: _student_contents(value) for name, value in entry.items()}
    gone = str(entry.get("file", "")).startswith(f"{PAGES}/") or entry.get("chapters") == []
    return {} if gone else entry
