"""``curvature compare --full``: seeds in sequence or in parallel, each saved as soon as it is measured."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curvature.cli.configuration import MATRICES, CompareConfiguration
from curvature.cli.preparation import Prepared, prepare
from curvature.cli.terminal import Terminal, count

if TYPE_CHECKING:
    from curvature.models import Problem
    from curvature.records import Study
    from curvature.studies import StudySettings

__all__ = ["forget_parts", "full_study_settings", "measured_parts", "parts_beside", "problem_of"]

Progress = Callable[[str, float], None]


def full_study_settings(config: CompareConfiguration) -> StudySettings:
    """Settings of the study that a configuration asks for.

    Parameters
    ----------
    config
        Configuration of ``curvature compare --full``.

    Returns
    -------
    StudySettings
        With the seeds 0, 1, ..., ``num_seeds - 1``.
    """
    from curvature.studies import full_settings

    return full_settings(
        seeds=range(config.num_seeds),
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        tuning_epochs=config.tuning_epochs,
        matrices=tuple(MATRICES[name] for name in config.matrix),
        relative_damping=config.relative_damping,
        threshold=config.threshold,
    )


def problem_of(prepared: Prepared, seed: int) -> Problem:
    """The problem at the initial weights of a seed, in float64.

    Parameters
    ----------
    prepared
        The loaded model, data and loss.
    seed
        The seed.

    Returns
    -------
    Problem
        The start of all arms.
    """
    return prepared.problem(prepared.build(seed))


def parts_beside(out: Path | None) -> Path | None:
    """Folder in which the seeds of an unfinished run are kept.

    Parameters
    ----------
    out
        The run directory, which does not exist before the end of the run.

    Returns
    -------
    Path or None
        A folder beside it; None without a run directory.
    """
    return None if out is None else out.with_name(out.name + ".parts")


def forget_parts(out: Path) -> None:
    """Delete the kept seeds after they have been written to the run directory, and their folder if it is empty.

    Parameters
    ----------
    out
        The run directory.
    """
    folder = out.with_name(out.name + ".parts")
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.fullmatch(r"seed-\d+-[0-9a-f]+\.(nc|nc\.sha256|writing)", path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def measured_parts(
    config: CompareConfiguration,
    prepared: Prepared,
    terminal: Terminal,
    folder: Path | None,
    progress: Progress | None,
) -> list[Study]:
    """Measure every seed that has not been kept; ``config.jobs`` of them in parallel, each on one thread.

    Parameters
    ----------
    config
        Configuration of ``curvature compare --full``.
    prepared
        The loaded model, data and loss.
    terminal
        Receives notes about kept seeds.
    folder
        Where seeds are kept, each under a hash of everything that determines its numbers. A seed that was measured
        under other settings is neither used nor deleted. None keeps nothing.
    progress
        Receives a message and the completed fraction.

    Returns
    -------
    list of Study
        One for each seed, in the order of the seeds.
    """
    from curvature import report

    settings = full_study_settings(config)
    paths = _part_paths(settings, prepared, folder)
    parts = {seed: report.load_part(path) for seed, path in paths.items() if path.is_file()}
    total = len(settings.seeds)
    if parts:
        terminal.note(f"continues: {count(len(parts), 'seed')} of {total} found in {folder}")
    missing = [seed for seed in settings.seeds if seed not in parts]

    def report_share(message: str, share: float) -> None:
        """Add the fraction of the seed that is being measured to the finished seeds."""
        if progress is not None:
            progress(message, (len(parts) + share) / total)

    if config.jobs == 1:
        measured = _in_sequence(settings, prepared, missing, report_share)
    else:
        measured = _in_parallel(config, missing)
    try:
        for seed, part in measured:
            parts[seed] = part
            if seed in paths:
                report.write_part(part, paths[seed])
            report_share(f"seed {seed} is done", 0.0)
    except KeyboardInterrupt:
        if folder is not None and parts:
            terminal.warn(
                f"{count(len(parts), 'seed')} of {total} kept in {folder}; the same command continues from there"
            )
        raise
    return [parts[seed] for seed in settings.seeds]


def _part_paths(settings: StudySettings, prepared: Prepared, folder: Path | None) -> dict[int, Path]:
    """Map each seed to the file in which it is kept."""
    from curvature import report
    from curvature.studies import fingerprint

    if folder is None:
        return {}
    report.check_parts(folder)
    paths = {}
    for seed in settings.seeds:
        digest = fingerprint(problem_of(prepared, seed), settings, seed)
        paths[seed] = folder / f"seed-{seed}-{digest}.nc"
    return paths


def _in_sequence(
    settings: StudySettings, prepared: Prepared, seeds: Sequence[int], progress: Progress
) -> Iterator[tuple[int, Study]]:
    for seed in seeds:
        yield seed, _measured(settings, prepared, seed, progress)


def _in_parallel(config: CompareConfiguration, seeds: Sequence[int]) -> Iterator[tuple[int, Study]]:
    """Yield each seed as soon as it is measured."""
    import joblib

    if seeds:
        parallel = joblib.Parallel(min(config.jobs, len(seeds)), return_as="generator_unordered")
        yield from parallel(joblib.delayed(_measured_in_a_process)(config, seed) for seed in seeds)


def _measured(settings: StudySettings, prepared: Prepared, seed: int, progress: Progress | None = None) -> Study:
    from curvature.studies import measure_seed

    return measure_seed(problem_of(prepared, seed), settings, seed=seed, progress=progress)


def _measured_in_a_process(config: CompareConfiguration, seed: int) -> tuple[int, Study]:
    """Measure a seed in another process, which has to load everything again."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return seed, _measured(full_study_settings(config), prepare(config, Terminal(quiet=True)), seed)
