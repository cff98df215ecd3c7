"""Defects in the parameterizations."""

from planted import Defect

PULLBACK = ("pullback_is_the_jacobian_on_both_sides_plus_the_bending_of_the_map",)

DEFECTS = [
    Defect(
        "wrong sign in the pullback, entries",
        "charts:NormalizedRows.second_order",
        "-($rows.scale / $rows.length**2)[:, None, None]",
        "($rows.scale / $rows.length**2)[:, None, None]",
        PULLBACK,
    ),
    Defect(
        "wrong sign in the pullback, products",
        "charts:NormalizedRows.second_order_product",
        "$mixed[:, :, None] * $a[:, None] - $bend",
        "$mixed[:, :, None] * $a[:, None] + $bend",
        PULLBACK,
    ),
    Defect(
        "wrong sign in the gradient of a training step",
        "charts:WeightNormChart._pull_at",
        "torch.addcmul($part, $v, ($radial / $length)[:, None], value=-1)",
        "torch.addcmul($part, $v, ($radial / $length)[:, None], value=1)",
        ("linearizing_at_other_coordinates_is_the_map_and_its_transposed_jacobian_there",),
    ),
    Defect(
        "wrong null dimension of a gauge",
        "charts:NormalizedRows.null_dim",
        "torch.where($rows.scale == 0, $width, 1)",
        "torch.where($rows.scale == 0, $width, 0)",
        ("gauge_identities_hold_in_every_form_of_weight_normalization",),
    ),
    Defect(
        "metric instead of its root",
        "charts:Chart.metric_root",
        "$left @ ($values[:, None] * ($left.T @ $block))",
        "$left @ ($values[:, None] ** 2 * ($left.T @ $block))",
        ("metric_is_j_j_transposed_and_its_root_is_semidefinite",),
    ),
    Defect(
        "baseline without the root of the fan-in",
        "charts:ScaledStandard.at",
        "row_norms($rows) / (PAPER_SCALE * math.sqrt($fan_in))",
        "row_norms($rows) / (PAPER_SCALE * $fan_in)",
        ("scaled_standard_is_the_baseline_of_the_paper",),
    ),
    Defect(
        "bias of frozen batch norm moved the wrong way",
        "charts:fold",
        "$bias - $factor * $statistics.mean",
        "$bias + $factor * $statistics.mean",
        ("the_chart_of_a_normalized_checkpoint_is_that_of_pytorchs_eval_mode",),
    ),
    Defect(
        "tangential multiplier in the place of the radial one",
        "charts:_from_the_right",
        "$block.addcmul_($inner[:, :, None], $rows.along[:, None] * $rows.unit)",
        "$block.addcmul_($inner[:, :, None], $rows.keep[:, None] * $rows.unit)",
        ("the_sweep_over_contiguous_rows_gives_the_same_matrix_exactly_symmetric",),
    ),
    Defect(
        "sign of the turning vectors of the spectral norm",
        "charts:SpectralNorm.second_order_product",
        "$slope[:, None] * $inner + $height * $curved",
        "$slope[:, None] * $inner - $height * $curved",
        ("closed_second_order_equals_the_default_by_torch_func",),
    ),
    Defect(
        "metric of a row without its factor",
        "charts:RandomWeightFactorization.metric",
        "torch.hypot($across, $slope)",
        "torch.hypot($across / $across, $slope)",
        ("metrics_of_a_row_are_the_published_formulas",),
    ),
    Defect(
        "rank of centred rows counts the mean",
        "charts:RowMetric.rank",
        "$rows.unit.shape[1] - 1 - $rows.centred",
        "$rows.unit.shape[1] - 1",
        ("ranks_and_null_dimensions_are_those_of_the_formulas",),
    ),
    Defect(
        "output layer of the maximal update parametrization scaled as a hidden one",
        "charts:_mup",
        "$fan_in**-0.5",
        "1.0",
        ("block_scales_are_those_of_the_published_tables",),
    ),
    Defect(
        "second derivatives of a product without its factor",
        "charts:_Product.second_order_product",
        "$chart.factor($local.parts) * as_matrix($local.entry).rows($gradient)",
        "as_matrix($local.entry).rows($gradient)",
        ("closed_second_order_equals_the_default_by_torch_func",),
    ),
    Defect(
        "rank of a product counts what both factors miss",
        "charts:ProductMetric.rank",
        "($length - len($metric.right_values))",
        "$length",
        ("lora_reaches_the_dimension_of_the_matrices_of_its_rank_and_only_b_is_live_at_the_start",),
    ),
    Defect(
        "root of a product's metric adds the roots of both factors",
        "charts:ProductMetric._mapped",
        "torch.hypot($metric.left_values[:, None], $metric.right_values)",
        "$metric.left_values[:, None] + $metric.right_values",
        ("a_product_preconditions_by_the_grams_of_its_factors",),
    ),
    Defect(
        "norm held constant in the derivatives",
        "charts:DoRA.weight",
        "$chart._norms($adapted)",
        "$chart._norms($adapted.detach())",
        ("dora_is_weight_normalization_of_an_adapted_matrix",),
    ),
    Defect(
        "unbalanced factors of a deep linear weight",
        "charts:_balanced",
        "$left[:, :$rank] * $root, $root[:, None] * $right[:$rank]",
        "$left[:, :$rank] * $root**2, torch.sign($root)[:, None] * $right[:$rank]",
        ("balanced_deep_linear_weights_precondition_by_the_roots_of_their_grams",),
    ),
    Defect(
        "frozen coordinates move",
        "charts:_FrozenChart._padded",
        "$tangents.new_zeros($chart.whole.dim, $tangents.shape[1])",
        "$tangents.new_ones($chart.whole.dim, $tangents.shape[1])",
        ("push_and_pull_are_the_jacobian_of_the_map",),
    ),
]
