"""What the people wear who attract queries: counts by hand, people taken out, and images that differ in the pattern."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vireid_lite import models
from vireid_lite.data import Modality, Record, SyntheticVI, Trial
from vireid_lite.data.synthetic.people import WARDROBE
from vireid_lite.errors import InputError
from vireid_lite.metrics.attraction import DRESSED, attracting, attraction, catches, rescored
from vireid_lite.metrics.evaluation import evaluate, identities_and_cameras
from vireid_lite.metrics.ranking import evaluate_features


def features(count, width=5, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def trial_of(query_ids, gallery_ids):
    sides = (query_ids, Modality.VISIBLE), (gallery_ids, Modality.INFRARED)
    return Trial(*([Record(f"{m}/{n}", who, 1, m) for n, who in enumerate(ids)] for ids, m in sides))


@pytest.fixture(scope="module")
def data():
    return SyntheticVI(2, 2, size=(32, 16), val_identities=2, test_identities=30)


def test_only_wrong_answers_are_counted_and_by_what_is_worn():
    gallery = features(4)
    trial, wear = trial_of([0, 1, 2, 9, 8], [0, 1, 2, 3]), {0: "hoops", 1: "plain", 2: "plain", 3: "dots"}
    query = gallery[[0, 0, 1, 0, 3]]  # the first is right; then hoops, plain, hoops, dots
    assert attracting(query, gallery, trial, wear) == {"dots": 1, "hoops": 2, "plain": 1}
    assert attracting(gallery[:1], gallery, trial_of([0], [0, 1, 2, 3]), wear) == {}


def test_without_some_people_is_the_ranking_of_the_others():
    who = [0, 0, 1, 2, 3, 3]
    trial, query, gallery = trial_of(who, [*who, 7]), features(6), features(7, seed=1)
    kept = [place for place, name in enumerate(who) if name not in (1, 3)]
    expected = evaluate_features(
        query[kept], gallery[[*kept, 6]], *([who[p] for p in kept] + more for more in ([], [7]))
    )
    assert rescored(query, gallery, trial, {1, 3}) == (expected.rank1, expected.mAP)
    whole = evaluate_features(query, gallery, *identities_and_cameras(trial))
    assert rescored(query, gallery, trial, ()) == (whole.rank1, whole.mAP)
    with pytest.raises(InputError, match="nobody is left"):
        rescored(query, gallery, trial, {0, 1, 2, 3})


def test_an_image_catches_the_queries_it_is_nearest_to():
    who, rows = [0, 1, 1, 2], np.array([0, 2, 3])
    query, gallery, other = features(9), features(4, seed=1), features(3, seed=2)
    trial, caught = trial_of([0, 0, 1, 1, 1, 2, 2, 5, 5], who), []
    for row, image in zip(rows, other, strict=True):
        changed = gallery.clone()
        changed[row] = image
        for feature, name in zip(query, [record.identity for record in trial.query], strict=True):
            if name != who[row]:
                caught.append(int((changed - feature).norm(dim=1).argmin()) == row)
    assert 0 < np.mean(caught) < 1
    assert catches(query, gallery, trial, other, rows) == pytest.approx(np.mean(caught))
    assert catches(query, gallery, trial, query[:3] * 0 + 9, rows) == 0


def test_a_dressed_image_differs_from_its_own_in_the_pattern_alone(data):
    """On an image of 96 rows without blur, where what lies off the garment cannot change at all."""
    sharp = SyntheticVI(2, 2, size=(96, 48), val_identities=2, test_identities=30, blur=0, occlusion=0)
    wear = {record.identity: sharp.person(record.identity).pattern for record in sharp.test}
    assert wear == {who: data.person(who).pattern for who in wear}, "who wears what is no matter of size"
    chosen = [next(r for r in sharp.test if wear[r.identity] == pattern) for pattern in ("hoops", "plain")]
    hooped, plain = (np.stack([sharp.read(record, pattern) for record in chosen]) for pattern in ("hoops", "plain"))
    for record, own in zip(chosen, (hooped[0], plain[1]), strict=True):
        assert (own == sharp.read(record)).all(), "what a person wears anyway changes nothing"
    changed = (hooped != plain).any(-1)
    for mask in changed:
        assert 0.005 < mask.mean() < 0.5
        assert not mask[:8].any(), "heads stay"
        assert not mask[:, :4].any(), "and so does what is beside people"
    with pytest.raises(InputError, match="pattern 'tartan' is unknown; choose from plain, hoops"):
        data.read(chosen[0], pattern="tartan")


def test_a_card_tells_of_a_network_that_looks_at_one_thing_alone(data):
    """A network whose feature says how much a picture changes from row to row, as hoops do, and an attack to match."""

    class Rows(torch.nn.Module):
        people = None

        def embed(self, images, modality):
            rough = images.diff(dim=2).abs().mean((1, 2, 3)) * 10
            return torch.stack([rough.cos(), rough.sin()], 1)

    model = Rows()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    waves = ((torch.arange(32) // 2 % 2) * 2 - 1.0).view(-1, 1) * 0.3
    clean = evaluate(model, data, Modality.INFRARED, progress=False)
    rough = {"perturb": lambda images, modality: (images + waves).clamp(0, 1)}
    attacked = evaluate(model, data, Modality.INFRARED, clean=clean, progress=False, **rough)
    found = attraction(model, data, clean, attacked)
    assert json.loads(json.dumps(found)) == found
    wear = Counter(data.person(record.identity).pattern for record in data.test)
    assert found["gallery"] == {name: count // 2 for name, count in sorted(wear.items())}
    for name, scored in (("clean", clean), ("attacked", attacked)):
        assert sum(found[name].values()) == round(60 * (1 - scored.rank1)), "every wrong answer counts once"
    for name in ("hoops", "as many others"):
        assert [len(pair) for pair in found["without"][name]] == [2, 2]
    assert set(found["caught"]) == set(DRESSED)
    (plain_before, plain), (before, after) = found["caught"]["plain"], found["caught"]["hoops"]
    assert after > plain, "the attack sends queries to hoops"
    assert after - plain > before - plain_before


def test_without_an_attack_clean_and_attacked_are_one(tiny):
    torch.manual_seed(0)
    model = models.build("agw", 12, "lite").eval()
    clean = evaluate(model, tiny, Modality.VISIBLE, progress=False)
    found = attraction(model, tiny, clean, clean)
    assert found["clean"] == found["attacked"]
    assert all(before == after for before, after in found["caught"].values())
    assert set(found["gallery"]) <= set(WARDROBE["pattern"])
