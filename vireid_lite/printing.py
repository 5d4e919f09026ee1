"""The book on paper: the rendered pages put in one, in the book's order, and printed by Chromium.

What is printed are the pages of `OUT/html` themselves, so numbers, links and results are those of the web. They are
only read; the PDF is put in place whole or not at all.
"""

from __future__ import annotations

import datetime
import html
import json
import posixpath
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vireid_lite.book import PACKAGE, BuildError
from vireid_lite.errors import InputError
from vireid_lite.machine import versions

PDF = "vireid-lite.pdf"

NUMBERS = "PAGE_NUMBERS"  # stands in the page for what `_page_numbers` returns

UNFINISHED = "unfinished: "  # before the title, until the page has seen that it is whole

# Matplotlib brings fonts of its own, so the book looks the same wherever it is printed.
FONTS = ("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta")

FONTS += ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique")

SECONDS = 900  # for one run of Chromium, which takes half a minute on two idle cores


@dataclass(frozen=True)
class Entry:
    """A part (no page), or a page of the book: its name (`notebooks/01_two_spectra`) and its title with its number."""

    title: str
    page: str = ""
    depth: int = 0

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.page or f"part {self.title}").strip("-")


def find_chromium() -> str:
    """Return the path of a Chromium; raises InputError where there is none."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    if program := next(found, None):
        return program
    raise InputError("--pdf: no chromium on this machine to print the pages; install it (apt-get install chromium)")


def print_book(root: Path, out: Path, target: Path | None = None) -> Path:
    """Print the rendered book and return the PDF.

    root: the book's sources, for its version. out: folder of a build, holding `html` and `stage`. target: the PDF;
    default: `out`/vireid-lite.pdf. Printed twice, since the numbers in the contents are only known afterwards.
    Raises InputError without Chromium or without a built book, BuildError where pages do not come out whole.
    """
    program, target = find_chromium(), target or out / PDF
    if not (out / "html" / "index.html").is_file():
        raise InputError(f"{out / 'html'} holds no built book; run vireid-lite book first")
    started = time.perf_counter()
    work = target.parent / "pdf.new"  # beside the PDF: renamed, never copied; and a killed run leaves one folder
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        entries, page = _gather(root, out, work)
        draft, final = work / "draft.pdf", work / PDF
        _print(program, page.replace(NUMBERS, "{}"), work, draft, "--disable-pdf-tagging")
        numbers = _page_numbers(draft, entries)
        _print(program, page.replace(NUMBERS, json.dumps(numbers)), work, final, "--generate-pdf-document-outline")
        if _page_numbers(final, entries) != numbers:
            raise BuildError("printing: pages moved when their numbers were put in the contents; run it again")
        final.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = target.stat().st_size / 2**20
    print(f"printed in {time.perf_counter() - started:.0f} s: {target}, {numbers['']} pages, {size:.1f} MiB")
    return target


def _gather(root: Path, out: Path, work: Path) -> tuple[list[Entry], str]:
    """Copy to `work` what the pages need, and return what the book holds in order, with all of it as one page."""
    import matplotlib

    pages = out / "html"
    for folder in ("_images", "_static"):
        if (pages / folder).is_dir():
            shutil.copytree(pages / folder, work / folder)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in FONTS:
        shutil.copy(fonts / f"{name}.ttf", work)
    shutil.copy(PACKAGE / "print.css", work)

    entries = list(_contents(out))
    texts = {entry.page: _read(pages / f"{entry.page}.html") for entry in entries if entry.page}
    articles = {name: _article(text, name, texts) for name, text in texts.items()}
    entries = [Entry(_title(articles[e.page], e.page), e.page, e.depth) if e.page else e for e in entries]
    style, body = [], []
    for number, entry in enumerate(entries):
        # A page name of its own makes Chromium start a new page, with the title at its foot.
        style.append(f"#{entry.anchor} {{ page: p{number}; }}")
        if entry.page:
            foot = re.sub(r'[\\"]', r"\\\g<0>", entry.title)
            style.append(f'@page p{number} {{ @bottom-left {{ content: "{foot}"; }} }}')
            body.append(f'<article id="{entry.anchor}">{articles[entry.page]}</article>')
        else:
            body.append(f'<section class="part" id="{entry.anchor}"><h1>{html.escape(entry.title)}</h1></section>')
    mathjax = next((found for found in map(_mathjax, texts.values()) if found), "")
    page = "\n".join(
        (
            '<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">',
            f"<title>{UNFINISHED}{html.escape(entries[0].title)}</title>",
            '<link rel="stylesheet" href="_static/pygments.css"><link rel="stylesheet" href="print.css">',
            f"<style>{''.join(style)}</style>{mathjax}</head><body>",
            _front(root, entries),
            *body,
            f"<script>{FINISH.replace('UNFINISHED', UNFINISHED)}</script></body></html>",
        )
    )
    return entries, page


def _read(page: Path) -> str:
    if not page.is_file():
        raise InputError(f"{page} is in the book's contents, but was not built; run vireid-lite book first")
    return page.read_text(encoding="utf-8")


def _contents(out: Path) -> Iterator[Entry]:
    """Yield the front page, then every part with its pages, as `_toc.yml` has them."""
    import yaml

    toc = yaml.safe_load((out / "stage" / "_toc.yml").read_text(encoding="utf-8"))

    def walk(items: list[dict], depth: int) -> Iterator[Entry]:
        for item in items:
            yield Entry("", item["file"], depth)
            yield from walk(item.get("sections", []), depth + 1)

    yield Entry("", toc["root"])
    for part in toc["parts"]:
        yield Entry(part["caption"])
        yield from walk(part["chapters"], 1)


def _title(article: str, name: str) -> str:
    """Return a page's heading with its number, as text."""
    found = re.search(r"<h2>(.*?)</h2>", article, re.DOTALL)
    if not found:
        raise BuildError(f"printing: {name} has no heading")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", found[1])).split())


