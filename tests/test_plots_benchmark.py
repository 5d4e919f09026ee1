"""The figures of the benchmark: every score is drawn where it belongs, and what has not run says so."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from vireid_lite.chapters import plots

WAYS = ("visible to infrared", "infrared to visible")
BANDS = dict.fromkeys(WAYS, (0.5, 2.8))


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def luminance(colour):
    """Relative luminance of an RGB colour as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_rows_hold_every_seed_their_reach_and_their_mean():
    rows = {"none": [70.0, 74.0, 78.0], "pending one": [], "CMPS": [13.0, 53.0]}
    figure = plots.score_rows(dict.fromkeys(WAYS, rows), BANDS)
    for axes in figure.axes:
        drawn = [list(zip(*line.get_data(), strict=True)) for line in axes.lines]
        assert drawn[::2] == [[(70, 0), (74, 0), (78, 0)], [(13, 2), (53, 2)]]
        assert [line.get_marker() for line in axes.lines] == ["o", "|"] * 2
        assert drawn[1::2] == [[(74, 0)], [(33, 2)]]
        assert texts(axes) == ["pending"]
        assert axes.texts[0].get_position()[1] == 1
        assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row stands on top"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(rows)
    plots.score_rows({"none ran": {"a": []}}, {"none ran": (0, 1)}).canvas.draw()


def test_curves_are_means_between_the_lowest_and_the_highest_seed():
    lines = {"CMPS": {16: [3.0, 5.0], 2: [70.0, 73.0, 76.0], 8: []}, "sign noise": {2: [], 16: []}}
    figure = plots.score_curves(dict.fromkeys(WAYS, lines), BANDS, "ε", log=True)
    for axes in figure.axes:
        drawn, pending = axes.containers
        assert pending.get_label() == "sign noise (pending)"
        assert len(pending[0].get_xdata()) == 0
        assert list(drawn[0].get_xdata()) == [2, 16], "in order, without the value that has not run"
        assert list(drawn[0].get_ydata()) == [73.0, 4.0]
        reach = [segment[:, 1].tolist() for segment in drawn[2][0].get_segments()]
        assert reach == [[70.0, 76.0], [3.0, 5.0]]
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "16"]
        assert texts(axes) == []


def test_a_curve_at_zero_is_drawn_on_a_linear_axis():
    figure = plots.score_curves({WAYS[0]: {"CMPS": {0.0: [30.0], 0.2: [31.0]}}}, BANDS, "grey")
    assert figure.axes[0].get_xscale() == "linear"
    assert figure.axes[0].get_xlim()[0] < 0


def test_curves_and_seconds_without_cards_say_pending():
    for figure in (
        plots.score_curves({way: {"CMPS": {2: []}} for way in WAYS}, BANDS, "ε", log=True),
        plots.cost_scatter({way: {"CMPS": ([], [])} for way in WAYS}, BANDS, ["CMPS"]),
    ):
        assert [texts(axes) for axes in figure.axes] == [["pending"]] * 2
        figure.canvas.draw()


def test_seconds_reach_over_seeds_in_both_senses_and_marks_tell_the_kind():
    points = {"CMPS": ([50.0, 100.0, 400.0], [13.0, 53.0, 33.0]), "FGSM": ([7.0], [40.0]), "LTA": ([], [])}
    figure = plots.cost_scatter(dict.fromkeys(WAYS, points), BANDS, ["CMPS"])
    for axes in figure.axes[:2]:
        universal, image = axes.containers
        assert universal[0].get_xdata()[0] == 100.0, "the median"
        assert universal[0].get_ydata()[0] == 33.0, "the mean"
        across, up = (bar.get_segments()[0] for bar in universal[2])
        assert across[:, 0].tolist() == [50.0, 400.0]
        assert up[:, 1].tolist() == [13.0, 53.0]
        assert universal[0].get_markerfacecolor() != "white"
        assert image[0].get_markerfacecolor() == "white"
        assert universal[0].get_marker() != image[0].get_marker()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["CMPS", "FGSM"]


