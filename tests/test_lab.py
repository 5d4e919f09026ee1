"""The attack lab: its JavaScript against the package, in Node, on a network that the export made.

A seeded twentieth of all states is tried; `VIREID_LAB=whole` tries all. Node is needed: without it these tests are
skipped, and with CI_BROWSER_REQUIRED=1 they fail.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_reference import SPECTRA, network
from test_browser import _need

from _make.pages import fill
from vireid_lite import models
from vireid_lite.chapters import lab
from vireid_lite.data import Modality, SyntheticVI
from vireid_lite.errors import InputError
from vireid_lite.models.rounded import LEVELS, convolutions, fold, rounded

ROOT, TOLERANCE, WHOLE = Path(__file__).parents[1], 1e-4, os.environ.get("VIREID_LAB") == "whole"
MODULES = ROOT / "book" / "_static" / "lab"
NODE = shutil.which("node") or shutil.which("nodejs")
START = {
    "query": 0, "spectrum": "visible", "eps": 8, "attack": "cmps", "tied": False, "bits": True, "right": 0, "down": 0,
    "before": "nothing", "adaptive": True, "steps": 1, "target": 0,
}  # fmt: skip


def ask(folder: Path, requests: list[dict], modules: Path = MODULES) -> list[dict]:
    _need(NODE, "no Node here; install Debian's package nodejs")
    command = [NODE, Path(__file__).with_name("lab_states.mjs"), folder, modules]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def floats(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.float32).copy())


def all_states() -> list[dict]:
    """Return every query under every perturbation at every stop, behind everything that may stand there."""
    ways = [("nothing", True), *product(("mean", "chain"), (True, False))]
    each = product(range(lab.QUERIES), SPECTRA, (*lab.ATTACKS, "steps"), (0, *lab.STOPS), (False, True), ways)
    return [
        {**START, "query": q, "spectrum": s, "attack": a, "eps": e, "tied": t, "before": before, "adaptive": adaptive}
        for q, s, a, e, t, (before, adaptive) in each
    ]


def some_states() -> list[dict]:
    """Return a seeded twentieth of the states, or all; and some that lie between them."""
    states, rng = all_states(), np.random.default_rng(19)
    chosen = states if WHOLE else [states[place] for place in rng.choice(len(states), len(states) // 20, replace=False)]
    between = [states[place] for place in rng.choice(len(states), 40, replace=False)]
    for number, state in enumerate(between):
        other = {"eps": int(rng.integers(1, 17)), "bits": bool(number % 2)}
        chosen.append({**state, **other, "right": int(rng.integers(-9, 10)), "down": int(rng.integers(-9, 10))})
    return chosen


def test_rounding_keeps_the_network_and_has_levels_of_8_bits():
    model = network()
    exact = rounded(model)
    images = torch.rand(4, 3, 32, 16)
    for modality in Modality:
        similarity = (model.embed(images, modality) * exact.embed(images, modality)).sum(1)
        assert (similarity > 0.999).all()
    assert not torch.equal(model.embed(images, 0), exact.embed(images, 0))
    for (conv, norm), (now, _) in zip(convolutions(model).values(), convolutions(exact).values(), strict=True):
        found = fold(conv, norm)
        assert torch.equal(found.levels.abs().amax((1, 2, 3)), torch.full((len(found.levels),), LEVELS).to(torch.int8))
        assert torch.equal(now.weight, found.weight)


def test_what_is_not_a_lite_agw_is_refused():
    for model in (
        models.build("agw", 4, "resnet18"),
        models.build("ddag", 4, "lite"),
        models.build("agw", 4, "lite", flip=True),
    ):
        with pytest.raises(InputError, match="8 bits: only an agw with the lite trunk"):
            rounded(model)


def test_pictures_and_victims_of_real_people_are_refused(tmp_path):
    data = SyntheticVI(4, 2, size=(32, 16), val_identities=2, test_identities=2)
    with pytest.raises(InputError, match="lab: a victim of 'sysu'; only rendered people"):
        lab.export((network(), {"dataset": {"name": "sysu"}}, data), tmp_path)
    data.name = "regdb"
    with pytest.raises(InputError, match="lab: crops of 'regdb'; only rendered people"):
        lab.export((network(), {"dataset": {"name": "synthetic"}}, data), tmp_path)
    data.name = "synthetic"
    with pytest.raises(InputError, match="lab: 2 people in the test; 12 are needed"):
        lab.export((network(), {"dataset": {"name": "synthetic"}}, data), tmp_path)
    assert list(tmp_path.iterdir()) == []


def whole(folder: Path) -> dict:
    """Return the manifest of a folder that is what it says."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, stated in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (stated["bytes"], stated["sha256"]), name
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["files"]}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= lab.LARGEST
    return manifest


