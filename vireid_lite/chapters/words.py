"""What chapters write by program: tables, and numbers with their intervals."""

from collections.abc import Iterable, Sequence

from IPython.display import Markdown


def table(header: Sequence, rows: Iterable[Sequence], columns: str = "---") -> str:
    """Return rows of text and numbers as a Markdown table; columns: how all but the first are aligned."""
    lines = [header, ["---"] + [columns] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number_table(header: Sequence, rows: Iterable[Sequence]) -> Markdown:
    """Show rows of text and numbers as a table, first column left, others right."""
    return Markdown(table(header, rows, "--:"))


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """Write a fraction in percent without the sign, and its interval in brackets if there is one."""
    return f"{100 * value:.1f}" + ("" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def moved(part: Iterable[float], sign: bool = True) -> str:
    """Write a difference of fractions with its interval, (difference, low, high), in points."""
    mark = "+" if sign else ""
    middle, low, high = (f"{round(100 * value, 1) + 0.0:{mark}.1f}".replace("-", "−") for value in part)
    return f"{middle} ({low} to {high})"
