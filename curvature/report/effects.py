"""Effects as factors, the rows of a forest plot, and that plot in characters for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from curvature.records.verdict import OUTCOMES
from curvature.report.words import factor_words
from curvature.text import one_line

__all__ = ["Effect", "ascii_words", "axis_limits", "text_forest"]

_WIDEST = 20.0  # the axis reaches no farther than this factor, except to show an estimate; arrows go beyond
_CELLS = 31  # characters of the axis; odd, so that 1 has one of its own
_NUMBER, _VERDICT = 19, 12  # characters of the columns of numbers and of verdicts
_UNICODE = {"line": "─", "dot": "●", "one": "│", "band": "░", "left": "◂", "right": "▸"}
_ASCII = {"line": "-", "dot": "o", "one": "|", "band": ":", "left": "<", "right": ">"}
_PLAIN = str.maketrans({"κ": "kappa", "₅": "5", "₈": "8", "₉": "9", "₀": "0", "−": "-", "∞": "inf", "°": " degrees",
                        "✓": "+", "≈": "~", "✗": "x", "–": "-"})  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """One row of a forest plot.

    Attributes
    ----------
    label
        What was compared, in words.
    factor, low, high
        Estimate and interval, as factors: 1 is no difference. NaN without a number; 0 and infinity where the interval
        is open.
    outcome
        Verdict in a word; empty where nothing is decided.
    number
        The number in words, in place of ``"1.07 [0.85, 1.35]"``; across the row where there is no factor.
    prediction
        Interval in which a further study would lie; None without one.
    pooled
        Whether the row sums up others: it is drawn as a diamond, and set apart.
    """

    label: str
    factor: float = math.nan
    low: float = math.nan
    high: float = math.nan
    outcome: str = ""
    number: str = ""
    prediction: tuple[float, float] | None = None
    pooled: bool = False

    @property
    def words(self) -> str:
        """The number of the row."""
        return self.number or factor_words(self.factor, self.low, self.high)


def axis_limits(effects: Sequence[Effect]) -> tuple[float, float]:
    """Ends of an axis that holds every estimate, as far from 1 on either side.

    Parameters
    ----------
    effects
        What is drawn.

    Returns
    -------
    tuple of float
        Two factors whose product is 1.
    """
    estimates = [e.factor for e in effects if math.isfinite(e.factor) and e.factor > 0]
    ends = [end for e in effects for end in (e.low, e.high, *(e.prediction or ())) if math.isfinite(end) and end > 0]
    farthest = max((abs(math.log(value)) for value in estimates), default=0.0)
    shown = min(max((abs(math.log(value)) for value in ends), default=0.0), max(math.log(_WIDEST), farthest))
    half = max(1.12 * max(farthest, shown), math.log(1.6))
    return math.exp(-half), math.exp(half)


def text_forest(
    effects: Sequence[Effect],
    *,
    width: int = 120,
    favours: tuple[str, str] = ("weight norm", "standard"),
    within: float = 1.1,
    ascii_only: bool = False,
) -> list[str]:
    """Draw a forest plot in characters.

    Parameters
    ----------
    effects
        Rows, from the top.
    width
        Characters of a line; where a row does not fit, its label stands above it.
    favours
        What a factor below 1 speaks for, and what one above 1 speaks for.
    within
        Factor up to which a difference does not count: the band.
    ascii_only
        Whether only ASCII can be printed.

    Returns
    -------
    list of str
        Lines, the axis last.

    Examples
    --------
    >>> effects = [Effect("Steps", 1.5, 1.2, 1.9, "opposite"), Effect("Identity", outcome="supported", number="1e-16")]
    >>> for line in text_forest(effects, width=80, ascii_only=True):
    ...     print(line)
    x opposite    Steps                  ::|:: ----o-----   1.50 [1.20, 1.90]
    + supported   Identity  1e-16
                            0.49           1            2.1
                    < favours weight norm  |  favours standard >
    """
    low, high = axis_limits(effects)
    longest = max((len(_plain(e.label, ascii_only)) for e in effects), default=0)
    above = width < _VERDICT + 2 + longest + 2 + _CELLS + 1 + _NUMBER  # the labels stand above
    lines = []
    for effect in effects:
        verdict = f"{OUTCOMES.get(effect.outcome, ' ')} {effect.outcome}" if effect.outcome else ""
        label = _plain(f"{verdict:<{_VERDICT}}  {one_line(effect.label)}", ascii_only)
        strip = effect.words if math.isnan(effect.factor) else f"{_strip(effect, low, high, within)} {effect.words}"
        strip = _plain(strip, ascii_only)
        indent = " " * (_VERDICT + 2)
        lines += [label, indent + strip] if above else [f"{label:<{_VERDICT + 2 + longest}}  {strip}"]
    marks = _ASCII if ascii_only else _UNICODE
    left = f"{marks['left']} favours {favours[0]}"
    start = _VERDICT + 2 + (0 if above else longest + 2)
    right = f"favours {favours[1]} {marks['right']}"
    ends = f"{low:.2g}", "1", f"{high:.2g}"
    lines.append(f"{' ' * start}{ends[0]:<{_CELLS // 2}}{ends[1]}{ends[2]:>{_CELLS // 2}}")
    lines.append(f"{' ' * (start + _CELLS // 2 - 2 - len(left))}{left}  {marks['one']}  {right}")
    return [line.rstrip() for line in lines]


def _strip(effect: Effect, low: float, high: float, within: float) -> str:
    """The axis of one row: band, line at 1, interval and estimate, each over what was drawn before."""
    marks = _UNICODE
    half = _CELLS // 2

    def cell(factor: float) -> int:
        position = math.log(factor) / math.log(high) if 0 < factor < math.inf else math.inf if factor else -math.inf
        return half + round(half * min(1.0, max(-1.0, position)))

    cells = [" "] * _CELLS
    for k in range(cell(1 / within), cell(within) + 1):
        cells[k] = marks["band"]
    cells[half] = marks["one"]
    if not math.isnan(effect.low):
        for k in range(cell(effect.low), cell(effect.high) + 1):
            cells[k] = marks["line"]
        cells[0] = marks["left"] if effect.low < low else cells[0]
        cells[-1] = marks["right"] if effect.high > high else cells[-1]
    cells[cell(effect.factor)] = marks["dot"]
    return "".join(cells)


def _plain(text: str, ascii_only: bool) -> str:
    return ascii_words(text) if ascii_only else text


def ascii_words(text: str) -> str:
    """Write symbols of claims and pictures in ASCII, for a terminal that has no others.

    Parameters
    ----------
    text
        Of a claim.

    Returns
    -------
    str
        For instance ``"kappa80"``.
    """
    drawn = str.maketrans({_UNICODE[name]: mark for name, mark in _ASCII.items()})
    return text.translate(drawn).translate(_PLAIN)
