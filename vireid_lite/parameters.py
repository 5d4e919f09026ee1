"""A chapter's parameters: checked before anything runs, whoever set them, and what a run of it costs."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vireid_lite.errors import InputError

TIERS = {"lite": "synthetic", "standard": "synthetic", "full": "sysu"}  # with the data set each uses unless told
DATASETS = ("synthetic", "sysu", "regdb", "llcm", "paired_folder")
COSTS = Path(__file__).parents[1] / "book" / "results" / "costs.json"
Kind = Callable[[Any], Any]


def whole(value: object) -> int:
    """Read an integer of at least 0, as a number or as text."""
    number = _number(value, int, "a whole number")
    if number < 0:
        raise ValueError("a whole number of at least 0")
    return number


def fraction(value: object) -> float:
    """Read a number in [0, 1], also as text or as a quotient such as "8/255"."""
    number = _number(value, float, "a fraction such as 8/255 or 0.03")
    if not 0 <= number <= 1:
        raise ValueError("a fraction in [0, 1], such as 8/255 or 0.03")
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


def _number(value: object, kind: type, expected: str) -> Any:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = Fraction(value.replace(" ", "") if isinstance(value, str) else value)
        if kind is int and number.denominator != 1:
            raise ValueError
        return kind(number)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(expected) from None


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


def check_parameters(names: dict[str, Any], costs: Costs | None = None, **own: Kind) -> SimpleNamespace:
    """Check a notebook's parameters, print the device and larger tiers' costs, and return them in lower case.

    names: the notebook's `globals()`. papermill adds names it does not know as plain variables, so every plain value
    there that is not a parameter is refused; a second run of the cell looks at upper-case names only, since by then the
    chapter's own variables are there. own: readers as in `check_values`.
    Returns tier, dataset, data_root (Path or None), seed, device (torch.device), out_dir (Path) and the chapter's own.
    Raises InputError, one line, for an unknown name, a wrong type or a device that is not there.
    """
    from vireid_lite.provenance import device_name, pick_device

    kinds = {**STANDARD, **own}
    plain = (str, int, float, list, tuple, dict, type(None))  # what papermill can inject
    again = "_parameters_checked" in names

    def counts(name: str, value: object) -> bool:
        ipython = name.startswith("_") or name in ("In", "Out")
        return name in kinds or (isinstance(value, plain) and not ipython and (name.isupper() or not again))

    given = {name: value for name, value in names.items() if counts(name, value)}
    try:
        values = check_values(given, own)
        device = pick_device(values["DEVICE"])
    except InputError as error:
        # A kernel's output is captured; its terminal is where papermill will print a traceback in a moment.
        terminal = getattr(sys.stderr, "_original_stdstream_copy", None)
        if terminal is not None:
            os.write(terminal, f"\n{error}\n".encode())
        raise
    names["_parameters_checked"] = True
    larger = list(TIERS)[list(TIERS).index(values["TIER"]) + 1 :]
    print(f"Tier {values['TIER']} on {device_name(device)}")
    if costs and larger:
        print("Larger: " + "; ".join(f"{tier} {costs.price(tier)}" for tier in larger))
    settings = {name.lower(): value for name, value in values.items()}
    root = values["DATA_ROOT"]
    settings |= {"device": device, "data_root": Path(root) if root else None, "out_dir": Path(values["OUT_DIR"])}
    return SimpleNamespace(**settings)


class Costs:
    """What one chapter costs per tier, as measured: a table in a notebook, drawn from `book/results/costs.json`."""

    def __init__(self, chapter: str, path: Path = COSTS) -> None:
        measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.tiers: dict[str, dict] = measured.get(chapter, {})

    def price(self, tier: str) -> str:
        """Return the measured cost of one tier in words, or that it is not measured yet."""
        cost = self.tiers.get(tier)
        if cost is None:
            return "not measured yet"
        return f"{cost['minutes']:.1f} min and {_memory(cost)} on {cost['device']}"

    def __repr__(self) -> str:
        return "\n".join(f"{tier}: {self.price(tier)}" for tier in TIERS)

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook, which looks this method up by name."""
        rows = ["| Tier | Minutes | Peak memory | Measured on |", "|---|---|---|---|"]
        for tier in TIERS:
            cost = self.tiers.get(tier)
            cells = (
                [f"{cost['minutes']:.1f}", _memory(cost), cost["device"]] if cost else ["–", "–", "not measured yet"]
            )
            rows.append(f"| `{tier}` | {' | '.join(cells)} |")
        return "\n".join(rows)


def _memory(cost: dict) -> str:
    gpu = f" + {cost['gpu_gib']:.1f} GiB of GPU" if "gpu_gib" in cost else ""
    return f"{cost['memory_gib']:.1f} GiB{gpu}"


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
