"""The codec of records: every record comes back from plain values, JSON, npz and NetCDF as it went in."""

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvature import records
from curvature.records import (
    Alignment,
    Analysis,
    Check,
    CheckpointSummary,
    ConditionNumbers,
    Decomposition,
    Eigenvectors,
    Estimate,
    ExtremalEigenvalues,
    GaugeState,
    Inertia,
    Landscape,
    LayerSummary,
    LeagueEntry,
    LearningRateSweep,
    Measured,
    PooledEffect,
    PooledVerdict,
    Quantity,
    SpectralDensity,
    Spectrum,
    StepComparison,
    StepsToLoss,
    Study,
    Track,
    TrackedMatrix,
    TrackPoint,
    TrainingCurve,
    Verdict,
    Where,
    Whitening,
)
from curvature.records.storage import from_plain, storable, to_json, to_plain
from curvature.report.result import read_result, write_result

# Text that JSON would read as something else, and text that no table should mangle.
TRAPS = ("null", "true", "[1, 2]", '{"a": 1}', "1e5", "NaN", "Åß 日本", "", '"quoted"')
WHERE = Where("ggn", "weight-norm", "paper", "0.weight", True, 7, 2, "float32", "sum", "weight_decay=0.1")
CHECKS = (Check("symmetry", 1e-16, 1e-12, "three pairs", "C1", 3e-16), Check("null", math.nan, math.inf))
KAPPA = Quantity(3.5, "lower_bound", "at least", 3.0, math.inf, "dense, Weyl")

