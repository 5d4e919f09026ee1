"""The book's drawings: what they show is what chapters and code say, and everybody can read it."""

import re
import shutil
from functools import cache
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from _make.build import sync
from _make.drawings import ALPHA, CENTRES, DRAWINGS, FOLDER, ORDERS, TERMS, svg
from _make.notebooks import find_chapters, repository_root
from _make.svg import COLOURS, STYLE

ROOT = repository_root()
SHOWN_IN = {"two_stream": 3, "universal": 5, "triplet": 5, "fsam": 8, "quadruple": 9, "chance": 10}
PHONE = 312  # pixels that a page of 360 leaves for a figure
GROUNDS = {"#ffffff": "#222832", "#121212": "#ced6dd"}  # pydata-sphinx-theme's, and its text, light and dark
FIGURE = re.compile(r":::\{figure-md\} (\S+)\n!\[([^\]]*)\]\(\.\./(\S+?)\)\n\n(.*?)\n:::", re.DOTALL)


@pytest.fixture(params=DRAWINGS)
def name(request):
    return request.param


def prose(number: int) -> str:
    [source] = [source for source in find_chapters(ROOT) if int(source.stem[:2]) == number]
    return re.sub(r"^# ?", "", source.read_text(), flags=re.MULTILINE)


def parsed(name: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", svg(name), count=1))


def luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@cache
def width(said: str, size: float, bold: bool) -> float:
    """Return the width of a text in DejaVu Sans, which is wider than what browsers use."""
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return TextPath((0, 0), said, size=size, prop=font).get_extents().x1 if said.strip("\u200b ") else 0


def texts(name: str):
    """Yield each line of text of a drawing with its box: left, top, right, bottom."""
    root = parsed(name)
    groups = [(root, 0.0)] + [(group, float(group.get("transform").split()[1][:-1])) for group in root.iter("g")]
    for group, under in groups:
        for text in group.findall("text"):
            across = width(text.text or "", 14, text.get("class") == "bold")
            for span in text:
                size = {"symbol": 16, "symbol index": 12}.get(span.get("class"), 14)
                across += width("".join(span.itertext()), size, False) + float(span.get("dx", 0))
                across += width(span.tail or "", 14, text.get("class") == "bold")
            x, y = float(text.get("x")), float(text.get("y")) + under
            left = x - across * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
            yield "".join(text.itertext()), (left, y - 11, left + across, y + 3)


def test_files_are_what_the_code_draws(name):
    assert (ROOT / FOLDER / f"{name}.svg").read_text() == svg(name), "run vireid-lite book --sync"
    assert {path.stem for path in (ROOT / FOLDER).iterdir()} == set(DRAWINGS)


def test_sync_writes_them_where_a_book_has_any(tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert sync(tmp_path) == []
    (tmp_path / FOLDER).mkdir(parents=True)
    assert sorted(path.stem for path in sync(tmp_path)) == sorted(DRAWINGS)
    assert sync(tmp_path) == []


def test_text_is_inside_and_apart(name):
    _, _, right, bottom = map(float, parsed(name).get("viewBox").split())
    lines = list(texts(name))
    assert lines
    for at, (said, (x0, y0, x1, y1)) in enumerate(lines):
        assert min(x0, y0) >= 0, said
        assert x1 <= right, said
        assert y1 <= bottom, said
        for other, (left, top, far, low) in lines[:at]:
            assert x0 >= far or x1 <= left or y0 >= low or y1 <= top, f"{said} lies on {other}"


def test_text_can_be_read_on_a_phone(name):
    scale = PHONE / float(parsed(name).get("viewBox").split()[2])
    sizes = [float(size) for size in re.findall(r"([\d.]+)px", STYLE)]
    assert sizes
    assert min(sizes) * scale >= 11
    assert not re.search(r"font-size|font:", svg(name).replace(STYLE, ""))


def test_both_themes_have_contrast(name):
    """Marks and arrows 3 to 1, and text 4.5, also where its ground is tinted; no colour but those of the style."""
    for ground, ink in GROUNDS.items():
        assert contrast(ink, ground) >= 4.5
        for kind, colour in COLOURS.items():
            assert contrast(colour, ground) >= 3, kind
        tints = re.findall(r'<rect class="(\w+)"[^>]* fill-opacity="([\d.]+)"', svg(name))
        for kind, share in set(tints) if name != "fsam" else ():  # whose shades hold no text
            mixed = zip(*(bytes.fromhex(colour[1:]) for colour in (COLOURS.get(kind, ink), ground)), strict=True)
            tint = "#" + bytes(round(float(share) * a + (1 - float(share)) * b) for a, b in mixed).hex()
            assert contrast(ink, tint) >= 4.5, (kind, share)
    assert not re.search(r"#[0-9A-Fa-f]{3}|rgb\(|<script", svg(name).replace(STYLE, ""))
    assert set(re.findall(r'<(?!text|tspan)\w+ class="(\w+)"', svg(name))) <= {*COLOURS, "ink", "drawing"}


def test_a_chapter_shows_it_and_tells_what_it_shows(name):
    shown = [
        (source, *found) for source in find_chapters(ROOT) for found in FIGURE.findall(prose(int(source.stem[:2])))
    ]
    [(chapter, label, alt, _, caption)] = [each for each in shown if each[3] == f"{FOLDER}/{name}.svg"]
    assert int(chapter.stem[:2]) == SHOWN_IN[name]
    assert re.fullmatch(r"fig-[a-z0-9-]+", label)
    assert len(alt.split()) >= 25, "who cannot see a drawing needs all of it"
    assert 10 <= len(caption.split()) <= 60
    assert parsed(name).findtext("title")


def test_the_triplet_is_equation_1():
    """Term by term: whose feature, from which cloud's centroid it is pushed, to which one's it is pulled."""
    clouds = {"v": "visible", "g": "grey", "i": "infrared"}
    written = re.findall(r"\\\|C\^n_(\w) - f_(\w)\\\| - \\\|C\^p_(\w) - f_(\w)\\\|", prose(5))[:3]
    assert [(clouds[f], clouds[p], clouds[n]) for n, f, p, _ in written] == list(TERMS.values())
    assert all(f == again for _, f, _, again in written)


def test_the_network_is_the_victims():
    """In the order that the drawing shows, and with non-local blocks where the network has them."""
    from vireid_lite.models import build
    from vireid_lite.models.two_stream import ModelOutput, NonLocal

    model = build("agw", num_identities=2, backbone="lite")
    said = [text for text, _ in texts("two_stream")]
    for block, stage in enumerate(model.stages[1:], 1):
        has = any(isinstance(module, NonLocal) for module in stage.modules())
        assert f"block {block}" + ", non-local" * has in said
    assert ModelOutput._fields == ("pooled", "embedding", "logits")
    assert said.index("pooled feature") < said.index("BNNeck") < said.index("embedding") < said.index("classifier")


def test_the_bracket_is_the_losss():
    """Its bar is twice what the package computes for the places where the centres are drawn."""
    import torch

    from vireid_lite.losses import quadruple_terms

    (v1, v2, i1, i2), other = ([CENTRES["j", name] for name in ("v1", "v2", "i1", "i2")], CENTRES["k", "v2"])
    four = [torch.tensor([own, far], dtype=torch.float64) for own, far in ((v1, v1), (i1, i1), (v2, other), (i2, i2))]
    own, apart, between = quadruple_terms(*four)
    bracket = (own[0, 0] - apart[0, 0] - between[0, 0, 1] + ALPHA).item()
    [bar] = re.findall(r'<rect class="attack"[^>]* width="([\d.]+)"[^>]* fill-opacity="0.45"', svg("quadruple"))
    assert float(bar) == pytest.approx(2 * bracket)
    assert bracket > 0


def test_rankings_that_know_nothing():
    """Each row ranks the whole gallery, rank-1 is a third in all, and orders hang together as their names say."""
    for orders in ORDERS.values():
        assert {"".join(sorted(order)) for order in orders} == {"AABBCC"}
        assert sum(order[0] == query for query, order in zip("AABBCC", orders, strict=True)) == 2
    own, one, person, blocks = ORDERS.values()
    assert len(set(own)) == 6
    assert len(set(one)) == 1
    for orders in (person, blocks):
        assert orders[::2] == orders[1::2]
        assert len(set(orders)) == 3
    assert all(order[::2] == order[1::2] for order in blocks)
    assert not any(order[::2] == order[1::2] for order in (*own, *one, *person))
