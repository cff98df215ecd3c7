"""Where the values of a configuration come from: a file, the environment, ``--set`` and the options."""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from curvature.cli.configuration import KINDS, RENAMED, Configuration, option_name
from curvature.cli.fields import split_names
from curvature.cli.grid_configuration import GridConfiguration, GridOptions, grid_values
from curvature.cli.toml_file import read_toml
from curvature.errors import ConfigurationError
from curvature.text import cut, did_you_mean

__all__ = ["names_code", "resolve", "resolve_grid"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_ENVIRONMENT = "CURVATURE_"
_OTHER_VARIABLES = {"CURVATURE_FAST"}  # read by the notebooks

# Options of the study under the names that they have in a grid.
_IN_GRID = {"batch_size": "batch_sizes"}

# Fields that can name code to run, and the prefixes of names that do not.
_CODE: dict[str, tuple[str, ...]] = {
    "model": ("builtin:", "hf:"),
    "function": (),
    "data": ("builtin:", "mnist:", "cifar10:"),
    "loss": (),
}


@dataclass(frozen=True)
class _Entry:
    """A value for one key, and where it comes from in words; a file may have been written by somebody else."""

    key: str
    value: Any
    origin: str
    from_file: bool = False


def resolve(
    command: str,
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    trust: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> Configuration:
    """Merge defaults < file < environment < ``--set`` < options, and validate the result.

    Parameters
    ----------
    command
        ``spectrum`` or ``compare``.
    flags
        Values of the options by field name; None or an empty list if the option was not used.
    file
        A TOML file with the same keys.
    settings
        ``KEY=VALUE`` of each ``--set``.
    environment
        By default the environment of the process.
    trust
        Allow the file to name code (a model, a data loader or a loss) that will be executed.
    warn
        Receives a message about each environment variable that is ignored.

    Returns
    -------
    Configuration
        Of the class that belongs to the command.

    Raises
    ------
    ConfigurationError
        If a key is unknown, a value is invalid, or the file names code and is not trusted.
    """
    kind = KINDS[command]
    entries = [
        *_file_entries(file, command),
        *_environment_entries(os.environ if environment is None else environment, kind, warn),
        *_set_entries(settings),
        *_flag_entries(flags),
    ]
    merged = _merged(entries, command)
    if not trust:
        _refuse_code_from_files(merged.values())
    return _validated(kind, merged)


def resolve_grid(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> GridOptions | None:
    """Merge preset or grid file < configuration file < environment < ``--set`` < options of ``compare --grid``.

    Parameters
    ----------
    flags, file, settings, environment, warn
        As for :func:`resolve`.

    Returns
    -------
    GridOptions or None
        None if no grid is named.

    Raises
    ------
    ConfigurationError
        If a key is unknown or decided by the grid, a value is invalid, or the grid cannot be read.
    """
    notes: list[str] = []
    entries = [
        *_file_entries(file, "compare"),
        *_environment_entries(os.environ if environment is None else environment, KINDS["compare"], notes.append),
        *_set_entries(settings),
        *_flag_entries(flags),
    ]
    named = [entry.value for entry in entries if entry.key == "grid"]
    if not named:
        return None
    for note in notes:
        warn(note)
    name = str(named[-1])
    merged = {key: _Entry(key, value, f"--grid {name}: {key}") for key, value in grid_values(name).items()}
    changes = {change.key: change for change in map(_for_grid, entries)}
    return _validated(GridOptions, _rates_in_use(merged, changes) | changes)


def _for_grid(entry: _Entry) -> _Entry:
    """An option under the name that the grid has for it; options that a grid decides itself are refused."""
    key = entry.key.replace("-", "_")
    key = _IN_GRID.get(key, key)
    if key in GridOptions.model_fields:
        return replace(entry, key=key)
    if key in KINDS["compare"].model_fields:
        raise ConfigurationError(
            f"{entry.origin}: with --grid the grid decides about {option_name(key)}. Leave it out, or say what differs "
            "from the grid: --data, --num-seeds, --epochs, --matrix, --set architectures=NAME,NAME, "
            "--set optimizers=NAME, --set arms=NAME,NAME."
        )
    known = GridConfiguration.model_fields
    raise ConfigurationError(
        f"{cut(entry.origin)}: {cut(key)!r} is unknown{did_you_mean(key, known)}; choose among {', '.join(known)}."
    )


def _rates_in_use(grid: Mapping[str, _Entry], changes: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Leave out what the grid says about learning rates of optimizers that an option has removed."""
    rates = grid.get("rates")
    if rates is None or "optimizers" not in changes or not isinstance(rates.value, Mapping):
        return dict(grid)
    optimizers = split_names(changes["optimizers"].value)
    return {**grid, "rates": replace(rates, value={name: x for name, x in rates.value.items() if name in optimizers})}


def _validated(kind: type[ModelT], merged: Mapping[str, _Entry]) -> ModelT:
    try:
        return kind(**{key: entry.value for key, entry in merged.items()})
    except ValidationError as error:
        origins = {key: entry.origin for key, entry in merged.items()}
        messages = dict.fromkeys(_message(details, origins) for details in error.errors())
        raise ConfigurationError("; ".join(messages) + ".") from error


def names_code(config: Configuration) -> bool:
    """Whether a configuration names code, so that ``--config`` needs ``--trust-config`` to repeat it.

    Parameters
    ----------
    config
        Any configuration.

    Returns
    -------
    bool
        False if the model, the data and the loss are built in or read from files.
    """
    return any(_names_code(key, getattr(config, key) or "") for key in _CODE)


def _file_entries(file: Path | None, command: str) -> Iterator[_Entry]:
    if file is None:
        return
    for key, value in read_toml(file, command).items():
        yield _Entry(key, value, f"{file}: {key}", from_file=True)


def _environment_entries(
    environment: Mapping[str, str], kind: type[Configuration], warn: Callable[[str], None]
) -> Iterator[_Entry]:
    fields_of_any_command = {name for other in KINDS.values() for name in other.model_fields}
    for variable, value in environment.items():
        if not variable.startswith(_ENVIRONMENT) or variable in _OTHER_VARIABLES:
            continue
        name = variable.removeprefix(_ENVIRONMENT).lower()
        if RENAMED.get(name, name) in kind.model_fields:
            yield _Entry(name, _arguments(value.split(), variable) if name == "arg" else value, variable)
        elif RENAMED.get(name, name) not in fields_of_any_command:
            known = [_ENVIRONMENT + field.upper() for field in kind.model_fields]
            warn(f"the environment variable {variable} is not an option{did_you_mean(variable, known)} and is ignored")


def _set_entries(settings: Sequence[str]) -> Iterator[_Entry]:
    for setting in settings:
        key, separator, value = (part.strip() for part in setting.partition("="))
        if not separator:
            raise ConfigurationError(f"--set {setting!r}: write --set KEY=VALUE.")
        yield _Entry(key, _toml_value(value, key), f"--set {key}")


def _flag_entries(flags: Mapping[str, Any]) -> Iterator[_Entry]:
    for key, value in flags.items():
        if value is not None and value != []:
            yield _Entry(key, _arguments(value, "--arg") if key == "arg" else value, option_name(key))


def _merged(entries: Iterable[_Entry], command: str) -> dict[str, _Entry]:
    """Keep the last entry of each field; merge those of ``arg``, which is a table."""
    merged: dict[str, _Entry] = {}
    for entry in entries:
        name, value = entry.key.replace("-", "_"), entry.value
        table, _, argument = name.partition(".")
        if table == "arg" and argument:
            name, value = "arg", {argument: value}
        if name not in KINDS[command].model_fields:
            raise ConfigurationError(_unknown(name, command, entry.origin))
        earlier = merged[name].value if name in merged else None
        if name == "arg" and isinstance(value, Mapping) and isinstance(earlier, Mapping):
            value = {**earlier, **value}
        merged[name] = _Entry(name, value, entry.origin, entry.from_file)
    return merged


def _refuse_code_from_files(entries: Iterable[_Entry]) -> None:
    for entry in entries:
        if entry.from_file and isinstance(entry.value, str) and _names_code(entry.key, entry.value):
            file = entry.origin.removesuffix(f": {entry.key}")
            raise ConfigurationError(
                f"{file} names code to run ({entry.key} = {entry.value!r}). Somebody else may have written the file, "
                f"so this code is not run. If you trust it, add --trust-config, or name the code yourself: "
                f"{option_name(entry.key)} {entry.value}."
            )


def _names_code(key: str, value: str) -> bool:
    if not value or key not in _CODE or value.startswith(_CODE[key]):
        return False
    return key in ("model", "function") or (":" in value and Path(value).suffix not in {".npz", ".pt", ".pth", ".csv"})


def _toml_value(text: str, key: str) -> Any:
    """Read numbers, lists and booleans as TOML does, anything else as a string."""
    if key.partition(".")[0] == "arg" and key != "arg":
        return _argument(text)
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except RecursionError as error:
        raise ConfigurationError(f"--set {key}: the value is nested too deeply.") from error
    except ValueError:
        return text


def _arguments(items: Iterable[str], origin: str) -> dict[str, Any]:
    arguments = {}
    for item in items:
        name, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not name:
            raise ConfigurationError(f"{origin} {item!r}: write NAME=VALUE.")
        arguments[name] = _argument(value)
    return arguments


def _argument(text: str) -> Any:
    """Read an argument of the model: a number, true or false, a list of those separated by commas, or a string."""
    if "," in text:
        return [_argument(part.strip()) for part in text.split(",") if part.strip()]
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _unknown(name: str, command: str, origin: str) -> str:
    fields = KINDS[command].model_fields
    if RENAMED.get(name) in fields:
        return f"{cut(origin)}: {name!r} is now called {RENAMED[name]!r}; its meaning is the same."
    for other, kind in KINDS.items():
        if name in kind.model_fields:
            return f"{origin}: {name!r} belongs to `curvature {other}`, not to `curvature {command}`."
    return f"{cut(origin)}: {cut(name)!r} is unknown{did_you_mean(name, fields)}; choose among {', '.join(fields)}."


def _message(details: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Say which value is wrong, where it comes from, and what it should be."""
    path = details["loc"]
    key = str(path[0]) if path else ""
    if key == "arg" and len(path) > 1:  # pydantic reports one value once for every type that it could have had
        return (
            f"{origins['arg']} ({cut(str(path[1]))}): should be a finite number, true or false, a text, or a list of "
            f"those, got {cut(repr(details['input']))}"
        )
    if details["type"] == "missing":
        return f"{key} is missing"
    message = cut(details["msg"].removeprefix("Value error, ").removeprefix("Input "), 400)
    shown = "" if details["type"] == "value_error" else f", got {cut(repr(details['input']))}"
    origin = f"{origins.get(key, key)}: " if key else ""
    return f"{origin}{message}{shown}"
