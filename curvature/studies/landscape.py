"""The objective along directions in the coordinates of a chart, next to its second-order model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float, Float64
from curvature.charts import Parameterization, Standard
from curvature.charts.chart import Chart
from curvature.errors import ConfigurationError, NonFiniteError
from curvature.layout import Layout
from curvature.linalg.extremal import extremal_eigenvalues
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import ggn, hessian
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Eigenvectors, Landscape
from curvature.studies.measuring import in_chart

__all__ = ["DirectionLike", "filter_normalized", "landscape"]

# A name, a flat vector, or a tensor for each name of the coordinates.
DirectionLike = str | np.ndarray | Tensor | Mapping[str, Any]

_WORDS = {
    "random": "random direction",
    "gradient": "gradient",
    "largest": "largest eigenvector",
    "smallest": "smallest eigenvector",
}
_LINE, _PLANE = 61, 25  # points along each direction
_SHARE = 0.1  # of the length of the coordinates, how far to go
_PARALLEL = 1e-6  # of 1 - |cosine|: then the plane is a line


@full_precision()
def landscape(
    problem: Problem,
    *,
    directions: DirectionLike | Eigenvectors | Sequence[DirectionLike] = "random",
    chart: Parameterization | None = None,
    extent: float | Sequence[float] | None = None,
    num_points: int | None = None,
    matrix: str = "hessian",
    seed: int = 0,
) -> Landscape:
    r"""Evaluate the objective along one direction, or on the plane of two, next to its quadratic model.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    directions
        One direction or two. ``"random"``: normal, with every filter (row of a matrix, kernel of a convolution) scaled
        to the length of that filter, and zero in biases and other vectors. ``"gradient"``. ``"largest"``,
        ``"smallest"``: the eigenvector of that end of the matrix. A flat vector in the coordinates of the chart, or a
        dictionary of arrays by name, e.g. ``vectors.vector(-1)``. The ``vectors`` of a record: those of its one or two
        eigenvalues of largest absolute value. A dictionary whose keys are not the names of the coordinates holds
        directions by name. All of them are scaled to unit length.
    chart
        Coordinates that move straight; None: those of the weights. With ``cv.WeightNorm()`` the point $(g, v)$ moves
        straight, and the effective weights follow its curve.
    extent
        How far to go to either side, as a Euclidean distance in the coordinates; one for each direction if there are
        two. None: a tenth of the length of the coordinates.
    num_points
        Points along each direction, an odd number; None: 61 on a line, 25 on a plane.
    matrix
        Of the quadratic model, ``"hessian"`` or ``"ggn"``.
    seed
        Of random directions, and of the start of the search for eigenvectors.

    Returns
    -------
    Landscape
        Values, quadratic model, slopes and curvatures; ``cv.figures.plot_landscape`` draws it.

    Raises
    ------
    ConfigurationError
        If a direction is unknown, zero, of another length than the coordinates, or parallel to the other.
    NonFiniteError
        If the objective is not finite at the point.

    Notes
    -----
    The quadratic model is $L + a^T D^T g + \frac12 a^T D^T A D a$ with $g$ and $A$ in the coordinates of the chart: for
    the Hessian it is the Taylor polynomial of the drawn curve. Its cost is one product with each direction; each point
    costs one forward pass over the data.

    References
    ----------
    .. [1] Li, Xu, Taylor, Studer, Goldstein (2018). Visualizing the loss landscape of neural nets. arXiv:1712.09913

    Examples
    --------
    >>> import curvature as cv
    >>> problem = cv.zoo.digits_problem(50, widths=(4,))
    >>> line = cv.landscape(problem, directions="largest", extent=0.5, num_points=5)
    >>> line.distances.tolist(), bool(line.curvatures[0, 0] > 0)
    ([[-0.5, -0.25, 0.0, 0.25, 0.5]], True)
    """
    started = time.perf_counter()
    operator = _matrix(problem, matrix, chart or Standard())
    point = (chart or Standard()).at(problem.layout, problem.weights)
    value = problem.value()
    if not np.isfinite(value):
        raise NonFiniteError("the objective is NaN or infinite at the point itself, so it has no quadratic model.")
    columns = {
        name: _unit(_vector(direction, point, operator, seed + 1000 * k), name)
        for k, (name, direction) in enumerate(_named(directions, point.layout).items())
    }
    basis = torch.stack(list(columns.values()), dim=1)
    cosine = float(basis[:, 0] @ basis[:, -1]) if len(columns) == 2 else 0.0
    if 1 - abs(cosine) < _PARALLEL:
        raise ConfigurationError(f"the directions {' and '.join(columns)} are parallel, so they span no plane.")
    distances = _distances(len(columns), extent, num_points, point.coordinates)
    moves = np.stack(np.meshgrid(*distances, indexing="ij"), axis=-1)
    assert operator.facts.gradient is not None
    slopes = (basis.T @ operator.facts.gradient()).cpu().double().numpy()
    curvatures = (basis.T @ operator.matmat(basis)).cpu().double().numpy()
    curvatures = (curvatures + curvatures.T) / 2
    return Landscape(
        operator.where,
        tuple(columns),
        distances,
        _values(problem, point, basis, moves),
        value + moves @ slopes + 0.5 * np.einsum("...k,kl,...l->...", moves, curvatures, moves),
        slopes,
        curvatures,
        cosine,
        time.perf_counter() - started,
    )


def filter_normalized(
    layout: Layout, coordinates: Float[Tensor, "dim"], generator: torch.Generator
) -> Float[Tensor, "dim"]:
    """Draw a random direction in which every filter is as long as that of the point.

    Parameters
    ----------
    layout
        Names of the coordinates.
    coordinates
        The point.
    generator
        Of the normal numbers, which are drawn on the CPU.

    Returns
    -------
    Tensor
        Zero in tensors of fewer than two axes; if there are no others, each of them is one filter.
    """
    drawn = torch.randn(layout.dim, generator=generator, dtype=torch.float64).to(coordinates)
    matrices = any(len(entry.shape) > 1 for entry in layout.entries)
    direction = torch.zeros_like(coordinates)
    for entry, span in layout.pairs():
        if matrices and len(entry.shape) < 2:
            continue
        rows = replace(entry, norm_axis=entry.neuron_axis if len(entry.shape) > 1 else None)
        along, lengths = rows.rows(drawn[span]), torch.linalg.vector_norm(rows.rows(coordinates[span]), dim=1)
        scaled = along * (lengths / torch.linalg.vector_norm(along, dim=1))[:, None]
        direction[span] = rows.from_rows(scaled)
    return direction


def _matrix(problem: Problem, name: str, chart: Parameterization) -> SymmetricOperator:
    if name not in ("hessian", "ggn"):
        raise ConfigurationError(f"the quadratic model is that of matrix='hessian' or 'ggn', got {name!r}.")
    matrix = hessian(problem) if name == "hessian" else ggn(problem, penalty=problem.penalty is not None)
    return in_chart(matrix, chart)


def _named(directions: Any, layout: Layout) -> dict[str, DirectionLike]:
    """One or two directions by name."""
    if isinstance(directions, Eigenvectors):
        order = np.argsort(-np.abs(directions.eigenvalues), kind="stable")[:2]
        labels = [f"eigenvector of {directions.eigenvalues[k]:.4g}" for k in order]
        return _by_name(labels, [directions.flat(int(k)) for k in order])
    by_parameter = isinstance(directions, Mapping) and set(directions) == set(layout.slices)
    if by_parameter or isinstance(directions, str | np.ndarray | Tensor):
        directions = [directions]
    if not isinstance(directions, Mapping):
        if not isinstance(directions, Sequence):
            raise ConfigurationError(_unknown(directions))
        labels = [_WORDS.get(part, part) if isinstance(part, str) else "direction" for part in directions]
        directions = _by_name(labels, directions)
    if len(directions) not in (1, 2):
        raise ConfigurationError(f"{len(directions)} directions are given. Choose one for a line, or two for a plane.")
    return dict(directions)


def _by_name(labels: Sequence[str], directions: Sequence[DirectionLike]) -> dict[str, DirectionLike]:
    """Directions by their labels, which are counted where they are equal: two eigenvalues may agree in all digits."""
    return {
        label if labels.count(label) == 1 else f"{label} {labels[: k + 1].count(label)}": part
        for k, (label, part) in enumerate(zip(labels, directions, strict=True))
    }


def _unknown(direction: object) -> str:
    what = repr(direction) if isinstance(direction, str) else f"of type {type(direction).__name__}"
    return (
        f"the direction {what} is unknown. Use one of {', '.join(map(repr, _WORDS))}, a flat vector, a dictionary of "
        "arrays by name, or the vectors of a record."
    )


def _vector(direction: DirectionLike, point: Chart, operator: SymmetricOperator, seed: int) -> Tensor:
    """A direction as a flat vector in the coordinates."""
    if isinstance(direction, str):
        return _by_word(direction, point, operator, seed)
    if isinstance(direction, Mapping):
        parts = {name: torch.as_tensor(part).to(point.coordinates) for name, part in direction.items()}
        return point.layout.flatten(parts)
    if not isinstance(direction, np.ndarray | Tensor):
        raise ConfigurationError(_unknown(direction))
    vector = torch.as_tensor(direction).detach().to(point.coordinates)
    if vector.shape != point.coordinates.shape:
        raise ConfigurationError(
            f"a direction has shape {tuple(vector.shape)}, but {point.label} has {point.dim} coordinates. Take "
            "eigenvectors of the matrix in the same chart: cv.pullback(matrix, chart)."
        )
    return vector


def _by_word(word: str, point: Chart, operator: SymmetricOperator, seed: int) -> Tensor:
    if word == "random":
        return filter_normalized(point.layout, point.coordinates, torch.Generator().manual_seed(seed))
    if word == "gradient":
        assert operator.facts.gradient is not None
        return operator.facts.gradient()
    if word not in _WORDS:
        raise ConfigurationError(_unknown(word))
    ends = {"largest": (1, 0), "smallest": (0, 1)}[word]
    record = extremal_eigenvalues(operator, num_largest=ends[0], num_smallest=ends[1], seed=seed)
    assert record.vectors is not None
    return torch.from_numpy(record.vectors.flat(0).copy()).to(point.coordinates)


def _unit(vector: Tensor, name: str) -> Tensor:
    length = torch.linalg.vector_norm(vector)
    if not (torch.isfinite(length) and length > 0):
        raise ConfigurationError(f"the direction {name!r} is zero or not finite, so it points nowhere.")
    return vector / length


def _distances(
    count: int, extent: float | Sequence[float] | None, num_points: int | None, coordinates: Tensor
) -> Float64[np.ndarray, "directions points"]:
    points = (_LINE if count == 1 else _PLANE) if num_points is None else num_points
    if isinstance(points, bool) or not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise ConfigurationError(
            f"num_points must be an odd number, at least 3, so that the point itself is drawn; got {num_points!r}."
        )
    if extent is None:
        extent = _SHARE * float(torch.linalg.vector_norm(coordinates)) or 1.0
    extents = [float(extent)] * count if isinstance(extent, int | float) else [float(part) for part in extent]
    if len(extents) != count or not all(np.isfinite(part) and part > 0 for part in extents):
        raise ConfigurationError(
            f"extent must be a positive distance, or one for each of the {count} directions, got {extent!r}."
        )
    steps = np.arange(points) - points // 2
    return np.array([part * steps / (points // 2) for part in extents])


def _values(
    problem: Problem, point: Chart, basis: Tensor, moves: Float64[np.ndarray, "*grid directions"]
) -> Float64[np.ndarray, "*grid"]:
    """The objective at every point; NaN where it is not finite."""

    def each() -> Iterator[float]:
        for move in moves.reshape(-1, moves.shape[-1]):
            coordinates = point.coordinates + basis @ torch.from_numpy(move).to(basis)
            yield problem.value(point.to_weights(coordinates).detach())

    values = np.fromiter(each(), dtype=np.float64).reshape(moves.shape[:-1])
    return np.where(np.isfinite(values), values, np.nan)
