"""A tracker as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from curvature.records import TrackPoint
from curvature.studies import Tracker
from curvature.studies.integrations.names import named

__all__ = ["LightningCallback"]


class LightningCallback(Callback):
    """Count the optimizer steps of a Lightning ``Trainer``, and log each row to the loggers of the trainer.

    Parameters
    ----------
    tracker
        What is measured, and when.
    module
        Finds in the ``LightningModule`` the module that the problem was made from, e.g. ``lambda module: module.net``;
        None: the ``LightningModule`` itself.
    along_update
        Measure the critical sharpness along the next update of the first optimizer of the trainer, instead of along the
        gradient.

    Notes
    -----
    Only the first process measures. Steps are those of ``trainer.global_step``: with gradient accumulation one for
    several batches.
    """

    def __init__(
        self, tracker: Tracker, module: Callable[[Any], nn.Module] | None = None, *, along_update: bool = False
    ):
        self.tracker, self.module, self.along_update = tracker, module, along_update

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure what is due after an optimizer step."""
        if not trainer.is_global_zero or trainer.global_step <= self.tracker.num_steps:
            return
        module = pl_module if self.module is None else self.module(pl_module)
        optimizer = trainer.optimizers[0] if self.along_update else None

        def log(point: TrackPoint) -> None:  # within the step, so that its time counts as measuring
            for logger in trainer.loggers:
                logger.log_metrics(named(point), step=point.step)

        self.tracker.step(module, step=trainer.global_step, optimizer=optimizer, loggers=[log])
