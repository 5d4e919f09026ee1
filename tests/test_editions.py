"""Two editions from one source: what a student is not given, what stays, and self-checks that keep their secret."""

import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from _make import execute, pages
from _make.build import build_book, sync
from _make.editions import PAGES, without_solutions, write_edition
from _make.notebooks import check_pairs, find_chapters, paired_notebook
from vireid_lite import losses, metrics
from vireid_lite.chapters.exercises import UNANSWERED, seal, self_check, self_check_value
from vireid_lite.errors import InputError

ROOT = Path(__file__).parents[1]
CHAPTERS = find_chapters(ROOT)
START = re.compile(r"\{exercise-start\} (\w+): .+\n:label: (\S+)")
ANSWER = re.compile(r"\{solution-start\} (\S+)\n:class: dropdown\n```\nSelf-check: \*\*(.+?)\*\*\.")
LETTERS = re.compile(r"^- \(([a-z])\) ", re.MULTILINE)
CHAPTER = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Small, as [those who teach](../book/instructors/index) know

# %% tags=["parameters"]
TIER = "lite"
DATASET = None
DATA_ROOT = None
SEED = 0
DEVICE = "cpu"
OUT_DIR = "_build/chapters"

# %%
from vireid_lite.chapters.parameters import check_parameters

if False:
    check_parameters(globals())
print("a result of six times", 7)

# %% [markdown]
# ```{exercise-start} Easy: a product
# :label: ex-small
# ```
# How much?
# ```{exercise-end}
# ```

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-small
# :class: dropdown
# ```
# Multiply.

# %% tags=["solution"]
print(6 * 7)

# %% [markdown] tags=["solution"]
# As it should be.
#
# ```{solution-end}
# ```

# %% [markdown]
# ## References
"""


@cache
def cells(source: Path) -> list[dict]:
    """Return a chapter's cells, each with its text joined."""
    return [{**cell, "text": "".join(cell["source"])} for cell in json.loads(paired_notebook(source))["cells"]]


def markdown(source: Path) -> str:
    """Return a chapter's text without its code."""
    return "\n\n".join(cell["text"] for cell in cells(source) if cell["cell_type"] == "markdown")


