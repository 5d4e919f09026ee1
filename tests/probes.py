"""The probes of attacks, of modified victims, of scores and of the licensed readers, beside those of `behaviour`.

`python tests/probes.py --write PART...` writes the entries of some parts anew; their run cards are then stale.
"""

import json
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from miniatures import make_llcm, make_pairs, make_regdb, make_sysu

from vireid_lite import behaviour, metrics, models, victims
from vireid_lite.attacks import ATTACKS, IMAGE_SPECIFIC, build_attack, craft, train_modified_victim
from vireid_lite.attacks.alterations import ALTERATIONS
from vireid_lite.attacks.frozen import training_store
from vireid_lite.attacks.modified_victim import Modification
from vireid_lite.attacks.perturbation import resized
from vireid_lite.behaviour import Found, Painted, aside, blocks, crops, features, history, named, plain
from vireid_lite.data import Dataset, Modality, Record, cached, load_dataset
from vireid_lite.data.synthetic.people import WARDROBE
from vireid_lite.metrics import likeness
from vireid_lite.metrics.anatomy import unshifted
from vireid_lite.metrics.attraction import DRESSED, attraction
from vireid_lite.metrics.evaluation import evaluate
from vireid_lite.study.run import run_attack, score_modified
from vireid_lite.victims import tier_dataset, tier_recipe

SHARE, LINEAR = {"step_share": 0.4}, {"form": "linear", "identity": "off"}
# What committed cards and campaigns ask of each attack, one way beside its name; tied or free is tried with the first.
WAYS: dict[str, dict[str, dict]] = {
    "uap": {"step_share .4": SHARE, "step_share .1": {}},
    "uap-retrieval": {"step_share .1": {}, "rescaled": {"step_share": 2.0, "steps": 6}},
    "uap-retrieval-grey": {"step_share .4": SHARE},
    "meta-attack": {"step_share .4": SHARE, "rescaled": {"step_share": 2.0, "steps": 6}},
    "col-del": {"total": SHARE, "double": {**SHARE, "budget": "double"}},
    "dmr": {"learning_rate .003": {"learning_rate": 0.003}, "learning_rate .001": {}},
    "cmps": {
        "paper": SHARE,
        "released": {**SHARE, "mode": "released"},
        "published": {},
        "released, published": {"mode": "released", "step_share": 2.0, "steps": 6},
        **{
            " ".join(f"{name}={value}" for name, value in way.items()): {**SHARE, **way}
            for way in (
                *({"bank": bank} for bank in ("same", "mixed")),
                *({"modalities": modality} for modality in ("visible", "infrared")),
                *({"update": update} for update in ("joint", "look-ahead")),
                *({"grey_probability": share} for share in (0.0, 0.5, 1.0)),
                *({"momentum": share} for share in (0.0, 0.5, 0.9)),
                {"centroids": "identity"},
                {"centroids": "identity", "choice": "identity"},
                {"score": "dot"},
                {"feature": "pooled"},
                {"centroid_input": "raw"},
                {"stem": "visible"},
                {"grey": "first"},
                {"clip": "masked"},
                {"rescale": True, "step_share": 2.0, "steps": 6},
                {"shuffle": False},
                {"step_share": 0.1},
                {"decay": 0.01},
                {"clusters": 7},
                {"initial": "uniform"},
                {"grey_anchor": True},
                {"margin": 0.1},
                {"eps": 16 / 255},
            )
        },
    },
    "feature-level": {
        " ".join(f"{name}={value}" for name, value in way.items()): way
        for way in (
            {"form": "hinge", "identity": "on"},
            *({"form": "linear", "identity": identity} for identity in ("on", "off", "reversed")),
            {"attention": "none", "sfm": False, "quadruple": False, "identity": "off"},
            {"sfm": False, "quadruple": False},
            {"attention": "none", "quadruple": False},
            {"attention": "none", "sfm": False, "form": "hinge"},
            *({**LINEAR, "heads": "frozen"}, {**LINEAR, "attention": "none", "sfm": False}),
            *({**LINEAR, "attention": attention} for attention in ("se", "eca", "none")),
            *({**LINEAR, name: value} for name, value in (("sfm", False), ("learn_delta", False), ("shared", True))),
            *({**LINEAR, "normalise": True}, {**LINEAR, "initial": "zero"}, {**LINEAR, "initial": "sign"}),
            *({**LINEAR, "blocks": (0,)}, {**LINEAR, "blocks": (4,)}, {**LINEAR, "step_share": 0.4}),
        )
    },
    **{name: {"8/255": {"eps": 8 / 255}, "4/255": {"eps": 4 / 255}} for name in ("sign-noise", "uniform-noise")},
    **{name: {"half": {"step_size": 4 / 255}, "quarter": {}} for name in IMAGE_SPECIFIC if name != "fgsm"},
    "fgsm": {"8/255": {}},
}


