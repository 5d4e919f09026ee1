"""Clean features, their centroids, and which of them an attack pulls to and pushes from."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks.budget import luma
from vireid_lite.attacks.frozen import images_of
from vireid_lite.data.batches import Batches, IdentityBatches, MixedBatches
from vireid_lite.data.records import Modality
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError


def kmeans_centroids(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Return k-means centroids (k, D) of features (N, D), k cut to N; not normalised after averaging."""
    clusters = min(clusters, len(features))
    clustering = KMeans(clusters, n_init=1, max_iter=20, random_state=seed % 2**32)  # scikit-learn's seeds have 32 bits
    with warnings.catch_warnings():  # where images are all alike, there are fewer features than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = clustering.fit(features.double().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(features)


def centroids_for(features: Tensor, store: ImageStore, clusters: int, seed: int) -> Tensor:
    """Return k-means centroids (k, D); k is `clusters`, or min(256, identities) where that is 0."""
    return kmeans_centroids(features, clusters or min(256, len({record.identity for record in store.records})), seed)


def identity_centroids(features: Tensor, identities: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return each identity's mean feature, (identities, D), and the identities in that order."""
    names, member = np.unique(identities, return_inverse=True)
    sums = features.new_zeros(len(names), features.shape[1])
    counts = torch.from_numpy(np.bincount(member)).to(features)
    return sums.index_add_(0, torch.from_numpy(member).to(features.device), features) / counts[:, None], names


def over_crops(
    read: Callable, model: nn.Module, store: ImageStore, rows=None, *, size=256, grey=None, turn: Callable = luma
) -> Tensor:
    """Return read(images, modality) of a store's clean crops, or of some rows, (N, ...), `size` at once.

    The crops that `grey` chooses, bool by row of the store, are read as their luma, which `turn` gives.
    """
    rows, found = np.arange(len(store)) if rows is None else rows, []
    with torch.no_grad():
        for chunk in np.split(rows, range(size, len(rows), size)):
            images = images_of(store, chunk, model)
            found.append(read(images if grey is None else turn(images, grey[chunk]), store.modalities[chunk]))
    return torch.cat(found)


def clean_features(model: nn.Module, store: ImageStore) -> Tensor:
    """Return a store's clean L2-normalised features (N, D)."""
    return over_crops(model.embed, model, store)


def predicted(model: nn.Module, store: ImageStore) -> Tensor:
    """Return the classes that the victim predicts for clean crops, int64 (N,)."""
    return over_crops(lambda images, modality: model(images, modality).logits.argmax(1), model, store)


def triplet(features: Tensor, pull: Tensor, push: Tensor, margin: float) -> Tensor:
    """Return the mean of `max(0, |f - pull| - |f - push| + margin)`, all (N, D), Euclidean; 0/0 has gradient 0."""
    distances = [torch.linalg.vector_norm(features - other, dim=1) for other in (pull, push)]
    return F.relu(distances[0] - distances[1] + margin).mean()


def extremes(features: Tensor, centroids: Tensor, *, score: str = "cosine", own=None) -> tuple[Tensor, Tensor]:
    """Return the row of each feature's least and of its most similar centroid, int64 (N,) each.

    The score is "cosine", or "dot" with centroids as they are (long ones win); `own`, (N, K), is the most by decree.
    Raises InputError for fewer than 2 centroids.
    """
    if len(centroids) < 2:
        raise InputError("attack: 1 centroid leaves nothing to be pulled to; give 2 training identities or clusters")
    similarity = features @ (F.normalize(centroids) if score == "cosine" else centroids).T
    if own is not None:
        similarity = similarity.masked_fill(own, math.inf)
    return similarity.argmin(1), similarity.argmax(1)


def batch_mates(clean: Tensor, identities: Tensor, *, own: str) -> tuple[Tensor, Tensor]:
    """Return, for each clean feature (N, D), the row of the farthest other identity and of one of its own identity.

    That is the "farthest" or "nearest" of the same identity, itself only where there is no other.
    """
    distance, same = torch.cdist(clean, clean), identities[:, None] == identities
    others = distance.masked_fill(same, -math.inf).argmax(1)
    wanted = distance if own == "farthest" else -distance
    itself = torch.eye(len(clean), dtype=torch.bool, device=clean.device)
    return others, wanted.masked_fill(itself, -1e9).masked_fill(~same, -math.inf).argmax(1)


@dataclass(frozen=True)
class Problem:
    """What a step does not choose: the crops, their batches, and what each crop's feature is compared with."""

    store: ImageStore
    batches: Batches | MixedBatches | IdentityBatches | dict[Modality, Batches]
    centroids: Tensor | None = None  # (K, D), all banks one after the other
    pull: Tensor | None = None  # rows of `centroids` by crop, (N,), or (turns, N) where a crop is seen in several ways
    push: Tensor | None = None
    bank: Tensor | None = None  # (K,) modality of each centroid
    clean: Tensor | None = None  # (N, D) features
    classes: Tensor | None = None  # (N,) predicted for clean crops
    heads: dict[int, list[nn.Module]] | None = None  # what stands in the victim meanwhile, by block
    modules: nn.ModuleList | None = None  # all heads as one module
    tap: nn.Module | None = None  # the one of them that keeps stage 1

    def picked(self, rows: np.ndarray, *turn: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return the centroids, (n, D) each, that crops are pulled to and pushed from, in a turn if there are turns."""
        index = (*turn, torch.from_numpy(rows))
        return self.centroids[self.pull[index]], self.centroids[self.push[index]]

    def mates(self, rows: np.ndarray, own: str) -> tuple[Tensor, Tensor]:
        """Return the clean features, (n, D) each, of the `batch_mates` of crops."""
        clean = self.clean[torch.from_numpy(rows)]
        identities = torch.from_numpy(self.batches.identities[rows]).to(clean.device)
        return tuple(clean[mates] for mates in batch_mates(clean, identities, own=own))
