r"""The claims about weight normalization, each with its number, its control and the rule that can decide against it.

====  ====================================================================================================
C1    weight norm improves conditioning
C2    a neuron's weights are aligned with the dominant eigenvector of its gradient covariance
C3    in the coordinates of weight norm the gradient covariance is closer to a multiple of the identity
C4    the step size stabilizes itself: a wider range of learning rates works
C5    for one layer with whitened input, batch normalization equals weight normalization
C6    data-dependent initialization gives pre-activations of mean 0 and variance 1
C7    a step of weight norm resembles a step of the natural gradient
C8    training converges faster
====  ====================================================================================================

The unit of replication is the seed: the neurons of one network are averaged first. Every paired number is positive
where the claim holds.
"""

from curvature.studies.evidence.claims.identities import identity
from curvature.studies.evidence.claims.noise import alignment, sphericity
from curvature.studies.evidence.claims.spectra import conditioning
from curvature.studies.evidence.claims.steps import closeness, efficiency, resemblance
from curvature.studies.evidence.claims.training import self_stabilizing, training_speed

__all__ = [
    "alignment",
    "closeness",
    "conditioning",
    "efficiency",
    "identity",
    "resemblance",
    "self_stabilizing",
    "sphericity",
    "training_speed",
]
