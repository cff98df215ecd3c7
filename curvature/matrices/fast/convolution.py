r"""Dense matrices of convolutional networks by contractions over examples and positions.

A convolution is linear in its weights on patches: $z_l[t, o] = \sum_i W_l[o, i]\, a_l[t, i]$ with ``T_l`` positions
``t``, one for a linear layer. Derivatives are first taken by the columns $c_k$ of each layer, its outputs $z_k$ or its
weights, whichever are fewer. With tangents $J_{lk} = \partial z_l / \partial c_k$ carried forward and $B_{lk} =
\partial g_l / \partial c_k$ carried backward, where $g_l = \partial \ell_n / \partial z_l$, for $k \le l$

$$\frac{\partial^2 \ell_n}{\partial W_l[o,i]\, \partial c_k} = \sum_t B_{lk}[t,o]\, a_l[t,i]
  + [l > k] \sum_t g_l[t,o]\, \frac{\partial a_l[t,i]}{\partial c_k} ,$$

and where $c_k = z_k$ one more contraction with $a_k$ over the positions of layer ``k``. Without the terms that hold
$\phi''$ or $g$ it is the GGN. About $N T_l P_l P_k$ multiplications for the block of two layers.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

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

_CHUNK_BYTES = 64 * 2**20


def curvature(network: Network, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool) -> Tensor:
    r"""Dense Hessian or GGN-type matrix of the mean loss.

    Parameters
    ----------
    network
        The steps, $P$ weights in all.
    output_hessian
        ``(outputs, targets)`` to $\nabla_f^2 \ell_n$, or another symmetric matrix in output space, ``(n, C, C)``.
    second_order
        Whether the terms with $\phi''$ and with the gradient are there: the Hessian.

    Returns
    -------
    Tensor
        ``(P, P)``.

    Notes
    -----
    Streams the examples in chunks; memory is the result, its blocks before they are put in place (half of it), and a
    bounded buffer.
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
    if isinstance(step, Pointwise):
        return block * trace.slopes[s][:, :, None]
    return step.push(block, trace.chosen[s]) if isinstance(step, Select) else step.push(block)


def pull(step: Step, s: int, trace: Trace, block: Tensor) -> Tensor:
    """Pull cotangents back through one step.

    Parameters
    ----------
    step, s
        The step, and its place.
    trace
        Of the same examples.
    block
        Cotangents of its outputs, ``(n, size, columns)``.

    Returns
    -------
    Tensor
        Cotangents of its inputs.
    """
    if isinstance(step, Pointwise):
        return block * trace.slopes[s][:, :, None]
    return step.pull(block, trace.chosen[s]) if isinstance(step, Select) else step.pull(block)


def _numbers_per_example(network: Network, second_order: bool) -> int:
    """What is held at once for one example, roughly."""
    total, sizes = 0, [prod(step.shape) for step in network.steps]
    for k in network.trained:
        layer = network.layer(k)
        start = k if layer.by_outputs else network.behind(k)
        later = sizes[start:] or sizes[-1:]
        columns = layer.fan_out * layer.positions if layer.by_outputs else layer.num_weights
        # Derivatives carried back and their images; for a Hessian tangents at every step besides.
        total += columns * (2 * max(later) + (sum(later) if second_order else max(later)))
        total += layer.columns * sum(sizes[k : network.behind(k)])
        total += layer.num_weights * layer.positions
        # Patches of the tangents of one channel, taken by a later layer.
        patched = (step.positions * step.fan_in for step in network.steps[k + 1 :] if isinstance(step, Weighted))
        total += layer.columns * max(patched, default=0) if second_order else 0
    return total


def curvature_bytes(network: Network) -> float:
    """Bound the memory of :func:`curvature`.

    Parameters
    ----------
    network
        The steps.

    Returns
    -------
    float
        Bytes.
    """
    numbers = _numbers_per_example(network, True)
    return held_bytes(network, numbers, examples_at_once(network, numbers))


