"""Time for measuring while training: a share of the training time, which is never spent before it has been earned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.work import CHECKS
from curvature.models import Problem
from curvature.records import TrackedMatrix

__all__ = ["EVALUATION", "ROW", "Allowance", "Budget", "Loop", "OverBudgetError"]

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")

EVALUATION = "evaluation"  # of the objective
ROW = "row"  # loss, gradient and critical sharpness, which every row has
# Measured for a perceptron of 85,000 weights, a CNN, an LSTM and a transformer layer, on one thread. The first row:
# 110 to 250 ms where a gradient takes 14 to 52 and an evaluation 1.5 to 27. Making a matrix and two products: 2 to 6
# gradients.
_GRADIENTS_OF_A_ROW, _EVALUATIONS_OF_A_ROW, _GRADIENTS_OF_A_PROBE = 4, 20, 8
_MARGIN = 1.2  # times the cost that is expected of a matrix: what does not fit in the end was spent for nothing


class OverBudgetError(Exception):
    """The next piece of a measurement would take more time than is left."""


class Allowance:
    """Seconds that one row may take, checked before each of its pieces.

    Parameters
    ----------
    seconds
        Infinite without a limit.
    pieces
        Seconds of a piece of each kind, such as a product with one matrix; brought up to date by each piece.

    Attributes
    ----------
    stopped
        The matrix that did not fit, once that has happened.
    """

    def __init__(self, seconds: float = math.inf, pieces: dict[str, float] | None = None):
        self.seconds, self.started = seconds, time.perf_counter()
        self.pieces = {} if pieces is None else pieces
        self.stopped: str | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the row was begun."""
        return time.perf_counter() - self.started

    def limited(
        self, work: Callable[[ArgumentT], ResultT], kind: str, size: Callable[[ArgumentT], int] = lambda _: 1
    ) -> Callable[[ArgumentT], ResultT]:
        """Check the time before each call of a function, by what the last piece of its kind took.

        Parameters
        ----------
        work
            Does one or several pieces of the measurement.
        kind
            Name of the pieces.
        size
            Number of pieces in a call, from its argument.

        Returns
        -------
        Callable
            The same function; it raises :class:`OverBudgetError` where the time left does not suffice.
        """

        def limited_work(argument: ArgumentT) -> ResultT:
            number, begun = size(argument), self.elapsed
            if begun + number * self.pieces.get(kind, 0.0) > self.seconds:
                raise OverBudgetError
            result = work(argument)
            self.pieces[kind] = (self.elapsed - begun) / number
            return result

        return limited_work

    def limited_operator(self, operator: SymmetricOperator) -> SymmetricOperator:
        """Check the time before each product with a matrix.

        Parameters
        ----------
        operator
            The matrix.

        Returns
        -------
        SymmetricOperator
            The same matrix; the same object without a limit.
        """
        if math.isinf(self.seconds):
            return operator
        product = self.limited(operator.matmat, operator.where.matrix, lambda block: block.shape[1])
        return replace(operator, matmat=product)


@dataclass(frozen=True)
class Loop:
    """What only a training loop has.

    Attributes
    ----------
    allowance
        The time that the row may take.
    update
        From the gradient by name, the direction of the optimizer's next update by name, and its learning rate. None:
        the critical sharpness is measured along the gradient.
    optimizer
        Name of the optimizer.
    """

    allowance: Allowance = field(default_factory=Allowance)
    update: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], float]] | None = None
    optimizer: str = ""


