"""Today's lite victim against a quicker one, in one run: CPU-seconds of training, and clean validation scores.

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

TODAY = TIERS["lite"].recipe
QUICK = replace(TODAY.settings, epochs=4, identities=8, optimiser="muon", schedule="linear", half=True)
QUICK = replace(QUICK, label_smoothing=0.0, augmentation=replace(QUICK.augmentation, erasing=0.0))
# A recipe, and the channels of the trunk's layers.
RECIPES = {"today": (TODAY, (32, 64, 128, 256)), "quick": (replace(TODAY, settings=QUICK), (24, 48, 96, 192))}


def measure(recipe: str, difficulty: str, seed: int) -> dict:
    """Return the CPU-seconds one victim takes and its rank-1 and mAP (%) for visible and for infrared queries."""
    chosen, two_stream.LITE_WIDTHS = RECIPES[recipe]
    dataset = tier_dataset("lite", difficulty=difficulty, val_identities=150)
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
    """Print how quick victims stand to today's of the same seeds."""
    found = {(row["recipe"], row["seed"]): row for row in rows if row["difficulty"] == difficulty}
    seeds = [seed for recipe, seed in found if recipe == "today" and ("quick", seed) in found]
    if len(seeds) < 2:
        return
    rank1 = {key: (row["visible"]["rank1"] + row["infrared"]["rank1"]) / 2 for key, row in found.items()}
    gains = [rank1["quick", seed] - rank1["today", seed] for seed in seeds]
    cost = sum(found["quick", s]["cpu_seconds"] for s in seeds) / sum(found["today", s]["cpu_seconds"] for s in seeds)
    half = stats.t.ppf(0.975, len(seeds) - 1) * statistics.stdev(gains) / math.sqrt(len(seeds))
    today, quick = (statistics.mean(rank1[recipe, seed] for seed in seeds) for recipe in RECIPES)
    gain = statistics.mean(gains)
    print(f"{difficulty}, {len(seeds)} seeds: {cost:.3f} of today's CPU-seconds")
    print(f"  rank-1 {today:.1f} -> {quick:.1f}, {gain:+.1f} [{gain - half:+.1f}, {gain + half:+.1f}]")


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
