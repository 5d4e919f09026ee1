# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   vireid:
#     attacks: true
# ---

# %% [markdown]
# # The cross-modality triplet
#
# At the heart of CMPS {cite}`gong2024cmps` stands one loss of three terms. This chapter takes it apart on a trained
# {term}`victim`: what each term pulls and pushes, what grey and {term}`centroids <centroid>` are for, and whether the
# two modalities ask one perturbation for the same thing. The next chapter runs the whole attack.

# %% [markdown]
# ## What you will be able to do
#
# - read equation 1 term by term and point to the line that computes each;
# - say what a grey copy of an image can give an attack, and what it cannot;
# - measure whether two gradients agree, against what they could reach and against what chance gives;
# - find a wrong sign in a printed update rule without running an attack to its end;
# - say which comparisons a claim of synergy needs.

# %% [markdown]
# ## What it costs
#
# On Colab the next cell installs the package; the version of torch that the runtime brings is kept. Everywhere else it
# does nothing.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib.metadata import version

    _package = "vireid-lite @ git+https://github.com/vireid-lite/vireid-lite"
    _kept = f"torch=={version('torch')}"  # where the package needs another, pip says so and stops
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", _package, _kept], check=True)

# %% tags=["hide-input"]
from vireid_lite.chapters.costs import Costs
from vireid_lite.chapters.parameters import check_parameters

costs = Costs("05_cross_modality_triplet")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite (two CPU cores), standard (one GPU) or full (one GPU, licensed data)
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of everything random here
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes
RETRAIN: bool = False  # train the victim here even where it comes with the package
EPS: "fraction" = "8/255"  # largest change of a pixel, whose range is [0, 1]
IDENTITIES: int = 200  # training identities the attacker looks at
STEPS: int = 20  # iterations of the demonstration, each a visible and an infrared step
BATCHES: int = 12  # gradients of each modality that are compared

# %%
settings = check_parameters(globals(), costs)

# %% [markdown]
# ## Threat model
#
# The [default](../book/threat_models.md), with one note on what is looked at here.
#
# | Question | Answer |
# |---|---|
# | What does the attacker know? | the network ({term}`white box`), unlabelled training images, the number of people |
# | What is perturbed? | the query, by one {term}`universal perturbation` for both modalities, three free channels |
# | How much? | no pixel and channel changes by more than $\varepsilon$, `EPS` above |
# | On what is it measured? | training crops where it is learned, test identities where a result is claimed |
# | What is new here? | we look at features and gradients; only one section scores a ranking |
#
# What is published here and why: [responsible use](../book/responsible_use).

# %% [markdown]
# ## The question
#
# A query is ranked against images of the *other* {term}`modality`. To ruin its ranking it must lose the people it
# resembles over there. Pushing it away from images of its own modality, as an attack on ordinary re-identification
# does, moves it too; the authors argue that nothing makes sure that it then moves away from its matches (a control below
# says whether that costs anything). CMPS therefore pushes a query from
# one modality and pulls it towards another. Which, and why should one perturbation serve queries of both?
#
# Chapter 3's victim and some training crops are all we need. The crops pass the network once, clean, and their features
# are grouped into centroids.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch.nn import functional as F

from vireid_lite import metrics
from vireid_lite.chapters import plots
from vireid_lite.attacks import CMPS, UniversalPerturbation
from vireid_lite.attacks.budget import clip, l1_normalised, luma, tie
from vireid_lite.attacks.frozen import frozen, generator_for, images_of, training_store
from vireid_lite.data.batches import Batches
from vireid_lite.attacks.features import Problem, identity_centroids, kmeans_centroids
from vireid_lite.study.run import difference
from vireid_lite.data import ImageStore, Modality, cached
from vireid_lite.metrics.evaluation import direction_name, embed_store, evaluate
from vireid_lite.victims import load_or_train, tier_dataset, tier_recipe

plots.set_style()
device = settings.device
VISIBLE, INFRARED = Modality
dataset = tier_dataset(settings.tier, settings.dataset, settings.data_root)
recipe = tier_recipe(settings.tier)
model, card = load_or_train(recipe, dataset, seed=settings.seed, device=device, retrain=settings.retrain)

store = training_store(dataset, settings.identities)
attack = CMPS(eps=settings.eps, grey_probability=0.0, grey_anchor=True)
with frozen(model):
    problem = attack.prepare(model, store, settings.seed)
banks = dict(zip(("visible", "infrared", "grey"), problem.centroids.chunk(3), strict=True))

identities = np.array([record.identity for record in store.records])
rows_of = {m: np.flatnonzero(store.modalities.numpy() == m) for m in Modality}
people = len(np.unique(identities))
k = len(banks["visible"])
shape = (3, *store.images.shape[1:3])

# %% tags=["hide-input"]
Markdown(
    f"{len(store)} training crops of {people} identities; {k} centroids in each of {len(banks)} banks: visible,"
    f" infrared and grey. Features have {problem.centroids.shape[1]} dimensions and length 1. No crop turns grey at"
    " random on this page, so that every term stands alone."
)

# %% [markdown]
# ## Equation 1
#
# Let $f_v$, $f_i$ and $f_g$ be the features of a *perturbed* visible, infrared and grey image; the last is a visible
# image without its colour. $C^p$ and $C^n$ are centroids of *clean* features of the modality in the index, $\rho$ is a
# margin and $[z]_+ = \max(z, 0)$. Equation 1 of CMPS:
#
# $$
# \begin{aligned}
# L = {} & \big[\, \|C^n_g - f_v\| - \|C^p_i - f_v\| + \rho \,\big]_+ \\
#   {} + {} & \big[\, \|C^n_i - f_g\| - \|C^p_v - f_g\| + \rho \,\big]_+ \\
#   {} + {} & \big[\, \|C^n_v - f_i\| - \|C^p_g - f_i\| + \rho \,\big]_+
# \end{aligned}
# $$
#
# Each bracket falls when its feature nears $C^n$ and leaves $C^p$. So read it as a table:
#
# | Term | feature | pushed from | pulled to |
# |---|---|---|---|
# | 1 | visible | infrared $C^p_i$ | grey $C^n_g$ |
# | 2 | grey | visible $C^p_v$ | infrared $C^n_i$ |
# | 3 | infrared | grey $C^p_g$ | visible $C^n_v$ |
#
# :::{figure-md} fig-triplet-clouds
# ![Three panels, each with a cloud of visible, one of grey and one of infrared features, a cross in the middle of two of
# them and a large mark in the third. Term 1: a dashed line leads from the infrared cross through a visible mark and
# beyond, a solid arrow from the mark to the grey cross. Term 2: dashed from the visible cross through a grey mark, solid
# to the infrared cross. Term 3: dashed from the grey cross through an infrared mark, solid to the visible
# cross.](../book/_static/drawings/triplet.svg)
#
# The three terms among three clouds. Follow the two arrows at the large mark, the perturbed feature: away from one
# centroid (dashed) and towards another (solid), both of clouds that are not its own.
# :::
#
# The names surprise at first: as in a triplet loss for training, *p* stands for what resembles the image and *n* for
# what does not, but the roles are turned round. It is the similar one that is pushed away. Pushing comes first: a
# visible query has its matches among infrared images, and term 1 drives it from the infrared centroid it resembles.
# Pulling gives the way out a direction, towards something unlike it. Term 3 treats an infrared query alike,
# with grey images standing in for visible ones.
#
# Now line by line. A little noise stands for $\delta$, and one batch of each modality for the images.


# %%
def distance(features, centroids):
    return torch.linalg.vector_norm(features - centroids, dim=1)


def chosen(problem, rows, turn):
    """The centroids C^n and C^p of some crops; turn 0 is term 1, turn 1 is term 3, turn 2 is term 2."""
    rows = torch.from_numpy(rows)
    return [problem.centroids[index[turn, rows]] for index in (problem.pull, problem.push)]


rho = attack.margin
noise = torch.empty(shape).uniform_(-1, 1, generator=generator_for(settings.seed, 50)).to(device) * settings.eps
visible_rows, infrared_rows = (problem.batches[modality].at(0) for modality in Modality)
visible, infrared = (images_of(store, rows, model) for rows in (visible_rows, infrared_rows))
terms = {}

# %% [markdown]
# $\big[\, \|C^n_g - f_v\| - \|C^p_i - f_v\| + \rho \,\big]_+$

# %%
with torch.no_grad():
    f_v = model.embed(clip(visible + noise), VISIBLE)
C_n_g, C_p_i = chosen(problem, visible_rows, 0)
terms["1, visible"] = (distance(f_v, C_n_g) - distance(f_v, C_p_i) + rho).clamp(min=0).mean()

