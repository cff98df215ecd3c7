"""Evidence: from measurements to verdicts on the claims, and where a difference between the arms comes from."""

from curvature.studies.evidence.across import pooled_sources, pooled_verdicts
from curvature.studies.evidence.decomposition import (
    LINEAR_PART,
    SOURCES,
    decompose,
    decomposition,
    part_intervals,
)
from curvature.studies.evidence.family import verdicts
from curvature.studies.evidence.inference import (
    THRESHOLD,
    adjust,
    decide,
    holm,
    interval_at,
    median_interval,
    paired_interval,
)
from curvature.studies.evidence.pairs import last_checkpoint, learning_rate_width, log_ratio
from curvature.studies.evidence.pooling import pool

__all__ = [
    "LINEAR_PART",
    "SOURCES",
    "THRESHOLD",
    "adjust",
    "decide",
    "decompose",
    "decomposition",
    "holm",
    "interval_at",
    "last_checkpoint",
    "learning_rate_width",
    "log_ratio",
    "median_interval",
    "paired_interval",
    "part_intervals",
    "pool",
    "pooled_sources",
    "pooled_verdicts",
    "verdicts",
]
