"""The losses a victim is trained with: identity classification and triplets over a batch of both modalities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vireid_lite.errors import InputError


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of `logits` (N, num_identities) against contiguous int64 `labels` (N,).

    smoothing: share of each target spread evenly over all identities; 0 as published.
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def weighted_regularised_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Return AGW's triplet without a margin: mean log(1 + exp(d_p - d_n)) over all anchors.

    d_p = sum w d over the anchor's positives (itself included, as published) with w = softmax(d), and d_n the same over
    its negatives with w = softmax(-d); d is the Euclidean distance and the weights carry gradient. The published code
    computes exp(-d) without a shift and adds 1e-6 to the sum, so beyond d of about 15 its negatives attract; the masked
    softmax here does not underflow. A negative more than 1 farther than d_n still has a (small) attracting gradient,
    which is the loss as defined; all negatives together always repel.

    features: (N, D) float, pooled and not normalised. labels: (N,) int64; every label needs another one in the batch,
    otherwise the loss is NaN (checking would make the GPU wait).
    Source: Ye et al., "Deep Learning for Person Re-identification", section 4, AGW loss.py:61-106.
    """
    furthest_positive, closest_negative = _soft_extremes(*_distances(features, labels))
    return F.softplus(furthest_positive - closest_negative).mean()


def adp_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Return CAJ's squared-difference triplet: mean log(1 + exp(s min(delta^2, 88))), s the sign of delta = d_p - d_n.

    d_p and d_n are those of `weighted_regularised_triplet`, and so are the arguments. Its slope is zero at delta = 0
    and where |delta| > 9.38.
    Source: Ye et al., "Channel Augmented Joint Learning", ICCV 2021, CAJ loss.py (the `square` branch).
    """
    furthest_positive, closest_negative = _soft_extremes(*_distances(features, labels))
    delta = furthest_positive - closest_negative
    squared = delta.square().clamp(max=88)  # exp(88) is the last to fit in float32
    return F.softplus(torch.where(delta > 0, squared, -squared)).mean()


def hard_triplet(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Return the batch-hard triplet: mean max(0, margin + farthest positive - nearest negative), Euclidean.

    features: (N, D) float. labels: (N,) int64; an anchor without a negative adds nothing.
    Source: Hermans et al., "In Defense of the Triplet Loss", 2017, equation 5.
    """
    distance, positive = _distances(features, labels)
    furthest_positive = distance.masked_fill(~positive, 0).amax(1)
    closest_negative = distance.masked_fill(positive, torch.inf).amin(1)
    return F.relu(margin + furthest_positive - closest_negative).mean()


def _distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, N) Euclidean distances and the mask of same-label pairs."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"losses: features must be (N, D) and labels (N,); got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    # Differences, not the matrix product: exact zeros for equal rows, and no gradient there instead of 1/0.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distance, labels[:, None] == labels[None, :]


def _soft_extremes(distance: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return each anchor's softmax-weighted farthest positive and nearest negative distance, (N,) each."""
    weight_positive = distance.masked_fill(~positive, -torch.inf).softmax(1)
    weight_negative = (-distance).masked_fill(positive, -torch.inf).softmax(1)
    return (weight_positive * distance).sum(1), (weight_negative * distance).sum(1)
