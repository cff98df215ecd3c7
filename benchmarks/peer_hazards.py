r"""What do curvature tools do with inputs that spoil the answer without a sound?

Claim tested: each of these inputs, all of them met in practice, either leaves the answer here right or is refused with
a reason; with one exception that is documented, the kinks of a ReLU. curvlinops, PyHessian and hessian-eigenthings get
the same module, loss and loader, through their public interface and at its defaults. An answer is a table: one row per
hazard, one cell per tool, and in the cell how far the tool's number is from the truth computed another way (plain
double backward over all data at once, closed form, the same question asked twice), or what it raised. A tool that is
not installed is shown as such.

    python -m benchmarks.peer_hazards --out results/peer_hazards [--page docs/hazards.md] [--fast]

Writes curves.json (one row per hazard and tool), table.md and figure.svg; ``--page`` also writes the page of the
documentation. Two seconds; ``--fast`` is the same.

Keys of a row: ``hazard`` (its key), ``tool``, ``outcome`` (``right``, ``wrong``, ``raises``, ``missing``), ``error``
(relative, for side effects a count; None where there is no finite number) and ``words``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, TensorDataset

import curvature as cv
from curvature.report.figures.style import BLUE, GRAY, GREEN, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "curvature"
TOOLS = {  # import name and distribution
    OURS: None,
    "curvlinops": "curvlinops-for-pytorch",
    "PyHessian": "PyHessian",
    "hessian-eigenthings": "hessian-eigenthings",
}
MODULES = {"curvlinops": "curvlinops", "PyHessian": "pyhessian", "hessian-eigenthings": "hessian_eigenthings"}
RIGHT = 1e-6  # relative error that still counts as right, unless a hazard says otherwise


@dataclass(frozen=True)
class Question:
    """One input for every tool.

    Attributes
    ----------
    ask
        ``tool -> error``, or error and words: how far its answer is from the truth. What it raises is its answer.
    unit
        What a large error is called: ``"off"``, ``"between two answers"``, ...
    tolerance
        The largest error that counts as right.
    """

    ask: Callable[[str], float | tuple[float, str]]
    unit: str = "off"
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


# -------------------------------------------------------------------------------------------------- what everybody gets


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Module in float64, initialized from one seed."""
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
    """Batches of the data; None: one batch."""
    own = torch.Generator().manual_seed(3)  # every pass draws a seed: not from the global generator
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size or len(inputs), generator=own, **options)


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


def eigenvalues(matrix: Tensor) -> Tensor:
    """Ascending, of the symmetric part: the order of the coordinates does not matter."""
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2)


