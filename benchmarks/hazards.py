"""Inputs that silently break curvature tools: each is a question with a known answer."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, TensorDataset

import curvature as cv
from benchmarks.hazard_tools import GGNS, HESSIANS, OURS, eigenvalues, largest_by, spectrum_by
from benchmarks.networks import CompositeWeightNorm

RIGHT = 1e-6  # relative error that still counts as right, unless a hazard says otherwise


@dataclass(frozen=True)
class Question:
    """One input for every tool.

    Attributes
    ----------
    ask
        ``tool -> error``, or the error and a description: the distance of its answer from the truth. An exception is an
        answer too.
    unit
        What follows the percentage of a large error: ``"error"``, ``"difference between two calls"``, ...
    tolerance
        The largest error that counts as right.
    """

    ask: Callable[[str], float | tuple[float, str]]
    unit: str = "error"
    tolerance: float = RIGHT


@dataclass(frozen=True)
class Hazard:
    """A named way to get a wrong number; ``build`` makes the question."""

    key: str
    title: str
    truth: str
    build: Callable[[], Question]


HAZARDS: dict[str, Hazard] = {}


def hazard(title: str, truth: str) -> Callable[[Callable[[], Question]], Callable[[], Question]]:
    """Register a question under the name of its function."""

    def register(build: Callable[[], Question]) -> Callable[[], Question]:
        HAZARDS[build.__name__] = Hazard(build.__name__, title, truth, build)
        return build

    return register


# ------------------------------------------------------------------------------------------------- what every tool gets


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module in float64, in evaluation mode, initialized from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double().eval()


def network() -> nn.Sequential:
    """A small tanh network: 4 inputs, 5 hidden units, 3 classes."""
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def data(num_examples: int = 10) -> tuple[Tensor, Tensor]:
    """Inputs and three classes, the first class rare: batches of four hold different class weights."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_examples, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (num_examples,), generator=generator)


def loader(inputs: Tensor, targets: Tensor, batch_size: int | None = None, **options: Any) -> DataLoader:
    """Loader over the data; without a batch size, all examples are one batch."""
    generator = torch.Generator().manual_seed(3)  # each pass draws a seed, but not from the global generator
    return DataLoader(
        TensorDataset(inputs, targets), batch_size=batch_size or len(inputs), generator=generator, **options
    )


def exact(module: nn.Module, criterion: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Eigenvalues of the Hessian over all data at once, by plain double backward."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    loss = criterion(module(inputs), targets)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    slope = torch.cat([part.reshape(-1) for part in slopes])
    rows = [
        torch.cat(
            [
                part.reshape(-1)
                for part in torch.autograd.grad(
                    entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            ]
        )
        if entry.requires_grad
        else torch.zeros_like(slope)
        for entry in slope
    ]
    return eigenvalues(torch.stack(rows))


def distance(result: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry; infinite where the number of entries differs."""
    if result.shape != expected.shape or not torch.isfinite(result).all():
        return math.inf
    return float((result - expected).abs().max() / expected.abs().max())


def hessian_question(
    module: nn.Module, criterion: nn.Module, batches: DataLoader, truth: Tensor, **details: Any
) -> Question:
    """Ask for the spectrum of the Hessian; every tool gets its own copy of the module."""
    return Question(
        lambda tool: distance(spectrum_by(tool, copy.deepcopy(module), criterion, batches), truth), **details
    )


def quadratic(values: Tensor, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, DataLoader]:
    """Least squares whose Hessian has these eigenvalues: ``X^T X / N * 2``, the convention of ``nn.MSELoss``."""
    dim = len(values)
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q for _ in "lr")
    inputs = ((left * (values * dim / 2).sqrt()) @ right).to(dtype)
    module = seeded(lambda: nn.Linear(dim, 1, bias=False)).to(dtype)
    return module, nn.MSELoss(), loader(inputs, torch.zeros(dim, 1, dtype=dtype))


# ------------------------------------------------------------------------------------------------------------- hazards


@hazard("PyTorch's fused weight norm, differentiated twice", "double backward through `g * v / norm(v)`")
def fused_weight_norm() -> Question:
    """``nn.utils.parametrizations.weight_norm``, and the same written out."""
    fused, composite = network(), network()
    for place in (0, 2):
        parametrizations.weight_norm(fused[place])
        parametrize.register_parametrization(composite[place], "weight", CompositeWeightNorm())
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(fused, criterion, loader(inputs, targets), exact(composite, criterion, inputs, targets))


@hazard("a smaller last batch", "all data in one batch")
def ragged_batches() -> Question:
    """Ten examples in batches of four."""
    inputs, targets = data()
    module, criterion = network(), nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets, 4), exact(module, criterion, inputs, targets))


@hazard("class weights, in two batches", "all data in one batch")
def class_weights() -> Question:
    """Each batch divides by its own sum of weights."""
    inputs, targets = data(12)
    module, criterion = network(), nn.CrossEntropyLoss(weight=torch.tensor([8.0, 1.0, 0.5], dtype=torch.float64))
    return hessian_question(module, criterion, loader(inputs, targets, 6), exact(module, criterion, inputs, targets))


@hazard("ignored targets (`ignore_index`), in two batches", "all data in one batch")
def ignored_targets() -> Question:
    """Each batch divides by its own number of targets that count."""
    inputs, targets = data(12)
    targets[:4] = -100
    module, criterion = network(), nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets, 6), exact(module, criterion, inputs, targets))


@hazard("a loader with `shuffle=True` and `drop_last=True`", "all data in one batch")
def dropping_loader() -> Question:
    """Two of ten examples are never seen."""
    inputs, targets = data()
    module, criterion = network(), nn.CrossEntropyLoss()
    batches = loader(inputs, targets, 4, shuffle=True, drop_last=True)
    return hessian_question(module, criterion, batches, exact(module, criterion, inputs, targets))


def twice(module: nn.Module, batches: tuple[DataLoader, DataLoader]) -> Question:
    """Ask the same question twice and measure how far the two answers are apart."""
    criterion = nn.CrossEntropyLoss()

    def ask(tool: str) -> float:
        first, second = (spectrum_by(tool, copy.deepcopy(module), criterion, part) for part in batches)
        return distance(second, first)

    return Question(ask, "difference between two calls")


@hazard("dropout in training mode", "a second call with the same inputs")
def dropout() -> Question:
    """The function changes with every pass over the data."""
    module = nn.Sequential(*network(), nn.Dropout(0.5)).train()
    batches = loader(*data())
    return twice(module, (batches, batches))


class _Noisy(nn.Module):
    """A layer that draws noise in every mode."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, 0.5, training=True)


@hazard("random noise inside `forward`, in evaluation mode", "a second call with the same inputs")
def noise() -> Question:
    """Calling ``eval()`` does not help."""
    batches = loader(*data())
    return twice(nn.Sequential(*network(), _Noisy()).eval(), (batches, batches))


@hazard("batch norm in training mode", "the same data in two batches instead of one")
def training_batch_norm() -> Question:
    """The loss is not a mean over examples."""
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))).train()
    inputs, targets = data(12)
    return twice(module, (loader(inputs, targets), loader(inputs, targets, 6)))


