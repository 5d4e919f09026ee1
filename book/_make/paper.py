"""The book on paper: the rendered pages, which are only read, put in one in the book's order, printed by Chromium."""

import datetime
import json
import posixpath
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import yaml
from bs4 import BeautifulSoup
from jinja2 import Environment

from vireid_lite.errors import BuildError, InputError
from vireid_lite.machine import versions

HERE = Path(__file__).parent
PDF = "vireid-lite.pdf"
UNFINISHED = "unfinished: "  # before the title in print.html, until print.js has seen that the page is whole
SECONDS = 900  # for one run of Chromium, which takes half a minute on two idle cores


class Entry(NamedTuple):
    """A part (no page), or a page of the book such as `notebooks/01_two_spectra`, and what is printed of it."""

    title: str
    page: str = ""
    depth: int = 0
    article: str = ""
    mathjax: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.page or f"part {self.title}").strip("-")


def find_chromium() -> str:
    """Return the path of a Chromium; raises InputError where there is none."""
    for program in filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return program
    raise InputError("--pdf: no chromium on this machine to print the pages; install it (apt-get install chromium)")


def print_book(root: Path, out: Path, target: Path | None = None) -> Path:
    """Print the book rendered in `out` to `target`, by default `out`/vireid-lite.pdf, and return the PDF.

    Raises InputError without Chromium or a built book, BuildError where pages do not come out whole.
    """
    program, target = find_chromium(), target or out / PDF
    if not (out / "html" / "index.html").is_file():
        raise InputError(f"{out / 'html'} holds no built book; run vireid-lite book first")
    started = time.perf_counter()
    work = target.parent / "pdf.new"  # beside the PDF: renamed, never copied; and a killed run leaves one folder
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        entries, page = gather(root, out, work)
        draft, final = work / "draft.pdf", work / PDF
        # Twice, since the numbers in the contents are only known afterwards.
        _print(program, page(numbers="{}"), work, draft, "--disable-pdf-tagging")
        numbers = _page_numbers(draft, entries)
        _print(program, page(numbers=json.dumps(numbers)), work, final, "--generate-pdf-document-outline")
        if _page_numbers(final, entries) != numbers:
            raise BuildError("printing: pages moved when their numbers were put in the contents; run it again")
        final.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = target.stat().st_size / 2**20
    print(f"printed in {time.perf_counter() - started:.0f} s: {target}, {numbers['']} pages, {size:.1f} MiB")
    return target


def read_contents(out: Path) -> list[Entry]:
    """Return the front page, then every part with its pages, as `_toc.yml` has them, each with its article."""
    toc = yaml.safe_load((out / "stage" / "_toc.yml").read_text(encoding="utf-8"))

    def walk(items: list[dict], depth: int) -> list[Entry]:
        deeper = ((Entry("", item["file"], depth), *walk(item.get("sections", []), depth + 1)) for item in items)
        return [*chain.from_iterable(deeper)]

    entries = [Entry("", toc["root"])]
    for part in toc["parts"]:
        entries += [Entry(part["caption"]), *walk(part["chapters"], 1)]
    printed = {entry.page for entry in entries if entry.page}
    return [_read(out / "html", entry, printed) if entry.page else entry for entry in entries]


def _read(pages: Path, entry: Entry, printed: set[str]) -> Entry:
    """Return an entry with its title and what is read on its page, ready to stand on one page with all others.

    A link to a file of the site that is not printed becomes plain text.
    """
    path = pages / f"{entry.page}.html"
    if not path.is_file():
        raise InputError(f"{path} is in the book's contents, but was not built; run vireid-lite book first")
    whole = BeautifulSoup(path.read_bytes(), "html.parser")
    article = whole.select_one("article.bd-article")
    if article is None or article.h1 is None:
        raise BuildError(f"printing: {entry.page} has no heading in an article")
    for element in article.select("a.headerlink, script"):
        element.decompose()
    for element in article.find_all("noscript"):
        element.unwrap()  # paper runs no scripts
    for element in article.find_all(re.compile("^h[1-5]$")):
        element.name = f"h{int(element.name[1]) + 1}"  # one level down, since parts stand above pages in the outline
    for element in article.find_all(True):
        if element.name == "details" and not element.attrs:
            element["open"] = ""
        if "id" in element.attrs:
            element["id"] = f"{entry.anchor}--{element['id']}"
        for kind in {"href", "src"} & set(element.attrs):
            address, _, fragment = element[kind].partition("#")
            if re.match(r"[a-z]+:", address):
                continue
            name = posixpath.normpath(posixpath.join(posixpath.dirname(entry.page), address or path.name))
            page = name.removesuffix(".html")
            if kind == "src":
                element["src"] = name
            elif page in printed:
                element["href"] = f"#{Entry('', page).anchor}" + f"--{fragment}" * bool(fragment)
            else:
                del element["href"]
    scripts = [str(script) for script in whole.find_all("script") if "mathjax" in str(script).lower()]
    mathjax = re.sub(r'src="(?:\.\./)+', 'src="', "".join(scripts))  # the book's own, which lies beside the one page
    title = " ".join(article.h2.get_text().split())
    return entry._replace(title=title, article=article.decode_contents(), mathjax=mathjax)


def gather(root: Path, out: Path, work: Path) -> tuple[list[Entry], Callable[..., str]]:
    """Copy what pages need to `work`; return what the book holds, and what makes one page of it, given `numbers`."""
    import matplotlib

    entries = read_contents(out)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for folder in (out / "html" / "_images", out / "html" / "_static", fonts):
        if folder.is_dir():
            shutil.copytree(folder, work / folder.name)
    for name in ("print.css", "print.js"):
        shutil.copy(HERE / name, work)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    today = datetime.date.today()
    template = Environment(autoescape=True).from_string((HERE / "print.html").read_text(encoding="utf-8"))
    return entries, partial(
        template.render,
        entries=entries,
        project=project,
        quoted=lambda title: json.dumps(title, ensure_ascii=False),
        today=f"{today.day} {today:%B %Y}",
        versions=", ".join(f"{name} {found}" for name, found in versions().items() if name != project["name"]),
        mathjax=next((entry.mathjax for entry in entries if entry.mathjax), ""),
    )


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
        if f"/{entry.anchor}" not in places:
            raise BuildError(f"printing: {entry.title} is not in the PDF")
        numbers[entry.anchor] = 1 + reader.get_destination_page_number(places[f"/{entry.anchor}"])
    return numbers
