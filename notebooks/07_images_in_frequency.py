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
# # Images in frequency
#
# The feature-level attack {cite}`yang2024feature` takes feature maps apart into {term}`amplitude and phase` and puts a
# weight on the phase. Before we can judge that, we have to know what the two parts are. This chapter takes images of
# both spectra apart, lets the {term}`victim` say which part carries the person, and looks where in the spectrum an
# image, a gradient and a {term}`universal perturbation` have their energy.

# %% [markdown]
# ## What you will be able to do
#
# - take an image apart into amplitude and phase, put it together again, and say what either part leaves out;
# - tell what belongs to an image in its spectrum and what to the borders and the origin of the transform;
# - test the claim "phase is structure, amplitude is style" with a ranking in place of the eye;
# - say where the energy of an image, a gradient and a perturbation sits, and compare each with white noise;
# - find the bands a network reads, and the bands of a perturbation that do the damage.

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

costs = Costs("07_images_in_frequency")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite (two CPU cores), standard (one GPU) or full (one GPU, licensed data)
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of everything random here
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes
RETRAIN: bool = False  # train the victim here even where it comes with the package
EPS: "fraction" = "8/255"  # budget: largest change of a pixel, whose range is [0, 1]
GRADIENTS: "Optional[int]" = None  # batches forward and backward of the attack; None: 60 at tier lite, else 600
IDENTITIES: int = 100  # training people the attacker looks at
QUERIES: "Optional[int]" = None  # test queries of each direction; None: about 120 at tier lite, else 1000

# %%
settings = check_parameters(globals(), costs)

# %% [markdown]
# ## Threat model
#
# [The default](../book/threat_models.md) wherever something is attacked:
#
# | Question | Answer |
# |---|---|
# | What does the attacker know? | the network ({term}`white box`) and unlabelled training images |
# | What is perturbed? | the query, by one {term}`universal perturbation` for both spectra, three free channels |
# | How much? | no pixel and channel changes by more than $\varepsilon$, `EPS` above; 8 bits |
# | On what is it measured? | test people, beside {term}`chance <chance level>` |
# | What is not an attack? | swapped and filtered images; they change pixels by far more, to see what a network reads |
#
# What is published here and why: [responsible use](../book/responsible_use).

# %% [markdown]
# ## The question
#
# What do amplitude and phase carry in each spectrum, and where does a perturbation's energy sit?

# %% tags=["hide-input"]
from itertools import pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from vireid_lite import metrics
from vireid_lite.chapters import plots
from vireid_lite.chapters.words import moved
from vireid_lite.metrics.anatomy import shift_and_spread
from vireid_lite.attacks import CMPS, build_attack
from vireid_lite.attacks.budget import clip, luma, project, to_8_bits
from vireid_lite.attacks.frozen import frozen, training_store
from vireid_lite.data import Modality, Trial, cached
from vireid_lite.metrics.evaluation import direction_name, embed_store, identities_and_cameras
from vireid_lite.frequency import (
    amplitude_only,
    band_energy,
    band_pass,
    decompose,
    for_show,
    phase_only,
    radial_frequency,
    recombine,
    swap,
)
from vireid_lite.victims import load_or_train, tier_dataset, tier_recipe

plots.set_style()
device = settings.device
VISIBLE, INFRARED = Modality
lite = settings.tier == "lite"
dataset = tier_dataset(settings.tier, settings.dataset, settings.data_root)
model, _ = load_or_train(
    tier_recipe(settings.tier), dataset, seed=settings.seed, device=device, retrain=settings.retrain
)
model.eval()
height, width = dataset.size

