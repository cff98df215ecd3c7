"""How other packages and plain PyTorch do the same work, each at its best settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from benchmarks.networks import Net
from benchmarks.timing import Contender

PEERS = {  # import name and distribution
    "curvlinops": "curvlinops-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
    "pyhessian": "PyHessian",
    "backpack": "backpack-for-pytorch",
}
COLUMNS = (8, 16, 32, 64)  # block widths tried for each peer that takes blocks

Multiply = Callable[[Tensor], Tensor]


def by_columns(multiply: Multiply, net: Net, columns: int, *, limit: int | None = None) -> Tensor:
    """Multiply the identity, ``columns`` at a time."""
    matrix = torch.empty(net.dim, net.dim if limit is None else limit, dtype=net.dtype)
    for start in range(0, matrix.shape[1], columns):
        width = min(columns, matrix.shape[1] - start)
        block = torch.zeros(net.dim, width, dtype=net.dtype)
        block[start : start + width] = torch.eye(width, dtype=net.dtype)
        matrix[:, start : start + width] = multiply(block)
    return matrix


def best_columns(multiply: Multiply, net: Net) -> int:
    """The block width that costs least per column."""

    def cost(columns: int) -> float:
        columns = min(columns, net.dim)
        times = []
        for _ in range(2):
            started = time.perf_counter()
            by_columns(multiply, net, columns, limit=columns)
            times.append(time.perf_counter() - started)
        return min(times) / columns

    return min(COLUMNS, key=cost)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set PyTorch's default precision, and restore it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------------------------------------------- plain PyTorch


def jacrev_grad(net: Net) -> Contender:
    """Reverse over reverse with bounded memory."""

    def prepare() -> Callable[[], Tensor]:
        return lambda: torch.func.jacrev(torch.func.grad(net.loss), chunk_size=32)(net.point)

    return Contender("torch.func.jacrev(grad), 32 rows at a time", prepare)


def torch_hessians(net: Net) -> Iterator[Contender]:
    """The documented routines of PyTorch."""
    tangents = 3 * net.dim * len(net.inputs) * 64 * net.inputs.element_size()  # a few tensors, one tangent per weight
    yield jacrev_grad(net)
    yield Contender("torch.func.hessian", lambda: lambda: torch.func.hessian(net.loss)(net.point), num_bytes=tangents)
    for vectorize in (False, True):
        yield Contender(
            f"torch.autograd.functional.hessian(vectorize={vectorize})",
            lambda v=vectorize: lambda: torch.autograd.functional.hessian(net.loss, net.point, vectorize=v),
            num_bytes=tangents if vectorize else 0,
        )


def dense_batched(net: Net) -> Tensor:
    """Dense Hessian by reverse over reverse, the graph kept, 32 rows at a time."""
    point = net.point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.loss(point), point, create_graph=True)

    def multiply(block: Tensor) -> Tensor:
        return torch.autograd.grad(slope, point, block.T, retain_graph=True, is_grads_batched=True)[0].T

    return by_columns(multiply, net, 32)


def jacobian_ggn(net: Net) -> Contender:
    """Per-example Jacobians by vmap, in chunks, and one matrix product for each chunk."""

    def dense() -> Tensor:
        total = torch.zeros(net.dim, net.dim, dtype=net.dtype)
        for inputs in net.inputs.split(200):
            jacobian = torch.func.vmap(torch.func.jacrev(lambda w, x: net.outputs(w, x[None])[0]), (None, 0))(
                net.point, inputs
            )
            rows = (_softmax_factor(net.outputs(net.point, inputs)).mT @ jacobian).flatten(0, 1)
            total += rows.T @ rows
        return total / len(net.inputs)

    return Contender("torch.func Jacobian and its product", lambda: dense)


def _softmax_factor(outputs: Tensor) -> Tensor:
    """``S`` with ``S S^T = diag(p) - p p^T``, per example."""
    share = torch.softmax(outputs, dim=1)
    root = share.sqrt()
    return torch.diag_embed(root) - share[:, :, None] * root[:, None, :]


def per_example_gradients(net: Net) -> Contender:
    """Gram matrix of per-example gradients by vmap over grad."""

    def single(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net.outputs(weights, x[None]), y[None])

    def run() -> Tensor:
        rows = torch.func.vmap(torch.func.grad(single), (None, 0, 0))(net.point, net.inputs, net.targets)
        return rows @ rows.T / len(rows)

    return Contender("torch.func.vmap(grad)", lambda: run)


# ------------------------------------------------------------------------------------------------------------ BackPACK


def backpack_gradients(net: Net) -> Contender:
    """Gram matrix of per-example gradients by BackPACK."""

    def prepare() -> Callable[[], Tensor]:
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

    return Contender("BackPACK BatchGrad", prepare, needs="backpack")


# ---------------------------------------------------------------------------------------------------------- curvlinops


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
    """Operator times identity, in blocks of its best width."""

    def prepare() -> Callable[[], Tensor]:
        operator = curvlinops_operator(net, kind)
        columns = best_columns(lambda block: operator @ block, net)
        return lambda: by_columns(lambda block: curvlinops_operator(net, kind) @ block, net, columns)

    return Contender(
        "curvlinops", prepare, needs="curvlinops", note="identity in blocks of its best of 8 to 64 columns"
    )


# ------------------------------------------------------------------------------------- hessian-eigenthings, PyHessian


def eigenthings_operator(net: Net) -> Any:
    """Hessian of hessian-eigenthings, whole data as one batch."""
    import hessian_eigenthings as het

    loss = het.supervised_loss(nn.CrossEntropyLoss())
    return het.HessianOperator(net.copied(), [(net.inputs, net.targets)], loss)


def eigenthings_one_by_one(net: Net) -> Callable[[], Tensor]:
    """Dense Hessian from its products, one column at a time."""
    operator = eigenthings_operator(net)
    return lambda: by_columns(lambda block: operator.matvec(block[:, 0])[:, None], net, 1)


def pyhessian_object(net: Net) -> Any:
    """One batch, whose gradient graph it keeps. It makes its tensors in the default dtype."""
    import pyhessian

    with default_dtype(net.dtype):
        return pyhessian.hessian(net.copied(), nn.CrossEntropyLoss(), data=(net.inputs, net.targets), cuda=False)


def pyhessian_product(net: Net) -> Multiply:
    """Its products, column by column, from the graph it keeps."""
    from pyhessian.utils import hessian_vector_product

    peer = pyhessian_object(net)
    sizes = [shape.numel() for shape in net.shapes.values()]

    def multiply(block: Tensor) -> Tensor:
        columns = []
        for v in block.T:
            parts = [part.view(shape) for part, shape in zip(v.split(sizes), net.shapes.values(), strict=True)]
            product = hessian_vector_product(peer.gradsH, peer.params, parts)
            columns.append(torch.cat([part.reshape(-1) for part in product]))
        return torch.stack(columns, dim=1)

    return multiply


# --------------------------------------------------------------------------------------- products, ends and densities


def products(net: Net, vectors: Tensor) -> Iterator[Contender]:
    """Hessian times vectors."""

    def whole() -> Callable[[], Tensor]:
        operator = curvlinops_operator(net, "Hessian")
        return lambda: operator @ vectors

    def split() -> Callable[[], Tensor]:
        operator = curvlinops_operator(net, "Hessian")
        columns = best_columns(lambda block: operator @ block, net)
        return lambda: torch.cat([operator @ part for part in vectors.split(columns, dim=1)], dim=1)

    def loop() -> Callable[[], Tensor]:
        operator = eigenthings_operator(net)
        return lambda: torch.stack([operator.matvec(v) for v in vectors.T], dim=1)

    def kept() -> Callable[[], Tensor]:
        multiply = pyhessian_product(net)
        return lambda: multiply(vectors)

    yield Contender("curvlinops", whole, needs="curvlinops")
    if vectors.shape[1] > 1:
        yield Contender("curvlinops, best split", split, needs="curvlinops", note="best of 8 to 64 columns")
    yield Contender("hessian-eigenthings", loop, needs="hessian_eigenthings")
    yield Contender("PyHessian, graph kept", kept, needs="pyhessian")


def largest(net: Net, count: int, check: Callable[[Any], float]) -> Iterator[Contender]:
    """Largest eigenvalues, to about 1e-6."""

    def eigenthings() -> Callable[[], Tensor]:
        import hessian_eigenthings as het

        operator = eigenthings_operator(net)

        def run(steps: int) -> Tensor:
            return het.lanczos(operator, k=count, max_iter=steps, which="LA", reorthogonalize=True, seed=0).eigenvalues

        steps = next((n for n in range(count + 2, net.dim, 2) if check(run(n)) <= 1e-6), net.dim)
        return partial(run, steps)

    def arpack() -> Callable[[], np.ndarray]:
        linear = curvlinops_operator(net, "Hessian").to_scipy()
        start = np.random.default_rng(0).standard_normal(net.dim)
        return lambda: eigsh(linear, k=count, which="LA", tol=1e-4, v0=start)[0]

    def power() -> Callable[[], np.ndarray]:
        peer = pyhessian_object(net)

        def run() -> np.ndarray:
            with default_dtype(net.dtype):
                return np.array(peer.eigenvalues(maxIter=1000, tol=1e-7, top_n=count)[0])

        return run

    yield Contender(
        "hessian-eigenthings lanczos", eigenthings, needs="hessian_eigenthings", note="told its number of steps"
    )
    yield Contender(
        "curvlinops + eigsh", arpack, needs="curvlinops", note="tol=1e-4 on residuals: errors are its square"
    )
    yield Contender("PyHessian power iteration", power, needs="pyhessian", note="tol=1e-7 between iterates")


def densities(net: Net, num_probes: int, num_steps: int) -> Iterator[Contender]:
    """Approximate densities; results are nodes and weights."""

    def curvlinops() -> Callable[[], tuple]:
        from curvlinops import lanczos_approximate_spectrum

        operator = curvlinops_operator(net, "Hessian")

        def run() -> tuple:
            grid, density = lanczos_approximate_spectrum(operator, num_steps, num_repeats=num_probes)
            return grid.numpy(), density.numpy()

        return run

    def eigenthings() -> Callable[[], tuple]:
        import hessian_eigenthings as het

        operator = eigenthings_operator(net)

        def run() -> tuple:
            density = het.spectral_density(operator, num_runs=num_probes, lanczos_steps=num_steps, seed=0)
            return density.raw_eigenvalues.numpy(), density.raw_weights.numpy()

        return run

    def pyhessian() -> Callable[[], tuple]:
        peer = pyhessian_object(net)

        def run() -> tuple:
            with mock.patch.object(torch, "eig", _eig, create=True), default_dtype(net.dtype):
                return peer.density(iter=num_steps, n_v=num_probes)

        return run

    note = f"{num_probes} probes x {num_steps} steps: approximate"
    yield Contender(
        "curvlinops density", curvlinops, needs="curvlinops", note=f"{note}, smoothed, no reorthogonalization"
    )
    yield Contender("hessian-eigenthings density", eigenthings, needs="hessian_eigenthings", note=note)
    yield Contender(
        "PyHessian density",
        pyhessian,
        needs="pyhessian",
        note=f"{note}; torch.eig, removed from PyTorch, replaced by eigh",
    )


def _eig(matrix: Tensor, *, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """What PyHessian 0.1 expects of ``torch.eig``, which PyTorch removed."""
    del eigenvectors
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors
