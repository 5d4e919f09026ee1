"""The command line as a person types it: the benchmarks' way through it, and every mistake in one line with code 2."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from miniatures import make_llcm, make_pairs, make_regdb, make_sysu
from PIL import Image
from safetensors.torch import save_file

from vireid_lite import attacks, cli, data, errors, models, options, training
from vireid_lite.chapters import plots
from vireid_lite.losses import TRIPLETS
from vireid_lite.study import grids

MAKE = {"sysu": make_sysu, "regdb": make_regdb, "llcm": make_llcm, "paired_folder": make_pairs}
TINY = ["-o", "num_identities=8", "-o", "images_per_modality=2", "-o", "val_identities=4", "-o", "test_identities=4"]
TINY += ["--size", "32x16"]


@pytest.fixture
def vireid(monkeypatch, capfd):
    """Run the command line in this process; return (exit code, stdout, stderr without progress bars)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vireid-lite", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("vireid-lite: ")]
        return stop.value.code or 0, out, said

    return run


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """Return a function giving the root of a miniature copy, made once a name."""
    made = {}

    def copy(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            MAKE[name](made[name])
        return made[name]

    return copy


WHOLE_FIGURES = ("test_a_miniature_copy_goes_through_check_train_and_evaluate[regdb]",
                 "test_a_perturbation_crafted_on_synthetic_data_is_applied_to_pairs[made]")  # fmt: skip


@pytest.fixture(autouse=True)
def _figures_of_one_query(request, monkeypatch):
    """Draw one query and two ranks of it: 66 panels a figure took most of the time. Some tests draw them whole."""
    strips, sheet = plots.ranking_strips, plots.attack_sheet

    def one_strip(data, queries, rankings, crops=None):
        return strips(data, queries[:1], rankings[:1], 2, crops and islice(crops, 1))

    if request.node.name not in WHOLE_FIGURES:
        monkeypatch.setattr(plots, "ranking_strips", one_strip)
        monkeypatch.setattr(
            plots, "attack_sheet", lambda *given: sheet(*(each[:1] for each in given[:2]), given[2], "1")
        )


def one_line(result, *words):
    code, _, said = result
    assert code == 2
    assert len(said) == 1, said
    for word in words:
        assert str(word) in said[0]


@pytest.mark.parametrize("name", ["sysu", "regdb", "llcm"])
def test_a_miniature_copy_goes_through_check_train_and_evaluate(vireid, copies, tmp_path, name):
    root = copies(name)
    code, out, _ = vireid("data", "check", name, "--root", root, "--partial")
    assert code == 0, out
    assert "partial" in out
    data = ["--dataset", name, "--root", root, "--size", "32x16"]
    code, out, said = vireid("train", *data, "--backbone", "lite", "--epochs", 1, "--out-dir", tmp_path / "victim")
    assert code == 0, said
    checkpoint = tmp_path / "victim" / "victim.safetensors"
    code, out, said = vireid("evaluate", *data, "--checkpoint", checkpoint, "--out-dir", tmp_path / "scores")
    assert code == 0, said
    assert f"{name}, visible to infrared: rank-1" in out
    assert f"{name}, infrared to visible: rank-1" in out
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    for direction in ("visible to infrared", "infrared to visible"):
        assert scores[direction]["minimum"]["mAP"] <= scores[direction]["mAP"] <= 1
        assert (tmp_path / "scores" / f"rankings_{direction.replace(' ', '_')}.png").stat().st_size > 2000


def test_every_network_can_be_trained_and_refuses_what_does_not_fit(vireid, tmp_path):
    for name in ("ddag", "deen", "caj", "ide", "pcb"):
        code, _, said = vireid("train", *TINY, "--model", name, "--epochs", 1, "--out-dir", tmp_path / name)
        assert code == 0, said
        card = json.loads((tmp_path / name / "victim.json").read_text())
        assert card["recipe"]["model"] == card["model"]["name"] == name
        assert ("triplet" in card["recipe"]["settings"]) == (name == "caj")
    for arguments, words in (
        (["--model", "resnet"], "'resnet' is not one of 'agw', 'caj'"),
        (["--model", "ddag", "--triplet", "hard"], "DDAG has its own losses and takes no triplet; leave 'hard' out"),
        (["--model", "ide", "--set", "parts=6"], "ide has no option 'parts'; it has hetero_centre"),
        (["--model", "pcb", "--pretrained"], "no ImageNet weights"),
    ):
        one_line(vireid("train", *TINY, *arguments, "--out-dir", tmp_path / "wrong"), words)


def test_an_official_checkpoint_is_evaluated_and_attacked(vireid, copies, tmp_path):
    from test_checkpoints import OfficialLayout

    path, data = tmp_path / "agw.t", ["--dataset", "regdb", "--root", copies("regdb"), "--size", "32x16"]
    torch.save({"net": OfficialLayout("resnet18", (0, 1, 1, 0)).state_dict()}, path)
    for command in (["evaluate"], ["attack", "sign-noise"]):
        code, out, said = vireid(*command, *data, "--official", path, "--out-dir", tmp_path / command[0])
        assert code == 0, said
        assert "regdb, visible to infrared: rank-1" in out
        assert json.loads((tmp_path / command[0] / "scores.json").read_text())["victim"]
    code, out, said = vireid("evaluate", *data, "--official", path, "--model", "caj", "--out-dir", tmp_path / "caj")
    assert code == 0, said
    scored = [json.loads((tmp_path / name / "scores.json").read_text())["scores"] for name in ("evaluate", "caj")]
    assert scored[0] != scored[1]  # CAJ's published test adds the mirror image
    one_line(vireid("evaluate", *data, "--official", path, "--model", "deen"), "choose from agw, caj")
    one_line(vireid("evaluate", *data, "--checkpoint", path, "--model", "agw"), "--model agw names the network")
    one_line(vireid("evaluate", *data, "--checkpoint", path), "give a published checkpoint to --official")
    one_line(vireid("evaluate", *data, "--official", path, "--checkpoint", path), "leave out --checkpoint")
    one_line(vireid("evaluate", *data, "--official", tmp_path / "none.t"), "--official", "none.t", "does not exist")


def paired_roots():
    real = os.environ.get("VIREID_PAIRED_ROOT")
    missing = pytest.mark.skip(reason="VIREID_PAIRED_ROOT names no folder of real pairs: nothing real was read")
    return [pytest.param(None, id="made"), pytest.param(real, id="real", marks=[] if real else [missing])]


@pytest.mark.parametrize("root", paired_roots())
def test_pairs_are_ranked_in_both_directions_beside_chance(vireid, copies, tmp_path, root):
    root = root or copies("paired_folder")
    victim = tmp_path / "victim"
    assert vireid("train", *TINY, "--epochs", 2, "--out-dir", victim)[0] == 0
    code, out, said = vireid(
        *("evaluate", "--dataset", "paired_folder", "--root", root, "--size", "32x16"),
        *("--checkpoint", victim / "victim.safetensors", "--out-dir", tmp_path / "pairs"),
    )
    assert code == 0, said
    assert out.count("chance rank-1") == 2
    counts = re.findall(r"; (\S+) queries of (\S+) people, (\S+) gallery images", out)
    assert len(counts) == 2
    assert {number for each in counts for number in each} == {counts[0][0]}
    assert root != copies("paired_folder") or out.count("one_frame_per_sequence leaves out 3 of 6 pairs") == 2
    assert len(list((tmp_path / "pairs").glob("rankings_*.png"))) == 2


def test_a_line_of_scores_says_what_it_is_about():
    chance = SimpleNamespace(independent=SimpleNamespace(rank1=(0.2, 0.1, 0.3)))
    counts = {"query": range(1200), "gallery": range(300), "per_identity": SimpleNamespace(identity=range(7))}
    trials = [SimpleNamespace(valid_queries=1100)] * 2
    result = SimpleNamespace(chance=chance, rank1=0.5, mAP=0.4, mINP=0.3, trials=trials, **counts)
    line = cli._scores_line(SimpleNamespace(name="sysu", left_out="a default leaves out 2"), "there", result)
    about = "1,200 queries (1,100 with a match in a trial) of 7 people, 300 gallery images in 2 trials"
    assert line.endswith(f"10.0 to 30.0 %; {about}; a default leaves out 2")


@pytest.fixture(scope="session")
def tiny_victim(tmp_path_factory):
    """The checkpoint of a small victim, trained once."""
    folder = tmp_path_factory.mktemp("tiny-victim")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vireid-lite", "train", *TINY, "--epochs", "2", "--out-dir", str(folder)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return folder / "victim.safetensors"


@pytest.mark.parametrize("root", paired_roots())
def test_a_perturbation_crafted_on_synthetic_data_is_applied_to_pairs(vireid, copies, tmp_path, tiny_victim, root):
    """No success is claimed: the scores stand beside chance, and the figures show what was done to the images."""
    made = tmp_path / "attack"
    code, out, said = vireid(
        *("attack", "cmps", *TINY, "--checkpoint", tiny_victim, "--gradients", 20, "--out-dir", made),
        *("--set", "batch_size=8"),
    )
    assert code == 0, said
    assert out.count("attacked, 8 bits: rank-1") == 2
    assert json.loads((made / "scores.json").read_text())["attack"]["steps"] == 10
    assert not list(made.glob("state*")), "the note of a finished attack is removed"
    scored = tmp_path / "scored"
    code, out, said = vireid(
        *("evaluate", "--dataset", "paired_folder", "--root", root or copies("paired_folder"), "--size", "32x16"),
        *("--checkpoint", tiny_victim, "--perturbation", made / "perturbation.safetensors", "--out-dir", scored),
    )
    assert code == 0, said
    assert out.count(", attacked: rank-1") == 2
    assert out.count("chance rank-1") == 4
    assert len(list(scored.glob("attacked_*.png"))) == len(list(scored.glob("rankings_*_attacked.png"))) == 2
    facts = json.loads((scored / "scores.json").read_text())
    assert facts["perturbation"]["name"] == "cmps"
    for direction, attacked in facts["scores"].items():
        gap = attacked["rank1"] - facts["clean"][direction]["rank1"]
        assert attacked["difference"]["rank1"]["difference"] == pytest.approx(gap, abs=1e-6)
    one_line(
        vireid(
            *("evaluate", *TINY[:-1], "40x16", "--perturbation", made / "perturbation.safetensors"),
            *("--checkpoint", tiny_victim, "--out-dir", tmp_path / "other"),
        ),
        "32x16",
        "40x16",
    )


def test_an_image_specific_attack_scores_both_directions_and_leaves_no_perturbation(vireid, tmp_path, tiny_victim):
    command = ["attack", "m-fgsm", *TINY, "--checkpoint", tiny_victim, "--tied", "--out-dir", tmp_path]
    code, out, said = vireid(*command, "--set", "steps=2")
    assert code == 0, said
    assert out.count("attacked: rank-1") == 2
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["scores.json"]


def test_an_attack_that_moves_nothing_is_refused_and_one_that_moves_some_says_so(vireid, copies, tmp_path, tiny_victim):
    """One image per person and spectrum is no guide to itself; a budget below a level of 8 bits is rounded away."""
    pairs = ["--dataset", "paired_folder", "--root", copies("paired_folder"), "--size", "32x16"]
    pairs += ["--checkpoint", tiny_victim]
    one_line(vireid("attack", "m-fgsm", *pairs, "--out-dir", tmp_path / "a"), "none of 12", "guide")
    assert not (tmp_path / "a" / "scores.json").exists()
    code, out, said = vireid("attack", "sma", *pairs, "--eps", 0.002, "--out-dir", tmp_path / "b")
    assert code == 0, said
    assert "moved 12 of 12 query images, 0 in 8 bits; less than a level" in out
    facts = json.loads((tmp_path / "b" / "scores.json").read_text())
    assert [each["moved"] for each in facts["scores"].values()] == [6, 6]
    assert [each["moved"] for each in facts["scores_8_bit"].values()] == [0, 0]
    code, out, said = vireid("attack", "fna", *TINY, "--checkpoint", tiny_victim, "--out-dir", tmp_path / "c")
    assert (code, "moved 16 of 16 query images, 16 in 8 bits\n" in out) == (0, True), said
    for delta, all_moved in ((0.0, False), (0.4 / 255, False), (8 / 255, True)):
        made = attacks.UniversalPerturbation(torch.full((3, 32, 16), delta), 8 / 255)
        made.save(tmp_path / "made.safetensors")
        command = ["evaluate", *pairs, "--perturbation", tmp_path / "made.safetensors", "--out-dir", tmp_path / "d"]
        if all_moved:
            assert "moved 12 of 12 query images\n" in vireid(*command)[1]
        else:
            one_line(vireid(*command), "none of 12", "level")
            assert not (tmp_path / "d" / "scores.json").exists()


def test_training_twice_into_one_folder_loads_and_other_settings_are_refused(vireid, tmp_path):
    command = ["train", *TINY, "--epochs", 1, "--out-dir", tmp_path / "victim"]
    assert vireid(*command)[0] == 0
    before = (tmp_path / "victim" / "victim.safetensors").stat().st_mtime_ns
    assert vireid(*command)[0] == 0
    assert (tmp_path / "victim" / "victim.safetensors").stat().st_mtime_ns == before
    one_line(vireid(*command, "--seed", 1), "victim.safetensors", "other settings")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epochs", "many"], ["--epochs"]),
        (["train", "--epoch", "3"], ["--epoch"]),
        (["train", "--tier", "huge"], ["--tier", "'huge'", "lite"]),
        (["train", "--device", "cuda:9"], ["DEVICE 'cuda:9'"]),
        (["train", "--device", "tpu"], ["--device 'tpu'", "cuda:N"]),
        (["train", "--backbone", "vgg"], ["vgg"]),
        (["train", "-o", "difficulty"], ["difficulty"]),
        (["train", "-o", "dificulty=hard"], ["dificulty"]),
        (["train", "-o", "difficulty=harder"], ["harder"]),
        (["train", "--dataset", "market"], ["market"]),
        (["train", "--size", "128"], ["128", "HEIGHTxWIDTH"]),
        (["train", "--root", "/tmp"], ["synthetic"]),
        (["train", "--size", "²x3"], ["HEIGHTxWIDTH"]),
        (["train", "--seed", "-1"], ["--seed"]),
        (["train", "--learning-rate", "-1"], ["--learning-rate"]),
        (["train", "-o", "size=64"], ["--size"]),
        (["train", "-o", "thermal=no"], ["thermal"]),
        (["train", "-o", 'difficulty=["easy"]'], ["difficulty"]),
        (["train", "--out-dir", "/proc/victim"], ["/proc"]),
        (["train", "--out-dir", "/dev/null"], ["/dev"]),
        (["book", "-p", "TIER", "full"], ["--tier"]),
        (["train", "--dataset", "sysu"], ["sysu", "--root"]),
        (["train", "--dataset", "sysu", "--root", "/no/such"], ["/no/such"]),
        (["evaluate", "--query-modality", "thermal"], ["thermal"]),
        (["evaluate", "--split", "train"], ["train"]),
        (["evaluate", "--checkpoint", "/no/such.safetensors"], ["/no/such.safetensors"]),
        (["data", "check", "market", "--root", "/tmp"], ["market"]),
        (["data", "check", "sysu", "--root", "/no/such"], ["/no/such"]),
        (["campaign", "/no/such.toml"], ["/no/such.toml"]),
        (["book", "--chapters", "one"], ["one"]),
        (["book", "--chapters", "99"], ["99"]),
        (["book", "-p", "EPZ", "4/255"], ["EPZ"]),
        (["book", "-p", "SEED", "x"], ["SEED"]),
        (["frobnicate"], ["frobnicate"]),
        (["bench", "smoke", "--tier", "huge"], ["--tier", "'huge'", "lite"]),
        (["attack", "cmsp"], ["cmsp", "cmps"]),
        (["attack", "cmps", "--eps", "8"], ["--eps"]),
        (["attack", "cmps", "--set", "mode=both"], ["both"]),
        (["attack", "cmps", "--set", "speed=3"], ["speed", "mode"]),
        (["attack", "cmps", "--set", "eps=0.1"], ["--eps"]),
        (["attack", "cmps", "--gradients", "10", "--set", "steps=5"], ["steps", "gradients"]),
        (["attack", "m-fgsm", "--set", "steps=none"], ["steps"]),
        (["attack", "m-fgsm", "--gradients", "10"], ["--gradients"]),
        (["attack", "fgsm", "--identities", "10"], ["--identities"]),
        (["evaluate", "--perturbation", "/no/such.safetensors"], ["/no/such.safetensors"]),
    ],
)
def test_a_mistake_is_one_line_and_code_2(vireid, arguments, words):
    one_line(vireid(*arguments), *words)


