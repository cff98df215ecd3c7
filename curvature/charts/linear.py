"""Charts that are affine in their coordinates: the weights themselves, scaled rows, and preconditioners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from curvature.arrays import Float, Int, Num
from curvature.charts.chart import Chart, Parameterization
from curvature.charts.rows import PAPER_SCALE, refuse_not_positive, refuse_zero_rows, row_norms, row_values
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry, Layout

__all__ = ["AffineChart", "GivenChart", "LinearChart", "ScaledStandard", "Standard"]

_Indices = Tensor | slice
_Block = tuple[_Indices, Tensor]  # a symmetric matrix, or a diagonal


class Standard(Parameterization):
    """The weights themselves: $J = I$."""

    name = "standard"

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        """Build the identity chart."""
        return MultiplierChart(self, layout, weights, torch.ones_like(weights))


class ScaledStandard(Parameterization):
    r"""The published baseline of weight normalization: $w = \gamma \theta$ with $\gamma$ frozen, so $K = \gamma^2 I$.

    The authors' "standard" arm keeps the scale that data-dependent initialization chose and trains
    $\theta$ (openai/weightnorm). Biases are left as they are.

    Parameters
    ----------
    scale
        $\gamma$, one number, or one tensor of row scales per normalized weight by name. None: the
        paper's, such that each row of $\theta$ has norm $0.05 \sqrt{\text{fan-in}}$.
    """

    name = "scaled-standard"

    def __init__(self, scale: float | Mapping[str, Num[Tensor, "..."]] | None = None):
        if isinstance(scale, int | float):
            refuse_not_positive(scale, "scale")
        self.scale = scale
        self.gauge = "paper" if scale is None else "given" if isinstance(scale, Mapping) else f"scale={scale:g}"

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        """Build the chart of scaled rows."""
        multipliers = torch.ones_like(weights)
        for entry, span in layout.pairs():
            if not entry.normalized:
                continue
            rows = entry.rows(weights[span])
            if self.scale is None:
                scale = row_norms(rows) / (PAPER_SCALE * math.sqrt(rows.shape[1]))
            elif isinstance(self.scale, Mapping):
                scale = row_values(self.scale, entry, weights, "scale")
            else:
                scale = weights.new_full((len(rows),), float(self.scale))
            refuse_zero_rows(scale, entry, "the scale of")
            multipliers[span] = entry.from_rows(scale[:, None].expand_as(rows))
        return MultiplierChart(self, layout, weights, multipliers)


class MultiplierChart(Chart):
    """A chart ``w = multiplier * theta``, elementwise.

    Parameters
    ----------
    parameterization
        Whose chart this is.
    layout, weights
        The point.
    multipliers
        Positive factors ``(P,)``.
    """

    flat = True

    def __init__(self, parameterization: Parameterization, layout: Layout, weights: Tensor, multipliers: Tensor):
        self.parameterization = parameterization
        self.name, self.gauge, self.layout = parameterization.name, parameterization.gauge, layout
        self.multipliers = multipliers
        self.coordinates = weights / multipliers

    null_dim = 0

    def moved(self, coordinates: Tensor) -> Parameterization:
        del coordinates
        if not isinstance(self.parameterization, ScaledStandard):
            return self.parameterization
        scale = {
            entry.name: entry.rows(self.multipliers[span])[:, 0]
            for entry, span in self.layout.pairs()
            if entry.normalized
        }
        return ScaledStandard(scale)

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.multipliers * coordinates

    def linearize(self, coordinates: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.to_weights(coordinates), self.multipliers.mul

    def push(self, tangents: Tensor) -> Tensor:
        return self.multipliers[:, None] * tangents

    def pull(self, cotangents: Tensor) -> Tensor:
        return self.push(cotangents)

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        del gradient
        return torch.zeros_like(tangents)

    def metric_root(self, block: Tensor) -> Tensor:
        return self.multipliers.abs()[:, None] * block

    def horizontal(self, block: Tensor) -> Tensor:
        return self.multipliers.sign()[:, None] * block

    horizontal_transpose = horizontal


class LinearChart(Parameterization):
    r"""An affine chart $w = w_0 + M\theta$ around the point, with $K = M M^T$.

    With $M = (F + \lambda I)^{-1/2}$ gradient descent in it is the damped natural gradient; a diagonal
    $M$ is a Jacobi preconditioner. ``preconditioners`` builds the usual ones from a Fisher matrix.

    Parameters
    ----------
    factor
        $M$: a vector (diagonal), a matrix ``(P, Q)``, or a list of ``(indices, block)`` pairs with
        square symmetric blocks; coordinates that no block covers keep $K = I$. Indices of shape ``(rows, n)``
        share one block between their rows, $I \otimes M$, at the cost of one.
    name
        For records.
    gauge
        For records, e.g. the damping.
    """

    def __init__(
        self,
        factor: Float[Tensor, "..."] | Sequence[tuple[Int[Tensor, "..."], Float[Tensor, "..."]]],
        *,
        name: str = "linear",
        gauge: str = "-",
    ):
        if not isinstance(factor, Tensor):
            factor = _pairs_of(factor, name)
        else:
            _refuse_integers(factor, name)
        self.factor, self.name, self.gauge = factor, name, gauge

    def __repr__(self) -> str:
        return f"LinearChart({self.label})"

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        """Build the affine chart; its coordinates at the point are zero."""
        if isinstance(self.factor, Tensor):
            if self.factor.ndim not in (1, 2) or self.factor.shape[0] != len(weights):
                raise ConfigurationError(
                    f"the factor of {self.name} must have {len(weights)} rows, got shape {tuple(self.factor.shape)}."
                )
            if not torch.isfinite(self.factor).all():
                raise InputError(f"the factor of {self.name} has NaN or infinite entries.")
            if self.factor.ndim == 1:
                return AffineChart(self, layout, weights, [(slice(None), self.factor)])
            return _DenseChart(self, layout, weights, self.factor)
        _refuse_blocks(self.factor, self.name, len(weights))
        return AffineChart(self, layout, weights, list(self.factor))


def _pairs_of(blocks: object, name: str) -> list[tuple[Tensor, Tensor]]:
    """Refuse what is not a list of pairs of tensors; indices may be anything that becomes a tensor of integers."""
    wanted = "a vector, a matrix (P, Q), or a list of (indices, block) pairs of tensors"
    if isinstance(blocks, Mapping):
        raise ConfigurationError(
            f"the factor of {name} is a mapping of {', '.join(map(repr, blocks)) or 'nothing'}, but must be {wanted}. "
            "Give the coordinates of each parameter instead of its name: problem.layout.slices[name] has their range."
        )
    pairs: list[tuple[Tensor, Tensor]] = []
    for pair in list(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else [blocks]:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
            raise ConfigurationError(
                f"the factor of {name} must be {wanted}, got {type(blocks).__name__} with {type(pair).__name__}."
            )
        _refuse_integers(pair[1], name)
        pairs.append((pair[0], pair[1]))
    return pairs


def _refuse_integers(factor: Tensor, name: str) -> None:
    if not factor.is_floating_point():
        raise ConfigurationError(
            f"the factor of {name} has type {factor.dtype}, but weights are real numbers. Convert it with .double()."
        )


def _refuse_blocks(blocks: Sequence[tuple[Tensor, Tensor]], name: str, dim: int) -> None:
    """Refuse blocks that overlap, reach outside the weights, or are not symmetric."""
    covered = torch.cat([torch.as_tensor(indices).cpu().reshape(-1) for indices, _ in blocks] or [torch.arange(0)])
    outside = len(covered) and not 0 <= int(covered.min()) <= int(covered.max()) < dim
    if outside or len(covered.unique()) < len(covered):
        raise ConfigurationError(f"the blocks of {name} overlap, or reach outside the {dim} weights.")
    for indices, block in blocks:
        size = indices.shape[-1]
        # Blocks made by this package are symmetric to the last bit, which is quicker to see.
        if block.shape != (size, size) or not (torch.equal(block, block.T) or torch.allclose(block, block.T)):
            raise ConfigurationError(
                f"a block of {name} must be symmetric and square of size {size}, got shape {tuple(block.shape)}."
            )


class GivenChart(Chart):
    """An affine chart whose Jacobian the user has given, with the largest entry of it."""

    flat = True
    largest_entry: float


class AffineChart(GivenChart):
    """``w = w_0 + M theta`` with ``M`` symmetric, block-diagonal up to a permutation."""

    def __init__(self, parameterization: LinearChart, layout: Layout, weights: Tensor, blocks: Sequence[_Block]):
        self.parameterization = parameterization
        self.name, self.gauge, self.layout = parameterization.name, parameterization.gauge, layout
        self.origin = weights
        self.coordinates = torch.zeros_like(weights)
        self.blocks = blocks
        self.largest_entry = max([1.0, *(float(block.abs().max()) for _, block in blocks if block.numel())])

    def moved(self, coordinates: Tensor) -> Parameterization:
        del coordinates  # an affine chart is the same around every point
        return self.parameterization

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.origin + self.push(coordinates[:, None])[:, 0]

    def linearize(self, coordinates: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.to_weights(coordinates), lambda cotangent: self.pull(cotangent[:, None])[:, 0]

    def push(self, tangents: Tensor) -> Tensor:
        pushed = tangents.clone()
        for indices, block in self.blocks:
            part = tangents[indices]
            pushed[indices] = block[:, None] * part if block.ndim == 1 else block @ part
        return pushed

    def pull(self, cotangents: Tensor) -> Tensor:
        return self.push(cotangents)

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        del gradient
        return torch.zeros_like(tangents)

    @cached_property
    def _spectral(self) -> list[tuple[_Indices, Tensor, Tensor | None]]:
        """Eigenvalues and vectors of each symmetric block, rounding set to zero; a diagonal has no vectors."""
        spectra: list[tuple[_Indices, Tensor, Tensor | None]] = []
        for indices, block in self.blocks:
            values, vectors = torch.linalg.eigh(block) if block.ndim == 2 else (block, None)
            null = values.abs() <= len(values) * torch.finfo(values.dtype).eps * values.abs().max()
            spectra.append((indices, torch.where(null, 0, values), vectors))
        return spectra

    @property
    def null_dim(self) -> int:
        total = 0
        for indices, values, _ in self._spectral:
            copies = 1 if isinstance(indices, slice) or indices.ndim == 1 else len(indices)
            total += copies * int((values == 0).sum())
        return total

    def _apply(self, function: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        """Multiply by a function of ``M``."""
        mapped = block.clone()
        for indices, values, vectors in self._spectral:
            part, scale = block[indices], function(values)[:, None]
            mapped[indices] = scale * part if vectors is None else vectors @ (scale * (vectors.T @ part))
        return mapped

    @cached_property
    def _positive(self) -> bool:
        """Whether ``M`` is positive definite, so that ``K^(1/2) = M``; Cholesky is a cheap test."""
        return all(
            bool((block > 0).all()) if block.ndim == 1 else int(torch.linalg.cholesky_ex(block).info) == 0
            for _, block in self.blocks
        )

    def metric(self, block: Tensor) -> Tensor:
        return self.push(self.push(block))

    def metric_root(self, block: Tensor) -> Tensor:
        return self.push(block) if self._positive else self._apply(torch.abs, block)

    def horizontal(self, block: Tensor) -> Tensor:
        return self._apply(torch.sign, block)

    horizontal_transpose = horizontal


class _DenseChart(GivenChart):
    """``w = w_0 + M theta`` with any dense ``M``."""

    def __init__(self, parameterization: LinearChart, layout: Layout, weights: Tensor, factor: Tensor):
        self.parameterization = parameterization
        self.name, self.gauge = parameterization.name, parameterization.gauge
        square = factor.shape[1] == len(weights)
        self.layout = layout if square else Layout((Entry("coordinates", (factor.shape[1],), layer=""),))
        self.origin, self.factor = weights, factor
        self.coordinates = weights.new_zeros(factor.shape[1])
        self.largest_entry = float(factor.abs().max())

    def moved(self, coordinates: Tensor) -> Parameterization:
        del coordinates  # an affine chart is the same around every point
        return self.parameterization

    def linearize(self, coordinates: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.to_weights(coordinates), lambda cotangent: self.pull(cotangent[:, None])[:, 0]

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.origin + self.factor @ coordinates

    def push(self, tangents: Tensor) -> Tensor:
        return self.factor @ tangents

    def pull(self, cotangents: Tensor) -> Tensor:
        return self.factor.T @ cotangents

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        del gradient
        return torch.zeros_like(tangents)
