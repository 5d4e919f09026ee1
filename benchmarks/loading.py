"""Cached loading with augmentation against the training step it feeds: ResNet-50, 288x144, 64 images a batch.

Prints images per second of both, their ratio, and the resident memory that reading a four times larger set adds.
Usage: python benchmarks/loading.py [--identities 64] [--steps 3] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from vireid_lite import losses, models
from vireid_lite.data import Augmentation, Modality, PKSampler, SyntheticVI, cached
from vireid_lite.machine import device_name, pick_device
from vireid_lite.training import contiguous_labels

SIZE = (288, 144)


def batches(identities: int, device: torch.device):
    """Yield augmented batches (images, modality, labels) of AGW's shape without end."""
    data = SyntheticVI(identities, 4, size=SIZE)
    store = cached(data, data.train)
    labels = torch.from_numpy(contiguous_labels(store.records))
    sampler, augmentation = PKSampler(store.records), Augmentation(erasing=0.5)
    generator = torch.Generator().manual_seed(0)
    epoch = 0
    while True:
        for rows in sampler.epoch(epoch):
            parts = [augmentation(store.batch(rows[m], device), m, generator) for m in Modality]
            chosen = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
            yield torch.cat(parts), store.modalities[torch.cat(chosen)], labels[torch.cat(chosen)].to(device)
        epoch += 1


def rate(step, device: torch.device, repeats: int) -> float:
    """Return images per second: the median of some repeats after one to warm up."""
    seconds = []
    for repeat in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        count = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:
            seconds.append((time.perf_counter() - started) / count)
    return 1 / statistics.median(seconds)


def resident_mib(identities: int) -> float:
    """Return the resident memory of a fresh process that reads a cached set of this size: the least of three.

    One process differs from the next by about 100 MiB, which is the allocator's doing, whatever the size of the set.
    """
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import loading; loading.read({identities})"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(4)
    ]
    return min(runs[1:])  # the first one fills the cache


def read(identities: int) -> None:
    """Read 60 batches of a cached set and print the memory this process holds, the map's shared pages left out."""
    feed = batches(identities, torch.device("cpu"))
    for _ in range(60):
        next(feed)
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(int(anonymous.split()[1]) / 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device("auto")
    feed = batches(options.identities, device)
    loading = rate(lambda: sum(len(next(feed)[0]) for _ in range(5)), device, max(5, options.steps))

    model = models.build("agw", options.identities, "resnet50").to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images, modality, labels = next(feed)

    def train_step() -> int:
        output = model(images, modality)
        loss = losses.identity_loss(output.logits, labels)
        loss = loss + losses.weighted_regularised_triplet(output.pooled, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return len(images)

    training = rate(train_step, device, options.steps)
    small, large = (resident_mib(options.identities * factor) for factor in (1, 4))
    result = {
        "device": device_name(device),
        "loading_images_per_second": round(loading, 1),
        "training_images_per_second": round(training, 1),
        "ratio": round(loading / training, 1),
        "anonymous_mib_small_set": round(small),
        "anonymous_mib_four_times_larger": round(large),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
