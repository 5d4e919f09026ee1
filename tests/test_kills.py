"""SIGKILL at random moments: what was finished is kept, the rest resumes, and no half file is taken for a whole one."""

import itertools
import json
import os
import random
import signal
import time
from functools import lru_cache
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from safetensors.torch import load

from vireid_lite import models
from vireid_lite.attacks import CMPS, descent, load_perturbation
from vireid_lite.data import Dataset, Modality, Record, cached, load_dataset
from vireid_lite.study.cards import read_card, read_cards
from vireid_lite.study.grids import read_grid
from vireid_lite.study.workers import run_campaign, run_grid
from vireid_lite.training import TrainSettings
from vireid_lite.victims import Recipe, load_or_train

KILLS = 10
STEPS, NOTE_EVERY = 60, 4  # of an attack
DATA = {"size": (32, 16), "num_identities": 8, "images_per_modality": 4, "val_identities": 4, "test_identities": 4}
RECIPE = Recipe(
    backbone="lite",
    settings=TrainSettings(epochs=14, identities=4, images=2, optimiser="adamw", learning_rate=1e-3, schedule="cosine"),
)
CAMPAIGN = """
seeds = [0, 1, 2, 3, 4, 5]

[[run]]
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, test_identities = 4 }
train = { epochs = 2, identities = 4, images = 2 }
"""
GRID = """
seeds = [0]
[data.tiny.any]
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, test_identities = 4 }
[victims.AGW]
any = { train = { epochs = 2, identities = 4, images = 2 } }
[victims.PCB]
any = { victim = { model = "pcb" }, train = { epochs = 2, identities = 4, images = 2 } }
[attacks.CMPS]
any = { attack = { name = "cmps", gradients = 8 } }
[attacks.retrained]
any = { modified = { loss = "quadruple", epochs = 1 } }
[[table]]
name = "white box"
data = ["tiny"]
victims = ["AGW", "PCB"]
attacks = ["none", "CMPS"]
[[table]]
name = "retrained"
data = ["tiny"]
victims = ["AGW"]
attacks = ["retrained"]
[[table]]
name = "transfer"
data = ["tiny"]
victims = ["PCB"]
surrogates = ["AGW"]
attacks = ["CMPS"]
"""


class SlowFrames(Dataset):
    """Crops that take a millisecond each and are their own number."""

    def __init__(self):
        super().__init__("slow", None, (32, 16), {})
        self.train = [Record(i, i, 1, Modality.VISIBLE) for i in range(4000)]

    def read(self, record):
        time.sleep(0.001)
        return np.full((32, 16, 3), record.source % 251, np.uint8)


def _nothing(cache: str, folder: str) -> None:
    """Start and end."""


def _train(cache: str, folder: str) -> None:
    os.environ["VIREID_CACHE"] = cache
    torch.set_num_threads(1)
    load_or_train(RECIPE, load_dataset("synthetic", **DATA), folder=Path(folder), device="cpu", progress=False)


def _cache(cache: str, _: str) -> None:
    os.environ["VIREID_CACHE"] = cache
    data = SlowFrames()
    cached(data, data.train, progress=False)


def _campaign(cache: str, folder: str) -> None:
    os.environ["VIREID_CACHE"] = cache
    torch.set_num_threads(1)
    run_campaign(Path(folder).parent / "campaign.toml", Path(folder), device="cpu", progress=False)


def _bench(cache: str, folder: str) -> None:
    os.environ["VIREID_CACHE"] = cache
    torch.set_num_threads(1)
    run_grid(read_grid(Path(folder).parent / "grid.toml").runs, Path(folder), device="cpu", progress=False)


def _attack(cache: str, folder: str) -> None:
    os.environ["VIREID_CACHE"] = cache
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.build("agw", 8, "lite").eval()
    descent.NOTE_EVERY = NOTE_EVERY
    data = load_dataset("synthetic", **DATA)
    found = CMPS(steps=STEPS, batch_size=8).fit(model, data, state_path=Path(folder) / "state.pt")
    found.save(Path(folder) / "perturbation.safetensors")


def run(target, cache: Path, folder: Path, kill_when=None, rest: float = 0.0) -> bool:
    """Run the target in a process of its own, killed `rest` seconds after `kill_when()` holds; return if it ended."""
    process = forks.process(target, str(cache), str(folder))
    process.start()
    while kill_when and process.is_alive() and not kill_when():
        process.join(0.02)
    if kill_when:
        process.join(rest)
        process.kill()
    process.join()
    assert process.exitcode in (0, *[-signal.SIGKILL] * bool(kill_when))
    return process.exitcode == 0


