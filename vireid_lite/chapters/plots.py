"""The book's figures: one palette safe for colour-blind readers, every mark said twice (colour and shape)."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vireid_lite.data import Dataset, Modality, Record
from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers too.
COLOURS = {Modality.VISIBLE: "#0072B2", Modality.INFRARED: "#D55E00"}
RIGHT, WRONG, CHANCE = "#009E73", "#D55E00", "#555555"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
IDENTITIES = (*SERIES, "#F0E442", "#000000", "#FFFFFF", CHANCE)  #: fills of marks that have a black edge
LINES = cycler(color=SERIES * 2, marker=list("os^Dvp*<>hXP"), linestyle=["-", "--", ":"] * 4)
GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of a text over hatching

# Panels are title to name to what is drawn; what has not run is empty, or NaN, and said to be pending.
Seeds = Sequence[float]  # scores in percent, a seed each
Bands = dict[str, tuple[float, float]]  # title of a panel to (low, high) of its chance level, a grey band


def set_style() -> None:
    """Set the book's figure style: white ground in both themes; in a notebook, two pixels where the screen has one."""
    own = {"axes.titlesize": 11, "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.bbox": "tight"}
    own |= {"figure.dpi": 96, "font.size": 10, "image.cmap": "cividis"}  # CSS pixels an inch; a notebook doubles it
    sns.set_theme(context="notebook", style="whitegrid", palette=SERIES, rc=own)
    if "inline" in plt.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats  # comes with the notebook's kernel

        set_matplotlib_formats("retina")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG under its name, blanks as underscores, and close it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    plt.close(figure)
    write_atomically(folder / f"{name.replace(' ', '_')}.png", drawn.getvalue())


def show_crop(axes: Axes, crop: np.ndarray) -> None:
    """Draw one crop, (H, W, 3), without axes, pixels as they are."""
    axes.imshow(crop, interpolation="nearest")
    axes.set(xticks=[], yticks=[], frame_on=True)
    axes.spines[:].set_visible(False)


def _cells(rows: int, columns: int, size: tuple[float, float], **spacing) -> tuple[Figure, np.ndarray]:
    """Return a figure of size in inches, and its (rows, columns) axes, which show nothing before a crop is drawn."""
    empty = {"xticks": [], "yticks": [], "frame_on": False}
    return plt.subplots(rows, columns, figsize=size, gridspec_kw=spacing, subplot_kw=empty, squeeze=False)


def sample_sheet(dataset: Dataset, records: Sequence[Record], identities: int = 6, images: int = 4) -> Figure:
    """Draw a sheet: one row an identity, its visible crops on the left and its infrared ones on the right."""
    chosen = list(dict.fromkeys(record.identity for record in records))[:identities]
    size = 0.85 * 2 * images + 0.3, 0.85 * dataset.size[0] / dataset.size[1] * len(chosen) + 0.4
    widths = [1] * images + [0.25] + [1] * images
    figure, grid = _cells(len(chosen), len(widths), size, width_ratios=widths, wspace=0.06, hspace=0.06)
    for modality, half in zip(Modality, (grid[:, :images], grid[:, images + 1 :]), strict=True):
        half[0, 0].set_title(modality.name.lower(), loc="left", color=COLOURS[modality])
        for row, identity in zip(half, chosen, strict=True):
            own = [record for record in records if (record.identity, record.modality) == (identity, modality)]
            for axes, record in zip(row, own, strict=False):
                show_crop(axes, dataset.read(record))
    return figure


def ranking_strips(
    dataset: Dataset, queries: Sequence[Record], rankings: Sequence[Sequence[Record]], top: int = 10, crops=None
) -> Figure:
    """Draw each query beside its `top` gallery crops, right ones solid with a tick, wrong ones dashed with a cross.

    crops: (H, W, 3) pictures of the queries in place of the data set's own, such as attacked ones.
    """
    top = min(top, max(map(len, rankings)))
    size = 0.72 * (top + 1.3), (0.72 * dataset.size[0] / dataset.size[1] + 0.22) * len(queries) + 0.3
    figure, grid = _cells(len(queries), top + 1, size, width_ratios=[1.3] + [1] * top, wspace=0.12, hspace=0.28)
    crops = map(dataset.read, queries) if crops is None else crops
    for row, query, ranking, crop in zip(grid, queries, rankings, crops, strict=True):
        show_crop(row[0], crop)
        row[0].set_title("query", fontsize=8, pad=2)
        for rank, (axes, found) in enumerate(zip(row[1:], ranking, strict=False), 1):
            right = found.identity == query.identity
            mark, colour, line = ("✓", RIGHT, "-") if right else ("✗", WRONG, "--")
            show_crop(axes, dataset.read(found))
            axes.set_title(f"{rank} {mark}", fontsize=8, pad=2, color=colour)
            axes.spines[:].set(visible=True, color=colour, linewidth=2, linestyle=line)
    return figure


