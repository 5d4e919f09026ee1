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
# # The benchmark
#
# Two papers, {cite:t}`gong2024cmps` and {cite:t}`yang2024feature`, report several hundred numbers. This chapter draws
# their tables and figures again, from committed {term}`run cards <run card>` alone: what ran, on which data, how often,
# and what stands beside each score so that it can be read. It adds what one table of the first paper asks for and does
# not define, {term}`transfer`: a perturbation made on one network and measured on another.

# %% [markdown]
# ## What you will be able to do
#
# - say what has to stand beside a score before it can be compared with a printed one;
# - rerun any row of either paper's tables, on your data and machine, and continue after it was killed;
# - read a transfer matrix, and name the three rows without which it says nothing;
# - show that a "success rate" is nearly perfect for a ranking without any information;
# - check a run card of somebody else, and contribute your own without giving away an image.

# %% [markdown]
# ## What it costs
#
# Tables come from cards; nothing is trained here but two networks of a toy size, in the section on how a row is made.
# Numbers of the former victim of tier `lite` are kept in `book/archive`, and are not mixed with these: a run that was
# made on it alone is pending. On Colab the next cell installs the package; the version of torch that the runtime brings
# is kept. Everywhere else it does nothing.

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

costs = Costs("11_the_benchmark")
costs

# %% tags=["parameters"]
TIER: str = "lite"  # lite, standard or full: whose tables and plans come first; what runs on this page is tiny at each
DATASET: "Optional[str]" = None  # synthetic, sysu, regdb, llcm, paired_folder; None: the tier's
DATA_ROOT: "Optional[str]" = None  # folder of your own copy of DATASET
SEED: int = 0  # of the live runs
DEVICE: str = "auto"  # auto, cpu, cuda or cuda:N
OUT_DIR: str = "_build/chapters"  # folder for files this chapter writes
CARDS: "Optional[str]" = None  # folder of run cards to draw the tables from; None: the book's own

# %%
settings = check_parameters(globals(), costs)

# %% [markdown]
# ## Threat model
#
# White-box rows have [the default](../book/threat_models.md). Transfer differs in what the attacker knows:
#
# | | |
# |---|---|
# | **Target** | frozen, bit-identical afterwards; the attacker never sees its weights, features or rankings |
# | **Surrogate** | a network of the attacker's own, trained by the attacker ({term}`surrogate`) |
# | **Attacker knows** | the surrogate's weights ({term}`white box` there), and training images: the target's own people, or others |
# | **Attacker prepares** | one perturbation, on the surrogate, before any query is seen |
# | **Attacker changes** | query pixels, $\lvert x' - x \rvert \le \varepsilon$, never the gallery |
# | **Measured** | the target's ranking of people neither network has seen, 8 bits, beside {term}`chance <chance level>` |
#
# The victims that the literal reading of the feature-level paper trains ([chapter 10](10_read_two_ways)) are no attack
# of either kind, and stand in tables of their own.
#
# What is published here and why: [responsible use](../book/responsible_use).

# %% tags=["hide-input"]
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from vireid_lite import metrics
from vireid_lite.chapters import plots
from vireid_lite.chapters.words import table
from vireid_lite.study import grids, tables
from vireid_lite.attacks import UniversalPerturbation, build_attack
from vireid_lite.attacks.frozen import training_store
from vireid_lite.study.run import broken, clean_scores
from vireid_lite.study.cards import card_key, card_name, is_stale, read_card, stale_note
from vireid_lite.study.workers import run_grid
from vireid_lite.metrics.evaluation import direction_name, evaluate, identities_and_cameras
from vireid_lite.chapters.costs import COSTS
from vireid_lite.attacks.perturbation import resized
from vireid_lite.victims import load_or_train

plots.set_style()
results = grids.Results(Path(settings.cards or COSTS.parent))
with_cards = {card["tier"] for card in results.cards}
arrow = {"visible": "V→I", "infrared": "I→V"}
direction_of = {"visible": "visible to infrared", "infrared": "infrared to visible"}
grid_at = cache(grids.read_grid)


def number(count, thing):
    """Write a count with its noun."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def cards_of(row):
    """Return the cards of a row's runs, as far as they are there, by the run's place: a seed, on RegDB one of a split."""
    found = enumerate(results.card(run) for run in row.runs)
    return {place: card for place, card in found if card is not None}


def score(card, query, name="rank1"):
    """Return one score of a card in percent, of attacked images as a file holds them (8 bits)."""
    return 100 * card.get("scores_8_bit", card["scores"])[direction_of[query]][name]


def scores(row, name="rank1"):
    """Return a row's scores in percent, one a run."""
    return [score(card, row.query, name) for card in cards_of(row).values()]


def floor(cards, query, name="rank1"):
    """Return the ends of chance's interval and the arithmetic minimum of some cards, in percent."""
    levels = [card["scores"][direction_of[query]] for card in cards]
    low = min(level["chance"][name]["low"] for level in levels)
    high = max(level["chance"][name]["high"] for level in levels)
    return 100 * low, 100 * high, 100 * min(level["minimum"][name] for level in levels)


Markdown(
    f"{number(len(results.cards), 'run card')} of tier {', '.join(sorted(with_cards)) or '(none)'}"
    f" {'is' if len(results.cards) == 1 else 'are'} read once. {stale_note(results.cards)}"
)

# %% [markdown]
# ## The question
#
# "Rank-1 falls to 2 %." Is that much? It depends on where it came from, on how low the protocol lets it go, on what
# noise of the same size does, on how much another seed moves it, and on whether the number it is compared with was
# measured on the same images. The smallest example is one row, taken apart:

# %% tags=["hide-input"]
line = next(
    line
    for line in grids.table(grid_at("cmps-tables", "lite"), results).to_dict("records")
    if (line["table"], line["victim"], line["attack"], line["query"]) == ("Table 2", "AGW", "CMPS", "visible")
)
if line["done"]:
    rows = [
        ["rank-1 of visible queries after CMPS, %", line["rank-1"], "mean, lowest and highest seed"],
        ["seeds done", f"{line['done']} of {line['runs']}", "each its own victim and its own attack"],
        ["the same victims without the attack", line["rank-1 clean"], "where it came from"],
        ["chance", f"{line['chance low']:.1f} to {line['chance high']:.1f}", "95 % of rankings without information"],
        ["minimum of mAP", f"{line['minimum']:.1f}", "nothing measured with this protocol is lower"],
        ["the paper's number", f"{line['paper r1']:.1f}", "**other data**: RegDB; not comparable"],
    ]
    text = table(["", "value", "what it is"], rows)
else:
    text = "**Pending**: no card of this row yet. `vireid-lite bench cmps-tables` makes them."
Markdown(text)

# %% [markdown]
# The last line is why this book has {term}`tiers <tier>`. At `lite` and `standard` people are rendered: the mechanism of
# an attack can be shown on them, a printed number cannot. Only at `full`, on the benchmark a table names and by its
# protocol, does the paper's number stand beside ours and is the difference computed. Everywhere else it has a table of
# its own, labelled as of other data.

# %% [markdown]
# ## How a row is made
#
# A *grid* names data sets, victims, attacks, budgets and seeds; each cell is one run and writes one card. Five grids
# are shipped. A dry run needs no data: it says what is done, what is to do, and how long that took those who did it.

# %% tags=["hide-input"]
rows = []
for name in grids.GRIDS:
    grid = grid_at(name, settings.tier)
    found = results.plan(grid.runs)
    guess = f"{found.seconds / 60:.0f} min" if len(found.todo) > found.unknown else "–"
    unknown = f" + {found.unknown} unknown" if found.unknown else ""
    rows.append([f"`{name}`", len(grid.rows), len(found.done) + len(found.todo), len(found.done), f"{guess}{unknown}"])
Markdown(
    table(["grid", "rows", "runs", "done", "estimate of the rest"], rows)
    + f"\n\nTier `{settings.tier}`. A row is one direction; both directions of a victim and attack come from the same"
    " run. The estimate is made of the cards' own seconds, on whatever machine wrote them; that of `smoke`, whose"
    " networks are tiny, comes from cards of larger ones and is far too long."
)

# %% [markdown]
# One cell, live: of the grid `smoke`, whose networks are far too small to mean anything, the transfer cell. It trains
# two networks of different make and seed, learns a perturbation on the first, and ranks with the second.

# %%
smoke = grids.read_grid("smoke", seeds=[settings.seed])
cell = replace(smoke, rows=tuple(row for row in smoke.rows if row.table == "transfer"))
folder = settings.out_dir / "benchmark"

before = grids.Results(folder).plan(cell.runs, rerun_stale=True)
options = {"device": str(settings.device), "rerun_stale": True, "progress": False}
report = run_grid(cell.runs, folder, **options)
after = grids.Results(folder).plan(cell.runs)
again = run_grid(cell.runs, folder, **options)
assert not after.todo
assert not again["ran"]  # what is done is never run twice

live = grids.Results(folder)
run = cell.runs[0]
live_card = live.card(run)

# %% tags=["hide-input"]
Markdown(
    f"To do before: {number(len(before.todo), 'run')}; after: {len(after.todo)}. A second call runs"
    f" {len(again['ran'])}: a killed grid resumes where it was. This card took {live_card['wall_seconds']:.1f} s on"
    f" {live_card['device']}, surrogate and target included. As `vireid-lite bench` prints it:\n\n```text\n"
    + grids.describe(cell, live)
    + "\n```"
)

# %% [markdown]
# Everything below is drawn the same way, from cards that took longer.

