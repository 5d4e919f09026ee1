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
# # Two spectra
#
# A colour camera and an infrared camera see the same person, and hardly the same picture. This chapter measures what is
# left in common, shows the data that the book works on, and looks for ways to match people that need no learning. Every
# later score has to be read against what those ways reach.

# %% [markdown]
# ## What you will be able to do
#
# - say what brightness means to a visible, a near-infrared and a thermal camera;
# - show with a number that colour is lost and that contrast flips between spectra;
# - name the three benchmarks, their cameras and directions, and what their licences ask of you;
# - measure a shortcut against the {term}`chance level`, and say what it means for a trained network's score.

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

costs = Costs("01_two_spectra")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite (two CPU cores), standard (one GPU) or full (one GPU, licensed data)
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of everything random here
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes

# %%
settings = check_parameters(globals(), costs)

# %% [markdown]
# ## The question
#
# *Can two cameras that see different light agree on who someone is?*
#
# | Camera | Light | Whose light | A bright pixel means |
# |---|---|---|---|
# | visible | what the eye sees, in three channels | sun and lamps | the surface reflects that colour |
# | near infrared | just beyond red, one channel | the camera's own lamp | the fibre reflects it, whatever most dyes do (carbon black stays dark) |
# | thermal | far infrared, one channel | the body itself | the surface is warm |
#
# A {term}`visible` and a near-{term}`infrared` camera both see *reflected* light, in different bands; most dyes that give
# cloth its colour are nearly clear beyond red, so that a black and a white shirt can look alike there. A thermal camera
# sees *emitted* light: bare skin shines, a coat that keeps its warmth inside is dark, and no lamp is needed.
#
# Here are five rendered people, each drawn in one pose under one light, before a plain wall. Only the spectrum changes.

# %%
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from torch.nn import functional

from vireid_lite import metrics, models
from vireid_lite.chapters import plots
from vireid_lite.data import Modality, SyntheticVI, Trial, cached
from vireid_lite.data.synthetic.figure import LOWER, SPECTRA, UPPER, Figure
from vireid_lite.data.synthetic.render import render
from vireid_lite.metrics.evaluation import direction_name, identities_and_cameras
from vireid_lite.victims import tier_dataset

plots.set_style()
VISIBLE, INFRARED = Modality


def before_a_wall(dataset, record, spectrum):
    """Return a crop of a record's person and pose in any spectrum, before a plain wall."""
    channels, side = 3 if spectrum == "visible" else 1, 2 * dataset.size[0]
    wall = np.full((channels, side, side), 0.15, np.float32)
    person, shot = dataset.person(record.identity), dataset.shot(record)
    return render(person, shot, wall, np.ones(3), spectrum, dataset.size)


# %% mystnb={"figure": {"caption": "Five people at one instant in three spectra. Follow one shirt down its column: its colour is gone in the second row, and light cloth may turn dark or dark cloth light. In the third row only warmth counts: faces and hands shine, patterns vanish.", "name": "fig-spectra-instant"}, "image": {"alt": "Grid of three rows and five columns of rendered pedestrians. Top row in colour, middle row in near-infrared grey with other contrasts between the same garments, bottom row blurred thermal grey with bright faces and hands and darker clothes."}}
clear = {"occlusion": 0, "noise": 0.01, "blur": 0.3}
studio = SyntheticVI(2, 1, size=(192, 96), seed=settings.seed, **clear)
people = [record for record in studio.test if record.modality == VISIBLE][:5]
close = {"wspace": 0.06, "hspace": 0.04}
figure, grid = plt.subplots(3, 5, figsize=(5, 6.2), gridspec_kw=close)
for row, spectrum in zip(grid, SPECTRA, strict=True):
    for axes, record in zip(row, people, strict=True):
        plots.show_crop(axes, before_a_wall(studio, record, spectrum))
    row[0].set_ylabel(spectrum)
plt.show()

# %% [markdown]
# On the book's page, the slider takes the first of these people (at seed 0) from row to row. Move it slowly and watch the
# belt: as dyes turn clear, it passes the dress. Then watch the lamp go out, and who needs none. Every picture is the
# renderer's own: one channel, its knob `reflectance_shift` from 0 to 0.6, its lamp. Between near infrared and thermal it
# has nothing, so there the slider jumps.
#
# <!-- move: spectrum -->
#
# No camera pair gives this view, and the task never does: a {term}`query` and its match are taken at different times,
# by different cameras, in different poses.

# %% [markdown]
# ## The synthetic set
#
# `SyntheticVI` renders as many people as one asks for. A visible and an infrared image of one {term}`identity` share
# what the person wears and how they are built, and nothing else: pose, view, framing, background, light, blur and noise
# are drawn anew for every image. It comes in two difficulties, each a choice of `vireid_lite.data.Knobs`, fixed on
# clean validation accuracy alone and never on how an attack fares.

