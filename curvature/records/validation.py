"""What the numbers of a stored record must satisfy; a record that was read is refused if they do not."""

from __future__ import annotations

import numpy as np

__all__ = ["require", "require_finite", "require_rank"]


def require(condition: bool | np.bool_, message: str) -> None:
    """Refuse a record.

    Parameters
    ----------
    condition
        What must hold.
    message
        What is wrong if it does not hold.

    Raises
    ------
    ValueError
        If the condition is false.
    """
    if not condition:
        raise ValueError(message)


def require_finite(name: str, array: object, shape: tuple[int, ...] | None = None) -> None:
    """Refuse a field that is not an array of finite real numbers.

    Parameters
    ----------
    name
        Name of the field.
    array
        Its value.
    shape
        The shape that it must have; None: one dimension of any length.

    Raises
    ------
    ValueError
        If it is something else.
    """
    require(isinstance(array, np.ndarray) and array.dtype.kind == "f", f"{name} is not an array of real numbers")
    assert isinstance(array, np.ndarray)
    fits = array.ndim == 1 if shape is None else array.shape == shape
    wanted = "one dimension" if shape is None else f"shape {shape}"
    require(fits, f"{name} has shape {array.shape} instead of {wanted}")
    require(np.isfinite(array).all(), f"{name} contains NaN or infinity")


def require_rank(rank: int, bounds: tuple[int, int] | None, dim: int, noise_floor: float) -> None:
    """Refuse a rank outside the dimension or its bounds, and an invalid noise floor.

    Parameters
    ----------
    rank, bounds
        The rank, and its smallest and largest possible value.
    dim
        Dimension of the matrix.
    noise_floor
        The noise floor.

    Raises
    ------
    ValueError
        If one of them is impossible.
    """
    require(0 <= rank <= dim, f"the rank is {rank}, but the dimension {dim}")
    if bounds is not None:
        low, high = bounds if len(bounds) == 2 else (-1, -1)
        require(0 <= low <= rank <= high <= dim, f"the rank {rank} and its bounds {bounds} contradict dimension {dim}")
    require(bool(np.isfinite(noise_floor)) and noise_floor >= 0, f"the noise floor is {noise_floor}")
