"""A trainable copy of a problem's model whose parameters are views of one flat vector, plain or batch-normalized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.charts.batch_norm import Statistics, fold, scale_name, with_scales
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Layout
from curvature.models import Problem
from curvature.models.calling import arguments
from curvature.models.module.copying import private_copy
from curvature.models.module.replaced import runs_its_type
from curvature.models.trees import Tensors, structure_of

__all__ = ["BatchNormNetwork", "Network", "neuron_axis", "refuse_penalty"]


_FORWARDS = tuple(kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


class Network:
    """The problem's model with parameters that are views of one vector: a step copies one tensor, not a dictionary."""

    def __init__(self, problem: Problem, layout: Layout | None = None):
        self.loss, self.penalty, self.layout = problem.loss, problem.penalty, layout or problem.layout
        self.reader = problem.function.reader
        self.model = private_copy(problem.model, problem.dtype)
        more = problem.weights.new_ones(self.layout.dim - problem.dim)
        self.vector = torch.cat([problem.weights, more])
        self.named = self.layout.unflatten(self.vector)
        self.gradient = torch.zeros_like(self.vector)
        self.slopes = self.layout.unflatten(self.gradient)
        for entry in problem.layout.entries:
            path, _, leaf = entry.name.rpartition(".")
            parameter = getattr(self.model.get_submodule(path), leaf)
            parameter.data = self.named[entry.name]
            parameter.requires_grad_().grad = self.slopes[entry.name]
        for alias, original in problem.aliases.items():
            path, _, leaf = alias.rpartition(".")
            owner, _, name = original.rpartition(".")
            setattr(self.model.get_submodule(path), leaf, getattr(self.model.get_submodule(owner), name))

    def run(self, inputs: Tensors, weights: Mapping[str, Tensor] | None = None) -> Any:
        """Outputs for some examples; at other weights by name, differentiable in them."""
        args, kwargs = arguments(structure_of(inputs), self.model.forward)
        if weights is None:
            return self.reader(self.model(*args, **kwargs))
        return self.reader(torch.func.functional_call(self.model, dict(weights), args, kwargs))

    def loss_and_gradient(
        self,
        vector: Float[Tensor, "coordinates"],
        inputs: Tensors,
        targets: Tensors,
        share: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "coordinates"]]:
        """Loss of a batch, its terms divided by ``share``, and its gradient, which the next call overwrites.

        A batch without a share, all of whose targets are ignored, has no loss. The penalty is added to every batch, as
        ``torch.optim`` does it with weight decay.
        """
        self.vector.copy_(vector)
        self.gradient.zero_()  # backward adds to the views of it
        loss = self.vector.new_zeros(())
        if share:
            with torch.enable_grad():
                terms = self.loss.terms(self.run(inputs), targets)
                # One step of autograd: their sum and its division take as many as a layer.
                loss = terms @ (terms.new_ones(()) / share).expand_as(terms)
                loss.backward()
            loss = loss.detach()
        if self.penalty is not None:
            self.gradient += self.penalty.gradient(self.vector)
            loss = loss + self.penalty.value(self.vector)
        return loss, self.gradient


