"""Losses that are sums over output elements: binary cross-entropy and the squared errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from curvature.errors import InputError
from curvature.models.losses.loss import Loss, flat_outputs

__all__ = ["BinaryCrossEntropy", "ElementwiseLoss", "HalfSquaredError", "MeanSquaredError"]


class ElementwiseLoss(Loss):
    """A loss that is a sum over output elements, so that its Hessian in the outputs is diagonal.

    A subclass defines ``name``, :meth:`terms` and :meth:`second_derivative`.
    """

    @abstractmethod
    def second_derivative(self, outputs: Tensor) -> Tensor:
        r"""Diagonal of $\nabla_f^2 \ell_n$, shape of the outputs."""

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.shape != outputs.shape:
            hint = ""
            if targets.numel() == outputs.numel():
                hint = f" Reshape the targets with y.reshape({tuple(outputs.shape)})."
            raise InputError(
                f"{self.name} needs targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(targets.shape)}."
                + hint
            )
        if targets.is_complex():
            raise InputError(f"{self.name} needs real targets, got {targets.dtype}.")
        return targets.to(outputs)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return torch.diag_embed(flat_outputs(self.second_derivative(outputs)).sqrt())

    def hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        del targets
        diagonal = flat_outputs(self.second_derivative(outputs))[:, None]
        return lambda rows: diagonal * rows

    def _gaussian_scores(self, outputs: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        shape = (len(outputs), outputs[0].numel(), num_samples)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(outputs)
        return noise * (flat_outputs(self.second_derivative(outputs))[:, :, None] / num_samples).sqrt()


@dataclass(frozen=True, repr=False)
class BinaryCrossEntropy(ElementwiseLoss):
    """Binary cross-entropy with logits, mean over all elements, as ``torch.nn.BCEWithLogitsLoss``.

    Targets in [0, 1]. The likelihood is an independent Bernoulli per output.
    """

    name: str = "binary-cross-entropy"

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        targets = super().prepare(outputs, targets)
        if (targets < 0).any() or (targets > 1).any():
            raise InputError(
                f"binary cross-entropy targets must be in [0, 1], got {float(targets.min()):g} to "
                f"{float(targets.max()):g}."
            )
        return targets

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        elements = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return elements.reshape(len(outputs), -1).sum(dim=1)

    def denominators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(super().denominators(outputs, targets), outputs[0].numel())

    def second_derivative(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    def fisher_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # Scores sigma - 1 with probability sigma and sigma - 0 with probability 1 - sigma, per output.
        del targets
        ones, zeros = torch.sigmoid(flat_outputs(outputs)), torch.sigmoid(-flat_outputs(outputs))
        return torch.cat([torch.diag_embed(-zeros * ones.sqrt()), torch.diag_embed(ones * zeros.sqrt())], dim=2)

    def sampled_factor(self, outputs: Tensor, targets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        del targets
        chance = torch.sigmoid(flat_outputs(outputs))[:, :, None]
        uniform = torch.rand((*chance.shape[:2], num_samples), generator=generator, dtype=torch.float64).to(outputs)
        return (chance - (uniform < chance).to(outputs)) / num_samples**0.5


@dataclass(frozen=True, repr=False)
class HalfSquaredError(ElementwiseLoss):
    r"""$\ell_n = \tfrac12 \|f_n - y_n\|^2$, summed over outputs: its GGN is its Fisher at unit variance."""

    name: str = "half-squared-error"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * ((outputs - targets) ** 2).reshape(len(outputs), -1).sum(dim=1)

    def second_derivative(self, outputs: Tensor) -> Tensor:
        return torch.ones_like(outputs)

    def fisher_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # The score of N(f, sigma^2) is (f - y) / sigma^2, of variance 1 / sigma^2 = the second derivative.
        return self.hessian_factor(outputs, targets)

    def sampled_factor(self, outputs: Tensor, targets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        del targets
        return self._gaussian_scores(outputs, num_samples, generator)


@dataclass(frozen=True, repr=False)
class MeanSquaredError(HalfSquaredError):
    r"""PyTorch's ``nn.MSELoss()``: mean over examples *and* outputs, no 1/2.

    Its curvature is ``2 / C`` times that of half squared error.
    """

    name: str = "mean-squared-error"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2.0 * super().terms(outputs, targets)

    def denominators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(super().denominators(outputs, targets), outputs[0].numel())

    def second_derivative(self, outputs: Tensor) -> Tensor:
        return torch.full_like(outputs, 2.0)
