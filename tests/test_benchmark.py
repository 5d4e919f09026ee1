"""Grids: what they name is run once, found again wherever its card came from, and printed beside chance."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from miniatures import make_llcm, make_regdb, make_sysu

from vireid_lite.cli import app
from vireid_lite.errors import InputError
from vireid_lite.study import cards, grids, workers

DATA = "size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, test_identities = 4"
TRAIN = "train = { epochs = 1, identities = 4, images = 2 }"
GRID = f"""
title = "Two victims"
source = ""
seeds = [0, 1]

[data.tiny]
any = {{ dataset = {{ name = "synthetic", {DATA} }} }}
[data.others]
any = {{ dataset = {{ name = "synthetic", {DATA}, seed = 1 }} }}
[victims.AGW]
any = {{ victim = {{ model = "agw", backbone = "lite", pretrained = false }}, {TRAIN} }}
[victims.IDE]
any = {{ victim = {{ model = "ide", backbone = "lite", pretrained = false }}, {TRAIN} }}
[attacks.noise]
any = {{ attack = {{ name = "sign-noise" }} }}
[attacks.CMPS]
any = {{ attack = {{ name = "cmps", gradients = 4 }} }}
[not-built]
MMN = "no such victim here"
"""
TABLES = """
[[table]]
name = "white box"
data = ["tiny"]
victims = ["AGW", "MMN"]
attacks = ["none", "noise"]
eps = ["4/255", 0.03]

[[table]]
name = "transfer"
data = ["tiny"]
query = ["infrared"]
victims = ["AGW"]
surrogates = ["AGW", "IDE"]
learned-on = ["tiny", "others"]
attacks = ["CMPS"]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID + TABLES)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The grid above, run, and the folder of its cards."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "grid.toml").write_text(GRID + TABLES)
    grid = grids.read_grid(folder / "grid.toml")
    report = workers.run_grid(grid.runs, folder / "cards", progress=False)
    return grid, folder / "cards", report


@pytest.mark.parametrize("tier", ["lite", "standard", "full"])
@pytest.mark.parametrize("name", grids.GRIDS)
def test_shipped_grids_are_readable_at_every_tier_without_data(name, tier):
    grid = grids.read_grid(name, tier, seeds=[0])
    assert grid.runs
    for row in grid.rows:
        assert bool(row.runs) != bool(row.reason), row
        assert {(one.seed, one.tier) for one in row.runs} <= {(0, tier)}
        assert all(one.surrogate.seed != 0 for one in row.runs if one.surrogate)


def test_a_row_for_each_direction_budget_and_surrogate_and_each_run_once(file):
    grid = grids.read_grid(file)
    white = [row for row in grid.rows if row.table == "white box"]
    assert len(white) == 2 * 2 * 2 * 2
    assert {row.query for row in white} == {"visible", "infrared"}
    assert {row.query for row in grid.rows if row.table == "transfer"} == {"infrared"}
    assert all(row.reason == "no such victim here" and not row.runs for row in white if row.victim == "MMN")
    budgets = {one.attack.eps for row in white for one in row.runs if one.attack}
    assert budgets == {4 / 255, 0.03}
    keys = [one.key for one in grid.runs]
    assert len(keys) == len(set(keys)) == 2 + 2 * 2 + 2 * 4
    # The first seed of every row comes before the second of any.
    assert [one.seed for one in grid.runs] == sorted(one.seed for one in grid.runs)


def test_a_surrogate_is_of_another_seed_and_of_the_people_asked_for(file):
    rows = [row for row in grids.read_grid(file).rows if row.surrogate]
    for row in rows:
        for one in row.runs:
            assert {one.seed, one.surrogate.seed} == {0, 1}
            assert one.surrogate.dataset["seed"] == (1 if row.learned_on == "others" else 0)
            assert one.surrogate.recipe.model == row.surrogate.lower()
    (alone,) = grids.read_grid(file, seeds=[7]).rows[-1].runs
    assert alone.surrogate.seed == 8


def test_published_recipes_at_full_are_those_of_their_data_set():
    def recipe(victim, data):
        rows = grids.read_grid("feature-level-tables", "full", only=f"[{data}], {victim}").rows
        return rows[0].runs[0].recipe

    for data, box in (("sysu", "deen-sysu"), ("regdb", "deen")):
        deen = recipe("DEEN", data)
        assert (deen.settings.schedule, deen.settings.epochs) == ("deen", 151)
        assert (deen.settings.augmentation.box, deen.settings.augmentation.grey) == (box, 0.5)
        assert deen.options == {"flip": True, "published_view": True} | ({} if data == "sysu" else {"layer4": False})
        caj = recipe("CAJ", data)
        assert (caj.settings.epochs, caj.settings.augmentation.box) == (100, "caj")
        assert caj.options == {"flip": True, "published_channels": True}


