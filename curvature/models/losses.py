r"""Losses: what is averaged over examples, by which denominator, and its curvature in the outputs.

Every loss here is $L = \frac{1}{D} \sum_n \ell_n$ with $\ell_n$ the *sum*-reduced loss of example $n$ and one
explicit denominator $D = \sum_n D_n$, so that class weights, ignored targets and ragged batches are exact
however the data are cut. Example $n$ counts with weight $D_n / D$; its own gradient is that of $\ell_n / D_n$,
what PyTorch's mean reduction gives on a batch that holds this example alone.

The named losses are negative log-likelihoods up to a fixed scale, hence have a Fisher: with the model's own
distribution of labels it equals the GGN. For ``MeanSquaredError`` (PyTorch's convention: mean over outputs, no
1/2) that distribution is Gaussian with variance ``C / 2``; for ``HalfSquaredError`` it has variance 1, and its
curvature is ``C / 2`` times as large.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvature.errors import ConfigurationError, InputError, NotDefinedError

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "HalfSquaredError",
    "Loss",
    "MeanSquaredError",
    "PerExample",
    "refuse_other_reduction",
    "resolve_loss",
]


class Loss(ABC):
    """A loss on ``outputs (N, ...)`` and ``targets (N, ...)``; outputs of one example are flattened to ``M``.

    ``likelihood`` is True where the loss is a negative log-likelihood (up to scale), so that a Fisher exists;
    ``convex`` where its Hessian in the outputs is positive semidefinite by construction.
    """

    name: str
    likelihood: bool = True
    convex: bool = True

    @abstractmethod
    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Check the targets against the outputs; return them in the dtype the loss needs."""

    @abstractmethod
    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r"""Sum-reduced losses $\ell_n$, shape ``(N,)``; twice differentiable in the outputs."""

    def denominators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r"""$D_n$, shape ``(N,)``: what example $n$ adds to the denominator of the mean."""
        del targets
        return outputs.new_ones(len(outputs))

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r"""$\nabla_f \ell_n$, shape ``(N, M)``."""
        variable = outputs.detach().requires_grad_()
        with torch.enable_grad():
            total = self.terms(variable, targets).sum()
        return _flat(torch.autograd.grad(total, variable)[0])

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r"""$S_n$ with $S_n S_n^T = \nabla_f^2 \ell_n$, shape ``(N, M, R)``."""

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        r"""$\nabla_f^2 \ell_n$, shape ``(N, M, M)``."""
        factor = self.hessian_factor(outputs, targets)
        return factor @ factor.mT

    def hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        r"""$T \mapsto \nabla_f^2 \ell_n T$ on rows, ``(N, K, M)`` to ``(N, K, M)``; made once for many products."""
        matrices = self.hessian(outputs, targets)
        return lambda rows: torch.bmm(rows, matrices)

    def fisher_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Factor of the second moment of the score over *all* labels of the model, ``(N, M, R)``."""
        del outputs, targets
        raise NotDefinedError(
            f"the Fisher needs a likelihood, and the loss {self.name!r} is not declared to be one. "
            "Use ggn, empirical_fisher or gradient_covariance, or one of the named losses."
        )

    def sampled_factor(self, outputs: Tensor, targets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Factor of the same second moment over ``num_samples`` labels drawn from the model, ``(N, M, num_samples)``.

        Drawn on the CPU in one call per set of outputs, so that results agree across devices.
        """
        del num_samples, generator
        return self.fisher_factor(outputs, targets)

    def rank_per_example(self, num_outputs: int) -> int:
        """Largest rank that the Hessian in the outputs can have."""
        return num_outputs


