"""Seeds: an integer draws the same numbers every time, a generator advances, everything else is refused."""

import pytest
import torch

import curvature as cv
from curvature.errors import ConfigurationError, RemovedArgumentError
from curvature.linalg.density import spectral_density
from curvature.linalg.extremal import extremal_eigenvalues
from curvature.linalg.random import generator_of
from curvature.linalg.sums import log_determinant, spectral_sum
from curvature.linalg.traces import diagonal, trace
from curvature.models import zoo

DRAWS = {
    "trace": lambda operator, **seed: trace(operator, method="xtrace", num_products=20, **seed).value,
    "diagonal": lambda operator, **seed: float(diagonal(operator, method="xdiag", num_products=20, **seed).value[0]),
    "log_determinant": lambda operator, **seed: (
        log_determinant(operator, 1.0, method="quadrature", relative_error=0.5, **seed).value
    ),
    "spectral_sum": lambda operator, **seed: (
        spectral_sum(operator, 0.5, damping=1.0, method="quadrature", relative_error=0.5, **seed).value
    ),
    "spectral_density": lambda operator, **seed: float(spectral_density(operator, num_matvecs=5, **seed).nodes[0, 0]),
    "extremal_eigenvalues": lambda operator, **seed: float(extremal_eigenvalues(operator, **seed).residuals[-1]),
}


def semidefinite(dim=60):
    factor = torch.randn(dim, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return cv.SymmetricOperator.from_dense(factor @ factor.T / dim, positive_semidefinite=True)


def test_an_integer_makes_a_fresh_generator_each_time():
    assert torch.equal(torch.randn(3, generator=generator_of(5)), torch.randn(3, generator=generator_of(5)))
    assert not torch.equal(torch.randn(3, generator=generator_of(5)), torch.randn(3, generator=generator_of(6)))


def test_a_generator_is_used_as_it_is():
    generator = torch.Generator().manual_seed(5)
    assert generator_of(generator) is generator


@pytest.mark.parametrize("seed", [True, "0", 0.0, None])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ConfigurationError, match=r"seed must be an integer or a torch\.Generator"):
        generator_of(seed)


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_repeats_and_a_generator_goes_on(name):
    operator, draw = semidefinite(), DRAWS[name]
    assert draw(operator) == draw(operator, seed=0) == draw(operator, seed=torch.Generator().manual_seed(0))
    assert draw(operator, seed=1) != draw(operator)
    generator = torch.Generator().manual_seed(0)
    assert draw(operator, seed=generator) != draw(operator, seed=generator)


@pytest.mark.parametrize("name", ["alignments", "whitening"])
def test_the_random_directions_of_the_gradient_noise_follow_the_seed(name):
    problem = zoo.digits_problem(num_examples=20, widths=(3,))
    draw = getattr(cv, name)
    assert draw(problem) == draw(problem, seed=0) == draw(problem, seed=torch.Generator().manual_seed(0))
    assert draw(problem, seed=1) != draw(problem)


def test_sampled_labels_follow_the_seed():
    problem = zoo.digits_problem(num_examples=20, widths=(3,))

    def entries(*seed, **named):
        return cv.monte_carlo_fisher(problem, 2, *seed, **named).dense()

    assert torch.equal(entries(), entries(0))
    assert torch.equal(entries(), entries(seed=torch.Generator().manual_seed(0)))
    assert not torch.equal(entries(), entries(1))
    with pytest.raises(RemovedArgumentError, match="seed=generator"):
        entries(generator=torch.Generator())


@pytest.mark.parametrize("name", DRAWS)
def test_the_old_argument_is_refused_with_the_new_one(name):
    with pytest.raises(RemovedArgumentError, match=r"no longer takes generator=.*seed=generator"):
        DRAWS[name](semidefinite(), generator=torch.Generator())
