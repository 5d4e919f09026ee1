"""SyntheticVI: images depend on their own key alone, spectra share no draw, and bad requests get one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vireid_lite.data.records import Modality
from vireid_lite.data.synthetic.figure import LOWER, UPPER, Shot
from vireid_lite.data.synthetic.people import CAMERAS, DIFFICULTIES, KNOB_LIMITS, WARDROBE, SyntheticVI, draw_person
from vireid_lite.errors import InputError

SMALL = {"num_identities": 3, "images_per_modality": 2, "val_identities": 2, "test_identities": 2}


def everything(data):
    return [*data.train, *data.val, *data.trials()[0].query, *data.trials()[0].gallery]


def digest(data, records):
    return [
        int(np.uint64(data.read(record).astype(np.uint64).ravel() @ np.arange(1, 24577) % 2**61)) for record in records
    ]


def test_pixels_do_not_depend_on_call_order_or_process():
    data = SyntheticVI(**SMALL, seed=5)
    forward = digest(data, data.train)
    draw_person.cache_clear()
    assert digest(data, data.train[::-1])[::-1] == forward
    script = (
        "import sys; sys.path.insert(0, 'tests'); from test_synthetic import *;"
        "data = SyntheticVI(**SMALL, seed=5); print(digest(data, data.train))"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == forward


def test_other_identities_and_more_images_change_nothing():
    few, many = SyntheticVI(**SMALL), SyntheticVI(9, 4, val_identities=5, test_identities=7)
    by_key = {}
    for record in everything(many):
        key = (record.identity, record.modality)
        by_key.setdefault(key, []).append(record)
    seen = {}
    for record in everything(few):
        key = (record.identity, record.modality)
        same = by_key[key][seen.get(key, 0)]
        seen[key] = seen.get(key, 0) + 1
        assert record.camera == same.camera
        np.testing.assert_array_equal(few.read(record), many.read(same))


def test_seeds_identities_and_images_differ():
    data, other = SyntheticVI(**SMALL), SyntheticVI(**SMALL, seed=1)
    images = [data.read(r) for r in data.train] + [other.read(r) for r in other.train]
    assert len({image.tobytes() for image in images}) == len(images)


def test_every_option_that_decides_pixels_is_described():
    plain = SyntheticVI(**SMALL)
    variants = [{"seed": 2}, {"difficulty": "hard"}, {"thermal": True}, {"size": (64, 32)}, {"images_per_modality": 3}]
    variants += [{name: 0.123} for name in KNOB_LIMITS] + [{"without": ["hoops"]}]
    described = [json.dumps(SyntheticVI(**{**SMALL, **variant}).describe(), sort_keys=True) for variant in variants]
    assert len({json.dumps(plain.describe(), sort_keys=True), *described}) == len(variants) + 1


def test_a_world_without_a_pattern_is_the_same_world_but_for_those_who_wore_it():
    plain, without = (
        SyntheticVI(60, 1, val_identities=2, test_identities=2, **more) for more in ({}, {"without": ["hoops"]})
    )
    assert "without" not in plain.describe(), "unsaid, it changes no key"
    assert without.describe() == {**plain.describe(), "without": ["hoops"]}
    assert SyntheticVI(**SMALL, without=("hoops", "dots")).describe()["without"] == ["dots", "hoops"]
    changed = set()
    for identity in range(60):
        before, after = plain.person(identity), without.person(identity)
        assert after.pattern != "hoops"
        if before.pattern == "hoops":
            changed.add(after.pattern)
            after = after._replace(pattern="hoops")
        assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert len(changed) > 1, "those who wore it are drawn another, not all the same"
    same, other = (
        next(r for r in plain.train if (plain.person(r.identity).pattern == "hoops") == worn) for worn in (0, 1)
    )
    assert (plain.read(same) == without.read(same)).all()
    assert (plain.read(other) != without.read(other)).any()
    nearly = [name for name in WARDROBE["pattern"] if name != "checks"]
    assert SyntheticVI(**SMALL, without=nearly).person(7).pattern == "checks"


@pytest.mark.parametrize("value", ["hoops", ["tartan"], list(WARDROBE["pattern"]), [3], 1, None])
def test_a_world_without_what_is_no_pattern_or_without_any_is_refused(value):
    with pytest.raises(InputError, match="without must be a list of patterns"):
        SyntheticVI(**SMALL, without=value)


def test_splits_are_disjoint_and_complete():
    data = SyntheticVI(7, 3, val_identities=4, test_identities=5)
    groups = [data.train, data.val, data.trials()[0].query + data.trials()[0].gallery]
    identities = [{record.identity for record in group} for group in groups]
    assert [len(found) for found in identities] == [7, 4, 5]
    assert len(set.union(*identities)) == 16
    assert [len(group) for group in groups] == [42, 24, 30]
    records = everything(data)
    assert sorted(record.source for record in records) == list(range(96))
    assert all(record.camera in CAMERAS[record.modality] for record in records)


def test_trials_default_to_visible_queries():
    data = SyntheticVI(**SMALL)
    assert {r.modality for r in data.trials()[0].query} == {Modality.VISIBLE}
    assert {r.modality for r in data.trials()[0].gallery} == {Modality.INFRARED}
    assert {r.modality for r in data.trials(Modality.INFRARED)[0].query} == {Modality.INFRARED}
    assert {r.modality for r in data.val_trial().gallery} == {Modality.INFRARED}


@pytest.mark.parametrize("size", [(128, 64), (97, 41), (16, 8), (300, 75), (50, 90)])
@pytest.mark.parametrize("thermal", [False, True])
def test_any_size_gives_sound_pixels(size, thermal):
    data = SyntheticVI(**SMALL, size=size, thermal=thermal, difficulty="hard")
    for record in data.train:
        image = data.read(record)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        assert image.std() > 3, "an image without content"
        if record.modality == Modality.INFRARED:
            assert (image == image[..., :1]).all()
        else:
            assert (image[..., 0] != image[..., 2]).any()


def test_size_changes_sampling_not_content():
    small = SyntheticVI(**SMALL, noise=0, blur=0)
    large = SyntheticVI(**SMALL, noise=0, blur=0, size=(256, 128))
    for record in small.train[::2]:
        reduced = large.read(record).reshape(128, 2, 64, 2, 3).mean((1, 3))
        difference = np.abs(reduced - small.read(record))[20:110, 16:48]
        assert np.median(difference) < 16


def test_spectra_share_no_draw_of_an_image():
    """Every field of a shot that varies at all differs between the spectra, as it does within one of them."""
    data = SyntheticVI(100, 1, difficulty="hard", val_identities=2, test_identities=2)
    shots = {m: [data.shot(r) for r in data.train if r.modality == m] for m in Modality}
    for field in Shot._fields:
        first, second = ([getattr(shot, field) for shot in shots[m]] for m in Modality)
        shared = sum(a == b for a, b in zip(first, second, strict=True))
        # Categories coincide by chance; numbers must not.
        assert shared < (90 if field in ("mirror", "arm_pose", "occluder", "ambient") else 1), field
    yaws = np.array([[shot.yaw for shot in shots[m]] for m in Modality])
    assert abs(np.corrcoef(np.cos(yaws))[0, 1]) < 0.35
    cameras = [[r.camera for r in data.train if r.modality == m] for m in Modality]
    assert abs(np.corrcoef(cameras)[0, 1]) < 0.35


def test_people_vary_and_similarity_makes_them_alike():
    def spread(similarity):
        people = [draw_person(0, i, similarity, 0.3, 1.0) for i in range(60)]
        return np.std([p.waist for p in people]), len({(p.upper, p.lower, p.bag, p.hat, p.pattern) for p in people})

    (apart, outfits), (alike, uniforms) = spread(0.0), spread(1.0)
    assert apart > 0.005
    assert outfits > 50
    assert alike < 1e-12
    assert uniforms == 1


def test_near_infrared_can_flip_contrast_and_lose_patterns():
    people = [draw_person(0, i, 0.0, 0.5, 1.0) for i in range(100)]
    visible = np.array([p.visible.mean(1) for p in people])
    infrared = np.array([p.infrared for p in people])
    flips = (visible[:, UPPER] > visible[:, LOWER]) != (infrared[:, UPPER] > infrared[:, LOWER])
    assert 0.25 < flips.mean() < 0.75
    lost = infrared[:, UPPER] == infrared[:, UPPER + 1]
    assert 0.3 < lost.mean() < 0.7


def test_raw_pixels_across_spectra_stay_near_chance():
    data = SyntheticVI(2, 3, size=(64, 32), val_identities=2, test_identities=60)

    def features(records):
        grey = np.stack([data.read(r).mean(2).reshape(16, 4, 8, 4).mean((1, 3)).ravel() for r in records])
        grey -= grey.mean(1, keepdims=True)
        return grey / np.linalg.norm(grey, axis=1, keepdims=True)

    query, gallery = data.trials()[0]
    best = (features(query) @ features(gallery).T).argmax(1)
    rank1 = np.mean([gallery[j].identity == record.identity for j, record in zip(best, query, strict=True)])
    # Chance is 1 / 60; the bound leaves room for three standard errors above three times chance.
    assert rank1 < 0.10


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"difficulty": "brutal"}, "brutal"),
        ({"fog": 0.5}, "fog"),
        ({"noise": 2.0}, "noise"),
        ({"blur": float("nan")}, "blur"),
        ({"occlusion": "much"}, "occlusion"),
        ({"num_identities": 1}, "num_identities"),
        ({"test_identities": 0}, "test_identities"),
        ({"images_per_modality": 0}, "images_per_modality"),
        ({"num_identities": 10.5}, "num_identities"),
        ({"seed": -1}, "seed"),
        ({"size": (8, 8)}, "size"),
        ({"size": (99999, 99999)}, "at most"),
    ],
)
def test_bad_requests_get_one_line(arguments, word):
    with pytest.raises(InputError, match=word) as error:
        SyntheticVI(**{**SMALL, **arguments})
    assert "\n" not in str(error.value)


def test_difficulties_stay_inside_the_limits():
    for knobs in DIFFICULTIES.values():
        assert all(0 <= getattr(knobs, name) <= limit for name, limit in KNOB_LIMITS.items())
