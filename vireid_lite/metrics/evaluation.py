"""Embedding queries and galleries, scoring every trial, and what chance would give in the same setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vireid_lite import metrics
from vireid_lite.data import Dataset, ImageStore, Modality, Record, Trial, cached
from vireid_lite.errors import InputError

Perturbation = Callable[[torch.Tensor, Modality], torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """One direction of one victim: the scores of every trial, their means, and chance level and minimum beside them.

    cmc: (max_rank,) mean over trials, fractions; cmc[0] is rank-1. trials: each trial's RetrievalScores.
    chance: of the first trial's setting. per_identity: mean rank-1 and AP of each identity over all its valid queries
    of all trials, in the order of the identities' numbers. query, gallery: the features that were ranked, (N, D) each,
    of every distinct record of all trials, in the order they first occur.
    """

    query_modality: Modality
    trials: list[metrics.RetrievalScores]
    chance: metrics.ChanceLevel
    per_identity: metrics.PerIdentity
    query: torch.Tensor
    gallery: torch.Tensor

    @property
    def cmc(self) -> np.ndarray:
        return np.mean([scores.cmc for scores in self.trials], axis=0)

    @property
    def rank1(self) -> float:
        return float(self.cmc[0])

    @property
    def mAP(self) -> float:
        return float(np.mean([scores.mAP for scores in self.trials]))

    @property
    def mINP(self) -> float:
        return float(np.mean([scores.mINP for scores in self.trials]))


def direction_name(query_modality: Modality) -> str:
    """Return "visible to infrared" or "infrared to visible"."""
    return f"{query_modality.name} to {query_modality.other.name}".lower()


def embed_store(
    model: nn.Module,
    store: ImageStore,
    *,
    perturb: Perturbation | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> torch.Tensor:
    """Return L2-normalised BNNeck features (N, D) on the device, in the store's order.

    perturb: called as perturb(images, modality) on batches of one modality before they are embedded.
    """
    model = model.to(device).eval()
    features: list[torch.Tensor | None] = [None] * len(store)
    with torch.no_grad(), tqdm(total=len(store), unit="crop", desc="embed", disable=not progress) as bar:
        for modality in Modality:
            rows = np.flatnonzero(store.modalities.numpy() == modality)
            for chunk in np.array_split(rows, max(1, -(-len(rows) // batch_size))):
                if not len(chunk):
                    continue
                images = store.batch(chunk, device)
                if perturb is not None:
                    # An attack may need gradients of its own.
                    with torch.enable_grad():
                        images = perturb(images, modality)
                embedded = model.embed(images.contiguous(memory_format=torch.channels_last), modality)
                for row, feature in zip(chunk, embedded, strict=True):
                    features[row] = feature
                bar.update(len(chunk))
    return torch.stack(features)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    query_modality: Modality | None = None,
    *,
    perturb: Perturbation | None = None,
    perturb_gallery: Perturbation | None = None,
    query_store: ImageStore | None = None,
    trials: Sequence[Trial] | None = None,
    clean: Evaluation | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Rank every query of every trial, and score it under the data set's protocol.

    query_modality: None stands for the official direction. perturb: applied to the queries alone; the gallery stays
    clean, unless perturb_gallery says otherwise. query_store: queries crafted beforehand, read instead of the cached
    clean crops; an ImageStore, or what has
    its `row`, `modalities`, `batch` and length. It may hold more than the queries; all of it is embedded.
    trials: None stands for the test trials; pass `[dataset.val_trial(...)]` where a choice is made.
    clean: an evaluation of the same model on the same trials, whose gallery features and chance level are taken over.
    Raises InputError where the store lacks a query, both perturb and query_store are given, or clean does not fit or
    would hide a perturbed gallery.
    """
    query_modality = dataset.default_query if query_modality is None else query_modality
    trials = dataset.trials(query_modality) if trials is None else list(trials)
    options = {"batch_size": batch_size, "device": device, "progress": progress}

    queries, gallery = (distinct(trials, side) for side in ("query", "gallery"))
    if query_store is None:
        query_features = embed_store(model, cached(dataset, queries, progress), perturb=perturb, **options)
    else:
        check_query_store(query_store, queries, perturb)
        order = [query_store.row[record] for record in queries]
        query_features = embed_store(model, query_store, **options)[order]
    if clean is not None and perturb_gallery is not None:
        raise InputError("evaluation: clean brings a clean gallery; leave it out where the gallery is perturbed")
    if clean is None:
        gallery_features = embed_store(model, cached(dataset, gallery, progress), perturb=perturb_gallery, **options)
        chance = metrics.chance(*identities_and_cameras(trials[0]), protocol=dataset.protocol)
    else:
        if (clean.query_modality, len(clean.query), len(clean.gallery)) != (query_modality, len(queries), len(gallery)):
            raise InputError("evaluation: clean is of other trials; evaluate the same trials without the attack first")
        gallery_features, chance = clean.gallery, clean.chance
    scores = [
        metrics.evaluate_features(
            in_order(query_features, queries, trial.query),
            in_order(gallery_features, gallery, trial.gallery),
            *identities_and_cameras(trial),
            protocol=dataset.protocol,
        )
        for trial in trials
    ]
    return Evaluation(query_modality, scores, chance, _per_identity(scores, trials), query_features, gallery_features)


