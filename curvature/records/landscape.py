"""The record of the loss along one direction, or on the plane of two, with its quadratic model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from curvature.arrays import Float
from curvature.records.files import Saved
from curvature.records.notebook import html_table
from curvature.records.validation import require, require_finite
from curvature.records.where import Located, Where

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Landscape"]


@dataclass(frozen=True)
class Landscape(Located, Saved):
    r"""The objective $L(\theta_0 + \sum_k a_k d_k)$ on a grid of distances, and its second-order model at $\theta_0$.

    Attributes
    ----------
    where
        Header: the matrix of the quadratic model, and the chart of the coordinates $\theta$ that move straight.
    directions
        Name of each unit vector $d_k$: one for a line, two for a plane.
    distances
        $a_k$, ascending and symmetric about zero, ``(K, M)``: Euclidean distance in the coordinates of the chart.
    values
        The objective: ``(M,)`` for a line, ``(M, M)`` for a plane, with the first direction on the first axis. NaN
        where it is not finite.
    quadratic
        $L + \sum_k a_k d_k^T g + \frac12 \sum_{kl} a_k a_l\, d_k^T A d_l$ at the same points.
    slopes
        $d_k^T g$, with the gradient $g$ in the coordinates, unit loss / coordinate.
    curvatures
        $d_k^T A d_l$, unit loss / coordinate**2, ``(K, K)``.
    cosine
        $d_1^T d_2$; 0 for a line. The plane is drawn with right angles in any case.
    seconds
        Time of the computation.
    """

    schema: ClassVar[str] = "curvature/landscape/1"
    noun: ClassVar[str] = "landscape"
    where: Where
    directions: tuple[str, ...]
    distances: Float[np.ndarray, "directions points"] = field(repr=False)
    values: Float[np.ndarray, "*grid"] = field(repr=False)
    quadratic: Float[np.ndarray, "*grid"] = field(repr=False)
    slopes: Float[np.ndarray, "directions"]
    curvatures: Float[np.ndarray, "directions directions"]
    cosine: float = 0.0
    seconds: float = math.nan

    def validate(self) -> None:
        """Check that the numbers fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If shapes, distances or values contradict each other.
        """
        count = len(self.directions)
        require(count in (1, 2), f"it has {count} directions instead of one or two")
        require(np.ndim(self.distances) == 2, "distances is not a table")
        points = self.distances.shape[1]
        require_finite("distances", self.distances, (count, points))
        require(points > 2 and bool((np.diff(self.distances) > 0).all()), "distances is not ascending")
        for name in ("values", "quadratic"):
            array = getattr(self, name)
            require(array.shape == (points,) * count, f"{name} has shape {array.shape}")
            require(not np.isinf(array).any(), f"{name} contains infinity")
        require_finite("slopes", self.slopes, (count,))
        require_finite("curvatures", self.curvatures, (count, count))

    @property
    def num_gaps(self) -> int:
        """Points where the objective is not finite."""
        return int(np.isnan(self.values).sum())

    @property
    def origin(self) -> float:
        """The objective at the point itself."""
        return float(self.values[(self.distances.shape[1] // 2,) * len(self.directions)])

    def to_dataframe(self) -> pd.DataFrame:
        """Convert to a table.

        Returns
        -------
        pandas.DataFrame
            One row per point: the distance along each direction, value and quadratic model, and the header.
        """
        import pandas as pd

        grids = np.meshgrid(*self.distances, indexing="ij")
        columns = {name: grid.ravel() for name, grid in zip(self.directions, grids, strict=True)}
        columns |= {"value": self.values.ravel(), "quadratic": self.quadratic.ravel()}
        return pd.DataFrame(columns).assign(matrix=self.matrix, chart=self.chart, gauge=self.gauge)

    def __repr__(self) -> str:
        return f"Landscape({self.label}: {self._extent()}, loss {self._range()})"

    def _repr_html_(self) -> str:
        rows = {"points": self._extent(), "loss at the point": f"{self.origin:.6g}", "loss": self._range()}
        for k, name in enumerate(self.directions):
            rows[f"along {name}"] = f"slope {self.slopes[k]:.4g}, curvature {self.curvatures[k, k]:.4g}"
        if len(self.directions) == 2:
            rows["cosine of the directions"] = f"{self.cosine:.3g}"
        return html_table(f"Loss along {' and '.join(self.directions)}: {self.label}", rows)

    def _extent(self) -> str:
        axes = (f"{name} to ±{ends[-1]:.3g}" for name, ends in zip(self.directions, self.distances, strict=True))
        return f"{' x '.join(axes)}, {' x '.join(map(str, self.values.shape))} points"

    def _range(self) -> str:
        text = "not finite" if self.num_gaps == self.values.size else (
            f"{np.nanmin(self.values):.4g} to {np.nanmax(self.values):.4g}"
        )  # fmt: skip
        return text + (f", not finite at {self.num_gaps} points" if self.num_gaps else "")
