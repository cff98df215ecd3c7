"""The losses by name, and what users may pass instead of a name."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from curvature.errors import ConfigurationError
from curvature.models.losses.cross_entropy import CrossEntropy
from curvature.models.losses.distributions import (
    BinaryCrossEntropyOfProbabilities,
    GaussianLikelihood,
    PoissonLikelihood,
)
from curvature.models.losses.elementwise import BinaryCrossEntropy, HalfSquaredError, MeanSquaredError
from curvature.models.losses.log_probabilities import KullbackLeibler, NegativeLogLikelihood
from curvature.models.losses.loss import Loss
from curvature.models.losses.model_loss import ModelLoss
from curvature.models.losses.per_example import PerExample
from curvature.models.losses.robust import AbsoluteError, Huber, SmoothL1

__all__ = ["LOSSES", "LossLike", "named_loss", "resolve_loss"]

LossLike = str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "binary-cross-entropy": BinaryCrossEntropy,
    "bce": BinaryCrossEntropy,
    "mean-squared-error": MeanSquaredError,
    "mse": MeanSquaredError,
    "half-squared-error": HalfSquaredError,
    "nll": NegativeLogLikelihood,
    "kl-div": KullbackLeibler,
    "bce-of-probabilities": BinaryCrossEntropyOfProbabilities,
    "poisson-nll": PoissonLikelihood,
    "gaussian-nll": GaussianLikelihood,
    "huber": Huber,
    "smooth-l1": SmoothL1,
    "l1": AbsoluteError,
}
_SUM = "-sum"


def resolve_loss(loss: LossLike) -> Loss:
    """Turn what users have into a :class:`Loss`.

    Parameters
    ----------
    loss
        A name in :data:`LOSSES`, also with ``-sum`` at its end, ``"model"`` for the loss that the module returns, a
        ``Loss``, a ``torch.nn`` loss module with the reduction ``"mean"`` or ``"sum"``, the function of such a module
        from ``torch.nn.functional``, or a callable ``loss(output, target) -> scalar`` for one example.

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
    >>> resolve_loss("mse").name, resolve_loss("mse-sum").reduction
    ('mean-squared-error', 'sum')
    """
    if isinstance(loss, Loss):
        return loss
    if loss == "model":
        return ModelLoss()
    if isinstance(loss, str):
        return named_loss(loss)
    if isinstance(loss, nn.Module):
        return _from_torch(loss)
    if isinstance(loss, type):
        raise ConfigurationError(
            f"loss={loss.__name__} is a class, so it cannot be called with outputs and targets. Pass an "
            f"instance: loss={'nn.' * issubclass(loss, nn.Module)}{loss.__name__}()."
        )
    if isinstance(loss, Hashable) and loss in _FUNCTIONS:
        return _from_torch(_FUNCTIONS[loss]())
    if callable(loss):
        return PerExample(loss, name=getattr(loss, "__name__", "custom"))
    raise ConfigurationError(f"loss must be a name, a Loss, a torch.nn loss or a callable, got {type(loss).__name__}.")


def named_loss(name: str) -> Loss:
    """Make a loss by its name.

    Parameters
    ----------
    name
        A name in :data:`LOSSES`; with ``-sum`` at its end, without the denominator of the mean.

    Returns
    -------
    Loss
        With its default options.

    Raises
    ------
    ConfigurationError
        If the name is unknown.
    """
    if name in LOSSES:
        return LOSSES[name]()
    base = name.removesuffix(_SUM)
    if base in LOSSES and base != name:
        loss: Any = LOSSES[base]()
        return replace(loss, reduction="sum")
    raise ConfigurationError(
        f"loss {name!r} is unknown; choose one of {', '.join(LOSSES)} ({_SUM} at the end of a name: the sum over "
        "examples and outputs instead of their mean), or pass a callable."
    )


def _from_torch(module: nn.Module) -> Loss:
    if type(module) not in _TORCH_LOSSES:
        raise ConfigurationError(
            f"the loss module {type(module).__name__} is not supported by its type; pass a callable "
            "loss(output, target) for one example instead, and every matrix is that of its mean over examples."
        )
    if changed := _changes(module):
        raise ConfigurationError(
            f"the loss module {type(module).__name__} has {changed}, so it may compute another function than its type. "
            "Pass a callable loss(output, target) for one example instead, and every matrix is that of its mean over "
            "examples."
        )
    if trained := [name for name, tensor in _tensors(module).items() if tensor.requires_grad]:
        raise ConfigurationError(
            f"{trained[0]} of the loss {type(module).__name__} requires a gradient, but the loss depends on it in "
            "another way than through the outputs of the model, so no matrix would have rows for it. If it is "
            f"constant, pass {trained[0]}.detach(). If it is trained, make it a parameter of the module and apply it "
            "in forward."
        )
    if module.reduction == "none":
        raise ConfigurationError(
            f"{type(module).__name__} has reduction='none', but curvature needs a scalar loss. Use reduction='mean' "
            "or reduction='sum'."
        )
    return _TORCH_LOSSES[type(module)](module)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _changes(module: nn.Module) -> str:
    """Name what makes a module another function than its type; empty if there is nothing."""
    replaced = [name for name in vars(module) if callable(getattr(type(module), name, None))]
    if replaced:
        return f"{replaced[0]} replaced on the instance"
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return "a hook" if any(hooks) else ""


def _from_cross_entropy(module: nn.CrossEntropyLoss) -> Loss:
    loss = CrossEntropy(module.weight, module.ignore_index, module.label_smoothing, class_axis=1)
    return loss if module.reduction == "mean" else replace(loss, reduction=module.reduction)


# Matched by exact type: a subclass may compute anything.
_TORCH_LOSSES: dict[type[nn.Module], Callable[..., Loss]] = {
    nn.CrossEntropyLoss: _from_cross_entropy,
    nn.BCEWithLogitsLoss: lambda m: BinaryCrossEntropy(m.weight, m.pos_weight, reduction=m.reduction),
    nn.MSELoss: lambda m: MeanSquaredError(reduction=m.reduction),
    nn.NLLLoss: lambda m: NegativeLogLikelihood(m.weight, m.ignore_index, reduction=m.reduction),
    nn.KLDivLoss: lambda m: KullbackLeibler(m.log_target, reduction=m.reduction),
    nn.BCELoss: lambda m: BinaryCrossEntropyOfProbabilities(m.weight, reduction=m.reduction),
    nn.PoissonNLLLoss: lambda m: PoissonLikelihood(m.log_input, m.full, m.eps, reduction=m.reduction),
    nn.GaussianNLLLoss: lambda m: GaussianLikelihood(m.full, m.eps, reduction=m.reduction),
    nn.HuberLoss: lambda m: Huber(m.delta, reduction=m.reduction),
    nn.SmoothL1Loss: lambda m: SmoothL1(m.beta, reduction=m.reduction),
    nn.L1Loss: lambda m: AbsoluteError(reduction=m.reduction),
}

# With their default options, these are the modules: on one example at a time some would divide by another number.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    functional.nll_loss: nn.NLLLoss,
    functional.kl_div: nn.KLDivLoss,
    functional.binary_cross_entropy: nn.BCELoss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
    functional.huber_loss: nn.HuberLoss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.l1_loss: nn.L1Loss,
}
