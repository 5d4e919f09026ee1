"""The claims ledger: what the two papers state, what was run or computed here, and where each statement stands.

`book/claims.toml` holds the claims with their verdicts and where the evidence for each is found; `book/claims.md` is
written from it. What can be recomputed is recomputed: a verdict that the run cards or the arithmetic do not give is an
error. Printed numbers stand once, in the data file's table `printed`.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial, reduce
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vireid_lite import frequency, metrics, models
from vireid_lite import losses as quadruple
from vireid_lite.attacks.budget import luma, tie
from vireid_lite.data import Modality
from vireid_lite.errors import InputError
from vireid_lite.models import attention
from vireid_lite.study import tables
from vireid_lite.study.cards import is_stale, read_cards

HOLDS, PARTLY, NOT = "holds", "holds partly", "does not"

OPEN, CONTRADICTS = "open without licensed data", "contradicts itself"

VERDICTS = (HOLDS, PARTLY, NOT, OPEN, CONTRADICTS)

# A "number" belongs to a licensed data set; a "mechanism" can be shown or refuted anywhere; "text" is the paper's own
# wording, equations, tables and code.
ABOUT = ("number", "mechanism", "text")

KINDS = ("arithmetic", "cards", "code", "text")

FIELDS = ("id", "paper", "where", "about", "statement", "verdict", "evidence")

MARGIN = 0.1  # of rank-1: who spoils a ranking costs more than this


class Claim(NamedTuple):
    """One statement of a paper in our words, its verdict, and where the evidence is found.

    about: one of `ABOUT`. chapter: the one that is about it, or 0. evidence: a table with `kind`, one of `KINDS`.
    answer: what the paper's authors reply, in their own words, with date; or "".
    """

    id: str
    paper: str
    where: str
    about: str
    statement: str
    verdict: str
    evidence: dict
    chapter: int = 0
    answer: str = ""


class Ledger(NamedTuple):
    """The data file: printed numbers, the papers' names, the repositories' commits, usual card selection, claims."""

    printed: dict
    papers: dict
    repositories: dict
    selection: dict
    claims: list[Claim]


class Finding(NamedTuple):
    """What the evidence says, the verdict that follows from it, and the data it is about."""

    text: str
    verdict: str
    data: str


Computed = tuple[str, str]  # text and verdict

# Reading and checking.


def read_ledger(path: Path) -> Ledger:
    """Return the ledger in a TOML file such as `book/claims.toml`.

    Raises InputError where it cannot be read, a claim lacks a field or has an unknown one, an id comes twice, or a
    verdict, a paper or a kind of evidence is unknown.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable ledger ({error}); restore it from the repository") from None
    claims, seen = [], set()
    for number, entry in enumerate(content.get("claim", []), start=1):
        here = f"{path.name}: claim {entry.get('id', f'number {number}')}"
        unlike = {*FIELDS} ^ entry.keys()
        if problem := sorted(unlike - {"chapter", "answer"}):
            raise InputError(f"{here}: field {problem[0]!r} is {'unknown' if problem[0] in entry else 'missing'}")
        claim = Claim(**entry)
        try:
            claim = claim._replace(statement=claim.statement.format_map(content.get("printed", {})))
        except (KeyError, ValueError) as error:
            raise InputError(f"{here}: its statement asks for {error}, which is not under printed") from None
        kind = claim.evidence.get("kind")
        for what, value, known in (
            ("verdict", claim.verdict, VERDICTS),
            ("about", claim.about, ABOUT),
            ("kind of evidence", kind, KINDS),
            ("paper", claim.paper, content.get("papers", {})),
        ):
            if value not in known:
                raise InputError(f"{here}: {what} {value!r} is none of: {', '.join(known)}")
        if claim.id in seen:
            raise InputError(f"{here}: this id comes twice; give each claim its own")
        seen.add(claim.id)
        claims.append(claim)
    return Ledger(*(content.get(name, {}) for name in ("printed", "papers", "repositories", "selection")), claims)


def find(claim: Claim, ledger: Ledger, cards: Sequence[dict]) -> Finding:
    """Return what a claim's evidence says today: recomputed from the cards or by arithmetic, or as the file quotes it.

    cards: all run cards, as `cards.read_cards` gives them. Raises InputError for evidence that cannot be resolved.
    """
    kind, options = claim.evidence["kind"], {k: v for k, v in claim.evidence.items() if k != "kind"}
    try:
        if kind in ("code", "text"):
            return _quoted(claim, ledger, **options)
        if kind == "arithmetic":
            call = partial(ARITHMETIC[options.pop("function")], ledger.printed, **options)
        else:
            wanted, command = {**ledger.selection, **options.pop("cards")}, options.pop("command")
            chosen = [card for card in cards if _matches(card, wanted)]
            if "printed" in options:
                options["printed"] = reduce(
                    lambda table, part: table[part], options["printed"].split("."), ledger.printed
                )
            call = partial(CARDS[options.pop("function")], chosen, **options)
        signature(call).bind()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"claims: the evidence of {claim.id} cannot be resolved ({error}); see claims.py") from None
    found = call()
    if kind == "arithmetic":
        return Finding(*found, "arithmetic")
    if found is None:
        return Finding(f"pending: `{command}`", OPEN, f"{_listed(wanted['dataset.name'])}, not run yet")
    return Finding(*found, _ground(chosen))


def _quoted(claim: Claim, ledger: Ledger, text: str, places: list[str], repository: str = "") -> Finding:
    """Return the finding of a claim whose evidence stands in the text, or in a repository's code."""
    if not text or len(places) < 1 + (not repository and claim.verdict == CONTRADICTS):
        raise KeyError("places")
    if (claim.evidence["kind"] == "code") != bool(repository):
        raise KeyError("repository")
    if repository:
        named = ", ".join(f"`{place}`" for place in places)
        return Finding(
            f"{named}: {text}", claim.verdict, f"code of {repository} at `{ledger.repositories[repository]}`"
        )
    return Finding(f"{'; '.join(places)}: {text}", claim.verdict, "the text")


