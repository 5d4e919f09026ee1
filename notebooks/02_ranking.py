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
# # Ranking and how to measure it
#
# A re-identification network does not say who a person is. It puts a list of images in order. This chapter turns such
# lists into numbers, by hand first, and then asks what a number may be used for: which images were in the list, what
# a list without any information would have scored, and how far the number moves when nothing has changed.

# %% [markdown]
# ## What you will be able to do
#
# - compute {term}`CMC`, {term}`AP`, {term}`mAP` and {term}`mINP` of a ranked list by hand;
# - say which {term}`gallery` images a protocol leaves out, and what changes when that is forgotten;
# - compute the {term}`chance level` and the {term}`arithmetic minimum` of any setting, and read a published score
#   against them;
# - keep the spread over {term}`trials <trial>`, people and seeds apart, and say how many people a claim needs;
# - recognise mistakes that published evaluation code makes, and say how large each can be.

# %% [markdown]
# ## What it costs
#
# Nothing is trained: features are simulated, so every tier takes as long as `lite`, on a CPU. On Colab the next cell
# installs the package; the version of torch that the runtime brings is kept. Everywhere else it does nothing.

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

costs = Costs("02_ranking")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite (two CPU cores), standard (one GPU) or full (one GPU, licensed data)
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of everything random here
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes
REPEATS: int = 200  # random rankings behind a chance level; large settings take fewer

# %%
settings = check_parameters(globals(), costs)

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from vireid_lite import metrics
from vireid_lite.chapters import plots
from vireid_lite.chapters.words import number_table as table
from vireid_lite.data import Modality

plots.set_style()


def percent(fraction, digits=2):
    """Write a fraction, or an array of them, in percent without the sign."""
    values = np.atleast_1d(fraction)
    return ", ".join(f"{100 * value:.{digits}f}" for value in values)


# %% [markdown]
# ## The question
#
# One infrared {term}`query` shows person A. Ten visible images form the gallery, four of them of A. A network has
# given every gallery image a distance to the query; sorted by it, the gallery is a ranked list. Is it a good one?

# %%
people = np.array(list("BACAABDACB"))
distance = np.array([0.3, 0.6, 0.8, 0.35, 0.95, 0.2, 0.7, 0.4, 0.5, 0.55])

order = np.argsort(distance, kind="stable")
people[order]

# %% [markdown]
# Everything that follows depends on one thing alone: the ranks at which the right matches stand.

# %%
right = people[order] == "A"
rank = np.flatnonzero(right) + 1  # where the right matches stand, from 1
found = np.arange(1, len(rank) + 1)  # right matches down to each of them

by_hand = {
    "rank-1": float(rank[0] <= 1),
    "CMC at 5": float(rank[0] <= 5),
    "AP": (found / rank).mean(),
    "INP": len(rank) / rank[-1],
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One ranked list. Right matches are solid with a tick, wrong ones dashed with a cross. Below each right match stands its precision, the share of right images down to it; the average precision is the mean of these bars, and looks at every right match. CMC looks at the first right match only, INP at the last.", "name": "fig-ranking-one-list"}, "image": {"alt": "A query tile labelled A, then ten tiles in ranked order with letters. Four carry a tick, at ranks three, four, seven and ten; under each of these a bar shows its precision. Arrows name the first right match as what CMC sees and the last as what INP sees."}}
figure, (tiles, bars) = plt.subplots(
    2, 1, figsize=(6.4, 3.6), sharex=True, height_ratios=[1, 1.5], layout="constrained"
)
for place, letter in [(-0.6, "A"), *enumerate(people[order], 1)]:
    is_query, is_right = place < 1, letter == "A"
    colour = "black" if is_query else plots.RIGHT if is_right else plots.WRONG
    style = "-" if is_query or is_right else "--"
    tiles.add_patch(plt.Rectangle((place - 0.4, 0), 0.8, 1, fill=False, lw=2, ec=colour, ls=style))
    tiles.text(place, 0.5, letter, ha="center", va="center", fontsize=14)
    mark = "query" if is_query else f"{place} {'✓' if is_right else '✗'}"
    tiles.text(place, 1.1, mark, ha="center", va="bottom", fontsize=9, color=colour)
tiles.set(ylim=(-0.1, 1.6), xlim=(-1.2, 10.6))
tiles.axis("off")
bars.bar(rank, 100 * found / rank, width=0.6, color=plots.RIGHT)
for place, share in zip(rank, found / rank, strict=True):
    bars.text(place, 100 * share + 2, f"{100 * share:.0f}", ha="center", fontsize=9)
for place, text in ((rank[0], "first: CMC"), (rank[-1], "last: INP")):
    arrow = {"arrowstyle": "->", "color": "black"}
    bars.annotate(text, (place, 50), (place, 82), ha="center", arrowprops=arrow)
bars.set(xlabel="rank", ylabel="precision (%)", ylim=(0, 100), xticks=range(1, 11))
plt.show()

# %% [markdown]
# The package gives the same numbers. It takes a whole matrix of distances, one row a query; here there is one row.

# %%
names = np.unique(people)
scores = metrics.evaluate(
    distance[None],
    query_ids=np.flatnonzero(names == "A"),
    gallery_ids=np.searchsorted(names, people),
    protocol="regdb",
)
by_package = [scores.rank1, scores.cmc[4], scores.mAP, scores.mINP]
np.testing.assert_allclose(list(by_hand.values()), by_package)
table(
    ["one query", "by hand", "metrics"],
    [[name, f"{by_hand[name]:.4f}", f"{same:.4f}"] for name, same in zip(by_hand, by_package, strict=True)],
)

# %% [markdown]
# Over many queries each becomes a mean. With the rank {math}`r_{q,1} < \dots < r_{q,P_q}` of query {math}`q`'s
# {math}`P_q` right matches, {math}`Q` queries that have any, and {math}`[\cdot]` for 1 where it holds and 0 elsewhere,
#
# ```{math}
# \begin{aligned}
# \mathrm{CMC}(k) &= \frac1Q \sum_q [\, r_{q,1} \le k \,], \\
# \mathrm{mAP} &= \frac1Q \sum_q \frac1{P_q} \sum_{i=1}^{P_q} \frac{i}{r_{q,i}}, \\
# \mathrm{mINP} &= \frac1Q \sum_q \frac{P_q}{r_{q,P_q}} .
# \end{aligned}
# ```
#
# {term}`rank-1` is CMC(1). mAP came into use when galleries began to hold several images of a person
# {cite}`zheng2015market`. mINP {cite}`ye2022agw` asks how far one has to read to find *every* image of the person. The
# three can disagree: a list that begins right and ends badly has a high rank-1 and a low mINP.
#
# On the book's page the list above can be put in another order: drag a tile, or choose one and press an arrow key. Bring
# the first A to the top: rank-1 and AP rise, INP stays. Then bring the last A up to rank 8: INP rises, CMC stays.
#
# <!-- move: tiles -->

# %% [markdown]
# ## Images or identities
#
# RegDB's CMC counts images. The official evaluation of SYSU-MM01 {cite}`wu2017sysu` counts *identities*: of each
# person only the first image counts, so that two images of the same wrong person cost one rank, not two. The list above
# starts with two images of B.

# %%
cameras = np.ones(10, dtype=int)  # one visible camera; the query comes from camera 6
same_list = dict(
    distance=distance[None],
    query_ids=np.flatnonzero(names == "A"),
    gallery_ids=np.searchsorted(names, people),
    query_cameras=np.array([6]),
    gallery_cameras=cameras,
)
images = metrics.evaluate(**same_list, protocol="regdb")
identities = metrics.evaluate(**same_list, protocol="sysu")
table(
    ["CMC at", "over images", "over identities"],
    [[k, percent(images.cmc[k - 1], 0), percent(identities.cmc[k - 1], 0)] for k in (1, 2, 3)],
)

# %% [markdown]
# The same list, the same name "rank-2", two numbers. Rank-1, mAP and mINP do not depend on it: AP is computed on the
# full list in both. So a rank-10 may be compared with another rank-10 only if both count the same things.

# %% [markdown]
# ## What a protocol leaves out
#
# On SYSU-MM01 cameras 2 (visible) and 3 (infrared) stand in one room, and a match could be made by the wallpaper. The
# {term}`camera rule` therefore drops, for a query of camera 3, **every** gallery image of camera 2, whoever it shows;
# the code of AGW {cite}`ye2022agw`, the network that both papers of this book attack, does so in one line
# (`eval_metrics.py:31`); the data set's own MATLAB code gives both cameras one location. Three people in the official
# numbering:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The camera rule on a gallery of three people and the four visible cameras. For the query of camera 3 all images of camera 2 are hatched out, right and wrong alike; for the query of camera 6 nothing is.", "name": "fig-ranking-camera-rule"}, "image": {"alt": "A grid with two rows, a query from camera 3 and one from camera 6, both of person 1, and twelve columns, persons 1 to 3 by cameras 1, 2, 4, 5. Person 1's cells carry ticks, the others dots. In the first row the three camera-2 columns are grey and hatched."}}
toy_ids, toy_cameras = np.repeat([1, 2, 3], 4), np.tile([1, 2, 4, 5], 3)
figure, axes = plt.subplots(figsize=(6.4, 1.9))
for row, query_camera in enumerate((3, 6)):
    for column, (person, camera) in enumerate(zip(toy_ids, toy_cameras, strict=True)):
        dropped = query_camera == 3 and camera == 2
        face, hatch = ("#eeeeee", "///") if dropped else ("white", None)
        cell = plt.Rectangle((column, row), 1, 1, facecolor=face, hatch=hatch, ec="#bbbbbb")
        axes.add_patch(cell)
        colour = "#555555" if dropped else plots.RIGHT if person == 1 else "black"
        text = "✓" if person == 1 else "·"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=13)
