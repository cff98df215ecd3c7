"""Numbers of version 0.1: every matrix in every chart on six small networks, frozen before the code was rebuilt.

``tests/reference/version_0_1.json.gz`` was written by the code of version 0.1 (commit 1136912): 396 spectra with their
ranks, floors and condition numbers. Another BLAS rounds in another way, so eigenvalues are compared relative to the
largest, and condition numbers only where their interval says that they are resolved.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import curvature as cv
from oracles import built

REFERENCE = json.loads(gzip.decompress((Path(__file__).parent / "reference" / "version_0_1.json.gz").read_bytes()))
CHARTS = {
    "standard": None,
    "canonical": cv.WeightNorm(),
    "stretch3": cv.WeightNorm(stretch=3.0),
    "paper": cv.WeightNorm("paper"),
    "scaled": cv.ScaledStandard(),
    "placebo": cv.Placebo(seed=3),
}
MATRICES = {
    "hessian": cv.hessian,
    "ggn": cv.ggn,
    "fisher": cv.fisher,
    "empirical_fisher": cv.empirical_fisher,
    "gradient_covariance": cv.gradient_covariance,
    "monte_carlo_fisher": lambda problem: cv.monte_carlo_fisher(problem, 3, seed=5),
}


# Resolved in version 0.1 by a gap of the entries across the noise floor, which does not show that the eigenvalues below
# it are zero. The Hessian has no factor that could show it.
OPEN = {
    f"{network}/hessian/{form}": bounds
    for network, bounds in (("relu-mlp", (73, 74)), ("deep-linear", (30, 32)))
    for form in ("standard", "scaled", "scaled/effective")
}


class Gated(nn.Module):
    """A model without a structure that closed forms know."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.c(torch.tanh(self.a(inputs)) * torch.sigmoid(self.b(inputs)))


def draw(num_examples, shape, *, classes=None, outputs=None):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_examples, *shape, generator=generator, dtype=torch.float64)
    if classes:
        return inputs, torch.randint(classes, (num_examples,), generator=generator)
    return inputs, torch.randn(num_examples, outputs, generator=generator, dtype=torch.float64)


def binary(data):
    inputs, targets = data
    return inputs, (targets > 0).double()


NETWORKS = {
    "tanh-mlp": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        "cross-entropy",
        lambda: draw(20, (6,), classes=3),
    ),
    "relu-mlp": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)),
        "mse",
        lambda: draw(25, (5,), outputs=2),
    ),
    "softplus-bce": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 2)),
        "binary-cross-entropy",
        lambda: binary(draw(15, (4,), outputs=2)),
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.Tanh(),
            nn.Conv2d(2, 2, 2, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        "cross-entropy",
        lambda: draw(16, (1, 4, 4), classes=3),
    ),
    "gated-generic": (Gated, "half-squared-error", lambda: draw(18, (4,), outputs=2)),
}


def problem_of(network):
    if network == "deep-linear":
        return cv.zoo.two_layer_linear((5, 4, 3), num_examples=50)[0]
    build, loss, data = NETWORKS[network]
    return cv.Problem.from_module(built(build), loss=loss, data=data())


def assert_open(spectrum, frozen, bounds):
    """The rank lies between bounds that hold the old one, and no condition number excludes the old one."""
    assert (spectrum.rank, spectrum.possible_ranks) == (frozen["rank"], bounds)
    values = spectrum.condition_numbers().values
    assert values.keys() == frozen["condition"].keys()
    for name, (number, status) in frozen["condition"].items():
        now = values[name]
        if status != "resolved" or now.low is None:
            assert now.status == status, name
        else:
            assert now.low <= number * (1 + 1e-9), name
            assert number <= now.high * (1 + 1e-9), name


def assert_unchanged(spectrum, frozen, bounds=None):
    expected = np.array(frozen["eigenvalues"])
    np.testing.assert_allclose(spectrum.eigenvalues, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    seed = ", seed=3" if frozen["chart"] == "placebo" else ""  # which version 0.1 did not name
    assert (spectrum.method, spectrum.chart, spectrum.gauge) == (
        frozen["method"], frozen["chart"], frozen["gauge"] + seed,
    )  # fmt: skip
    if bounds is not None:
        assert_open(spectrum, frozen, bounds)
        return
    assert (spectrum.rank, list(spectrum.possible_ranks)) == (frozen["rank"], frozen["bounds"])
    values = spectrum.condition_numbers().values
    assert values.keys() == frozen["condition"].keys()
    for name, (number, status) in frozen["condition"].items():
        assert values[name].status == status, name
        low, high = values[name].low, values[name].high
        width = 0.0 if low is None or high is None else (high - low) / abs(number)  # what rounding may do to it
        if status == "resolved":
            assert values[name].value == pytest.approx(number, rel=max(1e-12, width)), name


def test_the_reference_is_complete():
    forms = ["standard", *(f"{chart}{form}" for chart in list(CHARTS)[1:] for form in ("", "/effective"))]
    names = {f"{n}/{m}/{f}" for n in (*NETWORKS, "deep-linear") for m in MATRICES for f in forms}
    assert set(REFERENCE) == names
    assert len(REFERENCE) == 396


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("network", [*NETWORKS, "deep-linear"])
def test_numbers_are_those_of_version_0_1(network, matrix):
    operator = MATRICES[matrix](problem_of(network))
    for name, chart in CHARTS.items():
        moved = operator if chart is None else cv.pullback(operator, chart)
        key = f"{network}/{matrix}/{name}"
        assert_unchanged(cv.spectrum(moved), REFERENCE[key], OPEN.get(key))
        if chart is not None:
            effective = cv.spectrum(cv.effective(operator, chart))
            assert_unchanged(effective, REFERENCE[f"{key}/effective"], OPEN.get(f"{key}/effective"))
