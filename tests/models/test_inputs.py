"""What users feed their models and what these return: every structure gives the matrices of a plain double loop."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import curvature as cv
from oracles import distance, drawn, rows_of

NUM, CLASSES = 6, 3
X, KIND = drawn(NUM, 4, seed=1), torch.tensor([0, 1, 2, 1, 0, 2])
Y = torch.tensor([0, 2, 1, 1, 0, 2])
EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
BUILDERS = {name: getattr(cv, name) for name in EXACT}


class TwoInputs(nn.Module):
    """A linear layer and an embedding that meet in the middle."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.embed, self.last = nn.Linear(4, 3), nn.Embedding(3, 3), nn.Linear(3, CLASSES)
        self.double()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x, kind):
        return self.last(torch.tanh(self.first(x) + self.embed(kind)))


class OneArgument(TwoInputs):
    def forward(self, batch):
        x, kind = (batch["x"], batch["kind"]) if isinstance(batch, dict) else batch
        return super().forward(x, kind)


class Nested(TwoInputs):
    def forward(self, numbers, other):
        return super().forward(numbers[0], other["kind"])


class Anything(TwoInputs):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


Pair = namedtuple("Pair", "x kind")


def references(module, outputs, term, shares):
    """All matrices by loops: ``outputs`` of every example, its loss ``term(f, n)`` and its share of the mean."""
    parameters = list(module.parameters())
    losses = torch.stack([term(f, n) for n, f in enumerate(outputs)])
    gradients = rows_of(losses, parameters)
    weights = torch.tensor(shares, dtype=torch.float64)
    total = (weights * losses).sum()
    hessian = rows_of(rows_of(total[None], parameters)[0], parameters).detach()
    ggn = 0
    for n, output in enumerate(outputs):
        jacobian = rows_of(output, parameters).detach()
        second = torch.autograd.functional.hessian(lambda f, n=n: term(f, n), output.detach())
        size = output.numel()
        ggn = ggn + shares[n] * jacobian.T @ second.reshape(size, size) @ jacobian
    gradients = gradients.detach()
    weights = weights[:, None]
    moment = gradients.T @ (weights * gradients)
    mean = (weights * gradients).sum(0)
    return {
        "hessian": hessian,
        "ggn": ggn,
        "fisher": ggn,
        "empirical_fisher": moment,
        "gradient_covariance": moment - torch.outer(mean, mean),
    }


def two_inputs_references():
    module = TwoInputs()
    return references(module, module(X, KIND), lambda f, n: functional.cross_entropy(f, Y[n]), [1 / NUM] * NUM)


REFERENCES = two_inputs_references()

