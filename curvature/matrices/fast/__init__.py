r"""Closed forms of the matrices of feed-forward networks, by contractions over examples.

In a chain of linear layers and elementwise activations the pre-activations are linear in the weights. Let $a_l$ be the
input of layer $l$ (with a 1 appended for the bias), $z_l$ its output, $g_l = \partial \ell_n / \partial z_l$, $J_{lk} =
\partial z_l / \partial z_k$ and $B_{lk} = \partial g_l / \partial z_k$. Then for $k \le l$

$$\frac{\partial^2 \ell_n}{\partial W_l[o,i]\, \partial W_k[o',i']}
  = B_{lk}[o,o']\, a_l[i]\, a_k[i'] + [l > k]\; g_l[o]\, \frac{\partial a_l[i]}{\partial z_k[o']}\, a_k[i'] .$$

Summed over examples, each term is one matrix product between two row-wise Kronecker products. This takes about $N P^2$
multiplications in all, at the speed of large matrix products, instead of $P$ passes through the network: measured 18
and 21 times as fast as the fastest other package for 2410 and 8970 weights. Without the terms with $\phi''$ or
$g$ the result is the GGN.

Chains: :mod:`~curvature.matrices.fast.chain` (structure), :mod:`~curvature.matrices.fast.dense` (entries),
:mod:`~curvature.matrices.fast.factor` (factor and its Gram matrix), :mod:`~curvature.matrices.fast.products`.
Convolutional networks, whose layers are linear in their weights on patches: :mod:`~curvature.matrices.fast.network` and
:mod:`~curvature.matrices.fast.steps` (structure), :mod:`~curvature.matrices.fast.convolution` (entries),
:mod:`~curvature.matrices.fast.network_factor`, :mod:`~curvature.matrices.fast.network_products`. Both implement the
protocol in :mod:`~curvature.matrices.fast.paths`.
"""