# %% [markdown]
# $\big[\, \|C^n_i - f_g\| - \|C^p_v - f_g\| + \rho \,\big]_+$, where grey is equations 2 and 3,
# $0.299\,R + 0.587\,G + 0.114\,B$ in three channels:

# %%
with torch.no_grad():
    f_g = model.embed(clip(luma(visible) + noise), VISIBLE)
C_n_i, C_p_v = chosen(problem, visible_rows, 2)
terms["2, grey"] = (distance(f_g, C_n_i) - distance(f_g, C_p_v) + rho).clamp(min=0).mean()

# %% [markdown]
# $\big[\, \|C^n_v - f_i\| - \|C^p_g - f_i\| + \rho \,\big]_+$

# %%
with torch.no_grad():
    f_i = model.embed(clip(infrared + noise), INFRARED)
C_n_v, C_p_g = chosen(problem, infrared_rows, 1)
terms["3, infrared"] = (distance(f_i, C_n_v) - distance(f_i, C_p_g) + rho).clamp(min=0).mean()

# %% [markdown]
# The package computes the same (`objective` in `vireid_lite/attacks/cmps_switches.py`, as the middle term is a switch;
# `cmps.py` has the other two):

# %%
everyone = torch.ones(len(visible_rows), dtype=torch.bool)
with torch.no_grad():
    by_package = {
        "1, visible": attack.objective(model, problem, noise, visible_rows, turn=0)[0],
        "2, grey": attack.objective(model, problem, noise, visible_rows, turn=0, chosen=everyone)[0],
        "3, infrared": attack.objective(model, problem, noise, infrared_rows, turn=1)[0],
    }
for name, value in terms.items():
    torch.testing.assert_close(value, by_package[name], rtol=1e-4, atol=1e-4)
pd.DataFrame({"loss": {name: f"{value.item():.3f}" for name, value in terms.items()}}).rename_axis("term")

# %% [markdown]
# One thing equation 1 promises and the algorithm does not keep: only terms 1 and 3 have a step of their own (equations
# 4 to 9). Term 2 never gets one. Grey enters the paper's algorithm as an augmentation, a crop in five, and the
# centroids do the rest. The package has the middle term as a switch, `grey_anchor`.

# %% [markdown]
# ## One delta, a few steps
#
# Algorithm 1 in a dozen lines: a visible step, an infrared step, over and over, on one shared $\delta$. Each gradient
# is scaled to L1 length 1 and added to the momentum $\Delta$ ($\theta = 1$), and $\delta$ moves by $\alpha =
# \varepsilon/12$ along its sign. `sign=-1` descends; [below](#why-descent) we ask whether that is right.
#
# :::{figure-md} fig-triplet-universal
# ![Two columns of steps. Learned once: to training images of both modalities delta is added; the sum is clipped to
# pixels and passes the frozen victim; loss, gradient, sign step and projection follow, and an arrow leads back to delta
# for the next batch. Added to every query: the same delta is added to a query, which is clipped, rounded to 8 bits, and
# ranked against a clean gallery by the same victim.](../book/_static/drawings/universal.svg)
#
# A universal attack, of which the next lines are the loop. It changes $\delta$ and nothing else (purple); below, where
# queries come, $\delta$ is the same for all of them.
# :::


# %%
def walk(sign, iterations):
    """Delta after each iteration of algorithm 1 without grey, and what each gradient saw: (loss, share active)."""
    delta = momentum = torch.zeros(shape, device=device)
    path, seen = [delta], []
    with frozen(model):
        for step in range(iterations):
            for modality in Modality:  # equations 4 to 6, then 7 to 9
                rows = problem.batches[modality].at(step)
                gradient, loss, active = attack.gradient(model, problem, delta, rows, turn=int(modality))
                momentum = attack.momentum * momentum + l1_normalised(gradient)
                delta = delta + sign * attack.step_share * attack.eps * momentum.sign()
                delta = delta.clamp(-attack.eps, attack.eps)
                seen.append((loss.item(), active.item()))
            path.append(delta)
    return path, seen


down, seen_down = walk(-1, settings.steps)

# %% [markdown]
# It is the attack of the package (rounding may turn a few signs where a momentum is next to zero):

# %%
state = {name: value.to(device) for name, value in attack.start(shape, settings.seed).items()}
with frozen(model):
    for step in range(min(2, settings.steps)):
        attack.step(model, problem, state, step, settings.seed)
assert (state["delta"] == down[min(2, settings.steps)]).float().mean() > 0.99

# %% [markdown]
# Where do features go? They live in hundreds of dimensions, so a picture must give something up. A plane through the
# anchor and its two centroids keeps their three distances, until the anchor moves and leaves the plane. We can do
# better, since a term asks for nothing but two distances: turn every point about the axis through $C^p$ and $C^n$ into
# one half-plane. Its place along the axis and its distance from the axis stay what they are, hence **its distances to
# $C^p$ and to $C^n$ are exact, for every point at once**. What is given up is the rest: two points of the half-plane
# may be farther apart in truth than they look ({numref}`fig-triplet-terms`).


# %%
def half_plane(points, push, pull):
    """Coordinates (n, 2) of points (n, D): along the axis from C^p to C^n, and distance from that axis."""
    axis = F.normalize(pull - push, dim=0)
    along = (points - push) @ axis
    away = torch.linalg.vector_norm(points - push - along[:, None] * axis, dim=1)
    return torch.stack([along, away], 1).cpu().numpy()


def features_of(problem, rows, turn, delta):
    images = images_of(problem.store, rows, model)
    images = luma(images) if turn == 2 else images
    with torch.no_grad():
        return model.embed(clip(images + delta), INFRARED if turn == 1 else VISIBLE)


pictures = []
for name, rows, turn in (
    ("1: visible", visible_rows, 0),
    ("2: grey", visible_rows, 2),
    ("3: infrared", infrared_rows, 1),
):
    pull, push = chosen(problem, rows, turn)
    clean = features_of(problem, rows, turn, down[0])
    gap = distance(clean, pull) - distance(clean, push)
    typical = int((gap - gap.median()).abs().argmin())  # neither the easiest nor the hardest of the batch
    track = torch.cat([features_of(problem, rows[[typical]], turn, delta) for delta in down])
    ends = torch.stack([push[typical], pull[typical]])
    spots = half_plane(torch.cat([ends, track]), *ends)
    exact = torch.cdist(track.double(), ends.double()).cpu().numpy()
    drawn = np.linalg.norm(spots[2:, None] - spots[None, :2], axis=2)
    assert np.allclose(exact, drawn, atol=1e-3)  # the claim about this picture
    pictures.append((name, spots))

# %% mystnb={"figure": {"caption": "One anchor of each term on its way, from the ring to the square. Its distances to both centroids are exact. In the shaded region the term is zero: there the anchor is nearer to what it is pulled to by at least the margin. Look how far the way leads and whether it reaches the shade.", "name": "fig-triplet-terms"}, "image": {"alt": "Three panels, each with a cross at the lower left, a star at the lower right, a shaded region bending around the star, and above them a short dotted track between a ring and a square."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.5), layout="constrained", sharey=True)
top, right = (1.1 * max(spots[:, axis].max() for _, spots in pictures) for axis in (1, 0))
for axes, (name, spots) in zip(panels, pictures, strict=True):
    push, pull, track = spots[0], spots[1], spots[2:]
    x, y = np.meshgrid(np.linspace(-0.3, right, 200), np.linspace(-0.08, top, 200))
    field = np.hypot(x - pull[0], y) - np.hypot(x, y) + rho
    axes.contourf(x, y, field, levels=[-10, 0], colors=["#dddddd"])
    axes.contour(x, y, field, levels=[0], colors=[plots.CHANCE], linewidths=1)
    axes.plot(*push, "X", color=plots.WRONG, markersize=9, label="$C^p$, pushed from")
    axes.plot(*pull, "*", color=plots.RIGHT, markersize=12, label="$C^n$, pulled to")
    axes.plot(*track.T, ".-", color=plots.SERIES[0], markersize=3, linewidth=1)
    axes.plot(*track[0], "o", color=plots.SERIES[0], markerfacecolor="white", markersize=8, label="anchor, clean")
    axes.plot(*track[-1], "s", color=plots.SERIES[0], markersize=7, label="anchor, attacked")
    axes.set(title=name, aspect="equal", xlabel="along the axis", xlim=(-0.3, right), ylim=(-0.08, top))
panels[0].set_ylabel("from the axis")
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# One anchor is an anecdote. For all others the two distances themselves are the picture
# ({numref}`fig-triplet-distances`). And as $\delta$ was made on these people, we look at others: test identities, each
# crop with centroids chosen as in training, by the rule that [a later section](#the-choice-the-paper-leaves-open) is
# about.


