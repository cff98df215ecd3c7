"""Losses that are sums over output elements: binary cross-entropy and the squared errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from curvature.arrays import Float, Shaped
from curvature.errors import ConfigurationError, InputError
from curvature.models.losses.loss import Loss, flat_outputs, unweighted

__all__ = [
    "BinaryCrossEntropy",
    "ElementwiseLoss",
    "HalfSquaredError",
    "MeanSquaredError",
    "PointwiseLoss",
    "checked_weight",
    "diagonal_factor",
    "drawn_errors",
    "refuse_weight_of_examples",
]


class PointwiseLoss(Loss):
    """A loss that is a sum over output elements, so that its Hessian in the outputs is diagonal.

    A subclass defines ``name``, :meth:`terms` and :meth:`curvature`, and sets ``mean_of_elements`` if its mean is over
    the elements of all examples and not over the examples.
    """

    mean_of_elements = False

    @abstractmethod
    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        r"""Diagonal of $\nabla_f^2 \ell_n$, shape of the outputs."""

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
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

    def denominators(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        ones = super().denominators(outputs, targets)
        return ones * outputs[0].numel() if self.mean_of_elements else ones

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        return diagonal_factor(self.curvature(outputs, targets))

    def hessian_product(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Callable[[Tensor], Tensor]:
        diagonal = flat_outputs(self.curvature(outputs, targets))[:, None]
        return lambda rows: diagonal * rows


class ElementwiseLoss(PointwiseLoss):
    """A pointwise loss whose second derivative does not depend on the targets.

    A subclass defines ``name``, :meth:`terms` and :meth:`second_derivative`.
    """

    @abstractmethod
    def second_derivative(self, outputs: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        r"""Diagonal of $\nabla_f^2 \ell_n$, shape of the outputs."""

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        del targets
        return self.second_derivative(outputs)

    def _gaussian_scores(self, outputs: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        shape = (len(outputs), outputs[0].numel(), num_samples)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(outputs)
        return noise * (flat_outputs(self.second_derivative(outputs))[:, :, None] / num_samples).sqrt()


@dataclass(frozen=True, eq=False, repr=False)
class BinaryCrossEntropy(ElementwiseLoss):
    """Binary cross-entropy with logits, mean over all elements, as ``torch.nn.BCEWithLogitsLoss``.

    Targets in [0, 1]. The likelihood is an independent Bernoulli per output.

    Attributes
    ----------
    weight, pos_weight
        As in PyTorch: factors of the elements, and of the positive label; both broadcast against one example.
    """

    mean_of_elements = True
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    name: str = "binary-cross-entropy"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("weight", "pos_weight"):
            object.__setattr__(self, option, checked_weight(option, getattr(self, option)))

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        targets = super().prepare(outputs, targets)
        refuse_weight_of_examples("weight", self.weight, outputs)
        refuse_weight_of_examples("pos_weight", self.pos_weight, outputs)
        if (targets < 0).any() or (targets > 1).any():
            raise InputError(
                f"binary cross-entropy targets must be in [0, 1], got {float(targets.min()):g} to "
                f"{float(targets.max()):g}."
            )
        return targets

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        weight, pos_weight = (None if w is None else w.to(outputs) for w in (self.weight, self.pos_weight))
        elements = functional.binary_cross_entropy_with_logits(
            outputs, targets, weight=weight, pos_weight=pos_weight, reduction="none"
        )
        return elements.reshape(len(outputs), -1).sum(dim=1)

    def _label_mass(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Weight of each element at its label; None where all are one."""
        if self.weight is None and self.pos_weight is None:
            return None
        mass = torch.ones_like(outputs)
        if self.pos_weight is not None:
            mass = mass + (self.pos_weight.to(outputs) - 1) * targets
        return mass if self.weight is None else mass * self.weight.to(outputs)

    def second_derivative(self, outputs: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        return torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    def curvature(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples ..."]:
        mass = self._label_mass(outputs, targets)
        return self.second_derivative(outputs) if mass is None else self.second_derivative(outputs) * mass

    def score(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs"]:
        gradient, mass = self.gradient(outputs, targets), self._label_mass(outputs, targets)
        if mass is None:
            return gradient
        return unweighted(gradient, flat_outputs(mass))

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        # Scores sigma - 1 with probability sigma and sigma - 0 with probability 1 - sigma, per output.
        ones, zeros = torch.sigmoid(flat_outputs(outputs)), torch.sigmoid(-flat_outputs(outputs))
        factor = torch.cat([torch.diag_embed(-zeros * ones.sqrt()), torch.diag_embed(ones * zeros.sqrt())], dim=2)
        mass = self._label_mass(outputs, targets)
        return factor if mass is None else factor * flat_outputs(mass).sqrt()[:, :, None]

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        scores = drawn_errors(torch.sigmoid(flat_outputs(outputs)), num_samples, generator) / num_samples**0.5
        mass = self._label_mass(outputs, targets)
        return scores if mass is None else scores * flat_outputs(mass).sqrt()[:, :, None]


@dataclass(frozen=True, repr=False)
class HalfSquaredError(ElementwiseLoss):
    r"""$\ell_n = \tfrac12 \|f_n - y_n\|^2$, summed over outputs: its GGN is its Fisher at unit variance."""

    name: str = "half-squared-error"
    reduction: str = "mean"

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        return 0.5 * ((outputs - targets) ** 2).reshape(len(outputs), -1).sum(dim=1)

    def second_derivative(self, outputs: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        return torch.ones_like(outputs)

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        # The score of N(f, sigma^2) is (f - y) / sigma^2, of variance 1 / sigma^2 = the second derivative.
        return self.hessian_factor(outputs, targets)

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        del targets
        return self._gaussian_scores(outputs, num_samples, generator)


@dataclass(frozen=True, repr=False)
class MeanSquaredError(HalfSquaredError):
    r"""PyTorch's ``nn.MSELoss()``: mean over examples *and* outputs, no 1/2.

    Its curvature is ``2 / C`` times that of half squared error. Its likelihood is a Gaussian of variance 1/2 for each
    output, of which it is the mean over outputs.
    """

    mean_of_elements = True
    name: str = "mean-squared-error"

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        return 2.0 * super().terms(outputs, targets)

    def second_derivative(self, outputs: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        return torch.full_like(outputs, 2.0)


def diagonal_factor(diagonal: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples outputs outputs"]:
    """Make the factor of a diagonal matrix for each example.

    Parameters
    ----------
    diagonal
        Numbers >= 0, ``(N, ...)``.

    Returns
    -------
    Tensor
        ``(N, M, M)``, with the roots on the diagonal.
    """
    return torch.diag_embed(flat_outputs(diagonal).sqrt())


def drawn_errors(
    chance: Float[Tensor, "examples outputs"], num_samples: int, generator: torch.Generator
) -> Float[Tensor, "examples outputs columns"]:
    """Draw labels 0 and 1 and subtract them from their probabilities.

    Parameters
    ----------
    chance
        Probability of a label 1, ``(N, M)``.
    num_samples
        Labels for each output.
    generator
        Draws them on the CPU, in double precision.

    Returns
    -------
    Tensor
        ``(N, M, num_samples)``.
    """
    uniform = torch.rand((*chance.shape, num_samples), generator=generator, dtype=torch.float64).to(chance)
    return chance[:, :, None] - (uniform < chance[:, :, None]).to(chance)


def checked_weight(option: str, weight: Tensor | None) -> Tensor | None:
    """Copy the weights of elements, and refuse weights that would make the loss concave or empty.

    Parameters
    ----------
    option
        Name of the option, for the message.
    weight
        The weights, or None.

    Returns
    -------
    Tensor or None
        A copy without a graph.

    Raises
    ------
    ConfigurationError
        If a weight is negative, NaN or infinite, or all are zero.
    """
    if weight is None:
        return None
    weight = torch.as_tensor(weight).detach().clone()
    if not torch.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise ConfigurationError(f"{option} must hold finite numbers >= 0, not all zero.")
    return weight


def refuse_weight_of_examples(option: str, weight: Tensor | None, outputs: Tensor) -> None:
    """Refuse weights with one row for each example, or of another shape than the outputs of one example.

    Parameters
    ----------
    option
        Name of the option, for the message.
    weight
        The weights, or None.
    outputs
        ``(N, ...)``.

    Raises
    ------
    InputError
        If the weights do not broadcast against the outputs of one example.
    """
    if weight is None:
        return
    whole = (1, *outputs.shape[1:])
    try:
        fits = torch.broadcast_shapes(weight.shape, whole) == whole
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"{option} has shape {tuple(weight.shape)}, which does not broadcast to the outputs of one example, "
            f"{whole[1:]}: weights of single examples are not supported, since the data are read in other "
            "batches. Pass weights of the outputs."
        )
