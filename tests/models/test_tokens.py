"""Classes for many positions of one example (tokens, pixels, nodes of a graph), and what the mean is over."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from oracles import distance, drawn, rows_of

SEQUENCES, TOKENS, VOCABULARY = 4, 3, 5
IDS = torch.tensor([[0, 3, 1], [2, 2, 4], [1, 0, 3], [4, 1, 0]])
NEXT = torch.tensor([[3, 1, 2], [2, 4, 0], [0, 3, 1], [1, 0, 4]])
PADDED = torch.tensor([[3, 1, -100], [2, 4, 0], [0, -100, -100], [-100, -100, -100]])


class LanguageModel(nn.Module):
    """An embedding, a causal mean over what came before, and a head; logits ``(N, T, C)`` or ``(N, C, T)``."""

    def __init__(self, vocabulary=VOCABULARY, *, last=True):
        super().__init__()
        self.last = last
        self.embed, self.head = nn.Embedding(vocabulary, 2), nn.Linear(2, vocabulary)
        self.double()
        for number, parameter in enumerate(self.parameters()):
            parameter.data = drawn(*parameter.shape, seed=number)

    def forward(self, ids):
        states = self.embed(ids)
        counts = torch.arange(1, states.shape[1] + 1, dtype=states.dtype)[:, None]
        logits = self.head(torch.tanh(states.cumsum(1) / counts))
        return logits if self.last else logits.movedim(-1, 1)


def mean_hessian(module, targets, inputs=IDS):
    """Hessian of PyTorch's mean over all tokens that are not ignored, by a double loop of backward passes."""
    parameters = list(module.parameters())
    logits = LanguageModel.forward(module, inputs)
    logits = logits if module.last else logits.movedim(1, -1)
    loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return rows_of(rows_of(loss[None], parameters)[0], parameters).detach()


def token_ggn(module, targets):
    """Sum over tokens of J^T (diag(p) - p p^T) J, without a denominator."""
    parameters = list(module.parameters())
    total = 0
    for logits, target in zip(module(IDS).reshape(-1, VOCABULARY), targets.reshape(-1), strict=True):
        if target >= 0:
            jacobian, p = rows_of(logits, parameters).detach(), torch.softmax(logits, 0).detach()
            total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total


