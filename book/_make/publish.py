"""Before a build is published: nothing in it from licensed or private images, and nothing that no page accounts for."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from _make.notebooks import executed_chapters, read_record
from vireid_lite.errors import InputError

PUBLIC = ("synthetic",)  # data sets whose people do not exist
# Trained weights, perturbations and arrays: whoever wants them makes them.
NOT_FOR_PAGES = (".safetensors", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".mat")


def check_build(out: Path | str) -> list[str]:
    """Return the chapters that a build shows, all of them executed on people who do not exist.

    What a chapter ran on stands in the copy of it that the build keeps beside its page, as its run noted it.

    Raises:
        InputError: where a page was executed at tier full or on other data, where nothing says on what, where an image
            is on no page (an earlier build may have left it), or where there is a file of weights or arrays.
    """
    out = Path(out)
    html = out / "html"
    if not (html / "index.html").is_file():
        raise InputError(f"{html} holds no built book; run vireid-lite book first")
    pages = sorted((html / "notebooks").glob("*.html"))
    problems = {page.stem: _problem(html / "_sources" / "notebooks" / f"{page.stem}.ipynb") for page in pages}
    for notebook in executed_chapters(out / "executed"):
        problems[notebook.stem] = problems.get(notebook.stem) or _problem(notebook)
    problems |= _stray_files(html)
    if found := [f"{name} {problem}" for name, problem in problems.items() if problem]:
        raise InputError(f"not to be published: {'; '.join(found)}")
    return [page.stem for page in pages]


def _problem(executed: Path) -> str:
    """Return why a chapter's executed copy must not be published, or nothing."""
    record = read_record(executed)
    data, tier = record.get("dataset"), record.get("tier")
    if not (data and tier):
        return "has no record of what it ran on; run vireid-lite book --force"
    if tier == "full" or data not in PUBLIC:
        return f"was executed on {data} at tier {tier}; run vireid-lite book, which uses synthetic"
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
