"""DEEN: parts, forward, losses and ranked feature against plain loops, the branches' batch axis, training, attacks."""

import copy
import math

import numpy as np
import pytest
import torch
from contract import attack_and_check

from vireid_lite import models
from vireid_lite.data import Modality
from vireid_lite.errors import InputError
from vireid_lite.metrics.evaluation import embed_store
from vireid_lite.models.deen import Expansion, Fusion, SideBySide, Stacked, centre_pair_mining
from vireid_lite.models.insertion import block_channels, insert, staged
from vireid_lite.models.two_stream import Batch
from vireid_lite.training import TrainSettings, train

LABELS = torch.tensor([0, 1, 4, 1, 4, 0, 0, 1])  # in no order; visible first, then infrared
MODALITY = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def build(backbone="lite", **options):
    torch.manual_seed(0)
    return models.build("deen", 6, backbone, **options)


def random(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def images(count=8, size=(32, 16), seed=1):
    return random(count, 3, *size, seed=seed)


def scattered(model, seed=5):
    """Give every weight and statistic a value of its own, in float64, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(0.5 + noise if "running_var" in name else value + 0.2 * (noise - 0.5))
    return model


# The naive reference: numpy float64, one loop an index


def array(tensor):
    return tensor.detach().double().numpy()


def convolve(conv, maps):
    """Return a convolution of maps (N, C, h, w), read off its definition."""
    weight, stride, pad, step = array(conv.weight), conv.stride[0], conv.padding[0], conv.dilation[0]
    bias = np.zeros(len(weight)) if conv.bias is None else array(conv.bias)
    height, width = ((size + 2 * pad - step * (weight.shape[2] - 1) - 1) // stride + 1 for size in maps.shape[2:])
    found = np.zeros((len(maps), len(weight), height, width)) + bias[:, None, None]
    for y in range(height):
        for x in range(width):
            for dy in range(weight.shape[2]):
                for dx in range(weight.shape[3]):
                    row, column = y * stride + dy * step - pad, x * stride + dx * step - pad
                    if 0 <= row < maps.shape[2] and 0 <= column < maps.shape[3]:
                        found[:, :, y, x] += maps[:, :, row, column] @ weight[:, :, dy, dx].T
    return found


def batch_norm(norm, values, training):
    """Return BatchNorm of (N, C) or (N, C, h, w)."""
    mean, variance = array(norm.running_mean), array(norm.running_var)
    if training:
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        mean, variance = values.mean(axes), values.var(axes)
    shape = (1, -1) + (1,) * (values.ndim - 2)
    scale = array(norm.weight) / np.sqrt(variance + norm.eps)
    return (values - mean.reshape(shape)) * scale.reshape(shape) + array(norm.bias).reshape(shape)


def naive_fusion(fusion, high, low, training=False):
    theta, phi, g = convolve(fusion.theta1, high), convolve(fusion.phi1, low), convolve(fusion.g1, low)
    channels = np.zeros_like(g)
    for n in range(len(g)):
        for a in range(g.shape[1]):
            for b in range(g.shape[1]):
                channels[n, a] += (theta[n, a] * phi[n, b]).sum() / g.shape[1] * g[n, b]
    high = high + batch_norm(fusion.bn1, convolve(fusion.out1, channels), training)
    theta, phi, g = convolve(fusion.theta2, high), convolve(fusion.phi2, low), convolve(fusion.g2, low)
    positions = np.zeros_like(theta)
    for n in range(len(g)):
        for y, x in np.ndindex(theta.shape[2:]):
            for v, u in np.ndindex(phi.shape[2:]):
                affinity = theta[n, :, y, x] @ phi[n, :, v, u] / phi[0, 0].size
                positions[n, :, y, x] += affinity * g[n, :, v, u]
    return high + batch_norm(fusion.bn2, convolve(fusion.out2, positions), training)


def naive_expansion(expansion, maps):
    branches = [maps]
    for down, up in zip(expansion.down, expansion.up, strict=True):
        mean = sum(convolve(conv, maps) for conv in down) / 3
        branches.append(convolve(up, np.maximum(mean, 0)))
    return branches


def blocks_of(blocks, maps):
    """Return maps after the trunk's own residual blocks, which tests of the trunk check."""
    with torch.no_grad():
        return array(torch.nn.Sequential(*blocks)(torch.from_numpy(maps)))


def unit(rows):
    return np.array([row / math.dist(row, 0 * row) for row in rows])


def naive_branches(model, crops, modality):
    """Return pooled and BNNeck features of the three branches in eval mode, each run through layer 4 by itself."""
    with torch.no_grad():
        maps = array(model.stages[0](crops, modality))
    *fused, last = model.stages[1:]
    if isinstance(fused[-1][0], Expansion):  # without layer 4 it is a block of its own
        fused, expansion, layer = fused[:-1], fused[-1][0], last[1:-1]
    else:
        expansion, layer = last[0], last[1:-1]
    for stage in fused:
        *blocks, fusion = stage
        maps = naive_fusion(fusion, blocks_of(blocks, maps), maps)
    pooled = [blocks_of(layer, branch).mean((2, 3)) for branch in naive_expansion(expansion, maps)]
    return pooled, [batch_norm(model.bottleneck, rows, training=False) for rows in pooled]


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def naive_cross_entropy(logits, labels, smoothing):
    found = []
    for row, label in zip(logits, labels, strict=True):
        log = np.log(softmax(row))
        found.append(-(1 - smoothing) * log[label] - smoothing * log.mean())
    return np.mean(found)


def naive_triplet(features, labels, margin=0.3):
    found = []
    for a in range(len(features)):
        distance = [math.dist(features[a], other) for other in features]
        furthest = max(d for d, label in zip(distance, labels, strict=True) if label == labels[a])
        closest = min(d for d, label in zip(distance, labels, strict=True) if label != labels[a])
        found.append(max(0, margin + furthest - closest))
    return np.mean(found)


def naive_cpm(plain, made, margin=0.2):
    """Return the loss of one branch from the definition, and how often of 6 each of its three hinges was above 0."""

    def centre(features, identity, modality):
        rows = [f for f, who, how in zip(features, LABELS, MODALITY, strict=True) if (who, how) == (identity, modality)]
        return np.mean(rows, 0)

    identities = sorted(set(LABELS.tolist()))
    total, active = 0.0, np.zeros(3)
    for own in (0, 1):
        for who in identities:
            expanded = centre(made, who, own)
            pulled = math.dist(centre(plain, who, 1 - own), expanded)
            others = [other for other in identities if other != who]
            bounds = [
                math.dist(centre(plain, who, own), expanded),
                min(math.dist(expanded, centre(made, other, own)) for other in others),
                min(math.dist(centre(plain, who, own), centre(plain, other, own)) for other in others),
            ]
            hinges = np.array([max(0, pulled - bound + margin) for bound in bounds])
            total += (hinges[0] + 0.5 * (hinges[1] + hinges[2])) / len(identities) / 2
            active += hinges > 0
    return total, active


# Parts


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("size", "stride"), [((4, 3), 1), ((5, 4), 2), ((4, 2), 2)])
def test_fusion_is_the_naive_one(training, size, stride):
    torch.manual_seed(0)
    fusion = scattered(Fusion(6, 4, stride)).train(training)
    low = random(3, 4, *size).double()
    high = random(3, 6, *(-(-side // stride) for side in size), seed=2).double()
    expected = naive_fusion(fusion, array(high), array(low), training)
    np.testing.assert_allclose(array(fusion(high, low)), expected, atol=1e-12)
    assert np.abs(expected - array(high)).max() > 0.1


def test_fusion_starts_as_the_identity():
    high = random(2, 6, 2, 2)
    assert torch.equal(Fusion(6, 4, 2)(high, random(2, 4, 4, 4)), high)


def test_expansion_is_the_naive_one():
    torch.manual_seed(0)
    expansion = Expansion(8).double()
    maps = random(2, 8, 7, 5).double()
    expected = np.concatenate(naive_expansion(expansion, array(maps)))
    np.testing.assert_allclose(array(expansion(maps)), expected, atol=1e-12)
    for down in expansion.down:
        assert [conv.dilation[0] for conv in down] == [1, 2, 3]
        assert {conv.out_channels for conv in down} == {2}


def test_the_branches_change_axes_and_back():
    maps = random(6, 4, 3, 2)
    beside = SideBySide(4)(maps)
    assert torch.equal(Stacked()(beside), maps)
    assert torch.equal(beside[1, 4:8], maps[3])  # branch 1 of image 1 of two


# Forward


@pytest.mark.parametrize("layer4", [True, False])
def test_forward_is_the_naive_one(layer4):
    model = scattered(build(layer4=layer4)).eval()
    crops, modality = images(4).double(), torch.tensor([0, 1, 1, 0])
    pooled, neck = naive_branches(model, crops, modality)
    output = model(crops, modality)
    np.testing.assert_allclose(array(output.pooled), np.concatenate(pooled, 1), rtol=1e-9, atol=1e-11)
    logits = sum(rows @ array(model.classifier.weight).T for rows in neck) / 3
    np.testing.assert_allclose(array(output.logits), logits, rtol=1e-9)
    six = np.concatenate([unit(rows) for rows in (*pooled, *neck)], 1)
    np.testing.assert_allclose(array(output.embedding), six, atol=1e-9)
    np.testing.assert_allclose(array(model.embed(crops, modality)), unit(six), atol=1e-9)


def test_ranking_is_by_the_sum_of_six_similarity_matrices():
    model = scattered(build()).eval()
    query, gallery = images(3, seed=1).double(), images(5, seed=2).double()
    total = np.zeros((3, 5))
    with torch.no_grad():
        q, g = model._branches(query, Modality.INFRARED), model._branches(gallery, Modality.VISIBLE)
    for kind in (0, 1):  # pooled, BNNeck
        for branch in range(3):
            total += unit(array(q[kind][:, branch])) @ unit(array(g[kind][:, branch])).T
    found = array(model.embed(query, Modality.INFRARED)) @ array(model.embed(gallery, Modality.VISIBLE)).T
    np.testing.assert_allclose(6 * found, total, atol=1e-9)
    assert np.ptp(total) > 0.01


def test_flip_adds_the_mirror_image():
    plain, flipped = (scattered(build(flip=flip)).eval() for flip in (False, True))
    crops = images(3).double()
    mirror = crops.flip(3)
    one, other = (array(plain.embed(each, Modality.VISIBLE)) for each in (crops, mirror))
    np.testing.assert_allclose(array(flipped.embed(crops, Modality.VISIBLE)), unit(one + other), atol=1e-12)
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        flipped.embed(crops + 2, Modality.VISIBLE)


@pytest.mark.parametrize("layer4", [True, False])
def test_batch_norm_sees_three_maps_an_image_while_every_stage_delivers_one(layer4):
    model = build(layer4=layer4).train()
    seen, delivered = {}, []
    handles = [stage.register_forward_hook(lambda *args: delivered.append(args[-1].shape)) for stage in model.stages]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            handles.append(module.register_forward_hook(lambda *args, name=name: seen.update({name: len(args[1][0])})))
    model(images(), MODALITY)
    for handle in handles:
        handle.remove()
    assert [shape[0] for shape in delivered] == [8] * 5
    assert [shape[1] for shape in delivered] == block_channels(model)
    rows = {name: 24 if name.startswith(("stages.4", "bottleneck")) else 8 for name in seen}
    rows.update({name: 4 for name in seen if name.startswith("stages.0")})
    assert seen == rows
    assert sum(count == 24 for count in seen.values()) == 4


@pytest.mark.parametrize("layer4", [True, False])
@pytest.mark.parametrize("backbone", ["lite", "resnet18"])
def test_every_trunk_delivers_one_row_an_image(backbone, layer4):
    model = build(backbone, layer4=layer4)
    width = model.classifier.in_features
    assert width == {"lite": 192, "resnet18": 512}[backbone] // (1 if layer4 else 2)
    for training in (True, False):
        output = model.train(training)(images(), MODALITY)
        assert [tuple(part.shape) for part in output] == [(8, 3 * width), (8, 6 * width), (8, 6)]
    embedded = model.embed(images(2), Modality.INFRARED)
    assert embedded.norm(dim=1).tolist() == pytest.approx([1, 1])
    # Attacks compare features of the two: they must be the same vectors.
    torch.testing.assert_close(embedded, model(images(2), Modality.INFRARED).embedding / 6**0.5)


# Losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_loss_is_the_naive_one(smoothing):
    model = scattered(build()).train()
    batch = Batch(images().double(), MODALITY, LABELS, smoothing, None, [], torch.Generator())
    with torch.no_grad():
        maps = array(copy.deepcopy(model).feature_map(batch.images, MODALITY))
        found = model.objective(batch)
    pooled = np.split(maps.mean((2, 3)), 3, axis=1)
    rows, labels = np.concatenate(pooled), 3 * LABELS.tolist()
    neck = batch_norm(model.bottleneck, rows, training=True)
    expected = {
        "identity": naive_cross_entropy(neck @ array(model.classifier.weight).T, labels, smoothing),
        "triplet": naive_triplet(rows, labels),
        "cpm": 0.8 * sum(naive_cpm(pooled[0], made)[0] for made in pooled[1:]),
        "orthogonality": 0.01 * sum(a @ b for a, b in zip(*pooled[1:], strict=True)) / 24,
    }
    assert list(found.losses) == list(expected)
    assert {name: loss.item() for name, loss in found.losses.items()} == pytest.approx(expected, rel=1e-9)
    assert min(expected.values()) > 0
    assert found.logits.shape == (24, 6)
    assert naive_cross_entropy(array(found.logits), found.labels.tolist(), 0) == pytest.approx(
        naive_cross_entropy(neck @ array(model.classifier.weight).T, labels, 0)
    )


@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_pair_mining_is_the_naive_one_with_every_hinge_on_and_off(seed):
    plain, made = (1.5 * random(8, 3, seed=10 * seed + which).double() for which in (1, 2))
    expected, active = naive_cpm(array(plain), array(made))
    assert centre_pair_mining(plain, made, LABELS, MODALITY).item() == pytest.approx(expected, rel=1e-12)
    assert ((active > 0) & (active < 6)).all()


def test_pair_mining_does_not_push_an_expanded_centre_off_its_own_modality():
    plain = torch.tensor([[0.0, 0.0], [10.0, 0.0], [1.0, 0.0], [11.0, 0.0]]).requires_grad_()
    made = torch.tensor([[0.4, 0.0], [10.4, 0.0], [0.6, 0.0], [10.6, 0.0]]).requires_grad_()
    labels, modality = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    loss = centre_pair_mining(plain, made, labels, modality)
    assert loss.item() == pytest.approx(0.6 - 0.4 + 0.2)  # the far identities' hinges are 0
    loss.backward()
    assert made.grad[:, 0].tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25])  # to the other modality's centre
    assert plain.grad[:, 0].tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25])


