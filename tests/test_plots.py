"""One palette in every plot, told apart by colour-blind readers; figures sharp in a notebook and plain outside one."""

import ast
import itertools
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from vireid_lite.chapters import plots
from vireid_lite.data import Modality
from vireid_lite.errors import InputError

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "notebooks").glob("*.py")), *sorted((ROOT / "vireid_lite").rglob("*.py"))]
PALETTE = {*plots.SERIES, *plots.IDENTITIES, *plots.COLOURS.values(), plots.RIGHT, plots.WRONG, plots.CHANCE}
# Both run from dark to light, so that grey prints and colour-blind readers keep the order.
COLOUR_MAPS = {"gray", "cividis", "cividis_r"}
COLOUR_WORDS = re.compile(r"c|fc|ec|(\w*_)?colou?rs?|(face|edge|marker(face|edge)|e)colors?|(mfc|mec)")
# Dichromats' view of linear RGB, severity 1.0: Machado, Oliveira and Fernandes, "A Physiologically-based Model for
# Simulation of Color Vision Deficiency", IEEE TVCG 15(6), 2009.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# CIE 1976 distances. About 2 is just seen side by side; thin lines and small marks apart from each other need far more.
# Matplotlib's own first six colours come to 4.6, seaborn's ten "colorblind" ones to 10.8.
APART = 15


@pytest.fixture(autouse=True)
def _closed():
    with plt.rc_context():
        yield
    plt.close("all")


def lab(colour: str, sight: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as seen."""
    encoded = np.array(to_rgb(colour))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(sight) @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = to_xyz @ linear / to_xyz.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours, sight) -> tuple[float, str, str]:
    places = {colour: lab(colour, SIGHT[sight]) for colour in colours}
    return min((float(np.linalg.norm(places[a] - places[b])), a, b) for a, b in itertools.combinations(colours, 2))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("name", ["SERIES", "IDENTITIES"])
def test_colours_are_told_apart(name, sight):
    distance, one, other = nearest(getattr(plots, name), sight)
    assert distance > APART, (one, other)


def test_the_distance_finds_what_colour_blind_readers_confuse():
    assert nearest(("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"), "protanopia")[0] < APART
    assert nearest(("#ff0000", "#808000"), "deuteranopia")[0] < nearest(("#ff0000", "#808000"), "usual")[0] / 3
    assert np.allclose(np.sum([SIGHT[sight] for sight in SIGHT], axis=2), 1, atol=2e-6), "grey stays grey"


def test_right_and_wrong_and_the_two_spectra_are_told_apart():
    for sight in SIGHT:
        assert nearest((plots.RIGHT, plots.WRONG), sight)[0] > 2 * APART
        assert nearest(tuple(plots.COLOURS.values()), sight)[0] > 2 * APART


def allowed(colour: str) -> bool:
    """Whether a colour written in a source is of the palette, a grey, or none."""
    if colour in ("none", "auto", "face"):
        return True
    red, green, blue = to_rgb(colour)
    return colour.upper() in {each.upper() for each in PALETTE} or red == green == blue


def written(tree: ast.AST):
    """Every colour and colour map that a source writes out, with its line."""
    for node in ast.walk(tree):
        named = []
        if isinstance(node, ast.Call):
            named = [(keyword.arg or "", keyword.value) for keyword in node.keywords]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("ScalarMappable", "get_cmap", "set_cmap"):
                named += [("cmap", value) for value in node.args]
            if called in ("plot", "errorbar", "color_palette", "husl_palette", "cubehelix_palette"):
                named += [(called, value) for value in node.args]
        elif isinstance(node, ast.Dict):
            named = [(getattr(key, "value", ""), value) for key, value in zip(node.keys, node.values, strict=True)]
        for name, value in named:
            for leaf in ast.walk(value) if COLOUR_WORDS.fullmatch(str(name)) or name == "cmap" else [value]:
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield str(name), leaf.value, node.lineno
        if isinstance(node, ast.Constant) and re.fullmatch(r"#[0-9a-fA-F]{3,8}", str(node.value)):
            yield "color", node.value, node.lineno


def foreign(text: str) -> list[tuple[str, str, int]]:
    """The colours of a source that are not the book's: named, numbered, in a format such as "r--", or by a map."""
    found = []
    for name, value, line in written(ast.parse(text)):
        if name == "cmap":
            wrong = value not in COLOUR_MAPS
        elif name in ("plot", "errorbar"):
            wrong = re.search(r"[bgrcmy]|C\d", value) is not None
        elif name.endswith("_palette"):
            wrong = True
        elif COLOUR_WORDS.fullmatch(name):
            wrong = plt.matplotlib.colors.is_color_like(value) and not allowed(value)
        else:
            wrong = False
        if wrong:
            found.append((name, value, line))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_source_writes_a_colour_of_its_own(source):
    assert foreign(source.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        'axes.plot(x, y, "r--")',
        'axes.plot(x, y, color="tab:blue")',
        'axes.scatter(x, y, c="C3")',
        'axes.bar(x, y, ec="gold" if y else "black")',
        'axes.imshow(x, cmap="jet")',
        "colour = '#12ab34'",
        'style = {"markerfacecolor": "green"}',
        'colours = sns.color_palette("colorblind", 8)',
        'plt.cm.ScalarMappable(plt.Normalize(), "viridis")',
    ],
)
def test_a_foreign_colour_would_be_found(text):
    assert len(foreign(text)) == 1


