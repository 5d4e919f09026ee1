"""The quadruple loss: parity with loops over the printed equations, gradients, silent hinges, invariances."""

import math

import draws
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid_lite.errors import InputError
from vireid_lite.losses import class_centres, pairwise_quadruple_loss, quadruple_loss, quadruple_terms


def draw(seed, rows, width, scale=1.0):
    """Return visible1, infrared1, visible2, infrared2, each (rows, width) float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(4))


def naive(centres, labels, alpha, form, normalise):
    """Return the loss and the active fraction, pair by pair, with the printed letters: v1 is x_v1, a list of rows."""
    v1, i1, v2, i2 = ([[float(x) for x in row] for row in each] for each in centres)
    if normalise:
        v1, i1, v2, i2 = ([[x / math.hypot(*row) for x in row] for row in each] for each in (v1, i1, v2, i2))
    arguments = []
    for j in range(len(v1)):
        for k in range(len(v1)):
            if labels[j] != labels[k]:
                arguments.append(math.dist(v2[j], v1[j]) - math.dist(i2[j], v1[j]) - math.dist(v2[j], v2[k]) + alpha)
                arguments.append(math.dist(i2[j], i1[j]) - math.dist(v2[j], i1[j]) - math.dist(i2[j], i2[k]) + alpha)
    loss = sum(max(value, 0) if form == "hinge" else value for value in arguments)
    return loss, sum(value > 0 for value in arguments) / len(arguments)


OPTIONS = {
    "seed": st.integers(0, 2**31),
    "width": st.integers(1, 9),
    "scale": st.sampled_from([0.0, 1e-3, 0.1, 1.0, 50.0]),
    "alpha": st.sampled_from([0.0, 0.2, 3.0]),
    "form": st.sampled_from(["hinge", "linear"]),
    "normalise": st.booleans(),
}


@settings(max_examples=draws.of(100), deadline=None)
@given(identities=st.integers(2, 7), **OPTIONS)
def test_the_loss_is_the_printed_sum(identities, seed, width, scale, alpha, form, normalise):
    normalise &= scale > 0
    centres = draw(seed, identities, width, scale)
    found = quadruple_loss(*centres, alpha=alpha, form=form, normalise=normalise)
    loss, active = naive(centres, range(identities), alpha, form, normalise)
    assert float(found.loss) == pytest.approx(loss, rel=1e-10, abs=1e-10)
    if not (normalise and width == 1):  # normalised numbers are 1 or -1, and the arguments tie with 0
        assert float(found.active) == pytest.approx(active, abs=1e-6)


@settings(max_examples=draws.of(100), deadline=None)
@given(labels=st.lists(st.integers(3, 6), min_size=2, max_size=9), **OPTIONS)
def test_the_pairwise_form_is_the_printed_sum(labels, seed, width, scale, alpha, form, normalise):
    normalise &= scale > 0
    samples, options = draw(seed, len(labels), width, scale), {"alpha": alpha, "form": form, "normalise": normalise}
    if len(set(labels)) == 1:
        with pytest.raises(InputError, match="2 identities"):
            pairwise_quadruple_loss(*samples, torch.tensor(labels), **options)
        return
    found = pairwise_quadruple_loss(*samples, torch.tensor(labels), **options)
    loss, active = naive(samples, labels, **options)
    assert float(found.loss) == pytest.approx(loss, rel=1e-10, abs=1e-10)
    if not (normalise and width == 1):
        assert float(found.active) == pytest.approx(active, abs=1e-6)
    if len(set(labels)) == len(labels):
        assert found == quadruple_loss(*samples, **options)


def test_the_terms_are_the_three_distances():
    visible1, infrared1, visible2, infrared2 = centres = draw(0, 4, 3)
    own, other, between = quadruple_terms(*centres)
    assert (own.shape, other.shape, between.shape) == ((2, 4), (2, 4), (2, 4, 4))
    assert torch.allclose(own, torch.stack([(visible2 - visible1).norm(dim=1), (infrared2 - infrared1).norm(dim=1)]))
    assert torch.allclose(other, torch.stack([(infrared2 - visible1).norm(dim=1), (visible2 - infrared1).norm(dim=1)]))
    assert torch.allclose(between[1, 2, 3], (infrared2[2] - infrared2[3]).norm())
    assert torch.equal(between, between.mT)


@pytest.mark.parametrize("form", ["hinge", "linear"])
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients(form, normalise):
    centres = tuple(each.requires_grad_() for each in draw(1, 4, 5))
    alpha = 1.4 if normalise else 4.0  # some hinges are silent, and none is near its kink
    own, other, between = quadruple_terms(*centres, normalise=normalise)
    arguments = ((own - other)[:, :, None] - between + alpha)[:, ~torch.eye(4, dtype=torch.bool)]
    assert arguments.min() < 0 < arguments.max()
    assert arguments.abs().min() > 1e-3

    def loss(*each):
        return quadruple_loss(*each, alpha=alpha, form=form, normalise=normalise).loss

    def over_samples(*each):
        labels = torch.tensor([0, 0, 1, 2])
        return pairwise_quadruple_loss(*each, labels, alpha=alpha, form=form, normalise=normalise).loss

    assert torch.autograd.gradcheck(loss, centres)
    assert torch.autograd.gradcheck(over_samples, centres)


def test_the_gradient_of_a_distance_of_0_is_0():
    # All eight centres in one point: every distance is 0, and every hinge open by alpha.
    centres = [torch.ones(2, 3, requires_grad=True) for _ in range(4)]
    found = quadruple_loss(*centres)
    assert found.loss.item() == pytest.approx(4 * 0.2)
    assert found.active == 1
    for gradient in torch.autograd.grad(found.loss, centres):
        assert torch.equal(gradient, torch.zeros(2, 3))
    # Stage 2 = stage 1: the own distance is 0 and its pull is none, while the other two still push.
    visible, infrared = (each.float().requires_grad_() for each in draw(2, 3, 4)[:2])
    gradients = torch.autograd.grad(quadruple_loss(visible, infrared, visible, infrared, alpha=9).loss, visible)
    assert gradients[0].isfinite().all()
    assert gradients[0].any()
    # A centre at the origin has no direction to divide by.
    nothing = [torch.zeros(2, 3, requires_grad=True) for _ in range(4)]
    for gradient in torch.autograd.grad(quadruple_loss(*nothing, normalise=True).loss, nothing):
        assert torch.equal(gradient, torch.zeros(2, 3))


def test_what_each_stage_feels():
    # With one hinge open per ordered pair, -gradient moves visible2 of identity 0 toward its stage 1, away from the
    # infrared stage 1 and away from the other identity, J - 1 times, J - 1 times and 2 (J - 1) times.
    unit = [torch.tensor(each, dtype=torch.float64) for each in ((3.0, 4.0), (-4.0, 3.0), (1.0, 0.0))]
    visible2 = torch.stack([torch.zeros(2, dtype=torch.float64), 7 * unit[2]]).requires_grad_()
    visible1 = torch.stack([unit[0], torch.tensor([5.0, 5.0], dtype=torch.float64)])
    infrared1 = torch.stack([unit[1], torch.tensor([9.0, 1.0], dtype=torch.float64)])
    infrared2 = torch.tensor([[1.0, -2.0], [2.0, -8.0]], dtype=torch.float64)
    loss = quadruple_loss(visible1, infrared1, visible2, infrared2, alpha=99).loss
    step = -torch.autograd.grad(loss, visible2)[0][0]
    expected = unit[0] / 5 - unit[1] / 5 - 2 * unit[2]
    assert torch.allclose(step, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("aligned", "distances"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_orthogonal_centres_silence_the_hinge(aligned, distances, alpha):
    # Stage 2 = stage 1, so D(v2_j, v1_j) = 0, and centres of norm r. If all 2 J are orthogonal, D(i2_j, v1_j) and
    # D(v2_j, v2_k) are both r sqrt(2): silent from r = alpha / (2 sqrt(2)) on. If the modalities agree and identities
    # are orthogonal, only the second is left: silent from alpha / sqrt(2) on.
    bound = alpha / (distances * math.sqrt(2))
    basis = torch.eye(12, dtype=torch.float64)
    visible, infrared = basis[:6], basis[:6] if aligned else basis[6:]
    for factor, active in ((0.999, 1.0), (1.001, 0.0)):
        v, i = factor * bound * visible, factor * bound * infrared
        found = quadruple_loss(v, i, v, i, alpha=alpha)
        assert found.active == active
        assert (found.loss > 0) == (active > 0)
        assert quadruple_loss(v, i, v, i, alpha=alpha, form="linear").active == active
    assert quadruple_loss(visible, infrared, visible, infrared, alpha=alpha, normalise=True).active == (bound > 1)


def test_the_linear_form_has_no_bound_and_the_hinge_has():
    centres = draw(3, 5, 8)
    linear = [float(quadruple_loss(*(scale * each for each in centres), form="linear").loss) for scale in (1, 10, 100)]
    assert linear[0] > linear[1] > linear[2]
    assert linear[2] - linear[1] == pytest.approx(10 * (linear[1] - linear[0]))
    assert quadruple_loss(*(100 * each for each in centres)).loss == 0


@settings(max_examples=draws.of(50), deadline=None)
@given(seed=st.integers(0, 2**31), identities=st.integers(2, 6), width=st.integers(2, 8), form=OPTIONS["form"])
def test_invariances(seed, identities, width, form):
    visible1, infrared1, visible2, infrared2 = centres = draw(seed, identities, width)
    plain = quadruple_loss(*centres, alpha=1.0, form=form)

    def same(*changed):
        found = quadruple_loss(*changed, alpha=1.0, form=form)
        assert torch.allclose(found.loss, plain.loss, rtol=1e-9, atol=1e-9)
        assert torch.allclose(found.active, plain.active)

    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    order = torch.randperm(identities, generator=generator)
    same(*(each @ rotation for each in centres))
    same(*(each + shift for each in centres))
    same(infrared1, visible1, infrared2, visible2)
    same(*(each[order] for each in centres))
    # The stages are no such pair: swapping them is another loss, but for chance.
    swapped = quadruple_loss(visible2, infrared2, visible1, infrared1, alpha=1.0, form="linear").loss
    assert swapped != quadruple_loss(*centres, alpha=1.0, form="linear").loss


@settings(max_examples=draws.of(50), deadline=None)
@given(
    cells=st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_class_centres_are_the_means(cells, seed):
    labels = [label for label, visible, infrared in cells for _ in range(visible + infrared)]
    modality = [side for _, visible, infrared in cells for side in [0] * visible + [1] * infrared]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    labels, modality = torch.tensor(labels)[order], torch.tensor(modality)[order]
    features = torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
    found = class_centres(features, labels, modality)
    names = sorted(set(labels.tolist()))
    assert [each.shape for each in found] == [(len(names), 3)] * 2
    for row, name in enumerate(names):
        for side in (0, 1):
            members = [features[n].numpy() for n in range(len(labels)) if (labels[n], modality[n]) == (name, side)]
            assert np.allclose(found[side][row], np.mean(members, 0), rtol=0, atol=1e-14)


def test_class_centres_carry_gradient_to_every_image():
    features = torch.zeros(6, 2, requires_grad=True)
    labels, modality = torch.tensor([4, 4, 4, 4, 1, 1]), torch.tensor([0, 0, 0, 1, 0, 1])
    visible, infrared = class_centres(features, labels, modality)
    (gradient,) = torch.autograd.grad(visible[1].sum() + 10 * infrared[0].sum(), features)
    assert torch.allclose(gradient[:, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0, 10]))


def test_bad_input_is_refused_in_one_line():
    two, three = torch.ones(2, 4), torch.ones(3, 4)
    labels, modality = torch.tensor([0, 0, 7, 7]), torch.tensor([0, 1, 0, 1])
    features = torch.ones(4, 2)
    calls = {
        r"one is missing of \[7, 9\]": lambda: class_centres(features, torch.tensor([0, 0, 7, 9]), modality),
        "features must be": lambda: class_centres(features, labels[:3], modality),
        "labels and modality": lambda: class_centres(features, labels, modality[:3]),
        "one shape": lambda: quadruple_loss(two, two, two, three),
        r"\(J, D\)": lambda: quadruple_loss(*[torch.ones(3)] * 4),
        "2 identities": lambda: quadruple_loss(*[torch.ones(1, 4)] * 4),
        "'soft' is unknown": lambda: quadruple_loss(*[two] * 4, form="soft"),
        "as many labels": lambda: pairwise_quadruple_loss(*[two] * 4, labels),
        "to form a pair": lambda: pairwise_quadruple_loss(*[two] * 4, torch.tensor([3, 3])),
    }
    for words, call in calls.items():
        with pytest.raises(InputError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)
