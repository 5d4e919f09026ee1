"""Universal baselines: the contract of every attack, and each attack's own loss and step."""

import math
from dataclasses import replace

import draws
import numpy as np
import pytest
import torch
from contract import (
    check_applied,
    check_resumes,
    check_training_sees_what_apply_makes,
    facts,
    only,
    rows_of,
    same_facts,
    stem_counts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid_lite import models
from vireid_lite.attacks import ATTACKS, frozen
from vireid_lite.attacks.cmps_switches import SWITCHES
from vireid_lite.attacks.dmr import DMR
from vireid_lite.attacks.features import batch_mates
from vireid_lite.attacks.perturbation import UniversalPerturbation, lattice_shift
from vireid_lite.attacks.universal import UNIVERSAL, ColDel, MetaAttack, SignNoise, UAPRetrieval, UniformNoise
from vireid_lite.data import ImageStore, Modality, people
from vireid_lite.data.batches import IdentityBatches
from vireid_lite.errors import InputError

FITTED = {**UNIVERSAL, "dmr": DMR}
GRADIENT = [name for name, attack in UNIVERSAL.items() if attack.gradients_per_step]
LEARNING = pytest.mark.parametrize("name", [*GRADIENT, "dmr"])


@settings(max_examples=draws.of(40), deadline=None)
@given(
    name=st.sampled_from(sorted(FITTED)),
    levels=st.integers(1, 32),
    seed=st.integers(0, 2**31),
    size=st.integers(4, 24),
    tied=st.booleans(),
    black_and_white=st.booleans(),
    double=st.booleans(),
)
def test_contract(store, saturated, victim, name, levels, seed, size, tied, black_and_white, double):
    chosen = saturated if black_and_white else store
    options = {"budget": "double" if double else "total"} if name == "col-del" else {}
    steps = {"steps": 2} if ATTACKS[name].gradients_per_step else {}
    attack = ATTACKS[name](eps=levels / 255, batch_size=size, tied=tied, **steps, **options)
    before = facts(victim)
    found = attack.fit(victim, chosen, seed)
    assert same_facts(before, facts(victim))
    assert len(found.history) == attack.steps
    told = {"people": found.made_by["people"]} if chosen is store and attack.gradients_per_step else {}
    assert found.made_by == {**attack.describe(), "seed": seed, **told}
    assert found.people == (people(chosen.dataset, chosen.records) if told else set())
    assert found.made_by["name"] == name
    again = attack.fit(victim, chosen, seed)
    with frozen.frozen(victim):
        drawn = attack.finish(attack.begin(victim, chosen, seed)[1], [], seed)
    for what, tensor in found.tensors().items():  # a black or white image still has a gradient
        assert torch.equal(tensor, again.tensors()[what])
        assert torch.equal(tensor, drawn.tensors()[what]) != (attack.gradients_per_step > 0)
        if name != "dmr":
            assert tensor.abs().max() <= attack.eps + 1e-6
            assert tensor.any()
    check_applied(found, again, chosen)


@LEARNING
def test_a_killed_fit_resumes_to_the_same_bits(store, victim, name, tmp_path, monkeypatch):
    check_resumes(ATTACKS[name](steps=4, batch_size=8), victim, store, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", GRADIENT)
def test_the_loss_falls(store, victim, name):
    # A batch of everything: the loss is then a function of delta alone.
    options = {"grey_probability": 0.0} if name == "uap-retrieval-grey" else {}
    history = UNIVERSAL[name](steps=8, batch_size=48 if name == "meta-attack" else 96, **options).fit(victim, store)
    losses = [note["loss"] for note in history.history]
    if name == "meta-attack":  # the modalities take turns
        assert losses[6] < losses[0]
        assert losses[7] < losses[1]
    else:
        assert losses[-1] < losses[0]
    assert (losses[0] < 0) == (name == "uap")  # a cross-entropy that grows; the others are hinges


@pytest.mark.parametrize("name", ["uap", "uap-retrieval", "meta-attack", "col-del"])
def test_training_sees_what_apply_makes(store, victim, name):
    # A full delta and a full lattice together: the sum is within eps, and tied on infrared images, in training too.
    attack = UNIVERSAL[name](batch_size=16, tied=True)
    with frozen.frozen(victim):
        problem, state = attack.begin(victim, store, 0)
        for what in {"delta", "lattice"} & state.keys():
            state[what] = attack.eps * (2 * torch.rand_like(state[what]) - 1)
        rows = problem.batches.each[Modality.VISIBLE].at(0) if name == "meta-attack" else problem.batches.at(0)
        check_training_sees_what_apply_makes(attack, victim, store, problem, state, rows)


@LEARNING
def test_each_image_passes_its_own_stem(store, victim, name):
    attack = ATTACKS[name](batch_size=16, steps=1)
    with frozen.frozen(victim):
        problem, state = attack.begin(victim, store, 0)
        with stem_counts(victim) as counts:
            attack.step(victim, problem, state, 0, 0)
    assert counts == dict.fromkeys(Modality, 8 * attack.gradients_per_step)


def test_noise_keeps_its_size_when_tied(store, victim):
    for attack in (UniformNoise, SignNoise):
        free, tied = attack().fit(victim, store, 5), attack(tied=True).fit(victim, store, 5)
        assert torch.equal(tied.delta[Modality.VISIBLE], free.delta)
        infrared = tied.delta[Modality.INFRARED]
        assert torch.equal(infrared[0], free.delta[0])
        assert torch.equal(infrared[0], infrared[2])
    assert torch.equal(infrared.abs(), torch.full_like(infrared, float(infrared.abs().max())))
    assert not torch.equal(free.delta, SignNoise().fit(victim, store, 6).delta)


def slow_shift(lattice, image):
    """Trilinear interpolation by the book, one pixel at a time."""
    levels = lattice.shape[1]
    shift = torch.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            place = [float(value) * (levels - 1) for value in image[:, y, x]]
            low = [min(int(value), levels - 2) for value in place]
            for corner in range(8):
                bits = [corner >> axis & 1 for axis in range(3)]
                weight = math.prod(p - i if b else 1 - (p - i) for p, i, b in zip(place, low, bits, strict=True))
                node = [i + b for i, b in zip(low, bits, strict=True)]
                shift[:, y, x] += weight * lattice[:, node[0], node[1], node[2]]
    return shift


@pytest.mark.parametrize("levels", [2, 5, 25])
def test_lattice_shift_is_trilinear_interpolation(levels):
    generator = torch.Generator().manual_seed(levels)
    lattice = torch.randn(3, levels, levels, levels, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 3, 6, 4, generator=generator, dtype=torch.float64)
    images[0, :, 0] = 0
    images[0, :, 1] = 1
    images[1, :, :2] = torch.arange(levels).double()[torch.randint(levels, (3, 2, 4))] / (levels - 1)
    slow = torch.stack([slow_shift(lattice, image) for image in images])
    assert torch.allclose(lattice_shift(lattice, images), slow, rtol=0, atol=1e-12)


def test_a_zero_lattice_changes_nothing(store):
    images = store.batch(np.arange(8))
    delta = torch.zeros(3, 32, 16)
    found = UniversalPerturbation(delta, 8 / 255, lattice=torch.zeros(3, 25, 25, 25))
    assert torch.equal(found.apply(images, Modality.VISIBLE), images)


def test_col_del_budgets(store, victim):
    images = store.batch(rows_of(store, Modality.VISIBLE))
    reached = {}
    for budget in ("total", "double"):
        found = ColDel(steps=15, batch_size=16, budget=budget).fit(victim, store)
        reached[budget] = float((found.apply(images, Modality.VISIBLE) - images).abs().max()) * 255
        assert found.lattice.abs().max() <= 8 / 255 + 1e-6
    assert reached["total"] <= 8 + 1e-3
    assert 8 < reached["double"] <= 16 + 1e-3


def test_meta_attack_agrees_with_a_naive_step(store, victim):
    model = models.build("agw", 12, "lite").double()
    model.load_state_dict(victim.state_dict())
    model.eval()
    attack = MetaAttack(batch_size=6, steps=5, eps=4 / 255, decay=0.1, step_share=0.7)
    # Crops away from black and white, so that the clip to [0, 1] plays no part.
    store = ImageStore(np.clip(store.images, 20, 235), store.records)
    problem = attack.prepare(model, store, 0)
    banks = {modality: problem.centroids[problem.bank == modality] for modality in Modality}

    def gradient(delta, rows):
        delta = delta.clone().requires_grad_()
        margins, own_scores, best_scores = [], [], []
        for row in rows:
            modality = store.records[row].modality
            bank = banks[modality]
            image = store.batch(np.array([row])).double()
            clean = model.embed(image, modality)[0].detach()
            scores = [float(clean @ point / point.norm()) for point in bank]
            own, least = int(np.argmax(scores)), int(np.argmin(scores))
            pixels = image + delta
            feature = model.embed(pixels, modality)[0]
            margins.append(((feature - bank[least]).norm() - (feature - bank[own]).norm() + 0.5).clamp(min=0))
            own_scores.append(feature @ bank[own])
            best_scores.append(max(feature @ point for index, point in enumerate(bank) if index != own))
        mean = [sum(values) / len(rows) for values in (margins, own_scores, best_scores)]
        loss = 10 * mean[0] + (mean[1] - mean[2]).clamp(min=0)
        return torch.autograd.grad(loss, delta)[0]

    state = {name: value.double() for name, value in attack.start((3, 32, 16), 0).items()}
    delta, momentum = torch.zeros(2, 3, 32, 16, dtype=torch.float64)
    eps = 4 / 255
    with frozen.frozen(model):
        for step in range(5):
            epoch = step // problem.batches.per_epoch
            size = 0.7 * eps * math.exp(-0.1 * (epoch + 1))
            order = [Modality.VISIBLE, Modality.INFRARED] if step % 2 == 0 else [Modality.INFRARED, Modality.VISIBLE]
            train, test = (problem.batches.each[modality].at(step) for modality in order)
            first = gradient(delta, train)
            ahead = delta - size * (momentum + first / first.abs().sum()).sign()
            clipped = ahead.clamp(-eps, eps)
            second = gradient(clipped, test) * (ahead == clipped)
            momentum = momentum + (first + second) / (first + second).abs().sum()
            delta = (delta - size * momentum.sign()).clamp(-eps, eps)
            attack.step(model, problem, state, step, 0)
            assert torch.allclose(state["momentum"], momentum, rtol=0, atol=1e-12)
            assert torch.allclose(state["delta"], delta, rtol=0, atol=1e-12)


def test_grey_crops_are_the_luma(store, victim):
    def crops(probability):
        """Return what the network sees in the first step, where delta is zero."""
        attack, seen = UAPRetrieval(grey_probability=probability), []
        with frozen.frozen(victim):
            problem, state = attack.begin(victim, store, 0)
            hook = victim.stages[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
            attack.step(victim, problem, state, 0, 0)
            hook.remove()
        return seen[0], problem.batches.at(0)

    (grey, rows), (plain, _), (some, _) = crops(1.0), crops(0.0), crops(0.5)
    assert torch.equal(grey[:, 0], grey[:, 2])
    luma = sum(share * plain[:, channel] for channel, share in enumerate((0.299, 0.587, 0.114)))
    assert torch.allclose(grey[:, 0], luma, atol=1e-6)
    infrared = store.modalities[rows] == Modality.INFRARED
    assert torch.allclose(grey[infrared], plain[infrared], atol=1e-6)
    greyed, kept = (torch.stack([(some == other).flatten(1).all(1) for other in (grey, plain)])).float().sum(1)
    assert 4 < greyed < 28
    assert 4 < kept < 28


def test_uap_retrieval_compares_and_clips_as_published_where_asked(store, victim):
    with frozen.frozen(victim):
        ours, theirs = (UAPRetrieval(published=each).prepare(victim, store, 0) for each in (False, True))
        features = victim.embed(store.batch(np.arange(len(store))), store.modalities)
        dots = features @ theirs.centroids.T
        assert torch.equal(dots.argmin(1), theirs.pull)
        assert torch.equal(dots.argmax(1), theirs.push)
        assert not torch.equal(torch.stack([ours.pull, ours.push]), torch.stack([theirs.pull, theirs.push]))
        delta, rows = torch.full(store.images.shape[1:3], 0.1).expand(3, -1, -1), np.arange(8)
        # White crops with delta are outside the range everywhere.
        white = replace(ours, store=ImageStore(np.full_like(store.images, 255), store.records))
        straight, none = (
            UAPRetrieval(published=each).gradient(victim, white, delta, rows)[0] for each in (False, True)
        )
    assert straight.any()
    assert not none.any()


def test_a_delta_that_stands_still_is_halved():
    attack = UAPRetrieval(eps=0.1)
    state = {"delta": torch.full((3, 4, 4), 0.1), "saturation": torch.ones(())}
    size = attack.step_size(5, state, 5)
    assert torch.equal(state["delta"], torch.full((3, 4, 4), 0.05))
    assert size == pytest.approx(0.01 * math.exp(-0.02))
    attack.step_size(5, state, 10)
    assert torch.equal(state["delta"], torch.full((3, 4, 4), 0.05))  # no longer saturated
    moving = {"delta": torch.full((3, 4, 4), 0.1), "saturation": torch.zeros(())}
    attack.step_size(5, moving, 0)
    assert moving["delta"].max() == pytest.approx(0.1)


@settings(max_examples=draws.of(30), deadline=None)
@given(size=st.integers(4, 200), instances=st.integers(2, 12), seed=st.integers(0, 9), step=st.integers(0, 9))
def test_identity_batches(store, size, instances, seed, step):
    rows = IdentityBatches(store, size, seed, instances).at(step)
    assert len(rows) <= size
    assert len(np.unique(rows)) == len(rows)
    modalities = store.modalities[rows]
    assert (modalities.diff() >= 0).all()
    assert modalities.unique().tolist() == [0, 1]
    _, counts = np.unique([store.records[row].identity for row in rows], return_counts=True)
    assert len(counts) >= 2
    assert counts.min() >= 2
    assert counts.max() <= instances


def test_batch_mates_by_hand():
    clean = torch.tensor([[0.0], [1.0], [3.0], [10.0], [11.0], [30.0]])
    identities = torch.tensor([0, 0, 0, 1, 1, 2])
    far, farthest = batch_mates(clean, identities, own="farthest")
    _, nearest = batch_mates(clean, identities, own="nearest")
    assert far.tolist() == [5, 5, 5, 5, 5, 0]
    assert farthest.tolist() == [2, 2, 0, 4, 3, 5]
    assert nearest.tolist() == [1, 0, 1, 4, 3, 5]


REFUSED = {
    "col-del": [{"budget": "triple"}, {"levels": 1}, {"altered": "mirrored"}],
    "sign-noise": [{"cells": 1.5}, {"altered": True}],
    "uap": [{"step_share": 0}, {"rescale": 1}],
    "uap-retrieval": [{"grey_probability": 1.5}, {"clusters": -1}],
    "meta-attack": [{"margin": "0.5"}],
    "dmr": [{"learning_rate": 0}, {"instances": 1}],
    "sma": [{"eps": 0}, {"eps": 2}, {"steps": 0}, {"steps": 1.5}, {"step_size": 0}, {"step_size": True}, {"tied": 1}],
    "cmps": [
        *({"mode": "both"}, {"eps": 0}, {"eps": 8}, {"steps": 0}, {"grey_probability": 2}, {"clusters": -1}),
        *({"momentum": "1"}, {"tied": 1}, {"modalities": "visible", "update": "joint"}),
        *({"grey_anchor": True, "bank": "same"}, *({switch: "neither"} for switch in SWITCHES)),
    ],
    "feature-level": [
        *({"attention": "sfm"}, {"identity": True}, {"heads": "none"}, {"initial": "gauss"}, {"blocks": 4}),
        *({"blocks": [5]}, {"blocks": [True]}, {"alpha": -0.1}, {"alpha": math.nan}, {"head_rate": "fast"}),
        *({"instances": 1}, {"eps": 0}, {"step_share": 0}),
    ],
}
SAID = [
    ("dmr", {"width": 12}, "multiple of 8"),
    ("feature-level", {"form": "huber"}, "form 'huber' is unknown; choose from hinge, linear"),
    ("feature-level", {"sfm": 1}, "sfm must be true or false"),
    ("feature-level", {"learn_delta": "no"}, "learn_delta must be true or false"),
    ("feature-level", {"blocks": [4, 4]}, "one block twice"),
]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [*SAID, *((name, options, list(options)[-1]) for name, all_of in REFUSED.items() for options in all_of)],
)
def test_bad_values_are_refused_in_one_line(name, options, words):
    with pytest.raises(InputError, match=words) as refusal:
        ATTACKS[name](**options)
    assert "\n" not in str(refusal.value)


def test_too_few_identities_are_refused(store, victim):
    one = only(store, lambda record: record.identity == store.records[0].identity)
    for name in ("uap-retrieval", "meta-attack", "col-del"):
        with pytest.raises(InputError, match="2"):
            UNIVERSAL[name](steps=1, batch_size=4).fit(victim, one)
    with pytest.raises(InputError, match="batch_size"):
        ColDel(steps=1, batch_size=3).fit(victim, store)
