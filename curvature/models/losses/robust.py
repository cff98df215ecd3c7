"""Losses that are linear where the residual is large: Huber, smooth L1 and the absolute error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float, Shaped
from curvature.errors import ConfigurationError
from curvature.models.losses.elementwise import PointwiseLoss
from curvature.models.losses.loss import flat_outputs

__all__ = ["AbsoluteError", "Huber", "SmoothL1"]


class _Robust(PointwiseLoss):
    """A mean over examples and outputs of a loss that is linear in some of them."""

    flat = True
    mean_of_elements = True


@dataclass(frozen=True, repr=False)
class Huber(_Robust):
    r"""$\tfrac12 r^2$ where $|r| < \delta$, otherwise $\delta (|r| - \delta / 2)$; $r = f - y$, as ``nn.HuberLoss``.

    It has no curvature in the outputs where $|r| \ge \delta$. It is not a likelihood of a standard distribution.
    """

    likelihood = False
    delta: float = 1.0
    name: str = "huber"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delta > 0:
            raise ConfigurationError(f"delta must be above 0, got {self.delta}.")

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        residual = outputs - targets
        size = residual.abs()
        elements = torch.where(size < self.delta, 0.5 * residual**2, self.delta * (size - 0.5 * self.delta))
        return flat_outputs(elements).sum(dim=1)

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        return ((outputs - targets).abs() < self.delta).to(outputs)


@dataclass(frozen=True, repr=False)
class SmoothL1(_Robust):
    r"""Huber's loss divided by $\delta = \beta$, as ``torch.nn.SmoothL1Loss``; for $\beta = 0$ the absolute error."""

    likelihood = False
    beta: float = 1.0
    name: str = "smooth-l1"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ConfigurationError(f"beta must not be negative, got {self.beta}.")

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        residual = outputs - targets
        size = residual.abs()
        if self.beta == 0:
            return flat_outputs(size).sum(dim=1)
        elements = torch.where(size < self.beta, 0.5 * residual**2 / self.beta, size - 0.5 * self.beta)
        return flat_outputs(elements).sum(dim=1)

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        inside = ((outputs - targets).abs() < self.beta).to(outputs)
        return inside / self.beta if self.beta else inside


@dataclass(frozen=True, repr=False)
class AbsoluteError(_Robust):
    r"""$|f - y|$, mean over examples and outputs, as ``torch.nn.L1Loss``.

    Its GGN is zero. It is the likelihood of a Laplace distribution of scale 1, whose Fisher is the identity.
    """

    name: str = "absolute-error"
    reduction: str = "mean"

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        return flat_outputs((outputs - targets).abs()).sum(dim=1)

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        del targets
        return torch.zeros_like(outputs)

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        return torch.diag_embed(torch.ones_like(flat_outputs(outputs)))

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        shape = (*flat_outputs(outputs).shape, num_samples)
        signs = 2 * torch.randint(2, shape, generator=generator).to(outputs) - 1
        return signs / num_samples**0.5
