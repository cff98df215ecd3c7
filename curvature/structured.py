r"""Exact dense matrices of feed-forward networks by contractions over examples: the fast path.

For a chain of linear layers with elementwise activations, pre-activations are linear in the weights. With $a_l$ the
input of layer $l$ (a 1 appended for the bias), $z_l$ its output, $g_l = \partial \ell_n / \partial z_l$, $J_{lk} =
\partial z_l / \partial z_k$ and $B_{lk} = \partial g_l / \partial z_k$, for $k \le l$

$$\frac{\partial^2 \ell_n}{\partial W_l[o,i]\, \partial W_k[o',i']}
  = B_{lk}[o,o']\, a_l[i]\, a_k[i'] + [l > k]\; g_l[o]\, \frac{\partial a_l[i]}{\partial z_k[o']}\, a_k[i'] .$$

Summed over examples each term is one matrix product between two row-wise Kronecker products, about $N P^2$
multiplications in all, instead of $P$ passes through the network. Without the terms that hold $\phi''$ or $g$ it is
the GGN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from curvature.problem import Problem

__all__ = ["Chain", "Products", "chain_of", "curvature", "factor_rows"]

_ELEMENTWISE = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Hardtanh,
)
# Dropout in eval mode: training mode was refused.
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_CHUNK_BYTES = 64 * 2**20
_TANGENT_BYTES = 4 * 2**20


@dataclass(frozen=True, eq=False)
class _Layer:
    """One linear layer and the activations behind it."""

    path: str
    weight: Tensor
    bias: Tensor | None
    weight_slice: slice | None
    bias_slice: slice | None
    activations: tuple[nn.Module, ...]

    @property
    def fan_out(self) -> int:
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Length of an augmented row: inputs, and 1 if there is a bias."""
        return self.weight.shape[1] + (self.bias is not None)


@dataclass(frozen=True, eq=False)
class Chain:
    """A problem whose model is a chain of linear layers and elementwise activations."""

    problem: Problem
    before: tuple[nn.Module, ...]
    layers: tuple[_Layer, ...]


