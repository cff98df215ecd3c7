r"""Charts: closed forms against automatic and finite differences, and what weight normalization can and cannot change.

Per row ``w = g v / ||v||`` with ``u = v / ||v||``, ``M = I - u u^T``, ``s = ||v||``, ``r`` the weight gradient and
``rho = (g / s)^2``.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm
from torch import nn
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, parametrizations

import curvature as cv
from curvature.charts import Chart, FrozenBatchNorm, sweep
from curvature.charts.batch_norm import Statistics
from curvature.layout import Entry, Layout
from curvature.matrices import MATRICES
from oracles import distance, legacy_weight_norm, normal

SEMIDEFINITE = ("ggn", "fisher", "empirical_fisher", "gradient_covariance")


def eigenvalues(matrix):
    return torch.linalg.eigvalsh(matrix)


# ------------------------------------------------------------------------------------------------ charts to try

# Rows along every axis a norm can keep, one norm for a whole tensor, and parameters that are never normalized.
LAYOUT = Layout(
    (
        Entry("0.bias", (3,), "0", neuron_axis=0),
        Entry("0.weight", (3, 4), "0", neuron_axis=0, normalized=True),
        Entry("1.weight", (2, 3, 2), "1", neuron_axis=0, normalized=True, norm_axis=1),
        Entry("2.weight", (2, 2), "2", neuron_axis=0, normalized=True, norm_axis=None),
        Entry("scale", (), ""),
    )
)
WEIGHTS = normal(torch.Generator().manual_seed(5), LAYOUT.dim)


def positive_rows(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        entry.name: 0.3 + 2 * torch.rand(entry.num_rows, generator=generator, dtype=torch.float64)
        for entry in LAYOUT.entries
        if entry.normalized
    }


def explicit(seed, sign=True):
    """``v`` and ``g`` that reproduce ``WEIGHTS``: random lengths and, with ``sign``, random signs of ``g``."""
    lengths, generator = positive_rows(seed), torch.Generator().manual_seed(seed + 1)
    v, g = {}, {}
    for entry, where in LAYOUT.pairs():
        if not entry.normalized:
            continue
        rows = entry.rows(WEIGHTS[where])
        norms = torch.linalg.vector_norm(rows, dim=1)
        signs = torch.sign(torch.randn(len(rows), generator=generator, dtype=torch.float64)) if sign else 1.0
        g[entry.name] = signs * norms
        v[entry.name] = entry.from_rows((signs * lengths[entry.name] / norms)[:, None] * rows).view(entry.shape)
    return {"v": v, "g": g}


def random_matrix(seed, rows, columns):
    return normal(torch.Generator().manual_seed(seed), rows, columns)


def spd(seed, dim):
    root = random_matrix(seed, dim, dim)
    return root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


def batch_norm(seed):
    r"""Random ``gamma`` and statistics for the layer ``0``, and the coordinates that then reproduce ``WEIGHTS``."""
    generator = torch.Generator().manual_seed(seed)
    mean, deviation, gamma = normal(generator, 3), 0.3 + normal(generator, 3).abs(), normal(generator, 3)
    point = WEIGHTS.clone()
    point[LAYOUT.slices["0.bias"]] += gamma / deviation * mean
    point[LAYOUT.slices["0.weight"]] *= (deviation / gamma).repeat_interleave(4)
    statistics = Statistics("0.weight", "0.bias", mean, deviation)
    return FrozenBatchNorm(torch.cat([point, gamma]), {"0.weight": statistics})


SCRAMBLED = torch.randperm(LAYOUT.dim, generator=torch.Generator().manual_seed(8))
CHARTS = {
    "standard": cv.Standard(),
    "scaled": cv.ScaledStandard(0.3),
    "scaled-paper": cv.ScaledStandard(),
    "scaled-rows": cv.ScaledStandard(positive_rows(1)),
    "diagonal": cv.LinearChart(normal(torch.Generator().manual_seed(6), LAYOUT.dim).abs() + 0.1),
    "dense": cv.LinearChart(random_matrix(7, LAYOUT.dim, LAYOUT.dim)),
    "tall": cv.LinearChart(random_matrix(7, LAYOUT.dim, 5)),
    "wide": cv.LinearChart(random_matrix(7, LAYOUT.dim, LAYOUT.dim + 3)),
    "blocks": cv.LinearChart([(SCRAMBLED[:7], spd(1, 7)), (SCRAMBLED[9:14], spd(2, 5))]),
    "blocks-of-both-signs": cv.LinearChart([(SCRAMBLED[:7], spd(1, 7) - 0.8 * torch.eye(7, dtype=torch.float64))]),
    "singular-block": cv.LinearChart([(SCRAMBLED[:7], random_matrix(4, 7, 3) @ random_matrix(4, 7, 3).T)]),
    "shared-blocks": cv.LinearChart([(SCRAMBLED[:12].view(3, 4), spd(3, 4)), (SCRAMBLED[12:18], spd(2, 6))]),
    "shared-singular-block": cv.LinearChart([(SCRAMBLED[:12].view(3, 4), torch.ones(4, 4, dtype=torch.float64))]),
    "signed-diagonal": cv.LinearChart(normal(torch.Generator().manual_seed(6), LAYOUT.dim)),
    "canonical": cv.WeightNorm(),
    "stretch": cv.WeightNorm(stretch=3.0),
    "paper": cv.WeightNorm("paper"),
    "rows": cv.WeightNorm(stretch=positive_rows(2)),
    "explicit": cv.WeightNorm(**explicit(3)),
    "log-scale": cv.WeightNorm(stretch=0.4, log_scale=True),
    "log-scale-explicit": cv.WeightNorm(**explicit(3, sign=False), log_scale=True),
    "one-layer": cv.WeightNorm(stretch=2.0, layers=r"^0\."),
    "placebo": cv.Placebo(stretch=2.0),
    "placebo-log-scale": cv.Placebo("paper", log_scale=True, seed=3),
    "placebo-explicit": cv.Placebo(v=explicit(9)["v"], g=explicit(3)["g"]),
    "batch-norm": batch_norm(4),
    "sphere": cv.Sphere(),
    "sphere-of-a-radius": cv.Sphere(radius=1.5, stretch=2.0),
    "sphere-per-matrix": cv.Sphere(per="matrix"),
    "factorization": cv.RandomWeightFactorization(),
    "factorization-log-scale": cv.RandomWeightFactorization(scale=0.6, log_scale=True),
    "factorization-frozen": cv.RandomWeightFactorization(scale=positive_rows(1), frozen=("s",)),
    "factorization-frozen-v": cv.RandomWeightFactorization(frozen=("v",)),
    "standardization": cv.WeightStandardization(stretch=3.0),
    "standardization-frozen": cv.WeightStandardization(frozen=("g",)),
    "spectral": cv.SpectralNorm(stretch=2.0),
    "spectral-with-gain": cv.SpectralNorm(frozen=()),
    "block-scale-ntk": cv.BlockScale("ntk"),
    "block-scale-mup": cv.BlockScale("mup"),
    "block-scale": cv.BlockScale({"bias": 0.3, "1": 2.0}),
    "lora": cv.LoRA(2, alpha=3),
    "lora-pissa": cv.LoRA(2, init="pissa"),
    "lora-of-more-than-full-rank": cv.LoRA(4, init="pissa"),
    "lora-frozen": cv.LoRA(2, init="pissa", frozen=("a",)),
    "dora": cv.DoRA(2, alpha=3),
    "dora-pissa": cv.DoRA(2, alpha=3, init="pissa"),
    "dora-of-columns": cv.DoRA(2, init="pissa", dim=1),
    "dora-frozen": cv.DoRA(2, init="pissa", frozen=("g",)),
    "deep-linear": cv.DeepLinear(),
    "deep-linear-narrow": cv.DeepLinear(1),
    "deep-linear-wide": cv.DeepLinear(5),
    "weight-norm-frozen": cv.WeightNorm(stretch=3.0).freeze("g"),
    "weight-norm-frozen-layer": cv.WeightNorm(stretch=3.0).freeze("1"),
    "standard-frozen": cv.Standard().freeze("0.bias"),
}
PISSA = {"rank": 2, "init": "pissa"}
# Charts some of whose coordinates are frozen, and whether what remains is affine.
FROZEN = [
    (cv.WeightNorm(stretch=2.0).freeze("v"), True),
    (cv.WeightNorm(stretch=2.0).freeze("g"), False),
    (cv.WeightNorm(log_scale=True).freeze("v"), False),
    (cv.WeightNorm().freeze("0.weight.v"), False),
    (cv.WeightNorm(layers="^[01]").freeze("0.weight.v"), False),
    (cv.WeightNorm(layers="^[01]").freeze("0.weight.v").freeze("1.weight.v"), True),
    (cv.WeightNorm(layers="^0").freeze("0.weight.v"), True),
    (cv.WeightNorm(log_scale=True, layers="^0").freeze("^0.weight"), True),
    (cv.Placebo().freeze("v"), True),
    (batch_norm(4).freeze("gamma"), True),
    (batch_norm(4).freeze("0.weight"), True),
    (batch_norm(4).freeze("0.bias"), False),
    (cv.Sphere().freeze("0"), False),
    (cv.RandomWeightFactorization(log_scale=True).freeze("t"), True),
    (cv.RandomWeightFactorization(log_scale=True).freeze("v"), False),
    (cv.RandomWeightFactorization().freeze(r"\.v$"), True),
    (cv.WeightStandardization(frozen=("v",)), True),
    (cv.SpectralNorm(frozen=("v",)), True),
    (cv.LoRA(**PISSA, frozen=("b",)), True),
    (cv.LoRA(**PISSA).freeze("0.weight.a"), False),
    (cv.LoRA(**PISSA).freeze("0.weight.a").freeze("1.weight.b").freeze("2.weight.a"), True),
    (cv.DoRA(**PISSA, frozen=("a", "b")), True),
    (cv.DoRA(**PISSA, frozen=("g", "a")), False),
    (cv.DeepLinear(frozen=("w1",)), True),
    (cv.Standard().freeze("0.bias"), True),
]
NORMED = [name for name in CHARTS if isinstance(CHARTS[name], cv.WeightNorm)]


@pytest.fixture(params=CHARTS)
def chart(request):
    parameterization = CHARTS[request.param]
    return parameterization.at(LAYOUT, parameterization.nearest(LAYOUT, WEIGHTS))


def test_every_chart_and_parameterization_prints_in_one_line_and_says_its_gauge():
    shown = {name: (repr(CHARTS[name]), CHARTS[name].label) for name in CHARTS}
    assert shown["standard"] == ("Standard()", "standard")
    assert shown["scaled-paper"] == ("ScaledStandard('paper')", "scaled-standard (paper)")
    assert shown["blocks"] == ("LinearChart(linear)", "linear")
    assert shown["log-scale"] == ("WeightNorm('stretch=0.4, g = exp(s)')", "weight-norm (stretch=0.4, g = exp(s))")
    assert shown["placebo"] == ("Placebo('stretch=2')", "placebo (stretch=2)")
    assert shown["batch-norm"][1] == "batch-norm (population statistics, frozen)"
    assert repr(cv.Placebo("paper", name="top")) == "Placebo('paper', name='top')"
    assert repr(cv.LinearChart(torch.ones(2), name="jacobi", gauge="damping=1")) == "LinearChart(jacobi (damping=1))"
    for name, parameterization in CHARTS.items():
        chart = parameterization.at(LAYOUT, parameterization.nearest(LAYOUT, WEIGHTS))
        assert chart.label == parameterization.label, name
        assert repr(chart) == f"Chart({parameterization.label}, {chart.dim} coordinates)"


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_passes_through_the_point(name):
    point = CHARTS[name].nearest(LAYOUT, WEIGHTS)
    chart = CHARTS[name].at(LAYOUT, point)
    assert distance(chart.to_weights(chart.coordinates), point) < 1e-14
    assert chart.dim == chart.layout.dim == len(chart.coordinates)


def test_push_and_pull_are_the_jacobian_of_the_map(chart, generator):
    tangents, cotangents = normal(generator, chart.dim, 3), normal(generator, LAYOUT.dim, 3)
    jacobian = torch.autograd.functional.jacobian(chart.to_weights, chart.coordinates)
    assert distance(chart.push(tangents), jacobian @ tangents) < 1e-13
    assert distance(chart.pull(cotangents), jacobian.T @ cotangents) < 1e-13


def test_linearizing_at_other_coordinates_is_the_map_and_its_transposed_jacobian_there(chart, generator):
    theta, cotangent = chart.coordinates + 0.1 * normal(generator, chart.dim), normal(generator, LAYOUT.dim)
    jacobian = torch.autograd.functional.jacobian(chart.to_weights, theta)
    with torch.no_grad():
        weights, pull = chart.linearize(theta)
        assert distance(weights, chart.to_weights(theta)) < 1e-14
        assert distance(pull(cotangent), jacobian.T @ cotangent) < 1e-13


def test_closed_forms_equal_the_defaults_by_torch_func(chart, generator):
    tangents, cotangents = normal(generator, chart.dim, 3), normal(generator, LAYOUT.dim, 3)
    assert distance(chart.push(tangents), Chart.push(chart, tangents)) < 1e-13
    assert distance(chart.pull(cotangents), Chart.pull(chart, cotangents)) < 1e-13
    assert distance(chart.metric_root(cotangents), Chart.metric_root(chart, cotangents)) < 1e-12
    assert distance(chart.metric(cotangents), Chart.metric(chart, cotangents)) < 1e-12
    assert distance(chart.horizontal(cotangents), Chart.horizontal(chart, cotangents)) < 1e-12
    assert distance(chart.horizontal_transpose(tangents), Chart.horizontal_transpose(chart, tangents)) < 1e-12
    assert chart.null_dim == Chart.null_dim.fget(chart)


def test_closed_second_order_equals_the_default_by_torch_func(chart, generator):
    slope, tangents = normal(generator, LAYOUT.dim), normal(generator, chart.dim, 3)
    product, matrix = Chart.second_order_product(chart, slope, tangents), Chart.second_order(chart, slope)
    assert torch.linalg.norm(chart.second_order_product(slope, tangents) - product) < 1e-13 * (1 + product.norm())
    assert torch.linalg.norm(chart.second_order(slope) - matrix) < 1e-13 * (1 + matrix.norm())


def test_second_order_is_the_second_derivative_of_the_map(chart, generator):
    slope = normal(generator, LAYOUT.dim)
    expected = torch.autograd.functional.hessian(lambda theta: chart.to_weights(theta) @ slope, chart.coordinates)
    found = chart.second_order(slope)
    assert torch.linalg.norm(found - expected) < 1e-12 * (1 + torch.linalg.norm(expected))
    assert chart.flat is not bool(expected.abs().max() > 1e-12)


@pytest.mark.parametrize(("parameterization", "flat"), FROZEN, ids=lambda value: getattr(value, "label", ""))
def test_a_frozen_chart_is_flat_exactly_where_double_backward_finds_no_second_derivative(
    parameterization, flat, generator
):
    chart = parameterization.at(LAYOUT, parameterization.nearest(LAYOUT, WEIGHTS))
    slope = normal(generator, LAYOUT.dim)
    bent = torch.autograd.functional.hessian(lambda theta: chart.to_weights(theta) @ slope, chart.coordinates)
    assert chart.flat is flat
    assert bool(bent.abs().max() < 1e-13) is flat


def test_differences_of_the_map_approach_its_derivatives(chart, generator):
    """Central differences: error about ``h^2`` against rounding about ``1e-16 / h``."""
    tangent, slope, h = normal(generator, chart.dim), normal(generator, LAYOUT.dim), 1e-5
    h = h * float(torch.linalg.norm(chart.coordinates).clamp(min=1.0)) / float(torch.linalg.norm(tangent))
    ahead, behind = chart.coordinates + h * tangent, chart.coordinates - h * tangent
    first = (chart.to_weights(ahead) - chart.to_weights(behind)) / (2 * h)
    assert distance(chart.push(tangent[:, None])[:, 0], first) < 1e-6

    def pulled(theta):
        return torch.func.vjp(chart.to_weights, theta)[1](slope)[0]

    second = (pulled(ahead) - pulled(behind)) / (2 * h)
    found = chart.second_order_product(slope, tangent[:, None])[:, 0]
    assert torch.linalg.norm(found - second) < 1e-5 * (1 + torch.linalg.norm(second))


def test_metric_is_j_j_transposed_and_its_root_is_semidefinite(chart):
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    jacobian = chart.push(torch.eye(chart.dim, dtype=torch.float64))
    root = chart.metric_root(identity)
    assert distance(chart.metric(identity), jacobian @ jacobian.T) < 1e-12
    assert distance(root, root.T) < 1e-13
    assert eigenvalues(root)[0] > -1e-12 * eigenvalues(root)[-1]


def test_horizontal_is_the_orthogonal_factor_of_the_jacobian(chart):
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    jacobian = chart.push(torch.eye(chart.dim, dtype=torch.float64))
    across = chart.horizontal(identity)
    assert distance(chart.metric_root(across.T), jacobian) < 1e-12  # J = K^(1/2) O
    rank = int(torch.linalg.matrix_rank(jacobian))
    assert rank == chart.dim - chart.null_dim
    assert distance(eigenvalues(across @ across.T).sum(), torch.tensor(float(rank))) < 1e-12
    assert distance(across @ across.T @ across, across) < 1e-12
    assert distance(chart.horizontal_transpose(across), across.T @ across) < 1e-12


@pytest.mark.parametrize("cache_bytes", [1, sweep._CACHE_BYTES])
def test_a_matrix_moves_as_its_definition_says(chart, cache_bytes, generator, monkeypatch):
    """Against products with explicit Jacobians; a tiny cache sends every row through the sweep on its own."""
    monkeypatch.setattr(sweep, "_CACHE_BYTES", cache_bytes)
    matrix, slope = random_matrix(5, LAYOUT.dim, LAYOUT.dim), normal(generator, LAYOUT.dim)
    matrix = matrix + matrix.T
    kept = matrix.clone()
    jacobian = chart.push(torch.eye(chart.dim, dtype=torch.float64))
    pulled = jacobian.T @ matrix @ jacobian
    assert distance(chart.pulled_back(matrix), pulled) < 1e-14
    assert distance(chart.pulled_back(matrix, slope), pulled + chart.second_order(slope)) < 1e-14
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    root, across = chart.metric_root(identity), chart.horizontal(identity)
    assert distance(chart.effective(matrix), root @ matrix @ root) < 1e-13
    bent = root @ matrix @ root + across.T @ chart.second_order(slope) @ across
    assert distance(chart.effective(matrix, slope), bent) < 1e-13
    assert torch.equal(matrix, kept)


CONTIGUOUS = Layout(tuple(entry for entry in LAYOUT.entries if entry.norm_axis != 1))


@pytest.mark.parametrize("cache_bytes", [1, sweep._CACHE_BYTES])
@pytest.mark.parametrize("name", NORMED)
def test_the_sweep_over_contiguous_rows_gives_the_same_matrix_exactly_symmetric(name, cache_bytes, monkeypatch):
    monkeypatch.setattr(sweep, "_CACHE_BYTES", cache_bytes)
    chart = CHARTS[name].at(CONTIGUOUS, torch.cat([WEIGHTS[LAYOUT.slices[e.name]] for e in CONTIGUOUS.entries]))
    assert chart._row_maps(effective=False) is not None
    matrix, slope = random_matrix(5, CONTIGUOUS.dim, CONTIGUOUS.dim), random_matrix(6, CONTIGUOUS.dim, 1)[:, 0]
    matrix = matrix + matrix.T
    for gradient in (None, slope):
        for move in ("pulled_back", "effective"):
            found, expected = getattr(chart, move)(matrix, gradient), getattr(Chart, move)(chart, matrix, gradient)
            assert torch.equal(found, found.T)
            assert distance(found, expected) < 1e-14


# ------------------------------------------------------------------------------------------------ weight normalization


@pytest.mark.parametrize("name", NORMED)
def test_metric_of_weight_norm_is_radial_plus_rho_times_tangential(name):
    chart = CHARTS[name].at(LAYOUT, WEIGHTS)
    metric = chart.metric(torch.eye(LAYOUT.dim, dtype=torch.float64))
    expected = torch.eye(LAYOUT.dim, dtype=torch.float64)
    for entry, where in LAYOUT.pairs():
        if f"{entry.name}.g" not in chart.layout.slices:
            continue
        g = chart.coordinates[chart.layout.slices[f"{entry.name}.g"]]
        v = entry.rows(chart.coordinates[chart.layout.slices[f"{entry.name}.v"]])
        radial = g.exp() ** 2 if chart.log_scale else torch.ones_like(g)  # dw/ds = g u
        g = g.exp() if chart.log_scale else g
        places = entry.rows(torch.arange(LAYOUT.dim)[where])
        for row, place in enumerate(places):
            u = v[row] / v[row].norm()
            rho = (g[row] / v[row].norm()) ** 2
            across = torch.eye(len(u), dtype=torch.float64) - torch.outer(u, u)
            expected[place[:, None], place] = radial[row] * torch.outer(u, u) + rho * across
    assert distance(metric, expected) < 1e-13


@pytest.mark.parametrize(
    ("parameterization", "length"),
    [
        (cv.WeightNorm(), lambda norm, _: norm),
        (cv.WeightNorm("canonical"), lambda norm, _: norm),
        (cv.WeightNorm(stretch=3.0), lambda norm, _: 3.0 * norm),
        (cv.WeightNorm("paper"), lambda norm, fan_in: torch.full_like(norm, 0.05 * math.sqrt(fan_in))),
    ],
)
def test_gauge_sets_the_length_of_v(parameterization, length):
    chart = parameterization.at(LAYOUT, WEIGHTS)
    for entry, where in LAYOUT.pairs():
        if entry.normalized:
            rows = entry.rows(WEIGHTS[where])
            norms = torch.linalg.vector_norm(rows, dim=1)
            v = entry.rows(chart.coordinates[chart.layout.slices[f"{entry.name}.v"]])
            g = chart.coordinates[chart.layout.slices[f"{entry.name}.g"]]
            assert torch.allclose(g, norms, rtol=1e-14)
            assert torch.allclose(torch.linalg.vector_norm(v, dim=1), length(norms, rows.shape[1]), rtol=1e-14)


def test_stretch_per_row_and_log_scale_set_v_and_g_row_by_row():
    stretch = positive_rows(2)
    chart = cv.WeightNorm(stretch=stretch, log_scale=True).at(LAYOUT, WEIGHTS)
    for entry, where in LAYOUT.pairs():
        if entry.normalized:
            norms = torch.linalg.vector_norm(entry.rows(WEIGHTS[where]), dim=1)
            v = entry.rows(chart.coordinates[chart.layout.slices[f"{entry.name}.v"]])
            assert torch.allclose(chart.coordinates[chart.layout.slices[f"{entry.name}.g"]], norms.log(), rtol=1e-14)
            assert torch.allclose(torch.linalg.vector_norm(v, dim=1), stretch[entry.name] * norms, rtol=1e-14)


def test_explicit_v_and_g_are_the_coordinates():
    given_point = explicit(3)
    chart = cv.WeightNorm(**given_point).at(LAYOUT, WEIGHTS)
    named = chart.layout.unflatten(chart.coordinates)
    assert any((g < 0).any() for g in given_point["g"].values())
    for name, v in given_point["v"].items():
        assert torch.allclose(named[f"{name}.v"], v, rtol=1e-14)
        assert torch.allclose(named[f"{name}.g"], given_point["g"][name], rtol=1e-14)


def test_scaled_standard_is_the_baseline_of_the_paper():
    """Rows of ``theta`` have norm ``0.05 sqrt(fan-in)``, and ``K = gamma^2 I`` on them."""
    chart = cv.ScaledStandard().at(LAYOUT, WEIGHTS)
    for entry, where in LAYOUT.pairs():
        theta = chart.coordinates[where]
        if not entry.normalized:
            assert torch.equal(theta, WEIGHTS[where])
            continue
        rows, weights = entry.rows(theta), entry.rows(WEIGHTS[where])
        wanted = torch.full((len(rows),), 0.05 * math.sqrt(rows.shape[1]), dtype=torch.float64)
        assert torch.allclose(torch.linalg.vector_norm(rows, dim=1), wanted, rtol=1e-14)
        gamma = torch.linalg.vector_norm(weights, dim=1) / wanted
        metric = chart.metric(torch.eye(LAYOUT.dim, dtype=torch.float64))[where, where]
        assert distance(entry.rows(metric.diagonal()), (gamma**2)[:, None].expand_as(rows)) < 1e-14
    assert torch.equal(cv.ScaledStandard(0.25).at(LAYOUT, WEIGHTS).coordinates[3:15], WEIGHTS[3:15] / 0.25)


@pytest.mark.parametrize(
    "factor", ["diagonal", "signed-diagonal", "dense", "tall", "wide", "blocks", "singular-block", "shared-blocks"]
)
def test_linear_chart_is_its_matrix(factor):
    parameterization = CHARTS[factor]
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    if factor.endswith("diagonal"):
        expected = torch.diag(parameterization.factor)
    elif "block" in factor:
        expected = identity.clone()
        for rows, block in parameterization.factor:
            for indices in rows.view(-1, len(block)):
                expected[indices[:, None], indices] = block
    else:
        expected = parameterization.factor
    chart = parameterization.at(LAYOUT, WEIGHTS)
    assert not chart.coordinates.any()
    assert distance(chart.push(torch.eye(chart.dim, dtype=torch.float64)), expected) < 1e-15
    assert distance(chart.pull(identity), expected.T) < 1e-15


def test_frozen_batch_norm_has_its_metric_on_paper():
    """Per neuron ``K = (gamma/sigma)^2 I_w + I_b + (w, -mu)(w, -mu)^T / sigma^2`` with the coordinate ``w``."""
    parameterization = batch_norm(4)
    chart, found = parameterization.at(LAYOUT, WEIGHTS), parameterization.statistics["0.weight"]
    parts = chart.layout.unflatten(chart.coordinates)
    metric = chart.metric(torch.eye(LAYOUT.dim, dtype=torch.float64))
    for neuron in range(3):
        where = [3 + 4 * neuron + column for column in range(4)] + [neuron]
        gamma, sigma = parts["0.weight.gamma"][neuron], found.deviation[neuron]
        along = torch.cat([parts["0.weight"][neuron], -found.mean[[neuron]]])
        flat = torch.diag(torch.cat([(gamma / sigma).pow(2).expand(4), torch.ones(1, dtype=torch.float64)]))
        assert distance(metric[where][:, where], flat + torch.outer(along, along) / sigma**2) < 1e-12
    assert chart.null_dim == 3


def test_a_frozen_batch_norm_of_other_weights_is_refused():
    with pytest.raises(cv.ConfigurationError, match="do not reproduce the weights"):
        batch_norm(4).at(LAYOUT, WEIGHTS + 1)


def test_explicit_directions_of_a_placebo_are_given_once():
    with pytest.raises(cv.ConfigurationError, match="one of directions and explicit v and g"):
        cv.Placebo(**explicit(3), directions=explicit(3)["v"])


def test_placebo_shares_rho_with_weight_norm_but_not_the_direction():
    gauge = {"stretch": 2.0}
    true, placebo = cv.WeightNorm(**gauge).at(LAYOUT, WEIGHTS), cv.Placebo(**gauge, seed=1).at(LAYOUT, WEIGHTS)
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    assert distance(eigenvalues(placebo.metric(identity)), eigenvalues(true.metric(identity))) < 1e-13
    for entry, where in LAYOUT.pairs():
        if entry.normalized:
            where_v = placebo.layout.slices[f"{entry.name}.v"]
            v, w = entry.rows(placebo.coordinates[where_v]), entry.rows(WEIGHTS[where])
            assert (functional.cosine_similarity(v, w).abs() < 0.999).all()
            lengths = torch.linalg.vector_norm(v, dim=1)
            assert torch.allclose(lengths, torch.linalg.vector_norm(entry.rows(true.coordinates[where_v]), dim=1))


def test_placebo_direction_depends_on_the_seed_alone():
    def at(seed, weights=WEIGHTS):
        chart = cv.Placebo(seed=seed).at(LAYOUT, weights)
        return functional.normalize(chart.layout.unflatten(chart.coordinates)["0.weight.v"])

    assert torch.equal(at(1), at(1))
    assert torch.allclose(at(1), at(1, weights=2 * WEIGHTS + 1), rtol=1e-14)
    assert not torch.allclose(at(1), at(2))


def test_placebo_takes_given_directions():
    directions = {entry.name: torch.ones(entry.shape) for entry in LAYOUT.entries if entry.normalized}
    chart = cv.Placebo(directions=directions, name="ones").at(LAYOUT, WEIGHTS)
    v = LAYOUT.entries[1].rows(chart.coordinates[chart.layout.slices["0.weight.v"]])
    assert chart.name == "ones"
    assert torch.allclose(v / v[:, :1], torch.ones_like(v))
    assert distance(chart.to_weights(chart.coordinates), WEIGHTS) < 1e-14


# ------------------------------------------------------------------------------------------------ a user's own chart


class Softplus(cv.Parameterization):
    name = "softplus"
    gauge = "mine"

    def to_weights(self, coordinates):
        return functional.softplus(coordinates) - 5.0

    def from_weights(self, weights):
        return torch.log(torch.expm1(weights + 5.0))


def test_a_users_chart_is_differentiated_by_torch_func(mlp, classification_data):
    data = classification_data(6, 3, 3)
    problem = cv.Problem.from_module(mlp(3, 4, 3), loss="cross-entropy", data=data)
    theta = Softplus().from_weights(problem.weights)

    def loss(coordinates):
        return functional.cross_entropy(problem.predict(Softplus().to_weights(coordinates), data[0]), data[1])

    moved = cv.pullback(cv.hessian(problem), Softplus())
    assert (moved.where.chart, moved.where.gauge) == ("softplus", "mine")
    assert distance(moved.dense(), torch.autograd.functional.hessian(loss, theta)) < 1e-12
    assert distance(moved.facts.gradient(), torch.autograd.functional.jacobian(loss, theta)) < 1e-12


class Rotation(cv.Parameterization):
    name = "rotation"

    def __init__(self, matrix):
        self.matrix = matrix

    def to_weights(self, coordinates):
        return self.matrix @ coordinates

    def from_weights(self, weights):
        return self.matrix.T @ weights


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_a_users_linear_chart_moves_the_matrices(name, classifier):
    rotation = torch.linalg.qr(random_matrix(3, classifier.dim, classifier.dim)).Q
    operator = MATRICES[name](classifier)
    found, expected = cv.pullback(operator, Rotation(rotation)), rotation.T @ operator.dense() @ rotation
    assert distance(found.dense(), expected) < 1e-13
    assert distance(found @ expected[:, :3], expected @ expected[:, :3]) < 1e-12
    assert distance(found @ expected[:, 0], expected @ expected[:, 0]) < 1e-12
    assert distance(cv.effective(operator, Rotation(rotation)).dense(), operator.dense()) < 1e-12


def test_a_moved_chart_has_the_given_coordinates(chart, generator):
    """What training reaches: other coordinates in the same parameterization, at the weights they map to."""
    theta = chart.coordinates + 0.1 * normal(generator, chart.dim)
    moved = chart.moved(theta)
    found = moved.at(LAYOUT, chart.to_weights(theta))
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(chart.to_weights, theta)
    assert distance(found.to_weights(found.coordinates), chart.to_weights(theta)) < 1e-14
    assert distance(found.metric(identity), jacobian @ jacobian.T) < 1e-12
    if not isinstance(moved, cv.LinearChart):  # whose coordinates are zero at every point
        assert distance(found.coordinates, theta) < 1e-14


class Misses(Softplus):
    def from_weights(self, weights):
        return super().from_weights(weights) + 1e-6


class Shapeless(Softplus):
    def from_weights(self, weights):
        return weights[None]


class Short(Softplus):
    def to_weights(self, coordinates):
        return coordinates[1:]


def test_a_users_chart_that_misses_the_point_is_refused():
    with pytest.raises(cv.SelfCheckError, match=r"softplus: to_weights\(from_weights\(w\)\) differs from w by"):
        Misses().at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.InputError, match="from_weights of softplus must return a vector"):
        Shapeless().at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.InputError, match=rf"must return shape \({LAYOUT.dim},\), got \({LAYOUT.dim - 1},\)"):
        Short().at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.SelfCheckError, match="differs from w by nan"):
        Softplus().at(LAYOUT, WEIGHTS - 10.0)  # the logarithm of a negative number


def test_polar_factors_survive_a_failure_of_divide_and_conquer(monkeypatch):
    class Square(cv.Parameterization):
        name = "square"

        def to_weights(self, coordinates):
            return coordinates**2

        def from_weights(self, weights):
            return weights.sqrt()

    problem = cv.zoo.linear_regression(num_examples=20, dim=4)
    problem = problem.at(problem.weights.abs() + 0.1)

    def fails(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    chart = Square().at(problem.layout, problem.weights)
    block = torch.eye(4, dtype=torch.float64)
    jacobian = chart.push(block).numpy()
    root = sqrtm(jacobian @ jacobian.T)
    assert torch.allclose(chart.metric_root(block), torch.from_numpy(root), rtol=1e-12)
    assert chart.null_dim == 0


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cv.WeightNorm("weird"), "gauge must be 'canonical' or 'paper' .* got 'weird'"),
        (lambda: cv.WeightNorm(stretch=0.0), r"stretch = \|\|v\|\| / \|g\| must be a positive number, got 0.0"),
        (lambda: cv.WeightNorm(stretch=-1), "must be a positive number, got -1"),
        (lambda: cv.WeightNorm(stretch=math.nan), "must be a positive number, got nan"),
        (lambda: cv.WeightNorm(stretch=math.inf), "must be a positive number, got inf"),
        (lambda: cv.WeightNorm("paper", stretch=2.0), "choose one of gauge, stretch, or explicit v and g"),
        (lambda: cv.WeightNorm("paper", **explicit(0)), "choose one of gauge, stretch, or explicit v and g"),
        (lambda: cv.WeightNorm(v={}), "needs both v and g"),
        (lambda: cv.WeightNorm(g={}), "needs both v and g"),
        (lambda: cv.ScaledStandard(0.0), "scale must be a positive number, got 0.0"),
        (lambda: cv.ScaledStandard(-2), "scale must be a positive number, got -2"),
        (lambda: cv.ScaledStandard(math.nan), "scale must be a positive number, got nan"),
    ],
)
def test_impossible_gauges_are_refused(build, message):
    with pytest.raises(cv.ConfigurationError, match=message):
        build()


def changed(values, name, value):
    return values | {name: value}


@pytest.mark.parametrize(
    ("parameterization", "message"),
    [
        (
            cv.WeightNorm(layers="conv"),
            r"applies to no weight here \(layers='conv'\); the parameters are 0\.bias, 0\.weight",
        ),
        (
            cv.WeightNorm(stretch={"0.weight": torch.ones(3)}),
            "stretch for '1.weight' must hold 3 row values",
        ),
        (
            cv.WeightNorm(stretch=changed(positive_rows(0), "0.weight", torch.ones(4))),
            "'0.weight' must hold 3 row values",
        ),
        (
            cv.WeightNorm(stretch=changed(positive_rows(0), "0.weight", torch.tensor([1.0, 0.0, 1.0]))),
            "stretch for '0.weight' must be positive and finite",
        ),
        (
            cv.WeightNorm(stretch=changed(positive_rows(0), "0.weight", torch.tensor([1.0, torch.inf, 1.0]))),
            "stretch for '0.weight' must be positive and finite",
        ),
        (cv.ScaledStandard({}), "scale for '0.weight' must hold 3 row values"),
        (
            cv.WeightNorm(v=explicit(0)["v"], g=changed(explicit(0)["g"], "0.weight", torch.ones(3))),
            "the v and g given for '0.weight' do not reproduce its weights",
        ),
        (
            cv.WeightNorm(v=explicit(0)["v"], g=changed(explicit(0)["g"], "0.weight", torch.ones(2))),
            r"'0.weight' needs v of shape \(3, 4\) and g with 3 entries, got \(3, 4\) and \(2,\)",
        ),
        (
            cv.WeightNorm(v=changed(explicit(0)["v"], "0.weight", torch.ones(4, 3)), g=explicit(0)["g"]),
            r"'0.weight' needs v of shape \(3, 4\) and g with 3 entries, got \(4, 3\)",
        ),
        (
            cv.WeightNorm(**explicit(3), log_scale=True),
            r"g = exp\(s\) needs positive g; row \d of '\d.weight' has g = -",
        ),
        (cv.LinearChart(torch.ones(3)), rf"factor of linear must have {LAYOUT.dim} rows, got shape \(3,\)"),
        (cv.LinearChart(torch.ones(3, 3)), rf"factor of linear must have {LAYOUT.dim} rows, got shape \(3, 3\)"),
        (
            cv.LinearChart([(torch.arange(2), torch.ones(3, 3))]),
            "block of linear must be symmetric and square of size 2",
        ),
        (
            cv.LinearChart([(torch.arange(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))]),
            "block of linear must be symmetric and square of size 2",
        ),
    ],
)
def test_charts_that_do_not_fit_the_layout_are_refused(parameterization, message):
    with pytest.raises(cv.ConfigurationError, match=message):
        parameterization.at(LAYOUT, WEIGHTS)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ({"0.weight": torch.eye(12)}, r"is a mapping of '0.weight'.* problem.layout.slices\[name\]"),
        ({}, "is a mapping of nothing"),
        ("diagonal", "got str with str"),
        (0.5, "got float with float"),
        ([torch.eye(2)], "got list with Tensor"),
        ([(torch.arange(2), [[1.0, 0.0], [0.0, 1.0]])], "got list with tuple"),
        ([(torch.arange(2), torch.eye(2), torch.eye(2))], "got list with tuple"),
        ([("0.weight", torch.eye(2))], "got list with tuple"),
    ],
)
def test_what_is_no_factor_of_a_linear_chart_is_refused_with_what_is(factor, words):
    with pytest.raises(cv.ConfigurationError, match=words) as caught:
        cv.LinearChart(factor, name="mine")
    assert "the factor of mine" in str(caught.value)
    assert "a vector, a matrix (P, Q), or a list of (indices, block) pairs of tensors" in str(caught.value)


@pytest.mark.parametrize("block", [torch.eye(2, dtype=torch.int64), torch.eye(2, dtype=torch.complex64)])
def test_a_factor_that_is_not_of_real_numbers_is_refused_with_its_type(block):
    for factor in (block, [(torch.arange(2), block)]):
        with pytest.raises(cv.ConfigurationError, match=f"the factor of linear has type {block.dtype}, but"):
            cv.LinearChart(factor)


OVERLAPPING = [(torch.arange(3), spd(1, 3)), (torch.arange(2, 4), spd(2, 2))]  # both cover coordinate 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: cv.LinearChart(torch.full((LAYOUT.dim,), torch.nan)),
        lambda: cv.LinearChart([(torch.arange(2), torch.full((2, 2), torch.nan, dtype=torch.float64))]),
        lambda: cv.LinearChart(OVERLAPPING),
        lambda: cv.WeightNorm(stretch=torch.tensor(-1.0)),
        lambda: cv.WeightNorm(stretch=torch.ones(3)),
        lambda: cv.Placebo(directions={}),
        lambda: cv.Placebo(directions={entry.name: torch.ones(2) for entry in LAYOUT.entries}),
    ],
    ids=[
        "nan",
        "nan-block",
        "overlapping-blocks",
        "negative-tensor",
        "tensor-of-rows",
        "no-directions",
        "short-directions",
    ],
)
def test_charts_that_would_be_silently_wrong_are_refused(build):
    with pytest.raises(cv.CurvatureError):
        build().at(LAYOUT, WEIGHTS)


@pytest.mark.parametrize(
    "parameterization", [cv.WeightNorm(), cv.WeightNorm("paper"), cv.Placebo(), cv.ScaledStandard()]
)
def test_a_zero_row_is_an_error_that_names_layer_and_row(parameterization):
    weights = WEIGHTS.clone()
    weights[LAYOUT.slices["0.weight"]].view(3, 4)[1] = 0
    with pytest.raises(cv.InputError, match=r"layer '0' \(0.weight\) is zero in row 1"):
        parameterization.at(LAYOUT, weights)


def test_only_a_whole_matrix_on_the_weights_moves_to_a_chart(mlp, regression_data):
    operator = cv.ggn(cv.Problem.from_module(mlp(3, 2), loss="mse", data=regression_data(4, 3, 2)))
    with pytest.raises(cv.ConfigurationError, match="was not made from a problem, or is already in a chart"):
        cv.pullback(cv.pullback(operator, cv.WeightNorm()), cv.WeightNorm())
    with pytest.raises(cv.ConfigurationError, match="was not made from a problem"):
        cv.effective(cv.SymmetricOperator.from_dense(torch.eye(2)), cv.WeightNorm())
    with pytest.raises(cv.ConfigurationError, match=r"must be a Parameterization such as WeightNorm\(\), got str"):
        cv.pullback(operator, "weight-norm")


# ------------------------------------------------------------------------------------------------ a normalized network


FORMS = {"parametrization": parametrizations.weight_norm, "legacy": legacy_weight_norm}
INPUT_SHAPES = {"linear": (5, 3), "conv1d": (5, 2, 3), "conv2d": (5, 1, 3, 3)}


def normalized_network(kind, form, dim):
    """Random ``g`` (some negative) and ``v`` (no ``||v||`` equals ``|g|``), with data."""
    first, last = {
        "linear": lambda: (nn.Linear(3, 4), nn.Linear(4, 2)),
        "conv1d": lambda: (nn.Conv1d(2, 3, 2), nn.Conv1d(3, 2, 1)),
        "conv2d": lambda: (nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2)),
    }[kind]()
    module = nn.Sequential(FORMS[form](first, dim=dim), nn.Tanh(), FORMS[form](last, dim=dim), nn.Flatten()).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data.copy_(normal(generator, *parameter.shape))
    inputs = normal(generator, *INPUT_SHAPES[kind])
    with torch.no_grad():
        targets = normal(generator, *module(inputs).shape)
    return module, inputs, targets


def slope_of(module, inputs, targets):
    parameters = list(module.parameters())
    return parameters_to_vector(torch.autograd.grad(functional.mse_loss(module(inputs), targets), parameters)).detach()


NETWORKS = [(kind, form, dim) for kind in INPUT_SHAPES for form in FORMS for dim in (0, 1, None)]


@pytest.mark.parametrize(("kind", "form", "dim"), NETWORKS)
def test_hessian_equals_differences_of_the_first_derivative_of_pytorch(kind, form, dim):
    """PyTorch's gradient of weight norm is right, so its differences are what double backward should give."""
    module, inputs, targets = normalized_network(kind, form, dim)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    point, columns, h = parameters_to_vector(module.parameters()).detach(), [], 1e-5
    for step in h * torch.eye(len(point), dtype=torch.float64):
        both = []
        for moved in (point + step, point - step):
            torch.nn.utils.vector_to_parameters(moved, module.parameters())
            both.append(slope_of(module, inputs, targets))
        columns.append((both[0] - both[1]) / (2 * h))
    found = cv.pullback(cv.hessian(problem), problem.chart).dense()
    assert distance(found, torch.stack(columns, dim=1)) < 1e-7


