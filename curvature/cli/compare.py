"""``curvature compare``: from its configuration to the study of both arms, or to the full study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curvature.cli.configuration import CompareConfiguration
from curvature.cli.preparation import add_provenance, note_versions, prepare, written_configuration
from curvature.cli.prepared import Prepared, describe_data, describe_model
from curvature.cli.resumption import Resumption
from curvature.cli.seeds import compare_settings, measured_seeds, problem_of
from curvature.cli.terminal import Terminal, count

if TYPE_CHECKING:
    from curvature.records import Study
    from curvature.studies import StudyPlan

__all__ = ["measure_compare", "plan_compare"]


def measure_compare(
    config: CompareConfiguration, terminal: Terminal, started: float, resumption: Resumption
) -> Study | None:
    """Train and measure what a configuration asks for.

    Parameters
    ----------
    config
        Names the model, the data, the matrices and the training.
    terminal
        Receives notes, the plan and the progress.
    started
        Start of the run, as ``time.time()`` returns it.
    resumption
        Keeps the finished seeds.

    Returns
    -------
    Study or None
        With its provenance; None if ``--resume`` found the run finished.
    """
    from curvature.studies import combined

    prepared = _prepared(config, terminal)
    if resumption.finds_finished(config, prepared):
        return None
    first = problem_of(config, prepared, 0)
    terminal.note(f"plan:  {_plan(config)}")
    parts = resumption.open(config, prepared)
    with terminal.progress() as progress:
        seeds = measured_seeds(config, prepared, parts, progress)
    study = combined(
        seeds,
        compare_settings(config),
        first,
        model=describe_model(config),
        data=describe_data(config, prepared),
        config=written_configuration("compare", config),
    )
    return add_provenance(study, config, prepared, started=started)


def plan_compare(config: CompareConfiguration, terminal: Terminal) -> StudyPlan:
    """Count what a configuration asks for, without training or decomposing anything.

    Parameters
    ----------
    config
        Names the model, the data, the matrices and the training.
    terminal
        Receives notes.

    Returns
    -------
    StudyPlan
        Runs, steps, spectra and memory.
    """
    from curvature.studies import plan_study

    prepared = _prepared(config, terminal)
    return plan_study(problem_of(config, prepared, 0), compare_settings(config))


def _prepared(config: CompareConfiguration, terminal: Terminal) -> Prepared:
    note_versions(config, terminal)
    prepared = prepare(config, terminal)
    num_parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    terminal.note(f"model: {describe_model(config)}: {num_parameters} parameters")
    terminal.note(f"data:  {describe_data(config, prepared)}")
    given = (
        "--weights" if config.weights is not None else "--model hf:" if (config.model or "").startswith("hf:") else None
    )
    if given is not None and config.num_seeds > 1:
        terminal.warn(f"every seed starts from the same {given}: the seeds differ only in the order of the data")
    return prepared


def _plan(config: CompareConfiguration) -> str:
    seeds = count(config.num_seeds, "paired seed")
    if not config.full:
        return (
            f"{seeds} x 2 arms (standard, weight-norm), {config.epochs} epochs of SGD at {config.learning_rate:g}; "
            f"{count(len(config.matrix), 'matrix', 'matrices')} at the start and at the end"
        )
    settings = compare_settings(config)
    return (
        f"{seeds} x {count(len(settings.arms), 'arm')}, each tuned over {len(settings.training.rates)} or more "
        f"learning rates of {config.tuning_epochs} epochs, then trained for {config.epochs}; "
        f"{count(config.jobs, 'seed')} at a time"
    )
