r"""Losses that are linear in the outputs, which are log-probabilities: negative log-likelihood and Kullback-Leibler.

Their Hessian in the outputs is zero, so their GGN is zero for every model. Their Fisher is that of the softmax: log
softmax leaves log-probabilities as they are, so with logits $f = \log q$ the score of class $y$ is $q - e_y$. It
differs from the gradient $-e_y$ of the loss by $q$, which the model cannot see: $J^T q = 0$, since the probabilities
sum to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from curvature.arrays import Float, Num, Shaped
from curvature.errors import InputError, NotDefinedError
from curvature.models.losses.cross_entropy import CrossEntropy
from curvature.models.losses.loss import Loss, flat_outputs, unweighted

__all__ = ["KullbackLeibler", "LinearLoss", "NegativeLogLikelihood", "class_dimension"]

_NORMALIZED = 1e-4  # a sum of probabilities that differs from one by more is not rounding, not even in float32


class LinearLoss(Loss):
    """A loss that is linear in log-probabilities."""

    flat = True

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        return torch.zeros_like(flat_outputs(outputs))[:, :, None]


@dataclass(frozen=True, eq=False, repr=False)
class NegativeLogLikelihood(LinearLoss):
    """Minus the log-probability of the class, outputs ``(N, C)``, ``(N, C, ...)`` or ``(N, ..., C)``.

    The axis of the classes is recognised by the shape of the targets.

    Attributes
    ----------
    weight
        Class weights ``(C,)``.
    ignore_index
        Targets with this class do not count.
    """

    weight: Tensor | None = None
    ignore_index: int = -100
    name: str = "negative-log-likelihood"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", self._composed.weight)

    @property
    def _composed(self) -> CrossEntropy:
        """The same function of the logits."""
        return CrossEntropy(self.weight, self.ignore_index, class_axis=1, name=self.name, reduction=self.reduction)

    def classes_last(self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]) -> bool:
        if outputs.ndim < 3:
            return False
        as_in_pytorch, last = (targets.shape == outputs.select(axis, 0).shape for axis in (1, -1))
        if as_in_pytorch and last and class_dimension(outputs) not in (None, 1):
            raise InputError(
                f"the outputs {tuple(outputs.shape)} fit the targets with the classes on the second axis, as in "
                "torch.nn.NLLLoss, and on the last axis, where their probabilities sum to one. Pass "
                "loss=cv.CrossEntropy(class_axis=-1), which is the same function of log-probabilities, or move the "
                "classes to the second axis: outputs.movedim(-1, 1)."
            )
        return last and not as_in_pytorch

    @property
    def remedy(self) -> str:
        plain = self.weight is None and self.ignore_index == -100 and self.reduction == "mean"
        options = ["weight=..."] if self.weight is not None else []
        options += [f"ignore_index={self.ignore_index}"] if self.ignore_index != -100 else []
        options += [f'reduction="{self.reduction}"'] if self.reduction != "mean" else []
        loss = '"cross-entropy"' if plain else f"torch.nn.CrossEntropyLoss({', '.join(options)})"
        return (
            f"Use loss={loss} with the same model: log_softmax leaves log-probabilities as they are, so it is the same "
            "function of the weights, and its GGN is that of the softmax. cv.fisher(problem) is the same matrix."
        )

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        if targets.is_floating_point():
            raise InputError(
                f"{self.name} needs classes (integers) as targets, got {targets.dtype}. For probabilities use "
                "torch.nn.KLDivLoss."
            )
        return self._composed.prepare(outputs, targets)

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        weight = None if self.weight is None else self.weight.to(outputs)
        elements = functional.nll_loss(outputs, targets, weight, ignore_index=self.ignore_index, reduction="none")
        return elements.reshape(len(outputs), -1).sum(dim=1)

    def denominators(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        return self._composed.denominators(outputs, targets)

    def num_terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Num[Tensor, "examples"]:
        return self._composed.num_terms(outputs, targets)

    def _mass(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weight of every output: that of the label at its position."""
        mass = CrossEntropy._label_mass(self._composed, outputs, targets)
        return flat_outputs(mass[:, None].expand_as(outputs))

    def score(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs"]:
        return unweighted(self.gradient(outputs, targets), self._mass(outputs, targets))

    def check_likelihood(self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]) -> None:
        del targets
        _refuse_unnormalized(self.name, outputs.exp().sum(dim=1))

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        return self._composed.fisher_factor(outputs, targets)

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        return self._composed.sampled_factor(outputs, targets, num_samples, generator)


