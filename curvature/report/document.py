"""What a study says, as tables of plain numbers: medians over seeds, log-ratios, efficiencies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from curvature.records import (
    Alignment,
    ConditionNumbers,
    Decomposition,
    ExtremalEigenvalues,
    GaugeState,
    Measured,
    Quantity,
    SpectralDensity,
    Spectrum,
    StepComparison,
    Study,
    Whitening,
)
from curvature.records.conditioning import condition_numbers
from curvature.report import figures
from curvature.report.figures import grouped, plain_gauge, spread
from curvature.studies.evidence import learning_rate_width, log_ratio, part_intervals

HEADLINE = ("kappa_50", "kappa_80", "kappa_95", "gd_time", "abs_kappa_50", "abs_kappa_80", "abs_kappa_95")
EQUAL = 1e-8  # log-ratios below it are rounding
FIRST, LAST = "init", "late"
ARMS_QUANTITY = "kappa_80"


MOST_ARMS = 4  # that can be told apart in one picture


def shown_part(study: Study) -> Study:
    """What tables and pictures show: of a study with many arms those measured all along, at the fixed checkpoints."""
    arms = list(dict.fromkeys(m.arm for m in study.measurements))
    if len(arms) <= MOST_ARMS:
        return study
    followed = dict.fromkeys(m.arm for m in study.measurements if m.checkpoint not in (FIRST, LAST))
    kept = [m for m in study.measurements if m.arm in followed and not m.checkpoint.startswith("loss ")]
    curves = [curve for curve in study.curves if curve.arm in followed]
    return replace(study, measurements=tuple(kept), curves=tuple(curves))


def tables_of(everything: Study) -> dict[str, Any]:
    """Everything about the numbers of a study, aggregated over seeds and spectrum by spectrum."""
    study, numbers = shown_part(everything), numbers_of(shown_part(everything))
    every_number = numbers if study is everything else numbers_of(everything)
    return {
        "seeds": sorted({m.seed for m in study.measurements} | {curve.seed for curve in study.curves}),
        "checkpoints": checkpoints_of(study),
        "verdicts": [
            {"name": verdict.name, "icon": verdict.icon, "found": verdict.found} | asdict(verdict)
            for verdict in study.verdicts
        ],
        "decompositions": [_decomposition(item) for item in study.decompositions],
        "arms": _arms(everything),
        "unresolved": _unresolved(every_number),
        "equality": _equality(study),
        "ratios": _ratios(numbers),
        "efficiencies": _efficiencies(study),
        "table": _table(study, numbers),
        "gauges": _gauges(study),
        "alignments": _alignments(study),
        "whitenings": _whitenings(study),
        "training": _training(study),
        "checks": [asdict(check) | {"passed": check.passed} for check in (*everything.self_checks, *study.checks)],
        "warnings": list(study.warnings),
        "spectra": [_spectrum_row(*pair) for pair in _pairs(everything, every_number)],
        "extremes": [_extremes_row(m) for m in study.of(ExtremalEigenvalues)],
        "densities": [_density_row(m) for m in study.of(SpectralDensity)],
    }


def _decomposition(item: Decomposition) -> dict[str, Any]:
    """Means and intervals of the parts, and the parts of every seed."""
    intervals = part_intervals(item)
    about = {name: getattr(item, name) for name in ("matrix", "quantity", "num_orders", "num_missing")}
    about |= {
        "seeds": list(item.seeds),
        "arms": list(item.arms),
        "sources": list(item.sources),
        "held": dict(item.held),
    }
    means = {name: {"mean": mean, "low": low, "high": high} for name, (mean, low, high) in intervals.items()}
    return about | {"means": means, "parts": item.parts.tolist(), "whole": item.whole.tolist()}


def place_of(m: Measured) -> dict[str, Any]:
    """Where a record was taken."""
    return {"arm": m.arm, "seed": m.seed, "checkpoint": m.checkpoint, "step": m.step}


def _key(m: Measured) -> tuple[Any, ...]:
    record = m.record
    return (
        m.arm,
        m.seed,
        m.checkpoint,
        m.step,
        record.matrix,
        record.chart,
        record.gauge,
        record.block,
        record.effective,
    )


def numbers_of(study: Study) -> list[Measured]:
    """Condition numbers of every spectrum, once: those that the study brings, else computed."""
    found = {_key(m): m for m in study.of(ConditionNumbers)}
    for m in study.of(Spectrum):
        if _key(m) not in found:
            found[_key(m)] = Measured(m.arm, m.seed, m.checkpoint, m.step, condition_numbers(m.record))
    return list(found.values())


def _pairs(study: Study, numbers: list[Measured]) -> list[tuple[Measured, Spectrum | None]]:
    spectra = {_key(m): m.record for m in study.of(Spectrum)}
    return [(m, spectra.get(_key(m))) for m in numbers]


def checkpoints_of(study: Study) -> list[str]:
    """Names of the checkpoints in the order of training."""
    return list(dict.fromkeys(m.checkpoint for m in sorted(study.measurements, key=lambda m: m.step)))


def _unresolved(numbers: list[Measured]) -> dict[str, int]:
    """How many headline numbers there are, and how many of them cannot be quoted as they stand."""
    statuses = [quantity.status for m in numbers for quantity in m.record.headline.values()]
    return {"total": len(statuses)} | {
        name: statuses.count(name) for name in ("lower_bound", "unresolved", "indefinite", "undefined")
    }


def _spectrum_row(m: Measured, spectrum: Spectrum | None) -> dict[str, Any]:
    """One spectrum and its condition numbers, flat enough for a line of CSV."""
    record = m.record
    row = place_of(m) | {
        "matrix": record.matrix,
        "chart": record.chart,
        "gauge": record.gauge,
        "effective": record.effective,
        "block": record.block,
        "dim": record.dim,
        "num_examples": record.num_examples,
        "rank": record.rank,
        "rank_rule": record.rank_rule,
        "lowest_rank": (record.rank_bounds or (record.rank,))[0],
        "highest_rank": (record.rank_bounds or (record.rank,))[-1],
        "noise_floor": record.noise_floor,
    }
    if spectrum is not None:
        negative, zero, positive = spectrum.inertia
        row |= {
            "num_samples": spectrum.num_samples,
            "positive_semidefinite": spectrum.positive_semidefinite,
            "negative": negative,
            "zero": zero,
            "positive": positive,
            "smallest": float(spectrum.eigenvalues[0]),
            "largest": float(spectrum.eigenvalues[-1]),
            "trace": spectrum.trace,
            "floor_rule": spectrum.floor_rule,
            "dtype": spectrum.dtype,
            "seconds": spectrum.seconds,
        }
    row["method"] = record.method
    row["numbers"] = {name: asdict(quantity) for name, quantity in record.values.items()}
    row["damped"] = [[delta, kappa.value, dimension.value] for delta, (kappa, dimension) in record.damped.items()]
    return row


def _estimate_row(m: Measured) -> dict[str, Any]:
    """What ends and densities share with spectra; there is no rank, noise floor or condition number."""
    record = m.record
    shared = ("matrix", "chart", "gauge", "effective", "block", "dim", "num_examples", "num_samples", "dtype")
    row = place_of(m) | {name: getattr(record, name) for name in shared}
    return row | {"num_products": record.num_products, "seconds": record.seconds, "numbers": {}}


def _extremes_row(m: Measured) -> dict[str, Any]:
    record = m.record
    values = [
        {"end": end, "rank": rank + 1, "value": float(value), "error_bound": float(bound)}
        for end, found, bounds in (
            ("largest", record.largest, record.largest_bounds),
            ("smallest", record.smallest, record.smallest_bounds),
        )
        for rank, (value, bound) in enumerate(zip(found, bounds, strict=True))
    ]
    row = _estimate_row(m) | {"method": "lanczos", "converged": record.converged, "values": values}
    row |= {"largest": float(record.largest[0])} if len(record.largest) else {}
    row |= {"smallest": float(record.smallest[0])} if len(record.smallest) else {}
    return row | {"largest_error_bound": float(record.error_bounds.max())}


def _density_row(m: Measured) -> dict[str, Any]:
    record = m.record
    (mean, mean_error), (square, square_error) = record.moment(1), record.moment(2)
    return _estimate_row(m) | {
        "method": "slq",
        "num_probes": record.num_probes,
        "num_matvecs": record.num_matvecs,
        "lowest_node": float(record.nodes.min()),
        "highest_node": float(record.nodes.max()),
        "resolution": record.resolution,
        "trace": record.dim * mean,
        "trace_standard_error": record.dim * mean_error,
        "mean_square": square,
        "mean_square_standard_error": square_error,
    }


def _equality(study: Study) -> list[dict[str, Any]]:
    """How far spectra at the canonical gauge are from the standard ones, in units of the largest eigenvalue."""
    standard = {(m.arm, m.seed, m.checkpoint, m.record.matrix, m.record.block): m.record
                for m in study.of(Spectrum, chart="standard")}  # fmt: skip
    gaps: dict[tuple[str, str], list[float]] = {}
    for m in study.of(Spectrum, gauge="canonical"):
        reference = standard.get((m.arm, m.seed, m.checkpoint, m.record.matrix, m.record.block))
        if reference is None or not m.record.positive_semidefinite:
            continue  # the Hessian differs by the second-order term of the chart
        size = max(m.record.dim, reference.dim)
        ours, theirs = (np.sort(np.pad(r.eigenvalues, (size - r.dim, 0)))[::-1] for r in (m.record, reference))
        gaps.setdefault((m.record.matrix, m.record.chart), []).append(
            float(np.abs(ours - theirs).max() / max(theirs[0], np.finfo(float).tiny))
        )
    return [
        {"matrix": matrix, "chart": chart, "spectra": len(found), "largest_difference": max(found)}
        for (matrix, chart), found in gaps.items()
    ]


def _ratios(numbers: list[Measured]) -> list[dict[str, Any]]:
    """Log-ratios of condition numbers to the standard chart, seed by seed: at the same weights, and between arms."""
    rows = []
    by_place: dict[tuple[Any, ...], dict[int, Measured]] = {}
    for m in numbers:
        r = m.record
        by_place.setdefault((r.matrix, r.block, m.arm, m.checkpoint, r.chart, r.gauge, r.effective), {})[m.seed] = m
    for (matrix, block, arm, checkpoint, chart, gauge, effective), seeds in by_place.items():
        about = {
            "matrix": matrix, "block": block, "arm": arm, "checkpoint": checkpoint, "chart": chart, "gauge": gauge,
            "effective": effective, "form": figures.form_of(next(iter(seeds.values()))),
        }  # fmt: skip
        same = by_place.get((matrix, block, arm, checkpoint, "standard", "-", False))
        if chart != "standard" and same:
            rows += _compared("same weights", about, seeds, same)
        base = by_place.get((matrix, block, "standard", checkpoint, "standard", "-", False))
        if arm != "standard" and base and _is_own(arm, chart, gauge):
            rows += _compared("own training", about, seeds, base)
    return rows


def _is_own(arm: str, chart: str, gauge: str) -> bool:
    """Whether a chart is the one that the arm was trained in, at the gauge that its training has reached."""
    return gauge == "checkpoint" or (chart == arm and gauge == "-")


def _compared(
    design: str, about: dict[str, Any], seeds: Mapping[int, Measured], base: Mapping[int, Measured]
) -> list[dict[str, Any]]:
    rows = []
    shared = sorted(seeds.keys() & base.keys())
    for name in HEADLINE:
        pairs = [(seeds[seed].record, base[seed].record) for seed in shared]
        pairs = [(ours, theirs) for ours, theirs in pairs if name in ours.values and name in theirs.values]
        if not pairs or not any(r.values[name].has_value for pair in pairs for r in pair):
            continue
        logs, reasons = [], []
        for ours, theirs in pairs:
            found, reason = log_ratio(ours, theirs, name)
            (reasons if reason else logs).append(reason or found)
        row = about | {"design": design, "quantity": name, "pairs": len(pairs), "compared": len(logs)}
        row |= {"excluded": ", ".join(sorted(set(reasons))), "reading": _reading(logs)}
        if logs:
            row |= {"median": float(np.median(logs)), "low": min(logs), "high": max(logs)}
            row["factor"] = math.exp(row["median"])
        rows.append(row)
    return rows


def _reading(logs: Sequence[float]) -> str:
    if not logs:
        return "not comparable"
    if max(map(abs, logs)) <= EQUAL:
        return "equal"
    every = "" if len(logs) == 1 else " in every seed"
    if min(logs) > 0:
        return "larger" + every
    return "smaller" + every if max(logs) < 0 else "differs between seeds"


def _efficiencies(study: Study) -> list[dict[str, Any]]:
    groups = grouped(
        study.of(StepComparison),
        lambda m: (
            m.arm,
            m.checkpoint,
            m.record.block,
            m.record.relative_damping,
            m.record.chart,
            plain_gauge(m.record.gauge),
        ),
    )
    rows = []
    for (arm, checkpoint, block, damping, chart, gauge), members in groups.items():
        row = {
            "arm": arm,
            "checkpoint": checkpoint,
            "block": block,
            "relative_damping": damping,
            "chart": chart,
            "gauge": gauge,
        }
        for name in ("efficiency", "index", "kappa", "am_gm", "ai_distance"):
            row[name] = asdict(spread(_defined(getattr(m.record, name)) for m in members))
        rows.append(row)
    return rows


def _defined(value: float) -> Quantity:
    return Quantity(value) if math.isfinite(value) else Quantity(value, "undefined")


def _table(study: Study, numbers: list[Measured]) -> list[dict[str, Any]]:
    """Aggregate over seeds: one row per matrix, block, point, chart and form."""
    groups = grouped(
        _pairs(study, numbers),
        lambda pair: (
            pair[0].record.matrix, pair[0].record.block, pair[0].arm, pair[0].checkpoint, pair[0].record.chart,
            pair[0].record.gauge, pair[0].record.effective,
        ),
    )  # fmt: skip
    rows = []
    for (matrix, block, arm, checkpoint, chart, gauge, effective), pairs in groups.items():
        records = [m.record for m, _ in pairs]
        spectra = [spectrum for _, spectrum in pairs if spectrum is not None]
        row: dict[str, Any] = {
            "matrix": matrix, "block": block, "arm": arm, "checkpoint": checkpoint, "chart": chart, "gauge": gauge,
            "effective": effective, "form": figures.form_of(pairs[0][0]), "seeds": len(pairs),
            "steps": sorted({m.step for m, _ in pairs}), "dim": records[0].dim,
            "rank_rules": sorted({_general(record.rank_rule) for record in records}),
            "methods": sorted({record.method for record in records}),
        }  # fmt: skip
        row["rank"] = asdict(spread(Quantity(record.rank) for record in records))
        row["noise_floor"] = asdict(spread(Quantity(record.noise_floor) for record in records))
        if spectra:
            for name, values in (
                ("smallest", [spectrum.eigenvalues[0] for spectrum in spectra]),
                ("largest", [spectrum.eigenvalues[-1] for spectrum in spectra]),
                ("trace", [spectrum.trace for spectrum in spectra]),
                ("negative", [spectrum.inertia[0] for spectrum in spectra]),
                ("zero", [spectrum.inertia[1] for spectrum in spectra]),
                ("positive", [spectrum.inertia[2] for spectrum in spectra]),
                ("seconds", [spectrum.seconds for spectrum in spectra]),
            ):
                row[name] = asdict(spread(_defined(float(value)) for value in values))
        names = [name for name in HEADLINE if any(name in record.values for record in records)]
        row["numbers"] = {
            name: asdict(spread(record.values[name] for record in records if name in record.values))
            | {"notes": sorted({r.values[name].note for r in records if name in r.values and r.values[name].note})}
            for name in names
        }
        rows.append(row)
    order = checkpoints_of(study)
    return sorted(rows, key=lambda row: (row["arm"], -order.index(row["checkpoint"]), row["form"] == "all coordinates"))


def _general(rule: str) -> str:
    """Leave out the value of a threshold, a gap or a floor, which differ from seed to seed."""
    rule = re.sub(r"(above) [\d.e+-]+", r"\1 the noise floor and rounding", rule)
    rule = re.sub(r"a (factor of [\d.e+-]+|step from [\d.e+-]+ to zero) after", "a factor of 1000 or more after", rule)
    return re.sub(r"(noise floor) [\d.e+-]+", r"\1", rule)


def _gauges(study: Study) -> list[dict[str, Any]]:
    groups = grouped(study.of(GaugeState), lambda m: (m.arm, m.checkpoint, m.record.chart, m.record.gauge))
    return [
        {
            "arm": arm, "checkpoint": checkpoint, "chart": chart, "gauge": gauge, "seeds": len(members),
            "rows": members[0].record.num_rows,
            "minimum": min(m.record.minimum for m in members),
            "median": float(np.median([m.record.median for m in members])),
            "maximum": max(m.record.maximum for m in members),
        }
        for (arm, checkpoint, chart, gauge), members in groups.items()
    ]  # fmt: skip


def _alignments(study: Study) -> list[dict[str, Any]]:
    items = study.of(Alignment)
    groups = grouped(items, lambda m: (m.arm, m.checkpoint, figures.layer_of(m.record.neuron), m.record.direction))
    return [
        {"arm": arm, "checkpoint": checkpoint, "layer": layer, "direction": direction, "neurons": len(members)}
        | {name: quartiles([getattr(m.record, name) for m in members]) for name in ("cosine", "rayleigh")}
        | {"null_cosine": float(np.mean([m.record.null_cosine for m in members]))}
        for (arm, checkpoint, layer, direction), members in groups.items()
    ]


def _whitenings(study: Study) -> list[dict[str, Any]]:
    items = study.of(Whitening)
    groups = grouped(items, lambda m: (m.arm, m.checkpoint, figures.layer_of(m.record.neuron), m.record.projection))
    return [
        {"arm": arm, "checkpoint": checkpoint, "layer": layer, "projection": projection, "neurons": len(members)}
        | {n: quartiles([getattr(m.record, n) for m in members]) for n in ("bures", "am_gm_damped", "l1_over_mean")}
        for (arm, checkpoint, layer, projection), members in groups.items()
    ]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the finite values."""
    kept = [value for value in values if math.isfinite(value)]
    low, median, high = np.quantile(kept, [0.25, 0.5, 0.75]).tolist() if kept else [math.nan] * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def _row(quantities: Iterable[Quantity]) -> dict[str, Any]:
    return asdict(spread(quantities))


