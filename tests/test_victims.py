"""A victim is trained once; whoever finds it trained knows what that took."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vireid_lite import files, victims
from vireid_lite.data import SyntheticVI
from vireid_lite.errors import InputError
from vireid_lite.files import stable_hash
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
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


def test_a_victim_whose_card_does_not_tell_of_its_training_is_one_line(tmp_path):
    small = SyntheticVI(4, 4, size=(32, 16), val_identities=2, test_identities=2)
    recipe = Recipe(backbone="lite", settings=TrainSettings(epochs=1, identities=2, images=2))
    options = {"seed": 1, "folder": tmp_path, "device": "cpu", "progress": False}
    model, card = load_or_train(recipe, small, **options)
    harms = [{"seconds": "5"}, {"device": 7}, {"wall_seconds": [1]}, {"peak_memory_mib": None}]
    harms += [{"history": wrong} for wrong in ([], [{}], None, ["x"], [{"accuracy": "1"}])]
    lacking = [{name: item for name, item in card.items() if name not in harm} for harm in harms[:5]]
    for changed in (*lacking, *({**card, **harm} for harm in harms)):
        save_checkpoint(tmp_path / "victim.safetensors", model, changed)
        with pytest.raises(InputError, match=r"victim\.safetensors is damaged; restore it, or delete it and run again"):
            load_or_train(recipe, small, **options)


def test_a_damaged_note_of_what_the_code_does_is_one_line(aside):
    ship(aside)
    load_or_train(RECIPE, small_set(), **HOW)
    (note,) = (aside.parent / "cache/behaves").iterdir()
    shutil.rmtree(aside.parent / "cache/victims")
    other = note.read_text().replace("[[]", '[["it is 1"]')
    for text in ("", "7", "{", "null", "[]", '""', "{}", "[[], []]", "[[], 7]", other):
        note.write_text(text)
        with pytest.raises(InputError, match=f"{note.name} is damaged; restore it, or delete it and run again"):
            load_or_train(RECIPE, small_set(), **HOW)


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


RECIPE = Recipe(backbone="lite", settings=TrainSettings(epochs=1, identities=2, images=2, half=True))
HOW = {"device": "cpu", "progress": False}


def small_set():
    return SyntheticVI(4, 4, size=(32, 16), val_identities=2, test_identities=2)


def ship(folder, seeds=(0,)):
    """Write tiny victims as those that come with the package are written; return their files."""
    data, digests, files = small_set(), {}, []
    for seed in seeds:
        model, card = load_or_train(RECIPE, data, seed=seed, retrain=True, **HOW)
        files.append(folder / f"tiny-s{seed}-{stable_hash(victims.described(RECIPE, data, seed))}.safetensors")
        save_checkpoint(files[-1], model, card)
        digests[files[-1].name] = hashlib.sha256(files[-1].read_bytes()).hexdigest()
    (folder / "sha256.json").write_text(json.dumps(digests))
    return files


@pytest.fixture
def aside(tmp_path, monkeypatch):
    """An empty cache, and a folder of weights that come with the package."""
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(victims, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(victims, "PROBES", dict.fromkeys(("victim/agw", "data/synthetic"), dict))
    monkeypatch.setattr(victims, "differs", lambda part, found: [])
    return tmp_path / "weights"


def test_a_victim_that_comes_with_the_package_is_taken_whole_and_said(aside, monkeypatch, capsys):
    (file,) = ship(aside)
    trained, was = load_or_train(RECIPE, small_set(), retrain=True, **HOW)
    with monkeypatch.context() as patch:
        patch.setattr(victims, "train", None)
        found, card = load_or_train(RECIPE, small_set(), **HOW)
        again, _ = load_or_train(RECIPE, SyntheticVI(4, 4, (32, 16), val_identities=9, test_identities=5), **HOW)
    assert capsys.readouterr().err == f"victim: {file.stem}, as it comes with the package\n"
    assert (card["shipped"], card["history"]) == (file.stem, was["history"])
    assert found.people == trained.people
    assert len(found.people) == 4
    for name, value in trained.state_dict().items():
        assert torch.equal(value, found.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    assert "shipped" not in load_or_train(RECIPE, small_set(), seed=1, **HOW)[1]


def test_half_a_victim_is_stored_and_nothing_is_lost(aside):
    (file,) = ship(aside)
    stored = safetensors.torch.load_file(file)
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}
    whole, _ = load_or_train(replace(RECIPE, settings=replace(RECIPE.settings, half=False)), small_set(), **HOW)
    save_checkpoint(aside / "whole.safetensors", whole, {})
    for name, value in safetensors.torch.load_file(aside / "whole.safetensors").items():
        assert torch.equal(value.to(whole.state_dict()[name]), whole.state_dict()[name])


@pytest.mark.parametrize("text", ["", "{", "[", "null", "[" * 100_000])
def test_damaged_hashes_of_the_weights_are_one_line(aside, text):
    ship(aside)
    (aside / "sha256.json").write_text(text)
    with pytest.raises(InputError, match=r"sha256\.json is damaged; restore it"):
        load_or_train(RECIPE, small_set(), **HOW)


def test_what_the_code_does_is_asked_again_where_something_else_is_installed(aside, monkeypatch):
    ship(aside)
    load_or_train(RECIPE, small_set(), **HOW)
    for name, changed in (("versions", {"torch": "another"}), ("entries", {"victim/agw": {"a number": [1.0]}})):
        monkeypatch.setattr(victims, name, lambda changed=changed: changed)
        victims._behaves("agw")
    assert len(list((aside.parent / "cache/behaves").iterdir())) == 3


@pytest.mark.parametrize("harm", ["damaged", "exchanged", "foreign"])
def test_weights_that_are_not_those_that_came_are_refused(aside, harm):
    first, second = ship(aside, (0, 1))
    if harm == "damaged":
        content = bytearray(first.read_bytes())
        content[-9] ^= 1
        first.write_bytes(content)
    else:
        shutil.copy(second, first)
    if harm == "foreign":
        (aside / "sha256.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^.*{first.name} is damaged or another file; .*--retrain$"):
        load_or_train(RECIPE, small_set(), **HOW)
    assert load_or_train(RECIPE, small_set(), retrain=True, **HOW)[1]["seed"] == 0


ASKED = """
import sys, json, pathlib
sys.path[:0] = sys.argv[1:2]
sys.path.insert(1, sys.argv[2])
from vireid_lite import victims
import test_victims
victims.WEIGHTS = pathlib.Path(sys.argv[3])
_, card = victims.load_or_train(test_victims.RECIPE, test_victims.small_set(), **test_victims.HOW)
print(victims.__file__, card.get("shipped"))
"""


@pytest.mark.parametrize(
    ("old", "new", "taken"),
    [
        ("The AGW two-stream network;", "AGW, a network of two streams;", True),
        ("gem_p=3.0, flip=False", "gem_p=3.1, flip=False", False),
    ],
)
def test_a_reader_who_edits_the_network_gets_a_trained_victim(aside, tmp_path, old, new, taken):
    ship(aside)
    copy = shutil.copytree(files.PACKAGE, tmp_path / "copy" / "vireid_lite", ignore=shutil.ignore_patterns("__pyc*"))
    text = (copy / "models" / "agw.py").read_text(encoding="utf-8")
    assert old in text
    (copy / "models" / "agw.py").write_text(text.replace(old, new), encoding="utf-8")
    command = [sys.executable, "-c", ASKED, str(copy.parent), str(Path(__file__).parent), str(aside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, shipped = done.stdout.split()
    assert where.startswith(str(copy))
    assert (shipped != "None") == taken


def test_the_weights_of_the_package_are_the_tiers_and_small():
    data, recipe = victims.tier_dataset("lite"), victims.tier_recipe("lite")
    known = json.loads((victims.WEIGHTS / "sha256.json").read_text())
    for seed in range(3):
        (path,) = victims.WEIGHTS.glob(f"agw-easy-s{seed}-{stable_hash(victims.described(recipe, data, seed))}.*s")
        assert known[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
        model, card = load_checkpoint(path)
        assert (len(model.people), card["seed"]) == (1000, seed)
        assert card["processor"]
    assert sum(path.stat().st_size for path in victims.WEIGHTS.iterdir()) < 10e6
