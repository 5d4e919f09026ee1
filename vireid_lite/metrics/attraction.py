"""What the people wear who attract queries: of rendered people alone, as the renderer knows what each of them wears."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.data.records import Trial
from vireid_lite.data.store import ImageStore
from vireid_lite.data.synthetic.people import SyntheticVI, stream
from vireid_lite.errors import InputError
from vireid_lite.metrics.anatomy import PLACES, nearest
from vireid_lite.metrics.evaluation import Evaluation, distinct, embed_store, identities_and_cameras, in_order
from vireid_lite.metrics.ranking import evaluate_features

DRAWS = 20  #: of as many other people, beside the ones that are taken out
EVERY = 3  #: of so many gallery images one is rendered again in each pattern
DRESSED = ("hoops", "stripes", "plain")  #: stripes have both dyes of hoops, the other way round


def attracting(query: Tensor, gallery: Tensor, trial: Trial, wear: dict[int, str]) -> dict[str, int]:
    """Return, by what people wear, for how many queries one of them is nearest who is not the query's own person.

    Features are in the trial's order, (Q, D) and (G, D).
    """
    query_ids, gallery_ids, *_ = identities_and_cameras(trial)
    found = gallery_ids[nearest(query, gallery, trial)]
    return dict(sorted(Counter(wear[identity] for identity in found[found != query_ids].tolist()).items()))


def rescored(query: Tensor, gallery: Tensor, trial: Trial, out: Iterable[int]) -> tuple[float, float]:
    """Return rank-1 and mAP with some people taken out, as queries and from the gallery; nothing is embedded again."""
    sides = identities_and_cameras(trial)
    kept = [torch.from_numpy(~np.isin(identities, list(out))) for identities in sides[:2]]
    if not all(rows.any() for rows in kept):
        raise InputError("attraction: nobody is left to be ranked; take fewer people out")
    labels = [side[rows.numpy()] for side, rows in zip(sides, kept * 2, strict=True)]
    scores = evaluate_features(query[kept[0]], gallery[kept[1]], *labels)
    return scores.rank1, scores.mAP


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


def attraction(model: nn.Module, dataset: SyntheticVI, clean: Evaluation, attacked: Evaluation, device="cpu") -> dict:
    """Return what a card says of what attracts the queries of one direction's first trial, clean and attacked.

    Returns:
        Under "gallery" the number of its images by pattern, under "clean" and "attacked" that of queries led astray
        (`attracting`). Under "without" rank-1 and mAP, [clean, attacked], without those who wear hoops and, means over
        DRAWS, without as many others. Under "caught" what `catches` returns, [clean, attacked], by pattern.
    """
    trials = clean.of[2]
    trial, sides = trials[0], [distinct(trials, side) for side in ("query", "gallery")]
    gallery = in_order(clean.gallery, sides[1], trial.gallery)
    queries = [in_order(each.query, sides[0], trial.query) for each in (clean, attacked)]
    wear = {record.identity: dataset.person(record.identity).pattern for record in trial.gallery}
    worn = Counter(wear[record.identity] for record in trial.gallery)
    found: dict = {"gallery": dict(sorted(worn.items())), "caught": {}}
    found |= {n: attracting(q, gallery, trial, wear) for n, q in zip(("clean", "attacked"), queries, strict=True)}
    hooped, rest = ([who for who in wear if (wear[who] == "hoops") == hoops] for hoops in (True, False))
    if 0 < len(hooped) < len(rest):
        draws = [stream(number).choice(rest, len(hooped), replace=False) for number in range(DRAWS)]
        found["without"] = {
            name: [
                np.mean([rescored(q, gallery, trial, out) for out in outs], 0).round(PLACES).tolist() for q in queries
            ]
            for name, outs in (("hoops", [hooped]), ("as many others", draws))
        }
    rows = np.arange(0, len(trial.gallery), EVERY)
    chosen = [trial.gallery[row] for row in rows]
    for pattern in DRESSED:
        dressed = ImageStore(np.stack([dataset.read(record, pattern) for record in chosen]), chosen)
        images = embed_store(model, dressed, device=device, progress=False)
        found["caught"][pattern] = [round(catches(query, gallery, trial, images, rows), PLACES) for query in queries]
    return found
