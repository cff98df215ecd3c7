"""What the summaries of a spectrum read: all eigenvalues of one matrix, and how far they can be trusted."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from curvature.records.where import Where

__all__ = ["MeasuredEigenvalues", "sizes_with_intervals"]


class MeasuredEigenvalues(Protocol):
    """The part of a :class:`~curvature.records.Spectrum` that condition numbers need; see there for each attribute."""

    @property
    def where(self) -> Where:
        """Which matrix this is."""

    @property
    def eigenvalues(self) -> np.ndarray:
        """Ascending, ``(dim,)``."""

    @property
    def dim(self) -> int:
        """Number of eigenvalues."""

    @property
    def method(self) -> str:
        """How they were computed."""

    @property
    def positive_semidefinite(self) -> bool:
        """Whether the definition guarantees it."""

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
        """Smallest and largest possible rank, where they were determined."""

    @property
    def possible_ranks(self) -> tuple[int, int]:
        """Smallest and largest possible rank; equal where the rank is resolved."""

    @property
    def gradient_weights(self) -> np.ndarray | None:
        """Squared components of the loss gradient along the eigenvectors."""

    @property
    def inertia(self) -> tuple[int, int, int]:
        """Numbers of negative, zero and positive eigenvalues."""

    @property
    def on_rank(self) -> np.ndarray:
        """The ``rank`` largest eigenvalues in absolute value, by descending absolute value."""

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends for the ascending eigenvalues."""


def sizes_with_intervals(spectrum: MeasuredEigenvalues) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the absolute eigenvalues, descending, with their lower and upper ends.

    Parameters
    ----------
    spectrum
        All eigenvalues.

    Returns
    -------
    tuple of ndarray
        Three of shape ``(dim,)``.
    """
    order = np.argsort(-np.abs(spectrum.eigenvalues), kind="stable")
    sizes = np.abs(spectrum.eigenvalues)[order]
    low, high = (end[order] for end in spectrum.intervals())
    across = (low < 0) & (high > 0)
    return sizes, np.where(across, 0, np.minimum(np.abs(low), np.abs(high))), np.maximum(np.abs(low), np.abs(high))
