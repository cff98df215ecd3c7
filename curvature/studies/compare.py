"""The study of weight normalization: every seed trained and measured, then every claim decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from curvature.errors import ConfigurationError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Check, Decomposition, Study
from curvature.studies.collector import with_warnings
from curvature.studies.evidence import decomposition, verdicts
from curvature.studies.progress import Progress, shown
from curvature.studies.seeds import WHOLE, measured_seeds
from curvature.studies.settings import HEADLINE, StudySettings, full_settings, quick_settings
from curvature.studies.training import Arm, arm_named

__all__ = ["StudyOptions", "combined", "run_study", "study"]

_FULL_ONLY = ("tuning_epochs", "arms")


class StudyOptions(TypedDict, total=False):
    """Options of :func:`study`; all but ``arms`` are named as on the command line."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    tuning_epochs: int
    arms: tuple[str, ...]
    matrices: tuple[str, ...]
    stretches: tuple[float, ...]
    relative_dampings: tuple[float, ...]
    relative_damping: float
    threshold: float


def study(
    problem: Problem | Callable[[int], Problem],
    *,
    full: bool = False,
    num_seeds: int | None = None,
    jobs: int = 1,
    progress: Progress | bool | None = None,
    **options: Unpack[StudyOptions],
) -> Study:
    r"""Train with and without weight normalization, measure along the way, and decide the claims.

    What ``curvature compare`` does (``curvature compare --full`` with ``full=True``), with the same options, and
    ``arms`` besides.

    Parameters
    ----------
    problem
        ``build(seed)``, which returns a :class:`~curvature.Problem` at freshly initialized weights; called with 0, 1,
        ... Or one problem: its weights are where every seed starts, so that the seeds differ only in the order of the
        data (and a warning in the study says so). An initialization cannot be drawn again from a problem.
    full
        False: two arms, ``"standard"`` and ``"weight-norm"``, at one learning rate; after training the second is
        measured in every chart, the first in its own. True: thirteen arms with their controls, each at a learning rate
        that was tuned for it, from PyTorch's and from the paper's initialization, and the league of
        :func:`~curvature.whitening_league` at the first and the last weights of ``"weight-norm"``.
    num_seeds
        Paired seeds; the arms share each. None: 3, which show what to expect; with ``full`` 10, which can decide
        about training.
    jobs
        Seeds measured in parallel, with one thread each. ``build`` is then sent to other processes.
    progress
        Called with a message and the share of the work that is done. None: a bar with the remaining time in a notebook
        and on a terminal; True: always; False: never.
    **options
        ``epochs`` (30), ``batch_size`` (64), ``learning_rate`` (0.2; tuned for each arm with ``full``), ``momentum``
        (0), ``matrices`` (Hessian, GGN, gradient covariance), ``stretches`` (gauges in which the GGN is measured too),
        ``relative_dampings`` and ``relative_damping`` (of the natural gradient, in units of the mean eigenvalue of the
        Fisher), ``threshold`` (the smallest effect that counts, as a log-ratio: $\log 1.1$), and with ``full``
        ``tuning_epochs`` (10) and ``arms``: names of :class:`~curvature.studies.training.Arm` in the place of the
        thirteen, with ``"standard"`` and ``"weight-norm"`` among them, e.g. ``("standard", "weight-norm", "sphere")``.

    Returns
    -------
    Study
        Measurements, training curves, checks, verdicts and decompositions. :func:`~curvature.verdicts` decides it again
        with another threshold, :func:`~curvature.decomposition` splits another difference.

    Raises
    ------
    TypeError
        For an option that does not exist.
    ConfigurationError
        If an option has an impossible value, or the model has no layer that weight norm could normalize.
    NonFiniteError
        If training diverges at a learning rate that is not tuned.

    Notes
    -----
    Costs the training, and the eigenvalues of every matrix in every chart at every checkpoint: half a minute for
    the quick study of a network with a thousand weights, hours for the full one.

    Examples
    --------
    >>> import curvature as cv
    >>> build = lambda seed: cv.zoo.digits_problem(100, widths=(3,), seed=seed)
    >>> options = {"epochs": 2, "matrices": ("ggn",), "stretches": (), "relative_dampings": (1e-3,)}
    >>> study = cv.study(build, num_seeds=1, **options)
    >>> [curve.arm for curve in study.curves]
    ['standard', 'weight-norm']
    >>> study.verdicts[0].name, study.verdicts[0].outcome
    ('C1, own training', 'undecided')
    """
    known = [name for name in StudyOptions.__annotations__ if full or name not in _FULL_ONLY]
    unknown = ", ".join(sorted(options.keys() - set(known)))
    if unknown:
        limited = [name for name in _FULL_ONLY if name in options]
        needs_full = f" ({' and '.join(limited)} needs full=True)" if limited and not full else ""
        raise TypeError(
            f"study() has no option {unknown}{needs_full}. Its options are full, num_seeds, jobs, progress, "
            f"{', '.join(known)}."
        )
    arms = options.pop("arms", None)
    preset: Callable[..., StudySettings] = full_settings if full else quick_settings
    settings = preset(**({} if num_seeds is None else {"seeds": range(num_seeds)}), **options)
    settings = settings if arms is None else replace(settings, arms=_arms(arms))
    build = _Same(problem) if isinstance(problem, Problem) else problem
    with shown(progress) as report:
        result = run_study(build, settings, jobs=jobs, progress=report)
    if isinstance(problem, Problem) and len(settings.seeds) > 1:
        warning = "every seed starts from the same weights: the seeds differ only in the order of the data."
        result = replace(result, warnings=(*result.warnings, warning))
    return result