def spectrum_by(tool: str, module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    """All eigenvalues of the Hessian as one tool sees it, from its products with the identity."""
    return eigenvalues(HESSIANS[tool](module, criterion, batches))


def _by_curvature(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    problem = cv.Problem.from_module(module, loss=criterion, data=batches)
    return cv.pullback(cv.hessian(problem), problem.chart).dense()


def _curvlinops(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Any:
    import curvlinops

    trained = [p for p in module.parameters() if p.requires_grad]
    return curvlinops.HessianLinearOperator(module, criterion, trained, batches)


def _by_curvlinops(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    operator = _curvlinops(module, criterion, batches)
    return operator @ torch.eye(operator.shape[1], dtype=next(module.parameters()).dtype)


def _pyhessian(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Any:
    import pyhessian

    return pyhessian.hessian(module, criterion, dataloader=batches, cuda=False)


def _by_pyhessian(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    known = _pyhessian(module, criterion, batches)
    sizes = [p.numel() for p in known.params]
    columns = []
    for row in torch.eye(sum(sizes), dtype=known.params[0].dtype):
        parts = [part.view(p.shape) for part, p in zip(row.split(sizes), known.params, strict=True)]
        _, product = known.dataloader_hv_product(parts)
        columns.append(torch.cat([part.reshape(-1) for part in product]))
    return torch.stack(columns, dim=1)


def _eigenthings(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Any:
    import hessian_eigenthings as het

    return het.HessianOperator(module, batches, het.supervised_loss(criterion))


def _by_eigenthings(module: nn.Module, criterion: nn.Module, batches: DataLoader) -> Tensor:
    operator = _eigenthings(module, criterion, batches)
    identity = torch.eye(operator.size, dtype=operator.dtype)
    return torch.stack([operator.matvec(row) for row in identity], dim=1)


HESSIANS = {
    OURS: _by_curvature,
    "curvlinops": _by_curvlinops,
    "PyHessian": _by_pyhessian,
    "hessian-eigenthings": _by_eigenthings,
}


def largest_by(tool: str, module: nn.Module, criterion: nn.Module, batches: DataLoader, count: int) -> Tensor:
    """Largest eigenvalues, descending, by each tool's own routine; curvlinops, without one, through SciPy's ARPACK."""
    if tool == OURS:
        problem = cv.Problem.from_module(module, loss=criterion, data=batches)
        found = cv.extremal_eigenvalues(
            cv.hessian(problem), num_largest=count, generator=torch.Generator().manual_seed(0)
        ).largest
    elif tool == "curvlinops":
        operator = _curvlinops(module, criterion, batches).to_scipy()
        start = np.random.default_rng(0).standard_normal(operator.shape[0])
        found = eigsh(operator, k=count, which="LA", v0=start)[0]
    elif tool == "PyHessian":
        found = _pyhessian(module, criterion, batches).eigenvalues(top_n=count)[0]
    else:
        import hessian_eigenthings as het

        operator = _eigenthings(module, criterion, batches)
        found = het.lanczos(operator, k=count, max_iter=min(100, operator.size), which="LA", seed=0).eigenvalues
    return torch.as_tensor(np.array(found, dtype=float)).sort(descending=True).values


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry; infinite where the numbers are not even as many."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max())


def hessian_question(
    module: nn.Module, criterion: nn.Module, batches: DataLoader, truth: Tensor, **about: Any
) -> Question:
    """Ask for the spectrum of the Hessian; every tool gets its own copy of the module."""
    return Question(lambda tool: distance(spectrum_by(tool, copy.deepcopy(module), criterion, batches), truth), **about)


def quadratic(values: Tensor, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, DataLoader]:
    """Least squares whose Hessian has these eigenvalues: ``X^T X / N * 2``, the convention of ``nn.MSELoss``."""
    dim = len(values)
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q for _ in "lr")
    inputs = ((left * (values * dim / 2).sqrt()) @ right).to(dtype)
    module = seeded(lambda: nn.Linear(dim, 1, bias=False)).to(dtype)
    return module, nn.MSELoss(), loader(inputs, torch.zeros(dim, 1, dtype=dtype))


# ------------------------------------------------------------------------------------------------------------- hazards


class _Composite(nn.Module):
    """Weight norm written with elementary operations, whose derivatives PyTorch gets right."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.vector_norm(weight, dim=1, keepdim=True), weight


@hazard("weight norm as PyTorch fuses it, differentiated twice", "double backward of `g * v / norm(v)`")
def fused_weight_norm() -> Question:
    """``nn.utils.parametrizations.weight_norm``, and the same written out."""
    fused, composite = network(), network()
    for place in (0, 2):
        parametrizations.weight_norm(fused[place])
        parametrize.register_parametrization(composite[place], "weight", _Composite())
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(fused, criterion, loader(inputs, targets), exact(composite, criterion, inputs, targets))


@hazard("a last batch that is smaller", "all data at once")
def ragged_batches() -> Question:
    """Ten examples in batches of four."""
    inputs, targets = data()
    module, criterion = network(), nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets, 4), exact(module, criterion, inputs, targets))


@hazard("class weights, in two batches", "all data at once")
def class_weights() -> Question:
    """Each batch divides by its own sum of weights."""
    inputs, targets = data(12)
    module, criterion = network(), nn.CrossEntropyLoss(weight=torch.tensor([8.0, 1.0, 0.5], dtype=torch.float64))
    return hessian_question(module, criterion, loader(inputs, targets, 6), exact(module, criterion, inputs, targets))


@hazard("targets to ignore (`ignore_index`), in two batches", "all data at once")
def ignored_targets() -> Question:
    """Each batch divides by its own number of targets that count."""
    inputs, targets = data(12)
    targets[:4] = -100
    module, criterion = network(), nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets, 6), exact(module, criterion, inputs, targets))


@hazard("a loader that shuffles and drops the last batch", "all data at once")
def dropping_loader() -> Question:
    """Two of ten examples are never seen."""
    inputs, targets = data()
    module, criterion = network(), nn.CrossEntropyLoss()
    batches = loader(inputs, targets, 4, shuffle=True, drop_last=True)
    return hessian_question(module, criterion, batches, exact(module, criterion, inputs, targets))


def twice(module: nn.Module, batches: tuple[DataLoader, DataLoader]) -> Question:
    """Ask the same question twice; how far are the answers apart?"""
    criterion = nn.CrossEntropyLoss()

    def ask(tool: str) -> float:
        first, second = (spectrum_by(tool, copy.deepcopy(module), criterion, part) for part in batches)
        return distance(second, first)

    return Question(ask, "between two answers")


@hazard("dropout in training mode", "the same question twice")
def dropout() -> Question:
    """Every pass over the data is another function."""
    module = nn.Sequential(*network(), nn.Dropout(0.5)).train()
    batches = loader(*data())
    return twice(module, (batches, batches))


class _Noisy(nn.Module):
    """Noise that no mode switches off."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, 0.5, training=True)


@hazard("noise inside `forward`, in evaluation mode", "the same question twice")
def noise() -> Question:
    """Calling ``eval()`` does not help."""
    batches = loader(*data())
    return twice(nn.Sequential(*network(), _Noisy()).eval(), (batches, batches))


@hazard("batch norm in training mode", "the same data in one batch and in two")
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
        found = largest_by(tool, copy.deepcopy(module), criterion, batches, count)
        return float(((found - expected) / expected).abs().max())

    return Question(ask, f"off in one of the top {count}", 0.05)


@hazard("large eigenvalues found again and again by Lanczos (ghosts)", "a least-squares problem of known spectrum")
def lanczos_ghosts() -> Question:
    """Top eight of 100, 50, 20 and a bulk below 1."""
    return largest_question(torch.cat([torch.tensor([100.0, 50.0, 20.0]), 0.97 ** torch.arange(117)]).double(), 8)


@hazard("a largest eigenvalue that is triple", "a least-squares problem of known spectrum")
def multiplicity() -> Question:
    """Top four of 10, 10, 10 and a bulk below 1: copies may be neither missed nor made up."""
    return largest_question(torch.cat([torch.full((3,), 10.0), torch.linspace(1, 0.1, 57)]).double(), 4)


@hazard("a very small loss", "a least-squares problem of known spectrum")
def small_loss() -> Question:
    """Largest eigenvalue 1e-12: thresholds must be relative."""
    values = torch.logspace(-12, -14, 12, dtype=torch.float64)
    module, criterion, batches = quadratic(values)

    def ask(tool: str) -> float:
        found = largest_by(tool, copy.deepcopy(module), criterion, batches, 1)
        return distance(found, values[:1])

    return Question(ask, "off", 0.01)


@hazard("the condition number of a float32 model", "singular values of the same inputs in float64")
def single_precision() -> Question:
    """Condition number 1e10; without a routine for it: largest over smallest eigenvalue of the dense Hessian."""
    module, criterion, batches = quadratic(torch.logspace(0, -10, 8, dtype=torch.float64), torch.float32)
    singular = torch.linalg.svdvals(batches.dataset.tensors[0].double())
    truth = float((singular[0] / singular[-1]) ** 2)

    def ask(tool: str) -> float:
        values = spectrum_by(tool, copy.deepcopy(module), criterion, batches)
        return abs(float(values[-1]) / float(values[0]) / truth - 1)

    return Question(ask, "off", 0.01)


@hazard("one NaN among the inputs", "there is none: it must be refused")
def nan_input() -> Question:
    """The Hessian would be NaN."""
    inputs, targets = data()
    inputs[3, 2] = math.nan
    batches, criterion = loader(inputs, targets), nn.CrossEntropyLoss()

    def ask(tool: str) -> float:
        found = HESSIANS[tool](network(), criterion, batches)
        return float((~torch.isfinite(found)).double().mean())

    return Question(ask, "of the entries not finite, returned as a result")


@hazard("tied weights", "all data at once")
def tied_weights() -> Question:
    """One matrix used in two layers counts once."""
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    module[2].weight = module[0].weight
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets), exact(module, criterion, inputs, targets))


@hazard("frozen weights", "all data at once, trainable parameters alone")
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


@hazard("a parameter that the loss does not depend on", "all data at once; its rows are zero")
def unused_parameter() -> Question:
    """Its gradient is None in PyTorch."""
    module = seeded(_WithUnused)
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()
    return hessian_question(module, criterion, loader(inputs, targets), exact(module, criterion, inputs, targets))


@hazard("a pre-activation exactly at a ReLU's kink", "central differences of the gradient, across the kink")
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


@hazard("a module in use: modes, gradients, statistics and random state", "the module before and after")
def side_effects() -> Question:
    """A network in training mode (without a layer that minds) whose gradients are accumulated."""
    inputs, targets = data()
    criterion = nn.CrossEntropyLoss()

    def ask(tool: str) -> float:
        module = network().train()
        criterion(module(inputs), targets).backward()
        before = [p.grad.clone() for p in module.parameters()]
        state = torch.get_rng_state()
        spectrum_by(tool, module, criterion, loader(inputs, targets))
        kept = [
            p.grad is not None and torch.equal(p.grad, old) for p, old in zip(module.parameters(), before, strict=True)
        ]
        changed = {
            "mode": not module.training,
            "gradients": not all(kept),
            "global random state": not torch.equal(state, torch.get_rng_state()),
        }
        names = [name for name, is_changed in changed.items() if is_changed]
        return float(len(names)), f"changes {' and '.join(names)}" if names else "nothing changed"

    return Question(ask)


# ------------------------------------------------------------------------------------------------------------- asking


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what peers warn of and print; double precision for all, one seed; global state comes back."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def answered(question: Question, tool: str) -> dict[str, Any]:
    """Outcome, error and words of one tool."""
    if tool != OURS and importlib.util.find_spec(MODULES[tool]) is None:
        return {"outcome": "missing", "error": None, "words": "not installed"}
    try:
        with quiet():
            found = question.ask(tool)
    except Exception as raised:  # anything may come out of a peer, and is its answer
        said = " ".join(str(raised).split())
        return {"outcome": "raises", "error": None, "words": f"{type(raised).__name__}: {said[:240]}"}
    error, words = found if isinstance(found, tuple) else (found, spoken(found, question))
    outcome = "right" if error <= question.tolerance else "wrong"
    return {"outcome": outcome, "error": error if math.isfinite(error) else None, "words": words}


def spoken(error: float, question: Question) -> str:
    """An error in a few words."""
    if error <= question.tolerance and error < 0.001:
        return f"to {error:.0e}" if error > 1e-12 else "to rounding"
    if not math.isfinite(error):
        return "not a finite number"
    amount = f"{100 * error:.{0 if error > 0.1 else 2}{'f' if error > 0.1 else 'g'}} %"
    return f"{amount if error < 10 else f'{error:.0f} times its value'} {question.unit}"


def measure(*, fast: bool = False) -> list[dict]:
    """Every hazard and tool."""
    del fast  # it is small as it is
    rows = []
    for one in HAZARDS.values():
        for tool in TOOLS:
            with quiet():
                question = one.build()  # anew: what a tool leaves behind is not the next one's concern
            rows.append({"hazard": one.key, "tool": tool} | answered(question, tool))
    return rows


def versions() -> dict[str, str | None]:
    """Installed versions of the tools."""
    found: dict[str, str | None] = {}
    for tool, distribution in TOOLS.items():
        try:
            found[tool] = cv.__version__ if distribution is None else metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[tool] = None
    return found


# -------------------------------------------------------------------------------------------------------------- telling


def cell(row: dict) -> str:
    """One cell of the table: wrong numbers stand out, messages are cut short."""
    if row["outcome"] == "wrong":
        return f"**wrong**: {row['words']}"
    if row["outcome"] == "right":
        return f"right, {row['words']}"
    if row["outcome"] == "missing":
        return row["words"]
    name, _, said = row["words"].partition(": ")
    said = said.split(". ")[0]
    said = said if len(said) <= 90 else said[:87].rsplit(" ", 1)[0] + " ..."
    said = said.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'").replace("*", "")
    return f"raises `{name}`" + (f": {said}" if said else "")


def markdown(rows: list[dict]) -> str:
    """The table, a row per hazard."""
    known = versions()
    names = [f"{tool} {known[tool] or ''}".strip() for tool in TOOLS]
    lines = ["| hazard | truth | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for one in HAZARDS.values():
        cells = [cell(next(row for row in rows if (row["hazard"], row["tool"]) == (one.key, tool))) for tool in TOOLS]
        lines.append(f"| {one.title} | {one.truth} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(rows: list[dict]) -> str:
    """The page of the documentation."""
    return f"""# Inputs that spoil a curvature without a sound

{__doc__.splitlines()[0]} The same module, loss and loader go to each
tool, at its defaults; the error is the largest difference of an eigenvalue over the largest eigenvalue, unless the cell
says otherwise. To raise is an answer, too: often the right one. This page is written by
`python -m benchmarks.peer_hazards --out results/peer_hazards --page docs/hazards.md`, here with torch
{torch.__version__.split("+")[0]}; every row is a function of `benchmarks/peer_hazards.py`.

{markdown(rows)}
At a ReLU's kink the Hessian is the almost-everywhere second derivative, here as elsewhere: it leaves out what the
gradient jumps by, and a spectrum's self-checks say that finite differences disagree there. PyHessian puts the module
into evaluation mode and leaves it there, which is why its answers under dropout and batch norm agree.
"""


COLORS = {"right": (GREEN, "o"), "raises": (BLUE, "s"), "wrong": (VERMILLION, "X"), "missing": (GRAY, "_")}


def draw(rows: list[dict]) -> Figure:
    """Draw the table as marks: what each tool did with each hazard."""
    figure, ax = plt.subplots(figsize=(10, 0.34 * len(HAZARDS) + 1.6), layout="constrained")
    keys, tools = list(HAZARDS), list(TOOLS)
    for outcome, (color, marker) in COLORS.items():
        found = [row for row in rows if row["outcome"] == outcome]
        if not found:
            continue
        places = [tools.index(row["tool"]) for row in found], [keys.index(row["hazard"]) for row in found]
        ax.plot(*places, linestyle="none", marker=marker, color=color, markersize=8, label=outcome)
        for row, x, y in zip(found, *places, strict=True):
            if outcome == "wrong" and "%" in row["words"]:
                amount = row["words"].partition("%")[0] + "%"
                ax.annotate(amount, (x, y), xytext=(8, -3), textcoords="offset points", fontsize=7)
    ax.set_xticks(range(len(tools)), labels=tools)
    ax.set_yticks(range(len(keys)), labels=[one.title.replace("`", "") for one in HAZARDS.values()], fontsize=8)
    ax.set_xlim(-0.4, len(tools) - 0.2)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis="y", color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    wrong = ", ".join(
        f"{tool} {sum(row['outcome'] == 'wrong' for row in rows if row['tool'] == tool)}" for tool in tools
    )
    ax.set(xlabel="tool", ylabel="hazard")
    figure.suptitle(f"Wrong without a sound, of {len(keys)}: {wrong}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def main() -> None:
    """Ask, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.json, table.md and figure.svg")
    parser.add_argument("--page", type=Path, help="also write the page of the documentation here")
    parser.add_argument("--fast", action="store_true", help="no difference: it is small as it is")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = measure(fast=arguments.fast)
    document = {
        "question": __doc__.splitlines()[0],
        "fast": arguments.fast,
        "versions": versions() | {"torch": torch.__version__},
        "hazards": {one.key: {"title": one.title, "truth": one.truth} for one in HAZARDS.values()},
        "rows": rows,
    }
    (arguments.out / "curves.json").write_text(json.dumps(document, indent=2) + "\n")
    (arguments.out / "table.md").write_text(markdown(rows))
    if arguments.page:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(page(rows))
    matplotlib.rcParams["svg.hashsalt"] = "peer_hazards"
    draw(rows).savefig(arguments.out / "figure.svg", metadata={"Date": None})
    for row in rows:
        print(f"{row['hazard']:>20}  {row['tool']:>20}  {row['outcome']:>7}  {row['words'][:90]}")


if __name__ == "__main__":
    main()
