"""Trace and diagonal: Hutchinson, Hutch++, XTrace, XNysTrace, XDiag, or exactly."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from curvature.errors import NonFiniteError, SelfCheckError
from curvature.linalg.intervals import (
    CHEAP_DIM,
    choice,
    demand,
    estimate,
    mean_interval,
    normal,
    quantile,
    rounding_units,
    spread,
)
from curvature.linalg.memory import ensure_memory
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.random import generator_of
from curvature.precision import full_precision
from curvature.records import Estimate
from curvature.removed import removed

__all__ = ["DIAGONAL_METHODS", "TRACE_METHODS", "diagonal", "trace"]

TRACE_METHODS = ("auto", "exact", "hutchinson", "hutch++", "xtrace", "xnystrace")
DIAGONAL_METHODS = ("auto", "exact", "hutchinson", "xdiag")


@removed(generator="seed=generator")
@full_precision()
def trace(
    operator: SymmetricOperator,
    *,
    method: str = "auto",
    num_products: int = 60,
    seed: int | torch.Generator = 0,
) -> Estimate:
    r"""Trace $\sum_i A_{ii}$ with a 95 % interval, or exactly.

    Parameters
    ----------
    method
        ``"exact"``: kept entries, $\|B\|_F^2$ of a factor block by block, the dense form, or ``D`` products.
        ``"hutchinson"``: mean of $x^T A x$ over random signs (Hutchinson 1990); best for a flat spectrum.
        ``"hutch++"``: a third of the products finds a basis $Q$ of the range, a third its exact part, a third estimates
        the rest (Meyer, Musco, Musco & Woodruff 2021, arXiv:2010.09649). ``"xtrace"``: the same by leaving one vector
        out at a time, so that every product serves twice; ``"xnystrace"``: with a Nystrom approximation, for positive
        semidefinite matrices (Epperly, Tropp & Webber 2024, arXiv:2301.07825).
        ``"auto"``: exact where the entries are kept, there is a factor, ``D`` is within the budget, or the dense form
        is known and ``D`` at most 4096; else ``"xnystrace"`` for a semidefinite matrix and ``"xtrace"`` for others.
    num_products
        Budget; one of ``D`` products or more buys the exact value instead (but by ``"hutchinson"``). XTrace is exact
        for a rank below half of it, XNysTrace below all of it (their intervals close one rank later, since the
        jackknife does without one vector), Hutch++ for a rank of a third. XNysTrace spends at most ``D / 2``.
    seed
        Of the probes, which are drawn on the CPU; not used where the value is exact.

    Raises
    ------
    SelfCheckError
        ``"xnystrace"`` of a matrix that turns out not to be positive semidefinite.

    Notes
    -----
    Memory for about ``num_products`` vectors of length ``D``.

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)))
    >>> trace(A).value
    6.0
    >>> found = trace(A, method="hutchinson", num_products=8, seed=0)
    >>> found.low <= 6 <= found.high
    True
    """
    choice(method, TRACE_METHODS)
    started = time.perf_counter()
    if method == "auto":
        definite = operator.facts.positive_semidefinite
        method = "exact" if _cheap(operator, num_products) else ("xnystrace" if definite else "xtrace")
    if method == "exact":
        entries, products = _exact_diagonal(operator)
        value = float(entries.sum())
        rounding = rounding_units(operator) * float(entries.abs().sum())
        return estimate(operator, "trace", value, value - rounding, value + rounding, method, products, started)
    demand(method, num_products, {"hutchinson": 8, "hutch++": 24, "xtrace": 12, "xnystrace": 6}[method])
    generator = generator_of(seed)
    if method != "hutchinson" and operator.dim <= num_products:  # a basis of the range would be the whole space
        return trace(operator, method="exact")
    third = num_products // 3
    if method == "hutchinson":
        samples, scale = _hutchinson(operator, _signs(operator.dim, num_products, generator))
        spent = num_products
    elif method == "hutch++":
        sketch = _signs(operator.dim, third, generator)
        samples, scale = _hutch_plus_plus(operator, sketch, _signs(operator.dim, num_products - 2 * third, generator))
        spent = num_products
    elif method == "xtrace":
        spent = 2 * (num_products // 2)
        samples, means, scale = _xtrace(operator, normal(operator.dim, spent // 2, generator))
    else:
        spent = min(num_products, max(6, operator.dim // 2))
        samples, means, scale = _xnystrace(operator, normal(operator.dim, spent, generator))
    value, rounding = float(samples.mean()), rounding_units(operator) * operator.dim**0.5 * scale
    if method in ("hutchinson", "hutch++"):
        low, high = mean_interval(samples)
        error = spread(samples) / len(samples) ** 0.5
    else:
        error = spread(means) * (len(means) - 1) ** 0.5
        low, high = value - quantile(len(means)) * error, value + quantile(len(means)) * error
    return estimate(
        operator, "trace", value, low - rounding, high + rounding, method, spent, started, error, len(samples)
    )


@removed(generator="seed=generator")
@full_precision()
def diagonal(
    operator: SymmetricOperator,
    *,
    method: str = "auto",
    num_products: int = 60,
    seed: int | torch.Generator = 0,
) -> Estimate:
    r"""Diagonal $(A_{11}, \dots, A_{DD})$ with a 95 % interval for each entry, or exactly.

    ``"hutchinson"``: mean of $x \circ A x$ over random signs (Bekas, Kokiopoulou & Saad 2007); the error of an entry is
    as large as the rest of its row. ``"xdiag"`` (the default where nothing is exact): a basis of the range by half of
    the products, the exact diagonal of that part, and the rest by leaving one vector out at a time (Epperly, Tropp &
    Webber 2024). Other parameters as for :func:`trace`; arrays in the record have shape ``(D,)``.

    The intervals hold entry by entry: among ``D`` of them about ``D / 20`` do not contain the truth, and the largest of
    the estimated entries is biased upwards.
    """
    choice(method, DIAGONAL_METHODS)
    started = time.perf_counter()
    if method == "auto":
        method = "exact" if _cheap(operator, num_products) else "xdiag"
    if method == "exact":
        entries, products = _exact_diagonal(operator)
        rounding = rounding_units(operator) * float(entries.abs().max())
        value = entries.cpu().numpy()
        return estimate(operator, "diagonal", value, value - rounding, value + rounding, method, products, started)
    demand(method, num_products, 8 if method == "hutchinson" else 12)
    generator = generator_of(seed)
    if method == "xdiag" and operator.dim <= num_products:  # a basis of the range would be the whole space
        return diagonal(operator, method="exact")
    if method == "hutchinson":
        spent = count = num_products
        probes = _signs(operator.dim, count, generator).to(operator.device)
        samples = probes * _product(operator, probes)
        scale = float(samples.abs().max())
        samples = samples / (scale or 1.0)  # squares of the entries may vanish or overflow
        mean, error = (scale * part for part in (samples.mean(dim=1), samples.std(dim=1) / count**0.5))
    else:
        count = num_products // 2
        spent = 2 * count
        mean, error, scale = _xdiag(operator, _signs(operator.dim, count, generator))
    value, error = mean.cpu().numpy(), error.cpu().numpy()
    half = quantile(count) * error + rounding_units(operator) * scale
    return estimate(operator, "diagonal", value, value - half, value + half, method, spent, started, error, count)


def _hutchinson(operator: SymmetricOperator, probes: Tensor) -> tuple[np.ndarray, float]:
    """Independent samples, and the size of the matrix that rounding is relative to."""
    images = _product(operator, probes)
    return (probes.to(images) * images).sum(dim=0).cpu().numpy(), _frobenius(images)


def _hutch_plus_plus(operator: SymmetricOperator, sketch: Tensor, probes: Tensor) -> tuple[np.ndarray, float]:
    """Samples that are independent given the basis: its exact part plus a sample of the rest."""
    images = _product(operator, sketch)
    basis = torch.linalg.qr(images).Q
    rest = probes.to(basis)
    for _ in range(2):
        rest = rest - basis @ (basis.T @ rest)
    found = (basis * _product(operator, basis)).sum() + (rest * _product(operator, rest)).sum(dim=0)
    return found.cpu().numpy(), _frobenius(images)


def _xtrace(operator: SymmetricOperator, probes: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Leave-one-out samples, the means of the same estimate without each probe, and the size of the matrix."""
    images = _product(operator, probes)
    basis, r = torch.linalg.qr(images)
    h = (basis.T @ _product(operator, basis)).cpu()
    probes = probes.to(basis)
    w, squares, r = (basis.T @ probes).cpu(), (probes**2).sum(dim=0).cpu(), r.cpu()
    kept = _without_each(len(r))
    q, less = torch.linalg.qr(r.T[kept].mT)  # (k, k, k - 1): the basis of the images without one
    means = _xtrace_samples(less, q.mT @ w.T[kept].mT, q.mT @ h @ q, squares[kept], operator.dim).mean(dim=-1)
    return _xtrace_samples(r, w, h, squares, operator.dim).numpy(), means.numpy(), _frobenius(images)


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


