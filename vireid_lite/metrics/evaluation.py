"""Embedding queries and galleries, scoring every trial, and what chance would give in the same setting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vireid_lite.data.records import Dataset, Modality, Record, Trial, one_modality, people
from vireid_lite.data.store import ImageStore, cached
from vireid_lite.errors import InputError, whole
from vireid_lite.machine import pick_device
from vireid_lite.metrics import ranking

# How to rank people that a network was trained on all the same.
ALLOW = {"victim": "give --allow-seen-people (in Python, set its people to None)"}
ALLOW["perturbation"] = "give --allow-seen-people"
ALLOW["surrogate"] = "write allow_seen_people = true in its table (in Python, set its people to None)"

Perturbation = Callable[[torch.Tensor, Modality], torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """One direction of one victim: the scores of every trial, their means, and chance level and minimum beside them.

    Attributes:
        cmc, rank1, mAP, mINP: means over trials, fractions; cmc: (max_rank,), cmc[0] is rank-1.
        chance: of the first trial's setting.
        per_identity: means over an identity's valid queries of all trials, in the order of the identities' numbers.
        query, gallery: (N, D) the features ranked, of every distinct record of all trials, in the order they occur.
        moved: how many of the distinct queries the attack changed in any pixel; None without an attack.
        of: the data set's description and folder, and the trials.
    """

    query_modality: Modality
    trials: list[ranking.RetrievalScores]
    chance: ranking.ChanceLevel
    per_identity: ranking.PerIdentity
    query: torch.Tensor
    gallery: torch.Tensor
    moved: int | None = None
    of: tuple = field(default=(), repr=False)

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
    query_modality = one_modality(query_modality)
    return f"{query_modality.name} to {query_modality.other.name}".lower()


def embed_store(
    model: nn.Module, store: ImageStore, *, perturb=None, batch_size=256, device="cpu", progress=True
) -> torch.Tensor:
    """Return L2-normalised BNNeck features (N, D) on the device, in the store's order.

    Args:
        perturb: a `Perturbation`, called on batches of one modality before they are embedded.
    """
    device, batch_size = pick_device(device), whole("evaluation", "batch_size", batch_size, 1)
    if not len(store):
        raise InputError("evaluation: there is no image to embed; give a store of one or more")
    model = model.to(device).eval()
    order, features = [], []
    with torch.no_grad(), tqdm(total=len(store), unit="crop", desc="embed", disable=not progress) as bar:
        for modality in map(Modality, store.modalities.unique().tolist()):
            rows = np.flatnonzero(store.modalities.numpy() == modality)
            for chunk in np.array_split(rows, -(-len(rows) // batch_size)):
                images = store.batch(chunk, device)
                if perturb is not None:
                    with torch.enable_grad():  # which an attack may need
                        images = perturb(images, modality)
                order.append(chunk)
                features.append(model.embed(images.contiguous(memory_format=torch.channels_last), modality))
                bar.update(len(chunk))
    return torch.cat(features)[np.argsort(np.concatenate(order))]


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

    Args:
        query_modality: None stands for the official direction.
        perturb: applied to the queries alone; the gallery stays clean, unless perturb_gallery says otherwise.
        query_store: queries crafted beforehand, in place of the clean crops; it may hold more, and all is embedded.
        trials: None stands for the test trials; pass `[dataset.val_trial(...)]` where a choice is made.
        clean: of the same model on the same trials; its gallery features and chance are taken over.

    Raises:
        InputError: where the store lacks a query, two attacks are given, clean does not fit the trials or gallery, or
            the model was trained on people it is to rank (`check_unseen`).
    """
    query_modality = dataset.direction(query_modality)
    trials = dataset.trials(query_modality) if trials is None else list(trials)
    check_unseen(model, dataset, trials)
    of = dataset.describe(), dataset.root, trials
    options = {"batch_size": batch_size, "device": device, "progress": progress}
    queries, gallery = (distinct(trials, side) for side in ("query", "gallery"))
    moved = None if perturb is None and query_store is None else 0

    def counted(images: torch.Tensor, modality: Modality) -> torch.Tensor:
        nonlocal moved
        changed = perturb(images.clone(), modality)  # one may change what it is given
        moved = moved + (changed != images).flatten(1).any(1).sum()
        return changed

    if query_store is None:
        how = {**options, "perturb": perturb and counted}
        query_features = embed_store(model, cached(dataset, queries, progress), **how)
    else:
        check_query_store(query_store, queries, perturb)
        rows, changed = [query_store.row[record] for record in queries], getattr(query_store, "changed", None)
        if changed is None:  # crops of 8 bits, as the clean ones are
            pairs = zip(query_store.images[rows], cached(dataset, queries, progress).images, strict=True)
            moved = sum(not np.array_equal(*pair) for pair in pairs)
        else:
            moved = changed[rows].sum()
        query_features = in_order(embed_store(model, query_store, **options), query_store.records, queries)
    if clean is None:
        gallery_features = embed_store(model, cached(dataset, gallery, progress), perturb=perturb_gallery, **options)
        chance = ranking.chance(*identities_and_cameras(trials[0]), protocol=dataset.protocol)
    elif perturb_gallery is not None:
        raise InputError("evaluation: clean brings a clean gallery; leave it out where the gallery is perturbed")
    elif (clean.query_modality, clean.of) != (query_modality, of):
        raise InputError("evaluation: clean is of other trials; evaluate the same trials without the attack first")
    else:
        gallery_features, chance = clean.gallery, clean.chance
    scores = []
    for trial in trials:
        found = in_order(query_features, queries, trial.query), in_order(gallery_features, gallery, trial.gallery)
        scores.append(ranking.evaluate_features(*found, *identities_and_cameras(trial), protocol=dataset.protocol))
    found = chance, _per_identity(scores, trials), query_features, gallery_features
    return Evaluation(query_modality, scores, *found, None if moved is None else int(moved), of)


