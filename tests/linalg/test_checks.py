"""Self-checks: right matrices pass everywhere, each kind of wrong one is refused by the check that names its cause."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.errors import NonFiniteError, SelfCheckError
from curvature.linalg.checks import Witness, same_form, self_checks
from curvature.linalg.facts import Facts
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import MATRICES
from curvature.records import Check
from oracles import drawn

EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
CHARTS = [cv.WeightNorm(), cv.WeightNorm("paper"), cv.WeightNorm(stretch=3.0)]


def classification(module, n=12, width=3, classes=2, seed=0, **options):
    seeded = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, width, generator=seeded, dtype=torch.float64)
    targets = torch.randint(classes, (n,), generator=seeded)
    return cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, targets), **options)


def two_layers(middle):
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 2)).double()


def names(checks):
    return {check.name for check in checks}


# --------------------------------------------------------------------------------------------------- what must pass


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("method", ["auto", "generic"])
def test_right_matrices_pass_on_the_weights_and_in_every_chart(mlp, name, method):
    operator = MATRICES[name](classification(mlp(3, 5, 4, 2)), method=method)
    for moved in (operator, *(move(operator, chart) for chart in CHARTS for move in (cv.pullback, cv.effective))):
        found = moved.checks
        assert {"repetition", "linearity", "symmetry"} <= names(found)
        assert ("definiteness" in names(found)) is (name != "hessian")
        (difference,) = (check for check in found if "finite differences" in check.name)
        # Better than the tolerance by far: truncation and rounding, nothing else.
        assert difference.value < 1e-8, difference
        assert difference.tolerance < 1e-4
        assert all(check.passed for check in found)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus, nn.Identity])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0])
def test_kinks_and_large_inputs_do_not_raise_false_alarms(mlp, activation, scale):
    inputs = scale * torch.randn(300, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.arange(300) % 2
    problem = cv.Problem.from_module(
        mlp(3, 20, 20, 2, activation=activation), loss="cross-entropy", data=(inputs, targets)
    )
    for name in EXACT:
        assert all(check.passed and check.tolerance < 1e-4 for check in MATRICES[name](problem).checks)


@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    loss=st.sampled_from(["cross-entropy", "mse", "half-squared-error", "binary-cross-entropy"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_right_matrices_pass_whatever_loss_shape_precision_and_chunks(mlp, widths, loss, dtype, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (9,), generator=generator)
    if loss != "cross-entropy":
        targets = functional.one_hot(targets, 2).double()
    problem = cv.Problem.from_module(
        mlp(3, *widths, 2, seed=seed), loss=loss, data=(inputs, targets), dtype=dtype, chunk_size=chunk
    )
    for name in EXACT:
        operator = MATRICES[name](problem)
        assert all(check.passed for check in operator.checks)
        assert all(check.passed for check in cv.pullback(operator, cv.WeightNorm("paper")).checks)


def test_convolutions_tied_frozen_and_sampled_pass(cnn):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 4, 4, generator=generator, dtype=torch.float64)
    convolutional = cv.Problem.from_module(cnn(), loss="cross-entropy", data=(images, torch.arange(7) % 3))
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    tied[2].weight = tied[0].weight
    frozen = two_layers(nn.Tanh())
    frozen[0].bias.requires_grad_(False)
    for problem in (convolutional, classification(tied), classification(frozen)):
        for name in EXACT:
            assert all(check.passed for check in MATRICES[name](problem).checks)
        sampled = cv.monte_carlo_fisher(problem, 3, torch.Generator().manual_seed(1))
        assert all(check.passed for check in sampled.checks)


def test_blocks_are_checked_in_their_own_coordinates(mlp):
    blocks = cv.blocks(cv.hessian(classification(mlp(3, 4, 2))), "neuron")
    for block in blocks.values():
        (difference,) = (check for check in block.checks if "finite differences" in check.name)
        assert difference.value < 1e-8


def test_the_zero_matrix_passes():
    zero = cv.SymmetricOperator.from_dense(torch.zeros(4, 4, dtype=torch.float64), positive_semidefinite=True)
    assert all(check.value == 0 for check in zero.checks)


# ------------------------------------------------------------------------------------------------- what must be refused


def multiplying(matmat, dim=6, **facts):
    return cv.SymmetricOperator(
        where=cv.Where("matrix"),
        dim=dim,
        matmat=matmat,
        dtype=torch.float64,
        device=torch.device("cpu"),
        facts=Facts(**facts),
    )


def test_each_property_of_a_symmetric_matrix_is_checked():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    symmetric = matrix + matrix.T
    calls = []

    def drifting(block):
        calls.append(1)
        return symmetric @ block * (1 + 1e-9 * len(calls))

    refused = {
        "symmetry": multiplying(lambda block: matrix @ block),
        "linearity": multiplying(lambda block: symmetric @ block + 1e-6),
        "repetition": multiplying(drifting),
        "definiteness": multiplying(lambda block: -(matrix @ (matrix.T @ block)), positive_semidefinite=True),
    }
    for check, operator in refused.items():
        with pytest.raises(SelfCheckError, match=f'"{check}"'):
            _ = operator.checks
    assert all(check.passed for check in multiplying(lambda block: symmetric @ block).checks)


@pytest.mark.parametrize("scale", [1e-250, 1.0, 1e250])
def test_differences_are_relative_to_the_longest_image_at_any_scale(scale):
    matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    tilted, other = matrix.clone(), matrix.clone()
    tilted[0, 5] += 2e-13
    other[0, 0] += 1e-12
    blocks = []

    def multiply(block):
        blocks.append(block.clone())
        return scale * (tilted @ block)

    witness = Witness("another route", same_form(lambda block: scale * (other @ block)), "They disagree.")
    found = {check.name: check for check in self_checks("matrix", multiply, 6, matrix, witnesses=[witness])}
    vectors = blocks[0]
    lengths = torch.linalg.vector_norm(tilted @ vectors, dim=0)
    apart = torch.linalg.vector_norm((other - tilted) @ vectors[:, :2], dim=0)
    expected = float(apart.max() / lengths[:2].max())
    assert found["agreement with another route"].rounding == pytest.approx(expected, rel=0.01, abs=0)
    asymmetry = float((vectors[:, :3].T @ (tilted - tilted.T) @ vectors[:, :3]).abs().max() / lengths.max())
    assert found["symmetry"].value == pytest.approx(asymmetry, rel=0.05, abs=0)


def test_a_small_asymmetry_is_seen_far_above_rounding_alone():
    matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    for size, refused in ((1e-9, True), (1e-17, False)):
        tilted = matrix.clone()
        tilted[0, 5] += size
        operator = multiplying(lambda block, tilted=tilted: tilted @ block)
        if refused:
            with pytest.raises(SelfCheckError, match="symmetry"):
                _ = operator.checks
        else:
            assert operator.checks


def forgetful(x):
    """``x^2 / 2`` whose gradient is constant in ``x`` for autograd: a second derivative that is symmetric, and wrong.

    Without a custom function, whose derivatives are tried when a problem is made.
    """
    line = x * x.detach()
    return line + (x**2 / 2 - line).detach()


def wrong(x):
    """``x^2 / 2`` with a wrong first derivative, linear in the gradient: the matrix is symmetric all the same."""
    square = x**2 / 2
    return 1.1 * square - 0.1 * square.detach()


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_symmetric_but_wrong_second_derivative_is_found_by_finite_differences():
    operator = cv.hessian(classification(two_layers(Applied(forgetful))))
    form = operator @ torch.eye(operator.dim, dtype=torch.float64)
    assert torch.allclose(form, form.T, atol=1e-12)  # no symmetry check would see it
    with pytest.raises(SelfCheckError, match=r"finite differences of the gradient.*wrong double backward"):
        cv.spectrum(operator)
    assert cv.spectrum(operator, checks=False).dim == operator.dim


@pytest.mark.filterwarnings("ignore:PyTorch's gradient is not the derivative")
def test_a_wrong_first_derivative_is_found_by_differences_of_the_outputs():
    operator = cv.ggn(classification(two_layers(Applied(wrong))))
    with pytest.raises(SelfCheckError, match="finite differences of the outputs"):
        cv.spectrum(operator)


class FusedWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        self.g = nn.Parameter(torch.ones(4, 1, dtype=torch.float64))

    def forward(self, x):
        # Behind torch._weight_norm, which would be replaced by equal operations.
        return torch.tanh(x @ torch.ops.aten._weight_norm_interface(self.v, self.g, 0)[0].T)[:, :2]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_torchs_fused_weight_norm_is_named():
    with pytest.raises(SelfCheckError, match=r"a wrong double backward, that of torch\._weight_norm"):
        cv.hessian(classification(FusedWeightNorm()))
    # First derivatives of it are right, and so are matrices of first derivatives.
    assert cv.spectrum(cv.ggn(classification(FusedWeightNorm()))).checks


class Hidden(nn.Module):
    """Passes a determinism test of its outputs without gradients, and is random with them."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __deepcopy__(self, memo):
        return Hidden()

    def forward(self, x):
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return x * (1 + 0.1 * noise * torch.is_grad_enabled())


