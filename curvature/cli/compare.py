"""``curvature compare``: from its configuration to the study of both arms, or to the full study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curvature.cli.configuration import MATRICES, CompareConfiguration
from curvature.cli.full import full_study_settings, measured_parts, parts_beside, problem_of
from curvature.cli.preparation import (
    Prepared,
    add_provenance,
    describe_data,
    describe_model,
    note_versions,
    prepare,
    written_configuration,
)
from curvature.cli.terminal import Terminal, count

if TYPE_CHECKING:
    from curvature.records import Study
    from curvature.studies import StudySettings

__all__ = ["compare_settings", "measure_compare"]


def compare_settings(config: CompareConfiguration) -> StudySettings:
    """Settings of the comparison that a configuration asks for.

    Parameters
    ----------
    config
        Configuration of ``curvature compare``.

    Returns
    -------
    StudySettings
        With the seeds 0, 1, ..., ``num_seeds - 1``.
    """
    from curvature.studies import quick_settings

    return quick_settings(
        seeds=range(config.num_seeds),
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        matrices=tuple(MATRICES[name] for name in config.matrix),
        stretches=config.stretches,
        relative_dampings=config.relative_dampings,
        relative_damping=config.relative_damping,
        threshold=config.threshold,
    )


def measure_compare(config: CompareConfiguration, terminal: Terminal, started: float, out: Path | None) -> Study:
    """Train and measure what a configuration asks for.

    Parameters
    ----------
    config
        Names the model, the data, the matrices and the training.
    terminal
        Receives notes, the plan and the progress.
    started
        Start of the run, as ``time.time()`` returns it.
    out
        The run directory, beside which the full study keeps its finished seeds.

    Returns
    -------
    Study
        With its provenance.
    """
    note_versions(config, terminal)
    prepared = prepare(config, terminal)
    num_parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    terminal.note(f"model: {describe_model(config)}: {num_parameters} parameters")
    terminal.note(f"data:  {describe_data(config, prepared.data)}")
    if config.weights is not None and config.num_seeds > 1:
        terminal.warn("every seed starts from the same --weights: the seeds differ only in the order of the data")
    study = _full(config, prepared, terminal, out) if config.full else _quick(config, prepared, terminal)
    return add_provenance(study, config, prepared, started=started)


def _quick(config: CompareConfiguration, prepared: Prepared, terminal: Terminal) -> Study:
    import torch

    from curvature.models import Problem
    from curvature.studies import run_study

    dtype = getattr(torch, config.dtype)

    def build(seed: int) -> Problem:
        return prepared.problem(prepared.build(seed), dtype)

    terminal.note(
        f"plan:  {count(config.num_seeds, 'paired seed')} x 2 arms (standard, weight-norm), {config.epochs} epochs of "
        f"SGD at {config.learning_rate:g}; {count(len(config.matrix), 'matrix', 'matrices')} at 3 checkpoints each"
    )
    with terminal.progress() as progress:
        return run_study(
            build,
            compare_settings(config),
            model=describe_model(config),
            data=describe_data(config, prepared.data),
            config=written_configuration("compare", config),
            progress=progress,
        )


def _full(config: CompareConfiguration, prepared: Prepared, terminal: Terminal, out: Path | None) -> Study:
    from curvature.studies import combined

    settings = full_study_settings(config)
    terminal.note(
        f"plan:  {count(config.num_seeds, 'paired seed')} x {count(len(settings.arms), 'arm')}, each tuned over "
        f"{len(settings.training.rates)} or more learning rates of {config.tuning_epochs} epochs, then trained for "
        f"{config.epochs}; {count(config.jobs, 'seed')} at a time"
    )
    with terminal.progress() as progress:
        parts = measured_parts(config, prepared, terminal, parts_beside(out), progress)
    return combined(
        parts,
        settings,
        problem_of(prepared, settings.seeds[0]),
        model=describe_model(config),
        data=describe_data(config, prepared.data),
        config=written_configuration("compare", config),
    )