axes.set(xlim=(0, 12), ylim=(2, 0), yticks=[0.5, 1.5], yticklabels=["camera 3", "camera 6"])
axes.set_xticks(np.arange(12) + 0.5, toy_cameras)
axes.set_xlabel("gallery camera")
axes.set_ylabel("query of\nperson 1")
for person in (1, 2, 3):
    axes.axvline(4 * person, color="black", linewidth=2)
    axes.text(4 * person - 2, -0.1, f"person {person}", ha="center")
axes.grid(False)
plt.show()

# %% [markdown]
# A right match at the top of the list counts for nothing if it stands in camera 2, and a wrong one costs nothing:

# %%
# Nearest: own image in camera 2, then person 2 in camera 2, then own image in camera 1.
toy_distance = np.arange(12.0)[None] + 10
toy_distance[0, [1, 5, 0]] = [0, 1, 2]
gallery_labels = {"gallery_ids": toy_ids, "gallery_cameras": toy_cameras}
first_matches = {
    f"camera {camera}": metrics.evaluate(
        toy_distance,
        [1],
        query_cameras=[camera],
        protocol="sysu",
        **gallery_labels,
    )
    for camera in (3, 6)
}
table(
    ["query", "AP %", "INP %"],
    [[name, percent(one.mAP), percent(one.mINP)] for name, one in first_matches.items()],
)

# %% [markdown]
# Camera 3 ranks three images fewer than camera 6 does, and one of its four right matches is gone.
#
# ### A set of the official size
#
# What follows needs a gallery of the real size. The next cell builds one with SYSU-MM01's totals: 96 test people, 3,803
# infrared queries (1,883 of camera 3 and 1,920 of camera 6), and one image (*single shot*) or ten (*multi shot*) per
# person and visible camera, from cameras 1, 2, 4, 5 (*all search*) or 1 and 2 (*indoor search*). How images divide
# over people is not listed with them; they are spread evenly here. RegDB is 206 people with ten images in each spectrum
# {cite}`nguyen2017regdb`. LLCM {cite}`zhang2023deen` has 351 test people; how many cameras saw each is not stated, so
# the setting called *LLCM-like* assumes five, and 20 infrared images each.

# %%
TEST_PEOPLE = np.arange(96)
SEEN_BY = {1: TEST_PEOPLE[:56], 2: TEST_PEOPLE[:56], 4: TEST_PEOPLE, 5: TEST_PEOPLE[3:]}


def sysu(search="all", shot=1):
    """Return query and gallery identities, query and gallery cameras, of official size."""
    chosen = (1, 2) if search == "indoor" else (1, 2, 4, 5)
    gallery = [(person, camera) for camera in chosen for person in SEEN_BY[camera]]
    gallery_ids, gallery_cameras = np.repeat(sorted(gallery), shot, axis=0).T
    camera_3 = np.full(96, 20)
    camera_3[:32] -= 1  # 1,883 images in all, 1,088 of the 56 people seen indoors
    camera_3[56:61] -= 1
    query_ids = np.concatenate([np.repeat(TEST_PEOPLE, camera_3), np.repeat(TEST_PEOPLE, 20)])
    query_cameras = np.repeat([3, 6], [camera_3.sum(), 20 * 96])
    return query_ids, gallery_ids, query_cameras, gallery_cameras


