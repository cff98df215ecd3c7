import math
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from curvature.errors import ConfigurationError
from curvature.records import (
    Alignment,
    ExtremalEigenvalues,
    GaugeState,
    Landscape,
    LeagueEntry,
    Measured,
    Quantity,
    SpectralDensity,
    Spectrum,
    StepComparison,
    TrainingCurve,
    Where,
    Whitening,
)
from curvature.records.conditioning import condition_numbers
from curvature.report import figures
from curvature.report.spread import spread
from curvature.text import printable


def spectrum(values=(1e-18, 1e-3, 0.5, 2.0), chart="standard", gauge="-", matrix="ggn", floor=1e-15, **about):
    values = np.sort(np.asarray(values, dtype=float))
    rank = int((np.abs(values) > floor).sum())
    definite = bool((values >= -floor).all())
    header = {name: about.pop(name) for name in ("block", "effective") if name in about}
    about = {"method": "dense", "rank_rule": "threshold", "rank": rank} | about
    where = Where(matrix, chart, gauge, num_examples=10, **header)
    return Spectrum(where, values, positive_semidefinite=definite, noise_floor=floor, **about)


def at(record, arm="standard", seed=0, checkpoint="late", step=10):
    return Measured(arm, seed, checkpoint, step, record)


def numbers(kappa, gauge, chart="weight-norm", status="resolved", **place):
    record = condition_numbers(spectrum([1.0, kappa], chart, gauge))
    values = dict(record.values) | {"kappa_95": Quantity(kappa, status)}
    return at(type(record)(**{**record.__dict__, "values": values}), **place)


@pytest.fixture
def ax():
    return Figure().subplots()


def picture(record, **options):
    """A spectrum as the page shows it."""
    axes = figures.plot_spectrum(record, Figure(figsize=(3.6, 2.4)).subplots(), **options)
    return figures.inline_svg(figures.render_svg(axes.figure, record.label))


def drawn(ax, label):
    return next(line for line in ax.get_lines() if line.get_label().startswith(label))


def labels(ax):
    return ax.get_legend_handles_labels()[1]


# ---------------------------------------------------------------------------------------------------------- spectra


def test_spectrum_draws_the_records_numbers_with_signs_apart(ax):
    record = spectrum([-0.25, -1e-3, 1e-18, 0.5, 2.0], matrix="hessian")
    figures.plot_spectrum(record, ax)
    positive, negative = drawn(ax, "positive: 2"), drawn(ax, "negative: 2")
    assert positive.get_xdata().tolist() == [1, 2]
    assert positive.get_ydata().tolist() == [2.0, 0.5]
    assert negative.get_xdata().tolist() == [3, 4]
    assert negative.get_ydata().tolist() == [0.25, 1e-3]
    assert negative.get_markerfacecolor() == "none"
    assert negative.get_marker() != positive.get_marker()
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "Hessian" in ax.get_title()


def test_spectrum_marks_rank_and_hatches_below_the_floor(ax):
    figures.plot_spectrum(spectrum([1e-18, 1e-17, 1e-13, 2.0], floor=1e-15), ax)
    assert set(drawn(ax, "rank 2").get_xdata()) == {2}
    (band,) = [patch for patch in ax.patches if patch.get_hatch()]
    assert band.get_label() == "2 below the noise floor"
    assert band.get_y() + band.get_height() == 1e-15
    assert band.get_y() < 1e-6 * ax.get_ylim()[0]  # below the end of the axis, which other panels may move
    page = figures.inline_svg(figures.render_svg(ax.figure, "hatched"))
    assert "var(--band)" in page[page.index("<pattern") : page.index("</pattern")]
    assert "#f3f3f3" not in page


def test_a_floor_far_below_the_eigenvalues_does_not_stretch_the_axis(ax):
    figures.plot_spectrum(spectrum([0.0, 0.1, 1.0], floor=1e-30), ax)
    assert ax.get_ylim()[0] > 1e-3
    assert "1 below the noise floor 1e-30" in labels(ax)


