"""What a drop in a score consists of: lost identity, a shift between the modalities, or hubs; and what the eye sees.

For one trial and one direction. "Clean" and "attacked" describe the same queries; the gallery is clean in both.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.data.records import Dataset, Modality, Record, Trial
from vireid_lite.data.store import ImageStore, cached
from vireid_lite.metrics.evaluation import (
    Evaluation,
    Perturbation,
    check_query_store,
    distinct,
    embed_store,
    evaluate,
    identities_and_cameras,
    in_order,
)
from vireid_lite.metrics.likeness import decibels, ssim
from vireid_lite.metrics.ranking import FEATURE_CHUNK, dropped, evaluate_features

PLACES = 5  #: decimal places of what a card says beside an anatomy


class QueryState(NamedTuple):
    """Scores of queries across modalities, and what `within_modality`, `shift_and_spread` and `hubs` say of them."""

    rank1: float
    mAP: float
    within_rank1: float
    within_mAP: float
    shift: float
    spread: float
    hub_image: float
    hub_identity: float
    distinct: float


class Anatomy(NamedTuple):
    """What an attack did to the queries of one trial.

    Attributes:
        displacement: mean `|f(x') - f(x)|`, in [0, 2] as features have length 1.
        cosine, ssim: means over images, of f(x') and f(x), and of x' and x; in [-1, 1].
        psnr: in dB, of the mean squared error over all images; infinite if that is 0.
    """

    clean: QueryState
    attacked: QueryState
    displacement: float
    cosine: float
    ssim: float
    psnr: float

    def describe(self) -> dict:
        """Return everything as plain values for a run card, None where a value is not finite (JSON has no infinity)."""

        def plain(value):
            if isinstance(value, tuple):
                return {name: plain(part) for name, part in value._asdict().items()}
            return value if math.isfinite(value) else None

        return plain(self)


def anatomy(
    model: nn.Module,
    dataset: Dataset,
    query_modality: Modality | None = None,
    *,
    perturb: Perturbation | None = None,
    query_store: ImageStore | None = None,
    trial: Trial | None = None,
    evaluated: tuple[Evaluation, Evaluation] | None = None,
    device: torch.device | str = "cpu",
) -> Anatomy:
    """Take a drop apart: clean queries, attacked queries and the gallery, as features and as images.

    Args:
        query_modality: None for the official direction.
        perturb, query_store: the attack, as in `evaluation.evaluate`; without either, attacked equals clean.
        trial: None stands for the first test trial of the direction.
        evaluated: (clean, attacked) evaluations of this trial alone, whose features are taken over.

    Raises:
        InputError: where both attacks are given, the store lacks a query, or crops are smaller than SSIM's window.
    """
    trial = dataset.trials(query_modality)[0] if trial is None else trial
    modality = trial.query[0].modality
    if query_store is not None:
        check_query_store(query_store, trial.query, perturb)
    if evaluated is None:
        options = {"trials": [trial], "device": device, "progress": False}
        before = evaluate(model, dataset, modality, **options)
        options |= {"perturb": perturb, "query_store": query_store, "clean": before}
        evaluated = before, evaluate(model, dataset, modality, **options)
    clean, attacked = (in_order(each.query, distinct([trial], "query"), trial.query) for each in evaluated)
    gallery = in_order(evaluated[0].gallery, distinct([trial], "gallery"), trial.gallery)
    people, likeness, error = identities_and_cameras(trial), [], []
    for rows, images in cached(dataset, trial.query, False).batches(256, device):
        changed = images
        if query_store is not None:
            changed = query_store.batch(np.array([query_store.row[record] for record in trial.query[rows]]), device)
        elif perturb is not None:
            changed = perturb(images, modality)  # an attack may need gradients of its own
        with torch.no_grad():
            likeness.append(ssim(changed, images))
            error.append((changed - images).square().mean((1, 2, 3)))

    def state(query: Tensor) -> QueryState:
        scores = evaluate_features(query, gallery, *people, protocol=dataset.protocol)
        within, apart = within_modality(query, clean, people[0]), shift_and_spread(query, clean, gallery)
        return QueryState(scores.rank1, scores.mAP, *within, *apart, *hubs(query, gallery, trial, dataset.protocol))

    displacement, cosine = (attacked - clean).norm(dim=1), F.cosine_similarity(attacked, clean)
    likeness, noise = torch.cat(likeness).mean(), decibels(torch.cat(error).mean())
    means = displacement.mean(), cosine.mean(), likeness, noise
    return Anatomy(state(clean), state(attacked), *(value.item() for value in means))


def within_modality(query: Tensor, clean: Tensor, identities: np.ndarray) -> tuple[float, float]:
    """Return rank-1 and mAP of queries ranked against the clean images of their own modality, each without itself.

    If these stay while the scores across modalities fall, identity is not lost, only the bridge between the two.
    Images of the same camera count too, so this is a mild test; (nan, nan) where no identity has two images.

    Args:
        query, clean: (Q, D) features of the same images, attacked and clean; `identities`: (Q,).
    """
    itself = np.arange(len(identities))
    if np.unique(identities).size == itself.size:
        return math.nan, math.nan
    # Protocol "llcm" removes what shares identity and camera with the query: with a camera per image, that is itself.
    scores = evaluate_features(query, clean, identities, identities, itself, itself, protocol="llcm")
    return scores.rank1, scores.mAP


def shift_and_spread(query: Tensor, clean: Tensor, gallery: Tensor) -> tuple[float, float]:
    """Return how far the query cloud is from the gallery's, and how wide it is, both in units of the clean width s.

    `shift = |mean(query) - mean(gallery)| / s`, `spread = w(query) / s`, with `w(X)^2 = mean |x - mean(X)|^2` and
    `s^2 = (w(clean)^2 + w(gallery)^2) / 2`; nan where s is 0. One s for clean and attacked queries, so that a cloud
    that only shrinks (spread to 0) does not seem to move. Features are (Q, D), (Q, D) and (G, D).
    """

    def width(features: Tensor) -> Tensor:
        return (features - features.mean(0)).square().sum(1).mean().sqrt()

    unit = ((width(clean).square() + width(gallery).square()) / 2).sqrt()
    return ((query.mean(0) - gallery.mean(0)).norm() / unit).item(), (width(query) / unit).item()


def hubs(query: Tensor, gallery: Tensor, trial: Trial, protocol: str = "regdb") -> tuple[float, float, float]:
    """Return three fractions of the number of queries: how far they share the nearest image that the protocol keeps.

    The most whose nearest image is one and the same; the most whose nearest image shows one person (in a perfect
    ranking the largest share of queries of one person); how many different images are nearest to some query. Queries
    that all have one feature give 1, 1 and 1/Q, where the protocol drops nothing. Features are in the trial's order.
    """
    found, gallery_ids = nearest(query, gallery, trial, protocol), identities_and_cameras(trial)[1]
    images, people = (np.unique(who, return_counts=True)[1] for who in (found, gallery_ids[found]))
    return tuple(float(count) / len(query) for count in (images.max(), people.max(), len(images)))


def nearest(query: Tensor, gallery: Tensor, trial: Trial, protocol: str = "regdb") -> np.ndarray:
    """Return the row of the gallery image nearest to each query, (Q,), of those that the protocol keeps."""
    query_ids, gallery_ids, query_cameras, gallery_cameras = identities_and_cameras(trial)
    found, chunk = [], max(1, FEATURE_CHUNK // len(gallery))
    for start in range(0, len(query), chunk):
        rows = slice(start, start + chunk)
        same, distance = query_ids[rows, None] == gallery_ids, torch.cdist(query[rows], gallery).cpu()
        out = dropped(protocol, same, query_cameras[rows, None], gallery_cameras)
        found.append(distance.masked_fill(torch.tensor(out), torch.inf).argmin(1).numpy())
    return np.concatenate(found)


def unshifted(
    model: nn.Module,
    dataset: Dataset,
    clean: Evaluation,
    attacked: Evaluation,
    perturb: Perturbation,
    others: Sequence[Record],
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Return what a score is once the mean shift of a universal perturbation is taken out: its share by intervention.

    The shift, mean of f(x') - f(x), is estimated on other people, subtracted from the queries' features, which are then
    brought to length 1 and ranked again. What comes back was lost to the shift alone. Clean queries, treated alike,
    show what the subtraction itself costs.

    Args:
        clean, attacked: of the same trials; perturb is what the latter's queries went through.
        others: records of people that are not ranked, of the queries' modality or of both.

    Returns:
        [rank-1, mAP] of "clean" and "attacked" queries, means over trials, rounded to PLACES.
    """
    modality, trials = clean.query_modality, clean.of[2]
    store = cached(dataset, [record for record in others if record.modality == modality], False)
    before, after = (embed_store(model, store, perturb=p, device=device, progress=False) for p in (None, perturb))
    shift, found = (after - before).mean(0), {}
    for name, scored in (("clean", clean), ("attacked", attacked)):
        moved, each = F.normalize(scored.query - shift), []
        for trial in trials:
            sides = in_order(moved, distinct(trials, "query"), trial.query)
            sides = sides, in_order(clean.gallery, distinct(trials, "gallery"), trial.gallery)
            each.append(evaluate_features(*sides, *identities_and_cameras(trial), protocol=dataset.protocol))
        found[name] = np.mean([(scores.rank1, scores.mAP) for scores in each], 0).round(PLACES).tolist()
    return found