def test_seeds_and_settings_replace_the_grids_own(file):
    settings = {"train.epochs": 2, "attack.tied": True, "dataset.size": [48, 24]}
    grid = grids.read_grid(file, seeds=[4], settings=settings)
    for one in grid.runs:
        assert one.seed == 4
        assert one.attack is None or one.attack.tied
        for network in filter(None, (one, one.surrogate)):
            assert (network.recipe.settings.epochs, network.dataset["size"]) == (2, [48, 24])


X = "[[table]]\nname = 'x'\n"
TINY_AGW = X + "data = ['tiny']\nvictims = ['AGW']\n"
TINY_X = X + "data = ['tiny']\nvictims = ['X']\n"


def test_rows_are_picked_by_what_their_line_says(file):
    whole = grids.read_grid(file)
    some = grids.read_grid(file, only="agw, NOISE, eps 4/255, visible")
    assert [(row.attack, row.eps, row.query) for row in some.rows] == [("noise", "4/255", "visible")]
    assert some.rows[0] in whole.rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[tables]]", "unknown key 'tables'"),
        ("x = [", "not readable TOML"),
        ("", r"it has no \[\[table\]\]"),
        ("[[table]]\ndata = ['tiny']", "it has no name"),
        (X + "victim = ['AGW']", "unknown key 'victim'"),
        (X + "victims = ['AGW']", "data must be a list of at least one value"),
        (X + "data = ['tiny']\nvictims = ['AGV']", "victims 'AGV' is unknown; the grid names AGW"),
        (X + "data = ['tny']\nvictims = ['AGW']", "data 'tny' is unknown"),
        (TINY_AGW + "attacks = ['CMSP']", "attacks 'CMSP' is unknown"),
        (TINY_AGW + "query = ['thermal']", "query 'thermal' is unknown"),
        (TINY_AGW + "attacks = ['CMPS']\neps = ['8/']", "'8/': a fraction"),
        (TINY_AGW + "seeds = ['a']", "a seed must be a whole number"),
        ("[victims.X]\nany = { victim = { model = 'agx' } }\n" + TINY_X, "'agx'"),
        ("[victims.X]\nlight = { }\n" + TINY_X, "unknown key 'light'"),
        ("[attacks.X]\nany = { attack = { name = 'cmps', stepz = 3 } }\n" + TINY_AGW + "attacks = ['X']", "stepz"),
    ],
)
def test_a_grid_with_a_typo_is_one_line(tmp_path, text, said):
    path = tmp_path / "grid.toml"
    path.write_text(GRID + text)
    with pytest.raises(InputError, match=said) as error:
        grids.read_grid(path)
    assert "\n" not in str(error.value)


