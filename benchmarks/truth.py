"""What the results of the benchmark must be, by code that no timed method shares.

Every check takes the result of a method and returns its relative error. References are products by plain double
backward in float64 (for the GGN: forward over reverse).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor

from benchmarks.networks import Net

Products = Callable[[Net, Tensor], Tensor]
Density = tuple[np.ndarray, np.ndarray]


def probes(net: Net, count: int = 4) -> Tensor:
    """Fixed random vectors by which matrices are compared."""
    return seeded_vectors(net.dim, count)


def seeded_vectors(dim: int, count: int = 4) -> Tensor:
    """Random vectors of any length, from one seed."""
    return torch.randn(dim, count, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def hessian_products(net: Net, vectors: Tensor) -> Tensor:
    """Double backward, graph kept, one vector at a time."""
    return second_products(net.loss, net.point, vectors)


def second_products(loss: Callable[[Tensor], Tensor], point: Tensor, vectors: Tensor) -> Tensor:
    """Hessian of any scalar function times vectors, by double backward."""
    point = point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point), point, create_graph=True)
    return torch.stack([torch.autograd.grad(slope, point, v, retain_graph=True)[0] for v in vectors.T], dim=1)


def ggn_products(net: Net, vectors: Tensor) -> Tensor:
    """Forward mode to the outputs, the softmax Hessian by its formula, reverse mode back."""
    outputs, pull = torch.func.vjp(net.outputs, net.point)
    share = torch.softmax(outputs, dim=1)
    columns = []
    for v in vectors.T:
        pushed = torch.func.jvp(net.outputs, (net.point,), (v.contiguous(),))[1]
        pushed = share * (pushed - (share * pushed).sum(dim=1, keepdim=True))
        columns.append(pull(pushed / len(outputs))[0])
    return torch.stack(columns, dim=1)


def gram_products(net: Net, vectors: Tensor) -> Tensor:
    """``G G^T V / N`` without forming the per-example gradients ``G``."""
    terms, pull = torch.func.vjp(net.terms, net.point)
    columns = [torch.func.jvp(net.terms, (net.point,), (pull(v.contiguous())[0],))[1] for v in vectors.T]
    return torch.stack(columns, dim=1) / len(terms)


def distance(result: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((result.double() - expected).abs().max() / expected.abs().max())


def matrix_check(net: Net, products: Products) -> Callable[[Tensor], float]:
    """Compare a dense matrix with the reference by a few products."""

    @cache
    def expected() -> tuple[Tensor, Tensor]:
        vectors = probes(net)
        return vectors, products(net.double, vectors)

    def check(matrix: Tensor) -> float:
        vectors, truth = expected()
        return distance(matrix @ vectors.to(matrix.dtype), truth)

    return check


def gram_check(net: Net) -> Callable[[Tensor], float]:
    """Compare a Gram matrix of per-example gradients with the reference by a few products."""

    @cache
    def expected() -> tuple[Tensor, Tensor]:
        vectors = seeded_vectors(len(net.inputs))
        return vectors, gram_products(net.double, vectors)

    def check(matrix: Tensor) -> float:
        vectors, truth = expected()
        return distance(matrix.double() @ vectors, truth)

    return check


@cache
def top_values(net: Net, products: Products, count: int) -> Tensor:
    """Largest eigenvalues by ARPACK to rounding, on products in float64."""
    operator = LinearOperator(
        (net.dim, net.dim),
        matvec=lambda v: products(net.double, torch.from_numpy(np.ascontiguousarray(v)).view(-1, 1))[:, 0].numpy(),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(net.dim)
    values = eigsh(operator, k=count, which="LA", tol=0, v0=start, ncv=min(net.dim - 1, 6 * count + 20))[0]
    return torch.from_numpy(np.sort(values)[::-1].copy())


def top_check(net: Net, count: int, products: Products = hessian_products) -> Callable[[Tensor | np.ndarray], float]:
    """Compare the largest eigenvalues, each relative to itself."""

    def check(values: Tensor | np.ndarray) -> float:
        largest = torch.as_tensor(np.asarray(values)).double().sort(descending=True).values[:count]
        truth = top_values(net, products, count)
        return float(((largest - truth).abs() / truth.abs()).max())

    return check


@cache
def exact_values(net: Net) -> np.ndarray:
    """Every Hessian eigenvalue, by ``torch.func`` and LAPACK."""
    double = net.double
    return np.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(double.loss), chunk_size=32)(double.point).numpy())


def density_check(net: Net) -> Callable[[Density], float]:
    """Wasserstein distance of nodes and weights to the exact spectrum, over the width of the spectrum."""

    def check(density: Density) -> float:
        values = exact_values(net)
        nodes, weights = (np.asarray(part, dtype=np.float64).reshape(-1) for part in density)
        weights = np.clip(weights, 0, None)
        return float(wasserstein_distance(nodes, values, weights / weights.sum())) / float(np.ptp(values))

    return check


def moment_check(net: Net) -> Callable[[Density], float]:
    """Error of the second moment against 32 products with random signs, where the exact spectrum costs too much."""

    @cache
    def expected() -> float:
        signs = probes(net, 32).sign()
        return float((hessian_products(net.double, signs) ** 2).sum() / (32 * net.dim))

    def check(density: Density) -> float:
        nodes, weights = (np.asarray(part, dtype=np.float64).reshape(-1) for part in density)
        return abs(float((weights * nodes**2).sum() / weights.sum()) / expected() - 1)

    return check