# %%
def choose(clean, pull_bank, push_bank):
    """The least similar centroid of one bank and the most similar one of another, by cosine; rows of all centroids."""
    first = {name: number * k for number, name in enumerate(banks)}
    pull = (clean @ F.normalize(banks[pull_bank]).T).argmin(1) + first[pull_bank]
    push = (clean @ F.normalize(banks[push_bank]).T).argmax(1) + first[push_bank]
    return pull, push


PULL_PUSH = {0: ("grey", "infrared"), 1: ("visible", "grey"), 2: ("infrared", "visible")}  # by turn
train_features = embed_store(model, store, device=device, progress=False)
for turn, modality in ((0, VISIBLE), (1, INFRARED), (2, VISIBLE)):  # the function is the package's choice
    rows = torch.from_numpy(rows_of[modality])
    pull, push = choose(train_features[rows], *PULL_PUSH[turn])
    # Rounding may decide between two centroids that are equally similar.
    assert (pull == problem.pull[turn, rows]).float().mean() > 0.98
    assert (push == problem.push[turn, rows]).float().mean() > 0.98


def two_distances(problem, rows, turn, delta):
    """||C^n - f|| and ||C^p - f|| of some crops under delta, (n,) each."""
    features = features_of(problem, rows, turn, delta)
    return [distance(features, centroids).cpu().numpy() for centroids in chosen(problem, rows, turn)]


def term(problem, rows, turn, delta):
    near, far = two_distances(problem, rows, turn, delta)
    return np.maximum(near - far + rho, 0)


# %% tags=["hide-input"]
trial = dataset.trials(VISIBLE)[0]
sides = [cached(dataset, side, progress=False) for side in trial]
parts = [np.unique(np.linspace(0, len(side) - 1, 400).round().astype(int)) for side in sides]  # at most 400 each
held = ImageStore(
    np.concatenate([side.images[part] for side, part in zip(sides, parts, strict=True)]),
    [side.records[row] for side, part in zip(sides, parts, strict=True) for row in part],
)
held_rows = {m: np.flatnonzero(held.modalities.numpy() == m) for m in Modality}
held_people = np.array([record.identity for record in held.records])
held_features = embed_store(model, held, device=device, progress=False)
pull, push = torch.zeros(2, 3, len(held), dtype=torch.int64, device=device)
for turn, modality in ((0, VISIBLE), (1, INFRARED), (2, VISIBLE)):
    rows = torch.from_numpy(held_rows[modality])
    pull[turn, rows], push[turn, rows] = choose(held_features[rows], *PULL_PUSH[turn])
unseen = Problem(held, {}, problem.centroids, pull, push)
some = {m: rows[np.unique(np.linspace(0, len(rows) - 1, 64).round().astype(int))] for m, rows in held_rows.items()}

# %% mystnb={"figure": {"caption": "Test identities: distance to the centroid they are pushed from (across) and to the one they are pulled to (up), clean (rings) and under delta (crosses). A point that moves right or down lowers the loss; below the dashed line its term is zero. Look whether all points move alike, and how far the line is.", "name": "fig-triplet-distances"}, "image": {"alt": "Three scatter plots side by side with rings and crosses, and a rising dashed line in the lower right corner of each."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.9), layout="constrained", sharex=True, sharey=True)
for axes, (name, modality, turn) in zip(
    panels, (("1: visible", VISIBLE, 0), ("2: grey", VISIBLE, 2), ("3: infrared", INFRARED, 1)), strict=True
):
    for delta, marker, colour, label in (
        (down[0], "o", plots.SERIES[0], "clean"),
        (down[-1], "x", plots.SERIES[1], "attacked"),
    ):
        to_pull, to_push = two_distances(unseen, some[modality], turn, delta)
        face = "none" if marker == "o" else colour
        axes.scatter(to_push, to_pull, marker=marker, s=16, facecolors=face, color=colour, linewidth=0.9, label=label)
    axes.set(title=name, xlabel="to $C^p$")
limits = panels[0].get_xlim(), panels[0].get_ylim()
for axes in panels:
    axes.axline((1, 1 - rho), slope=1, color=plots.CHANCE, linestyle="--", linewidth=1)
lowest = min(limits[1][0], limits[0][1] - rho - 0.1)
panels[0].set(xlim=limits[0], ylim=(lowest, limits[1][1]), ylabel="to $C^n$")
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# The means, and the paired interval of each change over identities:


# %% tags=["hide-input"]
def bracket(found, digits=3, sign="+"):
    return f"{found[0]:{sign}.{digits}f} [{found[1]:{sign}.{digits}f}, {found[2]:{sign}.{digits}f}]"


lines = ["| term | distance to Cᵖ | change | distance to Cⁿ | change |", "|---|---|---|---|---|"]
moved = {}
for name, modality, turn in (("1, visible", VISIBLE, 0), ("2, grey", VISIBLE, 2), ("3, infrared", INFRARED, 1)):
    before, after = (two_distances(unseen, some[modality], turn, delta) for delta in (down[0], down[-1]))
    own = held_people[some[modality]]
    moved[name] = [metrics.paired_bootstrap(a, b, own) for a, b in zip(before, after, strict=True)]
    near, far = moved[name]
    lines.append(f"| {name} | {before[1].mean():.3f} | {bracket(far)} | {before[0].mean():.3f} | {bracket(near)} |")
leaves = [abs(far.difference) > abs(near.difference) for near, far in moved.values()]
Markdown(
    "\n".join(lines)
    + f"\n\nAfter {settings.steps} iterations. "
    + (
        "In every term the push does more than the pull: features leave Cᵖ by more than they near Cⁿ."
        if all(leaves)
        else "In every term the pull does more than the push: features near Cⁿ by more than they leave Cᵖ."
        if not any(leaves)
        else "Whether the push or the pull does more depends on the term."
    )
    + " Term 2 took no step of its own; what moves it, terms 1 and 3 have moved along."
)

# %% [markdown]
# ## What grey is for
#
# Equations 2 and 3 take the colour from a visible image. The idea: a grey image lies between the spectra, so what holds
# for visible, grey and infrared images holds across the gap. Two things to check. The first is arithmetic. An infrared
# image has three equal channels, and .299 + .587 + .114 is 1.

# %%
with torch.no_grad():
    change = (luma(infrared) - infrared).abs().max().item()
    levels = ((luma(infrared) * 255).round() - (infrared * 255).round()).abs().max().item()
    of_colour = (luma(visible) - visible).abs().mean().item()
Markdown(
    f"Grey changes an **infrared** crop by at most {change:.1e} (of 1), {levels:.0f} of 255 levels after rounding to 8"
    f" bits; a **visible** crop by {255 * of_colour:.1f} levels on average. `grey_probability` acts on visible crops"
    " alone."
)

# %% [markdown]
# So the paper's "random grey of either modality" is an augmentation of one of them. The second check: do grey features
# lie between the two? Three clouds of test identities: visible, infrared, and the visible crops in grey
# ({numref}`fig-triplet-grey`). Grey goes through the visible {term}`stem`, where these images come from.

# %%
visible_store = ImageStore(held.images[held_rows[VISIBLE]], [held.records[row] for row in held_rows[VISIBLE]])
grey_features = embed_store(model, visible_store, perturb=lambda images, _: luma(images), device=device, progress=False)
clouds = {
    "visible": held_features[held_rows[VISIBLE]],
    "grey": grey_features,
    "infrared": held_features[held_rows[INFRARED]],
}
means = {name: cloud.mean(0) for name, cloud in clouds.items()}
width = torch.stack([distance(cloud, means[name]).mean() for name, cloud in clouds.items()]).mean()
gaps = {
    f"{one} to {other}": ((means[one] - means[other]).norm() / width).item()
    for one, other in (("visible", "grey"), ("grey", "infrared"), ("visible", "infrared"))
}

# Is grey nearer to infrared than visible is? Resample people; one row of `by_person` is one person's mean feature.
visible_people, infrared_people = (held_people[held_rows[m]] for m in Modality)
both = np.intersect1d(visible_people, infrared_people)
by_person = {}
for name, cloud in clouds.items():
    centres, names = identity_centroids(cloud, infrared_people if name == "infrared" else visible_people)
    by_person[name] = centres[torch.from_numpy(np.searchsorted(names, both))]
draws = torch.randint(len(both), (1000, len(both)), generator=generator_for(settings.seed, 54)).to(device)
drawn = {name: torch.stack([rows[draw].mean(0) for draw in draws]) for name, rows in by_person.items()}
nearness = (distance(drawn["grey"], drawn["infrared"]) - distance(drawn["visible"], drawn["infrared"])) / width
nearness = np.quantile(nearness.cpu().numpy(), [0.025, 0.975])

