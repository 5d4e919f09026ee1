"""The front page shows what a chapter computed, at its proper size, and says what has not run."""

import base64
import importlib.util
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from PIL import Image

from _make import editions, render
from _make.notebooks import replace_files
from _make.pages import PICTURE, fill
from vireid_lite.errors import InputError

ROOT = Path(__file__).parents[1]
COSTS = "% costs: the build writes them here\n"
PAGE = f"""# Front

% picture: 04_four fig-four
```{{figure}} fig-four.png
:alt: What it shows.

What to see.
```
% end

{COSTS}"""


def png(width: int, height: int, **saved) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "png", **saved)
    return stream.getvalue()


def cell(name: str | None, *data: dict) -> dict:
    metadata = {"mystnb": {"figure": {"name": name}}} if name else {}
    outputs = [{"output_type": "display_data", "data": each} for each in data]
    return {"cell_type": "code", "metadata": metadata, "source": "", "outputs": outputs}


@pytest.fixture
def root(tmp_path):
    """Sources of a book of two chapters, none executed, none measured."""
    (tmp_path / "notebooks").mkdir()
    for stem in ("01_one", "04_four"):
        (tmp_path / "notebooks" / f"{stem}.py").write_text("# %%\n1\n")
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "executed").mkdir()
    return tmp_path


def run(root: Path, *cells: dict) -> None:
    (root / "executed" / "04_four.ipynb").write_text(json.dumps({"cells": cells}))


def measure(root: Path, *stems: str) -> None:
    costs = {stem: {"lite": {"minutes": 2.25, "memory_gib": 1.0, "device": "a machine"}} for stem in stems}
    (root / "book" / "results" / "costs.json").write_text(json.dumps(costs))


def filled(root: Path) -> tuple[str, dict[str, bytes]]:
    files = fill({"book/index.md": PAGE.encode()}, root, root / "executed")
    return files.pop("book/index.md").decode(), files


def test_picture_is_the_one_the_chapter_drew(root):
    wanted = png(4, 2)
    shown = {"image/png": base64.encodebytes(wanted).decode(), "text/plain": "<Figure>"}
    other = {"image/png": base64.b64encode(png(1, 1)).decode()}
    markdown = {"cell_type": "markdown", "metadata": {}, "source": "x"}
    run(root, markdown, cell(None, other), cell("fig-other", other), cell("fig-four", {"text/plain": "1"}, shown))
    page, files = filled(root)
    assert files == {"book/fig-four.png": wanted}
    assert "```{figure} fig-four.png\n:alt: What it shows.\n\nWhat to see.\n```" in page
    assert "% picture" not in page
    assert "% end" not in page


def test_page_says_that_the_chapter_has_not_run(root):
    page, files = filled(root)
    assert files == {}
    assert "fig-four.png" not in page
    assert "What to see" not in page
    assert "[](../notebooks/04_four)" in page
    assert "has not run yet: `vireid-lite book --chapters 4`" in page


def test_a_picture_that_is_not_there_is_an_error(root):
    run(root, cell("fig-four", {"text/plain": "1"}), cell("fig-other", {"image/png": ""}))
    with pytest.raises(InputError, match=r"04_four drew no figure fig-four") as caught:
        filled(root)
    assert "\n" not in str(caught.value)
    (root / "notebooks" / "04_four.py").unlink()
    with pytest.raises(InputError, match="04_four names no chapter"):
        filled(root)


def test_costs_are_the_measured_ones_and_the_others_are_said(root):
    page, _ = filled(root)
    assert page.count("**–**") == 2
    assert "–: not measured yet" in page
    measure(root, "04_four", "99_gone")
    page, _ = filled(root)
    assert page.endswith(
        "from empty caches (a machine); –: not measured yet.\n\n"
        "1. [](../notebooks/01_one) **–**\n1. [](../notebooks/04_four) **2.2**\n"
    )
    measure(root, "01_one", "04_four")
    page, _ = filled(root)
    assert page.count("**2.2**") == 2
    assert "–" not in page