def chain_of(problem: Problem) -> Chain | None:
    """Read the model as a chain; None if it is anything else (then the generic path does the work)."""
    modules = _flat(problem.model)
    if modules is None or problem.aliases or problem.inputs.ndim < 2 or not problem.inputs.is_floating_point():
        return None
    parameters = [p for _, module in modules for p in module.parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        return None
    before, groups = [], []
    for path, module in modules:
        if isinstance(module, nn.Linear):
            groups.append((path, module, []))
        elif groups:
            groups[-1][2].append(module)
        else:
            before.append(module)
    plain = all(isinstance(m, _ELEMENTWISE + _NEUTRAL) for *_, after in groups for m in after)
    flattens = all(isinstance(m, (nn.Flatten, *_NEUTRAL)) for m in before)
    if not groups or not plain or not flattens:
        return None
    signal = problem.inputs[:1]
    for module in before:
        signal = module(signal)
    if signal.ndim != 2 or len(signal) != 1:  # one vector per example; a linear layer on positions shares its weights
        return None
    if any(isinstance(m, _ELEMENTWISE) for m in groups[-1][2]):
        return None
    named, slices = problem.unflatten(problem.weights), problem.layout.slices
    layers = []
    for path, module, after in groups:
        names = [f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias")]
        weight = named.get(names[0], module.weight)
        bias = named.get(names[1], module.bias)
        activations = tuple(m for m in after if isinstance(m, _ELEMENTWISE))
        layers.append(_Layer(path, weight, bias, slices.get(names[0]), slices.get(names[1]), activations))
    return Chain(problem, tuple(before), tuple(layers))


def _flat(model: nn.Module, path: str = "") -> list[tuple[str, nn.Module]] | None:
    """Leaves of nested ``Sequential`` containers in order; None where something else calls them."""
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    if any(hooks):
        return None
    if type(model) is nn.Sequential:
        found = []
        for name, child in model._modules.items():  # named_children() would leave out a module that is used again
            inner = _flat(child, f"{path}.{name}" if path else name)
            if inner is None:
                return None
            found += inner
        return found
    return [(path, model)] if type(model) in (nn.Linear, nn.Flatten, *_ELEMENTWISE, *_NEUTRAL) else None


def curvature(chain: Chain, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool) -> Tensor:
    r"""Dense Hessian (``second_order=True``) or GGN-type matrix of the mean loss, ``(P, P)``.

    ``output_hessian(outputs, targets)`` gives $\nabla_f^2 \ell_n$ (or another symmetric matrix in output space),
    ``(n, C, C)``. Streams the examples in chunks; memory is the result, its blocks before they are put in place (half
    of it), and a bounded buffer.
    """
    problem, layers = chain.problem, chain.layers
    pairs = [(row, col) for row in range(len(layers)) for col in range(row + 1)]
    sums: dict[tuple[int, int], np.ndarray | Tensor] = {}
    crossed: dict[tuple[int, int], np.ndarray | Tensor] = {}
    symmetric = [(_triangle(layer.fan_out), _triangle(layer.columns)) for layer in layers]
    widest = max(layers[r].fan_out * layers[c].fan_out + layers[r].columns * layers[c].columns for r, c in pairs)
    size = max(32, _CHUNK_BYTES // (widest * problem.weights.element_size()))
    for start in range(0, problem.num_examples, size):
        where = slice(start, start + size)
        pass_ = _forward_backward(chain, where, output_hessian, second_order)
        for row, col in pairs:
            middle = pass_.curvatures[row, col]
            left, right = pass_.inputs[row], pass_.inputs[col]
            if row == col:
                outs, ins = (index.to(problem.device) for index in symmetric[row])
                packed = middle[:, outs[0], outs[1]]
                products = left[:, ins[0]] * left[:, ins[1]]
            else:
                packed = middle.flatten(1)
                products = _row_kronecker(left, right)
            _add(sums, (row, col), packed, products)
            if second_order and row > col:
                slopes = _row_kronecker(pass_.gradients[row], right)
                _add(crossed, (row, col), slopes, pass_.input_jacobians[row, col].flatten(1))
    return _assemble(chain, sums, crossed, symmetric)


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one chunk of examples contributes, by layer; keys ``(l, k)`` with ``k <= l``."""

    inputs: list[Tensor]
    gradients: list[Tensor]
    curvatures: dict[tuple[int, int], Tensor]
    input_jacobians: dict[tuple[int, int], Tensor]


def _forward(chain: Chain, where: slice, order: int) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Augmented inputs, outputs, and derivatives of the activations (up to ``order``) of each layer."""
    signal = chain.problem.inputs[where]
    for module in chain.before:
        signal = module(signal)
    inputs, outputs, slopes = [], [], []
    for layer in chain.layers:
        inputs.append(signal if layer.bias is None else torch.cat([signal, torch.ones_like(signal[:, :1])], dim=1))
        z = torch.nn.functional.linear(signal, layer.weight, layer.bias)
        outputs.append(z)
        signal, *derivatives = _activate(layer.activations, z, order)
        slopes.append(derivatives)
    return inputs, outputs, slopes


def _activate(activations: tuple[nn.Module, ...], z: Tensor, order: int) -> list[Tensor]:
    """Value and derivatives of an elementwise function; ones and zeros where there is none."""
    if not activations:
        return [z, torch.ones_like(z), torch.zeros_like(z)][: order + 1]
    variable = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = variable
        for module in activations:
            value = module(value.clone())  # an in-place activation must not write into what autograd keeps
        found = [value]
        for _ in range(order):
            last = found[-1]
            if last.requires_grad:
                found.append(torch.autograd.grad(last.sum(), variable, create_graph=True, materialize_grads=True)[0])
            else:
                found.append(torch.zeros_like(z))
    return [part.detach() for part in found]


def _forward_backward(
    chain: Chain, where: slice, output_hessian: Callable[[Tensor, Tensor], Tensor], second_order: bool
) -> _Pass:
    problem, layers = chain.problem, chain.layers
    inputs, outputs, slopes = _forward(chain, where, 2 if second_order else 1)
    targets = problem.targets[where]
    last = len(layers) - 1
    jacobians: dict[tuple[int, int], Tensor] = {}
    for k in range(len(layers)):
        width = layers[k].fan_out
        identity = torch.eye(width, dtype=problem.dtype, device=problem.device)
        jacobians[k, k] = identity.expand(len(targets), width, width)
        for row in range(k, last):
            jacobians[row + 1, k] = torch.matmul(layers[row + 1].weight, slopes[row][0][:, :, None] * jacobians[row, k])
    gradients: list[Tensor] = [problem.loss.gradient(outputs[last], targets) / problem.denominator]
    curved = output_hessian(outputs[last], targets) / problem.denominator
    curvatures = {(last, k): curved @ jacobians[last, k] for k in range(len(layers))}
    for row in range(last - 1, -1, -1):
        back = gradients[0] @ layers[row + 1].weight
        for k in range(row + 1):
            through = torch.matmul(layers[row + 1].weight.T, curvatures[row + 1, k])
            curvatures[row, k] = slopes[row][0][:, :, None] * through
            if second_order:
                curvatures[row, k] += (back * slopes[row][1])[:, :, None] * jacobians[row, k]
        gradients.insert(0, slopes[row][0] * back)
    input_jacobians = {}
    if second_order:
        for row in range(1, len(layers)):
            for k in range(row):
                # d a_l / d z_k; the appended 1 depends on nothing.
                moved = slopes[row - 1][0][:, :, None] * jacobians[row - 1, k]
                if layers[row].bias is not None:
                    moved = torch.cat([moved, torch.zeros_like(moved[:, :1])], dim=1)
                input_jacobians[row, k] = moved
    return _Pass(inputs, gradients, curvatures, input_jacobians)


def _triangle(size: int) -> Tensor:
    return torch.triu_indices(size, size)


def _row_kronecker(left: Tensor, right: Tensor) -> Tensor:
    return (left[:, :, None] * right[:, None, :]).flatten(1)


def _add(sums: dict, key: tuple[int, int], left: Tensor, right: Tensor) -> None:
    """Add ``left^T right``; numpy's OpenBLAS is the faster GEMM on the CPU, and memory is shared."""
    if left.device.type == "cpu":
        product = torch.from_numpy(np.matmul(left.contiguous().numpy().T, right.contiguous().numpy()))
    else:
        product = left.T @ right
    if key in sums:
        sums[key] += product
    else:
        sums[key] = product


def _assemble(chain: Chain, sums: dict, crossed: dict, symmetric: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Put the sums, indexed ``(o o', i i')``, in their places ``(o i, o' i')`` in the order of the layout."""
    problem, layers = chain.problem, chain.layers
    result = torch.empty(problem.dim, problem.dim, dtype=problem.dtype, device=problem.device)
    for row, col in list(sums):
        first, second = layers[row], layers[col]
        block = sums.pop((row, col))
        if row == col:
            outs, ins = (_unpack(index).to(problem.device) for index in symmetric[row])
            block = block.index_select(1, ins).index_select(0, outs)
        block = block.view(first.fan_out, second.fan_out, first.columns, second.columns)
        if (row, col) in crossed:
            # indexed (o i', i o')
            cross = crossed.pop((row, col)).view(first.fan_out, second.columns, first.columns, second.fan_out)
            block += cross.permute(0, 3, 2, 1)
        block = block.permute(0, 2, 1, 3)  # (o, i, o', i')
        for at_first, rows in _places(first):
            for at_second, cols in _places(second):
                part = block[:, at_first][:, :, :, at_second]
                target = result[rows, cols]
                # rows are (o i), columns (o' i'): splitting them needs no copy
                target.unflatten(1, part.shape[2:]).unflatten(0, part.shape[:2]).copy_(part)
                if row != col:
                    result[cols, rows] = target.T
    return result


def _unpack(triangle: Tensor) -> Tensor:
    """Position of ``(a, b)`` in the packed upper triangle, for all ``a, b`` row by row."""
    size = int(triangle.max()) + 1
    position = torch.empty(size, size, dtype=torch.long)
    position[triangle[0], triangle[1]] = torch.arange(triangle.shape[1])
    position[triangle[1], triangle[0]] = torch.arange(triangle.shape[1])
    return position.reshape(-1)


def _places(layer: _Layer) -> list[tuple[slice, slice]]:
    """Where the columns of augmented rows go: ``(columns, slice of the layout)``; frozen parts go nowhere."""
    fan_in = layer.weight.shape[1]
    found = []
    if layer.weight_slice is not None:
        found.append((slice(0, fan_in), layer.weight_slice))
    if layer.bias is not None and layer.bias_slice is not None:
        found.append((slice(fan_in, fan_in + 1), layer.bias_slice))
    return found


def factor_rows(chain: Chain, where: slice, factor: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    r"""Rows $(J_n^T S_n)^T$ of a few examples, ``(n R, P)``: one backward pass for all columns, no Jacobian.

    ``factor(outputs, targets, where)`` gives $S_n$, ``(n, C, R)``.
    """
    problem, layers = chain.problem, chain.layers
    inputs, outputs, slopes = _forward(chain, where, 1)
    signal = factor(outputs[-1], problem.targets[where], where).mT  # (n, R, C)
    rows = torch.empty(*signal.shape[:2], problem.dim, dtype=problem.dtype, device=problem.device)
    for k in range(len(layers) - 1, -1, -1):
        layer = layers[k]
        fan_in = layer.weight.shape[1]
        if layer.weight_slice is not None:
            part = rows[:, :, layer.weight_slice].unflatten(2, (layer.fan_out, fan_in))
            torch.mul(signal[:, :, :, None], inputs[k][:, None, None, :fan_in], out=part)
        if layer.bias is not None and layer.bias_slice is not None:
            rows[:, :, layer.bias_slice] = signal
        if k:
            signal = (signal @ layer.weight) * slopes[k - 1][0][:, None]
    return rows.flatten(0, 1)


class Products:
    r"""Products of the Hessian or a GGN-type matrix with blocks of vectors, the network linearized once.

    The forward and the backward pass are linearized by hand (the R-operator of Pearlmutter 1994): with tangents $\dot
    W$, $\dot z_l = W_l \dot a_l + \dot W_l a_l$ and $\dot g_l = \partial_{\dot W} g_l$ the product is $\sum_n \dot
    g_l a_l^T + g_l \dot a_l^T$; without the terms in $g$ and $\phi''$ it is the GGN's. Everything that does not
    depend on the tangents is computed when the object is made, and takes memory for it: about ``6 N`` times the sum
    of the widths.
    """

    def __init__(self, chain: Chain, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool):
        self.chain, self.second_order = chain, second_order
        problem, layers = chain.problem, chain.layers
        inputs, outputs, slopes = _forward(chain, slice(None), 2 if second_order else 1)
        self.inputs = [a[:, : layer.weight.shape[1]] for a, layer in zip(inputs, layers, strict=True)]
        self.slopes = [parts[0] for parts in slopes]
        self.curved = output_hessian(outputs[-1], problem.targets) / problem.denominator
        self.gradients: list[Tensor] = []
        self.bends: list[Tensor] = []
        if second_order:
            slope = problem.loss.gradient(outputs[-1], problem.targets) / problem.denominator
            self.gradients = [slope]
            for k in range(len(layers) - 1, 0, -1):
                back = self.gradients[0] @ layers[k].weight
                self.bends.insert(0, back * slopes[k - 1][1])
                self.gradients.insert(0, back * slopes[k - 1][0])
        # Tangents of about a megabyte per layer stay in cache; larger blocks measured slower.
        widest = max(max(layer.weight.shape) for layer in layers)
        self.columns = max(1, _TANGENT_BYTES // (problem.num_examples * widest * problem.weights.element_size()))

    def __call__(self, block: Tensor) -> Tensor:
        """Multiply ``(P, K)``."""
        parts = [self._few(part) for part in block.split(self.columns, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _few(self, block: Tensor) -> Tensor:
        layers, count = self.chain.layers, block.shape[1]
        vectors = block.T.contiguous()
        product = torch.empty_like(vectors)
        signal_dots: list[Tensor | None] = [None]
        weight_dots = []
        z_dots = []
        for k, layer in enumerate(layers):
            dot = None
            weight_dot = None
            if layer.weight_slice is not None:
                weight_dot = vectors[:, layer.weight_slice].view(count, *layer.weight.shape)
                dot = self.inputs[k] @ weight_dot.mT
            if layer.bias is not None and layer.bias_slice is not None:
                bias_dot = vectors[:, None, layer.bias_slice]
                dot = bias_dot.expand(-1, len(self.inputs[k]), -1).clone() if dot is None else dot.add_(bias_dot)
            if signal_dots[k] is not None:
                moved = signal_dots[k] @ layer.weight.T
                dot = moved if dot is None else dot.add_(moved)
            if dot is None:
                dot = block.new_zeros(count, len(self.inputs[k]), layer.fan_out)
            weight_dots.append(weight_dot)
            z_dots.append(dot)
            signal_dots.append(self.slopes[k] * dot)
        slope_dot = (
            (self.curved @ z_dots[-1][..., None])[..., 0]
            if count == 1
            else torch.einsum("noc, knc -> kno", self.curved, z_dots[-1])
        )
        for k in range(len(layers) - 1, -1, -1):
            layer = layers[k]
            if layer.weight_slice is not None:
                total = slope_dot.mT @ self.inputs[k]
                if self.second_order and k:
                    total += self.gradients[k].T @ signal_dots[k]
                product[:, layer.weight_slice] = total.flatten(1)
            if layer.bias is not None and layer.bias_slice is not None:
                product[:, layer.bias_slice] = slope_dot.sum(dim=1)
            if k:
                back = slope_dot @ layer.weight
                if self.second_order and weight_dots[k] is not None:
                    back += self.gradients[k] @ weight_dots[k]
                slope_dot = back.mul_(self.slopes[k - 1])
                if self.second_order:
                    slope_dot.addcmul_(self.bends[k - 1], z_dots[k - 1])
        return product.T
