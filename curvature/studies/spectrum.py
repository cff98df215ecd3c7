"""Chosen matrices of one problem in chosen charts, by the method that the plan chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from curvature.charts import Parameterization, Standard
from curvature.linalg.density import spectral_density
from curvature.linalg.eigen import spectrum
from curvature.linalg.extremal import extremal_eigenvalues
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.parts import blocks
from curvature.linalg.planning import Plan, plans
from curvature.linalg.work import Counts, ends
from curvature.matrices import pullback
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import ExtremalEigenvalues, Study
from curvature.studies.measuring import (
    Collector,
    Place,
    Progress,
    gauge_state,
    known_matrices,
    matrix_of,
)

__all__ = ["plan_spectrum", "run_spectrum"]


@full_precision()
def plan_spectrum(
    problem: Problem,
    *,
    matrices: Sequence[str],
    charts: Sequence[Parameterization],
    block: str = "all",
    method: str = "auto",
    seed: int = 0,
    num_samples: int = 1,
    gradient: bool = True,
    num_eigenvalues: int = 10,
    num_probes: int = 10,
    num_matvecs: int = 60,
) -> dict[str, list[tuple[Plan, ...]]]:
    """What :func:`run_spectrum` will do: for each matrix the plans of every chart and block, in the order of the work.

    Entries that several charts or blocks share are counted once. Refuses what does not fit; computes nothing but
    timed products.
    """
    found: dict[str, list[tuple[Plan, ...]]] = {}
    for name in known_matrices(matrices):
        operator = matrix_of(problem, name, seed, num_samples)
        found[name] = []
        # The entries on the weights are kept while the charts are measured.
        kept = problem.dtype.itemsize * problem.dim**2 if len(charts) > 1 else 0
        allowed = USABLE * free_memory(problem.device) - (kept if method in ("auto", "exact", "dense") else 0)
        shared = False
        for part in (part for _, parts in _in_charts(operator, charts, block) for part in parts):
            if shared:
                part = _with_shared_entries(part)
            counts = Counts(num_eigenvalues, num_probes, num_matvecs, gradient and _has_gradient(name))
            made = plans(part, method, counts=counts, max_memory=allowed)
            shared = shared or made[0].method == "dense"
            found[name].append(made)
    return found


@full_precision()
def run_spectrum(
    problem: Problem,
    *,
    matrices: Sequence[str],
    charts: Sequence[Parameterization],
    block: str = "all",
    method: str = "auto",
    seed: int = 0,
    num_samples: int = 1,
    gradient: bool = True,
    num_eigenvalues: int = 10,
    num_probes: int = 10,
    num_matvecs: int = 60,
    model: str = "given model",
    data: str = "given data",
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    announce: Callable[[dict[str, list[tuple[Plan, ...]]]], None] | None = None,
) -> Study:
    """Measure chosen matrices of one problem in the own coordinates of chosen charts; see ``curvature spectrum``.

    ``block`` is ``"all"``, ``"layer"``, ``"neuron"`` or a pattern; ``method`` one of
    ``curvature.linalg.planning.METHODS``.
    ``"auto"`` gives every eigenvalue where that fits in memory, else the ends and the density, with a warning in the
    study. ``num_eigenvalues`` at each end by Lanczos; ``num_probes`` and ``num_matvecs`` (at most the dimension) for
    the density. ``seed`` draws sampled labels, start vectors and probes. ``announce`` is told the plans before anything
    is computed.
    """
    found = Collector(progress)
    place = Place("given", 0, "given", 0)
    planned = plan_spectrum(
        problem,
        matrices=matrices,
        charts=charts,
        block=block,
        method=method,
        seed=seed,
        num_samples=num_samples,
        gradient=gradient,
        num_eigenvalues=num_eigenvalues,
        num_probes=num_probes,
        num_matvecs=num_matvecs,
    )
    if announce is not None:
        announce(planned)
    for k, (name, made) in enumerate(planned.items()):
        operator = matrix_of(problem, name, seed, num_samples)
        if len(charts) > 1 and any(one.method == "dense" for several in made for one in several):
            operator = operator.materialized()
        waiting = iter(made)
        for chart, parts in _in_charts(operator, charts, block):
            found.say(f"{name} in {chart.name}", k / len(planned))
            for part in parts:
                several = next(waiting)
                for one in several:
                    if one.method == "lanczos":
                        largest, smallest = ends(part, num_eigenvalues)
                        record = extremal_eigenvalues(part, num_largest=largest, num_smallest=smallest, seed=seed)
                        found.extend(place, [record])
                        _warn_unconverged(found, record)
                    elif one.method == "slq":
                        steps = min(num_matvecs, part.dim)
                        record = spectral_density(part, num_matvecs=steps, num_probes=num_probes, seed=seed)
                        found.extend(place, [record])
                    else:
                        with_gradient = gradient and _has_gradient(name) and one.method != "gram"
                        found.add(place, spectrum(part, method=one.method, gradient=with_gradient))
                if len(several) > 1:
                    found.warn(f"{several[0].reason}: the ends and the density were estimated instead.")
    for chart in charts:
        gauge_state(found, place, problem, chart)
    return found.study("spectrum", problem, dict(config or {}), model=model, data=data)


def _in_charts(
    operator: SymmetricOperator, charts: Sequence[Parameterization], block: str
) -> Iterator[tuple[Parameterization, list[SymmetricOperator]]]:
    """The blocks of the matrix in every chart."""
    for chart in charts:
        moved = operator if isinstance(chart, Standard) else pullback(operator, chart)
        yield chart, list(blocks(moved, block).values())


def _with_shared_entries(operator: SymmetricOperator) -> SymmetricOperator:
    """The same matrix for a plan: its entries cost nothing, since another chart or block has computed them."""
    entries = operator.routes.entries
    if entries is None:
        return operator
    return replace(operator, routes=replace(operator.routes, entries=replace(entries, multiplications=0.0)))


def _has_gradient(matrix: str) -> bool:
    """Whether steps along the gradient mean something in this metric: not in that of a covariance of gradients."""
    return matrix != "gradient_covariance"


def _warn_unconverged(found: Collector, record: ExtremalEigenvalues) -> None:
    if not record.converged:
        found.warn(
            f"the ends of the {record.matrix} in {record.chart} did not all converge in {record.num_products} "
            "products: their error bounds say how far they may be off."
        )
