"""Eigenvectors of a run as safetensors by parameter name: one file for each matrix, chart and block."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from curvature.records import Eigenvectors, ExtremalEigenvalues, Measured, Spectrum, Study

__all__ = ["FOLDER", "NAME", "eigenvector_files", "write_eigenvectors"]

FOLDER = "eigenvectors"
NAME = rf"{FOLDER}/[\w.=-]+\.safetensors"  # of each file, as a regular expression
_UNNAMED = "coordinates"  # name of the tensor where the coordinates of the matrix have none
_SHOWN = 80  # characters of matrix, chart and block in the name of a file

WithVectors: TypeAlias = Measured[Spectrum] | Measured[ExtremalEigenvalues]


def eigenvector_files(study: Study) -> Iterator[tuple[str, WithVectors, Eigenvectors]]:
    """List the files of eigenvectors of a study.

    Parameters
    ----------
    study
        What was measured.

    Yields
    ------
    tuple
        Path in the run directory, the measurement, and its eigenvectors.
    """
    taken: set[str] = set()
    for m in study.measurements:
        vectors = getattr(m.record, "vectors", None)
        if vectors is not None:
            name = _name(m.record, len(taken), taken)
            taken.add(name)
            yield f"{FOLDER}/{name}.safetensors", m, vectors


def _name(record: Any, number: int, taken: set[str]) -> str:
    """Matrix, chart and block as the name of a file; with a number where it would be that of another file."""
    parts = (record.matrix, record.chart, record.gauge, record.block.removeprefix("all"))
    name = re.sub(r"[^A-Za-z0-9.=_]+", "-", "-".join(filter(None, parts)))[:_SHOWN].strip("-.")
    return name if name not in taken else f"{name}-{number}"


def write_eigenvectors(study: Study, folder: Path) -> None:
    """Write every file of eigenvectors of a study.

    Parameters
    ----------
    study
        What was measured.
    folder
        The run directory.

    Notes
    -----
    Each tensor has the shape of its parameter behind an axis for the eigenvectors, in ascending order of the
    eigenvalues: the last is that of the largest. Eigenvalues, residuals and the header are JSON in the metadata, whose
    names cannot be those of a parameter.
    """
    from safetensors.numpy import save_file

    for name, m, vectors in eigenvector_files(study):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        header = asdict(m.record.where) | {key: getattr(vectors, key).tolist() for key in ("eigenvalues", "residuals")}
        # One entry: the order of several is that of a hash table, another one in each file.
        save_file(_tensors(vectors), path, metadata={"curvature": json.dumps(header)})


def _tensors(vectors: Eigenvectors) -> dict[str, np.ndarray]:
    names = [name for name, _ in vectors.names]
    named = {name: vectors[name] for name in names} if names else {_UNNAMED: vectors.columns.T}
    return {name: np.ascontiguousarray(array) for name, array in named.items()}
