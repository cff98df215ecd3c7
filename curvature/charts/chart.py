"""The two nouns of this wing: a parameterization, and a chart, which is a parameterization at a point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from curvature.arrays import Bool, Float
from curvature.charts.derivatives import derivative_along
from curvature.charts.gauges import gauge_label
from curvature.errors import ConfigurationError, InputError, SelfCheckError
from curvature.layout import Entry, Layout
from curvature.linalg.singular import thin_svd
from curvature.records.where import chart_label

__all__ = ["Chart", "Parameterization"]


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
    coordinates: Float[Tensor, "dim"]
    layout: Layout
    flat: bool = False

    @property
    def label(self) -> str:
        """Name and gauge, as records print them: ``"weight-norm (paper)"``."""
        return chart_label(self.name, self.gauge)

    def __repr__(self) -> str:
        return f"Chart({self.label}, {self.dim} coordinates)"

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.coordinates)

    @property
    def null_dim(self) -> int:
        r"""Dimension of $\ker J$: coordinates that do not move the weights to first order."""
        return self.dim - self._polar[1].numel()

    @property
    def kept_weights(self) -> Bool[Tensor, "weights"]:
        """Mask ``(P,)`` of the weights that are coordinates themselves; none where that is not known."""
        return torch.zeros(len(self.to_weights(self.coordinates)), dtype=torch.bool)

    def affine_in(self, names: Iterable[str]) -> bool:
        """Whether the map is affine in the coordinates of these names while the others stay at their value."""
        del names
        return self.flat

    @abstractmethod
    def to_weights(self, coordinates: Float[Tensor, "dim"]) -> Float[Tensor, "weights"]:
        """Weights ``(P,)`` at these coordinates ``(Q,)``; differentiable."""

    @abstractmethod
    def moved(self, coordinates: Float[Tensor, "dim"]) -> Parameterization:
        """Return the parameterization whose chart has these coordinates: the gauge that training has reached."""

    def linearize(
        self, coordinates: Float[Tensor, "dim"]
    ) -> tuple[Float[Tensor, "weights"], Callable[[Tensor], Tensor]]:
        r"""Compute the weights ``(P,)`` at these coordinates, and the map $r \mapsto J^T r$ *there* for one cotangent.

        A training step needs this: :meth:`pull` at a point that moves, without a new chart for each step.
        """
        variable = coordinates.detach().requires_grad_()
        with torch.enable_grad():
            weights = self.to_weights(variable)
        return weights.detach(), lambda cotangent: torch.autograd.grad(weights, variable, cotangent)[0]

    def push(self, tangents: Float[Tensor, "dim columns"]) -> Float[Tensor, "weights columns"]:
        """Push tangents forward, $J V$: ``(Q, K)`` to ``(P, K)``."""
        return derivative_along(self.to_weights, self.coordinates, tangents)

    def pull(self, cotangents: Float[Tensor, "weights columns"]) -> Float[Tensor, "dim columns"]:
        """Pull cotangents back, $J^T R$: ``(P, K)`` to ``(Q, K)``."""
        transposed = torch.func.vjp(self.to_weights, self.coordinates)[1]
        return torch.func.vmap(lambda cotangent: transposed(cotangent)[0], in_dims=1, out_dims=1)(cotangents)

    def second_order_product(
        self, gradient: Float[Tensor, "weights"], tangents: Float[Tensor, "dim columns"]
    ) -> Float[Tensor, "dim columns"]:
        r"""Multiply :meth:`second_order` by a block ``(Q, K)``."""
        projected = torch.func.grad(lambda coordinates: self.to_weights(coordinates) @ gradient)
        return derivative_along(projected, self.coordinates, tangents)

    def second_order(self, gradient: Float[Tensor, "weights"]) -> Float[Tensor, "dim dim"]:
        r"""Entries of $\sum_k r_k\, \partial^2 w_k / \partial\theta^2$, ``(Q, Q)``, for the weight gradient $r$."""
        return self.second_order_product(gradient, torch.eye(self.dim, dtype=gradient.dtype, device=gradient.device))

    def pulled_back(
        self, matrix: Float[Tensor, "weights weights"], gradient: Float[Tensor, "weights"] | None = None
    ) -> Float[Tensor, "dim dim"]:
        r"""Entries of $J^T A J$, ``(Q, Q)``, plus :meth:`second_order` where a weight gradient is given."""
        result = self.pull(self.pull(matrix).T)
        return result if gradient is None else result.add_(self.second_order(gradient))

    def effective(
        self, matrix: Float[Tensor, "weights weights"], gradient: Float[Tensor, "weights"] | None = None
    ) -> Float[Tensor, "weights weights"]:
        r"""Entries of $K^{1/2} A K^{1/2}$, ``(P, P)``; with a gradient, also the second-order term, horizontally."""
        result = self.metric_root(self.metric_root(matrix).T)
        if gradient is None:
            return result
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        bending = self.second_order_product(gradient, self.horizontal(identity))
        return result.add_(self.horizontal_transpose(bending))

    def similar(self, matrix: Float[Tensor, "weights weights"]) -> Float[Tensor, "weights weights"]:
        r"""Entries of a symmetric matrix with the eigenvalues of $K^{1/2} A K^{1/2}$, ``(P, P)``."""
        return self.effective(matrix)

    @cached_property
    def _polar(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thin singular value decomposition ``J = U S W^T`` on the rank of ``J``."""
        jacobian = self.push(torch.eye(self.dim, dtype=self.coordinates.dtype, device=self.coordinates.device))
        left, values, right = thin_svd(jacobian)
        kept = values > max(jacobian.shape) * torch.finfo(values.dtype).eps * values[0]
        return left[:, kept], values[kept], right[kept].T

    def metric_root(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        r"""Multiply by $K^{1/2}$, $K = J J^T$: ``(P, K)`` to ``(P, K)``."""
        left, values, _ = self._polar
        return left @ (values[:, None] * (left.T @ block))

    def metric(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        r"""Multiply by $K = J J^T$: ``(P, K)`` to ``(P, K)``."""
        return self.metric_root(self.metric_root(block))

    def horizontal(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "dim columns"]:
        r"""Map weight space onto the horizontal space $(\ker J)^\perp$: ``(P, K)`` to ``(Q, K)``.

        This is $O^T$ of the polar decomposition $J = K^{1/2} O$.
        """
        left, _, right = self._polar
        return right @ (left.T @ block)

    def horizontal_transpose(self, block: Float[Tensor, "dim columns"]) -> Float[Tensor, "weights columns"]:
        """Multiply by the transpose of :meth:`horizontal`: ``(Q, K)`` to ``(P, K)``."""
        left, _, right = self._polar
        return left @ (right.T @ block)


class Parameterization:
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

    def to_weights(self, coordinates: Float[Tensor, "dim"]) -> Float[Tensor, "weights"]:
        """Weights at these coordinates; differentiable by ``torch.func``."""
        raise NotImplementedError

    def from_weights(self, weights: Float[Tensor, "weights"]) -> Float[Tensor, "dim"]:
        """Coordinates of these weights; any, if there are several."""
        raise NotImplementedError

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        """Build the chart whose point has these weights.

        Parameters
        ----------
        layout
            Names of the weights.
        weights
            The point ``(P,)``.

        Returns
        -------
        Chart
            The map, its derivatives and its coordinates at the point.

        Raises
        ------
        InputError
            If ``to_weights`` or ``from_weights`` returns another shape.
        SelfCheckError
            If ``to_weights`` does not invert ``from_weights``.
        """
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

    def nearest(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Float[Tensor, "weights"]:
        """Weights ``(P,)`` nearest to these that this parameterization can represent: these, if it can represent all.

        Parameters
        ----------
        layout
            Names of the weights.
        weights
            The point ``(P,)``.

        Returns
        -------
        Tensor
            The nearest point, in the Euclidean norm.
        """
        del layout
        return weights

    def restricted(self, layout: Layout) -> Parameterization:
        """The same parameterization for some of the weights: values held by name are those of this layout only."""
        del layout
        return self

    def freeze(self, pattern: str) -> Parameterization:
        """Keep some coordinates at their value, so that they are no longer coordinates.

        Parameters
        ----------
        pattern
            The last part of a name (``"g"`` for every ``"0.weight.g"``), a name, or a layer. With other characters than
            those of names, a regular expression that is searched in the names of the coordinates.

        Returns
        -------
        Parameterization
            The same map, restricted to the other coordinates.

        Examples
        --------
        >>> import curvature as cv
        >>> problem = cv.zoo.digits_problem(num_examples=50, widths=(8,))
        >>> cv.pullback(cv.ggn(problem), cv.WeightNorm().freeze("g"))
        SymmetricOperator(ggn, weight-norm (canonical, g frozen), 610 x 610, float64, cpu)
        """
        return _Frozen(self, pattern)

    @property
    def unfrozen(self) -> Parameterization:
        """The same parameterization with nothing kept by :meth:`freeze`."""
        return self

    @property
    def label(self) -> str:
        """Name and gauge, as records print them: ``"weight-norm (paper)"``."""
        return chart_label(self.name, self.gauge)

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
        return _AtCoordinates(self.parameterization, coordinates.detach())

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.parameterization.to_weights(coordinates)


class _AtCoordinates(Parameterization):
    """A user's parameterization at coordinates that training has reached, which the weights alone do not tell."""

    def __init__(self, parameterization: Parameterization, coordinates: Tensor):
        self.parameterization, self.coordinates = parameterization, coordinates
        self.name, self.gauge = parameterization.name, "checkpoint"

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.parameterization.to_weights(coordinates)

    def from_weights(self, weights: Tensor) -> Tensor:
        del weights
        return self.coordinates

    def __repr__(self) -> str:
        return f"{type(self.parameterization).__name__}({self.gauge!r})"


class _Frozen(Parameterization):
    """A parameterization some of whose coordinates are kept at their value."""

    def __init__(self, parameterization: Parameterization, pattern: str, *, required: bool = True):
        self.parameterization, self.pattern, self.required = parameterization, pattern, required
        self.name, self.gauge = parameterization.name, gauge_label(parameterization.gauge, f"{pattern} frozen")

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        return _FrozenChart(self, self.parameterization.at(layout, weights))

    def nearest(self, layout: Layout, weights: Tensor) -> Tensor:
        return self.parameterization.nearest(layout, weights)

    def restricted(self, layout: Layout) -> Parameterization:
        return _Frozen(self.parameterization.restricted(layout), self.pattern, required=False)

    @property
    def unfrozen(self) -> Parameterization:
        return self.parameterization.unfrozen

    def __repr__(self) -> str:
        return f"{self.parameterization!r}.freeze({self.pattern!r})"


class _FrozenChart(Chart):
    """A chart restricted to some of its coordinates."""

    def __init__(self, parameterization: _Frozen, whole: Chart):
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.pattern, self.required, self.whole = parameterization.pattern, parameterization.required, whole
        frozen = whole.layout.named(self.pattern, required=self.required)
        pairs = whole.layout.pairs()
        self.layout = Layout(tuple(entry for entry, _ in pairs if entry.name not in frozen))
        if not self.layout.entries:
            raise ConfigurationError(f"freeze({self.pattern!r}) leaves no coordinate of {whole.label} to train.")
        places = torch.arange(whole.dim, device=whole.coordinates.device)
        self.free = torch.cat([places[span] for entry, span in pairs if entry.name not in frozen])
        self.coordinates, self.flat = whole.coordinates[self.free], whole.affine_in(self.layout.slices)

    def affine_in(self, names: Iterable[str]) -> bool:
        return self.whole.affine_in(names)

    @property
    def kept_weights(self) -> Tensor:
        """Mask ``(P,)`` of the weights that are still coordinates themselves."""
        kept = self.whole.kept_weights.clone()
        moved = self.push(torch.eye(self.dim, dtype=self.coordinates.dtype, device=self.coordinates.device))
        return kept & (moved != 0).any(dim=1).to(kept.device)

    def moved(self, coordinates: Tensor) -> Parameterization:
        return _Frozen(self.whole.moved(self._filled(coordinates.detach())), self.pattern, required=self.required)

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.whole.to_weights(self._filled(coordinates))

    def push(self, tangents: Tensor) -> Tensor:
        return self.whole.push(self._padded(tangents))

    def pull(self, cotangents: Tensor) -> Tensor:
        return self.whole.pull(cotangents)[self.free]

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        return self.whole.second_order_product(gradient, self._padded(tangents))[self.free]

    def _filled(self, coordinates: Tensor) -> Tensor:
        return self.whole.coordinates.index_copy(0, self.free, coordinates)

    def _padded(self, tangents: Tensor) -> Tensor:
        return tangents.new_zeros(self.whole.dim, tangents.shape[1]).index_copy(0, self.free, tangents)
