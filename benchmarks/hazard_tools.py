"""The tools that are asked: this package and three others, through their public interface and at their defaults."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.utils.data import DataLoader

import curvature as cv
from benchmarks.adapter import largest_eigenvalues

OURS = "curvature"
TOOLS = {  # import name and distribution
    OURS: None,
    "curvlinops": "curvlinops-for-pytorch",
    "PyHessian": "PyHessian",
    "hessian-eigenthings": "hessian-eigenthings",
}
MODULES = {"curvlinops": "curvlinops", "PyHessian": "pyhessian", "hessian-eigenthings": "hessian_eigenthings"}


class NotOffered(Exception):
    """A tool has no such matrix."""


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and output of peers, use float64 and one seed, and restore all global state."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def installed(tool: str) -> bool:
    """Whether the tool can be imported; ours always can."""
    return tool == OURS or importlib.util.find_spec(MODULES[tool]) is not None


def versions() -> dict[str, str | None]:
    """Installed version of each tool; None where it is not installed."""
    numbers: dict[str, str | None] = {}
    for tool, distribution in TOOLS.items():
        try:
            numbers[tool] = cv.__version__ if distribution is None else metadata.version(distribution)
        except metadata.PackageNotFoundError:
            numbers[tool] = None
    return numbers


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of the symmetric part, ascending; they do not depend on the order of the coordinates."""
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2)


def spectrum_by(tool: str, module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    """All eigenvalues of the Hessian by one tool, from its products with the identity."""
    return eigenvalues(HESSIANS[tool](module, criterion, batches))


def _by_curvature(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    problem = cv.Problem.from_module(module, loss=criterion, data=batches)
    return cv.pullback(cv.hessian(problem), problem.chart).dense()


def _curvlinops(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Any:
    import curvlinops

    trained = [p for p in module.parameters() if p.requires_grad]
    return curvlinops.HessianLinearOperator(module, criterion, trained, batches)


def _by_curvlinops(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    operator = _curvlinops(module, criterion, batches)
    return operator @ torch.eye(operator.shape[1], dtype=next(module.parameters()).dtype)


def _pyhessian(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Any:
    import pyhessian

    return pyhessian.hessian(module, criterion, dataloader=batches, cuda=False)


def _by_pyhessian(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    peer = _pyhessian(module, criterion, batches)
    sizes = [p.numel() for p in peer.params]
    columns = []
    for row in torch.eye(sum(sizes), dtype=peer.params[0].dtype):
        parts = [part.view(p.shape) for part, p in zip(row.split(sizes), peer.params, strict=True)]
        _, product = peer.dataloader_hv_product(parts)
        columns.append(torch.cat([part.reshape(-1) for part in product]))
    return torch.stack(columns, dim=1)


def _eigenthings(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Any:
    import hessian_eigenthings as het

    return het.HessianOperator(module, batches, het.supervised_loss(criterion))


def _by_eigenthings(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    operator = _eigenthings(module, criterion, batches)
    identity = torch.eye(operator.size, dtype=operator.dtype)
    return torch.stack([operator.matvec(row) for row in identity], dim=1)


HESSIANS = {
    OURS: _by_curvature,
    "curvlinops": _by_curvlinops,
    "PyHessian": _by_pyhessian,
    "hessian-eigenthings": _by_eigenthings,
}


def _ggn_by_curvature(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    return cv.ggn(cv.Problem.from_module(module, loss=criterion, data=batches)).dense()


def _ggn_by_curvlinops(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    import curvlinops

    trained = [p for p in module.parameters() if p.requires_grad]
    operator = curvlinops.GGNLinearOperator(module, criterion, trained, batches)
    return operator @ torch.eye(operator.shape[1], dtype=trained[0].dtype)


def _ggn_by_pyhessian(_module: nn.Module, _criterion: nn.Module, _batches: DataLoader) -> Tensor:
    raise NotOffered("offers no Gauss-Newton matrix")


def _ggn_by_eigenthings(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    import hessian_eigenthings as het

    loss = het.supervised_loss_of_output(criterion)
    operator = het.GGNOperator(module, batches, het.supervised_forward, loss)
    identity = torch.eye(operator.size, dtype=operator.dtype)
    return torch.stack([operator.matvec(row) for row in identity], dim=1)


GGNS = {
    OURS: _ggn_by_curvature,
    "curvlinops": _ggn_by_curvlinops,
    "PyHessian": _ggn_by_pyhessian,
    "hessian-eigenthings": _ggn_by_eigenthings,
}


def largest_by(tool: str, module: nn.Module, criterion: nn.Module, batches: DataLoader, count: int) -> Tensor:
    """Largest eigenvalues, descending, by the routine of each tool, for curvlinops SciPy's ARPACK."""
    if tool == OURS:
        problem = cv.Problem.from_module(module, loss=criterion, data=batches)
        largest = largest_eigenvalues(cv.hessian(problem), count)
    elif tool == "curvlinops":
        operator = _curvlinops(module, criterion, batches).to_scipy()
        start = np.random.default_rng(0).standard_normal(operator.shape[0])
        largest = eigsh(operator, k=count, which="LA", v0=start)[0]
    elif tool == "PyHessian":
        largest = _pyhessian(module, criterion, batches).eigenvalues(top_n=count)[0]
    else:
        import hessian_eigenthings as het

        operator = _eigenthings(module, criterion, batches)
        largest = het.lanczos(operator, k=count, max_iter=min(100, operator.size), which="LA", seed=0).eigenvalues
    return torch.as_tensor(np.array(largest, dtype=float)).sort(descending=True).values
