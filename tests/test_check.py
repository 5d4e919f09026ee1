"""`check` names what is wrong with a copy, and lets a partial one pass as such."""

import json
import shutil
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from miniatures import make_llcm, make_pairs, make_regdb, make_sysu
from PIL import ExifTags, Image

from vireid_lite.data.benchmarks import check as check_module
from vireid_lite.data.benchmarks.check import check
from vireid_lite.data.benchmarks.paired_folder import PairedFolder
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError

TINY = {"size": (16, 8), "images": 2}
MAKERS = {"sysu": make_sysu, "regdb": make_regdb, "llcm": make_llcm}


@pytest.fixture(params=MAKERS)
def copy(request, tmp_path):
    return request.param, MAKERS[request.param](tmp_path / request.param, **TINY)


def an_image(root):
    return next(p for p in sorted(root.rglob("*")) if p.suffix in (".jpg", ".bmp"))


def test_counts_that_do_not_fit_fail_or_warn_when_partial(copy):
    name, root = copy
    report = check(name, root, progress=False)
    assert not report.ok
    assert all("a complete copy" in error or "no image" in error for error in report.errors)
    partial = check(name, root, partial=True, progress=False)
    assert partial.ok
    assert partial.counts == report.counts
    assert any(warning.startswith("partial copy: ") for warning in partial.warnings)
    assert str(partial).splitlines()[0] == f"{name} at {root}: ok (partial copy)"


def test_counts_are_those_of_the_copy(tmp_path):
    counts = check("sysu", make_sysu(tmp_path / "sysu", **TINY), progress=False).counts
    assert [counts[f"{split} identities"] for split in ("train", "val", "test")] == [4, 2, 3]
    files = len(list((tmp_path / "sysu").rglob("*.jpg")))
    assert files == counts["images in the camera folders"]
    assert files == sum(n for what, n in counts.items() if what.endswith(("visible images", "infrared images")))
    counts = check("llcm", make_llcm(tmp_path / "llcm", **TINY), progress=False).counts
    assert counts["images"] == len(list((tmp_path / "llcm").rglob("*.jpg")))
    counts = check("regdb", make_regdb(tmp_path / "regdb", **TINY), progress=False).counts
    assert counts == {"visible images": 16, "infrared images": 16}


def test_a_copy_with_the_known_counts_is_ok(tmp_path, monkeypatch):
    root = make_llcm(tmp_path / "llcm", **TINY)
    monkeypatch.setattr(check_module, "LLCM_IDENTITIES", {"train": 4, "test": 3})
    monkeypatch.setattr(check_module, "LLCM_IMAGES", 70)
    report = check("llcm", root, progress=False)
    assert report.ok
    assert not report.warnings
    monkeypatch.setattr(check_module, "LLCM_IMAGES", 71)
    assert check("llcm", root, progress=False).errors == ["images: 70 found, a complete copy has 71"]


@pytest.mark.parametrize("damage", ["truncated", "html", "empty"])
def test_unreadable_files_fail_by_name_even_when_partial(copy, damage):
    name, root = copy
    path = an_image(root)
    content = {"truncated": path.read_bytes()[:-60], "html": b"<!DOCTYPE html><title>404</title>", "empty": b""}[damage]
    path.write_bytes(content)
    report = check(name, root, partial=True, progress=False)
    (error,) = report.errors
    assert error.startswith(f"unreadable: {path.relative_to(root).as_posix()} (")
    assert {"truncated": "truncated", "html": "an html page", "empty": "empty file"}[damage] in error.lower()
    assert error in str(report)
    assert "1 problem" in str(report).splitlines()[0]


