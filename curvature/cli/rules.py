"""Rules of ``--fail-on``: a number that must not exceed a limit, e.g. ``ggn/standard:kappa_95 > 1e8``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from curvature.cli.configuration import MATRICES
from curvature.cli.terminal import Terminal
from curvature.errors import ConfigurationError, ExitCode
from curvature.records.conditioning import QUANTITIES
from curvature.text import did_you_mean

if TYPE_CHECKING:
    from curvature.records import Analysis, CheckpointSummary, Quantity, Study

__all__ = [
    "NAMES",
    "NAMES_OF_CHECKPOINTS",
    "NAMES_OF_LAYERS",
    "Place",
    "Rule",
    "exit_on",
    "numbers_of_analyses",
    "numbers_of_checkpoints",
    "numbers_of_study",
    "parse_rules",
]

NAMES = (*QUANTITIES, "largest", "smallest", "trace", "rank")
NAMES_OF_LAYERS = ("trace", "largest", "smallest", "kappa_80", "effective_rank")
NAMES_OF_CHECKPOINTS = ("largest", "trace", "kappa_50", "kappa_80", "kappa_95")
_RULE = re.compile(r"(?:(?P<place>[^<>=]*?)\s*:)?\s*(?P<name>\w+)\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>\S+)\s*")
_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class Place:
    """Where a number was measured.

    Attributes
    ----------
    terms
        Matrix, chart, gauge, block or layer, arm and checkpoint.
    label
        The same for a reader.
    """

    terms: frozenset[str]
    label: str


Numbers: TypeAlias = Iterable[tuple[Place, Mapping[str, "Quantity"]]]


@dataclass(frozen=True)
class Rule:
    """A comparison of a number with a limit.

    Attributes
    ----------
    text
        As it was written.
    place
        Words that the place of the number must have; empty for all places.
    name, sign, limit
        The comparison.
    """

    text: str
    place: frozenset[str]
    name: str
    sign: str
    limit: float

    def holds(self, quantity: Quantity) -> bool | None:
        """Decide the comparison by the interval of a number.

        Parameters
        ----------
        quantity
            The number.

        Returns
        -------
        bool or None
            None if values on both sides of the limit are possible.
        """
        ends = [_SIGNS[self.sign](end, self.limit) for end in _interval(quantity)]
        return None if not ends or ends[0] != ends[1] else ends[0]


def _interval(quantity: Quantity) -> tuple[float, ...]:
    """Smallest and largest possible value; empty if there is no number."""
    if not quantity.has_value or math.isnan(quantity.value):
        return ()
    low = -math.inf if quantity.low is None else quantity.low
    high = math.inf if quantity.high is None else quantity.high
    if quantity.status == "resolved" and quantity.low is None and quantity.high is None:
        return quantity.value, quantity.value
    if quantity.status == "lower_bound":
        low = max(low, quantity.value)
    if quantity.status == "upper_bound_only":
        high = min(high, quantity.value)
    return low, high


def parse_rules(texts: Sequence[str] | None, names: Sequence[str] = NAMES) -> list[Rule]:
    """Read the values of ``--fail-on``.

    Parameters
    ----------
    texts
        One string for each rule; None for no rules.
    names
        Numbers that the command measures.

    Returns
    -------
    list of Rule
        In the same order.

    Raises
    ------
    ConfigurationError
        If one is not a comparison of a known number with a limit.
    """
    return [_parsed(text, names) for text in texts or ()]


def _parsed(text: str, names: Sequence[str]) -> Rule:
    matching = _RULE.fullmatch(text)
    if matching is None:
        raise ConfigurationError(
            f"--fail-on {text!r} is not a rule. Write NAME, one of > >= < <=, and a number, e.g. 'kappa_95 > 1e8', or "
            "with a place before it: 'ggn/weight-norm: kappa_95 > 1e8'."
        )
    name, limit = matching["name"], matching["limit"]
    if name not in names:
        raise ConfigurationError(
            f"--fail-on {text!r}: {name!r} is unknown{did_you_mean(name, names)}; choose among {', '.join(names)}."
        )
    try:
        number = float(limit)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"--fail-on {text!r}: {limit!r} is not a finite number.")
    terms = (word.strip() for word in (matching["place"] or "").split("/"))
    return Rule(text, frozenset(_spelled(word) for word in terms if word), name, matching["sign"], number)


def _spelled(word: str) -> str:
    """A matrix under its name on the command line; any other word as it is."""
    library = {name: spelled for spelled, name in MATRICES.items()}
    return library.get(word, word)


def numbers_of_study(study: Study) -> Iterator[tuple[Place, dict[str, Quantity]]]:
    """Collect the numbers of a study that rules can name.

    Parameters
    ----------
    study
        Of ``curvature spectrum`` or ``curvature compare``.

    Yields
    ------
    tuple of Place and dict
        Numbers by name, of each record that has some.
    """
    from curvature.records import ConditionNumbers, ExtremalEigenvalues, Spectrum

    readers: dict[type, Any] = {
        ConditionNumbers: lambda record: {**record.values, "rank": _rank(record)},
        Spectrum: _of_spectrum,
        ExtremalEigenvalues: _of_ends,
    }
    for measured in study.measurements:
        reader = readers.get(type(measured.record))
        if reader is not None:
            header = measured.record.where
            point = (measured.arm, measured.checkpoint) if study.command == "compare" else ()
            terms = (header.matrix, header.chart, header.gauge, header.block, *point)
            run = f", {measured.arm}, {measured.checkpoint}, seed {measured.seed}" if point else ""
            yield Place(frozenset(map(_spelled, terms)), header.label + run), reader(measured.record)


def _rank(record: Any) -> Quantity:
    from curvature.records import Quantity

    low, high = record.rank_bounds or (record.rank, record.rank)
    return Quantity(float(record.rank), low=float(low), high=float(high))


def _of_spectrum(record: Any) -> dict[str, Quantity]:
    from curvature.records import Quantity

    low, high = (float(ends.sum()) for ends in record.intervals())
    return {
        "largest": record.eigenvalue(-1),
        "smallest": record.eigenvalue(0),
        "trace": Quantity(record.trace, low=low, high=high),
    }


def _of_ends(record: Any) -> dict[str, Quantity]:
    from curvature.records import Quantity

    numbers = {}
    status = "resolved" if record.converged else "unresolved"
    for name, values, bound in (("largest", record.largest, -1), ("smallest", record.smallest, 0)):
        if len(values):
            value, error = float(values[0]), float(record.error_bounds[bound])
            numbers[name] = Quantity(value, status, low=value - error, high=value + error)
    return numbers


def numbers_of_analyses(analyses: Iterable[Analysis]) -> Iterator[tuple[Place, dict[str, Quantity]]]:
    """Collect the numbers of the tables of ``curvature analyze`` that rules can name.

    Parameters
    ----------
    analyses
        The tables.

    Yields
    ------
    tuple of Place and dict
        Numbers by name, of each row. The row of the whole model is the layer ``all``.
    """
    for analysis in analyses:
        for row in analysis.rows:
            terms = (analysis.matrix, analysis.chart, analysis.gauge, row.layer)
            label = f"{analysis.label}, {'whole model' if row.layer == 'all' else f'layer {row.layer}'}"
            yield Place(frozenset(map(_spelled, terms)), label), {name: getattr(row, name) for name in NAMES_OF_LAYERS}


def numbers_of_checkpoints(rows: Iterable[CheckpointSummary]) -> Iterator[tuple[Place, dict[str, Quantity]]]:
    """Collect the numbers of the tables of ``curvature track`` that rules can name.

    Parameters
    ----------
    rows
        One for each checkpoint.

    Yields
    ------
    tuple of Place and dict
        Numbers by name, of each matrix in each chart.
    """
    for row in rows:
        for chart, point in zip(row.charts, row.points, strict=True):
            for matrix in point.matrices:
                terms = (matrix.matrix, *re.split(r"[ ()]+", chart), row.checkpoint)
                numbers = {name: getattr(matrix, name) for name in NAMES_OF_CHECKPOINTS if name != "largest"}
                numbers["largest"] = matrix.largest[0]
                yield Place(frozenset(map(_spelled, terms)), f"{matrix.matrix}, {chart}, {row.checkpoint}"), numbers


def exit_on(rules: Sequence[Rule], numbers: Numbers, terminal: Terminal, *, strict: bool) -> None:
    """End the command if a rule holds, and say which rules could not be decided.

    Parameters
    ----------
    rules
        Of the command line.
    numbers
        Everything that was measured.
    terminal
        Receives the messages.
    strict
        Whether a rule that is not decided ends the command too.

    Raises
    ------
    typer.Exit
        With the code 4 if a rule holds, 2 if one fits no place, 3 if one is open under ``--strict``.
    """
    if not rules:
        return
    measured = list(numbers)
    codes = {_decided(rule, measured, terminal, strict=strict) for rule in rules}
    for code in (ExitCode.RULE_HIT, ExitCode.USAGE, ExitCode.UNRESOLVED):
        if code in codes:
            raise typer.Exit(int(code))


def _decided(
    rule: Rule, measured: Sequence[tuple[Place, Mapping[str, Quantity]]], terminal: Terminal, *, strict: bool
) -> ExitCode:
    """Say what becomes of a rule, and return the exit code that follows."""
    places = [(place, values) for place, values in measured if rule.place <= place.terms]
    if not places:  # not the fault of the numbers: a misspelled rule must not pass for ever
        terms = sorted({word for place, _ in measured for word in place.terms if word != "-"})
        terminal.error(f"--fail-on {rule.text!r} fits no place of this run; places are made of {', '.join(terms)}.")
        return ExitCode.USAGE
    matching = [(place, values[rule.name]) for place, values in places if rule.name in values]
    if true := [(place, number) for place, number in matching if rule.holds(number)]:
        terminal.error(f"--fail-on {rule.text!r}: {_listed(rule.name, true)}.")
        return ExitCode.RULE_HIT
    undecided = [(place, number) for place, number in matching if rule.holds(number) is None]
    if matching and not undecided:
        return ExitCode.DONE
    reason = _listed(rule.name, undecided) if undecided else "this run has no such number"
    terminal.warn(f"--fail-on {rule.text!r} is not decided: {reason}.")
    return ExitCode.UNRESOLVED if strict else ExitCode.DONE


def _listed(name: str, matching: Sequence[tuple[Place, Quantity]]) -> str:
    place, number = matching[0]
    more = f", and in {len(matching) - 1} more places" if len(matching) > 1 else ""
    interval = "" if number.status == "resolved" or not number.interval else f", within {number.interval}"
    return f"{name} of {place.label} is {number}{interval}{more}"
