"""A chapter opened alone, as on Colab: what it installs, what that leaves alone, and that what it reads comes along."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from _make import notebooks
from vireid_lite.chapters.costs import COSTS, Costs
from vireid_lite.files import results_folder
from vireid_lite.study.cards import read_cards

ROOT = Path(__file__).parents[1]
CHAPTERS = notebooks.find_chapters(ROOT)
ADDRESS = f"git+{notebooks.repository_url(ROOT)}"


@pytest.fixture
def colab():
    """The script that runs each chapter's way in."""
    spec = importlib.util.spec_from_file_location("colab", ROOT / ".ci" / "colab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toy(path: Path, *sources: str) -> str:
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in sources]
    path.write_text(json.dumps({"cells": cells}))
    return str(path)


def test_the_way_in_runs_each_import_and_nothing_else(colab, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(colab, "CARDS", "")
    check = "check_parameters = print\ncheck_parameters(1)"
    good = toy(tmp_path / "good.ipynb", "import json", check, "import math\n1 / 0", "def f():\n    import csv")
    bad = toy(tmp_path / "bad.ipynb", check, "if True:\n    from math import nothing")
    assert colab.way_in(Path(good)).splitlines()[-2:] == ["import math", "import csv"]
    assert colab.main(["--installed", good]) == 0
    assert colab.main(["--installed", good, bad]) == 1
    assert "bad: ImportError: cannot import name 'nothing'" in capsys.readouterr().out


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda source: source.stem)
def test_the_install_cell_keeps_colabs_torch_and_leaves_nothing_for_the_check_to_refuse(chapter, monkeypatch):
    """The check refuses every plain value that is no parameter, and on Colab the install cell runs before it."""
    cells = json.loads(notebooks.paired_notebook(chapter))["cells"]
    install = next("".join(cell["source"]) for cell in cells if "google.colab" in "".join(cell["source"]))
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command))
    names: dict = {}
    exec(install, names)
    assert asked[0][1:4] == ["-m", "pip", "install"]
    assert asked[0][-2:] == [f"vireid-lite @ {ADDRESS}", f"torch=={version('torch')}"]
    assert "--upgrade" not in asked[0]
    assert [name for name, value in names.items() if isinstance(value, str | list) and not name.startswith("_")] == []


def test_a_chapter_that_replaces_a_package_fails_and_one_that_adds_some_does_not(colab, monkeypatch, capsys):
    installed = {"torch": "2.11.0", "numpy": "2.0.2"}
    more = {**installed, "seaborn": "0.13"}
    states = iter([installed, more, {**more, "torch": "2.14.1"}, {"torch": "2.14.1", "seaborn": "0.13"}])
    monkeypatch.setattr(colab, "versions", lambda _: next(states))
    monkeypatch.setattr(colab, "run", lambda python, script: ("", ""))
    assert colab.check(Path("python"), [Path("1.ipynb"), Path("2.ipynb")], ["", ""]) == 2
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "1: ok",
        "2: torch 2.11.0 was replaced by 2.14.1",
        "run cards: numpy 2.0.2 was replaced by nothing",
    ]


@pytest.mark.parametrize(
    ("last", "problem"), [("CalledProcessError: 1", "ERROR: first"), ("KeyError: 'a'", "KeyError: 'a'")]
)
def test_what_pip_says_is_the_problem_where_pip_failed(last, problem, colab):
    said = f"ERROR: first\nERROR: second\nTraceback\n{last}\n"
    assert colab.run(Path(sys.executable), f"import sys; print(1); sys.exit({said!r})") == ("1\n", problem)
    assert colab.run(Path(sys.executable), "import sys; sys.stderr.write('warning'); print(1)") == ("1\n", "")


@pytest.mark.parametrize(("given", "torch"), [(["--clean"], "2.11"), (["--clean", "2.12.0"], "2.12.0")])
def test_a_clean_environment_gets_this_checkout_where_a_reader_gets_the_published_one(
    given, torch, colab, tmp_path, monkeypatch
):
    asked, wheel = [], tmp_path / "vireid_lite.whl"
    monkeypatch.setattr(colab, "clean_environment", lambda folder, torch: asked.append(torch))
    monkeypatch.setattr(colab, "build_wheel", lambda python, folder: wheel)
    monkeypatch.setattr(colab, "check", lambda python, notebooks, scripts: asked.extend(scripts))
    assert colab.main(given) == 0
    assert asked.pop(0) == torch
    assert f'"torch>={colab.oldest_torch()},<3"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(asked) == len(CHAPTERS)
    for script in asked:
        assert script.startswith(colab.COLAB)
        assert f'"vireid-lite @ {wheel.as_uri()}"' in script
        assert ADDRESS not in script


def test_a_checkout_reads_its_own_cards():
    assert results_folder() == ROOT / "book" / "results"


READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
from vireid_lite.chapters import costs
from vireid_lite.study import cards, tables
folder = costs.COSTS.parent
found = cards.read_cards(folder)
print(json.dumps({
    "folder": str(folder),
    "cards": [card["key"] for card in found],
    "stale": cards.stale_note(found),
    "costs": repr(costs.Costs("02_ranking")),
    "pending": tables.pending(folder.parent / "campaigns" / "victims.toml", folder),
}))
"""


def test_an_installed_package_brings_what_chapters_read(colab, tmp_path):
    """A wheel, which pip makes of an address too: all of the package, and the book's cards, costs and campaigns."""
    built = tmp_path / "installed"
    with zipfile.ZipFile(colab.build_wheel(Path(sys.executable), tmp_path, "--no-build-isolation")) as wheel:
        wheel.extractall(built)
    package, source = built / "vireid_lite", tmp_path / "source"
    for folder, copy in (("vireid_lite", ""), ("book/results", "results"), ("book/campaigns", "campaigns")):
        files = [path for path in (source / folder).rglob("*") if path.is_file()]
        assert len(files) >= 5
        for path in files:
            assert (package / copy / path.relative_to(source / folder)).read_bytes() == path.read_bytes(), path
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-c", READ, built], cwd=empty, capture_output=True, text=True, check=True)
    found, cards = json.loads(done.stdout), read_cards(COSTS.parent)
    assert found["folder"] == str(package / "results")
    assert found["cards"] == [card["key"] for card in cards]
    assert found["costs"] == repr(Costs("02_ranking"))
    assert "not measured yet" not in found["costs"].splitlines()[0]
    assert list(empty.iterdir()) == []
