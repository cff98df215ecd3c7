r"""How fast are exact curvature matrices here, beside the same work by other packages and by plain PyTorch?

Claim tested: matrices, spectra and products that a study needs cost a fraction of what curvlinops, PyHessian,
hessian-eigenthings, BackPACK, ``torch.func`` and ``torch.autograd.functional`` need for the same numbers. An answer
is a table of times on one machine, each beside the error of its result and the distance from what the hardware allows.

    python -m benchmarks.peer_benchmark --out results/peer_benchmark [--only hessian --only top] [--fast]

Writes curves.json (one row per work and method), table.md and figure.svg. ``--only`` runs one work and may be
repeated; most take a minute or two, ``hessian-large`` and ``spectrum-large`` several. ``--fast`` is every work at toy
size, for tests: its ratios mean nothing.

What is timed
    Digits (N = 1797), softmax cross-entropy, tanh networks trained for a few seeded epochs, one CPU with the same fixed
    number of threads for every library (``--threads``). From the problem or module to the result; for products,
    densities and top eigenvalues the operator is made before, for everyone. The methods of one work are interleaved,
    round by round, after one untimed run of each; a row is a median. A peer slower than ten seconds runs twice, slower
    than thirty once, its first run included; ``repetitions`` says so.

What is checked
    Every result, against products by plain double backward in float64 (GGN: forward over reverse), which share no code
    with any method timed here: ``relative_error`` is in the largest norm. A density has its Wasserstein distance to the
    exact spectrum over the spectrum's width (large network: the error of its second moment). A peer that fails has a
    row with its ``error``; one that is wrong has a row with its error, and others are not compared with it.

Peers at their best
    Blocks have the best of several widths for each package, determinism probes are off (and so are our self-checks),
    the data are one batch, graphs are kept where a package can keep them. A peer without a routine for a work gets the
    usual loop around its products. hessian-eigenthings is told the number of Lanczos steps that just meets the
    tolerance.

Keys of a row
    ``work, size, dtype, method, is_ours, seconds, repetitions, ratio_to_fastest_peer, relative_error``; also
    ``ratio_to_floor`` (the operations of the fastest algorithm known to us at the measured rate of a matrix product,
    plus, for spectra, the measured time of LAPACK), ``fastest_seconds`` (the best repetition), ``note`` and ``error``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import matplotlib

matplotlib.use("agg")
import numpy as np
import psutil
import threadpoolctl
import torch
from matplotlib import pyplot as plt
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, VERMILLION, finish
from curvature.studies.training import SGD, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEERS = {
    "curvlinops": "curvlinops-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
    "pyhessian": "PyHessian",
    "backpack": "backpack-for-pytorch",
}
WRONG = 1e-3  # relative error beyond which a method is not one to be compared with
STRETCH = 1.7  # of the weight-normalized network: away from what the wrapper starts with
COLUMNS = (8, 16, 32, 64)  # tried for each peer that takes blocks


@dataclass(frozen=True)
class Scale:
    """Sizes of everything."""

    num_examples: int | None = None
    small: tuple[int, ...] = (32,)  # P = 2410
    large: tuple[int, ...] = (64, 64)  # P = 8970
    channels: tuple[int, ...] = (8, 16)
    few_examples: int = 400
    epochs: int = 20
    repetitions: int = 7
    density: tuple[int, int] = (10, 100)  # probes, steps
    density_large: tuple[int, int] = (10, 40)
    block: int = 32
    top: int = 10
    growth_examples: tuple[int, ...] = (224, 448, 896, 1792)
    growth_widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    matrix_product: int = 2048
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)


FAST = Scale(
    num_examples=60,
    small=(3,),
    large=(4, 4),
    channels=(2,),
    few_examples=12,
    epochs=1,
    repetitions=1,
    density=(2, 5),
    density_large=(2, 4),
    block=4,
    top=2,
    growth_examples=(30, 60),
    growth_widths=(3, 6),
    matrix_product=256,
    dtypes=(torch.float64,),
)


# ----------------------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True, eq=False)
class Contender:
    """One method: ``prepare()`` makes the callable that is timed."""

    name: str
    prepare: Callable[[], Callable[[], Any]]
    is_ours: bool = False
    needs: str | None = None
    note: str = ""
    check: Callable[[Any], float] | None = None  # if its result is not like the others'
    num_bytes: float = 0  # where the method holds much at once


@dataclass(frozen=True, eq=False)
class Case:
    """One work at one size and precision."""

    work: str
    size: str
    dtype: torch.dtype
    contenders: tuple[Contender, ...]
    check: Callable[[Any], float]
    flops: float = 0.0
    eigenvalues: int = 0  # order of the matrix that LAPACK must diagonalize


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network on data, as peers take it; its problem is ours."""

    model: nn.Module = field(repr=False)
    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    problem: cv.Problem = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.dtype

    @property
    def size(self) -> str:
        return f"P={self.dim}, N={len(self.inputs)}"

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in self.model.named_parameters()}

    @property
    def dim(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    def point(self) -> Tensor:
        return torch.cat([value.detach().reshape(-1) for value in self.model.parameters()])

    def outputs(self, weights: Tensor, inputs: Tensor | None = None) -> Tensor:
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self.model, named, (self.inputs if inputs is None else inputs,))

    def loss(self, weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.outputs(weights), self.targets)

    def terms(self, weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.outputs(weights), self.targets, reduction="none")

    @cached_property
    def double(self) -> Net:
        if self.dtype == torch.float64:
            return self
        return Net(copy.deepcopy(self.model).double(), self.inputs.double(), self.targets, self.problem)

    def copied(self) -> nn.Module:
        """The module for a peer that leaves things behind in it."""
        return copy.deepcopy(self.model)


@cache
def network(scale: Scale, name: str, dtype: torch.dtype, num_examples: int | None = None) -> Net:
    """``small``, ``large`` or ``cnn``, trained by the same few epochs everywhere."""
    convolutional = name == "cnn"
    inputs, targets = cv.zoo.digits(num_examples or scale.num_examples, image=convolutional)
    model = cv.zoo.cnn(scale.channels) if convolutional else cv.zoo.mlp((64, *getattr(scale, name), 10))
    start = cv.Problem.from_module(model, loss="cross-entropy", data=(inputs, targets))
    run = train(
        start,
        cv.Standard(),
        arm="standard",
        seed=0,
        optimizer=SGD(0.2, momentum=0.9),
        epochs=scale.epochs,
        batch_size=64,
        checkpoints={"end": scale.epochs},
    )
    torch.nn.utils.vector_to_parameters(run.checkpoints[-1].weights, model.parameters())
    model.to(dtype)
    return _net(model, inputs.to(dtype), targets)


