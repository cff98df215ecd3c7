"""Planted defects: every numerical room has some, and the tests named beside each must turn red.

Run them all with ``pytest -m slow tests/test_mutations.py`` (some minutes): each is planted in a copy of the package,
never in the package itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Rooms whose code computes numbers that another room believes; a folder counts by its files.
NUMERICAL = set(
    re.findall(
        r"\w+",
        "losses layout problem parameterization structured matrices differences checks operators lapack norms krylov"
        " estimators certificates spectra nullspace conditioning preconditioners steps noise evidence training layers",
    )
)
# What a mutant must not die of: then it is no wrong number but no program.
ACCIDENTS = r"^E\s+(NameError|ImportError|ModuleNotFoundError|AttributeError|SyntaxError|UnboundLocalError|TypeError)\b"


class Mutation(NamedTuple):
    """One defect: what it is, the file in the package, the text, what stands there instead, what must turn red."""

    what: str
    file: str
    source: str
    replacement: str
    tests: tuple[str, ...]


def campaign(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_campaign.py::test_{name}" for name in names)


def of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{file}.py::test_{name}" for name in names)


LINEAR = campaign("linear_models_have_the_hessian_on_paper")
EVERY_MATRIX = campaign("every_matrix_of_a_random_network_is_that_of_torch_func")
PULLBACK = campaign("pullback_is_the_jacobian_on_both_sides_plus_the_bending_of_the_map")
GAUGE = campaign("gauge_identities_hold_in_every_form_of_weight_normalization")
RANDOM_STARTS = campaign("bounds_from_random_starts_are_violated_no_oftener_than_one_per_cent")
DEGENERATE = campaign("every_method_is_right_on_degenerate_matrices_at_extreme_scales")

MUTATIONS = [
    # ------------------------------------------------------------------------------------------- losses and layout
    Mutation(
        "softmax without its rank-one term, in the factor",
        "losses.py",
        "[:, :, None] * -kept[:, None]",
        "[:, :, None] * -0.0 * kept[:, None]",
        LINEAR,
    ),
    Mutation(
        "softmax without its rank-one term, in products",
        "losses.py",
        "return shifted.sub_((shifted * probabilities).sum(dim=2, keepdim=True)).mul_(scaled)",
        "return rows * scaled",
        LINEAR,
    ),
    Mutation(
        "wrong denominator with class weights",
        "losses.py",
        "each = self._class_weights(outputs)[torch.where(valid, targets, 0)] * valid",
        "each = valid.to(outputs)",
        campaign("matrices_add_over_any_split_with_the_weights_of_its_parts"),
    ),
    Mutation(
        "smoothing that forgets the class weights",
        "losses.py",
        "smoothing * weights.mean()) * valid",
        "smoothing) * valid",
        EVERY_MATRIX,
    ),
    Mutation(
        "half of the curvature of the logistic loss",
        "losses.py",
        "return torch.sigmoid(outputs) * torch.sigmoid(-outputs)",
        "return torch.sigmoid(outputs) * torch.sigmoid(-outputs) / 2",
        LINEAR,
    ),
    Mutation(
        "Monte Carlo scores of the wrong variance",
        "losses.py",
        "return (scores * (mass / num_samples).sqrt())",
        "return (scores * (mass / (num_samples + 1)).sqrt())",
        of("matrices", "monte_carlo_fisher_is_unbiased"),
    ),
    Mutation(
        "rows along another axis put back in the wrong order",
        "layout.py",
        "tensor = rows.reshape(self.num_rows, *rest, *rows.shape[2:]).movedim(0, self.norm_axis)",
        "tensor = rows.reshape(self.num_rows, *rest, *rows.shape[2:])",
        of("parameterization", "every_chart_passes_through_the_point"),
    ),
    Mutation(
        "neurons of a transposed convolution along the wrong axis",
        "layout.py",
        "indices.view(entry.shape).movedim(entry.neuron_axis, 0).reshape(neurons, -1)",
        "indices.view(entry.shape).reshape(neurons, -1)",
        of("matrices", "neurons_of_a_transposed_convolution_are_its_output_channels"),
    ),
    # ------------------------------------------------------------------------------------------- problem and charts
    Mutation(
        "unweighted batch mean",
        "problem/problem.py",
        "loss = self.loss.terms(outputs, self.targets[where]).sum() / self.denominator",
        "loss = self.loss.terms(outputs, self.targets[where]).mean() / len(list(self.chunks()))",
        EVERY_MATRIX,
    ),
    Mutation(
        "gradient of the last chunk instead of the sum",
        "problem/problem.py",
        "total += self._chunk_gradient(where, weights)",
        "total = self._chunk_gradient(where, weights)",
        EVERY_MATRIX,
    ),
    Mutation(
        "fused weight norm differentiated twice",
        "problem/module.py",
        "kinds = [isinstance(step, _WeightNorm) for step in chain]",
        "kinds = [False for step in chain]",
        of("parameterization", "hessian_equals_differences_of_the_first_derivative_of_pytorch"),
    ),
    Mutation(
        "wrong sign in the pullback, entries",
        "parameterization/weight_norm.py",
        "tangential = -(rows.scale / rows.length**2)[:, None, None] * (",
        "tangential = (rows.scale / rows.length**2)[:, None, None] * (",
        PULLBACK,
    ),
    Mutation(
        "wrong sign in the pullback, products",
        "parameterization/weight_norm.py",
        "out_v = mixed[:, :, None] * a[:, None] - bend[:, None, None] * (",
        "out_v = mixed[:, :, None] * a[:, None] + bend[:, None, None] * (",
        PULLBACK,
    ),
    Mutation(
        "wrong sign in the gradient of a training step",
        "parameterization/weight_norm.py",
        "torch.addcmul(part, v, (radial / length)[:, None], value=-1)",
        "torch.addcmul(part, v, (radial / length)[:, None], value=1)",
        of("parameterization", "linearizing_at_other_coordinates_is_the_map_and_its_transposed_jacobian_there"),
    ),
    Mutation(
        "wrong null dimension of a gauge",
        "parameterization/weight_norm.py",
        "torch.where(rows.scale == 0, rows.unit.shape[1], 1)",
        "torch.where(rows.scale == 0, rows.unit.shape[1], 0)",
        GAUGE,
    ),
    Mutation(
        "metric instead of its root",
        "parameterization/chart.py",
        "return left @ (values[:, None] * (left.T @ block))",
        "return left @ (values[:, None] ** 2 * (left.T @ block))",
        of("parameterization", "metric_is_j_j_transposed_and_its_root_is_semidefinite"),
    ),
    Mutation(
        "baseline without the root of the fan-in",
        "parameterization/linear.py",
        "scale = row_norms(rows) / (PAPER_SCALE * math.sqrt(rows.shape[1]))",
        "scale = row_norms(rows) / (PAPER_SCALE * rows.shape[1])",
        of("parameterization", "scaled_standard_is_the_baseline_of_the_paper"),
    ),
    Mutation(
        "bias of frozen batch norm moved the wrong way",
        "parameterization/batch_norm.py",
        "folded[found.bias] = named[found.bias] - factor * found.mean",
        "folded[found.bias] = named[found.bias] + factor * found.mean",
        of("arms", "the_chart_of_a_normalized_checkpoint_is_that_of_pytorchs_eval_mode"),
    ),
    Mutation(
        "tangential multiplier in the place of the radial one",
        "parameterization/sweep.py",
        "place.addcmul_(inner[:, :, None], current.along[:, None] * current.unit)",
        "place.addcmul_(inner[:, :, None], current.keep[:, None] * current.unit)",
        of("parameterization", "the_sweep_over_contiguous_rows_gives_the_same_matrix_exactly_symmetric"),
    ),
    # ------------------------------------------------------------------------------------------- structured matrices
    Mutation(
        "first derivative for the second",
        "structured/dense.py",
        "bend = back * derivatives[row][1]",
        "bend = back * derivatives[row][0]",
        of("structured", "no_activation_and_two_in_a_row_give_the_generic_matrices"),
    ),
    Mutation(
        "missing second-order term between neighbouring layers",
        "structured/dense.py",
        "if second_order and row == col + 1:",
        "if second_order and row == col + 1 and row > len(chain.layers):",
        of("structured", "no_activation_and_two_in_a_row_give_the_generic_matrices"),
    ),
    Mutation(
        "slopes left out of the Gram matrix",
        "structured/factor.py",
        "signals.insert(0, (signals[0] @ layers[k].weight) * slopes[k - 1][0][:, None])",
        "signals.insert(0, signals[0] @ layers[k].weight)",
        of("structured", "the_gram_matrix_without_the_factor_is_that_of_the_generic_factor"),
    ),
    Mutation(
        "slopes left out of the factor",
        "structured/factor.py",
        "            signal = (signal @ layer.weight) * slopes[k - 1][0][:, None]",
        "            signal = signal @ layer.weight",
        of("structured", "factor_blocks_multiply_out_to_the_contracted_matrix"),
    ),
    Mutation(
        "curvature of the activations with the wrong sign, products",
        "structured/products.py",
        "slope_dot.addcmul_(self.bends[k - 1][:, where], z_dots[k - 1])",
        "slope_dot.addcmul_(self.bends[k - 1][:, where], z_dots[k - 1], value=-1)",
        of("structured", "every_loss_gives_the_generic_matrices_and_products"),
    ),
    Mutation(
        "what another thread added left out of the sum",
        "structured/threads.py",
        "        total += room",
        "        total += 0 * room",
        of("structured", "products_by_several_threads_are_those_by_one_and_always_the_same_bits"),
    ),
    Mutation(
        "the last piece given to no thread",
        "structured/threads.py",
        "pairwise(len(items) * k // number for k in range(number + 1))",
        "pairwise((len(items) - 1) * k // number for k in range(number + 1))",
        of("structured", "products_by_several_threads_are_those_by_one_and_always_the_same_bits"),
    ),
    Mutation(
        "threads that add to what is there already",
        "structured/threads.py",
        "torch.zeros_like(total)",
        "total.clone()",
        of("structured", "work_side_by_side_is_all_done_once_in_one_order"),
    ),
    Mutation(
        "as many threads as another caller leaves for a moment",
        "structured/threads.py",
        "    with _turns():\n        return _blas_threads()",
        "    return _blas_threads()",
        of("structured", "the_number_of_threads_is_not_what_another_caller_leaves_for_a_moment"),
    ),
    Mutation(
        "products counted without their second order",
        "structured/products.py",
        "(2 + 2 * (moves and second_order)) * layer.weight.numel()",
        "2 * layer.weight.numel()",
        of("structured", "multiplications_of_a_product_are_counted"),
    ),
    Mutation(
        "curvature of the activations twice, convolutions",
        "structured/convolution.py",
        "bend = self.slope * self.trace.bends[s]",
        "bend = 2 * self.slope * self.trace.bends[s]",
        of("convolution", "every_loss_gives_the_generic_matrices"),
    ),
    Mutation(
        "curvature of the activations with the wrong sign, products of convolutions",
        "structured/network_products.py",
        "back.addcmul_(self.bends[s], dots[s])",
        "back.addcmul_(self.bends[s], dots[s], value=-1)",
        EVERY_MATRIX + of("convolution", "structured_matrices_equal_generic_ones_for_every_network"),
    ),
    Mutation(
        "maxima of every channel looked up in the first",
        "structured/network.py",
        "trace.chosen[s] = (index.flatten(2) + channel).flatten(1)",
        "trace.chosen[s] = index.flatten(2).flatten(1)",
        of("convolution", "every_pooling_gives_the_generic_matrices"),
    ),
    Mutation(
        "slope of another activation",
        "structured/chain.py",
        "return [z, torch.ones_like(z), torch.zeros_like(z)][: order + 1]",
        "return [z, torch.ones_like(z), torch.ones_like(z)][: order + 1]",
        of("structured", "no_activation_and_two_in_a_row_give_the_generic_matrices"),
    ),
    # ------------------------------------------------------------------------------------------- matrices and checks
    Mutation(
        "uncentred covariance",
        "matrices.py",
        "yield block - mean()[:, None] * root_weights[where]",
        "yield block",
        campaign("second_moment_and_covariance_are_those_of_the_rows_of_gradients"),
    ),
    Mutation(
        "missing second-order term in products",
        "matrices.py",
        "return product + second_order(block) if bends else product",
        "return product",
        PULLBACK,
    ),
    Mutation(
        "missing second-order term in the entries",
        "matrices.py",
        "return move(operator.entries(), operator.gradient() if bends else None)",
        "return move(operator.entries(), None)",
        PULLBACK,
    ),
    Mutation(
        "the last chunk instead of the sum",
        "matrices.py",
        "total += _backward_columns([outputs], leaves, columns, batched=batched)",
        "total = _backward_columns([outputs], leaves, columns, batched=batched)",
        EVERY_MATRIX + of("matrices", "matrices_are_right_through_common_layers"),
    ),
    Mutation(
        "mean over chunks",
        "matrices.py",
        "total += _backward_columns(gradient, leaves, _split_columns(problem, block), batched=batched)",
        "total += _backward_columns(gradient, leaves, _split_columns(problem, block), batched=batched) / len(graphs())",
        of("matrices", "matrices_are_right_through_common_layers"),
    ),
    Mutation(
        "examples that count alike whatever their weight",
        "matrices.py",
        "return problem.loss.denominators(problem.outputs(), problem.targets) / problem.denominator",
        "return torch.ones(problem.num_examples, dtype=problem.dtype) / problem.num_examples",
        of("matrices", "matrices_equal_loops_over_single_examples"),
    ),
    Mutation(
        "rank bound one too small",
        "matrices.py",
        "rank_bound=min(problem.dim, max(0, num_counted - 1)),",
        "rank_bound=min(problem.dim, max(0, num_counted - 2)),",
        of("matrices", "rank_bound_holds_and_is_attained_by_a_wide_network"),
    ),
    Mutation(
        "one-sided step in a central difference",
        "differences.py",
        "slopes.append((ahead - behind) / (2 * step))",
        "slopes.append((ahead - behind) / step)",
        of("checks", "blocks_are_checked_in_their_own_coordinates"),
    ),
    Mutation(
        "a witness that always agrees",
        "checks.py",
        "excess = float((testimony.form - form).abs().max()) - testimony.rounding",
        "excess = -testimony.rounding",
        of("checks", "a_symmetric_but_wrong_second_derivative_is_found_by_finite_differences"),
    ),
    Mutation(
        "symmetry of the symmetric part",
        "checks.py",
        "(form - form.T).abs().max(),",
        "(form - form).abs().max(),",
        of("checks", "each_property_of_a_symmetric_matrix_is_checked"),
    ),
    Mutation(
        "asymmetry averaged away",
        "operators.py",
        "if asymmetry > allowed:",
        "if asymmetry > 1e6 * allowed:",
        of("matrices", "asymmetry_is_judged_against_rounding"),
    ),
    Mutation(
        "diagonal counted twice when mirrored",
        "operators.py",
        "tile.copy_(tile.triu() + tile.triu(1).T)",
        "tile.copy_(tile.triu() + tile.triu().T)",
        of("structured", "no_activation_and_two_in_a_row_give_the_generic_matrices"),
    ),
    Mutation(
        "entries computed where products take less time",
        "operators.py",
        "return work.multiplications < SLOWER * num_products * saved",
        "return work.multiplications > SLOWER * num_products * saved",
        of("krylov", "entries_pay_where_the_counted_work_says_so"),
    ),
    Mutation(
        "entries though a product with them takes as long",
        "operators.py",
        "saved = work.product_multiplications - self.dim**2",
        "saved = work.product_multiplications",
        of("krylov", "entries_pay_where_the_counted_work_says_so"),
    ),
    # ------------------------------------------------------------------------------------------- linear algebra
    Mutation(
        "signs of 2 x 2 pivots from their diagonal",
        "lapack.py",
        "signs = np.linalg.eigvalsh(_pairs(blocks))",
        "signs = np.diag(blocks)",
        of("estimators", "inertia_needs_pairs_of_pivots"),
    ),
    Mutation(
        "inertia without its scale",
        "lapack.py",
        "shifted = matrix.astype(np.float64) / scale",
        "shifted = matrix.astype(np.float64)",
        of("estimators", "inertia_counts_what_the_eigenvalues_say"),
    ),
    Mutation(
        "a band that is cut off between the two stages",
        "lapack.py",
        'second = [b"Y", b"N", b"L", size, band, banded, band + 1, diagonal, off_diagonal]',
        'second = [b"Y", b"N", b"L", size, band - 1, banded, band + 1, diagonal, off_diagonal]',
        of("lapack", "two_stages_find_prescribed_eigenvalues_of_both_signs"),
    ),
    Mutation(
        "norms whose squares vanish",
        "norms.py",
        "(found > limits.tiny**0.5 / limits.eps)",
        "(found >= 0)",
        ("curvature/norms.py",),
    ),
    Mutation(
        "dropped reorthogonalization",
        "krylov.py",
        "residual = residual - _projected(span, residual)",
        "residual = residual - 0 * _projected(span, residual)",
        of("krylov", "no_ghosts_after_the_outliers_have_converged"),
    ),
    Mutation(
        "single Gram-Schmidt pass, density",
        "krylov.py",
        """        residual = residual - diagonal[:, step, None] * vectors
        if step:
            residual -= off_diagonal[:, step - 1, None] * basis[:, step - 1]
        for _ in range(3):
