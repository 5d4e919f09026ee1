"""Checkpoints: exact round trips, strict refusals, and the official AGW layout against an independent forward pass."""

import copy
import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from vireid_lite import models
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
from vireid_lite.models.official import load_official

CARD = {"dataset": "synthetic", "seed": 3, "scores": [0.5, 0.25]}


def build(backbone="lite", num_identities=7, **options):
    return models.build("agw", num_identities, backbone=backbone, **options)


def images(count=4, size=(32, 16)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


class OfficialNonLocal(nn.Module):
    """A non-local block under the official names, with its positions x positions affinity written out."""

    def __init__(self, channels):
        super().__init__()
        self.g = nn.Sequential(nn.Conv2d(channels, 1, 1))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        nn.init.constant_(self.W[1].weight, 0.1)  # alive, yet no explosion from a product of three maps
        self.theta = nn.Conv2d(channels, 1, 1)
        self.phi = nn.Conv2d(channels, 1, 1)

    def forward(self, maps):
        theta, phi, g = self.theta(maps).flatten(2), self.phi(maps).flatten(2), self.g(maps).flatten(2)
        affinity = torch.einsum("ncp,ncq->npq", theta, phi) / theta.shape[2]
        return maps + self.W(torch.einsum("npq,ncq->ncp", affinity, g).reshape(len(maps), 1, *maps.shape[2:]))


class OfficialLayout(nn.Module):
    """AGW with the official parameter names: three whole ResNets of which a part is used, and NL_1 to NL_4."""

    def __init__(self, backbone, non_local, num_identities=7):
        super().__init__()
        resnet = torchvision.models.get_model(backbone, weights=None)
        width = resnet.fc.in_features
        for module in resnet.layer4[0].modules():
            if isinstance(module, nn.Conv2d):
                module.stride = 1
        self.visible_module, self.thermal_module, self.base_resnet = nn.Module(), nn.Module(), nn.Module()
        self.visible_module.visible = resnet
        self.thermal_module.thermal = copy.deepcopy(resnet)
        self.base_resnet.base = copy.deepcopy(resnet)
        self.non_local = non_local
        for number, count in enumerate(non_local, start=1):
            channels = width >> (4 - number)
            setattr(self, f"NL_{number}", nn.ModuleList(OfficialNonLocal(channels) for _ in range(count)))
        self.bottleneck = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, num_identities, bias=False)
        generator = torch.Generator().manual_seed(2)
        for name, value in self.state_dict().items():  # every weight its own, the three ResNets apart
            if "running" not in name and value.is_floating_point():
                value.mul_(0.5 + torch.rand(value.shape, generator=generator))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = None  # running statistics are plain means, of one batch per modality
        with torch.no_grad():
            for modality in Modality:
                self(images(), modality)
        self.eval()

    def forward(self, images, modality):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        stem = self.visible_module.visible if modality == Modality.VISIBLE else self.thermal_module.thermal
        maps = stem.maxpool(stem.relu(stem.bn1(stem.conv1((images - mean) / std))))
        for number, count in enumerate(self.non_local, start=1):
            layer = getattr(self.base_resnet.base, f"layer{number}")
            for index, block in enumerate(layer):
                maps = block(maps)
                if index >= len(layer) - count:
                    maps = getattr(self, f"NL_{number}")[index - len(layer) + count](maps)
        pooled = (maps.pow(3).mean((2, 3)) + 1e-12).pow(1 / 3)
        return pooled, F.normalize(self.bottleneck(pooled)), self.classifier(self.bottleneck(pooled))


@pytest.fixture(scope="module")
def official():
    layout = OfficialLayout("resnet18", (0, 1, 1, 0))
    for unused in (layout.visible_module.visible, layout.thermal_module.thermal):
        del unused.layer3, unused.layer4  # half the file; the ResNet-50 test keeps every unused part
    return layout


def agrees(model, official):
    """Hold both against each other in double precision, where only a wrong place or product can tell them apart."""
    model, official, batch = copy.deepcopy(model).double(), copy.deepcopy(official).double(), images().double()
    with torch.no_grad():
        for modality in Modality:
            pooled, features, logits = official(batch, modality)
            output = model(batch, modality)
            torch.testing.assert_close(output.pooled, pooled)
            torch.testing.assert_close(output.logits, logits)
            torch.testing.assert_close(model.embed(batch, modality), features)


