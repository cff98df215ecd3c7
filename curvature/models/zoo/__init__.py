"""Small seeded models and data without a download; some with curvature known on paper."""

from curvature.models.zoo.datasets import DATA, breast_cancer, diabetes, digits, housing, wine
from curvature.models.zoo.networks import MODELS, cnn, mlp
from curvature.models.zoo.problems import digits_problem, linear_regression, softmax_regression, two_layer_linear

__all__ = [
    "DATA",
    "MODELS",
    "breast_cancer",
    "cnn",
    "diabetes",
    "digits",
    "digits_problem",
    "housing",
    "linear_regression",
    "mlp",
    "softmax_regression",
    "two_layer_linear",
    "wine",
]
