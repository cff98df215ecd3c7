"""The noun of the model wing: a network's mean loss on fixed data, at a point in its weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.charts import Standard
from curvature.errors import ConfigurationError, InputError, NonFiniteError
from curvature.models.assembly import assemble
from curvature.models.behaviour import cuda_devices, pre_activations_near_a_kink, untouched_generators
from curvature.models.calling import OutputLike
from curvature.models.data import DataLike
from curvature.models.losses import LossLike
from curvature.models.objective import FunctionOptions, ParametersLike, assemble_function
from curvature.models.penalty import PenaltyFunction, PenaltyTerms, WeightDecay
from curvature.models.point import Point
from curvature.models.streaming import assemble_streamed
from curvature.models.trees import Structure, Tensors
from curvature.precision import full_precision

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Point):
    r"""The mean loss $L(w) = \frac1D \sum_n \ell_n(f(x_n; w))$ of a network on fixed data, at weights $w$.

    With a penalty, such as weight decay, the objective is $L(w) + R(w)$.

    Build one with :meth:`from_module` or :meth:`from_function`. It is frozen and owns copies: the user's module, data,
    modes, hooks and gradients are never touched.

    Attributes
    ----------
    function
        The network as a function of its weights, with their names and positions.
    loss
        The loss, with its denominators.
    inputs, targets
        The data in fixed order, ``(N, ...)``: tensors, or a :class:`~curvature.models.trees.TensorTree` of several.
    weights
        The point ``(P,)``: what the model multiplies with, after any weight normalization is applied.
    chart
        The parameterization the module came in: ``Standard()``, or ``WeightNorm`` at its own ``(g, v)``.
    denominator
        $D$: number of examples, or the sum of class weights, or the number of output elements; 1 for a loss that is a
        sum.
    frozen, unused
        Names of parameters left out (``requires_grad=False``), and of those the loss does not depend on.
    chunk_size
        Examples evaluated at once; results do not depend on it beyond rounding.
    total
        $T = \sum_n D_n$: the denominator of the mean, also where the loss is a sum; the weight of example $n$ is
        $D_n / T$.
    notes
        Sentences about how this model, loss or data are computed, which every report repeats.
    derivatives
        Which derivatives PyTorch has for model and loss.
    penalty
        $R$: a term of the objective that depends on the weights alone; None without one.
    """

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        loss: LossLike | None = None,
        data: DataLike,
        output: OutputLike | None = None,
        dtype: torch.dtype | None = torch.float64,
        chunk_size: int | None = None,
        penalty: PenaltyFunction | None = None,
        weight_decay: WeightDecay = 0.0,
        stream: bool = False,
    ) -> Problem:
        r"""Build a problem from a module, a loss and data.

        Parameters
        ----------
        module
            Any ``nn.Module`` whose inputs and outputs have one row for each example, ``(N, ...)``, in eval mode where
            the mode matters (dropout, batch norm). Layers under ``nn.utils.parametrizations.weight_norm`` or the legacy
            ``nn.utils.weight_norm`` are unwrapped into their effective weights; ``problem.chart`` is then
            ``WeightNorm`` at their ``(g, v)``. Tied parameters count once, frozen ones not at all.
        loss
            ``"cross-entropy"``, ``"binary-cross-entropy"``, ``"mse"`` (PyTorch's convention), ``"half-squared-error"``
            or another name in ``curvature.models.losses.LOSSES``, with ``-sum`` at its end for the sum instead of the
            mean; a ``torch.nn`` loss module; a :class:`~curvature.models.losses.Loss`; or a callable
            ``loss(output, target) -> scalar`` for one example. Every matrix of a callable is that of its mean over
            single examples, so a callable that also takes all examples at once must return their mean or sum there.
            ``"model"`` is the loss that the module returns: there is a Hessian, but no GGN, which needs the outputs.
        data
            ``(inputs, targets)``, a ``Dataset`` of such items or a ``DataLoader`` of such batches; read once, in order.
            Inputs that are a tuple or list are passed as ``module(*inputs)``, a dictionary as ``module(**inputs)``;
            where ``forward`` does not take them so, as its only argument. An item ``(x1, x2, ..., y)`` has its target
            at the end; a dictionary has it in its one entry ``labels``, ``label``, ``targets``, ``target`` or ``y``.
            With the loss of the module everything is an input. A graph, or graphs packed into one, is a single example:
            ``cv.Packed(inputs, targets)``. Data that are shuffled, dropped, repeated or drawn at random while they are
            read are refused.
        output
            Where the outputs are in what ``forward`` returns: a key or attribute, an index, or a function; None for a
            module that returns one tensor, or an entry ``logits`` among others. ``"loss"`` implies ``loss="model"``.
        dtype
            Precision of a *copy* of the model and data; float64, since small eigenvalues need it. None keeps
            the module's own.
        chunk_size
            Examples evaluated at once; None chooses.
        penalty
            A term $R(w)$ added to the loss: a function of the dictionary of trainable weights that returns a scalar.
            Weight-normalized layers have their effective weights there.
        weight_decay
            $\lambda$ of the term $\frac\lambda2 \|w\|^2$, as in ``torch.optim.SGD``; or a mapping from patterns, as in
            :meth:`subset`, to numbers.
        stream
            Whether to read the data chunk by chunk in every pass, for an ``IterableDataset`` or a loader too large for
            memory. Two passes are compared here; data that differ between passes are refused.

        Returns
        -------
        Problem
            The problem at the module's weights.

        Raises
        ------
        InputError
            For anything about the model, the data or the loss that would make the matrices meaningless.
        SelfCheckError
            If the model is not a fixed function of one example (random, or coupled through the batch).

        Notes
        -----
        A penalty is part of value, gradient and Hessian, and by choice of the GGN (``ggn(problem, penalty=True)``). All
        other matrices are about the data alone, and headers of records say so.
        With ``stream=True``, a product with any number of vectors reads all data once, and is computed by autograd.
        """
        # A sampler, or a random layer before it is refused, draws from the global generators: restore them.
        with full_precision(), untouched_generators(cuda_devices(module)):
            terms = PenaltyTerms(penalty, weight_decay)
            build = assemble_streamed if stream else assemble
            point = build(module, loss, data, output=output, dtype=dtype, chunk_size=chunk_size, terms=terms)
            return cls(**vars(point))

    @classmethod
    def from_function(
        cls,
        loss: LossLike,
        parameters: ParametersLike,
        data: DataLike | None = None,
        *,
        outputs: Callable[..., Tensor] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = torch.float64,
        chunk_size: int | None = None,
        penalty: PenaltyFunction | None = None,
        weight_decay: WeightDecay = 0.0,
        stream: bool = False,
    ) -> Problem:
        """Build a problem from any scalar function of named tensors.

        Parameters
        ----------
        loss
            A function ``loss(parameters)`` that returns one number, which is taken as it is. With data,
            ``loss(parameters, inputs, targets)``: the mean or the sum over examples, which is checked, or one number
            for each. With ``outputs`` it is a loss of the outputs: ``loss(outputs)`` without data, otherwise as in
            :meth:`from_module`.
        parameters
            The point. A dictionary of tensors by name, or ``module.named_parameters()``: the function gets a
            dictionary. One tensor: the function gets the tensor, which is named as its argument. A dot in a name
            separates the layer. An ``nn.Parameter`` with ``requires_grad=False`` is held fixed.
        data
            As in :meth:`from_module`. Data that are not averaged over belong in the function, or are passed as
            ``cv.Packed(inputs, targets)``.
        outputs
            A function ``outputs(parameters)``, or ``outputs(parameters, inputs)`` with data, for an objective
            ``loss(outputs(parameters))``, which then has a GGN.
        name
            Of the function, in records and messages; None: its own.
        dtype, chunk_size, penalty, weight_decay, stream
            As in :meth:`from_module`. A function of streamed data, without ``outputs``, returns one number an example.

        Returns
        -------
        Problem
            The problem at the parameters, which are copied.

        Raises
        ------
        InputError
            If the function fails, does not depend on the parameters, or depends on other trainable tensors.
        SelfCheckError
            If it is random or keeps a state.

        Examples
        --------
        >>> import torch, curvature as cv
        >>> def rosenbrock(x):
        ...     return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        >>> problem = cv.Problem.from_function(rosenbrock, torch.ones(2))
        >>> problem
        Problem(rosenbrock, 2 weights, rosenbrock, chart Standard(), float64, cpu)
        >>> cv.hessian(problem).dense().tolist()
        [[802.0, -400.0], [-400.0, 200.0]]
        """
        with full_precision():
            terms, options = PenaltyTerms(penalty, weight_decay), FunctionOptions(dtype, chunk_size, name, stream)
            return cls(**vars(assemble_function(loss, parameters, data, outputs, options, terms)))

    @full_precision()
    def at(self, weights: Float[Tensor, "weights"]) -> Problem:
        """Move to other weights: same model, loss and data; the chart becomes ``Standard()``.

        Parameters
        ----------
        weights
            The new point ``(P,)``.

        Returns
        -------
        Problem
            The problem there.

        Raises
        ------
        ConfigurationError
            If the vector has another shape.
        NonFiniteError
            If a weight is NaN or infinite.
        """
        if weights.shape != self.weights.shape:
            raise ConfigurationError(f"weights must have shape ({self.dim},), got {tuple(weights.shape)}.")
        if not torch.isfinite(weights).all():
            raise NonFiniteError("the weights contain NaN or infinity.")
        weights = weights.detach().clone().to(self.weights)
        return replace(self, function=self.function.at(weights), weights=weights, chart=Standard())

    @full_precision()
    def subset(self, pattern: str) -> Problem:
        """Keep some parameters trainable, and freeze the others at their present values.

        A matrix of the subset is the principal block of the whole matrix on its parameters.

        Parameters
        ----------
        pattern
            The exact name of a layer (``"0"``) or of a parameter (``"0.weight"``); otherwise a regular expression
            searched in the names of the parameters.

        Returns
        -------
        Problem
            The same loss, data and point; ``layout``, ``weights`` and ``chart`` hold the parameters that match, and
            ``frozen`` lists the others too.

        Raises
        ------
        InputError
            If nothing matches, or the loss does not depend on what matches.

        Examples
        --------
        >>> from curvature import zoo
        >>> problem = zoo.digits_problem(50, widths=(8,)).subset("2")
        >>> problem.dim, list(problem.layout.slices), problem.frozen
        (90, ['2.weight', '2.bias'], ('0.weight', '0.bias'))
        """
        layout = self.layout.select(pattern)
        unused = tuple(name for name in self.unused if name in layout.slices)
        if len(unused) == len(layout.entries):
            raise InputError(f"the loss does not depend on {', '.join(unused)}: there is nothing to differentiate.")
        named = self.unflatten(self.weights)
        return replace(
            self,
            function=self.function.restricted(layout, self.weights),
            weights=layout.flatten({name: named[name] for name in layout.slices}),
            chart=self.chart.restricted(layout),
            frozen=(*self.frozen, *(name for name in named if name not in layout.slices)),
            unused=unused,
            penalty=None if self.penalty is None else self.penalty.restricted(layout, self.weights),
        )

    def predict(self, weights: Tensor | Mapping[str, Tensor], inputs: Tensors | Structure) -> Tensor:
        """Evaluate the network at other weights; differentiable in them.

        Parameters
        ----------
        weights
            A flat vector ``(P,)``, or every tensor by name.
        inputs
            Examples ``(n, ...)``, in the structure of the data.

        Returns
        -------
        Tensor
            Outputs ``(n, ...)``.
        """
        return self.function.predict(weights, inputs)

    @full_precision()
    def outputs(self, weights: Float[Tensor, "weights"] | None = None) -> Float[Tensor, "examples ..."]:
        """Outputs ``(N, ...)`` for all examples, without a graph; at the point, or at other weights ``(P,)``."""
        point = self.weights if weights is None else weights
        with torch.no_grad():
            return torch.cat([self.predict(point, self.inputs[rows]) for rows in self.chunks()])

    def evaluated(self, weights: Float[Tensor, "weights"] | None = None) -> Iterable[tuple[slice, Tensor]]:
        """Outputs with their examples: all at once, or chunk by chunk where the data are streamed."""
        return self._streamed_outputs(weights) if self.is_streamed else [(slice(None), self.outputs(weights))]

    def _streamed_outputs(self, weights: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        for rows in self.chunks():
            with full_precision(), torch.no_grad():
                outputs = self.predict(self.weights if weights is None else weights, self.inputs[rows])
            yield rows, outputs

    def kinks(self) -> tuple[int, int]:
        """Count inputs of piecewise linear activations (ReLU and similar) that are at a kink, or close to it.

        Returns
        -------
        near, total
            How many inputs are within 1e-8 of zero, relative to the largest of their layer, and how many there are;
            over all examples.

        Notes
        -----
        At a kink the Hessian depends on a convention of autograd. Everywhere it leaves out the jumps of the gradient.
        """
        return pre_activations_near_a_kink(self.model, lambda: deque(self.evaluated(), maxlen=0))

    @full_precision()
    def value(self, weights: Float[Tensor, "weights"] | None = None) -> float:
        """The mean loss and the penalty; at the point, or at other weights ``(P,)``."""
        parts = (self.loss.terms(outputs, self.targets[rows]).sum() for rows, outputs in self.evaluated(weights))
        mean = sum(map(float, parts)) / self.denominator
        return mean if self.penalty is None else mean + self.penalty.value(self.weights if weights is None else weights)

    @full_precision()
    def gradient(self, weights: Float[Tensor, "weights"] | None = None) -> Float[Tensor, "weights"]:
        """Gradient ``(P,)`` of the mean loss and the penalty; at the point, or at other weights ``(P,)``.

        Raises
        ------
        NonFiniteError
            If it is NaN or infinite; names the parameters and the first example.
        """
        total = self.data_gradient(weights)
        if self.penalty is None:
            return total
        return total + self.penalty.gradient(self.weights if weights is None else weights)

    @full_precision()
    def data_gradient(self, weights: Float[Tensor, "weights"] | None = None) -> Float[Tensor, "weights"]:
        """Gradient ``(P,)`` of the mean loss alone; at the point, or at other weights ``(P,)``.

        Raises
        ------
        NonFiniteError
            If it is NaN or infinite; names the parameters and the first example.
        """
        total = torch.zeros_like(self.weights)
        for rows in self.chunks():
            total += self._chunk_gradient(rows, weights)
        if not torch.isfinite(total).all():
            gradients = (self._chunk_gradient(slice(n, n + 1), weights) for n in range(self.num_examples))
            first = next((n for n, part in enumerate(gradients) if not torch.isfinite(part).all()), None)
            names = [name for name, part in self.unflatten(total).items() if not torch.isfinite(part).all()]
            raise NonFiniteError(
                f"the gradient is NaN or infinite in {', '.join(names)}"
                + ("; each example alone is finite" if first is None else f", first for example {first}")
                + "; look at the weights and the loss at this point."
            )
        return total

    def _chunk_gradient(self, rows: slice, weights: Tensor | None) -> Tensor:
        _, leaves, loss = self.chunk_loss(rows, weights)
        parts = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    def leaves(self, weights: Float[Tensor, "weights"] | None = None) -> dict[str, Float[Tensor, "..."]]:
        """Fresh named tensors at the point that require gradients."""
        return self.function.leaves(self.weights if weights is None else weights)

    def chunk_loss(
        self, rows: slice, weights: Float[Tensor, "weights"] | None = None
    ) -> tuple[Float[Tensor, "examples ..."], list[Float[Tensor, "..."]], Float[Tensor, ""]]:
        """Outputs of some examples, fresh leaves, and what the examples add to the mean loss, with its graph."""
        return self.function.loss_graph(
            self.weights if weights is None else weights,
            self.inputs[rows],
            lambda outputs: self.loss.terms(outputs, self.targets[rows]).sum() / self.denominator,
        )
