r"""Exact dense matrices of feed-forward networks by contractions over examples: the fast path.

For a chain of linear layers with elementwise activations, pre-activations are linear in the weights. With $a_l$ the
input of layer $l$ (a 1 appended for the bias), $z_l$ its output, $g_l = \partial \ell_n / \partial z_l$, $J_{lk} =
\partial z_l / \partial z_k$ and $B_{lk} = \partial g_l / \partial z_k$, for $k \le l$

$$\frac{\partial^2 \ell_n}{\partial W_l[o,i]\, \partial W_k[o',i']}
  = B_{lk}[o,o']\, a_l[i]\, a_k[i'] + [l > k]\; g_l[o]\, \frac{\partial a_l[i]}{\partial z_k[o']}\, a_k[i'] .$$

Summed over examples each term is one matrix product between two row-wise Kronecker products, about $N P^2$
multiplications in all, instead of $P$ passes through the network. Without the terms that hold $\phi''$ or $g$ it is
the GGN. Convolutions are linear in their weights on patches: :mod:`curvature.matrices.fast.convolution`, and for
matrices with a factor :mod:`curvature.matrices.fast.network_factor`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from curvature.matrices.fast import convolution, dense, factor, network_factor, network_products, products
from curvature.matrices.fast.chain import Chain, chain_of
from curvature.matrices.fast.factor import gram
from curvature.matrices.fast.network import Network, network_of
from curvature.matrices.fast.network_factor import gauss_newton, gauss_newton_bytes, gauss_newton_cost
from curvature.matrices.fast.network_products import NetworkProducts
from curvature.matrices.fast.products import OutputProduct, Products, product_multiplications
from curvature.models import Problem

__all__ = [
    "Chain",
    "Network",
    "OutputProduct",
    "chain_of",
    "contracts",
    "curvature",
    "curvature_bytes",
    "factor_rows",
    "gauss_newton",
    "gauss_newton_bytes",
    "gauss_newton_cost",
    "gram",
    "linearized",
    "linearizes",
    "network_of",
    "product_bytes",
    "product_multiplications",
    "structure_of",
]

_Map = Callable[..., Tensor]


def structure_of(problem: Problem) -> Chain | Network | None:
    """Read the model as a chain of linear layers or as a convolutional network; None if it is anything else."""
    return chain_of(problem) or network_of(problem)


def curvature(model: Chain | Network, output_hessian: _Map, *, second_order: bool) -> Tensor:
    r"""Dense Hessian (``second_order=True``) or GGN-type matrix of the mean loss, ``(P, P)``.

    ``output_hessian(outputs, targets)`` gives $\nabla_f^2 \ell_n$ (or another symmetric matrix in output space),
    ``(n, C, C)``.
    """
    room = dense if isinstance(model, Chain) else convolution
    return room.curvature(model, output_hessian, second_order=second_order)


def curvature_bytes(model: Chain | Network) -> float:
    """Upper bound of the memory of :func:`curvature`."""
    return (dense if isinstance(model, Chain) else convolution).curvature_bytes(model)


def contracts(num_columns: int) -> bool:
    """Whether :func:`curvature` of a chain is cheaper than the product of a factor with so many columns per example."""
    return num_columns > 2  # N P^2 whatever the number of outputs, against R N P^2 / 2


def factor_rows(model: Chain | Network, where: slice, output_factor: _Map) -> Tensor:
    r"""Rows $(J_n^T S_n)^T$ of a few examples, ``(n R, P)``; ``output_factor(outputs, targets, where)`` is $S_n$."""
    room = factor if isinstance(model, Chain) else network_factor
    return room.factor_rows(model, where, output_factor)


def linearizes(model: Chain | Network) -> bool:
    """Whether :func:`linearized` pays."""
    return isinstance(model, Chain) or model.linearizes


def product_bytes(model: Chain | Network) -> tuple[float, float]:
    """Upper bounds of the memory of :func:`linearized`: held once, and for each column of a block on top."""
    return (products if isinstance(model, Chain) else network_products).product_bytes(model)


def linearized(
    model: Chain | Network, output_product: OutputProduct, *, second_order: bool
) -> Products | NetworkProducts:
    """Products with blocks of vectors, the network linearized once."""
    kind = Products if isinstance(model, Chain) else NetworkProducts
    return kind(model, output_product, second_order=second_order)
