"""Each chapter's way in, as on Colab: the install cell, the parameters and their check, then all it imports.

    python .ci/colab.py                   # in Colab's image: installs what the chapters install
    python .ci/colab.py --installed       # where the package is installed already
    python .ci/colab.py --clean           # a fresh environment with the oldest torch of the stated range, this checkout
    python .ci/colab.py --clean 2.12.0    # the same with another torch; 3 to 6 GB under TMPDIR where it brings CUDA

Behind the options stand notebooks, all by default. Every chapter gets a Python of its own, in an empty folder, so that
nothing but what is installed can be found. No package that was there may be of another version afterwards, torch and
torchvision least of all, and the run cards that chapters read must have come along. Needs the standard library alone.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = f"git+{STATED['project']['urls']['Repository']}"
COLAB = 'import sys, types\nsys.modules["google.colab"] = types.ModuleType("google.colab")\n'
VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions() if d.name}))"
)
CARDS = """
from vireid_lite.study.cards import read_cards
from vireid_lite.chapters.costs import COSTS
assert COSTS.exists() and read_cards(COSTS.parent), f"{COSTS.parent}: no run cards"
"""


def way_in(notebook: Path) -> str:
    """Return the cells of a notebook up to the check of its parameters, and every import of the later ones."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    check = next(place for place, source in enumerate(code) if "check_parameters(" in source and "import" not in source)
    later = [node for source in code[check + 1 :] for node in ast.walk(ast.parse(source))]
    imports = [ast.unparse(node) for node in later if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join([*code[: check + 1], *imports])


def run(python: Path, script: str) -> tuple[str, str]:
    """Run a script in an empty folder; return what it prints and, where it fails, its last line of error."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    problem = lines[-1]
    if "CalledProcessError" in problem:  # raised by the install cell, below what pip says
        problem = next((line for line in lines if line.startswith("ERROR: ")), problem)
    return done.stdout, problem if done.returncode else ""


def versions(python: Path) -> dict[str, str]:
    """Return what is installed beside the package itself."""
    found = json.loads(run(python, VERSIONS)[0])
    return {name: version for name, version in found.items() if name != STATED["project"]["name"]}


def replaced(before: dict[str, str], after: dict[str, str]) -> str:
    """Return in words which packages are no longer what they were."""
    changed = (name for name in before if after.get(name) != before[name])
    return ", ".join(f"{name} {before[name]} was replaced by {after.get(name, 'nothing')}" for name in changed)


def check(python: Path, notebooks: list[Path], scripts: list[str]) -> int:
    """Run each chapter's script; print a line for each, and return how many failed."""
    failed, first = 0, versions(python)
    print(", ".join(f"{name} {first.get(name, 'missing')}" for name in ("torch", "torchvision", "numpy")), flush=True)
    before = first
    for name, script in zip([*(path.stem for path in notebooks), "run cards"], [*scripts, CARDS], strict=True):
        problem = run(python, script)[1]
        after = versions(python)
        problem = replaced(before, after) or problem
        before = after
        print(f"{name}: {problem or 'ok'}", flush=True)
        failed += bool(problem)
    print(f"{len(before) - len(first)} packages came beside vireid-lite; {failed} failed")
    return failed


def oldest_torch() -> str:
    """Return the oldest version of torch in the range that `pyproject.toml` states."""
    stated = next(one for one in STATED["project"]["dependencies"] if re.match(r"torch\W", one))
    return re.search(r">=([\d.]+)", stated)[1]


def build_wheel(python: Path, folder: Path, *options: str) -> Path:
    """Build the package's wheel from a copy of what it is made of, so that the checkout stays as it is."""
    source = folder / "source"
    names = [STATED["project"]["readme"], *STATED["project"]["license-files"], "pyproject.toml", "vireid_lite"]
    for name in [*names, *STATED["tool"]["setuptools"]["package-dir"].values()]:
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    pip = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", folder / "wheel", source]
    subprocess.run(pip, check=True)
    return next((folder / "wheel").glob("*.whl"))


def clean_environment(folder: Path, torch: str) -> Path:
    """Make an environment of what Colab has and a notebook needs, with one version of torch; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    # torchvision names the one torch it is made for, so pip finds the one that fits.
    packages = [f"torch=={torch}", "torchvision", "ipykernel"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--installed", action="store_true")
    way.add_argument("--clean", metavar="TORCH", nargs="?", const=oldest_torch())
    parser.add_argument("notebooks", type=Path, nargs="*")
    options = parser.parse_args(arguments)
    notebooks = options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    scripts = [way_in(notebook) for notebook in notebooks]
    if options.installed:
        return bool(check(Path(sys.executable), notebooks, scripts))
    scripts = [COLAB + script for script in scripts]
    if not options.clean:
        return bool(check(Path(sys.executable), notebooks, scripts))
    with tempfile.TemporaryDirectory() as name:
        python = clean_environment(Path(name), options.clean)
        wheel = build_wheel(python, Path(name)).as_uri()
        return bool(check(python, notebooks, [script.replace(ADDRESS, wheel) for script in scripts]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
