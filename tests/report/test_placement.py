"""Tests of the places of panels and of the ticks of logarithmic axes, against those of Matplotlib."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from curvature.report.drawings.layout import finished, panels
from curvature.report.figures import render_svg
from curvature.report.figures.style import finish


def plot(ax, name, exponents):
    xs = np.arange(len(exponents))
    ax.plot(xs, 10.0 ** np.asarray(exponents), label=f"values of {name[0]} that take a line of the legend")
    ax.set_yscale("log")
    ax.set_xticks(xs, [f"{name[0]}\n{x}" for x in xs])
    finish(ax, f"the values of {name}", "a name\non two lines", "10 to a power")


GROUPS = {"a with " + 8 * "many words ": (0, 1), "b": (-12, 3), "c": (0.3, 0.6), "d": (0, 5), "e": (-3, 2)}


@dataclass(frozen=True)
class Drawn:
    figure: Figure
    inner: list
    outer: list


def drawn(layout=None):
    figure, axes = panels(GROUPS, plot, columns=3)
    finished(figure)
    if layout is not None:
        figure.set_layout_engine(layout)
    render_svg(figure, "panels")
    figure.draw_without_rendering()
    return Drawn(
        figure,
        [ax.get_position().bounds for ax in axes],
        [figure.transFigure.inverted().transform_bbox(ax.get_tightbbox()) for ax in axes],
    )


@pytest.fixture(scope="module")
def placed():
    return drawn()


def test_panels_are_placed_where_constrained_layout_places_them(placed):
    np.testing.assert_allclose(placed.inner, drawn("constrained").inner, atol=0.01)  # of the figure


def test_panels_have_one_size_and_their_labels_leave_neither_the_figure_nor_their_cell(placed):
    assert len({(round(width, 9), round(height, 9)) for _, _, width, height in placed.inner}) == 1
    (legend,) = placed.figure.legends
    below = placed.figure.transFigure.inverted().transform_bbox(legend.get_window_extent())
    for box in placed.outer:
        assert box.x0 >= 0
        assert box.y0 >= below.y1
        assert max(box.x1, box.y1) <= 1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(placed.outer, 2))


def test_a_figure_that_is_drawn_again_is_the_same():
    figure, _ = panels(GROUPS, plot, columns=3)
    assert render_svg(finished(figure), "panels") == render_svg(figure, "panels")


@pytest.mark.parametrize("limits", [(1, 1200), (3e7, 4e8), (2e-14, 5), (0.02, 1.4), (1.2, 1.9), (5, 5e-4)])
def test_a_logarithmic_axis_has_the_visible_ticks_of_matplotlib_and_fewer_between_many_decades(limits):
    def ticks(ours):
        ax = Figure().subplots()
        ax.set_yscale("log")
        ax.set_ylim(limits)
        if ours:
            finish(ax, "", "", "")
        low, high = sorted(limits)
        everything = ax.get_yticks(), ax.yaxis.get_minorticklocs()
        return [[tick for tick in ticks if ours or low <= tick <= high] for ticks in everything]

    (major, minor), (usual_major, usual_minor) = ticks(True), ticks(False)
    np.testing.assert_allclose(major, usual_major)
    few = max(limits) > 100 * min(limits)
    between = [t for t in usual_minor if not few or round(t / 10.0 ** np.floor(np.log10(t))) in (2, 5)]
    np.testing.assert_allclose(minor, between)
    assert len(LogLocator().tick_values(*limits)) > len(major)  # Matplotlib's own also has those beyond the ends
