"""The generator attack: its loss, its steps, and what it saves; test_universal has the contract of every attack."""

import numpy as np
import pytest
import torch

from vireid_lite import models
from vireid_lite.attacks import frozen
from vireid_lite.attacks.budget import project
from vireid_lite.attacks.dmr import DMR, Generator, GeneratorPerturbation
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.attacks.universal import SignNoise
from vireid_lite.data import Modality
from vireid_lite.errors import InputError


@pytest.fixture(scope="module")
def found(store, victim):
    return DMR(steps=3, batch_size=16).fit(victim, store, 1)


def drawn(attack, model, store, seed):
    """Return the generator's weights before the first step."""
    return attack.finish(attack.begin(model, store, seed)[1], [], seed).weights


def test_the_first_weights_come_from_the_seed_alone(store, victim):
    with frozen.frozen(victim):
        first, other = (drawn(DMR(), victim, store, seed) for seed in (1, 2))
        torch.rand(1)
        again = drawn(DMR(), victim, store, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_loss_falls(store, victim):
    losses = [note["loss"] for note in DMR(steps=15, batch_size=96).fit(victim, store).history]
    assert min(losses[-3:]) < losses[0]


def test_the_loss_pulls_to_the_farthest_other_and_pushes_from_the_nearest_own(store, victim):
    attack = DMR(batch_size=16)
    with frozen.frozen(victim), torch.no_grad():
        problem, state = attack.begin(victim, store, 0)
        rows = problem.batches.at(0)
        modalities = store.modalities[rows]
        images = store.batch(rows)
        clean = victim.embed(images, modalities)
        features = victim.embed((images + attack.eps * state["generator"](images)).clamp(0, 1), modalities)
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
        assert float(attack.loss(victim, problem, state["generator"], rows)) == pytest.approx(np.mean(hinges), abs=1e-5)


def test_the_steps_are_those_of_adam(store, victim):
    model = models.build("agw", 12, "lite").double()
    model.load_state_dict(victim.state_dict())
    attack = DMR(batch_size=8, steps=4)
    with frozen.frozen(model):
        problem, state = attack.begin(model, store, 0)
        other = attack.begin(model, store, 0)[1]["generator"]
        weights = list(other.parameters())
        first, second = ([torch.zeros_like(each) for each in weights] for _ in range(2))
        for step in range(4):
            gradients = torch.autograd.grad(attack.loss(model, problem, other, problem.batches.at(step)), weights)
            for weight, slope, m, v in zip(weights, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * slope)
                v.mul_(0.999).add_(0.001 * slope.square())
                mean, square = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                weight.data -= attack.learning_rate * mean / (square.sqrt() + 1e-8)
            attack.step(model, problem, state, step, 0)
    for weight, found in zip(weights, state["generator"].parameters(), strict=True):
        assert torch.allclose(found, weight, rtol=0, atol=1e-11)


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


def test_a_perturbation_reads_the_flat_weights_in_order():
    generator, images = Generator(8), torch.rand(2, 3, 16, 8)
    flat = torch.nn.utils.parameters_to_vector(generator.parameters()).detach()
    found = GeneratorPerturbation(flat, (16, 8), 0.1, 8).apply(images, Modality.VISIBLE)
    assert torch.equal(found, project(images + 0.1 * generator(images).detach(), images, 0.1))


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
