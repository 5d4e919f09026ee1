"""Run tier `standard` on one GPU for one seed within a time budget, and measure what its steps cost.

`benchmarks/gpu.sh SEED OUT` renders the crops on every core, measures throughput, trains the victim, attacks it with
every row of `book/campaigns/standard.toml` and prints the tables; easy first, hard with the time that is left. Steps
come in the order of their importance. One that would not fit by its estimate is skipped and said so, one that runs into
the end is stopped; what is finished is kept, and a second call goes on from there. OUT receives one run card for each
row and gpu-sSEED.json: the steps with seconds and peak memory, and these ratios, each of medians of interleaved runs:

- a training step, with and without loading its images, against the bare step of torchvision's ResNet-50 in the same
  precision, batch, optimiser and shape, that is with layer 4 at its input's resolution as AGW has it; and stock;
- a crafting step of CMPS (two gradients) and of the feature-level attack (one) against bare forward and backward passes
  to the input, of that ResNet-50 and of the victim itself;
- what each precision of `Compute` costs: float32, TF32 and bf16.

`--toy` runs the same code at toy size on whatever device there is, to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from vireid_lite import models
from vireid_lite.attacks import CMPS, IMAGE_SPECIFIC, FeatureLevelAttack, UniversalAttack
from vireid_lite.attacks.frozen import frozen, images_of, training_store
from vireid_lite.data import Dataset, ImageStore, Modality, PKSampler, Record, cached
from vireid_lite.errors import InputError
from vireid_lite.files import cache_folder, exclusive, write_atomically
from vireid_lite.losses import TRIPLETS
from vireid_lite.machine import PRECISIONS, Compute, device_name, peak_memory_mib, pick_device, versions
from vireid_lite.metrics.evaluation import distinct
from vireid_lite.models.two_stream import Batch
from vireid_lite.study.campaign import Run, read_campaign
from vireid_lite.study.cards import is_stale, read_card
from vireid_lite.study.run import run_one
from vireid_lite.study.tables import seed_rows
from vireid_lite.training import _batch, contiguous_labels, optimiser_for
from vireid_lite.victims import tier_recipe

CAMPAIGN = Path(__file__).resolve().parents[1] / "book" / "campaigns" / "standard.toml"
AT_LEAST, AT_MOST = {"training step over bare": 0.85}, {"crafting step over bare": 1.15}
TOY = {"num_identities": 12, "images_per_modality": 4, "val_identities": 2, "test_identities": 6, "size": [32, 16]}
# Before anything is measured: crops a second a core renders, and seconds around the steps of a run.
RENDERED, AROUND = 50, 5.0


class OutOfTime(BaseException):
    """The budget is used up; no `except Exception` on the way may take it for a failure."""


def runs_of(seed: int, toy: bool) -> list[Run]:
    """Return the campaign's runs of one seed, those of a difficulty together, shrunk for a toy run."""
    runs = read_campaign(CAMPAIGN)
    runs = [replace(run, seed=seed) for run in runs if run.seed == runs[0].seed]
    if toy:
        runs = [_toy(run) for run in runs if not run.attack or not run.attack.tied or run.attack.name == "sign-noise"]
    return sorted(runs, key=lambda run: ("easy", "hard").index(run.dataset["difficulty"]))


