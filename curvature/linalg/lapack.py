"""Eigenvalues of large symmetric matrices by the fastest LAPACK routine available, and counts of them.

Without eigenvectors the two-stage reduction (full to band to tridiagonal: Bischof, Lang & Sun 2000,
doi:10.1145/365723.365735) replaces matrix-vector by matrix-matrix products. NumPy and SciPy call the one-stage driver
only, but the OpenBLAS inside their wheels has the two stages. They are looked up here and called directly, with a wider
band than OpenBLAS's driver, which takes a fifth more time.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import ldl
from threadpoolctl import threadpool_info

__all__ = ["eigenvalues", "inertia"]

# Measured, two threads: one stage against two take 0.24 s and 0.31 s at 2000, 0.68 and 0.59 at 2410, 39 and 18 at 8970:
# without the second stage the README's row of all eigenvalues of 8970 weights (22 s) would take twice as long.
_TWO_STAGE_FROM = 2300
_PREFIXES = {np.dtype(np.float64): ("d", ctypes.c_double), np.dtype(np.float32): ("s", ctypes.c_float)}


def eigenvalues(matrix: np.ndarray, *, two_stage_from: int = _TWO_STAGE_FROM) -> np.ndarray:
    r"""Return the eigenvalues of a symmetric matrix.

    Parameters
    ----------
    matrix
        Shape ``(n, n)``, float64 or float32; it is not changed.
    two_stage_from
        Size from which the two-stage reduction is tried.

    Returns
    -------
    ndarray
        Ascending, ``(n,)``, to about $u \|A\|$ absolutely; either driver is backward stable.

    Notes
    -----
    Costs about $\tfrac43 n^3$ operations and one copy of the matrix.
    """
    values = _two_stage(matrix) if len(matrix) >= two_stage_from else None
    return np.linalg.eigvalsh(matrix) if values is None else values


def inertia(matrix: np.ndarray, shift: float) -> tuple[int, int, float]:
    r"""Count the eigenvalues below and above ``shift`` by Sylvester's law of inertia.

    Parameters
    ----------
    matrix
        Symmetric, ``(n, n)``.
    shift
        $t$.

    Returns
    -------
    tuple
        How many are below, how many above, and the tolerance: no eigenvalue farther than it from ``shift`` is counted
        on the wrong side (Weyl).

    Notes
    -----
    The signs of $D$ in $A - t I = L D L^T$ (Bunch & Kaufman 1977) are those of the eigenvalues of $L D L^T$. That
    differs from $A - t I$ by rounding, which is computed rather than estimated: the tolerance bounds its Frobenius
    norm. Costs about $n^3$ operations and four matrices.
    """
    # Entries of ordinary size, exactly: sums of their squares must neither overflow nor vanish.
    scale = math.ldexp(1.0, math.frexp(max(float(np.abs(matrix).max()), abs(shift)))[1])
    shifted = matrix.astype(np.float64) / scale
    shifted[np.diag_indices(len(shifted))] -= shift / scale
    lower, blocks, _ = ldl(shifted, check_finite=False)
    signs = np.linalg.eigvalsh(_pairs(blocks))
    eps = np.finfo(np.float64).eps
    # The difference itself is computed with an error of n units of rounding of the product of the sizes.
    product = lower @ blocks
    error = float(np.linalg.norm(product @ lower.T - shifted))
    error += len(shifted) * eps * float(np.linalg.norm(product) * np.linalg.norm(lower))
    return int((signs < 0).sum()), int((signs > 0).sum()), scale * float(error)


def _pairs(blocks: np.ndarray) -> np.ndarray:
    """The 2 x 2 blocks on the diagonal of ``D``, ``(k, 2, 2)``; a 1 x 1 block beside a zero, which has no sign."""
    coupling = np.append(np.diag(blocks, -1), 0.0)
    second = np.append(False, coupling[:-1] != 0)
    first = np.flatnonzero(~second)
    pairs = np.zeros((len(first), 2, 2))
    pairs[:, 0, 0] = blocks[first, first]
    pairs[:, 0, 1] = pairs[:, 1, 0] = coupling[first]
    partner = np.flatnonzero(coupling[first] != 0)
    pairs[partner, 1, 1] = blocks[first[partner] + 1, first[partner] + 1]
    return pairs


def _two_stage(matrix: np.ndarray) -> np.ndarray | None:
    """None where no OpenBLAS with the routines is loaded, or the last one did not converge."""
    routines = _routines(matrix.dtype)
    if routines is None:
        return None
    to_band, to_tridiagonal, tridiagonal_eigenvalues, integer, real = routines
    size, band = len(matrix), _band(len(matrix))
    full = np.array(matrix.T, order="F")  # symmetric, and in this order no transposition is needed
    banded = np.zeros((band + 1, size), matrix.dtype, order="F")
    diagonal, off_diagonal, reflectors = (np.zeros(size, matrix.dtype) for _ in range(3))

    def by_reference(argument: Any) -> Any:
        if isinstance(argument, int):
            return ctypes.byref(integer(argument))
        return argument.ctypes.data_as(ctypes.POINTER(real)) if isinstance(argument, np.ndarray) else argument

    def call(routine: Any, *arguments: Any) -> int:
        info = integer(0)
        routine(*map(by_reference, arguments), ctypes.byref(info))
        return int(info.value)

    def call_with_workspace(routine: Any, num_arrays: int, *arguments: Any) -> None:
        """Ask the routine how long its work arrays must be, then call it with arrays, each followed by its length."""
        lengths = [np.zeros(1, matrix.dtype) for _ in range(num_arrays)]
        call(routine, *arguments, *(part for length in lengths for part in (length, -1)))
        arrays = [np.zeros(max(1, int(length[0])), matrix.dtype) for length in lengths]
        call(routine, *arguments, *(part for array in arrays for part in (array, len(array))))

    call_with_workspace(to_band, 1, b"L", size, band, full, size, banded, band + 1, reflectors)
    call_with_workspace(to_tridiagonal, 2, b"Y", b"N", b"L", size, band, banded, band + 1, diagonal, off_diagonal)
    return diagonal if call(tridiagonal_eigenvalues, size, diagonal, off_diagonal) == 0 else None


def _band(size: int) -> int:
    """Width of the band between the stages: the first wants it wide, the second narrow (measured 2410 to 8970)."""
    return min(80, max(40, 8 * round(size / 800)))


class _Routines(NamedTuple):
    """Full to band, band to tridiagonal, eigenvalues of a tridiagonal matrix; the types of integers and entries."""

    to_band: Any
    to_tridiagonal: Any
    tridiagonal_eigenvalues: Any
    integer: Any
    real: Any


@cache
def _routines(dtype: np.dtype) -> _Routines | None:
    prefix, real = _PREFIXES[dtype]
    names = [f"{prefix}sytrd_sy2sb", f"{prefix}sytrd_sb2st", f"{prefix}sterf"]
    for library in threadpool_info():
        if library["internal_api"] != "openblas":
            continue
        loaded = ctypes.CDLL(library["filepath"])  # it is loaded already: this only takes a handle
        for suffix, integer in (("_64_", ctypes.c_int64), ("_", ctypes.c_int32)):
            to_band, to_tridiagonal, by_ql = (getattr(loaded, f"scipy_{name}{suffix}", None) for name in names)
            if to_band and to_tridiagonal and by_ql:
                return _Routines(to_band, to_tridiagonal, by_ql, integer, real)
    return None
