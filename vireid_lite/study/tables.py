"""Tables of attacks, drawn from run cards alone: scores over seeds, paired intervals, and what has not run yet."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from vireid_lite import metrics
from vireid_lite.attacks import ATTACKS
from vireid_lite.errors import InputError, check_choice
from vireid_lite.study.campaign import read_campaign
from vireid_lite.study.cards import (
    CARDS,
    CONFIGURATION,
    DIRECTIONS,
    SAME,
    same_behaviour,
    same_training,
    spread,
    victim_of,
    what_ran,
)

LABELS = {name: name.upper() for name in ATTACKS} | {
    **{"uniform-noise": "uniform noise", "sign-noise": "sign noise", "feature-level": "feature-level"},
    **{"uap-retrieval": "UAP-Retrieval", "uap-retrieval-grey": "UAP-Retrieval + grey", "meta-attack": "MetaAttack"},
    **{"col-del": "Col.+Del.", "metric-fgsm": "Metric-FGSM"},
}


def label(attack: dict) -> str:
    """Return an attack's name as tables print it: CMPS with its mode, the feature-level attack with its two losses."""
    name = LABELS[attack["name"]]
    if attack["name"] == "feature-level":
        return f"{name} ({attack['form']}, identity {attack['identity']})"
    return f"{name} ({attack['mode']})" if attack["name"] == "cmps" else name


def knows(attack: dict) -> str:
    """Return what the attacker of a card knows, in one phrase."""
    if attack["name"] == "cmps" and "identity" in (attack["centroids"], attack["choice"]):
        return "the victim's weights; training images with identities"
    if attack["name"] == "uap":
        return "the victim's weights and its classifier; unlabelled training images"
    if attack["name"] == "feature-level" and attack["identity"] == "off":
        return "the victim's weights; training images with identities" if attack["quadruple"] else "nothing"
    return ATTACKS[attack["name"]].knows


def seed_rows(cards: Iterable[dict], precision: str = "8-bit") -> pd.DataFrame:
    """Return one row for each card and direction, scores in percent.

    Columns: difficulty, attack, knows, infrared ("free" or "tied"), seed, direction; for rank-1 and mAP the clean
    score, the attacked one, and their difference with the ends of its 95 % paired interval over identities; chance (the
    upper end of rank-1) and minimum (of mAP). precision: "8-bit" (attacked images as a file holds them) or "float".
    """
    check_choice("tables", "precision", precision, ("8-bit", "float"))
    rows = []
    for card in cards:
        attack = card["attack"]
        known = {"difficulty": card["dataset"].get("difficulty", ""), "attack": label(attack), "knows": knows(attack)}
        known |= {"infrared": "tied" if attack["tied"] else "free", "seed": card["seed"]}
        for direction in DIRECTIONS:
            clean, exact = card["clean"][direction], card["scores"][direction]
            attacked = exact if precision == "float" else card["scores_8_bit"][direction]
            row = {**known, "direction": direction}
            for score in ("rank1", "mAP"):
                moved = attacked["difference"][score]
                row |= {f"{score} clean": 100 * clean[score], score: 100 * attacked[score]}
                row |= {f"{score} {part}": 100 * moved[part] for part in ("difference", "low", "high")}
            row |= {"chance": 100 * exact["chance"]["rank1"]["high"], "minimum": 100 * exact["minimum"]["mAP"]}
            rows.append(row)
    return pd.DataFrame(rows)


def attack_table(cards: Sequence[dict], score: str = "rank1", precision: str = "8-bit") -> pd.DataFrame:
    """Return one row an attack and infrared form, text cells: what it knows, and for each direction its score.

    A cell holds the mean over seeds, the lowest and highest seed, and in how many seeds the paired interval of the
    difference from clean lies below zero. Rows keep the order of `ATTACKS`; the clean row comes first. score: "rank1"
    or "mAP". Raises InputError where a line would pool two settings, or the table two trainings of one victim.
    """
    rows = seed_rows(one_training(cards), precision)
    if rows.empty:
        return rows
    alike: dict[tuple, list[dict]] = {}
    for card in cards:
        alike.setdefault((label(card["attack"]), card["attack"]["tied"]), []).append(card)
    firsts = [pooled(line)[0] for line in alike.values()]
    if len({str([card[part] for part in SAME[:3]]) for card in firsts}) > 1:
        raise InputError("tables: one data set and one recipe of the victim at a time; filter the cards first")
    order = list(LABELS.values())
    names = ["attack", "what the attacker knows", "infrared"]
    lines = [dict.fromkeys(names, "") | {"attack": "none"}]
    for direction, part in rows.drop_duplicates(["seed", "direction"]).groupby("direction"):
        lines[0][direction] = spread(part[f"{score} clean"])
    groups = dict(iter(rows.groupby(["attack", "knows", "infrared"])))
    for key in sorted(groups, key=lambda key: (order.index(key[0].split(" (")[0]), key[0], key[2])):
        lines.append(dict(zip(names, key, strict=True)))
        for direction, part in groups[key].groupby("direction"):
            lines[-1][direction] = f"{spread(part[score])}; {(part[f'{score} high'] < 0).sum()} of {len(part)} fell"
    return pd.DataFrame(lines, columns=[*names, *DIRECTIONS]).set_index("attack")


