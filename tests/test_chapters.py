"""Every chapter has the skeleton a reader relies on, and a notebook that is what its source says."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from vireid_lite.book import find_chapters, paired_notebook, repository_url
from vireid_lite.chapters.parameters import STANDARD, check_values, read_parameters

ROOT = Path(__file__).parents[1]
CHAPTERS = find_chapters(ROOT)
TEMPLATE = ROOT / "tests" / "chapter_template.py"
HEADINGS = (
    "What you will be able to do",
    "What it costs",
    "What could fool us",
    "Takeaways",
    "Exercises",
    "References",
)
LEVELS = ("Easy", "Medium", "Hard")
# A cell that calls one of these, or one of the package's own figures, draws.
DRAWS = re.compile(r"\bplt\.show\(|\.plot\(|\.imshow\(|\.hist\(|\.bar\(|\bsns\.\w+\(")


@cache
def read(source: Path) -> dict:
    """Return a chapter's notebook, made from its source."""
    return json.loads(paired_notebook(source))


def cells(source: Path, kind: str) -> list[dict]:
    """Return a chapter's cells of one kind, each with its text joined."""
    found = (cell for cell in read(source)["cells"] if cell["cell_type"] == kind)
    return [{**cell, "text": "".join(cell["source"])} for cell in found]


def prose(source: Path) -> str:
    """Return a chapter's text without its code."""
    return "\n\n".join(cell["text"] for cell in cells(source, "markdown"))


def attacks(source: Path) -> bool:
    """Return whether a chapter's header says that it attacks something (`vireid: attacks: true`)."""
    return bool(read(source)["metadata"].get("vireid", {}).get("attacks", False))


