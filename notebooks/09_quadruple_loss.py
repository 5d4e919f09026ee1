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
# # The quadruple loss
#
# The feature-level attack {cite}`yang2024feature` learns from one loss of three distances, which its paper calls AQAL.
# This chapter takes it apart on a trained {term}`victim`: what each distance asks for, when the loss has nothing left
# to ask, what the authors' correction of their equation changes, and what is left of it once pixels are bounded. The
# whole attack is [the next chapter's](10_read_two_ways).

# %% [markdown]
# ## What you will be able to do
#
# - write the loss from its equation and draw its three distances without distortion;
# - derive when a {term}`hinge` is silent, and measure whether it is;
# - say what the hinge protects from, and what its linear form gives up;
# - count where one hinge on a sum is silent and two hinges on its parts are not;
# - tell a loss that falls from a ranking that suffers.

# %% [markdown]
# ## What it costs
#
# The victim is the one chapter 3 trains; alone, this chapter trains it first. On Colab the next cell installs the
# package; the version of torch that the runtime brings is kept. Everywhere else it does nothing.

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

costs = Costs("09_quadruple_loss")
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
BATCHES: int = 8  # batches that hinges are counted on, each with heads drawn anew
STEPS: int = 8  # sign steps of the demonstration

# %%
settings = check_parameters(globals(), costs)

# %% [markdown]
# ## Threat model
#
# The [default](../book/threat_models.md). Most of the page looks at features of unchanged images; one section perturbs.
#
# | Question | Answer |
# |---|---|
# | What does the attacker know? | the network ({term}`white box`), and training images with their identities |
# | What is perturbed? | the query, by one {term}`universal perturbation` for each modality, three free channels |
# | How much? | no pixel and channel changes by more than $\varepsilon$, `EPS` above; the victim is frozen |
# | On what is it learned? | one batch of training crops, a few steps |
# | On what is it measured? | test identities, attacked images rounded to 8 bits, beside {term}`chance <chance level>` |
#
# What is published here and why: [responsible use](../book/responsible_use).

# %% [markdown]
# ## The question
#
# To ruin a ranking across spectra, a person's visible and infrared features must part. The quadruple loss asks for
# that, and for more: it also holds a feature near where it came from, and drives *different* people apart. A network
# trained for re-identification already keeps different people apart. So what has this loss to say to such a network?
#
# The loss compares two stages of a feature. In the paper, attention heads stand inside the victim: FSAM after blocks 0
# and 4, a second attention (SFM) behind it. **Stage 1** is pooled before SFM, **stage 2** after it, both behind the
# last block. That is our reading: stage 1 and 2 must have equal dimensions to have a distance, and those of block 0
# have not. Heads are drawn at random before they learn anything; *fresh heads* on this page are such draws. Without
# heads, the two stages are one: the pooled feature of the victim.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch.nn import functional as F

from vireid_lite import metrics
from vireid_lite.chapters import plots
from vireid_lite.attacks import UniversalPerturbation
from vireid_lite.attacks.budget import clip
from vireid_lite.attacks.frozen import frozen, generator_for, images_of, training_store
from vireid_lite.data.batches import IdentityBatches
from vireid_lite.models.insertion import inserted, staged
from vireid_lite.data import ImageStore, Modality, cached
from vireid_lite.metrics.evaluation import embed_store
from vireid_lite.models.two_stream import generalised_mean
from vireid_lite.losses import class_centres, pairwise_quadruple_loss, quadruple_loss, quadruple_terms
from vireid_lite.victims import load_or_train, tier_dataset, tier_recipe

plots.set_style()
device = settings.device
VISIBLE, INFRARED = Modality
dataset = tier_dataset(settings.tier, settings.dataset, settings.data_root)
recipe = tier_recipe(settings.tier)
model, card = load_or_train(recipe, dataset, seed=settings.seed, device=device, retrain=settings.retrain)

store = training_store(dataset, settings.identities)
batches = IdentityBatches(store, size=64, seed=settings.seed, instances=8)  # 8 people, 4 + 4 images
person = torch.from_numpy(batches.identities)
ALPHA = 0.2  # the paper's margin


def fresh_heads(number):
    """The paper's heads by block, drawn anew, and the tap where stage 1 is read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * settings.seed + number)
        heads, tap = staged(model, "fsam", (0, 4), sfm=True)
    for stack in heads.values():
        for module in stack:
            module.to(device).requires_grad_(False)
    return heads, tap


def stages(rows, drawn=None, delta=None):
    """Features of stage 1 and stage 2 of some crops, (N, D), and all that the network returns."""
    heads, tap = drawn or ({}, None)
    images, modality = images_of(store, rows, model), store.modalities[rows]
    if delta is not None:
        images = clip(images + delta[modality.to(device)])
    with frozen(model), inserted(model, heads):
        output = model(images, modality)
    stage2 = output.pooled
    stage1 = generalised_mean(tap.maps, getattr(model, "gem_p", 3.0)) if drawn else stage2
    return stage1, stage2, output


def centres_of(rows, stage1, stage2):
    """Visible and infrared class centres of stage 1, then of stage 2."""
    return [
        centres
        for features in (stage1, stage2)
        for centres in class_centres(features, person[rows], store.modalities[rows])
    ]


rows = batches.at(0)
heads = fresh_heads(0)
with torch.no_grad():
    stage1, stage2, _ = stages(rows, heads)
    v1, i1, v2, i2 = centres_of(rows, stage1, stage2)
Markdown(
    f"A batch: {len(v1)} people, {len(rows)} images. Features have {v1.shape[1]} dimensions; the heads add"
    f" {sum(p.numel() for stack in heads[0].values() for m in stack for p in m.parameters())} weights."
)

# %% [markdown]
# ## Four centres
#
# A {term}`class centre` is the mean of a person's features in one modality. Person $j$ has four of them:
# visible and infrared, stage 1 and stage 2, written $c_{v1}^j, c_{i1}^j, c_{v2}^j, c_{i2}^j$. With the Euclidean
# distance $D$ and $[z]_+ = \max(z, 0)$, the loss of the **visible direction** is
#
# $$
# L(c_{v2}, c_{i2}, c_{v1}) = \sum_{j \ne k} \big[\,
#   \underbrace{D(c_{v2}^j, c_{v1}^j)}_{a_j}
# - \underbrace{D(c_{i2}^j, c_{v1}^j)}_{b_j}
# - \underbrace{D(c_{v2}^j, c_{v2}^k)}_{c_{jk}} + \alpha \,\big]_+ .
# $$
#
# The **infrared direction** swaps the letters $v$ and $i$, and the loss is the sum of both. It is minimised. Read it as
# a picture and as a table; the last column says what a small loss wants.
#
# :::{figure-md} fig-quadruple-bracket
# ![Marks joined by arrows. From the visible stage 1 to the visible stage 2 of person j arrows point inward, made short.
# From the first to the infrared stage 2 of person j, and from the second to the visible stage 2 of person k, they point
# outward, made long. The infrared stage 1 stands alone. Below, a bar of the first length and alpha is longer than a bar
# of the other two lengths, and the rest is named loss.](../book/_static/drawings/quadruple.svg)
#
# One bracket. Below, its three distances as bars, twice as long: the loss is the part by which the upper bar is longer.
# Where it is not, the bracket is 0.
# :::
#
# | Distance | between | wanted |
# |---|---|---|
# | $a_j$, own | stage 2 and stage 1 of one person in one modality | short: stage 2 stays where stage 1 was |
# | $b_j$, other modality | the *other* modality's stage 2 and this stage 1, same person | long: the spectra part |
# | $c_{jk}$, other identity | two people in one modality, both at stage 2 | long: people part |
#
# In code, every ordered pair $(j, k)$ has one bracket in each direction:


# %%
def D(one, other):
    return torch.linalg.vector_norm(one - other).item()


by_hand = {"hinge": 0.0, "linear": 0.0}
for j in range(len(v1)):
    for k in range(len(v1)):
        if j == k:
            continue
        in_visible = D(v2[j], v1[j]) - D(i2[j], v1[j]) - D(v2[j], v2[k]) + ALPHA
        in_infrared = D(i2[j], i1[j]) - D(v2[j], i1[j]) - D(i2[j], i2[k]) + ALPHA
        by_hand["hinge"] += max(in_visible, 0) + max(in_infrared, 0)
        by_hand["linear"] += in_visible + in_infrared

for form, value in by_hand.items():
    found = quadruple_loss(v1, i1, v2, i2, alpha=ALPHA, form=form)
    assert np.isclose(found.loss.item(), value, rtol=1e-4, atol=1e-3)
Markdown(
    f"Hinge **{by_hand['hinge']:.2f}**, linear **{by_hand['linear']:.2f}**, by hand and by `quadruple_loss`. Active"
    f" hinges: {100 * found.active.item():.0f} % of {2 * len(v1) * (len(v1) - 1)}."
)

# %% [markdown]
# The *linear* form is the same sum without $[\;]_+$. It is ours, for comparison.
#
# Can one draw this? The features have far more than two dimensions. But the three distances of one bracket form a chain,
# $c_{i2}^j - c_{v1}^j - c_{v2}^j - c_{v2}^k$, and a chain lies flat: **its three lengths and its two angles are exact**
# in a plane ({numref}`fig-quadruple-centres`). The fourth centre, $c_{i1}^j$, takes no part in this direction; its
# distances to $c_{v1}^j$ and $c_{i2}^j$ are exact as well. All other distances are not.


# %%
def angle(corner, one, other):
    """Angle at a corner in radians."""
    cosine = F.cosine_similarity(one - corner, other - corner, dim=0).clamp(-1, 1)
    return torch.arccos(cosine).item()


def turned(origin, length, radians):
    return np.asarray(origin) + length * np.array([np.cos(radians), np.sin(radians)])


def flat(v1_j, i1_j, v2_j, i2_j, v2_k):
    """Places (x, y) of five centres; exact: the chain i2_j, v1_j, v2_j, v2_k, and i1_j's two distances."""
    a, b, c = D(v2_j, v1_j), D(i2_j, v1_j), D(v2_j, v2_k)
    spots = {"v1 j": np.zeros(2), "v2 j": np.array([a, 0.0])}
    at_v1, at_v2 = angle(v1_j, v2_j, i2_j), angle(v2_j, v1_j, v2_k)
    spots["i2 j"] = turned(spots["v1 j"], b, at_v1)
    spots["v2 k"] = turned(spots["v2 j"], c, np.pi + at_v2)
    spots["i1 j"] = turned(spots["v1 j"], D(i1_j, v1_j), at_v1 + angle(v1_j, i2_j, i1_j))
    return spots


