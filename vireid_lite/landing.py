"""The front page, filled by the build: a picture that a chapter computed, and what each chapter costs."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from vireid_lite import book
from vireid_lite.errors import InputError

# `% picture: CHAPTER FIGURE` to `% end` stands where the chapter has been executed, and a line that says so otherwise.
PICTURE = re.compile(r"^% picture: (\S+) (\S+)\n(.*?)^% end\n", re.MULTILINE | re.DOTALL)

COSTS = "% costs: the build writes them here\n"


def fill_landing(page: str, root: Path, executed: Path) -> dict[str, bytes]:
    """Return the front page and the pictures it shows, each by its name among the staged files.

    page: text of `book/index.md`. root: the book's sources, whose `book/results/costs.json` holds the minutes from
    empty caches. executed: folder of the chapters as executed.
    Raises InputError where the page asks for a chapter or a figure that is not there.
    """
    files = {}

    def shown(found: re.Match) -> str:
        chapter, figure, text = found.groups()
        if not (root / "notebooks" / f"{chapter}.py").exists():
            raise InputError(f"book/index.md: % picture: {chapter} names no chapter in notebooks/")
        notebook = executed / f"{chapter}.ipynb"
        if not notebook.exists():
            command = f"`vireid-lite book --chapters {int(chapter[:2])}`"
            return f"[](../notebooks/{chapter}) draws the picture that belongs here; it has not run yet: {command}.\n"
        files[f"book/{figure}.png"] = _figure(notebook, figure)
        return text

    page = PICTURE.sub(shown, page)
    if COSTS in page:
        page = page.replace(COSTS, _costs(root))
    return {"book/index.md": page.encode(), **files}


def _figure(notebook: Path, name: str) -> bytes:
    """Return the PNG of the figure of this name in an executed chapter."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == name:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    raise InputError(f"book/index.md: % picture: {notebook.stem} drew no figure {name}; see its cells' `name`")


def _costs(root: Path) -> str:
    """Return the chapters as a numbered list, each with its minutes at tier lite, and where they were measured."""
    path = root / "book" / "results" / "costs.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stems = [source.stem for source in book.find_chapters(root)]
    lite = {stem: table[stem]["lite"] for stem in stems if "lite" in table.get(stem, {})}
    minutes = {stem: f"{cost['minutes']:.1f}" for stem, cost in lite.items()}
    devices = ", ".join(sorted({cost["device"] for cost in lite.values()}))
    note = f"Minutes alone, from empty caches ({devices})" if lite else "Minutes alone, from empty caches"
    note += "" if len(lite) == len(stems) else "; –: not measured yet"
    rows = [f"1. [](../notebooks/{stem}) **{minutes.get(stem, '–')}**" for stem in stems]
    return "\n".join([f"{note}.", "", *rows, ""])
