"""The lite victim against others, in one run: CPU-seconds of training, and clean scores.

`python benchmarks/lite_victim.py --out ROWS.json` trains, for six seeds of each difficulty, on one thread and in turn,
the former recipe and today's, and for three seeds today's with erasing and smoothed labels. It prints the ratio of
CPU-seconds and the paired difference of rank-1 (mean of both directions) with Student's interval over seeds, on 150
validation people, who decide, and on the test people. A row that ROWS.json has already is not trained again.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from vireid_lite.data.records import Modality
from vireid_lite.files import write_atomically
from vireid_lite.metrics.evaluation import evaluate
from vireid_lite.models import two_stream
from vireid_lite.study.effects import student
from vireid_lite.training import train
from vireid_lite.victims import TIERS, tier_dataset, untrained

LITE, WIDTHS = TIERS["lite"].recipe, two_stream.LITE_WIDTHS
AUGMENTED = {"label_smoothing": 0.1, "augmentation": replace(LITE.settings.augmentation, erasing=0.2)}
FORMER = {"epochs": 10, "identities": 16, "optimiser": "adamw", "schedule": "cosine", "half": False, **AUGMENTED}
# What is changed of lite's settings, the channels of the trunk's layers, and how many seeds it takes.
RECIPES = {"former": (FORMER, (32, 64, 128, 256), 6), "lite": ({}, WIDTHS, 6), "augmented": (AUGMENTED, WIDTHS, 3)}
DIFFICULTIES = ("easy", "hard")


def measure(name: str, difficulty: str, seed: int) -> dict:
    """Return the CPU-seconds one victim takes and its rank-1 (%), mean of both directions, by split."""
    changes, two_stream.LITE_WIDTHS, _ = RECIPES[name]
    dataset, recipe = (
        tier_dataset("lite", difficulty=difficulty),
        replace(LITE, settings=replace(LITE.settings, **changes)),
    )
    torch.manual_seed(seed)
    model = untrained(recipe, dataset, False)
    started = time.process_time()
    train(model, dataset, recipe.settings, seed=seed)
    row = {"recipe": name, "difficulty": difficulty, "seed": seed, "cpu_seconds": time.process_time() - started}
    for split, trials in (("val", lambda query: [dataset.val_trial(query)]), ("test", dataset.trials)):
        scores = [evaluate(model, dataset, query, trials=trials(query)).rank1 for query in Modality]
        row[split] = 100 * statistics.mean(scores)
    return row


def compare(rows: list[dict], one: str, other: str, difficulty: str) -> None:
    """Print how victims of one recipe stand to another's of the same seeds."""
    found = {(row["recipe"], row["seed"]): row for row in rows if row["difficulty"] == difficulty}
    seeds = [seed for recipe, seed in found if recipe == one and (other, seed) in found]
    if len(seeds) < 2:
        return
    cost = [sum(found[recipe, seed]["cpu_seconds"] for seed in seeds) for recipe in (one, other)]
    print(f"{difficulty}, {one} to {other}, {len(seeds)} seeds: {cost[1] / cost[0]:.3f} of the CPU-seconds")
    for split in ("val", "test"):
        gains = [found[other, seed][split] - found[one, seed][split] for seed in seeds]
        was, now = (statistics.mean(found[recipe, seed][split] for seed in seeds) for recipe in (one, other))
        gain, low, high = student(gains)[0]
        print(f"  rank-1, {split}: {was:.1f} -> {now:.1f}, {gain:+.1f} [{low:+.1f}, {high:+.1f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lite_victim.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    known = {(row["recipe"], row["difficulty"], row["seed"]) for row in rows}
    for seed in range(max(seeds for *_, seeds in RECIPES.values())):
        for difficulty in DIFFICULTIES:
            for name, (*_, seeds) in RECIPES.items():
                if seed < seeds and (name, difficulty, seed) not in known:
                    rows.append(measure(name, difficulty, seed))
                    write_atomically(given.out, json.dumps(rows, indent=1).encode())
                    print(rows[-1], flush=True)
    for difficulty in DIFFICULTIES:
        compare(rows, "former", "lite", difficulty)
        compare(rows, "augmented", "lite", difficulty)


if __name__ == "__main__":
    main()