def composite_loss(module, problem, inputs, targets):
    """The loss as a function of PyTorch's own parameters, through ``g * v / ||v||`` written by hand."""
    shapes = [(name, parameter.shape) for name, parameter in module.named_parameters()]
    scales = {"original0": "g", "original1": "v", "weight_g": "g", "weight_v": "v"}
    dims = {entry.name: entry.norm_axis for entry in problem.layout.entries}

    def loss(vector):
        parts, found = vector.split([shape.numel() for _, shape in shapes]), {}
        for (name, shape), part in zip(shapes, parts, strict=True):
            layer, leaf = name.split(".")[0], name.split(".")[-1]
            found[f"{layer}.{scales.get(leaf, leaf)}"] = part.view(shape)
        named = {}
        for layer in ("0", "2"):
            named[f"{layer}.bias"] = found[f"{layer}.bias"]
            g, v = found[f"{layer}.g"], found[f"{layer}.v"]
            kept = dims[f"{layer}.weight"]
            axes = [axis for axis in range(v.ndim) if axis != kept]
            named[f"{layer}.weight"] = g * v / (v**2).sum(dim=axes, keepdim=True).sqrt()
        return functional.mse_loss(torch.func.functional_call(problem.model, named, (inputs,)), targets)

    return loss


@pytest.mark.parametrize(("kind", "form", "dim"), NETWORKS)
def test_hessian_equals_autograd_through_a_handwritten_weight_norm(kind, form, dim):
    module, inputs, targets = normalized_network(kind, form, dim)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    point = parameters_to_vector(module.parameters()).detach()
    expected = torch.autograd.functional.hessian(composite_loss(module, problem, inputs, targets), point)
    operator = cv.pullback(cv.hessian(problem), problem.chart)
    assert distance(operator.dense(), expected) < 1e-12
    assert distance(operator @ torch.eye(operator.dim, dtype=torch.float64), expected) < 1e-12
    assert distance(operator.facts.gradient(), slope_of(module, inputs, targets)) < 1e-12


