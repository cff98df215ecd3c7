"""The header of every number: which matrix, in which coordinates, from which examples."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Located", "Where", "chart_label"]


def chart_label(chart: str, gauge: str) -> str:
    """Print a chart with its gauge: the one place that says how.

    Parameters
    ----------
    chart
        Name of the chart.
    gauge
        Its gauge; ``"-"`` where the chart has one gauge only.

    Returns
    -------
    str
        The name alone, or the name and the gauge in parentheses.

    Examples
    --------
    >>> chart_label("standard", "-"), chart_label("weight-norm", "paper")
    ('standard', 'weight-norm (paper)')
    """
    return chart if gauge == "-" else f"{chart} ({gauge})"


@dataclass(frozen=True)
class Where:
    """Which matrix a number belongs to; a condition number without its gauge means nothing.

    Attributes
    ----------
    matrix
        What was decomposed: ``"hessian"``, ``"ggn"``, ...
    chart, gauge
        The coordinates it is written in; ``"-"`` where the chart has one gauge only.
    block
        ``"all"``, or the name of the principal block.
    effective
        True for ``K^(1/2) A K^(1/2)`` (no gauge zeros), False for the chart's own coordinates.
    num_examples
        Examples behind the mean.
    num_samples
        Sampled labels per example; None unless Monte Carlo.
    dtype
        Precision of the products.

    Examples
    --------
    >>> print(Where("ggn", "weight-norm", "paper"))
    ggn, weight-norm (paper)
    """

    matrix: str
    chart: str = "given"
    gauge: str = "-"
    block: str = "all"
    effective: bool = False
    num_examples: int | None = None
    num_samples: int | None = None
    dtype: str = "float64"

    @property
    def chart_label(self) -> str:
        """Chart with its gauge: ``"weight-norm (paper)"``."""
        return chart_label(self.chart, self.gauge)

    @property
    def label(self) -> str:
        """Matrix, chart with its gauge, and block in a few words."""
        return f"{self.matrix}, {self.chart_label}" + ("" if self.block == "all" else f", {self.block}")

    def __str__(self) -> str:
        return self.label


class Located:
    """Read the header of a record by its parts: ``record.chart`` is ``record.where.chart``."""

    where: Where

    @property
    def matrix(self) -> str:
        """What matrix this is."""
        return self.where.matrix

    @property
    def chart(self) -> str:
        """The chart it is written in."""
        return self.where.chart

    @property
    def gauge(self) -> str:
        """The gauge of the chart."""
        return self.where.gauge

    @property
    def block(self) -> str:
        """The principal block, ``"all"`` for the whole matrix."""
        return self.where.block

    @property
    def effective(self) -> bool:
        """Whether this is ``K^(1/2) A K^(1/2)``."""
        return self.where.effective

    @property
    def num_examples(self) -> int | None:
        """Examples behind the mean."""
        return self.where.num_examples

    @property
    def num_samples(self) -> int | None:
        """Sampled labels per example; None unless Monte Carlo."""
        return self.where.num_samples

    @property
    def dtype(self) -> str:
        """Precision of the products."""
        return self.where.dtype

    @property
    def label(self) -> str:
        """Matrix, chart with its gauge, and block in a few words."""
        return self.where.label
