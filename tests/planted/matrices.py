"""Defects in the matrices, their fast paths, their null spaces and the second computations that check them."""

from planted import Defect

EVERY_MATRIX = "every_matrix_of_a_random_network_is_that_of_torch_func"
GENERIC = ("no_activation_and_two_in_a_row_give_the_generic_matrices",)
PULLBACK = ("pullback_is_the_jacobian_on_both_sides_plus_the_bending_of_the_map",)
COMMON_LAYERS = "matrices_are_right_through_common_layers"

DEFECTS = [
    # ---------------------------------------------------------------------------------------------------- fast paths
    Defect(
        "first derivative for the second",
        "matrices.fast:_forward_backward",
        "$back * $derivatives[$row][1]",
        "$back * $derivatives[$row][0]",
        GENERIC,
    ),
    Defect(
        "missing second-order term between neighbouring layers",
        "matrices.fast.dense:curvature",
        "$second_order and $row == $col + 1",
        "$second_order and $row == $col + 1 and False",
        GENERIC,
    ),
    Defect(
        "slopes left out of the Gram matrix",
        "matrices.fast:gram",
        "($signal @ $weight) * $slopes[$k - 1][0][:, None]",
        "$signal @ $weight",
        ("the_gram_matrix_without_the_factor_is_that_of_the_generic_factor",),
    ),
    Defect(
        "slopes left out of the factor",
        "matrices.fast.factor:factor_rows",
        "($signal @ $weight) * $slopes[$k - 1][0][:, None]",
        "$signal @ $weight",
        ("factor_blocks_multiply_out_to_the_contracted_matrix",),
    ),
    Defect(
        "curvature of the activations with the wrong sign, products",
        "matrices.fast:Products._backward",
        "$slope_dot.addcmul_(self.bends[$k - 1][:, $chunk], $z_dot)",
        "$slope_dot.addcmul_(self.bends[$k - 1][:, $chunk], $z_dot, value=-1)",
        ("every_loss_gives_the_generic_matrices_and_products",),
    ),
    Defect(
        "products counted without their second order",
        "matrices.fast:product_multiplications",
        "2 + 2 * ($moves and $second_order)",
        "2",
        ("multiplications_of_a_product_are_counted",),
    ),
    Defect(
        "curvature of the activations twice, convolutions",
        "matrices.fast:_Contraction._bend",
        "self.slope * self.trace.bends[$s]",
        "2 * self.slope * self.trace.bends[$s]",
        ("every_loss_gives_the_generic_matrices",),
    ),
    Defect(
        "curvature of the activations with the wrong sign, products of convolutions",
        "matrices.fast:NetworkProducts._product",
        "$back.addcmul_(self.bends[$s], $dot)",
        "$back.addcmul_(self.bends[$s], $dot, value=-1)",
        (EVERY_MATRIX, "structured_matrices_equal_generic_ones_for_every_network"),
    ),
    Defect(
        "maxima of every channel looked up in the first",
        "matrices.fast.network:forward",
        "$index.flatten(2) + $channel",
        "$index.flatten(2)",
        ("every_pooling_gives_the_generic_matrices",),
    ),
    Defect(
        "slope of another activation",
        "matrices.fast:activate",
        "[$z, torch.ones_like($z), torch.zeros_like($z)]",
        "[$z, torch.ones_like($z), torch.ones_like($z)]",
        GENERIC,
    ),
    # ------------------------------------------------------------------------------------------------------- matrices
    Defect(
        "uncentred covariance",
        "matrices:gradient_covariance",
        "yield $block - $mean",
        "yield $block",
        ("second_moment_and_covariance_are_those_of_the_rows_of_gradients",),
    ),
    Defect(
        "missing second-order term in products",
        "matrices:_Move.product",
        "$image + self.second_order($block) if self.bends else $image",
        "$image",
        PULLBACK,
    ),
    Defect(
        "missing second-order term in the entries",
        "matrices:_Move.entries",
        "$move($entries, $gradient if $bends else None)",
        "$move($entries, None)",
        PULLBACK,
    ),
    Defect(
        "the last chunk instead of the sum",
        "matrices:_by_autograd",
        "$total += backward_columns([$outputs], $leaves, $columns, batched=$batched)",
        "$total = backward_columns([$outputs], $leaves, $columns, batched=$batched)",
        (EVERY_MATRIX, COMMON_LAYERS),
    ),
    Defect(
        "mean over chunks",
        "matrices:_double_backward",
        "$total += backward_columns($gradient, $leaves, $columns, batched=$batched)",
        "$total += backward_columns($gradient, $leaves, $columns, batched=$batched) / len(list(problem.chunks()))",
        (COMMON_LAYERS,),
    ),
    Defect(
        "examples that count alike whatever their weight",
        "matrices:example_shares",
        "problem.loss.denominators($outputs, $targets) / problem.total",
        "torch.ones(problem.num_examples, dtype=problem.dtype) / problem.num_examples",
        ("matrices_equal_loops_over_single_examples",),
    ),
    Defect(
        "rank bound one too small",
        "matrices:gradient_covariance",
        "min($dim, max(0, $count - 1))",
        "min($dim, max(0, $count - 2))",
        ("rank_bound_holds_and_is_attained_by_a_wide_network",),
    ),
    Defect(
        "one-sided step in a central difference",
        "matrices.witnesses:_central",
        "($ahead - $behind) / (2 * $step)",
        "($ahead - $behind) / $step",
        ("blocks_are_checked_in_their_own_coordinates",),
    ),
    Defect(
        "wrong null dimension: mixing without its counterpart",
        "matrices:_rescalings",
        "$vectors[$rows[:, $b], $k] -= problem.weights[$rows[:, $a]]",
        "$vectors[$rows[:, $b], $k] += problem.weights[$rows[:, $a]]",
        ("two_linear_layers_have_the_square_of_the_hidden_width",),
    ),
    Defect(
        "null directions of bent coordinates, kept in a curved chart",
        "matrices:_Move.null_space",
        "~($basis[~$mask] != 0).any(dim=0)",
        "~($basis[~$mask] > 2).any(dim=0)",
        ("the_hessian_in_a_bent_chart_keeps_the_null_directions_of_weights_that_the_chart_keeps",),
    ),
    # --------------------------------------------------------------------------------------- penalties and other code
    Defect(
        "half of the weight decay in the entries",
        "matrices:PenaltyHessian.add_to",
        "$matrix.diagonal().add_(self.penalty.decay)",
        "$matrix.diagonal().add_(self.penalty.decay / 2)",
        ("value_gradient_and_every_route_of_the_hessian_contain_the_penalty",),
    ),
    Defect(
        "a factor of the GGN without its penalty",
        "matrices:PenaltyHessian._factor",
        "$decay[$part].sqrt()",
        "0 * $decay[$part]",
        ("ggn_contains_the_penalty_by_choice_and_says_so",),
    ),
    Defect(
        "a covariance around the gradient of the penalty too",
        "matrices:gradient_covariance",
        "cache($problem.data_gradient)",
        "cache($problem.gradient)",
        ("fisher_and_moments_of_gradients_are_those_of_the_data",),
    ),
    Defect(
        "a matrix that does not say that it is without the penalty",
        "matrices.weight_space:_penalty_label",
        "$problem.penalty.label if $penalized else $other",
        "$problem.penalty.label",
        ("ggn_contains_the_penalty_by_choice_and_says_so",),
    ),
    Defect(
        "closed forms of layers whose methods were replaced on their class",
        "matrices.fast.paths:_agree",
        "_close($computed, $outputs) and all($close for $pair in $parts)",
        "True",
        ("methods_replaced_on_classes_of_torch_are_seen_by_numbers",),
    ),
    Defect(
        "a GGN of zero on log-probabilities that is handed over",
        "matrices:warn_of_linear_outputs",
        "isinstance($loss, LinearLoss) or $others",
        "False",
        ("a_function_that_is_linear_in_log_probabilities_has_no_ggn_and_a_way_out",),
    ),
    Defect(
        "gradients of a sum in the scale of the mean",
        "matrices:_gradient_factor",
        "torch.where($condition, $root, 0.0) * $ratio",
        "torch.where($condition, $root, 0.0)",
        ("second_moments_of_gradients_are_those_of_single_examples_in_the_scale_of_the_loss",),
    ),
    Defect(
        "weights of classes that count twice in the scale of the Fisher",
        "matrices:_score_factor",
        "problem.loss.score($outputs, $targets)",
        "problem.loss.gradient($outputs, $targets)",
        ("weights_of_classes_and_ignored_examples_belong_to_both_scales_alike",),
    ),
    Defect(
        "the rounding of a single gradient less its mean taken for a covariance",
        "matrices:gradient_covariance",
        "if $bound == 0:\n    return _zero($operator, $mean)",
        "pass",
        ("the_covariance_of_one_example_is_exactly_zero",),
    ),
]
