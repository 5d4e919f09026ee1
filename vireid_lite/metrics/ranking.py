"""Retrieval scores under the official protocols, with the chance level and the arithmetic minimum beside them.

Every query is ranked against the gallery by ascending distance, ties in gallery order. The protocol decides what is
ranked, as in the official evaluators (eval_metrics.py of AGW and of LLCM, SYSU-MM01's MATLAB scripts):

- "regdb": everything; cameras are ignored; CMC counts images. Also serves synthetic and paired data.
- "sysu": queries of camera 3 drop every gallery image of camera 2 (both stand in one room); CMC counts identities.
- "llcm": a query drops the gallery images of its own identity and camera; CMC counts identities.

No list is sorted or walked: a match's rank is one more than the images that are closer, and those are counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from vireid_lite.errors import InputError, check_choice, whole
from vireid_lite.metrics.bootstrap import MOST, Interval, dense, interval, labels

PROTOCOLS = ("regdb", "sysu", "llcm")
# Distances held at once, and counted at once, where they are still in the processor's cache: features are multiplied in
# larger chunks, because every chunk of queries reads the whole gallery from memory once.
FEATURE_CHUNK, MATRIX_CHUNK = 2**25, 2**20
PASSES = 64  # matches of a query from which a sort is faster than counting for each


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """Scores of one ranking of queries against a gallery; all fractions in [0, 1].

    Attributes:
        cmc: (max_rank,) float64, share of valid queries whose match is among the first k; cmc[0] is rank-1.
        mAP, mINP: mean average precision and mean inverse negative penalty (AGW, section 3.3) over valid queries.
        valid_queries: number of queries that have a match in what the protocol leaves of the gallery.
        valid: (valid_queries,) int64, their indices among all queries.
        per_query_rank1, per_query_ap: (valid_queries,) float64, 1 where the first image is a match; average precision.
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
    """The least that arithmetic allows: every match ranked last. An attack may fall below chance, never below this."""

    rank1: float
    mAP: float
    mINP: float


class ChanceScores(NamedTuple):
    """Mean scores of random rankings and intervals of a single one; cmc: (max_rank,) float64, mean over rankings."""

    rank1: Interval
    mAP: Interval
    mINP: Interval
    cmc: np.ndarray


