r"""Choose how to get at a spectrum before anything is computed: what fits in memory, what it costs, what it resolves.

Memory and operations are counted (``SymmetricOperator.work`` and the formulas below), passes over memory as operations;
the speeds are measured by a short pilot on the device at hand, or given as a :class:`Rates`. On an idle machine the
times are right within a factor of about three: enough to choose between methods that differ by tens, and to know
whether to wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from curvature.errors import ConfigurationError, ResourceError
from curvature.linalg.eigen import eigenvalues_of, refusal, require_factor, rounding_units, spectrum_bytes
from curvature.linalg.krylov import default_basis
from curvature.linalg.operator import SLOWER, USABLE, SymmetricOperator, free_memory, memory_words
from curvature.precision import full_precision

__all__ = ["METHODS", "Plan", "Rates", "ends", "measured_products", "pilot", "plan", "plans", "summary"]

METHODS = ("auto", "exact", "dense", "factor", "gram", "lanczos", "slq")
_WANTED = {"spectrum": (), "extremal": ("lanczos",), "density": ("slq",)}
_EXACT = ("factor", "dense")
_BY_NAME = (*_EXACT, "gram")  # the last loses digits, so it is never chosen by itself
# Measured on one thread.
_SECONDS = 0.03  # of hundreds of small calls, whatever the size: checks, null directions, the record
_QR = 1.7  # times as long as matrix products of as many operations
# Operations at the speed of eigenvalues that take as long as the passes over memory: about 20 for a number and pass.
_FORMING = 200  # for each number of a factor: computed, taken new from the system, copied, read by LAPACK
_COLLECTING = 1200  # for each number of the null directions
_PILOT_SECONDS = 0.3  # of repeated products; one slow product is not repeated


@dataclass(frozen=True)
class Rates:
    """How fast one device is, in one precision and with one number of threads.

    Attributes
    ----------
    gemm
        Floating-point operations per second of a matrix product.
    eigenvalues
        Seconds for all eigenvalues of a dense symmetric matrix, by its size.
    products
        Seconds for a product with the operator in question, by the number of columns; empty where not measured.
    """

    gemm: float
    eigenvalues: Mapping[int, float]
    products: Mapping[int, float] = field(default_factory=dict)

    def eigenvalue_seconds(self, dim: int) -> float:
        """Seconds for the eigenvalues of a ``dim x dim`` matrix: a power of the size, cubic above the largest measured.

        >>> Rates(1e9, {100: 1.0, 200: 4.0}).eigenvalue_seconds(400)
        32.0
        """
        sizes = sorted(self.eigenvalues)
        if dim >= sizes[-1]:
            return self.eigenvalues[sizes[-1]] * (dim / sizes[-1]) ** 3
        return float(np.exp(_interpolated(np.log(dim), np.log(sizes), np.log([self.eigenvalues[s] for s in sizes]))))

    def product_seconds(self, num_columns: int) -> float:
        """Seconds for products with ``num_columns`` vectors, in blocks of the size that was measured."""
        known = [columns for columns in self.products if columns <= num_columns] or [min(self.products)]
        return num_columns * self.products[max(known)] / max(known)


@dataclass(frozen=True)
class Plan:
    """One way to get at what is wanted of one matrix, with its cost.

    Attributes
    ----------
    matrix, chart, gauge, block, dim
        Of what.
    wanted
        ``"spectrum"``, ``"extremal"`` or ``"density"``.
    method
        ``"dense"``, ``"factor"``, ``"gram"``, ``"lanczos"`` or ``"slq"``.
    reason
        Why this one.
    seconds, num_bytes
        Estimated time; upper bound of the memory held at once.
    resolves
        What the result will say, and what not.
    rejected
        The other methods, each with the reason.
    """

    matrix: str
    chart: str
    gauge: str
    block: str
    dim: int
    wanted: str
    method: str
    reason: str
    seconds: float
    num_bytes: float
    resolves: str
    rejected: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        gauge = "" if self.gauge == "-" else f" ({self.gauge})"
        block = "" if self.block == "all" else f", {self.block}"
        return (
            f"{self.matrix}, {self.chart}{gauge}{block}, {self.dim} x {self.dim}: {self.method}, "
            f"{memory_words(self.num_bytes)}, about {_time(self.seconds)} ({self.reason}); gives {self.resolves}"
        )


@full_precision()
def plan(
    operator: SymmetricOperator,
    wanted: str = "spectrum",
    *,
    chart: Any = None,
    method: str = "auto",
    gradient: bool = False,
    num_eigenvalues: int = 10,
    num_probes: int = 10,
    num_matvecs: int = 60,
    max_memory: float | None = None,
    max_seconds: float | None = None,
    rates: Rates | None = None,
) -> Plan:
    r"""Choose a method, or refuse what would not fit; computes nothing but the pilot.

    Parameters
    ----------
    wanted
        ``"spectrum"``: every eigenvalue, by the factor where it has at most ``D`` columns, else dense. ``"extremal"``
        and ``"density"``: the ends or the density, by Krylov methods unless all eigenvalues cost no more.
    chart
        Write the matrix in this chart first.
    method
        ``"dense"``, ``"factor"``, ``"gram"``, ``"lanczos"`` or ``"slq"`` instead of a choice.
    gradient
        Whether the eigenvectors are needed too (``curvature.spectrum(gradient=True)``).
    num_eigenvalues, num_probes, num_matvecs
        As :func:`ends` and :func:`curvature.spectral_density` take them.
    max_memory, max_seconds
        Bytes and seconds that may be used; None: nine tenths of the memory that is free, and any time.
    rates
        Speeds; None measures them (:func:`pilot`, once per device, precision and number of threads), and one product
        with the operator where products count.

    Raises
    ------
    ResourceError
        If nothing that gives what is wanted fits; says what is needed, what may be used, and the ways out. Before any
        allocation.

    Notes
    -----
    Operations: the entries as ``operator.work`` counts them, or ``D`` products; $\tfrac43 D^3$ for eigenvalues, about
    $9 D^3$ with eigenvectors. A factor with $r$ columns, $m$ and $M$ the smaller and the larger of $r$ and $D$: passes
    over its $r D$ numbers, $2 m^2 M - \tfrac23 m^3$ for the QR at six tenths of the speed of products, $\tfrac83 m^3$
    for singular values at a third of the speed of eigenvalues as measured; vectors $4 m^2 D + 9 m^3$. Null directions:
    passes over them, and 37 products at most. Lanczos: about 20 products, 4 for each of the largest and 12 for each of
    the smallest eigenvalues, which is a guess and no bound; the density: ``num_matvecs`` products with ``num_probes``
    columns; both with $4 m^2 D$ operations for $m$ orthogonalized vectors.

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.eye(100, dtype=torch.float64), name="identity")
    >>> print(plan(A, rates=Rates(1e10, {100: 0.5}), max_memory=1e9))  # doctest: +ELLIPSIS
    identity, given, 100 x 100: dense, 1 MB, about 0.5 s (it fits in memory); gives every eigenvalue to 4e-15 of ...
    """
    if wanted not in _WANTED:
        raise ConfigurationError(f"wanted must be one of {', '.join(_WANTED)}, got {wanted!r}.")
    if method not in ("auto", *_BY_NAME, *_WANTED[wanted]):
        raise ConfigurationError(f"{method!r} does not give {_words(wanted)}.")
    if chart is not None:
        if operator.to_chart is None:
            raise ConfigurationError(f"{operator.name} in chart {operator.chart!r} cannot be moved to another chart.")
        operator = operator.to_chart(operator, chart, False)
    require_factor(operator, method)
    allowed = USABLE * free_memory(operator.device) if max_memory is None else max_memory
    counts = {"num_eigenvalues": num_eigenvalues, "num_probes": num_probes, "num_matvecs": num_matvecs}
    needed = {name: _bytes(operator, name, gradient, counts) for name in _candidates(operator, wanted, method)}
    fitting = [name for name in needed if needed[name] <= allowed]
    reasons = {
        name: f"needs {memory_words(needed[name])}, {memory_words(allowed)} may be used"
        for name in needed
        if name not in fitting
    }
    if method == "auto" and operator.factor_columns is not None and "factor" not in needed:
        reasons["factor"] = f"{operator.factor_columns} columns for {operator.dim} rows: more work than the entries"
    if not fitting:
        raise ResourceError(_refusal(operator, wanted, needed, allowed))
    rates = pilot(operator.dtype, operator.device) if rates is None else rates
    if not rates.products and any(_multiplies(operator, name) for name in fitting):
        rates = measured_products(operator, rates, num_probes)
    seconds = {name: _seconds(operator, name, gradient, counts, rates) for name in fitting}
    chosen = min(fitting, key=seconds.get) if wanted != "spectrum" else fitting[0]
    if max_seconds is not None and seconds[chosen] > max_seconds:
        quick = min(fitting, key=seconds.get)
        if seconds[quick] > max_seconds:
            raise ResourceError(
                f"{_words(wanted)} of the {operator.name} ({operator.dim} x {operator.dim}) would take about "
                f"{_time(seconds[quick])} by {quick}, {_time(max_seconds)} are allowed. Allow more, or take "
                f"{_ways_out(wanted)}."
            )
        reasons[chosen] = f"would take about {_time(seconds[chosen])}"
        chosen = quick
    for name in fitting:
        if name != chosen:
            reasons.setdefault(name, f"would take about {_time(seconds[name])}, {chosen} {_time(seconds[chosen])}")
    return Plan(
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        block=operator.about["block"],
        dim=operator.dim,
        wanted=wanted,
        method=chosen,
        reason=_reason(operator, wanted, method, chosen),
        seconds=seconds[chosen],
        num_bytes=needed[chosen],
        resolves=_resolves(operator, chosen, counts),
        rejected=tuple(reasons.items()),
    )


def plans(operator: SymmetricOperator, method: str = "auto", **options: Any) -> tuple[Plan, ...]:
    """What one of ``METHODS`` means for a matrix: usually one plan.

    ``"auto"``: every eigenvalue where that fits; else two plans, for the ends and for the density, which say so.
    ``"exact"``: every eigenvalue, or a refusal. The others name the method. Options as in :func:`plan`.
    """
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    wanted = next((name for name, iterative in _WANTED.items() if method in iterative), "spectrum")
    if method not in ("auto", "exact"):
        return (plan(operator, wanted, method=method, **options),)
    try:
        return (plan(operator, **options),)
    except ResourceError as error:
        if method == "exact":
            raise
        why = str(error).partition(". ")[0]
        options = options | {"gradient": False}
        instead = (("extremal", "lanczos"), ("density", "slq"))
        pair = [plan(operator, wanted, method=name, **options) for wanted, name in instead]
        return tuple(replace(one, reason=why, rejected=(("exact", why),)) for one in pair)


def ends(operator: SymmetricOperator, num_eigenvalues: int = 10) -> tuple[int, int]:
    """How many of the largest and of the smallest eigenvalues are worth asking for, at most the dimension in all.

    The smallest of a semidefinite matrix are zero or next to it, where Krylov methods do not converge: none of them.
    """
    if operator.positive_semidefinite or operator.dim == 1:
        return min(num_eigenvalues, operator.dim), 0
    count = min(num_eigenvalues, operator.dim // 2)
    return count, count


def summary(made: Sequence[Plan]) -> str:
    """Say several plans of one matrix (its charts, its blocks) in one line: the most memory, the total time."""
    methods = list(dict.fromkeys(one.method for one in made))
    exact = set(methods) <= set(_BY_NAME)
    what = "exact" if exact else " and ".join(dict.fromkeys(_words(one.wanted) for one in made))
    size = max(one.dim for one in made)
    number = f"{len(made)} spectra" if len(made) > 1 and exact else ""
    shape = f"up to {size} x {size}" if len(made) > 1 else f"{size} x {size}"
    cost = f"{memory_words(max(one.num_bytes for one in made))}, about {_time(sum(one.seconds for one in made))}"
    return ", ".join(filter(None, (f"{what} ({', '.join(methods)})", number, shape, cost)))


# -------------------------------------------------------------------------------------------------------------- speeds


@full_precision()
def pilot(dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Rates:
    """Measure how fast matrix products and eigenvalues are here, in about a tenth of a second; remembered.

    By the same routines that the spectra use, on small matrices, with the current number of threads.
    """
    return _pilot(dtype, torch.device("cpu") if device is None else device, torch.get_num_threads())


@cache
def _pilot(dtype: torch.dtype, device: torch.device, _threads: int) -> Rates:
    generator = torch.Generator().manual_seed(0)
    product_size, sizes = (512, (200, 600)) if device.type == "cpu" else (4096, (512, 2048))

    def symmetric(size: int) -> torch.Tensor:
        matrix = torch.randn(size, size, generator=generator, dtype=dtype)
        return (matrix + matrix.T).to(device)

    factor = symmetric(product_size)
    if device.type == "cpu":
        array = factor.numpy()
        gemm = _best(lambda: array @ array)  # as the structured matrices do, by numpy's BLAS
    else:
        gemm = _best(lambda: float((factor @ factor)[0, 0]))  # reading a number waits for the device
    eigenvalues = {}
    for size in sizes:
        matrix = symmetric(size)
        eigenvalues[size] = _best(lambda matrix=matrix: eigenvalues_of(matrix))
    return Rates(2 * product_size**3 / gemm, eigenvalues)


def measured_products(operator: SymmetricOperator, rates: Rates, num_probes: int) -> Rates:
    """Add the time of a product with one vector and with ``num_probes`` columns; what is slow is measured once."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(operator.dim, num_probes, generator=generator, dtype=torch.float64)
    block = block.to(operator.device, operator.dtype)

    def multiply(columns: torch.Tensor) -> float:
        return float((operator @ columns)[0, 0])

    started = time.perf_counter()
    multiply(block[:, :1])  # what is computed once for all products
    first = time.perf_counter() - started
    products = {1: first if first > _PILOT_SECONDS else _best(lambda: multiply(block[:, :1]))}
    if num_probes > 1 and num_probes * products[1] <= 4 * _PILOT_SECONDS:
        products[num_probes] = _best(lambda: multiply(block))
    return replace(rates, products=products)


