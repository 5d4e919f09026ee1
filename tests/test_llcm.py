"""LLCM: true and published visible-to-infrared directions, draws, and paths with "cam" in them."""

import random

import pytest
from miniatures import make_llcm, published_draw

from vireid_lite.data.benchmarks.llcm import LLCM
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    # The published code splits a path at "cam" and reads the wrong camera and identity under such a root.
    return make_llcm(tmp_path_factory.mktemp("cam7_my_cameras") / "LLCM")


def test_cameras_and_identities_come_from_path_components(root):
    data = LLCM(root)
    trial = data.trials()[0]
    for record in data.train:
        assert f"_c{record.camera:02d}_" in record.source
    for record in trial.query + trial.gallery:
        assert f"/cam{record.camera}/{record.identity - 10_000:04d}/" in record.source
    assert {r.identity for r in data.train} == {0, 1, 2, 3}
    assert {r.identity for r in trial.query} == {10_003, 10_005, 10_012}
    assert {r.camera for r in data.train if r.modality == Modality.VISIBLE} == {1, 3, 9}
    assert {r.camera for r in data.train if r.modality == Modality.INFRARED} == {1, 9}


@pytest.mark.parametrize(
    ("direction", "spectrum", "cameras"),
    [(Modality.INFRARED, "vis", range(1, 10)), (Modality.VISIBLE, "nir", (1, 2, 4, 5, 6, 7, 8, 9))],
)
def test_gallery_is_the_published_draw_with_seeds_0_to_9(root, direction, spectrum, cameras):
    before = random.getstate()
    trials = LLCM(root).trials(direction)
    assert random.getstate() == before
    assert len(trials) == 10
    folders = [f"test_{spectrum}/cam{camera}/{who}" for who in ("0003", "0005", "0012") for camera in cameras]
    for seed, trial in enumerate(trials):
        assert [r.source for r in trial.gallery] == published_draw(root, folders, seed)
        assert {r.modality for r in trial.query} == {direction}
        assert {r.modality for r in trial.gallery} == {direction.other}
    assert len(trials[0].query) == 2 * 3 * (2 if direction == Modality.INFRARED else 3)
    assert len({tuple(t.gallery) for t in trials}) > 1


def test_the_authors_variant_swaps_roles_in_the_visible_direction_only(root):
    honest, published = LLCM(root), LLCM(root, official_vis2ir=True)
    for true, swapped in zip(honest.trials(Modality.VISIBLE), published.trials(Modality.VISIBLE), strict=True):
        assert swapped == (true.gallery, true.query)
    assert honest.trials() == published.trials() == honest.trials(Modality.INFRARED)
    assert honest.describe() != published.describe()


def test_validation_and_number_of_trials(root):
    data = LLCM(root, validation=True, num_trials=3)
    assert len(data.trials()) == 3
    assert not {r.identity for r in data.train} & {r.identity for r in data.val}
    assert {r.modality for r in data.val} == set(Modality)


def test_refuses_what_is_absent_by_name(tmp_path, root):
    with pytest.raises(InputError, match="official_vis2ir"):
        LLCM(root, official_vis2ir=1)
    with pytest.raises(InputError, match="modality"):
        LLCM(root).trials("visible")
    copy = make_llcm(tmp_path / "LLCM", train=(1, 2), test=(3,), cameras=(1,), images=1, size=(16, 8))
    (copy / "nir/0002/0002_c01_s100000_f0000_nir.jpg").unlink()
    with pytest.raises(InputError, match=r"idx/train_nir.txt line 2 lists nir/0002/.*, which is not under"):
        LLCM(copy)
    (copy / "nir/0002/picture.jpg").write_bytes(b"x")
    (copy / "idx/train_nir.txt").write_text("nir/0002/picture.jpg 1\n")
    with pytest.raises(InputError, match=r"line 1 .* names no camera"):
        LLCM(copy)
    (copy / "idx/train_nir.txt").write_text((copy / "idx/train_vis.txt").read_text())
    with pytest.raises(InputError, match=r"LLCM: vis/0001/.* is listed for two people, two spectra"):
        LLCM(copy)
    one, other = "nir/0001/0001_c01_s100000_f0000_nir.jpg", "nir/0002/nir_c01_.jpg"
    (copy / other).write_bytes(b"x")
    for lines, words in (
        (f"{one} 0\n", r"LLCM: vis/0002/.* with label 1 of a training list, and no image of the other spectrum is"),
        (f"{one} 1\n{other} 0\n", r"LLCM: vis/0001/.* with label 0 of a training list, nir/0001/.* with label 1"),
    ):
        (copy / "idx/train_nir.txt").write_text(lines)
        with pytest.raises(InputError, match=words):
            LLCM(copy)
    (copy / "idx/train_nir.txt").write_text(f"{one} 0\n{other} 1\n")
    (copy / "idx/test_id.txt").write_text("")
    with pytest.raises(InputError, match=r"the list idx/test_id.txt .* is empty"):
        LLCM(copy)
    (copy / "idx/test_id.txt").write_text("3,77")
    assert LLCM(copy).left_out == "1 of 2 listed people have no image"
    (copy / "idx/test_id.txt").write_text("77")
    with pytest.raises(InputError, match="lacks visible or infrared test images"):
        LLCM(copy).trials()


def test_other_files_beside_the_images_are_mentioned(tmp_path):
    folder = make_llcm(tmp_path) / "test_nir/cam1/0003"
    assert LLCM(tmp_path).left_out == ""
    for other in ("a.gif", "b.GIF", "notes", ".hidden"):
        (folder / other).write_bytes(b"x")
    (folder.parent / "Thumbs.db").write_bytes(b"x")
    assert LLCM(tmp_path).left_out == "2 .gif, 1 without suffix files are not read"