def test_a_long_spectrum_is_thinned_and_keeps_its_ends(ax):
    values = np.geomspace(1e-6, 1.0, 5000)
    figures.plot_spectrum(spectrum(values), ax)
    ranks, sizes = drawn(ax, "positive: 5000").get_data()
    assert len(ranks) <= figures.MAX_POINTS
    assert ranks[[0, -1]].tolist() == [1, 5000]
    assert np.array_equal(sizes, values[::-1][ranks - 1])


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0, 0.0], [1e-20, 3e-17], [1.0], [-1.0], [2.0, 2.0, 2.0]])
def test_degenerate_spectra_can_be_drawn(values):
    record = spectrum(values, matrix="hessian")
    assert picture(record).startswith("<svg")
    assert figures.text_picture(record)
    figures.plot_spectra([record, record], Figure().subplots())


def test_overlay_names_what_differs_and_draws_each_record(ax):
    records = [spectrum(), spectrum([0.1, 0.2, 4.0], "weight-norm", "paper", effective=True)]
    figures.plot_spectra(records, ax)
    assert labels(ax)[:2] == ["standard", "weight-norm (paper)"]
    lines = [line for line in ax.get_lines() if line.get_linestyle() != "None" and len(line.get_xdata())]
    assert lines[0].get_ydata().tolist() == [2.0, 0.5, 1e-3]
    assert lines[1].get_ydata().tolist() == [4.0, 0.2, 0.1]


@pytest.mark.parametrize("kind", ["spectra", "density", "extremes"])
def test_curves_are_called_as_the_user_calls_them(kind, ax):
    records = {"spectra": spectrum(), "density": BULK, "extremes": ends([3.0], [])}
    plot, pair = getattr(figures, f"plot_{kind}"), [records[kind]] * 2
    plot(pair, ax, labels=["before", "after $5"])
    assert labels(ax)[:2] == ["before", r"after \$5"]
    for wrong in (["one"], ["a", "b", "c"], "ab"):
        with pytest.raises(ConfigurationError, match=r"one for each of the 2 records.* Pass a list with 2 labels"):
            plot(pair, Figure().subplots(), labels=wrong)


def test_overlay_marks_negative_eigenvalues_hollow(ax):
    figures.plot_spectra([spectrum([-3.0, -1.0, 2.0, 5.0], matrix="hessian")], ax)
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    assert [line.get_ydata().tolist() for line in hollow] == [[3.0, 1.0]]


# ----------------------------------------------------------------------------------------------- ends and densities


def density(nodes, weights, dim=100, chart="standard"):
    return SpectralDensity(Where("ggn", chart), dim, np.array(nodes, dtype=float), np.array(weights, dtype=float))


BULK = density([[0.0, 0.2, 0.9], [0.0, 0.2, 0.9]], [[0.9, 0.09, 0.01], [0.92, 0.06, 0.02]])


def test_density_is_drawn_in_bins_of_its_resolution_with_a_band_over_probes(ax):
    figures.plot_density([BULK], ax)
    steps = ax.patches[0].get_data()
    assert np.diff(steps.edges) == pytest.approx(0.3)  # (0.9 - 0) / 3 products
    assert (np.diff(steps.edges) * steps.values).sum() == pytest.approx(1)
    assert steps.edges[0] == pytest.approx(-0.15)  # zero is in the middle of a bin
    assert steps.values * 0.3 == pytest.approx([0.91, 0.075, 0.0, 0.015])
    # Half-width by hand: t(1 degree of freedom) = 12.706, standard error 0.01.
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx((0.91 + 12.706 * 0.01) / 0.3, rel=1e-4)


def test_density_has_a_logarithmic_axis_where_a_peak_would_flatten_the_rest(ax):
    figures.plot_density([BULK], ax)
    assert ax.get_yscale() == "log"
    assert "log scale" in ax.get_ylabel()
    assert set(drawn(ax, "one eigenvalue").get_ydata()) == {1 / (100 * 0.3)}
    assert ax.get_ylim()[0] < 1 / (100 * 0.3)
    flat = Figure().subplots()
    figures.plot_density([density([[0.0, 0.5, 0.9]], [[0.3, 0.4, 0.3]])], flat)
    assert flat.get_yscale() == "linear"
    assert flat.get_ylim()[0] == 0
    assert not flat.collections  # one probe has no band


@pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0], [1.0, 1.0], [0.0, 0.0]])
def test_densities_of_one_point_can_be_drawn(ax, values):
    figures.plot_density([density([values], [np.full(len(values), 1 / len(values))])], ax)
    steps = ax.patches[0].get_data()
    assert (np.diff(steps.edges) * steps.values).sum() == pytest.approx(1)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_density_histogram_keeps_all_weight_whatever_the_nodes(probes, steps, seed):
    random = np.random.default_rng(seed)
    record = density(
        random.normal(size=(probes, steps)) * 10 ** random.uniform(-9, 9), random.dirichlet(np.ones(steps), probes)
    )
    edges, mean, error = record.histogram()
    assert (np.diff(edges) * mean).sum() == pytest.approx(1)
    assert len(mean) <= steps + 2
    assert edges[0] <= record.nodes.min()
    assert record.nodes.max() <= edges[-1] * (1 + 1e-12) or record.nodes.max() <= edges[-1] + 1e-9 * record.resolution
    assert np.isnan(error).all() == (probes == 1)


def ends(largest, smallest, bound=1e-9, converged=True, chart="standard"):
    bounds = np.full(len(largest) + len(smallest), bound)
    where = Where("hessian", chart)
    return ExtremalEigenvalues(where, 50, np.array(largest), np.array(smallest), bounds, bounds, converged, 30)


def test_ends_are_drawn_from_both_sides_with_signs_apart_and_error_bars(ax):
    figures.plot_extremes([ends([3.0, 1.0], [-2.0, 0.5], bound=0.25)], ax)
    containers = [(c.lines[0].get_ydata().tolist(), c.lines[0].get_markerfacecolor()) for c in ax.containers]
    assert [values for values, _ in containers] == [[3.0, 1.0], [0.5], [2.0]]
    assert [face == "white" for _, face in containers] == [False, False, True]
    reach = ax.containers[0].lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in reach] == [[2.75, 3.25], [0.75, 1.25]]
    assert ax.get_yscale() == "log"
    assert "negative" in labels(ax)


def test_ends_that_did_not_converge_say_so_and_wide_bars_do_not_stretch_the_axis(ax):
    figures.plot_extremes([ends([3.0, 1.0], [], bound=5.0, converged=False), ends([2.0], [], chart="other")], ax)
    assert [label.endswith("not converged") for label in labels(ax)] == [True, False]
    assert ax.get_ylim()[0] >= 0.1


def test_a_chart_keeps_its_look_and_two_charts_never_share_one():
    charts = [("standard", "-"), ("weight-norm", "canonical"), ("weight-norm", "paper"), ("weight-norm", "checkpoint")]
    charts += [(f"mine-{number}", "-") for number in range(6)]
    records = [spectrum(chart=chart, gauge=gauge) for chart, gauge in charts]

    def looks(records):
        ax = figures.plot_spectra(records, Figure().subplots())
        handles, names = ax.get_legend_handles_labels()
        return {name: (h.get_color(), h.get_linestyle(), h.get_marker()) for h, name in zip(handles, names, strict=True)
                if "floor" not in name}  # fmt: skip

    together = looks(records)
    assert len(set(together.values())) == len(charts)
    few = looks(records[:3])
    assert few == {name: together[name] for name in few}


def test_records_are_drawn_like_their_measurements_at_one_point():
    steps = [step("standard", 0.1), step("neuron-block", 0.7)]
    sweep = [numbers(value, gauge).record for value, gauge in ((10.0, "canonical"), (50.0, "stretch=2"))]
    items = (
        (figures.plot_efficiency, steps),
        (figures.plot_efficiency_damping, steps),
        (figures.plot_league, [LeagueEntry(name, 1e-3, 0.1, 0.5, 1.0) for name in ("gradient descent", "Adam")]),
        (figures.plot_gauge_sweep, sweep),
        (figures.plot_whitening, [Whitening("0[0]", name, 0.5, 1.0, 2.0, 5, 10) for name in ("none", "w")]),
        (figures.plot_alignment, [Alignment("0[0]", name, 0.2, 1.0, 0.25, 9, 10) for name in ("w", "random")]),
    )
    for plot, records in items:
        alone, measured = (plot(each, Figure().subplots()) for each in (records, [at(record) for record in records]))
        assert labels(alone) == labels(measured)
        for line, other in zip(alone.get_lines(), measured.get_lines(), strict=True):
            assert np.array_equal(line.get_xydata(), other.get_xydata())


