"""From source to page: pair, execute, stage, render.

Sources are `notebooks/NN_name.py` (jupytext percent) with their pairs `NN_name.ipynb`, `book/`, `_config.yml` and
`_toc.yml`. A build writes under its output folder alone, files whole or not at all, so it may be killed at any time.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _make import execute, pages, render
from _make.claims import page
from _make.notebooks import COSTS, check_pairs, find_chapters, repository_root, repository_url, sync_pair, update
from vireid_lite.errors import BuildError

DERIVED = ("README.md", "CITATION.cff", "CONTRIBUTING.md", "book/*.md", "notebooks/*.py")


def sync(root: Path | None = None) -> list[Path]:
    """Write what is derived from a source, and return the files that changed: notebooks, claims page, public address.

    The address that CITATION.cff holds is taken as the former one and replaced in the files that quote it. A chapter
    that was edited as a notebook is taken over into its source, and outputs or edits that are overwritten are copied.
    """
    root = root or repository_root()
    derived: dict[Path, bytes] = {}
    url, citation = repository_url(root), root / "CITATION.cff"
    quoted = citation.read_text(encoding="utf-8") if citation.exists() else ""
    former = re.search(r"^repository-code:\s*\"?([^\s\"]+?)/?\"?\s*$", quoted, re.MULTILINE)
    if former and former[1] != url:
        names = [address.removeprefix("https://github.com/") for address in (former[1], url)]
        for path in (path for pattern in DERIVED for path in sorted(root.glob(pattern))):
            text = path.read_text(encoding="utf-8").replace(former[1], url)
            derived[path] = text.replace(f"/github/{names[0]}/", f"/github/{names[1]}/").encode()
    changed = [path for path, data in derived.items() if update(path, data)]
    changed += [path for source in find_chapters(root) for path in sync_pair(source)]
    if (root / "book" / "claims.toml").exists() and update(root / "book" / "claims.md", page(root).encode()):
        changed.append(root / "book" / "claims.md")
    return changed


def build_book(
    tier: str = "lite",
    chapters: Sequence[int] | None = None,
    parameters: Mapping[str, Any] | None = None,
    out: Path | str = "_build",
    execute_only: bool = False,
    force: bool = False,
    root: Path | None = None,
    progress: bool = True,
    measure: bool = False,
) -> Path:
    """Execute the chapters that changed, then render the book unless one failed; return the page to open.

    Args:
        chapters: numbers to execute, all by default; the others are shown as they last ran.
        parameters: set in every chapter executed, on top of the tier.
        out: folder for everything made, relative to `root`, which holds the book's sources.
        execute_only: render nothing, and return the executed folder.
        force: execute again what is cached, under `execute.chapter_key`.
        measure: instead, run each chapter with empty caches, as if opened alone, and note its cost in the sources'
            `book/results/costs.json`, which is returned. A victim is trained once.

    Raises:
        InputError: before anything runs: a stale pair, an unknown chapter or parameter.
        BuildError: after: chapters that failed, once the others have run, or pages that do not render.
    """
    root = (root or repository_root()).resolve()
    out = root / out
    check_pairs(root)
    asked = {**(parameters or {}), "TIER": tier}
    jobs = [(source, execute.injected(source, asked, out)) for source in execute.choose(find_chapters(root), chapters)]
    folder, failed = out / ("measured" if measure else "executed"), []
    with execute.environment(out, folder / "cache" if measure else None):
        folder.mkdir(exist_ok=True)
        for number, (source, given) in enumerate(jobs):
            if measure:
                for path in (folder / "cache").glob("*"):
                    if not number or path.name != "victims":
                        shutil.rmtree(path)
            try:
                execute.execute(source, given, folder, force or measure, progress)
            except Exception as error:  # a full disk, a missing kernel: the next chapter may run nevertheless
                failed.append(source.stem)
                said = (str(error).splitlines() or [""])[0]
                print(said if isinstance(error, BuildError) else f"{source.stem}: {type(error).__name__}: {said}")
        costs = execute.write_costs(folder, root / COSTS if measure else folder / "costs.json")
        if failed:
            kept = "" if measure or execute_only else "; nothing was rendered, the former pages stay"
            raise BuildError(f"{len(failed)} of {len(jobs)} chapters failed: {', '.join(failed)}{kept}")
        if measure or execute_only:
            return costs if measure else folder
        files, complete = render.gather(root, folder)
        return render.render(files | pages.fill(files, root, folder), out, strict=complete)
