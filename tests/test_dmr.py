"""The generator attack: the contract of every attack, its loss, and what it saves."""

import numpy as np
import pytest
import torch
from contract import facts, same_facts
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid_lite import models
from vireid_lite.attacks import descent, frozen
from vireid_lite.attacks.dmr import DMR, Generator, GeneratorPerturbation, run
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.attacks.universal import SignNoise
from vireid_lite.data import Modality
from vireid_lite.errors import InputError


@pytest.fixture(scope="module")
def found(store, victim):
    return DMR(steps=3, batch_size=16).fit(victim, store, 1)


@settings(max_examples=10, deadline=None)
@given(
    levels=st.integers(1, 32),
    seed=st.integers(0, 2**31),
    size=st.integers(4, 24),
    tied=st.booleans(),
    black_and_white=st.booleans(),
)
def test_contract(store, saturated, victim, levels, seed, size, tied, black_and_white):
    chosen = saturated if black_and_white else store
    attack = DMR(eps=levels / 255, batch_size=size, tied=tied, steps=2)
    before = facts(victim)
    first = attack.fit(victim, chosen, seed)
    assert same_facts(before, facts(victim))
    assert len(first.history) == 2
    assert first.made_by == {**attack.describe(), "seed": seed}
    assert torch.equal(first.weights, attack.fit(victim, chosen, seed).weights)
    start = attack.start((3, 32, 16), seed)["weights"]
    assert not torch.equal(first.weights, start)  # black and white images have a gradient too
    for modality in Modality:
        images = chosen.batch(np.flatnonzero(chosen.modalities == modality))
        kept = images.clone()
        rounded = first.apply_rounded(images, modality)
        for attacked in (first.apply(images, modality), rounded):
            assert (attacked - images).abs().max() <= attack.eps + 1e-6
            assert attacked.min() >= 0
            assert attacked.max() <= 1
            if tied and modality == Modality.INFRARED:
                assert torch.equal(attacked[:, 0], attacked[:, 1])
                assert torch.equal(attacked[:, 0], attacked[:, 2])
        assert torch.equal((rounded * 255).round() / 255, rounded)
        assert torch.equal(images, kept)
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            first.apply(images + 2, modality)


def test_a_killed_fit_resumes_to_the_same_bits(store, victim, tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "NOTE_EVERY", 1)
    attack = DMR(steps=4, batch_size=8)
    whole = attack.fit(victim, store, 3)

    def kill(step, _):
        if step == 2:
            raise KeyboardInterrupt

    path, before = tmp_path / "note.pt", facts(victim)
    with pytest.raises(KeyboardInterrupt):
        attack.fit(victim, store, 3, state_path=path, watch=kill)
    assert same_facts(before, facts(victim))
    resumed = []
    again = attack.fit(victim, store, 3, state_path=path, watch=lambda step, _: resumed.append(step))
    assert resumed == [2, 3]
    assert torch.equal(again.weights, whole.weights)
    assert again.history == whole.history


def test_the_first_weights_come_from_the_seed_alone():
    first = DMR().start((3, 32, 16), 1)["weights"]
    torch.rand(1)
    assert torch.equal(DMR().start((3, 32, 16), 1)["weights"], first)
    assert not torch.equal(DMR().start((3, 32, 16), 2)["weights"], first)


def test_the_loss_falls(store, victim):
    losses = [note["loss"] for note in DMR(steps=15, batch_size=96).fit(victim, store).history]
    assert min(losses[-3:]) < losses[0]


def test_the_loss_pulls_to_the_farthest_other_and_pushes_from_the_nearest_own(store, victim):
    attack = DMR(batch_size=16)
    with frozen.frozen(victim), torch.no_grad():
        problem, generator = attack.prepare(victim, store, 0)
        weights = attack.start((3, 32, 16), 0)["weights"]
        rows = problem.batches.at(0)
        modalities = store.modalities[rows]
        images = store.batch(rows)
        clean = victim.embed(images, modalities)
        features = victim.embed((images + attack.eps * run(generator, weights, images)).clamp(0, 1), modalities)
        hinges = []
        for one, row in enumerate(rows):
            own, other = [], []
            for two, mate in enumerate(rows):
                same = store.records[mate].identity == store.records[row].identity
                if one != two:
                    (own if same else other).append(two)
            near = min(own, key=lambda two: float((clean[two] - clean[one]).norm()))
            far = max(other, key=lambda two: float((clean[two] - clean[one]).norm()))
            gap = (features[one] - clean[far]).norm() - (features[one] - clean[near]).norm()
            hinges.append(max(0.0, float(gap) + 0.3))
        assert float(attack.loss(victim, problem, generator, weights, rows)) == pytest.approx(np.mean(hinges), abs=1e-5)