def picture(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W) float in [0, 1] as (H, W, 3) for a figure."""
    return image.detach().cpu().float().permute(1, 2, 0).numpy()


def _two_scales(change: Tensor, eps: float) -> list[np.ndarray]:
    return [picture((0.5 + scale * change).clamp(0, 1)) for scale in (1, 1 / (2 * eps))]


def _sheet(pictures: Sequence, rows: Sequence[str], columns: Sequence[str], size: tuple[float, float]) -> Figure:
    """Draw pictures (H, W, 3), rows of columns, with their names on the left and on top."""
    figure, grid = _cells(len(rows), len(columns), size)
    for line, shown, name in zip(grid, pictures, rows, strict=True):
        for axes, one in zip(line, shown, strict=True):
            show_crop(axes, one)
        line[0].set_ylabel(name, fontsize=9)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def attack_sheet(clean: Tensor, attacked: Tensor, eps: float, names: Sequence[str]) -> Figure:
    """Draw images (n, 3, H, W) clean and attacked, and the differences as `delta_sheet` does; names: of the n rows."""
    pictures = [(picture(a), picture(b), *_two_scales(b - a, eps)) for a, b in zip(clean, attacked, strict=True)]
    titles = ("clean", "attacked", "difference,\ntrue scale", f"difference,\n×{1 / (2 * eps):.0f}")
    return _sheet(pictures, names, titles, (5.6, 1.25 * clean.shape[2] / clean.shape[3] * len(clean) + 0.4))


def delta_sheet(deltas: dict[str, Tensor], eps: float) -> Figure:
    """Draw universal perturbations (3, H, W) by name, at true scale and magnified to fill [-eps, eps]; grey is 0."""
    _, height, width = next(iter(deltas.values())).shape
    pictures = zip(*(_two_scales(delta, eps) for delta in deltas.values()), strict=True)
    size = 1.3 * len(deltas) + 0.8, 2.6 * height / width + 0.5
    return _sheet(list(pictures), ["true scale", f"×{1 / (2 * eps):.0f}"], list(deltas), size)


def cmc_curves(curves: dict[str, np.ndarray], chance: np.ndarray | None = None) -> Figure:
    """Draw CMC curves by name, each (max_rank,) fractions, above the chance level's curve."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    axes.set_prop_cycle(LINES)
    for name, cmc in curves.items():
        axes.plot(np.arange(1, len(cmc) + 1), 100 * cmc, linestyle="-", markersize=4, label=name)
    if chance is not None:
        axes.plot(np.arange(1, len(chance) + 1), 100 * chance, ":", marker="", color=CHANCE, label="chance")
    axes.set(xlabel="rank k", ylabel="queries matched by rank k (%)", ylim=(0, 101))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def training_curves(history: Sequence[dict]) -> Figure:
    """Draw the two losses and the accuracy on the training batches over the epochs."""
    epochs = pd.DataFrame(history).rename(columns=lambda name: name.replace("_", " "))
    epochs = epochs.assign(epoch=epochs["epoch"] + 1, accuracy=100 * epochs["accuracy"]).set_index("epoch")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    epochs[["identity loss", "triplet loss"]].plot(ax=left, style=[".-", ".--"], ylabel="loss (nats)", ylim=(0, None))
    epochs["accuracy"].plot(ax=right, style=".-", color=SERIES[2], ylabel="batch classified right (%)", ylim=(0, 101))
    left.xaxis.get_major_locator().set_params(integer=True)  # of four epochs none is half an epoch
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    return figure