def kill_until_done(target, tmp_path: Path, progress, steps: int, kills: int = KILLS) -> list:
    """Run the target whole for comparison, then kill it several times and let it end; return progress after each.

    A kill comes at a random moment of the step after one that was noted; every third at such a moment of the start,
    when what is there is read.

    Args:
        progress: returns how many steps are noted.
        steps: how many the whole has.
    """
    run(_nothing, tmp_path, tmp_path)  # the server imports torch now, not while the clock runs
    started = time.perf_counter()
    assert run(target, tmp_path / "whole-cache", tmp_path / "whole")
    step = (time.perf_counter() - started) / steps
    dice, seen = random.Random(1), [0]
    for number in range(kills):
        further = (lambda: True) if number % 3 == 2 else lambda: progress() > seen[-1]
        ended = run(target, tmp_path / "cache", tmp_path / "killed", further, dice.random() * step)
        seen.append(progress())
        if ended:
            break
    assert run(target, tmp_path / "cache", tmp_path / "killed")
    assert len(set(seen)) > 2, f"the kills came too late to test anything: {seen}"
    return seen


@lru_cache(maxsize=1)  # it is asked for fifty times a second
def _history(note: Path, written: int) -> list[dict]:
    return torch.load(note, weights_only=True)["history"]


def steps_noted(note: Path) -> int:
    """Return how many steps a note holds, 0 where there is none."""
    try:
        return len(_history(note, note.stat().st_mtime_ns))
    except FileNotFoundError:  # not yet, or removed as the last thing of all
        return 0


def half_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name.endswith((".part", ".tmp"))]


def never_falls(seen: list) -> bool:
    return all(later >= earlier for earlier, later in itertools.pairwise(seen))


def test_training_ends_with_the_bits_of_an_uninterrupted_run(tmp_path):
    def epochs_noted():
        if (tmp_path / "killed" / "victim.safetensors").exists():
            return RECIPE.settings.epochs
        return steps_noted(tmp_path / "killed" / "state.pt")

    seen = kill_until_done(_train, tmp_path, epochs_noted, RECIPE.settings.epochs)
    assert never_falls(seen), "an epoch that was noted was lost"
    killed, whole = ((tmp_path / name / "victim.safetensors").read_bytes() for name in ("killed", "whole"))
    killed, whole = load(killed), load(whole)
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    assert not half_files(tmp_path / "killed")


def test_caching_loses_no_finished_row_and_decodes_right(tmp_path):
    def rows():
        notes = list((tmp_path / "cache").rglob("rows.json"))
        return int(notes[0].read_text()) if notes else 0

    assert never_falls(kill_until_done(_cache, tmp_path, rows, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
        data = SlowFrames()
        data.read = lambda record: pytest.fail("a finished cache was decoded again")
        images = cached(data, data.train, progress=False).images
    assert (images == (np.arange(4000) % 251).astype(np.uint8)[:, None, None, None]).all()
    assert not half_files(tmp_path)


def test_a_campaign_repeats_and_loses_no_run(tmp_path):
    (tmp_path / "campaign.toml").write_text(CAMPAIGN)
    written: dict[str, int] = {}

    def cards():
        for path in (tmp_path / "killed").glob("*.json"):
            assert json.loads(path.read_text()), "a half card"
            # A run that is repeated would replace its card.
            assert written.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
        return len(written)

    kill_until_done(_campaign, tmp_path, cards, 6)
    assert {card["seed"] for card in read_cards(tmp_path / "killed")} == set(range(6))
    assert cards() == 6
    assert not half_files(tmp_path)


def test_a_grid_killed_five_times_ends_with_the_cards_of_a_whole_one(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    seen = kill_until_done(_bench, tmp_path, lambda: len(list((tmp_path / "killed").glob("*.json"))), 6, kills=5)
    assert never_falls(seen)
    whole, killed = (
        {(path.name): read_card(path) for path in (tmp_path / name).glob("*.json")} for name in ("whole", "killed")
    )
    assert len(whole) == 6
    assert whole.keys() == killed.keys()
    timed = ("seconds", "memory", "date", "history")
    for name, card in whole.items():
        fields = [field for field in card if not any(word in field for word in timed)]
        assert {field: card[field] for field in fields} == {field: killed[name][field] for field in fields}
    assert not half_files(tmp_path)


def test_an_attack_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    def noted():
        if (tmp_path / "killed" / "perturbation.safetensors").exists():
            return STEPS
        return steps_noted(tmp_path / "killed" / "state.pt")

    seen = kill_until_done(_attack, tmp_path, noted, STEPS // NOTE_EVERY)
    assert never_falls(seen)
    whole, killed = (load_perturbation(tmp_path / name / "perturbation.safetensors") for name in ("whole", "killed"))
    assert torch.equal(whole.delta, killed.delta)
    assert whole.history == killed.history
    assert not half_files(tmp_path / "killed")