# %% [markdown]
# ## The tables of the CMPS paper
#
# Its tables 1 to 3 attack AGW, DDAG and DEEN on three benchmarks. Where a tier is not `full`, one synthetic set stands
# in for all three, so rows that differ only in the benchmark are *the same runs*, and shown once.


# %% tags=["hide-input"]
def distinct(rows):
    """Return the rows that stand on runs of their own, with the tables that each of them stands in for."""
    found = {}
    for row in rows:
        key = (row.victim, row.attack, row.eps, row.query, *(run.key for run in row.runs), row.reason)
        found.setdefault(key, (row, []))[1].append(f"{row.table}, {row.dataset}".strip(", "))
    return list(found.values())


def by_victim(rows):
    """Return rows by victim and, there, by name of the attack, each with its two directions."""
    found = {}
    for row, _ in distinct(rows):
        found.setdefault(row.victim, {}).setdefault(row.attack, {})[row.query] = row
    return found


def cells(row):
    """Return a row's rank-1 and mAP over seeds as text, or that they are pending."""
    return [tables.spread(scores(row, name)) if cards_of(row) else "pending" for name in ("rank1", "mAP")]


def floors(cards):
    """Return two lines of a table: chance and arithmetic minimum of rank-1 and mAP, in both directions."""
    ends = [floor(cards, query, name) for query in arrow for name in ("rank1", "mAP")]
    chance = [f"*{low:.1f} to {high:.1f}*" for low, high, _ in ends]
    return [["*chance*", *chance, ""], ["*minimum*", *(f"*{least:.1f}*" for *_, least in ends), ""]]


def victim_table(victim, attacks):
    """Write one victim's rows, chance and minimum below; say what is not built."""
    lines, cards, reasons = [], [], []
    for attack, ways in attacks.items():
        row = ways["visible"]
        if row.reason:
            reasons.append(row.reason)
            continue
        found = cards_of(row)
        cards += found.values()
        lines.append([attack, *cells(row), *cells(ways["infrared"]), f"{len(found)} of {len(row.runs)}"])
    run = next((run for ways in attacks.values() for run in ways["visible"].runs), None)
    on = ""
    if run:  # victims of different data stand on one page
        people, epochs = run.dataset.get("num_identities"), run.recipe.settings.epochs
        on = f"; crops {' × '.join(map(str, run.dataset['size']))}, {f'{people} people, ' if people else ''}{epochs} epochs"
    header = [f"**{victim}**{on}", "V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP", "seeds"]
    if reasons:
        return f"**{victim}**: not built; {'; '.join(dict.fromkeys(reasons))}."
    if not cards:
        return f"**{victim}**: pending, {number(len(lines), 'row')}."
    return table(header, lines + (floors(cards) if cards else []))


def command(name, tier):
    """Return the command that makes a grid's cards."""
    return f"vireid-lite bench {name}" + (f" --tier {tier}" if tier != "lite" else "")


def what_waits(name, tier, rows):
    """Say how many of the rows' runs have no card, and which command makes them."""
    runs = {run.key: run for row in rows for run in row.runs}.values()
    missing = sum(results.card(run) is None for run in runs)
    said = f"**Pending**: {missing} of {len(runs)} runs. `{command(name, tier)}` makes them." if missing else ""
    return " ".join(filter(None, [said, stale_note([card for row in rows for card in cards_of(row).values()])]))


def two_trainings(attacks, tolerance=0.05):
    """Name the attacks whose cards are of another training of the same victim than the clean row's."""
    clean = cards_of(attacks["none"]["visible"]) if "none" in attacks else {}
    others = {}
    for attack, ways in attacks.items():
        for query, row in ways.items():
            for place, card in cards_of(row).items():
                if "clean" in card and place in clean:
                    apart = abs(100 * card["clean"][direction_of[query]]["rank1"] - score(clean[place], query))
                    if apart > tolerance:
                        others[attack] = max(others.get(attack, 0), apart)
    return others


def of_tables(name, tier, *numbers):
    """Return a grid's rows of some tables."""
    return [row for row in grid_at(name, tier).rows if row.table in numbers]


def at_other_tiers(name, *numbers, full=False):
    """Write a grid's rows that have cards at another tier than the one shown, one table a tier; "" if there are none."""
    parts = []
    for tier in ("lite", "standard", *(["full"] if full else [])):
        if tier == shown_tier or tier not in with_cards:
            continue
        rows = [row for row in of_tables(name, tier, *numbers) if cards_of(row) and reading(row) == "frozen"]
        lines, cards = {}, []
        for row, _ in distinct(rows):
            on = f"on {row.learned_on}" if row.learned_on else ""
            made_on = f"from {row.surrogate} {on}".strip() if row.surrogate else ""
            what = ", ".join(filter(None, [row.victim, row.attack, row.eps and f"ε {row.eps}", made_on]))
            lines.setdefault((what, *(run.key for run in row.runs)), {})[row.query] = row
            cards += cards_of(row).values()
        body = [
            [what, *(cells(ways[query])[0] for query in arrow), f"{len(cards_of(ways['visible']))} of {len(runs)}"]
            for (what, *runs), ways in lines.items()
        ]
        if body:
            ends = [floor(cards, query) for query in arrow]
            body.append(["*chance*", *(f"*{low:.1f} to {high:.1f}*" for low, high, _ in ends), ""])
            body.append(["*minimum*", *(f"*{least:.1f}*" for *_, least in ends), ""])
            parts.append(table([f"**Tier {tier}**, rank-1 %", "V→I", "I→V", "seeds"], body))
    return "\n\n".join(parts)


def reading(row):
    """Return whether a row attacks a frozen victim, trains one, or leaves it as it is."""
    return "literal" if any(run.modification for run in row.runs) else "frozen"


main_tables = ("Table 1", "Table 2", "Table 3")
shown_tier = settings.tier if settings.tier != "full" else "lite"  # rows of tier full have a table of their own
main = of_tables("cmps-tables", shown_tier, *main_tables)
victims = by_victim(main)
stands_for = {row.victim: [] for row in main}
for row, places in distinct(main):
    stands_for[row.victim] += places
Markdown(
    f"Tier `{shown_tier}`. "
    + " ".join(f"{victim} stands in for {'; '.join(dict.fromkeys(places))}." for victim, places in stands_for.items())
)

# %% mystnb={"figure": {"caption": "Rank-1 of attacked queries on AGW, at the tier named above, 8 bits: a ring for each seed, a line from the lowest to the highest, an upright bar at their mean. Grey band: chance. Look first at how far the rings of one row lie apart, then at how far two rows do.", "name": "fig-benchmark-agw"}, "image": {"alt": "Two panels side by side, one for each direction, with one row for each attack. Small rings on a thin line along each row over an axis from zero to one hundred percent, a short upright bar among them, a narrow grey band at the left edge; rows without cards say pending."}} tags=["hide-input"]
bands = {}
for query, title in direction_of.items():
    found = [card for ways in victims["AGW"].values() for card in cards_of(ways[query]).values()]
    bands[title] = floor(found, query)[:2] if found else (0, 0)
plots.score_rows(
    {
        title: {attack: scores(ways[query]) for attack, ways in victims["AGW"].items()}
        for query, title in direction_of.items()
    },
    bands,
)
plt.show()

# %% tags=["hide-input"]
parts = [victim_table(victim, attacks) for victim, attacks in victims.items()]
other = {victim: two_trainings(attacks) for victim, attacks in victims.items()}
for victim, found in other.items():
    if found:
        parts.append(
            f"{victim}: the cards of {', '.join(found)} are of another training of the same recipe and seeds than the"
            f" clean row's (their own clean rank-1 differs by up to {max(found.values()):.1f} points), so differences"
            " as small as that say nothing."
        )
Markdown(
    "\n\n".join(
        [
            *parts,
            "In %, mean over seeds (lowest to highest). V→I: visible query, infrared gallery. Infrared images receive"
            " three free channels, as published; the form a sensor could deliver is in"
            " [chapter 6](06_the_whole_attack.html). FGSM to ODFA make a perturbation for each image, which they see"
            " before it is submitted; Col.+Del. and CMPS have one for all.",
            what_waits("cmps-tables", shown_tier, main),
            at_other_tiers("cmps-tables", *main_tables, "Table 5", "Table 6"),
        ]
    )
)

# %% tags=["hide-input"]
per_image = {"FGSM", "PGD", "M-FGSM", "LTA", "ODFA"}


def means(attacks, query):
    """Return the attacks' mean rank-1, those with cards."""
    found = {attack: scores(ways[query]) for attack, ways in attacks.items() if attack != "none"}
    return {attack: np.mean(values) for attack, values in found.items() if values}


said = []
for victim, attacks in victims.items():
    for query, way in arrow.items():
        found = means(attacks, query)
        universal = {name: value for name, value in found.items() if name not in per_image and "noise" not in name}
        image = {name: value for name, value in found.items() if name in per_image}
        if not universal or not image:
            continue
        best, other = min(universal, key=universal.get), min(image, key=image.get)
        reach = scores(attacks[best][query])
        overlap = [
            name for name in universal if name != best and min(scores(attacks[name][query])) <= max(reach)
        ]  # fmt: skip
        cards = list(cards_of(attacks[best][query]).values())
        high = floor(cards, query)[1]
        at_floor = [name for name in found if max(scores(attacks[name][query])) <= high]
        said.append(
            f"*{victim}, {way}*: the lowest mean of the universal attacks is {best}'s, {universal[best]:.1f} %"
            + (f", and its seeds overlap those of {', '.join(overlap)}" if overlap else "")
            + f"; of the image-specific ones {other}'s, {image[other]:.1f} %. "
            + (
                f"Inside chance in every seed: {', '.join(at_floor)}."
                if at_floor
                else "No attack is at chance in every seed."
            )
        )
