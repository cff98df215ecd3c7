"""The critical sharpness along the next update of an optimizer, which stays as it is."""

import copy
import math

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import curvature as cv
from curvature.studies.update import bare_optimizer, update_direction

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(1))
OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, lr=0.01),
    "groups": lambda weights: torch.optim.SGD(
        [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.02}], momentum=0.5
    ),
}


def network(normalized=False):
    torch.manual_seed(0)
    first = nn.Linear(5, 6)
    first = parametrizations.weight_norm(first) if normalized else first
    return nn.Sequential(first, nn.Tanh(), nn.Linear(6, 3)).double()


def problem_of(model):
    return cv.Problem.from_module(model, loss="cross-entropy", data=(X.double(), Y))


def loss_of(model):
    return nn.functional.cross_entropy(model(X.double()), Y)


def trained(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model


def moved(model, optimizer, rate):
    """The loss where a step of the optimizer with another learning rate ends, by its own class on copies."""
    model, optimizer = copy.deepcopy((model, optimizer))
    largest = max(group["lr"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] *= rate / largest
    trained(model, optimizer, steps=1)
    return loss_of(model).item()


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_the_optimizer_just_beyond_the_critical_rate_increases_the_loss_and_one_below_does_not(
    name, normalized
):
    model = network(normalized)
    problem = problem_of(model)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    trained(model, optimizer)
    row = cv.Tracker(problem, every=1, matrices=()).step(model, optimizer=optimizer)
    sharpness, before = row.critical_sharpness, loss_of(model).item()
    assert sharpness.status == "resolved"
    assert moved(model, optimizer, 2 / sharpness.low) > before >= moved(model, optimizer, 2 / sharpness.high)
    assert row.update == type(optimizer).__name__


def test_along_the_update_of_plain_gradient_descent_it_is_that_along_the_gradient():
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1, matrices=())
    along = tracker.step(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.3)).critical_sharpness
    assert math.isclose(along.value, tracker.step(model).critical_sharpness.value, rel_tol=2e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_direction_of_adam_is_its_formula_also_for_a_tiny_learning_rate(precision):
    weight = nn.Parameter(torch.tensor([100.0, -50.0, 3.0], dtype=precision))
    optimizer = torch.optim.Adam([weight], lr=1e-7, betas=(0.9, 0.99), eps=1e-8)
    weight.grad = torch.tensor([1.0, 2.0, -3.0], dtype=precision)
    optimizer.step()
    gradient = torch.tensor([0.5, -1.0, 4.0], dtype=torch.float64)
    before = weight.grad.double()
    direction, rate = update_direction(optimizer, {"w": weight}, {"w": gradient})
    mean, square = 0.9 * 0.1 * before + 0.1 * gradient, 0.99 * 0.01 * before**2 + 0.01 * gradient**2
    expected = (mean / (1 - 0.9**2)) / ((square / (1 - 0.99**2)).sqrt() + 1e-8)
    assert rate == 1e-7
    assert torch.allclose(direction["w"], expected, rtol=1e-5)


def test_model_optimizer_and_scheduler_are_bit_for_bit_what_they_are_without():
    def run(*, tracked):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)  # replaces optimizer.step
        optimizer.register_step_post_hook(lambda *_: calls.append(tracked))
        tracker = cv.Tracker(problem_of(model), every=1, matrices=()) if tracked else None
        for _ in range(5):
            trained(model, optimizer, steps=1)
            scheduler.step()
            if tracker is not None:
                tracker.step(model, optimizer=optimizer)
        return [*model.parameters(), *(p.grad for p in model.parameters())], optimizer.state_dict()

    calls = []
    tensors, state = run(tracked=True)
    others, other_state = run(tracked=False)
    assert calls == 5 * [True] + 5 * [False]
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    assert str(state) == str(other_state)


def test_the_name_says_which_direction_in_rows_tables_loggers_and_the_figure():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    tracker = cv.Tracker(problem_of(model), every=1, matrices=())
    row = tracker.step(model, optimizer=optimizer)
    assert row.scalars().keys() == {"loss", "gradient_norm", "critical_sharpness_of_update"}
    assert "critical_sharpness_of_update" in tracker.track.to_dataframe()
    assert "critical sharpness of update" in tracker.track._repr_html_()
    labels = cv.figures.plot_track(tracker.track).get_legend_handles_labels()[1]
    assert labels == ["critical sharpness along updates of Adam"]
    plt.close("all")


@pytest.mark.parametrize("measured", ["a bias alone", "all"])
def test_weights_that_the_optimizer_does_not_have_stay_where_they_are(measured):
    model = network()
    weights = [model[2].bias] if measured == "a bias alone" else list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.1)
    gradients = {name: torch.ones_like(weight) for name, weight in model.named_parameters()}
    direction, _ = update_direction(optimizer, dict(model.named_parameters()), gradients)
    moving = {name for name, part in direction.items() if part.any()}
    assert moving == ({"2.bias"} if measured == "a bias alone" else set(gradients))


def test_no_number_where_the_learning_rate_is_zero_or_the_update_points_uphill():
    model = network()
    problem, optimizer = problem_of(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.99)
    trained(model, optimizer, steps=1)
    for state in optimizer.state.values():
        state["momentum_buffer"].mul_(-100.0)
    row = cv.Tracker(problem, every=1, matrices=()).step(model, optimizer=optimizer)
    assert row.critical_sharpness.note == "the update of the optimizer does not point downhill"
    optimizer.param_groups[0]["lr"] = 0.0
    row = cv.Tracker(problem, every=1, matrices=()).step(model, optimizer=optimizer)
    assert row.critical_sharpness.note == "the learning rate of the optimizer is zero"


def test_what_is_no_optimizer_of_this_model_is_refused_by_name():
    model = network()
    tracker = cv.Tracker(problem_of(model), every=1, matrices=())
    with pytest.raises(cv.ConfigurationError, match="has none of the weights of the problem"):
        tracker.step(model, optimizer=torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(cv.ConfigurationError, match="LBFGS evaluates the loss during its step"):
        tracker.step(model, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(cv.ConfigurationError, match=r"must be a torch\.optim\.Optimizer, got Linear"):
        bare_optimizer(nn.Linear(1, 1))
