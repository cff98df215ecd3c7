"""The fast path for chains of linear layers: equal to the generic one where it applies, out of the way elsewhere."""

import copy
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import OpenBLASController, threadpool_limits
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import weight_norm as legacy_weight_norm
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.errors import ConfigurationError
from curvature.matrices import MATRICES
from curvature.matrices.fast import dense, factor, products, threads
from curvature.matrices.fast.chain import ELEMENTWISE, chain_of
from curvature.matrices.fast.paths import fast_path
from curvature.models.losses import CrossEntropy
from oracles import distance, factor_of, hessian_and_ggn_of_half_squared_error, initialized, pseudo_huber, welsch

ROUNDING = 1e-12  # relative to the Frobenius norm: a few thousand units of rounding in float64
EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu-in-place": lambda: nn.ReLU(inplace=True),
    "leaky-relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "elu-in-place": lambda: nn.ELU(0.7, inplace=True),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(1.7),
    "gelu": nn.GELU,
    "gelu-by-tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(beta=2),
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.8),
}
NEUTRAL = {"identity": nn.Identity, "dropout": lambda: nn.Dropout(0.5)}


LOSSES = (
    "cross-entropy",
    "class-weights",
    "ignore-index",
    "label-smoothing",
    "weights-ignore-smoothing",
    "soft-targets",
    "bce",
    "mse",
    "half-squared-error",
    "pseudo-huber",
    "welsch",
)


def loss_and_targets(kind, num_examples, num_outputs, generator):
    labels = torch.randint(num_outputs, (num_examples,), generator=generator)
    reals = torch.randn(num_examples, num_outputs, generator=generator, dtype=torch.float64)
    weight = 0.2 + torch.rand(num_outputs, generator=generator, dtype=torch.float64)
    some_ignored = labels.clone()
    some_ignored[1::3] = -100
    return {
        "cross-entropy": ("cross-entropy", labels),
        "class-weights": (CrossEntropy(weight), labels),
        "ignore-index": ("cross-entropy", some_ignored),
        "label-smoothing": (CrossEntropy(label_smoothing=0.2), labels),
        "weights-ignore-smoothing": (CrossEntropy(weight, label_smoothing=0.1), some_ignored),
        "soft-targets": (CrossEntropy(weight), reals.softmax(dim=1)),
        "bce": ("bce", reals.sigmoid()),
        "mse": ("mse", reals),
        "half-squared-error": ("half-squared-error", reals),
        "pseudo-huber": (pseudo_huber, reals),
        "welsch": (welsch, reals),
    }[kind]


def matrices(problem, method):
    names = EXACT if problem.loss.likelihood else tuple(name for name in EXACT if name != "fisher")
    found = {name: MATRICES[name](problem, method=method).dense() for name in names}
    if problem.loss.likelihood:
        seeded = torch.Generator().manual_seed(3)
        found["monte_carlo_fisher"] = MATRICES["monte_carlo_fisher"](problem, 2, seeded, method=method).dense()
    return found


def assert_same_matrices(problem):
    found, expected = matrices(problem, "structured"), matrices(problem, "generic")
    for name, matrix in found.items():
        # A covariance of (nearly) equal gradients is rounding; what rounds is of the size of the second moment.
        scale = expected["empirical_fisher"] if name == "gradient_covariance" else None
        assert distance(matrix, expected[name], scale) < ROUNDING, name


def assert_same_products(problem, generator, names=("hessian", "ggn", "fisher")):
    """With one vector, and with a block of three that is cut into one, two or three parts by the size of a tangent."""
    block = torch.randn(problem.dim, 3, generator=generator, dtype=torch.float64)
    for name in names:
        if name == "fisher" and not problem.loss.likelihood:
            continue
        operator, matrix = (
            MATRICES[name](problem, method="structured"),
            MATRICES[name](problem, method="generic").dense(),
        )
        scale = torch.linalg.norm(matrix) * torch.linalg.norm(block)
        assert distance(operator @ block, matrix @ block, scale) < ROUNDING, name
        assert distance(operator @ block[:, 0], matrix @ block[:, 0], scale) < ROUNDING, name