class ChanceLevel(NamedTuple):
    """What a ranking without any information scores in one setting, and the least any ranking can score.

    Attributes:
        independent: every query ranks the gallery in its own random order (an untrained network, shuffled labels).
        collapsed: all queries share one random order, as when an attack maps them all to one feature; the same mean,
            but another interval: rank-1 is the share of the queries whose identity happens to come first.
        minimum: of arithmetic, with every match ranked last.
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
    """Who is in the queries and the gallery under a protocol; identities are numbers from 0."""

    protocol: str
    query_identity: np.ndarray  # (Q,), -1 where the gallery has no such identity
    query_camera: np.ndarray  # (Q,)
    gallery_identity: np.ndarray  # (G,)
    gallery_camera: np.ndarray  # (G,)
    order: np.ndarray  # (G,) gallery indices by identity, in gallery order within one
    starts: np.ndarray  # (I,) where each identity begins in `order`
    sizes: np.ndarray  # (I,)


def dropped(protocol: str, same, query_camera, gallery_camera) -> np.ndarray:
    """Return which gallery images a protocol leaves out for a query, `same` where both show one person; broadcasts."""
    if protocol == "llcm":
        return same & (query_camera == gallery_camera)
    return (query_camera == 3) & (protocol == "sysu") & (gallery_camera == 2)


def evaluate(
    distance, query_ids, gallery_ids, query_cameras=None, gallery_cameras=None, protocol="regdb", max_rank=20
) -> RetrievalScores:
    """Score a distance matrix exactly as the official evaluators do (eval_metrics.py:31-71 of AGW and of LLCM).

    Args:
        distance: (Q, G) array or tensor of finite numbers, smaller is closer.
        query_ids, query_cameras: (Q,) integers.
        gallery_ids, gallery_cameras: (G,) integers; cameras are needed for "sysu" and "llcm", ignored for "regdb".
        protocol: one of PROTOCOLS.

    Raises:
        InputError: on distances that are not finite, shapes that do not fit, missing cameras, an unknown protocol, or
            where no query has a match.
    """
    distance = _matrix(distance, "distance", "(queries, gallery)")
    dtype = _array(distance[:0]).dtype
    setting = _setting(distance.shape, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank)

    def block(rows: slice) -> np.ndarray:
        numbers = _array(distance[rows]).astype(np.result_type(dtype, np.float32))
        finite = np.isfinite(numbers).all(axis=1)
        if not finite.all():
            row = rows.start + finite.argmin()
            raise InputError(f"metrics: distance row {row} is not finite; check the features it was computed from")
        return numbers

    return _scores(_rank(setting, block), max_rank, protocol)


@torch.no_grad()
def evaluate_features(
    query, gallery, query_ids, gallery_ids, query_cameras=None, gallery_cameras=None, protocol="regdb", max_rank=20
) -> RetrievalScores:
    """Rank by Euclidean distance between features without ever holding the (Q, G) matrix; all else as in `evaluate`.

    Args:
        query, gallery: (Q, D) and (G, D) arrays or tensors, finite; distances are computed on the gallery's device, in
            float32, or in float64 if both are.
    """
    query, gallery = _matrix(query, "query", "(Q, D)"), _matrix(gallery, "gallery", "(G, D)")
    if query.shape[1] != gallery.shape[1] or not query.shape[1]:
        shapes = f"{tuple(query.shape)} and {tuple(gallery.shape)}"
        raise InputError(f"metrics: query and gallery must be (Q, D) and (G, D) features, got {shapes}")
    shape = len(query), len(gallery)
    setting = _setting(shape, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank)
    dtype = torch.float64 if all("float64" in str(x.dtype) for x in (query, gallery)) else torch.float32
    device = gallery.device if isinstance(gallery, torch.Tensor) else torch.device("cpu")
    gallery, squares = _features(gallery, "gallery", dtype, device)
    query, _ = _features(query, "query", dtype, device)
    centre = gallery.mean(0)
    if squares.mean() < 1.01 * centre.square().sum():
        # Nearly the same features: of |g|^2 - 2 q.g only rounding would be left, so both are taken from their centre.
        gallery, query = gallery - centre, query - centre
        squares = _squares(gallery)

    def block(rows: slice) -> np.ndarray:
        # |g|^2 - 2 q.g orders the gallery as the Euclidean distance does: |q|^2 is one constant per query.
        return torch.addmm(squares, query[rows], gallery.T, alpha=-2).cpu().numpy()

    return _scores(_rank(setting, block, FEATURE_CHUNK), max_rank, protocol)


def chance(
    query_ids, gallery_ids, query_cameras=None, gallery_cameras=None, protocol="regdb", max_rank=20, repeats=200, seed=0
) -> ChanceLevel:
    """Simulate rankings without information, and compute the least any ranking can score, in one setting.

    Args:
        query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank: and errors, as in `evaluate`.
        repeats: random rankings of the whole query set, at least 2.
    """
    repeats = whole("metrics", "repeats", repeats, 2, MOST)
    query_ids, gallery_ids = labels(query_ids, "query_ids"), labels(gallery_ids, "gallery_ids")
    shape = len(query_ids), len(gallery_ids)
    setting = _setting(shape, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank)
    # With one shared order, queries of one identity and camera score alike, so each such pair is ranked once.
    pairs = np.stack([setting.query_identity, setting.query_camera])
    (identity, camera), pair = np.unique(pairs, axis=1, return_inverse=True)
    distinct, pair = setting._replace(query_identity=identity, query_camera=camera), pair.ravel()
    rng = np.random.default_rng(whole("metrics", "seed", seed))

    def once_a_pair(block: Callable[[slice], np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(values[pair] for values in _rank(distinct, block))

    def independent() -> tuple[np.ndarray, ...]:
        return _rank(setting, lambda rows: rng.random((rows.stop - rows.start, shape[1]), dtype=np.float32))

    def collapsed() -> tuple[np.ndarray, ...]:
        order = rng.random(shape[1], dtype=np.float32)
        return once_a_pair(lambda rows: np.tile(order, (rows.stop - rows.start, 1)))

    def worst(rows: slice) -> np.ndarray:
        return (identity[rows, None] == setting.gallery_identity).astype(np.float32)

    def simulate(ranking: Callable[[], tuple[np.ndarray, ...]]) -> ChanceScores:
        runs = [_scores(ranking(), max_rank, protocol) for _ in range(repeats)]
        columns = [[getattr(run, name) for run in runs] for name in ("rank1", "mAP", "mINP")]
        return ChanceScores(*(interval(x, np.mean(x)) for x in columns), np.mean([x.cmc for x in runs], axis=0))

    least = _scores(once_a_pair(worst), max_rank, protocol)
    return ChanceLevel(simulate(independent), simulate(collapsed), Minimum(least.rank1, least.mAP, least.mINP))


def per_identity(scores: RetrievalScores, query_ids) -> PerIdentity:
    """Return each identity's mean rank-1 and AP over its valid queries; `query_ids` (Q,) as given to `evaluate`."""
    ids = labels(query_ids, "query_ids")
    if scores.valid.max() >= len(ids):
        raise InputError(f"metrics: query_ids has {len(ids)} entries, but query {scores.valid.max()} was scored")
    identity, member, queries = np.unique(ids[scores.valid], return_inverse=True, return_counts=True)
    rank1, ap = (np.bincount(member, x) / queries for x in (scores.per_query_rank1, scores.per_query_ap))
    return PerIdentity(identity, rank1, ap, queries)


