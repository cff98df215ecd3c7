"""Frozen results. They hold NumPy arrays and say what they are; they hold no model, no data, no operator.

The three doors upstairs (:meth:`Spectrum.condition_numbers`, the plots, the table in a notebook) import the room they
open only when they are used.
"""

from __future__ import annotations

import html
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curvature.certificates import FAILURE, cumulative_band, kato_temple, spectral_bounds
from curvature.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = [
    "Alignment",
    "Check",
    "ConditionNumbers",
    "Decomposition",
    "Estimate",
    "ExtremalEigenvalues",
    "GaugeState",
    "Inertia",
    "LearningRateSweep",
    "Measured",
    "Quantity",
    "SpectralDensity",
    "Spectrum",
    "StepComparison",
    "StepsToLoss",
    "Study",
    "TrainingCurve",
    "Verdict",
    "Whitening",
]

_SCHEMA = "curvature/spectrum/1"
_MAX_BYTES = 2**30  # of a saved spectrum: 1e8 eigenvalues do not happen, a zip bomb might


@dataclass(frozen=True)
class Quantity:
    """One number with its status; never a bare float.

    Attributes
    ----------
    value
        The number; NaN where there is none.
    status
        ======================  ================================================================================
        ``resolved``            the number, up to the interval
        ``lower_bound``         at least this: of a ratio, what it divides by is known from above only
        ``upper_bound_only``    at most this
        ``below_noise_floor``   cannot be told from zero: its absolute value is below ``high``
        ``unresolved``          computed, but it depends on digits, or on a rank, that nobody knows
        ``indefinite``          no number: the matrix has eigenvalues of both signs
        ``undefined``           no number for another reason
        ======================  ================================================================================
    note
        Why, where it is not resolved.
    low, high
        Interval that holds the truth, with ``high`` infinite where nothing bounds it; None where none is known.
    method
        What the interval rests on.

    >>> str(Quantity(1e-17, "below_noise_floor", low=-1e-15, high=1e-15)), str(Quantity(2e9, "lower_bound"))
    ('< 1e-15', '> 2e+09')
    """

    value: float
    status: str = "resolved"
    note: str = ""
    low: float | None = None
    high: float | None = None
    method: str = ""

    @property
    def has_value(self) -> bool:
        """Whether there is a number at all."""
        return self.status not in ("undefined", "indefinite")

    @property
    def interval(self) -> str:
        """The interval as text, empty where none is known."""
        known = self.low is not None and self.high is not None
        return f"[{self.low:.4g}, {self.high:.4g}]" if known else ""

    def __str__(self) -> str:
        if not self.has_value:
            return self.status
        if self.status == "below_noise_floor" and self.high is not None:
            return f"< {self.high:.2g}"
        shown = f"{self.value:.4g}"
        signs = {"lower_bound": f"> {shown}", "upper_bound_only": f"< {shown}", "unresolved": f"({shown})"}
        return signs.get(self.status, shown)


