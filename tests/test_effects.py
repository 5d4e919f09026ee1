"""Intervals over victims, verdicts, variance and curves, on cards that are made up, and on examples done by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from test_tables import card as table_card

from vireid_lite.errors import InputError
from vireid_lite.study import effects
from vireid_lite.study.effects import Effect, effect, halfway, holm, spread_of, student, verdicts
from vireid_lite.study.tables import DIRECTIONS

WAY, OTHER = DIRECTIONS
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]  # hours that a drug added (Student 1908, page 20)


def card(name="cmps", seed=0, mAP=0.3, **more):
    """Return a card of one mAP in the first direction, and of another in the second."""
    attack = {key: more.pop(key) for key in ("eps", "step_size", "momentum") if key in more}
    own = {"seed": more.pop("attack_seed")} if "attack_seed" in more else {}
    made = table_card(name, seed, **attack)
    made["attack"] |= own
    for scores in (made["scores"], made["scores_8_bit"]):
        for way, value in ((WAY, mAP), (OTHER, mAP / 2)):
            scores[way] = {**scores[way], "mAP": value, "identity_AP": [value] * 20}
    return {**made, "made_with": {"scores": "1"}, **more}


def row(values, name="cmps", **more):
    return [card(name, seed, value, **more) for seed, value in enumerate(values)]


def made(differences):
    return Effect(WAY, tuple((n, 0) for n in range(len(differences))), tuple(differences), 0.8, 0.05, (0.0, 0.0))


def test_students_interval_is_students_own():
    interval, p = student(SLEEP)
    assert interval == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)
    assert p == pytest.approx(0.002833, abs=1e-6)
    assert student([0.25, 0.25]) == ((0.25, 0.25, 0.25), 0), "no spread: no doubt"
    assert student([0.0, 0.0])[1] == 1
    with pytest.raises(InputError, match="needs two of them, got 1"):
        student([0.1])


@given(some.lists(some.floats(-1, 1), min_size=2, max_size=12), some.floats(0.01, 100))
def test_an_interval_holds_its_mean_scales_with_its_values_and_excludes_zero_where_p_says(values, factor):
    (mean, low, high), p = student(values)
    assert low <= mean <= high
    assert student([factor * value for value in values])[0] == pytest.approx(
        (factor * mean, factor * low, factor * high)
    )
    if min(abs(low), abs(high)) > 1e-9:
        assert (low <= 0 <= high) == (p > 0.05)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


@given(some.lists(some.floats(0, 1), min_size=1, max_size=9))
def test_holm_only_raises_keeps_the_order_and_is_the_plain_value_for_one(ps):
    adjusted = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
    assert [adjusted[n] for n in np.argsort(ps)] == sorted(adjusted)
    assert holm(ps[:1]) == ps[:1]


def test_every_verdict_can_be_given_and_turned_round():
    clear = [0.05, 0.06, 0.04, 0.05, 0.06, 0.04]
    family = {
        "higher": made(clear),
        "lower": made([-value for value in clear]),
        "equal": made([0.001, -0.002, 0.001, 0.0, 0.001, -0.001]),
        "small and clear": made([0.005, 0.006, 0.005, 0.004, 0.005, 0.005]),
        "undecided": made([0.05, -0.06, 0.04, -0.05, 0.06, -0.02]),
        "five": made(clear[:5]),
        "none yet": None,
    }
    found = verdicts(family)
    assert found == {
        "higher": "higher",
        "lower": "lower",
        "equal": "equal",
        "small and clear": "equal",
        "undecided": "undecided",
        "five": "exploratory",
        "none yet": "pending",
    }
    moved = {name: item and made([value + 0.2 for value in item.differences]) for name, item in family.items()}
    assert set(verdicts(moved).values()) == {"higher", "exploratory", "pending"}
    assert verdicts({"alone": made([value + 0.0101 for value in family["equal"].differences])}) == {"alone": "higher"}


def test_a_family_of_many_needs_more_than_one_alone_and_what_has_not_run_counts():
    weak = made([0.05, 0.06, -0.01, 0.05, 0.02, 0.01])
    assert 0.01 < student(weak.differences)[1] < 0.05
    assert verdicts({"one": weak}) == {"one": "higher"}
    for others in (None, made([0.3, -0.3] * 3), made([0.1] * 3)):
        family = {"one": weak, **{str(number): others for number in range(9)}}
        assert verdicts(family)["one"] == "undecided"


def test_an_effect_pairs_victims_and_shows_clean_score_floor_and_direction():
    before, after = row([0.5, 0.4, 0.6]), row([0.4, 0.35, 0.45, 0.1], "uap")
    found = effect(before, after, WAY)
    assert found.victims == ((0, 0), (1, 0), (2, 0)), "the fourth has no partner"
    assert found.differences == pytest.approx((-0.1, -0.05, -0.15))
    assert (found.clean, found.floor, found.interval.mean) == pytest.approx((0.8, 0.05, -0.1))
    assert effect(before, after, OTHER).differences == pytest.approx([value / 2 for value in found.differences])
    assert effect(after, before, WAY).differences == pytest.approx([-value for value in found.differences])
    assert effect(before[::-1], after, WAY) == found
    assert str(found) == "-10.0, -5.0, -15.0 points of mAP on 3 victims: exploratory"
    six = effect(row([0.5] * 6), row([0.4] * 6, "uap"), WAY)
    assert str(six) == "-10.0 [-10.0, -10.0] points of mAP over 6 victims"


def test_the_interval_over_people_resamples_people_and_holds_the_victims():
    rng = np.random.default_rng(0)
    before, after = row([0.5] * 4), row([0.4] * 4, "uap")
    for one in after:
        own = rng.uniform(0, 0.8, 20)
        one["scores_8_bit"][WAY] |= {"identity_AP": own.tolist(), "mAP": own.mean()}
    found = effect(before, after, WAY)
    low, high = found.people
    assert low < found.interval.mean < high
    assert high - low < 0.3
    same = effect(before, row([0.4] * 4, "uap"), WAY)
    assert same.people == pytest.approx((-0.1, -0.1)), "people alike: other people would show the same"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "no victim in common"),
        ({"tier": "standard"}, "of two victims"),
        ({"victim": {"model": "ide"}}, "of two victims"),
        ({"dataset": {"name": "synthetic", "difficulty": "hard"}}, "of two victims"),
        ({"split": "tuning"}, "splits"),
        ({"made_with": {"scores": "2"}}, "behaviours"),
        ({"clean": {way: {"rank1": 0.8, "mAP": 0.82, "mINP": 0.8} for way in DIRECTIONS}}, "trainings"),
    ],
)
def test_what_cannot_be_paired_is_refused_in_one_line(change, said):
    with pytest.raises(InputError, match=said) as error:
        effect([card(seed=0)], [{**card("uap", 0), **change}], WAY)
    assert "\n" not in str(error.value)


def test_a_row_of_two_settings_or_of_one_victim_twice_is_refused():
    for more, said in ((card("uap", 1, momentum=0.5), "attack"), (card("uap", 0), "a seed comes twice")):
        for sides in (([card("uap", 0), more], row([0.3, 0.3])), (row([0.3, 0.3]), [card("uap", 0), more])):
            with pytest.raises(InputError, match=said):
                effect(*sides, WAY)
    with pytest.raises(InputError, match="direction"):
        effect(row([0.3]), row([0.2]), "visible")


def test_a_modified_victim_is_compared_with_its_control_of_the_same_seed():
    modified = [
        {key: value for key, value in {**card(seed=seed, mAP=0.2), "attack": None}.items() if key != "clean"}
        | {"modification": {"loss": loss}}
        for loss in ("quadruple", "identity")
        for seed in (0, 1)
    ]
    assert effect(modified[:2], modified[2:], WAY).differences == (0, 0)


def test_variance_of_victims_and_of_perturbations_are_told_apart():
    rng = np.random.default_rng(1)
    for victims, perturbations in ((0.1, 0.01), (0.01, 0.1)):
        own = victims * rng.standard_normal(40)
        after = [
            card("uap", seed, 0.4 + own[seed] + perturbations * rng.standard_normal(), attack_seed=draw)
            for seed in range(40)
            for draw in range(6)
        ]
        found = spread_of(row([0.5] * 40), after, WAY)
        assert found.perturbations == pytest.approx(perturbations, rel=0.2)
        assert found.victims == pytest.approx(victims, rel=0.3 if victims > perturbations else 3)
        assert found.people == pytest.approx(0)
        with pytest.raises(InputError, match="the same seeds of the attack"):
            spread_of(row([0.5] * 40), after[1:], WAY)
    alone = spread_of(row([0.5, 0.5]), row([0.4, 0.2], "uap"), WAY)
    assert math.isnan(alone.perturbations)
    assert alone.victims == pytest.approx(0.1 * math.sqrt(2))
    for other in (card("uap", 0, attack_seed=1, momentum=0.5), card("uap", 0, attack_seed=1, split="val")):
        with pytest.raises(InputError, match="differ in"):
            spread_of(row([0.5, 0.5]), [*row([0.4, 0.2], "uap"), other], WAY)


def curve(scores, name="cmps", share=None, **more):
    steps = {} if share is None else {"step_size": share}
    eps = [2 / 255 * 2**number for number in range(len(scores))]
    scaled = [{key: value * one for key, value in steps.items()} for one in eps]
    return [card(name, 0, score, eps=one, **more, **own) for one, score, own in zip(eps, scores, scaled, strict=True)]


def test_halfway_by_hand():
    """From 80 % to a floor of 5 % half is 42.5 %, midway between 60 % at 4 and 25 % at 8: 4 sqrt 2 on a log scale."""
    found = halfway(curve([0.7, 0.6, 0.25, 0.1]), WAY)
    assert found.eps * 255 == pytest.approx(4 * math.sqrt(2))
    assert str(found) == "5.7/255"
    assert halfway(curve([0.7, 0.6, 0.25, 0.1][:3])[::-1], WAY) == found, "in any order"
    assert str(halfway(curve([0.4, 0.3]), WAY)) == "< 2/255"
    assert str(halfway(curve([0.7, 0.5]), WAY)) == "> 4/255"
    assert halfway(curve([0.7, 0.4, 0.5, 0.1]), WAY).eps < 4.01 / 255, "the first crossing counts"
    assert halfway(curve([0.7, 0.2], "pgd", share=0.25), WAY).outside == ""


@given(some.lists(some.floats(0.05, 0.8), min_size=2, max_size=5))
def test_a_stronger_attack_is_halfway_no_later(scores):
    found, weaker = halfway(curve(scores), WAY), halfway(curve([min(0.8, score + 0.1) for score in scores]), WAY)
    assert 1.999 / 255 <= found.eps <= weaker.eps * (1 + 1e-9)
    assert {found.outside, weaker.outside} <= {"", "above", "below"}


def test_a_curve_is_of_one_victim_and_one_attack():
    good = curve([0.7, 0.3])
    steps = curve([0.7, 0.6], "pgd", share=0.25)
    steps[1]["attack"]["step_size"] = steps[0]["attack"]["step_size"]
    for cards, said in (
        (good[:1], "two or more eps"),
        ([], "two or more eps"),
        ([*good, good[0]], "each once"),
        ([good[0], {**good[1], "seed": 1}], "one victim"),
        ([good[0], {**good[1], "attack": None}], "an attack"),
        (curve([0.7, 0.3])[:1] + curve([0.7, 0.3], "uap")[1:], "differ in attack"),
        ([good[0], {**good[1], "tier": "full"}], "differ in tier"),
        (steps, "differ in attack"),
        ([good[0], {**good[1], "clean": {way: {"mAP": 0.7} for way in DIRECTIONS}}], "two trainings"),
    ):
        with pytest.raises(InputError, match=said) as error:
            halfway(cards, WAY)
        assert "\n" not in str(error.value)


def test_the_margin_and_the_least_number_of_victims_are_fixed():
    assert (effects.MARGIN, effects.LEAST) == (0.01, 6)