def check(ledger: Ledger, cards: Sequence[dict]) -> dict[str, Finding]:
    """Return the finding of every claim by id.

    Raises InputError where a verdict is not the one its evidence gives, or where synthetic images are to settle a
    number of a licensed data set.
    """
    found = {}
    for claim in ledger.claims:
        finding = found[claim.id] = find(claim, ledger, cards)
        if finding.verdict != claim.verdict:
            raise InputError(
                f"claims: {claim.id} says {claim.verdict!r}, its evidence {finding.verdict!r} ({finding.text}); look at"
                " it, and correct book/claims.toml or the evidence"
            )
        if claim.about == "number" and "synthetic" in finding.data and claim.verdict != OPEN:
            raise InputError(
                f"claims: {claim.id} is about a number of a licensed data set, which synthetic images cannot settle"
            )
    return found


def _matches(card: dict, wanted: dict) -> bool:
    """Return whether a card has the wanted values, one of several where a list is given; keys such as dataset.name."""
    for key, values in wanted.items():
        value: object = card
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value not in (values if isinstance(values, list) else [values]):
            return False
    return not card.get("split") and not card["dataset"].get("thermal")


def _listed(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _ground(cards: Sequence[dict]) -> str:
    """Say on which data, sizes and seeds some cards were made."""
    difficulties: dict[str, set] = {}
    for card in cards:
        difficulties.setdefault(card["dataset"]["name"], set()).add(card["dataset"].get("difficulty", ""))
    data = [name + (f" ({' and '.join(sorted(known))})" if any(known) else "") for name, known in difficulties.items()]
    tiers, seeds = sorted({card["tier"] for card in cards}), {card["seed"] for card in cards}
    stale = sum(is_stale(card) for card in cards)
    return (
        f"{', '.join(data)}, tier {' and '.join(tiers)}, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
        + f", {stale} of {len(cards)} cards stale" * (stale > 0)
    )


# Evidence in run cards. Each takes the selected cards and returns text and verdict, or None where nothing has run.

WAYS = dict(zip(tables.DIRECTIONS, ("V→I", "I→V"), strict=True))

Pair = tuple[str, dict, dict]  # what is compared, the card compared with, the card in question


def compared(pairs: Iterable[Pair], name: str = "scores_8_bit", other_name: str = "") -> dict[tuple, tuple]:
    """Return {setting: (outcome, difference)} of rank-1, second card minus first; pairs of one victim each.

    A setting is a label, tier, data set, victim, infrared form and direction; its seeds go together. The outcome is
    "lower" or "higher" where the paired interval over people excludes zero and every seed has that sign, else "not told
    apart"; "at chance" where neither card is above it. name, other_name: which scores of the second and first card.
    """
    groups: dict[tuple, list] = {}
    for label, other, own in pairs:
        tied = (own["attack"] or {}).get("tied", False)
        for way in tables.DIRECTIONS:
            key = label, own["tier"], str(own["dataset"]), str(own["victim"]), "tied" if tied else "free", way
            groups.setdefault(key, []).append((other, own))
    found = {}
    for key, group in groups.items():
        before, after = ([card[n][key[-1]] for card in side] for side, n in zip(
            zip(*group, strict=True), (other_name or name, name), strict=True))  # fmt: skip
        together = tables.paired(before, after)
        each = [two["rank1"] - one["rank1"] for one, two in zip(before, after, strict=True)]
        chance = group[0][1]["scores"][key[-1]]["chance"]["rank1"]["high"]
        if max(scores["rank1"] for scores in before + after) <= chance:
            outcome = "at chance"
        elif together.high < 0 and max(each) < 0:
            outcome = "lower"
        elif together.low > 0 and min(each) > 0:
            outcome = "higher"
        else:
            outcome = "not told apart"
        found[key] = outcome, together
    return found


def judged(found: dict[tuple, tuple], wanted: str = "lower", margin: float | None = None) -> str:
    """Return the verdict on "it is always `wanted`", lower or higher, open where too few settings tell.

    It holds partly where more than one setting speaks for it.
    margin: fraction; where the statement means more than any difference. Excluded everywhere, it does not hold.
    """
    counts = Counter(outcome for outcome, _ in found.values())
    unwanted = "higher" if wanted == "lower" else "lower"
    if counts[wanted] == len(found):
        return HOLDS
    # One setting that tells may be chance, among as many as are looked at.
    if counts[wanted] > 1:
        return PARTLY
    excluded = margin is not None and all(difference.low > -margin for _, difference in found.values())
    return NOT if excluded or 2 * counts[unwanted] > len(found) else OPEN


def tally(found: dict[tuple, tuple]) -> str:
    """Say how far rank-1 lies apart, and in how many settings it is told apart."""
    counts = Counter(outcome for outcome, _ in found.values())
    middles = [100 * difference.difference for _, difference in found.values()]
    said = [f"{outcome} in {counts[outcome]}" for outcome in ("lower", "higher") if counts[outcome]]
    said += [f"{outcome} in {counts[outcome]}" for outcome in ("not told apart", "at chance") if counts[outcome]]
    return f"{_points(min(middles))} to {_points(max(middles))} points; {', '.join(said)} of {len(found)} settings"


def _points(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def _of(cards: Iterable[dict], label: str) -> list[dict]:
    """Return the attack cards that tables print under this label."""
    return [card for card in cards if card["attack"] and tables.label(card["attack"]) == label]


def _pairs(others: Iterable[dict], cards: Iterable[dict], label: str = "") -> list[Pair]:
    """Return every two cards of the same victim and infrared form, the first of `others`."""
    cards = list(cards)
    return [
        (label, other, own)
        for other in others
        for own in cards
        if other["attack"]["tied"] == own["attack"]["tied"] and tables.same_victim(other, own)
    ]


def against(cards: Sequence[dict], attack: str, than: list[str]) -> Computed | None:
    """An attack against others on the same victims: it should leave a lower rank-1 than each of them."""
    found = compared(pair for name in than for pair in _pairs(_of(cards, name), _of(cards, attack), name))
    if not found:
        return None
    return f"rank-1 of {attack} minus {' or '.join(than)}: {tally(found)}", judged(found)


def breaks(cards: Sequence[dict], attack: str) -> Computed | None:
    """An attack against sign noise of the same size, on the same victims, with clean scores and chance beside it."""
    own = _of(cards, attack)
    found = compared(_pairs(_of(cards, "sign noise"), own))
    if not found:
        return None
    clean, left = (
        [100 * np.mean([card[name][way]["rank1"] for card in own]) for way in tables.DIRECTIONS]
        for name in ("clean", "scores_8_bit")
    )
    chance = 100 * own[0]["scores"][tables.DIRECTIONS[0]]["chance"]["rank1"]["mean"]
    ends = ", ".join(f"{way} {a:.0f} → {b:.0f} %" for way, a, b in zip(WAYS.values(), clean, left, strict=True))
    return f"mean rank-1 {ends}, chance {chance:.1f} %; minus sign noise: {tally(found)}", judged(found, margin=MARGIN)


def spoils(cards: Sequence[dict], attacks: list[str]) -> Computed | None:
    """Attacks against clean images: does the interval of every run lie below a fall by `MARGIN`, or above it?"""
    falls = [
        card["scores_8_bit"][way]["difference"]["rank1"]
        for name in attacks
        for card in _of(cards, name)
        for way in tables.DIRECTIONS
    ]
    if not falls:
        return None
    spoilt, spared = sum(one["high"] < -MARGIN for one in falls), sum(one["low"] > -MARGIN for one in falls)
    middles = [100 * one["difference"] for one in falls]
    text = (
        f"rank-1 under {' or '.join(attacks)} minus clean: {_points(min(middles))} to {_points(max(middles))} points; a"
        f" fall by {100 * MARGIN:.0f} excluded in {spared}, certain in {spoilt} of {len(falls)} runs and directions"
    )
    return text, HOLDS if spoilt == len(falls) else PARTLY if spoilt else NOT if 2 * spared > len(falls) else OPEN


def without(cards: Sequence[dict], attack: str, switches: list[dict], part: bool = True) -> Computed | None:
    """An attack against itself with one switch thrown, all else equal.

    part: whether a switch takes something away that should help, or (false) adds it.
    """
    own, pairs = _of(cards, attack), []
    for switch in switches:
        for base in own:
            for other in cards:
                alike = other["attack"] == {**base["attack"], **switch} != base["attack"]
                if alike and tables.same_victim(base, other):
                    pairs.append((str(switch), *((other, base) if part else (base, other))))
    found = compared(pairs)
    if not found:
        return None
    return f"rank-1 with it minus without it: {tally(found)}", judged(found)


def grows(cards: Sequence[dict], attack: str) -> Computed | None:
    """An attack at the next larger budget against itself, all else equal: it should leave a lower rank-1."""
    pairs = []
    own = _of(cards, attack)
    budgets = sorted({card["attack"]["eps"] for card in own})
    for small, large in pairwise(budgets):
        for one in own:
            for two in own:
                alike = {**one["attack"], "eps": large} == two["attack"] and one["attack"]["eps"] == small
                if alike and tables.same_victim(one, two):
                    pairs.append((f"{255 * small:.0f} to {255 * large:.0f}", one, two))
    found = compared(pairs)
    if not found:
        return None
    levels = ", ".join(f"{255 * eps:.0f}" for eps in budgets)
    return f"ε of {levels}/255, each minus the one before: {tally(found)}", judged(found)


def likeness(cards: Sequence[dict], attack: str) -> Computed | None:
    """SSIM and PSNR of attacked queries. They measure pixels, so whether anybody would notice stays open."""
    seen = [card["anatomy"][way] for card in _of(cards, attack) if "anatomy" in card for way in tables.DIRECTIONS]
    if not seen:
        return None
    ssim, psnr = (np.mean([one[name] for one in seen]) for name in ("ssim", "psnr"))
    return f"mean SSIM {ssim:.2f}, PSNR {psnr:.0f} dB; no observer was asked, in the paper or here", OPEN


def traced(cards: Sequence[dict], attack: str, trace: str, rises: bool = True) -> Computed | None:
    """A trace of the drop, clean to attacked, in every run and direction, beside what sign noise does to it."""
    ends = {}
    for name in (attack, "sign noise"):
        apart = [card["anatomy"][way] for card in _of(cards, name) if "anatomy" in card for way in tables.DIRECTIONS]
        ends[name] = np.array([[one[state][trace] for state in ("clean", "attacked")] for one in apart])
    own = ends[attack]
    if not len(own):
        return None
    sign = 1 if rises else -1
    moved = int((sign * (own[:, 1] - own[:, 0]) > 0).sum())
    text = f"{trace.replace('_', ' ')} {own[:, 0].mean():.2f} → {own[:, 1].mean():.2f}"
    if len(ends["sign noise"]):
        text += f" (sign noise: {ends['sign noise'][:, 1].mean():.2f})"
    text += f"; {'rises' if rises else 'falls'} in {moved} of {len(own)} runs and directions"
    return text, HOLDS if moved == len(own) else PARTLY if moved else NOT


def hinge(cards: Sequence[dict]) -> Computed | None:
    """How many noted steps of the bounded attack with the published hinge have any bracket above zero."""
    known = [c for c in cards if c["attack"] and c["attack"].get("form") == "hinge" and c["attack"]["quadruple"]]
    noted = [note["active"] for card in known for note in card["history"]]
    if not noted:
        return None
    active = sum(value > 0 for value in noted)
    text = f"brackets above zero in {active} of {len(noted)} noted steps of {len(known)} runs"
    return text, HOLDS if active == len(noted) else NOT if 2 * active < len(noted) else PARTLY


def sabotage(cards: Sequence[dict], form: str) -> Computed | None:
    """A network retrained as the text says: does the perturbation lower rank-1, or is the clean one as low?"""
    own = [
        card
        for card in cards
        if (card["modification"]["loss"], card["modification"]["form"]) == ("quadruple", form)
        and card["modification"]["start"] == "victim"
    ]
    found = compared((("", card, card) for card in own), "scores", "scores_clean")
    if not found:
        return None
    clean, noisy = (
        100 * np.mean([card[name][way]["rank1"] for card in own for way in tables.DIRECTIONS])
        for name in ("scores_clean", "scores")
    )
    chance = 100 * own[0]["scores"][tables.DIRECTIONS[0]]["chance"]["rank1"]["mean"]
    return (
        f"{form} form, retrained: rank-1 {clean:.1f} % on clean, {noisy:.1f} % on perturbed images, chance"
        f" {chance:.1f} %; perturbed minus clean: {tally(found)}",
        judged(found, margin=MARGIN),
    )


def benign(cards: Sequence[dict], module: str) -> Computed | None:
    """A network with an attention module after blocks 0 and 4 against one without, nobody attacking."""
    known = [card for card in cards if not card["modification"]["sfm"] and card["modification"]["noise"] == "none"]
    plain = [card for card in known if card["modification"]["attention"] == "none"]
    own = [
        card
        for card in known
        if card["modification"]["attention"] == module and list(card["modification"]["blocks"]) == [0, 4]
    ]
    parts = ("tier", "dataset", "victim", "seed")
    found = compared(
        (("", one, two) for one in plain for two in own if all(one[part] == two[part] for part in parts)), "scores"
    )
    if not found:
        return None
    return f"rank-1 with {module.upper()} minus without: {tally(found)}", judged(found, "higher")


def ablation(cards: Sequence[dict]) -> Computed | None:
    """The bounded attack with the published hinge and all parts against noise alone, where the ablation has run."""
    noise = [c for c in cards if c["attack"] and c["kind"] == "feature-ablation" and not c["attack"]["quadruple"]]
    noise = [card for card in noise if card["attack"]["attention"] == "none" and not card["attack"]["sfm"]]
    rows = [card for card in cards if card["kind"] == "feature-ablation" and card not in noise]
    names = ("attention", "sfm", "quadruple", "form")
    parts = [(str([card["attack"][name] for name in names]), card) for card in rows]
    found = compared(pair for label, card in parts for pair in _pairs(noise, [card], label))
    if not found:
        return None
    return f"rank-1 with a part or a pair minus noise alone: {tally(found)}", judged(found)


def carried(
    cards: Sequence[dict],
    attack: str,
    than: str = "sign noise",
    models: list[str] | None = None,
    identities: str | None = None,
) -> Computed | None:
    """A perturbation made on one network and scored on another, against another attack's on the same target.

    than: "sign noise" may come from any card of the target; another attack must have been made on the same surrogate.
    models: the networks that surrogate and target are among. identities: "shared" where the surrogate saw the target's
    training people, "others" where not. Any by default.
    """
    moved = [
        card
        for card in _of((card for card in cards if card.get("surrogate")), attack)
        if (not models or {card["victim"]["model"], card["surrogate"]["victim"]["model"]} <= {*models})
        and identities in (None, card["surrogate"]["identities"])
    ]
    pairs = []
    for other in _of(cards, than):
        for own in moved:
            alike = than == "sign noise" or other.get("surrogate") == own["surrogate"]
            if alike:
                ends = [f"{side['model']} {side['backbone']}" for side in (own["surrogate"]["victim"], own["victim"])]
                pairs += _pairs([other], [own], f"{' → '.join(ends)}, {own['surrogate']['identities']}")
    found = compared(pairs)
    if not found:
        return None
    return f"transferred {attack} minus {than}: {tally(found)}", judged(found)


def licensed(cards: Sequence[dict], attack: str, printed: dict) -> Computed | None:
    """A printed rank-1 of both directions against reruns on the same data: inside the intervals over people, or not.

    printed: `rank1`, percent, visible then infrared queries.
    """
    own = _of(cards, attack)
    if not own:
        return None
    said, inside = [], []
    for way, value in zip(tables.DIRECTIONS, printed["rank1"], strict=True):
        ends = []
        for card in own:
            scores = card["scores_8_bit"][way]
            values = scores["identity_rank1"]
            ends.append(metrics.bootstrap(values, np.arange(len(values)), scores["identity_queries"]))
        low, high = 100 * min(one.low for one in ends), 100 * max(one.high for one in ends)
        inside.append(low - 0.005 <= value <= high + 0.005)
        said.append(f"{WAYS[way]} printed {value:.2f}, here {low:.2f} to {high:.2f} %")
    return "; ".join(said), HOLDS if all(inside) else PARTLY if any(inside) else NOT


CARDS: dict[str, Callable] = {
    each.__name__: each
    for each in (
        ablation, against, benign, breaks, carried, grows, hinge, licensed, likeness, sabotage, spoils, traced,
        without,
    )
}  # fmt: skip

# Arithmetic. Each takes the printed numbers and returns text and verdict.


def _least(ranked: int, matches: int) -> float:
    """Return the average precision with all matches at the end of `ranked` images."""
    place = np.arange(1, matches + 1)
    return float((place / (ranked - matches + place)).mean())


def indoor_minimum(printed: dict) -> Computed:
    """The attacked indoor mAP against the least that single-shot indoor search allows (protocols: SYSU-MM01)."""
    # 56 people in cameras 1 and 2; camera 3's queries skip camera 2. 1,088 and 1,120 queries have a match.
    least = 100 * np.average([_least(56, 1), _least(112, 2)], weights=[1088, 1120])
    rows = {victim: printed["table1"][victim]["CMPS"]["mAP"][1] for victim in ("AGW", "DDAG")}
    below = [value < least - 0.005 for value in rows.values()]
    text = " and ".join(f"{value:.2f} % ({victim})" for victim, value in rows.items())
    return f"printed mAP {text}; with every match ranked last it is {least:.2f} %", NOT if all(below) else OPEN


def indoor_rank20(printed: dict) -> Computed:
    """The attacked indoor rank-20 against chance: people among the first 20 of 56, CMC by identity."""
    chance = 100 * 20 / 56
    rows = [printed["table1"][victim]["CMPS"]["rank20"][1] for victim in ("AGW", "DDAG")]
    text = f"printed {' and '.join(f'{value:.2f}' for value in rows)} %, no information about {chance:.0f} %"
    return f"{text}; that is possible only if matches are pushed back on purpose", OPEN


def over_sixty(printed: dict) -> Computed:
    """How many cells of FGSM and PGD keep a rank-1 above the stated bound, in Tables 1 and 2."""
    bound, counts = printed["fgsm_pgd_above"], {}
    for name in ("table1", "table2"):
        values = [v for rows in printed[name].values() for a in ("FGSM", "PGD") for v in rows[a]["rank1"]]
        counts[name] = sum(value > bound for value in values), len(values), min(values), max(values)
    text = "; ".join(
        f"Table {name[-1]}: {above} of {number} above {bound} % ({low:.1f} to {high:.1f})"
        for name, (above, number, low, high) in counts.items()
    )
    shares = [above / number for above, number, *_ in counts.values()]
    return text, HOLDS if min(shares) == 1 else PARTLY if max(shares) > 0 else NOT


def iterated_weaker(printed: dict) -> Computed:
    """In how many cells PGD, which iterates FGSM, leaves a higher rank-1 than FGSM."""
    cells = [
        (fgsm, pgd)
        for name in ("table1", "table2")
        for rows in printed[name].values()
        for fgsm, pgd in zip(rows["FGSM"]["rank1"], rows["PGD"]["rank1"], strict=True)
    ]
    weaker = sum(pgd > fgsm for fgsm, pgd in cells)
    return (
        f"PGD, which iterates FGSM, is printed as weaker than FGSM in {weaker} of {len(cells)} cells; steps, step size"
        " and guides of no baseline are given",
        OPEN,
    )


def test_people(printed: dict) -> Computed:
    """SYSU-MM01's own counts: all people less those of training and validation."""
    people = printed["sysu_people"]
    left = people["all"] - people["train"] - people["val"]
    stated = people["test_stated"]
    return f"{people['all']} − {people['train']} − {people['val']} = {left}, stated {stated}", (
        HOLDS if left == stated else NOT
    )


def two_tables(printed: dict) -> Computed:
    """Rank-1 at the default budget in Table 2 and in Table 6, which prints one decimal."""
    pairs = list(zip(printed["table2"]["AGW"]["CMPS"]["rank1"], printed["table6_eps8"], strict=True))
    unlike = [f"{exact:.2f} and {rounded:.1f}" for exact, rounded in pairs if abs(exact - rounded) > 0.05 + 1e-9]
    text = f"Tables 2 and 6: {'; '.join(unlike)} %" if unlike else "Tables 2 and 6 agree"
    return text, CONTRADICTS if unlike else HOLDS


def direction_label(printed: dict) -> Computed:
    """The clean rows labelled visible to infrared against what their authors report for infrared to visible."""
    rows = {
        victim: [printed["table1"][victim]["none"][score][0] for score in ("rank1", "mAP")]
        for victim in printed["official_infrared_to_visible"]
    }
    same = [values == printed["official_infrared_to_visible"][victim] for victim, values in rows.items()]
    text = "; ".join(f"{victim} {a:.2f} and {b:.2f}" for victim, (a, b) in rows.items())
    return (
        f"{text}: rank-1 and mAP are {'those' if all(same) else 'not those'} published for infrared to visible",
        NOT if all(same) else OPEN,
    )


def deen_baseline(printed: dict) -> Computed:
    """The clean LLCM rows against DEEN's paper and against the results that its page gives instead."""
    rows = printed["table3"]["DEEN"]["none"]
    clean = list(zip(rows["rank1"], rows["mAP"], strict=True))
    deen = printed["deen"]
    old, new = (np.abs(np.subtract(clean, known)).max() for known in (deen["paper"], deen["page"]))
    return (
        f"up to {old:.1f} points from the results in DEEN's paper, and up to {new:.1f} from those that its page has put"
        " in their place",
        HOLDS if new <= 0.1 else PARTLY if old <= 0.1 else NOT,
    )


def grey_of_infrared(printed: dict) -> Computed:
    """Luma of an image with three equal channels is the image."""
    generator = torch.Generator().manual_seed(0)
    infrared = torch.rand(4, 1, 16, 8, generator=generator).expand(-1, 3, -1, -1)
    change = (luma(infrared) - infrared).abs().max().item()
    same = change < 0.5 / 255
    return (
        "the weights sum to one, so an image of three equal channels"
        f" {'stays as it is: nothing is augmented' if same else f'changes by {change:.3f}'}",
        NOT if same else OPEN,
    )


def random_start(printed: dict) -> Computed:
    """How much of a start drawn from [0, 1] lies within a budget of eps levels, on either scale of pixels."""
    inside = printed["eps"] / 255
    outside = f"on a scale of 0 to 1, {100 * (1 - inside):.0f} % of such a start lies outside ε"
    return f"{outside}; on 0 to 255 none does, and all of it is positive", PARTLY


def ablation_columns(printed: dict) -> Computed:
    """Which columns of Tables 1 and 2 the full method's row of Table 5 repeats."""
    full = [
        [printed["table2"]["AGW"]["CMPS"][score][1] for score in ("mAP", "rank1")],
        [printed["table1"]["AGW"]["CMPS"][score][1] for score in ("mAP", "rank1")],
    ]
    same = full == printed["table5_full"]
    return (
        f"its last row {'repeats' if same else 'is not'} the infrared-to-visible columns of Tables 1 and 2; the other"
        " direction is missing, which is not said",
        PARTLY if same else OPEN,
    )


def success_rates(printed: dict) -> Computed:
    """Table 4: rates and margins; neither data nor what counts as success is defined."""
    cells = [(ours, other) for row in printed["table4"].values() for ours, other in row.values()]
    margins = [ours - other for ours, other in cells]
    return (
        f"{min(o for o, _ in cells):.1f} to {max(o for o, _ in cells):.1f} %; above Col.+Del. in"
        f" {sum(m > 0 for m in margins)} of {len(cells)} cells by {min(margins):.1f} to {max(margins):.1f} points, one"
        " run each; neither data set nor what counts as success is defined",
        OPEN,
    )


def free_channels(printed: dict) -> Computed:
    """Share of an infrared image's pixels with unequal channels under a free and under a tied perturbation."""
    generator = torch.Generator().manual_seed(0)
    infrared = torch.rand(1, 1, 32, 16, generator=generator).expand(-1, 3, -1, -1)
    free = (torch.randint(2, (3, 32, 16), generator=generator) * 2 - 1) * printed["eps"] / 255
    shares = []
    for delta in (free, tie(free)):
        seen = (infrared + delta).clamp(0, 1)
        shares.append(100 * (seen != seen[:, :1]).any(1).float().mean().item())
    return (
        f"three free signs a pixel leave {shares[0]:.0f} % of an infrared image's pixels with unequal channels, one"
        f" repeated channel {shares[1]:.0f} %: one comparison finds the published form",
        NOT if shares[0] > 0 == shares[1] else OPEN,
    )


def _sysu_all_search() -> tuple[np.ndarray, ...]:
    """Return query and gallery identities and cameras in the totals of all search, single shot (chapter 2)."""
    seen_by = {1: np.arange(56), 2: np.arange(56), 4: np.arange(96), 5: np.arange(3, 96)}
    gallery = sorted((person, camera) for camera, who in seen_by.items() for person in who.tolist())
    camera_3 = np.full(96, 20)
    camera_3[:32] -= 1
    camera_3[56:61] -= 1
    query = np.concatenate([np.repeat(np.arange(96), camera_3), np.repeat(np.arange(96), 20)])
    people, cameras = np.array(gallery).T
    return query, people, np.repeat([3, 6], [camera_3.sum(), 1920]), cameras


@cache
def _uninformed() -> dict[str, list[tuple[float, float]]]:
    """Return, by data set, the span of rank-1 and of mAP, percent, of single rankings without information.

    The queries of a person share an order, in which the images of a gallery person stand anywhere, half together or
    together: the widest of chapter 10's forms.
    """
    regdb = np.repeat(np.arange(206), 10)
    layouts = {"RegDB": ("regdb", regdb, regdb, None, None), "SYSU-MM01": ("sysu", *_sysu_all_search())}
    rng, found = np.random.default_rng(0), {}
    for name, (protocol, query, gallery, cameras, gallery_cameras) in layouts.items():
        cameras = np.zeros_like(query) if cameras is None else cameras
        # Queries of one person and camera score alike, so each such pair asks once.
        (who, camera), counts = np.unique(np.stack([query, cameras]), axis=1, return_counts=True)
        people, ends = query.max() + 1, []
        for together in (0, 0.5, 1):
            runs = []
            for _ in range(40):
                order = np.float32((1 - together + 1e-9) ** 0.5) * rng.standard_normal(
                    (people, len(gallery)), np.float32
                )
                order += np.float32(together**0.5) * rng.standard_normal((people, people), np.float32)[:, gallery]
                got = metrics.evaluate(order[who], who, gallery, camera, gallery_cameras, protocol)
                weights = counts[got.valid]
                runs.append([np.average(each, weights=weights) for each in (got.per_query_rank1, got.per_query_ap)])
            ends.append(100 * np.quantile(runs, [0.025, 0.975], axis=0))
        found[name] = list(zip(np.min(ends, axis=0)[0], np.max(ends, axis=0)[1], strict=True))
    return found


def _at_floor(row: dict, name: str) -> list[bool]:
    ends = _uninformed()[name]
    return [
        low - 0.005 <= row[score] <= high + 0.005 for score, (low, high) in zip(("rank1", "mAP"), ends, strict=True)
    ]


def final_floor(printed: dict) -> Computed:
    """The full method's final scores against rankings that know nothing."""
    rows, ends = printed["final"], _uninformed()
    inside = [one for name in ends for one in _at_floor(rows[name]["FSAM"], name)]
    text = "; ".join(
        f"{name}: rank-1 {rows[name]['FSAM']['rank1']:.2f} (without information {ends[name][0][0]:.2f} to"
        f" {ends[name][0][1]:.2f})"
        for name in ends
    )
    return (
        f"{text}; {sum(inside)} of {len(inside)} rank-1 and mAP lie where no information lands, and measure no"
        " strength",
        NOT if all(inside) else PARTLY if any(inside) else OPEN,
    )


def attention_rows(printed: dict) -> Computed:
    """SE and ECA in place of FSAM: all three rows against the floor, and their margins against its width."""
    rows, ends = printed["final"], _uninformed()
    inside = [one for name in ends for module in ("SE", "ECA") for one in _at_floor(rows[name][module], name)]
    margins = [rows[n][m]["rank1"] - rows[n]["FSAM"]["rank1"] for n in ends for m in ("SE", "ECA")]
    width = max(high - low for (low, high), _ in ends.values())
    return (
        f"{sum(inside)} of {len(inside)} scores of the SE and ECA rows lie at chance too; rank-1 margins"
        f" {min(margins):.2f} to {max(margins):.2f} points, where chance alone spans {width:.2f}; one training each",
        OPEN,
    )


def ablation_order(printed: dict) -> Computed:
    """Table 3: does each further part lower rank-1, and do the last steps end at chance?"""
    rows, told, all_pairs, at_floor = printed["table3_ablation"], 0, 0, 0
    floor = _uninformed()
    for column, name in enumerate(("SYSU-MM01", "RegDB")):
        for fewer, lower in rows.items():
            for more, value in rows.items():
                one, two = ({*filter(None, key.split("+"))} for key in (fewer, more))
                if one < two and len(two) == len(one) + 1:
                    all_pairs += 1
                    told += value[column] < lower[column]
                    at_floor += value[column] <= floor[name][0][1] + 0.005
    return (
        f"rank-1 falls in {told} of {all_pairs} steps that add one part; {at_floor} of them end at chance; one run"
        " each, no interval",
        PARTLY if told else NOT,
    )


def clean_rows(printed: dict) -> Computed:
    """The clean rank-1 of one victim in Tables 1 and 3."""
    pairs = printed["clean_tables_1_and_3"]
    text = "; ".join(f"{name} {one:.2f} and {two:.2f} %" for name, (one, two) in pairs.items())
    unlike = any(one != two for one, two in pairs.values())
    return f"clean rank-1 of AGW in Tables 1 and 3: {text}", CONTRADICTS if unlike else HOLDS


def clean_map(printed: dict) -> Computed:
    """The first mAP of the ablation, in the text and in the table."""
    text, table = printed["ablation_clean_map"]
    return f"{text:.2f} % in the text, {table:.2f} % in the table", CONTRADICTS if text != table else HOLDS


def falling_cmc(printed: dict) -> Computed:
    """Rank-10 is at least rank-1; the answers' RegDB columns say otherwise."""
    rank1, rank10 = printed["answer_regdb_before"]
    return (
        f"before the attack rank-1 {rank1:.2f} and rank-10 {rank10:.2f} %; a CMC cannot fall"
        + ("" if rank10 < rank1 else ", and does not"),
        CONTRADICTS if rank10 < rank1 else HOLDS,
    )


@cache
def _agw() -> tuple[int, int, float]:
    """Return AGW's parameters without its classifier, those of FSAM twice and SFM, and multiplications of 64 images."""
    with torch.device("meta"):  # shapes only: nothing is drawn or computed
        agw = models.build("agw", num_identities=206, backbone="resnet50").eval()
        channels = attention.block_channels(agw)
        heads = [
            attention.build_attention(name, channels[block]) for name, block in (("fsam", 0), ("fsam", 4), ("sfm", 4))
        ]

    def size(*modules) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        agw(torch.zeros(64, 3, 288, 144, device="meta"), Modality.VISIBLE)
    return size(agw) - size(agw.classifier), size(*heads), counter.get_total_flops() / 2


def parameters(printed: dict) -> Computed:
    """Do AGW and AGW with the modules print as the same number of millions?"""
    plain, added, _ = _agw()
    stated = printed["parameters_million"]
    millions = [plain / 1e6, (plain + added) / 1e6]
    fit = all(abs(value - stated) < 0.005 for value in millions)
    return (
        f"AGW without classifier {plain:,}, with FSAM twice and SFM {plain + added:,}: both print as {stated}M"
        if fit
        else f"{millions[0]:.2f}M and {millions[1]:.2f}M",
        HOLDS if fit else NOT,
    )


def one_forward(printed: dict) -> Computed:
    """What network, and how many images, the printed cost belongs to."""
    *_, multiplications = _agw()
    stated = printed["giga_flops"]["before"]
    batch, one = multiplications / 1e9, multiplications / 64e9
    fits = abs(batch / stated - 1) < 0.02
    return (
        f"one image of 288 × 144 takes {one:.1f} G multiplications, 64 images {batch:.0f} G; printed {stated} G for one"
        " forward pass",
        PARTLY if fits else NOT,
    )


def cost_of_nothing(printed: dict) -> Computed:
    """FGSM and UAP leave the network as it is, but its forward pass is printed with another cost."""
    cost = printed["giga_flops"]
    more = {name: cost[name] - cost["before"] for name in ("FGSM", "UAP", "ours")}
    text = ", ".join(f"{name} {value:+.2f} G" for name, value in more.items())
    return (
        f"{text} at one number of parameters; FGSM and UAP change images alone",
        CONTRADICTS if more["FGSM"] and more["UAP"] else HOLDS,
    )


def phase_origin(printed: dict) -> Computed:
    """Weighting a phase: does the result move with the image?"""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 1, 16, 8, generator=generator)

    def weighted(x: torch.Tensor) -> torch.Tensor:
        amplitude, phase = frequency.decompose(x)
        return frequency.recombine(amplitude, 0.5 * phase)

    moved = [torch.roll(weighted(maps), (3, 2), (-2, -1)), weighted(torch.roll(maps, (3, 2), (-2, -1)))]
    apart = ((moved[0] - moved[1]).norm() / moved[0].norm()).item()
    return (
        f"halve every phase: shifting before or after gives maps {100 * apart:.0f} % apart, so a weight has no place of"
        " its own in the image",
        NOT if apart > 0.01 else HOLDS,
    )


def silent_hinge(printed: dict) -> Computed:
    """A case in which the loss is zero, with no gradient, while each person's two centres are one point."""
    centres = printed["alpha"] * torch.eye(4)
    visible, infrared = centres.clone().requires_grad_(), centres.clone().requires_grad_()
    loss, active = quadruple.quadruple_loss(visible, infrared, visible, infrared, alpha=printed["alpha"])
    loss.backward()
    slope = max(visible.grad.abs().max().item(), infrared.grad.abs().max().item())
    silent = loss.item() == slope == active.item() == 0
    return (
        f"people {printed['alpha'] * 2**0.5:.2f} apart with equal visible and infrared centres: loss {loss.item():.0f},"
        f" gradient {slope:.0f}; the published minimum needs no gap between the spectra",
        NOT if silent else OPEN,
    )


def corrected_equation(printed: dict) -> Computed:
    """The corrected equation 15 on one sample a person against the class-centre loss."""
    generator = torch.Generator().manual_seed(0)
    four = torch.randn(4, 5, 8, generator=generator) * 0.05
    centre = quadruple.quadruple_loss(*four, alpha=printed["alpha"]).loss
    sample = quadruple.pairwise_quadruple_loss(*four, torch.arange(5), alpha=printed["alpha"]).loss
    apart = abs((centre - sample) / centre).item()
    return (
        f"with one image a person the two differ by {100 * apart:.4f} %: samples stand where centres stood",
        HOLDS if apart < 1e-5 and centre > 0 else NOT,
    )


ARITHMETIC: dict[str, Callable] = {
    each.__name__: each
    for each in (
        ablation_columns, ablation_order, attention_rows, clean_map, clean_rows, corrected_equation, cost_of_nothing,
        deen_baseline, direction_label, falling_cmc, final_floor, free_channels, grey_of_infrared, indoor_minimum,
        indoor_rank20, iterated_weaker, one_forward, over_sixty, parameters, phase_origin, random_start, silent_hinge,
        success_rates, test_people, two_tables,
    )
}  # fmt: skip

# The page.

INTRODUCTION = """# The claims ledger

Two papers are at the centre of this book: CMPS {{cite}}`gong2024cmps` and the feature-level attack
{{cite}}`yang2024feature`. This page lists what they state that can be checked, {number} statements in our words, and
where each one stands. It is written from `book/claims.toml` and the committed {{term}}`run cards <run card>`;
`vireid-lite book --sync` writes it again, and a test fails where a verdict is not what its evidence gives.

The verdicts are about statements, never about people. There are five:

| Verdict | It means | Claims |
|---|---|--:|
| **holds** | the evidence shows it, everywhere we looked | {counts[holds]} |
| **holds partly** | in some settings, or in one of two meanings | {counts[holds partly]} |
| **does not** | arithmetic, the text or the code excludes it, or our runs show that it is not general | \
{counts[does not]} |
| **open without licensed data** | nothing we may run decides it, or nothing has been run yet | \
{counts[open without licensed data]} |
| **contradicts itself** | two places of one paper exclude each other | {counts[contradicts itself]} |

How to read a row:

- **Synthetic people** can show that a mechanism occurs, or that a statement is not general. They never say that a
  number on SYSU-MM01, RegDB or LLCM holds or fails. Such a number stays open unless arithmetic or the official code
  settles it, and *full* cards of somebody with a licence can settle it
  ({{doc}}`how data sets are obtained <data>`).
- **Lower** and **higher** compare rank-1 on the same queries of the same victims, 8 bits, seeds together. A setting is
  a difficulty of the data, a form of the infrared perturbation (free or {{term}}`tied <tied perturbation>`) and a
  direction. It counts only where the 95 % interval over people excludes zero and every seed has the same sign, and
  not where both sides are at {{term}}`chance <chance level>`.
- **Not told apart** is no evidence that two things are equal. Where no setting speaks for a claim, and no more than
  half of them against it, it stays open. A ranking counts as *spoilt* where rank-1 falls clear of that under noise of
  the same size, and as not spoilt where the interval excludes a fall by {margin:.0f} points.
- **Image-specific attacks** (FGSM, PGD, M-FGSM, ODFA, LTA and others) have the network at hand for every query, a
  universal one has not. The papers rank the two against each other, and so do the rows about these tables.
- **Pending** names the command that makes the missing cards.
- **Baselines** are tuned equally here, with three tries each on validation people. How the papers tuned theirs is not
  stated.
- **Answers** of the authors are printed under their paper's table, in their own words
  ({{doc}}`how to give one <responsible_use>`).
"""


def page(root: Path) -> str:
    """Return the Markdown of `book/claims.md`, written from `book/claims.toml` and the cards in `book/results`.

    root: the repository. Raises InputError as `read_ledger`, `check` and `row` do.
    """
    ledger = read_ledger(root / "book" / "claims.toml")
    return render(ledger, check(ledger, read_cards(root / "book" / "results")), root)


def render(ledger: Ledger, found: dict[str, Finding], root: Path) -> str:
    """Return the page of a ledger and its findings by id; root: the repository, whose chapters are linked."""
    chapters = {int(path.stem[:2]): path.stem for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))}
    counts = dict.fromkeys(VERDICTS, 0) | Counter(claim.verdict for claim in ledger.claims)
    parts = [INTRODUCTION.format(number=len(ledger.claims), counts=counts, margin=100 * MARGIN)]
    for paper, title in ledger.papers.items():
        lines = [
            "| | Statement, and where it stands | Verdict | What ran, on which data | Evidence |",
            "|---|---|---|---|---|",
        ]
        lines += [row(claim, found[claim.id], chapters) for claim in ledger.claims if claim.paper == paper]
        answers = [answered(claim) for claim in ledger.claims if claim.paper == paper and claim.answer.strip()]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n" + "".join(answers))
    return "\n".join(parts)


def answered(claim: Claim) -> str:
    """Return the answer of the authors to a claim as a quotation under its id."""
    lines = claim.answer.strip().splitlines()
    return f"\n**The authors on {claim.id}:**\n\n" + "".join(f"> {line}".rstrip() + "\n" for line in lines)


def row(claim: Claim, finding: Finding, chapters: dict[int, str]) -> str:
    """Return a claim's row of the table. Raises InputError where its chapter does not exist."""
    ran = finding.data
    if claim.chapter:
        if claim.chapter not in chapters:
            raise InputError(f"claims: {claim.id} names chapter {claim.chapter}, which does not exist")
        ran += f"; [chapter {claim.chapter}](../notebooks/{chapters[claim.chapter]})"
    verdict = f"**{claim.verdict}**" + " (synthetic)" * ("synthetic" in finding.data and claim.verdict != OPEN)
    cells = (claim.id, f"{claim.statement} ({claim.where})", verdict, ran, finding.text)
    if any(re.search(r"[|\n]", cell) for cell in cells):
        raise InputError(f"claims: {claim.id} has a bar or a line break in a cell; write it otherwise")
    return f"| {' | '.join(cells)} |"
