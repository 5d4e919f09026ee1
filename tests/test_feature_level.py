"""The bounded feature-level attack: the contract of every attack, its loss against a naive one, and each switch."""

import dataclasses
import itertools
import math

import draws
import numpy as np
import pytest
import torch
from contract import check_applied, check_resumes, check_training_sees_what_apply_makes, facts, only, same_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vireid_lite import models
from vireid_lite.attacks import build_attack, frozen
from vireid_lite.attacks.feature_level import FeatureLevelAttack
from vireid_lite.data import ImageStore, Modality
from vireid_lite.errors import InputError

SHAPE = (3, 32, 16)
WHOLE = 96  # a batch of every training crop of `tiny`: the loss is then a function of delta and heads alone


@settings(max_examples=draws.of(15), deadline=None)
@given(
    levels=st.integers(1, 32),
    seed=st.integers(0, 2**31),
    size=st.integers(4, 24),
    black_and_white=st.booleans(),
    switches=st.fixed_dictionaries({name: st.booleans() for name in ("tied", "shared", "sfm", "normalise")}),
    parts=st.sampled_from([(True, "on"), (True, "off"), (True, "reversed"), (False, "on"), (False, "reversed")]),
    attention=st.sampled_from(["fsam", "se", "eca", "none"]),
    form=st.sampled_from(["hinge", "linear"]),
    heads=st.sampled_from(["learned", "frozen"]),
    initial=st.sampled_from(["uniform", "sign"]),
)
def test_contract(store, saturated, victim, levels, seed, size, black_and_white, switches, parts, **options):
    chosen = saturated if black_and_white else store
    options |= {**switches, "quadruple": parts[0], "identity": parts[1]}
    attack = FeatureLevelAttack(eps=levels / 255, batch_size=size, steps=2, **options)
    before, drawn = facts(victim), torch.get_rng_state()
    found = attack.fit(victim, chosen, seed)
    assert same_facts(before, facts(victim))
    assert torch.equal(torch.get_rng_state(), drawn), "heads are drawn from the seed, not from whoever called"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in victim.modules())
    assert [note["step"] for note in found.history] == [0, 1]
    assert found.made_by["name"] == "feature-level"
    again = attack.fit(victim, chosen, seed)
    assert again.history == found.history
    assert isinstance(found.delta, torch.Tensor) == switches["shared"]
    for delta in [found.delta] if switches["shared"] else found.delta.values():
        assert delta.shape == SHAPE
        assert delta.abs().max() <= attack.eps + 1e-6
    check_applied(found, again, chosen)


def tensors(note):
    """Return every tensor of a note's state, however deep it lies."""
    if isinstance(note, torch.Tensor):
        return [note]
    inner = note.values() if isinstance(note, dict) else note if isinstance(note, list) else []
    return [tensor for part in inner for tensor in tensors(part)]


@pytest.mark.parametrize("options", [{"form": "linear"}, {"attention": "eca", "shared": True}])
def test_a_killed_fit_resumes_to_the_same_bits(store, victim, options, tmp_path, monkeypatch):
    attack = FeatureLevelAttack(steps=5, batch_size=8, **options)
    # The notes before the last step hold what the perturbation leaves out: the heads and every momentum.
    notes = check_resumes(attack, victim, store, tmp_path, monkeypatch)
    assert notes[0].keys() == notes[1].keys() >= {"delta", "momentum", "heads", "sgd"}
    flat = [torch.cat([part.flatten() for part in tensors(note)]) for note in notes]
    assert len(notes[0]["heads"]) == len(notes[0]["sgd"]["state"]) > 0
    assert torch.equal(*flat)


def distance(first, second):
    """Euclidean distance of two vectors; its gradient at 0 is 0."""
    squared = ((first - second) ** 2).sum()
    return squared.sqrt() if squared > 0 else 0 * squared


def naive_map(network, head, image, modality):
    """Return the stage 1 and stage 2 maps of one image, by section 3.2 of the paper, FSAM after blocks 0 and 4."""

    def attend(conv, values):  # (C, h, w) -> (1, h, w)
        pooled = torch.stack([values.max(0).values, values.mean(0)])
        return torch.sigmoid(functional.conv2d(pooled[None], conv.weight, padding=3)[0])

    def fsam(module, values):
        conv = (module.visible, module.infrared)[modality].conv
        size = math.sqrt(values.shape[1] * values.shape[2])
        spectrum = torch.fft.fft2(values) / size
        amplitude, phase = spectrum.abs(), torch.atan2(spectrum.imag + 0.0, spectrum.real)
        phase = attend(conv, phase) * phase
        return (torch.fft.ifft2(torch.complex(amplitude * phase.cos(), amplitude * phase.sin())) * size).real

    maps = fsam(head[0][0], network.stages[0](image[None], modality)[0])
    for block in range(1, 5):
        maps = network.stages[block](maps[None])[0]
    first = fsam(head[4][0], maps)
    sfm = head[4][-1]
    return first, attend((sfm.visible, sfm.infrared)[modality].conv, first) * first


