"""What a result came from: code, versions, device; and files written whole or not at all."""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vireid_lite.errors import InputError


def results_folder() -> Path:
    """Return the folder of the book's run cards and measured costs: the one installed with the package, if it is, else
    `book/results` of the checkout it runs from. The campaigns' files lie beside it, in `campaigns`.
    """
    package = Path(__file__).parent
    installed = package / "results"
    return installed if installed.is_dir() else package.parent / "book" / "results"


PACKAGE = Path(__file__).parent

# What a victim and an attack are made by: folders and files, as `source_hash` takes them.
VICTIM_CODE = ("data", "models", "losses", "training", "victims")

ATTACK_CODE = (*VICTIM_CODE, "attacks", "frequency")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@cache
def source_hash(*places: str) -> str:
    """Return 12 hex digits of the code at some places of the package, or of all of it, without docstrings and comments.

    places: folders, of which every file counts, or files without their suffix. The keys of what is cached on this
    machine hold it; nothing committed does, as another version of Python may give another hash of the same code.
    """
    files: set[Path] = set()
    for place in (PACKAGE / name for name in places or ("",)):
        files |= set(place.rglob("*.py")) if place.is_dir() else {place.with_suffix(".py")}
    digest = hashlib.sha256()
    for file in sorted(files):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}:{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


def stable_hash(value: object) -> str:
    """Return 16 hex digits of a JSON-serialisable value, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def clear_no_space(what: str, folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be made or written, into one line that names what was for where."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise InputError(f"{what}: no space left in {folder}; free some, or choose another folder") from None
        raise InputError(f"{what}: {folder} cannot be written ({error.strerror}); choose another folder") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a kill at any moment leaves the old file or the new one.

    What a kill leaves beside it, `.NAME.part`, is overwritten by the next write; one writer at a time (`exclusive`).
    Raises InputError where the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with clear_no_space(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def exclusive(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes; the lock goes with the process, however that ends.

    Raises InputError where another process holds it and `wait` is false, or where it cannot be made.
    """
    with clear_no_space(folder.name, folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(f"{folder}: another run is writing there; wait for it, or choose another folder") from None
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Return the folder for everything that can be made again: VIREID_CACHE if set; else `_build/cache` of the checkout
    this package runs from, which the book uses too; else, where it is installed, ~/.cache/vireid_lite.
    """
    if given := os.environ.get("VIREID_CACHE"):
        return Path(given)
    checkout = PACKAGE.parent
    return checkout / "_build" / "cache" if (checkout / "_toc.yml").exists() else Path.home() / ".cache" / "vireid_lite"
