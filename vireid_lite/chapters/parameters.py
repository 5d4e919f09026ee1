"""A chapter's parameters: checked before anything runs, whoever set them, and what a run of it costs.

The cell tagged `parameters` says what each one is, so that `papermill --help-notebook` shows it: `EPS: "fraction"`. The
types are int, float, str, bool, whole (at least 0), fraction (in [0, 1], also "8/255"), a word out of a few such as
one_of[paper, released], and Optional[...] of another, for which None stands, or "none", or nothing.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vireid_lite.chapters.costs import Costs
from vireid_lite.errors import TIERS, InputError, fraction, number

if TYPE_CHECKING:
    import torch

STANDARD = {
    "TIER": f"one_of[{', '.join(TIERS)}]",
    "DATASET": "Optional[one_of[synthetic, sysu, regdb, llcm, paired_folder]]",
    "DATA_ROOT": "Optional[str]",
    "SEED": "whole",
    "DEVICE": "str",
    "OUT_DIR": "str",
}


def read(kind: str, value: object) -> Any:
    """Read a value as what a type says, or raise ValueError that says what was expected."""
    outer, _, inner = kind.removesuffix("]").partition("[")
    if outer == "Optional":
        return None if value is None or str(value).lower() in ("", "none") else read(inner, value)
    if outer == "one_of":
        return _expected(value, value in inner.split(", "), f"one of {inner}")
    if outer == "str":
        return _expected(value, isinstance(value, str) and value, "some text")
    if outer == "bool":
        word = str(value).lower() if isinstance(value, bool | str) else ""
        return _expected(word, word in ("true", "false"), "True or False") == "true"
    if outer in ("int", "whole"):
        found = number(value, int, "a whole number")
        return _expected(found, outer == "int" or found >= 0, "a whole number of at least 0")
    if outer == "float":
        return number(value, float, "a number")
    if outer == "fraction":
        return fraction(value)
    raise ValueError(f"a known type in the cell tagged parameters, not {kind}")


def _expected(value: Any, fits: object, expected: str) -> Any:
    if not fits:
        raise ValueError(expected)
    return value


def check_values(values: Mapping[str, object], own: Mapping[str, str]) -> dict[str, Any]:
    """Return `values` read as what they should be; nothing is looked up on this machine.

    Args:
        values: every parameter of the chapter by name, the standard six among them.
        own: types of the chapter's own few.

    Raises:
        InputError: for an unknown or missing name and for a wrong type, naming the parameter.
    """
    kinds = {**own, **STANDARD}
    if unknown := [name for name in values if name not in kinds]:
        raise InputError(f"{unknown[0]}: no such parameter; this chapter has {', '.join(sorted(kinds))}")
    found = {}
    for name, kind in kinds.items():
        if name not in values:
            raise InputError(f"{name}: missing from the cell tagged parameters")
        try:
            found[name] = read(kind, values[name])
        except ValueError as error:
            raise InputError(f"{name}: expected {error}, got {values[name]!r}") from None
    found["DATASET"] = found["DATASET"] or TIERS[found["TIER"]]
    if found["DATASET"] != "synthetic" and found["DATA_ROOT"] is None:
        which = f"{found['DATASET']} (tier {found['TIER']})"
        raise InputError(f"DATA_ROOT: {which} is read from your own copy; give its folder")
    return found


def check_machine(values: Mapping[str, Any]) -> torch.device:
    """Return the device that values from `check_values` ask for, after a look for what they need on this machine.

    Raises:
        InputError: for a device that is not there, for a tier above lite without a GPU unless DEVICE is "cpu", and for
            a DATA_ROOT that does not hold the data set.
    """
    from vireid_lite.data import load_dataset  # torch, which a build needs only here
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
        names: the notebook's `globals()`, with the types of its tagged cell. papermill adds names it does not know, so
            every plain value that is no parameter is refused; in a second run of the cell, every upper-case one.

    Returns:
        tier, dataset, data_root (Path or None), seed, device (torch.device), out_dir (Path) and the chapter's own.

    Raises:
        InputError: one line, for an unknown name, a wrong type, or what `check_machine` misses.
    """
    again = names.get("_parameters_checked")
    kinds = again or {name: getattr(kind, "__name__", kind) for name, kind in names.get("__annotations__", {}).items()}
    kinds |= STANDARD
    plain = (str, int, float, list, tuple, dict, type(None))  # what papermill can inject

    def counts(name: str, value: object) -> bool:
        ipython = name.startswith("_") or name in ("In", "Out")
        return name in kinds or (isinstance(value, plain) and not ipython and (name.isupper() or not again))

    try:
        values = check_values({name: value for name, value in names.items() if counts(name, value)}, kinds)
        device = check_machine(values)
    except InputError as error:
        # A kernel's output is captured; its terminal is where papermill will print a traceback in a moment.
        if terminal := getattr(sys.stderr, "_original_stdstream_copy", None):
            os.write(terminal, f"\n{error}\n".encode())
        raise
    names["_parameters_checked"] = kinds
    print("\n".join(_announcement(values["TIER"], device, costs)))
    root = values["DATA_ROOT"] and Path(values["DATA_ROOT"])
    values |= {"DEVICE": device, "DATA_ROOT": root, "OUT_DIR": Path(values["OUT_DIR"])}
    return SimpleNamespace(**{name.lower(): value for name, value in values.items()})


def _announcement(tier: str, device: torch.device, costs: Costs | None) -> list[str]:
    """Return the lines a chapter begins with: its tier and device, and what a larger tier would cost there."""
    import torch

    from vireid_lite.machine import device_name

    here = device_name(device)
    larger = list(TIERS)[list(TIERS).index(tier) + 1 :]
    # A GPU invites more than lite; nothing is switched for whoever has one.
    stays = f" It stays {tier} until you change TIER." if larger and device.type == "cuda" else ""
    lines = [f"Tier {tier} on {here}; torch {torch.__version__}.{stays}"]
    if costs and larger:
        lines.append("Larger: " + "; ".join(f"{name} {costs.price(name, here)}" for name in larger) + ".")
    # Bf16 came with compute capability 8.0. torch counts slow emulation as support, so the capability is asked.
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        lines.append("No native bf16 here, and many times slower than an H200, which tiers above lite are sized for.")
    elif device.type == "cpu" and larger:
        lines.append("Larger tiers are sized for a GPU; this run uses the CPU.")
    return lines


def read_parameters(notebook: Path) -> tuple[dict[str, object], dict[str, str]]:
    """Return a notebook's parameters, name to default, and the types of the chapter's own few; nothing is run.

    Raises:
        InputError: unless one cell is tagged `parameters`, with plain values, and one calls the check above.
    """
    from papermill.translators import PythonTranslator  # comes with the book, not with a chapter opened alone

    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{notebook.name}: has {len(tagged)} cells tagged parameters; it needs exactly one")
    if not any("check_parameters(globals()" in "".join(cell["source"]) for cell in cells):
        raise InputError(f"{notebook.name}: no cell calls check_parameters(globals(), ...)")
    defaults, own = {}, {}
    for name, kind, default, _ in PythonTranslator.inspect({"source": tagged[0]}):
        try:
            defaults[name] = ast.literal_eval(default)
        except (SyntaxError, ValueError):
            raise InputError(f"{notebook.name}: {name} = {default} is no plain value; write it out") from None
        if name not in STANDARD:
            own[name] = kind
    return defaults, own
