"""The book's figures: one palette safe for colour-blind readers, every mark said twice (colour and shape)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
IDENTITIES = (*SERIES, "#F0E442", "#000000", "#FFFFFF", CHANCE)  #: fills of marks that have a black edge

Seeds = Sequence[float]  # scores, a seed each
Bands = dict[str, tuple[float, float]]  # title of a panel to (low, high) of its chance level, a grey band


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
    """Draw one crop, (H, W, 3), without axes, pixels as they are."""
    axes.imshow(crop, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_axis_on()
    axes.spines[:].set_visible(False)


def _cells(rows: int, columns: int, size: tuple[float, float], **spacing) -> tuple[Figure, np.ndarray]:
    """Return a figure of size in inches, and its (rows, columns) axes, which show nothing before a crop is drawn."""
    figure, grid = plt.subplots(rows, columns, figsize=size, gridspec_kw=spacing, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def sample_sheet(dataset: Dataset, records: Sequence[Record], identities: int = 6, images: int = 4) -> Figure:
    """Draw a sheet: one row an identity, its visible crops on the left and its infrared ones on the right."""
    chosen = list(dict.fromkeys(record.identity for record in records))[:identities]
    size = 0.85 * 2 * images + 0.3, 0.85 * dataset.size[0] / dataset.size[1] * len(chosen) + 0.4
    widths = [1] * images + [0.25] + [1] * images
    figure, grid = _cells(len(chosen), len(widths), size, width_ratios=widths, wspace=0.06, hspace=0.06)
    for modality, left in ((Modality.VISIBLE, 0), (Modality.INFRARED, images + 1)):
        for row, identity in zip(grid, chosen, strict=True):
            own = [record for record in records if (record.identity, record.modality) == (identity, modality)]
            for axes, record in zip(row[left : left + images], own, strict=False):
                show_crop(axes, dataset.read(record))
        grid[0, left].set_title(modality.name.lower(), loc="left", color=COLOURS[modality])
    return figure


def ranking_strips(
    dataset: Dataset,
    queries: Sequence[Record],
    rankings: Sequence[Sequence[Record]],
    top: int = 10,
    crops: Sequence[np.ndarray] | None = None,
) -> Figure:
    """Draw each query beside its `top` gallery crops, right ones solid with a tick, wrong ones dashed with a cross.

    Args:
        crops: (H, W, 3) pictures of the queries in place of the data set's own, such as attacked ones.
    """
    top = min(top, max(map(len, rankings)))
    size = 0.72 * (top + 1.3), (0.72 * dataset.size[0] / dataset.size[1] + 0.22) * len(queries) + 0.3
    figure, grid = _cells(len(queries), top + 1, size, width_ratios=[1.3] + [1] * top, wspace=0.12, hspace=0.28)
    crops = [dataset.read(query) for query in queries] if crops is None else crops
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


def two_scales(change: Tensor, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of a change (3, H, W) at true scale and magnified to fill [-eps, eps]; mid-grey is no change."""
    return tuple(picture((0.5 + scale * change).clamp(0, 1)) for scale in (1, 1 / (2 * eps)))


def _sheet(pictures: Sequence, rows: Sequence[str], columns: Sequence[str], size: tuple[float, float]) -> Figure:
    """Draw pictures (H, W, 3), rows of columns, with their names on the left and on top."""
    figure, grid = _cells(len(rows), len(columns), size)
    for line, shown in zip(grid, pictures, strict=True):
        for axes, one in zip(line, shown, strict=True):
            show_crop(axes, one)
    for axes, name in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(name, fontsize=9)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def attack_sheet(clean: Tensor, attacked: Tensor, eps: float, names: Sequence[str]) -> Figure:
    """Draw each image clean and attacked, and their difference in `two_scales`.

    Args:
        clean, attacked: (n, 3, H, W) in [0, 1]; n rows.
        names: what each row is.
    """
    pictures = [(picture(a), picture(b), *two_scales(b - a, eps)) for a, b in zip(clean, attacked, strict=True)]
    titles = ("clean", "attacked", "difference,\ntrue scale", f"difference,\n×{1 / (2 * eps):.0f}")
    return _sheet(pictures, names, titles, (5.6, 1.25 * clean.shape[2] / clean.shape[3] * len(clean) + 0.4))


def delta_sheet(deltas: dict[str, Tensor], eps: float) -> Figure:
    """Draw universal perturbations (3, H, W) by name, each in `two_scales`."""
    _, height, width = next(iter(deltas.values())).shape
    pictures = zip(*(two_scales(delta, eps) for delta in deltas.values()), strict=True)
    size = 1.3 * len(deltas) + 0.8, 2.6 * height / width + 0.5
    return _sheet(list(pictures), ["true scale", f"×{1 / (2 * eps):.0f}"], list(deltas), size)


