"""What an optimizer moves: the coordinates of a chart, with or without batch normalization, or a chart refreshed."""

from __future__ import annotations

import copy

from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Chart, FrozenBatchNorm, Parameterization, Standard
from curvature.errors import ConfigurationError, ConvergenceError, NonFiniteError
from curvature.models import Problem
from curvature.models.trees import Tensors
from curvature.natural_gradient.preconditioners import preconditioner
from curvature.studies.training.network import BatchNormNetwork, Network

__all__ = ["BatchNormalized", "Trainable", "Whitened"]


class Trainable:
    """The coordinates of a chart that starts at the problem's weights.

    Attributes
    ----------
    coordinates
        Where training starts, ``(Q,)``.
    refresh_every
        Steps after which :meth:`refresh` is called; None: never.
    """

    refresh_every: int | None = None
    network: Network

    def __init__(self, problem: Problem, parameterization: Parameterization):
        self.problem, self.network = problem, Network(problem)
        self.chart: Chart = parameterization.at(problem.layout, problem.weights)

    @property
    def coordinates(self) -> Float[Tensor, "coordinates"]:
        return self.chart.coordinates

    def loss_and_gradient(
        self,
        coordinates: Float[Tensor, "coordinates"],
        inputs: Tensors,
        targets: Tensors,
        share: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "coordinates"]]:
        """Loss of a batch whose terms are divided by ``share``, and its gradient in the coordinates."""
        vector, pull = self.chart.linearize(coordinates)
        loss, gradient = self.network.loss_and_gradient(vector, inputs, targets, share)
        return loss, pull(gradient)

    def weights(self, coordinates: Float[Tensor, "coordinates"]) -> Float[Tensor, "weights"]:
        """Weights of the ordinary network that is evaluated and measured, ``(P,)``."""
        return self.chart.to_weights(coordinates)

    def parameterization(self, coordinates: Float[Tensor, "coordinates"]) -> Parameterization:
        """Chart of a checkpoint, at :meth:`weights`: the arm's own."""
        return self.chart.moved(coordinates)

    def refresh(self, coordinates: Float[Tensor, "coordinates"]) -> Float[Tensor, "coordinates"]:
        """Change the chart at these coordinates; return the new coordinates of the same weights."""
        raise NotImplementedError


