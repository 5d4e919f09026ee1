"""The bounded feature-level attack: the contract of every attack, its loss against a naive one, and each switch."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from contract import facts, same_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vireid_lite import models
from vireid_lite.attacks import build_attack, descent, frozen
from vireid_lite.attacks.feature_level import FeatureLevelAttack
from vireid_lite.data import ImageStore, Modality
from vireid_lite.errors import InputError

SHAPE = (3, 32, 16)
WHOLE = 96  # a batch of every training crop of `tiny`: the loss is then a function of delta and heads alone


@settings(max_examples=15, deadline=None)
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
    for modality in Modality:
        images = chosen.batch(np.flatnonzero(chosen.modalities == modality))
        kept, rounded = images.clone(), found.apply_rounded(images, modality)
        for attacked in (found.apply(images, modality), rounded):
            assert (attacked - images).abs().max() <= attack.eps + 1e-6
            assert attacked.min() >= 0
            assert attacked.max() <= 1
            if modality == Modality.INFRARED and switches["tied"]:
                assert torch.equal(attacked[:, 0], attacked[:, 1])
                assert torch.equal(attacked[:, 0], attacked[:, 2])
        assert torch.equal((rounded * 255).round() / 255, rounded)
        assert torch.equal(images, kept)
        assert torch.equal(found.apply(images, modality), again.apply(images, modality))


@pytest.mark.parametrize("options", [{"form": "linear"}, {"attention": "eca", "shared": True}])
def test_a_killed_fit_resumes_to_the_same_bits(store, victim, options, tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "NOTE_EVERY", 1)
    attack = FeatureLevelAttack(steps=5, batch_size=8, **options)
    whole = attack.fit(victim, store, 3, state_path=tmp_path / "whole.pt")

    def kill(step, _):
        if step == 2:
            raise KeyboardInterrupt

    before = facts(victim)
    with pytest.raises(KeyboardInterrupt):
        attack.fit(victim, store, 3, state_path=tmp_path / "killed.pt", watch=kill)
    assert same_facts(before, facts(victim))
    resumed = []
    found = attack.fit(victim, store, 3, state_path=tmp_path / "killed.pt", watch=lambda step, _: resumed.append(step))
    assert resumed == [2, 3, 4]
    assert found.history == whole.history
    # The notes before the last step hold what the perturbation leaves out: the heads and every momentum.
    notes = [torch.load(tmp_path / name, weights_only=True)["state"] for name in ("whole.pt", "killed.pt")]
    assert notes[0].keys() == notes[1].keys() >= {"delta", "momentum", "heads", "heads_momentum"}
    assert len(notes[0]["heads"])
    assert all(torch.equal(notes[0][name], notes[1][name]) for name in notes[0])
    for modality in Modality:
        images = store.batch(np.flatnonzero(store.modalities == modality))
        assert torch.equal(found.apply(images, modality), whole.apply(images, modality))


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
        asked = [delta, *problem.parameters]
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


def begin(attack, model, store, seed=0):
    """Return the problem and the first state of a fit."""
    return attack.prepare(model, store, seed), attack.start(SHAPE, seed)


def values(problem):
    """Return the heads' weights as one vector."""
    return torch.nn.utils.parameters_to_vector(problem.parameters).detach().clone()


def test_heads_learn_as_with_sgd(store, victim):
    model = models.build("agw", 12, "lite").double().eval()  # the decay is far below float32's rounding of the slope
    model.load_state_dict(victim.state_dict())
    attack = FeatureLevelAttack(form="linear", learn_delta=False, head_rate=1e-3, batch_size=16)
    with frozen.frozen(model):
        problem, state = begin(attack, model, store)
        state = {name: value.double() for name, value in state.items()}
        other, _ = begin(attack, model, store)
        optimiser = torch.optim.SGD(other.parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)
        for step in range(3):
            attack.step(model, problem, state, step, 0)
            optimiser.zero_grad()
            attack.objective(model, other, state["delta"], other.batches.at(step))["loss"].backward()
            optimiser.step()
            assert torch.allclose(state["heads"], values(other), rtol=0, atol=1e-11)


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
            problem, state = begin(attack, victim, store)
            drawn = values(problem)
            for step in range(3):
                attack.step(victim, problem, state, step, 0)
            moved[heads] = not torch.equal(values(problem), drawn)
            assert len(state["heads"]) == (len(drawn) if heads == "learned" else 0)
            another, _ = begin(attack, victim, store, seed=1)
        assert not torch.equal(values(another), drawn), "another seed draws other heads"
    assert moved == {"frozen": False, "learned": True}


