"""What the package asks of the machine it is imported on, and how deep its imports go; `make lint` holds the layers."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PORTABLE = """
import os, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("posix_fallocate", "O_DIRECTORY"):
    delattr(os, name)
from vireid_lite import attacks, cli, data, frequency, losses, metrics, models, training, victims
from vireid_lite.chapters import costs, exercises, parameters, plots
people = data.SyntheticVI(4, 2, (32, 16), val_identities=2, test_identities=2)
assert len(data.cached(people, people.train[:3], progress=False)) == 3
"""


# What is answered before torch loads: help, wrong options, and a parameter that a chapter does not have.
QUICK = """
import contextlib, json, sys
from pathlib import Path
from vireid_lite import cli
for line in Path(sys.argv[1]).read_text().splitlines():
    sys.argv = ["vireid-lite", *line.split()]
    with contextlib.suppress(SystemExit):
        cli.main()
    assert "torch" not in sys.modules, line
for notebook in sorted(Path("notebooks").glob("*.ipynb")):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    names = {"EPZ": "4/255", "In": []}
    try:
        for cell in cells:
            names["In"].append("".join(cell["source"]))
            exec(names["In"][-1], names)
    except ValueError as error:
        assert str(error).startswith("EPZ: no such parameter; this chapter has "), error
    assert len(names["In"]) < 6 and "torch" not in sys.modules, notebook
"""
COMMANDS = """--help
attack --help
frobnicate
train --epoch 3
train --epochs 0
train --seed -1
train --tier huge
train --dataset market
train --model resnet
train --size 128
train --device tpu
train -o difficulty
train --root /no/such
evaluate --split train
evaluate --checkpoint /no/such.safetensors
evaluate --dataset sysu
attack cmsp
attack cmps --eps 8
attack cmps --set eps=0.1
campaign /no/such.toml
bench smok
bench smoke --seeds x
book --chapters one
book -p EPS
data check market --root /tmp
"""


def test_help_and_refusals_come_before_torch(tmp_path):
    (tmp_path / "commands").write_text(COMMANDS)
    command = [sys.executable, "-c", QUICK, str(tmp_path / "commands")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("vireid-lite: ")]) == 23


def test_no_circle_and_no_long_chain():
    """A face, which only passes names on, is no link of a chain, but may close no circle either."""
    graph = grimp.build_graph("vireid_lite")
    below = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    length = {}
    for module in TopologicalSorter(below).static_order():  # a circle is an error
        face = bool(graph.find_children(module))
        length[module] = max((length[one] for one in below[module]), default=0) + (not face)
    assert max(length.values()) <= 11


def test_chapters_and_crops_need_nothing_that_only_linux_has(tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path))
    imports = []
    for chapter in sorted((ROOT / "notebooks").glob("0[123]_*.py")):
        nodes = ast.walk(ast.parse(chapter.read_text(encoding="utf-8")))
        imports += [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    script = PORTABLE + "\n".join(line for line in dict.fromkeys(imports) if "google" not in line)
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=300)
