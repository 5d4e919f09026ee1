"""What a result came from: the code it was made by; files written whole or not at all, and seals that tell a change."""

import ast
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from vireid_lite.errors import InputError

PACKAGE = Path(__file__).parent
VICTIM_CODE = ("data", "models", "losses", "training", "victims")  #: what a victim is made by, for `source_hash`
ATTACK_CODE = (*VICTIM_CODE, "attacks", "frequency")
UNSEALED = b"<seal goes here>"  #: what stands in a file for its seal, which is as long


def results_folder() -> Path:
    """Return the folder of run cards and measured costs: the package's own, if installed with it, else the book's."""
    installed = PACKAGE / "results"
    return installed if installed.is_dir() else PACKAGE.parent / "book" / "results"


def cache_folder() -> Path:
    """Return the folder of what can be made again: $VIREID_CACHE, a checkout's `_build/cache`, ~/.cache/vireid_lite."""
    if given := os.environ.get("VIREID_CACHE"):
        return Path(given)
    if ((checkout := PACKAGE.parent) / "_toc.yml").exists():
        return checkout / "_build" / "cache"
    try:
        return Path.home() / ".cache" / "vireid_lite"
    except RuntimeError:
        raise InputError("no home folder to keep crops and victims in; name a folder in VIREID_CACHE") from None


@cache
def source_hash(*places: str) -> str:
    """Return 12 hex digits of the code at some places of the package, or of all of it, without docstrings and comments.

    For keys of what is cached on this machine only, as another Python may give another hash of the same code. A place
    is a folder, of which every file counts, or a file without its suffix.
    """
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        if not places or path.parts[0].removesuffix(".py") in places:
            tree = _Undocumented().visit(ast.parse(file.read_text(encoding="utf-8")))
            digest.update(f"{path.as_posix()}:{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


class _Undocumented(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says. ValueError where it is none, names a key twice, or is nested beyond reason."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested beyond reason") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(table := dict(pairs)) < len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def read_json(path: Path) -> dict[str, Any]:
    """Return the table that a file of JSON holds, empty where it is missing; InputError where it cannot be read."""
    try:
        return {**parse_json(path.read_text(encoding="utf-8"))} if path.is_file() else {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the rights to it") from None
    except (TypeError, ValueError):
        raise damaged(path) from None


def damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged; restore it, or delete it and run again what wrote it")


def readable(folder: Path) -> Path:
    """Return a folder; InputError where it is there and cannot be listed, which `glob` takes for an empty one."""
    with clear_unreadable(folder), suppress(FileNotFoundError):
        os.listdir(folder)
    return folder


@contextmanager
def clear_unreadable(path: Path) -> Iterator[None]:
    """Turn a file or a folder that cannot be read into one line that names it."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path} cannot be read ({error.strerror or error})"
        raise InputError(f"{what}; check the rights to it") from None


def stable_hash(value: object) -> str:
    """Return 16 hex digits of a JSON-serialisable value, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def clear_no_space(what: str, folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be made or written, into one line that names what was for where."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"{what}: no space left in {folder}; free some, or choose another folder") from None
        place = "another folder in VIREID_CACHE" if folder.is_relative_to(cache_folder()) else "another folder"
        raise InputError(f"{what}: {folder} cannot be written ({error.strerror}); choose {place}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, for one writer at a time: a kill leaves the old file or the new."""
    part = path.with_name(f".{path.name}.part")
    with clear_no_space(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def sealed(data: bytes) -> bytes:
    """Return a file's bytes with a digest of them, 16 hex digits, in place of the first `UNSEALED`."""
    return data.replace(UNSEALED, hashlib.sha256(data).hexdigest()[:16].encode(), 1)


def check_seal(data: bytes, seal: object) -> None:
    """Raise ValueError unless a file's bytes are as they were sealed; what older versions wrote has none."""
    unsealed = data.replace(str(seal).encode(), UNSEALED, 1)
    if seal and hashlib.sha256(unsealed).hexdigest()[:16] != seal:
        raise ValueError("it was changed or damaged after it was saved")


def write_tensors(path: Path, tensors: dict[str, Any], name: str, text: str) -> None:
    """Write tensors and a text, named, to one sealed safetensors file, whole or not at all."""
    from safetensors.torch import save  # loads torch

    tensors = {each: tensor.contiguous() for each, tensor in tensors.items()}
    write_atomically(path, sealed(save(tensors, {name: text, "seal": UNSEALED.decode()})))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a safetensors file and its texts by name; ValueError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            texts = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(error) from None
    check_seal(path.read_bytes(), texts.get("seal"))
    return tensors, texts


@contextmanager
def exclusive(folder: Path, wait: bool = True, whole: Path | None = None) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes and threads; the lock ends with the process.

    Where the file `whole` exists, nothing is held: what is whole needs no lock, so it may be read-only.

    Raises:
        InputError: where another process holds it and `wait` is false, or where it cannot be made.
    """
    if whole and os.path.exists(whole):  # False, too, where that cannot be told
        yield
        return
    with clear_no_space(folder.name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # FileLock waits for ever where no file can be made
        try:
            held = FileLock(folder / ".lock").acquire(blocking=wait)
        except Timeout:
            raise InputError(f"{folder}: another run is writing there; wait for it, or choose another folder") from None
    with held:
        yield