def test_a_page_without_marks_stays_as_it_is(root):
    assert fill({"book/index.md": b"# Toy\n"}, root, root / "executed") == {}


def test_the_build_stages_page_and_picture(root):
    for name in ("_config.yml", "pyproject.toml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    (root / "book" / "_make").mkdir()
    (root / "book" / "_make" / "build.py").touch()
    (root / "book" / "index.md").write_text(PAGE)
    run(root, cell("fig-four", {"image/png": base64.b64encode(png(4, 2)).decode()}))
    for stem in ("01_one", "04_four"):
        (root / "notebooks" / f"{stem}.ipynb").write_text("{}")
    files, complete = render.gather(root, root / "executed")
    assert not complete
    assert {name for name in files if name.startswith("book/")} == {"book/index.md"}
    for pictures in (["fig-four.png"], []):
        replace_files(root / "stage", files | fill(files, root, root / "executed"))
        assert [path.name for path in (root / "stage").rglob("*.png")] == pictures, "no picture outlives its run"
        (root / "executed" / "04_four.ipynb").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def front() -> str:
    return (ROOT / "book" / "index.md").read_text(encoding="utf-8")


def test_front_page_asks_for_a_figure_that_its_chapter_draws(front):
    chapter, figure, text = PICTURE.search(front).groups()
    cells = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    (drawn,) = (c for c in cells if c["metadata"].get("mystnb", {}).get("figure", {}).get("name") == figure)
    assert "plt.show()" in drawn["source"] or "plt.show()" in "".join(drawn["source"])
    assert f"{{figure}} {figure}.png" in text
    alt = re.search(r":alt: (.+)", text)[1]
    assert alt not in re.sub(r"\s+", " ", text.replace(f":alt: {alt}", ""))
    assert not re.search(r"\d", text.replace(chapter, "")), "true whatever the run gave: no number"
    assert not list((ROOT / "book").rglob(f"{figure}.*")), "the picture is made by the build, never committed"
    assert COSTS in front


def test_front_page_leads_by_goal_and_the_costs_follow(front):
    goals = [front.index(f"**{goal}**") for goal in ("Understand", "Reproduce", "Teach", "Defend")]
    assert goals == sorted(goals)
    assert PICTURE.search(front).end() < goals[0] < goals[-1] < front.index(COSTS) < front.index("## What to believe")


def test_front_page_of_the_student_edition_keeps_picture_and_costs(front):
    student = editions._unlinked(front)
    assert "instructors/" not in student
    assert all(f"**{goal}** [" in student for goal in ("Understand", "Reproduce", "Defend"))
    assert PICTURE.search(student)[0] == PICTURE.search(front)[0]
    assert COSTS in student


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("sharp_figures", ROOT / "book" / "_ext" / "sharp_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sized(hook, folder: Path, data: bytes, output: str = "html", **options) -> nodes.image:
    (folder / "picture.png").write_bytes(data)
    image = nodes.image(uri="picture.png", **options)
    app = SimpleNamespace(builder=SimpleNamespace(format=output), srcdir=str(folder))
    hook.size_figures(app, nodes.container("", image), "page")
    return image


def test_a_figure_takes_the_width_its_dpi_says(hook, tmp_path):
    image = sized(hook, tmp_path, png(960, 400, dpi=(192, 192)), width="300px", height="200px")
    assert image["width"] == "480px"
    assert "height" not in image
    assert "no-scaled-link" in image["classes"]
    assert sized(hook, tmp_path, png(960, 400, dpi=(96, 96)))["width"] == "960px"


def test_other_pictures_and_builders_are_left_alone(hook, tmp_path):
    sharp = png(960, 400, dpi=(192, 192))
    assert "width" not in sized(hook, tmp_path, png(960, 400))
    assert "width" not in sized(hook, tmp_path, sharp, output="latex")
    assert "width" not in sized(hook, tmp_path, sharp, scale=50)
