from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vireid_lite import metrics
from vireid_lite.attacks import ATTACKS
from vireid_lite.errors import InputError
from vireid_lite.study import grids, tables
from vireid_lite.study.campaign import read_campaign

CAMPAIGN = """
seeds = [0, 1]
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 4, val_identities = 4, test_identities = 6 }
[[run]]
attack = { name = "sign-noise" }
"""


def scores(values):
    people = {"identity_rank1": list(values), "identity_AP": list(values), "identity_queries": [4] * len(values)}
    moved = {"difference": float(np.mean(values)) - 0.8, "low": -0.9, "high": float(np.max(values)) - 0.75}
    own = {"rank1": float(np.mean(values)), "mAP": float(np.mean(values)), **people}
    chance = {
        "chance": {"rank1": {"mean": 0.1, "low": 0.0, "high": 0.2}},
        "minimum": {"rank1": 0, "mAP": 0.05, "mINP": 0},
    }
    return {**own, **chance, "difference": {"rank1": moved, "mAP": moved}}


def card(name="cmps", seed=0, value=0.3, tied=False, rounded=None, **more):
    generator = np.random.default_rng(seed)
    values = np.clip(value + 0.1 * generator.standard_normal(20), 0, 1)
    attack = {"name": name, "tied": tied, "eps": 8 / 255, **more}
    if name == "cmps":
        attack |= {"mode": "paper", "centroids": "kmeans", "choice": "similarity"}
    both = dict.fromkeys(tables.DIRECTIONS, scores(values))
    clean = {direction: {"rank1": 0.8, "mAP": 0.8, "mINP": 0.8} for direction in tables.DIRECTIONS}
    other = dict.fromkeys(tables.DIRECTIONS, scores(values if rounded is None else np.full(20, rounded)))
    dataset = {"name": "synthetic", "difficulty": "easy"}
    return {
        "tier": "lite",
        "dataset": dataset,
        "victim": {"model": "agw"},
        "seed": seed,
        "attack": attack,
        "clean": clean,
        "scores": both,
        "scores_8_bit": other,
    }


def test_every_attack_has_a_label():
    assert set(tables.LABELS) == set(ATTACKS)
    assert tables.label({"name": "cmps", "mode": "released"}) == "CMPS (released)"
    variants = [{"name": "feature-level", "form": f, "identity": i} for f in ("hinge", "linear") for i in ("on", "off")]
    assert len({tables.label(attack) for attack in variants}) == 4, "a table would mix two attacks under one name"


def test_seed_rows_hold_each_card_twice_and_the_precision_asked_for():
    cards = [card(seed=0, rounded=0.5), card(seed=1, rounded=0.5)]
    rows = tables.seed_rows(cards)
    assert len(rows) == 4
    assert rows["rank1"].tolist() == pytest.approx([50.0] * 4)
    assert (rows["rank1 difference"] - (rows["rank1"] - rows["rank1 clean"])).abs().max() < 1e-9
    assert (rows["rank1 low"] <= rows["rank1 high"]).all()
    exact = tables.seed_rows(cards, precision="float")
    assert exact["rank1"].iloc[0] == pytest.approx(100 * cards[0]["scores"][tables.DIRECTIONS[0]]["rank1"])
    with pytest.raises(InputError, match="precision"):
        tables.seed_rows(cards, "16-bit")


def test_a_table_orders_attacks_counts_seeds_and_starts_with_the_clean_row():
    cards = [
        card("m-fgsm", 0),
        card("cmps", 0),
        card("cmps", 1),
        card("cmps", 0, tied=True),
        card("sign-noise", 0, 0.79),
    ]
    table = tables.attack_table(cards)
    assert table.index.tolist() == ["none", "sign noise", "CMPS (paper)", "CMPS (paper)", "M-FGSM"]
    assert table["infrared"].tolist() == ["", "free", "free", "tied", "free"]
    column = table[tables.DIRECTIONS[0]]
    assert column.iloc[0].startswith("80.0")
    assert column.iloc[2].endswith("2 of 2 fell")
    assert column.iloc[1].endswith("0 of 1 fell"), "an interval that reaches zero is no fall"
    assert tables.attack_table([]).empty
    for other in (
        card("cmps", 0, eps=0.5),
        {**card("cmps", 2), "dataset": {"name": "synthetic", "difficulty": "hard"}},
    ):
        with pytest.raises(InputError, match="filter"):
            tables.attack_table([*cards, other])


