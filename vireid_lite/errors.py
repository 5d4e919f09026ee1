"""What goes wrong, in one line that says what, where and how to mend it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any


class InputError(ValueError):
    """Bad input from outside: a missing file, an unknown parameter, an image out of range.

    The message is one line. The command line prints it and exits with code 2; a notebook shows it without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """Show only the message in IPython, which looks this method up by name."""
        return [f"{type(self).__name__}: {self}"]


class BuildError(RuntimeError):
    """A chapter that fails, or pages that do not come out whole; the message is one line that says where."""


TIERS = {"lite": "synthetic", "standard": "synthetic", "full": "sysu"}  # with the data set each uses unless told


def fraction(value: object) -> float:
    """Read a number in [0, 1], also as text or as a quotient such as "8/255"."""
    number = _number(value, float, "a fraction such as 8/255 or 0.03")
    if not 0 <= number <= 1:
        raise ValueError("a fraction in [0, 1], such as 8/255 or 0.03")
    return number


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
