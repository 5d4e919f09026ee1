"""What a CMPS step costs, as ratios in one run: against a bare forward and backward, and against the released step.

`python benchmarks/attacks.py` prints, for the lite network at 96x48 and AGW ResNet-50 at 288x144:

- a paper-mode step over two bare forward plus backward passes to the input at the same batch and network (a step has
  two), medians of interleaved runs;
- images per second of paper mode over those of the released step, each distinct image counted once. The released step
  is written here as it was published, with `create_graph` and the clean features computed in each step.

and how resident memory grows between the 20th and the last of many steps.
"""

import argparse
import resource
import statistics
import time

import numpy as np
import torch
from torch.nn import functional

from vireid_lite import models
from vireid_lite.attacks import CMPS
from vireid_lite.attacks.frozen import frozen, images_of
from vireid_lite.data import ImageStore, Modality, Record


def random_store(identities: int, images: int, size: tuple[int, int]) -> ImageStore:
    """Return crops of noise; what they show does not matter to the clock."""
    records = [
        Record(index, index // images, 1, modality) for modality in Modality for index in range(identities * images)
    ]
    crops = np.random.default_rng(0).integers(0, 256, (len(records), *size, 3), dtype=np.uint8)
    return ImageStore(crops, records)


def bare(model, images, modality) -> None:
    """Go forward and backward to the input once."""
    images = images.clone().requires_grad_()
    model.embed(images, modality).sum().backward()


def released_step(model, first, second, state, eps) -> None:
    """Make the published step: two passes, the first with `create_graph`, through the visible stem, 206 centroids."""
    delta, momentum, banks = state["delta"].requires_grad_(), state["momentum"], state["banks"]

    def loss(images, delta, bank):
        with torch.no_grad():
            clean = model(images, Modality.VISIBLE).pooled
            scores = (clean / clean.norm(dim=1, keepdim=True)) @ bank.T
        far, near = bank[scores.argmin(1)], bank[scores.argmax(1)]
        features = model((images + delta).clamp(0, 1), Modality.VISIBLE).pooled
        return 10 * functional.triplet_margin_loss(features, far, near, 0.5)

    one = loss(first, delta, banks[0])
    (gradient,) = torch.autograd.grad(one, delta, create_graph=True)
    ahead = (delta - eps / 10 * (momentum + gradient / gradient.abs().sum()).sign()).clamp(-eps, eps)
    two = loss(second, ahead, banks[1])
    (total,) = torch.autograd.grad(one + two, delta)
    state["momentum"] = momentum + total / total.abs().sum()
    state["delta"] = (delta - eps / 10 * state["momentum"].sign()).clamp(-eps, eps).detach()


def interleaved(runs: dict, repeats: int) -> dict[str, float]:
    """Return the median seconds of each function, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, call in runs.items():
            started = time.perf_counter()
            call(repeat)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(backbone: str, size: tuple[int, int], batch: int, repeats: int, device: str) -> None:
    torch.manual_seed(0)
    model = models.build("agw", 206, backbone).to(device).eval()
    store = random_store(52, 4, size)
    paper = CMPS(batch_size=batch)
    with frozen(model):
        problem, state = paper.begin(model, store, 0)
        pool = images_of(store, np.arange(2 * batch), model)
        banks = [problem.centroids[:206].detach() for _ in range(2)]
        old = {"delta": torch.zeros(3, *size, device=device), "momentum": torch.zeros(3, *size, device=device)}
        old["banks"] = banks
        batches = [images_of(store, problem.batches[modality].at(0), model) for modality in Modality]
        grey = pool[:batch].mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        median = interleaved(
            {
                "paper": lambda step: paper.step(model, problem, state, step, 0),
                "bare": lambda step: [bare(model, images, m) for images, m in zip(batches, Modality, strict=True)],
                "released": lambda step: released_step(model, grey, pool[:batch], old, paper.eps),
            },
            repeats,
        )
    cost, speed = median["paper"] / median["bare"], 2 * median["released"] / median["paper"]
    print(
        f"{backbone} {size[0]}x{size[1]}, batch {batch}: paper-mode step {median['paper']:.3f} s over two bare passes "
        f"{median['bare']:.3f} s: {cost:.3f} (at most 1.15 wanted)\n  images per second of paper mode "
        f"{2 * batch / median['paper']:.1f} over released {batch / median['released']:.1f}: {speed:.2f} (1.8 wanted)"
    )


def memory(steps: int, device: str) -> None:
    """Print how much resident memory grew while most of the steps were made."""
    model = models.build("agw", 206, "lite").to(device).eval()
    peak = {}

    def watch(step, _):
        if step in (19, steps - 1):
            peak[step] = (
                torch.cuda.max_memory_allocated() / 2**20
                if device == "cuda"
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            )

    CMPS(steps=steps, batch_size=8).fit(model, random_store(12, 4, (96, 48)), watch=watch)
    print(f"peak memory after 20 steps {peak[19]:.0f} MiB, after {steps} {peak[steps - 1]:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=["lite", "resnet50"], help="one network alone")
    given = parser.parse_args()
    memory(400, given.device)  # first: a process never gives its peak back
    if given.only != "resnet50":
        measure("lite", (96, 48), 32, given.repeats, given.device)
    if given.only != "lite":
        measure("resnet50", (288, 144), 8, max(5, given.repeats // 3), given.device)


if __name__ == "__main__":
    main()
