"""From a study to its run directory: result file, JSON, CSV, figures and one self-contained HTML page."""

from curvature.report.analyses import analysis_files, load_analyses
from curvature.report.atomic import write_texts
from curvature.report.checkpoints import checkpoint_files, checkpoint_tables, load_rows, load_track
from curvature.report.directory import load_study, load_summary, study_document, write_run
from curvature.report.grid import grid_document, grid_files, grid_tables, load_grid
from curvature.report.parts import (
    Parts,
    check_parts,
    differences,
    forget_parts,
    load_part,
    parts_beside,
    read_sealed,
    write_part,
)
from curvature.report.result import SCHEMA
from curvature.report.side_by_side import SideBySide, side_by_side
from curvature.report.target import check_target

__all__ = [
    "SCHEMA",
    "Parts",
    "SideBySide",
    "analysis_files",
    "check_parts",
    "check_target",
    "checkpoint_files",
    "checkpoint_tables",
    "differences",
    "forget_parts",
    "grid_document",
    "grid_files",
    "grid_tables",
    "load_analyses",
    "load_grid",
    "load_part",
    "load_rows",
    "load_study",
    "load_summary",
    "load_track",
    "parts_beside",
    "read_sealed",
    "side_by_side",
    "study_document",
    "write_part",
    "write_run",
    "write_texts",
]
