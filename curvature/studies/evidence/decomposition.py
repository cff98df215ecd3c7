r"""Where a difference between the arms comes from: one log-ratio, split into five sources that add up.

The whole is $W = \log \kappa_B - \log \kappa_A$: arm B trained in weight normalization, measured at its own weights, in
its own chart and gauge; arm A trained in the standard chart, measured at its own weights, in the standard chart. Five
changes lead from A to B, and each can be made alone:

========================  =============================================================================
``initialization``        start at the weight-normalized arm's initial weights instead of the standard
                          arm's; still trained and measured in the standard chart
``trajectory``            train in weight norm from there; still measured in the standard chart
``gauge``                 measure with the metric $K$ of the gauge that training reached, or of another
                          one: $K^{1/2} A K^{1/2}$
``second-order term``     add $\sum_k r_k\, \partial^2 w_k / \partial\theta^2$; Hessian alone
``noise``                 what minibatches add: $W$ minus the $W$ of the same pair trained on whole
                          batches. All other parts are then those of the whole-batch pair
========================  =============================================================================

A *state* is the logarithm of the condition number with some of the changes made. A part is the difference that making
one change makes, averaged over all orders of making them whose states were all measured: one order is a telescoping
sum, all orders are Shapley values. Each order adds up to the whole, so their mean does.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records import ConditionNumbers, Decomposition, Study
from curvature.studies.evidence.inference import LEVEL, paired_interval
from curvature.studies.evidence.pairs import last_checkpoint, log_ratio

__all__ = ["LINEAR_PART", "SOURCES", "decompose", "decomposition", "part_intervals"]

LINEAR_PART = "weight-norm, linear part"  # the linear chart with the metric of weight norm: no second-order term
SOURCES = ("initialization", "trajectory", "gauge", "second-order term", "noise")

Changes = frozenset[str]
States = Mapping[Changes, Sequence[float] | np.ndarray]


def decompose(
    states: States,
    *,
    noise_free: States | None = None,
    seeds: Sequence[int] | None = None,
    quantity: str = "",
    matrix: str = "",
    held: Mapping[str, str] | None = None,
) -> Decomposition:
    r"""Split a paired log-ratio into its sources.

    Parameters
    ----------
    states
        From the set of changes made (names of ``SOURCES`` without ``"noise"``) to the logarithms, one per seed. The
        empty set is arm A; the largest one is arm B and contains all others. A seed whose number is not finite in any
        state is left out and counted.
    noise_free
        The same states of the pair trained without minibatch noise.
    seeds
        Names of the seeds; 0, 1, ... if None.
    quantity, matrix
        What was measured, for the record.
    held
        Reasons for sources that were not varied; a source that is in no state needs none, and gets one.

    Returns
    -------
    Decomposition
        Parts and whole, seed by seed; each row of parts sums to the whole up to rounding.

    Raises
    ------
    ConfigurationError
        If the states have unknown changes, no beginning or end, different seeds, or no order of the changes.

    Examples
    --------
    >>> both = frozenset({"trajectory", "gauge"})
    >>> sources = decompose({frozenset(): [0.0], frozenset({"trajectory"}): [1.0], both: [1.5]})
    >>> dict(zip(sources.sources, sources.parts[0].tolist(), strict=True))["gauge"]
    0.5
    """
    measured = {changes: np.asarray(values, dtype=float) for changes, values in states.items()}
    clean = measured
    if noise_free is not None:
        clean = {changes: np.asarray(values, dtype=float) for changes, values in noise_free.items()}
    full = max(measured, key=len, default=frozenset())
    _check_states(measured, clean, full)
    whole = measured[full] - measured[frozenset()]
    finite = np.isfinite([*measured.values(), *clean.values()]).all(axis=0)
    names = np.arange(len(whole)) if seeds is None else np.asarray(seeds)

    orders = list(_orders(frozenset(), full, clean))
    if not orders:
        raise ConfigurationError(
            "no order of the changes has all its states measured: two neighbouring states must differ in one change."
        )
    parts = np.zeros((len(whole), len(SOURCES)))
    for order in orders:
        changes: Changes = frozenset()
        for source in order:
            parts[:, SOURCES.index(source)] += (clean[changes | {source}] - clean[changes]) / len(orders)
            changes |= {source}
    if noise_free is not None:
        parts[:, SOURCES.index("noise")] = whole - (clean[full] - clean[frozenset()])
    reasons = {source: "not varied on its own" for source in SOURCES[:-1] if source not in full}
    if noise_free is None:
        reasons["noise"] = "no pair was trained without minibatch noise: contained in the trajectory"
    reasons |= {source: reason for source, reason in (held or {}).items() if source in reasons}
    return Decomposition(
        quantity=quantity,
        matrix=matrix,
        sources=SOURCES,
        parts=parts[finite],
        whole=whole[finite],
        seeds=tuple(int(seed) for seed in names[finite]),
        held=reasons,
        num_orders=len(orders),
        num_missing=int((~finite).sum()),
    )


def part_intervals(parts: Decomposition, level: float = LEVEL) -> dict[str, tuple[float, float, float]]:
    """Mean over seeds of every part that was varied, and of the ``"whole"``, with Student t intervals.

    Parameters
    ----------
    parts
        Of one pair of arms.
    level
        Of each interval.

    Returns
    -------
    dict
        Source to ``(mean, low, high)``.
    """
    columns = dict(zip(parts.sources, parts.parts.T, strict=True)) | {"whole": parts.whole}
    return {
        name: (float(values.mean()), *paired_interval(values, level))
        for name, values in columns.items()
        if name not in parts.held and len(values)
    }


def decomposition(
    study: Study,
    *,
    quantity: str = "kappa_80",
    matrix: str = "ggn",
    gauge: str = "checkpoint",
    checkpoint: str | None = None,
    arms: tuple[str, ...] = ("standard", "weight-norm"),
    noise_free: tuple[str, ...] | None = None,
) -> Decomposition | None:
    r"""Decompose the log-ratio between two arms of a study.

    Parameters
    ----------
    study
        Two arms with paired seeds, as :func:`curvature.study` gives it.
    quantity
        One summary of the matrix. For the Hessian take ``"stable_rank"``: its rank changes with the chart, because the
        second-order term curves directions that are flat in the weights, and condition numbers are ratios on the rank.
    matrix
        Name of the matrix.
    gauge
        Where weight norm is measured: the gauge that training reached, or a fixed one (``"paper"``). The full study
        measures the latter in both arms, so that gauge and trajectory are averaged over their two orders.
    checkpoint
        None: the last one.
    arms
        Names of the standard and the weight-normalized arm, and of a third one, trained in the standard chart from the
        weight-normalized arm's initial weights, if those differ. Where both start at the same weights (as in
        ``curvature compare``) the part of the initialization is zero by design.
    noise_free
        Names of as many arms, trained on whole batches.

    Returns
    -------
    Decomposition or None
        None where the study lacks the numbers.

    Examples
    --------
    >>> cv.decomposition(cv.study(build), matrix="hessian", quantity="stable_rank")  # doctest: +SKIP
    """
    numbers = _Numbers(study, matrix, quantity, gauge, checkpoint or last_checkpoint(study))
    states = numbers.states(*arms)
    full = max(states, key=len, default=frozenset())
    if "gauge" not in full or "trajectory" not in full or frozenset() not in states:
        return None
    held = {
        "initialization": "zero by design: the arms start at the same weights"
        if _same_start(study, arms)
        else "not varied on its own: contained in the trajectory",
        "second-order term": "contained in the gauge" if matrix == "hessian" else "zero: only the Hessian has one",
    }
    clean = numbers.states(*noise_free) if noise_free else {}
    clean = {changes: values for changes, values in clean.items() if changes in states}
    return decompose(
        {changes: values for changes, values in states.items() if changes <= full},
        noise_free=clean if clean.keys() >= {frozenset(), full} else None,
        seeds=numbers.seeds,
        quantity=quantity,
        matrix=matrix,
        held=held,
    )


@dataclass(frozen=True)
class _Numbers:
    """One summary of one matrix at one checkpoint of a study, in the charts of a decomposition."""

    study: Study
    matrix: str
    quantity: str
    gauge: str
    checkpoint: str

    @property
    def seeds(self) -> list[int]:
        return sorted({m.seed for m in self.study.measurements})

    def states(self, plain: str, normed: str, matched: str | None = None) -> dict[Changes, np.ndarray]:
        """Logarithms by the set of changes; ``matched`` is the standard method from the other's initial weights."""
        arms: dict[Changes, str] = {frozenset(): plain, frozenset({"trajectory"}): normed}
        if matched is not None:
            start = frozenset({"initialization"})
            arms = {frozenset(): plain, start: matched, start | {"trajectory"}: normed}
        records: dict[Changes, dict[int, ConditionNumbers]] = {}
        for changes, arm in arms.items():
            records |= self._in_charts(changes, arm)
        reference = self._of(plain, "standard", "-")
        return {
            changes: np.array(
                [_logarithm(by_seed.get(seed), reference.get(seed), self.quantity) for seed in self.seeds]
            )
            for changes, by_seed in records.items()
            if by_seed
        }

    def _in_charts(self, changes: Changes, arm: str) -> dict[Changes, dict[int, ConditionNumbers]]:
        """Records of one arm in the standard chart, with the metric of weight norm, and with its second-order term."""
        gauge = changes | {"gauge"}
        standard = self._of(arm, "standard", "-")
        effective = self._of(arm, "weight-norm", self.gauge, effective=True)
        linear = self._of(arm, LINEAR_PART, self.gauge)
        if self.matrix == "hessian" and linear:
            return {changes: standard, gauge: linear, gauge | {"second-order term"}: effective}
        return {changes: standard, gauge: effective}

    def _of(self, arm: str, chart: str, gauge: str, effective: bool | None = None) -> dict[int, ConditionNumbers]:
        rows = self.study.of(
            ConditionNumbers,
            arm=arm,
            checkpoint=self.checkpoint,
            matrix=self.matrix,
            chart=chart,
            gauge=gauge,
            block="all",
        )
        return {m.seed: m.record for m in rows if effective in (None, m.record.effective)}


