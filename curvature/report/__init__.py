"""From a study to its run directory: result file, JSON, CSV, figures and one self-contained HTML page."""

from curvature.report.atomic import write_texts
from curvature.report.directory import (
    check_parts,
    load_part,
    load_study,
    load_summary,
    study_document,
    write_part,
    write_run,
)
from curvature.report.result import SCHEMA
from curvature.report.target import check_target

__all__ = [
    "SCHEMA",
    "check_parts",
    "check_target",
    "load_part",
    "load_study",
    "load_summary",
    "study_document",
    "write_part",
    "write_run",
    "write_texts",
]
