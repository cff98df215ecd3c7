"""How numbers and names are written in a report: matrices, quantities, charts, arms, checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from curvature.records.where import Where

__all__ = [
    "EQUAL",
    "HEADLINE",
    "arm_words",
    "block_words",
    "capital",
    "chart_label",
    "factor_words",
    "form_of",
    "layer_of",
    "listed",
    "matrix_name",
    "plain_gauge",
    "point_words",
    "quantity_name",
    "quantity_symbol",
    "short_number",
    "signed",
    "stretch_of",
    "subject",
]

HEADLINE = ("kappa_50", "kappa_80", "kappa_95", "gd_time", "abs_kappa_50", "abs_kappa_80", "abs_kappa_95")
EQUAL = 1e-8  # log-ratios below it are rounding
_MATRICES = {
    "hessian": "Hessian",
    "hessian (finite differences)": "Hessian (finite differences)",
    "ggn": "GGN",
    "fisher": "Fisher",
    "monte_carlo_fisher": "Monte Carlo Fisher",
    "empirical_fisher": "empirical Fisher",
    "empirical_fisher_at_fisher_scale": "empirical Fisher (scale of the Fisher)",
}
_SYMBOLS = {
    "kappa_50": "κ₅₀",
    "kappa_80": "κ₈₀",
    "kappa_95": "κ₉₅",
    "abs_kappa_50": "|κ|₅₀",
    "abs_kappa_80": "|κ|₈₀",
    "abs_kappa_95": "|κ|₉₅",
    "gd_time": "descent steps",
}


def matrix_name(matrix: str) -> str:
    """Name of a matrix in running text.

    Parameters
    ----------
    matrix
        Its name in a record.

    Returns
    -------
    str
        The name with spaces and capitals.

    Examples
    --------
    >>> matrix_name("ggn"), matrix_name("gradient_covariance")
    ('GGN', 'gradient covariance')
    """
    return _MATRICES.get(matrix, matrix.replace("_", " ").replace("-", " "))


def quantity_symbol(quantity: str) -> str:
    """Symbol of a condition number, or the name itself where it has none.

    Parameters
    ----------
    quantity
        Its name in a record.

    Returns
    -------
    str
        For instance ``"κ₉₅"``.
    """
    return _SYMBOLS.get(quantity, quantity)


def quantity_name(quantity: str) -> str:
    """Name of a condition number on an axis and in a sentence.

    Parameters
    ----------
    quantity
        Its name in a record.

    Returns
    -------
    str
        Words and symbol.

    Examples
    --------
    >>> quantity_name("kappa_95"), quantity_name("gd_time")
    ('condition number κ₉₅', 'descent steps')
    """
    symbol = quantity_symbol(quantity)
    if "kappa" not in quantity:
        return symbol
    return ("ratio of |eigenvalues| " if quantity.startswith("abs") else "condition number ") + symbol


def chart_label(chart: str, gauge: str) -> str:
    """Chart with its gauge; the damping of a preconditioner is not a gauge.

    Parameters
    ----------
    chart, gauge
        Their names in a record.

    Returns
    -------
    str
        A few words.

    Examples
    --------
    >>> chart_label("weight-norm", "paper"), chart_label("kfac", "relative damping=0.001")
    ('weight-norm (paper)', 'kfac')
    """
    return Where("", chart, plain_gauge(gauge)).chart_label


def plain_gauge(gauge: str) -> str:
    """Gauge of a chart, without the damping by which preconditioners tell themselves apart.

    Parameters
    ----------
    gauge
        Its name in a record.

    Returns
    -------
    str
        The gauge, or ``"-"`` where the chart has one gauge only.
    """
    return "-" if "damping=" in gauge else gauge


def stretch_of(gauge: str) -> float | None:
    """The one stretch of a gauge.

    Parameters
    ----------
    gauge
        Its name in a record.

    Returns
    -------
    float or None
        1 for ``"canonical"``; None where every row has another stretch.

    Examples
    --------
    >>> stretch_of("stretch=0.5"), stretch_of("canonical"), stretch_of("paper")
    (0.5, 1.0, None)
    """
    if gauge == "canonical":
        return 1.0
    match = re.fullmatch(r"stretch=([0-9.eE+-]+)", gauge)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def form_of(record: Any) -> str:
    """Whether a Hessian was taken on the weights; the non-zero spectra of the other matrices do not depend on it.

    Parameters
    ----------
    record
        A record of one matrix.

    Returns
    -------
    str
        Empty where there is one form only.
    """
    if record.chart == "standard" or getattr(record, "matrix", "") != "hessian":
        return ""
    return "on the weights" if record.effective else "all coordinates"


def layer_of(neuron: str) -> str:
    """Layer of a neuron that is named as ``layer[row]``.

    Parameters
    ----------
    neuron
        Its name in a record.

    Returns
    -------
    str
        The name of the layer.

    Examples
    --------
    >>> layer_of("features.0[12]")
    'features.0'
    """
    return neuron.rpartition("[")[0] or neuron


def arm_words(arm: str) -> str:
    """Name of an arm in a sentence.

    Parameters
    ----------
    arm
        Its name in a measurement; ``"given"`` where nothing was trained.

    Returns
    -------
    str
        For instance ``"standard arm"``.
    """
    return "given weights" if arm == "given" else f"{arm} arm"


def block_words(block: str) -> str:
    """Name of a block in a heading; nothing for the whole matrix.

    Parameters
    ----------
    block
        Its name in a record.

    Returns
    -------
    str
        For instance ``"block 0"``.
    """
    return "" if block == "all" else f"block {block}"


def point_words(arm: str, checkpoint: str) -> str:
    """Arm and checkpoint as a heading.

    Parameters
    ----------
    arm, checkpoint
        Their names in a measurement.

    Returns
    -------
    str
        For instance ``"Standard arm, late"``.
    """
    return capital(arm_words(arm)) + ("" if checkpoint == "given" else f", {checkpoint}")


def subject(matrix: str, *parts: str) -> str:
    """A heading: the matrix, then the other parts that are not empty.

    Parameters
    ----------
    matrix
        Its name in a record.
    parts
        Block, form, weights or chart, in words.

    Returns
    -------
    str
        For instance ``"GGN, block 0"``.
    """
    return ", ".join(filter(None, (capital(matrix_name(matrix)), *parts)))


def capital(text: str) -> str:
    """The text with its first letter as a capital, the others as they are.

    Parameters
    ----------
    text
        A sentence or a heading.

    Returns
    -------
    str
        The same text.
    """
    return text[:1].upper() + text[1:]


def listed(names: Iterable[str]) -> str:
    """Join names as in a sentence.

    Parameters
    ----------
    names
        At least one.

    Returns
    -------
    str
        The names, with "and" before the last.

    Examples
    --------
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def short_number(value: float, digits: int = 3) -> str:
    """A few digits, without the plus sign and zeros of a power of ten.

    Parameters
    ----------
    value
        Any number.
    digits
        Significant digits.

    Returns
    -------
    str
        The number with a true minus sign.

    Examples
    --------
    >>> short_number(1234567.0), short_number(0.5), short_number(210.0, 2), short_number(3e-16)
    ('1.23e6', '0.5', '210', '3e−16')
    """
    text = f"{value:.{digits}g}" if not 10**digits <= abs(value) < 1000 else f"{value:.0f}"
    return re.sub(r"e\+?(-?)0*(\d+)", r"e\1\2", text).replace("-", "−")


