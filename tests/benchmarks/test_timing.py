"""The stopwatch of the benchmark: what counts as a result, as a peer and as a repetition. Times are never asserted."""

import json

import pytest
import torch

from benchmarks import timing
from benchmarks.table import markdown
from benchmarks.timing import Case, Contender, race, rows_of

FLOORS = {"matrix_product_float64": 1e9, "matrix_product_float32": 2e9, "lapack_seconds": 1.0, "lapack_order": 100}


def contender(name, result=1.0, **details):
    return Contender(name, lambda: lambda: result, **details)


def fails(message):
    def prepare():
        raise RuntimeError(message)

    return prepare


def case(*contenders, check=lambda result: abs(result - 1.0), **details):
    return Case("toy", "P=1", torch.float64, contenders, check, **details)


def rows(toy, repetitions=3):
    return {row["method"]: row for row in rows_of(toy, race(toy, repetitions), FLOORS)}


def test_row_has_the_promised_keys_and_is_json():
    row = rows(case(contender("ours", is_ours=True), contender("peer"), flops=1e6))["ours"]
    assert set(row) > {"work", "size", "dtype", "method", "is_ours", "seconds", "repetitions", "relative_error"}
    assert "ratio_to_fastest_peer" in row
    assert json.loads(json.dumps(row)) == row
    assert row["repetitions"] == 3
    assert row["ratio_to_floor"] == pytest.approx(row["seconds"] / 1e-3)


def test_a_failing_peer_is_a_row_and_a_failing_package_of_ours_is_an_error():
    broken = Contender("peer", fails("no forward mode\nand a long trace"))
    by_method = rows(case(contender("ours", is_ours=True), broken))
    assert by_method["peer"]["error"] == "RuntimeError: no forward mode"
    assert by_method["peer"]["seconds"] is None
    assert by_method["ours"]["ratio_to_fastest_peer"] is None
    with pytest.raises(RuntimeError, match="ours"):
        rows(case(Contender("mine", fails("ours"), is_ours=True)))


def test_a_wrong_peer_is_shown_and_not_compared_with():
    by_method = rows(case(contender("ours", is_ours=True), contender("wrong", 1.4), contender("right")))
    assert by_method["wrong"]["relative_error"] == pytest.approx(0.4)
    assert by_method["right"]["ratio_to_fastest_peer"] == 1
    only_wrong = rows(case(contender("ours", is_ours=True), contender("wrong", 1.4)))
    assert only_wrong["ours"]["ratio_to_fastest_peer"] is None


def test_a_missing_package_is_left_out():
    assert set(rows(case(contender("ours", is_ours=True), contender("peer", needs="no_such_package")))) == {"ours"}


def test_a_method_too_large_for_the_memory_is_not_started():
    row = rows(case(contender("ours", is_ours=True), contender("peer", num_bytes=1e18)))["peer"]
    assert row["error"].startswith("MemoryError: needs about")


@pytest.mark.parametrize(
    ("seconds", "is_ours", "expected"), [(0.0, False, 7), (12.0, False, 2), (40.0, False, 1), (12.0, True, 5)]
)
def test_slow_methods_run_less_often_and_say_so(seconds, is_ours, expected, monkeypatch):
    monkeypatch.setattr(timing, "clock", lambda run, _calls: (seconds or 1e-3, run()))
    assert rows(case(contender("toy", is_ours=is_ours)), repetitions=7)["toy"]["repetitions"] == expected


def test_methods_are_interleaved(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "clock", lambda run, _calls: (1.0, run()))
    race(case(*(Contender(name, lambda n=name: lambda: order.append(n) or 1.0) for name in "abc")), 2)
    assert "".join(order).endswith("abcabc")


def test_markdown_marks_what_is_wrong_and_what_fails():
    toy = case(
        contender("ours", is_ours=True),
        contender("off", 1.4),
        Contender("broken", fails("a|b")),
        contender("good"),
    )
    document = {
        "processor": "some processor",
        "threads": 2,
        "versions": {"torch": "2"},
        "missing": ["pyhessian"],
        "growth": {},
        "floors": FLOORS,
        "rows": rows_of(toy, race(toy, 1), FLOORS),
    }
    lines = {line.split(" | ")[3]: line for line in markdown(document).splitlines() if line.startswith("| toy")}
    assert "**wrong**" in lines["off"]
    assert "fails" in lines["broken"]
    assert "a/b" in lines["broken"]
    assert "**ours**" in lines
    assert {line.count("|") for line in lines.values()} == {11}
    assert "Not installed: pyhessian" in markdown(document)