def test_a_mean_is_of_one_configuration_one_behaviour_and_each_seed_once():
    """What a file is called, and when it was made, decide nothing."""
    cards = [{**card(seed=seed), "kind": kind, "date": kind} for seed, kind in ((1, "x"), (0, "y"))]
    assert [one["seed"] for one in tables.pooled(cards)] == [0, 1]
    assert tables.pooled([]) == []
    more = card(seed=2)
    hard = {"name": "synthetic", "difficulty": "hard"}
    made_on = {"victim": {"model": "ide"}, "identities": "shared"}
    assert tables.pooled([*cards, more])
    for said, other in (
        ("a seed comes twice", {"seed": 1}),
        ("dataset", {"dataset": hard}),
        ("victim", {"victim": {"model": "agw", "settings": {"epochs": 40}}}),
        ("attack", {"attack": more["attack"] | {"momentum": 0.5}}),
        ("attack", {"attack": more["attack"] | {"tied": True}}),
        ("split", {"split": "val"}),
        ("surrogate", {"surrogate": made_on}),
        ("modification", {"modification": {"loss": "quadruple"}}),
        ("made_with", {"made_with": {"scores": "another"}}),
    ):
        with pytest.raises(InputError, match=said) as error:
            tables.pooled([*cards, {**more, **other}])
        assert "\n" not in str(error.value)
    surrogates = [{**one, "surrogate": {**made_on, "seed": one["seed"] + 1}} for one in cards]
    assert len(tables.pooled(surrogates)) == 2, "a surrogate's seed is a draw too"
    splits = [{**card(), "dataset": {"name": "regdb", "split": split}} for split in (2, 1)]
    assert [one["dataset"]["split"] for one in tables.pooled(splits)] == [1, 2]


def test_a_table_is_of_one_training_of_each_victim():
    first, again = card("uap"), card("cmps")
    again["clean"] = {way: {**row, "mAP": row["mAP"] + 0.01} for way, row in again["clean"].items()}
    assert tables.one_training([first, card("cmps"), {**again, "seed": 1}])
    for call in (tables.one_training, tables.attack_table):
        with pytest.raises(InputError, match="two trainings of one victim, seed 0"):
            call([first, again])


def test_the_phrase_on_knowledge_follows_the_settings():
    plain, labelled = ({"name": "cmps", "centroids": c, "choice": "similarity"} for c in ("kmeans", "identity"))
    assert "unlabelled" in tables.knows(plain)
    assert "with identities" in tables.knows(labelled)
    assert "classifier" in tables.knows({"name": "uap"})
    on, off, noise = (
        tables.knows({"name": "feature-level", "identity": identity, "quadruple": quadruple})
        for identity, quadruple in (("on", True), ("off", True), ("off", False))
    )
    assert "identities" in on
    assert "classifier" in on
    assert "identities" in off
    assert "classifier" not in off
    assert noise == tables.knows({"name": "uniform-noise"})


def test_compare_is_the_paired_bootstrap_and_refuses_other_victims():
    first, second = card("uap"), card("cmps", value=0.1)
    direction = tables.DIRECTIONS[0]
    found = tables.compare(first, second, direction)
    before, after = (c["scores_8_bit"][direction]["identity_rank1"] for c in (first, second))
    assert found == metrics.paired_bootstrap(before, after, np.arange(20), [4] * 20)
    assert tables.compare(first, first, direction).difference == 0
    with pytest.raises(InputError, match="seed"):
        tables.compare(first, card("cmps", seed=1), direction)


def test_a_victim_trained_twice_is_two_victims():
    """The same recipe and seed on another machine gives other weights, which the clean scores show."""
    first, second = card("uap"), card("cmps", value=0.1)
    assert tables.same_victim(first, second)
    assert not tables.same_victim(first, card("cmps", seed=1))
    moved = {direction: {**scores, "mAP": 0.8 + 2e-3} for direction, scores in second["clean"].items()}
    again = {**second, "clean": {**second["clean"], tables.DIRECTIONS[1]: moved[tables.DIRECTIONS[1]]}}
    assert not tables.same_victim(first, again), "one direction is enough to tell"
    with pytest.raises(InputError, match="trained twice"):
        tables.compare(first, again, tables.DIRECTIONS[0])


