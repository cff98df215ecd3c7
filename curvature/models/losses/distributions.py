"""Likelihoods whose outputs are not the natural parameters: probabilities, rates, means with variances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float, Shaped
from curvature.errors import ConfigurationError, InputError, NotDefinedError
from curvature.models.losses.elementwise import (
    PointwiseLoss,
    checked_weight,
    diagonal_factor,
    drawn_errors,
    refuse_weight_of_examples,
)
from curvature.models.losses.loss import Loss, flat_outputs, unweighted

__all__ = ["BinaryCrossEntropyOfProbabilities", "GaussianLikelihood", "PoissonLikelihood"]


@dataclass(frozen=True, eq=False, repr=False)
class BinaryCrossEntropyOfProbabilities(PointwiseLoss):
    r"""Binary cross-entropy of probabilities, mean over all elements, as ``torch.nn.BCELoss``.

    Its GGN is that in the probabilities, $y / p^2 + (1 - y) / (1 - p)^2$, which depends on the labels: it is neither
    the GGN in the logits nor the Fisher $1 / (p (1 - p))$.

    Attributes
    ----------
    weight
        Factors of the elements, which broadcast against one example.
    """

    mean_of_elements = True
    weight: Tensor | None = None
    name: str = "binary-cross-entropy-of-probabilities"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", checked_weight("weight", self.weight))

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        targets = super().prepare(outputs, targets)
        refuse_weight_of_examples("weight", self.weight, outputs)
        if (targets < 0).any() or (targets > 1).any():
            raise InputError(
                f"{self.name} needs targets in [0, 1], got {float(targets.min()):g} to {float(targets.max()):g}."
            )
        outside = ~((outputs > 0) & (outputs < 1))
        if outside.any():
            raise InputError(
                f"{self.name} needs probabilities strictly between 0 and 1, and the model returns "
                f"{float(outputs[outside][0]):g}; at 0 and 1 the loss has no derivative. Use "
                "loss='binary-cross-entropy' on the logits: the model without its last sigmoid."
            )
        return targets

    def _weights(self, outputs: Tensor) -> Tensor:
        return torch.ones_like(outputs) if self.weight is None else self.weight.to(outputs).expand_as(outputs)

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        # Not PyTorch's function: its derivative is clamped where p (1 - p) < 1e-12.
        elements = -torch.xlogy(targets, outputs) - torch.special.xlog1py(1 - targets, -outputs)
        return flat_outputs(elements * self._weights(outputs)).sum(dim=1)

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        return (targets / outputs**2 + (1 - targets) / (1 - outputs) ** 2) * self._weights(outputs)

    def score(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs"]:
        return unweighted(self.gradient(outputs, targets), flat_outputs(self._weights(outputs)))

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        return diagonal_factor(self._weights(outputs) / (outputs * (1 - outputs)))

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        chance = flat_outputs(outputs)
        scores = drawn_errors(chance, num_samples, generator) / (chance * (1 - chance))[:, :, None]
        return scores * (flat_outputs(self._weights(outputs))[:, :, None] / num_samples).sqrt()


@dataclass(frozen=True, repr=False)
class PoissonLikelihood(PointwiseLoss):
    r"""Poisson likelihood of counts, mean over all elements, as ``torch.nn.PoissonNLLLoss``.

    Attributes
    ----------
    log_input
        Whether the outputs are logarithms of rates, $e^f - y f$; otherwise rates, $f - y \log(f + \epsilon)$, whose
        curvature $y / (f + \epsilon)^2$ is zero where no event was counted.
    full
        Whether to add Stirling's approximation of $\log y!$, which changes no derivative.
    eps
        $\epsilon$.
    """

    mean_of_elements = True
    log_input: bool = True
    full: bool = False
    eps: float = 1e-8
    name: str = "poisson-nll"
    reduction: str = "mean"

    @property
    def flat(self) -> bool:  # type: ignore[override]
        """Without logarithms, no curvature where the count is zero."""
        return not self.log_input

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        targets = super().prepare(outputs, targets)
        if (targets < 0).any():
            raise InputError(f"{self.name} needs counts >= 0 as targets, got {float(targets.min()):g}.")
        if not self.log_input and (outputs < 0).any():
            raise InputError(
                f"{self.name} with log_input=False needs rates >= 0, and the model returns {float(outputs.min()):g}. "
                "Use log_input=True if the outputs are logarithms of rates."
            )
        return targets

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        if self.log_input:
            elements = outputs.exp() - targets * outputs
        else:
            elements = outputs - targets * (outputs + self.eps).log()
        if self.full:
            many = targets.clamp(min=1.0)
            stirling = many * many.log() - many + 0.5 * (2 * math.pi * many).log()
            elements = elements + torch.where(targets > 1, stirling, 0.0)
        return flat_outputs(elements).sum(dim=1)

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        return outputs.exp() if self.log_input else targets / (outputs + self.eps) ** 2

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        if self.log_input:
            return diagonal_factor(outputs.exp())
        # The score 1 - y / (f + eps) has variance f / (f + eps)^2 and mean eps / (f + eps).
        shifted = flat_outputs(outputs) + self.eps
        spread = torch.diag_embed(flat_outputs(outputs).sqrt() / shifted)
        return torch.cat([spread, (self.eps / shifted)[:, :, None]], dim=2)

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        flat = flat_outputs(outputs)[:, :, None].expand(-1, -1, num_samples)
        rates = flat.exp() if self.log_input else flat
        counts = torch.poisson(rates.double().cpu().contiguous(), generator=generator).to(outputs)
        scores = rates - counts if self.log_input else 1 - counts / (rates + self.eps)
        return scores / num_samples**0.5


@dataclass(frozen=True, repr=False)
class GaussianLikelihood(Loss):
    r"""$\tfrac12 (\log v + (m - y)^2 / v)$ with mean and variance from the model, as ``torch.nn.GaussianNLLLoss``.

    The outputs are ``(N, 2 C, ...)``: first the ``C`` means, then their variances; the targets are ``(N, C, ...)``. Its
    Hessian in the outputs is indefinite, hence so is its GGN. Its Fisher is positive definite.

    Attributes
    ----------
    full
        Whether to add the constant $\tfrac12 \log 2 \pi$.
    eps
        Variances below it are refused: PyTorch replaces them by it but keeps the derivative, so that the gradient is
        not that of the loss.
    log_variance
        Whether the model returns $\log v$ in place of $v$.
    """

    convex = False
    full: bool = False
    eps: float = 1e-6
    log_variance: bool = False
    name: str = "gaussian-nll"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps > 0:
            raise ConfigurationError(f"eps must be above 0, got {self.eps}.")

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        if outputs.ndim < 2 or outputs.shape[1] % 2:
            raise InputError(
                f"{self.name} needs outputs of shape (N, 2 C): C means, then their C variances. The model returns "
                f"{tuple(outputs.shape)}."
            )
        expected = (outputs.shape[0], outputs.shape[1] // 2, *outputs.shape[2:])
        if targets.shape != expected or targets.is_complex():
            raise InputError(
                f"{self.name} needs real targets of shape {expected}, one for each mean, got {targets.dtype} of shape "
                f"{tuple(targets.shape)}."
            )
        variances = self._split(outputs)[1]
        if (variances < self.eps).any():
            raise InputError(
                f"{self.name} got the variance {float(variances.min()):g}, below eps = {self.eps:g}, where PyTorch "
                "clamps it and its gradient is not that of the loss. Let the model return positive variances (softplus "
                "or exp of its second half), or lower eps."
            )
        return targets.to(outputs)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances, ``(N, C, ...)`` each."""
        means, second = outputs.chunk(2, dim=1)
        return means, second.exp() if self.log_variance else second

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        means, variances = self._split(outputs)
        elements = 0.5 * (variances.log() + (means - targets) ** 2 / variances)
        if self.full:
            elements = elements + 0.5 * math.log(2 * math.pi)
        return flat_outputs(elements).sum(dim=1)

    def denominators(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        return torch.full_like(super().denominators(outputs, targets), outputs[0].numel() // 2)

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del outputs, targets
        raise NotDefinedError(
            f"the loss {self.name!r} is not convex in means and variances, so its GGN has no factor; use the dense "
            "route (method='dense'), or cv.fisher(problem), which is positive semidefinite."
        )

    def hessian(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs outputs"]:
        means, variances = map(flat_outputs, self._split(outputs))
        residual = means - flat_outputs(targets)
        if self.log_variance:
            cross, second = -residual / variances, 0.5 * residual**2 / variances
        else:
            cross, second = -residual / variances**2, (residual**2 / variances - 0.5) / variances**2
        top = torch.cat([torch.diag_embed(1 / variances), torch.diag_embed(cross)], dim=2)
        return torch.cat([top, torch.cat([torch.diag_embed(cross), torch.diag_embed(second)], dim=2)], dim=1)

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        _, variances = map(flat_outputs, self._split(outputs))
        second = torch.full_like(variances, 0.5) if self.log_variance else 0.5 / variances**2
        return diagonal_factor(torch.cat([1 / variances, second], dim=1))

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        _, variances = map(flat_outputs, self._split(outputs))
        shape = (*variances.shape, num_samples)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(outputs)
        # For the label m + sqrt(v) z the score is -z / sqrt(v) in the mean and (1 - z^2) / 2 in log v.
        spread = 0.5 * (1 - noise**2)
        spread = spread if self.log_variance else spread / variances[:, :, None]
        return torch.cat([-noise / variances[:, :, None].sqrt(), spread], dim=1) / num_samples**0.5
