"""Reading of a configuration or a grid from a TOML file, which may be any file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from curvature.errors import ConfigurationError
from curvature.text import cut

__all__ = ["read_toml"]

_MAX_BYTES = 2**20  # a configuration has some hundreds


def read_toml(path: Path, command: str) -> dict[str, Any]:
    """Read what a TOML file says; not validated.

    Parameters
    ----------
    path
        The file.
    command
        The command that it must be written for, where it names one.

    Returns
    -------
    dict
        Value by key, without that command.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, is too large, is not TOML, or is written for another command.
    """
    try:
        with path.open("rb") as stream:  # /dev/zero has no end
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigurationError(
                f"{path} exceeds the limit of {_MAX_BYTES} bytes for a configuration. Is it the right file?"
            )
        values = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is not a configuration: its values are nested too deeply.") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number with more digits than Python converts
        why = "a number has too many digits" if "int_max_str_digits" in str(error) else cut(str(error)).rstrip(".")
        raise ConfigurationError(f"{path} is not a TOML file: {why}.") from error
    written_for = values.pop("command", command)
    if written_for != command:
        raise ConfigurationError(
            f"{path} is a configuration for `curvature {cut(str(written_for))}`, not for `curvature {command}`."
        )
    return values