def factor_words(factor: float, low: float = math.nan, high: float = math.nan) -> str:
    """Write a factor with its interval.

    Parameters
    ----------
    factor
        1 is no difference.
    low, high
        Ends of the interval; 0 or infinite where it is open, NaN without one.

    Returns
    -------
    str
        Two decimals near 1, three digits far from it.

    Examples
    --------
    >>> factor_words(1.0712, 0.8487, 1.352), factor_words(36.52), factor_words(2.0, 0.0, math.inf)
    ('1.07 [0.85, 1.35]', '36.5', '2.00 [0, ∞]')
    """
    if math.isnan(factor):
        return "no number"
    if math.isnan(low) or math.isnan(high):
        return _factor(factor)
    return f"{_factor(factor)} [{_factor(low)}, {_factor(high)}]"


def _factor(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if 0.1 <= value < 10 else short_number(value)


def signed(value: float) -> str:
    """Two decimals with a sign, or the first digit of something smaller.

    Parameters
    ----------
    value
        A log-ratio or another difference.

    Returns
    -------
    str
        ``"0"`` where the value is rounding.

    Examples
    --------
    >>> signed(-0.123), signed(0.0012), signed(0.0)
    ('−0.12', '+0.001', '0')
    """
    text = f"{value:+.2f}" if abs(value) >= 0.005 else f"{value:+.1g}"
    return "0" if abs(value) <= EQUAL else text.replace("-", "−")
