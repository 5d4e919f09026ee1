"""Losses against the published numbers, against plain re-derivations, and where they used to break."""

import math

import pytest
import torch

from vireid_lite.errors import InputError
from vireid_lite.losses import adp_triplet, hard_triplet, identity_loss, weighted_regularised_triplet

F = torch.tensor([[math.sin(a * (k + 1)) for k in range(5)] for a in range(8)], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
TRIPLETS = (weighted_regularised_triplet, adp_triplet, hard_triplet)


def published_wrt(features, labels):
    """The weighted regularised triplet as published: no shift for the negatives, and 1e-6 added to the sum."""
    total = 0.0
    for anchor in range(len(features)):
        distance = (features[anchor] - features).square().sum(1).clamp(min=1e-12).sqrt()
        same = labels == labels[anchor]
        up = torch.exp(distance[same] - distance[same].max())
        down = torch.exp(-distance[~same])
        d_positive = (up / (up.sum() + 1e-6) * distance[same]).sum()
        d_negative = (down / (down.sum() + 1e-6) * distance[~same]).sum()
        total = total + torch.log1p(torch.exp(d_positive - d_negative))
    return total / len(features)


def simplex(radius, identities=57):
    """Two equal rows per identity, every negative at the same distance `radius`."""
    features = torch.eye(identities, dtype=torch.float64).repeat_interleave(2, 0) * radius / math.sqrt(2)
    return features, torch.arange(identities).repeat_interleave(2)


def slope_in_radius(loss, radius):
    radius = torch.tensor(radius, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(loss(*simplex(radius)), radius)[0].item()


@pytest.mark.parametrize(
    ("loss", "golden"), [(weighted_regularised_triplet, 0.903080), (hard_triplet, 1.365072), (adp_triplet, 0.802431)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_values(loss, golden, dtype):
    assert loss(F.to(dtype), LABELS).item() == pytest.approx(golden, abs=1e-4)


def test_large_features_show_the_published_defect():
    assert weighted_regularised_triplet(10 * F, LABELS).item() == pytest.approx(10.3323, abs=1e-4)
    assert published_wrt(10 * F, LABELS).item() == pytest.approx(20.6447, abs=1e-4)
    assert published_wrt(F, LABELS).item() == pytest.approx(weighted_regularised_triplet(F, LABELS).item(), abs=1e-5)


@pytest.mark.parametrize("radius", [0.5, 5.0, 14.0, 16.0, 20.0, 60.0])
def test_negatives_repel_at_every_distance(radius):
    # d_p = 0 and d_n = radius exactly, so the loss is softplus(-radius) and its slope -sigmoid(-radius).
    slope = slope_in_radius(weighted_regularised_triplet, radius)
    assert slope == pytest.approx(-1 / (1 + math.exp(radius)), rel=1e-6)


def test_published_negatives_attract():
    assert slope_in_radius(published_wrt, 10.0) < 0
    assert slope_in_radius(published_wrt, 16.0) > 0


@pytest.mark.parametrize("loss", TRIPLETS)
def test_equal_rows_give_finite_gradients(loss):
    features = F[[0, 0, 1, 1, 0, 0, 1, 1]].float().requires_grad_()  # zero distances among positives and negatives
    loss(features, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("loss", TRIPLETS)
def test_gradient_is_that_of_finite_differences(loss):
    features = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: loss(rows, LABELS), features)


@pytest.mark.parametrize("loss", TRIPLETS)
def test_order_of_the_batch_does_not_matter(loss):
    order = torch.tensor([3, 7, 0, 5, 1, 6, 4, 2])
    assert loss(F[order], LABELS[order]).item() == pytest.approx(loss(F, LABELS).item(), abs=1e-12)


@pytest.mark.parametrize("loss", TRIPLETS)
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(InputError, match=r"\(8, 1\)"):
        loss(F, LABELS[:, None])


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_hard_triplet_equals_a_walk_over_anchors(margin):
    terms = []
    for i in range(8):
        distances = [math.dist(F[i].tolist(), F[j].tolist()) for j in range(8)]
        positive = max(d for j, d in enumerate(distances) if LABELS[j] == LABELS[i])
        negative = min(d for j, d in enumerate(distances) if LABELS[j] != LABELS[i])
        terms.append(max(0.0, margin + positive - negative))
    assert hard_triplet(F, LABELS, margin).item() == pytest.approx(sum(terms) / 8, abs=1e-12)
    assert hard_triplet(F, torch.zeros(8, dtype=torch.int64), margin).item() == 0  # no negatives at all


def test_adp_has_no_slope_beyond_its_clip():
    assert slope_in_radius(adp_triplet, 9.3) < 0
    assert slope_in_radius(adp_triplet, 9.4) == 0


def test_identity_loss_is_the_mean_cross_entropy():
    assert identity_loss(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert identity_loss(logits, torch.tensor([0, 0])).item() == pytest.approx(expected)
