"""Defects in preconditioners, natural steps and the whitening of gradients."""

from planted import Defect

DEFECTS = [
    Defect(
        "Adam without the root of its second moments",
        "natural_gradient:_adam_root",
        "($moments.clamp(min=0).sqrt() + $epsilon).rsqrt()",
        "($moments.clamp(min=0) + $epsilon).rsqrt()",
        ("adam_is_the_inverse_root_of_the_second_moments",),
    ),
    Defect(
        "a batch counted as one example",
        "natural_gradient:_Expectation.of",
        "(1 - 1 / $expected.batch_size) * $whole",
        "(1 - 1 / $expected.batch_size) * 0 * $whole",
        ("a_batch_has_its_share_of_the_mean_gradient",),
    ),
    Defect(
        "Shampoo with the exponent of its metric in the place of that of the root",
        "natural_gradient:_shampoo",
        "torch.kron(_power($left, $epsilon, -1 / 8), _power($right, $epsilon, -1 / 8))",
        "torch.kron(_power($left, $epsilon, -1 / 4), _power($right, $epsilon, -1 / 4))",
        ("shampoo_takes_a_fourth_root_from_each_side",),
    ),
    Defect(
        "factors of SOAP swapped",
        "natural_gradient:_soap",
        "torch.kron($left, $right)",
        "torch.kron($left.T.contiguous(), $right)",
        ("soap_is_adam_in_the_eigenvectors_of_shampoo",),
    ),
    Defect(
        "eigenvalues of K-FAC in the place of the second moments",
        "natural_gradient:Preconditioners._in_kronecker_eigenvectors",
        "$vectors * ($matrix.matrix[$order][:, $order] @ $vectors)",
        "$vectors * $vectors",
        ("ekfac_rescales_the_eigenvectors_of_kfac_by_the_fisher",),
    ),
    Defect(
        "damping of K-FAC on the wrong factor",
        "natural_gradient:Preconditioners._kronecker",
        "_inverse_root($inputs, $pi * $shift**0.5)",
        "_inverse_root($inputs, $shift**0.5 / $pi)",
        ("kfac_is_the_kronecker_product_of_damped_factors",),
    ),
    Defect(
        "inverse for its root",
        "natural_gradient:_inverse_root_of",
        "$vectors * ($values.clamp(min=0) + $shift).rsqrt()",
        "$vectors / ($values.clamp(min=0) + $shift)",
        ("the_roots_of_block_preconditioners_agree_with_their_triangles",),
    ),
    Defect(
        "a triangle from one side only",
        "natural_gradient:_InverseBlocksChart.similar",
        "$self._solved($self._solved($matrix).T)",
        "$self._solved($matrix)",
        ("the_roots_of_block_preconditioners_agree_with_their_triangles",),
    ),
    Defect(
        "step uphill",
        "natural_gradient:chart_step",
        "-$chart.metric($gradient)[:, 0]",
        "$chart.metric($gradient)[:, 0]",
        ("step_of_a_chart_is_minus_k_times_the_gradient",),
    ),
    Defect(
        "best stretch of another quadratic",
        "natural_gradient:stretch_in_closed_form",
        "($b * $c0 - $a * $c1, $a * $c2 - $b * $c1)",
        "($b * $c0 + $a * $c1, $a * $c2 - $b * $c1)",
        ("best_stretch_is_the_best_of_a_fine_grid",),
    ),
    Defect(
        "alignment with the bottom eigenvector",
        "natural_gradient:alignments",
        "($unit @ $vectors[:, -1]).abs()",
        "($unit @ $vectors[:, 0]).abs()",
        ("weights_along_the_dominant_direction_have_cosine_one",),
    ),
    Defect(
        "mean cosine of one dimension more",
        "natural_gradient:mean_cosine",
        "math.lgamma($dim / 2) - math.lgamma(($dim + 1) / 2)",
        "math.lgamma(($dim + 1) / 2) - math.lgamma(($dim + 2) / 2)",
        ("mean_cosine_of_small_dimensions_is_known",),
    ),
    Defect(
        "an empirical Fisher of another scale taken for the Fisher",
        "natural_gradient:refuse_scale_of_loss",
        '$matrix is not None and $matrix.name == "empirical_fisher" and $words',
        "False",
        ("an_empirical_fisher_of_another_scale_does_not_take_the_place_of_the_fisher",),
    ),
]
