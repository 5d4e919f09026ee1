"""SYSU-MM01: splits, searches, and both gallery draws against an independent re-derivation."""

import errno
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from miniatures import make_sysu, published_draw
from scipy.io import loadmat, savemat

from vireid_lite.data.benchmarks.sysu import PERMUTATIONS, SYSU
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_sysu(tmp_path_factory.mktemp("camera1") / "cam_SYSU", permutations=True)


def test_identities_are_disjoint_and_cameras_have_their_spectrum(root):
    data = SYSU(root)
    trial = data.trials()[0]
    parts = [{r.identity for r in part} for part in (data.train, data.val, trial.query + trial.gallery)]
    assert parts == [{1, 2, 4, 5}, {3, 8}, {6, 10, 27}]
    for record in data.train + data.val + trial.query + trial.gallery:
        assert (record.modality == Modality.INFRARED) == (record.camera in (3, 6))
        assert record.source.startswith(f"cam{record.camera}/{record.identity:04d}/")
        assert (root / record.source).is_file()
    assert {r.camera for r in data.train} == set(range(1, 7))


def test_published_training_set_merges_validation_identities(root):
    apart, merged = SYSU(root), SYSU(root, validation=False)
    assert set(merged.train) == set(apart.train) | set(apart.val)
    assert len(merged.train) == len(apart.train) + len(apart.val)
    assert merged.val == []
    assert apart.val_trial().query[0].modality == Modality.INFRARED


@pytest.mark.parametrize(("search", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_agw_draw_is_the_published_one(root, search, cameras):
    before = random.getstate()
    trials = SYSU(root, search=search).trials()
    assert random.getstate() == before
    people = ("0006", "0010", "0027")
    folders = [root / f"cam{camera}/{identity}" for identity in people for camera in (3, 6)]
    queries = [p.relative_to(root).as_posix() for folder in folders for p in sorted(folder.glob("*.jpg"))]
    drawn_from = [f"cam{camera}/{identity}" for identity in people for camera in cameras]
    for number, trial in enumerate(trials):
        assert [r.source for r in trial.gallery] == published_draw(root, drawn_from, number)
        assert [r.source for r in trial.query] == queries
    assert len(trials) == 10
    assert len({tuple(t.gallery) for t in trials}) > 1
    assert SYSU(root, search=search).trials() == trials
    # Identity 27 is absent from cameras 2 and 3, so it has no gallery image there.
    assert len(trials[0].gallery) == 3 * len(cameras) - 1


def test_visible_query_draws_one_infrared_image_per_identity_and_camera(root):
    for trial in SYSU(root, search="indoor").trials(Modality.VISIBLE):
        assert [(r.identity, r.camera) for r in trial.gallery] == [(6, 3), (6, 6), (10, 3), (10, 6), (27, 6)]
        assert {r.camera for r in trial.query} == {1, 2}


@pytest.mark.parametrize("shot", [1, 10])
def test_official_draw_is_the_first_entries_of_the_files_rows(tmp_path, shot):
    root = make_sysu(tmp_path / "SYSU", train=(1,), val=(2,), test=(3, 4), images=10, permutations=True, size=(16, 8))
    cells = loadmat(root / "exp/rand_perm_cam.mat")["rand_perm_cam"]
    for number, trial in enumerate(SYSU(root, draw="official", shot=shot).trials()):
        expected = []
        for identity in (3, 4):
            for camera in (1, 2, 4, 5):
                row = cells[camera - 1, 0][identity - 1, 0][number]
                expected += [f"cam{camera}/{identity:04d}/{int(position):04d}.jpg" for position in row[:shot]]
        assert [r.source for r in trial.gallery] == expected
        assert len(set(expected)) == 8 * shot


def test_reads_crops_of_the_asked_size_and_infrared_is_grey(root):
    data = SYSU(root, size=(32, 16))
    query = data.read(data.trials()[0].query[0])
    assert query.shape == (32, 16, 3)
    assert query.dtype == np.uint8
    assert (query == query[..., :1]).all()
    assert np.ptp(data.read(data.train[0])) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"search": "outdoor"}, "'all', 'indoor'"),
        ({"shot": True}, "1, 10"),
        ({"shot": 10}, "draw='official'"),
        ({"num_trials": 11}, "num_trials"),
        ({"validation": "no"}, "False, True"),
        ({"validation": "True"}, "false, true on the command line"),
    ],
)
def test_refuses_unknown_options_in_one_line(root, options, words):
    with pytest.raises(InputError, match=words) as caught:
        SYSU(root, **options)
    assert "\n" not in str(caught.value)


