"""A grid: cells have the size they promise, units do not depend on who measures them, planted cells are seen."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import curvature as cv
from curvature.errors import ConfigurationError
from curvature.natural_gradient import Controls
from curvature.records import Measured, StepComparison, Study
from curvature.records.storage import to_plain
from curvature.report import grid_document, grid_tables
from curvature.studies.collector import Collector, Place
from curvature.studies.evidence import THRESHOLD, claims, pooled_verdicts
from curvature.studies.grid import (
    ARCHITECTURES,
    DATA_SETS,
    OPTIMIZERS,
    Cell,
    GridSettings,
    cell_problem,
    grid_study,
    measure_unit,
    measured_units,
    unsuited,
)
from curvature.studies.grid.result import _arm_effect
from curvature.studies.shared import Shared
from curvature.studies.steps import steps_and_league
from curvature.studies.training import Arm, arm_named

CELLS = (Cell("wine", "tanh-mlp", "sgd"), Cell("breast-cancer", "residual-mlp", "adam"))
TINY = GridSettings(
    cells=CELLS,
    seeds=(0, 1),
    arms=("standard", "weight-norm"),
    epochs=3,
    tuning_epochs=1,
    num_examples=50,
    num_weights=120,
    matrices=("ggn",),
    whole_batches=False,
)
FITTING = [
    Cell(data, architecture, "sgd")
    for data in DATA_SETS
    for architecture in ARCHITECTURES
    if not unsuited(Cell(data, architecture, "sgd"))
]


def exactly(study):
    """Every number of a study as text, with all digits."""
    places = [(m.arm, m.seed, m.checkpoint, m.step, to_plain(m.record)) for m in study.measurements]
    others = [to_plain(record) for record in (*study.curves, *study.sweeps, *study.checks)]
    return json.dumps([places, others], default=lambda item: item.tolist() if hasattr(item, "tolist") else vars(item))


@pytest.fixture(scope="module")
def parts():
    return {unit: measure_unit(TINY, unit) for unit in TINY.units}


@pytest.mark.parametrize("cell", FITTING, ids=lambda cell: cell.name)
def test_the_network_of_a_cell_is_the_largest_that_fits(cell):
    problem = cell_problem(cell, 0, num_examples=40, num_weights=600)
    wider = cell_problem(cell, 0, num_examples=40, num_weights=700)
    assert 300 <= problem.dim <= 600
    assert problem.dim <= wider.dim <= 700
    assert problem.num_examples == 40
    assert torch.isfinite(problem.gradient()).all()
    other = cell_problem(cell, 1, num_examples=40, num_weights=600)
    assert other.dim == problem.dim
    assert not torch.equal(other.weights, problem.weights)


def test_an_architecture_that_cannot_take_a_data_set_says_so():
    assert unsuited(Cell("wine", "cnn", "sgd")) == "cnn cannot take wine: an example is a table"
    assert not unsuited(Cell("digits", "cnn", "sgd"))
    with pytest.raises(ConfigurationError, match="more than 5 weights at its smallest: it needs num_weights=20"):
        cell_problem(Cell("wine", "tanh-mlp", "sgd"), 0, num_examples=None, num_weights=5)


def test_a_batch_of_more_examples_than_there_are_names_the_data_set():
    cell = Cell("wine", "tanh-mlp", "sgd", 1_000_000)
    with pytest.raises(ConfigurationError, match="a batch of 1000000 is more than the 50 examples of wine"):
        replace(TINY, cells=(cell,))
    with pytest.raises(ConfigurationError, match=r"more than the 178 examples of wine .* at most 178"):
        replace(TINY, cells=(cell,), num_examples=None)
    assert replace(TINY, cells=(replace(cell, batch_size=178),), num_examples=None).cells[0].batch_size == 178


def test_a_causal_transformer_does_not_look_ahead():
    model = cv.zoo.transformer(5, 3, 2)
    seen = {}
    model.mix.register_forward_hook(lambda _module, inputs, _output: seen.update(attended=inputs[0].detach()))
    inputs = torch.randn(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(inputs)
    before = seen["attended"]
    changed = inputs.clone()
    changed[:, 3:] += 1
    model(changed)
    assert torch.equal(before[:, :3], seen["attended"][:, :3])
    assert not torch.allclose(before[:, 3:], seen["attended"][:, 3:])


def test_names_of_arms_are_read_as_they_are_written():
    for name in GridSettings(CELLS).arms:
        assert arm_named(name).name == name
    assert arm_named("standard, paper start") == Arm("standard", start="paper")


def test_a_grid_without_an_arm_of_the_verdicts_or_with_a_cell_twice_is_refused():
    with pytest.raises(ConfigurationError, match="weight-norm is not trained"):
        GridSettings(CELLS, arms=("standard",))
    with pytest.raises(ConfigurationError, match="distinct cells"):
        GridSettings((CELLS[0], CELLS[0]))


def test_every_optimizer_trains_every_arm_of_a_grid_at_its_own_rate(parts):
    for unit, study in parts.items():
        assert {sweep.arm for sweep in study.sweeps} == set(TINY.arms), unit.name
        assert all(np.isfinite(curve.losses).all() for curve in study.curves)
        rates = set(OPTIMIZERS[unit.cell.optimizer][1])
        assert all(rates & set(sweep.rates.tolist()) for sweep in study.sweeps)


def test_a_unit_repeated_is_equal_bit_for_bit_whatever_the_threads_of_the_process(parts):
    unit = TINY.units[1]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert exactly(measure_unit(TINY, unit)) == exactly(parts[unit])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_processes_of_joblib_give_the_same_bits(parts):
    messages, units = [], TINY.units[:2]
    measured = dict(measured_units(TINY, units, jobs=2, progress=lambda *message: messages.append(message)))
    assert {unit: exactly(study) for unit, study in measured.items()} == {unit: exactly(parts[unit]) for unit in units}
    assert messages[-1] == ("2 of 2 units are done, 2 at a time", 1.0)


@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_dask_gives_the_same_bits_and_is_counted_in_the_progress(parts):
    """In this process: a cluster of processes takes seconds to start, and is in the slow test below."""
    distributed = pytest.importorskip("distributed")
    messages, units = [], TINY.units[:1]
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "processes": False}
    with distributed.LocalCluster(**options) as cluster:
        measured = dict(
            measured_units(
                TINY,
                units,
                backend="dask",
                scheduler=cluster.scheduler_address,
                progress=lambda *message: messages.append(message),
            )
        )
    assert {unit: exactly(study) for unit, study in measured.items()} == {unit: exactly(parts[unit]) for unit in units}
    assert messages == [("1 of 1 units are done, 1 at a time", 1.0)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_workers_of_dask_give_the_same_bits_also_when_one_is_killed_in_mid_sweep(parts):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            pids = list(client.run(os.getpid).values())
        measured = {}
        for unit, study in measured_units(TINY, TINY.units, backend="dask", scheduler=cluster.scheduler_address):
            if not measured:
                os.kill(pids[0], signal.SIGKILL)
            measured[unit] = study
    assert {unit: exactly(study) for unit, study in measured.items()} == {u: exactly(s) for u, s in parts.items()}


def test_a_wrong_backend_and_a_scheduler_that_does_not_answer_are_errors():
    with pytest.raises(ConfigurationError, match="backend must be one of joblib, dask"):
        list(measured_units(TINY, TINY.units, backend="ray"))
    with pytest.raises(ConfigurationError, match="belongs to the backend dask"):
        list(measured_units(TINY, TINY.units, scheduler="tcp://127.0.0.1:1"))


def test_the_study_of_a_cell_joins_its_seeds_and_the_grid_pools_the_cells(parts):
    pytest.importorskip("statsmodels")
    grid = grid_study(TINY, parts)
    assert set(grid.cells) == {cell.name for cell in CELLS}
    for study in grid.cells.values():
        assert {curve.seed for curve in study.curves} == {0, 1}
    by_name = {verdict.name: verdict for verdict in grid.verdicts}
    # Two seeds have no test of their own, and two cells are too few.
    assert by_name["C1, own training"].outcome == "undecided"
    assert not any(verdict.outcome in ("supported", "opposite") for verdict in grid.verdicts if verdict.effect.cells)
    (arm,) = grid.arms
    assert arm.name == "weight-norm against standard"
    assert not arm.cells
    assert set(arm.missing) == set(grid.cells)


def test_of_a_hessian_the_stable_rank_is_split_and_the_second_order_term_has_its_share():
    pytest.importorskip("statsmodels")
    settings = replace(TINY, cells=CELLS[:1], seeds=(0, 1, 2), matrices=("ggn", "hessian"), epochs=2)
    grid = grid_study(settings, {unit: measure_unit(settings, unit) for unit in settings.units})
    (study,) = grid.cells.values()

    def logs(arm, chart, gauge):
        rows = study.of(cv.ConditionNumbers, arm=arm, checkpoint="late", matrix="hessian", chart=chart, gauge=gauge)
        return np.log([m.record["stable_rank"].value for m in sorted(rows, key=lambda m: m.seed)])

    whole = logs("weight-norm", "weight-norm", "checkpoint")
    by_name = {effect.name: effect for effect in grid.hessian_sources}
    second = whole - logs("weight-norm", "weight-norm, linear part", "checkpoint")
    assert np.abs(second).min() > 1e-3
    assert by_name["second-order term"].estimate == pytest.approx(-second.mean(), rel=1e-12)
    assert by_name["whole"].estimate == pytest.approx((logs("standard", "standard", "-") - whole).mean(), rel=1e-12)
    assert "second-order term" not in {effect.name for effect in grid.sources}
    assert {effect.unit for effect in grid.hessian_sources}.isdisjoint({effect.unit for effect in grid.sources})
    tables = {table.title: table for table in grid_tables(grid_document(grid, {"threshold": THRESHOLD}, {}))}
    rows = {row[0]: row[1] for row in tables["Where the difference of the Hessian comes from"].rows}
    assert rows["second-order term"].startswith(f"{math.exp(second.mean()):.2f}"[:3])


def test_an_arm_is_compared_in_its_own_chart_with_the_standard_arm_from_its_start():
    def numbers(arm, seed, chart, value):
        problem = least_squares(seed, 0)
        record = cv.spectrum(cv.ggn(problem)).condition_numbers()
        changed = {name: replace(quantity, value=value) for name, quantity in record.values.items()}
        where = replace(record.where, chart=chart)
        return Measured(arm, seed, "late", 1, replace(record, where=where, values=changed))

    rows = [
        numbers(arm, seed, chart, value)
        for seed in range(4)
        for arm, chart, value in [
            ("standard", "standard", 8.0),
            ("standard", "weight-norm", 100.0),
            ("standard, paper start", "standard", 6.0),
            ("placebo", "standard", 7.0),
            ("placebo", "placebo", 2.0),
            ("scaled-standard, paper start", "standard", 5.0),
            ("scaled-standard, paper start", "scaled-standard", 12.0),
        ]
    ]
    study = Study("compare", {}, "model", "data", 6, 60, tuple(rows))
    assert _arm_effect("placebo", {"cell": study}).estimate == pytest.approx(math.log(8 / 2))
    assert _arm_effect("scaled-standard, paper start", {"cell": study}).estimate == pytest.approx(math.log(6 / 12))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_saturated_network_is_measured_without_steps(wrong):
    """All its labels are right and its gradient vanishes, or all are wrong and its Fisher does."""
    inputs = torch.eye(4, dtype=torch.float64)
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    problem = cv.Problem.from_module(layer, loss="cross-entropy", data=(inputs, torch.arange(4)))
    problem = problem.at(600 * (inputs.roll(1, 0) if wrong else inputs).reshape(-1))
    collector = Collector()
    covariance = cv.gradient_covariance(problem).materialized()
    place, settings = Place("standard", 0, "late", 10), TINY.study(CELLS[0])
    controls = Controls(problem, None, covariance)
    steps_and_league(collector, place, problem, cv.Standard(), controls, settings, Shared())
    assert "the gradient or the Fisher vanishes" in next(iter(collector.warnings))
    assert not any(isinstance(m.record, StepComparison) for m in collector.measurements)


# ------------------------------------------------------------------------------------------------------- planted cells


def least_squares(seed, direction, num_examples=60):
    """One linear neuron whose weights lie along the k-th eigenvector of the input covariance, from the largest."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([3.0, 1.3, 1.0, 0.8, 0.6, 0.5], dtype=torch.float64)
    inputs = torch.randn(num_examples, 6, generator=generator, dtype=torch.float64) * scales
    targets = torch.randn(num_examples, 1, generator=generator, dtype=torch.float64)
    _, vectors = torch.linalg.eigh(inputs.T @ inputs / num_examples)
    layer = torch.nn.Linear(6, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(vectors[:, -1 - direction][None])
    return cv.Problem.from_module(layer, loss="half-squared-error", data=(inputs, targets))


def planted_verdict(direction, stretch, num_seeds=6):
    """C1 on condition numbers of least squares, in weight norm at a stretch against the standard chart."""
    charts = {"ours": cv.WeightNorm(stretch=stretch), "theirs": None, "canonical": cv.WeightNorm()}
    measured = {name: [] for name in charts}
    for seed in range(num_seeds):
        matrix = cv.ggn(least_squares(seed, direction))
        for name, chart in charts.items():
            moved = matrix if chart is None else cv.effective(matrix, chart)
            record = cv.spectrum(moved).condition_numbers()
            measured[name].append(Measured("weight-norm", seed, "late", 1, record))
    return claims.conditioning(
        measured["ours"],
        measured["theirs"],
        quantity="kappa_95",
        control=(measured["canonical"], measured["theirs"]),
        case="own training",
    )


def test_a_grid_in_which_weight_norm_helps_in_half_of_the_cells_is_heterogeneous_with_the_right_sign_in_each():
    pytest.importorskip("statsmodels")
    # Along the top eigenvector K = u u^T + rho M with rho = l1 / l2 > 1 lifts all others up to it, which is the best
    # that weight norm can do; across it, along the smallest one, the same stretch pulls that one away from the rest.
    helps = {f"helps {k}": [planted_verdict(0, 0.45)] for k in range(3)}
    hurts = {f"hurts {k}": [planted_verdict(5, 0.45)] for k in range(3)}
    (verdict,) = pooled_verdicts(helps | hurts)
    effects = dict(zip(verdict.effect.cells, verdict.effect.effects, strict=True))
    assert all(effects[cell] > 0.5 for cell in helps)
    assert all(effects[cell] < -0.5 for cell in hurts)
    assert {verdict.outcomes[cell] for cell in helps} == {"supported"}
    assert {verdict.outcomes[cell] for cell in hurts} == {"opposite"}
    assert verdict.outcome == "undecided"
    assert verdict.effect.i2 > 0.95
    assert verdict.effect.heterogeneity_p < 1e-6
    assert verdict.effect.prediction_low < -1
    assert verdict.effect.prediction_high > 1
