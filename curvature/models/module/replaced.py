"""Whether a module runs the code of its type, or code that replaces it on the instance."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["runs_its_type"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def runs_its_type(layer: nn.Module) -> bool:
    """Decide whether a call of a layer runs the code of its type, and nothing else.

    Parameters
    ----------
    layer
        Any module.

    Returns
    -------
    bool
        False with a hook, its own or a global one, with a method replaced on the instance, and after ``compile()``.
    """
    kind = type(layer)
    for name in _HOOKS:
        if getattr(torch_module, f"_global{name}") or getattr(layer, name):
            return False
    for name in vars(layer):
        if callable(getattr(kind, name, None)):
            return False
    return layer._compiled_call_impl is None
