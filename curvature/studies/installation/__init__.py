"""What this installation computes: public oracles, and the second derivatives of the PyTorch that is installed."""

from curvature.studies.installation.derivatives import (
    RAISES,
    REFUSED,
    RIGHT,
    ROUTES,
    TOLERANCE,
    WRONG,
    audit_cases,
)
from curvature.studies.installation.oracles import ORACLES, Met, Oracle, consult

__all__ = [
    "ORACLES",
    "RAISES",
    "REFUSED",
    "RIGHT",
    "ROUTES",
    "TOLERANCE",
    "WRONG",
    "Met",
    "Oracle",
    "audit_cases",
    "consult",
]