# One of each with no field at its default, so that a field which is lost is noticed.
LAYER = LayerSummary(
    "0", 12, KAPPA, KAPPA, Quantity(-1.0), Quantity(math.nan, "indefinite"), KAPPA, 0.25, (0.5, 1.0, 2.0), "dense",
    ("a word", "another"),
)  # fmt: skip
TRACKED = TrackedMatrix("ggn", (KAPPA, Quantity(2.0)), KAPPA, KAPPA, Quantity(-1.0), KAPPA, "lanczos", 30, 0.5)
POINT = TrackPoint(50, 0.5, 0.25, KAPPA, (TRACKED,), ("hessian",), True, "checkpoint-50", "a word", 0.75, "Adam")
POOLED = PooledEffect(
    "C1", "log ratio", ("a", "b"), (0.5, math.nan), (0.1, 0.2), (0.3, -math.inf), (0.7, math.inf), (0.8, 0.2),
    {"c": "no number"}, 0.5, 0.1, 0.3, 0.7, -0.1, 1.1, 0.3, 0.75, 0.01,
)  # fmt: skip
EXAMPLES = {
    "TrackedMatrix": TRACKED,
    "TrackPoint": POINT,
    "Track": Track((WHERE,), (POINT,), 50, 0.05, 60, 12.5, 0.5),
    "CheckpointSummary": CheckpointSummary("a/step=3.ckpt", 3, "0" * 64, ("standard",), (POINT,)),
    "Where": WHERE,
    "Quantity": KAPPA,
    "Check": CHECKS[0],
    "Spectrum": Spectrum(
        WHERE,
        np.array([0.0, 1e-20, 2.0]),
        True,
        "factor",
        1e-15,
        1,
        "a gap",
        gradient_weights=np.array([0.1, 0.2, 0.3]),
        seconds=0.25,
        checks=CHECKS,
        floor_rule="20 units",
        rank_bounds=(1, 2),
    ),
    "Inertia": Inertia(WHERE, 9, 0.5, 4, 5, 1e-15),
    "ExtremalEigenvalues": ExtremalEigenvalues(
        WHERE,
        100,
        np.array([3.0, 2.0]),
        np.array([-1.0]),
        np.array([1e-9, 2e-9, 3e-9]),
        np.array([4e-9, 5e-9, 6e-9]),
        True,
        44,
        seconds=1.5,
        positive_semidefinite=True,
        complete="certified by inertia",
        num_missed=3,
        unseen=(-0.5, 1.5),
        num_steps=40,
        ritz_range=(-1.0, math.inf),
        noise_floor=1e-14,
        checks=CHECKS,
    ),
    "SpectralDensity": SpectralDensity(
        WHERE, 100, np.arange(6.0).reshape(2, 3), np.full((2, 3), 1 / 3), num_products=6, seconds=2.5, checks=CHECKS
    ),
    "Estimate": Estimate(
        "trace",
        1.0,
        0.5,
        1.5,
        0.95,
        "xtrace",
        WHERE,
        100,
        standard_error=0.1,
        quadrature_error=0.2,
        num_products=30,
        num_probes=15,
        converged=False,
        note="rough",
        seconds=0.5,
    ),
    "ConditionNumbers": ConditionNumbers(
        WHERE,
        9,
        5,
        "formula",
        1e-15,
        "dense",
        {"kappa_50": KAPPA, "gd_time": Quantity(math.nan, "undefined")},
        {1e-3: (KAPPA, Quantity(4.0)), 1.0: (Quantity(1.0, low=1.0, high=1.0), KAPPA)},
        rank_bounds=(4, 6),
    ),
    "LayerSummary": LAYER,
    "Analysis": Analysis(WHERE, (LAYER, LAYER), LAYER, 2.5, 0.5),
    "Landscape": Landscape(
        WHERE,
        ("largest", "random"),
        np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0]]),
        np.arange(9.0).reshape(3, 3) + np.diag([0.0, math.nan, 0.0]),
        np.arange(9.0).reshape(3, 3),
        np.array([0.5, -0.5]),
        np.array([[2.0, 0.25], [0.25, 1.0]]),
        cosine=0.1,
        seconds=0.5,
    ),
    "StepComparison": StepComparison("weight-norm", "paper", 1e-3, 2e-3, 0.75, "0", 0.5, 10.0, 0.1, 0.2, 50),
    "LeagueEntry": LeagueEntry("K-FAC", 1e-3, 2e-3, 0.75, 2.5, 0.5, math.inf, 50, "a reason"),
    "Alignment": Alignment("0.weight[3]", "mean input", 0.9, 1.1, 0.2, 64, 50),
    "Whitening": Whitening("0.weight[3]", "e1", 0.4, 0.5, 3.0, 63, 50),
    "GaugeState": GaugeState("weight-norm", "paper", 0.5, 1.0, 2.0, 10),
    "StepsToLoss": StepsToLoss("standard", 3, 0.1, 400, True, diverged=True),
    "TrainingCurve": TrainingCurve(
        "standard", 3, np.array([0, 10]), np.array([2.5, math.inf]), np.array([0.1, math.nan]), learning_rate=0.1
    ),
    "LearningRateSweep": LearningRateSweep(
        "standard", 3, np.array([0.1, 1.0]), np.array([0.5, math.inf]), 0.1, True, 100
    ),
    "PooledEffect": POOLED,
    "PooledVerdict": PooledVerdict(
        "C1",
        "own training",
        "It is so.",
        "supported",
        "a rule",
        0.2,
        POOLED,
        {"a": "supported"},
        0.3,
        0.7,
        0.99,
        0.01,
        0.03,
    ),
    "Verdict": Verdict(
        "C1",
        "It is so.",
        "supported",
        "own training",
        "a rule",
        "log ratio",
        "student",
        0.5,
        -0.1,
        math.inf,
        0.975,
        0.01,
        0.03,
        0.2,
        8,
        1,
        6,
        effects=(0.4, math.nan, 0.6),
        ceilings=(0.5, math.inf),
        control="placebo",
        control_estimate=0.01,
        control_low=-0.2,
        control_high=0.3,
        control_passed=True,
        note="read this",
    ),
    "Decomposition": Decomposition(
        "kappa_80",
        "ggn",
        ("start", "weights"),
        np.arange(6.0).reshape(3, 2),
        np.array([1.0, 5.0, 9.0]),
        (0, 1, 2),
        {"start": "the same for both"},
        num_orders=2,
        num_missing=1,
        arms=("standard", "placebo"),
    ),
}
# Records that hold other records in mappings are stored by the result file alone, and vectors by `Spectrum.save`.
NESTED = {"ConditionNumbers"}
EVERY = pytest.mark.parametrize("name", EXAMPLES)
IN_JSON = pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - NESTED))