# %% mystnb={"figure": {"caption": "The easy set: one person a row, visible images on the left, near-infrared ones on the right. Cut, pattern, hat and bag carry over; colour does not.", "name": "fig-spectra-easy"}, "image": {"alt": "Four rows of six small pedestrian crops, three in colour and three in grey. Within a row clothes keep their shape and pattern while pose, view and background change."}}
common = {"dataset": "synthetic", "seed": settings.seed}
easy = tier_dataset(settings.tier, **common, difficulty="easy")
hard = tier_dataset(settings.tier, **common, difficulty="hard")
plots.sample_sheet(easy, easy.test, identities=4, images=3)
plt.show()

# %% mystnb={"figure": {"caption": "The hard set: people are more alike, the box fits worse, scenes are busier, and more is hidden, blurred or noisy.", "name": "fig-spectra-hard"}, "image": {"alt": "Four rows of six small pedestrian crops, three in colour and three in grey, darker, noisier and less well framed than in the figure before, some partly hidden."}}
plots.sample_sheet(hard, hard.test, identities=4, images=3)
plt.show()

# %% mystnb={"figure": {"caption": "The same people as in the easy set, with a thermal camera on the right. Patterns are gone; outline, bare skin and warm or cold garments remain.", "name": "fig-spectra-thermal"}, "image": {"alt": "Four rows of six small pedestrian crops, three in colour and three thermal: soft figures with white faces and hands before a blurred grey background."}}
thermal = SyntheticVI(240, 2, size=easy.size, seed=settings.seed, thermal=True)
plots.sample_sheet(thermal, thermal.test, identities=4, images=2)
plt.show()

# %% [markdown]
# ## The cameras
#
# Six cameras watch, numbered as on SYSU-MM01: four visible, two infrared. Each has its own scene, white balance and
# light; which of them took an image says nothing about who is in it.

# %% mystnb={"figure": {"caption": "Two images from each camera of the easy set; under its number stands the kind of scene it watches. The infrared cameras (orange) bring their own lamp: bright in the middle, dark at the rim.", "name": "fig-spectra-cameras"}, "image": {"alt": "Two rows of six pedestrian crops, one column per camera: corridor, hall, street and garden in colour, corridor and garden in grey with a bright centre."}}
from vireid_lite.data.synthetic.people import SCENE_OF

cameras = sorted({(record.modality, record.camera) for record in easy.test})
figure, grid = plt.subplots(2, 6, figsize=(5.6, 4), gridspec_kw=close)
for column, (modality, camera) in zip(grid.T, cameras, strict=True):
    seen = [record for record in easy.test if record.camera == camera]
    for axes, record in zip(column, (seen[0], seen[-1]), strict=True):
        plots.show_crop(axes, easy.read(record))
    title = f"{camera}\n{SCENE_OF[camera]}"
    column[0].set_title(title, color=plots.COLOURS[modality], fontsize=10)
plt.show()

# %% [markdown]
# ## What is lost between them
#
# The renderer knows which pixel shows what, so the brightness of a garment can be measured exactly: the mean grey of
# its pixels, in one image. Do two images of one garment agree? Within a spectrum they differ by light, pose and noise;
# across spectra by the spectrum as well.


# %%
def body_map(dataset, record, size=None):
    """Return what each pixel shows, uint8 (H, W), 0 for background: the renderer's own."""
    person, shot = dataset.person(record.identity), dataset.shot(record)
    drawn = Figure(person, shot, *(size or dataset.size), dataset.thermal)
    return drawn.draw().index


