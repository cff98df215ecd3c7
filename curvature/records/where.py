"""The header of every number: which matrix, in which coordinates, from which examples."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Located", "Where", "chart_label"]


def chart_label(chart: str, gauge: str) -> str:
    """Write a chart with its gauge, as every message, table and figure does.

    Parameters
    ----------
    chart
        Name of the chart.
    gauge
        Its gauge; ``"-"`` for a chart with a single gauge.

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
    """Header of a record: which matrix was measured, in which coordinates, from which examples.

    Attributes
    ----------
    matrix
        Name of the matrix: ``"hessian"``, ``"ggn"``, ...
    chart, gauge
        Coordinates it is written in. A condition number without its gauge means nothing; ``"-"`` for a chart with a
        single gauge.
    block
        ``"all"``, or the name of the principal block.
    effective
        True for ``K^(1/2) A K^(1/2)`` on the weights, which has no gauge zeros; False for the coordinates of the chart.
    num_examples
        Number of examples in the mean.
    num_samples
        Sampled labels per example; None for every matrix but the Monte Carlo Fisher.
    dtype
        Precision of the products, e.g. ``"float64"``.
    reduction
        ``"mean"``, or ``"sum"`` where the loss is the sum over examples: Hessian, GGN and Fisher are then as many times
        those of the mean as its denominator says, and second moments of gradients the square of it.
    penalty
        The penalty of the objective, e.g. ``"weight_decay=0.05"``, and ``"without weight_decay=0.05"`` for a matrix
        that does not contain its Hessian; empty for an objective without one.

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
    reduction: str = "mean"
    penalty: str = ""

    @property
    def chart_label(self) -> str:
        """Chart with its gauge: ``"weight-norm (paper)"``."""
        return chart_label(self.chart, self.gauge)

    @property
    def label(self) -> str:
        """Matrix, chart with its gauge, block, a sum, and penalty, e.g. ``"ggn, weight-norm (paper)"``."""
        total = "sum over examples" if self.reduction == "sum" else ""
        parts = self.matrix, self.chart_label, self.block.removeprefix("all"), total, self.penalty
        return ", ".join(filter(None, parts))

    def __str__(self) -> str:
        return self.label


class Located:
    """Read-only access to the header of a record: ``record.chart`` is ``record.where.chart``."""

    where: Where

    @property
    def matrix(self) -> str:
        """Name of the matrix."""
        return self.where.matrix

    @property
    def chart(self) -> str:
        """Name of the chart."""
        return self.where.chart

    @property
    def gauge(self) -> str:
        """Gauge of the chart."""
        return self.where.gauge

    @property
    def block(self) -> str:
        """Name of the principal block; ``"all"`` for the whole matrix."""
        return self.where.block

    @property
    def effective(self) -> bool:
        """Whether this is ``K^(1/2) A K^(1/2)`` on the weights."""
        return self.where.effective

    @property
    def num_examples(self) -> int | None:
        """Number of examples in the mean."""
        return self.where.num_examples

    @property
    def num_samples(self) -> int | None:
        """Sampled labels per example; None for every matrix but the Monte Carlo Fisher."""
        return self.where.num_samples

    @property
    def dtype(self) -> str:
        """Precision of the products."""
        return self.where.dtype

    @property
    def reduction(self) -> str:
        """``"mean"``, or ``"sum"`` for a loss that is the sum over examples."""
        return self.where.reduction

    @property
    def penalty(self) -> str:
        """The penalty of the objective, and whether its Hessian is in the matrix; empty without one."""
        return self.where.penalty

    @property
    def label(self) -> str:
        """Matrix, chart with its gauge, block, and penalty."""
        return self.where.label
