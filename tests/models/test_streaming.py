"""Streamed data: the same numbers as in memory, one chunk at a time, and refused if two passes differ."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import curvature as cv
from curvature.models.data import open_stream
from curvature.models.data.checksums import checksums
from curvature.models.data.stream import Stream
from curvature.natural_gradient import alignments

COUNT = 90
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(COUNT, 6, generator=GENERATOR)
Y = torch.randint(3, (COUNT,), generator=GENERATOR)
IMAGES = torch.randn(COUNT, 1, 5, 5, generator=GENERATOR)


class Made(IterableDataset):
    """An iterable dataset whose passes a function makes; workers divide it."""

    def __init__(self, make: Callable[[], Iterator[Any]], *, divides: bool = True) -> None:
        self.make, self.divides = make, divides

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        for number, item in enumerate(self.make()):
            if worker is None or not self.divides or number % worker.num_workers == worker.id:
                yield item


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def cnn() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(18, 3))


def items(inputs: Any = X, targets: Any = Y) -> Iterator[Any]:
    yield from zip(inputs, targets, strict=True)


def pair(module: nn.Module, inputs: Any, targets: Any, loss: Any = "cross-entropy", **options: Any) -> tuple:
    """The same problem in memory and streamed, both in chunks of 7."""
    data = Made(lambda: ((cut(inputs, n), cut(targets, n)) for n in range(COUNT)))
    in_memory = cv.Problem.from_module(module, loss=loss, data=(inputs, targets), chunk_size=7, **options)
    return in_memory, cv.Problem.from_module(module, loss=loss, data=data, chunk_size=7, stream=True, **options)


def cut(structure: Any, index: int) -> Any:
    if isinstance(structure, dict):
        return {name: part[index] for name, part in structure.items()}
    return structure[index]


def agree(value: Tensor, expected: Tensor) -> bool:
    return bool((value - expected).abs().max() <= 1e-13 * expected.abs().max())


MATRICES: list[Any] = [
    cv.hessian,
    cv.ggn,
    cv.fisher,
    lambda problem: cv.monte_carlo_fisher(problem, 2),
    cv.empirical_fisher,
    lambda problem: cv.empirical_fisher(problem, scale="fisher"),
    cv.gradient_covariance,
]
NAMES = ["hessian", "ggn", "fisher", "monte-carlo", "empirical", "empirical-scaled", "covariance"]


@pytest.mark.parametrize("matrix", MATRICES, ids=NAMES)
@pytest.mark.parametrize(("module", "inputs"), [(mlp, X), (cnn, IMAGES)], ids=["mlp", "cnn"])
def test_a_streamed_matrix_is_that_of_the_data_in_memory(matrix: Any, module: Any, inputs: Tensor) -> None:
    in_memory, streamed = pair(module(), inputs, Y)
    assert agree(matrix(streamed).dense(), matrix(in_memory).dense())


@pytest.mark.parametrize("matrix", [cv.hessian, cv.ggn, cv.gradient_covariance], ids=["hessian", "ggn", "covariance"])
def test_a_spectrum_of_streamed_data_passes_its_self_checks_and_has_the_same_rank(matrix: Any) -> None:
    in_memory, streamed = pair(mlp(), X, Y)
    spectrum, expected = cv.spectrum(matrix(streamed)), cv.spectrum(matrix(in_memory))
    np.testing.assert_allclose(spectrum.eigenvalues, expected.eigenvalues, atol=1e-14)
    assert spectrum.rank == expected.rank
    chart = cv.WeightNorm()
    moved = [cv.pullback(matrix(problem), chart).dense() for problem in (streamed, in_memory)]
    assert agree(*moved)


def test_value_and_gradient_and_iterative_results_are_those_of_the_data_in_memory() -> None:
    in_memory, streamed = pair(mlp(), X, Y, weight_decay=0.1)
    assert streamed.value() == pytest.approx(in_memory.value(), rel=1e-14)
    other = in_memory.weights + 0.1
    assert agree(streamed.gradient(other), in_memory.gradient(other))
    matrices = cv.hessian(streamed), cv.hessian(in_memory)
    top, expected = (cv.extremal_eigenvalues(matrix, num_largest=2) for matrix in matrices)
    np.testing.assert_allclose(top.largest, expected.largest, rtol=1e-10)
    trace, of_memory = (cv.trace(matrix, num_products=12, method="xtrace") for matrix in matrices)
    assert trace.value == pytest.approx(of_memory.value, rel=1e-10)
    density, of_memory = (cv.spectral_density(matrix, num_probes=2, num_matvecs=8) for matrix in matrices)
    np.testing.assert_allclose(density.nodes, of_memory.nodes, rtol=1e-8, atol=1e-8)


def test_class_weights_ignored_targets_tokens_dictionaries_and_the_loss_of_the_model_stream() -> None:
    weight = torch.tensor([0.5, 2.0, 0.0])
    ignored = torch.where(torch.arange(COUNT) % 5 == 0, -100, Y)
    ignored[14:21] = -100  # a whole chunk
    in_memory, streamed = pair(mlp(), X, ignored, nn.CrossEntropyLoss(weight=weight))
    assert streamed.denominator == pytest.approx(in_memory.denominator, rel=1e-14)
    for matrix in (cv.hessian, cv.empirical_fisher):
        assert agree(matrix(streamed).dense(), matrix(in_memory).dense())

    tokens = torch.randint(6, (COUNT, 4), generator=GENERATOR)
    labels = torch.randint(3, (COUNT, 4), generator=GENERATOR)
    labels[:, -1] = -100
    model = nn.Sequential(nn.Embedding(6, 2), nn.Linear(2, 3))  # logits (N, T, C)
    in_memory, streamed = pair(model, tokens, labels)
    assert streamed.total == in_memory.total == 3 * COUNT
    assert agree(cv.ggn(streamed).dense(), cv.ggn(in_memory).dense())

    class OwnLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return (self.layer(x).squeeze(-1) * scale).square().mean()

    named = {"x": X, "scale": torch.arange(1.0, COUNT + 1)}
    data = DataLoader(Made(lambda: (cut(named, n) for n in range(COUNT))), batch_size=5)
    own = cv.Problem.from_module(OwnLoss(), loss="model", data=data, chunk_size=7, stream=True)
    expected = cv.Problem.from_module(OwnLoss().eval(), loss="model", data=named, chunk_size=7).at(own.weights)
    assert agree(cv.hessian(own).dense(), cv.hessian(expected).dense())


class ByIndex(Dataset):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


FORMS: dict[str, Callable[[], Any]] = {
    "small batches": lambda: DataLoader(Made(items), batch_size=3),
    "large batches": lambda: DataLoader(Made(items), batch_size=30),
    "batches without a size": lambda: DataLoader(
        Made(lambda: ((X[a:b], Y[a:b]) for a, b in ((0, 2), (2, 19), (19, COUNT)))), batch_size=None
    ),
    "one worker": lambda: DataLoader(Made(items), batch_size=4, num_workers=1),
    "by index": ByIndex,
    "shuffled, by index": lambda: DataLoader(ByIndex(), batch_size=4, shuffle=True),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "list of batches": lambda: [(X[:30], Y[:30]), (X[30:], Y[30:])],
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_data_is_read_in_its_order(form: str) -> None:
    streamed = cv.Problem.from_module(mlp(), loss="cross-entropy", data=FORMS[form](), chunk_size=7, stream=True)
    rows = torch.cat([streamed.inputs[rows] for rows in streamed.chunks()])
    assert torch.equal(rows, X.double())
    assert torch.equal(streamed.targets[3:9], Y[3:9])


def test_two_workers_that_divide_the_examples_stream_and_those_that_repeat_them_are_refused() -> None:
    loader = DataLoader(Made(items), batch_size=4, num_workers=2)
    streamed = cv.Problem.from_module(mlp(), loss="cross-entropy", data=loader, chunk_size=7, stream=True)
    in_memory = cv.Problem.from_module(mlp(), loss="cross-entropy", data=(X, Y))
    assert agree(streamed.gradient(), in_memory.gradient())
    repeated = DataLoader(Made(items, divides=False), batch_size=4, num_workers=2)
    with pytest.raises(cv.InputError, match=r"each of the 2 workers of the data loader .*get_worker_info"):
        cv.Problem.from_module(mlp(), loss="cross-entropy", data=repeated, stream=True)


def test_a_memory_mapped_file_is_read_in_parts(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    streamed = cv.Problem.from_module(mlp(), loss="cross-entropy", data=(mapped, Y), chunk_size=7, stream=True)
    assert torch.equal(streamed.inputs[20:41], X[20:41].double())


def test_a_product_reads_the_data_once() -> None:
    passes = []

    def counted() -> Iterator[Any]:
        passes.append(1)
        yield from items()

    data = Made(counted)
    streamed = cv.Problem.from_module(mlp(), loss="cross-entropy", data=data, chunk_size=7, stream=True)
    assert len(passes) == 2
    streamed.gradient()
    assert len(passes) == 3
    cv.hessian(streamed) @ torch.ones(streamed.dim, 5, dtype=torch.float64)
    assert len(passes) == 4


class CountedPasses:
    """A problem of streamed arrays that are read in five chunks, and how often they were read."""

    def __init__(self, monkeypatch: Any) -> None:
        self.count = 0
        start = Stream._start

        def counted(stream: Stream) -> Any:
            self.count += 1
            return start(stream)

        monkeypatch.setattr(Stream, "_start", counted)
        x = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
        self.problem = cv.Problem.from_module(
            mlp(), loss="cross-entropy", data=(x, x[:, :3].argmax(1)), chunk_size=64, stream=True
        )

    def during(self, work: Callable[[], Any]) -> int:
        before = self.count
        work()
        return self.count - before


@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher", "gradient_covariance"])
def test_a_plan_counts_the_passes_over_streamed_data(name: str, monkeypatch: Any) -> None:
    passes = CountedPasses(monkeypatch)

    def matrix(chart: Any = None) -> Any:
        made = getattr(cv, name)(passes.problem)
        return made if chart is None else cv.pullback(made, chart)

    A = matrix()
    assert passes.during(lambda: cv.plan(A)) <= 2  # one timed product, which finds the mean of a covariance first
    plan = cv.plan(A)
    assert f"reads the data about {plan.passes} times" in str(plan)
    assert abs(passes.during(lambda: cv.spectrum(A)) - plan.passes) <= 2
    density = cv.plan(matrix(), "density", method="slq", counts=cv.Counts(num_probes=3, num_matvecs=10))
    work = matrix()
    spent = passes.during(lambda: cv.spectral_density(work, num_probes=3, num_matvecs=10))
    assert abs(spent - density.passes) <= 2
    moved = matrix(cv.WeightNorm())
    assert abs(passes.during(lambda: cv.spectrum(moved)) - cv.plan(moved).passes) <= 3


def test_the_passes_of_lanczos_are_those_of_its_products(monkeypatch: Any) -> None:
    passes = CountedPasses(monkeypatch)
    A = cv.hessian(passes.problem)
    plan = cv.plan(A, "extremal", method="lanczos", counts=cv.Counts(num_eigenvalues=2))
    top = []
    spent = passes.during(lambda: top.append(cv.extremal_eigenvalues(A, num_largest=2, num_smallest=2)))
    assert abs(spent - top[0].num_products - 7) <= 1
    assert plan.passes == pytest.approx(spent, rel=0.6)  # the number of products is an estimate


def test_data_in_memory_and_few_chunks_are_not_counted() -> None:
    in_memory, streamed = pair(mlp(), X, Y)
    assert cv.plan(cv.ggn(in_memory)).passes == 0
    assert "reads" not in str(cv.plan(cv.ggn(in_memory)))
    assert cv.plan(cv.ggn(streamed)).passes > 0
    few = cv.Problem.from_module(mlp(), loss="cross-entropy", data=(X, Y), chunk_size=COUNT, stream=True)
    assert cv.plan(cv.ggn(few)).passes == 0  # its graph is kept between products


def test_a_function_of_streamed_data_has_the_matrices_of_the_data_in_memory() -> None:
    start, x, counts = {"beta": torch.full((6,), 0.1)}, X.double(), Y.double()

    def poisson(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(x @ p["beta"]) - y * (x @ p["beta"])

    def scores(p: Any, x: Tensor) -> Tensor:
        return torch.stack([x @ p["beta"], -(x @ p["beta"])], dim=1)

    data = DataLoader(Made(lambda: items(x, counts)), batch_size=4)
    bare = cv.Problem.from_function(poisson, start, data, chunk_size=7, stream=True)
    beta = start["beta"].double()
    assert agree(cv.hessian(bare).dense(), x.T @ (torch.exp(x @ beta)[:, None] * x) / COUNT)
    residual = torch.exp(x @ beta) - counts
    assert agree(cv.empirical_fisher(bare).dense(), x.T @ (residual.square()[:, None] * x) / COUNT)
    labels = (Y > 0).long()
    of_outputs = cv.Problem.from_function(
        "cross-entropy", start, (x, labels), outputs=scores, chunk_size=7, stream=True
    )
    share = torch.sigmoid(2 * x @ beta)
    assert agree(cv.ggn(of_outputs).dense(), x.T @ ((4 * share * (1 - share))[:, None] * x) / COUNT)


def test_functions_that_cannot_be_streamed_are_refused_with_the_reason() -> None:
    start = torch.zeros(6)
    with pytest.raises(cv.InputError, match="it must return one number for each example"):
        cv.Problem.from_function(lambda w, x, y: (x @ w - y).square().mean(), start, (X, Y), stream=True)
    with pytest.raises(cv.ConfigurationError, match=r"has no data\. Leave stream=True out"):
        cv.Problem.from_function(lambda w: w.square().sum(), start, stream=True)
    with pytest.raises(cv.InputError, match="packed data are one example"):
        cv.Problem.from_function(lambda w, x, y: (x @ w - y).square(), start, cv.Packed(X, Y), stream=True)


def test_a_study_that_trains_refuses_streamed_data() -> None:
    _, streamed = pair(mlp(), X, Y)
    with pytest.raises(cv.ConfigurationError, match="Build the problem without stream=True"):
        cv.study(streamed, epochs=2)


@pytest.mark.parametrize("count", [5, 63, 64, 65, 90])
def test_a_stream_may_end_after_its_first_examples(count: int) -> None:
    for data in ((X, Y), DataLoader(Made(items), batch_size=4)):
        stream = open_stream(data, num_examples=count)
        inputs, _ = stream.tensors()
        assert len(inputs) == stream.count() == count
        assert torch.equal(inputs[count - 5 : count], X[count - 5 : count])
        assert stream.sha256() == open_stream((X[:count], Y[:count])).sha256()
    assert open_stream((X, Y), num_examples=1000).count() == COUNT


def test_memory_is_bounded_by_the_chunk_and_not_by_the_data() -> None:
    count, width = 800, 2000  # 13 MB in float64

    def generated() -> Iterator[Any]:
        for number in range(count):
            yield np.full(width, number / count), np.float64(number % 3)

    model = nn.Linear(width, 1)
    data = Made(lambda: ((x, y[None]) for x, y in generated()))
    tracemalloc.start()  # counts NumPy, which makes the examples, and not torch
    streamed = cv.Problem.from_module(model, loss="mse", data=data, chunk_size=50, stream=True)
    gradient = streamed.gradient()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    x = torch.arange(count, dtype=torch.float64) / count
    weight, bias = streamed.weights[:-1], streamed.weights[-1]
    residual = x * weight.sum() + bias - torch.arange(count) % 3
    assert gradient[0] == pytest.approx(float(2 * (residual * x).mean()), rel=1e-12)


def passes_that_differ(kind: str) -> Any:
    """A dataset whose second pass differs, in one way."""
    calls = [0]

    def make() -> Iterator[Any]:
        calls[0] += 1
        later = calls[0] > 1
        if kind == "order":
            order = torch.randperm(COUNT)
            yield from zip(X[order], Y[order], strict=True)
        elif kind == "augmentation":
            yield from ((x + torch.randn(6), y) for x, y in items())
        elif kind == "numpy":
            yield from ((x + np.random.rand(), y) for x, y in items())  # noqa: NPY002
        elif kind == "one bit":
            changed = X.clone()
            changed[33, 5] = torch.nextafter(X[33, 5], torch.tensor(9.0)) if later else X[33, 5]
            yield from items(changed)
        elif kind == "target":
            yield from items(X, torch.where(torch.arange(COUNT) == 8, (Y + later) % 3, Y))
        elif kind == "fewer":
            yield from items(X[: 35 if later else COUNT], Y[: 35 if later else COUNT])
        else:
            yield from items(X[: COUNT if later else 35], Y[: COUNT if later else 35])

    return Made(make)


REFUSED = {
    "order": "example 0 of the dataset .* another one in pass 2 .* same examples in another order",
    "augmentation": r"example 0 .* draws random numbers \(torch\)",
    "numpy": r"example 0 .* draws random numbers \(numpy\)",
    "one bit": "example 33 .* Its numbers change",
    "target": "example 8 .* Its numbers change",
    "fewer": "has 90 examples in its first pass and 35 in pass 2",
    "more": "has 35 examples in its first pass and more in pass 2",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_passes_that_differ_are_refused_with_the_first_example_and_the_cause(kind: str) -> None:
    module, before = mlp(), torch.get_rng_state()
    with pytest.raises(cv.InputError, match=REFUSED[kind]):
        cv.Problem.from_module(module, loss="cross-entropy", data=passes_that_differ(kind), chunk_size=7, stream=True)
    assert torch.equal(before, torch.get_rng_state())


class Augmented(ByIndex):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + torch.randn(6), Y[index]


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["global", "of the loader"])
def test_random_transforms_in_workers_are_refused_whatever_generator_seeds_them(generator: Any) -> None:
    loader = DataLoader(Augmented(), batch_size=4, num_workers=1, generator=generator)
    with pytest.raises(cv.InputError, match=r"example 0 .* workers of a loader get new seeds"):
        cv.Problem.from_module(mlp(), loss="cross-entropy", data=loader, chunk_size=7, stream=True)


def test_a_change_in_a_later_pass_is_an_error_of_the_product() -> None:
    targets = Y.clone()
    data = Made(lambda: items(X, targets.clone()))
    streamed = cv.Problem.from_module(mlp(), loss="cross-entropy", data=data, chunk_size=7, stream=True)
    targets[20] = (targets[20] + 1) % 3
    with pytest.raises(cv.InputError, match=r"example 20 of the dataset .* pass 3"):
        streamed.gradient()


def test_a_dataset_that_seeds_itself_streams() -> None:
    def seeded() -> Iterator[Any]:
        torch.manual_seed(5)
        yield from ((x + torch.randn(6), y) for x, y in items())

    module, before = mlp(), torch.get_rng_state()
    streamed = cv.Problem.from_module(module, loss="cross-entropy", data=Made(seeded), chunk_size=7, stream=True)
    torch.manual_seed(5)
    expected = torch.stack([x + torch.randn(6) for x in X])
    assert torch.equal(streamed.inputs[:COUNT], expected.double())
    torch.set_rng_state(before)
    streamed.gradient()
    assert torch.equal(before, torch.get_rng_state())


def test_a_loader_that_uses_the_memory_of_a_batch_again_is_copied() -> None:
    def reused() -> Iterator[Any]:
        held = torch.empty(4, 6)
        for start in range(0, 40, 4):
            held.copy_(X[start : start + 4])
            yield held, Y[start : start + 4]

    loader = DataLoader(Made(reused), batch_size=None)
    streamed = cv.Problem.from_module(mlp(), loss="cross-entropy", data=loader, chunk_size=10, stream=True)
    assert torch.equal(torch.cat([streamed.inputs[rows] for rows in streamed.chunks()]), X[:40].double())


ROW = torch.arange(COUNT)
ONCE = iter(list(zip(X, Y, strict=True)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Made(lambda: ONCE), "can be read only once: it has 90 examples in its first pass and none in pass 2"),
        (zip(X, Y, strict=True), "zip can be read only once"),
        (Made(lambda: iter([])), "the data are empty"),
        (Made(lambda: items(X.where(ROW[:, None] != 9, torch.nan))), "NaN or infinity, first in example 9"),
        (Made(lambda: items(X, Y + 5 * (ROW == 80))), "in examples 77 to 83 of the stream: targets must be"),
        (DataLoader(Made(items), batch_size=4, drop_last=True), "leaves out an incomplete last batch"),
        (DataLoader(ByIndex(), batch_size=4, drop_last=True), "drops 2 of 90 examples"),
        (DataLoader(Made(items), batch_size=None), "one number as its targets, so it is a single example"),
        (cv.Packed(X, Y), "packed data are one example"),
        ((X[:5], Y), "one row for each example, but there are 5 inputs, 90 targets"),
        ("x.npy", "data that are streamed must be a DataLoader of batches"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused_in_words(data: Any, words: str) -> None:
    with pytest.raises(cv.InputError, match=words):
        cv.Problem.from_module(mlp(), loss="cross-entropy", data=data, chunk_size=7, stream=True)


def test_an_iterable_dataset_without_stream_is_refused_with_the_way_to_stream_it() -> None:
    for data in (Made(items), DataLoader(Made(items), batch_size=4)):
        with pytest.raises(cv.InputError, match="Pass stream=True"):
            cv.Problem.from_module(mlp(), loss="cross-entropy", data=data)


def test_what_needs_all_inputs_of_a_layer_is_refused_for_streamed_data() -> None:
    _, streamed = pair(mlp(), X, Y)
    with pytest.raises(cv.ConfigurationError, match="method='structured'"):
        cv.hessian(streamed, method="structured")
    with pytest.raises(cv.NotDefinedError, match=r"the data are streamed\. Leave stream=True"):
        alignments(streamed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool])
def test_a_checksum_sees_every_single_change_and_no_position(dtype: torch.dtype) -> None:
    rows = torch.randint(0, 2, (9, 3, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    sums = checksums([rows])
    assert (checksums([rows.flip(0)]) == sums[::-1]).all()
    for entry in range(15):
        changed = rows.clone().reshape(9, -1)
        changed[:, entry] = 1 - changed[:, entry].int()
        assert (checksums([changed.reshape(rows.shape)]) != sums).all()
    assert (checksums([rows, rows]) != checksums([rows])).all()
    assert len(np.unique(checksums([torch.randint(0, 256, (5000, 4)).double()]))) > 4990


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages cannot be given back on this system")
def test_a_mapped_file_does_not_stay_in_the_memory_of_the_process(tmp_path):
    size = 48 * 2**20
    inputs = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (384, 2**17))
    inputs[:, ::4096] = 1  # one byte of each page
    inputs.flush()
    del inputs
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r"), np.zeros(384, dtype=int)
    process = psutil.Process()
    before = process.memory_info().shared
    stream = open_stream(mapped)
    assert stream.count() == 384
    assert process.memory_info().shared - before < size / 3
    assert int(stream.read(slice(383, 384))[0].sum()) == 2**17 // 4096
