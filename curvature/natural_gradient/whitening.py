r"""Gradient noise per neuron: where the weights lie in it, and what removing one direction does to its shape.

$C$ is one neuron's block of the centred gradient covariance, over its incoming weights (bias left out), ``d x d``.
Weight normalization projects the gradient in $v$ onto the complement of $w$. The claims are that $w$ is close to the
dominant eigenvector of $C$, and that the projected covariance is closer to a multiple of the identity (Salimans &
Kingma 2016, section 2.1). Projecting out *any* direction helps a little (Cauchy interlacing). So each claim is compared
with a random direction, the mean input and the top eigenvector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvature.layout import Entry
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.random import generator_of
from curvature.matrices import gradient_covariance
from curvature.models import Problem
from curvature.models.layers import trace_layers
from curvature.precision import full_precision
from curvature.records import Alignment, Whitening
from curvature.records.sphericity import sphericity
from curvature.removed import removed

__all__ = ["alignments", "mean_cosine", "whitening"]


def mean_cosine(dim: int) -> float:
    r"""Return the expected $|\cos|$ between a fixed and a uniformly random direction.

    Parameters
    ----------
    dim
        $d$.

    Returns
    -------
    float
        $\Gamma(d/2) / (\sqrt\pi\, \Gamma((d+1)/2))$, about $\sqrt{2/(\pi d)}$.

    Examples
    --------
    >>> round(mean_cosine(2), 4)
    0.6366
    """
    return math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)


@removed(generator="seed=generator")
@full_precision()
def alignments(
    problem: Problem, *, seed: int | torch.Generator = 0, covariance: SymmetricOperator | None = None
) -> tuple[Alignment, ...]:
    """Measure where each neuron's ``w``, mean input and a random direction lie in the eigenbasis of its $C$.

    Parameters
    ----------
    problem
        Model, loss and data at the point; its weights belong to linear or convolutional layers.
    seed
        Of the random directions.
    covariance
        The gradient covariance on the weights, if it has been computed already.

    Returns
    -------
    tuple
        One :class:`~curvature.records.Alignment` per neuron and direction, without neurons whose gradient does not
        vary.

    Notes
    -----
    Costs the gradient covariance and one eigendecomposition per neuron.
    """
    generator = generator_of(seed)
    means = {trace.weight: trace.inputs.flatten(0, 1).mean(dim=0) for trace in trace_layers(problem).values()}
    records = []
    for entry, neuron, weights, block in _neurons(problem, covariance):
        rows_are_neurons = entry.norm_axis == 0
        values, vectors = torch.linalg.eigh(block)
        directions = {"w": weights, "random": _drawn(weights, generator)}
        if entry.name in means and rows_are_neurons:
            directions["mean input"] = means[entry.name][: len(weights)]
        for name, direction in directions.items():
            length = torch.linalg.vector_norm(direction)
            if length == 0:
                continue
            unit = direction / length
            records.append(
                Alignment(
                    neuron=neuron,
                    direction=name,
                    cosine=min(1.0, float((unit @ vectors[:, -1]).abs())),
                    rayleigh=float(unit @ (block @ unit) / values.mean()),
                    null_cosine=mean_cosine(len(unit)),
                    dim=len(unit),
                    num_examples=problem.num_examples,
                )
            )
    return tuple(records)


@removed(generator="seed=generator")
@full_precision()
def whitening(
    problem: Problem, *, seed: int | torch.Generator = 0, covariance: SymmetricOperator | None = None
) -> tuple[Whitening, ...]:
    """Measure the sphericity of each neuron's $C$ before and after one direction is projected out.

    Parameters
    ----------
    problem, seed, covariance
        As for :func:`alignments`.

    Returns
    -------
    tuple
        One :class:`~curvature.records.Whitening` per neuron and projection (none, ``w``, a random direction, the top
        eigenvector), without neurons whose gradient does not vary.

    Notes
    -----
    Costs the gradient covariance and the eigenvalues of three matrices per neuron.
    """
    generator = generator_of(seed)
    records = []
    for _, neuron, weights, block in _neurons(problem, covariance):
        eigenvalues = torch.linalg.eigvalsh(block)
        random = _drawn(weights, generator)
        spectra = {"none": eigenvalues}
        if len(block) > 1:
            directions = {"w": weights, "random": random}
            spectra |= {
                name: torch.linalg.eigvalsh(_on_complement(block, direction))
                for name, direction in directions.items()
                if direction.any()
            }
            spectra["e1"] = eigenvalues[:-1]  # without its top eigenvector
        for name, spectrum in spectra.items():
            values = spectrum.clamp(min=0).cpu().numpy()
            summary = sphericity(values)
            records.append(
                Whitening(
                    neuron=neuron,
                    projection=name,
                    bures=summary["bures"].value,
                    am_gm_damped=summary["am_gm_damped"].value,
                    l1_over_mean=summary["l1_over_mean"].value,
                    dim=len(values),
                    num_examples=problem.num_examples,
                )
            )
    return tuple(records)


def _neurons(problem: Problem, covariance: SymmetricOperator | None) -> list[tuple[Entry, str, Tensor, Tensor]]:
    """``(entry, name, weights, covariance block)`` of every neuron whose gradient varies."""
    matrix = (covariance or gradient_covariance(problem)).entries()
    neurons = []
    for entry, span in problem.layout.pairs():
        if not entry.normalized:
            continue
        rows = entry.rows(torch.arange(span.start, span.stop, device=problem.device))
        for neuron, row in enumerate(rows):
            block = matrix[row][:, row]
            if float(block.trace()) > 0:
                neurons.append((entry, f"{entry.layer}[{neuron}]", problem.weights[row], block))
    return neurons


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _on_complement(block: Tensor, direction: Tensor) -> Tensor:
    """``Q^T C Q`` with ``Q`` an orthonormal basis of the complement of a direction."""
    basis = torch.linalg.qr(torch.cat([direction[:, None], torch.eye(len(block)).to(block)], dim=1)).Q[:, 1:]
    return basis.T @ block @ basis