STRUCTURES = {
    "a tuple": (TwoInputs, (X, KIND)),
    "a list": (TwoInputs, [X, KIND]),
    "a named tuple": (TwoInputs, Pair(X, KIND)),
    "a dictionary as keywords": (TwoInputs, {"kind": KIND, "x": X}),
    "an ordered dictionary": (TwoInputs, OrderedDict(x=X, kind=KIND)),
    "a dictionary as the only argument": (OneArgument, {"x": X, "kind": KIND}),
    "a tuple as the only argument": (OneArgument, (X, KIND)),
    "a tuple in a tuple": (OneArgument, ((X, KIND),)),
    "nested tuples and dictionaries": (Nested, ((X,), {"kind": KIND})),
    "a forward that takes anything": (Anything, {"x": X, "kind": KIND}),
    "arrays of NumPy": (TwoInputs, (X.numpy(), KIND.numpy())),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_inputs_in_any_structure_give_the_matrices_of_a_plain_double_loop(structure, name):
    build, inputs = STRUCTURES[structure]
    problem = cv.Problem.from_module(build(), loss="cross-entropy", data=(inputs, Y), chunk_size=4)
    assert distance(BUILDERS[name](problem).dense(), REFERENCES[name]) < 1e-12


class Items(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return self.item(index)


ITEMS = {
    "a pair of a tuple and a class": (TwoInputs, lambda n: ((X[n], KIND[n]), Y[n])),
    "numbers of Python and NumPy": (TwoInputs, lambda n: ((X[n].numpy(), int(KIND[n])), int(Y[n]))),
    "lists of numbers": (TwoInputs, lambda n: {"x": X[n].tolist(), "kind": int(KIND[n]), "label": int(Y[n])}),
    "two inputs and a target": (TwoInputs, lambda n: (X[n], KIND[n], Y[n])),
    "a dictionary with labels": (TwoInputs, lambda n: {"labels": Y[n], "x": X[n], "kind": KIND[n]}),
    "a dictionary with y": (OneArgument, lambda n: {"x": X[n], "kind": KIND[n], "y": Y[n]}),
    "a dictionary and a class": (OneArgument, lambda n: ({"x": X[n], "kind": KIND[n]}, Y[n])),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("item", ITEMS)
def test_datasets_and_loaders_of_structures_are_read_as_their_tensors(item, batched):
    build, make = ITEMS[item]
    if batched and item == "lists of numbers":
        make = lambda n: {"x": X[n], "kind": KIND[n], "label": Y[n]}  # noqa: E731  # PyTorch would transpose the lists
    data = DataLoader(Items(make), batch_size=4) if batched else Items(make)
    problem = cv.Problem.from_module(build(), loss="cross-entropy", data=data)
    hessian = cv.hessian(problem).dense()
    # Numbers of Python become float32, as in torch.as_tensor.
    assert distance(hessian, REFERENCES["hessian"]) < (1e-6 if item == "lists of numbers" else 1e-12)


@pytest.mark.parametrize("data", [(X, KIND, Y), {"x": X, "kind": KIND, "targets": Y}])
def test_all_tensors_at_once_follow_the_rule_of_items(data):
    problem = cv.Problem.from_module(TwoInputs(), loss="cross-entropy", data=data)
    assert distance(cv.ggn(problem).dense(), REFERENCES["ggn"]) < 1e-12


class WithDefault(TwoInputs):
    def forward(self, x, kind=None):
        return super().forward(x, KIND if kind is None else kind)


@pytest.mark.parametrize(
    ("build", "data", "message"),
    [
        (WithDefault, (X, KIND, Y), r"data has 3 elements. .* forward needs 1 \(x\), so it is not clear which"),
        (TwoInputs, Items(lambda n: (X[n], KIND[n], X[n], Y[n])), r"item 0 of the dataset has 4 elements"),
        (TwoInputs, {"x": X, "kind": KIND}, "is a dictionary.* but it has none of them.* 'x', 'kind'"),
        (TwoInputs, {"x": X, "y": Y, "labels": Y}, "it has the entries 'labels' and 'y'"),
        (TwoInputs, {"y": Y}, "it has no other entry"),
        (TwoInputs, ((X, KIND[:5]), Y), r"inputs\[0\] has 6 rows but inputs\[1\] has 5"),
        (TwoInputs, ({"x": X, "kind": KIND}, Y[:5]), r"inputs\['x'\] has 6 rows but targets has 5"),
        (TwoInputs, ({"x": X, "kind": None}, Y), r"inputs\['kind'\] is a NoneType, not a tensor or numbers"),
        (TwoInputs, ({"x": X, "kind": ["a"] * 6}, Y), r"inputs\['kind'\]\[0\] is a str"),
        (TwoInputs, ((X, KIND), {"a": Y, "b": Y}), r"cross-entropy needs one tensor of targets, got shapes .*'a'"),
        (TwoInputs, Items(lambda n: (X[n, : 4 - n % 2], Y[n])), r"inputs has shape \(3,\) in item 1, but \(4,\)"),
        (TwoInputs, Items(lambda n: ((X[n],) * (1 + n % 2), Y[n])), r"inputs of item 1 are inputs\[0\], inputs\[1\]"),
        (TwoInputs, ((X, KIND, KIND), Y), r"failed on inputs of shapes inputs\[0\] \(6, 4\), .*TypeError"),
        (TwoInputs, ((X * torch.nan, KIND), Y), r"inputs\[0\] contain NaN or infinity in 6 of 6"),
        (TwoInputs, ((), Y), "the data are empty"),
    ],
)
def test_data_that_could_be_read_in_two_ways_are_refused_with_the_way_out(build, data, message):
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(build(), loss="cross-entropy", data=data)


def test_the_users_structures_are_copied_and_kept():
    x, kind = X.clone(), KIND.clone()
    batch, targets = {"x": x, "kind": kind}, Y.clone()
    problem = cv.Problem.from_module(TwoInputs(), loss="cross-entropy", data=(batch, targets))
    x.zero_(), kind.zero_(), targets.zero_(), batch.clear()
    assert distance(cv.hessian(problem).dense(), REFERENCES["hessian"]) < 1e-12
    assert repr(problem.inputs) == "TensorTree(['x']: 6 x 4, ['kind']: 6)"
    assert "TwoInputs" in repr(problem)
    assert problem.num_examples == 6
    assert torch.equal(problem.predict(problem.weights, {"x": X, "kind": KIND}), TwoInputs()(X, KIND))


class InPlace(TwoInputs):
    def forward(self, x, kind):
        return super().forward(x.mul_(2).div_(2), kind.add_(1).sub_(1))


def test_a_model_that_writes_into_its_inputs_does_not_write_into_the_data():
    problem = cv.Problem.from_module(InPlace(), loss="cross-entropy", data=((X, KIND), Y))
    assert distance(cv.hessian(problem).dense(), REFERENCES["hessian"]) < 1e-12
    assert torch.equal(problem.inputs.leaves[1], KIND)


def test_several_inputs_are_converted_to_one_precision_and_keep_their_integers():
    problem = cv.Problem.from_module(TwoInputs().float(), loss="cross-entropy", data=((X.float(), KIND), Y), dtype=None)
    assert [leaf.dtype for leaf in problem.inputs.leaves] == [torch.float32, torch.int64]
    ggn = cv.ggn(problem)
    assert ggn.dtype == torch.float32
    assert distance(ggn.dense().double(), REFERENCES["ggn"]) < 1e-5
    assert cv.spectrum(ggn).eigenvalues.shape == (36,)


def test_spectra_charts_and_subsets_take_several_inputs():
    problem = cv.Problem.from_module(TwoInputs(), loss="cross-entropy", data=((X, KIND), Y))
    expected = torch.linalg.eigvalsh(REFERENCES["ggn"])
    spectrum = cv.spectrum(cv.ggn(problem))
    assert torch.allclose(torch.as_tensor(spectrum.eigenvalues), expected, atol=1e-13)
    block = cv.hessian(problem.subset("embed")).dense()
    span = problem.layout.slices["embed.weight"]
    assert distance(block, REFERENCES["hessian"][span, span]) < 1e-12
    assert cv.spectrum(cv.pullback(cv.hessian(problem), cv.WeightNorm())).dim > problem.dim


class Unpacking(TwoInputs):
    def forward(self, both):
        return super().forward(both[:, :4], both[:, 4].long())


PUBLIC = {
    "gradient": lambda problem: problem.gradient(),
    "another point": lambda problem: problem.at(0.9 * problem.weights).value(),
    "trace": lambda problem: cv.trace(cv.hessian(problem)).value,
    "extremal eigenvalues": lambda problem: cv.extremal_eigenvalues(cv.hessian(problem)).largest,
    "sampled Fisher": lambda problem: cv.monte_carlo_fisher(problem, 2).dense(),
    "efficiency": lambda problem: cv.efficiency(problem, cv.WeightNorm()).efficiency,
    "natural gradient": lambda problem: cv.natural_gradient_step(problem, relative_damping=1e-2),
    "K-FAC": lambda problem: cv.chart_step(problem, cv.preconditioner(problem, "kfac", relative_damping=1e-2)),
    "alignments": lambda problem: [alignment.cosine for alignment in cv.alignments(problem)],
    "whitening": lambda problem: [record.bures for record in cv.whitening(problem)],
}


@pytest.mark.parametrize("function", PUBLIC)
def test_public_functions_give_the_numbers_of_the_same_inputs_in_one_tensor(function):
    both = torch.cat([X, KIND[:, None].double()], dim=1)
    two, one = (
        cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, Y))
        for module, inputs in ((TwoInputs(), (X, KIND)), (Unpacking(), both))
    )
    numbers = [torch.as_tensor(PUBLIC[function](problem)) for problem in (two, one)]
    assert torch.allclose(*numbers, rtol=1e-10, atol=0)


def test_targets_in_a_structure_reach_a_callable_loss_as_they_are():
    targets = {"class": Y, "weight": drawn(NUM, seed=3).abs()}

    def loss(output, target):
        return target["weight"] * functional.cross_entropy(output, target["class"])

    module = TwoInputs()
    problem = cv.Problem.from_module(module, loss=cv.PerExample(loss), data=((X, KIND), targets))
    expected = references(
        module,
        module(X, KIND),
        lambda f, n: targets["weight"][n] * functional.cross_entropy(f, Y[n]),
        [1 / NUM] * NUM,
    )
    for name in ("hessian", "ggn", "empirical_fisher"):
        assert distance(BUILDERS[name](problem).dense(), expected[name]) < 1e-12


# ---------------------------------------------------------------------------------------------------- what is returned


class ModelOutput(OrderedDict):
    """As in transformers: a dictionary whose entries are attributes too, and which is indexed by position."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class Returned:
    hidden: torch.Tensor
    scores: torch.Tensor


class Answers:
    def __init__(self, logits):
        self.logits = logits


RETURNED = {
    "ModelOutput": (
        lambda f: ModelOutput(logits=f, hidden=f**2),
        None,
        "ModelOutput with 'logits', 'hidden'; 'logits'",
    ),
    "a dictionary": (lambda f: {"logits": f, "cache": None}, None, "'logits' is used"),
    "an object": (Answers, None, ""),
    "a tuple with one tensor": (lambda f: (f, None), None, "entry 0 is used"),
    "a tuple": (lambda f: (f**2, f), 1, ""),
    "a position in ModelOutput": (lambda f: ModelOutput(hidden=f**2, logits=f), 1, ""),
    "a dataclass": (lambda f: Returned(f**2, f), "scores", ""),
    "a key": (lambda f: {"a": f**2, "b": f}, "b", ""),
    "a function of two entries": (
        lambda f: (f[:, :1], f[:, 1:]),
        lambda returned: torch.cat(returned, dim=1),
        "",
    ),
}


class Wrapping(TwoInputs):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x, kind):
        return self.wrap(super().forward(x, kind))


@pytest.mark.parametrize("kind", RETURNED)
def test_outputs_are_read_from_whatever_forward_returns(kind):
    wrap, output, note = RETURNED[kind]
    problem = cv.Problem.from_module(Wrapping(wrap), loss="cross-entropy", data=((X, KIND), Y), output=output)
    for name in EXACT:
        assert distance(BUILDERS[name](problem).dense(), REFERENCES[name]) < 1e-12
    assert note in " ".join(problem.notes)
    assert bool(note) == bool(problem.notes)


@pytest.mark.parametrize(
    ("wrap", "output", "message"),
    [
        (lambda f: {"a": f, "b": f}, None, r"returns a dict with 'a', 'b', not one tensor.* output='a'"),
        (lambda f: (f, f), None, r"a tuple of \(6, 3\), \(6, 3\).*output=0"),
        (lambda f: Returned(f, f), None, "a Returned with 'hidden', 'scores'.*output='hidden'"),
        (
            lambda f: {"a": f, "b": f},
            "logits",
            r"output='logits' is not in what the model returns: a dict with 'a', 'b'",
        ),
        (lambda f: (f, f), 2, r"output=2 is not in what the model returns: a tuple of"),
        (lambda f: f, "logits", r"output='logits' is not in .* a tensor of shape \(6, 3\)"),
        (lambda f: {"a": f.sum()}, "a", r"one output per example .* got shape \(\)"),
        (lambda _: "text", None, "the model returns a str, not one tensor"),
    ],
)
def test_outputs_that_cannot_be_told_are_refused_with_their_names(wrap, output, message):
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(Wrapping(wrap), loss="cross-entropy", data=((X, KIND), Y), output=output)


# ---------------------------------------------------------------------------------------------- the loss of the module


class WithLoss(TwoInputs):
    """Computes its own loss, as the models of transformers do."""

    reduction = "mean"

    def forward(self, x, kind, labels=None):
        logits = super().forward(x, kind)
        loss = None if labels is None else functional.cross_entropy(logits, labels, reduction=self.reduction)
        return ModelOutput(loss=loss, logits=logits)


class Scalar(WithLoss):
    def forward(self, x, kind, labels):
        return super().forward(x, kind, labels).loss


class LogitsAndLoss(WithLoss):
    def forward(self, x, kind, labels):
        returned = super().forward(x, kind, labels)
        return returned.logits, returned.loss


class EachLoss(Scalar):
    reduction = "none"


BATCH = {"x": X, "kind": KIND, "labels": Y}


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (WithLoss, {"output": "loss", "data": BATCH}),
        (WithLoss, {"loss": "model", "data": BATCH}),
        (WithLoss, {"output": "loss", "data": DataLoader(Items(lambda n: {k: v[n] for k, v in BATCH.items()}), 4)}),
        (Scalar, {"loss": "model", "data": (X, KIND, Y)}),
        (LogitsAndLoss, {"loss": "model", "data": (X, KIND, Y)}),
        (LogitsAndLoss, {"loss": "model", "output": 1, "data": (X, KIND, Y)}),
        (EachLoss, {"loss": "model", "data": (X, KIND, Y)}),
    ],
)
def test_a_module_that_returns_its_loss_has_a_hessian_and_gradients(build, options):
    problem = cv.Problem.from_module(build(), **options)
    for name in ("hessian", "empirical_fisher", "gradient_covariance"):
        assert distance(BUILDERS[name](problem).dense(), REFERENCES[name]) < 1e-12
    assert problem.value() == pytest.approx(
        float(functional.cross_entropy(TwoInputs()(X, KIND), Y).detach()), rel=1e-14
    )


@pytest.mark.parametrize("build", [cv.ggn, cv.fisher, lambda problem: cv.monte_carlo_fisher(problem, 2)])
def test_the_ggn_of_a_loss_without_outputs_is_refused(build):
    problem = cv.Problem.from_module(WithLoss(), data=BATCH, output="loss")
    with pytest.raises(cv.NotDefinedError, match=r"need the outputs of the model.*output='logits'"):
        build(problem)


def test_the_logits_beside_a_loss_have_every_matrix():
    problem = cv.Problem.from_module(WithLoss(), loss="cross-entropy", data=BATCH, output="logits")
    assert distance(cv.ggn(problem).dense(), REFERENCES["ggn"]) < 1e-12


class Summing(Scalar):
    reduction = "sum"


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (Summing, {"loss": "model"}, cv.InputError, "for 6 examples together is .* but the mean of its losses"),
        (TwoInputs, {}, cv.ConfigurationError, "no loss is given"),
        (WithLoss, {"output": "loss", "loss": "mse"}, cv.ConfigurationError, "no other loss applies"),
    ],
)
def test_losses_of_modules_that_are_not_means_are_refused(build, options, error, message):
    with pytest.raises(error, match=message):
        cv.Problem.from_module(build(), data=(X, KIND, Y), **options)