def llcm_like(people=351, seen=5):
    """Return the same for one visible image per person and camera, LLCM's drawn gallery."""
    query_ids, gallery_ids = np.repeat(np.arange(people), 20), np.repeat(np.arange(people), seen)
    each = np.arange(1, seen + 1)
    return query_ids, gallery_ids, np.tile(np.repeat(each, 20 // seen), people), np.tile(each, people)


regdb_ids = np.repeat(np.arange(206), 10)
SETTINGS = {
    "SYSU all, single": (*sysu("all", 1), "sysu"),
    "SYSU all, multi": (*sysu("all", 10), "sysu"),
    "SYSU indoor, single": (*sysu("indoor", 1), "sysu"),
    "SYSU indoor, multi": (*sysu("indoor", 10), "sysu"),
    "RegDB": (regdb_ids, regdb_ids, None, None, "regdb"),
    "LLCM-like": (*llcm_like(), "llcm"),
}
table(
    ["setting", "queries", "gallery"],
    [[name, len(setting[0]), len(setting[1])] for name, setting in SETTINGS.items()],
)

# %% [markdown]
# And features without a network: a person has a centre that both spectra share, a part that only one spectrum shows,
# and noise, larger in the infrared and larger for some people than for others. `network` stands for a training run: it
# draws the parts that training would. This is a model of features, chosen to score like published networks. It shows
# what an evaluation does; it says nothing about real people.


# %%
def simulate(ids, modality, network=0, cameras=None, room=0.0, private=0.8, noise=1.0):
    """Return unit features (N, 64) for identities (N,) below 500 in one modality.

    room: weight of what the camera's place adds to a feature; cameras 2 and 3 share a place.
    private: weight of what one spectrum alone shows of a person. noise: of single images.
    """
    world = np.random.default_rng([settings.seed, 1])
    shared, blur = world.normal(size=(500, 64)), world.uniform(0.5, 1.5, size=(500, 1))
    rooms = world.normal(size=(10, 64))
    run = np.random.default_rng([settings.seed, 2, network, int(modality)])
    own = run.normal(size=(500, 64))
    size = noise * (1.3 if modality == Modality.INFRARED else 1.0) * blur[ids]
    features = shared[ids] + private * own[ids] + size * run.normal(size=(len(ids), 64))
    if room:
        features += room * rooms[np.where(cameras == 3, 2, cameras)]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


# %% [markdown]
# ### What forgetting the rule changes
#
# Let the features carry a trace of the room, and score one set of them with the rule and without.

# %%
query_ids, gallery_ids, query_cameras, gallery_cameras = sysu()
query = simulate(query_ids, Modality.INFRARED, cameras=query_cameras, room=1.0)
gallery = simulate(gallery_ids, Modality.VISIBLE, cameras=gallery_cameras, room=1.0)

labels = (query_ids, gallery_ids)
kept = metrics.evaluate_features(query, gallery, *labels, query_cameras, gallery_cameras, "sysu")
# A camera number that no rule mentions: the same evaluator, the rule forgotten.
other_camera = np.where(query_cameras == 3, 7, query_cameras)
forgotten = metrics.evaluate_features(query, gallery, *labels, other_camera, gallery_cameras, "sysu")


def camera_3_alone(scores, in_room):
    """Return rank-1 of camera 3's queries whose person camera 2 has seen, or has not."""
    people = query_ids[scores.valid]
    chosen = (query_cameras[scores.valid] == 3) & (np.isin(people, SEEN_BY[2]) == in_room)
    return scores.per_query_rank1[chosen].mean()


effects = {}  # name of a mistake -> (what moves, right score, wrong score)
effects["camera rule forgotten"] = ("mAP", kept.mAP, forgotten.mAP)
table(
    ["%", "with rule", "without"],
    [
        ["rank-1", percent(kept.rank1), percent(forgotten.rank1)],
        ["rank-5", percent(kept.cmc[4]), percent(forgotten.cmc[4])],
        ["mAP", percent(kept.mAP), percent(forgotten.mAP)],
        ["rank-1, camera 3, person in its room", *(percent(camera_3_alone(s, True)) for s in (kept, forgotten))],
        ["rank-1, camera 3, person elsewhere", *(percent(camera_3_alone(s, False)) for s in (kept, forgotten))],
    ],
)

# %% tags=["hide-input"]
there, elsewhere = (camera_3_alone(forgotten, x) - camera_3_alone(kept, x) for x in (True, False))
Markdown(
    f"Without the rule, rank-1 of camera 3's queries moves by {100 * there:+.1f} points for people whom camera 2 has "
    f"seen, and by {100 * elsewhere:+.1f} points for the others, above whom the images of that room crowd. What "
    "comes out in the mean depends on how much of the room the features carry, so a forgotten rule cannot be corrected "
    "afterwards by a factor."
)

# %% [markdown]
# ## Trials
#
# A single-shot gallery holds one image per person and camera, drawn at random. Another draw is another gallery;
# SYSU-MM01 and LLCM report the mean over ten such {term}`trials <trial>`. On RegDB a trial is a split of the people,
# and needs a network of its own. Two simulated networks, B slightly better than A, on the same ten galleries:

# %%
pool = np.repeat(gallery_ids, 20)  # every visible image: 20 per person and camera


def ten_trials(network=0, trials=10, **knobs):
    """Score one simulated network on drawn galleries of SYSU all search, single shot."""
    queries = simulate(query_ids, Modality.INFRARED, network, **knobs)
    images = simulate(pool, Modality.VISIBLE, network, **knobs).reshape(len(gallery_ids), 20, -1)
    results = []
    for trial in range(trials):
        drawn = np.random.default_rng([settings.seed, 4, trial]).integers(20, size=len(gallery_ids))
        chosen = images[np.arange(len(gallery_ids)), drawn]
        cameras = (query_cameras, gallery_cameras)
        results.append(metrics.evaluate_features(queries, chosen, *labels, *cameras, "sysu"))
    return results


trials = {"A": ten_trials(private=0.81), "B": ten_trials(private=0.80)}
rank1 = {name: np.array([scores.rank1 for scores in results]) for name, results in trials.items()}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rank-1 on ten drawn galleries, for two networks. Compare the swing from gallery to gallery with the gap between the networks: comparing A on one trial with B on another can show either order. On the same trial the two move together, which is why comparisons are paired.", "name": "fig-ranking-trials"}, "image": {"alt": "Line chart over ten trials: blue circles for network A and orange triangles for network B rise and fall together, mostly in the same order. Dashed horizontal lines mark the two means, closer together than the swing from trial to trial."}}
figure, axes = plt.subplots(figsize=(6, 2.9))
for (name, values), marker, colour in zip(rank1.items(), "o^", plots.SERIES, strict=False):
    axes.plot(range(1, 11), 100 * values, marker=marker, color=colour, label=f"network {name}")
    axes.axhline(100 * values.mean(), color=colour, linestyle="--", linewidth=1)
axes.set(xlabel="trial (one drawn gallery each)", ylabel="rank-1 (%)", xticks=range(1, 11))
axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
plt.show()

# %% tags=["hide-input"]
gap = rank1["B"] - rank1["A"]
wrong_order = np.mean(rank1["A"][:, None] >= rank1["B"][None])
Markdown(
    f"A: {percent(rank1['A'].mean())} % ± {percent(rank1['A'].std(ddof=1))} over trials; "
    f"B: {percent(rank1['B'].mean())} % ± {percent(rank1['B'].std(ddof=1))}. "
    f"B leads on {int((gap > 0).sum())} of 10 shared galleries, by {percent(gap.mean())} points in the mean. "
    f"Take one trial of each, drawn independently, and A comes out at least level in "
    f"{percent(wrong_order, 0)} % of the {rank1['A'].size ** 2} possible pairs. One trial is a draw."
)

# %% [markdown]
# ### Both directions, by name
#
# A ranking has a direction: infrared queries against a visible gallery, or visible queries against an infrared gallery.
# They are different tasks, and a table has to say which. SYSU-MM01's official direction is infrared to visible. RegDB
# reports both; so does LLCM. In this package the direction is an argument, `query_modality`, and never a constant to
# edit.

# %%
visible, infrared = (simulate(regdb_ids, modality) for modality in Modality)
directions = {
    "visible to infrared": metrics.evaluate_features(visible, infrared, regdb_ids, regdb_ids),
    "infrared to visible": metrics.evaluate_features(infrared, visible, regdb_ids, regdb_ids),
}
table(
    ["query to gallery, %", "rank-1", "mAP", "mINP"],
    [[name, percent(s.rank1), percent(s.mAP), percent(s.mINP)] for name, s in directions.items()],
)

# %% [markdown]
# ## The floor: chance, and below it arithmetic
#
# An attack lowers scores. How low can they go? There are two floors.
#
# - The **{term}`chance level`** is what a ranking without information scores. Its rank-1 is the share of right images
#   in the gallery. It has a sampling interval, because one random ranking is one draw. Two kinds of ranking are
#   uninformative: *independent*, where each query orders the gallery at random, and *collapsed*, where all queries
#   get one and the same random order, as when an attack maps every query to one point. Their means agree; their
#   intervals do not.
# - The **{term}`arithmetic minimum`** is the score with every right match ranked last. Of {math}`n` ranked images,
#   {math}`P` right, the {math}`i`-th right match then stands at {math}`n - P + i`. An attack that knows who is who may
#   push below chance. Nothing can push below this.


# %%
def minimum_by_hand(ranked, matches):
    """Return the AP when all `matches` right images stand at the end of `ranked`."""
    i = np.arange(1, matches + 1)
    return (i / (ranked - matches + i)).mean()


# SYSU indoor, single shot: 56 people, cameras 1 and 2. Camera 3's queries drop camera 2.
camera_6, camera_3 = minimum_by_hand(ranked=112, matches=2), minimum_by_hand(ranked=56, matches=1)
valid = {3: 1088, 6: 1120}  # queries whose person is in the gallery
minimum = (valid[6] * camera_6 + valid[3] * camera_3) / sum(valid.values())

levels, rankings = {}, {}
for name, (q, g, q_cameras, g_cameras, protocol) in SETTINGS.items():
    rankings[name] = int(np.clip(3e8 / (len(q) * len(g)), 10, settings.repeats))
    chosen = {"protocol": protocol, "repeats": rankings[name], "seed": settings.seed}
    levels[name] = metrics.chance(q, g, q_cameras, g_cameras, **chosen)

np.testing.assert_allclose(minimum, levels["SYSU indoor, single"].minimum.mAP)
Markdown(
    f"SYSU indoor, single shot: no ranking at all has an mAP below **{percent(minimum)} %** "
    f"(without the camera rule: {percent(camera_6)} %)."
)


# %%
def hull(level, score):
    """Return the interval that holds both kinds of uninformative ranking."""
    both = [getattr(kind, score) for kind in (level.independent, level.collapsed)]
    return min(each.low for each in both), max(each.high for each in both)


def interval(level, score):
    """Write the mean and the interval."""
    mean = getattr(level.independent, score).mean
    return f"{percent(mean)} ({percent(hull(level, score)[0])}–{percent(hull(level, score)[1])})"


table(
    ["chance, %", "rank-1", "mAP", "least mAP"],
    [
        [name, interval(level, "rank1"), interval(level, "mAP"), percent(level.minimum.mAP)]
        for name, level in levels.items()
    ],
)

# %% tags=["hide-input"]
Markdown(
    "In brackets: where 95 % of single uninformative rankings fall, independent or collapsed, whichever reaches "
    "farther. Simulated with "
    + ", ".join(f"{count} rankings ({name})" for name, count in rankings.items())
    + " of each kind. The interval of a mean over ten trials is narrower if the trials are independent, and a trained "
    "network's queries are not independent of each other; so read the interval as a rough guide, and the mean and the "
    "minimum as exact up to simulation."
)

# %% tags=["hide-input"]
single, multi = (levels[f"SYSU all, {shot}"].independent for shot in ("single", "multi"))
Markdown(
    "A floor belongs to a setting, not to a data set: on SYSU all search, ten images per person and camera instead of "
    f"one leave the chance of rank-1 where it was ({percent(single.rank1.mean)} and {percent(multi.rank1.mean)} %), "
    f"and take that of mAP from {percent(single.mAP.mean)} to {percent(multi.mAP.mean)} %."
)

# %% [markdown]
# On the book's page a calculator has the means exactly, for any setting. Begin with RegDB and ask for one image instead
# of ten: rank-1 stays, mAP rises. Then let queries leave out their person in their own camera: where one camera saw each
# person, nothing right is left to rank. People ask alike often, and the one camera that some queries leave out saw whoever
# three or more cameras saw.
#
# <!-- move: floor -->

# %% [markdown]
# ### Published scores beside their floors
#
# Scores under attack from two papers, copied into the cell below with their source. The setting is the one that the
# paper's label names; neither label says how many shots, but the clean rows of both tables equal AGW's single-shot
# results {cite}`ye2022agw`. {cite:t}`yang2024feature` call the full attack FSAM + AQAL; {cite:t}`gong2024cmps` CMPS.
# V→I stands for visible queries against an infrared gallery, I→V for the reverse.

# %%
FEATURE_LEVEL = "feature-level, Table 1, AGW"  # Yang et al., NeurIPS 2024
CMPS_SYSU = "CMPS, Table 1, AGW"  # Gong et al., NeurIPS 2024
# (source, setting of the label, direction as labelled, {score: percent})
PUBLISHED = [
    (FEATURE_LEVEL, "RegDB", "V→I", {"rank1": 0.49, "rank10": 4.64, "mAP": 0.85, "mINP": 0.57}),
    (FEATURE_LEVEL, "SYSU all, single", "not stated",
     {"rank1": 0.79, "rank10": 9.83, "mAP": 2.81, "mINP": 1.69}),
    (CMPS_SYSU, "SYSU all, single", "V→I", {"rank1": 1.11, "rank20": 16.14, "mAP": 1.41}),
    (CMPS_SYSU, "SYSU indoor, single", "I→V", {"rank1": 1.31, "rank20": 10.36, "mAP": 1.23}),
    ("CMPS, Table 1, DDAG", "SYSU indoor, single", "I→V", {"rank1": 1.45, "rank20": 10.72, "mAP": 1.25}),
    ("CMPS, Table 2, AGW", "RegDB", "V→I", {"rank1": 2.29, "rank20": 18.35, "mAP": 3.92}),
    ("CMPS, Table 2, AGW", "RegDB", "I→V", {"rank1": 1.93, "rank20": 19.30, "mAP": 3.46}),
    ("CMPS, Table 3, DEEN", "LLCM-like", "I→V", {"rank1": 6.42, "rank20": 28.54, "mAP": 12.23}),
]  # fmt: skip
ROUNDING = 0.00005  # papers print hundredths of a percent


def floor(name, score):
    """Return chance mean, its interval and the minimum of one score, as fractions."""
    level = levels[name]
    if not score.startswith("rank") or score == "rank1":
        mean = getattr(level.independent, score).mean
        return mean, *hull(level, score), getattr(level.minimum, score)
    mean = level.independent.cmc[int(score[4:]) - 1]
    queries = np.isin(*SETTINGS[name][:2]).sum()  # those with a match
    spread = 1.96 * np.sqrt(mean * (1 - mean) / queries)  # of independent rankings
    return mean, mean - spread, mean + spread, 0.0


def verdict(value, name, score):
    """Say where a published score lies."""
    _, low, high, least = floor(name, score)
    if value < least - ROUNDING:
        return "below minimum"
    if value < low - ROUNDING:
        return "below chance"
    return "at chance" if value <= high + ROUNDING else "above chance"


verdicts = {
    (source, name, way, score): verdict(value / 100, name, score)
    for source, name, way, values in PUBLISHED
    for score, value in values.items()
}


def read(*sources):
    """Show the published rows of these sources beside their floors."""
    rows = []
    for source, name, way, values in PUBLISHED:
        if source in sources:
            rows.append([f"**{name}**, {way}, {source.split(', ')[-1]}", "", "", ""])
            for score, value in values.items():
                mean, _, _, least = floor(name, score)
                beside = f"{percent(mean)} / {percent(least)}"
                label = score.replace("rank", "rank-")
                rows.append([label, f"{value:.2f}", beside, verdicts[source, name, way, score]])
    return table(["score, %", "published", "chance / least", "is"], rows)


read(FEATURE_LEVEL)

# %% tags=["hide-input"]
of_paper = {key: value for key, value in verdicts.items() if key[0] == FEATURE_LEVEL}
outside = [key for key, value in of_paper.items() if value != "at chance"]
values = {(name, score): value / 100 for source, name, _, row in PUBLISHED[:2] for score, value in row.items()}
off = [
    f"{name} {score}, {100 * (values[name, score] - floor(name, score)[0]):+.2f} points from its chance mean"
    for _, name, _, score in outside
]
Markdown(
    f"Of these {len(of_paper)} scores, {len(of_paper) - len(outside)} lie where a ranking without information lies"
    + (f" (not so: {'; '.join(off)})" if off else "")
    + f". On RegDB a random ranking has a rank-1 of 10 in 2,060, which is {percent(10 / 2060)} %."
)

# %% tags=["hide-input"]
Markdown(
    f'So the statement "rank-1 falls to {PUBLISHED[0][3]["rank1"]} % on RegDB" says that the ranking scores '
    "what one without information would. It does not say how strong the attack is: every attack that reaches the floor "
    "reaches this number, and by it none can be told from another. A table of such numbers cannot say which part of an "
    "attack matters either. What the statement leaves open is the price: at which budget, and against which model."
)

# %%
read(CMPS_SYSU, "CMPS, Table 1, DDAG")

# %% tags=["hide-input"]
below = [key for key, value in verdicts.items() if value == "below minimum"]
Markdown(
    f"{len(below)} scores lie below the arithmetic minimum of the setting that their label names: "
    + ", ".join(f"{key[0]} {key[2]} {key[3]}" for key in below)
    + f". No ranking reaches them under the official indoor single-shot protocol (minimum {percent(minimum)} %). "
    f"Under multi shot the minimum is {percent(levels['SYSU indoor, multi'].minimum.mAP)} %, and if queries without a "
    f"match are averaged in as zeros it is {percent(minimum * sum(valid.values()) / 3803)} %: with either the score is "
    "possible. The all-search rows lie between minimum and chance. An attack can do that; but under multi shot chance "
    f"itself has an mAP of {percent(levels['SYSU all, multi'].independent.mAP.mean)} %, and without the protocol the "
    "two cannot be told apart."
)

# %% [markdown]
# The statement this settles is a narrow one: **the attacked indoor rows were not measured with the protocol of the
# clean rows above them**, which equal the official single-shot results of {cite:t}`ye2022agw` and
# {cite:t}`ye2020ddag`. The difference between such rows mixes the attack with a change of protocol. Which protocol it
# was cannot be recovered from what is published: the released evaluation code counts images, removes the same
# person's images of the same camera, and knows neither camera rule nor shots nor trials (`testset_to_query.py` moves
# an unseeded random half of the images). It does not settle whether the attack works. Other scores of the same paper
# lie well above chance:

# %%
read("CMPS, Table 2, AGW", "CMPS, Table 3, DEEN")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Published scores under attack on their floors. Grey bar: where uninformative rankings fall; black stroke: arithmetic minimum (that of rank-1 is zero and lies off the scale). Diamonds, the feature-level paper, sit in the grey. Of the squares, CMPS, those on RegDB lie far right of it; on SYSU indoor the mAP lies left of the minimum.", "name": "fig-ranking-floors"}, "image": {"alt": "Two panels on a logarithmic axis in percent, rank-1 above and mAP below, with one row per setting. Grey bars mark chance, black strokes the minimum. Green diamonds lie on the bars of RegDB and SYSU all single. Orange squares lie right of the bars for RegDB and LLCM-like, and on mAP of SYSU indoor single left of the black stroke."}}
figure, panels = plt.subplots(2, 1, figsize=(6, 5.6), sharey=True, layout="constrained")
rows = {name: row for row, name in enumerate(levels)}
for axes, score, title in zip(panels, ("rank1", "mAP"), ("rank-1", "mAP"), strict=True):
    for name, row in rows.items():
        mean, low, high, least = floor(name, score)
        bar = (100 * (high - low), 100 * low)
        axes.barh(
            row, bar[0], left=bar[1], height=0.62, color="#b5b5b5", ec="#8c8c8c", label="chance" if not row else None
        )
        if least:
            mark = {"color": "black", "linewidth": 2.5, "label": None if row else "minimum"}
            axes.plot([100 * least] * 2, [row - 0.38, row + 0.38], **mark)
    for paper, marker, colour in (("feature", "D", plots.SERIES[2]), ("CMPS", "s", plots.SERIES[1])):
        points = [(v[score], rows[name]) for source, name, _, v in PUBLISHED if source.startswith(paper)]
        label = {"feature": "feature-level", "CMPS": "CMPS"}[paper]
        axes.scatter(*zip(*points, strict=True), marker=marker, s=46, color=colour, ec="black", zorder=3, label=label)
    axes.set(xscale="log", yticks=list(rows.values()), title=title, xlim=(0.09, 16))
    axes.set_yticklabels(list(rows))
    axes.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
panels[0].invert_yaxis()
panels[1].set_xlabel("percent, logarithmic")
panels[1].legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.4, -0.22))
plt.show()