@pytest.mark.parametrize("name", SEMIDEFINITE)
@pytest.mark.parametrize(("kind", "form", "dim"), NETWORKS[::4])
def test_semidefinite_matrices_move_by_the_jacobian_alone(kind, form, dim, name):
    """Explicit ``J`` by autograd through the handwritten map, on either side of the weight-space matrix."""
    module, inputs, targets = normalized_network(kind, form, dim)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets), chunk_size=2)
    chart = problem.chart.at(problem.layout, problem.weights)
    jacobian = torch.autograd.functional.jacobian(chart.to_weights, chart.coordinates)
    operator = MATRICES[name](problem)
    moved = cv.pullback(operator, problem.chart)
    expected = jacobian.T @ operator.dense() @ jacobian
    assert distance(moved.dense(), expected) < 1e-12
    assert distance(moved @ torch.eye(moved.dim, dtype=torch.float64), expected) < 1e-12
    assert distance(sum(block @ block.T for block in moved.routes.factor.blocks()), expected) < 1e-12


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.xfail(strict=True, raises=GradcheckError, reason="double backward of the fused weight norm is wrong")
def test_double_backward_of_weight_norm_in_pytorch_is_right(dim, generator):
    """The day this passes, the documentation must stop saying that PyTorch's own is wrong."""
    g = normal(generator, 4, 1) if dim == 0 else normal(generator, 1, 3)
    v = normal(generator, 4, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, dim), (v, g.requires_grad_()))


