"""Tuning: what is drawn, what is tried next, what wins, and that a killed tuning loses nothing."""

import itertools
import json
import math
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from test_cards import results
from test_cli import vireid  # noqa: F401 (a fixture)

from vireid_lite import files
from vireid_lite.attacks import ATTACKS, build_attack
from vireid_lite.behaviour import made_with
from vireid_lite.errors import InputError
from vireid_lite.files import stable_hash
from vireid_lite.study import campaign, cards, tuning, workers
from vireid_lite.study.tables import DIRECTIONS
from vireid_lite.study.tuning import Search, Tuned, outcome, read_tuned, read_tunings, tuned, typed

BOOK = files.PACKAGE.parent / "book"
EVIDENCE = BOOK / "campaigns" / "evidence_tuning.toml"
DRAW = {"step_share": {"low": 0.02, "high": 2.0}, "momentum": [0.0, 0.5, 0.9, 1.0], "gradients": [120, 240, 480]}


def played(search, fall):
    """Return what a search comes to where mAP falls by fall(setting, seed), and the trials of each stage."""
    falls, stages = {}, []
    while True:
        todo, found = search.after(falls)
        if not todo:
            return found, stages
        stages.append(todo)
        falls |= {trial: [fall(*trial), fall(*trial)] for trial in todo}


def bump(setting, seed=0, best=0.3, momentum=0.5):
    """Return a fall that is largest at one step and momentum, whatever the gradients."""
    return 0.6 - 0.1 * abs(math.log(setting[0] / best)) - 0.05 * abs(setting[1] - momentum)


def test_settings_are_drawn_by_a_seed_evenly_and_can_be_typed():
    search = Search(DRAW, [200, 201])
    assert search.settings == Search(DRAW, [200, 999]).settings != Search(DRAW, [201, 200]).settings
    assert len(search.settings) == 16
    steps = sorted(setting[0] for setting in search.settings)
    places = [math.floor(16 * math.log(step / 0.02) / math.log(100) + 0.05) for step in steps]
    assert max(abs(place - number) for number, place in enumerate(places)) <= 1, "one step in each sixteenth"
    assert all(f"{step:.2g}" == f"{step:g}" for step in steps)
    assert set(Counter(setting[1] for setting in search.settings).values()) == {4}
    assert set(Counter(setting[2] for setting in search.settings).values()) <= {4, 5, 6}


def test_sixteen_on_one_victim_the_best_four_on_the_second_and_the_mean_of_both_wins():
    search = Search(DRAW, [200, 201])
    found, stages = played(search, bump)
    assert [len(stage) for stage in stages] == [16, 4, 2]
    assert [{seed for _, seed in stage} for stage in stages] == [{200}, {201}, {200, 201}]
    ranked = sorted(search.settings, key=bump, reverse=True)
    assert {setting for setting, _ in stages[1]} == set(ranked[:4])
    assert tuple(found.setting.values()) == ranked[0]
    assert (found.edges, found.gain, found.ended) == ([], 0, True)
    assert found.fall == pytest.approx(bump(ranked[0]))
    for twice, wins in ((0.01, ranked[0]), (0.1, ranked[3])):  # what the second victim says counts as much
        turned, _ = played(search, lambda s, seed, more=twice: bump(s) + (seed == 201) * (s == ranked[3]) * more)
        assert (tuple(turned.setting.values()) == wins) == (
            bump(wins) + (wins == ranked[3]) * twice / 2 >= max(bump(ranked[0]), bump(ranked[3]) + twice / 2)
        )


