"""A victim is trained once; whoever finds it trained knows what that took."""

import contextlib
import shutil

import pytest

from vireid_lite import victims
from vireid_lite.data import SyntheticVI
from vireid_lite.training import TrainSettings
from vireid_lite.victims import Recipe, load_or_train


def test_a_victim_found_in_a_cache_counts_its_training(tmp_path, monkeypatch):
    monkeypatch.setattr(victims, "found_trained", {})
    small = SyntheticVI(4, 4, size=(32, 16), val_identities=2, test_identities=2)
    recipe = Recipe(backbone="lite", settings=TrainSettings(epochs=1, identities=2, images=2))
    options = {"seed": 1, "folder": tmp_path, "device": "cpu", "progress": False}
    _, trained = load_or_train(recipe, small, **options)
    assert victims.found_trained == {}, "it was trained here: its time is in this process's own"
    _, found = load_or_train(recipe, small, **options)
    assert victims.found_trained == {found["key"]: pytest.approx(trained["seconds"])}
    assert found["seconds"] > 0


def test_a_victim_that_was_trained_while_one_waited_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(victims, "found_trained", {})
    small = SyntheticVI(4, 4, size=(32, 16), val_identities=2, test_identities=2)
    recipe = Recipe(backbone="lite", settings=TrainSettings(epochs=1, identities=2, images=2))
    options = {"seed": 1, "device": "cpu", "progress": False}
    _, trained = load_or_train(recipe, small, folder=tmp_path / "theirs", **options)

    @contextlib.contextmanager
    def waited(folder, whole):
        shutil.copytree(tmp_path / "theirs", folder)
        yield

    monkeypatch.setattr(victims, "exclusive", waited)
    load_or_train(recipe, small, folder=tmp_path / "ours", **options)
    assert victims.found_trained == {trained["key"]: pytest.approx(trained["seconds"])}
