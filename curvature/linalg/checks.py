r"""Self-checks that a matrix must pass before its eigenvalues are reported.

A matrix $A$ is multiplied by a few random vectors $X$. The small matrix $X^T A X$ is compared with itself (symmetry,
linearity, definiteness) and with *witnesses*: independent computations of $X^T A X$, such as finite differences of the
gradient, which share no second derivative with the products. An error in $A$ beyond the tolerance shows in random
directions with probability one. This module knows numbers only: each matrix supplies its witnesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import SelfCheckError
from curvature.linalg.norms import vector_norms
from curvature.records import Check

__all__ = ["Testimony", "Witness", "same_form", "self_checks"]

_COLUMNS = 3  # random vectors
_ROUNDING = 1e5  # units of rounding allowed between two computations: deep networks amplify rounding
_KINK = 1e-4  # relative disagreement of one-sided differences, at the smallest step, that shows a kink


@dataclass(frozen=True)
class Testimony:
    """Result of a witness for a matrix ``A`` and vectors ``V`` of shape ``(D, K)``.

    Attributes
    ----------
    form
        ``V^T A V``, ``(K, K)``.
    rounding
        Bound of the rounding error of an entry of ``form``.
    roughness
        Relative disagreement of one-sided differences; 0 for a smooth function.
    image
        ``A V``, if the witness computes it.
    """

    form: Float[Tensor, "columns columns"]
    rounding: float = 0.0
    roughness: float = 0.0
    image: Float[Tensor, "dim columns"] | None = None


@dataclass(frozen=True)
class Witness:
    """An independent computation of ``V^T A V``.

    Attributes
    ----------
    name
        Completes the sentence "agrees with ...".
    testify
        ``(V, shrink) -> Testimony`` for ``V`` of shape ``(D, K)``; ``shrink`` multiplies the step of differences.
    blame
        End of the error message: what a disagreement means and what to do. Or a function that returns it.
    shrinks
        Values of ``shrink`` to try until one agrees: the step for a smooth function may cross a kink, or be too long
        where the inputs are large.
    tolerance
        Largest relative difference that passes; None: that of rounding.
    """

    name: str
    testify: Callable[[Tensor, float], Testimony]
    blame: str | Callable[[], str]
    shrinks: tuple[float, ...] = (1.0,)
    tolerance: float | None = None

    def through(self, map_: Callable[[Tensor], Tensor]) -> Witness:
        """Derive a witness of ``M^T A M`` for a linear map ``M``.

        Parameters
        ----------
        map_
            ``V -> M V`` for blocks of vectors.

        Returns
        -------
        Witness
            Its testimony has no image.
        """
        return replace(self, testify=lambda block, shrink: replace(self.testify(map_(block), shrink), image=None))


def same_form(multiply: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], Testimony]:
    """Make the function of a witness from another implementation of the products.

    Parameters
    ----------
    multiply
        ``V -> A V`` for blocks ``(D, K)``.

    Returns
    -------
    Callable
        For :attr:`Witness.testify`; the step does not matter.
    """

    def testify(block: Tensor, _: float) -> Testimony:
        image = multiply(block)
        return Testimony(block.to(image.dtype).T @ image, image=image)

    return testify


def self_checks(
    name: str,
    multiply: Callable[[Tensor], Tensor],
    dim: int,
    like: Float[Tensor, "..."],
    *,
    positive_semidefinite: bool = False,
    cancelled: float = 0.0,
    scale: float = 0.0,
    witnesses: Sequence[Witness] = (),
) -> tuple[Check, ...]:
    r"""Check that products belong to a symmetric matrix that agrees with its witnesses.

    ======================  ===================================================================================
    repetition              the same products, computed twice
    linearity               $A(u - 2v)$ against $A u - 2 A v$
    symmetry                $|u^T A v - v^T A u|$ for three pairs
    definiteness            $v^T A v \ge 0$, if the definition guarantees it
    agreement with ...      $V^T A V$ against each witness; not compared at a kink of the loss, where one-sided
                            differences disagree with each other (the note says so)
    ======================  ===================================================================================

    Parameters
    ----------
    name
        Name of the matrix, for messages.
    multiply
        ``V -> A V`` for blocks ``(D, K)``.
    dim
        Dimension $D$.
    like
        A tensor with the precision and device of the matrix.
    positive_semidefinite
        Whether the definition guarantees it.
    cancelled
        Length of the mean that was subtracted from the columns of the factor of a covariance. Rounding is relative to
        this length times the root of the norm, if that is more than the norm.
    scale
        Norm of the terms of a sum or a difference. Rounding is relative to it, if that is more than the norm.
    witnesses
        Independent computations of ``V^T A V``.

    Returns
    -------
    tuple of Check
        The checks, all passed.

    Raises
    ------
    SelfCheckError
        If a check fails; the message names the check, its deviation and what it means.

    Notes
    -----
    Costs two products with four vectors, and the cost of the witnesses. The random vectors have a fixed seed, so a
    check can be repeated.

    Examples
    --------
    >>> A = torch.tensor([[2.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    >>> self_checks("matrix", lambda block: A @ block, 2, A)
    Traceback (most recent call last):
    ...
    curvature.errors.SelfCheckError: matrix fails its self-check "symmetry": ...
    """
    eps = torch.finfo(like.dtype).eps
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(dim, _COLUMNS, generator=generator, dtype=torch.float64).to(like)
    vectors /= torch.linalg.vector_norm(vectors, dim=0)
    block = torch.cat([vectors, vectors[:, :1] - 2 * vectors[:, 1:2]], dim=1)
    images = multiply(block)
    size = float(vector_norms(images, 0).max())
    form = vectors.T @ images[:, :_COLUMNS]
    # Two random unit vectors have an inner product of about 1 / sqrt(D), so v^T A w is about |A v| / sqrt(D).
    along = max(float(form.abs().max()), size / dim**0.5)
    amplified = max(1.0, cancelled / size**0.5, scale / size) if size > 0 else 1.0
    rounding = 100 * eps * amplified

    def required(check: str, difference: Tensor | float, tolerance: float, blame: str) -> Check:
        return _required(name, Check(check, _relative(float(difference), size), tolerance, "of |A v|"), blame)

    checks = [
        required(
            "repetition",
            (multiply(block) - images).abs().max(),
            10 * eps * amplified,
            "The same product gave two results: something in the model or the loss is random or keeps a state.",
        ),
        required(
            "linearity",
            (images[:, -1] - images[:, 0] + 2 * images[:, 1]).abs().max(),
            rounding,
            "The products are not linear: something in the model or the loss changes between calls.",
        ),
    ]
    # Witnesses come before symmetry: of a wrong second derivative, finite differences tell more about the cause.
    for witness in witnesses:
        check = _agreement(witness, vectors[:, :2], images[:, :2], along, eps * amplified)
        checks.append(_required(name, check, witness.blame))
    checks.append(
        required(
            "symmetry",
            (form - form.T).abs().max(),
            rounding,
            "A layer has a wrong or a random second derivative: freeze or replace it.",
        )
    )
    if positive_semidefinite:
        checks.append(
            required(
                "definiteness",
                (-form.diagonal().min()).clamp(min=0),
                rounding,
                "It must be positive semidefinite: a derivative or the loss is wrong.",
            )
        )
    return tuple(checks)


def _relative(difference: float, size: float) -> float:
    """Difference in units of a size; NaN stays NaN."""
    return difference / size if size > 0 else (0.0 if difference == 0 else math.inf)


def _agreement(witness: Witness, vectors: Tensor, images: Tensor, scale: float, eps: float) -> Check:
    """Compare a witness with the products, with shorter and shorter steps until they agree."""
    tolerance = _ROUNDING * eps if witness.tolerance is None else witness.tolerance
    name = f"agreement with {witness.name}"
    form = vectors.T @ images
    values = []
    for shrink in witness.shrinks:
        testimony = witness.testify(vectors, shrink)
        excess = float((testimony.form - form).abs().max()) - testimony.rounding
        values.append(_relative(0.0 if excess <= 0 else excess, scale))  # NaN stays NaN
        if values[-1] <= tolerance:
            note = "of V^T A V" if shrink == 1 else f"of V^T A V; with {shrink:.1g} of the usual step"
            if testimony.image is None:
                return Check(name, values[-1], tolerance, note)
            error, length = (float(vector_norms(block, 0).max()) for block in (testimony.image - images, images))
            rounding = _relative(error, length)
            return Check(name, values[-1], tolerance, note, rounding=rounding)
    if testimony.roughness > _KINK:
        note = f"not compared: the loss has a kink here, one-sided differences disagree by {testimony.roughness:.0e}"
        return Check(name, min(values), math.inf, note)
    return Check(name, min(values), tolerance, "of V^T A V")


def _required(name: str, check: Check, blame: str | Callable[[], str]) -> Check:
    if not check.passed:
        blame = blame if isinstance(blame, str) else blame()
        raise SelfCheckError(
            f'{name} fails its self-check "{check.name}": {check.value:.1e} {check.note}, {check.tolerance:.1e} is '
            f"allowed. {blame}"
        )
    return check
