"""Code by its name: a function in an installed module, or in a file that is executed with a message about it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from curvature.cli.loading.files import existing
from curvature.cli.wording import Say
from curvature.errors import ConfigurationError, CurvatureError, InputError
from curvature.text import did_you_mean

__all__ = ["call", "call_seeded", "find", "parameters_of"]


def find(spec: str, kind: str, forms: str, say: Say) -> Callable[..., Any]:
    """Import a module or execute a file, and return one of its functions.

    Parameters
    ----------
    spec
        ``package.module:function`` or ``path/file.py:function``.
    kind
        What it is, for messages: ``model``, ``loss``, ``data``.
    forms
        Every form of ``spec`` that is allowed, for messages.
    say
        Receives the path and the SHA-256 of a file before it is executed, or the path of an imported module.

    Returns
    -------
    Callable
        The function, which has not been called.

    Raises
    ------
    ConfigurationError
        If the name has neither form.
    InputError
        If the module or file fails or does not contain the function.
    """
    place, _, attribute = spec.rpartition(":")
    if not place or not re.fullmatch(r"[A-Za-z_][\w.]*", attribute):
        if Path(spec).suffix == ".py":
            raise ConfigurationError(f"{kind} {spec!r} names a file, but no function in it: write {spec}:FUNCTION.")
        raise ConfigurationError(f"Unrecognised {kind} specification {spec!r}. Use {forms}.")
    module = _execute(Path(place), say) if place.endswith(".py") else _import(place, kind, say)
    value: Any = module
    for part in attribute.split("."):
        if not _has(value, part):
            public = [name for name, entry in vars(module).items() if callable(entry) and not name.startswith("_")]
            raise InputError(f"{place} has no {attribute!r}{did_you_mean(attribute, public)}.")
        value = getattr(value, part)
    if not callable(value):
        raise InputError(f"{spec} must be callable, but it is of type {type(value).__name__}.")
    return value


def call(function: Callable[..., Any], arguments: Mapping[str, Any], spec: str) -> Any:
    """Call a user's function; convert an exception into an :class:`InputError` with the line that raised it.

    Parameters
    ----------
    function
        The function.
    arguments
        Its keyword arguments.
    spec
        Its name, for the message.

    Returns
    -------
    Any
        What it returns.

    Raises
    ------
    InputError
        If it raises anything but a :class:`CurvatureError`, which is passed on.
    """
    try:
        return function(**arguments)
    except CurvatureError:
        raise
    except (Exception, SystemExit) as error:  # a user's function can raise anything
        raise InputError(f"{spec} failed: {_cause(error)}") from error


def call_seeded(factory: Callable[..., Any], arguments: Mapping[str, Any], seed: int, spec: str) -> Any:
    """Call a user's factory with a seed, as an argument if it has one; the global generator is restored.

    Parameters
    ----------
    factory, arguments, spec
        As for :func:`call`.
    seed
        Of the global generator too.

    Returns
    -------
    Any
        What it returns.
    """
    seeded = {**arguments, **({"seed": seed} if "seed" in parameters_of(factory) else {})}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return call(factory, seeded, spec)


def parameters_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a function by name.

    Parameters
    ----------
    factory
        The function.

    Returns
    -------
    dict
        A function without a signature, as some that are written in C, has one entry that accepts any keyword.
    """
    try:
        return dict(inspect.signature(factory).parameters)
    except ValueError:
        return {"anything": inspect.Parameter("anything", inspect.Parameter.VAR_KEYWORD)}


def _import(name: str, kind: str, say: Say) -> ModuleType:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise ConfigurationError(f"{kind} {name!r} is not the name of a module. For a file write path/file.py:NAME.")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"there is no module {error.name!r}. It must be installed or in a folder on PYTHONPATH; the current "
                "folder is not searched. For a file write path/file.py:NAME."
            ) from error
        raise InputError(f"importing {name} failed: {_cause(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module can raise anything
        raise InputError(f"importing {name} failed: {_cause(error)}") from error
    say(f"imported {name} from {getattr(module, '__file__', None) or 'Python itself'}")
    return module


def _has(owner: Any, name: str) -> bool:
    try:
        return hasattr(owner, name)
    except Exception:  # from a __getattr__ of the user
        return False


def _execute(path: Path, say: Say) -> ModuleType:
    path = existing(path, "code").resolve()
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    name = f"_curvature_{path.stem}_{digest[:16]}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    say(f"executing {path} (SHA-256 {digest})")
    if name in sys.modules:  # a model and a loss from the same file share its classes
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        # Exactly the bytes that were hashed. The folder stays off sys.path, so that no other file in it is imported
        # without a message.
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = " Modules in the same folder are found only with PYTHONPATH." if isinstance(error, ImportError) else ""
        raise InputError(f"executing {path} failed: {_cause(error)}{hint}") from error
    return module


def _cause(error: BaseException) -> str:
    """Type, message, and the last line of the user's own code in the traceback."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not re.search(r"site-packages|importlib|curvature[\\/]cli[\\/]loading", file):
            line = f" ({Path(file).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}".rstrip(".: ") + f"{line}."
