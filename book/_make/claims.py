"""The claims ledger: what the two papers state, what was run or computed here, and where each statement stands.

`book/claims.toml` holds the claims, their verdicts, the printed numbers and every sentence; `book/claims.md` is written
from it. What can be recomputed is recomputed: one function a family of claims returns numbers, which fill the sentence
and give the verdict, and a verdict that the run cards or the arithmetic do not give is an error.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, reduce
from inspect import signature
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vireid_lite import frequency, losses, metrics, models
from vireid_lite.attacks.budget import luma, tie
from vireid_lite.chapters.uninformed import LAYOUTS, one_order_a_person
from vireid_lite.data import Modality
from vireid_lite.errors import InputError
from vireid_lite.models import attention, insertion
from vireid_lite.study import tables
from vireid_lite.study.cards import is_stale, read_cards
from vireid_lite.study.tables import DIRECTIONS

HOLDS, PARTLY, NOT = "holds", "holds partly", "does not"
OPEN, CONTRADICTS = "open without licensed data", "contradicts itself"
VERDICTS = (HOLDS, PARTLY, NOT, OPEN, CONTRADICTS)
# A "number" belongs to a licensed data set; a "mechanism" can be shown or refuted anywhere; "text" is the paper's own
# wording, equations, tables and code.
ABOUT = ("number", "mechanism", "text")
KINDS = ("arithmetic", "cards", "code", "text")
MARGIN = 0.1  # of rank-1: who spoils a ranking costs more than this
ROUNDING = 0.005  # half a unit of the last printed digit

Computed = tuple[dict, str]  # numbers by name, and the verdict
Pair = tuple[str, dict, dict]  # what is compared, the card compared with, the card in question


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
    """The data file: printed numbers, papers, commits, usual card selection, sentences by function, claims."""

    printed: dict
    papers: dict
    repositories: dict
    selection: dict
    sentences: dict
    introduction: str
    claims: list[Claim]


class Finding(NamedTuple):
    """What the evidence says, the verdict that follows from it, and the data it is about."""

    text: str
    verdict: str
    data: str


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
    parts = {name: content.get(name, {}) for name in ("printed", "papers", "repositories", "selection", "sentences")}
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(content.get("claim", []), start=1):
        here = f"{path.name}: claim {entry.get('id', f'number {number}')}"
        if problem := sorted(({*Claim._fields} ^ entry.keys()) - Claim._field_defaults.keys()):
            raise InputError(f"{here}: field {problem[0]!r} is {'unknown' if problem[0] in entry else 'missing'}")
        claim = Claim(**entry)
        for what, value, known in (
            ("verdict", claim.verdict, VERDICTS),
            ("about", claim.about, ABOUT),
            ("kind of evidence", claim.evidence.get("kind"), KINDS),
            ("paper", claim.paper, parts["papers"]),
        ):
            if value not in known:
                raise InputError(f"{here}: {what} {value!r} is none of: {', '.join(known)}")
        if claim.id in claims:
            raise InputError(f"{here}: this id comes twice; give each claim its own")
        with _refusing(f"{here}: its statement asks for {{}}, which is not under printed"):
            claims[claim.id] = claim._replace(statement=claim.statement.format_map(parts["printed"]))
    return Ledger(**parts, introduction=content.get("introduction", ""), claims=[*claims.values()])


@contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Say in one line what the data file asks for and cannot have; the error stands at the message's braces."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(message.format(error)) from None


def find(claim: Claim, ledger: Ledger, cards: Sequence[dict]) -> Finding:
    """Return what a claim's evidence says today: recomputed from the cards or by arithmetic, or as the file quotes it.

    cards: all run cards, as `cards.read_cards` gives them. Raises InputError for evidence that cannot be resolved.
    """
    kind, options = claim.evidence["kind"], {key: value for key, value in claim.evidence.items() if key != "kind"}
    refused = f"claims: the evidence of {claim.id} cannot be resolved ({{}}); see claims.py"
    with _refusing(refused):
        if kind in ("code", "text"):
            return _quoted(claim, ledger, **options)
        name, text = options.pop("function"), options.pop("text", "")
        if kind == "arithmetic":
            so, verdicts = options.pop("so"), options.pop("verdicts")
            call = partial(ARITHMETIC[name], ledger.printed, **options)
        else:
            text = text or ledger.sentences.get(options.pop("sentence", name), "")
            wanted, command = {**ledger.selection, **options.pop("cards")}, options.pop("command")
            chosen = [card for card in cards if _matches(card, wanted)]
            if "printed" in options:
                options["printed"] = _cells(ledger.printed, [options["printed"]])
            call = partial(CARDS[name], chosen, **options)
        signature(call).bind()
    found = call()
    if found is None:
        return Finding(f"pending: `{command}`", OPEN, f"{wanted['dataset.name']}, not run yet")
    with _refusing(refused):
        numbers, verdict = found if kind == "cards" else (found, share(np.ravel(found[so]), verdicts))
        text = text.format_map(ledger.printed | options | numbers)
    return Finding(text, verdict, _ground(chosen) if kind == "cards" else "arithmetic")


def _quoted(claim: Claim, ledger: Ledger, text: str, places: list[str], repository: str = "") -> Finding:
    """Return the finding of a claim whose evidence stands in the text, or in a repository's code."""
    if not text or len(places) < 1 + (not repository and claim.verdict == CONTRADICTS):
        raise KeyError("places")
    if (claim.evidence["kind"] == "code") != bool(repository):
        raise KeyError("repository")
    if not repository:
        return Finding(f"{'; '.join(places)}: {text}", claim.verdict, "the text")
    named = ", ".join(f"`{place}`" for place in places)
    return Finding(f"{named}: {text}", claim.verdict, f"code of {repository} at `{ledger.repositories[repository]}`")


