"""Outputs in which the loss is linear: they add nothing to the GGN."""

from __future__ import annotations

import warnings

from curvature.errors import NotDefinedError
from curvature.models import Problem
from curvature.models.losses.log_probabilities import LinearLoss, class_dimension

__all__ = ["linear_outputs", "linear_words", "warn_of_linear_outputs"]

_UNNORMALIZED = (
    "Also, the outputs are not log-probabilities, as this loss requires: their exponentials do not sum to one. For "
    'logits use loss="cross-entropy", which contains the log_softmax.'
)


def linear_outputs(problem: Problem) -> tuple[int, int]:
    """Count the outputs in which the loss has no second derivative.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    linear, total
        How many outputs of all examples are linear, and how many outputs there are. For a loss that is usually curved,
        counting stops at the first example with curvature.
    """
    loss, linear, total = problem.loss, 0, problem.num_examples * problem.num_outputs
    if loss.convex and not loss.flat:
        return 0, total
    second, step = loss.hessian_factor if loss.convex else loss.hessian, problem.chunk_size if loss.flat else 1
    for examples, outputs in problem.evaluated():
        targets = problem.targets[examples]
        for start in range(0, len(outputs), step):
            rows = slice(start, start + step)
            curved = (second(outputs[rows], targets[rows]) != 0).any(dim=2)
            if not loss.flat and curved.any():
                return 0, total
            linear += int((~curved).sum())
    return linear, total


def linear_words(problem: Problem) -> str:
    """Describe the outputs that are missing from the GGN.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    str
        A sentence without its full stop, or an empty string where the loss is curved in every output.
    """
    linear, total = linear_outputs(problem)
    return _words(problem, linear, total) if linear else ""


def _words(problem: Problem, linear: int, total: int) -> str:
    return (
        f"the loss {problem.loss.name!r} is linear in {linear} of the {total} outputs of all examples, and these add "
        "nothing to the GGN"
    )


def warn_of_linear_outputs(problem: Problem) -> None:
    """Warn of a loss that is linear in some outputs, and refuse one that is linear in log-probabilities.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Raises
    ------
    NotDefinedError
        If the outputs are log-probabilities: the GGN is then zero for every model, which is never what is meant.
    """
    loss = problem.loss
    linear, total = linear_outputs(problem)
    if linear < total:
        if linear:
            warnings.warn(f"{_words(problem, linear, total)}.", UserWarning, stacklevel=4)
        return
    reason = f"the GGN is exactly zero, since the loss {loss.name!r} is linear in the outputs for every example"
    normalized = all(class_dimension(outputs) is not None for _, outputs in problem.evaluated())
    if isinstance(loss, LinearLoss) or normalized:
        remedy = loss.remedy if normalized else _UNNORMALIZED
        raise NotDefinedError(f"{reason}. {remedy}")
    warnings.warn(f"{reason}. cv.hessian contains the curvature that is left out here.", UserWarning, stacklevel=4)