class BatchNormalized(Trainable):
    r"""Batch normalization, full or mean-only, of every normalizable layer, over a chart of its weights.

    Training normalizes by the statistics of each batch. Everything else is at *population statistics*, those of all
    data: the network is then an ordinary network, and :meth:`weights` are its effective weights
    ($\frac\gamma\sigma \hat w$ and $\beta - \frac\gamma\sigma \mu$). Full-batch training follows exactly the loss
    that is evaluated there.

    The loss with batch statistics is not a mean over examples, so it has no Fisher or gradient covariance. The
    curvature of a checkpoint is that of the ordinary network at the effective weights, and :meth:`parameterization`
    is the chart *with the statistics frozen*: the map from the coordinates to the effective weights is differentiated
    at fixed $\mu$ and $\sigma$, as in eval mode. For mean-only batch normalization that map is the inner chart and a
    shift of the biases. :meth:`full_batch_parameterization` differentiates through the statistics.

    Parameters
    ----------
    parameterization
        Chart of the weights below the normalization, e.g. ``WeightNorm()``; full batch normalization takes
        ``Standard()`` alone, since it already undoes the length of a row.
    mean_only
        Subtract the mean, do not divide.
    epsilon
        Added to the variance, as in PyTorch.

    Raises
    ------
    ConfigurationError
        If a chart other than ``Standard()`` is below full batch normalization, or a layer cannot be normalized.
    """

    network: BatchNormNetwork

    def __init__(
        self,
        problem: Problem,
        parameterization: Parameterization | None = None,
        *,
        mean_only: bool = False,
        epsilon: float = 1e-5,
    ):
        inner = parameterization or Standard()
        if not mean_only and not isinstance(inner, Standard):
            raise ConfigurationError(
                f"batch normalization divides by the deviation, so {inner.name} below it changes only the gauge. Use "
                "mean_only=True."
            )
        self.problem, self.mean_only = problem, mean_only
        self.network = BatchNormNetwork(problem, mean_only=mean_only, epsilon=epsilon)
        self.chart = inner.at(self.network.layout, self.network.matched())

    def _population(self, coordinates: Tensor) -> tuple[Tensor, dict]:
        vector = self.chart.to_weights(coordinates)
        return vector, self.network.statistics(vector, self.problem.inputs)

    def weights(self, coordinates: Float[Tensor, "coordinates"]) -> Float[Tensor, "weights"]:
        return self.network.folded(*self._population(coordinates))

    def parameterization(self, coordinates: Float[Tensor, "coordinates"]) -> Parameterization:
        if not self.mean_only:
            vector, statistics = self._population(coordinates)
            return FrozenBatchNorm(vector.clone(), {layer.weight: layer for layer in statistics.values()})
        chart = copy.copy(self.chart.moved(coordinates))
        chart.name = "mean-only-batch-norm" + ("" if isinstance(chart, Standard) else f", {chart.name}")
        chart.gauge = ("" if chart.gauge == "-" else f"{chart.gauge}, ") + FrozenBatchNorm.gauge
        return chart

    def full_batch_parameterization(self, coordinates: Float[Tensor, "coordinates"]) -> Parameterization:
        r"""Chart of a checkpoint *through* the statistics of all data, which change with the coordinates.

        The loss with the statistics of the full batch is $L(w(\theta))$ on the ordinary network, so its GGN is
        $J^T A J$ and its Hessian has the chart's second derivatives, as for any other chart. Gradient descent on the
        full batch is what it describes. By ``torch.func``: a product costs one pass over all data per column.
        """
        return _FullBatch(self, coordinates.detach().clone())


class _FullBatch(Parameterization):
    """``theta -> effective weights`` with live statistics."""

    gauge = "full-batch statistics"

    def __init__(self, trainable: BatchNormalized, coordinates: Tensor):
        self.trainable, self.coordinates = trainable, coordinates
        self.name = trainable.parameterization(coordinates).name

    def from_weights(self, weights: Tensor) -> Tensor:
        del weights  # which do not determine the coordinates
        return self.coordinates

    def to_weights(self, coordinates: Tensor) -> Tensor:
        return self.trainable.network.live(self.trainable.chart.to_weights(coordinates))


class Whitened(Trainable):
    """PRONG: every layer's input whitened on all data, the chart refreshed every few steps (Desjardins et al. 2015).

    A refresh keeps the weights, sets the coordinates to zero, and restarts the optimizer without memory. The chart of a
    checkpoint is the whitening *at the checkpoint's weights*, the one that a step would use after a refresh.

    Parameters
    ----------
    refresh_every
        Steps between refreshes.
    relative_damping
        Times the mean eigenvalue of each layer's second moment of the inputs.
    """

    def __init__(self, problem: Problem, *, refresh_every: int = 20, relative_damping: float = 1e-3):
        if refresh_every < 1:
            raise ConfigurationError(f"refresh_every must be at least 1, got {refresh_every}.")
        self.refresh_every, self.relative_damping = refresh_every, relative_damping
        super().__init__(problem, preconditioner(problem, "prong", relative_damping=relative_damping))

    def parameterization(self, coordinates: Float[Tensor, "coordinates"]) -> Parameterization:
        weights = self.chart.to_weights(coordinates)  # around the weights of the last refresh
        try:
            return preconditioner(self.problem.at(weights), "prong", relative_damping=self.relative_damping)
        except ConvergenceError as error:
            raise NonFiniteError(f"the second moment of a layer's inputs cannot be decomposed: {error}") from error

    def refresh(self, coordinates: Float[Tensor, "coordinates"]) -> Float[Tensor, "coordinates"]:
        fresh = self.parameterization(coordinates)
        self.chart = fresh.at(self.problem.layout, self.chart.to_weights(coordinates))
        return self.chart.coordinates