@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Softmax cross-entropy with logits ``(N, C)`` or ``(N, C, ...)``, as ``torch.nn.functional.cross_entropy``.

    Attributes
    ----------
    weight
        Class weights ``(C,)``.
    ignore_index
        Targets with this class do not count.
    label_smoothing
        As in PyTorch.
    """

    weight: Tensor | None = field(default=None, repr=False)
    ignore_index: int = -100
    label_smoothing: float = 0.0
    name: str = "cross-entropy"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ConfigurationError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}.")
        if self.weight is not None:
            weight = torch.as_tensor(self.weight)
            if weight.ndim != 1 or not torch.isfinite(weight).all() or (weight < 0).any() or not weight.any():
                raise ConfigurationError(
                    "class weights must be a vector of finite numbers >= 0, not all zero, one per class."
                )
            object.__setattr__(self, "weight", weight.detach().clone())

    def _class_weights(self, outputs: Tensor) -> Tensor:
        if self.weight is None:
            return outputs.new_ones(outputs.shape[1])
        return self.weight.to(outputs)

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim < 2:
            raise InputError(
                f"cross-entropy needs outputs of shape (N, C), the model returns {tuple(outputs.shape)}. "
                "For one logit per example use loss='binary-cross-entropy'."
            )
        num_classes = outputs.shape[1]
        if self.weight is not None and len(self.weight) != num_classes:
            raise InputError(f"{len(self.weight)} class weights were given, the model has {num_classes} outputs.")
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise InputError(
                    f"cross-entropy targets must be class indices (integers, shape {_without_classes(outputs)}) or "
                    f"class probabilities (shape {tuple(outputs.shape)}), got {targets.dtype} of shape "
                    f"{tuple(targets.shape)}."
                )
            total = targets.sum(dim=1)
            if (targets < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-5):
                raise InputError("class probabilities must be >= 0 and sum to 1 for each example.")
            return targets.to(outputs)
        if targets.dtype == torch.bool or tuple(targets.shape) != _without_classes(outputs):
            raise InputError(
                f"cross-entropy targets must be integers of shape {_without_classes(outputs)}, got {targets.dtype} of "
                f"shape {tuple(targets.shape)}."
            )
        targets = targets.long()
        valid = targets != self.ignore_index
        if not valid.any():
            raise InputError(f"every target equals ignore_index = {self.ignore_index}: nothing is left to average.")
        low, high = int(targets[valid].min()), int(targets[valid].max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"targets must be classes 0 to {num_classes - 1} (the model has {num_classes} outputs), got "
                f"{low} to {high}."
            )
        if self.label_smoothing and self.weight is not None:
            used = targets[valid].unique()
            silent = used[self._class_weights(outputs)[used] == 0].tolist()
            if silent:
                raise InputError(
                    f"class {silent[0]} has weight 0: with label smoothing its examples add to the loss but not to the "
                    "denominator of the mean, so no share of the mean is theirs. Leave these examples out, or give "
                    "the class a weight."
                )
        return targets

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(
            outputs,
            targets,
            weight=None if self.weight is None else self._class_weights(outputs),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return each.reshape(len(outputs), -1).sum(dim=1)

    def denominators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            each = torch.ones_like(outputs[:, 0])
        else:
            valid = targets != self.ignore_index
            each = self._class_weights(outputs)[torch.where(valid, targets, 0)] * valid
        return each.reshape(len(outputs), -1).sum(dim=1)

    def _label_mass(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Total mass of the (weighted, smoothed) soft label per position: the factor of the softmax Hessian."""
        weights = self._class_weights(outputs)
        smoothing = self.label_smoothing
        if targets.is_floating_point():
            smoothed = (1 - smoothing) * targets + smoothing / len(weights)
            return torch.einsum("c, nc... -> n...", weights, smoothed)
        valid = targets != self.ignore_index
        return ((1 - smoothing) * weights[torch.where(valid, targets, 0)] + smoothing * weights.mean()) * valid

    def _block_diagonal(self, columns: Tensor) -> Tensor:
        """``(N, C, R, positions)``, independent positions, to ``(N, C * positions, R * positions)``."""
        num, classes, width, positions = columns.shape
        spread = columns.new_zeros(num, classes, positions, width, positions)
        diagonal = torch.arange(positions, device=columns.device)
        spread[:, :, diagonal, :, diagonal] = columns.permute(3, 0, 1, 2)
        return spread.reshape(num, classes * positions, width * positions)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # With q = sqrt(p), a unit vector, diag(p) - p p^T = diag(q) (I - q q^T) diag(q), and I - q q^T is Q Q^T for any
        # orthonormal basis Q of the complement of q: here the columns but k of the Householder reflection
        # I - u u^T / (1 + q_k), u = q + e_k (Golub & Van Loan 2013, section 5.1). With k the likeliest class nothing
        # cancels, so the entries of S S^T keep their relative accuracy where p (1 - p) would lose it.
        logits = outputs.flatten(2) if outputs.ndim > 2 else outputs[:, :, None]
        if logits.shape[1] == 1:  # certain whatever the logit: zeros, since a factor has columns
            return self._block_diagonal(torch.zeros_like(logits)[:, None])
        roots = torch.softmax(logits, dim=1).sqrt()
        likeliest = roots.argmax(dim=1, keepdim=True)
        others = torch.arange(roots.shape[1] - 1, device=roots.device)[:, None]
        others = others + (others >= likeliest)
        kept = roots.gather(1, others)
        reflector = roots.scatter_add(1, likeliest, torch.ones_like(roots[:, :1]))
        columns = (roots * reflector / (1 + roots.gather(1, likeliest)))[:, :, None] * -kept[:, None]
        columns.scatter_add_(1, others[:, None], kept[:, None])
        mass = self._label_mass(outputs, targets).reshape(len(outputs), 1, 1, -1)
        return self._block_diagonal(columns * mass.sqrt())

    def hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        if outputs.ndim > 2:
            return super().hessian_product(outputs, targets)
        probabilities = torch.softmax(outputs, dim=1)[:, None]
        scaled = probabilities * self._label_mass(outputs, targets)[:, None, None]
        likeliest = probabilities.argmax(dim=2, keepdim=True)

        def product(rows: Tensor) -> Tensor:
            # m (diag(p) - p p^T) t = m p (t - p.t), from t less its value at the likeliest class k, where t - p.t would
            # cancel: there it is the sum over the others of p_j (t_k - t_j).
            shifted = rows - rows.gather(2, likeliest.expand(-1, rows.shape[1], -1))
            return shifted.sub_((shifted * probabilities).sum(dim=2, keepdim=True)).mul_(scaled)

        return product

    def fisher_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # The score for label y is p - e_y, drawn with probability p_y: one column per label.
        logits = outputs.flatten(2) if outputs.ndim > 2 else outputs[:, :, None]
        probabilities = torch.softmax(logits, dim=1)
        identity = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        scores = probabilities[:, :, None] - identity[None, :, :, None]
        mass = self._label_mass(outputs, targets).reshape(len(outputs), 1, 1, -1)
        return self._block_diagonal(scores * (probabilities[:, None] * mass).sqrt())

    def sampled_factor(self, outputs: Tensor, targets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        logits = outputs.flatten(2) if outputs.ndim > 2 else outputs[:, :, None]
        num, classes, positions = logits.shape
        probabilities = torch.softmax(logits, dim=1)
        table = probabilities.mT.reshape(-1, classes).cpu()
        labels = torch.multinomial(table, num_samples, replacement=True, generator=generator)
        hot = functional.one_hot(labels, classes).to(logits).reshape(num, positions, num_samples, classes)
        scores = probabilities[:, :, None] - hot.permute(0, 3, 2, 1)
        mass = self._label_mass(outputs, targets).reshape(num, 1, 1, -1)
        # Positions are independent, so one joint draw serves them all: cross terms vanish in expectation.
        return (scores * (mass / num_samples).sqrt()).permute(0, 1, 3, 2).reshape(num, -1, num_samples)

    def rank_per_example(self, num_outputs: int) -> int:
        return num_outputs - 1


class _Elementwise(Loss):
    """A loss that is a sum over output elements, so that its Hessian in the outputs is diagonal."""

    @abstractmethod
    def second_derivative(self, outputs: Tensor) -> Tensor:
        r"""Diagonal of $\nabla_f^2 \ell_n$, shape of the outputs."""

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
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

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return torch.diag_embed(_flat(self.second_derivative(outputs)).sqrt())

    def hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        del targets
        diagonal = _flat(self.second_derivative(outputs))[:, None]
        return lambda rows: diagonal * rows

    def _gaussian_scores(self, outputs: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        shape = (len(outputs), outputs[0].numel(), num_samples)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(outputs)
        return noise * (_flat(self.second_derivative(outputs))[:, :, None] / num_samples).sqrt()


@dataclass(frozen=True)
class BinaryCrossEntropy(_Elementwise):
    """Binary cross-entropy with logits, mean over all elements, as ``torch.nn.BCEWithLogitsLoss``.

    Targets in [0, 1]. The likelihood is an independent Bernoulli per output.
    """

    name: str = "binary-cross-entropy"

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        targets = super().prepare(outputs, targets)
        if (targets < 0).any() or (targets > 1).any():
            raise InputError(
                f"binary cross-entropy targets must be in [0, 1], got {float(targets.min()):g} to "
                f"{float(targets.max()):g}."
            )
        return targets

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return each.reshape(len(outputs), -1).sum(dim=1)

    def denominators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(super().denominators(outputs, targets), outputs[0].numel())

    def second_derivative(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    def fisher_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # Scores sigma - 1 with probability sigma and sigma - 0 with probability 1 - sigma, per output.
        del targets
        one, zero = torch.sigmoid(_flat(outputs)), torch.sigmoid(-_flat(outputs))
        return torch.cat([torch.diag_embed(-zero * one.sqrt()), torch.diag_embed(one * zero.sqrt())], dim=2)

    def sampled_factor(self, outputs: Tensor, targets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        del targets
        chance = torch.sigmoid(_flat(outputs))[:, :, None]
        uniform = torch.rand((*chance.shape[:2], num_samples), generator=generator, dtype=torch.float64).to(outputs)
        return (chance - (uniform < chance).to(outputs)) / num_samples**0.5


@dataclass(frozen=True)
class HalfSquaredError(_Elementwise):
    r"""$\ell_n = \tfrac12 \|f_n - y_n\|^2$, summed over outputs: its GGN is its Fisher at unit variance."""

    name: str = "half-squared-error"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * ((outputs - targets) ** 2).reshape(len(outputs), -1).sum(dim=1)

    def second_derivative(self, outputs: Tensor) -> Tensor:
        return torch.ones_like(outputs)

    def fisher_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # The score of N(f, sigma^2) is (f - y) / sigma^2, of variance 1 / sigma^2 = the second derivative.
        return self.hessian_factor(outputs, targets)

    def sampled_factor(self, outputs: Tensor, targets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        del targets
        return self._gaussian_scores(outputs, num_samples, generator)


@dataclass(frozen=True)
class MeanSquaredError(HalfSquaredError):
    r"""PyTorch's ``nn.MSELoss()``: mean over examples *and* outputs, no 1/2.

    Its curvature is ``2 / C`` times that of half squared error.
    """

    name: str = "mean-squared-error"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2.0 * super().terms(outputs, targets)

    def denominators(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(super().denominators(outputs, targets), outputs[0].numel())

    def second_derivative(self, outputs: Tensor) -> Tensor:
        return torch.full_like(outputs, 2.0)


@dataclass(frozen=True)
class PerExample(Loss):
    """A user's loss: ``function(output, target) -> scalar`` for *one* example, averaged over examples.

    It is differentiated by ``torch.func``, so it must be written in torch operations without data-dependent
    control flow. No likelihood is assumed: there is no Fisher.
    """

    function: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    name: str = "custom"
    likelihood: bool = field(default=False, init=False)
    convex: bool = field(default=False, init=False)

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            targets = targets.to(outputs)
        try:
            values = self.terms(outputs[:1], targets[:1])
        except Exception as error:  # anything may come out of a user's function
            raise InputError(
                f"the loss {self.name!r} failed on one example (output of shape {tuple(outputs.shape[1:])}, target of "
                f"shape {tuple(targets.shape[1:])}): {error}"
            ) from error
        if values.shape != (1,):
            raise InputError(
                f"the loss {self.name!r} must return one scalar per example, got shape {tuple(values.shape[1:])}."
            )
        return targets

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.func.vmap(self.function)(outputs, targets)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        second = torch.func.vmap(torch.func.hessian(self.function))(outputs, targets)
        size = outputs[0].numel()
        return second.reshape(len(outputs), size, size)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(self.hessian(outputs, targets))
        if (values < -100 * torch.finfo(values.dtype).eps * values.abs().max()).any():
            raise NotDefinedError(
                f"the loss {self.name!r} is not convex in the outputs here, so its GGN has no factor; "
                "use the dense route (method='dense')."
            )
        return vectors * values.clamp(min=0).sqrt()[:, None]


LOSSES: dict[str, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "binary-cross-entropy": BinaryCrossEntropy,
    "bce": BinaryCrossEntropy,
    "mean-squared-error": MeanSquaredError,
    "mse": MeanSquaredError,
    "half-squared-error": HalfSquaredError,
}


def refuse_other_reduction(loss: PerExample, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a user's function that, given all examples at once, is neither the mean nor the sum over single ones.

    Such a function (class weights, ignored targets, a denominator of its own) was written for batches, and its mean
    over examples is another loss. A function that takes one example only passes; :class:`PerExample`, built by the
    user, declares that it is meant so.
    """
    if len(outputs) < 2:
        return
    each = loss.terms(outputs, targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shapes that PyTorch warns about are no batches for this function
            together = torch.as_tensor(loss.function(outputs.clone(), targets.clone()))
    except Exception:  # anything may come out of a user's function; it does not take batches
        return
    if together.numel() != 1 or not torch.isfinite(each).all():
        return
    near = 1e4 * torch.finfo(outputs.dtype).eps * float(each.abs().sum())
    if any(abs(float(together) - float(own)) <= near for own in (each.mean(), each.sum())):
        return
    raise InputError(
        f"the loss {loss.name!r} of all {len(each)} examples at once is {float(together):.6g}, the mean of its values "
        f"for single examples {float(each.mean()):.6g}, their sum {float(each.sum()):.6g}: it is called with one "
        "example at a time, so what it divides by in a batch (class weights, ignored targets) is lost. Use "
        "CrossEntropy(weight=..., ignore_index=...), or PerExample(function) if it is meant for single examples."
    )


def resolve_loss(loss: str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Turn what users have into a :class:`Loss`: a name, a ``Loss``, a ``torch.nn`` loss module, or a callable.

    >>> resolve_loss("mse").name
    'mean-squared-error'
    """
    if isinstance(loss, Loss):
        return loss
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
    kinds = (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss)
    if type(module) not in kinds:
        raise ConfigurationError(
            f"the loss module {type(module).__name__} is not supported by its type; pass a callable "
            "loss(output, target) for one example instead."
        )
    if module.reduction != "mean":
        raise ConfigurationError(
            f"{type(module).__name__} has reduction={module.reduction!r}; curvature is that of the *mean* loss. "
            "Use reduction='mean'."
        )
    if isinstance(module, nn.CrossEntropyLoss):
        return CrossEntropy(module.weight, module.ignore_index, module.label_smoothing)
    if isinstance(module, nn.MSELoss):
        return MeanSquaredError()
    if module.weight is not None or module.pos_weight is not None:
        raise ConfigurationError(
            "BCEWithLogitsLoss with weight or pos_weight is not supported by its type; pass a callable "
            "loss(output, target) for one example instead."
        )
    return BinaryCrossEntropy()


def _flat(outputs: Tensor) -> Tensor:
    """Outputs ``(N, ...)`` as ``(N, M)``; a model that returns ``(N,)`` has one output."""
    return outputs.reshape(len(outputs), -1)


def _without_classes(outputs: Tensor) -> tuple[int, ...]:
    return (outputs.shape[0], *outputs.shape[2:])
