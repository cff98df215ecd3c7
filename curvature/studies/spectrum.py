"""Chosen matrices of one problem in chosen charts, by the method that the plan chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curvature.charts import Parameterization
from curvature.charts.distinct import distinct
from curvature.errors import ConfigurationError, ResourceError
from curvature.linalg.density import spectral_density
from curvature.linalg.eigen import spectrum
from curvature.linalg.extremal import extremal_eigenvalues
from curvature.linalg.memory import USABLE, free_memory, memory_text
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.parts import blocks
from curvature.linalg.planning import Plan, plans
from curvature.linalg.work import Counts, ends
from curvature.matrices.hessians import hessian
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Check, Eigenvectors, ExtremalEigenvalues, Study
from curvature.studies.collector import Collector, Finished, Place, with_warnings
from curvature.studies.measuring import gauge_state, in_chart, matrix_of
from curvature.studies.progress import Progress
from curvature.studies.settings import known_matrices
from curvature.text import count

__all__ = ["SpectrumSettings", "plan_spectrum", "run_spectrum"]

DERIVATIVES = ("autograd", "finite-differences")
WITHOUT_VECTORS = ("gram", "slq")  # methods
_MOST_BYTES = 2 * 2**30  # of eigenvectors in one result
Plans = dict[str, list[tuple[Plan, ...]]]  # by matrix: for every chart and block, one plan or two


@dataclass(frozen=True)
class SpectrumSettings:
    """What ``curvature spectrum`` measures.

    Attributes
    ----------
    matrices
        Names from ``curvature.matrices.MATRICES``.
    charts
        Every matrix is measured in the coordinates of each. Different charts of one label are numbered.
    block
        ``"all"``, ``"layer"``, ``"neuron"`` or a pattern of parameter names.
    method
        One of ``curvature.linalg.planning.METHODS``. ``"auto"`` gives every eigenvalue where that fits in memory,
        otherwise the ends and the density, with a warning in the study.
    seed, num_samples
        Draw the labels of the Monte Carlo Fisher; the seed also draws start vectors and probes.
    gradient
        Also how the gradient is distributed over the eigenvectors; costs eigenvectors.
    num_eigenvalues
        At each end, by Lanczos.
    num_probes, num_matvecs
        For the density; ``num_matvecs`` is at most the dimension.
    num_vectors
        Eigenvectors of the largest eigenvalues that are kept in the ``vectors`` of each record; all of them of a
        smaller matrix.
    derivatives
        Of the Hessian: ``"autograd"``, or ``"finite-differences"`` of the gradient, see :func:`~curvature.hessian`.

    Raises
    ------
    ConfigurationError
        If a matrix is unknown, eigenvectors are asked of a method that has none, or finite differences are asked for
        without the Hessian.
    """

    matrices: Sequence[str]
    charts: Sequence[Parameterization]
    block: str = "all"
    method: str = "auto"
    seed: int = 0
    num_samples: int = 1
    gradient: bool = True
    num_eigenvalues: int = 10
    num_probes: int = 10
    num_matvecs: int = 60
    num_vectors: int = 0
    derivatives: str = "autograd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "charts", tuple(distinct(self.charts)))
        known_matrices(self.matrices)
        if self.derivatives not in DERIVATIVES:
            raise ConfigurationError(f"derivatives must be one of {', '.join(DERIVATIVES)}, got {self.derivatives!r}.")
        if self.derivatives == "finite-differences" and "hessian" not in self.matrices:
            raise ConfigurationError(
                "only the Hessian can be computed by finite differences, and it is not among the matrices: "
                f"{', '.join(self.matrices)}."
            )
        if self.num_vectors and self.method in WITHOUT_VECTORS:
            raise ConfigurationError(
                f"method {self.method!r} computes no eigenvectors of the matrix, so num_vectors={self.num_vectors} "
                "cannot be kept. Use method='auto', 'dense', 'factor' or 'lanczos'."
            )

    def counts(self, matrix: str) -> Counts:
        """Size of the result for one matrix, for its plan."""
        vectors = self.has_gradient(matrix) or self.num_vectors > 0
        return Counts(max(self.num_eigenvalues, self.num_vectors), self.num_probes, self.num_matvecs, vectors)

    def has_gradient(self, matrix: str) -> bool:
        """Whether steps along the gradient mean something in this metric: not in that of a covariance of gradients."""
        return self.gradient and matrix != "gradient_covariance"


@full_precision()
def plan_spectrum(problem: Problem, settings: SpectrumSettings) -> Plans:
    """What :func:`run_spectrum` will do; computes nothing but timed products.

    Parameters
    ----------
    problem
        The model, its weights, loss and data.
    settings
        What is to be measured.

    Returns
    -------
    dict
        For each matrix the plans of every chart and block, in the order of the work. Entries that several charts or
        blocks share are counted once.

    Raises
    ------
    ResourceError
        If the method does not fit in memory.
    """
    planned: Plans = {}
    for name in settings.matrices:
        operator = _matrix(problem, name, settings)
        counts = settings.counts(name)
        # The entries on the weights are kept while the charts are measured.
        kept = problem.dtype.itemsize * problem.dim**2 if len(settings.charts) > 1 else 0
        max_memory = USABLE * free_memory(problem.device)
        max_memory -= kept if settings.method in ("auto", "exact", "dense") else 0
        max_memory -= _bytes_of_vectors(problem, settings)
        planned[name], shared = [], False
        for part in (part for _, parts in _in_charts(operator, settings) for part in parts):
            if shared:
                part = _with_shared_entries(part)
            planned[name].append(plans(part, settings.method, counts=counts, max_memory=max_memory))
            shared = shared or planned[name][-1][0].method == "dense"
    return planned


def check_spectrum(problem: Problem, settings: SpectrumSettings) -> dict[str, list[Check]]:
    """Run the self-checks of every matrix in every chart; costs a few products each.

    Parameters
    ----------
    problem
        The model, its weights, loss and data.
    settings
        What is to be measured; blocks are not checked on their own.

    Returns
    -------
    dict
        By the name of the matrix, the checks in all charts. All have passed.

    Raises
    ------
    SelfCheckError
        If one fails.
    """
    checks: dict[str, list[Check]] = {}
    for name in settings.matrices:
        operator = _matrix(problem, name, settings)
        in_charts = _in_charts(operator, replace(settings, block="all"))
        checks[name] = [check for _, parts in in_charts for part in parts for check in part.checks]
    return checks


@full_precision()
def run_spectrum(
    problem: Problem,
    settings: SpectrumSettings,
    *,
    model: str = "given model",
    data: str = "given data",
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    announce: Callable[[Plans], None] | None = None,
    finished: Finished | None = None,
) -> Study:
    """Measure chosen matrices of one problem in the coordinates of chosen charts; see ``curvature spectrum``.

    Parameters
    ----------
    problem
        The model, its weights, loss and data.
    settings
        What is measured.
    model, data
        One line each, for people.
    config
        The resolved configuration, for the record.
    progress
        Called with a message and the share of the work that is done.
    announce
        Called with the plans before anything is computed.
    finished
        Parts of an earlier run of the same work, which are not computed again; each new one is added. One for each
        matrix in each chart; a dict will do.

    Returns
    -------
    Study
        Spectra, extremal eigenvalues and densities, and the gauge of each chart in numbers.

    Raises
    ------
    ResourceError
        If the method does not fit in memory.
    """
    finished = {} if finished is None else finished
    collector = Collector(progress)
    planned = plan_spectrum(problem, settings)
    if announce is not None:
        announce(planned)
    num_charts = len(settings.charts)
    for k, (name, of_matrix) in enumerate(planned.items()):
        names = [f"{name}, {chart.name}, {chart.gauge}" for chart in settings.charts]
        parts = [finished.get(part) for part in names]
        operator = _matrix(problem, name, settings)
        shared = num_charts > 1 and any(plan.method == "dense" for of_part in of_matrix for plan in of_part)
        if shared and None in parts:
            operator = operator.materialized()
        remaining = iter(of_matrix)
        for number, (chart, parts_in_chart) in enumerate(_in_charts(operator, settings)):
            collector.say(f"{name} in {chart.name}", (k + number / num_charts) / len(planned))
            chosen = [next(remaining) for _ in parts_in_chart]
            part = parts[number]
            if part is None:
                own = Collector()
                for block, plans_of_block in zip(parts_in_chart, chosen, strict=True):
                    _measure(own, block, plans_of_block, settings, name)
                part = finished[names[number]] = own.study("spectrum", problem)
            collector.add_part(part)
    for chart in settings.charts:
        gauge_state(collector, _PLACE, problem, chart)
    return with_warnings(collector.study("spectrum", problem, config, model=model, data=data), problem)


_PLACE = Place("given", 0, "given", 0)


def _measure(
    collector: Collector,
    operator: SymmetricOperator,
    chosen: tuple[Plan, ...],
    settings: SpectrumSettings,
    matrix: str,
) -> None:
    """Measure one block of a matrix in one chart as planned."""
    for plan in chosen:
        if plan.method == "lanczos":
            largest, smallest = ends(operator, settings.counts(matrix).num_eigenvalues)
            record = extremal_eigenvalues(operator, num_largest=largest, num_smallest=smallest, seed=settings.seed)
            collector.extend(_PLACE, [replace(record, vectors=_largest(record, settings.num_vectors))])
            _warn_unconverged(collector, record)
        elif plan.method == "slq":
            density = spectral_density(
                operator,
                num_matvecs=min(settings.num_matvecs, operator.dim),
                num_probes=settings.num_probes,
                seed=settings.seed,
            )
            collector.extend(_PLACE, [density])
        else:
            gradient = settings.has_gradient(matrix) and plan.method != "gram"
            result = spectrum(operator, method=plan.method, gradient=gradient, vectors=settings.num_vectors)
            collector.add(_PLACE, result)
    if len(chosen) > 1:
        collector.warn(f"{chosen[0].reason}: the ends and the density were estimated instead.")


def _matrix(problem: Problem, name: str, settings: SpectrumSettings) -> SymmetricOperator:
    if name == "hessian" and settings.derivatives == "finite-differences":
        return hessian(problem, method="finite-differences")
    return matrix_of(problem, name, settings.seed, settings.num_samples)


def _largest(record: ExtremalEigenvalues, num_vectors: int) -> Eigenvectors | None:
    """Eigenvectors of the largest Ritz values, as many as asked for."""
    num_vectors, vectors = min(num_vectors, len(record.largest)), record.vectors
    if vectors is None or not num_vectors:
        return None
    kept = slice(len(vectors) - num_vectors, None)
    columns = vectors.columns[:, kept].copy()
    return Eigenvectors(vectors.eigenvalues[kept], columns, vectors.residuals[kept], vectors.names)


def _bytes_of_vectors(problem: Problem, settings: SpectrumSettings) -> float:
    """Memory of all eigenvectors that are kept until the result is written, and of the copy that is written."""
    spectra = len(settings.matrices) * len(settings.charts)
    kept = float(spectra * min(settings.num_vectors, problem.dim) * problem.dim * problem.dtype.itemsize)
    if kept > _MOST_BYTES:
        number = count(spectra, "spectrum", "spectra")
        raise ResourceError(
            f"{settings.num_vectors} eigenvectors of {problem.dim} coordinates in each of {number} take "
            f"{memory_text(kept)}; a result holds at most {memory_text(_MOST_BYTES)} of them. Save fewer, or measure "
            "fewer matrices and charts."
        )
    return 2 * kept


def _in_charts(
    operator: SymmetricOperator, settings: SpectrumSettings
) -> Iterator[tuple[Parameterization, list[SymmetricOperator]]]:
    """The blocks of the matrix in every chart."""
    for chart in settings.charts:
        yield chart, list(blocks(in_chart(operator, chart), settings.block).values())


def _with_shared_entries(operator: SymmetricOperator) -> SymmetricOperator:
    """The same matrix for a plan: its entries cost nothing, since another chart or block has computed them."""
    entries = operator.routes.entries
    if entries is None:
        return operator
    return replace(operator, routes=replace(operator.routes, entries=replace(entries, multiplications=0.0)))


def _warn_unconverged(collector: Collector, record: ExtremalEigenvalues) -> None:
    if not record.converged:
        collector.warn(
            f"the ends of the {record.matrix} in {record.chart} did not all converge in {record.num_products} "
            "products; their error bounds limit how far off they can be."
        )
