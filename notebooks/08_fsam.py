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
#     attacks: false
# ---

# %% [markdown]
# # FSAM: attention on phase
#
# The feature-level attack {cite}`yang2024feature` puts {term}`FSAM`, a small attention module, on the *phase* of feature
# maps, once after block 0 and once after block 4 of the network. Its authors say that the module also helps a network that nobody
# attacks. This chapter looks at the module by itself: what its equations do to an angle, what its attention can see,
# what it does to a trained network, and whether it makes one better. Nothing is attacked here; chapters 9 and 10 are
# about that.

# %% [markdown]
# ## What you will be able to do
#
# - write FSAM from its equations and point to the line that computes each;
# - say why a phase times a weight below 1 is not "less of it", and measure what follows from that;
# - derive what taking the real part does to the amplitude, which the module is said to leave alone;
# - tell a module that has learned to look from one that has learned to do nothing;
# - say whether a gain in accuracy is larger than what people and seeds decide by chance.

# %% [markdown]
# ## What it costs
#
# The network is the one chapter 3 trains; alone, this chapter trains it first. On Colab the next cell installs the
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

costs = Costs("08_fsam")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite (two CPU cores), standard (one GPU) or full (one GPU, licensed data)
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of everything random here
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes
RETRAIN: bool = False  # train the victim here even where it comes with the package
PEOPLE: int = 24  # test people that rankings are scored on
DRAWS: int = 3  # untrained modules tried at each place
STEPS: int = 24  # training steps of the modules alone

# %%
settings = check_parameters(globals(), costs)

# %% [markdown]
# ## The question
#
# Attention multiplies. A spatial attention gives each position of a feature map a weight between 0 and 1; what gets a
# small weight counts less in everything that follows, and what gets none is gone. FSAM multiplies too, but what it
# multiplies is an angle. Does a small weight there still mean "less"?
#
# We need chapter 3's network, and the feature maps after its blocks for some test crops of both spectra.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch.nn import functional as F

from vireid_lite import metrics, models
from vireid_lite.chapters import plots
from vireid_lite.study import tables
from vireid_lite.models.attention import FSAM, SFM, SpatialAttention, build_attention
from vireid_lite.models.insertion import block_channels, inserted
from vireid_lite.data import Modality, PKSampler, Trial, cached
from vireid_lite.metrics.evaluation import direction_name, embed_store, identities_and_cameras, in_order
from vireid_lite.frequency import amplitude_only, decompose, recombine
from vireid_lite.models.two_stream import generalised_mean
from vireid_lite.training import contiguous_labels
from vireid_lite.victims import load_or_train, tier_dataset, tier_recipe

plots.set_style()
device = settings.device
VISIBLE, INFRARED = Modality
dataset = tier_dataset(settings.tier, settings.dataset, settings.data_root)
recipe = tier_recipe(settings.tier)
model, card = load_or_train(recipe, dataset, seed=settings.seed, device=device, retrain=settings.retrain)
model.requires_grad_(False)  # on this page only modules learn
blocks = range(len(model.stages))

trials = {}
for modality in Modality:
    trial = dataset.trials(modality)[0]
    people = set(sorted({record.identity for record in trial.query})[: settings.people])
    sides = ([record for record in side if record.identity in people] for side in trial)
    trials[modality] = Trial(*sides)
both = [record for trial in trials.values() for side in trial for record in side]
test = cached(dataset, list(dict.fromkeys(both)), progress=False)
test_rows = {m: np.flatnonzero((test.modalities == m).numpy()) for m in Modality}


def feature_maps(store, rows):
    """Return the maps after each block, and the modality, int64 (N,)."""
    maps, modalities = store.batch(rows, device), store.modalities[rows]
    found = []
    with torch.no_grad():
        for block, stage in enumerate(model.stages):
            maps = stage(maps, modalities) if block == 0 else stage(maps)
            found.append(maps)
    return found, modalities


