"""What a result came from: code hash, versions, device; and files written whole or not at all."""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from vireid_lite.errors import InputError


def results_folder() -> Path:
    """Return the folder of the book's run cards and measured costs: the one installed with the package, if it is, else
    `book/results` of the checkout it runs from. The campaigns' files lie beside it, in `campaigns`.
    """
    package = Path(__file__).parent
    installed = package / "results"
    return installed if installed.is_dir() else package.parent / "book" / "results"


PACKAGE = Path(__file__).parent

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@cache
def code_hash(*modules: str) -> str:
    """Return 12 hex digits that change with the meaning of the named modules, not with their docstrings or comments.

    modules: paths relative to the package without suffix, such as "data/synthetic"; their order does not matter.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path}:{_meaning(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


@cache
def _meaning(source: str) -> str:
    """Return a module's code without docstrings, comments and layout."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.unparse(_FStrings().visit(tree))


class _FStrings(ast.NodeTransformer):
    """Replaces f-strings by names that spell them as `ast.unparse` of Python 3.11 does.

    Later versions choose other quotation marks, and a card made under one would be stale under another.
    """

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Name:
        marks = ["'", '"', '"""', "'''"]
        parts = [self._spelled(part) for part in node.values]
        for text in parts:
            marks = sorted((mark for mark in marks if mark not in text), key=lambda mark: mark[0] == text[-1])
        return ast.Name(f"f{marks[0]}{''.join(parts)}{marks[0]}")

    def _spelled(self, part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            text = part.value.replace("{", "{{").replace("}", "}}")
            return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
        inner = ast.unparse(self.visit(part.value))
        if isinstance(part.value, ast.IfExp | ast.Lambda | ast.NamedExpr):
            inner = f"({inner})"
        space = " " if inner.startswith("{") else ""
        conversion = f"!{chr(part.conversion)}" if part.conversion != -1 else ""
        form = ":" + "".join(map(self._spelled, part.format_spec.values)) if part.format_spec else ""
        return f"{{{space}{inner}{conversion}{form}}}"


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
    """Hold a folder, made if need be, against other processes and threads; the lock goes with the process, however that
    ends. Its file, `.lock`, stays.

    Raises InputError where another process holds it and `wait` is false, or where it cannot be made.
    """
    lock = FileLock(folder / ".lock")
    with clear_no_space(folder.name, folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            raise InputError(f"{folder}: another run is writing there; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """Return the folder for everything that can be made again: VIREID_CACHE if set; else `_build/cache` of the checkout
    this package runs from, which the book uses too; else, where it is installed, ~/.cache/vireid_lite.
    """
    if given := os.environ.get("VIREID_CACHE"):
        return Path(given)
    checkout = PACKAGE.parent
    return checkout / "_build" / "cache" if (checkout / "_toc.yml").exists() else Path.home() / ".cache" / "vireid_lite"