@pytest.fixture(scope="module")
def large(store):
    """Crops that leave 4x2 positions after block 4, and whose clip to [0, 1] plays no part."""
    images = store.images.repeat(2, 1).repeat(2, 2).clip(20, 235)
    noise = np.random.default_rng(0).integers(-10, 11, images.shape)
    infrared = (store.modalities == Modality.INFRARED).numpy()
    noise[infrared] = noise[infrared][..., :1]
    return ImageStore((images + noise).astype(np.uint8), store.records)


@pytest.mark.parametrize(
    ("differentiated", "more"),
    [(("hinge", "on"), {}), (("linear", "reversed"), {"tied": True, "shared": True, "normalise": True})],
)
def test_the_objective_is_the_papers_sum(large, victim, differentiated, more):
    model = models.build("agw", 12, "lite").double().eval()
    model.load_state_dict(victim.state_dict())
    attack = FeatureLevelAttack(batch_size=12, instances=4, **more)
    with frozen.frozen(model):
        problem = attack.prepare(model, large, 5)
        delta = attack.start((3, 64, 32), 5)["delta"].double().requires_grad_()
        rows = problem.batches.at(2)
        pooled, entropy = {}, 0.0
        for row in rows:
            record, image = large.records[row], large.batch(np.array([row])).double()[0]
            shift = delta[0] if attack.shared else delta[record.modality]
            if attack.tied and record.modality == Modality.INFRARED:
                shift = (shift[0] + shift[1] + shift[2]) / 3
            maps = naive_map(model, problem.heads, image + shift, record.modality)
            stages = [((each.relu() ** 3).mean((1, 2)) + 1e-12) ** (1 / 3) for each in maps]
            pooled.setdefault(record.identity, ([], []))[record.modality].append(stages)
            predicted = model(image[None], record.modality).logits[0].argmax()
            logits = model.classifier(model.bottleneck(stages[1][None]))[0]
            entropy = entropy + (logits.exp().sum().log() - logits[predicted]) / len(rows)

    def centre(images, stage):
        mean = sum(image[stage] for image in images) / len(images)
        return mean / mean.norm() if attack.normalise else mean

    people = sorted(pooled)
    c1, c2 = ([[centre(pooled[name][m], stage) for name in people] for m in Modality] for stage in (0, 1))
    arguments = [
        distance(c2[own][j], c1[own][j]) - distance(c2[other][j], c1[own][j]) - distance(c2[own][j], c2[own][k])
        for own, other in ((0, 1), (1, 0))
        for j, k in itertools.permutations(range(len(people)), 2)
    ]
    assert len(arguments) == 12
    # Halfway between the two in the middle: half of the hinges are above zero.
    alpha = -torch.stack(arguments).detach().sort().values[5:7].mean().item()
    above = [argument + alpha for argument in arguments if argument + alpha > 0]
    assert len(above) == 6
    quadruple = {"hinge": sum(above), "linear": sum(argument + alpha for argument in arguments)}
    # The gradients last, as they free the graph.
    forms = sorted(itertools.product(("hinge", "linear"), ("on", "off", "reversed")), key=differentiated.__eq__)
    for form, identity in forms:
        loss = quadruple[form] + {"on": entropy, "off": 0.0, "reversed": -entropy}[identity]
        asked = [delta, *problem.modules.parameters()]
        with frozen.frozen(model):
            chosen = dataclasses.replace(attack, form=form, identity=identity, alpha=alpha)
            found = chosen.objective(model, problem, delta, rows)
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-9)
        assert found["quadruple"].item() == pytest.approx(quadruple[form].item(), rel=1e-9)
        assert found["identity"].item() == pytest.approx(0.0 if identity == "off" else entropy.item(), rel=1e-9)
        assert found["active"].item() == 0.5
    assert (form, identity) == differentiated
    slopes, naive = (torch.autograd.grad(each, asked) for each in (found["loss"], loss))
    for first, second in zip(slopes, naive, strict=True):
        assert first.abs().max() > 0
        assert (first - second).abs().max() <= 1e-6 * second.abs().max()


def values(problem):
    """Return the heads' weights as one vector."""
    return torch.nn.utils.parameters_to_vector(problem.modules.parameters()).detach().clone()