def test_paired_over_seeds_resamples_people_and_not_rows():
    before, after = ([card(name, seed, value)["scores"][tables.DIRECTIONS[0]] for seed in (0, 1)] for name, value in
                     (("uap", 0.5), ("cmps", 0.2)))  # fmt: skip
    both = tables.paired(before, after)
    values = [np.concatenate([one["identity_rank1"] for one in side]) for side in (before, after)]
    people = np.tile(np.arange(20), 2)
    assert both == metrics.paired_bootstrap(*values, people, [4] * 40)
    twice = tables.paired(before[:1] * 2, after[:1] * 2)
    once = tables.paired(before[:1], after[:1])
    assert twice == pytest.approx(once), "a seed counted twice must not make the interval narrower"
    assert tables.paired(before, before, "mAP").difference == 0


def test_a_table_says_whether_its_settings_are_the_best_of_the_trials():
    rows = [card(step_share=0.4), card("uap", step_share=0.1), card("sign-noise")]
    assert "Trials with this one are pending" in tables.tuning_note([], rows)
    trials = [card(name, rounded=value, step_share=share) for name, share, value in (
        ("cmps", 0.1, 0.4), ("cmps", 0.4, 0.3), ("uap", 0.1, 0.3), ("uap", 0.4, 0.2)
    )]  # fmt: skip
    said = tables.tuning_note(trials, rows)
    assert said.endswith("tried for CMPS (paper); another would be stronger for UAP."), said
    assert tables.tuning_note(trials[:2], rows).endswith("tried for CMPS (paper).")
    assert tables.tuning_note(trials[2:], rows).endswith("tried for none; another would be stronger for UAP.")


def test_pending_counts_what_has_no_card_and_names_the_command(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(CAMPAIGN)
    said = tables.pending(path, tmp_path)
    assert "2 of 2 runs" in said
    assert "vireid-lite campaign book/campaigns/some.toml" in said
    assert str(tmp_path) not in said, "a page shows no path of this machine"
    names = [run.card_name() for run in read_campaign(path)]
    (tmp_path / names[0].replace("attack", "control", 1)).touch()  # one run of two names has one card
    assert "1 of 2 runs" in tables.pending(path, tmp_path)
    (tmp_path / names[1]).touch()
    assert tables.pending(path, tmp_path) == ""
    assert tables.pending(path, Path("nowhere"), kind="other") == ""
    with pytest.raises(InputError, match=r"missing.toml does not exist"):
        tables.pending(tmp_path / "missing.toml", tmp_path)


def test_the_spread_over_seeds_shows_its_ends():
    assert tables.spread([10, 20, 60]) == "30.0 (10.0 to 60.0)"
    assert tables.spread([10]) == "10.0"


def fallen(high, low=-0.5, **more):
    moved = {score: {"difference": (low + high) / 2, "low": low, "high": high} for score in ("rank1", "mAP")}
    return {"scores_8_bit": {"visible to infrared": {"difference": moved}}, **more}


def test_nothing_is_said_to_agree_that_did_not_fall_in_every_seed():
    row = next(row for row in grids.read_grid("cmps-tables").rows if (row.attack, row.query) == ("CMPS", "visible"))
    fell, same, wide = fallen(-0.2), fallen(0.01, -0.05), fallen(0.1)

    def said(cards, metric="r1", row=row):
        return grids._stand_in(row, metric, cards)

    assert said([fell, fell]) == said([fell, fell], "mAP") == "a stand-in agrees"
    assert said([same, same]) == "a stand-in disagrees"
    undecided = [said([fell]), said([fell, same]), said([wide, wide]), said([fell, fallen(-0.2, modification={})])]
    undecided += [said([fell, fell], metric) for metric in ("r10", "r20", "mINP", "transfer_success")]
    assert set(undecided) == {"a stand-in is undecided"}
    assert said([fell, fell], row=replace(row, attack="none")) == "clean row of a stand-in"
