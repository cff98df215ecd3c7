"""Problems from functions of named tensors: every matrix against a formula or plain autograd."""

import numpy as np
import pytest
import torch
from torch import nn

import curvature as cv
from oracles import distance, drawn, normal

POINTS = normal(3, 7, 2)
LABELS = torch.tensor([1.0, 0, 1, 1, 0, 0, 1], dtype=torch.float64)
BETA = normal(4, 2)


def negative_log_likelihood(beta, inputs, targets):
    """Of a logistic regression: the sum over examples."""
    scores = inputs @ beta
    return (nn.functional.softplus(scores) - targets * scores).sum()


def information(beta):
    """``X^T diag(p (1 - p)) X``, the Hessian of the sum on paper."""
    p = torch.sigmoid(POINTS @ beta)
    return POINTS.T @ ((p * (1 - p))[:, None] * POINTS)


def scores(beta):
    """The gradient of each example on paper, one row each."""
    return (torch.sigmoid(POINTS @ beta) - LABELS)[:, None] * POINTS


def factors(seed=0):
    """Two factors of a matrix, of a full and a layered name."""
    return {"U": normal(seed, 4, 2), "right.V": normal(seed + 1, 3, 2)}


def misfit(parameters):
    return (parameters["U"] @ parameters["right.V"].T - drawn(4, 3)).square().sum() / 2


def autograd_hessian(function, tensors):
    """Hessian in the flat vector of the tensors, by PyTorch's own double backward."""
    shapes, sizes = [t.shape for t in tensors.values()], [t.numel() for t in tensors.values()]

    def flat(vector):
        parts = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        return function(dict(zip(tensors, parts, strict=True)))

    return torch.autograd.functional.hessian(flat, torch.cat([t.reshape(-1) for t in tensors.values()]))


def test_a_bare_objective_is_taken_as_it_is():
    tensors = factors()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    problem = cv.Problem.from_function(misfit, tensors)
    assert problem.denominator == 1
    assert problem.value() == pytest.approx(float(misfit(tensors)), rel=1e-14)
    assert list(problem.layout.slices) == ["U", "right.V"]
    assert distance(cv.hessian(problem).dense(), autograd_hessian(misfit, tensors)) < 1e-13
    assert "examples" not in problem._repr_html_()
    assert repr(problem) == "Problem(misfit, 14 weights, misfit, chart Standard(), float64, cpu)"
    assert all(torch.equal(kept[name], tensors[name]) and not tensors[name].requires_grad for name in tensors)