def one_line(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_round_trip_keeps_every_bit_and_the_card(tmp_path):
    model = build(gem_p=2.5, non_local_channels=2)
    model(images(), torch.tensor([0, 1, 1, 0]))  # moves the running statistics
    path = tmp_path / "deep" / "victim.safetensors"
    written = save_checkpoint(path, model, CARD)
    assert json.loads(path.with_suffix(".json").read_text()) == written
    assert written == {**CARD, "model": model.arguments}
    assert sorted(os.listdir(path.parent)) == ["victim.json", "victim.safetensors"]

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    loaded, card = load_checkpoint(path)
    assert torch.equal(torch.rand(3), expected)  # the random generator is where it was
    assert card == written
    assert loaded.arguments == model.arguments
    assert not loaded.training
    assert loaded.gem_p == 2.5
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(loaded.embed(images(), Modality.INFRARED), model.embed(images(), Modality.INFRARED))


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "victim.safetensors"
    save_checkpoint(path, build(), CARD)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "no space left" in one_line(save_checkpoint, path, build(), {"seed": 4})
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["victim.json", "victim.safetensors"]


def test_names_and_cards_that_cannot_be_written_are_refused(tmp_path):
    assert ".safetensors" in one_line(save_checkpoint, tmp_path / "victim.pt", build(), CARD)
    assert "JSON" in one_line(save_checkpoint, tmp_path / "victim.safetensors", build(), {"x": torch.zeros(1)})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet18"}, "is .* where agw, num_identities=7, backbone=resnet18 has"),
        ({"num_identities": 9}, r"classifier.weight is \(7, 192\) where .* has \(9, 192\)"),
        ({"non_local_channels": 0}, "has no place in agw"),
        ({"name": "agx"}, "network 'agx' is unknown"),
        (None, "no usable card"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, change, message):
    model = build()
    path = tmp_path / "victim.safetensors"
    card = {"model": {**model.arguments, **change}} if change else None
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata={"card": json.dumps(card)} if card else None)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or "agx" in str(caught.value)


def test_missing_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "victim.safetensors"
    assert "no such checkpoint" in one_line(load_checkpoint, path)
    save_checkpoint(path, build(), CARD)
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a readable safetensors file" in one_line(load_checkpoint, path)
    path.write_text("<html>not found</html>")
    assert "not a readable safetensors file" in one_line(load_checkpoint, path)


@pytest.mark.parametrize("wrap", ["net", "state_dict", "bare", "parallel", "legacy numpy"])
def test_official_files_give_the_official_outputs(tmp_path, official, wrap):
    path = tmp_path / "agw_best.t"
    state = official.state_dict()
    scores = {"cmc": np.linspace(0, 1, 20, dtype=np.float32), "mAP": np.float64(0.47), "mINP": 0.35, "epoch": 60}
    if wrap == "parallel":
        state = {f"module.{name}": value for name, value in state.items()}
    content = state if wrap == "bare" else {"state_dict" if wrap == "state_dict" else "net": state, **scores}
    if wrap == "legacy numpy":  # as torch 1 and numpy 1 wrote it
        torch.save(content, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    else:
        torch.save(content, path)
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    model, card = load_official(path)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not model.training
    agrees(model, official)
    assert card["model"] == {"name": "agw", "num_identities": 7, "backbone": "resnet18", "pretrained": False}
    assert card["dataset"]["size"] == [288, 144]
    save_checkpoint(tmp_path / "agw.safetensors", model, card)
    agrees(load_checkpoint(tmp_path / "agw.safetensors")[0], official)


def test_the_authors_resnet50_layout_fits(tmp_path):
    official = OfficialLayout("resnet50", (0, 2, 3, 0))
    torch.save({"net": official.state_dict()}, tmp_path / "agw.t")
    agrees(load_official(tmp_path / "agw.t")[0], official)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("NL_2.0.theta.bias"), "NL_2.0.theta.bias is missing"),
        (
            lambda s: s.pop("thermal_module.thermal.bn1.running_var"),
            "thermal_module.thermal.bn1.running_var is missing",
        ),
        (lambda s: s.update({"NL_4.0.g.0.weight": torch.zeros(1)}), "NL_4.0.g.0.weight has no place"),
        (lambda s: s.update({"base_resnet.base.layer5.weight": torch.zeros(1)}), "layer5.weight has no place"),
        (lambda s: s.update({"bottleneck.weight": torch.zeros(3)}), r"bottleneck.weight is \(3,\) where"),
        (lambda s: s.update({"classifier.weight": torch.zeros(9, 51)}), r"classifier.weight is \(9, 51\) where"),
        (lambda s: s.pop("classifier.weight"), "classifier.weight is missing"),
    ],
)
def test_official_files_that_do_not_fit_are_refused(tmp_path, official, damage, message):
    state = dict(official.state_dict())
    damage(state)
    torch.save({"net": state}, tmp_path / "agw.t")
    with pytest.raises(InputError, match=message) as caught:
        load_official(tmp_path / "agw.t")
    assert "\n" not in str(caught.value)


class Surprise:
    def __reduce__(self):
        return os.system, ("true",)


def test_official_files_that_hold_more_than_weights_are_refused(tmp_path, official):
    path = tmp_path / "agw.t"
    torch.save({"net": official.state_dict(), "extra": Surprise()}, path)
    message = one_line(load_official, path)
    assert "system" in message
    assert "weights_only=False" in message
    torch.save({"net": 3}, path)
    assert "no state dict" in one_line(load_official, path)
    for other in ("<html>not found</html>", json.dumps({"net": {"a": [1.0]}}), ""):
        path.write_text(other)
        message = one_line(load_official, path)
        assert "cannot be read" in message
        assert "weights_only" not in message
        assert "--checkpoint" not in message
    save_checkpoint(tmp_path / "own.safetensors", build(), {})
    for name in ("own.safetensors", "own.t"):
        os.replace(tmp_path / "own.safetensors", tmp_path / name)
        assert "--checkpoint" in one_line(load_official, tmp_path / name)
    assert "no such checkpoint" in one_line(load_official, tmp_path / "none.t")