def embedding_scatter(axes: Axes, points: np.ndarray, identities: np.ndarray, modalities: np.ndarray) -> None:
    """Draw 2-D points (N, 2): colour, in the order of IDENTITIES, says the identity, shape the modality."""
    names, own = np.unique(identities, return_inverse=True)
    if len(names) > len(IDENTITIES):
        raise InputError(f"embedding_scatter: {len(names)} identities for {len(IDENTITIES)} colours; choose fewer")
    for modality, marker in zip(Modality, "o^", strict=True):
        of_it = modalities == modality
        colours = [IDENTITIES[place] for place in own[of_it]]
        axes.scatter(*points[of_it].T, c=colours, marker=marker, s=34, edgecolor="black", linewidth=0.4)
    axes.set(xticks=[], yticks=[])


def _panels(titles: Collection[str], height: float, chance: Bands, along: str = "y") -> tuple[Figure, np.ndarray]:
    """Return a figure with one panel a title, side by side, for scores along an axis, chance a grey band across it."""
    figure, grid = plt.subplots(1, len(titles), figsize=(8, height), sharey=True, squeeze=False, layout="constrained")
    for axes, title in zip(grid[0], titles, strict=True):
        band = axes.axhspan if along == "y" else axes.axvspan
        band(*chance[title], color=CHANCE, alpha=0.3, linewidth=0)
        axes.set(**{"title": title, f"{along}lim": (-2, 101), f"{along}label": "rank-1 (%)"})
        axes.label_outer()
    return figure, grid[0]


def _reach(middles: Seeds, groups: Collection[Seeds]) -> np.ndarray:
    """Return how far the values of each group reach below and above its middle, (2, groups)."""
    ends = [[middle - min(own), max(own) - middle] for middle, own in zip(middles, groups, strict=True)]
    return np.abs(np.reshape(ends, (-1, 2)).T)


def _say_pending(axes: Axes, x: float = 0.5, y: float = 0.5, **style) -> None:
    axes.text(x, y, "pending", **{"ha": "center", "va": "center", "color": CHANCE, "style": "italic", **style})


def score_rows(panels: dict[str, dict[str, Seeds]], chance: Bands) -> Figure:
    """Draw scores, one row a name: a ring for each seed, a line from lowest to highest, an upright bar at the mean."""
    names = list(next(iter(panels.values())))
    figure, grid = _panels(panels, 0.32 * len(names) + 1.1, chance, along="x")
    for colour, axes, rows in zip(SERIES, grid, panels.values(), strict=False):
        for place, scores in enumerate(rows.values()):
            if not len(scores):
                _say_pending(axes, 1, place, ha="left", fontsize=8)
                continue
            axes.plot(scores, [place] * len(scores), "o-", color=colour, linewidth=1, markerfacecolor="none")
            axes.plot(np.mean(scores), place, "|", color=colour, markersize=15, markeredgewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=True, axis="y", linewidth=0.5)
    return figure


def score_curves(panels: dict[str, dict[str, dict[float, Seeds]]], chance: Bands, xlabel: str, log=False) -> Figure:
    """Draw scores over a knob, by its values: means, with a bar from the lowest seed to the highest; log: to base 2."""
    figure, grid = _panels(panels, 3.2, chance)
    for axes, curves in zip(grid, panels.values(), strict=True):
        places = sorted({x for curve in curves.values() for x, scores in curve.items() if len(scores)})
        for look, (name, curve) in zip(LINES(), curves.items(), strict=False):
            ran = [x for x in places if len(curve.get(x, ()))]
            means = [np.mean(curve[x]) for x in ran]
            label = name if ran else f"{name} (pending)"
            axes.errorbar(ran, means, _reach(means, [curve[x] for x in ran]), capsize=3, label=label, **look)
        if not places:
            _say_pending(axes, transform=axes.transAxes)
        elif log:
            axes.set_xscale("log", base=2)
        axes.set(xlabel=xlabel, xticks=places, xticklabels=[f"{place:g}" for place in places])
        axes.minorticks_off()
    handles, labels = grid[0].get_legend_handles_labels()
    if len(labels) > 1:
        grid[-1].legend(handles, labels, frameon=False, fontsize=8)
    return figure