@pytest.mark.parametrize("targets", [NEXT, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("last", [True, False], ids=["(N, T, C)", "(N, C, T)"])
@pytest.mark.parametrize("loss", ["cross-entropy", cv.CrossEntropy(class_axis=None)])
def test_tokens_are_recognised_with_the_classes_on_either_axis(loss, last, targets):
    module = LanguageModel(last=last)
    problem = cv.Problem.from_module(module, loss=loss, data=(IDS, targets), chunk_size=3)
    assert distance(cv.hessian(problem).dense(), mean_hessian(module, targets)) < 1e-13
    counted = int((targets >= 0).sum())
    ggn = token_ggn(LanguageModel(), targets) / counted
    assert distance(cv.ggn(problem).dense(), ggn) < 1e-13
    assert distance(cv.fisher(problem).dense(), ggn) < 1e-13


@pytest.mark.parametrize("targets", [NEXT, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_a_mean_over_sequences_is_the_mean_over_tokens_times_tokens_per_sequence(name, targets):
    matrices = {}
    for unit in ("token", "sequence"):
        loss = cv.CrossEntropy(unit=unit)
        problem = cv.Problem.from_module(LanguageModel(), loss=loss, data=(IDS, targets))
        matrices[unit] = getattr(cv, name)(problem).dense()
    counted = targets >= 0
    factor = float(counted.sum()) / float(counted.any(dim=1).sum())
    assert distance(matrices["sequence"], factor * matrices["token"]) < 1e-13
    summed = token_ggn(LanguageModel(), targets) / float(counted.any(dim=1).sum())
    if name != "hessian":
        assert distance(matrices["sequence"], summed) < 1e-13


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_an_example_is_a_sequence_with_either_unit(unit):
    module, counts = LanguageModel(), (PADDED >= 0).sum(1).double()
    sums = functional.cross_entropy(module(IDS).movedim(-1, 1), PADDED, reduction="none").sum(1)
    gradients = rows_of(sums, list(module.parameters())).detach()
    if unit == "token":  # the mean of each sequence, which counts as often as it has tokens
        shares, gradients = counts / counts.sum(), gradients / counts.clamp(min=1)[:, None]
    else:
        shares = (counts > 0).double() / 3
    expected = gradients.T @ (shares[:, None] * gradients)
    problem = cv.Problem.from_module(module, loss=cv.CrossEntropy(unit=unit), data=(IDS, PADDED))
    assert distance(cv.empirical_fisher(problem).dense(), expected) < 1e-13


def test_the_mean_of_the_means_of_sequences_is_a_callable_loss():
    module, targets = LanguageModel(), PADDED[:3]
    means = [functional.cross_entropy(logits, target) for logits, target in zip(module(IDS[:3]), targets, strict=True)]
    parameters = list(module.parameters())
    expected = rows_of(rows_of(torch.stack(means).mean()[None], parameters)[0], parameters).detach()
    problem = cv.Problem.from_module(module, loss=cv.PerExample(functional.cross_entropy), data=(IDS[:3], targets))
    assert distance(cv.hessian(problem).dense(), expected) < 1e-13


@pytest.mark.parametrize(("unit", "words"), [("token", "mean over the 6 of 12"), ("sequence", "over 3 sequences")])
def test_padding_is_reported_with_the_mean_that_is_taken(unit, words):
    problem = cv.Problem.from_module(LanguageModel(), loss=cv.CrossEntropy(unit=unit), data=(IDS, PADDED))
    assert words in " ".join(problem.notes)
    assert not cv.Problem.from_module(LanguageModel(), loss=cv.CrossEntropy(unit=unit), data=(IDS, NEXT)).notes


@pytest.mark.parametrize("last", [True, False])
def test_an_ambiguous_axis_is_refused_and_both_choices_are_right(last):
    module = LanguageModel(TOKENS, last=last)
    ids, targets = IDS % TOKENS, NEXT % TOKENS
    with pytest.raises(cv.InputError, match=r"\(4, 3, 3\) fit .*class_axis=1\) or class_axis=-1"):
        cv.Problem.from_module(module, loss="cross-entropy", data=(ids, targets))
    loss = cv.CrossEntropy(class_axis=-1 if last else 1)
    problem = cv.Problem.from_module(module, loss=loss, data=(ids, targets))
    assert distance(cv.hessian(problem).dense(), mean_hessian(module, targets, ids)) < 1e-13
    if not last:  # the axis that PyTorch's own module has
        problem = cv.Problem.from_module(module, loss=nn.CrossEntropyLoss(), data=(ids, targets))
        assert distance(cv.hessian(problem).dense(), mean_hessian(module, targets, ids)) < 1e-13


def test_probabilities_of_tokens_are_recognised_on_the_last_axis():
    module = LanguageModel()
    soft = torch.softmax(drawn(SEQUENCES, TOKENS, VOCABULARY, seed=9), dim=-1)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(IDS, soft))
    loss = functional.cross_entropy(module(IDS).reshape(-1, VOCABULARY), soft.reshape(-1, VOCABULARY))
    parameters = list(module.parameters())
    expected = rows_of(rows_of(loss[None], parameters)[0], parameters).detach()
    assert distance(cv.hessian(problem).dense(), expected) < 1e-13


class LogProbabilities(LanguageModel):
    """The same model with log-probabilities as outputs."""

    def forward(self, ids):
        return functional.log_softmax(super().forward(ids), dim=-1 if self.last else 1)


@pytest.mark.parametrize("targets", [NEXT, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("last", [True, False], ids=["(N, T, C)", "(N, C, T)"])
def test_log_likelihoods_of_tokens_are_recognised_with_the_classes_on_either_axis(last, targets):
    problem = cv.Problem.from_module(LogProbabilities(last=last), loss="nll", data=(IDS, targets))
    assert distance(cv.hessian(problem).dense(), mean_hessian(LanguageModel(last=last), targets)) < 1e-13
    fisher = token_ggn(LanguageModel(), targets) / int((targets >= 0).sum())
    assert distance(cv.fisher(problem).dense(), fisher) < 1e-13


def test_an_axis_of_log_probabilities_that_fits_twice_is_found_by_their_sums_or_refused():
    ids, targets = IDS % TOKENS, NEXT % TOKENS
    first = LogProbabilities(TOKENS, last=False)
    problem = cv.Problem.from_module(first, loss="nll", data=(ids, targets))
    assert distance(cv.hessian(problem).dense(), mean_hessian(first, targets, ids)) < 1e-13
    last = LogProbabilities(TOKENS)
    with pytest.raises(cv.InputError, match=r"on the last axis, where their probabilities sum to one"):
        cv.Problem.from_module(last, loss="nll", data=(ids, targets))
    problem = cv.Problem.from_module(last, loss=cv.CrossEntropy(class_axis=-1), data=(ids, targets))
    assert distance(cv.hessian(problem).dense(), mean_hessian(last, targets, ids)) < 1e-13


def test_cross_entropy_of_pytorch_has_the_classes_on_the_second_axis_and_the_message_says_what_finds_others():
    with pytest.raises(cv.InputError, match=r"fit if the classes are on the last axis.*by its name, 'cross-entropy'"):
        cv.Problem.from_module(LanguageModel(), loss=nn.CrossEntropyLoss(), data=(IDS, NEXT))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3).double()

    def forward(self, images):
        return self.layer(images.movedim(1, -1))


def test_segmentation_with_channels_last_is_that_with_channels_first():
    images, labels = drawn(2, 2, 4, 5), torch.arange(40).reshape(2, 4, 5) % 3
    last = ChannelsLast()
    first = nn.Conv2d(2, 3, 1).double()
    first.load_state_dict({"weight": last.layer.weight[:, :, None, None], "bias": last.layer.bias})
    spectra = [
        cv.hessian(cv.Problem.from_module(module, loss="cross-entropy", data=(images, labels))).dense()
        for module in (last, first)
    ]
    assert distance(*spectra) < 1e-13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "word"}, "unit must be 'token' or 'sequence', got 'word'"),
        ({"class_axis": 2}, r"class_axis must be 1 .* or -1 .* got 2"),
    ],
)
def test_options_of_cross_entropy_are_checked(options, message):
    with pytest.raises(cv.ConfigurationError, match=message):
        cv.CrossEntropy(**options)
    assert "unit='sequence'" in repr(cv.CrossEntropy(unit="sequence"))