own, other, between = (term.cpu() for term in quadruple_terms(v1, i1, v2, i2))
with_itself = torch.eye(len(v1), dtype=torch.bool)
nearest = between.masked_fill(with_itself, torch.inf).amin(2)
brackets = (own - other - nearest)[0]
j = int((brackets - brackets.median()).abs().argmin())  # neither the easiest nor the hardest
k = int(between[0].masked_fill(with_itself, torch.inf)[j].argmin())  # whose bracket is the largest
five = {"v1 j": v1[j], "i1 j": i1[j], "v2 j": v2[j], "i2 j": i2[j], "v2 k": v2[k]}
spots = flat(*five.values())
for one, another in (
    ("v2 j", "v1 j"),
    ("i2 j", "v1 j"),
    ("v2 j", "v2 k"),
    ("i1 j", "v1 j"),
    ("i1 j", "i2 j"),
):
    drawn_length = np.linalg.norm(spots[one] - spots[another])
    assert np.isclose(drawn_length, D(five[one], five[another]), rtol=1e-3, atol=1e-3)

# %% mystnb={"figure": {"caption": "Left: the centres of one person j and of the nearest other one, k, under fresh heads, with the three distances of their bracket in the visible direction. Right: the step each centre is asked to take while this bracket is positive. Marks are those of the left; every coloured arrow has length 1 in feature units, however long the distance, and black is the sum where two start.", "name": "fig-quadruple-centres"}, "image": {"alt": "Two copies of one plane drawing. Five marked points, three joined by a bent chain of three lines with numbers on the left; on the right, short arrows of equal length at the same points, towards or away from their neighbours in the chain."}} tags=["hide-input"]
TERMS = {
    "own": ("v2 j", "v1 j", plots.SERIES[0], "-", "own, pulled together"),
    "other": ("i2 j", "v1 j", plots.SERIES[1], "--", "other modality, pushed apart"),
    "identity": ("v2 j", "v2 k", plots.SERIES[2], ":", "other identity, pushed apart"),
}
MARKS = {
    "v1 j": ("o", plots.COLOURS[VISIBLE], "$c_{v1}^j$"),
    "v2 j": ("s", plots.COLOURS[VISIBLE], "$c_{v2}^j$"),
    "i1 j": ("^", plots.COLOURS[INFRARED], "$c_{i1}^j$"),
    "i2 j": ("D", plots.COLOURS[INFRARED], "$c_{i2}^j$"),
    "v2 k": ("s", "#999999", "$c_{v2}^k$"),
}
figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.7), layout="constrained", sharex=True, sharey=True)
cloud = np.array(list(spots.values()))
middle, reach = (cloud.max(0) + cloud.min(0)) / 2, np.ptp(cloud, axis=0) * 0.55 + 1.1
for axes in panels:
    for name, (marker, colour, label) in MARKS.items():
        face = "none" if name == "i1 j" else colour
        axes.plot(*spots[name], marker, color=colour, markerfacecolor=face, markersize=9, zorder=4)
        away = spots[name] - cloud.mean(0)
        side = spots[name] + 0.12 * reach.max() * away / max(np.linalg.norm(away), 1e-9)
        if axes is panels[0]:
            axes.annotate(label, side, ha="center", va="center", fontsize=11)
    axes.set(xlim=middle[0] + np.array([-1, 1]) * reach[0], ylim=middle[1] + np.array([-1, 1]) * reach[1])
    axes.set(aspect="equal", xticklabels=[], yticklabels=[])
arrows = {name: np.zeros(2) for name in spots}
for one, another, colour, style, label in TERMS.values():
    line = np.array([spots[one], spots[another]])
    panels[0].plot(*line.T, style, color=colour, linewidth=2, label=label)
    length = np.linalg.norm(line[1] - line[0])
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
    panels[0].annotate(f"{length:.2f}", line.mean(0), ha="center", va="center", color=colour, bbox=box, zorder=5)
    towards = (line[1] - line[0]) / max(length, 1e-9) * (1 if style == "-" else -1)
    for name, step in ((one, towards), (another, -towards)):
        shape = {"arrowstyle": "-|>", "color": colour, "linewidth": 2, "linestyle": style}
        panels[1].annotate("", spots[name] + step, spots[name], arrowprops=shape, zorder=3)
        arrows[name] += step
for name in ("v1 j", "v2 j"):
    shape = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5}
    panels[1].annotate("", spots[name] + arrows[name], spots[name], arrowprops=shape, zorder=3)
panels[0].set_title("three distances")
panels[1].set_title("one step, if the bracket is positive")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% tags=["hide-input"]
values = {
    "no heads": quadruple_terms(*centres_of(rows, *[stages(rows)[1].detach()] * 2)),
    "fresh heads": quadruple_terms(v1, i1, v2, i2),
}
lines = ["| stages | direction | own | other modality | other identity |", "|---|---|--:|--:|--:|"]
for name, terms in values.items():
    for number, modality in enumerate(Modality):
        apart = terms.between[number].cpu()[~with_itself]
        cells = [terms.own[number], terms.other[number], apart]
        lines.append(
            f"| {name} | {modality.name.lower()} | " + " | ".join(f"{cell.mean().item():.2f}" for cell in cells) + " |"
        )