def test_names_known_without_torch_are_the_modules_own():
    assert tuple(data.DATASETS) == errors.DATASETS
    assert set(options.NETWORKS) == set(models.NETWORKS)
    assert set(options.BACKBONES) == set(models.BACKBONES)
    assert tuple(TRIPLETS) == options.TRIPLETS
    assert tuple(attacks.ATTACKS) == options.ATTACKS
    assert options.GRID.startswith(", ".join(grids.GRIDS))
    assert all(re.fullmatch(options.GRIDS, name) for name in (*grids.GRIDS, "own.toml"))


def break_list(root):
    (root / "idx" / "train_visible_1.txt").unlink()
    return "train_visible_1.txt"


def break_path(root):
    path = root / "idx" / "train_visible_1.txt"
    path.write_text("../../etc/passwd 0\n" + path.read_text())
    return "train_visible_1.txt"


def remove_image(root):
    path = next((root / "Visible").rglob("*.bmp"))
    path.unlink()
    return path.name


def truncate_image(root):
    for path in (root / "Visible").rglob("*.bmp"):
        path.write_bytes(path.read_bytes()[:100])
    return ".bmp"


def html_image(root):
    for path in (root / "Thermal").rglob("*.bmp"):
        path.write_text("<html>Please sign the agreement</html>")
    return ".bmp"


