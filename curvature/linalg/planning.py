r"""The choice of a method before anything is computed: what fits in memory, what it costs, and what it resolves.

Memory and multiply-adds are counted (:mod:`curvature.linalg.work`), so the choice is the same on every machine with the
same memory. Times are estimated from the counted work and the speed of one matrix product, with a small constant for
overhead; they are good to a factor of about three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from curvature.errors import ConfigurationError, ResourceError
from curvature.linalg.advice import NOUNS, instead, memory_refusal
from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.floor import rounding_units
from curvature.linalg.memory import USABLE, free_memory, memory_text
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.linalg.routes import SLOWER
from curvature.linalg.speed import multiplication_rate, product_seconds, seconds_text
from curvature.linalg.work import CHECKS, Counts, ends, method_bytes, method_work, num_passes, num_products, rank_work
from curvature.precision import full_precision
from curvature.records import Located, Where
from curvature.removed import removed

__all__ = ["EXACT", "METHODS", "Plan", "choose_exact", "plan", "plans", "summary"]

EXACT = ("factor", "dense", "gram")
METHODS = ("auto", "exact", *EXACT, "lanczos", "slq")
_SECONDS = 0.02  # overhead of hundreds of small calls, at any size
_KRYLOV = {"spectrum": (), "extremal": ("lanczos",), "density": ("slq",)}


@dataclass(frozen=True)
class Plan(Located):
    """A method for one task on one matrix, with its cost.

    Attributes
    ----------
    where, dim
        Header and dimension of the matrix.
    wanted
        The task: ``"spectrum"``, ``"extremal"`` or ``"density"``.
    method
        ``"dense"``, ``"factor"``, ``"gram"``, ``"lanczos"`` or ``"slq"``.
    reason
        Why this method was chosen.
    seconds, num_bytes
        Estimated time, and upper bound of the peak memory.
    rank_seconds
        Estimated time that is added if the eigenvalues leave the rank open, so that the factor has to decide it; None
        if it can't be estimated.
    resolves
        Accuracy of the result, and what it does not contain.
    rejected
        The other methods, each with the reason against it.
    passes
        About how often data that are not in memory are read, with the self-checks; 0 if the data are in memory.
    """

    where: Where
    dim: int
    wanted: str
    method: str
    reason: str
    seconds: float
    num_bytes: float
    resolves: str
    rejected: tuple[tuple[str, str], ...] = ()
    rank_seconds: float | None = 0.0
    passes: int = 0

    def __repr__(self) -> str:
        return f"Plan({self.label}, {self.wanted} by {self.method}, {memory_text(self.num_bytes)})"

    def __str__(self) -> str:
        return (
            f"{self.label}, {self.dim} x {self.dim}: {self.method}, {memory_text(self.num_bytes)}, "
            f"{_cost_text([self])} ({self.reason}); gives {self.resolves}"
        )


@removed(
    chart="plan(pullback(A, chart))", effective="plan(effective(A, chart))", gradient="counts=Counts(vectors=True)"
)
@full_precision()
def plan(
    operator: SymmetricOperator,
    wanted: str = "spectrum",
    *,
    method: str = "auto",
    counts: Counts | None = None,
    max_memory: float | None = None,
    max_seconds: float | None = None,
) -> Plan:
    """Choose the method for a task, or raise an error if none fits.

    Parameters
    ----------
    operator
        The matrix.
    wanted
        ``"spectrum"``: every eigenvalue, by the factor if it has at most ``D`` columns, otherwise dense.
        ``"extremal"`` or ``"density"``: the ends of the spectrum or its density, by a Krylov method unless all
        eigenvalues cost no more.
    method
        ``"auto"``, or one of ``"dense"``, ``"factor"``, ``"gram"``, ``"lanczos"`` and ``"slq"``.
    counts
        Numbers of eigenvalues, probes and products, and whether eigenvectors are needed; None: the defaults.
    max_memory, max_seconds
        Limits in bytes and seconds; None: nine tenths of the free memory, and any time.

    Returns
    -------
    Plan
        The chosen method with its cost; ``print`` shows it in one line.

    Raises
    ------
    ResourceError
        If no method for the task fits. The message says how much is needed and allowed, and what to do instead. Nothing
        has been allocated then.
    ConfigurationError
        If the task or the method is unknown, or the method does not fit the task or the matrix.

    Notes
    -----
    Computes one product of two small matrices to measure the speed and, if the work of the operator's products is not
    counted, two of these. The number of products by Lanczos is an estimate: 20, and 4 for each of the largest and 12
    for each of the smallest eigenvalues.

    Examples
    --------
    >>> import torch
    >>> A = SymmetricOperator.from_dense(torch.eye(100, dtype=torch.float64), name="identity")
    >>> print(plan(A, max_memory=1e9))  # doctest: +ELLIPSIS
    identity, given, 100 x 100: dense, 1 MB, about ... (it fits in memory); gives every eigenvalue to 4e-15 of ...
    """
    require_operator(operator, "plan")
    if wanted not in _KRYLOV:
        raise ConfigurationError(f"wanted must be one of {', '.join(_KRYLOV)}, got {wanted!r}.")
    if method not in ("auto", *EXACT, *_KRYLOV[wanted]):
        raise ConfigurationError(f"{method!r} does not give {NOUNS[wanted]}.")
    _require_factor(operator, method)
    counts = counts or Counts()
    allowed = USABLE * free_memory(operator.device) if max_memory is None else max_memory
    fitting, rejected, needed = _fitting(operator, wanted, method, counts, allowed)
    seconds = _seconds(operator, fitting, counts)
    quickest = min(fitting, key=seconds.__getitem__)
    chosen = fitting[0]
    if wanted != "spectrum":
        chosen = min(fitting, key=lambda name: _whole_work(operator, name, counts))
    if max_seconds is not None and seconds[chosen] > max_seconds:
        if seconds[quickest] > max_seconds:
            raise ResourceError(
                f"{NOUNS[wanted]} of {operator.shape_text} would take about {seconds_text(seconds[quickest])} by "
                f"{quickest}; {seconds_text(max_seconds)} are allowed. Allow more time, or take {instead(wanted)}."
            )
        rejected[chosen], chosen = f"would take about {seconds_text(seconds[chosen])}", quickest
    for name in fitting:
        if name != chosen:
            comparison = f"would take about {seconds_text(seconds[name])}, {chosen} {seconds_text(seconds[chosen])}"
            rejected.setdefault(name, comparison)
    return Plan(
        operator.where,
        operator.dim,
        wanted,
        chosen,
        _reason(operator, wanted, method, chosen),
        seconds[chosen],
        needed[chosen],
        _resolves(operator, chosen, counts),
        tuple(rejected.items()),
        _rank_seconds(operator, chosen),
        num_passes(operator, chosen, counts),
    )


def plans(
    operator: SymmetricOperator, method: str = "auto", *, counts: Counts | None = None, max_memory: float | None = None
) -> tuple[Plan, ...]:
    """Plan the computation for one of ``METHODS``.

    Parameters
    ----------
    operator
        The matrix.
    method
        ``"auto"``: every eigenvalue if that fits, otherwise the ends of the spectrum and its density. ``"exact"``:
        every eigenvalue, or an error. The others name a method.
    counts, max_memory
        As for :func:`plan`.

    Returns
    -------
    tuple of Plan
        One plan, or two for the ends and the density, whose ``reason`` says why not all eigenvalues.

    Raises
    ------
    ResourceError
        If no method fits.
    ConfigurationError
        If the method is unknown.
    """
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if method not in ("auto", "exact"):
        wanted = next((name for name, iterative in _KRYLOV.items() if method in iterative), "spectrum")
        return (plan(operator, wanted, method=method, counts=counts, max_memory=max_memory),)
    try:
        return (plan(operator, counts=counts, max_memory=max_memory),)
    except ResourceError as error:
        if method == "exact":
            raise
        why = str(error).partition(". ")[0]
        estimate = replace(counts or Counts(), vectors=False)
        pair = [
            plan(operator, wanted, method=name, counts=estimate, max_memory=max_memory)
            for wanted, name in (("extremal", "lanczos"), ("density", "slq"))
        ]
        return tuple(replace(part, reason=why, rejected=(("exact", why),)) for part in pair)


def choose_exact(operator: SymmetricOperator, method: str, *, vectors: bool) -> str:
    """Choose between the exact methods, or raise an error before anything is allocated.

    Parameters
    ----------
    operator
        The matrix.
    method
        ``"auto"``, ``"dense"``, ``"factor"`` or ``"gram"``.
    vectors
        Whether eigenvectors are needed too.

    Returns
    -------
    str
        The method.

    Raises
    ------
    ResourceError
        If it does not fit in memory.
    ConfigurationError
        If the method is unknown, or the matrix has no factor for it.
    """
    if method not in ("auto", *EXACT):
        raise ConfigurationError(f"method must be one of auto, dense, factor, gram, got {method!r}.")
    _require_factor(operator, method)
    allowed = USABLE * free_memory(operator.device)
    return _fitting(operator, "spectrum", method, Counts(vectors=vectors), allowed)[0][0]


def summary(parts: Sequence[Plan]) -> str:
    """Summarize the plans of several charts or blocks of one matrix in one line.

    Parameters
    ----------
    parts
        At least one plan.

    Returns
    -------
    str
        One line with the largest memory, the total time, and the passes over streamed data.
    """
    methods = list(dict.fromkeys(part.method for part in parts))
    exact = set(methods) <= set(EXACT)
    subject = "exact" if exact else " and ".join(dict.fromkeys(NOUNS[part.wanted] for part in parts))
    size = max(part.dim for part in parts)
    number = f"{len(parts)} spectra" if len(parts) > 1 and exact else ""
    shape = f"up to {size} x {size}" if len(parts) > 1 else f"{size} x {size}"
    memory = memory_text(max(part.num_bytes for part in parts))
    return ", ".join(filter(None, (f"{subject} ({', '.join(methods)})", number, shape, memory, _cost_text(parts))))


def _cost_text(parts: Sequence[Plan]) -> str:
    """Time of several plans as text, and how often they read data that are not in memory."""
    passes = sum(part.passes for part in parts)
    return _time_text(parts) + (f", reads the data about {passes} times" if passes else "")


def _time_text(parts: Sequence[Plan]) -> str:
    """Time of several plans as text, with what the ranks may add."""
    total = sum(part.seconds for part in parts)
    known = [part.rank_seconds for part in parts if part.rank_seconds is not None]
    if len(known) < len(parts):
        return f"at least {seconds_text(total)}"
    more = max(known)  # the charts of a matrix share its rank
    if more < total / 2:
        return f"about {seconds_text(total)}"
    return f"about {seconds_text(total)}, or {seconds_text(total + more)} if the factor has to decide the rank"


def _require_factor(operator: BlockMatrix, method: str) -> None:
    """Refuse the factor methods without a factor, and the Gram matrix if it is larger than the matrix."""
    factor = operator.routes.factor
    if method not in ("factor", "gram"):
        return
    if factor is None:
        raise ConfigurationError(f"{operator.name} has no factor. Use method='dense'.")
    if method == "gram" and factor.num_columns > operator.dim:
        raise ConfigurationError(
            f"the Gram matrix of {operator.name} has {factor.num_columns} rows, the matrix itself {operator.dim}: "
            "use method='dense', or fewer examples."
        )


def _fitting(
    operator: BlockMatrix, wanted: str, method: str, counts: Counts, allowed: float
) -> tuple[list[str], dict[str, str], dict[str, float]]:
    """Methods that fit, reasons against the others, and the memory of each; raises an error if none fits."""
    factor = operator.routes.factor
    short = factor is not None and factor.num_columns <= operator.dim
    candidates: Iterable[str] = (method,)
    if method == "auto":
        candidates = (*(("factor", "dense") if short else ("dense",)), *_KRYLOV[wanted])
    needed = {name: method_bytes(operator, name, counts) for name in candidates}
    fitting = [name for name in needed if needed[name] <= allowed]
    if not fitting:
        raise ResourceError(memory_refusal(operator, wanted, needed, allowed))
    rejected = {
        name: f"needs {memory_text(needed[name])}, {memory_text(allowed)} may be used"
        for name in needed
        if name not in fitting
    }
    if method == "auto" and factor is not None and not short:
        rejected["factor"] = f"{factor.num_columns} columns for {operator.dim} rows: more work than the entries"
    return fitting, rejected, needed


def _whole_work(operator: BlockMatrix, method: str, counts: Counts) -> float:
    """Multiply-adds with all products; a product by autograd costs at least four passes over examples and weights."""
    each = operator.routes.products.multiplications
    if each is None:
        each = 4.0 * operator.dim * max(operator.where.num_examples or 0, operator.dim // 4, 1)
    products = num_products(operator, method, counts)
    entries = operator.routes.entries
    preparation = 0.0
    if method == "slq" and operator.entries_pay(products) and entries is not None:
        preparation, each = entries.multiplications or 0.0, float(operator.dim**2)
    return method_work(operator, method, counts) + preparation + SLOWER * products * each


def _seconds(operator: SymmetricOperator, methods: Iterable[str], counts: Counts) -> dict[str, float]:
    rate, product = multiplication_rate(operator.dtype, operator.device), None
    seconds = {}
    for method in methods:
        products = num_products(operator, method, counts)
        route = operator.routes.entries if method == "dense" else operator.routes.factor
        forming = None if method not in EXACT or products or route is None else route.seconds
        if operator.routes.products.multiplications is not None or not (products or forming):
            seconds[method] = _SECONDS + _whole_work(operator, method, counts) / rate
            continue
        product = product_seconds(operator) if product is None else product
        products += CHECKS if method in EXACT else 0  # method_work counts them as if every weight were used once
        seconds[method] = _SECONDS + method_work(operator, method, counts) / rate + products * product
        seconds[method] += 0.0 if forming is None else forming()
    return seconds


def _rank_seconds(operator: SymmetricOperator, method: str) -> float | None:
    """Time for the bounds at a gap of the factor, which decide a rank that the eigenvalues leave open."""
    work = rank_work(operator) if method in EXACT and method != "factor" else 0.0
    factor = (operator.same_rank or operator).routes.factor
    if not work or factor is None:
        return work
    uncounted = 0.0 if factor.seconds is None else factor.seconds()
    return work / multiplication_rate(operator.dtype, operator.device) + uncounted


def _resolves(operator: BlockMatrix, method: str, counts: Counts) -> str:
    rounding = rounding_units(operator.dim, operator.dtype)
    if method in EXACT:
        floor = rounding**2 if method == "factor" else rounding
        return f"every eigenvalue to {floor:.0e} of the largest"
    if method == "lanczos":
        largest, smallest = ends(operator, counts.num_eigenvalues)
        which = f"{largest} largest" + (f" and {smallest} smallest" if smallest else "")
        return f"the {which} eigenvalues with error bounds, nothing between them and no condition number"
    steps = min(counts.num_matvecs, operator.dim)
    return f"the density to 1/{steps} of its range from {counts.num_probes} random probes, no single eigenvalue"


def _reason(operator: BlockMatrix, wanted: str, method: str, chosen: str) -> str:
    factor = operator.routes.factor
    if method != "auto":
        return "as asked"
    if wanted != "spectrum":
        return "the least work that fits in memory"
    if chosen == "factor" and factor is not None:
        return f"the factor has {factor.num_columns} columns, no more than rows, and keeps twice the digits"
    return "it fits in memory"
