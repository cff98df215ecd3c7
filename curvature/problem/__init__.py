"""A model with a loss on fixed data, at a point, in its weights."""

from curvature.problem.data import materialize
from curvature.problem.problem import Problem

__all__ = ["Problem", "materialize"]
