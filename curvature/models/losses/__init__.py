r"""Losses: what is averaged over examples, by which denominator, and its curvature in the outputs.

Every loss here is $L = \frac{1}{D} \sum_n \ell_n$ with $\ell_n$ the *sum*-reduced loss of example $n$ and one
explicit denominator $D = \sum_n D_n$, so that class weights, ignored targets and ragged batches are exact
however the data are cut. Example $n$ counts with weight $D_n / D$; its own gradient is that of $\ell_n / D_n$,
what PyTorch's mean reduction gives on a batch that holds this example alone.

The named losses are negative log-likelihoods up to a fixed scale, hence have a Fisher: with the model's own
distribution of labels it equals the GGN. For ``MeanSquaredError`` (PyTorch's convention: mean over outputs, no
1/2) that distribution is Gaussian with variance ``C / 2``; for ``HalfSquaredError`` it has variance 1, and its
curvature is ``C / 2`` times as large.

To add a loss, subclass :class:`Loss` (or :class:`ElementwiseLoss`) in a module of this package and give it a name in
the table :data:`LOSSES` of :mod:`curvature.models.losses.registry`.
"""

from curvature.models.losses.cross_entropy import CrossEntropy
from curvature.models.losses.elementwise import (
    BinaryCrossEntropy,
    ElementwiseLoss,
    HalfSquaredError,
    MeanSquaredError,
)
from curvature.models.losses.loss import Loss
from curvature.models.losses.model_loss import ModelLoss
from curvature.models.losses.per_example import PerExample, differentiable
from curvature.models.losses.registry import LOSSES, LossLike, resolve_loss

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "ElementwiseLoss",
    "HalfSquaredError",
    "Loss",
    "LossLike",
    "MeanSquaredError",
    "ModelLoss",
    "PerExample",
    "differentiable",
    "resolve_loss",
]
