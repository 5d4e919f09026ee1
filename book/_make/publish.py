"""Before a build is published: nothing in it from licensed or private images, and nothing that no page accounts for."""

import re
from pathlib import Path
from urllib.parse import unquote

from _make.notebooks import executed_chapters, read_record
from vireid_lite.errors import InputError
from vireid_lite.files import readable

PUBLIC = ("synthetic",)  # data sets whose people do not exist
# Trained weights, perturbations and arrays: whoever wants them makes them.
NOT_FOR_PAGES = (".safetensors", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".mat")


def check_build(out: Path | str) -> list[str]:
    """Return the chapters that a build shows, all of them executed on people who do not exist.

    Raises InputError for other data, an image on no page (an earlier build may have left it), weights or arrays.
    """
    out = Path(out)
    html = out / "html"
    if not (html / "index.html").is_file():
        raise InputError(f"{html} holds no built book; run vireid-lite book first")
    pages = sorted((html / "notebooks").glob("*.html"))
    problems = {page.stem: _problem(html / "_sources" / "notebooks" / f"{page.stem}.ipynb") for page in pages}
    for notebook in executed_chapters(out / "executed"):
        problems[notebook.stem] = problems.get(notebook.stem) or _problem(notebook)
    text = "".join(page.read_text(encoding="utf-8", errors="replace") for page in html.rglob("*.html"))
    shown = {unquote(name) for name in re.findall(r"_images/([^\"'()<>\s?#]+)", text)}
    for path in [html, *sorted(html.rglob("*"))]:
        if path.is_dir():
            readable(path)  # what nobody can look at is not to be published
        name = path.relative_to(html).as_posix()
        if path.parent == html / "_images" and path.name not in shown:
            problems[name] = "is on no page; run make clean and build again"
        if path.suffix.lower() in NOT_FOR_PAGES:
            problems[name] = "holds weights or arrays; take it out"
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