def _best(work: Callable[[], object], repetitions: int = 3) -> float:
    """Shortest of a few times, within the pilot's patience."""
    work()
    times: list[float] = []
    while len(times) < repetitions and sum(times) < _PILOT_SECONDS:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return max(min(times), 1e-9)


def _interpolated(x: float, at: np.ndarray, values: np.ndarray) -> float:
    """Linear between the points and beyond the first; cubic growth (slope three) where there is one point."""
    if len(at) == 1:
        return values[0] + 3 * (x - at[0])
    k = int(np.clip(np.searchsorted(at, x) - 1, 0, len(at) - 2))
    return values[k] + (values[k + 1] - values[k]) * (x - at[k]) / (at[k + 1] - at[k])


# -------------------------------------------------------------------------------------------------------------- counts


def _candidates(operator: SymmetricOperator, wanted: str, method: str) -> tuple[str, ...]:
    if method != "auto":
        return (method,)
    short = operator.factor_columns is not None and operator.factor_columns <= operator.dim
    return (*(_EXACT if short else ("dense",)), *_WANTED[wanted])


def _multiplies(operator: SymmetricOperator, method: str) -> bool:
    """Whether the cost of a method is that of products with the operator."""
    return method in ("lanczos", "slq") or (method == "dense" and operator.work.multiplications is None)


