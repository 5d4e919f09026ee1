"""The hetero-centre loss: an identity's two modality centres are drawn together."""

from __future__ import annotations

from torch import Tensor

from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError


def hetero_centre_loss(features: Tensor, labels: Tensor, modality: Tensor) -> Tensor:
    """Return the sum over a batch's identities of |c_visible - c_infrared|^2, c the mean feature of one modality.

    Summed over identities and dimensions, as published, so it grows with the number of identities in a batch. Of
    features side by side (PCB's stripes) it is the sum of the losses of each. The published training gives it features
    of length 1, no threshold, and weight 0.5 beside an identity loss, with 4 identities in a batch.

    features: (N, D) float. labels: (N,) int64, on the features' device. modality: (N,), 0 visible and 1 infrared; keep
    it on the CPU. Every identity needs both modalities, otherwise the loss is NaN (checking would make the GPU wait).
    Raises InputError for other shapes.
    Source: Zhu et al., "Hetero-center loss for cross-modality person re-identification", Neurocomputing 2020, and its
    code (heterogeneity_loss.py, train.py).
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or modality.shape != labels.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (features, labels, modality))
        raise InputError(f"hetero_centre_loss: features must be (N, D), labels and modality (N,); got {shapes}")
    of_infrared = (modality == Modality.INFRARED).to(features.device, non_blocking=True)
    same = labels[:, None] == labels
    # A row of centres for each image, as counting the identities would make the GPU wait; a product, as scattered sums
    # differ from run to run there.
    members = [(same & group).to(features) for group in (~of_infrared, of_infrared)]
    visible, infrared = (group / group.sum(1, keepdim=True) for group in members)
    squared = ((visible - infrared) @ features).square().sum(1)
    return (squared / same.sum(1)).sum()