def test_one_tensor_is_named_as_the_function_names_it_and_arrays_are_tensors():
    def rosenbrock(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    problem = cv.Problem.from_function(rosenbrock, np.array([1.0, 1.0]), name="valley")
    assert list(problem.layout.slices) == ["x"]
    assert (problem.model_name, problem.loss.label) == ("valley", "valley")
    assert cv.hessian(problem).dense().tolist() == [[802.0, -400.0], [-400.0, 200.0]]
    moved = problem.at(torch.tensor([0.0, 2.0]))
    assert cv.hessian(moved).dense().tolist() == [[-798.0, 0.0], [0.0, 200.0]]


@pytest.mark.parametrize("kind", ["mean", "sum", "each"])
def test_the_denominator_of_data_is_that_of_the_function(kind):
    def loss(beta, inputs, targets):
        values = nn.functional.softplus(inputs @ beta) - targets * (inputs @ beta)
        return {"mean": values.mean(), "sum": values.sum(), "each": values}[kind]

    problem = cv.Problem.from_function(loss, BETA, (POINTS, LABELS), chunk_size=3)
    size = 1 if kind == "sum" else 7
    assert problem.value() == pytest.approx(float(negative_log_likelihood(BETA, POINTS, LABELS)) / size, rel=1e-14)
    assert distance(cv.hessian(problem).dense(), information(BETA) / size) < 1e-13
    assert cv.spectrum(cv.hessian(problem)).reduction == ("sum" if kind == "sum" else "mean")
    rows = scores(BETA) * (7 / size)
    assert distance(cv.empirical_fisher(problem).dense(), rows.T @ rows / 7) < 1e-13
    assert distance(cv.gradient_covariance(problem).dense(), torch.cov(rows.T, correction=0)) < 1e-13


DICTIONARY = {"inputs": POINTS, "targets": LABELS}
BATCHES = [(POINTS[:4], LABELS[:4]), (POINTS[4:], LABELS[4:])]


@pytest.mark.parametrize("data", [DICTIONARY, BATCHES], ids=["dictionary", "batches"])
def test_data_are_read_as_those_of_a_module(data):
    problem = cv.Problem.from_function(negative_log_likelihood, BETA, data)
    assert problem.num_examples == 7
    assert distance(cv.hessian(problem).dense(), information(BETA)) < 1e-13


@pytest.mark.parametrize("vanishing", ["penalty", "terms"])
def test_a_mean_and_a_sum_are_told_apart_where_they_are_equal(vanishing):
    """At zero weights a ridge penalty is zero, and at a perfect fit every term."""
    if vanishing == "penalty":

        def ridge(beta, inputs, targets):
            return negative_log_likelihood(beta, inputs, targets) + beta.square().sum()

        with pytest.raises(cv.InputError, match=r"next to these parameters.*belongs in penalty="):
            cv.Problem.from_function(ridge, torch.zeros(2), (POINTS, LABELS))
        return

    def squares(beta, inputs, targets):
        return (inputs @ beta - targets).square().sum()

    problem = cv.Problem.from_function(squares, BETA, (POINTS, POINTS @ BETA))
    assert problem.value() < 1e-25
    assert distance(cv.hessian(problem).dense(), 2 * POINTS.T @ POINTS) < 1e-13
    with pytest.raises(cv.InputError, match="is zero for every example"):
        cv.Problem.from_function(lambda beta, x: (0 * x @ beta).sum(), BETA, POINTS)


def test_a_function_that_fails_on_one_example_says_so():
    def paired(beta, inputs):
        return (inputs @ beta).view(-1, 7).square().sum()

    with pytest.raises(cv.InputError, match="takes all 7 examples, but fails on one of them"):
        cv.Problem.from_function(paired, BETA, POINTS)


def test_outputs_and_a_loss_by_name_have_ggn_and_fisher():
    problem = cv.Problem.from_function(
        "binary-cross-entropy-sum", {"beta": BETA}, (POINTS, LABELS), outputs=lambda named, x: x @ named["beta"]
    )
    for matrix in (cv.hessian, cv.ggn, cv.fisher):
        assert distance(matrix(problem).dense(), information(BETA)) < 1e-13


def test_outputs_without_data_have_a_ggn():
    """Gauss-Newton of a nonlinear least-squares problem: ``J^T J``, with the Jacobian on paper."""
    start = torch.tensor([0.3, -0.7], dtype=torch.float64)

    def residuals(point):
        return torch.stack([10 * (point[1] - point[0] ** 2), 1 - point[0]])

    problem = cv.Problem.from_function(lambda r: r.square().sum() / 2, start, outputs=residuals)
    jacobian = torch.tensor([[-6.0, 10.0], [-1.0, 0.0]], dtype=torch.float64)
    assert distance(cv.ggn(problem).dense(), jacobian.T @ jacobian) < 1e-13
    assert problem.model_name == "residuals"
    assert cv.spectrum(cv.ggn(problem)).rank == 2


def test_packed_data_are_one_example():
    """A partial likelihood couples the examples; as one example it is taken as it is."""

    def coupled(beta, inputs, targets):
        return -(torch.log_softmax(inputs @ beta, 0) * targets).sum()

    with pytest.raises(cv.InputError, match=r"'coupled' for all 7 examples is .* data=cv\.Packed"):
        cv.Problem.from_function(coupled, BETA, (POINTS, LABELS))
    problem = cv.Problem.from_function(coupled, BETA, cv.Packed(POINTS, LABELS))
    p = torch.softmax(POINTS @ BETA, 0)
    expected = LABELS.sum() * POINTS.T @ (torch.diag(p) - torch.outer(p, p)) @ POINTS
    assert distance(cv.hessian(problem).dense(), expected) < 1e-13


def derivative(network, x):
    """First and second derivative of a scalar function by autograd, as physics-informed losses compute them."""
    x = x.detach().requires_grad_()
    u = network(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return u, slope, torch.autograd.grad(slope.sum(), x, create_graph=True)[0]


def by_torch_func(network, x):
    u, slope = network(x), torch.func.grad(lambda at: network(at[None])[0])
    second = torch.func.grad(lambda at: slope(at))
    return u, torch.func.vmap(slope)(x), torch.func.vmap(second)(x)


@pytest.mark.parametrize("differentiate", [derivative, by_torch_func])
def test_a_function_may_differentiate(differentiate):
    """``u - u'' = 0`` with a boundary term, for ``u = a sin(b x)`` with the residual on paper."""
    x = torch.linspace(0, 1, 5, dtype=torch.float64)

    def loss(named):
        u, _, second = differentiate(lambda at: named["a"] * torch.sin(named["b"] * at), x)
        return (u - second).square().mean() + (u[-1] - 1) ** 2

    def on_paper(named):
        u = named["a"] * torch.sin(named["b"] * x)
        return ((1 + named["b"] ** 2) * u).square().mean() + (u[-1] - 1) ** 2

    tensors = {"a": torch.tensor(0.8, dtype=torch.float64), "b": torch.tensor(1.3, dtype=torch.float64)}
    problem = cv.Problem.from_function(loss, tensors)
    assert distance(cv.hessian(problem).dense(), autograd_hessian(on_paper, tensors)) < 1e-12
    assert problem.layout.blocks("layer").keys() == {"a", "b"}


def test_parameters_of_a_module_give_the_matrices_of_the_module():
    module, data = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), (POINTS, LABELS[:, None])
    module[2].bias.requires_grad_(False)
    function = cv.Problem.from_function(
        "mse", module.named_parameters(), data, outputs=lambda named, x: torch.func.functional_call(module, named, x)
    )
    expected = cv.Problem.from_module(module, loss="mse", data=data)
    assert function.layout.slices == expected.layout.slices
    assert function.frozen == ("2.bias",)
    for chart in (cv.Standard(), cv.WeightNorm(stretch=2.0)):
        for matrix in (cv.hessian, cv.ggn):
            ours, theirs = (cv.pullback(matrix(problem), chart).dense() for problem in (function, expected))
            assert distance(ours, theirs) < 1e-12


def test_weight_norm_applies_to_every_matrix_and_a_linear_chart_to_all():
    problem = cv.Problem.from_function(misfit, factors())
    pulled = cv.pullback(cv.hessian(problem), cv.WeightNorm(layers="U"))
    assert pulled.dim == 14 + 4
    tensors = problem.unflatten(problem.weights)
    coordinates = {"g": tensors["U"].norm(dim=1), "v": tensors["U"], "V": tensors["right.V"]}

    def in_coordinates(named):
        u = (named["g"] / named["v"].norm(dim=1))[:, None] * named["v"]
        return misfit({"U": u, "right.V": named["V"]})

    expected = torch.linalg.eigvalsh(autograd_hessian(in_coordinates, coordinates))
    assert distance(torch.linalg.eigvalsh(pulled.dense()), expected) < 1e-12
    doubled = cv.pullback(cv.hessian(problem), cv.LinearChart(2 * torch.eye(14, dtype=torch.float64)))
    assert distance(doubled.dense(), 4 * cv.hessian(problem).dense()) < 1e-13


def test_a_subset_and_a_penalty_are_those_of_the_function():
    tensors = factors()
    problem = cv.Problem.from_function(misfit, tensors, weight_decay=0.5, penalty=lambda named: named["U"].pow(4).sum())
    whole = autograd_hessian(
        lambda named: misfit(named) + named["U"].pow(4).sum() + sum(t.square().sum() for t in named.values()) / 4,
        tensors,
    )
    assert distance(cv.hessian(problem).dense(), whole) < 1e-13
    assert distance(cv.hessian(problem.subset("right")).dense(), whole[8:, 8:]) < 1e-13


def test_what_is_not_defined_for_a_bare_objective_says_so():
    problem = cv.Problem.from_function(misfit, factors())
    for matrix in (cv.ggn, cv.fisher):
        with pytest.raises(cv.NotDefinedError, match=r"'misfit' is a function of the parameters.*outputs=outputs"):
            matrix(problem)
    for matrix in (cv.empirical_fisher, cv.gradient_covariance):
        with pytest.raises(cv.NotDefinedError, match="'misfit' is a function without data"):
            matrix(problem)


ONES = torch.ones(2)
OUTSIDE = torch.ones(2, dtype=torch.float64, requires_grad=True)
CALLS = []


def counting(x):
    CALLS.append(1)
    return x.sum() * len(CALLS)


@pytest.mark.parametrize(
    ("function", "parameters", "error", "words"),
    [
        (lambda x: (x * OUTSIDE).sum(), ONES, cv.InputError, r"not among its parameters \(shape \(2,\)\)"),
        (lambda x: (x * (2 * OUTSIDE)).sum(), ONES, cv.InputError, "not among its parameters"),
        (lambda x: (x * torch.randn(2)).sum(), ONES, cv.SelfCheckError, "draws from a global random generator"),
        (counting, ONES, cv.SelfCheckError, "two calls at the same parameters give two results"),
        (lambda x: x.tolist()[0], ONES, cv.InputError, "must return one tensor"),
        (lambda x: x, ONES, cv.InputError, r"must return one number, it returns a tensor of shape \(2,\)"),
        (lambda x: x.detach().sum(), ONES, cv.InputError, r"does not depend on its parameters \(x\)"),
        (lambda x: x @ torch.ones(2), ONES, cv.InputError, "keep their own precision"),
        (lambda x: x.log().sum(), -ONES, cv.NonFiniteError, "NaN or infinite at these parameters"),
        (lambda x: x.zero_().sum(), ONES, cv.InputError, "failed"),
        (lambda x: x["a"], {"a": 1}, cv.InputError, "parameter 'a' is an? int"),
        (lambda x: x["a"].sum(), {"a": ONES, "a.b": ONES.clone()}, cv.InputError, "needs a layer 'a'"),
        (lambda x: x["a"].sum(), {"a": ONES, "b": ONES}, cv.InputError, "are the same tensor"),
        (lambda x: x["a"].sum(), {}, cv.InputError, "parameters is empty"),
        (lambda x: x["a"].sum(), {"a..b": ONES}, cv.InputError, "empty part"),
        (lambda x: x.sum(), torch.ones(2, dtype=torch.int64), cv.InputError, "no derivative"),
        ("mse", ONES, cv.ConfigurationError, "without outputs=, the loss must be a function"),
    ],
)
def test_what_is_not_a_fixed_function_of_the_parameters_is_refused(function, parameters, error, words):
    with pytest.raises(error, match=words):
        cv.Problem.from_function(function, parameters)


def test_outputs_that_depend_on_other_trainable_tensors_are_refused():
    with pytest.raises(cv.InputError, match="not among its parameters"):
        cv.Problem.from_function("mse", ONES, (POINTS, LABELS), outputs=lambda x, inputs: inputs @ (x * OUTSIDE))
    with pytest.raises(cv.ConfigurationError, match="there are no data"):
        cv.Problem.from_function("mse", ONES, outputs=lambda x: x)
    with pytest.raises(cv.ConfigurationError, match="outputs must be a function"):
        cv.Problem.from_function("mse", ONES, (POINTS, LABELS), outputs=POINTS)


def test_names_of_methods_are_names_of_parameters():
    tensors = {"type": ONES.double(), "forward": 2 * ONES.double()}
    problem = cv.Problem.from_function(lambda named: (named["type"] * named["forward"]).sum() ** 2, tensors)
    assert problem.value() == 16
    assert list(problem.layout.slices) == ["type", "forward"]


def test_notes_call_the_function_by_its_name():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)))
    problem = cv.Problem.from_function(
        "mse", module.double().named_parameters(), (POINTS, LABELS[:, None]),
        outputs=lambda named, x: torch.func.functional_call(module, named, x), name="slope",
    )  # fmt: skip
    assert "the function 'slope' has a wrong double backward, that of torch._weight_norm" in problem.notes[0]
    tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
    v, g, bias = (tensors[f"0.{name}"] for name in ("parametrizations.weight.original1",
                                                    "parametrizations.weight.original0", "bias"))  # fmt: skip

    def loss(named):
        weight = named["g"] * named["v"] / named["v"].norm()
        return (POINTS @ weight.T + named["bias"] - LABELS[:, None]).square().mean()

    expected = torch.linalg.eigvalsh(autograd_hessian(loss, {"g": g, "v": v, "bias": bias}))
    assert distance(torch.linalg.eigvalsh(cv.hessian(problem).dense()), expected) < 1e-12