class BatchNormNetwork(Network):
    r"""The model with the output of every normalizable layer normalized over the batch, and the positions if any.

    $z = \gamma (Wa - \mu_B)/\sigma_B + \beta$ with $\sigma_B^2 = \operatorname{var}_B(Wa) + \epsilon$ (variance with
    $1/N$; Ioffe & Szegedy 2015, arXiv:1502.03167), or $z = Wa - \mu_B + \beta$ where ``mean_only`` (Salimans & Kingma
    2016, section 4). $\beta$ replaces the bias; :attr:`layout` is the weights' own, then every $\gamma$.

    Raises
    ------
    ConfigurationError
        If a layer has no bias, is transposed, shares its weight, or runs more than once, or the problem has a penalty.
    """

    def __init__(self, problem: Problem, *, mean_only: bool = False, epsilon: float = 1e-5):
        self.targets = _normalizable(problem)
        scaled = [] if mean_only else [weight for weight, _ in self.targets.values()]
        super().__init__(problem, with_scales(problem.layout, scaled))
        self.problem, self.mean_only, self.epsilon = problem, mean_only, epsilon
        self.scales = {weight: self.named[scale_name(weight)].detach().requires_grad_() for weight in scaled}
        for weight, scale in self.scales.items():
            scale.grad = self.slopes[scale_name(weight)]
        self._normalizing = True
        self._seen: dict[str, Statistics] | None = None
        for path in self.targets:
            self.model.get_submodule(path).register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        weight, bias = self.targets[path]
        axis = neuron_axis(self.model.get_submodule(path))

        def normalize(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            shift = cast(Tensor, layer.bias)  # under functional_call not a Parameter
            axes = [other for other in range(output.ndim) if other != axis % output.ndim]
            if output.numel() == output.shape[axis]:
                raise InputError(
                    f"layer {path!r} has one value per neuron in a batch, so there is nothing to normalize over. "
                    "Choose a batch_size that leaves no batch of one example."
                )
            mean = output.mean(axes, keepdim=True)
            centred = output - mean
            shape = mean.shape
            deviation = torch.ones_like(mean)
            if not self.mean_only:
                deviation = (centred.square().mean(axes, keepdim=True) + self.epsilon).sqrt()
            if self._seen is not None:
                if path in self._seen:
                    raise ConfigurationError(
                        f"layer {path!r} runs more than once, so batch normalization cannot be folded into its weights."
                    )
                self._seen[path] = Statistics(weight, bias, mean.reshape(-1) - shift, deviation.reshape(-1))
            if not self._normalizing:
                return output
            if not self.mean_only:
                centred = centred * (self.scales[weight].view(shape) / deviation)
            return centred + shift.view(shape)

        return normalize

    def statistics(
        self, vector: Float[Tensor, "coordinates"], inputs: Tensors, *, normalizing: bool = True
    ) -> dict[str, Statistics]:
        """Statistics of every layer on these inputs, by the layer's path; each on the outputs of the layers below.

        With all data these are the population statistics. ``normalizing=False``: those of the plain network.
        """
        self.vector.copy_(vector)
        self._seen, self._normalizing = {}, normalizing
        try:
            with torch.no_grad():
                self.run(inputs.clone())
            return self._seen
        finally:
            self._seen, self._normalizing = None, True

    def live(self, vector: Float[Tensor, "coordinates"]) -> Float[Tensor, "weights"]:
        """Weights at population statistics as a differentiable function of the vector, *through* the statistics."""
        named = self.layout.unflatten(vector)
        plain, self.scales = self.scales, {weight: named[scale_name(weight)] for weight in self.scales}
        self._seen = {}
        try:
            weights = {entry.name: named[entry.name] for entry in self.problem.layout.entries}
            self.run(self.problem.inputs.clone(), weights)
            return self.folded(vector, self._seen)
        finally:
            self._seen, self.scales = None, plain

    def matched(self) -> Float[Tensor, "coordinates"]:
        r"""The vector of the problem's own function at population statistics: $\gamma=\sigma$, $\beta=b+\mu$."""
        weights = torch.cat([self.problem.weights, self.vector.new_ones(self.layout.dim - self.problem.dim)])
        vector = weights.clone()
        named = self.layout.unflatten(vector)
        for statistics in self.statistics(weights, self.problem.inputs, normalizing=False).values():
            named[statistics.bias] += statistics.mean
            if not self.mean_only:
                named[scale_name(statistics.weight)].copy_(statistics.deviation)
        return vector

    def folded(
        self, vector: Float[Tensor, "coordinates"], statistics: Mapping[str, Statistics]
    ) -> Float[Tensor, "weights"]:
        """Weights of the ordinary network that this one is at fixed statistics, ``(P,)``."""
        return self.problem.flatten(fold(self.layout.unflatten(vector), statistics))


def neuron_axis(layer: nn.Module) -> int:
    """Axis of a layer's output along which its neurons lie.

    Parameters
    ----------
    layer
        A linear layer, or a convolution of a batch.

    Returns
    -------
    int
        The last axis of a linear layer, also on sequences; 1, the channels, of a convolution.
    """
    return -1 if isinstance(layer, nn.Linear) else 1


def refuse_penalty(problem: Problem) -> None:
    """Refuse a problem with a penalty, which batch normalization cannot train with.

    Parameters
    ----------
    problem
        The problem.

    Raises
    ------
    ConfigurationError
        If it has a penalty.
    """
    if problem.penalty is not None:
        raise ConfigurationError(
            f"batch normalization cannot train with {problem.penalty.label}: the penalty is on the weights of the "
            "ordinary network, which depend on the statistics of all data, and a batch has its own. Leave out the "
            "arms with batch normalization (full=True trains them), or the penalty."
        )


def _normalizable(problem: Problem) -> dict[str, tuple[str, str]]:
    """Path of each layer with a normalizable weight, with the names of its weight and bias."""
    refuse_penalty(problem)
    targets: dict[str, tuple[str, str]] = {}
    uses = [id(parameter) for _, parameter in problem.model.named_parameters(remove_duplicate=False)]
    for entry in problem.layout.entries:
        if not entry.normalized:
            continue
        layer, bias = problem.model.get_submodule(entry.layer), f"{entry.layer}.bias" if entry.layer else "bias"
        # A subclass that overrides forward, or a replaced one, may compute something else from the weight.
        plain = type(layer).forward in _FORWARDS and runs_its_type(layer)
        tied = entry.name in problem.aliases.values() or uses.count(id(layer.weight)) > 1
        if not plain or tied or entry.norm_axis != 0 or bias not in problem.layout.slices:
            raise ConfigurationError(
                f"layer {entry.layer!r} ({type(layer).__name__}) cannot be batch-normalized here: it must be a linear "
                "or convolutional layer with a trainable bias and a weight that no other layer shares, normalized per "
                "output."
            )
        targets[entry.layer] = (entry.name, bias)
    if not targets:
        raise ConfigurationError("the model has no linear or convolutional layer that could be batch-normalized.")
    return targets
