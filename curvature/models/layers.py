"""What flows through the linear and convolutional layers of a problem: inputs and output gradients, per example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvature.models import Problem

__all__ = ["LayerTrace", "trace_layers"]


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
    inputs: Tensor
    output_gradients: Tensor | None
    depends_on_weights: bool
    is_output: bool

    def rows(self, problem: Problem) -> Tensor:
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

    Layers used more than once, grouped or with unusual padding, or whose weight is frozen or tied are left out. With
    ``output_factor(outputs, targets) -> S (n, M, R)`` the columns are also pulled back to the layers' outputs.
    Cost: one forward pass, and ``R`` backward passes with a factor.
    """
    pieces: dict[str, list[tuple]] = {}
    for where in problem.chunks():
        leaves = problem.leaves()
        with torch.enable_grad(), _recorded(problem.model) as seen:
            outputs = problem.predict(leaves, problem.inputs[where])
        single = {path: calls[0] for path, calls in seen.items() if len(calls) == 1}
        gradients: dict[str, list[Tensor]] = {path: [] for path in single}
        if output_factor is not None:
            factor = output_factor(outputs.detach(), problem.targets[where])
            reached = [path for path, (_, z, *_) in single.items() if z.requires_grad]
            for column in factor.unbind(dim=2) if reached else ():
                found = torch.autograd.grad(
                    outputs,
                    [single[path][1] for path in reached],
                    column.reshape(outputs.shape),
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for path, gradient in zip(reached, found, strict=True):
                    gradients[path].append(gradient)
        for path, (a, _, depends, passed_on) in single.items():
            stacked = torch.stack(gradients[path], dim=1).detach() if gradients[path] else None
            pieces.setdefault(path, []).append((a, stacked, depends, passed_on is outputs))
    traces = {}
    for path, parts in pieces.items():
        layer = problem.model.get_submodule(path)
        weight = f"{path}.weight" if path else "weight"
        bias = f"{path}.bias" if path else "bias"
        if weight not in problem.layout.slices or weight in problem.aliases.values():
            continue
        if sum(p is layer.weight for _, p in problem.model.named_parameters(remove_duplicate=False)) != 1:
            continue
        inputs = torch.cat([_patches(layer, a) for a, *_ in parts])
        has_bias = layer.bias is not None and bias in problem.layout.slices
        if has_bias:
            inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
        outputs = None if parts[0][1] is None else torch.cat([_positions(layer, g) for _, g, *_ in parts])
        traces[path] = LayerTrace(path, weight, bias if has_bias else None, inputs, outputs, parts[0][2], parts[0][3])
    return traces


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor, bool, Tensor]]]]:
    """Record every supported layer while the block runs; ``model`` is the private copy.

    Per call: the input, the output, whether the input depends on weights, and what was passed on.
    """
    seen: dict[str, list[tuple[Tensor, Tensor, bool, Tensor]]] = {}
    handles = []
    for path, layer in model.named_modules():
        if not _supported(layer):
            continue

        def record(_layer: nn.Module, args: tuple, kwargs: dict, output: Tensor, path: str = path) -> Tensor:
            given = args[0] if args else kwargs["input"]
            # What comes later may write in place: it gets a copy of the output, and the input is copied here.
            passed_on = output.clone()
            seen.setdefault(path, []).append((given.detach().clone(), output, given.requires_grad, passed_on))
            return passed_on

        handles.append(layer.register_forward_hook(record, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    plain = isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs as ``(n, positions, fan_in)``."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    if isinstance(layer, nn.Conv1d):
        settings = [(1, value[0]) for value in (layer.kernel_size, layer.dilation, layer.stride)]
        kernel, dilation, stride = settings
        return functional.unfold(inputs[:, :, None], kernel, dilation, (0, layer.padding[0]), stride).mT
    return functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT


def _positions(layer: nn.Module, gradients: Tensor) -> Tensor:
    """Output gradients ``(n, R, ...)`` as ``(n, R, positions, fan_out)``."""
    if isinstance(layer, nn.Linear):
        return gradients.reshape(*gradients.shape[:2], -1, gradients.shape[-1])
    return gradients.flatten(3).mT
