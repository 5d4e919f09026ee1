"""The export of the attack lab: what its page needs to run a victim, its perturbations and a ranking by itself.

One folder: `manifest.json` says what lies where in `weights.bin`, `perturbations.bin` and `features.bin`, all
deflated; `sprite.png` has the crops, `scores.json` the scores over the whole test, `still.png` one state for a page
without scripts. The victim is `models.rounded`, and its perturbations are learned for it as it is after rounding.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.attacks import UniversalPerturbation, build_attack, load_perturbation
from vireid_lite.attacks.budget import tie_infrared
from vireid_lite.attacks.frozen import training_store, weights_hash
from vireid_lite.behaviour import made_with
from vireid_lite.chapters import plots
from vireid_lite.data import Dataset, Modality, Record, cached
from vireid_lite.errors import InputError
from vireid_lite.files import ATTACK_CODE, cache_folder, source_hash, stable_hash, write_atomically
from vireid_lite.metrics.bootstrap import paired_bootstrap
from vireid_lite.metrics.evaluation import Evaluation, direction_name, embed_store, evaluate, ranked
from vireid_lite.models.rounded import convolutions, fold, rounded
from vireid_lite.models.two_stream import NonLocal, TwoStream

FORMAT = 1  #: of the folder; the page refuses another
ATTACKS = ("sign-noise", "uap", "cmps", "feature-level")
STOPS = (2, 4, 8, 16)  #: eps in 255ths for which a perturbation is learned
BEFORE = ("nothing", "mean", "chain")  #: what stands before the network
PEOPLE, QUERIES, COLUMNS = 30, 12, 12  #: people of the gallery, queries a spectrum among them, crops in a sprite's row
LARGEST = 2_500_000  #: bytes of the folder

Deltas = dict[Modality, Tensor]  #: what is added to crops of each spectrum, (3, H, W)


def chain(images: Tensor) -> Tensor:
    """Return images (N, 3, H, W) halved and doubled twice, bilinearly: the "circuitous scaling" of the joint defence.

    Source: finger-monkey/LTA_and_joint-defence, 220x100 to 110x50 and back, twice; it is linear.
    """
    full = images.shape[-2:]
    for size in 2 * [tuple(side // 2 for side in full), tuple(full)]:
        images = F.interpolate(images, size=size, mode="bilinear")
    return images


@contextmanager
def standing_before(model: TwoStream, what: str) -> Iterator[None]:
    """Let "mean" (of the channels of infrared images), "chain" or "nothing" stand before a network inside the block."""

    def change(_: nn.Module, arguments: tuple) -> tuple:
        images, modality = arguments
        return (chain(images) if what == "chain" else tie_infrared(images, modality)), modality

    handle = None if what == "nothing" else model.stages[0].register_forward_pre_hook(change)
    try:
        yield
    finally:
        if handle:
            handle.remove()


class Pack:
    """Arrays one after the other, each at a multiple of 4 bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, values: Tensor, kind: str = "float32") -> int:
        """Append values and return the byte at which they begin."""
        place = len(self.data)
        self.data += values.detach().cpu().contiguous().numpy().astype(kind, casting="same_kind").tobytes()
        self.data += bytes(-len(self.data) % 4)
        return place


def network(model: TwoStream, pack: Pack) -> dict:
    """Return what the page builds the network from, whose weights are put into `pack`; levels as [kernel][in][out]."""
    convs = {}
    for name, (conv, norm) in convolutions(model).items():
        found, shape = fold(conv, norm), conv.weight.shape
        floats = {"scale": pack.put(found.scale), "bias": pack.put(found.bias)}
        levels = pack.put(found.levels.permute(2, 3, 1, 0), "int8")
        sizes = {"in": shape[1], "out": shape[0], "kernel": shape[2], "stride": conv.stride[0]}
        convs[name] = {**sizes, **floats, "levels": levels}
    blocks = []
    for name, block in model.named_modules():
        parts = {key.removeprefix(f"{name}."): conv for key, conv in convs.items() if key.startswith(f"{name}.")}
        if name.startswith("stages.") and name.count(".") == 2 and not name.startswith("stages.0."):
            blocks.append({"kind": "non-local" if isinstance(block, NonLocal) else "residual", **parts})
    stems, neck = {name: convs[f"stages.0.{name}"] for name in ("visible", "infrared")}, model.bottleneck
    factor = neck.weight / (neck.running_var + neck.eps).sqrt()
    shift = neck.bias - neck.running_mean * factor
    pixels = {name: getattr(model.stages[0], name).flatten().tolist() for name in ("mean", "std")}
    tail = {"gem_p": model.gem_p, "factor": pack.put(factor), "shift": pack.put(shift), "dimension": len(factor)}
    return {**pixels, "stems": stems, "blocks": blocks, **tail}


def drawn(dataset: Dataset, seed: int) -> tuple[dict[Modality, list[Record]], dict[Modality, list[Record]]]:
    """Return the queries and the gallery of each spectrum: people of the test, and crops of them, drawn by the seed.

    A person's query is another crop than the one of that spectrum in the gallery, where there are two.
    """
    rng, trial = np.random.default_rng(seed), dataset.trials(Modality.VISIBLE)[0]
    own: dict[tuple[int, Modality], list[Record]] = {}
    for record in [*trial.query, *trial.gallery]:
        own.setdefault((record.identity, record.modality), []).append(record)
    people = sorted({identity for identity, _ in own if all((identity, m) in own for m in Modality)})
    if len(people) < QUERIES:
        raise InputError(f"lab: {len(people)} people in the test; {QUERIES} are needed for the queries")
    people = rng.permutation(people)[:PEOPLE].tolist()
    queries, gallery = {}, {}
    for m in Modality:
        shuffled = [[own[p, m][place] for place in rng.permutation(len(own[p, m]))] for p in people]
        gallery[m], queries[m] = [one[0] for one in shuffled], [one[-1] for one in shuffled[:QUERIES]]
    return queries, gallery


def learned(model: TwoStream, dataset: Dataset, seed: int, gradients: int, identities: int) -> Iterator[tuple]:
    """Yield (attack, tied, what it was learned through, eps in 255ths, deltas by spectrum) of every perturbation.

    Learned once: a killed export takes up what it has, from the cache. Noise has, in each spectrum, the l2 norm of the
    CMPS perturbation of the same eps, and is drawn the same whatever stands before the network.
    """
    store, (height, width) = training_store(dataset, identities, False), dataset.size
    made_by = [weights_hash(model), store.fingerprint(), seed, source_hash(*ATTACK_CODE)]

    def fit(name: str, before: str, **options: object) -> Deltas:
        attack = build_attack(name, gradients=None if name == "sign-noise" else gradients, **options)
        path = cache_folder() / "lab" / f"{stable_hash([attack.describe(), before, *made_by])}.safetensors"
        if not path.exists():
            print(f"learning {name}, eps {255 * attack.eps:.0f}/255, tied {attack.tied}, through {before}", flush=True)
            with standing_before(model, before):
                attack.fit(model, store, seed).save(path)
        made, empty = load_perturbation(path), torch.zeros(1, 3, height, width)
        each = {m: made.shift(empty, torch.tensor([m])) for m in Modality}
        return {m: tie_infrared(delta.reshape(3, height, width), m, made.tied) for m, delta in each.items()}

    for tied in (False, True):
        for stop in STOPS:
            options = {"eps": stop / 255, "tied": tied}
            found = {(name, way): fit(name, way, **options) for name in ATTACKS[1:] for way in ("nothing", "chain")}
            noise, like = fit("sign-noise", "nothing", **options), found["cmps", "nothing"]
            matched = {m: delta * like[m].norm() / delta.norm() for m, delta in noise.items()}
            for (name, way), deltas in [(("sign-noise", "nothing"), matched), *found.items()]:
                yield name, tied, way, stop, deltas


