"""What a step of the bounded feature-level attack costs over a bare forward and backward of its batch, in one run.

`python benchmarks/feature_level.py` prints, for the lite network at 96x48 and AGW ResNet-50 at 288x144, the ratio of
medians of interleaved runs, and between which quarters the ratios of single rounds lie: for the whole step (linear
loss, learned heads, FSAM after blocks 0 and 4, SFM), and for one without heads, which shows what the heads add. The
learned step also differentiates with respect to the heads. A GPU is timed by the wall; a CPU by the time this process
had it, on one thread, so that a busy machine disturbs the ratio less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from attacks import bare, random_store

from vireid_lite import models
from vireid_lite.attacks import FeatureLevelAttack
from vireid_lite.attacks.frozen import frozen, images_of

WANTED = 1.4


def rounds(runs: dict[str, Callable[[int], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each function in every round; in a round each is called once, in turn."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, call in runs.items():
            started = clock()
            call(repeat)
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # the first two warm up
                seconds[name].append(clock() - started)
    return seconds


def measure(backbone: str, size: tuple[int, int], batch: int, repeats: int, device: str) -> float:
    """Print the cost of both steps; return that of the whole one."""
    torch.manual_seed(0)
    model = models.build("agw", 206, backbone).to(device).eval()
    store = random_store(4, 4, size)
    attacks = {
        "step": FeatureLevelAttack(form="linear", batch_size=batch),
        "without heads": FeatureLevelAttack(form="linear", batch_size=batch, attention="none", sfm=False),
    }

    runs = {}
    with frozen(model):
        for name, attack in attacks.items():
            problem, state = attack.begin(model, store, 0)
            runs[name] = partial(attack.step, model, problem, state, seed=0)
        rows = problem.batches.at(0)
        images, modality = images_of(store, rows, model), store.modalities[rows]
        seconds = rounds({"bare": lambda _: bare(model, images, modality), **runs}, repeats, device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{backbone} {size[0]}x{size[1]}, batch {len(rows)}: bare {median['bare']:.3f} s, {repeats} rounds")
    for name in attacks:
        ratios = [step / once for step, once in zip(seconds[name], seconds["bare"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        cost = median[name] / median["bare"]
        print(
            f"  {name} {median[name]:.3f} s: {cost:.2f} times bare; quarters of the rounds at {low:.2f} and {high:.2f}"
        )
    return median["step"] / median["bare"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=["lite", "resnet50"], help="one network alone")
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    if given.only != "resnet50":
        measure("lite", (96, 48), 32, given.repeats, given.device)
    if given.only != "lite":
        repeats = max(5, given.repeats // 3)
        cost = measure("resnet50", (288, 144), 8, repeats, given.device)
        print(f"  at most {WANTED} wanted: {'kept' if cost <= WANTED else 'not kept'}")


if __name__ == "__main__":
    main()
