r"""A term of the objective that depends on the weights alone, such as weight decay: $L(w) + R(w)$."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Parameterization, Standard
from curvature.errors import ConfigurationError, InputError, NonFiniteError
from curvature.layout import Layout
from curvature.models.behaviour import leaf_variables

__all__ = ["Penalty", "PenaltyFunction", "PenaltyTerms", "WeightDecay", "make_penalty", "note_gauge"]

PenaltyFunction = Callable[[dict[str, Tensor]], Tensor]
WeightDecay = float | Mapping[str, float]


class PenaltyTerms(NamedTuple):
    """What a user passes: a function of the dictionary of weights, and weight decay for all of them or by pattern."""

    function: PenaltyFunction | None = None
    weight_decay: WeightDecay = 0.0


@dataclass(frozen=True, eq=False)
class Penalty:
    r"""The function $R(w) = \frac12 \sum_i \lambda_i w_i^2 + r(w)$ of the weights of a problem.

    Attributes
    ----------
    layout
        Names and positions of the weights $w$.
    decay
        $\lambda_i \ge 0$, ``(P,)``; None without weight decay.
    function
        $r$, as a function of a dictionary with every trainable weight by name; None without one.
    fixed
        Weights that :meth:`restricted` has taken out of the layout; ``function`` still gets them.
    constant
        What those weights add to the weight decay.
    label
        Name in records, e.g. ``"weight_decay=0.05"``.

    Examples
    --------
    >>> import torch, curvature as cv
    >>> data = torch.randn(20, 4), torch.randint(3, (20,))
    >>> problem = cv.Problem.from_module(cv.zoo.mlp((4, 3)), loss="cross-entropy", data=data, weight_decay=0.1)
    >>> smallest = torch.linalg.eigvalsh(cv.hessian(problem).dense())[0]  # zero without the penalty
    >>> round(float(smallest), 6)
    0.1
    """

    layout: Layout
    decay: Float[Tensor, "weights"] | None = None
    function: PenaltyFunction | None = field(default=None, repr=False)
    fixed: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict, repr=False)
    constant: float = 0.0
    label: str = ""

    def value(self, weights: Float[Tensor, "weights"]) -> float:
        """Evaluate the penalty.

        Parameters
        ----------
        weights
            The point ``(P,)``.

        Returns
        -------
        float
            $R(w)$.
        """
        total = self.constant
        if self.decay is not None:
            total += 0.5 * float(self.decay @ weights.square())
        if self.function is not None:
            with torch.no_grad():
                copies = {name: part.clone() for name, part in self.layout.unflatten(weights).items()}
                total += float(self.function(self._named(copies)))
        return total

    def gradient(self, weights: Float[Tensor, "weights"]) -> Float[Tensor, "weights"]:
        """Differentiate the penalty.

        Parameters
        ----------
        weights
            The point ``(P,)``.

        Returns
        -------
        Tensor
            Gradient ``(P,)``.

        Raises
        ------
        NonFiniteError
            If it is NaN or infinite; names the parameters.
        """
        total = torch.zeros_like(weights) if self.decay is None else self.decay * weights
        if self.function is not None:
            value, leaves = self.graph(weights)
            parts = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            total = total + torch.cat([part.reshape(-1) for part in parts])
        if not torch.isfinite(total).all():
            raise NonFiniteError(
                f"the gradient of the penalty is NaN or infinite in {', '.join(self._not_finite(total))}; look at the "
                "penalty at this point (a root or a norm of zero has no gradient)."
            )
        return total

    def graph(self, weights: Float[Tensor, "weights"]) -> tuple[Float[Tensor, ""], list[Float[Tensor, "..."]]]:
        """Evaluate the user's function with its autograd graph.

        Parameters
        ----------
        weights
            The point ``(P,)``.

        Returns
        -------
        value, leaves
            The scalar, and the weights as leaf tensors in the order of the layout.
        """
        assert self.function is not None
        named = self.layout.unflatten(weights)
        leaves = {name: part.detach().clone().requires_grad_() for name, part in named.items()}
        with torch.enable_grad():
            value = self.function(self._named(leaves)).reshape(())
            if not value.requires_grad:  # of a block: a function of the fixed weights alone
                value = value + sum((torch.zeros_like(leaf) * leaf).sum() for leaf in leaves.values())
        return value, list(leaves.values())

    def restricted(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Penalty:
        """Fix the weights that another layout leaves out.

        Parameters
        ----------
        layout
            The entries that stay variable.
        weights
            Values of all weights of this layout, ``(P,)``.

        Returns
        -------
        Penalty
            The same function of the remaining weights.
        """
        named = self.layout.unflatten(weights)
        fixed = {name: part.detach().clone() for name, part in named.items() if name not in layout.slices}
        decay, constant = self.decay, self.constant
        if decay is not None:
            parts = self.layout.unflatten(decay)
            constant += 0.5 * sum(float((parts[name] * part.square()).sum()) for name, part in fixed.items())
            decay = layout.flatten({name: parts[name] for name in layout.slices})
        return replace(self, layout=layout, decay=decay, fixed={**self.fixed, **fixed}, constant=constant)

    def to(self, dtype: torch.dtype) -> Penalty:
        """Convert to another precision.

        Parameters
        ----------
        dtype
            The precision.

        Returns
        -------
        Penalty
            The same penalty.
        """
        decay = None if self.decay is None else self.decay.to(dtype)
        return replace(self, decay=decay, fixed={name: part.to(dtype) for name, part in self.fixed.items()})

    def _named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every weight by name; the fixed ones as copies, since a user's function may write into what it gets."""
        return {**{name: part.clone() for name, part in self.fixed.items()}, **tensors}

    def _not_finite(self, vector: Tensor) -> list[str]:
        return [name for name, part in self.layout.unflatten(vector).items() if not torch.isfinite(part).all()]