def test_what_is_random_only_under_gradients_is_refused():
    for name in EXACT:
        operator = MATRICES[name](classification(two_layers(Hidden())), method="generic")
        with pytest.raises(SelfCheckError, match="random"):
            cv.spectrum(operator, method="dense")


def test_a_chart_without_its_second_order_term_is_refused(mlp, monkeypatch):
    problem = classification(mlp(3, 4, 2))
    chart = cv.WeightNorm(stretch=2.0)
    kind = type(chart.at(problem.layout, problem.weights))
    assert cv.spectrum(cv.pullback(cv.hessian(problem), chart)).checks
    monkeypatch.setattr(kind, "second_order_product", lambda _chart, _gradient, block: torch.zeros_like(block))
    monkeypatch.setattr(kind, "pulled_back", lambda chart, matrix, _gradient=None: chart.pull(chart.pull(matrix).T))
    with pytest.raises(SelfCheckError, match="finite differences of the gradient"):
        cv.spectrum(cv.pullback(cv.hessian(problem), chart))


def test_entries_that_are_not_those_of_the_products_are_refused(mlp):
    operator = cv.ggn(classification(mlp(3, 4, 2)))
    routes = operator.routes
    entries = replace(routes.entries, compute=lambda: 1.0001 * routes.entries.compute())
    scaled = replace(operator, routes=replace(routes, entries=entries))
    with pytest.raises(SelfCheckError, match="products with vectors"):
        cv.spectrum(scaled, method="dense")
    with pytest.raises(SelfCheckError, match="products with vectors"):
        cv.spectrum(scaled.materialized(), method="dense")
    factor = replace(routes.factor, blocks=lambda: (1.0001 * block for block in routes.factor.blocks()))
    columns = replace(operator, routes=replace(routes, factor=factor))
    with pytest.raises(SelfCheckError, match="products with vectors"):
        cv.spectrum(columns, method="factor")


