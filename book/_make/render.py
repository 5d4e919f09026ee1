"""Pages rendered by Jupyter Book from a staged copy of the sources; a warning is an error."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from _make.notebooks import find_chapters, paired_notebook, replace_files, repository_url
from vireid_lite.errors import BuildError
from vireid_lite.files import PACKAGE, damaged

STATIC = "book/_static"  #: as `_config.yml` has it
NOT_RENDERED = ("book/results/", "book/_make/")


def gather(root: Path, executed: Path) -> tuple[dict[str, bytes], bool]:
    """Return what is rendered, by name, as the repository lays it out; and whether every chapter has been run."""
    files = {name: (root / name).read_bytes() for name in ("_config.yml", "_toc.yml")}
    url = repository_url(root)
    try:
        config = yaml.safe_load(files["_config.yml"])
        config.setdefault("repository", {})["url"] = url
    except (AttributeError, TypeError, ValueError, yaml.YAMLError):
        raise damaged(root / "_config.yml") from None
    files["_config.yml"] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    for path in (root / "book").rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(NOT_RENDERED) and "__pycache__" not in name:
            files[name] = path.read_bytes()
    runs = {source: executed / f"{source.stem}.ipynb" for source in find_chapters(root)}
    for source, run in runs.items():
        files[f"notebooks/{run.name}"] = run.read_bytes() if run.exists() else paired_notebook(source)
    return files, all(run.exists() for run in runs.values())


def render(files: dict[str, bytes], out: Path, strict: bool) -> Path:
    """Render what `gather` returned, filled, from `out`/stage; put the pages in place at once; return the front page.

    strict: a warning stops the build; left off only while some chapter has never been run. Raises BuildError where a
    page does not render; the former pages stay.
    """
    replace_files(out / "stage", files)  # those that differ, since their times tell Sphinx which pages to read again
    work, html, log = out / "sphinx", out / "html", out / "sphinx.log"
    # Sphinx repeats no warning about a page it has read, so after a failed or killed rendering it must start afresh.
    unfinished = work / "unfinished"
    if unfinished.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    if not strict:
        print("some chapters have not been executed yet: they are shown without results, and warnings stop nothing")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(out / "stage")]
    command += ["--path-output", str(work), *(["-n", "-W", "--keep-going"] if strict else [])]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "NO_COLOR": "1"}
    started = time.perf_counter()
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        lines = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8", errors="replace")).splitlines()
        problems = [line for line in lines if re.search(r"WARNING|ERROR|Error", line)] or lines[-1:]
        problem = problems[0].replace(f"{out / 'stage'}/", "") if problems else f"exit code {done.returncode}"
        raise BuildError(f"rendering: {problem} ({len(problems)} such; see {log})")
    fresh, former = out / "html.new", out / "html.old"
    for folder in (fresh, former):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "_build" / "html", fresh, ignore=shutil.ignore_patterns(".buildinfo"))
    if (static := out / "stage" / STATIC).exists():  # which Sphinx copies only where some page has changed
        shutil.copytree(static, fresh / "_static", dirs_exist_ok=True)
    if html.exists():
        html.rename(former)
    fresh.rename(html)
    shutil.rmtree(former, ignore_errors=True)
    unfinished.unlink()
    print(f"rendered in {time.perf_counter() - started:.0f} s: {html / 'index.html'}")
    return html / "index.html"