def make_penalty(layout: Layout, weights: Float[Tensor, "weights"], terms: PenaltyTerms) -> Penalty | None:
    r"""Build the penalty that a user describes, and try it once.

    Parameters
    ----------
    layout
        Names and positions of the trainable weights.
    weights
        The point ``(P,)``.
    terms
        The function and the weight decay.

    Returns
    -------
    Penalty or None
        None if neither is given.

    Raises
    ------
    ConfigurationError
        If a decay is negative or not a number, or a weight has two.
    InputError
        If a pattern matches nothing, or the function fails, depends on no weight that it is given or on other trainable
        tensors, or gives two results.
    NonFiniteError
        If its value is NaN or infinite.
    """
    function, weight_decay = terms
    decay = _decay(layout, weights, weight_decay)
    labels = [] if decay is None else [f"weight_decay={_decay_text(weight_decay)}"]
    if function is not None:
        if not callable(function):
            raise ConfigurationError(
                "penalty must be a function of the dictionary of weights that returns a scalar, got "
                f"{type(function).__name__}. For (c / 2) times the sum of squares, use weight_decay=c."
            )
        name = getattr(function, "__name__", type(function).__name__)
        labels.append("penalty" if name == "<lambda>" else f"penalty={name}")
    if not labels:
        return None
    penalty = Penalty(layout, decay, function, label=", ".join(labels))
    if function is not None:
        _try(penalty, weights)
    return penalty


def note_gauge(penalty: Penalty | None, chart: Parameterization) -> str:
    r"""Warn about weight decay of a weight-normalized module, where optimizers also decay $v$.

    Parameters
    ----------
    penalty
        The penalty.
    chart
        The parameterization of the module.

    Returns
    -------
    str
        The warning, for reports; empty if there is nothing to warn about.
    """
    if penalty is None or penalty.decay is None or isinstance(chart, Standard):
        return ""
    message = (
        "weight_decay acts on the effective weights of weight-normalized layers, which is the same as the decay of g. "
        "torch.optim would also decay v, which is not a function of the weights: that term is left out."
    )
    warnings.warn(message, stacklevel=4)  # the call of from_module
    return message


def _decay(layout: Layout, weights: Tensor, weight_decay: WeightDecay) -> Tensor | None:
    """Coefficient of each weight; None if all are zero."""
    if not isinstance(weight_decay, Mapping):
        coefficient = _coefficient("weight_decay", weight_decay)
        return torch.full_like(weights, coefficient) if coefficient else None
    decay, owner = torch.zeros_like(weights), dict[str, str]()
    for pattern, value in weight_decay.items():
        coefficient = _coefficient(f"weight_decay[{pattern!r}]", value)
        for name in layout.select(pattern).slices:
            if name in owner:
                raise ConfigurationError(
                    f"weight_decay gives {name!r} two values, by {owner[name]!r} and by {pattern!r}. Use patterns that "
                    "match different parameters."
                )
            owner[name] = pattern
            decay[layout.slices[name]] = coefficient
    return decay if decay.any() else None


def _coefficient(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"{name} must be a finite number, at least 0, got {value!r}.")
    return float(value)


def _decay_text(weight_decay: WeightDecay) -> str:
    if not isinstance(weight_decay, Mapping):
        return f"{weight_decay:g}"
    return "{" + ", ".join(f"{pattern!r}: {value:g}" for pattern, value in weight_decay.items()) + "}"


def _try(penalty: Penalty, weights: Tensor) -> None:
    """Evaluate a user's penalty twice, and refuse what is not a smooth function of the weights that it is given."""
    advice = "It gets a dictionary of the trainable weights by name and must return one scalar computed from them."
    assert penalty.function is not None
    results, leaf_ids = [], dict[int, Tensor]()
    for _ in range(2):
        named = penalty.layout.unflatten(weights)
        leaves = {name: part.detach().clone().requires_grad_() for name, part in named.items()}
        leaf_ids |= {id(leaf): leaf for leaf in leaves.values()}
        try:
            with torch.enable_grad():
                results.append(penalty.function(dict(leaves)))
        except Exception as error:  # a user's function may raise anything
            raise InputError(f"the penalty failed ({type(error).__name__}: {error}). {advice}") from error
    first, second = results
    if not isinstance(first, Tensor) or first.numel() != 1:
        got = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise InputError(f"the penalty must return one scalar tensor, got {got}. {advice}")
    reached = leaf_variables(first)
    if foreign := [tuple(variable.shape) for variable in reached if id(variable) not in leaf_ids]:
        shapes = ", ".join(map(str, foreign[:5]))
        raise InputError(
            f"the penalty depends on trainable tensors that it is not given (of shape {shapes}), so its derivative in "
            "the weights would miss them. Compute it from the dictionary that it is called with: lambda weights: "
            "0.01 * weights['0.weight'].square().sum(), for example."
        )
    if not reached:
        raise InputError(f"the penalty does not depend on any weight, so it has no derivative. {advice}")
    values = [float(value.detach()) for value in (first, second)]
    if not math.isfinite(values[0]):
        raise NonFiniteError("the value of the penalty is NaN or infinite at these weights.")
    if abs(values[0] - values[1]) > 1e3 * torch.finfo(weights.dtype).eps * abs(values[0]):
        raise InputError("the penalty gives two results for the same weights: remove what is random in it.")
