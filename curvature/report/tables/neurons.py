"""Gradient noise neuron by neuron: quartiles over neurons and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curvature.records import Alignment, Measured, Whitening
from curvature.report.selection import Selection
from curvature.report.spread import grouped, quartiles
from curvature.report.words import layer_of

__all__ = ["alignment_rows", "whitening_rows"]


def alignment_rows(selection: Selection) -> list[dict[str, Any]]:
    """How close directions are to the top eigenvector of the gradient covariance, layer by layer.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm, checkpoint, layer and direction.
    """
    rows = []
    for row, members in _layers(selection.study.of(Alignment), "direction"):
        row |= {name: quartiles([getattr(m.record, name) for m in members]) for name in ("cosine", "rayleigh")}
        rows.append(row | {"null_cosine": float(np.mean([m.record.null_cosine for m in members]))})
    return rows


def whitening_rows(selection: Selection) -> list[dict[str, Any]]:
    """How far gradient covariances are from multiples of the identity, layer by layer.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm, checkpoint, layer and projection.
    """
    names = ("bures", "am_gm_damped", "l1_over_mean")
    return [
        row | {name: quartiles([getattr(m.record, name) for m in members]) for name in names}
        for row, members in _layers(selection.study.of(Whitening), "projection")
    ]


def _layers(items: Sequence[Measured], by: str) -> list[tuple[dict[str, Any], list[Measured]]]:
    """Measurements of each arm, checkpoint and layer by one field of the record, with the row they begin."""
    groups = grouped(items, lambda m: (m.arm, m.checkpoint, layer_of(m.record.neuron), getattr(m.record, by)))
    keys = ("arm", "checkpoint", "layer", by)
    return [(dict(zip(keys, key, strict=True)) | {"neurons": len(members)}, members) for key, members in groups.items()]
