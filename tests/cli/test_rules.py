"""Rules of ``--fail-on``: their words, how an interval decides them, and how the command ends."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import curvature as cv
from curvature import cli
from curvature.cli.configuration import MATRICES
from curvature.cli.rules import NAMES, numbers_of_analyses, numbers_of_study, parse_rules
from curvature.errors import ConfigurationError
from curvature.records import Quantity
from curvature.studies import SpectrumSettings, run_spectrum

NETWORK = ("--arg", "widths=4,", "--num-examples", "30", "-m", "ggn")


def rule(text):
    (found,) = parse_rules([text])
    return found


@pytest.mark.parametrize(
    ("text", "place", "name", "sign", "limit"),
    [
        ("kappa_95 > 1e8", set(), "kappa_95", ">", 1e8),
        ("rank<=3", set(), "rank", "<=", 3.0),
        ("ggn: smallest < -1e-3", {"ggn"}, "smallest", "<", -1e-3),
        ("monte_carlo_fisher/weight-norm:kappa_80>=2", {"mc-fisher", "weight-norm"}, "kappa_80", ">=", 2.0),
        ("stretch 3 / ggn : kappa_50 > 1", {"stretch 3", "ggn"}, "kappa_50", ">", 1.0),
    ],
)
def test_a_rule_is_a_place_a_number_a_sign_and_a_limit(text, place, name, sign, limit):
    found = rule(text)
    assert (found.place, found.name, found.sign, found.limit) == (place, name, sign, limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kapa_95 > 1", "'kapa_95' is unknown"),
        ("kappa_95 = 1", "is not a rule"),
        ("kappa_95 > many", "'many' is not a finite number"),
        ("kappa_95 > inf", "not a finite number"),
        ("", "is not a rule"),
        ("kappa_95 > 1 and rank > 2", "is not a rule"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_is_wrong(text, message):
    with pytest.raises(ConfigurationError) as error:
        rule(text)
    assert message in str(error.value)


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(-10, 10), st.sampled_from([">", ">=", "<", "<="]))
def test_an_interval_decides_only_what_all_of_its_values_decide(value, width, limit, sign):
    holds = rule(f"trace {sign} {limit!r}").holds(Quantity(value, low=value - width, high=value + width))
    compare = {">": value.__gt__, ">=": value.__ge__, "<": value.__lt__, "<=": value.__le__}[sign]
    outside = abs(value - limit) > width * (1 + 1e-9) + 1e-12
    assert holds is compare(limit) if outside else holds in (None, compare(limit))
    assert rule(f"trace {sign} {limit!r}").holds(Quantity(value)) is compare(limit)


def test_bounds_decide_in_one_direction_only():
    above, below = rule("kappa_95 > 100"), rule("kappa_95 < 100")
    assert above.holds(Quantity(200.0, "lower_bound")) is True
    assert below.holds(Quantity(200.0, "lower_bound")) is False
    assert above.holds(Quantity(50.0, "lower_bound")) is None
    assert below.holds(Quantity(50.0, "upper_bound_only")) is True
    assert above.holds(Quantity(1e-20, "below_noise_floor", low=0.0, high=1e-15)) is False
    for status in ("undefined", "indefinite"):
        assert above.holds(Quantity(math.nan, status)) is None
    assert above.holds(Quantity(200.0, "unresolved")) is None
    assert above.holds(Quantity(200.0, "unresolved", low=150.0, high=300.0)) is True


@pytest.fixture(scope="module")
def problem():
    return cv.zoo.digits_problem(30, widths=(4,))


def test_every_number_of_a_study_and_of_an_overview_has_a_name(problem):
    settings = SpectrumSettings(matrices=["hessian", "ggn"], charts=[cv.Standard()], method="auto")
    study = run_spectrum(problem, settings, model="m", data="d", config={})
    settings = SpectrumSettings(matrices=["ggn"], charts=[cv.WeightNorm()], method="lanczos")
    extremes = run_spectrum(problem, settings, model="m", data="d", config={})
    for numbers in (numbers_of_study(study), numbers_of_study(extremes), numbers_of_analyses([cv.analyze(problem)])):
        found = list(numbers)
        assert found
        for place, values in found:
            assert set(values) <= set(NAMES)
            assert place.terms & set(MATRICES)
    (spectrum,) = [m.record for m in study.of(cv.Spectrum, matrix="ggn")]
    numbers = {
        name: number
        for place, values in numbers_of_study(study)
        if "ggn" in place.terms
        for name, number in values.items()
    }
    assert numbers["trace"].low <= spectrum.trace <= numbers["trace"].high
    assert (numbers["rank"].value, numbers["largest"].value) == (spectrum.rank, spectrum.eigenvalues[-1])


@pytest.mark.parametrize(
    ("command", "rules", "code", "message"),
    [
        ("spectrum", ["kappa_95 > 1"], 4, "kappa_95 of ggn, standard is"),
        ("spectrum", ["ggn/standard: rank > 1", "largest > 1e9"], 4, "rank of ggn, standard is"),
        ("spectrum", ["largest > 1e9"], 0, ""),
        ("spectrum", ["fisher: largest > 1e-9"], 2, "fits no place of this run; places are made of all, ggn, standard"),
        ("spectrum", ["abs_kappa_50 > 1"], 0, "is not decided: this run has no such number"),
        ("spectrum", ["abs_kappa_50 > 1", "--strict"], 3, "is not decided"),
        ("analyze", ["kappa_95 > 1"], 2, "'kappa_95' is unknown"),
        ("analyze", ["0: largest > 0"], 4, "largest of ggn, standard, layer 0 is"),
        ("analyze", ["all: largest > 1e9"], 0, ""),
        ("spectrum", ["kappa > 1"], 2, "'kappa' is unknown"),
    ],
)
def test_the_exit_code_says_whether_a_rule_holds(command, rules, code, message):
    options = [word for text in rules for word in ((text,) if text.startswith("--") else ("--fail-on", text))]
    result = CliRunner().invoke(cli.app, [command, *NETWORK, *options])
    assert result.exit_code == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert bool(result.stdout) == ("is unknown" not in message)
