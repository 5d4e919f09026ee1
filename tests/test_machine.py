"""Compute: what it changes inside, that gradients and statistics keep their kind, and that nothing is left after it."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

from vireid_lite import machine, models
from vireid_lite.attacks import build_attack
from vireid_lite.errors import InputError
from vireid_lite.machine import Compute
from vireid_lite.models.attention import FSAM
from vireid_lite.models.insertion import inserted
from vireid_lite.training import TrainSettings, train

BF16 = Compute("bf16")


def network(name="agw", seed=0):
    torch.manual_seed(seed)
    return models.build(name, 12, "lite").to(memory_format=torch.channels_last)


def pictures(count=6):
    images = torch.rand(count, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) // (count // 2)


def photograph(model):
    """Everything that must be the same afterwards, bit for bit."""
    return {
        "types": [(name, type(module)) for name, module in model.named_modules()],
        "own": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: list(module._forward_hooks.values()) for name, module in model.named_modules()},
        "modes": [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()],
        "state": {name: (value.dtype, value.stride(), value.clone()) for name, value in model.state_dict().items()},
    }


def same(first, second):
    assert all(first[part] == second[part] for part in ("types", "own", "hooks", "modes"))
    assert list(first["state"]) == list(second["state"])
    for (dtype, stride, value), (other_dtype, other_stride, other) in zip(
        first["state"].values(), second["state"].values(), strict=True
    ):
        assert dtype == other_dtype
        assert stride == other_stride
        assert torch.equal(value, other)


@pytest.mark.parametrize("name", [*models.NETWORKS])
def test_bf16_is_the_same_network_at_eight_bits_and_leaves_no_trace(name):
    model = network(name).eval()
    images, modality = pictures()
    before = photograph(model)
    with torch.no_grad():
        exact = model(images, modality)
        with BF16.on(model, "cpu"):
            rough = model(images, modality)
            assert isinstance(model.stages[1], dict(before["types"])["stages.1"])
            assert not torch.is_autocast_enabled("cpu")
        after = model(images, modality)
    for part in exact._fields:
        reference, found = getattr(exact, part), getattr(rough, part)
        assert found.dtype == torch.float32
        error = float((found - reference).norm() / reference.norm())
        # bf16 keeps 8 bits: not the float32 result, and not far from it.
        assert 1e-5 < error < 0.05, (part, error)
        assert torch.equal(getattr(after, part), reference)
    same(before, photograph(model))


def test_float32_changes_no_bit_and_no_class():
    model, (images, modality) = network().eval(), pictures()
    exact = model(images, modality).logits
    with Compute().on(model, "cpu"):
        assert type(model.stages[0]) is type(network().stages[0])
        assert torch.equal(model(images, modality).logits, exact)


def test_every_convolution_of_the_blocks_computes_in_bf16_and_channels_last_and_every_batchnorm_in_float32():
    model, (images, modality) = network().train(), pictures()
    seen = {"Conv2d": [], "BatchNorm2d": [], "BatchNorm1d": [], "Linear": []}
    handles = [
        module.register_forward_hook(lambda module, _, output: seen[type(module).__name__].append((module, output)))
        for module in model.modules()
        if type(module).__name__ in seen
    ]
    with BF16.on(model, "cpu"):
        model(images, modality)
    for handle in handles:
        handle.remove()
    # A map of one channel, as inside the non-local blocks, has no layout to speak of.
    convolutions = [output for module, output in seen["Conv2d"] if module.in_channels > 1]
    assert len(convolutions) >= 10
    assert all(output.dtype == torch.bfloat16 for output in convolutions)
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in convolutions)
    norms = seen["BatchNorm2d"] + seen["BatchNorm1d"]
    assert all(value.dtype == torch.float32 for module, _ in norms for value in (module.running_mean, module.weight))
    assert all(output.dtype == torch.float32 for _, output in seen["BatchNorm1d"] + seen["Linear"])


def test_the_gradient_reaches_the_images_as_it_does_in_float32():
    model, (images, modality) = network().eval(), pictures()

    def slope():
        x = images.clone().requires_grad_()
        features = model.embed(x, modality)
        return torch.autograd.grad((features * torch.arange(features.shape[1]).sin()).sum(), x)[0]

    exact = slope()
    with BF16.on(model, "cpu"):
        rough = slope()
    assert rough.dtype == torch.float32
    assert (rough.flatten(1).abs().amax(1) > 0).all()  # every image, of both modalities
    assert float(F.cosine_similarity(rough.flatten(), exact.flatten(), 0)) > 0.98
    assert not torch.equal(rough, exact)


def test_training_in_bf16_learns_with_float32_weights_gradients_and_statistics(tiny):
    model, settings = network(), TrainSettings(epochs=1, optimiser="adamw", learning_rate=2e-3, backbone_factor=1.0)
    start, other = copy.deepcopy(model.state_dict()), network()
    with BF16.on(model, "cpu"):
        history = train(model, tiny, settings, progress=False)
    plain = train(other, tiny, settings, progress=False)
    assert history[-1]["identity_loss"] == pytest.approx(plain[-1]["identity_loss"], rel=0.1)
    assert history[-1]["identity_loss"] != plain[-1]["identity_loss"]
    for name, value in model.state_dict().items():
        assert value.dtype == start[name].dtype
        if "running_var" in name:
            reference = other.state_dict()[name]
            assert not torch.equal(value, start[name])
            assert float((value - reference).norm() / reference.norm()) < 0.3
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters() if parameter.grad is not None)


def test_modules_behind_a_block_see_float32_maps_and_a_deep_copy_is_its_own_network():
    model, (images, modality) = network().eval(), pictures()
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, maps, modality):
            seen.append((maps.dtype, torch.is_autocast_enabled("cpu")))
            return maps

    with torch.no_grad(), BF16.on(model, "cpu"):
        plain = model(images, modality).pooled
        with inserted(model, {0: [Watch(), FSAM()], 4: Watch()}):
            assert model(images, modality).pooled.isfinite().all()
        assert seen == [(torch.float32, False)] * 2
        assert torch.equal(model(images, modality).pooled, plain)
        twin = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(images, modality).pooled, plain)


@pytest.mark.parametrize(
    "attack",
    [
        {"name": "cmps", "mode": "released", "gradients": 2},
        {"name": "feature-level", "form": "linear", "gradients": 2},
        {"name": "m-fgsm", "steps": 2},
    ],
    ids=lambda attack: attack["name"],
)
def test_attacks_run_in_bf16_and_leave_the_victim_bit_identical(attack, tiny, store, victim):
    model, made = copy.deepcopy(victim), build_attack(**attack)
    before = photograph(model)
    with BF16.on(model, "cpu"):
        if hasattr(made, "fit"):
            delta = made.fit(model, store).delta
            deltas = delta.values() if isinstance(delta, dict) else [delta]
            assert all(0 < float(each.abs().max()) <= made.eps * (1 + 1e-6) for each in deltas)
        else:
            images, modality = pictures(4)
            features = model.embed(images, modality)
            guides = made.__call__.__globals__["Guides"](features[[1, 0, 3, 2]][:, None])
            moved = (made(model, images, modality, guides) - images).abs()
            assert 0 < float(moved.max()) <= made.eps * (1 + 1e-6)
            assert (moved.flatten(1).amax(1) > 0).all()
    same(before, photograph(model))


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_on_a_gpu_tf32_is_what_the_precision_says_and_as_it_was_after_an_error(monkeypatch, precision, allowed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def switches():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before, model = switches(), network()

    def fails():
        with Compute(precision).on(model, "cuda"):
            assert switches() == ("high" if allowed else "highest", allowed)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert switches() == before
    assert type(model.stages[1]) is type(network().stages[1])


def test_what_cannot_be_is_refused_in_one_line(monkeypatch):
    model = network()
    with pytest.raises(InputError, match="compute: precision 'fp16' is unknown"):
        Compute("fp16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for compute, device in ((BF16, "cuda"), (Compute("tf32"), "cuda"), (Compute("tf32"), "cpu")):
        with (
            pytest.raises(InputError, match=f"{device} cannot compute in {compute.precision}"),
            compute.on(model, device),
        ):
            raise AssertionError("entered")
    assert BF16.describe() == {"precision": "bf16"}


def test_peak_memory_is_0_where_nothing_counts_it(monkeypatch):
    assert machine.peak_memory_mib(torch.device("cpu")) > 1
    monkeypatch.setattr(machine, "resource", None)
    assert machine.peak_memory_mib(torch.device("cpu")) == 0, "a card is plain JSON, which has no NaN"


def test_an_apple_gpu_is_taken_where_it_is(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        for name in ("mps", "mps:0"):
            if there:
                assert machine.pick_device(name) == torch.device(name)
                assert "GPU" in machine.device_name(torch.device(name))
                continue
            with pytest.raises(InputError, match=rf"^DEVICE '{name}' is not on this machine \(0 such GPUs\); use auto"):
                machine.pick_device(name)
    assert machine.pick_device("auto").type != "mps", "nothing was tried there"
