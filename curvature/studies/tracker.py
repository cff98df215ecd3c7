"""A tracker for a training loop: rows at fixed steps or within a budget of time; training itself is unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from curvature.errors import ConfigurationError, NonFiniteError
from curvature.models import Problem
from curvature.models.behaviour import cuda_devices, untouched_generators
from curvature.models.following import coordinate_parameters, followed
from curvature.precision import full_precision
from curvature.records import Track, TrackPoint
from curvature.studies.budget import ROW, Allowance, Budget, Loop, OverBudgetError
from curvature.studies.tracking import (
    TrackOptions,
    TrackSettings,
    WarmStart,
    diverged_point,
    expected_seconds,
    measure_track_point,
    tracked_headers,
)
from curvature.studies.update import bare_optimizer, update_direction

__all__ = ["Logger", "Tracker"]

Logger = Callable[[TrackPoint], object]
"""Called with each new row."""


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
    that the other half is saved for the matrices. The time of training is all time between two calls; everything else,
    also the calls that only time an evaluation, a gradient or a product, counts as measuring. A measurement is begun
    when its expected cost has been saved up, and given up before the product that would exceed the budget. So a run can
    exceed it only by what one piece takes longer than the piece before, and by :meth:`measure`.

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
        self.num_steps = track.num_steps
        self._budget = Budget(budget, self.settings.matrices, track.training_seconds, track.measuring_seconds)
        self._budget.learn_evaluations(problem)
        self._warm = WarmStart()
        self._due: set[str] = set()
        self._checked: set[str] = set()  # matrices that have passed their self-checks

    @property
    def track(self) -> Track:
        """The rows so far, with what measuring them cost."""
        return Track(
            self._headers,
            tuple(self._points),
            self.every,
            self.budget,
            self.num_steps,
            self._budget.training,
            self._budget.measuring,
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

    def step(
        self,
        model: nn.Module,
        *,
        step: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        loggers: Sequence[Logger] = (),
    ) -> TrackPoint | None:
        """Count one optimizer step, and measure what is due. Call it after every ``optimizer.step()``.

        Parameters
        ----------
        model
            Being trained.
        step
            Number of optimizer steps so far; None: one more than at the last call.
        optimizer
            Measure the critical sharpness along the update that this optimizer would take next, with the gradient of
            the problem's data. None: along the gradient.
        loggers
            Called with the row after those of the tracker; their time counts as measuring.

        Returns
        -------
        TrackPoint or None
            The new row, if one was measured.

        Raises
        ------
        ConfigurationError
            If the optimizer has none of the weights, or evaluates the loss itself.
        """
        self._arrive(step, model)
        try:
            if self.num_steps % self.every == 0:
                self._due = {ROW, *self.settings.matrices}
            chosen = self._budget.affordable(self._due, self._expected_seconds)
            if chosen is None:
                return None
            loop = self._loop(model, optimizer, self._budget.allowance())
            return self._row(model, chosen, loop, loggers)
        finally:
            self._budget.leave()

    def measure(
        self, model: nn.Module, *, step: int | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> TrackPoint:
        """Measure a full row now, due or not and whatever it costs, e.g. before the first step or after the last.

        Parameters
        ----------
        model
            Being trained.
        step
            Number of optimizer steps so far; None: as at the last call.
        optimizer
            As for :meth:`step`.

        Returns
        -------
        TrackPoint
            The new row.
        """
        self._arrive(self.num_steps if step is None else step, model)
        self._due = {ROW, *self.settings.matrices}
        try:
            point = self._row(model, self.settings.matrices, self._loop(model, optimizer, Allowance()))
        finally:
            self._budget.leave()
        assert point is not None
        return point

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
        self.num_steps = step
        self._budget.arrive()

    def _expected_seconds(self, matrix: str) -> tuple[float, float]:
        with full_precision(), untouched_generators([]), torch.enable_grad():
            return expected_seconds(self.problem, matrix, self.settings)

    def _loop(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, allowance: Allowance) -> Loop:
        if optimizer is None or not self.settings.sharpness:
            return Loop(allowance)
        bare, parameters = bare_optimizer(optimizer), coordinate_parameters(self.problem, model)
        return Loop(allowance, lambda gradients: update_direction(bare, parameters, gradients), type(bare).__name__)

    def _row(
        self, model: nn.Module, matrices: Sequence[str], loop: Loop, loggers: Sequence[Logger] = ()
    ) -> TrackPoint | None:
        """Measure, add and log a row; None if the time that was left did not suffice for a row without matrices."""
        checks = not self._checked.issuperset(matrices)
        # Gradients on: a callback may run without them.
        with full_precision(), untouched_generators(cuda_devices(model)), torch.enable_grad():
            try:
                problem = followed(self.problem, model)
                point, self._warm = measure_track_point(
                    problem,
                    self.settings,
                    step=self.num_steps,
                    warm=self._warm,
                    matrices=matrices,
                    checks=checks,
                    loop=loop,
                )
            except NonFiniteError as error:
                point = diverged_point(self.num_steps, str(error))
            except OverBudgetError:
                self._budget.learn_excess(ROW, loop.allowance.elapsed)
                return None
        point = self._added(point, matrices, loop.allowance)
        for logger in (*self.loggers, *loggers):
            logger(point)
        self._learn(point, loop.allowance, checks=checks)
        return point

    def _added(self, point: TrackPoint, matrices: Sequence[str], allowance: Allowance) -> TrackPoint:
        """Keep a row, with the matrices that it lacks."""
        done = set(matrices) if allowance.stopped is None else {part.matrix for part in point.matrices}
        postponed = tuple(name for name in self.settings.matrices if name in self._due and name not in done)
        self._due = set() if point.diverged else set(postponed)
        point = replace(point, postponed=postponed, seconds=allowance.elapsed)
        self._points.append(point)
        return point

    def _learn(self, point: TrackPoint, allowance: Allowance, *, checks: bool) -> None:
        """Note what the row has cost, with its loggers."""
        of_matrices = sum(part.seconds for part in point.matrices)
        if allowance.stopped is not None:
            wasted = max(0.0, point.seconds - of_matrices - self._budget.cost(ROW))
            self._budget.learn_excess(allowance.stopped, wasted)
            of_matrices += wasted
        self._budget.learn(point.matrices, point.step, allowance.elapsed - of_matrices, checks=checks)
        self._checked |= {part.matrix for part in point.matrices}
