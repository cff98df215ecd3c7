"""The record of one checkpoint of a training run: the curvature at its weights."""

from __future__ import annotations

from dataclasses import dataclass

from curvature.records.quantity import Quantity

__all__ = ["CheckpointSummary", "MatrixSummary"]


@dataclass(frozen=True)
class MatrixSummary:
    r"""One matrix at one checkpoint.

    Attributes
    ----------
    matrix, chart, gauge
        Which matrix, in which coordinates.
    dim
        Its dimension.
    eigenvalues
        The largest ones, descending.
    smallest
        The smallest (most negative) eigenvalue above the noise floor; undefined where not every one was computed.
    trace
        Sum of the eigenvalues.
    kappa_80, effective_rank
        Condition number without the smallest fifth of the non-zero spectrum, and $\exp$ of the entropy of the
        eigenvalues' shares of the trace; undefined where not every eigenvalue was computed.
    method
        ``"dense"``, ``"factor"`` or ``"gram"``: every eigenvalue; ``"lanczos"``: the largest ones, and an estimate of
        the trace.
    warnings
        What to know before using the numbers, in words.
    """

    matrix: str
    chart: str
    gauge: str
    dim: int
    eigenvalues: tuple[Quantity, ...]
    smallest: Quantity
    trace: Quantity
    kappa_80: Quantity
    effective_rank: Quantity
    method: str
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Matrix and coordinates: ``"ggn, weight-norm (paper)"``."""
        return f"{self.matrix}, {self.chart}" + (f" ({self.gauge})" if self.gauge != "-" else "")


@dataclass(frozen=True)
class CheckpointSummary:
    """The curvature at the weights of one checkpoint.

    Attributes
    ----------
    checkpoint
        Its path in the folder.
    step
        Training step, from the file or its name; None if neither has one.
    file_sha256
        Hash of the file.
    loss, gradient_norm
        Value of the loss, and Euclidean norm of its gradient in the weights.
    matrices
        One for each matrix in each chart.
    """

    checkpoint: str
    step: int | None
    file_sha256: str
    loss: float
    gradient_norm: float
    matrices: tuple[MatrixSummary, ...]
