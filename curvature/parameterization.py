r"""Charts: smooth maps from what is optimized to the weights.

Curvature lives on the weights. A parameterization, taken at a point, is a :class:`Chart` with
Jacobian $J = \partial\,\text{weights} / \partial\,\text{coordinates}$. It pulls a weight-space matrix
$A$ back to $J^T A J$; gradient descent in its coordinates is, to first order, gradient descent on the
weights preconditioned by $K = J J^T$.

A parameterization (``WeightNorm(stretch=3.0)``) says *which* chart; ``.at(layout, weights)`` builds it
at a point. To write one of your own, subclass :class:`Parameterization` and define ``to_weights`` and
``from_weights``; the Jacobian products and the second-order term then follow by ``torch.func``.
"""

from __future__ import annotations

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvature.errors import ConfigurationError, InputError, SelfCheckError
from curvature.layout import Entry, Layout

__all__ = ["Chart", "LinearChart", "Parameterization", "Placebo", "ScaledStandard", "Standard", "WeightNorm"]

PAPER_SCALE = 0.05  # Salimans & Kingma (2016), section 3: v is drawn from N(0, 0.05^2)


class Chart(ABC):
    r"""A parameterization at a point: coordinates $\theta$ with their map to the weights.

    Attributes
    ----------
    name, gauge
        For records and figures.
    coordinates
        The point, ``(Q,)``.
    layout
        Names of the coordinates.
    flat
        True where the map is affine, so that its second derivatives vanish.
    """

    name: str
    gauge: str
    coordinates: Tensor
    layout: Layout
    flat: bool = False

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.coordinates)

    @property
    def null_dim(self) -> int:
        r"""Dimension of $\ker J$: coordinates that do not move the weights to first order."""
        return self.dim - self._polar[1].numel()

    @abstractmethod
    def to_weights(self, coordinates: Tensor) -> Tensor:
        """Weights ``(P,)`` at these coordinates ``(Q,)``; differentiable."""

    @abstractmethod
    def moved(self, coordinates: Tensor) -> Parameterization:
        """Give the parameterization whose chart has these coordinates: its own gauge after training."""

    def push(self, tangents: Tensor) -> Tensor:
        """Push tangents forward, $J V$: ``(Q, K)`` to ``(P, K)``."""
        return _derivative_along(self.to_weights, self.coordinates, tangents)

    def pull(self, cotangents: Tensor) -> Tensor:
        """Pull cotangents back, $J^T R$: ``(P, K)`` to ``(Q, K)``."""
        _, transposed = torch.func.vjp(self.to_weights, self.coordinates)
        return torch.func.vmap(lambda cotangent: transposed(cotangent)[0], in_dims=1, out_dims=1)(cotangents)

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        r"""Multiply :meth:`second_order` by a block ``(Q, K)``."""
        projected = torch.func.grad(lambda coordinates: self.to_weights(coordinates) @ gradient)
        return _derivative_along(projected, self.coordinates, tangents)

    def second_order(self, gradient: Tensor) -> Tensor:
        r"""Give $\sum_k r_k\, \partial^2 w_k / \partial\theta^2$, shape ``(Q, Q)``, for the weight gradient $r$."""
        return self.second_order_product(gradient, torch.eye(self.dim, dtype=gradient.dtype, device=gradient.device))

    @cached_property
    def _polar(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thin singular value decomposition ``J = U S W^T`` on the rank of ``J``."""
        jacobian = self.push(torch.eye(self.dim, dtype=self.coordinates.dtype, device=self.coordinates.device))
        left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
        kept = values > max(jacobian.shape) * torch.finfo(values.dtype).eps * values[0]
        return left[:, kept], values[kept], right[kept].T

    def metric_root(self, block: Tensor) -> Tensor:
        r"""Multiply by $K^{1/2}$, $K = J J^T$: ``(P, K)`` to ``(P, K)``."""
        left, values, _ = self._polar
        return left @ (values[:, None] * (left.T @ block))

    def metric(self, block: Tensor) -> Tensor:
        r"""Multiply by $K = J J^T$: ``(P, K)`` to ``(P, K)``."""
        return self.metric_root(self.metric_root(block))

    def horizontal(self, block: Tensor) -> Tensor:
        r"""Map weight space onto the horizontal space $(\ker J)^\perp$: ``(P, K)`` to ``(Q, K)``.

        This is $O^T$ of the polar decomposition $J = K^{1/2} O$.
        """
        left, _, right = self._polar
        return right @ (left.T @ block)

    def horizontal_transpose(self, block: Tensor) -> Tensor:
        """Multiply by the transpose of :meth:`horizontal`: ``(Q, K)`` to ``(P, K)``."""
        left, _, right = self._polar
        return left @ (right.T @ block)


class Parameterization(ABC):
    """A way to write the weights of any model; :meth:`at` makes it a :class:`Chart` at given weights.

    Subclasses define ``name``, ``to_weights`` and ``from_weights``; flat vectors of length ``P`` and ``Q``.

    Examples
    --------
    >>> import torch
    >>> class Exponential(Parameterization):
    ...     name = "exponential"
    ...
    ...     def to_weights(self, coordinates):
    ...         return coordinates.exp()
    ...
    ...     def from_weights(self, weights):
    ...         return weights.log()
    >>> layout = Layout((Entry("scale", (2,), layer=""),))
    >>> chart = Exponential().at(layout, torch.tensor([1.0, 2.0]))
    >>> chart.push(torch.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """

    name: str = "custom"
    gauge: str = "-"

    def to_weights(self, coordinates: Tensor) -> Tensor:
        """Weights at these coordinates; differentiable by ``torch.func``."""
        raise NotImplementedError

    def from_weights(self, weights: Tensor) -> Tensor:
        """Any coordinates of these weights."""
        raise NotImplementedError

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the chart whose point has these weights."""
        del layout
        coordinates = self.from_weights(weights).detach()
        if coordinates.ndim != 1:
            raise InputError(f"from_weights of {self.name} must return a vector, got shape {tuple(coordinates.shape)}.")
        returned = self.to_weights(coordinates)
        if returned.shape != weights.shape:
            raise InputError(
                f"to_weights of {self.name} must return shape {tuple(weights.shape)}, got {tuple(returned.shape)}."
            )
        error = torch.linalg.vector_norm(returned - weights)
        scale = torch.linalg.vector_norm(weights)
        if not error <= 1e3 * torch.finfo(weights.dtype).eps * scale:
            raise SelfCheckError(
                f"{self.name}: to_weights(from_weights(w)) differs from w by {error / scale:.1e} (relative); "
                "the chart does not pass through the point."
            )
        return _AutodiffChart(self, coordinates)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gauge!r})" if self.gauge != "-" else f"{type(self).__name__}()"


