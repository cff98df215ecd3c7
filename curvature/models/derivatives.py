"""Which derivatives PyTorch has for a model and its loss."""

from __future__ import annotations

from dataclasses import dataclass

from curvature.errors import NotDefinedError, SelfCheckError

__all__ = ["Derivatives"]


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
