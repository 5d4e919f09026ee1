"""Aligned pairs: boxes, sequences, and the real pixels of the folder named by VIREID_PAIRED_ROOT."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from miniatures import make_pairs
from PIL import Image

from vireid_lite.data.benchmarks.paired_folder import PairedFolder
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError


@pytest.fixture
def root(tmp_path):
    return make_pairs(tmp_path / "pairs")


def test_every_box_is_one_pair_of_crops_with_the_same_rectangle(root):
    data = PairedFolder(root, one_frame_per_sequence=False)
    (trial,) = data.trials()
    assert data.train == data.val == []
    assert len(trial.query) == len(trial.gallery) == 3 * 2 * 2
    for visible, infrared in zip(trial.query, trial.gallery, strict=True):
        assert (visible.modality, infrared.modality) == (Modality.VISIBLE, Modality.INFRARED)
        assert (visible.identity, visible.box) == (infrared.identity, infrared.box)
        assert visible.source.split("/")[1].split(".")[0] == infrared.source.split("/")[1].split(".")[0]
    assert len({r.identity for r in trial.query}) == 12
    assert data.trials(Modality.INFRARED) == [(trial.gallery, trial.query)]


def test_boxes_are_widened_by_three_percent_of_their_height_and_clipped(root):
    boxes = {"set00_V000_I00019": [{"box": [50, 20, 20, 50]}, {"box": [0, 0, 128, 96]}, {"box": [-5, 60, 20, 60.5]}]}
    (root / "boxes.json").write_text(json.dumps(boxes))
    query = PairedFolder(root).trials()[0].query
    # 3 % of 50 is 1.5: the edges 48.5, 71.5, 18.5, 71.5 go to the nearest even pixel.
    assert [r.box for r in query] == [(48, 18, 24, 54), (0, 0, 128, 96), (0, 58, 17, 38)]


def test_crops_are_the_boxes_pixels(root):
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(root / "visible/set00_V000_I00019.png")
    inside = np.zeros((96, 128, 3), np.uint8)
    inside[17:73, 47:73] = 200
    Image.fromarray(inside).save(root / "visible/set01_V000_I00019.png")
    boxes = {stem: [{"box": [50, 20, 20, 50]}] for stem in ("set00_V000_I00019", "set01_V000_I00019")}
    (root / "boxes.json").write_text(json.dumps(boxes))
    data = PairedFolder(root, size=(32, 16))
    dark, bright = (data.read(r) for r in data.trials()[0].query)
    assert (dark == 0).all()
    assert (bright == 200).all()


def test_one_frame_per_sequence_keeps_the_first_that_has_a_box(root):
    def frames(data):
        return sorted({r.source for r in data.trials()[0].query})

    assert frames(PairedFolder(root)) == [f"visible/set{n:02d}_V000_I00019.png" for n in range(3)]
    table = json.loads((root / "boxes.json").read_text())
    del table["set01_V000_I00019"]
    (root / "boxes.json").write_text(json.dumps(table))
    assert frames(PairedFolder(root))[1] == "visible/set01_V000_I00039.png"


def test_what_the_default_leaves_out_is_said_and_the_advice_works(tmp_path):
    root = make_pairs(tmp_path / "pairs", sequences=1, frames=3, boxes=0)
    with pytest.raises(InputError, match="1 crops from 1 of 3 pairs") as caught:
        PairedFolder(root)
    key, value = re.search(r"-o (\w+)=(\w+)", str(caught.value)).groups()
    data = PairedFolder(root, **{key: json.loads(value)})
    assert (len(data.test), data.left_out) == (6, "")
    root = make_pairs(tmp_path / "more", sequences=2, frames=6, boxes=0)
    assert PairedFolder(root).left_out == "one_frame_per_sequence leaves out 10 of 12 pairs"
    with pytest.raises(InputError, match="this data set has none"):
        PairedFolder(root).val_trial()


def test_webp_is_read_and_what_is_no_image_here_is_counted(tmp_path):
    root = make_pairs(tmp_path / "pairs", sequences=4, frames=1, boxes=0)
    first, second = sorted(root.glob("visible/*"))[:2]
    with Image.open(first) as image:
        image.save(first.with_suffix(".webp"), lossless=True)
    first.unlink()
    data = PairedFolder(root)
    assert (len(data.test), data.left_out) == (8, "")
    assert data.read(data.test[0]).shape == (128, 64, 3)
    for name in (f"visible/{second.stem}.gif", "visible/a.gif", "infrared/a.gif", "infrared/notes", "infrared/.hidden"):
        shutil.copy(second, root / name)
    assert PairedFolder(root).left_out == "3 .gif, 1 without suffix files are not read"
    for path in [*root.glob("*/*.webp"), *root.glob("*/*.png"), *root.glob("*/*.jpg")]:
        path.unlink()
    with pytest.raises(InputError, match=r"0 crops from 0 of 0 pairs, 3 \.gif, 1 without suffix files are not read"):
        PairedFolder(root)


def test_whole_frames_without_boxes(tmp_path):
    root = make_pairs(tmp_path / "pairs", boxes=0)
    data = PairedFolder(root)
    assert [r.box for r in data.trials()[0].query] == [None] * 3
    assert data.read(data.trials()[0].query[0]).shape == (128, 64, 3)
    for n, stem in enumerate(("left", "right-7")):
        shutil.copy(root / "visible/set00_V000_I00019.png", root / f"visible/{stem}.png")
        shutil.copy(root / "infrared/set00_V000_I00019.jpg", root / f"infrared/{stem}.jpg")
        assert len(PairedFolder(root).trials()[0].query) == 4 + n


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable JSON"),
        ('{"set00_V000_I00019": [], "set00_V000_I00019": []}', "not readable JSON (a name stands in it twice)"),
        ("[]", "must map frame names"),
        ('{"set00_V000_I00019": [{"tag": ""}]}', "must map frame names"),
        ('{"../visible/set00_V000_I00019": []}', "is not under"),
        ('{"nobody": [{"box": [1, 2, 3, 4]}]}', "lists 'nobody', which is not under"),
        ('{"set00_V000_I00019": [{"box": [1, 2, 3]}]}', "not [x, y, width, height]"),
        ('{"set00_V000_I00019": [{"box": [1, 2, NaN, 4]}]}', "not [x, y, width, height]"),
        ('{"set00_V000_I00019": [{"box": [1, 2, 30, -4]}]}', "not [x, y, width, height]"),
        ('{"set00_V000_I00019": [{"box": [500, 2, 30, 40]}]}', "lies outside"),
        ('{"set00_V000_I00019": [{"box": [10, 2, 30, 40]}]}', "1 crops from 1 of 6 pairs"),
    ],
)
def test_refuses_bad_boxes_in_one_line(root, content, words):
    (root / "boxes.json").write_text(content)
    with pytest.raises(InputError) as caught:
        PairedFolder(root)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_frames_that_are_no_pair(root):
    Image.new("L", (64, 96)).save(root / "infrared/set00_V000_I00019.jpg")
    with pytest.raises(InputError, match=r"is 128x96 and .* is 64x96 pixels"):
        PairedFolder(root)
    (root / "infrared/set00_V000_I00019.jpg").write_text("<html></html>")
    with pytest.raises(InputError, match="not a readable image"):
        PairedFolder(root)
    (root / "infrared/set00_V000_I00019.jpg").rename(root / "infrared/set00_V000_I00020.jpg")
    with pytest.raises(InputError, match="has no partner"):
        PairedFolder(root)
    shutil.copy(root / "visible/set00_V000_I00019.png", root / "visible/set00_V000_I00019.bmp")
    with pytest.raises(InputError, match="two images named set00_V000_I00019"):
        PairedFolder(root)
    shutil.rmtree(root / "infrared")
    with pytest.raises(InputError, match="the folder infrared is not under"):
        PairedFolder(root)


@pytest.mark.skipif("VIREID_PAIRED_ROOT" not in os.environ, reason="VIREID_PAIRED_ROOT is not set: NO REAL PIXELS READ")
def test_real_pairs():
    data = PairedFolder(os.environ["VIREID_PAIRED_ROOT"])
    (trial,) = data.trials()
    assert len(trial.query) > 10
    assert [r.identity for r in trial.query] == [r.identity for r in trial.gallery]
    for record in trial.query + trial.gallery:
        crop = data.read(record)
        assert crop.shape == (128, 64, 3)
        assert crop.std() > 1