def check(ledger: Ledger, cards: Sequence[dict]) -> dict[str, Finding]:
    """Return the finding of every claim by id.

    Raises InputError where a verdict is not the one its evidence gives, or where synthetic images are to settle a
    number of a licensed data set.
    """
    found = {claim.id: find(claim, ledger, cards) for claim in ledger.claims}
    for claim in ledger.claims:
        finding = found[claim.id]
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
    for path, values in wanted.items():
        value = reduce(lambda part, key: (part or {}).get(key), path.split("."), card)
        if value not in (values if isinstance(values, list) else [values]):
            return False
    return not card.get("split") and not card["dataset"].get("thermal")


def _ground(cards: Sequence[dict]) -> str:
    """Say on which data, sizes and seeds some cards were made."""
    difficulties: dict[str, set] = {}
    for card in cards:
        difficulties.setdefault(card["dataset"]["name"], set()).add(card["dataset"].get("difficulty", ""))
    data = [name + (f" ({' and '.join(sorted(known))})" if any(known) else "") for name, known in difficulties.items()]
    tiers, seeds = sorted({card["tier"] for card in cards}), {card["seed"] for card in cards}
    stale = sum(map(is_stale, cards))
    return (
        f"{', '.join(data)}, tier {' and '.join(tiers)}, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
        + f", {stale} of {len(cards)} cards stale" * (stale > 0)
    )


# Verdicts.


