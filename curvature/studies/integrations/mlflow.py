"""Rows of a tracker in MLflow."""

from __future__ import annotations

import time

import mlflow
from mlflow.entities import Metric

from curvature.errors import ConfigurationError
from curvature.records import TrackPoint
from curvature.studies.integrations.names import named

__all__ = ["MLflowLogger"]


class MLflowLogger:
    """Log each row of a tracker as metrics of an MLflow run.

    Parameters
    ----------
    run_id
        Of the run; None: the active run.

    Raises
    ------
    ConfigurationError
        If there is no run.
    """

    def __init__(self, run_id: str | None = None):
        if run_id is None:
            active = mlflow.active_run()
            if active is None:
                raise ConfigurationError("there is no active run of mlflow to log to. Call mlflow.start_run() first.")
            run_id = active.info.run_id
        self.run_id = run_id
        self.client = mlflow.MlflowClient()

    def __call__(self, point: TrackPoint) -> None:
        """Log one row in one call."""
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, point.step) for name, value in named(point).items()]
        self.client.log_batch(self.run_id, metrics=metrics)