def test_first_backward_of_weight_norm_in_pytorch_is_right(generator):
    v, g = normal(generator, 4, 3).requires_grad_(), normal(generator, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, g: torch._weight_norm(v, g, 0), (v, g))


def test_dropping_the_second_order_term_would_be_a_large_error():
    """The power of the tests above: without the term they would fail by many orders of magnitude."""
    module, inputs, targets = normalized_network("linear", "parametrization", 0)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    chart = problem.chart.at(problem.layout, problem.weights)
    whole = cv.pullback(cv.hessian(problem), problem.chart).dense()
    assert distance(chart.pull(chart.pull(cv.hessian(problem).dense()).T), whole) > 0.1


# ------------------------------------------------------------------------------------------------ facts


@pytest.fixture(scope="module")
def classifier(mlp):
    """A small trained-looking softmax classifier, away from any stationary point."""
    generator = torch.Generator().manual_seed(2)
    inputs, labels = normal(generator, 9, 4), torch.randint(3, (9,), generator=generator)
    return cv.Problem.from_module(mlp(4, 5, 3), loss="cross-entropy", data=(inputs, labels))


ROWS = 5 + 3


@pytest.mark.parametrize("name", SEMIDEFINITE)
def test_canonical_gauge_changes_no_nonzero_eigenvalue(name, classifier):
    """``v = w, g = ||w||`` has ``K = I``: the same spectrum, and one exact zero per row."""
    standard = eigenvalues(MATRICES[name](classifier).dense())
    normed = eigenvalues(cv.pullback(MATRICES[name](classifier), cv.WeightNorm()).dense())
    assert len(normed) == len(standard) + ROWS
    merged = torch.cat([standard, torch.zeros(ROWS, dtype=torch.float64)]).sort().values
    assert (normed - merged).abs().max() < 1e-12 * standard[-1]