# How far each visible crop, in colour and in grey, is from the infrared images of its own person.
own = held_people[held_rows[VISIBLE]]
centres, names = identity_centroids(clouds["infrared"], held_people[held_rows[INFRARED]])
known = np.isin(own, names)
target = centres[torch.from_numpy(np.searchsorted(names, own[known]))]
to_infrared = {name: distance(clouds[name][known], target).cpu().numpy() for name in ("visible", "grey")}
nearer = metrics.paired_bootstrap(to_infrared["visible"], to_infrared["grey"], own[known])

# %% mystnb={"figure": {"caption": "Features of test identities in the plane through the three clouds' means (large, black-edged). The distances between these three are exact; single points are flattened onto the plane, so clouds look closer than they are. Look where grey lies, and how large the gaps are beside the clouds.", "name": "fig-triplet-grey"}, "image": {"alt": "Three overlapping clouds of small circles, squares and triangles, and three large marks of the same shapes for their means."}} tags=["hide-input"]
first = F.normalize(means["infrared"] - means["visible"], dim=0)
rest = means["grey"] - means["visible"]
second = F.normalize(rest - (rest @ first) * first, dim=0)
plane = torch.stack([first, second], 1)
figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
styles = {
    "visible": ("o", plots.COLOURS[VISIBLE]),
    "grey": ("s", "#666666"),
    "infrared": ("^", plots.COLOURS[INFRARED]),
}
for name, cloud in clouds.items():
    marker, colour = styles[name]
    points = ((cloud - means["visible"]) @ plane).cpu().numpy()
    axes.plot(*points.T, marker, color=colour, markersize=3, alpha=0.35)
for name in clouds:
    marker, colour = styles[name]
    spot = ((means[name] - means["visible"]) @ plane).cpu().numpy()
    axes.plot(*spot, marker, color=colour, markersize=13, markeredgecolor="black", linestyle="", label=name)
axes.set(xlabel="from the visible mean towards the infrared mean", ylabel="towards grey", aspect="equal")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
plt.show()

# %% tags=["hide-input"]
augmented = recipe.settings.augmentation
saw = augmented.grey > 0 or augmented.channels
Markdown(
    "| between the means of | gap |\n|---|---|\n"
    + "\n".join(f"| {name} | {value:.2f} |" for name, value in gaps.items())
    + "\n\nGaps in units of the clouds' mean width. "
    + f"Grey's gap to infrared minus visible's is {gaps['grey to infrared'] - gaps['visible to infrared']:+.2f}"
    f" [{nearness[0]:+.2f}, {nearness[1]:+.2f}] when people are resampled: "
    + (
        "taken as clouds, grey stands nearer to infrared."
        if nearness[1] < 0
        else "taken as clouds, grey stands farther from infrared."
        if nearness[0] > 0
        else "as clouds, neither can be said to stand nearer to infrared."
    )
    + " The distance of a grey crop from its own person's infrared mean, minus that of the same crop in colour, is"
    f" {bracket(nearer)}: "
    + (
        "grey brings it nearer."
        if nearer.high < 0
        else "grey takes it farther away."
        if nearer.low > 0
        else "no difference can be told."
    )
    + (
        " This victim met images of one channel in its visible stem in training (channel augmentation), so a grey one"
        " is nothing new to it."
        if saw
        else " This victim never met a grey image in its visible stem in training."
    )
)

# %% [markdown]
# Grey removes colour and nothing else. What makes infrared differ beyond that, materials that reflect it otherwise and
# light that comes from elsewhere, no weighting of R, G and B can give. Grey images are a guess at the other spectrum,
# made from this one.

# %% [markdown]
# ## Centroids
#
# Why not push from a matching *image*? Because $\delta$ is one for all: what is peculiar to one image, its pose and
# background, averages out in a centroid, and what many images share remains. k-means finds centroids without labels.
# The paper takes one set for each modality; here it has as many clusters as there are identities, 256 at most. With
# labels, one could take the mean of each identity. How different is that? ({numref}`fig-triplet-clusters`)

# %%
summary, sizes = {}, {}
for name, modality in (("visible", VISIBLE), ("infrared", INFRARED)):
    rows = rows_of[modality]
    features, bank = train_features[rows], banks[name]
    cluster = torch.cdist(features, bank).argmin(1).cpu().numpy()
    persons, _ = identity_centroids(features, identities[rows])
    count = np.bincount(cluster, minlength=len(bank))
    member = np.unique(identities[rows], return_inverse=True)[1]
    table = np.zeros((len(bank), people), dtype=int)
    np.add.at(table, (cluster, member), 1)
    apart = torch.cdist(persons, persons).fill_diagonal_(torch.inf).amin(1)
    sizes[name] = count
    summary[name] = {
        "images in a cluster: fewest, median, most": f"{count.min()}, {np.median(count):.0f}, {count.max()}",
        "images in their cluster's most frequent identity": f"{100 * table.max(1).sum() / len(rows):.0f} %",
        "identity centroid to nearest cluster (median)": f"{torch.cdist(persons, bank).amin(1).median():.3f}",
        "identity centroid to nearest other one (median)": f"{apart.median():.3f}",
        "length of a cluster's centroid (median)": f"{bank.norm(dim=1).median():.3f}",
        "length of an identity's centroid (median)": f"{persons.norm(dim=1).median():.3f}",
    }
pd.DataFrame(summary)

# %% mystnb={"figure": {"caption": "How many images a k-means cluster holds, for both banks. Identity centroids would all stand at the dashed lines. A cluster of one image is that image; a large one mixes people.", "name": "fig-triplet-clusters"}, "image": {"alt": "Two stepped histograms of the number of images in a cluster, one solid and one hatched, and vertical dashed lines."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
edges = np.arange(0.5, max(count.max() for count in sizes.values()) + 1.5)
for (name, count), modality, hatch in zip(sizes.items(), Modality, (None, "///"), strict=True):
    colour = plots.COLOURS[modality]
    axes.hist(count, bins=edges, histtype="step", color=colour, hatch=hatch, linewidth=1.6, label=name)
    axes.axvline(len(rows_of[modality]) / people, color=colour, linestyle="--", linewidth=1)
axes.set(xlabel="images in a cluster", ylabel="clusters")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Their limits are in the table. A centroid of several images is shorter than 1, and the more so the more they differ:
# no feature lies there, and its distance to any feature counts its spread as well as its place. A cluster may mix
# people, or split one. And centroids are made of *clean* features once; where the other images go under attack, they do
# not know.

# %% [markdown]
# ## The choice the paper leaves open
#
# Which centroid is $C^p$ and which $C^n$ of an image? The paper refers to UAP-Retrieval {cite}`li2019uap`, where an
# image is pushed from the *most similar* cluster and pulled to the *least similar* one. Its supplement speaks of
# identities instead. We follow the first, with the cosine to the clean feature, and call it **our choice**; it also
# needs no labels. The function `choose` above is all of it. `choice="identity"` is the other reading.
#
# If $C^p$ is to stand for the query's matches, it should hold its own person. Does it?

# %% tags=["hide-input"]
lines = ["| anchor | Cᵖ shows its person: k-means | identity means | guess | different Cⁿ | most frequent Cⁿ |"]
lines.append("|---|---|---|---|---|---|")
hits = []
for name, modality, turn in (("visible", VISIBLE, 0), ("infrared", INFRARED, 1)):
    rows, other = rows_of[modality], rows_of[modality.other]
    # For the infrared anchor the bank is grey; its people are those of the visible crops in grey.
    if turn == 0:
        there = train_features[other]
    else:
        crops = ImageStore(store.images[other], [store.records[row] for row in other])
        there = embed_store(model, crops, perturb=lambda images, _: luma(images), device=device, progress=False)
    bank = banks[PULL_PUSH[turn][1]]
    cluster = torch.cdist(there, bank).argmin(1).cpu().numpy()
    labels, member = np.unique(identities[other], return_inverse=True)
    table = np.zeros((len(bank), len(labels)), dtype=int)
    np.add.at(table, (cluster, member), 1)
    majority = labels[table.argmax(1)]
    push = choose(train_features[rows], *PULL_PUSH[turn])[1] - list(banks).index(PULL_PUSH[turn][1]) * k
    by_cluster = (majority[push.cpu().numpy()] == identities[rows]).mean()
    persons, labels = identity_centroids(there, identities[other])
    nearest = (train_features[rows] @ F.normalize(persons).T).argmax(1).cpu().numpy()
    by_person = (labels[nearest] == identities[rows]).mean()
    picked = np.bincount(problem.pull[turn, torch.from_numpy(rows)].cpu().numpy())
    hits.append(by_cluster)
    lines.append(
        f"| {name} | {100 * by_cluster:.0f} % | {100 * by_person:.0f} % | {100 / people:.1f} %"
        f" | {(picked > 0).sum()} of {k} | {100 * picked.max() / len(rows):.0f} % |"
    )