""",
        """        for _ in range(1):
""",
        campaign("bases_stay_orthogonal_to_rounding"),
    ),
    Mutation(
        "single Gram-Schmidt pass, ends",
        "krylov.py",
        "image = image - again @ span",
        "image = image - 0 * (again @ span)",
        campaign("bases_stay_orthogonal_to_rounding"),
    ),
    Mutation(
        "a second start that finds nothing",
        "krylov.py",
        "over = int((rest > found.largest[-1] + radius).sum()) if len(found.largest) else 0",
        "over = 0",
        of("estimators", "an_eigenvector_that_the_start_cannot_see_is_reported_missing"),
    ),
    Mutation(
        "everything unseen though the whole space was seen",
        "krylov.py",
        'record = replace(record, complete="the whole space", unseen=unseen)',
        'record = replace(record, complete="the whole space")',
        DEGENERATE,
    ),
    Mutation(
        "solves without the shift",
        "krylov.py",
        "return operator @ block + shift * block",
        "return operator @ block",
        of("krylov", "solution_equals_the_dense_one"),
    ),
    # ------------------------------------------------------------------------------------------- estimates and bounds
    Mutation(
        "XTrace without the leave-one-out correction",
        "estimators/traces.py",
        "p = w - s * (s * w).sum(dim=-2, keepdim=True)",
        "p = w",
        of("estimators", "leave_one_out_samples_are_what_leaving_one_out_gives"),
    ),
    Mutation(
        "Hutch++ that counts the range twice",
        "estimators/traces.py",
        "rest = rest - basis @ (basis.T @ rest)",
        "rest = rest - 0 * (basis @ (basis.T @ rest))",
        of("estimators", "hutch_plus_plus_is_unbiased_over_all_signs_of_the_probes_for_any_sketch"),
    ),
    Mutation(
        "spread of the samples for the jackknife",
        "estimators/traces.py",
        "error = spread(means) * (len(means) - 1) ** 0.5",
        "error = spread(samples) / len(samples) ** 0.5",
        of("estimators", "intervals_of_the_trace_cover_what_they_promise"),
    ),
    Mutation(
        "XDiag with too much of what is known",
        "estimators/traces.py",
        "known = (basis * image).sum(dim=1) - ((basis @ s) * (image @ s)).sum(dim=1) / count",
        "known = (basis * image).sum(dim=1)",
        of("estimators", "xdiag_is_unbiased_over_all_signs"),
    ),
    Mutation(
        "Gauss above and Radau below taken for each other",
        "estimators/sums.py",
        "below, above = (radau, gauss) if rule.gauss_above else (gauss, radau)",
        "below, above = (gauss, radau) if rule.gauss_above else (radau, gauss)",
        of("estimators", "gauss_and_radau_enclose_every_probe"),
    ),
    Mutation(
        "quantile with the wrong degrees of freedom",
        "estimators/intervals.py",
        "return float(student.ppf((1 + LEVEL) / 2, count - 1))",
        "return float(student.ppf((1 + LEVEL) / 2, count))",
        campaign("interval_of_even_samples_is_students_with_one_degree_of_freedom_less"),
    ),
    Mutation(
        "width of a trace's interval without the square root of n",
        "estimators/intervals.py",
        "unit, reach = deviation / count**0.5, quantile(count)",
        "unit, reach = deviation, quantile(count)",
        campaign("interval_of_even_samples_is_students_with_one_degree_of_freedom_less"),
    ),
    Mutation(
        "another constant of Kuczynski and Wozniakowski",
        "certificates.py",
        "math.log(1.648 * math.sqrt(dim) / failure)",
        "math.log(math.sqrt(dim) / failure)",
        RANDOM_STARTS,
    ),
    Mutation(
        "half of the rate of Kuczynski and Wozniakowski",
        "certificates.py",
        "/ (2 * num_steps - 1)) ** 2",
        "/ (4 * num_steps - 1)) ** 2",
        RANDOM_STARTS,
    ),
    Mutation(
        "sides of Kato-Temple exchanged",
        "certificates.py",
        "return values - np.minimum(residuals, down), values + np.minimum(residuals, up)",
        "return values - np.minimum(residuals, up), values + np.minimum(residuals, down)",
        of("estimators", "kato_temple_holds_and_is_quadratic"),
    ),
    Mutation(
        "Gauss-Radau with the wrong sign",
        "certificates.py",
        "changed[:, step] = node + coupling",
        "changed[:, step] = node - coupling",
        of("estimators", "gauss_is_exact_to_degree_two_m_minus_one_and_radau_to_two_m_minus_two"),
    ),
    Mutation(
        "envelope one weight too narrow",
        "certificates.py",
        'ceiling += total[np.searchsorted(row, grid + rounding, side="right") + 2]',
        'ceiling += total[np.searchsorted(row, grid + rounding, side="right") + 1]',
        of("estimators", "envelope_holds_the_measure_of_each_probe_for_certain"),
    ),
    Mutation(
        "Gram for SVD",
        "spectra.py",
        "_converged(_singular_values, short, operator), None",
        "_converged(lambda a: torch.linalg.eigvalsh(a @ a.T).clamp(min=0).flip(0).sqrt(), short, operator), None",
        of("spectrum", "factor_route_resolves_a_condition_number_of_1e12"),
    ),
    Mutation(
        "noise floor of the entries for the factor",
        "spectra.py",
        'of the largest singular value": units**2 * size}',
        'of the largest singular value": units * size}',
        of("spectrum", "factor_route_resolves_a_condition_number_of_1e12"),
    ),
    Mutation(
        "rounding counted as rank",
        "spectra.py",
        "above = int((sizes > floor).sum())",
        "above = int((sizes > 0).sum())",
        of("spectrum", "rounding_of_a_rank_one_matrix_is_never_counted_as_rank"),
    ),
    Mutation(
        "a spectrum that rounding cut off, called resolved",
        "spectra.py",
        "_GAP, _CLEAR = 1e3, 10",
        "_GAP, _CLEAR = 0.0, 0.0",
        campaign("an_unknown_null_space_is_resolved_where_there_is_a_gap"),
    ),
    Mutation(
        "wrong null dimension: what is not null is counted",
        "nullspace.py",
        "count = int((torch.linalg.vector_norm(operator @ space.basis, dim=0) <= allowed).sum())",
        "count = space.dim",
        of("nullspace", "a_direction_that_is_not_null_is_dropped_and_said"),
    ),
    Mutation(
        "wrong null dimension: mixing without its counterpart",
        "nullspace.py",
        "vectors[rows_out[:, b], k] -= problem.weights[rows_out[:, a]]",
        "vectors[rows_out[:, b], k] += problem.weights[rows_out[:, a]]",
        of("nullspace", "two_linear_layers_have_the_square_of_the_hidden_width"),
    ),
    # ------------------------------------------------------------------------------------------- summaries and steps
    Mutation(
        "percentile rounded down",
        "conditioning.py",
        "return -(-percent * rank // 100)",
        "return percent * rank // 100",
        of("conditioning", "percentiles_count_eigenvalues_without_rounding"),
    ),
    Mutation(
        "steps of the loss counted as steps of the weights",
        "conditioning.py",
        "rates = 2 * np.log1p(-values / values[-1])",
        "rates = np.log1p(-values / values[-1])",
        of("conditioning", "gd_time_counts_the_steps_of_gradient_descent"),
    ),
    Mutation(
        "damping of K-FAC on the wrong factor",
        "preconditioners.py",
        "input_root = _inverse_root(*torch.linalg.eigh(inputs), pi * shift**0.5)",
        "input_root = _inverse_root(*torch.linalg.eigh(inputs), shift**0.5 / pi)",
        of("preconditioners", "kfac_is_the_kronecker_product_of_damped_factors"),
    ),
    Mutation(
        "inverse for its root",
        "preconditioners.py",
        "root = (vectors * (values.clamp(min=0) + shift).rsqrt()) @ vectors.T",
        "root = (vectors / (values.clamp(min=0) + shift)) @ vectors.T",
        of("preconditioners", "block_preconditioners_are_the_inverses_of_the_damped_blocks"),
    ),
    Mutation(
        "step uphill",
        "steps.py",
        "return -at.metric(problem.gradient()[:, None])[:, 0]",
        "return at.metric(problem.gradient()[:, None])[:, 0]",
        of("steps", "step_of_a_chart_is_minus_k_times_the_gradient"),
    ),
    Mutation(
        "best stretch of another quadratic",
        "steps.py",
        "numerator, denominator = b * c0 - a * c1, a * c2 - b * c1",
        "numerator, denominator = b * c0 + a * c1, a * c2 - b * c1",
        of("steps", "best_stretch_is_the_best_of_a_fine_grid"),
    ),
    Mutation(
        "alignment with the bottom eigenvector",
        "noise.py",
        "cosine=min(1.0, float((unit @ vectors[:, -1]).abs())),",
        "cosine=min(1.0, float((unit @ vectors[:, 0]).abs())),",
        of("noise", "weights_along_the_dominant_direction_have_cosine_one"),
    ),
    Mutation(
        "mean cosine of one dimension more",
        "noise.py",
        "math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)",
        "math.lgamma((dim + 1) / 2) - math.lgamma((dim + 2) / 2)",
        of("noise", "mean_cosine_of_small_dimensions_is_known"),
    ),
    # ------------------------------------------------------------------------------------------- evidence and training
    Mutation(
        "t interval with the wrong degrees of freedom",
        "evidence/inference.py",
        "stats.t.ppf((1 + level) / 2, len(values) - 1)",
        "stats.t.ppf((1 + level) / 2, len(values))",
        of("evidence", "the_interval_is_the_one_of_scipy"),
    ),
    Mutation(
        "interval width without the square root of n",
        "evidence/inference.py",
        "return float(values.std(ddof=1)) / len(values) ** 0.5",
        "return float(values.std(ddof=1))",
        of("evidence", "the_interval_is_the_one_of_scipy"),
    ),
    Mutation(
        "Holm without the step-down",
        "evidence/inference.py",
        "factors = np.arange(len(values), 0, -1)",
        "factors = np.full(len(values), len(values))",
        of("evidence", "holm_equals_hand_computed_cases"),
    ),
    Mutation(
        "Holm that may fall again",
        "evidence/inference.py",
        "np.minimum(1, np.maximum.accumulate(factors * values[order]))",
        "np.minimum(1, factors * values[order])",
        of("evidence", "holm_equals_hand_computed_cases"),
    ),
    Mutation(
        "one order of the changes for all",
        "evidence/decomposition.py",
        "(clean[made | {source}] - clean[made]) / len(orders)",
        "(clean[made | {source}] - clean[made])",
        of("evidence", "parts_of_any_lattice_add_up_and_are_shapley_values"),
    ),
    Mutation(
        "steps to a loss interpolated from the wrong end",
        "evidence/pairs.py",
        "step = float(curve.steps[k - 1] + share * (curve.steps[k] - curve.steps[k - 1]))",
        "step = float(curve.steps[k] - share * (curve.steps[k] - curve.steps[k - 1]))",
        of("evidence", "steps_to_a_loss_are_interpolated_on_the_logarithm"),
    ),
    Mutation(
        "a width of learning rates across a gap",
        "evidence/pairs.py",
        """        here = best
        while 0 <= here + direction < len(values) and values[here + direction] <= limit:
            here += direction
