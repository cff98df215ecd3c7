"""Checks of this installation: published numbers, and the second derivatives of the installed PyTorch."""

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