def small(root: Path) -> Path:
    """Write a book of one chapter, a page for everybody and one for instructors."""
    for folder in ("notebooks", "book/results", "book/instructors"):
        (root / folder).mkdir(parents=True)
    (root / "notebooks" / "01_small.py").write_text(CHAPTER)
    for name in ("_config.yml", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, root)
    page = "# Small\n\n| a | b |\n|---|---|\n| teach | [](instructors/index) |\n| read | on |\n\n"
    page += "- **Teach** [](instructors/index.md)\n- **Read** [](index.md), as [teachers](instructors/index) do.\n\n"
    page += "Ask {doc}`a teacher <instructors/index>`, see [](instructors/01_small.md#x).\n"
    (root / "book" / "index.md").write_text(page)
    (root / PAGES / "index.md").write_text("# Teach\n\n% measured: all\n")
    (root / PAGES / "01_small.md").write_text("# One\n\n% measured: 01_small\n")
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n- caption: Chapters\n  chapters:\n  - file: notebooks/01_small\n"
        "- caption: Teachers\n  chapters:\n  - file: book/instructors/index\n    sections:\n"
        "    - file: book/instructors/01_small\n"
    )
    sync(root)
    return root


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The student edition of this book."""
    return write_edition(ROOT, "student", tmp_path_factory.mktemp("student") / "edition")


def test_a_student_gets_every_exercise_and_no_solution(student):
    check_pairs(student)
    assert [source.name for source in find_chapters(student)] == [source.name for source in CHAPTERS]
    for source in CHAPTERS:
        full, edition = source.read_text(), (student / "notebooks" / source.name).read_text()
        assert "{solution-start}" in full
        for text in (edition, (student / "notebooks" / f"{source.stem}.ipynb").read_text()):
            assert "{solution-" not in text
            assert "Self-check: **" not in text
        assert START.findall(markdown(student / "notebooks" / source.name)) == START.findall(markdown(source))
        for kept in ("{exercise-end}", 'tags=["self-check"]', "\n# ## References"):
            assert edition.count(kept) == full.count(kept)
        # Nothing is added or reordered: the edition's lines are the chapter's, in their order.
        lines = iter(full.splitlines())
        assert all(line in lines for line in edition.splitlines()), source.name


def test_a_student_gets_no_page_for_instructors_and_no_way_there(student):
    assert (ROOT / PAGES / "index.md").exists()
    assert not (student / PAGES).exists()
    contents = yaml.safe_load((student / "_toc.yml").read_text())
    assert PAGES not in json.dumps(contents)
    assert all(part["chapters"] for part in contents["parts"])
    configuration = yaml.safe_load((student / "_config.yml").read_text())
    assert "launch_buttons" not in configuration
    buttons = {name: on for name, on in configuration["html"].items() if name.endswith("_button")}
    assert len(buttons) == 3
    assert not any(buttons.values())
    for page in (student / "book").glob("*.md"):
        assert not re.search(r"\]\([^)]*instructors/", page.read_text()), page.name


def test_licence_citation_and_cards_come_along(student):
    for name in ("LICENSE", "CITATION.cff", "pyproject.toml"):
        assert (student / name).read_bytes() == (ROOT / name).read_bytes()
    assert "no solutions" in (student / "EDITION.txt").read_text()
    cards = {path.name for path in (ROOT / "book" / "results").glob("*.json")}
    assert {path.name for path in (student / "book" / "results").glob("*.json")} >= cards - {"costs.json"}


def test_no_cell_of_the_student_edition_needs_a_solution(student):
    """What a solution defines is used by solutions alone: a linter misses no name that it finds in the full chapter."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821", "--output-format"]

    def unknown(root: Path) -> set[tuple[str, str]]:
        found = subprocess.run(
            [*command, "concise", *find_chapters(root)], capture_output=True, text=True, check=False
        ).stdout
        return set(re.findall(r"(\w+)\.py:\d+:\d+: F821 (.+)", found))

    assert unknown(student) <= unknown(ROOT)
    needy = student / "notebooks" / "99_needy.py"
    needy.write_text("compare({})\n")
    try:
        assert unknown(student) - unknown(ROOT) == {("99_needy", "Undefined name `compare`")}
    finally:
        needy.unlink()


def test_the_instructor_edition_is_everything(tmp_path):
    out = write_edition(small(tmp_path / "small"), "instructor", tmp_path / "out")
    source = tmp_path / "small"
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == names | {"EDITION.txt"}
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in names)


def test_links_to_what_is_left_out_become_words(tmp_path):
    out = write_edition(small(tmp_path / "small"), "student", tmp_path / "out")
    page = (out / "book" / "index.md").read_text()
    assert page.splitlines()[2:] == [
        "| a | b |",
        "|---|---|",
        "| read | on |",
        "",
        "- **Read** [](index.md), as teachers do.",
        "",
        "Ask a teacher, see the instructor edition.",
    ]
    assert "# # Small, as those who teach know\n" in (out / "notebooks" / "01_small.py").read_text()
    assert [part["caption"] for part in yaml.safe_load((out / "_toc.yml").read_text())["parts"]] == ["Chapters"]


