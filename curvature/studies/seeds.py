"""Every arm trained and measured at one seed, and many seeds in sequence or in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from curvature.charts import Parameterization, Standard
from curvature.errors import ConfigurationError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Study
from curvature.studies.collector import Collector, Place
from curvature.studies.identities import claimed_identities
from curvature.studies.measuring import measure_point, measured_spectra
from curvature.studies.progress import Progress, part_of
from curvature.studies.settings import PUBLISHED, StudySettings
from curvature.studies.shared import Shared
from curvature.studies.training import Run, Schedule, Trajectory, train, trajectories
from curvature.studies.training.network import refuse_penalty

__all__ = ["WHOLE", "measure_seed", "measured_seeds", "refuse_unsuited"]

WHOLE = "{}, whole batches"


@full_precision()
def measure_seed(start: Problem, settings: StudySettings, *, seed: int, progress: Progress | None = None) -> Study:
    r"""Train and measure every arm at one seed.

    Parameters
    ----------
    start
        The model as this seed initialized it.
    settings
        What is trained and measured.
    seed
        Draws the order of the data, and everything else that is random.
    progress
        Called with a message and the share of the work that is done.

    Returns
    -------
    Study
        The measurements of this seed, without verdicts. Independent of all other seeds.

    Raises
    ------
    ConfigurationError
        If the model has no layer that weight norm could normalize, or an arm with batch normalization would train with
        a penalty.
    NonFiniteError
        If training diverges at a learning rate that was not tuned.

    Notes
    -----
    All arms of one start begin at the same weights and see the data in one order. At each checkpoint of each arm:

    * every matrix in the standard chart and in weight norm at the canonical, the paper's and the gauge that training
      has reached, as effective matrices;
    * the check that the canonical gauge leaves GGN, Fisher, empirical Fisher and gradient covariance unchanged;
    * alignment and whitening of each neuron's gradient covariance;
    * efficiency of every chart's step against the natural gradient, with controls;
    * the whitening league, at the first and the last weights of the weight-norm arm;

    and at the initialization the two claims that are identities (C5, C6).
    """
    refuse_unsuited(start, settings)  # before anything is trained
    collector = Collector(progress, ending=f"seed {seed} is done")
    identities, untested = claimed_identities(start, seed=seed, batch_size=settings.training.batch_size)
    collector.checks += identities
    for reason in untested:
        collector.warn(reason)
    # Tuning takes a third of the time; training alone next to none. The last hundredth is for whole batches.
    training_share = 1 / 3 if settings.training.rates else 0.0
    trained = trajectories(
        start,
        settings.arms,
        settings.training,
        seed=seed,
        say=lambda message, share: collector.say(message, training_share * share),
    )
    starts: dict[str, Shared] = {}  # what arms from the same initial weights share there
    for number, trajectory in enumerate(trained):
        done = training_share + (0.98 - training_share) * number / len(trained)
        shared = starts.setdefault(trajectory.arm.start, Shared())
        _measure_trajectory(collector, trajectory, settings, shared, done, (0.98 - training_share) / len(trained))
    for trajectory in trained if settings.whole_batches else ():
        if trajectory.arm.name in PUBLISHED and trajectory.run is not None:
            collector.say(f"seed {seed}: {trajectory.arm.name}, whole batches", 0.99)
            _without_noise(collector, trajectory, trajectory.run, settings)
    return collector.study("compare", start)


def measured_seeds(
    build: Callable[[int], Problem],
    settings: StudySettings,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Study]]:
    """Measure seeds, each as soon as one of the jobs is free.

    Parameters
    ----------
    build
        From a seed to the problem at its initial weights. With several jobs it is sent to other processes.
    settings
        What is trained and measured.
    seeds
        Which.
    jobs
        Number of processes, with one thread each; 1: this process.
    progress
        Called with a message and the share of the seeds that is done.

    Yields
    ------
    tuple
        A seed and its measurements, in the order in which they are finished.
    """
    if jobs == 1:
        for number, seed in enumerate(seeds):
            yield seed, measure_seed(build(seed), settings, seed=seed, progress=part_of(progress, number, len(seeds)))
        return
    import joblib

    parallel = joblib.Parallel(min(jobs, max(len(seeds), 1)), return_as="generator_unordered")
    finished = parallel(joblib.delayed(_measured_in_a_process)(build, settings, seed) for seed in seeds)
    for number, (seed, study) in enumerate(finished, start=1):
        if progress is not None:
            progress(f"seed {seed} is done", number / len(seeds))
        yield seed, study


def refuse_unsuited(start: Problem, settings: StudySettings) -> None:
    """Refuse a problem that the arms of a study cannot train.

    Parameters
    ----------
    start
        At its initial weights.
    settings
        Of the study.

    Raises
    ------
    ConfigurationError
        As :func:`measure_seed`.
    """
    _refuse_untrainable(start)
    if not any(entry.normalized for entry in start.layout.entries):
        frozen = _frozen_layers(start)
        why = f" that is trained: {', '.join(frozen)} are frozen. Leave one of them trainable" if frozen else ""
        raise ConfigurationError(
            f"the model has no linear or convolutional layer{why or ' that weight norm could normalize'}."
        )
    if any("batch-norm" in arm.method for arm in settings.arms):
        refuse_penalty(start)


def _refuse_untrainable(problem: Problem) -> None:
    """Refuse what cannot be trained by batches of examples."""
    reader = problem.function.reader
    if reader.packed:
        raise ConfigurationError(
            "the study trains by batches of examples, but packed graphs are one example. Spectra, and cv.measure at "
            "weights that you trained, take them as they are."
        )
    if problem.is_streamed:
        raise ConfigurationError(
            "the study trains on examples in random order, and streamed data are read in their own. Build the problem "
            "without stream=True, with fewer examples if they do not fit into memory."
        )
    if reader.own_loss:
        raise ConfigurationError(
            "the study needs the outputs of the model, for GGN and Fisher, but loss='model' gives only its loss. Name "
            "the outputs, e.g. output='logits', and a loss such as 'cross-entropy'."
        )


def _frozen_layers(problem: Problem) -> list[str]:
    """Linear and convolutional layers whose weight is frozen."""
    owners = {name.rpartition(".")[0] for name in problem.frozen if name.rpartition(".")[2] == "weight"}
    kinds = nn.Linear | nn.modules.conv._ConvNd
    return [path for path in sorted(owners) if isinstance(problem.model.get_submodule(path), kinds)]


def _measured_in_a_process(build: Callable[[int], Problem], settings: StudySettings, seed: int) -> tuple[int, Study]:
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return seed, measure_seed(build(seed), settings, seed=seed)


def _measure_trajectory(
    collector: Collector, trajectory: Trajectory, settings: StudySettings, shared: Shared, done: float, share: float
) -> None:
    """Measure the checkpoints of one arm; ``done`` is the share of the work before it, ``share`` its own."""
    name, seed, run = trajectory.arm.name, trajectory.start.seed, trajectory.run
    collector.checks += trajectory.checks
    if trajectory.sweep is not None:
        collector.sweeps.append(trajectory.sweep)
    if run is None:
        collector.warn(f"{name}, seed {seed}: every learning rate diverged.")
        return
    collector.curves.append(run.curve)
    for number, point in enumerate(run.checkpoints):
        collector.say(f"seed {seed}: {name}, {point.name}", done + share * number / len(run.checkpoints))
        place = Place(name, seed, point.name, point.step)
        problem, first = trajectory.start.problem, point.step == 0 and _is_start(trajectory, point.weights)
        problem = problem if first else problem.at(point.weights)
        measure_point(collector, place, problem, point.chart, settings, shared if first else None)
    if name in settings.followed:
        for checkpoint in run.missing:  # without the seed, so that it is one warning for all of them
            collector.warn(f"{name}: some seeds did not reach the checkpoint {checkpoint!r}.")


def _is_start(trajectory: Trajectory, weights: Tensor) -> bool:
    """Whether these are the initial weights, up to the rounding of the chart of the arm."""
    start = trajectory.start.problem.weights
    return bool((weights - start).abs().max() <= 10 * torch.finfo(start.dtype).eps * start.abs().max())


def _without_noise(collector: Collector, trajectory: Trajectory, noisy: Run, settings: StudySettings) -> None:
    """The same arm by whole batches: the same rate, as many steps; its last checkpoint is measured by the GGN."""
    problem, steps = trajectory.start.problem, int(noisy.curve.steps[-1])
    name, seed = WHOLE.format(trajectory.arm.name), trajectory.start.seed
    run = train(
        problem,
        trajectory.arm.begin(trajectory.start),
        Schedule(steps, problem.num_examples, {"late": steps}, evaluate_every=steps),
        arm=name,
        seed=seed,
        optimizer=settings.training.optimizer.at_rate(noisy.curve.learning_rate),
    )
    if run.diverged:
        collector.warn(f"{name}, seed {seed}: {run.diverged}")
        return
    (point,) = run.checkpoints
    charts: list[Parameterization] = [Standard()]
    charts += [] if isinstance(point.chart, Standard) else [point.chart]
    place = Place(name, seed, point.name, point.step)
    measured_spectra(collector, place, problem.at(point.weights), ("ggn",), charts, gradient=False)
