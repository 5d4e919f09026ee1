"""Parameters as anyone would type them: papermill's own command, and ours."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from papermill import inspect_notebook

from _make import build as production
from _make.notebooks import find_chapters, paired_notebook
from vireid_lite import cli
from vireid_lite.chapters.parameters import check_values, read_parameters

ROOT = Path(__file__).parents[1]
CHAPTERS = find_chapters(ROOT)
BIN = Path(sys.executable).parent
SIX = {"TIER": "lite", "DATASET": None, "DATA_ROOT": None, "SEED": 0, "DEVICE": "cpu", "OUT_DIR": "_build/chapters"}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def papermill(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run papermill as a shell would."""
    command = " ".join([f"'{sys.executable}' -m papermill", *arguments])
    # ipykernel keeps a kernel's terminal to itself where it finds itself under pytest.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda source: source.stem)
def test_help_shows_each_parameter_with_its_type_and_comment(chapter):
    notebook = chapter.with_suffix(".ipynb")
    defaults, own = read_parameters(notebook)
    shown = inspect_notebook(notebook)
    given = {}
    exec(
        next(cell.source for cell in nbformat.read(notebook, 4).cells if "parameters" in cell.metadata.get("tags", [])),
        given,
    )
    assert given.items() >= defaults.items()
    assert list(shown) == list(defaults)
    assert {name: shown[name]["inferred_type_name"] for name in own} == own
    for name, parameter in shown.items():
        kind = parameter["inferred_type_name"]
        typed = {"str": "lite", "int": "3", "bool": True, "fraction": "4/255"}
        assert kind.removeprefix("Optional[").rstrip("]") in typed, f"{name} is shown as {kind}"
        assert parameter["help"], name
        # What the type promises is what the check takes.
        fits = {"DATASET": "regdb", "DEVICE": "cpu"}.get(name, typed[kind.removeprefix("Optional[").rstrip("]")])
        values = {**defaults, "DATA_ROOT": "somewhere", name: fits}
        check_values(values, own)
        if kind.startswith("Optional"):
            check_values({**values, name: None, "DATASET": None}, own)
        if kind == "fraction":
            with pytest.raises(ValueError, match=name):
                check_values({**values, name: "4"}, own)


def test_papermill_reads_fractions_and_numbers(tmp_path):
    for typed, value in (("4/255", 4 / 255), ("0.0157", 0.0157)):
        done = papermill(
            "notebooks/06_*.ipynb", str(tmp_path / "out.ipynb"), f"-p EPS {typed} -p SEED 3 --prepare-only"
        )
        assert done.returncode == 0, done.stderr
        cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
        injected = next(cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", []))
        given = {}
        exec(injected.source, {}, given)
        defaults, own = read_parameters(ROOT / "notebooks" / "06_the_whole_attack.ipynb")
        values = check_values({**defaults, **given}, own)
        assert (values["EPS"], values["SEED"]) == (value, 3)


def test_papermill_stops_at_the_check_with_one_line(tmp_path):
    lines = [f"{name} = {value!r}" for name, value in {**SIX, "EPS": "8/255"}.items()]
    lines[-1] = 'EPS: "fraction" = "8/255"'
    parameters = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["parameters"]})
    check = "from vireid_lite.chapters.parameters import check_parameters\ncheck_parameters(globals())"
    work = "open('worked', 'w')"
    notebook = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, (check, work))])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    done = papermill("tiny.ipynb out.ipynb -p EPZ 4/255", folder=tmp_path)
    assert done.returncode
    assert not (tmp_path / "worked").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("EPZ: no such parameter; this chapter has ")]
    assert len(lines) == 1
    assert done.stderr.rstrip().endswith(f"InputError: {lines[0]}")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A book of three chapters."""
    root = tmp_path_factory.mktemp("three")
    (root / "notebooks").mkdir()
    for name in ("02_ranking", "05_cross_modality_triplet", "06_the_whole_attack"):
        source = root / "notebooks" / f"{name}.py"
        shutil.copy(ROOT / "notebooks" / source.name, source)
        source.with_suffix(".ipynb").write_bytes(paired_notebook(source))
    (root / "_toc.yml").write_text("root: book/index\n")
    return root


@pytest.fixture
def build(three, monkeypatch, capsys):
    """Type a `vireid-lite book` command that executes nothing; return code, message and what it would execute."""
    monkeypatch.chdir(three)
    monkeypatch.setattr(production, "check_pairs", lambda root: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def command(typed: str) -> tuple[int, str, dict]:
        ran = {}
        monkeypatch.setattr(production.execute, "execute", lambda source, given, *_: ran.update({source.stem: given}))
        monkeypatch.setattr(sys, "argv", ["vireid-lite", "book", "--execute-only", *typed.split()])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, capsys.readouterr().err, ran

    return command


@pytest.mark.parametrize("option", ["-p", "--parameter", "--parameters"])
def test_our_command_takes_what_papermill_takes(build, option):
    both = {"EPS": "4/255", "SEED": "3"}
    code, shown, ran = build(f"--chapters 5,6 {option} EPS 4/255 {option} SEED 3")
    assert (code, shown) == (0, "")
    assert ran == {"05_cross_modality_triplet": both, "06_the_whole_attack": both}
    assert build(f"--chapters 6 {option} EPS 0.0157")[2] == {"06_the_whole_attack": {"EPS": "0.0157"}}
    assert build(f"--chapters 6 {option} EPS=8/255 {option} GRADIENTS none")[2] == {"06_the_whole_attack": {}}


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            "--chapters 2,6 -p EPS 4/255",
            r"02_ranking: EPS: no such parameter; .*; for those that have it: --chapters 5,6",
        ),
        ("--chapters 6 -p EPS 4/255 -p STEPS 3", r"06_the_whole_attack: STEPS: no such .*that have it: --chapters 5"),
        ("--chapters 6 -p EPZ 4/255", r"06_the_whole_attack: EPZ: no such parameter; this chapter has [A-Z_, ]+"),
        ("--chapters 5,6 -p EPS 4", r"05_cross_modality_triplet: EPS: expected a fraction in \[0, 1\].*, got '4'"),
        (
            "--chapters 5,6 -p SEED -1",
            r"05_cross_modality_triplet: SEED: expected a whole number of at least 0, got '-1'",
        ),
        ("--chapters 6 -p GRADIENTS many", r"06_the_whole_attack: GRADIENTS: expected a whole number, got 'many'"),
        ("--chapters 6 -p DATASET regdb", r"06_the_whole_attack: DATA_ROOT: regdb .* give its folder"),
        (
            "--chapters 6 -p DATASET sysu -p DATA_ROOT notebooks",
            r"06_the_whole_attack: SYSU-MM01: .+; check DATA_ROOT.+",
        ),
        ("--chapters 6 --tier standard", r"06_the_whole_attack: TIER: standard is sized for a GPU, and .+; use lite.+"),
        ("--chapters 6 -p EPS", r"-p 'EPS': a name and a value are needed, such as -p EPS 4/255"),
        ("--chapters 5-6", r"--chapters '5-6': give whole numbers with commas between them, such as 0,1,2"),
    ],
)
def test_wrong_ones_are_refused_before_anything_runs(build, typed, line):
    code, shown, ran = build(typed)
    assert code == 2
    assert ran == {}
    assert re.fullmatch(f"vireid-lite: {line}\n", shown), shown