def test_an_optimum_at_the_edge_is_said_unless_nothing_lies_beyond():
    assert played(Search(DRAW, [200, 201]), lambda s, _: bump(s, best=1e-4))[0].edges == ["step_share"]
    assert played(Search(DRAW, [200, 201]), lambda s, _: bump(s, best=100))[0].edges == [], "2 eps is the whole budget"
    narrow = {**DRAW, "step_share": {"low": 0.02, "high": 1.0}}
    assert played(Search(narrow, [200, 201]), lambda s, _: bump(s, best=100))[0].edges == ["step_share"]
    assert "momentum" not in played(Search(DRAW, [200, 201]), lambda s, _: -s[1])[0].edges, "0 is a natural limit"
    inner = {**DRAW, "momentum": [0.5, 0.9]}
    assert "momentum" in played(Search(inner, [200, 201]), lambda s, _: -s[1])[0].edges
    more = {**DRAW, "restarts": [1, 2]}
    found = played(Search(more, [200, 201]), lambda s, _: s[3] - s[2])[0]
    assert found.edges == ["restarts"], "of gradients others tell"
    assert "restarts" not in played(Search(more, [200, 201]), lambda s, _: -s[3])[0].edges
    turned = {**DRAW, "step_share": {"high": 1.0, "low": 0.02}, "momentum": [1.0, 0.9, 0.5, 0.0]}
    for best in (1e-4, 0.3, 100):
        found = [played(Search(d, [200, 201]), lambda s, _, b=best: bump(s, best=b))[0] for d in (narrow, turned)]
        assert found[0].edges == found[1].edges, "in whatever order it is written"
    one = {**DRAW, "momentum": [0.9], "gradients": [240]}
    assert played(Search(one, [200, 201]), bump)[0].edges == [], "what is not tuned has no edge"


def test_gradients_are_doubled_until_twice_gains_less_than_half_a_point():
    def rising(ends):
        return lambda s, _: bump(s) + 0.02 * math.log2(min(s[2], ends) / 120)

    tall = {**DRAW, "gradients": [120]}
    for ends, gradients, trials, ended in ((120, 120, 2, True), (240, 240, 4, True), (960, 480, 4, False)):
        found, stages = played(Search(tall, [200, 201]), rising(ends))
        assert (found.setting["gradients"], found.ended) == (gradients, ended)
        assert sum(map(len, stages[2:])) == trials
    assert played(Search(tall, [200, 201], doublings=3), rising(960))[0].setting["gradients"] == 960
    unasked = played(Search(tall, [200, 201], doublings=0), rising(960))[0]
    assert (unasked.setting["gradients"], unasked.gain, unasked.ended) == (120, None, False)


TINY = """
seeds = [200, 201]
dataset.size = [32, 16]
dataset.num_identities = 8
dataset.images_per_modality = 4
dataset.val_identities = 4
dataset.test_identities = 4
dataset.tuning_identities = 4
train = { epochs = 1, identities = 4, images = 2 }
attack = { identities = 6 }

[[tune]]
trials = 3
finalists = 2
doublings = 1
attack = { batch_size = 4 }
grid = { "attack.name" = ["uap", "uap-retrieval"] }
[tune.draw]
step_share = { low = 0.1, high = 1.0 }
momentum = [0.0, 0.9]
gradients = [1, 2]

[[tune]]
trials = 2
finalists = 1
doublings = 0
attack = { name = "pgd" }
[tune.draw]
step_size = { low = "1/255", high = "8/255" }
steps = [1, 2]
restarts = [1, 2]
"""
SHORT = TINY[: TINY.index("[[tune]]")] + TINY[TINY.rindex("[[tune]]") :]


def pretended(task, run, device, root, *_):
    """Return the card of a run that nothing was computed for; how far mAP falls depends on what was asked."""
    made = results()
    for way, scores in made["scores_8_bit"].items():
        scores["difference"]["mAP"]["difference"] = -int(stable_hash([run.key, way]), 16) / 16**16
    made |= {"made_with": made_with(run.configuration)}
    with tempfile.TemporaryDirectory() as folder:
        path = cards.write_card(Path(folder), run.with_images(root), made)
        return path.name, path.read_bytes()


