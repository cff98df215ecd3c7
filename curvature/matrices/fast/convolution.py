r"""Entries of the matrices of convolutional networks, by contractions over examples and positions.

A convolution is linear in its weights on patches: $z_l[t, o] = \sum_i W_l[o, i]\, a_l[t, i]$ with $T_l$ positions $t$;
a linear layer has one position. Derivatives are first taken by the columns $c_k$ of each layer, which are its outputs
$z_k$ or its weights, whichever are fewer. Tangents $J_{lk} = \partial z_l / \partial c_k$ are carried forward, and
$B_{lk} = \partial g_l / \partial c_k$ backward, where $g_l = \partial \ell_n / \partial z_l$. Then for $k \le l$

$$\frac{\partial^2 \ell_n}{\partial W_l[o,i]\, \partial c_k} = \sum_t B_{lk}[t,o]\, a_l[t,i]
  + [l > k] \sum_t g_l[t,o]\, \frac{\partial a_l[t,i]}{\partial c_k} ,$$

and if $c_k = z_k$ this is contracted once more, with $a_k$ over the positions of layer $k$. Without the terms with
$\phi''$ or $g$ it is the GGN. The block of two layers takes about $N T_l P_l P_k$ multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.matrices.fast.chain import matmul
from curvature.matrices.fast.layer_blocks import assemble, contract, spread
from curvature.matrices.fast.network import Network, Trace, forward
from curvature.matrices.fast.steps import Pointwise, Select, Step, Weighted

__all__ = [
    "curvature",
    "curvature_bytes",
    "examples_at_once",
    "held_bytes",
    "pull",
]

_CHUNK_BYTES = 64 * 2**20  # of a chunk of examples, unless a quarter of the result is more


def curvature(
    network: Network, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool
) -> Float[Tensor, "weights weights"]:
    r"""Compute the entries of the Hessian, or of a matrix of the form of the GGN.

    Parameters
    ----------
    network
        The network, with $P$ weights in all.
    output_hessian
        ``(outputs, targets)`` to $\nabla_f^2 \ell_n$ or another symmetric matrix in output space, ``(n, C, C)``.
    second_order
        Whether to add the terms with $\phi''$ and with $g$, for the Hessian.

    Returns
    -------
    Tensor
        ``(P, P)``.

    Notes
    -----
    The examples are processed in chunks. Memory is the result, the blocks before they are put in place (half of the
    result), and a bounded buffer.
    """
    problem, trained = network.problem, network.trained
    layers = {s: network.layer(s) for s in trained}
    blocks = {
        (row, col): problem.weights.new_zeros(layers[row].num_weights, layers[col].num_weights)
        for row in trained
        for col in trained
        if col <= row
    }
    size = examples_at_once(network, _numbers_per_example(network, second_order))
    for start in range(0, problem.num_examples, size):
        examples = slice(start, start + size)
        trace = forward(network, examples, 2 if second_order else 1)
        targets = problem.targets[examples]
        curved = output_hessian(trace.outputs, targets) / problem.denominator
        slope = problem.loss.gradient(trace.outputs, targets) / problem.denominator if second_order else None
        _Contraction(network, trace, blocks, curved, slope).add()
    return assemble(network, blocks)


def _push(step: Step, s: int, trace: Trace, block: Tensor) -> Tensor:
    """Push tangents ``(n, size, columns)`` of the inputs of step ``s`` forward to its outputs."""
    if isinstance(step, Pointwise):
        return block * trace.slopes[s][:, :, None]
    return step.push(block, trace.chosen[s]) if isinstance(step, Select) else step.push(block)


def pull(
    step: Step, s: int, trace: Trace, block: Float[Tensor, "examples _ columns"]
) -> Float[Tensor, "examples _ columns"]:
    """Pull cotangents back through one step.

    Parameters
    ----------
    step, s
        The step and its index.
    trace
        Forward pass of the same examples.
    block
        Cotangents of its outputs, ``(n, size, columns)``.

    Returns
    -------
    Tensor
        Cotangents of its inputs, ``(n, size, columns)``.
    """
    if isinstance(step, Pointwise):
        return block * trace.slopes[s][:, :, None]
    return step.pull(block, trace.chosen[s]) if isinstance(step, Select) else step.pull(block)


def _numbers_per_example(network: Network, second_order: bool) -> int:
    """Rough count of the numbers that are held at once for one example."""
    total, sizes = 0, [prod(step.shape) for step in network.steps]
    for k in network.trained:
        layer = network.layer(k)
        start = k if layer.by_outputs else network.behind(k)
        later = sizes[start:] or sizes[-1:]
        columns = layer.fan_out * layer.positions if layer.by_outputs else layer.num_weights
        # Derivatives that are carried back, and their images; for a Hessian also tangents at every later step.
        total += columns * (2 * max(later) + (sum(later) if second_order else max(later)))
        total += layer.columns * sum(sizes[k : network.behind(k)])
        total += layer.num_weights * layer.positions
        # Patches that a later layer takes of the tangents of one channel.
        patched = (step.positions * step.fan_in for step in network.steps[k + 1 :] if isinstance(step, Weighted))
        total += layer.columns * max(patched, default=0) if second_order else 0
    return total


def curvature_bytes(network: Network) -> float:
    """Bound the peak memory of :func:`curvature`.

    Parameters
    ----------
    network
        The network.

    Returns
    -------
    float
        Upper bound in bytes.
    """
    numbers = _numbers_per_example(network, True)
    return held_bytes(network, numbers, examples_at_once(network, numbers))


def examples_at_once(network: Network, numbers: int) -> int:
    """Choose the number of examples in a chunk.

    Parameters
    ----------
    network
        The network.
    numbers
        Numbers that are held for each example.

    Returns
    -------
    int
        At least one; a chunk holds at most 64 MB, or a quarter of the result if that is more.
    """
    problem = network.problem
    most = max(_CHUNK_BYTES // problem.weights.element_size(), problem.dim**2 // 4)
    return max(1, min(problem.num_examples, most // numbers))


def held_bytes(network: Network, numbers: int, count: int) -> float:
    """Bound the peak memory of the entries: the result, its blocks, and one chunk of examples.

    Parameters
    ----------
    network
        The network.
    numbers
        Numbers that are held for each example.
    count
        Examples in a chunk.

    Returns
    -------
    float
        Upper bound in bytes.
    """
    item, dim = network.problem.weights.element_size(), network.problem.dim
    return item * 3.0 * dim**2 + 3.0 * max(_CHUNK_BYTES, item * numbers * count)


class _Contraction:
    """The derivatives of one chunk of examples, which are added to the blocks ``(P_l, P_k)``.

    Tangents are stored by the index of the step that they enter, in the cheapest of three forms. *Full* tangents are
    ``(n, size, columns)``. *Diagonal* ones, by outputs, are ``(n, size)`` as long as only elementwise functions follow
    the layer. *Compact* ones, by weights, are ``(n, size, columns of a row)`` until the next layer: the weights of one
    output channel influence only this channel.
    """

    def __init__(
        self,
        network: Network,
        trace: Trace,
        blocks: dict[tuple[int, int], Tensor],
        curved: Tensor,
        slope: Tensor | None,
    ):
        self.network, self.steps, self.trace, self.blocks = network, network.steps, trace, blocks
        self.second_order, self.end = slope is not None, len(network.steps)
        self.slope = curved.new_zeros(0) if slope is None else slope  # of the loss, at the outputs of the current step
        self.compact = {k: self._compact(k) for k in network.trained if self._needs_compact(k)}
        self.tangents = {k: self._tangents(k) for k in network.trained}
        self.carried = {k: matmul(curved, tangents[self.end]) for k, tangents in self.tangents.items()}

    def _needs_compact(self, k: int) -> bool:
        return not self.network.layer(k).by_outputs or (self.second_order and self.network.behind(k) < self.end)

    def _returns(self, k: int) -> int:
        """Step after which the derivatives by the columns of layer ``k`` are no longer carried back."""
        return k if self.network.layer(k).by_outputs else self.network.behind(k)

    def add(self) -> None:
        """Go back from the outputs, contracting at every layer what has been carried back to it."""
        first = self.network.trained[0]
        for k in self.network.trained:
            if self._returns(k) == self.end or not (self.network.layer(k).by_outputs or self.second_order):
                self._add_own(k, self.end)
        for s in range(self.end - 1, first - 1, -1):
            step = self.steps[s]
            self.carried = {k: carried for k, carried in self.carried.items() if self._returns(k) <= s}
            if isinstance(step, Weighted):
                self._visit(s, step)
                self.carried = {k: carried for k, carried in self.carried.items() if self._returns(k) < s}
            if s == first:
                break
            if isinstance(step, Pointwise):  # in place: no one else uses these tensors
                for carried in self.carried.values():
                    carried.mul_(self.trace.slopes[s][:, :, None])
            else:
                self.carried = {k: pull(step, s, self.trace, carried) for k, carried in self.carried.items()}
            if self.second_order:
                if isinstance(step, Pointwise):
                    self._bend(s)
                self.slope = pull(step, s, self.trace, self.slope[:, :, None])[:, :, 0]

    def _visit(self, s: int, layer: Weighted) -> None:
        """Add every block of layer ``s``: the first term of the formula, and for the Hessian the second."""
        if layer.trained:
            for k in self.carried:
                self._contract(s, k)
            if self.second_order:
                for k in self.network.trained[: self.network.trained.index(s)]:
                    self._cross(s, k)
        if self.second_order:
            for k in self.carried:
                if not self.network.layer(k).by_outputs and self.network.behind(k) == s:
                    self._add_own(k, s + 1)

    def _add_own(self, k: int, place: int) -> None:
        """Add the block of layer ``k`` with itself, whose columns are its weights: ``J^T B`` at any later step."""
        self.blocks[k, k] += matmul(self.tangents[k][place].flatten(0, 1).T, self.carried[k].flatten(0, 1))

    def _contract(self, s: int, k: int) -> None:
        """Add the first term, ``sum_t B[t, o] a_l[t, i]``, contracted with ``a_k`` if the columns are outputs."""
        layer, other = self.network.layer(s), self.network.layer(k)
        carried = self.carried[k].unflatten(1, (layer.fan_out, layer.positions)).transpose(1, 2)
        rows = self.trace.rows[k] if other.by_outputs else None
        contract(self.trace.rows[s], carried.unflatten(3, (other.fan_out, -1)), rows, self.blocks[s, k], s == k)

    def _cross(self, s: int, k: int) -> None:
        """Add the second term, ``sum_t g_l[t, o] (d a_l[t, i] / d W_k)``."""
        layer, other = self.network.layer(s), self.network.layer(k)
        slope = self.slope.view(-1, layer.fan_out, layer.positions).mT.reshape(-1, layer.fan_out).T
        block = self.blocks[s, k].view(layer.fan_out, layer.columns, other.fan_out, other.columns)

        def along(tangent: Tensor) -> Tensor:
            patches = layer.patches(tangent)
            return matmul(slope, patches.reshape(slope.shape[1], -1)).view(layer.fan_out, layer.fan_in, -1)

        if self.network.behind(k) == s:
            # Between neighbouring layers an input channel of layer s depends on one output channel of layer k only, so
            # the compact tangents suffice: input i belongs to the columns of its channel, here by first coordinate.
            inputs = torch.arange(layer.fan_in, device=slope.device)
            size = prod(layer.before)
            channels = inputs // (layer.fan_in // layer.before[0]) * (size // layer.before[0])
            block[:, inputs, channels // (size // other.fan_out)] += along(self.compact[k][s])
            return
        # Otherwise one output channel of layer k at a time, so that the patches of the tangents stay small.
        tangents = self.tangents[k][s]
        width = tangents.shape[2] // other.fan_out
        for o in range(other.fan_out):
            part = tangents[:, :, o * width : (o + 1) * width]
            part = matmul(part, self.trace.rows[k]) if other.by_outputs else part
            block[:, : layer.fan_in, o] += along(part)

    def _bend(self, s: int) -> None:
        r"""Add the term of $\phi''$ at an elementwise step, $\operatorname{diag}(g \phi'') J$, to the carried $B$."""
        bend = self.slope * self.trace.bends[s]  # here self.slope is the gradient at the outputs of the step
        for k, carried in self.carried.items():
            tangent = self.tangents[k][s]
            if tangent.ndim == 2:
                carried.diagonal(dim1=1, dim2=2).add_(bend * tangent)
            else:
                carried.addcmul_(bend[:, :, None], tangent)
        # Derivatives by weights are carried back to the next layer only. The term between the two layers is added to
        # the block itself, J^T diag(g phi'') J, for each output channel separately, since J is compact.
        for k in self.network.trained:
            layer = self.network.layer(k)
            if not layer.by_outputs and k < s < self.network.behind(k):
                tangent = self.compact[k][s].unflatten(1, (layer.fan_out, -1)).transpose(0, 1).flatten(1, 2)
                weights = bend.unflatten(1, (layer.fan_out, -1)).transpose(0, 1).flatten(1)
                own = matmul(tangent.mT, tangent * weights[:, :, None])
                block = self.blocks[k, k].view(layer.fan_out, layer.columns, layer.fan_out, layer.columns)
                block.diagonal(dim1=0, dim2=2).add_(own.permute(1, 2, 0))

    def _compact(self, k: int) -> dict[int, Tensor]:
        """Compact tangents by the weights of layer ``k``, ``(n, channels * positions, columns)``, to the next layer."""
        rows, layer = self.trace.rows[k], self.network.layer(k)
        current = rows[:, None].expand(-1, layer.fan_out, -1, -1).flatten(1, 2)
        tangents = {k + 1: current}
        for s in range(k + 1, self.network.behind(k)):
            current = tangents[s + 1] = _push(self.steps[s], s, self.trace, current)
        return tangents

    def _tangents(self, k: int) -> dict[int, Tensor]:
        """Tangents by the columns of layer ``k`` at every later step; for the GGN at the outputs only."""
        layer, behind = self.network.layer(k), self.network.behind(k)
        if layer.by_outputs:
            start, current = k + 1, torch.ones_like(self.trace.rows[k][:, 0, :1]).expand(-1, prod(layer.shape))
        elif behind == self.end:
            return {self.end: spread(self.compact[k][behind], layer.fan_out)}
        else:
            start, current = behind + 1, self._leave(behind, self.compact[k][behind], layer.fan_out)
        tangents = {start: current}
        for s in range(start, self.end):
            step = self.steps[s]
            if current.ndim == 3:
                current = _push(self.steps[s], s, self.trace, current)
            elif isinstance(step, Pointwise):
                current = current * self.trace.slopes[s]
            elif isinstance(step, Weighted) and step.matrix is not None:
                current = step.matrix * current[:, None]
            else:
                current = _push(step, s, self.trace, torch.diag_embed(current))
            tangents[s + 1] = current
        if current.ndim == 2:
            tangents[self.end] = torch.diag_embed(current)
        return tangents if self.second_order else {self.end: tangents[self.end]}

    def _leave(self, s: int, compact: Tensor, channels: int) -> Tensor:
        """Push compact tangents through the next layer, after which they are full."""
        layer = self.network.layer(s)
        matrix = layer.matrix
        if matrix is None:
            return layer.push(spread(compact, channels))
        each = matrix.unflatten(1, (channels, -1)).transpose(0, 1).contiguous()
        images = matmul(each, compact.unflatten(1, (channels, -1)))  # (n, channel, outputs, columns)
        return images.transpose(1, 2).flatten(2)
