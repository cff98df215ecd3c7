"""The references that judge the results, the networks, and our own results at toy size."""

import math

import numpy as np
import pytest
import torch

from benchmarks import truth
from benchmarks.cases import WORKS
from benchmarks.networks import FAST, STRETCH, network, normalized


@pytest.fixture(scope="module")
def net():
    return network(FAST, "small", torch.float64)


@pytest.mark.parametrize("which", ["hessian_products", "ggn_products"])
def test_the_oracle_is_the_dense_matrix(net, which):
    """The judge itself, by a third route: ``torch.autograd.functional``, or Jacobians written out."""
    vectors = truth.probes(net)
    if which == "hessian_products":
        matrix = torch.autograd.functional.hessian(net.loss, net.point)
    else:
        jacobian = torch.autograd.functional.jacobian(net.outputs, net.point)
        share = torch.softmax(net.outputs(net.point), dim=1).detach()
        middle = torch.diag_embed(share) - share[:, :, None] * share[:, None, :]
        matrix = torch.einsum("ncp, ncd, ndq -> pq", jacobian, middle, jacobian) / len(share)
    products = getattr(truth, which)
    assert truth.distance(matrix @ vectors, products(net, vectors)) < 1e-13
    check = truth.matrix_check(net, products)
    assert check(matrix) < 1e-13
    wrong = matrix.clone()
    wrong[3, 5] += 1e-6 * matrix.abs().max()
    assert check(wrong) > 1e-8


def test_single_precision_is_judged_in_double_at_its_own_weights():
    net = network(FAST, "small", torch.float32)
    assert net.double.dtype == torch.float64
    assert torch.equal(net.double.point, net.point.double())
    check = truth.matrix_check(net, truth.hessian_products)
    assert check(torch.autograd.functional.hessian(net.double.loss, net.double.point).float()) < 1e-6


def test_both_weight_norms_are_the_same_function_in_the_same_coordinates():
    fused, composite = (normalized(FAST, torch.float64, fused=fused) for fused in (True, False))
    assert torch.equal(fused.point, composite.point)
    assert list(fused.shapes) == list(composite.shapes)
    assert torch.allclose(fused.loss(fused.point), composite.loss(composite.point), rtol=1e-14)
    problem = fused.problem
    chart = problem.chart.at(problem.layout, problem.weights)
    assert torch.allclose(chart.coordinates, composite.point, rtol=1e-14)
    assert chart.stretches.mean() == pytest.approx(STRETCH)


def test_a_density_is_as_far_from_the_spectrum_as_its_nodes(net):
    values = truth.exact_values(net)
    check = truth.density_check(net)
    assert check((values, np.ones_like(values))) < 1e-14
    shifted = values + 0.01 * np.ptp(values)
    assert check((shifted, np.ones_like(values))) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["weight-norm", "top", "gradients", "ggn-few", "cnn"])
def test_our_results_at_toy_size_are_right(name):
    for case in WORKS[name](FAST):
        for contender in (c for c in case.contenders if c.is_ours):
            error = (contender.check or case.check)(contender.prepare()())
            assert error < (1e-5 if case.dtype == torch.float32 else 1e-6 if name == "top" else 1e-11)


def test_stock_weight_norm_is_wrong_by_double_backward():
    """The row that the benchmark shows: PyTorch's own second derivative, not a peer's mistake."""
    fused, composite = (normalized(FAST, torch.float64, fused=fused) for fused in (True, False))
    vectors = truth.probes(fused)
    error = truth.distance(truth.hessian_products(fused, vectors), truth.hessian_products(composite, vectors))
    assert error > 1e-2
    assert not math.isnan(error)