@dataclass(frozen=True)
class Check:
    """One self-check or identity: what was compared, how far apart it was, and how far it may be.

    ``claim`` names the claim that this check is a measurement of (``"C4"``, ``"C5"``, ``"C6"``), if any; ``rounding``
    is the largest ``|A v - A' v| / |A v|`` where two products were compared whole, not only along other vectors.
    """

    name: str
    value: float
    tolerance: float
    note: str = ""
    claim: str = ""
    rounding: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is within the tolerance (NaN is not)."""
        return bool(self.value <= self.tolerance)


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of one matrix in one chart, and how far they can be trusted.

    Attributes
    ----------
    matrix, chart, gauge, block
        What was decomposed. Eigenvalues without a gauge mean nothing.
    effective
        True for ``K^(1/2) A K^(1/2)`` (no gauge zeros), False for the chart's own coordinates.
    eigenvalues
        Ascending, ``(dim,)``, unit loss / coordinate**2.
    num_examples
        Examples behind the mean.
    num_samples
        Sampled labels per example; None unless Monte Carlo.
    positive_semidefinite
        Whether the definition guarantees it.
    method
        ``"dense"`` (LAPACK on the entries), ``"factor"`` (singular values of ``B``, ``A = B B^T``) or ``"gram"``
        (LAPACK on the entries of ``B^T B``).
    noise_floor, floor_rule
        Eigenvalues below it in absolute value cannot be told from zero; and what set it.
    rank, rank_rule
        Rank and where it comes from: a structural formula with verified null vectors, a gap, or a threshold.
    rank_bounds
        Smallest and largest rank that agree with what is known; both are the rank where it is resolved. None: whoever
        made the record vouches for the rank.
    gradient_weights
        Squared components of the loss gradient along the eigenvectors, where they were asked for.
    checks
        Self-checks that the matrix passed; see :mod:`curvature.checks`.
    """

    matrix: str
    chart: str
    gauge: str
    eigenvalues: np.ndarray = field(repr=False)
    positive_semidefinite: bool
    method: str
    noise_floor: float
    rank: int
    rank_rule: str
    dtype: str = "float64"
    block: str = "all"
    effective: bool = False
    num_examples: int | None = None
    num_samples: int | None = None
    gradient_weights: np.ndarray | None = field(default=None, repr=False)
    seconds: float = math.nan
    checks: tuple[Check, ...] = field(default=(), repr=False)
    floor_rule: str = ""
    rank_bounds: tuple[int, int] | None = None

    @property
    def dim(self) -> int:
        """Number of eigenvalues."""
        return len(self.eigenvalues)

    @property
    def possible_ranks(self) -> tuple[int, int]:
        """Smallest and largest possible rank; equal where the rank is resolved."""
        return (self.rank, self.rank) if self.rank_bounds is None else self.rank_bounds

    @property
    def rank_words(self) -> str:
        """The rank, or between what it lies."""
        few, many = self.possible_ranks
        return str(self.rank) if few == many else f"{few} to {many}"

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        r"""Lower and upper ends for the ascending eigenvalues: of the i-th eigenvalue itself (Weyl).

        Dense: $\lambda \pm \varphi$ with the noise floor $\varphi$. Factor: the same for singular values, $(\sigma \pm
        \sqrt\varphi)^2$. A positive semidefinite matrix has no eigenvalue below zero.
        """
        if self.method == "factor":
            singular, floor = np.sqrt(self.eigenvalues), self.noise_floor**0.5
            return np.maximum(singular - floor, 0) ** 2, (singular + floor) ** 2
        low, high = self.eigenvalues - self.noise_floor, self.eigenvalues + self.noise_floor
        return (np.maximum(low, 0), np.maximum(high, 0)) if self.positive_semidefinite else (low, high)

    def eigenvalue(self, k: int) -> Quantity:
        """Give ``eigenvalues[k]`` (ascending) as resolved, or as below the noise floor, with its interval.

        >>> record = Spectrum("ggn", "standard", "-", np.array([1e-20, 2.0]), True, "dense", 1e-15, 1, "by hand")
        >>> print(record.eigenvalue(0), record.eigenvalue(-1), record.eigenvalue(-1).method)
        < 1e-15 2 dense, Weyl
        """
        value, floor = float(self.eigenvalues[k]), self.noise_floor
        low, high = (float(ends[k]) for ends in self.intervals())
        if abs(value) > floor:
            return Quantity(value, low=low, high=high, method=f"{self.method}, Weyl")
        status, note = "below_noise_floor", f"computed as {value:.1e}"
        return Quantity(value, status, note, 0.0 if self.positive_semidefinite else -floor, floor, self.method)

    @property
    def inertia(self) -> tuple[int, int, int]:
        """Numbers of negative, zero and positive eigenvalues; zero means not above the noise floor."""
        negative = int((self.eigenvalues < -self.noise_floor).sum())
        positive = int((self.eigenvalues > self.noise_floor).sum())
        return negative, self.dim - negative - positive, positive

    @property
    def num_resolved(self) -> int:
        """Number of eigenvalues above the noise floor in absolute value."""
        negative, _, positive = self.inertia
        return negative + positive

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.eigenvalues.sum())

    @property
    def on_rank(self) -> np.ndarray:
        """The ``rank`` largest eigenvalues in absolute value, by descending absolute value, signs kept."""
        return self.eigenvalues[np.argsort(-np.abs(self.eigenvalues), kind="stable")][: self.rank]

    @property
    def label(self) -> str:
        """Matrix, chart and gauge in a few words."""
        gauge = "" if self.gauge == "-" else f" ({self.gauge})"
        return f"{self.matrix}, {self.chart}{gauge}" + ("" if self.block == "all" else f", {self.block}")

    def condition_numbers(self, **options: Any) -> ConditionNumbers:
        """Every summary of :mod:`curvature.conditioning` that is defined for this spectrum."""
        from curvature.conditioning import condition_numbers

        return condition_numbers(self, **options)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the eigenvalues by rank on ``ax`` (new if None); returns the Axes."""
        from curvature.figures import plot_spectrum

        return plot_spectrum(self, ax=ax)

    def save(self, path: str | Path) -> Path:
        """Write one ``.npz`` file: the arrays, and the rest as JSON. No pickle."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ConfigurationError(f"a spectrum is saved as .npz, got {path.name!r}.")
        about = {key: value for key, value in _fields(self).items() if not isinstance(value, np.ndarray)}
        arrays = {key: value for key, value in _fields(self).items() if isinstance(value, np.ndarray)}
        np.savez(path, about=np.array(json.dumps({"schema": _SCHEMA} | about, default=asdict)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read what :meth:`save` wrote."""
        path = Path(path)
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigurationError(f"{path} is larger than any spectrum ({_MAX_BYTES / 2**30:.0f} GB): not read.")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                arrays = {key: stored[key] for key in stored.files if key != "about"}
            schema = about.pop("schema")
            about["checks"] = tuple(Check(**check) for check in about.get("checks", ()))
            about["rank_bounds"] = tuple(about["rank_bounds"]) if about.get("rank_bounds") else None
            found = cls(**about, **arrays) if schema == _SCHEMA else None
        # A damaged file fails in as many ways as there are layers: archive, array, JSON, fields.
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"{path} is not a saved spectrum: {error}") from error
        if found is None:
            raise ConfigurationError(f"{path} holds schema {schema}, this version reads {_SCHEMA}.")
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """One row per eigenvalue, ascending, with its index, interval and whether it is above the noise floor."""
        import pandas as pd

        low, high = self.intervals()
        columns = {
            "index": np.arange(self.dim),
            "eigenvalue": self.eigenvalues,
            "low": low,
            "high": high,
            "resolved": np.abs(self.eigenvalues) > self.noise_floor,
        }
        return pd.DataFrame(columns).assign(matrix=self.matrix, chart=self.chart, gauge=self.gauge, block=self.block)

    def to_xarray(self) -> xr.DataArray:
        """Label the eigenvalues; everything else becomes attributes."""
        import xarray as xr

        about = {
            key: value
            if isinstance(value, str | int | float) and not isinstance(value, bool)
            else json.dumps(value, default=asdict)
            for key, value in _fields(self).items()
            if not isinstance(value, np.ndarray)
        }
        return xr.DataArray(
            self.eigenvalues, dims="index", coords={"index": np.arange(self.dim)}, name="eigenvalue", attrs=about
        )

    def __repr__(self) -> str:
        low, high = self.eigenvalue(0), self.eigenvalue(-1)
        return (
            f"Spectrum({self.label}: {self.dim} eigenvalues in [{low}, {high}], rank {self.rank_words}, "
            f"noise floor {self.noise_floor:.1e}, {self.method})"
        )

    def _repr_html_(self) -> str:
        from curvature.figures import spectrum_svg

        summary = self.condition_numbers()
        negative, zero, positive = self.inertia
        rows = {
            "eigenvalues": f"{self.dim} ({negative} negative, {zero} below the noise floor, {positive} positive)",
            "extremes": f"{self.eigenvalue(0)} to {self.eigenvalue(-1)}",
            "rank": f"{self.rank_words} ({self.rank_rule})",
            "trace": f"{self.trace:.4g}",
            "noise floor": f"{self.noise_floor:.1e}" + (f" ({self.floor_rule})" if self.floor_rule else ""),
            **{name: str(quantity) for name, quantity in summary.headline.items()},
            "method": f"{self.method}, {self.dtype}, N = {self.num_examples}",
            "self-checks": f"{len(self.checks)} passed" if self.checks else "none made",
        }
        body = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return (
            f"<div><b>{html.escape(self.label)}</b><div style='display:flex;gap:1em;align-items:center'>"
            f"<table>{body}</table>{spectrum_svg(self)}</div></div>"
        )


@dataclass(frozen=True)
class ConditionNumbers:
    """Summaries of one spectrum, each a :class:`Quantity` under its own name.

    ``values`` maps name to quantity (see :func:`curvature.conditioning.condition_numbers` for the formulas); ``damped``
    maps ``delta`` to ``(kappa_damped, effective_dimension)``.
    """

    matrix: str
    chart: str
    gauge: str
    block: str
    effective: bool
    dim: int
    rank: int
    rank_rule: str
    noise_floor: float
    num_examples: int | None
    method: str
    values: Mapping[str, Quantity]
    damped: Mapping[float, tuple[Quantity, Quantity]]
    rank_bounds: tuple[int, int] | None = None

    def __getitem__(self, name: str) -> Quantity:
        if name not in self.values:
            raise ConfigurationError(f"no quantity {name!r} for {self.matrix}; there are {', '.join(self.values)}.")
        return self.values[name]

    @property
    def headline(self) -> dict[str, Quantity]:
        """The quantities to quote: ``kappa_p`` and ``gd_time`` (or their absolute forms if indefinite)."""
        wanted = ("kappa_50", "kappa_80", "kappa_95", "gd_time", "abs_kappa_50", "abs_kappa_80", "abs_kappa_95")
        return {name: self.values[name] for name in wanted if name in self.values}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} = {quantity}" for name, quantity in self.headline.items())
        gauge = "" if self.gauge == "-" else f" ({self.gauge})"
        return f"ConditionNumbers({self.matrix}, {self.chart}{gauge}, rank {self.rank}: {shown})"

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(quantity))}</td><td>{quantity.interval}</td>"
            f"<td>{html.escape(quantity.note)}</td></tr>"
            for name, quantity in self.values.items()
        )
        gauge = "" if self.gauge == "-" else f" ({self.gauge})"
        title = f"{self.matrix}, {self.chart}{gauge}, rank {self.rank}"
        return f"<div><b>{html.escape(title)}</b><table>{body}</table></div>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and CSV."""
        about = {key: value for key, value in _fields(self).items() if key not in ("values", "damped")}
        return about | {name: asdict(quantity) for name, quantity in self.values.items()}


@dataclass(frozen=True)
class SpectralDensity:
    """A density of eigenvalues, held as the quadrature that produced it; smoothing is a choice of the picture.

    ``nodes`` (Ritz values, unit loss / coordinate**2) and ``weights`` (each row sums to one) have shape
    ``(num_probes, num_matvecs)``; ``checks``: the self-checks that the matrix passed.
    """

    matrix: str
    chart: str
    gauge: str
    dim: int
    nodes: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    num_examples: int | None = None
    num_products: int = 0
    seconds: float = math.nan
    dtype: str = "float64"
    block: str = "all"
    effective: bool = False
    num_samples: int | None = None
    checks: tuple[Check, ...] = field(default=(), repr=False)

    @property
    def num_probes(self) -> int:
        """Independent probes: the statistics."""
        return len(self.nodes)

    @property
    def num_matvecs(self) -> int:
        """Products with each probe: the resolution."""
        return self.nodes.shape[1]

    @property
    def resolution(self) -> float:
        """``(max - min) / num_matvecs``: nothing finer should be read from the density."""
        return float(self.nodes.max() - self.nodes.min()) / self.num_matvecs

    def histogram(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean density over probes in bins as wide as the resolution, and its standard error (NaN for one probe).

        Returns edges ``(B + 1,)``, density ``(B,)`` that integrates to one, and standard errors ``(B,)``. Zero is the
        middle of a bin, so that null eigenvalues do not fall on an edge.
        """
        width = self.resolution or max(abs(float(self.nodes.max())), np.finfo(float).tiny)
        first, last = (int(np.floor(end / width + 0.5)) for end in (self.nodes.min(), self.nodes.max()))
        edges = (np.arange(first, last + 2) - 0.5) * width
        place = np.clip(np.floor(self.nodes / width + 0.5).astype(int) - first, 0, last - first)
        shares = (
            np.stack([np.bincount(row, w, last - first + 1) for row, w in zip(place, self.weights, strict=True)])
            / width
        )
        spread = shares.std(axis=0, ddof=1) if len(shares) > 1 else np.full(shares.shape[1], math.nan)
        return edges, shares.mean(axis=0), spread / len(shares) ** 0.5

    def moment(self, power: int) -> tuple[float, float]:
        """Estimate of ``mean(eigenvalue**power)`` and its standard error over probes (NaN for one probe)."""
        per_probe = (self.weights * self.nodes**power).sum(axis=1)
        spread = per_probe.std(ddof=1) if len(per_probe) > 1 else math.nan
        return float(per_probe.mean()), float(spread / len(per_probe) ** 0.5)

    def cumulative(self, grid: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of the eigenvalues that are at most each number of ``grid``: low, middle, high, each like ``grid``.

        The band holds the true share at each point with probability ``level`` or more: what the quadrature of every
        probe leaves open (for certain) and what a finite number of probes does (exactly, not by a normal law; one
        probe has a band too). See :func:`curvature.certificates.cumulative_band`. It is a band point by point, not for
        the whole curve at once, and says nothing about single eigenvalues.
        """
        points = np.asarray(grid, dtype=float)
        if not 0 < level < 1 or np.isnan(points).any():
            raise ConfigurationError(f"level must lie between 0 and 1 (got {level}), and the grid must hold numbers.")
        found = cumulative_band(self.nodes, self.weights, self.dim, points.ravel(), level)
        return tuple(part.reshape(points.shape) for part in found)


@dataclass(frozen=True)
class Estimate:
    r"""One number of a matrix (or one per coordinate) with the interval that it lies in.

    Attributes
    ----------
    what
        ``"trace"``, ``"diagonal"``, ``"log-determinant"``, ...
    value, low, high
        The number and its interval; arrays ``(D,)`` for a diagonal, whose interval holds entry by entry.
    level
        Probability that the interval holds the truth, over the random probes: 1 for exact and certified values.
    standard_error
        Of ``value`` over probes; 0 where nothing is random.
    quadrature_error
        Half of the part of the interval that more Lanczos steps, not more probes, would remove.
    method
        ``"exact"`` (up to rounding, which is the interval), or the estimator.
    num_products, num_probes
        Products with the matrix that were spent, and independent probes among them.
    converged
        Whether the precision that was asked for was reached; True where none was.
    note
        What else a reader must know.
    """

    what: str
    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float
    method: str
    matrix: str
    chart: str
    gauge: str
    dim: int
    standard_error: float | np.ndarray = 0.0
    quadrature_error: float = 0.0
    num_products: int = 0
    num_probes: int = 0
    converged: bool = True
    note: str = ""
    num_examples: int | None = None
    seconds: float = math.nan

    @property
    def exact(self) -> bool:
        """Whether only rounding is left."""
        return self.method == "exact"

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{self.what} of {self.matrix}: {self.dim} entries, {self.method}"
        how = self.method if self.exact else f"{100 * self.level:g} %, {self.method}"
        return f"{self.what} of {self.matrix}: {self.value:.6g} in [{self.low:.6g}, {self.high:.6g}] ({how})"


@dataclass(frozen=True)
class Inertia:
    """How many eigenvalues lie below and above ``shift``, by Sylvester's law of inertia.

    ``tolerance`` is the norm of the rounding that was made: eigenvalues farther than it from ``shift`` are on the right
    side for certain. Eigenvalues of the rounded matrix that are exactly ``shift`` count on neither side.
    """

    matrix: str
    chart: str
    gauge: str
    dim: int
    shift: float
    below: int
    above: int
    tolerance: float
    num_examples: int | None = None


@dataclass(frozen=True)
class ExtremalEigenvalues:
    r"""Ritz values at the ends of a spectrum, with what is known of their errors.

    Attributes
    ----------
    largest, smallest
        Descending and ascending.
    residuals, error_bounds
        For ascending values (smallest first): some eigenvalue lies within the bound.
    converged
        All values asked for meet the tolerance given the gaps that the Ritz values show, and no check found one
        missing. Alone it does not say that no eigenvalue was missed: that is ``complete``.
    complete
        ``"certified by inertia"``: the eigenvalues beyond the last one were counted. ``"the whole space"``: the basis
        spans it. ``"checked by a second start"``: an independent Lanczos run orthogonal to these vectors found nothing
        beyond; ``unseen`` says what it could not have seen. ``"not checked"``: nobody looked. ``"incomplete"``: at
        least ``num_missed`` eigenvalues belong into this set and are not in it.
    unseen
        All other eigenvalues lie between these two: for certain by inertia, with probability 0.999 by a second start.
    num_steps
        Dimension of the Krylov space from the random start, before any restart: what :meth:`spectral_bounds` rests on.
    ritz_range
        Smallest and largest Ritz value met.
    noise_floor
        Rounding of one eigenvalue.
    checks
        Self-checks that the matrix passed; see :mod:`curvature.checks`.
    """

    matrix: str
    chart: str
    gauge: str
    dim: int
    largest: np.ndarray
    smallest: np.ndarray
    residuals: np.ndarray = field(repr=False)
    error_bounds: np.ndarray = field(repr=False)
    converged: bool
    num_products: int
    num_examples: int | None = None
    seconds: float = math.nan
    dtype: str = "float64"
    block: str = "all"
    effective: bool = False
    num_samples: int | None = None
    positive_semidefinite: bool = False
    complete: str = "not checked"
    num_missed: int = 0
    unseen: tuple[float, float] = (-math.inf, math.inf)
    num_steps: int = 0
    ritz_range: tuple[float, float] = (-math.inf, math.inf)
    noise_floor: float = 0.0
    checks: tuple[Check, ...] = field(default=(), repr=False)

    @property
    def largest_bounds(self) -> np.ndarray:
        """Error bounds of ``largest``, in its order."""
        return self.error_bounds[len(self.smallest) :][::-1]

    @property
    def smallest_bounds(self) -> np.ndarray:
        """Error bounds of ``smallest``, in its order."""
        return self.error_bounds[: len(self.smallest)]

    @property
    def certified(self) -> bool:
        """Whether the set is complete for certain, not only with high probability."""
        return self.complete in ("certified by inertia", "the whole space")

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        r"""Lower and upper ends for ascending values (smallest first), rounding included.

        Where the set is complete, of the i-th eigenvalue itself, by Kato & Temple: quadratic in the residual where the
        neighbours leave a gap. A second start makes them hold with probability 0.999 rather than for certain. Where it
        is not known to be complete, only $\theta \pm r$, in which *some* eigenvalue lies.
        """
        values = np.concatenate([self.smallest, self.largest[::-1]])
        if not (self.certified or self.complete == "checked by a second start"):
            return values - self.error_bounds, values + self.error_bounds
        # Orthonormal Ritz vectors: each value has its own eigenvalue within the norm of all residuals (Kahan 1967).
        radius = math.hypot(*self.residuals) + self.noise_floor
        bottom = len(self.smallest)
        below = np.concatenate([[-math.inf], values[:-1] + radius])
        above = np.concatenate([values[1:] - radius, [math.inf]])
        below[bottom:] = np.maximum(below[bottom:], self.unseen[1])
        above[:bottom] = np.minimum(above[:bottom], self.unseen[0])
        low, high = kato_temple(values, self.residuals, below, above)
        alone = (below < values - radius) & (above > values + radius)
        low, high = np.where(alone, low, values - radius), np.where(alone, high, values + radius)
        # Beside a value that is not beyond everything unseen, one more eigenvalue may count before it.
        low[:bottom] = np.where(alone, low, np.minimum(low, self.unseen[0]))[:bottom]
        high[bottom:] = np.where(alone, high, np.maximum(high, self.unseen[1]))[bottom:]
        return low - self.noise_floor, high + self.noise_floor

    def eigenvalue(self, k: int) -> Quantity:
        r"""Give the k-th value found (ascending, smallest first) as what it is known to be.

        Where the set is complete, the eigenvalue of that place with its interval. Where nobody counted, Ritz values
        lie inside the spectrum (Cauchy): the j-th largest is a lower bound of the j-th largest eigenvalue, the j-th
        smallest an upper bound; the interval is closed by :meth:`spectral_bounds`.
        """
        values = np.concatenate([self.smallest, self.largest[::-1]])
        value, floor, (low, high) = float(values[k]), self.noise_floor, (float(ends[k]) for ends in self.intervals())
        if self.positive_semidefinite:
            low, high = max(low, 0.0), max(high, 0.0)
        if self.certified or self.complete == "checked by a second start":
            method = f"Kato-Temple, {self.complete}"
            if abs(value) <= floor and high <= 2 * floor and low >= -2 * floor:
                return Quantity(value, "below_noise_floor", f"computed as {value:.1e}", low, high, method)
            if self.converged:
                return Quantity(value, low=low, high=high, method=method)
            return Quantity(value, "unresolved", "not converged", low, high, method)
        bottom, top = self.spectral_bounds()
        method = f"Ritz value, {self.complete}; random start, probability {1 - FAILURE:g}"
        if k % len(values) < len(self.smallest):
            return Quantity(value, "upper_bound_only", "smaller ones may be missing", bottom, value + floor, method)
        return Quantity(value, "lower_bound", "larger ones may be missing", value - floor, top, method)

    def spectral_bounds(self) -> tuple[float, float]:
        """Interval of all eigenvalues: certain where the set is certified, else with probability 0.999.

        From the random start (Kuczynski & Wozniakowski 1992). A positive semidefinite matrix has no eigenvalue below
        zero; how far above zero its smallest one is, products can not say once the condition number is large.
        """
        low, high = spectral_bounds(
            *self.ritz_range,
            self.dim,
            self.num_steps,
            positive_semidefinite=self.positive_semidefinite,
            failure=FAILURE,
        )
        low, high = low - self.noise_floor, high + self.noise_floor
        if self.certified:
            ends = self.intervals()
            low = float(ends[0][0]) if len(self.smallest) else low
            high = float(ends[1][-1]) if len(self.largest) else high
        return (max(low, 0.0) if self.positive_semidefinite else low), high


@dataclass(frozen=True)
class StepComparison:
    r"""How close one chart's gradient step is to the damped natural-gradient step, at one damping.

    Attributes
    ----------
    chart, gauge, block
        Which steps, in which scope.
    damping
        $a$: relative damping, $\lambda = a \operatorname{tr}(F) / P$.
    lambda_
        $\lambda$, unit loss / weight**2, added to $F$ *on the weights*.
    efficiency
        $E \in [0, 1]$: the best line-search decrease of the quadratic model along the chart's step, over that of the
        full damped natural-gradient step.
    index
        $R = (E - E_\text{SGD}) / (E_\text{neuron-block} - E_\text{SGD})$: 0 is gradient descent, 1 neuron-block natural
        gradient; NaN where the two ends coincide.
    kappa
        Condition number of $K^{1/2}(F + \lambda I)K^{1/2}$: 1 where $K \propto (F + \lambda I)^{-1}$.
    am_gm, ai_distance
        Distance of the same matrix from a multiple of the identity; 0 at the natural gradient.
    """

    chart: str
    gauge: str
    damping: float
    lambda_: float
    efficiency: float
    block: str = "all"
    index: float = math.nan
    kappa: float = math.nan
    am_gm: float = math.nan
    ai_distance: float = math.nan
    num_examples: int | None = None

    @property
    def label(self) -> str:
        """Chart and gauge in a few words."""
        return self.chart if self.gauge == "-" else f"{self.chart} ({self.gauge})"


@dataclass(frozen=True)
class Alignment:
    r"""Where one neuron's weights lie in the eigenbasis of its gradient covariance $C$ (claim C2).

    ``cosine`` is $|\cos(x, e_1)|$ with the top eigenvector; ``rayleigh`` is $(x^T C x / x^T x) / (\operatorname{tr} C
    / d)$, 1 for a random direction in expectation. ``null_cosine`` is the mean of $|\cos|$ for a random direction.
    """

    neuron: str
    direction: str
    cosine: float
    rayleigh: float
    null_cosine: float
    dim: int
    num_examples: int


@dataclass(frozen=True)
class Whitening:
    r"""Sphericity of one neuron's gradient covariance before and after removing one direction (claim C3).

    ``bures`` in [0, 1) and ``am_gm_damped`` are 0 for a multiple of the identity; ``projection`` says which direction
    was projected out: ``"none"``, ``"w"``, ``"random"`` or ``"e1"``.
    """

    neuron: str
    projection: str
    bures: float
    am_gm_damped: float
    l1_over_mean: float
    dim: int
    num_examples: int


@dataclass(frozen=True)
class GaugeState:
    r"""The stretches $\|v\| / |g|$ of all normalized rows at one point: what gauge "checkpoint" means in numbers."""

    chart: str
    gauge: str
    minimum: float
    median: float
    maximum: float
    num_rows: int


@dataclass(frozen=True)
class StepsToLoss:
    """Optimizer steps until the loss over all data was first seen at a level or below it (claim C8).

    ``reached`` False: right-censored, the number is larger than ``steps``, the last step that was taken;
    ``diverged`` says that no longer run would have got there.
    """

    arm: str
    seed: int
    level: float
    steps: int
    reached: bool
    diverged: bool = False


@dataclass(frozen=True)
class TrainingCurve:
    """One run of one arm: mean loss over all data, ``(T,)``, at the optimizer steps ``steps``.

    A run that diverged ends in a loss that is not finite. ``learning_rate`` is NaN where it was not told.
    """

    arm: str
    seed: int
    steps: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    accuracies: np.ndarray = field(repr=False)
    learning_rate: float = math.nan

    def steps_to(self, level: float) -> StepsToLoss:
        """First step whose loss is not above ``level``, as finely as the curve was evaluated.

        >>> curve = TrainingCurve("standard", 0, np.array([0, 5, 10]), np.array([2.0, 1.0, 0.5]), np.ones(3))
        >>> curve.steps_to(1.0).steps, curve.steps_to(0.1)
        (5, StepsToLoss(arm='standard', seed=0, level=0.1, steps=10, reached=False, diverged=False))
        """
        below = np.flatnonzero(self.losses <= level)
        if len(below):
            return StepsToLoss(self.arm, self.seed, level, int(self.steps[below[0]]), True)
        diverged = not bool(np.isfinite(self.losses[-1]))
        return StepsToLoss(self.arm, self.seed, level, int(self.steps[-1]), False, diverged)


@dataclass(frozen=True)
class Verdict:
    r"""What the measurements say about one claim, by a rule that was fixed before they were made.

    Every paired number is oriented: positive means what the claim says. See :mod:`curvature.evidence` for the rules.

    Attributes
    ----------
    claim, case
        ``"C1"`` to ``"C8"``, and which form of it where there are several.
    sentence
        What was tested, as a sentence that can be false.
    outcome
        ``"supported"``, ``"refuted"`` (an effect of the claimed size is excluded), ``"inconclusive"``, or ``"not
        tested"`` (``note`` says what would be needed).
    rule
        The rule that decided, in words.
    unit
        What ``estimate``, the interval and ``threshold`` are measured in.
    method
        ``"student"`` (mean and t interval), ``"sign"`` (median, exact sign test; for numbers that may be bounds) or
        ``"identity"`` (largest deviation against a tolerance; no statistics).
    estimate, low, high, level
        The number, and the interval that decided: at ``level`` for this claim alone, where Holm's step-down compares
        it. ``low`` and ``high`` are infinite where too few pairs allow no interval.
    p_value, adjusted_p_value
        Two-sided against ``threshold``, alone and after Holm over the family.
    threshold
        The smallest effect that counts; for an identity, the tolerance.
    num_pairs, num_missing
        Pairs that entered, and pairs that have no number (not resolved, not finite, different ranks).
    effects, ceilings
        The paired numbers themselves, by seed; where a number is only known to lie between two bounds these are the
        lower and the upper ones (``ceilings`` is empty where nothing is bounded).
    min_pairs
        Fewer pairs than this decide nothing.
    control, control_estimate, control_low, control_high, control_passed
        What makes it evidence, its 95 % interval, and whether it came out as it must; None where it has no such rule.
    note
        What a reader must know before quoting it.
    """

    claim: str
    sentence: str
    outcome: str
    case: str = ""
    rule: str = ""
    unit: str = ""
    method: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan
    p_value: float = math.nan
    adjusted_p_value: float = math.nan
    threshold: float = math.nan
    num_pairs: int = 0
    num_missing: int = 0
    min_pairs: int = 0
    effects: tuple[float, ...] = field(default=(), repr=False)
    ceilings: tuple[float, ...] = field(default=(), repr=False)
    control: str = ""
    control_estimate: float = math.nan
    control_low: float = math.nan
    control_high: float = math.nan
    control_passed: bool | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """Claim and case: ``"C1, own training"``."""
        return f"{self.claim}, {self.case}" if self.case else self.claim

    @property
    def icon(self) -> str:
        """One character beside the word: a tick, a cross, a question mark or a dash."""
        return {"supported": "✓", "refuted": "✗", "inconclusive": "?"}.get(self.outcome, "–")

    @property
    def found(self) -> str:
        """The number with its interval, in words."""
        if self.outcome == "not tested":
            return self.note
        if self.method == "identity":
            return f"largest deviation {self.estimate:.1e}, allowed {self.threshold:.1e}, {self.num_pairs} comparisons"
        if self.num_pairs and not any(self.effects) and not any(self.ceilings):
            number = "no difference, exactly"
        else:
            unknown = "only bounds" if self.num_pairs else "no number"
            number = unknown if math.isnan(self.estimate) else f"{self.estimate:+.3g}"
            if self.num_pairs and not math.isnan(self.level):
                number += f", {100 * self.level:.4g} % interval [{self.low:+.3g}, {self.high:+.3g}]"
        missing = f" of {self.num_pairs + self.num_missing}" if self.num_missing else ""
        return f"{number}; {self.unit}; threshold {self.threshold:.3g}; {self.num_pairs}{missing} pairs"

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}: {self.found}"


@dataclass(frozen=True)
class Decomposition:
    """The log-ratio of one quantity between the two arms, cut into its sources; see :mod:`curvature.evidence`.

    Attributes
    ----------
    quantity, matrix
        What was compared.
    sources
        Names of the columns of ``parts``.
    parts
        ``(num_seeds, num_sources)``; each row sums to ``whole``.
    whole
        ``(num_seeds,)``: log of the weight-normalized arm's number over the standard arm's.
    seeds
        One per row.
    held
        Sources that were not varied on their own, and why: their column is zero, and what they do, if anything, is
        in the part that the reason names.
    num_orders
        How many orders of switching the sources the parts are averaged over; 1 is a plain telescoping sum.
    num_missing
        Seeds left out because a number of theirs is missing.
    arms
        The standard and the weight-normalized arm.
    """

    quantity: str
    matrix: str
    sources: tuple[str, ...]
    parts: np.ndarray = field(repr=False)
    whole: np.ndarray = field(repr=False)
    seeds: tuple[int, ...]
    held: Mapping[str, str] = field(default_factory=dict)
    num_orders: int = 1
    num_missing: int = 0
    arms: tuple[str, ...] = ("standard", "weight-norm")

    def __repr__(self) -> str:
        means = zip(self.sources, self.parts.mean(axis=0), strict=True)
        parts = ", ".join(f"{source} {value:+.3g}" for source, value in means if source not in self.held)
        about = f"{self.matrix}, {self.quantity}, {len(self.whole)} seeds"
        return f"Decomposition({about}: {self.whole.mean():+.3g} = {parts})"


@dataclass(frozen=True)
class LearningRateSweep:
    """One arm trained at each learning rate of a grid, for the same number of steps.

    Attributes
    ----------
    rates, final_losses
        Ascending rates, evenly spaced in the logarithm, ``(R,)``; mean of the losses over all data at the ends of the
        last epochs (see :func:`~curvature.training.tune_learning_rate`), infinite where training diverged.
    chosen
        The rate with the lowest of these; NaN if every rate diverged.
    at_edge
        Whether ``chosen`` is the first or last rate, or there is none, although the grid was extended as far as
        allowed: a better rate may lie beyond.
    budget
        Optimizer steps.
    """

    arm: str
    seed: int
    rates: np.ndarray
    final_losses: np.ndarray
    chosen: float
    at_edge: bool
    budget: int


@dataclass(frozen=True)
class Measured:
    """One record and where it was taken: arm (whose weights), seed, checkpoint and optimizer step."""

    arm: str
    seed: int
    checkpoint: str
    step: int
    record: (
        Spectrum
        | ExtremalEigenvalues
        | SpectralDensity
        | ConditionNumbers
        | StepComparison
        | Alignment
        | Whitening
        | GaugeState
    )


@dataclass(frozen=True)
class Study:
    """Everything one command measured: what the run directory and the report are made from.

    Attributes
    ----------
    command
        ``"spectrum"`` or ``"compare"``.
    config
        The resolved configuration; running it again gives the same numbers.
    model, data
        One line each, for people.
    num_weights, num_examples
        ``P`` and ``N``.
    measurements
        All records, each with its place.
    curves
        Training curves, if anything was trained.
    checks
        Identities and self-checks with their values.
    sweeps
        Learning rates tried, if they were tuned.
    verdicts
        What the measurements say about the claims, if claims were tested.
    decompositions
        Where the difference between the arms comes from, if it was asked.
    warnings
        What a reader must know before quoting a number.
    provenance
        Versions, seeds, hashes, machine, times.
    """

    command: str
    config: Mapping[str, Any]
    model: str
    data: str
    num_weights: int
    num_examples: int
    measurements: tuple[Measured, ...] = field(repr=False)
    curves: tuple[TrainingCurve, ...] = field(default=(), repr=False)
    checks: tuple[Check, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sweeps: tuple[LearningRateSweep, ...] = field(default=(), repr=False)
    verdicts: tuple[Verdict, ...] = ()
    decompositions: tuple[Decomposition, ...] = ()

    @property
    def self_checks(self) -> tuple[Check, ...]:
        """Self-checks that all records carry, one for each matrix and name: the one closest to its tolerance."""
        found: dict[tuple[str, str], list[Check]] = {}
        for m in self.measurements:
            for check in getattr(m.record, "checks", ()):
                found.setdefault((m.record.matrix, check.name), []).append(check)

        def badness(check: Check) -> float:  # what could not be compared must be seen
            return check.value / check.tolerance if math.isfinite(check.tolerance) else math.inf

        return tuple(
            replace(worst, name=f"{matrix}: {name}", note=f"{worst.note}; the worst of {len(checks)}")
            for (matrix, name), checks in found.items()
            for worst in [max(checks, key=badness)]
        )

    def of(self, kind: type, **where: Any) -> list[Measured]:
        """Measurements of one kind of record; ``where`` filters by place or by the record's own fields.

        >>> study.of(Spectrum, matrix="ggn", checkpoint="late")  # doctest: +SKIP
        """

        def value(measured: Measured, key: str) -> Any:
            owner = measured if hasattr(measured, key) else measured.record
            return getattr(owner, key)

        return [
            measured
            for measured in self.measurements
            if isinstance(measured.record, kind) and all(value(measured, k) == v for k, v in where.items())
        ]


def _fields(record: Any) -> dict[str, Any]:
    return {item.name: getattr(record, item.name) for item in fields(record)}
