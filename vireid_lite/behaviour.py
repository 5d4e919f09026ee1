"""Behaviour as numbers: what each part of a run computes on a small problem, and the parts a run card was made with.

A part is a word of a run's configuration: its data set, its victim's network, its attack, "modified", "scores". What
attacks and data were asked for later is in "controls", and what stands beside an anatomy in "interventions", so that
the older entries stay. A probe runs a part on a problem of seconds and returns numbers, of which `behaviour.json` holds
an entry. A test holds code and entries together, so a card is of this code's behaviour as long as it names the entries
that stand there. The probes of victims and synthetic data are in `victims`, as the weights that come with the package
are checked by them; others are in tests/probes.py.

Numbers must hold on every machine: crops are whole numbers drawn by whole numbers, and networks compute in float64,
where rounding cannot turn the sign of a gradient; what is computed in float32 as usual is compared loosely.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.data import Dataset, Modality, Record, Trial, all_against_all, cached
from vireid_lite.errors import InputError
from vireid_lite.files import parse_json, stable_hash

FILE = Path(__file__).with_name("behaviour.json")
RELATIVE, ABSOLUTE = 1e-4, 1e-6
# Pixels of 8 bits and float32 may round otherwise elsewhere: a fortieth of a grey level in a mean of a block, and the
# last digits of a network's first losses. Files are decoded by other versions of a decoder: half a level.
LOOSER = {"data/synthetic": 1e-4, "interventions": 1e-4}
LOOSER |= dict.fromkeys(("data/sysu", "data/regdb", "data/llcm", "data/paired_folder"), 2e-3)
# Values of options that attacks' own entries hold, the usual one first; others are in "controls".
KNOWN = {"altered": ["no"], "cells": [0], "erased": [False], "restarts": [1], "stem": ["own", "visible"]}
KNOWN["momentum"] = [1, 0]  # but for CMPS, whose entry has others

Found = dict[str, list[float]]


@cache
def entries() -> dict[str, Found]:
    """Return the committed entry of every part."""
    try:
        found = dict(parse_json(FILE.read_text(encoding="utf-8")))
        if not all(type(n) in (int, float) and abs(n) < 1e300 for e in found.values() for ns in e.values() for n in ns):
            raise ValueError("what should be numbers is not")
        return found
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{FILE} is damaged ({error}); install the package again") from None


def parts_of(run: dict) -> list[str]:
    """Return the parts of a run card, or of a configuration; a surrogate adds its own data and victim."""
    sides, parts = [run, *filter(None, [run.get("surrogate")])], []
    for side in sides:
        parts += [f"data/{side['dataset']['name']}", f"victim/{side['victim']['model']}"]
    controls = any("without" in side["dataset"] for side in sides)
    attacks = [each for each in (run["attack"], (run["attack"] or {}).get("start")) if each]
    for attack in attacks:
        parts.append(f"attack/{attack['name']}")
        other = {name for name, known in KNOWN.items() if attack.get(name, known[0]) not in known}
        controls |= len(attacks) > 1 or bool(other - ({"momentum"} if attack["name"] == "cmps" else set()))
    parts += ["modified"] * bool(run.get("modification")) + ["controls"] * controls
    return list(dict.fromkeys([*parts, "scores"]))


def made_with(run: dict, more: Iterable[str] = ()) -> dict[str, str]:
    """Return 8 hex digits of the entry of each part of a run, and of more parts; "" for a part without one."""
    parts = dict.fromkeys([*parts_of(run), *more])
    return {part: stable_hash(entries()[part])[:8] if part in entries() else "" for part in parts}


def differs(part: str, found: Found) -> list[str]:
    """Return one line for each number of a part that is not what its entry says, within the part's tolerance."""
    entry, absolute = entries().get(part, {}), LOOSER.get(part, ABSOLUTE)
    lines = [f"{part}: {name} is only on one side" for name in sorted(entry.keys() ^ found.keys())]
    for name in sorted(entry.keys() & found.keys()):
        was, now = np.array(entry[name]), np.array(found[name])
        if was.shape != now.shape:
            lines.append(f"{part}: {name} has {len(now)} numbers, and had {len(was)}")
            continue
        other = np.flatnonzero(~np.isclose(now, was, rtol=RELATIVE, atol=absolute, equal_nan=True))
        lines += [f"{part}: {name}[{place}] is {now[place]:.7g}, and was {was[place]:.7g}" for place in other]
    return lines


