r"""Losses: what is averaged over examples, by which denominator, and its curvature in the outputs.

Every loss here is $L = \frac{1}{D} \sum_n \ell_n$ with $\ell_n$ the *sum*-reduced loss of example $n$ and one
explicit denominator $D = \sum_n D_n$, so that class weights, ignored targets and ragged batches are exact
however the data are cut. Example $n$ counts with weight $D_n / D$; its own gradient is that of $\ell_n / D_n$,
what PyTorch's mean reduction gives on a batch that holds this example alone.

With ``reduction="sum"`` the loss is $\sum_n \ell_n$, so $D = 1$ whatever the $D_n$ are. It is the mean loss times
$T = \sum_n D_n$, hence Hessian, GGN and Fisher are $T$ times those of the mean loss, and the second moments of
gradients $T^2$ times. The weights of the examples stay $\alpha_n = D_n / T$, and the gradient of an example is
$T \nabla \ell_n / D_n$, whose mean over the examples is the gradient of the loss.

Most named losses are negative log-likelihoods up to a fixed scale, hence have a Fisher. For the exponential families in
their natural parameters (cross-entropy, binary cross-entropy, the squared errors, Poisson with ``log_input``) it equals
the GGN; for losses of probabilities, rates and variances it does not. The labels of the Fisher have the distribution
whose negative log-likelihood is $\ell_n$: for ``MeanSquaredError`` (PyTorch's convention: mean over outputs, no 1/2) a
Gaussian of variance 1/2 for each output; for ``HalfSquaredError`` it has variance 1, and its curvature is ``C / 2``
times as large. The loss of an example is $\ell_n / D_n$, a *mean* over its outputs or positions, while the Fisher is
divided by their number once only: see :func:`~curvature.empirical_fisher` for what follows.

To add a loss, subclass :class:`Loss` (or :class:`ElementwiseLoss`) in a module of this package and give it a name in
the table :data:`LOSSES` of :mod:`curvature.models.losses.registry`.
"""

from curvature.models.losses.cross_entropy import CrossEntropy
from curvature.models.losses.distributions import (
    BinaryCrossEntropyOfProbabilities,
    GaussianLikelihood,
    PoissonLikelihood,
)
from curvature.models.losses.elementwise import (
    BinaryCrossEntropy,
    ElementwiseLoss,
    HalfSquaredError,
    MeanSquaredError,
    PointwiseLoss,
)
from curvature.models.losses.log_probabilities import KullbackLeibler, NegativeLogLikelihood
from curvature.models.losses.loss import Loss
from curvature.models.losses.model_loss import ModelLoss, Objective
from curvature.models.losses.per_example import OneByOne, PerExample, differentiable
from curvature.models.losses.registry import LOSSES, LossLike, named_loss, resolve_loss
from curvature.models.losses.robust import AbsoluteError, Huber, SmoothL1

__all__ = [
    "LOSSES",
    "AbsoluteError",
    "BinaryCrossEntropy",
    "BinaryCrossEntropyOfProbabilities",
    "CrossEntropy",
    "ElementwiseLoss",
    "GaussianLikelihood",
    "HalfSquaredError",
    "Huber",
    "KullbackLeibler",
    "Loss",
    "LossLike",
    "MeanSquaredError",
    "ModelLoss",
    "NegativeLogLikelihood",
    "Objective",
    "OneByOne",
    "PerExample",
    "PointwiseLoss",
    "PoissonLikelihood",
    "SmoothL1",
    "differentiable",
    "named_loss",
    "resolve_loss",
]
