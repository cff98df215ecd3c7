"""Everything that a report says, as plain numbers: medians over seeds, log-ratios, efficiencies."""

from __future__ import annotations

from typing import Any

from curvature.records import Study
from curvature.report.selection import Selection, checkpoints_of
from curvature.report.tables import KINDS

__all__ = ["rows_of"]


def rows_of(everything: Study) -> dict[str, Any]:
    """Rows of every kind of measurement, by the key that they have in ``summary.json``.

    Parameters
    ----------
    everything
        What was measured.

    Returns
    -------
    dict
        Lists of rows, which may hold NaN and infinity.
    """
    selection = Selection(everything)
    study = selection.study
    return {
        "seeds": sorted({m.seed for m in study.measurements} | {curve.seed for curve in study.curves}),
        "checkpoints": checkpoints_of(study),
        "warnings": list(study.warnings),
        **{kind.key: kind.rows(selection) for kind in KINDS},
    }
