import ast
import errno
import os
import sys

import pytest

from vireid_lite import files, machine
from vireid_lite.errors import InputError

FSTRINGS = r"""
a = f"{name}: choose from {', '.join(known)}"
b = f'{card["seed"]!r:>{width}} of "{{all}}"\n'
c = f"{'one' if x else 'none'}, { {1: 2}[1]}\t"
d = f"it's {x}" f'"{y}' + f"{f'{z:.1f}'} %"
"""


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


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(InputError, match=f"DEVICE '{name}'"):
        machine.pick_device(name)


def test_the_hash_does_not_depend_on_the_order_of_modules():
    assert files.code_hash("losses", "metrics") == files.code_hash("metrics", "losses")
    assert files.code_hash("losses") != files.code_hash("metrics")


def test_the_hash_is_that_of_python_3_11_everywhere(tmp_path, monkeypatch):
    """`ast.unparse` spells f-strings otherwise from 3.12 on; no card may be stale for that."""
    (tmp_path / "quoted.py").write_text(FSTRINGS, encoding="utf-8")
    monkeypatch.setattr(files, "PACKAGE", tmp_path)
    assert files.code_hash("quoted") == "53e2bd8c5193"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="compares with ast.unparse of Python 3.11")
def test_no_module_is_spelled_otherwise_than_by_python_3_11():
    for path in files.PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.unparse(tree) == ast.unparse(files._FStrings().visit(tree)), path.name


def test_the_cache_is_the_checkouts_unless_told_or_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "vireid_lite")
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "told"))
    assert files.cache_folder() == tmp_path / "told"
    monkeypatch.delenv("VIREID_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_folder() == tmp_path / "home" / ".cache" / "vireid_lite"
    (tmp_path / "_toc.yml").touch()
    assert files.cache_folder() == tmp_path / "_build" / "cache"
