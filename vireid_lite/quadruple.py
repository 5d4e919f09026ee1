"""The quadruple loss (AQAL) of the feature-level attack, on class centres and on samples.

Centres are named by modality and stage: `visible1` are the (J, D) visible centres of stage 1, the paper's c_v1. D is
the Euclidean distance, and j and k are identities. For the visible direction

    L(v2, i2, v1) = sum over j != k of [ D(v2_j, v1_j) - D(i2_j, v1_j) - D(v2_j, v2_k) + alpha ]_+

and the loss is this plus the same with the modalities swapped. It is minimised, and summed, not averaged.
Source: Yang et al., NeurIPS 2024 (OpenReview RaNct2xkyI), section 3.3; the thread's correction of equation 15.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vireid_lite.errors import InputError


class QuadrupleLoss(NamedTuple):
    """The loss, and the fraction of the hinges' arguments above 0 over both directions (of the linear form too)."""

    loss: Tensor
    active: Tensor


class QuadrupleTerms(NamedTuple):
    """The three distances, visible direction first.

    own: (2, J) D(v2_j, v1_j). other: (2, J) D(i2_j, v1_j). between: (2, J, J) D(v2_j, v2_k).
    """

    own: Tensor
    other: Tensor
    between: Tensor


def class_centres(features: Tensor, labels: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
    """Return the visible and the infrared mean feature of each identity, (J, D) each, identities in sorted order.

    features: (N, D) float. labels: (N,) int64. modality: (N,), 0 visible and 1 infrared.
    Raises InputError for other shapes, and unless every identity has an image of both modalities.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or modality.shape != labels.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (features, labels, modality))
        raise InputError(f"class_centres: features must be (N, D), labels and modality (N,); got {shapes}")
    identities, member = labels.unique(return_inverse=True)
    cell = member + len(identities) * modality.to(member)  # the visible cells come first
    counts = cell.bincount(minlength=2 * len(identities))
    lacking = (counts == 0).view(2, -1).any(0)
    if lacking.any():
        named = identities[lacking].tolist()
        raise InputError(f"class_centres: every identity needs both modalities; one is missing of {named}")
    # A product, as scattered sums differ from run to run on a GPU.
    weights = F.one_hot(cell, 2 * len(identities)).to(features) / counts.to(features)
    visible, infrared = (weights.T @ features).chunk(2)
    return visible, infrared


def quadruple_terms(
    visible1: Tensor, infrared1: Tensor, visible2: Tensor, infrared2: Tensor, *, normalise: bool = False
) -> QuadrupleTerms:
    """Return the loss's distances between centres, (J, D) each; normalise: of the centres divided by their length.

    The gradient of a distance of 0 is 0. Raises InputError for unlike shapes.
    """
    shapes = [tuple(each.shape) for each in (visible1, infrared1, visible2, infrared2)]
    if len(set(shapes)) > 1 or visible1.ndim != 2:
        raise InputError(f"quadruple loss: all four must be of one shape (J, D); got {', '.join(map(str, shapes))}")
    first, second = torch.stack([visible1, infrared1]), torch.stack([visible2, infrared2])
    if normalise:
        first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    own, other = ((each - first).norm(dim=-1) for each in (second, second.flip(0)))
    # Differences, not the matrix product: exact zeros for equal rows, and no gradient there instead of 1/0.
    between = torch.cdist(second, second, compute_mode="donot_use_mm_for_euclid_dist")
    return QuadrupleTerms(own, other, between)


def quadruple_loss(
    visible1: Tensor,
    infrared1: Tensor,
    visible2: Tensor,
    infrared2: Tensor,
    *,
    alpha: float = 0.2,
    form: str = "hinge",
    normalise: bool = False,
) -> QuadrupleLoss:
    """Return the loss over all ordered pairs of J identities, of class centres (J, D) by modality and stage.

    alpha: the margin, in units of the features. form: "hinge" as published, or "linear", the same sum without [ ]_+,
    which has no lower bound. normalise: divide the centres by their length; the paper names no normalisation.
    Raises InputError for unlike shapes, fewer than 2 identities, and an unknown form.
    """
    terms = quadruple_terms(visible1, infrared1, visible2, infrared2, normalise=normalise)
    if len(visible1) < 2:
        raise InputError("quadruple loss: 2 identities are needed to form a pair")
    return _total(terms, ~torch.eye(len(visible1), dtype=torch.bool, device=visible1.device), alpha, form)


def pairwise_quadruple_loss(
    visible1: Tensor,
    infrared1: Tensor,
    visible2: Tensor,
    infrared2: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.2,
    form: str = "hinge",
    normalise: bool = False,
) -> QuadrupleLoss:
    """Return the loss over samples instead of centres: all ordered pairs of rows of different identities.

    All four: (M, D), where row a of the visible and of the infrared show one identity, labels[a] of (M,). With one row
    per identity it equals `quadruple_loss`, whose options and errors it has.
    Source: equation 15 as the authors corrected it in the thread, x in place of c; which visible image meets which
    infrared one is not said there.
    """
    terms = quadruple_terms(visible1, infrared1, visible2, infrared2, normalise=normalise)
    if labels.shape != visible1.shape[:1]:
        raise InputError(f"quadruple loss: {len(visible1)} rows need as many labels, got {tuple(labels.shape)}")
    pairs = (labels[:, None] != labels[None, :]).to(visible1.device)
    if not pairs.any():
        raise InputError("quadruple loss: 2 identities are needed to form a pair")
    return _total(terms, pairs, alpha, form)


def _total(terms: QuadrupleTerms, pairs: Tensor, alpha: float, form: str) -> QuadrupleLoss:
    """Return the sum of the arguments, hinged or not, over the ordered pairs of a mask (J, J), in both directions."""
    if form not in ("hinge", "linear"):
        raise InputError(f"quadruple loss: form {form!r} is unknown; choose hinge or linear")
    arguments = (terms.own - terms.other)[:, :, None] - terms.between + alpha
    active = ((arguments > 0) & pairs).sum() / (2 * pairs.sum())
    summed = arguments.relu() if form == "hinge" else arguments
    return QuadrupleLoss((summed * pairs).sum(), active)