def section(source: Path, heading: str) -> str:
    """Return the text under a heading of the second level, down to the next one."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", prose(source), re.MULTILINE | re.DOTALL)
    assert found, f"{source.name}: no section ## {heading}"
    return found[1].strip()


def drawing_functions() -> set[str]:
    """Return the names of the package's functions that return a figure."""
    tree = ast.parse((ROOT / "vireid_lite" / "plots.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.returns is not None)
    return {node.name for node in functions if ast.unparse(node.returns) == "Figure"}


def figure_cells(source: Path) -> list[dict]:
    """Return the code cells that put a figure on the page."""
    own = re.compile(rf"\b(?:{'|'.join(sorted(drawing_functions()))})\(")
    return [
        cell
        for cell in cells(source, "code")
        if "figure" in cell["metadata"].get("tags", []) or DRAWS.search(cell["text"]) or own.search(cell["text"])
    ]


def test_there_are_chapters():
    assert CHAPTERS
    numbers = [int(source.stem[:2]) for source in CHAPTERS]
    assert numbers == list(range(1, len(numbers) + 1))
    listed = re.findall(r"file: notebooks/(\w+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert listed == [source.stem for source in CHAPTERS]


@pytest.fixture(params=[*CHAPTERS, TEMPLATE], ids=lambda source: source.stem)
def chapter(request) -> Path:
    """Each chapter in turn, and the template that new ones start from."""
    return request.param


def test_notebook_is_its_source_without_outputs(chapter):
    if chapter != TEMPLATE:
        assert chapter.with_suffix(".ipynb").read_bytes() == paired_notebook(chapter), "run vireid-lite book --sync"
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells(chapter, "code"))


def test_metadata_opens_it_on_a_gpu_and_under_papermill(chapter):
    metadata = read(chapter)["metadata"]
    assert metadata["accelerator"] == "GPU"
    assert metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    imports = re.search(r"vireid_lite(\.| import )attacks", "".join(cell["text"] for cell in cells(chapter, "code")))
    assert attacks(chapter) or not imports, "set vireid: attacks: true in the header"


def test_sections(chapter):
    headings = re.findall(r"^## (.+)$", prose(chapter), re.MULTILINE)
    assert len(re.findall(r"^# .+$", prose(chapter), re.MULTILINE)) == 1
    assert [heading for heading in headings if heading in HEADINGS] == list(HEADINGS)
    assert headings[:2] == list(HEADINGS[:2])
    assert headings[-4:] == list(HEADINGS[-4:])
    for heading in ("What you will be able to do", "Takeaways"):
        assert len(re.findall(r"^- ", section(chapter, heading), re.MULTILINE)) >= 2, heading
    assert len(section(chapter, "What could fool us").split()) >= 15
    assert section(chapter, "References").count("{cite") >= 1
    if attacks(chapter):
        assert "threat_models" in section(chapter, "Threat model")


def test_cells_before_the_body(chapter):
    """The package is installed on Colab, what the chapter costs is shown, parameters are set and then checked."""
    code = cells(chapter, "code")
    install, costs, parameters, check = code[:4]
    assert 'if "google.colab" in sys.modules' in install["text"]
    assert f'"vireid-lite @ git+{repository_url(ROOT)}"' in install["text"]
    assert install["metadata"]["tags"] == ["remove-cell"]
    name = "00_template" if chapter == TEMPLATE else chapter.stem
    assert f'costs = Costs("{name}")' in costs["text"]
    assert costs["text"].rstrip().endswith("\ncosts")
    assert parameters["metadata"]["tags"] == ["parameters"]
    assert "".join(check["text"].split()).startswith("settings=check_parameters(globals(),costs")
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


def test_every_parameter_says_what_it_is(chapter, tmp_path):
    notebook = tmp_path / "chapter.ipynb"
    notebook.write_bytes(paired_notebook(chapter))
    defaults, own = read_parameters(notebook)
    assert list(defaults)[: len(STANDARD)] == list(STANDARD)
    assert set(defaults) == set(STANDARD) | set(own)
    values = check_values(defaults, own)
    assert (values["TIER"], values["DATASET"], values["SEED"]) == ("lite", "synthetic", 0)
    assert (defaults["DEVICE"], defaults["OUT_DIR"]) == ("auto", "_build/chapters")
    for line in cells(chapter, "code")[2]["text"].splitlines():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*: \S+ = .+  # \S.+", line), line


def test_figures_speak_to_everyone(chapter):
    figures = figure_cells(chapter)
    assert figures
    for cell in figures:
        shown = cell["metadata"].get("mystnb", {})
        where = f"{chapter.name}: {cell['text'][:80]!r}"
        caption, name = (shown.get("figure", {}).get(key, "") for key in ("caption", "name"))
        alt = shown.get("image", {}).get("alt", "")
        assert len(caption.split()) >= 5, f"{where}: a caption says what to see"
        assert len(alt.split()) >= 8, f"{where}: an alt text says it to someone who cannot"
        assert alt.strip(". ") not in caption, f"{where}: alt text repeats the caption"
        assert re.fullmatch(r"fig-[a-z0-9-]+", name), f"{where}: name {name!r}"


def test_figures_and_exercises_have_names_of_their_own():
    found = [cell["metadata"]["mystnb"]["figure"]["name"] for source in CHAPTERS for cell in figure_cells(source)]
    found += [label for source in CHAPTERS for label in re.findall(r"^:label: (\S+)$", prose(source), re.MULTILINE)]
    assert len(found) == len(set(found))


def test_exercises_are_graded_and_solved(chapter):
    text = section(chapter, "Exercises")
    exercises = re.findall(r"^```\{exercise-start\} (\w+): .+\n:label: (ex-[a-z0-9-]+)$", text, re.MULTILINE)
    assert len(exercises) >= 2
    assert len(exercises) == text.count("{exercise-start}") == text.count("{exercise-end}")
    assert {level for level, _ in exercises} <= set(LEVELS)
    solutions = re.findall(r"^```\{solution-start\} (\S+)\n:class: dropdown$", text, re.MULTILINE)
    assert solutions == [label for _, label in exercises]
    assert len(solutions) == text.count("{solution-end}")


def test_code_is_python_that_stands_alone(chapter):
    """No shell or IPython magic: each cell is Python, so that linters and readers see all of it."""
    for cell in cells(chapter, "code"):
        ast.parse(cell["text"])
