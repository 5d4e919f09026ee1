"""Changes of a file of any form, one thing at a time, drawn by Hypothesis: for `test_mutations.py`."""

import base64
import copy
import io
import json
import lzma
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st
from rewritten import REWRITTEN
from scipy.io import loadmat, savemat

from vireid_lite.files import UNSEALED

DEEP, TWICE = "<deep>", "<twice>"  # written as text: 100,000 lists in one another, a key that stands twice


class Kind(NamedTuple):
    """One kind of file: made in a folder, read from its path; what may differ, and after which changes."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    form: str = "json"
    free: str = ""  #: names under which nothing is computed with what stands there
    other: str = ""  #: changes that make another valid file, which no reader can tell from a change of mind


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value).replace("NaN", "nan") if isinstance(value, str | bool | int) else repr(value)


def unpacked(data: bytes) -> dict:
    card = json.loads(data)
    return card | {"packed": json.loads(lzma.decompress(base64.b85decode(card["packed"])))}


def repacked(tree: object) -> str:
    if isinstance(tree, dict) and "packed" in tree:
        rest = texts(json.dumps(tree["packed"])).encode()
        return json.dumps({**tree, "packed": base64.b85encode(lzma.compress(rest, lzma.FORMAT_ALONE)).decode()})
    return json.dumps(tree)


def read_tensors(data: bytes) -> dict:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = {name: json.loads(text) if text[0] == "{" else text for name, text in header["__metadata__"].items()}
    return {"tensors": safetensors.torch.load(data), "facts": facts}


def write_tensors(tree: Any) -> bytes:
    facts = {
        name: value if isinstance(value, str) else texts(json.dumps(value)) for name, value in tree["facts"].items()
    }
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tree["tensors"].items()}, facts)


def pickled(tree: object) -> bytes:
    torch.save(tree, buffer := io.BytesIO())
    return buffer.getvalue()


def read_cells(data: bytes) -> dict:
    """Return SYSU's permutations as lists: camera, identity, trial, place."""
    cells = loadmat(io.BytesIO(data))["rand_perm_cam"].ravel()
    return {"rand_perm_cam": [[person.tolist() for person in camera.ravel()] for camera in cells]}


def write_cells(tree: Any, **how: object) -> bytes:
    def column(items: list, kind: Callable) -> np.ndarray:
        column = np.empty((len(items), 1), object)
        for place, item in enumerate(items):
            column[place, 0] = kind(item)
        return column

    table = {name: column(item, lambda camera: column(camera, np.array)) for name, item in tree.items()}
    savemat(buffer := io.BytesIO(), table, **how)
    return buffer.getvalue()


def texts(text: str) -> str:
    """Return a text with the marks written out that no tree can hold."""
    return text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).replace(TWICE, "")


# How a form of file is read to a tree and written from one.
FORMS: dict[str, tuple[Callable, Callable]] = {
    "json": (json.loads, lambda tree: texts(json.dumps(tree)).encode()),
    "card": (unpacked, lambda tree: texts(repacked(tree)).encode()),
    "toml": (
        lambda data: tomllib.loads(data.decode()),
        lambda tree: texts("\n".join(f"{json.dumps(name)} = {toml(item)}" for name, item in tree.items())).encode(),
    ),
    "lines": (lambda data: data.decode().split("\n"), lambda tree: "\n".join(map(str, tree)).encode()),
    "tensors": (read_tensors, write_tensors),
    "pickle": (lambda data: torch.load(io.BytesIO(data)), pickled),
    "mat": (read_cells, write_cells),
    "raw": (
        list,
        lambda tree: b"".join(bytes([item % 256]) if isinstance(item, int) else str(item).encode() for item in tree),
    ),
    "sealed": (lambda data: torch.load(io.BytesIO(data[:-16])), lambda tree: pickled(tree) + UNSEALED),
}


FORMS |= {"csv": FORMS["lines"], "hashed": FORMS["json"], "hashed tensors": FORMS["tensors"]}


def places(tree: object, free: str, at: tuple = ()) -> list[tuple]:
    """Return where the values of a tree stand, but for those under a free name."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    deeper = [place for key, value in inside if key not in free.split() for place in places(value, free, (*at, key))]
    return ([at] if at else []) + deeper


def another(value: object, change: str) -> object:
    """Return what a change puts where a value stood."""
    if isinstance(value, torch.Tensor):
        odd = {"nan": math.nan, "out-of-range": math.inf, "huge": -math.inf}
        if change in odd:
            return value.to(torch.float32).flatten().index_fill(0, torch.tensor([0]), odd[change]).reshape(value.shape)
        return {"wrong-type": value.to(torch.int32 if value.is_floating_point() else torch.float32)}.get(
            change, value[None] if change == "nested" else value.flatten()[:0]
        )
    if change == "wrong-type":
        kinds = {bool: "false", int: "7", float: [0.5], str: 7, list: {"0": 1}, dict: [1]}
        return kinds.get(type(value), "text")
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    below = -1 - abs(value) if numeric else f"{value}?" if isinstance(value, str) else 2
    empty = type(value)() if isinstance(value, str | list | dict) else ""
    return {"null": None, "nested": [value], "deep": DEEP, "out-of-range": below, "huge": 10**400, "nan": math.nan,
            "empty value": empty}[change]  # fmt: skip


VALUES = ("null", "wrong-type", "nested", "deep", "out-of-range", "huge", "nan", "empty value")
TREES = (*VALUES, "drop", "extra", "permuted", "twice")
BYTES = ("truncated", "empty", "flipped", "encoding", "html", "zeros")


def mutated(kind: Kind, data: bytes, change: str, draw: Callable) -> bytes | None:
    """Return a file with one thing of it changed, None where that cannot be written."""
    if change in BYTES:
        place = draw(st.integers(0, len(data) - 1))
        flipped = data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
        page = b"<!DOCTYPE html><title>404</title>"
        encoded = data.decode("latin-1").encode("utf-16")
        return {"truncated": data[:place], "empty": b"", "flipped": flipped, "encoding": encoded, "html": page,
                "zeros": data[:place] + bytes(len(data) - place)}[change]  # fmt: skip
    if change in REWRITTEN[kind.form]:
        return REWRITTEN[kind.form][change](data, FORMS.get(kind.form), draw)
    read, write = FORMS[kind.form]
    tree = read(data)
    *above, key = draw(st.sampled_from(places(tree, kind.free)))
    parent = tree
    for step in above:
        parent = parent[step]
    if change in VALUES:
        parent[key] = another(parent[key], change)
    elif change == "drop":
        del parent[key]
    elif change == "permuted" and isinstance(parent, dict):
        kept = list(parent.items())[::-1]
        parent.clear()
        parent.update(kept)
    elif change == "permuted":
        parent.reverse()
    elif isinstance(parent, list):
        parent.insert(0, copy.deepcopy(parent[-1]) if change == "twice" else "surplus")
    else:  # written out, a key with the mark is the key itself
        parent[f"{key}{TWICE}" if change == "twice" else "surplus"] = copy.deepcopy(parent[key])
    try:
        return write(tree)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):  # the form has no such value
        return None