Markdown("\n\n".join(said) or "What the rows say is written here once cards are there.")

# %% [markdown]
# Attacks at chance cannot be ranked against each other, however their digits differ. And a universal attack that does
# less than an image-specific one has not lost: it was made before the query was seen.
#
# ### The paper's numbers, on other data
#
# The same rows as printed, on SYSU-MM01, RegDB and LLCM {cite}`wu2017sysu,nguyen2017regdb,zhang2023deen`. None of them
# may be subtracted from a number above.


# %% tags=["hide-cell"]
def printed(source, *numbers):
    """Write the reported rank-1 and mAP of some tables, one table each."""
    known = grids.reported()
    parts = []
    for number_ in numbers:
        part = known[(known.source == source) & (known.table == number_) & known.metric.isin(["r1", "mAP"])]
        if part.empty:
            parts.append(f"**{number_}**: its numbers are not known to us.")
            continue
        ways = [query for query in ("visible", "infrared", "") if query in set(part["query"])]
        kinds = [(query, metric) for query in ways for metric in ("r1", "mAP")]
        names = {"r1": "rank-1", "mAP": "mAP"}
        lines = []
        part = part.sort_values(["dataset", "setting"], kind="stable")
        for key, group in part.groupby(["dataset", "setting", "victim", "attack"], sort=False):
            values = {(one["query"], one["metric"]): one["percent"] for one in group.to_dict("records")}
            dataset, setting, victim, attack = key
            where = ", ".join(filter(None, [dataset, setting.removesuffix(", as labelled")]))
            lines.append([where, victim, attack, *(values.get(kind, "–") for kind in kinds)])
        header = [
            "",
            "victim",
            "attack",
            *(f"{arrow.get(query, '')} {names[metric]}".strip() for query, metric in kinds),
        ]
        parts.append(f"**{number_}**, the paper's own data\n\n{table(header, lines)}")
    return "\n\n".join(parts)


Markdown(printed("cmps", *main_tables))

# %% [markdown]
# ### On the benchmarks themselves
#
# With licensed data, `vireid-lite bench cmps-tables --tier full` fills the same rows on the data that each table names,
# with the official trials or splits. Here the paper's number stands beside ours, and *off* is ours minus the paper's,
# in points.


# %% tags=["hide-input"]
def at_full(name, *numbers):
    """Write a grid's rows at tier full, ours and the paper's, as far as cards are there."""
    rows = of_tables(name, "full", *numbers)
    runs = {run.key: run for row in rows for run in row.runs}
    waits = what_waits(name, "full", rows)
    if "full" not in with_cards:
        return (
            f"**Pending**: no card of tier `full` yet; {len(runs)} runs are open. `{command(name, 'full')}` makes them."
        )
    grid = replace(grid_at(name, "full"), rows=tuple(rows))
    groups = {}
    for row, line in zip(rows, grids.table(grid, results).to_dict("records"), strict=True):
        setting = "" if row.setting.startswith("eps=") else row.setting
        kind = "retrained" if reading(row) == "literal" else ""
        title = ", ".join(filter(None, [row.table, row.dataset, setting, row.victim, arrow[row.query], kind]))
        groups.setdefault(title, []).append((row, line))
    parts = []
    for title, lines in groups.items():
        if not any(line["done"] for _, line in lines):
            continue
        body = []
        for row, line in lines:
            own = [line["rank-1"], line["mAP"]] if line["done"] else ["pending", "pending"]
            paper = ["–" if pd.isna(line[f"paper {metric}"]) else line[f"paper {metric}"] for metric in ("r1", "mAP")]
            ours_map = np.mean(scores(row, "mAP")) if line["done"] else float("nan")
            off = [line.get("off r1", float("nan")), ours_map - line["paper mAP"]]
            off = ["–" if pd.isna(value) else f"{value:+.1f}".replace("-", "−") for value in off]
            name_ = ", ".join(filter(None, [row.attack, row.eps]))
            columns = zip(own, paper, off, strict=True)
            body.append(
                [name_, *(value for column in columns for value in column), f"{line['done']} of {line['runs']}"]
            )
        cards = [card for row, _ in lines for card in cards_of(row).values()]
        ends = [floor(cards, lines[0][0].query, metric) for metric in ("rank1", "mAP")]
        body.append(["*chance*", *(x for low, high, _ in ends for x in (f"*{low:.1f} to {high:.1f}*", "", "")), ""])
        body.append(["*minimum*", *(x for *_, least in ends for x in (f"*{least:.1f}*", "", "")), ""])
        header = ["", "rank-1", "paper", "off", "mAP", "paper", "off", "runs"]
        parts.append(f"**{title}**\n\n{table(header, body)}")
    reasons = {f"{row.victim}, {row.attack}": row.reason for row in rows if row.reason}
    if reasons:
        parts.append("Not built: " + "; ".join(f"{what} ({why})" for what, why in reasons.items()) + ".")
    return "\n\n".join([*parts, waits])


Markdown(at_full("cmps-tables", *main_tables, "Table 5", "Table 6"))

# %% [markdown]
# ### Tier standard
#
# A ResNet-50 on 256 × 128 synthetic crops of thousands of people, on one GPU. `benchmarks/gpu.sh` runs it one seed a
# call, and notes in each card which precision it computed in.


# %% tags=["hide-input"]
def standard_tables():
    """Write what cards of tier standard hold, one table for each victim and data set."""
    cards = [card for card in results.cards if card["tier"] == "standard" and "surrogate" not in card]
    cards = [card for card in cards if "modification" not in card]
    groups = {}
    for card in sorted(cards, key=lambda card: (card["dataset"].get("difficulty", ""), card["seed"])):
        data, victim = card["dataset"], card["victim"]
        way = card.get("compute", {}).get("precision", "float32")
        title = f"{victim['model']}, {victim['backbone']}, {data.get('difficulty', data['name'])}, {way}"
        made_by = card["attack"]
        name = "none"
        if made_by:
            name = f"{tables.label(made_by)}, {'tied' if made_by['tied'] else 'free'}"
            name += "" if abs(255 * made_by["eps"] - 8) < 1e-6 else f", ε {255 * made_by['eps']:.3g}/255"
        alike = json.dumps([{**card[part]} if card[part] else None for part in ("dataset", "victim", "attack")])
        groups.setdefault(title, {}).setdefault((name, alike), []).append(card)
    parts = []
    for title, lines in groups.items():
        body = []
        for (name, _), found in sorted(lines.items(), key=lambda item: item[0][0] != "none"):
            columns = [
                tables.spread(score(card, query, kind) for card in found)
                for query in arrow
                for kind in ("rank1", "mAP")
            ]
            body.append([name, *columns, len({card["seed"] for card in found})])
        every = [card for found in lines.values() for card in found]
        machines = sorted({card["device"] for card in every})
        header = [f"**{title}**", "V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP", "seeds"]
        parts.append(table(header, body + floors(every)))
        parts.append(
            f"Made on {', '.join(machines)}; median {np.median([card['wall_seconds'] for card in every]):.0f} s a card,"
            f" at most {max(card['peak_memory_mib'] for card in every) / 1024:.1f} GiB. {stale_note(every)}"
        )
    return "\n\n".join(parts)


Markdown(
    standard_tables()
    or "**Pending**: no card of tier `standard` yet. `benchmarks/gpu.sh SEED book/results` makes those of one seed, on one GPU."
)

# %% [markdown]
# Clean scores are reported as they come: the renderer was not touched after these victims had been seen.
#
# ### Ablation
#
# The paper's table 5 takes two parts of the method away, the grey augmentation and the cross-modality triplet. Ours has
# the same four lines at equal cost. The step size of each was chosen on validation people, on the former victim of tier
# `lite` (its cards: `book/archive/former_victim.jsonl.xz`).

# %% tags=["hide-input"]
ablation = of_tables("cmps-tables", shown_tier, "Table 5")
parts = [victim_table(victim, attacks) for victim, attacks in by_victim(ablation).items()]
said = []
for victim, attacks in by_victim(ablation).items():
    for query, way in arrow.items():
        found = {name: scores(ways[query]) for name, ways in attacks.items()}
        found = {name: values for name, values in found.items() if len(values) == len(attacks[name][query].runs)}
        if len(found) > 1:
            lowest, highest = (pick(found, key=lambda name: np.mean(found[name])) for pick in (min, max))
            gap = np.mean(found[highest]) - np.mean(found[lowest])
            widest = max(max(values) - min(values) for values in found.values())
            said.append(
                f"*{victim}, {way}*: the means of the {len(found)} lines with all their seeds lie within {gap:.1f} points,"
                f" the seeds of one line up to {widest:.1f} apart"
                + (": between them these lines show no order." if gap < widest else ".")
            )
Markdown("\n\n".join([*parts, *said, what_waits("cmps-tables", shown_tier, ablation), printed("cmps", "Table 5")]))

# %% [markdown]
# Differences within one seed can be real where means over seeds are not told apart;
# [chapter 5](05_cross_modality_triplet) pairs them on the same queries of the same victims, where both have run.

# %% [markdown]
# ## Curves
#
# The paper draws damage against the budget, against the probability of grey, and accuracy against the time an attack
# takes. Its curves' values are not printed, so nothing of the paper stands beside these.


