"""What is compared: each work yields its cases, and each case our method, the peers' methods and the check of results.

``WORKS`` runs from short to long, so that an interrupted run has most of the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import curvature as cv
from benchmarks import adapter, peers, truth
from benchmarks.networks import Net, Scale, network, normalized
from benchmarks.timing import Case, Contender


def ours(name: str, run: Callable[[], Any], **details: Any) -> Contender:
    """Make a method of this package from the callable that is timed."""
    return Contender(name, lambda: run, is_ours=True, **details)


def layer_sizes(net: Net) -> list[int]:
    """Weights and biases of each layer, in order."""
    return [sum(p.numel() for p in layer.parameters()) for layer in net.model if list(layer.parameters(recurse=False))]


def contraction_flops(net: Net, *, hessian: bool) -> float:
    """Operations of the matrix products that build the entries of a chain of layers."""
    sizes, count = layer_sizes(net), len(net.inputs)
    total = 0.0
    for k, size in enumerate(sizes):
        total += count * size**2 / 2
        total += sum((4 if hessian and k - m > 1 else 2) * count * size * sizes[m] for m in range(k))
    return total


def product_flops(net: Net) -> float:
    """Operations of one product after everything linear has been computed."""
    first, *rest = layer_sizes(net)
    return len(net.inputs) * (4 * first + 12 * sum(rest))


def gradient_width(net: Net) -> int:
    """Inner products that one entry of a Gram matrix of gradients needs, one side of each layer at a time."""
    return sum(sum(shape) + 1 for shape in net.shapes.values() if len(shape) == 2)


# ------------------------------------------------------------------------------------------------------ dense matrices


def hessian(scale: Scale) -> Iterator[Case]:
    """Dense Hessian of the small network."""
    for dtype in scale.dtypes:
        net = network(scale, "small", dtype)
        contenders = (
            ours("curvature", lambda net=net: cv.hessian(net.problem).dense()),
            peers.curvlinops_dense(net, "Hessian"),
            *peers.torch_hessians(net),
        )
        check = truth.matrix_check(net, truth.hessian_products)
        yield Case("hessian", net.size, dtype, contenders, check, contraction_flops(net, hessian=True))


def hessian_large(scale: Scale) -> Iterator[Case]:
    """Dense Hessian of the large network."""
    for dtype in scale.dtypes:
        net = network(scale, "large", dtype)
        contenders = (
            ours("curvature", lambda net=net: cv.hessian(net.problem).dense()),
            peers.curvlinops_dense(net, "Hessian"),
        )
        check = truth.matrix_check(net, truth.hessian_products)
        yield Case("hessian-large", net.size, dtype, contenders, check, contraction_flops(net, hessian=True))


def weight_norm(scale: Scale) -> Iterator[Case]:
    """Dense Hessian in the coordinates of weight norm; peers on a composite weight norm, then on PyTorch's own."""
    for dtype in scale.dtypes:
        fused, composite = (normalized(scale, dtype, fused=fused) for fused in (True, False))
        problem = fused.problem
        on_composite, on_fused = "composite weight norm", "torch's own weight norm"
        plain = peers.curvlinops_dense(composite, "Hessian")
        stock = peers.curvlinops_dense(fused, "Hessian")
        contenders = (
            ours("curvature", lambda problem=problem: cv.pullback(cv.hessian(problem), problem.chart).dense()),
            Contender(
                "torch.autograd.grad, batched",
                lambda net=composite: partial(peers.dense_batched, net),
                note=f"{on_composite}, 32 rows at a time",
            ),
            Contender("curvlinops", plain.prepare, needs="curvlinops", note=f"{on_composite}; {plain.note}"),
            Contender("curvlinops, stock", stock.prepare, needs="curvlinops", note=on_fused),
            Contender(
                "PyHessian, stock",
                lambda net=fused: lambda: peers.by_columns(peers.pyhessian_product(net), net, 64),
                needs="pyhessian",
                note=f"{on_fused}; a loop of its products",
            ),
            Contender(
                "hessian-eigenthings, stock",
                partial(peers.eigenthings_one_by_one, fused),
                needs="hessian_eigenthings",
                note=f"{on_fused}; a loop",
            ),
        )
        check = truth.matrix_check(composite, truth.hessian_products)
        flops = contraction_flops(network(scale, "small", dtype), hessian=True)
        yield Case("weight-norm", composite.size, dtype, contenders, check, flops)