def test_an_edition_is_replaced_and_nothing_else_is(tmp_path):
    source, out = small(tmp_path / "small"), tmp_path / "out"
    write_edition(source, "instructor", out)
    notebook = out / "notebooks" / "01_small.ipynb"
    answered = notebook.read_text().replace("a result of six times", "my answer")
    notebook.write_text(answered)
    (out / "_build").mkdir()
    (out / "_build" / "kept").touch()
    (out / "book" / "former.md").touch()
    write_edition(source, "student", out)
    assert not (out / "book" / "former.md").exists()
    assert not list((out / PAGES).glob("*"))
    assert (out / "_build" / "kept").exists()
    write_edition(source, "student", out)
    assert [path.read_text() for path in notebook.parent.glob("*.yours*.ipynb")] == [answered]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    cases = [("student", mine), ("student", source), ("student", source / "book" / "x"), ("teacher", tmp_path / "new")]
    for edition, folder in cases:
        with pytest.raises(InputError, match=r"thesis|no edition|sources|student or instructor"):
            write_edition(source, edition, folder)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    check_pairs(source)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (CHAPTER.replace("# ```{solution-end}\n# ```", "# as it is"), "## References"),
        (CHAPTER.replace("# ## References", "# ```{solution-end}\n# ```"), "solution-end"),
        (CHAPTER.replace("# Multiply.", "# ```{exercise-start} Easy: x"), "holds an exercise"),
        (CHAPTER.replace('# %% tags=["solution"]', "# %%"), "print"),
        (CHAPTER.replace('# %% tags=["parameters"]', '# %% tags=["parameters", "solution"]'), "TIER"),
    ],
)
def test_a_solution_whose_cells_are_not_tagged_is_refused(broken, line):
    with pytest.raises(InputError, match=line):
        without_solutions(broken)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_results_come_along_and_are_not_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(execute, "package_key", lambda: "fixed")
    source = small(tmp_path / "small")
    build_book(root=source, execute_only=True)
    out = write_edition(source, "student", tmp_path / "out")
    capsys.readouterr()
    folder = build_book(root=out, execute_only=True)
    assert "unchanged, executed before" in capsys.readouterr().out
    text = (folder / "01_small.ipynb").read_text()
    assert "a result of six times 7" in text
    assert "print(6 * 7)" not in text
    executed = source / "_build" / "executed" / "01_small.ipynb"
    for damage in ("x", [{}], None):
        executed.write_text(json.dumps({**json.loads(former := executed.read_text()), "cells": damage}))
        with pytest.raises(InputError, match=rf"^{executed} is damaged; restore it"):
            write_edition(source, "student", tmp_path / "damaged")
        executed.write_text(former)
    # Results of a chapter that was edited since are not passed off as its own.
    edited = source / "notebooks" / "01_small.py"
    edited.write_text(CHAPTER.replace("times", "by"))
    sync(source)
    assert not list((write_edition(source, "student", tmp_path / "new") / "_build").rglob("*.ipynb"))


# The instructors' pages.


def test_every_chapter_has_its_page_and_asks_for_its_costs():
    assert {page.stem for page in (ROOT / PAGES).glob("*.md")} == {source.stem for source in CHAPTERS} | {"index"}
    for page in (ROOT / PAGES).glob("*.md"):
        text = page.read_text()
        assert text.count("% measured: ") == 1
        if page.stem == "index":
            continue
        assert f"% measured: {page.stem}\n" in text
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == [
            "Before class",
            "Three paths",
            "Discussion questions",
            "Common misconceptions",
            "Exercises",
        ]
        assert all(f"| {minutes} |" in text for minutes in (10, 45, 90))
        assert text.count("\n### ") >= 4
        labels = [label for _, label in START.findall(markdown(ROOT / "notebooks" / f"{page.stem}.py"))]
        assert re.findall(r"^\| \{ref\}`(ex-[a-z0-9-]+)` \|", text, re.MULTILINE) == labels


