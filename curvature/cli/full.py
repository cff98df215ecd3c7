"""``compare --full``: seeds one after another or side by side, each kept as soon as it is measured."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvature.cli.configuration import MATRICES, CompareConfiguration
from curvature.cli.terminal import Terminal, count

if TYPE_CHECKING:
    from curvature.records import Study
    from curvature.studies import FullSettings

__all__ = ["forget_parts", "full_settings", "measured_parts", "parts_beside"]

# What a configuration gives: how to build the model of a seed, the data, the loss.
Prepare = Callable[[CompareConfiguration, Terminal], tuple[Callable[[int], Any], Any, Any]]


def full_settings(config: CompareConfiguration) -> FullSettings:
    """Settings of the study that this configuration asks for."""
    from curvature.studies import FullSettings
    from curvature.studies.training import SGD, TrajectorySettings

    return FullSettings(
        seeds=tuple(range(config.num_seeds)),
        training=TrajectorySettings(
            optimizer=SGD(config.learning_rate, momentum=config.momentum),
            tuning_epochs=config.tuning_epochs,
            epochs=config.epochs,
            batch_size=config.batch_size,
        ),
        matrices=tuple(MATRICES[name] for name in config.matrix),
        relative_dampings=(config.damping,),
        relative_damping=config.damping,
        threshold=config.threshold,
    )


def parts_beside(out: Path | None) -> Path | None:
    """Where the seeds of an unfinished run are kept: beside the run directory, which does not exist before the end."""
    return None if out is None else out.with_name(out.name + ".parts")


def forget_parts(out: Path) -> None:
    """Delete the seeds that are now in the run directory; their folder too, unless something else lies in it."""
    folder = parts_beside(out)
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.fullmatch(r"seed-\d+-[0-9a-f]+\.(nc|nc\.sha256|writing)", path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def measured_parts(
    config: CompareConfiguration,
    prepare: Prepare,
    terminal: Terminal,
    folder: Path | None,
    progress: Callable[[str, float], None] | None,
) -> list[Study]:
    """Measure every seed that is not kept already; ``--jobs`` of them at a time, each on one thread.

    A seed is kept under a hash of all its numbers follow from; one that was measured under other settings is left
    alone, and not used.
    """
    import joblib

    from curvature import report
    from curvature.models import Problem
    from curvature.studies.full import fingerprint

    settings = full_settings(config)
    if folder is not None:
        report.check_parts(folder)
    build, data, loss = prepare(config, terminal)

    def place(seed: int) -> Path | None:
        if folder is None:
            return None
        start = Problem.from_module(build(seed), loss=loss, data=data)
        return folder / f"seed-{seed}-{fingerprint(start, settings, seed)}.nc"

    places = {seed: place(seed) for seed in settings.seeds}
    kept = {seed: report.load_part(path) for seed, path in places.items() if path is not None and path.is_file()}
    if kept:
        terminal.note(f"resumes: {count(len(kept), 'seed')} of {len(settings.seeds)} found in {folder}")
    missing = [seed for seed in settings.seeds if seed not in kept]
    total = len(settings.seeds)

    def finish(seed: int, part: Study) -> None:
        kept[seed] = part
        if places[seed] is not None:
            report.write_part(part, places[seed])
        if progress is not None:
            progress(f"seed {seed} is done", len(kept) / total)

    try:
        if config.jobs == 1:
            for seed in missing:
                say = None
                if progress is not None:
                    say = lambda words, share: progress(words, (len(kept) + share) / total)  # noqa: E731
                finish(seed, _measured(settings, build(seed), data, loss, seed, say))
        elif missing:
            parallel = joblib.Parallel(min(config.jobs, len(missing)), return_as="generator_unordered")
            work = joblib.delayed(_measured_elsewhere)
            for seed, part in parallel(work(config, prepare, seed) for seed in missing):
                finish(seed, part)
    except KeyboardInterrupt:
        if folder is not None and kept:
            terminal.warn(
                f"{count(len(kept), 'seed')} of {total} kept in {folder}; the same command goes on from there"
            )
        raise
    return [kept[seed] for seed in settings.seeds]


def _measured(settings: FullSettings, module: Any, data: Any, loss: Any, seed: int, progress: Any = None) -> Study:
    from curvature.studies.full import measure_seed

    return measure_seed(module, data, loss, settings, seed=seed, progress=progress)


def _measured_elsewhere(config: CompareConfiguration, prepare: Prepare, seed: int) -> tuple[int, Study]:
    """In a process of its own, which has to load everything again."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        build, data, loss = prepare(config, Terminal(quiet=True))
        return seed, _measured(full_settings(config), build(seed), data, loss, seed)
