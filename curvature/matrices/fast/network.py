"""Which models are sequences of convolutions, linear layers, activations and pooling, and their forward pass.

Tangents and cotangents of many columns are ``(n, size, columns)``: a point of the network is flattened as PyTorch
flattens it, channel by channel, so that ``Flatten`` changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvature.matrices.fast.chain import ELEMENTWISE, NEUTRAL, activate, leaves_of, matmul
from curvature.models import Problem

__all__ = ["Fixed", "Network", "Pointwise", "Select", "Step", "Trace", "Weighted", "forward", "network_of"]

CONVOLUTIONS = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}
# In eval mode with fixed factors: an affine function of each element.
NORMS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
# Linear maps without weights that keep channels apart, by the number of spatial axes.
SPATIAL = {
    **dict.fromkeys((nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.ZeroPad1d), 1),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d), 2),
    **dict.fromkeys((nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.ZeroPad3d), 3),
}
MAXIMA = {
    **dict.fromkeys((nn.MaxPool1d, nn.AdaptiveMaxPool1d), 1),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool2d), 2),
    **dict.fromkeys((nn.MaxPool3d, nn.AdaptiveMaxPool3d), 3),
}
KINDS = (nn.Linear, nn.Flatten, *ELEMENTWISE, *NEUTRAL, *CONVOLUTIONS, *NORMS, *SPATIAL, *MAXIMA)

# A convolution of small images is one matrix for all examples, and matrix products are the faster until the image has
# about so many times more positions than the kernel (measured on one thread).
_MATRIX_RATIO = 16
_MATRIX_BYTES = 64 * 2**20
_KEPT_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Pointwise:
    """Elementwise functions in a row."""

    modules: tuple[nn.Module, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Select:
    """A maximum over windows: each output is one of the inputs."""

    module: nn.Module
    before: tuple[int, ...]
    shape: tuple[int, ...]

    def push(self, block: Tensor, chosen: Tensor) -> Tensor:
        """Tangents, ``chosen (n, outputs)`` the inputs that are the maxima."""
        return block.gather(1, chosen[:, :, None].expand(-1, -1, block.shape[2]))

    def pull(self, block: Tensor, chosen: Tensor) -> Tensor:
        """Cotangents."""
        found = block.new_zeros(len(block), prod(self.before), block.shape[2])
        return found.scatter_add_(1, chosen[:, :, None].expand_as(block), block)


@dataclass(frozen=True, eq=False)
class Fixed:
    """A linear map without weights that acts on each channel alone."""

    module: nn.Module
    before: tuple[int, ...]
    shape: tuple[int, ...]

    def push(self, block: Tensor) -> Tensor:
        """Tangents."""
        return _by_columns(self.module, block, self.before)

    def pull(self, block: Tensor) -> Tensor:
        """Cotangents."""
        return _by_columns(_transposed(self.module, self.before), block, self.shape)


@dataclass(frozen=True, eq=False)
class Weighted:
    r"""A linear layer or a convolution: $z[t, o] = \sum_i W[o, i]\, a[t, i]$ on ``T`` patches of ``fan_in`` numbers."""

    path: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    weight_slice: slice | None
    bias_slice: slice | None
    before: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def fan_out(self) -> int:
        return self.weight.shape[0]

    @property
    def fan_in(self) -> int:
        return self.weight[0].numel()

    @property
    def columns(self) -> int:
        """Length of an augmented row: inputs, and 1 if there is a bias."""
        return self.fan_in + (self.bias is not None)

    @property
    def positions(self) -> int:
        return prod(self.shape[1:])

    @property
    def num_weights(self) -> int:
        return self.fan_out * self.columns

    @property
    def trained(self) -> bool:
        return self.weight_slice is not None or self.bias_slice is not None

    @property
    def places(self) -> list[tuple[slice, slice]]:
        """Where the columns of augmented rows go: ``(columns, slice of the layout)``; frozen parts go nowhere."""
        parts = [(slice(0, self.fan_in), self.weight_slice), (slice(self.fan_in, None), self.bias_slice)]
        return [(columns, place) for columns, place in parts if place is not None]

    @property
    def by_outputs(self) -> bool:
        """Whether its outputs are fewer than its weights: what derivatives are taken by before the last step."""
        return self.fan_out * self.positions <= self.num_weights

    def linear(self, signal: Tensor) -> Tensor:
        """The layer without its bias, ``(n, *before)``."""
        if isinstance(self.module, nn.Linear):
            return functional.linear(signal, self.weight)
        convolve, m = CONVOLUTIONS[type(self.module)], self.module
        return convolve(signal, self.weight, None, m.stride, m.padding, m.dilation)

    @cached_property
    def matrix(self) -> Tensor | None:
        """The layer as one matrix ``(outputs, inputs)``; None where that is mostly zeros and many."""
        if isinstance(self.module, nn.Linear):
            return self.weight
        inputs, outputs = prod(self.before), prod(self.shape)
        size = inputs * outputs * self.weight.element_size()
        if inputs > _MATRIX_RATIO * self.fan_in or size > _MATRIX_BYTES:
            return None
        return self.spread(self.weight.reshape(1, self.fan_out, self.fan_in))[0]

    def spread(self, weights: Tensor) -> Tensor:
        """Weights ``(K, O, fan_in)`` to the matrices ``(K, outputs, inputs)`` of the layer."""
        if isinstance(self.module, nn.Linear):
            return weights
        found = weights.new_zeros(len(weights), self.fan_out, self.positions, prod(self.before) + 1)
        found.scatter_(3, *(part.expand(*found.shape[:3], -1) for part in (self.taps, weights[:, :, None])))
        return found[..., :-1].flatten(1, 2)

    def gather(self, matrices: Tensor) -> Tensor:
        """The transpose of :meth:`spread`."""
        if isinstance(self.module, nn.Linear):
            return matrices
        padded = torch.cat([matrices, torch.zeros_like(matrices[..., :1])], dim=-1)
        padded = padded.unflatten(1, (self.fan_out, self.positions))
        return padded.gather(3, self.taps.expand(*padded.shape[:3], -1)).sum(dim=2)

    def push(self, block: Tensor) -> Tensor:
        """Tangents."""
        if self.matrix is not None:
            return matmul(self.matrix, block)
        return _by_columns(self.linear, block, self.before)

    def pull(self, block: Tensor) -> Tensor:
        """Cotangents."""
        if self.matrix is not None:
            return matmul(self.matrix.T, block)
        return _by_columns(_transposed(self.linear, self.before), block, self.shape)

    @cached_property
    def taps(self) -> Tensor:
        """Which input each number of each patch is, ``(T, fan_in)``; one more than the last input where it is padding.

        Position ``t`` and tap ``k`` of an axis meet at ``t * stride + k * dilation - padding``.
        """
        m, sizes = self.module, self.before[1:]
        where = torch.zeros(1, 1, dtype=torch.long)
        inside = torch.ones(1, 1, dtype=torch.bool)
        for axis, size in enumerate(sizes):
            reach = m.dilation[axis] * (m.kernel_size[axis] - 1)
            padding = {"valid": 0, "same": reach // 2}[m.padding] if isinstance(m.padding, str) else m.padding[axis]
            positions = torch.arange(self.shape[1 + axis])[:, None] * m.stride[axis]
            reached = positions + torch.arange(m.kernel_size[axis]) * m.dilation[axis] - padding
            where = where[:, None, :, None] * size + reached[None, :, None]
            inside = inside[:, None, :, None] & ((reached >= 0) & (reached < size))[None, :, None]
            where, inside = where.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1)
        channels = torch.arange(self.before[0])[:, None] * prod(sizes)
        index = torch.where(inside[:, None], channels + where[:, None], prod(self.before)).flatten(1)
        return index.to(self.weight.device)

    def patches(self, block: Tensor) -> Tensor:
        """Numbers ``(n, inputs, ...)`` as patches ``(n, T, fan_in, ...)``."""
        if isinstance(self.module, nn.Linear):
            return block[:, None]
        if int(self.taps.max()) == block.shape[1]:
            block = torch.cat([block, torch.zeros_like(block[:, :1])], dim=1)
        return block.index_select(1, self.taps.flatten()).unflatten(1, self.taps.shape)


Step = Pointwise | Select | Fixed | Weighted


@dataclass(frozen=True, eq=False)
class Network:
    """A problem whose model is a sequence of steps with at least one convolution."""

    problem: Problem
    before: tuple[nn.Module, ...]
    steps: tuple[Step, ...]
    shape: tuple[int, ...]

    @cached_property
    def trained(self) -> list[int]:
        """Places of the layers that hold weights of the layout."""
        return [s for s, step in enumerate(self.steps) if isinstance(step, Weighted) and step.trained]

    @property
    def linearizes(self) -> bool:
        """Whether products are worth linearizing once: small images, and what is kept of all examples fits."""
        _, *later = (step for step in self.steps if isinstance(step, Weighted))
        return self.trace_bytes <= _KEPT_BYTES and all(layer.matrix is not None for layer in later)

    @property
    def trace_bytes(self) -> int:
        """Signals and patches of all examples."""
        kept = sum(prod(step.shape) for step in self.steps)
        kept += sum(step.positions * step.columns for step in self.steps if isinstance(step, Weighted))
        return self.problem.num_examples * kept * self.problem.weights.element_size()

    @property
    def contraction_cost(self) -> int:
        """Multiplications for a dense matrix, per example, where there is no factor."""
        layers = [self.steps[s] for s in self.trained]
        own = sum(layer.positions * layer.num_weights**2 // 2 for layer in layers if layer.by_outputs)
        return own + sum(
            layer.positions * layer.num_weights * other.num_weights
            for place, layer in enumerate(layers)
            for other in layers[:place]
        )

    def behind(self, place: int) -> int:
        """Place of the next layer with weights, trained or not; the number of steps if there is none."""
        later = (s for s in range(place + 1, len(self.steps)) if isinstance(self.steps[s], Weighted))
        return next(later, len(self.steps))


def network_of(problem: Problem) -> Network | None:
    """Read the model as a sequence of steps; None if it is anything else, or has no convolution."""
    modules = leaves_of(problem.model, KINDS)
    if modules is None or problem.aliases or not problem.inputs.is_floating_point():
        return None
    parameters = [p for _, module in modules for p in module.parameters()]
    if len({id(p) for p in parameters}) < len(parameters) or not any(type(m) in CONVOLUTIONS for _, m in modules):
        return None
    signal = problem.inputs[:1].expand(2, *problem.inputs.shape[1:])
    before: list[nn.Module] = []
    steps: list[Step] = []
    with torch.no_grad():
        for path, module in modules:
            given = signal
            if not _acts_on_examples(module, signal):
                return None
            signal = module(signal.clone())
            if len(signal) != 2:
                return None
            step = _step(problem, path, module, tuple(given.shape[1:]), tuple(signal.shape[1:]))
            if isinstance(step, Weighted) or any(isinstance(known, Weighted) for known in steps):
                if isinstance(step, Pointwise) and isinstance(steps[-1], Pointwise) and step.shape == steps[-1].shape:
                    step = Pointwise((*steps.pop().modules, *step.modules), step.shape)
                if step is not None:
                    steps.append(step)
            else:
                before.append(module)
    trained = {name.rpartition(".")[0] for name in problem.layout.slices}
    if any(type(module) in NORMS and path in trained for path, module in modules):
        return None
    return Network(problem, tuple(before), tuple(steps), tuple(signal.shape[1:]))


def _acts_on_examples(module: nn.Module, signal: Tensor) -> bool:
    """Whether the module takes the first axis as examples and knows nothing that this file does not."""
    kind = type(module)
    if kind is nn.Linear:
        return signal.ndim == 2
    if kind in CONVOLUTIONS:
        axes = len(module.kernel_size)
        return signal.ndim == 2 + axes and module.groups == 1 and module.padding_mode == "zeros"
    if kind in NORMS:
        return signal.ndim in NORMS[kind] and module.running_mean is not None and not module.training
    if kind in SPATIAL or kind in MAXIMA:
        axes = SPATIAL.get(kind) or MAXIMA[kind]
        return signal.ndim == 2 + axes and not getattr(module, "return_indices", False)
    return True


def _step(
    problem: Problem, path: str, module: nn.Module, before: tuple[int, ...], shape: tuple[int, ...]
) -> Step | None:
    kind = type(module)
    if kind is nn.Linear or kind in CONVOLUTIONS:
        named, slices = problem.unflatten(problem.weights), problem.layout.slices
        names = [f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias")]
        weight = named.get(names[0], module.weight).detach()
        bias = named.get(names[1], module.bias)
        return Weighted(path, module, weight, bias, slices.get(names[0]), slices.get(names[1]), before, shape)
    if kind in ELEMENTWISE or kind in NORMS:
        return Pointwise((module,), shape)
    if kind in SPATIAL:
        return Fixed(module, before, shape)
    if kind in MAXIMA:
        module = copy.copy(module)
        module.return_indices = True
        return Select(module, before, shape)
    return None  # Flatten, Identity, Dropout in eval mode


@dataclass(frozen=True, eq=False)
class Trace:
    """What a few examples leave behind on their way, by place of the step.

    ``rows``: augmented patches ``(n, T, columns)`` of the layers; ``slopes`` and ``bends``: derivatives ``(n, size)``
    of the elementwise functions; ``chosen``: inputs that are maxima, ``(n, outputs)``.
    """

    outputs: Tensor
    rows: dict[int, Tensor]
    slopes: dict[int, Tensor]
    bends: dict[int, Tensor]
    chosen: dict[int, Tensor]


def forward(network: Network, where: slice, order: int) -> Trace:
    """Forward pass of a few examples; ``order`` of the derivatives of elementwise functions."""
    # A clone: modules may work in place.
    signal = reduce(lambda value, module: module(value), network.before, network.problem.inputs[where].clone())
    count = len(signal)
    trace = Trace(signal, {}, {}, {}, {})
    for s, step in enumerate(network.steps):
        if isinstance(step, Weighted):
            rows = step.patches(signal.reshape(count, -1))
            if step.bias is not None:
                rows = torch.cat([rows, torch.ones_like(rows[:, :, :1])], dim=2)
            trace.rows[s] = rows
            signal = step.linear(signal.reshape(count, *step.before))
            if step.bias is not None:
                signal = signal + step.bias.view(-1, *[1] * (signal.ndim - 2))
        elif isinstance(step, Pointwise):
            signal, *derivatives = activate(step.modules, signal.reshape(count, *step.shape), order)
            for known, derivative in zip((trace.slopes, trace.bends), derivatives, strict=False):
                known[s] = derivative.reshape(count, -1)
        elif isinstance(step, Select):
            signal, index = step.module(signal.reshape(count, *step.before))
            channel = torch.arange(step.before[0], device=index.device)[:, None] * prod(step.before[1:])
            trace.chosen[s] = (index.flatten(2) + channel).flatten(1)
        else:
            signal = step.module(signal.reshape(count, *step.before))
    return replace(trace, outputs=signal.reshape(count, *network.shape))


def _by_columns(function: Callable[[Tensor], Tensor], block: Tensor, before: tuple[int, ...]) -> Tensor:
    """Apply a function of ``(m, *before)`` to the columns of ``(n, inputs, columns)``."""
    count, _, columns = block.shape
    found = function(block.mT.reshape(count * columns, *before))
    return found.reshape(count, columns, -1).mT.contiguous()


def _transposed(function: Callable[[Tensor], Tensor], before: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The transpose of a linear function of ``(m, *before)``."""

    def pull(cotangents: Tensor) -> Tensor:
        origin = cotangents.new_zeros(len(cotangents), *before)
        return torch.func.vjp(function, origin)[1](cotangents)[0]

    return pull