def _toy(run: Run) -> Run:
    """Return a run shrunk to seconds."""
    attack = run.attack
    if isinstance(attack, UniversalAttack):
        attack = replace(attack, steps=max(1, 2 // (attack.gradients_per_step or 1)))
    elif attack and attack.name != "fgsm":
        attack = replace(attack, steps=2)
    # bf16 is what few CPUs compute with.
    compute = run.compute if torch.cuda.is_available() else Compute()
    recipe = tier_recipe(run.tier, backbone="lite", epochs=1, identities=4)
    more = {"identities": run.identities and 8, "recipe": recipe, "compute": compute}
    return replace(run, kind="toy", dataset={**run.dataset, **TOY}, attack=attack, **more)


def label(run: Run) -> str:
    """Return a run as the list of steps names it."""
    attack = run.configuration["attack"] or {}
    parts = [attack.get(key) for key in ("name", "mode", "form")] + ["tied" if attack.get("tied") else None]
    return " ".join(part for part in (run.dataset["difficulty"], *parts, None if attack else "victim") if part)


def read_notes(path: Path) -> dict:
    """Return what an earlier call noted, or nothing where there was none."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise InputError(f"{path} is no notes of this script; move it elsewhere") from None


class Session:
    """The steps of one call: each timed, bounded and noted in one JSON file."""

    def __init__(self, path: Path, device: torch.device, deadline: float, facts: dict) -> None:
        self.path, self.device, self.deadline = path, device, deadline
        found = read_notes(path)
        of_this_machine = ("machine", "toy", "compute")
        self.notes = {"throughput": {}, "steps": {}, "victims": {}, **found, **facts}
        # What was measured here for another seed need not be measured again.
        for other in [path, *sorted(path.parent.glob("gpu-s*.json"))]:
            seen = read_notes(other)
            alike = all(seen.get(name) == facts[name] for name in of_this_machine)
            self.notes["throughput"] = (alike and seen.get("throughput")) or {}
            if self.notes["throughput"]:
                break
        self.left_out: list[str] = []
        self.failed = False
        # How much longer than estimated a kind of step took, last time.
        self.slack: dict[str, float] = {}

    def left(self) -> float:
        return self.deadline - time.time()

    def step(self, name: str, work: Callable[[], object], estimate: float = 0.0, kind: str = "") -> object:
        """Run one step unless it would not fit, note how it went, and return what it returns (None: it did not run)."""
        estimate *= self.slack.get(kind, 1.0)
        if estimate > self.left():
            self.leave_out(f"{name}: about {estimate:.0f} s, {max(0.0, self.left()):.0f} s are left")
            return None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started, result, end = time.time(), None, "done"
        try:
            result = work()
        except OutOfTime:
            end = "stopped"
            self.leave_out(f"{name}: stopped by the budget; the next call goes on from its last note")
            raise
        except Exception as error:  # one row that fails must not cost the others
            end = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.failed = True
            traceback.print_exc()
        finally:
            took = time.time() - started
            if kind and end == "done":
                self.slack[kind] = max(1.0, self.slack.get(kind, 1.0) * took / estimate)
            memory = peak_memory_mib(self.device)
            self.notes["steps"][name] = {"seconds": round(took, 1), "peak_memory_mib": round(memory), "end": end}
            self.write()
            print(f"[{self.left():4.0f} s left] {name}: {took:.1f} s, peak memory {memory:,.0f} MiB, {end}")
        return result

    def leave_out(self, what: str) -> None:
        self.left_out.append(what)
        print(f"skipped {what}")

    def write(self) -> None:
        write_atomically(self.path, (json.dumps(self.notes, indent=1) + "\n").encode())


@contextmanager
def alarm(seconds: float):
    """Raise OutOfTime in the block once so many seconds have passed."""

    def ring(number, frame):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def reading(dataset: Dataset, read: Callable[[Record], np.ndarray]):
    """Let the data set read its crops elsewhere inside the block; what is cached is the same."""
    dataset.read = read
    try:
        yield
    finally:
        del dataset.read


@contextmanager
def one_thread():
    """Let the processes started in the block use one thread each; this one has long counted its own."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def render(run: Run, workers: int) -> int:
    """Put every crop that a difficulty's runs ask for into the cache; return how many were rendered for it.

    `data.cached` decodes on threads, of which a renderer in Python uses one at a time; so each thread hands its crop to
    a process.
    """
    dataset = run.open()
    tests = [distinct(dataset.trials(modality), "query") for modality in Modality]
    reader = copy.copy(dataset)
    reader.train, reader.val, reader.test = [], [], []  # it travels with every record
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    with pool, one_thread(), reading(dataset, lambda record: pool.submit(reader.read, record).result()):
        store = cached(dataset, dataset.train, False)
        for records in tests:
            cached(dataset, records, False)
    # What the attacks learn from is a part of the training crops, in a file of its own.
    with reading(dataset, lambda record: store.images[store.row[record]]):
        training_store(dataset, identities_of(run))
    return len(dataset.train) + sum(map(len, tests))


def identities_of(run: Run) -> int:
    """Return how many training identities the universal attacks of the campaign learn from."""
    return 8 if run.kind == "toy" else 200


def measure(variants: dict[str, Callable[[int], None]], steps: int, rounds: int, device: torch.device) -> dict:
    """Return for each variant its median milliseconds a step, the quarters, and its peak memory above what was held.

    A variant is called with a number of steps; a round calls each once, between two waits for the device.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: dict[str, dict] = {}
    for name, run in variants.items():
        held = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run(steps // 2 + 1)  # warms up
        wait()
        found[name] = {"peak_memory_mib": round(peak_memory_mib(device) - held)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in seconds:
            run = variants[name]
            wait()
            started = time.perf_counter()
            run(steps)
            wait()
            seconds[name].append((time.perf_counter() - started) / steps)
    for name, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        milliseconds = {"ms": statistics.median(values), "ms_low": low, "ms_high": high}
        found[name] = {part: round(1e3 * value, 3) for part, value in milliseconds.items()} | found[name]
    return found


def bare_network(toy: bool, classes: int, same_shape: bool, device: torch.device) -> torch.nn.Module:
    """Return torchvision's ResNet as it comes, or with a layer 4 that keeps its resolution."""
    model = (
        torchvision.models.ResNet(BasicBlock, [1] * 4, classes)
        if toy
        else torchvision.models.resnet50(num_classes=classes)
    )
    for module in model.layer4[0].modules():
        if same_shape and isinstance(module, torch.nn.Conv2d):
            module.stride = (1, 1)
    return model.to(device, memory_format=torch.channels_last)


class Bench:
    """What the throughput of a run is measured on: its data, its recipe, and one batch."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.dataset, self.recipe = run.open(), run.recipe
        self.run, self.device, self.toy = run, device, run.kind == "toy"
        self.compute, self.settings = run.compute, self.recipe.settings
        self.store = cached(self.dataset, self.dataset.train, False)
        self.labels = contiguous_labels(self.store.records)
        self.classes = int(self.labels.max()) + 1
        named = zip(self.store.records, self.labels, strict=True)
        records = [Record(r.source, int(label), r.camera, r.modality) for r, label in named]
        sampler = PKSampler(records, self.settings.identities, self.settings.images)
        self.rows = itertools.chain.from_iterable(sampler.epoch(epoch) for epoch in itertools.count())
        self.generator = torch.Generator().manual_seed(0)
        self.batch = self.load()

    def load(self) -> tuple:
        """Return the images, modality and labels of the next step, as training makes them."""
        augmentation = self.settings.augmentation
        return _batch(self.store, self.labels, next(self.rows), augmentation, self.generator, self.device)

    def victim(self) -> torch.nn.Module:
        torch.manual_seed(0)
        model = models.build(self.recipe.model, self.classes, self.recipe.backbone, **self.recipe.options)
        return model.to(self.device, memory_format=torch.channels_last)

    def trained(self, compute: Compute, loading: bool = False) -> Callable[[int], None]:
        """Return steps of `training.train`, with their images loaded or with the same ones each time."""
        model = self.victim().train()
        optimiser, smoothing = optimiser_for(model, self.settings), self.settings.label_smoothing
        triplet = TRIPLETS[self.recipe.triplet] if self.recipe.triplet else None

        def steps(count: int) -> None:
            with compute.on(model, self.device):
                for _ in range(count):
                    batch = self.load() if loading else self.batch
                    found = model.objective(Batch(*batch, smoothing, triplet, [], self.generator))
                    optimiser.zero_grad(set_to_none=True)
                    sum(found.losses.values()).backward()
                    optimiser.step()

        return steps

    def bare(self, same_shape: bool) -> Callable[[int], None]:
        """Return bare training steps of torchvision's network in the run's precision."""
        model = bare_network(self.toy, self.classes, same_shape, self.device).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        images, _, target = self.batch

        def steps(count: int) -> None:
            for _ in range(count):
                with self.autocast():
                    logits = model(images)
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(logits.float(), target).backward()
                optimiser.step()

        return steps

    def autocast(self):
        bf16 = self.compute.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def training(self, steps: int, rounds: int) -> dict:
        """Return training against the bare step, the share of loading, and the price of each precision."""

        def load(count: int) -> None:
            for _ in range(count):
                self.load()

        gpu, own = self.device.type == "cuda", self.compute.precision
        choices = {name: Compute(name) for name in PRECISIONS if name != own and (gpu or name != "tf32")}
        variants = {
            "bare step, same shape": self.bare(True),
            "bare step, stock": self.bare(False),
            "step without loading": self.trained(self.compute),
            "training step": self.trained(self.compute, loading=True),
            "loading": load,
            **{f"step without loading, {name}": self.trained(choice) for name, choice in choices.items()},
        }
        found = measure(variants, steps, rounds, self.device)
        ms = {name: value["ms"] for name, value in found.items()}
        ratios = {
            # Throughputs: the bare step's time over ours.
            "training step over bare": ms["bare step, same shape"] / ms["training step"],
            "training step without loading over bare": ms["bare step, same shape"] / ms["step without loading"],
            "training step over stock ResNet": ms["bare step, stock"] / ms["training step"],
            "loading's share of a training step": 1 - ms["step without loading"] / ms["training step"],
        }
        # Times: each choice's step over that of the run's own.
        own_step = "step without loading"
        costs = {name: f"{own_step}, {name}" for name in choices}
        ratios |= {f"cost of {name}": ms[step] / ms[own_step] for name, step in costs.items()}
        batch = len(self.batch[0])
        return {"batch": batch, "images_per_second": batch / ms["training step"] * 1e3, **rounded(ratios, found)}

    def crafting(self, steps: int, rounds: int) -> dict:
        """Return the steps of two universal attacks against bare passes of the same images, and how fast it embeds."""
        model, count = self.victim().eval(), 32 if not self.toy else 8
        # Whole identities stand together, so the first crops hold both modalities of a few.
        store = ImageStore(self.store.images[: 20 * count], self.store.records[: 20 * count])
        attacks = {"CMPS": CMPS(batch_size=count), "feature-level": FeatureLevelAttack(form="linear", batch_size=count)}
        bare = bare_network(self.toy, self.classes, True, self.device).eval()
        with frozen(model), frozen(bare), self.compute.on(model, self.device):
            runs: dict[str, Callable[[int], None]] = {}
            for name, attack in attacks.items():
                problem, state = attack.begin(model, store, 0)

                def craft(count: int, attack=attack, problem=problem, state=state) -> None:
                    for step in range(count):
                        attack.step(model, problem, state, step, 0)

                runs[f"{name} step"] = craft
                if name == "CMPS":
                    batches = {m: images_of(store, problem.batches[m].at(0), model) for m in Modality}

            def slope(network: Callable[[torch.Tensor, Modality], torch.Tensor], steps: int) -> None:
                for _ in range(steps):
                    for modality, images in batches.items():
                        x = images.clone().requires_grad_()
                        torch.autograd.grad(network(x, modality).sum(), x)

            def through_bare(x: torch.Tensor, modality: Modality) -> torch.Tensor:
                with self.autocast():
                    return bare(x).float()

            many = images_of(store, np.arange(min(256, len(store))), model)

            def embed(steps: int) -> None:
                with torch.no_grad():
                    for _ in range(steps):
                        model.embed(many, Modality.VISIBLE)

            runs |= {
                "two bare passes": lambda steps: slope(through_bare, steps),
                "two passes of the victim": lambda steps: slope(model.embed, steps),
                "embedding": embed,
            }
            found = measure(runs, steps, rounds, self.device)
        ms = {name: value["ms"] for name, value in found.items()}
        ratios = {
            "crafting step over bare": ms["CMPS step"] / ms["two bare passes"],
            "crafting step over the victim's own passes": ms["CMPS step"] / ms["two passes of the victim"],
            "feature-level step over bare": 2 * ms["feature-level step"] / ms["two bare passes"],
            "feature-level step over the victim's own pass": (
                2 * ms["feature-level step"] / ms["two passes of the victim"]
            ),
        }
        rate = len(many) / ms["embedding"] * 1e3
        return {"batch": len(batches[Modality.VISIBLE]), "embedded_per_second": rate, **rounded(ratios, found)}


def rounded(ratios: dict[str, float], found: dict) -> dict:
    """Return ratios with whether each that has a target keeps it, beside what was measured."""
    kept = {name: ratios[name] >= least for name, least in AT_LEAST.items() if name in ratios}
    kept |= {name: ratios[name] <= most for name, most in AT_MOST.items() if name in ratios}
    return {"ratios": {name: round(value, 3) for name, value in ratios.items()}, "kept": kept, "measured": found}


def seconds_of(run: Run, throughput: dict) -> tuple[float, str]:
    """Return an estimate of a run's seconds from the measured throughput, and the kind of run that learns from it.

    A victim's is that of one epoch, of no kind: a training that is stopped goes on at its last epoch.
    """
    training, crafting = throughput.get("training"), throughput.get("crafting")
    if not training or not crafting:
        return 0.0, ""
    dataset = run.open()
    tests = [len(distinct(dataset.trials(modality), "query")) for modality in Modality]
    scoring = 4 * max(tests) / crafting["embedded_per_second"] + AROUND
    if not run.attack:
        images = 2 * max(sum(r.modality == m for r in dataset.train) for m in Modality)
        return images / training["images_per_second"] + scoring, ""
    gradient = crafting["measured"]["two passes of the victim"]["ms"] / 2e3  # of one batch
    if run.attack.name in IMAGE_SPECIFIC:
        steps = 1 if run.attack.name == "fgsm" else run.attack.steps
        return steps * sum(tests) / crafting["batch"] * gradient + scoring + AROUND, "image-specific"
    learned = len(dataset.train) * identities_of(run) / len({r.identity for r in dataset.train})
    passes = run.attack.steps * run.attack.gradients_per_step
    return passes * gradient + 4 * learned / crafting["embedded_per_second"] + scoring, "universal"


def machine(device: torch.device) -> dict:
    """Return what the numbers were measured on."""
    found = {"device": device_name(device), "cores": os.cpu_count(), "versions": versions(), "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory_mib": properties.total_memory // 2**20, "multiprocessors": properties.multi_processor_count}
        found |= {"capability": list(torch.cuda.get_device_capability(device)), "cudnn": torch.backends.cudnn.version()}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
            found["driver"] = said.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            found["driver"] = "unknown: nvidia-smi did not answer"
    return found


def print_tables(cards: Iterable[dict]) -> None:
    """Print every attack's scores in percent, rounded to 8 bits, beside clean, chance and minimum."""
    cards = list(cards)
    for card in cards:
        if not card["attack"]:
            print(f"\n{card['dataset']['difficulty']}, victim without attack, in percent:")
            for direction, scores in card["scores"].items():
                chance = scores["chance"]["rank1"]
                print(
                    f"  {direction}: rank-1 {100 * scores['rank1']:.1f}, mAP {100 * scores['mAP']:.1f}, mINP "
                    f"{100 * scores['mINP']:.1f}; chance rank-1 {100 * chance['mean']:.1f} (up to "
                    f"{100 * chance['high']:.1f}), mAP {100 * scores['chance']['mAP']['mean']:.1f}"
                )
    rows = seed_rows([card for card in cards if card["attack"]])
    if rows.empty:
        return
    rows["difference [95 %]"] = [
        f"{row['rank1 difference']:+.1f} [{row['rank1 low']:+.1f}, {row['rank1 high']:+.1f}]"
        for _, row in rows.iterrows()
    ]
    columns = [
        "attack",
        "infrared",
        "rank1 clean",
        "rank1",
        "difference [95 %]",
        "chance",
        "mAP clean",
        "mAP",
        "minimum",
    ]
    for (difficulty, direction), part in rows.groupby(["difficulty", "direction"]):
        print(f"\n{difficulty}, {direction}, in percent (chance: rank-1; minimum: mAP):")
        print(part[columns].to_string(index=False, float_format=lambda value: f"{value:.1f}"))


def kept_victims() -> set[str]:
    """Return the folders of the cache that hold a trained victim."""
    return {path.parent.name for path in (cache_folder() / "victims").glob("*/victim.safetensors")}


def everything(session: Session, runs: list[Run], out: Path, toy: bool) -> None:
    """Do every step there is time for."""
    workers = 1 if toy else os.cpu_count() or 1
    steps, rounds = (1, 2) if toy else (6, 6)
    throughput, victims = session.notes["throughput"], session.notes["victims"]

    def bench(part: str, estimate: float) -> None:
        def work() -> None:
            throughput[part] = getattr(Bench(runs[0], session.device), part)(steps, rounds)

        if part not in throughput:
            session.step(f"throughput of {part}", work, estimate)
            gc.collect()  # a dozen networks, which the rows that follow need not share the memory with

    def crafted_and_scored(run: Run) -> None:
        before = kept_victims()
        run_one(run, out, str(session.device))
        if not run.attack and len(new := kept_victims() - before) == 1:
            victims[run.dataset["difficulty"]] = new.pop()

    def hindrance(run: Run, victim: Run) -> str | None:
        """Say why an attack cannot be made: one victim is trained once, as two trainings on a GPU differ."""
        if not run.attack:
            return None
        if not (out / victim.card_name()).exists():
            return "its victim is not there"
        if victims.get(run.dataset["difficulty"], "") in {"", *kept_victims()}:
            return None
        return "its victim is not in VIREID_CACHE any more, and a new training would differ; choose another OUT"

    for number, (difficulty, group) in enumerate(itertools.groupby(runs, lambda run: run.dataset["difficulty"])):
        victim, *attacked = group
        todo = []
        for run in (victim, *attacked):
            card = out / run.card_name()
            if not card.exists() or is_stale(read_card(card)):
                todo.append(run)
        if not todo and (number or {"training", "crafting"} <= set(throughput)):
            print(f"{difficulty}: every card is there")
            continue
        dataset = victim.open()
        crops = len(dataset.train) + sum(len(dataset.trials(modality)[0].query) for modality in Modality)
        rendered = functools.partial(render, victim, workers)
        if not session.step(f"{difficulty} render", rendered, crops / RENDERED / workers, "render"):
            continue
        if number == 0:
            bench("training", 30)
            bench("crafting", 30)
        for run in todo:
            if reason := hindrance(run, victim):
                session.leave_out(f"{label(run)}: {reason}")
                continue
            session.step(label(run), functools.partial(crafted_and_scored, run), *seconds_of(run, throughput))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("_build/gpu"), help="folder for cards and gpu-sSEED.json")
    parser.add_argument("--minutes", type=float, default=9.5, help="budget of this call")
    parser.add_argument("--only", choices=["easy", "hard"], help="one difficulty alone")
    parser.add_argument("--toy", action="store_true", help="toy size, on any device")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # when gpu.sh began, seconds since 1970
    given = parser.parse_args(arguments)
    begun = given.started or time.time()
    try:
        device = pick_device("auto")
        if device.type != "cuda" and not given.toy:
            raise InputError("gpu.py: no GPU is here; --toy runs the same code at toy size on a CPU")
        if not 0 < given.minutes < math.inf or given.seed < 0:
            raise InputError("gpu.py: --minutes must be above 0, and --seed a whole number from 0 up")
        runs = runs_of(given.seed, given.toy)
        runs = [run for run in runs if given.only in (None, run.dataset["difficulty"])]
        compute = runs[0].compute.describe()
        facts = {"machine": machine(device), "seed": given.seed, "toy": given.toy, "compute": compute}
        session = Session(given.out / f"gpu-s{given.seed}.json", device, begun + 60 * given.minutes, facts)
        print(", ".join(f"{name} {value}" for name, value in facts["machine"].items() if name != "versions"))
        print(f"torch {torch.__version__}, seed {given.seed}, {len(runs)} runs, compute {facts['compute']}")
        with exclusive(given.out, wait=False), alarm(session.left()):
            everything(session, runs, given.out, given.toy)
    except OutOfTime:
        print("the budget is used up; call again with the same arguments to go on")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    cards = [given.out / run.card_name() for run in runs]
    missing = [label(run) for run, card in zip(runs, cards, strict=True) if not card.exists()]
    cards = [card for card in cards if card.exists()]
    print_tables(map(read_card, cards))
    for part, found in session.notes["throughput"].items():
        print(f"\n{part}:")
        for name, value in found["ratios"].items():
            wanted = {**AT_LEAST, **AT_MOST}.get(name)
            verdict = f" ({wanted} wanted, {'kept' if found['kept'][name] else 'not kept'})" if wanted else ""
            print(f"  {name} {value:.3f}{verdict}")
    size = sum(card.stat().st_size for card in cards) / 2**20
    print(f"\n{len(cards)} of {len(runs)} cards in {given.out}, {size:.2f} MiB; {session.path}")
    print(f"{time.time() - begun:.0f} s of {60 * given.minutes:.0f} s")
    session.notes["missing"] = missing
    session.write()
    if missing:
        print(f"still to be run: {', '.join(missing)}")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