def test_labels_that_repeat_the_input_are_reported():
    problem = cv.Problem.from_module(LanguageModel(), loss="cross-entropy", data=(IDS, IDS))
    assert "shift the targets by one position" in " ".join(problem.notes)
    problem = cv.Problem.from_module(LanguageModel(), loss="cross-entropy", data=(IDS, NEXT))
    assert not problem.notes


class TokenLoss(LanguageModel):
    """Its own loss, as in transformers: a mean over the tokens of the batch that are not ignored."""

    def forward(self, ids, labels):
        return functional.cross_entropy(super().forward(ids).movedim(-1, 1), labels)


def test_a_models_mean_over_tokens_is_refused_where_it_is_no_mean_over_sequences():
    problem = cv.Problem.from_module(TokenLoss(), loss="model", data=(IDS, NEXT))
    assert distance(cv.hessian(problem).dense(), mean_hessian(LanguageModel(), NEXT)) < 1e-13
    with pytest.raises(cv.InputError, match=r"It is not a mean over examples.*tokens that are not ignored"):
        cv.Problem.from_module(TokenLoss(), loss="model", data=(IDS[:3], PADDED[:3]))


def test_it_is_refused_also_at_weights_where_every_token_has_one_loss():
    module = TokenLoss()
    for parameter in module.head.parameters():
        parameter.data.zero_()  # every class is equally likely, so every mean is log C
    with pytest.raises(cv.InputError, match=r"together at weights nearby .* It is not a mean over examples"):
        cv.Problem.from_module(module, loss="model", data=(IDS[:3], PADDED[:3]))
    problem = cv.Problem.from_module(module, loss="model", data=(IDS, NEXT))
    plain = LanguageModel()
    plain.load_state_dict(module.state_dict())
    assert distance(cv.hessian(problem).dense(), mean_hessian(plain, NEXT)) < 1e-13


# ------------------------------------------------------------------------------------------------------- packed graphs

NODES, EDGES = 7, torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0], [1, 2, 0, 4, 5, 3, 3, 2]])
FEATURES, CLASS_OF_NODE = drawn(NODES, 3, seed=4), torch.tensor([0, 1, 1, 0, 1, 0, 1])
GRAPH_OF_NODE, CLASS_OF_GRAPH = torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([1, 0])