def largest_question(values: Tensor, count: int) -> Question:
    """Ask for the largest eigenvalues of a least-squares problem, at each tool's default accuracy."""
    module, criterion, batches = quadratic(values)
    expected = values.sort(descending=True).values[:count]

    def ask(tool: str) -> float:
        largest = largest_by(tool, copy.deepcopy(module), criterion, batches, count)
        return float(((largest - expected) / expected).abs().max())

    return Question(ask, f"error in one of the {count} largest eigenvalues", 0.05)


@hazard("spurious copies of large eigenvalues in Lanczos (ghosts)", "a least-squares problem with a known spectrum")
def lanczos_ghosts() -> Question:
    """Top eight of 100, 50, 20 and a bulk below 1."""
    return largest_question(torch.cat([torch.tensor([100.0, 50.0, 20.0]), 0.97 ** torch.arange(117)]).double(), 8)


@hazard("a largest eigenvalue of multiplicity three", "a least-squares problem with a known spectrum")
def multiplicity() -> Question:
    """Top four of 10, 10, 10 and a bulk below 1: no copy may be missed or invented."""
    return largest_question(torch.cat([torch.full((3,), 10.0), torch.linspace(1, 0.1, 57)]).double(), 4)


@hazard("a very small loss", "a least-squares problem with a known spectrum")
def small_loss() -> Question:
    """Largest eigenvalue 1e-12: thresholds must be relative."""
    values = torch.logspace(-12, -14, 12, dtype=torch.float64)
    module, criterion, batches = quadratic(values)

    def ask(tool: str) -> float:
        return distance(largest_by(tool, copy.deepcopy(module), criterion, batches, 1), values[:1])

    return Question(ask, tolerance=0.01)


@hazard("the condition number of a float32 model", "singular values of the same inputs, in float64")
def single_precision() -> Question:
    """Condition number 1e10; without a routine for it: largest over smallest eigenvalue of the dense Hessian."""
    module, criterion, batches = quadratic(torch.logspace(0, -10, 8, dtype=torch.float64), torch.float32)
    singular = torch.linalg.svdvals(batches.dataset.tensors[0].double())
    truth = float((singular[0] / singular[-1]) ** 2)

    def ask(tool: str) -> float:
        values = spectrum_by(tool, copy.deepcopy(module), criterion, batches)
        return abs(float(values[-1]) / float(values[0]) / truth - 1)

    return Question(ask, tolerance=0.01)


