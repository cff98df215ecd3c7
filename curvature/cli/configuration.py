"""Where options come from, and what they may be."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator

from curvature.errors import ConfigurationError

__all__ = ["KINDS", "MATRICES", "CompareConfiguration", "Configuration", "SpectrumConfiguration", "resolve"]

# Names on the command line; the library writes them with underscores (curvature.matrices.MATRICES).
MATRICES = {
    "hessian": "hessian",
    "ggn": "ggn",
    "fisher": "fisher",
    "mc-fisher": "monte_carlo_fisher",
    "empirical-fisher": "empirical_fisher",
    "gradient-covariance": "gradient_covariance",
}

_MAX_TOML = 2**20  # bytes; a configuration has some hundreds
_SHOWN = 100  # characters of a wrong value in a message

# Ceilings keep a slip of the keyboard from filling the memory with seeds, or the machine with threads.
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
Workers = Annotated[int, Field(gt=0, le=1024)]

_ENVIRONMENT = "CURVATURE_"
_OTHER_VARIABLES = {"CURVATURE_FAST"}  # read by the notebooks


class Configuration(BaseModel):
    """What decides the numbers: the same values give the same numbers, whatever brings them here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = "builtin:digits-mlp"
    weights: str | None = None
    key: str | None = None
    arg: dict[str, bool | int | float | str | list[bool | int | float | str]] = {}
    data: str = "builtin:digits"
    target: str | None = None
    loss: str = "cross-entropy"
    num_examples: Count | None = None
    matrix: tuple[str, ...] = Field(min_length=1)
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    threads: Workers | None = None

    @field_validator("matrix", "chart", "gauge", "stretches", "dampings", mode="before", check_fields=False)
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take ``a,b`` for two values: an environment variable cannot be repeated."""
        given = value if isinstance(value, list | tuple) else [value]
        return [
            part for one in given for part in (re.split(r"\s*,\s*", one.strip()) if isinstance(one, str) else [one])
        ]

    @field_validator("matrix")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for name in names:
            plain = name.lower().replace("_", "-").replace("monte-carlo-", "mc-")
            if plain not in MATRICES:
                raise ValueError(f"{name!r} is unknown{_near(plain, MATRICES)}; choose among {', '.join(MATRICES)}")
            found.append(plain)
        return tuple(dict.fromkeys(found))


class SpectrumConfiguration(Configuration):
    """Configuration of ``curvature spectrum``."""

    matrix: tuple[str, ...] = Field(("hessian", "ggn"), min_length=1)
    chart: tuple[str, ...] = ()
    gauge: tuple[str, ...] = ()
    block: str = "all"
    method: Literal["auto", "exact", "dense", "factor", "gram", "lanczos", "slq"] = "auto"
    num_eigenvalues: Count = 10
    num_probes: Count = 10
    num_matvecs: Count = 60
    num_samples: Count = 1
    gradient: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0

    @field_validator("gauge", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """Take a stretch for the gauge it names: TOML writes it as a number."""
        return [f"{one:g}" if isinstance(one, int | float) else one for one in cls._split(value)]


class CompareConfiguration(Configuration):
    """Configuration of ``curvature compare``; the defaults are those of ``curvature.studies.CompareSettings``."""

    matrix: tuple[str, ...] = Field(("hessian", "ggn", "gradient-covariance"), min_length=1)
    full: bool = False
    seeds: Annotated[int, Field(gt=0, le=10_000)] | None = None
    jobs: Workers = 1
    tuning_epochs: Count = 10
    epochs: Annotated[int, Field(ge=2, le=2**31 - 1)] = 30
    batch_size: Count = 64
    learning_rate: PositiveFloat = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stretches: tuple[PositiveFloat, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    dampings: tuple[PositiveFloat, ...] = (1e-5, 1e-3, 1e-1)
    damping: PositiveFloat = 1e-3
    threshold: PositiveFloat = math.log(1.1)

    @property
    def num_seeds(self) -> int:
        """Paired seeds: three show what to expect, ten can decide about training."""
        return self.seeds or (10 if self.full else 3)


KINDS = {"spectrum": SpectrumConfiguration, "compare": CompareConfiguration}


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
    """Merge defaults < file < environment < ``--set`` < flags, and validate.

    A name of code to run (a model, loader or loss of the user's) that comes from the file needs ``trust``: a run
    directory may be somebody else's.
    """
    kind = KINDS[command]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(key: str, value: Any, origin: str) -> None:
        name = key.replace("-", "_")
        table, _, entry = name.partition(".")
        if table == "arg" and entry:
            name, value = "arg", {entry: value}
        if name not in kind.model_fields:
            raise ConfigurationError(_unknown(name, command, origin))
        if name == "arg" and isinstance(value, Mapping):
            before = values.get("arg", {})
            value = (before if isinstance(before, Mapping) else {}) | dict(value)
        values[name], origins[name] = value, origin

    for key, value in _read_toml(file, command).items() if file is not None else ():
        put(key, value, f"{file}: {key}")
    for key, value in (os.environ if environment is None else environment).items():
        if not key.startswith(_ENVIRONMENT) or key in _OTHER_VARIABLES:
            continue
        name = key.removeprefix(_ENVIRONMENT).lower()
        if name in kind.model_fields:
            put(name, _arguments(value.split(), key) if name == "arg" else value, key)
        elif not any(name in other.model_fields for other in KINDS.values()):
            known = [_ENVIRONMENT + name.upper() for name in kind.model_fields]
            warn(f"{key} is set but is no option{_near(key, known)}: ignored")
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {setting!r}: write --set KEY=VALUE.")
        put(key.strip(), _toml_value(value.strip(), key.strip()), f"--set {key.strip()}")
    for key, value in flags.items():
        if value is not None and value != []:
            put(key, _arguments(value, "--arg") if key == "arg" else value, f"--{key.replace('_', '-')}")

    for key in ("model", "data", "loss"):
        from_file = isinstance(values.get(key), str) and origins[key].startswith(f"{file}: ")
        if from_file and not trust and _names_code(key, values[key]):
            raise ConfigurationError(
                f"{file} names code to run ({key} = {values[key]!r}), and a configuration may be somebody else's. If "
                f"you trust it, add --trust-config, or name the code yourself: --{key} {values[key]}."
            )
    try:
        return kind(**values)
    except ValidationError as error:
        wrong = dict.fromkeys(_invalid(one, origins) for one in error.errors())
        raise ConfigurationError("; ".join(wrong) + ".") from error


def _read_toml(path: Path, command: str) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:  # which may have no end
            content = stream.read(_MAX_TOML + 1)
        if len(content) > _MAX_TOML:
            raise ConfigurationError(
                f"{path} is longer than the {_MAX_TOML} bytes that are read of a configuration: is it the right file?"
            )
        values = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} nests its values too deeply to be a configuration.") from error
    except ValueError as error:  # no UTF-8, no TOML, or a number with more digits than Python converts
        why = "a number has too many digits" if "int_max_str_digits" in str(error) else _cut(str(error)).rstrip(".")
        raise ConfigurationError(f"{path} is not a TOML file: {why}.") from error
    written_for = values.pop("command", command)
    if written_for != command:
        raise ConfigurationError(
            f"{path} is a configuration for `curvature {_cut(str(written_for))}`, not for `curvature {command}`."
        )
    return values


def _toml_value(text: str, key: str) -> Any:
    """Read numbers, lists and booleans as TOML does, anything else as a string."""
    if key.partition(".")[0] == "arg" and key != "arg":
        return _arguments([f"x={text}"], "--set")["x"]
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except RecursionError as error:
        raise ConfigurationError(f"--set {key}: the value is nested too deeply.") from error
    except ValueError:
        return text


def _arguments(items: Iterable[str], origin: str) -> dict[str, Any]:
    found = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"{origin} {item!r}: write NAME=VALUE.")
        found[name.strip()] = _argument(value.strip())
    return found


def _argument(text: str) -> Any:
    """Read an argument of the model: a number, true or false, a comma list of those, or a string."""
    if "," in text:
        return [_argument(part.strip()) for part in text.split(",") if part.strip()]
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _names_code(key: str, value: str) -> bool:
    data = ("builtin:", "mnist:", "cifar10:")
    if value.startswith({"model": "builtin:", "data": data}.get(key, ())):
        return False
    return key == "model" or (":" in value and Path(value).suffix not in {".npz", ".pt", ".pth", ".csv"})


def _unknown(name: str, command: str, origin: str) -> str:
    for other, kind in KINDS.items():
        if name in kind.model_fields:
            return f"{origin}: {name!r} belongs to `curvature {other}`, not to `curvature {command}`."
    known = KINDS[command].model_fields
    return f"{_cut(origin)}: {_cut(name)!r} is unknown{_near(name, known)}; there are {', '.join(known)}."


def _invalid(error: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    key = str(error["loc"][0]) if error["loc"] else ""
    if key == "arg" and len(error["loc"]) > 1:  # one value, refused once for every type that it might have had
        place, shown = f"{origins['arg']} ({_cut(str(error['loc'][1]))})", error["input"]
        return f"{place}: should be a finite number, true or false, a text, or a list of those, got {_cut(repr(shown))}"
    message = _cut(error["msg"].removeprefix("Value error, ").removeprefix("Input "), 4 * _SHOWN)
    shown = "" if error["type"] == "value_error" else f", got {_cut(repr(error['input']))}"
    return f"{origins.get(key, key)}: {message}{shown}"


def _cut(text: str, most: int = _SHOWN) -> str:
    """Keep the beginning of what may be long: a wrong value can be a whole file."""
    return text if len(text) <= most else f"{text[:most]}..."


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
