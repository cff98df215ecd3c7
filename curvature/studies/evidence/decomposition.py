r"""Where a difference between the arms comes from: one log-ratio, cut into five sources that add up.

The whole is $W = \log \kappa_B - \log \kappa_A$: arm B trained in weight normalization, measured at its own weights, in
its own chart and gauge; arm A trained in the standard chart, measured at its own weights, in the standard chart.
Between the two lie five changes, each of which can be made on its own:

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
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records import ConditionNumbers, Decomposition, Study
from curvature.studies.evidence.inference import LEVEL, paired_interval
from curvature.studies.evidence.pairs import last_checkpoint, log_ratio

__all__ = ["LINEAR_PART", "SOURCES", "decompose", "decomposition", "decompositions", "part_intervals"]

LINEAR_PART = "weight-norm, linear part"  # the linear chart with the metric of weight norm: no second-order term
SOURCES = ("initialization", "trajectory", "gauge", "second-order term", "noise")

_States = Mapping[frozenset[str], Sequence[float]]


def decompose(
    states: _States,
    *,
    noise_free: _States | None = None,
    seeds: Sequence[int] | None = None,
    quantity: str = "",
    matrix: str = "",
    held: Mapping[str, str] | None = None,
) -> Decomposition:
    r"""Cut a paired log-ratio into its sources.

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
    held
        Reasons for sources that were not varied; a source that is in no state needs none, and gets one.

    Returns
    -------
    Decomposition
        Parts and whole, seed by seed; each row of parts sums to the whole up to rounding.

    Examples
    --------
    >>> both = frozenset({"trajectory", "gauge"})
    >>> found = decompose({frozenset(): [0.0], frozenset({"trajectory"}): [1.0], both: [1.5]})
    >>> dict(zip(found.sources, found.parts[0].tolist(), strict=True))["gauge"]
    0.5
    """
    tables = [{frozenset(key): np.asarray(value, dtype=float) for key, value in states.items()}]
    tables += [] if noise_free is None else [{frozenset(k): np.asarray(v, dtype=float) for k, v in noise_free.items()}]
    full = max(tables[0], key=len, default=frozenset())
    _check_states(tables, full)
    whole = tables[0][full] - tables[0][frozenset()]
    finite = np.all([np.isfinite(value) for table in tables for value in table.values()], axis=0)
    names = np.arange(len(whole)) if seeds is None else np.asarray(seeds)

    clean = tables[-1]
    orders = list(_orders(frozenset(), full, clean.keys()))
    if not orders:
        raise ConfigurationError(
            "no order of the changes has all its states measured: between two neighbours exactly one change may differ."
        )
    parts = np.zeros((len(whole), len(SOURCES)))
    for order in orders:
        made: frozenset[str] = frozenset()
        for source in order:
            parts[:, SOURCES.index(source)] += (clean[made | {source}] - clean[made]) / len(orders)
            made |= {source}
    if noise_free is not None:
        parts[:, SOURCES.index("noise")] = whole - (clean[full] - clean[frozenset()])
    reasons = {source: "not varied on its own" for source in SOURCES[:-1] if source not in full}
    if noise_free is None:
        reasons["noise"] = "no pair was trained without minibatch noise: contained in the trajectory"
    return Decomposition(
        quantity=quantity,
        matrix=matrix,
        sources=SOURCES,
        parts=parts[finite],
        whole=whole[finite],
        seeds=tuple(int(seed) for seed in names[finite]),
        held=reasons | {k: v for k, v in (held or {}).items() if k in reasons},
        num_orders=len(orders),
        num_missing=int((~finite).sum()),
    )


def part_intervals(found: Decomposition, level: float = LEVEL) -> dict[str, tuple[float, float, float]]:
    """Mean over seeds of every part that was varied, and of the ``"whole"``, with Student t intervals."""
    columns = dict(zip(found.sources, found.parts.T, strict=True)) | {"whole": found.whole}
    return {
        name: (float(values.mean()), *paired_interval(values, level))
        for name, values in columns.items()
        if name not in found.held and len(values)
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
    r"""Decompose the log-ratio between two arms of a study; None where it lacks the numbers.

    Parameters
    ----------
    quantity, matrix
        One summary of one matrix; for an indefinite Hessian one that does not depend on the rank, ``"stable_rank"``.
    gauge
        Where weight norm is measured: the gauge that training reached, or a fixed one (``"paper"``), which both arms
        have, so that gauge and trajectory are averaged over their two orders.
    checkpoint
        None: the last one.
    arms
        Names of the standard and the weight-normalized arm, and of a third one, trained in the standard chart from the
        weight-normalized arm's initial weights, if those differ. Where both start at the same weights (as in
        ``curvature compare``) the part of the initialization is zero by design.
    noise_free
        Names of as many arms, trained on whole batches.
    """
    checkpoint = checkpoint or last_checkpoint(study)
    seeds = sorted({m.seed for m in study.measurements})

    def numbers(arm: str, chart: str, at: str, effective: bool | None = None) -> dict[int, ConditionNumbers]:
        found = study.of(
            ConditionNumbers, arm=arm, checkpoint=checkpoint, matrix=matrix, chart=chart, gauge=at, block="all"
        )
        return {m.seed: m.record for m in found if effective in (None, m.record.effective)}

    def states_of(plain: str, normed: str, matched: str | None = None) -> dict[frozenset[str], np.ndarray]:
        bases = {frozenset[str](): plain, frozenset({"trajectory"}): normed}
        if matched is not None:
            start = frozenset({"initialization"})
            bases = {frozenset[str](): plain, start: matched, start | {"trajectory"}: normed}
        reference = numbers(plain, "standard", "-")
        found = {}
        for made, arm in bases.items():
            measured = {made: numbers(arm, "standard", "-"), made | {"gauge"}: numbers(arm, "weight-norm", gauge, True)}
            linear = numbers(arm, LINEAR_PART, gauge)
            if matrix == "hessian" and linear:
                measured[made | {"gauge", "second-order term"}] = measured[made | {"gauge"}]
                measured[made | {"gauge"}] = linear
            found |= {state: records for state, records in measured.items() if records}
        return {
            state: np.array([_logarithm(records.get(seed), reference.get(seed), quantity) for seed in seeds])
            for state, records in found.items()
        }

    states = states_of(*arms)
    full = max(states, key=len, default=frozenset())
    if "gauge" not in full or "trajectory" not in full or frozenset() not in states:
        return None
    held = {
        "initialization": "zero by design: the arms start at the same weights"
        if _same_start(study, arms)
        else "not varied on its own: contained in the trajectory",
        "second-order term": "contained in the gauge" if matrix == "hessian" else "zero: only the Hessian has one",
    }
    clean = {made: value for made, value in states_of(*noise_free).items() if made in states} if noise_free else {}
    return decompose(
        {made: value for made, value in states.items() if made <= full},
        noise_free=clean if clean.keys() >= {frozenset(), full} else None,
        seeds=seeds,
        quantity=quantity,
        matrix=matrix,
        held=held,
    )


def decompositions(study: Study) -> tuple[Decomposition, ...]:
    """The 80 % condition number of every matrix between the two arms; for the Hessian the stable rank.

    The second-order term of weight norm gives curvature to directions that the Hessian on the weights does not know, so
    its rank changes, and ratios on the rank with it. A matrix is left out where no seed has comparable numbers.
    """
    found = []
    for matrix in dict.fromkeys(m.record.matrix for m in study.of(ConditionNumbers)):
        quantity = "stable_rank" if matrix == "hessian" else "kappa_80"
        parts = decomposition(study, matrix=matrix, quantity=quantity)
        found += [parts] if parts is not None and len(parts.seeds) else []
    return tuple(found)


def _orders(
    made: frozenset[str], full: frozenset[str], measured: Mapping | Sequence | set
) -> Iterator[tuple[str, ...]]:
    """Every order of the remaining changes that passes through measured states alone."""
    if made == full:
        yield ()
    for source in sorted(full - made, key=SOURCES.index):
        if made | {source} in measured:
            yield from ((source, *rest) for rest in _orders(made | {source}, full, measured))


def _check_states(tables: Sequence[Mapping[frozenset[str], np.ndarray]], full: frozenset[str]) -> None:
    named = set().union(*tables[0])
    if "noise" in named or named - set(SOURCES):
        raise ConfigurationError(
            f"changes must be among {', '.join(SOURCES[:-1])}, got {', '.join(sorted(named))}; noise is given by "
            "noise_free."
        )
    for table in tables:
        if frozenset() not in table or full not in table or named - full:
            raise ConfigurationError("the states must hold the one without any change and the one with all of them.")
    if len({value.shape for table in tables for value in table.values()}) != 1:
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
