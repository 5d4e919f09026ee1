"""Centroids of clean features, which the universal attacks pull to and push from."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor


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
