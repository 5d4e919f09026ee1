"""Two editions from one source: the instructor's has everything, the student's neither solutions nor teachers' pages.

An edition is a folder like the repository's own: `vireid-lite book` builds it, and `notebooks/*.ipynb` can be handed
out as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from vireid_lite import book
from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically

EDITIONS = ("student", "instructor")

PAGES = "book/instructors"

MARK = "EDITION.txt"

BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")  # lead to the full chapters

NEEDED, ALONG = ("_config.yml", "_toc.yml", "pyproject.toml"), ("LICENSE", "CITATION.cff")

GATE = re.compile(r"^(?:# )?```\{(solution|exercise)-(start|end)\}", re.MULTILINE)

# What `vireid-lite book --sync` fills in on an instructors' page: a chapter's measured cost, or everybody's.
MEASURED = re.compile(r"(^% measured: (\w+)\n)(.*?)(^% end$)", re.MULTILINE | re.DOTALL)


def write_edition(root: Path, edition: str, out: Path) -> Path:
    """Write one edition of the book in `root` to the folder `out`, and return it.

    edition: "student" or "instructor". Results of chapters that `root` has executed at tier lite, and that are still
    current, come along, so that building the edition need not execute them again. A former edition in `out` is
    replaced, what was built from it is kept. Raises InputError for an unknown edition, a chapter whose notebook is not
    in step, a solution that does not end, or an `out` that holds something else.
    """
    root, out = root.resolve(), Path(out).resolve()
    if edition not in EDITIONS:
        raise InputError(f"--edition {edition!r}: give {' or '.join(EDITIONS)}")
    if out == root or any(out.is_relative_to(root / part) for part in ("book", "notebooks")):
        raise InputError(f"{out}: the sources are here; write an edition elsewhere, such as _build/{edition}")
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something that is no edition; give an empty or a new folder")
    book.check_pairs(root)
    files = _files(root, student=edition == "student")
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name not in files and not name.startswith("_build/"):
            path.unlink()
    for name, data in files.items():
        _update(out / name, data)
    for source in book.find_chapters(out):
        _update(source.with_suffix(".ipynb"), book.paired_notebook(source))
    _carry_results(root, out)
    return out


def _files(root: Path, student: bool) -> dict[str, bytes]:
    """Return what an edition holds, by name, but for what is derived: chapters as sources, pages, cards, licence."""
    files = {name: (root / name).read_bytes() for name in (*NEEDED, *ALONG) if name in NEEDED or (root / name).exists()}
    for path in (root / "book").rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in name:
            files[name] = path.read_bytes()
    for source in book.find_chapters(root):
        files[f"notebooks/{source.name}"] = source.read_bytes()
    if student:
        files = {name: data for name, data in files.items() if not name.startswith(f"{PAGES}/")}
        for name in files:
            if name.endswith((".md", ".py")) and name.startswith(("book/", "notebooks/")):
                text = files[name].decode()
                if name.startswith("notebooks/"):
                    text = without_solutions(text, name)
                files[name] = _unlinked(text).encode()
        files["_toc.yml"] = _student_contents(files["_toc.yml"])
        files["_config.yml"] = _student_configuration(files["_config.yml"])
    kind = "Student edition: no solutions, no pages for instructors." if student else "Instructor edition: everything."
    files[MARK] = f"{kind}\nMade from {book.repository_url(root)}, whose licence and citation apply.\n".encode()
    return files


def without_solutions(source: str, name: str = "chapter") -> str:
    """Return a chapter's percent source without the cells from `{solution-start}` to `{solution-end}`.

    name: of the chapter, for the error. Raises InputError where such a stretch does not end, or a cell on its border
    holds an exercise as well.
    """
    cells = re.split(r"(?m)^(?=# %%)", source)
    return "".join(cell for cell, kept in zip(cells, _kept(cells, name), strict=True) if kept)


def _kept(cells: Iterable[str], name: str) -> list[bool]:
    """Return for each cell whether it is outside of every solution."""
    kept, inside = [], False
    for cell in cells:
        gates = GATE.findall(cell)
        borders = [where for kind, where in gates if kind == "solution"]
        if borders and (len(borders) < len(gates) or borders != ["end" if inside else "start"]):
            raise InputError(f"{name}: a cell mixes a solution with something else; give its gates cells of their own")
        kept.append(not inside and not borders)
        inside ^= bool(borders)
    if inside:
        raise InputError(f"{name}: its last solution does not end; add a cell with {{solution-end}}")
    return kept


def _unlinked(text: str) -> str:
    """Return a page without links to the instructors' pages.

    A row of a table goes, and so does an item of a list that is one line and ends with the link; elsewhere words stay.
    """
    link = re.compile(r"\[([^\]]*)\]\([^)\s]*instructors/[^)\s]*\)|\{doc\}`([^`<]*?)\s*<[^`]*instructors/[^`]*>`")
    gone = re.compile(rf"\|.*(?:{link.pattern})|- .*(?:{link.pattern})$")
    lines = (line for line in text.splitlines(keepends=True) if not gone.match(line))
    return link.sub(lambda found: found[1] or found[2] or "the instructor edition", "".join(lines))


def _student_contents(data: bytes) -> bytes:
    """Return the table of contents without the instructors' pages, and without a part that held nothing else."""
    import yaml

    def pruned(entries: list[dict]) -> list[dict]:
        left = []
        for entry in entries:
            if str(entry.get("file", "")).startswith(f"{PAGES}/"):
                continue
            for inner in ("parts", "chapters", "sections"):
                if inner in entry:
                    entry = {**entry, inner: pruned(entry[inner])}
            if entry.get("chapters") != []:
                left.append(entry)
        return left

    return yaml.safe_dump(pruned([yaml.safe_load(data)])[0], sort_keys=False, allow_unicode=True).encode()