def tune(path, out, **options):
    return tuning.tune(path, out, workers.run_all, progress=False, **options)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(workers, "_card", pretended)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_killed_tuning_goes_on_where_it_was_and_ends_in_two_cards_an_attack(tiny, tmp_path, monkeypatch):
    ran = []

    def counted(task, run, *arguments):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(run.key)
        return pretended(task, run, *arguments)

    out = tmp_path / "out"
    monkeypatch.setattr(workers, "_card", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(tiny, out)
    assert not list(out.glob("*.json"))
    monkeypatch.setattr(workers, "_card", lambda task, run, *more: ran.append(run.key) or pretended(task, run, *more))
    report = tune(tiny, out)
    assert len(ran) == len(set(ran)) <= 2 * (3 + 2 + 2) + 2 + 1, "no trial is run twice"
    names = sorted(path.name for path in out.glob("*.json"))
    assert sorted(report["ran"]) == names == sorted(path.name for path in out.glob(tuning.TUNED))
    assert len(names) == 6
    assert not list(out.glob(cards.CARDS))
    assert [len(read_tuned(out / name)["trials"]) for name in report["ran"]] == [4, 3, 4, 3, 2, 1]
    found = {card["attack"]["name"]: (card, best) for card, best in tuned(out)}
    for line in report["chosen"]:
        again = tomllib.loads(f"attack = {line}")["attack"]
        card, best = found.pop(again["name"])
        assert again == {k: v for k, v in card["attack"].items() if k != "identities"} | best.setting
        assert build_attack(**again)
    assert not found
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("a finished trial was repeated"))
    second = tune(tiny, out)
    assert (sorted(second["done"]), second["ran"], second["chosen"]) == (names, [], report["chosen"])


def test_a_stale_tuning_is_named_kept_and_made_again_when_asked(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tiny.write_text(SHORT)
    names = tune(tiny, out)["ran"]
    for name in names:
        changed = {**json.loads((out / name).read_text()), "made_with": {"scores": ""}, "seal": None}
        (out / name).write_text(json.dumps(changed))
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("it ran"))
    assert tune(tiny, out)["stale"] == names
    report = tune(tiny, out, rerun_stale=True)
    assert report["ran"] == names, "of trials in the cache, which are not stale"
    assert tune(tiny, out)["done"] == names


def test_trials_are_runs_on_people_held_out_for_tuning(vireid, tmp_path):  # noqa: F811
    """Nothing is pretended; the fall of a card is that of the victim attacked so."""
    path, out = tmp_path / "short.toml", tmp_path / "out"
    path.write_text(SHORT)
    code, said, _ = vireid("campaign", path, "--out-dir", out)
    assert code == 0
    first, second = (read_tuned(path) for path in sorted(out.glob(tuning.TUNED)))
    (line,) = (line for line in said.splitlines() if "name =" in line)
    assert line.strip() == typed(first, outcome([first, second]))
    assert [f"{word}: 1" in said or f"{word}: 2" in said for word in ("chosen", "ran")] == [True, True]
    assert (first["split"], first["seed"], second["seed"]) == ("tuning", 200, 201)
    ((one,),) = read_tunings(path)
    steps, number, restarts, *falls = second["trials"][0]
    run = one.run(((steps, number, restarts), 201))
    card = cards.read_card(files.cache_folder() / "tuning" / run.card_name())
    assert (card["split"], card["attack"]["restarts"]) == ("tuning", restarts)
    for fall, clean, way in zip(falls, second["clean"], DIRECTIONS, strict=True):
        assert card["clean"][way]["mAP"] == clean
        assert card["scores_8_bit"][way]["mAP"] == pytest.approx(clean - fall, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "to", "said"),
    [
        ("seeds = [200, 201]", "seeds = [200, 200]", "two different victims"),
        ("seeds = [200, 201]", "seeds = [200, 9]", "none of 0 to 9"),
        ("trials = 3", "trials = 1", "trials must be a whole number of at least 2"),
        ("finalists = 2", "finalists = 4", "finalists must be a whole number of at most 3"),
        ("doublings = 1", "doubling = 1", "unknown key 'doubling'"),
        ("gradients = [1, 2]", "", "uap needs gradients"),
        ("gradients = [1, 2]", "gradients = []", "a list of values, or low and high"),
        ("gradients = [1, 2]", "gradients = [0]", "gradients must be a whole number"),
        ("momentum = [0.0, 0.9]", "momentun = [0.0]", "option 'momentun' is unknown"),
        ("momentum = [0.0, 0.9]", "momentum = 0.5", "momentum: a list of values"),
        ("low = 0.1, high = 1.0", "low = 0.1", "high must be a number"),
        ("low = 0.1, high = 1.0", "low = 2.5, high = 3.0", "step_share must be a number from 1e-09 to 2"),
        ("low = 0.1, high = 1.0", "low = 1.0, high = 0.1", "high must be a number from 1.0"),
        ("low = 0.1, high = 1.0", "low = 0.1, hihg = 1.0", "unknown key 'hihg'"),
        ("[tune.draw]", "split = 'test'\n[tune.draw]", "neither the split test"),
        ("[tune.draw]", "modified = { loss = 'quadruple' }\n[tune.draw]", "neither the split test, nor modified"),
        ("[tune.draw]", "[tune.drawn]", "unknown key 'drawn'"),
        ("[[tune]]\ntrials = 3", "[tune]\ntrials = 3", "not readable TOML|has no"),
        ("restarts = [1, 2]", "restarts = [0]", "restarts must be a whole number"),
        ('attack = { name = "pgd" }', 'attack = { name = "fna" }', "no random start"),
    ],
)
def test_a_tuning_that_cannot_be_is_one_line_before_anything_runs(tiny, tmp_path, monkeypatch, change, to, said):
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("it ran"))
    assert change in TINY
    tiny.write_text(TINY.replace(change, to, 1))
    with pytest.raises(InputError, match=said) as error:
        tune(tiny, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_gallery_of_another_size_than_the_tests_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("it ran"))
    tiny.write_text(TINY.replace("tuning_identities = 4", "tuning_identities = 6"))
    with pytest.raises(InputError, match="a gallery of tuning has 24 images, of test 16; let dataset have"):
        tune(tiny, tmp_path / "out")


