"""The book's figures: one palette safe for colour-blind readers, every mark said twice (colour and shape)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vireid_lite.data import Dataset, Modality, Record
from vireid_lite.errors import InputError

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers too.
COLOURS = {Modality.VISIBLE: "#0072B2", Modality.INFRARED: "#D55E00"}

RIGHT, WRONG, CHANCE = "#009E73", "#D55E00", "#555555"

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

IDENTITIES = (*SERIES, "#F0E442", "#000000", "#FFFFFF", CHANCE)  # fills of marks that have a black edge


def set_style() -> None:
    """Set the book's figure style: white ground in both themes; in a notebook, two pixels where the screen has one."""
    sns.set_theme(context="notebook", style="whitegrid", palette=SERIES, rc={"axes.titlesize": 11})
    plt.rcParams |= {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.dpi": 96,  # CSS pixels an inch; a notebook doubles it
        "savefig.bbox": "tight",
        "font.size": 10,
        "image.cmap": "cividis",
    }
    if "inline" in plt.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats  # comes with the notebook's kernel

        set_matplotlib_formats("retina")


def show_crop(axes: Axes, crop: np.ndarray) -> None:
    """Draw one crop, uint8 (H, W, 3), without axes, pixels as they are."""
    axes.imshow(crop, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def sample_sheet(dataset: Dataset, records: Sequence[Record], identities: int = 6, images: int = 4) -> Figure:
    """Draw a sheet: one row an identity, its visible crops on the left and its infrared ones on the right."""
    chosen = list(dict.fromkeys(record.identity for record in records))[:identities]
    aspect = dataset.size[0] / dataset.size[1]
    figure, grid = plt.subplots(
        len(chosen),
        2 * images + 1,
        figsize=(0.85 * 2 * images + 0.3, 0.85 * aspect * len(chosen) + 0.4),
        gridspec_kw={"width_ratios": [1] * images + [0.25] + [1] * images, "wspace": 0.06, "hspace": 0.06},
        squeeze=False,
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, identity in zip(grid, chosen, strict=True):
        for modality, columns in ((Modality.VISIBLE, row[:images]), (Modality.INFRARED, row[images + 1 :])):
            own = [record for record in records if record.identity == identity and record.modality == modality]
            for axes, record in zip(columns, own, strict=False):
                axes.axis("on")
                show_crop(axes, dataset.read(record))
    for modality, column in ((Modality.VISIBLE, 0), (Modality.INFRARED, images + 1)):
        grid[0, column].set_title(modality.name.lower(), loc="left", color=COLOURS[modality])
    return figure


def ranking_strips(
    dataset: Dataset,
    queries: Sequence[Record],
    rankings: Sequence[Sequence[Record]],
    top: int = 10,
    crops: Sequence[np.ndarray] | None = None,
) -> Figure:
    """Draw each query beside its `top` gallery crops, right ones solid with a tick, wrong ones dashed with a cross.

    crops: (H, W, 3) pictures of the queries in place of the data set's own, such as attacked ones.
    """
    top = min(top, max(len(ranking) for ranking in rankings))
    aspect = dataset.size[0] / dataset.size[1]
    figure, grid = plt.subplots(
        len(queries),
        top + 1,
        figsize=(0.72 * (top + 1.3), (0.72 * aspect + 0.22) * len(queries) + 0.3),
        gridspec_kw={"width_ratios": [1.3] + [1] * top, "wspace": 0.12, "hspace": 0.28},
        squeeze=False,
    )
    crops = [dataset.read(query) for query in queries] if crops is None else crops
    for row, query, ranking, crop in zip(grid, queries, rankings, crops, strict=True):
        show_crop(row[0], crop)
        row[0].set_title("query", fontsize=8, pad=2)
        for axes in row[1:]:
            axes.axis("off")
        for rank, (axes, found) in enumerate(zip(row[1:], ranking, strict=False), 1):
            axes.axis("on")
            right = found.identity == query.identity
            show_crop(axes, dataset.read(found))
            axes.set_title(f"{rank} {'✓' if right else '✗'}", fontsize=8, pad=2, color=RIGHT if right else WRONG)
            for spine in axes.spines.values():
                spine.set(visible=True, color=RIGHT if right else WRONG, linewidth=2, linestyle="-" if right else "--")
    return figure


def picture(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W) float in [0, 1] as (H, W, 3) for a figure."""
    return image.detach().cpu().float().permute(1, 2, 0).numpy()


def two_scales(change: Tensor, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of a change (3, H, W) at true scale and magnified to fill [-eps, eps]; mid-grey is no change."""
    return tuple(picture((0.5 + scale * change).clamp(0, 1)) for scale in (1, 1 / (2 * eps)))


def attack_sheet(clean: Tensor, attacked: Tensor, eps: float, names: Sequence[str]) -> Figure:
    """Draw each image clean and attacked, and their difference at true scale and magnified to fill [-eps, eps].

    clean, attacked: (n, 3, H, W) in [0, 1]; n rows. names: what each row is. Mid-grey stands for no difference.
    """
    aspect = clean.shape[2] / clean.shape[3]
    figure, grid = plt.subplots(len(clean), 4, figsize=(5.6, 1.25 * aspect * len(clean) + 0.4), squeeze=False)
    for row, before, after, name in zip(grid, clean, attacked, names, strict=True):
        for axes, shown in zip(row, (picture(before), picture(after), *two_scales(after - before, eps)), strict=True):
            show_crop(axes, shown)
        row[0].set_ylabel(name, fontsize=9)
    titles = ("clean", "attacked", "difference,\ntrue scale", f"difference,\n×{1 / (2 * eps):.0f}")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def delta_sheet(deltas: dict[str, Tensor], eps: float) -> Figure:
    """Draw universal perturbations (3, H, W) by name, each at true scale and magnified to fill [-eps, eps]."""
    first = next(iter(deltas.values()))
    aspect = first.shape[1] / first.shape[2]
    figure, grid = plt.subplots(2, len(deltas), figsize=(1.3 * len(deltas) + 0.8, 2.6 * aspect + 0.5), squeeze=False)
    for column, (name, delta) in zip(grid.T, deltas.items(), strict=True):
        for axes, shown in zip(column, two_scales(delta, eps), strict=True):
            show_crop(axes, shown)
        column[0].set_title(name, fontsize=9)
    grid[0, 0].set_ylabel("true scale", fontsize=9)
    grid[1, 0].set_ylabel(f"×{1 / (2 * eps):.0f}", fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def cmc_curves(curves: dict[str, np.ndarray], chance: np.ndarray | None = None) -> Figure:
    """Draw CMC curves by name, each (max_rank,) fractions, above the chance level's curve."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for number, (name, cmc) in enumerate(curves.items()):
        ranks = np.arange(1, len(cmc) + 1)
        axes.plot(ranks, 100 * cmc, marker="os^Dv"[number % 5], markersize=4, color=SERIES[number % 6], label=name)
    if chance is not None:
        axes.plot(np.arange(1, len(chance) + 1), 100 * chance, color=CHANCE, linestyle=":", label="chance")
    axes.set(xlabel="rank k", ylabel="queries matched by rank k (%)", ylim=(0, 101))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def training_curves(history: Sequence[dict]) -> Figure:
    """Draw the two losses and the accuracy on the training batches over the epochs."""
    epochs = [epoch["epoch"] + 1 for epoch in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name, label, style in (("identity_loss", "identity loss", "-"), ("triplet_loss", "triplet loss", "--")):
        left.plot(epochs, [epoch[name] for epoch in history], style, marker=".", label=label)
    left.set(xlabel="epoch", ylabel="loss (nats)", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(epochs, [100 * epoch["accuracy"] for epoch in history], marker=".", color=SERIES[2])
    right.set(xlabel="epoch", ylabel="batch classified right (%)", ylim=(0, 101))
    return figure


def embedding_scatter(axes: Axes, points: np.ndarray, identities: np.ndarray, modalities: np.ndarray) -> None:
    """Draw 2-D points (N, 2): colour says the identity, shape the modality (circle visible, triangle infrared).

    The identities, in order, take the colours of IDENTITIES. Raises InputError where there are more than colours.
    """
    names = np.unique(identities)
    if len(names) > len(IDENTITIES):
        raise InputError(f"embedding_scatter: {len(names)} identities for {len(IDENTITIES)} colours; choose fewer")
    for colour, name in zip(IDENTITIES, names, strict=False):
        for modality, marker in ((Modality.VISIBLE, "o"), (Modality.INFRARED, "^")):
            chosen = points[(identities == name) & (modalities == modality)]
            axes.scatter(*chosen.T, color=[colour], marker=marker, s=34, edgecolor="black", linewidth=0.4)
    axes.set(xticks=[], yticks=[])


def score_rows(panels: dict[str, dict[str, Sequence[float]]], chance: dict[str, tuple[float, float]]) -> Figure:
    """Draw scores in percent, one row a name and one panel a direction: a ring each seed, an upright bar at the mean.

    panels: title to name to the seeds' scores, the same names in each; a name without scores is marked pending.
    chance: title to (low, high), drawn as a grey band.
    """
    names = list(next(iter(panels.values())))
    size = (8, 0.32 * len(names) + 1.1)
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for number, (axes, (title, rows)) in enumerate(zip(grid.flat, panels.items(), strict=True)):
        axes.axvspan(*chance[title], color=CHANCE, alpha=0.3, linewidth=0)
        for place, scores in enumerate(rows.values()):
            if len(scores) == 0:
                axes.text(1, place, "pending", va="center", fontsize=8, color=CHANCE, style="italic")
                continue
            axes.plot(scores, [place] * len(scores), "o", color=SERIES[number], fillstyle="none", markersize=6)
            axes.plot([np.mean(scores)], [place], "|", color=SERIES[number], markersize=15, markeredgewidth=2)
        axes.set(title=title, xlabel="rank-1 (%)", xlim=(-2, 101), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=True, axis="y", linewidth=0.5)
    return figure


def score_curves(
    panels: dict[str, dict[str, dict[float, Sequence[float]]]],
    chance: dict[str, tuple[float, float]],
    xlabel: str,
    log: bool = False,
) -> Figure:
    """Draw scores in percent over a knob, one panel a direction: means, with a bar from the lowest seed to the highest.

    panels: title to name to value of the knob to the seeds' scores; what has none is left out, and a panel in which
    nothing has any says pending. chance: title to (low, high), a grey band. log: a logarithmic axis, base 2.
    """
    figure, grid = plt.subplots(1, len(panels), figsize=(8, 3.2), sharey=True, squeeze=False, layout="constrained")
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=True):
        drawn = {name: {x: s for x, s in sorted(curve.items()) if len(s)} for name, curve in curves.items()}
        axes.axhspan(*chance[title], color=CHANCE, alpha=0.3, linewidth=0)
        for number, (name, curve) in enumerate(drawn.items()):
            style = {
                "marker": "os^Dv"[number % 5],
                "color": SERIES[number % 6],
                "linestyle": ("-", "--", ":")[number % 3],
            }
            if not curve:
                axes.plot([], [], label=f"{name} (pending)", **style)
                continue
            means = [np.mean(scores) for scores in curve.values()]
            reach = [[m - min(s), max(s) - m] for m, s in zip(means, curve.values(), strict=True)]
            axes.errorbar(list(curve), means, yerr=np.abs(np.transpose(reach)), capsize=3, label=name, **style)
        axes.set(title=title, xlabel=xlabel, ylim=(-2, 101))
        if not any(drawn.values()):
            axes.text(0.5, 0.5, "pending", ha="center", transform=axes.transAxes, color=CHANCE, style="italic")
            continue
        places = sorted({x for curve in drawn.values() for x in curve})
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    grid[0, 0].set_ylabel("rank-1 (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if len(labels) > 1:
        grid[0, -1].legend(handles, labels, frameon=False, fontsize=8)
    return figure


def cost_scatter(
    panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]],
    chance: dict[str, tuple[float, float]],
    filled: Sequence[str],
) -> Figure:
    """Draw scores in percent against seconds, logarithmic, one panel a direction and one mark a name.

    panels: title to name to (seconds, scores) of the seeds; bars reach over both. filled: names whose mark is solid,
    not hollow. chance: title to (low, high), a grey band. A panel without any point says pending.
    """
    names = list(next(iter(panels.values())))
    figure, grid = plt.subplots(1, len(panels), figsize=(8, 3.8), sharey=True, squeeze=False, layout="constrained")
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=True):
        axes.axhspan(*chance[title], color=CHANCE, alpha=0.3, linewidth=0)
        axes.set(title=title, xlabel="seconds", ylim=(-2, 101))
        for number, name in enumerate(names):
            seconds, scores = points[name]
            if not len(scores):
                continue
            x, y = np.median(seconds), np.mean(scores)
            bars = {
                "xerr": [[x - min(seconds)], [max(seconds) - x]],
                "yerr": np.abs([[y - min(scores)], [max(scores) - y]]),
            }
            colour, marker = SERIES[number % 6], "os^Dvp*<>hXP"[number % 12]
            solid = colour if name in filled else "white"
            axes.errorbar(
                [x],
                [y],
                fmt=marker,
                color=colour,
                markerfacecolor=solid,
                markersize=7,
                elinewidth=0.8,
                label=name,
                **bars,
            )
        if any(len(scores) for _, scores in points.values()):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.text(0.5, 0.5, "pending", ha="center", transform=axes.transAxes, color=CHANCE, style="italic")
    grid[0, 0].set_ylabel("rank-1 (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if labels:
        handles = [handle[0] for handle in handles]  # the mark without its bars
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def score_matrices(
    panels: dict[str, np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    apart: int = 0,
    wide: int = 2,
    top: float = 100,
) -> Figure:
    """Draw matrices of scores in percent as heat maps: the mean over seeds in each cell, lowest and highest below it.

    panels: title to (len(rows), len(columns), seeds), NaN where a seed has not run; a cell without any is hatched and
    says pending. apart: how many of the last rows stand below a gap. wide: panels side by side. Colours run from 0 to
    `top` on a scale that reads the same to colour-blind eyes; numbers are black or white, whichever their ground needs.
    """
    high = -(-len(panels) // wide)
    size = (1.2 + wide * (0.85 * len(columns) + 0.4), high * (0.46 * len(rows) + 0.75))
    figure, grid = plt.subplots(high, wide, figsize=size, sharey=True, squeeze=False, layout="constrained")
    scale = plt.cm.ScalarMappable(plt.Normalize(0, top), "cividis")
    places = [row + (0.35 if row >= len(rows) - apart else 0) for row in range(len(rows))]
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=False):
        for (row, column), scores in ((cell, values[cell]) for cell in np.ndindex(values.shape[:2])):
            scores = scores[~np.isnan(scores)]
            box = {"xy": (column - 0.5, places[row] - 0.5), "width": 1, "height": 1, "edgecolor": "white"}
            middle = {"ha": "center", "va": "center"}
            if not len(scores):
                axes.add_patch(plt.Rectangle(**{**box, "edgecolor": "#999999"}, facecolor="white", hatch="///", lw=0.5))
                ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axes.text(column, places[row], "pending", fontsize=7.5, color=CHANCE, bbox=ground, **middle)
                continue
            colour = scale.to_rgba(scores.mean())
            axes.add_patch(plt.Rectangle(**box, facecolor=colour, lw=1.5))
            # Black and white have equal contrast on a ground of relative luminance 0.179 (WCAG 2).
            linear = ((np.array(colour[:3]) + 0.055) / 1.055) ** 2.4
            ink = "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"
            one = len(scores) == 1
            axes.text(
                column, places[row] - (0 if one else 0.14), f"{scores.mean():.1f}", fontsize=10, color=ink, **middle
            )
            if not one:
                reach = f"{scores.min():.0f} to {scores.max():.0f}"
                axes.text(column, places[row] + 0.25, reach, fontsize=7, color=ink, **middle)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(places[-1] + 0.5, -0.5))
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(places, rows)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.colorbar(scale, ax=grid, label="rank-1 (%)", shrink=0.6, aspect=30)
    return figure


def stacked_counts(counts: dict[str, dict[str, int]]) -> Figure:
    """Draw counts as stacked bars, one bar a row: each part told by colour and hatching, its number inside.

    counts: row to part to number, the same parts in each row.
    """
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(counts) + 1.3), layout="constrained")
    left = np.zeros(len(counts))
    total = max(1, *(sum(row.values()) for row in counts.values()))
    for number, part in enumerate(next(iter(counts.values()))):
        values = np.array([row[part] for row in counts.values()])
        colour = (RIGHT, SERIES[5], "#DDDDDD", SERIES[4])[number % 4]
        hatch = ("", "//", "", "xx")[number % 4]
        axes.barh(range(len(counts)), values, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        for place, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 0.03 * total:
                ground = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
                axes.text(start + value / 2, place, str(value), ha="center", va="center", fontsize=8, bbox=ground)
        left += values
    axes.set_yticks(range(len(counts)), list(counts))
    axes.set(xlabel="reported numbers", ylim=(len(counts) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
