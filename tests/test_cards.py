import json

import numpy as np
import pytest

from vireid_lite import cards, provenance
from vireid_lite.errors import InputError

CONFIGURATION = {
    "kind": "victim",
    "tier": "lite",
    "dataset": {"name": "synthetic", "difficulty": "easy"},
    "victim": {"model": "agw"},
    "attack": None,
    "seed": 3,
}


def write(folder, **changed):
    return cards.write_card(folder, {**CONFIGURATION, **changed}, {"scores": {"rank1": np.float64(1 / 3)}})


def test_a_card_comes_back_and_names_what_ran(tmp_path):
    path = write(tmp_path)
    card = cards.read_card(path)
    assert path.name.startswith("victim-lite-synthetic-easy-s3-")
    assert card["scores"] == {"rank1": pytest.approx(1 / 3)}
    assert set(card["made_with"]) == {"data/synthetic", "victim/agw", "scores"}
    assert not cards.is_stale(card)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no half file stays beside it"


def test_key_changes_with_configuration_data_and_seed_only(tmp_path):
    names = {write(tmp_path).name, write(tmp_path).name}
    assert len(names) == 1
    names |= {write(tmp_path, seed=4).name, write(tmp_path, dataset={"name": "synthetic", "size": [1, 2]}).name}
    assert len(names) == 3


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
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        cards.read_card(path)


def test_cards_are_found_by_their_fields(tmp_path):
    write(tmp_path)
    write(tmp_path, seed=4)
    (tmp_path / "costs.json").write_text("{}")
    assert len(cards.read_cards(tmp_path)) == 2
    assert [card["seed"] for card in cards.read_cards(tmp_path, seed=4)] == [4]


def test_committed_cards_are_whole_and_hold_no_path_or_label():
    folder = provenance.PACKAGE.parent / "book" / "results"
    for card in cards.read_cards(folder):
        text = json.dumps(card)
        assert "/home" not in text
        assert ".png" not in text
        assert ".jpg" not in text
        assert set(card["scores"]) == {"visible to infrared", "infrared to visible"}