def brightness(dataset, records):
    """Return the mean grey in [0, 1] of upper and lower garment, (people, images, 2).

    NaN where hardly anything of a garment shows.
    """
    grey = []
    for record in records:
        crop = dataset.read(record) @ [0.299, 0.587, 0.114] / 255
        garments = body_map(dataset, record) // 2  # a material has two dyes
        masks = [garments == part // 2 for part in (UPPER, LOWER)]
        grey.append([crop[m].mean() if m.sum() > 20 else np.nan for m in masks])
    return np.reshape(grey, (-1, dataset.images_per_modality, 2))


near = SyntheticVI(240, 2, size=easy.size, seed=settings.seed)
watched = 4 * 120  # records of 120 people, two images in each spectrum


def of_modality(records, modality):
    return [record for record in records if record.modality == modality]


seen_visible = brightness(near, of_modality(near.train[:watched], VISIBLE))
seen_near = brightness(near, of_modality(near.train[:watched], INFRARED))
seen_thermal = brightness(thermal, of_modality(thermal.train[:watched], INFRARED))


# %%
def correlation(x, y, repeats=1000):
    """Return Pearson's r of two (people, garments) arrays, and its interval over people."""

    def r(rows):
        a, b = x[rows].ravel(), y[rows].ravel()
        both = np.isfinite(a + b)
        return np.corrcoef(a[both], b[both])[0, 1]

    draws = np.random.default_rng(0).integers(len(x), size=(repeats, len(x)))
    low, high = np.quantile([r(rows) for rows in draws], [0.025, 0.975])
    return metrics.Interval(r(slice(None)), low, high)


def flips(x, y):
    """Return how often a person's brighter garment is the darker one in the other image."""
    order = np.diff(x)[:, 0] * np.diff(y)[:, 0]
    who = np.flatnonzero(np.isfinite(order))
    return metrics.bootstrap(order[who] < 0, who)


pairs = {
    "visible, visible again": (seen_visible[:, 0], seen_visible[:, 1]),
    "near infrared, again": (seen_near[:, 0], seen_near[:, 1]),
    "visible, near infrared": (seen_visible[:, 0], seen_near[:, 0]),
    "visible, thermal": (seen_visible[:, 0], seen_thermal[:, 0]),
}

# %% mystnb={"figure": {"caption": "The brightness of a garment in one image (across) and in another (up). Top: within a spectrum the two agree. Bottom: across spectra a bright garment may be dark or bright, and the points scatter far more widely. Circles: upper garment; triangles: lower.", "name": "fig-spectra-brightness"}, "image": {"alt": "Four scatter plots. In the two upper ones the points lie close to a rising diagonal; in the two lower ones they scatter over most of the square."}}
figure, grid = plt.subplots(2, 2, figsize=(5.4, 5.6), layout="constrained")
for axes, (name, (x, y)) in zip(grid.flat, pairs.items(), strict=True):
    for garment, marker in enumerate("o^"):
        style = {"marker": marker, "color": plots.SERIES[garment], "s": 14, "alpha": 0.7}
        axes.scatter(x[:, garment], y[:, garment], **style)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.set_title(f"{name}\nr = {correlation(x, y).mean:.2f}")
figure.supxlabel("grey in one image")
figure.supylabel("grey in the other")
plt.show()

# %% tags=["hide-input"]
lines = ["| Two images | Correlation of grey | Brighter garment flips |", "|---|---|---|"]
for name, (x, y) in pairs.items():
    r, flip = correlation(x, y), flips(x, y)
    lines.append(
        f"| {name} | {r.mean:.2f} ({r.low:.2f} to {r.high:.2f}) "
        f"| {100 * flip.mean:.0f} % ({100 * flip.low:.0f} to {100 * flip.high:.0f}) |"
    )
Markdown("\n".join(lines))

# %% tags=["hide-input"]
same, across = (100 * flips(*pairs[name]).mean for name in ("visible, visible again", "visible, near infrared"))
Markdown(
    f"In {across:.0f} % of people the garment that is the brighter one in the visible image is"
    " the darker one in the near infrared; between two visible images that happens in"
    f" {same:.0f} %. A coin would flip half.\n\nThis is put in by hand. The knob"
    " `reflectance_shift` goes from 0 (infrared reflectance follows visible brightness) to 1"
    f" (independent of it), and stands at {easy.knobs.reflectance_shift} in `easy` and at"
    f" {hard.knobs.reflectance_shift} in `hard`. How large it is on a street we have not measured."
)

# %% [markdown]
# What does that do to matching? Take the plainest descriptions of a crop: its pixels in a coarse grid, and its
# histogram of colours. Rank one image of everybody against other images, within a spectrum and across. {term}`Rank-1
# <rank-1>` is the share of queries whose nearest image shows the right person; the interval resamples people.


# %%
def thumbnail(planes):
    """Return the mean of each cell of a 24 x 12 grid, (N, 288), from (N, 1, H, W)."""
    return functional.interpolate(planes, size=(24, 12), mode="area").flatten(1)


def luma(images):
    """Return the grey of (N, 3, H, W) images, (N, 1, H, W)."""
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def pixels(dataset, records, images):
    return thumbnail(luma(images))


def colours(dataset, records, images):
    """A histogram of 16 bins for each channel."""
    bins = (16 * images).long().clamp(max=15)
    shares = [(bins == b).float().mean((2, 3)) for b in range(16)]
    return torch.cat(shares, dim=1)


# %%
@cache
def features_of(shortcut, dataset, records):
    """Return a shortcut's features, (N, D), of a tuple of records."""
    store = cached(dataset, records, progress=False)
    parts = store.batches(256, settings.device)
    return torch.cat([shortcut(dataset, records[rows], images) for rows, images in parts])


def describe(shortcut, dataset, trial):
    """Return the features of a trial's queries and of its gallery."""
    return [features_of(shortcut, dataset, tuple(side)) for side in trial]


def rank_by(shortcut, dataset, trial):
    """Return rank-1 and mAP of a shortcut on a trial, with their intervals over people."""
    people = identities_and_cameras(trial)
    query, gallery = describe(shortcut, dataset, trial)
    found = metrics.evaluate_features(query, gallery, *people, protocol=dataset.protocol)
    values = found.per_query_rank1, found.per_query_ap
    return tuple(metrics.bootstrap(value, people[0][found.valid]) for value in values)


def percent(interval):
    """Write an interval as percent."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


# %% tags=["hide-input"]
images_of = {modality: of_modality(easy.test, modality) for modality in Modality}
directions = [(VISIBLE, VISIBLE), (INFRARED, INFRARED), (VISIBLE, INFRARED), (INFRARED, VISIBLE)]
lines = ["| Query, gallery | pixels, rank-1 % | colours, rank-1 % |", "|---|---|---|"]
for first, second in directions:
    trial = Trial(images_of[first][:1000:2], images_of[second][1::2])
    cells = [percent(rank_by(shortcut, easy, trial)[0]) for shortcut in (pixels, colours)]
    lines.append(f"| {first.name.lower()}, {second.name.lower()} | {' | '.join(cells)} |")
floor = metrics.chance(*identities_and_cameras(trial)).independent.rank1
Markdown("\n".join([*lines, f"| chance | {percent(floor)} | {percent(floor)} |"]))

# %% [markdown]
# {numref}`fig-spectra-brightness` and this table say the same; compare the rows. Within one spectrum even pixels find
# people, in spite of other poses and backgrounds; across spectra less is left. This gap is what a network has to learn
# to bridge, and what an attack on it tries to open again.

# %% [markdown]
# ## The benchmarks, and the people in them
#
# Published methods are compared on three data sets {cite}`wu2017sysu,nguyen2017regdb,zhang2023deen`. *Infrared* means
# two things among them: SYSU-MM01 and LLCM use near infrared, which is reflectance under a lamp; RegDB uses thermal. A
# method that does well on one kind has not been shown to work on the other. The table gives people for training / test,
# cameras visible + infrared, and the modality of the queries in the direction that is reported first.

# %% tags=["hide-input"]
from vireid_lite.data.benchmarks import check as known
from vireid_lite.data.benchmarks import llcm, regdb, sysu

people = {
    "SYSU-MM01": [sum(known.SYSU_KNOWN[part][0] for part in ("train", "val")), known.SYSU_KNOWN["test"][0]],
    "RegDB": [known.REGDB_KNOWN[0], known.REGDB_KNOWN[0]],
    "LLCM": list(known.LLCM_IDENTITIES.values()),
}
images = {"SYSU-MM01": known.SYSU_IMAGES, "RegDB": 2 * known.REGDB_IMAGES, "LLCM": known.LLCM_IMAGES}
cameras = {
    "SYSU-MM01": [sysu.VISIBLE_CAMERAS["all"], sysu.INFRARED_CAMERAS],
    "RegDB": [(1,), (1,)],
    "LLCM": list(llcm.CAMERAS.values()),
}
readers = {"SYSU-MM01": sysu.SYSU, "RegDB": regdb.RegDB, "LLCM": llcm.LLCM}
lines = [
    "| Benchmark | Infrared | People | Images | Cameras | Query |",
    "|---|---|---|---|---|---|",
]
for name, reader in readers.items():
    cells = [
        name,
        "thermal" if name == "RegDB" else "near",
        "{} / {}".format(*people[name]),
        f"{images[name]:,}",
        "{} + {}".format(*map(len, cameras[name])),
        reader.default_query.name.lower(),
    ]
    lines.append(f"| {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# The directions are not interchangeable. SYSU-MM01 has one official direction, infrared {term}`query` against visible
# {term}`gallery`, where a query of camera 3 skips camera 2 because both stand in one room (the {term}`camera rule`).
# RegDB is reported both ways. LLCM's authors publish both, but their code for the second ranks something else than its
# name says; [](../book/data.md) tells how, with the licences, the layouts and where to ask for a copy.
#
# **These are pictures of people.** Each of the three is given out against a signed agreement or form, which binds
# whoever holds a copy: read yours before you show a page that was built with it. Nothing of them is in this project: no
# image, no network and no perturbation made from them, and a {term}`run card` holds scores alone. The task itself can
# be used to follow somebody who never agreed to it. That is a reason to know how far such a system can be trusted, and
# a reason to work on rendered people wherever they will do.

# %% [markdown]
# ## A real pair
#
# If you have real images of your own, this page shows some of them here and tries the shortcuts below on them:
# [aligned pairs](../book/data.md) or your copy of a benchmark.

# %% mystnb={"figure": {"caption": "Your own images: visible on the left, infrared on the right.", "name": "fig-spectra-own"}, "image": {"alt": "Up to four rows, each with a visible and an infrared crop from the reader's own data set."}}
worlds = {"easy": easy, "hard": hard}
if settings.dataset != "synthetic":
    where = settings.dataset, settings.data_root
    real = worlds[settings.dataset] = tier_dataset(settings.tier, *where, seed=settings.seed)
    query, gallery = real.trials()[0]
    plots.sample_sheet(real, [*query, *gallery], identities=4, images=1)
    plt.show()

# %% tags=["hide-input"]
notes = {
    "synthetic": "None here: `-p DATASET paired_folder -p DATA_ROOT FOLDER` shows yours.",
    "paired_folder": (
        "What is measured below is aligned-pair matching, never re-identification: both crops of a"
        " pair show the same instant and pose. Keep to the licence of your images; a crop of a"
        " CC BY-NC-SA set stays under that licence wherever it is shown."
    ),
}
licensed = "Your copy's agreement binds you: this page shows real people, and stays on your machine."
Markdown(notes.get(settings.dataset, licensed))

# %% [markdown]
# ## What the synthetic set shares with real data, and what not
#
# | It shares | It does not share |
# |---|---|
# | two spectra with a gap between them | the size of that gap, which nobody measured here |
# | several cameras with their own light, blur and noise | real sensors, lenses and compression |
# | people told apart by build, clothes, hair and what they carry | faces, gait, real cloth, crowds |
# | other poses, views and framing in every image | the ways in which collected data are biased |
# | test people whom training never saw | changes of clothes, seasons, and years |
#
# So a result on it can show that a mechanism occurs, or that a general statement is wrong. It cannot say that a number
# published on SYSU-MM01, RegDB or LLCM holds or fails.
#
# A rendered set has a danger of its own: its maker may leave a trace in it that no street would, and a network finds
# every trace. So we look for the traces first.

# %% [markdown]
# ## Shortcuts
#
# A *shortcut* {cite}`geirhos2020shortcut` here is a way to match people across spectra without learning anything. Seven are tried, each as a
# feature that is ranked by Euclidean distance:
#
# - **pixels**: the grey of a coarse grid, as above; and **contrast**: the same after every image is brought to mean
#   zero and length one, which forgives exposure;
# - **edges**: how much grey changes in each cell, brought to mean zero and length one;
# - **silhouette**: how much of each cell the person fills. The mask is the renderer's own and exact (occluding objects
#   left out), so this is more than any camera would give away;
# - **colours**: the histogram from above;
# - **background**: the outermost columns of the crop, which rarely hold anything of the person;
# - **untrained network**: the network of [chapter 3](03_training), a small AGW {cite}`ye2022agw`, with random weights.


# %%
def unit(features):
    """Return each row with mean zero and length one."""
    features = features - features.mean(1, keepdim=True)
    return functional.normalize(features)


def contrast(dataset, records, images):
    return unit(thumbnail(luma(images)))


def edges(dataset, records, images):
    grey = luma(images)
    down, across = grey.diff(dim=2).abs()[..., 1:], grey.diff(dim=3).abs()[:, :, 1:]
    return unit(thumbnail(down + across))


def silhouette(dataset, records, images):
    masks = np.stack([body_map(dataset, record, (96, 48)) > 0 for record in records])
    return thumbnail(torch.from_numpy(masks)[:, None].float()).to(images.device)


def background(dataset, records, images):
    strip = max(1, images.shape[3] // 16)
    grey = luma(images)
    sides = torch.cat([grey[..., :strip], grey[..., -strip:]], dim=3)
    return unit(functional.interpolate(sides, size=(24, 2), mode="area").flatten(1))


torch.manual_seed(settings.seed)
untrained = models.build("agw", num_identities=2, backbone="lite").to(settings.device).eval()


@torch.no_grad()
def network(dataset, records, images):
    return untrained.embed(images.contiguous(), records[0].modality)


shortcuts = {
    "pixels": pixels,
    "contrast": contrast,
    "edges": edges,
    "silhouette": silhouette,
    "colours": colours,
    "background": background,
    "untrained network": network,
}

# %% mystnb={"figure": {"caption": "What three of the shortcuts see of one person, visible above and near infrared below. The outline is what the two rows have most in common.", "name": "fig-spectra-views"}, "image": {"alt": "Two rows of four pictures: a crop, its coarse grey grid, its coarse edge grid and its coarse silhouette. The two white silhouettes resemble each other; the two grey grids and the two edge grids do much less."}}
one_person = [images_of[modality][0] for modality in Modality]
figure, grid = plt.subplots(2, 4, figsize=(5.4, 5.6), gridspec_kw=close)
for row, record in zip(grid, one_person, strict=True):
    plots.show_crop(row[0], easy.read(record))
    row[0].set_ylabel(record.modality.name.lower())
    for axes, name in zip(row[1:], ("contrast", "edges", "silhouette"), strict=True):
        view = features_of(shortcuts[name], easy, (record,))
        axes.imshow(view.reshape(24, 12).cpu(), cmap="gray")
        axes.set(xticks=[], yticks=[])
for axes, name in zip(grid[0], ("crop", "contrast", "edges", "silhouette"), strict=True):
    axes.set_title(name)
plt.show()

# %% [markdown]
# Each shortcut ranks all images of one modality against all of the other, in both directions, on test people. A score
# is called *above* chance where it lies above the interval of the {term}`chance level` and its own interval excludes
# the chance mean; *unclear* where only the first holds.


# %%
def official_trial(dataset, query_modality, most=1000):
    """Return the first trial, its queries thinned to `most` at even distances."""
    trial = dataset.trials(query_modality)[0]
    return trial._replace(query=trial.query[:: -(-len(trial.query) // most)])


scores, floors = {}, {}  # by data set, direction (and shortcut): (rank-1, mAP)
for world, dataset in worlds.items():
    for modality in Modality:
        trial = official_trial(dataset, modality)
        level = metrics.chance(*identities_and_cameras(trial), protocol=dataset.protocol)
        floors[world, modality] = level.independent.rank1, level.independent.mAP
        for name, shortcut in shortcuts.items():
            if name != "silhouette" or dataset.name == "synthetic":
                scores[world, modality, name] = rank_by(shortcut, dataset, trial)

# %% [markdown]
# Two rows are trained networks, and come from committed run cards rather than from this run: the {term}`victim` of
# [chapter 3](03_training), which later chapters attack, and the same network trained on labels that were shuffled over
# the images {cite}`zhang2017rethinking`. That one had nothing to learn about anybody, so one expects it at chance. Above it, either training or
# evaluation leaks, or its filters pass on what the shortcuts use. The intervals resample people, on the mean over the
# cards' seeds.

# %%
from vireid_lite.study.cards import read_cards, stale_note
from vireid_lite.chapters.costs import COSTS

learned = {"shuffled labels": "shuffled-labels", "trained victim": "victim"}
planned = [("easy", "shuffled labels"), ("easy", "trained victim"), ("hard", "trained victim")]
command = "vireid-lite campaign book/campaigns/victims.toml"
used = []
for world, name in planned:
    population = {"difficulty": world, "seed": settings.seed, "thermal": False}
    cards = [
        card
        for card in read_cards(COSTS.parent, kind=learned[name], tier=settings.tier)
        if population.items() <= card["dataset"].items()
    ]
    used += cards
    for modality in Modality if cards else ():
        runs = [card["scores"][direction_name(modality)] for card in cards]
        counts = runs[0]["identity_queries"]
        rank1, ap = (np.mean([run[f"identity_{key}"] for run in runs], axis=0) for key in ("rank1", "AP"))
        scores[world, modality, name] = tuple(
            metrics.bootstrap(values, np.arange(len(counts)), counts) for values in (rank1, ap)
        )


# %% mystnb={"figure": {"caption": "Rank-1 of every shortcut and, in the last two rows, of two trained networks, with 95 % intervals over people; circles: visible query, triangles: infrared query; grey band: the chance interval. A shortcut whose interval reaches out of the band knows something about who is who without having learned it.", "name": "fig-spectra-shortcuts"}, "image": {"alt": "Dot plots, one panel per data set, one row per shortcut. A grey band at the left edge is chance; intervals that end to the right of it belong to shortcuts, and at the bottom to trained networks where their cards are there."}}
names = [*shortcuts, *learned]
shape = {"figsize": (4.8, 3.4 * len(worlds)), "sharex": True, "layout": "constrained"}
figure, panels = plt.subplots(len(worlds), 1, **shape)
for axes, world in zip(panels, worlds, strict=True):
    band = floors[world, VISIBLE][0]
    axes.axvspan(100 * band.low, 100 * band.high, color=plots.CHANCE, alpha=0.25, lw=0)
    for place, name in enumerate(names):
        for modality, marker, shift in ((VISIBLE, "o", -0.16), (INFRARED, "^", 0.16)):
            if (world, modality, name) in scores:
                mean, low, high = 100 * np.array(scores[world, modality, name][0])
                colour, y = plots.COLOURS[modality], place + shift
                axes.plot([low, high], [y, y], color=colour)
                axes.plot(mean, y, marker, color=colour)
        if (world, VISIBLE, name) not in scores:
            note = "pending" if (world, name) in planned else "not run"
            axes.text(100 * band.high + 0.5, place, note, va="center", style="italic")
    axes.set(yticks=range(len(names)), yticklabels=names, title=world)
    axes.set(xlim=(-0.7, None), ylim=(len(names) - 0.5, -0.5))
panels[-1].set_xlabel("rank-1 (%)")
plt.show()


# %% tags=["hide-input"]
def verdict(score, floor):
    if score.mean <= floor.high:
        return "at chance"
    return "above" if score.low > floor.mean else "unclear"


def verdicts(world, name, which):
    """Return the verdicts of both directions, and words with their numbers; which: 0 rank-1, 1 mAP."""
    found, words = set(), []
    for modality in Modality:
        score, floor = scores[world, modality, name][which], floors[world, modality][which]
        found.add(verdict(score, floor))
        words.append(f"{modality.name.lower()} query {percent(score)} {verdict(score, floor)}")
    return found, "; ".join(words)


lines = []
for world in worlds:
    lines.append(f"**{world}**, rank-1 in percent, chance {percent(floors[world, VISIBLE][0])}:\n")
    tried = [name for name in shortcuts if (world, VISIBLE, name) in scores]
    quiet = [name for name in tried if verdicts(world, name, 0)[0] == {"at chance"}]
    lines += [f"- {name}: {verdicts(world, name, 0)[1]}" for name in tried if name not in quiet]
    lines.append(f"- at chance both ways: {', '.join(quiet) or 'none'}")
    mAP = [name for name in tried if "above" in verdicts(world, name, 1)[0] - verdicts(world, name, 0)[0]]
    level = percent(floors[world, VISIBLE][1])
    lines += [f"- by mAP (chance {level}), {name}: {verdicts(world, name, 1)[1]}" for name in mAP]
    lines.append("")
Markdown("\n".join(lines))

# %% tags=["hide-input"]
lines = []
for world, name in planned:
    if (world, VISIBLE, name) in scores:
        lines.append(f"- {name}, {world}: rank-1 {verdicts(world, name, 0)[1]}.")
    else:
        lines.append(f"- {name}, {world}: pending; `{command}` makes its run cards.")
for world in ("easy", "hard"):
    if (world, VISIBLE, "trained victim") in scores:
        for modality in Modality:
            best = max(shortcuts, key=lambda name: scores[world, modality, name][0].mean)
            reached = [percent(scores[world, modality, name][0]) for name in (best, "trained victim")]
            lines.append(
                f"- {world}, {modality.name.lower()} query: the strongest shortcut, {best}, reaches"
                f" {reached[0]} where the trained victim reaches {reached[1]}."
            )
Markdown("\n".join([*lines, "", stale_note(used)]))

# %% tags=["hide-input"]
shared = {r.identity for r in easy.train} & {r.identity for r in easy.test}
control = [("easy", m, "shuffled labels") for m in Modality]
bare = " and ".join(percent(scores["easy", m, "untrained network"][0]) for m in Modality)
if not all(key in scores for key in control):
    text = "The control with shuffled labels is pending."
elif all(verdict(scores[key][0], floors[key[:2]][0]) == "at chance" for key in control):
    text = "The control with shuffled labels sits at chance, as it should."
else:
    text = (
        "**The control with shuffled labels does not sit at chance in both directions.** People shared by training and"
        f" test: {len(shared)}, so no label of a test person was seen. An untrained network, which has seen no label at"
        f" all, gets {bare}. Our reading, not tested yet: to memorise which label an image was dealt, a network must"
        " tell images apart, and what tells images apart (outline, cut, pattern) tells people apart as well; the row"
        " silhouette shows how much there is to find. Labels dealt anew at every step, which leave nothing to memorise,"
        " would decide it. Read the trained victim above this row, not above zero."
    )
Markdown(text)

# %% [markdown]
# The outline of a person is no artefact: build, coat or skirt, hat and bag *are* part of who is seen, in any spectrum,
# and a network may use them. But a victim's score on this set has to be read above what the outline alone gives, and a
# set in which outlines tell people apart says little about data in which they do not. The hard set is
# there for that; compare its silhouette row.
#
# All of it, with {term}`mAP`:

# %% tags=["hide-input", "hide-output"]
lines = ["| Data | Matched by | Query | rank-1 % | mAP % |", "|---|---|---|---|---|"]
for world in worlds:
    for name in names:
        for modality in Modality:
            cells = scores.get((world, modality, name))
            words = (
                [percent(cell) for cell in cells]
                if cells
                else ["pending" if (world, name) in planned else "not run"] * 2
            )
            lines.append(f"| {world} | {name} | {modality.name.lower()} | {' | '.join(words)} |")
    for modality in Modality:
        words = [percent(cell) for cell in floors[world, modality]]
        lines.append(f"| {world} | chance | {modality.name.lower()} | {' | '.join(words)} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## What could fool us
#
# - **Luck comes in lumps.** The chance interval treats queries as independent, but images of one person look alike, so
#   one lucky neighbour may bring several hits. A stricter floor keeps every distance and deals the names of the
#   gallery's people anew: whatever agreement is left is luck. The table below this list uses it.
# - **We found what we looked for.** A few ways of matching are a few, and a network searches among millions. That a
#   shortcut is not in the table does not mean that there is none. Shuffled labels can show that
#   something gets through, not what.
# - **The gap is a knob.** Every correlation above follows from numbers in `Knobs`. They were chosen on clean validation
#   accuracy, not measured on cloth.
# - **One population.** `SEED` draws these people, and another seed draws others. The intervals over people say how much
#   that may matter, and only for people drawn by the same renderer.


# %%
def dealt(shortcut, dataset, query_modality, repeats=2000):
    """Return rank-1, and the 97.5 % point of rank-1 with the gallery's names dealt anew."""
    trial = official_trial(dataset, query_modality)
    query_people, gallery_people, *_ = identities_and_cameras(trial)
    query, gallery = describe(shortcut, dataset, trial)
    nearest = gallery_people[torch.cdist(query, gallery).argmin(1).cpu()]
    people = np.unique(gallery_people)
    rng, place = np.random.default_rng(0), np.searchsorted(people, nearest)
    deals = (rng.permutation(people)[place] for _ in range(repeats))
    luck = np.quantile([(names == query_people).mean() for names in deals], 0.975)
    return (nearest == query_people).mean(), luck


# %% tags=["hide-input"]
lines = ["| Easy, rank-1 % (luck up to) | visible query | infrared query |", "|---|---|---|"]
beaten = 0
for name, shortcut in shortcuts.items():
    found = [dealt(shortcut, easy, modality) for modality in Modality]
    beaten += sum(score > luck for score, luck in found)
    cells = [f"{100 * score:.1f} ({100 * luck:.1f})" for score, luck in found]
    lines.append(f"| {name} | {' | '.join(cells)} |")
looks = len(shortcuts) * len(Modality)
lines.append(
    f"\n{beaten} of {looks} values exceed what such luck reaches in 97.5 % of deals. Of {looks} looks without any"
    f" information, {0.025 * looks:.2f} would do so on average."
)
Markdown("\n".join(lines))

# %% [markdown]
# ## Takeaways
#
# - A visible and a near-infrared image are two reflections, a thermal image is an emission; colour is lost to both, and
#   which garment is the brighter one often changes.
# - What survives is shape: outlines in every spectrum, edges and patterns in the near infrared.
# - A score on this set means what it is above the shortcuts, not what it is above zero.
# - Rendered people show mechanisms. Numbers on the benchmarks need the benchmarks, and those are pictures of people.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: is it the colour?
# :label: ex-spectra-grey
# ```
# Suppose the colour histogram is of little use across spectra only because the infrared image has no colours to
# match. Turn the visible images grey first, and rank by the histogram of grey. Say what you expect before you run it.
#
# **Check yourself.** Which outcome would show that missing colours are the whole trouble?
#
# - (a) Grey across spectra ranks better than colours across spectra.
# - (b) Grey across spectra ranks above chance.
# - (c) Grey across spectra ranks as well as grey within one spectrum.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check

self_check(None, "ex-spectra-grey", "c5f95b42")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-spectra-grey
# :class: dropdown
# ```
# Self-check: **c**.
#
# Give both sides three equal channels, then use the histogram as it is.


# %% tags=["solution"]
def greys(dataset, records, images):
    return colours(dataset, records, luma(images).expand(-1, 3, -1, -1))


for modality in Modality:
    score, _ = rank_by(greys, easy, official_trial(easy, modality))
    floor = floors["easy", modality][0]
    print(direction_name(modality), percent(score), verdict(score, floor), sep=": ")
trial = Trial(images_of[VISIBLE][:1000:2], images_of[VISIBLE][1::2])
print("grey within the visible:", percent(rank_by(greys, easy, trial)[0]))

# %% [markdown] tags=["solution"]
# The last line is the bar: there neither side has colours, and the spectrum is the same. What lies between it and the
# lines above is not for want of colours: the greys of one person are other greys in the other spectrum.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: which shortcuts does a thermal camera leave?
# :label: ex-spectra-thermal
# ```
# Render the test people with a thermal camera and rank by contrast, edges and silhouette, beside the same people in the
# near infrared. Which shortcut hardly changes, and why? Which one breaks down?
#
# **Check yourself.** Which of the three cannot depend on the spectrum, by its construction?
#
# - (a) Contrast.
# - (b) Silhouette.
# - (c) Edges.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-spectra-thermal", "590ec598")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-spectra-thermal
# :class: dropdown
# ```
# Self-check: **b**.
#
# A small set is enough: three images of each test person in either spectrum.


# %% tags=["solution"]
def small_world(**options):
    few = {"num_identities": 2, "val_identities": 2, "images_per_modality": 3}
    return SyntheticVI(**few, size=easy.size, seed=settings.seed, **options)


def compare(settings_by_name, chosen=("contrast", "edges", "silhouette")):
    """Return a table of rank-1 in percent, visible query, in some small worlds."""
    lines = [f"| rank-1 % | {' | '.join(chosen)} |", "|---" * (len(chosen) + 1) + "|"]
    for name, options in settings_by_name.items():
        world = small_world(**options)
        trial = world.trials(VISIBLE)[0]
        cells = [percent(rank_by(shortcuts[each], world, trial)[0]) for each in chosen]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return Markdown("\n".join(lines))


compare({"near infrared": {"thermal": False}, "thermal": {"thermal": True}})

# %% [markdown] tags=["solution"]
# The silhouette does not know the spectrum: the same bodies in the same poses give the same masks. Edges live on
# patterns and on seams between light and dark cloth, which have one temperature; so they have the most to lose.
#
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-spectra-claim
# ```
# *"Pixels fail across spectra because contrast flips. Were it not for that, they would match people as well as within
# one spectrum."* Build the world in which contrast does not flip, and decide whether the claim stands. Then find what
# else keeps pixels from matching.
#
# **Check yourself.** Which worlds does a sentence with "because" need, beside the one as it is?
#
# - (a) One without the cause, and one without the other causes.
# - (b) One without the cause.
# - (c) One with more people.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-spectra-claim", "20185202")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-spectra-claim
# :class: dropdown
# ```
# Self-check: **a**.
#
# `reflectance_shift=0` lets infrared reflectance follow visible brightness, and `pattern_loss=0` keeps every pattern.
# Poses, views, framing and clutter have knobs too.

# %% tags=["solution"]
no_flip = {"reflectance_shift": 0.0, "pattern_loss": 0.0}
moving = ("pose_spread", "view_spread", "back_views", "crop_jitter", "clutter")
still = dict.fromkeys(moving, 0.0)
compare({"as it is": {}, "no flips": no_flip, "still": still, "both": no_flip | still})

# %% tags=["solution"]
world = small_world()
shown = of_modality(world.test, VISIBLE)  # three images of each person
trial = Trial(shown[::3], [record for place, record in enumerate(shown) if place % 3])
print("contrast within the visible, as it is:", percent(rank_by(contrast, world, trial)[0]))

# %% [markdown] tags=["solution"]
# Compare "no flips" with "as it is", and with matching the same people within the visible. What the flips explain is the
# difference of the first two; what is left to the third has other causes: the light differs too (a lamp beside the lens instead of sun from the
# side), and poses, views and backgrounds change whatever the spectrum. A claim with "because" needs the world without
# the cause, and the world with the cause alone.
#
# The last column is a warning of its own: where nobody moves, see how much the outline alone gives away. The renderer draws
# one body with one outline, and the spread of poses and views is all that hides it.
#
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`wu2017sysu`,
# {cite:t}`nguyen2017regdb`, {cite:t}`zhang2023deen`, {cite:t}`ye2022agw`, {cite:t}`geirhos2020shortcut`,
# {cite:t}`zhang2017rethinking`.
