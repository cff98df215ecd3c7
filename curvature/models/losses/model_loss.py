"""The loss that a module computes itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvature.arrays import Float, Shaped
from curvature.errors import NotDefinedError
from curvature.models.losses.loss import Loss

__all__ = ["ModelLoss", "Objective"]


@dataclass(frozen=True, repr=False)
class ModelLoss(Loss):
    """The mean of the losses that the module returns for each example; its outputs stay unknown.

    There is a Hessian, and there are gradients of single examples. There is no GGN and no Fisher, which need the
    outputs.
    """

    name: str = "model"
    likelihood: bool = False
    convex: bool = False

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        del outputs
        return targets

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        del targets
        return outputs.reshape(len(outputs), -1).sum(dim=1)

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del outputs, targets
        raise NotDefinedError(
            "the GGN and the Fisher need the outputs of the model, and here only the loss that the model returns is "
            "known. Name the outputs and the loss, e.g. output='logits' and loss='cross-entropy'; or use hessian, "
            "empirical_fisher or gradient_covariance."
        )

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        return self.hessian_factor(outputs, targets)


@dataclass(frozen=True, repr=False)
class Objective(ModelLoss):
    """A function of named tensors that is the loss itself: one number, or one for each example.

    Attributes
    ----------
    name
        Of the function.
    reduction
        Whether it is the mean over examples or their sum.
    """

    name: str = "objective"
    reduction: str = "mean"

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        del outputs, targets
        raise NotDefinedError(
            f"the GGN and the Fisher need the outputs that the loss is a function of, and {self.name!r} is a function "
            "of the parameters. Write it as loss(outputs(parameters)), and pass both: "
            "cv.Problem.from_function(loss, parameters, outputs=outputs); or use cv.hessian."
        )