def share(hits: Sequence[bool], verdicts: Sequence[str] = (HOLDS, PARTLY, NOT)) -> str:
    """Return the verdict on what is so in all cases, in some, or in none; of two, the second is on all but all."""
    return verdicts[0 if all(hits) else len(verdicts) // 2 if any(hits) else -1]


def compared(pairs: Iterable[Pair]) -> dict[tuple, tuple]:
    """Return {setting: (outcome, difference)} of rank-1, second card minus first; pairs of one victim each.

    A setting is a label, tier, data set, victim, surrogate, infrared form and direction; its seeds go together. The
    outcome is "lower" or "higher" where the paired interval over people excludes zero and every seed has that sign,
    else "not told apart"; "at chance" where neither card is above it.
    """
    groups: dict[tuple, list] = {}
    for (label, other, own), way in product(pairs, DIRECTIONS):
        source = own.get("surrogate") or {"victim": {}}
        made_on = source["victim"].get("model"), source["victim"].get("backbone"), source.get("identities")
        tied = bool((own["attack"] or {}).get("tied"))
        key = label, own["tier"], str(own["dataset"]), str(own["victim"]), made_on, tied, way
        chance = own["scores"][way]["chance"]["rank1"]["high"]
        groups.setdefault(key, []).append((other["scores_8_bit"][way], own["scores_8_bit"][way], chance))
    found = {}
    for key, group in groups.items():
        before, after, (chance, *_) = zip(*group, strict=True)
        together = tables.paired(before, after)
        signs = {np.sign(two["rank1"] - one["rank1"]) for one, two in zip(before, after, strict=True)}
        outcome = "not told apart"
        if max(scores["rank1"] for scores in before + after) <= chance:
            outcome = "at chance"
        elif signs == {-1} and together.high < 0:
            outcome = "lower"
        elif signs == {1} and together.low > 0:
            outcome = "higher"
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


def settled(pairs: Sequence[Pair], wanted: str = "lower", spoilt: bool = False, **numbers) -> Computed | None:
    """Return how far rank-1 lies apart, in how many settings it is told apart, and the verdict; None without pairs.

    wanted: as of `judged`. spoilt: whether the statement means a fall by `MARGIN`. numbers: more than these, rank-1 of
    both sides, and chance, in percent.
    """
    if not (found := compared(pairs)):
        return None
    counts = Counter(outcome for outcome, _ in found.values())
    outcomes = [one for one in ("lower", "higher", "not told apart", "at chance") if counts[one]]
    said = ", ".join(f"{outcome} in {counts[outcome]}" for outcome in outcomes)
    tally = f"{_span(difference.difference for _, difference in found.values())}; {said} of {len(found)} settings"
    _, others, cards = zip(*pairs, strict=True)
    before, after = (_rank1(side, "scores_8_bit").mean() for side in (others, cards))
    chance = 100 * cards[0]["scores"][DIRECTIONS[0]]["chance"]["rank1"]["mean"]
    numbers |= {"tally": tally, "before": before, "after": after, "chance": chance}
    return numbers, judged(found, wanted, MARGIN if spoilt else None)


def _span(differences: Iterable[float]) -> str:
    """Write the least and the largest of some fractions in points, with a sign."""
    points = [f"{100 * value:+z.1f}".replace("-", "−") for value in sorted(differences)]
    return f"{points[0]} to {points[-1]} points"


# Evidence in run cards. Each takes the selected cards and returns numbers and verdict, or None where nothing has run.


def _of(cards: Iterable[dict], label: str) -> list[dict]:
    """Return the attack cards that tables print under this label."""
    return [card for card in cards if card["attack"] and tables.label(card["attack"]) == label]


def _rank1(cards: Iterable[dict], name: str) -> np.ndarray:
    """Return rank-1 of some scores, percent: (card, direction)."""
    return 100 * np.array([[card[name][way]["rank1"] for way in DIRECTIONS] for card in cards])


def _anatomy(cards: Iterable[dict], label: str) -> list[dict]:
    """Return what an attack's drop consists of, by card and direction."""
    return [card["anatomy"][way] for card in _of(cards, label) if "anatomy" in card for way in DIRECTIONS]


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
    pairs = [pair for pair in _pairs(cards, others, str(switch)) if pair[1]["attack"] != pair[2]["attack"]]
    return [pair for pair in pairs if pair[2]["attack"] == {**pair[1]["attack"], **switch}]


def against(
    cards: Sequence[dict], attack: str, than: list[str], where: dict | None = None, spoilt: bool = False
) -> Computed | None:
    """An attack against others on the same victims: it should leave a lower rank-1 than each of them.

    where: what the attack's cards must match besides, such as {"kind": "transfer"}: made on one network, scored on
    another. Sign noise may then come from any card of the target; another attack is one made on the same surrogate.
    """
    own = [card for card in _of(cards, attack) if _matches(card, where or {})]
    pairs = [pair for name in than for pair in _pairs(_of(cards, name), own, name)]
    clean, left = (_rank1(own, name).mean(0) if own else None for name in ("clean", "scores_8_bit"))
    return settled(pairs, spoilt=spoilt, than=" or ".join(than), clean=clean, left=left)


def selected(
    cards: Sequence[dict], own: dict, other: dict, scores: list[str], wanted: str = "lower", spoilt: bool = False
) -> Computed | None:
    """Cards that match `own` against those of the same victim that match `other`; each attack is a setting of its own.

    scores: which ones of the cards in `own` and in `other` are compared.
    """
    cards, others = (
        [{**card, "scores_8_bit": card[name]} for card in cards if _matches(card, values)]
        for values, name in zip((own, other), scores, strict=True)
    )
    return settled([pair for card in cards for pair in _pairs(others, [card], str(card["attack"]))], wanted, spoilt)


def without(cards: Sequence[dict], attack: str, switches: list[dict], part: bool = True) -> Computed | None:
    """An attack against itself with one switch thrown, all else equal.

    part: whether a switch takes something away that should help, or (false) adds it.
    """
    pairs = [pair for switch in switches for pair in _switched(_of(cards, attack), cards, switch)]
    return settled([(label, other, own) if part else (label, own, other) for label, own, other in pairs])


def grows(cards: Sequence[dict], attack: str) -> Computed | None:
    """An attack at the next larger budget against itself, all else equal: it should leave a lower rank-1."""
    own = _of(cards, attack)
    budgets = sorted({card["attack"]["eps"] for card in own})
    at = {eps: [card for card in own if card["attack"]["eps"] == eps] for eps in budgets}
    pairs = [pair for small, large in pairwise(budgets) for pair in _switched(at[small], at[large], {"eps": large})]
    return settled(pairs, levels=", ".join(f"{255 * eps:.0f}" for eps in budgets))


def spoils(cards: Sequence[dict], attacks: list[str]) -> Computed | None:
    """Attacks against clean images: does the interval of every run lie below a fall by `MARGIN`, or above it?"""
    own = [card for name in attacks for card in _of(cards, name)]
    falls = [card["scores_8_bit"][way]["difference"]["rank1"] for card, way in product(own, DIRECTIONS)]
    if not falls:
        return None
    spoilt, spared = [one["high"] < -MARGIN for one in falls], sum(one["low"] > -MARGIN for one in falls)
    numbers = {"attacks": " or ".join(attacks), "span": _span(one["difference"] for one in falls)}
    numbers |= {"margin": 100 * MARGIN, "spared": spared, "spoilt": sum(spoilt), "runs": len(falls)}
    return numbers, share(spoilt, (HOLDS, PARTLY, NOT if 2 * spared > len(falls) else OPEN))


def likeness(cards: Sequence[dict], attack: str) -> Computed | None:
    """SSIM and PSNR of attacked queries. They measure pixels, so whether anybody would notice stays open."""
    seen = _anatomy(cards, attack)
    return ({name: np.mean([one[name] for one in seen]) for name in ("ssim", "psnr")}, OPEN) if seen else None


def traced(cards: Sequence[dict], attack: str, trace: str, rises: bool = True) -> Computed | None:
    """A trace of the drop, clean to attacked, in every run and direction, beside what sign noise does to it."""
    own, noise = (_anatomy(cards, name) for name in (attack, "sign noise"))
    if not own or not noise:
        return None
    before, after = (np.array([one[state][trace] for one in own]) for state in ("clean", "attacked"))
    moved = after > before if rises else after < before
    numbers = {"before": before.mean(), "after": after.mean(), "moved": moved.sum(), "runs": len(own)}
    return numbers | {"noise": np.mean([one["attacked"][trace] for one in noise])}, share(moved)


def hinge(cards: Sequence[dict]) -> Computed | None:
    """How many noted steps of the bounded attack with the published hinge have any bracket above zero."""
    active = [note["active"] > 0 for card in cards for note in card["history"]]
    if not active:
        return None
    numbers = {"active": sum(active), "noted": len(active), "runs": len(cards)}
    return numbers, share(active, (HOLDS, NOT if 2 * sum(active) < len(active) else PARTLY, NOT))


def licensed(cards: Sequence[dict], attack: str, printed: list[float]) -> Computed | None:
    """A printed rank-1 of both directions against reruns on the same data: inside the intervals over people, or not.

    printed: percent, visible then infrared queries.
    """
    ends = []
    for card, way in product(_of(cards, attack), DIRECTIONS):
        scores = card["scores_8_bit"][way]
        people = np.arange(len(scores["identity_rank1"]))
        ends.append(metrics.bootstrap(scores["identity_rank1"], people, scores["identity_queries"])[1:])
    if not ends:
        return None
    ends = 100 * np.reshape(ends, (-1, 2, 2))  # run, direction, end
    low, high = ends[..., 0].min(0), ends[..., 1].max(0)
    inside = (low - ROUNDING <= printed) & (printed <= high + ROUNDING)
    return {"values": printed, "low": low, "high": high}, share(inside)


CARDS = {each.__name__: each for each in (against, grows, hinge, licensed, likeness, selected, spoils, traced, without)}


# Arithmetic. Each takes the printed numbers and returns numbers, some of which say whether something is so, in one case
# or in several. The data file names the one that counts (`so`) and the verdicts: where so in all, in some, in none.


def _cells(printed: dict, paths: Iterable[str]) -> np.ndarray:
    """Return the numbers at dotted paths, one after the other; a star stands for every row."""
    found = []
    for path in paths:
        parts = [printed]
        for key in path.split("."):
            if key == "*":
                parts = [row for part in parts for row in part.values()]
            else:
                parts = [part[int(key) if isinstance(part, list) else key] for part in parts]
        found += [np.ravel(part) for part in parts]
    return np.concatenate(found)


def cells(printed: dict, one: list[str], other: list[str], within: float = 0) -> dict:
    """Cells of one place against those of another: where are they unlike, or above?

    one, other: paths as of `_cells`. within: how far rounding may put them apart.
    """
    values = _cells(printed, one)
    margins = values - _cells(printed, other)
    above, unlike = margins > within + 1e-9, abs(margins) > within + 1e-9
    ends = {"low": values.min(), "high": values.max(), "least": margins.min(), "most": margins.max()}
    return ends | {"above": above, "higher": above.sum(), "unlike": unlike, "cells": unlike.size}


def over_sixty(printed: dict) -> dict:
    """Which cells of FGSM and PGD keep a rank-1 above the stated bound, in Tables 1 and 2."""
    values = np.array([_cells(printed, [f"table{n}.*.FGSM.rank1", f"table{n}.*.PGD.rank1"]) for n in (1, 2)])
    above = values > printed["fgsm_pgd_above"]
    ends = {"low": values.min(1), "high": values.max(1)}
    return ends | {"above": above, "higher": above.sum(1), "cells": values.shape[1]}


def deen_baseline(printed: dict) -> dict:
    """The clean LLCM rows against DEEN's paper and against the results that its page gives instead."""
    rows = printed["table3"]["DEEN"]["none"]
    clean = np.transpose([rows["rank1"], rows["mAP"]])
    apart = {place: np.abs(clean - known).max() for place, known in printed["deen"].items()}
    return apart | {"alike": [apart["page"] <= 0.1, min(apart.values()) <= 0.1]}


def _least(ranked: int, matches: int) -> float:
    """Return the average precision with all matches at the end of `ranked` images."""
    place = np.arange(1, matches + 1)
    return float((place / (ranked - matches + place)).mean())


def sysu(printed: dict) -> dict:
    """SYSU-MM01: people left for the test; chance of indoor search, and the least that its single shot allows."""
    people = printed["sysu_people"]
    left = people["all"] - people["train"] - people["val"]
    # 56 people in cameras 1 and 2; camera 3's queries skip camera 2. 1,088 and 1,120 queries have a match.
    least = 100 * np.average([_least(56, 1), _least(112, 2)], weights=[1088, 1120])
    below = _cells(printed, ["table1.*.CMPS.mAP.1"]) < least - ROUNDING
    numbers = {"least": least, "below": below, "chance_rank20": 100 * 20 / 56}  # CMC by identity: 20 of 56 people
    return numbers | {"left": left, "alike": left == people["test_stated"]}


def pixels(printed: dict) -> dict:
    """What luma, a free and a tied perturbation, and a start drawn from [0, 1] do to images of three equal channels."""
    generator = torch.Generator().manual_seed(0)
    infrared = torch.rand(1, 1, 32, 16, generator=generator).expand(-1, 3, -1, -1)
    eps = printed["eps"] / 255
    delta = (torch.randint(2, (3, 32, 16), generator=generator) * 2 - 1) * eps
    seen = ((infrared + each).clamp(0, 1) for each in (delta, tie(delta)))
    free, tied = (100 * (image != image[:, :1]).any(1).float().mean().item() for image in seen)
    grey_stays = (luma(infrared) - infrared).abs().max().item() < 0.5 / 255
    start = {"outside": 100 * (1 - eps), "leaves": eps < 1}
    return {"grey_stays": grey_stays, "free": free, "tied": tied, "told_apart": free > 0 == tied} | start


@cache
def _uninformed() -> dict[str, list[tuple[float, float]]]:
    """Return, by data set, the span of rank-1 and of mAP, percent, of single rankings without information.

    The queries of a person share an order, in which the images of a gallery person stand anywhere, half together or
    together: the widest of chapter 10's forms.
    """
    rng, found = np.random.default_rng(0), {}
    for name, layout in LAYOUTS.items():
        ends = []
        for blocks in (0, 0.5, 1):
            runs = []
            for _ in range(40):
                got, counts = one_order_a_person(layout, blocks, rng, np.float32)
                runs.append([np.average(each, weights=counts) for each in (got.per_query_rank1, got.per_query_ap)])
            ends.append(100 * np.quantile(runs, [0.025, 0.975], axis=0))
        found[name] = list(zip(np.min(ends, axis=0)[0], np.max(ends, axis=0)[1], strict=True))
    return found


def at_floor(printed: dict, modules: list[str]) -> dict:
    """Final scores with one of these modules against rankings that know nothing, and their margins against FSAM's."""
    rows, floor, inside, margins = printed["final"], _uninformed(), [], []
    for name, module in product(floor, modules):
        row = rows[name][module]
        ends = zip((row["rank1"], row["mAP"]), floor[name], strict=True)
        inside += [low - ROUNDING <= value <= high + ROUNDING for value, (low, high) in ends]
        margins.append(row["rank1"] - rows[name]["FSAM"]["rank1"])
    width = max(high - low for (low, high), _ in floor.values())
    numbers = {"inside": inside, "at_chance": sum(inside), "scores": len(inside), "floor": floor}
    return numbers | {"least": min(margins), "most": max(margins), "width": width}


def ablation_order(printed: dict) -> dict:
    """Table 3: does each further part lower rank-1, and do the last steps end at chance?"""
    rows = [({*filter(None, parts.split("+"))}, values) for parts, values in printed["table3_ablation"].items()]
    steps = [(low, high) for (one, low), (two, high) in product(rows, rows) if one < two and len(two - one) == 1]
    before, after = np.swapaxes(steps, 0, 1)
    floor = [_uninformed()[name][0][1] + ROUNDING for name in ("SYSU-MM01", "RegDB")]
    falls = after < before
    return {"falls": falls, "told": falls.sum(), "steps": falls.size, "at_chance": (after <= floor).sum()}


def agw(printed: dict) -> dict:
    """Parameters of AGW without its classifier, alone and with FSAM twice and SFM; multiplications; printed costs."""
    with torch.device("meta"):  # shapes only: nothing is drawn or computed
        network = models.build("agw", num_identities=206, backbone="resnet50").eval()
        channels = insertion.block_channels(network)
        places = (("fsam", 0), ("fsam", 4), ("sfm", 4))
        heads = [attention.build_attention(name, channels[block]) for name, block in places]
    parts = (network, network.classifier, *heads)
    whole, classifier, *added = (sum(values.numel() for values in part.parameters()) for part in parts)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(64, 3, 288, 144, device="meta"), Modality.VISIBLE)
    plain, more, batch = whole - classifier, whole - classifier + sum(added), counter.get_total_flops() / 2e9
    prints_alike = [abs(number / 1e6 - printed["parameters_million"]) < ROUNDING for number in (plain, more)]
    costs = {name: cost - printed["giga_flops"]["before"] for name, cost in printed["giga_flops"].items()}
    return costs | {
        "plain": plain, "more": more, "prints_alike": prints_alike,
        "one": batch / 64, "batch": batch, "is_a_batch": abs(batch / printed["giga_flops"]["before"] - 1) < 0.02,
        "costs_more": [costs["FGSM"] != 0, costs["UAP"] != 0],
    }  # fmt: skip


