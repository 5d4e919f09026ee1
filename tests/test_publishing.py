"""What must not be published is refused by name, and the status page says what the build knows."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from _make import execute, pages
from _make.build import build_book, sync
from _make.notebooks import read_record
from _make.publish import check_build
from vireid_lite.errors import InputError

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CHAPTER = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Small

# %% tags=["parameters"]
TIER = "lite"
DATASET = None
DATA_ROOT = None
SEED = 0
DEVICE = "cpu"
OUT_DIR = "_build/chapters"

# %%
if False:  # a build reads the call; running it would import torch
    check_parameters(globals())

# %%
from base64 import b64decode
from IPython.display import Image

Image(b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A book of one chapter with one picture, and the status page, built once."""
    root = tmp_path_factory.mktemp("toy")
    (root / "notebooks").mkdir()
    (root / "book" / "results").mkdir(parents=True)
    (root / "notebooks" / "01_small.py").write_text(CHAPTER)
    for name in ("_config.yml", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("references.bib", "status.md"):
        shutil.copy(ROOT / "book" / name, root / "book")
    (root / "book" / "index.md").write_text("# Toy\n\n$x$\n")
    files = "- file: notebooks/01_small\n- file: book/status\n"
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{files}")
    costs = {"01_small": {"lite": {"minutes": 7.25, "memory_gib": 1.0, "device": "x"}}}
    (root / "book" / "results" / "costs.json").write_text(json.dumps(costs))
    sync(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "package_key", lambda: "fixed")
        build_book(root=root)
    return root


@pytest.fixture
def built(root, tmp_path):
    """A copy of the build that a test may spoil."""
    shutil.copytree(root / "_build" / "html", tmp_path / "html")
    shutil.copytree(root / "_build" / "executed", tmp_path / "executed")
    return tmp_path


def refusal(out: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_build(out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def note(notebook: Path, **record) -> None:
    """Change what an executed chapter says about itself; None takes it away."""
    content = json.loads(notebook.read_text())
    kept = {**content["metadata"]["vireid_run"], **record}
    content["metadata"]["vireid_run"] = {name: value for name, value in kept.items() if value is not None}
    notebook.write_text(json.dumps(content))


def test_a_book_on_rendered_people_passes(root, built):
    assert check_build(root / "_build") == ["01_small"]
    assert check_build(built) == ["01_small"]
    assert len(list((built / "html" / "_images").iterdir())) == 1


@pytest.mark.parametrize("place", ["html/_sources/notebooks", "executed"])
@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"dataset": "paired_folder"}, "01_small was executed on paired_folder at tier lite"),
        ({"dataset": "sysu"}, "01_small was executed on sysu at tier lite"),
        ({"tier": "full"}, "01_small was executed on synthetic at tier full"),
        ({"dataset": None}, "01_small has no record of what it ran on"),
    ],
)
def test_a_page_on_other_data_is_named(built, place, record, why):
    note(built / place / "01_small.ipynb", **record)
    assert refusal(built).startswith(f"not to be published: {why}")


def test_a_page_without_its_executed_copy_is_named(built):
    (built / "html" / "_sources" / "notebooks" / "01_small.ipynb").unlink()
    assert "01_small has no record" in refusal(built)


def test_what_no_page_accounts_for_is_named(built):
    (built / "html" / "_images" / "left over.png").write_bytes(b"x")
    assert "_images/left over.png is on no page" in refusal(built)
    (built / "html" / "_images" / "left over.png").unlink()
    (built / "html" / "_static" / "delta.safetensors").write_bytes(b"x")
    assert "_static/delta.safetensors holds weights" in refusal(built)


@pytest.mark.parametrize("place", ["html", "html/notebooks", "html/_images", "executed"])
def test_what_cannot_be_looked_at_is_not_published(built, monkeypatch, place):
    real = os.listdir

    def closed(folder="."):
        if Path(folder) == built / place:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "listdir", closed)
    assert refusal(built) == f"{built / place} cannot be read (Permission denied); check the rights to it"


def test_a_page_in_another_encoding_is_looked_at_all_the_same(built):
    (built / "html" / "other.html").write_bytes("<p>caf\xe9</p>".encode("latin-1"))
    assert check_build(built) == ["01_small"]


def test_there_must_be_a_book(tmp_path):
    assert "holds no built book; run vireid-lite book" in refusal(tmp_path)


def test_a_failed_execution_is_no_page(built):
    failed = built / "executed" / "01_small.failed.ipynb"
    shutil.copy(built / "executed" / "01_small.ipynb", failed)
    note(failed, dataset="sysu")
    assert check_build(built)


def test_an_execution_notes_its_data_and_never_where_they_lie(root, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "package_key", lambda: "fixed")
    private = tmp_path / "private"
    for folder in ("visible", "infrared"):
        (private / folder).mkdir(parents=True)
        for name in ("1.png", "2.png"):
            Image.new("RGB", (16, 32)).save(private / folder / name)
    given = {"DATASET": "paired_folder", "DATA_ROOT": str(private), "SEED": "3"}
    folder = build_book(root=root, parameters=given, out=tmp_path, execute_only=True)
    record = read_record(folder / "01_small.ipynb")
    assert (record["tier"], record["dataset"], record["parameters"]) == ("lite", "paired_folder", {"SEED": "3"})
    assert str(private) not in json.dumps(record)
    costs = json.loads((folder / "costs.json").read_text())["01_small"]["lite"]
    assert set(costs) == {"minutes", "memory_gib", "device"}


def test_status_page_shows_versions_and_times(root):
    page = (root / "_build" / "html" / "book" / "status.html").read_text()
    record = read_record(root / "_build" / "executed" / "01_small.ipynb")
    for value in ("7.2", record["device"], record["versions"]["torch"], record["versions"]["python"], "Small"):
        assert value in page, value
    assert pages.NUMBERS.search((ROOT / "book" / "status.md").read_text())[1] == "status"  # the source holds no numbers
    assert "% status" not in (root / "_build" / "stage" / "book" / "status.md").read_text()


def test_status_page_says_what_has_not_run(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_small.py").write_text(CHAPTER)
    page = {"book/status.md": b"% status: the build writes what follows\n"}
    filled = pages.fill(page, tmp_path, tmp_path / "executed")["book/status.md"].decode()
    assert "not executed yet" in filled
    assert "not measured" in filled
