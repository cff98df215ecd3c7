"""What ``curvature spectrum`` is asked for: derivatives of the Hessian by finite differences."""

import numpy as np
import pytest
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, studies
from curvature.records import Spectrum


def settings(*matrices, **options):
    return studies.SpectrumSettings(matrices, [cv.Standard(), cv.WeightNorm()], gradient=False, **options)


def test_a_hessian_by_finite_differences_has_the_eigenvalues_of_automatic_differentiation_and_says_what_it_is():
    problem = cv.zoo.digits_problem(num_examples=30, widths=(2,))
    exact = studies.run_spectrum(problem, settings("hessian")).of(Spectrum)
    study = studies.run_spectrum(problem, settings("hessian", "ggn", derivatives="finite-differences"))
    differences = study.of(Spectrum, matrix="hessian (finite differences)")
    assert len(differences) == len(exact) == 2
    for one, other in zip(differences, exact, strict=True):
        floor = one.record.noise_floor + other.record.noise_floor
        assert np.abs(one.record.eigenvalues - other.record.eigenvalues).max() <= floor
        assert one.record.noise_floor > other.record.noise_floor
    assert len(study.of(Spectrum, matrix="ggn")) == 2


def test_finite_differences_are_refused_without_a_hessian_and_other_words_are_named():
    with pytest.raises(cv.ConfigurationError, match="only the Hessian can be computed by finite differences"):
        settings("ggn", derivatives="finite-differences")
    with pytest.raises(cv.ConfigurationError, match="derivatives must be one of autograd, finite-differences"):
        settings("hessian", derivatives="numerical")
    wrong = CliRunner().invoke(cli.app, ["spectrum", "--derivatives", "numerical"])
    assert wrong.exit_code == 2
    assert "should be 'autograd' or 'finite-differences', got 'numerical'" in " ".join(wrong.stderr.split())
