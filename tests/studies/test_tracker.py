"""A tracker leaves training as it is, its numbers are those of the dense matrices, and it keeps its budget."""

import copy
import dataclasses
import math
import random
import re
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import curvature as cv
from curvature.models.following import followed
from curvature.studies import tracking
from curvature.studies.critical import critical_sharpness
from curvature.studies.tracking import TrackSettings, WarmStart, measure_track_point


def data(seed=0, examples=24):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(examples, 5, generator=generator)
    return X, torch.randint(0, 3, (examples,), generator=generator)


def network(form="plain"):
    torch.manual_seed(0)
    first = nn.Linear(5, 6)
    if form == "weight norm":
        first = parametrizations.weight_norm(first)
    if form == "legacy weight norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = nn.utils.weight_norm(first)
    middle = [nn.BatchNorm1d(6)] if form == "batch norm" else []
    return nn.Sequential(first, *middle, nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def problem_of(model, **options):
    model.eval()
    problem = cv.Problem.from_module(model, loss="cross-entropy", data=data(), **options)
    model.train()
    return problem


def trained(model, tracker=None, steps=6):
    """Train with everything that a tracker could disturb: momentum, dropout, every generator."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    X, y = data(1)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    drawn = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        drawn.append((random.random(), np.random.rand(), float(torch.rand(1))))  # noqa: NPY002
        if tracker is not None:
            tracker.step(model)
    return model, optimizer, drawn


FORMS = ["plain", "weight norm", "legacy weight norm", "batch norm"]


@pytest.mark.parametrize("form", FORMS)
def test_training_with_a_tracker_is_bit_for_bit_the_training_without(form):
    plain, plain_optimizer, plain_drawn = trained(network(form))
    model = network(form)
    tracker = cv.Tracker(problem_of(model), every=2)
    model, optimizer, drawn = trained(model, tracker)
    assert len(tracker.track) == 3
    assert drawn == plain_drawn
    assert model.training
    assert torch.is_grad_enabled()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
        assert a.requires_grad == b.requires_grad
    pairs = zip(plain_optimizer.state.values(), optimizer.state.values(), strict=True)
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) for a, b in pairs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [0, 300])
def test_numbers_are_those_of_the_dense_matrices_of_a_problem_that_is_made_from_the_model_now(form, whole):
    model = network(form)
    tracker = cv.Tracker(problem_of(model), every=3, whole_spectrum_up_to=whole, tolerance=1e-7, verify=True)
    trained(model, tracker)
    point, now = tracker.track.points[-1], problem_of(model)
    assert math.isclose(point.loss, now.value(), rel_tol=1e-12)
    chart = now.chart.at(now.layout, now.weights)
    gradient = chart.pull(now.gradient()[:, None])[:, 0]
    assert math.isclose(point.gradient_norm, float(gradient.norm()), rel_tol=1e-10)
    for part, matrix in zip(point.matrices, (cv.hessian, cv.ggn), strict=True):
        operator = cv.pullback(matrix(now), now.chart)
        record = cv.spectrum(operator)
        largest = [quantity.value for quantity in part.largest]
        np.testing.assert_allclose(largest, record.eigenvalues[::-1][:3], rtol=1e-6)
        assert all(quantity.status == "resolved" for quantity in part.largest)
        assert part.trace.low <= record.trace <= part.trace.high
        if whole:
            assert part.kappa_80 == record.condition_numbers().values["kappa_80"]
        else:
            assert part.kappa_80.status == "undefined"


def test_rows_are_in_the_coordinates_of_the_model_or_of_a_chart_that_is_asked_for():
    model = network("weight norm")
    assert cv.Tracker(problem_of(model)).track.label == "hessian and ggn, weight-norm (checkpoint)"
    tracker = cv.Tracker(problem_of(model), every=1, chart=cv.Standard(), matrices=("ggn",))
    trained(model, tracker, steps=1)
    record = cv.spectrum(cv.ggn(problem_of(model)))
    assert math.isclose(tracker.track.points[0].matrices[0].trace.value, record.trace, rel_tol=1e-10)


def test_tied_weights_and_wrappers_are_read_through():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))[:, :3]

    model = Tied()
    problem = problem_of(model)
    with torch.no_grad():
        model.first.weight.add_(0.5)
    wrapped = nn.DataParallel(model)
    assert torch.equal(followed(problem, wrapped).weights, problem_of(model).weights)
    model.second.weight = nn.Parameter(torch.zeros(5, 5))
    with pytest.raises(cv.InputError, match="one weight in the problem, but differ"):
        followed(problem, model)


def test_half_precision_weights_are_copied_into_the_precision_of_the_problem():
    model = network()
    problem = problem_of(model)
    moved = followed(problem, copy.deepcopy(model).half())
    assert moved.weights.dtype == torch.float64
    assert torch.equal(moved.weights, torch.cat([p.detach().half().double().reshape(-1) for p in model.parameters()]))


def test_another_model_is_refused_by_the_names_that_differ():
    problem = problem_of(network())
    with pytest.raises(cv.InputError, match=r"no weight '0.bias'"):
        followed(problem, nn.Sequential(nn.Linear(5, 6, bias=False)))
    with pytest.raises(cv.InputError, match=r"'0.weight' has shape \(6, 4\), and \(6, 5\) in the problem"):
        followed(problem, nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Tanh(), nn.Linear(6, 3)))
    with pytest.raises(cv.InputError, match=r"a parameter '4.weight' which the problem does not have"):
        followed(problem, nn.Sequential(*network(), nn.Linear(3, 3)))


def test_a_frozen_weight_that_has_changed_is_refused():
    model = network()
    model[0].requires_grad_(False)
    problem = problem_of(model)
    followed(problem, model)
    with torch.no_grad():
        model[0].bias.add_(1.0)
    with pytest.raises(cv.InputError, match=r"'0.bias' has changed, but is constant in the problem"):
        followed(problem, model)


def test_a_diverged_row_says_so_and_tracking_goes_on():
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1, matrices=("ggn",))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    row = tracker.step(model)
    assert row.diverged
    assert "NaN" in row.note
    model.load_state_dict(before)
    assert not tracker.step(model).diverged
    assert tracker.track.to_dataframe()["diverged"].tolist() == [True, False]


def test_an_interrupted_measurement_leaves_the_rows_before_it(monkeypatch):
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1)
    tracker.step(model)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("curvature.studies.tracker.measure_track_point", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tracker.step(model)
    assert len(tracker.track) == 1
    assert tracker.step(model).step == 3


def test_a_saved_track_is_continued(tmp_path):
    model = network()
    problem = problem_of(model)
    tracker = cv.Tracker(problem, every=2)
    trained(model, tracker, steps=4)
    track = cv.Track.load(tracker.save(tmp_path / "track.npz"))
    assert repr(track) == repr(tracker.track)
    assert track.to_dataframe().equals(tracker.track.to_dataframe())
    resumed = cv.Tracker(problem, every=2, track=track)
    trained(model, resumed, steps=2)
    assert [point.step for point in resumed.track.points] == [2, 4, 6]
    assert resumed.track.measuring_seconds > track.measuring_seconds
    with pytest.raises(cv.ConfigurationError, match="rows of hessian, ggn, and the tracker of fisher"):
        cv.Tracker(problem, track=track, matrices=("fisher",))


def test_a_start_from_the_last_vectors_needs_fewer_products_and_gives_the_same_eigenvalues():
    problem = cv.zoo.digits_problem(60, widths=(24,))
    settings = TrackSettings(matrices=("ggn",), sharpness=False, tolerance=1e-5)
    _, warm = measure_track_point(problem, settings, step=0)
    moved = problem.at(problem.weights * 1.001)
    (cold,), (started,) = (
        measure_track_point(moved, settings, step=1, warm=start, checks=False)[0].matrices for start in (None, warm)
    )
    assert started.num_products < cold.num_products
    dense = cv.spectrum(cv.ggn(moved)).eigenvalues[::-1][:3]
    np.testing.assert_allclose([quantity.value for quantity in started.largest], dense, rtol=1e-5)
    assert math.isinf(started.largest[0].high)  # no bound from a start that was chosen


def test_a_start_orthogonal_to_the_largest_eigenvector_still_finds_it():
    A = cv.SymmetricOperator.from_dense(torch.diag(torch.arange(1.0, 201.0, dtype=torch.float64)))
    second = torch.eye(200, dtype=torch.float64)[:, 198:199]
    record = cv.extremal_eigenvalues(A, num_largest=1, space=cv.KrylovSpace(start=second))
    assert math.isclose(record.largest[0], 200.0, rel_tol=1e-6)
    assert math.isinf(record.spectral_bounds()[1])
    with pytest.raises(cv.ConfigurationError, match=r"start must have shape \(200, k\)"):
        cv.extremal_eigenvalues(A, num_largest=1, space=cv.KrylovSpace(start=torch.ones(3, 1)))


@pytest.mark.parametrize("guess", [1e-6, 0.3, 1e5])
def test_critical_sharpness_of_a_quadratic_is_its_rayleigh_quotient_along_the_gradient(guess):
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A, w = A @ A.T, torch.randn(6, generator=generator, dtype=torch.float64)
    gradient = A @ w

    def change(rate):
        moved = w - rate * gradient
        return float(moved @ A @ moved - w @ A @ w) / 2

    slope = float(gradient @ gradient)
    result = critical_sharpness(change, float(w @ A @ w) / 2, slope, precision=2e-16, guess=guess)
    expected = float(gradient @ A @ gradient) / slope
    assert result.status == "resolved"
    assert result.low <= expected <= result.high
    assert result.high / result.low < 1.002


def test_critical_sharpness_is_the_first_step_that_increases_the_loss_of_a_network():
    problem = cv.zoo.digits_problem(40, widths=(6,))
    point, _ = measure_track_point(problem, TrackSettings(matrices=()), step=0)
    gradient, loss, sharpness = problem.gradient(), problem.value(), point.critical_sharpness
    steps = {end: problem.value(problem.weights - 2 / getattr(sharpness, end) * gradient) for end in ("low", "high")}
    assert steps["low"] > loss >= steps["high"]
    fine = [
        problem.value(problem.weights - share * 2 / sharpness.high * gradient) for share in np.linspace(0.02, 1, 50)
    ]
    assert all(value <= loss for value in fine)


def test_critical_sharpness_says_where_it_has_no_number():
    assert critical_sharpness(lambda _: 0.0, 1.0, 0.0, precision=2e-16).status == "undefined"
    assert critical_sharpness(lambda _: -1.0, 1.0, 1.0, precision=2e-16).status == "upper_bound_only"
    blurred = critical_sharpness(lambda rate: -1e-17 * rate + 1e-17 * rate**2, 1.0, 1e-17, precision=2e-16)
    assert blurred.status == "unresolved"
    gone = critical_sharpness(lambda rate: math.nan if rate > 0.3 else -rate, 1.0, 1.0, precision=2e-16)
    assert gone.low <= 2 / 0.3 <= gone.high


class Clock:
    """A clock in which a training step takes a second, and each piece of a measurement what it is said to take."""

    def __init__(self, monkeypatch, evaluation=0.0, gradient=0.0, product=lambda _number: 0.0):
        self.now, self.products = 0.0, 0
        monkeypatch.setattr("curvature.studies.budget.time", self)
        monkeypatch.setattr("curvature.studies.tracking.time", self)
        value, slope, operator_of = cv.Problem.value, cv.Problem.gradient, tracking._operator

        def slow_operator(*arguments):
            operator = operator_of(*arguments)
            return dataclasses.replace(operator, matmat=lambda block: self.multiplied(operator, block, product))

        monkeypatch.setattr(tracking, "_operator", slow_operator)
        monkeypatch.setattr(cv.Problem, "value", lambda *given: self.after(evaluation, value, *given))
        monkeypatch.setattr(cv.Problem, "gradient", lambda *given: self.after(gradient, slope, *given))

    def perf_counter(self):
        return self.now

    def after(self, seconds, work, *arguments):
        self.now += seconds
        return work(*arguments)

    def multiplied(self, operator, block, product):
        for _ in range(block.shape[1]):
            self.now += product(self.products)
            self.products += 1
        return operator.matmat(block)


def tracked_against(clock, steps, logger=lambda _: None, **options):
    """The tracker, and after each step the time spent on measuring beyond what training had earned."""
    model = network()
    problem = problem_of(model)
    tracker = cv.Tracker(problem, every=5, budget=0.05, whole_spectrum_up_to=0, loggers=[logger], **options)
    first = tracker.track.measuring_seconds
    excess = []
    for _ in range(steps):
        clock.now += 1.0
        tracker.step(model)
        excess.append(tracker.track.measuring_seconds - max(first, 0.05 * tracker.track.training_seconds))
    return tracker, excess


@pytest.mark.parametrize(
    ("evaluation", "gradient", "product", "steps"),
    [(0.001, 0.002, 0.002, 100), (0.01, 0.05, 0.02, 400), (0.1, 0.3, 0.1, 2000), (0.3, 0.1, 0.1, 2000)],
)
def test_the_budget_is_never_exceeded_and_every_matrix_gets_its_turn(monkeypatch, evaluation, gradient, product, steps):
    clock = Clock(monkeypatch, evaluation, gradient, lambda _number: product)
    tracker, excess = tracked_against(clock, steps)
    assert max(excess) <= 1e-9
    measured = [part.matrix for point in tracker.track.points for part in point.matrices]
    assert measured.count("hessian") >= 2
    assert measured.count("ggn") >= 2
    assert tracker.overhead == tracker.track.overhead <= 0.05
    assert "of 5 % allowed" in repr(tracker)


def test_a_matrix_that_turns_out_ten_times_as_costly_as_its_first_products_is_given_up_in_time(monkeypatch):
    clock = Clock(monkeypatch, 0.001, 0.01, lambda number: 0.01 if number < 4 else 0.1)
    tracker, excess = tracked_against(clock, 1000, matrices=("ggn",))
    assert max(excess) <= 0.1 - 0.01 + 1e-9  # one product, before its time is known
    first, *later = [point for point in tracker.track.points if point.matrices]
    assert first.step > 100
    assert later


def test_slow_loggers_and_rows_whose_cost_grows_do_not_exceed_the_budget_for_long(monkeypatch):
    def slow(_point):
        clock.now += 0.4

    clock = Clock(monkeypatch, 0.001, 0.002, lambda _number: 0.002)
    tracker, excess = tracked_against(clock, 150, logger=slow)
    assert max(excess) <= 0.4
    assert max(excess[50:]) <= 1e-9  # the time of the loggers is known after the first row
    assert len(tracker.track.points) > 5


def test_a_budget_that_never_suffices_leaves_training_without_rows(monkeypatch):
    clock = Clock(monkeypatch, 10.0, 30.0, lambda _number: 30.0)
    tracker, excess = tracked_against(clock, 300)
    assert len(tracker.track) == 0
    assert max(excess) <= 0  # nothing but the three calls before training
    assert tracker.track.measuring_seconds == 50.0


def test_without_a_budget_the_rows_are_where_they_are_due(monkeypatch):
    model = network()
    problem = problem_of(model)
    Clock(monkeypatch, 1e6, 1e6, lambda _number: 1e6)
    tracker = cv.Tracker(problem, every=5)
    for step in range(1, 18):
        tracker(step, model)
    assert [point.step for point in tracker.track.points] == [5, 10, 15]
    assert all(len(point.matrices) == 2 and not point.postponed for point in tracker.track.points)
    assert tracker.measure(model).step == 17


def test_a_postponed_matrix_is_named_in_its_row(monkeypatch):
    clock = Clock(monkeypatch, 0.001, 0.002, lambda _number: 0.007)
    tracker, _ = tracked_against(clock, 14, matrices=("ggn",))
    assert {(point.matrices, point.postponed) for point in tracker.track.points} == {((), ("ggn",))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number"),
        ({"every": 2.5}, "every must be a whole number"),
        ({"budget": 0.0}, "budget must be a positive share"),
        ({"matrices": ("hesian",)}, "matrices must be among"),
        ({"matrices": ("ggn", "ggn")}, "matrices must be distinct"),
        ({"num_eigenvalues": 0}, "num_eigenvalues must be at least 1"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(cv.ConfigurationError, match=message):
        cv.Tracker(problem_of(network()), **options)


def test_steps_must_not_descend():
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1, matrices=("ggn",))
    tracker.step(model, step=7)
    with pytest.raises(cv.ConfigurationError, match="step 3 comes after a row of step 7"):
        tracker.step(model, step=3)


def test_a_track_shows_its_rows_and_what_they_cost():
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1)
    trained(model, tracker, steps=3)
    track = tracker.track
    frame = track.to_dataframe()
    assert frame.index.tolist() == [1, 2, 3]
    assert (frame["hessian/largest_1_status"] == "resolved").all()
    assert {"ggn/trace_low", "ggn/kappa_80", "critical_sharpness", "seconds"} <= set(frame.columns)
    assert "3 rows, steps 1 to 3, overhead" in repr(track)
    html = track._repr_html_()
    assert html.count("<tr>") == 4
    assert math.isclose(track.overhead, track.measuring_seconds / track.training_seconds)
    assert cv.Tracker(problem_of(model)).track.to_dataframe().empty
    scalars = track.points[0].scalars()
    assert "hessian/kappa_80" not in scalars  # indefinite
    assert scalars["loss"] == track.points[0].loss
    bounded = dataclasses.replace(
        track.points[0].matrices[1], kappa_95=cv.Quantity(5.0, "lower_bound"), kappa_50=cv.Quantity(math.inf)
    )
    scalars = dataclasses.replace(track.points[0], matrices=(bounded,)).scalars()
    assert scalars["ggn/kappa_95_at_least"] == 5.0
    assert "ggn/kappa_50" not in scalars


def test_the_seconds_of_a_row_are_those_of_the_clock():
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1, matrices=("ggn",))
    tracker.step(model)
    time.sleep(0.05)
    started = time.perf_counter()
    row = tracker.step(model)
    elapsed = time.perf_counter() - started
    assert 0 < row.seconds <= elapsed
    assert tracker.track.training_seconds >= 0.05
    assert isinstance(tracker._warm, WarmStart)


def test_the_code_of_the_page_runs():
    text = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    exec(code, scope)
    assert [point.step for point in scope["tracker"].track.points] == [10, 20, 30]
    labels = scope["ax"].get_legend_handles_labels()[1]
    assert {"hessian: largest eigenvalue", "critical sharpness", "2 / learning rate (0.1)"} <= set(labels)
    plt.close("all")
