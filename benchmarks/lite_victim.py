"""The lite victim against the former one, in one run: CPU-seconds of training, and clean validation scores.

`python benchmarks/lite_victim.py --out ROWS.json` trains both recipes for six seeds of each difficulty, on one thread
and in turn, and prints the ratio of CPU-seconds and the paired difference of rank-1 (mean of both directions, 150
validation people) with Student's interval over seeds. A row that ROWS.json has already is not trained again.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from scipy import stats

from vireid_lite.data.records import Modality
from vireid_lite.files import write_atomically
from vireid_lite.metrics.evaluation import evaluate
from vireid_lite.models import two_stream
from vireid_lite.training import train
from vireid_lite.victims import TIERS, tier_dataset, untrained

LITE = TIERS["lite"].recipe
FORMER = replace(LITE.settings, epochs=10, identities=16, optimiser="adamw", schedule="cosine", half=False)
FORMER = replace(FORMER, label_smoothing=0.1, augmentation=replace(FORMER.augmentation, erasing=0.2))
# A recipe, and the channels of the trunk's layers.
RECIPES = {"former": (replace(LITE, settings=FORMER), (32, 64, 128, 256)), "lite": (LITE, two_stream.LITE_WIDTHS)}


def measure(recipe: str, difficulty: str, seed: int) -> dict:
    """Return the CPU-seconds one victim takes and its rank-1 and mAP (%) for visible and for infrared queries."""
    chosen, two_stream.LITE_WIDTHS = RECIPES[recipe]
    dataset = tier_dataset("lite", difficulty=difficulty)
    torch.manual_seed(seed)
    model = untrained(chosen, dataset, False)
    started = time.process_time()
    train(model, dataset, chosen.settings, seed=seed)
    row = {"recipe": recipe, "difficulty": difficulty, "seed": seed, "cpu_seconds": time.process_time() - started}
    for query in Modality:
        scores = evaluate(model, dataset, query, trials=[dataset.val_trial(query)])
        row[query.name.lower()] = {"rank1": 100 * scores.rank1, "mAP": 100 * scores.mAP}
    return row


def compare(rows: list[dict], difficulty: str) -> None:
    """Print how quick victims stand to the former one's of the same seeds."""
    found = {(row["recipe"], row["seed"]): row for row in rows if row["difficulty"] == difficulty}
    seeds = [seed for recipe, seed in found if recipe == "former" and ("lite", seed) in found]
    if len(seeds) < 2:
        return
    rank1 = {key: (row["visible"]["rank1"] + row["infrared"]["rank1"]) / 2 for key, row in found.items()}
    gains = [rank1["lite", seed] - rank1["former", seed] for seed in seeds]
    cost = sum(found["lite", s]["cpu_seconds"] for s in seeds) / sum(found["former", s]["cpu_seconds"] for s in seeds)
    half = stats.t.ppf(0.975, len(seeds) - 1) * statistics.stdev(gains) / math.sqrt(len(seeds))
    former, lite = (statistics.mean(rank1[recipe, seed] for seed in seeds) for recipe in RECIPES)
    gain = statistics.mean(gains)
    print(f"{difficulty}, {len(seeds)} seeds: {cost:.3f} of the former one's CPU-seconds")
    print(f"  rank-1 {former:.1f} -> {lite:.1f}, {gain:+.1f} [{gain - half:+.1f}, {gain + half:+.1f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lite_victim.json"))
    parser.add_argument("--seeds", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    known = {(row["recipe"], row["difficulty"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for difficulty in ("easy", "hard"):
            for recipe in RECIPES:
                if (recipe, difficulty, seed) not in known:
                    rows.append(measure(recipe, difficulty, seed))
                    write_atomically(given.out, json.dumps(rows, indent=1).encode())
                    print(rows[-1], flush=True)
    for difficulty in ("easy", "hard"):
        compare(rows, difficulty)


if __name__ == "__main__":
    main()
