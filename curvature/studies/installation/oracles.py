"""Published numbers that this installation must reproduce, from data that anyone can check.

Every oracle is a problem whose curvature is known from a certificate, a textbook or a closed form. Every value
has a public source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from curvature.linalg.eigen import spectrum
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import ggn, hessian
from curvature.models import Problem
from curvature.models.zoo import two_layer_linear
from curvature.records import Quantity, Spectrum

__all__ = ["ORACLES", "Met", "Oracle", "consult"]

# NIST Statistical Reference Datasets (public domain): Rat42 and Misra1a, nonlinear regression, response then predictor;
# Longley, linear regression, response then six predictors. https://www.itl.nist.gov/div898/strd/
RAT42 = ((8.93, 10.8, 18.59, 22.33, 39.35, 56.11, 61.73, 64.62, 67.08), (9, 14, 21, 28, 42, 57, 63, 70, 79))
MISRA1A = (
    (10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78),
    (77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0),
)
LONGLEY = (
    (60323, 83.0, 234289, 2356, 1590, 107608, 1947),
    (61122, 88.5, 259426, 2325, 1456, 108632, 1948),
    (60171, 88.2, 258054, 3682, 1616, 109773, 1949),
    (61187, 89.5, 284599, 3351, 1650, 110929, 1950),
    (63221, 96.2, 328975, 2099, 3099, 112075, 1951),
    (63639, 98.1, 346999, 1932, 3594, 113270, 1952),
    (64989, 99.0, 365385, 1870, 3547, 115094, 1953),
    (63761, 100.0, 363112, 3578, 3350, 116219, 1954),
    (66019, 101.2, 397469, 2904, 3048, 117388, 1955),
    (67857, 104.6, 419180, 2822, 2857, 118734, 1956),
    (68169, 108.4, 442769, 2936, 2798, 120445, 1957),
    (66513, 110.8, 444546, 4681, 2637, 121950, 1958),
    (68655, 112.6, 482704, 3813, 2552, 123366, 1959),
    (69564, 114.2, 502601, 3931, 2514, 125368, 1960),
    (69331, 115.7, 518173, 4806, 2572, 127852, 1961),
    (70551, 116.9, 554894, 4007, 2827, 130081, 1962),
)
# Spector & Mazzeo (1980), J. Econ. Educ. 11(2), 37-44: grade point average, test score, taught by PSI, improved.
SPECTOR = (
    (2.66, 20, 0, 0), (2.89, 22, 0, 0), (3.28, 24, 0, 0), (2.92, 12, 0, 0), (4.00, 21, 0, 1), (2.86, 17, 0, 0),
    (2.76, 17, 0, 0), (2.87, 21, 0, 0), (3.03, 25, 0, 0), (3.92, 29, 0, 1), (2.63, 20, 0, 0), (3.32, 23, 0, 0),
    (3.57, 23, 0, 0), (3.26, 25, 0, 1), (3.53, 26, 0, 0), (2.74, 19, 0, 0), (2.75, 25, 0, 0), (2.83, 19, 0, 0),
    (3.12, 23, 1, 0), (3.16, 25, 1, 1), (2.06, 22, 1, 0), (3.62, 28, 1, 1), (2.89, 14, 1, 0), (3.51, 26, 1, 0),
    (3.54, 24, 1, 1), (2.83, 27, 1, 1), (3.39, 17, 1, 1), (2.67, 24, 1, 0), (3.65, 21, 1, 1), (4.00, 23, 1, 1),
    (3.10, 21, 1, 0), (2.39, 19, 1, 1),
)  # fmt: skip


@dataclass(frozen=True)
class Met:
    """One number of an oracle, as published and as computed here.

    Attributes
    ----------
    oracle, quantity
        What it belongs to, and what it is.
    published, computed
        The two numbers.
    shown
        The computed number as a record would show it.
    expected_digits
        Significant digits that are published, or that float64 can give.
    is_bound
        Whether float64 resolves only a lower bound, which must hold.
    """

    oracle: str
    quantity: str
    published: float
    computed: float
    shown: str
    expected_digits: float
    is_bound: bool = False

    @property
    def digits(self) -> float:
        """Significant digits in which the two agree, at most 16."""
        if self.computed == self.published:
            return 16.0
        error = abs(self.computed - self.published) / max(abs(self.published), 1e-300)
        return 0.0 if not error < 1 else min(16.0, -math.log10(error))

    @property
    def passed(self) -> bool:
        """Whether they agree in as many digits as can be expected, or the bound holds."""
        return self.published >= self.computed if self.is_bound else self.digits >= self.expected_digits


@dataclass(frozen=True)
class Oracle:
    """A problem with published curvature.

    Attributes
    ----------
    name, source
        What it is, and where the numbers come from.
    compute
        Yields ``(quantity, published, computed, expected digits)``.
    """

    name: str
    source: str
    compute: Callable[[], Iterator[tuple[str, float, float | Quantity, float]]]


def consult(oracle: Oracle) -> list[Met]:
    """Compute the numbers of an oracle and compare them with the published ones.

    Parameters
    ----------
    oracle
        One of :data:`ORACLES`.

    Returns
    -------
    list of Met
        One for each number.
    """
    rows = []
    for quantity, published, computed, digits in oracle.compute():
        if isinstance(computed, Quantity):
            value, shown, is_bound = computed.value, str(computed), computed.status == "lower_bound"
        else:
            value, shown, is_bound = float(computed), f"{computed:.10g}", False
        rows.append(Met(oracle.name, quantity, published, value, shown, digits, is_bound))
    return rows


# ------------------------------------------------------------------------------------------------------------- problems


class _Saturation(nn.Module):
    """``b_1 (1 - exp(-b_2 x))``, the model of Misra1a."""

    def __init__(self, ceiling: float, rate: float) -> None:
        super().__init__()
        self.ceiling, self.rate = (nn.Parameter(torch.tensor([value])) for value in (ceiling, rate))

    def forward(self, x: Tensor) -> Tensor:
        return self.ceiling * (1 - torch.exp(-self.rate * x))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def _neuron() -> Problem:
    """Rat42: ``b_1 / (1 + exp(b_2 - b_3 x))`` is one sigmoid neuron, at the certified values."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 1, bias=False)).double()
    for parameter, value in zip(model.parameters(), (6.7359200066e-2, -2.6180768402, 7.2462237576e1), strict=True):
        parameter.data.fill_(value)
    return Problem.from_module(model, loss="half-squared-error", data=(_column(RAT42[1]), _column(RAT42[0])))


