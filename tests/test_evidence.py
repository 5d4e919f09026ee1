"""What cards say about a statement: each function can give every verdict, and refuses what must not be pooled."""

import copy
from pathlib import Path

import numpy as np
import pytest

from _make import claims, evidence
from _make.evidence import HOLDS, NOT, PARTLY, UNDECIDED
from vireid_lite.errors import InputError
from vireid_lite.study import tables

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ledger():
    return claims.read_ledger(ROOT / "book" / "claims.toml")


# Cards of twenty people, whose rank-1 is as given plus a little noise that both cards of a seed share.

CHANCE = {"rank1": {"mean": 0.05, "low": 0.0, "high": 0.1}}


def scores(value, seed, spread=0.02):
    people = np.clip(value + spread * np.random.default_rng(seed).standard_normal(20), 0, 1)
    moved = {"rank1": {"difference": value - 0.8, "low": value - 0.85, "high": value - 0.75}}
    own = {"rank1": float(people.mean()), "mAP": float(people.mean()), "difference": moved, "chance": CHANCE}
    return {**own, "identity_rank1": people.tolist(), "identity_AP": people.tolist(), "identity_queries": [4] * 20}


def card(value, seed=0, name="cmps", tied=False, spread=0.02, noise=0, dataset="synthetic", **more):
    attack = {"name": name, "tied": tied, "eps": 8 / 255}
    if name == "cmps":
        attack |= {"mode": "paper", "centroids": "kmeans", "choice": "similarity"}
    both = dict.fromkeys(tables.DIRECTIONS, scores(value, 10 * seed + noise, spread))
    clean = {way: {"rank1": 0.8, "mAP": 0.8, "mINP": 0.8} for way in tables.DIRECTIONS}
    victim = {"model": "agw", "backbone": "lite"}
    return {
        "kind": "attack", "tier": "lite", "dataset": {"name": dataset, "difficulty": "easy"}, "victim": victim,
        "seed": seed, "attack": attack, "clean": clean, "scores": both, "scores_8_bit": both, "made_with": {},
        **more,
    }  # fmt: skip


def outcomes(before, after):
    pairs = [("", card(a, seed), card(b, seed)) for seed, (a, b) in enumerate(zip(before, after, strict=True))]
    return {outcome for outcome, _ in evidence.compared(pairs).values()}


def test_settings_are_told_apart_by_interval_seeds_and_chance():
    assert outcomes([0.6, 0.6, 0.6], [0.4, 0.4, 0.5]) == {"lower"}
    assert outcomes([0.4, 0.4, 0.5], [0.6, 0.6, 0.6]) == {"higher"}
    assert outcomes([0.6, 0.6, 0.6], [0.2, 0.2, 0.61]) == {"seeds disagree"}, "one seed of three speaks against it"
    assert outcomes([0.6], [0.2]) == {"one seed"}, "all seeds have one sign, and say nothing of another training"
    assert outcomes([0.08, 0.08, 0.08], [0.02, 0.02, 0.02]) == {"at chance"}
    assert outcomes([0.3, 0.3, 0.3], [0.02, 0.02, 0.02]) == {"lower"}, "one side above chance is enough"
    loose = [("", card(0.5, seed, spread=0.3), card(0.49, seed, spread=0.3, noise=5)) for seed in range(3)]
    assert {outcome for outcome, _ in evidence.compared(loose).values()} == {"not told apart"}


def test_differences_are_the_means_over_people_and_seeds():
    pairs = [("", card(0.6, seed, spread=0.2), card(0.4, seed, spread=0.1)) for seed in range(3)]
    for (*_, way), (_, difference) in evidence.compared(pairs).items():
        ends = [[np.mean(one["scores_8_bit"][way]["identity_rank1"]) for one in pair[1:]] for pair in pairs]
        assert difference.difference == pytest.approx(np.mean([after - before for before, after in ends]))


def test_a_setting_is_one_difficulty_one_infrared_form_and_one_direction():
    free, tied = (("", card(0.6, tied=tied), card(0.4, tied=tied)) for tied in (False, True))
    other = copy.deepcopy(tied)
    other[2]["scores_8_bit"][tables.DIRECTIONS[1]] = scores(0.3, 0)
    assert len(evidence.compared([free, other])) == 3, "visible queries are the same in both forms, and count once"
    assert evidence._pairs([free[1]], [tied[2]]) == [], "a free and a tied card are never a pair"
    assert evidence._pairs([card(0.6, seed=0)], [card(0.6, seed=1)]) == [], "nor are two victims"


