"""Krylov methods against dense linear algebra: prescribed spectra, traps known from peers, hostile operators."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import curvature as cv
from curvature import SymmetricOperator, conjugate_gradients, extremal_eigenvalues, spectral_density
from curvature.errors import ConfigurationError, ConvergenceError, NonFiniteError, ResourceError, SelfCheckError
from curvature.linalg import routes
from curvature.linalg.extremal import _next_block
from curvature.linalg.lanczos import lanczos
from curvature.linalg.routes import EntriesRoute, ProductCost
from curvature.models import zoo
from oracles import normal, operator_of, seeded, with_spectrum

EPS = torch.finfo(torch.float64).eps


def descending(matrix):
    return torch.linalg.eigvalsh(matrix).flip(0).numpy()


def tridiagonal(diagonal, off_diagonal):
    return torch.diag_embed(diagonal) + torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)


def krylov_basis(matrix, start, steps):
    """Orthonormal basis of the Krylov space by Arnoldi, each vector orthogonalized three times: shares no code."""
    basis = [start / torch.linalg.vector_norm(start)]
    for _ in range(steps - 1):
        vector = matrix @ basis[-1]
        for _ in range(3):
            for other in basis:
                vector = vector - (other @ vector) * other
        basis.append(vector / torch.linalg.vector_norm(vector))
    return torch.stack(basis, dim=1)


# -------------------------------------------------------------------------------------------------------------- lanczos


@pytest.mark.parametrize("num_matvecs", [1, 2, 7])
def test_tridiagonal_is_the_matrix_on_its_krylov_space(num_matvecs, generator):
    matrix = with_spectrum(torch.linspace(-1, 3, 30), generator)
    start = normal(generator, 30, 1)
    small = tridiagonal(*lanczos(operator_of(matrix), start, num_matvecs))[0]
    basis = krylov_basis(matrix, start[:, 0], num_matvecs)
    assert torch.allclose(small, basis.T @ matrix @ basis, rtol=0, atol=1e-12)


def test_recurrence_leaves_a_residual_in_the_last_column_only(generator):
    matrix = with_spectrum(torch.linspace(-1, 3, 30), generator)
    start = normal(generator, 30, 1)
    small = tridiagonal(*lanczos(operator_of(matrix), start, 8))[0]
    basis = krylov_basis(matrix, start[:, 0], 8)
    residual = matrix @ basis - basis @ small
    assert residual[:, :-1].abs().max() < 1e-13
    assert torch.linalg.vector_norm(residual[:, -1]) > 1e-3
    assert (basis.T @ residual[:, -1]).abs().max() < 1e-13


def test_columns_advance_independently(generator):
    matrix = with_spectrum(torch.linspace(-1, 3, 30), generator)
    starts = normal(generator, 30, 4)
    widths = []
    together = lanczos(operator_of(matrix, widths=widths), starts, 9)
    assert widths == [4] * 9
    for k in range(4):
        alone = lanczos(operator_of(matrix), starts[:, k : k + 1], 9)
        for part, expected in zip(together, alone, strict=True):
            assert torch.allclose(part[k], expected[0], rtol=0, atol=1e-13)


def test_an_exhausted_column_stops_and_the_others_go_on(generator):
    matrix = with_spectrum(torch.linspace(1, 2, 20), generator)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    starts = torch.stack([vectors[:, 3], vectors[:, 0] + vectors[:, 7], normal(generator, 20)], dim=1)
    diagonal, off_diagonal = lanczos(operator_of(matrix), starts, 6)
    assert diagonal.shape == (3, 6)
    assert off_diagonal.shape == (3, 5)
    assert (diagonal[0, 1:] == 0).all()
    assert (off_diagonal[0] == 0).all()
    assert (off_diagonal[1, 1:] == 0).all()
    assert (off_diagonal[2] > 1e-3).all()
    values = torch.linalg.eigvalsh(matrix)
    assert torch.allclose(diagonal[0, 0], values[3], atol=1e-13)
    pair = torch.linalg.eigvalsh(tridiagonal(diagonal, off_diagonal)[1, :2, :2])
    assert torch.allclose(pair, values[[0, 7]], atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1.0, 1e30, 1e150])
def test_exhaustion_is_recognized_at_every_scale(scale, generator):
    """Peers compare the residual with an absolute 1e-12, which is a scale."""
    matrix = with_spectrum([1.0] * 10 + [2.0] * 10, generator)
    diagonal, off_diagonal = lanczos(operator_of(scale * matrix), normal(generator, 20, 1), 5)
    found = torch.linalg.eigvalsh(tridiagonal(diagonal, off_diagonal)[0, :2, :2] / scale)
    assert torch.allclose(found, torch.tensor([1.0, 2.0], dtype=torch.float64), atol=1e-12)
    assert (off_diagonal[0, 1:] == 0).all()


def test_no_ghosts_after_the_outliers_have_converged(generator):
    """Without reorthogonalization dozens of copies of the outliers appear (Paige 1976)."""
    matrix = with_spectrum([100.0, 50.0, 20.0, *0.97 ** np.arange(197)], generator)
    found = torch.linalg.eigvalsh(tridiagonal(*lanczos(operator_of(matrix), normal(generator, 200, 1), 120))[0])
    for outlier in (100.0, 50.0, 20.0):
        assert int(((found - outlier).abs() < 1e-6).sum()) == 1


def test_basis_larger_than_the_memory_is_refused_before_it_is_allocated():
    operator = SymmetricOperator(
        where=cv.Where("huge"), dim=10**9, matmat=torch.clone, dtype=torch.float64, device=torch.device("cpu")
    )
    with pytest.raises(ResourceError, match="Lanczos basis"):
        lanczos(operator, torch.empty(10**9, 1, dtype=torch.float64, device="meta"), 10**6)


# ----------------------------------------------------------------------------------------------------- spectral density


def test_quadrature_is_exact_to_degree_two_m_minus_one(generator):
    m = 4
    matrix = with_spectrum(torch.linspace(-1, 3, 30), generator)
    state = generator.get_state()
    density = spectral_density(operator_of(matrix), num_matvecs=m, num_probes=1, seed=generator)
    generator.set_state(state)
    probe = normal(generator, 30, 1)[:, 0]
    probe /= torch.linalg.vector_norm(probe)

    def error(degree):
        exact = float(probe @ torch.linalg.matrix_power(matrix, degree) @ probe)
        return abs(density.moment(degree)[0] - exact) / 3**degree

    assert max(error(degree) for degree in range(2 * m)) < 1e-13
    assert error(2 * m) > 1e-8  # the promise ends there


@pytest.mark.parametrize("seed", range(6))
def test_moments_are_the_traces_within_four_standard_errors(seed):
    matrix = with_spectrum([100.0, 50.0, -20.0, *0.9 ** np.arange(97)], seeded(seed))
    density = spectral_density(operator_of(matrix), num_matvecs=6, num_probes=50, seed=seeded(100 + seed))
    for power in (1, 2, 3):
        value, standard_error = density.moment(power)
        exact = float(torch.linalg.matrix_power(matrix, power).trace() / 100)
        assert abs(value - exact) < 4 * standard_error
        # and the error bar is not uselessly wide: a probe sees 100 eigenvalues, three of which matter
        assert standard_error < 100**power / 50**0.5 / 10


def test_standard_error_is_the_spread_of_the_estimate():
    """Four standard errors would also pass with an error bar ten times too long."""
    matrix = with_spectrum(torch.linspace(-1, 3, 40), seeded(0))
    runs = [
        spectral_density(operator_of(matrix), num_matvecs=3, num_probes=20, seed=seeded(seed)).moment(2)
        for seed in range(40)
    ]
    spread = np.std([value for value, _ in runs], ddof=1)
    assert 0.7 < np.mean([error for _, error in runs]) / spread < 1.4


def test_density_record_says_what_was_done(generator):
    density = spectral_density(
        operator_of(with_spectrum(torch.linspace(-1, 3, 30), generator)), num_matvecs=5, num_probes=3, seed=generator
    )
    assert density.nodes.shape == density.weights.shape == (3, 5)
    assert np.allclose(density.weights.sum(axis=1), 1, atol=1e-14)
    assert (density.weights >= 0).all()
    assert (density.matrix, density.dim, density.num_products) == ("matrix", 30, 15)
    assert density.seconds > 0
    assert density.nodes.min() > -1 - 1e-12
    assert density.nodes.max() < 3 + 1e-12
    assert np.isnan(
        spectral_density(
            operator_of(torch.eye(3, dtype=torch.float64)), num_matvecs=1, num_probes=1, seed=generator
        ).moment(1)[1]
    )


def test_density_by_the_entries_is_the_one_by_products(generator, monkeypatch):
    problem = zoo.digits_problem(400, widths=(4,))
    hessian = cv.hessian(problem)
    built = []
    dense = type(hessian).dense
    monkeypatch.setattr(type(hessian), "dense", lambda self: built.append(self.name) or dense(self))
    settings = {"num_matvecs": 12, "num_probes": 40, "checks": False}
    found = spectral_density(hessian, seed=seeded(1), **settings)
    assert built == ["hessian"]
    uncounted = replace(hessian.routes.products, multiplications=None)
    plain = replace(hessian, routes=replace(hessian.routes, products=uncounted))
    expected = spectral_density(plain, seed=seeded(1), **settings)
    assert built == ["hessian"]
    size = abs(expected.nodes).max()
    assert abs(found.nodes - expected.nodes).max() < 1e-9 * size
    assert abs(found.weights - expected.weights).max() < 1e-9
    spectral_density(hessian, num_matvecs=2, num_probes=1, seed=generator, checks=False)
    assert built == ["hessian"]


def test_a_density_by_wrong_entries_is_refused(generator):
    hessian = cv.hessian(zoo.digits_problem(400, widths=(4,)))
    entries = hessian.routes.entries
    scaled = replace(entries, compute=lambda: 1.001 * entries.compute())
    wrong = replace(hessian, routes=replace(hessian.routes, entries=scaled))
    settings = {"num_matvecs": 12, "num_probes": 40, "seed": generator}
    with pytest.raises(SelfCheckError, match="agreement with products with vectors"):
        spectral_density(wrong, **settings)
    names = [check.name for check in spectral_density(hessian, **settings).checks]
    assert "agreement with products with vectors" in names


def test_entries_do_not_pay_where_they_do_not_fit(monkeypatch):
    hessian = cv.hessian(zoo.digits_problem(400, widths=(4,)))
    assert hessian.entries_pay(10**6)
    monkeypatch.setattr(routes, "free_memory", lambda _: hessian.dense_bytes)
    assert not hessian.entries_pay(10**6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_entries_multiply_in_every_precision_and_layout(dtype):
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=dtype)
    operator = SymmetricOperator.from_dense(matrix)
    wide = torch.arange(8.0, dtype=dtype).reshape(2, 4)
    for block in (wide, wide[:, ::2], wide.T.contiguous().T, wide[:, :1].expand(2, 3), wide[:, :0]):
        assert torch.equal(operator @ block, matrix @ block)
    variable = wide.clone().requires_grad_()
    (operator @ variable).sum().backward()
    assert torch.equal(variable.grad, matrix @ torch.ones_like(wide))


def test_entries_pay_where_the_counted_work_says_so():
    def pays(num_products, dim=100, entries=1e6, product=2e4, known=True, kept=None):
        matrix = SymmetricOperator.from_dense(torch.eye(4, dtype=torch.float64))
        route = EntriesRoute(matrix.routes.entries.compute, entries, kept=kept) if known else None
        counted = replace(matrix.routes, entries=route, products=ProductCost(multiplications=product))
        return replace(matrix, dim=dim, routes=counted).entries_pay(num_products)

    assert not pays(33)  # 33 * 3 * (20 000 - 10 000) < 1e6
    assert pays(34)
    assert not pays(10**9, product=1e4)  # with the entries a product takes as long
    assert not pays(10**9, product=None)
    assert not pays(10**9, entries=None)
    assert not pays(10**9, known=False)
    assert not pays(10**9, kept=torch.eye(4, dtype=torch.float64))  # they are there
    assert not pays(10**9, dim=20_000, product=1e12)  # gigabytes that nobody asked for


def test_density_with_as_many_steps_as_dimensions_has_the_eigenvalues(generator):
    matrix = with_spectrum([-2.0, -1.0, 0.5, 1.0, 4.0], generator)
    density = spectral_density(operator_of(matrix), num_matvecs=5, num_probes=4, seed=generator)
    assert np.allclose(density.nodes, [-2.0, -1.0, 0.5, 1.0, 4.0], atol=1e-11)


@pytest.mark.parametrize("matrix", [torch.zeros(7, 7), torch.eye(7), torch.full((1, 1), 3.0), torch.ones(7, 7)])
def test_density_of_few_distinct_eigenvalues_has_no_spurious_mass(matrix, generator):
    matrix = matrix.double()
    density = spectral_density(operator_of(matrix), num_matvecs=len(matrix), num_probes=5, seed=generator)
    values = torch.linalg.eigvalsh(matrix).numpy()
    distance = np.abs(density.nodes[..., None] - values).min(axis=-1)
    assert density.weights[distance > 1e-12].sum() < 1e-25
    assert np.allclose(density.weights.sum(axis=1), 1)


@pytest.mark.parametrize(
    "values", [[2.0] * 9, [1.0] * 4 + [5.0] * 5, [-3.0, -2.0, *[4.0] * 7], [2.0, 3.0, 5.0, *[7.0] * 6]]
)
def test_nodes_of_an_exhausted_krylov_space_are_eigenvalues(values, generator):
    """Not zeros, which would stretch the range, the resolution and the bins of a spectrum that is far from zero."""
    density = spectral_density(operator_of(with_spectrum(values, generator)), num_matvecs=8, num_probes=5, seed=3)
    assert np.abs(density.nodes[..., None] - np.unique(values)).min(axis=-1).max() < 1e-12
    assert (np.diff(density.nodes, axis=1) >= 0).all()
    assert np.allclose(density.weights.sum(axis=1), 1)
    assert density.resolution == pytest.approx((max(values) - min(values)) / 8, abs=1e-12)
    for value in np.unique(values):  # the shares, each a Beta law with this mean
        share = density.weights[np.abs(density.nodes - value) < 1e-9].sum() / 5
        assert abs(share - values.count(value) / 9) < 0.35
    low, _, high = density.cumulative([min(values) - 1e-6, max(values) + 1e-6])
    assert low[0] == 0
    assert high[1] == 1


def test_density_is_reproducible_from_the_generator_alone(generator):
    matrix = operator_of(with_spectrum(torch.linspace(-1, 3, 30), generator))
    settings = {"num_matvecs": 4, "num_probes": 3}
    torch.manual_seed(1)
    first = spectral_density(matrix, **settings, seed=seeded(5))
    torch.manual_seed(2)
    second = spectral_density(matrix, **settings, seed=seeded(5))
    other = spectral_density(matrix, **settings, seed=seeded(6))
    assert np.array_equal(first.nodes, second.nodes)
    assert not np.allclose(first.nodes, other.nodes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_matvecs": 0, "num_probes": 1}, "num_matvecs must be between 1 and the dimension 5"),
        ({"num_matvecs": 6, "num_probes": 1}, "num_matvecs must be between 1 and the dimension 5 of matrix, got 6"),
        ({"num_matvecs": 2, "num_probes": 0}, "num_probes must be at least 1, got 0"),
    ],
)
def test_density_settings_without_meaning_are_refused(settings, message, generator):
    with pytest.raises(ConfigurationError, match=message):
        spectral_density(operator_of(torch.eye(5, dtype=torch.float64)), **settings, seed=generator)


# ------------------------------------------------------------------------------------------------- extremal eigenvalues


@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("num_largest", "num_smallest"), [(5, 0), (0, 5), (3, 2), (1, 1)])
def test_both_ends_equal_the_dense_eigenvalues(num_largest, num_smallest, block_size, generator):
    matrix = with_spectrum(torch.linspace(-1, 1, 80) ** 3, generator)
    found = extremal_eigenvalues(
        operator_of(matrix),
        num_largest=num_largest,
        num_smallest=num_smallest,
        tolerance=1e-10,
        space=cv.KrylovSpace(block_size=block_size),
        seed=generator,
    )
    expected = descending(matrix)
    assert found.converged
    assert found.largest.shape == (num_largest,)
    assert found.smallest.shape == (num_smallest,)
    assert np.allclose(found.largest, expected[:num_largest], rtol=0, atol=2e-10)
    assert np.allclose(found.smallest, expected[::-1][:num_smallest], rtol=0, atol=2e-10)
    assert len(found.residuals) == len(found.error_bounds) == num_largest + num_smallest


@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
@pytest.mark.parametrize("ends", [(4, 0), (2, 2)])
def test_restarts_in_a_small_basis_find_the_same(ends, block_size, generator):
    matrix = with_spectrum(torch.linspace(-1, 1, 150), generator)
    widths = []
    found = extremal_eigenvalues(
        operator_of(matrix, widths=widths),
        num_largest=ends[0],
        num_smallest=ends[1],
        tolerance=1e-8,
        space=cv.KrylovSpace(block_size=block_size, max_basis=24),
        checks=False,
        seed=generator,
    )
    expected = descending(matrix)
    assert found.converged
    assert sum(widths) == found.num_products > 24  # it did restart
    assert np.allclose(found.largest, expected[: ends[0]], rtol=0, atol=2e-8)
    assert np.allclose(found.smallest, expected[::-1][: ends[1]], rtol=0, atol=2e-8)


def two_bulks(dim, seed):
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.random(dim // 2) * 0.01, 1 + rng.random(dim - dim // 2) * 0.01]))


def log_bulk(dim, seed):
    return np.sort(10 ** -np.random.default_rng(seed).uniform(0, 3, dim))


MANY_RESTARTS = [  # values, largest basis, block, largest and smallest: some 3 to 300 restarts each
    (two_bulks, 17, 4, (6, 3)),
    (two_bulks, 12, 1, (4, 2)),
    (lambda dim, _: np.linspace(0, 1, dim), 14, 1, (4, 0)),
    (lambda dim, _: np.linspace(-1, 1, dim), 14, 2, (2, 2)),
    (log_bulk, 10, 1, (2, 0)),
    (log_bulk, 20, 3, (5, 1)),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("values", "max_basis", "block_size", "ends"), MANY_RESTARTS)
def test_intervals_after_many_restarts_hold_the_truth_and_stay_narrow(values, max_basis, block_size, ends, seed):
    """A diagonal matrix: its products are exact to one rounding, and its eigenvalues are known."""
    dim, (top, bottom) = 200, ends
    exact = values(dim, seed)
    diagonal = torch.from_numpy(exact)
    operator = SymmetricOperator(
        where=cv.Where("diagonal"),
        dim=dim,
        matmat=lambda block: diagonal[:, None] * block,
        dtype=torch.float64,
        device=torch.device("cpu"),
        routes=routes.Routes(entries=EntriesRoute(lambda: torch.diag(diagonal))),
    )
    space = cv.KrylovSpace(block_size=block_size, max_basis=max_basis)
    found = extremal_eigenvalues(
        operator, num_largest=top, num_smallest=bottom, space=space, verify=True, checks=False, seed=seeded(seed)
    )
    truth = np.concatenate([exact[:bottom], exact[dim - top :]])
    low, high = found.intervals()
    assert found.certified
    assert found.num_products > 2 * max_basis  # it did restart
    assert ((low <= truth) & (truth <= high)).all()
    assert (found.residuals >= 0).all()
    least, most = found.ritz_range
    assert exact[0] - found.noise_floor <= least <= most <= exact[-1] + found.noise_floor
    columns, values = found.vectors.columns, found.vectors.eigenvalues
    assert np.abs(columns.T @ columns - np.eye(len(values))).max() < 1e-14
    residuals = np.linalg.norm(exact[:, None] * columns - columns * values, axis=0)
    np.testing.assert_allclose(residuals, found.residuals, rtol=1e-6, atol=1e-15)


def test_a_run_without_restarts_has_the_intervals_it_had():
    """Its residuals come from the products of the basis themselves, and its floor is ten units of rounding."""
    exact = np.linspace(0.1, 2, 80)
    found = extremal_eigenvalues(operator_of(torch.diag(torch.from_numpy(exact))), num_largest=2, seed=0)
    assert found.noise_floor == 10 * torch.finfo(torch.float64).eps * found.largest[0]
    assert found.num_products < 80


def test_a_budget_holds_with_restarts_too(generator):
    matrix = with_spectrum(torch.linspace(-1, 1, 150), generator)
    for budget in (30, 60, 90):
        widths = []
        space = cv.KrylovSpace(block_size=2, max_basis=20, max_products=budget)
        found = extremal_eigenvalues(operator_of(matrix, widths=widths), num_largest=4, space=space, checks=False)
        assert sum(widths) == found.num_products <= budget + 2
        assert not found.converged


@pytest.mark.parametrize("max_basis", [None, 30])
@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_outliers_have_no_ghosts(max_basis, block_size, generator):
    """The spectrum on which a peer returns eight times 100, all marked converged."""
    matrix = with_spectrum([100.0, 50.0, 20.0, *0.97 ** np.arange(197)], generator)
    found = extremal_eigenvalues(
        operator_of(matrix),
        num_largest=8,
        tolerance=1e-10 / 100,
        space=cv.KrylovSpace(block_size=block_size, max_basis=max_basis),
        seed=generator,
    )
    assert found.converged
    assert np.allclose(found.largest, descending(matrix)[:8], rtol=0, atol=1e-10)


@pytest.mark.parametrize("multiplicity", [2, 3, 4])
def test_a_block_finds_as_many_copies_as_it_has_vectors(multiplicity, generator):
    matrix = with_spectrum([5.0] * multiplicity + list(np.linspace(0, 1, 60)), generator)
    found = extremal_eigenvalues(
        operator_of(matrix),
        num_largest=multiplicity + 1,
        tolerance=1e-9,
        space=cv.KrylovSpace(block_size=multiplicity),
        seed=generator,
    )
    assert found.converged
    assert np.allclose(found.largest, [5.0] * multiplicity + [1.0], rtol=0, atol=1e-8)


def test_one_vector_may_miss_copies_but_never_invents_values(generator):
    matrix = with_spectrum([5.0] * 3 + list(np.linspace(0, 1, 60)), generator)
    found = extremal_eigenvalues(operator_of(matrix), num_largest=3, tolerance=1e-9, seed=generator)
    distance = np.abs(found.largest[:, None] - descending(matrix)).min(axis=1)
    assert found.largest[0] == pytest.approx(5.0, abs=1e-9)
    assert distance.max() < 1e-8


@pytest.mark.parametrize("block_size", [1, 2])
def test_cluster_of_relative_width_7e_5_is_complete(block_size, generator):
    """The cluster of which ARPACK loses a member while it reports convergence (scipy issue 26112)."""
    cluster = [1.0, 1 - 7e-5, 1 - 2.1e-4, 1 - 2.8e-4]
    matrix = with_spectrum([*cluster, *np.linspace(-0.5, 0.9, 116)], generator)
    found = extremal_eigenvalues(
        operator_of(matrix), num_largest=5, tolerance=1e-10, space=cv.KrylovSpace(block_size=block_size), seed=generator
    )
    assert found.converged
    assert np.allclose(found.largest, [*cluster, 0.9], rtol=0, atol=1e-9)


SPECIAL = {
    "zero": torch.zeros(12, 12),
    "identity": torch.eye(12),
    "minus identity": -torch.eye(12),
    "rank one": torch.ones(12, 12),
    "negative rank one": -torch.ones(12, 12),
    "one number": torch.full((1, 1), -3.0),
    "projection": torch.diag(torch.tensor([1.0] * 6 + [0.0] * 6)),
    "permuted signs": torch.diag(torch.tensor([1.0, -1.0] * 6)),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_few_distinct_eigenvalues_with_their_copies(name, block_size, generator):
    """Each start exhausts its Krylov space at once; new starts must bring the other copies."""
    matrix = SPECIAL[name].double()
    wanted = min(3, len(matrix))
    found = extremal_eigenvalues(
        operator_of(matrix),
        num_largest=wanted,
        tolerance=1e-9,
        space=cv.KrylovSpace(block_size=block_size),
        seed=generator,
    )
    assert found.converged
    assert np.allclose(found.largest, descending(matrix)[:wanted], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPECIAL)
def test_every_eigenvalue_of_a_small_matrix_is_found(name, generator):
    matrix = SPECIAL[name].double()
    found = extremal_eigenvalues(operator_of(matrix), num_largest=len(matrix), seed=generator)
    assert found.converged
    assert np.allclose(found.largest, descending(matrix), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-6, 1.0, 1e6, 1e30, 1e150])
@pytest.mark.parametrize("block_size", [1, 3])
def test_scale_of_the_matrix_changes_nothing_else(block_size, scale, generator):
    matrix = with_spectrum([10.0, 8.0, -7.0, *np.linspace(-1, 1, 60)], generator)
    about = {"num_largest": 2, "num_smallest": 1, "tolerance": 1e-9, "space": cv.KrylovSpace(block_size)}
    one = extremal_eigenvalues(operator_of(matrix), **about, seed=seeded(1))
    found = extremal_eigenvalues(operator_of(scale * matrix), **about, seed=seeded(1))
    assert found.converged
    assert found.num_products == one.num_products
    assert np.allclose(found.largest / scale, [10.0, 8.0], rtol=0, atol=1e-8)
    assert np.allclose(found.smallest / scale, [-7.0], rtol=0, atol=1e-8)


def random_case(number):
    """A spectrum of one of four kinds, and how to look at it."""
    generator = seeded(number)
    dim = int(torch.randint(2, 40, (), generator=generator))
    kind = number % 4
    if kind == 0:
        values = normal(generator, dim)
    elif kind == 1:
        values = 10.0 ** (4 * torch.rand(dim, generator=generator, dtype=torch.float64) - 2)
    elif kind == 2:
        values = torch.randint(-3, 4, (dim,), generator=generator).double()
    else:
        values = torch.cat([1e3 * normal(generator, 2), normal(generator, dim - 2)])
    both = dim >= 4 and number % 3 == 0
    return with_spectrum(values, generator), int(1 + number % min(4, dim - 1)), 1 if both else 0, 1 + number % 3


def test_residuals_contain_an_eigenvalue_in_200_random_cases():
    """``r`` always holds; the tighter bound given that nothing was missed: where the values are the extremal ones."""
    complete = 0
    for number in range(200):
        matrix, num_largest, num_smallest, block_size = random_case(number)
        found = extremal_eigenvalues(
            operator_of(matrix),
            num_largest=num_largest,
            num_smallest=num_smallest,
            tolerance=1e-8,
            space=cv.KrylovSpace(block_size=block_size),
            seed=seeded(1000 + number),
        )
        values = torch.linalg.eigvalsh(matrix).numpy()
        rounding = 20 * EPS * np.abs(values).max()
        ritz = np.concatenate([found.smallest, found.largest[::-1]])
        distance = np.abs(ritz[:, None] - values).min(axis=1)
        assert (np.diff(ritz) >= -rounding).all()
        assert (distance <= found.residuals + rounding).all()
        assert found.converged
        expected = np.concatenate([values[:num_smallest], values[len(values) - num_largest :]])
        error = np.abs(ritz - expected)
        if (error <= 1e-6 * np.abs(values).max()).all():
            complete += 1
            assert (error <= found.error_bounds + rounding).all()
    assert complete >= 190  # single vectors miss copies of multiple eigenvalues, kind 2 only


def test_explicit_residual_is_reported_also_where_the_recurrence_says_zero(generator):
    matrix = with_spectrum(torch.linspace(-1, 1, 30), generator)
    found = extremal_eigenvalues(operator_of(matrix), num_largest=30, seed=generator)
    assert 0 < found.residuals.max() < 1e-12
    assert (found.error_bounds > 0).all()  # never smaller than rounding


def test_exhausted_budget_is_not_convergence(generator):
    matrix = with_spectrum(torch.linspace(0, 1, 200), generator)
    found = extremal_eigenvalues(
        operator_of(matrix), num_largest=4, tolerance=1e-12, space=cv.KrylovSpace(max_products=15), seed=generator
    )
    assert not found.converged
    assert found.num_products <= 15 + 4  # and the residuals of what is returned
    values = torch.linalg.eigvalsh(matrix).numpy()
    distance = np.abs(found.largest[:, None] - values).min(axis=1)
    assert (distance <= found.residuals[::-1] + 1e-14).all()


@pytest.mark.parametrize("num_smallest", [0, 2])
def test_fewer_values_than_asked_are_not_convergence(num_smallest, generator):
    """One product with the identity leaves no residual, but one value is not five."""
    found = extremal_eigenvalues(
        operator_of(torch.eye(20, dtype=torch.float64)),
        num_largest=3,
        num_smallest=num_smallest,
        space=cv.KrylovSpace(max_products=1),
        seed=generator,
    )
    assert len(found.largest) + len(found.smallest) < 3 + num_smallest
    assert not found.converged


@pytest.mark.parametrize("wrong", ["duplicate first", "duplicate second", "all equal", "independent"])
def test_next_block_reproduces_the_image_where_columns_depend_on_each_other(wrong, generator):
    """A dependent column must not take a direction of a later one with it."""
    a, b, c = normal(generator, 3, 30)
    image = torch.stack(
        {
            "duplicate first": [a, a, b],
            "duplicate second": [a, b, b],
            "all equal": [a, a, a],
            "independent": [a, b, c],
        }[wrong]
    )
    block, coupling = _next_block(image, image.new_zeros(0, 30), 1e-12)
    assert len(block) == torch.linalg.matrix_rank(image)
    assert torch.allclose(block @ block.T, torch.eye(len(block), dtype=torch.float64), atol=1e-13)
    assert torch.allclose(coupling.T @ block, image, rtol=0, atol=1e-12)


@given(
    values=st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=25),
    block_size=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
def test_largest_ritz_value_is_the_largest_eigenvalue_of_any_spectrum(values, block_size, seed):
    matrix = with_spectrum(values, seeded(seed))
    found = extremal_eigenvalues(
        operator_of(matrix),
        num_largest=1,
        tolerance=1e-8,
        space=cv.KrylovSpace(block_size=block_size),
        seed=seeded(seed + 1),
    )
    exact = descending(matrix)
    norm = np.abs(exact).max()
    assert found.largest[0] <= exact[0] + 100 * EPS * norm  # Courant-Fischer: a Ritz value never exceeds it
    assert found.largest[0] >= exact[0] - 1e-6 * norm - 1e-300


@given(
    values=st.lists(st.integers(-4, 4), min_size=1, max_size=15), block_size=st.integers(1, 4), seed=st.integers(0, 999)
)
def test_asking_for_all_eigenvalues_gives_all_copies(values, block_size, seed):
    matrix = with_spectrum([float(value) for value in values], seeded(seed))
    found = extremal_eigenvalues(
        operator_of(matrix), num_largest=len(values), space=cv.KrylovSpace(block_size=block_size), seed=seeded(seed + 1)
    )
    assert np.allclose(found.largest, sorted(values, reverse=True), rtol=0, atol=1e-11)


def test_single_precision_converges_to_single_precision(generator):
    matrix = with_spectrum([10.0, 8.0, -7.0, *np.linspace(-1, 1, 60)], generator)
    found = extremal_eigenvalues(operator_of(matrix.float()), num_largest=2, num_smallest=1, seed=generator)
    assert found.converged
    assert found.largest.dtype == np.float32
    assert np.allclose(found.largest, [10.0, 8.0], rtol=0, atol=2e-5)
    assert np.allclose(found.smallest, [-7.0], rtol=0, atol=2e-5)
    assert found.error_bounds.min() > 1e-7  # no bound is tighter than the precision


def test_a_hessian_by_products_has_the_eigenvalues_of_its_entries(mlp, classification_data, generator):
    from curvature import Problem, hessian

    problem = Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(30, 5, 3))
    found = extremal_eigenvalues(hessian(problem), num_largest=4, num_smallest=2, tolerance=1e-10, seed=generator)
    expected = descending(hessian(problem, method="generic").dense())
    assert np.allclose(found.largest, expected[:4], rtol=0, atol=1e-9)
    assert np.allclose(found.smallest, expected[::-1][:2], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_largest": 0}, "between 1 and the dimension 5, got 0"),
        ({"num_largest": 4, "num_smallest": 2}, r"got 4 \+ 2"),
        ({"num_largest": -1, "num_smallest": 3}, "got -1"),
        ({"num_largest": 1, "tolerance": 0.0}, "tolerance and block_size must be positive"),
        ({"num_largest": 1, "tolerance": float("nan")}, "tolerance and block_size must be positive"),
        ({"num_largest": 1, "space": cv.KrylovSpace(block_size=0)}, "tolerance and block_size must be positive"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message, generator):
    with pytest.raises(ConfigurationError, match=message):
        extremal_eigenvalues(operator_of(torch.eye(5, dtype=torch.float64)), **settings, seed=generator)


# -------------------------------------------------------------------------------------------------- conjugate gradients


@pytest.mark.parametrize("columns", [None, 1, 5])
@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_solution_equals_the_dense_one(shift, columns, generator):
    matrix = with_spectrum(10 ** torch.linspace(-3, 1, 40), generator)
    sides = normal(generator, 40) if columns is None else normal(generator, 40, columns)
    found = conjugate_gradients(operator_of(matrix), sides, damping=shift, tolerance=1e-12)
    shifted = matrix + shift * torch.eye(40, dtype=torch.float64)
    expected = torch.linalg.solve(shifted, sides)
    assert found.shape == sides.shape
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)
    residual = torch.linalg.vector_norm(shifted @ found - sides, dim=0)
    assert (residual <= 2e-12 * torch.linalg.vector_norm(sides, dim=0) * 1.01).all()


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_solution_scales_with_the_matrix(scale, generator):
    matrix = with_spectrum(torch.linspace(1, 10, 20), generator)
    side = normal(generator, 20)
    found = conjugate_gradients(operator_of(scale * matrix), side)
    assert torch.allclose(scale * found, torch.linalg.solve(matrix, side), rtol=1e-8, atol=0)


def test_zero_right_hand_side_has_the_zero_solution(generator):
    matrix = with_spectrum(torch.linspace(1, 2, 10), generator)
    sides = torch.stack([torch.zeros(10, dtype=torch.float64), normal(generator, 10)], dim=1)
    found = conjugate_gradients(operator_of(matrix), sides)
    assert (found[:, 0] == 0).all()
    assert torch.allclose(matrix @ found[:, 1], sides[:, 1], atol=1e-9)


def test_a_finished_column_waits_for_the_others(generator):
    matrix = with_spectrum(10 ** torch.linspace(-4, 0, 40), generator)
    easy = torch.linalg.eigh(matrix).eigenvectors[:, -1]  # solved in one step
    sides = torch.stack([easy, normal(generator, 40)], dim=1)
    found = conjugate_gradients(operator_of(matrix), sides)
    assert torch.allclose(found[:, 0], easy, atol=1e-9)
    assert torch.allclose(matrix @ found[:, 1], sides[:, 1], atol=1e-8)


def test_indefinite_matrix_is_refused_and_a_shift_repairs_it(generator):
    matrix = with_spectrum(torch.linspace(-1, 3, 30), generator)
    side = normal(generator, 30)
    with pytest.raises(ConvergenceError, match="not positive definite"):
        conjugate_gradients(operator_of(matrix), side)
    found = conjugate_gradients(operator_of(matrix), side, damping=1.5)
    assert torch.allclose(matrix @ found + 1.5 * found, side, atol=1e-8)


def test_singular_matrix_is_refused(generator):
    with pytest.raises(ConvergenceError):
        conjugate_gradients(operator_of(with_spectrum([0.0] * 5 + [1.0] * 5, generator)), normal(generator, 10))


@pytest.mark.parametrize(("tolerance", "max_products"), [(1e-10, 3), (1e-30, None)])
def test_a_goal_out_of_reach_is_an_error_with_the_residual(tolerance, max_products, generator):
    widths = []
    matrix = with_spectrum(10 ** torch.linspace(-6, 0, 25), generator)
    with pytest.raises(ConvergenceError, match=r"stopped after \d+ products with a relative residual of \d"):
        conjugate_gradients(
            operator_of(matrix, widths=widths), normal(generator, 25), tolerance=tolerance, max_products=max_products
        )
    assert len(widths) <= 2 * (max_products or 250) + 2


# ---------------------------------------------------------------------------------------------------- hostile operators


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("after", [0, 3])
def test_nan_and_infinity_are_refused_whenever_they_come(after, poison, generator):
    matrix = with_spectrum(torch.linspace(1, 3, 30), generator)
    for run in (
        lambda bad: lanczos(bad, normal(generator, 30, 2), 8),
        lambda bad: spectral_density(bad, num_matvecs=8, num_probes=2, seed=generator),
        lambda bad: extremal_eigenvalues(bad, num_largest=2, seed=generator),
        lambda bad: conjugate_gradients(bad, normal(generator, 30)),
    ):
        calls = []

        def matmat(block, calls=calls):
            calls.append(1)
            return matrix @ block * (poison if len(calls) > after else 1.0)

        bad = SymmetricOperator(where=cv.Where("bad"), dim=30, matmat=matmat, dtype=matrix.dtype, device=matrix.device)
        with pytest.raises(NonFiniteError, match="bad"):
            run(bad)