def _saturation() -> Problem:
    model = _Saturation(2.3894212918e2, 5.5015643181e-4).double()
    return Problem.from_module(model, loss="half-squared-error", data=(_column(MISRA1A[1]), _column(MISRA1A[0])))


def _regression(design: Tensor, targets: Tensor | None = None) -> Problem:
    """Least squares: the Hessian is ``X^T X / N`` at every point."""
    model = nn.Linear(design.shape[1], 1, bias=False).double()
    targets = torch.zeros(len(design), 1, dtype=torch.float64) if targets is None else targets
    return Problem.from_module(model, loss="half-squared-error", data=(design, targets))


def _logistic() -> Problem:
    """The logit of Spector & Mazzeo at its maximum-likelihood point, by Newton's method."""
    rows = torch.tensor(SPECTOR, dtype=torch.float64)
    inputs, targets = torch.cat([rows[:, :3], torch.ones(len(rows), 1).double()], 1), rows[:, 3:]
    weights = torch.zeros(4, dtype=torch.float64)
    for _ in range(30):
        chance = torch.sigmoid(inputs @ weights)
        curvature = inputs.T @ ((chance * (1 - chance))[:, None] * inputs)
        weights = weights + torch.linalg.solve(curvature, inputs.T @ (targets[:, 0] - chance))
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = weights[None]
    return Problem.from_module(model, loss="bce", data=(inputs, targets))


