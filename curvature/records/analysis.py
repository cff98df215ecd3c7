"""The record of an overview of a model: a row for each layer, and one for the whole model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from curvature.records.notebook import html_rows
from curvature.records.quantity import Quantity
from curvature.records.where import Located, Where

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HEADER", "Analysis", "LayerSummary"]

_QUANTITIES = ("trace", "largest", "smallest", "kappa_80", "effective_rank")
HEADER = ("layer", "parameters", "trace", "largest", "smallest", "kappa_80", "effective rank", "gradient", "stretch")


@dataclass(frozen=True)
class LayerSummary:
    r"""Curvature of one layer: its principal block of the matrix, and its share of the gradient.

    Attributes
    ----------
    layer
        Name of the module; ``"all"`` for the whole model.
    num_parameters
        Coordinates of the layer in the chart: with weight norm one more for each neuron.
    trace
        Sum of the eigenvalues.
    largest, smallest
        Largest eigenvalue, and the smallest (most negative, for an indefinite matrix) that is above the noise floor.
    kappa_80
        Condition number without the smallest fifth of the non-zero spectrum.
    effective_rank
        $\exp$ of the entropy of the eigenvalues' shares of the trace.
    gradient_share
        Share of the squared gradient in this layer; NaN for a zero gradient, or where the matrix has none.
    stretches
        Smallest, median and largest $\|v\| / |g|$ of the layer's normalized rows; None where nothing is normalized.
    method
        How the numbers were computed: ``"dense"``, ``"factor"``, ``"gram"``, or ``"lanczos"`` for estimates.
    warnings
        What to know before using the numbers, in words.
    """

    layer: str
    num_parameters: int
    trace: Quantity
    largest: Quantity
    smallest: Quantity
    kappa_80: Quantity
    effective_rank: Quantity
    gradient_share: float
    stretches: tuple[float, ...] | None
    method: str
    warnings: tuple[str, ...] = ()

    @property
    def stretch_text(self) -> str:
        """The stretches as text: the median, with the range where the rows differ."""
        if self.stretches is None:
            return "-"
        low, median, high = self.stretches
        return f"{median:.3g}" if high <= low * (1 + 1e-3) else f"{median:.3g} [{low:.3g}, {high:.3g}]"

    @property
    def texts(self) -> tuple[str, ...]:
        """The numbers as text: quantities as they show their status, the share in per cent, the stretches."""
        share = "-" if math.isnan(self.gradient_share) else f"{100 * self.gradient_share:.3g} %"
        return (*(str(getattr(self, name)) for name in _QUANTITIES), share, self.stretch_text)


@dataclass(frozen=True)
class Analysis(Located):
    """Overview of the curvature of a model: one row for each layer, one for the whole, and warnings.

    Attributes
    ----------
    where
        Header: matrix, chart and gauge.
    layers
        In the order of the model.
    whole
        The whole matrix.
    loss
        Value of the loss.
    seconds
        Time of the computation.
    """

    where: Where
    layers: tuple[LayerSummary, ...]
    whole: LayerSummary
    loss: float
    seconds: float = field(default=math.nan, repr=False)

    @property
    def rows(self) -> tuple[LayerSummary, ...]:
        """The layers, then the whole."""
        return (*self.layers, self.whole)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all rows, each with the name of its layer."""
        names = {id(row): f"layer {row.layer!r}" for row in self.layers} | {id(self.whole): "whole model"}
        return tuple(f"{names[id(row)]}: {warning}" for row in self.rows for warning in row.warnings)

    @property
    def summary(self) -> str:
        """One line about the whole model."""
        row = self.whole
        steepest = max(self.layers, key=lambda layer: _number(layer.largest))
        return (
            f"{self.label}: loss {self.loss:.4g}, {row.num_parameters} parameters, trace {row.trace}, largest "
            f"eigenvalue {row.largest} (steepest layer: {steepest.layer}), kappa_80 {row.kappa_80}, effective rank "
            f"{row.effective_rank}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return the rows as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            Index ``layer``, the last one ``"all"``. For each quantity its value, and under ``NAME_status`` what that
            value means (see :class:`~curvature.Quantity`); ``gradient_share``, ``stretch`` (the median), ``method``,
            ``warnings``.
        """
        import pandas as pd

        rows = []
        for row in self.rows:
            numbers = {name: getattr(row, name) for name in _QUANTITIES}
            cells: dict[str, object] = {"layer": row.layer, "parameters": row.num_parameters}
            for name, quantity in numbers.items():
                cells |= {name: quantity.value, f"{name}_status": quantity.status}
            cells |= {
                "gradient_share": row.gradient_share,
                "stretch": np.nan if row.stretches is None else row.stretches[1],
                "method": row.method,
                "warnings": "; ".join(row.warnings),
            }
            rows.append(cells)
        return pd.DataFrame(rows).set_index("layer")

    def __repr__(self) -> str:
        return f"Analysis({self.label}: {len(self.layers)} layers, {self.whole.num_parameters} parameters)"

    def __str__(self) -> str:
        cells = [HEADER, *(self._cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(text.rjust(width) if index else text.ljust(width) for index, (text, width) in enumerate(pairs))
            for pairs in (zip(row, widths, strict=True) for row in cells)
        ]
        return "\n".join([self.summary, "", *lines, *(f"! {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        notes = [(f"! {row.layer}", warning) for row in self.rows for warning in row.warnings]
        return html_rows(self.summary, [HEADER, *(self._cells(row) for row in self.rows), *notes])

    @staticmethod
    def _cells(row: LayerSummary) -> tuple[str, ...]:
        return (row.layer, str(row.num_parameters), *row.texts)


def _number(quantity: Quantity) -> float:
    """The value for a comparison; minus infinity where there is none."""
    return quantity.value if quantity.has_value and not math.isnan(quantity.value) else -math.inf
