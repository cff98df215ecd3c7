r"""The stretch $\|v\|/|g|$ at which weight normalization suits a point best: the most that its gauge could do there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import WeightNorm
from curvature.errors import ConfigurationError, NotDefinedError
from curvature.layout import Entry
from curvature.linalg.eigen import spectrum
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import fisher as fisher_matrix
from curvature.models import Problem
from curvature.natural_gradient.preconditioners import absolute_damping
from curvature.precision import full_precision
from curvature.records.damping import Damping

__all__ = ["best_stretch", "best_stretches", "stretch_in_closed_form"]

_STRETCH_RANGE = (1e-4, 1e4)
_SCOPES = ("network", "layer", "neuron")  # from coarse to fine
_CRITERIA = ("efficiency", "kappa")
_PERCENT = 80  # of the rank: the headline kappa that a gauge is chosen by
_UNIFORM_STARTS = (0.01, 0.1, 1.0, 10.0, 100.0)  # stretches from which one number for the network is searched
_MAX_EVALUATIONS = 60  # of one search, each an eigendecomposition


@full_precision()
def best_stretch(
    problem: Problem,
    *,
    damping: float | None = None,
    relative_damping: float | None = None,
    fisher: SymmetricOperator | None = None,
) -> float:
    r"""Return the one stretch $\|v\|/|g|$ for all neurons that maximizes the efficiency.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    damping, relative_damping
        As for :func:`curvature.efficiency`.
    fisher
        The Fisher, if it has been computed already.

    Returns
    -------
    float
        Between 1e-4 and 1e4; an end of this range where the efficiency has its supremum beyond it.

    Raises
    ------
    NotDefinedError
        If the gradient is zero.

    Notes
    -----
    With $K = P + \rho Q$ the efficiency is a ratio of quadratics in $\rho$ with one stationary point, known in closed
    form. Costs the Fisher and three products with it.
    """
    chosen = Damping.chosen(damping, relative_damping)
    matrix = (fisher or fisher_matrix(problem)).entries()
    return stretch_in_closed_form(problem, matrix, absolute_damping(matrix, chosen))


def stretch_in_closed_form(problem: Problem, matrix: Float[Tensor, "weights weights"], shift: float) -> float:
    r"""Return the best stretch for the entries of a Fisher matrix and the absolute damping ``shift``.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    matrix
        $F$ on the weights, ``(P, P)``.
    shift
        $\lambda$, added to $F$.

    Returns
    -------
    float
        As :func:`best_stretch`.

    Raises
    ------
    NotDefinedError
        If the gradient is zero.
    """
    gradient = _nonzero_gradient(problem)
    radial, tangential = _radial_and_tangential(problem, gradient)
    a, b = float(gradient @ radial), float(gradient @ tangential)

    def product(x: Tensor, y: Tensor) -> float:
        return float(x @ (matrix @ y) + shift * (x @ y))

    c0, c1, c2 = product(radial, radial), product(radial, tangential), product(tangential, tangential)
    low, high = _STRETCH_RANGE
    candidates = [high**-2, low**-2]
    numerator, denominator = b * c0 - a * c1, a * c2 - b * c1
    if denominator and numerator / denominator > 0:
        candidates.append(min(max(numerator / denominator, high**-2), low**-2))
    best_rho = max(candidates, key=lambda rho: (a + rho * b) ** 2 / (c0 + 2 * rho * c1 + rho**2 * c2))
    return best_rho**-0.5


@full_precision()
def best_stretches(
    problem: Problem,
    *,
    by: str = "neuron",
    criterion: str = "efficiency",
    damping: float | None = None,
    relative_damping: float | None = None,
    fisher: SymmetricOperator | None = None,
) -> dict[str, Float[Tensor, "rows"]]:
    r"""Return the best gauge at this point: one stretch for the network, for each layer, or for each neuron.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    by
        ``"network"``, ``"layer"`` or ``"neuron"`` (a normalized row): what shares one stretch.
    criterion
        ``"efficiency"``: the largest $E$ of :func:`curvature.efficiency`, exactly. With $K g = p + \sum_k \rho_k q_k$
        ($q_k$ the tangential gradient of group $k$, $p$ all the rest) and $A = L L^T$, it is the nonnegative
        least-squares problem $\min_{x \ge 0} \|L^T (x_0 p + \sum_k x_k q_k) - L^{-1} g\|$, $\rho_k = x_k / x_0$ [1]_.

        ``"kappa"``: a small $\kappa_{80}$ of $K^{1/2} F K^{1/2}$, undamped. A *local* search over $\log \rho$ (L-BFGS-B
        with $\partial \log \lambda_i / \partial \log \rho_k = \|M_k y_i\|^2$, $y_i$ the eigenvector, $M_k$ the
        tangential projector of the group). The result is an upper bound on the least $\kappa_{80}$. It is never worse
        than the canonical gauge, nor than the result for the next coarser groups, from which the search starts.
    damping, relative_damping
        As for :func:`curvature.efficiency`; ``"kappa"`` does not use them.
    fisher
        The Fisher, if it has been computed already.

    Returns
    -------
    dict
        By weight name one stretch $\|v\|/|g|$ per row, for ``WeightNorm(stretch=...)``. The ends of the range 1e-4 to
        1e4 mean "no step along this direction" and "steps along this direction only". 1 where the gauge has no effect.

    Raises
    ------
    NotDefinedError
        If the gradient is zero, or $\kappa_{80}$ is not resolved at the canonical gauge.

    Notes
    -----
    Costs one factorization of the Fisher, or for ``"kappa"`` some hundred eigendecompositions of it.

    References
    ----------
    .. [1] Lawson & Hanson (1974). Solving Least Squares Problems, chapter 23.

    Examples
    --------
    >>> from curvature import zoo
    >>> problem = zoo.digits_problem(num_examples=40, widths=(4,))
    >>> {name: len(rows) for name, rows in best_stretches(problem, by="neuron").items()}
    {'0.weight': 4, '2.weight': 10}
    """
    if by not in _SCOPES:
        raise ConfigurationError(f"by must be one of {', '.join(_SCOPES)}, got {by!r}.")
    if criterion not in _CRITERIA:
        raise ConfigurationError(f"criterion must be one of {', '.join(_CRITERIA)}, got {criterion!r}.")
    chosen = Damping.chosen(damping, relative_damping)
    _nonzero_gradient(problem)
    if not _normalized(problem):
        raise ConfigurationError("the model has no linear or convolutional layer that weight norm could normalize.")
    operator = fisher or fisher_matrix(problem)
    if criterion == "efficiency":
        groups = _Groups(problem, by)
        return groups.stretches(_most_efficient_rhos(problem, groups, operator.entries(), chosen))
    position = _resolved_position(operator)
    matrix, groups = operator.entries(), _Groups(problem, "network")
    starts = [torch.tensor([-2 * math.log(stretch)], dtype=torch.float64) for stretch in _UNIFORM_STARTS]
    logs = _least_kappa(problem, groups, matrix, position, starts)
    for scope in _SCOPES[1 : _SCOPES.index(by) + 1]:
        coarser, groups = groups, _Groups(problem, scope)
        starts = [logs[coarser.group_of(groups)], torch.zeros(groups.count, dtype=torch.float64)]
        logs = _least_kappa(problem, groups, matrix, position, starts)
    return groups.stretches(logs.exp())


class _Groups:
    """Which rows of the normalized weights share one stretch."""

    def __init__(self, problem: Problem, by: str):
        pairs = _normalized(problem)
        layers = list(dict.fromkeys(entry.layer for entry, _ in pairs))
        self.rows: dict[str, Tensor] = {}  # group of each row, by weight name
        self.of_weight = torch.full((problem.dim,), -1)  # group of each weight, -1 where none is normalized
        num_rows = 0
        for entry, span in pairs:
            rows = {
                "network": torch.zeros(entry.num_rows, dtype=torch.long),
                "layer": torch.full((entry.num_rows,), layers.index(entry.layer)),
                "neuron": num_rows + torch.arange(entry.num_rows),
            }[by]
            num_rows += entry.num_rows
            self.rows[entry.name] = rows
            self.of_weight[span] = entry.from_rows(rows[:, None].expand(-1, entry.numel // entry.num_rows))
        self.count = int(self.of_weight.max()) + 1

    def group_of(self, finer: _Groups) -> Tensor:
        """For each finer group, the group here that it belongs to."""
        groups = torch.zeros(finer.count, dtype=torch.long)
        for name, rows in self.rows.items():
            groups[finer.rows[name]] = rows
        return groups

    def stretches(self, rhos: Tensor) -> dict[str, Tensor]:
        """One stretch per row, by weight name, for one ``rho`` per group."""
        low, high = _STRETCH_RANGE
        values = rhos.rsqrt().clamp(low, high)
        return {name: values[rows] for name, rows in self.rows.items()}


def _least_kappa(problem: Problem, groups: _Groups, matrix: Tensor, position: int, starts: Sequence[Tensor]) -> Tensor:
    """Best logarithms of rho that L-BFGS-B meets on its ways from the starts, the starts included."""
    from scipy.optimize import minimize  # slow to import, and few calls need it

    reach = -2 * math.log(_STRETCH_RANGE[0])
    objective = _LogKappa(problem, groups, matrix, position, starts[0])
    for start in starts:
        minimize(
            objective,
            start.numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-reach, reach)] * groups.count,
            options={"maxfun": _MAX_EVALUATIONS},
        )
    return objective.least_logs


class _LogKappa:
    r"""$\log \kappa_{80}$ of $K^{1/2} F K^{1/2}$ and its gradient in $\log \rho$ per group; remembers the least."""

    def __init__(self, problem: Problem, groups: _Groups, matrix: Tensor, position: int, start: Tensor):
        self.problem, self.groups, self.matrix, self.position = problem, groups, matrix, position
        self.least, self.least_logs = math.inf, start

    def __call__(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        problem, groups = self.problem, self.groups
        stretches = groups.stretches(torch.as_tensor(logs).exp())
        chart = WeightNorm(stretch=stretches).at(problem.layout, problem.weights)
        values, vectors = torch.linalg.eigh(chart.effective(self.matrix))
        if not float(values[-self.position]) > 0:
            return math.inf, np.zeros_like(logs)
        value = math.log(float(values[-1] / values[-self.position]))
        if value < self.least:
            self.least, self.least_logs = value, torch.as_tensor(logs.copy())
        extremes = vectors[:, [-1, -self.position]]
        derivatives = torch.zeros(groups.count, 2, dtype=torch.float64)
        for entry, span in _normalized(problem):
            directions = torch.nn.functional.normalize(entry.rows(problem.weights[span]), dim=1)
            parts = entry.rows(extremes[span])
            along = torch.einsum("ri, rik -> rk", directions, parts)
            tangential = parts.square().sum(dim=1) - along.square()
            derivatives.index_add_(0, groups.rows[entry.name], tangential.cpu().double())
        return value, (derivatives[:, 0] - derivatives[:, 1]).numpy()


def _normalized(problem: Problem) -> list[tuple[Entry, slice]]:
    return [(entry, span) for entry, span in problem.layout.pairs() if entry.normalized]


def _nonzero_gradient(problem: Problem) -> Tensor:
    gradient = problem.gradient()
    if not gradient.any():
        raise NotDefinedError("the gradient is zero here: there is no step to stretch.")
    return gradient


def _resolved_position(fisher: SymmetricOperator) -> int:
    """Number (from the top) of the eigenvalue under the line of kappa, which must be above the noise floor."""
    eigenvalues = spectrum(fisher, method="dense")
    position = -(-_PERCENT * eigenvalues.rank // 100)
    if not eigenvalues.on_rank[position - 1] > eigenvalues.noise_floor:
        raise NotDefinedError(
            f"kappa_{_PERCENT} is not resolved here (eigenvalue {position} of {eigenvalues.rank} is below the noise "
            f"floor {eigenvalues.noise_floor:.1e}): there is nothing to minimize."
        )
    return position


def _radial_and_tangential(problem: Problem, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """``(p, q)`` with ``K g = p + rho q`` under weight normalization: K = I at rho = 1, so two gauges give both."""
    chart = WeightNorm(stretch=0.5).at(problem.layout, problem.weights)
    tangential = (chart.metric(gradient[:, None])[:, 0] - gradient) / 3
    return gradient - tangential, tangential


def _most_efficient_rhos(problem: Problem, groups: _Groups, matrix: Tensor, damping: Damping) -> Tensor:
    from scipy.optimize import nnls  # slow to import, and few calls need it

    gradient = problem.gradient()
    radial, tangential = _radial_and_tangential(problem, gradient)
    members = groups.of_weight.to(problem.device)
    columns = torch.zeros(problem.dim, groups.count + 1, dtype=gradient.dtype, device=gradient.device)
    columns[:, 0] = radial
    grouped = (members >= 0).nonzero().flatten()
    columns[grouped, 1 + members[grouped]] = tangential[grouped]
    factor = torch.linalg.cholesky(
        matrix + absolute_damping(matrix, damping) * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    )
    design, target = factor.T @ columns, torch.linalg.solve_triangular(factor, gradient[:, None], upper=False)[:, 0]
    lengths = torch.linalg.vector_norm(design, dim=0)
    moves = lengths > 0  # a group without a tangential gradient may have any rho
    scale = torch.where(moves, lengths, torch.ones_like(lengths))
    solution = torch.as_tensor(nnls((design / scale).cpu().numpy(), target.cpu().numpy())[0]) / scale.cpu()
    low, high = _STRETCH_RANGE
    # Where nothing but tangential steps would do, the largest of them goes to the end of the range.
    rhos = (solution[1:] / max(float(solution[0]), float(solution[1:].max()) * low**2)).clamp(high**-2, low**-2)
    return torch.where(moves[1:].cpu(), rhos, torch.ones_like(rhos))