def same(first, second):
    """Equal in value and in type, NaN equal to NaN, arrays in their precision."""
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if is_dataclass(first):
        return all(same(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def stored(plain):
    """As a file of numbers and text holds them: arrays apart, everything else storable."""
    return {name: value if isinstance(value, np.ndarray) else storable(value) for name, value in plain.items()}


def test_the_comparison_of_this_file_sees_a_difference():
    assert same(EXAMPLES["Spectrum"], replace(EXAMPLES["Spectrum"]))
    assert not same(EXAMPLES["Spectrum"], replace(EXAMPLES["Spectrum"], seconds=0.26))
    other = replace(EXAMPLES["Spectrum"])
    object.__setattr__(other, "rank", float(other.rank))  # a constructor call would not pass the checked annotations
    assert not same(EXAMPLES["Spectrum"], other)
    assert not same(np.ones(2), np.ones(2, dtype=np.float32))
    assert not same((1, 2), [1, 2])
    assert same(math.nan, math.nan)


def test_every_record_has_an_example_that_sets_every_field():
    kinds = {name for name in records.__all__ if is_dataclass(getattr(records, name))}
    assert kinds - EXAMPLES.keys() == {"Eigenvectors", "Measured", "Study"}
    for name, record in EXAMPLES.items():
        assert type(record).__name__ == name
        for item in fields(record):
            if item.name != "vectors":
                default = item.default
                assert default is inspect.Parameter.empty or not same(getattr(record, item.name), default), item.name


# ------------------------------------------------------------------------------------------------ plain values and JSON


@EVERY
def test_plain_values_give_the_record_back(name):
    record = EXAMPLES[name]
    plain = to_plain(record)
    assert not any(isinstance(value, Where | Eigenvectors) for value in plain.values())
    assert same(from_plain(type(record), plain), record)


@IN_JSON
def test_what_is_stored_as_numbers_and_text_gives_the_record_back(name):
    record = EXAMPLES[name]
    plain = stored(to_plain(record))
    assert all(type(value) in (str, int, float, np.ndarray) for value in plain.values())
    assert same(from_plain(type(record), plain), record)


@IN_JSON
def test_json_gives_the_record_back(name):
    record = EXAMPLES[name]
    plain = to_plain(record)
    arrays = {key: value for key, value in plain.items() if isinstance(value, np.ndarray)}
    text = to_json({key: value for key, value in plain.items() if key not in arrays})
    assert same(from_plain(type(record), json.loads(text) | arrays), record)


@IN_JSON
def test_defaults_and_none_come_back_too(name):
    record = EXAMPLES[name]
    missing = {
        item.name: None if item.default is None else item.default
        for item in fields(record)
        if isinstance(item.default, str | int | float | tuple | None)
    }
    record = replace(record, **missing)
    assert same(from_plain(type(record), stored(to_plain(record))), record)


@pytest.mark.parametrize("text", TRAPS)
def test_text_stays_text_whatever_it_looks_like(text):
    check = Check(text, 0.5, 1.0, text, text)
    for record in (
        replace(EXAMPLES["Spectrum"], where=Where(text, text, text, text, dtype=text), rank_rule=text, checks=(check,)),
        replace(EXAMPLES["Decomposition"], sources=(text, "b"), held={text: text}, quantity=text),
        check,
        Quantity(1.0, text, text, method=text),
    ):
        assert same(from_plain(type(record), stored(to_plain(record))), record)


numbers = st.floats() | st.integers(-(2**53), 2**53).map(float)


@given(
    value=numbers,
    low=st.none() | st.floats(allow_nan=False),
    high=st.none() | st.floats(allow_nan=False),
    words=st.text(max_size=20),
    counts=st.none() | st.integers(0, 2**62),
    flag=st.booleans(),
)
def test_any_numbers_and_any_text_come_back(value, low, high, words, counts, flag):
    quantity = Quantity(value, words, words, low, high, words)
    assert same(from_plain(Quantity, stored(to_plain(quantity))), quantity)
    where = Where(words, words, words, words, flag, counts, counts, words)
    density = replace(EXAMPLES["SpectralDensity"], where=where, checks=(Check(words, value, value, words, words, low),))
    assert same(from_plain(SpectralDensity, stored(to_plain(density))), density)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.str_, np.bool_])