def test_nothing_to_draw_or_the_wrong_record_is_said(ax):
    for plot in (figures.plot_spectra, figures.plot_efficiency, figures.plot_whitening, figures.plot_alignment):
        with pytest.raises(ConfigurationError, match=r"no .* to draw"):
            plot([], ax)
    with pytest.raises(ConfigurationError, match="expected records of Spectrum, got StepComparison"):
        figures.plot_spectra([at(step("standard", 0.5))], ax)
    with pytest.raises(ConfigurationError, match="no gauge with one stretch"):
        figures.plot_gauge_sweep([numbers(3.0, "-", "standard")], ax)
    with pytest.raises(ConfigurationError, match="blocks first"):
        figures.plot_layers([numbers(3.0, "-", "standard")], ax)
    with pytest.raises(ConfigurationError, match="training curve"):
        figures.plot_training([], ax)


def test_without_an_ax_a_figure_opens_that_a_notebook_would_show():
    before = set(plt.get_fignums())
    try:
        ax = figures.plot_spectrum(spectrum())
        assert ax.figure.number in set(plt.get_fignums()) - before
    finally:
        plt.close(ax.figure)


def test_with_an_ax_pyplot_is_left_alone(ax):
    before = plt.get_fignums()
    assert figures.plot_spectrum(spectrum(), ax) is ax
    assert plt.get_fignums() == before


# ------------------------------------------------------------------------------------------------ condition numbers


def test_gauge_sweep_draws_the_medians_the_standard_value_and_the_canonical_gauge(ax):
    sweep = [
        numbers(kappa * (1 + seed), gauge, seed=seed)
        for seed in range(3)
        for gauge, kappa in (("stretch=0.5", 40.0), ("canonical", 10.0), ("stretch=4", 160.0), ("paper", 77.0))
    ]
    figures.plot_gauge_sweep([*sweep, numbers(10.0, "-", "standard")], ax)
    (curve,) = [container for container in ax.containers if container.get_label() == "weight-norm"]
    assert curve.lines[0].get_xdata().tolist() == [0.5, 1.0, 4.0]
    assert curve.lines[0].get_ydata().tolist() == [80.0, 20.0, 320.0]
    assert set(drawn(ax, "standard").get_ydata()) == {10.0}
    assert set(drawn(ax, "canonical gauge").get_xdata()) == {1}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.5", "1", "4"]


def test_gauge_sweep_draws_a_lower_bound_as_an_arrow(ax):
    figures.plot_gauge_sweep([numbers(10.0, "canonical"), numbers(99.0, "stretch=2", status="lower_bound")], ax)
    assert "lower bound" in labels(ax)
    (arrow,) = [text for text in ax.texts if text.arrow_patch is not None]
    assert arrow.xy == (2.0, 99.0)


def test_an_unresolved_number_is_drawn_hollow_and_on_top(ax):
    figures.plot_gauge_sweep([numbers(10.0, "canonical"), numbers(50.0, "stretch=2", status="unresolved")], ax)
    (hollow,) = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white"]
    assert hollow.get_xydata().tolist() == [[2.0, 50.0]]
    assert hollow.get_zorder() > max(line.get_zorder() for line in ax.get_lines() if line is not hollow)


def test_a_long_legend_stands_beside_the_data(ax):
    figures.plot_spectra([spectrum(chart=f"chart-{number}") for number in range(7)], ax)
    ax.figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


def test_gauge_sweep_places_uneven_gauges_at_their_median_stretch(ax):
    sweep = [numbers(10.0, "canonical"), numbers(20.0, "stretch=2"), numbers(15.0, "paper")]
    figures.plot_gauge_sweep(sweep, ax, states=[at(GaugeState("weight-norm", "paper", 0.2, 0.4, 0.9, 7))])
    (paper,) = [container for container in ax.containers if container.get_label() == "weight-norm (paper)"]
    assert paper.lines[0].get_data() == ([0.4], [15.0])


