"""IDE and PCB: forward, losses and ranked feature against naive ones, trained and attacked on tiny data."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from contract import attack_and_check
from torch.nn import functional as F

from vireid_lite import models
from vireid_lite.attacks.features import clean_features
from vireid_lite.data import Augmentation, Modality
from vireid_lite.errors import InputError
from vireid_lite.models.baselines import STRIPES
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
from vireid_lite.models.insertion import block_channels, inserted, staged
from vireid_lite.models.two_stream import Batch, horizontal_stripes
from vireid_lite.training import TrainSettings, optimiser_for, train

NETWORKS = ("ide", "pcb")
IDENTITIES = 5
MODALITY = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
LABELS = torch.tensor([0, 3, 3, 1, 1, 0, 3, 3])
QUICK = TrainSettings(
    epochs=2,
    identities=4,
    images=2,
    optimiser="adamw",
    learning_rate=1e-3,
    backbone_factor=1.0,
    schedule="cosine",
    label_smoothing=0.1,
    augmentation=Augmentation(pad=2),
)


def build(name, backbone="lite", seed=0, num_identities=IDENTITIES, **options):
    torch.manual_seed(seed)
    return models.build(name, num_identities, backbone, **options)


def scattered(name, **options):
    """A network in float64 whose weights and running statistics are all its own, as after training."""
    model, generator = build(name, **options).double(), torch.Generator().manual_seed(5)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}  # the BNNecks' biases stay 0
    for key, value in model.state_dict().items():
        if value.is_floating_point() and key not in frozen:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if "running_var" in key else value + 0.3 * (noise - 0.5))
    return model


def images(count=8, size=(32, 16), seed=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch():
    return Batch(images(), MODALITY, LABELS, QUICK.label_smoothing, None, [], torch.Generator().manual_seed(0))


def last_map(model, image, spectrum):
    """The map after block 4 of one image, normalised and led through its own stem here."""
    mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    stem = (model.stages[0].visible, model.stages[0].infrared)[spectrum]
    maps = stem(((image - mean) / std)[None])
    for stage in model.stages[1:]:
        maps = stage(maps)
    return maps[0]


def neck(layer, row):
    """BatchNorm of one row from running statistics, without its bias, which is zero."""
    return (row - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight


def naive(model, name, image, spectrum):
    """Return pooled, ranked feature and logits (parts, K) of one image."""
    found = last_map(model, image, spectrum)
    pooled = torch.stack([channel.sum() / channel.numel() for channel in found])
    if name == "ide":
        feature = neck(model.bottleneck, pooled)
        return pooled, feature / feature.norm(), (model.classifier.weight @ feature)[None]
    parts, logits, height = [], [], found.shape[1]
    for stripe in range(6):
        rows = [y for y in range(height) if (y + 1) * 6 > stripe * height and y * 6 < (stripe + 1) * height]
        mean = found[:, rows].sum((1, 2)) / (len(rows) * found.shape[2])
        feature = neck(model.bottleneck[stripe].neck, model.bottleneck[stripe].reduction.weight @ mean)
        parts.append(feature / feature.norm())
        logits.append(model.classifier[stripe].weight @ feature)
    feature = torch.cat(parts)
    return pooled, feature / feature.norm(), torch.stack(logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_ranked_feature_are_the_naive_ones(name):
    model = scattered(name).eval()
    modality, batch_ = torch.tensor([1, 0, 1, 0]), images(4, (64, 32))
    output, ranked = model(batch_, modality), model.embed(batch_, modality)
    for row in range(len(batch_)):
        pooled, feature, logits = naive(model, name, batch_[row], int(modality[row]))
        torch.testing.assert_close(output.pooled[row], pooled)
        torch.testing.assert_close(ranked[row], feature)
        torch.testing.assert_close(output.logits[row], logits.mean(0))
    # Universal attacks hold the one against the other.
    torch.testing.assert_close(F.normalize(output.embedding), ranked)


def test_pcb_ranks_by_the_mean_cosine_of_the_stripes():
    model = scattered("pcb").eval()
    ranked, output = model.embed(images(), MODALITY), model(images(), MODALITY)
    _, features, logits = model.stripes(images(), MODALITY)
    cosines = [F.cosine_similarity(part[:1], part) for part in features.unbind(1)]
    torch.testing.assert_close(ranked[:1] @ ranked.T, torch.stack(cosines).mean(0)[None])
    torch.testing.assert_close(output.embedding.unflatten(1, (6, -1)).norm(dim=2), torch.ones(8, 6).double())
    assert logits.std(1).min() > 1e-6, "six stripes, six classifiers"


@pytest.mark.parametrize("height", [1, 2, 5, 6, 9, 18])
def test_stripes_are_those_of_adaptive_pooling(height):
    maps = torch.rand(2, 3, height, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = horizontal_stripes(maps, STRIPES)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(maps, (6, 1))[..., 0].mT)
    if height == 6:
        assert torch.equal(found[:, 0], maps[:, :, 0].mean(2)), "the top stripe comes first"


def cross_entropy_by_loops(logits, labels, smoothing):
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        share = [smoothing / len(row) + (1 - smoothing) * (place == label) for place in range(len(row))]
        total -= sum(weight * (value - log_sum) for weight, value in zip(share, row, strict=True))
    return total / len(logits)


def hetero_centre_by_loops(features, labels, modality):
    """Of features divided by their length."""
    total = 0.0
    for identity in labels.unique():
        centres = []
        for spectrum in (0, 1):
            rows = [
                f / f.norm()
                for f, y, m in zip(features, labels, modality, strict=True)
                if y == identity and m == spectrum
            ]
            centres.append(sum(rows) / len(rows))
        total += (centres[0] - centres[1]).square().sum().item()
    return total


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("weight", [0, 0.5])
def test_objective_is_the_naive_sum(name, weight):
    model = scattered(name, hetero_centre=weight).train()
    same = copy.deepcopy(model)
    found = model.objective(batch())
    if name == "ide":
        output = same(batch().images, MODALITY)
        features, logits = [output.embedding], [output.logits]
    else:
        _, features, logits = (
            part if part.ndim < 3 else part.unbind(1) for part in same.stripes(batch().images, MODALITY)
        )
    identity = sum(cross_entropy_by_loops(part, LABELS, 0.1) for part in logits)
    assert found.losses["identity"].item() == pytest.approx(identity)
    assert set(found.losses) == ({"identity", "hetero_centre"} if weight else {"identity"})
    if weight:
        centre = sum(hetero_centre_by_loops(part, LABELS, MODALITY) for part in features)
        assert centre > 0.1
        assert found.losses["hetero_centre"].item() == pytest.approx(weight * centre)
    torch.testing.assert_close(found.logits, torch.stack(list(logits)).mean(0))
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_learns_and_the_new_ones_at_the_full_rate(name):
    model = build(name, hetero_centre=0.5)
    losses = model.objective(batch()._replace(images=images().float())).losses
    sum(losses.values()).backward()
    dead = {key for key, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())}
    assert not dead
    body, head = optimiser_for(model, TrainSettings()).param_groups
    assert body["base_lr"] == pytest.approx(head["base_lr"] / 10)
    names = {id(p): key for key, p in model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in body["params"]} == {"stages"}
    count = {"ide": 2, "pcb": 18}[name]  # weights of neck and classifier, and of the reduction, by stripe
    assert len(head["params"]) == count


@pytest.mark.parametrize(("name", "count"), [("ide", 24_330_624), ("pcb", 27_273_088)])
def test_resnet50_has_the_documented_size(name, count):
    with torch.device("meta"):
        model = models.build(name, 395)
        output = model(torch.rand(4, 3, 288, 144), torch.tensor([0, 0, 1, 1], device="cpu"))
    trunk, stem = 23_508_032, 9_408 + 128  # torchvision's without its classifier; conv1 and bn1
    necks = {"ide": 2 * 2048, "pcb": 6 * (2048 * 256 + 2 * 256)}
    classifiers = {"ide": 2048 * 395, "pcb": 6 * 256 * 395}
    assert sum(p.numel() for p in model.parameters()) == count == trunk + stem + necks[name] + classifiers[name]
    assert f"{count:,}" in " ".join(type(model).__doc__.split())
    assert [tuple(part.shape) for part in output] == [(4, 2048), (4, {"ide": 2048, "pcb": 1536}[name]), (4, 395)]
    assert block_channels(model) == [64, 256, 512, 1024, 2048]


def test_the_transfer_tables_resnet18_has_the_documented_size():
    with torch.device("meta"):
        model = models.build("ide", 395, "resnet18")
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,}" in type(model).__doc__


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backbone", ["lite", "resnet18"])
def test_small_crops_give_one_row_an_image_in_both_modes(name, backbone):
    model = build(name, backbone)
    assert block_channels(model)[-1] == {"lite": 192, "resnet18": 512}[backbone]
    for mode in (True, False):
        output = model.train(mode)(images().float(), MODALITY)
        assert {len(part) for part in output} == {8}
        assert output.logits.shape == (8, IDENTITIES)
    heads, tap = staged(model, "fsam", (0, 4), sfm=True)
    plain = model(images().float(), MODALITY).logits
    with inserted(model, heads):
        assert not torch.allclose(model(images().float(), MODALITY).logits, plain)
    assert tap.maps.shape[:2] == (8, block_channels(model)[-1])
    assert torch.equal(model(images().float(), MODALITY).logits, plain)


@pytest.fixture(scope="module", params=[(name, weight) for name in NETWORKS for weight in (0.0, 0.5)], ids=str)
def trained(request, tiny):
    """Two epochs on `tiny`, then modes and requires_grad mixed on purpose."""
    name, weight = request.param
    model = build(name, num_identities=12, hetero_centre=weight)
    history = train(model, tiny, QUICK, progress=False)
    model.train()
    model.stages[0].eval()
    next(model.parameters()).requires_grad_(False)
    return model, history


def test_training_notes_its_losses_and_lowers_them(trained):
    model, history = trained
    losses = ["identity_loss", "hetero_centre_loss"] if model.hetero_centre else ["identity_loss"]
    assert [list(epoch) for epoch in history] == [["epoch", *losses, "accuracy", "seconds"]] * 2
    assert history[1]["identity_loss"] < history[0]["identity_loss"]
    parts = 6 if model.arguments["name"] == "pcb" else 1
    assert 0.5 * parts * math.log(12) < history[0]["identity_loss"] < 1.2 * parts * math.log(12)


def test_the_hetero_centre_loss_draws_the_modalities_together(tiny, store):
    """After as many steps, the weighted loss leaves the centres closer than the identity loss alone does."""
    ends = []
    for weight in (0.0, 5.0):
        model = build("ide", num_identities=12, hetero_centre=weight)
        train(model, tiny, replace(QUICK, epochs=6), progress=False)
        identities = torch.tensor([record.identity for record in store.records])
        features = clean_features(model, store)
        ends.append(hetero_centre_by_loops(features, identities, store.modalities))
    assert ends[1] < 0.9 * ends[0], ends


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cmps", {"steps": 2}),
        ("uap", {"steps": 2}),
        ("feature-level", {"steps": 2, "blocks": (0, 4)}),
        ("m-fgsm", {"steps": 2}),
    ],
)
def test_attacks_run_and_leave_the_victim_alone(trained, store, name, options):
    attack_and_check(trained[0], store, name, **options)


def test_checkpoints_come_back_as_they_were(trained, tmp_path):
    model = trained[0]
    save_checkpoint(tmp_path / "victim.safetensors", model, {})
    loaded, card = load_checkpoint(tmp_path / "victim.safetensors")
    assert card["model"]["hetero_centre"] == loaded.hetero_centre == model.hetero_centre
    assert type(loaded) is type(model)
    batch_ = images().float()
    assert torch.equal(loaded.embed(batch_, Modality.VISIBLE), model.embed(batch_, Modality.VISIBLE))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hetero_centre": -1}, "hetero_centre must be a number from 0"),
        ({"hetero_centre": math.nan}, "hetero_centre must be a number from 0"),
        ({"hetero_centre": math.inf}, "hetero_centre must be a number from 0"),
        ({"hetero_centre": True}, "hetero_centre must be a number from 0"),
        ({"hetero_centre": "0.5"}, "hetero_centre must be a number from 0"),
        ({"hetero_center": 0.5}, "no option 'hetero_center'; it has hetero_centre"),
        ({"gem_p": 3.0}, "no option 'gem_p'; it has hetero_centre"),
    ],
)
def test_other_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)