def test_verdicts_on_settings():
    def verdict(*seen, low=-0.5, **options):
        difference = tables.metrics.Difference(0.0, low, 0.5)
        return evidence.judged({number: (outcome, difference) for number, outcome in enumerate(seen)}, **options)

    assert verdict("lower", "lower") == HOLDS
    assert verdict("lower", "lower", "higher") == verdict("lower", "lower", "at chance") == PARTLY
    assert verdict("lower", "higher") == verdict("lower", "not told apart") == UNDECIDED, "one setting may be chance"
    assert verdict("higher", "higher", "not told apart") == NOT
    assert verdict("higher", "not told apart") == verdict("at chance", "at chance") == UNDECIDED
    assert verdict("higher", "higher", wanted="higher") == HOLDS
    assert verdict("not told apart", low=-0.05, margin=0.1) == NOT, "what would be damage is excluded"
    assert verdict("not told apart", low=-0.15, margin=0.1) == UNDECIDED
    assert verdict("one seed", "not told apart", low=-0.05, margin=0.1) == UNDECIDED, "one training excludes nothing"
    assert verdict("lower", low=-0.05, margin=0.1) == HOLDS


def test_an_attack_is_held_against_noise_and_against_itself():
    noise = [card(0.7, seed, "sign-noise") for seed in range(3)]
    own = [card(0.4, seed) for seed in range(3)]
    against_noise = {"attack": "CMPS (paper)", "than": ["sign noise"], "spoilt": True}
    assert evidence.against(noise + own, **against_noise)[1] == HOLDS
    assert evidence.against(noise + [card(0.7, seed) for seed in range(3)], **against_noise)[1] == NOT


def turned(value, seed, **attack):
    """A card of CMPS in which some switches are thrown, and the rest stands where it stands by default."""
    one = card(value, seed)
    one["attack"] |= {"momentum": 1.0, "grey_probability": 0.2, "modalities": "both"} | attack
    return one


def test_a_switch_is_held_against_cards_in_which_none_is_thrown():
    """As momentum's rows: the sweep's own 0.5 and 0.9 differ from 0 by one switch too, and are no base of it."""
    plain, sweep = [turned(0.4, seed) for seed in range(3)], []
    for momentum, value in ((0.5, 0.2), (0.9, 0.25), (0.0, 0.3)):
        sweep += [turned(value, seed, momentum=momentum) for seed in range(3)]
    call = {"attack": "CMPS (paper)", "switches": [{"momentum": 0.0}]}
    numbers, verdict, used = evidence.without(plain + sweep, **call)
    assert numbers["tally"].startswith("+10.0 to +10.0 points; higher in 2 of 2")
    assert (verdict, {one["attack"]["momentum"] for one in used}) == (NOT, {0.0, 1.0})
    assert evidence.without(sweep, **call) is None, "without the plain attack nothing is compared"
    sides = [{"modalities": "visible"}, {"modalities": "infrared"}]
    each = [turned(0.6, seed, **side) for seed in range(3) for side in sides]
    assert evidence.without(plain + each, "CMPS (paper)", sides)[1] == HOLDS
    assert evidence.without(each, "CMPS (paper)", sides) is None, "one side is no base of the other"


def test_what_must_not_be_pooled_is_refused_in_one_line():
    rivals, own = ([card(value, seed, name) for seed in range(2)] for value, name in ((0.6, "uap"), (0.4, "cmps")))
    assert evidence.against(rivals + own, "CMPS (paper)", ["UAP"])[1] == HOLDS
    changes = {
        "a seed comes twice": {"kind": "feature"},
        "attack": {"seed": 2, "attack": own[0]["attack"] | {"momentum": 0.5}},
        "made_with": {"seed": 2, "made_with": {"scores": "another"}},
    }
    for said, change in changes.items():
        extra = [card(0.6, 2, "uap"), {**own[0], **change}]
        with pytest.raises(InputError, match=said) as error:
            evidence.against(rivals + own + extra, "CMPS (paper)", ["UAP"])
        assert "\n" not in str(error.value)


