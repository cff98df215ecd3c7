"""Which options exclude or need each other: those of a model and of a function, and what a command cannot use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvature.cli.fields import option_name

__all__ = ["combined"]

_OF_MODELS = ("model", "weights", "key", "strip_prefix", "adapter", "output")


def combined(values: Mapping[str, Any], refused: Mapping[str, str]) -> Mapping[str, Any]:
    """Refuse options that do not fit together, and take the defaults of a model away from a function.

    Parameters
    ----------
    values
        Of the fields that were given.
    refused
        Fields that the command cannot use, each with the reason.

    Returns
    -------
    Mapping
        With ``model``, ``data`` and ``loss`` None where a function takes their place.

    Raises
    ------
    ValueError
        Which pydantic reports.
    """
    for name, reason in refused.items():
        if values.get(name):
            raise ValueError(f"{option_name(name)}: {reason}")
    if values.get("function") is None:
        if values.get("parameters") is not None:
            raise ValueError("--parameters are those of a function: add --function NAME, or use --weights")
        return values
    for name in _OF_MODELS:
        if values.get(name) is not None:
            raise ValueError(f"{option_name(name)} belongs to a model, and --function replaces it: leave one out")
    of_data = ("target", "num_examples", "loss")
    for name in ("data", *of_data):
        if values.get(name) is not None and values.get("parameters") is None:
            raise ValueError(
                f"{option_name(name)}: without --parameters, --function names a factory, which returns its loss and "
                f"data itself. Add --parameters FILE, or leave {option_name(name)} out"
            )
        if name in of_data and values.get(name) is not None and values.get("data") is None:
            raise ValueError(f"{option_name(name)} is about the data of --data, and no --data is given")
    return {"model": None, "data": None, "loss": None, **values}
