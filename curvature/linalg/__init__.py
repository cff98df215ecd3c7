"""Linear algebra of symmetric matrices that are known by their products.

The wing knows numbers, tensors and one noun, :class:`~curvature.linalg.operator.SymmetricOperator`. It does not know
models, losses or charts. Everything else that is known of a matrix comes with it as data: *routes*, cheaper ways
to its entries or to a factor (:mod:`~curvature.linalg.routes`), and *facts*, such as definiteness, rank bounds, null
directions and second computations for checks (:mod:`~curvature.linalg.facts`). Nothing here calls back into the wing
that built the matrix.

All eigenvalues pass these stations:

1. ``operator``, ``algebra``, ``block_matrix``: the matrix, its sums, multiples and blocks, its products and entries;
2. ``planning``, ``work``, ``memory``, ``speed``: which method fits in memory and costs least, by counted work;
3. ``eigen`` with ``lapack``, ``singular`` and ``dense``: eigenvalues by the entries, the factor or its Gram matrix;
4. ``checks``: self-checks of the products against second computations;
5. ``floor``: the noise floor, below which rounding hides eigenvalues;
6. ``rank``: the rank by formula or by the factor, or the bounds that are left;
7. the record, :class:`~curvature.records.Spectrum`.

Krylov methods need products only: ``lanczos``, ``density``, ``extremal`` with ``completeness``, and ``solve``.
Estimators of single numbers are ``traces`` with ``leave_one_out``, ``sums`` with ``quadrature``, and their
``intervals``.
"""
