"""Overview of a model: every layer's block of a curvature matrix in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from curvature.charts import Parameterization, Placebo, WeightNorm
from curvature.errors import ResourceError
from curvature.linalg.eigen import spectrum
from curvature.linalg.extremal import extremal_eigenvalues
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.planning import plan
from curvature.linalg.traces import trace
from curvature.linalg.work import ends
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Analysis, ConditionNumbers, Estimate, LayerSummary, Quantity, Spectrum
from curvature.studies.collector import Collector, Finished
from curvature.studies.measuring import in_chart, matrix_of, stretch_range
from curvature.studies.progress import Progress, shown
from curvature.studies.settings import known_matrices

__all__ = ["analyze"]

_WIDE = 10.0  # ratio of the largest to the smallest stretch of a layer that is worth a warning
_NOT_COMPUTED = Quantity(np.nan, "undefined", "needs every eigenvalue, and the matrix does not fit in memory")


@full_precision()
def analyze(
    problem: Problem,
    *,
    matrix: str = "ggn",
    chart: Parameterization | None = None,
    max_memory: float | None = None,
    seed: int = 0,
    finished: Finished | None = None,
    progress: Progress | bool | None = None,
) -> Analysis:
    r"""Summarize the curvature of a model: one row for each layer, one for the whole, and warnings.

    Parameters
    ----------
    problem
        The model, its weights, loss and data.
    matrix
        ``"ggn"``, ``"hessian"``, ``"fisher"``, ``"empirical_fisher"``, ``"gradient_covariance"`` or
        ``"monte_carlo_fisher"``.
    chart
        Coordinates; None: those in which the model was trained, ``problem.chart``.
    max_memory
        Bytes for one matrix; None: what is free.
    seed
        Of start vectors and probes, where a number has to be estimated.
    finished
        Rows of an earlier call with the same arguments, which are not computed again; each new one is added under the
        name of its layer. A dict will do: an interrupted call then continues where it stopped.
    progress
        Called with a message and the share of the rows that is done. None: a bar with the remaining time in a notebook
        and on a terminal; True: always; False: never.

    Returns
    -------
    Analysis
        ``print(analysis)`` shows the table; ``analysis.to_dataframe()`` has every number with its status;
        ``cv.figures.plot_analysis(analysis)`` draws it.

    Raises
    ------
    ConfigurationError
        If the matrix is unknown, or not defined for the loss.

    Notes
    -----
    The row of a layer is about its principal block $A_{ll}$: the curvature that an optimizer of this layer alone would
    see. Where the entries fit in memory every number is exact up to rounding; the cost is that of the whole spectrum.
    Where they do not, the largest eigenvalues come from Lanczos and the trace from random probes, each with its
    interval, and numbers that need every eigenvalue are left undefined.

    Examples
    --------
    >>> import curvature as cv
    >>> analysis = cv.analyze(cv.zoo.digits_problem(50, widths=(4,)))
    >>> [(row.layer, row.num_parameters) for row in analysis.rows]
    [('0', 260), ('2', 50), ('all', 310)]
    >>> round(sum(row.gradient_share for row in analysis.layers), 12)
    1.0
    """
    started = time.perf_counter()
    known_matrices((matrix,))
    chart = problem.chart if chart is None else chart
    operator = in_chart(matrix_of(problem, matrix, seed, 1), chart)
    max_memory = USABLE * free_memory(problem.device) if max_memory is None else max_memory
    fits = operator.dense_bytes <= max_memory
    if fits:
        operator = operator.materialized()
    elif operator.routes.entries is not None:  # then no block takes its entries from those of the whole
        operator = replace(operator, routes=replace(operator.routes, entries=None))
    gradient = None if operator.facts.gradient is None else operator.facts.gradient()
    stretches = _stretches(problem, chart)
    entries = operator.entries if fits else None
    parts = {"all": operator}
    for name, index in operator.layout.blocks("layer").items() if operator.layout is not None else ():
        parts[name] = operator.principal(index, name, entries=entries)
    finished = {} if finished is None else finished
    rows: dict[str, LayerSummary] = {}
    with shown(progress) as report:
        collector = Collector(report)
        for name, part in parts.items():
            collector.say(f"{matrix}: {'the whole model' if name == 'all' else name}", len(rows) / len(parts))
            row = finished.get(name)
            if row is None:
                row = _summarized(name, part, _share(part, gradient), stretches.get(name), max_memory, seed)
                finished[name] = row
            rows[name] = row
        collector.say("done", 1.0)
    whole = rows.pop("all")
    return Analysis(operator.where, tuple(rows.values()), whole, problem.value(), time.perf_counter() - started)


def _summarized(
    name: str,
    part: SymmetricOperator,
    share: float,
    stretches: tuple[float, ...] | None,
    max_memory: float,
    seed: int,
) -> LayerSummary:
    try:
        method = plan(part, max_memory=max_memory).method
    except ResourceError:
        method = "lanczos"
        numbers, warnings = _estimated(part, seed)
    else:
        record = spectrum(part, method=method)
        numbers, warnings = _exact(record, record.condition_numbers())
    warnings += list(_about(share, stretches))
    return LayerSummary(name, part.dim, **numbers, gradient_share=share, stretches=stretches, method=method,
                        warnings=tuple(warnings))  # fmt: skip


def _exact(record: Spectrum, numbers: ConditionNumbers) -> tuple[dict[str, Quantity], list[str]]:
    values, floor = record.eigenvalues, record.noise_floor
    resolved = np.flatnonzero(np.abs(values) > floor)
    smallest = record.eigenvalue(int(resolved[0])) if len(resolved) else record.eigenvalue(0)
    rounding = record.dim * floor
    total = Quantity(record.trace, low=record.trace - rounding, high=record.trace + rounding, method="exact")
    undefined = Quantity(np.nan, "undefined", "the matrix is zero up to rounding")
    kappa = numbers.values.get("kappa_80", undefined)
    effective = numbers.values.get("effective_rank", undefined)
    warnings = []
    negative, zero, _ = record.inertia
    if not len(resolved):
        warnings.append("no eigenvalue is above the noise floor: the matrix is zero up to rounding")
    elif negative:
        warnings.append(
            f"{negative} of {record.dim} eigenvalues are negative: a condition number is not defined; the smallest is "
            f"{values[0]:.3g}"
        )
    elif kappa.status != "resolved":
        warnings.append(f"kappa_80 is {kappa.status.replace('_', ' ')}: {kappa.note}")
    if zero and len(resolved):
        warnings.append(f"{zero} of {record.dim} directions have no curvature above the noise floor {floor:.1e}")
    shown = {"trace": total, "largest": record.eigenvalue(-1), "smallest": smallest}
    return shown | {"kappa_80": kappa, "effective_rank": effective}, warnings


def _estimated(part: SymmetricOperator, seed: int) -> tuple[dict[str, Quantity], list[str]]:
    num_largest, num_smallest = ends(part, 1)
    record = extremal_eigenvalues(part, num_largest=num_largest, num_smallest=num_smallest, seed=seed)
    total = trace(part, seed=seed)
    numbers = {
        "trace": _from_estimate(total),
        "largest": record.eigenvalue(-1),
        "smallest": record.eigenvalue(0) if num_smallest else _NOT_COMPUTED,
        "kappa_80": _NOT_COMPUTED,
        "effective_rank": _NOT_COMPUTED,
    }
    how = "exact" if total.exact else f"estimated by {total.method}"
    warnings = [f"too large for every eigenvalue: the largest one comes from Lanczos, and the trace is {how}"]
    if not record.converged:
        warnings.append(f"the largest eigenvalue did not converge in {record.num_products} products")
    return numbers, warnings


def _from_estimate(estimate: Estimate) -> Quantity:
    low, high = float(estimate.low), float(estimate.high)
    return Quantity(float(estimate.value), low=low, high=high, method=f"{100 * estimate.level:g} %, {estimate.method}")


def _about(share: float, stretches: tuple[float, ...] | None) -> Iterator[str]:
    if share == 0:
        yield "its gradient is exactly zero"
    if stretches is not None and stretches[2] > _WIDE * stretches[0]:
        yield (
            f"its gauge varies by a factor of {stretches[2] / stretches[0]:.3g} between rows: their coordinates are "
            "scaled differently"
        )


def _share(part: SymmetricOperator, gradient: Tensor | None) -> float:
    """Share of the squared gradient in the coordinates of a block."""
    if gradient is None or part.facts.gradient is None:
        return np.nan
    total = float(gradient.double().square().sum())
    return float(part.facts.gradient().double().square().sum()) / total if total > 0 else np.nan


def _stretches(problem: Problem, chart: Parameterization) -> dict[str, tuple[float, ...]]:
    """Smallest, median and largest stretch of the normalized rows, by layer and for all of them."""
    if not isinstance(chart, WeightNorm) or isinstance(chart, Placebo):
        return {}
    point = chart.at(problem.layout, problem.weights)
    layers = [entry.layer for entry in problem.layout.entries if entry.name in point.groups
              for _ in range(entry.num_rows)]  # fmt: skip
    stretches = point.stretches.cpu()
    by_layer = {"all": stretches} | {
        layer: stretches[torch.tensor([name == layer for name in layers])] for layer in dict.fromkeys(layers)
    }
    return {name: stretch_range(rows) for name, rows in by_layer.items()}
