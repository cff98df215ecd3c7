r"""Gradient, natural-gradient and chart steps, compared where they meet: on the weights.

Damping is not invariant under a chart: $(F_\theta + \lambda I)^{-1}$ pushes forward to $(F + \lambda K^{-1})^{-1}$.
So one damping metric is fixed on the weights, $A = F + \lambda I$, and pushed-forward steps are compared in its norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from curvature.charts import Chart, Parameterization, Placebo, Standard, WeightNorm
from curvature.errors import ConfigurationError, NotDefinedError
from curvature.linalg.eigen import spectrum
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import fisher as fisher_matrix
from curvature.matrices import gradient_covariance
from curvature.models import Problem
from curvature.natural_gradient.preconditioners import Preconditioners, absolute_damping
from curvature.precision import full_precision
from curvature.records import StepComparison

__all__ = [
    "DAMPINGS",
    "Controls",
    "best_stretch",
    "best_stretches",
    "chart_step",
    "compare_charts",
    "control_charts",
    "efficiency",
    "natural_gradient_step",
]

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_STRETCH_RANGE = (1e-4, 1e4)
_SCOPES = ("network", "layer", "neuron")
_CRITERIA = ("efficiency", "kappa")
_PERCENT = 80  # of the rank: the headline kappa that a gauge is chosen by
_UNIFORM_STARTS = (0.01, 0.1, 1.0, 10.0, 100.0)  # stretches from which one number for the network is searched
_MAX_EVALUATIONS = 60  # of one search, each an eigendecomposition


@full_precision()
def chart_step(problem: Problem, chart: Parameterization) -> Tensor:
    r"""The gradient step of a chart, pushed forward to the weights: $-K \nabla L$, ``(P,)``, at unit learning rate."""
    at = chart.at(problem.layout, problem.weights)
    return -at.metric(problem.gradient()[:, None])[:, 0]


@full_precision()
def natural_gradient_step(
    problem: Problem, *, damping: float, block: str = "all", fisher: SymmetricOperator | None = None
) -> Tensor:
    r"""The damped natural-gradient step $-(F + \lambda I)^{-1} \nabla L$, $\lambda = a \operatorname{tr}(F)/P$.

    ``block`` is ``"all"``, ``"layer"`` or ``"neuron"`` (block-diagonal $F$). ``damping=0`` gives the minimum-norm
    step $-F^+ \nabla L$. Without damping the step does not depend on the chart, up to the null space of $F$; with
    damping it does. It needs a well separated null space.
    """
    matrix = (fisher or fisher_matrix(problem)).entries()
    slope = problem.gradient()
    step = torch.zeros_like(slope)
    shift = absolute_damping(matrix, damping) if damping else 0.0
    for indices in problem.layout.blocks(block).values():
        where = indices.to(problem.device)
        values, vectors = torch.linalg.eigh(matrix[where][:, where])
        if damping:
            inverse = 1 / (values.clamp(min=0) + shift)
        else:
            kept = values > len(values) * torch.finfo(values.dtype).eps * values.max()
            inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0.0)
        step[where] = -vectors @ (inverse * (vectors.T @ slope[where]))
    return step


@full_precision()
def efficiency(
    problem: Problem,
    chart: Parameterization,
    *,
    damping: float = 1e-3,
    fisher: SymmetricOperator | None = None,
) -> StepComparison:
    r"""How much of the natural gradient's progress one chart's gradient step makes.

    $$E = \frac{(g^T K g)^2}{g^T K A K g \; g^T A^{-1} g} \in [0, 1], \quad A = F + \lambda I:$$

    the best line-search decrease of the quadratic model along $-K g$, over that of the full damped natural-gradient
    step; the squared cosine between the two steps in the $A$-norm. At least $4\kappa/(1 + \kappa)^2$ with $\kappa$
    the condition number of $K^{1/2} A K^{1/2}$ (Kantorovich).

    Parameters
    ----------
    chart
        Any parameterization.
    damping
        $a$ in $\lambda = a \operatorname{tr}(F)/P$, on the weights.
    fisher
        The Fisher, if it is at hand.

    Returns
    -------
    StepComparison
        With its ``index`` (gradient descent is 0, neuron-block natural gradient 1) and its closeness to $A^{-1}$.

    Examples
    --------
    >>> from curvature import zoo
    >>> from curvature.natural_gradient.preconditioners import preconditioner
    >>> problem = zoo.digits_problem(num_examples=40, widths=(4,))
    >>> natural = preconditioner(problem, "full", damping=1e-2)
    >>> round(efficiency(problem, natural, damping=1e-2).efficiency, 6)
    1.0
    """
    return compare_charts(problem, [chart], dampings=(damping,), fisher=fisher)[0]


@full_precision()
def compare_charts(
    problem: Problem,
    charts: Sequence[Parameterization] | None = None,
    *,
    dampings: Iterable[float] = (1e-3,),
    by: str = "all",
    fisher: SymmetricOperator | None = None,
    controls: Controls | None = None,
    closeness: bool = True,
) -> tuple[StepComparison, ...]:
    """Compare the steps of many charts with the natural gradient, over dampings and scopes.

    Parameters
    ----------
    charts
        None: :func:`control_charts` at each damping.
    dampings
        Relative dampings $a$.
    by
        Scope: ``"all"``, or one comparison per ``"layer"`` or per ``"neuron"``, with the blocks of $F$, $K$ and the
        gradient that belong to it.
    controls
        What is shared between calls at one point (Fisher and covariance factorized once); made here if None.
    closeness
        For ``by="all"``: also the distance of $K$ from a multiple of $A^{-1}$, at the cost of one set of eigenvalues
        per chart and damping.

    Cost: the Fisher once, one factorization per block and damping.
    """
    controls = controls or Controls(problem, fisher)
    matrix, slope = controls.preconditioners.matrix, problem.gradient()
    if not slope.any():
        raise NotDefinedError("the gradient is zero here: there is no step to compare.")
    blocks = {name: index.to(problem.device) for name, index in problem.layout.blocks(by).items()}
    found = []
    for damping in dampings:
        shift = absolute_damping(matrix, damping)
        damped = matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        listed = control_charts(problem, damping=damping, controls=controls) if charts is None else charts
        ends = [Standard(), controls.preconditioners.chart("neuron-block", damping)]
        at = [chart.at(problem.layout, problem.weights) for chart in (*ends, *listed)]
        for name, where in blocks.items():
            local = damped if by == "all" else damped[where][:, where]
            part = torch.zeros_like(slope)
            part[where] = slope[where]
            if not part.any():
                continue
            best = part[where] @ _solve(local, part[where])
            steps = [chart.metric(part[:, None])[where, 0] for chart in at]
            low, high, *values = (_cosine(local, part[where], step, best) for step in steps)
            for chart, value in zip(at[len(ends) :], values, strict=True):
                comparison = StepComparison(
                    chart=chart.name,
                    gauge=chart.gauge,
                    damping=damping,
                    lambda_=shift,
                    efficiency=value,
                    block=name,
                    index=(value - low) / (high - low) if high - low > 1e-12 else math.nan,
                    num_examples=problem.num_examples,
                )
                if closeness and by == "all":
                    comparison = replace(comparison, **_closeness(chart, damped))
                found.append(comparison)
    return tuple(found)


class Controls:
    """What the control charts of one problem share: the factorized Fisher and the gradient covariance."""

    def __init__(
        self,
        problem: Problem,
        fisher: SymmetricOperator | None = None,
        covariance: SymmetricOperator | None = None,
    ):
        self.problem = problem
        self.preconditioners = Preconditioners(problem, fisher)
        self._covariance = covariance

    @cached_property
    def top_directions(self) -> dict[str, Tensor]:
        """Top eigenvector of each neuron's gradient covariance."""
        return top_directions(self.problem, self._covariance)


