r"""Weights written as matrix products: low-rank adapters (LoRA, DoRA) and deep linear factorizations.

A weight is the matrix of its neurons, output channels by everything else.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float, Num
from curvature.charts.gauges import gauge_label
from curvature.charts.metrics import ProductMetric
from curvature.charts.per_weight import LocalMap, Parts, PerWeight, as_matrix
from curvature.charts.rows import refuse_not_positive, refuse_zero_rows
from curvature.errors import ConfigurationError
from curvature.layout import Entry
from curvature.linalg.singular import thin_svd

__all__ = ["DeepLinear", "DoRA", "LoRA"]


class _Factored(PerWeight):
    """Weights that a matrix product makes: a part has the neurons of the weight only where it has its rows."""

    row_names: tuple[str, ...]  # parts with one row, or one number, for each row of the weight

    def neuron_axis(self, entry: Entry, name: str, part: Num[Tensor, "..."]) -> int | None:
        del entry, part
        return 0 if name in self.row_names else None


class _Product(_Factored):
    """Weights that are a product of two trained matrices, up to a constant: the last two parts, right factor first."""

    @abstractmethod
    def factor(self, parts: Parts) -> Tensor | float:
        """The constant in front of the product."""

    def metric(self, local: LocalMap) -> ProductMetric:
        left, right = self._trained(local.parts)
        factor = self.factor(local.parts)
        return ProductMetric(as_matrix(local.entry), factor * left, factor * right)

    def second_order_product(
        self, local: LocalMap, gradient: Float[Tensor, "numel"], tangents: Float[Tensor, "coordinates columns"]
    ) -> Float[Tensor, "coordinates columns"]:
        slope = self.factor(local.parts) * as_matrix(local.entry).rows(gradient)
        if self.frozen:  # then the map is linear
            return torch.zeros_like(tangents)
        right, left = (local.parts[name] for name in self.part_names)
        right_moved, left_moved = tangents.split([right.numel(), left.numel()])
        bent_right = torch.einsum("mn, mrk -> rnk", slope, left_moved.view(*left.shape, -1))
        bent_left = torch.einsum("mn, rnk -> mrk", slope, right_moved.view(*right.shape, -1))
        return torch.cat([bent_right.reshape(right_moved.shape), bent_left.reshape(left_moved.shape)])

    def _trained(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Left and right factor, each zero where it moves nothing because the other is frozen."""
        right, left = self.part_names
        return (
            torch.zeros_like(parts[left]) if right in self.frozen else parts[left],
            torch.zeros_like(parts[right]) if left in self.frozen else parts[right],
        )


class _Adapter(_Factored):
    """What LoRA and DoRA share: a constant matrix plus a scaled product of low rank."""

    constant_names = ("base", "scale")

    def __init__(
        self,
        rank: int = 8,
        *,
        alpha: float | None = None,
        init: str = "zero",
        seed: int = 0,
        layers: str | None = None,
        frozen: Iterable[str] = (),
        values: Mapping[str, Parts] | None = None,
    ):
        if not (isinstance(rank, int) and rank > 0):
            raise ConfigurationError(f"rank must be a positive whole number, got {rank!r}.")
        if init not in ("zero", "pissa"):
            raise ConfigurationError(f"init must be 'zero' or 'pissa', got {init!r}.")
        alpha = float(rank) if alpha is None else alpha
        refuse_not_positive(alpha, "alpha")
        self.rank, self.alpha, self.init, self.seed = rank, alpha, init, seed
        labels = [f"rank={rank}", "" if alpha == rank else f"alpha={alpha:g}", "B = 0" if init == "zero" else init]
        self.gauge = gauge_label(*labels, *self._labels(), seed=seed if init == "zero" else 0)
        super().__init__(layers=layers, frozen=frozen, values=values)

    def _labels(self) -> list[str]:
        """What else belongs to the gauge."""
        return []

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        matrix = as_matrix(entry).rows(weight.reshape(-1))
        scale = self.alpha / self.rank
        if self.init == "zero":
            stream = np.random.default_rng([self.seed, zlib.crc32(entry.name.encode())])
            bound = matrix.shape[1] ** -0.5
            right = torch.from_numpy(stream.uniform(-bound, bound, (self.rank, matrix.shape[1]))).to(weight)
            left = matrix.new_zeros(len(matrix), self.rank)
        else:
            left, right = _balanced(matrix / scale, self.rank)
        base = as_matrix(entry).from_rows(matrix - scale * left @ right).reshape(entry.shape)
        return {"a": right, "b": left, "base": base, "scale": weight.new_tensor(scale)}

    def adapted(self, entry: Entry, parts: Parts) -> Float[Tensor, "rows length"]:
        """The constant matrix plus the scaled product."""
        base = as_matrix(entry).rows(parts["base"].reshape(-1))
        return base + parts["scale"] * parts["b"] @ parts["a"]


