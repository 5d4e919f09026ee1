"""The metrics against golden values, an independent walk of the ranked list, known chance floors and invariants."""

import draws
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid_lite import metrics
from vireid_lite.errors import InputError
from vireid_lite.metrics import ranking

PROTOCOLS = metrics.PROTOCOLS


def walk(distance, query_ids, gallery_ids, query_cameras, gallery_cameras, protocol, max_rank):
    """Score by walking each ranked list in plain Python: CMC, mAP, mINP, valid queries."""
    curve, precisions, penalties = [0] * max_rank, [], []
    for q, row in enumerate(np.asarray(distance).tolist()):
        seen, matches, total, precision, place = [], 0, 0, 0.0, 0
        listed = []
        for g in sorted(range(len(row)), key=lambda g: (row[g], g)):
            same = gallery_ids[g] == query_ids[q]
            if protocol == "sysu" and query_cameras[q] == 3 and gallery_cameras[g] == 2:
                continue
            if protocol == "llcm" and same and query_cameras[q] == gallery_cameras[g]:
                continue
            listed.append((same, gallery_ids[g]))
        for place, (same, identity) in enumerate(listed, start=1):
            if same:
                matches += 1
                precision += matches / place
                last = place
            if protocol == "regdb" or identity not in seen:
                seen.append(identity)
                total = len(seen) if same and matches == 1 else total
        if matches:
            precisions.append(precision / matches)
            penalties.append(matches / last)
            curve = [found + (total <= k) for k, found in enumerate(curve, start=1)]
    valid = len(precisions)
    if not valid:
        return None
    return [found / valid for found in curve], sum(precisions) / valid, sum(penalties) / valid, valid