def test_infrared_images_of_unequal_channels_are_a_warning(copy):
    name, root = copy
    path = next(
        path for path in sorted(root.rglob("*.*")) if check_module.INFRARED.match(path.relative_to(root).as_posix())
    )
    assert not [text for text in check(name, root, partial=True, progress=False).warnings if "unequal" in text]
    red = Image.open(path).convert("L")
    Image.merge("RGB", (red, red, red.point(lambda level: 255 - level))).save(path)
    (warning,) = [text for text in check(name, root, partial=True, progress=False).warnings if "unequal" in text]
    assert f"1 infrared images have unequal channels, first {path.relative_to(root).as_posix()}" in warning


@pytest.mark.parametrize("name", ["regdb", "llcm"])
def test_missing_files_are_named_once(tmp_path, name):
    root = MAKERS[name](tmp_path / name, **TINY)
    folder = root / ("Visible" if name == "regdb" else "vis")
    gone = [path.relative_to(root).as_posix() for path in sorted(folder.rglob("*.*"))[:2]]
    for path in gone:
        (root / path).unlink()
    report = check(name, root, partial=True, progress=False)
    assert [error.split(" (")[0] for error in report.errors] == [f"missing: {path}" for path in gone]


def test_a_listed_identity_without_images_is_named(tmp_path):
    root = make_sysu(tmp_path / "sysu", **TINY)
    (root / "exp/test_id.txt").write_text("6,10,27,99")
    assert any("identity 99" in error for error in check("sysu", root, progress=False).errors)


def test_many_bad_files_are_counted_after_twenty(tmp_path):
    root = make_regdb(tmp_path / "regdb", **TINY)
    for path in root.glob("Thermal/*/*"):
        path.write_bytes(b"")
    for path in list(root.glob("Visible/*/*"))[:8]:
        path.write_bytes(b"")
    errors = check("regdb", root, partial=True, progress=False).errors
    assert len(errors) == 21
    assert errors[-1] == "unreadable: and 4 more"


def test_broken_lists_are_reported_not_raised(copy):
    name, root = copy
    listing = root / {"sysu": "exp/val_id.txt", "regdb": "idx/test_thermal_7.txt", "llcm": "idx/train_nir.txt"}[name]
    listing.write_text("../outside.jpg 3\n")
    (error,) = check(name, root, partial=True, progress=False).errors
    assert f"{listing.parent.name}/{listing.name} line 1" in error
    listing.unlink()
    (error,) = check(name, root, partial=True, progress=False).errors
    assert "is not under" in error