def card_of(one: tuning.Tuning, trial, fall):
    """Return what a trial's card says, as far as tuning reads it."""
    both = {way: {"difference": {"mAP": {"difference": -fall}}} for way in DIRECTIONS}
    run = one.run(trial)
    known = {**run.configuration, "clean": {way: {"mAP": 0.8} for way in DIRECTIONS}, "scores_8_bit": both}
    return run.key, {**known, "scores": {}, "wall_seconds": 30.0, "made_with": {"scores": "01234567"}}


def finished(one: tuning.Tuning, folder: Path, fall=bump) -> list[str]:
    """Write the cards of a tuning where mAP falls by fall(setting, seed); return their names."""
    _, stages = played(one.search, lambda *trial: round(fall(*trial), 5))
    return one.write(dict(card_of(one, trial, fall(*trial)) for trial in itertools.chain(*stages)), folder)


def test_every_attack_of_the_evidence_is_tuned_alike_and_its_cards_are_small(tmp_path):
    groups = read_tunings(EVIDENCE)
    assert campaign.read_campaign(EVIDENCE) == []
    attacks = list(itertools.chain(*groups))
    assert {(one.search.trials, one.search.finalists, one.search.doublings) for one in attacks} == {(16, 4, 2)}
    assert {tuple(one.search.seeds) for one in attacks} == {(200, 201)}
    names = [one.name(seed) for one in attacks for seed in one.search.seeds]
    assert len(set(names)) == len(names) == 32
    asked = {one.run((one.search.settings[0], 200)).attack.name for one in attacks}
    assert asked == ATTACKS.keys() - {"fgsm", "odfa", "sign-noise", "uniform-noise"}, "the file says why not these"
    attacks[0].check()
    for one in attacks:
        for name in finished(one, tmp_path, lambda s, seed: sum(s) / 1e4):
            assert (tmp_path / name).stat().st_size < 4096
            assert not Path(name).match(cards.CARDS)
    assert len(list(tuned(tmp_path))) == len(attacks)


def test_cards_of_two_tunings_or_of_half_of_one_are_refused(tmp_path):
    (one, *_), *_ = read_tunings(EVIDENCE)
    first, second = (read_tuned(tmp_path / name) for name in finished(one, tmp_path))
    assert outcome([first, second]) == outcome([second, first]) == next(tuned(tmp_path))[1]
    more = {**second, "search": {**second["search"], "trials": 8}}
    for cards_of, said in (
        ([first], "trials on victim 201 are missing"),
        ([second], "trials on victim 200 are missing"),
        ([first, more], "two tunings"),
        ([first, {**second, "made_with": {}}], "two tunings"),
        ([first, {**second, "attack": {"name": "uap"}}], "two tunings"),
    ):
        with pytest.raises(InputError, match=said):
            outcome(cards_of)


