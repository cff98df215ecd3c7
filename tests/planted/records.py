"""Defects in the bounds and in the summaries of a spectrum, and in the readers of stored records."""

from planted import Defect

RANDOM_STARTS = ("bounds_from_random_starts_are_violated_no_oftener_than_one_per_cent",)

DEFECTS = [
    Defect(
        "another constant of Kuczynski and Wozniakowski",
        "records:lanczos_slack",
        "1.648 * math.sqrt($dim)",
        "math.sqrt($dim)",
        RANDOM_STARTS,
    ),
    Defect(
        "half of the rate of Kuczynski and Wozniakowski",
        "records:lanczos_slack",
        "2 * $steps - 1",
        "4 * $steps - 1",
        RANDOM_STARTS,
    ),
    Defect(
        "sides of Kato-Temple exchanged",
        "records:kato_temple",
        "($values - np.minimum($residuals, $down), $values + np.minimum($residuals, $up))",
        "($values - np.minimum($residuals, $up), $values + np.minimum($residuals, $down))",
        ("kato_temple_holds_and_is_quadratic",),
    ),
    Defect(
        "Gauss-Radau with the wrong sign",
        "records:gauss_radau",
        "$node + $coupling",
        "$node - $coupling",
        ("gauss_is_exact_to_degree_two_m_minus_one_and_radau_to_two_m_minus_two",),
    ),
    Defect(
        "envelope one weight too narrow",
        "records:cumulative_band",
        'np.searchsorted($row, $points, side="right") + 2',
        'np.searchsorted($row, $points, side="right") + 1',
        ("envelope_holds_the_measure_of_each_probe_for_certain",),
    ),
    Defect(
        "intervals compared by the ends that lie nearest",
        "records:Quantity._compared",
        "{compare($low, $other_high), compare($high, $other_low)}",
        "{compare($low, $other_low), compare($high, $other_high)}",
        ("a_comparison_is_the_answer_of_every_number_that_both_sides_may_be",),
    ),
    Defect(
        "percentile rounded down",
        "records:_percentile",
        "-(-$percent * $rank // 100)",
        "$percent * $rank // 100",
        ("percentiles_count_eigenvalues_without_rounding",),
    ),
    Defect(
        "steps of the loss counted as steps of the weights",
        "records:descent_steps",
        "2 * np.log1p($contraction)",
        "np.log1p($contraction)",
        ("gd_time_counts_the_steps_of_gradient_descent",),
    ),
    Defect(
        "eigenvectors by name that all begin at the first coordinate",
        "records:Eigenvectors._parts",
        "$start += $size",
        "$start += 0 * $size",
        ("vectors_by_name_are_eigenvectors_for_torch_and_its_own_names",),
    ),
    Defect(
        "components of all eigenvectors in the order of the coordinates",
        "records:Eigenvectors.__getitem__",
        "self.columns[$part].T.reshape(len(self), *$shape)",
        "self.columns[$part].reshape(len(self), *$shape)",
        ("vectors_by_name_are_eigenvectors_for_torch_and_its_own_names",),
    ),
    Defect(
        "an archive whose hash is not compared",
        "records.sealed:unpacked",
        "_digest($content[:-_HEX]) != $content[-_HEX:]",
        "$content[:-_HEX] == $content[-_HEX:]",
        ("every_bit_of_the_hash_and_of_what_marks_it_counts",),
    ),
    Defect(
        "a summary whose hash is not compared",
        "records.sealed:unsealed_text",
        "$sealed and $rest != $hash",
        "$sealed and $rest == $hash + $rest",
        ("one_flipped_bit_of_a_summary_is_an_error_also_away_from_its_run",),
    ),
    Defect(
        "a rank beyond the dimension, read without a word",
        "records.validation:require_rank",
        "0 <= $rank <= $dim",
        "0 <= $rank",
        ("numbers_that_contradict_each_other_are_refused_with_the_reason",),
    ),
    Defect(
        "eigenvalues in any order, read without a word",
        "records:Spectrum.validate",
        "np.diff(self.eigenvalues) >= 0",
        "np.diff(self.eigenvalues) > -np.inf",
        ("numbers_that_contradict_each_other_are_refused_with_the_reason",),
    ),
    Defect(
        "files of a run whose hashes are not compared",
        "report.directory:_refuse_changed",
        "hash_file($path) != $written",
        "hash_file($path) == $written + $written",
        ("one_flipped_bit_in_any_file_of_a_run_is_an_error",),
    ),
    Defect(
        "zeros of a result file read as missing numbers",
        "report.netcdf:_dataset",
        "np.full(1, np.nan, $dtype)",
        "np.full(1, 0.0, $dtype)",
        ("the_file_opens_in_xarray_as_one_that_xarray_wrote",),
    ),
    Defect(
        "exact zeros shown as below a floor of zero",
        "records:Spectrum.eigenvalue",
        "abs($value) > $floor or $floor == 0",
        "abs($value) > $floor",
        ("the_zero_matrix_has_rank_zero_and_no_condition_number",),
    ),
]
