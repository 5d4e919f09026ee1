"""Victims trained with the paper's modules: what stays of the usual training, what is added, how they are kept."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vireid_lite import models, training
from vireid_lite.attacks import Modification, modified_victim, train_modified_victim
from vireid_lite.data import Augmentation, Modality, SyntheticVI
from vireid_lite.errors import InputError
from vireid_lite.metrics.evaluation import evaluate
from vireid_lite.models.insertion import insert, staged
from vireid_lite.models.two_stream import Batch
from vireid_lite.training import TrainSettings
from vireid_lite.victims import Recipe, load_or_train

RECIPE = Recipe(
    backbone="lite",
    settings=TrainSettings(
        epochs=2, identities=4, images=2, optimiser="adamw", learning_rate=1e-3, backbone_factor=1.0, schedule="cosine"
    ),
)
NOTHING = Modification(attention="none", sfm=False, loss="recipe", noise="none", start="scratch")
QUIET = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def small():
    """8 identities with 4 images in each modality: four steps an epoch."""
    return SyntheticVI(8, 4, size=(32, 16), val_identities=2, test_identities=4)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


OTHER = {"triplet": "hard", "label_smoothing": 0.1, "augmentation": Augmentation(pad=2)}


@pytest.mark.parametrize("settings", [{}, OTHER])
def test_with_nothing_modified_training_is_the_usual_one(small, tmp_path, settings):
    recipe = replace(RECIPE, settings=replace(RECIPE.settings, **settings))
    usual, card = load_or_train(recipe, small, seed=1, folder=tmp_path / "usual", **QUIET)
    found = train_modified_victim(recipe, small, NOTHING, seed=1, folder=tmp_path / "modified", **QUIET)
    assert found.perturbation is None
    assert not any(module.training for module in found.model.modules())
    assert same(weights(found.model), weights(usual))
    for here, there in zip(found.card["history"], card["history"], strict=True):
        assert here["identity_loss"] == there["identity_loss"]
        assert here["other_loss"] == there["triplet_loss"]
        assert here["accuracy"] == there["accuracy"]


def test_a_killed_training_ends_with_the_same_bits(small, tmp_path, monkeypatch):
    modification = Modification(start="scratch", form="linear", normalise=True)
    whole = train_modified_victim(RECIPE, small, modification, folder=tmp_path / "whole", **QUIET)
    real, notes = training.note, []

    def note_then_die(*arguments):
        real(*arguments)
        notes.append(1)
        if len(notes) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "note", note_then_die)
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train_modified_victim(RECIPE, small, modification, folder=killed, **QUIET)
    assert (killed / "state.pt").exists()
    resumed = train_modified_victim(RECIPE, small, modification, folder=killed, **QUIET)
    assert len(notes) == 2, "one epoch was left"
    assert not (killed / "state.pt").exists()
    assert same(weights(resumed.model), weights(whole.model))
    for here, there in zip(resumed.card["history"], whole.card["history"], strict=True):
        assert {**here, "seconds": 0} == {**there, "seconds": 0}


def test_a_second_call_loads(small, monkeypatch):
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    modification = Modification(epochs=1)
    first = train_modified_victim(RECIPE, small, modification, seed=2, **QUIET)
    assert torch.equal(torch.get_rng_state(), drawn)
    monkeypatch.setattr(modified_victim, "trained_card", lambda *_, **options: pytest.fail("it was trained again"))
    again = train_modified_victim(RECIPE, small, modification, seed=2, **QUIET)
    assert same(weights(first.model), weights(again.model))
    assert again.card == first.card
    scored = [evaluate(found.model, small, Modality.VISIBLE, progress=False) for found in (first, again)]
    assert torch.equal(scored[0].query, scored[1].query), "the modules act in what was loaded"
    asked = {"recipe": RECIPE, "dataset": small, "modification": replace(modification, start="scratch"), "seed": 2}
    for change in ({}, {"seed": 3}, {"modification": replace(modification, eps=4 / 255)}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            train_modified_victim(**{**asked, **change}, **QUIET)


def test_it_starts_from_the_victim_or_from_nothing(small, monkeypatch):
    started = {}

    def keep(model, *arguments, **options):
        started[len(started)], model.people = weights(model), set()
        told = dict.fromkeys(("seconds", "wall_seconds", "peak_memory_mib"), 1.0)
        return {"key": options["key"], "device": "CPU", "history": [{"accuracy": 1.0}], **told}

    monkeypatch.setattr(modified_victim, "trained_card", keep)
    usual, _ = load_or_train(RECIPE, small, seed=2, **QUIET)
    for start in ("victim", "scratch"):
        train_modified_victim(RECIPE, small, Modification(start=start, alpha=0.3), seed=2, **QUIET)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        fresh = models.build("agw", 8, "lite")
    for found, expected in zip(started.values(), (usual, fresh), strict=True):
        modules = {name for name in found if name.startswith("attention.")}
        assert len(modules) == 6, "one convolution for each modality, of FSAM twice and of SFM"
        assert same({name: value for name, value in found.items() if name not in modules}, weights(expected))


@pytest.mark.parametrize("noise", ["sign", "uniform"])
def test_each_modality_carries_noise_of_its_own_within_the_budget(noise):
    drawn = [Modification(noise=noise, eps=6 / 255).perturbation((32, 16), seed) for seed in (0, 1, 2, 0)]
    deltas = [found.delta[modality] for found in drawn[:3] for modality in Modality]
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(deltas, 2))
    assert all(torch.equal(drawn[0].delta[modality], drawn[3].delta[modality]) for modality in Modality)
    for delta in deltas:
        assert delta.shape == (3, 32, 16)
        assert delta.abs().max() <= 6 / 255 + 1e-8
        assert delta.abs().mean() == pytest.approx((6 if noise == "sign" else 3) / 255, rel=0.1)
        assert abs(delta.mean()) < 1 / 255
    assert Modification(noise="none").perturbation((32, 16), 0) is None


def test_training_sees_the_noise_that_the_scores_are_of(small, monkeypatch):
    batches, seen = [], []
    real = training._batch

    def batch(*arguments):
        batches.append(real(*arguments))
        return batches[-1]

    monkeypatch.setattr(training, "_batch", batch)
    modification = Modification(start="scratch", loss="identity")
    torch.manual_seed(0)
    model = models.build("agw", 8, "lite")
    perturbation = modification.perturbation(small.size, 0)
    objective = modification.objective(model, perturbation)
    model.stages[0].register_forward_pre_hook(lambda _, args: seen.append(args))
    training.train(model, small, replace(RECIPE.settings, epochs=1), objective=objective, progress=False)
    assert len(seen) == len(batches) > 1
    for (images, modality), (clean, given, _) in zip(seen, batches, strict=True):
        assert torch.equal(modality, given)
        assert modality.unique().tolist() == [0, 1]
        assert torch.allclose(images, perturbation.apply(clean, modality), rtol=0, atol=1e-6)
        assert not torch.equal(images, clean)


def test_the_tap_reads_stage_1_and_the_output_is_stage_2():
    torch.manual_seed(0)
    images, modality = torch.rand(6, 3, 32, 16), torch.tensor([0, 0, 0, 1, 1, 1])
    for sfm in (True, False):
        model = models.build("agw", 8, "lite").eval()
        modules, tap = staged(model, "fsam", (0, 4), sfm)
        insert(model, modules)
        pooled = model(images, modality).pooled
        stage1 = (tap.maps.clamp(min=0) ** 3).mean((2, 3)).pow(1 / 3)
        assert torch.allclose(stage1, pooled, atol=1e-4) != sfm


@pytest.mark.parametrize("form", ["hinge", "linear"])
def test_the_quadruple_loss_is_of_the_centres_of_both_stages(form):
    generator = torch.Generator().manual_seed(3)
    target, modality = torch.tensor([4, 4, 1, 1, 1, 4]), torch.tensor([0, 0, 0, 1, 1, 1])
    modification = Modification(form=form, alpha=0.9)
    model = models.build("agw", 8, "lite")
    objective = modification.objective(model, None)
    *_, tap, sfm = model.double().attention["4"]
    images = torch.rand(6, 3, 32, 16, generator=generator, dtype=torch.float64)
    found = objective(Batch(images, modality, target, 0.0, None, [], generator))
    maps = tap.maps.detach(), sfm(tap.maps, modality).detach()
    stages = [((each.clamp(min=0) ** 3).mean((2, 3)) + 1e-12) ** (1 / 3) for each in maps]

    def centre(stage, identity, kind):
        return stages[stage][(target == identity) & (modality == kind)].mean(0)

    arguments = [
        (centre(1, j, own) - centre(0, j, own)).norm()
        - (centre(1, j, other) - centre(0, j, own)).norm()
        - (centre(1, j, own) - centre(1, k, own)).norm()
        + 0.9
        for own, other in ((0, 1), (1, 0))
        for j, k in ((1, 4), (4, 1))
    ]
    expected = sum(max(0, float(value)) if form == "hinge" else float(value) for value in arguments)
    assert found.losses["other"].item() == pytest.approx(expected, rel=1e-5)
    assert found.noted["active"].item() == sum(value > 0 for value in arguments) / 4


def test_each_loss_is_what_its_name_says(small):
    means = {}
    for loss in ("quadruple", "identity", "recipe"):
        modification = Modification(loss=loss, form="linear", epochs=1, attention="none", sfm=False)
        found = train_modified_victim(RECIPE, small, modification, seed=2, **QUIET)
        (epoch,) = found.card["history"]
        assert all(math.isfinite(value) for value in epoch.values())
        assert not any(name.startswith("attention") for name in found.model.state_dict()), "nothing to learn there"
        means[loss] = epoch["other_loss"]
    assert means["identity"] == 0
    assert means["quadruple"] < 0 < means["recipe"]


@pytest.mark.parametrize("attention", ["fsam", "se", "eca"])
def test_the_modules_train(small, attention, tmp_path, monkeypatch):
    real, drawn = modified_victim.trained_card, {}

    def watched(model, *arguments, **options):
        drawn.update(weights(model))
        return real(model, *arguments, **options)

    monkeypatch.setattr(modified_victim, "trained_card", watched)
    modification = Modification(attention=attention, epochs=1)
    found = train_modified_victim(RECIPE, small, modification, seed=2, folder=tmp_path, **QUIET)
    trained = weights(found.model)
    modules = [name for name in trained if name.startswith("attention.")]
    assert modules
    assert trained.keys() == drawn.keys()
    assert not any(torch.equal(trained[name], drawn[name]) for name in modules)
    assert set(found.model.attention) == {"0", "4"}
    assert set(trained) - set(modules) == set(models.build("agw", 8, "lite").state_dict())


def test_what_is_not_its_own_is_refused_in_one_line(small, tmp_path):
    modification = Modification(epochs=1)
    path = tmp_path / "modified.safetensors"
    for content in (b"", b"no tensors", np.random.default_rng(0).bytes(200)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"not a modified victim .* delete it") as refusal:
            train_modified_victim(RECIPE, small, modification, seed=2, folder=tmp_path, **QUIET)
        assert "\n" not in str(refusal.value)
        assert path.read_bytes() == content, "it is not ours to replace"
    path.unlink()
    train_modified_victim(RECIPE, small, modification, seed=2, folder=tmp_path, **QUIET)
    with pytest.raises(InputError, match="other settings") as refusal:
        train_modified_victim(RECIPE, small, replace(modification, alpha=0.5), seed=2, folder=tmp_path, **QUIET)
    assert "\n" not in str(refusal.value)


def test_a_loss_that_explodes_is_one_line(small):
    recipe = replace(RECIPE, settings=replace(RECIPE.settings, optimiser="sgd", learning_rate=1e12))
    with pytest.raises(InputError, match="not finite") as refusal:
        train_modified_victim(recipe, small, Modification(start="scratch"), **QUIET)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "sfm"}, "attention 'sfm' is unknown; choose from fsam, se, eca, none"),
        ({"loss": "triplet"}, "loss"),
        ({"form": "huber"}, "form"),
        ({"noise": "gauss"}, "noise"),
        ({"start": "imagenet"}, "start"),
        ({"sfm": "yes"}, "sfm must be true or false"),
        ({"normalise": 1}, "normalise must be true or false"),
        ({"alpha": -1}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"eps": 8}, "eps"),
        ({"blocks": (0, 5)}, "blocks"),
        ({"blocks": "04"}, "blocks"),
    ],
)
def test_bad_values_are_refused_in_one_line(options, words):
    with pytest.raises(InputError, match=words) as refusal:
        Modification(**options)
    assert "\n" not in str(refusal.value)
