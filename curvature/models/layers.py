"""Inputs and output gradients of the linear and convolutional layers of a problem, per example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvature.arrays import Float, Int
from curvature.errors import NotDefinedError
from curvature.models import Problem
from curvature.models.derivatives import pulled_back
from curvature.models.module.replaced import runs_its_type

__all__ = ["LayerTrace", "trace_layers"]


_COMPARED = 8  # examples whose outputs of a layer are computed again


@dataclass(frozen=True, eq=False)
class LayerTrace:
    r"""One affine layer $z = W \tilde a$ seen on all data; ``T`` positions for a convolution, 1 for a linear layer.

    Attributes
    ----------
    path
        The module's path.
    weight, bias
        Entry names; ``bias`` is None where there is none or it is frozen.
    inputs
        $\tilde a$, ``(N, T, fan_in)``, a column of ones appended if there is a bias.
    output_gradients
        $\partial \phi_r / \partial z$ for the columns $\phi_r$ of an output-space factor, ``(N, R, T, fan_out)``; None
        unless asked for.
    depends_on_weights
        Whether the layer's input depends on trainable weights (False for the first layer).
    is_output
        Whether the layer's output is the model's output.
    """

    path: str
    weight: str
    bias: str | None
    inputs: Float[Tensor, "examples _ length"]
    output_gradients: Float[Tensor, "examples columns _ rows"] | None
    depends_on_weights: bool
    is_output: bool

    def rows(self, problem: Problem) -> Int[Tensor, "rows length"]:
        """Positions in the flat weights of the augmented rows ``[w, b]``: ``(fan_out, fan_in (+ 1))``."""
        index = torch.arange(problem.dim)
        weight = index[problem.layout.slices[self.weight]]
        fan_out = problem.unflatten(problem.weights)[self.weight].shape[0]
        rows = weight.view(fan_out, -1)
        if self.bias is None:
            return rows
        return torch.cat([rows, index[problem.layout.slices[self.bias]][:, None]], dim=1)


def trace_layers(
    problem: Problem, output_factor: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, LayerTrace]:
    r"""Run the data through the model once and record every linear and 1-d or 2-d convolutional layer.

    Layers used more than once, grouped or with unusual padding, or whose weight is frozen or tied are left out, and so
    are layers that compute something else than the affine function of their parameters; of packed data,
    convolutions are left out too.

    Parameters
    ----------
    problem
        The network, at its point.
    output_factor
        Maps outputs and targets of some examples to a factor $S$ ``(n, M, R)``, whose columns are pulled back to the
        outputs of the layers; None for the inputs only.

    Returns
    -------
    dict
        The trace of each layer, by its path.

    Raises
    ------
    NotDefinedError
        If the data are streamed.

    Notes
    -----
    Costs one forward pass, and ``R`` backward passes with a factor.
    """
    if problem.is_streamed:
        raise NotDefinedError(
            "this needs the inputs of every layer for all examples in memory, and the data are streamed. Leave "
            "stream=True (--stream) out, with fewer examples if they do not fit into memory."
        )
    packed = problem.function.reader.packed
    recorded: dict[str, list[_Piece]] = {}
    affine: set[str] = set()  # of the first chunk
    for rows in problem.chunks():
        leaves = problem.leaves()
        with torch.enable_grad(), _recording(problem.model) as calls:
            outputs = problem.predict(leaves, problem.inputs[rows])
        single = {path: of_layer[0] for path, of_layer in calls.items() if len(of_layer) == 1}
        if not recorded:
            affine = {path for path, call in single.items() if _is_affine(problem, path, call, leaves)}
        single = {path: call for path, call in single.items() if path in affine}
        gradients: dict[str, Tensor] = {}
        if output_factor is not None:
            gradients = _pulled_back(single, outputs, output_factor(outputs.detach(), problem.targets[rows]))
        for path, call in single.items():
            piece = _Piece(call.inputs, gradients.get(path), call.depends_on_weights, call.passed_on is outputs)
            if not packed:
                recorded.setdefault(path, []).append(piece)
            elif isinstance(problem.model.get_submodule(path), nn.Linear):
                recorded[path] = [piece.of_one_example()]
    uses = Counter(id(parameter) for _, parameter in problem.model.named_parameters(remove_duplicate=False))
    traces = {}
    for path, pieces in recorded.items():
        layer = problem.model.get_submodule(path)
        weight, bias = (f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias"))
        tied = weight in problem.aliases.values() or uses[id(layer.weight)] != 1
        if weight in problem.layout.slices and not tied:
            has_bias = layer.bias is not None and bias in problem.layout.slices
            traces[path] = _trace(layer, path, weight, bias if has_bias else None, pieces)
    return traces


def _trace(layer: nn.Module, path: str, weight: str, bias: str | None, pieces: list[_Piece]) -> LayerTrace:
    inputs = torch.cat([_patches(layer, piece.inputs) for piece in pieces])
    if bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
    gradients = [_positions(layer, piece.gradients) for piece in pieces if piece.gradients is not None]
    return LayerTrace(
        path,
        weight,
        bias,
        inputs,
        torch.cat(gradients) if gradients else None,
        pieces[0].depends_on_weights,
        pieces[0].is_output,
    )


def _is_affine(problem: Problem, path: str, call: _Call, weights: Mapping[str, Tensor]) -> bool:
    """Whether the outputs of a layer, for a few examples, are its weight times its inputs plus its bias.

    A subclass may override ``forward``, and methods and functions can be replaced.
    """
    layer: Any = problem.model.get_submodule(path)
    prefix = f"{path}." if path else ""
    name = problem.aliases.get(f"{prefix}weight", f"{prefix}weight")
    weight, bias = weights.get(name, layer.weight), layer.bias
    if bias is not None:
        name = problem.aliases.get(f"{prefix}bias", f"{prefix}bias")
        bias = weights.get(name, bias)
    with torch.no_grad():
        outputs = _positions(layer, call.outputs[:_COMPARED, None])[:, 0]
        expected = _patches(layer, call.inputs[:_COMPARED]) @ weight.flatten(1).T
        expected = expected if bias is None else expected + bias
        if outputs.shape != expected.shape:
            return False
        allowed = torch.finfo(outputs.dtype).eps ** 0.6 * torch.maximum(outputs.abs().max(), expected.abs().max())
        return bool((outputs - expected).abs().max() <= allowed)


class _Call(NamedTuple):
    """One call of a layer: its input, its output with the graph, and the copy that later layers got."""

    inputs: Tensor
    outputs: Tensor
    depends_on_weights: bool
    passed_on: Tensor


class _Piece(NamedTuple):
    """A layer on one chunk of examples, without the graph."""

    inputs: Tensor
    gradients: Tensor | None
    depends_on_weights: bool
    is_output: bool

    def of_one_example(self) -> _Piece:
        """The same with an axis for the one example that packed data are, whose first axis is a position."""
        gradients = None if self.gradients is None else self.gradients.movedim(1, 0)[None]
        return self._replace(inputs=self.inputs[None], gradients=gradients)


def _pulled_back(calls: dict[str, _Call], outputs: Tensor, factor: Tensor) -> dict[str, Tensor]:
    """Gradients of the columns of a factor ``(n, M, R)`` at the outputs of the layers, ``(n, R, ...)`` by path."""
    reached = [path for path, call in calls.items() if call.outputs.requires_grad]
    if not reached:
        return {}
    layers = [calls[path].outputs for path in reached]
    columns = [
        pulled_back([outputs], layers, [column.reshape(outputs.shape)], retain_graph=True)
        for column in factor.unbind(dim=2)
    ]
    gradients = zip(*columns, strict=True)  # by layer, then by column
    return {path: torch.stack(parts, dim=1).detach() for path, parts in zip(reached, gradients, strict=True)}


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, list[_Call]]]:
    """Record the calls of every supported layer while the block runs; ``model`` is the private copy."""
    calls: dict[str, list[_Call]] = {}
    handles = []
    for path, layer in model.named_modules():
        if not _supported(layer):
            continue

        def record(_layer: nn.Module, args: tuple, kwargs: dict, output: Tensor, path: str = path) -> Tensor:
            inputs = args[0] if args else kwargs["input"]
            if torch._C._functorch.is_functorch_wrapped_tensor(inputs):  # it has no values outside torch.func
                return output
            # Later layers may write in place: they get a copy of the output, and the input is copied here.
            passed_on = output.clone()
            call = _Call(inputs.detach().clone(), output, inputs.requires_grad, passed_on)
            calls.setdefault(path, []).append(call)
            return passed_on

        handles.append(layer.register_forward_hook(record, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _supported(layer: nn.Module) -> bool:
    if not runs_its_type(layer):
        return False
    if isinstance(layer, nn.Linear):
        return True
    plain = isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs as ``(n, positions, fan_in)``."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    convolution: Any = layer  # the stubs of torch allow a padding by name, which `_supported` does not
    kernel, dilation, padding, stride = (
        getattr(convolution, setting) for setting in ("kernel_size", "dilation", "padding", "stride")
    )
    if isinstance(layer, nn.Conv1d):
        inputs = inputs[:, :, None]
        kernel, dilation, padding, stride = (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
    return functional.unfold(inputs, kernel, dilation, padding, stride).mT


def _positions(layer: nn.Module, gradients: Tensor) -> Tensor:
    """Output gradients ``(n, R, ...)`` as ``(n, R, positions, fan_out)``."""
    if isinstance(layer, nn.Linear):
        return gradients.reshape(*gradients.shape[:2], -1, gradients.shape[-1])
    return gradients.flatten(3).mT
