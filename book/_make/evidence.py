"""What run cards say about a statement: the evidence of kind "cards", and what verdict follows.

`book/claims.toml` names a public function, from `against` on, and selects its cards; None says that nothing has run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import pairwise, product

import numpy as np

from _make.arithmetic import ROUNDING
from vireid_lite import metrics
from vireid_lite.study import tables
from vireid_lite.study.cards import defaults
from vireid_lite.study.grids import MARGIN
from vireid_lite.study.tables import DIRECTIONS

HOLDS, PARTLY, NOT = "holds", "holds partly", "does not"
OPEN = UNDECIDED, NOT_RUN, LICENSED = "undecided here", "not run", "needs licensed data"
TEXTUAL = OTHERWISE, CONTRADICTS, TYPO = "the code does otherwise", "contradicts itself", "typographical"
VERDICTS = (HOLDS, PARTLY, NOT, *OPEN, *TEXTUAL)
OUTCOMES = ("lower", "higher", "seeds disagree", "not told apart", "at chance", "one seed")  # of a setting

Cards = Sequence[dict]
Computed = tuple[dict, str, Cards] | None  # numbers by name, the verdict, and the cards that it rests on
Pair = tuple[str, dict, dict]  # what is compared, the card compared with, the card in question


def share(hits: Sequence[bool], verdicts: Sequence[str] = (HOLDS, PARTLY, NOT)) -> str:
    """Return the verdict on what is so in all cases, in some, or in none; of two, the second is on all but all."""
    return verdicts[0 if all(hits) else len(verdicts) // 2 if any(hits) else -1]


def matches(card: dict, wanted: dict) -> bool:
    """Return whether a card has the wanted values, one of several where a list is given; keys such as dataset.name."""
    found = {path: reduce(lambda part, key: (part or {}).get(key), path.split("."), card) for path in wanted}
    fits = (found[path] in (values if isinstance(values, list) else [values]) for path, values in wanted.items())
    return all(fits) and not card.get("split") and not card["dataset"].get("thermal")


def compared(pairs: Iterable[Pair]) -> dict[tuple, tuple]:
    """Return {setting: (outcome, difference)} of rank-1, second card minus first; pairs of one victim each.

    A setting has one label, tier, data set, victim, surrogate, infrared form and direction; one that only repeats the
    scores of another form, as visible queries do, counts once. The outcome is "lower" or "higher" where the paired
    interval over people excludes zero and every seed has that sign; else one of `OUTCOMES`. InputError where a setting
    would pool what must not be pooled.
    """
    groups, found, seen = defaultdict(list), {}, set()
    for (label, other, own), way in product(pairs, DIRECTIONS):
        source = own.get("surrogate") or {"victim": {}}
        made_on = source["victim"].get("model"), source["victim"].get("backbone"), source.get("identities")
        victim = own["tier"], str(own["dataset"]), str(own["victim"])
        groups[label, victim, made_on, bool((own["attack"] or {}).get("tied")), way].append((other, own))
    for key, group in groups.items():
        *form, _, way = key
        before, after = (
            [card["scores_8_bit"][way] for card in tables.pooled(side)] for side in zip(*group, strict=True)
        )
        if (same := str([form, way, *(one["identity_rank1"] for one in before + after)])) in seen:
            continue
        seen.add(same)
        together = tables.paired(before, after)
        signs = {np.sign(two["rank1"] - one["rank1"]) for one, two in zip(before, after, strict=True)}
        chance = group[0][1]["scores"][way]["chance"]["rank1"]["high"]
        if max(one["rank1"] for one in before + after) <= chance:
            outcome = "at chance"
        elif len(group) == 1:
            outcome = "one seed"
        elif together.low <= 0 <= together.high:
            outcome = "not told apart"
        else:
            wanted = np.sign(together.difference)
            outcome = "seeds disagree" if signs != {wanted} else "lower" if wanted < 0 else "higher"
        found[key] = outcome, together
    return found


def judged(found: dict[tuple, tuple], wanted: str = "lower", margin: float | None = None) -> str:
    """Return the verdict on "it is always `wanted`", lower or higher, or, if by a `margin`, falls by that fraction."""
    counts = Counter(outcome for outcome, _ in found.values())
    if counts[wanted] == len(found):
        return HOLDS
    # One setting that tells may be chance, among as many as are looked at.
    if counts[wanted] > 1:
        return PARTLY
    sure = margin is not None and not counts["one seed"]
    excluded = sure and all(difference.low > -margin for _, difference in found.values())
    return NOT if excluded or 2 * counts["higher" if wanted == "lower" else "lower"] > len(found) else UNDECIDED


def settled(pairs: Sequence[Pair], wanted: str = "lower", spoilt: bool = False, **numbers) -> Computed:
    """Return how far rank-1 lies apart, where it is told apart, rank-1 of both sides, and the verdict on a statement.

    wanted: as of `judged`. spoilt: whether a fall by `MARGIN` is meant. numbers: what else the sentence may name.
    """
    if not (found := compared(pairs)):
        return None
    counts = Counter(outcome for outcome, _ in found.values())
    said = ", ".join(f"{one} in {counts[one]}" for one in OUTCOMES if counts[one])
    numbers["tally"] = f"{_span(apart.difference for _, apart in found.values())}; {said} of {len(found)} settings"
    _, others, cards = zip(*pairs, strict=True)
    numbers["before"], numbers["after"] = (_rank1(side, "scores_8_bit").mean() for side in (others, cards))
    numbers["chance"] = 100 * cards[0]["scores"][DIRECTIONS[0]]["chance"]["rank1"]["mean"]
    return numbers, judged(found, wanted, MARGIN if spoilt else None), [*others, *cards]


def _span(differences: Iterable[float]) -> str:
    """Write the least and the largest of some fractions in points, with a sign."""
    points = [f"{100 * value:+z.1f}".replace("-", "−") for value in sorted(differences)]
    return f"{points[0]} to {points[-1]} points"


def _of(cards: Iterable[dict], label: str) -> list[dict]:
    """Return the attack cards that tables print under this label."""
    return [card for card in cards if card["attack"] and tables.label(card["attack"]) == label]


def _rank1(cards: Iterable[dict], name: str) -> np.ndarray:
    """Return rank-1 of some scores, percent: (card, direction)."""
    return 100 * np.array([[card[name][way]["rank1"] for way in DIRECTIONS] for card in cards])


def _anatomy(cards: Iterable[dict], label: str) -> tuple[list[dict], list[dict]]:
    """Return an attack's cards that say what its drop consists of, and what they say, by card and direction."""
    own = [card for card in _of(cards, label) if "anatomy" in card]
    return own, [card["anatomy"][way] for card, way in product(own, DIRECTIONS)]


