"""``curvature spectrum``: from its configuration to the measured study, or to the plan of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from curvature.cli import tables
from curvature.cli.configuration import MATRICES, SpectrumConfiguration
from curvature.cli.preparation import add_provenance, note_versions, prepare, written_configuration
from curvature.cli.prepared import Prepared, describe_data, describe_model, with_defined_matrices
from curvature.cli.resumption import Resumption
from curvature.cli.terminal import Terminal, count

if TYPE_CHECKING:
    from curvature.charts import Parameterization
    from curvature.linalg.planning import Plan
    from curvature.models import Problem
    from curvature.records import Study
    from curvature.studies import SpectrumSettings

__all__ = ["Work", "load_work", "measure_spectrum", "plan_spectrum"]

# Fields of the configuration that are fields of curvature.studies.SpectrumSettings under the same name.
_SHARED = (
    "block",
    "derivatives",
    "method",
    "seed",
    "num_samples",
    "gradient",
    "num_eigenvalues",
    "num_probes",
    "num_matvecs",
)


class Work(NamedTuple):
    """What the library is asked to do."""

    config: SpectrumConfiguration  # with its charts filled in
    prepared: Prepared
    problem: Problem
    settings: SpectrumSettings
    model: str  # in words, as the data
    data: str


def measure_spectrum(
    config: SpectrumConfiguration, terminal: Terminal, started: float, resumption: Resumption
) -> Study | None:
    """Measure the spectra that a configuration asks for.

    Parameters
    ----------
    config
        Names the model, the data, the matrices and the charts.
    terminal
        Receives notes, the plan and the progress.
    started
        Start of the run, as ``time.time()`` returns it.
    resumption
        Keeps the finished parts.

    Returns
    -------
    Study or None
        With its provenance; None if ``--resume`` found the run finished.
    """
    from curvature.studies import run_spectrum

    work = _work(config, terminal)
    if resumption.finds_finished(work.config, work.prepared):
        return None
    parts = resumption.open(work.config, work.prepared)

    def announce(plans: Mapping[str, Sequence[tuple[Plan, ...]]]) -> None:
        for line in tables.plan_lines(plans):
            terminal.note(f"plan:  {line}")
        if terminal.verbose:
            for plan in (plan for of_matrix in plans.values() for of_chart in of_matrix for plan in of_chart):
                terminal.note(f"       {plan}" + "".join(f"; not {name}: {why}" for name, why in plan.rejected))

    with terminal.progress() as progress:
        study = run_spectrum(
            work.problem,
            work.settings,
            model=_describe_model(config),
            data=describe_data(config, work.prepared),
            config=written_configuration("spectrum", work.config),
            progress=progress,
            announce=announce,
            finished=parts,
        )
    return add_provenance(study, work.config, work.prepared, started=started)


def plan_spectrum(config: SpectrumConfiguration, terminal: Terminal) -> dict[str, list[tuple[Plan, ...]]]:
    """Plan the spectra that a configuration asks for, without computing them.

    Parameters
    ----------
    config
        Names the model, the data, the matrices and the charts.
    terminal
        Receives notes.

    Returns
    -------
    dict
        For each matrix, the plans of each of its spectra.
    """
    from curvature import studies

    work = _work(config, terminal)
    return studies.plan_spectrum(work.problem, work.settings)


def _work(config: SpectrumConfiguration, terminal: Terminal) -> Work:
    """Load everything, and note what was loaded."""
    work = load_work(config, terminal)
    problem = work.problem
    terminal.note(f"model: {work.model}: {problem.dim} weights in {count(len(problem.layout.entries), 'tensor')}")
    terminal.note(f"data:  {work.data}")
    return work


def load_work(config: SpectrumConfiguration, terminal: Terminal) -> Work:
    """Load what a configuration names.

    Parameters
    ----------
    config
        Names the model, the data, the matrices and the charts.
    terminal
        Receives notes.

    Returns
    -------
    Work
        The problem and what is to be measured, with both in words.
    """
    import torch

    from curvature.cli import loading
    from curvature.studies import SpectrumSettings

    note_versions(config, terminal)
    prepared = prepare(config, terminal, seed=config.seed)
    problem = prepared.problem(prepared.model, getattr(torch, config.dtype))
    config = _with_charts(with_defined_matrices(config, problem, terminal), problem.chart)
    arguments: dict[str, Any] = {name: getattr(config, name) for name in _SHARED}
    arguments["num_vectors"] = config.save_eigenvectors or 0
    arguments["matrices"] = [MATRICES[name] for name in config.matrix]
    arguments["charts"] = loading.build_charts(
        config.chart, config.gauge, problem.chart, problem.layout, seed=config.seed
    )
    problem = loading.at_nearest(problem, arguments["charts"]) if config.nearest else problem
    words = _describe_model(config), describe_data(config, prepared)
    return Work(config, prepared, problem, SpectrumSettings(**arguments), *words)


def _describe_model(config: SpectrumConfiguration) -> str:
    return describe_model(config, None if config.weights or config.parameters else f"seed {config.seed}")


def _with_charts(config: SpectrumConfiguration, model_chart: Parameterization) -> SpectrumConfiguration:
    """Fill in charts and gauges that were left open: the chart of the model, and weight norm if a gauge was named."""
    from curvature.cli import loading

    normalized = model_chart.name == "weight-norm"
    charts = config.chart or (("standard", "weight-norm") if normalized or config.gauge else ("standard",))
    gauges = config.gauge
    if "weight-norm" in charts and all(map(loading.gives_rank, gauges)):
        gauges += ("checkpoint",) if normalized else ("canonical",)
        gauges += ("paper",) if "placebo" in charts else ()
    return config.model_copy(update={"chart": charts, "gauge": gauges})
