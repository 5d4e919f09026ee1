import base64
import json
import lzma
from dataclasses import dataclass

import numpy as np
import pytest

from vireid_lite import attacks, files, victims
from vireid_lite.data import DATASETS
from vireid_lite.errors import InputError
from vireid_lite.metrics.anatomy import QueryState
from vireid_lite.study import cards
from vireid_lite.study.campaign import Results, parse
from vireid_lite.study.tables import DIRECTIONS
from vireid_lite.training import TrainSettings

RESULTS = files.PACKAGE.parent / "book" / "results"
QUERIES = [3, 4, 3]


def scores(trials=1, chance=True, seed=0):
    """Return scores of one direction as `run.scores_for_card` has them."""
    dice = np.random.default_rng(seed)
    hits = dice.integers(0, 4, 3)
    each = [
        {"rank1": hits.sum() / 10, "mAP": dice.random(), "mINP": dice.random(), "valid_queries": 10}
        for _ in range(trials)
    ]
    means = {name: np.mean([trial[name] for trial in each]) for name in ("rank1", "mAP", "mINP")}
    around = {score: {"mean": dice.random(), "low": 1 / 7, "high": 0.5} for score in means}
    people = {"identity_rank1": hits / QUERIES, "identity_AP": dice.random(3), "identity_queries": np.array(QUERIES)}
    known = {"chance": around, "chance_cmc": dice.random(4), "minimum": {"rank1": 0.0, "mAP": 1 / 3, "mINP": 0.1}}
    moved = {score: {"difference": dice.random() - 1, "low": -0.7, "high": -1 / 10} for score in ("rank1", "mAP")}
    return {
        **means,
        "cmc": np.array([means["rank1"], 0.9, 0.9, 1.0]),
        "trials": each,
        **(known if chance else {}),
        **people,
        "difference": moved,
    }


def results(**more):
    """Return an attack's results, one direction's as different from the other's as can be."""
    ways = {way: {"rank1": 0.5, "mAP": 1 / 3, "mINP": 0.0} for way in DIRECTIONS}
    state = dict.fromkeys(QueryState._fields, 0.25)
    taken = {"clean": {**state, "rank1": 0.5}, "attacked": state, "ssim": 0.987654321, "psnr": None}
    return {
        "clean": ways,
        "scores": {way: scores(1 + 9 * n, seed=n) for n, way in enumerate(DIRECTIONS)},
        "scores_8_bit": {
            way: {**scores(1 + 9 * n, False, seed=n), "broken": 0.125} for n, way in enumerate(DIRECTIONS)
        },
        "anatomy": dict.fromkeys(DIRECTIONS, taken),
        "history": [{"step": 0, "loss": 1 / 3}, {"step": 0, "loss": 1 / 3}],
        "wall_seconds": 12.3456789,
        **more,
    }


def run(seed=3, **tables):
    (found,) = parse({"seeds": [seed], "attack": {"name": "cmps", "gradients": 8}, **tables})
    return found


def write(folder, **tables):
    return cards.write_card(folder, run(**tables).with_images(), results())


def test_a_card_comes_back_whole_and_names_what_ran(tmp_path):
    path = write(tmp_path)
    card = cards.read_card(path)
    assert path.name.startswith("attack-cmps-lite-synthetic-easy-s3-")
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no half file stays beside it"
    asked, given = run().with_images(), json.loads(json.dumps(results(), default=cards.plain))
    assert {name: card[name] for name in asked} == json.loads(json.dumps(asked))
    for name in ("clean", "scores", "scores_8_bit", "history"):
        exact = json.dumps(card[name]) == json.dumps(given[name])
        assert exact or name == "history", name
    assert card["history"] == [{"step": 0, "loss": 0.333333}] * 2
    assert card["anatomy"][DIRECTIONS[1]]["ssim"] == 0.987654
    assert card["anatomy"][DIRECTIONS[1]]["psnr"] is None
    assert card["anatomy"][DIRECTIONS[0]]["clean"]["rank1"] == 0.5
    assert set(card["made_with"]) == {"data/synthetic", "victim/agw", "attack/cmps", "scores"}
    assert not cards.is_stale(card)


def test_numbers_are_read_without_this_package_as_the_docstring_says():
    path = min(RESULTS.glob("attack-cmps-*"))
    card, whole = json.loads(path.read_text()), cards.read_card(path)
    rest = json.loads(lzma.decompress(base64.b85decode(card["packed"])))
    for name in ("scores", "clean"):
        for way, row in whole[name].items():
            assert {**card[name][way], **rest[name][way]} == row
    assert all(rest[name] == whole[name] for name in ("scores_8_bit", "anatomy", "history"))