def test_the_committed_folder_is_whole_and_its_page_says_what_it_holds():
    manifest, page = whole(MODULES / "data"), (ROOT / "book" / "lab.md").read_text()
    assert {len(crops) for crops in manifest["gallery"].values()} == {30}
    assert {len(crops) for crops in manifest["queries"].values()} == {12}
    assert sorted({each["eps"] for each in manifest["perturbations"]}) == [2, 4, 8, 16]
    assert manifest["size"][1] == 2 * 24
    for said in ("ranks 30 people", "of 12 queries", "eps of 2, 4, 8\n  and 16", "24, half the width"):
        assert said in page


def test_the_folder_is_what_its_manifest_says(exported):
    manifest = whole(exported.folder)
    assert manifest["behaviour"].keys() == {
        "data/synthetic",
        "victim/agw",
        "scores",
        *(f"attack/{a}" for a in lab.ATTACKS),
    }
    for spectrum in SPECTRA:
        assert len(manifest["queries"][spectrum]) == lab.QUERIES
        people = {crop["person"] for crop in manifest["gallery"][spectrum]}
        assert {crop["person"] for crop in manifest["queries"][spectrum]} <= people
    assert len(manifest["perturbations"]) == len(lab.STOPS) * 2 * (2 * len(lab.ATTACKS) - 1)


def test_noise_is_as_long_as_cmps_and_everything_keeps_its_budget(exported):
    found = {}
    for each in exported.manifest["perturbations"]:
        for spectrum, modality in SPECTRA.items():
            count = exported.size[0] * exported.size[1] * each[spectrum]["channels"]
            levels = np.frombuffer(exported.levels, np.int8, count, each[spectrum]["at"]).astype(float)
            assert abs(levels).max() <= 127
            assert each[spectrum]["channels"] == 1 if each["tied"] and modality else True
            length = np.sqrt((levels**2).sum() * (3 / each[spectrum]["channels"]))
            found[each["attack"], each["through"], each["tied"], each["eps"], spectrum] = length
    for tied, stop, spectrum in product((False, True), lab.STOPS, SPECTRA):
        noise, cmps = (found[name, "nothing", tied, stop, spectrum] for name in ("sign-noise", "cmps"))
        assert noise == pytest.approx(cmps, rel=0.05)


def test_states_equal_the_package(exported):
    states = some_states()
    galleries, near, turned = {}, 0, 0
    for state, found in zip(states, ask(exported.folder, states), strict=True):
        clean, expected = exported.attacked(state)
        image = floats(found["image"]).view(*exported.size, 3).permute(2, 0, 1)[None]
        if state["attack"] == "steps":  # a gradient near 0 may have the other sign
            turned += int((image != expected).sum())
        else:
            assert torch.equal(image, expected), state
        assert found["change"] == pytest.approx(255 * (image - clean).abs().max().item(), abs=1e-3)
        assert found["change"] <= state["eps"] + 1e-3
        feature = exported.feature(image, state)
        assert (floats(found["feature"]) - feature).abs().max() <= TOLERANCE, state
        key = state["spectrum"], state["before"] == "chain"
        features, people = galleries.setdefault(key, exported.gallery(state, state["before"]))
        similarity, order = (features @ feature).numpy(), np.array(found["order"])
        gaps = -np.diff(similarity[order])
        assert (gaps >= -TOLERANCE).all(), state
        near += int((gaps < 0).sum())
        person = exported.manifest["queries"][state["spectrum"]][state["query"]]["person"]
        assert found["firstRight"] == 1 + list(people[order]).index(person)
    print(f"{len(states)} states: {near} neighbours change places below {TOLERANCE}, {turned} pixels have another sign")
    assert near <= len(states) // 20
    assert turned <= 1e-4 * len(states) * exported.size[0] * exported.size[1] * 3


def test_ten_steps_walk_as_the_package_does(exported):
    states = [{**START, "attack": "steps", "steps": 10, "query": q, "spectrum": s} for q in range(2) for s in SPECTRA]
    for state, found in zip(states, ask(exported.folder, states), strict=True):
        _, expected = exported.attacked(state)
        image = floats(found["image"]).view(*exported.size, 3).permute(2, 0, 1)[None]
        assert (image != expected).float().mean() < 0.01
        assert (exported.feature(image, state) - exported.feature(expected, state)).abs().max() < 0.01