# Size, options


@pytest.mark.parametrize(
    ("identities", "options", "total"), [(395, {}, 42_037_792), (206, {"layer4": False}, 13_094_176)]
)
def test_resnet50_has_the_documented_size(identities, options, total):
    model = models.build("deen", identities, **options)
    width = 2048 if not options else 1024
    assert model.classifier.weight.shape == (identities, width)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == total - width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1}, "flip must be true or false, got 1"),
        ({"layer4": None}, "layer4 must be true or false, got None"),
        ({"branches": 4}, "deen has no option 'branches'; it has flip, layer4"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


# A trained one


@pytest.fixture(scope="module")
def trained(tiny):
    torch.manual_seed(0)
    model = models.build("deen", 12, "lite")
    lite = {"optimiser": "adamw", "learning_rate": 2e-3, "backbone_factor": 1.0, "schedule": "cosine"}
    settings = TrainSettings(epochs=2, identities=4, images=2, **lite)
    history = train(model, tiny, settings, progress=False)
    return model, history


def test_two_epochs_train_every_part(trained):
    model, history = trained
    names = {"epoch", "identity_loss", "triplet_loss", "cpm_loss", "orthogonality_loss", "accuracy", "seconds"}
    assert [set(epoch) for epoch in history] == [names] * 2
    assert history[1]["identity_loss"] < history[0]["identity_loss"]
    torch.manual_seed(0)
    fresh = dict(models.build("deen", 12, "lite").named_parameters())
    moved = {name: not torch.equal(value, fresh[name]) for name, value in model.named_parameters()}
    assert all(moved[name] == value.requires_grad for name, value in fresh.items())


@pytest.mark.parametrize("name", ["cmps", "uap", "uap-retrieval", "col-del", "feature-level", "m-fgsm", "fgsm"])
def test_attacks_run_and_leave_it_bit_identical(trained, store, name):
    model, _ = trained
    model.train()
    model.stages[0].eval()
    attack_and_check(model, store, name, **({} if name == "fgsm" else {"steps": 2}))


@pytest.mark.parametrize("attention", ["fsam", "se"])
def test_attention_can_be_inserted(trained, attention):
    model = copy.deepcopy(trained[0])
    heads, tap = staged(model, attention, (0, 4), sfm=True)
    output = insert(model, heads)(images(), MODALITY)
    assert tap.maps.shape[:2] == output.pooled.shape


@pytest.mark.parametrize("options", [{}, {"flip": True, "layer4": False}])
def test_a_checkpoint_comes_back(store, tmp_path, options):
    model = build(**options).eval()
    models.save_checkpoint(tmp_path / "deen.safetensors", model, {})
    loaded, card = models.load_checkpoint(tmp_path / "deen.safetensors")
    assert options.items() <= card["model"].items()
    assert loaded.flip == model.flip
    assert torch.equal(*(embed_store(each, store, progress=False) for each in (model, loaded)))
