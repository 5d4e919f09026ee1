"""The losses of victims and attacks: identity, triplets, hetero-centre and quadruple, of a batch of both modalities."""

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vireid_lite.data.records import Modality, check_modality
from vireid_lite.errors import MANY, InputError, check_choice, check_flag, check_number


def hetero_centre_loss(features: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
    """Return the sum over a batch's identities of `|c_visible - c_infrared|^2`, c the mean feature of one modality.

    Features are (N, D), published of length 1, labels and modality (N,), the modality on the CPU. Every identity needs
    both modalities, otherwise the loss is NaN (checking would make the GPU wait).
    Source: Zhu et al., "Hetero-center loss for cross-modality person re-identification", Neurocomputing 2020, and its
    code (heterogeneity_loss.py, train.py), which gives it weight 0.5 beside an identity loss.
    """
    _check("hetero_centre_loss", features, labels, modality)
    of_infrared = (modality == Modality.INFRARED).to(features.device, non_blocking=True)
    same = labels[:, None] == labels
    # A row of centres for each image, as counting identities makes a GPU wait; a product, as scattered sums vary there.
    members = ((same & group).to(features) for group in (~of_infrared, of_infrared))
    visible, infrared = (group / group.sum(1, keepdim=True) for group in members)
    return (((visible - infrared) @ features).square().sum(1) / same.sum(1)).sum()


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of logits (N, K); `smoothing` is a target's share that is spread over all K."""
    _check("identity_loss", logits, labels)
    check_number("identity_loss", "smoothing", smoothing, 0, 1, Real)
    if labels.device.type == "cpu" and not 0 <= labels.min() <= labels.max() < logits.shape[1]:  # a GPU would wait
        raise InputError(f"identity_loss: labels must be from 0 to {logits.shape[1] - 1}, columns of the logits")
    return F.cross_entropy(logits, labels.long(), label_smoothing=smoothing)


def weighted_regularised_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Return AGW's triplet without a margin: mean log(1 + exp(d_p - d_n)) over all anchors.

    d_p = sum w d over the anchor's positives (itself included, as published) with w = softmax(d), and d_n the same over
    its negatives with w = softmax(-d); d is the Euclidean distance of pooled features (N, D), and the weights carry
    gradient. The published exp(-d) + 1e-6 underflows beyond d of about 15, where its negatives attract; this does not.
    Where an anchor has no negative, the loss is NaN (checking would make the GPU wait).
    Source: Ye et al., "Deep Learning for Person Re-identification", section 4, AGW loss.py:61-106.
    """
    return F.softplus(_soft_difference(features, labels)).mean()


def adp_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Return CAJ's squared-difference triplet: mean log(1 + exp(s min(delta^2, 88))), s the sign of delta = d_p - d_n.

    d_p and d_n are those of `weighted_regularised_triplet`; the slope is zero at delta = 0 and where `|delta| > 9.38`.
    Source: Ye et al., "Channel Augmented Joint Learning", ICCV 2021, CAJ loss.py (the `square` branch).
    """
    delta = _soft_difference(features, labels)
    squared = delta.square().clamp(max=88)  # exp(88) is the last to fit in float32
    return F.softplus(torch.where(delta > 0, squared, -squared)).mean()


def hard_triplet(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Return the batch-hard triplet: mean max(0, margin + farthest positive - nearest negative), Euclidean.

    An anchor without a negative adds 0. Source: Hermans et al., "In Defense of the Triplet Loss", 2017, equation 5.
    """
    check_number("hard_triplet", "margin", margin, -MANY, MANY, Real)
    distance, positive = _distances(features, labels)
    farthest, nearest = distance.masked_fill(~positive, 0).amax(1), distance.masked_fill(positive, torch.inf).amin(1)
    return F.relu(margin + farthest - nearest).mean()


def _check(where: str, features: Tensor, labels: Tensor, *modality: Tensor) -> None:
    shapes = [tuple(getattr(each, "shape", ())) for each in (features, labels, *modality)]
    fit = len(shapes[0]) == 2 and all(shape == shapes[0][:1] for shape in shapes[1:]) and 0 not in shapes[0]
    if not (fit and _floats(features) and isinstance(labels, Tensor) and not labels.is_floating_point()):
        needed = "features must be (N, D), a tensor of floats, labels and modality (N,) of whole numbers"
        raise InputError(f"{where}: {needed}; got {_told(features, labels, *modality)}")
    for each in modality:
        check_modality(each, len(labels))


def _floats(*features: Tensor) -> bool:
    return all(isinstance(each, Tensor) and each.is_floating_point() for each in features)


def _told(*values: object) -> str:
    kinds = (str(getattr(each, "dtype", type(each).__name__)).removeprefix("torch.") for each in values)
    return ", ".join(f"{kind} {tuple(getattr(each, 'shape', ()))}" for kind, each in zip(kinds, values, strict=True))


def _distances(features, labels):
    """Return (N, N) Euclidean distances and the mask of same-label pairs."""
    _check("losses", features, labels)
    return pairwise(features), labels[:, None] == labels


def pairwise(features: Tensor) -> Tensor:
    """Return Euclidean distances (..., N, N) of features (..., N, D)."""
    # Of differences, not the matrix product: exact zeros for equal rows, and no gradient there instead of 1/0.
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


def _soft_difference(features, labels):
    """Return each anchor's softmax-weighted farthest positive less its nearest negative distance, (N,)."""
    distance, positive = _distances(features, labels)
    of_positives = distance.masked_fill(~positive, -torch.inf).softmax(1)
    of_negatives = (-distance).masked_fill(positive, -torch.inf).softmax(1)
    return (of_positives * distance).sum(1) - (of_negatives * distance).sum(1)


TRIPLETS = {"wrt": weighted_regularised_triplet, "hard": hard_triplet, "adp": adp_triplet, "none": None}


class QuadrupleLoss(NamedTuple):
    loss: Tensor
    active: Tensor  #: the fraction of the hinges' arguments above 0 over both directions (of the linear form too)


class QuadrupleTerms(NamedTuple):
    own: Tensor  #: (2, J), the visible direction first, D(v2_j, v1_j)
    other: Tensor  #: (2, J), D(i2_j, v1_j)
    between: Tensor  #: (2, J, J), D(v2_j, v2_k)


def class_centres(features: Tensor, labels: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
    """Return the visible and the infrared mean feature of each identity, (J, D) each, identities in sorted order.

    Raises InputError unless every identity has an image of both modalities.
    """
    _check("class_centres", features, labels, modality)
    identities, member = labels.unique(return_inverse=True)
    cell = F.one_hot(member + len(identities) * modality.to(member), 2 * len(identities))  # visible cells come first
    counts = cell.sum(0)
    if (lacking := (counts == 0).view(2, -1).any(0)).any():
        named = identities[lacking].tolist()
        raise InputError(f"class_centres: every identity needs both modalities; one is missing of {named}")
    # A product, as scattered sums differ from run to run on a GPU.
    return ((cell.to(features) / counts.to(features)).T @ features).chunk(2)


def quadruple_terms(
    visible1: Tensor, infrared1: Tensor, visible2: Tensor, infrared2: Tensor, *, normalise: bool = False
) -> QuadrupleTerms:
    """Return the loss's distances between centres, (J, D) each; the gradient of a distance of 0 is 0."""
    check_flag("quadruple loss", "normalise", normalise)
    four = visible1, infrared1, visible2, infrared2
    shapes = [tuple(getattr(each, "shape", ())) for each in four]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or not _floats(*four):
        raise InputError(f"quadruple loss: all four must be floats of one shape (J, D); got {_told(*four)}")
    first, second = torch.stack([visible1, infrared1]), torch.stack([visible2, infrared2])
    if normalise:
        first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    own, other = ((each - first).norm(dim=-1) for each in (second, second.flip(0)))
    return QuadrupleTerms(own, other, pairwise(second))


def quadruple_loss(
    visible1, infrared1, visible2, infrared2, labels: Tensor | None = None, *, alpha=0.2, form="hinge", normalise=False
) -> QuadrupleLoss:
    """Return the loss over all ordered pairs of J identities, of class centres (J, D) by modality and stage.

    Raises InputError for fewer than 2 identities.

    Args:
        labels: (J,) identity of each row, the same in all four, where rows are samples; None for centres.
        alpha: the margin, in units of the features.
        form: "hinge" as published, or "linear", the same sum without [ ]_+, which has no lower bound.
        normalise: divide the centres by their length; the paper names no normalisation.
    """
    check_choice("quadruple loss", "form", form, ("hinge", "linear"))
    check_number("quadruple loss", "alpha", alpha, -MANY, MANY, Real)
    own, other, between = quadruple_terms(visible1, infrared1, visible2, infrared2, normalise=normalise)
    labels = torch.arange(len(visible1)) if labels is None else labels
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != visible1.shape[:1]:
        needed = f"{len(visible1)} rows need as many labels, a tensor of whole numbers"
        raise InputError(f"quadruple loss: {needed}; got {_told(labels)}")
    pairs = labels[:, None] != labels  # on the CPU unless labels are given elsewhere: asking waits for no GPU
    if not pairs.any():
        raise InputError("quadruple loss: 2 identities are needed to form a pair")
    pairs = pairs.to(visible1.device, non_blocking=True)
    # [D(v2_j, v1_j) - D(i2_j, v1_j) - D(v2_j, v2_k) + alpha]_+, and the same with v and i exchanged, over all j and k
    arguments = (own - other)[:, :, None] - between + alpha
    active = ((arguments > 0) & pairs).sum() / (2 * pairs.sum())
    summed = arguments.relu() if form == "hinge" else arguments
    return QuadrupleLoss((summed * pairs).sum(), active)


pairwise_quadruple_loss = quadruple_loss  #: of samples and their labels, equation 15 as its authors corrected it
