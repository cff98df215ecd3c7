"""One look at a model: every number of the table against dense matrices that are computed another way."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.errors import ConfigurationError


def model(normalized=False):
    torch.manual_seed(0)
    first, last = nn.Linear(5, 4), nn.Linear(4, 3)
    return nn.Sequential(weight_norm(first) if normalized else first, nn.Tanh(), last).double()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 5, generator=generator, dtype=torch.float64), torch.arange(40) % 3


@pytest.fixture(scope="module")
def problem(data):
    return cv.Problem.from_module(model(), loss="cross-entropy", data=data)


def double_backward(module, data):
    """Hessian and gradient of the mean loss in the order of the parameters, by plain loops."""
    parameters = list(module.parameters())
    loss = nn.functional.cross_entropy(module(data[0]), data[1])
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in gradient]
    return torch.stack(rows), gradient.detach()


SPANS = {"0": slice(0, 24), "2": slice(24, 39), "all": slice(0, 39)}


def test_rows_are_those_of_the_principal_blocks_of_the_hessian(problem, data):
    hessian, gradient = double_backward(model(), data)
    analysis = cv.analyze(problem, matrix="hessian")
    assert [row.layer for row in analysis.rows] == list(SPANS)
    for row in analysis.rows:
        span = SPANS[row.layer]
        values = torch.linalg.eigvalsh(hessian[span, span]).numpy()
        assert row.num_parameters == len(values)
        assert row.trace.value == pytest.approx(values.sum(), rel=1e-12)
        assert row.largest.value == pytest.approx(values[-1], rel=1e-11)
        assert row.trace.low <= values.sum() <= row.trace.high
        share = float(gradient[span].square().sum() / gradient.square().sum())
        assert row.gradient_share == pytest.approx(share, rel=1e-12)
        if row.layer != "2":  # the last layer of a network is convex
            assert row.smallest.value == pytest.approx(values[0], rel=1e-10)
            assert row.kappa_80.status == "indefinite"
            assert any(
                f"{(values < -1e-12).sum()} of {len(values)} eigenvalues are negative" in w for w in row.warnings
            )


def test_condition_number_and_effective_rank_are_those_of_the_definition(problem):
    analysis = cv.analyze(problem)
    dense = cv.ggn(problem, method="generic").dense().numpy()
    for row in analysis.rows:
        span = SPANS[row.layer]
        values = np.linalg.eigvalsh(dense[span, span])[::-1]
        rank = int((values > 1e-12 * values[0]).sum())
        assert row.kappa_80.value == pytest.approx(values[0] / values[math.ceil(0.8 * rank) - 1], rel=1e-7)
        assert row.smallest.value == pytest.approx(values[rank - 1], rel=1e-5)
        shares = values[:rank] / values[:rank].sum()
        assert row.effective_rank.value == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert any("directions have no curvature" in warning for warning in analysis.whole.warnings)  # the softmax shift


def test_a_normalized_model_is_analyzed_in_its_own_coordinates(data):
    module = model(normalized=True)
    module[0].parametrizations.weight.original1.data *= torch.tensor([1.0, 2.0, 3.0, 40.0])[:, None]
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=data)
    analysis = cv.analyze(problem)
    direct = cv.spectrum(cv.pullback(cv.ggn(problem), problem.chart))
    assert analysis.where == direct.where
    assert analysis.whole.num_parameters == direct.dim == 43
    assert analysis.whole.largest.value == pytest.approx(direct.eigenvalues[-1], rel=1e-13)
    v, g = (module[0].parametrizations.weight.original1.detach(), module[0].parametrizations.weight.original0.detach())
    stretches = (v.norm(dim=1) / g[:, 0].abs()).numpy()
    expected = (stretches.min(), np.median(stretches), stretches.max())
    assert analysis.layers[0].stretches == pytest.approx(expected, rel=1e-12)
    assert analysis.layers[1].stretches is None
    assert any("gauge varies by a factor of 40" in warning for warning in analysis.layers[0].warnings)
    assert cv.analyze(problem, chart=cv.Standard()).whole.num_parameters == 39


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
def test_what_does_not_fit_is_estimated_with_intervals_that_hold(matrix):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=cv.zoo.digits(60))
    exact = cv.analyze(problem, matrix=matrix)
    estimated = cv.analyze(problem, matrix=matrix, max_memory=2.6e7)
    assert estimated.whole.method == "lanczos" != estimated.layers[1].method  # the last layer fits
    for row, truth in zip(estimated.rows, exact.rows, strict=True):
        assert row.trace.low <= truth.trace.value <= row.trace.high
        assert row.largest.low <= truth.largest.value * (1 + 1e-12)
        assert row.gradient_share == pytest.approx(truth.gradient_share, rel=1e-12)
        if row.method == "lanczos":
            assert row.kappa_80.status == row.effective_rank.status == "undefined"
            assert any("too large for every eigenvalue" in warning for warning in row.warnings)


def test_a_layer_without_gradient_is_named(data):
    module = model()
    module[2].weight.data.zero_()
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=data)
    first = cv.analyze(problem).layers[0]
    assert first.gradient_share == 0
    assert first.warnings == (
        "no eigenvalue is above the noise floor: the matrix is zero up to rounding",
        "its gradient is exactly zero",
    )


def test_a_covariance_has_no_share_of_the_gradient_and_an_unknown_matrix_is_refused(problem):
    analysis = cv.analyze(problem, matrix="gradient_covariance")
    assert analysis.where.matrix == "gradient_covariance"
    with pytest.raises(ConfigurationError, match="gnn"):
        cv.analyze(problem, matrix="gnn")


def test_table_frame_and_notebook_say_the_same(problem):
    analysis = cv.analyze(problem)
    frame = analysis.to_dataframe()
    assert list(frame.index) == list(SPANS)
    assert frame.loc["all", "largest"] == analysis.whole.largest.value
    assert set(frame["kappa_80_status"]) == {"resolved"}
    text = str(analysis)
    assert text.splitlines()[0] == analysis.summary
    for row in analysis.rows:
        line = next(line for line in text.splitlines() if line.startswith(f"{row.layer} "))
        assert str(row.kappa_80) in line
        assert str(row.kappa_80) in analysis._repr_html_()
    assert all(warning in text for row in analysis.rows for warning in row.warnings)
    assert repr(analysis) == "Analysis(ggn, standard: 2 layers, 39 parameters)"


def test_figure_has_a_bar_for_each_layer_from_end_to_end(problem):
    analysis = cv.analyze(problem, matrix="hessian")
    ax = cv.figures.plot_analysis(analysis, Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0  (24)", "2  (15)", "all  (39)"]
    spans = {float(line.get_ydata()[0]): sorted(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "--"}
    for y in (0, 2):
        row = analysis.rows[y]
        assert spans[y] == pytest.approx(sorted([-row.smallest.value, row.largest.value]))
    shares = [text.get_text() for text in ax.texts]
    assert shares[-1] == "100 % of gradient"