bracket_jk = (own[0, j] - other[0, j] - between[0, j, k]).item() + ALPHA
Markdown(
    f"In the picture, a − b − c + α = **{bracket_jk:.2f}**, so this hinge is"
    f" **{'active' if bracket_jk > 0 else 'silent'}**. Means over the batch:\n\n" + "\n".join(lines)
)

# %% [markdown]
# ### What each term asks for
#
# The gradient of a distance is a unit vector along it: every open bracket pulls and pushes with the same strength,
# however near or far the goal. Three remarks on the directions.
#
# - **Own.** It joins two stages that differ by SFM alone. Without heads it is 0 and asks for nothing: a distance
#   of 0 has no direction, and the package gives it the gradient 0. It ties stage 2 down.
# - **Other modality.** The only term that parts the spectra. It does so towards stage *1* of the other modality. With
#   the triangle inequality, $b_j \le a_j + D(c_{v2}^j, c_{i2}^j)$, so $D(c_{v2}^j, c_{i2}^j) \ge b_j - a_j$: pushing
#   $b$ up and $a$ down forces stage 2 of one person apart across the spectra.
# - **Other identity.** It drives people of one modality *apart*, which is what every loss of re-identification does to
#   a network in training. Within one modality that should help a ranking, not hurt it. The paper's title promises
#   ranking disruption; nothing in this term asks for it. [Below](#each-term-alone-within-a-budget) we look.

# %% [markdown]
# ## When the hinge is silent
#
# A hinge at or below zero has no gradient. When does that happen? Multiply all features by $s$, and all three distances
# grow by $s$, while $\alpha$ stays. So a bracket is positive if and only if
#
# $$ b_j + c_{jk} - a_j < \alpha $$
#
# and its left side is proportional to the length of the features. **Only $\alpha$ divided by that length matters.**
# Take stage 2 = stage 1, so $a = 0$, and centres of length $r$:
#
# - all centres of all people and both modalities orthogonal: $b = c = \sqrt 2\, r$; silent from
#   $r = \alpha / (2 \sqrt 2)$ on;
# - the modalities agree, and people are orthogonal: $b = 0$; silent from $r = \alpha / \sqrt 2$ on;
# - people coincide in every respect: $a = b = c = 0$; active for every $r$.
#
# A silent hinge says $b + c - a \ge \alpha$, and with the inequality above
# $D(c_{v2}^j, c_{i2}^j) + D(c_{v2}^j, c_{v2}^k) \ge \alpha$. So much is guaranteed and no more: **if people are
# already $\alpha$ apart, the spectra need not part at all.**
#
# Now the victim. Each batch gives its brackets without heads and with heads drawn anew, both with features as the
# network pools them (as AGW's triplet reads them {cite}`ye2022agw`) and divided by their length.


# %%
def brackets_of(centres):
    """a - b - c of every ordered pair of people in both directions; alpha is not added yet."""
    own, other, between = quadruple_terms(*centres)
    apart = ~torch.eye(len(own[0]), dtype=torch.bool, device=own.device)
    return ((own - other)[:, :, None] - between)[:, apart].flatten().cpu()


def active_share(found, alpha):
    return (found + alpha > 0).float().mean().item()


KINDS = ("no heads", "no heads, unit length", "fresh heads", "fresh heads, unit length")
counted = {kind: [] for kind in KINDS}
lengths = {kind: [] for kind in KINDS}
taken = {"no heads": [], "fresh heads": []}  # (rows, stage 1, stage 2) by batch
shrinkage = {}
with torch.no_grad():
    for number in range(settings.batches):
        some = batches.at(number)
        for name, drawn in (("no heads", None), ("fresh heads", fresh_heads(number))):
            first, second, output = stages(some, drawn)
            taken[name].append((some, first, second))
            unit = F.normalize(first), F.normalize(second)
            for kind, pair in ((name, (first, second)), (f"{name}, unit length", unit)):
                counted[kind].append(brackets_of(centres_of(some, *pair)))
                lengths[kind].append(pair[0].norm(dim=1).mean().item())
            if drawn is None:  # for a later section: what averaging does to each kind of feature
                for kind, features in (
                    ("pooled, as the loss reads it", second),
                    ("after the BNNeck", output.embedding),
                    ("ranked: after the BNNeck, unit length", F.normalize(output.embedding)),
                ):
                    means = torch.cat(class_centres(features, person[some], store.modalities[some]))
                    found = features.norm(dim=1).mean(), means.norm(dim=1).mean(), features.mean(0).norm()
                    shrinkage.setdefault(kind, []).append(torch.stack(found))
length_of = {kind: float(np.mean(values)) for kind, values in lengths.items()}
pooled_brackets = {kind: torch.cat(found) for kind, found in counted.items()}

# The claim above: features times s with margin alpha, or features with margin alpha / s.
for s in (0.01, 0.1, 10):
    scaled = brackets_of([s * centre for centre in centres_of(*taken["fresh heads"][0])])
    assert abs(active_share(scaled, ALPHA) - active_share(counted["fresh heads"][0], ALPHA / s)) < 0.05

# %% mystnb={"figure": {"caption": "Share of active hinges. Left: all features multiplied by a factor, at the published margin; the horizontal axis is their mean length after that, and a large mark shows where the features really are. Right: features as they are, other margins. Thin lines are single draws of fresh heads. Both panels say the same, as only the margin divided by the length counts.", "name": "fig-quadruple-silent"}, "image": {"alt": "Two line charts with logarithmic horizontal axes. On the left curves fall from one hundred per cent with growing length, on the right they rise with the margin; the curves for fresh heads spread widely."}} tags=["hide-input"]
STYLES = {
    "no heads": (plots.SERIES[0], "-", "o"),
    "no heads, unit length": (plots.SERIES[5], "--", "s"),
    "fresh heads": (plots.SERIES[1], "-", "^"),
    "fresh heads, unit length": (plots.SERIES[4], "--", "D"),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4.1), layout="constrained", sharey=True)
grid = np.logspace(-2, 1.8, 80)
margins = np.logspace(-2, 1.8, 80)
for kind, (colour, style, marker) in STYLES.items():
    found, length = pooled_brackets[kind], length_of[kind]
    curve = [100 * active_share(found * x / length, ALPHA) for x in grid]
    left.plot(grid, curve, style, color=colour, label=kind)
    left.plot(length, 100 * active_share(found, ALPHA), marker, color=colour, markersize=10, clip_on=False, zorder=4)
    curve = [100 * active_share(found, alpha) for alpha in margins]
    right.plot(margins, curve, style, color=colour)
    right.plot(ALPHA, 100 * active_share(found, ALPHA), marker, color=colour, markersize=10, clip_on=False, zorder=4)
    if kind == "fresh heads":
        for one, own_length in zip(counted[kind], lengths[kind], strict=True):
            left.plot(grid, [100 * active_share(one * x / own_length, ALPHA) for x in grid], color=colour, lw=0.5)
            right.plot(margins, [100 * active_share(one, alpha) for alpha in margins], color=colour, lw=0.5)
for bound, text in ((ALPHA / np.sqrt(8), "all orthogonal"), (ALPHA / np.sqrt(2), "modalities agree")):
    left.axvline(bound, color=plots.CHANCE, linestyle=":", linewidth=1)
    left.annotate(text, (bound, 3), rotation=90, ha="right", va="bottom", fontsize=8, color=plots.CHANCE)
