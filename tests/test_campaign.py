import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniatures import make_regdb, make_sysu
from PIL import Image

from vireid_lite import files, models
from vireid_lite.attacks import Modification, ModifiedVictim, train_modified_victim
from vireid_lite.data import Modality
from vireid_lite.errors import InputError
from vireid_lite.metrics.evaluation import direction_name, evaluate
from vireid_lite.study import campaign, cards, grids, run, workers

ROOT = Path(__file__).parents[1]

SMALL = """
tier = "lite"
seeds = [0, 1]

[[run]]
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, test_identities = 4 }
train = { epochs = 1, identities = 4, images = 2 }
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_a_second_campaign_repeats_nothing(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = workers.run_campaign(small, out, progress=False)
    assert len(first["ran"]) == 2
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("a finished run was repeated"))
    again = workers.run_campaign(small, out, progress=False)
    assert sorted(again["done"]) == sorted(first["ran"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_card_tells_scores_chance_minimum_and_every_identity(small, tmp_path, monkeypatch):
    started = time.perf_counter()
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    workers.run_campaign(small, tmp_path / "out", progress=False)
    elapsed = time.perf_counter() - started
    for card in cards.read_cards(tmp_path / "out"):
        for direction in ("visible to infrared", "infrared to visible"):
            scores = card["scores"][direction]
            assert scores["minimum"]["mAP"] <= scores["mAP"] <= 1
            assert scores["chance"]["rank1"]["low"] <= 0.25 <= scores["chance"]["rank1"]["high"]
            assert len(scores["identity_rank1"]) == len(scores["identity_AP"]) == 4
            assert scores["trials"][0]["valid_queries"] == 8
        assert card["versions"]["torch"]
        assert card["train_seconds"] > 0
        assert card["train_seconds"] < card["wall_seconds"] <= elapsed
        assert card["peak_memory_mib"] > 50


def test_a_stale_card_is_named_kept_and_made_again_only_when_asked(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    workers.run_campaign(small, out, progress=False)
    path = min(out.glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "made_with": {}, "seal": None}))
    kept = path.read_bytes()
    assert workers.run_campaign(small, out, progress=False)["stale"] == [path.name]
    assert path.read_bytes() == kept
    report = workers.run_campaign(small, out, rerun_stale=True, progress=False)
    assert report["ran"] == [path.name]
    assert not cards.is_stale(cards.read_card(path))


def test_a_run_that_has_a_card_under_another_name_is_not_run_again(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made = workers.run_campaign(small, out, progress=False)["ran"]
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("it ran"))
    small.write_text(small.read_text().replace("[[run]]", '[[run]]\nname = "again"'))
    assert not {run.card_name() for run in campaign.read_campaign(small)} & set(made)
    assert workers.run_campaign(small, out, progress=False)["done"] == made


def test_runs_that_fail_keep_the_finished_ones(small, tmp_path, monkeypatch):
    real = workers._card

    def second_fails(task, run, *arguments):
        if run.seed == 1:
            raise InputError("no")
        return real(task, run, *arguments)

    monkeypatch.setattr(workers, "_card", second_fails)
    with pytest.raises(InputError):
        workers.run_campaign(small, tmp_path / "out", progress=False)
    assert len(cards.read_cards(tmp_path / "out")) == 1


def test_more_people_than_there_are_to_learn_from_are_refused_before_anything_runs(small, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_card", lambda *_: pytest.fail("it ran"))
    attacked = SMALL + "attack = { name = 'cmps', gradients = 2, identities = 9 }\n"
    for more in ("", "surrogate = { dataset = { num_identities = 7 } }\n"):
        small.write_text(attacked + more)
        with pytest.raises(
            InputError, match=r"^attack: synthetic has [87] people to learn from: .* of at most [87], got 9"
        ):
            workers.run_campaign(small, tmp_path / "out", progress=False)
        with pytest.raises(InputError, match="people to learn from"):
            workers.run_grid(campaign.read_campaign(small), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out/*.json"))


def test_committed_campaigns_and_grids_ask_for_no_more_people_than_there_are():
    runs = [
        one for path in sorted((ROOT / "book" / "campaigns").glob("*.toml")) for one in campaign.read_campaign(path)
    ]
    runs += [one for name in grids.GRIDS for tier in ("lite", "standard") for one in grids.read_grid(name, tier).runs]
    asked = [(one.identities, (one.surrogate or one).dataset) for one in runs if one.identities]
    assert len(asked) > 100
    assert all(count <= data["num_identities"] for count, data in asked if data["name"] == "synthetic")


def test_two_campaigns_do_not_write_one_folder(small, tmp_path):
    with files.exclusive(tmp_path / "out"), pytest.raises(InputError, match="another run is writing there"):
        workers.run_campaign(small, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tier = ", "not readable TOML"),
        ("", "has no"),
        ("seed = [0]\n[[run]]", "unknown key 'seed'"),
        ("[[run]]\nattack = { name = 'cmps', eps = '8/' }", "'8/': a fraction"),
        ("seeds = 3\n[[run]]", "seeds must be of type list"),
        ("seeds = []\n[[run]]", "seeds must be a list of at least one value"),
        ("seeds = ['a']\n[[run]]", "a seed must be a whole number"),
        ("seeds = [-1]\n[[run]]", "a seed must be a whole number"),
        ("run = [1]", "a table is needed"),
        ("[[run]]\ntier = [1]", "tier must be of type str"),
        ("[[run]]\ndataset = 'easy'", "dataset must be of type dict"),
        ("[[run]]\ndataset = { size = 32 }", "size must be of type list"),
        ("[[run]]\ndataset = { size = [32] }", r"size must be \[height, width\]"),
        ("[[run]]\ndataset = { thermal = 'no' }", "thermal must be true or false"),
        ("[[run]]\ndataset = { difficulty = ['easy'] }", "difficulty .* is unknown"),
        ("[[run]]\ntrain = { epochs = 'ten' }", "epochs must be a whole number"),
        ("[[run]]\ntrain = { learning_rate = 'x' }", "learning_rate must be a number"),
        ("[[run]]\ntrain = { backbone = 'lite' }", "backbone belongs to victim"),
        ("[[run]]\ntrain = { augmentation = 3 }", "a table is needed"),
        ("[[run]]\ntrain = { augmentation = { pad = 'x' } }", "pad must be a whole number"),
        ("[[run]]\nvictim = { pretrained = 'yes' }", "pretrained must be of type bool"),
        ("[[run]]\nname = 'a/b'", "small letters"),
        ("[[run]]\nepochs = 3", "run 1: it has an unknown key 'epochs'"),
        ("[[run]]\ntrain = { epoch = 3 }", "training: setting 'epoch' is unknown"),
        ("[[run]]\ndataset = { difculty = 3 }", "option 'difculty' is unknown"),
        ("[[run]]\ntier = 'huge'", "TIER 'huge' is unknown"),
        ("[[run]]\nvictim = { model = 'x' }", "network 'x' is unknown; choose from agw"),
        ("[[run]]\ntrain = { augmentation = { pads = 3 } }", "pads"),
    ],
)
def test_a_typo_is_one_line(tmp_path, text, said):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        workers.run_campaign(path, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        workers.run_campaign(tmp_path / "none.toml", tmp_path, progress=False)


def test_committed_campaigns_can_be_read():
    campaigns = sorted((files.PACKAGE.parent / "book" / "campaigns").glob("*.toml"))
    assert campaigns
    for path in campaigns:
        assert all(one.open().train for one in campaign.read_campaign(path))


ATTACKED = """
seeds = [0, 1]
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 4, val_identities = 4, test_identities = 6 }
train = { epochs = 1, identities = 4, images = 2 }
attack = { gradients = 6, identities = 6 }

