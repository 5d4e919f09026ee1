import errno
import os

import pytest

from vireid_lite import files, machine
from vireid_lite.errors import InputError


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    files.write_atomically(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"card.json: no space left in"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["card.json"]


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with (
        files.exclusive(tmp_path / "out", wait=False),
        pytest.raises(InputError, match="another run"),
        files.exclusive(tmp_path / "out", wait=False),
    ):
        pass
    with files.exclusive(tmp_path / "out", wait=False):
        pass


def test_a_folder_that_cannot_be_written_is_named_itself(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", closed)
    with pytest.raises(InputError, match=f"^out: {tmp_path}/out cannot be written"), files.exclusive(tmp_path / "out"):
        pass


def test_what_is_whole_needs_no_lock(tmp_path):
    whole = tmp_path / "whole"
    with files.exclusive(tmp_path, whole=whole):
        assert os.listdir(tmp_path) == [".lock"]
    (tmp_path / ".lock").unlink(missing_ok=True)
    whole.touch()
    with files.exclusive(tmp_path, whole=whole):
        assert os.listdir(tmp_path) == ["whole"]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(InputError, match=f"DEVICE '{name}'"):
        machine.pick_device(name)


def test_a_source_hash_sees_code_and_new_files_and_no_docstring(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(files, "PACKAGE", tmp_path)

    def hash_after(file, source):
        (tmp_path / file).write_text(source, encoding="utf-8")
        return files.source_hash.__wrapped__("data", "losses")

    (tmp_path / "losses.py").write_text("x = 1\n", encoding="utf-8")
    first = hash_after("data/loading.py", 'def f(a):\n    """Old."""\n    return a + 1\n')
    said = '"""New."""\n\n\ndef f(a):\n    """New."""\n    # Said better.\n    return (a + 1)\n'
    assert hash_after("data/loading.py", said) == first
    assert hash_after("metrics.py", "x = 1\n") == first, "not asked for"
    found = {first, hash_after("losses.py", "x = 2\n"), hash_after("data/new.py", "")}
    assert len(found | {hash_after("data/loading.py", "def f(a):\n    return a + 2\n")}) == 4


def test_the_cache_is_the_checkouts_unless_told_or_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "vireid_lite")
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "told"))
    assert files.cache_folder() == tmp_path / "told"
    monkeypatch.delenv("VIREID_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_folder() == tmp_path / "home" / ".cache" / "vireid_lite"
    (tmp_path / "_toc.yml").touch()
    assert files.cache_folder() == tmp_path / "_build" / "cache"
