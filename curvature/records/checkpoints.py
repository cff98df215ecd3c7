"""The record of one checkpoint of a training run: the curvature at its weights."""

from __future__ import annotations

from dataclasses import dataclass

from curvature.records.track import TrackPoint

__all__ = ["CheckpointSummary"]


@dataclass(frozen=True)
class CheckpointSummary:
    """The curvature at the weights of one checkpoint, which depends on no other one.

    Attributes
    ----------
    checkpoint
        Its path in the folder.
    step
        Training step, from the file or its name; None if neither has one.
    file_sha256
        Hash of the file.
    charts
        Labels of the coordinates, as ``"weight-norm (paper)"``.
    points
        What was measured, in the coordinates of each; without times, so that equal files give equal records.
    """

    checkpoint: str
    step: int | None
    file_sha256: str
    charts: tuple[str, ...]
    points: tuple[TrackPoint, ...]

    @property
    def loss(self) -> float:
        """Value of the objective."""
        return self.points[0].loss
