"""Attention modules: their equations, each modality's own weights, and what insertion does and leaves alone."""

import copy
import math

import pytest
import torch
from contract import facts, same_facts

from vireid_lite import models
from vireid_lite.attacks.frozen import frozen
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.frequency import decompose, recombine
from vireid_lite.models.attention import (
    ECA,
    FSAM,
    SE,
    SFM,
    EfficientChannel,
    SpatialAttention,
    SqueezeExcitation,
    build_attention,
)
from vireid_lite.models.insertion import block_channels, insert, inserted

NAMES = ["fsam", "sfm", "se", "eca"]
MIXED = torch.tensor([0, 1, 1, 0, 1])


def random(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def build(backbone="lite", **options):
    torch.manual_seed(0)
    return models.build("agw", 7, backbone, **options).eval()


def module(name, channels=8, seed=3):
    torch.manual_seed(seed)
    return build_attention(name, channels)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def model():
    return build()


def outputs(network, modality=MIXED):
    with torch.no_grad():
        return network(random(5, 3, 32, 16), modality)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", [3, 7])
def test_spatial_attention_equals_a_loop(kernel):
    torch.manual_seed(0)
    attention = SpatialAttention(kernel)
    maps = random(2, 5, 6, 4) - 0.4
    weight, reach = attention.conv.weight[0].detach(), kernel // 2
    expected = torch.zeros(2, 1, 6, 4)
    for n in range(2):
        for y in range(6):
            for x in range(4):
                total = 0.0
                for row in range(max(0, y - reach), min(6, y + reach + 1)):
                    for column in range(max(0, x - reach), min(4, x + reach + 1)):
                        values = maps[n, :, row, column].tolist()
                        taps = weight[:, row - y + reach, column - x + reach].tolist()
                        total += taps[0] * max(values) + taps[1] * sum(values) / len(values)
                expected[n, 0, y, x] = 1 / (1 + math.exp(-total))
    assert torch.allclose(attention(maps), expected, atol=1e-6)


def test_channel_attentions_are_their_equations():
    torch.manual_seed(0)
    maps = random(2, 32, 3, 5)
    means = maps.mean((2, 3))
    se = SqueezeExcitation(32)
    expected = torch.sigmoid((means @ se.down.weight.T).clamp(min=0) @ se.up.weight.T)
    assert torch.allclose(se(maps), expected[:, :, None, None])
    eca = EfficientChannel(32)
    left, middle, right = eca.conv.weight.flatten()
    padded = torch.cat([torch.zeros(2, 1), means, torch.zeros(2, 1)], 1)
    expected = torch.sigmoid(left * padded[:, :-2] + middle * padded[:, 1:-1] + right * padded[:, 2:])
    assert torch.allclose(eca(maps), expected[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize(("channels", "kernel"), [(2, 1), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
def test_channel_attentions_have_the_published_sizes(channels, kernel):
    assert parameters(ECA(channels)) == 2 * kernel
    assert parameters(SE(channels)) == 2 * 2 * channels * max(1, channels // 16)


def test_fsam_twice_and_sfm_cost_six_convolutions():
    torch.manual_seed(0)
    network = models.build("agw", 395)
    before = parameters(network)
    insert(network, {0: FSAM(), 4: [FSAM(), SFM()]})
    assert parameters(network) - before == 6 * 98 < 4600


@pytest.mark.parametrize("modality", [Modality.VISIBLE, Modality.INFRARED, MIXED])
@pytest.mark.parametrize("size", [(12, 6), (7, 5)])
def test_fsam_with_attention_one_is_the_identity(monkeypatch, modality, size):
    monkeypatch.setattr(SpatialAttention, "forward", lambda self, maps: torch.ones_like(maps[:, :1]))
    maps = random(5, 8, *size) * 4 - 1
    assert (FSAM()(maps, modality) - maps).abs().max() <= 1e-5


def test_fsam_scales_the_phase_and_nothing_else():
    maps, fsam = random(5, 8, 6, 4), module("fsam")
    amplitude, phase = decompose(maps)
    attention = [fsam.visible, fsam.infrared]
    weights = torch.cat([attention[m](phase[row : row + 1]) for row, m in enumerate(MIXED.tolist())])
    assert torch.allclose(fsam.weights(maps, MIXED), weights, atol=1e-6)
    assert torch.allclose(fsam(maps, MIXED), recombine(amplitude, weights * phase), atol=1e-5)


@pytest.mark.parametrize("name", ["sfm", "se", "eca"])
def test_the_others_multiply_the_map(name):
    maps, attention = random(5, 8, 6, 4), module(name)
    weights = attention.weights(maps, MIXED)
    assert weights.shape == ((5, 1, 6, 4) if name == "sfm" else (5, 8, 1, 1))
    assert ((weights > 0) & (weights < 1)).all()
    assert torch.equal(attention(maps, MIXED), weights * maps)


@pytest.mark.parametrize("name", NAMES)
def test_each_modality_has_its_own_weights(name):
    maps, attention = random(5, 8, 6, 4), module(name)
    whole = attention(maps, MIXED)
    assert whole.shape == maps.shape
    for modality in Modality:
        alone = attention(maps, modality)
        assert torch.allclose(whole[modality == MIXED], alone[modality == MIXED], atol=1e-6)
        assert torch.allclose(attention(maps, torch.full((5,), int(modality))), alone, atol=1e-6)
        assert not torch.allclose(alone, attention(maps, modality.other), atol=1e-4)
    with torch.no_grad():
        for parameter in attention.infrared.parameters():
            parameter.add_(1)
    moved = attention(maps, MIXED)
    assert torch.equal(moved[MIXED == 0], whole[MIXED == 0])
    assert not torch.allclose(moved[MIXED == 1], whole[MIXED == 1], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_layout_does_not_matter(name):
    maps, attention = random(5, 8, 6, 4), module(name)
    rows = maps.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(attention(rows, MIXED), attention(maps, MIXED), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [2, "visible", torch.zeros(4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)])
def test_a_wrong_modality_is_refused(name, wrong):
    with pytest.raises(InputError, match="modality"):
        module(name)(random(5, 8, 6, 4), wrong)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="fsam, sfm, se, eca"):
        build_attention("cbam", 8)


@pytest.mark.parametrize("backbone", ["lite", "resnet18"])
@pytest.mark.parametrize("name", NAMES)
def test_every_module_fits_every_block(backbone, name):
    network = build(backbone)
    clean = outputs(network)
    for block, channels in enumerate(block_channels(network)):
        with inserted(network, {block: module(name, channels)}):
            found = outputs(network)
        assert [part.shape for part in found] == [part.shape for part in clean]
        assert not torch.allclose(found.embedding, clean.embedding, atol=1e-4)
    assert same(outputs(network), clean)


def test_block_channels_are_what_the_blocks_deliver(model):
    seen = []
    handles = [s.register_forward_hook(lambda stage, given, maps: seen.append(maps.shape[1])) for s in model.stages]
    outputs(model)
    for handle in handles:
        handle.remove()
    assert block_channels(model) == seen
    with torch.device("meta"):
        assert block_channels(models.build("agw", 7, "resnet50")) == [64, 256, 512, 1024, 2048]


@pytest.mark.parametrize("modality", [Modality.VISIBLE, Modality.INFRARED, MIXED])
def test_insertion_equals_the_network_written_out(model, modality):
    chain = {0: [module("fsam")], 2: [module("se", 48)], 4: [module("fsam", seed=4), module("sfm")]}
    maps = model.stages[0](random(5, 3, 32, 16), modality)
    for block in range(5):
        maps = model.stages[block](maps) if block else maps
        for part in chain.get(block, []):
            maps = part(maps, modality)
    expected = model.bottleneck(models.two_stream.generalised_mean(maps, model.gem_p))
    with inserted(model, chain):
        assert torch.allclose(outputs(model, modality).embedding, expected, atol=1e-5)
        features = model.embed(random(5, 3, 32, 16), modality=modality)
    assert torch.allclose(features, torch.nn.functional.normalize(expected), atol=1e-5)


def test_inserted_leaves_the_victim_as_it_was(victim):
    before, clean = facts(victim), outputs(copy.deepcopy(victim).eval())
    with inserted(victim, {0: FSAM(), 4: [FSAM(), SFM()]}):
        assert same_facts(before, facts(victim))
        with torch.no_grad():
            victim.embed(random(5, 3, 32, 16), MIXED)
    assert same_facts(before, facts(victim))
    assert same(outputs(copy.deepcopy(victim).eval()), clean)


def test_an_error_inside_still_takes_the_hooks_away(model):
    clean = outputs(model)
    with pytest.raises(RuntimeError, match="inside"), inserted(model, {1: FSAM()}):
        raise RuntimeError("inside")
    assert same(outputs(model), clean)


def test_insertions_nest_in_their_order(model):
    first, second = module("fsam"), module("sfm")
    with inserted(model, {4: [first, second]}):
        expected = outputs(model)
    with inserted(model, {4: first}):
        alone = outputs(model)
        with inserted(model, {4: second}):
            assert same(outputs(model), expected)
        assert same(outputs(model), alone)
    model = insert(copy.deepcopy(model), {4: first})
    with inserted(model, {4: second}):
        assert same(outputs(model), expected)


@pytest.mark.parametrize("block", [5, -1, "block0", None])
def test_a_wrong_block_is_refused(model, block):
    before, clean = facts(model), outputs(model)
    with pytest.raises(InputError, match="choose 0 to 4"):
        insert(model, {0: FSAM(), block: FSAM()})
    with pytest.raises(InputError, match="choose 0 to 4"), inserted(model, {0: FSAM(), block: FSAM()}):
        pass
    assert same_facts(before, facts(model))
    assert same(outputs(model), clean)


def test_what_is_no_module_is_refused(model):
    with pytest.raises(InputError, match="build_attention"):
        insert(model, {0: ["fsam"]})


def test_what_was_inserted_for_a_while_leaves_no_trace_and_for_good_it_does_the_same(model, tmp_path):
    before, clean = facts(model), outputs(model)
    chain = {0: [module("fsam")], 4: [module("fsam"), module("sfm")]}
    with inserted(model, chain):
        expected = outputs(model)
    assert same_facts(before, facts(model))
    models.save_checkpoint(tmp_path / "victim.safetensors", model, {})
    assert same(outputs(models.load_checkpoint(tmp_path / "victim.safetensors")[0]), clean)
    model = copy.deepcopy(model)
    assert insert(model, chain) is model
    assert same(outputs(model), expected)
    with pytest.raises(InputError, match="already"):
        insert(model, {1: SFM()})
    added = model.state_dict().keys() - before[0].keys()
    assert len(added) == 6
    assert all(name.startswith("attention.") for name in added)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_weights_and_images_through_a_frozen_victim(model, name):
    channels = block_channels(model)
    chain = {block: module(name, channels[block]) for block in (0, 4)}
    for part in chain.values():
        for parameter in part.parameters():
            parameter.data.abs_()  # of two inner channels of an SE both may be dead
    images = random(5, 3, 32, 16).requires_grad_()
    with frozen(model), inserted(model, chain):
        model(images, MIXED).embedding.square().sum().backward()
    for part in chain.values():
        for parameter in part.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()
    assert images.grad.isfinite().all()
    assert images.grad.flatten(1).any(1).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inserted_modules_train_with_the_model():
    network = insert(build(), {0: FSAM(), 4: [FSAM(), SFM()]})
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    before = {name: value.clone() for name, value in network.attention.state_dict().items()}
    network(random(5, 3, 32, 16), MIXED).pooled.sum().backward()
    optimiser.step()
    for name, value in network.attention.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[name])


def test_a_deep_copy_has_modules_of_its_own(model):
    model = insert(copy.deepcopy(model), {0: FSAM(), 4: [FSAM(), SFM()]})
    twin, attended = copy.deepcopy(model), outputs(model)
    assert same(outputs(twin), attended)
    with torch.no_grad():
        for parameter in twin.attention.parameters():
            parameter.zero_()
    assert same(outputs(model), attended)
    assert not same(outputs(twin), attended)