# %% [markdown]
# {numref}`fig-ranking-floors` is the figure to draw before believing a table of attacks. LLCM's row rests on an assumed
# number of cameras per person. Is its verdict safe? Chance is highest where each person has one image in the gallery:

# %%
one_image_each = np.mean(1 / np.arange(1, 352))
Markdown(
    f"351 people, one image each: chance mAP {percent(one_image_each)} %, against a published "
    f"{PUBLISHED[-1][3]['mAP']} %."
)

# %% [markdown]
# ## Uncertainty: three spreads
#
# "± 0.4" can mean three things, and they answer three questions.
#
# - **Over trials**: would another drawn gallery give another number? One network, the same people.
# - **Over people**: would queries of other people, against this gallery and this network, give another number? The people
#   who ask are resampled with replacement, all queries of one person together, because they are not independent (a
#   bootstrap over identities, which are clusters {cite}`field2007clustered`).
# - **Over seeds**: would another training run give another number? The victim is trained again; for an attack, victim
#   *and* attack are made again.

# %%
first = trials["B"][0]
over_people = metrics.bootstrap(first.per_query_rank1, query_ids[first.valid])
over_trials = np.quantile(rank1["B"], [0.025, 0.975])
seeds = np.array([np.mean([s.rank1 for s in ten_trials(network, trials=4)]) for network in range(8)])