@st.composite
def rankings(draw, levels=(3, 50, 10**6)):
    """A setting with few identities and cameras, and distances with many or few ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, gallery, people = draw(st.integers(1, 12)), draw(st.integers(1, 25)), draw(st.integers(1, 6))
    distance = rng.integers(0, draw(st.sampled_from(levels)), (queries, gallery))
    ids = rng.integers(0, people, queries) * 7 - 3, rng.integers(0, people, gallery) * 7 - 3
    cameras = rng.choice([1, 3, 6], queries), rng.choice([1, 2, 3], gallery)
    return distance.astype(draw(st.sampled_from(["f4", "f8", "i8"]))), *ids, *cameras


def score(setting, protocol, **options):
    """Evaluate, or None where no query has a match."""
    try:
        return metrics.evaluate(*setting, protocol=protocol, **options)
    except InputError as error:
        if "has a match" not in str(error):
            raise
        return None


def same_scores(a, b, tolerance=1e-12):
    assert (a is None) == (b is None)
    if a is not None:
        np.testing.assert_allclose(a.cmc, b.cmc, rtol=0, atol=tolerance)
        np.testing.assert_allclose([a.mAP, a.mINP], [b.mAP, b.mINP], rtol=0, atol=tolerance)
        assert a.valid_queries == b.valid_queries


@pytest.mark.parametrize(
    ("protocol", "query_cameras", "cmc", "mAP", "mINP"),
    [
        ("sysu", (3, 6), (0.1, 0.2, 0.3, 0.5), 0.10545435, 0.05626347),
        ("regdb", None, (0.1, 0.2, 0.3, 0.4), 0.09133388, 0.05560187),
        ("llcm", (1, 4), (0.0, 0.1, 0.2, 0.3), 0.04351733, 0.03917366),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "torch", "float32"])
def test_golden_values_of_the_official_evaluators(protocol, query_cameras, cmc, mAP, mINP, kind):
    i, j = np.arange(10)[:, None], np.arange(90)
    distance = ((5 * i + 7 * j + i * j) % 97) + 0.01 * j
    distance = {"numpy": distance, "torch": torch.from_numpy(distance), "float32": distance.astype(np.float32)}[kind]
    cameras = (None, None) if query_cameras is None else (np.resize(query_cameras, 10), np.array([1, 2, 4])[j % 3])
    scores = metrics.evaluate(distance, 3 * np.arange(10), j // 3, *cameras, protocol)
    np.testing.assert_allclose(scores.cmc[[0, 4, 9, 19]], cmc, atol=1e-6)
    np.testing.assert_allclose([scores.mAP, scores.mINP], [mAP, mINP], atol=1e-6)
    assert scores.valid_queries == 10
    assert scores.rank1 == scores.cmc[0]


def equals_the_walk(setting, protocol, max_rank):
    expected = walk(*setting, protocol, max_rank)
    scores = score(setting, protocol, max_rank=max_rank)
    if expected is None:
        assert scores is None
        return
    cmc, mAP, mINP, valid = expected
    np.testing.assert_allclose(scores.cmc, cmc, rtol=0, atol=1e-12)
    np.testing.assert_allclose([scores.mAP, scores.mINP], [mAP, mINP], rtol=0, atol=1e-12)
    assert scores.valid_queries == valid == len(scores.valid) == len(scores.per_query_ap)
    np.testing.assert_allclose([scores.per_query_rank1.mean(), scores.per_query_ap.mean()], [cmc[0], mAP], atol=1e-12)


@settings(max_examples=draws.of(150), deadline=None)
@given(rankings(), st.sampled_from(PROTOCOLS), st.sampled_from([1, 5, 30]))
def test_equals_the_walk_with_ties_and_any_chunk(setting, protocol, max_rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "MATRIX_CHUNK", 60)  # a few queries at a time
        equals_the_walk(setting, protocol, max_rank)


@pytest.mark.parametrize("passes", [0, 3, ranking.PASSES])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_counting_and_sorting_equal_the_walk(protocol, passes, monkeypatch):
    """Distances all alike, half of them, few or none; one person or many; few images of each person, or most of all."""
    monkeypatch.setattr(ranking, "PASSES", passes)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        queries, gallery, people = rng.integers(1, [7, 60, 8])
        distance = rng.integers(0, rng.choice([1, 2, 9, 10**6]), (queries, gallery))
        distance = distance.astype(rng.choice(["f2", "f4", "f8", "i8"])) if distance.max() < 9 else distance / 7
        ids = rng.integers(0, people, queries), rng.integers(0, people, gallery)
        before = distance.copy()
        equals_the_walk((distance, *ids, rng.choice([3, 6], queries), rng.choice([1, 2, 3], gallery)), protocol, 10)
        np.testing.assert_array_equal(distance, before, "the caller's matrix is as it was")


@pytest.mark.parametrize("offset", [0, 1, 10])
def test_features_that_nearly_coincide_are_told_apart(offset):
    """What an untrained network may give; there |g|^2 - 2 q.g of single precision is rounding alone."""
    rng = np.random.default_rng(1)
    query, gallery = (rng.normal(scale=1e-2 if offset else 1, size=(n, 64)).astype(np.float32) for n in (50, 2000))
    query, gallery = query + np.float32(offset), gallery + np.float32(offset)
    ids = np.arange(50) % 20, np.arange(2000) % 40
    exact = metrics.evaluate(torch.cdist(*map(torch.tensor, (query.astype(float), gallery.astype(float)))), *ids)
    found = metrics.evaluate_features(query, gallery, *ids)
    np.testing.assert_allclose(found.per_query_ap, exact.per_query_ap, rtol=0.01)
    doubled = metrics.evaluate_features(query, np.repeat(gallery, 2, axis=0), ids[0], np.repeat(ids[1], 2))
    np.testing.assert_array_equal(doubled.per_query_rank1, found.per_query_rank1)


def test_double_precision_decides_what_single_precision_would_call_a_tie():
    close = np.array([[1.0 + 1e-12, 1.0]])
    assert metrics.evaluate(close, [1], [0, 1]).rank1 == 1
    assert metrics.evaluate(close, [1], [1, 0]).rank1 == 0
    assert metrics.evaluate(close * 1e300, [1], [0, 1]).rank1 == 1


@settings(max_examples=draws.of(60), deadline=None)
@given(rankings(levels=(10**6,)), st.sampled_from(PROTOCOLS), st.randoms(use_true_random=False))
def test_invariants_of_a_ranking(setting, protocol, random):
    distance, query_ids, gallery_ids, query_cameras, gallery_cameras = setting
    distance = distance.astype(np.float64).argsort(axis=1).argsort(axis=1)  # no ties
    scores = score((distance, *setting[1:]), protocol)
    order = np.array(random.sample(range(len(gallery_ids)), len(gallery_ids)))
    same_scores(
        scores,
        score((distance[:, order], query_ids, gallery_ids[order], query_cameras, gallery_cameras[order]), protocol),
    )
    same_scores(scores, score((distance + 1000, *setting[1:]), protocol))
    perfect = score(((query_ids[:, None] != gallery_ids).astype(float), *setting[1:]), protocol)
    if scores is not None:
        assert (np.diff(scores.cmc) >= 0).all()
        assert scores.cmc[-1] <= 1 + 1e-12
        np.testing.assert_allclose([*perfect.cmc, perfect.mAP, perfect.mINP], 1.0)


@settings(max_examples=draws.of(60), deadline=None)
@given(rankings(), st.sampled_from(PROTOCOLS))
def test_no_ranking_is_below_the_minimum_and_the_worst_ranking_is_at_it(setting, protocol):
    scores = score(setting, protocol)
    if scores is None:
        return
    least = metrics.chance(*setting[1:], protocol, repeats=2).minimum
    _, query_ids, gallery_ids, *_ = setting
    worst = score(((query_ids[:, None] == gallery_ids).astype(float), *setting[1:]), protocol)
    np.testing.assert_allclose([worst.rank1, worst.mAP, worst.mINP], least, rtol=0, atol=1e-12)
    assert scores.rank1 >= least.rank1
    assert scores.mAP >= least.mAP - 1e-12
    assert scores.mINP >= least.mINP - 1e-12


@settings(max_examples=draws.of(50), deadline=None)
@given(
    rankings(), st.sampled_from(PROTOCOLS), st.sampled_from([2**25, 1, 75]), st.sampled_from([np.float32, np.float64])
)
def test_features_equal_the_full_matrix(setting, protocol, chunk, dtype):
    distance, *people = setting
    rng = np.random.default_rng(distance.size)
    # Small whole numbers: the arithmetic is exact, so that ties are ties whatever the chunk.
    query, gallery = (rng.integers(-2, 3, (n, 4)).astype(dtype) for n in distance.shape)
    full = np.sqrt(((query[:, None] - gallery) ** 2).sum(-1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "FEATURE_CHUNK", chunk)
        for kind in (np.asarray, torch.from_numpy):
            try:
                scores = metrics.evaluate_features(kind(query), kind(gallery), *people, protocol)
            except InputError:
                scores = None
            same_scores(scores, score((full, *people), protocol))


@pytest.mark.parametrize("spread", [1e-6, 1e-4, 1e-2, 1.0])
def test_features_that_nearly_coincide_are_ranked_as_in_double_precision(spread):
    rng = np.random.default_rng(1)
    query, gallery = (
        (np.ones(64) + spread * rng.normal(size=(count, 64))).astype(np.float32) / np.float32(8) for count in (40, 120)
    )
    ids = np.arange(40) % 30, np.arange(120) % 30
    exact = np.sqrt(((query[:, None].astype(np.float64) - gallery) ** 2).sum(-1))
    expected, found = metrics.evaluate(exact, *ids), metrics.evaluate_features(query, gallery, *ids)
    assert [found.rank1, found.mAP, found.mINP] == pytest.approx(
        [expected.rank1, expected.mAP, expected.mINP], abs=2e-4
    )


def test_features_of_half_precision_and_read_only_memory():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(20, 8)).astype(np.float16), rng.normal(size=(30, 8)).astype(np.float16)
    ids = np.arange(20) % 5, np.arange(30) % 5
    expected = metrics.evaluate_features(query.astype(np.float32), gallery.astype(np.float32), *ids)
    query.flags.writeable = gallery.flags.writeable = False
    same_scores(metrics.evaluate_features(query, gallery, *ids), expected)
    half = metrics.evaluate_features(torch.tensor(query), torch.tensor(gallery).requires_grad_(), *ids)
    same_scores(half, expected)


def test_cmc_beyond_the_last_identity_stays_found():
    scores = metrics.evaluate(np.array([[2.0, 1.0, 0.0]]), [5], [5, 8, 8], [6], [1, 1, 1], "sysu", max_rank=20)
    np.testing.assert_array_equal(scores.cmc, [0] + [1] * 19)  # third image, second identity
    scores = metrics.evaluate(np.array([[2.0, 1.0, 0.0]]), [5], [5, 8, 8])
    np.testing.assert_array_equal(scores.cmc, [0, 0] + [1] * 18)


def test_unmatched_queries_are_counted_out():
    distance = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    scores = metrics.evaluate(distance, [1, 9, 2], [2, 1])
    assert scores.valid.tolist() == [0, 2]
    assert scores.per_query_rank1.tolist() == [0, 1]
    assert scores.mAP == pytest.approx(0.75)
    # Camera 3 loses its only match with camera 2, and so does a gallery image of the query's own camera under llcm.
    assert metrics.evaluate(distance, [1, 2, 2], [2, 1], [3, 3, 6], [1, 2], "sysu").valid.tolist() == [1, 2]
    assert metrics.evaluate(distance, [1, 2, 2], [2, 1], [2, 2, 1], [1, 2], "llcm").valid.tolist() == [1]


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_bad_input_is_refused_in_one_line():
    good = np.zeros((2, 3))
    ids = [0, 1], [0, 1, 1]
    for bad in (np.nan, np.inf, -np.inf):
        distance = good.copy()
        distance[1, 2] = bad
        refused(lambda distance=distance: metrics.evaluate(distance, *ids), "row 1", "not finite")
        features = np.zeros((3, 4), np.float32)
        features[2, 0] = bad
        refused(lambda x=features: metrics.evaluate_features(np.zeros((2, 4)), x, *ids), "gallery feature 2")
        refused(lambda x=features: metrics.evaluate_features(x, x[:2], ids[1], ids[0]), "query feature 2")
    refused(lambda: metrics.evaluate(good[0], *ids), "shape")
    refused(lambda: metrics.evaluate(good.astype(str), *ids), "dtype")
    refused(lambda: metrics.evaluate(good, [0], ids[1]), "query_ids", "(2,)")
    refused(lambda: metrics.evaluate(good, ids[0], [0.5, 1, 1]), "gallery_ids", "integers")
    refused(lambda: metrics.evaluate(good, *ids, protocol="market"), "market", "regdb, sysu, llcm")
    for protocol in ("sysu", "llcm"):
        refused(lambda protocol=protocol: metrics.evaluate(good, *ids, protocol=protocol), "needs query_cameras")
    refused(lambda: metrics.evaluate(good, *ids, [3, 3], [1, 2], "sysu"), "gallery_cameras")
    refused(lambda: metrics.evaluate(good, [7, 8], ids[1]), "none of 2 queries")
    refused(lambda: metrics.evaluate(good, *ids, max_rank=0), "max_rank")
    refused(lambda: metrics.evaluate(good[:0], [], ids[1]), "0 queries")
    refused(lambda: metrics.evaluate_features(np.zeros((2, 4)), np.zeros((3, 5)), *ids), "(2, 4) and (3, 5)")
    refused(lambda: metrics.chance(*ids, repeats=1), "repeats")


def sysu_people(cameras, shots=1):
    """Identities and cameras of SYSU-MM01's test set: 3,803 infrared queries, 56 of 96 identities seen indoors.

    How many images each identity has is made up; the totals are the official ones (protocols file A).
    """
    indoor, outdoor = np.arange(56), np.arange(56, 96)
    query = [np.repeat(indoor, 20)[:1088], np.repeat(outdoor, 20)[:795], np.repeat(indoor, 20), np.repeat(outdoor, 20)]
    seen = {1: indoor, 2: indoor, 4: np.arange(96), 5: np.arange(93)}
    gallery = np.concatenate([np.repeat(seen[camera], shots) for camera in cameras])
    gallery_cameras = np.concatenate([np.full(shots * len(seen[camera]), camera) for camera in cameras])
    return np.concatenate(query), gallery, np.repeat([3, 6], [1883, 1920]), gallery_cameras


@pytest.mark.parametrize(
    ("setting", "protocol", "floor"),
    [
        (sysu_people((1, 2, 4, 5)), "sysu", (1.0, 10.1, 21.0, 2.9, 1.7)),
        (sysu_people((1, 2, 4, 5), shots=10), "sysu", (1.0, 10.3, 21, 1.3, 1.1)),
        (sysu_people((1, 2)), "sysu", (1.8, 18, 36, 7.0, 5.9)),
        (sysu_people((1, 2), shots=10), "sysu", (1.9, 18, 36, 2.6, 1.9)),
        ((np.arange(2060) // 10, np.arange(2060) // 10), "regdb", (0.48, 4.8, 9.3, 0.83, 0.54)),
    ],
    ids=["all-single", "all-multi", "indoor-single", "indoor-multi", "regdb"],
)
def test_chance_floors(setting, protocol, floor):
    level = metrics.chance(*setting, protocol=protocol, repeats=5)
    for scores, spread in ((level.independent, 1), (level.collapsed, 3)):
        got = [scores.rank1.mean, scores.cmc[9], scores.cmc[19], scores.mAP.mean, scores.mINP.mean]
        # Five rankings: the mean is known to about a tenth of itself or less; a collapsed query spreads wider.
        np.testing.assert_allclose(100 * np.array(got), floor, rtol=0.12 * spread)
        assert all(x.low <= x.mean <= x.high for x in (scores.rank1, scores.mAP, scores.mINP))
    assert level.minimum.mAP < level.independent.mAP.low


def test_the_minimum_settles_the_indoor_claim():
    """Indoor single shot: 1.56 %, and 1.34 % without the camera rule (protocols file F, computed)."""
    people = sysu_people((1, 2))
    assert 100 * metrics.chance(*people, "sysu", repeats=2).minimum.mAP == pytest.approx(1.56, abs=0.005)
    assert 100 * metrics.chance(*people, "regdb", repeats=2).minimum.mAP == pytest.approx(1.34, abs=0.005)


def test_chance_intervals_cover_a_fresh_random_ranking():
    people = np.arange(120) // 6, np.arange(120) // 6
    level = metrics.chance(*people, repeats=300, seed=1)
    rng = np.random.default_rng(2)
    fresh = [metrics.evaluate(rng.random((120, 120)), *people).mAP for _ in range(200)]
    interval = level.independent.mAP
    covered = np.mean([interval.low <= x <= interval.high for x in fresh])
    assert 0.88 <= covered <= 0.99
    again = metrics.chance(*people, repeats=300, seed=1)
    assert again.independent.mAP == interval
    assert again.collapsed.mAP == level.collapsed.mAP


def test_bootstrap_over_identities():
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(50) * 3, 4)
    before = rng.random(200)
    shift = metrics.paired_bootstrap(before, before - 0.25, identities)
    np.testing.assert_allclose(shift, [-0.25] * 3)  # the same loss everywhere has no spread
    # One value per identity, repeated, is as uncertain as that value once: queries of one person are not independent.
    person = rng.normal(size=50)
    once = metrics.bootstrap(person, np.arange(50), seed=4)
    np.testing.assert_allclose(metrics.bootstrap(np.repeat(person, 4), identities, seed=4), once)
    np.testing.assert_allclose(metrics.bootstrap(person, np.arange(50), counts=np.full(50, 4), seed=4), once)
    error = person.std(ddof=1) / np.sqrt(50)
    np.testing.assert_allclose([once.low - once.mean, once.high - once.mean], [-1.96 * error, 1.96 * error], rtol=0.15)
    refused(lambda: metrics.paired_bootstrap([0.1, 0.2], [0.1], [1, 2]), "same queries")
    refused(lambda: metrics.bootstrap([0.1, 0.2], [1, 1]), "two")
    refused(lambda: metrics.bootstrap([0.1, np.nan], [1, 2]), "finite")
    refused(lambda: metrics.bootstrap([0.1, 0.2], [1, 2, 3]), "identities")


def test_bootstrap_from_identity_means_equals_bootstrap_from_queries():
    rng = np.random.default_rng(3)
    query_ids, gallery_ids = rng.integers(0, 12, 90), rng.integers(0, 11, 60)
    scores = metrics.evaluate(rng.random((90, 60)), query_ids, gallery_ids)
    means = metrics.per_identity(scores, query_ids)
    assert means.identity.tolist() == sorted(set(query_ids.tolist()) & set(gallery_ids.tolist()))
    np.testing.assert_allclose(np.average(means.ap, weights=means.queries), scores.mAP)
    np.testing.assert_allclose(np.average(means.rank1, weights=means.queries), scores.rank1)
    from_queries = metrics.bootstrap(scores.per_query_ap, query_ids[scores.valid])
    np.testing.assert_allclose(metrics.bootstrap(means.ap, means.identity, means.queries), from_queries)
    refused(lambda: metrics.per_identity(scores, query_ids[:50]), "query_ids")
