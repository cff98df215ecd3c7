"""Small networks with residual connections and layer normalization: an MLP and a causal transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.errors import ConfigurationError
from curvature.models.zoo.networks import seeded

__all__ = ["CausalTransformer", "ResidualMLP", "residual_mlp", "transformer"]


class ResidualMLP(nn.Module):
    """``x + W2 tanh(W1 norm(x))`` repeated, between a linear layer from the inputs and one to the outputs.

    Parameters
    ----------
    inputs, width, outputs
        Sizes of the inputs, which are flattened, of the stream, and of the outputs.
    num_blocks
        Residual blocks.
    dtype
        Precision of the parameters.
    """

    def __init__(self, inputs: int, width: int, outputs: int, num_blocks: int, dtype: torch.dtype):
        super().__init__()
        self.embed = nn.Linear(inputs, width, dtype=dtype)
        self.blocks = nn.ModuleList(_mlp_branch(width, width, nn.Tanh(), dtype) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.head = nn.Linear(width, outputs, dtype=dtype)

    def forward(self, inputs: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples outputs"]:
        stream = self.embed(inputs.flatten(1))
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(self.norm(stream))


class CausalTransformer(nn.Module):
    """One block of a pre-norm transformer with one causal head; the output is that of the last position.

    Parameters
    ----------
    length, inputs
        Positions of a sequence, and numbers at each: one-hot tokens, or real numbers.
    width, outputs
        Sizes of the stream and of the outputs; the hidden layer is twice as wide as the stream.
    dtype
        Precision of the parameters.
    """

    mask: Tensor

    def __init__(self, length: int, inputs: int, width: int, outputs: int, dtype: torch.dtype):
        super().__init__()
        self.embed = nn.Linear(inputs, width, dtype=dtype)
        self.positions = nn.Parameter(torch.randn(length, width, dtype=dtype) / width**0.5)
        self.attention_norm = nn.LayerNorm(width, dtype=dtype)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width, dtype=dtype) for _ in range(4))
        self.mlp = _mlp_branch(width, 2 * width, nn.GELU(), dtype)
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.head = nn.Linear(width, outputs, dtype=dtype)
        future = torch.full((length, length), -torch.inf, dtype=dtype).triu(1)
        self.register_buffer("mask", future, persistent=False)

    def forward(self, inputs: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples outputs"]:
        stream = self.embed(inputs) + self.positions
        normed = self.attention_norm(stream)
        scores = self.query(normed) @ self.key(normed).mT / stream.shape[-1] ** 0.5
        stream = stream + self.mix(torch.softmax(scores + self.mask, dim=-1) @ self.value(normed))
        stream = stream + self.mlp(stream)
        return self.head(self.norm(stream[:, -1]))


def residual_mlp(
    inputs: int,
    outputs: int,
    *,
    width: int = 6,
    num_blocks: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> ResidualMLP:
    """Build a residual network with layer normalization, with PyTorch's default initialization.

    Parameters
    ----------
    inputs, outputs
        Numbers in an example, and outputs.
    width, num_blocks
        Width of the stream, and residual blocks.
    seed
        Seed of the initialization; the global generator is left as it is.
    dtype
        Precision of the parameters.

    Returns
    -------
    ResidualMLP
        In evaluation mode.

    Raises
    ------
    ConfigurationError
        If a size is not positive.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in residual_mlp(64, 10).parameters())
    568
    """
    _refuse_sizes(inputs=inputs, outputs=outputs, width=width, num_blocks=num_blocks)
    with seeded(seed):
        return ResidualMLP(inputs, width, outputs, num_blocks, dtype).eval()


def transformer(
    length: int,
    inputs: int,
    outputs: int,
    *,
    width: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> CausalTransformer:
    """Build a causal transformer of one block and one head, with PyTorch's default initialization.

    Parameters
    ----------
    length, inputs, outputs
        Positions, numbers at each position, and outputs.
    width
        Width of the stream.
    seed
        Seed of the initialization; the global generator is left as it is.
    dtype
        Precision of the parameters.

    Returns
    -------
    CausalTransformer
        In evaluation mode.

    Raises
    ------
    ConfigurationError
        If a size is not positive.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in transformer(8, 8, 10).parameters())
    538
    """
    _refuse_sizes(length=length, inputs=inputs, outputs=outputs, width=width)
    with seeded(seed):
        return CausalTransformer(length, inputs, width, outputs, dtype).eval()


def _mlp_branch(width: int, hidden: int, activation: nn.Module, dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width, dtype=dtype),
        nn.Linear(width, hidden, dtype=dtype),
        activation,
        nn.Linear(hidden, width, dtype=dtype),
    )


def _refuse_sizes(**sizes: int) -> None:
    wrong = {name: size for name, size in sizes.items() if size < 1}
    if wrong:
        raise ConfigurationError(f"sizes must be at least 1, got {', '.join(f'{n}={s}' for n, s in wrong.items())}.")
