"""Parity with published code, on stored numbers (tests/data/README.md): evaluators, networks, attacks, losses."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vireid_lite import losses, metrics, models
from vireid_lite.attacks.image_specific import FGSM, PGD
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
from vireid_lite.models.ddag import GraphAttention
from vireid_lite.models.deen import centre_pair_mining
from vireid_lite.models.official import _official_names, load_official

STORED = np.load(Path(__file__).with_name("data") / "parity.npz")
NAMES = json.loads(STORED["names"].tobytes())
LABELS, MODALITY = torch.tensor([0, 0, 1, 1, 2, 2] * 2), torch.tensor([0] * 6 + [1] * 6)


def weight(name, shape):
    """Return the weight of a published name, computed in float32: the same numbers on every machine."""
    drawn = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        found = 1 + 0.3 * abs(drawn)
    elif name.endswith("running_mean"):
        found = 0.1 * drawn
    elif len(shape) == 1:
        found = (0.5 if name.endswith("weight") else 0) + 0.1 * drawn
    elif len(shape) == 4:
        attends = any(part in name for part in (".theta", ".phi", ".g.", "NL_", "CNL", "PNL"))
        found = drawn * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5 * (0.4 if attends else 1)
    else:
        found = drawn / shape[-1] ** 0.5
    if name.endswith(".W.1.weight"):
        found = 0.3 + 0.05 * drawn
    return torch.from_numpy(found)


def pixels(seed, height, width):
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.random((2, 3, height, width), dtype=np.float32)).double()


def published(path, layout):
    """Write the checkpoint of a published network; what it never uses is one number, as nothing reads it."""
    unused = ("visible.layer", "thermal.layer", "base.conv1", "base.bn1", "classifier1", "classifier2", "wpa.W.")
    state = {
        name: torch.zeros(1) if any(part in name for part in unused) else weight(name, shape)
        for name, shape in NAMES[layout].items()
    }
    torch.save({"net": state, "epoch": 3}, path)
    return path


def features(model, modality, ranked=False):
    model = model.double()
    with torch.no_grad():
        found = model.embed(pixels(1, 96, 48), modality) if ranked else model(pixels(1, 96, 48), modality).embedding
    return found if ranked or model.arguments["name"] == "deen" else F.normalize(found)


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
@pytest.mark.parametrize("number", range(20))
def test_scores_are_those_of_the_published_evaluator(protocol, number):
    names = "distance", "query_ids", "gallery_ids", "query_cameras", "gallery_cameras", "cmc", "mAP", "mINP"
    *given, cmc, mean, least = (STORED[f"evaluate/{protocol}/{number}/{name}"] for name in names)
    found = metrics.evaluate(*given, protocol)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-7)
    np.testing.assert_allclose([found.mAP, found.mINP], [mean, least], atol=1e-12)


@pytest.mark.parametrize("network", ["agw", "base", "caj_flip", "ddag", "deen_llcm", "deen_regdb"])
def test_a_published_checkpoint_gives_the_published_features(tmp_path, network):
    layout = "agw" if network == "caj_flip" else network
    path = published(tmp_path / "best.t", layout)
    model, card = load_official(path, "caj" if network == "caj_flip" else None)
    name = network.partition("_")[0].replace("base", "agw")
    identities = NAMES[layout]["classifier.weight"][0]
    assert (card["model"]["name"], card["model"]["num_identities"]) == (name, identities)
    assert card["dataset"]["size"] == ([384, 144] if name == "deen" else [288, 144])
    for modality in Modality:
        expected, found = STORED[f"{network}/{modality.name.lower()}"], features(model, modality, name == "caj").numpy()
        np.testing.assert_allclose(found[:, ::4], expected, atol=1e-12)
        every = np.random.Generator(np.random.PCG64(found.shape[1])).standard_normal((found.shape[1], 16))
        np.testing.assert_allclose(found @ every, STORED[f"{network}/{modality.name.lower()}/sums"], atol=1e-11)
    if network == "deen_regdb":
        for fusion in (model.stages[1][-1], model.stages[2][-1]):
            fusion.published_view = False
        assert np.abs(features(model, modality)[:, ::4].numpy() - expected).max() > 0.01


@cache
def small(name, **options):
    """Return a small network of ours, and its weights under their published names."""
    model = models.build(name, 5, "resnet18", **options)
    state = {theirs: model.state_dict()[ours] for ours, theirs in _official_names(model).items()}
    state = {
        n: part[:, :, None, None] if n.startswith("wpa.fc") and part.ndim == 2 else part for n, part in state.items()
    }
    return model, state


@pytest.mark.parametrize(("name", "layer4"), [("ddag", True), ("deen", True), ("deen", False)])
def test_any_trunk_and_every_weight_comes_back(tmp_path, name, layer4):
    made, state = small(name, **({} if layer4 else {"layer4": False}))
    torch.save({"net": state}, tmp_path / "best.t")
    found, card = load_official(tmp_path / "best.t", name)
    assert all(torch.equal(part, found.state_dict()[ours]) for ours, part in made.state_dict().items())
    save_checkpoint(tmp_path / "own.safetensors", found, card)
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    again = load_checkpoint(tmp_path / "own.safetensors")[0]
    assert torch.equal(again.embed(images, Modality.INFRARED), found.embed(images, Modality.INFRARED))


DAMAGES = {
    "integer weights": lambda state, name: {name: state[name].to(torch.int64)},
    "complex weights": lambda state, name: {name: state[name].to(torch.complex64)},
    "whole and not float": lambda state, name: {name: state[name] > 0},
    "no dimension": lambda state, name: {name: torch.tensor(1.0)},
    "one dimension more": lambda state, name: {name: state[name][None]},
    "another width": lambda state, name: {name: state[name][..., :1].repeat(*[1] * (state[name].ndim - 1), 7)},
    "nothing": lambda state, name: {name: torch.zeros(0)},
    "an unknown key": lambda state, name: {f"{name}.more": state[name]},
    "a missing key": lambda state, name: {name: None},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("network", "names"),
    [
        ("agw", ("classifier.weight", "NL_2.0.theta.bias", "bottleneck.weight")),
        ("ddag", ("classifier.weight", "wpa.fc2.bias", "wpa.fc1.0.weight", "attention_3.a")),
        ("deen", ("classifier.weight", "DEE.FC21.weight", "MFA1.CNL.W.1.running_var", "MFA3.PNL.g.bias")),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, network, names, damage):
    _, state = small(network)
    for name in names[list(DAMAGES).index(damage) % 2 :: 2]:
        damaged = {key: part for key, part in (state | DAMAGES[damage](state, name)).items() if part is not None}
        torch.save({"net": damaged}, tmp_path / "best.t")
        with pytest.raises(InputError, match=rf"{name}|num_identities") as caught:
            load_official(tmp_path / "best.t")
        assert "\n" not in str(caught.value)


def test_old_files_without_counters_are_read_and_other_networks_are_not(tmp_path):
    state, path = small("ddag")[1], tmp_path / "best.t"
    torch.save({"net": {n: part for n, part in state.items() if not n.endswith("num_batches_tracked")}}, path)
    assert load_official(path)[0].bottleneck.num_batches_tracked == 0
    with pytest.raises(InputError, match="network 'agw' is unknown; choose from ddag"):
        load_official(path, "agw")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_file_given_as_a_checkpoint_is_shown_the_door(tmp_path, legacy):
    torch.save({"net": {"weight": torch.zeros(2)}}, tmp_path / "agw.t", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="--official") as caught:
        load_checkpoint(tmp_path / "agw.t")
    assert "\n" not in str(caught.value)


def test_the_published_view_halves_positions(tmp_path):
    model = models.build("deen", 5, "lite", published_view=True).eval()
    with pytest.raises(InputError, match="published_view"):
        model.embed(torch.rand(1, 3, 36, 18), Modality.VISIBLE)


class Plain(PGD):
    random_start = False


class Momentum(Plain):
    momentum = 1.0


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize(("name", "attack"), [("fgsm", FGSM), ("plain", Plain), ("momentum", Momentum), ("start", PGD)])
def test_attacks_are_those_of_foolbox_and_torchattacks(name, attack, modality, monkeypatch):
    monkeypatch.setattr(models.two_stream, "LITE_WIDTHS", (32, 64, 128, 256))  # of the stored numbers
    model = models.build("agw", 7, "lite").double().eval()
    state = model.state_dict()
    drawn = {n: weight(n, tuple(part.shape)).double() for n, part in state.items() if part.is_floating_point()}
    model.load_state_dict(state | drawn)
    images = pixels(2, 32, 16)
    images[:, :, :4] = images[:, :, :4].round()  # at both ends of the range
    found = (attack()(model, images, modality, seed=3) - images).numpy()
    expected = STORED[f"attack/{name}/{modality.name.lower()}"]
    # The sign of a gradient that is zero but for rounding may differ on another machine.
    assert (np.abs(found - expected) > 1e-7).mean() < 1e-3


def drawn(name, *shape):
    return weight(name, shape).double()


def graph(nodes):
    module = GraphAttention(8, 3, 0.0).double()
    names = [*(f"attention_{head}" for head in range(4)), "out_att"]
    with torch.no_grad():
        for name, layer in zip(names, [*module.heads, module.out], strict=True):
            layer.weight.copy_(drawn(f"{name}.W", *layer.weight.shape))
            layer.attention.copy_(drawn(f"{name}.a", *layer.attention.shape))
    return F.nll_loss(module(nodes, LABELS, torch.Generator()), LABELS)


LOSSES = {
    # The published softmax of a triplet adds 1e-6 to its sum.
    "wrt": (lambda x: losses.weighted_regularised_triplet(x, LABELS), ["features.0"], 2e-6),
    "adp": (lambda x: losses.adp_triplet(x, LABELS), ["features.0"], 2e-6),
    "hard": (lambda x: losses.hard_triplet(x, LABELS), ["features.0"], 1e-12),
    "cpm": (lambda x, made: centre_pair_mining(x, made, LABELS, MODALITY), ["features.0", "expanded.0"], 1e-12),
    "graph": (graph, ["nodes.0"], 1e-12),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_the_published_ones(name):
    loss, inputs, tolerance = LOSSES[name]
    given = [drawn(n, 12, 8) if n == "nodes.0" else 2 * drawn(n, 12, 6) for n in inputs]
    value = loss(*[each.requires_grad_() for each in given])
    gradients = torch.autograd.grad(value, given)
    found = np.concatenate([[value.item()], *(each.flatten().numpy() for each in gradients)])
    np.testing.assert_allclose(found, STORED[f"loss/{name}"], atol=tolerance)