right.axvline(ALPHA, color=plots.CHANCE, linestyle=":", linewidth=1)
right.annotate(r"published $\alpha$", (ALPHA, 97), rotation=90, ha="right", va="top", fontsize=8, color=plots.CHANCE)
left.set(xscale="log", xlabel="mean length of stage-1 features", ylabel="active hinges (%)", ylim=(-3, 103))
right.set(xscale="log", xlabel=r"margin $\alpha$")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% tags=["hide-input"]
lines = ["| features | mean length | active at α = 0.2: all | lowest batch | highest | silent from length |"]
lines.append("|---|--:|--:|--:|--:|--:|")
for kind, found in pooled_brackets.items():
    shares = [100 * active_share(one, ALPHA) for one in counted[kind]]
    worst = found.max().item()
    bound = f"{ALPHA / -worst * length_of[kind]:.2f}" if worst < 0 else "never"
    lines.append(
        f"| {kind} | {length_of[kind]:.2f} | {100 * active_share(found, ALPHA):.1f} % | {min(shares):.0f} % |"
        f" {max(shares):.0f} % | {bound} |"
    )
quiet = [active_share(pooled_brackets[kind], ALPHA) for kind in KINDS]
spread_of_draws = [active_share(one, ALPHA) for one in counted["fresh heads"]]
Markdown(
    "\n".join(lines)
    + "\n\n"
    + (
        "Without heads no bracket of any batch is positive: **the trained victim satisfies the published loss before"
        " anything is attacked**, at either length."
        if quiet[0] == quiet[1] == 0
        else f"Without heads {100 * max(quiet[:2]):.1f} % of the brackets at most are positive before anything is"
        " attacked."
    )
    + " "
    + (
        "With fresh heads it is the draw that decides: in some batches no hinge is active, in others many are."
        if min(spread_of_draws) == 0 and max(spread_of_draws) > 0.1
        else "With fresh heads hardly any hinge is active in any draw."
        if max(spread_of_draws) <= 0.1
        else "With fresh heads some hinges are active in every draw."
    )
    + f" Batches: {settings.batches}, each with {len(counted[KINDS[0]][0])} brackets."
)

# %% [markdown]
# Why can fresh heads open a hinge at all? SFM multiplies a map by weights between 0 and 1, other ones in each modality.
# It shortens features, so $a$ becomes large, and $c$ small. Where $a$ exceeds $b + c$, a bracket is positive at
# *every* length ("never" silent in the table). What the hinge sees then is the arbitrary size of random heads. Whether
# heads or perturbation undo it first is for [the next chapter](10_read_two_ways).

# %% [markdown]
# ## Hinge or linear
#
# The obvious remedy for silence is to drop $[\;]_+$. It gives up what a hinge is for. A hinge is bounded below by 0: a
# pair that is satisfied is left alone, and the others get the whole step. The **linear form has no lower bound**:
# lengthen features whose sum is negative, and the loss falls in proportion. It never stops asking, of satisfied pairs
# as of others. A budget on pixels bounds it from outside; a loss that trains weights has no such bound.

# %%
with torch.no_grad():
    centres = centres_of(rows, *stages(rows)[:2])
    longer = {
        factor: [
            quadruple_loss(*(factor * centre for centre in centres), alpha=ALPHA, form=form).loss.item()
            for form in ("hinge", "linear")
        ]
        for factor in (0.001, 0.1, 1, 10)
    }
table = {f"× {factor}": {"hinge": f"{h:.2f}", "linear": f"{x:.1f}"} for factor, (h, x) in longer.items()}
pd.DataFrame(table).T.rename_axis("features of the victim")

# %% [markdown]
# And do the two forms pull the same way? The hinge's gradient is the linear one's, taken over active pairs alone. We
# take both with respect to a perturbation at $\delta = 0$, one for each modality, and choose $\alpha$ such that a given
# share of the hinges is active, below 0 where need be ({numref}`fig-quadruple-forms`).


# %%
def gradient(loss, delta):
    return torch.autograd.grad(loss, delta, retain_graph=True)[0].flatten().double()


def cosine(one, other):
    return F.cosine_similarity(one, other, dim=0).item()


nothing = torch.zeros(2, 3, *store.images.shape[1:3], device=device, requires_grad=True)
shares = (0.02, 0.1, 0.25, 0.5, 1.0)
agreement = {}
for name, drawn in (("no heads", None), ("fresh heads", heads)):
    centres = centres_of(rows, *stages(rows, drawn, nothing)[:2])
    linear = gradient(quadruple_loss(*centres, form="linear").loss, nothing)
    ranked_brackets = brackets_of([centre.detach() for centre in centres]).sort(descending=True).values
    agreement[name] = []
    for share in shares:
        last = max(1, round(share * len(ranked_brackets))) - 1
        loss, active = quadruple_loss(*centres, alpha=1e-4 - ranked_brackets[last].item())
        agreement[name].append((100 * active.item(), cosine(gradient(loss, nothing), linear)))

# %% mystnb={"figure": {"caption": "Cosine between the gradients of the hinge and the linear form with respect to the perturbation, on one batch, over the share of hinges that a larger margin makes active. At one they are the same step. On the far left the few hardest pairs speak alone.", "name": "fig-quadruple-forms"}, "image": {"alt": "Line chart with two rising curves, one with round and one with triangular marks, that meet at a cosine of one when every hinge is active."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, points in agreement.items():
    colour, _, marker = STYLES[name]
    axes.plot(*zip(*points, strict=True), marker=marker, color=colour, linestyle="-", label=name)
axes.set(xlabel="active hinges (%)", ylabel="cosine with linear", xlim=(-2, 102))
axes.legend(frameon=False)
plt.show()

# %% tags=["hide-input"]
lines = ["| active hinges | " + " | ".join(f"cosine, {name}" for name in agreement) + " |", "|--:|--:|--:|"]
for share, points in zip(shares, zip(*agreement.values(), strict=True), strict=True):
    lines.append(f"| {100 * share:.0f} % | " + " | ".join(f"{value:+.2f}" for _, value in points) + " |")
halfway = [points[shares.index(0.5)][1] for points in agreement.values()]
Markdown(
    "\n".join(lines)
    + "\n\n"
    + (
        "With half of the hinges active the two forms take much the same step, with heads or without."
        if min(halfway) > 0.8
        else "Even with half of the hinges active the two forms are clearly different steps."
        if max(halfway) < 0.8
        else "With half of the hinges active the two forms take much the same step in one case and not in the other."
    )
    + " Where none is active there is nothing to compare: the hinge's gradient is exactly zero."
)

# %% [markdown]
# ## Centres or samples
#
# A reviewer noted that the paper's equation 15 "appears to have an error"; the authors' answer gives the corrected
# form,
#
# $$
# L(x_{v2}, x_{i2}, x_{v1}) = \sum_{j \ne k} \big[\, D(x_{v2}^j, x_{v1}^j) - D(x_{i2}^j, x_{v1}^j)
# - D(x_{v2}^j, x_{v2}^k) + \alpha \,\big]_+ .
# $$
#
# The public thread does not show the faulty line. The corrected one is the class-centre loss with samples $x$ in place
# of centres $c$, letter by letter: with one image for each person and modality they are equal, and
# `pairwise_quadruple_loss` is tested for it. What it leaves open is which infrared image meets which visible one; here
# they are paired as they come.
#
# Does it matter which one is used? A mean is no longer than its members are on average: with $\bar c$ the mean of
# features $f$, $\lVert \bar c \rVert^2 = \overline{\lVert f \rVert^2} - \overline{\lVert f - \bar c \rVert^2}$. What is
# lost is the spread within the person. Distances shrink too, and $\alpha$ does not.


# %%
def samples_of(some, stage1, stage2):
    """Samples of stage 1 and 2 in the loss's order, paired as they come, and whom each pair shows."""
    modality, names = store.modalities[some], person[some]
    pairs = [], []
    for name in names.unique():
        own = [((names == name) & (modality == m)).nonzero().flatten() for m in Modality]
        both = min(map(len, own))
        for places, found in zip(pairs, own, strict=True):
            places.append(found[:both])
    visible, infrared = map(torch.cat, pairs)
    return [stage[places] for stage in (stage1, stage2) for places in (visible, infrared)], names[visible]