def _net(model: nn.Module, inputs: Tensor, targets: Tensor) -> Net:
    problem = cv.Problem.from_module(model, loss="cross-entropy", data=(inputs, targets), dtype=inputs.dtype)
    return Net(model, inputs, targets, problem)


class _Composite(nn.Module):
    """Weight norm written with elementary operations, whose derivatives PyTorch gets right."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.vector_norm(weight, dim=1, keepdim=True), weight


@cache
def normalized(scale: Scale, dtype: torch.dtype, *, fused: bool) -> Net:
    """The small network under weight norm, ``v`` stretched: torch's own or the composite one; the same coordinates."""
    plain = network(scale, "small", dtype)
    model = plain.copied()
    for layer in model:
        if isinstance(layer, nn.Linear):
            if fused:
                parametrizations.weight_norm(layer)
            else:
                parametrize.register_parametrization(layer, "weight", _Composite())
            with torch.no_grad():
                layer.parametrizations.weight.original1.mul_(STRETCH)
    return Net(model, plain.inputs, plain.targets, _net(model, plain.inputs, plain.targets).problem if fused else None)


# ------------------------------------------------------------------------------------------------- what results must be


def probes(net: Net, count: int = 4) -> Tensor:
    """Fixed random vectors to compare matrices by."""
    return torch.randn(net.dim, count, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def hessian_products(net: Net, vectors: Tensor) -> Tensor:
    """Double backward, graph kept, one vector at a time."""
    point = net.point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.loss(point), point, create_graph=True)
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
    """``G G^T V / N`` with the per-example gradients ``G`` never formed."""
    terms, pull = torch.func.vjp(net.terms, net.point)
    columns = [torch.func.jvp(net.terms, (net.point,), (pull(v.contiguous())[0],))[1] for v in vectors.T]
    return torch.stack(columns, dim=1) / len(terms)


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def matrix_check(net: Net, products: Callable[[Net, Tensor], Tensor]) -> Callable[[Tensor], float]:
    """Compare a dense matrix with the truth by a few products."""

    @cache
    def expected() -> tuple[Tensor, Tensor]:
        vectors = probes(net)
        return vectors, products(net.double, vectors)

    def check(matrix: Tensor) -> float:
        vectors, truth = expected()
        return distance(matrix @ vectors.to(matrix.dtype), truth)

    return check


@cache
def top_values(net: Net, products: Callable[[Net, Tensor], Tensor], count: int) -> Tensor:
    """Largest eigenvalues by ARPACK to rounding, on products in float64."""
    operator = LinearOperator(
        (net.dim, net.dim),
        matvec=lambda v: products(net.double, torch.from_numpy(np.ascontiguousarray(v)).view(-1, 1))[:, 0].numpy(),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(net.dim)
    values = eigsh(operator, k=count, which="LA", tol=0, v0=start, ncv=min(net.dim - 1, 6 * count + 20))[0]
    return torch.from_numpy(np.sort(values)[::-1].copy())


def top_check(net: Net, count: int, products: Callable[[Net, Tensor], Tensor] = hessian_products) -> Callable:
    """Compare the largest eigenvalues, each relative to itself."""

    def check(values: Tensor | np.ndarray) -> float:
        found = torch.as_tensor(np.asarray(values)).double().sort(descending=True).values[:count]
        truth = top_values(net, products, count)
        return float(((found - truth).abs() / truth.abs()).max())

    return check


@cache
def exact_values(net: Net) -> np.ndarray:
    """Every Hessian eigenvalue, by ``torch.func`` and LAPACK."""
    double = net.double
    return np.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(double.loss), chunk_size=32)(double.point).numpy())


def density_check(net: Net) -> Callable[[tuple[np.ndarray, np.ndarray]], float]:
    """Wasserstein distance of nodes and weights to the exact spectrum, over its width."""

    def check(result: tuple[np.ndarray, np.ndarray]) -> float:
        from scipy.stats import wasserstein_distance

        values = exact_values(net)
        nodes, weights = (np.asarray(part, dtype=np.float64).reshape(-1) for part in result)
        weights = np.clip(weights, 0, None)
        return float(wasserstein_distance(nodes, values, weights / weights.sum())) / float(np.ptp(values))

    return check


def moment_check(net: Net) -> Callable[[tuple[np.ndarray, np.ndarray]], float]:
    """Where the exact spectrum is too dear: error of the second moment, against 32 products with random signs."""

    @cache
    def expected() -> float:
        signs = probes(net, 32).sign()
        return float((hessian_products(net.double, signs) ** 2).sum() / (32 * net.dim))

    def check(result: tuple[np.ndarray, np.ndarray]) -> float:
        nodes, weights = (np.asarray(part, dtype=np.float64).reshape(-1) for part in result)
        return abs(float((weights * nodes**2).sum() / weights.sum()) / expected() - 1)

    return check


# ------------------------------------------------------------------------------------------------------ how peers do it


def by_columns(multiply: Callable[[Tensor], Tensor], net: Net, columns: int, *, limit: int | None = None) -> Tensor:
    """Multiply the identity, ``columns`` at a time."""
    matrix = torch.empty(net.dim, net.dim if limit is None else limit, dtype=net.dtype)
    for start in range(0, matrix.shape[1], columns):
        width = min(columns, matrix.shape[1] - start)
        block = torch.zeros(net.dim, width, dtype=net.dtype)
        block[start : start + width] = torch.eye(width, dtype=net.dtype)
        matrix[:, start : start + width] = multiply(block)
    return matrix


def best_columns(multiply: Callable[[Tensor], Tensor], net: Net) -> int:
    """The cheapest number of columns at once, per column."""

    def cost(columns: int) -> float:
        columns = min(columns, net.dim)
        times = []
        for _ in range(2):
            started = time.perf_counter()
            by_columns(multiply, net, columns, limit=columns)
            times.append(time.perf_counter() - started)
        return min(times) / columns

    return min(COLUMNS, key=cost)


def curvlinops_operator(net: Net, kind: str) -> Any:
    """``Hessian`` or ``GGN``, whole data as one batch."""
    import curvlinops

    model = net.copied()
    return getattr(curvlinops, f"{kind}LinearOperator")(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(net.inputs, net.targets)],
        num_data=len(net.inputs),
        check_deterministic=False,
    )