class _AutodiffChart(Chart):
    """A user's parameterization at a point, differentiated by ``torch.func``."""

    def __init__(self, parameterization: Parameterization, coordinates: Tensor):
        self.parameterization = parameterization
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.coordinates = coordinates
        self.layout = Layout((Entry("coordinates", tuple(coordinates.shape), layer=""),))

    def moved(self, coordinates: Tensor) -> Parameterization:
        fixed = copy.copy(self.parameterization)
        fixed.gauge = "checkpoint"
        fixed.from_weights = lambda _weights: coordinates.detach()
        return fixed

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.parameterization.to_weights(coordinates)


class Standard(Parameterization):
    """The weights themselves: $J = I$."""

    name = "standard"

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the identity chart."""
        return _MultiplierChart(self, layout, weights, torch.ones_like(weights))


class ScaledStandard(Parameterization):
    r"""The published baseline of weight normalization: $w = \gamma \theta$ with $\gamma$ frozen, so $K = \gamma^2 I$.

    The authors' "standard" arm keeps the scale that data-dependent initialization found and trains
    $\theta$ (openai/weightnorm). Biases are left as they are.

    Parameters
    ----------
    scale
        $\gamma$, one number, or one tensor of row scales per normalized weight by name. None: the
        paper's, such that each row of $\theta$ has norm $0.05 \sqrt{\text{fan-in}}$.
    """

    name = "scaled-standard"

    def __init__(self, scale: float | Mapping[str, Tensor] | None = None):
        if isinstance(scale, int | float) and not (math.isfinite(scale) and scale > 0):
            raise ConfigurationError(f"scale must be a positive number, got {scale}.")
        self.scale = scale
        self.gauge = "paper" if scale is None else "given" if isinstance(scale, Mapping) else f"scale={scale:g}"

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the chart of scaled rows."""
        multipliers = torch.ones_like(weights)
        for entry, where in layout.pairs():
            if not entry.normalized:
                continue
            rows = entry.rows(weights[where])
            if self.scale is None:
                scale = _norms(rows) / (PAPER_SCALE * math.sqrt(rows.shape[1]))
            elif isinstance(self.scale, Mapping):
                scale = _row_values(self.scale, entry, weights, "scale")
            else:
                scale = weights.new_full((len(rows),), float(self.scale))
            _refuse_zero_rows(scale, entry, "the scale of")
            multipliers[where] = entry.from_rows(scale[:, None].expand_as(rows))
        return _MultiplierChart(self, layout, weights, multipliers)


class _MultiplierChart(Chart):
    """``w = multiplier * theta``, elementwise."""

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
            entry.name: entry.rows(self.multipliers[where])[:, 0]
            for entry, where in self.layout.pairs()
            if entry.normalized
        }
        return ScaledStandard(scale)

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.multipliers * coordinates

    def push(self, tangents: Tensor) -> Tensor:
        return self.multipliers[:, None] * tangents

    pull = push

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
        square symmetric blocks; coordinates that no block covers keep $K = I$.
    name
        For records.
    gauge
        For records, e.g. the damping.
    """

    def __init__(self, factor: Tensor | Sequence[tuple[Tensor, Tensor]], *, name: str = "linear", gauge: str = "-"):
        self.factor, self.name, self.gauge = factor, name, gauge

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the affine chart; its coordinates at the point are zero."""
        if isinstance(self.factor, Tensor):
            if self.factor.ndim not in (1, 2) or self.factor.shape[0] != len(weights):
                raise ConfigurationError(
                    f"the factor of {self.name} must have {len(weights)} rows, got shape {tuple(self.factor.shape)}."
                )
            if not torch.isfinite(self.factor).all():
                raise InputError(f"the factor of {self.name} has NaN or infinite entries.")
            if self.factor.ndim == 1:
                return _AffineChart(self, layout, weights, [(slice(None), self.factor)])
            return _DenseChart(self, layout, weights, self.factor)
        for indices, block in self.factor:
            if block.shape != (len(indices), len(indices)) or not torch.allclose(block, block.T):
                raise ConfigurationError(
                    f"a block of {self.name} must be symmetric and square of size {len(indices)}, got shape "
                    f"{tuple(block.shape)}."
                )
        return _AffineChart(self, layout, weights, list(self.factor))