def _matrix(values, name: str, shape: str):
    """Return a tensor as it is, anything else as an array in this machine's byte order; both hold real numbers."""
    is_tensor = isinstance(values := dense(values, name), torch.Tensor)
    if values.is_complex() if is_tensor else values.dtype.kind not in "fiub":
        raise InputError(f"metrics: {name} must be real numbers, got dtype {values.dtype}")
    if values.ndim != 2:
        raise InputError(f"metrics: {name} must have shape {shape}, got {tuple(values.shape)}")
    if is_tensor:
        return values
    native = np.float64 if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
    return values.astype(native, copy=False)


def _array(values) -> np.ndarray:
    """Return a matrix, wherever it lies, as an array; NumPy has no bfloat16 and no floats of 8 bits."""
    if isinstance(values, torch.Tensor):
        short = values.is_floating_point() and values.dtype.itemsize < 4
        return (values.float() if short else values).numpy(force=True)
    return values


def _features(values, name: str, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) and their squared lengths (N,), refusing what is not finite, or overflows when squared."""
    if not isinstance(values, torch.Tensor):  # torch warns about read-only memory, and has no step backwards
        plain = values.flags.writeable and min(values.strides) >= 0
        values = torch.from_numpy(values if plain else values.copy())
    values = values.to(device, dtype)
    squares = _squares(values)
    finite = squares.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"metrics: {name} feature {row} is not finite; check the model or the images it embedded")
    return values, squares


def _squares(features: torch.Tensor) -> torch.Tensor:
    """Return squared lengths, (N,), a block at a time: a gigabyte would need a second one."""
    return torch.cat([part.square().sum(1) for part in features.split(2**16)])


def _setting(shape, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol: str, max_rank: int) -> _Setting:
    """Check identities and cameras against the shape of the ranking, and sort the gallery by identity."""
    check_choice("metrics", "protocol", protocol, PROTOCOLS)
    whole("metrics", "max_rank", max_rank, 1, 10**5)
    queries, gallery = shape
    if 0 in shape:
        raise InputError(f"metrics: nothing to rank: {queries} queries, {gallery} gallery images")
    query_ids, gallery_ids = labels(query_ids, "query_ids", queries), labels(gallery_ids, "gallery_ids", gallery)
    query_camera, gallery_camera = np.zeros(queries, np.int64), np.zeros(gallery, np.int64)
    if protocol != "regdb":
        if query_cameras is None or gallery_cameras is None:
            raise InputError(f"metrics: protocol {protocol} needs query_cameras and gallery_cameras")
        query_camera = labels(query_cameras, "query_cameras", queries)
        gallery_camera = labels(gallery_cameras, "gallery_cameras", gallery)
    people, gallery_identity, sizes = np.unique(gallery_ids, return_inverse=True, return_counts=True)
    place = np.minimum(np.searchsorted(people, query_ids), len(people) - 1)
    query_identity = np.where(people[place] == query_ids, place, -1)
    order = np.argsort(gallery_identity, kind="stable")
    starts = np.cumsum(sizes) - sizes
    return _Setting(protocol, query_identity, query_camera, gallery_identity, gallery_camera, order, starts, sizes)


def _own(setting: _Setting) -> tuple[np.ndarray, np.ndarray]:
    """Return the gallery indices of each query's identity, padded to (Q, P), P >= 1, and which of them are ranked."""
    sizes = np.where(setting.query_identity >= 0, setting.sizes[setting.query_identity], 0)[:, None]
    column = np.arange(max(1, sizes.max()))
    index = setting.order[np.where(column < sizes, setting.starts[setting.query_identity][:, None] + column, 0)]
    out = dropped(setting.protocol, True, setting.query_camera[:, None], setting.gallery_camera[index])
    return index, (column < sizes) & ~out