def curvlinops_dense(net: Net, kind: str) -> Contender:
    """Operator times identity, the best number of columns at once."""

    def prepare() -> Callable[[], Tensor]:
        operator = curvlinops_operator(net, kind)
        columns = best_columns(lambda block: operator @ block, net)
        return lambda: by_columns(lambda block: curvlinops_operator(net, kind) @ block, net, columns)

    return Contender(
        "curvlinops", prepare, needs="curvlinops", note="identity in blocks of its best of 8 to 64 columns"
    )


def jacrev_grad(net: Net) -> Contender:
    """Plain PyTorch with bounded memory."""

    def prepare() -> Callable[[], Tensor]:
        return lambda: torch.func.jacrev(torch.func.grad(net.loss), chunk_size=32)(net.point)

    return Contender("torch.func.jacrev(grad), 32 rows at a time", prepare)


def whole_at_once(net: Net) -> float:
    """Bytes of a few intermediate tensors with one tangent per weight."""
    return 3 * net.dim * len(net.inputs) * 64 * net.inputs.element_size()


def torch_hessians(net: Net) -> Iterator[Contender]:
    """The documented routines."""
    yield jacrev_grad(net)
    yield Contender(
        "torch.func.hessian", lambda: lambda: torch.func.hessian(net.loss)(net.point), num_bytes=whole_at_once(net)
    )
    for vectorize in (False, True):
        yield Contender(
            f"torch.autograd.functional.hessian(vectorize={vectorize})",
            lambda v=vectorize: lambda: torch.autograd.functional.hessian(net.loss, net.point, vectorize=v),
            num_bytes=whole_at_once(net) if vectorize else 0,
        )


def eigenthings_operator(net: Net) -> Any:
    """Whole data as one batch."""
    import hessian_eigenthings as het

    loss = het.supervised_loss(nn.CrossEntropyLoss())
    return het.HessianOperator(net.copied(), [(net.inputs, net.targets)], loss)


def pyhessian_object(net: Net) -> Any:
    """One batch, whose gradient graph it keeps. It makes its tensors in the default dtype."""
    import pyhessian

    with default_dtype(net.dtype):
        return pyhessian.hessian(net.copied(), nn.CrossEntropyLoss(), data=(net.inputs, net.targets), cuda=False)


def pyhessian_product(net: Net) -> Callable[[Tensor], Tensor]:
    """Its products, column by column, from the graph it keeps."""
    from pyhessian.utils import hessian_vector_product

    known = pyhessian_object(net)
    sizes = [shape.numel() for shape in net.shapes.values()]

    def multiply(block: Tensor) -> Tensor:
        columns = []
        for v in block.T:
            parts = [part.view(shape) for part, shape in zip(v.split(sizes), net.shapes.values(), strict=True)]
            product = hessian_vector_product(known.gradsH, known.params, parts)
            columns.append(torch.cat([part.reshape(-1) for part in product]))
        return torch.stack(columns, dim=1)

    return multiply


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set PyTorch's default precision for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _eig(matrix: Tensor, *, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """What PyHessian 0.1 expects of ``torch.eig``, which PyTorch removed."""
    del eigenvectors
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def densities(net: Net, num_probes: int, num_steps: int) -> Iterator[Contender]:
    """Approximate densities of the peers; results are nodes and weights."""

    def curvlinops() -> Callable:
        from curvlinops import lanczos_approximate_spectrum

        operator = curvlinops_operator(net, "Hessian")

        def run() -> tuple:
            grid, density = lanczos_approximate_spectrum(operator, num_steps, num_repeats=num_probes)
            return grid.numpy(), density.numpy()

        return run

    def eigenthings() -> Callable:
        import hessian_eigenthings as het

        operator = eigenthings_operator(net)

        def run() -> tuple:
            found = het.spectral_density(operator, num_runs=num_probes, lanczos_steps=num_steps, seed=0)
            return found.raw_eigenvalues.numpy(), found.raw_weights.numpy()

        return run

    def pyhessian() -> Callable:
        known = pyhessian_object(net)

        def run() -> tuple:
            with mock.patch.object(torch, "eig", _eig, create=True), default_dtype(net.dtype):
                return known.density(iter=num_steps, n_v=num_probes)

        return run

    about = f"{num_probes} probes x {num_steps} steps: approximate"
    yield Contender(
        "curvlinops density", curvlinops, needs="curvlinops", note=f"{about}, smoothed, no reorthogonalization"
    )
    yield Contender("hessian-eigenthings density", eigenthings, needs="hessian_eigenthings", note=about)
    yield Contender(
        "PyHessian density",
        pyhessian,
        needs="pyhessian",
        note=f"{about}; torch.eig, removed from PyTorch, replaced by eigh",
    )


# ------------------------------------------------------------------------------------------------------------ the works


def _ours(name: str, run: Callable[[], Any], **about: Any) -> Contender:
    return Contender(name, lambda: run, is_ours=True, **about)


def layer_sizes(net: Net) -> list[int]:
    """Weights and biases of each layer, in order."""
    return [sum(p.numel() for p in layer.parameters()) for layer in net.model if list(layer.parameters(recurse=False))]


def contraction_flops(net: Net, *, hessian: bool) -> float:
    """Operations of the matrix products that build the entries of a chain."""
    sizes, count = layer_sizes(net), len(net.inputs)
    total = 0.0
    for k, size in enumerate(sizes):
        total += count * size**2 / 2
        total += sum((4 if hessian and k - m > 1 else 2) * count * size * sizes[m] for m in range(k))
    return total


def product_flops(net: Net) -> float:
    """Operations of one product, everything linear computed before."""
    first, *rest = layer_sizes(net)
    return len(net.inputs) * (4 * first + 12 * sum(rest))


def work_hessian(scale: Scale) -> Iterator[Case]:
    """Dense Hessian of the small network."""
    for dtype in scale.dtypes:
        net = network(scale, "small", dtype)
        ours = _ours("curvature", lambda net=net: cv.hessian(net.problem).dense())
        others = (curvlinops_dense(net, "Hessian"), *torch_hessians(net))
        check = matrix_check(net, hessian_products)
        yield Case("hessian", net.size, dtype, (ours, *others), check, contraction_flops(net, hessian=True))


def work_hessian_large(scale: Scale) -> Iterator[Case]:
    """Dense Hessian of the large network."""
    for dtype in scale.dtypes:
        net = network(scale, "large", dtype)
        ours = _ours("curvature", lambda net=net: cv.hessian(net.problem).dense())
        check = matrix_check(net, hessian_products)
        flops = contraction_flops(net, hessian=True)
        yield Case("hessian-large", net.size, dtype, (ours, curvlinops_dense(net, "Hessian")), check, flops)


