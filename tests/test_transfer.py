"""Transfer: a resized delta keeps its budget, what a surrogate made is scored on the target, seeds are never shared."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vireid_lite.attacks import CMPS, GeneratorPerturbation, UniversalPerturbation
from vireid_lite.attacks.perturbation import resized
from vireid_lite.data import Modality, SyntheticVI
from vireid_lite.errors import InputError
from vireid_lite.study import cards, run, workers
from vireid_lite.study.campaign import _population

EPS = 8 / 255


def perturbation(size=(32, 16), **more):
    delta = torch.empty(3, *size).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(0))
    return UniversalPerturbation(delta, EPS, **more)


@pytest.mark.parametrize("size", [(64, 32), (17, 40), (8, 4)])
def test_a_resized_delta_fits_the_crops_and_keeps_the_budget(size):
    made = resized(perturbation(tied=True), size)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    attacked = made.apply(images, Modality.INFRARED)
    assert (attacked - images).abs().max() <= EPS * (1 + 1e-6)
    assert made.tied
    assert made.delta.abs().max() <= EPS


def test_a_constant_delta_is_the_same_at_every_size():
    flat = UniversalPerturbation(torch.full((3, 32, 16), EPS), EPS)
    torch.testing.assert_close(resized(flat, (50, 20)).delta, torch.full((3, 50, 20), EPS), rtol=1e-6, atol=0)


def test_each_modality_keeps_its_own_delta_and_the_same_size_changes_nothing():
    pair = {modality: perturbation().delta * (1 - modality) for modality in Modality}
    made = UniversalPerturbation(pair, EPS)
    assert resized(made, (32, 16)) is made
    fitted = resized(made, (16, 8))
    assert fitted.delta[Modality.INFRARED].abs().max() == 0
    assert fitted.delta[Modality.VISIBLE].shape == (3, 16, 8)
    assert pair[Modality.VISIBLE].shape == (3, 32, 16)


def test_a_generator_has_no_delta_to_resize():
    with pytest.raises(InputError, match="no delta to resize"):
        resized(GeneratorPerturbation.__new__(GeneratorPerturbation), (16, 8))


def test_broken_counts_only_what_was_right():
    def scored(*trials):
        return SimpleNamespace(trials=[SimpleNamespace(per_query_rank1=np.array(trial, float)) for trial in trials])

    assert run.broken(scored([1, 1, 0], [1, 0, 0]), scored([0, 1, 1], [0, 1, 1])) == 2 / 3
    assert np.isnan(run.broken(scored([0, 0]), scored([1, 1])))


SMALL = """
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, test_identities = 4 }
train = { epochs = 1, identities = 4, images = 2 }
"""
ATTACK = 'attack = { name = "cmps", gradients = 4 }'


def test_the_surrogate_is_attacked_and_the_target_scored(tmp_path, monkeypatch):
    runs = (
        "surrogate = { seed = 1 }",
        "victim = { model = 'ide' }\nsurrogate = { seed = 1, victim = {} }",
        "surrogate = { dataset = { seed = 1, size = [48, 24] } }",
    )
    text = "\n".join(f"[[run]]\nname = 'transfer'\n{ATTACK}\n{run}" for run in runs)
    file, out = tmp_path / "c.toml", tmp_path / "out"
    file.write_text(SMALL + text)
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))  # nothing that another test has made
    fitted = []
    fit = CMPS.fit
    monkeypatch.setattr(CMPS, "fit", lambda self, *given, **more: fitted.append(1) or fit(self, *given, **more))
    workers.run_campaign(file, out, progress=False)
    assert len(fitted) == 2, "one surrogate and seed serve two targets"
    found = cards.read_cards(out)
    assert len(found) == 3
    own, other, larger = (
        next(c for c in found if (c["victim"]["model"], c["surrogate"]["dataset"]["size"]) == which)
        for which in (("agw", [32, 16]), ("ide", [32, 16]), ("agw", [48, 24]))
    )
    assert own["surrogate"]["victim"] == own["victim"]
    assert other["surrogate"]["victim"]["model"] == "agw"
    assert [c["surrogate"]["identities"] for c in (own, other, larger)] == ["shared", "shared", "others"]
    assert [c["surrogate"]["seed"] for c in (own, other, larger)] == [1, 1, 100]
    for card in found:
        assert card["surrogate"]["seed"] != card["seed"]
        assert {f"victim/{each['victim']['model']}" for each in (card, card["surrogate"])} < set(card["made_with"])
        assert not cards.is_stale(card)
        for scores in card["scores_8_bit"].values():
            assert 0 <= scores["broken"] <= 1 or np.isnan(scores["broken"])
            assert scores["difference"]["rank1"]["low"] <= scores["difference"]["rank1"]["high"]


def test_the_score_is_that_of_the_surrogates_delta_on_the_target(tiny):
    torch.manual_seed(0)
    from vireid_lite import models

    target, source = (models.build("agw", 12, "lite").eval() for _ in range(2))
    attack = CMPS(steps=2, clusters=4)
    found = run.run_attack(attack, target, tiny, seed=5, surrogate=(source, tiny), progress=False)
    by_hand = attack.fit(source, tiny, 5, progress=False)
    assert torch.equal(found.made.delta, by_hand.delta)
    again = run.evaluate(target, tiny, Modality.VISIBLE, perturb=by_hand.apply, progress=False)
    assert torch.equal(found.exact[0].query, again.query)
    assert found.transferred
    assert "broken" in found.describe()["scores_8_bit"]["visible to infrared"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[[run]]\n{ATTACK}\nsurrogate = {{ seed = 0 }}", "share the seed 0"),
        ("[[run]]\nname = 'x'\nsurrogate = { seed = 1 }", "give the run an attack"),
        (f"[[run]]\n{ATTACK}\nsurrogate = {{ model = 'ide' }}", "unknown key 'model'"),
        (f"[[run]]\n{ATTACK}\nsurrogate = {{ victim = {{ model = 'x' }} }}", "network 'x' is unknown"),
        ("[[run]]\nattack = { name = 'm-fgsm' }\nsurrogate = { dataset = { size = [48, 24] } }", "crops of one size"),
        ("[[run]]\ncompute = { precision = 'half' }", "precision"),
        ("[[run]]\ncompute = { speed = 9 }", "compute has an unknown key 'speed'; it takes precision"),
    ],
)
def test_a_transfer_that_makes_no_sense_is_one_line(tmp_path, text, said):
    file = tmp_path / "c.toml"
    file.write_text(SMALL + text)
    with pytest.raises(InputError, match=said) as error:
        workers.run_campaign(file, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)


def test_other_people_are_other_people():
    """The seed of the synthetic set decides who they are; another difficulty of the same seed has the same people."""
    options = {"size": (32, 16), "val_identities": 2, "test_identities": 2}
    same, harder, others = (SyntheticVI(4, 2, **options, **more) for more in ({}, {"difficulty": "hard"}, {"seed": 1}))
    same, harder, others = (_population(data.describe()) for data in (same, harder, others))
    assert same == harder != others
