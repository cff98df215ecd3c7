"""Functions of named tensors: code by its name, and the values that its parameters start from."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from curvature.cli.loading.arrays import as_tensor
from curvature.cli.loading.code import call_seeded, find, parameters_of
from curvature.cli.loading.files import existing, expanded, refuse_large
from curvature.cli.loading.weights import load_weights
from curvature.cli.wording import Say, first_line
from curvature.errors import ConfigurationError, InputError
from curvature.models import Problem
from curvature.text import did_you_mean

__all__ = ["call_problem", "find_function", "load_parameters"]

_FORMS = "package.module:function or path/file.py:function"
_RETURNS = "a cv.Problem, a pair (function, parameters), or (function, parameters, data)"


def find_function(spec: str, arguments: Mapping[str, Any], say: Say = lambda _: None) -> Callable[..., Any]:
    """Find a function of named tensors, which is called with their starting values.

    Parameters
    ----------
    spec
        ``package.module:function``, or ``path/file.py:function`` (executed).
    arguments
        Bound to it by keyword.
    say
        Receives a message about code that is imported or executed.

    Returns
    -------
    Callable
        The function; with arguments, a partial one.

    Raises
    ------
    ConfigurationError
        If the name has neither form, or the function does not take the arguments.
    InputError
        If the module or file fails, or does not contain the function.
    """
    function = find(spec, "function", _FORMS, say)
    _refuse_unknown(spec, function, arguments)
    return partial(function, **arguments) if arguments else function


def call_problem(spec: str, arguments: Mapping[str, Any], seed: int, say: Say = lambda _: None) -> Any:
    """Call a factory of a problem.

    Parameters
    ----------
    spec
        As for :func:`find_function`.
    arguments
        Its keyword arguments.
    seed
        Passed as ``seed`` if it takes one; torch is seeded in any case.
    say
        Receives a message about code that is imported or executed.

    Returns
    -------
    Problem or tuple
        What it returned: a problem, or the first arguments of :meth:`Problem.from_function`.

    Raises
    ------
    ConfigurationError
        If the name has neither form, or the arguments do not fit.
    InputError
        If the code fails, or returns anything else.
    """
    factory = find(spec, "function", _FORMS, say)
    _refuse_unknown(spec, factory, arguments)
    needed = [
        name
        for name, parameter in parameters_of(factory).items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in {*arguments, "seed"}
    ]
    if needed:
        verb = "needs" if len(needed) == 1 else "need"
        raise ConfigurationError(
            f"{spec} takes {', '.join(needed)}, which {verb} a value. If it is a function of tensors, add their "
            "starting values: --parameters start.npz. If it builds the problem, pass arguments with --arg NAME=VALUE."
        )
    value = call_seeded(factory, arguments, seed, spec)
    if isinstance(value, Problem) or (isinstance(value, tuple) and len(value) in (2, 3)):
        return value
    what = f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
    raise InputError(
        f"{spec} was called without tensors, since --parameters is not given. It must then return {_RETURNS}, but it "
        f"returned {what}. For a function of tensors add their starting values: --parameters start.npz."
    )


def _refuse_unknown(spec: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    if "seed" in arguments:
        raise ConfigurationError("the seed is not an --arg: use --seed.")
    parameters = parameters_of(function)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in arguments:
        if name not in parameters:
            raise ConfigurationError(
                f"--arg {name}: {spec} has no argument {name!r}{did_you_mean(name, parameters)}. It takes "
                f"{', '.join(parameters) or 'none'}."
            )


def load_parameters(path: str, say: Say = lambda _: None) -> Tensor | dict[str, Tensor]:
    """Read the values that the parameters of a function start from; only tensors are unpickled.

    Parameters
    ----------
    path
        A ``.npz`` file of named arrays, or a state_dict as for :func:`~curvature.cli.loading.load_weights`: the
        function gets a dictionary. A ``.npy`` file: the function gets a tensor.
    say
        Receives a warning if this version of PyTorch has a known flaw.

    Returns
    -------
    Tensor or dict
        On the CPU.

    Raises
    ------
    ConfigurationError
        If the suffix is unknown.
    InputError
        If the file is missing, too large, damaged, or contains anything but real numbers.
    """
    file = expanded(path, "parameters")
    if file.suffix not in (".npz", ".npy"):
        if file.suffix not in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
            raise ConfigurationError(
                f"--parameters must be a .npz file of named arrays, a .npy file of one array, a .safetensors or a .pt "
                f"file, got {path!r}."
            )
        return load_weights(existing(file, "parameters"), None, say)
    refuse_large(existing(file, "parameters"))
    try:
        stored = np.load(file, allow_pickle=False)
        with contextlib.nullcontext() if isinstance(stored, np.ndarray) else stored:
            arrays = stored if isinstance(stored, np.ndarray) else dict(stored)
    except Exception as error:  # the readers raise many kinds of errors on files of another format
        why = "it contains Python objects, which are not unpickled" if "pickle" in str(error) else first_line(error)
        raise InputError(
            f"the parameters {file} cannot be read: {why}. Save arrays of numbers: np.savez('start.npz', a=a, b=b)."
        ) from error
    if isinstance(arrays, np.ndarray):
        return _tensor(arrays, f"the parameter of {file}")
    if not arrays:
        raise InputError(f"{file} contains no array. Save one for each parameter: np.savez('start.npz', a=a, b=b).")
    return {name: _tensor(array, f"{name} of {file}") for name, array in arrays.items()}


def _tensor(array: np.ndarray, name: str) -> Tensor:
    return as_tensor(array, name).reshape(array.shape)  # a number has no axis