@full_precision()
def control_charts(
    problem: Problem,
    *,
    damping: float = 1e-3,
    stretch: float | None = None,
    seed: int = 0,
    controls: Controls | None = None,
) -> list[Parameterization]:
    """The charts between gradient descent and the natural gradient that make an efficiency mean something.

    Gradient descent; weight norm at the canonical gauge, at the paper's (or ``stretch``) and at the module's own; the
    same ``rho`` around random directions (placebo) and around the top eigenvector of each neuron's gradient
    covariance; the best single ``rho``; Jacobi, neuron-block and layer-block natural gradient, K-FAC, PRONG, full
    natural gradient.
    """
    controls = controls or Controls(problem)
    gauge: dict = {"stretch": stretch} if stretch is not None else {"gauge": "paper"}
    charts: list[Parameterization] = [Standard(), WeightNorm(), WeightNorm(**gauge)]
    if isinstance(problem.chart, WeightNorm):
        charts.append(problem.chart)
    best = WeightNorm(stretch=best_stretch(problem, damping=damping, fisher=controls.preconditioners.matrix))
    best.gauge = "best stretch"
    charts += [
        Placebo(seed=seed, **gauge),
        Placebo(directions=controls.top_directions, name="e1-direction", **gauge),
        best,
    ]
    kinds = ("jacobi", "neuron-block", "layer-block", "kfac", "prong", "full")
    return charts + [controls.preconditioners.chart(kind, damping) for kind in kinds]


