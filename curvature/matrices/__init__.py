r"""The six curvature matrices of a problem on its weights, and their exact pullback to any chart.

With $f_n$ the outputs for example $n$, $J_n = \partial f_n / \partial w$ and weights $\alpha_n = D_n / D$ of the
examples (see :mod:`curvature.models.losses`; all $1/N$ unless classes are weighted or targets ignored):

=======================  =============================================================================
``hessian``              $\nabla^2 L$
``ggn``                  $\frac1D \sum_n J_n^T (\nabla_f^2 \ell_n) J_n$
``fisher``               expectation of the squared score over the *model's* labels; the GGN for natural parameters
``monte_carlo_fisher``   the same with sampled labels
``empirical_fisher``     $\sum_n \alpha_n g_n g_n^T$, labels of the data, $g_n$ the gradient of example $n$
``gradient_covariance``  $\sum_n \alpha_n (g_n - \bar g)(g_n - \bar g)^T$, $\bar g = \nabla L$
=======================  =============================================================================

``empirical_fisher_at_fisher_scale`` is ``empirical_fisher(problem, scale="fisher")``, whose mean over labels drawn from
the model is the Fisher.

All but the Hessian are $\sum_n J_n^T S_n S_n^T J_n$ with different factors $S_n$ in output space, so they share their
code (:mod:`~curvature.matrices.output_space`). Fisher, empirical Fisher and gradient covariance are three different
matrices (Kunstner, Hennig & Balles 2019, arXiv:1905.12558). The unit of the entries is loss / weight**2.

Closed forms of known network structures are in :mod:`~curvature.matrices.fast`, autograd for all other models in
:mod:`~curvature.matrices.autograd`. The facts that linear algebra verifies come from
:mod:`~curvature.matrices.nullspace`, null directions by construction, and :mod:`~curvature.matrices.witnesses`,
independent computations.
"""

from collections.abc import Callable
from functools import partial

from curvature.matrices.congruence import effective, pullback
from curvature.matrices.folding import fold_norms
from curvature.matrices.gauss_newton import fisher, ggn, monte_carlo_fisher
from curvature.matrices.gradient_moments import empirical_fisher, gradient_covariance
from curvature.matrices.hessians import hessian
from curvature.matrices.weight_space import WeightSpaceMatrix

__all__ = [
    "MATRICES",
    "WeightSpaceMatrix",
    "effective",
    "empirical_fisher",
    "fisher",
    "fold_norms",
    "ggn",
    "gradient_covariance",
    "hessian",
    "monte_carlo_fisher",
    "pullback",
]

# By name on the command line; a new matrix needs a row here.
MATRICES: dict[str, Callable[..., WeightSpaceMatrix]] = {
    "hessian": hessian,
    "ggn": ggn,
    "fisher": fisher,
    "monte_carlo_fisher": monte_carlo_fisher,
    "empirical_fisher": empirical_fisher,
    "empirical_fisher_at_fisher_scale": partial(empirical_fisher, scale="fisher"),
    "gradient_covariance": gradient_covariance,
}