some = np.concatenate([rows[:: max(1, len(rows) // 24)][:24] for rows in test_rows.values()])
maps_after, modalities = feature_maps(test, some)
pd.DataFrame({"channels, height, width": [" × ".join(map(str, maps.shape[1:])) for maps in maps_after]}).rename_axis(
    "after block"
)

# %% [markdown]
# ## The equations, line by line
#
# Let $x$ be a feature map of $C$ channels. [Chapter 7](07_images_in_frequency) took images apart; FSAM takes each
# channel apart in the same way, $A$ being the amplitude and $P$ the phase of its transform:
#
# $$ F(x)(u, v) = \frac{1}{\sqrt{HW}} \sum_{h, w} x(h, w)\, e^{-2\pi j (uh/H + vw/W)} = A\, e^{jP} $$
#
# :::{figure-md} fig-fsam-module
# ![A feature map of several channels is transformed, channel by channel, into two stacks of bins, amplitude and phase.
# From the phase, maximum and mean over the channels go into one of two boxes, visible or infrared, and out comes a
# single grid of weights in shades. It multiplies the phase, which comes from the side. The amplitude goes straight down;
# both are joined, and the real part of the inverse transform is a stack as large as the
# first.](../book/_static/drawings/fsam.svg)
#
# FSAM, from a map to a map; between the two transforms, a cell is a frequency bin. Look what the weights multiply: the
# phase of every channel, while the amplitude passes by.
# :::

# %%
torch.manual_seed(settings.seed)
fsam = FSAM().to(device).requires_grad_(False)
x = maps_after[0]
A, P = decompose(x)

# %% [markdown]
# $M$ is the spatial attention of CBAM {cite}`woo2018cbam`, here applied to the phase. It looks at two numbers for each
# frequency, the maximum and the mean over the channels, and one convolution with a $7 \times 7$ kernel makes a weight
# of them:
#
# $$ M(P) = \sigma\big( f^{7 \times 7}( [\operatorname{max}_c P\,;\ \operatorname{mean}_c P] ) \big) $$

# %%
summary = torch.cat([P.amax(1, keepdim=True), P.mean(1, keepdim=True)], 1)
M = {m: torch.sigmoid(part.conv(summary)) for m, part in zip(Modality, (fsam.visible, fsam.infrared), strict=True)}

# %% [markdown]
# Each {term}`modality` has an $M$ of its own. The phase is multiplied by the weight, the amplitude is not, and the
# inverse transform makes a map again:
#
# $$ \operatorname{FSAM}(x) = F^{-1}\big( A\, e^{j\, M(P)\, P} \big) $$

# %%
weights = torch.where((modalities == INFRARED).view(-1, 1, 1, 1).to(device), M[INFRARED], M[VISIBLE])
result = recombine(A, weights * P)

torch.testing.assert_close(weights, fsam.weights(x, modalities), rtol=1e-4, atol=1e-5)
torch.testing.assert_close(result, fsam(x, modalities), rtol=1e-3, atol=1e-4)

# %% [markdown]
# Three things the paper leaves open, and what stands here: the phase is an `atan2` (the printed arctangent loses half
# of the circle), the result is the *real part* of the inverse transform, and there is no bias in $f$. The second
# attention, called SFM or SAM, is $M(x)\,x$ on the map itself.
#
# What it costs in weights is next to nothing, beside SE {cite}`hu2018senet` and ECA {cite}`wang2020eca`, which the paper
# puts in its place in one table:


# %%
def weights_of(*modules):
    return sum(weight.numel() for module in modules for weight in module.parameters())


with torch.device("meta"):
    agw = models.build("agw", num_identities=395)
sizes = {"this network": block_channels(model), "AGW, ResNet-50": block_channels(agw)}
added = {
    name.upper() + " after blocks 0 and 4": {
        network: weights_of(*(build_attention(name, channels[block]) for block in (0, 4)))
        for network, channels in sizes.items()
    }
    for name in ("fsam", "se", "eca")
}
added["FSAM after blocks 0 and 4, SFM after 4"] = dict.fromkeys(sizes, weights_of(FSAM(), FSAM(), SFM()))
added["a linear layer from block 0 to block 4"] = {
    network: channels[0] * channels[4] for network, channels in sizes.items()
}
pd.DataFrame(added).T.map("{:,}".format).rename_axis("weights added")

# %% tags=["hide-input"]
bare = weights_of(agw) - weights_of(agw.classifier)
whole = added["FSAM after blocks 0 and 4, SFM after 4"]["AGW, ResNet-50"]
linear = added["a linear layer from block 0 to block 4"]["AGW, ResNet-50"]
Markdown(
    f"AGW without its classifier has {bare / 1e6:.2f} million weights, with the modules {(bare + whole) / 1e6:.2f} and with"
    f" a layer that brings a map of {sizes['AGW, ResNet-50'][0]} channels to {sizes['AGW, ResNet-50'][4]} dimensions"
    f" {(bare + linear) / 1e6:.2f}. The paper gives 23.55 for both the plain network and its own: if both were counted"
    " alike there is no such layer, and without one features after block 0 and after block 4 have no distance."
)

# %% [markdown]
# ## A phase is an angle
#
# Take one weight $w$ for all frequencies. At $w = 1$ nothing changes. At $w = 0$ nothing is *removed*: every wave keeps
# its whole strength, and all of them are moved so that their crests meet in the first pixel.

# %%
crops = test.batch(some, device)
moved = recombine(decompose(crops)[0], 0 * decompose(crops)[1])
torch.testing.assert_close(moved, amplitude_only(crops))
assert torch.allclose(moved.square().sum(), crops.square().sum(), rtol=1e-4)  # no energy is gone
assert (moved.flatten(2).argmax(2) == 0).all()  # the brightest pixel is the first, in every crop and channel

# %% [markdown]
# In between, three things go wrong, because a phase lives on a circle and $wP$ treats it as an amount on a line.
#
# - **A cut.** The line is the circle cut open at $\pm\pi$. Two waves on either side of the cut are almost the same wave.
#   Times $w$ they are $2\pi w$ apart, on opposite sides of the circle when $w = 1/2$.
# - **An origin.** A phase is counted from the first pixel. Move a crop by a few pixels, and all phases change. An
#   operation that is about *what* is in the picture would give the same result, moved.
# - **Noise.** A little noise carries some phases over the cut, and the result jumps.
#
# The last two are measured in {numref}`fig-fsam-circle`, on test crops. The shift is circular, so that nothing enters
# or leaves at the border, and the noise is one level of 255. As a control, the *values* are multiplied by $w$, as
# attention usually does.

# %%
SHIFT = (4, 2)
dial = np.linspace(0, 1, 11)
generator = torch.Generator().manual_seed(settings.seed)
noise = ((2 * torch.rand(crops.shape, generator=generator) - 1) / 255).to(device)


def scaled(maps, weight):
    amplitude, phase = decompose(maps)
    return recombine(amplitude, weight * phase)


def apart(one, other):
    """Length of a difference, in units of what varies in the first."""
    return ((one - other).norm() / (one - one.mean((2, 3), keepdim=True)).norm()).item()


operations = {"phase times w": scaled, "values times w": lambda maps, weight: weight * maps}
found = {name: [] for name in operations}
for weight in dial:
    for name, operation in operations.items():
        plain, noisy = operation(crops, weight), operation(crops + noise, weight)
        shifted = operation(crops.roll(SHIFT, (2, 3)), weight)
        error = apart(plain.roll(SHIFT, (2, 3)), shifted) if plain.any() else np.nan
        found[name].append((error, ((noisy - plain).norm() / noise.norm()).item()))
other_crop = apart(crops, crops.roll(1, 0))

# %% mystnb={"figure": {"caption": "Left: where the phases go. Outer ring: all phases before; square and triangle are neighbours on either side of the cut at ±π. Inner arcs: after multiplication by the weight written on them; the neighbours part, and the rest of the circle stays empty. Middle: how far 'move, then multiply' is from 'multiply, then move'; the dotted line is the distance between one crop and the next. Right: how many times larger one level of noise comes out.", "name": "fig-fsam-circle"}, "image": {"alt": "Three panels. A full ring with three shorter arcs inside it, each ending in a square and a triangle that move apart; a curve that is high for small weights and falls to zero at weight one, above a flat line at zero; a curve of noise gain that stands above a rising diagonal for most weights."}} tags=["hide-input"]
figure = plt.figure(figsize=(8.6, 3.1), layout="constrained")
grid = figure.add_gridspec(1, 3, width_ratios=[1.05, 1, 1])
circle = figure.add_subplot(grid[0, 0], projection="polar")
for radius, w, name, colour in zip((4, 3, 2, 1), (1, 0.75, 0.5, 0.25), "1¾½¼", plots.SERIES, strict=False):
    angle = np.linspace(-np.pi, np.pi, 200) * 0.985
    circle.plot(w * angle, np.full(200, radius), color=colour, linewidth=2)
    circle.plot(w * angle[-1], radius, "s", color=colour, markersize=6)
    circle.plot(w * angle[0], radius, "^", color=colour, markersize=7)
    circle.annotate(
        name, (0, radius), ha="center", va="center", fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 0.8}
    )
circle.set(ylim=(0, 4.5), yticks=[])
circle.set_xticks([0, np.pi / 2, np.pi, 3 * np.pi / 2], ["0", "π/2", "±π", "−π/2"])
panels = [figure.add_subplot(grid[0, column]) for column in (1, 2)]
for name, marker, colour in zip(found, "os", plots.SERIES, strict=False):
    for axes, values in zip(panels, np.transpose(found[name]), strict=True):
        axes.plot(dial, values, color=colour, marker=marker, markersize=4, label=name)
panels[0].axhline(other_crop, color=plots.CHANCE, linestyle=":")
panels[0].set(xlabel="weight w", ylabel="difference of the two orders", ylim=(-0.05, None))
panels[1].set(xlabel="weight w", ylabel="gain of noise", ylim=(0, None))
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
plt.show()

# %% tags=["hide-input"]
half = int(np.argmin(np.abs(dial - 0.5)))
at_half = found["phase times w"][half]
loud = dial[[value > 1.05 for _, value in found["phase times w"]]]
Markdown(
    f"At w = 0.5 the two orders differ by **{at_half[0]:.2f}** times the length of what varies in a crop; two different"
    f" crops differ by {other_crop:.2f}. One level of noise comes out **{at_half[1]:.1f} times** as large. "
    + (
        f"It grows for weights from {loud.min():.2f} to {loud.max():.2f}."
        if len(loud)
        else "No weight tried makes it grow."
    )
    + " Values times w pass both tests at every weight."
)

# %% [markdown]
# So a weight below 1 does not turn a wave down. It moves the wave, by an amount that depends on where the first pixel
# is. Which weight is best for a frequency has no meaning that carries over from one crop to the same crop three pixels
# further.

# %% [markdown]
# ## Opposite frequencies
#
# A real map has every wave twice: the bins $k = (u, v)$ and $-k$ hold the same amplitude and opposite phases. FSAM gives
# the two bins different weights $w_k$ and $w_{-k}$, so the result is complex, and somebody has to throw the imaginary
# part away. For the bin $k$ that is the mean of itself and the conjugate of its opposite:
#
# $$ \tfrac12 A \big( e^{j w_k P} + e^{j w_{-k} P} \big)
#    = A \, \cos\!\Big( \frac{w_k - w_{-k}}{2} P \Big) \; e^{\, j \frac{w_k + w_{-k}}{2} P} $$
#
# The phase is multiplied by the *mean* of the two weights, and the **amplitude by a cosine of their difference**. An
# attention "solely on phase" it is not, unless the weights of opposite bins are equal. The identity holds in all bins
# but the few that are their own opposite, such as the mean:


# %%
def opposite(bins):
    """Each bin's value at the opposite frequency."""
    return bins.flip((-2, -1)).roll((1, 1), (-2, -1))


cosine = torch.cos((weights - opposite(weights)) / 2 * P)
predicted = torch.polar(A, (weights + opposite(weights)) / 2 * P) * cosine
places = torch.arange(P[0, 0].numel(), device=device).view(P.shape[-2:])
paired = opposite(places) != places
spectrum = torch.fft.fft2(fsam(x, modalities), norm="ortho")
assert paired.sum() >= paired.numel() - 4
torch.testing.assert_close(spectrum[..., paired], predicted[..., paired], rtol=1e-3, atol=1e-3)

# %% [markdown]
# The mean of a channel is the exception that survives. Where it is not negative, as it never is after a ReLU, its phase
# is 0, and 0 times any weight is 0: FSAM leaves it as it was. What varies around the mean is another matter.

# %%
rows = {}
with torch.no_grad():
    for block, maps in enumerate(maps_after):
        amplitude, phase = decompose(maps)
        given = fsam.weights(maps, modalities)
        mean = maps.mean((2, 3), keepdim=True)
        varying = (maps - mean).square().sum()

        def kept(used, amplitude=amplitude, phase=phase, mean=mean, varying=varying):
            return ((recombine(amplitude, used * phase) - mean).square().sum() / varying).item()

        after = fsam(maps, modalities)
        stays = mean >= 0
        torch.testing.assert_close(after.mean((2, 3), True)[stays], mean[stays], rtol=1e-3, atol=1e-4)
        rows[block] = {
            "energy lost with the imaginary part": f"{100 * (1 - kept(given)):.1f} %",
            "with equal weights for opposite bins": f"{100 * (1 - kept((given + opposite(given)) / 2)):.1f} %",
            "map changed by": f"{100 * apart(maps, after):.0f} %",
        }
pd.DataFrame(rows).T.rename_axis("after block")

# %% [markdown]
# Energy and length are of what varies in a channel, without its mean, and the module is untrained. What is lost even
# with equal weights sits in the bins that are their own opposite: there the phase is 0 or $\pi$, and $\pi$ times a weight
# is no phase that a real map can have.

# %% [markdown]
# ## What the attention can see
#
# CBAM's attention was made for positions, where neighbours belong together and a channel's value is how much of
# something is there. On a spectrum four things are different; {numref}`fig-fsam-reads` and the table after it measure
# what follows.
#
# - **neighbours.** In the usual order of a transform the mean stands in the *corner*, and the slowest waves stand in all four
#   corners. The kernel's window is cut at the border, and the frequencies 0 and $-1$, neighbours in truth, lie at opposite
#   edges;
# - **the maximum over channels** of many angles is close to $\pi$, whatever the picture;
# - **the mean over channels** is a mean of numbers, not of directions: the mean of $\pi - 0.1$ and $-\pi + 0.1$ is 0,
#   and both point the other way;
# - **strength.** A bin without energy has a phase too, and it is as good as random. The amplitude, which could tell, does
#   not enter.
#
# The reference for "whatever the picture" is angles drawn at random. Of $C$ of them the maximum is $\pi (C-1)/(C+1)$ on
# average.

# %%
REACH = SpatialAttention().conv.kernel_size[0] // 2
reads = []
with torch.no_grad():
    for maps in maps_after:
        amplitude, phase = decompose(maps)
        channels, height, width = maps.shape[1:]
        cut = torch.ones(height, width, dtype=torch.bool, device=device)
        cut[REACH : height - REACH, REACH : width - REACH] = False
        energy = amplitude.square().sum((0, 1))
        given = fsam.weights(maps, modalities)[:, 0]
        usual = torch.stack([given[modalities == m].mean(0) for m in Modality])[modalities][:, None]
        own, fixed = (recombine(amplitude, used * phase) for used in (given[:, None], usual))
        reads.append(
            {
                "cut": cut.float().mean().item(),
                "energy": (energy[cut].sum() / energy.sum()).item(),
                "max": phase.amax(1).mean().item(),
                "max random": np.pi * (channels - 1) / (channels + 1),
                "over bins": usual[:, 0].std((1, 2)).mean().item(),
                "over images": np.mean([given[modalities == m].std(0).mean().item() for m in Modality]),
                "own": ((own - fixed).norm() / (own - maps).norm()).item(),
            }
        )

# %% mystnb={"figure": {"caption": "What the attention reads, by block, and what random angles would give (crosses). Left: the maximum over the channels; the dashed line is π, the largest there is. Right: the weights of an untrained module, how much they differ between frequencies and how much between images of one modality.", "name": "fig-fsam-reads"}, "image": {"alt": "Two panels over the blocks zero to four. Left: round marks and crosses just below a dashed line. Right: two marked lines of standard deviations, one for frequencies and one for images."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.9), layout="constrained")
left.plot(blocks, [row["max"] for row in reads], "o", color=plots.SERIES[0], label="measured")
left.plot(blocks, [row["max random"] for row in reads], "x", color=plots.CHANCE, markersize=9, label="random angles")
left.axhline(np.pi, color=plots.CHANCE, linestyle="--", linewidth=1)
left.set(xlabel="after block", ylabel="maximum phase (mean, rad)", ylim=(0, 3.5))
left.legend(frameon=False, loc="lower right")
for name, marker, style, colour in zip(("over bins", "over images"), "os", ("-", "--"), plots.SERIES, strict=False):
    right.plot(blocks, [row[name] for row in reads], style, marker=marker, color=colour, label=name)
right.set(xlabel="after block", ylabel="standard deviation of weights", ylim=(0, None))
right.legend(frameon=False)
for axes in (left, right):
    axes.set_xticks(blocks)
plt.show()

# %% tags=["hide-input"]
lines = [
    "| after block | windows cut, % of bins | of energy | own weights matter, % |",
    "|--:|--:|--:|--:|",
]
for block, row in enumerate(reads):
    cells = [f"{100 * row[name]:.0f}" for name in ("cut", "energy", "own")]
    lines.append(f"| {block} | {' | '.join(cells)} |")
typical = np.median([row["own"] for row in reads])
close = np.mean([abs(row["max"] - row["max random"]) for row in reads])
Markdown(
    "\n".join(lines)
    + "\n\nOwn weights matter: every image gets the mean weights of its modality instead of its own, and this is the length"
    " of the difference in % of all that FSAM changes."
    + f" The maximum over the channels is within {close:.2f} of what random angles give, on average over the blocks. "
    + (
        "So an untrained FSAM is for the most part one fixed mask for each modality, whatever the image."
        if typical < 0.5
        else "So the weights of an untrained FSAM depend on the image to a large part."
    )
)

# %% [markdown]
# ## In a trained network
#
# What does an untrained FSAM do to a network that has never met one? {numref}`fig-fsam-position` puts one after each
# block in turn, in several draws, and ranks test people. Two controls: SFM with *the same* convolutions, which multiplies
# values where FSAM multiplies phases, and the network without a module. The blocks before the module do not change, so
# they run once; `inserted` gives the same features.


# %%
def ranked_features(maps):
    """Return the L2-normalised features of maps after block 4."""
    return F.normalize(model.bottleneck(generalised_mean(maps, model.gem_p)))


@torch.no_grad()
def features_with(modules):
    """Return the test features of the network with each module alone: {name: (block, module)} -> {name: (N, D)}."""
    found = {name: [None] * len(test) for name in modules}
    for modality, rows in test_rows.items():
        for chunk in np.array_split(rows, max(1, len(rows) // 60)):
            maps = test.batch(chunk, device)
            for block, stage in enumerate(model.stages):
                maps = stage(maps, modality) if block == 0 else stage(maps)
                for name, (place, module) in modules.items():
                    if place == block:
                        end = module(maps, modality)
                        for later in model.stages[block + 1 :]:
                            end = later(end)
                        for row, feature in zip(chunk, ranked_features(end), strict=True):
                            found[name][row] = feature
    return {name: torch.stack(features) for name, features in found.items()}


def rank1(features):
    """Return rank-1 in % in each direction."""
    scores = []
    for trial in trials.values():
        sides = (in_order(features, test.records, side) for side in trial)
        people = identities_and_cameras(trial)
        scores.append(100 * metrics.evaluate_features(*sides, *people, protocol=dataset.protocol).cmc[0])
    return scores


modules = {}
for draw in range(settings.draws):
    for block in blocks:
        torch.manual_seed(settings.seed + draw)  # the same convolutions at every block, in FSAM and in SFM
        modules["FSAM", block, draw] = (block, FSAM().to(device))
        torch.manual_seed(settings.seed + draw)
        modules["SFM", block, draw] = (block, SFM().to(device))
by_place = features_with(modules)
clean = embed_store(model, test, batch_size=60, device=device, progress=False)

last = blocks[-1]
with inserted(model, {last: modules["FSAM", last, 0][1]}):
    few = model.embed(test.batch(test_rows[VISIBLE][:8], device), VISIBLE)
alike = (few * by_place["FSAM", last, 0][test_rows[VISIBLE][:8]]).sum(1)
assert (alike > 0.99).all()  # not more: a phase next to the cut may fall on either side of it

scores = {name: rank1(features) for name, features in by_place.items()}
without = rank1(clean)
chance = [
    metrics.chance(*identities_and_cameras(trial), protocol=dataset.protocol).independent.rank1
    for trial in trials.values()
]

# %% mystnb={"figure": {"caption": "Rank-1 with one untrained module after one block, each mark one draw. Round: FSAM. Triangle: SFM with the same convolutions. Dashed: the network without a module. Grey: chance. Look at the spread between draws before comparing blocks.", "name": "fig-fsam-position"}, "image": {"alt": "Two panels, one for each direction of search, over the blocks zero to four: round and triangular marks scattered far above a grey band at the bottom, most of them below a dashed line near the top."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.2), sharey=True, layout="constrained")
for axes, modality, place in zip(panels, Modality, range(2), strict=True):
    for kind, marker, colour, step in (("FSAM", "o", plots.SERIES[0], -0.13), ("SFM", "^", plots.SERIES[1], 0.13)):
        points = [(block + step, score[place]) for (name, block, _), score in scores.items() if name == kind]
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=6, alpha=0.8, label=kind)
    axes.axhline(without[place], color=plots.CHANCE, linestyle="--", label="no module")
    axes.axhspan(100 * chance[place].low, 100 * chance[place].high, color=plots.CHANCE, alpha=0.3, label="chance")
    axes.set(title=direction_name(modality), xlabel="after block", xticks=blocks, ylim=(0, 101))
panels[0].set_ylabel("rank-1 (%)")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% tags=["hide-input"]
ways = [direction_name(modality) for modality in Modality]
lines = [
    f"| after block | {' | '.join(f'{kind}, {way}' for kind in ('FSAM', 'SFM') for way in ways)} |",
    "|---|--:|--:|--:|--:|",
]
mean_loss = {}
for block in blocks:
    cells = []
    for kind in ("FSAM", "SFM"):
        for place in range(2):
            values = [score[place] for (name, at, _), score in scores.items() if (name, at) == (kind, block)]
            cells.append(tables.spread(values))
            mean_loss.setdefault((kind, block), []).append(without[place] - np.mean(values))
    lines.append(f"| {block} | {' | '.join(cells)} |")
lines.append(f"| *no module* | {' | '.join(f'{value:.1f}' for value in without * 2)} |")
lines.append(f"| *chance* | {' | '.join(f'{100 * level.mean:.1f}' for level in chance * 2)} |")
loss = {name: np.mean(values) for name, values in mean_loss.items()}
worst, best = (chosen(blocks, key=lambda block: loss["FSAM", block]) for chosen in (max, min))
Markdown(
    "\n".join(lines)
    + f"\n\nRank-1 in % on {settings.people} test people, mean over {settings.draws} draws with the lowest and the highest. On"
    f" average FSAM costs most after block {worst} ({loss['FSAM', worst]:.1f} points) and least after block {best}"
    f" ({loss['FSAM', best]:.1f}). After block {last} FSAM costs {loss['FSAM', last]:.1f} points and SFM"
    f" {loss['SFM', last]:.1f}"
    + (
        ". A reason may be that FSAM leaves the channels' means alone, on which pooling builds, and SFM scales them."
        if loss["FSAM", last] < loss["SFM", last] - 2
        else "."
    )
    + " One network; the draws are of the module."
)

# %% [markdown]
# That an untrained module disturbs a network says nothing against it; any module would. It says what the module has to
# *learn first*. So we let it.

# %% [markdown]
# ## What it learns when nothing else may
#
# The network stays frozen. Two FSAM, after blocks 0 and 4, get some steps of the identity loss on 100 training people,
# with Adam ({numref}`fig-fsam-learned`). This is not how the paper trains it, together with everything else; it is the
# shortest way to ask which weights help *this* network.

# %%
train = cached(dataset, dataset.train, progress=False)
labels = contiguous_labels(train.records)
learners = np.flatnonzero(labels < 100)
sampler = PKSampler([train.records[row] for row in learners], 8, 2, settings.seed)
fixed_rows = learners[:: max(1, len(learners) // 128)]
torch.manual_seed(settings.seed)
pair = {0: FSAM().to(device), last: FSAM().to(device)}
fresh_weights = {block: module.weights(maps_after[block], modalities).detach() for block, module in pair.items()}


def identity_loss(rows):
    images = train.batch(rows, device).contiguous(memory_format=torch.channels_last)
    logits = model(images, train.modalities[rows]).logits
    return F.cross_entropy(logits, torch.from_numpy(labels[rows]).to(device))


def batches():
    epoch = 0
    while True:
        yield from (learners[np.concatenate(rows)] for rows in sampler.epoch(epoch))
        epoch += 1


@torch.no_grad()
def mean_weights():
    return [
        module.weights(maps_after[block], modalities)[modalities == m].mean().item()
        for block, module in pair.items()
        for m in Modality
    ]


with torch.no_grad():
    target = identity_loss(fixed_rows).item()
    with inserted(model, pair):
        first_loss = identity_loss(fixed_rows).item()
        first_score = rank1(embed_store(model, test, batch_size=60, device=device, progress=False))
path, averages = [], {}
parameters = [weight for module in pair.values() for weight in module.parameters()]
optimiser = torch.optim.Adam(parameters, lr=0.01)
with inserted(model, pair):
    for step, rows in zip(range(settings.steps), batches(), strict=False):
        if step % 3 == 0:
            averages[step] = mean_weights()
        value = identity_loss(rows)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        path.append(value.item())
    averages[settings.steps] = mean_weights()
    with torch.no_grad():
        last_loss = identity_loss(fixed_rows).item()
        last_score = rank1(embed_store(model, test, batch_size=60, device=device, progress=False))
learned_weights = {block: module.weights(maps_after[block], modalities).detach() for block, module in pair.items()}

# %% mystnb={"figure": {"caption": "Two FSAM learn in a frozen network. Left: identity loss of each batch; dashed, the loss of the network without modules on a fixed set of the same people. Right: the mean weight of each module and modality on test maps. At weight 1 a module does nothing.", "name": "fig-fsam-learned"}, "image": {"alt": "Two panels over training steps. Left: a jagged line of losses and a dashed horizontal line. Right: four marked lines of mean weights between zero and one, and a dotted line at one."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3), layout="constrained")
left.plot(range(len(path)), path, color=plots.SERIES[0])
left.axhline(target, color=plots.CHANCE, linestyle="--")
left.set(xlabel="step", ylabel="identity loss (nats)", ylim=(0, None))
styles = [(block, m) for block in pair for m in Modality]
for (block, m), values in zip(styles, np.transpose(list(averages.values())), strict=True):
    mark, line = ("o", "-") if block == 0 else ("s", "--")
    name = f"block {block}, {m.name.lower()}"
    right.plot(list(averages), values, line, marker=mark, markersize=4, color=plots.COLOURS[m], label=name)
right.axhline(1, color=plots.CHANCE, linestyle=":")
right.set(xlabel="step", ylabel="mean weight", ylim=(0, 1.05))
right.legend(frameon=False, fontsize=8)
plt.show()

# %% tags=["hide-input"]
final = {f"block {block}, {m.name.lower()}": averages[settings.steps][row] for row, (block, m) in enumerate(styles)}
moves = [after - before for after, before in zip(last_score, without, strict=True)]
identity = [name for name, weight in final.items() if weight > 0.95]
nothing = [name for name, weight in final.items() if weight < 0.05]


def pair_of(values):
    return " and ".join(f"{value:.1f}" for value in values)


if len(identity) == len(final):
    what = (
        "All have learned to get out of the way: with all weights at 1 FSAM is the identity, and training went there."
    )
else:
    what = f"Near 1, where a module is the identity: {'; '.join(identity) or 'none'}."
    what += f" Near 0, where it drops every phase: {'; '.join(nothing)}." if nothing else ""
    what += " What did not go to 1 changes its maps, and this loss does not object."
Markdown(
    f"On the fixed set the loss is {target:.2f} without modules, {first_loss:.2f} with untrained ones and **{last_loss:.2f}** after"
    f" {settings.steps} steps; rank-1 of test people is {pair_of(without)} % without, {pair_of(first_score)} % with untrained and"
    f" **{pair_of(last_score)} %** with trained modules. Mean weights at the end: "
    + "; ".join(f"{name} {weight:.2f}" for name, weight in final.items())
    + f". {what} Rank-1 moves by at most {max(map(abs, moves)):.1f} points against no module; one network, one seed, no"
    " interval."
)

# %% [markdown]
# {numref}`fig-fsam-maps` shows the weights themselves, before and after. A sigmoid reaches 0 and 1 only in the limit, and
# near them the gradient vanishes: a module that has gone to either end does not easily come back.

# %% mystnb={"figure": {"caption": "Mean weights over test images, by frequency: the mean of the map (DC) is the ringed bin in the middle, faster waves are further out. Top: untrained. Bottom: after training. Stripes through the middle are the edges of the array, where the kernel's window is cut.", "name": "fig-fsam-maps"}, "image": {"alt": "Two rows of four grids of squares, coloured from dark (weight zero) to light (weight one), for blocks zero and four and both spectra, with a small ring in the middle of each."}} tags=["hide-input"]
figure, grid = plt.subplots(2, 4, figsize=(7.2, 5.2), layout="constrained")
for row, state in zip(grid, (fresh_weights, learned_weights), strict=True):
    for axes, (block, m) in zip(row, styles, strict=True):
        shown = torch.fft.fftshift(state[block][modalities == m].mean((0, 1))).cpu()
        height, width = shown.shape
        picture = axes.imshow(
            shown, cmap="cividis", vmin=0, vmax=1, extent=(0, 1, 0, dataset.size[0] / dataset.size[1])
        )
        centre = ((width // 2 + 0.5) / width, (1 - (height // 2 + 0.5) / height) * dataset.size[0] / dataset.size[1])
        axes.plot(
            *centre, "o", markersize=9, markerfacecolor="none", markeredgecolor=plots.SERIES[1], markeredgewidth=1.5
        )
        axes.set(xticks=[], yticks=[])
for axes, (block, m) in zip(grid[0], styles, strict=True):
    axes.set_title(f"block {block}\n{m.name.lower()}", fontsize=9)
grid[0, 0].set_ylabel("untrained")
grid[1, 0].set_ylabel("trained")
figure.colorbar(picture, ax=grid, shrink=0.6, label="weight")
plt.show()

# %% [markdown]
# ## Does it help where nobody attacks?
#
# A frozen network is not a fair place to ask. The fair question is the one the paper answers with a table: train the
# whole network with the module inside, and without, and compare. The one affordable here is smaller: add the module to a
# trained network, and train both a little longer. The paper's gains, single runs on licensed data and
# without seeds or intervals, so in a frame of their own:

# %% tags=["hide-input"]
# Rank-1 and mAP without and with FSAM, from the authors' answers to the reviews (OpenReview, RaNct2xkyI).
PAPER = {
    ("AGW", "SYSU-MM01"): ((47.50, 49.41), (47.65, 49.39)),
    ("AGW", "RegDB"): ((70.05, 75.05), (66.37, 68.28)),
    ("CAJ", "SYSU-MM01"): ((69.88, 70.20), (66.89, 67.99)),
    ("CAJ", "RegDB"): ((85.00, 86.77), (84.60, 85.01)),
    ("DEEN", "SYSU-MM01"): ((74.70, 75.20), (71.80, 72.27)),
    ("DEEN", "RegDB"): ((91.10, 92.44), (85.10, 86.45)),
}
lines = [
    "| published | data | rank-1 without | with FSAM | gain | mAP without | with FSAM | gain |",
    "|---|---|--:|--:|--:|--:|--:|--:|",
]
for (network, data), pairs in PAPER.items():
    cells = [text for a, b in pairs for text in (f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}")]
    lines.append(f"| {network} | {data} | {' | '.join(cells)} |")
published = [after - before for (before, after), _ in PAPER.values()]
Markdown("\n".join(lines))

# %% [markdown]
# Ours is another experiment: synthetic people, the small network of tier `lite`, and several seeds. `none`, FSAM, SE and
# ECA differ in the module alone: the weights at the start, the batches and the augmentation of a seed are the same, and
# `none` is trained for as long as the others. Each difference is taken between two networks of one seed, on the same
# queries, and its interval resamples test people ({numref}`fig-fsam-benign`). These are {term}`run cards <run card>`,
# made by the campaign `book/campaigns/feature_level.toml`; the line under the table says from where and for how long
# the networks were trained.

# %% tags=["hide-input"]
from vireid_lite.study.cards import read_cards, stale_note
from vireid_lite.chapters.costs import COSTS

COMMAND = "vireid-lite campaign book/campaigns/feature_level.toml"
NAMES = {"none": "none", "fsam": "FSAM", "se": "SE", "eca": "ECA"}
every = [
    card
    for card in read_cards(COSTS.parent, kind="benign", tier="lite")
    if card["modification"]["noise"] == "none" and not card["modification"]["sfm"]
]
recipes = [
    str([card["dataset"], card["victim"], card["modification"].get("start"), card["modification"].get("epochs")])
    for card in every
]
usual = max(set(recipes), key=recipes.count, default=None)  # one recipe at a time
benign = [card for card, of in zip(every, recipes, strict=True) if of == usual]


def cards_of(attention, places=(0, 4)):
    """Return the cards of one attention by seed; where `none` stands makes no difference."""
    chosen = [card for card in benign if card["modification"]["attention"] == attention]
    if attention != "none":
        chosen = [card for card in chosen if tuple(card["modification"]["blocks"]) == tuple(places)]
    return {card["seed"]: card for card in chosen}


def gains_over_none(attention, places, way):
    """Return {seed: paired difference of rank-1 from `none`}, and the one of all seeds together, or None."""
    plain, own = cards_of("none"), cards_of(attention, places)
    seeds = sorted(plain.keys() & own.keys())
    if not seeds:
        return {}, None
    each = {seed: tables.compare(plain[seed], own[seed], way, precision="float") for seed in seeds}
    before, after = ([cards[seed]["scores"][way] for seed in seeds] for cards in (plain, own))
    # A person is drawn with all seeds: three networks are not three times as many people.
    return each, tables.paired(before, after)


def points(difference, digits=1):
    """Write a difference with its interval, in points."""
    middle, low, high = (f"{100 * value:+.{digits}f}".replace("-", "−") for value in difference)
    return f"{middle} ({low} to {high})"


def verdict(each, together):
    """Say what a difference shows: clear of zero for people, and of one sign in every seed."""
    middles = [one.difference for one in each.values()]
    if together.low > 0 and min(middles) > 0:
        return "higher"
    if together.high < 0 and max(middles) < 0:
        return "lower"
    return "not told apart"


def state():
    """Say what is pending and what is stale."""
    campaign = COSTS.parents[1] / "campaigns" / "feature_level.toml"
    pending = tables.pending(campaign, COSTS.parent, "benign")
    if not benign:
        pending = pending or f"**Pending**: `{COMMAND}` makes the cards."
    return " ".join(filter(None, [pending, stale_note(benign)]))


# %% tags=["hide-input"]
header = [f"{way}: rank-1" if part == 0 else "minus none" for way in tables.DIRECTIONS for part in range(2)]
lines = [f"| after blocks 0 and 4 | seeds | {' | '.join(header)} | training, s (median) |", "|---|--:|" + "--:|" * 5]
verdicts = {}
for attention, name in NAMES.items():
    own = cards_of(attention)
    if not own:
        lines.append(f"| {name} | 0 |{' pending |' * 5}")
        continue
    cells = []
    for way in tables.DIRECTIONS:
        cells.append(tables.spread(100 * card["scores"][way]["rank1"] for card in own.values()))
        each, together = gains_over_none(attention, (0, 4), way)
        cells.append("" if attention == "none" else points(together) if together else "pending")
        if together and attention != "none":
            verdicts[name, way] = verdict(each, together)
    seconds = np.median([card["train_seconds"] for card in own.values()])
    lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {seconds:.0f} |")
said = [f"{name}, {way}: {what}" for (name, way), what in verdicts.items()]
about = ""
if benign:
    data, change = benign[0]["dataset"], benign[0]["modification"]
    epochs = change.get("epochs") or benign[0]["victim"]["settings"]["epochs"]
    begun = {
        "victim": "each continues from the trained network of its seed, the module untrained",
        "scratch": "each starts from weights drawn from its seed",
    }.get(change.get("start"), "")
    about = f"Data: synthetic, {data['difficulty']}, {data['num_identities']} training people. Training: {begun};"
    about += f" {epochs} epoch{'s' if epochs > 1 else ''}."
    levels = [100 * benign[0]["scores"][way]["chance"]["rank1"]["mean"] for way in tables.DIRECTIONS]
    about += f" Chance: {pair_of(levels)} %."
Markdown(
    "\n".join(lines)
    + "\n\nRank-1 in %, mean over seeds with the lowest and highest; difference from `none` in points, all seeds together, with"
    f" the 95 % interval over people. {about} {state()}"
    + (f"\n\n*Higher* or *lower* than none: {'; '.join(said)}." if said else "")
)

# %% mystnb={"figure": {"caption": "Rank-1 minus that of the network without a module, one mark a seed with its 95 % interval over people. Round: visible queries. Triangle: infrared queries. The line at zero is no module. A gain would be marks above the line in every seed, with intervals clear of it.", "name": "fig-fsam-benign"}, "image": {"alt": "A strip chart with columns for FSAM, SE and ECA; in each, up to three round and three triangular marks with vertical bars around a line at zero; or the word pending."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
marks = {}
for column, attention in enumerate(("fsam", "se", "eca")):
    for way, modality, marker, side in zip(tables.DIRECTIONS, Modality, "o^", (-0.22, 0.22), strict=True):
        each, _ = gains_over_none(attention, (0, 4), way)
        for number, one in enumerate(each.values()):
            middle, low, high = (100 * value for value in one)
            marks[f"{modality.name.lower()} queries"] = axes.errorbar(
                column + side + 0.09 * (number - (len(each) - 1) / 2), middle, yerr=[[middle - low], [high - middle]],
                marker=marker, color=plots.COLOURS[modality], capsize=2, linewidth=1, markersize=5,
            )  # fmt: skip
if marks:
    axes.axhline(0, color=plots.CHANCE)
    axes.set(ylabel="rank-1 minus none (points)")
    axes.set_xticks(range(3), ["FSAM", "SE", "ECA"])
    axes.set_xlim(-0.6, 2.6)
    axes.legend(marks.values(), marks, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
else:
    axes.text(0.5, 0.5, "pending", ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
plt.show()

# %% tags=["hide-input"]
text = f"What FSAM does to a network trained with it is pending: `{COMMAND}`."
fsam_says = [what for (name, _), what in verdicts.items() if name == "FSAM"]
if fsam_says:
    widths = [gains_over_none("fsam", (0, 4), way)[1] for way in tables.DIRECTIONS]
    reach = max(100 * (one.high - one.low) / 2 for one in widths)
    seen = sum(gain > reach for gain in published)
    seeds = len(gains_over_none("fsam", (0, 4), tables.DIRECTIONS[0])[0])
    times = "in the one seed there is" if seeds == 1 else f"in each of {seeds} seeds"
    if set(fsam_says) == {"higher"}:
        text = f"Here FSAM raises clean rank-1 in both directions, {times}."
    elif set(fsam_says) == {"lower"}:
        text = f"Here FSAM lowers clean rank-1 in both directions, {times}."
    elif "higher" in fsam_says and "lower" not in fsam_says:
        text = "Here FSAM raises clean rank-1 in one direction, and is not told apart from no module in the other."
    elif "lower" in fsam_says and "higher" not in fsam_says:
        text = "Here FSAM lowers clean rank-1 in one direction, and is not told apart from no module in the other."
    elif "higher" in fsam_says:
        text = "Here FSAM raises clean rank-1 in one direction and lowers it in the other."
    else:
        text = "Here FSAM is not told apart from no module in either direction."
    rivals = {name: {w for (n, _), w in verdicts.items() if n == name} for name in ("SE", "ECA")}
    gaining = [name for name, found in rivals.items() if "higher" in found and "lower" not in found]
    losing = [name for name, found in rivals.items() if "lower" in found and "higher" not in found]
    if gaining:
        text += f" A gain also shows for {' and '.join(gaining)}, so it is not particular to the phase."
    if losing:
        text += f" {' and '.join(losing)} {'lowers' if len(losing) == 1 else 'lower'} it in at least one direction."
    text += (
        f" The interval reaches {reach:.1f} points to either side, and a gain has to be larger than that to show here"
        f" more often than not; of the {len(published)} published gains of rank-1, {seen} {'is' if seen == 1 else 'are'} larger."
    )
    text += " What FSAM does on SYSU-MM01 or RegDB stays open: that needs the licensed data, and more than one run."
Markdown(text)

# %% [markdown]
# And by position, FSAM after one block at a time, as in the paper's fourth table (whose numbers are an image that this
# book does not have):

# %% tags=["hide-input"]
lines = [
    f"| FSAM after | seeds | {' | '.join(f'{way}: minus none' for way in tables.DIRECTIONS)} |",
    "|---|--:|--:|--:|",
]
by_position = {}
for places in [(0,), (1,), (2,), (3,), (4,), (0, 4)]:
    title = " and ".join(map(str, places))
    found = [gains_over_none("fsam", places, way) for way in tables.DIRECTIONS]
    count = len(found[0][0])
    cells = [points(together) if together else "pending" for _, together in found]
    lines.append(f"| block{'s' if len(places) > 1 else ''} {title} | {count} | {' | '.join(cells)} |")
    if count:
        by_position[places] = [verdict(*one) for one in found]
single = [places for places in by_position if len(places) == 1]
text = "By position: pending, with the rows above."
if single:
    clear = [p for p in single if any(what != "not told apart" for what in by_position[p])]
    text = f"Of {len(single)} single positions measured, {len(clear)} differ from no module in some direction" + (
        f" (after block {', '.join(str(p[0]) for p in clear)})." if clear else "."
    )
    fewest = min(len(gains_over_none("fsam", p, tables.DIRECTIONS[0])[0]) for p in single)
    if fewest == 1:
        text += " With one seed the interval knows of people alone, and not of training."
Markdown("\n".join(lines) + f"\n\n{text} {state()}")

# %% [markdown]
# ## What could fool us
#
# - **One seed.** Training twice with different seeds gives two different networks, with and without a module. A single
#   pair, as in the published table, cannot tell a gain from a lucky draw.
# - **An interval over people is not one over trainings.** We ask for both: clear of zero over people, and one sign in
#   every seed. Three seeds are few.
# - **One recipe.** A module may need longer to pay, or help only early. And where training continues from a network that
#   has settled, an untrained module first disturbs it, and has that to make up for before it can gain anything; the paper
#   starts from ImageNet weights.
# - **A small map.** After block 4 of the small network a map is smaller than the kernel; the official network's is not.
# - **A frozen network.** What FSAM learned here, it learned in a network that had settled without it.
# - **Our reading.** `atan2`, the real part, no bias, bins in `fft2`'s order: the paper says none of these. Another reading is
#   another module.

# %% [markdown]
# ## Takeaways
#
# - A phase is an angle. Times a weight below 1 it is not less, it is elsewhere, and where depends on the first pixel.
# - The real part turns unequal weights of opposite bins into a loss of amplitude: a cosine that can be written down.
# - CBAM's attention looks at neighbours, maxima and means. On a spectrum in the usual order all three mean something else.
# - Weight 1 is the identity. A module that has gone there adds nothing but its cost; look at the weights before the scores.
# - A gain without seeds and intervals is a number. With them it is a measurement, and may be none.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: how near can it come to doing nothing?
# :label: ex-fsam-identity
# ```
# A sigmoid is below 1 for every finite input. For which constant weights does FSAM change a map after block 0 by less than
# 1 %? Guess, then measure, in units of what varies in the map.
#
# **Check yourself.** Which is the smallest of these weights that does?
#
# - (a) 0.9.
# - (b) 0.95.
# - (c) 0.99.
# - (d) 0.999.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check

self_check(None, "ex-fsam-identity", "1d17ee53")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-fsam-identity
# :class: dropdown
# ```
# Self-check: **d**.
#
# A phase moves by at most $(1 - w)\pi$, and a wave that moves by $\varphi$ changes by about $\varphi$ times its
# amplitude. With phases spread over the circle the root mean square of that is $(1 - w)\,\pi/\sqrt3$.

# %% tags=["solution"]
for w in (0.9, 0.99, 0.995, 0.999):
    print(f"w = {w}: {100 * apart(x, scaled(x, w)):.2f} %, predicted {100 * (1 - w) * np.pi / 3**0.5:.2f} %")
print(f"1 % is predicted for w = {1 - 0.01 * 3**0.5 / np.pi:.4f}")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: mend the amplitude
# :label: ex-fsam-symmetric
# ```
# Give opposite bins equal weights, and FSAM is an attention on phase alone (but for the bins that are their own opposite).
# Write it as a module, put it after block 0 of the trained network, and compare rank-1 with the unmended one of the same
# convolutions. Which of the chapter's complaints does it answer, and which not?
#
# **Check yourself.** Which complaint does it answer?
#
# - (a) The amplitude changes.
# - (b) The result depends on the origin.
# - (c) Neighbours at the cut part.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-fsam-symmetric", "06777299")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-fsam-symmetric
# :class: dropdown
# ```
# Self-check: **a**.
#
# The cosine is 1, so amplitudes stay. The cut and the origin stay too: the phase is still multiplied as a number. A
# module about structure would need something that does not change when the picture moves, such as the phases of two
# waves minus the phase of the wave whose frequency is the sum of theirs.


# %% tags=["solution"]
class Symmetric(FSAM):
    def forward(self, maps, modality):
        amplitude, phase = decompose(maps)
        given = self.weights(maps, modality)
        return recombine(amplitude, (given + opposite(given)) / 2 * phase)


torch.manual_seed(settings.seed)
mended = Symmetric().to(device)
amplitudes = {
    name: decompose(module(x, modalities).detach())[0] for name, module in (("as published", fsam), ("mended", mended))
}
for name, found_amplitude in amplitudes.items():
    print(
        f"{name}: amplitudes change by {100 * ((found_amplitude - A)[..., paired].norm() / A[..., paired].norm()).item():.1f} %"
    )
score = rank1(features_with({"mended": (0, mended)})["mended"])
print(
    f"rank-1, as published {pair_of(scores['FSAM', 0, 0])} %, mended {pair_of(score)} %, no module {pair_of(without)} %"
)

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-fsam-flaw
# ```
# A report reads: "We compared the attention maps of FSAM for two images of one person, over all test people. They correlate
# at the value below. So the module has found the person's structure: it attends to the same frequencies whenever the
# same person appears." The correlation is computed correctly. What is missing? Run it.
#
# **Check yourself.** With what must the correlation be compared first?
#
# - (a) With that of a trained module.
# - (b) With that of images of two people, and of no person.
# - (c) With zero, by its interval.
# ```{exercise-end}
# ```


# %%
def correlation(first, second):
    """Mean correlation of two sets of maps (n, bins), pair by pair."""
    first, second = (part - part.mean(1, keepdim=True) for part in (first, second))
    return F.cosine_similarity(first, second).mean().item()


rows = test_rows[VISIBLE]
owners = np.array([test.records[row].identity for row in rows])
firsts, seconds = zip(
    *(rows[owners == name][:2] for name in np.unique(owners) if (owners == name).sum() > 1), strict=True
)
with torch.no_grad():
    one, two = (fsam.weights(model.stages[0](test.batch(np.array(part), device), VISIBLE), VISIBLE).flatten(1)
                for part in (firsts, seconds))  # fmt: skip
print(f"two images of one person: {correlation(one, two):.3f}")

# %% tags=["self-check"]
self_check(None, "ex-fsam-flaw", "b6ff5f32")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-fsam-flaw
# :class: dropdown
# ```
# Self-check: **b**.
#
# Another person. And an image without any person: uniform noise. If those correlate as much, what the maps share is the module
# and not the picture: zeros at the border, a maximum that is near $\pi$ everywhere, one convolution. This module is not even
# trained. What depends on the picture shows once the common map is taken off; only that part can speak of structure.

# %% tags=["solution"]
with torch.no_grad():
    blank = torch.rand(len(one), 3, *dataset.size, generator=generator).to(device)
    nobody = fsam.weights(model.stages[0](blank, VISIBLE), VISIBLE).flatten(1)
print(f"two people: {correlation(one, two.roll(1, 0)):.3f}")
print(f"a person and noise: {correlation(one, nobody):.3f}")
common = torch.cat([one, two]).mean(0)
print(f"one person, without the common map: {correlation(one - common, two - common):.3f}")
print(f"two people, without the common map: {correlation(one - common, two.roll(1, 0) - common):.3f}")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`yang2024feature`, {cite:t}`woo2018cbam`,
# {cite:t}`hu2018senet`, {cite:t}`wang2020eca`.