def _arms(study: Study) -> list[dict[str, Any]]:
    """One row per arm whose learning rate was tuned: medians over seeds."""
    rows = []
    for arm in dict.fromkeys(sweep.arm for sweep in study.sweeps):
        sweeps = [sweep for sweep in study.sweeps if sweep.arm == arm]
        widths = [learning_rate_width(sweep.rates, sweep.final_losses) for sweep in sweeps]
        ends = [float(curve.losses[-1]) for curve in study.curves if curve.arm == arm]
        late = [m.record for m in study.of(ConditionNumbers, arm=arm, checkpoint=LAST, matrix="ggn", block="all")]
        standard = [record for record in late if record.chart == "standard"]
        own = [record for record in late if record.effective and record.gauge not in ("canonical", "paper")]
        own = own or standard  # the standard chart is its own
        rows.append(
            {
                "arm": arm,
                "seeds": len(sweeps),
                "rate": _row(Quantity(sweep.chosen) for sweep in sweeps),
                "at_edge": sum(sweep.at_edge for sweep in sweeps),
                "width": _row(widths),
                "open_widths": sum(width.status == "lower_bound" for width in widths),
                "final_loss": _row(Quantity(end) for end in ends),
                "diverged": sum(not math.isfinite(end) for end in ends) + len(sweeps) - len(ends),
                "kappa_standard": _row(record.values[ARMS_QUANTITY] for record in standard),
                "kappa_own": _row(record.values[ARMS_QUANTITY] for record in own),
            }
        )
    return rows


def _training(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "arm": curve.arm, "seed": curve.seed, "steps": int(curve.steps[-1]), "first_loss": float(curve.losses[0]),
            "last_loss": float(curve.losses[-1]), "last_accuracy": float(curve.accuracies[-1]),
        }
        for curve in study.curves
        if len(curve.steps)
    ]  # fmt: skip
