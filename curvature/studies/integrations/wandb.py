"""Rows of a tracker in Weights & Biases."""

from __future__ import annotations

from typing import Any

import wandb

from curvature.errors import ConfigurationError
from curvature.records import TrackPoint
from curvature.studies.integrations.names import PREFIX, named

__all__ = ["WandbLogger"]


class WandbLogger:
    """Log each row of a tracker to a run of Weights & Biases, online or offline.

    Parameters
    ----------
    run
        What ``wandb.init`` returned; None: the active run.

    Raises
    ------
    ConfigurationError
        If there is no run.

    Notes
    -----
    The rows have their own axis ``curvature/step``, so that they do not interfere with the step count of other
    metrics.
    """

    def __init__(self, run: Any = None):
        run = wandb.run if run is None else run
        if run is None:
            raise ConfigurationError("there is no active run of wandb to log to. Call wandb.init(...) first.")
        self.run = run
        run.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")

    def __call__(self, point: TrackPoint) -> None:
        """Log one row."""
        self.run.log({f"{PREFIX}step": point.step, **named(point)})