def _bytes(operator: SymmetricOperator, method: str, gradient: bool, counts: Mapping[str, int]) -> float:
    if method in _BY_NAME:
        return spectrum_bytes(operator, method, gradient=gradient)
    vector = float(operator.dim * operator.dtype.itemsize)
    if method == "lanczos":
        wanted = sum(ends(operator, counts["num_eigenvalues"]))
        # The basis, its products and, at a restart, the Ritz vectors of both.
        return (4 * default_basis(operator, wanted) + 4 * wanted + 8) * vector + operator.product_memory(wanted)
    steps, probes = min(counts["num_matvecs"], operator.dim), counts["num_probes"]
    entries = operator.dense_bytes if operator.entries_pay(steps * probes) else 0.0
    return entries + (steps + 8) * probes * vector + operator.product_memory(probes) + 32.0 * probes * steps**2


def _seconds(
    operator: SymmetricOperator, method: str, gradient: bool, counts: Mapping[str, int], rates: Rates
) -> float:
    dim = operator.dim
    slow = 4 / 3 * 600**3 / rates.eigenvalue_seconds(600)  # operations per second where memory is the limit
    null = _null_seconds(operator, rates, slow)
    if method == "dense":
        counted = operator.work.multiplications
        entries = rates.product_seconds(dim) if counted is None else 2 * counted / rates.gemm
        vectors = (9 - 4 / 3) * dim**3 / rates.gemm if gradient else 0.0
        return _SECONDS + entries + rates.eigenvalue_seconds(dim) + vectors + null
    if method == "factor":
        columns = operator.factor_columns or dim
        rank, long = min(columns, dim), max(columns, dim)
        formed = _FORMING * columns * dim / slow
        by_qr = _QR * (2 * rank**2 * long - 2 * rank**3 / 3) / rates.gemm
        square = 6 * rates.eigenvalue_seconds(rank)  # (4 - 4/3) r^3 operations at a third of the speed of 4/3 r^3
        vectors = (4 * rank**2 * dim + 9 * rank**3) / rates.gemm if gradient else 0.0
        return _SECONDS + formed + by_qr + square + vectors + null
    if method == "gram":
        columns = operator.factor_columns
        return _SECONDS + 2 * columns**2 * dim / rates.gemm + rates.eigenvalue_seconds(columns) + null
    if method == "lanczos":
        largest, smallest = ends(operator, counts["num_eigenvalues"])
        products = min(dim, 20 + 4 * largest + 12 * smallest)
        return products * rates.product_seconds(1) + 4 * products**2 * dim / slow
    steps, probes = min(counts["num_matvecs"], dim), counts["num_probes"]
    orthogonal = 4 * steps**2 * dim * probes / slow
    products = steps * rates.product_seconds(probes)
    if operator.entries_pay(steps * probes):
        products = 2 * (operator.work.multiplications + SLOWER * steps * probes * dim**2) / rates.gemm
    return products + orthogonal + probes * rates.eigenvalue_seconds(steps)


