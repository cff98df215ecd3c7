"""A model with a loss on fixed data, at a point, in its weights."""

from curvature.models.adapters import effective_weights
from curvature.models.data import Packed, materialize
from curvature.models.nearest import nearest
from curvature.models.problem import Problem

__all__ = ["Packed", "Problem", "effective_weights", "materialize", "nearest"]