def test_numpy_scalars_of_a_file_become_those_of_python(kind):
    """As h5py and NumPy hand them out."""
    values = {"name": np.str_("a"), "value": kind(1) if kind is not np.str_ else 1.0, "tolerance": np.float64(2.0)}
    if kind is np.bool_:
        verdict = from_plain(Verdict, stored(to_plain(EXAMPLES["Verdict"])) | {"control_passed": np.bool_(False)})
        assert verdict.control_passed is False
        return
    assert same(from_plain(Check, values), Check("a", 1.0, 2.0))


def test_an_estimate_for_every_coordinate_keeps_its_arrays():
    entries = {name: np.arange(3.0) for name in ("value", "low", "high", "standard_error")}
    record = replace(EXAMPLES["Estimate"], what="diagonal", **entries)
    assert same(from_plain(Estimate, stored(to_plain(record))), record)


def test_whole_numbers_of_a_file_take_the_declared_type():
    """Columns of NetCDF are of one type, and JSON writes 1.0 and 1 as it likes."""
    plain = to_plain(EXAMPLES["Spectrum"]) | {"rank": 1.0, "noise_floor": 1, "rank_bounds": [1.0, 2]}
    assert same(from_plain(Spectrum, plain), replace(EXAMPLES["Spectrum"], noise_floor=1.0))
    verdict = from_plain(Verdict, to_plain(EXAMPLES["Verdict"]) | {"effects": [1, 2]})
    assert same(verdict, replace(EXAMPLES["Verdict"], effects=(1.0, 2.0)))


def test_vectors_are_left_out_and_nothing_else():
    vectors = Eigenvectors(np.ones(3), np.eye(3), np.zeros(3))
    for name in ("Spectrum", "ExtremalEigenvalues"):
        record = replace(EXAMPLES[name], vectors=vectors)
        assert "vectors" not in to_plain(record)
        assert same(from_plain(type(record), to_plain(record)), EXAMPLES[name])


# --------------------------------------------------------------------------------------------------------------- errors


@EVERY
def test_an_unknown_field_is_an_error_with_its_name(name):
    record = EXAMPLES[name]
    with pytest.raises(ValueError, match=f"{name} has no field surprise"):
        from_plain(type(record), to_plain(record) | {"surprise": 1})


@EVERY
def test_a_missing_field_is_an_error(name):
    kind = type(EXAMPLES[name])
    needed = next(item.name for item in fields(kind) if item.name != "where")
    plain = to_plain(EXAMPLES[name])
    del plain[needed]
    with pytest.raises((TypeError, KeyError)):
        from_plain(kind, plain)
    if "where" in {item.name for item in fields(kind)}:
        without = to_plain(EXAMPLES[name])
        del without["matrix"]
        with pytest.raises((TypeError, KeyError)):
            from_plain(kind, without)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Spectrum", "rank", "many"),
        ("Spectrum", "rank", [1]),
        ("Spectrum", "rank", 1.5),
        ("Spectrum", "rank", True),
        ("Spectrum", "rank", None),
        ("Spectrum", "noise_floor", "small"),
        ("Spectrum", "noise_floor", [1e-15]),
        ("Spectrum", "noise_floor", None),
        ("Spectrum", "positive_semidefinite", "yes"),
        ("Spectrum", "positive_semidefinite", 2),
        ("Spectrum", "rank_bounds", 3),
        ("Spectrum", "rank_bounds", "[1, 2"),
        ("Spectrum", "checks", 1.0),
        ("Spectrum", "checks", [{"name": "a", "value": 1.0}]),
        ("Spectrum", "checks", [{"name": "a", "value": 1.0, "tolerance": 1.0, "surprise": 1}]),
        ("Spectrum", "eigenvalues", 3.0),
        ("Spectrum", "num_examples", "seven"),
        ("Spectrum", "effective", "maybe"),
        ("ExtremalEigenvalues", "unseen", "nothing"),
        ("ExtremalEigenvalues", "unseen", [0.0, "high"]),
        ("ExtremalEigenvalues", "num_products", math.inf),
        ("ExtremalEigenvalues", "converged", [True]),
        ("SpectralDensity", "nodes", "[1, 2]"),
        ("Verdict", "effects", 0.5),
        ("Verdict", "num_pairs", "several"),
        ("Decomposition", "held", 1),
        ("Quantity", "value", "large"),
        ("Quantity", "low", "small"),
        ("StepsToLoss", "reached", "no"),
    ],
)
def test_a_value_of_a_wrong_type_is_an_error(name, field, value):
    record = EXAMPLES[name]
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_plain(type(record), to_plain(record) | {field: value})


