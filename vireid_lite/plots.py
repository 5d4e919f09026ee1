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

# Okabe and Ito's palette.
COLOURS = {Modality.VISIBLE: "#0072B2", Modality.INFRARED: "#D55E00"}
RIGHT, WRONG, CHANCE = "#009E73", "#D55E00", "#555555"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def set_style() -> None:
    """Set the book's figure style: white ground in both themes, sharp in print and on a phone."""
    sns.set_theme(context="notebook", style="whitegrid", palette=SERIES, rc={"axes.titlesize": 11})
    plt.rcParams |= {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "font.size": 10,
    }


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
    """Draw 2-D points (N, 2): colour says the identity, shape the modality (circle visible, triangle infrared)."""
    names = np.unique(identities)
    colours = sns.color_palette("colorblind", len(names))
    for colour, name in zip(colours, names, strict=True):
        for modality, marker in ((Modality.VISIBLE, "o"), (Modality.INFRARED, "^")):
            chosen = points[(identities == name) & (modalities == modality)]
            axes.scatter(*chosen.T, color=[colour], marker=marker, s=34, edgecolor="black", linewidth=0.4)
    axes.set(xticks=[], yticks=[])
