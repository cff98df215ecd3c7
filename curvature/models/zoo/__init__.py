"""Small seeded models and data without a download; some with curvature known on paper."""

from curvature.models.zoo.datasets import DATA, breast_cancer, characters, diabetes, digits, housing, wine
from curvature.models.zoo.networks import MODELS, cnn, mlp
from curvature.models.zoo.problems import digits_problem, linear_regression, softmax_regression, two_layer_linear
from curvature.models.zoo.residual import residual_mlp, transformer

__all__ = [
    "DATA",
    "MODELS",
    "breast_cancer",
    "characters",
    "cnn",
    "diabetes",
    "digits",
    "digits_problem",
    "housing",
    "linear_regression",
    "mlp",
    "residual_mlp",
    "softmax_regression",
    "transformer",
    "two_layer_linear",
    "wine",
]