def test_seeds_are_counted_from_the_cards_that_are_in_a_pair(ledger, monkeypatch):
    monkeypatch.setattr(claims, "is_stale", lambda card: False)
    claim = next(one for one in ledger.claims if one.id == "C42")
    noise = [card(0.7, seed, "sign-noise") for seed in range(3)]
    hard = [copy.deepcopy(one) for one in noise]
    for one in hard:
        one["dataset"]["difficulty"] = "hard"
    own = [transferred(0.5, seed, identities="others") for seed in range(2)]
    lone = transferred(0.5, 7, identities="others")
    assert claims.find(claim, ledger, noise + hard + own + [lone]).data == "synthetic (easy), tier lite, 2 seeds"


def steps(active, **more):
    return card(0.4, history=[{"active": value} for value in active], **more)


def test_every_verdict_function_can_be_turned_round():
    anatomy = {"clean": {"spread": 0.8}, "attacked": {"spread": 0.5}}
    back = {"clean": anatomy["attacked"], "attacked": anatomy["clean"]}
    noise = card(0.7, name="sign-noise", anatomy=dict.fromkeys(tables.DIRECTIONS, anatomy))

    def traced(*states):
        own = [card(0.4, seed, anatomy=dict.fromkeys(tables.DIRECTIONS, one)) for seed, one in enumerate(states)]
        return evidence.traced([noise, *own], "CMPS (paper)", "spread", rises=False)[1]

    assert (traced(anatomy, anatomy), traced(anatomy, back), traced(back, back)) == (HOLDS, PARTLY, NOT)
    assert [evidence.hinge([steps(one)])[1] for one in ([1, 1], [1, 0.5, 0], [1, 0, 0], [0])] == [
        HOLDS,
        PARTLY,
        NOT,
        NOT,
    ]

    def grown(*values):
        cards = [card(value, seed) for seed in range(2) for value in values]
        for one, eps in zip(cards, 2 * (2 / 255, 4 / 255, 8 / 255), strict=True):
            one["attack"]["eps"] = eps
        return evidence.grows(cards, "CMPS (paper)")[1]

    assert (grown(0.7, 0.5, 0.3), grown(0.7, 0.5, 0.6), grown(0.3, 0.5, 0.7)) == (HOLDS, PARTLY, NOT)

    def trained(value, clean):
        both = {"scores_clean": dict.fromkeys(tables.DIRECTIONS, scores(clean, 0))}
        cards = [card(value, seed, **both) | {"attack": None} for seed in range(2)]
        return evidence.selected(cards, {"seed": [0, 1]}, {"seed": [0, 1]}, ["scores", "scores_clean"], spoilt=True)[1]

    assert (trained(0.3, 0.7), trained(0.7, 0.7), trained(0.7, 0.3)) == (HOLDS, NOT, NOT)
    assert evidence.likeness([], "CMPS (paper)") is None


def transferred(value, seed, name="cmps", source="ide", identities="shared"):
    surrogate = {"victim": {"model": source, "backbone": "lite"}, "seed": seed + 100, "identities": identities}
    return card(value, seed, name, kind="transfer", surrogate=surrogate)


def test_transfer_is_held_against_noise_on_the_target_and_rivals_of_one_surrogate():
    noise = [card(0.7, seed, "sign-noise") for seed in range(2)]
    own = [transferred(0.5, seed) for seed in range(2)]
    other = [transferred(0.6, seed, "col-del") for seed in range(2)]

    def verdict(cards, than="sign noise", **where):
        found = evidence.against(cards, "CMPS (paper)", [than], where={"kind": "transfer", **where})
        return found and found[1]

    assert verdict(noise + own) == HOLDS
    assert verdict(noise + own, **{"surrogate.victim.model": ["ide", "agw"]}) == HOLDS
    assert verdict(noise + own, **{"surrogate.victim.model": "pcb"}) is None
    assert verdict(noise + own, **{"surrogate.identities": "others"}) is None
    assert verdict(noise + [card(0.5, seed) for seed in range(2)]) is None, "nothing moved"
    assert verdict(own + other, "Col.+Del.") == HOLDS
    elsewhere = [transferred(0.6, seed, "col-del", source="pcb") for seed in range(2)]
    assert verdict(own + elsewhere, "Col.+Del.") is None, "two surrogates are no pair"


def test_a_printed_number_is_held_against_reruns_on_its_own_data():
    runs = [card(0.05, seed, dataset="regdb") for seed in range(2)]
    for printed, verdict in (([5.0, 5.0], HOLDS), ([5.0, 50.0], PARTLY), ([50.0, 50.0], NOT)):
        assert evidence.licensed(runs, "CMPS (paper)", printed)[1] == verdict
    assert evidence.licensed([], "CMPS (paper)", [5.0, 5.0]) is None