def check_unseen(model: object, dataset: Dataset, trials: Sequence[Trial], what: str = "victim") -> None:
    """Raise InputError where the `people` whom a network, or a perturbation, learned from are among those of trials."""
    if seen := getattr(model, "people", None):
        ranked = people(dataset, (record for side in ("query", "gallery") for record in distinct(trials, side)))
        if both := len(seen & ranked):
            found = f"the {what} was trained on {both:,} of the {len(ranked):,} people to be ranked"
            mend = "rank the test people of the options of its training, or, where you mean it,"
            raise InputError(f"{dataset.name}: {found}; {mend} {ALLOW[what]}")


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
    if lacking := set(queries) - store.row.keys():
        whole = f"{len(lacking)} of {len(set(queries))} queries"
        raise InputError(f"evaluation: query_store lacks {whole}; craft it from the queries of this trial")


def _per_identity(scores: list[ranking.RetrievalScores], trials: list[Trial]) -> ranking.PerIdentity:
    """Return each identity's means over the valid queries of all trials."""
    parts = (ranking.per_identity(s, identities_and_cameras(t)[0]) for s, t in zip(scores, trials, strict=True))
    identity, rank1, ap, weights = map(np.concatenate, zip(*parts, strict=True))
    names, member = np.unique(identity, return_inverse=True)
    queries = np.bincount(member, weights)
    means = [np.bincount(member, weights * values) / queries for values in (rank1, ap)]
    return ranking.PerIdentity(names, *means, queries.astype(np.int64))


def ranked(
    model: nn.Module, dataset: Dataset, trial: Trial, queries: int | Sequence[Record] = 6, *, perturb=None, device="cpu"
) -> tuple[list[Record], list[list[Record]]]:
    """Return some queries and, for each, the ten nearest gallery records that the protocol keeps.

    Args:
        queries: the records themselves, or how many to take at even distances through the trial's list.
    """
    if isinstance(queries, str) or not isinstance(queries, Sequence):
        queries = whole("evaluation", "queries", queries, 1)
        places = np.linspace(0, len(trial.query) - 1, min(queries, len(trial.query))).round().astype(int)
        queries = [trial.query[place] for place in places]
    store = cached(dataset, trial.query, False)
    chosen = ImageStore(store.images[[store.row[query] for query in queries]], queries)
    device = pick_device(device)
    found = embed_store(model, chosen, perturb=perturb, device=device, progress=False)
    gallery = embed_store(model, cached(dataset, trial.gallery, False), device=device, progress=False)
    _, people, _, cameras = identities_and_cameras(trial)
    rankings = []
    for query, order in zip(queries, torch.cdist(found, gallery).argsort(stable=True).numpy(force=True), strict=True):
        out = ranking.dropped(dataset.protocol, people == query.identity, query.camera, cameras)
        rankings.append([trial.gallery[place] for place in order[~out[order]][:10]])
    return list(queries), rankings


def identities_and_cameras(trial: Trial) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (query identities, gallery identities, query cameras, gallery cameras), each int64."""
    return tuple(
        np.array([getattr(record, name) for record in side], dtype=np.int64)
        for name in ("identity", "camera")
        for side in (trial.query, trial.gallery)
    )
