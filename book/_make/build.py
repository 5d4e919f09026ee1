"""From source to page: pair, execute, stage, render. Files are written whole or not at all: a build may be killed."""

import re
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_event_loop
from tqdm import tqdm

from _make import execute, pages, render
from _make.claims import page
from _make.drawings import DRAWINGS, FOLDER, svg
from _make.notebooks import COSTS, check_pairs, find_chapters, repository_root, repository_url, sync_pair, update
from vireid_lite.errors import BuildError, InputError

AT_ONCE = 2  #: chapters; much of each is of one core
DERIVED = ("README.md", "CITATION.cff", "CONTRIBUTING.md", "book/*.md", "notebooks/*.py")


def sync(root: Path | None = None) -> list[Path]:
    """Write what is derived from a source; return the files that changed: notebooks, claims page, drawings, address.

    The address that CITATION.cff holds is taken as the former one and replaced in the files that quote it.
    """
    root = root or repository_root()
    changed, url, citation = [], repository_url(root), root / "CITATION.cff"
    quoted = citation.read_text(encoding="utf-8", errors="replace") if citation.exists() else ""
    former = re.search(r"^repository-code:\s*\"?([^\s\"]+?)/?\"?\s*$", quoted, re.MULTILINE)
    if former and former[1] != url:
        names = [address.removeprefix("https://github.com/") for address in (former[1], url)]
        for path in (path for pattern in DERIVED for path in sorted(root.glob(pattern))):
            text = path.read_text(encoding="utf-8").replace(former[1], url)
            changed += [path] * update(path, text.replace(f"/github/{names[0]}/", f"/github/{names[1]}/").encode())
    changed += [path for source in find_chapters(root) for path in sync_pair(source)]
    if (root / "book" / "claims.toml").exists() and update(root / "book" / "claims.md", page(root).encode()):
        changed.append(root / "book" / "claims.md")
    if (folder := root / FOLDER).is_dir():
        drawings = {folder / f"{name}.svg": svg(name).encode() for name in DRAWINGS}
        changed += [path for path, data in drawings.items() if update(path, data)]
    return changed


def build_book(
    tier: str = "lite",
    chapters: Sequence[int] | None = None,
    parameters: Mapping[str, Any] | None = None,
    out: Path | str = "_build",
    execute_only: bool = False,
    force: bool = False,
    root: Path | None = None,
    measure: bool = False,
) -> Path:
    """Execute the chapters that changed, some at once, then render the book unless one failed; return the page to open.

    Args:
        chapters: numbers to execute, all by default; the others are shown as they last ran.
        out: folder for everything made, relative to `root`, which holds the book's sources.
        execute_only: render nothing, and return the executed folder.
        measure: instead, run each chapter with empty caches but for victims, and return the noted `COSTS`.

    Raises InputError before anything runs (a stale pair, an unknown chapter or parameter), BuildError after (chapters
    that failed, once the others have run, or pages that do not render).
    """
    root = (root or repository_root()).resolve()
    out = root / out
    check_pairs(root)
    known = {int(source.stem[:2]): source for source in find_chapters(root)}
    if not known:
        raise InputError("notebooks/ holds no chapter NN_name.py")
    if unknown := [number for number in chapters or () if number not in known]:
        raise InputError(f"--chapters {unknown[0]}: there is no such chapter; there are {', '.join(map(str, known))}")
    asked = {**(parameters or {}), "TIER": tier}
    jobs = [(known[one], execute.injected(known[one], asked, out)) for one in sorted(set(chapters or known))]
    folder, failed = out / ("measured" if measure else "executed"), {}
    at_once = 1 if measure else AT_ONCE
    with execute.environment(out, folder / "cache" if measure else None, at_once):
        folder.mkdir(exist_ok=True)
        # At once too, so that hours of work do not end at a damaged table or a folder that cannot be written.
        costs = execute.write_costs(folder, root / COSTS if measure else folder / "costs.json")
        waiting = iter(enumerate(jobs))

        def work() -> None:
            loop = ensure_event_loop()  # which Jupyter makes for each thread, and leaves open
            for number, (source, given) in waiting:
                if measure:
                    for path in (folder / "cache").glob("*"):
                        if not number or path.name != "victims":
                            shutil.rmtree(path)
                try:
                    execute.execute(source, given, folder, force or measure)
                except Exception as error:  # a full disk, a missing kernel: the next chapter may run nevertheless
                    said = (str(error).splitlines() or [""])[0]
                    said = said if isinstance(error, BuildError) else f"{source.stem}: {type(error).__name__}: {said}"
                    tqdm.write(said)
                    failed[source.stem] = "\n".join([said, *getattr(error, "__notes__", ())])
            loop.close()

        # Threads that end with the program: who interrupts a build does not wait for the chapters that run.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        costs = execute.write_costs(folder, costs)
        if failed:
            failed = dict(sorted(failed.items()))
            # Again, whole, where a log of many chapters ends.
            print("", *failed.values(), sep="\n", file=sys.stderr)
            kept = "" if measure or execute_only else "; nothing was rendered, the former pages stay"
            raise BuildError(f"{len(failed)} of {len(jobs)} chapters failed: {', '.join(failed)}{kept}")
        if measure or execute_only:
            return costs if measure else folder
        files, complete = render.gather(root, folder)
        return render.render(files | pages.fill(files, root, folder), out, strict=complete)
