"""One problem measured in several charts."""

from __future__ import annotations

from collections.abc import Sequence

from curvature.charts import Parameterization, Standard, WeightNorm
from curvature.charts.distinct import distinct
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Study
from curvature.studies.collector import Collector, Place, with_warnings
from curvature.studies.measuring import measured_spectra
from curvature.studies.progress import Progress, shown
from curvature.studies.settings import known_matrices

__all__ = ["measure"]


@full_precision()
def measure(
    problem: Problem,
    charts: Sequence[Parameterization] | None = None,
    *,
    matrices: Sequence[str] = ("hessian", "ggn", "gradient_covariance"),
    effective: bool = True,
    gradient: bool = True,
    progress: Progress | bool | None = None,
) -> Study:
    """Measure one problem in several charts: the same weights, function and data, other coordinates.

    Parameters
    ----------
    problem
        The model, its weights, loss and data.
    charts
        None: standard, weight norm at the canonical and the paper's gauge, and the module's own chart. Different
        charts of one label are numbered: ``"weight-norm (checkpoint, no. 2)"``.
    matrices
        Names from ``curvature.matrices.MATRICES``.
    effective
        ``K^(1/2) A K^(1/2)`` on the weights instead of the coordinates of the chart: no zeros of the gauge, the
        Hessian on the horizontal space.
    gradient
        Also ``gd_time``; costs eigenvectors.
    progress
        Called with a message and the share of the work that is done. None: a bar with the remaining time in a notebook
        and on a terminal; True: always; False: never.

    Returns
    -------
    Study
        Spectra, condition numbers, and the check that the canonical gauge changes nothing it must not change.

    Raises
    ------
    ConfigurationError
        If a matrix is unknown.
    SelfCheckError
        If a spectrum at the canonical gauge differs from the standard one by more than rounding.

    Examples
    --------
    >>> import curvature as cv
    >>> study = cv.measure(cv.zoo.digits_problem(50, widths=(3,)), matrices=("ggn",))
    >>> [m.record.label for m in study.of(cv.Spectrum)]
    ['ggn, standard', 'ggn, weight-norm (canonical)', 'ggn, weight-norm (paper)']
    """
    if charts is None:
        charts = [Standard(), WeightNorm(), WeightNorm("paper")]
        charts += [problem.chart] if not isinstance(problem.chart, Standard) else []
    charts = distinct(charts)
    place, names = Place("given", 0, "given", 0), known_matrices(matrices)
    with shown(progress) as report:
        collector = Collector(report)
        for number, name in enumerate(names):
            collector.say(name, number / len(names))
            measured_spectra(collector, place, problem, (name,), charts, on_weights=effective, gradient=gradient)
        return with_warnings(collector.study("compare", problem), problem)