@st.composite
def chains(draw):
    """Any chain that the fast path claims to cover: ``(module, loss, (inputs, targets), chunk_size)``."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    depth = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, 4), min_size=depth + 1, max_size=depth + 1))
    layers = []
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(fan_in, fan_out, bias=draw(st.booleans())))
        pool = {**NEUTRAL, **ACTIVATIONS} if number + 1 < depth else NEUTRAL
        behind = draw(st.lists(st.sampled_from(sorted(pool)), max_size=2))
        if any("in-place" in name for name in behind[1:]):
            behind = behind[1:]  # autograd itself refuses to overwrite what the activation before has saved
        layers += [pool[name]() for name in behind]
    module = initialized(nn.Sequential(*layers), generator)
    parameters = list(module.parameters())
    trainable = draw(st.integers(0, len(parameters) - 1))
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(number == trainable or draw(st.booleans()))
    num_examples = draw(st.sampled_from((1, 2, 5, 70)))
    inputs = torch.randn(num_examples, widths[0], generator=generator, dtype=torch.float64)
    loss, targets = loss_and_targets(draw(st.sampled_from(LOSSES)), num_examples, widths[-1], generator)
    return module, loss, (inputs, targets), draw(st.sampled_from((None, 1, 3, 64)))


@given(case=chains(), chunk_bytes=st.sampled_from((1, dense._CHUNK_BYTES)))
@settings(max_examples=50)
def test_structured_matrices_equal_generic_ones_for_every_chain(case, chunk_bytes):
    module, loss, data, chunk_size = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "_CHUNK_BYTES", chunk_bytes)
        assert_same_matrices(cv.Problem.from_module(module, loss=loss, data=data, chunk_size=chunk_size))


def deep_problem(activation, loss="cross-entropy", num_examples=6, dtype=torch.float64):
    """Linear layers 3-4-3-2, an activation (one constructor or several in a row) between each two."""
    generator = torch.Generator().manual_seed(5)
    behind = activation if isinstance(activation, tuple) else (activation,)
    module = nn.Sequential(
        nn.Linear(3, 4),
        *(build() for build in behind),
        nn.Linear(4, 3, bias=False),
        *(build() for build in behind),
        nn.Linear(3, 2),
    )
    module = initialized(module, generator)
    inputs = torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)
    loss, targets = loss_and_targets(loss, num_examples, 2, generator)
    return cv.Problem.from_module(module, loss=loss, data=(inputs, targets), dtype=dtype)


@given(case=chains(), tangent_bytes=st.sampled_from((1, products._TANGENT_BYTES)))
@settings(max_examples=30)
def test_structured_products_equal_those_with_the_generic_matrix(case, tangent_bytes):
    module, loss, data, chunk_size = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_TANGENT_BYTES", tangent_bytes)
        problem = cv.Problem.from_module(module, loss=loss, data=data, chunk_size=chunk_size)
        assert_same_products(problem, torch.Generator().manual_seed(4), names=("hessian", "ggn"))


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_products_are_the_same_however_vectors_and_examples_are_cut(name, generator):
    problem = deep_problem(nn.Tanh, num_examples=11)
    operator, expected = MATRICES[name](problem), MATRICES[name](problem, method="generic").dense()
    for columns in (1, products._COLUMNS, products._COLUMNS + 1, 3 * products._COLUMNS - 1):
        block = torch.randn(problem.dim, columns, generator=generator, dtype=torch.float64)
        assert distance(operator @ block, expected @ block) < ROUNDING
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "_TANGENT_BYTES", columns * 6 * 8 * 4)  # four examples or fewer at a time
            assert distance(operator @ block, expected @ block) < ROUNDING


def test_products_share_no_memory_with_earlier_ones_nor_with_other_threads(generator):
    problem = deep_problem(nn.Tanh, num_examples=500)
    operator = cv.hessian(problem)
    blocks = torch.randn(16, problem.dim, 7, generator=generator, dtype=torch.float64)
    alone = [operator @ block for block in blocks]
    kept = [found.clone() for found in alone]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda block: operator @ block, blocks))
    for first, copy_, again in zip(alone, kept, together, strict=True):
        assert torch.equal(first, copy_)
        assert torch.equal(first, again)


def test_pieces_are_given_that_another_thread_replaces_at_that_moment():
    class Replaced(dict):
        """Asked once, it holds nothing any more."""

        def __contains__(self, size):
            return self.pop(size, None) is not None

        def get(self, size):
            return self.pop(size, None)

    problem = deep_problem(nn.Tanh, num_examples=6)
    found = products.Products(chain_of(problem), lambda *_: None, second_order=False)
    kept = found._cut(2)
    assert [where for where, _ in kept] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    found.pieces = Replaced(found.pieces)
    assert found._cut(2) is kept


@pytest.fixture
def three_threads():
    """As on a machine with three cores, whatever this one has.

    Set by a thread that ends: while one lives that set a limit, threadpoolctl may ignore those of all others.
    """

    def use(number):
        thread = threading.Thread(target=threadpool_limits, args=(number, "blas"))
        thread.start()
        thread.join()

    usual = threads.num_threads(torch.device("cpu"))
    use(3)
    yield
    use(usual)


@pytest.mark.usefixtures("three_threads")
def test_num_threads_is_that_of_the_blas():
    assert threads.num_threads(torch.device("cpu")) == 3
    assert threads.num_threads(torch.device("meta")) == 1
    with threadpool_limits(1, user_api="blas"):
        assert threads.num_threads(torch.device("cpu")) == 1


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_work_side_by_side_is_all_done_once_in_one_order(count):
    seen = []

    def add(items, room):
        assert threads._blas_threads() == (1 if count > 1 else 3)
        assert threads.num_threads(torch.device("cpu")) == (1 if count > 1 else 3)
        seen.append((items, threading.get_ident()))
        for item in items:
            room += item

    total = torch.ones(2, dtype=torch.float64)
    threads.add_side_by_side(add, [2.0**k for k in range(count)], total)
    assert total.tolist() == [2.0**count] * 2
    assert sorted(item for items, _ in seen for item in items) == [2.0**k for k in range(count)]
    assert len(seen) == min(count, 3)
    assert all(items == sorted(items) for items, _ in seen)
    assert threads.num_threads(torch.device("cpu")) == 3


@pytest.mark.usefixtures("three_threads")
def test_the_number_of_threads_is_not_what_another_caller_leaves_for_a_moment():
    begun, may_end = threading.Event(), threading.Event()

    def add(*_):
        begun.set()
        assert may_end.wait(10)

    with ThreadPoolExecutor(2) as pool:
        busy = pool.submit(threads.add_side_by_side, add, [1, 2, 3], torch.zeros(1))
        assert begun.wait(10)
        assert threads._blas_threads() == 1
        asked = pool.submit(threads.num_threads, torch.device("cpu"))
        wait([asked], timeout=0.1)  # too early an answer is a wrong one
        may_end.set()
        busy.result(10)
        assert asked.result(10) == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_of_one_thread_is_raised_after_all_have_ended(bad):
    ended = []

    def add(items, _):
        if bad in items:
            raise ValueError("this one")
        time.sleep(0.05)
        ended.append(items)

    with pytest.raises(ValueError, match="this one"):
        threads.add_side_by_side(add, list(range(6)), torch.zeros(1))
    assert len(ended) == 2
    assert threads.num_threads(torch.device("cpu")) == 3


@pytest.mark.usefixtures("three_threads")
def test_products_by_several_threads_are_those_by_one_and_always_the_same_bits(generator):
    problem = deep_problem(nn.Tanh, num_examples=500)
    operator = cv.hessian(problem)
    block = torch.randn(problem.dim, 13, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_TANGENT_BYTES", 2**14)
        several = operator @ block
        assert all(torch.equal(operator @ block, several) for _ in range(10))
        with ThreadPoolExecutor(4) as pool:  # the limits of the BLAS are held here, so none of these can set them
            assert all(distance(found, several) < 1e-14 for found in pool.map(lambda _: operator @ block, range(12)))
        with threadpool_limits(1, user_api="blas"):
            assert distance(operator @ block, several) < 1e-14
    assert threads.num_threads(torch.device("cpu")) == 3


def test_products_in_several_threads_are_the_same_bits_where_nobody_holds_the_limits(generator):
    problem = deep_problem(nn.Tanh, num_examples=500)
    operator = cv.hessian(problem)
    block = torch.randn(problem.dim, 13, generator=generator, dtype=torch.float64)
    before = threads.num_threads(torch.device("cpu"))
    try:
        threads._blas().limit(limits=3)
        if release := getattr(OpenBLASController, "clear_controlling_thread", None):
            release(force=True)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
            patch.setattr(products, "_TANGENT_BYTES", 2**14)
            several = operator @ block
            assert all(torch.equal(found, several) for found in pool.map(lambda _: operator @ block, range(60)))
        assert threads.num_threads(torch.device("cpu")) == 3
    finally:
        threads._blas().limit(limits=before)
        if release:
            release(force=True)


def test_work_is_not_shared_where_another_thread_holds_the_limits_of_the_blas():
    """Each thread would have a whole BLAS, on the same cores: measured eleven times slower."""
    seen = []

    def add(items, _):
        seen.append((len(items), threads.num_threads(torch.device("cpu"))))

    with threadpool_limits(3, user_api="blas"), ThreadPoolExecutor(1) as pool:
        pool.submit(threads.add_side_by_side, add, list(range(6)), torch.zeros(1)).result()
    held = hasattr(OpenBLASController, "clear_controlling_thread")
    assert seen == ([(6, 3)] if held else [(2, 1)] * 3)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("columns", [1, 16])
def test_products_in_several_threads_take_the_memory_that_plans_count(columns, generator):
    module = nn.Sequential(nn.Linear(100, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 3)).double()
    data = torch.randn(300, 100, generator=generator, dtype=torch.float64), torch.arange(300) % 3
    operator = cv.hessian(cv.Problem.from_module(module, loss="cross-entropy", data=data))
    block = torch.randn(operator.dim, columns, generator=generator, dtype=torch.float64)
    process, sizes, ended = psutil.Process(), [], threading.Event()

    def watch():
        while not ended.wait(0.001):
            sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    before = process.memory_info().rss
    watcher.start()
    product = operator @ block
    ended.set()
    watcher.join()
    assert max(sizes) - before < operator.routes.products.memory(columns) + product.nbytes


def test_a_thread_that_shares_work_does_not_share_its_own():
    shared = threads._pool(1).submit(threads.num_threads, torch.device("cpu"))
    with threads._turns():
        assert shared.result(timeout=10) == 1


def test_threads_that_cut_in_other_sizes_do_not_disturb_each_other():
    class Disturbed(products.Products):
        def __setattr__(self, name, value):
            super().__setattr__(name, value if name != "pieces" else {7: []})  # another thread was there right after

    problem = deep_problem(nn.Tanh, num_examples=50)
    built = Disturbed(chain_of(problem), lambda *_: None, second_order=False)
    assert len(built._cut(10)) == 5


@pytest.mark.parametrize("method", ["structured", "generic"])
def test_a_block_without_columns_has_a_product_without_columns(method):
    operator = cv.hessian(deep_problem(nn.Tanh), method=method)
    assert (operator @ torch.zeros(operator.dim, 0, dtype=torch.float64)).shape == (operator.dim, 0)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_products_work_in_a_forked_child():
    def work():
        total = torch.zeros(1)
        threads.add_side_by_side(lambda items, room: room.add_(sum(items)), [1, 2, 3], total)
        return int(total)

    assert work() == 6
    with threads._turns():  # nobody gives this one back in the child
        child = os.fork()
        if not child:
            os._exit(work())
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads that it does not have")
    assert os.waitstatus_to_exitcode(status) == 6


@pytest.mark.parametrize("frozen", [(), ("0.weight", "0.bias"), ("2.weight",), ("0.bias", "2.bias")])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_multiplications_of_a_product_are_counted(name, frozen, generator, monkeypatch):
    module = deep_problem(nn.Tanh).model
    for at, parameter in module.named_parameters():
        parameter.requires_grad_(at not in frozen)
    data = torch.randn(9, 3, generator=generator, dtype=torch.float64), torch.randint(2, (9,), generator=generator)
    operator = MATRICES[name](cv.Problem.from_module(module, loss="cross-entropy", data=data))
    block = torch.randn(operator.dim, 1, generator=generator, dtype=torch.float64)
    operator @ block  # what is computed once
    counted = []
    multiply = products.matmul

    def counting(left, right, out=None):
        found = multiply(left, right, out=out)
        counted.append(found.numel() * left.shape[-1])
        return found

    monkeypatch.setattr(products, "matmul", counting)
    operator @ block
    assert operator.routes.products.multiplications == sum(counted)


def test_every_activation_of_the_whitelist_is_tested_here():
    assert {type(build()) for build in ACTIVATIONS.values()} == set(ELEMENTWISE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_gives_the_generic_matrices_and_products(activation):
    problem = deep_problem(ACTIVATIONS[activation])
    assert_same_matrices(problem)
    assert_same_products(problem, torch.Generator().manual_seed(4))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_gives_the_generic_matrices_and_products(loss):
    problem = deep_problem(nn.Tanh, loss=loss)
    assert_same_matrices(problem)
    assert_same_products(problem, torch.Generator().manual_seed(4))


@pytest.mark.parametrize("between", [(), (nn.Tanh, nn.Softplus), (nn.Identity,), (nn.Dropout, nn.GELU)])
def test_no_activation_and_two_in_a_row_give_the_generic_matrices(between):
    assert_same_matrices(deep_problem(between))


@pytest.mark.parametrize("num_examples", [1, 31, 32, 33, 65])
def test_cutting_the_data_into_chunks_changes_nothing(num_examples, monkeypatch):
    problem = deep_problem(nn.Tanh, num_examples=num_examples)
    whole = matrices(problem, "structured")
    monkeypatch.setattr(dense, "_CHUNK_BYTES", 1)  # then 32 examples at a time
    for name, matrix in matrices(problem, "structured").items():
        assert distance(matrix, whole[name], whole["empirical_fisher"] + whole["ggn"]) < ROUNDING, name


def test_single_precision_matrices_are_right_to_single_precision():
    single = deep_problem(nn.Tanh, dtype=torch.float32)
    double = deep_problem(nn.Tanh)
    tolerance = 100 * torch.finfo(torch.float32).eps
    found, expected = matrices(single, "structured"), matrices(double.at(single.weights.double()), "generic")
    for name in EXACT:
        assert found[name].dtype == torch.float32
        assert distance(found[name].double(), expected[name]) < tolerance, name


FACTORED = ("ggn", "fisher", "empirical_fisher", "gradient_covariance", "monte_carlo_fisher")
# Of a user's loss neither convexity (a factor of the GGN) nor a likelihood (a Fisher) is known.
WITH_FACTOR = [
    (name, loss)
    for name in FACTORED
    for loss in LOSSES
    if loss not in ("pseudo-huber", "welsch") or name in ("empirical_fisher", "gradient_covariance")
]


@pytest.mark.parametrize(("name", "loss"), WITH_FACTOR)
def test_factor_blocks_equal_the_generic_ones_column_by_column(name, loss):
    problem = deep_problem(nn.Tanh, loss=loss)

    def columns(method):
        drawn = (2, torch.Generator().manual_seed(3)) if name == "monte_carlo_fisher" else ()
        return factor_of(MATRICES[name](problem, *drawn, method=method))

    assert distance(columns("structured"), columns("generic")) < ROUNDING


def test_factor_blocks_multiply_out_to_the_contracted_matrix():
    generator = torch.Generator().manual_seed(0)
    module = initialized(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), generator)
    data = torch.randn(9, 3, generator=generator, dtype=torch.float64), torch.arange(9) % 4
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=data)
    operator = cv.fisher(problem, method="structured")  # four outputs: the dense form is contracted, not accumulated
    columns = factor_of(operator)
    assert distance(operator.dense(), columns @ columns.T) < ROUNDING


@given(case=chains(), name=st.sampled_from(FACTORED), cache_bytes=st.sampled_from((1, factor._CACHE_BYTES)))
@settings(max_examples=40)
def test_the_gram_matrix_without_the_factor_is_that_of_the_generic_factor(case, name, cache_bytes):
    module, loss, data, chunk_size = case
    problem = cv.Problem.from_module(module, loss=loss, data=data, chunk_size=chunk_size)
    if name in ("fisher", "monte_carlo_fisher", "ggn") and (not problem.loss.likelihood or not problem.loss.convex):
        return
    fast, slow = (
        MATRICES[name](problem, *((2, torch.Generator().manual_seed(3)) if "monte" in name else ()), method=method)
        for method in ("structured", "generic")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factor, "_CACHE_BYTES", cache_bytes)
        found = fast.gram()
    columns = factor_of(slow)
    scale = cv.empirical_fisher(problem).dense() if name == "gradient_covariance" else None
    assert distance(found, columns.T @ columns, scale) < ROUNDING
    assert distance(slow.gram(), columns.T @ columns, scale) < ROUNDING


# ------------------------------------------------------------------------------ what is a chain, and what is not


def flat_and_other(kind):
    """``(plain chain on (N, 4) inputs, the same function written otherwise, its inputs' shape)``."""
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2))
    first, tanh, second, sigmoid, third = plain
    other, shape = {
        "nested": (
            nn.Sequential(nn.Sequential(first, tanh), nn.Sequential(nn.Sequential(second), sigmoid, third)),
            (4,),
        ),
        "nested-empty": (nn.Sequential(nn.Sequential(), first, tanh, second, nn.Sequential(sigmoid), third), (4,)),
        "flatten-first": (nn.Sequential(nn.Flatten(), *plain), (2, 2)),
        "flatten-deep": (nn.Sequential(nn.Dropout(), nn.Sequential(nn.Flatten(), *plain)), (1, 2, 2)),
        "flatten-idle": (nn.Sequential(nn.Flatten(), *plain), (4,)),
        "identity-last": (nn.Sequential(*plain, nn.Identity()), (4,)),
    }[kind]
    return initialized(plain, torch.Generator().manual_seed(1)), other.eval(), shape


