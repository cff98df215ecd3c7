"""Data as users have them, read once and in order into new tensors, or streamed."""

from curvature.models.data.materialization import DataLike, Packed, materialize, refuse_non_finite
from curvature.models.data.sources import open_stream
from curvature.models.data.stream import Stream

__all__ = ["DataLike", "Packed", "Stream", "materialize", "open_stream", "refuse_non_finite"]