def cost_scatter(panels: dict[str, dict[str, tuple[Seeds, Seeds]]], chance: Bands, filled: Collection[str]) -> Figure:
    """Draw (seconds, scores) of the seeds as one mark a name with bars over both; those of `filled` are solid."""
    figure, grid = _panels(panels, 3.8, chance)
    for axes, points in zip(grid, panels.values(), strict=True):
        for look, (name, (seconds, scores)) in zip(LINES(), points.items(), strict=False):
            if len(scores):
                x, y = [np.median(seconds)], [np.mean(scores)]
                style = look | {"linestyle": "none", "markersize": 7, "elinewidth": 0.8, "label": name}
                style["markerfacecolor"] = look["color"] if name in filled else "white"
                axes.errorbar(x, y, _reach(y, [scores]), _reach(x, [seconds]), **style)
        axes.set(xlabel="seconds", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        if not axes.containers:
            _say_pending(axes, transform=axes.transAxes)
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        marks = [handle[0] for handle in handles]  # without their bars
        figure.legend(marks, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def score_matrices(
    panels: dict[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], apart=0, wide=2, top: float = 100
) -> Figure:
    """Draw matrices of scores as heat maps: the mean over seeds in each cell, lowest and highest below it.

    Args:
        panels: title to (len(rows), len(columns), seeds) scores in percent; colours run from 0 to `top`.
        apart: how many of the last rows stand below a gap.
        wide: panels side by side.
    """
    high = -(-len(panels) // wide)
    size = (1.2 + wide * (0.85 * len(columns) + 0.4), high * (0.46 * len(rows) + 0.75))
    figure, grid = plt.subplots(high, wide, figsize=size, sharey=True, squeeze=False, layout="constrained")
    look = {"vmin": 0, "vmax": top, "cmap": "cividis", "cbar": False, "linewidths": 1.5, "fmt": ""}
    look |= {"xticklabels": columns, "yticklabels": rows, "annot_kws": {"fontsize": 8, "linespacing": 1.1}}
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=False):
        seeds = np.ma.masked_invalid(values)
        words = [[_in_words(own.compressed()) for own in row] for row in seeds]
        sns.heatmap(seeds.mean(-1).filled(np.nan), annot=words, ax=axes, **look)
        ran = seeds.count(-1) > 0
        for label, ground in zip(axes.texts, axes.collections[0].get_facecolors()[ran.ravel()], strict=True):
            # Black and white have equal contrast on a ground of relative luminance 0.179 (WCAG 2).
            label.set_color("black" if sns.utils.relative_luminance(ground) > 0.179 else "white")
        axes.set_facecolor("white")
        axes.patch.set(hatch="///", edgecolor="#999999")  # seen where a cell is empty
        for row, column in np.argwhere(~ran) + 0.5:
            _say_pending(axes, column, row, style="normal", fontsize=7.5, bbox=GROUND)
        if apart:
            axes.axhline(len(rows) - apart, color="white", linewidth=8)
        axes.set_title(title, fontsize=10)
        axes.tick_params(length=0, rotation=0)
        axes.grid(visible=False)
    figure.colorbar(grid.flat[0].collections[0], ax=grid, label="rank-1 (%)", shrink=0.6, aspect=30)
    return figure


def _in_words(scores: np.ndarray) -> str:
    reach = f"\n{scores.min():.0f} to {scores.max():.0f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{reach}" if len(scores) else ""


def stacked_counts(counts: dict[str, dict[str, int]]) -> Figure:
    """Draw counts, row to part to number, as stacked bars: each part told by colour and hatching, its number inside."""
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(counts) + 1.3), layout="constrained")
    table, colours = pd.DataFrame(counts).T, (RIGHT, SERIES[1], SERIES[5], SERIES[3], CHANCE, "#DDDDDD", SERIES[4])
    table.plot.barh(stacked=True, width=0.8, color=colours, edgecolor="white", legend=False, ax=axes)
    for bars, hatch in zip(axes.containers, ("", "..", "", "//", "", "", "xx"), strict=False):
        plt.setp(bars.patches, hatch=hatch)
        shown = [f"{value:g}" if value >= 0.03 * table.sum(axis=1).max() else "" for value in bars.datavalues]
        axes.bar_label(bars, shown, label_type="center", fontsize=8, bbox=GROUND)
    axes.set(xlabel="reported numbers", ylim=(len(counts) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