def examples_at_once(network: Network, numbers: int) -> int:
    """Choose how many examples make a chunk: it may hold a quarter of the result.

    Parameters
    ----------
    network
        The steps.
    numbers
        Held for each example.

    Returns
    -------
    int
        At least one.
    """
    problem = network.problem
    most = max(_CHUNK_BYTES // problem.weights.element_size(), problem.dim**2 // 4)
    return max(1, min(problem.num_examples, most // numbers))


def held_bytes(network: Network, numbers: int, count: int) -> float:
    """Bound the memory for a dense matrix: the result, its blocks, and one chunk of examples.

    Parameters
    ----------
    network
        The steps.
    numbers
        Held for each example.
    count
        Examples in a chunk.

    Returns
    -------
    float
        Bytes.
    """
    item, dim = network.problem.weights.element_size(), network.problem.dim
    return item * 3.0 * dim**2 + 3.0 * max(_CHUNK_BYTES, item * numbers * count)


class _Contraction:
    """The derivatives of one chunk of examples, added to the blocks ``(P_l, P_k)``.

    Tangents are kept by the place of the step that takes them: full ones are ``(n, size, columns)``, diagonal ones
    ``(n, size)`` as long as nothing but elementwise functions lies behind the layer, and compact ones ``(n, size,
    columns of a row)`` until the next layer, since there the weights of one channel move this channel alone.
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
        """The place at whose output derivatives by the columns of layer ``k`` are last needed."""
        return k if self.network.layer(k).by_outputs else self.network.behind(k)

    def add(self) -> None:
        """Walk back from the outputs."""
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
            if isinstance(step, Pointwise):  # in place: what is carried is our own
                for carried in self.carried.values():
                    carried.mul_(self.trace.slopes[s][:, :, None])
            else:
                self.carried = {k: pull(step, s, self.trace, carried) for k, carried in self.carried.items()}
            if self.second_order:
                if isinstance(step, Pointwise):
                    self._bend(s)
                self.slope = pull(step, s, self.trace, self.slope[:, :, None])[:, :, 0]

    def _visit(self, s: int, layer: Weighted) -> None:
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
        """The block of a layer whose columns are its weights, from the derivatives at any later place."""
        self.blocks[k, k] += matmul(self.tangents[k][place].flatten(0, 1).T, self.carried[k].flatten(0, 1))

    def _contract(self, s: int, k: int) -> None:
        """``sum_t B[t, o] a_l[t, i]``, and over the positions of layer ``k`` where its columns are outputs."""
        layer, other = self.network.layer(s), self.network.layer(k)
        carried = self.carried[k].unflatten(1, (layer.fan_out, layer.positions)).transpose(1, 2)
        rows = self.trace.rows[k] if other.by_outputs else None
        contract(self.trace.rows[s], carried.unflatten(3, (other.fan_out, -1)), rows, self.blocks[s, k], s == k)

    def _cross(self, s: int, k: int) -> None:
        """``sum_t g_l[t, o] (d a_l[t, i] / d W_k)``."""
        layer, other = self.network.layer(s), self.network.layer(k)
        slope = self.slope.view(-1, layer.fan_out, layer.positions).mT.reshape(-1, layer.fan_out).T
        block = self.blocks[s, k].view(layer.fan_out, layer.columns, other.fan_out, other.columns)

        def along(tangent: Tensor) -> Tensor:
            patches = layer.patches(tangent)
            return matmul(slope, patches.reshape(slope.shape[1], -1)).view(layer.fan_out, layer.fan_in, -1)

        if self.network.behind(k) == s:
            inputs = torch.arange(layer.fan_in, device=slope.device)
            size = prod(layer.before)
            channels = inputs // (layer.fan_in // layer.before[0]) * (size // layer.before[0])  # where they start
            block[:, inputs, channels // (size // other.fan_out)] += along(self.compact[k][s])
            return
        tangents = self.tangents[k][s]
        width = tangents.shape[2] // other.fan_out
        for o in range(other.fan_out):
            part = tangents[:, :, o * width : (o + 1) * width]
            part = matmul(part, self.trace.rows[k]) if other.by_outputs else part
            block[:, : layer.fan_in, o] += along(part)

    def _bend(self, s: int) -> None:
        r"""What $\phi''$ of an elementwise function adds."""
        bend = self.slope * self.trace.bends[s]
        for k, carried in self.carried.items():
            tangent = self.tangents[k][s]
            if tangent.ndim == 2:
                carried.diagonal(dim1=1, dim2=2).add_(bend * tangent)
            else:
                carried.addcmul_(bend[:, :, None], tangent)
        for k in self.network.trained:
            layer = self.network.layer(k)
            if not layer.by_outputs and k < s < self.network.behind(k):
                tangent = self.compact[k][s].unflatten(1, (layer.fan_out, -1)).transpose(0, 1).flatten(1, 2)
                weights = bend.unflatten(1, (layer.fan_out, -1)).transpose(0, 1).flatten(1)
                own = matmul(tangent.mT, tangent * weights[:, :, None])
                block = self.blocks[k, k].view(layer.fan_out, layer.columns, layer.fan_out, layer.columns)
                block.diagonal(dim1=0, dim2=2).add_(own.permute(1, 2, 0))

    def _compact(self, k: int) -> dict[int, Tensor]:
        """Derivatives by the weights of one row, all rows at once: ``(n, channels * positions, columns)``."""
        rows, layer = self.trace.rows[k], self.network.layer(k)
        current = rows[:, None].expand(-1, layer.fan_out, -1, -1).flatten(1, 2)
        tangents = {k + 1: current}
        for s in range(k + 1, self.network.behind(k)):
            current = tangents[s + 1] = _push(self.steps[s], s, self.trace, current)
        return tangents

    def _tangents(self, k: int) -> dict[int, Tensor]:
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
        """Compact tangents through the next layer."""
        layer = self.network.layer(s)
        matrix = layer.matrix
        if matrix is None:
            return layer.push(spread(compact, channels))
        each = matrix.unflatten(1, (channels, -1)).transpose(0, 1).contiguous()
        images = matmul(each, compact.unflatten(1, (channels, -1)))  # (n, channel, outputs, columns)
        return images.transpose(1, 2).flatten(2)