def test_gradients_equal_autograds(exported):
    rng, requests, expected = np.random.default_rng(0), [], []
    for query, (spectrum, modality), before in product(range(3), SPECTRA.items(), lab.BEFORE):
        score = rng.normal(size=exported.manifest["network"]["dimension"])
        state = {**START, "query": query, "spectrum": spectrum, "before": before}
        requests.append({"gradient": state, "score": score.tolist()})
        image = exported.crop(exported.manifest["queries"][spectrum][query]["cell"]).requires_grad_()
        with lab.standing_before(exported.model, before):
            feature = exported.model.embed(image, modality)[0]
        (gradient,) = torch.autograd.grad(feature @ torch.from_numpy(score).float(), image)
        expected.append(gradient[0].permute(1, 2, 0).flatten())
    turned = 0
    for found, gradient in zip(ask(exported.folder, requests), expected, strict=True):
        own = floats(found["gradient"])
        assert (own - gradient).abs().max() <= TOLERANCE * gradient.abs().max()
        turned += int((own.sign() != gradient.sign()).sum())
    print(f"{turned} of {sum(map(len, expected))} entries have another sign")
    assert turned <= 1e-4 * sum(map(len, expected))


def changed(folder: Path, to: Path, name: str, change) -> Path:
    """Copy a folder with one file's content changed, its manifest true again."""
    shutil.copytree(folder, to)
    data = change((folder / name).read_bytes())
    (to / name).write_bytes(data)
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def test_one_changed_weight_changes_a_ranking(exported, tmp_path):
    stem = exported.manifest["network"]["stems"]["visible"]

    def other_sign(data: bytes) -> bytes:
        weights = bytearray(zlib.decompress(data))
        levels = np.frombuffer(weights, np.int8, 27 * stem["out"], stem["levels"])
        levels[np.abs(levels).argmax()] *= -1
        return zlib.compress(bytes(weights))

    states = [{**START, "eps": 0, "query": query} for query in range(lab.QUERIES)]
    before = ask(exported.folder, states)
    after = ask(changed(exported.folder, tmp_path / "changed", "weights.bin", other_sign), states)
    assert [each["order"] for each in before] != [each["order"] for each in after]


def test_build_puts_the_lab_on_its_page_or_says_what_is_missing(exported):
    page = {"book/lab.md": b"# Lab\n\n% lab: here\n"}
    assert "`vireid-lite lab` writes them" in fill(page, ROOT, ROOT)["book/lab.md"].decode()
    data = {f"book/_static/lab/data/{path.name}": path.read_bytes() for path in exported.folder.iterdir()}
    shown = fill(page | data, ROOT, ROOT)["book/lab.md"].decode()
    scores = json.loads((exported.folder / "scores.json").read_text())
    for scored in (scores["float"], scores["rounded"]["nothing"], scores["rounded"]["chain"]):
        assert all("{rank1:.1f} / {mAP:.1f}".format(**scored[way]) in shown for way in scored)
    assert exported.manifest["files"]["weights.bin"]["sha256"][:12] in shown
    assert "Code has changed" not in shown
    changed = {**exported.manifest, "behaviour": {**exported.manifest["behaviour"], "victim/agw": "00000000"}}
    data["book/_static/lab/data/manifest.json"] = json.dumps(changed).encode()
    notebook = {"notebooks/06_x.ipynb": json.dumps({"source": ["a\n", "<!-- lab: #lab&right=1 -->"]}).encode()}
    assert fill(notebook, ROOT, ROOT) == {}
    (line,) = json.loads(fill(notebook | data, ROOT, ROOT)["notebooks/06_x.ipynb"])["source"][1:]
    assert 'data-start="#lab&amp;right=1"' in line
    assert f'data-manifest="{hashlib.sha256(data["book/_static/lab/data/manifest.json"]).hexdigest()}"' in line
    assert "Code has changed since in victim/agw" in fill(page | data, ROOT, ROOT)["book/lab.md"].decode()


def test_links_restore_states(exported):
    states = [*some_states()[:20], {**START, "target": 3, "attack": "steps", "steps": 10, "right": -3}]
    weights = exported.manifest["files"]["weights.bin"]["sha256"][:12]
    for state, found in zip(states, ask(exported.folder, states), strict=True):
        assert found["restored"] == {"state": state, "wrong": [], "weights": weights}
        assert found["link"].endswith(f"weights={weights}")


def test_a_target_is_told_apart_in_8_bits_and_in_floats(exported):
    states = [{**START, "attack": "steps", "steps": 10, "eps": 16, "target": t, "tied": True} for t in range(1, 8)]
    exact = [{**state, "bits": False} for state in states]
    answers = ask(exported.folder, [*states, *exact])
    for rounded_, unrounded in zip(answers[:7], answers[7:], strict=True):
        assert rounded_["hitUnrounded"] == unrounded["hit"]


def test_damaged_files_give_one_sentence(exported, tmp_path):
    _need(NODE, "no Node here; install Debian's package nodejs")
    for name in ("weights.bin", "sprite.png", "manifest.json"):
        shutil.copytree(exported.folder, folder := tmp_path / name)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 255
        (folder / name).write_bytes(data[:-1])
        command = [NODE, Path(__file__).with_name("lab_states.mjs"), folder, MODULES]
        done = subprocess.run(command, input="[]", capture_output=True, text=True)
        assert done.returncode
        assert f"LabError: {name} " in done.stderr