def _rank(setting: _Setting, block: Callable[[slice], np.ndarray], size: int | None = None) -> tuple[np.ndarray, ...]:
    """Return each query's rank of the first match, 0 where there is none, its AP and its INP, all (Q,).

    `block` returns the finite distances of some queries, (rows, G), which are written over; `size`: how many at once.
    """
    queries, gallery = len(setting.query_identity), len(setting.gallery_identity)
    step, few = (max(1, count // gallery) for count in (size or MATRIX_CHUNK, MATRIX_CHUNK))
    parts = []
    for start in range(0, queries, step):
        distance = block(slice(start, min(start + step, queries)))
        for low in range(0, len(distance), few):
            rows = slice(start + low, start + min(low + few, len(distance)))
            who = {"query_identity": setting.query_identity[rows], "query_camera": setting.query_camera[rows]}
            parts.append(_rank_chunk(setting._replace(**who), distance[low : low + few]))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _rank_chunk(setting: _Setting, distance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rank all queries of a setting by their distances (Q, G); what the protocol drops is set to infinity."""
    row = np.arange(len(distance))[:, None]
    index, kept = _own(setting)
    if setting.protocol != "regdb":
        same = setting.protocol == "llcm" and setting.query_identity[:, None] == setting.gallery_identity
        out = dropped(setting.protocol, same, setting.query_camera[:, None], setting.gallery_camera)
        np.putmask(distance, out, np.inf)
    positive = np.where(kept, distance[row, index], np.inf)
    closer, as_close = _counts(distance, positive)
    for i, j in zip(*np.nonzero(kept & (as_close > closer + 1)), strict=True):  # a tie: the gallery's order decides
        closer[i, j] += np.count_nonzero(distance[i, : index[i, j]] == positive[i, j])
    rank = np.where(kept, closer + 1, np.iinfo(np.int64).max)
    rank.sort(axis=1)
    count = kept.sum(axis=1)
    matched = np.maximum(count, 1)
    nth = np.arange(1, rank.shape[1] + 1)
    ap = (nth / rank).sum(axis=1, where=nth <= count[:, None]) / matched
    inp = count / rank[row[:, 0], matched - 1]
    first = rank[:, 0]
    if setting.protocol != "regdb":  # counted in identities: those with an image ahead of the first match
        nearest = positive.argmin(axis=1)[:, None]
        match, place = positive[row, nearest], index[row, nearest]
        ahead = (distance < match) | ((distance == match) & (np.arange(distance.shape[1]) < place))
        query, image = np.nonzero(ahead)
        seen = np.zeros((len(distance), len(setting.sizes)), dtype=bool)
        seen[query, setting.gallery_identity[image]] = True
        first = 1 + seen.sum(axis=1)
    return np.where(count > 0, first, 0), ap, inp


def _counts(distance: np.ndarray, threshold: np.ndarray) -> list[np.ndarray]:
    """Count each row's distances (Q, G) below its thresholds (Q, P), and those below or equal, both (Q, P)."""
    if threshold.shape[1] > PASSES:
        pairs = list(zip(np.sort(distance, axis=1), threshold, strict=True))
        return [np.stack([np.searchsorted(*pair, side) for pair in pairs]) for side in ("left", "right")]
    counts = []
    for compare in (np.less, np.less_equal):
        packed = (np.packbits(compare(distance, column[:, None]), axis=1) for column in threshold.T)
        counts.append(np.stack([np.bitwise_count(bits).sum(axis=1, dtype=np.int64) for bits in packed], axis=1))
    return counts


def _scores(ranks: tuple[np.ndarray, ...], max_rank: int, protocol: str) -> RetrievalScores:
    """Return the scores of what `_rank` found."""
    valid = np.flatnonzero(ranks[0])
    if not len(valid):
        raise InputError(f"metrics: none of {len(ranks[0])} queries has a match under protocol {protocol}")
    first, ap, inp = (values[valid] for values in ranks)
    found = np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1:-1]
    cmc, rank1 = np.cumsum(found) / len(valid), (first == 1).astype(float)
    return RetrievalScores(cmc, float(ap.mean()), float(inp.mean()), len(valid), valid, rank1, ap)
