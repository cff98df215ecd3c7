"""What can go wrong: one class per decision that a caller can take, each with its exit code."""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ConfigurationError",
    "ConvergenceError",
    "CurvatureError",
    "ExitCode",
    "InputError",
    "NonFiniteError",
    "NotDefinedError",
    "RemovedArgumentError",
    "ResourceError",
    "SelfCheckError",
    "UnresolvedError",
]


class ExitCode(IntEnum):
    """What the process returns to the shell; documented in ``curvature --help``."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    UNRESOLVED = 3
    RULE_HIT = 4
    LOADING = 5
    SELF_CHECK = 6
    RESOURCES = 7
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class CurvatureError(Exception):
    """Base of the package's own errors: catch it to catch them all."""

    exit_code = ExitCode.INTERNAL


class ConfigurationError(CurvatureError, ValueError):
    """An option, a name or a run directory does not fit: change the call."""

    exit_code = ExitCode.USAGE


class RemovedArgumentError(ConfigurationError, TypeError):
    """An argument of an earlier version: the message shows the call that replaces it."""


class NotDefinedError(ConfigurationError):
    """The matrix does not exist for this loss (a Fisher needs a likelihood): ask for another one."""


class UnresolvedError(ConfigurationError):
    """A number was asked for, or a comparison, that what is known does not decide: read the status instead."""


class InputError(CurvatureError, ValueError):
    """The model, the data, the loss or the weights cannot be used as they are: correct them."""

    exit_code = ExitCode.LOADING


class SelfCheckError(CurvatureError, RuntimeError):
    """A check failed, so the number would be wrong: look at the model before believing anything."""

    exit_code = ExitCode.SELF_CHECK


class NonFiniteError(SelfCheckError, ArithmeticError):
    """A product or a derivative is NaN or infinite: look at the model at this point."""


class ConvergenceError(CurvatureError, RuntimeError):
    """An iteration did not reach its tolerance within its budget: raise the budget or lower the demand."""

    exit_code = ExitCode.RESOURCES


class ResourceError(CurvatureError, MemoryError):
    """The work does not fit in memory: choose a smaller model, a block, or an iterative method."""

    exit_code = ExitCode.RESOURCES