def in_8_bits(deltas: Deltas, stop: int, pack: Pack) -> tuple[UniversalPerturbation, dict]:
    """Return a perturbation as the page has it, levels of eps/127, and where it lies: one channel where all agree."""
    eps, exact, places = stop / 255, {}, {}
    for m, delta in deltas.items():
        levels = (delta * (127 / eps)).round().to(torch.int8)
        channels = 1 if torch.equal(levels, levels[:1].expand_as(levels)) else 3
        exact[m] = levels.float() * np.float32(eps / 127)
        if m and channels == 3 and torch.equal(exact[m], exact[Modality.VISIBLE]):
            places["infrared"] = places["visible"]
        else:
            at = pack.put(levels[:channels].permute(1, 2, 0), "int8")
            places[m.name.lower()] = {"at": at, "channels": channels}
    return UniversalPerturbation(exact, eps, False, [], made_by={"name": "lab"}), places


def sprite(dataset: Dataset, records: Sequence[Record]) -> bytes:
    """Return the crops as one PNG of `COLUMNS` columns, row by row, black where there are none."""
    height, width = dataset.size
    sheet = np.zeros((-(-len(records) // COLUMNS) * height, COLUMNS * width, 3), np.uint8)
    for cell, record in enumerate(records):
        top, left = cell // COLUMNS * height, cell % COLUMNS * width
        sheet[top : top + height, left : left + width] = dataset.read(record)
    drawn_on = io.BytesIO()
    Image.fromarray(sheet).save(drawn_on, "PNG", optimize=True)
    return drawn_on.getvalue()


def plain(scored: Evaluation) -> dict[str, float]:
    """Return rank-1, mAP and mINP of one direction, in percent."""
    return {name: round(100 * getattr(scored, name), 2) for name in ("rank1", "mAP", "mINP")}


def directions(found: Callable[[Modality], Any]) -> dict[str, Any]:
    """Return something by the name of each direction."""
    return {direction_name(m): found(m) for m in Modality}


def export(
    victim: tuple[TwoStream, dict, Dataset], out_dir: Path, *, seed=0, gradients=120, identities=200, device="cpu"
) -> dict:
    """Write the lab's folder, `manifest.json` last, and return the manifest.

    Args:
        victim: a lite AGW network, its card, and the rendered set it is tested on, as `study.run.victim_and_data` has
            them.
        seed: draws people and crops, and what the attacks draw.
        gradients, identities: batches, and training people, that each perturbation is learned from.

    Raises InputError for other data than rendered people, another network, or a folder that gets too large.
    """
    model, card, dataset = victim
    for name, of in ((dataset.name, "crops"), (card.get("dataset", {}).get("name"), "a victim")):
        if name != "synthetic":
            raise InputError(f"lab: {of} of {name!r}; only rendered people are put on a page: give a synthetic victim")
    exact, options = rounded(model).to(device), {"device": device, "progress": False}
    queries, gallery = drawn(dataset, seed)
    weights, deltas, features = Pack(), Pack(), Pack()
    described = network(model, weights)
    floats = directions(lambda m: plain(evaluate(model, dataset, m, **options)))
    clean: dict[str, dict[Modality, Evaluation]] = {}
    places: dict[str, dict[str, int]] = {}
    for way in ("nothing", "chain"):
        with standing_before(exact, way):
            clean[way] = {m: evaluate(exact, dataset, m, **options) for m in Modality}
            stores = {m: cached(dataset, gallery[m], False) for m in Modality}
            places[way] = {m.name.lower(): features.put(embed_store(exact, stores[m], **options)) for m in Modality}
    clean["mean"] = clean["nothing"]  # a clean infrared crop has three equal channels
    listed, curves, shown = [], {}, None
    for name, tied, way, stop, delta in learned(exact, dataset, seed, gradients, identities):
        made, where = in_8_bits(delta, stop, deltas)
        listed.append({"attack": name, "tied": tied, "through": way, "eps": stop, **where})
        shown = made if (name, tied, way, stop) == ("cmps", False, "nothing", 8) else shown
        for before, m in product(BEFORE if way == "nothing" else ["chain"], Modality):
            if (before, m) == ("mean", Modality.VISIBLE):
                continue  # nothing happens to visible crops
            with standing_before(exact, before):
                how = {"perturb": made.apply_rounded, "clean": clean[before][m], **options}
                scored = evaluate(exact, dataset, m, **how)
            key = " ".join((name, "tied" if tied else "free", way, before, m.name.lower()))
            people = clean[before][m].per_identity
            moved = paired_bootstrap(people.rank1, scored.per_identity.rank1, people.identity, people.queries)
            moved = {part: round(100 * value, 2) for part, value in moved._asdict().items()}
            curves.setdefault(key, []).append({"eps": stop, **plain(scored), "change": moved})
    untouched = clean["nothing"]
    scores = {
        "float": floats,
        "rounded": {way: directions(lambda m, way=way: plain(clean[way][m])) for way in places},
        "chance": directions(lambda m: [round(100 * v, 2) for v in untouched[m].chance.independent.rank1]),
        "tested": directions(lambda m: [len(untouched[m].query), len(untouched[m].gallery)]),
        "curves": curves,
    }
    packs = {"weights.bin": weights, "perturbations.bin": deltas, "features.bin": features}
    files = {name: zlib.compress(bytes(pack.data), 9) for name, pack in packs.items()}
    files["sprite.png"] = sprite(dataset, [r for each in (queries, gallery) for m in Modality for r in each[m]])
    files["scores.json"] = json.dumps(scores, separators=(",", ":")).encode()
    files["still.png"] = still(exact, dataset, queries, shown)
    person = {record.identity: number for number, record in enumerate(gallery[Modality.VISIBLE], 1)}
    cell = count()

    def crops(each: dict[Modality, list[Record]]) -> dict[str, list[dict]]:
        return {m.name.lower(): [{"person": person[r.identity], "cell": next(cell)} for r in each[m]] for m in Modality}

    run = {"dataset": dataset.describe(), "victim": {"model": model.arguments["name"]}}
    manifest = {
        "format": FORMAT,
        "name": f"{model.arguments['name']} {model.arguments['backbone']}, 8 bits",
        "key": card.get("key", ""),
        "behaviour": {k: v for n in ATTACKS for k, v in made_with({**run, "attack": {"name": n}}).items()},
        "data": dataset.describe(),
        "seed": seed,
        "learned": {"gradients": gradients, "identities": identities},
        "size": list(dataset.size),
        "columns": COLUMNS,
        "network": described,
        "queries": crops(queries),
        "gallery": crops(gallery),
        "features": places,
        "perturbations": listed,
        "files": {n: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()},
    }
    files["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
    if (total := sum(map(len, files.values()))) > LARGEST:
        raise InputError(f"lab: {total:,} bytes, above the {LARGEST:,} that a page may load; give a smaller victim")
    (out_dir / "manifest.json").unlink(missing_ok=True)  # no former one stands beside new files
    for name, data in files.items():
        write_atomically(out_dir / name, data)
    return manifest


def still(model: TwoStream, dataset: Dataset, queries: dict, made: UniversalPerturbation) -> bytes:
    """Return a PNG of two visible queries attacked by CMPS, and their rankings over the whole test."""
    plots.set_style()
    trial, chosen = dataset.trials(Modality.VISIBLE)[0], queries[Modality.VISIBLE][:2]
    crops = cached(dataset, chosen, False)
    attacked = made.apply_rounded(crops.batch(np.arange(len(crops))), Modality.VISIBLE)
    found = ranked(model, dataset, trial, chosen, perturb=made.apply_rounded)
    strips, drawn_on = plots.ranking_strips(dataset, *found, crops=map(plots.picture, attacked)), io.BytesIO()
    strips.savefig(drawn_on, dpi=100)
    plots.plt.close(strips)
    return drawn_on.getvalue()
