"""Several runs in one report: what differs between them, their numbers next to each other, and ratios by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from curvature.records import ConditionNumbers, Measured, Quantity, Spectrum, Study
from curvature.report.drawings.layout import svg_files, svgs_of
from curvature.report.drawings.runs import draw_runs
from curvature.report.figures import plot_spectra, render_svg
from curvature.report.figures.style import add_legend
from curvature.report.page import runs_page
from curvature.report.parts import differences
from curvature.report.plain import json_text, plain_values
from curvature.report.render import table_csv
from curvature.report.selection import numbers_of
from curvature.report.spread import spread
from curvature.report.table import Cell, Entry, Table, spread_cell
from curvature.report.words import HEADLINE, block_words, chart_label, matrix_name, point_words
from curvature.studies.evidence.inference import paired_interval
from curvature.studies.evidence.pairs import log_ratio

__all__ = ["SideBySide", "side_by_side"]

_MAX_PANELS = 24
_FREE = ("seconds", "utc", "command_line")  # of the provenance, which differ from run to run
_NOTE = (
    "One row for each run: the median over its seeds, with the smallest and the largest value where they differ. A "
    "number with > is a lower bound, one with < cannot be told from zero."
)


class _Place(NamedTuple):
    """What has to agree for two numbers to stand next to each other."""

    matrix: str
    block: str
    effective: bool
    chart: str
    gauge: str
    penalty: str
    arm: str
    checkpoint: str

    @property
    def words(self) -> str:
        form = "on the weights" if self.effective else ""
        point = "" if self.arm == "given" else point_words(self.arm, self.checkpoint)
        parts = (chart_label(self.chart, self.gauge), form, block_words(self.block), self.penalty, point)
        return ", ".join(filter(None, parts))


@dataclass
class _OfRun:
    """Records of one run at one place, by seed."""

    numbers: dict[int, ConditionNumbers] = field(default_factory=dict)
    spectra: dict[int, Spectrum] = field(default_factory=dict)


Places = dict[_Place, dict[str, _OfRun]]


class SideBySide(NamedTuple):
    """Several runs next to each other.

    Attributes
    ----------
    overview, numbers, ratios
        What each run measured; one table for each matrix, with what at least two runs have; and each run over the
        first, paired by seed.
    files
        ``report.html``, ``side_by_side.csv``, ``ratios.csv``, ``runs.json`` and figures, by path.
    """

    overview: Table
    numbers: list[Table]
    ratios: Table
    files: dict[str, str]


def side_by_side(runs: Mapping[str, Study]) -> SideBySide:
    """Lay the numbers of several runs next to each other.

    Parameters
    ----------
    runs
        At least two, by name.

    Returns
    -------
    SideBySide
        The tables, and the files of a report about all of them.
    """
    places = {place: of_runs for place, of_runs in _places(runs).items() if len(of_runs) > 1}
    overview, ratios = _overview(runs), _ratio_table(list(runs), places)
    numbers = [
        _numbers_table(matrix, {place: of_runs for place, of_runs in places.items() if place.matrix == matrix})
        for matrix in dict.fromkeys(place.matrix for place in places)
    ]
    drawing = draw_runs(ratios, next(iter(runs)))
    svg, omitted = _picture(places)
    svgs = ({} if svg is None else {"eigenvalues": svg}) | svgs_of([] if drawing is None else [drawing])
    document = {
        "runs": {
            name: {"model": study.model, "data": study.data, "config": study.config} for name, study in runs.items()
        },
        "differences": _differences(runs),
        "warnings": {name: list(study.warnings) for name, study in runs.items()},
        "not_drawn": omitted,
    }
    files = {
        "report.html": runs_page(plain_values(document), overview, numbers, ratios, drawing, svgs),
        "runs.json": json_text(plain_values(document)),
        "side_by_side.csv": table_csv(_flat(numbers)),
        "ratios.csv": table_csv(_with_pairs(ratios)),
    }
    files |= svg_files(svgs)
    return SideBySide(overview, numbers, ratios, files)


def _overview(runs: Mapping[str, Study]) -> Table:
    rows = tuple(
        (
            name,
            study.command,
            study.model,
            study.data,
            study.num_weights,
            len({m.seed for m in study.measurements}),
            str(study.provenance.get("versions", {}).get("torch", "")) or None,
        )
        for name, study in runs.items()
    )
    return Table("Runs", ("run", "command", "model", "data", "weights", "seeds", "torch"), rows)


def _places(runs: Mapping[str, Study]) -> Places:
    """Condition numbers and spectra of all runs, by their place."""
    places: Places = {}
    for name, study in runs.items():
        for m in numbers_of(study):
            _of(places, m, name).numbers[m.seed] = m.record
        for spectrum in study.of(Spectrum):
            _of(places, spectrum, name).spectra[spectrum.seed] = spectrum.record
    return places


def _of(places: Places, m: Measured[Any], run: str) -> _OfRun:
    r = m.record
    place = _Place(r.matrix, r.block, r.effective, r.chart, r.gauge, r.penalty, m.arm, m.checkpoint)
    return places.setdefault(place, {}).setdefault(run, _OfRun())


def _numbers_table(matrix: str, places: Places) -> Table:
    shown = [
        name
        for name in HEADLINE
        if any(
            record.values[name].has_value
            for of_runs in places.values()
            for of_run in of_runs.values()
            for record in of_run.numbers.values()
            if name in record.values
        )
    ]
    rows: list[tuple[Entry, ...]] = []
    for place, of_runs in places.items():
        rows.append((place.words,))
        rows += [(run, *_entries(of_run, shown)) for run, of_run in of_runs.items()]
    header = ("run", "size", "rank", "smallest", "largest", "trace", *shown)
    return Table(matrix_name(matrix), header, tuple(rows), (_NOTE, *_rank_note(places)))


def _entries(of_run: _OfRun, shown: Sequence[str]) -> list[Entry]:
    numbers, spectra = list(of_run.numbers.values()), list(of_run.spectra.values())
    return [
        numbers[0].dim,
        _cell([Quantity(float(record.rank)) for record in numbers]),
        _end([spectrum.eigenvalue(0) for spectrum in spectra]),
        _end([spectrum.eigenvalue(-1) for spectrum in spectra]),
        _cell([Quantity(spectrum.trace) for spectrum in spectra]),
        *(_cell([record.values[name] for record in numbers if name in record.values]) for name in shown),
    ]


def _end(eigenvalues: Sequence[Quantity]) -> Cell:
    """An end of the spectrum, which may be hidden by rounding at every seed."""
    if eigenvalues and all(eigenvalue.status == "below_noise_floor" for eigenvalue in eigenvalues):
        return Cell(max(eigenvalue.high or 0.0 for eigenvalue in eigenvalues), status="below_noise_floor")
    return _cell(eigenvalues)


def _cell(quantities: Sequence[Quantity]) -> Cell:
    return spread_cell(asdict(spread(quantities)) if quantities else None)


def _rank_note(places: Places) -> tuple[str, ...]:
    """Warn where an indefinite matrix has ranks that differ between the runs."""
    ranks = [
        {record.rank for of_run in of_runs.values() for record in of_run.numbers.values()}
        for of_runs in places.values()
    ]
    indefinite = any(
        name.startswith("abs_kappa")
        for of_runs in places.values()
        for of_run in of_runs.values()
        for record in of_run.numbers.values()
        for name in record.values
    )
    if not indefinite or all(len(at_place) == 1 for at_place in ranks):
        return ()
    return (
        "Ratios of absolute values of rows with different ranks are not comparable: each row leaves out a different "
        "number of eigenvalues.",
    )


def _ratio_table(names: Sequence[str], places: Places) -> Table:
    """Each run over the first, by seed: the geometric mean of the ratios with its 95 % interval."""
    first, *others = names
    quantities = [name for name in HEADLINE if name.startswith(("kappa", "abs_kappa", "gd_time"))]
    rows: list[tuple[Entry, ...]] = []
    for place, of_runs in places.items():
        for other in others:
            if first in of_runs and other in of_runs:
                cells = [_ratio(of_runs[other].numbers, of_runs[first].numbers, name) for name in quantities]
                pairs = len(of_runs[other].numbers.keys() & of_runs[first].numbers.keys())
                rows.append((f"{matrix_name(place.matrix)}, {place.words}", other, pairs, *cells))
    return Table(
        f"Ratios to {first}, paired by seed",
        ("matrix and chart", "run", "pairs", *quantities),
        tuple(rows),
        (
            "Geometric mean over the seeds that both runs have, with the 95 % interval of Student's t for three pairs "
            "or more. Below 1: better conditioned than the first run. No ratio where the ranks differ by more than "
            "1 %, or where a number is not resolved. Where that is so at some of the seeds, the others are used, and "
            "their number is given.",
        ),
    )


def _ratio(ours: Mapping[int, ConditionNumbers], theirs: Mapping[int, ConditionNumbers], name: str) -> Cell:
    """Mean of the ratios of those seeds that have one; says how many if not all have."""
    ratios = [log_ratio(ours[seed], theirs[seed], name) for seed in sorted(ours.keys() & theirs.keys())]
    reasons = [reason for _, reason in ratios if reason]
    logs = [value for value, reason in ratios if not reason]
    if not logs:
        return Cell(None, status=reasons[0] if reasons and reasons[0] != "not measured" else "")
    share = f"{len(logs)} of {len(ratios)} seeds" if reasons else ""
    mean = math.exp(sum(logs) / len(logs))
    if len(logs) < 3:
        return Cell(mean, share=share, details=(share,) if share else ())
    low, high = paired_interval(logs)
    return Cell(mean, math.exp(low), math.exp(high), share=share, details=(share,) if share else ())


def _with_pairs(table: Table) -> Table:
    """For a file: behind each ratio its number of seeds, where it is not that of all pairs."""
    names = [name for name in table.header[3:] if any(_share(row, table, name) for row in table.rows)]
    rows = tuple((*row, *(_share(row, table, name) or row[2] for name in names)) for row in table.rows)
    return replace(table, header=(*table.header, *(f"{name}_pairs" for name in names)), rows=rows)


def _share(row: Sequence[Entry], table: Table, name: str) -> int:
    cell = row[table.header.index(name)]
    return int(cell.share.split()[0]) if isinstance(cell, Cell) and cell.share else 0


def _differences(runs: Mapping[str, Study]) -> dict[str, list[str]]:
    """For each run but the first, what differs from the first in configuration, inputs and versions."""
    (_, first), *others = runs.items()
    return {name: differences(_facts(first), _facts(study)) for name, study in others}


def _facts(study: Study) -> dict[str, Any]:
    hashes = {name: value for name, value in study.provenance.items() if name in ("model_sha256", "data_sha256")}
    versions = study.provenance.get("versions", {})
    return {"config": dict(study.config), "inputs": hashes, "versions": dict(versions)}


def _flat(tables: Sequence[Table]) -> Table:
    """All tables as one, each row with its matrix and place."""
    header = tuple(dict.fromkeys(name for table in tables for name in table.header))
    rows = []
    for table in tables:
        place: Entry = ""
        for row in table.rows:
            if len(row) == 1:
                place = row[0]
                continue
            values = dict(zip(table.header, row, strict=True))
            rows.append((table.title, place, *(values.get(name) for name in header)))
    return Table("", ("matrix", "chart", *header), tuple(rows))


def _picture(places: Places) -> tuple[str | None, list[str]]:
    """Eigenvalues of all runs, overlaid: a panel for each matrix and chart, at the last point; and what is left out."""
    kept = {
        place: {run: of_run.spectra for run, of_run in of_runs.items() if of_run.spectra}
        for place, of_runs in places.items()
        if place.block == "all"
    }
    last = {place._replace(checkpoint=""): place for place in kept}  # a dict keeps the last point of each
    candidates = [place for place in last.values() if len(kept[place]) > 1]
    panels, omitted = candidates[:_MAX_PANELS], candidates[_MAX_PANELS:]
    if not panels:
        return None, []
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * lines), layout="constrained")
    for place, ax in zip(panels, figure.subplots(lines, columns, squeeze=False).flat, strict=False):
        drawn = [
            Measured(run, 0, "given", 0, replace(spectra[min(spectra)], gradient_weights=None))
            for run, spectra in kept[place].items()
        ]
        plot_spectra(drawn, ax, legend=False, title=f"{matrix_name(place.matrix)}, {place.words}")
        ax.set_title(fill(ax.get_title(), 55), fontsize="medium")
        for line in ax.lines:
            line.set_label(str(line.get_label()).removesuffix(" arm"))  # runs stand in the place of arms
        add_legend(ax)
    for ax in figure.axes[len(panels) :]:
        ax.remove()
    svg = render_svg(figure, "Eigenvalues of the runs by rank", salt="side by side")
    return svg, [f"{matrix_name(place.matrix)}, {place.words}" for place in omitted]
