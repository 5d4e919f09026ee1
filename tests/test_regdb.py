"""RegDB: ten splits, disjoint identities, and lists that lie."""

import os
import shutil

import pytest
from miniatures import make_regdb

from vireid_lite.data.benchmarks.regdb import RegDB
from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_regdb(tmp_path_factory.mktemp("RegDB"))


@pytest.fixture
def small(tmp_path):
    return make_regdb(tmp_path / "RegDB", identities=4, images=1, size=(16, 8))


def person(record):
    return record.source.split("/")[1]


def test_train_and_test_share_neither_number_nor_person(root):
    for split in range(1, 11):
        data = RegDB(root, split=split)
        test = [record for part in data.trials()[0] for record in part]
        assert not {r.identity for r in data.train} & {r.identity for r in test}
        assert not {person(r) for r in data.train} & {person(r) for r in test}
        # One number is one person, in both modalities.
        assert len({(r.identity, person(r)) for r in data.train + test}) == 8
        for record in data.train + test:
            assert record.source.startswith("Visible/" if record.modality == Modality.VISIBLE else "Thermal/")
            assert record.camera == (1 if record.modality == Modality.VISIBLE else 2)
    assert {person(r) for r in RegDB(root, split=1).train} != {person(r) for r in RegDB(root, split=2).train}


def test_one_trial_of_all_against_all_in_both_directions(root):
    data = RegDB(root)
    (forward,), (backward,) = data.trials(), data.trials(Modality.INFRARED)
    assert forward == tuple(reversed(backward))
    assert {r.modality for r in forward.query} == {Modality.VISIBLE}
    assert len(forward.query) == len(forward.gallery) == 12


def test_validation_holds_the_same_identities_out_for_one_seed(root):
    whole, held = RegDB(root), RegDB(root, validation=True)
    assert whole.val == []
    assert set(held.train) | set(held.val) == set(whole.train)
    assert len({r.identity for r in held.val}) == 1
    assert not {r.identity for r in held.train} & {r.identity for r in held.val}
    assert RegDB(root, validation=True).val == held.val
    choices = {RegDB(root, validation=True, seed=seed).val[0].identity for seed in range(12)}
    assert len(choices) > 1
    assert whole.describe() != held.describe() != RegDB(root, validation=True, seed=1).describe()


@pytest.mark.parametrize("split", [0, 11, True, "1", 1.0])
def test_refuses_a_split_that_does_not_exist(root, split):
    with pytest.raises(InputError, match="split must be one of 1"):
        RegDB(root, split=split)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Visible/1/x.bmp", "line 2 is not 'relative/path label'"),
        ("Visible/1/x.bmp -1", "line 2 is not"),
        ("Visible/1/x.bmp 0.5", "line 2 is not"),
        ("../outside.bmp 0", "line 2 lists '../outside.bmp', which climbs out"),
        ("Visible/../../outside.bmp 0", "climbs out"),
        ("{outside} 0", "climbs out"),
        ("Visible/link.bmp 0", "climbs out"),
        ("Visible/folder/outside.bmp 0", "climbs out"),
        ("Visible/loop.bmp 0", "is not under"),
        ("Visible/1/nobody.bmp 0", "line 2 lists Visible/1/nobody.bmp, which is not under"),
        ("Visible/1 0", "is not under"),
        ("Visible/a\0b.bmp 0", "is not under"),
        ("{good} 3", "as 3, and a line before as another"),
        ("{good} 10000", "line 2 has a label over 9,999"),
    ],
)
def test_refuses_bad_list_entries_by_file_and_line(small, line, words):
    outside = small.parent / "outside.bmp"
    outside.write_bytes(b"x")
    os.symlink(outside, small / "Visible/link.bmp")
    os.symlink(small.parent, small / "Visible/folder")
    os.symlink("loop.bmp", small / "Visible/loop.bmp")
    listing = small / "idx/train_visible_1.txt"
    good = listing.read_text().splitlines()
    listing.write_text("\n".join([good[0], line.format(outside=outside, good=good[0].split(" ")[0]), *good[1:]]))
    with pytest.raises(InputError, match=r"train_visible_1.txt") as caught:
        RegDB(small)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    RegDB(small, split=2)


def test_links_that_stay_inside_blank_lines_and_windows_ends_are_fine(small):
    listing = small / "idx/train_visible_1.txt"
    first = listing.read_text().splitlines()[0].split(" ")[0]
    os.symlink(small / first, small / "Visible/again.bmp")
    text = listing.read_text().replace(first, "Visible/again.bmp").replace("\n", "\r\n")
    listing.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    linked = small.parent / "linked"
    os.symlink(small, linked)
    assert RegDB(linked).train[0].source == "Visible/again.bmp"


def test_refuses_missing_and_overlapping_lists(small):
    test = small / "idx/test_thermal_1.txt"
    test.write_text((small / "idx/train_thermal_1.txt").read_text())
    with pytest.raises(InputError, match="a person has one folder and one label"):
        RegDB(small)
    test.write_text("")
    with pytest.raises(InputError, match="is empty"):
        RegDB(small)
    test.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not readable"):
        RegDB(small)
    test.unlink()
    with pytest.raises(InputError, match=r"idx/test_thermal_1.txt is not under"):
        RegDB(small)
    with pytest.raises(InputError, match="--root"):
        RegDB(None)


@pytest.mark.parametrize(
    ("listing", "change", "words"),
    [
        (
            "train_thermal",
            {"0": "1", "1": "0"},
            r"Visible/(\d)/.* with label 0 .*, Thermal/\1/.* with label 1 of a train",
        ),
        ("train_thermal", {"1": "0"}, r"Visible/(\d)/.* with label 1 .*, Thermal/\1/.* with label 0"),
        ("test_visible", {"1": "0"}, r"Visible/(\d)/.* with label 0 .*, Visible/(?!\1).*with label 0 of a test list"),
        ("test_visible", {"1": "7"}, r"with label 7 of a test list, Thermal/\d/.* with label 1"),
        (
            "test_thermal",
            {"1": None},
            r"Visible/\d/.* with label 1 of a test list, and no image of the other spectrum is",
        ),
    ],
)
def test_refuses_lists_that_contradict_each_other_about_who_is_who(small, listing, change, words):
    path = small / f"idx/{listing}_1.txt"
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    changed = [(source, change.get(label, label)) for source, label in lines]
    path.write_text("\n".join(f"{source} {label}" for source, label in changed if label is not None))
    with pytest.raises(InputError, match=words) as caught:
        RegDB(small)
    assert "\n" not in str(caught.value)
    assert len(RegDB(small, split=2).train) == 4


def test_refuses_a_person_with_images_in_training_and_in_test(root, tmp_path):
    copy = tmp_path / "RegDB"
    shutil.copytree(root, copy)
    for spectrum in ("visible", "thermal"):
        train, test = (copy / f"idx/{part}_{spectrum}_1.txt" for part in ("train", "test"))
        *kept, moved = train.read_text().splitlines()
        train.write_text("\n".join(kept))
        test.write_text(f"{test.read_text()}{moved.split(' ')[0]} 9\n")
    with pytest.raises(InputError, match=r"label 3 of a training list, Visible/\d/.* with label 9 of a test list"):
        RegDB(copy)