def ggn(scale: Scale) -> Iterator[Case]:
    """Dense GGN of the small network."""
    for dtype in scale.dtypes:
        net = network(scale, "small", dtype)
        contenders = (
            ours("curvature", lambda net=net: cv.ggn(net.problem).dense()),
            peers.curvlinops_dense(net, "GGN"),
            peers.jacobian_ggn(net),
        )
        check = truth.matrix_check(net, truth.ggn_products)
        yield Case("ggn", net.size, dtype, contenders, check, contraction_flops(net, hessian=False))


def ggn_few(scale: Scale) -> Iterator[Case]:
    """The smaller matrix that has the non-zero spectrum of a GGN: the large network on few examples."""
    net = network(scale, "large", torch.float64, num_examples=scale.few_examples)
    side = len(net.inputs) * 9
    check = truth.top_check(net, scale.top, truth.ggn_products)
    contenders = (
        ours(
            "curvature, Gram matrix",
            lambda: adapter.gram(cv.ggn(net.problem)),
            check=lambda matrix: check(np.linalg.eigvalsh(matrix.numpy())),
            note="the smaller side, N (C - 1)",
        ),
        ours("curvature, dense", lambda: cv.ggn(net.problem).dense()),
        peers.curvlinops_dense(net, "GGN"),
        peers.jacobian_ggn(net),
    )
    flops = side**2 * gradient_width(net)
    yield Case("ggn-few", net.size, net.dtype, contenders, truth.matrix_check(net, truth.ggn_products), flops)


def gradients(scale: Scale) -> Iterator[Case]:
    """Gram matrix ``G G^T / N`` of the per-example gradients (empirical Fisher), large network."""
    for dtype in scale.dtypes:
        net = network(scale, "large", dtype)
        contenders = (
            ours("curvature", lambda net=net: adapter.gram(cv.empirical_fisher(net.problem))),
            peers.per_example_gradients(net),
            peers.backpack_gradients(net),
        )
        flops = len(net.inputs) ** 2 * gradient_width(net)
        yield Case("gradients", net.size, dtype, contenders, truth.gram_check(net), flops)


def gauge(scale: Scale) -> Iterator[Case]:
    """Another gauge of weight norm after the first matrix: what each further curve of a sweep costs."""
    for name in ("small", "large"):
        net = network(scale, name, torch.float64)
        matrix = adapter.materialized(cv.hessian(net.problem))
        chart = cv.WeightNorm(stretch=3.0)

        def pulled_back(dense: Tensor, net: Net = net, chart: cv.WeightNorm = chart) -> float:
            local = chart.at(net.problem.layout, net.problem.weights)
            vectors = truth.seeded_vectors(len(local.coordinates))
            expected = truth.second_products(
                lambda coordinates: net.loss(local.to_weights(coordinates)), local.coordinates, vectors
            )
            return truth.distance(dense @ vectors, expected)

        contenders = (
            ours(
                "curvature, another gauge",
                lambda matrix=matrix, chart=chart: cv.pullback(matrix, chart).dense(),
                check=pulled_back,
            ),
            ours("curvature, the first matrix", lambda net=net: cv.hessian(net.problem).dense()),
        )
        check = truth.matrix_check(net, truth.hessian_products)
        yield Case("gauge", net.size, net.dtype, contenders, check)


def cnn(scale: Scale) -> Iterator[Case]:
    """Dense Hessian and GGN of a small convolutional network."""
    net = network(scale, "cnn", torch.float64)
    contenders = (
        ours("curvature", lambda: cv.hessian(net.problem).dense()),
        peers.curvlinops_dense(net, "Hessian"),
        peers.jacrev_grad(net),
    )
    yield Case("cnn-hessian", net.size, net.dtype, contenders, truth.matrix_check(net, truth.hessian_products))
    contenders = (
        ours("curvature", lambda: cv.ggn(net.problem).dense()),
        peers.curvlinops_dense(net, "GGN"),
        peers.jacobian_ggn(net),
    )
    yield Case("cnn-ggn", net.size, net.dtype, contenders, truth.matrix_check(net, truth.ggn_products))


# ------------------------------------------------------------------------------------- products, spectra and densities