@pytest.mark.parametrize("name", SEMIDEFINITE)
def test_other_gauges_do_change_it(name, classifier):
    standard = cv.spectrum(MATRICES[name](classifier)).eigenvalues[-1]
    assert (
        abs(
            cv.spectrum(cv.pullback(MATRICES[name](classifier), cv.WeightNorm(stretch=3.0))).eigenvalues[-1] / standard
            - 1
        )
        > 0.1
    )


def null_vectors(chart):
    """One ``(v, 0)`` per normalized row, as columns."""
    columns = []
    for entry in chart.layout.entries:
        if not entry.name.endswith(".v"):
            continue
        where = chart.layout.slices[entry.name]
        for row in range(entry.num_rows):
            column = torch.zeros(chart.dim, dtype=torch.float64)
            rows = entry.rows(chart.coordinates[where])
            kept = torch.zeros_like(rows)
            kept[row] = rows[row]
            column[where] = entry.from_rows(kept)
            columns.append(column)
    return torch.stack(columns, dim=1)


GAUGES = [
    cv.WeightNorm(),
    cv.WeightNorm(stretch=0.3),
    cv.WeightNorm("paper"),
    cv.WeightNorm(stretch=2.0, log_scale=True),
]


@pytest.mark.parametrize("name", SEMIDEFINITE)
@pytest.mark.parametrize("gauge", GAUGES, ids=lambda gauge: gauge.gauge)
def test_stretching_v_is_a_null_direction_of_semidefinite_matrices(name, gauge, classifier):
    operator = cv.pullback(MATRICES[name](classifier), gauge)
    null = functional.normalize(null_vectors(gauge.at(classifier.layout, classifier.weights)), dim=0)
    scale = torch.linalg.norm(operator.dense())
    assert null.shape[1] == ROWS
    assert torch.linalg.norm(operator.dense() @ null) < 1e-14 * scale
    assert torch.linalg.norm(operator @ null) < 1e-14 * scale


