"""The record of curvature along training: a row for each measured step, with the cost of measuring it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from curvature.records.files import Saved
from curvature.records.notebook import html_rows
from curvature.records.quantity import Quantity
from curvature.records.validation import require
from curvature.records.where import Where

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Track", "TrackPoint", "TrackedMatrix"]

_KAPPAS = ("kappa_50", "kappa_80", "kappa_95")
_SHOWN = 12  # rows of the table in a notebook


@dataclass(frozen=True)
class TrackedMatrix:
    r"""What is tracked of one matrix at one step.

    Attributes
    ----------
    matrix
        Its name: ``"hessian"``, ``"ggn"``, ...
    largest
        Largest eigenvalues, descending. Ritz values that no second start has checked are *lower bounds*.
    trace
        Exact, or an estimate with its 95 % interval.
    kappa_50, kappa_80, kappa_95
        Condition numbers on a share of the rank (see :func:`~curvature.condition_numbers`); undefined where the whole
        spectrum was not computed.
    method
        How the whole spectrum was computed (``"dense"``, ``"factor"``, ...), or ``"lanczos"``.
    num_products
        Products with single vectors; 0 where the whole spectrum was computed.
    seconds
        Time of the measurement.
    """

    matrix: str
    largest: tuple[Quantity, ...]
    trace: Quantity
    kappa_50: Quantity
    kappa_80: Quantity
    kappa_95: Quantity
    method: str
    num_products: int = 0
    seconds: float = math.nan

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Every quantity by its name: ``largest_1``, ``largest_2``, ..., ``trace``, ``kappa_50``, ..."""
        largest = {f"largest_{k}": value for k, value in enumerate(self.largest, start=1)}
        return largest | {"trace": self.trace} | {name: getattr(self, name) for name in _KAPPAS}