def test_test_people_in_the_training_lists_are_noticed(tmp_path):
    root = make_llcm(tmp_path / "llcm", **TINY)
    (root / "idx/test_id.txt").write_text("1,3,5")
    (root / "test_vis/cam1/0003").rename(root / "test_vis/cam1/0001")
    warnings = check("llcm", root, partial=True, progress=False).warnings
    assert any("1 folders of test identities, first 0001" in warning for warning in warnings)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_image_on_its_side_is_read_upright_and_said_to_be(tmp_path, suffix):
    """The right pixels are those of the same picture stored upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    upright, exif, crops = Image.fromarray(pixels), Image.Exif(), []
    stored = {
        1: upright,
        3: upright.transpose(Image.Transpose.ROTATE_180),
        6: upright.transpose(Image.Transpose.ROTATE_90),
    }
    for orientation, picture in stored.items():
        root = tmp_path / f"pairs{orientation}"
        exif[ExifTags.Base.Orientation] = orientation
        for folder, stem in ((folder, stem) for folder in ("visible", "infrared") for stem in "ab"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{stem}{suffix}", exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
        (root / "boxes.json").write_text(json.dumps({stem: [{"box": [2, 30, 20, 17]}] for stem in "ab"}))
        data, report = PairedFolder(root, size=(48, 24)), check("paired_folder", root, progress=False)
        crops.append(np.stack([data.read(record) for record in data.test]).astype(int))
        assert {record.box for record in data.test} == {(1, 29, 22, 19)}
        turned = "4 images are turned upright, as their EXIF orientation says, first infrared/a"
        assert report.ok, report
        said = [warning for warning in report.warnings if "unequal channels" not in warning]  # of random colours
        assert [warning.startswith(turned) for warning in said] == [True] * (orientation > 1)
    for crop in crops:
        assert np.abs(crop - crops[0]).mean() < 3


def test_an_orientation_behind_the_pixels_of_a_png_turns_box_and_picture(tmp_path):
    root = make_pairs(tmp_path / "pairs", sequences=2, frames=1, boxes=0, size=(96, 128))
    (root / "boxes.json").write_text(json.dumps({f"set0{n}_V000_I00019": [{"box": [10, 100, 60, 20]}] for n in (0, 1)}))
    (exif := Image.Exif())[ExifTags.Base.Orientation] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    for path in (root / "infrared").iterdir():
        shutil.copy(root / "visible" / f"{path.stem}.png", path.with_suffix(".png"))
        path.unlink()
    for path in root.glob("*/*.png"):
        data = path.read_bytes()
        where = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(data[:-12] + where + data[-12:])
    data = PairedFolder(root, one_frame_per_sequence=False)
    assert {record.box for record in data.test} == {(9, 99, 62, 22)}, "a frame of 96 x 128 pixels, upright"
    assert "4 images are turned upright" in str(check("paired_folder", root, progress=False))


def test_a_picture_in_lab_is_read_in_both_spectra(tmp_path):
    root = make_pairs(tmp_path / "pairs", sequences=2, frames=1, boxes=0)
    for path in (root / "infrared").iterdir():
        Image.new("LAB", (128, 96), (128, 128, 128)).save(path.with_suffix(".tif"))
        path.unlink()
    data = PairedFolder(root)
    assert {data.read(record).std() for record in data.test if record.modality == Modality.INFRARED} == {0}


def test_a_box_that_leaves_its_file_is_refused(tmp_path):
    data = PairedFolder(make_pairs(tmp_path / "pairs"))
    for box in ((100, 50, 40, 20), (-1, 0, 20, 20), (0, 0, 0, 10)):
        with pytest.raises(InputError, match=r"leaves visible/set00_V000_I00019\.png"):
            data.read(replace(data.test[0], box=box))


def test_check_and_readers_know_the_same_files(tmp_path):
    root = make_pairs(tmp_path / "pairs", boxes=0)
    for path in (root / "infrared").iterdir():
        Image.open(path).save(path.with_suffix(".tiff"))
        path.unlink()
    assert check("paired_folder", root, progress=False).ok
    data = PairedFolder(root)
    assert data.test[1].source.endswith(".tiff")
    assert data.read(data.test[1]).std() > 1
    Image.fromarray(np.full((96, 128), 40_000, np.uint16)).save(root / data.test[1].source)
    (error,) = check("paired_folder", root, progress=False).errors
    assert error.startswith(f"unreadable: {data.test[1].source} (has more than 8 bits a channel")
    with pytest.raises(InputError, match="has more than 8 bits a channel"):
        data.read(data.test[1])
    root = make_sysu(tmp_path / "sysu", **TINY)
    before = check("sysu", root, progress=False).counts
    for path in list(root.glob("cam*/*/*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    assert check("sysu", root, progress=False).counts == before


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    make_pairs(tmp_path / "pairs")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check("paired_folder", "~/pairs", progress=False).ok
    assert PairedFolder("~/pairs").root == tmp_path / "pairs"
    with pytest.raises(InputError, match="~nobody/pairs is not a folder"):
        PairedFolder("~nobody/pairs")


def test_pairs_and_unknown_names(tmp_path, capfd):
    root = make_pairs(tmp_path / "pairs")
    report = check("paired_folder", root)
    assert report.ok
    assert report.counts == {"pairs with a crop": 6, "crops of each modality": 12}
    assert "decoding" in capfd.readouterr().err
    with pytest.raises(InputError, match="sysu, regdb, llcm"):
        check("market", root)
    with pytest.raises(InputError, match="not a folder"):
        check("sysu", root / "nowhere")