def plain(values: Tensor | np.ndarray | Sequence[float]) -> list[float]:
    """Return numbers with seven digits, as the file has them."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return [float(f"{value:.7g}") for value in np.asarray(values, dtype=float).ravel()]


def blocks(images: Tensor | np.ndarray, rows: int = 4, columns: int = 2) -> Tensor:
    """Return the means of a grid of blocks over the last two dimensions, (N, 1, rows, columns)."""
    images = torch.as_tensor(images).double()
    return nn.functional.adaptive_avg_pool2d(images.reshape(-1, 1, *images.shape[-2:]), (rows, columns))


def history(epochs: list[dict]) -> Found:
    """Return what each epoch of a training noted: accuracy, identity loss and the sum of all else by any name."""
    known = ("epoch", "seconds", "accuracy", "identity_loss")
    rest = [sum(value for name, value in epoch.items() if name not in known) for epoch in epochs]
    return {name: plain([epoch[name] for epoch in epochs]) for name in known[2:]} | {"other": plain(rest)}


def named(prefix: str, found: Found) -> Found:
    return {f"{prefix} {name}": value for name, value in found.items()}


@contextmanager
def aside(dtype: torch.dtype = torch.float64) -> Iterator[Path]:
    """Give a folder that vanishes, which is the cache too; inside, networks are made in `dtype`, on one thread."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as after:
        after.enter_context(mock.patch.dict("os.environ", VIREID_CACHE=f"{folder}/cache"))
        after.callback(torch.set_default_dtype, torch.get_default_dtype())
        after.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_default_dtype(dtype)
        torch.set_num_threads(1)
        yield Path(folder)


class Painted(Dataset):
    """People of six bands of grey or colour under noise, all whole numbers: the same crops on every machine.

    Args:
        identities: of training; `held_out` more are tested in `trials` trials, each of one gallery image less.
        images: of each modality.
    """

    def __init__(self, identities: int = 10, images: int = 2, held_out: int = 6, trials: int = 1) -> None:
        super().__init__("painted", None, (32, 16), {"identities": identities, "images": images, "held_out": held_out})
        self.count = trials

        def records(first: int, count: int) -> list[Record]:
            each = product(range(first, first + count), Modality, range(images))
            return [Record(1000 * p + 10 * image + m, p, (1, 3)[m] + image % 2, m) for p, m, image in each]

        self.train, self.val, self.test = records(0, identities), records(500, held_out), records(900, held_out)

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        whole = all_against_all(self.test, self.direction(query_modality))
        return [Trial(whole.query, whole.gallery[number:]) for number in range(self.count)]

    def read(self, record: Record) -> np.ndarray:
        height, width = self.size
        bands = np.random.default_rng(record.identity).integers(40, 216, (6, 3))
        bands = bands[:, :1] if record.modality == Modality.INFRARED else bands
        noise = np.random.default_rng(record.source).integers(-40, 41, (height, width, 1))
        crop = np.clip(bands[np.arange(height) * 6 // height][:, None] + noise, 0, 255)
        return np.broadcast_to(crop, (height, width, 3)).astype(np.uint8)


def features(model: nn.Module, dataset: Dataset, records: Sequence[Record]) -> list[float]:
    """Return four embeddings: the cosines between them, and how their first numbers are made up."""
    store = cached(dataset, sorted(records, key=lambda record: record.modality)[:: len(records) // 4], False)
    images = store.batch(np.arange(len(store))).to(next(model.parameters()))
    with torch.no_grad():
        found = model.embed(images, store.modalities)
    return plain([*(found @ found.T)[np.triu_indices(len(found), 1)], *found[:, :6].flatten()])


def counted(sides: Sequence[Sequence[Record]]) -> list[float]:
    """Return four numbers of each list of records: how many, and what says who comes where before which camera."""
    found = []
    for side in sides:
        numbers = [[record.identity, record.camera, record.modality] for record in side]
        found += [len(side), *np.average(numbers, axis=0, weights=np.arange(1, len(side) + 1))]
    return plain(found)


def crops(data: Dataset, records: Sequence[Record]) -> Found:
    """Return means of blocks of each crop, in [0, 1], its spread, and how rough it is from pixel to pixel."""
    store = cached(data, records, False)
    images = store.batch(np.arange(len(store))).double()
    return {
        "blocks": plain(blocks(images.mean(1))),
        "colours": plain(images.mean((2, 3))),
        "spread": plain(images.std((1, 2, 3))),
        "roughness": plain(images.diff(dim=3).abs().mean((1, 2, 3))),
        "pixels": plain(blocks(images[:, 1, 8:24, 8:16], 2, 2)),
    }