def in_short(four, labels, loss):
    """Mean a, b and c, and the share of active hinges in percent."""
    terms, different = quadruple_terms(*four), labels[:, None] != labels
    parts = terms.own, terms.other, terms.between[:, different.to(device)]
    return [part.mean().item() for part in parts] + [100 * loss.active.item()]


table = {}
for kind, parts in taken.items():
    found = {"centres": [], "samples": []}
    for some, stage1, stage2 in parts:
        four = centres_of(some, stage1, stage2)
        loss = quadruple_loss(*four, alpha=ALPHA)
        found["centres"].append(in_short(four, torch.arange(len(four[0])), loss))
        four, labels = samples_of(some, stage1, stage2)
        loss = pairwise_quadruple_loss(*four, labels, alpha=ALPHA)
        found["samples"].append(in_short(four, labels, loss))
    for form, values in found.items():
        *three, active = np.mean(values, 0)
        names = ("own", "other modality", "other identity")
        row = dict(zip(names, map("{:.2f}".format, three), strict=True))
        table[f"{kind}, {form}"] = row | {"active hinges": f"{active:.1f} %"}
pd.DataFrame(table).T.rename_axis("stages and form")

# %% tags=["hide-input"]
lines = ["| feature | length | of a class centre | ratio | of the mean of all |", "|---|--:|--:|--:|--:|"]
for kind, values in shrinkage.items():
    of_one, of_mean, common = torch.stack(values).mean(0).tolist()
    lines.append(f"| {kind} | {of_one:.2f} | {of_mean:.2f} | {of_mean / of_one:.3f} | {common:.2f} |")
Markdown("\n".join(lines))

# %% [markdown]
# The last column is the length of what all features of a batch have in common. No mean removes it and no distance sees
# it: the loss does not change when all features move together. Where it is large, the length of a feature tells little
# about distances, and averaging seems to cost nothing; the {term}`BNNeck` subtracts a mean of its own. The distances of
# the table above are what counts. Averaging shortens each of the three by its own amount, and $\alpha$ not at all: a
# margin chosen for samples is another margin for centres.

# %% [markdown]
# ## One hinge or two
#
# Before it comes to the quadruple loss, section 3.3 of the paper motivates it by two hinges, each with its own purpose:
#
# $$
# \big[\, D(x_{v2}^j, x_{v1}^j) - D(x_{v2}^j, x_{v2}^k) \,\big]_+ = [a - c]_+ , \qquad
# \big[\, D(x_{v2}^j, x_{v1}^j) - D(x_{i2}^j, x_{v1}^j) \,\big]_+ = [a - b]_+ .
# $$
#
# One hinge on their sum is not the sum of two hinges. Two hinges are silent only when $b \ge a$ **and** $c \ge a$: each
# goal has been reached. One hinge is silent when $b + c \ge a + \alpha$: one goal may be missed, if the other one is
# overfulfilled. In the plane of $b/a$ and $c/a$ the first region is a corner, the second a half-plane
# ({numref}`fig-quadruple-hinges`).


# %%
def ratios(centres):
    """a, b and c of every ordered pair in both directions, (pairs,) each."""
    own, other, between = (term.cpu() for term in quadruple_terms(*centres))
    apart = ~torch.eye(own.shape[1], dtype=torch.bool)
    return [
        term.expand_as(between)[:, apart].flatten().numpy() for term in (own[:, :, None], other[:, :, None], between)
    ]


a, b, c = (
    np.concatenate(parts) for parts in zip(*(ratios(centres_of(*one)) for one in taken["fresh heads"]), strict=True)
)
one, modality_hinge, identity_hinge = a - b - c + ALPHA > 0, a - b > 0, a - c > 0
states = {
    "both forms active": one & (modality_hinge | identity_hinge),
    "two hinges active, one silent": ~one & (modality_hinge | identity_hinge),
    "one active, two silent": one & ~(modality_hinge | identity_hinge),
    "all silent": ~one & ~(modality_hinge | identity_hinge),
}

# %% mystnb={"figure": {"caption": "Brackets of class centres under fresh heads, all draws and both directions. One hinge on the sum is active below the falling line (drawn for the median own distance). The two separate hinges are active left of the upright line or below the level one. Look at the pairs above the falling line that are still inside one of the two strips.", "name": "fig-quadruple-hinges"}, "image": {"alt": "Scatter plot of many points in several kinds of marks, divided by a falling line, a vertical and a horizontal line."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
LOOKS = dict(zip(states, (("o", 1), ("x", 0), ("D", 3), (".", 2)), strict=True))
for name, chosen in states.items():
    if chosen.any():
        marker, colour = LOOKS[name]
        axes.scatter(b[chosen] / a[chosen], c[chosen] / a[chosen], s=16, marker=marker, color=plots.SERIES[colour],
                     linewidth=0.9, label=f"{name} ({100 * chosen.mean():.0f} %)")  # fmt: skip
edge = 1 + ALPHA / np.median(a)
axes.plot([0, edge], [edge, 0], color="black", linewidth=1)
axes.axvline(1, color=plots.CHANCE, linestyle="--", linewidth=1)
axes.axhline(1, color=plots.CHANCE, linestyle="--", linewidth=1)
axes.set(xlabel="other modality / own,  $b/a$", ylabel="other identity / own,  $c/a$", ylim=(0, None))
axes.set(xlim=(0, 1.05 * np.quantile(b / a, 0.99)))
figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
plt.show()

# %% tags=["hide-input"]
lines = ["| stages | pairs | one hinge active | [a − b]₊ active | [a − c]₊ active | two active, one silent |"]
lines.append("|---|--:|--:|--:|--:|--:|")
for name, found in taken.items():
    parts = [ratios(centres_of(*one)) for one in found]
    x, y, z = (np.concatenate(each) for each in zip(*parts, strict=True))
    summed, by_modality, by_identity = x - y - z + ALPHA > 0, x > y, x > z
    missed = ~summed & (by_modality | by_identity)
    lines.append(
        f"| {name} | {len(x)} | "
        + " | ".join(f"{100 * each.mean():.1f} %" for each in (summed, by_modality, by_identity, missed))
        + " |"
    )
blind = states["two hinges active, one silent"].mean()
Markdown(
    "\n".join(lines)
    + f"\n\nWith fresh heads, **{100 * blind:.0f} %** of the pairs leave a goal of section 3.3 unreached while the"
    " quadruple hinge is silent about it." + " Without heads a = 0, and the two hinges are silent by definition."
)

# %% [markdown]
# ## The identity loss beside it
#
# The paper minimises $L_{AQAL} + L_{id}$, where $L_{id}$ is the cross-entropy of the identity classifier, with weight 1
# to 1. Minimised, it keeps features recognisable. In a network that is being retrained this makes sense: people stay
# apart within each modality. For a perturbation against a frozen victim it points the other way: it is what the victim
# was trained to have low. And the sum over $j \ne k$ is not divided by its length: it has $2J(J-1)$ brackets for $J$
# people, while $L_{id}$ is a mean. The balance of the two depends on the batch, and where every hinge is silent,
# $L_{id}$ is alone.

# %%
first, second, output = stages(rows, None, nothing)
logits = output.logits
class_of = logits.detach().argmax(1)  # the class the victim gives the clean image
lines = ["| people J | brackets | length of the gradient, AQAL (linear) | of the identity loss | ratio | cosine |"]
lines.append("|--:|--:|--:|--:|--:|--:|")
signs = []
names_in_batch = person[rows].unique()
published = quadruple_loss(*centres_of(rows, first, second), alpha=ALPHA)
alone = not gradient(published.loss, nothing).any()
for count in sorted({2, 4, len(names_in_batch)}):
    chosen = torch.isin(person[rows], names_in_batch[:count])
    part, at = rows[chosen.numpy()], chosen.to(device)
    aqal = gradient(quadruple_loss(*centres_of(part, first[at], second[at]), form="linear").loss, nothing)
    identity = gradient(F.cross_entropy(logits[at], class_of[at]), nothing)
    signs.append(cosine(aqal, identity))
    lines.append(
        f"| {count} | {2 * count * (count - 1)} | {aqal.norm().item():.3g} | {identity.norm().item():.3g} |"
        f" {(aqal.norm() / identity.norm()).item():.0f} | {signs[-1]:+.2f} |"
    )
