"""The two commands of book production; `vireid_lite.cli` declares their options and says what they do."""

import os
from pathlib import Path
from typing import Any

from _make.build import build_book, sync
from _make.editions import write_edition
from _make.notebooks import repository_root
from _make.paper import find_chromium, print_book
from _make.publish import check_build
from vireid_lite.errors import InputError
from vireid_lite.files import exclusive


def book(
    parameters: dict[str, str], out_dir: Path, edition: str | None, pdf: bool, only_sync: bool, **options: Any
) -> None:
    """Write what derives from the sources, or build the book, an edition of it, or its PDF; options: `build_book`'s."""
    if only_sync:
        print("\n".join(map(str, sync())) or "everything is in step")
        return
    if "TIER" in parameters:
        raise InputError("-p TIER: give the tier as --tier")
    if pdf:
        if unwanted := [name for name in ("measure", "execute_only") if options[name]]:
            raise InputError(f"--pdf prints rendered pages; leave out --{unwanted[0].replace('_', '-')}")
        find_chromium()  # before chapters run for minutes
    root = repository_root()
    out = root / out_dir
    with exclusive(out, wait=False):
        if edition is not None:
            os.environ.setdefault("VIREID_CACHE", str(out.resolve() / "cache"))
            root = write_edition(root, edition, out / edition)
            out = root / "_build"
        built = build_book(parameters=parameters, out=out, root=root, **options)
        if pdf:
            print_book(root, out)
    print(f"done: {built}")


def publish_check(out_dir: Path) -> None:
    """Refuse a built book with a page from licensed or private images."""
    print(f"{out_dir / 'html'} may be published, executed on rendered people only: {', '.join(check_build(out_dir))}")
