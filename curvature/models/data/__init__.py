"""Data as users have them, read once and in order into new tensors."""

from curvature.models.data.materialization import DataLike, Packed, materialize, refuse_non_finite

__all__ = ["DataLike", "Packed", "materialize", "refuse_non_finite"]
