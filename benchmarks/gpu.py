"""Run tier `standard` on one GPU for one seed within a time budget, and measure what its steps cost.

`benchmarks/gpu.sh SEED OUT` renders the crops on every core, measures throughput, trains the victim, attacks it with
every row of `book/campaigns/standard.toml` and prints the tables; easy first, hard with the time that is left. The step
that runs into the end is stopped; what is finished is kept, and a second call goes on from there. OUT receives one run
card for each row and gpu-sSEED.json: the steps with seconds and peak memory, and ratios of medians of interleaved runs:

- a training step, with and without loading its images, against the bare step of torchvision's ResNet-50 in the same
  precision, batch, optimiser and shape, that is with layer 4 at its input's resolution as AGW has it;
- a crafting step of CMPS (two gradients) and of the feature-level attack (one) against bare forward and backward passes
  to the input, of that ResNet-50 and of the victim itself;
- what each precision of `Compute` costs.

`--toy` runs the same code at toy size on whatever device there is, to see that it works; its numbers mean nothing.
"""

import argparse
import copy
import gc
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from vireid_lite import models
from vireid_lite.attacks import CMPS, FeatureLevelAttack, UniversalAttack
from vireid_lite.attacks.frozen import frozen, images_of, training_store
from vireid_lite.data import ImageStore, Modality, PKSampler, cached
from vireid_lite.errors import InputError
from vireid_lite.files import exclusive, write_atomically
from vireid_lite.losses import TRIPLETS
from vireid_lite.machine import PRECISIONS, Compute, device_name, peak_memory_mib, pick_device, versions
from vireid_lite.metrics.evaluation import distinct
from vireid_lite.models.two_stream import Batch
from vireid_lite.study import tables
from vireid_lite.study.campaign import Run, read_campaign
from vireid_lite.study.cards import is_stale, read_card
from vireid_lite.study.workers import run_one
from vireid_lite.training import _batch, contiguous_labels, optimiser_for
from vireid_lite.victims import tier_recipe

CAMPAIGN = Path(__file__).resolve().parents[1] / "book" / "campaigns" / "standard.toml"
AT_LEAST, AT_MOST = {"training step over bare": 0.85}, {"crafting step over bare": 1.15}
TOY = {"num_identities": 12, "images_per_modality": 4, "val_identities": 2, "test_identities": 6, "size": [32, 16]}


class OutOfTime(BaseException):
    """The budget is used up; no `except Exception` on the way may take it for a failure."""


def runs_of(seed: int, toy: bool) -> list[Run]:
    """Return the campaign's runs of one seed, those of a difficulty together, shrunk to seconds for a toy run."""
    runs = read_campaign(CAMPAIGN)
    runs = [replace(run, seed=seed) for run in runs if run.seed == runs[0].seed]
    if toy:
        runs = [_toy(run) for run in runs if not run.attack or not run.attack.tied or run.attack.name == "sign-noise"]
    return sorted(runs, key=difficulty_of)