Markdown(
    "\n".join(lines)
    + "\n\nNo heads, at δ = 0. "
    + (
        "The two gradients are nearly orthogonal in every row: here, a step on one hardly moves the other."
        if max(map(abs, signs)) < 0.1
        else "The cosine is negative in every row: a step that lowers one loss raises the other."
        if max(signs) < 0
        else "The cosine is positive in every row: a step that lowers one loss lowers the other too, at this point."
        if min(signs) > 0
        else "The sign of the cosine changes between rows: at this point the two losses have no fixed relation."
    )
    + (
        " **The published hinge is silent on this batch. The gradient of the sum is then that of the identity loss"
        " alone, and minimising it makes the victim surer of whom it sees.**"
        if alone
        else " The published hinge has a gradient on this batch."
    )
)

# %% [markdown]
# ## Each term alone, within a budget
#
# What is left of all this when nothing but pixels may move? One batch of training people, one $\delta$ for each
# modality that starts as noise, and a few steps
#
# $$ \delta \leftarrow \operatorname{clip}_{\pm\varepsilon}\!\big(\delta - \tfrac{\varepsilon}{4}
# \operatorname{sign} \nabla_\delta L \big). $$
#
# The victim is frozen. Heads, where there are any, are fresh, stay as drawn, and are gone when a score is taken. Six
# losses: *own* alone (it needs heads), *other modality* alone, *other identity* alone, the linear sum of the last two
# (without heads, own is 0), the linear loss with heads, and the hinge as published. This is a demonstration of
# directions, not the attack of the paper: one batch, no momentum, no learning of heads.

# %%
few = IdentityBatches(store, size=32, seed=settings.seed, instances=8).at(0)  # 4 people, 4 + 4 images
LOSSES = {
    "own, heads": ("own", True),
    "other modality": ("other", False),
    "other identity": ("between", False),
    "linear": ("linear", False),
    "linear, heads": ("linear", True),
    "hinge, heads": ("hinge", True),
}


def objective(centres, part):
    """One part of the linear loss, weighted as in the whole, or the loss in one of its forms."""
    if part in ("linear", "hinge"):
        return quadruple_loss(*centres, alpha=ALPHA, form=part).loss
    terms = quadruple_terms(*centres)
    others = len(centres[0]) - 1
    return {"own": others * terms.own.sum(), "other": -others * terms.other.sum(), "between": -terms.between.sum()}[
        part
    ]


def descend(part, with_heads):
    """The perturbation after each step, from noise on."""
    delta = settings.eps * (2 * torch.rand(nothing.shape, generator=generator_for(settings.seed, 90)) - 1).to(device)
    drawn, path = heads if with_heads else None, [delta]
    for _ in range(settings.steps):
        delta = delta.detach().requires_grad_()
        loss = objective(centres_of(few, *stages(few, drawn, delta)[:2]), part)
        (slope,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() - settings.eps / 4 * slope.sign()).clamp(-settings.eps, settings.eps)
        path.append(delta)
    return path


with torch.no_grad():  # the parts make up the whole
    centres = centres_of(few, *stages(few, heads)[:2])
    parts = sum(objective(centres, part) for part in ("own", "other", "between"))
    pairs = 2 * len(centres[0]) * (len(centres[0]) - 1)
    torch.testing.assert_close(parts + pairs * ALPHA, objective(centres, "linear"), rtol=1e-4, atol=1e-2)

paths = {name: descend(*how) for name, how in LOSSES.items()}
assert all(delta.abs().max() <= settings.eps + 1e-6 for path in paths.values() for delta in path)

# %% tags=["hide-input"]
apart, looked_at = {}, sorted({*range(0, settings.steps, 2), settings.steps})
with torch.no_grad():
    clean = centres_of(few, *stages(few)[:2])
    for name, path in paths.items():
        if name.startswith("own"):
            continue
        for delta in (path[step] for step in looked_at):
            moved = centres_of(few, *stages(few, None, delta)[:2])
            found = (moved[2] - moved[3]).norm(dim=1), torch.stack([torch.pdist(moved[2]), torch.pdist(moved[3])])
            apart.setdefault(name, []).append((found[0].cpu().numpy(), found[1].mean().item()))
    start = (clean[2] - clean[3]).norm(dim=1).cpu().numpy()
    start_others = torch.stack([torch.pdist(clean[2]), torch.pdist(clean[3])]).mean().item()
typical = int(np.abs(start - np.median(start)).argmin())

# %% mystnb={"figure": {"caption": "The people of the one batch, on the victim without heads, pooled features. Left: distance between the visible and the infrared centre of a person, mean (marked lines) and one typical person (thin dotted). Right: mean distance between people of one modality. The level line is the clean value.", "name": "fig-quadruple-descent"}, "image": {"alt": "Two line charts over the number of steps with five marked lines each in different colours, and dotted thin lines beside them on the left."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.9), layout="constrained")
for number, (name, values) in enumerate(apart.items()):
    colour, marker = plots.SERIES[number], "os^Dv"[number]
    left.plot(looked_at, [each.mean() for each, _ in values], marker=marker, markersize=5, color=colour, label=name)
    left.plot(looked_at, [each[typical] for each, _ in values], ":", linewidth=1, color=colour)
    right.plot(looked_at, [each for _, each in values], marker=marker, markersize=5, color=colour)
left.axhline(start.mean(), color=plots.CHANCE, linewidth=1)
right.axhline(start_others, color=plots.CHANCE, linewidth=1)
left.set(xlabel="step", ylabel="visible to infrared, same person")
right.set(xlabel="step", ylabel="person to person, one modality")
for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
plt.show()

# %% tags=["hide-input"]
lines = ["| loss | one person, visible to infrared | mean | person to person |", "|---|--:|--:|--:|"]
lines.append(f"| (clean) | {start[typical]:.2f} | {start.mean():.2f} | {start_others:.2f} |")
for name, values in apart.items():
    across, within = values[-1]
    lines.append(f"| {name} | {across[typical]:.2f} | {across.mean():.2f} | {within:.2f} |")
grew = [name for name, values in apart.items() if values[-1][0][typical] > 1.1 * start[typical]]
Markdown(
    "\n".join(lines)
    + f"\n\nAfter {settings.steps} steps. The spectra of this one person part by more than a tenth under: "
    + (", ".join(f"*{name}*" for name in grew) or "none of the losses")
    + "."
)

# %% [markdown]
# So much for the people the perturbation was made on. The score is about others: test identities that neither the
# victim nor the perturbation has met, all against all, up to 400 images of each modality. Across the spectra, attacked
# queries rank a clean gallery. Within a modality, half of a person's images are queries and the other half gallery;
# there **both** are attacked, since pushing people apart can only help when both have moved.

# %%
trial = dataset.trials(VISIBLE)[0]
sides = [cached(dataset, side, progress=False) for side in trial]
picked = [np.unique(np.linspace(0, len(side) - 1, 400).round().astype(int)) for side in sides]
tests = {
    modality: ImageStore(side.images[places], [side.records[place] for place in places])
    for modality, side, places in zip(Modality, sides, picked, strict=True)
}
who = {m: np.array([record.identity for record in side.records]) for m, side in tests.items()}
seen_before = {m: np.array([(names[:n] == names[n]).sum() for n in range(len(names))]) for m, names in who.items()}


