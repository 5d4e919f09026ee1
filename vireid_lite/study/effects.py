"""What two rows of run cards differ by, with victims as a random factor: intervals, verdicts, and where variance is.

The measure was fixed before the runs: mAP after minus before, of attacked images in 8 bits, in one direction, on the
same victims; an effect is its mean over victims. Its interval is Student's over them ("Student" 1908): what another
training of the same recipe would show. An interval over people, with these victims and this gallery, stands beside it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit  # which scikit-learn needs

from vireid_lite.errors import InputError, check_choice
from vireid_lite.metrics.bootstrap import Interval
from vireid_lite.study.cards import DIRECTIONS, SAME, same_behaviour, same_training
from vireid_lite.study.tables import draw_of, one_training, paired, pooled

MARGIN = 0.01  #: of mAP, one point; fixed before the runs
LEAST = 6  #: victims that a verdict needs; a sign test of five cannot go below .06
LEVEL = 0.05


class Effect(NamedTuple):
    """What two rows differ by in one direction, fractions of mAP."""

    direction: str
    victims: tuple[tuple[int, int], ...]  #: seed and split of those that both rows have
    differences: tuple[float, ...]  #: after minus before, a victim each
    clean: float  #: the mean score without attack
    floor: float  #: the mean of the least mAP that these queries and galleries allow
    people: tuple[float, float]  #: 95 % interval over query people, resampled with all their queries for all victims

    @property
    def interval(self) -> Interval:
        """Mean and 95 % interval over victims."""
        return student(self.differences)[0]

    def __str__(self) -> str:
        if len(self.victims) < LEAST:
            dots = ", ".join(f"{100 * each:+.1f}" for each in self.differences)
            return f"{dots} points of mAP on {len(self.victims)} victims: exploratory"
        mean, low, high = (100 * each for each in self.interval)
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] points of mAP over {len(self.victims)} victims"


def effect(before: Sequence[dict], after: Sequence[dict], direction: str) -> Effect:
    """Return what a row differs from another by, over the victims that both have cards of.

    Args:
        before, after: cards of one configuration each, a victim each: attacked ones, or victims' own as clean scores.
        direction: such as "visible to infrared".

    Raises:
        InputError: where a row is of two configurations, no victim is in both, or two cards of a victim are of other
            data or people, or of two trainings of it; victims that are modified are trainings of their own.
    """
    check_choice("effects", "direction", direction, DIRECTIONS)
    rows = [{draw_of(card): card for card in pooled(side)} for side in (before, after)]
    if not (victims := sorted(rows[0].keys() & rows[1].keys())):
        raise InputError("effects: the two rows have no victim in common")
    sides = [[row[victim] for victim in victims] for row in rows]
    for one, other in zip(*sides, strict=True):
        alike = all(one.get(part) == other.get(part) for part in (*SAME, "split")) and same_behaviour(one, other)
        if not alike or not ("modification" in {*one, *other} or same_training(one, other)):
            what = f"the cards of seed {one['seed']} are of two victims, trainings, data sets, splits or behaviours"
            raise InputError(f"effects: {what}; compare attacks on one victim")
    first, second = ([card.get("scores_8_bit", card["scores"])[direction] for card in side] for side in sides)
    moved = tuple(two["mAP"] - one["mAP"] for one, two in zip(first, second, strict=True))
    clean = [card.get("clean", card.get("scores_clean", card["scores"]))[direction]["mAP"] for card in sides[1]]
    floor = [card["scores"][direction]["minimum"]["mAP"] for card in sides[1]]
    people = tuple(paired(first, second, "mAP")[1:])
    return Effect(direction, tuple(victims), moved, float(np.mean(clean)), float(np.mean(floor)), people)


def student(values: Sequence[float]) -> tuple[Interval, float]:
    """Return the mean of one value a victim with Student's 95 % interval, and the two-sided p of a mean of zero."""
    if (count := len(values)) < 2:
        raise InputError(f"effects: an interval over victims needs two of them, got {count}")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count)
    half = error * float(stdtrit(count - 1, 1 - LEVEL / 2))
    p = 2 * float(stdtr(count - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half), p


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p values of a family, adjusted for their number (Holm 1979)."""
    adjusted, most = [0.0] * len(ps), 0.0
    for place, number in enumerate(np.argsort(ps, kind="stable")):
        adjusted[number] = most = max(most, min(1.0, (len(ps) - place) * ps[number]))
    return adjusted


def verdicts(family: dict[str, Effect | None]) -> dict[str, str]:
    """Return a word for each comparison of a family, declared before the runs: all of one table.

    "equal": the interval lies within `MARGIN` of zero, on whichever side. "lower", "higher": it does not, and zero is
    excluded after Holm's adjustment over the whole family. "undecided": neither. "exploratory": fewer than `LEAST`
    victims, of which nothing is said. "pending": None. The last two count in the family's number.
    """
    found = {name: student(item.differences) for name, item in family.items() if item and len(item.victims) >= LEAST}
    ps = holm([found[name][1] if name in found else 1.0 for name in family])
    words = {}
    for (name, item), p in zip(family.items(), ps, strict=True):
        if name not in found:
            words[name] = "exploratory" if item else "pending"
            continue
        mean, low, high = found[name][0]
        decided = "undecided" if p > LEVEL else "lower" if mean < 0 else "higher"
        words[name] = "equal" if max(-low, high) < MARGIN else decided
    return words


class Spread(NamedTuple):
    """Standard deviations of a paired difference where one thing alone is drawn anew, fractions of mAP."""

    victims: float  #: one victim for another; with the perturbation's seed, where that has one each
    perturbations: float  #: one seed of the perturbation for another, on one victim; NaN where each victim has one
    people: float  #: of the mean over victims: as many other query people, resampled, before the same gallery


def spread_of(before: Sequence[dict], after: Sequence[dict], direction: str) -> Spread:
    """Return where the variance of a difference is, by the method of moments; `after` may have several seeds of attack.

    Raises InputError as `effect` does, and where the seeds of the attack differ from victim to victim.
    """
    groups: dict[int | None, list[dict]] = {}
    for card in after:
        groups.setdefault((card["attack"] or {}).get("seed"), []).append(card)
    _alike([group[0] for group in groups.values()], lambda attack: {**attack, "seed": None})
    effects = [effect(before, group, direction) for group in groups.values()]
    if len({each.victims for each in effects}) > 1:
        raise InputError("effects: each victim needs the same seeds of the attack; filter the cards")
    found = np.array([each.differences for each in effects])  # (seeds of the attack, victims)
    student(found[0])
    within = float(found.var(0, ddof=1).mean()) if len(found) > 1 else math.nan
    between = found.mean(0).var(ddof=1) - (within / len(found) if len(found) > 1 else 0)
    people = float(np.mean([np.subtract(*each.people[::-1]) for each in effects])) / (2 * 1.96)
    return Spread(math.sqrt(max(0.0, between)), math.sqrt(within), people)


class Halfway(NamedTuple):
    """The eps that takes a score halfway from clean to its floor; `outside`: the end of the curve it lies beyond."""

    eps: float
    outside: str = ""  #: "below" or "above", or "" where it lies within

    def __str__(self) -> str:
        return {"below": "< ", "above": "> ", "": ""}[self.outside] + f"{255 * self.eps:.2g}/255"


def halfway(cards: Sequence[dict], direction: str) -> Halfway:
    """Return where a curve of mAP over eps, an attack on one victim, is first halfway to its least, even in log eps.

    Raises InputError where cards are of two victims or attacks (a step may be in proportion to eps), or an eps comes
    twice.
    """
    check_choice("effects", "direction", direction, DIRECTIONS)
    curve = {(card["attack"] or {}).get("eps"): card for card in one_training(cards)}
    if None in curve or len(set(map(draw_of, cards))) > 1 or len(curve) < max(2, len(cards)):
        raise InputError("effects: a curve is an attack on one victim at two or more eps, each once; filter the cards")
    _alike(cards, lambda it: {**it, "eps": 0, "step_size": round((it.get("step_size") or 0) / it["eps"], 4)})
    points = sorted((eps, card["scores_8_bit"][direction]["mAP"]) for eps, card in curve.items())
    half = (cards[0]["clean"][direction]["mAP"] + cards[0]["scores"][direction]["minimum"]["mAP"]) / 2
    if points[0][1] <= half:
        return Halfway(points[0][0], "below")
    for (eps, score), (more, less) in pairwise(points):
        if less <= half:
            return Halfway(eps * (more / eps) ** ((score - half) / (score - less)))
    return Halfway(points[-1][0], "above")


def _alike(cards: Sequence[dict], bare: Callable[[dict], dict]) -> None:
    """Raise InputError unless cards are of one configuration but for seeds and what `bare` takes off their attack."""
    pooled({**card, "seed": number, "attack": bare(card["attack"] or {})} for number, card in enumerate(cards))
