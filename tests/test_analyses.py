"""Analysis scripts are found, not listed: each runs at its smallest size; their numbers are asserted one by one."""

import importlib
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[1] / "analyses").glob("[!_]*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_its_numbers_and_its_figure(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "out"), "--fast"])
    importlib.import_module(f"analyses.{name}").main()
    written = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert {".json", ".svg"} <= written
    document = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert document["rows"]
    assert document["fast"] is True
    assert capsys.readouterr().out


def test_gauge_sweep_stays_inside_the_bound_and_passes_through_the_standard_value():
    rows = importlib.import_module("analyses.gauge_sweep").measure(fast=True)
    standard = next(row for row in rows if row["stretch"] is None)
    for row in rows:
        stretch = row["stretch"] or 1.0
        ratio = row["kappa_50"] / standard["kappa_50"]
        assert 1 / max(stretch, 1 / stretch) ** 2 < ratio * (1 + 1e-8)
        assert ratio < max(stretch, 1 / stretch) ** 2 * (1 + 1e-8)
        assert row["rank"] == standard["rank"]
    ratios = {row["stretch"]: row["kappa_50"] / standard["kappa_50"] for row in rows}
    assert ratios[1.0] == pytest.approx(1, abs=1e-9)
    assert ratios[16.0] > 2  # the gauge does matter