def test_conditions_along_training_are_medians_in_the_order_of_steps(ax):
    measured = [
        numbers(kappa * factor, "-", "standard", seed=seed, checkpoint=name, step=step)
        for name, step, kappa in (("late", 90, 5.0), ("init", 0, 100.0), ("early", 9, 30.0))
        for seed, factor in enumerate((1.0, 2.0, 4.0))
    ]
    figures.plot_conditions_along_training(measured, ax)
    (curve,) = ax.containers
    assert curve.lines[0].get_ydata().tolist() == [200.0, 60.0, 10.0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["init\nstep 0", "early\nstep 9", "late\nstep 90"]
    low, high = ax.get_ylim()
    assert high / low >= 10


def test_undefined_numbers_are_left_out_of_the_curve(ax):
    first = numbers(10.0, "-", "standard", checkpoint="init", step=0)
    figures.plot_conditions_along_training([first, numbers(math.nan, "-", "standard", status="undefined")], ax)
    (curve,) = ax.containers
    assert curve.lines[0].get_ydata().tolist() == [10.0]


def test_layers_are_cells_with_their_medians(ax):
    def block(name, kappa, chart, gauge):
        return at(condition_numbers(spectrum([1.0, kappa], chart, gauge, block=name)))

    figures.plot_layers(
        [
            block("0", 10.0, "standard", "-"),
            block("2", 1e4, "standard", "-"),
            block("0", 20.0, "weight-norm", "paper"),
            block("2", 3e4, "weight-norm", "paper"),
        ],
        ax,
    )
    assert [text.get_text() for text in ax.texts] == ["10", "20", "1e4", "3e4"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "2"]
    assert np.allclose(ax.images[0].get_array(), np.log10([[10, 20], [1e4, 3e4]]))


def test_the_number_in_a_cell_can_be_read_whether_the_page_is_light_or_dark(ax):
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    blocks = [("0", 10.0), ("1", 300.0), ("2", 1e4), ("3", 3e5)]
    figures.plot_layers([at(condition_numbers(spectrum([1.0, k], block=name))) for name, k in blocks], ax)
    for text, value in zip(ax.texts, ax.images[0].get_array()[:, 0], strict=True):
        cell, number = luminance(ax.images[0].to_rgba(value)[:3]), luminance(text.get_color())
        assert (max(cell, number) + 0.05) / (min(cell, number) + 0.05) > 4.5
        assert f"fill: {text.get_color()}" in figures.inline_svg(figures.render_svg(ax.figure, "blocks"))


# ------------------------------------------------------------------------------------------------ steps, noise, runs


def step(chart, efficiency, gauge="-", damping=1e-3):
    return StepComparison(chart, gauge, damping, damping / 10, efficiency)


def test_the_league_has_the_best_method_on_top_with_its_interval_and_leaves_out_what_has_no_number(ax):
    shares = {
        "gradient descent": (0.2, 0.3),
        "natural gradient": (1.0, 1.0),
        "Adam": (0.4, 0.8),
        "SOAP": (math.nan,) * 2,
    }
    entries = [
        at(LeagueEntry(name, 1e-3, 0.1, share, 1.0), seed=seed)
        for name, values in shares.items()
        for seed, share in enumerate(values)
    ]
    figures.plot_league(entries, ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["natural gradient", "Adam", "gradient descent"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    adam = ax.containers[1]
    assert adam.lines[0].get_xydata().tolist() == [[pytest.approx(math.sqrt(0.32)), 1]]  # the geometric mean
    half = 12.706204736432095 * math.log(2) / 2  # Student's t at one degree of freedom, and the standard error
    assert adam.lines[2][0].get_segments()[0][:, 0] == pytest.approx([math.sqrt(0.32) * math.exp(-half), 1.0])
    assert ax.get_xscale() == "linear"
    assert set(labels(ax)) == {"gradient descent", "optimizer", "inverts the Fisher or parts of it"}
    small = [at(LeagueEntry(name, 1e-3, 0.1, share, 1.0)) for name, share in (("Adam", 0.01), ("SOAP", 0.9))]
    assert figures.plot_league(small, Figure().subplots()).get_xscale() == "log"


def test_an_interval_beyond_the_logarithmic_axis_of_the_league_ends_in_an_arrow():
    shares = {"Adam": (0.01, 0.03), "SOAP": (0.9, 0.9)}
    entries = [
        at(LeagueEntry(name, 1e-3, 0.1, share, 1.0), seed=seed)
        for name, values in shares.items()
        for seed, share in enumerate(values)
    ]
    ax = figures.plot_league(entries, Figure().subplots())
    arrows = [line for line in ax.get_lines() if line.get_marker() == "<"]
    assert [line.get_xydata().tolist() for line in arrows] == [[[ax.get_xlim()[0], 1.0]]]  # of Adam, below SOAP
    assert figures.league_means(entries)["Adam"].low > 0


def test_efficiency_orders_charts_and_draws_every_seed(ax):
    steps = [
        at(
            step(chart, e + seed / 100, f"relative damping={damping:g}" if chart == "neuron-block" else "-", damping),
            seed=seed,
        )
        for seed in range(3)
        for damping in (1e-3, 1e-1)
        for chart, e in (("neuron-block", 0.7), ("standard", 0.1), ("weight-norm", 0.3))
    ]
    figures.plot_efficiency(steps, ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["standard", "weight-norm", "neuron-block"]
    dots = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert [line.get_xdata().tolist() for line in dots] == [[e, e + 0.01, e + 0.02] for e in (0.1, 0.3, 0.7)]
    assert drawn(ax, "gradient descent").get_xdata()[0] == pytest.approx(0.11)
    assert drawn(ax, "neuron-block").get_xdata()[0] == pytest.approx(0.71)
    assert drawn(ax, "full natural gradient").get_xdata()[0] == 1


def test_small_efficiencies_get_a_logarithmic_scale(ax):
    figures.plot_efficiency([at(step("standard", 1e-3)), at(step("weight-norm", 0.5))], ax)
    assert ax.get_xscale() == "log"


def test_efficiency_against_damping_is_one_line_per_chart(ax):
    steps = [
        at(step(chart, e * (1 + index), f"relative damping={a:g}" if chart == "kfac" else "-", a))
        for chart, e in (("standard", 0.1), ("kfac", 0.3))
        for index, a in enumerate((1e-4, 1e-2))
    ]
    figures.plot_efficiency_damping(steps, ax)
    assert labels(ax) == ["standard", "kfac"]
    assert [c.lines[0].get_ydata().tolist() for c in ax.containers] == [[0.1, 0.2], [0.3, 0.6]]
    assert ax.get_xscale() == "log"


def test_whitening_shows_each_layer_with_its_own_null(ax):
    items = [
        at(Whitening(f"{layer}[{row}]", projection, bures + row / 100, 1.0, 2.0, 5, 10))
        for layer, shift in (("0", 0.0), ("2", 0.3))
        for row in range(3)
        for projection, bures in (("none", 0.5 + shift), ("w", 0.4 + shift), ("random", 0.48 + shift))
    ]
    figures.plot_whitening(items, ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["nothing", "random\n(null)", "w"]
    assert labels(ax) == ["layer 0", "layer 2"]
    null = [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert null == pytest.approx([0.49, 0.79])
    dots = [line.get_ydata() for line in ax.get_lines() if line.get_alpha() == 0.5]
    assert np.allclose(dots[0], [0.5, 0.51, 0.52])


def test_alignment_is_drawn_against_the_random_direction(ax):
    items = [
        at(Alignment(f"0[{row}]", direction, cosine, 1.0, 0.25, 9, 10))
        for row in range(2)
        for direction, cosine in (("mean input", 0.9), ("w", 0.2), ("random", 0.3))
    ]
    figures.plot_alignment(items, ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["w", "random", "mean input"]
    assert {line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"} == {0.25}


def test_training_draws_every_run_and_the_median_of_each_arm(ax):
    steps = np.array([0, 5, 10])
    curves = [
        TrainingCurve(arm, seed, steps, scale * np.array([4.0, 2.0, 1.0]) + seed, np.array([0.1, 0.5, 0.9]))
        for arm, scale in (("standard", 1.0), ("weight-norm", 2.0))
        for seed in range(3)
    ]
    figures.plot_training(curves, ax)
    assert drawn(ax, "standard (median of 3 seeds)").get_ydata().tolist() == [5.0, 3.0, 2.0]
    assert len(ax.get_lines()) == 6 + 2
    assert ax.get_yscale() == "log"
    figures.plot_training(curves, ax, quantity="accuracies")
    assert ax.get_ylabel().startswith("accuracy")
    with pytest.raises(ConfigurationError, match="quantity must be"):
        figures.plot_training(curves, ax, quantity="loss")


def landscape(values, names=("gradient",)):
    """On distances of -2 to 2, with the model ``1 + a + 3 a^2 / 2`` along each direction."""
    distances = np.tile(np.linspace(-2.0, 2.0, 5), (len(names), 1))
    grids = np.meshgrid(*distances, indexing="ij")
    model = 1.0 + sum(a + 1.5 * a**2 for a in grids)
    slopes, curvatures = np.ones(len(names)), 3 * np.eye(len(names))
    return Landscape(Where("ggn", "weight-norm", "paper"), names, distances, values, model, slopes, curvatures)


def test_a_landscape_on_a_line_draws_the_loss_and_its_model_with_gaps_counted(ax):
    values = np.array([math.nan, 3.0, 1.0, 2.0, 5.0])
    figures.plot_landscape(landscape(values), ax)
    drawn = {line.get_label(): line for line in ax.get_lines()}
    assert np.array_equal(drawn["loss"].get_ydata(), values, equal_nan=True)
    model = drawn["quadratic model: slope 1, curvature 3"]
    assert np.allclose(model.get_ydata(), 1 + model.get_xdata() + 1.5 * model.get_xdata() ** 2)
    assert "loss not finite (1 of 5 points)" in drawn
    assert ax.get_ylim()[1] < model.get_ydata().max() <= 9
    assert ax.get_xlabel() == "distance along gradient  (in weight-norm (paper))"
    assert ax.get_title() == "Loss, and its quadratic model by the GGN"


def test_a_landscape_on_a_plane_has_both_at_the_same_levels(ax):
    values = np.add.outer(np.arange(5.0), 10 * np.arange(5.0))
    values[0, 0] = math.nan
    figures.plot_landscape(landscape(values, ("a", "b")), ax)
    loss, model = (part for part in ax.collections if hasattr(part, "levels"))
    assert np.array_equal(loss.levels, model.levels)
    assert (loss.levels[0], loss.levels[-1]) == (1.0, 44.0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("distance along a  (in weight-norm (paper))", "distance along b")
    with pytest.raises(ConfigurationError, match="not finite at any point"):
        figures.plot_landscape(landscape(np.full(5, math.nan)), ax)


@pytest.mark.parametrize(
    ("statuses", "status", "affected"),
    [
        (("resolved",) * 3, "resolved", 0),
        (("resolved", "lower_bound", "resolved"), "lower_bound", 1),
        (("unresolved", "lower_bound", "lower_bound"), "unresolved", 1),
        (("undefined",) * 3, "undefined", 3),
    ],
)
def test_a_spread_carries_the_worst_status(statuses, status, affected):
    found = spread(Quantity(float(index), name) for index, name in enumerate(statuses))
    assert (found.status, found.affected) == (status, affected)
    assert math.isnan(found.median) == (status == "undefined")


# --------------------------------------------------------------------------------------------------- small pictures

HOSTILE = '"><script>alert(1)</script>\x1b[31m\u202e$x^$\udc80\n'


@pytest.mark.parametrize("count", [1, 3, 2000, 20000])
def test_a_figure_in_a_page_is_small_and_the_same_every_time(count):
    record = spectrum(np.geomspace(1e-9, 1, count) * np.where(np.arange(count) % 3, 1, -1), matrix="hessian")
    drawn = picture(record, max_points=80)
    assert len(drawn.encode()) < 50_000
    assert drawn == picture(record, max_points=80)
    assert "http" not in drawn
    assert "<?xml" not in drawn
    root = ElementTree.fromstring(drawn.replace("xlink:href", "href"))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == record.label
    assert root[0].tag == "title"


def test_hostile_names_neither_break_a_picture_nor_become_mathematics(ax):
    record = spectrum(chart=HOSTILE, gauge=HOSTILE, matrix=HOSTILE)
    for drawn in (picture(record), record._repr_html_()):
        assert "<script" not in drawn
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", drawn)
        ElementTree.fromstring(drawn.replace("xlink:href", "href"))
    assert "\x1b" not in figures.text_picture(record)
    figures.plot_spectra([record, spectrum()], ax)
    assert "<script" not in figures.render_svg(ax.figure, HOSTILE).replace(HOSTILE, "")


def test_names_outside_the_font_are_drawn_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "日本" in figures.render_svg(Figure(), "日本")
        assert "日本" in picture(spectrum(chart="日本"))


def test_a_figure_in_a_page_is_ink_on_paper(ax):
    ax.set_axis_off()
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], color="black", marker="o", markerfacecolor="white", markeredgecolor="black")
    text = figures.inline_svg(figures.render_svg(ax.figure, "black and white"))
    assert set(re.findall(r"stroke: ([^;\"]+)", text)) == {"var(--ink)"}
    assert re.search(r"<use [^>]*fill: var\(--paper\); stroke: var\(--ink\)", text)


def test_used_identifiers_stay_and_unused_ones_go(ax):
    text = figures.render_svg(figures.plot_spectrum(spectrum(), ax).figure, "x")
    declared, used = set(re.findall(r' id="([^"]+)"', text)), set(re.findall(r"#([\w.-]+)[\")]", text))
    assert declared
    assert declared == {name for name in used if not re.fullmatch(r"[0-9a-f]{6}", name)}


values = st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=1, max_size=60)


@given(values, st.floats(0, 1), st.sampled_from("█#"))
def test_text_picture_counts_add_up_and_fit_the_terminal(values, floor, bar):
    record = spectrum(values, matrix="hessian", floor=floor)
    decades, hidden = figures.decade_counts(record)
    assert sum(map(sum, decades.values())) + hidden == record.dim
    negative, zero, positive = record.inertia
    assert tuple(map(sum, zip(*decades.values(), strict=True))) in {(negative, positive), ()}
    lines = figures.text_picture(record, bar=bar).splitlines()
    assert max(map(len, lines)) <= 80
    printed = [re.sub(rf"1e[+-]\d+|noise floor.*|{bar}|[.<()]|floor", " ", line).split() for line in lines[1:]]
    assert sum(int(word) for words in printed for word in words) == record.dim
    assert ("< floor" in lines[-1]) == bool(zero)


def test_text_picture_cuts_long_gaps_and_keeps_bars_in_proportion():
    picture = figures.text_picture(spectrum([1e-12, *[1.0] * 10, *[20.0] * 5]), bar="#")
    lines = picture.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1e+01", "1e+00", "...", "1e-12"]
    bars = [line.count("#") for line in lines[1:]]
    assert bars[1] == 2 * bars[0]
    assert bars[3] > 0


def test_printable_leaves_words_alone_and_escapes_what_moves_the_cursor():
    assert printable("Gauß, κ₉₅ 日本") == "Gauß, κ₉₅ 日本"
    assert printable("a\u202eb\x07\udc80") == "a\\u202eb\\x07\\udc80"


@pytest.mark.parametrize("location", ["left", "center"])
def test_a_title_set_afterwards_replaces_ours(ax, location):
    with rc_context({"axes.titlelocation": location}):
        figures.plot_spectrum(spectrum([1e-3, 2.0]), ax)
        ax.set_title("mine")
    titles = [ax.get_title(loc) for loc in ("left", "center", "right")]
    assert sorted(titles) == ["", "", "mine"]
    assert not ax.figure.get_suptitle()


# ------------------------------------------------------------------------------------------------------- histogram


def heights(ax, label):
    """Bars of one legend entry, by the left end of each."""
    (container,) = (bars for bars in ax.containers if bars.get_label().startswith(label))
    return {bar.get_x(): bar.get_height() for bar in container}


def test_a_histogram_counts_every_eigenvalue_once_with_signs_and_null_ones_apart(ax):
    random = np.random.default_rng(0)
    values = np.concatenate([10 ** random.uniform(-4, 1, 40), -(10 ** random.uniform(-3, 0, 25)), np.zeros(7), [1e-18]])
    figures.plot_histogram(spectrum(values, matrix="hessian"), ax)
    assert labels(ax) == ["positive: 40", "negative: 25", "below the noise floor: 8"]
    for label, sign in (("positive", 1), ("negative", -1)):
        bars = heights(ax, label)
        assert sum(bars.values()) == sign * {1: 40, -1: 25}[sign]
        for left, height in bars.items():
            inside = (sign * values >= left * (1 - 1e-9)) & (sign * values < left * 10**0.25 * (1 - 1e-9))
            assert abs(height) == inside.sum()
    ((left, height),) = heights(ax, "below").items()
    assert height == 8
    assert left < min(heights(ax, "positive"))
    assert ax.get_xticklabels()[0].get_text() == "below\n1e-15"


def test_a_histogram_has_a_logarithmic_count_only_where_one_bar_would_flatten_the_rest(ax):
    figures.plot_histogram(spectrum([1e-3, 0.5, 2.0]), ax)
    assert ax.get_yscale() == "linear"
    other = Figure().subplots()
    figures.plot_histogram(spectrum([1e-3, 0.5, *np.zeros(500)]), other)
    assert other.get_yscale() == "symlog"
    assert "log scale" in other.get_ylabel()


def test_a_histogram_of_nothing_but_null_eigenvalues_says_so(ax):
    figures.plot_histogram(spectrum([0.0, 1e-18]), ax)
    assert ax.texts[0].get_text() == "no eigenvalue above the noise floor 1.0e-15"