# ------------------------------------------------------------------------------------------------------ npz and NetCDF


@pytest.mark.parametrize(
    "change",
    [{}, {"gradient_weights": None, "rank_bounds": None, "checks": ()}, {"where": Where("null", num_samples=None)}],
    ids=["full", "nothing optional", "another header"],
)
def test_npz_gives_the_spectrum_back(change, tmp_path):
    record = replace(EXAMPLES["Spectrum"], **change)
    assert same(Spectrum.load(record.save(tmp_path / "one.npz")), record)
    single = replace(record, eigenvalues=record.eigenvalues.astype(np.float32))
    assert same(Spectrum.load(single.save(tmp_path / "two.npz")), single)


def test_a_labelled_array_in_netcdf_gives_the_spectrum_back(tmp_path):
    import xarray as xr

    record = replace(EXAMPLES["Spectrum"], gradient_weights=None)
    record.to_xarray().to_netcdf(tmp_path / "one.nc", engine="h5netcdf")
    with xr.load_dataarray(tmp_path / "one.nc", engine="h5netcdf") as array:
        attributes = {name: value for name, value in array.attrs.items() if name != "gradient_weights"}
        assert same(from_plain(Spectrum, attributes | {"eigenvalues": array.to_numpy()}), record)


IN_STUDIES = (
    "StepComparison",
    "LeagueEntry",
    "Alignment",
    "Whitening",
    "GaugeState",
    "Spectrum",
    "ExtremalEigenvalues",
)
IN_STUDIES += ("SpectralDensity", "ConditionNumbers", "Inertia", "Estimate")


def study_of(measurements):
    curve, sweep, verdict = (EXAMPLES[name] for name in ("TrainingCurve", "LearningRateSweep", "Verdict"))
    return Study(
        "study",
        {"seeds": 2},
        "a model",
        "some data",
        30,
        7,
        tuple(measurements),
        (curve, replace(curve, arm="placebo", steps=np.array([0, 5, 9]), losses=np.ones(3), accuracies=np.ones(3))),
        CHECKS,
        ("read this first",),
        {"version": "1"},
        (sweep,),
        (verdict, Verdict("C2", "It is not.", "not tested", note="needs more")),
        (EXAMPLES["Decomposition"], replace(EXAMPLES["Decomposition"], held={}, quantity="gd_time")),
    )


@pytest.mark.parametrize("name", IN_STUDIES)
def test_the_result_file_gives_each_record_of_a_study_back(name, tmp_path):
    record = EXAMPLES[name]
    places = [Measured("standard", 3, "late", 400, record), Measured("placebo", 4, "given", 0, record)]
    study = study_of(places)
    write_result(study, tmp_path / "result.nc")
    assert same(read_result(tmp_path / "result.nc", study.config, study.provenance), study)


def test_the_result_file_keeps_many_records_of_different_sizes_in_their_order(tmp_path):
    spectrum = EXAMPLES["Spectrum"]
    longer = replace(spectrum, eigenvalues=np.arange(5.0), gradient_weights=None, where=Where("hessian"))
    kinds = [spectrum, EXAMPLES["Alignment"], longer, EXAMPLES["ConditionNumbers"], spectrum, EXAMPLES["GaugeState"]]
    other = replace(EXAMPLES["ConditionNumbers"], values={"kappa_95": KAPPA}, damped={}, rank_bounds=None)
    study = study_of(Measured("standard", k, "late", k, record) for k, record in enumerate([*kinds, other]))
    write_result(study, tmp_path / "result.nc")
    assert same(read_result(tmp_path / "result.nc", study.config, study.provenance), study)