def distinct(trials: Sequence[Trial], side: str) -> list[Record]:
    """Return every distinct record of one side of all trials, "query" or "gallery", in the order they first occur."""
    return list(dict.fromkeys(record for trial in trials for record in getattr(trial, side)))


def in_order(features: torch.Tensor, stored: Sequence[Record], records: Sequence[Record]) -> torch.Tensor:
    """Return the features of `records`, (N, D), out of those of the distinct records `stored`, (M, D)."""
    row = {record: index for index, record in enumerate(stored)}
    return features[[row[record] for record in records]]


def check_query_store(store: ImageStore, queries: Sequence[Record], perturb: Perturbation | None) -> None:
    """Raise InputError unless the store holds every query and nothing is to be perturbed a second time."""
    if perturb is not None:
        raise InputError("evaluation: perturb and query_store are two attacks on the same queries; pass one of them")
    wanted = set(queries)
    lacking = len(wanted - store.row.keys())
    if lacking:
        raise InputError(
            f"evaluation: query_store lacks {lacking} of {len(wanted)} queries; craft it from the queries of this trial"
        )


def _per_identity(scores: list[metrics.RetrievalScores], trials: list[Trial]) -> metrics.PerIdentity:
    """Return each identity's means over the valid queries of all trials."""
    parts = [
        metrics.per_identity(result, identities_and_cameras(trial)[0])
        for result, trial in zip(scores, trials, strict=True)
    ]
    names, member = np.unique(np.concatenate([part.identity for part in parts]), return_inverse=True)
    weights = np.concatenate([part.queries for part in parts])
    queries = np.bincount(member, weights)
    rank1, ap = (
        np.bincount(member, weights * np.concatenate([getattr(part, field) for part in parts])) / queries
        for field in ("rank1", "ap")
    )
    return metrics.PerIdentity(names, rank1, ap, queries.astype(np.int64))


def ranked(
    model: nn.Module,
    dataset: Dataset,
    trial: Trial,
    queries: int | Sequence[Record] = 6,
    top: int = 10,
    *,
    perturb: Perturbation | None = None,
    device: torch.device | str = "cpu",
) -> tuple[list[Record], list[list[Record]]]:
    """Return some queries and, for each, its `top` nearest gallery records, for a figure of rankings.

    queries: the records themselves, or how many to take at even distances through the trial's list.
    The gallery images that the protocol drops for a query are left out.
    """
    if isinstance(queries, int):
        places = np.linspace(0, len(trial.query) - 1, min(queries, len(trial.query))).round().astype(int)
        queries = [trial.query[place] for place in places]
    options = {"device": device, "progress": False}
    store = cached(dataset, trial.query, False)
    chosen = ImageStore(store.images[[store.row[query] for query in queries]], queries)
    found = embed_store(model, chosen, perturb=perturb, **options)
    gallery = embed_store(model, cached(dataset, trial.gallery, False), **options)
    rankings = []
    for query, order in zip(queries, torch.cdist(found, gallery).argsort(dim=1, stable=True).tolist(), strict=True):
        kept = (trial.gallery[place] for place in order if not _dropped(dataset.protocol, query, trial.gallery[place]))
        rankings.append([record for record, _ in zip(kept, range(top), strict=False)])
    return list(queries), rankings


def _dropped(protocol: str, query: Record, found: Record) -> bool:
    """Return whether a protocol leaves this gallery record out for this query (protocols A and C)."""
    if protocol == "sysu":
        return query.camera == 3 and found.camera == 2
    return protocol == "llcm" and (query.identity, query.camera) == (found.identity, found.camera)


def identities_and_cameras(trial: Trial) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (query identities, gallery identities, query cameras, gallery cameras), each int64."""
    return tuple(
        np.array([getattr(record, name) for record in side], dtype=np.int64)
        for name in ("identity", "camera")
        for side in (trial.query, trial.gallery)
    )
