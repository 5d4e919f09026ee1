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


def test_no_circle_and_no_long_chain():
    """A face, which only passes names on, is no link of a chain, but may close no circle either."""
    graph = grimp.build_graph("vireid_lite")
    below = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    length = {}
    for module in TopologicalSorter(below).static_order():  # a circle is an error
        face = bool(graph.find_children(module))
        length[module] = max((length[one] for one in below[module]), default=0) + (not face)
    assert max(length.values()) <= 16


def test_chapters_and_crops_need_nothing_that_only_linux_has(tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path))
    imports = []
    for chapter in sorted((ROOT / "notebooks").glob("0[123]_*.py")):
        nodes = ast.walk(ast.parse(chapter.read_text(encoding="utf-8")))
        imports += [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    script = PORTABLE + "\n".join(line for line in dict.fromkeys(imports) if "google" not in line)
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=300)
