"""What a grid is made of, as a TOML file says it: its cells, its seeds, and what is trained and measured in each."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator

from curvature.cli.fields import (
    MATRICES,
    Backend,
    Count,
    Counts,
    Matrices,
    Names,
    Numbers,
    Scheduler,
    Threads,
    Workers,
)
from curvature.cli.toml_file import read_toml
from curvature.errors import ConfigurationError
from curvature.text import cut, did_you_mean

if TYPE_CHECKING:
    from curvature.studies.grid import GridSettings

__all__ = ["PRESETS", "GridConfiguration", "GridOptions", "grid_values"]

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


def _without_prefix(names: tuple[str, ...]) -> tuple[str, ...]:
    """Data sets of a grid are all built in, so both ways to write them are read."""
    return tuple(name.removeprefix("builtin:") for name in names)


def _split_arms(value: Any) -> list[Any]:
    """Read ``a,b`` as two arms; the comma in "standard, paper start" belongs to the name."""
    items = value if isinstance(value, list | tuple) else [value]
    return [
        part.strip() if isinstance(part, str) else part
        for item in items
        for part in (re.split(r",(?!\s*\w+ start\b)", item) if isinstance(item, str) else [item])
    ]


class GridConfiguration(BaseModel):
    """Everything that determines the numbers of a grid."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Annotated[Names, Field(min_length=1), AfterValidator(_without_prefix)]
    architectures: Annotated[Names, Field(min_length=1)]
    optimizers: Annotated[Names, Field(min_length=1)]
    batch_sizes: Annotated[Counts, Field(min_length=1)] = (64,)
    arms: Annotated[tuple[str, ...], BeforeValidator(_split_arms)] = ()
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
                        f"{key}: {name!r} is unknown{did_you_mean(name, known)}; choose among {', '.join(known)}"
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

        from curvature.studies.grid import ARMS, Cell, GridSettings, unsuited
        from curvature.studies.training import arm_named

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


class GridOptions(GridConfiguration):
    """A grid, and by whom its units are measured."""

    grid: str
    jobs: Workers = 1
    backend: Backend = None
    scheduler: Scheduler = None
    threads: Threads = None

    def configuration(self) -> GridConfiguration:
        """What determines the numbers.

        Returns
        -------
        GridConfiguration
            Without the machine.
        """
        return GridConfiguration(**{name: getattr(self, name) for name in GridConfiguration.model_fields})


def grid_values(name: str) -> dict[str, Any]:
    """What a grid says, by its name or its file; not validated.

    Parameters
    ----------
    name
        ``"small"``, ``"full"``, or a TOML file. A file may begin with ``preset = "small"`` and say what differs.

    Returns
    -------
    dict
        Value by field.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, or has an unknown key.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    values = _read(name)
    for key in values:
        if key not in GridConfiguration.model_fields:
            raise ConfigurationError(
                f"--grid {name}: {cut(key)!r} is unknown{did_you_mean(key, GridConfiguration.model_fields)}."
            )
    return values


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigurationError(
            f"--grid {name!r} is unknown{did_you_mean(name, PRESETS)}; choose {', '.join(PRESETS)}, or name a .toml "
            "file."
        )
    values = read_toml(path, "compare --grid")
    preset = values.pop("preset", None)
    if preset is not None and preset not in tuple(PRESETS):  # a list is no key
        raise ConfigurationError(
            f"the grid {name}: preset must be one of {', '.join(PRESETS)}, got {cut(repr(preset))}."
        )
    return {**PRESETS.get(preset, {}), **values}