# %% tags=["hide-input"]
def curves(part, name, place):
    """Return (panels, bands, rows) of one part of the grid of curves: scores over the knob that `place` reads."""
    rows = of_tables("cmps-figures", shown_tier, part)
    panels, bands = {}, {}
    for query, title in direction_of.items():
        own = [row for row in rows if row.query == query]
        cards = tables.one_training([card for row in own for card in cards_of(row).values()])
        bands[title] = floor(cards, query)[:2] if cards else (0, 0)
        panels[title] = {}
        for row in own:
            panels[title].setdefault(name(row), {})[place(row)] = scores(row)
    return panels, bands, rows


def trend(panels):
    """Say whether each curve's mean falls, or stays, with every step of its knob."""
    said = []
    for title, lines in panels.items():
        for name, line in lines.items():
            most = max(map(len, line.values()))  # a mean over fewer seeds is of other victims
            points = [(x, np.mean(values)) for x, values in sorted(line.items()) if values and len(values) == most]
            if len(points) > 1:
                steps = np.diff([mean for _, mean in points])
                how = "falls, or stays, at every step" if (steps <= 0).all() else "does not fall at every step"
                said.append(f"{name}, {title}: {points[0][1]:.1f} to {points[-1][1]:.1f} %, {how}")
    return "; ".join(said) + "." if said else ""


# %% mystnb={"figure": {"caption": "Rank-1 against the budget, in 255ths, 8 bits. Marks: mean over seeds; bars: from the lowest seed to the highest; grey band: chance. The distance between an attack and noise of the same size is what its gradients are worth.", "name": "fig-benchmark-budget"}, "image": {"alt": "Two panels, one for each direction. Over budgets of two, four, eight and sixteen 255ths run marked lines with upright bars from high on the left to lower on the right, above a narrow grey band at the bottom; a line without cards is missing."}} tags=["hide-input"]
budget, bands, rows = curves("budget", lambda row: row.attack, lambda row: float(row.eps.split("/")[0]))
plots.score_curves(budget, bands, "ε (of 255)", log=True)
plt.show()

# %% tags=["hide-input"]
Markdown(" ".join([trend(budget), what_waits("cmps-figures", shown_tier, rows)]))

# %% [markdown]
# Table 6 of the paper has the same curve on RegDB:

# %% tags=["hide-input"]
known = grids.reported()
known = known[(known.table == "Table 6") & (known.source == "cmps") & (known.metric == "r1")]
lines = []
for setting, group in known.groupby("setting", sort=False):
    own = {row.query: row for row in of_tables("cmps-tables", shown_tier, "Table 6") if row.setting == setting}
    paper = {one["query"]: one["percent"] for one in group.to_dict("records")}
    ours = [cells(own[query])[0] for query in arrow]
    lines.append([setting.removeprefix("eps="), *ours, *(paper.get(query, "–") for query in arrow)])
Markdown(
    table(["ε", "ours, V→I", "ours, I→V", "*other data*: paper, V→I", "paper, I→V"], lines)
    + f"\n\nRank-1 in %. Ours: tier `{shown_tier}`, synthetic people. The paper's: RegDB. Ours and the paper's columns"
    " share nothing but the budget: read the shape, not the height."
)

# %% mystnb={"figure": {"caption": "Rank-1 against the probability with which an image is replaced by its grey version while the attack learns. The paper uses 0.2. Compare the slope with the bars.", "name": "fig-benchmark-grey"}, "image": {"alt": "Two panels, one for each direction, each with one marked line over four probabilities between zero and one, with long upright bars, and a narrow grey band at the bottom; or the word pending."}} tags=["hide-input"]
grey, bands, rows = curves("grey probability", lambda row: "CMPS", lambda row: float(row.attack.split()[-1]))
plots.score_curves(grey, bands, "probability of grey")
plt.show()

# %% tags=["hide-input"]
said = []
for title, lines in grey.items():
    most = max(map(len, lines["CMPS"].values()))
    line = {x: values for x, values in lines["CMPS"].items() if values and len(values) == most}
    if len(line) > 1:
        centres = {x: np.mean(values) for x, values in line.items()}
        widest = max(max(values) - min(values) for values in line.values())
        gap = max(centres.values()) - min(centres.values())
        best = min(centres, key=centres.get)
        said.append(
            f"{title}: lowest mean at {best:g}; all means within {gap:.1f} points, the seeds of one of them up to"
            f" {widest:.1f} apart" + (", so no value is shown to be the best" if gap < widest else "")
        )
Markdown("; ".join(said) + (". " if said else "") + what_waits("cmps-figures", shown_tier, rows))

# %% [markdown]
# ### Score against seconds
#
# Seconds are those in the cards, `craft_seconds`, without scoring. They are of two kinds. An image-specific attack pays
# for each query anew: its seconds are for all test queries of both directions. A universal one pays once, however many
# queries follow.

# %% mystnb={"figure": {"caption": "Rank-1 on AGW against the seconds that crafting took. Solid marks: universal attacks, paid once. Hollow marks: image-specific ones, for all test queries. A mark stands at the median of the seconds and the mean of rank-1. Bars reach from the lowest seed to the highest, in both senses; grey band: chance.", "name": "fig-benchmark-seconds"}, "image": {"alt": "Two scatter charts, one for each direction, seconds on a logarithmic horizontal axis and rank-1 on the vertical one. A dozen marks of different shapes, some solid and some hollow, with thin crosses of bars, and a narrow grey band at the bottom."}} tags=["hide-input"]
timed = {attack: ways for attack, ways in victims["AGW"].items() if attack != "none"}
for row in of_tables("cmps-figures", shown_tier, "gradients"):
    timed.setdefault(f"CMPS, {row.attack}", {})[row.query] = row
timed = {
    name: ways
    for name, ways in timed.items()
    if not (name.endswith(" 240 gradients") and cards_of(ways["visible"]))  # the row CMPS itself
}
panels, bands = {}, {}
for query, title in direction_of.items():
    cards = [card for ways in timed.values() for card in cards_of(ways[query]).values()]
    bands[title] = floor(cards, query)[:2] if cards else (0, 0)
    panels[title] = {}
    for name, ways in timed.items():
        found = list(cards_of(ways[query]).values())
        panels[title][name] = ([card["craft_seconds"] for card in found], [score(card, query) for card in found])
plots.cost_scatter(panels, bands, [name for name in timed if name not in per_image])
plt.show()

# %% tags=["hide-input"]
cards = [card for ways in timed.values() for card in cards_of(ways["visible"]).values()]
machines = {}
for card in cards:
    machines.setdefault(f"{card['device']}, {number(card['threads'], 'thread')}", []).append(card)
lines = []
for name, ways in timed.items():
    found = list(cards_of(ways["visible"]).values())
    if not found:
        lines.append([name, "pending", "", "", ""])
        continue
    queries = sum(
        sum(card["scores"][title]["identity_queries"]) for card in found[:1] for title in direction_of.values()
    )
    seconds = [card["craft_seconds"] for card in found]
    each = f"{1000 * np.median(seconds) / queries:.0f} ms" if name in per_image else "0"
    reach = f"{min(seconds):.1f} to {max(seconds):.1f}"
    lines.append([name, f"{np.median(seconds):.1f}", reach, each, len(found)])
Markdown(
    table(["", "seconds, median", "least to most", "for one query more", "cards"], lines)
    + (
        f"\n\nCards of {'several machines: ' if len(machines) > 1 else 'one kind of machine: '}"
        + "; ".join(f"{name} ({number(len(found), 'card')})" for name, found in machines.items())
        + ". What else such a machine was doing is not in a card: the same attack takes several times as long on a busy one,"
        " and a run that was halted meanwhile counts that too. Compare medians, and orders of magnitude alone."
        if cards
        else ""
    )
    + " "
    + what_waits("cmps-figures", shown_tier, of_tables("cmps-figures", shown_tier, "gradients"))
    + "\n\n"
    + at_other_tiers("cmps-figures", "budget", "grey probability", "gradients", full=True)
)

# %% [markdown]
# ## The tables of the feature-level paper
#
# The paper does not say whether images are perturbed or the network is retrained; [chapter 10](10_read_two_ways) reads
# it both ways. So each table comes twice, and the two are not comparable: the first attacks a frozen victim, the
# second trains one.
#
# ### Frozen victims

# %% tags=["hide-input"]
feature_tables = ("Table 1", "Table 2 / rebuttal")
feature = of_tables("feature-level-tables", shown_tier, *feature_tables)
bounded = [row for row in feature if reading(row) == "frozen"]
literal_names = {row.attack for row in feature if reading(row) == "literal"}
bounded = [row for row in bounded if row.attack not in literal_names]
Markdown(
    "\n\n".join(
        [victim_table(victim, attacks) for victim, attacks in by_victim(bounded).items()]
        + [
            f"Tier `{shown_tier}`, 8 bits, mean over seeds (lowest to highest). *As summed*: the printed sum of losses;"
            " *linear*: without the hinge and without the identity loss.",
            what_waits("feature-level-tables", shown_tier, bounded),
            at_other_tiers("feature-level-tables", *feature_tables),
        ]
    )
)

# %% [markdown]
# ### Retrained victims
#
# Every line is a network of its own, trained on perturbed images, at tier `lite` for one epoch from a trained victim (the
# paper: 60, from ImageNet weights). The first pair of columns perturbs both sides, as the
# text has it; the second perturbs nothing. If the second is as low as the first, the "attack" needs no perturbation.
# Only AGW has its control, *noise*: the identity loss alone. Of the others nothing says which part of a fall is the
# retraining's.