images, people, asked, gallery, chance = {}, {}, {}, {}, {}
for modality in Modality:
    trial = dataset.trials(modality)[0]
    every = -(-len(trial.query) // (settings.queries or (120 if lite else 1000)))
    store = cached(dataset, trial.query, progress=False)
    images[modality] = store.batch(np.arange(0, len(store), every), device)
    asked[modality] = Trial(trial.query[::every], trial.gallery)
    people[modality] = identities_and_cameras(asked[modality])[0]
    options = {"device": device, "progress": False}
    gallery[modality] = embed_store(model, cached(dataset, trial.gallery, progress=False), **options)
    chance[modality] = metrics.chance(*identities_and_cameras(asked[modality]), protocol=dataset.protocol)
Markdown(
    f"{len(images[VISIBLE])} visible and {len(images[INFRARED])} infrared test queries of {len(set(people[VISIBLE]))}"
    f" people, {height} × {width} pixels, each direction against its whole gallery. One victim, one seed; intervals are"
    " over the test people."
)

# %% [markdown]
# ## The transform
#
# An image of $H \times W$ pixels is a sum of $HW$ waves. The discrete Fourier transform says how much of each,
#
# $$ F(u, v) = \frac{1}{\sqrt{HW}} \sum_{h, w} x(h, w)\, e^{-2\pi j (uh/H + vw/W)} = A(u, v)\, e^{jP(u, v)} , $$
#
# where $u$ and $v$ count the periods of a wave down and across. The *amplitude* $A \ge 0$ is a wave's strength, the
# *phase* $P \in (-\pi, \pi]$ says where its crests lie, seen from the top left pixel. The factor in front makes the
# transform orthonormal, so that energy, the sum of squares, is the same on both sides (Parseval).

# %%
image = images[VISIBLE][:1]
amplitude, phase = decompose(image)
assert torch.allclose(recombine(amplitude, phase), image, atol=1e-5)  # nothing is lost
assert torch.allclose(amplitude.square().sum(), image.square().sum())  # Parseval
mean_of_image = amplitude[..., 0, 0] / (height * width) ** 0.5  # bin (0, 0) holds it
assert torch.allclose(mean_of_image, image.mean((2, 3)))

# %% [markdown]
# {numref}`fig-frequency-pair` takes one person apart in both spectra. In the last column a crop keeps its phase and
# gets the amplitude of the crop in the other row.

# %% mystnb={"figure": {"caption": "One person, visible (top) and infrared (bottom). Amplitude: logarithm, mean of the channels, slow waves in the middle. Phase: white is +π, black −π. Without a phase all crests meet in one pixel, here moved to the middle; without an amplitude (all waves equally strong) fine structure is all there is. 'Amplitude alone' and 'phase alone' are rescaled to be visible; the last column is as it comes, cut to [0, 1].", "name": "fig-frequency-pair"}, "image": {"alt": "Two rows of six tall pictures: a crop of a person; a bright spot with a cross on dark ground; speckle without structure; a symmetric glow without a person; a pale relief with outlines of the person; and a crop that still shows the person."}} tags=["hide-input"]
known = {m: [record.identity for record in asked[m].query] for m in Modality}
person = known[VISIBLE][len(known[VISIBLE]) // 2]
pair = {m: images[m][known[m].index(person)][None] for m in Modality}
figure, grid = plt.subplots(2, 6, figsize=(7.6, 5.4), layout="constrained")
for row, modality in zip(grid, Modality, strict=True):
    crop = pair[modality]
    strength, angle = (part.roll((height // 2, width // 2), (-2, -1)) for part in decompose(crop))
    blob = amplitude_only(crop).roll((height // 2, width // 2), (-2, -1))
    shown = (
        crop,
        for_show((strength + 1e-3).log().mean(1, keepdim=True)).expand_as(crop),
        (angle[:, :1] / (2 * torch.pi) + 0.5).expand_as(crop),
        for_show(blob),
        for_show(phase_only(crop)),
        swap(pair[modality.other], crop).clamp(0, 1),
    )
    for axes, part in zip(row, shown, strict=True):
        plots.show_crop(axes, plots.picture(part[0].clamp(0, 1)))
    row[0].set_ylabel(modality.name.lower(), color=plots.COLOURS[modality])
titles = "crop", "amplitude", "phase", "amplitude\nalone", "phase\nalone", "amplitude of\nthe other row"
for axes, title in zip(grid[0], titles, strict=True):
    axes.set_title(title, fontsize=9)
plt.show()

# %% [markdown]
# What one sees: nobody in the amplitude alone; an outline, drawn in noise, in the phase alone; and in the last column
# the person whose *phase* it is, in light and colours that belong to neither. This is the classic demonstration
# {cite}`oppenheim1981phase`. From a figure like it, of one person, the authors of the feature-level attack read in the
# public discussion of their paper that amplitude is brightness and contrast, and phase structure. But the eye is an
# expert in outlines, and one pair is one pair. We come back to it with a judge that has no eyes.

# %% [markdown]
# ## What the transform adds
#
# Two things in a spectrum are not of the image. First, the sum above knows only waves that fit into the frame a whole
# number of times. To them the image is a tile: the top row follows on the bottom row, and where floor and ceiling
# meet, there is an edge that nobody took a picture of. Its energy lies along the axes of the spectrum, in the cross of
# {numref}`fig-frequency-borders`. Laying the image beside its mirror image closes the seam.


# %%
def cross(maps):
    """Share of the energy above half Nyquist that is on the two axes, beyond an even spread."""
    loud = decompose(maps)[0].square().mean((0, 1)).cpu()
    fast = radial_frequency(*maps.shape[-2:]) >= 0.5
    axes = fast.clone()
    axes[1:, 1:] = False
    return ((loud[axes].sum() / loud[fast].sum()) - axes.sum() / fast.sum()).item()


def mirrored(maps):
    """Each map beside its mirror image, and both above theirs."""
    maps = torch.cat([maps, maps.flip(-1)], -1)
    return torch.cat([maps, maps.flip(-2)], -2)


some = {m: images[m][:: max(1, len(images[m]) // 60)] for m in Modality}
crosses = {m: (cross(some[m]), cross(mirrored(some[m]))) for m in Modality}

# %% mystnb={"figure": {"caption": "Left: four copies of a crop, as the transform sees it; the dashed lines are seams. Middle: root mean square amplitude of visible queries, logarithm, slow waves in the centre. Right: the same after mirroring, which leaves no seam. Compare the lines through the centre: what the mirror takes from them was of the seam and not of the images.", "name": "fig-frequency-borders"}, "image": {"alt": "Three panels: a crop repeated two by two with dashed lines between the copies; a bright spot with a bright cross over the full height and width; a bright spot with a narrower, weaker cross."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(7, 4.4), layout="constrained")
panels[0].imshow(np.tile(plots.picture(pair[VISIBLE][0]), (2, 2, 1)), interpolation="nearest")
panels[0].axhline(height - 0.5, color="white", linestyle="--", linewidth=1)
panels[0].axvline(width - 0.5, color="white", linestyle="--", linewidth=1)
for axes, maps in zip(panels[1:], (some[VISIBLE], mirrored(some[VISIBLE])), strict=True):
    mean = decompose(maps)[0].square().mean((0, 1)).sqrt().clamp(min=1e-6)
    shown = torch.fft.fftshift(mean).log10().cpu().numpy()
    low, high = np.quantile(shown, (0.02, 0.995))
    axes.imshow(shown, aspect=shown.shape[1] * height / shown.shape[0] / width, cmap="gray", vmin=low, vmax=high)
titles = "the tiled image", "amplitude", "amplitude, mirrored"
for axes, title in zip(panels, titles, strict=True):
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
plt.show()

# %% tags=["hide-input"]
fell = all(before > after for before, after in crosses.values())
Markdown(
    "Of the energy above half the Nyquist frequency, the axes hold, beyond an even spread: "
    + "; ".join(
        f"{m.name.lower()} **{100 * before:.1f} %**, mirrored **{100 * after:.1f} %**"
        for m, (before, after) in crosses.items()
    )
    + ". "
    + (
        "What mirroring takes away was the seam's; what stays belongs to the images, to upright people and level floors."
        if fell
        else "Mirroring does not weaken the cross in both spectra, so the seam is not its only cause here."
    )
)

# %% [markdown]
# Second, the phase depends on where one counts from. A shift by $(a, b)$ pixels leaves every amplitude as it is and
# adds a ramp to the phase, $-2\pi(ua/H + vb/W)$, modulo $2\pi$:

# %%
a, b = 5, 3
moved_amplitude, moved_phase = decompose(image.roll((a, b), (2, 3)))
u, v = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
ramp = -2 * torch.pi * (u * a / height + v * b / width)
assert torch.allclose(moved_amplitude, amplitude, atol=1e-4)
assert torch.allclose(recombine(amplitude, phase + ramp), image.roll((a, b), (2, 3)), atol=1e-4)

# %% [markdown]
# So the phases say *where* things are, but that of a single wave says nothing: only how different waves stand to each
# other does. That matters for whoever computes with the number. The feature-level attack multiplies phases by
# weights below 1. An angle times 0.9 is not a smaller angle in any sense that an image knows of: $+\pi$ and $-\pi$ are
# the same angle and their multiples are not, and what comes out depends on which pixel is called the first
# ({numref}`fig-frequency-scaled`). There the whole phase has one weight; the attack has one for each frequency.

# %% mystnb={"figure": {"caption": "The phase of one crop times a weight, from 1 (the crop) to 0 (amplitude alone). Top: counted from the top left pixel. Bottom: the same crop moved by half its size, weighted, and moved back. If the weight acted on the image and not on the place of the origin, the rows would be equal.", "name": "fig-frequency-scaled"}, "image": {"alt": "Two rows of six tall pictures. The first of each row is the same crop of a person; to the right the crops dissolve into ghosts and glow, which gathers at the corners in the upper row and in the middle in the lower row."}}
WEIGHTS = 1, 0.9, 0.75, 0.5, 0.25, 0
half = (height // 2, width // 2)
back = (-half[0], -half[1])
figure, grid = plt.subplots(2, len(WEIGHTS), figsize=(7.6, 5.2), layout="constrained")
apart = {}
for column, weight in zip(grid.T, WEIGHTS, strict=True):
    strength, angle = decompose(pair[VISIBLE])
    first = recombine(strength, weight * angle)
    strength, angle = decompose(pair[VISIBLE].roll(half, (2, 3)))
    second = recombine(strength, weight * angle).roll(back, (2, 3))
    without_mean = first - first.mean((2, 3), keepdim=True)
    apart[weight] = ((first - second).norm() / without_mean.norm()).item()
    for axes, result in zip(column, (first, second), strict=True):
        shown = for_show(result) if weight < 1 else result.clamp(0, 1)
        plots.show_crop(axes, plots.picture(shown[0]))
    column[0].set_title(f"weight {weight:g}", fontsize=9)
grid[0, 0].set_ylabel("as it is", fontsize=9)
grid[1, 0].set_ylabel("origin moved", fontsize=9)
plt.show()

# %% tags=["hide-input"]
Markdown(
    "Difference between the rows, in % of the image's length without its mean: "
    + ", ".join(
        f"weight {weight:g}: **{100 * value:.0f} %**" for weight, value in apart.items() if weight not in (0, 1)
    )
    + "."
)

# %% [markdown]
# ## Whom does the victim find?
#
# Now the claim, without eyes. A hybrid has the phase of a query and the amplitude of an image of somebody else. It goes
# into the victim as a query; the {term}`gallery` stays as it is. Then the ranking is scored twice: once as if the owner
# of the *phase* had been asked for, once as if the owner of the *amplitude* had. If phase is structure and structure is
# the person, the first score is high and the second at chance.
#
# Controls: the amplitude of another image of the *same* person shows what mixing costs by itself; the mean amplitude of
# the training images of the spectrum belongs to nobody; a constant amplitude is the phase alone. The last two are given
# the query's mean and standard deviation, or they would not fit into [0, 1]; that hands two numbers of the amplitude
# back. All are clipped and rounded to 8 bits, as in an image file.


# %%
def embed(maps, modality):
    """Features of images as a file would hold them."""
    with torch.no_grad():
        stored = (maps.clamp(0, 1) * 255).round() / 255
        return torch.cat([model.embed(part, modality) for part in stored.split(256)])


def score(features, modality, owner=None, hidden=None):
    """Rank-1 of each query, (N,) of 0 and 1.

    owner: the identity that each is scored for, in place of its own.
    hidden: a gallery row that each ranks last, or None.
    """
    own, *rest = identities_and_cameras(asked[modality])
    owner = own if owner is None else owner
    distance = torch.cdist(features, gallery[modality])
    for query, row in enumerate(() if hidden is None else hidden):
        if row is not None:
            distance[query, row] = 3  # features have length 1
    return metrics.evaluate(distance, owner, *rest, protocol=dataset.protocol).per_query_rank1


def donors(modality, source, places):
    """For each query, a row of images[source]: of the person so many places further on.

    places 0: another image of the query's own person.
    """
    names, rows = np.unique(people[source]), []
    for number, name in enumerate(people[modality]):
        donor = names[(np.searchsorted(names, name) + places) % len(names)]
        theirs = np.flatnonzero(people[source] == donor)
        turn = np.flatnonzero(people[modality] == name).tolist().index(number) + 1
        rows.append(theirs[turn % len(theirs)])
    return np.array(rows)


def like(maps, others):
    """Maps with the mean and the standard deviation of others, channel by channel."""
    mean, other_mean = (x.mean((2, 3), keepdim=True) for x in (maps, others))
    std, other_std = (x.std((2, 3), keepdim=True) for x in (maps, others))
    return (maps - mean) / std.clamp(min=1e-6) * other_std + other_mean


few = training_store(dataset, settings.identities)
usual = {}  # mean amplitude of each spectrum, (1, 3, H, W)
for modality in Modality:
    rows = np.flatnonzero(few.modalities.numpy() == modality)
    parts = np.array_split(rows, -(-len(rows) // 256))
    parts = [decompose(few.batch(part, device))[0].sum(0) for part in parts]
    usual[modality] = (torch.stack(parts).sum(0) / len(rows))[None]

clean = {m: score(embed(images[m], m), m) for m in Modality}
found, outside = {}, {}
for m in Modality:
    own = images[m]
    near, far = donors(m, m, 1), donors(m, m.other, 1)
    in_gallery = {record: row for row, record in enumerate(asked[m].gallery)}
    there = [in_gallery.get(asked[m.other].query[row]) for row in far]
    across = swap(images[m.other][far], own)
    hybrids = {
        "same person, another image": (swap(own[donors(m, m, 0)], own), None, None),
        "another person, same spectrum": (swap(own[near], own), people[m][near], None),
        "another person, other spectrum": (across, people[m.other][far], there),
        "nobody: mean of the spectrum": (recombine(usual[m], decompose(own)[1]), None, None),
        "none: constant": (like(phase_only(own), own), None, None),
        "own, but phase 0": (like(amplitude_only(own), own), None, None),
    }
    for name, (maps, owner, hidden) in hybrids.items():
        features = embed(maps, m)
        outside[name, m] = ((maps < 0) | (maps > 1)).float().mean().item()
        by_amplitude = None if owner is None else score(features, m, owner, hidden)
        found[name, m] = score(features, m), by_amplitude


# %% tags=["hide-input"]
def share(values):
    return f"{100 * np.mean(values):.1f}"


def against(before, after, modality):
    return metrics.paired_bootstrap(before, after, people[modality])


lines = [
    "| amplitude of | V→I, for the phase's owner | change | for the amplitude's owner"
    " | I→V, for the phase's owner | change | for the amplitude's owner |",
    "|---|--:|--:|--:|--:|--:|--:|",
    f"| *the image itself (clean)* | {share(clean[VISIBLE])} | | | {share(clean[INFRARED])} | | |",
]
for name in dict.fromkeys(name for name, _ in found):
    cells = []
    for m in Modality:
        by_phase, by_amplitude = found[name, m]
        cells += [share(by_phase), moved(against(clean[m], by_phase, m))]
        cells += [share(by_amplitude) if by_amplitude is not None else ""]
    lines.append(f"| {name} | {' | '.join(cells)} |")
floor = {m: chance[m].independent.rank1.mean for m in Modality}
lines.append(
    f"| *chance* | {100 * floor[VISIBLE]:.1f} | | {100 * floor[VISIBLE]:.1f} | {100 * floor[INFRARED]:.1f} | |"
    f" {100 * floor[INFRARED]:.1f} |"
)
Markdown(
    "\n".join(lines)
    + "\n\nRank-1 in %; V→I: visible query, infrared gallery. Change: against clean, on the same queries, with its 95 %"
    " interval over people. Where the amplitude comes from the other spectrum, its own image is ranked last: the gallery"
    f" would hold half of the query. Pixels that were clipped: {100 * min(outside.values()):.1f} to"
    f" {100 * max(outside.values()):.1f} %."
)

# %% tags=["hide-input"]
SWAPS = "another person, same spectrum", "another person, other spectrum"
texts = []
for m in Modality:
    for name in SWAPS:
        by_phase, by_amplitude = found[name, m]
        lead = metrics.paired_bootstrap(by_amplitude, by_phase, people[m])
        level = metrics.bootstrap(by_amplitude, people[m])
        winner = (
            "the phase's owner" if lead.low > 0 else "the amplitude's owner" if lead.high < 0 else "neither clearly"
        )
        rest = (
            "the amplitude's owner is found more often than by chance"
            if level.low > floor[m]
            else "the amplitude's owner is not found more often than by chance"
        )
        texts.append(
            f"- *{direction_name(m)}, {name}*: found is {winner} (phase minus amplitude, points: {moved(lead)}); {rest}."
        )
SAME, NONE = "same person, another image", "none: constant"
rows = [(name, m) for name in SWAPS for m in Modality]
leads = sum(metrics.paired_bootstrap(found[row][1], found[row][0], people[row[1]]).low > 0 for row in rows)
costs_more = sum(against(found[SAME, m][0], found[name, m][0], m).high < 0 for name, m in rows)
traced = [row for row in rows if metrics.bootstrap(found[row][1], people[row[1]]).low > floor[row[1]]]
blind = [m for m in Modality if metrics.bootstrap(found[NONE, m][0], people[m]).low <= floor[m]]
verdict = [
    f"Between two strangers the phase decides whom the victim finds in {leads} of {len(rows)} rows.",
    f"But a stranger's amplitude costs clearly more than another one of the same person in {costs_more} of {len(rows)}:"
    + (
        " the amplitude says something about the person too, brightness and colours included,"
        f" {'and more than nothing about who it is' if traced else 'though not enough to find anyone by'}."
        if costs_more
        else " what is lost may be the mixing's."
    ),
    "Phase alone, in which the eye saw an outline, is not clearly better than chance for the victim,"
    f" {' and '.join(direction_name(m) for m in blind)}."
    if blind
    else "Phase alone is enough for more than chance in both directions.",
]
Markdown("\n".join(texts) + "\n\n" + " ".join(verdict))

# %% [markdown]
# Three things stand between such a table and "phase is structure, amplitude is style". The first is whether the price
# of another amplitude depends on whose it is; of mere style it would not. The second is the judge. The network has never
# seen a hybrid, and mixing leaves ringing and halos; where it fails, it may be the unfamiliar that it fails on. The row
# "same person" has the same halos, so compare strangers with that row and not with clean; for the constant amplitude
# there is no such row. The third has a section of its own.

# %% [markdown]
# ### Through a smaller window
#
# The third is the size of the frame. In a small window the phase no longer says where something is, because the
# window does, and the brightness of the window, which is amplitude, draws the picture. For a single pixel the amplitude
# is the pixel. Human observers go over from phase to amplitude as the window shrinks {cite}`morgan1991patches`. So cut
# both images into $k \times k$ windows, transform and swap each by itself, and score both owners again.


# %%
def windows(maps, k):
    """(N, 3, H, W) to (N, 3, k, k, H / k, W / k)."""
    n, c, h, w = maps.shape
    return maps.reshape(n, c, k, h // k, k, w // k).transpose(3, 4)


def whole_again(parts):
    n, c, k, _, h, w = parts.shape
    return parts.transpose(3, 4).reshape(n, c, k * h, k * w)


owners = {(1, m): found[SWAPS[0], m] for m in Modality}
for k, m in product((4, 8, 16), Modality):
    if height % k == width % k == 0:
        stranger = donors(m, m, 1)
        mixed = whole_again(swap(windows(images[m][stranger], k), windows(images[m], k)))
        features = embed(mixed, m)
        owners[k, m] = score(features, m), score(features, m, people[m][stranger])

# %% tags=["hide-input"]
lines = ["| window | V→I, phase's owner | amplitude's owner | I→V, phase's owner | amplitude's owner |"]
lines += ["|---|--:|--:|--:|--:|"]
counts = list(dict.fromkeys(k for k, _ in owners))
for k in counts:
    cells = [share(values) for m in Modality for values in owners[k, m]]
    lines.append(f"| {height // k} × {width // k} pixels | {' | '.join(cells)} |")
texts = []
for m in Modality:
    turned = [metrics.paired_bootstrap(*owners[k, m], people[m]).low > 0 for k in counts]
    first = next((number for number in range(len(counts)) if all(turned[number:])), None)
    texts.append(
        f"*{direction_name(m)}*: "
        + (
            "the amplitude's owner does not take over."
            if first is None
            else f"in windows of {height // counts[first]} × {width // counts[first]} pixels and smaller ones, it is the"
            " amplitude's owner who is found."
        )
    )
floors = " and ".join(f"{100 * floor[m]:.1f}" for m in Modality)
Markdown("\n".join(lines) + f"\n\nRank-1 in %, same spectrum, 8 bits; chance: {floors} %. " + " ".join(texts))

# %% [markdown]
# "Phase is structure" is a sentence about frames larger than the structure. The feature-level attack takes phases of
# feature maps, whose channels are not images and whose last maps are a few pixels wide. What phase carries there is not
# known from here; it has to be measured there.

# %% [markdown]
# ## Does the amplitude make the gap?
#
# If the spectra differed in style alone, and amplitude were style, then a visible image with an infrared amplitude would
# be an infrared image. In segmentation, exchanging the low part of the amplitude does help one domain look like another
# {cite}`yang2020fda`. So give every query the mean amplitude of the *other* spectrum and rank again: through its own
# {term}`stem`, and through the stem of the spectrum it now pretends to be. A visible image turns grey first for that.
# The controls are the mean amplitude of the own spectrum, and the grey image through the other stem. *Shift* is the
# distance between the means of query and gallery features, in units of a cloud's width
# ([chapter 6](06_the_whole_attack)).


# %%
GREY = "grey, other stem"


def disguised(m):
    """The queries under each disguise, with the stem they go through."""
    own, other = images[m], usual[m.other]
    bare = luma(own) if m == VISIBLE else own
    return {
        "as they are": (own, m),
        "own spectrum's mean amplitude": (recombine(usual[m], decompose(own)[1]), m),
        "other spectrum's mean amplitude": (recombine(other, decompose(own)[1]), m),
        GREY: (bare, m.other),
        f"{GREY}, other spectrum's mean amplitude": (recombine(other, decompose(bare)[1]), m.other),
    }


gap = {}
for m in Modality:
    for name, (maps, stem) in disguised(m).items():
        features = embed(maps, stem)
        start = features if name == "as they are" else start
        gap[name, m] = score(features, m), shift_and_spread(features, start, gallery[m])[0]

# %% tags=["hide-input"]
lines = ["| queries | V→I rank-1 | shift | I→V rank-1 | shift |", "|---|--:|--:|--:|--:|"]
for name in dict.fromkeys(name for name, _ in gap):
    cells = [cell for m in Modality for cell in (share(gap[name, m][0]), f"{gap[name, m][1]:.2f}")]
    lines.append(f"| {name} | {' | '.join(cells)} |")
texts = []
for m in Modality:
    plain, changed = (gap[GREY + more, m][0] for more in ("", ", other spectrum's mean amplitude"))
    helped = against(plain, changed, m)
    crossed = against(*(gap[f"{whose} spectrum's mean amplitude", m][0] for whose in ("own", "other")), m)
    best = max((name for name, modality in gap if modality == m), key=lambda name: gap[name, m][0].mean())
    words = [
        "helps" if change.low > 0 else "harms" if change.high < 0 else "makes no clear difference"
        for change in (crossed, helped)
    ]
    texts.append(
        f"*{direction_name(m)}*: through the own stem the other spectrum's amplitude, beside the own spectrum's mean,"
        f" {words[0]} ({moved(crossed)} points); through the other stem, beside the grey image, it {words[1]}"
        f" ({moved(helped)}). Best of all: {best}."
    )
beats = [against(clean[m], gap[name, m][0], m).low > 0 for name, m in gap]
texts.append(
    "At least one disguise beats the untouched queries."
    if any(beats)
    else "No disguise beats the untouched queries: none of these amplitudes closes the gap between the spectra for this"
    " victim."
)
Markdown("\n".join(lines) + f"\n\nRank-1 in %, 8 bits; chance: {floors} %. " + " ".join(texts))

# %% [markdown]
# The victim was trained to see through the gap with two stems, so it may have less to gain from a disguise than a
# network that knows one spectrum only. What is tested is this victim's gap, not the cameras'.

# %% [markdown]
# ## Where the energy sits
#
# Sort the waves by *radius*, from 0 (the mean) to 1, the Nyquist frequency, where a wave has two pixels a period; the
# corners of the spectrum go up to $\sqrt 2$ and count to the last ring. Rings of equal width hold more and more waves,
# so even *white* noise, which favours none, has most of its energy outside. An image should be the opposite.
#
# Three things that an attack is made of stand beside the images: the gradient of the
# [triplet loss](05_cross_modality_triplet) for a single clean image; its sign, which is what a step adds; and the
# perturbation that comes of a few dozen batches, with sign noise as its control.

# %%
attack = CMPS(eps=settings.eps, steps=max(1, (settings.gradients or (60 if lite else 600)) // 2))
with frozen(model):
    problem = attack.prepare(model, few, settings.seed)
    state = attack.start((3, height, width), settings.seed)
    state = {name: value.to(device) for name, value in state.items()}
    for step in range(attack.steps):
        attack.step(model, problem, state, step, settings.seed)

    gradients = []  # of one image each: a delta for every image, and none shared
    for modality in Modality:
        rows = problem.batches[modality].at(0)
        deltas = torch.zeros(len(rows), 3, height, width, device=device, requires_grad=True)
        loss, _ = attack.objective(model, problem, deltas, rows, modality)
        gradients.append(torch.autograd.grad(loss, deltas)[0])
gradients = torch.cat(gradients)
delta = state["delta"]
noise = build_attack("sign-noise", eps=attack.eps).fit(model, few, settings.seed).delta.to(device)

RINGS = 8


def energy(maps):
    """Share of energy in each ring without the mean, over all maps that have any."""
    maps = maps - maps.mean((-2, -1), keepdim=True)
    shares = band_energy(maps, RINGS).flatten(0, -2)
    return shares[shares.sum(1) > 0].mean(0).cpu().numpy()


profiles = {
    "visible images": energy(images[VISIBLE]),
    "infrared images": energy(images[INFRARED]),
    "gradient of one image": energy(gradients),
    "its sign": energy(gradients.sign()),
    "CMPS": energy(delta),
    "sign noise": energy(noise),
}
radius = radial_frequency(height, width)
ring = (radius * RINGS).floor().clamp(max=RINGS - 1).long().flatten()
white = torch.bincount(ring[1:], minlength=RINGS).double().numpy()  # without the mean
white /= white.sum()

# %% mystnb={"figure": {"caption": "Energy of a single wave, by radius, in multiples of white noise (dotted), without the mean; logarithmic scale. Look where each line crosses the dotted one, and how far the perturbation strays from the noise that has its size.", "name": "fig-frequency-energy"}, "image": {"alt": "Line chart of eight points per line. Two lines with circles and triangles fall steeply across three orders of magnitude; three lines stay nearer to one, some with a bump in the middle; one lies on the dotted horizontal line."}}
figure, axes = plt.subplots(figsize=(7.4, 3.8), layout="constrained")
middle = (np.arange(RINGS) + 0.5) / RINGS
for (name, values), marker, colour in zip(profiles.items(), "o^sDvP", plots.SERIES, strict=True):
    style = "--" if "gradient" in name or "sign" in name else "-"
    axes.plot(middle, values / white, style, marker=marker, markersize=5, color=colour, label=name)
axes.axhline(1, linestyle=":", color=plots.CHANCE, label="white")
axes.set(yscale="log", xlabel="radius (1: two pixels a period)")
axes.set_ylabel("energy of a wave (white = 1)")
axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
plt.show()

# %% tags=["hide-input"]
centre = {name: float(values @ middle) for name, values in {**profiles, "white": white}.items()}
lines = ["| | lowest ring | upper half | centre of energy |", "|---|--:|--:|--:|"]
for name, values in {**profiles, "white": white}.items():
    lines.append(
        f"| {name} | {100 * values[0]:.1f} % | {100 * values[RINGS // 2 :].sum():.1f} % | {centre[name]:.2f} |"
    )
coarse, fine = sorted(("visible", "infrared"), key=lambda name: centre[f"{name} images"])
alike = centre[f"{fine} images"] - centre[f"{coarse} images"] < 0.03
rises = centre["its sign"] > centre["gradient of one image"]
between = centre[f"{fine} images"] < centre["CMPS"] < centre["white"]
texts = [
    "The two spectra are about equally smooth." if alike else f"The {coarse} images are the smoother ones.",
    f"The perturbation has its centre of energy at radius {centre['CMPS']:.2f}, "
    + ("faster than an image, slower than noise." if between else "not between the images' and white noise's."),
    f"The sign of a gradient has {'more' if rises else 'no more'} energy in fast waves than the gradient"
    f" ({centre['gradient of one image']:.2f} to {centre['its sign']:.2f})"
    + (": a jump between −1 and +1 is an edge, and edges need fast waves." if rises else "."),
]
Markdown("\n".join(lines) + "\n\nEnergy without the mean. " + " ".join(texts))

# %% [markdown]
# Rings hide which way a wave runs, and what a single one does. Two suspicions. A network that halves its maps with a
# stride does not treat even and odd pixels alike, and the gradient that comes back through the stride may show it, as a
# pattern that repeats every 2 pixels, or every 4 after two such strides. In a spectrum, what repeats every $p$ pixels
# sits on a *grid* of a few bins, $u$ a multiple of $H/p$ and $v$ of $W/p$. And people stand upright, so the two axes may
# matter: waves with $v = 0$ are *level stripes*, those with $u = 0$ *upright* ones. No spectrum here is flat, so each
# kind is compared with the waves of about its radius that are of no kind ({numref}`fig-frequency-stripes`).


# %%
def loudness(maps):
    """Mean energy of each wave without the mean, (H, W)."""
    loud = decompose(maps)[0].square().flatten(0, -3).mean(0).double().cpu()
    loud[0, 0] = 0
    return loud


def beside(loud, kind):
    """Energy of the waves of a kind, in multiples of the others' of about their radius."""
    narrow = (12 * radius).ceil().long()
    sums, counts = (torch.bincount(narrow[others], weights) for weights in (loud[others], None))
    return (loud[kind].sum() / (sums / counts)[narrow][kind].sum()).item()


down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
kinds = {"level stripes": across == 0, "upright stripes": down == 0}
for period in (4, 8):  # what repeats every 2 pixels repeats every 4 as well
    repeats = (down * period % height == 0) & (across * period % width == 0)
    kinds[f"grid of {period} pixels"] = repeats & (down > 0) & (across > 0)
for kind in kinds.values():
    kind[0, 0] = False
level_waves, others = kinds["level stripes"], ~torch.stack([*kinds.values()]).any(0)
made = {"visible images": images[VISIBLE], "infrared images": images[INFRARED]}
made |= {"gradients of single images": gradients, "CMPS": delta, "sign noise": noise}
spectra = {name: loudness(maps) for name, maps in made.items()}
times = {name: [beside(loud, kind) for kind in kinds.values()] for name, loud in spectra.items()}

# %% mystnb={"figure": {"caption": "The perturbation, enlarged to be visible, and the spectra of what an attack is made of: energy, logarithm, slow waves in the middle, each with a scale of its own. Level stripes are the upright line through the middle. Look where a spectrum is brightest, and whether single bright dots stand on a regular grid.", "name": "fig-frequency-stripes"}, "image": {"alt": "Four tall panels: a pattern of dark and light coloured bands that run across the crop; two dark spectra, each with two bright spots above and below the middle joined by a bright upright line; and an even grey speckle."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 4, figsize=(7.4, 4.2), layout="constrained")
plots.show_crop(panels[0], plots.picture(for_show(delta[None])[0]))
panels[0].set_title("CMPS, δ", fontsize=9)
for axes, name in zip(panels[1:], list(made)[2:], strict=True):
    shown = torch.fft.fftshift(spectra[name].clamp(min=1e-12)).log10().numpy()
    low, high = np.quantile(shown, (0.02, 0.999))
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.set_title(name.replace(" of single", "\nof single"), fontsize=9)
plt.show()

# %% tags=["hide-input"]
heads = " | ".join(f"{name} ({int(kind.sum())} waves)" for name, kind in kinds.items())
lines = [f"| energy of a wave, others of its radius = 1 | {heads} |", "|---" + "|--:" * len(kinds) + "|"]
lines += [f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |" for name, values in times.items()]
single, summed = (times[name][0] for name in ("gradients of single images", "CMPS"))
held = (spectra["CMPS"][level_waves].sum() / spectra["CMPS"].sum()).item()
gridded = max(times["gradients of single images"][2:])
Markdown(
    "\n".join(lines)
    + "\n\nNo kind holds a wave of another, but for the shorter period in the longer one's grid. "
    + (
        f"**Level stripes are what the perturbation is loudest in: {100 * held:.0f} % of its energy in"
        f" {100 * level_waves.sum().item() / (height * width - 1):.0f} % of its waves.** The gradients have them already:"
        " people differ from gradient to gradient, the network does not, and a sum keeps what is common."
        if summed > single > 1.5
        else "The perturbation has no more level stripes than single gradients have."
    )
    + " "
    + (
        "Single gradients are louder on the grid of the strides than beside it."
        if gridded > 1.5
        else "Of the strides' grid the gradients show nothing: they are no louder on it than beside it"
        + ("; the perturbation is on one, but in few waves." if max(times["CMPS"][2:]) > 1.5 else ".")
    )
)

# %% [markdown]
# ## Which bands the victim reads
#
# Energy is not use. A network may ignore where an image is loud and live on what is faint. So take waves away and rank:
# *low-pass* keeps those below a radius, *high-pass* those above, *band-stop* takes one ring. The mean always stays;
# without it every filter would also be a blackout. "Nothing that shows" below means an interval that reaches zero.

# %%
EDGES = 0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 2  # the last ring takes the corners
BANDS = list(pairwise(EDGES))
NAMES = [f"{low:g}–{high:g}" if high < 2 else f"above {low:g}" for low, high in BANDS]


def only(maps, low, high):
    """Maps with their mean and the waves of one band."""
    mean = maps.mean((-2, -1), keepdim=True)
    return mean + band_pass(maps - mean, low, high)


passed = {}
for m in Modality:
    for cut in EDGES[1:-1]:
        passed["low-pass", cut, m] = score(embed(only(images[m], 0, cut), m), m)
        passed["high-pass", cut, m] = score(embed(only(images[m], cut, 2), m), m)
    for low, high in BANDS[1:-1]:
        mean = images[m].mean((-2, -1), keepdim=True)
        without = images[m] - band_pass(images[m] - mean, low, high)
        passed["stop", (low, high), m] = score(embed(without, m), m)
    passed["stop", BANDS[0], m] = passed["high-pass", EDGES[1], m]
    passed["stop", BANDS[-1], m] = passed["low-pass", EDGES[-2], m]

# %% mystnb={"figure": {"caption": "Rank-1 of filtered queries. Top: what is left below (circles) or above (squares) a radius. Bottom: change when one ring is taken away, with 95 % intervals over people. The grey band is the clean score with its interval, the dotted line chance.", "name": "fig-frequency-passes"}, "image": {"alt": "Four panels. Above, for each direction of search, a rising line with circles and a falling line with squares that cross, below a horizontal grey band. Below, for each direction, six points with vertical error bars at or under a zero line."}} tags=["hide-input"]
figure, grid = plt.subplots(2, 2, figsize=(7.4, 5.4), layout="constrained", sharey="row")
for column, m in zip(grid.T, Modality, strict=True):
    top, bottom = column
    level = metrics.bootstrap(clean[m], people[m])
    top.axhspan(100 * level.low, 100 * level.high, color="#dddddd", linewidth=0, label="clean")
    for kind, style in (("low-pass", "o-"), ("high-pass", "s--")):
        values = [100 * passed[kind, cut, m].mean() for cut in EDGES[1:-1]]
        top.plot(EDGES[1:-1], values, style, label=kind, color=plots.SERIES[style == "s--"])
    top.axhline(100 * floor[m], color=plots.CHANCE, linestyle=":", label="chance")
    top.set(title=direction_name(m), xlabel="radius of the cut", ylim=(0, None), xlim=(0.05, 0.82))
    changes = 100 * np.array([against(clean[m], passed["stop", band, m], m) for band in BANDS])
    bottom.axhline(0, color=plots.CHANCE, linewidth=1)
    spans = np.abs(changes[:, 1:] - changes[:, :1]).T
    bottom.errorbar(range(len(BANDS)), changes[:, 0], spans, fmt="D", capsize=3, color=plots.SERIES[2])
    bottom.set_xticks(range(len(BANDS)), NAMES, rotation=30, ha="right", fontsize=8)
    bottom.set_xlabel("ring taken away")
grid[0, 0].set_ylabel("rank-1 (%)")
grid[1, 0].set_ylabel("change of rank-1 (points)")
handles, names = grid[0, 0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
plt.show()

# %% tags=["hide-input"]
texts = []
for m in Modality:
    enough = [cut for cut in EDGES[1:-1] if against(clean[m], passed["low-pass", cut, m], m).high >= 0]
    changes = {band: against(clean[m], passed["stop", band, m], m) for band in BANDS}
    worst = min(changes, key=lambda band: changes[band].difference)
    idle = [NAMES[BANDS.index(band)] for band, change in changes.items() if change.low <= 0 <= change.high]
    texts.append(
        f"*{direction_name(m)}*: "
        + (
            f"a low-pass at radius {min(enough):g} costs nothing that shows"
            if enough
            else "every low-pass has its price"
        )
        + f"; the dearest ring is {NAMES[BANDS.index(worst)]} ({moved(changes[worst])} points); "
        + (f"no clear loss without {', '.join(idle)}." if idle else "none can be missed.")
        + f" Below 1/8 lie {100 * profiles[f'{m.name.lower()} images'][0]:.0f} % of the images' energy, and a low-pass"
        f" there leaves a rank-1 of {share(passed['low-pass', EDGES[1], m])} %."
    )
Markdown("\n\n".join(texts))

# %% [markdown]
# That a band can be missed does not make it harmless. What the victim has no use for in clean images it may still
# react to.
#
# ## Which bands of a perturbation do the damage
#
# The same rings, now of $\delta$, added to whole queries. Each ring three times: with the energy it has in $\delta$;
# with the energy of all of $\delta$, as far as $\varepsilon$ lets it; and, as control, the same ring of sign noise with
# that energy. The first says where the effect of this perturbation comes from, the second how much a band could do with
# the budget to itself, the third how much of that any pattern in the band would do. Everything is clipped to the budget,
# which spills a little into other rings, and rounded to 8 bits, which a faint ring may not survive.


# %%
def attacked(change, m):
    """Features of the queries plus a change, within the budget and rounded to 8 bits."""
    shifted = project(images[m] + change, images[m], attack.eps)
    return embed(to_8_bits(shifted, images[m], attack.eps), m)


def enlarged(change):
    """A change with the energy of all of delta, then clipped to the budget."""
    return (change * delta.norm() / change.norm()).clamp(-attack.eps, attack.eps)


rest = delta - torch.fft.ifft2(torch.fft.fft2(delta) * level_waves.to(device)).real
rest *= attack.eps / rest.abs().max()  # scaled into the budget: cutting would put some of the stripes back
WITHOUT, AS_SMALL = "CMPS without level stripes", "all of CMPS, as small as that"
wholes = {"CMPS": delta, "sign noise": noise, WITHOUT: rest, AS_SMALL: delta * (rest.norm() / delta.norm())}
whole = {
    (name, m): score(attacked(change, m), m)
    for (name, change), m in product(wholes.items(), Modality)
}  # fmt: skip
pieces = {}
for band in BANDS:
    own, other = (band_pass(change, *band) for change in (delta, noise))
    changes = {"own energy": own, "all energy": enlarged(own), "noise, all energy": enlarged(other)}
    for (kind, change), m in product(changes.items(), Modality):
        pieces[kind, band, m] = score(attacked(change, m), m)

# %% mystnb={"figure": {"caption": "Rank-1 of queries under one ring of the perturbation, with 95 % intervals over people. Circles: as loud as it is in the perturbation. Squares: with the energy of the whole, within the budget. Crosses: the same ring of sign noise with that energy. Solid line: clean; dashed: the whole perturbation; dotted: chance.", "name": "fig-frequency-pieces"}, "image": {"alt": "Two panels, one for each direction of search, with six groups of three points with error bars between a solid line above and a dashed and a dotted line below."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7.6, 4), layout="constrained", sharey=True)
kinds = ("own energy", "o"), ("all energy", "s"), ("noise, all energy", "X")
for axes, m in zip(panels, Modality, strict=True):
    for offset, (kind, marker) in enumerate(kinds):
        values = 100 * np.array([metrics.bootstrap(pieces[kind, band, m], people[m]) for band in BANDS])
        places = np.arange(len(BANDS)) + 0.22 * (offset - 1)
        spans = np.abs(values[:, 1:] - values[:, :1]).T
        colour = plots.SERIES[offset]
        axes.errorbar(places, values[:, 0], spans, fmt=marker, markersize=5, capsize=2, color=colour, label=kind)
    axes.axhline(100 * clean[m].mean(), color="black", linewidth=1, label="clean")
    axes.axhline(100 * whole["CMPS", m].mean(), color="black", linewidth=1, linestyle="--", label="all rings")
    axes.axhline(100 * floor[m], color=plots.CHANCE, linestyle=":", label="chance")
    axes.set_xticks(range(len(BANDS)), NAMES, rotation=30, ha="right", fontsize=8)
    axes.set(title=direction_name(m), xlabel="ring", ylim=(0, None))
panels[0].set_ylabel("rank-1 (%)")
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
plt.show()

# %% tags=["hide-input"]
lines = ["| perturbation | V→I rank-1 | change | I→V rank-1 | change |", "|---|--:|--:|--:|--:|"]
for name in wholes:
    cells = [cell for m in Modality for cell in (share(whole[name, m]), moved(against(clean[m], whole[name, m], m)))]
    lines.append(f"| {name} | {' | '.join(cells)} |")
lines += ["", "| ring | energy in CMPS | all energy: RMS, of 255 | of it in the ring |", "|---|--:|--:|--:|"]
energies = []
for name, band in zip(NAMES, BANDS, strict=True):
    piece = band_pass(delta, *band)
    energies.append((piece.square().sum() / delta.square().sum()).item())
    size = 255 * enlarged(piece).square().mean().sqrt().item()
    kept = (band_pass(enlarged(piece), *band).norm() / enlarged(piece).norm()).item() ** 2
    lines.append(f"| {name} | {100 * energies[-1]:.1f} % | {size:.1f} | {100 * kept:.0f} % |")
texts = []
for m in Modality:
    hurt = {band: against(clean[m], pieces["own energy", band, m], m) for band in BANDS}
    most = min(BANDS, key=lambda band: hurt[band].difference)
    strongest = min(BANDS, key=lambda band: pieces["all energy", band, m].mean())
    gains = [against(pieces["noise, all energy", band, m], pieces["all energy", band, m], m) for band in BANDS]
    clear = [name for name, gain in zip(NAMES, gains, strict=True) if gain.high < 0]
    parts = 100 * sum(change.difference for change in hurt.values())
    together = 100 * against(clean[m], whole["CMPS", m], m).difference
    added = f"The single rings' changes add up to {parts:.0f} points; all rings together: {together:.0f}."
    loudest = NAMES[int(np.argmax(energies))]
    texts.append(
        f"*{direction_name(m)}*: as loud as it is in δ, ring {NAMES[BANDS.index(most)]} does most ({moved(hurt[most])}"
        f" points)"
        + (", and it is the loudest" if NAMES[BANDS.index(most)] == loudest else f"; the loudest is {loudest}")
        + f". With all the energy, {NAMES[BANDS.index(strongest)]} does most. "
        + (
            f"Learned clearly beats noise in {', '.join(clear)}."
            if clear
            else "Nowhere does learned clearly beat noise."
        )
        + f" {added}".replace("-", "−")
    )
whole_size = 255 * delta.square().mean().sqrt().item()
lines.append(f"| all | 100 % | {whole_size:.1f} | |")
Markdown("\n".join(lines) + f"\n\nRank-1 in %, 8 bits; chance: {floors} %.\n\n" + "\n\n".join(texts))

# %% [markdown]
# Losses need not add up. A ranking forgives a small push and falls for a larger one, so rings that do little each can
# do much together; and a ring that repeats what another did adds nothing.
#
# A pattern also has a place. Move it to the right, round the edge of the crop, as the [attack lab](../book/lab.md) does
# with one query.
#
# <!-- lab: #lab&attack=cmps&right=1 -->

# %% tags=["hide-input"]
lines = ["| moved to the right by | V→I rank-1 | change | I→V rank-1 | change |", "|---|--:|--:|--:|--:|"]
changes = {}
for right in (1, 2, width // 6, width // 2):
    cells = []
    for m in Modality:
        beside_it = score(attacked(delta.roll(right, -1), m), m)
        changes[right, m] = against(whole["CMPS", m], beside_it, m)
        cells += [share(beside_it), moved(changes[right, m])]
    lines.append(f"| {right} px | {' | '.join(cells)} |")
firm = all(abs(changes[right, m].difference) < 0.05 for right in (1, 2) for m in Modality)
Markdown(
    "\n".join(lines)
    + "\n\nChange: against the perturbation in its place. "
    + (
        "A pixel or two hardly matter, as one would expect of bands that run across the crop."
        if firm
        else "A pixel or two matter."
    )
)

# %% [markdown]
# ## What a defender learns
#
# A kind of wave that a perturbation is loud in would be a fingerprint that can be read off one image, without the
# network. Take the energy of the level stripes between radius 1/4 and 1/2 against that of all waves there. How often
# does an attacked query have more than a clean one? (0.5 is a coin.)

# %%
between = ((radius >= 1 / 4) & (radius < 1 / 2)).to(device)
stripes = between & level_waves.to(device)


def fingerprint(maps):
    loud = decompose(maps)[0].square().sum(1)
    return loud[:, stripes].sum(1) / loud[:, between].sum(1)


lines = ["| | visible | infrared |", "|---|--:|--:|"]
for name, change in wholes.items():
    cells = []
    for m in Modality:
        shown = to_8_bits(project(images[m] + change, images[m], attack.eps), images[m], attack.eps)
        marked, plain = fingerprint(shown), fingerprint(images[m])
        cells.append(f"{(marked[:, None] > plain).float().mean().item():.2f}")
    lines.append(f"| {name} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% tags=["hide-input"]
pairs = {
    m: (against(whole["CMPS", m], whole[WITHOUT, m], m), against(whole[AS_SMALL, m], whole[WITHOUT, m], m))
    for m in Modality
}
kept = [against(clean[m], whole[WITHOUT, m], m).high < 0 for m in Modality]
Markdown(
    "An attacker who knows of the test leaves the stripes out, and scales the rest into the budget (third row of both"
    " tables). That changes rank-1 by "
    + " and ".join(f"{moved(pairs[m][0])} points ({direction_name(m)})" for m in Modality)
    + ("; it is still an attack in both directions" if all(kept) else "; it is no clear attack in both directions then")
    + f". The rest has a root mean square of {255 * rest.square().mean().sqrt().item():.1f} of 255, so part of that is"
    " size: against all of CMPS made as small (last row) the change is "
    + " and ".join(f"{moved(pairs[m][1])} points ({direction_name(m)})" for m in Modality)
    + "."
)

# %% [markdown]
# A fingerprint finds at best those who do not know of it {cite}`athalye2018obfuscated`. What the others pay stands above;
# leaving the stripes out afterwards is the crudest way, and an attack that learns without them may pay less. The bands
# that the victim reads and the bands that the perturbation works in are a better guide: where both are the same, no
# filter separates them.

# %% [markdown]
# ## What could fool us
#
# - **The renderer.** These people are rendered: flat dyes, regular patterns, one blur, one white sensor noise. Their
#   spectrum is the renderer's. Real crops come from a codec, a sensor and a resize, and each has a spectrum of its own.
# - **Upsampling.** A crop that was enlarged has nothing in its outer rings, whatever the camera saw. Compare spectra
#   only at the size at which they were taken.
# - **The borders.** The cross is partly a seam. Filters wrap round it as well: a low-pass smears the floor into the sky.
# - **Clipping.** A hybrid leaves [0, 1] and is cut, and what is cut is no longer of that amplitude or that phase. A ring
#   of $\delta$ that is clipped to the budget, or rounded to 8 bits, is no longer of that ring.
# - **Rings of unlike size.** An outer ring holds many more waves. "Most of the energy is in fast waves" is true of white
#   noise; say it per wave, or beside white noise.
# - **The unfamiliar.** A network fails on images unlike those it was trained on. That it needs a band, or an amplitude,
#   to work as trained does not say that the person is in there; one trained on hybrids might say otherwise
#   {cite}`chen2021apr`.
# - **The rings of $\delta$.** They were learned together and tried alone. An attack that learns within one ring may do
#   more there than the piece that was cut out.
# - **The victim.** One network, one seed, one perturbation of few steps. Another network reads other bands and leaves
#   other patterns; what holds is the method.

# %% [markdown]
# ## Takeaways
#
# - Amplitude says how strong each wave is, phase where it lies. Only phases relative to each other mean something, and
#   multiplying a phase by a weight depends on the origin.
# - "Phase is structure, amplitude is style" is a claim about a judge and about a frame. Score hybrids for both owners,
#   with a control for the mixing, and try a smaller window.
# - Changing the amplitude alone need not close the gap between the spectra; measure it before building on it.
# - Images are slow, noise is fast, perturbations and gradients are neither. Rings hide single waves: look for stripes and
#   for grids, beside other waves of their radius.
# - Energy is not use, and energy is not damage.
# - For a defender: a fingerprint or a filter is worth what it does against an attack made with it in view.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: is brightness amplitude?
# :label: ex-frequency-brightness
# ```
# "Amplitude is brightness and contrast." Change brightness (add a constant), contrast (multiply around the mean) and
# gamma (a power) of the visible queries without clipping. Which parts change, amplitude, phase or both? Is the sentence
# true, and is its converse?
#
# **Check yourself.** Which of the three changes phases?
#
# - (a) Brightness.
# - (b) Gamma.
# - (c) Contrast.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check

self_check(None, "ex-frequency-brightness", "50524692")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-frequency-brightness
# :class: dropdown
# ```
# Self-check: **b**.
#
# A constant changes one amplitude, that of the mean. A factor around the mean changes all others alike. Neither touches
# a phase. A
# gamma, which is what cameras and displays do, bends the waves, and new ones appear: both parts change. And all this
# concerns a mean and a factor, two numbers; the amplitude has half as many as the image has pixels. So brightness and
# contrast are in the amplitude, but the amplitude is much more than that.

# %% tags=["solution"]
own = images[VISIBLE]
mean = own.mean((2, 3), keepdim=True)
before = decompose(own)
versions = {
    "brightness": own + 0.1,
    "contrast": mean + 0.7 * (own - mean),
    "gamma": own.clamp(min=1e-3) ** 0.7,
}
for name, maps in versions.items():
    after = decompose(maps)
    louder = ((after[0] - before[0]).norm() / before[0].norm()).item()
    angle = torch.polar(torch.ones_like(after[1]), after[1] - before[1]).angle().abs()
    turned = ((angle * before[0]).sum() / before[0].sum()).item()  # loud waves count more
    print(f"{name:>10}: amplitude moved by {100 * louder:4.1f} %, phase turned by {turned:.3f}")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: only the slow part
# :label: ex-frequency-slow
# ```
# Adaptation by frequency {cite}`yang2020fda` takes only the slowest amplitudes from the other domain. Give the queries the
# other spectrum's mean amplitude below radius 1/8 and leave the rest. Does that close what the full swap did not?
#
# **Check yourself.** With what must the swap be compared?
#
# - (a) With a swap below the same radius that takes the mean of the query's own spectrum.
# - (b) With the clean query alone.
# - (c) With a high-pass above the same radius.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-frequency-slow", "fc3e8505")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-frequency-slow
# :class: dropdown
# ```
# Self-check: **a**.
#
# Compare with the same cut of the query's *own* spectrum: both lose the individual slow amplitudes, only one crosses over.
# Read the two lines of a direction together. Only where the other spectrum's line lies above the own one's does crossing
# over close some of the gap; where it lies below, the queries were better off with a mean of their own spectrum.

# %% tags=["solution"]
slow = (radial_frequency(height, width) < 1 / 8).to(device)
for m in Modality:
    strength, angle = decompose(images[m])
    for name, given in (("own spectrum's", usual[m]), ("other spectrum's", usual[m.other])):
        result = score(embed(recombine(torch.where(slow, given, strength), angle), m), m)
        change = moved(against(clean[m], result, m))
        print(f"{direction_name(m)}, {name} slow amplitudes: {change} points")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-frequency-flaw
# ```
# "Adversarial perturbations are high-frequency. The outermost of our rings holds several times the share of $\delta$'s
# energy that it holds of an image's, and without it clean queries rank as well as before. So we low-pass every query at
# radius 3/4, at no cost, and the attack is gone." Find what each sentence leaves out, then run the defence, also against an attacker who knows it.
#
# **Check yourself.** Which test of the defence is missing?
#
# - (a) A larger budget.
# - (b) Queries in float.
# - (c) An attack that was learned through the filter.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-frequency-flaw", "9b66c97d")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-frequency-flaw
# :class: dropdown
# ```
# Self-check: **c**.
#
# The outermost ring holds most *waves*, so it holds much of the energy of anything that is not as slow as an image; beside
# its share of the waves (first line below) and per wave ({numref}`fig-frequency-energy`) it is quiet. Energy is not damage:
# which ring does it is a question for {numref}`fig-frequency-pieces`. "As well as before" is an interval that is some
# points wide. See next whether the attack is gone, or even weaker than it was. And whatever is found, it is found on a
# perturbation that knew of no filter. A known filter is a part of the network: let the attack learn through it, at the
# same cost, and then say what the filter is worth.


# %% tags=["solution"]
class Guarded(torch.nn.Module):
    """The victim behind a low-pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def embed(self, maps, modality):
        return self.model.embed(clip(only(maps, 0, 3 / 4)), modality)


outermost = radius >= 3 / 4
held = {name: spectra[name][outermost].sum() / spectra[name].sum() for name in ("CMPS", "visible images")}
print(f"above 3/4: {100 * outermost.double().mean():.0f} % of the waves, of the energy of", end=" ")
print(", of ".join(f"{name} {100 * part:.0f} %" for name, part in held.items()))

guarded = Guarded(model)
state = attack.start((3, height, width), settings.seed)
state = {name: value.to(device) for name, value in state.items()}
with frozen(guarded):
    for step in range(attack.steps):
        attack.step(guarded, problem, state, step, settings.seed)

changes = {"clean": 0 * delta, "attacked": delta, "attacked through the filter": state["delta"]}
for m in Modality:
    behind = {}
    for name, change in changes.items():
        shifted = project(images[m] + change, images[m], attack.eps)
        stored = to_8_bits(shifted, images[m], attack.eps)
        behind[name] = score(embed(only(stored, 0, 3 / 4), m), m)
    before = f"clean {share(clean[m])}, attacked {share(whole['CMPS', m])} %"
    after = ", ".join(f"{name} {share(values)}" for name, values in behind.items())
    print(f"{direction_name(m)}, unfiltered: {before}; filtered: {after} %")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`athalye2018obfuscated`,
# {cite:t}`chen2021apr`, {cite:t}`morgan1991patches`, {cite:t}`oppenheim1981phase`, {cite:t}`yang2020fda`,
# {cite:t}`yang2024feature`.
