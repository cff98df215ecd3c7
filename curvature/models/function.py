"""A module as a pure function of its weights: ``f(x; w)``, with no state and nothing of the user's touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvature.errors import InputError
from curvature.layout import Layout
from curvature.precision import full_precision

__all__ = ["ModelFunction"]


@dataclass(frozen=True, eq=False)
class ModelFunction:
    r"""The map $(w, x) \mapsto f(x; w)$ that a module computes.

    Attributes
    ----------
    module
        A private copy of the user's module. Parameters outside the layout keep the values they have in it.
    layout
        Names and positions of the weights $w$ in a flat vector.
    aliases
        Names under which a weight of the layout is used a second time, each with the name in the layout.
    written
        Names of buffers that ``forward`` writes into (counters, running statistics). Every pass starts from the values
        they came with.
    attends
        Whether the module uses PyTorch's fused attention. It is then computed by the kernel that has a second
        derivative.
    """

    module: nn.Module = field(repr=False)
    layout: Layout
    aliases: Mapping[str, str] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    attends: bool = False

    @property
    def device(self) -> torch.device:
        """Device of the module, hence of weights and inputs."""
        return next(self.module.parameters()).device

    @full_precision()
    def predict(self, weights: Tensor | Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Evaluate the module; differentiable in the weights.

        Parameters
        ----------
        weights
            A flat vector ``(P,)``, or every tensor of the layout by name.
        inputs
            Examples ``(N, ...)``; not modified, even by a module that writes into its input.

        Returns
        -------
        Tensor
            Outputs ``(N, ...)``.
        """
        named = self.layout.unflatten(weights) if isinstance(weights, Tensor) else dict(weights)
        named |= {alias: named[original] for alias, original in self.aliases.items()}
        named |= {name: self.module.get_buffer(name).clone() for name in self.written}
        device = self.device
        with ExitStack() as stack:
            if self.attends:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if device.type != "cpu":
                stack.enter_context(device)  # tensors that forward creates must lie where the model is
            return torch.func.functional_call(self.module, named, (inputs.clone(),))

    def leaves(self, weights: Tensor) -> dict[str, Tensor]:
        """Split flat weights ``(P,)`` into new named tensors that require gradients.

        Parameters
        ----------
        weights
            The point ``(P,)``.

        Returns
        -------
        dict
            One leaf tensor for each entry of the layout, in its order.
        """
        return {name: part.detach().clone().requires_grad_() for name, part in self.layout.unflatten(weights).items()}

    def loss_graph(
        self, weights: Tensor, inputs: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Evaluate a scalar loss of the outputs with its autograd graph.

        Parameters
        ----------
        weights
            The point ``(P,)``.
        inputs
            Examples ``(N, ...)``.
        loss
            Maps outputs ``(N, ...)`` to one scalar.

        Returns
        -------
        outputs, leaves, value
            The outputs, the weights as leaf tensors in the order of the layout, and the loss.

        Raises
        ------
        InputError
            If the loss depends on none of the weights.
        """
        leaves = self.leaves(weights)
        with torch.enable_grad():
            outputs = self.predict(leaves, inputs)
            value = loss(outputs)
        if not value.requires_grad:
            raise InputError("the loss does not depend on any trainable parameter of the module.")
        return outputs, list(leaves.values()), value
