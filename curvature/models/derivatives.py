"""Which derivatives PyTorch has for a model and its loss, and pulling cotangents back through a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import NotDefinedError, SelfCheckError

__all__ = ["Derivatives", "pulled_back"]


@dataclass(frozen=True)
class Derivatives:
    """Which derivatives exist beyond the gradient.

    Attributes
    ----------
    second
        Why the loss has no second derivative in the weights by automatic differentiation, with the layer; empty if it
        has one.
    in_outputs
        The same for the second derivative of the loss in the outputs.
    tangents
        Whether products with the Jacobian of the outputs are possible by reverse mode twice.
    wrong
        Whether there is a second derivative in the weights that differs from finite differences.
    """

    second: str = ""
    in_outputs: str = ""
    tangents: bool = True
    wrong: bool = False

    def require_second(self) -> None:
        """Refuse a Hessian by automatic differentiation where there is none.

        Raises
        ------
        NotDefinedError
            If PyTorch differentiates a layer or the loss only once.
        SelfCheckError
            If a second derivative is wrong.
        """
        if not self.second:
            return
        message = (
            f"{self.second}, so there is no Hessian by automatic differentiation. Replace that function, use ggn, or "
            "call hessian(problem, method='finite-differences'), which differences the gradient and estimates the "
            "error (curvature spectrum --derivatives finite-differences)."
        )
        raise SelfCheckError(message) if self.wrong else NotDefinedError(message)

    def require_in_outputs(self) -> None:
        """Refuse a GGN where the loss has no second derivative in the outputs.

        Raises
        ------
        NotDefinedError
            If PyTorch differentiates the loss only once.
        """
        if self.in_outputs:
            raise NotDefinedError(
                f"{self.in_outputs}, and the GGN needs one in the outputs. Write the loss in operations that PyTorch "
                "differentiates twice, or take empirical_fisher or gradient_covariance."
            )


def pulled_back(
    outputs: Sequence[Float[Tensor, "..."]],
    leaves: Sequence[Float[Tensor, "..."]],
    cotangents: Sequence[Float[Tensor, "..."]],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Float[Tensor, "..."], ...]:
    """Pull cotangents of outputs back to the leaves of their graph.

    Parameters
    ----------
    outputs
        Tensors with a graph.
    leaves
        Tensors that the outputs are differentiated by.
    cotangents
        One for each output, of its shape.
    create_graph, retain_graph
        As for ``torch.autograd.grad``.

    Returns
    -------
    tuple of Tensor
        One for each leaf; zeros where no output depends on it.

    Raises
    ------
    ValueError
        If a cotangent has another shape than its output: their product would be broadcast.

    Notes
    -----
    Of numbers that are linear in the cotangents: where PyTorch is given the cotangents themselves, it first imports
    SymPy, and the first result comes 0.3 s later.
    """
    if list(map(Tensor.size, outputs)) != list(map(Tensor.size, cotangents)):
        raise ValueError("every cotangent must have the shape of its output")
    with torch.enable_grad():
        own = map(torch.clone, cotangents)  # autograd does not keep tensors that were made under inference mode
        numbers = list(map(torch.sum, map(torch.mul, outputs, own)))
    return torch.autograd.grad(
        numbers,
        leaves,
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