def work_spectrum(scale: Scale) -> Iterator[Case]:
    """Every eigenvalue, exactly, against approximate densities."""
    net = network(scale, "small", torch.float64)

    def exact() -> tuple:
        values = cv.spectrum(cv.hessian(net.problem), checks=False).eigenvalues
        return values, np.ones_like(values)

    contenders = (_ours("curvature, exact", exact), *densities(net, *scale.density))
    flops = contraction_flops(net, hessian=True)
    yield Case("spectrum", net.size, net.dtype, contenders, density_check(net), flops, net.dim)


def work_spectrum_large(scale: Scale) -> Iterator[Case]:
    """Every eigenvalue of the large Hessian, from the network."""
    net = network(scale, "large", torch.float64)

    def peer() -> Callable[[], np.ndarray]:
        dense = curvlinops_dense(net, "Hessian").prepare()
        return lambda: np.linalg.eigvalsh(dense().numpy())

    contenders = (
        _ours("curvature", lambda: cv.spectrum(cv.hessian(net.problem), checks=False).eigenvalues),
        Contender(
            "curvlinops + LAPACK", peer, needs="curvlinops", note="identity in blocks, then numpy.linalg.eigvalsh"
        ),
    )
    flops = contraction_flops(net, hessian=True)
    yield Case("spectrum-large", net.size, net.dtype, contenders, top_check(net, scale.top), flops, net.dim)


def work_weight_norm(scale: Scale) -> Iterator[Case]:
    """Dense Hessian in the coordinates of weight norm; peers on a composite weight norm, then on torch's own."""
    for dtype in scale.dtypes:
        fused, composite = (normalized(scale, dtype, fused=fused) for fused in (True, False))
        problem = fused.problem

        def columns(net: Net) -> Callable[[], Callable[[], Tensor]]:
            return lambda: lambda: by_columns(pyhessian_product(net), net, 64)

        def one_by_one(net: Net) -> Callable[[], Callable[[], Tensor]]:
            def prepare() -> Callable[[], Tensor]:
                operator = eigenthings_operator(net)
                return lambda: by_columns(lambda block: operator.matvec(block[:, 0])[:, None], net, 1)

            return prepare

        def batched(net: Net = composite) -> Callable[[], Tensor]:
            return lambda: dense_batched(net)

        on_composite, on_fused = "composite weight norm", "torch's own weight norm"
        plain = curvlinops_dense(composite, "Hessian")
        stock = curvlinops_dense(fused, "Hessian")
        contenders = (
            _ours("curvature", lambda problem=problem: cv.pullback(cv.hessian(problem), problem.chart).dense()),
            Contender("torch.autograd.grad, batched", batched, note=f"{on_composite}, 32 rows at a time"),
            Contender("curvlinops", plain.prepare, needs="curvlinops", note=f"{on_composite}; {plain.note}"),
            Contender("curvlinops, stock", stock.prepare, needs="curvlinops", note=on_fused),
            Contender(
                "PyHessian, stock", columns(fused), needs="pyhessian", note=f"{on_fused}; a loop of its products"
            ),
            Contender(
                "hessian-eigenthings, stock", one_by_one(fused), needs="hessian_eigenthings", note=f"{on_fused}; a loop"
            ),
        )
        check = matrix_check(composite, hessian_products)
        yield Case(
            "weight-norm",
            composite.size,
            dtype,
            contenders,
            check,
            contraction_flops(network(scale, "small", dtype), hessian=True),
        )


def dense_batched(net: Net) -> Tensor:
    """Reverse over reverse, the graph kept, 32 rows at a time."""
    point = net.point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.loss(point), point, create_graph=True)

    def multiply(block: Tensor) -> Tensor:
        return torch.autograd.grad(slope, point, block.T, retain_graph=True, is_grads_batched=True)[0].T

    return by_columns(multiply, net, 32)


def work_ggn(scale: Scale) -> Iterator[Case]:
    """Dense GGN of the small network."""
    for dtype in scale.dtypes:
        net = network(scale, "small", dtype)
        contenders = (
            _ours("curvature", lambda net=net: cv.ggn(net.problem).dense()),
            curvlinops_dense(net, "GGN"),
            Contender("torch.func Jacobian and its product", lambda net=net: lambda: jacobian_ggn(net)),
        )
        check = matrix_check(net, ggn_products)
        yield Case("ggn", net.size, dtype, contenders, check, contraction_flops(net, hessian=False))


def softmax_factor(outputs: Tensor) -> Tensor:
    """``S`` with ``S S^T = diag(p) - p p^T``, per example."""
    share = torch.softmax(outputs, dim=1)
    root = share.sqrt()
    return torch.diag_embed(root) - share[:, :, None] * root[:, None, :]


def jacobian_ggn(net: Net) -> Tensor:
    """Per-example Jacobians by vmap, in chunks, and one matrix product each."""
    total = torch.zeros(net.dim, net.dim, dtype=net.dtype)
    for x in net.inputs.split(200):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda w, one: net.outputs(w, one[None])[0]), (None, 0))(
            net.point, x
        )
        rows = (softmax_factor(net.outputs(net.point, x)).mT @ jacobian).flatten(0, 1)
        total += rows.T @ rows
    return total / len(net.inputs)


def factor_gram(operator: cv.SymmetricOperator) -> Tensor:
    """``B^T B`` of the factor ``B`` of a matrix ``B B^T``: the smaller side."""
    columns = torch.cat(list(operator.factor_blocks()), dim=1).numpy()
    return torch.from_numpy(columns.T @ columns)


def work_ggn_few(scale: Scale) -> Iterator[Case]:
    """The smaller matrix that has the non-zero spectrum of a GGN: the large network on few examples."""
    net = network(scale, "large", torch.float64, num_examples=scale.few_examples)
    sides = len(net.inputs) * 9
    check = top_check(net, scale.top, ggn_products)
    contenders = (
        _ours(
            "curvature, Gram matrix",
            lambda: gram(cv.ggn(net.problem)),
            check=lambda matrix: check(np.linalg.eigvalsh(matrix.numpy())),
            note="the smaller side, N (C - 1)",
        ),
        _ours("curvature, dense", lambda: cv.ggn(net.problem).dense()),
        curvlinops_dense(net, "GGN"),
        Contender("torch.func Jacobian and its product", lambda: lambda: jacobian_ggn(net)),
    )
    flops = sides**2 * sum(sum(shape) + 1 for shape in net.shapes.values() if len(shape) == 2)
    yield Case("ggn-few", net.size, net.dtype, contenders, matrix_check(net, ggn_products), flops)


