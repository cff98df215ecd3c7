"""The interface that condition numbers need: all eigenvalues of a matrix and their accuracy."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from curvature.arrays import Float
from curvature.records.where import Where

__all__ = ["MeasuredEigenvalues", "sizes_with_intervals"]


class MeasuredEigenvalues(Protocol):
    """The part of :class:`~curvature.records.Spectrum` that condition numbers read; its docstring has the details."""

    @property
    def where(self) -> Where:
        """Header: matrix, chart, gauge, block."""

    @property
    def eigenvalues(self) -> Float[np.ndarray, "dim"]:
        """Ascending, ``(dim,)``."""

    @property
    def dim(self) -> int:
        """Number of eigenvalues."""

    @property
    def method(self) -> str:
        """How they were computed."""

    @property
    def positive_semidefinite(self) -> bool:
        """Whether the definition of the matrix guarantees it."""

    @property
    def noise_floor(self) -> float:
        """Absolute value below which an eigenvalue cannot be told from zero."""

    @property
    def rank(self) -> int:
        """Number of eigenvalues that are not zero."""

    @property
    def rank_rule(self) -> str:
        """Where the rank comes from."""

    @property
    def rank_bounds(self) -> tuple[int, int] | None:
        """Smallest and largest possible rank; None where these were not determined."""

    @property
    def possible_ranks(self) -> tuple[int, int]:
        """Smallest and largest possible rank; equal where the rank is resolved."""

    @property
    def gradient_weights(self) -> Float[np.ndarray, "dim"] | None:
        """Squared components of the loss gradient along the eigenvectors; None if not computed."""

    @property
    def inertia(self) -> tuple[int, int, int]:
        """Numbers of negative, zero and positive eigenvalues."""

    @property
    def on_rank(self) -> Float[np.ndarray, "values"]:
        """The ``rank`` largest eigenvalues in absolute value, by descending absolute value."""

    def intervals(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
        """Lower and upper ends of the intervals of the ascending eigenvalues."""


def sizes_with_intervals(
    spectrum: MeasuredEigenvalues,
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
    """Sort the absolute eigenvalues in descending order, with the ends of their intervals.

    Parameters
    ----------
    spectrum
        All eigenvalues.

    Returns
    -------
    tuple of ndarray
        Absolute values, lower ends and upper ends, ``(dim,)`` each; a lower end is zero if the interval contains zero.
    """
    order = np.argsort(-np.abs(spectrum.eigenvalues), kind="stable")
    sizes = np.abs(spectrum.eigenvalues)[order]
    low, high = (end[order] for end in spectrum.intervals())
    across = (low < 0) & (high > 0)
    return sizes, np.where(across, 0, np.minimum(np.abs(low), np.abs(high))), np.maximum(np.abs(low), np.abs(high))