def cmc_curves(curves: dict[str, np.ndarray], chance: np.ndarray | None = None) -> Figure:
    """Draw CMC curves by name, each (max_rank,) fractions, above the chance level's curve."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for number, (name, cmc) in enumerate(curves.items()):
        style = {"marker": "os^Dv"[number % 5], "markersize": 4, "color": SERIES[number % 6]}
        axes.plot(np.arange(1, len(cmc) + 1), 100 * cmc, label=name, **style)
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

    Raises:
        InputError: where there are more identities than colours in IDENTITIES, which they take in order.
    """
    names = np.unique(identities)
    if len(names) > len(IDENTITIES):
        raise InputError(f"embedding_scatter: {len(names)} identities for {len(IDENTITIES)} colours; choose fewer")
    for colour, name in zip(IDENTITIES, names, strict=False):
        for modality, marker in ((Modality.VISIBLE, "o"), (Modality.INFRARED, "^")):
            chosen = points[(identities == name) & (modalities == modality)]
            axes.scatter(*chosen.T, color=[colour], marker=marker, s=34, edgecolor="black", linewidth=0.4)
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


def _say_pending(axes: Axes) -> None:
    axes.text(0.5, 0.5, "pending", ha="center", transform=axes.transAxes, color=CHANCE, style="italic")


def _reach(middles: Seeds, groups: Collection[Seeds]) -> np.ndarray:
    """Return how far the values of each group reach below and above its middle, (2, groups)."""
    return np.abs([[middle - min(own), max(own) - middle] for middle, own in zip(middles, groups, strict=True)]).T


def score_rows(panels: dict[str, dict[str, Seeds]], chance: Bands) -> Figure:
    """Draw scores in percent, one row a name and one panel a direction.

    A ring for each seed, a line from the lowest to the highest, an upright bar at the mean.

    Args:
        panels: title to name to the seeds' scores, the same names in each; a name without scores is marked pending.
    """
    names = list(next(iter(panels.values())))
    figure, grid = _panels(panels, 0.32 * len(names) + 1.1, chance, along="x")
    for colour, axes, rows in zip(SERIES, grid, panels.values(), strict=False):
        if any(map(len, rows.values())):
            x, y = zip(*((score, name) for name, scores in rows.items() for score in scores), strict=True)
            data = {"x": x, "y": y, "order": names, "orient": "h", "ax": axes}
            sns.stripplot(**data, jitter=False, size=6, linewidth=1, facecolor="none", edgecolor=colour)
            mean = {"marker": "|", "markersize": 15, "markeredgewidth": 2, "linestyle": "none"}
            sns.pointplot(**data, color=colour, errorbar=("pi", 100), err_kws={"linewidth": 1}, **mean)
        for place, name in enumerate(names):
            if not len(rows[name]):
                axes.text(1, place, "pending", va="center", fontsize=8, color=CHANCE, style="italic")
        axes.set(xlabel="rank-1 (%)", xlim=(-2, 101), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=True, axis="y", linewidth=0.5)
    return figure


def score_curves(panels: dict[str, dict[str, dict[float, Seeds]]], chance: Bands, xlabel: str, log=False) -> Figure:
    """Draw scores in percent over a knob, one panel a direction: means, with a bar from the lowest seed to the highest.

    Args:
        panels: title to name to value of the knob to the seeds' scores; what has none is left out, and a panel in which
            nothing has any says pending.
        log: a logarithmic axis, base 2.
    """
    figure, grid = _panels(panels, 3.2, chance)
    for axes, curves in zip(grid, panels.values(), strict=True):
        drawn = {name: {x: s for x, s in sorted(curve.items()) if len(s)} for name, curve in curves.items()}
        for number, (name, curve) in enumerate(drawn.items()):
            style = {"marker": "os^Dv"[number % 5], "color": SERIES[number % 6]}
            style["linestyle"] = ("-", "--", ":")[number % 3]
            if curve:
                means = [np.mean(scores) for scores in curve.values()]
                axes.errorbar(list(curve), means, yerr=_reach(means, curve.values()), capsize=3, label=name, **style)
            else:
                axes.plot([], [], label=f"{name} (pending)", **style)
        axes.set_xlabel(xlabel)
        places = sorted({x for curve in drawn.values() for x in curve})
        if not places:
            _say_pending(axes)
            continue
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    handles, labels = grid[0].get_legend_handles_labels()
    if len(labels) > 1:
        grid[-1].legend(handles, labels, frameon=False, fontsize=8)
    return figure


