"""The one error for input a person can mend, one line that says what, where and how; and the checks that raise it."""

import math
from collections.abc import Iterable
from fractions import Fraction
from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Bad input from outside, said in one line; the command line prints it and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """Show only the message in IPython, which looks this method up by name."""
        return [f"{type(self).__name__}: {self}"]


class BuildError(RuntimeError):
    """A chapter that fails, or pages that do not render; the message is one line that says where."""


TIERS = {"lite": "synthetic", "standard": "synthetic", "full": "sysu"}  #: with the data set each uses unless told
SPLITS = ("test", "val", "tuning")  #: of people to rank; a victim is chosen on val, an attack on tuning
DATASETS = ("synthetic", "sysu", "regdb", "llcm", "paired_folder")  #: by the names that `load_dataset` takes
LARGEST_SEED = 2**63 - 1  #: that torch takes
MANY = 1_000_000  #: of people, epochs, steps and the like, at most


def fraction(value: object) -> float:
    """Read a number in [0, 1], also as text or as a quotient such as "8/255"."""
    share = number(value, float, "a fraction such as 8/255 or 0.03")
    if not 0 <= share <= 1:
        raise ValueError("a fraction in [0, 1], such as 8/255 or 0.03")
    return share


def number(value: object, kind: type, expected: str) -> Any:
    """Read a number as int or float, also as text or a quotient; ValueError(expected) where it is none."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        exact = Fraction(value.replace(" ", "") if isinstance(value, str) else value)
        if kind is int and exact.denominator != 1:
            raise ValueError
        return kind(exact)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(expected) from None


def check_number(where: str, name: str, value: object, low: float = 0, high: float = math.inf, kind=None) -> None:
    """Raise InputError unless a value is a number from `low` to `high`, both included; no NaN, infinity or bool.

    kind: Real where NumPy's numbers are taken too, which JSON has none of.
    """
    number = isinstance(value, kind or int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high and abs(value) < math.inf):
        to = f"to {high}" if high < math.inf else "up"
        raise InputError(f"{where}: {name} must be a number from {low} {to}, got {value!r}")


def whole(where: str, name: str, value: object, least: int = 0, most: int = LARGEST_SEED, kind: type = Integral) -> int:
    """Return a whole number from `least` to `most`, both included; InputError for anything else.

    kind: int where the value is kept as it is given, as JSON has no number of NumPy's.
    """
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        bound = f"most {most}" if isinstance(value, kind) and value > most else f"least {least}"
        raise InputError(f"{where}: {name} must be a whole number of at {bound}, got {value!r}")
    return int(value)


def check_choice(where: str, name: str, value: object, known: Iterable) -> None:
    """Raise InputError unless a value is one of `known`."""
    if value not in (known := list(known)):
        raise InputError(f"{where}: {name} {value!r} is unknown; choose from {', '.join(map(str, known))}")


def check_flag(where: str, name: str, value: object) -> None:
    """Raise InputError unless a value is True or False."""
    if type(value) is not bool:
        raise InputError(f"{where}: {name} must be true or false, got {value!r}")


def check_table(what: str, table: object, kinds: dict[str, Any], others: bool = False) -> None:
    """Raise InputError unless `table` is a table of known keys, or of `others` too, each of its kind."""
    if not isinstance(table, dict):
        raise InputError(f"{what}: a table is needed, got {table!r}"[:300])
    for key, value in table.items():
        if key not in kinds and not others:
            raise InputError(f"{what} has an unknown key {key!r}; it takes {', '.join(kinds)}")
        if key in kinds and (not isinstance(value, kinds[key]) or (kinds[key] is int and value is True)):
            kind = getattr(kinds[key], "__name__", kinds[key])
            raise InputError(f"{what}: {key} must be of type {kind}, got {value!r}"[:300])
