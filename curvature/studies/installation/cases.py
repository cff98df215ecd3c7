"""A layer or a loss as a small model: what the audit of second derivatives differentiates.

A model multiplies its input by extra weights, entry by entry, and passes the result to the layer, so that the
Hessian has the blocks of the layer's weights, of what comes before the layer, and of the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["EXAMPLES", "Apply", "Case", "Probe", "call"]

Apply = Callable[[nn.Module, Tensor], Tensor]
EXAMPLES = 3


def call(layer: nn.Module, signal: Tensor) -> Tensor:
    """``layer(signal)``, which is how most layers are called.

    Parameters
    ----------
    layer
        The layer.
    signal
        Its input, with the batch first.

    Returns
    -------
    Tensor
        Its output.
    """
    return layer(signal)


class Probe(nn.Module):
    """``apply(layer, upstream * x)``, with the batch first and the rest of the output flattened where ``flat``."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], apply: Apply, *, flat: bool) -> None:
        super().__init__()
        self.upstream = nn.Parameter(torch.rand(shape) + 0.5)
        self.layer = layer
        self.apply_layer, self.flat = apply, flat

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for a batch."""
        output = self.apply_layer(self.layer, x * self.upstream)
        return output.flatten(1) if self.flat else output


@dataclass(frozen=True, eq=False)
class Case:
    """One layer or loss.

    Attributes
    ----------
    name, family
        What is audited, and its heading.
    build
        Makes the layer; for a loss, makes the loss.
    shape
        Of one example's input of the layer, or of the outputs that the loss takes.
    apply
        How the layer is called.
    targets
        Targets of a loss for a number of examples; None for a layer, whose outputs get a squared error.
    training
        Whether the model stays in training mode.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    apply: Apply = call
    targets: Callable[[int], Tensor] | None = None
    training: bool = False

    def made(self, seed: int, device: str = "cpu") -> tuple[Probe, nn.Module, Tensor, Tensor]:
        """Model in float64, loss, inputs and targets, drawn from a seed and moved to a device."""
        model, loss, inputs, targets = self._drawn(seed)
        return model.to(device), loss.to(device), inputs.to(device), targets.to(device)

    def _drawn(self, seed: int) -> tuple[Probe, nn.Module, Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            is_loss = self.targets is not None
            model = Probe(nn.Identity() if is_loss else self.build(), self.shape, self.apply, flat=not is_loss)
            model.double().train(self.training)
            for parameter in model.parameters():  # away from the ones, zeros and padding rows of an initialization
                parameter.data += 0.3 * torch.randn_like(parameter)
            inputs = torch.randn(EXAMPLES, *self.shape, dtype=torch.float64)
            if self.targets is not None:
                targets = self.targets(EXAMPLES)
                return model, self.build(), inputs, targets.double() if targets.is_floating_point() else targets
            with torch.no_grad():
                targets = torch.randn_like(model(inputs))
            return model, nn.MSELoss(), inputs, targets
