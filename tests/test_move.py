"""Things to move: their arithmetic in Node is the package's, and they work by key, by finger, and as a text alone."""

import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_browser import _need, _Quiet, browser  # noqa: F401 (a fixture)
from test_lab import NODE, ROOT

from _make import move
from vireid_lite import metrics
from vireid_lite.chapters.uninformed import LAYOUTS
from vireid_lite.data.synthetic.paint import UPPER
from vireid_lite.data.synthetic.people import draw_person

MODULES = ROOT / "book" / "_static" / "move"
SCORES = ("rank1", "mAP", "mINP")
CAMERAS = (1, 4, 2, 5)  # of a person seen by one, by two ...: the third is the one that camera 3's queries leave out


sheet = functools.cache(move.sprite)


def ask(module: str, function: str, arguments: list) -> list:
    """Return what a function of a module returns for each argument."""
    _need(NODE, "no Node here; install Debian's package nodejs")
    code = f"""import {{ {function} }} from "{(MODULES / module).as_uri()}"; import {{ readFileSync }} from "node:fs";
    console.log(JSON.stringify(JSON.parse(readFileSync(0)).map((each) => {function}(each) ?? null)))"""
    command = [NODE, "--input-type=module", "--eval", code]
    done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def presets() -> dict[str, tuple[dict, list[str]]]:
    """Return the setting and the cells of each row of the table that the floor begins with."""
    rows = re.findall(
        r"<tr data-setting='(.+?)'><th.*?>(.+?)</th>(.+?)</tr>", (ROOT / "book/_make/floor.html").read_text()
    )
    return {name: (json.loads(setting), re.findall("<td>(.+?)</td>", cells)) for setting, name, cells in rows}


