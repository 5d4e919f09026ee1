"""Networks: routing by modality, the published parts one by one, and the doors that refuse bad images."""

import urllib.error
from collections import Counter

import pytest
import torch
import torchvision
from torch.nn import functional as F

from vireid_lite import models
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.models.two_stream import NonLocal, generalised_mean

MIXED = torch.tensor([0, 1, 1, 0, 1])


def build(seed=0, backbone="lite", **options):
    torch.manual_seed(seed)
    return models.build("agw", 7, backbone=backbone, **options)


def images(count=5, size=(32, 16), seed=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet50():
    return build(backbone="resnet50").eval()


def scattered(model):
    """Give the model unequal stems, live non-local blocks and its own running statistics, as training would."""
    generator = torch.Generator().manual_seed(5)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if "running_var" in name else value + 0.2 * (noise - 0.5))
    return model


def test_resnet50_has_the_published_size_and_places(resnet50):
    parameters = {name: value.numel() for name, value in resnet50.named_parameters()}
    assert sum(parameters.values()) - parameters["classifier.weight"] == 23_550_351
    places = [[i for i, module in enumerate(stage) if isinstance(module, NonLocal)] for stage in resnet50.stages[1:]]
    assert places == [[], [3, 5], [4, 6, 8], []]  # after blocks 2, 3 of layer2 and 3, 4, 5 of layer3
    with torch.no_grad():
        shapes = []
        handles = [s.register_forward_hook(lambda *args: shapes.append(tuple(args[-1].shape))) for s in resnet50.stages]
        output = resnet50(images(1, (288, 144)), Modality.INFRARED)
        for handle in handles:
            handle.remove()
    assert len(shapes) == 5
    assert shapes[0] == (1, 64, 72, 36)
    assert shapes[4] == (1, 2048, 18, 9)
    assert [tuple(part.shape) for part in output] == [(1, 2048), (1, 2048), (1, 7)]


@pytest.mark.parametrize("backbone", ["resnet18", "lite"])
def test_small_trunks_have_the_same_parts(backbone):
    model = build(backbone=backbone).eval()
    assert [sum(isinstance(m, NonLocal) for m in stage.modules()) for stage in model.stages] == [0, 0, 1, 1, 0]
    output = model(images(), MIXED)
    assert output.logits.shape == (5, 7)
    assert output.pooled.shape == output.embedding.shape == (5, model.classifier.in_features)
    # A ResNet's last layer keeps its resolution; the lite trunk halves it for speed.
    third, fourth = (torch.nn.Sequential(*model.stages[1:end])(torch.rand(1, *stem_shape(model))) for end in (4, 5))
    assert third.shape[2] == fourth.shape[2] * {"resnet18": 1, "lite": 2}[backbone]


def stem_shape(model):
    return model.stages[0](images(1, (64, 32)), Modality.VISIBLE).shape[1:]


def test_neck_and_classifier_start_as_published():
    model = models.build("agw", 500, backbone="lite")
    assert model.classifier.bias is None
    assert model.classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert model.bottleneck.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert not model.bottleneck.bias.requires_grad
    assert not model.bottleneck.bias.any()


@pytest.mark.parametrize("pattern", [[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0] * 5, [1] * 5])
def test_each_image_goes_through_its_own_stem_in_order(pattern):
    model = scattered(build()).eval()
    modality = torch.tensor(pattern)
    mixed = model(images(), modality)
    visible, infrared = model(images(), Modality.VISIBLE), model(images(), Modality.INFRARED)
    assert not torch.allclose(visible.pooled, infrared.pooled, rtol=0.01)
    for part, of_visible, of_infrared in zip(mixed, visible, infrared, strict=True):
        expected = torch.where(modality[:, None] == 0, of_visible, of_infrared)
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("modality", "runs"),
    [
        (Modality.VISIBLE, {"visible": 1}),
        (Modality.INFRARED, {"infrared": 1}),
        (torch.ones(5, dtype=torch.int64), {"infrared": 1}),
        (MIXED, {"visible": 1, "infrared": 1}),
    ],
)
def test_no_stem_runs_for_nothing(modality, runs):
    model, counted = build(), Counter()
    for name in ("visible", "infrared"):
        getattr(model.stages[0], name).register_forward_hook(lambda *_, name=name: counted.update([name]))
    model(images(), modality)
    assert counted == runs


def test_stem_batchnorm_sees_its_own_images_only():
    model, alone = build(), build()
    model(images(), MIXED)
    alone.stages[0](images()[MIXED == 0], Modality.VISIBLE)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(
            getattr(model.stages[0].visible.bn1, name), getattr(alone.stages[0].visible.bn1, name)
        )
    assert alone.stages[0].infrared.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("modality", [torch.tensor([0, 1, 2, 0, 1]), MIXED[:4], MIXED[:, None], 2, "visible"])
def test_other_modalities_are_refused(modality):
    with pytest.raises(InputError, match="modality"):
        build()(images(), modality)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_forward_does_not_make_the_gpu_wait():
    model, batch = build().cuda(), images().cuda()
    model(batch, MIXED)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(batch, MIXED)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_normalisation_is_imagenets():
    stems = build().stages[0]
    seen = []
    stems.visible.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    stems(images(), Modality.VISIBLE)
    expected = torchvision.transforms.v2.functional.normalize(images(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], expected)


