"""Everything that a report says, as plain numbers: medians over seeds, log-ratios, efficiencies."""

from __future__ import annotations

from typing import Any

from curvature.records import Study
from curvature.report.selection import checkpoints_of, numbers_of, shown_part
from curvature.report.tables import estimates, neurons, ratios, spectra, steps, training, verdicts

__all__ = ["rows_of"]


def rows_of(everything: Study) -> dict[str, Any]:
    """Rows of every kind of measurement, by the key that they have in ``summary.json``.

    Parameters
    ----------
    everything
        The study. Single spectra, arms and self-checks are those of all of it; the rest shows its followed arms.

    Returns
    -------
    dict
        Lists of rows, which may hold NaN and infinity.
    """
    study = shown_part(everything)
    numbers = numbers_of(study)
    every_number = numbers if study is everything else numbers_of(everything)
    return {
        "seeds": sorted({m.seed for m in study.measurements} | {curve.seed for curve in study.curves}),
        "checkpoints": checkpoints_of(study),
        "verdicts": verdicts.verdict_rows(study),
        "decompositions": verdicts.decomposition_rows(study),
        "arms": training.arm_rows(everything),
        "unresolved": spectra.unresolved_counts(every_number),
        "equality": ratios.equality_rows(study),
        "ratios": ratios.ratio_rows(numbers),
        "efficiencies": steps.efficiency_rows(study),
        "table": spectra.summary_rows(study, numbers),
        "gauges": training.gauge_rows(study),
        "alignments": neurons.alignment_rows(study),
        "whitenings": neurons.whitening_rows(study),
        "training": training.training_rows(study),
        "checks": verdicts.check_rows(everything, study),
        "warnings": list(study.warnings),
        "spectra": spectra.spectrum_rows(everything, every_number),
        "extremes": estimates.extreme_rows(study),
        "densities": estimates.density_rows(study),
    }