@dataclass(frozen=True, repr=False)
class KullbackLeibler(LinearLoss):
    r"""Kullback-Leibler divergence $\sum_c p_c (\log p_c - f_c)$ of targets $p$, as ``torch.nn.KLDivLoss``.

    Attributes
    ----------
    log_target
        Whether the targets are log-probabilities.
    reduction
        ``"batchmean"``: over examples. ``"mean"``: over all elements, as PyTorch's default, so that with ``C`` classes
        every matrix but the second moments of gradients is ``1 / C`` of that. ``"sum"``: without a denominator.
    """

    log_target: bool = False
    name: str = "kullback-leibler"
    reduction: str = "batchmean"
    reductions = ("batchmean", "mean", "sum")

    @property
    def remedy(self) -> str:
        others = {
            "batchmean": "its matrices are the same if each example is one distribution",
            "mean": "its mean is over distributions, so with C classes its matrices are C times those of this loss",
            "sum": 'torch.nn.CrossEntropyLoss(reduction="sum") has no denominator either',
        }[self.reduction]
        return (
            "Use cv.fisher(problem), which is the GGN of the same loss as a function of the logits. Or use "
            f'loss="cross-entropy" with the probabilities as targets: log_softmax leaves log-probabilities as they '
            f"are; {others}."
        )

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        if targets.shape != outputs.shape or not targets.is_floating_point():
            form = "log-probabilities" if self.log_target else "probabilities"
            raise InputError(
                f"{self.name} needs {form} of the outputs' shape {tuple(outputs.shape)} as targets, got "
                f"{targets.dtype} of shape {tuple(targets.shape)}. For classes use torch.nn.NLLLoss."
            )
        if not self.log_target and (targets < 0).any():
            raise InputError(
                f"{self.name} needs probabilities >= 0 as targets, got {float(targets.min()):g}. For log-probabilities "
                "use log_target=True."
            )
        return targets.to(outputs)

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        elements = functional.kl_div(outputs, targets, reduction="none", log_target=self.log_target)
        return elements.reshape(len(outputs), -1).sum(dim=1)

    def denominators(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        num_outputs = outputs[0].numel() if self.reduction == "mean" else 1
        return torch.full_like(super().denominators(outputs, targets), num_outputs)

    def check_likelihood(self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]) -> None:
        dim = class_dimension(outputs) or 1
        _refuse_unnormalized(self.name, outputs.exp().sum(dim=dim))
        targets = targets.exp() if self.log_target else targets
        _refuse_unnormalized(f"the Fisher of {self.name}", targets.sum(dim=dim), "targets")

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        return self._on_logits(outputs, CrossEntropy().fisher_factor)

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets

        def factor(logits: Tensor, classes: Tensor) -> Tensor:
            return CrossEntropy().sampled_factor(logits, classes, num_samples, generator)

        return self._on_logits(outputs, factor)

    @staticmethod
    def _on_logits(outputs: Tensor, factor: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A factor of cross-entropy, whose classes are in dimension 1, in the order of these outputs."""
        dim = class_dimension(outputs) or 1
        logits = outputs.movedim(dim, 1)
        columns = factor(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
        return columns.reshape(*logits.shape, -1).movedim(1, dim).reshape(len(outputs), -1, columns.shape[2])


def class_dimension(outputs: Tensor) -> int | None:
    """Find the dimension along which outputs are log-probabilities.

    Parameters
    ----------
    outputs
        ``(N, ...)``.

    Returns
    -------
    int or None
        The first dimension after the examples, or else the last, in which the exponentials of at least two outputs sum
        to one everywhere; None if there is none.
    """
    for dim in (1, outputs.ndim - 1):
        if outputs.ndim > 1 and outputs.shape[dim] > 1:
            error = (outputs.exp().sum(dim=dim) - 1).abs().max()
            if error <= _NORMALIZED:
                return dim
    return None


def _refuse_unnormalized(name: str, totals: Tensor, kind: str = "outputs") -> None:
    error = (totals - 1).abs()
    if not bool((error <= _NORMALIZED).all()):
        example = int((error.reshape(len(error), -1) > _NORMALIZED).any(dim=1).nonzero()[0])
        raise NotDefinedError(
            f"the Fisher needs a likelihood, but the {kind} of {name} are not "
            f"{'log-probabilities' if kind == 'outputs' else 'probabilities'}: they sum to "
            f"{float(totals.reshape(len(totals), -1)[example][0]):g} instead of 1 for example {example}. End the model "
            'in log_softmax, or use loss="cross-entropy" on logits.'
        )
