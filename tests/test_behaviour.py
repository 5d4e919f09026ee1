"""What cards were made with is what the code does: every part's probe against its entry, and edits of a copy."""

import re
import shutil
import sys
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from probes import PROBES

from vireid_lite import attacks, behaviour, data, models
from vireid_lite.files import PACKAGE
from vireid_lite.study import cards

TESTS = Path(__file__).parent
RESULTS = PACKAGE.parent / "book" / "results"


@pytest.mark.parametrize("part", sorted(PROBES))
def test_a_part_behaves_as_the_cards_were_made_with(part):
    found = behaviour.differs(part, PROBES[part]())
    assert not found, "\n".join([*found[:5], f"if that is meant: python tests/probes.py --write {part}"])


def test_every_part_has_a_probe_and_an_entry():
    words = {"data": data.DATASETS, "victim": models.NETWORKS, "attack": attacks.ATTACKS}
    parts = {f"{kind}/{name}" for kind, names in words.items() for name in names}
    parts |= {"controls", "interventions", "modified", "scores"}
    assert set(PROBES) == set(behaviour.entries()) == parts


def test_a_number_counts_beyond_the_tolerance_alone():
    entry = behaviour.entries()["attack/uap"]
    name = next(name for name in entry if name.endswith("loss"))
    for factor, lines in ((1 + 5e-5, 0), (1 + 2e-4, len(entry[name]))):
        assert len(behaviour.differs("attack/uap", {**entry, name: (np.array(entry[name]) * factor).tolist()})) == lines
    assert behaviour.differs("attack/uap", {**entry, "more": 1.0}) == ["attack/uap: more is only on one side"]


def test_a_surrogate_adds_its_parts_and_a_part_without_an_entry_is_stale():
    run = {"dataset": {"name": "synthetic"}, "victim": {"model": "agw"}, "attack": None}
    assert behaviour.parts_of(run) == ["data/synthetic", "victim/agw", "scores"]
    other = {"dataset": {"name": "regdb"}, "victim": {"model": "ide"}}
    transfer = {**run, "attack": {"name": "cmps"}, "surrogate": other}
    parts = ["data/synthetic", "victim/agw", "data/regdb", "victim/ide", "attack/cmps", "scores"]
    assert behaviour.parts_of(transfer) == parts
    assert behaviour.parts_of({**run, "modification": {"loss": "quadruple"}})[-2:] == ["modified", "scores"]
    for card, stale in ((run, False), ({**run, "attack": {"name": "of tomorrow"}}, True)):
        assert cards.is_stale({**card, "made_with": behaviour.made_with(card)}) == stale
    begun = {**run, "attack": {"name": "sma", "start": {"name": "cmps", "altered": "no"}}}
    assert behaviour.parts_of(begun)[2:] == ["attack/sma", "attack/cmps", "controls", "scores"]
    asked = {"altered": "mirrored", "cells": 8, "erased": True, "stem": "other", "restarts": 2}
    for name, value in asked.items():
        for each, own in ((behaviour.KNOWN[name][0], []), (value, ["controls"])):
            assert behaviour.parts_of({**run, "attack": {"name": "uap", name: each}})[2:] == [
                "attack/uap",
                *own,
                "scores",
            ]
    for name, own in (("lta", ["controls"]), ("cmps", [])):
        assert behaviour.parts_of({**run, "attack": {"name": name, "momentum": 0.5}})[3:] == [*own, "scores"]
    assert "controls" in behaviour.parts_of({**run, "dataset": {"name": "synthetic", "without": ["hoops"]}})
    for part in ("scores", "interventions", "of yesterday"):
        assert cards.is_stale({**run, "made_with": {**behaviour.made_with(run), part: "00000000"}})
    assert not cards.is_stale({**run, "made_with": behaviour.made_with(run, ["interventions"])})


def test_no_committed_card_is_stale():
    assert not [card["key"] for card in cards.read_cards(RESULTS) if cards.is_stale(card)]


# Edits of a copy of the package: what behaves as before marks no card stale, and what does not is seen by its part.