def _softmax() -> Problem:
    """Softmax regression of scikit-learn's digits (divided by 16, with a column of ones) at zero weights."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(np.hstack([images / 16, np.ones((len(images), 1))]))
    model = nn.Linear(65, 10, bias=False).double()
    model.weight.data.zero_()
    return Problem.from_module(model, loss="cross-entropy", data=(inputs, torch.from_numpy(labels)))


# -------------------------------------------------------------------------------------------------------------- numbers


def _standard_errors(problem: Problem) -> tuple[np.ndarray, float]:
    """Standard errors of least squares from the GGN, and the residual sum of squares."""
    count = problem.num_examples
    matrix = count * ggn(problem).dense().numpy()
    residual = 2 * count * problem.value()
    return np.sqrt(residual / (count - len(matrix)) * np.diag(np.linalg.inv(matrix))), residual


def _kappa(record: Spectrum) -> Quantity:
    return record.condition_numbers()["kappa_rank"]


Numbers = Iterator[tuple[str, float, float | Quantity, float]]


def _rat42() -> Numbers:
    problem = _neuron()
    errors, residual = _standard_errors(problem)
    yield "residual sum of squares", 8.0565229338, residual, 10
    for name, published, computed in zip(
        ("b3", "b2", "b1"), (3.4465663377e-3, 8.8295217536e-2, 1.7340283401), errors, strict=True
    ):
        yield f"standard error of {name}", published, float(computed), 9
    yield "condition number of the GGN", 4.7936e6, _kappa(spectrum(ggn(problem))), 4


def _misra1a() -> Numbers:
    problem = _saturation()
    errors, residual = _standard_errors(problem)
    yield "residual sum of squares", 1.2455138894e-1, residual, 9
    for name, published, computed in zip(("b1", "b2"), (2.7070075241, 7.2668688436e-6), errors, strict=True):
        yield f"standard error of {name}", published, float(computed), 7
    # The entries resolve the smallest eigenvalue to about one digit: float64 has 16, the condition number takes 14.
    yield "condition number of the GGN", 5.673e13, _kappa(spectrum(ggn(problem))), 1


def _longley() -> Numbers:
    rows = torch.tensor(LONGLEY, dtype=torch.float64)
    design = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), rows[:, 1:]], dim=1)
    matrix = ggn(_regression(design, rows[:, :1]))
    exact = 4.859257015e9**2
    yield "condition number, by the factor", exact, _kappa(spectrum(matrix, method="factor")), 8
    yield "condition number, by the entries", exact, _kappa(spectrum(matrix, method="dense")), 16


def _spector() -> Numbers:
    problem = _logistic()
    count = problem.num_examples
    record = spectrum(hessian(problem))
    published = (0.03930085, 1.10970649, 1.38891414, 2245.28534)
    for k, (number, computed) in enumerate(zip(published, count * record.eigenvalues, strict=True)):
        yield f"eigenvalue {k + 1} of the Hessian", number, float(computed), 7
    yield "condition number", 57130.71, _kappa(record), 7
    errors = np.sqrt(np.diag(np.linalg.inv(count * hessian(problem).dense().numpy())))
    names = ("grade point average", "test score", "PSI", "constant")
    for name, number, computed in zip(names, (1.2629, 0.1416, 1.0646, 4.9313), errors, strict=True):
        yield f"standard error of {name}", number, float(computed), 3


def _digits() -> Numbers:
    record = spectrum(ggn(_softmax()))
    descending = record.eigenvalues[::-1]
    for first, number in ((0, 1.14435283892), (9, 0.06988343635), (18, 0.06386270696)):
        group = descending[first : first + 9]
        yield f"eigenvalues {first + 1} to {first + 9}", number, float(group[np.abs(group - number).argmax()]), 10
    yield "rank", 558, float(record.rank), 16
    yield "trace", 14.412779111, record.trace, 10


def _linear_networks() -> Numbers:
    for (fan_in, hidden, fan_out), (outer, functional, whole) in (
        ((10, 20, 4), (40, 160, 184)),
        ((25, 5, 10), (150, 100, 175)),
        ((20, 15, 10), (200, 300, 400)),
    ):
        problem, _ = two_layer_linear((fan_in, hidden, fan_out), num_examples=60)
        name = f"widths {fan_in}, {hidden}, {fan_out}: rank of the "
        first, second = hessian(problem), ggn(problem)
        for matrix, published, operator in (
            ("outer-product part", outer, second),
            ("functional part", functional, first - second),
            ("Hessian", whole, first),
        ):
            yield name + matrix, published, float(spectrum(operator).rank), 16


def _regressions() -> Numbers:
    from sklearn import datasets

    def covariance(name: str, *, scaled: bool) -> np.ndarray:
        columns = torch.from_numpy(getattr(datasets, f"load_{name}")(return_X_y=True)[0])
        columns = columns - columns.mean(0)
        columns = columns / columns.std(0, correction=0) if scaled else columns
        count = len(columns)
        return spectrum(ggn(_regression(columns))).eigenvalues * (count / (count - 1))

    iris = covariance("iris", scaled=False)
    yield "iris: largest eigenvalue of the covariance", 4.22824171, float(iris[-1]), 8
    yield "iris: smallest eigenvalue", 0.02383509, float(iris[0]), 6
    for name, published in (("breast_cancer", 99828.07), ("wine", 45.5208)):
        values = covariance(name, scaled=True)
        yield f"{name}: condition number of the correlations", published, float(values[-1] / values[0]), 5


def _hilbert() -> Numbers:
    for size, published, digits in ((5, 4.766073e5, 6), (10, 1.602e13, 2)):
        index = torch.arange(size, dtype=torch.float64)
        matrix = 1 / (1 + index[:, None] + index)
        operator = SymmetricOperator.from_dense(matrix, positive_semidefinite=True)
        yield f"{size} x {size}: condition number", published, _kappa(spectrum(operator)), digits


ORACLES = (
    Oracle("NIST Rat42, a sigmoid neuron", "itl.nist.gov/div898/strd", _rat42),
    Oracle("NIST Misra1a", "itl.nist.gov/div898/strd", _misra1a),
    Oracle("Longley, linear regression", "itl.nist.gov/div898/strd", _longley),
    Oracle("Spector & Mazzeo, logistic regression", "J. Econ. Educ. 11(2), 1980; statsmodels", _spector),
    Oracle("softmax regression at zero, digits", "closed form, Kronecker product", _digits),
    Oracle("two-layer linear networks", "Singh, Bachmann & Hofmann 2021, arXiv:2106.16225", _linear_networks),
    Oracle("linear regression, scikit-learn's data", "covariance matrices of the data", _regressions),
    Oracle("Hilbert matrix", "closed form of the inverse", _hilbert),
)