def test_names_settings_and_missing_files_are_one_line(file, tmp_path):
    for call, said in (
        (lambda: grids.read_grid("cmps-table"), "grid 'cmps-table' is unknown; choose from smoke"),
        (lambda: grids.read_grid(tmp_path / "none.toml"), "does not exist"),
        (lambda: grids.read_grid(file, "huge"), "TIER 'huge' is unknown"),
        (lambda: grids.read_grid(file, settings={"epochs": 2}), "--set epochs"),
        (lambda: grids.read_grid(file, settings={"train.epoch": 2}), "'epoch' is unknown"),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_a_finished_grid_is_done_and_every_row_filled(done):
    grid, folder, report = done
    assert len(report["ran"]) == len(grid.runs)
    again = workers.run_grid(grid.runs, folder, progress=False)
    assert again["ran"] == []
    assert sorted(again["done"]) == sorted(report["ran"])
    lines = grids.table(grid, grids.Results(folder))
    assert list(lines[lines.reason == ""].done) == list(lines[lines.reason == ""].runs)
    built = lines[lines.reason == ""]
    assert built[["mean", "chance low", "chance high", "minimum"]].notna().all(axis=None)
    assert (built["chance low"] <= built["chance high"]).all()
    # What is scored without an attack is the clean score itself.
    plain = built[built.attack == "none"]
    assert list(plain["rank-1"]) == list(plain["rank-1 clean"])
    assert "off r1" not in lines


def test_runs_have_the_threads_asked_for_and_the_caller_gets_its_own_back(done, tmp_path, monkeypatch):
    grid, _, _ = done
    seen, before = [], torch.get_num_threads()

    def counted(one, out, *_):
        seen.append(torch.get_num_threads())
        (out / f"{len(seen)}.json").touch()
        return out / f"{len(seen)}.json"

    monkeypatch.setattr(workers.run_all, "__kwdefaults__", {**workers.run_all.__kwdefaults__, "task": counted})
    workers.run_grid(grid.runs, tmp_path, threads=before + 1, progress=False)
    assert seen == [before + 1] * len(grid.runs)
    assert torch.get_num_threads() == before


def test_a_lost_card_alone_is_made_again(done, tmp_path):
    grid, folder, report = done
    for name in report["ran"][1:]:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert workers.run_grid(grid.runs, tmp_path, progress=False)["ran"] == report["ran"][:1]
    first, second = (cards.read_card(place / report["ran"][0]) for place in (folder, tmp_path))
    assert first["scores"] == second["scores"]


def test_a_campaigns_card_of_the_same_configuration_counts(done, tmp_path):
    grid, _, _ = done
    one = next(one for one in grid.runs if one.attack and not one.surrogate and one.attack.eps == 4 / 255)
    workers.run_one(replace(one, kind="somewhere-else", attack=replace(one.attack, eps=0.0156862745)), tmp_path, "cpu")
    plan = grids.Results(tmp_path).plan(grid.runs)
    assert len(plan.done) == 1
    assert plan.done[0].startswith("somewhere-else")
    assert one.key not in {other.key for other in plan.todo}


def test_a_stale_card_is_named_and_a_fresh_one_preferred(done, tmp_path):
    grid, folder, report = done
    for name in report["ran"]:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    path = tmp_path / report["ran"][0]
    path.write_text(json.dumps({**json.loads(path.read_text()), "made_with": {}, "seal": None}))
    plan = grids.Results(tmp_path).plan(grid.runs)
    assert (plan.stale, plan.todo) == ([path.name], [])
    assert len(grids.Results(tmp_path).plan(grid.runs, rerun_stale=True).todo) == 1
    assert grids.table(grid, grids.Results(tmp_path)).stale.sum() > 0
    fresh = {**cards.read_card(folder / path.name), "kind": "other"}
    (tmp_path / cards.card_name(fresh)).write_text(json.dumps(fresh))
    assert grids.Results(tmp_path).plan(grid.runs).stale == []


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', "\0"])
def test_a_corrupt_or_foreign_card_is_one_line_and_nothing_is_lost(done, tmp_path, text):
    grid, _, _ = done
    (tmp_path / "x-s0-y.json").write_text(text)
    for call in (lambda: grids.Results(tmp_path), lambda: workers.run_grid(grid.runs, tmp_path, progress=False)):
        with pytest.raises(InputError, match=r"x-s0-y\.json") as error:
            call()
        assert "\n" not in str(error.value)
    assert (tmp_path / "x-s0-y.json").read_text() == text


def test_the_estimate_is_of_cards_of_its_kind(done):
    _, folder, _ = done
    results = grids.Results(folder)
    more = grids.read_grid(folder.parent / "grid.toml", seeds=[5])
    plan = results.plan(more.runs)
    assert (len(plan.todo), plan.unknown) == (len(more.runs), 0)
    assert plan.seconds > 0
    said = grids.describe_plan(more, plan)
    assert "0 done" in said
    assert "not built: no such victim here" in said


def test_every_reported_number_has_a_status(tmp_path):
    found = grids.status(grids.Results(tmp_path))
    assert len(found) == 500
    assert set(found.status) <= set(grids.STATUS)
    assert set(found.status) == {"open without licensed data", "not built"}, "without cards nothing stands in"
    assert (found.reason != "").equals(found.status == "not built")
    assert not found.reason.str.contains("no shipped grid").any(), "a reported line that no grid names"
    assert set(found[found.status == "not built"].victim) == {"MRCN", "CAJ + FSAM", "DEEN + FSAM"}
    pd.testing.assert_frame_equal(found[grids.reported().columns], grids.reported())


def test_a_number_is_rerun_where_a_card_of_its_line_is_and_shown_where_a_synthetic_one_is(done, tmp_path):
    _, folder, report = done
    card = json.loads((folder / report["ran"][0]).read_text())

    def statuses():
        found = grids.status(grids.Results(tmp_path), ["cmps-tables"])
        line = (found.table == "Table 3") & (found.attack == "none")
        return set(found[line].status), set(found[(found.table == "Table 3") & ~line].status)

    assert statuses() == ({"open without licensed data"}, {"open without licensed data"})
    row = next(row for row in grids.read_grid("cmps-tables", "full").rows if row.table == "Table 3")
    full = {**card, **row.runs[0].configuration, "key": row.runs[0].key, "seal": None}
    (tmp_path / "full-s0-1.json").write_text(json.dumps(full))
    assert statuses() == ({"rerun on the same data"}, {"open without licensed data"})


def test_a_paper_number_stands_with_its_own_direction(tmp_path):
    lines = grids.table(grids.read_grid("feature-level-tables", "full"), grids.Results(tmp_path))
    final = lines[(lines.table == "Table 1") & (lines.attack == "FSAM+AQAL")]
    # The paper names no direction on SYSU-MM01: the official one has infrared queries.
    assert list(final[final.dataset == "sysu"].set_index("query")["paper r1"].dropna().index) == ["infrared"]
    assert list(final[final.dataset == "regdb"].set_index("query")["paper r1"].dropna().index) == ["visible"]


def test_the_command_line_needs_no_data_for_a_dry_run(tmp_path):
    from typer.testing import CliRunner

    arguments = ["bench", "cmps-tables", "--tier", "full", "--dry-run", "--out-dir", str(tmp_path), "--seeds", "0"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert len(found.output.splitlines()) <= 24, "it fits a screen"
    assert re.search("Table 3 +DEEN +0 of 8 done", found.output)
    every = CliRunner().invoke(app, [*arguments, "--verbose"]).output
    assert "Table 3, llcm, [llcm], DEEN, CMPS, visible to infrared: 0 of 1 done" in every
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smoke", "--seeds", "0,x"], "--seeds '0,x': give whole numbers"),
        (["smoke", "--data-root", "/data"], "--data-root '/data': a name and a value"),
        (["smoke", "--set", "epochs"], "--set 'epochs'"),
        (["smok"], "'smok': give smoke, cmps-tables"),
        (["smoke", "--only", "RegDB"], "grid smoke: no row holds 'RegDB'"),
        (["cmps-tables", "--tier", "full", "--seeds", "0"], "sysu: give the folder of your own copy"),
        (["smoke", "--scheduler", "tcp://127.0.0.1:1"], "no Dask scheduler answers at tcp://127.0.0.1:1"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(arguments, said, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)):
        app(["bench", *arguments, "--out-dir", str(tmp_path)], standalone_mode=False)
    assert not list(tmp_path.glob("*.json"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("licensed")
    made = {"sysu": make_sysu, "regdb": make_regdb, "llcm": make_llcm}
    return {name: make(folder / name) for name, make in made.items()}


TINY = {
    "dataset.size": [32, 16],
    "victim.backbone": "lite",
    "victim.pretrained": False,
    "train.epochs": 1,
    "train.identities": 2,
    "train.images": 2,
    "attack.gradients": 4,
    "modified.epochs": 1,
}


@pytest.mark.parametrize("name", ["cmps-tables", "feature-level-tables"])
def test_miniature_benchmarks_fill_every_row_at_tier_full(name, roots, tmp_path):
    """Both directions, SYSU's and LLCM's ten trials, and all ten splits of RegDB for the first victim's first row."""
    grid = grids.read_grid(name, "full", seeds=[0], settings=TINY)
    whole = next(row.runs for row in grid.rows if row.data == "regdb")
    assert [one.dataset["split"] for one in whole] == list(range(1, 11))
    rows = (row if row.runs == whole else replace(row, runs=row.runs[:1]) for row in grid.rows)
    grid = replace(grid, rows=tuple(rows))
    workers.run_grid(grid.runs, tmp_path, root=roots, device="cpu", progress=False)
    results = grids.Results(tmp_path)
    lines = grids.table(grid, results)
    built = lines[lines.reason == ""]
    assert list(built.done) == list(built.runs)
    assert built[["mean", "chance low", "minimum"]].notna().all(axis=None)
    assert built["off r1"].notna().sum() == built["paper r1"].notna().sum() > 0
    assert set(built["query"]) == {"visible", "infrared"}
    for card in results.cards:
        trials = {"sysu": 10, "llcm": 10, "regdb": 1}[card["dataset"]["name"]]
        for scores in card["scores"].values():
            assert len(scores["trials"]) == trials
    # Runs of other settings than the grid's own are no rerun of the paper's.
    assert "rerun on the same data" not in set(grids.status(results, [name]).status)
    assert len(results.plan(grid.runs).done) == len(grid.runs), "what is done is known without the data as well"


def test_a_card_of_another_persons_copy_does_not_count_where_the_own_is_at_hand(roots, tmp_path):
    one = replace(grids.read_grid("cmps-tables", "full", settings=TINY, only="llcm").rows[0].runs[0], attack=None)
    workers.run_one(one, tmp_path, "cpu", roots)
    assert grids.Results(tmp_path).card(one) is not None, "without data a card counts for what it says"
    assert grids.Results(tmp_path).card(one, roots, data=True) is not None
    (path,) = tmp_path.iterdir()
    theirs = cards.read_card(path)
    theirs["dataset"]["records"] = "0" * 16
    path.write_text(json.dumps(theirs))
    assert grids.Results(tmp_path).card(one) is not None
    assert grids.Results(tmp_path).card(one, roots, data=True) is None
    assert one.card_name(roots) != cards.card_name(theirs), "and the two stand side by side in a folder"