@pytest.mark.parametrize("gauge", GAUGES, ids=lambda gauge: gauge.gauge)
def test_stretching_v_costs_the_hessian_minus_the_gradient(gauge, classifier):
    """Euler: the loss is homogeneous of degree 0 in ``v``, so ``H (v, 0) = -(dL/dv, 0)`` and ``n^T H n = 0``."""
    chart = gauge.at(classifier.layout, classifier.weights)
    operator = cv.pullback(cv.hessian(classifier), gauge)
    slope = operator.facts.gradient()
    for null in null_vectors(chart).T:
        expected = torch.where(null != 0, -slope, 0.0)
        assert expected.abs().max() > 1e-4  # away from a minimum, or the test would say nothing
        found = operator @ null
        scale = torch.linalg.norm(operator.dense()) * null.norm()
        assert torch.linalg.norm(found - expected) < 1e-13 * scale
        assert abs(null @ found) < 1e-13 * scale * null.norm()
        assert distance(operator.dense() @ null, expected) < 1e-10


@given(
    name=st.sampled_from(SEMIDEFINITE),
    stretches=st.lists(st.floats(0.05, 20.0), min_size=ROWS, max_size=ROWS),
)
def test_each_eigenvalue_moves_by_a_factor_between_the_extremes_of_rho(classifier, name, stretches):
    """Ostrowski: eigenvalue ``i`` of ``K^(1/2) A K^(1/2)`` is ``theta l_i`` with ``theta`` in the range of ``K``."""
    stretch = {"0.weight": torch.tensor(stretches[:5]), "2.weight": torch.tensor(stretches[5:])}
    before = eigenvalues(MATRICES[name](classifier).dense())
    after = eigenvalues(cv.effective(MATRICES[name](classifier), cv.WeightNorm(stretch=stretch)).dense())
    rho = torch.tensor([1.0, *(s**-2.0 for s in stretches)], dtype=torch.float64)  # 1: radial directions and biases
    slack = 1e-12 * max(before[-1], after[-1])
    assert (after >= rho.min() * before - slack).all()
    assert (after <= rho.max() * before + slack).all()