def products(scale: Scale) -> Iterator[Case]:
    """Hessian products with one vector and with a block."""
    for name in ("small", "large"):
        for dtype in scale.dtypes:
            for count in (1, scale.block):
                net = network(scale, name, dtype)
                vectors = truth.probes(net, count).to(dtype)
                operator = cv.hessian(net.problem)
                contenders = (
                    ours("curvature", lambda operator=operator, vectors=vectors: operator @ vectors),
                    *peers.products(net, vectors),
                )
                expected = cache(partial(truth.hessian_products, net.double, vectors.double()))

                def check(result: Tensor, expected: Callable[[], Tensor] = expected) -> float:
                    return truth.distance(result, expected())

                size = f"{net.size}, {count} vector{'s' if count > 1 else ''}"
                yield Case("products", size, dtype, contenders, check, count * product_flops(net))


def top(scale: Scale) -> Iterator[Case]:
    """Largest Hessian eigenvalues to a relative 1e-6."""
    net = network(scale, "small", torch.float64)
    count, check = scale.top, truth.top_check(net, scale.top)
    operator = cv.hessian(net.problem)
    contenders = (
        ours(
            "curvature",
            lambda: adapter.largest_eigenvalues(operator, count, tolerance=1e-6, checks=False),
            note="stops by itself",
        ),
        *peers.largest(net, count, check),
    )
    yield Case("top", net.size, net.dtype, contenders, check, (2 * count + 4) * product_flops(net))


def spectrum(scale: Scale) -> Iterator[Case]:
    """Every eigenvalue, exactly, compared with approximate densities."""
    net = network(scale, "small", torch.float64)

    def exact() -> truth.Density:
        values = cv.spectrum(cv.hessian(net.problem), checks=False).eigenvalues
        return values, np.ones_like(values)

    contenders = (ours("curvature, exact", exact), *peers.densities(net, *scale.density))
    flops = contraction_flops(net, hessian=True)
    yield Case("spectrum", net.size, net.dtype, contenders, truth.density_check(net), flops, net.dim)


def spectrum_large(scale: Scale) -> Iterator[Case]:
    """Every eigenvalue of the large Hessian, from the network."""
    net = network(scale, "large", torch.float64)

    def peer() -> Callable[[], np.ndarray]:
        dense = peers.curvlinops_dense(net, "Hessian").prepare()
        return lambda: np.linalg.eigvalsh(dense().numpy())

    contenders = (
        ours("curvature", lambda: cv.spectrum(cv.hessian(net.problem), checks=False).eigenvalues),
        Contender(
            "curvlinops + LAPACK", peer, needs="curvlinops", note="identity in blocks, then numpy.linalg.eigvalsh"
        ),
    )
    flops = contraction_flops(net, hessian=True)
    yield Case("spectrum-large", net.size, net.dtype, contenders, truth.top_check(net, scale.top), flops, net.dim)


def density(scale: Scale) -> Iterator[Case]:
    """Stochastic Lanczos density of the small network."""
    return _densities(scale, "density", "small", scale.density)


def density_large(scale: Scale) -> Iterator[Case]:
    """Stochastic Lanczos density of the large network."""
    return _densities(scale, "density-large", "large", scale.density_large)


def _densities(scale: Scale, work: str, name: str, settings: tuple[int, int]) -> Iterator[Case]:
    for dtype in scale.dtypes:
        net = network(scale, name, dtype)
        operator = cv.hessian(net.problem)
        contenders = (
            ours("curvature", lambda operator=operator: adapter.spectral_density(operator, *settings)),
            *peers.densities(net, *settings),
        )
        check = truth.density_check(net) if name == "small" else truth.moment_check(net)
        yield Case(work, net.size, dtype, contenders, check, settings[0] * settings[1] * product_flops(net))


WORKS: dict[str, Callable[[Scale], Iterator[Case]]] = {
    "products": products,
    "top": top,
    "gauge": gauge,
    "gradients": gradients,
    "ggn": ggn,
    "weight-norm": weight_norm,
    "hessian": hessian,
    "cnn": cnn,
    "spectrum": spectrum,
    "density": density,
    "density-large": density_large,
    "ggn-few": ggn_few,
    "hessian-large": hessian_large,
    "spectrum-large": spectrum_large,
}