def gallery(groups: list, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return identities and cameras of a gallery."""
    seen = [cameras for people, cameras in groups for _ in range(people)]
    pairs = [(who, camera) for who, count in enumerate(seen) for camera in CAMERAS[:count] for _ in range(shots)]
    return tuple(np.array(pairs).T)


def test_tiles_score_as_the_package_does():
    rng = np.random.default_rng(18)
    lists = [row for row in rng.random((300, 10)) < rng.random((300, 1)) if row.any()]
    for right, found in zip(lists, ask("tiles.js", "scores", [row.tolist() for row in lists]), strict=True):
        own = metrics.evaluate(np.arange(10.0)[None], [1], right.astype(int), protocol="regdb", max_rank=10)
        assert found["cmc"] == own.cmc.tolist()
        assert (found["ap"], found["inp"]) == pytest.approx((own.mAP, own.mINP), abs=1e-12)


def test_floor_is_the_mean_over_every_order_of_a_small_gallery():
    some = [
        [[1, 1]],
        [[2, 1]],
        [[3, 1]],
        [[2, 2]],
        [[3, 2]],
        [[2, 3]],
        [[1, 3], [1, 2]],
        [[1, 4], [2, 1]],
        [[1, 2], [1, 1]],
    ]
    settings = [
        {"groups": groups, "shots": shots, "queries": 9, "rule": rule}
        for groups, shots, rule in product(some, (1, 2, 3), ("none", "room", "own"))
        if shots * sum(people * cameras for people, cameras in groups) <= 6
    ]
    assert len(settings) > 40
    for setting, found in zip(settings, ask("floor.js", "floor", settings), strict=True):
        ids, cameras = gallery(setting["groups"], setting["shots"])
        orders = np.array(list(permutations(range(len(ids)))), float)
        protocol = {"none": "regdb", "room": "sysu", "own": "llcm"}[setting["rule"]]
        means = []
        for person in np.unique(ids):
            asked = (3, 6) if protocol == "sysu" else np.unique(cameras[ids == person])
            if protocol == "llcm" and len(asked) == 1:
                continue  # nothing right is left
            every = [
                metrics.evaluate(orders, [person] * len(orders), ids, [camera] * len(orders), cameras, protocol)
                for camera in asked
            ]
            means.append(np.mean([[getattr(each, score) for score in SCORES] for each in every], axis=0))
        assert (found is None) == (not means)
        if means:
            assert [found["chance"][score] for score in SCORES] == pytest.approx(np.mean(means, axis=0), abs=1e-12)


def test_floor_of_the_presets_is_what_the_package_simulates_and_the_table_says():
    known, layouts = presets(), {"SYSU all, single": LAYOUTS["SYSU-MM01"], "RegDB": LAYOUTS["RegDB"]}
    people, cameras = np.repeat(np.arange(351), 5), np.tile(np.arange(5), 351)  # LLCM: asked once from each camera
    layouts["LLCM-like"] = "llcm", people, people, cameras, cameras
    own = np.repeat(np.arange(60), 6)
    layouts["The book's set, lite"] = "regdb", own, own, None, None
    assert known.keys() == layouts.keys()
    answers = ask("floor.js", "floor", [setting for setting, _ in known.values()])
    for found, (name, (setting, cells)) in zip(answers, known.items(), strict=True):
        protocol, query, images, query_cameras, image_cameras = layouts[name]
        assert found["images"] == len(images)
        assert setting["queries"] == len(query) * (4 if protocol == "llcm" else 1)
        once = slice(None, None, 10 if name == "RegDB" else 5 if protocol == "llcm" else 1)  # one query asks as well
        asked, asked_by = query[once], None if query_cameras is None else query_cameras[once]
        repeats = max(2, 4000 // len(asked))
        level = metrics.chance(asked, images, asked_by, image_cameras, protocol, repeats=repeats)
        simulated, least = level.independent, level.minimum
        chance = found["chance"]
        assert [chance["mAP"], chance["mINP"]] == pytest.approx([simulated.mAP.mean, simulated.mINP.mean], rel=0.05)
        assert abs(chance["rank1"] - simulated.rank1.mean) < found["spread"]
        assert [found["least"][score] for score in SCORES] == pytest.approx(least, rel=0.002)
        assert cells == [f"{100 * value:.2f}" for value in (*chance.values(), found["least"]["mAP"])]


def test_sheet_shows_what_its_list_says():
    html = (ROOT / "book/_make/spectrum.html").read_text()
    assert len(move.STEPS) == html.count("<li>") == 12
    data = sheet()
    assert len(data) < 60_000
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    high, wide = move.SIZE
    shown = [pixels[row * high :, column * wide :][:high, :wide] for row in (0, 1) for column in range(6)]
    for step in (0, 4, 7, 11):
        assert abs(shown[step] - move.picture(*move.STEPS[step])).mean() < 4
    means = [picture.mean() for picture in shown]
    assert means[8] > 1.5 * means[9] > 5 * means[10]
    assert means[11] > means[8]
    person = draw_person(0, 2_000_000, 0.0, 0.1, 0.6)  # the belt is the second dye of what is worn above
    assert person.visible[UPPER].mean() > 2 * person.visible[UPPER + 1].mean()
    assert person.infrared[UPPER + 1] > person.infrared[UPPER]


@pytest.fixture
def page(tmp_path):
    """A page with nothing but the three, served: its address."""
    asked = json.dumps("".join(f"<!-- move: {name} -->" for name in ("tiles", "floor", "spectrum")))
    head = '<title>move</title><link rel="icon" href="data:,">'
    html = f'<!doctype html><html lang="en"><head>{head}</head><body><main>{json.loads(move.in_chapters(asked))}</main>'
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "x.html").write_text(f"{html}</body></html>")
    shutil.copytree(MODULES, tmp_path / "_static" / "move")
    (tmp_path / move.SPRITE.removeprefix("book/")).write_bytes(sheet())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/notebooks/x.html"
        server.shutdown()


@pytest.mark.browser
def test_all_three_work_by_keyboard_and_finger_on_a_phone(page, browser):  # noqa: F811
    import axe_playwright_python

    requests, errors, phone = [], [], {"viewport": {"width": 360, "height": 800}}
    with browser.new_page(**phone, java_script_enabled=False) as tab:
        tab.goto(page)
        text = tab.locator("dl").inner_text()
        assert tab.locator("tbody tr").count() == 4
        assert tab.locator('[data-move="spectrum"] li').count() == 12
        assert tab.locator("button, input, select").count() == 0
    with browser.new_page(**phone, has_touch=True) as tab:
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda line: line.type != "error" or errors.append(line.text))
        tab.goto(page)
        tab.locator('[data-move="spectrum"].moves').wait_for()
        said, tiles = tab.locator("dl"), tab.locator("ol button")
        assert said.inner_text() == text
        tiles.nth(2).focus()
        for _ in range(2):
            tab.keyboard.press("ArrowLeft")
        assert tab.evaluate("document.activeElement.parentElement.className") == "right"
        assert "(1/1 + 2/4 + 3/7 + 4/10) / 4" in said.inner_text()
        tiles.nth(9).focus()
        tab.get_by_role("button", name="Move it up").click()
        assert "4/9 = 0.444" in said.inner_text()
        tab.get_by_role("button", name="As it was").press("Enter")
        assert said.inner_text() == text
        session = tab.context.new_cdp_session(tab)
        (x, y), (to_x, to_y) = (
            (box["x"] + 20, box["y"] + 20) for box in (tiles.nth(9).bounding_box(), tiles.nth(0).bounding_box())
        )
        for kind, points in (
            ("touchStart", [(x, y)]),
            ("touchMove", [(to_x, y)]),
            ("touchMove", [(to_x, to_y)]),
            ("touchEnd", []),
        ):
            touches = [{"x": a, "y": b} for a, b in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        tab.get_by_text("4/8 = 0.500").wait_for()
        assert "rank-1\n1" in said.inner_text()

        form, status = tab.locator("form"), tab.get_by_role("status")
        assert "301 gallery images" in status.inner_text()
        tab.get_by_label("Begin with").select_option("RegDB")
        assert "0.49" in status.inner_text()
        assert "0.83" in status.inner_text()
        tab.get_by_label("Images a camera").fill("1")
        assert "206 gallery images" in status.inner_text()
        assert "2.87" in status.inner_text()
        tab.get_by_label("What queries leave out").select_option(index=2)
        assert status.inner_text() == "No query has a right image left."
        tab.get_by_label("Queries in all").fill("0")
        assert status.inner_text() == "Queries in all: a whole number from 1 to 1000000."
        assert form.locator("select").first.input_value() == ""

        tab.get_by_label("Along the spectrum").focus()
        tab.keyboard.press("End")
        assert "No lamp is needed" in tab.locator(".step").inner_text()
        assert "12 of 12: Thermal" in tab.locator(".frame").get_attribute("aria-label")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        tab.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        assert tab.evaluate("axe.run({include: '.move'}).then(found => found.violations.map(rule => rule.id))") == []
    assert errors == []
    assert all(url.startswith((page.removesuffix("notebooks/x.html"), "data:")) for url in requests)