Markdown(
    "\n".join(lines)
    + "\n\nOn training identities, which the victim was trained to bring together; what strangers would"
    " give, these centroids cannot say, as none of theirs is among them. "
    + (
        "For most images the cluster they are pushed from is mostly their own person, with no label used."
        if min(hits) > 0.5
        else "For many images the cluster they are pushed from is mostly somebody else: a look-alike, not a match."
    )
)

# %% [markdown]
# The last two columns say where everybody is pulled to. The fewer centroids are ever chosen, the more alike is the task
# for all images, and the better one perturbation could do it. That is a property of the rule as much as of the attack.

# %% [markdown]
# ## Two gradients, one delta
#
# The paper's word for the interplay of the two modalities is *synergy*. Seen from $\delta$ there are two wishes, the
# gradient of term 1 over visible images and that of term 3 over infrared ones. If their angle is small, a step for one
# serves the other. If they stand at right angles, a step for one is no help to the other, and beyond that it harms.
#
# A cosine means nothing alone, so it gets company ({numref}`fig-triplet-angles`):
#
# - **a ceiling**: the cosine of two gradients of the *same* modality on different images. A batch's gradient is part
#   signal, part noise, and two modalities cannot agree more than two batches of one do;
# - **a floor**: the cosine after all signs of one gradient were drawn at random. This takes neighbouring pixels as
#   independent, and they are not. So also: one gradient *shifted* against the other, around the edges, by every number
#   of pixels there is. It keeps each one's texture and breaks only their alignment.