def _toy(run: Run) -> Run:
    attack = run.attack
    if attack and attack.name != "fgsm":
        attack = replace(attack, steps=max(1, 2 // (getattr(attack, "gradients_per_step", 1) or 1)))
    compute = run.compute if torch.cuda.is_available() else Compute()  # few CPUs compute with bf16
    recipe = tier_recipe(run.tier, backbone="lite", epochs=1, identities=4)
    more = {"identities": run.identities and 8, "recipe": recipe, "compute": compute}
    return replace(run, kind="toy", dataset={**run.dataset, **TOY}, attack=attack, **more)


def difficulty_of(run: Run) -> str:
    """Return "easy" or "hard", which sort in this order."""
    return run.dataset["difficulty"]


def label(run: Run) -> str:
    """Return a run as the list of steps names it."""
    attack = run.attack and tables.label(run.configuration["attack"]) + (" tied" if run.attack.tied else "")
    return f"{difficulty_of(run)} {attack or 'victim'}"


class Session:
    """The steps of one call, each timed and noted in one JSON file; what that file holds already is kept."""

    def __init__(self, path: Path, device: torch.device, facts: dict) -> None:
        self.path, self.device, self.failed = path, device, False
        found = json.loads(path.read_text()) if path.exists() else {}
        if any(found.get(name) != fact for name, fact in facts.items()):
            found.pop("throughput", None)  # another machine's
        self.notes = {"throughput": {}, "steps": {}, **found, **facts}

    def step(self, name: str, work: Callable[[], object]) -> None:
        """Run one step and note how it went; one that fails does not cost the others."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started, end = time.time(), "stopped by the budget"
        try:
            work()
            end = "done"
        except Exception as error:
            end = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
            self.failed = True
            traceback.print_exc()
        finally:
            took, memory = time.time() - started, peak_memory_mib(self.device)
            self.notes["steps"][name] = {"seconds": round(took, 1), "peak_memory_mib": round(memory), "end": end}
            self.write()
            print(f"{name}: {took:.1f} s, peak memory {memory:,.0f} MiB, {end}")

    def write(self) -> None:
        write_atomically(self.path, (json.dumps(self.notes, indent=1) + "\n").encode())


@contextmanager
def alarm(seconds: float):
    """Raise OutOfTime in the block once so many seconds have passed."""

    def ring(number, frame):
        raise OutOfTime

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def render(run: Run, workers: int) -> None:
    """Put every crop that a difficulty's runs ask for into the cache; threads of `cached` hand them to processes."""
    dataset, reader = copy.copy(run.open()), copy.copy(run.open())
    reader.train, reader.val, reader.test = [], [], []  # it travels with every record
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawned, torch.set_num_threads, (1,)) as pool:
        dataset.read = lambda record: pool.submit(reader.read, record).result()
        for records in (dataset.train, *(distinct(dataset.trials(modality), "query") for modality in Modality)):
            cached(dataset, records, False)
        # What the universal attacks learn from is a part of the training crops, in a file of its own.
        training_store(dataset, 8 if run.kind == "toy" else 200)


def measure(variants: dict[str, Callable[[int], None]], steps: int, rounds: int, device: torch.device) -> dict:
    """Return for each variant its median milliseconds a step and the quarters.

    A variant is called with a number of steps; a round calls each once, between two waits for the device.
    """

    def seconds(run: Callable[[int], None], count: int) -> float:
        started = time.perf_counter()
        run(count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / count

    for run in variants.values():
        seconds(run, steps // 2 + 1)  # warms up
    times = [{name: 1e3 * seconds(run, steps) for name, run in variants.items()} for _ in range(rounds)]
    quarters = {name: statistics.quantiles([each[name] for each in times], n=4) for name in variants}
    return {name: {"ms": median, "ms_low": low, "ms_high": high} for name, (low, median, high) in quarters.items()}


def bare_network(toy: bool, classes: int, device: torch.device) -> torch.nn.Module:
    """Return torchvision's ResNet-50 (toy: of four blocks), with a layer 4 that keeps its resolution as AGW's does."""
    resnet = partial(torchvision.models.ResNet, BasicBlock, [1] * 4) if toy else torchvision.models.resnet50
    model = resnet(num_classes=classes)
    for module in model.layer4[0].modules():
        if isinstance(module, torch.nn.Conv2d):
            module.stride = (1, 1)
    return model.to(device, memory_format=torch.channels_last)


def descent(optimiser: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Callable[[int], None]:
    """Return training steps down a loss."""

    def steps(count: int) -> None:
        for _ in range(count):
            found = loss()
            optimiser.zero_grad(set_to_none=True)
            found.backward()
            optimiser.step()

    return steps


class Bench:
    """What the throughput of a run is measured on: its data, its recipe, and one batch."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.recipe, self.settings, self.compute = run.recipe, run.recipe.settings, run.compute
        self.device, self.toy = device, run.kind == "toy"
        self.store = cached(run.open(), run.open().train, False)
        self.labels = contiguous_labels(self.store.records)
        self.classes = int(self.labels.max()) + 1
        sampler = PKSampler(self.store.records, self.settings.identities, self.settings.images)
        self.rows = itertools.chain.from_iterable(sampler.epoch(epoch) for epoch in itertools.count())
        self.generator = torch.Generator().manual_seed(0)
        self.batch = self.load()

    def load(self) -> tuple:
        """Return the images, modality and labels of the next step, as training makes them."""
        drawn = self.settings.augmentation, self.generator, self.device
        return _batch(self.store, self.labels, next(self.rows), *drawn)

    def victim(self) -> torch.nn.Module:
        torch.manual_seed(0)
        model = models.build(self.recipe.model, self.classes, self.recipe.backbone, **self.recipe.options)
        return model.to(self.device, memory_format=torch.channels_last)

    def bare(self, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return the bare network's output in the run's precision, as float32."""
        bf16 = self.compute.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            return model(images).float()

    def trained_bare(self) -> Callable[[int], None]:
        """Return bare training steps of torchvision's network."""
        model = bare_network(self.toy, self.classes, self.device).train()
        images, _, target = self.batch
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        return descent(optimiser, lambda: F.cross_entropy(self.bare(model, images), target))

    def trained(self, compute: Compute, loading: bool = False) -> Callable[[int], None]:
        """Return steps of `training.train`, with their images loaded or with the same ones each time."""
        model, smoothing = self.victim().train(), self.settings.label_smoothing
        triplet = TRIPLETS[self.recipe.triplet] if self.recipe.triplet else None

        def loss() -> torch.Tensor:
            batch = self.load() if loading else self.batch
            return sum(model.objective(Batch(*batch, smoothing, triplet, [], self.generator)).losses.values())

        return compute.on(model, self.device)(descent(optimiser_for(model, self.settings), loss))

    def training(self, steps: int, rounds: int) -> dict:
        """Return training against the bare step, the share of loading, and the price of each precision."""
        gpu, own = self.device.type == "cuda", "step without loading"
        others = [name for name in PRECISIONS if name != self.compute.precision and (gpu or name != "tf32")]
        variants = {
            "bare step": self.trained_bare(),
            own: self.trained(self.compute),
            "training step": self.trained(self.compute, loading=True),
            **{f"{own}, {name}": self.trained(Compute(name)) for name in others},
        }
        found = measure(variants, steps, rounds, self.device)
        ms = {name: value["ms"] for name, value in found.items()}
        ratios = {
            # Throughputs: the bare step's time over ours.
            "training step over bare": ms["bare step"] / ms["training step"],
            "training step without loading over bare": ms["bare step"] / ms[own],
            "loading's share of a training step": 1 - ms[own] / ms["training step"],
            # Times: each precision's step over that of the run's own.
            **{f"cost of {name}": ms[f"{own}, {name}"] / ms[own] for name in others},
        }
        return judged(ratios, found)

    def crafting(self, steps: int, rounds: int) -> dict:
        """Return the steps of two universal attacks against bare passes of the same images."""
        model, count = self.victim().eval(), 8 if self.toy else 32
        # Whole identities stand together, so the first crops hold both modalities of a few.
        store = ImageStore(self.store.images[: 20 * count], self.store.records[: 20 * count])
        bare = bare_network(self.toy, self.classes, self.device).eval()
        attacks = {"CMPS": CMPS(batch_size=count), "feature-level": FeatureLevelAttack(form="linear", batch_size=count)}

        def craft(attack: UniversalAttack, problem, state: dict, count: int) -> None:
            for step in range(count):
                attack.step(model, problem, state, step, 0)

        def slope(network: Callable[[torch.Tensor, Modality], torch.Tensor], count: int) -> None:
            for modality, images in list(batches.items()) * count:
                x = images.clone().requires_grad_()
                torch.autograd.grad(network(x, modality).sum(), x)

        with frozen(model), frozen(bare), self.compute.on(model, self.device):
            begun = {name: attack.begin(model, store, 0) for name, attack in attacks.items()}
            batches = {m: images_of(store, begun["CMPS"][0].batches[m].at(0), model) for m in Modality}
            runs = {f"{name} step": partial(craft, attack, *begun[name]) for name, attack in attacks.items()}
            runs["two bare passes"] = partial(slope, lambda x, modality: self.bare(bare, x))
            runs["two passes of the victim"] = partial(slope, model.embed)
            found = measure(runs, steps, rounds, self.device)
        ms = {name: value["ms"] for name, value in found.items()}
        bare_pass, own_pass = ms["two bare passes"], ms["two passes of the victim"]
        ratios = {
            "crafting step over bare": ms["CMPS step"] / bare_pass,
            "crafting step over the victim's own passes": ms["CMPS step"] / own_pass,
            "feature-level step over bare": 2 * ms["feature-level step"] / bare_pass,
            "feature-level step over the victim's own pass": 2 * ms["feature-level step"] / own_pass,
        }
        return judged(ratios, found)


def judged(ratios: dict[str, float], found: dict) -> dict:
    """Return ratios with whether each that has a target keeps it, beside what was measured."""
    kept = {name: ratios[name] >= least for name, least in AT_LEAST.items() if name in ratios}
    kept |= {name: ratios[name] <= most for name, most in AT_MOST.items() if name in ratios}
    return {"ratios": ratios, "kept": kept, "measured": found}


def print_tables(cards: list[dict]) -> None:
    """Print every attack's scores in percent, rounded to 8 bits, beside clean, chance and minimum."""
    for card in cards:
        if not card["attack"]:
            print(f"\n{card['dataset']['difficulty']}, victim without attack, in percent:")
            for direction, scores in card["scores"].items():
                rank1, chance = 100 * scores["rank1"], 100 * scores["chance"]["rank1"]["high"]
                print(f"  {direction}: rank-1 {rank1:.1f}, mAP {100 * scores['mAP']:.1f}; chance (up to {chance:.1f})")
    rows = tables.seed_rows([card for card in cards if card["attack"]])
    columns = ["attack", "infrared", "rank1 clean", "rank1", "rank1 difference", "rank1 low", "rank1 high", "chance"]
    for (difficulty, direction), part in rows.groupby(["difficulty", "direction"]) if len(rows) else ():
        print(f"\n{difficulty}, {direction}, in percent (chance: rank-1; minimum: mAP):")
        print(part[[*columns, "mAP clean", "mAP", "minimum"]].to_string(index=False, float_format="{:.1f}".format))


def everything(session: Session, runs: list[Run], out: Path, toy: bool) -> None:
    """Do every step, as long as there is time."""
    throughput = session.notes["throughput"]

    def bench(part: str) -> None:
        throughput[part] = getattr(Bench(runs[0], session.device), part)(*((1, 2) if toy else (6, 6)))

    for difficulty, group in itertools.groupby(runs, difficulty_of):
        cards = [(run, out / run.card_name()) for run in group]
        todo = [run for run, card in cards if not card.exists() or is_stale(read_card(card))]
        parts = [part for part in ("training", "crafting") if part not in throughput]
        if todo or parts:
            session.step(f"{difficulty} render", partial(render, cards[0][0], 1 if toy else os.cpu_count()))
        for part in parts:
            session.step(f"throughput of {part}", partial(bench, part))
            gc.collect()  # a dozen networks, which the rows that follow need not share the memory with
        for run in todo:
            session.step(label(run), partial(run_one, run, out, str(session.device)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("_build/gpu"), help="folder for cards and gpu-sSEED.json")
    parser.add_argument("--minutes", type=float, default=9.5, help="budget of this call")
    parser.add_argument("--only", choices=["easy", "hard"], help="one difficulty alone")
    parser.add_argument("--toy", action="store_true", help="toy size, on any device")
    given = parser.parse_args(arguments)
    begun, device = time.time(), pick_device("auto")
    try:
        if device.type != "cuda" and not given.toy:
            raise InputError("gpu.py: no GPU is here; --toy runs the same code at toy size on a CPU")
        if not 0 < given.minutes < math.inf or given.seed < 0:
            raise InputError("gpu.py: --minutes must be above 0, and --seed a whole number from 0 up")
        runs = [run for run in runs_of(given.seed, given.toy) if given.only in (None, difficulty_of(run))]
        machine = {"device": device_name(device), "cores": os.cpu_count(), "versions": versions()}
        facts = {"machine": machine, "seed": given.seed, "toy": given.toy, "compute": runs[0].compute.describe()}
        session = Session(given.out / f"gpu-s{given.seed}.json", device, facts)
        print(f"{len(runs)} runs: {json.dumps(facts)}")
        with exclusive(given.out, wait=False), alarm(60 * given.minutes):
            everything(session, runs, given.out, given.toy)
    except OutOfTime:
        print("the budget is used up; call again with the same arguments to go on")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    cards = {label(run): given.out / run.card_name() for run in runs}
    made = [card for card in cards.values() if card.exists()]
    print_tables([read_card(card) for card in made])
    for part, found in session.notes["throughput"].items():
        print(f"\n{part}:")
        for name, value in found["ratios"].items():
            wanted = {**AT_LEAST, **AT_MOST}.get(name)
            verdict = f" ({wanted} wanted, {'kept' if found['kept'][name] else 'not kept'})" if wanted else ""
            print(f"  {name} {value:.3f}{verdict}")
    session.notes["missing"] = [name for name, card in cards.items() if card not in made]
    session.write()
    print(f"\n{len(made)} of {len(runs)} cards in {given.out}; {session.path}")
    print(f"{time.time() - begun:.0f} s of {60 * given.minutes:.0f} s; missing: {session.notes['missing']}")
    return int(session.failed)


if __name__ == "__main__":
    sys.exit(main())
