"""A module as a pure function of its weights: ``f(x; w)``, with no state and nothing of the user's touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvature.arrays import Float
from curvature.errors import InputError
from curvature.layout import Layout
from curvature.models.calling import Reader, arguments
from curvature.models.module.copying import holding, private_copy
from curvature.models.substitutes import Padding, Substitutes
from curvature.models.trees import Structure, Tensors, structure_of, tree_of
from curvature.precision import full_precision

__all__ = ["ModelFunction"]


@dataclass(frozen=True, eq=False)
class ModelFunction:
    r"""The map $(w, x) \mapsto f(x; w)$ that a module computes.

    Attributes
    ----------
    module
        A private copy of the user's module. Parameters outside the layout keep the values they have in it.
    layout
        Names and positions of the weights $w$ in a flat vector.
    aliases
        Names under which a weight of the layout is used a second time, each with the name in the layout.
    written
        Names of buffers that ``forward`` writes into (counters, running statistics). Every pass starts from the values
        they came with.
    attends
        Whether the module uses PyTorch's fused attention. It is then computed by the kernel that has a second
        derivative.
    reader
        Reads the outputs from what ``forward`` returns.
    differentiates
        Whether ``forward`` takes derivatives itself, as force fields do. It is then run with gradients enabled.
    recomputes
        Whether parts of ``forward`` are computed again in a backward pass (activation checkpoints). Every call then has
        its own copy of the module, which keeps the weights of the call.
    replaces
        Whether functions of PyTorch without a second derivative are replaced by equal ones.
    padded
        Rows of embeddings, by the name of the weight, that ``padding_idx`` masks: they are constants.
    """

    module: nn.Module = field(repr=False)
    layout: Layout
    aliases: Mapping[str, str] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    attends: bool = False
    reader: Reader = field(default_factory=Reader)
    differentiates: bool = False
    recomputes: bool = False
    replaces: bool = False
    padded: Mapping[str, Padding] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Device of the module, hence of weights and inputs."""
        return next(self.module.parameters()).device

    @full_precision()
    def predict(self, weights: Tensor | Mapping[str, Tensor], inputs: Tensors | Structure) -> Tensor:
        """Evaluate the module, and read its outputs; differentiable in the weights.

        Parameters
        ----------
        weights
            A flat vector ``(P,)``, or every tensor of the layout by name.
        inputs
            Examples ``(N, ...)``, in a tensor or a structure of tensors; not modified, even by a module that writes
            into its input.

        Returns
        -------
        Tensor
            Outputs ``(N, ...)``.
        """
        inputs = tree_of(inputs)
        if self.reader.scalar:
            outputs = torch.cat([self.reader(self.call(weights, inputs[n : n + 1])) for n in range(len(inputs))])
        else:
            outputs = self.reader(self.call(weights, inputs))
        # A forward that differentiates returns a graph even where the caller has switched gradients off.
        return outputs.detach() if isinstance(outputs, Tensor) and not torch.is_grad_enabled() else outputs

    def call(self, weights: Tensor | Mapping[str, Tensor], inputs: Tensors) -> Any:
        """Call the module, and return what ``forward`` returns.

        Parameters
        ----------
        weights, inputs
            As for :meth:`predict`.

        Returns
        -------
        Any
            A tensor for most modules.
        """
        named = self.named(weights)
        named |= {name: self.module.get_buffer(name).clone() for name in self.written}
        with self.context(named):
            inputs = inputs[0] if self.reader.packed else inputs
            args, kwargs = arguments(structure_of(inputs.clone()), self.module.forward)
            if self.recomputes:
                return holding(self.module, named)(*args, **kwargs)
            return torch.func.functional_call(self.module, named, args, kwargs)

    def named(self, weights: Float[Tensor, "weights"] | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by name, with the second names of those that are shared.

        Parameters
        ----------
        weights
            Flat ``(P,)``, or by their names in the layout.

        Returns
        -------
        dict
            A tensor for each name in the module.
        """
        named = self.layout.unflatten(weights) if isinstance(weights, Tensor) else dict(weights)
        if self.aliases:
            named |= {alias: named[original] for alias, original in self.aliases.items()}
        return named

    @contextmanager
    def context(self, named: Mapping[str, Tensor]) -> Iterator[None]:
        """Switch on what the module, or one of its layers, needs while it runs.

        Parameters
        ----------
        named
            The weights that it runs with, by their names in the module.

        Yields
        ------
        None
            While all of it is on.
        """
        device = self.device
        with ExitStack() as stack:
            if self.attends:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.replaces:
                padded = {id(named[name]): part.values for name, part in self.padded.items() if name in named}
                stack.enter_context(Substitutes(padded))
            if self.differentiates:
                stack.enter_context(torch.enable_grad())
            if device.type != "cpu":
                stack.enter_context(device)  # tensors that forward creates must lie where the model is
            yield

    def leaves(self, weights: Float[Tensor, "weights"]) -> dict[str, Float[Tensor, "..."]]:
        """Split flat weights ``(P,)`` into new named tensors that require gradients.

        Parameters
        ----------
        weights
            The point ``(P,)``.

        Returns
        -------
        dict
            One leaf tensor for each entry of the layout, in its order.
        """
        return {name: part.detach().clone().requires_grad_() for name, part in self.layout.unflatten(weights).items()}

    def loss_graph(
        self, weights: Tensor, inputs: Tensors, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Evaluate a scalar loss of the outputs with its autograd graph.

        Parameters
        ----------
        weights
            The point ``(P,)``.
        inputs
            Examples ``(N, ...)``.
        loss
            Maps outputs ``(N, ...)`` to one scalar.

        Returns
        -------
        outputs, leaves, value
            The outputs, the weights as leaf tensors in the order of the layout, and the loss.

        Raises
        ------
        InputError
            If the loss depends on none of the weights.
        """
        leaves = self.leaves(weights)
        with torch.enable_grad():
            outputs = self.predict(leaves, inputs)
            value = loss(outputs)
        if not value.requires_grad:
            raise InputError("the loss does not depend on any trainable parameter of the module.")
        return outputs, list(leaves.values()), value

    def at(self, weights: Tensor) -> ModelFunction:
        """Take the constants that come from the weights, masked rows of embeddings, from another point.

        Parameters
        ----------
        weights
            The other point ``(P,)``.

        Returns
        -------
        ModelFunction
            The same function, if there are no such constants.
        """
        if not self.padded:
            return self
        named = self.layout.unflatten(weights)
        return replace(self, padded={name: Padding(part.rows, named[name]) for name, part in self.padded.items()})

    def restricted(self, layout: Layout, weights: Float[Tensor, "weights"]) -> ModelFunction:
        """Fix all weights that another layout leaves out at their values.

        Parameters
        ----------
        layout
            The entries of this layout that stay variable.
        weights
            Values of all weights ``(P,)``, in the order of this layout.

        Returns
        -------
        ModelFunction
            A function of the remaining weights, with its own copy of the module.
        """
        module = private_copy(self.module, weights.dtype)
        named = self.named(weights)
        kept = {alias: original for alias, original in self.aliases.items() if original in layout.slices}
        with torch.no_grad():
            for name in named.keys() - layout.slices.keys() - kept.keys():
                module.get_parameter(name).copy_(named[name])
        padded = {name: value for name, value in self.padded.items() if name in layout.slices}
        return replace(self, module=module, layout=layout, aliases=kept, padded=padded)