class _AffineChart(Chart):
    """``w = w_0 + M theta`` with ``M`` symmetric, block-diagonal up to a permutation."""

    flat = True

    def __init__(
        self, parameterization: LinearChart, layout: Layout, weights: Tensor, blocks: list[tuple[Tensor, Tensor]]
    ):
        self.parameterization = parameterization
        self.name, self.gauge, self.layout = parameterization.name, parameterization.gauge, layout
        self.origin = weights
        self.coordinates = torch.zeros_like(weights)
        self.blocks = blocks

    def moved(self, coordinates: Tensor) -> Parameterization:
        del coordinates  # an affine chart is the same around every point
        return self.parameterization

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.origin + self.push(coordinates[:, None])[:, 0]

    def push(self, tangents: Tensor) -> Tensor:
        pushed = tangents.clone()
        for where, block in self.blocks:
            part = tangents[where]
            pushed[where] = block[:, None] * part if block.ndim == 1 else block @ part
        return pushed

    pull = push

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        del gradient
        return torch.zeros_like(tangents)

    @cached_property
    def _spectral(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Eigenvalues and vectors of each symmetric block; a diagonal is its own."""
        return [
            (where, *(torch.linalg.eigh(block) if block.ndim == 2 else (block, None))) for where, block in self.blocks
        ]

    @property
    def null_dim(self) -> int:
        count = 0
        for _, values, _ in self._spectral:
            largest = values.abs().max()
            count += int((values.abs() <= len(values) * torch.finfo(values.dtype).eps * largest).sum())
        return count

    def _apply(self, function: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        mapped = block.clone()
        for where, values, vectors in self._spectral:
            part, scale = block[where], function(values)[:, None]
            mapped[where] = scale * part if vectors is None else vectors @ (scale * (vectors.T @ part))
        return mapped

    @cached_property
    def _positive(self) -> bool:
        """Whether ``M`` is positive definite, so that ``K^(1/2) = M``: a Cholesky factorization is cheaper than a look."""
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


class _DenseChart(Chart):
    """``w = w_0 + M theta`` with any dense ``M``."""

    flat = True

    def __init__(self, parameterization: LinearChart, layout: Layout, weights: Tensor, factor: Tensor):
        self.parameterization = parameterization
        self.name, self.gauge = parameterization.name, parameterization.gauge
        square = factor.shape[1] == len(weights)
        self.layout = layout if square else Layout((Entry("coordinates", (factor.shape[1],), layer=""),))
        self.origin, self.factor = weights, factor
        self.coordinates = weights.new_zeros(factor.shape[1])

    moved = _AffineChart.moved

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.origin + self.factor @ coordinates

    def push(self, tangents: Tensor) -> Tensor:
        return self.factor @ tangents

    def pull(self, cotangents: Tensor) -> Tensor:
        return self.factor.T @ cotangents

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        del gradient
        return torch.zeros_like(tangents)


class WeightNorm(Parameterization):
    r"""Weight normalization, $w = g\, v / \|v\|$ per output row (Salimans & Kingma 2016, arXiv:1602.07868).

    With $u = v/\|v\|$, $M = I - u u^T$ and $\rho = (g/\|v\|)^2$ each row has
    $K = u u^T + \rho M$; the length $\|v\|$ is the *gauge*: it changes the curvature, not the function.

    Parameters
    ----------
    gauge
        ``"canonical"`` (what PyTorch's wrapper produces: $v = w$, $g = \|w\|$, so $K = I$; the default) or
        ``"paper"`` ($\|v\| = 0.05\sqrt{\text{fan-in}}$, the initialization of the paper).
    stretch
        $\|v\| / |g|$, dimensionless, 1 is canonical; one number or one tensor of row values per weight.
    v, g
        Explicit values by weight name; they must reproduce the weights they are used at.
    log_scale
        Optimize $s$ with $g = e^s$ instead of $g$; needs $g > 0$.
    layers
        Regular expression: normalize only the weights whose name matches.

    Coordinates are ordered parameter by parameter as in the module; ``g`` (one per row) then ``v``.

    Examples
    --------
    >>> WeightNorm(), WeightNorm(stretch=3.0), WeightNorm("paper", log_scale=True)
    (WeightNorm('canonical'), WeightNorm('stretch=3'), WeightNorm('paper, g = exp(s)'))
    """

    name = "weight-norm"

    def __init__(
        self,
        gauge: str | None = None,
        *,
        stretch: float | Mapping[str, Tensor] | None = None,
        v: Mapping[str, Tensor] | None = None,
        g: Mapping[str, Tensor] | None = None,
        log_scale: bool = False,
        layers: str | None = None,
    ):
        if (v is None) != (g is None):
            raise ConfigurationError("an explicit gauge needs both v and g; got only one of them.")
        if sum(choice is not None for choice in (gauge, stretch, v)) > 1:
            raise ConfigurationError("choose one of gauge, stretch, or explicit v and g.")
        if gauge not in (None, "canonical", "paper"):
            raise ConfigurationError(
                f"gauge must be 'canonical' or 'paper' (or pass stretch=, or v= and g=), got {gauge!r}."
            )
        if isinstance(stretch, int | float) and not (math.isfinite(stretch) and stretch > 0):
            raise ConfigurationError(f"stretch = ||v|| / |g| must be a positive number, got {stretch}.")
        self.stretch, self.v, self.g = stretch, v, g
        self.log_scale, self.layers = log_scale, layers
        self.rule = gauge or "canonical"
        if v is not None:
            self.gauge = "checkpoint"
        elif isinstance(stretch, Mapping):
            self.gauge = "stretch per row"
        else:
            self.gauge = self.rule if stretch is None else f"stretch={stretch:g}"
        if log_scale:
            self.gauge += ", g = exp(s)"

    def normalizes(self, entry: Entry) -> bool:
        """Whether this weight is written as ``g v / ||v||``."""
        chosen = entry.normalized and (self.layers is None or re.search(self.layers, entry.name) is not None)
        return chosen and (self.v is None or entry.name in self.v)

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the chart at these weights; a zero row of ``v`` is an error that names it."""
        if not any(self.normalizes(entry) for entry in layout.entries):
            raise ConfigurationError(
                "weight normalization applies to no weight here"
                + (f" (layers={self.layers!r})" if self.layers else "")
                + f"; the parameters are {', '.join(layout.slices)}."
            )
        groups = {}
        for entry, where in layout.pairs():
            if self.normalizes(entry):
                groups[entry.name] = self._row_scales(entry, entry.rows(weights[where]))
        return _WeightNormChart(self, layout, weights, groups)

    def _row_scales(self, entry: Entry, rows: Tensor) -> _Rows:
        if self.v is not None:
            v, scale = self._explicit(entry, rows)
            length = _norms(v)
            _refuse_zero_rows(length, entry, "v of")
            unit = v / length[:, None]
            error = torch.linalg.vector_norm(scale[:, None] * unit - rows)
            if not error <= 1e3 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows):
                raise ConfigurationError(f"the v and g given for {entry.name!r} do not reproduce its weights.")
        else:
            scale = _norms(rows)
            _refuse_zero_rows(scale, entry, "the weights of")
            unit = rows / scale[:, None]
            if isinstance(self.stretch, Mapping):
                length = scale * _row_values(self.stretch, entry, rows, "stretch")
                _refuse_zero_rows(length, entry, "the stretch of")
            elif self.stretch is not None:
                length = scale * self.stretch
            elif self.rule == "paper":
                length = torch.full_like(scale, PAPER_SCALE * math.sqrt(rows.shape[1]))
            else:
                length = scale
        if self.log_scale and (scale <= 0).any():
            row = int((scale <= 0).nonzero()[0])
            raise ConfigurationError(
                f"g = exp(s) needs positive g; row {row} of {entry.name!r} has g = {scale[row]:.3g}."
            )
        return _Rows(unit, scale, length)

    def _explicit(self, entry: Entry, rows: Tensor) -> tuple[Tensor, Tensor]:
        v, g = self.v[entry.name], self.g.get(entry.name)
        if g is None or tuple(v.shape) != entry.shape or g.numel() != len(rows):
            raise ConfigurationError(
                f"{entry.name!r} needs v of shape {entry.shape} and g with {len(rows)} entries, got "
                f"{tuple(v.shape)} and {None if g is None else tuple(g.shape)}."
            )
        return entry.rows(v.detach().to(rows).reshape(-1)), g.detach().to(rows).reshape(-1)


class Placebo(WeightNorm):
    r"""Weight normalization about *other* directions: the control for "``w`` is a special direction".

    Per row $w(g, v) = (w_0 - g_0 q) + g\, v/\|v\|$ with $v$ starting along a unit vector $q$ that has
    nothing to do with $w_0$: the same $g_0 = \|w_0\|$, $\|v\|$, hence the same $\rho$, and the same
    second derivatives, in random directions.

    Parameters
    ----------
    seed
        Seed of the random directions.
    directions
        Use these instead (one tensor of the weight's shape per name), e.g. top eigenvectors.
    name
        For records, where directions are given.
    **gauge
        As for :class:`WeightNorm`: ``gauge``, ``stretch``, ``log_scale``, ``layers``.
    """

    name = "placebo"

    def __init__(
        self,
        gauge: str | None = None,
        *,
        seed: int = 0,
        directions: Mapping[str, Tensor] | None = None,
        name: str = "placebo",
        stretch: float | Mapping[str, Tensor] | None = None,
        log_scale: bool = False,
        layers: str | None = None,
    ):
        super().__init__(gauge, stretch=stretch, log_scale=log_scale, layers=layers)
        self.seed, self.directions, self.name = seed, directions, name

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the chart; the directions depend on the seed and the layout only."""
        generator = torch.Generator().manual_seed(self.seed)
        chart = super().at(layout, weights)
        groups = {}
        for entry in layout.entries:
            if entry.name not in chart.groups:
                continue
            rows = chart.groups[entry.name]
            if self.directions is None:
                drawn = torch.randn(rows.unit.shape, generator=generator, dtype=torch.float64)
            else:
                drawn = entry.rows(self.directions[entry.name].detach().reshape(-1))
            drawn = drawn.to(weights)
            lengths = _norms(drawn)
            _refuse_zero_rows(lengths, entry, "the direction of")
            groups[entry.name] = replace(rows, unit=drawn / lengths[:, None])
        return _WeightNormChart(self, layout, weights, groups)


@dataclass(frozen=True)
class _Rows:
    """The rows of one normalized weight: direction ``(rows, length)``, ``g`` and ``||v||`` ``(rows,)``."""

    unit: Tensor
    scale: Tensor
    length: Tensor


class _WeightNormChart(Chart):
    """Closed forms of weight normalization at a point; every product costs a few passes over the block.

    Per row, with ``r`` the weight gradient, ``u = v/||v||``, ``M = I - u u^T``, ``s = ||v||``:
    ``J (a, b) = a u + (g/s) M b``; second derivatives ``gg: 0``, ``gv: M r / s``,
    ``vv: -(g/s^2) [u (M r)^T + (M r) u^T + (u.r) M]``. With ``g = e^s'`` the first coordinate is rescaled by
    ``dg/ds' = g`` and gains the second derivative ``g (u.r)``.
    """

    def __init__(self, parameterization: WeightNorm, weight_layout: Layout, weights: Tensor, groups: dict[str, _Rows]):
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.log_scale = parameterization.log_scale
        self.groups = groups
        self.weight_layout = weight_layout
        entries, point = [], []
        origin = torch.zeros_like(weights)
        for entry, where in weight_layout.pairs():
            if entry.name not in groups:
                entries.append(entry)
                point.append(weights[where])
                continue
            rows = groups[entry.name]
            neuron_axis = 0 if entry.norm_axis is not None and entry.norm_axis == entry.neuron_axis else None
            entries.append(Entry(f"{entry.name}.g", (entry.num_rows,), entry.layer, neuron_axis))
            entries.append(replace(entry, name=f"{entry.name}.v", normalized=False))
            point.append(rows.scale.log() if self.log_scale else rows.scale)
            point.append(entry.from_rows(rows.length[:, None] * rows.unit))
            origin[where] = weights[where] - entry.from_rows(rows.scale[:, None] * rows.unit)
        # Rounding apart, weight normalization passes through zero; only the placebo has an origin.
        self.origin = origin if isinstance(parameterization, Placebo) else None
        self.layout = Layout(tuple(entries))
        self.coordinates = torch.cat(point)

    @property
    def null_dim(self) -> int:
        """One gauge direction per row; where ``g = 0`` the whole of ``v`` is null."""
        return sum(int(torch.where(rows.scale == 0, rows.unit.shape[1], 1).sum()) for rows in self.groups.values())

    def moved(self, coordinates: Tensor) -> Parameterization:
        if self.origin is not None:
            raise ConfigurationError("the placebo is a control at a point, it has no gauge of its own after training.")
        directions, scales = {}, {}
        for entry in self.weight_layout.entries:
            if entry.name in self.groups:
                g, v = self._split(coordinates.detach(), entry)
                scales[entry.name] = (g.exp() if self.log_scale else g).clone()
                directions[entry.name] = entry.from_rows(v).view(entry.shape).clone()
        return WeightNorm(v=directions, g=scales, log_scale=self.log_scale)

    @property
    def stretches(self) -> Tensor:
        r"""$\|v\| / |g|$ of every normalized row."""
        return torch.cat([rows.length / rows.scale.abs() for rows in self.groups.values()])

    def to_weights(self, coordinates: Tensor) -> Tensor:
        parts = []
        for entry, _ in self.weight_layout.pairs():
            if entry.name not in self.groups:
                parts.append(coordinates[self.layout.slices[entry.name]])
                continue
            g, v = self._split(coordinates, entry)
            scale = g.exp() if self.log_scale else g
            length = torch.linalg.vector_norm(v, dim=1)
            parts.append(entry.from_rows((scale / length)[:, None] * v))
        weights = torch.cat(parts)
        return weights if self.origin is None else weights + self.origin

    def _split(self, block: Tensor, entry: Entry) -> tuple[Tensor, Tensor]:
        g = block[self.layout.slices[f"{entry.name}.g"]]
        return g, entry.rows(block[self.layout.slices[f"{entry.name}.v"]])

    def _rate(self, rows: _Rows) -> Tensor:
        return rows.scale if self.log_scale else torch.ones_like(rows.scale)

    def _new(self, dim: int, block: Tensor) -> Tensor:
        return torch.empty(dim, block.shape[1], dtype=block.dtype, device=block.device)

    def _from_coordinates(self, block: Tensor, *, polar: bool) -> Tensor:
        """Per row ``(a, b) -> along * a u + across * M b``."""
        mapped = self._new(self.weight_layout.dim, block)
        for entry, where in self.weight_layout.pairs():
            if entry.name not in self.groups:
                mapped[where] = block[self.layout.slices[entry.name]]
                continue
            rows = self.groups[entry.name]
            along, across = self._multipliers(rows, polar)
            g, v = self._split(block, entry)
            inner = torch.einsum("ri, rik -> rk", rows.unit, v)
            coefficient = along[:, None] * g - across[:, None] * inner
            out = across[:, None, None] * v + rows.unit[:, :, None] * coefficient[:, None]
            mapped[where] = entry.from_rows(out)
        return mapped

    def _to_coordinates(self, block: Tensor, *, polar: bool) -> Tensor:
        """Per row ``r -> (along * u.r, across * M r)``: the transpose of the map above."""
        mapped = self._new(self.dim, block)
        for entry, where in self.weight_layout.pairs():
            if entry.name not in self.groups:
                mapped[self.layout.slices[entry.name]] = block[where]
                continue
            rows = self.groups[entry.name]
            along, across = self._multipliers(rows, polar)
            part = entry.rows(block[where])
            inner = torch.einsum("ri, rik -> rk", rows.unit, part)
            out = across[:, None, None] * (part - rows.unit[:, :, None] * inner[:, None])
            mapped[self.layout.slices[f"{entry.name}.g"]] = along[:, None] * inner
            mapped[self.layout.slices[f"{entry.name}.v"]] = entry.from_rows(out)
        return mapped

    def _multipliers(self, rows: _Rows, polar: bool) -> tuple[Tensor, Tensor]:
        """Radial and tangential multipliers of ``J``; only their signs for its polar factor."""
        along, across = self._rate(rows), rows.scale / rows.length
        return (along.sign(), across.sign()) if polar else (along, across)

    def push(self, tangents: Tensor) -> Tensor:
        return self._from_coordinates(tangents, polar=False)

    def pull(self, cotangents: Tensor) -> Tensor:
        return self._to_coordinates(cotangents, polar=False)

    def horizontal(self, block: Tensor) -> Tensor:
        return self._to_coordinates(block, polar=True)

    def horizontal_transpose(self, block: Tensor) -> Tensor:
        return self._from_coordinates(block, polar=True)

    def metric_root(self, block: Tensor) -> Tensor:
        mapped = block.clone()
        for entry, where in self.weight_layout.pairs():
            if entry.name in self.groups:
                rows = self.groups[entry.name]
                along, across = (factor.abs() for factor in self._multipliers(rows, polar=False))
                part = entry.rows(block[where])
                inner = torch.einsum("ri, rik -> rk", rows.unit, part)
                coefficient = (along - across)[:, None] * inner
                out = across[:, None, None] * part + rows.unit[:, :, None] * coefficient[:, None]
                mapped[where] = entry.from_rows(out)
        return mapped

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        product = torch.zeros_like(tangents)
        for entry, where in self.weight_layout.pairs():
            if entry.name not in self.groups:
                continue
            rows = self.groups[entry.name]
            slope = entry.rows(gradient[where])
            radial = (rows.unit * slope).sum(dim=1)
            across = slope - radial[:, None] * rows.unit
            rate = self._rate(rows)
            mixed = (rate / rows.length)[:, None] * across
            bend = rows.scale / rows.length**2
            a, b = self._split(tangents, entry)
            unit_b = torch.einsum("ri, rik -> rk", rows.unit, b)
            across_b = torch.einsum("ri, rik -> rk", across, b)
            mixed_b = torch.einsum("ri, rik -> rk", mixed, b)
            out_g = mixed_b + (rows.scale * radial)[:, None] * a if self.log_scale else mixed_b
            out_v = mixed[:, :, None] * a[:, None] - bend[:, None, None] * (
                rows.unit[:, :, None] * (across_b - radial[:, None] * unit_b)[:, None]
                + across[:, :, None] * unit_b[:, None]
                + radial[:, None, None] * b
            )
            product[self.layout.slices[f"{entry.name}.g"]] = out_g
            product[self.layout.slices[f"{entry.name}.v"]] = entry.from_rows(out_v)
        return product


def _derivative_along(function: Callable[[Tensor], Tensor], point: Tensor, tangents: Tensor) -> Tensor:
    """Directional derivatives of a vector function, one per column of ``tangents``."""

    def along(tangent: Tensor) -> Tensor:
        return torch.func.jvp(function, (point,), (tangent,))[1]

    return torch.func.vmap(along, in_dims=1, out_dims=1)(tangents)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1)


def _row_values(values: Mapping[str, Tensor], entry: Entry, like: Tensor, what: str) -> Tensor:
    if entry.name not in values or values[entry.name].numel() != entry.num_rows:
        raise ConfigurationError(f"{what} for {entry.name!r} must hold {entry.num_rows} row values.")
    found = values[entry.name].detach().to(like).reshape(-1)
    if not (torch.isfinite(found) & (found > 0)).all():
        raise ConfigurationError(f"{what} for {entry.name!r} must be positive and finite.")
    return found


def _refuse_zero_rows(lengths: Tensor, entry: Entry, what: str) -> None:
    zero = (lengths == 0).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"{what} layer {entry.layer!r} ({entry.name}) is zero in row {zero[0]}"
            + (f" and {len(zero) - 1} more" if len(zero) > 1 else "")
            + ": weight normalization has no direction there. Give the row a non-zero value, or leave the layer "
            "out (layers=)."
        )