def cost_scatter(panels: dict[str, dict[str, tuple[Seeds, Seeds]]], chance: Bands, filled: Collection[str]) -> Figure:
    """Draw scores in percent against seconds, logarithmic, one panel a direction and one mark a name.

    A panel without any point says pending.

    Args:
        panels: title to name to (seconds, scores) of the seeds; bars reach over both.
        filled: names whose mark is solid, not hollow.
    """
    figure, grid = _panels(panels, 3.8, chance)
    for axes, points in zip(grid, panels.values(), strict=True):
        axes.set_xlabel("seconds")
        for number, (name, (seconds, scores)) in enumerate(points.items()):
            if not len(scores):
                continue
            x, y, colour = [np.median(seconds)], [np.mean(scores)], SERIES[number % 6]
            style = {"fmt": "os^Dvp*<>hXP"[number % 12], "color": colour, "markersize": 7, "elinewidth": 0.8}
            style["markerfacecolor"] = colour if name in filled else "white"
            axes.errorbar(x, y, xerr=_reach(x, [seconds]), yerr=_reach(y, [scores]), label=name, **style)
        if any(len(scores) for _, scores in points.values()):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            _say_pending(axes)
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        handles = [handle[0] for handle in handles]  # the mark without its bars
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def score_matrices(
    panels: dict[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], apart=0, wide=2, top: float = 100
) -> Figure:
    """Draw matrices of scores in percent as heat maps: the mean over seeds in each cell, lowest and highest below it.

    Colours run from 0 to `top`; numbers are black or white, whichever their ground needs.

    Args:
        panels: title to (len(rows), len(columns), seeds), NaN where a seed has not run; a cell without any is hatched
            and says pending.
        apart: how many of the last rows stand below a gap.
        wide: panels side by side.
    """
    high = -(-len(panels) // wide)
    size = (1.2 + wide * (0.85 * len(columns) + 0.4), high * (0.46 * len(rows) + 0.75))
    figure, grid = plt.subplots(high, wide, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=False):
        seeds = np.ma.masked_invalid(values)
        mean, least, most, ran = seeds.mean(-1), seeds.min(-1), seeds.max(-1), seeds.count(-1)
        words = np.full(ran.shape, "", dtype=object)
        for cell in map(tuple, np.argwhere(ran)):
            words[cell] = f"{mean[cell]:.1f}" + (f"\n{least[cell]:.0f} to {most[cell]:.0f}" if ran[cell] > 1 else "")
        text = {"fontsize": 8, "linespacing": 1.1}
        options = {"vmin": 0, "vmax": top, "cmap": "cividis", "cbar": False, "linewidths": 1.5, "ax": axes}
        labels = {"annot": words, "fmt": "", "annot_kws": text, "xticklabels": columns, "yticklabels": rows}
        sns.heatmap(mean.filled(np.nan), **options, **labels)
        (cells,) = axes.collections
        for label, colour in zip(axes.texts, cells.get_facecolors()[ran.ravel() > 0], strict=True):
            # Black and white have equal contrast on a ground of relative luminance 0.179 (WCAG 2).
            linear = ((colour[:3] + 0.055) / 1.055) ** 2.4
            label.set_color("black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white")
        axes.set_facecolor("white")
        axes.patch.set(hatch="///", edgecolor="#999999")  # seen where a cell is empty
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        for row, column in np.argwhere(ran == 0) + 0.5:
            axes.text(column, row, "pending", fontsize=7.5, color=CHANCE, bbox=ground, ha="center", va="center")
        if apart:
            axes.axhline(len(rows) - apart, color="white", linewidth=8)
        axes.set_title(title, fontsize=10)
        axes.tick_params(length=0, rotation=0)
        axes.grid(visible=False)
    figure.colorbar(grid.flat[0].collections[0], ax=grid, label="rank-1 (%)", shrink=0.6, aspect=30)
    return figure


def stacked_counts(counts: dict[str, dict[str, int]]) -> Figure:
    """Draw counts as stacked bars, one bar a row: each part told by colour and hatching, its number inside.

    Args:
        counts: row to part to number, the same parts in each row.
    """
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(counts) + 1.3), layout="constrained")
    left, ground = np.zeros(len(counts)), {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
    total = max(1, *(sum(row.values()) for row in counts.values()))
    for number, part in enumerate(next(iter(counts.values()))):
        values = np.array([row[part] for row in counts.values()])
        style = {"hatch": ("", "//", "", "xx")[number % 4]}
        style["color"] = (RIGHT, SERIES[5], "#DDDDDD", SERIES[4])[number % 4]
        bars = axes.barh(range(len(counts)), values, left=left, edgecolor="white", label=part, **style)
        shown = [str(value) if value >= 0.03 * total else "" for value in values]
        axes.bar_label(bars, shown, label_type="center", fontsize=8, bbox=ground)
        left += values
    axes.set_yticks(range(len(counts)), list(counts))
    axes.set(xlabel="reported numbers", ylim=(len(counts) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
