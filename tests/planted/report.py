"""Defects in what the report says of right numbers: its words, its tables and its pictures."""

from planted import Defect

DEFECTS = [
    Defect(
        "a factor above 1 where weight norm is favoured",
        "report.claims:factor_of",
        "np.exp(-$effect)",
        "np.exp($effect)",
        ("a_factor_is_below_1_exactly_where_the_effect_favours_weight_norm",),
    ),
    Defect(
        "ends of an interval that stay where they were in logarithms",
        "report.claims:factors_of",
        "(factor_of($unit, $effect), factor_of($unit, $high), factor_of($unit, $low))",
        "(factor_of($unit, $effect), factor_of($unit, $low), factor_of($unit, $high))",
        (
            "every_interval_on_the_page_is_at_95_percent_and_the_adjusted_one_in_the_fold",
            "a_row_is_the_factor_of_its_cell_below_one_where_weight_norm_is_better",
        ),
    ),
    Defect(
        "the adjusted interval in the place of that at 95 per cent",
        "report.claims:claim_words",
        "interval_at($verdict)",
        "($verdict.low, $verdict.high)",
        ("every_interval_on_the_page_is_at_95_percent_and_the_adjusted_one_in_the_fold",),
    ),
    Defect(
        "too small for the reason of what is opposite",
        "report.claims:reason_words",
        "$reached[$verdict.outcome]",
        "$reached[{'opposite': 'too small'}.get($verdict.outcome, $verdict.outcome)]",
        ("the_reason_of_a_verdict_has_its_threshold_in_percent",),
    ),
    Defect(
        "cells of a grid counted under another verdict",
        "report.grid:_verdict_table",
        "sum(($word == $outcome for $word in $verdict.outcomes.values()))",
        "sum(($word == {'too small': 'opposite', 'opposite': 'too small'}.get($outcome, $outcome) "
        "for $word in $verdict.outcomes.values()))",
        ("the_tables_of_a_grid_have_its_verdicts_its_factors_and_its_counts",),
    ),
    Defect(
        "examples of a cell in the place of its seeds",
        "report.grid:_cell_table",
        "$cell.num_seeds",
        "$cell.num_examples",
        ("the_tables_of_a_grid_have_its_verdicts_its_factors_and_its_counts",),
    ),
    Defect(
        "arms of a grid under each other's names",
        "report.grid:_arm_table",
        "(($effect.name, $$numbers) for $effect in $arms)",
        "((other.name, $$numbers) for $effect, other in zip($arms, $arms[::-1], strict=True))",
        ("the_tables_of_a_grid_have_its_verdicts_its_factors_and_its_counts",),
    ),
    Defect(
        "sides of the arms that bear each other's name",
        "report.drawings.grid:draw_arms",
        "('the arm', 'standard')",
        "('standard', 'the arm')",
        ("the_arms_of_a_grid_are_drawn_on_the_side_that_bears_their_name",),
    ),
    Defect(
        "seeds with a condition number as the number of all seeds",
        "report.tables.league:_cell",
        "f\"{$mean['count']} of {$row['efficiency']['count']} seeds\"",
        "f\"{$mean['count']} of {$mean['count']} seeds\"",
        ("condition_numbers_of_some_seeds_only_have_no_mean",),
    ),
    Defect(
        "efficiencies of the league in an arithmetic mean",
        "report.spread:efficiency_mean",
        "mean_with_interval($values, geometric=True, highest=1.0)",
        "mean_with_interval($values, geometric=False, highest=1.0)",
        (
            "the_efficiency_has_a_geometric_mean_whose_interval_stays_between_zero_and_one",
            "the_league_has_the_best_method_on_top_with_its_interval_and_leaves_out_what_has_no_number",
        ),
    ),
    Defect(
        "paper on ink",
        "report.figures.pictures:inline_svg",
        "PAGE_COLORS[$match[0]]",
        "PAGE_COLORS[{'#000000': '#ffffff', '#ffffff': '#000000'}.get($match[0], $match[0])]",
        ("a_figure_in_a_page_is_ink_on_paper",),
    ),
    Defect(
        "light numbers in light cells",
        "report.figures:plot_layers",
        "_ON_DARK if $dark else _ON_LIGHT",
        "_ON_LIGHT if $dark else _ON_DARK",
        ("the_number_in_a_cell_can_be_read_whether_the_page_is_light_or_dark",),
    ),
]
