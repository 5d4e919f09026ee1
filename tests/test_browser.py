"""The built book in a real browser: every page loads whole, from the book alone, at desktop and at phone width.

Chromium is driven through its DevTools protocol. Without the book or the browser these tests are skipped; with
CI_BROWSER_REQUIRED=1 they fail. SCREENSHOTS=FOLDER keeps a picture of every page at both widths.
"""

import asyncio
import base64
import contextlib
import functools
import html.parser
import http.server
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from vireid_lite.book import find_chapters, repository_url

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "_build" / "html"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
# What a page looks like from inside, once its mathematics is set.
INSPECT = """
(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  for (const image of document.images) { image.loading = "eager"; try { await image.decode(); } catch {} }
  const width = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > width + 1
    && !e.closest(".bd-sidebar-secondary, table, pre, mjx-container, .cell_output, .highlight, svg"));
  return {
    title: document.title,
    images: [...document.images].map(i => ({src: i.currentSrc || i.src, alt: i.getAttribute("alt"),
      loaded: i.naturalWidth > 0, caption: i.closest("figure")?.querySelector("figcaption")?.innerText || ""})),
    formulas: document.querySelectorAll("main .math").length,
    rendered: document.querySelectorAll("main .math mjx-container").length,
    broken: document.querySelectorAll("mjx-merror").length,
    sideways: document.documentElement.scrollWidth - width,
    wide: wide.slice(0, 3).map(e => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`),
  };
})()
"""


def _need(condition: bool, what: str) -> None:
    if not condition:
        (pytest.fail if os.environ.get("CI_BROWSER_REQUIRED") == "1" else pytest.skip)(what)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def _served(folder: Path):
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _chromium(program: str, profile: Path):
    """Start a browser; give the address of its DevTools."""
    quiet = ("--disable-background-networking", "--disable-component-update", "--no-first-run", "--mute-audio")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = profile / "DevToolsActivePort"
            for _ in range(300):
                if process.poll() is None and not (port.exists() and port.read_text().strip()):
                    time.sleep(0.1)
            assert port.exists(), f"{program} did not start"
            yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        finally:
            process.terminate()


async def _visit(devtools: str, address: str, size: tuple[int, int], picture: Path | None) -> dict:
    """Open one page in a tab of its own; return what INSPECT sees, with its requests and what the console says."""
    from tornado.websocket import websocket_connect

    request = urllib.request.Request(f"{devtools}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request) as answer:
        tab = json.load(answer)
    socket = await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)
    try:
        return await _look(socket, address, size, picture)
    finally:
        socket.close()
        while await socket.read_message() is not None:
            pass
        urllib.request.urlopen(f"{devtools}/json/close/{tab['id']}").close()


async def _look(socket, address: str, size: tuple[int, int], picture: Path | None) -> dict:
    numbers, events = itertools.count(1), []

    async def receive() -> dict:
        return json.loads(await asyncio.wait_for(socket.read_message(), 60))

    async def call(method: str, **parameters) -> dict:
        number = next(numbers)
        await socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := await receive()).get("id") != number:
            events.append(message)
        assert "error" not in message, (address, method, message)
        return message["result"]

    for domain in ("Page", "Runtime", "Network", "Log"):
        await call(f"{domain}.enable")
    width, height = size
    await call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
    )
    await call("Page.navigate", url=address)
    while not any(event["method"] == "Page.loadEventFired" for event in events):
        events.append(await receive())
    seen = await call("Runtime.evaluate", expression=INSPECT, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in seen, (address, seen)
    if picture:
        shot = await call("Page.captureScreenshot", captureBeyondViewport=True)
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(shot["data"]))

    def all_of(method: str) -> list[dict]:
        return [event["params"] for event in events if event["method"] == method]

    answers = [event["response"] for event in all_of("Network.responseReceived")]
    console = [event for event in all_of("Runtime.consoleAPICalled") if event["type"] == "error"]
    entries = [event["entry"] for event in all_of("Log.entryAdded")]
    return {
        **seen["result"]["value"],
        "requests": [event["request"]["url"] for event in all_of("Network.requestWillBeSent")],
        "failed": [answer["url"] for answer in answers if answer["status"] >= 400]
        + [event["errorText"] for event in all_of("Network.loadingFailed")],
        "errors": [event["exceptionDetails"]["text"] for event in all_of("Runtime.exceptionThrown")]
        + [entry["text"] for entry in entries if entry["level"] == "error"]
        + [str(event["args"]) for event in console],
    }