def _arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """Arms by their names; the two that the claims compare must be among them."""
    if isinstance(names, str):
        right = list(dict.fromkeys([*HEADLINE, names]))
        raise ConfigurationError(f"arms must be a list of names, got {names!r}. Write arms={right}.")
    arms = tuple(map(arm_named, names))
    if missing := [name for name in HEADLINE if name not in names]:
        raise ConfigurationError(
            f"the claims compare the arms {' and '.join(HEADLINE)}: add {' and '.join(missing)} to arms=."
        )
    if len(set(arms)) < len(arms):
        raise ConfigurationError(f"arms must be distinct, got {'; '.join(names)}.")
    return arms


class _Same:
    """The same problem for every seed; unlike a local function it can be sent to another process."""

    def __init__(self, problem: Problem):
        self.problem = problem

    def __call__(self, _seed: int) -> Problem:
        return self.problem


@full_precision()
def run_study(
    build: Callable[[int], Problem],
    settings: StudySettings,
    *,
    jobs: int = 1,
    model: str = "given model",
    data: str = "given data",
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Measure every seed and decide the claims.

    Parameters
    ----------
    build
        From a seed to the problem at its initial weights.
    settings
        What is trained and measured; see :func:`quick_settings` and :func:`full_settings`.
    jobs
        Seeds measured in parallel, with one thread each.
    model, data
        One line each, for people.
    config
        The resolved configuration, for the record.
    progress
        Called with a message and the share of the work that is done.

    Returns
    -------
    Study
        As :func:`study` returns it.

    Raises
    ------
    ConfigurationError
        If ``build`` does not return a problem, or its model has no layer that weight norm could normalize.
    NonFiniteError
        If training diverges at a learning rate that is not tuned.
    """
    first = None if isinstance(build, nn.Module) else build(settings.seeds[0])
    if not isinstance(first, Problem):
        got = (
            f"a module ({type(build).__name__})" if first is None else f"a function that returns {type(first).__name__}"
        )
        raise ConfigurationError(
            f"a study needs a Problem or a function build(seed) that returns one, got {got}. Write "
            "build = lambda seed: cv.Problem.from_module(make_module(seed), loss=..., data=...)."
        )
    parts = dict(measured_seeds(build, settings, settings.seeds, jobs=jobs, progress=progress))
    return combined([parts[seed] for seed in settings.seeds], settings, first, model=model, data=data, config=config)


def combined(
    parts: Sequence[Study],
    settings: StudySettings,
    problem: Problem,
    *,
    model: str = "given model",
    data: str = "given data",
    config: Mapping[str, Any] | None = None,
) -> Study:
    """Join the seeds of a study, decide its claims, and split the differences between its arms into their sources.

    Parameters
    ----------
    parts
        One for each seed, as :func:`~curvature.studies.measure_seed` returns it.
    settings
        Of the study.
    problem
        That of the first seed.
    model, data
        One line each, for people.
    config
        The resolved configuration, for the record.

    Returns
    -------
    Study
        With verdicts and decompositions.
    """
    joined: dict[str, Any] = {
        name: tuple(record for part in parts for record in getattr(part, name))
        for name in ("measurements", "curves", "sweeps", "checks")
    }
    joined["warnings"] = tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
    whole = replace(parts[0], model=model, data=data, config=dict(config or {}), **joined)
    if not settings.training.rates and {arm.name for arm in settings.arms}.issuperset(HEADLINE):
        # Arms that were tuned have been checked one by one.
        whole = replace(whole, checks=(*whole.checks, _matched_start(whole, problem.dtype)))
    whole = with_warnings(whole, problem)
    return replace(
        whole,
        verdicts=verdicts(whole, threshold=settings.threshold, arms=HEADLINE, published=settings.published),
        decompositions=_decompositions(whole, settings),
    )


def _matched_start(study: Study, dtype: torch.dtype) -> Check:
    first = {(curve.arm, curve.seed): curve.losses[0] for curve in study.curves}
    plain, normed = HEADLINE
    gaps = [abs(loss - first[normed, seed]) / abs(loss) for (arm, seed), loss in first.items() if arm == plain]
    return Check(
        "both arms start at the same function",
        float(max(gaps)),
        5e3 * torch.finfo(dtype).eps,
        "largest relative difference of the initial loss",
    )


def _decompositions(study: Study, settings: StudySettings) -> tuple[Decomposition, ...]:
    """Of every matrix: between the two arms, and between those of the paper with their whole-batch pair."""
    results = []
    for matrix in settings.matrices:
        # The second-order term changes the rank of a Hessian, and with it every ratio on the rank.
        quantity = "stable_rank" if matrix == "hessian" else "kappa_80"
        pairs: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = [(HEADLINE, None)]
        if settings.published is not None:
            clean = tuple(WHOLE.format(name) for name in settings.published)
            pairs.append((settings.published, clean if settings.whole_batches and matrix == "ggn" else None))
        for arms, noise_free in pairs:
            sources = decomposition(study, quantity=quantity, matrix=matrix, arms=arms, noise_free=noise_free)
            results += [replace(sources, arms=arms[:2])] if sources is not None and len(sources.seeds) else []
    return tuple(results)