def test_palette_and_greys_pass():
    text = 'axes.plot(x, y, "s:", color="#0072b2", mec="0.3"); axes.imshow(x, cmap="gray"); f(c="white", ec="none")'
    assert foreign(text) == []


def test_figures_draw_with_the_palette_alone():
    plots.set_style()
    rows = {name: [10.0, 20.0] for name in "abcdef"}
    timed = {name: ([1.0, 2.0], [10.0, 20.0]) for name in "abcdef"}
    figures = [
        plots.cmc_curves({name: np.linspace(0, 1, 5) for name in "abcdef"}, np.linspace(0, 0.1, 5)),
        plots.training_curves([{"epoch": e, "identity_loss": 1, "triplet_loss": 2, "accuracy": 0.5} for e in (0, 1)]),
        plots.score_rows({"x": rows, "y": rows}, dict.fromkeys("xy", (1, 2))),
        plots.cost_scatter({"x": timed, "y": timed}, dict.fromkeys("xy", (1, 2)), ["a"]),
        plots.stacked_counts({"x": dict.fromkeys("abcdefg", 3)}),
        plt.figure(),
    ]
    people = np.repeat(np.arange(10), 2)
    plots.embedding_scatter(figures[-1].add_subplot(), np.zeros((20, 2)), people, np.tile(list(Modality), 10))
    pure = {tuple(np.round(to_rgb(colour), 3)) for colour in PALETTE}
    seen = set()
    for figure in figures:
        figure.canvas.draw()
        for artist in figure.findobj():
            for name in ("get_color", "get_facecolor", "get_edgecolor", "get_markerfacecolor"):
                value = getattr(artist, name, lambda: "none")()
                for red, green, blue, alpha in plt.matplotlib.colors.to_rgba_array(value):
                    if alpha and not max(red, green, blue) - min(red, green, blue) < 0.05:  # seaborn's ink is near grey
                        seen.add(tuple(np.round((red, green, blue), 3).tolist()))
    assert seen <= pure
    assert len(seen) > 5


def test_more_people_than_colours_are_refused():
    people = np.arange(11)
    with pytest.raises(InputError, match="11 identities for 10 colours"):
        plots.embedding_scatter(plt.figure().add_subplot(), np.zeros((11, 2)), people, np.zeros(11))


def test_style_outside_of_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib_inline.backend_inline", None)  # importing it would fail
    plots.set_style()
    assert plt.rcParams["figure.dpi"] == 96
    assert plt.rcParams["image.cmap"] in COLOUR_MAPS
    assert [to_hex(colour).upper() for colour in plt.rcParams["axes.prop_cycle"].by_key()["color"]] == [*plots.SERIES]
    assert plt.rcParams["savefig.facecolor"] == "white"


def test_style_in_a_notebook_doubles_the_pixels(monkeypatch):
    inline = pytest.importorskip("matplotlib_inline.backend_inline")
    asked = []
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(inline, "set_matplotlib_formats", asked.append)
    plots.set_style()
    assert asked == ["retina"]
