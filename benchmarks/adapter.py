"""One way to call the version of this package that is loaded, whether 0.1 or later.

``python -m benchmarks.peer_benchmark --against PATH`` runs the same cases with another checkout of this package. Every
difference between the two interfaces that a case meets is in this file.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

import curvature as cv

try:
    from curvature.studies.training import SGD, Schedule, train
except ImportError:  # version 0.1
    from curvature.training import SGD, train

    Schedule = None

__all__ = ["gram", "largest_eigenvalues", "materialized", "spectral_density", "trained_weights"]

TAKES_SEED = "seed" in inspect.signature(cv.extremal_eigenvalues).parameters


def _randomness() -> dict[str, Any]:
    """Seed 0, as the loaded version takes it."""
    return {"seed": 0} if TAKES_SEED else {"generator": torch.Generator().manual_seed(0)}


def largest_eigenvalues(operator: cv.SymmetricOperator, count: int, **options: Any) -> Any:
    """Largest eigenvalues, descending."""
    return cv.extremal_eigenvalues(operator, num_largest=count, **options, **_randomness()).largest


def spectral_density(operator: cv.SymmetricOperator, num_probes: int, num_steps: int) -> tuple[Any, Any]:
    """Nodes and weights of the stochastic Lanczos density, without self-checks."""
    density = cv.spectral_density(operator, num_matvecs=num_steps, num_probes=num_probes, checks=False, **_randomness())
    return density.nodes, density.weights


def gram(operator: cv.SymmetricOperator) -> Tensor:
    """The Gram matrix ``B^T B`` of ``A = B B^T`` on its smaller side."""
    return operator.gram()


def materialized(operator: cv.SymmetricOperator) -> cv.SymmetricOperator:
    """The same operator, which keeps its entries after the first use."""
    return operator.materialized()


def trained_weights(problem: cv.Problem, model: nn.Module, epochs: int) -> nn.Module:
    """Put weights into ``model`` that a few seeded epochs of SGD with momentum lead to."""
    schedule = {"epochs": epochs, "batch_size": 64, "checkpoints": {"end": epochs}}
    options = {"arm": "standard", "seed": 0, "optimizer": SGD(0.2, momentum=0.9)}
    if Schedule is None:
        run = train(problem, cv.Standard(), **options, **schedule)
    else:
        run = train(problem, cv.Standard(), Schedule(**schedule), **options)
    nn.utils.vector_to_parameters(run.checkpoints[-1].weights, model.parameters())
    return model
