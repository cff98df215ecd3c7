"""The arms of the study: a method and the weights where it starts, each a name and a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvature.charts import Placebo, ScaledStandard, Standard, WeightNorm
from curvature.charts.rows import row_norms
from curvature.errors import ConfigurationError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.studies.training.initialization import Start, paper_start
from curvature.studies.training.trainable import BatchNormalized, Trainable, Whitened

__all__ = ["METHODS", "STARTS", "Arm", "start"]


def _scaled_standard(start: Start) -> Trainable:
    if start.g is None:
        return Trainable(start.problem, ScaledStandard())
    return Trainable(start.problem, ScaledStandard({name: 1 / part for name, part in _stretches(start).items()}))


def _weight_norm_at_the_papers_gauge(start: Start) -> Trainable:
    chart = WeightNorm("paper") if start.g is None else WeightNorm(v=start.v, g=start.g)
    return Trainable(start.problem, chart)


def _placebo_at_the_papers_gauge(start: Start) -> Trainable:
    gauge = {"gauge": "paper"} if start.g is None else {"stretch": _stretches(start)}
    return Trainable(start.problem, Placebo(**gauge, seed=start.seed))


def _stretches(start: Start) -> dict:
    entries = {entry.name: entry for entry in start.problem.layout.entries}
    return {name: row_norms(entries[name].rows(v.reshape(-1))) / start.g[name] for name, v in start.v.items()}


METHODS: dict[str, Callable[[Start], Trainable]] = {
    "standard": lambda start: Trainable(start.problem, Standard()),
    "scaled-standard": _scaled_standard,
    "weight-norm": lambda start: Trainable(start.problem, WeightNorm()),
    "weight-norm-paper": _weight_norm_at_the_papers_gauge,
    "weight-norm-log": lambda start: Trainable(start.problem, WeightNorm(log_scale=True)),
    "mean-only-batch-norm": lambda start: BatchNormalized(start.problem, mean_only=True),
    "weight-norm+mean-only-batch-norm": lambda start: BatchNormalized(start.problem, WeightNorm(), mean_only=True),
    "batch-norm": lambda start: BatchNormalized(start.problem),
    "prong": lambda start: Whitened(start.problem),
    "placebo": lambda start: Trainable(start.problem, Placebo(seed=start.seed)),
    "placebo-paper": _placebo_at_the_papers_gauge,
}
STARTS = ("module", "paper")


@dataclass(frozen=True)
class Arm:
    r"""A method of training and the weights where it starts; all arms of one start begin at the same function.

    ================================  =============================================================================
    ``standard``                      the weights themselves
    ``scaled-standard``               the published baseline: $w = \gamma\theta$, $\gamma = g/\|v\|$ frozen
    ``weight-norm``                   $w = g v/\|v\|$ at PyTorch's gauge, $v = w$ and $g = \|w\|$
    ``weight-norm-paper``             the same at the paper's gauge: the drawn $v$ where the paper's initialization
                                      chose it, else $\|v\| = 0.05 \sqrt{\text{fan-in}}$
    ``weight-norm-log``               $g = e^s$, PyTorch's gauge
    ``mean-only-batch-norm``          batch means subtracted
    ``weight-norm+mean-only-batch-norm``  both, PyTorch's gauge
    ``batch-norm``                    batch means subtracted, divided by batch deviations
    ``prong``                         every layer's input whitened, refreshed: the positive control
    ``placebo``, ``placebo-paper``    weight norm about random directions, at either gauge: the negative control
    ================================  =============================================================================

    With ``start="paper"`` the weights are those of the data-dependent initialization, in every method: initialization
    and trajectory can be told apart.

    >>> Arm("weight-norm"), Arm("standard", start="paper").name
    (Arm(method='weight-norm', start='module'), 'standard, paper start')
    """

    method: str
    start: str = "module"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigurationError(f"the method of an arm is one of {', '.join(METHODS)}, got {self.method!r}.")
        if self.start not in STARTS:
            raise ConfigurationError(f"the start of an arm is one of {', '.join(STARTS)}, got {self.start!r}.")

    @property
    def name(self) -> str:
        """Method, and start where it is not the module's own."""
        return self.method if self.start == "module" else f"{self.method}, {self.start} start"

    def begin(self, start: Start) -> Trainable:
        """Give what the optimizer moves, at the start; anew for each run."""
        if start.name != self.start:
            raise ConfigurationError(f"the arm {self.name!r} starts at {self.start!r} weights, got {start.name!r}.")
        return METHODS[self.method](start)


@full_precision()
def start(problem: Problem, name: str, *, seed: int, batch_size: int | None = None) -> Start:
    """Give the module's own weights, or the paper's initialization by the first batch of this seed."""
    if name == "paper":
        return paper_start(problem, seed=seed, batch_size=batch_size)
    return Start("module", problem, seed)