def _xnystrace(operator: SymmetricOperator, probes: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """As :func:`_xtrace`, with the Nystrom approximation from the same products."""
    images = _product(operator, probes)
    probes = probes.to(images)
    size = _frobenius(images)
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


def _xdiag(operator: SymmetricOperator, probes: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean of the leave-one-out diagonals, its jackknife error and the scale of rounding."""
    images = _product(operator, probes)
    scale = float(images.abs().max())
    basis, r = torch.linalg.qr(images / (scale or 1.0))  # squares of the entries may vanish or overflow
    image = _product(operator, basis) / (scale or 1.0)
    probes = probes.to(basis)
    mean = _xdiag_mean(probes, basis, image, r)
    total, squares = torch.zeros_like(mean), torch.zeros_like(mean)
    for kept in _without_each(len(r)).to(r.device):
        q, less = torch.linalg.qr(r[:, kept])
        change = _xdiag_mean(probes[:, kept], basis @ q, image @ q, less) - mean
        total, squares = total + change, squares + change**2
    return scale * mean, scale * (squares - total**2 / len(r)).clamp(min=0).sqrt(), scale


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


def _exact_diagonal(operator: SymmetricOperator) -> tuple[Tensor, int]:
    """Diagonal in float64, and the products it took."""
    if operator.kept is not None:
        return operator.kept.diagonal().double(), 0
    if operator.routes.factor is not None:
        found = torch.zeros(operator.dim, dtype=torch.float64, device=operator.device)
        for block in operator.routes.factor.blocks():
            found += (block.double() ** 2).sum(dim=1)
        if not torch.isfinite(found).all():
            raise NonFiniteError(f"the factor of {operator.name} has NaN or infinite entries; look at the model.")
        return found, 0
    if operator.routes.entries is not None:
        return operator.dense().diagonal().double(), 0
    parts = []
    for start in range(0, operator.dim, 256):
        width = min(256, operator.dim - start)
        block = torch.zeros(operator.dim, width, dtype=operator.dtype, device=operator.device)
        block[start : start + width] = torch.eye(width, dtype=operator.dtype, device=operator.device)
        parts.append((operator @ block)[start : start + width].diagonal())
    return torch.cat(parts).double(), operator.dim


def _cheap(operator: SymmetricOperator, budget: int) -> bool:
    """Whether the diagonal costs less than estimating it."""
    return (
        operator.kept is not None
        or operator.routes.factor is not None
        or operator.dim <= budget
        or (operator.routes.entries is not None and operator.dim <= CHEAP_DIM)
    )


def _product(operator: SymmetricOperator, block: Tensor) -> Tensor:
    """In the matrix's own precision, but for a rounding to it, and on in float64."""
    ensure_memory(4 * block.numel() * 8, f"{block.shape[1]} vectors for {operator.name}")
    return (operator @ block.to(operator.device, operator.dtype)).double()


def _frobenius(images: Tensor) -> float:
    """Estimate of the Frobenius norm of the matrix from its images of probes with unit variance."""
    largest = float(images.abs().max())  # squares of the entries may vanish or overflow
    return largest * float(torch.linalg.matrix_norm(images / (largest or 1.0))) / images.shape[1] ** 0.5


def _without_each(count: int) -> Tensor:
    """Row ``i`` lists all indices but ``i``, ``(count, count - 1)``."""
    every = torch.arange(count).expand(count, count)
    return every[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)


def _signs(dim: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (dim, count), generator=generator).double() * 2 - 1