def network(identities: int = 10) -> torch.nn.Module:
    """Return a small network as it is drawn, its statistics those of no data, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("agw", identities, "lite")
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def shift(changed: torch.Tensor, clean: torch.Tensor) -> list[float]:
    """Return how large a change of images (N, 3, H, W) is, and its means over blocks, channels and spectra."""
    moved = (changed - clean).double()
    size, half = moved.abs(), len(moved) // 2
    colours = moved.unflatten(0, (2, half)).mean((1, 3, 4))
    return plain([size.mean(), size.std(), *blocks(moved.mean((0, 1))).flatten(), *colours.flatten()])


def attack(name: str) -> Found:
    """Return losses and perturbations of a few steps in every way of an attack, free and tied."""
    found: Found = {}
    with aside(torch.float32):
        data, model = Painted(), network()
        chosen = sorted(data.train[:24], key=lambda record: record.modality)
        store = training_store(data)
        for number, (way, options) in enumerate(WAYS[name].items()):
            for tied in (False, True) if number == 0 else (False,):
                title = f"{way} tied" if tied else way
                found |= named(title, once(name, {**options, "tied": tied}, model, data, store, chosen))
    return found


def once(name: str, options: dict, model, data: Dataset, store, chosen: list) -> Found:
    """Run an attack in one way and return its history and what it does to some images, as floats and in 8 bits."""
    images = cached(data, chosen, False)
    clean, modality = images.batch(np.arange(len(images))), images.modalities
    if name in IMAGE_SPECIFIC:
        steps = {} if name == "fgsm" else {"steps": 3}
        made = build_attack(name, **{**steps, **options})
        crafted = craft(made, model, images, batch_size=8, seed=3)
        changed = {"float": crafted.images, "8 bits": crafted.rounded(made.eps).images}
        found: Found = {}
    else:
        batch = {"batch_size": 16, "instances": 4} if name in ("col-del", "dmr", "feature-level") else {"batch_size": 8}
        steps = {"steps": 1} if name.endswith("noise") else {"steps": 3, **batch}
        fitted = build_attack(name, **{**steps, **options}).fit(model, store, seed=3)
        changed = {"float": fitted.apply(clean, modality), "8 bits": fitted.apply_rounded(clean, modality)}
        found = {key: plain([step[key] for step in fitted.history]) for key in fitted.history[0] if key != "step"}
    with torch.no_grad():
        before, after = (model.embed(each, modality) for each in (clean, changed["float"]))
    found["displaced"] = plain((after - before).norm(dim=1)[::5])
    found |= {what: shift(each, clean) for what, each in changed.items()}
    return {**found, "8 bits": found["8 bits"][:2] + found["8 bits"][-6:]}


def modified() -> Found:
    """Return histories, features and scores of victims trained with modules, noise and other losses."""
    ways = {
        "quadruple": {},
        "linear": {"form": "linear"},
        "identity": {"attention": "none", "sfm": False, "loss": "identity"},
        "scratch": {"start": "scratch", "noise": "uniform", "normalise": True},
        "blocks": {"blocks": (1, 2, 3), "sfm": False, "loss": "recipe", "noise": "none"},
        **{
            f"benign {attention}": {"attention": attention, "sfm": False, "loss": "recipe", "noise": "none"}
            for attention in ("none", "fsam", "se", "eca")
        },
    }
    found: Found = {}
    with aside():
        data, recipe = Painted(), tier_recipe("lite", epochs=2)
        for way, options in ways.items():
            options = {"epochs": 1, **options}
            made = train_modified_victim(recipe, data, Modification(**options), seed=1, device="cpu", progress=False)
            scored = score_modified(made, data)
            numbers = {name: [each[key] for each in scored.pop(name).values() for key in ("rank1", "mAP", "mINP")]
                       for name in ("scores", "scores_query", "scores_clean") if name in scored}  # fmt: skip
            found |= named(way, {**history(made.card["history"]), **{k: plain(v) for k, v in numbers.items()}})
            found[f"{way} within"] = plain([value for each in scored["within"].values() for value in each.values()])
            found[f"{way} features"] = features(made.model, data, data.test)
    return found


def controls() -> Found:
    """Return what the options do that make controls: altered deltas, coarse noise, other stems, starts, the world."""
    found: Found = {}
    with aside(torch.float32):
        data, model = Painted(), network()
        store, chosen = training_store(data), sorted(data.train[:24], key=lambda record: record.modality)
        drawn = torch.from_numpy(np.random.default_rng(3).integers(-8, 9, (3, 32, 16)) / 255)
        for how, change in ALTERATIONS.items():
            if change:
                found[how] = plain(blocks(change(drawn, 3), 8, 4))
        ways = {f"{cells} cells": ("sign-noise", {"cells": cells}) for cells in (1, 4)}
        ways |= {"other stem": ("cmps", {**SHARE, "stem": "other"}), "erased": ("cmps", {**SHARE, "erased": True})}
        ways |= {f"{name} momentum .5": (name, {"momentum": 0.5}) for name in ("m-fgsm", "lta", "uap")}
        ways |= {"restarts": ("pgd", {"restarts": 3})}
        for way, (name, options) in ways.items():
            found |= named(way, once(name, options, model, data, store, chosen))
        begin = build_attack("uap", steps=2, batch_size=8, altered="mirrored").fit(model, store, seed=3)
        crafted = craft(build_attack("lta", steps=3), model, cached(data, chosen, False), begin=begin, seed=3)
        found |= {f"gained at {name}": plain(values[::4]) for name, values in crafted.gained.items()}
        world, patterns = tier_dataset("lite", without=["hoops", "plain"]), list(WARDROBE["pattern"])
        found["world"] = plain([patterns.index(world.person(identity).pattern) for identity in range(40)])
    return found


class Clothed(Painted):
    """The painted people in patterns that are known, and drawn over them where another one is asked for."""

    def person(self, identity: int) -> SimpleNamespace:
        return SimpleNamespace(pattern=("plain", "hoops", "dots")[identity % 3])

    def read(self, record: Record, pattern: str | None = None) -> np.ndarray:
        rows = {None: 0, "plain": 20, "hoops": 60 * (np.arange(self.size[0]) // 4 % 2), "stripes": 40}[pattern]
        return np.clip(super().read(record) + np.broadcast_to(rows, self.size[0])[:, None, None], 0, 255).astype(
            np.uint8
        )


def interventions() -> Found:
    """Return what a card says beside an anatomy: the mean shift taken out, and what attracting people wear."""
    found, world = {}, tier_dataset("lite")
    dressed = np.stack([world.read(record, pattern) for record in world.test[:24:8] for pattern in DRESSED])
    found["dressed"] = plain(blocks(dressed[..., 1] / 255))
    with aside(torch.float32):
        data, model = Clothed(held_out=9), network()
        made = build_attack("sign-noise", eps=24 / 255).fit(model, training_store(data), seed=3)
        for modality in Modality:
            clean = evaluate(model, data, modality, progress=False)
            how = {"perturb": made.apply_rounded, "clean": clean, "progress": False}
            both = model, data, clean, evaluate(model, data, modality, **how)
            said = {"unshifted": unshifted(*both, made.apply_rounded, data.val), "attraction": attraction(*both)}
            found |= {f"{name} {modality}": plain(leaves(item)) for name, item in said.items()}
    return found


# What a card says of a direction, as its numbers follow here; a long list as its mean and two moments.
FIELDS = ("rank1", "mAP", "mINP", "cmc", "trials", "chance", "minimum", "identity_rank1", "identity_AP")
FIELDS += ("identity_queries", "difference", "broken", "clean", "attacked", "displacement", "cosine", "ssim", "psnr")


def told(results: dict) -> Found:
    """Return the numbers of a card by table and direction."""
    tables = ("clean", "scores", "scores_8_bit", "anatomy")
    return {
        f"{table} {way}": plain([number for field in FIELDS if field in said for number in leaves(said[field])])
        for table in tables
        for way, said in results.get(table, {}).items()
    }


def leaves(value: object) -> list[float]:
    """Return the numbers of nested results, those of a table by the names."""
    if isinstance(value, dict):
        return [number for name in sorted(value) for number in leaves(value[name])]
    numbers = np.ravel(value)
    if numbers.dtype == object:
        return [number for each in value for number in leaves(each)]
    places = np.arange(1, len(numbers) + 1)
    return list(numbers) if len(numbers) < 5 else [np.average(numbers, weights=places**power) for power in (0, 1, 3)]


class Elsewhere(Painted):
    """The painted people under another protocol, in two trials."""

    def __init__(self, protocol: str) -> None:
        super().__init__(trials=2, held_out=7)
        self.protocol = protocol


def scores() -> Found:
    """Return everything a card says of two attacks under each protocol, and what stands behind it, on fixed numbers."""
    found: Found = {}
    with aside(torch.float32):
        model = network()
        for protocol in metrics.PROTOCOLS:
            data = Elsewhere(protocol)
            attacks = {"sign-noise": {"eps": 24 / 255}} | ({"fgsm": {"tied": True}} if protocol == "regdb" else {})
            for name, options in attacks.items():
                result = run_attack(build_attack(name, **options), model, data, take_apart=True, progress=False)
                found |= named(f"{protocol} {name}", told(result.describe()))
        data, other = Elsewhere("regdb"), network()
        attacked = build_attack("uap", steps=2, batch_size=8)
        result = run_attack(attacked, model, data, split="val", identities=4, surrogate=(other, data), progress=False)
        found |= named("transfer", told(result.describe()))
        larger = resized(result.made, (48, 20))
        found["resized"] = plain(blocks(larger.delta))
    found |= ranked()
    images = np.random.default_rng(5).random((2, 4, 3, 24, 16))
    clean, changed = torch.from_numpy(images[0]), torch.from_numpy(images[0] * 0.9 + images[1] * 0.1)
    found["ssim"], found["psnr"] = plain(likeness.ssim(changed, clean)), plain(likeness.psnr(changed, clean))
    return found


def ranked() -> Found:
    """Return scores of fixed distances, many of them tied, and of fixed features, with chance and bootstrap."""
    rng, found = np.random.default_rng(7), {}
    people, others = rng.integers(0, 6, 24), rng.integers(0, 6, 40)
    cameras, beside = rng.choice((3, 6), 24), rng.choice((1, 2, 3, 6), 40)
    distance, vectors = rng.integers(0, 9, (24, 40)).astype(float), rng.normal(size=(64, 5))
    vectors[:24] += people[:, None]
    vectors[24:] += others[:, None]
    for protocol in metrics.PROTOCOLS:
        labels = (people, others, cameras, beside)
        tied = metrics.evaluate(distance, *labels, protocol=protocol)
        near = metrics.evaluate_features(vectors[:24], vectors[24:], *labels, protocol=protocol)
        for name, result in (("tied", tied), ("features", near)):
            numbers = [*result.cmc[:5], result.mAP, result.mINP, result.valid_queries, *result.per_query_ap[::4]]
            found[f"{protocol} {name}"] = plain(numbers)
        level = metrics.chance(*labels, protocol=protocol)
        numbers = [value for part in (level.independent, level.collapsed) for score in part[:3] for value in score]
        numbers += [*level.independent.cmc[::5], *level.collapsed.cmc[::5], *level.minimum]
        found[f"{protocol} chance"] = plain(numbers)
        own = metrics.per_identity(near, people)
        found[f"{protocol} bootstrap"] = plain(metrics.bootstrap(own.ap, own.identity, own.queries))
    return found


def reader(name: str) -> Found:
    """Return the records of every split and trial of a licensed data set's miniature, and statistics of its crops."""
    make, ways = {
        "sysu": (
            lambda root: make_sysu(root, images=10, permutations=True),
            [{}, {"search": "indoor"}, {"validation": False}, {"shot": 10, "draw": "official"}, {"draw": "official"}],
        ),
        "regdb": (make_regdb, [{}, {"split": 7}, {"validation": True}]),
        "llcm": (make_llcm, [{}, {"official_vis2ir": True}, {"validation": True}]),
        "paired_folder": (make_pairs, [{}, {"one_frame_per_sequence": False}]),
    }[name]
    found: Found = {}
    with aside(torch.float32) as folder:
        root = make(folder / name)
        for options in ways:
            data = load_dataset(name, root, size=(48, 24), **options)
            trials = [trial for modality in Modality for trial in data.trials(modality)[:3]]
            sides = [data.train, data.val, *(side for trial in trials for side in trial)]
            way = " ".join(f"{key}={value}" for key, value in options.items()) or "usual"
            # Shares of 1, which tell every record and its place.
            found[way] = plain([len(side) for side in sides] + [_sum(side) for side in sides])
        found |= crops(data, [*(data.train or trials[0].gallery)[:3], *trials[0].query[:3]])
    return found