def _pairs(others: Iterable[dict], cards: Iterable[dict], label: str = "") -> list[Pair]:
    """Return every two cards of one victim, infrared form and surrogate, if the first, of `others`, has any."""

    def alike(other: dict, own: dict) -> bool:
        if not own["attack"]:  # a card of a modified victim
            return all(other[part] == own[part] for part in ("tier", "dataset", "victim", "seed"))
        moved = other.get("surrogate") not in (None, own.get("surrogate"))
        return not moved and other["attack"]["tied"] == own["attack"]["tied"] and tables.same_victim(other, own)

    return [(label, other, own) for other, own in product(others, cards) if alike(other, own)]


def _switched(cards: Iterable[dict], others: Iterable[dict], switch: dict) -> list[Pair]:
    """Return every card and the one of its victim whose attack differs by just this switch."""
    pairs = ((pair, *(card["attack"] for card in pair[1:])) for pair in _pairs(cards, others, str(switch)))
    return [pair for pair, one, two in pairs if one != two == {**one, **switch}]


def against(cards: Cards, attack: str, than: list[str], where: dict | None = None, spoilt: bool = False) -> Computed:
    """An attack, whose cards match `where`, against others on the same victims: it should leave a lower rank-1."""
    own = [card for card in _of(cards, attack) if matches(card, where or {})]
    pairs = [pair for name in than for pair in _pairs(_of(cards, name), own, name)]
    clean, left = (_rank1(own, name).mean(0) if own else None for name in ("clean", "scores_8_bit"))
    return settled(pairs, spoilt=spoilt, than=" or ".join(than), clean=clean, left=left)


