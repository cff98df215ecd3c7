"""A tracker for a training loop: rows at fixed steps or within a budget of time; training itself is unchanged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from curvature.errors import ConfigurationError, NonFiniteError
from curvature.models import Problem
from curvature.models.behaviour import cuda_devices, untouched_generators
from curvature.models.following import followed
from curvature.precision import full_precision
from curvature.records import Track, TrackPoint
from curvature.studies.tracking import (
    TrackOptions,
    TrackSettings,
    WarmStart,
    diverged_point,
    measure_track_point,
    tracked_headers,
)

__all__ = ["Logger", "Tracker"]

Logger = Callable[[TrackPoint], object]
"""Called with each new row."""

_ROW = "row"  # loss, gradient and critical sharpness, which every row has
# Guesses of what was never measured: a row in evaluations of the objective (gradient, critical sharpness), a matrix in
# rows (60 products and its self-checks; 14 were measured for a network of 85,000 weights, so 40 errs on the safe side).
_EVALUATIONS_OF_A_ROW, _ROWS_OF_A_MATRIX = 20.0, 40.0


class Tracker:
    r"""Follow curvature along a training loop, on the fixed data of a problem.

    Parameters
    ----------
    problem
        Made once, from the model and fixed data. The rows are about these data, not about the batches of training.
    every
        Distance of the steps at which a row is due.
    budget
        Largest share of the training time that measuring may take, e.g. 0.05. What is due but would exceed it is
        postponed to the first step at which it does not. None: every row is measured in full at its step, so that the
        steps of the rows do not depend on the speed of the machine.
    loggers
        Each is called with every new row, a :class:`~curvature.TrackPoint`.
    track
        A saved track to continue, of the same matrices.
    **tracked
        What is tracked: ``matrices``, ``chart``, ``num_eigenvalues``, ``tolerance``, ``verify``, ``trace_products``,
        ``whole_spectrum_up_to``, ``sharpness``, ``seed``; see :class:`~curvature.studies.TrackSettings`.

    Attributes
    ----------
    track
        The rows so far, as a record.
    overhead
        Time spent measuring, as a share of the time of training.

    Raises
    ------
    ConfigurationError
        If ``every`` or ``budget`` is out of range, or the track is of other matrices.

    Notes
    -----
    The model is only read, by the names of its parameters and buffers; its modes, gradients and random generators, and
    the optimizer, stay as they are. With a budget, loss, gradient and critical sharpness alone may take half of it, so
    that the other half is saved for the matrices. The time of training is all time between two calls. The costs of
    the first rows are guessed from that of one loss, so the run may exceed the budget by one measurement.

    Examples
    --------
    >>> import torch
    >>> import curvature as cv
    >>> model = torch.nn.Linear(3, 2)
    >>> X, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    >>> tracker = cv.Tracker(cv.Problem.from_module(model, loss="cross-entropy", data=(X, y)), every=2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for _ in range(4):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(model(X), y).backward()
    ...     optimizer.step()
    ...     row = tracker.step(model)
    >>> [point.step for point in tracker.track.points], sorted(tracker.track.matrices)
    ([2, 4], ['ggn', 'hessian'])
    """

    def __init__(
        self,
        problem: Problem,
        *,
        every: int = 50,
        budget: float | None = None,
        loggers: Sequence[Logger] = (),
        track: Track | None = None,
        **tracked: Unpack[TrackOptions],
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigurationError(f"every must be a whole number of steps, at least 1; got {every!r}.")
        if budget is not None and not 0 < budget < math.inf:
            raise ConfigurationError(f"budget must be a positive share of the training time, like 0.05; got {budget}.")
        self.problem, self.every, self.budget = problem, every, budget
        self.settings, self.loggers = TrackSettings(**tracked), tuple(loggers)
        self._headers = tracked_headers(problem, self.settings)
        names = tuple(header.matrix for header in self._headers)
        if track is not None and track.matrices != names:
            raise ConfigurationError(
                f"the track has rows of {', '.join(track.matrices)}, and the tracker of {', '.join(names)}. Pass "
                f"matrices={track.matrices} to continue it."
            )
        track = Track(self._headers) if track is None else track
        self._points = list(track.points)
        self.num_steps, self._training, self._measuring = (
            track.num_steps,
            track.training_seconds,
            track.measuring_seconds,
        )
        self._left: float | None = None  # when the last call ended
        self._warm = WarmStart()
        self._due: set[str] = set()
        self._costs: dict[str, float] = {}
        self._last: dict[str, int] = {}  # the step at which each matrix was measured
        self._spent_on_rows = 0.0
        self._evaluation = 0.0 if budget is None else _seconds_of_an_evaluation(problem)

    @property
    def track(self) -> Track:
        """The rows so far, with what measuring them cost."""
        return Track(
            self._headers,
            tuple(self._points),
            self.every,
            self.budget,
            self.num_steps,
            self._training,
            self._measuring,
        )

    @property
    def overhead(self) -> float:
        """Time spent measuring, as a share of the time of training; NaN before any training."""
        return self.track.overhead

    def __repr__(self) -> str:
        return f"Tracker({self.track.summary})"

    def __call__(self, step: int, model: nn.Module) -> TrackPoint | None:
        """Count a step by its number; see :meth:`step`."""
        return self.step(model, step=step)

    def step(self, model: nn.Module, *, step: int | None = None) -> TrackPoint | None:
        """Count one optimizer step, and measure what is due. Call it after every ``optimizer.step()``.

        Parameters
        ----------
        model
            Being trained.
        step
            Number of optimizer steps so far; None: one more than at the last call.

        Returns
        -------
        TrackPoint or None
            The new row, if one was measured.
        """
        self._arrive(step, model)
        if self.num_steps % self.every == 0:
            self._due = {_ROW, *self.settings.matrices}
        chosen = self._affordable()
        try:
            return None if chosen is None else self._row(model, chosen)
        finally:
            self._leave()

    def measure(self, model: nn.Module, *, step: int | None = None) -> TrackPoint:
        """Measure a full row now, whether or not it is due, for example before the first step or after the last.

        Parameters
        ----------
        model
            Being trained.
        step
            Number of optimizer steps so far; None: as at the last call.

        Returns
        -------
        TrackPoint
            The new row.
        """
        self._arrive(self.num_steps if step is None else step, model)
        self._due = {_ROW, *self.settings.matrices}
        try:
            return self._row(model, self.settings.matrices)
        finally:
            self._leave()

    def save(self, path: str | Path) -> Path:
        """Write the track to one ``.npz`` file; continue with ``Tracker(problem, track=cv.Track.load(path))``.

        Parameters
        ----------
        path
            Must end in ``.npz``.

        Returns
        -------
        Path
            The path of the file.
        """
        return self.track.save(path)

    def _arrive(self, step: int | None, model: nn.Module) -> None:
        """Count the step, and the time since the last call as training."""
        step = self.num_steps + 1 if step is None else step
        if self._points and step < self._points[-1].step:
            raise ConfigurationError(
                f"step {step} comes after a row of step {self._points[-1].step}; steps must not descend. Continue the "
                "count, or start another tracker."
            )
        if self._due or step % self.every == 0:  # work that is queued on an accelerator belongs to training
            for device in cuda_devices(model):
                torch.cuda.synchronize(device)
        now = time.perf_counter()
        self._training += 0.0 if self._left is None else now - self._left
        self.num_steps, self._left = step, now

    def _leave(self) -> None:
        """Count the time since :meth:`_arrive` as measuring."""
        assert self._left is not None
        now = time.perf_counter()
        self._measuring += now - self._left
        self._left = now

    def _affordable(self) -> tuple[str, ...] | None:
        """The matrices of a row now; None for no row."""
        matrices = [name for name in self.settings.matrices if name in self._due]
        if not self._due or self.budget is None:
            return tuple(matrices) if self._due else None
        allowed = self.budget * self._training
        planned = self._measuring + self._cost(_ROW)
        chosen = []
        # The one that waits longest comes first, and nothing overtakes it: a costly matrix would never have its turn.
        for name in sorted(matrices, key=lambda name: self._last.get(name, -1)):
            planned += self._cost(name)
            if planned > allowed:
                break
            chosen.append(name)
        if chosen:
            return tuple(name for name in matrices if name in chosen)
        share = 0.5 if self.settings.matrices else 1.0
        if _ROW in self._due and self._spent_on_rows + self._cost(_ROW) <= share * allowed:
            return () if self._measuring + self._cost(_ROW) <= allowed else None
        return None

    def _cost(self, name: str) -> float:
        """Seconds that a part of a row took the last time, or a guess."""
        if name in self._costs:
            return self._costs[name]
        if name != _ROW:
            others = [self._costs[other] for other in self.settings.matrices if other in self._costs]
            return max(others, default=_ROWS_OF_A_MATRIX * self._cost(_ROW))
        return _EVALUATIONS_OF_A_ROW * self._evaluation

    def _row(self, model: nn.Module, matrices: Sequence[str]) -> TrackPoint:
        """Measure, add and log a row."""
        started = time.perf_counter()
        checks = any(name not in self._costs for name in matrices)
        # Gradients on: a callback may run without them.
        with full_precision(), untouched_generators(cuda_devices(model)), torch.enable_grad():
            try:
                problem = followed(self.problem, model)
            except NonFiniteError as error:
                point = diverged_point(self.num_steps, str(error))
            else:
                point, self._warm = measure_track_point(
                    problem, self.settings, step=self.num_steps, warm=self._warm, matrices=matrices, checks=checks
                )
        return self._added(point, matrices, time.perf_counter() - started)

    def _added(self, point: TrackPoint, matrices: Sequence[str], seconds: float) -> TrackPoint:
        """Keep a row with its costs, and pass it to the loggers."""
        self._costs |= {part.matrix: part.seconds for part in point.matrices}
        self._last |= {part.matrix: point.step for part in point.matrices}
        self._costs[_ROW] = max(0.0, seconds - sum(part.seconds for part in point.matrices))
        self._spent_on_rows += self._costs[_ROW]
        postponed = tuple(name for name in self.settings.matrices if name in self._due and name not in matrices)
        self._due = set() if point.diverged else set(postponed)
        point = replace(point, postponed=postponed, seconds=seconds)
        self._points.append(point)
        for logger in self.loggers:
            logger(point)
        return point


def _seconds_of_an_evaluation(problem: Problem) -> float:
    """Seconds of one evaluation of the objective, without what only the first one costs."""
    problem.value()
    started = time.perf_counter()
    problem.value()
    return time.perf_counter() - started
