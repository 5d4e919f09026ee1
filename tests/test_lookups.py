"""What a reader looks up: terms, references, the reference of the code, and every link and anchor of the built book.

Links are checked in BOOK_HTML (default _build/html). Where no book is built that test is skipped; with
CI_BROWSER_REQUIRED=1 it fails.
"""

import html.parser
import importlib
import inspect
import os
import re
import urllib.parse
from pathlib import Path

import pytest

import vireid_lite

ROOT = Path(__file__).parents[1]
BUILT = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))
PACKAGE = Path(vireid_lite.__file__).parent
PAGES = [*sorted((ROOT / "book").rglob("*.md")), *sorted((ROOT / "notebooks").glob("[0-9]*.py"))]


def _text(*without: str) -> str:
    """All pages as one text; a line break inside a role is a blank."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name not in without)
    return re.sub(r"\s+#?\s*", " ", text)


def _terms() -> list[list[str]]:
    """The glossary's entries, each as its names."""
    source = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    block = re.search(r"```\{glossary\}\n(.*?)```", source, re.DOTALL)[1]
    return [re.findall(r"^(\S.*)$", entry, re.MULTILINE) for entry in block.split("\n\n")]


def test_each_term_is_linked_outside_the_glossary():
    linked = re.findall(r"\{term\}`([^`]+)`", _text("glossary.md"))
    linked = {re.sub(r".*<(.*)>$", r"\1", target).strip().lower() for target in linked}
    entries = _terms()
    assert len(entries) > 20
    assert [names for names in entries if not linked & {name.lower() for name in names}] == []
    assert linked <= {name.lower() for names in entries for name in names}


def test_terms_are_in_order():
    first = [names[0].lower() for names in _terms()]
    assert first == sorted(first)


def test_each_reference_is_cited_and_each_citation_found():
    source = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,\s]+),", source, re.MULTILINE)
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", _text()) for key in keys.split(",")}
    assert len(keys) == len(set(keys)) > 20
    assert sorted(set(keys) - cited) == []
    assert sorted(cited - set(keys)) == []


def test_each_module_is_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "book" / "api").glob("*.md"))
    named = re.findall(r"automodule:: (vireid_lite[\w.]*)", pages)
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    assert len(named) == len(set(named))
    # Some faces hold nothing, and the command line is shown by its help.
    empty = {"vireid_lite", "vireid_lite.chapters", "vireid_lite.study", "vireid_lite.cli", "vireid_lite.options"}
    assert set(named) == modules - empty


def test_the_contents_list_each_page_of_the_reference():
    listed = re.findall(r"file: (book/api/\w+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(f"book/api/{page.stem}" for page in (ROOT / "book" / "api").glob("*.md"))


def test_what_a_docstring_describes_is_there():
    """A name under "Args:" is in the signature, or a field."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for found in vars(importlib.import_module(name)).values():
            if getattr(found, "__module__", "") != name or not (inspect.isclass(found) or inspect.isfunction(found)):
                continue
            for each in [found, *filter(inspect.isfunction, vars(found).values())]:
                if section := re.search(r"^Args:\n((?:    .*\n?)+)", inspect.getdoc(each) or "", re.MULTILINE):
                    named = ", ".join(re.findall(r"^    (\w[\w, ]*): ", section[1], re.MULTILINE)).split(", ")
                    known = {*inspect.signature(each).parameters, *getattr(each, "__dataclass_fields__", ())}
                    assert set(named) <= known, (name, each)


class _Page(html.parser.HTMLParser):
    """Gathers a page's anchors, and where it leads."""

    def __init__(self):
        super().__init__()
        self.anchors, self.leads = set(), []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes.get("id"), attributes.get("name") if tag == "a" else None} - {None}
        self.leads += [attributes[key] for key in ("href", "src") if attributes.get(key)]


@pytest.fixture(scope="module")
def built() -> dict[Path, _Page]:
    """Every page of the built book."""
    if not (BUILT / "index.html").exists():
        (pytest.fail if os.environ.get("CI_BROWSER_REQUIRED") == "1" else pytest.skip)(f"{BUILT} is not built")
    pages = {}
    for path in sorted(BUILT.resolve().rglob("*.html")):
        if "_static" not in path.parts:
            pages[path] = _Page()
            pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def test_internal_links_and_anchors_resolve(built):
    broken, checked = [], 0
    for path, page in built.items():
        for lead in page.leads:
            address = urllib.parse.urlsplit(lead)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(address.path)).resolve() if address.path else path
            anchor = urllib.parse.unquote(address.fragment)
            there = target.is_file() and (not anchor or target not in built or anchor in built[target].anchors)
            checked += 1
            if not there:
                broken.append((path.relative_to(BUILT.resolve()).as_posix(), lead))
    assert checked > 1000
    assert broken == []