def test_non_local_block_is_the_published_product():
    torch.manual_seed(0)
    block = NonLocal(6, inner_channels=2).double().eval()
    maps = torch.rand(3, 6, 4, 2, dtype=torch.float64)
    assert torch.equal(block(maps), maps)  # its BatchNorm starts at zero
    torch.nn.init.uniform_(block.W[1].weight)
    torch.nn.init.uniform_(block.W[1].bias)
    theta, phi, g = (conv(maps).flatten(2) for conv in (block.theta, block.phi, block.g))
    affinity = torch.einsum("ncp,ncq->npq", theta, phi) / 8
    expected = maps + block.W(torch.einsum("npq,ncq->ncp", affinity, g).reshape(3, 2, 4, 2))
    torch.testing.assert_close(block(maps), expected)


def test_non_local_blocks_can_be_left_out():
    model, without = build(), build(non_local_channels=0)
    assert not any(isinstance(module, NonLocal) for module in without.modules())
    wide = build(non_local_channels=8)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (without, model, wide)]
    assert sizes == sorted(set(sizes))


def test_gem_lies_between_mean_and_maximum():
    maps = torch.rand(2, 4, 5, 3)
    mean, maximum = maps.mean((2, 3)), maps.amax((2, 3))
    torch.testing.assert_close(generalised_mean(maps, 1.0), mean)
    torch.testing.assert_close(generalised_mean(maps), ((maps**3).mean((2, 3)) + 1e-12) ** (1 / 3))
    assert (generalised_mean(maps) > mean).all()
    assert (generalised_mean(maps) < maximum).all()
    dead = torch.zeros(1, 2, 3, 3, requires_grad=True)  # a channel no image excites
    generalised_mean(dead).sum().backward()
    assert not dead.grad.any()


def test_embed_is_the_normalised_bnneck_and_leaves_everything_as_it_was():
    model = scattered(build())
    model.stages[2].eval()  # a mixture of modes, as when a part is frozen
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = model.embed(images(), MIXED)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected = F.normalize(model.eval()(images(), MIXED).embedding)
    torch.testing.assert_close(features, expected)
    # One image at a time gives the same features: nothing depends on the rest of the batch.
    single = torch.cat([model.embed(images()[i : i + 1], Modality(int(MIXED[i]))) for i in range(5)])
    torch.testing.assert_close(single, features, rtol=1e-4, atol=1e-6)


def test_embed_puts_the_mode_back_when_it_fails():
    model = build()
    seen = []
    model.stages[0].register_forward_pre_hook(lambda *_: seen.append(any(m.training for m in model.modules())))
    with pytest.raises(InputError):
        model.embed(images(), MIXED[:3])
    assert seen == [False]
    assert all(module.training for module in model.modules())


def test_embed_passes_gradient_to_the_images():
    batch = images().requires_grad_()
    build().embed(batch, MIXED)[:, 0].sum().backward()
    assert batch.grad.isfinite().all()
    assert (batch.grad.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (images() * 255, r"\[0, 1\]"),
        (images() - 0.5, r"\[0, 1\]"),
        (images().index_fill(0, torch.tensor([3]), torch.nan), r"\[0, 1\]"),
        (images().index_fill(0, torch.tensor([3]), torch.inf), r"\[0, 1\]"),
        ((images() * 255).to(torch.uint8), "divide uint8 by 255"),
        (images().numpy(), "ndarray"),
        (images()[0], r"\(N, 3, H, W\)"),
        (images()[:, :1], r"\(N, 3, H, W\)"),
        (images()[:0], r"\(N, 3, H, W\)"),
    ],
)
def test_embed_refuses_what_is_no_image(batch, message):
    with pytest.raises(InputError, match=message) as caught:
        build().embed(batch, Modality.VISIBLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "awg"}, "network 'awg' is unknown; choose from agw"),
        ({"backbone": "resnet34"}, "backbone 'resnet34' is unknown"),
        ({"gemp": 3}, "no option 'gemp'; it has non_local_channels, gem_p"),
        ({"num_identities": 0}, "num_identities"),
        ({"num_identities": 3.0}, "num_identities"),
        ({"gem_p": 0}, "gem_p"),
        ({"gem_p": "3"}, "gem_p"),
        ({"non_local_channels": -1}, "non_local_channels"),
        ({"pretrained": True}, "the lite trunk has no ImageNet weights"),
    ],
)
def test_build_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        models.build(**{"name": "agw", "num_identities": 7, "backbone": "lite", **arguments})
    assert "\n" not in str(caught.value)


def test_the_seed_decides_the_weights():
    first, second, other = build(0), build(0), build(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_imagenet_weights_reach_both_stems_and_the_trunk(monkeypatch):
    imagenet = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: imagenet)
    state = build(backbone="resnet18", pretrained=True).state_dict()
    for stem in ("visible", "infrared"):
        assert torch.equal(state[f"stages.0.{stem}.conv1.weight"], imagenet["conv1.weight"])
    assert torch.equal(state["stages.3.1.conv2.weight"], imagenet["layer3.1.conv2.weight"])
    assert torch.equal(state["stages.4.0.downsample.0.weight"], imagenet["layer4.0.downsample.0.weight"])


@pytest.mark.parametrize("failure", [urllib.error.URLError("no network"), RuntimeError("invalid hash value\nmore")])
def test_missing_imagenet_weights_are_never_replaced(monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(InputError, match=r"resnet18-f37072fd\.pth.* or choose pretrained=False") as caught:
        build(backbone="resnet18", pretrained=True)
    assert "\n" not in str(caught.value)