def _student_configuration(data: bytes) -> bytes:
    """Return the configuration with a title of its own, and without buttons that lead to the full chapters."""
    import yaml

    config = yaml.safe_load(data)
    config["title"] = f"{config['title']}, student edition"
    config.pop("launch_buttons", None)
    config.setdefault("html", {}).update(dict.fromkeys(BUTTONS, False))
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _carry_results(root: Path, out: Path) -> None:
    """Copy executed chapters whose key is current, less what the edition leaves out, under the edition's own key."""
    import nbformat

    shared = book._shared_key(root)
    for source in book.find_chapters(root):
        executed = root / "_build" / "executed" / f"{source.stem}.ipynb"
        if not executed.exists() or book._record(executed).get("key") != _key(shared, source):
            continue
        notebook = nbformat.read(executed, as_version=4)
        edition = out / "notebooks" / source.name
        if edition.read_bytes() != source.read_bytes():
            kept = _kept((cell.source for cell in notebook.cells), source.name)
            notebook.cells = [cell for cell, keep in zip(notebook.cells, kept, strict=True) if keep]
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = _unlinked(cell.source)
        notebook.metadata["vireid_run"]["key"] = _key(shared, edition)
        _update(out / "_build" / "executed" / executed.name, (nbformat.writes(notebook) + "\n").encode())


def _key(shared: str, source: Path) -> str:
    """Return the key under which `book.build_book` keeps a chapter executed with its own defaults."""
    digest = hashlib.sha256(json.dumps([shared, {}]).encode() + source.with_suffix(".ipynb").read_bytes())
    return digest.hexdigest()[:16]


def _update(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)


def instructor_pages(root: Path) -> dict[Path, bytes]:
    """Return the instructors' pages with the measured costs of `book/results/costs.json` filled in.

    Between `% measured: STEM` and `% end` stands one chapter's cost, between `% measured: all` and `% end` the table.
    Raises InputError where a page names no chapter.
    """
    path = root / "book" / "results" / "costs.json"
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stems = [source.stem for source in book.find_chapters(root)]

    def filled(found: re.Match) -> str:
        if found[2] != "all" and found[2] not in stems:
            raise InputError(f"{PAGES}: % measured: {found[2]} names no chapter; there are {', '.join(stems)}")
        text = _cost_table(stems, costs) if found[2] == "all" else _cost_line(found[2], costs)
        return f"{found[1]}\n{text}\n\n{found[4]}"

    pages = sorted((root / PAGES).glob("*.md"))
    return {page: MEASURED.sub(filled, page.read_text(encoding="utf-8")).encode() for page in pages}


def _cost_line(stem: str, costs: dict) -> str:
    runs = [
        f"tier `{tier}` {cost['minutes']:.1f} minutes and {cost['memory_gib']:.1f} GiB on {cost['device']}"
        for tier, cost in costs.get(stem, {}).items()
    ]
    command = f"`vireid-lite book --chapters {int(stem[:2])} --measure`"
    return f"Measured from empty caches: {'; '.join(runs)}." if runs else f"Not measured yet: {command} does it."


def _cost_table(stems: list[str], costs: dict) -> str:
    rows = ["| Chapter | Tier | Minutes | Memory, GiB | Measured on |", "|---|---|--:|--:|---|"]
    for stem in stems:
        runs = costs.get(stem) or {"lite": {"minutes": None, "memory_gib": None, "device": "not measured yet"}}
        for tier, cost in runs.items():
            values = ("–" if cost[name] is None else f"{cost[name]:.1f}" for name in ("minutes", "memory_gib"))
            rows.append(f"| [](../../notebooks/{stem}) | `{tier}` | {' | '.join(values)} | {cost['device']} |")
    return "\n".join(rows)