@hazard(
    "eigenvalues above and below the rounding error, with a gap between them",
    "singular values of the inputs, which resolve all of them",
)
def gap_at_the_floor() -> Question:
    """Thirty eigenvalues down to 1e-11, eight around 1e-18: the condition number at 95 % of the rank.

    Without a routine for the rank: NumPy's rule, eigenvalues above dimension times unit of rounding times the largest.
    """
    values = torch.cat([torch.logspace(0, -11, 30), torch.logspace(-17, -19, 8)]).double()
    module, criterion, batches = quadratic(values)
    singular = torch.linalg.svdvals(batches.dataset.tensors[0])
    truth = float((singular[0] / singular[_at_95_percent(len(singular))]) ** 2)

    def ask(tool: str) -> float | tuple[float, str]:
        if tool == OURS:
            return _ranked_by_us(copy.deepcopy(module), criterion, batches, truth)
        found = spectrum_by(tool, copy.deepcopy(module), criterion, batches).flip(0)
        kept = found[found > len(found) * torch.finfo(found.dtype).eps * found[0]]
        return abs(float(kept[0] / kept[_at_95_percent(len(kept))]) / truth - 1)

    return Question(ask)


def _at_95_percent(rank: int) -> int:
    return -(-95 * rank // 100) - 1


def _ranked_by_us(module: nn.Module, criterion: nn.Module, batches: DataLoader, truth: float) -> tuple[float, str]:
    """Both routes: the Hessian from its entries, and the GGN, which is the same here, from its factor."""
    problem = cv.Problem.from_module(module, loss=criterion, data=batches)
    outside, words = 0, []
    for name, matrix in (("entries", cv.hessian(problem)), ("factor", cv.ggn(problem))):
        spectrum = cv.spectrum(matrix)
        kappa = spectrum.condition_numbers()["kappa_95"]
        outside += not kappa.low <= truth <= kappa.high
        words.append(f"from the {name} {kappa} at rank {spectrum.rank_words}")
    return float(outside), "; ".join(words)


@hazard("one NaN among the inputs", "no answer exists: the tool must raise an error")
def nan_input() -> Question:
    """The Hessian would be NaN."""
    inputs, targets = data()
    inputs[3, 2] = math.nan
    batches, criterion = loader(inputs, targets), nn.CrossEntropyLoss()

    def ask(tool: str) -> float:
        matrix = HESSIANS[tool](network(), criterion, batches)
        return float((~torch.isfinite(matrix)).double().mean())

    return Question(ask, "of the entries are not finite, and no error is raised")


@hazard("tied weights", "all data in one batch")
def tied_weights() -> Question:
    """One matrix used in two layers counts once."""
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    module[2].weight = module[0].weight
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets), exact(module, criterion, inputs, targets))


@hazard("frozen weights", "all data in one batch, trainable parameters only")
def frozen_weights() -> Question:
    """``requires_grad=False`` in the first layer."""
    module = network()
    module[0].requires_grad_(False)
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets), exact(module, criterion, inputs, targets))