class LoRA(_Adapter, _Product):
    r"""Low-rank adapters, $W = W_0 + \frac{\alpha}{r} B A$ with $W_0$ constant (Hu et al. 2021, arXiv:2106.09685).

    With $s = \alpha / r$, $K = s^2 (B B^T \otimes I + I \otimes A^T A)$ for a weight ``(m, n)``: rank $r (m + n - r)$
    of $r (m + n)$ coordinates, and GL(r) moves nothing. At $B = 0$, where training starts, only ``B`` moves the
    weights: rank $m r$.

    Parameters
    ----------
    rank
        $r$.
    alpha
        $\alpha$; None is $r$, a factor of 1.
    init
        Which of the coordinates of these weights: ``"zero"`` has $B = 0$ and ``A`` uniform in $\pm 1 / \sqrt{n}$, as
        peft draws it, with $W_0 = W$; ``"pissa"`` has the first $r$ singular triplets in $B A$, balanced, and the
        others in $W_0$ (Meng et al. 2024, arXiv:2404.02948).
    seed
        Draws ``A``, for each weight by its name.
    layers
        Regular expression: only the weights whose name matches.
    frozen
        Parts that are not trained: ``("a",)`` is LoRA-FA (arXiv:2308.03303).
    values
        ``a`` $(r, n)$, ``b`` $(m, r)$, ``base`` $W_0$ and ``scale`` $s$ of each weight by name, where they are known.

    Notes
    -----
    Parameters that have no adapter stay coordinates. ``freeze("bias")`` leaves biases out, as fine-tuning does. A rank
    above the smaller side of a weight is a valid chart, whose product can be any matrix; it is then not of low rank.

    Examples
    --------
    >>> LoRA(4), LoRA(4, alpha=8, init="pissa"), LoRA(4, frozen=("a",))
    (LoRA('rank=4, B = 0'), LoRA('rank=4, alpha=8, pissa'), LoRA('rank=4, B = 0, a frozen'))
    """

    name = "lora"
    part_names = affine_parts = ("a", "b")
    row_names = ("b",)

    def factor(self, parts: Parts) -> Tensor:
        return parts["scale"]

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        return as_matrix(entry).from_rows(self.adapted(entry, parts)).reshape(entry.shape)


class DoRA(_Adapter):
    r"""Weight normalization of an adapted weight, $W = g\, V / \|V\|$ with $V = W_0 + \frac{\alpha}{r} B A$.

    Liu et al. 2024 (arXiv:2402.09353). For a weight ``(m, n)`` with a norm for each row: rank $m + r (m + n - r)$ of
    $m + r (m + n)$ coordinates, at $B = 0$ rank $m + m r$.

    Parameters
    ----------
    rank, alpha, init, seed, layers, frozen
        As for :class:`LoRA`; the gauge is $g = \|V\|$.
    dim
        The axis that keeps its norms, as in ``torch.nn.utils.weight_norm``. 0: a norm for each row, an output neuron of
        ``nn.Linear``, as peft has it. 1: a norm for each column, which is how the formulas of the paper read when they
        are taken for a weight of ``nn.Linear`` (huggingface/peft#2348).
    values
        ``g`` and the parts of :class:`LoRA` by name, where they are known.

    Notes
    -----
    peft holds the norm constant in its backward pass, and then $g$ and $V$ are trained by something that is not the
    gradient of the loss. This chart is the map itself: its derivatives contain those of the norm.

    Examples
    --------
    >>> DoRA(4), DoRA(4, dim=1)
    (DoRA('rank=4, B = 0'), DoRA('rank=4, B = 0, dim=1'))
    """

    name = "dora"
    part_names = ("g", "a", "b")
    affine_parts = ("g",)

    def __init__(
        self,
        rank: int = 8,
        *,
        dim: int = 0,
        alpha: float | None = None,
        init: str = "zero",
        seed: int = 0,
        layers: str | None = None,
        frozen: Iterable[str] = (),
        values: Mapping[str, Parts] | None = None,
    ):
        if dim not in (0, 1):
            raise ConfigurationError(
                f"dim must be 0 (a norm for each row, a neuron) or 1 (a norm for each column), got {dim!r}."
            )
        self.dim = dim
        self.row_names = ("g", "b") if dim == 0 else ("b",)
        super().__init__(rank, alpha=alpha, init=init, seed=seed, layers=layers, frozen=frozen, values=values)

    def _labels(self) -> list[str]:
        return ["dim=1"] if self.dim == 1 else []

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        norms = self._norms(as_matrix(entry).rows(weight.reshape(-1))).reshape(-1)
        refuse_zero_rows(norms, entry, "the weights of" if self.dim == 0 else "the transposed weights of")
        return {"g": norms, **super().parts(entry, weight)}

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        adapted = self.adapted(entry, parts)
        norms = self._norms(adapted)
        rows = parts["g"].view(norms.shape) / norms * adapted
        return as_matrix(entry).from_rows(rows).reshape(entry.shape)

    def _norms(self, matrix: Tensor) -> Tensor:
        return torch.linalg.vector_norm(matrix, dim=1 - self.dim, keepdim=True)


