"""Growth of time and memory: the peak, the fitted powers, the figure."""

import numpy as np
import pytest

from benchmarks.figure import draw_growth
from benchmarks.growth import exponents, resident_bytes


def test_the_peak_of_the_memory_is_seen_after_it_was_freed():
    before = resident_bytes(forget_peak=True)
    np.ones(8 * 2**20).sum()
    assert 60 * 2**20 < resident_bytes(peak=True) - before < 200 * 2**20
    assert resident_bytes() - before < 60 * 2**20


def test_exponents_are_slopes_in_logarithms():
    points = [
        {"along": "NP", "num_examples": 100, "dim": 50, "seconds": 1.0, "peak_bytes": 1e6},
        {"along": "N", "num_examples": 800, "dim": 50, "seconds": 8.0, "peak_bytes": 1e6},
        {"along": "P", "num_examples": 100, "dim": 800, "seconds": 256.0, "peak_bytes": 1.6e7},
    ]
    fitted = {name: slopes["fitted"] for name, slopes in exponents(points).items()}
    assert fitted["seconds against N"] == pytest.approx(1)
    assert fitted["seconds against P"] == pytest.approx(2)
    assert fitted["peak_bytes against N"] == pytest.approx(0)
    assert fitted["peak_bytes against P"] == pytest.approx(1)


def test_growth_is_drawn_with_its_fitted_and_its_theoretical_power():
    def row(along, dim, num_examples):
        header = {"along": along, "dim": dim, "num_examples": num_examples, "size": f"P={dim}, N={num_examples}"}
        return header | {"seconds": 1e-9 * num_examples * dim**2, "peak_bytes": 16.0 * dim**2}

    rows = [row("N", 100, 10), row("NP", 100, 40), row("P", 400, 40)]
    document = {"rows": rows, "growth": exponents(rows)}
    assert {name: fit["fitted"] for name, fit in document["growth"].items()} == pytest.approx(
        {"seconds against N": 1, "peak_bytes against N": 0, "seconds against P": 2, "peak_bytes against P": 2}, abs=1e-9
    )
    axes = draw_growth(document).axes
    assert [ax.get_title() for ax in axes] == ["dense Hessian, P = 100", "dense Hessian, N = 40"] * 2
    for ax in axes:
        measured, theory, *_ = ax.get_lines()
        np.testing.assert_allclose(measured.get_ydata(), theory.get_ydata())
        assert any(text.get_text().startswith("fitted power") for text in ax.get_legend().get_texts())
    limit = axes[3].get_lines()[-1].get_ydata()
    np.testing.assert_allclose(limit, [(3 * 8 * dim**2 + 2**28) / 2**20 for dim in (100, 400)])
