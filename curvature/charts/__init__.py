r"""Charts: smooth maps from what is optimized to the weights.

Curvature lives on the weights. A parameterization, taken at a point, is a :class:`Chart` with
Jacobian $J = \partial\,\text{weights} / \partial\,\text{coordinates}$. It pulls a weight-space matrix
$A$ back to $J^T A J$; gradient descent in its coordinates is, to first order, gradient descent on the
weights preconditioned by $K = J J^T$.

A parameterization (``WeightNorm(stretch=3.0)``) says *which* chart; ``.at(layout, weights)`` builds it
at a point. To write one of your own, subclass :class:`Parameterization` and define ``to_weights`` and
``from_weights``; the Jacobian products and the second-order term then follow by ``torch.func``.
"""

from curvature.charts.batch_norm import FrozenBatchNorm
from curvature.charts.block_scale import BlockScale
from curvature.charts.chart import Chart, Parameterization
from curvature.charts.linear import LinearChart, ScaledStandard, Standard
from curvature.charts.low_rank import DeepLinear, DoRA, LoRA
from curvature.charts.per_weight import PerWeight
from curvature.charts.placebo import Placebo
from curvature.charts.row_charts import RandomWeightFactorization, Sphere, WeightStandardization
from curvature.charts.spectral_norm import SpectralNorm
from curvature.charts.weight_norm import WeightNorm

__all__ = [
    "BlockScale",
    "Chart",
    "DeepLinear",
    "DoRA",
    "FrozenBatchNorm",
    "LinearChart",
    "LoRA",
    "Parameterization",
    "PerWeight",
    "Placebo",
    "RandomWeightFactorization",
    "ScaledStandard",
    "SpectralNorm",
    "Sphere",
    "Standard",
    "WeightNorm",
    "WeightStandardization",
]
