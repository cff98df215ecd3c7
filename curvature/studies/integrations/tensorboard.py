"""Rows of a tracker in TensorBoard."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from curvature.records import TrackPoint
from curvature.studies.integrations.names import named

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Write each row of a tracker as scalars of TensorBoard.

    Parameters
    ----------
    writer
        A ``SummaryWriter``, or the folder of a new one.
    """

    def __init__(self, writer: SummaryWriter | str | Path):
        self.writer = writer if isinstance(writer, SummaryWriter) else SummaryWriter(str(writer))

    def __call__(self, point: TrackPoint) -> None:
        """Write one row."""
        for name, value in named(point).items():
            self.writer.add_scalar(name, value, point.step)
        self.writer.flush()