@dataclass(frozen=True)
class TrackPoint:
    r"""Curvature at one step of training, on the fixed data of the problem.

    Attributes
    ----------
    step
        Optimizer steps before it.
    loss
        Value of the objective; not finite after divergence.
    gradient_norm
        Euclidean norm of the gradient in the coordinates of the track's chart.
    critical_sharpness
        $2/\eta_c$, $\eta_c$ the smallest learning rate at which a step along the negative gradient, or along the update
        of the optimizer, increases the loss.
    matrices
        One entry for each matrix that was measured at this step.
    postponed
        Matrices that were due but left out, since they would have exceeded the budget.
    diverged
        Whether the weights, the loss or the gradient are not finite; nothing else was measured then.
    name
        Name of the checkpoint; empty in a training loop.
    note
        What to know before using the numbers.
    seconds
        Time of the whole row.
    update
        Name of the optimizer along whose next update the critical sharpness was measured; empty for the gradient.
    """

    step: int
    loss: float
    gradient_norm: float
    critical_sharpness: Quantity
    matrices: tuple[TrackedMatrix, ...] = ()
    postponed: tuple[str, ...] = ()
    diverged: bool = False
    name: str = ""
    note: str = ""
    seconds: float = math.nan
    update: str = ""

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Every quantity by its name, e.g. ``critical_sharpness``, ``hessian/largest_1``, ``ggn/kappa_80``.

        Along the update of an optimizer the first is called ``critical_sharpness_of_update``.
        """
        name = "critical_sharpness_of_update" if self.update else "critical_sharpness"
        quantities = {name: self.critical_sharpness}
        for part in self.matrices:
            quantities |= {f"{part.matrix}/{name}": quantity for name, quantity in part.quantities.items()}
        return quantities

    def scalars(self) -> dict[str, float]:
        """Collect the numbers of this row that a logger can plot.

        Returns
        -------
        dict
            ``loss``, ``gradient_norm``, and each quantity under its name. Where a condition number or the critical
            sharpness is only a lower or upper bound, ``_at_least`` or ``_at_most`` is added to the name. Quantities
            that are not resolved, and numbers that are not finite, are left out.
        """
        scalars = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        for name, quantity in self.quantities.items():
            bound = {"resolved": "", "lower_bound": "_at_least", "upper_bound_only": "_at_most"}.get(quantity.status)
            if bound is not None:
                scalars[name if "/largest_" in name else name + bound] = quantity.value
        return {name: value for name, value in scalars.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Track(Saved):
    """Curvature along training: a row for each measured step, and what measuring cost.

    Attributes
    ----------
    headers
        One header for each tracked matrix: its name, chart, number of examples, precision.
    points
        The rows, in the order of the steps.
    every
        Distance of the steps at which a row is due; 0 where the steps are those of checkpoints.
    budget
        Largest share of the training time that measuring may take; None without a limit.
    num_steps
        Steps of training so far.
    training_seconds
        Time of training so far, without the time spent measuring.
    measuring_seconds
        Time spent measuring so far.
    """

    schema: ClassVar[str] = "curvature/track/1"
    noun: ClassVar[str] = "track"
    headers: tuple[Where, ...]
    points: tuple[TrackPoint, ...] = field(default=(), repr=False)
    every: int = 0
    budget: float | None = None
    num_steps: int = 0
    training_seconds: float = 0.0
    measuring_seconds: float = 0.0

    def validate(self) -> None:
        """Check that the rows fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If the steps descend, or a row has a matrix without a header.
        """
        steps = [point.step for point in self.points]
        require(steps == sorted(steps), "the steps are not ascending")
        known = {header.matrix for header in self.headers}
        unknown = {part.matrix for point in self.points for part in point.matrices} - known
        require(not unknown, f"no header for {', '.join(sorted(unknown))}")

    def __len__(self) -> int:
        return len(self.points)

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the tracked matrices."""
        return tuple(header.matrix for header in self.headers)

    @property
    def overhead(self) -> float:
        """Time spent measuring, as a share of the time of training; NaN before any training."""
        return self.measuring_seconds / self.training_seconds if self.training_seconds > 0 else math.nan

    @property
    def label(self) -> str:
        """Matrices and chart."""
        charts = dict.fromkeys(header.chart_label for header in self.headers)
        return f"{' and '.join(self.matrices)}, {', '.join(charts)}" if self.headers else "no matrix"

    def to_dataframe(self) -> pd.DataFrame:
        """Convert to a table.

        Returns
        -------
        pandas.DataFrame
            Index ``step``. ``loss``, ``gradient_norm``, each quantity with its ``NAME_status`` and, where an interval
            is known, ``NAME_low`` and ``NAME_high``; ``diverged``, ``postponed``, ``note``, ``seconds``, and ``name``
            where the rows have names. What was not measured at a step is NaN.
        """
        import pandas as pd

        rows = []
        for point in self.points:
            cells: dict[str, object] = {"step": point.step}
            if point.name:
                cells["name"] = point.name
            cells |= {"loss": point.loss, "gradient_norm": point.gradient_norm}
            for name, quantity in point.quantities.items():
                cells |= {name: quantity.value, f"{name}_status": quantity.status}
                if quantity.low is not None and quantity.high is not None:
                    cells |= {f"{name}_low": quantity.low, f"{name}_high": quantity.high}
            cells |= {
                "diverged": point.diverged,
                "postponed": ", ".join(point.postponed),
                "note": point.note,
                "seconds": point.seconds,
            }
            rows.append(cells)
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame()

    @property
    def summary(self) -> str:
        """One line: how many rows, of which steps, and what they cost."""
        steps = f"steps {self.points[0].step} to {self.points[-1].step}" if self.points else "no step yet"
        if math.isnan(self.overhead):
            cost = f"{self.measuring_seconds:.3g} s"
        else:
            limit = "" if self.budget is None else f" of {100 * self.budget:.3g} % allowed"
            cost = f"overhead {100 * self.overhead:.3g} %{limit} ({self.measuring_seconds:.3g} s)"
        return f"{self.label}: {len(self.points)} rows, {steps}, {cost}"

    def __repr__(self) -> str:
        return f"Track({self.summary})"

    def _repr_html_(self) -> str:
        updates = any(point.update for point in self.points)
        sharpness = "critical_sharpness_of_update" if updates else "critical_sharpness"
        names = [sharpness, *(f"{m}/{q}" for m in self.matrices for q in ("largest_1", "trace", "kappa_80"))]
        points = self.points[-_SHOWN:]
        header = ("step", "loss", "gradient norm", *(name.replace("_", " ") for name in names), "note")
        rows = [
            (
                str(point.name or point.step),
                f"{point.loss:.4g}",
                f"{point.gradient_norm:.4g}",
                *(str(point.quantities.get(name, "-")) for name in names),
                "diverged" if point.diverged else point.note,
            )
            for point in points
        ]
        omitted = f"; the last {_SHOWN} are shown" if len(self.points) > _SHOWN else ""
        return html_rows(self.summary + omitted, [header, *rows])
