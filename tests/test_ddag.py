"""DDAG: forward, losses and ranked feature against plain loops, the graph's mask and draws, training, attacks."""

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
from vireid_lite.models.insertion import block_channels, insert, staged
from vireid_lite.models.two_stream import Batch
from vireid_lite.training import TrainSettings, optimiser_for, train

LABELS = torch.tensor([0, 1, 4, 1, 4, 0, 0, 1])  # in no order; visible first, then infrared
MODALITY = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def build(backbone="lite", **options):
    torch.manual_seed(0)
    return models.build("ddag", 6, backbone, **options)


def images(count=8, size=(32, 16), seed=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def scattered(model, seed=5):
    """Give every weight and statistic a value of its own, in float64, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(0.5 + noise if "running_var" in name else value + 0.2 * (noise - 0.5))
    return model


def batch_of(model, history=(), smoothing=0.0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return Batch(images().to(next(model.parameters())), MODALITY, LABELS, smoothing, None, list(history), generator)


# The naive reference: numpy float64, one loop an index


def array(tensor):
    return tensor.detach().double().numpy()


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def linear(layer, vector):
    return array(layer.weight) @ vector + array(layer.bias)


def batch_norm(norm, rows, training):
    mean, variance = array(norm.running_mean), array(norm.running_var)
    if training:
        mean, variance = rows.mean(0), rows.var(0)
    return (rows - mean) / np.sqrt(variance + norm.eps) * array(norm.weight) + array(norm.bias)


def naive_features(model, maps, training):
    """Return the pooled, the BNNeck's and the part-aggregated features of maps (N, C, h, w)."""
    pooled = maps.mean((2, 3))
    neck = batch_norm(model.bottleneck, pooled, training)
    head = model.bottleneck_parts
    count, height = len(head.gate), maps.shape[2]
    gate = softmax(array(head.gate))
    summed = []
    for row in range(len(maps)):
        parts = []
        for part in range(count):
            first, last = math.floor(part * height / count), math.ceil((part + 1) * height / count)
            parts.append(maps[row, :, first:last].mean((1, 2)))
        total = neck[row].copy()
        for i in range(count):
            weights = softmax(
                np.array([linear(head.query, parts[i]) @ linear(head.key, parts[j]) for j in range(count)])
            )
            for j in range(count):
                total += gate[i] * weights[j] * linear(head.value, parts[j])
        summed.append(total)
    return pooled, neck, batch_norm(head.norm, np.array(summed), training)


def naive_graph(head, pooled, labels, generator):
    """Return the log-probabilities of the graph over a batch, its dropout drawn in the order of the equations."""

    def drop(values):
        kept = torch.rand(values.shape, generator=generator).numpy() >= head.dropout
        return np.where(kept, values / (1 - head.dropout), 0)

    def elu(value):
        return np.where(value > 0, value, np.exp(np.minimum(value, 0)) - 1)

    def layer(weights, nodes):
        hidden = np.array([node @ array(weights.weight) for node in nodes])
        vector = array(weights.attention)[:, 0]
        attention = np.zeros((len(nodes), len(nodes)))
        for i in range(len(nodes)):
            friends = [j for j in range(len(nodes)) if labels[j] == labels[i]]
            scores = [vector @ np.concatenate([hidden[i], hidden[j]]) for j in friends]
            attention[i, friends] = softmax(np.array([score if score > 0 else 0.2 * score for score in scores]))
        return drop(attention) @ hidden

    nodes = drop(pooled)
    nodes = np.concatenate([elu(layer(weights, nodes)) for weights in head.heads], 1)
    logits = elu(layer(head.out, drop(nodes)))
    return np.array([np.log(softmax(row)) for row in logits])


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


# Forward


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("parts", "size"), [(3, (96, 16)), (3, (32, 16)), (2, (80, 32))])
def test_forward_is_the_naive_one(training, parts, size):
    model = scattered(build(parts=parts)).train(training)
    crops = images(size=size).double()
    with torch.no_grad():
        maps = array(copy.deepcopy(model).feature_map(crops, MODALITY))
        output = model(crops, MODALITY)
    pooled, _, embedding = naive_features(model.train(training), maps, training)
    np.testing.assert_allclose(array(output.pooled), pooled, atol=1e-10)
    np.testing.assert_allclose(array(output.embedding), embedding, atol=1e-9)
    np.testing.assert_allclose(array(output.logits), embedding @ array(model.classifier.weight).T, atol=1e-9)
    if not training:
        ranked = embedding / np.array([[math.dist(row, 0 * row)] for row in embedding])
        np.testing.assert_allclose(array(model.embed(crops, MODALITY)), ranked, atol=1e-10)


