"""A chapter's parameters: checked before anything runs and before torch loads, and what a run of it costs.

The cell tagged `parameters` says what each one is, so that `papermill --help-notebook` shows it: `EPS: "fraction"`. The
types are int, float, str, bool, whole (at least 0), fraction (in [0, 1], also "8/255"), a word out of a few such as
one_of[paper, released], and Optional[...] of another, for which None stands, or "none", or nothing.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vireid_lite.chapters.costs import Costs
from vireid_lite.errors import DATASETS, LARGEST_SEED, TIERS, InputError, fraction, number

if TYPE_CHECKING:
    import torch

STANDARD = {"TIER": f"one_of[{', '.join(TIERS)}]", "DATASET": f"Optional[one_of[{', '.join(DATASETS)}]]"}
STANDARD |= {"DATA_ROOT": "Optional[str]", "SEED": "whole", "DEVICE": "str", "OUT_DIR": "str"}
PLAIN = (str, int, float, list, tuple, dict, type(None))  # what papermill can inject


def read(kind: str, value: object) -> Any:
    """Read a value as what a type says, or raise ValueError that says what was expected."""
    outer, _, inner = kind.removesuffix("]").partition("[")
    if outer == "Optional":
        return None if value is None or str(value).lower() in ("", "none") else read(inner, value)
    if outer == "fraction":
        return fraction(value)
    if outer == "float":
        return number(value, float, "a number")
    found, fits, expected = value, isinstance(value, str) and value, "some text"
    if outer in ("int", "whole"):
        found = number(value, int, "a whole number")
        least, expected = (-LARGEST_SEED, 0)[outer == "whole"], "a whole number of at least 0"
        expected = expected if found < least else f"a whole number of at most {LARGEST_SEED}"
        fits = least <= found <= LARGEST_SEED
    elif outer == "bool":
        word, expected = str(value).lower(), "True or False"
        found, fits = word == "true", word in ("true", "false")
    elif outer == "one_of":
        fits, expected = value in inner.split(", "), f"one of {inner}"
    elif outer != "str":
        fits, expected = False, f"a known type in the cell tagged parameters, not {kind}"
    if not fits:
        raise ValueError(expected)
    return found


def check_values(values: Mapping[str, object], own: Mapping[str, str]) -> dict[str, Any]:
    """Return every parameter of a chapter read as what it should be; nothing is looked up on this machine.

    Args:
        values: by name, the standard six among them; InputError where one is unknown, missing or of a wrong type.
        own: types of the chapter's own few.
    """
    kinds, found = {**own, **STANDARD}, {}
    if unknown := [name for name in values if name not in kinds]:
        raise InputError(f"{unknown[0]}: no such parameter; this chapter has {', '.join(sorted(kinds))}")
    for name, kind in kinds.items():
        if name not in values:
            raise InputError(f"{name}: missing from the cell tagged parameters")
        try:
            found[name] = read(kind, values[name])
        except ValueError as error:
            raise InputError(f"{name}: expected {error}, got {values[name]!r}") from None
    found["DATASET"] = found["DATASET"] or TIERS[found["TIER"]]
    name = found["DATASET"]
    if name != "synthetic" and found["DATA_ROOT"] is None:
        raise InputError(f"DATA_ROOT: {name} (tier {found['TIER']}) is read from your own copy; give its folder")
    return found


def check_machine(values: Mapping[str, Any]) -> torch.device:
    """Return the device that values from `check_values` ask for.

    InputError: it is not there, a tier above lite has no GPU and DEVICE is not "cpu", or DATA_ROOT has no such data.
    """
    from vireid_lite.data import load_dataset
    from vireid_lite.machine import pick_device

    device = pick_device(values["DEVICE"])
    if values["TIER"] != "lite" and device.type == "cpu" and values["DEVICE"] != "cpu":
        way_out = "use lite, or set DEVICE to cpu if it may take very long"
        raise InputError(f"TIER: {values['TIER']} is sized for a GPU, and there is none here; {way_out}")
    if values["DATASET"] != "synthetic":
        try:
            load_dataset(values["DATASET"], values["DATA_ROOT"])
        except InputError as error:
            raise InputError(str(error).replace("--root", "DATA_ROOT")) from None  # the command's option
    return device


def check_parameters(names: dict[str, Any], costs: Costs | None = None) -> SimpleNamespace:
    """Check a notebook's parameters, print the device and larger tiers' costs, and return the values in lower case.

    Args:
        names: the notebook's `globals()`, with the cells IPython ran. papermill adds names it does not know, so every
            plain value that is no parameter is refused; in a second run of the cell, every upper-case one.

    Returns:
        tier, dataset, data_root (Path or None), seed, device (torch.device), out_dir (Path) and the chapter's own.
    """
    again = names.get("_parameters_checked")
    typed = {name: getattr(kind, "__name__", kind) for name, kind in names.get("__annotations__", {}).items()}
    # A notebook's names have no annotations under Python 3.14, so its cells are read as well.
    typed |= {name: kind for cell in names.get("In", ()) for name, kind, _ in _assigned(cell) if kind}
    kinds = (again or typed) | STANDARD
    odd = {name for name, value in names.items() if isinstance(value, PLAIN) and (name.isupper() or not again)}
    odd -= {name for name in names if name.startswith("_") or name in ("In", "Out")}
    try:
        values = check_values({name: names[name] for name in names if name in odd or name in kinds}, kinds)
        device = check_machine(values)
    except InputError as error:
        # A kernel's output is captured; its terminal is where papermill will print a traceback in a moment.
        if terminal := getattr(sys.stderr, "_original_stdstream_copy", None):
            os.write(terminal, f"\n{error}\n".encode())
        raise
    names["_parameters_checked"] = kinds
    _announce(values["TIER"], device, costs)
    values |= {name: values[name] and Path(values[name]) for name in ("DATA_ROOT", "OUT_DIR")}
    return SimpleNamespace(**{name.lower(): value for name, value in values.items()} | {"device": device})


def _announce(tier: str, device: torch.device, costs: Costs | None) -> None:
    import torch

    from vireid_lite.machine import device_name

    here, gpu, larger = device_name(device), device.type == "cuda", list(TIERS)[list(TIERS).index(tier) + 1 :]
    # A GPU invites more than lite; nothing is switched for whoever has one.
    stays = f" It stays {tier} until you change TIER." if larger and gpu else ""
    print(f"Tier {tier} on {here}; torch {torch.__version__}.{stays}")
    if costs and larger:
        print("Larger: " + "; ".join(f"{name} {costs.price(name, here)}" for name in larger) + ".")
    # Bf16 came with compute capability 8.0. torch counts slow emulation as support, so the capability is asked.
    if gpu and torch.cuda.get_device_capability(device) < (8, 0):
        print("No native bf16 here, and many times slower than an H200, which tiers above lite are sized for.")
    elif larger and not gpu:
        print("Larger tiers are sized for a GPU; this run uses the CPU.")


def read_parameters(notebook: Path) -> tuple[dict[str, object], dict[str, str]]:
    """Return a notebook's parameters, name to default, and the types of the chapter's own few; nothing is run.

    InputError unless one cell is tagged `parameters`, with plain values, and one calls the check above.
    """
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{notebook.name}: has {len(tagged)} cells tagged parameters; it needs exactly one")
    if not any("check_parameters(globals()" in "".join(cell["source"]) for cell in cells):
        raise InputError(f"{notebook.name}: no cell calls check_parameters(globals(), ...)")
    defaults, own = {}, {}
    for name, kind, value in _assigned(tagged[0]):
        try:
            defaults[name] = ast.literal_eval(value)
        except ValueError:
            raise InputError(f"{notebook.name}: {name} = {value} is no plain value; write it out") from None
        if name not in STANDARD:
            own[name] = kind
    return defaults, own


def _assigned(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and value, as written, of each assignment of a cell; of none where its syntax is wrong."""
    with contextlib.suppress(SyntaxError):
        for line in ast.parse(source).body:
            if isinstance(line, ast.AnnAssign | ast.Assign):
                name = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
                kind = ast.unparse(line.annotation).strip("'") if isinstance(line, ast.AnnAssign) else ""
                yield ast.unparse(name), kind, ast.unparse(line.value or [])