""",
        "        here = int(np.flatnonzero(values <= limit)[min(0, -direction)])\n",
        of("evidence", "the_width_is_where_the_interpolated_loss_leaves_ten_percent_of_the_best"),
    ),
    Mutation(
        "momentum forgotten",
        "training/optimizers.py",
        "gradient = velocity.mul_(self.momentum).add_(gradient)",
        "gradient = velocity.mul_(0.0).add_(gradient)",
        of("training", "standard_arm_is_stochastic_gradient_descent_of_pytorch"),
    ),
    Mutation(
        "Adam without the correction of its bias",
        "training/optimizers.py",
        "value=-self.learning_rate / (1 - first**step)",
        "value=-self.learning_rate",
        of("training", "optimizers_are_those_of_pytorch_on_the_same_coordinates"),
    ),
    Mutation(
        "batches divided by their number of examples",
        "training/loop.py",
        "shares = [float(share.sum()) for share in self.shares[order].split(self.batch_size)]",
        "shares = [float(len(share)) for share in self.shares[order].split(self.batch_size)]",
        of("training", "batch_losses_are_the_means_of_pytorch_on_the_batch"),
    ),
    Mutation(
        "data-dependent scale without the length of v",
        "training/initialization.py",
        "g = {name: row_norms(part.flatten(1)) / by_weight[name].deviation for name, part in v.items()}",
        "g = {name: 1 / by_weight[name].deviation for name, part in v.items()}",
        of("arms", "data_dependent_initialization_draws_v_and_scales_it_to_the_weights"),
    ),
    Mutation(
        "squared length that grows by the step",
        "training/recursion.py",
        "growth = self._square * self._lengths(gradient)",
        "growth = self._square**0.5 * self._lengths(gradient)",
        of("arms", "squared_length_of_v_grows_by_the_squared_step_in_every_arm_that_has_a_v"),
    ),
    Mutation(
        "sweep that grows away from its best rate",
        "training/sweep.py",
        "        if best == 0:",
        "        if best == len(rates):",
        of("training", "a_sweep_grows_at_its_edge_until_the_best_rate_of_a_quadratic_is_inside"),
    ),
    Mutation(
        "a rate tuned by the last loss alone",
        "training/sweep.py",
        "run.curve.losses[1:][-TAIL:].mean()",
        "run.curve.losses[-1]",
        of("training", "a_sweep_grows_at_its_edge_until_the_best_rate_of_a_quadratic_is_inside"),
    ),
    Mutation(
        "batch norm by the root of the fourth moment",
        "training/network.py",
        "deviation = (centred.square().mean(axes, keepdim=True) + self.epsilon).sqrt()",
        "deviation = (centred.square().square().mean(axes, keepdim=True) + self.epsilon).sqrt()",
        of("arms", "normalized_arms_train_as_a_module_written_by_hand"),
    ),
    Mutation(
        "patches with dilation and padding exchanged",
        "layers.py",
        "return functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT",
        "return functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, 1).mT",
        of("layers", "patches_times_weights_are_the_outputs_of_the_layer"),
    ),
]


def identifiers():
    return [f"{mutation.file.removesuffix('.py')}: {mutation.what}" for mutation in MUTATIONS]


def test_every_numerical_room_has_a_mutation():
    planted = {re.split(r"[/.]", mutation.file)[0] for mutation in MUTATIONS}
    assert planted == NUMERICAL
    assert len({mutation.what for mutation in MUTATIONS}) == len(MUTATIONS) >= 40


@pytest.mark.parametrize("mutation", MUTATIONS, ids=identifiers())
def test_mutations_can_still_be_planted(mutation):
    text = (ROOT / "curvature" / mutation.file).read_text()
    assert text.count(mutation.source) == 1, f"stands {text.count(mutation.source)} times in {mutation.file}"
    changed = text.replace(mutation.source, mutation.replacement)
    assert changed != text
    compile(changed, mutation.file, "exec")
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), test


# The first counterexample will do: to find the simplest one takes most of the time.
UNSHRUNK = """
from hypothesis import Phase, settings

def pytest_configure():
    settings.register_profile("planted", parent=settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("planted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=identifiers())
def test_mutation_turns_its_tests_red(mutation, tmp_path):
    shutil.copytree(ROOT / "curvature", tmp_path / "curvature", ignore=shutil.ignore_patterns("__pycache__"))
    planted = tmp_path / "curvature" / mutation.file
    text = planted.read_text()
    assert text.count(mutation.source) == 1
    planted.write_text(text.replace(mutation.source, mutation.replacement))
    (tmp_path / "unshrunk.py").write_text(UNSHRUNK)
    # Tests of the repository against the copy, whose place comes first; doctests are the copy's own.
    tests = [str((tmp_path if test.startswith("curvature") else ROOT) / test) for test in mutation.tests]
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "unshrunk", "-c", str(ROOT / "pyproject.toml")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={ROOT}", "-o", f"pythonpath={tmp_path}", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = run.stdout[-3000:] + run.stderr[-500:]
    assert run.returncode == 1, f"survived, or never ran:\n{said}"
    assert re.search(r"\d+ failed", run.stdout), said
    assert not re.search(ACCIDENTS, run.stdout, re.MULTILINE), said
