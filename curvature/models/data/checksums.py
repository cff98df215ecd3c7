"""Checksums of examples, by which two passes over streamed data are compared."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Checksums", "checksums"]

Checksums = NDArray[np.uint64]

_SHIFT = np.uint64(29)


def checksums(leaves: list[Tensor]) -> Checksums:
    """Compute one number for each example, from the bits of all its tensors.

    Parameters
    ----------
    leaves
        Tensors with one row for each example.

    Returns
    -------
    ndarray
        ``(N,)``; equal for equal examples wherever they stand. A change of 8 neighbouring bytes always changes it, and
        larger changes go unseen with a probability of about 1e-19.
    """
    total = np.zeros(len(leaves[0]), dtype=np.uint64)
    for number, leaf in enumerate(leaves):
        integers = _integers(leaf)
        # Integers that are stored as floats differ in their upper bits only: bring these down before the product.
        mixed = integers ^ (integers >> _SHIFT)
        factors = np.random.Generator(np.random.PCG64(number)).integers(0, 2**64, integers.shape[1], dtype=np.uint64)
        total += np.einsum("nk,k->n", mixed, factors | np.uint64(1))
    return total


def _integers(leaf: Tensor) -> NDArray[np.uint64]:
    """The bytes of each row, as integers of 8 bytes; filled up with zeros."""
    rows = leaf.detach().cpu().contiguous().reshape(len(leaf), -1).view(torch.uint8).numpy()
    missing = -rows.shape[1] % 8
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, missing))) if missing else rows).view(np.uint64)