class Graph(nn.Module):
    """One step of message passing; scores of nodes, or of graphs where they are told apart."""

    def __init__(self):
        super().__init__()
        self.own, self.others, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()
        for number, parameter in enumerate(self.parameters()):
            parameter.data = drawn(*parameter.shape, seed=20 + number)

    def forward(self, x, edges, graph=None):
        messages = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        states = torch.tanh(self.own(x) + self.others(messages))
        if graph is not None:
            states = states.new_zeros(2, 4).index_add(0, graph, states)
        return self.head(states)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        ((FEATURES, EDGES), CLASS_OF_NODE),
        ({"x": FEATURES, "edges": EDGES}, CLASS_OF_NODE),
        ((FEATURES, EDGES, GRAPH_OF_NODE), CLASS_OF_GRAPH),
    ],
    ids=["nodes", "keywords", "graphs"],
)
def test_a_packed_graph_is_one_example_with_the_hessian_and_ggn_of_its_mean(inputs, targets):
    module = Graph()
    parameters = list(module.parameters())
    outputs = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    loss = functional.cross_entropy(outputs, targets)
    hessian = rows_of(rows_of(loss[None], parameters)[0], parameters).detach()
    ggn = 0
    for scores in outputs:
        jacobian, p = rows_of(scores, parameters).detach(), torch.softmax(scores, 0).detach()
        ggn = ggn + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(outputs)
    gradient = rows_of(loss[None], parameters)[0].detach()
    loss = "cross-entropy" if len(targets) > 2 else cv.CrossEntropy(class_axis=-1)
    problem = cv.Problem.from_module(module, loss=loss, data=cv.Packed(inputs, targets))
    assert problem.num_examples == 1
    assert distance(cv.hessian(problem).dense(), hessian) < 1e-13
    assert distance(cv.ggn(problem).dense(), ggn) < 1e-13
    assert distance(cv.empirical_fisher(problem).dense(), torch.outer(gradient, gradient)) < 1e-13
    assert cv.spectrum(cv.ggn(problem)).dim == problem.dim


def test_tensors_without_a_common_axis_name_the_way_for_packed_graphs():
    with pytest.raises(cv.InputError, match=r"inputs\[1\] has 2\. .*cv\.Packed\(inputs, targets\)"):
        cv.Problem.from_module(Graph(), loss="cross-entropy", data=((FEATURES, EDGES), CLASS_OF_NODE))


def test_the_energy_of_one_packed_graph_takes_a_squared_error():
    class Energy(Graph):
        def forward(self, x, edges):
            return super().forward(x, edges).sum()

    module, energy = Energy(), torch.tensor([2.0], dtype=torch.float64)
    parameters = list(module.parameters())
    loss = (module(FEATURES, EDGES) - energy[0]) ** 2
    hessian = rows_of(rows_of(loss[None], parameters)[0], parameters).detach()
    problem = cv.Problem.from_module(module, loss="mse", data=cv.Packed((FEATURES, EDGES), energy[0]))
    assert distance(cv.hessian(problem).dense(), hessian) < 1e-13


class Pointwise(Graph):
    """Without edges: nodes are independent, as examples are."""

    def forward(self, x):
        return self.head(torch.tanh(self.own(x) + self.others(2 * x)))


def test_nodes_without_edges_have_the_k_fac_steps_of_as_many_examples():
    nodes, packed = (
        cv.Problem.from_module(Pointwise(), loss="cross-entropy", data=data)
        for data in ((FEATURES, CLASS_OF_NODE), cv.Packed(FEATURES, CLASS_OF_NODE))
    )
    steps = [
        cv.chart_step(problem, cv.preconditioner(problem, "kfac", relative_damping=1e-2)) for problem in (nodes, packed)
    ]
    assert distance(*steps) < 1e-12
    assert cv.spectrum(cv.ggn(packed)).rank == cv.spectrum(cv.ggn(nodes)).rank


@pytest.mark.parametrize("build", [Graph, Pointwise])
def test_the_covariance_of_one_example_is_exactly_zero(build):
    inputs = FEATURES if build is Pointwise else (FEATURES, EDGES)
    problem = cv.Problem.from_module(build(), loss="cross-entropy", data=cv.Packed(inputs, CLASS_OF_NODE))
    covariance = cv.gradient_covariance(problem)
    assert not covariance.dense().any()
    assert not (covariance @ drawn(problem.dim, 2)).any()
    assert cv.spectrum(covariance).rank == 0
    assert cv.alignments(problem) == ()
    assert cv.measure(problem).measurements
