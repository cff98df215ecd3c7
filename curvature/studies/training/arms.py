"""The arms of the study: each is a method and the weights at which it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from curvature.charts import (
    DoRA,
    Placebo,
    RandomWeightFactorization,
    ScaledStandard,
    Sphere,
    Standard,
    WeightNorm,
    WeightStandardization,
)
from curvature.charts.rows import row_norms
from curvature.errors import ConfigurationError
from curvature.models import Problem, nearest
from curvature.precision import full_precision
from curvature.studies.training.initialization import Start, paper_start
from curvature.studies.training.trainable import BatchNormalized, Trainable, Whitened
from curvature.text import did_you_mean

__all__ = ["METHODS", "STARTS", "Arm", "arm_named", "start"]


def _scaled_standard(start: Start) -> Trainable:
    stretches = _stretches(start)
    scale = None if stretches is None else {name: 1 / stretch for name, stretch in stretches.items()}
    return Trainable(start.problem, ScaledStandard(scale))


def _weight_norm_at_the_papers_gauge(start: Start) -> Trainable:
    chart = WeightNorm("paper") if start.g is None else WeightNorm(v=start.v, g=start.g)
    return Trainable(start.problem, chart)


def _placebo_at_the_papers_gauge(start: Start) -> Trainable:
    stretches = _stretches(start)
    if stretches is None:
        return Trainable(start.problem, Placebo("paper", seed=start.seed))
    return Trainable(start.problem, Placebo(stretch=stretches, seed=start.seed))


def _stretches(start: Start) -> dict[str, Tensor] | None:
    """Stretches of the ``v`` and ``g`` that the initialization chose; None if it chose none."""
    if start.v is None or start.g is None:
        return None
    entries = {entry.name: entry for entry in start.problem.layout.entries}
    return {name: row_norms(entries[name].rows(v.reshape(-1))) / start.g[name] for name, v in start.v.items()}


_ADAPTER_RANK = 4
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
    "sphere": lambda start: Trainable(start.problem, Sphere()),
    "random-weight-factorization": lambda start: Trainable(start.problem, RandomWeightFactorization(seed=start.seed)),
    "dora": lambda start: Trainable(start.problem, DoRA(_ADAPTER_RANK, seed=start.seed)),
    "weight-standardization": lambda start: Trainable(start.problem, WeightStandardization()),
}
STARTS = ("module", "paper", "centred")
_CENTRED_ONLY = "weight-standardization"  # which cannot represent the weights of another start


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
    ``prong``                         every layer's input whitened, again every few steps: the positive control
    ``placebo``, ``placebo-paper``    weight norm about random directions, at either gauge: the negative control
    ``sphere``                        $w = c\, v/\|v\|$ with $c = \|w\|$ frozen
    ``random-weight-factorization``   $w = s v$ with $s = e^{1 + 0.1 z}$ drawn at random
    ``dora``                          $w = g v/\|v\|$, $V = W_0 + B A$ of rank 4, with $W_0$ frozen at the start
    ``weight-standardization``        $w = g (v - \bar v)/\|v - \bar v\|$; from the centred start only
    ================================  =============================================================================

    With ``start="paper"`` the weights are those of the data-dependent initialization, in every method, so that the
    effects of initialization and trajectory can be separated. With ``start="centred"`` every row of the module's
    weights has lost its mean, in every method, since weight standardization can represent no others.

    Attributes
    ----------
    method
        One of the names above.
    start
        ``"module"``, ``"paper"`` or ``"centred"``.

    Raises
    ------
    ConfigurationError
        If the method or the start is unknown.

    Examples
    --------
    >>> Arm("weight-norm"), Arm("standard", start="paper").name
    (Arm(method='weight-norm', start='module'), 'standard, paper start')
    """

    method: str
    start: str = "module"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigurationError(
                f"the method of an arm must be one of {', '.join(METHODS)}, got {self.method!r}"
                f"{did_you_mean(self.method, METHODS)}."
            )
        if self.start not in STARTS:
            raise ConfigurationError(
                f"the start of an arm must be one of {', '.join(STARTS)}, got {self.start!r}"
                f"{did_you_mean(self.start, STARTS)}."
            )
        if self.method == _CENTRED_ONLY and self.start != "centred":
            raise ConfigurationError(
                f"the arm {self.method!r} represents rows of mean zero only, and cannot start at {self.start!r} "
                "weights. Use start='centred', for the arms that it is compared with too."
            )

    @property
    def name(self) -> str:
        """Method, and start unless it is the module's."""
        return self.method if self.start == "module" else f"{self.method}, {self.start} start"

    def begin(self, start: Start) -> Trainable:
        """What the optimizer moves, at the start; a new one for each run."""
        if start.name != self.start:
            raise ConfigurationError(f"the arm {self.name!r} starts at {self.start!r} weights, got {start.name!r}.")
        return METHODS[self.method](start)


def arm_named(name: str) -> Arm:
    """Arm of a name, as ``Arm.name`` writes it.

    Parameters
    ----------
    name
        Method, and start unless it is the module's.

    Returns
    -------
    Arm
        With that name.

    Raises
    ------
    ConfigurationError
        If there is no such arm.

    Examples
    --------
    >>> arm_named("weight-norm-paper, paper start")
    Arm(method='weight-norm-paper', start='paper')
    """
    method, comma, beginning = name.partition(", ")
    return Arm(method, beginning.removesuffix(" start") if comma else "module")


@full_precision()
def start(problem: Problem, name: str, *, seed: int, batch_size: int | None = None) -> Start:
    """The weights at which arms start.

    Parameters
    ----------
    problem
        The model as it was initialized for this seed.
    name
        ``"module"``: its weights. ``"paper"``: the data-dependent initialization by the first batch of this seed.
        ``"centred"``: its weights, with every row of a normalizable weight less its mean.
    seed, batch_size
        As in :func:`~curvature.studies.training.paper_start`.

    Returns
    -------
    Start
        Shared by all arms with this start.
    """
    if name == "paper":
        return paper_start(problem, seed=seed, batch_size=batch_size)
    if name == "centred":
        centred = replace(nearest(problem, WeightStandardization()), chart=Standard())  # each arm brings its chart
        return Start("centred", centred, seed)
    return Start("module", problem, seed)
