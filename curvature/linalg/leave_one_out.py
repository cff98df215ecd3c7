r"""Estimators in which every product serves twice: leave out one probe at a time (Epperly, Tropp & Webber 2024).

The products with all probes but one span a subspace that holds most of the matrix; that part is known exactly, and the
remaining probe estimates the rest. All ``k`` choices come from the same products by rank-one changes of ``k x k``
matrices (arXiv:2301.07825).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float, Float64
from curvature.errors import SelfCheckError
from curvature.linalg.memory import ensure_memory
from curvature.linalg.operator import SymmetricOperator

__all__ = ["frobenius", "product", "xdiag", "xnystrace", "xtrace"]


def xtrace(
    operator: SymmetricOperator, probes: Float64[Tensor, "dim probes"]
) -> tuple[Float64[np.ndarray, "probes"], Float64[np.ndarray, "probes"], float]:
    """Return leave-one-out samples of the trace of any symmetric matrix.

    Parameters
    ----------
    operator
        The matrix, ``(D, D)``.
    probes
        Normal probes, ``(D, k)``.

    Returns
    -------
    samples, means, size
        The ``k`` samples, the ``k`` means of the same estimate without each probe, and the Frobenius norm of the
        matrix, which rounding is relative to.

    Notes
    -----
    Costs ``2 k`` products and memory for about ``4 k`` vectors.
    """
    images = product(operator, probes)
    basis, r = torch.linalg.qr(images)
    h = (basis.T @ product(operator, basis)).cpu()
    probes = probes.to(basis)
    w, squares, r = (basis.T @ probes).cpu(), (probes**2).sum(dim=0).cpu(), r.cpu()
    kept = _without_each(len(r))
    q, less = torch.linalg.qr(r.T[kept].mT)  # (k, k, k - 1): the basis of the images without one
    means = _xtrace_samples(less, q.mT @ w.T[kept].mT, q.mT @ h @ q, squares[kept], operator.dim).mean(dim=-1)
    return _xtrace_samples(r, w, h, squares, operator.dim).numpy(), means.numpy(), frobenius(images)


def _xtrace_samples(r: Tensor, w: Tensor, h: Tensor, squares: Tensor, dim: int) -> Tensor:
    r"""$\operatorname{tr}(P_i A)$ plus a sample of $(I - P_i) A (I - P_i)$ by probe $i$, $P_i$ without its image.

    With $A \Omega = Q R$, ``w`` $= Q^T \Omega$ and ``h`` $= Q^T A Q$, everything is small: $P_i = Q (I - s s^T) Q^T$.
    The rest of a normal probe, scaled to its expected length, is uniform on a sphere and varies less.
    """
    s = _left_out(r)
    p = w - s * (s * w).sum(dim=-2, keepdim=True)
    rest = (w * r).sum(dim=-2) - 2 * (r * p).sum(dim=-2) + (p * (h @ p)).sum(dim=-2)
    scale = (dim - r.shape[-1] + 1) / (squares - (p**2).sum(dim=-2))
    trace = h.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True)
    return trace - (s * (h @ s)).sum(dim=-2) + scale * rest


def xnystrace(
    operator: SymmetricOperator, probes: Float64[Tensor, "dim probes"]
) -> tuple[Float64[np.ndarray, "probes"], Float64[np.ndarray, "probes"], float]:
    """Return leave-one-out samples of the trace of a positive semidefinite matrix, by Nystrom approximations.

    Parameters
    ----------
    operator
        The matrix, ``(D, D)``.
    probes
        Normal probes, ``(D, k)``.

    Returns
    -------
    samples, means, size
        As :func:`xtrace`.

    Raises
    ------
    SelfCheckError
        If the matrix is not positive semidefinite.

    Notes
    -----
    Costs ``k`` products and memory for about ``4 k`` vectors.
    """
    images = product(operator, probes)
    probes = probes.to(images)
    size = frobenius(images)
    # The matrix is shifted by a little more than its rounding, or the square of its images would not be definite.
    shift = (operator.dim * images.shape[1]) ** 0.5 * torch.finfo(operator.dtype).eps * size or 1.0
    images = images + shift * probes
    h = (probes.T @ images).cpu()
    h = (h + h.T) / 2
    g, r = (probes.T @ probes).cpu(), torch.linalg.qr(images, mode="r").R.cpu()
    kept = _without_each(len(r))
    square = (kept[:, :, None], kept[:, None, :])
    try:
        samples = _xnystrace_samples(r, h, g, operator.dim)
        means = _xnystrace_samples(r.T[kept].mT, h[square], g[square], operator.dim).mean(dim=-1)
    except torch.linalg.LinAlgError as error:
        raise SelfCheckError(
            f"{operator.name} is not positive semidefinite (x^T A x is negative for a probe): use method='xtrace'."
        ) from error
    removed = operator.dim * shift
    return samples.numpy() - removed, means.numpy() - removed, size + operator.dim**0.5 * shift


def _xnystrace_samples(r: Tensor, h: Tensor, g: Tensor, dim: int) -> Tensor:
    r"""$\operatorname{tr} \hat A_i + \omega_i^T (A - \hat A_i) \omega_i$, $\hat A_i$ Nystrom without probe $i$.

    With $H = \Omega^T A \Omega$ and $h_i = H^{-1} e_i$, $\hat A - \hat A_i = (A \Omega h_i)(A \Omega h_i)^T /
    (H^{-1})_{ii}$ and $\omega_i^T (A - \hat A_i) \omega_i = 1 / (H^{-1})_{ii}$.
    """
    lower = torch.linalg.cholesky(h)
    identity = torch.eye(h.shape[-1], dtype=h.dtype).expand_as(h)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    factor = torch.linalg.solve_triangular(lower, r.mT, upper=False).mT
    diagonal = (inverse**2).sum(dim=-2)
    removed = ((factor @ inverse) ** 2).sum(dim=-2) / diagonal
    lengths = torch.cholesky_inverse(torch.linalg.cholesky(g)).diagonal(dim1=-2, dim2=-1)  # 1 / |rest of the probe|^2
    trace = (factor**2).sum(dim=(-2, -1))[..., None]
    return trace - removed + (dim - h.shape[-1] + 1) * lengths / diagonal


def xdiag(
    operator: SymmetricOperator, probes: Float64[Tensor, "dim probes"]
) -> tuple[Float64[Tensor, "dim"], Float64[Tensor, "dim"], float]:
    """Return the mean of the leave-one-out diagonals of any symmetric matrix.

    Parameters
    ----------
    operator
        The matrix, ``(D, D)``.
    probes
        Random signs, ``(D, k)``.

    Returns
    -------
    mean, error, size
        The estimate and its jackknife error, ``(D,)`` each, and the largest entry of the products, which rounding is
        relative to.

    Notes
    -----
    Costs ``2 k`` products and memory for about ``4 k`` vectors.
    """
    images = product(operator, probes)
    size = float(images.abs().max())
    basis, r = torch.linalg.qr(images / (size or 1.0))  # squares of the entries may vanish or overflow
    image = product(operator, basis) / (size or 1.0)
    probes = probes.to(basis)
    mean = _xdiag_mean(probes, basis, image, r)
    total, squares = torch.zeros_like(mean), torch.zeros_like(mean)
    for kept in _without_each(len(r)).to(r.device):
        q, less = torch.linalg.qr(r[:, kept])
        change = _xdiag_mean(probes[:, kept], basis @ q, image @ q, less) - mean
        total, squares = total + change, squares + change**2
    return size * mean, size * (squares - total**2 / len(r)).clamp(min=0).sqrt(), size


def _xdiag_mean(probes: Tensor, basis: Tensor, image: Tensor, r: Tensor) -> Tensor:
    r"""Mean over $i$ of $\operatorname{diag}(P_i A) + \omega_i \circ (I - P_i) A \omega_i$; ``image`` is $A Q$."""
    s = _left_out(r)
    count = len(r)
    known = (basis * image).sum(dim=1) - ((basis @ s) * (image @ s)).sum(dim=1) / count
    # Of A omega_i = Q r_i only the part along Q s_i is not in the basis without it.
    return known + (probes * (basis @ s * (s * r).sum(dim=0))).sum(dim=1) / count


def _left_out(r: Tensor) -> Tensor:
    """Unit columns, each orthogonal to all columns of the triangle ``r`` but its own; ``(..., k, k)``."""
    largest = r.abs().amax(dim=(-2, -1), keepdim=True)
    r = r / torch.where(largest > 0, largest, 1.0)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    # A pivot that is rounding marks an image that depends on the others: any direction serves to leave it out.
    least = r.shape[-1] * torch.finfo(r.dtype).eps
    guarded = torch.where(diagonal.abs() < least, least, diagonal)
    triangle = r - torch.diag_embed(diagonal) + torch.diag_embed(guarded)
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device).expand_as(r)
    s = torch.linalg.solve_triangular(triangle.mT, identity, upper=False)
    return s / torch.linalg.vector_norm(s, dim=-2, keepdim=True)


def _without_each(count: int) -> Tensor:
    """Row ``i`` lists all indices but ``i``, ``(count, count - 1)``."""
    every = torch.arange(count).expand(count, count)
    return every[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)


def product(operator: SymmetricOperator, block: Float[Tensor, "dim columns"]) -> Float64[Tensor, "dim columns"]:
    """Multiply in the matrix's own precision, and return float64 for what follows.

    Parameters
    ----------
    operator
        The matrix, ``(D, D)``.
    block
        Columns ``(D, k)``, converted to its device and precision.

    Returns
    -------
    Tensor
        Shape ``(D, k)``.

    Raises
    ------
    ResourceError
        If four such blocks do not fit into memory.
    """
    ensure_memory(4 * block.numel() * 8, f"{block.shape[1]} vectors for {operator.name}")
    return (operator @ block.to(operator.device, operator.dtype)).double()


def frobenius(images: Float[Tensor, "dim probes"]) -> float:
    """Estimate the Frobenius norm of a matrix from its images of probes with unit variance.

    Parameters
    ----------
    images
        Shape ``(D, k)``.

    Returns
    -------
    float
        In the unit of the entries.
    """
    largest = float(images.abs().max())  # squares of the entries may vanish or overflow
    return largest * float(torch.linalg.matrix_norm(images / (largest or 1.0))) / images.shape[1] ** 0.5
