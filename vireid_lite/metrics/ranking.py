"""Retrieval metrics: CMC, mAP and mINP under the official protocols, chance level, arithmetic minimum, bootstrap.

Every query is ranked against the gallery by ascending distance, ties in gallery order. The protocol decides what is
ranked, as in the official evaluators (eval_metrics.py of AGW and of LLCM, SYSU-MM01's MATLAB scripts):
- "regdb": everything; cameras are ignored; CMC counts images. Also serves synthetic and paired data.
- "sysu": queries of camera 3 drop every gallery image of camera 2 (both stand in one room); CMC counts identities.
- "llcm": a query drops the gallery images of its own identity and camera; CMC counts identities.

No list is walked. A positive's rank is one more than the kept images that are closer, which a binary search in the
sorted distances gives, plus the ties that stand earlier in the gallery, which are counted only where a tie exists.
Sorting values instead of an argsort is what makes this fast: NumPy sorts plain floats with vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from vireid_lite.errors import InputError
from vireid_lite.metrics.bootstrap import Interval, _interval, _labels

PROTOCOLS = ("regdb", "sysu", "llcm")

# Distances held at once, a few times over; more is no faster for a given matrix, but features are multiplied in larger
# chunks, because every chunk of queries reads the whole gallery from memory once.
MATRIX_CHUNK = 2**20

FEATURE_CHUNK = 2**25

GALLERY_BLOCK = 2**16


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """Scores of one ranking of queries against a gallery; all fractions in [0, 1].

    cmc: (max_rank,) float64, share of valid queries whose match is among the first k; cmc[0] is rank-1.
    mAP, mINP: mean average precision and mean inverse negative penalty (AGW, section 3.3) over valid queries.
    valid_queries: number of queries that have a match in what the protocol leaves of the gallery.
    valid: (valid_queries,) int64, their indices among all queries.
    per_query_rank1: (valid_queries,) float64, 1 where the first image is a match, else 0.
    per_query_ap: (valid_queries,) float64, average precision.
    """

    cmc: np.ndarray
    mAP: float
    mINP: float
    valid_queries: int
    valid: np.ndarray = field(repr=False)
    per_query_rank1: np.ndarray = field(repr=False)
    per_query_ap: np.ndarray = field(repr=False)

    @property
    def rank1(self) -> float:
        """Share of valid queries whose nearest image is a match."""
        return float(self.cmc[0])


class Minimum(NamedTuple):
    """The least that arithmetic allows: every positive ranked last."""

    rank1: float
    mAP: float
    mINP: float


class ChanceScores(NamedTuple):
    """Scores of a random ranking: mean over rankings, and the interval a single ranking's score falls into.

    cmc: (max_rank,) float64, mean over rankings.
    """

    rank1: Interval
    mAP: Interval
    mINP: Interval
    cmc: np.ndarray


class ChanceLevel(NamedTuple):
    """What a ranking without any information scores in one setting, and the least any ranking can score.

    independent: every query ranks the gallery in its own random order (an untrained network, shuffled labels).
    collapsed: all queries share one random order, as when an attack maps them all to one feature; the same mean, but
        another interval: rank-1 is the share of the queries whose identity happens to come first.
    minimum: the arithmetic minimum; an attack may fall below chance, never below this.
    """

    independent: ChanceScores
    collapsed: ChanceScores
    minimum: Minimum


class PerIdentity(NamedTuple):
    """Mean scores of each identity with a valid query, in ascending order of identity; every field (identities,)."""

    identity: np.ndarray
    rank1: np.ndarray
    ap: np.ndarray
    queries: np.ndarray


class _Setting(NamedTuple):
    """Who is in the queries and the gallery, and what the protocol drops; identities are numbers 0 to I - 1."""

    protocol: str
    query_identity: np.ndarray  # (Q,), -1 where the gallery has no such identity
    query_camera: np.ndarray  # (Q,)
    gallery_identity: np.ndarray  # (G,)
    gallery_camera: np.ndarray  # (G,)
    order: np.ndarray  # (G,) gallery indices by identity, in gallery order within one
    starts: np.ndarray  # (I,) where each identity begins in `order`
    sizes: np.ndarray  # (I,)


class _PerQuery(NamedTuple):
    """What is known of each query, shape (Q,): rank of the first match (0 where there is none), AP, INP."""

    first: np.ndarray
    ap: np.ndarray
    inp: np.ndarray


def evaluate(
    distance,
    query_ids,
    gallery_ids,
    query_cameras=None,
    gallery_cameras=None,
    protocol: str = "regdb",
    max_rank: int = 20,
) -> RetrievalScores:
    """Score a distance matrix exactly as the official evaluators do, a chunk of queries at a time.

    distance: (Q, G) array or tensor of finite numbers, smaller is closer. query_ids, query_cameras: (Q,) integers.
    gallery_ids, gallery_cameras: (G,) integers; cameras are needed for "sysu" and "llcm", ignored for "regdb".
    Raises InputError on distances that are not finite, shapes that do not fit, missing cameras, an unknown protocol,
    or where no query has a match. Source: eval_metrics.py:31-71 of AGW and of LLCM, and SYSU-MM01's MATLAB scripts.
    """
    if not isinstance(distance, torch.Tensor):
        distance = np.asarray(distance)
        if distance.dtype.kind not in "fiub":
            raise InputError(f"metrics: distance must be real numbers, got dtype {distance.dtype}")
    if len(distance.shape) != 2:
        raise InputError(f"metrics: distance must have shape (queries, gallery), got {tuple(distance.shape)}")
    queries, gallery = distance.shape
    setting = _setting(queries, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank)

    def block(start: int, stop: int) -> np.ndarray:
        rows = distance[start:stop]
        if isinstance(rows, torch.Tensor):
            rows = rows.detach().cpu()
            rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
        dtype = np.float32 if rows.dtype.kind == "f" and rows.dtype.itemsize <= 4 else np.float64
        rows = np.asarray(rows, dtype=dtype)
        if not np.isfinite(rows).all():
            row = start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"metrics: distance row {row} is not finite; check the features it was computed from")
        return rows

    return _summary(_rank(setting, block, max(1, MATRIX_CHUNK // gallery)), max_rank, protocol)


@torch.no_grad()
def evaluate_features(
    query,
    gallery,
    query_ids,
    gallery_ids,
    query_cameras=None,
    gallery_cameras=None,
    protocol: str = "regdb",
    max_rank: int = 20,
    chunk_size: int | None = None,
) -> RetrievalScores:
    """Rank by Euclidean distance between features without ever holding the (Q, G) matrix.

    query: (Q, D), gallery: (G, D) arrays or tensors; distances are computed on the gallery's device, in float32 (in
    float64 if both are). chunk_size: queries per chunk; None chooses one that holds about 2**25 distances. The other
    arguments, the result and the errors are those of `evaluate`; features that are not finite raise InputError.
    """
    query, gallery = (x if isinstance(x, torch.Tensor) else np.asarray(x) for x in (query, gallery))
    if len(query.shape) != 2 or len(gallery.shape) != 2 or query.shape[1] != gallery.shape[1]:
        shapes = f"{tuple(query.shape)} and {tuple(gallery.shape)}"
        raise InputError(f"metrics: query and gallery must be (Q, D) and (G, D) features, got {shapes}")
    count = len(gallery)
    setting = _setting(len(query), count, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank)
    if chunk_size is None:
        chunk_size = max(1, FEATURE_CHUNK // count)
    elif chunk_size < 1:
        raise InputError(f"metrics: chunk_size must be at least 1, got {chunk_size}")
    dtype = torch.float64 if all("float64" in str(x.dtype) for x in (query, gallery)) else torch.float32
    device = gallery.device if isinstance(gallery, torch.Tensor) else torch.device("cpu")
    blocks = [slice(start, min(start + GALLERY_BLOCK, count)) for start in range(0, count, GALLERY_BLOCK)]
    # Block by block: one pass over a gallery of a gigabyte would need a second one for its temporary.
    norms = torch.cat([_features(gallery, rows, dtype, device, "gallery").square().sum(1) for rows in blocks])

    def block(start: int, stop: int) -> np.ndarray:
        features = _features(query, slice(start, stop), dtype, device, "query")
        distance = torch.empty(len(features), count, dtype=dtype, device=device)
        for rows in blocks:
            # |g|^2 - 2 q.g orders the gallery as the Euclidean distance does: |q|^2 is one constant per query.
            part = _features(gallery, rows, dtype, device, None)
            torch.addmm(norms[rows], features, part.T, alpha=-2, out=distance[:, rows])
        return distance.cpu().numpy()

    return _summary(_rank(setting, block, chunk_size), max_rank, protocol)


def chance(
    query_ids,
    gallery_ids,
    query_cameras=None,
    gallery_cameras=None,
    protocol: str = "regdb",
    max_rank: int = 20,
    repeats: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> ChanceLevel:
    """Simulate rankings without information, and compute the least any ranking can score, in one setting.

    Identities, cameras, protocol, max_rank: as in `evaluate`. repeats: random rankings of the whole query set.
    level: coverage of the interval of one ranking's score. Raises InputError as `evaluate` does.
    """
    ids, gallery_ids = _labels(query_ids, "query_ids"), _labels(gallery_ids, "gallery_ids")
    queries, gallery = len(ids), len(gallery_ids)
    setting = _setting(queries, gallery, ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank)
    if repeats < 2 or not 0 < level < 1:
        raise InputError(f"metrics: chance needs repeats >= 2 and 0 < level < 1, got {repeats} and {level}")
    rng = np.random.default_rng(seed)
    chunk = max(1, MATRIX_CHUNK // gallery)

    def independent() -> RetrievalScores:
        per_query = _rank(setting, lambda start, stop: rng.random((stop - start, gallery), dtype=np.float32), chunk)
        return _summary(per_query, max_rank, protocol)

    # With one shared order, queries of one identity and camera score alike, so each such pair is ranked once.
    pairs = np.stack([setting.query_identity, setting.query_camera])
    (identity, camera), inverse = np.unique(pairs, axis=1, return_inverse=True)
    distinct = setting._replace(query_identity=identity, query_camera=camera)

    def collapsed() -> RetrievalScores:
        scores = rng.random(gallery, dtype=np.float32)
        per_query = _rank(distinct, lambda start, stop: np.broadcast_to(scores, (stop - start, gallery)), chunk)
        return _summary(_PerQuery(*(values[inverse.ravel()] for values in per_query)), max_rank, protocol)

    def simulate(ranking: Callable[[], RetrievalScores]) -> ChanceScores:
        runs = [ranking() for _ in range(repeats)]
        columns = [[getattr(run, name) for run in runs] for name in ("rank1", "mAP", "mINP")]
        return ChanceScores(*(_interval(x, np.mean(x), level) for x in columns), np.mean([x.cmc for x in runs], axis=0))

    return ChanceLevel(simulate(independent), simulate(collapsed), _minimum(setting))


def per_identity(scores: RetrievalScores, query_ids) -> PerIdentity:
    """Return each identity's mean rank-1 and AP over its valid queries, in ascending order of identity.

    query_ids: (Q,) integers, as given to `evaluate`. An identity without a valid query is left out.
    """
    ids = _labels(query_ids, "query_ids")
    if scores.valid.max() >= len(ids):
        raise InputError(f"metrics: query_ids has {len(ids)} entries, but query {scores.valid.max()} was scored")
    identity, member, queries = np.unique(ids[scores.valid], return_inverse=True, return_counts=True)
    rank1, ap = (np.bincount(member, x) / queries for x in (scores.per_query_rank1, scores.per_query_ap))
    return PerIdentity(identity, rank1, ap, queries)


def _features(values, rows: slice, dtype: torch.dtype, device: torch.device, check: str | None) -> torch.Tensor:
    """Return some rows of the features, (rows, D), refusing what is not finite if `check` names them."""
    part = values[rows]
    if not isinstance(part, torch.Tensor):
        part = torch.from_numpy(part if part.flags.writeable else part.copy())  # torch warns about read-only memory
    part = part.to(device, dtype)
    if check and not (finite := part.square().sum(1).isfinite()).all():  # also refuses what overflows when squared
        row = rows.start + int((~finite).nonzero()[0])
        raise InputError(f"metrics: {check} feature {row} is not finite; check the model or the images it embedded")
    return part


def _setting(
    queries: int, gallery: int, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol: str, max_rank: int
) -> _Setting:
    """Check identities and cameras against the shape of the ranking, and sort the gallery by identity."""
    if protocol not in PROTOCOLS:
        raise InputError(f"metrics: unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if max_rank < 1:
        raise InputError(f"metrics: max_rank must be at least 1, got {max_rank}")
    if queries == 0 or gallery == 0:
        raise InputError(f"metrics: nothing to rank: {queries} queries, {gallery} gallery images")
    query_ids, gallery_ids = _labels(query_ids, "query_ids", queries), _labels(gallery_ids, "gallery_ids", gallery)
    query_camera, gallery_camera = np.zeros(queries, np.int64), np.zeros(gallery, np.int64)
    if protocol != "regdb":
        if query_cameras is None or gallery_cameras is None:
            raise InputError(f"metrics: protocol {protocol} needs query_cameras and gallery_cameras")
        query_camera = _labels(query_cameras, "query_cameras", queries)
        gallery_camera = _labels(gallery_cameras, "gallery_cameras", gallery)
    people, gallery_identity, sizes = np.unique(gallery_ids, return_inverse=True, return_counts=True)
    place = np.minimum(np.searchsorted(people, query_ids), len(people) - 1)
    query_identity = np.where(people[place] == query_ids, place, -1)
    order = np.argsort(gallery_identity, kind="stable")
    starts = np.cumsum(sizes) - sizes
    return _Setting(protocol, query_identity, query_camera, gallery_identity, gallery_camera, order, starts, sizes)


def _own(setting: _Setting, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gallery indices of some queries' own identity and two masks: which are no padding, which are ranked.

    All have shape (q, P), P being the most images one of these queries' identities has.
    """
    identity, camera = setting.query_identity[rows], setting.query_camera[rows, None]
    sizes = np.where(identity >= 0, setting.sizes[identity], 0)
    column = np.arange(sizes.max())
    own = column < sizes[:, None]
    index = setting.order[np.where(own, setting.starts[identity][:, None] + column, 0)]
    if setting.protocol == "sysu":
        return index, own, own & ~((camera == 3) & (setting.gallery_camera[index] == 2))
    return index, own, own & ((camera != setting.gallery_camera[index]) | (setting.protocol == "regdb"))


def _rank(setting: _Setting, block: Callable[[int, int], np.ndarray], chunk: int) -> _PerQuery:
    """Rank all queries; `block(start, stop)` gives their finite distances, (stop - start, G)."""
    queries = len(setting.query_identity)
    parts = [
        _rank_chunk(setting, start, block(start, min(start + chunk, queries))) for start in range(0, queries, chunk)
    ]
    return _PerQuery(*map(np.concatenate, zip(*parts, strict=True)))


def _rank_chunk(setting: _Setting, start: int, distance: np.ndarray) -> _PerQuery:
    """Rank the queries from `start` on by their distances (q, G); what the protocol drops is set to infinity."""
    queries, gallery = distance.shape
    index, own, kept = _own(setting, slice(start, start + queries))
    count = kept.sum(axis=1)
    if not count.any():
        return _PerQuery(np.zeros(queries, np.int64), np.zeros(queries), np.zeros(queries))
    row = np.arange(queries)[:, None]
    if setting.protocol == "sysu":
        camera = setting.query_camera[start : start + queries, None]
        distance = np.where((camera == 3) & (setting.gallery_camera == 2), distance.dtype.type(np.inf), distance)
    elif setting.protocol == "llcm":
        distance = distance.copy()
        who, which = np.nonzero(own & ~kept)
        distance[who, index[who, which]] = np.inf

    positive = np.where(kept, distance[row, index], np.inf)
    # Single precision sorts twice as fast, and keeps the order up to ties, which the distances themselves resolve.
    with np.errstate(over="ignore"):
        ordered, key = distance.astype(np.float32), positive.astype(np.float32)
    ordered.sort(axis=1)
    closer = _search(ordered, key)
    tied = kept & (closer + 1 < gallery) & (ordered[row, np.minimum(closer + 1, gallery - 1)] == key)
    for i, j in zip(*np.nonzero(tied), strict=True):
        earlier = distance[i, : index[i, j]] == positive[i, j]
        closer[i, j] = np.count_nonzero(distance[i] < positive[i, j]) + np.count_nonzero(earlier)

    rank = np.where(kept, closer + 1, np.iinfo(np.int64).max)
    nearest = rank.argmin(axis=1)
    rank.sort(axis=1)
    nth = np.arange(1, rank.shape[1] + 1)
    matched = np.maximum(count, 1)
    ap = (nth / rank).sum(axis=1, where=nth <= count[:, None]) / matched
    inp = count / rank[row[:, 0], matched - 1]
    first = rank[:, 0]
    if setting.protocol != "regdb":
        nearest = nearest[:, None]
        first = 1 + _identities_ahead(
            setting, distance, positive[row, nearest], index[row, nearest], tied[row, nearest]
        )
    return _PerQuery(np.where(count > 0, first, 0), ap, np.where(count > 0, inp, 0.0))