def _null_seconds(operator: SymmetricOperator, rates: Rates, slow: float) -> float:
    """Null directions: collected, and verified by products (in combinations where they are many)."""
    count = operator.work.null_directions
    if not count or operator.structural_rank is None:
        return 0.0
    # A product is two passes forward and two backward, each N D multiply-adds or twice that.
    products = 12 * (5 + min(count, 32)) * operator.dim * operator.num_examples / rates.gemm
    return products + _COLLECTING * operator.dim * count / slow


# --------------------------------------------------------------------------------------------------------------- words


def _resolves(operator: SymmetricOperator, method: str, counts: Mapping[str, int]) -> str:
    rounding = rounding_units(operator.dim, operator.dtype)
    if method in _BY_NAME:
        floor = rounding**2 if method == "factor" else rounding
        return f"every eigenvalue to {floor:.0e} of the largest"
    if method == "lanczos":
        largest, smallest = ends(operator, counts["num_eigenvalues"])
        which = f"{largest} largest" + (f" and {smallest} smallest" if smallest else "")
        return f"the {which} eigenvalues with error bounds, nothing between them and no condition number"
    steps = min(counts["num_matvecs"], operator.dim)
    return f"the density to 1/{steps} of its range from {counts['num_probes']} random probes, no single eigenvalue"