# %% tags=["hide-input"]
every = [row for row in grid_at("feature-level-tables", shown_tier).rows if reading(row) == "literal"]


def literal_table(rows):
    """Write retrained victims: both sides perturbed, then nothing perturbed on the same network."""
    lines, cards, seen = [], [], {}
    for row, _ in distinct(rows):
        same = seen.setdefault((row.victim, *(run.key for run in row.runs)), {"names": [], "ways": {}})
        if row.attack not in ("none", *same["names"]):
            same["names"].append(row.attack)
        same["ways"][row.query] = row
    for (victim, *_), same in seen.items():
        found = {query: list(cards_of(row).values()) for query, row in same["ways"].items()}
        cards += found["visible"]
        columns = []
        for kind in ("scores", "scores_clean"):
            for query, own in found.items():
                values = [100 * card.get(kind, card["scores"])[direction_of[query]]["rank1"] for card in own]
                perturbed = all("scores_clean" in card for card in own) or kind == "scores_clean"
                columns.append((tables.spread(values) if perturbed else "–") if values else "pending")
        name = ": ".join(filter(None, [victim, " = ".join(same["names"])]))
        lines.append([name, *columns, f"{len(found['visible'])} of {len(same['ways']['visible'].runs)}"])
    if cards:
        ends = [floor(cards, query) for query in arrow] * 2
        lines.append(["*chance*", *(f"*{low:.1f} to {high:.1f}*" for low, high, _ in ends), ""])
        lines.append(["*minimum*", *(f"*{least:.1f}*" for *_, least in ends), ""])
    return table(["rank-1 %", "perturbed V→I", "perturbed I→V", "clean V→I", "clean I→V", "seeds"], lines), cards


text, cards = literal_table(every)
elsewhere = []
for tier in sorted(with_cards - {shown_tier}):
    found = [row for row in grid_at("feature-level-tables", tier).rows if reading(row) == "literal" and cards_of(row)]
    elsewhere += [f"**Tier {tier}**\n\n{literal_table(found)[0]}"] if found else []
trained = [card for card in cards if "scores_clean" in card]
gaps = [
    100 * (card["scores_clean"][title]["rank1"] - card["scores"][title]["rank1"])
    for card in trained
    for title in direction_of.values()
]
ends = f"{min(gaps):.1f} to {max(gaps):.1f}".replace("-", "−") if gaps else ""
Markdown(
    text
    + '\n\nLines that are one network under two names in the paper\'s tables are joined with "=". A victim alone was trained without any perturbation. '
    + (
        f"Over {number(len(trained), 'network')} of these, perturbing both sides costs {np.mean(gaps):.1f} points of rank-1 on"
        f" average ({ends}). "
        if gaps
        else ""
    )
    + what_waits("feature-level-tables", shown_tier, every)
    + "\n\n"
    + "\n\n".join(elsewhere)
)

# %% [markdown]
# ### The paper's numbers, on other data, and rows at tier full

# %% tags=["hide-cell"]
numbers_ = dict.fromkeys(row.table for row in grid_at("feature-level-tables", "full").rows)
Markdown(printed("feature_level", *numbers_))

# %% tags=["hide-input"]
Markdown(at_full("feature-level-tables", *numbers_))

# %% [markdown]
# ## Transfer
#
# A perturbation made on one network, the {term}`surrogate`, is added to the queries of another, the target. Three things
# decide what such a number means, and a table can hide each of them:
#
# 1. **Who made the surrogate.** If source and target are the same network, or two trainings that share a seed and
#    therefore initial weights and batches, the table measures a white-box attack by another name. Here the
#    surrogate's seed is never the target's: each victim serves as target and, of the next seed, as surrogate. The
#    diagonal is the same *architecture*, not the same network.
# 2. **Whom the surrogate has seen.** On the target's own training people it learns what the target learned. So
#    surrogates trained on the same people and on others are kept apart.
# 3. **What stands beside.** The target's clean score, noise of the same size, and the same attack made on the target
#    itself. An attack that does no more than noise has not transferred anything.
#
# ### Where the crops differ in size
#
# $\delta$ belongs to pixels. For a target with other crops it is interpolated bilinearly (corners not aligned, no
# antialiasing) and clipped to $[-\varepsilon, \varepsilon]$ again; that is `attacks.perturbation.resized`. Interpolation averages,
# so a $\delta$ that sits at its bound everywhere becomes weaker, and no budget is broken:

# %%
from_size, to_size = (64, 32), (96, 48)
pattern = build_attack("sign-noise")
signs = torch.rand(3, *from_size, generator=torch.Generator().manual_seed(settings.seed)) < 0.5
made = UniversalPerturbation(torch.where(signs, pattern.eps, -pattern.eps), pattern.eps)
fitted = resized(made, to_size)
assert fitted.delta.shape[-2:] == to_size
assert fitted.delta.abs().max() <= made.eps

# %% tags=["hide-input"]
sizes = {
    tuple(side["dataset"]["size"]) == tuple(card["dataset"]["size"])
    for card in results.cards
    for side in [card.get("surrogate")]
    if side
}
Markdown(
    f"Sign noise of {from_size[0]} × {from_size[1]} pixels, fitted to {to_size[0]} × {to_size[1]}: the mean size of a value"
    f" goes from {255 * made.delta.abs().mean():.1f} to {255 * fitted.delta.abs().mean():.1f} of 255, the largest from"
    f" {255 * made.delta.abs().max():.1f} to {255 * fitted.delta.abs().max():.1f}. "
    + (
        "In the matrices below source and target have crops of one size, so nothing is resized."
        if sizes == {True}
        else ""
    )
)

# %% [markdown]
# ### From victim to victim


# %% tags=["hide-input"]
transfer = grid_at("transfer", shown_tier)
networks = list(dict.fromkeys(row.victim for row in transfer.rows if row.runs))
not_built = {row.victim: row.reason for row in transfer.rows if row.reason and row.victim not in networks}
transferred = list(dict.fromkeys(row.attack for row in transfer.rows if row.surrogate))
whom = {"people": "same people", "others": "other people"}
seeds_of_grid = sorted({run.seed for run in transfer.runs})
beside = {(row.victim, row.attack, row.query): row for row in transfer.rows if not row.surrogate}
carried = {
    (row.surrogate, row.victim, row.attack, row.learned_on, row.query): row
    for row in transfer.rows
    if row.table == "victim to victim"
}


def by_seed(row):
    """Return a row's rank-1 by seed, NaN where one has not run."""
    found = cards_of(row)
    return [score(found[place], row.query) if place in found else float("nan") for place in range(len(row.runs))]


def matrices(attack):
    """Return one matrix for each direction and kind of surrogate: surrogates, then clean, noise and own attack."""
    found = {}
    for query, way in arrow.items():
        cards = [card for (*_, q), row in beside.items() if q == query for card in cards_of(row).values()]
        chance = "\nchance {:.1f} to {:.1f}".format(*floor(cards, query)[:2]) if cards else ""
        for people, words in whom.items():
            lines = [[by_seed(carried[s, t, attack, people, query]) for t in networks] for s in networks]
            lines += [[by_seed(beside[t, own, query]) for t in networks] for own in ("none", "sign noise", attack)]
            found[f"{way}, {words}{chance}"] = np.array(lines)
    return found


row_names = [*(f"from {name}" for name in networks), "clean", "sign noise", "made on itself"]
Markdown(
    f"Targets stand in columns, and what their queries carry in rows: a perturbation made on each surrogate; below the gap"
    " nothing, sign noise, and the same attack made on the target itself. Tier"
    f" `{shown_tier}`, seeds {', '.join(map(str, seeds_of_grid))}. "
    + "".join(f"Without {name}: {reason}. " for name, reason in not_built.items())
    + what_waits("transfer", shown_tier, transfer.rows)
)

# %% mystnb={"figure": {"caption": "CMPS from victim to victim: rank-1 of the target in %, mean over seeds, lowest to highest below it. Above the gap: made on a surrogate; below it: clean, sign noise, made on the target itself. One scale of colours for this figure and the next. Compare each number with sign noise in its own column before calling it transfer.", "name": "fig-benchmark-transfer-cmps"}, "image": {"alt": "Four heat maps, directions above each other and surrogates of the same and of other people side by side. Each has one column for each target and one row for each surrogate, and three more rows below a gap; every cell holds a number over its colour, or is hatched and says pending."}} tags=["hide-input"]
shown = {attack: matrices(attack) for attack in transferred}
largest = max((np.nanmax(m) for found in shown.values() for m in found.values() if not np.isnan(m).all()), default=100)
top = 10 * np.ceil(largest / 10)  # one scale for both figures
plots.score_matrices(shown["CMPS"], row_names, networks, apart=3, top=top)
plt.show()

# %% mystnb={"figure": {"caption": "The bounded feature-level attack from victim to victim, as in the figure before. It learns with identities of the surrogate's training people.", "name": "fig-benchmark-transfer-feature"}, "image": {"alt": "Four heat maps of the same layout as before, with other numbers or with hatched cells that say pending."}} tags=["hide-input"]
plots.score_matrices(shown["feature-level"], row_names, networks, apart=3, top=top)
plt.show()


# %% tags=["hide-input"]
def pairs(first, second):
    """Return the 8-bit scores of two rows on the seeds that both have, of the same training of the target."""
    one, other = cards_of(first), cards_of(second)
    both = [place for place in one if place in other and tables.same_victim(one[place], other[place])]
    direction = direction_of[first.query]
    return [[found[place]["scores_8_bit"][direction] for place in both] for found in (one, other)]


