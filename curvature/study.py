"""From problems to a :class:`~curvature.records.Study`: which matrices, charts, points and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvature.conditioning import condition_numbers
from curvature.errors import ConfigurationError, SelfCheckError
from curvature.evidence import LINEAR_PART, THRESHOLD, decompositions, verdicts
from curvature.krylov import extremal_eigenvalues, spectral_density
from curvature.losses import Loss
from curvature.matrices import MATRICES, fisher
from curvature.noise import alignments, whitening
from curvature.operators import USABLE, SymmetricOperator, blocks, free_memory
from curvature.parameterization import LinearChart, Parameterization, Placebo, Standard, WeightNorm
from curvature.planning import Plan, Rates, ends, measured_products, pilot, plans
from curvature.problem import Problem
from curvature.records import Check, ExtremalEigenvalues, GaugeState, Measured, Spectrum, Study
from curvature.spectra import spectrum
from curvature.steps import Controls, compare_charts, control_charts
from curvature.training import (
    DEFAULT_ARMS,
    SGD,
    Arm,
    Checkpoint,
    Run,
    Trajectory,
    TrajectorySettings,
    fingerprint,
    lifts,
    load_trajectories,
    save_trajectories,
    train,
    trajectories,
)

__all__ = ["CompareSettings", "FullSettings", "compare", "plan_spectrum", "run_compare", "run_full", "run_spectrum"]

Progress = Callable[[str, float], None]

CANONICAL_TOLERANCE = 1e-10  # of the largest eigenvalue: rounding leaves about 1e-15
_STRETCHES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_SECOND_MOMENTS = ("ggn", "fisher", "monte_carlo_fisher", "empirical_fisher", "gradient_covariance")


@dataclass(frozen=True)
class CompareSettings:
    """What ``curvature compare`` does; every field is an option.

    Attributes
    ----------
    seeds
        Paired seeds: each draws one initialization and one order of the data, shared by the arms.
    epochs, batch_size, learning_rate, momentum
        Minibatch gradient descent, the same in both arms.
    matrices
        Measured at every checkpoint.
    stretches
        The gauge sweep of the GGN.
    dampings
        The damping sweep of the natural-gradient comparison.
    damping
        The one damping at which closeness to the natural gradient is also measured (at init and late: it costs the
        eigenvalues of every chart).
    threshold
        The smallest effect that counts in a verdict, as a log-ratio; 10 %.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.2
    momentum: float = 0.0
    matrices: tuple[str, ...] = ("hessian", "ggn", "gradient_covariance")
    stretches: tuple[float, ...] = _STRETCHES
    dampings: tuple[float, ...] = (1e-5, 1e-3, 1e-1)
    damping: float = 1e-3
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be distinct and at least one, got {self.seeds}.")
        _known_matrices(self.matrices)
        if self.epochs < 2:
            raise ConfigurationError(
                f"epochs must be at least 2 (init, early and late checkpoints), got {self.epochs}."
            )

    @property
    def checkpoints(self) -> dict[str, int]:
        """Epochs of the checkpoints: before training, after a tenth, at the end."""
        return {"init": 0, "early": max(1, self.epochs // 10), "late": self.epochs}


def compare(
    problem: Problem,
    charts: Sequence[Parameterization] | None = None,
    *,
    matrices: Sequence[str] = ("hessian", "ggn", "gradient_covariance"),
    effective: bool = True,
    gradient: bool = True,
    progress: Progress | None = None,
) -> Study:
    """Measure one problem in several charts: the same weights, function and data, other coordinates.

    Parameters
    ----------
    charts
        None: standard, weight norm at the canonical and the paper's gauge, and the module's own chart.
    matrices
        Names from ``curvature.matrices.MATRICES``.
    effective
        ``K^(1/2) A K^(1/2)`` instead of the chart's own coordinates: no gauge zeros, the Hessian on the horizontal
        space.
    gradient
        Also ``gd_time``; costs eigenvectors.

    Returns
    -------
    Study
        Spectra, condition numbers, and the check that the canonical gauge changes nothing it must not change.
    """
    if charts is None:
        charts = [Standard(), WeightNorm(), WeightNorm("paper")]
        charts += [problem.chart] if isinstance(problem.chart, WeightNorm) else []
    place = _Place("given", 0, "given", 0)
    found = _Collector(progress)
    _spectra(found, place, problem, _known_matrices(matrices), charts, effective, gradient)
    return found.study("compare", problem, {}, model="given model", data="given data")


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
    rates: Rates | None = None,
) -> dict[str, list[tuple[Plan, ...]]]:
    """What :func:`run_spectrum` will do: for each matrix the plans of every chart and block, in the order of the work.

    Entries that several charts or blocks share are counted once. Refuses what does not fit; computes nothing but the
    pilot, unless ``rates`` are given.
    """
    found: dict[str, list[tuple[Plan, ...]]] = {}
    counts = {"num_eigenvalues": num_eigenvalues, "num_probes": num_probes, "num_matvecs": num_matvecs}
    for name in _known_matrices(matrices):
        operator = _matrix(problem, name, seed, num_samples)
        found[name] = []
        speeds = pilot(problem.dtype, problem.device) if rates is None else rates
        if not speeds.products and (method in ("lanczos", "slq") or operator.work.multiplications is None):
            speeds = measured_products(operator, speeds, num_probes)  # once for all charts and blocks
        # The entries on the weights are kept while the charts are measured.
        kept = problem.dtype.itemsize * problem.dim**2 if len(charts) > 1 else 0
        allowed = USABLE * free_memory(problem.device) - (kept if method in ("auto", "exact", "dense") else 0)
        shared = False
        for part in (part for _, parts in _in_charts(operator, charts, block) for part in parts):
            if shared:
                part = replace(part, work=replace(part.work, multiplications=0.0))
            with_gradient = gradient and _has_gradient(name)
            made = plans(part, method, gradient=with_gradient, max_memory=allowed, rates=speeds, **counts)
            shared = shared or made[0].method == "dense"
            found[name].append(made)
    return found


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

    ``block`` is ``"all"``, ``"layer"``, ``"neuron"`` or a pattern; ``method`` one of ``curvature.planning.METHODS``.
    ``"auto"`` gives every eigenvalue where that fits in memory, else the ends and the density, with a warning in the
    study. ``num_eigenvalues`` at each end by Lanczos; ``num_probes`` and ``num_matvecs`` (at most the dimension) for
    the density. ``seed`` draws sampled labels, start vectors and probes. ``announce`` is told the plans before anything
    is computed.
    """
    found = _Collector(progress)
    place = _Place("given", 0, "given", 0)
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
        operator = _matrix(problem, name, seed, num_samples)
        if len(charts) > 1 and any(one.method == "dense" for several in made for one in several):
            operator = operator.materialized()
        waiting = iter(made)
        for chart, parts in _in_charts(operator, charts, block):
            found.say(f"{name} in {chart.name}", k / len(planned))
            for part in parts:
                several = next(waiting)
                for one in several:
                    generator = torch.Generator().manual_seed(seed)
                    if one.method == "lanczos":
                        largest, smallest = ends(part, num_eigenvalues)
                        record = extremal_eigenvalues(
                            part, num_largest=largest, num_smallest=smallest, generator=generator
                        )
                        found.extend(place, [record])
                        _warn_unconverged(found, record)
                    elif one.method == "slq":
                        steps = min(num_matvecs, part.dim)
                        record = spectral_density(part, num_matvecs=steps, num_probes=num_probes, generator=generator)
                        found.extend(place, [record])
                    else:
                        with_gradient = gradient and _has_gradient(name) and one.method != "gram"
                        found.add(place, spectrum(part, method=one.method, gradient=with_gradient))
                if len(several) > 1:
                    found.warn(f"{several[0].reason}: the ends and the density were estimated instead.")
    for chart in charts:
        _gauge_state(found, place, problem, chart)
    return found.study("spectrum", problem, dict(config or {}), model=model, data=data)


def _in_charts(
    operator: SymmetricOperator, charts: Sequence[Parameterization], block: str
) -> Iterator[tuple[Parameterization, list[SymmetricOperator]]]:
    """The blocks of the matrix in every chart."""
    for chart in charts:
        moved = operator if isinstance(chart, Standard) else operator.to_chart(operator, chart, False)
        yield chart, list(blocks(moved, block).values())


def _has_gradient(matrix: str) -> bool:
    """Whether steps along the gradient mean something in this metric: not in that of a covariance of gradients."""
    return matrix != "gradient_covariance"


def _warn_unconverged(found: _Collector, record: ExtremalEigenvalues) -> None:
    if not record.converged:
        found.warn(
            f"the ends of the {record.matrix} in {record.chart} did not all converge in {record.num_products} "
            "products: their error bounds say how far they may be off."
        )


def run_compare(
    build: Callable[[int], nn.Module],
    data: tuple[Tensor, Tensor],
    loss: str | Loss,
    settings: CompareSettings | None = None,
    *,
    model: str = "given model",
    data_name: str = "given data",
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    progress: Progress | None = None,
) -> Study:
    r"""Train the standard and the weight-normalized arm from the same weights, and measure both along the way.

    Per seed: one initialization, one order of the data, two arms (weight norm starts at the canonical gauge, which is
    what PyTorch's wrapper does), the same learning rate. At each checkpoint of each arm:

    * every matrix in the standard chart and in weight norm at the canonical, the paper's and (in the weight-normalized
      arm) the gauge that training has reached, as effective matrices; the Hessian also in the chart's full coordinates;
    * the check that the canonical gauge leaves GGN, Fisher, empirical Fisher and gradient covariance unchanged;
    * the gauge sweep of the GGN;
    * alignment and whitening of each neuron's gradient covariance;
    * efficiency of every chart's step against the natural gradient, with controls, over the dampings.

    Then the claims that these measurements can test are decided (:mod:`curvature.evidence`), and the difference between
    the arms is cut into its sources.
    """
    settings = settings or CompareSettings()
    found = _Collector(progress)
    problem = None
    for s, seed in enumerate(settings.seeds):
        start = Problem.from_module(build(seed), loss=loss, data=data, dtype=dtype)
        if not any(entry.normalized for entry in start.layout.entries):
            raise ConfigurationError("the model has no linear or convolutional layer that weight norm could normalize.")
        if problem is None:
            problem = start
        for a, (arm, parameterization) in enumerate((("standard", Standard()), ("weight-norm", WeightNorm()))):
            done = (2 * s + a) / (2 * len(settings.seeds))
            found.say(f"seed {seed}: training the {arm} arm", done)
            run = train(
                start,
                parameterization,
                arm=arm,
                seed=seed,
                optimizer=SGD(settings.learning_rate, momentum=settings.momentum),
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                checkpoints=settings.checkpoints,
            ).require_finite()
            found.curves.append(run.curve)
            _measure_run(found, start, run, seed, settings, done, 1 / (2 * len(settings.seeds)))
    _check_matched_start(found, dtype)
    study = found.study("compare", problem, dict(config or {}), model=model, data=data_name)
    return replace(study, verdicts=verdicts(study, threshold=settings.threshold), decompositions=decompositions(study))


@dataclass(frozen=True)
class FullSettings:
    """The full study: every seed times every arm, each tuned, trained and measured.

    Attributes
    ----------
    seeds
        Paired seeds, at least 10 for a claim about trajectories.
    arms, training
        What is trained, and how.
    matrices
        Measured at every checkpoint, at every gauge.
    dampings, damping
        As in :class:`CompareSettings`.
    """

    seeds: tuple[int, ...] = tuple(range(10))
    arms: tuple[Arm, ...] = DEFAULT_ARMS
    training: TrajectorySettings = field(default_factory=TrajectorySettings)
    matrices: tuple[str, ...] = ("ggn",)
    dampings: tuple[float, ...] = (1e-3,)
    damping: float = 1e-3

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be distinct and at least one, got {self.seeds}.")
        _known_matrices(self.matrices)


def run_full(
    build: Callable[[int], nn.Module],
    data: tuple[Tensor, Tensor],
    loss: str | Loss,
    settings: FullSettings | None = None,
    *,
    state: Path,
    model: str = "given model",
    data_name: str = "given data",
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Study, tuple[Trajectory, ...]]:
    """Both designs over all seeds and arms: trajectories, and every checkpoint at every gauge.

    Trajectories are stored in the folder ``state``, one file per seed under the hash of all they follow from, and an
    interrupted study goes on after the last whole seed; measurements are made anew. Float64.

    Returns
    -------
    study, trajectories
        The records, whose measurements have the arms' names; and the trajectories, seed by seed, with the sweeps.
    """
    settings = settings or FullSettings()
    found, everything, problem = _Collector(progress), [], None
    share = 1 / len(settings.seeds)
    for s, seed in enumerate(settings.seeds):
        start = Problem.from_module(build(seed), loss=loss, data=data)
        problem = problem or start
        done = s * share
        key = fingerprint(start, settings.arms, settings.training, seed)
        path = state / f"{key}-seed-{seed}.npz"
        if not path.exists():
            # The first half of a seed's share of the progress is training, the second measuring.
            say = lambda words, part, done=done: found.say(words, done + 0.5 * share * part)  # noqa: E731
            trained = trajectories(start, settings.arms, settings.training, seed=seed, say=say)
            save_trajectories(path, trained)
        # What was just trained is read back too, so that an interrupted study has the same numbers.
        trained = load_trajectories(path, start, settings.training, seed=seed)
        for t, trajectory in enumerate(trained):
            found.checks += trajectory.checks
            if trajectory.run is None:
                found.warn(f"{trajectory.arm.name}, seed {seed}: every learning rate diverged.")
                continue
            found.curves.append(trajectory.run.curve)
            found.say(f"seed {seed}: measuring {trajectory.arm.name}", done + share * (0.5 + 0.5 * t / len(trained)))
            for point in trajectory.run.checkpoints:
                _measure_point(found, trajectory, point, seed, settings)
            for name, reason in trajectory.run.missing.items():
                found.warn(f"{trajectory.arm.name}, seed {seed}: no checkpoint {name!r}: {reason}")
        everything += trained
    study = found.study("full", problem, dict(config or {}), model=model, data=data_name)
    return study, tuple(everything)


def _measure_point(
    found: _Collector, trajectory: Trajectory, point: Checkpoint, seed: int, settings: FullSettings
) -> None:
    place = _Place(trajectory.arm.name, seed, point.name, point.step)
    problem = trajectory.start.problem.at(point.weights)
    charts = lifts(point, seed=seed)
    operators = _spectra(found, place, problem, settings.matrices, charts, True, True)
    for chart in charts:
        _gauge_state(found, place, problem, chart)
    generator = torch.Generator().manual_seed(seed)
    covariance = operators.get("gradient_covariance") or MATRICES["gradient_covariance"](problem).materialized()
    found.extend(place, alignments(problem, generator=generator, covariance=covariance))
    found.extend(place, whitening(problem, generator=generator, covariance=covariance))
    _efficiencies(found, place, problem, point.chart, settings, covariance)


def _measure_run(
    found: _Collector, start: Problem, run: Run, seed: int, settings: CompareSettings, done: float, share: float
) -> None:
    arm = run.curve.arm
    for c, checkpoint in enumerate(run.checkpoints):
        found.say(f"seed {seed}: {arm} arm, {checkpoint.name}", done + share * c / len(run.checkpoints))
        place = _Place(arm, seed, checkpoint.name, checkpoint.step)
        problem = start.at(checkpoint.weights)
        charts = [Standard(), WeightNorm(), WeightNorm("paper")]
        if isinstance(checkpoint.chart, WeightNorm):
            charts.append(checkpoint.chart)
        operators = _spectra(found, place, problem, settings.matrices, charts, True, True)
        for chart in charts[1:]:
            _gauge_state(found, place, problem, chart)
            if "hessian" in operators and chart.gauge != "paper":
                effective_too = chart.gauge == "canonical"  # measured in its own coordinates above
                found.add(place, spectrum(operators["hessian"], chart=chart, effective=effective_too))
                if not effective_too:
                    linear = _linear_part(problem, chart)
                    found.add(place, spectrum(operators["hessian"], chart=linear, effective=True))
        curvature = operators.get("ggn") or MATRICES["ggn"](problem).materialized()
        for stretch in settings.stretches:
            found.add(place, spectrum(curvature, chart=WeightNorm(stretch=stretch), effective=True))
        generator = torch.Generator().manual_seed(seed)
        covariance = operators.get("gradient_covariance") or MATRICES["gradient_covariance"](problem).materialized()
        found.extend(place, alignments(problem, generator=generator, covariance=covariance))
        found.extend(place, whitening(problem, generator=generator, covariance=covariance))
        _efficiencies(found, place, problem, checkpoint.chart, settings, covariance)


def _efficiencies(
    found: _Collector,
    place: _Place,
    problem: Problem,
    own: Parameterization,
    settings: CompareSettings | FullSettings,
    covariance: SymmetricOperator,
) -> None:
    if not problem.loss.likelihood:
        found.warn(f"no natural-gradient comparison: the loss {problem.loss.name!r} has no Fisher.")
        return
    controls = Controls(problem, fisher(problem), covariance)
    for damping in settings.dampings:
        charts = control_charts(problem, damping=damping, seed=place.seed, controls=controls)
        if (own.name, own.gauge) not in {(chart.name, chart.gauge) for chart in charts}:
            charts.insert(3, own)
        found.extend(
            place,
            compare_charts(
                problem,
                charts,
                dampings=(damping,),
                controls=controls,
                closeness=damping == settings.damping and place.checkpoint != "early",
            ),
        )


def _spectra(
    found: _Collector,
    place: _Place,
    problem: Problem,
    matrices: Sequence[str],
    charts: Sequence[Parameterization],
    effective: bool,
    gradient: bool,
) -> dict[str, SymmetricOperator]:
    """Every matrix once on the weights, then in every chart; check what the canonical gauge must leave alone."""
    operators = {}
    for name in matrices:
        operator = operators[name] = _matrix(problem, name, place.seed, 1).materialized()
        # A step along the gradient means something in the metric of a curvature, not of a covariance.
        with_gradient = gradient and name in ("ggn", "fisher")
        standard = None
        for chart in charts:
            plain = chart.name == Standard.name  # a mean-only batch norm is the same map under its own name
            canonical = type(chart) is WeightNorm and chart.gauge == "canonical"
            # At the canonical gauge K = I, so the effective matrix is the standard one bit by bit and would
            # test nothing: there the chart's own coordinates are measured, with one more zero per neuron.
            moved = operator if plain else operator.to_chart(operator, chart, effective and not canonical)
            record = spectrum(moved, gradient=with_gradient)
            found.add(place, record)
            standard = record if plain else standard
            if canonical and standard is not None and name in _SECOND_MOMENTS:
                _check_canonical(found, place, standard, record)
    return operators


def _check_canonical(found: _Collector, place: _Place, standard: Spectrum, canonical: Spectrum) -> None:
    """At ``v = w, g = ||w||`` the map is an isometry onto the weights: non-zero spectra are identical."""
    extra = canonical.dim - standard.dim
    words = standard.matrix.replace("_", " ").replace("ggn", "GGN")
    values = np.sort(np.abs(canonical.eigenvalues))[extra:]
    reference = np.sort(np.abs(standard.eigenvalues))
    deviation = float(np.abs(values - reference).max() / max(reference[-1], np.finfo(float).tiny))
    tolerance = CANONICAL_TOLERANCE if standard.dtype == "float64" else 1e-4
    found.checks.append(
        Check(
            f"canonical gauge leaves the {words} spectrum unchanged ({place.words})",
            deviation,
            tolerance,
            "largest difference of eigenvalues over the largest eigenvalue",
        )
    )
    if not found.checks[-1].passed:
        raise SelfCheckError(
            f"the {standard.matrix} spectrum at the canonical gauge differs from the standard one by {deviation:.1e} "
            "of its largest eigenvalue; the two are identical by theory, so one of them is wrong."
        )


def _check_matched_start(found: _Collector, dtype: torch.dtype) -> None:
    first = {(curve.arm, curve.seed): curve.losses[0] for curve in found.curves}
    gaps = [
        abs(first["standard", seed] - first["weight-norm", seed]) / abs(first["standard", seed])
        for seed in {curve.seed for curve in found.curves}
    ]
    found.checks.append(
        Check(
            "both arms start at the same function",
            float(max(gaps)),
            5e3 * torch.finfo(dtype).eps,
            "largest relative difference of the initial loss",
        )
    )


def _gauge_state(found: _Collector, place: _Place, problem: Problem, chart: Parameterization) -> None:
    if not isinstance(chart, WeightNorm) or isinstance(chart, Placebo):
        return
    stretches = chart.at(problem.layout, problem.weights).stretches.cpu().numpy()
    found.extend(
        place,
        [
            GaugeState(
                chart.name,
                chart.gauge,
                float(stretches.min()),
                float(np.median(stretches)),
                float(stretches.max()),
                len(stretches),
            )
        ],
    )


def _linear_part(problem: Problem, chart: WeightNorm) -> LinearChart:
    """Linear chart with the metric of weight norm at this point, to show what its second-order term adds."""
    identity = torch.eye(problem.dim, dtype=problem.dtype, device=problem.device)
    root = chart.at(problem.layout, problem.weights).metric_root(identity)
    neurons = [indices.to(problem.device) for indices in problem.layout.blocks("neuron").values()]
    return LinearChart([(where, root[where][:, where]) for where in neurons], name=LINEAR_PART, gauge=chart.gauge)


def _matrix(problem: Problem, name: str, seed: int, num_samples: int) -> SymmetricOperator:
    if name == "monte_carlo_fisher":
        return MATRICES[name](problem, num_samples, torch.Generator().manual_seed(seed))
    return MATRICES[name](problem)


def _known_matrices(names: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in MATRICES]
    if unknown or not names:
        raise ConfigurationError(f"matrices must be among {', '.join(MATRICES)}, got {', '.join(unknown) or 'none'}.")
    return tuple(names)


@dataclass(frozen=True)
class _Place:
    arm: str
    seed: int
    checkpoint: str
    step: int

    @property
    def words(self) -> str:
        return f"{self.arm} arm, seed {self.seed}, {self.checkpoint}"


@dataclass
class _Collector:
    """What has been measured so far."""

    progress: Progress | None = None
    measurements: list[Measured] = field(default_factory=list)
    curves: list = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)

    def say(self, message: str, fraction: float) -> None:
        if self.progress is not None:
            self.progress(message, fraction)

    def warn(self, message: str) -> None:
        self.warnings[message] = None

    def extend(self, place: _Place, records: Sequence[Any]) -> None:
        self.measurements += [
            Measured(place.arm, place.seed, place.checkpoint, place.step, record) for record in records
        ]

    def add(self, place: _Place, record: Spectrum) -> None:
        self.extend(place, [record, condition_numbers(record)])

    def study(self, command: str, problem: Problem, config: dict[str, Any], *, model: str, data: str) -> Study:
        if problem.unused:
            self.warn(
                f"the loss does not depend on {', '.join(problem.unused)}: zero rows, counted as null directions."
            )
        if problem.frozen:
            self.warn(f"left out, because frozen: {', '.join(problem.frozen)}.")
        if problem.dtype != torch.float64:
            self.warn("computed in float32: condition numbers above about 1e6 cannot be resolved.")
        self.say("done", 1.0)
        return Study(
            command=command,
            config=config,
            model=model,
            data=data,
            num_weights=problem.dim,
            num_examples=problem.num_examples,
            measurements=tuple(self.measurements),
            curves=tuple(self.curves),
            checks=tuple(self.checks),
            warnings=tuple(self.warnings),
        )