def pooled(cards: Iterable[dict]) -> list[dict]:
    """Return cards that may be averaged, in order of their seeds and splits.

    Raises InputError unless all are of one configuration (data set, recipe, every setting of the attack) and of one
    behaviour, and each seed and split comes once.
    """
    cards = sorted(cards, key=draw_of)
    if len({draw_of(card) for card in cards}) < len(cards):
        raise InputError("tables: a seed comes twice among cards of one row (two trainings, or kinds); filter them")
    names = [name for name in CONFIGURATION if name != "seed"]
    differ = [name for name in names if any(_undrawn(card, name) != _undrawn(cards[0], name) for card in cards)]
    differ += ["made_with"] * (not all(same_behaviour(*pair) for pair in combinations(cards, 2)))
    if differ:
        raise InputError(f"tables: cards of one row differ in {differ[0]}; filter them, no mean is over two of these")
    return cards


def draw_of(card: dict) -> tuple[int, int]:
    """Return what cards of one configuration may differ in."""
    return card["seed"], card["dataset"].get("split") or 0


def _undrawn(card: dict, name: str) -> object:
    """Return a part of a card without the seed of a surrogate, the split, and fingerprints."""
    drawn = {"dataset": ("split", "records"), "surrogate": ("seed",)}.get(name, ())
    part = card.get(name)
    return {key: value for key, value in part.items() if key not in drawn} if drawn and part else part


def paired(before: Sequence[dict], after: Sequence[dict], score: str = "rank1") -> metrics.Difference:
    """Return after minus before, fractions, with its 95 % interval over people, whose seeds are resampled together.

    before, after: scores of one direction as cards hold them, `card["scores_8_bit"][direction]`, one a seed, in order.
    """
    field = {"rank1": "identity_rank1", "mAP": "identity_AP"}[score]
    values = (np.concatenate([scores[field] for scores in side]) for side in (before, after))
    people = np.concatenate([np.arange(len(scores[field])) for scores in before])
    return metrics.paired_bootstrap(*values, people, np.concatenate([scores["identity_queries"] for scores in before]))


def same_victim(first: dict, second: dict) -> bool:
    """Return whether two attack cards are of one recipe, data set and seed, and of one training of it."""
    return all(first[part] == second[part] for part in SAME) and same_training(first, second)


def one_training(cards: Sequence[dict]) -> Sequence[dict]:
    """Return the cards of a table or curve; InputError where two are of two trainings of one recipe, data and seed."""
    known: dict[str, dict] = {}
    for card in cards:
        if not same_training(known.setdefault(victim_of(card), card), card):
            what = f"two trainings of one victim, seed {card['seed']}, in one table or curve"
            raise InputError(f"tables: {what}; filter the cards, or make them again in one folder")
    return cards


def compare(first: dict, second: dict, direction: str, score: str = "rank1", precision: str = "8-bit"):
    """Return second minus first, two cards of the same victim, paired over identities: `metrics.Difference`, fractions.

    Two attacks differ in strength only where the interval excludes zero. Cards without an attack hold a victim each.
    Raises InputError where the cards are of different victims, data or seeds, or attack two trainings of one victim.
    """
    for part in SAME:
        if first[part] != second[part]:
            raise InputError(f"tables: the two cards differ in {part}; compare attacks on one victim")
    if "clean" in first and not same_victim(first, second):
        raise InputError("tables: the cards' clean scores differ, so the victim was trained twice; rerun one of them")
    name = "scores" if precision == "float" else "scores_8_bit"
    return paired([first[name][direction]], [second[name][direction]], score)


def tuning_note(trials: Sequence[dict], rows: Iterable[dict]) -> str:
    """Return a sentence or two: whether a table's rows have the setting that was best in trials with this victim.

    The best has the lowest mAP, mean of both directions, in 8 bits. trials: cards on validation people; rows: cards of
    the table. The settings of the campaigns were chosen with an earlier victim of this book.
    """
    best: dict[str, tuple[float, float]] = {}
    for card in trials:
        found = np.mean([card["scores_8_bit"][way]["mAP"] for way in DIRECTIONS]), _tuned(card["attack"])
        best[label(card["attack"])] = min(found, best.get(label(card["attack"]), found))
    own = {label(card["attack"]): _tuned(card["attack"]) for card in rows}
    kept, lost = [], []
    for name in (name for name in own if name in best):
        (kept if own[name] == best[name][1] else lost).append(name)
    said = "The settings of the table of seeds were chosen in this way with an earlier victim of this book. "
    if not kept + lost:
        return said + "Trials with this one are pending: `vireid-lite campaign book/campaigns/tuning.toml`."
    said += f"With this one they are the best of what was tried for {', '.join(kept) or 'none'}"
    return said + (f"; another would be stronger for {', '.join(lost)}." if lost else ".")


def _tuned(attack: dict) -> float | None:
    """Return the setting of an attack that is tuned, or None for one without."""
    return next((attack[name] for name in ("step_share", "step_size", "learning_rate") if name in attack), None)


def pending(campaign: Path, folder: Path, kind: str | None = None) -> str:
    """Return one Markdown sentence on the runs of a campaign (of one name) without a card, with the command, or ""."""
    runs = [run for run in read_campaign(campaign) if kind in (None, run.kind)]
    made = {what_ran(path.name) for path in folder.glob(CARDS)}
    missing = sum(what_ran(run.card_name()) not in made for run in runs)
    command = f"vireid-lite campaign book/campaigns/{campaign.name}"
    named = f" `{kind}`" if kind else ""
    return f"**Pending**: {missing} of {len(runs)} runs{named}. `{command}` makes them." if missing else ""
