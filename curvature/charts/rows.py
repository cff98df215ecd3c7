"""Rows of normalized weights: their lengths, values given per row, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry

PAPER_SCALE = 0.05  # Salimans & Kingma (2016), section 3: v is drawn from N(0, 0.05^2)


def row_norms(rows: Tensor) -> Tensor:
    """Length of each row of ``(rows, length)``."""
    return torch.linalg.vector_norm(rows, dim=1)


def row_values(values: Mapping[str, Tensor], entry: Entry, like: Tensor, what: str) -> Tensor:
    """Positive values, one per row, that the user gave for this entry under the argument ``what``."""
    if entry.name not in values or values[entry.name].numel() != entry.num_rows:
        raise ConfigurationError(f"{what} for {entry.name!r} must hold {entry.num_rows} row values.")
    found = values[entry.name].detach().to(like).reshape(-1)
    if not (torch.isfinite(found) & (found > 0)).all():
        raise ConfigurationError(f"{what} for {entry.name!r} must be positive and finite.")
    return found


def refuse_zero_rows(lengths: Tensor, entry: Entry, what: str) -> None:
    """Raise an error that names the layer and the first row whose length is zero."""
    zero = (lengths == 0).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"{what} layer {entry.layer!r} ({entry.name}) is zero in row {zero[0]}"
            + (f" and {len(zero) - 1} more" if len(zero) > 1 else "")
            + ": weight normalization has no direction there. Give the row a non-zero value, or leave the layer "
            "out (layers=)."
        )
