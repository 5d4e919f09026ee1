"""What a hostile or hurried newcomer types, and how a command ends: one line or silence, and the right exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import TINY, copies, one_line, vireid  # noqa: F401 (fixtures)

from vireid_lite import cli
from vireid_lite.attacks.frozen import training_store
from vireid_lite.chapters.costs import Costs
from vireid_lite.chapters.parameters import read
from vireid_lite.errors import MANY, InputError, check_number, whole
from vireid_lite.models.two_stream import check_images

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing command", "vireid-lite --help"]),
        (["data"], ["Missing command", "vireid-lite data --help"]),
        (["train", "--only", "x"], ["--only", "vireid-lite train --help"]),
        (["train", "--out-dir", ""], ["--out-dir", "empty"]),
        (["evaluate", "--checkpoint="], ["--checkpoint=", "empty"]),
        (["train", "--out-dir", "--pretrained"], ["--pretrained", "looks like an option"]),
        (["train", "--out-dir", __file__], [__file__, "is a file", "give a folder"]),
        (["bench", "smoke", "--dry-run", "--out-dir", f"{__file__}/a/b"], [f"lies below {__file__}", "give a folder"]),
        (["train", *TINY, "--out-dir", "/proc"], ["cannot be written", "choose another folder"]),
        (["train", "-o", "name=sysu"], ["'name'", "num_identities"]),
        (["train", "-o", "self=1"], ["'self'", "num_identities"]),
        (["train", "-o", "difficulty=" + "[" * 100_000], ["difficulty", "choose from easy"]),
        (["train", "-o", f"seed={2**70}"], ["seed", f"{2**63 - 1}"]),
        (["train", "-o", "images_per_modality=1000000000"], ["images_per_modality", "at most"]),
        (["train", *TINY, "--set", "non_local_channels=100000000000"], ["non_local_channels", "at most 4096"]),
        (["train", *TINY, "--model", "ddag", "--set", "parts=99999999"], ["parts", "at most 256"]),
        (["train", "--epochs", "99999999999999999999"], ["--epochs", "less than or equal to 1000000"]),
        (["bench", "smoke", "--threads", "99999999999999999999"], ["--threads", "1024"]),
        (["attack", "cmps", "--set", "margin=1e400"], ["margin", "from 0 up"]),
        (["attack", "cmps", "--set", "steps=99999999999999999999"], ["steps", "at most"]),
        (
            ["evaluate", "--checkpoint", "/no/x.t"],
            ["--checkpoint /no/x.t", "does not exist", "vireid-lite train"],
        ),
        (["evaluate", "--checkpoint", "/tmp"], ["--checkpoint /tmp", "is a folder", "`vireid-lite train` writes"]),
        (["evaluate", "--official", "/no/x.t"], ["--official /no/x.t", "the published code saved"]),
        (["evaluate", "--perturbation", "/no/x"], ["--perturbation /no/x", "`vireid-lite attack` writes"]),
        # What the command has no option for is not sent to one.
        (["lab", "-o", "root=/x"], ["-o root", "--help says whether the command takes --root"]),
        (["attack", "cmps", "--set", "name=uap"], ["--set name", "--help says whether the command takes --name"]),
        (["lab", "--size", "7"], ["--size", "HEIGHTxWIDTH"]),  # asked for where a checkpoint does not say it
        (["data", "check", "regdb", "--root=~/no-such-folder"], [Path.home() / "no-such-folder"]),
    ],
)
def test_nonsense_is_one_line_that_says_how_to_mend_it(vireid, monkeypatch, tmp_path, arguments, words):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    one_line(vireid(*arguments), *words)


def test_a_home_and_pythons_words_are_understood(vireid, copies, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("HOME", str(copies("regdb").parent))
    root = f"--root=~/{copies('regdb').name}"
    train = ["train", "--dataset", "regdb", root, "--size", "32x16", "--backbone", "lite", "--epochs", 1]
    code, _, said = vireid(*train, "-o", "validation=True", "--out-dir", tmp_path / "victim")
    assert code == 0, said


def test_a_machine_without_the_memory_is_one_line(vireid, monkeypatch, tmp_path):  # noqa: F811
    def fail(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr("vireid_lite.victims.load_or_train", fail)
    one_line(vireid("train", *TINY, "--out-dir", tmp_path), "not enough memory", "smaller crops")


def command(*arguments, python=(), **options):
    """Start the command as its script does."""
    run = "import sys; sys.argv[0] = 'vireid-lite'; from vireid_lite.cli import main; sys.exit(main())"
    how = {"text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, **options}
    return subprocess.Popen([sys.executable, *python, "-c", run, *map(str, arguments)], **how)


@pytest.mark.parametrize("arguments", [["train", "--help"], ["bench", "smoke", "--dry-run"]])
def test_a_full_output_is_one_line(arguments):
    with open("/dev/full", "w") as full, command(*arguments, stdout=full, stderr=subprocess.PIPE) as process:
        said = process.communicate()[1]
    assert process.returncode == 2
    assert said == "vireid-lite: what is printed: No space left on device; check the path, the rights to it and the " \
        "space left\n"  # fmt: skip


@pytest.mark.parametrize(("arguments", "code"), [(["train", "--help"], 0), (["train", "--nope"], 2)])
def test_closed_streams_change_no_exit_code(arguments, code):
    closed = {"preexec_fn": lambda: (os.close(1), os.close(2))}
    with command(*arguments, **closed) as process:
        assert process.wait() == code
    with open("/dev/full", "w") as full, command(*arguments, stdout=subprocess.DEVNULL, stderr=full) as process:
        assert process.wait() == code


@pytest.mark.parametrize(
    ("module", "number"), [("typer", signal.SIGINT), ("numpy", signal.SIGTERM), ("torch", signal.SIGINT)]
)
def test_an_interrupted_import_ends_without_a_traceback(module, number, tmp_path):
    arguments, how = ("train", *TINY, "--out-dir", tmp_path), {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with command(*arguments, python=["-v"], **how) as process:  # which says what is loaded
        found = any(f"/{module}/" in line for line in process.stderr)
        process.send_signal(number)
        said = process.stderr.read()
    assert found
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in said


def test_numbers_have_an_upper_bound():
    whole("it", "count", 10**6, most=MANY)
    for number in (10**6 + 1, 2**70):
        with pytest.raises(InputError, match="at most 1000000"):
            whole("it", "count", number, most=MANY)
    with pytest.raises(InputError, match="from 0 up, got inf"):
        check_number("it", "share", float("inf"))
    assert read("whole", 2**63 - 1) == 2**63 - 1
    for kind, value in (("whole", 2**70), ("int", str(2**70)), ("Optional[whole]", 2**63)):
        with pytest.raises(ValueError, match=f"at most {2**63 - 1}"):
            read(kind, value)


def test_rounding_leaves_an_image_an_image():
    images = torch.tensor([0.0, 1.0, 0.5]).reshape(1, 3, 1, 1)
    check_images(images * 1.0000002 - 1e-7)
    with pytest.raises(InputError, match=r"got 0 to 1.00001"):
        check_images(images * 1.00001)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"01": [1]}', '{"01": {"lite": null}}', '{"01": {"lite": {"minutes": "x"}}}', "[" * 10**5],
)
def test_damaged_costs_are_one_line_in_a_chapter(tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(InputError, match=r"costs\.json is damaged; restore it"):
        Costs("01", tmp_path / "costs.json")


@pytest.mark.parametrize("identities", [0, -5, True, 1.0, 13])
def test_an_attack_learns_from_a_count_of_people(tiny, identities):
    with pytest.raises(InputError, match="synthetic has 12 people to learn from: identities must be a whole number"):
        training_store(tiny, identities)


@pytest.mark.parametrize("home", ["/home/x", r"C:\Users\x", r"/odd\1/\g<0>", None])
def test_a_home_folder_of_any_name_stands_for_the_tilde(monkeypatch, home):
    """Read as a template, such as re.sub takes, a Windows path made every command fail; no home is no reason to."""
    monkeypatch.setattr(
        "os.path.expanduser", lambda path: path.replace("~", home, 1) if home and path[:1] == "~" else path
    )
    given = ["train", "--data-root", "~/data", "--out-dir=~", "sysu=~/x", "a~b", "--size", "32x16"]
    there = home or "~"
    wanted = [
        "train",
        "--data-root",
        f"{there}/data",
        f"--out-dir={there}",
        f"sysu={there}/x",
        "a~b",
        "--size",
        "32x16",
    ]
    assert cli._read_arguments(given) == wanted