class _WithUnused(nn.Module):
    """A network with a layer that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = network(), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


@hazard("a parameter that the loss does not depend on", "all data in one batch; the rows of this parameter are zero")
def unused_parameter() -> Question:
    """Its gradient is None in PyTorch."""
    module = seeded(_WithUnused)
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets), exact(module, criterion, inputs, targets))


def exact_ggn(module: nn.Module, criterion: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Eigenvalues of the GGN over all data at once, with a backward pass for each output."""
    parameters = list(module.parameters())
    outputs = module(inputs)
    rows = [
        torch.cat([part.reshape(-1) for part in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for entry in outputs.reshape(-1)
    ]
    jacobian = torch.stack(rows)
    middle = torch.autograd.functional.hessian(lambda f: criterion(f, targets), outputs.detach())
    return eigenvalues(jacobian.T @ middle.reshape(outputs.numel(), -1) @ jacobian)


def ggn_question(module: nn.Module, criterion: nn.Module, batches: DataLoader, truth: Tensor) -> Question:
    """Ask for the spectrum of the generalized Gauss-Newton matrix."""
    return Question(lambda tool: distance(eigenvalues(GGNS[tool](copy.deepcopy(module), criterion, batches)), truth))


@hazard("the GGN of `NLLLoss` after `LogSoftmax`", "the GGN of the same loss as cross-entropy of the logits")
def ggn_of_log_probabilities() -> Question:
    """The loss is linear in its inputs, so the GGN of the module as it is cut is zero."""
    inputs, targets = data()
    module = network()
    truth = exact_ggn(module, nn.CrossEntropyLoss(), inputs, targets)
    return ggn_question(nn.Sequential(module, nn.LogSoftmax(dim=1)), nn.NLLLoss(), loader(inputs, targets), truth)


@hazard("the GGN of a Huber loss with residuals below and above `delta`", "the loss as passed, all data in one batch")
def ggn_of_huber() -> Question:
    """Outputs with large residuals have no curvature, the others have that of the squared error."""
    inputs, _ = data()
    targets = torch.randn(len(inputs), 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    module, criterion = network(), nn.HuberLoss(delta=0.8)
    return ggn_question(module, criterion, loader(inputs, targets), exact_ggn(module, criterion, inputs, targets))


@hazard("`reduction='sum'`", "the loss as passed, all data in one batch")
def summed_loss() -> Question:
    """The Hessian of a sum, not of a mean; in two batches."""
    inputs, targets = data(12)
    module, criterion = network(), nn.CrossEntropyLoss(reduction="sum")
    return hessian_question(module, criterion, loader(inputs, targets, 6), exact(module, criterion, inputs, targets))


class _Decayed(nn.Module):
    """Cross-entropy with weight decay of the parameters of a module, as a training loop may have it."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.parameters_of_module = tuple(module.parameters())
        self.decay, self.reduction = decay, "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        penalty = sum(parameter.square().sum() for parameter in self.parameters_of_module)
        return nn.functional.cross_entropy(outputs, targets) + self.decay / 2 * penalty


@hazard("weight decay inside the loss", "the loss as passed, all data in one batch")
def weight_decay_in_the_loss() -> Question:
    """The parameters reach the loss by another way than the outputs; every tool gets a loss of its own module."""
    inputs, targets = data()
    truth = exact(module := network(), _Decayed(module, 0.5), inputs, targets)

    def ask(tool: str) -> float:
        asked = network()
        criterion = _Decayed(asked, 0.5)
        # Here a callable is the loss of one example.
        loss = criterion.forward if tool == OURS else criterion
        return distance(spectrum_by(tool, asked, loss, loader(inputs, targets)), truth)

    return Question(ask)


def code_question(module: nn.Module) -> Question:
    """Ask for the Hessian of a module that runs other code than its layers say."""
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets), exact(module, criterion, inputs, targets))


@hazard("`forward` replaced on the instance", "the code that actually runs, all data in one batch")
def replaced_forward() -> Question:
    """As libraries do that wrap a model in place."""
    module = network()
    module.forward = types.MethodType(lambda self, inputs: 3 * type(self).forward(self, inputs), module)
    return code_question(module)


@hazard("a forward hook that changes the outputs of a layer", "the code that actually runs, all data in one batch")
def changing_hook() -> Question:
    """The layer's type does not show it."""
    module = network()
    module[1].register_forward_hook(lambda _layer, _inputs, outputs: 2 * outputs)
    return code_question(module)


@hazard("a pre-activation exactly at the kink of a ReLU", "central differences of the gradient across the kink")
def relu_kink() -> Question:
    """An input of zeros and biases of zero: the second derivative has a jump that no tool sees, this one included."""
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    nn.init.zeros_(module[0].bias)
    inputs, targets = data()
    inputs[:5] = 0
    criterion = nn.CrossEntropyLoss()
    parameters = list(module.parameters())

    def gradient(vector: Tensor) -> Tensor:
        moved = copy.deepcopy(module)
        nn.utils.vector_to_parameters(vector, moved.parameters())
        slopes = torch.autograd.grad(criterion(moved(inputs), targets), list(moved.parameters()))
        return torch.cat([part.reshape(-1) for part in slopes])

    point = nn.utils.parameters_to_vector(parameters).detach()
    step = 1e-5
    columns = [(gradient(point + step * e) - gradient(point - step * e)) / (2 * step) for e in torch.eye(len(point))]
    truth = eigenvalues(torch.stack(columns))
    return hessian_question(module, criterion, loader(inputs, targets), truth, tolerance=1e-4)


@hazard("side effects on the module and on the global random state", "the module and the random state before the call")
def side_effects() -> Question:
    """A network in training mode, without layers that depend on the mode, with accumulated gradients."""
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()

    def ask(tool: str) -> float:
        module = network().train()
        criterion(module(inputs), targets).backward()
        before = [p.grad.clone() for p in module.parameters()]
        state = torch.get_rng_state()
        spectrum_by(tool, module, criterion, loader(inputs, targets))
        unchanged = [
            p.grad is not None and torch.equal(p.grad, old) for p, old in zip(module.parameters(), before, strict=True)
        ]
        changed = {
            "the training mode": not module.training,
            "the gradients": not all(unchanged),
            "the global random state": not torch.equal(state, torch.get_rng_state()),
        }
        names = [name for name, is_changed in changed.items() if is_changed]
        return float(len(names)), f"changes {' and '.join(names)}" if names else "nothing changed"

    return Question(ask)
