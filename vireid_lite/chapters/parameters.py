"""A chapter's parameters: checked before anything runs, whoever set them, and what a run of it costs."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vireid_lite.chapters.costs import Costs
from vireid_lite.errors import TIERS, InputError, _number

if TYPE_CHECKING:
    import torch

DATASETS = ("synthetic", "sysu", "regdb", "llcm", "paired_folder")

Kind = Callable[[Any], Any]


def whole(value: object) -> int:
    """Read an integer of at least 0, as a number or as text."""
    number = _number(value, int, "a whole number")
    if number < 0:
        raise ValueError("a whole number of at least 0")
    return number


def one_of(*choices: str) -> Kind:
    """Return the reader of a word out of `choices`."""

    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return read


def optional(kind: Kind) -> Kind:
    """Return the reader of None (also as the text "none", or nothing) or what `kind` reads."""

    def read(value: object) -> Any:
        return (
            None if value is None or (isinstance(value, str) and value.lower() in ("", "none")) else _read(kind, value)
        )

    return read


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("some text")
    return value


def _truth(value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


PLAIN: dict[Any, Kind] = {
    int: lambda value: _number(value, int, "a whole number"),
    float: lambda value: _number(value, float, "a number"),
    str: _text,
    bool: _truth,
}

STANDARD: dict[str, Kind] = {
    "TIER": one_of(*TIERS),
    "DATASET": optional(one_of(*DATASETS)),
    "DATA_ROOT": optional(str),
    "SEED": whole,
    "DEVICE": _text,
    "OUT_DIR": _text,
}


def _read(kind: Kind, value: object) -> Any:
    return PLAIN.get(kind, kind)(value)


def check_values(values: Mapping[str, object], own: Mapping[str, Kind]) -> dict[str, Any]:
    """Return `values` read as what they should be; nothing is looked up on this machine.

    values: every parameter of the chapter by name, the standard six among them. own: readers of the chapter's own few,
    each of int, float, str, bool, `whole`, `fraction`, `one_of(...)` and `optional(...)`.
    Raises InputError for an unknown or missing name and for a wrong type, naming the parameter.
    """
    kinds = {**STANDARD, **own}
    for name in values:
        if name not in kinds:
            raise InputError(f"{name}: no such parameter; this chapter has {', '.join(sorted(kinds))}")
    read = {}
    for name, kind in kinds.items():
        if name not in values:
            raise InputError(f"{name}: missing from the cell tagged parameters")
        try:
            read[name] = _read(kind, values[name])
        except ValueError as error:
            raise InputError(f"{name}: expected {error}, got {values[name]!r}") from None
    read["DATASET"] = read["DATASET"] or TIERS[read["TIER"]]
    if read["DATASET"] != "synthetic" and read["DATA_ROOT"] is None:
        raise InputError(
            f"DATA_ROOT: {read['DATASET']} (tier {read['TIER']}) is read from your own copy; give its folder"
        )
    return read


def check_machine(values: Mapping[str, Any]) -> torch.device:
    """Return the device that values from `check_values` ask for, after a look for what they need on this machine.

    Raises InputError for a device that is not there, for a tier above lite without a GPU unless DEVICE is "cpu", and
    for a DATA_ROOT that does not hold the data set.
    """
    from vireid_lite.data import load_dataset
    from vireid_lite.provenance import pick_device

    device = pick_device(values["DEVICE"])
    if values["TIER"] != "lite" and device.type == "cpu" and values["DEVICE"] != "cpu":
        raise InputError(
            f"TIER: {values['TIER']} is sized for a GPU, and there is none here; use lite, or set DEVICE to cpu if it"
            " may take very long"
        )
    if values["DATASET"] != "synthetic":
        try:
            load_dataset(values["DATASET"], values["DATA_ROOT"])
        except InputError as error:
            # Readers name the command's option; here it is a parameter.
            raise InputError(str(error).replace("--root", "DATA_ROOT")) from None
    return device


def check_parameters(names: dict[str, Any], costs: Costs | None = None, **own: Kind) -> SimpleNamespace:
    """Check a notebook's parameters, print the device and larger tiers' costs, and return them in lower case.

    names: the notebook's `globals()`. papermill adds names it does not know as plain variables, so every plain value
    there that is not a parameter is refused; a second run of the cell looks at upper-case names only, since by then the
    chapter's own variables are there. own: readers as in `check_values`.
    Returns tier, dataset, data_root (Path or None), seed, device (torch.device), out_dir (Path) and the chapter's own.
    Raises InputError, one line, for an unknown name, a wrong type, or what `check_machine` misses.
    """
    kinds = {**STANDARD, **own}
    plain = (str, int, float, list, tuple, dict, type(None))  # what papermill can inject
    again = "_parameters_checked" in names

    def counts(name: str, value: object) -> bool:
        ipython = name.startswith("_") or name in ("In", "Out")
        return name in kinds or (isinstance(value, plain) and not ipython and (name.isupper() or not again))

    given = {name: value for name, value in names.items() if counts(name, value)}
    try:
        values = check_values(given, own)
        device = check_machine(values)
    except InputError as error:
        # A kernel's output is captured; its terminal is where papermill will print a traceback in a moment.
        terminal = getattr(sys.stderr, "_original_stdstream_copy", None)
        if terminal is not None:
            os.write(terminal, f"\n{error}\n".encode())
        raise
    names["_parameters_checked"] = True
    print("\n".join(_announcement(values["TIER"], device, costs)))
    settings = {name.lower(): value for name, value in values.items()}
    root = values["DATA_ROOT"]
    settings |= {"device": device, "data_root": Path(root) if root else None, "out_dir": Path(values["OUT_DIR"])}
    return SimpleNamespace(**settings)


def _announcement(tier: str, device: torch.device, costs: Costs | None) -> list[str]:
    """Return the lines a chapter begins with: its tier and device, and what a larger tier would cost there."""
    import torch

    from vireid_lite.provenance import device_name

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


def read_parameters(notebook: Path) -> tuple[dict[str, object], dict[str, Kind]]:
    """Return a notebook's parameters (name to default) and the readers its check cell gives for the chapter's own few.

    Runs the cell tagged `parameters` and evaluates the keywords of its `check_parameters(...)` call, nothing else.
    Raises InputError where either is missing.
    """
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{notebook.name}: has {len(tagged)} cells tagged parameters; it needs exactly one")
    defaults: dict[str, object] = {}
    # Types are for papermill --help-notebook. The code runs under this module's `annotations`, which leaves them text.
    exec("".join(tagged[0]["source"]), {"__builtins__": {}}, defaults)
    defaults.pop("__annotations__", None)
    for cell in cells:
        source = "".join(cell["source"])
        if "check_parameters(" not in source:
            continue
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id == "check_parameters":
                names = {**globals(), **{kind.__name__: kind for kind in PLAIN}}
                expressions = {keyword.arg: ast.Expression(keyword.value) for keyword in call.keywords if keyword.arg}
                return defaults, {
                    name: eval(compile(expression, notebook.name, "eval"), names)
                    for name, expression in expressions.items()
                    if name != "costs"
                }
    raise InputError(f"{notebook.name}: no cell calls check_parameters(globals(), ...)")