def matrix():
    values = np.full((4, 3, 3), np.nan)
    values[0, 0] = [10, 20, 30]
    values[0, 1, 1] = 55
    values[3] = np.linspace(0, 100, 9).reshape(3, 3)
    return values


def grounds(axes):
    """The colour of each cell, in the order of the matrix."""
    return axes.collections[0].get_facecolors()


def test_matrices_write_each_cell_on_its_colour_and_hatch_what_has_not_run():
    values = matrix()
    figure = plots.score_matrices(
        {"V→I": values, "I→V": values}, ["a", "b", "clean", "noise"], ["x", "y", "z"], apart=2
    )
    for axes in figure.axes[:2]:
        ran = ~np.isnan(values).all(-1)
        assert (grounds(axes)[:, 3] == ran.ravel()).all(), "nothing covers the hatching"
        assert axes.patch.get_hatch()
        assert texts(axes).count("pending") == (~ran).sum()
        assert {"20.0\n10 to 30", "55.0"} <= set(texts(axes)), "one seed has no spread"
        np.testing.assert_array_equal(axes.collections[0].get_array()[ran], np.array([20, 55, 12.5, 50, 87.5]))
        places = [text.get_position() for text in axes.texts if text.get_text() == "pending"]
        assert places == [tuple(place[::-1] + 0.5) for place in np.argwhere(~ran)]
        assert axes.lines[0].get_ydata()[0] == 2, "the rows beside stand apart"
        assert axes.get_ylim() == (4, 0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "clean", "noise"]


def test_matrix_colours_run_from_0_to_100_and_numbers_can_be_read_on_them():
    shown = np.arange(0, 101, 4.0)
    figure = plots.score_matrices({"all": shown[:, None, None]}, [f"{value:g}" for value in shown], ["x"], wide=1)
    axes = figure.axes[0]
    light = [luminance(colour) for colour in grounds(axes)]
    assert np.all(np.diff(light) > 0), "brighter is higher, so that grey prints and colour-blind eyes keep the order"
    for text, ground in zip(axes.texts, light, strict=True):
        ink = luminance(plt.matplotlib.colors.to_rgb(text.get_color()))
        low, high = sorted((ink, ground))
        assert (high + 0.05) / (low + 0.05) > 4, (text.get_text(), ground)


def test_matrix_colours_reach_the_top_asked_for():
    one = np.full((1, 1, 1), 20.0)
    low, high = (grounds(plots.score_matrices({"": one}, ["a"], ["x"], top=top).axes[0])[0] for top in (20, 100))
    assert luminance(low) > luminance(high)


def test_every_row_of_an_uneven_number_of_matrices_is_shown():
    figure = plots.score_matrices(dict.fromkeys("abc", matrix()), list("pqrs"), list("xyz"))
    assert [axes.get_title() for axes in figure.axes if axes.axison and axes.get_title()] == ["a", "b", "c"]


def test_counts_are_stacked_end_to_end():
    counts = {"Table 1": {"rerun": 0, "shown": 60, "open": 4}, "Table 2": {"rerun": 2, "shown": 0, "open": 62}}
    figure = plots.stacked_counts(counts)
    axes = figure.axes[0]
    bars = {container.get_label(): container for container in axes.containers}
    assert list(bars) == ["rerun", "shown", "open"]
    for place, row in enumerate(counts.values()):
        left = 0
        for part, value in row.items():
            box = bars[part][place]
            assert (box.get_x(), box.get_width()) == (left, value)
            left += value
    assert sorted(texts(axes)) == ["2", "4", "60", "62"]
    assert len({(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in bars.values()}) == 3
    every = plots.stacked_counts({"Table 1": dict.fromkeys("abcdefg", 3)}).axes[0].containers
    assert len({(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in every}) == 7