def test_heads_learn_as_with_sgd(store, victim):
    model = models.build("agw", 12, "lite").double().eval()  # the decay is far below float32's rounding of the slope
    model.load_state_dict(victim.state_dict())
    attack = FeatureLevelAttack(form="linear", learn_delta=False, head_rate=1e-3, batch_size=16)
    with frozen.frozen(model):
        problem, state = attack.begin(model, store, 0)
        other, _ = attack.begin(model, store, 0)
        weights = list(other.modules.parameters())
        moments = [torch.zeros_like(weight) for weight in weights]
        for step in range(3):
            attack.step(model, problem, state, step, 0)
            loss = attack.objective(model, other, state["delta"], other.batches.at(step))["loss"]
            for weight, moment, slope in zip(weights, moments, torch.autograd.grad(loss, weights), strict=True):
                moment.mul_(0.9).add_(slope + 5e-4 * weight.detach())
                weight.data -= 1e-3 * moment
            assert torch.allclose(values(problem), values(other), rtol=0, atol=1e-11)


def test_without_a_loss_delta_stays_the_noise_it_was(store, victim):
    for initial, levels in (("uniform", None), ("sign", {8}), ("zero", {0})):
        attack = FeatureLevelAttack(quadruple=False, identity="off", initial=initial, steps=3)
        found = attack.fit(victim, store, 4)
        start = attack.start(SHAPE, 4)["delta"]
        assert all(torch.equal(found.delta[modality], start[modality]) for modality in Modality)
        assert all(note["loss"] == 0 for note in found.history)
        if levels is not None:
            assert set((start.abs() * 255).round().unique().tolist()) == levels
        if initial != "zero":
            assert not torch.equal(start[0], start[1]), "one noise for each modality"
            assert not torch.equal(start, attack.start(SHAPE, 5)["delta"])


def test_without_learn_delta_only_the_heads_learn(store, victim):
    options = {"form": "linear", "learn_delta": False, "head_rate": 1e-4, "batch_size": WHOLE, "steps": 4}
    attack = FeatureLevelAttack(**options)
    found = attack.fit(victim, store, 4)
    start = attack.start(SHAPE, 4)["delta"]
    assert all(torch.equal(found.delta[modality], start[modality]) for modality in Modality)
    losses = [note["loss"] for note in found.history]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    still = FeatureLevelAttack(**options, heads="frozen").fit(victim, store, 4)
    assert [note["loss"] for note in still.history] == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_frozen_heads_stay_as_they_were_drawn(store, victim):
    moved = {}
    for heads in ("frozen", "learned"):
        attack = FeatureLevelAttack(form="linear", heads=heads, batch_size=16)
        with frozen.frozen(victim):
            problem, state = attack.begin(victim, store, 0)
            drawn = values(problem)
            for step in range(3):
                attack.step(victim, problem, state, step, 0)
            moved[heads] = not torch.equal(values(problem), drawn)
            assert ("heads" in state) == (heads == "learned")
            another, _ = attack.begin(victim, store, 1)
        assert not torch.equal(values(another), drawn), "another seed draws other heads"
    assert moved == {"frozen": False, "learned": True}


def test_the_switches_choose_the_heads(store, victim):
    # 98 weights a convolution, one for each modality: twice FSAM and SFM, as few as the paper's parameter count allows.
    for attention, sfm, blocks, size in (
        ("fsam", True, (0, 4), 6 * 98),
        ("fsam", False, (0, 4), 4 * 98),
        ("fsam", False, (4,), 2 * 98),
        ("none", True, (0, 4), 2 * 98),
        ("se", False, (0,), 2 * 2 * 24 * 1),
        ("eca", False, (0,), 2 * 3),
    ):
        problem, _ = FeatureLevelAttack(attention=attention, sfm=sfm, blocks=blocks).begin(victim, store, 0)
        assert sum(parameter.numel() for parameter in problem.modules.parameters()) == size
        assert problem.classes is not None
    bare, state = FeatureLevelAttack(attention="none", sfm=False).begin(victim, store, 0)
    assert not list(bare.modules.parameters())
    assert "heads" not in state
    assert FeatureLevelAttack(identity="off").begin(victim, store, 0)[0].classes is None


def test_without_sfm_both_stages_are_one(store, victim):
    # D(x_2, x_1) of one modality is 0 then, so that the linear loss only pushes apart.
    attack = FeatureLevelAttack(sfm=False, form="linear", identity="off", alpha=0.0, batch_size=16)
    with frozen.frozen(victim):
        problem, state = attack.begin(victim, store, 0)
        found = attack.objective(victim, problem, state["delta"], problem.batches.at(0))
    assert found["quadruple"] < 0
    assert found["active"] == 0


