"""The claims over many cells: pooled and decided as one family, and the decomposition pooled with the claim's sign."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from curvature.records import Verdict
from curvature.studies.evidence import THRESHOLD, adjust, decide, decompose, pooled_sources, pooled_verdicts
from curvature.studies.evidence.inference import side_of
from curvature.studies.grid.result import _published
from curvature.studies.settings import HEADLINE, PUBLISHED

pytest.importorskip("statsmodels")

CELLS = [f"cell {k}" for k in range(6)]


def verdict(effects, claim="C1", case="own training", **fields):
    draft = Verdict(
        claim, "a sentence", "not tested", case=case, method="student", threshold=THRESHOLD, unit="log-ratio"
    )
    return decide(Verdict(**{**vars(draft), "effects": tuple(effects), "min_pairs": 3, **fields}))


def family(means, generator, noise=0.05, seeds=5):
    """Verdicts of every cell, one for each claim with its planted mean."""
    return {
        cell: adjust([verdict(mean + noise * generator.normal(size=seeds), claim) for claim, mean in means.items()])
        for cell in CELLS
    }


def test_planted_effects_are_supported_reversed_and_left_open():
    cells = family({"C1": 0.5, "C2": -0.2, "C3": THRESHOLD}, np.random.default_rng(0))
    outcomes = {item.claim: item.outcome for item in pooled_verdicts(cells)}
    assert outcomes == {"C1": "supported", "C2": "opposite", "C3": "undecided"}


def test_the_deciding_interval_is_the_one_of_holms_level_and_the_shown_one_is_at_95_percent():
    first, second = pooled_verdicts(family({"C1": 0.5, "C2": 0.4}, np.random.default_rng(1)))
    assert (first.level, second.level) in [(0.975, 0.95), (0.95, 0.975)]
    for item in (first, second):
        wider = item.decided_high - item.decided_low >= item.effect.high - item.effect.low
        assert wider == (item.level >= 0.95)
        assert side_of(item.decided_low, item.decided_high, THRESHOLD)[0] == item.outcome
    assert max(first.adjusted_p_value, second.adjusted_p_value) >= max(first.p_value, second.p_value)


def test_wrong_decisions_in_a_family_are_as_rare_as_promised():
    generator = np.random.default_rng(2)
    means = {"C1": THRESHOLD, "C2": THRESHOLD, "C3": THRESHOLD}
    families = [pooled_verdicts(family(means, generator)) for _ in range(150)]
    wrong = [any(item.outcome == "supported" for item in items) for items in families]
    assert np.mean(wrong) <= 0.05


def test_a_cell_whose_own_test_is_void_is_left_out_with_its_reason():
    generator = np.random.default_rng(3)
    cells = {cell: [verdict(0.5 + 0.1 * generator.normal(size=5))] for cell in CELLS}
    cells["cell 0"] = [verdict([5.0, 5.1, 5.2], control="canonical gauge", control_passed=False)]
    cells["cell 1"] = [verdict([5.0, 5.1])]
    cells["cell 2"] = [verdict([5.0] * 3, ceilings=(5.0, 6.0, math.inf))]
    (item,) = pooled_verdicts(cells)
    assert item.effect.cells == tuple(CELLS[3:])
    assert set(item.effect.missing) == set(CELLS[:3])
    assert "control failed" in item.effect.missing["cell 0"]
    assert "only 2 of the 3 pairs" in item.effect.missing["cell 1"]
    assert "bounds" in item.effect.missing["cell 2"]
    assert item.outcome == "supported"
    assert item.outcomes["cell 1"] == "undecided"


def test_fewer_than_half_of_the_cells_decide_nothing():
    generator = np.random.default_rng(4)
    cells = {cell: [verdict(0.5 + 0.01 * generator.normal(size=5))] for cell in [*CELLS, "cell 6"]}
    for cell in CELLS[:4]:
        cells[cell] = [verdict([0.5])]
    (item,) = pooled_verdicts(cells)
    assert item.outcome == "undecided"
    assert "only 3 of 7 cells" in item.rule


def test_an_identity_that_fails_in_one_cell_is_broken_and_enters_no_family():
    def identity(outcome):
        return Verdict("C5", "batch norm equals weight norm", outcome, method="identity")

    cells = {cell: [identity("supported"), verdict([0.5, 0.6, 0.55])] for cell in CELLS}
    assert [item.outcome for item in pooled_verdicts(cells)] == ["supported", "supported"]
    cells["cell 2"] = [identity("opposite"), verdict([0.5, 0.6, 0.55])]
    items = pooled_verdicts(cells)
    assert items[0].outcome == "opposite"
    assert "Holm" not in items[1].rule


def test_comparisons_at_different_losses_are_one_claim_and_a_cell_without_one_is_named():
    generator = np.random.default_rng(5)
    cells = {
        cell: [verdict(0.5 + 0.01 * generator.normal(size=5), case=f"at the same loss of {0.1 * number:g}")]
        for number, cell in enumerate(CELLS[1:], start=1)
    }
    (item,) = pooled_verdicts({"cell 0": [], **cells})
    assert item.name == "C1, at the same loss"
    assert item.effect.cells == tuple(CELLS[1:])
    assert item.effect.missing == {"cell 0": "not measured in this cell"}
    assert item.outcome == "supported"


def test_a_claim_that_no_cell_has_tested_is_not_tested():
    (item,) = pooled_verdicts({cell: [Verdict("C8", "s", "not tested", note="needs sweeps")] for cell in CELLS})
    assert item.outcome == "not tested"
    assert set(item.effect.missing.values()) == {"needs sweeps"}


def test_pooled_parts_add_up_to_the_whole_where_the_cells_weigh_the_same_and_have_the_sign_of_the_claim():
    both = frozenset({"trajectory", "gauge"})
    noise = np.array([-0.01, 0.0, 0.01])
    cells = {
        cell: decompose(
            {frozenset(): noise, frozenset({"trajectory"}): noise - 0.2, both: 2 * noise - 0.5}, quantity="kappa_80"
        )
        for cell in CELLS
    }
    pooled = {effect.name: effect for effect in pooled_sources(cells)}
    assert set(pooled) == {"whole", "trajectory", "gauge"}
    assert pooled["trajectory"].estimate == pytest.approx(
        0.2, abs=1e-3
    )  # weight norm lowers the number: an improvement
    assert pooled["gauge"].estimate == pytest.approx(0.3, abs=1e-3)
    assert pooled["whole"].estimate == pytest.approx(0.5, abs=1e-3)


def test_sources_are_pooled_over_one_comparison_and_without_the_cells_that_lack_a_tenth_of_their_seeds():
    noise = np.linspace(-0.01, 0.01, 10)
    steps = {
        frozenset(): noise,
        frozenset({"trajectory"}): noise - 0.2,
        frozenset({"trajectory", "gauge"}): noise - 0.5,
    }
    whole = decompose(steps, quantity="kappa_80")
    lacking = decompose({key: np.where(np.arange(10) < 2, np.nan, v) for key, v in steps.items()}, quantity="kappa_80")
    cells = {"cell 0": whole, "cell 1": whole, "cell 2": lacking, "cell 3": None}
    for effect in pooled_sources(cells):
        assert effect.cells == ("cell 0", "cell 1")
        assert effect.missing == {
            "cell 2": "2 of 10 pairs have no number",
            "cell 3": "too few seeds have a number in both arms",
        }


def decomposition(arms):
    steps = {frozenset(): np.zeros(3), frozenset({"trajectory"}): np.ones(3)}
    return replace(decompose(steps, quantity="kappa_80"), matrix="ggn", arms=arms)


def test_every_cell_of_a_grid_gives_the_same_comparison_to_the_sources():
    """A cell without that of the paper's arms does not give PyTorch's in its place."""
    papers, headline = decomposition(PUBLISHED[:2]), decomposition(HEADLINE)
    both, one = SimpleNamespace(decompositions=(headline, papers)), SimpleNamespace(decompositions=(headline,))
    assert _published({"a": both, "b": one}, "ggn") == {"a": papers, "b": None}
    assert _published({"a": one, "b": one}, "ggn") == {"a": headline, "b": headline}
    assert _published({"a": both}, "hessian") == {}
