"""``curvature report``: a run directory made anew from its result, or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curvature.cli.execution import show_every_character
from curvature.cli.tables import print_table
from curvature.cli.terminal import Terminal, one_line
from curvature.errors import ConfigurationError

if TYPE_CHECKING:
    from curvature.records import Study

__all__ = ["make_report"]


def make_report(runs: Sequence[Path], terminal: Terminal, *, out: Path | None = None, overwrite: bool = False) -> None:
    """Make the report of one run anew, or one report about several.

    Parameters
    ----------
    runs
        Run directories of ``spectrum``, ``compare`` (also of a grid), ``analyze`` or ``track``; several of ``spectrum``
        and ``compare``.
    terminal
        Receives the place of the report.
    out
        Where to; for one run None makes it in its place.
    overwrite
        Whether ``out`` may replace an earlier run.

    Raises
    ------
    ConfigurationError
        If a run is not finished or damaged, or there is no place for the report.
    """
    from curvature import report

    if len(runs) == 1:
        written = _again(runs[0], out, overwrite=overwrite)
        name = "report.html" if (written / "report.html").is_file() else "analysis.csv"
        terminal.note(f"written again from its result: {written / name}")
        return
    if out is None:
        raise ConfigurationError("a report about several runs needs a place: add --out DIR.")
    out = report.check_target(out, overwrite=overwrite)
    studies = _loaded(runs)
    runs_together = report.side_by_side(studies)
    out = report.write_texts(runs_together.files, out, overwrite=overwrite)
    show_every_character()
    for table in (runs_together.overview, *runs_together.numbers, runs_together.ratios):
        if table.rows:
            print_table(table, digits=4)
    if not runs_together.numbers:
        terminal.warn("the runs have no matrix in the same chart and gauge in common.")
    terminal.note(f"report: {out / 'report.html'}")


def _again(run: Path, out: Path | None, *, overwrite: bool) -> Path:
    """Write the directory of one run from its result."""
    from curvature import report
    from curvature.report.analyses import ANALYSES
    from curvature.report.checkpoints import ROWS

    target, overwrite = (run, True) if out is None else (out, overwrite)
    if (run / ROWS).is_file():
        files = report.checkpoint_files(report.load_rows(run), report.load_track(run))
    elif (run / ANALYSES).is_file():
        files = report.analysis_files(*report.load_analyses(run))
    elif (run / "summary.json").is_file() and not (run / "result.nc").exists():
        files = report.grid_files(report.load_grid(run))
    else:
        return report.write_run(report.load_study(run), target, overwrite=overwrite)
    return report.write_texts(files, target, overwrite=overwrite)


def _loaded(runs: Sequence[Path]) -> dict[str, Study]:
    """The studies by the shortest names that tell them apart."""
    from curvature import report

    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"{one_line(twice[0])} is named twice. Name each run once.")
    studies = {}
    for name, run in zip(names, runs, strict=True):
        if (run / "DONE").is_file() and not (run / "result.nc").is_file():
            raise ConfigurationError(
                f"{one_line(str(run))} is a run of analyze or track, or of a grid. Side by side are runs of spectrum "
                "and compare."
            )
        studies[one_line(name)] = report.load_study(run)
    return studies
