"""Clean features, their centroids, and which of them an attack pulls to and pushes from."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.frozen import images_of
from vireid_lite.data.batches import IdentityBatches, MixedBatches
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError


def kmeans_centroids(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Return k-means centroids (k, D) of features (N, D), k cut to N; not normalised after averaging."""
    clusters = min(clusters, len(features))
    # scikit-learn takes seeds of 32 bits.
    clustering = KMeans(clusters, n_init=1, max_iter=20, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # Images that are all alike have fewer distinct features than clusters; a doubled centroid does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = clustering.fit(features.double().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(features)


def identity_centroids(features: Tensor, identities: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return each identity's mean feature, (identities, D), and the identities in that order."""
    names, member = np.unique(identities, return_inverse=True)
    sums = features.new_zeros(len(names), features.shape[1])
    counts = torch.from_numpy(np.bincount(member)).to(features)
    return sums.index_add_(0, torch.from_numpy(member).to(features.device), features) / counts[:, None], names


EMBED_ROWS = 256  # crops embedded at once before the first step


def clean_outputs(model: nn.Module, store: ImageStore) -> tuple[Tensor, Tensor]:
    """Return a store's clean L2-normalised features (N, D) and the classes the victim predicts, int64 (N,)."""
    features, classes = [], []
    for start in range(0, len(store), EMBED_ROWS):
        rows = np.arange(start, min(start + EMBED_ROWS, len(store)))
        with torch.no_grad():
            output = model(images_of(store, rows, model), store.modalities[rows])
        features.append(F.normalize(output.embedding))
        classes.append(output.logits.argmax(1))
    return torch.cat(features), torch.cat(classes)


def triplet(features: Tensor, pull: Tensor, push: Tensor, margin: float) -> Tensor:
    """Return the mean of max(0, |f - pull| - |f - push| + margin), all (N, D), Euclidean; 0/0 has gradient 0."""
    distances = [torch.linalg.vector_norm(features - other, dim=1) for other in (pull, push)]
    return F.relu(distances[0] - distances[1] + margin).mean()


def centroids_for(features: Tensor, store: ImageStore, clusters: int, seed: int) -> Tensor:
    """Return k-means centroids (k, D); clusters: k, 0 for min(256, identities). Raises InputError for fewer than 2."""
    clusters = clusters or min(256, len({record.identity for record in store.records}))
    if min(clusters, len(features)) < 2:
        raise InputError("attack: 1 centroid leaves nothing to be pulled to; give 2 training identities or clusters")
    return kmeans_centroids(features, clusters, seed)


def extremes(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each feature's least and most similar centroid by cosine, int64 (N,) each."""
    similarity = features @ F.normalize(centroids).T
    return similarity.argmin(1), similarity.argmax(1)


def batch_mates(clean: Tensor, identities: Tensor, *, own: str) -> tuple[Tensor, Tensor]:
    """Return, for each row of a batch, the row of the farthest other identity and of an image of its own.

    clean: (N, D) clean features. identities: (N,). own: "farthest" or "nearest" image of the same identity, itself
    only where there is no other.
    """
    distance = torch.cdist(clean, clean)
    same = identities[:, None] == identities
    itself = torch.eye(len(clean), dtype=torch.bool, device=clean.device)
    others = distance.masked_fill(same, -math.inf).argmax(1)
    if own == "farthest":
        return others, distance.masked_fill(~same | itself, -1).masked_fill(itself, -0.5).argmax(1)
    return others, distance.masked_fill(~same, math.inf).masked_fill(itself, 1e9).argmin(1)


@dataclass(frozen=True)
class Problem:
    """What a fit never changes: the crops, their batches, and centroids (K, D) or the clean features (N, D), `points`.

    pull, push: (N,) rows of `points` for each crop (UAP: its predicted class). bank: (K,) modality of each centroid.
    """

    store: ImageStore
    batches: MixedBatches | IdentityBatches
    points: Tensor
    pull: Tensor | None = None
    push: Tensor | None = None
    bank: Tensor | None = None
