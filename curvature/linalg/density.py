"""Spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from curvature.errors import ConfigurationError
from curvature.linalg.lanczos import lanczos
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.linalg.random import generator_of
from curvature.precision import full_precision
from curvature.records import SpectralDensity
from curvature.removed import removed

__all__ = ["spectral_density"]


@removed(generator="seed=generator")
@full_precision()
def spectral_density(
    operator: SymmetricOperator,
    *,
    num_matvecs: int = 60,
    num_probes: int = 10,
    seed: int | torch.Generator = 0,
    checks: bool = True,
) -> SpectralDensity:
    r"""Estimate the eigenvalue density by stochastic Lanczos quadrature (SLQ).

    $$p(\lambda) = \frac{1}{D} \sum_{i=1}^{D} \delta(\lambda - \lambda_i).$$

    The squared components of a random unit vector in the eigenbasis weight the eigenvalues; the expectation of this
    weighted density is $p$. Lanczos, started at the vector, computes its Gauss quadrature.

    Parameters
    ----------
    operator
        The matrix, ``D x D``.
    num_matvecs
        Lanczos steps $m$ per probe, ``1 <= m <= D``, which set the resolution: the quadrature of each probe is exact
        for polynomials up to degree $2m - 1$.
    num_probes
        Independent probes, which set the statistical error.
    seed
        Seed or generator of the probes, which are drawn on the CPU.
    checks
        Also run the self-checks of :mod:`curvature.linalg.checks`, once for each operator. If products use the entries,
        these are checked, with the original products as an additional witness.

    Returns
    -------
    SpectralDensity
        Nodes (unit loss / coordinate**2) and weights, ``(num_probes, num_matvecs)``.

    Raises
    ------
    ConfigurationError
        If ``num_matvecs`` or ``num_probes`` is out of range.
    NonFiniteError
        If a product is NaN or infinite.

    Notes
    -----
    Costs ``num_matvecs`` block products with ``num_probes`` columns, and memory for ``num_matvecs * num_probes``
    vectors. The products use the entries of a small matrix if these take less work than they save. The middle of the
    spectrum is resolved to about ``(max - min) / num_matvecs``; the density has no information on a finer scale. Never
    take a smallest eigenvalue, hence a condition number, from a density.

    References
    ----------
    .. [1] Golub, Meurant (2010). Matrices, Moments and Quadrature with Applications.
    .. [2] Ubaru, Chen, Saad (2017). Fast estimation of tr(f(A)) via stochastic Lanczos quadrature. SIAM J. Matrix Anal.
       Appl. 38(4). doi:10.1137/16M1104974

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=torch.float64)))
    >>> density = spectral_density(A, num_matvecs=2, num_probes=100, seed=0)
    >>> density.nodes[0].round(6).tolist()
    [1.0, 5.0]
    >>> mean, standard_error = density.moment(1)
    >>> abs(mean - 2.0) < 4 * standard_error
    True
    """
    require_operator(operator, "spectral_density")
    if not 1 <= num_matvecs <= operator.dim:
        raise ConfigurationError(
            f"num_matvecs must be between 1 and the dimension {operator.dim} of {operator.name}, got {num_matvecs}."
        )
    if num_probes < 1:
        raise ConfigurationError(f"num_probes must be at least 1, got {num_probes}.")
    generator = generator_of(seed)
    started = time.perf_counter()
    multiplied = operator.materialized() if operator.entries_pay(num_matvecs * num_probes) else operator
    passed = multiplied.checks if checks else ()
    probes = torch.randn(operator.dim, num_probes, generator=generator, dtype=torch.float64)
    diagonal, off_diagonal = lanczos(multiplied, probes.to(operator.device, operator.dtype), num_matvecs)
    nodes, weights = _rules(diagonal, off_diagonal)
    return SpectralDensity(
        operator.where,
        operator.dim,
        nodes.cpu().numpy(),
        weights.cpu().numpy(),
        num_products=num_matvecs * num_probes,
        checks=passed,
        seconds=time.perf_counter() - started,
    )


def _rules(diagonal: Tensor, off_diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss rules of tridiagonal matrices, ``(P, m)`` each.

    Where a Krylov space is exhausted, the remaining entries are zeros, which are not Ritz values. They are replaced by
    the largest Ritz value, with weight zero.
    """
    tridiagonal = torch.diag_embed(diagonal) + torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    weights = vectors[:, 0] ** 2
    for probe, couplings in enumerate(off_diagonal):
        ends = (couplings == 0).nonzero()
        if len(ends):
            used = int(ends[0]) + 1
            values, columns = torch.linalg.eigh(tridiagonal[probe, :used, :used])
            nodes[probe] = torch.cat([values, values[-1:].expand(nodes.shape[1] - used)])
            weights[probe] = torch.cat([columns[0] ** 2, weights.new_zeros(nodes.shape[1] - used)])
    return nodes, weights
