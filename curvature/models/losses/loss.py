"""The interface of a loss: its terms, its denominators and its derivatives in the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvature.arrays import Float, Num, Shaped
from curvature.errors import ConfigurationError, NotDefinedError
from curvature.models.trees import Tensors

__all__ = ["Loss", "flat_outputs", "unweighted"]


class Loss(ABC):
    """A loss on ``outputs (N, ...)`` and ``targets (N, ...)``; outputs of one example are flattened to ``M``.

    A subclass defines ``name``, :meth:`prepare`, :meth:`terms` and :meth:`hessian_factor`. The other methods follow
    from these; overriding them saves time. A likelihood also defines :meth:`fisher_factor`.

    Attributes
    ----------
    name
        For records and messages.
    likelihood
        True where the loss is a negative log-likelihood (up to scale), so that a Fisher exists.
    convex
        True where its Hessian in the outputs is positive semidefinite by construction.
    structured_targets
        True where targets may be a :class:`~curvature.models.trees.TensorTree` of several tensors.
    flat
        True where its Hessian in the outputs can vanish although its gradient does not: losses that are linear or
        piecewise linear in the outputs, whose GGN is then zero or lacks these outputs.
    reduction
        ``"mean"``, or ``"sum"``: the loss is the sum of the terms, without a denominator.
    """

    name: str
    likelihood: bool = True
    convex: bool = True
    structured_targets: bool = False
    flat: bool = False
    reduction: str = "mean"
    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum")

    def __post_init__(self) -> None:
        if self.reduction not in self.reductions:
            raise ConfigurationError(
                f"{self.name} has reduction={self.reduction!r}, but curvature needs a scalar loss. Use one of "
                f"{', '.join(map(repr, self.reductions))}."
            )

    @property
    def label(self) -> str:
        """Name, and the reduction if it is a sum."""
        return f"{self.name}, sum over examples" if self.reduction == "sum" else self.name

    @property
    def remedy(self) -> str:
        """What to use if the loss is linear in log-probabilities, whose GGN is zero, as the end of a message."""
        return "Use cv.hessian, or a loss that is curved in the outputs."

    @abstractmethod
    def prepare(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Tensors:
        """Check the targets against the outputs; return them in the dtype the loss needs."""

    @abstractmethod
    def terms(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Float[Tensor, "examples"]:
        r"""Sum-reduced losses $\ell_n$, shape ``(N,)``; twice differentiable in the outputs."""

    def classes_last(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> bool:
        """Whether the model has classes on the last axis, and not on the second; see ``CrossEntropy``."""
        del outputs, targets
        return False

    def note(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> str:
        """Describe what the mean is over, where that needs to be known; otherwise an empty string."""
        del outputs, targets
        return ""

    def denominators(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Float[Tensor, "examples"]:
        r"""$D_n$, shape ``(N,)``: what example $n$ adds to the denominator of the mean."""
        del targets
        return outputs.new_ones(len(outputs))

    def num_terms(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Num[Tensor, "examples"]:
        """Number of log-likelihood terms that the loss of each example is the mean of, shape ``(N,)``."""
        return self.denominators(outputs, targets)

    def gradient(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Float[Tensor, "examples outputs"]:
        r"""$\nabla_f \ell_n$, shape ``(N, M)``."""
        variable = outputs.detach().requires_grad_()
        with torch.enable_grad():
            total = self.terms(variable, targets).sum()
        return flat_outputs(torch.autograd.grad(total, variable)[0])

    def score(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Float[Tensor, "examples outputs"]:
        r"""Gradient of the negative log-likelihood, each term times the root of its weight, shape ``(N, M)``.

        With labels drawn from the model, the mean of its outer product is :meth:`fisher_factor` times its transpose.
        """
        return self.gradient(outputs, targets)

    @abstractmethod
    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors
    ) -> Float[Tensor, "examples outputs columns"]:
        r"""$S_n$ with $S_n S_n^T = \nabla_f^2 \ell_n$, shape ``(N, M, R)``."""

    def hessian(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors
    ) -> Float[Tensor, "examples outputs outputs"]:
        r"""$\nabla_f^2 \ell_n$, shape ``(N, M, M)``."""
        factor = self.hessian_factor(outputs, targets)
        return factor @ factor.mT

    def hessian_product(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Callable[[Tensor], Tensor]:
        r"""$T \mapsto \nabla_f^2 \ell_n T$ on rows, ``(N, K, M)`` to ``(N, K, M)``; made once for many products."""
        matrices = self.hessian(outputs, targets)
        return lambda rows: torch.bmm(rows, matrices)

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors
    ) -> Float[Tensor, "examples outputs columns"]:
        """Factor of the second moment of the score over *all* labels of the model, ``(N, M, R)``."""
        del outputs, targets
        raise NotDefinedError(
            f"the Fisher needs a likelihood, and the loss {self.name!r} is not declared to be one. "
            "Use ggn, empirical_fisher or gradient_covariance, or one of the named losses."
        )

    def sampled_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors, num_samples: int, generator: torch.Generator
    ) -> Float[Tensor, "examples outputs columns"]:
        """Factor of the same second moment over ``num_samples`` labels drawn from the model, ``(N, M, num_samples)``.

        Drawn on the CPU in one call per set of outputs, so that results agree across devices.
        """
        del num_samples, generator
        return self.fisher_factor(outputs, targets)

    def check_likelihood(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> None:
        """Raise a :class:`~curvature.NotDefinedError` where these outputs and targets do not define a likelihood."""
        del outputs, targets

    def rank_per_example(self, num_outputs: int) -> int:
        """Largest rank that the Hessian in the outputs can have."""
        return num_outputs

    def __repr__(self) -> str:
        """Class and the options that are not the defaults."""
        if not is_dataclass(self):
            return f"{type(self).__name__}()"
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self) if item.name != "name"}
        options = [
            f"{name} of {value.numel()} numbers" if isinstance(value, Tensor) else f"{name}={value!r}"
            for name, (value, default) in values.items()
            if isinstance(value, Tensor) or value != default
        ]
        return f"{type(self).__name__}({', '.join(options)})"


def flat_outputs(outputs: Shaped[Tensor, "examples ..."]) -> Shaped[Tensor, "examples outputs"]:
    """Flatten the outputs of each example; a model that returns ``(N,)`` has one output.

    Parameters
    ----------
    outputs
        ``(N, ...)``.

    Returns
    -------
    Tensor
        ``(N, M)``.
    """
    return outputs.reshape(len(outputs), -1)


def unweighted(
    gradient: Float[Tensor, "examples outputs"], weight: Float[Tensor, "examples outputs"]
) -> Float[Tensor, "examples outputs"]:
    """Divide the entries of a gradient by the roots of their weights.

    Parameters
    ----------
    gradient
        Entries that hold their weight as a factor.
    weight
        Weights >= 0 of the same shape.

    Returns
    -------
    Tensor
        The same entries with the root of the weight as a factor; zero where the weight is.
    """
    return torch.where(weight > 0, gradient * weight.clamp(min=torch.finfo(weight.dtype).tiny).rsqrt(), 0.0)
