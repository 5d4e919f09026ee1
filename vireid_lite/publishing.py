"""Before a build is published: nothing in it from licensed or private images; and the status page, from its records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

from vireid_lite import book
from vireid_lite.errors import InputError

PUBLIC = ("synthetic",)  # data sets whose people do not exist

# Trained weights, perturbations and arrays: whoever wants them makes them.
NOT_FOR_PAGES = (".safetensors", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".mat")

STATUS = "% status: the build writes what follows\n"  # the line of book/status.md that `fill_status` replaces


def check_build(out: Path | str) -> list[str]:
    """Return the chapters that the build in `out` shows, all of them executed on people who do not exist.

    out: folder of a build, holding `html` and `executed`. What a chapter ran on stands in the copy of it that the
    build keeps beside its page, as `vireid-lite book` noted it.
    Raises InputError, one line, where a page was executed at tier full or on another data set than the synthetic one,
    where nothing says what a page was executed on, where an image is on no page (an earlier build may have left it),
    or where there is a file of weights or arrays.
    """
    out = Path(out)
    html = out / "html"
    if not (html / "index.html").is_file():
        raise InputError(f"{html} holds no built book; run vireid-lite book first")
    pages = sorted((html / "notebooks").glob("*.html"))
    problems = {page.stem: _problem(html / "_sources" / "notebooks" / f"{page.stem}.ipynb") for page in pages}
    for notebook in sorted((out / "executed").glob("[0-9][0-9]_*.ipynb")):
        if not notebook.name.endswith(".failed.ipynb"):
            problems[notebook.stem] = problems.get(notebook.stem) or _problem(notebook)
    problems |= _stray_files(html)
    if found := [f"{name} {problem}" for name, problem in problems.items() if problem]:
        raise InputError(f"not to be published: {'; '.join(found)}")
    return [page.stem for page in pages]


def _problem(executed: Path) -> str:
    """Return why a chapter's executed copy must not be published, or nothing."""
    record = book._record(executed) if executed.is_file() else {}
    if "dataset" not in record or "tier" not in record:
        return "has no record of what it ran on; run vireid-lite book --force"
    if record["tier"] == "full" or record["dataset"] not in PUBLIC:
        return (
            f"was executed on {record['dataset']} at tier {record['tier']}; run vireid-lite book, which uses synthetic"
        )
    return ""


def _stray_files(html: Path) -> dict[str, str]:
    """Return files that no page accounts for, each with what is wrong with it."""
    shown = {
        unquote(name)
        for page in html.rglob("*.html")
        for name in re.findall(r"_images/([^\"'()<>\s?#]+)", page.read_text(encoding="utf-8"))
    }
    stray = {
        f"_images/{path.name}": "is on no page; run make clean and build again"
        for path in sorted((html / "_images").glob("*"))
        if path.name not in shown
    }
    held = sorted(path for path in html.rglob("*") if path.suffix.lower() in NOT_FOR_PAGES)
    return stray | {path.relative_to(html).as_posix(): "holds weights or arrays; take it out" for path in held}


def fill_status(page: str, root: Path, executed: Path) -> str:
    """Return the status page with its tables: what each chapter ran on, for how long and with which versions.

    page: text of `book/status.md`. root: the book's sources, whose `book/results/costs.json` holds the times from empty
    caches. executed: folder of the chapters as executed.
    """
    measured = root / "book" / "results" / "costs.json"
    costs = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
    rows = [
        "| Chapter | Tier | Data | Parameters | Minutes | Minutes alone | Memory, GiB | Device |",
        "|---|---|---|---|--:|--:|--:|---|",
    ]
    made_with: dict[str, list[str]] = {}
    for source in book.find_chapters(root):
        path = executed / f"{source.stem}.ipynb"
        record = book._record(path) if path.exists() else {}
        link = f"[](../notebooks/{source.stem})"
        if "versions" not in record:
            rows.append(f"| {link} | – | – | – | – | {_alone(costs, source.stem, 'lite')} | – | not executed yet |")
            continue
        given = ", ".join(f"`{name} {value}`" for name, value in record["parameters"].items()) or "its own"
        cells = [link, f"`{record['tier']}`", record["dataset"], given, f"{record['minutes']:.1f}"]
        cells += [_alone(costs, source.stem, record["tier"]), f"{record['memory_gib']:.1f}", record["device"]]
        rows.append(f"| {' | '.join(cells)} |")
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        made_with.setdefault(versions, []).append(str(int(source.stem[:2])))
    lines = [f"- Chapter {', '.join(numbers)}: {versions}." for versions, numbers in made_with.items()]
    return page.replace(STATUS, "\n".join([*rows, "", "## Versions", "", *(lines or ["No chapter executed yet."]), ""]))


def _alone(costs: dict, chapter: str, tier: str) -> str:
    """Return a chapter's minutes from empty caches, in words."""
    cost = costs.get(chapter, {}).get(tier)
    return f"{cost['minutes']:.1f}" if cost else "not measured"