@dataclass
class Budget:
    """Clock of a training loop: what training has earned, what measuring has spent, and what each part will cost.

    Attributes
    ----------
    share
        Largest share of the training time that measuring may take; None without a limit.
    matrices
        All that are tracked, in the order of the rows.
    training, measuring
        Seconds so far.
    """

    share: float | None
    matrices: tuple[str, ...]
    training: float
    measuring: float

    def __post_init__(self) -> None:
        self._arrived: float | None = None  # when the last call began, and after its end when that was
        self._costs: dict[str, float] = {}
        self._last: dict[str, int] = {}  # the step at which each matrix was measured
        self._spent_on_rows = 0.0
        self._probe = 0.0  # expected of the first products of a matrix
        self._pieces: dict[str, float] = {}

    def learn_evaluations(self, problem: Problem) -> None:
        """Time an evaluation of the objective and a gradient, which count as measuring.

        Parameters
        ----------
        problem
            Whose objective is measured along training.
        """
        if self.share is None:
            return
        times = [time.perf_counter()]
        for work in (problem.value, problem.value, problem.gradient):  # the first call loads libraries
            work()
            times.append(time.perf_counter())
        evaluation, gradient = times[2] - times[1], times[3] - times[2]
        self._costs[ROW] = _GRADIENTS_OF_A_ROW * gradient + _EVALUATIONS_OF_A_ROW * evaluation
        self._probe, self._pieces[EVALUATION] = _GRADIENTS_OF_A_PROBE * gradient, evaluation
        self.measuring += times[3] - times[0]

    def arrive(self) -> None:
        """Count the time since the last call as training."""
        now = time.perf_counter()
        self.training += 0.0 if self._arrived is None else now - self._arrived
        self._arrived = now

    def leave(self) -> None:
        """Count the time since :meth:`arrive` as measuring."""
        assert self._arrived is not None
        now = time.perf_counter()
        self.measuring += now - self._arrived
        self._arrived = now

    @property
    def left(self) -> float:
        """Seconds that may be spent now."""
        if self.share is None:
            return math.inf
        assert self._arrived is not None
        return self.share * self.training - self.measuring - (time.perf_counter() - self._arrived)

    def allowance(self) -> Allowance:
        """Make the allowance of a row that begins now."""
        return Allowance(self.left, self._pieces)

    def affordable(self, due: Collection[str], probe: Callable[[str], tuple[float, float]]) -> tuple[str, ...] | None:
        """Choose the matrices of a row now.

        Parameters
        ----------
        due
            Matrices, and :data:`ROW` if a row without any is due as well.
        probe
            Times products with a matrix, and returns the seconds that its measurement will take, and those of one
            product. It is called once for each matrix, as soon as it can be paid for.

        Returns
        -------
        tuple of str or None
            None for no row.
        """
        matrices = [name for name in self.matrices if name in due]
        if not due or self.share is None:
            return tuple(matrices) if due else None
        planned, chosen = self._costs[ROW], []
        # The one that waits longest comes first, and nothing overtakes it: a costly matrix would never have its turn.
        for name in sorted(matrices, key=lambda name: self._last.get(name, -1)):
            if name not in self._costs:
                if planned + self._probe > self.left:
                    break
                self._costs[name], self._pieces[name] = probe(name)
            planned += _MARGIN * self._costs[name]
            if planned > self.left:
                break
            chosen.append(name)
        if chosen:
            return tuple(name for name in matrices if name in chosen)
        earned = (0.5 if self.matrices else 1.0) * self.share * self.training  # the other half is for the matrices
        affordable = self._costs[ROW] <= min(self.left, earned - self._spent_on_rows)
        return () if ROW in due and affordable else None

    def cost(self, name: str) -> float:
        """Seconds that a part is expected to take; 0 where nothing is known."""
        return self._costs.get(name, 0.0)

    def learn(self, parts: Collection[TrackedMatrix], step: int, seconds: float, *, checks: bool) -> None:
        """Note what a row has cost.

        Parameters
        ----------
        parts
            The matrices that were measured.
        step
            Of the row.
        seconds
            Of everything but the matrices.
        checks
            Whether the self-checks were run, which the next row leaves out.
        """
        for part in parts:
            share = part.num_products / (part.num_products + CHECKS) if checks and part.num_products else 1.0
            self._costs[part.matrix] = share * part.seconds
            self._last[part.matrix] = step
        self._costs[ROW] = max(0.0, seconds)
        self._spent_on_rows += self._costs[ROW]

    def learn_excess(self, name: str, seconds: float) -> None:
        """Note that a part was given up: it is tried again when twice as much time has been saved.

        Parameters
        ----------
        name
            A matrix, or :data:`ROW`.
        seconds
            Spent on it.
        """
        self._spent_on_rows += seconds if name == ROW else 0.0
        self._costs[name] = 2 * max(self.cost(name), seconds)
