"""Arithmetic on what the papers print, and on what their equations do: the evidence of kind "arithmetic".

`book/claims.toml` names a public function, the number it returns that counts (`so`), and the verdicts.
"""

from collections.abc import Iterable
from functools import cache, partial
from itertools import product

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vireid_lite import frequency, losses, models
from vireid_lite.attacks.budget import luma, tie
from vireid_lite.chapters.uninformed import LAYOUTS, one_order_a_person
from vireid_lite.data import Modality
from vireid_lite.models import attention, insertion

ROUNDING = 0.005  # half a unit of the last printed digit


def cells_at(printed: dict, paths: Iterable[str]) -> np.ndarray:
    """Return the numbers at dotted paths, one after the other; a star stands for every row."""
    found = []
    for path in paths:
        parts = [printed]
        for key in path.split("."):
            if key == "*":
                parts = [row for part in parts for row in part.values()]
            else:
                parts = [part[int(key) if isinstance(part, list) else key] for part in parts]
        found += [np.ravel(part) for part in parts]
    return np.concatenate(found)


def cells(printed: dict, one: list[str], other: list[str], within: float = 0, rows: int = 1) -> dict:
    """Cells of one place, in `rows`, against another's, which rounding puts `within` apart: unlike, or above?"""
    values = cells_at(printed, one)
    values = values.reshape(rows, -1) if rows > 1 else values
    margins = values - cells_at(printed, other)
    above, unlike = margins > within + 1e-9, abs(margins) > within + 1e-9
    ends = {"low": values.min(-1), "high": values.max(-1), "least": margins.min(), "most": margins.max()}
    return ends | {"above": above, "higher": above.sum(-1), "unlike": unlike, "cells": above.shape[-1]}


def deen_baseline(printed: dict) -> dict:
    """The clean LLCM rows against DEEN's paper and against the results that its page gives instead."""
    rows = printed["table3"]["DEEN"]["none"]
    clean = np.transpose([rows["rank1"], rows["mAP"]])
    apart = {place: np.abs(clean - known).max() for place, known in printed["deen"].items()}
    return apart | {"alike": [apart["page"] <= 0.1, min(apart.values()) <= 0.1]}


def _least(ranked: int, matches: int) -> float:
    """Return the average precision with all matches at the end of `ranked` images."""
    place = np.arange(1, matches + 1)
    return float((place / (ranked - matches + place)).mean())


def sysu(printed: dict) -> dict:
    """SYSU-MM01: people left for the test; chance of indoor search, and the least that its single shot allows."""
    people = printed["sysu_people"]
    left = people["all"] - people["train"] - people["val"]
    # 56 people in cameras 1 and 2; camera 3's queries skip camera 2. 1,088 and 1,120 queries have a match.
    least = 100 * np.average([_least(56, 1), _least(112, 2)], weights=[1088, 1120])
    below = cells_at(printed, ["table1.*.CMPS.mAP.1"]) < least - ROUNDING
    numbers = {"least": least, "below": below, "chance_rank20": 100 * 20 / 56}  # CMC by identity: 20 of 56 people
    return numbers | {"left": left, "alike": left == people["test_stated"]}


def pixels(printed: dict) -> dict:
    """What luma, a free and a tied perturbation, and a start drawn from [0, 1] do to images of three equal channels."""
    generator = torch.Generator().manual_seed(0)
    infrared = torch.rand(1, 1, 32, 16, generator=generator).expand(-1, 3, -1, -1)
    eps = printed["eps"] / 255
    delta = (torch.randint(2, (3, 32, 16), generator=generator) * 2 - 1) * eps
    seen = ((infrared + each).clamp(0, 1) for each in (delta, tie(delta)))
    free, tied = (100 * (image != image[:, :1]).any(1).float().mean().item() for image in seen)
    grey_stays = (luma(infrared) - infrared).abs().max().item() < 0.5 / 255
    start = {"outside": 100 * (1 - eps), "leaves": eps < 1}
    return {"grey_stays": grey_stays, "free": free, "tied": tied, "told_apart": free > 0 == tied} | start


@cache
def _uninformed() -> dict[str, dict[float, np.ndarray]]:
    """Return the ends (4, 2) of 95 % of rank-1, rank-10, mAP and mINP, percent, of rankings without information.

    By data set and by a person's share in the variance of the one order that all its queries have.
    """
    rng, found = np.random.default_rng(0), {}
    for name, layout in LAYOUTS.items():
        for share in (0, 0.1, 0.2, 0.3, 0.5, 1):
            drawn = [one_order_a_person(layout, share, rng, np.float32)[0] for _ in range(40)]
            runs = np.array([[scores.rank1, scores.cmc[9], scores.mAP, scores.mINP] for scores in drawn])
            if name == "SYSU-MM01":  # its protocol prints means of ten galleries
                runs = runs[rng.integers(len(runs), size=(1000, 10))].mean(1)
            ends = 100 * np.quantile(runs, [0.025, 0.975], axis=0)
            found.setdefault(name, {})[share] = ends.T
    return found