def test_unweighted_means_over_chunks_are_refused(mlp):
    """A mean of means over ragged chunks: the classical mistake."""
    problem = classification(mlp(3, 4, 2), n=10)
    batches = [
        cv.hessian(replace(problem, inputs=problem.inputs[s], targets=problem.targets[s], denominator=float(d)))
        for s, d in ((slice(0, 7), 7), (slice(7, 10), 3))
    ]
    weighted = replace(cv.hessian(problem), matmat=lambda b: 0.7 * (batches[0] @ b) + 0.3 * (batches[1] @ b))
    assert weighted.checks
    unweighted = replace(cv.hessian(problem), matmat=lambda b: 0.5 * (batches[0] @ b) + 0.5 * (batches[1] @ b))
    with pytest.raises(SelfCheckError, match="other chunks"):
        _ = unweighted.checks


def test_a_kink_at_the_point_is_said_and_not_compared():
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        module[0].weight[:] = torch.tensor([[1.0, -1.0]])
        module[0].bias[:] = 0.0
    inputs = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)  # the first lies on the kink
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, torch.ones(2, 1, dtype=torch.float64)))
    (check,) = (c for c in cv.spectrum(cv.hessian(problem)).checks if "finite differences" in c.name)
    assert check.passed
    assert "the loss has a kink here" in check.note
    assert problem.kinks() == (1, 2)
    away = problem.at(problem.weights + 0.1)
    assert away.kinks() == (0, 2)
    (check,) = (c for c in cv.spectrum(cv.hessian(away)).checks if "finite differences" in c.name)
    assert "kink" not in check.note


