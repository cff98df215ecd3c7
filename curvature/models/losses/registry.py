"""The losses by name, and what users may pass instead of a name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from curvature.errors import ConfigurationError
from curvature.models.losses.cross_entropy import CrossEntropy
from curvature.models.losses.elementwise import BinaryCrossEntropy, HalfSquaredError, MeanSquaredError
from curvature.models.losses.loss import Loss
from curvature.models.losses.model_loss import ModelLoss
from curvature.models.losses.per_example import PerExample

__all__ = ["LOSSES", "LossLike", "resolve_loss"]

LossLike = str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "binary-cross-entropy": BinaryCrossEntropy,
    "bce": BinaryCrossEntropy,
    "mean-squared-error": MeanSquaredError,
    "mse": MeanSquaredError,
    "half-squared-error": HalfSquaredError,
}


def resolve_loss(loss: LossLike) -> Loss:
    """Turn what users have into a :class:`Loss`.

    Parameters
    ----------
    loss
        A name in :data:`LOSSES`, ``"model"`` for the loss that the module returns, a ``Loss``, a ``torch.nn`` loss
        module with mean reduction, or a callable ``loss(output, target) -> scalar`` for one example.

    Returns
    -------
    Loss
        The same loss with its denominators and derivatives.

    Raises
    ------
    ConfigurationError
        If the name is unknown, or the module is not supported.

    Examples
    --------
    >>> resolve_loss("mse").name
    'mean-squared-error'
    """
    if isinstance(loss, Loss):
        return loss
    if loss == "model":
        return ModelLoss()
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ConfigurationError(
                f"loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}, or pass a callable."
            )
        return LOSSES[loss]()
    if isinstance(loss, nn.Module):
        return _from_torch(loss)
    if callable(loss):
        return PerExample(loss, name=getattr(loss, "__name__", "custom"))
    raise ConfigurationError(f"loss must be a name, a Loss, a torch.nn loss or a callable, got {type(loss).__name__}.")


def _from_torch(module: nn.Module) -> Loss:
    if type(module) not in _TORCH_LOSSES:
        raise ConfigurationError(
            f"the loss module {type(module).__name__} is not supported by its type; pass a callable "
            "loss(output, target) for one example instead."
        )
    if module.reduction != "mean":
        raise ConfigurationError(
            f"{type(module).__name__} has reduction={module.reduction!r}; curvature is that of the *mean* loss. "
            "Use reduction='mean'."
        )
    return _TORCH_LOSSES[type(module)](module)


def _from_cross_entropy(module: nn.CrossEntropyLoss) -> Loss:
    return CrossEntropy(module.weight, module.ignore_index, module.label_smoothing, class_axis=1)


def _from_binary_cross_entropy(module: nn.BCEWithLogitsLoss) -> Loss:
    if module.weight is not None or module.pos_weight is not None:
        raise ConfigurationError(
            "BCEWithLogitsLoss with weight or pos_weight is not supported by its type; pass a callable "
            "loss(output, target) for one example instead."
        )
    return BinaryCrossEntropy()


# Matched by exact type: a subclass may compute anything.
_TORCH_LOSSES: dict[type[nn.Module], Callable[..., Loss]] = {
    nn.CrossEntropyLoss: _from_cross_entropy,
    nn.BCEWithLogitsLoss: _from_binary_cross_entropy,
    nn.MSELoss: lambda _module: MeanSquaredError(),
}