def verdicts(first, second):
    """Count how often the second row of each pair is lower, higher, or not told apart, by its 95 % interval."""
    found = {"lower": 0, "higher": 0, "not told apart": 0}
    for one, other in zip(first, second, strict=True):
        before, after = pairs(one, other)
        if before:
            moved = tables.paired(before, after)
            found["lower" if moved.high < 0 else "higher" if moved.low > 0 else "not told apart"] += 1
    return found


def told(found):
    """Write counts of verdicts."""
    return ", ".join(f"{name} {count}" for name, count in found.items())


said = []
for attack in transferred:
    own = {key: row for key, row in carried.items() if key[2] == attack}
    noise = verdicts([beside[t, "sign noise", q] for _, t, _, _, q in own], list(own.values()))
    if not sum(noise.values()):
        continue
    white = verdicts([beside[t, attack, q] for _, t, _, _, q in own], list(own.values()))
    own_people = {key: row for key, row in own.items() if key[3] == "people"}
    people = verdicts(list(own_people.values()), [own[s, t, a, "others", q] for s, t, a, _, q in own_people])
    diagonal = {key: row for key, row in own.items() if key[0] == key[1]}
    same = verdicts([beside[t, "sign noise", q] for _, t, _, _, q in diagonal], list(diagonal.values()))
    said.append(
        f"*{attack}*. Of {sum(noise.values())} cells (surrogate, target, people, direction), rank-1 against **sign noise**:"
        f" {told(noise)}; on the diagonal alone: {told(same)}. Against the attack **made on the target itself**:"
        f" {told(white)}. Surrogates of **other people** against those of the same: {told(people)}."
    )
Markdown(
    "\n\n".join(said)
    + "\n\n"
    + (
        "Each verdict is a paired 95 % interval over people, seeds together, on the same queries of the same targets. Lower"
        " means more damage."
        if said
        else "What the matrices say is written here once cards are there."
    )
)

# %% [markdown]
# ### From data set to data set
#
# The same architecture, trained on people and data of another kind: a harder set, and one with a thermal second
# spectrum. At tier `full` these are other benchmarks.

# %% tags=["hide-input"]
lines = []
cards = []
for row in transfer.rows:
    if row.table == "data set to data set" and row.query == "visible":
        ways = {r.query: r for r in transfer.rows if replace(r, query="visible", runs=()) == replace(row, runs=())}
        own = cards_of(row)
        cards += own.values()
        columns = [cells(ways[query])[0] for query in arrow]
        lines.append(
            [f"{row.attack}, from {row.surrogate} on the {row.learned_on}", *columns, f"{len(own)} of {len(row.runs)}"]
        )
target = next(row.victim for row in transfer.rows if row.table == "data set to data set")
for attack, name in {
    "none": "clean",
    "sign noise": "sign noise",
    **{a: f"{a}, made on itself" for a in transferred},
}.items():
    own = cards_of(beside[target, attack, "visible"])
    cards += own.values()
    columns = [cells(beside[target, attack, query])[0] for query in arrow]
    lines.append([name, *columns, f"{len(own)} of {len(beside[target, attack, 'visible'].runs)}"])
if cards:
    ends = [floor(cards, query) for query in arrow]
    lines.append(["*chance*", *(f"*{low:.1f} to {high:.1f}*" for low, high, _ in ends), ""])
    lines.append(["*minimum*", *(f"*{least:.1f}*" for *_, least in ends), ""])
Markdown(
    table([f"target {target}, rank-1 %", "V→I", "I→V", "seeds"], lines)
    + "\n\n"
    + at_other_tiers("transfer", "targets by themselves", "victim to victim", "data set to data set", full=True)
)

# %% [markdown]
# ### What a "transfer success rate" may mean
#
# Table 4 of the CMPS paper prints a *transfer success rate* between three networks. Neither the measure nor the data
# set is stated. One reading, `study.run.broken`: of the queries that are ranked right before the attack, the share that
# is ranked wrong after it,
#
# $$
# \text{broken} = \frac{\lvert \{ q : \text{right before} \} \cap \{ q : \text{wrong after} \} \rvert}
# {\lvert \{ q : \text{right before} \} \rvert} .
# $$
#
# It starts at zero where nothing changes, and it has a **floor of success** that needs no attack: a ranking without
# information, drawn without looking at the query, is right with probability $p$, the chance level of rank-1, whatever
# it was right about before. So it breaks $1 - p$ of them. Nothing beyond $1 - p$ can be told from having lost all
# information, and a table of values close to it can rank nobody.
#
# The live cell has both networks at hand, so the measure can be taken apart on them:

# %%
dataset = run.open()
target_net, _ = load_or_train(run.recipe, dataset, seed=run.seed, device=settings.device, progress=False)
clean = clean_scores(target_net, dataset, device=settings.device)
store = training_store(dataset, None, False)
noise = build_attack("sign-noise", eps=live_card["attack"]["eps"]).fit(target_net, store, run.seed, progress=False)
generator = np.random.default_rng(settings.seed)
lines = []
for before in clean:
    modality, way = before.query_modality, direction_name(before.query_modality)
    options = {"device": settings.device, "progress": False, "clean": before}
    noisy = evaluate(target_net, dataset, modality, perturb=noise.apply_rounded, **options)
    trial = dataset.trials(modality)[0]
    people = identities_and_cameras(trial)
    shares = []
    for _ in range(200):  # rankings that know nothing
        distance = generator.random((len(trial.query), len(trial.gallery)))
        shares.append(broken(before, replace(before, trials=[metrics.evaluate(distance, *people, dataset.protocol)])))
    p = before.chance.independent.rank1.mean
    lines.append(
        [
            way,
            f"{100 * broken(before, before):.1f}",
            f"{100 * broken(before, noisy):.1f}",
            f"{100 * live_card['scores_8_bit'][way]['broken']:.1f}",
            f"{100 * np.mean(shares):.1f}",
            f"{100 * (1 - p):.1f}",
        ]
    )
Markdown(
    table(
        ["broken, %", "nothing done", "sign noise", "CMPS from the surrogate", "no information, drawn", "1 − chance"],
        lines,
    )
    + "\n\nOn networks of a toy size and a dozen test people, whose numbers mean nothing beyond this: the last two columns"
    " agree, and neither is an attack."
)

# %% [markdown]
# The same on the victims of the matrices. A card holds each person's score and not each query's, so for the rows beside
# (noise, and the attack on the target itself) the share is known between two ends: either those that fell were right
# before as far as the counts allow, or as few of them as possible.


# %% tags=["hide-input"]
def bounds(before, after):
    """Return the least and the largest share of right queries that may be wrong after, from people's scores."""
    count, first, last = (
        np.concatenate([np.asarray(one[name]) for one in side])
        for name, side in (("identity_queries", before), ("identity_rank1", before), ("identity_rank1", after))
    )
    right, still = np.rint(count * first), np.rint(count * last)
    return [np.maximum(right - still, 0).sum() / right.sum(), np.minimum(right, count - still).sum() / right.sum()]


def bounded_share(row):
    """Write both ends of a row's broken share in percent, over the seeds whose clean card is of the same training."""
    clean, attacked = cards_of(beside[row.victim, "none", row.query]), cards_of(row)
    direction = direction_of[row.query]
    both = [
        s
        for s in attacked
        if s in clean and abs(attacked[s]["clean"][direction]["mAP"] - clean[s]["scores"][direction]["mAP"]) < 1e-3
    ]
    if not both:
        return "pending"
    low, high = bounds(
        [clean[s]["scores"][direction] for s in both], [attacked[s]["scores_8_bit"][direction] for s in both]
    )
    return f"{100 * low:.0f} to {100 * high:.0f}"


def share(row):
    """Write a transferred row's broken share in percent."""
    if row.reason:
        return "not built"
    values = [score(card, row.query, "broken") for card in cards_of(row).values()]
    return tables.spread(values) if values else "pending"


parts = []
for attack in transferred:
    lines = [
        [f"{s} → {t}", *(share(carried[s, t, attack, people, query]) for query in arrow for people in whom)]
        for s in networks
        for t in networks
    ]
    for t in networks:
        for own, words in (("sign noise", "*sign noise*"), (attack, "*made on itself*")):
            ends = [bounded_share(beside[t, own, query]) for query in arrow]
            lines.append([f"{words} → {t}", ends[0], "", ends[1], ""])
    levels = []
    for query in arrow:
        found = [card for (*_, q), row in beside.items() if q == query for card in cards_of(row).values()]
        low, high, _ = floor(found, query) if found else (float("nan"),) * 3
        levels += [f"*{100 - high:.1f} to {100 - low:.1f}*" if found else "pending", ""]
    lines.append(["*no information*", *levels])
    header = [f"{attack}, broken %", *(f"{way}, {who.split()[0]}" for way in arrow.values() for who in whom.values())]
    parts.append(table(header, lines))
Markdown(
    "\n\n".join(parts) + "\n\nSame, other: people that the surrogate was trained on. *No information*: 1 − chance."
)

# %% [markdown]
# The paper's table 4, on data it does not name, by a measure it does not define:

# %% tags=["hide-input"]
rates = grids.reported()
rates = rates[rates.metric == "transfer_success"]
named = list(dict.fromkeys(rates.victim))
lines = []
for attack in dict.fromkeys(rates.attack):
    for setting, group in rates[rates.attack == attack].groupby("setting", sort=False):
        source = setting.split()[-1]
        values = dict(zip(group.victim, group.percent, strict=True))
        lines.append([f"{attack}, from {source}", *(values.get(name, "–") for name in named)])
