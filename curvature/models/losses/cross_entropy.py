"""Softmax cross-entropy, with class weights, ignored targets, soft labels, label smoothing and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from curvature.arrays import Float, Num, Shaped
from curvature.errors import ConfigurationError, InputError, NotDefinedError
from curvature.models.losses.loss import Loss, flat_outputs, unweighted

__all__ = ["CrossEntropy"]


@dataclass(frozen=True, eq=False, repr=False)
class CrossEntropy(Loss):
    """Softmax cross-entropy with logits ``(N, C)``, ``(N, C, ...)`` or ``(N, ..., C)``.

    With positions (tokens, pixels), targets ``(N, ...)`` are one class for each. By default the mean is that of
    ``torch.nn.functional.cross_entropy``: over all tokens of all sequences that are not ignored.

    Attributes
    ----------
    weight
        Class weights ``(C,)``.
    ignore_index
        Targets with this class do not count.
    label_smoothing
        As in PyTorch.
    class_axis
        1 for logits ``(N, C, ...)``, as PyTorch has them; -1 for ``(N, ..., C)``, as language models return them; None
        to recognise the axis by the shape of the targets.
    unit
        What the mean is over. ``"token"``: all positions that are not ignored, by their class weights. ``"sequence"``:
        the examples with at least one such position, with the sum over its positions as the loss of each. The total is
        the same, so loss, gradient, Hessian, GGN and Fisher with ``"sequence"`` are those with ``"token"`` times
        tokens / sequences. An example is a sequence with either: its gradient, whose second moment is the empirical
        Fisher, is that of its mean or of its sum, which differ by its number of tokens.
    reduction
        ``"mean"``, or ``"sum"``: without the denominator.
    """

    weight: Float[Tensor, "outputs"] | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_axis: int | None = None
    unit: str = "token"
    name: str = "cross-entropy"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing <= 1:
            raise ConfigurationError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}.")
        if self.class_axis not in (None, 1, -1):
            raise ConfigurationError(
                f"class_axis must be 1 (logits (N, C, ...)) or -1 (logits (N, ..., C)), got {self.class_axis!r}."
            )
        if self.unit not in ("token", "sequence"):
            raise ConfigurationError(f"unit must be 'token' or 'sequence', got {self.unit!r}.")
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

    def classes_last(self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]) -> bool:
        if outputs.ndim < 3 or self.class_axis is not None:
            return outputs.ndim > 2 and self.class_axis == -1
        as_in_pytorch, last = (_fits(outputs, targets, axis) for axis in (1, -1))
        if as_in_pytorch and last:
            raise InputError(
                f"the outputs {tuple(outputs.shape)} fit the targets in two ways: with the classes on the second axis "
                "(PyTorch's cross-entropy) and on the last axis (language models). Pass "
                "loss=cv.CrossEntropy(class_axis=1) or class_axis=-1."
            )
        return last

    def prepare(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Shaped[Tensor, "examples ..."]:
        if outputs.ndim < 2:
            raise InputError(
                f"cross-entropy needs outputs of shape (N, C), the model returns {tuple(outputs.shape)}. "
                "For one logit per example use loss='binary-cross-entropy'."
            )
        num_classes = outputs.shape[1]
        if self.weight is not None and len(self.weight) != num_classes:
            raise InputError(f"{len(self.weight)} class weights were given, the model has {num_classes} outputs.")
        if targets.is_floating_point():
            return _prepared_probabilities(outputs, targets)
        return self._prepared_classes(outputs, targets)

    def _prepared_classes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.dtype == torch.bool or tuple(targets.shape) != _without_classes(outputs):
            axis = {1: " for class_axis=1", -1: " for class_axis=-1"}.get(self.class_axis or 0, "")
            hint = (
                " They fit if the classes are on the last axis, where cv.CrossEntropy(class_axis=-1) and the loss by "
                "its name, 'cross-entropy', find them."
                if self.class_axis == 1 and targets.shape == outputs.shape[:-1]
                else ""
            )
            raise InputError(
                f"cross-entropy targets must be integers of shape {_without_classes(outputs)}{axis}, got "
                f"{targets.dtype} of shape {tuple(targets.shape)}.{hint}"
            )
        targets = targets.long()
        counted = targets[targets != self.ignore_index]
        if not len(counted):
            raise InputError(f"every target equals ignore_index = {self.ignore_index}: nothing is left to average.")
        low, high = int(counted.min()), int(counted.max())
        if low < 0 or high >= outputs.shape[1]:
            raise InputError(
                f"targets must be classes 0 to {outputs.shape[1] - 1} (the model has {outputs.shape[1]} outputs), got "
                f"{low if low == high else f'{low} to {high}'}.{_ignored(low, high)}"
            )
        if self.label_smoothing and self.weight is not None:
            self._refuse_weightless(outputs, counted.unique())
        return targets

    def _refuse_weightless(self, outputs: Tensor, classes: Tensor) -> None:
        """Refuse smoothed examples of a class of weight 0: they add to the loss but not to its denominator."""
        weightless = classes[self._class_weights(outputs)[classes] == 0].tolist()
        if weightless:
            raise InputError(
                f"class {weightless[0]} has weight 0: with label smoothing its examples add to the loss but not to the "
                "denominator of the mean, so they have no weight in the mean. Leave these examples out, or give the "
                "class a weight."
            )

    def terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        elements = functional.cross_entropy(
            outputs,
            targets,
            weight=None if self.weight is None else self._class_weights(outputs),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return elements if elements.ndim == 1 else elements.reshape(len(outputs), -1).sum(dim=1)

    def denominators(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples"]:
        if targets.is_floating_point():
            elements = torch.ones_like(outputs[:, 0])
        else:
            valid = targets != self.ignore_index
            elements = self._class_weights(outputs)[torch.where(valid, targets, 0)] * valid
        counted = elements.reshape(len(outputs), -1).sum(dim=1)
        return counted if self.unit == "token" else (counted > 0).to(outputs)

    def note(self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]) -> str:
        if targets.is_floating_point() or outputs.ndim < 3 or not (ignored := targets == self.ignore_index).any():
            return ""
        sequences = int((~ignored).reshape(len(targets), -1).any(dim=1).sum())
        tokens = f"{ignored.numel() - int(ignored.sum())} of {ignored.numel()} positions that are not ignored"
        if self.unit == "token":
            return f"The loss is the mean over the {tokens}, in {sequences} sequences."
        return f"The loss is the mean over {sequences} sequences, each with the sum over its positions: {tokens}."

    def num_terms(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Num[Tensor, "examples"]:
        return replace(self, weight=None).denominators(outputs, targets)

    def _label_mass(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Total mass of the (weighted, smoothed) soft label per position: the factor of the softmax Hessian."""
        weights = self._class_weights(outputs)
        smoothing = self.label_smoothing
        if targets.is_floating_point():
            smoothed = (1 - smoothing) * targets + smoothing / len(weights)
            return torch.einsum("c, nc... -> n...", weights, smoothed)
        valid = targets != self.ignore_index
        return ((1 - smoothing) * weights[torch.where(valid, targets, 0)] + smoothing * weights.mean()) * valid

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        # With q = sqrt(p), a unit vector, diag(p) - p p^T = diag(q) (I - q q^T) diag(q), and I - q q^T is Q Q^T for any
        # orthonormal basis Q of the complement of q: here the columns but k of the Householder reflection
        # I - u u^T / (1 + q_k), u = q + e_k (Golub & Van Loan 2013, section 5.1). With k the likeliest class nothing
        # cancels, so the entries of S S^T keep their relative accuracy where p (1 - p) would lose it.
        logits = _with_positions(outputs)
        if logits.shape[1] == 1:  # one class is certain for every logit: a column of zeros
            return _block_diagonal(torch.zeros_like(logits)[:, None])
        roots = torch.softmax(logits, dim=1).sqrt()
        likeliest = roots.argmax(dim=1, keepdim=True)
        others = torch.arange(roots.shape[1] - 1, device=roots.device)[:, None]
        others = others + (others >= likeliest)
        kept = roots.gather(1, others)
        reflector = roots.scatter_add(1, likeliest, torch.ones_like(roots[:, :1]))
        columns = (roots * reflector / (1 + roots.gather(1, likeliest)))[:, :, None] * -kept[:, None]
        columns.scatter_add_(1, others[:, None], kept[:, None])
        mass = self._label_mass(outputs, targets).reshape(len(outputs), 1, 1, -1)
        return _block_diagonal(columns * mass.sqrt())

    def hessian_product(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Callable[[Tensor], Tensor]:
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

    def fisher_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs columns"]:
        # The score for label y is p - e_y, drawn with probability p_y: one column per label.
        logits = _with_positions(outputs)
        probabilities = torch.softmax(logits, dim=1)
        identity = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        scores = probabilities[:, :, None] - identity[None, :, :, None]
        mass = self._label_mass(outputs, targets).reshape(len(outputs), 1, 1, -1)
        return _block_diagonal(scores * (probabilities[:, None] * mass).sqrt())

    def sampled_factor(
        self,
        outputs: Float[Tensor, "examples ..."],
        targets: Shaped[Tensor, "examples ..."],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "examples outputs columns"]:
        logits = _with_positions(outputs)
        num, classes, positions = logits.shape
        probabilities = torch.softmax(logits, dim=1)
        table = probabilities.mT.reshape(-1, classes).cpu()
        labels = torch.multinomial(table, num_samples, replacement=True, generator=generator)
        hot = functional.one_hot(labels, classes).to(logits).reshape(num, positions, num_samples, classes)
        scores = probabilities[:, :, None] - hot.permute(0, 3, 2, 1)
        mass = self._label_mass(outputs, targets).reshape(num, 1, 1, -1)
        # Positions are independent, so one joint draw serves them all: cross terms vanish in expectation.
        return (scores * (mass / num_samples).sqrt()).permute(0, 1, 3, 2).reshape(num, -1, num_samples)

    def score(
        self, outputs: Float[Tensor, "examples ..."], targets: Shaped[Tensor, "examples ..."]
    ) -> Float[Tensor, "examples outputs"]:
        if self.label_smoothing:
            raise NotDefinedError(
                f"with label_smoothing={self.label_smoothing:g} the gradient of the loss is not the score of any label "
                "that the model can draw, so no scale makes the empirical Fisher agree with the Fisher in expectation. "
                "Use scale='loss', or a loss without label smoothing."
            )
        gradient = self.gradient(outputs, targets)
        if self.weight is None:
            return gradient
        # One weight for each position, repeated for its classes.
        mass = flat_outputs(self._label_mass(outputs, targets)[:, None].expand_as(outputs))
        return unweighted(gradient, mass)

    def rank_per_example(self, num_outputs: int) -> int:
        return num_outputs - 1

    def __repr__(self) -> str:
        options = [] if self.weight is None else [f"weight of {len(self.weight)} classes"]
        options += [f"ignore_index={self.ignore_index}"] if self.ignore_index != -100 else []
        options += [f"label_smoothing={self.label_smoothing:g}"] if self.label_smoothing else []
        options += [f"class_axis={self.class_axis}"] if self.class_axis is not None else []
        options += [f"unit={self.unit!r}"] if self.unit != "token" else []
        options += [f"reduction={self.reduction!r}"] if self.reduction != "mean" else []
        return f"CrossEntropy({', '.join(options)})"


def _ignored(low: int, high: int) -> str:
    """The option for targets that usually mark what does not count: negative ones, and the 255 of segmentations."""
    marks = [mark for mark in (low, high) if mark < 0 or mark == 255]
    if not marks:
        return ""
    return f" If {marks[0]} marks targets that do not count, pass loss=cv.CrossEntropy(ignore_index={marks[0]})."


def _fits(outputs: Tensor, targets: Tensor, axis: int) -> bool:
    """Whether targets are classes, or probabilities of classes, for logits with the classes on this axis."""
    if targets.is_floating_point():
        total = targets.sum(dim=axis)
        return targets.shape == outputs.shape and torch.allclose(total, torch.ones_like(total), atol=1e-5)
    return targets.shape == outputs.select(axis, 0).shape


def _prepared_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.shape != outputs.shape:
        raise InputError(
            f"cross-entropy targets must be class indices (integers, shape {_without_classes(outputs)}) or class "
            f"probabilities (shape {tuple(outputs.shape)}), got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    total = targets.sum(dim=1)
    if (targets < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-5):
        raise InputError("class probabilities must be >= 0 and sum to 1 for each example.")
    return targets.to(outputs)


def _with_positions(outputs: Tensor) -> Tensor:
    """``(N, C)`` or ``(N, C, ...)`` as ``(N, C, positions)``."""
    return outputs.flatten(2) if outputs.ndim > 2 else outputs[:, :, None]


def _block_diagonal(columns: Tensor) -> Tensor:
    """``(N, C, R, positions)``, independent positions, to ``(N, C * positions, R * positions)``."""
    num, classes, width, positions = columns.shape
    spread = columns.new_zeros(num, classes, positions, width, positions)
    diagonal = torch.arange(positions, device=columns.device)
    spread[:, :, diagonal, :, diagonal] = columns.permute(3, 0, 1, 2)
    return spread.reshape(num, classes * positions, width * positions)


def _without_classes(outputs: Tensor) -> tuple[int, ...]:
    return (outputs.shape[0], *outputs.shape[2:])