@pytest.mark.parametrize(
    "kind", ["nested", "nested-empty", "flatten-first", "flatten-deep", "flatten-idle", "identity-last"]
)
def test_nesting_and_a_leading_flatten_are_seen_through(kind):
    plain, other, shape = flat_and_other(kind)
    inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets = torch.arange(7) % 2
    expected = matrices(cv.Problem.from_module(plain, loss="cross-entropy", data=(inputs, targets)), "generic")
    problem = cv.Problem.from_module(other, loss="cross-entropy", data=(inputs.view(7, *shape), targets))
    assert chain_of(problem) is not None
    for name, matrix in matrices(problem, "structured").items():
        assert distance(matrix, expected[name]) < ROUNDING, name


def test_a_single_linear_layer_is_a_chain():
    module = initialized(nn.Linear(3, 2), torch.Generator().manual_seed(1))
    inputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, torch.arange(7) % 2))
    assert chain_of(problem) is not None
    assert_same_matrices(problem)


@pytest.mark.parametrize("form", [weight_norm, legacy_weight_norm])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_normalized_layers_are_a_chain_in_their_own_chart(form, name):
    module = initialized(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.Generator().manual_seed(1))
    form(module[0])
    form(module[2])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3)
    inputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, torch.arange(7) % 2))
    found = cv.pullback(MATRICES[name](problem, method="structured"), problem.chart).dense()
    expected = cv.pullback(MATRICES[name](problem, method="generic"), problem.chart).dense()
    assert problem.chart.gauge == "checkpoint"
    assert distance(found, expected) < ROUNDING


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))

    def forward(self, inputs):
        return inputs + self.body(inputs)