class DeepLinear(_Product):
    r"""Weights as a product of two, $W = W_2 W_1$ with $k$ hidden units and nothing between them.

    $K = W_2 W_2^T \otimes I + I \otimes W_1^T W_1$ (Arora et al. 2018, arXiv:1802.06509, for any depth): balanced,
    gradient descent is preconditioned by $(W W^T)^{1/2}$ from the left and $(W^T W)^{1/2}$ from the right. GL(k) moves
    nothing: $k^2$ null directions where $W$ has rank $k$.

    Parameters
    ----------
    width
        $k$. None: the smaller side of each weight, the least with which every weight can be written.
    layers
        Regular expression: only the weights whose name matches.
    frozen
        Parts that are not trained.
    values
        ``w1`` $(k, n)$ and ``w2`` $(m, k)$ of each weight by name, where they are known.

    Notes
    -----
    The gauge is balanced, $W_2^T W_2 = W_1 W_1^T$, from the singular value decomposition of the weight. With fewer
    hidden units than its rank the weight cannot be written so; :func:`~curvature.models.nearest` truncates it.

    Examples
    --------
    >>> DeepLinear(), DeepLinear(width=3)
    (DeepLinear('balanced'), DeepLinear('balanced, width=3'))
    """

    name = "deep-linear"
    part_names = affine_parts = ("w1", "w2")
    row_names = ("w2",)

    def __init__(
        self,
        width: int | None = None,
        *,
        layers: str | None = None,
        frozen: Iterable[str] = (),
        values: Mapping[str, Parts] | None = None,
    ):
        if width is not None and not (isinstance(width, int) and width > 0):
            raise ConfigurationError(f"width must be a positive whole number, got {width!r}.")
        self.width = width
        self.gauge = gauge_label("balanced", "" if width is None else f"width={width}")
        super().__init__(layers=layers, frozen=frozen, values=values)

    def factor(self, parts: Parts) -> float:
        del parts
        return 1.0

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        matrix = as_matrix(entry).rows(weight.reshape(-1))
        left, right = _balanced(matrix, self.width or min(matrix.shape))
        return {"w1": right, "w2": left}

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        return as_matrix(entry).from_rows(parts["w2"] @ parts["w1"]).reshape(entry.shape)

    def project(self, entry: Entry, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.width is None or self.width >= min(as_matrix(entry).rows(weight.reshape(-1)).shape):
            return weight
        return self.weight(entry, self.parts(entry, weight))


def _balanced(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Factors $U S^{1/2}$ and $S^{1/2} V^T$ of the nearest matrix of some rank; more columns than it has are zero."""
    left, values, right = thin_svd(matrix)
    rounding = max(matrix.shape) * torch.finfo(values.dtype).eps * values[0]
    root = torch.where(values > rounding, values, 0)[:rank].sqrt()  # the root of rounding would be no rounding
    missing = rank - len(root)
    left, right = left[:, :rank] * root, root[:, None] * right[:rank]
    return torch.nn.functional.pad(left, (0, missing)), torch.nn.functional.pad(right, (0, 0, 0, missing))