@pytest.mark.parametrize("parameterization", ["stretch", "explicit-like", "log-scale", "placebo", "linear"])
@pytest.mark.parametrize("name", SEMIDEFINITE)
def test_effective_matrix_has_the_nonzero_spectrum_of_the_pullback(name, parameterization, classifier):
    chart = {
        "stretch": cv.WeightNorm(stretch=3.0),
        "explicit-like": cv.WeightNorm("paper"),
        "log-scale": cv.WeightNorm(stretch=0.5, log_scale=True),
        "placebo": cv.Placebo(stretch=3.0),
        "linear": cv.LinearChart(random_matrix(1, classifier.dim, classifier.dim)),
    }[parameterization]
    moved = eigenvalues(cv.pullback(MATRICES[name](classifier), chart).dense())
    found = cv.effective(MATRICES[name](classifier), chart)
    assert found.dim == classifier.dim
    assert (eigenvalues(found.dense()) - moved[-classifier.dim :]).abs().max() < 1e-12 * moved[-1]
    identity = torch.eye(found.dim, dtype=torch.float64)
    assert distance(found @ identity, found.dense()) < 1e-12


@pytest.mark.parametrize("gauge", [*GAUGES, cv.Placebo(stretch=3.0)], ids=lambda gauge: f"{gauge.name} {gauge.gauge}")
def test_effective_hessian_is_the_pullback_on_the_horizontal_space(gauge, classifier):
    """An orthonormal basis of ``(ker J)^perp`` from an SVD of ``J`` by autograd."""
    chart = gauge.at(classifier.layout, classifier.weights)
    jacobian = torch.autograd.functional.jacobian(chart.to_weights, chart.coordinates)
    _, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    assert values[-1] > 1e-6
    restricted = right @ cv.pullback(cv.hessian(classifier), gauge).dense() @ right.T
    found = cv.effective(cv.hessian(classifier), gauge)
    assert distance(eigenvalues(found.dense()), eigenvalues(restricted)) < 1e-12
    assert distance(found @ torch.eye(found.dim, dtype=torch.float64), found.dense()) < 1e-12
    along = right @ cv.pullback(cv.hessian(classifier), gauge).facts.gradient()
    assert distance(torch.linalg.norm(found.facts.gradient()), torch.linalg.norm(along)) < 1e-12


