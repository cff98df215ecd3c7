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