def phase_origin(printed: dict) -> dict:
    """Weighting a phase: does the result move with the image?"""
    maps = torch.rand(1, 1, 16, 8, generator=torch.Generator().manual_seed(0))

    def weighted(x: torch.Tensor) -> torch.Tensor:
        amplitude, phase = frequency.decompose(x)
        return frequency.recombine(amplitude, 0.5 * phase)

    shift = partial(torch.roll, shifts=(3, 2), dims=(-2, -1))
    after, before = shift(weighted(maps)), weighted(shift(maps))
    apart = ((after - before).norm() / after.norm()).item()
    return {"apart": 100 * apart, "differ": apart > 0.01}


def two_losses(printed: dict) -> dict:
    """A case in which the quadruple loss is silent; the corrected equation 15 against it, one sample a person.

    Silent: no loss and no gradient, while each person's two centres are one point.
    """
    alpha = printed["alpha"]
    visible, infrared = ((alpha * torch.eye(4)).requires_grad_() for _ in range(2))
    loss, active = losses.quadruple_loss(visible, infrared, visible, infrared, alpha=alpha)
    loss.backward()
    slope = max(centres.grad.abs().max().item() for centres in (visible, infrared))
    silent = loss.item() == slope == active.item() == 0
    four = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)) * 0.05
    centre = losses.quadruple_loss(*four, alpha=alpha).loss.item()
    apart = abs(1 - losses.pairwise_quadruple_loss(*four, torch.arange(5), alpha=alpha).loss.item() / centre)
    numbers = {"distance": alpha * 2**0.5, "loss": loss.item(), "slope": slope, "silent": silent}
    return numbers | {"apart": 100 * apart, "alike": apart < 1e-5}


ARITHMETIC = {
    each.__name__: each
    for each in (
        ablation_order, agw, at_floor, cells, deen_baseline, over_sixty, phase_origin, pixels, sysu, two_losses,
    )
}  # fmt: skip


# The page.


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
    parts = [ledger.introduction.format(number=len(ledger.claims), counts=counts, margin=100 * MARGIN)]
    for paper, title in ledger.papers.items():
        lines = [
            "| | Statement, and where it stands | Verdict | What ran, on which data | Evidence |",
            "|---|---|---|---|---|",
        ]
        lines += [row(claim, found[claim.id], chapters) for claim in ledger.claims if claim.paper == paper]
        for claim in ledger.claims:
            if claim.paper == paper and (answer := claim.answer.strip()):
                quoted = "\n".join(f"> {line}".rstrip() for line in answer.splitlines())
                lines.append(f"\n**The authors on {claim.id}:**\n\n{quoted}")
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


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
