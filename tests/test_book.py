"""The pipeline on a toy book of two chapters: what runs again, what stops it, and what a kill leaves behind."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
from jupyter_client.kernelspec import NoSuchKernel

from _make import execute, pages, render
from _make.build import build_book, sync
from _make.notebooks import check_pairs, paired_notebook, repository_url
from vireid_lite import cli, files
from vireid_lite.errors import BuildError, InputError

ROOT = Path(__file__).parents[1]
PACKAGE_KEY = execute.package_key.__wrapped__
# papermill and the Jupyter libraries warn about each other's futures; those warnings are not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SMALL = """# ---
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
PAUSE: "whole" = 0

# %%
from vireid_lite.chapters.parameters import check_parameters

if False:  # a build reads the call; running it would import torch, and this chapter is to be quick
    check_parameters(globals())

# %%
import time

# Wait, that someone may kill us.
time.sleep(float(PAUSE))
print("seed", SEED)
"""


def toy(root: Path) -> Path:
    """Write a book of two chapters, the template and a small one, with the project's own configuration."""
    for folder in ("notebooks", "book/results"):
        (root / folder).mkdir(parents=True)
    template = (ROOT / "tests" / "chapter_template.py").read_text().replace("00_template", "01_first")
    (root / "notebooks" / "01_first.py").write_text(template)
    (root / "notebooks" / "02_second.py").write_text(SMALL)
    for name in ("_config.yml", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("references.bib", "references.md", "glossary.md"):
        shutil.copy(ROOT / "book" / name, root / "book")
    (root / "book" / "index.md").write_text("# Toy\n")
    drawing = ":::{figure-md} fig-two\n![Two & three](_static/drawings/two_stream.svg)\n\nA caption\n:::\n"
    (root / "book" / "threat_models.md").write_text(f"# Threat models\n\n$x^2$\n\n{{numref}}`fig-two`\n\n{drawing}")
    entries = ["notebooks/01_first", "notebooks/02_second", "book/threat_models", "book/glossary", "book/references"]
    files = "".join(f"- file: {entry}\n" for entry in entries)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{files}")
    sync(root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Return every source of a book."""
    files = (path for path in root.rglob("*") if path.is_file() and "_build" not in path.relative_to(root).parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def build(root: Path, capsys, **options) -> str:
    """Build, and return what was printed."""
    build_book(root=root, **options)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A toy book, executed and rendered once; every test leaves its sources as they were."""
    root = toy(tmp_path_factory.mktemp("toy"))
    before = contents(root)
    with pytest.MonkeyPatch.context() as patch:
        # The package may be edited while its tests run; `test_key_follows_the_package...` has the real key.
        patch.setattr(execute, "package_key", lambda: "fixed")
        page = build_book(root=root)
        assert page == root / "_build" / "html" / "index.html"
        assert contents(root) == before
        yield root
    assert contents(root) == before


@pytest.fixture
def edit(built):
    """Change a source for the length of one test, its notebook with it."""
    former = {}

    def change(name: str, old: str, new: str) -> None:
        path = built / name
        former.setdefault(path, path.read_text())
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        sync(built)

    yield change
    for path, text in former.items():
        path.write_text(text)
    sync(built)


def test_a_drawing_is_part_of_its_page(built):
    """So that it takes the colours of the theme; its other text is read out, and no copy lies beside the pages."""
    html = built / "_build" / "html"
    page = (html / "book" / "threat_models.html").read_text()
    found = re.search(
        r'<figure[^>]* id="fig-two">\s*<svg [^>]*class="drawing".*?</svg>\s*<figcaption>', page, re.DOTALL
    )
    assert "<desc>Two &amp; three</desc>" in found[0]
    assert re.search(r'href="#fig-two"><span class="std std-numref">Fig\. \d', page)
    assert not list((html / "_images").glob("*.svg"))


def test_page_shows_what_the_chapter_made(built):
    page = (built / "_build" / "html" / "notebooks" / "01_first.html").read_text()
    assert re.search(r'<img alt="Line chart: one blue line[^>]*src="\.\./_images/', page)
    assert "not measured yet" in page
    assert "Tier lite on" in page
    assert "mathjax/tex-chtml.js" in page
    assert "google.colab" not in page  # the install cell is for Colab
    name = repository_url(ROOT).removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{name}/blob/main/notebooks/01_first.ipynb" in page
    assert f"{repository_url(ROOT)}/edit/main/notebooks/01_first.py" in page
    for kept in (built / "_build" / "html").rglob("*.ipynb"):
        assert str(built) not in kept.read_text()


def test_costs_are_noted(built):
    costs = json.loads((built / "_build" / "executed" / "costs.json").read_text())
    assert set(costs) == {"01_first", "02_second"}
    lite = costs["01_first"]["lite"]
    assert 0 < lite["minutes"] < 5
    assert 0.05 < lite["memory_gib"] < 16
    assert lite["device"]
    cells = json.loads((built / "_build" / "executed" / "02_second.ipynb").read_text())["cells"]
    assert "ru_maxrss" not in "".join("".join(cell["source"]) for cell in cells)


def test_only_what_changed_runs_again(built, edit, capsys):
    assert build(built, capsys, execute_only=True).count("unchanged") == 2
    edit("notebooks/02_second.py", 'print("seed", SEED)', 'print("now", SEED)')
    printed = build(built, capsys, execute_only=True)
    assert "01_first: unchanged" in printed
    assert "02_second: executed" in printed


def test_a_static_file_that_changed_alone_is_served(built, capsys):
    own = built / "book" / "_static" / "own.js"
    own.write_text("// new")
    build(built, capsys)
    own.unlink()
    assert (built / "_build" / "html" / "_static" / "own.js").read_text() == "// new"


def test_key_follows_the_package_and_cards_only_where_they_are_read(tmp_path, monkeypatch):
    for module in (execute, files):
        monkeypatch.setattr(module, "PACKAGE", tmp_path / "vireid_lite")
    monkeypatch.setattr(execute, "source_hash", files.source_hash.__wrapped__)
    for folder in ("vireid_lite/grids", "notebooks", "book/results"):
        (tmp_path / folder).mkdir(parents=True)
    keys = []
    for name, text in (
        ("a.py", "x = 1"),
        ("grids/x.toml", "1"),
        ("a.py", "x = 2"),
        ("a.py", '"""Words."""\n# Words.\nx = 2\n'),
    ):
        (tmp_path / "vireid_lite" / name).write_text(text)
        keys.append(PACKAGE_KEY())
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]
    monkeypatch.setattr(execute, "package_key", lambda: "fixed")
    source = tmp_path / "notebooks" / "01_one.py"
    for chapter in (
        "from vireid_lite.study.cards import x",
        "from vireid_lite.study import tables",
        "import vireid_lite.study.x",
        "",
    ):
        source.write_text(f"# %%\n{chapter}\n")
        source.with_suffix(".ipynb").write_bytes(paired_notebook(source))
        keys = []
        for name in ("first.json", "card.json", "costs.json"):
            (tmp_path / "book" / "results" / name).write_text(chapter)
            keys.append(execute.chapter_key(source, {}))
        assert (keys[0] != keys[1]) == bool(chapter)
        assert keys[1] == keys[2]


def test_parameters_reach_the_chapter(built, capsys):
    parameters = {"SEED": "3"}
    build(built, capsys, chapters=[2], parameters=parameters, out="_build/other", execute_only=True)
    executed = (built / "_build" / "other" / "executed" / "02_second.ipynb").read_text()
    assert '"seed 3\\n"' in executed
    assert "02_second: unchanged" in build(
        built, capsys, chapters=[2], parameters=parameters, out="_build/other", execute_only=True
    )
    assert not (built / "_build" / "other" / "executed" / "01_first.ipynb").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"parameters": {"EPZ": "1"}}, "01_first: EPZ: no such parameter; this chapter has DATASET, "),
        ({"parameters": {"EPS": "much"}, "chapters": [1]}, "01_first: EPS: expected a fraction such as 8/255 or 0.03"),
        ({"parameters": {"EPS": "4/255"}}, "02_second: EPS: no such parameter"),
        ({"parameters": {"DEVICE": "cuda:99"}}, "01_first: DEVICE 'cuda:99' is not on this machine"),
        ({"tier": "huge"}, "01_first: TIER: expected one of lite, standard, full"),
        ({"tier": "full"}, "01_first: DATA_ROOT: sysu (tier full) is read from your own copy"),
        ({"chapters": [7]}, "--chapters 7: there is no such chapter; there are 1, 2"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(built, monkeypatch, options, line):
    monkeypatch.setattr(execute, "execute", lambda *_: pytest.fail("ran"))
    with pytest.raises(InputError) as caught:
        build_book(root=built, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_long_cell_says_how_long_and_what_it_does(built, edit, monkeypatch, capsys):
    monkeypatch.setattr(execute, "TELL_EVERY", (0.1, 0.1))
    edit("notebooks/02_second.py", "time.sleep(float(PAUSE))", 'print("step 1\\nstep 2", flush=True); time.sleep(2.5)')
    build_book(root=built, chapters=[2], execute_only=True, out="_build/other")
    assert re.search(r"02_second:.*this cell 0:00:02 step 2", capsys.readouterr().err)


def command(root: Path, monkeypatch, capsys, *typed: str) -> tuple[int, list[str], list[str]]:
    """Type a `vireid-lite book` command; return its exit code and the lines it printed on stdout and stderr."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["vireid-lite", "book", *typed])
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(("vireid-lite: ", "Traceback"))]
    return left.value.code or 0, printed.out.splitlines(), lines


def test_failing_chapters_are_named_the_others_run_and_the_page_stays(built, edit, monkeypatch, capsys):
    edit("notebooks/01_first.py", "# %% [markdown]\n# # ", "# %%\nimport os\n\nos._exit(1)\n\n# %% [markdown]\n# # ")
    edit("notebooks/02_second.py", "time.sleep(float(PAUSE))", 'raise RuntimeError("no\\nmore")')
    page = (built / "_build" / "html" / "notebooks" / "02_second.html").stat()
    code, out, err = command(built, monkeypatch, capsys)
    assert code == 2
    out.sort()  # chapters run at once
    assert out[0].startswith("01_first: its kernel died")
    assert out[1].startswith("02_second, cell [3] `import time`: RuntimeError: no (see ")
    rest = "nothing was rendered, the former pages stay"
    assert err == [f"vireid-lite: 2 of 2 chapters failed: 01_first, 02_second; {rest}"]
    assert (built / "_build" / "executed" / "02_second.failed.ipynb").exists()
    assert (built / "_build" / "html" / "notebooks" / "02_second.html").stat() == page


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "01_first: OSError: [Errno 28] No space left on device"),
        (NoSuchKernel("python3"), "01_first: NoSuchKernel: No such kernel named python3"),
    ],
)
def test_whatever_fails_a_chapter_is_one_line_and_the_next_one_runs(built, monkeypatch, capsys, error, line):
    ran = []

    def fail(notebook, *_, **__):
        ran.append(notebook)
        raise error

    monkeypatch.setattr(execute.papermill, "execute_notebook", fail)
    code, out, err = command(built, monkeypatch, capsys, "--force")
    assert (code, len(ran), min(out)) == (2, 2, line)  # chapters run at once
    assert [line.split(";")[0] for line in err] == ["vireid-lite: 2 of 2 chapters failed: 01_first, 02_second"]


def test_what_failed_is_told_again_where_the_log_ends(built, monkeypatch, capsys):
    frames = [f"\x1b[31mframe {number}\x1b[0m\nits line" for number in range(40)]

    def fail(*_, **__):
        raise execute.papermill.PapermillExecutionError(5, 3, "# Why.\nrun()", "RuntimeError", "no\nmore", frames)

    monkeypatch.setattr(execute.papermill, "execute_notebook", fail)
    monkeypatch.chdir(built)
    monkeypatch.setattr(sys, "argv", ["vireid-lite", "book", "--force"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    *told, last = printed.err.splitlines()[-2 * (execute.TRACEBACK_LINES + 1) - 1 :]
    assert last.startswith("vireid-lite: 2 of 2 chapters failed: 01_first, 02_second;")
    for chapter in (told[: len(told) // 2], told[len(told) // 2 :]):
        assert chapter[0] in printed.out.splitlines(), "said where it happened too"
        assert "cell [3] `run()`: RuntimeError: no (see " in chapter[0]
        assert chapter[-2:] == ["frame 39", "its line"]
    assert [chapter[:8] for chapter in (told[0], told[len(told) // 2])] == ["01_first", "02_secon"]


def test_a_second_build_in_one_folder_is_refused_in_one_line(built, monkeypatch, capsys):
    with files.exclusive(built / "_build" / "busy"):
        code, out, err = command(built, monkeypatch, capsys, "--out-dir", "_build/busy")
    assert (code, out) == (2, [])
    assert err[0].startswith(f"vireid-lite: {built / '_build' / 'busy'}: another run is writing there; wait for it")
    assert [path.name for path in (built / "_build" / "busy").iterdir()] == [".lock"]


def test_an_output_folder_below_a_file_is_refused_in_one_line(built, monkeypatch, capsys):
    for options in ([], ["--edition", "student"]):
        code, out, err = command(built, monkeypatch, capsys, "--out-dir", "CITATION.cff/below", *options)
        assert (code, out, len(err)) == (2, [], 1)
        assert "CITATION.cff/below: lies below" in err[0]
        assert "give a folder" in err[0]


def test_a_read_only_checkout_is_refused_in_one_line(built, monkeypatch, capsys):
    def sealed(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", sealed)
    code, out, err = command(built, monkeypatch, capsys)
    assert (code, out) == (2, [])
    told = f"vireid-lite: _build: {built / '_build'} cannot be written (Read-only file system); choose another folder"
    assert err == [told]


@pytest.fixture
def rendered(built, monkeypatch):
    """Let Jupyter Book find that nothing changed, without asking it: what comes after is what is tested."""
    monkeypatch.setattr(render.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    yield
    (built / "_build" / "sphinx" / "unfinished").unlink(missing_ok=True)


@pytest.mark.usefixtures("rendered")
def test_a_folder_that_fills_or_closes_meanwhile_is_one_line(built, monkeypatch, capsys):
    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(built / "_build" / "html.new"))

    monkeypatch.setattr("shutil.copytree", fail)
    code, _, err = command(built, monkeypatch, capsys)
    told = "Permission denied; check the path, the rights to it and the space left"
    assert (code, err) == (2, [f"vireid-lite: {built / '_build' / 'html.new'}: {told}"])
    assert (built / "_build" / "html" / "index.html").exists()


COST = {"minutes": 1.5, "memory_gib": 1.0, "device": "a machine"}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "7",
        "[" * 100_000,
        json.dumps({"01_first": None}),
        json.dumps({"01_first": {"lite": None}}),
        *(json.dumps({"01_first": {"lite": COST | {name: None}}}) for name in COST),
        json.dumps({"01_first": {"lite": COST | {"minutes": "many"}}}),
    ],
)
def test_a_damaged_table_of_costs_is_one_line(built, text):
    costs = built / "book" / "results" / "costs.json"
    costs.write_text(text)
    try:
        with pytest.raises(InputError, match=rf"^{costs} is damaged; restore it, or delete it and run again [^\n]+$"):
            pages.fill({}, built, built / "_build" / "executed")
    finally:
        costs.unlink()


@pytest.mark.parametrize("damage", ["cut", "record", "metadata", "minutes", "tier", "versions"])
def test_a_damaged_executed_copy_is_one_line(built, monkeypatch, capsys, damage):
    copy = built / "_build" / "executed" / "02_second.ipynb"
    former = copy.read_bytes()
    held = json.loads(former)
    if damage == "metadata":
        held["metadata"] = [1]
    elif damage == "record":
        held["metadata"]["vireid_run"] = "x"
    else:
        held["metadata"]["vireid_run"].update({damage: None})
    copy.write_bytes(former[:-50] if damage == "cut" else json.dumps(held).encode())
    try:
        code, _, err = command(built, monkeypatch, capsys)
    finally:
        copy.write_bytes(former)
    assert (code, err) == (2, [f"vireid-lite: {copy} is damaged; restore it, or delete it and run again what wrote it"])


def closing(monkeypatch, closed: Path) -> None:
    """Let a folder be one that cannot be listed, as for somebody else than its owner."""
    real = os.listdir

    def listdir(folder="."):
        if Path(folder) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)


@pytest.mark.parametrize("place", ["notebooks", "_build/executed"])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(built, monkeypatch, capsys, place):
    closing(monkeypatch, built / place)
    code, _, err = command(built, monkeypatch, capsys)
    told = f"vireid-lite: {built / place} cannot be read (Permission denied); check the rights to it"
    assert (code, err) == (2, [told])


def test_what_would_lose_the_measured_costs_is_said_before_anything_runs(built, monkeypatch, capsys):
    costs, former = built / "book" / "results" / "costs.json", execute.write_atomically
    monkeypatch.setattr(execute, "execute", lambda *_: pytest.fail("it ran"))
    costs.write_text('{"01_first": null}')
    try:
        code, _, err = command(built, monkeypatch, capsys, "--measure")
        assert (code, err[0].partition(";")[0]) == (2, f"vireid-lite: {costs} is damaged")
    finally:
        costs.unlink()

    def read_only(path, data):
        if path == costs:
            raise InputError(f"costs.json: {path.parent} cannot be written (Read-only file system)")
        former(path, data)

    monkeypatch.setattr(execute, "write_atomically", read_only)
    code, _, err = command(built, monkeypatch, capsys, "--measure")
    assert (code, len(err)) == (2, 1)
    assert "cannot be written" in err[0]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("pyproject.toml", b"[project", "is damaged; restore it"),
        ("pyproject.toml", b"project = 3", "is damaged; restore it"),
        ("_config.yml", b"a: [", "is damaged; restore it"),
        ("_config.yml", b"- 1", "is damaged; restore it"),
        ("notebooks/02_second.py", "caf\xe9".encode("latin-1"), "is no chapter in the percent format"),
        ("notebooks/02_second.py", SMALL.replace("{display_name", "{{[display_name").encode(), "is no chapter in"),
    ],
)
def test_a_damaged_source_is_one_line(built, monkeypatch, capsys, name, text, said):
    path = built / name
    former = path.read_bytes()
    path.write_bytes(text)
    try:
        code, _, err = command(built, monkeypatch, capsys)
    finally:
        path.write_bytes(former)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"vireid-lite: {path} {said}")


def test_a_taken_port_is_one_line_before_anything_is_built():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = subprocess.run(
            ["make", "port", f"PORT={port}", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True
        )
    assert made.returncode == 2
    assert made.stderr.splitlines()[0] == f"port {port} is taken or none of yours; choose another: make serve PORT=8001"
    dry = subprocess.run(["make", "--dry-run", "serve"], cwd=ROOT, capture_output=True, text=True).stdout
    assert dry.index("create_server") < dry.index("vireid-lite book") < dry.index("http.server")


@pytest.mark.usefixtures("rendered")
def test_the_last_line_says_where_the_page_is(built, monkeypatch, capsys):
    code, out, err = command(built, monkeypatch, capsys)
    assert (code, out[-1], err) == (0, f"done: {built / '_build' / 'html' / 'index.html'}", [])


def test_stale_pair_stops_the_build(built, edit):
    edit("notebooks/02_second.py", "# # Small", "# # Other")
    (built / "notebooks" / "02_second.py").write_text(SMALL)
    with pytest.raises(InputError, match=r"02_second\.ipynb.*run vireid-lite book --sync"):
        build_book(root=built)
    assert [path.name for path in sync(built)] == ["02_second.ipynb"]
    assert sync(built) == []


EMPTY = {"outputs": [], "execution_count": None}


def in_jupyter(notebook: Path, old: str, new: str, outputs: bool = False) -> None:
    """Edit a notebook as Jupyter saves it: another kernel's name, an empty cell at the end, perhaps outputs."""
    held = json.loads(notebook.read_text())
    assert any(old in line for cell in held["cells"] for line in cell["source"])
    for cell in held["cells"]:
        cell["source"] = "".join(cell["source"]).replace(old, new).splitlines(keepends=True)
    if outputs:
        cell |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": ["mine"]}], "execution_count": 7}
    held["metadata"] |= {"kernelspec": {"display_name": "my own", "name": "mine"}, "language_info": {"name": "python"}}
    held["cells"].append({"cell_type": "code", "id": "new", "metadata": {}, "source": [], **EMPTY})
    notebook.write_text(json.dumps(held, indent=1))


def test_a_notebook_that_was_run_is_in_step(built, capsys):
    notebook = built / "notebooks" / "02_second.ipynb"
    former = notebook.read_bytes()
    try:
        in_jupyter(notebook, "", "", outputs=True)
        assert "02_second: unchanged" in build(built, capsys, chapters=[2], execute_only=True)
        held = notebook.read_bytes()
        assert [path.name for path in sync(built)] == ["02_second.ipynb"]
        assert notebook.read_bytes() == former
        assert notebook.with_suffix(".yours.ipynb").read_bytes() == held, "outputs are a reader's work too"
        assert "as it was kept in 02_second.yours.ipynb" in capsys.readouterr().out
    finally:
        notebook.write_bytes(former)
        notebook.with_suffix(".yours.ipynb").unlink(missing_ok=True)


def test_what_was_edited_in_jupyter_is_taken_over_and_never_lost(tmp_path):
    root = tmp_path / "toy"
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    source, notebook = root / "notebooks" / "02_second.py", root / "notebooks" / "02_second.ipynb"
    source.write_text(SMALL)
    assert sync(root) == [notebook]
    copies = [notebook.with_suffix(f".yours{number}.ipynb") for number in ("", 1, 2)]
    # The notebook alone was edited: its source follows.
    in_jupyter(notebook, '"seed", SEED', '"mine", SEED')
    edited = notebook.read_bytes()
    with pytest.raises(InputError, match=r"02_second\.ipynb.*run vireid-lite book --sync"):
        check_pairs(root)
    assert sync(root) == [source, notebook]
    assert source.read_text() == SMALL.replace('"seed", SEED', '"mine", SEED')
    assert (notebook.read_bytes(), copies[0].read_bytes()) == (paired_notebook(source), edited)
    assert sync(root) == []
    # The source alone was: the notebook follows, and needs no copy.
    source.write_text(SMALL)
    assert sync(root) == [notebook]
    assert not copies[1].exists()
    # Both were, or the notebook is damaged: the source counts, the notebook is kept beside the earlier copy.
    for copy in copies[1:]:
        in_jupyter(notebook, '"seed", SEED', '"other", SEED')
        if copy == copies[2]:
            notebook.write_bytes(notebook.read_bytes()[:-100])
        edited = notebook.read_bytes()
        source.write_text(source.read_text() + "\n# Mine.\n")
        assert sync(root) == [notebook]
        assert (copies[0].exists(), copy.read_bytes()) == (True, edited)
        check_pairs(root)


def test_pair_has_no_outputs_and_the_same_bytes_every_time(built):
    source = built / "notebooks" / "01_first.py"
    pair = paired_notebook(source)
    assert pair == paired_notebook(source) == source.with_suffix(".ipynb").read_bytes()
    notebook = json.loads(pair)
    assert notebook["metadata"]["accelerator"] == "GPU"
    assert notebook["metadata"]["kernelspec"]["language"] == "python"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


def test_warnings_stop_the_rendering_every_time(built, edit, capsys):
    edit("book/index.md", "# Toy", "# Toy\n\n{term}`nothing of the kind`")
    front = (built / "_build" / "html" / "book" / "index.html").read_text()
    for _ in range(2):
        with pytest.raises(BuildError, match=r"rendering: book/index\.md:.*nothing of the kind"):
            build_book(root=built)
    assert (built / "_build" / "html" / "book" / "index.html").read_text() == front
    edit("book/index.md", "{term}`nothing of the kind`", "{term}`query`")
    build(built, capsys)
    assert "glossary.html#term-query" in (built / "_build" / "html" / "book" / "index.html").read_text()


def build_alone(root: Path, options: dict) -> None:
    """Build, in a process of its own that is to be killed."""
    os.chdir(root)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, say, ignores it
    execute.package_key = lambda: "fixed"
    build_book(root=Path("."), **options)


def kill_when(reached, root: Path, by: signal.Signals = signal.SIGKILL, **options) -> None:
    """Start a build and kill it once `reached()` holds."""
    process = forks.process(build_alone, root, options)
    process.start()
    while not reached() and process.is_alive():
        process.join(0.05)
    assert process.is_alive(), "the build ended before it could be killed"
    os.kill(process.pid, by)
    process.join(30)
    assert process.exitcode, "it waited for its chapters, or ended well"


def test_kills_lose_nothing_and_leave_no_half_page(built, capsys):
    """An interrupt and a kill while a chapter runs, a kill while pages are rendered."""
    out = built / "_build" / "killed"
    partial = out / "executed" / "02_second.failed.ipynb"
    (out / "executed").mkdir(parents=True)
    shutil.copy(built / "_build" / "executed" / "01_first.ipynb", out / "executed")
    for by in (signal.SIGINT, signal.SIGKILL):
        partial.unlink(missing_ok=True)
        kill_when(partial.exists, built, by, out="_build/killed", parameters={"PAUSE": 60}, chapters=[2])
    assert not (out / "executed" / "02_second.ipynb").exists()
    kill_when((out / "sphinx" / "unfinished").exists, built, out="_build/killed")
    assert not (out / "html").exists()
    executed = json.loads((out / "executed" / "02_second.ipynb").read_text())
    assert executed["cells"]
    printed = build(built, capsys, out="_build/killed")
    assert "02_second: unchanged" in printed
    assert (out / "html" / "book" / "index.html").exists()
    assert not (out / "sphinx" / "unfinished").exists()
    assert [path.name for path in out.glob("html*")] == ["html"]


def test_chapter_not_run_yet_is_shown_without_results(built, capsys):
    printed = build(built, capsys, chapters=[2], out="_build/partly")
    assert "not been executed yet" in printed
    page = (built / "_build" / "partly" / "html" / "notebooks" / "01_first.html").read_text()
    assert "Tier lite on" not in page


def test_measuring_starts_from_empty_caches_and_notes_costs(built, edit):
    found = 'from vireid_lite.victims import found_shipped, found_trained; found_trained["key"] = 600; import os; '
    found += 'found_shipped["key"] = 300; '
    edit("notebooks/02_second.py", 'print("seed"', f'{found}print(os.environ["VIREID_CACHE"], "seed"')
    left = built / "_build" / "other" / "measured" / "cache"
    for name in ("victims", "crops"):
        (left / name / "before").mkdir(parents=True)
    path = build_book(root=built, chapters=[2], measure=True, out="_build/other")
    try:
        assert path == built / "book" / "results" / "costs.json"
        costs = json.loads(path.read_text())
        assert set(costs) == {"02_second"}
        assert 10 < costs["02_second"]["lite"]["minutes"] < 15, "ten of the training of a victim that was there"
        assert costs["02_second"]["lite"]["retrained"] == pytest.approx(costs["02_second"]["lite"]["minutes"] + 5)
        assert not list(left.rglob("before"))
        executed = (built / "_build" / "other" / "measured" / "02_second.ipynb").read_text()
        assert "_build/other/measured/cache seed 0" in executed
    finally:
        path.unlink()


def test_address_is_held_in_one_place_and_derived_elsewhere(tmp_path):
    root = toy(tmp_path / "toy")
    other = "https://github.com/someone/else"
    (root / "README.md").write_text(f"git clone {repository_url(root)}\n")
    pyproject = root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace(repository_url(root), other))
    changed = {path.name for path in sync(root)}
    assert changed == {"README.md", "CITATION.cff", "01_first.py", "01_first.ipynb"}
    assert f"vireid-lite @ git+{other}" in (root / "notebooks" / "01_first.ipynb").read_text()
    assert f'repository-code: "{other}"' in (root / "CITATION.cff").read_text()
    assert (root / "README.md").read_text() == f"git clone {other}\n"


def test_no_committed_file_holds_another_address():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    address = repository_url(ROOT).removeprefix("https://github.com/")
    name = address.split("/")[1]
    held = {"CITATION.cff": []}
    for path in map(Path, listed.stdout.splitlines()):
        if (ROOT / path).suffix in (".md", ".cff", ".py", ".ipynb", ".toml", ".yml", ".yaml", ".txt", ".json", ""):
            text = (ROOT / path).read_text(encoding="utf-8", errors="ignore")
            found = re.findall(rf"(?:github\.com|/github|[\w-]+\.github\.io)[/:]([\w.-]+/{name})\b", text)
            held[path.as_posix()] = found
    assert {path: found for path, found in held.items() if set(found) - {address}} == {}
    assert held["CITATION.cff"] == [address]
    assert held["_config.yml"] == []
