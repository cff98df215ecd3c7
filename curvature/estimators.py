r"""Trace, diagonal and traces of functions of a matrix, each with the interval that it lies in.

What is exact is not estimated: a kept matrix, a factor, a cheap dense form, or a dimension within the budget gives the
value up to rounding. Otherwise random probes are spent, and the interval is one whose coverage has been measured on
flat, exponentially and polynomially decaying spectra and on a few outliers (``tests/test_estimators.py``).

Two corrections make 95 % mean 95 %. *Independent samples* (Hutchinson, the second part of Hutch++) of a matrix with a
few large eigenvalues are skewed like a chi-squared variable, and Student's interval covers 89 to 94 %: it is widened
to hold the interval that corrects for the skewness (Hall 1992). *Leave-one-out samples* (XTrace, XNysTrace, XDiag)
share all but one of their vectors, so their spread understates the error, the more the faster the spectrum decays: 95 %
intervals cover 55 to 80 %, and up to 3.4 times the width would be needed. The standard error is therefore the jackknife
of the whole estimate over its vectors, whose mean square is never below the variance (Efron & Stein 1981). It costs no
products, covers 95 to 100 %, and is too long by a factor of two to four where the estimate is most accurate.

What not to conclude: a trace is dominated by the largest eigenvalues, so its interval says nothing about the small
ones; a log-determinant with damping is mostly the damping where the matrix is rank-deficient; intervals of two
estimates from the same probes are not independent; intervals of a diagonal hold entry by entry, and one in twenty may
not; and 95 % was measured on randomly rotated spectra, not proven for every matrix: random signs can miss a single
large entry off the diagonal of an otherwise diagonal matrix.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from curvature.certificates import gauss_radau
from curvature.errors import ConfigurationError, NonFiniteError, NotDefinedError, SelfCheckError
from curvature.krylov import lanczos
from curvature.lapack import eigenvalues
from curvature.operators import SymmetricOperator, ensure_memory
from curvature.records import Estimate

__all__ = ["diagonal", "log_determinant", "spectral_sum", "trace"]

LEVEL = 0.95  # the level at which coverage is measured
TRACE_METHODS = ("auto", "exact", "hutchinson", "hutch++", "xtrace", "xnystrace")
DIAGONAL_METHODS = ("auto", "exact", "hutchinson", "xdiag")
SUM_METHODS = ("auto", "exact", "quadrature")
_CHEAP_DIM = 4096  # a dense form up to here is built rather than estimated
_PILOT = 10  # probes that decide how many steps and probes are needed
_FIRST_STEPS = 16
_AT_ONCE = 2**28  # numbers in the Lanczos bases of one group of probes


def trace(
    operator: SymmetricOperator,
    *,
    method: str = "auto",
    num_products: int = 60,
    generator: torch.Generator | None = None,
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
        Budget. XTrace is exact for a rank below half of it, XNysTrace below all of it (their intervals close one rank
        later, since the jackknife does without one vector), Hutch++ for a rank of a third. XNysTrace spends at most
        ``D / 2``.
    generator
        Source of the probes, drawn on the CPU; needed unless the value is exact.

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
    >>> found = trace(A, method="hutchinson", num_products=8, generator=torch.Generator().manual_seed(0))
    >>> found.low <= 6 <= found.high
    True
    """
    _choice(method, TRACE_METHODS)
    started = time.perf_counter()
    if method == "auto":
        definite = operator.positive_semidefinite
        method = "exact" if _cheap(operator, num_products) else ("xnystrace" if definite else "xtrace")
    if method == "exact":
        entries, products = _exact_diagonal(operator)
        value = float(entries.sum())
        rounding = _units(operator) * float(entries.abs().sum())
        return _estimate(operator, "trace", value, value - rounding, value + rounding, method, products, started)
    _demand(method, num_products, {"hutchinson": 8, "hutch++": 24, "xtrace": 12, "xnystrace": 6}[method], generator)
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
        samples, means, scale = _xtrace(operator, _normal(operator.dim, spent // 2, generator))
    else:
        spent = min(num_products, max(6, operator.dim // 2))
        samples, means, scale = _xnystrace(operator, _normal(operator.dim, spent, generator))
    value, rounding = float(samples.mean()), _units(operator) * operator.dim**0.5 * scale
    if method in ("hutchinson", "hutch++"):
        low, high = mean_interval(samples)
        error = _spread(samples) / len(samples) ** 0.5
    else:
        error = _spread(means) * (len(means) - 1) ** 0.5
        low, high = value - _quantile(len(means)) * error, value + _quantile(len(means)) * error
    return _estimate(
        operator, "trace", value, low - rounding, high + rounding, method, spent, started, error, len(samples)
    )


def diagonal(
    operator: SymmetricOperator,
    *,
    method: str = "auto",
    num_products: int = 60,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Diagonal $(A_{11}, \dots, A_{DD})$ with a 95 % interval for each entry, or exactly.

    ``"hutchinson"``: mean of $x \circ A x$ over random signs (Bekas, Kokiopoulou & Saad 2007); the error of an entry is
    as large as the rest of its row. ``"xdiag"`` (the default where nothing is exact): a basis of the range by half of
    the products, the exact diagonal of that part, and the rest by leaving one vector out at a time (Epperly, Tropp &
    Webber 2024). Other parameters as for :func:`trace`; arrays in the record have shape ``(D,)``.

    The intervals hold entry by entry: among ``D`` of them about ``D / 20`` do not contain the truth, and the largest of
    the estimated entries is biased upwards.
    """
    _choice(method, DIAGONAL_METHODS)
    started = time.perf_counter()
    if method == "auto":
        method = "exact" if _cheap(operator, num_products) else "xdiag"
    if method == "exact":
        entries, products = _exact_diagonal(operator)
        rounding = _units(operator) * float(entries.abs().max())
        value = entries.cpu().numpy()
        return _estimate(operator, "diagonal", value, value - rounding, value + rounding, method, products, started)
    _demand(method, num_products, 8 if method == "hutchinson" else 12, generator)
    if method == "hutchinson":
        spent = count = num_products
        probes = _signs(operator.dim, count, generator).to(operator.device)
        samples = probes * _product(operator, probes)
        mean, error, scale = samples.mean(dim=1), samples.std(dim=1) / count**0.5, float(samples.abs().max())
    else:
        count = num_products // 2
        spent = 2 * count
        mean, error, scale = _xdiag(operator, _signs(operator.dim, count, generator))
    value, error = mean.cpu().numpy(), error.cpu().numpy()
    half = _quantile(count) * error + _units(operator) * scale
    return _estimate(operator, "diagonal", value, value - half, value + half, method, spent, started, error, count)


def log_determinant(
    operator: SymmetricOperator,
    damping: float,
    *,
    method: str = "auto",
    relative_error: float = 0.01,
    lower: float | None = None,
    max_products: int = 4000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""$\log\det(A + \delta I)$ with ``damping`` $\delta$: :func:`spectral_sum` of the logarithm.

    Needs a matrix that is known to be positive definite with its damping: positive semidefinite by definition and
    $\delta > 0$, or ``lower`` $> -\delta$. An indefinite matrix has no log-determinant, and its negative eigenvalues
    are never left out.

    Each of the $D - r$ zeros of a singular matrix adds $\log\delta$: compare only at equal $\delta$ and $D$.

    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    >>> round(log_determinant(A, 1.0).value, 6) == round(math.log(4 * 2), 6)
    True
    """
    return spectral_sum(
        operator,
        "log",
        damping=damping,
        method=method,
        relative_error=relative_error,
        lower=lower,
        max_products=max_products,
        generator=generator,
    )


def spectral_sum(
    operator: SymmetricOperator,
    function: str | float | Callable[[np.ndarray], np.ndarray],
    *,
    damping: float = 0.0,
    method: str = "auto",
    relative_error: float = 0.01,
    lower: float | None = None,
    max_products: int = 4000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""$\operatorname{tr} f(A + \delta I) = \sum_i f(\lambda_i + \delta)$ with a 95 % interval, or exactly.

    Stochastic Lanczos quadrature: $D$ times the mean of $q^T f q$ over uniform unit vectors (Golub & Meurant 2010;
    Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974). The even and the odd derivatives of the logarithm, the inverse and
    fractional powers have one sign each, so that for every probe the Gauss rule lies on one side of the truth and the
    Gauss-Radau rule with a node at the lower end of the spectrum on the other: bounds, not estimates, and rounding is
    in them. What is left to chance is the mean over probes.

    Parameters
    ----------
    function
        ``"log"``, ``"inverse"``, a number $p$ for $x^p$, or a callable on arrays. A callable has no known derivatives:
        its quadrature error is the change over the last half of the steps, which the record's note says.
    damping
        $\delta$, added to every eigenvalue.
    method
        ``"exact"``: all eigenvalues. ``"quadrature"``. ``"auto"``: exact where the entries or a dense form are known
        and ``D`` is at most 4096, where the factor has that few columns, or where ``D`` products cost less than the
        first probes.
    relative_error
        Half the width of the interval wanted, relative to the value. Steps double until the bounds of ten pilot probes
        take less than half of it; the spread of the pilot then fixes the number of probes (Stein 1945).
    lower
        A proven lower bound of the eigenvalues of $A$; None is 0 for a matrix that is positive semidefinite by
        definition. A Ritz value is not one.
    max_products
        Budget. Where it ends first the interval is wider, and ``converged`` False.

    Raises
    ------
    NotDefinedError
        If the logarithm, the inverse or a power is asked of a matrix that may be singular or indefinite.
    SelfCheckError
        If a Ritz value lies below what ``lower`` promises.
    """
    _choice(method, SUM_METHODS)
    if not (damping >= 0 and math.isfinite(damping)):
        raise ConfigurationError(f"damping must be a finite number and not negative, got {damping}.")
    if not relative_error > 0:
        raise ConfigurationError(f"relative_error must be positive, got {relative_error}.")
    started = time.perf_counter()
    rule = _rule(function)
    if lower is None and operator.positive_semidefinite:
        lower = 0.0
    end = -math.inf if lower is None else lower + damping
    if method == "auto":
        known = operator.kept is not None or operator.dense_form is not None
        few = operator.factor_columns is not None and operator.factor_columns < min(operator.dim, _CHEAP_DIM)
        cheap = (known and operator.dim <= _CHEAP_DIM) or few or operator.dim <= _PILOT * _FIRST_STEPS
        method = "exact" if cheap else "quadrature"
    what = f"trace of {rule.name}" if rule.name != "log" else "log-determinant"
    if method == "exact":
        values, scale, products = _all_eigenvalues(operator)
        rounding = _units(operator) * max(scale, float(np.abs(values).max()))
        if values.min() < (-math.inf if lower is None else lower) - 100 * rounding:
            raise SelfCheckError(
                f"{operator.name} has the eigenvalue {values.min():.3g}, below the promised bound {lower:.3g}."
            )
        if not rule.defined(end):
            if not rule.defined(values.min() + damping, rounding):
                raise _undefined(operator, rule, f"its smallest eigenvalue is {values.min():.3g}")
            end = max(values.min() + damping - rounding, 0.0)
        low, high = rule.sums(values[None] + damping, np.ones((1, 1)), rounding, end)
        value = float(rule.values(np.maximum(values + damping, end)).sum())
        return _estimate(operator, what, value, min(low, value), max(high, value), method, products, started)
    if rule.certified and end == -math.inf:
        raise _undefined(operator, rule, "no lower bound of its eigenvalues is known (pass a proven one as lower)")
    if not rule.defined(end):
        raise _undefined(operator, rule, f"its eigenvalues may reach {end:.3g}")
    _demand(method, max_products, _PILOT * min(_FIRST_STEPS, operator.dim), generator)
    return _by_quadrature(operator, rule, what, damping, end, relative_error, max_products, generator, started)


def mean_interval(samples: np.ndarray) -> tuple[float, float]:
    r"""95 % interval of the mean of independent samples, ``(P,)``, that may be skewed.

    The hull of Student's interval and of Hall's (1992, J. R. Stat. Soc. B 54:221), whose statistic
    $t + g t^2 / 3 + g^2 t^3 / 27 + g / 6$ removes the skewness $g \sqrt P$, lengthened by $1 + 3 / P$ because the
    skewness itself is estimated. Chi-squared samples with one degree of freedom, as a matrix of rank one gives, are
    covered in 94 % at 8 samples and 96 % from 12 on.
    """
    count, mean, spread = len(samples), float(samples.mean()), _spread(samples)
    if spread == 0:
        return mean, mean
    unit, quantile = spread / count**0.5, _quantile(count)
    low, high = -quantile, quantile
    # A smaller skewness corrects by less than a thousandth, and the cube root would lose its digits.
    skew = float((((samples - mean) / spread) ** 3).mean()) / count**0.5
    if abs(skew) > 1e-3:
        corrected = [3 / skew * (float(np.cbrt(1 + skew * (y - skew / 6))) - 1) for y in (-quantile, quantile)]
        low, high = min(low, *corrected), max(high, *corrected)
    unit *= 1 + 3 / count
    return mean - high * unit, mean - low * unit


# --------------------------------------------------------------------------------------------------- trace and diagonal


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
    basis, r = torch.linalg.qr(images)
    image = _product(operator, basis)
    probes = probes.to(basis)
    mean = _xdiag_mean(probes, basis, image, r)
    total, squares = torch.zeros_like(mean), torch.zeros_like(mean)
    for kept in _without_each(len(r)).to(r.device):
        q, less = torch.linalg.qr(r[:, kept])
        change = _xdiag_mean(probes[:, kept], basis @ q, image @ q, less) - mean
        total, squares = total + change, squares + change**2
    return mean, (squares - total**2 / len(r)).clamp(min=0).sqrt(), float(images.abs().max())


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
    if operator.factor_blocks is not None:
        found = torch.zeros(operator.dim, dtype=torch.float64, device=operator.device)
        for block in operator.factor_blocks():
            found += (block.double() ** 2).sum(dim=1)
        if not torch.isfinite(found).all():
            raise NonFiniteError(f"the factor of {operator.name} has NaN or infinite entries; look at the model.")
        return found, 0
    if operator.dense_form is not None:
        return operator.dense().diagonal().double(), 0
    parts = []
    for start in range(0, operator.dim, 256):
        width = min(256, operator.dim - start)
        block = torch.zeros(operator.dim, width, dtype=operator.dtype, device=operator.device)
        block[start : start + width] = torch.eye(width, dtype=operator.dtype, device=operator.device)
        parts.append((operator @ block)[start : start + width].diagonal())
    return torch.cat(parts).double(), operator.dim


# ------------------------------------------------------------------------------------------------------- spectral sums


@dataclass(frozen=True)
class _Rule:
    """A function, and on which side of the truth its Gauss rule lies: ``True`` above, ``None`` unknown."""

    name: str
    values: Callable[[np.ndarray], np.ndarray]
    gauss_above: bool | None = None
    increasing: bool = True
    least_steps: int = 1
    domain: str = "real"  # or "positive", or "not negative"

    @property
    def certified(self) -> bool:
        return self.gauss_above is not None

    def defined(self, end: float, rounding: float = 0.0) -> bool:
        """Whether it exists on a spectrum that reaches down to ``end``."""
        return self.domain == "real" or (end > rounding if self.domain == "positive" else end >= -rounding)

    def at(self, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The rule itself, one sum for each row."""
        return (weights * self.values(nodes)).sum(axis=-1)

    def moved(self, nodes: np.ndarray, rounding: float, *, above: bool) -> np.ndarray:
        """Nodes moved by their rounding to the side that makes the rule larger, or smaller."""
        return nodes + (rounding if above == self.increasing else -rounding)

    def sums(self, nodes: np.ndarray, weights: np.ndarray, rounding: float, end: float) -> tuple[float, float]:
        """The sum at nodes that are known up to rounding, from below and from above."""
        if self.certified:
            moved = (np.maximum(self.moved(nodes, rounding, above=above), end) for above in (False, True))
            low, high = (float(self.at(part, weights)[0]) for part in moved)
            return low, high
        found = float(self.at(np.maximum(nodes, end), weights)[0])
        moved = [self.values(np.maximum(nodes + change, end)) for change in (-rounding, rounding)]
        half = float(np.abs(moved[1] - moved[0]).sum())
        return found - half, found + half


def _rule(function: str | float | Callable) -> _Rule:
    if callable(function):
        return _Rule(getattr(function, "__name__", "a function"), function)
    if function == "log":
        return _Rule("log", np.log, gauss_above=True, domain="positive")
    if function == "inverse":
        function = -1.0
    if isinstance(function, str) or not math.isfinite(function) or function == 0:
        raise ConfigurationError(
            f"function must be 'log', 'inverse', a finite power other than 0, or a callable, got {function!r}."
        )
    power = float(function)
    if power > 0 and power.is_integer():  # a polynomial: its rule is exact, and lies on no side
        return _Rule(f"x^{power:g}", lambda x: x**power, least_steps=math.ceil(power) + 2)
    # The derivative of order j > p of x^p has the sign (-1)^(j - ceil(p)), or (-1)^j for p < 0; the Gauss rule is
    # below the truth where even ones are positive.
    return _Rule(
        f"x^{power:g}" if power != -1 else "inverse",
        lambda x: x**power,
        gauss_above=power > 0 and math.ceil(power) % 2 == 1,
        increasing=power > 0,
        least_steps=max(1, math.ceil(power)),
        domain="positive" if power < 0 else "not negative",
    )


def _by_quadrature(
    operator: SymmetricOperator,
    rule: _Rule,
    what: str,
    damping: float,
    end: float,
    relative_error: float,
    max_products: int,
    generator: torch.Generator,
    started: float,
) -> Estimate:
    probes = _normal(operator.dim, _PILOT, generator)
    steps, used = min(max(_FIRST_STEPS, rule.least_steps), operator.dim), 0
    while True:
        below, above = _quadratures(operator, rule, probes, steps, damping, end)
        used += steps * _PILOT
        goal = relative_error * abs(float(below.mean() + above.mean())) / 2
        settled = float((above - below).mean()) / 2 <= goal / 2
        if settled or steps == operator.dim or used + 2 * steps * _PILOT > max_products:
            break
        steps = min(2 * steps, operator.dim)
    # The number of probes depends on the spread of the pilot alone, so its quantile stays right (Stein 1945).
    pilot = _quantile(_PILOT) * _spread((below + above) / 2)
    affordable = (max_products - used) // steps
    wanted = math.inf if goal == 0 else math.ceil((2 * pilot / goal) ** 2) - _PILOT
    more = int(min(affordable, max(0, wanted))) if pilot > 0 else 0
    if more:
        rest = _quadratures(operator, rule, _normal(operator.dim, more, generator), steps, damping, end)
        below, above = np.concatenate([below, rest[0]]), np.concatenate([above, rest[1]])
        used += more * steps
    count = len(below)
    middle = (below + above) / 2
    value = float(middle.mean())
    stein = pilot / count**0.5
    rounding = _units(operator) * abs(value)
    low = min(mean_interval(below)[0], float(below.mean()) - stein) - rounding
    high = max(mean_interval(above)[1], float(above.mean()) + stein) + rounding
    return _estimate(
        operator,
        what,
        value,
        low,
        high,
        "quadrature",
        used,
        started,
        _spread(middle) / count**0.5,
        count,
        quadrature_error=float((above - below).mean()) / 2,
        converged=(high - low) / 2 <= relative_error * abs(value),
        note=f"{steps} Lanczos steps"
        + ("" if rule.certified else "; the quadrature part is the change over the last half of them, not a bound"),
    )


def _quadratures(
    operator: SymmetricOperator, rule: _Rule, probes: Tensor, steps: int, damping: float, end: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of ``D q^T f(A + damping) q`` for each unit probe; both ``(P,)``."""
    group = max(1, _AT_ONCE // (steps * operator.dim))
    parts = [_tridiagonal(operator, part, steps) for part in probes.split(group, dim=1)]
    diagonal, off_diagonal = (np.concatenate(part) for part in zip(*parts, strict=True))
    diagonal = diagonal + damping
    nodes, weights = _gauss(diagonal, off_diagonal)
    rounding = _units(operator) * float(np.abs(nodes).max())
    if nodes.min() < end - 10 * rounding:
        raise SelfCheckError(
            f"{operator.name} has an eigenvalue of at most {nodes.min() - damping:.3g}, below the promised lower bound "
            f"{end - damping:.3g}."
        )
    if not rule.certified:
        found = rule.at(np.maximum(nodes, end), weights)
        half = max(1, steps // 2)
        nodes, weights = _gauss(diagonal[:, :half], off_diagonal[:, : half - 1])
        change = 0.0 if steps == operator.dim else np.abs(rule.at(np.maximum(nodes, end), weights) - found)
        return operator.dim * (found - change), operator.dim * (found + change)
    # Logarithm, inverse and square root are operator monotone (Loewner): moving all nodes one way bounds what any
    # perturbation of the tridiagonal matrix of that norm can do, to the weights as well.
    gauss = rule.at(np.maximum(rule.moved(nodes, rounding, above=rule.gauss_above), end), weights)
    # A node a little below the spectrum, so that rounding does not put it inside.
    raised = gauss_radau(diagonal + rounding, off_diagonal, end)
    nodes, weights = _gauss(raised, off_diagonal)
    if end > 4 * rounding:
        radau = rule.at(rule.moved(nodes - rounding, rounding, above=not rule.gauss_above), weights)
    else:
        # No room below: the raised matrix itself, and |f(A + X) - f(A)| <= |f(|X|) - f(0)| (Ando 1988) for raising it.
        ends = np.array([end, float(np.abs(nodes).max())])
        change = np.abs(rule.values(ends + 2 * rounding) - rule.values(ends)).max()
        radau = rule.at(np.maximum(nodes, end), weights) + (-change if rule.gauss_above else change)
    below, above = (radau, gauss) if rule.gauss_above else (gauss, radau)
    return operator.dim * below, operator.dim * above


def _tridiagonal(operator: SymmetricOperator, probes: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    starts = probes.to(operator.device, operator.dtype)
    diagonal, off_diagonal = (part.double().cpu().numpy() for part in lanczos(operator, starts, steps))
    # Past an exhausted Krylov space come zeros that belong to no eigenvalue; they have no weight, but must be harmless.
    done = np.concatenate([np.zeros((len(diagonal), 1), bool), np.cumsum(off_diagonal == 0, axis=1) > 0], axis=1)
    return np.where(done, diagonal[:, :1], diagonal), off_diagonal


def _gauss(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = diagonal.shape[1]
    matrices = np.zeros((len(diagonal), size, size))
    index = np.arange(size)
    matrices[:, index, index] = diagonal
    matrices[:, index[1:], index[:-1]] = off_diagonal  # LAPACK reads the lower triangle
    nodes, vectors = np.linalg.eigh(matrices)
    return nodes, vectors[:, 0] ** 2


def _all_eigenvalues(operator: SymmetricOperator) -> tuple[np.ndarray, float, int]:
    """All eigenvalues in float64, what their rounding is relative to if more than their size, and the products."""
    if operator.kept is None and operator.factor_columns is not None and operator.factor_columns < operator.dim:
        gram, scale = operator._gram()
        found = eigenvalues(gram.cpu().numpy()).astype(np.float64)
        return np.concatenate([np.zeros(operator.dim - len(found)), found]), scale, 0
    known = operator.kept is not None or operator.dense_form is not None
    return eigenvalues(operator.entries().cpu().numpy()).astype(np.float64), 0.0, 0 if known else operator.dim


def _undefined(operator: SymmetricOperator, rule: _Rule, why: str) -> NotDefinedError:
    return NotDefinedError(
        f"the {rule.name} of {operator.name} needs eigenvalues known to be positive, but {why}: raise the damping, or "
        "look at the indefinite spectrum itself."
    )


# -------------------------------------------------------------------------------------------------------------- common


def _choice(method: str, methods: tuple[str, ...]) -> None:
    if method not in methods:
        raise ConfigurationError(f"method must be one of {', '.join(methods)}, got {method!r}.")


def _demand(method: str, budget: int, least: int, generator: torch.Generator | None) -> None:
    if budget < least:
        raise ConfigurationError(f"method={method!r} needs a budget of at least {least} products, got {budget}.")
    if generator is None:
        raise ConfigurationError(f"method={method!r} draws random probes: pass generator=torch.Generator()...")


def _cheap(operator: SymmetricOperator, budget: int) -> bool:
    """Whether the diagonal costs less than estimating it."""
    return (
        operator.kept is not None
        or operator.factor_blocks is not None
        or operator.dim <= budget
        or (operator.dense_form is not None and operator.dim <= _CHEAP_DIM)
    )


def _signs(dim: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (dim, count), generator=generator).double() * 2 - 1


def _normal(dim: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(dim, count, generator=generator, dtype=torch.float64)


def _product(operator: SymmetricOperator, block: Tensor) -> Tensor:
    """In the matrix's own precision, but for a rounding to it, and on in float64."""
    ensure_memory(4 * block.numel() * 8, f"{block.shape[1]} vectors for {operator.name}")
    return (operator @ block.to(operator.device, operator.dtype)).double()


def _frobenius(images: Tensor) -> float:
    """Estimate of the Frobenius norm of the matrix from its images of probes with unit variance."""
    largest = float(images.abs().max())  # squares of the entries may vanish or overflow
    return largest * float(torch.linalg.matrix_norm(images / (largest or 1.0))) / images.shape[1] ** 0.5


def _units(operator: SymmetricOperator) -> float:
    """Rounding of a sum over coordinates, relative to its terms."""
    return max(10.0, operator.dim**0.5) * torch.finfo(operator.dtype).eps


def _quantile(count: int) -> float:
    return float(student.ppf((1 + LEVEL) / 2, count - 1))


def _spread(samples: np.ndarray) -> float:
    """Sample standard deviation, for any scale: squares neither overflow nor vanish."""
    away = samples - samples.mean()
    scale = float(np.abs(away).max())
    return 0.0 if scale == 0 else scale * float((((away / scale) ** 2).sum() / (len(samples) - 1)) ** 0.5)


def _without_each(count: int) -> Tensor:
    """Row ``i`` lists all indices but ``i``, ``(count, count - 1)``."""
    every = torch.arange(count).expand(count, count)
    return every[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)


def _estimate(
    operator: SymmetricOperator,
    what: str,
    value: float | np.ndarray,
    low: float | np.ndarray,
    high: float | np.ndarray,
    method: str,
    products: int,
    started: float,
    error: float | np.ndarray = 0.0,
    num_probes: int = 0,
    **about: float | bool | str,
) -> Estimate:
    return Estimate(
        what=what,
        value=value,
        low=low,
        high=high,
        level=1.0 if method == "exact" else LEVEL,
        method=method,
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        dim=operator.dim,
        standard_error=error,
        num_products=products,
        num_probes=num_probes,
        num_examples=operator.num_examples,
        seconds=time.perf_counter() - started,
        **about,
    )
