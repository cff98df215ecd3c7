"""Code by its name: a function of an installed module, or of a file that is executed aloud."""

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

from curvature.cli.loading.files import existing
from curvature.cli.loading.wording import Say, near
from curvature.errors import ConfigurationError, CurvatureError, InputError

__all__ = ["call", "find", "parameters_of"]


def find(spec: str, what: str, forms: str, say: Say) -> Callable[..., Any]:
    """Import or execute what ``where:attribute`` names, and give the attribute."""
    where, _, attribute = spec.rpartition(":")
    if not where or not re.fullmatch(r"[A-Za-z_][\w.]*", attribute):
        if Path(spec).suffix == ".py":
            raise ConfigurationError(f"{what} {spec!r} names a file but no function in it: write {spec}:FUNCTION.")
        raise ConfigurationError(f"{what} {spec!r} is of no known form; use {forms}.")
    module = _execute(Path(where), say) if where.endswith(".py") else _import(where, what, say)
    found: Any = module
    for part in attribute.split("."):
        if not _has(found, part):
            public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise InputError(f"{where} has no {attribute!r}{near(attribute, public)}.")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{spec} must be something that can be called, it is of type {type(found).__name__}.")
    return found


def call(function: Callable[..., Any], arguments: Mapping[str, Any], spec: str) -> Any:
    """Call a user's function; whatever comes out of it is an :class:`InputError` with its line."""
    try:
        return function(**arguments)
    except CurvatureError:
        raise
    except (Exception, SystemExit) as error:  # anything may come out of a user's function
        raise InputError(f"{spec} failed: {_cause(error)}") from error


def parameters_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name; anything goes where a callable does not tell."""
    try:
        return dict(inspect.signature(factory).parameters)
    except ValueError:  # some callables written in C have no signature: let the call tell
        return {"anything": inspect.Parameter("anything", inspect.Parameter.VAR_KEYWORD)}


def _import(name: str, what: str, say: Say) -> ModuleType:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise ConfigurationError(f"{what} {name!r} is no module name; for a file write path/file.py:NAME.")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"there is no module {error.name!r}: it must be installed or lie in a folder on PYTHONPATH (the "
                "current folder is not searched). For a file write path/file.py:NAME."
            ) from error
        raise InputError(f"importing {name} failed: {_cause(error)}") from error
    except (Exception, SystemExit) as error:  # anything may come out of a user's module
        raise InputError(f"importing {name} failed: {_cause(error)}") from error
    say(f"imported {name} from {getattr(module, '__file__', None) or 'Python itself'}")
    return module


def _has(owner: Any, name: str) -> bool:
    try:
        return hasattr(owner, name)
    except Exception:  # a __getattr__ of the user's own
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
        # Exactly the bytes that were hashed. Their folder stays off sys.path: what lies there is not imported unseen.
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = " Modules beside the file are found only with PYTHONPATH." if isinstance(error, ImportError) else ""
        raise InputError(f"executing {path} failed: {_cause(error)}{hint}") from error
    return module


def _cause(error: BaseException) -> str:
    """Type, message and the last line of the user's own code: what a traceback would be read for."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not re.search(r"site-packages|importlib|curvature[\\/]loading", file):
            line = f" ({Path(file).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}".rstrip(".: ") + f"{line}."
