import errno
import os
import shutil

import numpy as np
import pytest
import torch

from vireid_lite.data import Dataset, Modality, PKSampler, Record, cached, fingerprint
from vireid_lite.errors import InputError


class Counting(Dataset):
    """Grey crops whose value is their source; counts reads, and fails on one source if told to."""

    def __init__(self, name, count=600, broken=None):
        super().__init__(name, None, (16, 8), {})
        self.broken, self.reads = broken, []
        self.train = [Record(i, i // 4, 1, Modality(i % 2)) for i in range(count)]

    def read(self, record):
        if record.source == self.broken:
            raise InputError(f"{record.source} is broken")
        self.reads.append(record.source)
        return np.full((16, 8, 3), record.source % 256, np.uint8)


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path))


def test_every_crop_is_decoded_once_and_in_order():
    data = Counting("counting")
    for _ in range(2):
        store = cached(data, data.train, progress=False)
    assert sorted(data.reads) == list(range(600))
    assert [int(image[0, 0, 0]) for image in store.images] == [i % 256 for i in range(600)]


def test_a_batch_is_float_in_unit_range_in_the_order_asked_for():
    data = Counting("counting", 300)
    batch = cached(data, data.train, progress=False).batch(np.array([255, 0, 51]))
    assert batch.shape == (3, 3, 16, 8)
    assert torch.equal(batch[:, 0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_what_was_decoded_before_an_error_is_kept():
    data = Counting("counting", broken=590)
    with pytest.raises(InputError, match="590 is broken"):
        cached(data, data.train, progress=False)
    first, data.reads, data.broken = set(data.reads), [], None
    assert len(cached(data, data.train, progress=False)) == 600
    assert set(data.reads) == set(range(512, 600)), "whole steps of 256 rows are not decoded again"
    assert first >= set(range(512))


def test_a_full_disk_is_one_line(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=600 * 16 * 8 * 3 - 1))
    data = Counting("counting")
    with pytest.raises(InputError, match=r"cache of counting: no space left in .*; free some"):
        cached(data, data.train, progress=False)
    assert not data.reads


def test_a_disk_that_fills_up_is_given_back(tmp_path):
    data = Counting("counting")
    read = data.read

    def full(record):
        if record.source == 590:
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(record)

    data.read = full
    with pytest.raises(InputError, match=r"cache of counting: no space left in"):
        cached(data, data.train, progress=False)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 100
    data.read = read
    assert len(cached(data, data.train, progress=False)) == 600


@pytest.mark.parametrize("damage", ["", "{", "null", '"many"', "[3]", "-5", "100000", "2.5", "Infinity", "[" * 99999])
def test_a_damaged_note_costs_time_and_no_pixels(tmp_path, damage):
    data = Counting("counting", broken=590)
    with pytest.raises(InputError, match="590 is broken"):
        cached(data, data.train, progress=False)
    (note,) = tmp_path.rglob("rows.json")
    note.write_text(damage)
    data.broken = None
    store = cached(data, data.train, progress=False)
    assert [int(image[0, 0, 0]) for image in store.images] == [i % 256 for i in range(600)]


def test_a_damaged_cache_is_one_line(tmp_path):
    data = Counting("counting")
    cached(data, data.train, progress=False)
    (whole,) = tmp_path.rglob("images.u8")
    good = whole.read_bytes()
    for harm in (good[:-1], good + b"x", b"", bytes([good[0] ^ 1]) + good[1:], good[:-1] + bytes([good[-1] ^ 1])):
        whole.write_bytes(harm)
        with pytest.raises(InputError, match=r"images.u8 is damaged; delete it"):
            cached(data, data.train, progress=False)
    whole.write_bytes(good)
    assert len(cached(data, data.train, progress=False)) == 600
    whole.unlink()
    assert len(cached(data, data.train, progress=False)) == 600


def test_a_changed_file_is_decoded_again(tmp_path):
    from PIL import Image

    root = tmp_path / "copy"
    root.mkdir()
    records = [Record("a.bmp", 0, 1, Modality.VISIBLE)]
    data = Dataset("paired_folder", root, (16, 8), {})
    keys = set()
    for value, time in ((10, 10), (200, 200), (100, 200)):
        Image.new("RGB", (8, 16), (value,) * 3).save(root / "a.bmp")
        os.utime(root / "a.bmp", ns=(time, time))
        store = cached(data, records, progress=False)
        assert store.images[0, 0, 0, 0] == value
        keys |= {fingerprint(records, data), store.fingerprint()}
    assert len(keys) == 6
    assert fingerprint(records) not in keys


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match="no images to load, it has 600 for training and 0 for validation"):
        cached(Counting("counting"), [], progress=False)


@pytest.mark.parametrize("crop", [np.zeros((16, 8, 3)), np.zeros((8, 16, 3), np.uint8), np.zeros((16, 8), np.uint8)])
def test_a_crop_of_another_kind_is_refused_before_it_is_written(crop):
    data = Counting("counting", 4)
    data.read = lambda record: crop
    with pytest.raises(InputError, match=r"counting: read gave .*, not uint8 \(16, 8, 3\)"):
        cached(data, data.train, progress=False)


def test_sampler_draws_the_same_identities_in_both_modalities(tiny):
    sampler = PKSampler(tiny.train, identities=5, images=3, seed=1)
    batches = list(sampler.epoch(0))
    assert len(batches) == len(sampler) == 48 // 15 + 1
    for visible, infrared in batches:
        identities = [[tiny.train[row].identity for row in rows] for rows in (visible, infrared)]
        assert identities[0] == identities[1]
        assert len(set(identities[0])) == 5
        assert {tiny.train[row].modality for row in visible} == {Modality.VISIBLE}
        assert {tiny.train[row].modality for row in infrared} == {Modality.INFRARED}


def test_sampler_repeats_by_seed_and_epoch_alone(tiny):
    def rows(seed, epoch):
        return [np.concatenate(pair).tolist() for pair in PKSampler(tiny.train, 4, 2, seed).epoch(epoch)]

    assert rows(0, 3) == rows(0, 3)
    assert rows(0, 3) != rows(0, 4)
    assert rows(0, 3) != rows(1, 3)


def test_sampler_leaves_out_identities_with_one_modality_and_refuses_too_few(tiny):
    identity = tiny.train[0].identity
    lame = [r for r in tiny.train if r.identity != identity or r.modality == Modality.VISIBLE]
    seen = {lame[row].identity for pair in PKSampler(lame).epoch(0) for rows in pair for row in rows}
    assert identity not in seen
    with pytest.raises(InputError, match="at least 2 identities"):
        PKSampler([r for r in tiny.train if r.identity == identity])