spreads = {
    "trials": (rank1["B"].mean(), *over_trials),
    "seeds": (seeds.mean(), *np.quantile(seeds, [0.025, 0.975])),
    "people": over_people,
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rank-1 of a simulated network with three intervals. Compare the spread over the 96 people with the other two, which are the ones that tables report. The centres differ a little: ten galleries, eight trainings and one gallery stand behind them.", "name": "fig-ranking-spreads"}, "image": {"alt": "Three horizontal intervals around similar centres: over trials, marked with a circle, over seeds, marked with a square, and over people, marked with a triangle."}}
figure, axes = plt.subplots(figsize=(6, 2.2))
for row, ((mean, low, high), marker) in enumerate(zip(spreads.values(), "os^", strict=True)):
    colour = plots.SERIES[row]
    axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=3)
    axes.plot(100 * mean, row, marker=marker, color=colour, markersize=10, markeredgecolor="black")
axes.set(yticks=range(3), ylim=(2.6, -0.6), xlabel="rank-1 (%), with 95 % of each spread")
axes.set_yticklabels([f"over {name}" for name in spreads])
plt.show()

# %% tags=["hide-input"]
Markdown(
    "; ".join(f"over {name} {percent(low, 1)} to {percent(high, 1)} %" for name, (_, low, high) in spreads.items())
    + ". Ten trials share their people and their network, so their spread says nothing about either."
)

# %% [markdown]
# The seeds' spread of real networks comes from this book's {term}`run cards <run card>`: the lite victims on the
# synthetic set, retrained from several seeds.

# %%
from vireid_lite.study.cards import read_cards, stale_note
from vireid_lite.metrics.evaluation import direction_name
from vireid_lite.chapters.costs import COSTS


def seeds_table(cards):
    """Show rank-1 of each victim: mean and range over seeds, people's interval of seed 0."""
    rows = []
    for difficulty in sorted({card["dataset"].get("difficulty", "") for card in cards}):
        chosen = [card for card in cards if card["dataset"].get("difficulty", "") == difficulty]
        for way in map(direction_name, Modality):
            found = [card["scores"][way] for card in sorted(chosen, key=lambda card: card["seed"])]
            values = [one["rank1"] for one in found]
            per_person = (found[0]["identity_rank1"], np.arange(len(found[0]["identity_rank1"])))
            people = metrics.bootstrap(*per_person, found[0]["identity_queries"])
            seeds = f"{percent(np.mean(values), 1)} ({percent(min(values), 1)}–{percent(max(values), 1)})"
            of_people = f"{percent(people.low, 1)}–{percent(people.high, 1)}"
            rows.append([f"{difficulty}, {way}, {len(values)} seeds", seeds, of_people])
    return table(["rank-1, %", "over seeds", "over people"], rows)


cards = read_cards(COSTS.parent, kind="victim", tier="lite")
pending = Markdown("*Pending*: no victim has run yet; `vireid-lite campaign book/campaigns/victims.toml` runs them.")
seeds_table(cards) if cards else pending

# %% tags=["hide-input"]
note = "Seeds: mean, and in brackets the smallest and largest. People: 95 % interval of the first seed."
Markdown(" ".join([note, stale_note(cards)]) if cards else "")

# %% [markdown]
# ### Pairing
#
# Two methods that are tested on the same people share these people's luck. Their *difference* is far less uncertain
# than either score, and "one is stronger" needs an interval of that difference that excludes zero.

# %%
a, b = trials["A"][0], trials["B"][0]
owners = query_ids[a.valid]
alone = [metrics.bootstrap(one.per_query_ap, owners) for one in (a, b)]
paired = metrics.paired_bootstrap(a.per_query_ap, b.per_query_ap, owners)
table(
    ["mAP, %", "mean", "95 % over people"],
    [
        ["A", percent(alone[0].mean), f"{percent(alone[0].low)} to {percent(alone[0].high)}"],
        ["B", percent(alone[1].mean), f"{percent(alone[1].low)} to {percent(alone[1].high)}"],
        ["B − A, paired", percent(paired.difference), f"{percent(paired.low)} to {percent(paired.high)}"],
    ],
)

# %% tags=["hide-input"]
overlap = min(alone[0].high, alone[1].high) - max(alone[0].low, alone[1].low)
Markdown(
    f"The two intervals overlap over {percent(overlap, 1)} points; the paired one "
    + ("excludes zero." if paired.low > 0 or paired.high < 0 else "includes zero: these people cannot tell them apart.")
    + " Overlapping intervals are no evidence that two methods are equal."
)

# %% [markdown]
# ### How many people tell 60 from 65 %?
#
# Let people differ in how often they are found, 60 % in the mean, and let a second method miss each of them an eighth
# less often, so that it finds 65 % in the mean. Each has ten queries. How often does the 95 % interval of the
# difference exclude zero, when both methods are tested on the same people, and when each is tested on people of its
# own?


# %%
def share_detected(people, same_people, experiments=1000):
    """Return how often an experiment with so many people tells 65 from 60 % rank-1."""
    rng = np.random.default_rng([settings.seed, 5, people])

    found, others = rng.beta(1.2, 0.8, size=(2, experiments, people))  # mean 0.6
    worse = rng.binomial(10, found) / 10
    better = rng.binomial(10, 1 - 7 / 8 * (1 - (found if same_people else others))) / 10
    difference = (better - worse).mean(axis=1)
    if same_people:
        error = (better - worse).std(axis=1, ddof=1) / np.sqrt(people)
    else:
        error = np.sqrt((better.var(axis=1, ddof=1) + worse.var(axis=1, ddof=1)) / people)
    return np.mean(difference > 1.96 * error), worse.mean(), better.mean()


counts = np.array([10, 20, 30, 50, 75, 100, 150, 206, 351, 600, 1000, 2000])
detected = {same: np.array([share_detected(n, same) for n in counts]) for same in (True, False)}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of experiments in which the interval tells 65 from 60 % rank-1, by the number of test people. The dotted line is four experiments of five. Where a curve meets it, compare with the vertical lines: the people in three benchmarks.", "name": "fig-ranking-power"}, "image": {"alt": "Two rising curves against the number of people on a logarithmic axis: the paired one, blue circles, climbs earlier than the unpaired one, orange triangles. Vertical lines mark SYSU, RegDB and LLCM."}}
figure, axes = plt.subplots(figsize=(6, 3.2))
for (same, values), marker, colour in zip(detected.items(), "o^", plots.SERIES, strict=False):
    label = "same people, paired" if same else "different people"
    axes.plot(counts, 100 * values[:, 0], marker=marker, color=colour, label=label)
