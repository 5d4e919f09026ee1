"""Each chapter's way in, as on Colab: the install cell, the parameters and their check, then all it imports.

    python .ci/colab.py notebooks/*.ipynb                # in Colab's image: installs what the chapters install
    python .ci/colab.py --installed notebooks/*.ipynb    # where the package is installed already

Every chapter gets a Python of its own, in an empty folder, so that nothing but what is installed can be found. The
version of torch must be the same after as before. Needs the standard library alone.
"""

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

COLAB = 'import sys, types\nsys.modules["google.colab"] = types.ModuleType("google.colab")\n'
TORCH = "import importlib.metadata as m; print(m.version('torch'))"


def way_in(notebook: Path) -> str:
    """Return the cells of a notebook up to the check of its parameters, and every import of the later ones."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    check = next(place for place, source in enumerate(code) if "check_parameters(" in source and "import" not in source)
    later = [node for source in code[check + 1 :] for node in ast.walk(ast.parse(source))]
    imports = [ast.unparse(node) for node in later if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join([*code[: check + 1], *imports])


def torch_version() -> str:
    return subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: list[str]) -> int:
    installed = "--installed" in arguments
    failed, before = [], torch_version()
    for name in (name for name in arguments if name != "--installed"):
        script = ("" if installed else COLAB) + way_in(Path(name))
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
        after = torch_version()
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""
        if after != before:
            problem = f"torch {before} was replaced by {after}"
        print(f"{Path(name).stem}: {problem or 'ok'}", flush=True)
        failed += [name] * bool(problem)
    print(f"python {sys.version.split()[0]}, torch {before}: {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