table4 = of_tables("cmps-tables", shown_tier, "Table 4")
ours = {(row.attack, row.surrogate, row.victim, row.query): row for row in table4}
own = [
    [f"{attack}, from {s}", *(" / ".join(share(ours[attack, s, t, query]) for query in arrow) for t in named)]
    for attack in dict.fromkeys(row.attack for row in table4)
    for s in named
]
Markdown(
    table(["*other data*, %", *named], lines)
    + "\n\nNo clean score, no noise, no chance and no number of seeds stands beside it. Our rows of this name, by"
    f" `study.run.broken`, tier `{shown_tier}`, surrogates of the same people, V→I / I→V:\n\n"
    + table(["broken, %", *named], own)
    + "\n\n"
    + what_waits("cmps-tables", shown_tier, table4)
)

# %% tags=["hide-input"]
nothing = 100 * (1 - 1 / 206)
under = int((rates.percent < nothing).sum())
Markdown(
    f"Were the unnamed data RegDB, with 206 test people, no information would score {nothing:.1f} %: {under} of the"
    f" {len(rates)} printed rates lie below that, the highest at {rates.percent.max():.1f} %, and on this reading those"
    " are not at the floor. That is a statement about"
    " the measure, read this way: under another definition the numbers may say more."
)

# %% [markdown]
# ## What became of the reported numbers
#
# Every number of the two papers that is known to us has one fate. *Rerun* needs a card of tier `full` for its line. Where
# the line has run on synthetic people, a *stand-in* of the number *agrees* if the same score falls clear of clean in each
# of two seeds or more, *disagrees* if each excludes a fall by 10 points, and is *undecided* otherwise: one seed, rank-10,
# rank-20 and mINP, success rates, retrained victims. All of it says nothing about the number itself, and nothing about
# which of two attacks is the stronger; *clean rows* say nothing about any attack.

# %% tags=["hide-input"]
fates = grids.status(results)
paper_names = {"cmps": "CMPS", "feature_level": "feature-level"}
lines = [
    [paper_names[source], *(int((part.status == status).sum()) for status in grids.STATUS), len(part)]
    for source, part in fates.groupby("source", sort=False)
]
total = [sum(line[place] for line in lines) for place in range(1, len(lines[0]))]
Markdown(table(["", *grids.STATUS, "all"], [*lines, ["**both**", *(f"**{value}**" for value in total)]]))

# %% mystnb={"figure": {"caption": "The fate of each reported number, by table. A bar's parts add up to the numbers its table prints.", "name": "fig-benchmark-fates"}, "image": {"alt": "Horizontal stacked bars, one for each table of the two papers, with up to seven parts told apart by colour and hatching and the count written inside the larger ones."}} tags=["hide-input"]
counts = {}
for (source, name), part in fates.groupby(["source", "table"], sort=False):
    label = f"{paper_names[source]}, {name.split(' (')[0]}"
    counts[label] = {status: int((part.status == status).sum()) for status in grids.STATUS}
plots.stacked_counts(counts)
plt.show()

# %% tags=["hide-input"]
missing = fates[fates.status == "not built"]
open_ = fates[fates.status == "open without licensed data"]
why = [
    [reason, ", ".join(dict.fromkeys(part.victim)), len(part)] for reason, part in missing.groupby("reason", sort=False)
]
Markdown(
    (table(["not built, because", "rows of", "numbers"], why) if why else "Every reported line is built.")
    + f"\n\n{number(len(open_), 'number')} stand open: no card of tier `full`, and none of the present victims on synthetic"
    " people, exists for their lines. "
    + ("No number was rerun on its own data so far." if not total[0] else f"{total[0]} were rerun on their own data.")
)

# %% [markdown]
# Numbers are one thing, statements another. [The claims ledger](../book/claims.md) lists what the two papers *say* that
# can be checked, with a verdict on each statement and the card or the arithmetic behind it.

# %% [markdown]
# ## Rerun any row
#
# ```bash
# vireid-lite bench cmps-tables --dry-run                        # what is done, what is to do, how long; no data needed
# vireid-lite bench cmps-tables --seeds 0                        # the first seed of every row; resumes when killed
# vireid-lite bench cmps-tables --only "regdb, [regdb], AGW, CMPS"   # rows whose line in the dry run holds this text
# vireid-lite bench cmps-tables --workers 2                      # two processes; one that dies costs its cell only
# vireid-lite bench transfer --scheduler tcp://HOST:PORT         # on a running Dask cluster
# vireid-lite bench cmps-tables --tier full --data-root sysu=/data/SYSU-MM01 --data-root regdb=/data/RegDB
# vireid-lite bench cmps-tables --set train.epochs=2 --out-dir trial    # other settings, into a folder of their own
# ```
#
# Cards are the same whichever of these made them. A card whose code has changed is *stale*: it is kept, named, and made
# again with `--rerun-stale`. A row with other victims, budgets or attacks goes into a grid of your own:

# %%
grid_file = settings.out_dir / "benchmark" / "one_row.toml"
grid_file.parent.mkdir(parents=True, exist_ok=True)
grid_file.write_text(
    """
title = "Table 2 of the CMPS paper, one row"
source = "cmps"
seeds = [0, 1, 2]

[data.regdb]
lite = { dataset = { difficulty = "easy" } }
full = { dataset = { name = "regdb" }, each = { split = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] } }
[victims.AGW]
any = { victim = { model = "agw" } }
[attacks.CMPS]
any = { attack = { name = "cmps", mode = "paper", step_share = 0.4 } }
lite = { attack = { gradients = 240, identities = 200 } }

[[table]]
name = "Table 2"
dataset = "regdb"
data = ["regdb"]
victims = ["AGW"]
attacks = ["CMPS"]
"""
)
one_row = grids.read_grid(grid_file)
print(grids.describe_plan(one_row, results.plan(one_row.runs)))

# %% [markdown]
# What a grid asks for decides which card answers, not its name or file: a run that a campaign or another grid has made
# in the same configuration is not made again.

# %% [markdown]
# ## Contribute cards
#
# Somebody who holds a licence for SYSU-MM01, RegDB or LLCM can close open numbers without sharing an image. A card of
# tier `full` is settings, versions and scores. This is every piece of *text* in the live card from above, which is all
# that could name anything:


# %%
def texts(value):
    """Return every text inside a card's plain values."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


path = folder / run.card_name()
print(f"{path.stat().st_size / 1024:.0f} KiB; fields: {', '.join(live_card)}")
print("texts:", ", ".join(sorted(set(texts(live_card)))))

# %% [markdown]
# Holds: the configuration (data set, options, victim, attack, seed), a fingerprint of the records, scores as means, by
# trial and by person in a fixed order without names, chance and minimum, seconds, memory, device, versions, the parts
# that it was made with (`vireid_lite.behaviour`). Does not hold: images, crops, $\delta$, checkpoints, paths, labels,
# file names. The perturbation and the victim stay in your cache.
#
# A card is checked before it is merged, by the same few lines for everybody:


# %%
def problems(path, run, root=None):
    """Return what speaks against a card that somebody else made of a run."""
    card = read_card(path)  # refuses what is not a whole card of this version
    configuration = run.with_images(root)
    kept = {name: card.get(name) for name in configuration}
    found = []
    if is_stale(card):
        found.append("stale: made by other code than this")
    if card["key"] != card_key(kept) or path.name != card_name(kept):
        found.append("its key or file name is not that of its configuration")
    if card["key"] != run.key:
        found.append("it answers another run")
    if card["dataset"]["records"] != configuration["dataset"]["records"]:
        found.append("the fingerprint of its records is another: other images, split or trials")
    for field in ("scores", "scores_8_bit"):
        for direction, own in card.get(field, {}).items():
            people = np.average(own["identity_rank1"], weights=own["identity_queries"])
            pooled = np.average(
                [t["rank1"] for t in own["trials"]], weights=[t["valid_queries"] for t in own["trials"]]
            )
            if abs(people - pooled) > 1e-4:
                found.append(f"{field}, {direction}: people and trials do not give the same rank-1")
    return found


edited = read_card(path)
way = next(iter(direction_of.values()))
edited["scores_8_bit"][way]["trials"][0]["rank1"] += 0.1
edited["dataset"]["records"] = "0" * 16
(settings.out_dir / "benchmark" / "edited").mkdir(exist_ok=True)
foreign = settings.out_dir / "benchmark" / "edited" / path.name
foreign.write_text(json.dumps(edited))
assert not problems(path, run)
assert problems(foreign, run)

# %% tags=["hide-input"]
Markdown(
    "The live card: nothing found. The same card with an edited score and the records of other images:\n\n"
    + "\n".join(f"- {problem}" for problem in problems(foreign, run))
)

# %% [markdown]
# Such a check finds accidents and careless edits. It cannot find a card invented with care: that takes a second person
# with the data, and the same grid. The fingerprint of the records needs the data as well; without them a reviewer
# compares it with that of another contributor's card of the same split.
#
# Step by step:
#
# 1. `vireid-lite data check regdb --root /data/RegDB`: the copy is whole ([data and licences](../book/data.md)).
# 2. From a clean checkout, `vireid-lite bench cmps-tables --tier full --seeds 0 --data-root regdb=/data/RegDB`. Begin with
#    one seed; every finished cell counts.
# 3. `vireid-lite bench cmps-tables --tier full --dry-run`: what is done, and that nothing is stale.
# 4. A pull request with the new `.json` files of `book/results` and nothing else: no image, no $\delta$, no checkpoint.
#    Cards are never edited. A number that does not fit the paper is as welcome as one that does.

# %% [markdown]
# ## What could fool us
#
# - **One set for three.** Off tier `full`, rows of SYSU-MM01, RegDB and LLCM are the same runs. That they agree is no
#   confirmation of anything.
# - **A number without its data.** The paper's numbers and ours have only the name of the row in common, except at `full`.
# - **Transfer between twins.** Two networks that share seed, data and recipe are nearly one. Ask for the seeds.
# - **Success without an attack.** A share of broken queries is near one for a ranking that knows nothing, and above zero
#   for one that is merely shaken. Read it beside both.
# - **The target that is easy to break, or hard.** A column may be low because its network falls to noise, and where not
#   even *made on itself* does much, no transfer can show. Compare down columns.
# - **Means over seeds.** Attacks here have long bars. What two means say, a paired interval on the same victims may not.
# - **Seconds.** They are of the wall clock, on machines under unknown load.
# - **Many cells.** Of a matrix of verdicts at 95 %, one in twenty is wrong where nothing happens.
# - **Cards of the willing.** Who contributes cards chooses what to run. Open rows stay visible for that reason.
# - **The data.** Rendered people and small networks; nothing here says what transfers on real data.

# %% [markdown]
# ## Takeaways
#
# - A score needs its clean score, chance, minimum, seeds and data beside it. Without them it is a decoration.
# - Subtract a printed number from yours only on the same data by the same protocol.
# - Transfer is what is left after noise: same column, same queries, other seed.
# - By the simplest reading, a ranking without information has a "success rate" of one minus chance.
# - A run card is small, tells everything about a run and nothing about a person in it.
# - For a defender: test with attacks made on your own system. One that fails to transfer here promises nothing there.

# %% [markdown]
# ## Exercises
#
# ```{exercise-start} Easy: success for nothing
# :label: ex-benchmark-floor
# ```
# A table reports that 97.9 % of the queries ranked right before were wrong after the attack, on a gallery with ten images
# of each of 50 people. What would a ranking that never looked at the query have scored? And one on a gallery of 500
# people?
#
# **Check yourself.** On the gallery of 500 people, how many percent does a ranking without information break? Give
# one decimal.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
from vireid_lite.chapters.exercises import self_check

self_check(None, "ex-benchmark-floor", "964a6ab5", decimals=1)  # your number in place of None

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-benchmark-floor
# :class: dropdown
# ```
# Self-check: **99.8**.
#
# Where every query has as many right images as all others, chance is that share of the gallery, one in the number of
# people. One minus that is the floor of success. The table's value lies at it: nothing more has been shown than that the
# features are of no use. On the larger gallery the same 97.9 % would lie *below* it, so there a ranking that still knows
# something would have been called as great a success.

# %% tags=["solution"]
for people in (50, 500):
    print(f"{people} people: a ranking without information breaks {100 * (1 - 1 / people):.1f} %")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: what resizing takes
# :label: ex-benchmark-resize
# ```
# A perturbation is learned on crops of 64 × 32 and used on crops twice as high and wide. How much of its size is left if
# it is sign noise, and how much if neighbouring pixels agree, as in blocks of four? Which of the two would you rather
# send to a target with unknown crops?
#
# **Check yourself.** Which pattern keeps more of its size?
#
# - (a) Independent signs.
# - (b) Blocks of four.
# - (c) Both keep the same.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-benchmark-resize", "8505b39b")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-benchmark-resize
# :class: dropdown
# ```
# Self-check: **b**.
#
# Interpolation averages neighbours. Independent signs cancel, a smooth pattern loses at its edges only. A network that
# reacts to fine grain will see little of the first. Both keep the budget: an average of values within the bound is
# within it.

# %% tags=["solution"]
for grain in (1, 4):
    drawn = torch.Generator().manual_seed(settings.seed)
    coarse = torch.rand(3, 64 // grain, 32 // grain, generator=drawn) < 0.5
    pattern = torch.where(coarse, 8 / 255, -8 / 255).repeat_interleave(grain, 1).repeat_interleave(grain, 2)
    large = resized(UniversalPerturbation(pattern, 8 / 255), (128, 64)).delta
    print(f"blocks of {grain}: {100 * large.norm() / (2 * pattern.norm()):.0f} % of the length is left")

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Medium: a row of your own
# :label: ex-benchmark-row
# ```
# Does CMPS with a budget of 6/255 lie between its neighbours in {numref}`fig-benchmark-budget`? Write the grid, find
# out without running it how many runs it needs and how long they take, and say which rows are already there.
#
# **Check yourself.** What decides whether a card answers a run?
#
# - (a) The file's name.
# - (b) The grid that wrote it.
# - (c) The configuration that it holds.
# ```{exercise-end}
# ```

# %% tags=["self-check"]
self_check(None, "ex-benchmark-row", "2e0aaefc")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-benchmark-row
# :class: dropdown
# ```
# Self-check: **c**.
#
# A budget is a list in the table. The plan finds the cards of the neighbours, whoever made them, and estimates the rest
# from cards of the same network and attack.

# %% tags=["solution"]
own = grid_file.read_text().replace('attacks = ["CMPS"]', 'attacks = ["CMPS"]\neps = ["4/255", "6/255", "8/255"]')
(settings.out_dir / "benchmark" / "own.toml").write_text(own)
grid = grids.read_grid(settings.out_dir / "benchmark" / "own.toml")
print(grids.describe_plan(grid, results.plan(grid.runs)))

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ```{exercise-start} Hard: break this claim
# :label: ex-benchmark-flaw
# ```
# "Our perturbation was learned on A and never saw B. The success rate is the share of queries ranked right before that
# are wrong after. Transfer is nearly as strong as the white-box attack." The table is made up; the code that could
# have made it is below. It holds at least two flaws. Find them, and write what the table lacks.
#
# | source → target | success rate |
# |---|--:|
# | A → A (white box) | 96.1 % |
# | A → B (transfer) | 95.4 % |
#
#
# **Check yourself.** What is B in this code?
#
# - (a) A itself.
# - (b) Another training of A's architecture.
# - (c) A network that was trained on other people.
# ```{exercise-end}
# ```

# %%
gallery_people, images_each = 20, 10


def two_networks(seed, other_seed, noise=0.7):
    """Two 'networks': a feature for each query and each gallery image, the same people in both."""

    def network(seed):
        own = np.random.default_rng(seed)
        people = own.normal(size=(gallery_people, 16))
        return [
            np.repeat(people, images_each, 0) + noise * own.normal(size=(gallery_people * images_each, 16))
            for _ in range(2)
        ]

    return network(seed), network(other_seed)


def attack_on(network):
    """A universal 'perturbation' of query features: away from their mean, as far as they are long."""
    queries, _ = network
    direction = queries.std(0) * np.sign(np.random.default_rng(1).normal(size=queries.shape[1]))
    return 30 * direction


def right(network, shift=0.0):
    """Return which queries are ranked right."""
    queries, gallery = network
    names = np.repeat(np.arange(gallery_people), images_each)
    distance = ((queries + shift)[:, None] - gallery[None]) ** 2
    return names[distance.sum(-1).argmin(1)] == names


a, b = two_networks(seed=0, other_seed=0)
delta = attack_on(a)
for name, network in {"A → A (white box)": a, "A → B (transfer)": b}.items():
    before, after = right(network), right(network, delta)
    print(f"{name}: success rate {100 * (before & ~after).sum() / before.sum():.1f} %")

# %% tags=["self-check"]
self_check(None, "ex-benchmark-flaw", "05388b7e")  # your letter in place of None, such as "a"

# %% [markdown] tags=["solution"]
# ```{solution-start} ex-benchmark-flaw
# :class: dropdown
# ```
# Self-check: **a**.
#
# First, source and target share a seed: B *is* A, and the second line is the first one again. In the made-up table the
# two differ a little, as two trainings of one seed do on another machine. Second, the floor is missing: with twenty
# people a ranking that knows nothing breaks 95 % of what was right, so both lines are *at* it, and "as strong as white box"
# compares two rankings without information. Missing are the clean score, noise of the same size, chance, and more than
# one seed. With another seed and a shift that leaves some information, the lines part. A random direction of the same
# length is the control that tells how much of it the attack has earned: read each line against its own control, since a
# network that is easier to break breaks under any direction.

# %% tags=["solution"]
a, b = two_networks(seed=0, other_seed=1)
own = attack_on(a) / 30
control = np.random.default_rng(2).normal(size=own.shape)
control *= np.linalg.norm(own) / np.linalg.norm(control)
print(f"no information: {100 * (1 - 1 / gallery_people):.1f} %")
for strength in (1, 3, 30):
    for name, network in {"A → A": a, "A → B, other seed": b}.items():
        before = right(network)
        rates = [100 * (before & ~right(network, strength * one)).sum() / before.sum() for one in (own, control)]
        print(
            f"strength {strength}, {name}: clean {100 * before.mean():.0f} %, broken {rates[0]:.1f} %, control {rates[1]:.1f} %"
        )

# %% [markdown] tags=["solution"]
# ```{solution-end}
# ```

# %% [markdown]
# ## References
#
# Cited on this page, in full under [References](../book/references.md): {cite:t}`gong2024cmps`, {cite:t}`nguyen2017regdb`,
# {cite:t}`wu2017sysu`, {cite:t}`yang2024feature`, {cite:t}`zhang2023deen`.