@full_precision()
def best_stretch(problem: Problem, *, damping: float = 1e-3, fisher: Tensor | None = None) -> float:
    r"""The one stretch $\|v\|/|g|$ for all neurons that maximizes the efficiency: how much the gauge could do at all.

    With $K = P + \rho Q$ the efficiency is a ratio of quadratics in $\rho$ with one stationary point, in closed form.
    The supremum can lie at an end; then the end of the range 1e-4 to 1e4 is returned.
    """
    matrix = fisher_matrix(problem).entries() if fisher is None else fisher
    shift = absolute_damping(matrix, damping)
    slope = problem.gradient()
    if not slope.any():
        raise NotDefinedError("the gradient is zero here: there is no step to stretch.")
    radial, tangential = _parts(problem)
    a, b = float(slope @ radial), float(slope @ tangential)

    def product(x: Tensor, y: Tensor) -> float:
        return float(x @ (matrix @ y) + shift * (x @ y))

    c0, c1, c2 = product(radial, radial), product(radial, tangential), product(tangential, tangential)
    low, high = _STRETCH_RANGE
    candidates = [high**-2, low**-2]
    numerator, denominator = b * c0 - a * c1, a * c2 - b * c1
    if denominator and numerator / denominator > 0:
        candidates.append(min(max(numerator / denominator, high**-2), low**-2))
    best = max(candidates, key=lambda rho: (a + rho * b) ** 2 / (c0 + 2 * rho * c1 + rho**2 * c2))
    return best**-0.5