def test_a_product_that_is_not_finite_names_example_and_parameters():
    module = nn.Sequential(nn.Linear(2, 2), Applied(lambda x: x.abs() ** 1.5), nn.Linear(2, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(2))
        module[0].bias.zero_()
    inputs = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, torch.tensor([0, 1, 0, 1])))
    with pytest.raises(NonFiniteError, match=r"first for example 2, in .*0\.weight"):
        cv.hessian(problem) @ torch.ones(problem.dim, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="example 2"):
        cv.spectrum(cv.pullback(cv.hessian(problem), cv.WeightNorm()))


# ------------------------------------------------------------------------------------------------------ where it shows


def test_a_study_of_a_piecewise_linear_network_says_what_its_hessian_leaves_out(mlp):
    rectified = classification(mlp(3, 4, 2, activation=nn.ReLU))
    (words,) = (w for w in cv.measure(rectified, matrices=("hessian",)).warnings if "piecewise linear" in w)
    assert "0 of 48 pre-activations are at a kink" in words
    assert not cv.measure(rectified, matrices=("ggn",)).warnings
    assert not cv.measure(classification(mlp(3, 4, 2)), matrices=("hessian",)).warnings
    assert classification(mlp(3, 4, 2)).kinks() == (0, 0)


def test_every_record_carries_the_checks_it_passed(mlp, tmp_path):
    problem = classification(mlp(3, 4, 2))
    operator = cv.ggn(problem)
    generator = torch.Generator().manual_seed(0)
    records = [
        cv.spectrum(operator),
        cv.spectrum(operator, method="dense"),
        cv.spectrum(operator, method="gram"),
        cv.spectrum(cv.pullback(operator, cv.WeightNorm("paper"))),
        cv.extremal_eigenvalues(operator, num_largest=2, seed=generator),
        cv.spectral_density(operator, num_matvecs=5, num_probes=2, seed=generator),
    ]
    for record in records:
        assert len(record.checks) >= 5
        assert all(isinstance(check, Check) and check.passed for check in record.checks)
    assert "self-checks" in records[0]._repr_html_()
    assert cv.Spectrum.load(records[0].save(tmp_path / "a.npz")).checks == records[0].checks
    assert json.loads(records[0].to_xarray().attrs["checks"]) == [asdict(check) for check in records[0].checks]


def test_a_study_shows_the_worst_of_each_check(mlp):
    study = cv.measure(classification(mlp(3, 4, 2)), matrices=("hessian", "ggn"))
    found = {check.name: check for check in study.self_checks}
    assert len(found) == len(study.self_checks)
    assert {"hessian: symmetry", "ggn: definiteness", "ggn: agreement with finite differences of the outputs"} <= set(
        found
    )
    records = [m.record for m in study.of(cv.Spectrum, matrix="ggn")]
    worst = max(check.value for record in records for check in record.checks if check.name == "definiteness")
    assert found["ggn: definiteness"].value == worst
    assert f"the worst of {len(records)}" in found["ggn: definiteness"].note


def test_checks_leave_the_global_state_alone(mlp):
    problem = classification(mlp(3, 4, 2))
    state, threads, grad = torch.random.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    cv.spectrum(cv.hessian(problem))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def test_a_negative_eigenvalue_within_the_measured_rounding_is_rounding():
    """A chart that stretches null directions a thousand times rounds them at the scale of its Jacobian."""
    basis = torch.linalg.qr(drawn(60, 60)).Q
    values = torch.full((60,), -3e-13, dtype=torch.float64)
    values[:20] = torch.logspace(0, -3, 20, dtype=torch.float64)
    matrix = (basis * values) @ basis.T
    matrix = (matrix + matrix.T) / 2
    other = 1e-13 * drawn(60, 60, seed=1)

    def measured(rounding):
        found = SymmetricOperator.from_dense(matrix, name="matrix")
        facts = replace(found.facts, positive_semidefinite=True)
        return replace(found, matmat=lambda block: (matrix + rounding) @ block, facts=facts)

    with pytest.raises(SelfCheckError, match="must be positive semidefinite"):
        cv.spectrum(measured(torch.zeros(60, 60, dtype=torch.float64)))
    spectrum = cv.spectrum(measured((other + other.T) / 2))
    assert spectrum.noise_floor > 3e-13
    assert spectrum.possible_ranks == (20, 60)
