"""The study repeated over a grid of networks, data sets and optimizers: its cells, its units of work, its result."""

from curvature.studies.grid.cells import ARCHITECTURES, DATA_SETS, OPTIMIZERS, Cell, cell_problem, unsuited
from curvature.studies.grid.execution import measured_units
from curvature.studies.grid.result import GridStudy, grid_study
from curvature.studies.grid.settings import ARMS, GridSettings, Unit, measure_unit

__all__ = [
    "ARCHITECTURES",
    "ARMS",
    "DATA_SETS",
    "OPTIMIZERS",
    "Cell",
    "GridSettings",
    "GridStudy",
    "Unit",
    "cell_problem",
    "grid_study",
    "measure_unit",
    "measured_units",
    "unsuited",
]
