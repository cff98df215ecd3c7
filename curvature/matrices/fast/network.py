"""Sequences of convolutions, linear layers, activations and pooling: their structure, and the forward pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import prod

import torch
from torch import Tensor, nn

from curvature.arrays import Float, Int
from curvature.matrices.fast.chain import ELEMENTWISE, NEUTRAL, activate, leaves_of, shares_parameters
from curvature.matrices.fast.steps import CONVOLUTIONS, Fixed, Pointwise, Select, Step, Weighted
from curvature.models import Problem

__all__ = ["Network", "Trace", "forward", "network_of"]

# Batch normalization in eval mode with frozen parameters is an affine function of each element. Allowed dimensions.
NORMS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
# Linear maps without weights that act on each channel separately, with the number of spatial axes.
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

_KEPT_BYTES = 2**30  # limit for the signals of all examples that are kept between products


@dataclass(frozen=True, eq=False)
class Network:
    """A problem whose model is a sequence of steps with at least one convolution.

    Attributes
    ----------
    problem
        Model, loss and data, at a point.
    before
        Modules before the first layer with weights.
    steps
        Steps from the first layer with weights on.
    shape
        Shape of the outputs of one example.
    """

    problem: Problem
    before: tuple[nn.Module, ...]
    steps: tuple[Step, ...]
    shape: tuple[int, ...]

    @cached_property
    def trained(self) -> list[int]:
        """Indices of the layers with trained weights."""
        return [s for s, step in enumerate(self.steps) if isinstance(step, Weighted) and step.trained]

    def layer(self, place: int) -> Weighted:
        """Return a step that is a layer with weights.

        Parameters
        ----------
        place
            Its index.

        Returns
        -------
        Weighted
            The layer.
        """
        step = self.steps[place]
        assert isinstance(step, Weighted)
        return step

    @property
    def linearizes(self) -> bool:
        """Whether products should linearize the network once: for small images, if the kept signals fit in 1 GB."""
        _, *later = (step for step in self.steps if isinstance(step, Weighted))
        return self.trace_bytes <= _KEPT_BYTES and all(layer.matrix is not None for layer in later)

    @property
    def trace_bytes(self) -> int:
        """Memory of the signals and patches of all examples."""
        kept = sum(prod(step.shape) for step in self.steps)
        kept += sum(step.positions * step.columns for step in self.steps if isinstance(step, Weighted))
        return self.problem.num_examples * kept * self.problem.weights.element_size()

    @property
    def contraction_cost(self) -> int:
        """Multiplications for the entries by :mod:`~curvature.matrices.fast.convolution`, per example."""
        layers = [self.layer(s) for s in self.trained]
        own = sum(layer.positions * layer.num_weights**2 // 2 for layer in layers if layer.by_outputs)
        return own + sum(
            layer.positions * layer.num_weights * other.num_weights
            for place, layer in enumerate(layers)
            for other in layers[:place]
        )

    def behind(self, place: int) -> int:
        """Find the next layer with weights, trained or not.

        Parameters
        ----------
        place
            Index of a step.

        Returns
        -------
        int
            Index of the layer; the number of steps if there is none.
        """
        later = (s for s in range(place + 1, len(self.steps)) if isinstance(self.steps[s], Weighted))
        return next(later, len(self.steps))


def network_of(problem: Problem) -> Network | None:
    """Read the model of a problem as a sequence of steps.

    Parameters
    ----------
    problem
        The problem, whose model is inspected.

    Returns
    -------
    Network or None
        None if the model has another structure, or no convolution.
    """
    modules = leaves_of(problem.model, KINDS)
    if modules is None or not _is_covered(problem, modules):
        return None
    signal = problem.inputs[:1].expand(2, *problem.inputs.shape[1:])
    before: list[nn.Module] = []
    steps: list[Step] = []
    with torch.no_grad():
        for path, module in modules:
            shape = tuple(signal.shape[1:])
            if not _acts_on_examples(module, signal):
                return None
            signal = module(signal.clone())
            if len(signal) != 2:
                return None
            step = _step(problem, path, module, shape, tuple(signal.shape[1:]))
            if steps or isinstance(step, Weighted):  # derivatives are needed from the first layer with weights on
                _append(steps, step)
            else:
                before.append(module)
    return Network(problem, tuple(before), tuple(steps), tuple(signal.shape[1:]))


def _is_covered(problem: Problem, modules: list[tuple[str, nn.Module]]) -> bool:
    """Whether the closed forms apply: there is a convolution, and every trained parameter is in a single layer."""
    if problem.aliases or not problem.inputs.is_floating_point() or shares_parameters(module for _, module in modules):
        return False
    trained = {name.rpartition(".")[0] for name in problem.layout.slices}
    if any(type(module) in NORMS and path in trained for path, module in modules):
        return False
    return any(type(module) in CONVOLUTIONS for _, module in modules)


def _append(steps: list[Step], step: Step | None) -> None:
    """Append a step; consecutive elementwise steps become a single one, which is differentiated as a whole."""
    last = steps[-1] if steps else None
    if isinstance(step, Pointwise) and isinstance(last, Pointwise) and step.shape == last.shape:
        steps[-1] = Pointwise((*last.modules, *step.modules), step.shape)
    elif step is not None:
        steps.append(step)


def _acts_on_examples(module: nn.Module, signal: Tensor) -> bool:
    """Whether the module takes the first axis as examples, and has no option that the closed forms do not cover."""
    kind = type(module)
    if kind is nn.Linear:
        return signal.ndim == 2
    if kind in CONVOLUTIONS:
        assert isinstance(module, nn.modules.conv._ConvNd)
        axes = len(module.kernel_size)
        return signal.ndim == 2 + axes and module.groups == 1 and module.padding_mode == "zeros"
    if kind in NORMS:
        fixed = getattr(module, "running_mean", None) is not None and not module.training
        return signal.ndim in NORMS[kind] and fixed
    if kind in SPATIAL or kind in MAXIMA:
        axes = SPATIAL.get(kind) or MAXIMA[kind]
        return signal.ndim == 2 + axes and not getattr(module, "return_indices", False)
    return True


def _step(
    problem: Problem, path: str, module: nn.Module, before: tuple[int, ...], shape: tuple[int, ...]
) -> Step | None:
    """The step of a module; None for a module that only reshapes."""
    kind = type(module)
    if kind is nn.Linear or kind in CONVOLUTIONS:
        named, slices = problem.unflatten(problem.weights), problem.layout.slices
        names = [f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias")]
        weight = named.get(names[0], getattr(module, "weight", None))
        bias = named.get(names[1], getattr(module, "bias", None))
        assert weight is not None
        return Weighted(path, module, weight.detach(), bias, slices.get(names[0]), slices.get(names[1]), before, shape)
    if kind in ELEMENTWISE or kind in NORMS:
        return Pointwise((module,), shape)
    if kind in SPATIAL:
        return Fixed(module, before, shape)
    if kind in MAXIMA:
        module = copy.copy(module)
        setattr(module, "return_indices", True)  # noqa: B010  (torch declares attributes of modules as tensors)
        return Select(module, before, shape)
    return None  # Flatten, Identity, and Dropout in eval mode


@dataclass(frozen=True, eq=False)
class Trace:
    """The forward pass of some examples, by index of the step.

    Attributes
    ----------
    outputs
        Outputs of the network, ``(n, *shape)``.
    rows
        Augmented patches of the layers, ``(n, T, columns)``.
    slopes, bends
        First and second derivative of the elementwise steps, ``(n, size)``.
    chosen
        Indices of the inputs that are maxima, ``(n, outputs)``.
    """

    outputs: Float[Tensor, "examples ..."]
    rows: dict[int, Float[Tensor, "examples _ _"]]
    slopes: dict[int, Float[Tensor, "examples _"]]
    bends: dict[int, Float[Tensor, "examples _"]]
    chosen: dict[int, Int[Tensor, "examples _"]]


def forward(network: Network, examples: slice, order: int) -> Trace:
    """Run a network on some examples.

    Parameters
    ----------
    network
        Steps with their weights.
    examples
        Slice of the examples.
    order
        Highest derivative of the elementwise functions.

    Returns
    -------
    Trace
        Everything that the derivatives need.
    """
    # A clone, because modules may work in place.
    signal = reduce(lambda value, module: module(value), network.before, network.problem.inputs[examples].clone())
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
            # PyTorch's indices are within a channel; here they are within the whole signal of an example.
            channel = torch.arange(step.before[0], device=index.device)[:, None] * prod(step.before[1:])
            trace.chosen[s] = (index.flatten(2) + channel).flatten(1)
        else:
            signal = step.module(signal.reshape(count, *step.before))
    return replace(trace, outputs=signal.reshape(count, *network.shape))
