"""Layers of peft that hold a norm constant in their backward pass (DoRA), with the derivative of that norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["differentiate_norms"]

_DORA = "peft.tuners.lora.dora"


def differentiate_norms(model: nn.Module) -> str:
    r"""Let DoRA layers differentiate the norm in $W = m (W_0 + BA) / \|W_0 + BA\|$, which peft detaches.

    Parameters
    ----------
    model
        A private copy; its DoRA layers are changed in place. What they return stays the same.

    Returns
    -------
    str
        A note; empty if there is no such layer.
    """
    layers = [layer for layer in model.modules() if any(kind.__module__ == _DORA for kind in type(layer).__mro__)]
    for layer in layers:
        layer.forward = partial(_without_detach, layer.forward)
    if not layers:
        return ""
    return (
        f"peft holds the norm of the weight constant in the backward pass of its DoRA layers ({len(layers)}), so its "
        "gradient is not the derivative of the loss. Here the norm is differentiated: gradients and matrices are those "
        "of the loss."
    )


class _Attached(TorchFunctionMode):
    """A context in which ``detach()`` returns the tensor with its graph."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        return args[0] if func is Tensor.detach else func(*args, **(kwargs or {}))


def _without_detach(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _Attached():
        return forward(*args, **kwargs)
