"""The attack lab in a real browser, on a page with nothing else: keyboard, phone, links, and what can go wrong."""

import functools
import hashlib
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
    manifest = hashlib.sha256((tmp_path / "data" / "manifest.json").read_bytes()).hexdigest()
    lab = f'<div class="attack-lab" data-folder="data/" data-manifest="{manifest}"></div>'
    body = f'<p style="height: 2000px">above</p>{lab}<script type="module" src="lab/page.js"></script>'
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
        assert "of 14, and " in shown(tab)
        for _ in range(4):
            tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.type") == "range"
        tab.keyboard.press("ArrowLeft")
        assert "7/255, the pattern learned for 8/255, scaled" in tab.locator("output").inner_text()
        shown(tab, 2)
        assert tab.locator(".lab-ranking li").count() == 10
        assert set(tab.locator(".lab-ranking li span:nth-of-type(2)").all_inner_texts()) <= {"✓ right", "✗ wrong"}
        tab.wait_for_function("document.querySelector('.lab-facts').innerText.match(/of 12 with it$/m)", timeout=60_000)
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
        assert tab.evaluate("scrollY") > 1000  # a link leads to the lab, however long the page
        tab.evaluate("location.hash = '#lab&eps=2&query=99&weights=ba9876543210'")
        tab.wait_for_function("document.querySelector('output').innerText.startsWith('2/255')")
        assert "(ba9876543210" in (said := tab.locator(".lab-note").inner_text())
        assert "left out: query 99." in said
        tab.go_back()
        tab.wait_for_function("document.querySelector('output').innerText.startsWith('4/255')")
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
    (folder / "data" / "manifest.json").write_text(manifest.replace('"seed":0', '"seed":1'))
    said("manifest.json is not the one that this page was built with")
    (folder / "data" / "manifest.json").write_text(manifest)
    with browser.new_page() as tab:
        tab.route("**/perturbations.bin", lambda route: route.abort())
        tab.goto(address)
        tab.get_by_text("The connection was lost while perturbations.bin was loaded").wait_for()
        tab.unroute("**/perturbations.bin")
        tab.get_by_role("button", name="Try again").click()
        assert "of 14, and " in shown(tab)


def test_page_shows_the_state_of_its_controls(page, browser):  # noqa: F811
    address, _ = page
    with browser.new_page() as tab:
        tab.goto(f"{address}#lab&eps=3&target=2&attack=steps")
        first = shown(tab)
        assert "towards person 2" in tab.locator("output").inner_text()
        assert tab.get_by_label("Who should rank first").is_visible()
        tab.get_by_role("button", name="Link to this state").click()
        tab.get_by_text("The link is in the address bar").wait_for()
        tab.get_by_label("Perturbation").select_option("cmps")
        assert tab.locator(".lab-note").inner_text() == ""
        tab.get_by_label("Shift right").fill("99")
        tab.keyboard.press("Tab")
        assert tab.get_by_label("Shift right").input_value() == "24"
        # Many changes while older ones are computed: the last one is shown, and stays.
        tab.evaluate("""async () => {
          const [range] = document.querySelectorAll("input[type=range]");
          for (let i = 0; i < 40; i++) {
            range.value = i < 39 ? i % 17 : 0;
            range.dispatchEvent(new Event("input", { bubbles: true }));
            await new Promise((next) => setTimeout(next, i % 4 ? 5 : 320));
          }
        }""")
        tab.wait_for_function("document.querySelector('.attack-lab').getAttribute('aria-busy') === 'false'")
        tab.wait_for_function("document.querySelector('.lab-facts').innerText.match(/of 12 with it$/m)", timeout=60_000)
        assert tab.get_by_text("0 of 255 levels", exact=True).is_visible()
        assert first != tab.locator(".lab-status").inner_text()
        # Who ranks first without an attack is no success of one.
        number = tab.locator(".lab-ranking li").first.inner_text().split()[1]
        tab.get_by_label("Who should rank first").select_option(number)
        tab.locator(".lab-judged", has_text="choose another").wait_for()
        assert "Yes" not in tab.locator(".lab-judged").inner_text()