def test_committed_cards_are_small_whole_and_hold_no_path_or_label():
    paths = sorted(RESULTS.glob(cards.CARDS))
    assert len(paths) == 274
    assert max(path.stat().st_size for path in paths) <= 4096
    for path in paths:
        card = cards.read_card(path)
        text = json.dumps(card)
        assert not any(word in text for word in ("/home", ".png", ".jpg"))
        assert set(card["scores"]) == set(DIRECTIONS)
        assert card["key"] == cards.card_key(card)
        assert path.name == cards.card_name(card)
        for own in card["scores"].values():
            assert np.average(own["identity_rank1"], weights=own["identity_queries"]) == pytest.approx(
                own["rank1"], abs=1e-6
            )
            assert np.average(own["identity_AP"], weights=own["identity_queries"]) == pytest.approx(
                own["mAP"], abs=1e-6
            )


def test_key_and_name_change_with_what_is_asked_and_the_name_with_the_images_too(tmp_path):
    keys = {run().key, run(name="other").key, run(anatomy=True).key}
    assert len(keys) == 1
    keys |= {
        one.key for one in (run(4), run(dataset={"difficulty": "hard"}), run(split="val"), run(train={"epochs": 3}))
    }
    assert len(keys) == 5
    mine = run().with_images()
    theirs = {**mine, "dataset": {**mine["dataset"], "records": "0" * 16}}
    assert cards.card_key(mine) == cards.card_key(theirs)
    assert cards.card_name(mine) != cards.card_name(theirs)


def test_a_new_option_with_a_default_renames_no_card(monkeypatch):
    """A field more of an attack, of the training, of the modification and of data sets, synthetic and licensed."""
    tables = [{}, {"attack": {"name": "m-fgsm"}}, {"attack": {}, "modified": {"loss": "quadruple"}}]
    tables += [{"tier": "full", "dataset": {"name": "sysu"}}, {"surrogate": {"dataset": {"seed": 1}}}, {"attack": {}}]
    before = [run(**one).key for one in tables]

    def wider(kind):
        return dataclass(frozen=True, kw_only=True)(
            type(
                kind.__name__,
                (kind,),
                {"__annotations__": {"fresh": float}, "fresh": 0.5, "__module__": kind.__module__},
            )
        )

    for name in ("cmps", "m-fgsm"):
        monkeypatch.setitem(attacks.ATTACKS, name, wider(attacks.ATTACKS[name]))
    for tier, known in victims.TIERS.items():
        settings = wider(TrainSettings)(**vars(known.recipe.settings))
        recipe = victims.Recipe(**{**vars(known.recipe), "settings": settings})
        monkeypatch.setitem(victims.TIERS, tier, victims.Tier(known.size, known.options, recipe))
    real = DATASETS["synthetic"].describe
    monkeypatch.setattr(DATASETS["synthetic"], "describe", lambda self: {**real(self), "fresh": 0.5})
    monkeypatch.setitem(DATASETS["sysu"].choices, "fresh", (0.5, (0.5, 1.0)))
    cards._data.cache_clear()
    after = [run(**one) for one in tables]
    assert after[0].configuration["attack"]["fresh"] == after[0].configuration["dataset"]["fresh"] == 0.5
    assert after[0].configuration["victim"]["settings"]["fresh"] == after[3].configuration["dataset"]["fresh"] == 0.5
    assert [one.key for one in after] == before
    cards._data.cache_clear()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a readable run card"),
        ("[]", "lacks"),
        ("{}", "lacks 'schema'"),
        ("<html>", "not a readable run card"),
    ],
)
def test_what_is_no_card_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "victim-s0-x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        cards.read_cards(tmp_path)
    assert str(path) in str(error.value)


def test_a_card_of_another_schema_is_refused(tmp_path):
    path = write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    with pytest.raises(InputError, match="schema 1"):
        cards.read_card(path)


def test_cards_are_found_by_their_fields(tmp_path):
    write(tmp_path)
    write(tmp_path, seed=4)
    (tmp_path / "costs.json").write_text("{}")
    assert len(cards.read_cards(tmp_path)) == 2
    assert [card["seed"] for card in cards.read_cards(tmp_path, seed=4)] == [4]


def test_of_two_trainings_the_one_most_cards_are_of_is_shown_whatever_files_are_called(tmp_path):
    """The cards of one curve: three of one training, and the middle one again, later, of another."""
    sweep = [{"attack": {"name": "cmps", "gradients": 8, "eps": eps}} for eps in (0.01, 0.02, 0.03)]
    for tables in sweep:
        write(tmp_path, **tables)
    other = {way: {"rank1": 0.5, "mAP": 0.4, "mINP": 0.0} for way in DIRECTIONS}
    for name in ("aaa", "zzz"):
        again = cards.write_card(tmp_path, run(name=name, **sweep[1]).with_images(), results(clean=other))
        again.write_text(json.dumps({**json.loads(again.read_text()), "date": "2999-01-01", "seal": None}))
        found = [Results(tmp_path).card(run(**tables)) for tables in sweep]
        assert len({card["clean"][DIRECTIONS[0]]["mAP"] for card in found}) == 1, name
        again.unlink()