@pytest.mark.parametrize("backbone", ["lite", "resnet18"])
def test_every_trunk_delivers_one_row_an_image(backbone):
    model = build(backbone)
    width = model.classifier.in_features
    assert block_channels(model)[4] == width
    for training in (True, False):
        output = model.train(training)(images(), MODALITY)
        assert [tuple(part.shape) for part in output] == [(8, width), (8, width), (8, 6)]
    assert model.embed(images(2), Modality.INFRARED).norm(dim=1).tolist() == pytest.approx([1, 1])
    assert [tuple(head.weight.shape) for head in model.classifier_graph.heads] == [(width, width // 4)] * 4


# Losses


@pytest.mark.parametrize(("dropout", "smoothing"), [(0.2, 0.0), (0.0, 0.1)])
def test_every_loss_is_the_naive_one(dropout, smoothing):
    model = scattered(build(dropout=dropout)).train()
    before = {"epoch": 0, "identity_loss": 9.0, "triplet_loss": 9.0, "part_loss": 9.0, "graph_loss": 9.0}
    last = {"epoch": 1, "identity_loss": 1.5, "triplet_loss": 0.25, "part_loss": 2.0, "graph_loss": 7.0}
    batch = batch_of(model, [before, last], smoothing)
    with torch.no_grad():
        maps = array(copy.deepcopy(model).feature_map(batch.images, batch.modality))
        found = model.objective(batch)
    pooled, neck, embedding = naive_features(model, maps, training=True)
    labels, classifier = LABELS.tolist(), array(model.classifier.weight)
    generator = torch.Generator().manual_seed(3)
    log = naive_graph(model.classifier_graph, pooled, labels, generator)
    expected = {
        "identity": naive_cross_entropy(neck @ classifier.T, labels, smoothing),
        "triplet": naive_triplet(pooled, labels),
        "part": naive_cross_entropy(embedding @ classifier.T, labels, smoothing),
        "graph": -np.mean([log[row, label] for row, label in enumerate(labels)]) / (1 + 1.5 + 0.25 + 2.0),
    }
    assert list(found.losses) == list(expected)
    assert {name: loss.item() for name, loss in found.losses.items()} == pytest.approx(expected, rel=1e-9)
    assert min(expected.values()) > 0
    np.testing.assert_allclose(array(found.logits), neck @ classifier.T, atol=1e-9)
    assert torch.equal(found.labels, LABELS)


def test_the_graph_has_no_weight_in_the_first_epoch_and_no_gradient():
    model = build().train()
    found = model.objective(batch_of(model))
    assert found.losses["graph"].item() == 0
    sum(found.losses.values()).backward()
    assert not any(p.grad.any() for p in model.classifier_graph.parameters())
    assert model.bottleneck_parts.gate.grad.any()


def test_a_node_hears_its_own_identity_of_both_modalities_and_nobody_else():
    head = scattered(build(dropout=0.0)).classifier_graph
    pooled = torch.rand(8, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    found = head(pooled, LABELS, torch.Generator())
    assert found.exp().sum(1).tolist() == pytest.approx([1] * 8)
    for row in range(8):
        (slope,) = torch.autograd.grad(found[row].square().sum(), pooled, retain_graph=True)
        assert torch.equal(slope.any(1), LABELS[row] == LABELS)


def test_every_draw_comes_from_the_batch():
    model = build().train()
    history = [{"identity_loss": 0.0, "triplet_loss": 0.0, "part_loss": 0.0}]

    def graph(seed):
        return copy.deepcopy(model).objective(batch_of(model, history, seed=seed)).losses["graph"].item()

    state = torch.get_rng_state()
    assert graph(0) == graph(0) != graph(1)
    assert torch.equal(torch.get_rng_state(), state)


# Size, options


def test_resnet50_has_the_documented_size_and_heads_at_the_full_rate():
    model = models.build("ddag", 395)
    count = {True: 0, False: 0}
    for parameter in model.parameters():
        count[parameter.requires_grad] += parameter.numel()
    assert sum(count.values()) == 41_931_929
    assert count[True] == 41_927_833
    assert sum(p.numel() for p in model.classifier_graph.parameters()) == 5_008_150
    assert [tuple(layer.weight.shape) for layer in model.classifier_graph.heads] == [(2048, 512)] * 4
    body, head = (group["params"] for group in optimiser_for(model, TrainSettings()).param_groups)
    assert sum(p.numel() for p in body) == sum(p.numel() for p in model.stages.parameters())
    assert sum(p.numel() for p in body + head) == count[True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 0}, "parts must be a whole number of at least 1, got 0"),
        ({"parts": 2.0}, "parts must be a whole number"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to 0.99, got 1.0"),
        ({"dropout": True}, "dropout must be a number"),
        ({"heads": 4}, "ddag has no option 'heads'; it has parts, dropout"),
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
    model = models.build("ddag", 12, "lite")
    lite = {"optimiser": "adamw", "learning_rate": 2e-3, "backbone_factor": 1.0, "schedule": "cosine"}
    settings = TrainSettings(epochs=2, identities=4, images=2, **lite)
    history = train(model, tiny, settings, progress=False)
    return model, history


def test_two_epochs_train_every_part(trained):
    model, history = trained
    names = {"epoch", "identity_loss", "triplet_loss", "part_loss", "graph_loss", "accuracy", "seconds"}
    assert [set(epoch) for epoch in history] == [names] * 2
    assert history[0]["graph_loss"] == 0 < history[1]["graph_loss"]
    assert history[1]["identity_loss"] < history[0]["identity_loss"]
    torch.manual_seed(0)
    fresh = dict(models.build("ddag", 12, "lite").named_parameters())
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


def test_a_checkpoint_comes_back(trained, store, tmp_path):
    model = trained[0].eval()
    models.save_checkpoint(tmp_path / "ddag.safetensors", model, {})
    loaded, card = models.load_checkpoint(tmp_path / "ddag.safetensors")
    assert card["model"]["name"] == "ddag"
    assert torch.equal(*(embed_store(each, store, progress=False) for each in (model, loaded)))
