"""The steps of a convolutional network, each with its action on tangents and cotangents.

Tangents and cotangents of many columns are ``(n, size, columns)``. A signal is flattened as PyTorch does it, channel by
channel, so ``Flatten`` is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvature.arrays import Float, Int
from curvature.matrices.fast.chain import matmul

__all__ = ["CONVOLUTIONS", "Fixed", "Pointwise", "Select", "Step", "Weighted"]

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}

# A convolution of small images as one matrix for all examples is faster than PyTorch's, for images with up to about 16
# times as many inputs as a patch (measured on one thread).
_MATRIX_RATIO = 16

_MATRIX_BYTES = 64 * 2**20  # limit for such a matrix


@dataclass(frozen=True, eq=False)
class Pointwise:
    """Consecutive elementwise functions.

    Attributes
    ----------
    modules
        The functions, in order.
    shape
        Shape of the signal of one example.
    """

    modules: tuple[nn.Module, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Select:
    """A maximum over windows: each output is one of the inputs.

    Attributes
    ----------
    module
        The pooling layer, which also returns indices.
    before, shape
        Shapes of the input and the output of one example.
    """

    module: nn.Module
    before: tuple[int, ...]
    shape: tuple[int, ...]

    def push(
        self, block: Float[Tensor, "examples _ columns"], chosen: Int[Tensor, "examples outputs"]
    ) -> Float[Tensor, "examples outputs columns"]:
        """Push tangents forward.

        Parameters
        ----------
        block
            Tangents of the inputs, ``(n, inputs, columns)``.
        chosen
            Index of the input that is the maximum, ``(n, outputs)``.

        Returns
        -------
        Tensor
            Tangents of the outputs, ``(n, outputs, columns)``.
        """
        return block.gather(1, chosen[:, :, None].expand(-1, -1, block.shape[2]))

    def pull(
        self, block: Float[Tensor, "examples outputs columns"], chosen: Int[Tensor, "examples outputs"]
    ) -> Float[Tensor, "examples _ columns"]:
        """Pull cotangents back.

        Parameters
        ----------
        block
            Cotangents of the outputs, ``(n, outputs, columns)``.
        chosen
            Index of the input that is the maximum, ``(n, outputs)``.

        Returns
        -------
        Tensor
            Cotangents of the inputs, ``(n, inputs, columns)``.
        """
        pulled = block.new_zeros(len(block), prod(self.before), block.shape[2])
        return pulled.scatter_add_(1, chosen[:, :, None].expand_as(block), block)


@dataclass(frozen=True, eq=False)
class Fixed:
    """A linear map without weights that acts on each channel separately, such as average pooling.

    Attributes
    ----------
    module
        The layer.
    before, shape
        Shapes of the input and the output of one example.
    """

    module: nn.Module
    before: tuple[int, ...]
    shape: tuple[int, ...]

    def push(self, block: Float[Tensor, "examples _ columns"]) -> Float[Tensor, "examples _ columns"]:
        """Push tangents ``(n, inputs, columns)`` forward to ``(n, outputs, columns)``."""
        return _by_columns(self.module, block, self.before)

    def pull(self, block: Float[Tensor, "examples _ columns"]) -> Float[Tensor, "examples _ columns"]:
        """Pull cotangents ``(n, outputs, columns)`` back to ``(n, inputs, columns)``."""
        return _by_columns(_transposed(self.module, self.before), block, self.shape)


@dataclass(frozen=True, eq=False)
class Weighted:
    r"""A linear layer or a convolution: $z[t, o] = \sum_i W[o, i]\, a[t, i]$ on ``T`` patches of ``fan_in`` numbers.

    Attributes
    ----------
    path
        Name of the module.
    module
        The layer.
    weight, bias
        Parameters at the point of the problem; no bias: None.
    weight_slice, bias_slice
        Their slices of the flat weights; None if they are frozen.
    before, shape
        Shapes of the input and the output of one example.
    """

    path: str
    module: nn.Module
    weight: Float[Tensor, "rows ..."]
    bias: Float[Tensor, "rows"] | None
    weight_slice: slice | None
    bias_slice: slice | None
    before: tuple[int, ...]
    shape: tuple[int, ...]

    @cached_property
    def fan_out(self) -> int:
        """Number of output channels."""
        return self.weight.shape[0]

    @cached_property
    def fan_in(self) -> int:
        """Numbers in a patch, without the appended 1."""
        return self.weight[0].numel()

    @property
    def columns(self) -> int:
        """Length of an augmented row: a patch, and a 1 if there is a bias."""
        return self.fan_in + (self.bias is not None)

    @property
    def positions(self) -> int:
        """Number of positions ``T``; 1 for a linear layer."""
        return prod(self.shape[1:])

    @property
    def num_weights(self) -> int:
        """Number of weights with the bias, frozen ones too."""
        return self.fan_out * self.columns

    @property
    def trained(self) -> bool:
        """Whether a parameter is not frozen."""
        return self.weight_slice is not None or self.bias_slice is not None

    @property
    def places(self) -> list[tuple[slice, slice]]:
        """Trained columns of augmented rows with their slices of the flat weights."""
        parts = [(slice(0, self.fan_in), self.weight_slice), (slice(self.fan_in, None), self.bias_slice)]
        return [(columns, place) for columns, place in parts if place is not None]

    @property
    def by_outputs(self) -> bool:
        """Whether derivatives are first taken by its outputs, which are fewer than its weights."""
        return self.fan_out * self.positions <= self.num_weights

    def linear(self, signal: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """Apply the layer without its bias to signals ``(n, *before)``."""
        if isinstance(self.module, nn.Linear):
            return functional.linear(signal, self.weight)
        convolution = self.convolution
        convolve = CONVOLUTIONS[type(convolution)]
        return convolve(signal, self.weight, None, convolution.stride, convolution.padding, convolution.dilation)

    @property
    def convolution(self) -> nn.modules.conv._ConvNd:
        """The module as a convolution."""
        assert isinstance(self.module, nn.modules.conv._ConvNd)
        return self.module

    @cached_property
    def matrix(self) -> Float[Tensor, "outputs _"] | None:
        """The layer as one matrix ``(outputs, inputs)``; None if it would be large and mostly zero."""
        if isinstance(self.module, nn.Linear):
            return self.weight
        inputs, outputs = prod(self.before), prod(self.shape)
        size = inputs * outputs * self.weight.element_size()
        if inputs > _MATRIX_RATIO * self.fan_in or size > _MATRIX_BYTES:
            return None
        return self.spread(self.weight.reshape(1, self.fan_out, self.fan_in))[0]

    def spread(self, weights: Float[Tensor, "columns rows length"]) -> Float[Tensor, "columns outputs _"]:
        """Write weights ``(K, O, fan_in)`` as matrices ``(K, outputs, inputs)`` of the layer."""
        if isinstance(self.module, nn.Linear):
            return weights
        # The last column, one more than there are inputs, receives the taps on the padding.
        matrices = weights.new_zeros(len(weights), self.fan_out, self.positions, prod(self.before) + 1)
        taps, values = (part.expand(*matrices.shape[:3], -1) for part in (self.taps, weights[:, :, None]))
        return matrices.scatter_(3, taps, values)[..., :-1].flatten(1, 2)

    def gather(self, matrices: Float[Tensor, "columns outputs _"]) -> Float[Tensor, "columns rows length"]:
        """Apply the transpose of :meth:`spread` to matrices ``(K, outputs, inputs)``."""
        if isinstance(self.module, nn.Linear):
            return matrices
        padded = torch.cat([matrices, torch.zeros_like(matrices[..., :1])], dim=-1)
        padded = padded.unflatten(1, (self.fan_out, self.positions))
        return padded.gather(3, self.taps.expand(*padded.shape[:3], -1)).sum(dim=2)

    def push(self, block: Float[Tensor, "examples _ columns"]) -> Float[Tensor, "examples _ columns"]:
        """Push tangents ``(n, inputs, columns)`` forward to ``(n, outputs, columns)``."""
        if self.matrix is not None:
            return matmul(self.matrix, block)
        return _by_columns(self.linear, block, self.before)

    def pull(self, block: Float[Tensor, "examples _ columns"]) -> Float[Tensor, "examples _ columns"]:
        """Pull cotangents ``(n, outputs, columns)`` back to ``(n, inputs, columns)``."""
        if self.matrix is not None:
            return matmul(self.matrix.T, block)
        return _by_columns(_transposed(self.linear, self.before), block, self.shape)

    @cached_property
    def taps(self) -> Int[Tensor, "_ length"]:
        """Index of the input of each number of each patch, ``(T, fan_in)``; padding has the index after the last input.

        Tap ``k`` at position ``t`` of an axis reads the coordinate ``t * stride + k * dilation - padding``.
        """
        module, sizes = self.convolution, self.before[1:]
        index = torch.zeros(1, 1, dtype=torch.long)  # of the spatial coordinates so far, axis by axis
        inside = torch.ones(1, 1, dtype=torch.bool)
        for axis, size in enumerate(sizes):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
            named = {"valid": 0, "same": reach // 2}
            padding = named[module.padding] if isinstance(module.padding, str) else int(module.padding[axis])
            positions = torch.arange(self.shape[1 + axis])[:, None] * module.stride[axis]
            reached = positions + torch.arange(module.kernel_size[axis]) * module.dilation[axis] - padding
            index = index[:, None, :, None] * size + reached[None, :, None]
            inside = inside[:, None, :, None] & ((reached >= 0) & (reached < size))[None, :, None]
            index, inside = index.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1)
        channels = torch.arange(self.before[0])[:, None] * prod(sizes)
        taps = torch.where(inside[:, None], channels + index[:, None], prod(self.before)).flatten(1)
        return taps.to(self.weight.device)

    def patches(self, block: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples _ length ..."]:
        """Copy signals ``(n, inputs, ...)`` to patches ``(n, T, fan_in, ...)``."""
        if isinstance(self.module, nn.Linear):
            return block[:, None]
        if int(self.taps.max()) == block.shape[1]:
            block = torch.cat([block, torch.zeros_like(block[:, :1])], dim=1)
        return block.index_select(1, self.taps.flatten()).unflatten(1, self.taps.shape)


Step = Pointwise | Select | Fixed | Weighted


def _by_columns(function: Callable[[Tensor], Tensor], block: Tensor, before: tuple[int, ...]) -> Tensor:
    """Apply a function of ``(m, *before)`` to the columns of ``(n, inputs, columns)``."""
    count, _, columns = block.shape
    images = function(block.mT.reshape(count * columns, *before))
    return images.reshape(count, columns, -1).mT.contiguous()


def _transposed(function: Callable[[Tensor], Tensor], before: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The transpose of a linear function of ``(m, *before)``."""

    def pull(cotangents: Tensor) -> Tensor:
        origin = cotangents.new_zeros(len(cotangents), *before)
        return torch.func.vjp(function, origin)[1](cotangents)[0]

    return pull
