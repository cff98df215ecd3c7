"""The networks of the benchmark: digits, softmax cross-entropy, a few seeded epochs of training."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import curvature as cv
from benchmarks.adapter import trained_weights

STRETCH = 1.7  # of the weight-normalized network: not 1, which is where PyTorch's wrapper starts


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured."""

    num_examples: int | None = None
    small: tuple[int, ...] = (32,)  # P = 2410
    large: tuple[int, ...] = (64, 64)  # P = 8970
    channels: tuple[int, ...] = (8, 16)
    few_examples: int = 400
    epochs: int = 20
    repetitions: int = 7
    density: tuple[int, int] = (10, 100)  # probes, steps
    density_large: tuple[int, int] = (10, 40)
    block: int = 32
    top: int = 10
    growth_examples: tuple[int, ...] = (224, 448, 896, 1792)
    growth_widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    matrix_product: int = 2048
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)


FAST = Scale(
    num_examples=60,
    small=(3,),
    large=(4, 4),
    channels=(2,),
    few_examples=12,
    epochs=1,
    repetitions=1,
    density=(2, 5),
    density_large=(2, 4),
    block=4,
    top=2,
    growth_examples=(30, 60),
    growth_widths=(3, 6),
    matrix_product=256,
    dtypes=(torch.float64,),
)


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network and its data in the form that peers take, and the same as a ``cv.Problem``."""

    model: nn.Module = field(repr=False)
    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    problem: cv.Problem | None = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.dtype

    @property
    def size(self) -> str:
        return f"P={self.dim}, N={len(self.inputs)}"

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in self.model.named_parameters()}

    @property
    def dim(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    def point(self) -> Tensor:
        return torch.cat([value.detach().reshape(-1) for value in self.model.parameters()])

    def outputs(self, weights: Tensor, inputs: Tensor | None = None) -> Tensor:
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self.model, named, (self.inputs if inputs is None else inputs,))

    def loss(self, weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.outputs(weights), self.targets)

    def terms(self, weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.outputs(weights), self.targets, reduction="none")

    @cached_property
    def double(self) -> Net:
        if self.dtype == torch.float64:
            return self
        return Net(copy.deepcopy(self.model).double(), self.inputs.double(), self.targets, self.problem)

    def copied(self) -> nn.Module:
        """Copy the module, for a peer that leaves hooks or gradients in it."""
        return copy.deepcopy(self.model)


@cache
def network(scale: Scale, name: str, dtype: torch.dtype, num_examples: int | None = None) -> Net:
    """Train the network ``small``, ``large`` or ``cnn``; the same for every method."""
    convolutional = name == "cnn"
    inputs, targets = cv.zoo.digits(num_examples or scale.num_examples, image=convolutional)
    model = cv.zoo.cnn(scale.channels) if convolutional else cv.zoo.mlp((64, *getattr(scale, name), 10))
    start = cv.Problem.from_module(model, loss="cross-entropy", data=(inputs, targets))
    trained_weights(start, model, scale.epochs).to(dtype)
    return _net(model, inputs.to(dtype), targets)


def _net(model: nn.Module, inputs: Tensor, targets: Tensor) -> Net:
    problem = cv.Problem.from_module(model, loss="cross-entropy", data=(inputs, targets), dtype=inputs.dtype)
    return Net(model, inputs, targets, problem)


class CompositeWeightNorm(nn.Module):
    """Weight norm from elementary operations, which PyTorch differentiates correctly twice."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.vector_norm(weight, dim=1, keepdim=True), weight


@cache
def normalized(scale: Scale, dtype: torch.dtype, *, fused: bool) -> Net:
    """Put the small network under weight norm with ``v`` stretched.

    ``fused`` chooses PyTorch's own implementation (only this one has a ``problem``), else the composite one. Both have
    the same coordinates.
    """
    plain = network(scale, "small", dtype)
    model = plain.copied()
    for layer in model:
        if isinstance(layer, nn.Linear):
            if fused:
                parametrizations.weight_norm(layer)
            else:
                parametrize.register_parametrization(layer, "weight", CompositeWeightNorm())
            with torch.no_grad():
                layer.parametrizations.weight.original1.mul_(STRETCH)
    return Net(model, plain.inputs, plain.targets, _net(model, plain.inputs, plain.targets).problem if fused else None)