def features_under(delta):
    """Ranked features of the test images, clean or attacked and rounded to 8 bits."""
    perturb = None
    if delta is not None:
        perturb = UniversalPerturbation({m: delta[m] for m in Modality}, settings.eps).apply_rounded
    return {m: embed_store(model, side, perturb=perturb, device=device, progress=False) for m, side in tests.items()}


def score(query, gallery, query_who, gallery_who):
    return metrics.evaluate_features(query, gallery, query_who, gallery_who)


def all_scores(features, gallery):
    """Scores by name: across the spectra against a clean gallery, within each against its attacked half."""
    found = {}
    for m in Modality:
        found[f"{m.name} to {m.other.name}".lower()] = score(features[m], gallery[m.other], who[m], who[m.other])
        first = seen_before[m] % 2 == 0
        found[f"within {m.name}".lower()] = score(
            features[m][first], features[m][~first], who[m][first], who[m][~first]
        )
    return found


noise = settings.eps * torch.where(torch.rand(nothing.shape, generator=generator_for(settings.seed, 91)) < 0.5, -1, 1)
deltas = {"sign noise": noise.to(device), **{name: path[-1] for name, path in paths.items()}}
clean_features = features_under(None)
scores = {"clean": all_scores(clean_features, clean_features)}
for name, delta in deltas.items():
    scores[name] = all_scores(features_under(delta), clean_features)
chance = metrics.chance(who[VISIBLE], who[INFRARED]).independent
inside = seen_before[VISIBLE] % 2 == 0
chance_within = metrics.chance(who[VISIBLE][inside], who[VISIBLE][~inside]).independent


# %% tags=["hide-input"]
def paired(name, way, against="clean"):
    """One perturbation's score minus another's with its interval over identities: rank-1 across, mAP within."""
    field = "per_query_rank1" if way in ACROSS else "per_query_ap"
    modality = VISIBLE if way in ("visible to infrared", "within visible") else INFRARED
    first, second = scores[against][way], scores[name][way]
    names = who[modality] if way in ACROSS else who[modality][seen_before[modality] % 2 == 0]
    return metrics.paired_bootstrap(getattr(first, field), getattr(second, field), names[first.valid])


ACROSS = ("visible to infrared", "infrared to visible")
WITHIN = ("within visible", "within infrared")
changes = {(name, way): [100 * value for value in paired(name, way)] for name in deltas for way in ACROSS + WITHIN}