def _mathjax(page: str) -> str:
    """Return the elements that load the book's own MathJax with its settings, where a rendered page has them."""
    scripts = re.findall(r"<script\b[^>]*>.*?</script>", page, re.DOTALL)
    return "".join(re.sub(r'src="(?:\.\./)+', 'src="', script) for script in scripts if "mathjax" in script.lower())


def _article(page: str, name: str, printed: dict[str, str]) -> str:
    """Return what is read on a rendered page, its anchors and links made ready to stand on one page with all others.

    name: of the page. printed: the pages in the PDF, by name; a link to any other file of the site becomes plain text.
    """
    found = re.search(r'<article class="bd-article">(.*?)</article>', page, re.DOTALL)
    if not found:
        raise BuildError(f"printing: {name} has no article")
    text = re.sub(r'<a class="headerlink".*?</a>|<script\b.*?</script>', "", found[1], flags=re.DOTALL)
    # One level down, since parts stand above the pages in the PDF's outline.
    text = re.sub(r"<(/?)h([1-5])\b", lambda tag: f"<{tag[1]}h{int(tag[2]) + 1}", text)
    text = text.replace("<details>", "<details open>")
    return re.sub(r' (id|href|src)="([^"]*)"', lambda given: _attribute(given[1], given[2], name, printed), text)


def _attribute(kind: str, value: str, name: str, printed: dict[str, str]) -> str:
    """Return an attribute as it has to be on the one page."""

    def anchor(page: str, fragment: str) -> str:
        return Entry("", page).anchor + (f"--{fragment}" if fragment else "")

    if kind == "id":
        return f' id="{anchor(name, value)}"'
    if re.match(r"[a-z]+:", value):
        return f' {kind}="{value}"'
    path, _, fragment = value.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else f"{name}.html"
    if kind == "src":
        return f' src="{path}"'
    page = path.removesuffix(".html")
    return f' href="#{anchor(page, fragment)}"' if page in printed else ""


def _front(root: Path, entries: list[Entry]) -> str:
    """Return the title page and the contents; the numbers of the pages are filled in when printing."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"]["Repository"]
    authors = ", ".join(author["name"] for author in project["authors"])
    made = ", ".join(f"{name} {version}" for name, version in versions().items() if name != project["name"])
    today = datetime.date.today()
    return f"""<section class="title-page"><p class="title">{entries[0].title}</p>
