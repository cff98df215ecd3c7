"""The seeds of ``curvature compare``: in sequence or in parallel, each kept as soon as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from curvature.cli.configuration import MATRICES, CompareConfiguration
from curvature.cli.preparation import prepare
from curvature.cli.prepared import Prepared
from curvature.cli.terminal import Terminal

if TYPE_CHECKING:
    from curvature.models import Problem
    from curvature.records import Study
    from curvature.report import Parts
    from curvature.studies import StudySettings

__all__ = ["compare_settings", "measured_seeds", "problem_of"]

Progress = Callable[[str, float], None]


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
    from curvature.studies import full_settings, quick_settings

    matrices = tuple(MATRICES[name] for name in config.matrix)
    if config.full:
        return full_settings(
            seeds=range(config.num_seeds),
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            tuning_epochs=config.tuning_epochs,
            matrices=matrices,
            relative_damping=config.relative_damping,
            threshold=config.threshold,
        )
    return quick_settings(
        seeds=range(config.num_seeds),
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        matrices=matrices,
        stretches=config.stretches,
        relative_dampings=config.relative_dampings,
        relative_damping=config.relative_damping,
        threshold=config.threshold,
    )


def problem_of(config: CompareConfiguration, prepared: Prepared, seed: int) -> Problem:
    """The problem at the initial weights of a seed.

    Parameters
    ----------
    config
        Names the precision.
    prepared
        The loaded model, data and loss.
    seed
        The seed.

    Returns
    -------
    Problem
        The start of all arms.
    """
    import torch

    return prepared.problem(prepared.build(seed), getattr(torch, config.dtype))


def measured_seeds(
    config: CompareConfiguration, prepared: Prepared, parts: Parts | None, progress: Progress | None
) -> list[Study]:
    """Measure every seed that has not been kept; ``config.jobs`` of them in parallel, each on one thread.

    Parameters
    ----------
    config
        Configuration of ``curvature compare``.
    prepared
        The loaded model, data and loss.
    parts
        Where seeds are kept; None keeps nothing.
    progress
        Receives a message and the completed fraction.

    Returns
    -------
    list of Study
        One for each seed, in the order of the seeds.
    """
    settings = compare_settings(config)
    kept = {} if parts is None else {seed: parts.get(_name(seed)) for seed in settings.seeds}
    done = {seed: part for seed, part in kept.items() if part is not None}
    missing = [seed for seed in settings.seeds if seed not in done]

    def report_share(message: str, share: float) -> None:
        """Add the fraction of the seed that is being measured to the finished seeds."""
        if progress is not None:
            progress(message, (len(done) + share) / len(settings.seeds))

    if config.jobs == 1:
        measured = _in_sequence(config, prepared, missing, report_share)
    else:
        measured = _in_parallel(config, missing)
    for seed, part in measured:
        if parts is not None:
            parts[_name(seed)] = part
        done[seed] = part
        report_share(f"seed {seed} is done", 0.0)
    return [done[seed] for seed in settings.seeds]


def _name(seed: int) -> str:
    return f"seed {seed}"


def _in_sequence(
    config: CompareConfiguration, prepared: Prepared, seeds: Sequence[int], progress: Progress
) -> Iterator[tuple[int, Study]]:
    for seed in seeds:
        yield seed, _measured(config, prepared, seed, progress)


def _in_parallel(config: CompareConfiguration, seeds: Sequence[int]) -> Iterator[tuple[int, Study]]:
    """Yield each seed as soon as it is measured."""
    import joblib

    if seeds:
        parallel = joblib.Parallel(min(config.jobs, len(seeds)), return_as="generator_unordered")
        yield from parallel(joblib.delayed(_measured_in_a_process)(config, seed) for seed in seeds)


def _measured(config: CompareConfiguration, prepared: Prepared, seed: int, progress: Progress | None = None) -> Study:
    from curvature.studies import measure_seed

    return measure_seed(problem_of(config, prepared, seed), compare_settings(config), seed=seed, progress=progress)


def _measured_in_a_process(config: CompareConfiguration, seed: int) -> tuple[int, Study]:
    """Measure a seed in another process, which has to load everything again."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return seed, _measured(config, prepare(config, Terminal(quiet=True)), seed)
