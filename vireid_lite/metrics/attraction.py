"""What the people wear who attract queries: of rendered people alone, as the renderer knows what each of them wears."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.data.records import Record, Trial
from vireid_lite.data.store import ImageStore
from vireid_lite.data.synthetic.people import SyntheticVI, stream
from vireid_lite.errors import InputError
from vireid_lite.metrics.anatomy import PLACES, nearest
from vireid_lite.metrics.evaluation import Evaluation, distinct, embed_store, identities_and_cameras, in_order
from vireid_lite.metrics.ranking import evaluate_features

DRAWS = 20  #: of as many other people, beside the ones that are taken out
DRESSED = ("hoops", "stripes", "plain")  #: stripes have both dyes of hoops, the other way round


def worn(dataset: SyntheticVI, identities: Iterable[int], attribute: str = "pattern") -> dict[int, object]:
    """Return what each identity wears, by any attribute of `Person`."""
    return {int(identity): getattr(dataset.person(int(identity)), attribute) for identity in identities}


def attracting(query: Tensor, gallery: Tensor, trial: Trial, wear: dict[int, object]) -> dict[object, int]:
    """Return, by what people wear, for how many queries one of them is nearest who is not the query's own person.

    Features are in the trial's order, (Q, D) and (G, D).
    """
    query_ids, gallery_ids, *_ = identities_and_cameras(trial)
    found = gallery_ids[nearest(query, gallery, trial)]
    return counted(wear[identity] for identity in found[found != query_ids].tolist())


def counted(what: Iterable) -> dict[object, int]:
    """Return how often each of some things occurs, by its name."""
    return dict(sorted(Counter(what).items()))


def rescored(query: Tensor, gallery: Tensor, trial: Trial, out: Iterable[int]) -> tuple[float, float]:
    """Return rank-1 and mAP with some people taken out, as queries and from the gallery; nothing is embedded again."""
    sides, kept = identities_and_cameras(trial), []
    for identities in sides[:2]:
        kept.append(~np.isin(identities, list(out)))
    if not all(rows.any() for rows in kept):
        raise InputError("attraction: nobody is left to be ranked; take fewer people out")
    labels = [side[rows] for side, rows in zip(sides, kept * 2, strict=True)]
    features = (side[torch.from_numpy(rows)] for side, rows in zip((query, gallery), kept, strict=True))
    scores = evaluate_features(*features, *labels)
    return scores.rank1, scores.mAP


def dressed(dataset: SyntheticVI, records: list[Record], pattern: str) -> ImageStore:
    """Return the records' images as they would be if all these people wore one pattern, all else equal."""
    return ImageStore(np.stack([dataset.read(record, pattern=pattern) for record in records]), records)


def catches(query: Tensor, gallery: Tensor, trial: Trial, images: Tensor, rows: np.ndarray) -> float:
    """Return how many of the other people's queries a gallery image would catch with another feature: a mean share.

    A query is caught where the image is nearer than all others of the gallery as they are.

    Args:
        images: (R, D) the other features of the images in some rows of the gallery, each tried alone.
    """
    query_ids, gallery_ids, *_ = identities_and_cameras(trial)
    low, at = torch.cdist(query, gallery).topk(2, largest=False)
    places = torch.from_numpy(rows).to(at.device)
    rival = torch.where(at[:, :1] == places, low[:, 1:], low[:, :1])  # the nearest image beside this one
    caught, others = torch.cdist(query, images) < rival, query_ids[:, None] != gallery_ids[rows]
    return float(caught.cpu().numpy()[others].mean())


def attraction(
    model: nn.Module, dataset: SyntheticVI, clean: Evaluation, attacked: Evaluation, *, every=3, device="cpu"
) -> dict:
    """Return what a card says of what attracts the queries of one direction's first trial, clean and attacked.

    every: of how many gallery images one is rendered again in each pattern of DRESSED.

    Returns:
        "gallery": the number of its images by pattern; "clean" and "attacked": of queries led astray (`attracting`).
        "without": [clean, attacked] rank-1 and mAP without those who wear hoops, and, means over DRAWS, without as many
        others. "caught": [clean, attacked] by pattern (`catches`).
    """
    trials = clean.of[2]
    trial, sides = trials[0], [distinct(trials, side) for side in ("query", "gallery")]
    gallery = in_order(clean.gallery, sides[1], trial.gallery)
    queries = [in_order(each.query, sides[0], trial.query) for each in (clean, attacked)]
    gallery_ids = identities_and_cameras(trial)[1]
    wear = worn(dataset, np.unique(gallery_ids))
    found = {"gallery": counted(wear[identity] for identity in gallery_ids.tolist())}
    found |= {
        name: attracting(query, gallery, trial, wear)
        for name, query in zip(("clean", "attacked"), queries, strict=True)
    }
    hooped = [who for who, pattern in wear.items() if pattern == "hoops"]
    if hooped and 2 * len(hooped) < len(wear):
        rest = [who for who in wear if who not in hooped]
        draws = [stream(number).choice(rest, len(hooped), replace=False) for number in range(DRAWS)]
        found["without"] = {
            name: [
                np.mean([rescored(query, gallery, trial, out) for out in outs], 0).round(PLACES).tolist()
                for query in queries
            ]
            for name, outs in (("hoops", [hooped]), ("as many others", draws))
        }
    rows = np.arange(0, len(gallery_ids), every)
    chosen, found["caught"] = [trial.gallery[row] for row in rows], {}
    for pattern in DRESSED:
        images = embed_store(model, dressed(dataset, chosen, pattern), device=device, progress=False)
        found["caught"][pattern] = [round(catches(query, gallery, trial, images, rows), PLACES) for query in queries]
    return found