[[run]]

[[run]]
anatomy = true
attack = {}
[run.grid]
"attack.tied" = [false, true]
"attack" = [{ name = "cmps", batch_size = 4 }, { name = "m-fgsm", steps = 2 }, { name = "sign-noise" }]
"""


def test_a_grid_runs_every_combination_and_pairs_each_attack_with_its_clean_victim(tmp_path):
    path = tmp_path / "attacked.toml"
    path.write_text(ATTACKED)
    report = workers.run_campaign(path, tmp_path / "out", progress=False)
    assert len(report["ran"]) == 2 * (1 + 2 * 3)
    victims = {card["seed"]: card for card in cards.read_cards(tmp_path / "out", kind="victim")}
    attacked = cards.read_cards(tmp_path / "out", kind="attack")
    assert {(c["attack"]["name"], c["attack"]["tied"], c["seed"]) for c in attacked} == {
        (name, tied, seed) for name in ("cmps", "m-fgsm", "sign-noise") for tied in (False, True) for seed in (0, 1)
    }
    for card in attacked:
        assert not cards.is_stale(card)
        assert f"attack/{card['attack']['name']}" in card["made_with"]
        if card["attack"]["name"] == "cmps":
            assert (card["attack"]["steps"], card["attack"]["identities"]) == (3, 6)
        for direction, clean in card["clean"].items():
            victim = victims[card["seed"]]["scores"][direction]
            assert clean["rank1"] == pytest.approx(victim["rank1"], abs=1e-6)
            for scores in (card["scores"][direction], card["scores_8_bit"][direction]):
                moved = scores["difference"]["rank1"]
                assert moved["low"] <= moved["difference"] <= moved["high"]
                assert moved["difference"] == pytest.approx(scores["rank1"] - clean["rank1"], abs=1e-5)
                assert len(scores["identity_rank1"]) == 6
            assert 0 < card["anatomy"][direction]["ssim"] < 1
    assert not list((files.cache_folder() / "attacks").glob("*.pt")), "the notes of finished fits are removed"
    text = json.dumps(cards.read_card(tmp_path / "out" / report["ran"][-1]))
    assert not re.search(r"/(?!(synthetic|agw|cmps|m-fgsm|sign-noise)\")", text), "a card holds no path"


MODIFIED = """
dataset = { size = [32, 16], num_identities = 8, images_per_modality = 4, val_identities = 4, test_identities = 6 }
train = { epochs = 1, identities = 4, images = 2 }
attack = { gradients = 6, identities = 6 }