def test_a_damaged_tuning_card_is_one_line(tmp_path):
    (one, *_), *_ = read_tunings(EVIDENCE)
    path = tmp_path / finished(one, tmp_path)[0]
    whole = path.read_text()
    for text in ("", "[]", "{}", whole[:-40], whole.replace('"clean":[0.8', '"clean":[0.9')):
        path.write_text(text)
        with pytest.raises(InputError, match="not a readable tuning card") as error:
            read_tuned(path)
        assert "\n" not in str(error.value)


def untuned(runs, folder):
    """Return a line for each run whose attack is set otherwise than the folder's tuning of it came out.

    Of several tunings that a run agrees with that on its own difficulty counts, then the most particular. A step in
    pixels is in proportion to eps.
    """

    def at(attack, knob):
        return attack.rate / attack.eps if knob == "step_size" else getattr(attack, knob.replace("gradients", "steps"))

    known, lines = list(tuned(folder)), []
    for run in runs:
        own, data = run.configuration["attack"] or {}, run.dataset.get("difficulty")
        fits = [pair for pair in known if all(own.get(name) == value for name, value in pair[0]["attack"].items())]
        if fits:
            card, out = max(fits, key=lambda it: (it[0]["dataset"].get("difficulty") == data, len(it[0]["attack"])))
            options = {name: value for name, value in card["attack"].items() if name not in campaign.ASIDE}
            best = build_attack(**options, **out.setting)
            if not all(math.isclose(at(run.attack, knob), at(best, knob), rel_tol=1e-6) for knob in out.setting):
                lines.append(f"{run.kind}, {own['name']}, seed {run.seed}: tuned to {typed(card, out)}")
    return lines


def test_evidence_runs_at_what_tuning_came_out_with():
    """A sweep of what is tuned, and what is run as printed, has a name that says so."""
    meant = ("printed", "sweep")
    for path in sorted((BOOK / "campaigns").glob("evidence*.toml")):
        runs = [run for run in campaign.read_campaign(path) if not run.kind.startswith(meant)]
        assert not untuned(runs, BOOK / "results"), path.name


def test_a_setting_typed_otherwise_is_found(tmp_path):
    (cmps, *_, grey, _), (hinge, linear), (m_fgsm,), *_ = read_tunings(EVIDENCE)
    for one in (cmps, grey, hinge, m_fgsm):
        finished(one, tmp_path)
    finished(linear, tmp_path, lambda s, seed: bump(s, best=0.1))
    lines = {card["attack"].get("form", card["attack"]["name"]): typed(card, out) for card, out in tuned(tmp_path)}
    assert len(lines) == 5
    path = tmp_path / "c.toml"

    def said(*attacks, more=""):
        text = "\n".join(f"[[run]]\nattack = {attack}" for attack in attacks)
        path.write_text(f"{more}attack = {{ identities = 200 }}\n{text}\n[[run]]\n")
        return untuned(campaign.read_campaign(path), tmp_path)

    assert said(*lines.values()) == []
    assert said(*lines.values(), more='dataset = { difficulty = "hard" }\n') == [], "one tuning serves both"
    assert len(said(lines["cmps"].replace("}", ", bank = 'same' }", 1))) == 0, "a control runs as its attack does"
    assert len(said(lines["cmps"].replace("gradients = ", "gradients = 1"))) == 1
    assert len(said(lines["linear"].replace('form = "linear"', 'form = "hinge"'))) == 1, "the most particular counts"
    assert said('{ name = "uap" }') == [], "nothing was tuned"
    setting = tomllib.loads(f"a = {lines['m-fgsm']}")["a"]
    for step, wrong in ((setting["step_size"] / 2, 0), (setting["step_size"], 1)):
        half = json.dumps({**setting, "step_size": step, "eps": "4/255"}).replace('":', '" =')
        assert len(said(half.replace("{", "{ "))) == wrong, "a step in pixels is in proportion to eps"


def test_what_is_to_be_said_of_a_search_stands_behind_its_setting():
    card = {"attack": {"name": "uap", "identities": 200}}
    found = Tuned({"step_share": 0.11, "gradients": 480}, 0.4321, ["step_share"], 0.0061)
    assert typed(card, found) == (
        '{ name = "uap", step_share = 0.11, gradients = 480 }'
        "  # mAP -43.2; step_share at the edge; twice the gradients +0.61, not run to its end"
    )
    assert typed(card, found._replace(edges=[], gain=-0.001)).endswith("# mAP -43.2; twice the gradients -0.10")
