"""One seal for every file whose numbers are kept: what was changed since is refused, old files are read."""

import json
import re
import shutil

import pytest
import safetensors.torch
import test_mutations
import torch
from test_cards import write

from vireid_lite import files, models
from vireid_lite.attacks import UniversalPerturbation, load_perturbation
from vireid_lite.errors import InputError
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
from vireid_lite.study import cards
from vireid_lite.study.campaign import Results

SEALED = {
    "perturbation": (test_mutations.save_perturbation, load_perturbation),
    "checkpoint": (test_mutations.save_victim, load_checkpoint),
    "note": (test_mutations.save_note, test_mutations.noted),
    "card": (write, cards.read_card),
}


@pytest.mark.parametrize("kind", SEALED)
def test_a_sealed_file_is_refused_wherever_a_byte_of_it_changes(tmp_path, kind):
    make, read = SEALED[kind]
    path = make(tmp_path)
    data = path.read_bytes()
    read(path)
    for place in range(0, len(data), max(1, len(data) // 10)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError) as refused:
            read(path)
        assert "\n" not in str(refused.value)
        assert str(path) in str(refused.value)


def test_tensors_are_serialised_once_and_not_again_to_be_read(tmp_path, monkeypatch):
    save, calls = safetensors.torch.save, []
    monkeypatch.setattr("safetensors.torch.save", lambda *given: calls.append(given) or save(*given))
    load_perturbation(test_mutations.save_perturbation(tmp_path))
    assert len(calls) == 1


def test_files_without_a_seal_or_with_an_earlier_one_are_read(tmp_path):
    torch.manual_seed(0)
    model = models.build("agw", 7, "lite")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path / "new.safetensors", model, {"key": "k"})
    text = (tmp_path / "new.json").read_text()
    for more in ({}, {"sha256": "0" * 64}):
        safetensors.torch.save_file(state, tmp_path / "old.safetensors", {"card": text, **more})
        assert load_checkpoint(tmp_path / "old.safetensors")[1]["key"] == "k"
    facts = {"eps": 0.03, "tied": False, "double": False, "history": [], "made_by": {}}
    delta = {"delta": torch.full((3, 32, 16), 0.02)}
    safetensors.torch.save_file(delta, tmp_path / "delta.safetensors", {UniversalPerturbation.kind: json.dumps(facts)})
    assert load_perturbation(tmp_path / "delta.safetensors").eps == 0.03


def test_a_card_whose_number_was_edited_is_refused_in_one_line(tmp_path):
    path = write(tmp_path)
    text = path.read_text()
    edited = re.sub(r'("scores":.*?"rank1":)[\d.]+', r"\g<1>0.125", text)
    assert edited != text
    path.write_text(edited)
    with pytest.raises(InputError, match="changed or damaged after it was saved") as refused:
        Results(tmp_path)
    assert path.name in str(refused.value)
    path.write_bytes(text.replace("\n", "\r\n").encode())  # as git may check it out
    assert cards.read_card(path)["seed"] == 3


def test_a_card_without_a_seal_is_read(tmp_path):
    committed = min(test_mutations.RESULTS.glob("attack-cmps-*"))
    assert b'"seal"' not in committed.read_bytes()
    path = write(tmp_path)
    bare = re.sub(r'\n"seal":"\w{16}",', "", path.read_text())
    sealed = cards.read_card(path)
    assert "seal" not in sealed
    path.write_text(bare)
    assert cards.read_card(path) == sealed
    assert cards.read_card(shutil.copy(committed, tmp_path) and tmp_path / committed.name)["key"]


def test_a_folder_that_cannot_be_listed_is_not_a_folder_without_cards(tmp_path, monkeypatch):
    assert cards.read_cards(tmp_path / "none there") == []

    def closed(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", closed)
    for read in (cards.read_cards, Results):
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); check the rights"):
            read(tmp_path)


def test_a_file_of_json_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (path := tmp_path / "costs.json").write_text("{}")
    assert files.read_json(path) == files.read_json(tmp_path / "none there") == {}

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", closed)
    with pytest.raises(InputError, match=r"costs\.json cannot be read \(Permission denied\)"):
        files.read_json(path)


def test_what_holds_no_place_for_a_seal_is_left_as_it_is():
    assert files.sealed(b"plain") == b"plain"
    sealed = files.sealed(b"a" + files.UNSEALED + b"b")
    files.check_seal(sealed, sealed[1:17].decode())
    for seal in ("a", "0" * 16, 7, sealed[1:16].decode()):
        with pytest.raises(ValueError, match="changed or damaged"):
            files.check_seal(sealed, seal)