HARMLESS = [
    ("the loss is not finite in epoch", "the loss is no number in epoch"),
    ("warm_up", "warming"),
    (
        "from vireid_lite.errors import MANY, InputError, check_choice",
        "from vireid_lite import errors\n\nMANY = errors.MANY\nfrom vireid_lite.errors import InputError, check_choice",
    ),
    ("delta.mean(-3, keepdim=True)", "(delta.sum(-3, keepdim=True) / 3)"),
    (
        "features = F.normalize(self(images, modality).embedding)",
        "features = F.normalize(self(images, modality)[1] * 3.0)",
    ),
]
REAL = {
    "another feature is ranked": (
        "scores",
        "model.embed(images.contiguous(memory_format=torch.channels_last), modality)",
        "model(images.contiguous(memory_format=torch.channels_last), modality).pooled",
    ),
    "every victim starts elsewhere": (
        "victim/ide",
        "torch.manual_seed(seed)\n                model = untrained",
        "torch.manual_seed(seed + 1)\n                model = untrained",
    ),
    "two intervals are swapped": (
        "scores",
        '{"rank1": (before.rank1, after.rank1), "mAP": (before.ap, after.ap)}',
        '{"rank1": (before.ap, after.ap), "mAP": (before.rank1, after.rank1)}',
    ),
    "SSIM is wider": ("scores", "WINDOW, SIGMA = 11, 1.5", "WINDOW, SIGMA = 11, 3.0"),
    "the last epoch is left out": (
        "victim/ide",
        '    if settings.schedule == "agw":',
        '    if epoch >= 80:\n        return 0.0\n    if settings.schedule == "agw":',
    ),
    "a step is 1 % larger": ("attack/sma", "self.rate * velocity.sign()", "self.rate * 1.01 * velocity.sign()"),
}


@pytest.fixture
def package(tmp_path):
    for name in ("probes.py", "miniatures.py"):
        shutil.copy(TESTS / name, tmp_path)
    return Path(shutil.copytree(PACKAGE, tmp_path / "vireid_lite", ignore=shutil.ignore_patterns("__pycache__")))


def edit(package, old, new, only=None):
    """Replace a text in the one file that has it, or in the file named."""
    holders = [path for path in package.rglob("*.py") if old in path.read_text(encoding="utf-8")]
    (path,) = [path for path in holders if path.name == only or only is None]
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def answer(package, parts, cards_too, to):
    """Send the keys of stale cards, if asked for, and what differs in each part; runs in a process of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vireid_lite", "probes", "miniatures")]:
        del sys.modules[name]
    sys.path.insert(0, str(package.parent))
    torch.set_num_threads(1)
    import probes

    from vireid_lite import behaviour
    from vireid_lite.study import cards

    assert behaviour.__file__.startswith(str(package)), "the copy is asked"
    stale = [card["key"] for card in cards.read_cards(RESULTS) if cards.is_stale(card)] if cards_too else None
    to.send((stale, {part: behaviour.differs(part, probes.PROBES[part]()) for part in parts}))


def asked(package, *parts, cards_too=False):
    """Return the keys of stale cards, if asked for, and what differs in each part, of a copy of the package."""
    here, there = forks.SPAWN.Pipe(duplex=False)
    process = forks.process(answer, package, parts, cards_too, there)
    process.start()
    there.close()
    try:
        return here.recv()  # which ends where the process did
    finally:
        process.join()


def test_a_code_that_is_only_written_otherwise_marks_no_card(package):
    for (old, new), only in zip(HARMLESS, ("training.py", "training.py", "losses.py", None, None), strict=True):
        edit(package, old, new, only)
    (package / "core").mkdir()
    (moved,) = package.glob("metrics*")
    moved.rename(package / "core" / moved.name)
    moved_to = r"from vireid_lite.core import metrics\n\1"
    for path in package.parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace("vireid_lite.metrics", "vireid_lite.core.metrics")
        text = re.sub(r"^(from vireid_lite import .*?)\bmetrics(, |$)", moved_to, text, flags=re.M)
        path.write_text(re.sub(r"^from vireid_lite import $|, $", "", text, flags=re.M), encoding="utf-8")
    stale, found = asked(package, "scores", "victim/ide", "attack/uap", cards_too=True)
    assert (stale, found) == ([], {"scores": [], "victim/ide": [], "attack/uap": []})


@pytest.mark.parametrize("change", REAL)
def test_a_code_that_does_something_else_is_seen_by_its_part(package, change):
    part, old, new = REAL[change]
    edit(package, old, new)
    assert asked(package, part)[1][part]
