"""The self-check under an exercise: it says whether an answer is right, and keeps the right one to itself."""

import hashlib
import math
from collections.abc import Callable

from vireid_lite.errors import InputError

UNANSWERED = "Not answered yet: put your answer in place of None and run this cell."


def seal(exercise: str, answer: object) -> str:
    """Return 8 hex digits that stand for the answer to the exercise of a label: "(b)", "B." and "b" are one answer."""
    return hashlib.sha256(f"{exercise}:{str(answer).strip(' ().').lower()}".encode()).hexdigest()[:8]


def self_check(answer: object, exercise: str, sealed: str, decimals: int = 0) -> None:
    """Print whether an answer, a letter, a short text or a number, is right; InputError where it can be neither.

    Args:
        answer: None where there is none yet; a number is rounded to `decimals` places if there are any.
        exercise: its label.
        sealed: what `seal` made of the right answer.
    """
    if answer is None:
        return print(UNANSWERED)
    if _is_number(answer):
        answer = f"{answer:.{decimals}f}" if decimals else f"{answer:g}"
    elif not (isinstance(answer, str) and answer.strip()):
        raise InputError(f'{exercise}: {answer!r} is no answer; give a letter such as "a", or a number')
    print("Right." if seal(exercise, answer) == sealed else "Not right: read the exercise once more.")


def self_check_value(answer: float | None, right: Callable[[], float], within: float) -> None:
    """Print whether `answer` is at most `within` from what `right()` returns, which is called only for a number."""
    if answer is None:
        return print(UNANSWERED)
    if not _is_number(answer):
        raise InputError(f"{answer!r} is no answer; give a number")
    off = answer - right()
    print("Right." if abs(off) <= within else f"Not right: too {'large' if off > 0 else 'small'}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