def test_each_image_passes_its_own_stem(store, victim):
    attack, counts = DMR(batch_size=16), {}
    stems = {Modality.VISIBLE: victim.stages[0].visible, Modality.INFRARED: victim.stages[0].infrared}
    with frozen.frozen(victim):
        problem, state = attack.prepare(victim, store, 0), attack.start((3, 32, 16), 0)
        hooks = [
            stem.register_forward_hook(lambda _, args, __, modality=modality: counts.update({modality: len(args[0])}))
            for modality, stem in stems.items()
        ]
        attack.step(victim, problem, state, 0, 0)
        for hook in hooks:
            hook.remove()
    assert counts == {Modality.VISIBLE: 8, Modality.INFRARED: 8}


def test_the_steps_are_those_of_adam(store, victim):
    model = models.build("agw", 12, "lite").double()
    model.load_state_dict(victim.state_dict())
    attack = DMR(batch_size=8, steps=4)
    with frozen.frozen(model):
        problem = attack.prepare(model, store, 0)
        state = {name: value.double() for name, value in attack.start((3, 32, 16), 0).items()}
        weights = state["weights"].clone().requires_grad_()
        adam = torch.optim.Adam([weights], attack.learning_rate)
        for step in range(4):
            adam.zero_grad()
            attack.loss(model, *problem, weights, problem[0].batches.at(step)).backward()
            adam.step()
            attack.step(model, problem, state, step, 0)
    assert torch.allclose(state["weights"], weights.detach(), rtol=0, atol=1e-12)


def test_a_perturbation_depends_on_its_own_image_alone(store, found):
    images = store.batch(np.arange(8))
    together = found.apply(images, Modality.VISIBLE)
    alone = torch.cat([found.apply(image[None], Modality.VISIBLE) for image in images])
    assert torch.allclose(together, alone, rtol=0, atol=1e-6)
    shifts = together - images
    assert (shifts[0] - shifts[1]).abs().max() > 1e-3 * found.eps


@pytest.mark.parametrize("size", [(16, 8), (33, 17), (32, 16)])
def test_generator_keeps_the_size_of_any_image(size):
    shifts = Generator()(torch.rand(2, 3, *size))
    assert shifts.shape == (2, 3, *size)
    assert shifts.abs().max() <= 1


def test_run_reads_the_flat_weights_in_order():
    generator, images = Generator(8), torch.rand(2, 3, 16, 8)
    flat = torch.nn.utils.parameters_to_vector(generator.parameters())
    assert torch.equal(run(Generator(8), flat, images), generator(images))


def test_save_and_load(store, found, tmp_path):
    path = tmp_path / "dmr.safetensors"
    found.save(path)
    loaded = GeneratorPerturbation.load(path)
    images = store.batch(np.arange(6))
    assert torch.equal(loaded.apply(images, Modality.INFRARED), found.apply(images, Modality.INFRARED))
    for name in ("size", "eps", "width", "tied", "history", "made_by"):
        assert getattr(loaded, name) == getattr(found, name)


def test_other_files_and_sizes_are_refused_in_one_line(store, victim, found, tmp_path):
    path = tmp_path / "noise.safetensors"
    SignNoise().fit(victim, store).save(path)
    with pytest.raises(InputError, match="not a generator") as refusal:
        GeneratorPerturbation.load(path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="no such"):
        GeneratorPerturbation.load(tmp_path / "absent")
    found.save(path)
    with pytest.raises(InputError, match="not a perturbation"):
        UniversalPerturbation.load(path)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a generator"):
        GeneratorPerturbation.load(damaged)
    with pytest.raises(InputError, match="32x16"):
        found.apply(torch.rand(1, 3, 64, 32), Modality.VISIBLE)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"width": 12}, "multiple of 8"), ({"learning_rate": 0}, "learning_rate"), ({"instances": 1}, "instances")],
)
def test_bad_values_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        DMR(**options)