def _search(ordered: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Count the numbers below each key, (q, P), in its row of `ordered`, (q, G) ascending, by binary search."""
    queries, gallery = ordered.shape
    row, below = np.arange(queries)[:, None] * gallery, np.zeros(key.shape, np.int64)
    step = 1 << (gallery.bit_length() - 1)
    while step:  # torch.searchsorted is no faster, and waits for its threads on a busy machine
        trial = below + step
        smaller = ordered.ravel()[row + np.minimum(trial, gallery) - 1] < key
        below = np.where(smaller & (trial <= gallery), trial, below)
        step >>= 1
    return below


def _identities_ahead(setting: _Setting, distance, match, place, tied) -> np.ndarray:
    """Count the identities with an image ranked before the query's first match: (q,) from distances (q, G).

    match, place, tied: (q, 1) distance of the first match, its place in the gallery, whether another image ties it.
    """
    ahead = distance < match
    rows = np.flatnonzero(tied)
    ahead[rows] |= (distance[rows] == match[rows]) & (np.arange(distance.shape[1]) < place[rows])
    if (np.diff(setting.order) < 0).any():
        ahead = ahead[:, setting.order]
    return np.logical_or.reduceat(ahead, setting.starts, axis=1).sum(axis=1)


def _summary(per_query: _PerQuery, max_rank: int, protocol: str) -> RetrievalScores:
    valid = np.flatnonzero(per_query.first)
    if not len(valid):
        queries = len(per_query.first)
        raise InputError(f"metrics: none of {queries} queries has a match in the gallery under protocol {protocol}")
    first, ap = per_query.first[valid], per_query.ap[valid]
    cmc = np.cumsum(np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]) / len(valid)
    inp = per_query.inp[valid]
    return RetrievalScores(cmc, float(ap.mean()), float(inp.mean()), len(valid), valid, (first == 1).astype(float), ap)


def _minimum(setting: _Setting) -> Minimum:
    """Return the scores when every positive is ranked last: with n ranked and P positives, the k-th at n - P + k."""
    identity, camera = setting.query_identity, setting.query_camera
    ranked, matches = np.full(len(identity), len(setting.gallery_identity)), np.zeros(len(identity), np.int64)
    if setting.protocol == "sysu":
        ranked -= np.where(camera == 3, np.count_nonzero(setting.gallery_camera == 2), 0)
    rows = max(1, MATRIX_CHUNK // int(setting.sizes.max()))
    for start in range(0, len(identity), rows):
        matches[start : start + rows] = _own(setting, slice(start, start + rows))[2].sum(axis=1)
    if setting.protocol == "llcm":  # what is dropped is the query's own identity
        ranked -= np.where(identity >= 0, setting.sizes[identity], 0) - matches
    (ranked, matches), queries = np.unique(np.stack([ranked, matches])[:, matches > 0], axis=1, return_counts=True)
    ap = [
        (k / (n - k[-1] + k)).mean()
        for n, k in ((n, np.arange(1, p + 1)) for n, p in zip(ranked, matches, strict=True))
    ]
    rank1, mAP, mINP = (float(np.average(x, weights=queries)) for x in (ranked == matches, ap, matches / ranked))
    return Minimum(rank1, mAP, mINP)
