"""Defects in eigenvalues, Krylov methods, estimates and self-checks."""

from planted import Defect

EVEN_SAMPLES = ("interval_of_even_samples_is_students_with_one_degree_of_freedom_less",)
ENTRIES_PAY = ("entries_pay_where_the_counted_work_says_so",)
BASES = ("bases_stay_orthogonal_to_rounding",)
FACTOR = ("factor_route_resolves_a_condition_number_of_1e12",)

DEFECTS = [
    Defect(
        "a witness that always agrees",
        "linalg:_agreement",
        "$difference - $testimony.rounding",
        "-$testimony.rounding",
        ("a_symmetric_but_wrong_second_derivative_is_found_by_finite_differences",),
    ),
    Defect(
        "symmetry of the symmetric part",
        "linalg:self_checks",
        "($form - $form.T).abs().max()",
        "($form - $form).abs().max()",
        ("each_property_of_a_symmetric_matrix_is_checked",),
    ),
    Defect(
        "asymmetry averaged away",
        "linalg:symmetrized",
        "$asymmetry > $allowed",
        "$asymmetry > 1e6 * $allowed",
        ("asymmetry_is_judged_against_rounding",),
    ),
    Defect(
        "diagonal counted twice when mirrored",
        "linalg:mirrored",
        "$tile.triu() + $tile.triu(1).T",
        "$tile.triu() + $tile.triu().T",
        ("no_activation_and_two_in_a_row_give_the_generic_matrices",),
    ),
    Defect(
        "entries computed where products take less time",
        "linalg:Routes.entries_pay",
        "self.entries.multiplications < $limit",
        "self.entries.multiplications > $limit",
        ENTRIES_PAY,
    ),
    Defect(
        "entries though a product with them takes as long",
        "linalg:Routes.entries_pay",
        "$each - $dim**2",
        "$each",
        ENTRIES_PAY,
    ),
    Defect(
        "signs of 2 x 2 pivots from their diagonal",
        "linalg.lapack:inertia",
        "np.linalg.eigvalsh(_pairs($blocks))",
        "np.diag($blocks)",
        ("inertia_needs_pairs_of_pivots",),
    ),
    Defect(
        "inertia without its scale",
        "linalg.lapack:inertia",
        "$matrix.astype(np.float64) / $scale",
        "$matrix.astype(np.float64)",
        ("inertia_counts_what_the_eigenvalues_say",),
    ),
    Defect(
        "a band that is cut off between the two stages",
        "linalg:_two_stage",
        '$call($routine, 2, b"Y", b"N", b"L", $size, $band, $banded, $leading, $$rest)',
        '$call($routine, 2, b"Y", b"N", b"L", $size, $band - 1, $banded, $leading, $$rest)',
        ("two_stages_find_prescribed_eigenvalues_of_both_signs",),
    ),
    Defect(
        "norms whose squares vanish",
        "linalg:vector_norms",
        "$norms > $limits.tiny**0.5 / $limits.eps",
        "$norms >= 0",
        ("curvature/linalg/norms.py",),
    ),
    Defect(
        "dropped reorthogonalization",
        "linalg.lanczos:_tridiagonalized",
        "$residual - _projected($span, $residual)",
        "$residual - 0 * _projected($span, $residual)",
        ("no_ghosts_after_the_outliers_have_converged",),
    ),
    Defect(
        "single Gram-Schmidt pass, density",
        "linalg.lanczos:_tridiagonalized",
        "$residual = $residual - $diagonal[:, $step, None] * $vectors\n"
        "if $step:\n"
        "    $$previous\n"
        "for _ in range(3):\n"
        "    $$body",
        "for _ in range(1):\n    $$body",
        BASES,
    ),
    Defect(
        "single Gram-Schmidt pass, ends",
        "linalg.extremal:_Search._expanded",
        "$image = $image - $inner @ $span\n$again = $image @ $span.T\n$image = $image - $again @ $span",
        "$image = $image - $inner @ $span\n$again = $image @ $span.T",
        BASES,
    ),
    Defect(
        "a second start that finds nothing",
        "linalg.completeness:verified",
        "int(($rest > $record.largest[-1] + $radius).sum())",
        "0",
        ("an_eigenvector_that_the_start_cannot_see_is_reported_missing",),
    ),
    Defect(
        "everything unseen though the whole space was seen",
        "linalg.extremal:_Search._result",
        'replace($record, complete="the whole space", unseen=$unseen)',
        'replace($record, complete="the whole space")',
        ("every_method_is_right_on_degenerate_matrices_at_extreme_scales",),
    ),
    Defect(
        "solves without the damping",
        "linalg:_solved",
        "$operator @ $block + $damping * $block",
        "$operator @ $block",
        ("solution_equals_the_dense_one",),
    ),
    Defect(
        "XTrace without the leave-one-out correction",
        "linalg:_xtrace_samples",
        "$w - $s * ($s * $w).sum(dim=-2, keepdim=True)",
        "$w",
        ("leave_one_out_samples_are_what_leaving_one_out_gives",),
    ),
    Defect(
        "spread of the samples for the jackknife",
        "linalg:_estimated_trace",
        "spread($means) * ($num_probes - 1) ** 0.5",
        "spread(samples) / len(samples) ** 0.5",
        ("intervals_of_the_trace_cover_what_they_promise",),
    ),
    Defect(
        "XDiag with too much of what is known",
        "linalg:_xdiag_mean",
        "$known - (($basis @ $s) * ($image @ $s)).sum(dim=1) / $count",
        "$known",
        ("xdiag_is_unbiased_over_all_signs",),
    ),
    Defect(
        "Gauss above and Radau below taken for each other",
        "linalg:_enclosure",
        "($radau, $gauss) if $gauss_above else ($gauss, $radau)",
        "($gauss, $radau) if $gauss_above else ($radau, $gauss)",
        ("gauss_and_radau_enclose_every_probe",),
    ),
    Defect(
        "quantile with the wrong degrees of freedom",
        "linalg:quantile",
        "student.ppf((1 + LEVEL) / 2, $count - 1)",
        "student.ppf((1 + LEVEL) / 2, $count)",
        EVEN_SAMPLES,
    ),
    Defect(
        "width of a trace's interval without the square root of n",
        "linalg:mean_interval",
        "($deviation / $count**0.5, quantile($count))",
        "($deviation, quantile($count))",
        EVEN_SAMPLES,
    ),
    Defect(
        "Gram for SVD",
        "linalg:_by_factor",
        "_converged(singular_values, $$rest)",
        "_converged(lambda a: torch.linalg.eigvalsh(a @ a.T).clamp(min=0).flip(0).sqrt(), $$rest)",
        FACTOR,
    ),
    Defect(
        "noise floor of the entries for the factor",
        "linalg:noise_floor",
        "$units**2 * $size",
        "$units * $size",
        FACTOR,
    ),
    Defect(
        "rounding counted as rank",
        "linalg:decide_rank",
        "$above = int(($sizes > $floor).sum())\nif $above == $bound:\n    $$body",
        "$above = int(($sizes > 0).sum())\nif $above == $bound:\n    $$body",
        ("rounding_of_a_rank_one_matrix_is_never_counted_as_rank",),
    ),
    Defect(
        "a spectrum that rounding cut off, called resolved",
        "linalg.rank",
        "(1e3, 10)",
        "(0.0, 0.0)",
        ("an_unknown_null_space_is_resolved_where_there_is_a_gap",),
    ),
    Defect(
        "wrong null dimension: what is not null is counted",
        "linalg.rank:verified",
        "int((torch.linalg.vector_norm($operator @ $space.basis, dim=0) <= $allowed).sum())",
        "$space.dim",
        ("a_direction_that_is_not_null_is_dropped_and_said",),
    ),
    Defect(
        "factor of a multiple without the root",
        "linalg:scaled_routes",
        "$scale**0.5 * $block",
        "$scale * $block",
        ("every_route_of_the_result_leads_to_its_products",),
    ),
    Defect(
        "residuals of eigenvectors without the matrix",
        "linalg.vectors:eigenvectors",
        "$operator @ $block - $block * $values",
        "$block * $values - $block * $values",
        ("residuals_of_rough_vectors_are_those_of_products",),
    ),
    Defect(
        "a difference that forgets how large its terms are",
        "linalg:SymmetricOperator.__add__",
        "self.rounding_scale() + other.rounding_scale()",
        "0.0 * other.rounding_scale()",
        ("a_difference_keeps_the_rounding_of_its_terms",),
    ),
    Defect(
        "a multiple of a difference that forgets it",
        "linalg:_times",
        "$factor * $scale()",
        "0.0 * $scale()",
        ("multiples_congruences_and_blocks_of_a_difference_keep_it_too",),
    ),
]
