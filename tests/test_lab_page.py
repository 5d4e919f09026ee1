"""The attack lab in a real browser, on a page with nothing else: keyboard, phone, links, and what can go wrong."""

import functools
import http.server
import shutil
import threading

import pytest
from test_browser import _Quiet, browser  # noqa: F401 (a fixture)
from test_lab import MODULES

pytestmark = pytest.mark.browser


@pytest.fixture
def page(exported, tmp_path):
    """A page with nothing but the lab, served: its address and its folder."""
    shutil.copytree(MODULES, tmp_path / "lab")
    shutil.copytree(exported.folder, tmp_path / "data")
    head = '<title>lab</title><link rel="icon" href="data:,"><link rel="stylesheet" href="lab/lab.css">'
    body = '<div class="attack-lab" data-folder="data/"></div><script type="module" src="lab/page.js"></script>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}<p>rest</p></body></html>'
    (tmp_path / "index.html").write_text(page)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html", tmp_path
        server.shutdown()


def shown(tab, number: int = 1) -> str:
    tab.wait_for_function(f"+document.querySelector('.attack-lab').dataset.shown >= {number}", timeout=60_000)
    return tab.locator(".lab-status").inner_text()


def test_page_works_by_keyboard_alone_and_asks_nothing_outside(page, browser):  # noqa: F811
    address, _ = page
    requests, errors = [], []
    with browser.new_page(viewport={"width": 360, "height": 800}) as tab:
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda line: line.type != "error" or errors.append(line.text))
        tab.goto(address)
        assert "of 14." in shown(tab)
        for _ in range(4):
            tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.type") == "range"
        tab.keyboard.press("ArrowLeft")
        assert "7/255, the pattern learned for 8/255, scaled" in tab.locator("output").inner_text()
        shown(tab, 2)
        assert tab.locator(".lab-ranking li").count() == 10
        assert set(tab.locator(".lab-ranking li span:nth-of-type(2)").all_inner_texts()) <= {"✓ right", "✗ wrong"}
        tab.wait_for_function("document.querySelector('.lab-facts').innerText.match(/of 12$/m)", timeout=60_000)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        tab.get_by_text("Link to this state").click()
        tab.wait_for_function("location.hash.includes('eps=7')")
        link = tab.url
    with browser.new_page() as tab:
        tab.goto(link)
        shown(tab)
        assert tab.locator("input[type=range]").input_value() == "7"
        assert tab.locator(".lab-note").inner_text() == ""
    with browser.new_page() as tab:
        tab.goto(f"{address}#lab&eps=4&query=99&weights=0123456789ab")
        shown(tab)
        said = tab.locator(".lab-note").inner_text()
        assert "made with other weights (0123456789ab" in said
        assert "left out: query 99." in said
        assert tab.locator("input[type=range]").input_value() == "4"
    assert errors == []
    assert all(url.startswith((address.removesuffix("index.html"), "data:")) for url in requests)


def test_page_says_what_is_wrong_and_the_rest_of_it_works(page, browser):  # noqa: F811
    address, folder = page
    weights = (folder / "data" / "weights.bin").read_bytes()

    def said(what: str) -> None:
        with browser.new_page() as tab:
            tab.goto(address)
            tab.get_by_text(what).wait_for(timeout=60_000)
            assert tab.locator("select").first.is_disabled()
            assert tab.get_by_role("button", name="Try again").is_visible()
            assert tab.get_by_text("rest").is_visible()

    (folder / "data" / "weights.bin").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    said("weights.bin is damaged")
    (folder / "data" / "weights.bin").unlink()
    said("weights.bin is not here")
    (folder / "data" / "weights.bin").write_bytes(weights)
    manifest = (folder / "data" / "manifest.json").read_text()
    (folder / "data" / "manifest.json").write_text(manifest.replace('"format":1', '"format":2'))
    said("manifest.json has format 2")
    (folder / "data" / "manifest.json").write_text(manifest)
    with browser.new_page() as tab:
        tab.route("**/perturbations.bin", lambda route: route.abort())
        tab.goto(address)
        tab.get_by_text("The connection was lost while perturbations.bin was loaded").wait_for()
        tab.unroute("**/perturbations.bin")
        tab.get_by_role("button", name="Try again").click()
        assert "of 14." in shown(tab)