class DoublingSequential(nn.Sequential):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class CubicLinear(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) ** 3


class Cube(nn.Identity):
    def forward(self, inputs):
        return inputs**3


class Exponential(nn.Module):
    def forward(self, raw):
        return raw.exp()


def tied():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    return module


def reused():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def reused_in_containers():
    layer = nn.Linear(3, 3)
    return nn.Sequential(nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer))


def hooked(where, kind):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    owner = module if where == "container" else module[0]
    if kind == "before":
        owner.register_forward_pre_hook(lambda _module, inputs: (inputs[0] ** 2,))
    else:
        owner.register_forward_hook(lambda _module, _inputs, output: output**2)
    return module


def parametrized():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    parametrize.register_parametrization(module[0], "weight", Exponential())
    return module


# Builder and shape of one input; three outputs.
NOT_CHAINS = {
    "tied-weights": (tied, (3,)),
    "reused-layer": (reused, (3,)),
    "reused-across-containers": (reused_in_containers, (3,)),
    "hook-before-a-layer": (lambda: hooked("layer", "before"), (3,)),
    "hook-behind-a-layer": (lambda: hooked("layer", "behind"), (3,)),
    "hook-before-the-container": (lambda: hooked("container", "before"), (3,)),
    "hook-behind-the-container": (lambda: hooked("container", "behind"), (3,)),
    "parametrized": (parametrized, (3,)),
    "softmax-inside": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 3)), (3,)),
    "layer-norm-inside": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)), (3,)),
    "batch-norm-inside": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), (3,)),
    "prelu-inside": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 3)), (3,)),
    "glu-inside": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 3)), (3,)),
    "residual": (Residual, (3,)),
    "residual-inside": (lambda: nn.Sequential(nn.Linear(3, 3), Residual()), (3,)),
    "container-of-its-own": (lambda: DoublingSequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (3,)),
    "layer-of-its-own": (lambda: nn.Sequential(CubicLinear(3, 4), nn.Linear(4, 3)), (3,)),
    "trailing-activation": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh()), (3,)),
    "leading-activation": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (3,)),
    "flatten-in-the-middle": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)),
        (2, 3),
    ),
    "positions": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten()), (2, 2)),
}
# Whether these are taken as chains is a matter of taste, as long as the matrices are right.
TRAPS = {
    "reused-layer-and-another": (lambda: nn.Sequential(*reused(), nn.Tanh(), nn.Linear(3, 3)), (3,)),
    "reused-activation": (
        lambda: (act := nn.Tanh()) and nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 3), act, nn.Linear(3, 3)),
        (3,),
    ),
    "identity-of-its-own": (lambda: nn.Sequential(nn.Linear(3, 4), Cube(), nn.Linear(4, 3)), (3,)),
    "partial-flatten": (lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(3, 2)), (2, 1, 3)),
}