def at_floor(printed: dict, modules: list[str]) -> dict:
    """Final rows with these modules: which share gives all four scores without information; rank-1 beside FSAM's."""
    rows, floor, fits, margins = printed["final"], _uninformed(), {}, []
    for name, module in product(floor, modules):
        row = rows[name][module]
        values = np.array([row[score] for score in ("rank1", "rank10", "mAP", "mINP")])
        shares = [
            share
            for share, (low, high) in ((share, ends.T) for share, ends in floor[name].items())
            if ((low - ROUNDING <= values) & (values <= high + ROUNDING)).all()
        ]
        fits.setdefault(name, {})[module] = " or ".join(map(str, shares)) or "none"
        margins.append(row["rank1"] - rows[name]["FSAM"]["rank1"])
    width = max(high - low for shares in floor.values() for (low, high), *_ in shares.values())
    inside = [found != "none" for row in fits.values() for found in row.values()]
    return {"inside": inside, "fits": fits, "least": min(margins), "most": max(margins), "width": width}


def ablation_order(printed: dict) -> dict:
    """Table 3: does each further part lower rank-1, and do the last steps end where a person's one order does?"""
    rows = [({*filter(None, parts.split("+"))}, values) for parts, values in printed["table3_ablation"].items()]
    steps = [(low, high) for (one, low), (two, high) in product(rows, rows) if one < two and len(two - one) == 1]
    before, after = np.swapaxes(steps, 0, 1)
    floor = [_uninformed()[name][0][0][1] + ROUNDING for name in ("SYSU-MM01", "RegDB")]
    falls = after < before
    return {"falls": falls, "told": falls.sum(), "steps": falls.size, "at_chance": (after <= floor).sum()}


def agw(printed: dict) -> dict:
    """Parameters of AGW without its classifier, alone and with FSAM twice and SFM; multiplications; printed costs."""
    with torch.device("meta"):  # shapes only: nothing is drawn or computed
        network = models.build("agw", num_identities=206, backbone="resnet50").eval()
        channels = insertion.block_channels(network)
        places = (("fsam", 0), ("fsam", 4), ("sfm", 4))
        heads = [attention.build_attention(name, channels[block]) for name, block in places]
    parts = (network, network.classifier, *heads)
    whole, classifier, *added = (sum(values.numel() for values in part.parameters()) for part in parts)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(64, 3, 288, 144, device="meta"), Modality.VISIBLE)
    plain, more, batch = whole - classifier, whole - classifier + sum(added), counter.get_total_flops() / 2e9
    prints_alike = [abs(number / 1e6 - printed["parameters_million"]) < ROUNDING for number in (plain, more)]
    costs = {name: cost - printed["giga_flops"]["before"] for name, cost in printed["giga_flops"].items()}
    return costs | {
        "plain": plain, "more": more, "prints_alike": prints_alike,
        "one": batch / 64, "batch": batch, "is_a_batch": abs(batch / printed["giga_flops"]["before"] - 1) < 0.02,
        "costs_more": [costs["FGSM"] != 0, costs["UAP"] != 0],
    }  # fmt: skip


def phase_origin(printed: dict) -> dict:
    """Weighting a phase: does the result move with the image?"""
    maps = torch.rand(1, 1, 16, 8, generator=torch.Generator().manual_seed(0))

    def weighted(x: torch.Tensor) -> torch.Tensor:
        amplitude, phase = frequency.decompose(x)
        return frequency.recombine(amplitude, 0.5 * phase)

    shift = partial(torch.roll, shifts=(3, 2), dims=(-2, -1))
    after, before = shift(weighted(maps)), weighted(shift(maps))
    apart = ((after - before).norm() / after.norm()).item()
    return {"apart": 100 * apart, "differ": apart > 0.01}


def two_losses(printed: dict) -> dict:
    """The quadruple loss without gradient, a person's two centres being one; equation 15, one sample a person."""
    alpha = printed["alpha"]
    visible, infrared = ((alpha * torch.eye(4)).requires_grad_() for _ in range(2))
    loss, active = losses.quadruple_loss(visible, infrared, visible, infrared, alpha=alpha)
    loss.backward()
    slope = max(centres.grad.abs().max().item() for centres in (visible, infrared))
    silent = loss.item() == slope == active.item() == 0
    four = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)) * 0.05
    centre = losses.quadruple_loss(*four, alpha=alpha).loss.item()
    apart = abs(1 - losses.pairwise_quadruple_loss(*four, torch.arange(5), alpha=alpha).loss.item() / centre)
    numbers = {"distance": alpha * 2**0.5, "loss": loss.item(), "slope": slope, "silent": silent}
    return numbers | {"apart": 100 * apart, "alike": apart < 1e-5}