def test_refuses_a_broken_copy(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        SYSU(tmp_path / "nowhere")
    root = make_sysu(tmp_path / "SYSU", train=(1,), val=(2,), test=(3,), images=1, size=(16, 8))
    with pytest.raises(InputError, match=r"exp/rand_perm_cam.mat is not under"):
        SYSU(root, draw="official").trials()
    (root / "exp/rand_perm_cam.mat").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="not readable"):
        SYSU(root, draw="official").trials()
    (root / "exp/val_id.txt").write_text("2,3")
    with pytest.raises(InputError, match=r"val_id.txt and exp/test_id.txt both list identity 3"):
        SYSU(root)
    (root / "exp/val_id.txt").write_text("2;4\n")
    with pytest.raises(InputError, match=r"exp/val_id.txt line 1"):
        SYSU(root)
    (root / "exp/val_id.txt").unlink()
    with pytest.raises(InputError, match=r"exp/val_id.txt is not under"):
        SYSU(root)
    (root / "cam4").rename(root / "camera4")
    with pytest.raises(InputError, match="cam4 is not under"):
        SYSU(root)


def test_a_list_of_several_lines_is_read_whole_or_refused(tmp_path):
    root = make_sysu(tmp_path / "SYSU", train=(1, 4, 5), val=(2,), test=(3, 6), images=1, size=(16, 8))
    for text in ("1\n4\n5\n", "1, 4\n5", "1,4,\r\n5\r\n", "\n1,4,5"):
        (root / "exp/train_id.txt").write_bytes(text.encode())
        assert {record.identity for record in SYSU(root).train} == {1, 4, 5}, text
    for text, line in (("1\n4\nfive", 3), ("1,4\n4,5", 2), ("1 4\n5", 1), ("1,4\n\n5,,6", 3), ("1\n" + "9" * 5000, 2)):
        (root / "exp/train_id.txt").write_text(text)
        with pytest.raises(InputError, match=rf"exp/train_id.txt line {line} is not a list of different identities"):
            SYSU(root)
    (root / "exp/train_id.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"the list exp/train_id.txt under .* is empty"):
        SYSU(root)


def test_a_permutation_of_another_copy_is_refused(tmp_path):
    root = make_sysu(tmp_path / "SYSU", train=(1,), val=(2,), test=(3,), images=3, permutations=True, size=(16, 8))
    with pytest.raises(InputError, match=r"shot=10"):
        SYSU(root, draw="official", shot=10).trials()
    next((root / "cam1/0003").iterdir()).unlink()
    with pytest.raises(InputError, match="cam1/0003, which holds 2"):
        SYSU(root, draw="official").trials()


@pytest.mark.parametrize("place", [1.5, math.inf, math.nan, 0, 1j])
def test_a_permutation_of_what_are_no_places_is_refused(tmp_path, place):
    root = make_sysu(tmp_path, train=(1,), val=(2,), test=(3,), images=3, permutations=True, size=(16, 8))
    cells = loadmat(path := root / PERMUTATIONS)["rand_perm_cam"]
    rows = cells[0, 0][2, 0]
    cells[0, 0][2, 0] = np.where(rows == 1, place, rows)
    savemat(path, {"rand_perm_cam": cells})
    with pytest.raises(InputError, match="images of cam1/0003, which holds"):
        SYSU(root, draw="official").trials()


def test_listed_people_without_an_image_are_mentioned(tmp_path):
    root = make_sysu(tmp_path, train=(1,), val=(2,), test=(3, 6), images=1, size=(16, 8))
    (root / "exp/test_id.txt").write_text("3,6,77")
    assert SYSU(root).left_out == "1 of 3 listed people have no image"


def test_the_advice_of_a_draw_is_not_refused_when_followed(tmp_path):
    root = make_sysu(tmp_path, train=(1,), val=(2,), test=(3, 6), images=1, size=(16, 8))
    with pytest.raises(InputError, match=r"pass draw='agw' with shot=1"):
        SYSU(root, draw="official", shot=10).trials()
    assert SYSU(root, draw="agw", shot=1).trials()


def test_a_folder_that_cannot_be_read_is_one_line_and_no_empty_one(tmp_path, monkeypatch):
    root, real = make_sysu(tmp_path, train=(1,), val=(2,), test=(3, 6), images=1, size=(16, 8)), os.listdir

    def listdir(folder):
        if Path(folder).name == "0006":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputError, match=r"cam1/0006 cannot be read \(Permission denied\); check the rights to it$"):
        SYSU(root)


def test_other_files_beside_the_images_are_mentioned(tmp_path):
    folder = make_sysu(tmp_path) / "cam3/0006"
    assert SYSU(tmp_path).left_out == ""
    for other in ("a.gif", "b.GIF", "notes", ".hidden"):
        (folder / other).write_bytes(b"x")
    (folder.parent / "Thumbs.db").write_bytes(b"x")
    assert SYSU(tmp_path).left_out == "2 .gif, 1 without suffix files are not read"