def test_the_switches_choose_the_heads(store, victim):
    # 98 weights a convolution, one for each modality: twice FSAM and SFM, as few as the paper's parameter count allows.
    sizes = {
        (("attention", "fsam"), ("sfm", True)): 6 * 98,
        (("attention", "fsam"), ("sfm", False)): 4 * 98,
        (("attention", "fsam"), ("sfm", False), ("blocks", (4,))): 2 * 98,
        (("attention", "none"), ("sfm", True)): 2 * 98,
        (("attention", "se"), ("sfm", False), ("blocks", (0,))): 2 * 2 * 32 * 2,
        (("attention", "eca"), ("sfm", False), ("blocks", (0,))): 2 * 3,
    }
    for options, size in sizes.items():
        problem, _ = begin(FeatureLevelAttack(**dict(options)), victim, store)
        assert sum(parameter.numel() for parameter in problem.parameters) == size
        assert problem.classes is not None
    assert begin(FeatureLevelAttack(attention="none", sfm=False), victim, store)[0].parameters == []
    assert begin(FeatureLevelAttack(identity="off"), victim, store)[0].classes is None


def test_without_sfm_both_stages_are_one(store, victim):
    # D(x_2, x_1) of one modality is 0 then, so that the linear loss only pushes apart.
    attack = FeatureLevelAttack(sfm=False, form="linear", identity="off", alpha=0.0, batch_size=16)
    with frozen.frozen(victim):
        problem, state = begin(attack, victim, store)
        found = attack.objective(victim, problem, state["delta"], problem.batches.at(0))
    assert found["quadruple"] < 0
    assert found["active"] == 0


@pytest.mark.parametrize("identity", ["on", "off", "reversed"])
@pytest.mark.parametrize("shared", [False, True])
def test_one_step_lowers_the_linear_loss(store, victim, identity, shared):
    options = {"identity": identity, "shared": shared, "form": "linear", "batch_size": WHOLE, "initial": "zero"}
    attack = FeatureLevelAttack(**options, heads="frozen", step_share=0.02)
    with frozen.frozen(victim):
        problem, state = begin(attack, victim, store)
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
    attack, seen = FeatureLevelAttack(batch_size=16, tied=True, shared=shared, initial="sign"), []
    with frozen.frozen(victim):
        problem, state = begin(attack, victim, store)
        found, rows = attack.finish(state, [], 0), problem.batches.at(0)
        hook = victim.stages[0].register_forward_pre_hook(lambda _, args: seen.append(args))
        attack.step(victim, problem, state, 0, 0)
        hook.remove()
    ((images, modality),) = seen
    assert torch.equal(modality, store.modalities[rows])
    expected = found.apply(store.batch(rows), modality)
    assert torch.allclose(images.detach(), expected, rtol=0, atol=1e-6)
    assert torch.equal(images[8:, 0], images[8:, 2])


def test_the_modalities_share_one_delta_where_asked(store, victim):
    options = {"form": "linear", "identity": "off", "steps": 2, "batch_size": 16}
    one, two = (FeatureLevelAttack(**options, shared=shared).fit(victim, store) for shared in (True, False))
    assert one.delta.shape == SHAPE
    assert set(two.delta) == set(Modality)
    assert not torch.equal(two.delta[Modality.VISIBLE], two.delta[Modality.INFRARED])


def test_the_heads_of_an_attack_change_its_delta(store, victim):
    options = {"form": "linear", "identity": "off", "steps": 2, "batch_size": 16, "initial": "zero"}
    found = [
        FeatureLevelAttack(**options, **more).fit(victim, store).delta[Modality.VISIBLE]
        for more in (
            {},
            {"heads": "frozen"},
            {"sfm": False},
            {"attention": "none"},
            {"blocks": (4,)},
            {"attention": "se"},
        )
    ]
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "huber"}, "form 'huber' is unknown; choose from hinge, linear"),
        ({"attention": "sfm"}, "attention"),
        ({"identity": True}, "identity"),
        ({"heads": "none"}, "heads"),
        ({"initial": "gauss"}, "initial"),
        ({"sfm": 1}, "sfm must be true or false"),
        ({"learn_delta": "no"}, "learn_delta must be true or false"),
        ({"blocks": 4}, "blocks"),
        ({"blocks": [5]}, "blocks"),
        ({"blocks": [True]}, "blocks"),
        ({"blocks": [4, 4]}, "one block twice"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"head_rate": "fast"}, "head_rate"),
        ({"instances": 1}, "instances"),
        ({"eps": 0}, "eps"),
        ({"step_share": 0}, "step_share"),
        ({"margin": 0.2}, "option 'margin' is unknown"),
    ],
)
def test_bad_values_are_refused_in_one_line(options, words):
    with pytest.raises(InputError, match=words) as refusal:
        build_attack("feature-level", **options)
    assert "\n" not in str(refusal.value)


def test_what_makes_no_batch_is_refused_in_one_line(store, victim):
    first, second = sorted({record.identity for record in store.records})[:2]

    def of(kept):
        rows = [row for row, record in enumerate(store.records) if kept(record)]
        return ImageStore(store.images[rows], [store.records[row] for row in rows])

    one = of(lambda record: record.identity == first)
    halved = of(lambda record: record.identity == first or (record.identity, record.modality) == (second, 0))
    before = facts(victim)
    for crops, size, words in ((one, 8, "2 training identities"), (store, 3, "batch_size"), (halved, 8, "both modal")):
        with pytest.raises(InputError, match=words) as refusal:
            FeatureLevelAttack(steps=1, batch_size=size).fit(victim, crops)
        assert "\n" not in str(refusal.value)
    assert same_facts(before, facts(victim))