@full_precision()
def best_stretches(
    problem: Problem,
    *,
    by: str = "neuron",
    criterion: str = "efficiency",
    damping: float = 1e-3,
    fisher: SymmetricOperator | None = None,
) -> dict[str, Tensor]:
    r"""The gauge that suits this point best: one stretch for the network, for each layer, or for each neuron.

    What weight normalization could do at all, against what it does at a gauge that somebody chose.

    Parameters
    ----------
    by
        ``"network"``, ``"layer"`` or ``"neuron"`` (a normalized row): what shares one stretch.
    criterion
        ``"efficiency"``: the largest $E$ of :func:`efficiency`, exactly. With $K g = p + \sum_k \rho_k q_k$ ($q_k$ the
        tangential gradient of group $k$, $p$ all the rest) and $A = L L^T$, it is the nonnegative least-squares problem
        $\min_{x \ge 0} \|L^T (x_0 p + \sum_k x_k q_k) - L^{-1} g\|$, $\rho_k = x_k / x_0$ (Lawson & Hanson 1974).

        ``"kappa"``: a small $\kappa_{80}$ of $K^{1/2} F K^{1/2}$, undamped. A *local* search over $\log \rho$ (L-BFGS-B
        with $\partial \log \lambda_i / \partial \log \rho_k = \|M_k y_i\|^2$, $y_i$ the eigenvector, $M_k$ the
        tangential projector of the group), so what it gives is an upper bound on the least $\kappa_{80}$: never worse
        than the canonical gauge, nor than the result for the next coarser groups, from which it starts.
    damping
        As in :func:`efficiency`; ``"kappa"`` has none.
    fisher
        The Fisher, if it is at hand.

    Returns
    -------
    dict
        By weight name one stretch $\|v\|/|g|$ per row, for ``WeightNorm(stretch=...)``; within 1e-4 to 1e4, whose ends
        stand for "none of this direction" and "nothing but it". 1 where the gauge makes no difference.

    Raises
    ------
    NotDefinedError
        If the gradient is zero, or $\kappa_{80}$ is not resolved at the canonical gauge.

    Notes
    -----
    Cost: one factorization of the Fisher, or for ``"kappa"`` some hundred eigendecompositions of it.

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
    if not problem.gradient().any():
        raise NotDefinedError("the gradient is zero here: there is no step to stretch.")
    operator = fisher or fisher_matrix(problem)
    if criterion == "efficiency":
        groups = _Groups(problem, by)
        return groups.stretches(_most_efficient(problem, groups, operator.entries(), damping))
    rank = spectrum(operator, method="dense")
    position = -(-_PERCENT * rank.rank // 100)
    if not rank.on_rank[position - 1] > rank.noise_floor:
        raise NotDefinedError(
            f"kappa_{_PERCENT} is not resolved here (eigenvalue {position} of {rank.rank} is below the noise floor "
            f"{rank.noise_floor:.1e}): there is nothing to minimize."
        )
    matrix, coarser, logs = operator.entries(), None, torch.empty(0)
    for scope in _SCOPES[: _SCOPES.index(by) + 1]:
        groups = _Groups(problem, scope)
        if coarser is None:
            starts = [torch.tensor([-2 * math.log(stretch)], dtype=torch.float64) for stretch in _UNIFORM_STARTS]
        else:
            starts = [logs[coarser.of_group(groups)], torch.zeros(groups.count, dtype=torch.float64)]
        logs = _least_kappa(problem, groups, matrix, position, starts)
        coarser = groups
    return groups.stretches(logs.exp())


class _Groups:
    """Which rows of normalized weights share one stretch."""

    def __init__(self, problem: Problem, by: str):
        entries = [(entry, where) for entry, where in problem.layout.pairs() if entry.normalized]
        layers = list(dict.fromkeys(entry.layer for entry, _ in entries))
        self.rows: dict[str, Tensor] = {}  # group of each row, by weight name
        self.of_weight = torch.full((problem.dim,), -1)  # group of each weight, -1 where none is normalized
        taken = 0
        for entry, where in entries:
            rows = {
                "network": torch.zeros(entry.num_rows, dtype=torch.long),
                "layer": torch.full((entry.num_rows,), layers.index(entry.layer)),
                "neuron": taken + torch.arange(entry.num_rows),
            }[by]
            taken += entry.num_rows
            self.rows[entry.name] = rows
            self.of_weight[where] = entry.from_rows(rows[:, None].expand(-1, entry.numel // entry.num_rows))
        self.count = int(self.of_weight.max()) + 1

    def of_group(self, finer: _Groups) -> Tensor:
        """For each finer group, the group here that it belongs to."""
        found = torch.zeros(finer.count, dtype=torch.long)
        for name, rows in self.rows.items():
            found[finer.rows[name]] = rows
        return found

    def stretches(self, rhos: Tensor) -> dict[str, Tensor]:
        low, high = _STRETCH_RANGE
        values = rhos.rsqrt().clamp(low, high)
        return {name: values[rows] for name, rows in self.rows.items()}


def _parts(problem: Problem) -> tuple[Tensor, Tensor]:
    """``(p, q)`` with ``K g = p + rho q`` under weight normalization: K = I at rho = 1, so two gauges give both."""
    slope = problem.gradient()
    tangential = (-chart_step(problem, WeightNorm(stretch=0.5)) - slope) / 3
    return slope - tangential, tangential


def _most_efficient(problem: Problem, groups: _Groups, matrix: Tensor, damping: float) -> Tensor:
    slope, (rest, tangential) = problem.gradient(), _parts(problem)
    members = groups.of_weight.to(problem.device)
    columns = torch.zeros(problem.dim, groups.count + 1, dtype=slope.dtype, device=slope.device)
    columns[:, 0] = rest
    inside = (members >= 0).nonzero().flatten()
    columns[inside, 1 + members[inside]] = tangential[inside]
    factor = torch.linalg.cholesky(
        matrix + absolute_damping(matrix, damping) * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    )
    design, aim = factor.T @ columns, torch.linalg.solve_triangular(factor, slope[:, None], upper=False)[:, 0]
    lengths = torch.linalg.vector_norm(design, dim=0)
    moves = lengths > 0  # a group without a tangential gradient may have any rho
    scale = torch.where(moves, lengths, torch.ones_like(lengths))
    found = torch.as_tensor(nnls((design / scale).cpu().numpy(), aim.cpu().numpy())[0]) / scale.cpu()
    low, high = _STRETCH_RANGE
    # Where nothing but tangential steps would do, the largest of them goes to the end of the range.
    rhos = (found[1:] / max(float(found[0]), float(found[1:].max()) * low**2)).clamp(high**-2, low**-2)
    return torch.where(moves[1:].cpu(), rhos, torch.ones_like(rhos))


def _least_kappa(problem: Problem, groups: _Groups, matrix: Tensor, position: int, starts: Sequence[Tensor]) -> Tensor:
    """Best logarithms of rho that L-BFGS-B meets on its ways from the starts, the starts included."""
    reach = -2 * math.log(_STRETCH_RANGE[0])
    entries = [(entry, where) for entry, where in problem.layout.pairs() if entry.normalized]
    best: list = [math.inf, starts[0]]

    def objective(logs: np.ndarray) -> tuple[float, np.ndarray]:
        rhos = torch.as_tensor(logs).exp()
        chart = WeightNorm(stretch=groups.stretches(rhos)).at(problem.layout, problem.weights)
        values, vectors = torch.linalg.eigh(chart.effective(matrix))
        ends = vectors[:, [-1, -position]]
        if not float(values[-position]) > 0:
            return math.inf, np.zeros_like(logs)
        kappa = math.log(float(values[-1] / values[-position]))
        if kappa < best[0]:
            best[:] = kappa, torch.as_tensor(logs.copy())
        slope = torch.zeros(groups.count, 2, dtype=torch.float64)
        for entry, where in entries:
            unit = torch.nn.functional.normalize(entry.rows(problem.weights[where]), dim=1)
            part = entry.rows(ends[where])
            across = part.square().sum(dim=1) - torch.einsum("ri, rik -> rk", unit, part).square()
            slope.index_add_(0, groups.rows[entry.name], across.cpu().double())
        return kappa, (slope[:, 0] - slope[:, 1]).numpy()

    for start in starts:
        minimize(
            objective,
            start.numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-reach, reach)] * groups.count,
            options={"maxfun": _MAX_EVALUATIONS},
        )
    return best[1]


@full_precision()
def top_directions(problem: Problem, covariance: SymmetricOperator | None = None) -> dict[str, Tensor]:
    """Top eigenvector of each neuron's gradient covariance, shaped like the normalized weights."""
    matrix = (covariance or gradient_covariance(problem)).entries()
    found = {}
    for entry, where in problem.layout.pairs():
        if not entry.normalized:
            continue
        rows = entry.rows(torch.arange(where.start, where.stop, device=problem.device))
        tops = [torch.linalg.eigh(matrix[row][:, row]).eigenvectors[:, -1] for row in rows]
        found[entry.name] = entry.from_rows(torch.stack(tops)).view(entry.shape)
    return found


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.cholesky_solve(vector[:, None], torch.linalg.cholesky(matrix))[:, 0]


def _cosine(matrix: Tensor, slope: Tensor, step: Tensor, best: Tensor) -> float:
    """``E`` for the step ``K g``; at most 1 up to rounding."""
    return float((slope @ step) ** 2 / ((step @ (matrix @ step)) * best))


def _closeness(chart: Chart, damped: Tensor) -> dict[str, float]:
    conjugated = chart.metric_root(chart.metric_root(damped).T)
    values = torch.linalg.eigvalsh((conjugated + conjugated.T) / 2).cpu().numpy()
    if not values[0] > 0:
        return {}  # K is singular: no multiple of it is close to an inverse
    logs = np.log(values)
    return {
        "kappa": float(values[-1] / values[0]),
        "am_gm": max(0.0, float(np.log(values.mean()) - logs.mean())),
        "ai_distance": float(logs.std()),
    }