def selected(cards: Cards, own: dict, other: dict, scores: list[str], wanted="lower", spoilt=False) -> Computed:
    """Cards that match `own` against those of the same victim that match `other`; each attack a setting."""
    cards, others = (
        [{**card, "scores_8_bit": card[name]} for card in cards if matches(card, values)]
        for values, name in zip((own, other), scores, strict=True)
    )
    return settled([pair for card in cards for pair in _pairs(others, [card], str(card["attack"]))], wanted, spoilt)


def without(cards: Cards, attack: str, switches: list[dict], part: bool = True) -> Computed:
    """An attack against itself with one switch thrown, which takes away a part that should help, or adds one.

    Held against it are cards with none of the switches thrown: each stands where the attack has it by default.
    """
    keys = {key for switch in switches for key in switch}
    usual = [(card, defaults(card)["attack"]) for card in _of(cards, attack)]
    own = [card for card, plain in usual if all(card["attack"].get(key) == plain[key] for key in keys)]
    pairs = [pair for switch in switches for pair in _switched(own, cards, switch)]
    return settled([(label, other, own) if part else (label, own, other) for label, own, other in pairs])


def grows(cards: Cards, attack: str) -> Computed:
    """An attack at the next larger budget against itself, all else equal: it should leave a lower rank-1."""
    own = _of(cards, attack)
    budgets = sorted({card["attack"]["eps"] for card in own})
    at = {eps: [card for card in own if card["attack"]["eps"] == eps] for eps in budgets}
    pairs = [pair for small, large in pairwise(budgets) for pair in _switched(at[small], at[large], {"eps": large})]
    return settled(pairs, levels=", ".join(f"{255 * eps:.0f}" for eps in budgets))


def likeness(cards: Cards, attack: str) -> Computed:
    """SSIM and PSNR of attacked queries. They measure pixels, so whether anybody would notice stays open."""
    own, seen = _anatomy(cards, attack)
    return ({name: np.mean([one[name] for one in seen]) for name in ("ssim", "psnr")}, UNDECIDED, own) if own else None


def traced(cards: Cards, attack: str, trace: str, rises: bool = True) -> Computed:
    """A trace of the drop, clean to attacked, in every run and direction, beside what sign noise does to it."""
    (own, seen), (_, noise) = (_anatomy(cards, name) for name in (attack, "sign noise"))
    if not own or not noise:
        return None
    before, after = (np.array([one[state][trace] for one in seen]) for state in ("clean", "attacked"))
    moved = after > before if rises else after < before
    numbers = {"before": before.mean(), "after": after.mean(), "moved": moved.sum(), "runs": len(seen)}
    return numbers | {"noise": np.mean([one["attacked"][trace] for one in noise])}, share(moved), own


def hinge(cards: Cards) -> Computed:
    """How many noted steps of the bounded attack with the published hinge have any bracket above zero."""
    if not (active := [note["active"] > 0 for card in cards for note in card["history"]]):
        return None
    numbers = {"active": sum(active), "noted": len(active), "runs": len(cards)}
    return numbers, share(active, (HOLDS, NOT if 2 * sum(active) < len(active) else PARTLY, NOT)), cards


def licensed(cards: Cards, attack: str, printed: list[float]) -> Computed:
    """Printed rank-1, percent, of visible and infrared queries, against intervals over people of reruns."""
    ends, own = [], tables.pooled(_of(cards, attack))
    for card, way in product(own, DIRECTIONS):
        scores = card["scores_8_bit"][way]
        people = np.arange(len(scores["identity_rank1"]))
        ends.append(metrics.bootstrap(scores["identity_rank1"], people, scores["identity_queries"])[1:])
    if not ends:
        return None
    ends = 100 * np.reshape(ends, (-1, 2, 2))  # run, direction, end
    low, high = ends[..., 0].min(0), ends[..., 1].max(0)
    inside = (low - ROUNDING <= printed) & (printed <= high + ROUNDING)
    return {"values": printed, "low": low, "high": high}, share(inside), own
