"""The book on paper. BOOK_OUT names the folder of the build that is printed (default: _build).

Without the built book or Chromium the tests marked `browser` are skipped; with CI_BROWSER_REQUIRED=1 they fail.
"""

import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from _make import paper
from _make.notebooks import find_chapters
from vireid_lite import cli
from vireid_lite.errors import BuildError, InputError

ROOT = Path(__file__).parents[1]
OUT = ROOT / os.environ.get("BOOK_OUT", "_build")
A4 = (595.3, 841.9)  # points

PAGE = """<html><head><script>window.MathJax = {}</script><script src="../_static/mathjax/x.js"></script></head><body>
<h1>What the theme prints</h1><article class="bd-article"><section id="one">
<h1><span class="section-number">1. </span>Cats &amp; dogs<a class="headerlink" href="#one" title="#">#</a></h1>
<p><img src="../_images/a.png"><a href="#one">here</a> <a href="../book/end.html">end</a>
<a href="../search.html">no</a> <a href="two.html#one">two</a> <a href="https://example.org/#x">out</a></p><script>thebe()</script></section>
</article></body></html>"""


def small_book(folder: Path) -> Path:
    """Write what a build leaves of a book of two chapters in one part."""
    files = {f"html/notebooks/{name}.html": PAGE for name in ("one", "two")}
    files |= {"html/book/end.html": PAGE, "html/index.html": "", "html/_images/a.png": "", "html/_static/x": ""}
    toc = {"root": "book/end", "parts": [{"caption": "Part", "chapters": [{"file": "notebooks/one"}]}]}
    toc["parts"][0]["chapters"][0]["sections"] = [{"file": "notebooks/two"}]
    files["stage/_toc.yml"] = yaml.safe_dump(toc)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_without_chromium_one_line_before_any_chapter_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("_make.cli.build_book", lambda *_, **__: pytest.fail("chapters were run"))
    monkeypatch.setattr(sys, "argv", ["vireid-lite", "book", "--pdf"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert "install chromium" in line


@pytest.mark.parametrize("option", ["--execute-only", "--measure"])
def test_what_renders_nothing_prints_nothing(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vireid-lite", "book", "--pdf", option])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


def test_a_book_that_was_not_built_is_not_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "find_chromium", lambda: "chromium")
    with pytest.raises(InputError, match="run vireid-lite book first"):
        paper.print_book(ROOT, tmp_path)
    (small_book(tmp_path) / "html" / "notebooks" / "two.html").unlink()
    with pytest.raises(InputError, match=r"two\.html"):
        paper.print_book(ROOT, tmp_path)


def test_pages_stand_on_one_without_getting_in_each_others_way(tmp_path):
    work = tmp_path / "work"
    entries, fill = paper.gather(ROOT, small_book(tmp_path), work)
    page = fill(numbers="{}")
    assert [(entry.title, entry.depth) for entry in entries] == [
        ("1. Cats & dogs", 0),
        ("Part", 0),
        ("1. Cats & dogs", 1),
        ("1. Cats & dogs", 2),
    ]
    anchors = re.findall(r' id="([^"]+)"', page)
    assert len(set(anchors)) == len(anchors)
    links = re.findall(r' href="([^"]+)"', page[page.index("<article") :])
    assert {link[1:] for link in links if link.startswith("#")} <= set(anchors)
    assert "#notebooks-two--one" in links
    assert "https://example.org/#x" in links
    assert not any("search" in link for link in links)
    assert 'src="_images/a.png"' in page
    assert (work / "_images" / "a.png").exists()
    assert page.count('src="_static/mathjax/x.js"') == 1
    assert "thebe" not in page
    assert "theme prints" not in page


def test_a_failed_printing_leaves_the_former_pdf(tmp_path, monkeypatch):
    small_book(tmp_path)
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'no display' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(paper, "find_chromium", lambda: str(broken))
    former = tmp_path / paper.PDF
    former.write_bytes(b"former")
    with pytest.raises(BuildError, match="no display"):
        paper.print_book(ROOT, tmp_path)
    assert former.read_bytes() == b"former"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chromium", "html", "stage", paper.PDF]


def _need(condition: bool, what: str) -> None:
    if not condition:
        (pytest.fail if os.environ.get("CI_BROWSER_REQUIRED") == "1" else pytest.skip)(what)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The whole book, printed elsewhere, as pypdf reads it, with the text of every page."""
    pypdf = pytest.importorskip("pypdf")
    _need((OUT / "html" / "index.html").exists(), f"{OUT} holds no built book; run make book")
    try:
        paper.find_chromium()
    except InputError as error:
        _need(False, str(error))
    before = {path: path.stat().st_mtime_ns for path in (OUT / "html").rglob("*")}
    target = tmp_path_factory.mktemp("paper") / "book.pdf"
    assert paper.print_book(ROOT, OUT, target) == target
    assert [path.name for path in target.parent.iterdir()] == ["book.pdf"]
    assert {path: path.stat().st_mtime_ns for path in (OUT / "html").rglob("*")} == before
    reader = pypdf.PdfReader(target)
    texts, outside = [], []
    for number, page in enumerate(reader.pages, 1):

        def look(text, matrix, place, *_, number=number, box=page.mediabox):
            left = place[4] * matrix[0] + place[5] * matrix[2] + matrix[4]
            # MathJax draws what stretches, such as a bar, from pieces far too long, and clips them.
            stretched = re.search(r"[\ue000-\uf8ff]", text) or abs(matrix[0]) > 2 * abs(matrix[3])
            if text.strip() and not stretched and not box.left <= left <= box.right:
                outside.append((number, text))

        texts.append(page.extract_text(visitor_text=look))
    return target, reader, texts, outside


@pytest.mark.browser
def test_every_page_of_the_book_is_in_the_outline_in_order(printed):
    _, reader, texts, _ = printed
    outline = [(item.title, reader.get_destination_page_number(item)) for item in _upper(reader.outline)]
    expected = [entry.title for entry in paper.read_contents(OUT)]
    found = [item for item in outline if item[0] in expected]
    assert [title for title, _ in found] == expected
    places = [place for _, place in found]
    assert places == sorted(set(places)), "each starts a page of its own"
    contents = "\n".join(texts[1 : places[0]])
    for title, place in found:
        assert re.search(rf"{re.escape(title)}\s*{place + 1}$", contents, re.MULTILINE), title


def _upper(outline: list, depth: int = 2) -> list:
    """Return an outline's entries of the upper levels: parts, and the pages of the book in them."""
    items = []
    for item in outline:
        if not isinstance(item, list):
            items.append(item)
        elif depth > 1:
            items += _upper(item, depth - 1)
    return items


@pytest.mark.browser
def test_every_figure_is_there(printed):
    _, reader, texts, _ = printed
    captions = sum(len(re.findall(r"^Fig\. \d+\.\d+", text, re.MULTILINE)) for text in texts)
    figures = drawings = 0
    for source in find_chapters(ROOT):
        page = (OUT / "html" / "notebooks" / f"{source.stem}.html").read_text("utf-8")
        figures += len(re.findall(r"<figure\b", page))
        drawings += page.count('<svg xmlns="http://www.w3.org/2000/svg" class="drawing"')
    assert figures > len(find_chapters(ROOT))
    assert captions >= figures
    images = [_images(page) for page in reader.pages]
    assert sum(images) >= figures - drawings


def _images(page) -> int:
    objects = page.get("/Resources", {}).get("/XObject", {})
    return sum(object.get_object()["/Subtype"] == "/Image" for object in objects.values())


@pytest.mark.browser
def test_pages_are_a4_and_hold_what_is_on_them(printed):
    _, reader, _, outside = printed
    boxes = [page.mediabox for page in reader.pages]
    assert all(abs(box.width - A4[0]) < 1 and abs(box.height - A4[1]) < 1 for box in boxes)
    assert outside == []


@pytest.mark.browser
def test_formulas_are_set_and_links_lead_somewhere(printed):
    _, reader, texts, _ = printed
    source = re.compile(r"\$\$|\\\(|\\\[|\\(frac|mathcal|operatorname)\b|Math input error|\bundefined\b")
    assert [(number, found[0]) for number, text in enumerate(texts, 1) if (found := source.search(text))] == []
    places = reader.named_destinations
    links = [
        note.get_object()["/Dest"]
        for page in reader.pages
        for note in page.get("/Annots", [])
        if "/Dest" in note.get_object()
    ]
    assert len(links) > 100
    assert {str(link) for link in links} <= set(places)


@pytest.mark.browser
def test_it_can_be_sent(printed):
    target, reader, _, _ = printed
    assert target.stat().st_size < 40 * 2**20
    assert 100 < len(reader.pages) < 600
    assert not reader.metadata["/Title"].startswith(paper.UNFINISHED)