def gram(operator: cv.SymmetricOperator) -> Tensor:
    """The Gram matrix on the smaller side by the best route the operator has."""
    direct = getattr(operator, "gram", None)
    return factor_gram(operator) if direct is None else direct()


def work_gradients(scale: Scale) -> Iterator[Case]:
    """Gram matrix ``G G^T / N`` of the per-example gradients (empirical Fisher), large network."""
    for dtype in scale.dtypes:
        net = network(scale, "large", dtype)

        def per_example(net: Net = net) -> Tensor:
            def single(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
                return nn.functional.cross_entropy(net.outputs(weights, x[None]), y[None])

            rows = torch.func.vmap(torch.func.grad(single), (None, 0, 0))(net.point, net.inputs, net.targets)
            return rows @ rows.T / len(rows)

        def backpack(net: Net = net) -> Callable[[], Tensor]:
            import backpack as package
            from backpack.extensions import BatchGrad

            model, criterion = package.extend(net.copied()), package.extend(nn.CrossEntropyLoss())

            def run() -> Tensor:
                model.zero_grad()
                with package.backpack(BatchGrad()):
                    criterion(model(net.inputs), net.targets).backward()
                rows = torch.cat([p.grad_batch.flatten(1) for p in model.parameters()], dim=1)
                return rows @ rows.T * len(rows)

            return run

        @cache
        def expected(net: Net = net) -> tuple[Tensor, Tensor]:
            vectors = torch.randn(len(net.inputs), 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
            return vectors, gram_products(net.double, vectors)

        def check(matrix: Tensor, expected: Callable = expected) -> float:
            vectors, truth = expected()
            return distance(matrix.double() @ vectors, truth)

        contenders = (
            _ours("curvature", lambda net=net: gram(cv.empirical_fisher(net.problem))),
            Contender("torch.func.vmap(grad)", lambda run=per_example: run),
            Contender("BackPACK BatchGrad", backpack, needs="backpack"),
        )
        flops = len(net.inputs) ** 2 * sum(sum(shape) + 1 for shape in net.shapes.values() if len(shape) == 2)
        yield Case("gradients", net.size, dtype, contenders, check, flops)


def work_top(scale: Scale) -> Iterator[Case]:
    """Largest Hessian eigenvalues to a relative 1e-6."""
    net = network(scale, "small", torch.float64)
    count, check = scale.top, top_check(net, scale.top)
    operator = cv.hessian(net.problem)

    def ours() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        found = cv.extremal_eigenvalues(operator, num_largest=count, tolerance=1e-6, checks=False, generator=generator)
        return found.largest

    def eigenthings() -> Callable[[], Tensor]:
        import hessian_eigenthings as het

        known = eigenthings_operator(net)

        def run(steps: int) -> Tensor:
            return het.lanczos(known, k=count, max_iter=steps, which="LA", reorthogonalize=True, seed=0).eigenvalues

        steps = next((n for n in range(count + 2, net.dim, 2) if check(run(n)) <= 1e-6), net.dim)
        return partial(run, steps)

    def arpack() -> Callable[[], np.ndarray]:
        linear = curvlinops_operator(net, "Hessian").to_scipy()
        start = np.random.default_rng(0).standard_normal(net.dim)
        return lambda: eigsh(linear, k=count, which="LA", tol=1e-4, v0=start)[0]

    def power() -> Callable[[], np.ndarray]:
        known = pyhessian_object(net)

        def run() -> np.ndarray:
            with default_dtype(net.dtype):
                return np.array(known.eigenvalues(maxIter=1000, tol=1e-7, top_n=count)[0])

        return run

    contenders = (
        _ours("curvature", ours, note="stops by itself"),
        Contender(
            "hessian-eigenthings lanczos", eigenthings, needs="hessian_eigenthings", note="told its number of steps"
        ),
        Contender(
            "curvlinops + eigsh", arpack, needs="curvlinops", note="tol=1e-4 on residuals: errors are its square"
        ),
        Contender("PyHessian power iteration", power, needs="pyhessian", note="tol=1e-7 between iterates"),
    )
    yield Case("top", net.size, net.dtype, contenders, check, (2 * count + 4) * product_flops(net))


def _densities(scale: Scale, work: str, name: str, settings: tuple[int, int]) -> Iterator[Case]:
    for dtype in scale.dtypes:
        net = network(scale, name, dtype)
        operator = cv.hessian(net.problem)

        def ours(operator: cv.SymmetricOperator = operator) -> tuple[np.ndarray, np.ndarray]:
            generator = torch.Generator().manual_seed(0)
            found = cv.spectral_density(
                operator, num_matvecs=settings[1], num_probes=settings[0], checks=False, generator=generator
            )
            return found.nodes, found.weights

        check = density_check(net) if name == "small" else moment_check(net)
        contenders = (_ours("curvature", ours), *densities(net, *settings))
        yield Case(work, net.size, dtype, contenders, check, settings[0] * settings[1] * product_flops(net))


def work_density(scale: Scale) -> Iterator[Case]:
    """Stochastic Lanczos density of the small network."""
    return _densities(scale, "density", "small", scale.density)


def work_density_large(scale: Scale) -> Iterator[Case]:
    """Stochastic Lanczos density of the large network."""
    return _densities(scale, "density-large", "large", scale.density_large)


def work_products(scale: Scale) -> Iterator[Case]:
    """Hessian products with one vector and with a block."""
    for name in ("small", "large"):
        for dtype in scale.dtypes:
            for count in (1, scale.block):
                net = network(scale, name, dtype)
                vectors = probes(net, count).to(dtype)
                operator = cv.hessian(net.problem)

                def peer(net: Net = net, vectors: Tensor = vectors) -> Callable[[], Tensor]:
                    known = curvlinops_operator(net, "Hessian")
                    return lambda: known @ vectors

                def split(net: Net = net, vectors: Tensor = vectors) -> Callable[[], Tensor]:
                    known = curvlinops_operator(net, "Hessian")
                    columns = best_columns(lambda block: known @ block, net)
                    return lambda: torch.cat([known @ part for part in vectors.split(columns, dim=1)], dim=1)

                def loop(net: Net = net, vectors: Tensor = vectors) -> Callable[[], Tensor]:
                    known = eigenthings_operator(net)
                    return lambda: torch.stack([known.matvec(v) for v in vectors.T], dim=1)

                def kept(net: Net = net, vectors: Tensor = vectors) -> Callable[[], Tensor]:
                    multiply = pyhessian_product(net)
                    return lambda: multiply(vectors)

                contenders = (
                    _ours("curvature", lambda operator=operator, vectors=vectors: operator @ vectors),
                    Contender("curvlinops", peer, needs="curvlinops"),
                    *(
                        [Contender("curvlinops, best split", split, needs="curvlinops", note="best of 8 to 64 columns")]
                        if count > 1
                        else []
                    ),
                    Contender("hessian-eigenthings", loop, needs="hessian_eigenthings"),
                    Contender("PyHessian, graph kept", kept, needs="pyhessian"),
                )
                truth = cache(partial(hessian_products, net.double, vectors.double()))
                size = f"{net.size}, {count} vector{'s' if count > 1 else ''}"
                check = lambda found, truth=truth: distance(found, truth())  # noqa: E731 - bound to this round
                yield Case("products", size, dtype, contenders, check, count * product_flops(net))


def work_gauge(scale: Scale) -> Iterator[Case]:
    """Another gauge of weight norm after the first matrix: what each further curve of a sweep costs."""
    for name in ("small", "large"):
        net = network(scale, name, torch.float64)
        matrix = cv.hessian(net.problem).materialized()
        chart = cv.WeightNorm(stretch=3.0)

        def again(matrix: cv.SymmetricOperator = matrix, chart: cv.WeightNorm = chart) -> Tensor:
            return cv.pullback(matrix, chart).dense()

        def pulled(found: Tensor, net: Net = net, chart: cv.WeightNorm = chart) -> float:
            at = chart.at(net.problem.layout, net.problem.weights)
            point = at.coordinates.clone().requires_grad_()
            vectors = torch.randn(len(point), 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
            (slope,) = torch.autograd.grad(net.loss(at.to_weights(point)), point, create_graph=True)
            truth = [torch.autograd.grad(slope, point, v, retain_graph=True)[0] for v in vectors.T]
            return distance(found @ vectors, torch.stack(truth, dim=1))

        contenders = (
            _ours("curvature, another gauge", again, check=pulled),
            _ours("curvature, the first matrix", lambda net=net: cv.hessian(net.problem).dense()),
        )
        yield Case("gauge", net.size, net.dtype, contenders, matrix_check(net, hessian_products))


def work_cnn(scale: Scale) -> Iterator[Case]:
    """Dense Hessian and GGN of a small convolutional network."""
    net = network(scale, "cnn", torch.float64)
    hessian = (
        _ours("curvature", lambda: cv.hessian(net.problem).dense()),
        curvlinops_dense(net, "Hessian"),
        jacrev_grad(net),
    )
    yield Case("cnn-hessian", net.size, net.dtype, hessian, matrix_check(net, hessian_products))
    ggn = (
        _ours("curvature", lambda: cv.ggn(net.problem).dense()),
        curvlinops_dense(net, "GGN"),
        Contender("torch.func Jacobian and its product", lambda: lambda: jacobian_ggn(net)),
    )
    yield Case("cnn-ggn", net.size, net.dtype, ggn, matrix_check(net, ggn_products))


# From short to long, so that an interrupted run has most of the answers.
WORKS: dict[str, Callable[[Scale], Iterator[Case]]] = {
    "products": work_products,
    "top": work_top,
    "gauge": work_gauge,
    "gradients": work_gradients,
    "ggn": work_ggn,
    "weight-norm": work_weight_norm,
    "hessian": work_hessian,
    "cnn": work_cnn,
    "spectrum": work_spectrum,
    "density": work_density,
    "density-large": work_density_large,
    "ggn-few": work_ggn_few,
    "hessian-large": work_hessian_large,
    "spectrum-large": work_spectrum_large,
}


# -------------------------------------------------------------------------------------------------------- the stopwatch


@dataclass(eq=False)
class _Entrant:
    """A contender with what is known of it so far."""

    contender: Contender
    run: Callable[[], Any] | None = None
    times: list[float] = field(default_factory=list)
    wanted: int = 0
    calls: int = 1
    relative_error: float | None = None
    error: str | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of other packages are not our output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def race(case: Case, repetitions: int) -> list[_Entrant]:
    """First run of each (checked; counted only if it is slow), then rounds of all."""
    entrants = [_Entrant(contender) for contender in case.contenders if available(contender.needs)]
    for entrant in entrants:
        try:
            with quiet():
                _first_run(case, entrant, repetitions)
        except Exception as error:  # a peer may fail in any way, and its row says how
            if entrant.contender.is_ours:
                raise
            entrant.error = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    while waiting := [e for e in entrants if e.error is None and len(e.times) < e.wanted]:
        for entrant in waiting:
            with quiet():
                entrant.times.append(_clock(entrant.run, entrant.calls)[0])
    return entrants


def _first_run(case: Case, entrant: _Entrant, repetitions: int) -> None:
    contender = entrant.contender
    if contender.num_bytes > 0.8 * psutil.virtual_memory().available:
        raise MemoryError(f"needs about {contender.num_bytes / 2**30:.0f} GB")
    entrant.run = contender.prepare()
    seconds, result = _clock(entrant.run, 1)
    entrant.relative_error = (contender.check or case.check)(result)
    entrant.wanted = repetitions if seconds < 10 or contender.is_ours else 2 if seconds < 30 else 1
    if seconds >= 10 or repetitions == 1:
        entrant.times.append(seconds)
        entrant.wanted = min(entrant.wanted, 5)
    else:
        entrant.calls = max(1, math.ceil(0.05 / _clock(entrant.run, 1)[0]))


def _clock(run: Callable[[], Any], calls: int) -> tuple[float, Any]:
    started = time.perf_counter()
    for _ in range(calls):
        result = run()
    return (time.perf_counter() - started) / calls, result


def available(package: str | None) -> bool:
    """Whether a package can be imported."""
    return package is None or importlib.util.find_spec(package) is not None


def rows_of(case: Case, entrants: list[_Entrant], floors: dict[str, float]) -> list[dict]:
    """Medians and ratios; a peer that is wrong is not one to be compared with."""
    medians = {e: statistics.median(e.times) for e in entrants if e.times}
    peers = [
        seconds
        for e, seconds in medians.items()
        if not e.contender.is_ours and e.relative_error is not None and e.relative_error < max(WRONG, _loosest(case))
    ]
    fastest = min(peers, default=None)
    precision = str(case.dtype).removeprefix("torch.")
    floor = case.flops / floors[f"matrix_product_{precision}"]
    floor += floors["lapack_seconds"] * (case.eigenvalues / floors["lapack_order"]) ** 3
    return [
        {
            "work": case.work,
            "size": case.size,
            "dtype": precision,
            "method": e.contender.name,
            "is_ours": e.contender.is_ours,
            "seconds": medians.get(e),
            "fastest_seconds": min(e.times, default=None),
            "repetitions": len(e.times),
            "ratio_to_fastest_peer": medians[e] / fastest if fastest and e in medians else None,
            "ratio_to_floor": medians[e] / floor if floor and e in medians else None,
            "relative_error": e.relative_error,
            "note": e.contender.note,
            "error": e.error,
        }
        for e in entrants
    ]


def _loosest(case: Case) -> float:
    """Densities are approximate by design."""
    return math.inf if case.work.startswith(("density", "spectrum")) else WRONG


def measure_floors(scale: Scale) -> dict[str, float]:
    """Rate of a matrix product (operations per second) in both precisions; time of LAPACK's symmetric eigenvalues."""
    order = scale.matrix_product
    found: dict[str, float] = {"lapack_order": order}
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((order, order))
    for name, operand in (("float64", matrix), ("float32", matrix.astype(np.float32))):
        torch_operand = torch.from_numpy(operand)
        best = min(
            _clock(run, 1)[0] for _ in range(5) for run in (lambda a=operand: a @ a, lambda a=torch_operand: a @ a)
        )
        found[f"matrix_product_{name}"] = 2 * order**3 / best
    found["lapack_seconds"] = min(_clock(lambda: np.linalg.eigvalsh(matrix + matrix.T), 1)[0] for _ in range(3))
    return found


# --------------------------------------------------------------------------------------------------------------- growth


def growth(scale: Scale, threads: int) -> list[dict]:
    """Time and peak memory of the dense Hessian against N and against P, one process per point."""
    largest = scale.growth_examples[-1]
    along: dict[tuple[int, tuple[int, ...]], str] = {}  # the corner lies on both lines
    for key, points in (
        ("N", [(count, scale.small) for count in scale.growth_examples]),
        ("P", [(largest, (width,)) for width in scale.growth_widths]),
    ):
        for point in points:
            along[point] = along.get(point, "") + key
    about = {"work": "growth", "method": "curvature", "is_ours": True, "dtype": "float64"}
    rows = []
    for point, lines in along.items():
        settings = json.dumps([*point, scale.repetitions, threads])
        command = [sys.executable, __file__, "--growth-point", settings]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(about | {"along": lines} | json.loads(answer.stdout))
    return rows


def growth_point(num_examples: int, widths: list[int], repetitions: int, threads: int) -> dict:
    """Run in a process of its own: its peak is that of this one matrix."""
    with fixed_threads(threads):
        problem = cv.zoo.digits_problem(num_examples, widths=widths)
        cv.hessian(cv.zoo.digits_problem(20, widths=(2,))).dense()  # loads the libraries
        before = _resident_bytes(forget_peak=True)
        times = [_clock(lambda: cv.hessian(problem).dense(), 1)[0] for _ in range(max(repetitions, 2))]
        peak = _resident_bytes(peak=True) - before
    return {
        "size": f"P={problem.dim}, N={num_examples}",
        "num_examples": num_examples,
        "dim": problem.dim,
        "seconds": statistics.median(times[1:]),
        "repetitions": len(times) - 1,
        "peak_bytes": peak,
        "matrix_bytes": 8 * problem.dim**2,
        "ratio_to_fastest_peer": None,
        "relative_error": None,
    }


def _resident_bytes(*, peak: bool = False, forget_peak: bool = False) -> int:
    """Resident memory of this process, now or at its peak.

    By Linux's own books: what ``getrusage`` calls the peak includes that of the parent, which a child inherits.
    """
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmHWM" if peak else "VmRSS"
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def exponents(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Slopes in log-log, by least squares, beside those of the operation count."""
    theory = {"N": {"seconds": 1.0, "peak_bytes": 0.0}, "P": {"seconds": 2.0, "peak_bytes": 2.0}}
    found = {}
    for along, key in (("N", "num_examples"), ("P", "dim")):
        points = [row for row in rows if along in row.get("along", "")]
        for quantity in ("seconds", "peak_bytes"):
            if len(points) > 1 and min(row[quantity] for row in points) > 0:
                slope = np.polyfit(*(np.log([row[k] for row in points]) for k in (key, quantity)), 1)[0]
                found[f"{quantity} against {along}"] = {"fitted": float(slope), "theory": theory[along][quantity]}
    return found


# ----------------------------------------------------------------------------------------------------------- the report


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """The same number of threads in PyTorch and in every BLAS; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with threadpoolctl.threadpool_limits(count):
        try:
            yield
        finally:
            torch.set_num_threads(before)


def measure(*, fast: bool = False, only: list[str] | None = None, threads: int = 2) -> dict:
    """Everything, or the works in ``only``: a document with rows, floors and fits."""
    scale = FAST if fast else Scale()
    rows: list[dict] = []
    with fixed_threads(threads):
        floors = measure_floors(scale)
        for name, work in WORKS.items():
            if only and name not in only:
                continue
            for case in work(scale):
                found = rows_of(case, race(case, scale.repetitions), floors)
                print("\n".join(line(row) for row in found), flush=True)
                rows += found
    if not only or "growth" in only:
        rows += growth(scale, threads)
    return {
        "question": __doc__.splitlines()[0],
        "fast": fast,
        "threads": threads,
        "processor": processor(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", *PEERS.values())},
        "missing": [name for name in PEERS if not available(name)],
        "floors": floors,
        "growth": exponents(rows),
        "rows": rows,
    }


def version(package: str) -> str | None:
    """Installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Model of the processor, where the system says it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def line(row: dict) -> str:
    """One row for people."""
    return "  ".join(
        [f"{row['work']:18}", f"{row['size']:28}", f"{row['dtype']:8}", f"{row['method']:52}", *_numbers(row)]
    )


def _numbers(row: dict) -> list[str]:
    if row.get("error"):
        return ["failed: " + row["error"]]

    def number(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    return [
        f"{number('seconds', '.4g')} s",
        f"{row['repetitions']}",
        number("ratio_to_fastest_peer", ".3g"),
        number("ratio_to_floor", ".3g"),
        number("relative_error", ".1e"),
    ]


def markdown(document: dict) -> str:
    """A table to paste."""
    floors = document["floors"]
    lines = [
        f"{document['processor']}; {document['threads']} threads; matrix product "
        f"{floors['matrix_product_float64'] / 1e9:.0f} GFLOP/s in float64, "
        f"{floors['matrix_product_float32'] / 1e9:.0f} in float32; LAPACK eigenvalues of order "
        f"{floors['lapack_order']}: {floors['lapack_seconds']:.2f} s. "
        + ", ".join(f"{name} {number}" for name, number in document["versions"].items() if number)
        + (f". Not installed: {', '.join(document['missing'])}." if document["missing"] else "."),
        "",
        "| work | size | dtype | method | time | runs | over fastest peer | over floor | relative error | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        numbers = _numbers(row) if not row.get("error") else ["fails", "", "", "", ""]
        method = f"**{row['method']}**" if row["is_ours"] else row["method"]
        note = row.get("error") or row.get("note") or ""
        if row["work"] == "growth":
            note = f"peak {row['peak_bytes'] / 2**20:.0f} MB for a matrix of {row['matrix_bytes'] / 2**20:.0f} MB"
        elif (row["relative_error"] or 0) > WRONG and not row["work"].startswith(("density", "spectrum")):
            note = f"**wrong**; {note}"
        cells = [row["work"], row["size"], row["dtype"], method, *numbers, note]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    if document["growth"]:
        lines += ["", "| growth of the dense Hessian | fitted exponent | theory |", "|---|---|---|"]
        lines += [f"| {k} | {v['fitted']:.2f} | {v['theory']:.0f} |" for k, v in document["growth"].items()]
    return "\n".join(lines) + "\n"


def draw(document: dict) -> Figure:
    """Times over the fastest correct peer, one line per case."""
    rows = [row for row in document["rows"] if row.get("ratio_to_fastest_peer")]
    cases = list(dict.fromkeys((row["work"], row["size"], row["dtype"]) for row in rows))
    figure, ax = plt.subplots(figsize=(8, 1.5 + 0.28 * len(cases)), layout="constrained")
    styles = {
        "this package": {"color": "C0", "marker": "o", "zorder": 3},
        "peer": {"color": "0.45", "marker": "|", "s": 60},
        "peer, wrong result": {"color": "C3", "marker": "x"},
    }
    grouped: dict[str, list[tuple[float, int]]] = {name: [] for name in styles}
    for row in rows:
        wrong = row["relative_error"] > WRONG and not row["work"].startswith(("density", "spectrum"))
        kind = "this package" if row["is_ours"] else "peer, wrong result" if wrong else "peer"
        place = cases.index((row["work"], row["size"], row["dtype"]))
        grouped[kind].append((row["ratio_to_fastest_peer"], place))
    for name, points in grouped.items():
        if points:
            ax.scatter(*zip(*points, strict=True), label=name, **styles[name])
    ax.axvline(1, color="0.7", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(cases)), [f"{work}, {size}, {dtype}" for work, size, dtype in cases], fontsize="x-small")
    ax.invert_yaxis()
    ax.set_xscale("log")
    finish(ax, "Curvature on one CPU", "time over the fastest correct peer", "")
    if rows:
        ax.legend(fontsize="small")
    return figure


def draw_growth(document: dict) -> Figure:
    """Time and peak memory of the dense Hessian against N and P, with the fitted power and that of the theory."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), sharex="col", sharey="row", layout="constrained")
    scales = {"seconds": ("time (s)", 1.0), "peak_bytes": ("peak memory (MiB)", 2.0**20)}
    for column, (along, key, name) in enumerate((("N", "num_examples", "examples N"), ("P", "dim", "weights P"))):
        points = sorted((row for row in document["rows"] if along in row.get("along", "")), key=lambda row: row[key])
        size = np.array([row[key] for row in points], dtype=float)
        held = points[-1]["size"].split(", ")[column].replace("=", " = ")
        for ax, (quantity, (label, unit)) in zip(axes[:, column], scales.items(), strict=True):
            measured = np.array([row[quantity] for row in points]) / unit
            ax.plot(size, measured, color=BLUE, marker="o", label="measured")
            slopes = document["growth"].get(f"{quantity} against {along}")
            if slopes:
                line = measured[-1] * (size / size[-1]) ** slopes["theory"]
                ax.plot(size, line, color=BLACK, ls=":", label=f"theory, power {slopes['theory']:.0f}")
                ax.plot([], [], " ", label=f"fitted power {slopes['fitted']:.2f}")
            if quantity == "peak_bytes":
                dims = np.array([row["dim"] for row in points], dtype=float)
                ax.plot(size, (24 * dims**2 + 2**28) / unit, color=VERMILLION, ls="--", label="3 P² doubles + 256 MiB")
            ax.set(xscale="log", yscale="log")
            finish(ax, f"dense Hessian, {held}", name, label)
            ax.legend(fontsize="x-small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for curves.json, table.md, figure.svg and growth.svg")
    parser.add_argument("--only", action="append", choices=[*WORKS, "growth"], help="one work; may be repeated")
    parser.add_argument("--threads", type=int, help="of every library (default 2; --fast: 1)")
    parser.add_argument("--fast", action="store_true", help="toy sizes, one repetition: for tests")
    parser.add_argument("--growth-point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.growth_point:
        print(json.dumps(growth_point(*json.loads(arguments.growth_point))))
        return
    if arguments.out is None:
        parser.error("the following arguments are required: --out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.threads = arguments.threads or (1 if arguments.fast else min(2, os.cpu_count() or 1))
    missing = [name for name in PEERS if not available(name)]
    print(f"{arguments.threads} threads" + (f"; not installed, left out: {', '.join(missing)}" if missing else ""))
    print("work, size, dtype, method: seconds, repetitions, over fastest peer, over floor, relative error")
    document = measure(fast=arguments.fast, only=arguments.only, threads=arguments.threads)
    (arguments.out / "curves.json").write_text(json.dumps(document, indent=2) + "\n")
    (arguments.out / "table.md").write_text(markdown(document))
    matplotlib.rcParams["svg.hashsalt"] = "peer_benchmark"
    drawn = {"figure": draw} | ({"growth": draw_growth} if document["growth"] else {})
    for name, picture in drawn.items():
        figure = picture(document)
        figure.savefig(arguments.out / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    for name, slopes in document["growth"].items():
        print(f"growth of {name}: exponent {slopes['fitted']:.2f}, theory {slopes['theory']:.0f}")


if __name__ == "__main__":
    main()
