"""Rankings that know nothing, in the layouts of two benchmarks: where every destroyed ranking lands (chapter 10)."""

import numpy as np

from vireid_lite import metrics


def sysu_all_search() -> tuple[np.ndarray, ...]:
    """Return identities of queries and gallery, then their cameras, in the totals of all search, single shot."""
    seen_by = {1: np.arange(56), 2: np.arange(56), 4: np.arange(96), 5: np.arange(3, 96)}
    gallery = sorted((person, camera) for camera, who in seen_by.items() for person in who.tolist())
    camera_3 = np.full(96, 20)
    camera_3[:32] -= 1
    camera_3[56:61] -= 1
    query = np.concatenate([np.repeat(np.arange(96), camera_3), np.repeat(np.arange(96), 20)])
    gallery_ids, gallery_cameras = np.array(gallery).T
    return query, gallery_ids, np.repeat([3, 6], [camera_3.sum(), 1920]), gallery_cameras


REGDB = np.repeat(np.arange(206), 10)

# By data set: the protocol, identities of queries and gallery, and their cameras.
LAYOUTS = {"RegDB": ("regdb", REGDB, REGDB, None, None), "SYSU-MM01": ("sysu", *sysu_all_search())}


def one_order_a_person(
    layout: tuple, blocks: float, rng: np.random.Generator, dtype: type = np.float64
) -> tuple[metrics.RetrievalScores, np.ndarray]:
    """Return the scores of one ranking without information in which a person's queries share an order.

    A person's queries of one camera score alike, so one of them asks; the second value says for how many it stands.

    Args:
        layout: one of `LAYOUTS`.
        blocks: the person's share of its variance; at 1 a gallery person's images stand together.
        rng: where the orders are drawn from, as numbers of `dtype`.
    """
    protocol, query, gallery, cameras, gallery_cameras = layout
    cameras = np.zeros_like(query) if cameras is None else cameras
    (who, camera), counts = np.unique(np.stack([query, cameras]), axis=1, return_counts=True)
    names, member = np.unique(who, return_inverse=True)
    others, shown = np.unique(gallery, return_inverse=True)
    orders = dtype((1 - blocks + 1e-9) ** 0.5) * rng.standard_normal((len(names), len(shown)), dtype)
    orders += dtype(blocks**0.5) * rng.standard_normal((len(names), len(others)), dtype)[:, shown]
    scores = metrics.evaluate(orders[member], who, gallery, camera, gallery_cameras, protocol)
    return scores, counts[scores.valid]
