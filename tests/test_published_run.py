"""The published run of the grid: the documents say what its files say, and the files fit together."""

import csv
import re
import tomllib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curvature.records import PooledEffect, PooledVerdict
from curvature.records.verdict import OUTCOMES
from curvature.report.claims import factor_of, factors_of, label_of
from curvature.report.parts import read_sealed
from curvature.report.words import factor_words

ROOT = Path(__file__).parents[1]
RUN = ROOT / "evidence" / "run"
SUMMARY = read_sealed(RUN / "summary.json")


def record(kind, row):
    """A record of what the summary holds of it."""
    values = {name: row[name] for name in kind.__dataclass_fields__ if name in row}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{name: np.nan if value is None else value for name, value in plain.items()})


def pooled(row):
    return record(PooledVerdict, row | {"effect": record(PooledEffect, row["effect"])})


VERDICTS = [pooled(row) for row in SUMMARY["verdicts"]]


def number_of(verdict):
    effect = verdict.effect
    ends = effect.estimate, effect.low, effect.high
    if not effect.cells:
        return "in every network"
    if np.isnan(factor_of(effect.unit, 0.0)):
        mean, low, high = (f"{end:.3f}".replace("-", "−") for end in ends)
        return f"{mean} [{low}, {high}]"
    return factor_words(*factors_of(effect.unit, *ends))


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict.name)
def test_the_page_of_findings_has_the_verdict_and_the_numbers_of_every_claim(verdict):
    label = label_of(verdict).replace("κ₈₀", "κ80")
    section = (ROOT / "docs" / "findings.md").read_text().partition("## Ten seeds")[0]
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {verdict.claim} | {label} |")]
    _, _, _, outcome, number, another, counts, _ = (entry.strip() for entry in row.split("|"))
    assert outcome == f"**{verdict.outcome}**"
    assert number.startswith(number_of(verdict))
    effect = replace(verdict.effect, low=verdict.effect.prediction_low, high=verdict.effect.prediction_high)
    assert another == ("" if not effect.cells else number_of(replace(verdict, effect=effect)).partition(" ")[2])
    words = [word for word in OUTCOMES if word != "not tested"]
    assert counts == " / ".join(str(list(verdict.outcomes.values()).count(word)) for word in words)


def test_the_page_of_findings_has_the_verdicts_of_the_full_study():
    page = (ROOT / "docs" / "findings.md").read_text().partition("## Ten seeds")[2]
    with (ROOT / "evidence" / "full" / "verdicts.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 18
    for row in rows:
        label = row["label"].replace("κ₈₀", "κ80")
        number = row["number"].replace("|", r"\|")
        assert f"| {row['claim']} | {label} | **{row['outcome']}** | {number} |" in page


def test_the_readme_quotes_the_run():
    found = (ROOT / "README.md").read_text().partition("## What was found")[2].partition("\n## ")[0]
    quoted = {
        "C1, same weights": 1,
        "C1, own training": 2,
        "C8": 3,
        "C7, index": 4,
        "C7, against random directions": 4,
        "C2, against the mean input": 5,
    }
    by_name = {verdict.name: verdict for verdict in VERDICTS}
    for name, number in quoted.items():
        item = " ".join(re.split(r"\n(?=\d\. )|\n\n", found.partition(f"\n{number}. ")[2])[0].split())
        assert number_of(by_name[name]).replace("-", "−") in item
        assert f"*{by_name[name].outcome}*" in item


def test_the_page_of_findings_quotes_the_sources_of_the_difference():
    section = " ".join((ROOT / "docs" / "findings.md").read_text().partition("## Ten seeds")[0].split())
    for row in SUMMARY["sources"]:
        effect = record(PooledEffect, row)
        assert factor_words(*factors_of(effect.unit, effect.estimate, effect.low, effect.high)) in section
        assert "digits, residual-mlp, adam" in effect.missing


def test_the_effect_of_a_cell_is_the_mean_over_the_numbers_of_its_seeds():
    numbers = defaultdict(list)
    with (RUN / "effects.csv").open(newline="") as lines:
        for line in csv.DictReader(lines):
            if line["low"] and line["low"] == line["high"]:
                case = re.sub(r"(at the same loss) of [0-9.]+", r"\1", line["case"])  # which differs between the data
                numbers[line["claim"], case, line["cell"]].append(float(line["low"]))
    compared = 0
    for verdict in VERDICTS:
        for cell, effect in zip(verdict.effect.cells, verdict.effect.effects, strict=True):
            np.testing.assert_allclose(np.mean(numbers[verdict.claim, verdict.case, cell]), effect, rtol=1e-12)
            compared += 1
    assert compared > 150


def test_the_run_has_the_configuration_that_was_fixed_before_it():
    fixed = tomllib.loads((ROOT / "evidence" / "grid.toml").read_text())
    written = tomllib.loads((RUN / "config.toml").read_text())
    assert {name: written[name] for name in fixed} == fixed
    assert SUMMARY["config"] == written


def test_every_self_check_of_the_run_passed_and_it_is_small():
    assert len(SUMMARY["cells"]) == 12
    assert all(cell["num_seeds"] == 10 and not cell["failed_checks"] for cell in SUMMARY["cells"])
    assert sum(path.stat().st_size for path in RUN.rglob("*")) < 5e6