def _orders(changes: Changes, full: Changes, measured: Container[Changes]) -> Iterator[tuple[str, ...]]:
    """Every order of the remaining changes that passes through measured states alone."""
    if changes == full:
        yield ()
    for source in sorted(full - changes, key=SOURCES.index):
        if changes | {source} in measured:
            yield from ((source, *rest) for rest in _orders(changes | {source}, full, measured))


def _check_states(measured: Mapping[Changes, np.ndarray], clean: Mapping[Changes, np.ndarray], full: Changes) -> None:
    names = frozenset().union(*measured)
    if "noise" in names or names - set(SOURCES):
        raise ConfigurationError(
            f"changes must be among {', '.join(SOURCES[:-1])}, got {', '.join(sorted(names))}; noise is given by "
            "noise_free."
        )
    if names - full or any(changes not in table for table in (measured, clean) for changes in (frozenset(), full)):
        raise ConfigurationError("the states must include the one without any change and the one with all of them.")
    if len({values.shape for table in (measured, clean) for values in table.values()}) != 1:
        raise ConfigurationError("every state needs one number per seed, the same seeds in the same order.")


def _logarithm(record: ConditionNumbers | None, reference: ConditionNumbers | None, quantity: str) -> float:
    """Log of a number that can be compared with the standard arm's, else NaN."""
    if record is None or reference is None or math.isnan(log_ratio(record, reference, quantity)[0]):
        return math.nan
    return math.log(record.values[quantity].value)


def _same_start(study: Study, arms: tuple[str, ...]) -> bool:
    first = {(curve.arm, curve.seed): curve.losses[0] for curve in study.curves if len(curve.losses)}
    pairs = [(first.get((arms[0], seed)), first.get((arms[1], seed))) for seed in {seed for _, seed in first}]
    return bool(pairs) and all(a is not None and b is not None and abs(a - b) <= 1e-9 * abs(a) for a, b in pairs)
