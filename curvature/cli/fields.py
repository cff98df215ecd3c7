"""Types of the fields of configurations, with their limits, their spelling and their help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat

from curvature.text import did_you_mean

__all__ = [
    "COMPUTE",
    "DATA",
    "MACHINE",
    "MATRICES",
    "MODEL",
    "PANELS",
    "Argument",
    "Backend",
    "Charts",
    "Count",
    "Counts",
    "Derivatives",
    "Gauges",
    "Grid",
    "Matrices",
    "Names",
    "Nearest",
    "Numbers",
    "SavedEigenvectors",
    "Scheduler",
    "Seed",
    "Shown",
    "Threads",
    "Workers",
    "option_name",
    "split_names",
]

# Names on the command line; the library writes them with underscores (curvature.matrices.MATRICES).
MATRICES = {
    "hessian": "hessian",
    "ggn": "ggn",
    "fisher": "fisher",
    "mc-fisher": "monte_carlo_fisher",
    "empirical-fisher": "empirical_fisher",
    "empirical-fisher-at-fisher-scale": "empirical_fisher_at_fisher_scale",
    "gradient-covariance": "gradient_covariance",
}

PANELS = MODEL, DATA, COMPUTE, MACHINE = "Model", "Data", "Compute", "Precision and hardware"


@dataclass(frozen=True)
class Shown:
    """How the command line shows a field: its panel, the word for its value, its help, and a short name."""

    panel: str
    metavar: str
    help: str
    short: str | None = None
    argument: bool = False  # named by its place on the command line, not by an option


def option_name(field: str) -> str:
    """Name of a field on the command line.

    Parameters
    ----------
    field
        Its name in the configuration, e.g. ``num_examples``.

    Returns
    -------
    str
        E.g. ``--num-examples``.
    """
    return f"--{field.replace('_', '-')}"


def split_names(value: Any) -> list[Any]:
    """Read ``a,b`` as two values: an environment variable cannot be repeated.

    Parameters
    ----------
    value
        As it was given: a text, a list of texts, or anything else, which the field refuses.

    Returns
    -------
    list
        The values, not validated.
    """
    parts: list[Any] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        parts += re.split(r"\s*,\s*", item.strip()) if isinstance(item, str) else [item]
    return parts


def _split_gauges(value: Any) -> list[Any]:
    """Read a number as the gauge of that stretch: TOML distinguishes 3 from "3"."""
    return [repr(item).removesuffix(".0") if isinstance(item, int | float) else item for item in split_names(value)]


def _known_matrices(names: tuple[str, ...]) -> tuple[str, ...]:
    plain = [name.lower().replace("_", "-").replace("monte-carlo-", "mc-") for name in names]
    for name, spelled in zip(plain, names, strict=True):
        if name not in MATRICES:
            raise ValueError(
                f"{spelled!r} is unknown{did_you_mean(name, MATRICES)}; choose among {', '.join(MATRICES)}"
            )
    return tuple(dict.fromkeys(plain))


# Upper limits catch typing errors that would fill the memory with seeds, or the machine with threads.
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
Workers = Annotated[int, Field(gt=0, le=1024)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(split_names)]
Numbers = Annotated[tuple[PositiveFloat, ...], BeforeValidator(split_names)]
Argument = bool | int | float | str
Matrices = Annotated[
    Names,
    Field(min_length=1),
    AfterValidator(_known_matrices),
    Shown(COMPUTE, "NAME", f"{', '.join(MATRICES)}. Repeatable, or separated by commas.", "-m"),
]


Charts = Annotated[
    Names,
    Shown(
        COMPUTE,
        "NAME",
        "Parameterization: standard (the default), weight-norm, scaled-standard, placebo (weight normalization along "
        "random directions), sphere, random-weight-factorization, weight-standardization, spectral-norm, lora, dora or "
        "deep-linear. Repeatable.",
    ),
]
Gauges = Annotated[
    tuple[str, ...],
    BeforeValidator(_split_gauges),
    Shown(
        COMPUTE,
        "NAME",
        "Length of v in weight normalization: canonical (the default), paper, checkpoint (the values in the "
        "model), or a stretch ||v|| / |g| such as 3. Rank of lora and dora: rank=4 (the default is 8). Repeatable.",
    ),
]
Nearest = Annotated[
    bool,
    Shown(
        COMPUTE,
        "",
        "Where a chart cannot represent the weights, measure all charts at the nearest weights that it can represent, "
        "and say how far they are.",
    ),
]
Derivatives = Annotated[
    Literal["autograd", "finite-differences"],
    Shown(
        COMPUTE,
        "NAME",
        "For the Hessian: autograd, or finite-differences of the gradient, for models that PyTorch differentiates only "
        "once (six gradients for each weight, float64). Their error is estimated and is part of every interval.",
    ),
]
SavedEigenvectors = Annotated[
    Count | None,
    Shown(
        COMPUTE,
        "K",
        "Also write the eigenvectors of the K largest eigenvalues of each matrix into the run directory of --out, as "
        "safetensors by parameter name. Not with gram or slq, which compute none.",
    ),
]
Seed = Annotated[
    int,
    Field(ge=0, lt=2**53),
    Shown(COMPUTE, "N", "Seed of the initial weights and of everything else that is random."),
]
Grid = Annotated[
    str | None,
    Shown(
        COMPUTE,
        "WHICH",
        "Repeat the study over networks, data sets and optimizers, and pool the claims: small (minutes), full (an "
        "hour), or a .toml file that says which. Model, data and training are then those of the grid. What can differ: "
        "--data, --matrix, --num-seeds, --num-examples, --epochs, --batch-size, and by --set its other keys, e.g. "
        "architectures, optimizers or arms.",
    ),
]
Backend = Annotated[
    Literal["joblib", "dask"] | None,
    Shown(
        MACHINE,
        "NAME",
        "With --grid: joblib (--jobs processes of this machine; the default) or dask (workers of dask).",
    ),
]
Scheduler = Annotated[
    str | None,
    Shown(
        MACHINE,
        "ADDRESS",
        "With --backend dask: a running scheduler, e.g. tcp://host:8786. Otherwise --jobs workers on this machine.",
    ),
]
Threads = Annotated[
    Workers | None,
    Shown(
        MACHINE,
        "N",
        "CPU threads; by default as many as the process may use (affinity, quota of a container). On a busy "
        "machine 1 is fastest.",
    ),
]