@pytest.mark.parametrize("identity", ["on", "off", "reversed"])
@pytest.mark.parametrize("shared", [False, True])
def test_one_step_lowers_the_linear_loss(store, victim, identity, shared):
    options = {"identity": identity, "shared": shared, "form": "linear", "batch_size": WHOLE, "initial": "zero"}
    attack = FeatureLevelAttack(**options, heads="frozen", step_share=0.02)
    with frozen.frozen(victim):
        problem, state = attack.begin(victim, store, 0)
        rows = problem.batches.at(0)
        before = attack.objective(victim, problem, state["delta"], rows)
        note = attack.step(victim, problem, state, 0, 0)
        after = attack.objective(victim, problem, state["delta"], rows)
    assert note == pytest.approx({name: value.item() for name, value in before.items()})
    assert after["loss"] < before["loss"]
    assert state["delta"].abs().max() == pytest.approx(0.02 * attack.eps)


def test_reversed_identity_raises_what_on_lowers(store, victim):
    entropy = {}
    for identity in ("on", "reversed"):
        attack = FeatureLevelAttack(
            quadruple=False, identity=identity, attention="none", sfm=False, batch_size=WHOLE, initial="zero", steps=4
        )
        history = attack.fit(victim, store).history
        entropy[identity] = history[-1]["identity"] - history[0]["identity"]
        assert history[0]["loss"] == pytest.approx((1 if identity == "on" else -1) * history[0]["identity"])
    assert entropy["on"] < 0 < entropy["reversed"]


@pytest.mark.parametrize("shared", [False, True])
def test_training_sees_what_apply_makes(store, victim, shared):
    attack = FeatureLevelAttack(batch_size=16, tied=True, shared=shared, initial="sign")
    with frozen.frozen(victim):
        problem, state = attack.begin(victim, store, 0)
        check_training_sees_what_apply_makes(attack, victim, store, problem, state, problem.batches.at(0))


def test_the_modalities_share_one_delta_where_asked(store, victim):
    options = {"form": "linear", "identity": "off", "steps": 2, "batch_size": 16}
    one, two = (FeatureLevelAttack(**options, shared=shared).fit(victim, store) for shared in (True, False))
    assert one.delta.shape == SHAPE
    assert set(two.delta) == set(Modality)
    assert not torch.equal(two.delta[Modality.VISIBLE], two.delta[Modality.INFRARED])


def test_the_heads_of_an_attack_change_its_delta(store, victim):
    options = {"form": "linear", "identity": "off", "steps": 2, "batch_size": 16, "initial": "zero"}
    ways = {}, {"heads": "frozen"}, {"sfm": False}, {"attention": "none"}, {"blocks": (4,)}, {"attention": "se"}
    found = [FeatureLevelAttack(**options, **more).fit(victim, store).delta[Modality.VISIBLE] for more in ways]
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(found, 2))


def test_the_ablation_is_eight_calls(store, victim):
    deltas = []
    for fsam, sfm, quadruple in itertools.product((False, True), repeat=3):
        options = {"attention": "fsam" if fsam else "none", "sfm": sfm, "quadruple": quadruple, "form": "linear"}
        options["identity"] = "on" if fsam or sfm or quadruple else "off"  # the first row is noise alone
        attack = build_attack("feature-level", gradients=2, batch_size=16, **options)
        found = attack.fit(victim, store, 1)
        assert all(math.isfinite(value) for note in found.history for value in note.values())
        assert all((note["quadruple"] != 0) == quadruple for note in found.history)
        deltas.append(found.delta[Modality.VISIBLE])
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(deltas, 2))


def test_gradients_set_the_steps_and_every_field_is_described():
    attack = build_attack("feature-level", gradients=240, blocks=[4, 0])
    assert attack.steps == 240
    assert attack.blocks == (4, 0)
    described = attack.describe()
    assert described["name"] == "feature-level"
    assert set(described) == {"name", *(field.name for field in dataclasses.fields(attack))}
    with pytest.raises(InputError, match="twice"):
        build_attack("feature-level", gradients=240, steps=3)
    with pytest.raises(InputError, match="option 'margin' is unknown"):
        build_attack("feature-level", margin=0.2)


def test_what_makes_no_batch_is_refused_in_one_line(store, victim):
    first, second = sorted({record.identity for record in store.records})[:2]

    one = only(store, lambda record: record.identity == first)
    halved = only(store, lambda record: record.identity == first or (record.identity, record.modality) == (second, 0))
    before = facts(victim)
    for crops, size, words in ((one, 8, "2 training identities"), (store, 3, "batch_size"), (halved, 8, "both modal")):
        with pytest.raises(InputError, match=words) as refusal:
            FeatureLevelAttack(steps=1, batch_size=size).fit(victim, crops)
        assert "\n" not in str(refusal.value)
    assert same_facts(before, facts(victim))