def test_effective_gradient_and_matrix_are_written_in_one_basis(classifier):
    """Weights along the eigenvectors must be those of the pullback, or ``gd_time`` would be wrong."""
    chart = cv.WeightNorm(stretch=3.0)
    for name in ("ggn", "hessian"):
        operator = MATRICES[name](classifier)
        below, above = cv.pullback(operator, chart), cv.effective(operator, chart)
        slope, moved = below.facts.gradient(), above.facts.gradient()
        assert float(moved @ above.dense() @ moved) == pytest.approx(float(slope @ below.dense() @ slope), rel=1e-11)


@pytest.mark.parametrize("name", SEMIDEFINITE)
def test_v_blocks_scale_with_the_inverse_square_of_the_stretch(name, classifier):
    """``v -> c v`` leaves the function alone; the (v, v) block gains ``c^-2``, the (g, v) block ``1/c``."""
    once, thrice = (cv.pullback(MATRICES[name](classifier), cv.WeightNorm(stretch=c)) for c in (1.0, 3.0))
    powers = torch.cat(
        [
            torch.full((entry.numel,), -1.0 if entry.name.endswith(".v") else 0.0, dtype=torch.float64)
            for entry in once.layout.entries
        ]
    )
    expected = once.dense() * 3.0 ** (powers[:, None] + powers)
    assert distance(thrice.dense(), expected) < 1e-12


def test_hessian_blocks_scale_likewise_because_its_second_order_term_does(classifier):
    once, thrice = (cv.pullback(cv.hessian(classifier), cv.WeightNorm(stretch=c)) for c in (1.0, 3.0))
    powers = torch.cat(
        [
            torch.full((entry.numel,), -1.0 if entry.name.endswith(".v") else 0.0, dtype=torch.float64)
            for entry in once.layout.entries
        ]
    )
    assert distance(thrice.dense(), once.dense() * 3.0 ** (powers[:, None] + powers)) < 1e-12


@pytest.mark.parametrize("name", ["hessian", *SEMIDEFINITE])
def test_orthogonal_coordinates_change_no_eigenvalue(name, classifier):
    rotation = torch.linalg.qr(random_matrix(3, classifier.dim, classifier.dim)).Q
    before = eigenvalues(MATRICES[name](classifier).dense())
    after = eigenvalues(cv.pullback(MATRICES[name](classifier), cv.LinearChart(rotation)).dense())
    assert (after - before).abs().max() < 1e-12 * before.abs().max()


def test_linear_coordinates_are_a_congruence(classifier):
    factor = random_matrix(4, classifier.dim, classifier.dim)
    matrix = cv.hessian(classifier).dense()
    found = cv.pullback(cv.hessian(classifier), cv.LinearChart(factor)).dense()
    assert distance(found, factor.T @ matrix @ factor) < 1e-13


def test_squared_length_of_v_grows_by_the_squared_step_under_gradient_descent(classifier):
    """``||v_{t+1}||^2 = ||v_t||^2 + eta^2 ||dL/dv||^2`` exactly, since ``v`` and ``dL/dv`` are orthogonal."""
    parameterization, problem, rate = cv.WeightNorm(stretch=0.7), classifier, 0.5
    for _ in range(5):
        chart = parameterization.at(problem.layout, problem.weights)
        slope = chart.pull(problem.gradient()[:, None])[:, 0]
        moved = chart.coordinates - rate * slope
        v, dv, new = (chart.layout.unflatten(vector)["0.weight.v"] for vector in (chart.coordinates, slope, moved))
        assert dv.norm(dim=1).min() > 1e-4
        grown = v.norm(dim=1) ** 2 + rate**2 * dv.norm(dim=1) ** 2
        assert distance(new.norm(dim=1) ** 2, grown) < 1e-14
        named = chart.layout.unflatten(moved)
        problem = problem.at(chart.to_weights(moved))
        parameterization = cv.WeightNorm(
            v={name: named[f"{name}.v"] for name in ("0.weight", "2.weight")},
            g={name: named[f"{name}.g"] for name in ("0.weight", "2.weight")},
        )


# ------------------------------------------------------------------------------------------------ least squares


def least_squares(num_examples, fan_in, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = normal(generator, num_examples, fan_in), normal(generator, num_examples, 1)
    layer = nn.Linear(fan_in, 1, bias=False).double()
    layer.weight.data.copy_(normal(generator, 1, fan_in))
    return cv.Problem.from_module(layer, loss="half-squared-error", data=(inputs, targets)), inputs


def test_gradient_flow_keeps_the_invariant_of_wu_and_others():
    """Under weight-norm flow on underdetermined least squares ``u_perp exp(g^2 / (2 s^2))`` stays (Wu et al. 2020)."""
    problem, inputs = least_squares(3, 6)
    away = torch.eye(6, dtype=torch.float64) - torch.linalg.pinv(inputs) @ inputs
    start = cv.WeightNorm(stretch=1.5).at(problem.layout, problem.weights)

    def at(theta):
        vector = torch.as_tensor(theta)
        named = {"g": {"weight": vector[:1]}, "v": {"weight": vector[1:].view(1, 6)}}
        weights = vector[0] * vector[1:] / vector[1:].norm()
        chart = cv.WeightNorm(**named).at(problem.layout, weights)
        return chart, weights

    def velocity(_, theta):
        chart, weights = at(theta)
        return -chart.pull(problem.gradient(weights)[:, None])[:, 0].numpy()

    def invariant(theta):
        g, v = theta[0], torch.as_tensor(theta[1:])
        return away @ (v / v.norm()) * math.exp(g**2 / (2 * float(v.norm()) ** 2))

    begin = start.coordinates.numpy()
    path = solve_ivp(velocity, (0.0, 2.0), begin, rtol=1e-10, atol=1e-12)
    end = path.y[:, -1]
    assert path.success
    assert abs(end[0] - begin[0]) > 0.1  # it did move
    assert distance(away @ torch.as_tensor(end[1:]), away @ torch.as_tensor(begin[1:])) > 0.02
    assert distance(invariant(end), invariant(begin)) < 1e-7


def test_eliminating_g_deflates_the_hessian_along_w_and_never_worsens_its_condition(generator):
    """Cai, Li & Shen 2019: the Schur complement of ``g`` is ``rho (H - H u u^T H / (u^T H u))``."""
    problem, inputs = least_squares(40, 6)
    solution = torch.linalg.lstsq(inputs, problem.targets, driver="gelsd").solution[:, 0]
    stretch = 2.0
    matrix = cv.pullback(cv.hessian(problem.at(solution)), cv.WeightNorm(stretch=stretch)).dense()
    gg, gv, vv = matrix[0, 0], matrix[0, 1:], matrix[1:, 1:]
    found = vv - torch.outer(gv, gv) / gg
    hessian, u = inputs.T @ inputs / len(inputs), solution / solution.norm()
    image = hessian @ u
    deflated = hessian - torch.outer(image, image) / (u @ image)
    assert distance(found, deflated / stretch**2) < 1e-12
    for direction in normal(generator, 50, 6):
        image = hessian @ direction
        values = eigenvalues(hessian - torch.outer(image, image) / (direction @ image))[1:]
        whole = eigenvalues(hessian)
        assert values[-1] / values[0] <= whole[-1] / whole[0] * (1 + 1e-10)
