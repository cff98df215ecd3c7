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

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator

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
    num_examples: PositiveInt | None = None
    matrix: tuple[str, ...] = Field(min_length=1)
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    threads: PositiveInt | None = None

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
    num_eigenvalues: PositiveInt = 10
    num_probes: PositiveInt = 10
    num_matvecs: PositiveInt = 60
    num_samples: PositiveInt = 1
    gradient: bool = True
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("gauge", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """Take a stretch for the gauge it names: TOML writes it as a number."""
        return [f"{one:g}" if isinstance(one, int | float) else one for one in cls._split(value)]


class CompareConfiguration(Configuration):
    """Configuration of ``curvature compare``; the defaults are those of ``curvature.study.CompareSettings``."""

    matrix: tuple[str, ...] = Field(("hessian", "ggn", "gradient-covariance"), min_length=1)
    full: bool = False
    seeds: PositiveInt | None = None
    jobs: PositiveInt = 1
    tuning_epochs: PositiveInt = 10
    epochs: Annotated[int, Field(ge=2)] = 30
    batch_size: PositiveInt = 64
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
            value = values.get("arg", {}) | dict(value)
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
        if not trust and origins.get(key, "").startswith(f"{file}: ") and _names_code(key, str(values[key])):
            raise ConfigurationError(
                f"{file} names code to run ({key} = {values[key]!r}), and a configuration may be somebody else's. If "
                f"you trust it, add --trust-config, or name the code yourself: --{key} {values[key]}."
            )
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_invalid(one, origins) for one in error.errors()) + ".") from error


def _read_toml(path: Path, command: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not a TOML file: {error}.") from error
    written_for = values.pop("command", command)
    if written_for != command:
        raise ConfigurationError(
            f"{path} is a configuration for `curvature {written_for}`, not for `curvature {command}`."
        )
    return values


def _toml_value(text: str, key: str) -> Any:
    """Read numbers, lists and booleans as TOML does, anything else as a string."""
    if key.partition(".")[0] == "arg" and key != "arg":
        return _arguments([f"x={text}"], "--set")["x"]
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
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
    if value.startswith("builtin:") or (key == "data" and value.startswith(("mnist:", "cifar10:"))):
        return False
    return key == "model" or (":" in value and Path(value).suffix not in {".npz", ".pt", ".pth", ".csv"})


def _unknown(name: str, command: str, origin: str) -> str:
    for other, kind in KINDS.items():
        if name in kind.model_fields:
            return f"{origin}: {name!r} belongs to `curvature {other}`, not to `curvature {command}`."
    known = KINDS[command].model_fields
    return f"{origin}: {name!r} is unknown{_near(name, known)}; there are {', '.join(known)}."


def _invalid(error: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    key = str(error["loc"][0]) if error["loc"] else ""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{origins.get(key, key)}: {message}{shown}"


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