def module_and_data(kind):
    build, shape = (NOT_CHAINS | TRAPS)[kind]
    generator = torch.Generator().manual_seed(11)
    module = initialized(build(), generator)
    inputs = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    shape = module(inputs).shape
    return module, inputs, torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", [*NOT_CHAINS, *TRAPS])
def test_other_models_have_the_matrices_of_autograd(kind):
    module, inputs, targets = module_and_data(kind)
    # A copy, since functional_call does not put back the parameters of a layer that is used twice.
    hessian, ggn = hessian_and_ggn_of_half_squared_error(copy.deepcopy(module), inputs, targets)
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets))
    assert distance(cv.hessian(problem).dense(), hessian) < ROUNDING
    assert distance(cv.ggn(problem).dense(), ggn) < ROUNDING


@pytest.mark.parametrize("kind", NOT_CHAINS)
@pytest.mark.parametrize("name", EXACT)
def test_the_structured_method_is_refused_for_other_models(kind, name):
    module, inputs, targets = module_and_data(kind)
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets))
    assert fast_path(problem) is None
    with pytest.raises(ConfigurationError, match=r"method='structured' needs a torch\.nn\.Sequential of Linear"):
        MATRICES[name](problem, method="structured")


def test_integer_inputs_are_not_taken_as_a_chain():
    generator = torch.Generator().manual_seed(0)
    module = initialized(nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2)), generator)
    data = torch.randint(4, (5, 2), generator=generator), torch.randn(5, 2, generator=generator, dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="mse", data=data)
    assert fast_path(problem) is None


def test_unknown_methods_are_refused():
    with pytest.raises(ConfigurationError, match="method must be 'auto', 'structured' or 'generic', got 'fast'"):
        cv.hessian(deep_problem(nn.Tanh), method="fast")
