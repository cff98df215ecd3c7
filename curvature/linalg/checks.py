r"""Self-checks: what a matrix must pass before its numbers are believed.

A matrix $A$ is multiplied by a few random vectors $X$. The small matrix $X^T A X$ is compared with itself (symmetry,
linearity, definiteness) and with *witnesses*: other ways to the same $X^T A X$, such as finite differences of the
gradient, which share no second derivative with the products. Any error in $A$ that is not tiny shows in random
directions with probability one. This module knows numbers only; each matrix brings its own witnesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvature.errors import SelfCheckError
from curvature.linalg.norms import vector_norms
from curvature.records import Check

__all__ = ["Testimony", "Witness", "same_form", "self_checks"]

_COLUMNS = 3
_ROUNDING = 1e5  # units of rounding between two routes to the same number: deep networks amplify
_KINK = 1e-4  # share of a one-sided difference that must be gone at the smallest step


@dataclass(frozen=True)
class Testimony:
    """What a witness says of ``A``, for vectors ``V`` of shape ``(D, K)``.

    Attributes
    ----------
    form
        ``V^T A V``, ``(K, K)``.
    rounding
        How far rounding may have moved an entry of it.
    roughness
        How much its one-sided differences disagree, relative; 0 for a smooth function.
    image
        ``A V``, where the witness computes it.
    """

    form: Tensor
    rounding: float = 0.0
    roughness: float = 0.0
    image: Tensor | None = None


@dataclass(frozen=True)
class Witness:
    """Another way to ``V^T A V``.

    Attributes
    ----------
    name
        Completes the sentence "agrees with ...".
    testify
        ``(V, shrink) -> Testimony`` for ``V`` of shape ``(D, K)``; ``shrink`` makes a finite step smaller.
    blame
        What a disagreement means, and what to do.
    shrinks
        Steps to try until one agrees, as shares of the usual step: a step that is right for a smooth function may cross
        a kink, or be too long where the inputs are large.
    tolerance
        Largest difference, relative; None: rounding.
    """

    name: str
    testify: Callable[[Tensor, float], Testimony]
    blame: str | Callable[[], str]
    shrinks: tuple[float, ...] = (1.0,)
    tolerance: float | None = None

    def through(self, map_: Callable[[Tensor], Tensor]) -> Witness:
        """Make it a witness of ``M^T A M`` for a linear map ``M``.

        Parameters
        ----------
        map_
            ``V -> M V`` for blocks.

        Returns
        -------
        Witness
            Without an image.
        """
        return replace(self, testify=lambda block, shrink: replace(self.testify(map_(block), shrink), image=None))


def same_form(multiply: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], Testimony]:
    """Testify by another way to the products.

    Parameters
    ----------
    multiply
        ``V -> A V`` for blocks ``(D, K)``.

    Returns
    -------
    Callable
        For :attr:`Witness.testify`; the step is not used.
    """

    def testify(block: Tensor, _: float) -> Testimony:
        image = multiply(block)
        return Testimony(block.to(image.dtype).T @ image, image=image)

    return testify


def self_checks(
    name: str,
    multiply: Callable[[Tensor], Tensor],
    dim: int,
    like: Tensor,
    *,
    positive_semidefinite: bool = False,
    cancelled: float = 0.0,
    scale: float = 0.0,
    witnesses: Sequence[Witness] = (),
) -> tuple[Check, ...]:
    r"""Check that products belong to one symmetric matrix that agrees with its witnesses.

    ======================  ===================================================================================
    repetition              the same products twice
    linearity               $A(u - 2v)$ against $A u - 2 A v$
    symmetry                $|u^T A v - v^T A u|$ for three pairs
    definiteness            $v^T A v \ge 0$, where the definition says so
    agreement with ...      $V^T A V$ against each witness; at a kink of the loss, where one-sided differences do
                            not agree with each other, nothing is compared and the note says so
    ======================  ===================================================================================

    Parameters
    ----------
    name
        Of the matrix, for messages.
    multiply
        ``V -> A V`` for blocks ``(D, K)``.
    dim
        $D$.
    like
        Gives precision and device.
    positive_semidefinite
        Whether the definition guarantees it.
    cancelled
        Length of the mean that was taken out of the columns of the factor of a covariance. Rounding is relative to it
        times the root of the norm, where that is more than the norm.
    scale
        Norm of the terms of a sum or a difference, which rounding is relative to where that is more than the norm.
    witnesses
        Other ways to ``V^T A V``.

    Returns
    -------
    tuple of Check
        All of them passed.

    Raises
    ------
    SelfCheckError
        Names the check, the size of the failure and what it means.

    Notes
    -----
    Costs two products with four vectors, and what the witnesses cost. The vectors are always the same, so a check can
    be repeated.

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
    # A random unit vector has a share 1 / sqrt(D) of its image along another one.
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
            "The same product gave two results: something in the model or the loss is random, or keeps a state.",
        ),
        required(
            "linearity",
            (images[:, -1] - images[:, 0] + 2 * images[:, 1]).abs().max(),
            rounding,
            "The products do not belong to one matrix: something in the model or the loss changes between calls.",
        ),
    ]
    # Before symmetry: where a second derivative is wrong, finite differences know more about the cause.
    for witness in witnesses:
        check = _agreement(witness, vectors[:, :2], images[:, :2], along, eps * amplified)
        checks.append(_required(name, check, witness.blame))
    checks.append(
        required(
            "symmetry",
            (form - form.T).abs().max(),
            rounding,
            "A layer has a wrong or a random second derivative; freeze or replace it.",
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
    """NaN stays NaN."""
    return difference / size if size > 0 else (0.0 if difference == 0 else math.inf)


def _agreement(witness: Witness, vectors: Tensor, images: Tensor, scale: float, eps: float) -> Check:
    tolerance = _ROUNDING * eps if witness.tolerance is None else witness.tolerance
    name = f"agreement with {witness.name}"
    form = vectors.T @ images
    values = []
    for shrink in witness.shrinks:
        testimony = witness.testify(vectors, shrink)
        excess = float((testimony.form - form).abs().max()) - testimony.rounding
        values.append(_relative(0.0 if excess <= 0 else excess, scale))  # NaN stays
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