axes.axhline(80, color=plots.CHANCE, linestyle=":")
for people, name in ((96, "SYSU"), (206, "RegDB"), (351, "LLCM")):
    axes.axvline(people, color=plots.CHANCE, linewidth=1)
    axes.text(people * 1.03, 3, name, rotation=90, fontsize=8, color=plots.CHANCE)
axes.set(xscale="log", xlabel="people in the test set", ylabel="difference seen (%)", ylim=(0, 102))
axes.set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
plt.show()


# %% tags=["hide-input"]
def people_needed(values, power=0.8):
    """Return the number of people at which the curve crosses a power, interpolated."""
    return round(float(np.exp(np.interp(power, values[:, 0], np.log(counts)))))


Markdown(
    f"Simulated means: {percent(detected[True][-1, 1], 1)} and {percent(detected[True][-1, 2], 1)} %. To see the "
    f"difference in four experiments of five takes about **{people_needed(detected[True])} people** if both methods "
    f"are tested on the same ones, and about **{people_needed(detected[False])}** if not. One person's queries are "
    "independent here, which real ones are not: read the first number as a lower bound."
)

# %% [markdown]
# ## Ties
#
# Sorting needs a rule for equal distances. The official evaluators leave it to the sorting routine; this package breaks
# ties by gallery order, which is what a stable sort does. It rarely matters for healthy features. It decides everything
# for features that an attack, or rounding, has made alike. Sixteen-bit codes, the signs of sixteen features, on RegDB's
# size:

# %%
codes = [np.sign(features[:, :16]) for features in (visible, infrared)]
rounded = (16 - codes[0] @ codes[1].T) / 2  # Hamming distance: whole numbers, many ties
is_right = regdb_ids[:, None] == regdb_ids
collapsed_distance = np.zeros_like(rounded)  # every image has one and the same feature


def tie_rules(distance):
    """Return rank-1 of one distance matrix under five ways to break its ties."""
    unstable = np.argsort(np.argsort(distance, axis=1), axis=1)  # NumPy's default sort
    rng = np.random.default_rng(settings.seed)
    ranked = {
        "gallery order": distance,
        "NumPy's default sort": unstable,
        "at random": distance + 0.5 * rng.random(distance.shape),
        "for the right match": distance - 0.5 * is_right,
        "against it": distance + 0.5 * is_right,
    }
    return {rule: metrics.evaluate(d, regdb_ids, regdb_ids).rank1 for rule, d in ranked.items()}


ties = {"16 bits": tie_rules(rounded), "all equal": tie_rules(collapsed_distance)}
table(
    ["rank-1, %", *ties],
    [[rule, *(percent(column[rule]) for column in ties.values())] for rule in ties["16 bits"]],
)

# %% tags=["hide-input"]
moved = np.argsort(rounded, axis=1) != np.argsort(rounded, axis=1, kind="stable")
Markdown(
    f"On this machine NumPy's default sort orders {percent(moved.any(axis=1).mean(), 0)} % of the coded queries "
    "differently from a stable sort; another machine, or another version, may do otherwise. The rules at the "
    f"bottom differ by {percent(ties['16 bits']['for the right match'] - ties['16 bits']['against it'], 0)} points of "
    "rank-1 on the same features."
)

# %% [markdown]
# With all features equal, gallery order gives the one rank-1 that carries no opinion: the first gallery image's person
# is right for that person's queries and wrong for all others, which is chance. An evaluator that counts the images
# *strictly closer* than the right match breaks ties for it, and gives a dead network full marks; one that breaks them
# the other way makes a harmless collapse look like a perfect attack. For attacks this means:
#
# - a universal attack that drives all queries to one point shows as a *collapsed* ranking, at chance;
# - a score far from chance on equal features comes from the evaluator, not from the attack.
#
# Features that are not numbers are worse than ties, because every comparison with them is false:

# %%
from vireid_lite.errors import InputError