def pages() -> list[str]:
    """Return every page of the built book, relative to it, but for the one that only leads to the front page."""
    found = (path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html") if "_static" not in path.parts)
    return sorted(set(found) - {"index.html"})


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """Every page at both widths, as the browser saw it."""
    _need((BOOK / "index.html").exists(), f"{BOOK} is not built; run make book")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    _need(program is not None, "no Chromium here; install Debian's package chromium")
    kept = os.environ.get("SCREENSHOTS")
    seen = {}
    with _served(BOOK) as site, _chromium(program, tmp_path_factory.mktemp("profile")) as devtools:
        for page, (name, size) in itertools.product(pages(), WIDTHS.items()):
            picture = Path(kept) / f"{page.removesuffix('.html').replace('/', '-')}-{name}.png" if kept else None
            seen[page, name] = asyncio.run(_visit(devtools, f"{site}/{page}", size, picture))
    return seen


def test_walk_is_whole(walk):
    chapters = [path.stem for path in find_chapters(ROOT)]
    assert chapters
    assert {f"notebooks/{chapter}.html" for chapter in chapters} <= {page for page, _ in walk}


def test_address_of_the_site_leads_to_the_front_page():
    _need((BOOK / "index.html").exists(), f"{BOOK} is not built; run make book")
    assert re.search(r'http-equiv="Refresh".*url=book/index\.html', (BOOK / "index.html").read_text(encoding="utf-8"))


def test_nothing_fails_to_load(walk):
    assert {key: page["failed"] for key, page in walk.items() if page["failed"]} == {}


def test_console_is_silent(walk):
    assert {key: page["errors"] for key, page in walk.items() if page["errors"]} == {}


def test_everything_comes_from_the_book(walk):
    outside = {
        key: [url for url in page["requests"] if not re.match(r"http://127\.0\.0\.1:|data:|blob:|about:", url)]
        for key, page in walk.items()
    }
    assert {key: urls for key, urls in outside.items() if urls} == {}


def test_images_load_and_speak(walk):
    for key, page in walk.items():
        for image in page["images"]:
            assert image["loaded"], (key, image)
            assert image["alt"], (key, image)
            assert image["alt"].strip() != image["caption"].strip(), (key, image)


def test_formulas_are_set(walk):
    for key, page in walk.items():
        assert page["rendered"] == page["formulas"], key
        assert page["broken"] == 0, key
    assert sum(page["formulas"] for page in walk.values()) > 0


def test_phone_does_not_scroll_sideways(walk):
    assert {key: (page["sideways"], page["wide"]) for key, page in walk.items() if page["sideways"] > 0} == {}


class _Links(html.parser.HTMLParser):
    """Gathers what a page loads (`loads`) and where it leads (`leads`)."""

    def __init__(self):
        super().__init__()
        self.loads, self.leads = [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "a" and attributes.get("href"):
            self.leads.append(attributes["href"])
        elif tag == "link" and attributes.get("rel") not in ("canonical", "index", "search", "next", "prev", "author"):
            self.loads.append(attributes.get("href") or "")
        elif attributes.get("src"):
            self.loads.append(attributes["src"])


def _links(page: Path) -> _Links:
    links = _Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


def test_pages_and_styles_name_no_other_host():
    _need((BOOK / "index.html").exists(), f"{BOOK} is not built; run make book")
    for page in pages():
        assert [url for url in _links(BOOK / page).loads if re.match(r"(https?:)?//", url)] == [], page
    for style in BOOK.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]+", style.read_text("utf-8")) == [], style


def test_each_chapter_opens_in_colab():
    _need((BOOK / "index.html").exists(), f"{BOOK} is not built; run make book")
    name = repository_url(ROOT).removeprefix("https://github.com/")
    for chapter in find_chapters(ROOT):
        leads = _links(BOOK / "notebooks" / f"{chapter.stem}.html").leads
        address = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{chapter.stem}.ipynb"
        assert [url for url in leads if "colab" in url] == [address]