def _sum(records: list) -> float:
    text = "\n".join(f"{r.source} {r.identity} {r.camera} {int(r.modality)} {r.box}" for r in records)
    return zlib.crc32(text.encode()) / 2**32


PROBES = {
    **victims.PROBES,
    **{f"data/{name}": (lambda name=name: reader(name)) for name in ("sysu", "regdb", "llcm", "paired_folder")},
    **{f"attack/{name}": (lambda name=name: attack(name)) for name in ATTACKS},
    "controls": controls,
    "interventions": interventions,
    "modified": modified,
    "scores": scores,
}


def write(parts: list[str]) -> None:
    """Write the entries of some parts anew, one quantity a line."""
    known = json.loads(behaviour.FILE.read_text(encoding="utf-8")) if behaviour.FILE.exists() else {}
    known |= {part: PROBES[part]() for part in parts}
    entries = (
        f"{json.dumps(part)}: {{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}"
        for part, found in sorted(known.items())
    )
    behaviour.FILE.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    asked = sys.argv[2:] if sys.argv[1:2] == ["--write"] else []
    if not asked or (unknown := set(asked) - set(PROBES)):
        sys.exit(f"usage: {Path(__file__).name} --write PART...; parts: {', '.join(sorted(PROBES))}")
    write(asked)
