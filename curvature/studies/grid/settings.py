"""A grid: its cells, its seeds, and what is trained and measured in each; one cell at one seed is a unit of work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from threadpoolctl import threadpool_limits

from curvature.errors import ConfigurationError
from curvature.models import Problem
from curvature.records import Spectrum, Study
from curvature.studies.evidence import THRESHOLD
from curvature.studies.grid.cells import DATA_SETS, OPTIMIZERS, Cell, cell_problem, refuse_large_batch
from curvature.studies.progress import Progress
from curvature.studies.seeds import measure_seed
from curvature.studies.settings import HEADLINE, PUBLISHED, StudySettings
from curvature.studies.training import TrajectorySettings, arm_named

__all__ = ["ARMS", "GridSettings", "Unit", "measure_unit"]

ARMS = (*HEADLINE, "random-weight-factorization", "placebo", *PUBLISHED[:0:-1], "scaled-standard, paper start")
_one_unit = threading.Lock()  # a unit limits the threads of its whole process


@dataclass(frozen=True)
class Unit:
    """One cell at one seed: what is measured, kept and, after an interruption, resumed as a whole."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Of the cell and the seed."""
        return f"{self.cell.name}, seed {self.seed}"


@dataclass(frozen=True)
class GridSettings:
    """What is trained and measured in every cell; fixed before the run.

    Attributes
    ----------
    cells, seeds
        Every cell is measured at every seed.
    arms
        Names of the arms, as in :class:`~curvature.studies.training.Arm`. The two of the verdicts must be among them;
        with those of the paper's start its claims are tested too.
    epochs, tuning_epochs
        Of the run that is kept, and of each run that tunes a learning rate.
    num_examples, num_weights
        Examples taken from a data set, and the most weights of a network.
    rates
        From the name of an optimizer to the learning rates that are tried first; those of ``OPTIMIZERS`` for others.
    matrices
        Measured in the arms of the verdicts.
    relative_damping, threshold
        As in :class:`~curvature.studies.StudySettings`.
    whole_batches
        Train the arms of the decomposition once more without minibatch noise.
    build
        ``build(cell, seed)``, the problem at its initial weights; None: :func:`cell_problem`.

    Raises
    ------
    ConfigurationError
        If there is no cell, one is repeated, an arm of the verdicts is missing, or a batch has more examples than a
        data set.
    """

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = tuple(range(10))
    arms: tuple[str, ...] = ARMS
    epochs: int = 30
    tuning_epochs: int = 10
    num_examples: int | None = 400
    num_weights: int = 600
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    matrices: tuple[str, ...] = ("ggn", "gradient_covariance")
    relative_damping: float = 1e-3
    threshold: float = THRESHOLD
    whole_batches: bool = True
    build: Callable[[Cell, int], Problem] | None = None

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"a grid needs distinct cells, got {'; '.join(names) or 'none'}.")
        if missing := set(HEADLINE) - set(self.arms):
            raise ConfigurationError(
                f"a grid compares the arms {' and '.join(HEADLINE)}, but {', '.join(sorted(missing))} is not trained."
            )
        for cell in self.cells:
            self.study(cell)  # refuses what it cannot train
            if self.build is None:
                refuse_large_batch(cell, self.num_examples)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Seed by seed: after an interruption every cell has nearly as many seeds."""
        return tuple(Unit(cell, seed) for seed in self.seeds for cell in self.cells)

    def problem(self, cell: Cell, seed: int) -> Problem:
        """The problem of a cell at the initial weights of a seed."""
        if self.build is not None:
            return self.build(cell, seed)
        return cell_problem(cell, seed, num_examples=self.num_examples, num_weights=self.num_weights)

    def study(self, cell: Cell) -> StudySettings:
        """Settings of the study that a cell is."""
        optimizer, usual_rates = OPTIMIZERS[cell.optimizer]
        followed = tuple(name for name in (*HEADLINE, *PUBLISHED[1:]) if name in self.arms)
        training = TrajectorySettings(
            optimizer=optimizer,
            rates=self.rates.get(cell.optimizer, usual_rates),
            tuning_epochs=self.tuning_epochs,
            epochs=self.epochs,
            batch_size=cell.batch_size,
            stages=("init", "late"),
            levels=(DATA_SETS[cell.data].level,) if cell.data in DATA_SETS else (),
        )
        return StudySettings(
            seeds=self.seeds,
            arms=tuple(map(arm_named, self.arms)),
            training=training,
            followed=followed,
            matrices=self.matrices,
            steps_at=("late",),
            league_at=(),
            relative_dampings=(self.relative_damping,),
            relative_damping=self.relative_damping,
            closeness_of_controls=False,
            threshold=self.threshold,
            whole_batches=self.whole_batches,
        )


def measure_unit(settings: GridSettings, unit: Unit, *, progress: Progress | None = None) -> Study:
    """Train and measure every arm of one cell at one seed, on one thread.

    Parameters
    ----------
    settings
        Of the grid.
    unit
        Cell and seed.
    progress
        Called with a message and the share of the work that is done.

    Returns
    -------
    Study
        Without the eigenvalues, of which only the condition numbers are kept. The same bits in every process of one
        machine, whatever else it does.
    """
    with _one_thread():
        start = settings.problem(unit.cell, unit.seed)
        study = measure_seed(start, settings.study(unit.cell), seed=unit.seed, progress=progress)
    kept = tuple(m for m in study.measurements if not isinstance(m.record, Spectrum))
    return replace(study, measurements=kept, checks=(*study.self_checks, *study.checks))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit the whole process to one thread; units of one process take turns."""
    with _one_unit, threadpool_limits(1):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