[[run]]

[[run]]
name = "modified"
[run.grid]
"modified" = [
  { loss = "quadruple", blocks = [4] },
  { attention = "none", sfm = false, loss = "recipe", noise = "none", epochs = 2 },
]
"""
DIRECTIONS = {"visible to infrared", "infrared to visible"}


def test_a_modified_victim_makes_a_card_of_its_own(tmp_path):
    path, out = tmp_path / "modified.toml", tmp_path / "out"
    path.write_text(MODIFIED)
    report = workers.run_campaign(path, out, progress=False)
    assert len(report["ran"]) == 3
    (usual,) = cards.read_cards(out, kind="victim")
    assert "modification" not in usual
    noisy, benign = sorted(cards.read_cards(out, kind="modified"), key=lambda card: card["modification"]["loss"])
    for card in (noisy, benign):
        assert not cards.is_stale(card)
        assert "modified" in card["made_with"]
        assert card["attack"] is None
        assert card["victim"] == usual["victim"]
        assert set(card["modification"]) == set(Modification.__dataclass_fields__)
        assert len(card["history"]) == (card["modification"]["epochs"] or 1)
        assert 0 < card["train_seconds"] < card["wall_seconds"]
        assert set(card["scores"]) == set(card["within"]) == DIRECTIONS
        assert all(len(scores["identity_AP"]) == 6 for scores in card["scores"].values())
    assert noisy["modification"]["blocks"] == [4]
    assert set(noisy["scores_query"]) == set(noisy["scores_clean"]) == DIRECTIONS
    assert all(set(within) == {"clean", "perturbed"} for within in noisy["within"].values())
    # Where nothing was added, scores are clean already.
    assert not {"scores_query", "scores_clean"} & set(benign)
    assert all(set(within) == {"clean"} for within in benign["within"].values())
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(workers.run_campaign(path, out, progress=False)["done"]) == sorted(report["ran"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    # The card tells what the kept victim scores: clean, and with both sides perturbed.
    (one,) = (run for run in campaign.read_campaign(path) if run.modification and run.modification.loss == "quadruple")
    dataset = one.open()
    found = train_modified_victim(one.recipe, dataset, one.modification, device="cpu", progress=False)
    add = found.perturbation.apply
    for name, options in (("scores_clean", {}), ("scores", {"perturb": add, "perturb_gallery": add})):
        expected = evaluate(found.model, dataset, Modality.INFRARED, progress=False, **options)
        assert noisy[name]["infrared to visible"]["mAP"] == pytest.approx(expected.mAP, abs=1e-5)


def test_scores_of_a_modified_victim_say_what_was_perturbed(tiny):
    torch.manual_seed(0)
    seen = []

    def black(images, modality):
        seen.append((modality, len(images)))
        return torch.zeros_like(images)

    model = models.build("agw", 12, "lite").eval()
    results = run.score_modified(ModifiedVictim(model, SimpleNamespace(apply=black), {}), tiny)
    sizes = {m: len({record for trial in tiny.trials(m) for record in trial.query}) for m in Modality}
    sides = [Modality.VISIBLE, Modality.VISIBLE, Modality.INFRARED]  # queries alone, then both sides
    assert seen == [(m if first else m.other, sizes[m if first else m.other]) for first in (True, False) for m in sides]
    for modality in Modality:
        name = direction_name(modality)
        clean = evaluate(model, tiny, modality, progress=False)
        assert results["scores_clean"][name]["rank1"] == pytest.approx(clean.rank1, abs=1e-5)
        assert results["scores_query"][name]["rank1"] == pytest.approx(1 / 6), "one feature for all finds one identity"
        # Own modality: the nearest clean image beside the query itself.
        (trial,) = tiny.trials(modality)
        people = np.array([record.identity for record in trial.query])
        attacked = evaluate(model, tiny, modality, perturb=black, progress=False)
        for kind, query in (("clean", clean.query), ("perturbed", attacked.query)):
            distances = torch.cdist(query, clean.query).fill_diagonal_(torch.inf)
            nearest = people[distances.argmin(1)]
            assert results["within"][name][kind] == pytest.approx((nearest == people).mean())
    plain = run.score_modified(ModifiedVictim(model, None, {}), tiny)
    assert set(plain) == {"scores", "within"}
    for name, scores in plain["scores"].items():
        assert scores["mAP"] == results["scores_clean"][name]["mAP"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('loss = "quadruple"', 'loss = "triplet"'),
        ('loss = "quadruple"', 'loss = "quadruple", margin = 0.2'),
        ("blocks = [4]", "blocks = [9]"),
        ("blocks = [4]", 'blocks = "4"'),
        ("epochs = 2", "epochs = 0"),
        ('name = "modified"', 'name = "modified"\nsplit = "val"'),
        ('name = "modified"', 'name = "modified"\nattack = { name = "sign-noise" }'),
        ('"modified" = [', '"modifed" = ['),
    ],
)
def test_a_campaign_refuses_impossible_modifications_before_anything_runs(tmp_path, change, said):
    path = tmp_path / "wrong.toml"
    assert change in MODIFIED
    path.write_text(MODIFIED.replace(change, said))
    with pytest.raises(InputError, match="run 2") as caught:
        campaign.read_campaign(path)
    assert "\n" not in str(caught.value)


def test_every_committed_card_is_found_by_the_campaign_that_made_it():
    book = files.PACKAGE.parent / "book"
    runs = {f.stem: campaign.read_campaign(f) for f in sorted((book / "campaigns").glob("*.toml"))}
    counted = {
        "attacks": 339,
        "evidence": 982,
        "evidence_tuning": 0,
        "feature_level": 122,
        "standard": 200,
        "tuning": 45,
        "victims": 7,
    }
    assert {name: len(found) for name, found in runs.items()} == counted
    asked = {run.card_name() for found in runs.values() for run in found}
    committed = {path.name for path in (book / "results").glob(cards.CARDS)}
    assert committed <= asked, "no grid's card and no transfer yet"
    assert len(committed) == 274


def test_what_is_chosen_on_validation_identities_says_so(tmp_path):
    (tmp_path / "tune.toml").write_text(ATTACKED.replace("[[run]]\nanatomy = true", '[[run]]\nsplit = "val"'))
    runs = campaign.read_campaign(tmp_path / "tune.toml")
    assert {one.configuration.get("split") for one in runs if one.attack} == {"val"}
    tested = replace(runs[-1], split="test")
    assert "split" not in tested.configuration, "test is what a card says by saying nothing"
    assert tested.key != runs[-1].key


def test_a_quotient_may_be_written_wherever_a_number_is_and_the_key_is_the_same(tmp_path):
    texts = ('{ name = "pgd", step_size = "4/255" }', '{ name = "pgd", step_size = 0.0156862745, eps = "8/255" }')
    found = []
    for text in texts:
        (tmp_path / "c.toml").write_text(f"[[run]]\nattack = {text}\ntrain = {{ label_smoothing = '1/8' }}")
        found += campaign.read_campaign(tmp_path / "c.toml")
    assert found[0].attack.step_size == 4 / 255
    assert found[0].recipe.settings.label_smoothing == 1 / 8
    assert found[0].key == found[1].key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"attack.tied" = [false, true]', '"attack.tied" = false'),
        ('"attack.tied" = [false, true]', '"atack.tied" = [false]'),
        ('"attack.tied" = [false, true]', '"attack.tide" = [false]'),
        ('name = "cmps"', 'name = "cmsp"'),
        ("batch_size = 4", "batch_size = 1"),
        ("gradients = 6", "gradients = 1"),
    ],
)
def test_a_campaign_refuses_impossible_attacks_before_anything_runs(tmp_path, change, said):
    path = tmp_path / "wrong.toml"
    assert change in ATTACKED
    path.write_text(ATTACKED.replace(change, said))
    with pytest.raises(InputError, match="run 2") as caught:
        campaign.read_campaign(path)
    assert "\n" not in str(caught.value)


LICENSED = """
dataset = { name = "regdb", size = [32, 16] }
train = { epochs = 1, identities = 2, images = 2 }
victim = { backbone = "lite" }
"""


def test_images_replaced_under_their_names_are_run_again(tmp_path):
    root, out, file = make_regdb(tmp_path / "copy"), tmp_path / "out", tmp_path / "c.toml"
    file.write_text(f"{LICENSED}[[run]]\n")
    (first,) = workers.run_campaign(file, out, root=root, progress=False)["ran"]
    test = campaign.read_campaign(file)[0].open(root).test
    for record in test[::2]:
        path = root / record.source
        with Image.open(path) as image:
            changed = Image.new("RGB", image.size, (10, 200, 30))
        changed.save(path)
    (second,) = workers.run_campaign(file, out, root=root, progress=False)["ran"]
    assert first != second
    scores = [cards.read_card(out / name)["scores"] for name in (first, second)]
    assert scores[0] != scores[1]
    assert workers.run_campaign(file, out, root=root, progress=False)["done"] == [second]


def test_a_surrogate_that_saw_the_people_its_target_ranks_is_refused_unless_meant(tmp_path):
    root, file = make_regdb(tmp_path / "copy"), tmp_path / "c.toml"
    own = "[[run]]\nattack = { name = 'sign-noise' }\nsurrogate = { seed = 1, dataset = { split = 2 }"
    file.write_text(f"{LICENSED}{own} }}")
    with pytest.raises(InputError, match=r"surrogate was trained on .* allow_seen_people = true in its table"):
        workers.run_campaign(file, tmp_path / "out", root=root, progress=False)
    file.write_text(f"{LICENSED}{own}, allow_seen_people = true }}")
    (name,) = workers.run_campaign(file, tmp_path / "out", root=root, progress=False)["ran"]
    assert cards.read_card(tmp_path / "out" / name)["surrogate"]["allow_seen_people"] is True


def test_the_key_of_a_run_covers_test_images_that_no_official_gallery_draws(tmp_path):
    root, file = make_sysu(tmp_path / "copy"), tmp_path / "c.toml"
    file.write_text('dataset = { name = "sysu", size = [32, 16], num_trials = 1 }\n[[run]]\n')
    (run,) = campaign.read_campaign(file)
    data, before = run.open(root), run.card_name(root)
    drawn, (trial,) = data.trials()[0].gallery, data.trials(Modality.VISIBLE)
    path = root / next(record for record in trial.query if record not in drawn).source
    path.write_bytes(path.read_bytes() + b" ")
    campaign.opened.cache_clear()
    assert run.card_name(root) != before