@pytest.mark.parametrize("damage", [break_list, break_path, remove_image, truncate_image, html_image])
def test_a_damaged_copy_is_one_line_in_training_and_named_by_check(vireid, tmp_path, damage):
    make_regdb(tmp_path / "copy")
    named = damage(tmp_path / "copy")
    data = ["--dataset", "regdb", "--root", tmp_path / "copy", "--size", "32x16"]
    one_line(vireid("train", *data, "--backbone", "lite", "--epochs", 1, "--out-dir", tmp_path / "victim"), named)
    code, out, said = vireid("data", "check", "regdb", "--root", tmp_path / "copy", "--partial")
    assert code == 2
    assert len(said) == 1
    assert named in out


def test_counts_that_do_not_fit_fail_the_check(vireid, copies):
    code, out, said = vireid("data", "check", "regdb", "--root", copies("regdb"))
    assert code == 2
    assert len(said) == 1
    assert "a complete copy has 4,120" in out


def test_a_file_that_is_no_checkpoint_of_ours_is_one_line(vireid, tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    one_line(vireid("evaluate", *TINY, "--checkpoint", tmp_path / "resnet.safetensors"), "resnet.safetensors")


def test_a_checkpoint_of_another_architecture_is_one_line(vireid, tmp_path):
    from safetensors import safe_open

    assert vireid("train", *TINY, "--epochs", 1, "--out-dir", tmp_path)[0] == 0
    path = tmp_path / "victim.safetensors"
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    card["model"]["backbone"] = "resnet18"
    save_file(state, path, metadata={"card": json.dumps(card)})
    one_line(vireid("evaluate", *TINY, "--checkpoint", path), "victim.safetensors")


def test_no_space_for_the_cache_is_one_line(vireid, tmp_path, monkeypatch):
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    one_line(vireid("train", *TINY, "--out-dir", tmp_path / "victim"), "no space left", tmp_path / "cache")


def test_a_campaign_says_what_it_ran(vireid, tmp_path):
    (tmp_path / "c.toml").write_text(
        "[[run]]\ndataset = { size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, "
        "test_identities = 4 }\ntrain = { epochs = 1 }\n"
    )
    command = ["campaign", tmp_path / "c.toml", "--out-dir", tmp_path / "cards"]
    assert "ran: 1" in vireid(*command)[1]
    assert "done: 1" in vireid(*command)[1]
    assert len(list(Path(tmp_path / "cards").glob("*.json"))) == 1


def small_victim(vireid, folder, *data):
    """Train a victim of one epoch; return its checkpoint."""
    code, _, said = vireid("train", *data, "--backbone", "lite", "--epochs", 1, "--out-dir", folder)
    assert code == 0, said
    return folder / "victim.safetensors"


@pytest.mark.parametrize(
    ("name", "trained", "ranked", "split"),
    [
        ("regdb", "split=1", "split=2", "test"),
        ("sysu", "validation=false", "validation=true", "val"),
    ],
)
def test_people_the_victim_was_trained_on_are_not_ranked_unless_meant(
    vireid, copies, tmp_path, name, trained, ranked, split
):
    data = ["--dataset", name, "--root", copies(name), "--size", "32x16"]
    victim = ["--checkpoint", small_victim(vireid, tmp_path / "victim", *data, "-o", trained)]
    for command in (["attack", "sign-noise"], ["evaluate"]):
        asked = [*command, *data, *victim, "-o", ranked, "--split", split, "--out-dir", out := tmp_path / "out"]
        one_line(vireid(*asked), name, "was trained on", "people to be ranked", "--allow-seen-people")
        assert not list(out.glob("[!.]*"))
    code, _, said = vireid(*asked, "--allow-seen-people")
    assert code == 0, said
    assert json.loads((out / "scores.json").read_text())["allow_seen_people"]


def test_people_a_perturbation_was_learned_from_are_not_ranked_unless_meant(vireid, copies, tmp_path):
    copy = ["--dataset", "regdb", "--root", copies("regdb"), "--size", "32x16"]
    victim = ["--checkpoint", small_victim(vireid, tmp_path / "victim", *copy, "-o", "split=2")]
    made = {}
    for name in ("uap-retrieval", "sign-noise"):
        asked = ["attack", name, *copy, *victim, "-o", "split=1", "--allow-seen-people", "--out-dir", tmp_path / name]
        code, _, said = vireid(*asked, *(["--gradients", 2] if name == "uap-retrieval" else []))
        assert code == 0, said
        made[name] = tmp_path / name / "perturbation.safetensors"
    split = data.load_dataset("regdb", copies("regdb"), size=(32, 16), split=1)
    assert attacks.load_perturbation(made["uap-retrieval"]).people == data.people(split, split.train)
    assert not attacks.load_perturbation(made["sign-noise"]).people, "noise learns from nobody"
    asked = ["evaluate", *copy, *victim, "-o", "split=2", "--out-dir", out := tmp_path / "out", "--perturbation"]
    one_line(vireid(*asked, made["uap-retrieval"]), "the perturbation was trained on", "ranked", "--allow-seen-people")
    assert not list(out.glob("[!.]*"))
    for name, more in (("uap-retrieval", ["--allow-seen-people"]), ("sign-noise", [])):
        code, _, said = vireid(*asked[:-3], "--out-dir", tmp_path / f"{name} scored", asked[-1], made[name], *more)
        assert code == 0, said
        assert '"people"' not in (tmp_path / f"{name} scored" / "scores.json").read_text()


def test_a_victim_nobody_knows_the_people_of_says_so(copies, tmp_path, capsys):
    from vireid_lite.study.run import victim_and_data

    model = models.build("agw", 4, "lite")
    models.checkpoints.save_checkpoint(path := tmp_path / "v.safetensors", model, {"dataset": {"name": "regdb"}})
    for name, said in (("regdb", True), ("sysu", False)):
        opened = data.load_dataset(name, copies(name), size=(32, 16))
        victim_and_data("lite", path, None, lambda size, opened=opened: opened, 0, torch.device("cpu"))
        assert ("nothing says which people the victim was trained on" in capsys.readouterr().err) == said


def test_a_card_that_names_its_data_in_a_word_is_read(copies, tmp_path, capsys):
    from vireid_lite.study.run import victim_and_data

    models.checkpoints.save_checkpoint(
        path := tmp_path / "v.safetensors", models.build("agw", 4, "lite"), {"dataset": "x"}
    )
    opened = data.load_dataset("regdb", copies("regdb"), size=(32, 16))
    victim_and_data("lite", path, None, lambda _: opened, 0, torch.device("cpu"))
    assert "nothing says which people the victim was trained on" in capsys.readouterr().err


def test_advice_about_a_split_is_not_refused_when_followed(copies):
    for name in MAKE:
        opened = data.load_dataset(name, copies(name), size=(32, 16))
        with pytest.raises(errors.InputError, match="no tuning identities are held out") as said:
            opened.val_trial(split="tuning")
        if "validation=True" in str(said.value):
            opened = data.load_dataset(name, copies(name), size=(32, 16), validation=True)
        taken = opened.val_trial() if "take the split val" in str(said.value) else opened.trials()[0]
        assert taken.query, name
        assert "test trials" in str(said.value) or "take the split val" in str(said.value)


@pytest.mark.parametrize("lost", [None, "scores.json"])
def test_outputs_of_different_commands_never_mix(vireid, tmp_path, tiny_victim, lost):
    out = ["--checkpoint", tiny_victim, "--out-dir", tmp_path / "out"]
    first = ["attack", "sign-noise", *TINY, *out]
    assert vireid(*first)[0] == 0
    if lost:
        (tmp_path / "out" / lost).unlink()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")}
    others = [["attack", "m-fgsm", *TINY, *out], [*first, "--seed", 1], ["evaluate", *TINY, *out]]
    others += [[*first, "--split", "val"], [*first, "-o", "difficulty=hard"]]
    for other in others:
        one_line(vireid(*other), tmp_path / "out", "of another command", "--out-dir")
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")} == kept
    assert lost or vireid(*first)[0] == 0


def test_an_attack_that_was_killed_is_not_lost_to_another(vireid, tmp_path, tiny_victim, monkeypatch):
    asked = [*TINY, "--checkpoint", tiny_victim, "--out-dir", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(attacks.descent, "NOTE_EVERY", 1)
        patch.setattr(attacks.CMPS, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert vireid("attack", "cmps", *asked, "--gradients", 8, "--set", "batch_size=8")[0] == 130
    (note,) = (tmp_path / "out").glob("state-*.pt")
    one_line(vireid("attack", "fgsm", *asked), note.name, "a killed attack, which its own command resumes", "--out-dir")
    assert note.exists()
    assert vireid("attack", "cmps", *asked, "--gradients", 8, "--set", "batch_size=8")[0] == 0
    assert not note.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["train", "attack", "campaign"])
def test_a_signal_is_one_line_and_the_same_command_goes_on(
    vireid, tmp_path, tiny_victim, monkeypatch, ended_by, name, number
):
    campaign = tmp_path / "own.toml"
    campaign.write_text("""seeds = [0, 1]
    [[run]]
    dataset = { size = [32, 16], num_identities = 8, images_per_modality = 2, val_identities = 4, test_identities = 4 }
    train = { epochs = 2, identities = 4, images = 2 }""")
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    command = {
        "train": ["train", *TINY, "--backbone", "lite", "--epochs", 2],
        "attack": ["attack", "cmps", *TINY, "--checkpoint", tiny_victim, "--gradients", 8, "--set", "batch_size=8"],
        "campaign": ["campaign", campaign],
    }[name]
    command += ["--out-dir", tmp_path / "out"]
    monkeypatch.setattr(attacks.descent, "NOTE_EVERY", 1)
    with ended_by(number):
        code, _, said = vireid(*command)
    assert (code, said) == (128 + number, [f"vireid-lite: {cli.INTERRUPTED}"])
    (note,) = tmp_path.rglob("state*.pt")
    resumed, resume = [], training.resume
    for module in (training, attacks.descent):
        monkeypatch.setattr(module, "resume", lambda *given: resumed.append(resume(*given)) or resumed[-1])
    assert vireid(*command)[0] == 0
    assert any(resumed), "it began anew"
    assert not note.exists()


@pytest.fixture
def ended_by(monkeypatch):
    """Let a signal come after the first note of a run."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    @contextlib.contextmanager
    def signalled(number):
        write = training.note

        def note(*given):
            write(*given)
            os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            for module in (training, attacks.descent):
                patch.setattr(module, "note", note)
            yield

    yield signalled
    for number, handler in handlers.items():
        signal.signal(number, handler)


def replaced(root, keep):
    """Write other pixels into every image of a copy under the same name and, if asked, at the same size and time."""
    paths = [path for path in root.rglob("*") if path.suffix in (".bmp", ".jpg", ".png")]
    for path in paths:
        before = path.stat()
        with Image.open(path) as image:
            changed = Image.new("RGB", image.size, (10, 200, 30))
        changed.save(path)
        if keep:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.suffix != ".bmp" or path.stat().st_size == before.st_size


@pytest.mark.parametrize("keep", [False, True])
def test_images_replaced_under_their_names_are_other_data(vireid, tmp_path, keep):
    root = make_regdb(tmp_path / "copy")
    copy = ["--dataset", "regdb", "--root", root, "--size", "32x16"]
    checkpoint = small_victim(vireid, tmp_path / "victim", *copy)
    asked = ["evaluate", *copy, "--checkpoint", checkpoint, "--out-dir", tmp_path / "scores"]
    assert vireid(*asked)[0] == 0
    replaced(root, keep)
    again = ["train", *copy, "--backbone", "lite", "--epochs", 1, "--out-dir", tmp_path / "victim"]
    one_line(vireid(*again), "victim.safetensors", "data")
    one_line(vireid(*asked), "other data")