# %%
points = sorted({0, settings.steps // 4, settings.steps})
batches = {m: Batches(rows_of[m], attack.batch_size, settings.seed + 50) for m in Modality}
count = min([settings.batches] + [batches[m].per_epoch for m in Modality])  # so that no crop comes twice


def gradients(problem, delta, modality):
    """Gradients of one modality's term on disjoint batches, (count, 3, H, W)."""
    with frozen(model):
        return torch.stack(
            [
                attack.gradient(model, problem, delta, batches[modality].at(step), turn=int(modality))[0]
                for step in range(count)
            ]
        )


def unit(gradient):
    return F.normalize(gradient.flatten(1)).view_as(gradient)


def cosines(first, second=None):
    """All cosines of two sets of unit gradients, or of one set's different members."""
    if second is None:
        upper = torch.triu_indices(len(first), len(first), 1)
        return (first.flatten(1) @ first.flatten(1).T)[upper[0], upper[1]].cpu().numpy()
    return (first.flatten(1) @ second.flatten(1).T).flatten().cpu().numpy()


def interval(first, second, repeats=1000):
    """95 % interval of the mean cosine of two sets, over resampled batches of both."""
    table = (first.flatten(1) @ second.flatten(1).T).cpu().numpy()
    rng = np.random.default_rng(settings.seed)
    v, i = rng.integers(len(table), size=(2, repeats, len(table)))
    return np.quantile(table[v[:, :, None], i[:, None, :]].mean((1, 2)), [0.025, 0.975])


def floors(first, second, draws=500):
    """What the mean cosine of two sets becomes under random signs (draws,), and under every shift but none."""
    first, second = first.mean(0), second.mean(0)
    signs = torch.randint(2, (draws, first.numel()), generator=generator_for(settings.seed, 51)) * 2.0 - 1
    flipped = signs.to(first) @ (first * second).flatten()
    spectrum = torch.fft.rfft2(first).conj() * torch.fft.rfft2(second)
    shifted = torch.fft.irfft2(spectrum, s=first.shape[1:]).sum(0).flatten()  # all shifts at once
    torch.testing.assert_close(shifted[0], (first * second).sum(), rtol=1e-3, atol=1e-5)
    return flipped.cpu().numpy(), shifted[1:].cpu().numpy()


raw = {point: {m: gradients(problem, down[point], m) for m in Modality} for point in points}
angles = {}
for point, by_modality in raw.items():
    v, i = (unit(by_modality[m]) for m in Modality)
    flipped, shifted = (np.quantile(found, [0.025, 0.975]) for found in floors(v, i))
    angles[point] = {
        "visible pairs": cosines(v),
        "infrared pairs": cosines(i),
        "visible-infrared pairs": cosines(v, i),
        "interval": interval(v, i),
        "flipped": flipped,
        "shifted": shifted,
    }

# %% mystnb={"figure": {"caption": "Cosines of gradients, one small mark a pair of batches, black bar the mean: within each modality (the ceiling) and across, at delta = 0 and later. To the right of each group, where the mean across would fall by chance: thick bar under shifts, thin bar under random signs (95 %). Look whether the means across leave the bars, and how near they come to the ceiling.", "name": "fig-triplet-angles"}, "image": {"alt": "Groups of three narrow columns of marks over the iterations, circles, triangles and squares, each column with a short black line, and beside each group two vertical grey bars around zero."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 3.9), layout="constrained")
scatter = np.random.default_rng(settings.seed)
kinds = (
    ("visible pairs", "o", plots.COLOURS[VISIBLE]),
    ("infrared pairs", "^", plots.COLOURS[INFRARED]),
    ("visible-infrared pairs", "s", plots.SERIES[3]),
)
for place, found in enumerate(angles.values()):
    for column, (kind, marker, colour) in enumerate(kinds):
        x = place + 0.2 * column
        values = found[kind]
        axes.plot(x + scatter.uniform(-0.06, 0.06, len(values)), values, marker, color=colour, markersize=3, alpha=0.5)
        axes.plot([x - 0.08, x + 0.08], [values.mean()] * 2, color="black", linewidth=2)
    axes.plot([place + 0.57] * 2, found["shifted"], color="0.7", linewidth=6, solid_capstyle="butt")
    axes.plot([place + 0.65] * 2, found["flipped"], color="0.3", linewidth=2, solid_capstyle="butt")
axes.axhline(0, color=plots.CHANCE, linewidth=0.8)
axes.set_xticks([place + 0.25 for place in range(len(points))], [f"after {p} iterations" for p in points])
axes.set(ylabel="cosine of two gradients")
axes.grid(axis="x", visible=False)
marks = [plt.Line2D([], [], color=colour, marker=marker, linestyle="") for _, marker, colour in kinds]
bars = [plt.Line2D([], [], color="0.7", linewidth=6), plt.Line2D([], [], color="0.3", linewidth=2)]
names = [kind for kind, _, _ in kinds] + ["by chance: shifts", "by chance: signs"]
figure.legend(marks + bars, names, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% tags=["hide-input"]
lines = [
    "| iterations | within visible | within infrared | across | across / ceiling | shifts, 95 % | signs, 95 % |",
    "|---|---|---|---|---|---|---|",
]
verdicts = []
for point, found in angles.items():
    v, i, across = (found[kind].mean() for kind, _, _ in kinds)
    ceiling = f"{across / np.sqrt(v * i):.2f}" if min(v, i) > 0 else "–"
    own, shifts, signs = (found[kind] for kind in ("interval", "shifted", "flipped"))
    ranges = [f"{low:+.3f} to {high:+.3f}" for low, high in (shifts, signs)]
    lines.append(f"| {point} | {v:.3f} | {i:.3f} | {bracket((across, *own))} | {ceiling} | {ranges[0]} | {ranges[1]} |")
    agree, conflict = min(own[0], across - shifts[1]) > 0, max(own[1], across - shifts[0]) < 0
    verdicts.append("agree" if agree else "conflict" if conflict else "cannot be told from chance")
said = "; ".join(f"after {point} iterations they {verdict}" for point, verdict in zip(points, verdicts, strict=True))
Markdown(
    "\n".join(lines) + f"\n\nMean cosines, {count} batches of {attack.batch_size} of each modality. The ceiling is the"
    " geometric mean of the two *within* columns; near zero it makes the ratio a noisy number. Brackets: 95 % over"
    f" batches. Where they exclude zero and the mean lies outside what shifts give: {said}."
)

# %% [markdown]
# Angles are about infinitely small steps. A direct question is: one step of size $\alpha$ along the sign of one
# modality's mean gradient, what does it do to the *other* modality's term, on test identities? Below zero it helps. A
# value of $\delta$ that sits at its bound has nowhere to go, so a later step moves fewer values, and they need not be those
# on which the gradients agree.

# %%
lines = [
    "| iterations | step made for | change of the visible term | change of the infrared term | values moved |"
    " gradients equal in sign: of all | of those moved |",
    "|---|---|---|---|---|---|---|",
]
helped, disputed = {}, {}
for point in (points[0], points[-1]):
    start = {m: term(unseen, some[m], int(m), down[point]) for m in Modality}
    signs = [raw[point][m].mean(0).sign() for m in Modality]
    alike = signs[0] == signs[1]
    for giver in Modality:
        direction = l1_normalised(raw[point][giver].mean(0)).sign()
        there = (down[point] - attack.step_share * attack.eps * direction).clamp(-attack.eps, attack.eps)
        cells = []
        for taker in Modality:
            after = term(unseen, some[taker], int(taker), there)
            found = metrics.paired_bootstrap(start[taker], after, held_people[some[taker]])
            cells.append(bracket(found, 4))
            if giver != taker:
                helped[point, giver] = (
                    "helps" if found.high < 0 else "harms" if found.low > 0 else "does nothing sure for"
                )
        went = there != down[point]
        shares = (went.float().mean(), alike.float().mean(), alike[went].float().mean())
        disputed[point, giver] = shares[2] < 0.5 < shares[1]
        cells += [f"{100 * share.item():.0f} %" for share in shares]
        lines.append(f"| {point} | {giver.name.lower()} | {' | '.join(cells)} |")
said = "; ".join(
    f"after {point}, the {giver.name.lower()} step {word} the other modality" for (point, giver), word in helped.items()
)
harmed = [disputed[case] for case, word in helped.items() if word == "harms"]
Markdown(
    "\n".join(lines)
    + f"\n\nWith the paired interval over identities. Across the modalities: {said}."
    + (
        " Gradients may agree and a step do harm all the same: most of the values on which they agree sit at their bound"
        " by then, and on those that can still move the signs are opposed more often than not."
        if harmed and all(harmed)
        else ""
    )
)

# %% [markdown]
# Keep apart what this can show. Agreement says that *one* perturbation can serve both modalities on this victim. It
# does not say that it needs images of both to be found, and that is what synergy would mean.

# %% [markdown]
# ## The hinge
#
# $[z]_+$ stops a term once $C^n$ is nearer than $C^p$ by $\rho$; from then on that image gives no gradient. A hinge
# that is always active is no hinge: the loss is then a plain difference of distances and $\rho$ a constant without
# effect.

# %%
active = np.array([share for _, share in seen_down])
apart = torch.cat(
    [
        distance(*chosen(problem, rows, turn))
        for rows, turn in ((rows_of[VISIBLE], 0), (rows_of[INFRARED], 1), (rows_of[VISIBLE], 2))
    ]
)
Markdown(
    f"Over {settings.steps} iterations the share of active hinges goes from {100 * active[0]:.0f} % to"
    f" {100 * active[-1]:.0f} %, {100 * active.min():.0f} % at the least. "
    + (
        "Here the margin never mattered: any larger one would have given the same perturbation."
        if active.min() == 1
        else "Images that are done stop pulling, and the others have the batch to themselves."
    )
    + f" By the triangle inequality a hinge can rest only where Cᵖ and Cⁿ are at least rho = {rho:g} apart;"
    f" the distance of a pair is {apart.min():.2f} to {apart.max():.2f}."
)

# %% [markdown]
# ## Why descent
#
# Equations 6 and 9 and algorithm 1 print $\delta \leftarrow \mathrm{clip}(\delta + \alpha\, \mathrm{sign}\, \Delta)$:
# they climb. Climbing the loss above drives a feature *towards* the centroid it resembles, and away from the one it
# does not. The released code descends (`MI_SGD.py`, line 106). One run settles it: the same walk with the other sign,
# scored on test identities, with a control, random signs at full size ({numref}`fig-triplet-signs`).

# %%
up, seen_up = walk(+1, settings.steps)
random_signs = torch.rand(shape, generator=generator_for(settings.seed, 52)).round() * 2 - 1
stops = sorted({*range(0, settings.steps, max(1, settings.steps // 5)), settings.steps})
losses = {
    (name, m): [term(unseen, some[m], int(m), path[stop]).mean() for stop in stops]
    for name, path in (("descent", down), ("ascent, as printed", up))
    for m in Modality
}

# %% mystnb={"figure": {"caption": "The two terms on test identities along both walks. Look whether descent lowers them, or the gradient is of no use beyond its batch, and whether ascent raises them. Where ascent stays flat, it found no single delta that brings all features nearer to what each of them resembles already.", "name": "fig-triplet-signs"}, "image": {"alt": "Four lines from two common starting points at the left: two solid and two dashed, with round and triangular markers, over the iterations."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
for (name, modality), values in losses.items():
    style = "-" if name == "descent" else "--"
    marker = "o" if modality == VISIBLE else "^"
    label = f"{name}: {modality.name.lower()}"
    axes.plot(stops, values, style, marker=marker, color=plots.COLOURS[modality], label=label)
axes.set(xlabel="iterations", ylabel="term of equation 1")
axes.xaxis.get_major_locator().set_params(integer=True)
figure.legend(loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% tags=["hide-input"]
clean_scores = [evaluate(model, dataset, m, device=device, progress=False) for m in Modality]
lines = [
    f"| | {' | '.join(f'{direction_name(m)}: rank-1 % | change' for m in Modality)} |",
    "|---|---|---|---|---|",
    f"| clean | {100 * clean_scores[0].rank1:.1f} | | {100 * clean_scores[1].rank1:.1f} | |",
]
changes = {}
for name, delta in (
    ("random signs", settings.eps * random_signs),
    ("descent", down[-1]),
    ("ascent, as printed", up[-1]),
):
    made = UniversalPerturbation(delta.cpu(), settings.eps)
    cells = []
    for clean, modality in zip(clean_scores, Modality, strict=True):
        scores = evaluate(model, dataset, modality, perturb=made.apply_rounded, device=device, progress=False)
        found = difference(clean, scores)["rank1"]
        changes[name, modality] = scores.rank1 - clean.rank1
        cells.append(f"{100 * scores.rank1:.1f} | {bracket([100 * found[p] for p in found], 1)}")
    lines.append(f"| {name} | {' | '.join(cells)} |")
chance = clean_scores[0].chance.independent.rank1
lines.append(f"| chance | {100 * chance.mean:.1f} | | {100 * clean_scores[1].chance.independent.rank1.mean:.1f} | |")
worse = [changes["descent", m] < changes["ascent, as printed", m] for m in Modality]
Markdown(
    "\n".join(lines)
    + "\n\nAttacked queries rounded to 8 bits; change from clean with its paired 95 % interval. "
    + (
        "In both directions descent does more damage than the printed sign."
        if all(worse)
        else "In both directions the printed sign does at least as much damage, which speaks against this section."
        if not any(worse)
        else "The two directions disagree on which sign does more damage; take more iterations."
    )
)

# %% [markdown]
# A sign like this is easily lost between a paper and its code, and it can be checked without running an attack to its
# end: take a few steps and ask whether the quantity moves as the text says. We descend in both modes.

# %% [markdown]
# ## What the L1 norm is for
#
# $\Delta = \theta \Delta' + \nabla / \|\nabla\|_1$, and then only the sign of $\Delta$ is used. The sign of one
# gradient has no scale:

# %%
g_v, g_i = (raw[0][m] for m in Modality)
assert torch.equal((1000 * g_v[0]).sign(), g_v[0].sign())

# %% [markdown]
# So the factor of 10 that the released code has before the loss changes nothing. But momentum is a *sum*, and in a sum
# the larger gradient decides. Suppose one modality's gradients were larger by some factor. Whose sign does the momentum follow?


# %%
def share_decided(by, momentum):
    return 100 * (momentum.sign() == by.sum(0).sign()).float().mean().item()


def scaled(gradient):
    return torch.stack([l1_normalised(one) for one in gradient])


table = {}
for factor in (1, 10, 100):
    plain = (factor * g_v).sum(0) + g_i.sum(0)
    normalised = scaled(factor * g_v).sum(0) + scaled(g_i).sum(0)
    table[f"visible × {factor}"] = {
        f"{kind}: as {name}": f"{share_decided(gradient, momentum):.0f} %"
        for kind, momentum in (("plain", plain), ("L1", normalised))
        for name, gradient in (("visible", g_v), ("infrared", g_i))
    }
pd.DataFrame(table).T

# %% tags=["hide-input"]
ratios = {p: (raw[p][VISIBLE].abs().sum((1, 2, 3)).mean() / raw[p][INFRARED].abs().sum((1, 2, 3)).mean()) for p in raw}
said = " and ".join(f"{ratio.item():.2f} after {p} iterations" for p, ratio in ratios.items())
Markdown(
    "Gradients at delta = 0: share of the values whose step has the sign that one modality alone would give. The"
    f" true ratio of the L1 norms, visible to infrared, is {said}: the nearer to 1, the less there was to normalise."
)

# %% [markdown]
# The normalisation also has a price. A batch in which two hinges are active speaks as loudly as one in which all are,
# and a gradient near zero, which is mostly rounding, is blown up to full size. Algorithm 1 leaves the norm out,
# equations 5 and 8 and the released code have it.

# %% [markdown]
# ## The released triplet beside it
#
# The code that was released {cite}`gong2024cmps` computes another triplet. It is `CMPS(mode="released")` here, and each
# line of the table is one switch; chapter 6 says what each costs.

# %%
meaning = {
    "bank": "where centroids come from",
    "score": "similarity to a centroid (dot: long ones win)",
    "feature": "what the distances are taken of",
    "centroid_input": "what the centroids' images passed before the network",
    "stem": "the stem images go through",
    "grey": "in which pass crops turn grey",
    "clusters": "k (0: as many as identities, at most 256)",
}
paper, code = (CMPS(mode=mode).describe() for mode in ("paper", "released"))
lines = ["| switch | paper | released code | what it says |", "|---|---|---|---|"]
for name, words in meaning.items():
    lines.append(f"| `{name}` | {paper[name]} | {code[name]} | {words} |")
Markdown("\n".join(lines))

# %% [markdown]
# The bank matters most to the story. "Mixed" means both modalities in one k-means, so nothing in the released loss
# knows of two spectra. Is an image then pushed from the other modality, or from its own?

# %%
few = training_store(dataset, max(12, settings.identities // 4))
released = CMPS(mode="released", eps=settings.eps, clusters=len({record.identity for record in few.records}))
with frozen(model):
    theirs = released.prepare(model, few, settings.seed)
stem = model.stages[0]
with torch.no_grad():
    pooled = torch.cat(
        [
            # As the centroids were made: without the mean and deviation that the network takes out of its input.
            model(images_of(few, rows, model) * stem.std + stem.mean, VISIBLE).pooled
            for rows in np.array_split(np.arange(len(few)), -(-len(few) // 256))
        ]
    )
bank = theirs.centroids[len(theirs.centroids) // 2 :]  # the second pass: no crop in grey
cluster = torch.cdist(pooled, bank).argmin(1).cpu()
infrared_share = torch.stack(
    [few.modalities[cluster == number].float().mean() for number in range(len(bank))]
)  # of each cluster's images; nan where none is nearest
pushed_from = theirs.push[1].cpu() - (len(theirs.centroids) - len(bank))
own_share = torch.where(few.modalities == 1, infrared_share[pushed_from], 1 - infrared_share[pushed_from])
lengths = bank.norm(dim=1)
Markdown(
    f"On {len({record.identity for record in few.records})} identities: of the images behind a crop's Cᵖ"
    f" **{100 * own_share.nanmean().item():.0f} %** are of the crop's own modality (in equation 1: none). Centroids of"
    f" pooled features are {lengths.min().item():.1f} to {lengths.max().item():.1f} long, and the dot product favours"
    " the long ones."
)

# %% [markdown]
# ## What synergy would need
#
# The claim is that two modalities together make a stronger perturbation than either, *because* the triplet crosses
# between them. A low rank-1 does not show it, since any good attack has one. Agreement of gradients does not show it.
# It takes controls that change one thing, at the same number of gradient evaluations, on the same victim:
#
# | Control | If the claim holds, it must be weaker, because |
# |---|---|
# | centroids of the image's own modality (so none of grey) | nothing crosses |
# | visible, or infrared, images alone | the other modality has no say |
# | one joint step instead of two alternating ones | neither modality sees what the other's step did |
# | no grey crops | grey is left in the centroids alone |
#
# Identity centroids, each image pushed from its own person's, are a control of another kind: do labels buy anything?
# Every comparison is paired over the identities of one victim, *control minus CMPS*, from committed
# {term}`run cards <run card>`; steps and step size are the same on both sides. Above zero the control is weaker.

# %% tags=["hide-input"]
from vireid_lite.study import tables
from vireid_lite.study.cards import read_cards, stale_note
from vireid_lite.chapters.costs import COSTS

CONTROLS = {
    "own-modality centroids": {"bank": "same"},
    "visible images alone": {"modalities": "visible"},
    "infrared images alone": {"modalities": "infrared"},
    "joint step": {"update": "joint"},
    "no grey crops": {"grey_probability": 0},
    "identity centroids": {"centroids": "identity", "choice": "identity"},
}
SEEDS = (0, 1, 2)
lite = tier_recipe("lite").describe()


def free_cmps(kind):
    """Cards of CMPS (paper) with free infrared channels, on the easy synthetic set and this page's recipe."""
    return [
        card
        for card in read_cards(COSTS.parent, kind=kind, tier="lite", victim=lite)
        if card["dataset"].get("difficulty") == "easy"
        and not card["dataset"].get("thermal")
        and (card["attack"] or {}).get("name") == "cmps"
        and card["attack"]["mode"] == "paper"
        and not card["attack"]["tied"]
    ]


def pair(switch, seed):
    """The main card of a seed and the control that differs from it in this switch and nothing else, or None."""
    for main in free_cmps("attack"):
        for control in free_cmps("control"):
            alike = main["dataset"] == control["dataset"] and main["seed"] == control["seed"] == seed
            if alike and {**main["attack"], **switch} == control["attack"]:
                return main, control
    return None


pairs = {(name, seed): pair(switch, seed) for name, switch in CONTROLS.items() for seed in SEEDS}
lines = [f"| control | seed | {' | '.join(tables.DIRECTIONS)} |", "|---|---|---|---|"]
clear = {(name, way): np.zeros(3, int) for name in CONTROLS for way in tables.DIRECTIONS}  # weaker, stronger, of
for (name, seed), found in pairs.items():
    cells = []
    for way in tables.DIRECTIONS:
        if found is None:
            cells.append("pending")
            continue
        apart = tables.compare(*found, way)
        clear[name, way] += apart.low > 0, apart.high < 0, 1
        scores = [100 * card["scores_8_bit"][way]["rank1"] for card in found]
        cells.append(f"{scores[0]:.1f} → {scores[1]:.1f}: {bracket([100 * value for value in apart], 1)}")
    lines.append(f"| {name} | {seed} | {' | '.join(cells)} |")
missing = sum(found is None for found in pairs.values())
used = {card["key"]: card for found in pairs.values() if found for card in found}
both_ways = {name: sum(clear[name, way] for way in tables.DIRECTIONS) for name in CONTROLS}
said = "; ".join("{} {} weaker, {} stronger of {}".format(name, *n) for name, n in both_ways.items() if n[2])
crossing, alone = both_ways["own-modality centroids"], ("visible images alone", "infrared images alone")
own, other = (sum(clear[alone[at], tables.DIRECTIONS[at ^ flip]] for at in (0, 1)) for flip in (0, 1))
verdict = ""
if crossing[2]:
    verdict = "**Without crossing the attack is weaker in {} of {} comparisons, stronger in {}**: ".format(
        *crossing[[0, 2, 1]]
    ) + (
        "it helps in most of them. "
        if 2 * crossing[0] > crossing[2]
        else "that crossing makes it stronger is not shown on these victims. "
    )
if own[2]:
    verdict += (
        "With images of one modality alone it is weaker in {} and stronger in {} of {} on queries of that modality,".format(
            *own
        )
        + " weaker in {} and stronger in {} of {} on queries of the other one".format(*other)
        + (
            ": the images of each modality serve its own queries."
            if 2 * other[0] > other[2] and 2 * own[0] <= own[2]
            else "."
        )
    )
by_chance = [
    100 * card["scores"][way]["chance"]["rank1"]["mean"] for card in used.values() for way in tables.DIRECTIONS
]
notes = [
    "Rank-1 in %, CMPS → control, 8 bits, and the difference with its paired 95 % interval.",
    f"Chance: {np.mean(by_chance):.1f} %." if by_chance else "",
    f"Intervals clear of zero: {said}." if said else "",
    verdict,
    f"{missing} of {len(pairs)} comparisons are pending: `vireid-lite campaign book/campaigns/attacks.toml`."
    if missing
    else "",
    stale_note(used.values()),
]
Markdown("\n".join(lines) + "\n\n" + " ".join(filter(None, notes)))

# %% [markdown]
# Read it with care. The seeds are three victims; each has its own interval, and a claim should hold in most. Two scores
# at chance cannot differ. A joint iteration moves $\delta$ once where the alternating one moves it twice, from the same
# two gradients, so its control changes the number of updates as well. And the paper's proof does not help: it assumes
# what a network's loss is not (convexity), and what it favours is the joint update ([chapter 6](06_the_whole_attack)).

# %% [markdown]
# ## What a defender learns
#
# - No label was used. But the images were the victim's own training people: whether images *like* them would do is not
#   tested here.
# - How far one $\delta$ serves both spectra can be measured on one's own network in a minute: the cosine across, beside
#   its ceiling. Where it is high, a step that harms queries of one modality harms those of the other.
# - The three clouds say whether colour is part of the gap between the modalities. Where it is not, an attack through
#   grey and a defence by grey have little to work with.
# - $\delta$ is free in three channels here. A check that infrared channels are equal sees it at once; a
#   {term}`tied perturbation` passes it (second exercise).

# %% [markdown]
# ## What could fool us
#
# - **The picture.** In the half-plane two distances are exact and all others are not. Features that seem to meet need
#   not.
# - **The floor.** Random signs make a floor too low, since gradients are smooth; shifts make a better one. Neither
#   knows what any two losses share that look through the same network (last exercise).
# - **The ceiling.** Where two batches of one modality hardly agree, a cosine near zero across says that the gradients
#   are noisy, not that the modalities differ.
# - **The people.** Centroids, choices and gradients are of training identities, which the victim knows by heart. Only
#   what is marked as measured on test identities speaks of strangers.
# - **The start.** $\delta = 0$ is a special place. What holds there need not hold ten steps on, and the reverse.
# - **The run.** One victim, one seed, one budget, without random grey and far fewer iterations than the attack itself.

# %% [markdown]
# ## Takeaways
#
# - Each term pushes a feature from what it resembles in one modality and pulls it to what it does not in another.
# - A term is about two distances, so a picture that keeps those two is enough.
# - Grey acts on visible images alone; infrared is grey already.
# - Which centroid is meant is a choice the paper leaves open, and so is the sign, until one tries it.
# - A cosine of gradients needs a ceiling and a floor. Agreement is not synergy; synergy needs controls.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: how large may the margin be?
# :label: ex-triplet-margin
# ```
# For which margins $\rho$ can *every* anchor's term reach zero? Derive a bound from the triangle inequality, then find
# it for the centroids of this page.
#
# **Check yourself.** Which distance between a pair $C^p$, $C^n$ bounds the margin?
#
# - (a) The smallest.
# - (b) The mean.
# - (c) The largest.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check

self_check(None, "ex-triplet-margin", "e2c7ea38")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-triplet-margin
# :class: dropdown
# ```
# Self-check: **a**.
#
# $\|C^p - f\| \le \|C^p - C^n\| + \|C^n - f\|$, so $\|C^n - f\| - \|C^p - f\| \ge -\|C^p - C^n\|$: a term is at least
# $\rho - \|C^p - C^n\|$. The closest pair of all sets the bound. It is necessary, not sufficient: the best
# place may be one that no feature of length 1 can take, and none that $\delta$ can reach.

# %% tags=["solution"]
for turn, modality in ((0, VISIBLE), (2, VISIBLE), (1, INFRARED)):
    pairs_apart = distance(*chosen(problem, rows_of[modality], turn))
    print(f"pulled to {PULL_PUSH[turn][0]}, pushed from {PULL_PUSH[turn][1]}: rho up to {pairs_apart.min().item():.3f}")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: what is left when channels are tied?
# :label: ex-triplet-tied
# ```
# Split each gradient into a part that is equal in the three channels and the rest. Which share of its squared length is
# in the equal part? What would a gradient without any preference have, and what does the answer mean for a tied
# perturbation?
#
# **Check yourself.** Which share would a gradient without any preference have in the equal part?
#
# - (a) A half.
# - (b) A ninth.
# - (c) A third.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-triplet-tied", "4c5b922b")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-triplet-tied
# :class: dropdown
# ```
# Self-check: **c**.
#
# `tie` takes the mean over the channels, which is the projection onto the equal part. It keeps one of three directions
# at each pixel, so a gradient without preference keeps a third. The more an infrared gradient keeps beyond that, the
# less an attacker loses by passing the check of equal channels; what a visible one loses, it loses to colour.

# %% tags=["solution"]
for point in points:
    for modality in Modality:
        gradient = raw[point][modality]
        share = tie(gradient).square().sum() / gradient.square().sum()
        print(f"after {point:>3} iterations, {modality.name.lower():>8}: {100 * share.item():.0f} % (a third: 33 %)")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: whose centroids are they?
# :label: ex-triplet-kmeans
# ```
# k-means starts at random. Run it again with another seed: how near are the new infrared centroids to the old, and for
# how many visible crops does $C^p$ change its place by more than the typical distance between neighbours?
#
# **Check yourself.** To which spread of a table does such a change belong?
#
# - (a) That over people.
# - (b) That over seeds.
# - (c) That over trials.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-triplet-kmeans", "deb0fa53")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-triplet-kmeans
# :class: dropdown
# ```
# Self-check: **b**.
#
# Compare each new centroid with its nearest old one, in units of the distance between neighbouring old ones. What
# changes with the seed is a property of the run, not of the data, and belongs to the spread over seeds of a table.

# %% tags=["solution"]
old = banks["infrared"]
new = kmeans_centroids(train_features[rows_of[INFRARED]], k, settings.seed + 1)
neighbour = torch.cdist(old, old).fill_diagonal_(torch.inf).amin(1).median()
moved_by = torch.cdist(new, old).amin(1)
queries = train_features[rows_of[VISIBLE]]
before, after = (bank[(queries @ F.normalize(bank).T).argmax(1)] for bank in (old, new))
jump = distance(before, after)
print(f"a new centroid's nearest old one: {moved_by.median().item():.3f} away (median); neighbours: {neighbour:.3f}")
print(f"C^p moved by more than that for {100 * (jump > neighbour).float().mean().item():.0f} % of the visible crops")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-triplet-flaw
# ```
# A report reads: "Along the attack, visible and infrared gradients come to agree, many standard deviations above what
# random signs give. So it is the cross-modality centroids that make the two modalities work together." The cosine and
# the floor are computed correctly. What is missing? Run it.
#
# **Check yourself.** Which control tests the words "it is the cross-modality centroids"?
#
# - (a) A larger number of random signs.
# - (b) Another victim, with everything else the same.
# - (c) Centroids of the image's own modality, with everything else the same.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-triplet-flaw", "e38e6e52")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-triplet-flaw
# :class: dropdown
# ```
# Self-check: **c**.
#
# Random signs are a floor for two gradients that have nothing to do with each other. These two share a network, a loss
# and a $\delta$ that has already moved all features somewhere. "It is the cross-modality centroids" needs controls that
# keep all of this and take only the crossing away. Keep images, network and $\delta$, and
#
# - let every image be pushed from and pulled to centroids of its *own* modality: if the agreement stays, crossing is
#   not what makes it;
# - deal the pairs $(C^n, C^p)$ of each modality out to its images at random: if it stays even then, the centroids have
#   nothing to do with it; if it goes, it takes the images' own look-alikes, of whichever modality.
#
# Read each beside its own ceiling. All three look at a $\delta$ that was made with crossing centroids; a fairer test
# would let each make its own. And agreement is not strength: that is for the table of controls.


# %% tags=["solution"]
def reassigned(change):
    """The problem with other centroids for each image; change(turn, rows) gives the new pull and push."""
    pull, push = problem.pull.clone(), problem.push.clone()
    for modality, rows in rows_of.items():
        turn, places = int(modality), torch.from_numpy(rows)
        pull[turn, places], push[turn, places] = change(turn, places)
    return Problem(store, problem.batches, problem.centroids, pull, push)


def own_modality(turn, rows):
    return choose(train_features[rows], *[("visible", "infrared")[turn]] * 2)


def dealt_out(turn, rows):
    mixed = rows[torch.randperm(len(rows), generator=generator_for(settings.seed, 53, turn))]
    return problem.pull[turn, mixed], problem.push[turn, mixed]


point = points[-1]
table = {}
for name, changed in (
    ("cross-modality", None),
    ("own modality", reassigned(own_modality)),
    ("dealt out at random", reassigned(dealt_out)),
):
    made = raw[point] if changed is None else {m: gradients(changed, down[point], m) for m in Modality}
    v, i = (unit(made[m]) for m in Modality)
    found = {"within visible": cosines(v), "within infrared": cosines(i), "across": cosines(v, i)}
    table[name] = {kind: f"{values.mean():+.3f}" for kind, values in found.items()}
pd.DataFrame(table).T.rename_axis("centroids")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`gong2024cmps`, {cite:t}`li2019uap`.