# %% mystnb={"figure": {"caption": "Test identities. Left: rank-1 across the spectra, attacked queries against a clean gallery. Right: mAP within one modality, both sides attacked. Bars are the 95 % interval of the paired change from clean over identities, laid around the score; upright lines are clean scores, the dotted one is chance. Mind the scales: the right one need not begin at 0.", "name": "fig-quadruple-ranking"}, "image": {"alt": "Two dot charts side by side with seven rows each, named after the losses; round and triangular marks with horizontal bars, two upright solid lines and a dotted one near zero."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(8.6, 4), layout="constrained", sharey=True)
for axes, ways, measure in zip(panels, (ACROSS, WITHIN), ("rank1", "mAP"), strict=True):
    for way, modality, marker, offset in zip(ways, Modality, "o^", (-0.13, 0.13), strict=True):
        base = scores["clean"][way]
        base = 100 * (base.cmc[0] if measure == "rank1" else base.mAP)
        axes.axvline(base, color=plots.COLOURS[modality], linewidth=1, linestyle="-" if marker == "o" else "--")
        for row, name in enumerate(deltas):
            middle, low, high = changes[name, way]
            place = row + offset
            axes.plot([base + low, base + high], [place, place], color=plots.COLOURS[modality], linewidth=1.5)
            axes.plot(base + middle, place, marker, color=plots.COLOURS[modality], markersize=6,
                      label=way if row == 0 else None)  # fmt: skip
    axes.set_xlabel("rank-1 (%)" if measure == "rank1" else "mAP (%)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8, ncols=2)
panels[0].axvline(100 * chance.rank1.mean, color=plots.CHANCE, linestyle=":")
panels[0].set_xlim(0, 102)
panels[0].set_yticks(range(len(deltas)), list(deltas))
panels[0].invert_yaxis()
plt.show()

# %% tags=["hide-input"]
lines = ["| δ from | rank-1, V → I | I → V | mAP within V | within I |", "|---|---|---|---|---|"]
clean_cells = [100 * scores["clean"][way].cmc[0] for way in ACROSS] + [100 * scores["clean"][way].mAP for way in WITHIN]
lines.append("| (clean) | " + " | ".join(f"{value:.1f}" for value in clean_cells) + " |")
for name in deltas:
    cells = [
        f"{base + moved[0]:.1f}: {moved[0]:+.1f} [{moved[1]:+.1f}, {moved[2]:+.1f}]"
        for base, moved in zip(clean_cells, (changes[name, way] for way in ACROSS + WITHIN), strict=True)
    ]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")


def told(found):
    """How one score stands to another, by the interval of their difference."""
    return "below" if found.high < 0 else "above" if found.low > 0 else "not told apart from"


parting = [told(paired("other modality", way, "sign noise")) for way in ACROSS]
summing = [told(paired("linear", way, "other modality")) for way in ACROSS]
inner = [told(paired("other identity", way)) for way in WITHIN]
silent = (paths["hinge, heads"][-1] - paths["hinge, heads"][0]).abs().max().item() == 0
Markdown(
    "\n".join(lines)
    + f"\n\nChange from clean with its 95 % interval, percent points. Chance: {100 * chance.rank1.mean:.1f} % rank-1"
    f" across, {100 * chance_within.mAP.mean:.1f} % mAP within. One victim, one seed, one batch.\n\n"
    + f"- *Other modality* alone, against sign noise of the same budget: {parting[0]} it for visible queries,"
    f" {parting[1]} it for infrared ones.\n"
    + f"- The linear sum with *other identity*, against *other modality* alone: {summing[0]} it for visible queries,"
    f" {summing[1]} it for infrared ones."
    + (
        f" **Adding the third term made the perturbation weaker** in {summing.count('above')} of {len(summing)}"
        " directions: part of the budget goes into parting people."
        if "above" in summing and "below" not in summing
        else ""
    )
    + "\n"
    + f"- *Other identity* alone, within a modality, against clean images: {inner[0]} them for visible, {inner[1]} them for"
    " infrared."
    + (
        " The help that was expected for strangers does not show here."
        if "above" not in inner
        else " As expected, it helps."
    )
    + "\n"
    + (
        "- The hinge with these heads was silent at every step: its δ is the noise it started from."
        if silent
        else "- The hinge with these heads was active at some step and moved δ."
    )
)

# %% [markdown]
# ## What could fool us
#
# - **The draw.** Whether a hinge is active under fresh heads is decided by random convolutions. One draw says nothing;
#   the demonstration uses one.
# - **The scale.** $\alpha = 0.2$ means one thing for unit features and another for pooled ones. The paper names no
#   normalisation; a share of active hinges without the length of the features is half a number.
# - **The picture.** Three lengths and two angles of {numref}`fig-quadruple-centres` are exact, and the arrows of *one*
#   bracket. A centre takes part in many.
# - **A loss at zero.** Zero loss is the state of the untouched victim. It is no sign that an attack has converged.
# - **The ceiling.** Within a modality the clean score may be so high that no help can show.
# - **The demonstration.** One victim, one seed, one batch, fixed heads. It compares directions under one budget; it
#   says nothing about the strength of the attack in the paper, whose perturbation rule is not published.
# - **The training people.** All hinges are counted on people the victim was trained on, as in the paper.

# %% [markdown]
# ## Takeaways
#
# - Three distances: own together, other modality apart, other identity apart. Only the second one asks the spectra to
#   part; the third is what a victim was trained to do.
# - The hinge depends on $\alpha$ divided by the length of the features, and a victim whose people stand apart silences
#   it without being attacked.
# - The linear form never falls silent and never ends; only a budget ends it.
# - The corrected equation is the centre form on samples. One hinge on a sum can hide a goal that two hinges would show.
# - A sum that is not divided by its pairs outweighs a mean beside it, more so in larger batches.
# - For a defender: a published attack loss at zero is no certificate. Measure the ranking.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: how long may features be?
# :label: ex-quadruple-length
# ```
# Without heads and with unit-length *centres*, let any two centres of one batch have a cosine of at most $\cos\varphi$.
# From which $\varphi$ on is every hinge silent at $\alpha = 0.2$? Compare with the closest pair of the batch.
#
# **Check yourself.** How many degrees? Give one decimal.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check

self_check(None, "ex-quadruple-length", "5a98add7", decimals=1)  # your number in place of None

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-quadruple-length
# :class: dropdown
# ```
# Self-check: **5.7**.
#
# Two unit vectors at an angle $\varphi$ are $\sqrt{2 - 2\cos\varphi} = 2 \sin(\varphi/2)$ apart. With $a = 0$ and both
# distances at least that, silence needs $4 \sin(\varphi/2) \ge \alpha$, so $\varphi \ge 2 \arcsin(\alpha / 4)$. It is
# sufficient, not necessary: the two distances add up, so one of them may be smaller.

# %% tags=["solution"]
with torch.no_grad():
    unit = [F.normalize(centre) for centre in centres_of(rows, *stages(rows)[:2])]
    _, other_unit, between_unit = (term.cpu() for term in quadruple_terms(*unit))
smallest = torch.minimum(other_unit.min(), between_unit[:, ~with_itself].min()).item()
print(f"bound: {np.degrees(2 * np.arcsin(ALPHA / 4)):.1f} degrees")
print(f"closest pair of the batch: {np.degrees(2 * np.arcsin(smallest / 2)):.1f} degrees")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: four misprints
# :label: ex-quadruple-misprints
# ```
# Suppose a printed equation had one of these slips: (1) $+D(c_{i2}^j, c_{v1}^j)$; (2) $+D(c_{v2}^j, c_{v2}^k)$; (3)
# $-D(c_{v2}^j, c_{v1}^j)$; (4) $D(c_{i2}^k, c_{v1}^j)$ in the second place. Say for each what minimising it would do to
# a ranking across spectra. Then let free points tell: keep stage 1 at the test identities' centres, let stage 2 move
# from there by at most 0.4, and rank stage 2 against stage 1 of the other modality.
#
# **Check yourself.** Which two slips make it a loss for training a victim?
#
# - (a) (1) and (2).
# - (b) (1) and (4).
# - (c) (3) and (4).
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-quadruple-misprints", "9cb1b6ec")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-quadruple-misprints
# :class: dropdown
# ```
# Self-check: **b**.
#
# - (1) pulls the other modality's stage 2 to this stage 1, and people apart: a loss for *training* a victim.
# - (2) draws the people of a modality together, and asks the spectra to part as before. What told people apart goes.
# - (3) frees stage 2 from its origin and drives it away. In a hinge nothing is left to do: the bracket is $\alpha$
#   minus three distances. Where it ends as the corrected form does, the cap of 0.4 has done the own term's work.
# - (4) pushes *other* people's infrared from a visible stage 1: the negative of a cross-modality triplet, training
#   again. Of a person's own two centres it says nothing.
#
# So one slip turns the attack into a defence, and another may harm a ranking more than what was meant. Points that move
# freely show what a loss wants, not what pixels can give.


# %% tags=["solution"]
def person_means(features, modality, names):
    return torch.stack([features[modality][who[modality] == name].mean(0) for name in names])


def total(stage1, stage2, slip):
    """The linear loss over free points with one slip, both directions, as a mean over pairs."""
    value = 0
    for here, there in ((0, 1), (1, 0)):
        own = (stage2[here] - stage1[here]).norm(dim=1)[:, None]
        across = torch.cdist(stage1[here], stage2[there])  # row j: stage 1 here, column: whose stage 2 there
        inside = torch.cdist(stage2[here], stage2[here], compute_mode="donot_use_mm_for_euclid_dist")
        second = across if slip == 4 else across.diagonal()[:, None]
        sign = [-1 if slip == 3 else 1, 1 if slip == 1 else -1, 1 if slip == 2 else -1]
        bracket = sign[0] * own + sign[1] * second + sign[2] * inside
        value = value + bracket[~torch.eye(len(own), dtype=torch.bool, device=own.device)].mean()
    return value


names = np.intersect1d(*who.values())
first = torch.stack([person_means(clean_features, m, names) for m in Modality])
jitter = torch.randn(first.shape, generator=generator_for(settings.seed, 92)).to(first)
SLIPS = {"as corrected": 0, "(1) + other modality": 1, "(2) + other identity": 2, "(3) − own": 3, "(4) k for j": 4}


def row_of(second):
    gaps = [torch.cdist(second[m], first[1 - m]) for m in (0, 1)]
    hit = torch.stack([(gap.argmin(1) == torch.arange(len(names), device=gap.device)).float().mean() for gap in gaps])
    return {
        "rank-1 of centres": f"{100 * hit.mean().item():.0f} %",
        "same person, other modality": f"{torch.stack([gap.diagonal().mean() for gap in gaps]).mean().item():.2f}",
        "other identity, same modality": f"{torch.stack([torch.pdist(x).mean() for x in second]).mean().item():.2f}",
    }


table = {"start": row_of(first)}
for name, slip in SLIPS.items():
    second = first + 1e-3 * F.normalize(jitter, dim=-1)  # a distance of 0 has no direction
    for _ in range(40):
        second = second.detach().requires_grad_()
        (slope,) = torch.autograd.grad(total(first, second, slip), second)
        moved = second.detach() - 0.02 * F.normalize(slope, dim=-1) - first
        second = first + moved * (0.4 / moved.norm(dim=-1, keepdim=True).clamp(min=0.4))
    table[name] = row_of(second)
pd.DataFrame(table).T.rename_axis("linear loss over free points")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-quadruple-flaw
# ```
# A report reads: "We minimised the published hinge on a frozen victim without heads, on features of unit length. The
# loss is 0 on every batch after the attack, so the perturbation is optimal, and as rank-1 is lower than clean, the loss
# explains the drop." Every number in it is right. What is missing? Run it.
#
# **Check yourself.** What has to stand beside the loss after the attack?
#
# - (a) The loss before it, and under noise of the same budget.
# - (b) The loss on more batches.
# - (c) The loss at another margin.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-quadruple-flaw", "ae24ea01")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-quadruple-flaw
# :class: dropdown
# ```
# Self-check: **a**.
#
# The same loss without the attack, and with noise of the same budget. A value that does not change explains no change.
# If the loss is 0 from the start, its gradient is 0, `sign(0)` is 0, and $\delta$ stays the noise it began with: what
# rank-1 loses, noise has taken, or another term (such as $L_{id}$, or a momentum that divides by a tiny number). The
# table puts the loss beside perturbations of known strength; if the column is the same for all, it cannot tell them
# apart.

# %% tags=["solution"]
table = {}
start_noise = paths["linear"][0]
for name, delta in {"clean": None, "its starting noise": start_noise, **deltas}.items():
    with torch.no_grad():
        first_stage, second_stage, _ = stages(few, None, delta)
        four = centres_of(few, F.normalize(first_stage), F.normalize(second_stage))
        found = quadruple_loss(*four, alpha=ALPHA)
    row = {"hinge loss": f"{found.loss.item():.3f}", "active": f"{100 * found.active.item():.0f} %"}
    if name in scores:
        row |= {f"rank-1, {way}": f"{100 * scores[name][way].cmc[0]:.1f}" for way in ACROSS}
    table[name] = row
pd.DataFrame(table).T.fillna("").rename_axis("delta")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`yang2024feature`, {cite:t}`ye2022agw`.