broken = np.full((1, 10), np.nan)
strictly_closer = int((broken[0] < broken[0, 9]).sum())
try:
    metrics.evaluate(broken, [1], np.arange(10) // 9)
except InputError as error:
    refusal = str(error)
Markdown(
    f"NaN distances, counted naively: {strictly_closer} images closer than the right match, so it ranks first. "
    f"The package refuses them: *{refusal}*."
)

# %% [markdown]
# ## Mistakes found in published code
#
# Each of the following was found by reading or running public code, named with file and line where there is one. Each
# is a few lines below, on simulated features, so the sizes are those of this simulation. They show that an effect
# exists and which way it goes; how large it is in a given paper is not known from here.
#
# ### Choosing the best epoch on test people
#
# AGW keeps the epoch with the best rank-1 on a test gallery (`train.py:390`), and so does DEEN {cite}`zhang2023deen`
# (`train.py:438`). Training ends in epochs that are equally good and wobble. The largest of many noisy scores is too
# large, however honest each of them was.


# %%
def rank1_by_epoch(ids, rng, wobble=0.2, epochs=40):
    """Return rank-1 after each of some epochs of a network that has stopped improving."""
    base = [simulate(ids, modality) for modality in Modality]
    scores = []
    for _ in range(epochs):
        shift = wobble * rng.normal(size=(2, ids.max() + 1, 64)) / 8  # what one more epoch moves
        query, gallery = (features + move[ids] for features, move in zip(base, shift, strict=True))
        scores.append(metrics.evaluate_features(query, gallery, ids, ids).rank1)
    return np.array(scores)


rng = np.random.default_rng([settings.seed, 6])
validation_ids, test_ids = np.repeat(np.arange(400, 496), 4), np.repeat(np.arange(300, 396), 4)
runs = [(rank1_by_epoch(validation_ids, rng), rank1_by_epoch(test_ids, rng)) for _ in range(8)]
epoch_spread = np.mean([test.std(ddof=1) for _, test in runs])
chosen_on_test = np.array([test.max() for _, test in runs])
chosen_on_validation = np.array([test[validation.argmax()] for validation, test in runs])
last_epoch = np.array([test[-1] for _, test in runs])
effects["best epoch on test people"] = ("rank-1", chosen_on_validation.mean(), chosen_on_test.mean())

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rank-1 on test people over forty epochs in which nothing improves. The star is what is reported if the best epoch is chosen on the test people; the square is the epoch that validation people would choose. The dashed line is the mean of all epochs.", "name": "fig-ranking-best-epoch"}, "image": {"alt": "A jagged line without trend over forty epochs, with an orange star on its highest point and a green square on the epoch chosen on other people; a dashed horizontal line marks the mean."}}
validation, test = runs[0]
figure, axes = plt.subplots(figsize=(6, 2.9))
axes.plot(np.arange(1, 41), 100 * test, color=plots.SERIES[0], linewidth=1)
axes.axhline(100 * test.mean(), color=plots.CHANCE, linestyle="--")
mark = {"linestyle": "none", "markeredgecolor": "black"}
axes.plot(test.argmax() + 1, 100 * test.max(), "*", color=plots.WRONG, ms=15, label="best on test people", **mark)
picked = validation.argmax()
axes.plot(picked + 1, 100 * test[picked], "s", color=plots.RIGHT, ms=9, label="best on validation people", **mark)
axes.set(xlabel="epoch", ylabel="rank-1, test people (%)")
axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
plt.show()

# %% tags=["hide-input"]
Markdown(
    f"Epochs wobble by ± {percent(epoch_spread, 1)} points. Mean of {len(runs)} such runs: "
    f"{percent(chosen_on_test.mean(), 1)} % chosen on test people, "
    f"{percent(chosen_on_validation.mean(), 1)} % chosen on validation people, "
    f"{percent(last_epoch.mean(), 1)} % at the last epoch. The excess grows with the number of looks and with the "
    "wobble, and shrinks with the number of people. Here validation and test people wobble independently; where good "
    "epochs are good for everyone, part of the gain is real, and only validation people can say which part. Two "
    "methods, of which one was looked at more often, differ by it without differing."
)

# %% [markdown]
# ### The transposed direction
#
# LLCM's code, asked for visible to infrared, ranks *drawn infrared queries against all visible images* (`DEEN/test.py`
# lines 222–234; reported as issue 35 of that repository). That is infrared to visible with a larger gallery. Six images
# in each spectrum, of which the gallery should draw one:

# %%
many = np.repeat(np.arange(351), 6)
seen = {modality: simulate(many, modality) for modality in Modality}
drawn = np.arange(351) * 6 + np.random.default_rng([settings.seed, 7]).integers(6, size=351)
everyone = np.arange(351)
true_direction = metrics.evaluate_features(seen[Modality.VISIBLE], seen[Modality.INFRARED][drawn], many, everyone)
transposed = metrics.evaluate_features(seen[Modality.INFRARED][drawn], seen[Modality.VISIBLE], everyone, many)
effects["direction transposed"] = ("rank-1", true_direction.rank1, transposed.rank1)
table(
    ["%", "rank-1", "mAP"],
    [
        ["all visible to drawn infrared", percent(true_direction.rank1), percent(true_direction.mAP)],
        ["drawn infrared to all visible", percent(transposed.rank1), percent(transposed.mAP)],
    ],
)

# %% [markdown]
# The signature is a rank-1 that rises, because a person has many images to be found by, and an mAP that falls, because
# all of them have to be found. The scores that the data set's own page gives for DEEN show the same pattern.

# %%
# README of ZYK100/LLCM: rank-1, mAP in percent, in the order of its columns
to_visible, to_infrared = np.array([55.52, 62.07]), np.array([69.21, 55.52])
here = 100 * np.array([transposed.rank1 - true_direction.rank1, transposed.mAP - true_direction.mAP])
there = to_infrared - to_visible
Markdown(
    f"Here, transposed against true: rank-1 {here[0]:+.1f}, mAP {here[1]:+.1f} points. On the page, the second "
    f"direction against the first: rank-1 {there[0]:+.1f}, mAP {there[1]:+.1f}. The pattern alone proves nothing, "
    "since directions differ in difficulty too; the code does."
)

# %% [markdown]
# ### Query and gallery swapped
#
# RegDB and LLCM directions have been switched by editing constants (LLCM's issues 25 and 30) or by an option whose name
# does not say which (`--tvsearch`; AGW's issue 22). On RegDB the matrix is square and both lists are sorted alike, so
# that a transposed matrix passes every check of shapes.

# %%
cosine = 1 - visible @ infrared.T  # rows: visible queries
asked, got = (metrics.evaluate(matrix, regdb_ids, regdb_ids) for matrix in (cosine, cosine.T))
effects["query and gallery swapped"] = ("rank-1", asked.rank1, got.rank1)
table(
    ["%", "rank-1", "mAP"],
    [
        ["asked for: visible to infrared", percent(asked.rank1), percent(asked.mAP)],
        ["computed: infrared to visible", percent(got.rank1), percent(got.mAP)],
    ],
)

# %% [markdown]
# ### Averaging over queries that have no match
#
# SYSU's indoor search keeps all 3,803 queries, but only 56 of the 96 people are in its gallery. The official evaluators
# skip queries without a match. An evaluator that counts them as zero multiplies every score by the share of valid
# queries. No released code was seen to do so; it is one of the readings under which the indoor scores above are
# possible.

# %%
q, g, q_cameras, g_cameras = sysu("indoor", 1)
indoor = metrics.evaluate_features(
    simulate(q, Modality.INFRARED), simulate(g, Modality.VISIBLE), q, g, q_cameras, g_cameras, "sysu"
)
unmatched = len(q) - indoor.valid_queries
zeros_averaged = indoor.mAP * indoor.valid_queries / len(q)
effects["unmatched queries averaged in"] = ("mAP", indoor.mAP, zeros_averaged)
Markdown(
    f"{unmatched} of {len(q)} queries have no match. mAP over the valid {indoor.valid_queries}: "
    f"{percent(indoor.mAP, 1)} %; over all: {percent(zeros_averaged, 1)} %."
)

# %% [markdown]
# ### CMC rows of unequal length
#
# The official evaluators keep the first 20 entries of each query's CMC and stack the rows (AGW's `eval_metrics.py`,
# lines 37–45 for SYSU). A list shorter than 20, which happens in a small gallery or after the camera rule, gives a
# shorter row, and stacking fails. A plain remedy, filling with zeros, is wrong: a person found at rank 3 is still
# found by rank 20.

# %%
short_lists = [np.array([0, 0, 1, 0, 0]), np.array([0, 1, 0, 0, 0, 0, 0, 0])]  # 1 where right
ragged = [np.minimum(np.cumsum(row), 1)[:20] for row in short_lists]
try:
    np.asarray(ragged, dtype=float)
except ValueError as error:
    complaint = type(error).__name__
padded = np.mean([np.pad(row, (0, 20 - len(row))) for row in ragged], axis=0)
carried = np.mean([np.pad(row, (0, 20 - len(row)), mode="edge") for row in ragged], axis=0)
Markdown(
    f"Stacking: {complaint}. CMC at 20: {percent(padded[19], 0)} % padded with zeros, {percent(carried[19], 0)} % with "
    "the last value carried on, as `metrics.evaluate` does."
)

# %% [markdown]
# ### Those that move a score, by size

# %% tags=["hide-input"]
ordered = sorted(effects.items(), key=lambda item: -abs(item[1][2] - item[1][1]))
table(
    ["mistake", "right", "wrong", "points"],
    [
        [f"{name} ({score})", percent(good, 1), percent(bad, 1), f"{100 * (bad - good):+.1f}"]
        for name, (score, good, bad) in ordered
    ],
)

# %% [markdown]
# One more leaves no trace in the metric: where a checkpoint is not found, AGW's test script evaluates the network
# without its training and goes on (on RegDB `test.py:225` looks for `awg`, `train.py:88` writes `agw`). Only its low
# score gives it away. That is another reason to print the chance level beside every result.

# %% [markdown]
# ## What could fool us
#
# - **The floor.** A score at chance is the end of the scale. It ranks no attacks.
# - **Below chance is not impossible.** An attack may push right matches down on purpose. Below the minimum is.
# - **One name, several protocols.** Shots, cameras, direction, images or identities: a row shares a table only with
#   rows of the same.
# - **An interval that was narrow for the wrong reason.** Ten trials of one network on the same people are not ten
#   experiments.
# - **This chapter's own simulation.** Its features are Gaussian and its people exchangeable. Sizes of effects are its
#   own; minimum and chance level are arithmetic of the setting, and carry over.

# %% [markdown]
# ## Takeaways
#
# - CMC sees the first right match, mAP all, mINP the last.
# - A score without its protocol, direction and gallery is not a number yet.
# - Chance has an interval, and arithmetic has a floor below it: print both beside every attacked score.
# - Reaching the score of a random ranking is reaching the floor. It is no margin of victory.
# - Trials, people and seeds spread differently; people are the scarcest. Compare in pairs.
# - Choose on validation people, break ties by gallery order, refuse what is not finite.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: swap two images
# :label: ex-ranking-swap
# ```
# In the list of the first figure, swap the images at ranks 2 and 3. Which of rank-1, AP and INP change? Say so before
# you compute. Then swap ranks 1 and 3 of the original list instead.
#
# **Check yourself.** How large is AP after ranks 2 and 3 have changed places? Give it to three decimals.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check, self_check_value

self_check_value(
    None,  # your AP, such as 0.512
    lambda: (
        metrics.evaluate(np.arange(10.0)[None], [1], right[[0, 2, 1, *range(3, 10)]].astype(int), protocol="regdb").mAP
    ),
    within=0.001,
)

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-ranking-swap
# :class: dropdown
# ```
# Self-check: **the second row of the table**.
#
# The first right match moves up from 3: AP changes both times, rank-1 only when it reaches the top, INP never, as the
# last right match stays where it was.


# %% tags=["solution"]
def by_counting(right):
    """Return rank-1, AP and INP of one ranked list of right (True) and wrong images."""
    rank = np.flatnonzero(right) + 1
    return float(right[0]), (np.arange(1, len(rank) + 1) / rank).mean(), len(rank) / rank[-1]


swapped = {"as it was": right.copy(), "ranks 2 and 3": right[[0, 2, 1, *range(3, 10)]]}
swapped["ranks 1 and 3"] = right[[2, 1, 0, *range(3, 10)]]
table(
    ["list", "rank-1", "AP", "INP"],
    [[name, *(f"{value:.3f}" for value in by_counting(row))] for name, row in swapped.items()],
)

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Easy: images in front
# :label: ex-ranking-images
# ```
# A gallery holds ten images of each of 50 people. A query's first ten places all show one wrong person, the next ten
# show the right one. What are rank-10 and rank-2 over images, and over identities? Which of the two would you rather
# read in a paper about finding a person in a long list of pictures?
#
# **Check yourself.** Who hits at rank 2, and who at rank 10?
#
# - (a) Over images neither; over identities both.
# - (b) Over images rank 10 alone; over identities both.
# - (c) Over images neither; over identities rank 10 alone.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-ranking-images", "920231b2")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-ranking-images
# :class: dropdown
# ```
# Self-check: **a**.
#
# Over images, rank-10 misses and rank-11 is the first to hit. Over identities the wrong person counts once, so rank-2
# hits. Someone who scrolls through pictures meets images; someone who is shown one picture per candidate meets
# identities.

# %% tags=["solution"]
fifty = np.repeat(np.arange(50), 10)
place = np.arange(500.0)[None]  # person 0 first, then person 1, who is asked for
for protocol in ("regdb", "sysu"):
    answer = metrics.evaluate(place, [1], fifty, [6], np.ones(500, int), protocol)
    print(protocol, "rank-2:", answer.cmc[1], " rank-10:", answer.cmc[9], " rank-11:", answer.cmc[10])

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: the chance level of your own setting
# :label: ex-ranking-own
# ```
# Compute chance level and minimum for the test of the data set this chapter was started with (`DATASET`; at tier `lite`
# the synthetic set, whose scores chapter 3 reports), in both directions. Then check rank-1's mean by hand.
#
# **Check yourself.** One query has $P$ right images among the $G$ that it ranks. What is chance rank-1 for it?
#
# - (a) $1/G$.
# - (b) $P/(G - P)$.
# - (c) $P/G$.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-ranking-own", "3973e7dc")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-ranking-own
# :class: dropdown
# ```
# Self-check: **c**.
#
# The records carry identities and cameras; no image is read. By hand, under protocol `regdb`: the mean over queries of
# right images divided by gallery images.

# %% tags=["solution"]
from vireid_lite.metrics.evaluation import identities_and_cameras
from vireid_lite.victims import tier_dataset

dataset = tier_dataset(settings.tier, settings.dataset, settings.data_root)
own_rows = []
for modality in Modality:
    q, g, q_cameras, g_cameras = identities_and_cameras(dataset.trials(modality)[0])
    chosen = {"protocol": dataset.protocol, "repeats": settings.repeats, "seed": settings.seed}
    own = metrics.chance(q, g, q_cameras, g_cameras, **chosen)
    by_counting_images = np.mean([(g == person).mean() for person in q])
    own_rows += [
        [f"**{direction_name(modality)}**", "", ""],
        ["rank-1", interval(own, "rank1"), percent(own.minimum.rank1)],
        ["rank-1 by hand", percent(by_counting_images), ""],
        ["mAP", interval(own, "mAP"), percent(own.minimum.mAP)],
        ["mINP", interval(own, "mINP"), percent(own.minimum.mINP)],
    ]
table([f"{dataset.name}, %", "chance", "least"], own_rows)

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: can both floors be moved?
# :label: ex-ranking-floors
# ```
# Someone proposes to report attacks with a gallery of one image per person, so that "chance is lower and success shows
# better". Compute chance level and minimum of mAP for RegDB's 206 people with 1, 2, 5 and 10 gallery images each. Which
# way do they move?
#
# **Check yourself.** From ten images each to one, what happens?
#
# - (a) Both floors of mAP fall, and so does rank-1's chance.
# - (b) Both floors of mAP rise, and rank-1's chance stays.
# - (c) Both floors of mAP fall, and rank-1's chance stays.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-ranking-floors", "0104b054")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-ranking-floors
# :class: dropdown
# ```
# Self-check: **b**.
#
# The other way: with one image per person AP is one divided by its rank, and the mean of that over random ranks is far
# larger than the share of right images. Rank-1's chance, which is that share, does not move at all.

# %% tags=["solution"]
floor_rows = []
for count in (1, 2, 5, 10):
    each = np.repeat(np.arange(206), count)
    level = metrics.chance(regdb_ids[::5], each, repeats=30, seed=settings.seed)
    cells = [(each == 0).mean(), level.independent.mAP.mean, level.minimum.mAP]
    floor_rows.append([count, *map(percent, cells)])
table(["images each", "rank-1, chance %", "mAP, chance %", "mAP, least %"], floor_rows)

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-ranking-claim
# ```
# A colleague reports: "Our feature perturbation, of only 1 % of a feature's length, takes rank-1 on RegDB's size from
# its clean value to chance." The code that produced both numbers is below. Run it, find the control experiment that
# breaks the claim, name the flaw, and report what the perturbation really does.
#
# **Check yourself.** What kind of mistake is it?
#
# - (a) A query is compared with another query's identity.
# - (b) The perturbation is larger than the sentence says.
# - (c) Rank-1 is the wrong score for a universal perturbation.
# ```{exercise-end}
# ```


# %%
def attacked_rank1(strength, seed=0):
    """Perturb queries batch by batch, and score them."""
    rng = np.random.default_rng(seed)
    batches = np.array_split(rng.permutation(len(visible)), 33)
    perturbed = []
    for batch in batches:
        noise = rng.normal(size=(len(batch), 64))
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        perturbed.append(visible[batch] + strength * noise)
    perturbed = np.concatenate(perturbed)
    return metrics.evaluate_features(perturbed, infrared, regdb_ids, regdb_ids).rank1


clean_rank1 = metrics.evaluate_features(visible, infrared, regdb_ids, regdb_ids).rank1
print(f"clean {percent(clean_rank1)} %, attacked {percent(attacked_rank1(0.01))} %")

# %% tags=["self-check"]
self_check(None, "ex-ranking-claim", "90623aec")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-ranking-claim
# :class: dropdown
# ```
# Self-check: **a**.
#
# The control is the attack without the attack: the same code with strength zero. It must give the clean score. It gives
# chance, so the perturbation is not what lowers the score: queries are visited in shuffled order, and then compared
# with identities in the original order. Two signs were there before any control: the score is what a ranking without
# information gets, and a stronger perturbation does not lower it.


# %% tags=["solution"]
def mended_rank1(strength, seed=0):
    """Perturb queries in shuffled batches, and score them against their own identities."""
    rng = np.random.default_rng(seed)
    visited = rng.permutation(len(visible))
    noise = rng.normal(size=(len(visible), 64))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    perturbed = visible[visited] + strength * noise
    return metrics.evaluate_features(perturbed, infrared, regdb_ids[visited], regdb_ids).rank1


table(
    ["strength", "as claimed, %", "mended, %"],
    [[s, percent(attacked_rank1(s)), percent(mended_rank1(s))] for s in (0.0, 0.01, 0.1, 1.0)],
)

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: plan an experiment
# :label: ex-ranking-plan
# ```
# You expect your attack to lower rank-1 from 20 to 15 %, against another attack, on the same people. How many people do
# you need for an interval that excludes zero in four experiments of five? Is it more or fewer than for 60 against 65 %,
# and why?
#
# **Check yourself.** More people or fewer, and why?
#
# - (a) More: the smaller a share, the harder it is to estimate.
# - (b) As many: five points are five points.
# - (c) Fewer: hits near 20 % vary less than hits near 60 %.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-ranking-plan", "918837da")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-ranking-plan
# :class: dropdown
# ```
# Self-check: **c**.
#
# Hits near 20 % vary less than hits near 60 %, so the same five points stand out at fewer people. The simulation is the
# chapter's with other means; the second method's chances are a fixed fraction of the first's. The number of people asked
# for is where a column passes 80 %.


# %% tags=["solution"]
def power(people, before, after, experiments=1000):
    """Return how often a paired experiment with so many people tells two rank-1s apart."""
    rng = np.random.default_rng([settings.seed, 8, people])
    ease = rng.beta(2 * before, 2 * (1 - before), size=(experiments, people))
    worse, better = (rng.binomial(10, chance) / 10 for chance in (ease * after / before, ease))
    difference = better - worse
    error = difference.std(axis=1, ddof=1) / np.sqrt(people)
    return np.mean(difference.mean(axis=1) > 1.96 * error)


sizes = (20, 50, 96, 206, 351)
table(
    ["people", "20 to 15 %", "65 to 60 %"],
    [[n, percent(power(n, 0.20, 0.15), 0), percent(power(n, 0.65, 0.60), 0)] for n in sizes],
)

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`gong2024cmps`,
# {cite:t}`nguyen2017regdb`, {cite:t}`wu2017sysu`, {cite:t}`yang2024feature`, {cite:t}`ye2020ddag`, {cite:t}`ye2022agw`,
# {cite:t}`zhang2023deen`, {cite:t}`field2007clustered`. Code: [AGW](https://github.com/mangye16/Cross-Modal-Re-ID-baseline) at `e817a26`,
# [LLCM and DEEN](https://github.com/ZYK100/LLCM) at `886e27c`,
# [SYSU-MM01](https://github.com/wuancong/SYSU-MM01) at `0499112`, and the repository of CMPS at `78126a2`.
