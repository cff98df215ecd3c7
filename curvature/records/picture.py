"""A small SVG drawing of a spectrum for notebooks, written by hand so that records need no plotting library."""

from __future__ import annotations

import math

import numpy as np

from curvature.arrays import Float

__all__ = ["spectrum_picture"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 300, 170, 46, 24
_MAX_POINTS = 80  # drawn; more would make a notebook heavy and overlap
_BLUE, _VERMILLION, _GRAY = "#0072B2", "#D55E00", "#777777"  # Okabe & Ito


def spectrum_picture(eigenvalues: Float[np.ndarray, "dim"], noise_floor: float, title: str) -> str:
    """Draw the absolute eigenvalues above the noise floor, by rank, on a logarithmic axis.

    Parameters
    ----------
    eigenvalues
        ``(D,)``, in any order.
    noise_floor
        Drawn as a dashed line, if positive.
    title
        Text for screen readers, already escaped.

    Returns
    -------
    str
        An ``<svg>`` element: dots for positive eigenvalues, crosses for negative ones.
    """
    sizes = np.abs(eigenvalues)
    order = np.argsort(-sizes, kind="stable")
    shown = order[sizes[order] > max(noise_floor, 0.0)]
    opening = (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'style="max-width:100%;height:auto;font:10px sans-serif">'
    )
    if not len(shown):
        return f'{opening}<text x="20" y="80">no eigenvalue above the noise floor</text></svg>'
    top, bottom = math.log10(sizes[shown[0]]), math.log10(sizes[shown[-1]])
    if noise_floor > 0:
        bottom = min(bottom, math.log10(noise_floor))
    high, low = math.ceil(top + 1e-9), math.floor(bottom)

    def x(rank: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * (rank + 0.5) / len(shown)

    def y(logarithm: float) -> float:
        return 6 + (_HEIGHT - _BOTTOM - 6) * (high - logarithm) / max(high - low, 1)

    parts = [opening, f'<g stroke="{_GRAY}" stroke-width="0.5" fill="none">']
    parts.append(f'<path d="M{_LEFT} 6V{_HEIGHT - _BOTTOM}H{_WIDTH - 8}"/>')
    if noise_floor > 0:
        parts.append(f'<path stroke-dasharray="4 3" d="M{_LEFT} {y(math.log10(noise_floor)):.1f}H{_WIDTH - 8}"/>')
    parts.append(f'</g><g fill="{_GRAY}" text-anchor="end">')
    ticks = range(low, high + 1, max(1, (high - low) // 4))
    parts += [f'<text x="{_LEFT - 4}" y="{y(tick) + 3:.1f}">1e{tick}</text>' for tick in ticks]
    parts.append(f'</g><text x="{_WIDTH - 8}" y="{_HEIGHT - 8}" fill="{_GRAY}" text-anchor="end">')
    parts.append(f"rank, 1 to {len(shown)}</text>")
    drawn = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), _MAX_POINTS)).round().astype(int))
    for rank in drawn.tolist():
        value = float(eigenvalues[shown[rank]])
        across, down = x(rank), y(math.log10(abs(value)))
        if value > 0:
            parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2" fill="{_BLUE}"/>')
        else:
            cross = f"M{across - 2:.1f} {down - 2:.1f}l4 4m0 -4l-4 4"
            parts.append(f'<path d="{cross}" stroke="{_VERMILLION}" stroke-width="1.2"/>')
    return "".join([*parts, "</svg>"])
