"""A model with a loss on fixed data, at a point, in its weights."""

from curvature.models.data import Packed, materialize
from curvature.models.nearest import nearest
from curvature.models.problem import Problem

__all__ = ["Packed", "Problem", "materialize", "nearest"]