def _reason(operator: SymmetricOperator, wanted: str, method: str, chosen: str) -> str:
    if method != "auto":
        return "as asked"
    if wanted != "spectrum":
        return "the quickest that fits in memory"
    if chosen == "factor":
        return f"the factor has {operator.factor_columns} columns, no more than rows, and keeps twice the digits"
    return "it fits in memory"


def _refusal(operator: SymmetricOperator, wanted: str, needed: Mapping[str, float], allowed: float) -> str:
    if wanted == "spectrum":
        return refusal(operator, min(needed.values()), allowed)
    method = min(needed, key=needed.get)
    return (
        f"{_words(wanted)} of the {operator.name} ({operator.dim} x {operator.dim}) needs about "
        f"{memory_words(needed[method])} by {method}, {memory_words(allowed)} may be used. Ways out: fewer probes, "
        "products or eigenvalues; a block; float32; a smaller model."
    )


def _words(wanted: str) -> str:
    return {"spectrum": "all eigenvalues", "extremal": "ends of the spectrum", "density": "density"}[wanted]


def _ways_out(wanted: str) -> str:
    if wanted == "spectrum":
        return "the ends (curvature.extremal_eigenvalues) or the density (curvature.spectral_density)"
    return "fewer probes, products or eigenvalues, or fewer examples"


def _time(seconds: float) -> str:
    """Write a time that is known to one digit.

    >>> _time(0.034), _time(23.4), _time(400.0), _time(20000.0)
    ('0.03 s', '23 s', '7 min', '5.6 h')
    """
    if seconds < 120:
        return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
