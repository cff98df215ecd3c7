"""Defects in the statistics of the study and in its training."""

from planted import Defect

DEFECTS = [
    Defect(
        "a resumed run of other data or code",
        "cli.resumption:Resumption._facts",
        "{'version': __version__, 'config': $chosen, **content_hashes(config, prepared)}",
        "{'version': __version__, 'config': $chosen}",
        ("other_weights_data_and_code_under_the_same_names_are_refused",),
    ),
    Defect(
        "a kept spectrum that is filed under its matrix alone",
        "studies:run_spectrum",
        "f'{$name}, {$chart.name}, {$chart.gauge}'",
        "f'{$name}'",
        ("a_command_that_was_interrupted_twice_ends_with_the_same_numbers",),
    ),
    Defect(
        "t interval with the wrong degrees of freedom",
        "studies:paired_interval",
        "stats.t.ppf((1 + $level) / 2, len($values) - 1)",
        "stats.t.ppf((1 + $level) / 2, len($values))",
        ("the_interval_is_the_one_of_scipy",),
    ),
    Defect(
        "interval width without the square root of n",
        "studies:_standard_error",
        "$deviation / len($values) ** 0.5",
        "$deviation",
        ("the_interval_is_the_one_of_scipy",),
    ),
    Defect(
        "Holm without the step-down",
        "studies:holm",
        "np.arange(len($values), 0, -1)",
        "np.full(len($values), len($values))",
        ("holm_equals_hand_computed_cases",),
    ),
    Defect(
        "Holm that may fall again",
        "studies:holm",
        "np.maximum.accumulate($values)",
        "$values",
        ("holm_equals_hand_computed_cases",),
    ),
    Defect(
        "one order of the changes for all",
        "studies:decompose",
        "($losses[$before | {$source}] - $losses[$before]) / len($orders)",
        "$losses[$before | {$source}] - $losses[$before]",
        ("parts_of_any_lattice_add_up_and_are_shapley_values",),
    ),
    Defect(
        "steps to a loss interpolated from the wrong end",
        "studies:steps_to",
        "$curve.steps[$k - 1] + $share * ($curve.steps[$k] - $curve.steps[$k - 1])",
        "$curve.steps[$k] - $share * ($curve.steps[$k] - $curve.steps[$k - 1])",
        ("steps_to_a_loss_are_interpolated_on_the_logarithm",),
    ),
    Defect(
        "a width of learning rates across a gap",
        "studies:learning_rate_width",
        "$here = $best\n"
        "while 0 <= $here + $direction < len($values) and $values[$here + $direction] <= $limit:\n"
        "    $here += $direction",
        "$here = int(np.flatnonzero($values <= $limit)[min(0, -$direction)])",
        ("the_width_is_where_the_interpolated_loss_leaves_ten_percent_of_the_best",),
    ),
    Defect(
        "momentum forgotten",
        "studies:SGD.begin",
        "$velocity.mul_(self.momentum)",
        "$velocity.mul_(0.0)",
        ("standard_arm_is_stochastic_gradient_descent_of_pytorch",),
    ),
    Defect(
        "Adam without the correction of its bias",
        "studies:Adam.begin",
        "-self.learning_rate / (1 - $first**$step)",
        "-self.learning_rate",
        ("optimizers_are_those_of_pytorch_on_the_same_coordinates",),
    ),
    Defect(
        "batches divided by their number of examples",
        "studies:_Batches.stream",
        "[float($share.sum()) for $share in $batches]",
        "[float(len($share)) for $share in $batches]",
        ("batch_losses_are_the_means_of_pytorch_on_the_batch",),
    ),
    Defect(
        "data-dependent scale without the length of v",
        "studies:paper_start",
        "row_norms($v) / $statistics.deviation",
        "1 / $statistics.deviation",
        ("data_dependent_initialization_draws_v_and_scales_it_to_the_weights",),
    ),
    Defect(
        "squared length that grows by the step",
        "studies:NormRecursion.__call__",
        "self._square * self._lengths($gradient)",
        "self._square**0.5 * self._lengths($gradient)",
        ("squared_length_of_v_grows_by_the_squared_step_in_every_arm_that_has_a_v",),
    ),
    Defect(
        "sweep that grows away from its best rate",
        "studies:tune_learning_rate",
        "$best == 0",
        "$best < 0",
        ("a_sweep_grows_at_its_edge_until_the_best_rate_of_a_quadratic_is_inside",),
    ),
    Defect(
        "a rate tuned by the last loss alone",
        "studies:tune_learning_rate",
        "$curve.losses[1:][-TAIL:].mean()",
        "$curve.losses[-1]",
        ("a_sweep_grows_at_its_edge_until_the_best_rate_of_a_quadratic_is_inside",),
    ),
    Defect(
        "batch norm by the root of the fourth moment",
        "studies:BatchNormNetwork._hook",
        "$centred.square().mean($axes, keepdim=True)",
        "$centred.square().square().mean($axes, keepdim=True)",
        ("normalized_arms_train_as_a_module_written_by_hand",),
    ),
    Defect(
        "training without the penalty",
        "studies.training:Network.loss_and_gradient",
        "self.penalty.gradient(self.vector)",
        "0.0",
        ("study_trains_the_objective_that_it_measures_as_sgd_with_weight_decay_does",),
    ),
]