def teachers(root: Path) -> dict[str, str]:
    """Return the instructors' pages as the build fills them."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / PAGES).glob("*.md")}
    return {Path(name).stem: text.decode() for name, text in pages.fill(files, root, root / "none").items()}


def test_costs_are_drawn_from_the_table(tmp_path):
    root = small(tmp_path)
    assert "Not measured yet: `vireid-lite book --chapters 1 --measure`" in teachers(root)["01_small"]
    assert "| `lite` | – | – | not measured yet |" in teachers(root)["index"]
    cost = {"minutes": 2.345, "memory_gib": 1.04, "device": "a machine"}
    (root / "book" / "results" / "costs.json").write_text(json.dumps({"01_small": {"lite": cost}}))
    assert "tier `lite` 2.3 minutes and 1.0 GiB on a machine." in teachers(root)["01_small"]
    assert teachers(root)["index"].count("| [](../../notebooks/01_small) | `lite` | 2.3 | 1.0 | a machine |") == 1
    (root / PAGES / "01_small.md").write_text("% measured: 02_other\n")
    with pytest.raises(InputError, match="02_other"):
        teachers(root)


# Self-checks.


def printed(call, *arguments, **options) -> str:
    with redirect_stdout(io.StringIO()) as stream:
        call(*arguments, **options)
    return stream.getvalue().strip()


def test_a_self_check_knows_right_from_wrong_and_says_no_more():
    sealed = seal("ex-one", "b")
    assert printed(self_check, None, "ex-one", sealed) == UNANSWERED
    for answer in ("b", " B ", "(b)", "B."):
        assert printed(self_check, answer, "ex-one", sealed) == "Right."
    assert printed(self_check, "a", "ex-one", sealed).startswith("Not right")
    assert seal("ex-two", "b") != sealed
    for value in (3, 3.01, 2.96):
        assert printed(self_check, value, "ex-one", seal("ex-one", "3.0"), decimals=1) == "Right."
    assert printed(self_check, 3.1, "ex-one", seal("ex-one", "3.0"), decimals=1).startswith("Not right")
    for value in (4, 4.0, "4"):
        assert printed(self_check, value, "ex-one", seal("ex-one", "4")) == "Right."
    assert printed(self_check, 4.4, "ex-one", seal("ex-one", "4")).startswith("Not right")
    assert printed(self_check_value, None, lambda: 1 / 0, 0.1) == UNANSWERED
    assert printed(self_check_value, 2.05, lambda: 2.0, 0.1) == "Right."
    assert "small" in printed(self_check_value, 1.8, lambda: 2.0, 0.1)
    assert "large" in printed(self_check_value, 2.2, lambda: 2.0, 0.1)
    for answer in ("", True, float("nan"), [1]):
        with pytest.raises(InputError):
            self_check(answer, "ex-one", sealed)
        with pytest.raises(InputError):
            self_check_value(answer, lambda: 1.0, 0.1)


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda source: source.stem)
def test_every_exercise_has_a_self_check_that_its_solution_answers(source):
    """Each cell runs by itself, asks for an answer, sets nothing, and calls what its solution says right."""
    answers, waiting, checked, space = dict(ANSWER.findall(markdown(source))), None, [], {}
    for cell in cells(source):
        text = cell["text"]
        if cell["cell_type"] == "markdown":
            for _, label in START.findall(text):
                waiting, options = label, LETTERS.findall(text)
            assert "{solution-start}" not in text or waiting is None, f"{waiting}: no self-check"
            continue
        if "self-check" not in cell["metadata"].get("tags", []):
            continue
        assert printed(exec, text, space) == UNANSWERED
        assert set(space) <= {"__builtins__", "self_check", "self_check_value"}
        if sealed := re.search(r'self_check\(None, "(\S+)", "(\w+)"', text):
            assert sealed[1] == waiting
            assert sealed[2] == seal(waiting, answers[waiting]), waiting
            assert not options or (answers[waiting] in options and options == sorted(options)), waiting
        else:
            assert waiting in VALUES, f"{waiting}: give its variables and a right answer below"
            variables, right = VALUES[waiting]
            for answer, verdict in ((right, "Right."), (right + 10, "Not right: too large.")):
                filled = re.sub(r"\bNone\b", str(answer), text, count=1)
                assert printed(exec, filled, variables | space) == verdict
        checked.append(waiting)
        waiting = None
    assert checked == [label for _, label in START.findall(markdown(source))]


# For checks that compute: the chapter's variables they read, and the answer by hand.
VALUES = {
    # Right images at ranks 3, 5, 6 and 9, as a stand-in; after the swap at 2, 5, 6 and 9.
    "ex-ranking-swap": (
        {"np": np, "metrics": metrics, "right": np.isin(np.arange(1, 11), (3, 5, 6, 9))},
        (1 / 2 + 2 / 5 + 3 / 6 + 4 / 9) / 4,
    ),
    "ex-training-first-loss": ({"torch": torch, "losses": losses, "num_identities": 1000}, 3 * np.log(10)),
    "ex-whole-bit": ({"np": np, "made": {"paper": SimpleNamespace(delta=torch.ones(3, 96, 48))}}, 1728),
}
