"""What a grid is made of, as a TOML file says it: its cells, its seeds, and what is trained and measured in each."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from curvature.cli.fields import MATRICES, Count, Matrices, Names, Numbers
from curvature.cli.wording import nearest
from curvature.errors import ConfigurationError

if TYPE_CHECKING:
    from curvature.studies.grid import GridSettings

__all__ = ["PRESETS", "GridConfiguration", "read_grid"]

_MAX_TOML = 2**20  # bytes

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "data": ("digits", "breast-cancer"),
        "architectures": ("tanh-mlp", "residual-mlp"),
        "optimizers": ("sgd",),
        "num_seeds": 3,
        "num_examples": 250,
        "num_weights": 400,
    },
    "full": {
        "data": ("digits", "characters"),
        "architectures": ("tanh-mlp", "residual-mlp", "transformer"),
        "optimizers": ("sgd", "adam"),
        "num_seeds": 10,
    },
}


class GridConfiguration(BaseModel):
    """Everything that determines the numbers of a grid."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Annotated[Names, Field(min_length=1)]
    architectures: Annotated[Names, Field(min_length=1)]
    optimizers: Annotated[Names, Field(min_length=1)]
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (64,)
    arms: tuple[str, ...] = ()
    num_seeds: Annotated[int, Field(gt=0, le=10_000)] = 10
    epochs: Annotated[int, Field(ge=2, le=2**31 - 1)] = 30
    tuning_epochs: Count = 10
    num_examples: Count = 400
    num_weights: Count = 600
    rates: dict[str, Numbers] = {}
    matrix: Matrices = ("ggn", "gradient-covariance")
    relative_damping: PositiveFloat = 1e-3
    threshold: PositiveFloat = math.log(1.1)
    whole_batches: bool = True

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        from curvature.studies.grid import ARCHITECTURES, DATA_SETS, OPTIMIZERS

        for key, known in (("data", DATA_SETS), ("architectures", ARCHITECTURES), ("optimizers", OPTIMIZERS)):
            for name in getattr(self, key):
                if name not in known:
                    raise ValueError(
                        f"{key}: {name!r} is unknown{nearest(name, known)}; choose among {', '.join(known)}"
                    )
        for name in self.rates:
            if name not in self.optimizers:
                raise ValueError(f"rates: {name!r} is none of the optimizers of this grid")
        return self

    def settings(self) -> GridSettings:
        """What is trained and measured.

        Returns
        -------
        GridSettings
            With a cell for each combination that fits together.

        Raises
        ------
        ConfigurationError
            If an architecture cannot take any of the data sets, or an arm is unknown.
        """
        from itertools import product, starmap

        from curvature.studies.grid import ARMS, Cell, GridSettings, arm_named, unsuited

        for arm in self.arms:
            arm_named(arm)
        factors = product(self.data, self.architectures, self.optimizers, self.batch_sizes)
        cells = tuple(starmap(Cell, factors))
        reasons = dict.fromkeys(filter(None, map(unsuited, cells)))
        if reasons:
            raise ConfigurationError(f"{'; '.join(reasons)}. Leave one of the two out of the grid.")
        return GridSettings(
            cells=cells,
            seeds=tuple(range(self.num_seeds)),
            arms=self.arms or ARMS,
            epochs=self.epochs,
            tuning_epochs=self.tuning_epochs,
            num_examples=self.num_examples,
            num_weights=self.num_weights,
            rates=self.rates,
            matrices=tuple(MATRICES[name] for name in self.matrix),
            relative_damping=self.relative_damping,
            threshold=self.threshold,
            whole_batches=self.whole_batches,
        )


def read_grid(name: str, **changes: Any) -> GridConfiguration:
    """Configuration of a grid by its name or its file.

    Parameters
    ----------
    name
        ``"small"``, ``"full"``, or a TOML file. A file may begin with ``preset = "small"`` and say what differs.
    **changes
        Fields that are set on the command line.

    Returns
    -------
    GridConfiguration
        Complete.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, or a value of it is wrong.
    """
    values = dict(PRESETS[name]) if name in PRESETS else _read(name)
    try:
        return GridConfiguration(**(values | changes))
    except ValidationError as error:
        raise ConfigurationError(
            f"--grid {name}: {'; '.join(dict.fromkeys(map(_message, error.errors())))}."
        ) from error


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigurationError(
            f"--grid {name!r} is unknown{nearest(name, PRESETS)}; choose {', '.join(PRESETS)}, or name a .toml file."
        )
    try:
        with path.open("rb") as stream:
            values = tomllib.loads(stream.read(_MAX_TOML).decode())
    except OSError as error:
        raise ConfigurationError(f"the grid {name} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"the grid {name} is not a TOML file: {error}.") from error
    values.pop("command", None)  # of the run directory of a grid
    preset = values.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise ConfigurationError(f"the grid {name}: preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    return {**PRESETS.get(preset, {}), **values}


def _message(details: Any) -> str:
    key = ".".join(map(str, details["loc"]))
    text = str(details["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if details["type"] == "missing":
        return f"{key} is missing"
    if details["type"] == "extra_forbidden":
        return f"{key!r} is unknown{nearest(key, GridConfiguration.model_fields)}"
    shown = "" if details["type"] == "value_error" else f", got {str(details['input'])[:100]!r}"
    return f"{key}: {text}{shown}" if key else text