<p class="subtitle">{html.escape(project["description"])}</p><p>{html.escape(authors)}</p>
<p class="edition">Version {project["version"]}, built on {today.day} {today:%B %Y}</p>
<p class="made">{html.escape(made)}<br><a href="{address}">{address}</a><br>Licence: {project["license"]}</p>
<p class="made">Code that the pages fold away is left out here; it is in the notebooks. Solutions stand open after their
exercise.</p></section>
<nav class="contents"><h1>Contents</h1><ol>{"".join(map(_line, entries))}</ol></nav>
<script>for (const [anchor, page] of Object.entries({NUMBERS}))
  for (const place of document.querySelectorAll(`[data-page="${{anchor}}"]`)) place.textContent = page;</script>"""


def _line(entry: Entry) -> str:
    """Return an entry's line of the contents."""
    kind = f"depth{entry.depth}" if entry.page else "part"
    number = f'<b data-page="{entry.anchor}">000</b>'
    return (
        f'<li class="{kind}"><a href="#{entry.anchor}"><span>{html.escape(entry.title)}</span><i></i>{number}</a></li>'
    )


# Once formulas are set and images are here, whatever is too wide is made smaller, and the title tells what is wrong.
FINISH = r"""
addEventListener("load", async () => {
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;
  const lost = [...document.images].filter(image => !image.naturalWidth).length;
  const formulas = [...document.querySelectorAll("article .math")];
  const unset = formulas.filter(formula => !formula.querySelector("mjx-container")).length;
  const broken = document.querySelectorAll("mjx-merror").length;
  const width = document.body.clientWidth, page = width * 1.35;
  const size = element => parseFloat(getComputedStyle(element).fontSize);
  const texts = [...document.querySelectorAll("article pre")];
  for (const text of texts) text.style.cssText = "white-space: pre; width: max-content";
  const fits = texts.map(text => 0.99 * text.parentElement.clientWidth / text.getBoundingClientRect().width);
  const sizes = texts.map((text, place) => size(text) * (0.75 < fits[place] && fits[place] < 1 ? fits[place] : 1));
  texts.forEach((text, place) => { text.style.cssText = `font-size: ${sizes[place]}px`; });
  const room = element => element.parentElement.getBoundingClientRect().right + 1;
  let wide = [...document.querySelectorAll("article table, article mjx-container[display]")].map(e => [e, size(e)]);
  for (let scale = 0.95; scale > 0.5; scale -= 0.05) {
    wide = wide.filter(([element]) => element.getBoundingClientRect().right > room(element));
    for (const [element, whole] of wide) element.style.fontSize = `${scale * whole}px`;
  }
  const blocks = [...document.querySelectorAll("article table, article pre, article .admonition")];
  const low = blocks.filter(block => block.getBoundingClientRect().height < page / (block.matches("pre") ? 4 : 2));
  for (const block of low) block.classList.add("whole");
  const out = [...document.querySelectorAll("article *")].filter(element =>
    element.getBoundingClientRect().right > width + 2 && !element.closest("mjx-assistive-mml, svg"));
  const problems = {"lost images": lost, "formulas not set": unset, "broken formulas": broken,
    "elements cut at the right": out.length};
  const told = Object.entries(problems).filter(([, count]) => count).map(([what, count]) => `${count} ${what}`);
  if (out.length) told.push(out[0].outerHTML.slice(0, 200));
  document.title = told.length ? `UNFINISHED${told.join(", ")}` : document.title.replace("UNFINISHED", "");
});
"""


def _print(program: str, page: str, work: Path, pdf: Path, *options: str) -> None:
    """Print a page that lies in the folder `work`; raises BuildError where the PDF is not of the finished page."""
    import pypdf

    source = work / "book.html"
    source.write_text(page, encoding="utf-8")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet]
    command += [f"--user-data-dir={work / 'profile'}", "--virtual-time-budget=60000", "--no-pdf-header-footer"]
    command += [*options, f"--print-to-pdf={pdf}", source.as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildError(f"printing: {program} was not done in {SECONDS} s") from None
    if done.returncode or not pdf.is_file():
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise BuildError(f"printing: {program} failed with exit code {done.returncode}: {last}")
    title = (pypdf.PdfReader(pdf).metadata or {}).get("/Title", "")
    if title.startswith(UNFINISHED):
        raise BuildError(f"printing: {title}")


def _page_numbers(pdf: Path, entries: list[Entry]) -> dict[str, int]:
    """Return the page on which each part and page of the book starts, by anchor, and under "" how many there are."""
    import pypdf

    reader = pypdf.PdfReader(pdf)
    places, numbers = reader.named_destinations, {"": len(reader.pages)}
    for entry in entries:
        place = places.get(f"/{entry.anchor}")
        if place is None:
            raise BuildError(f"printing: {entry.title} is not in the PDF")
        numbers[entry.anchor] = 1 + reader.get_destination_page_number(place)
    return numbers
