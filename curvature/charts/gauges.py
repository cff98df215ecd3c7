"""The gauge of a chart in words: what tells two charts of one name apart in every table, message and figure."""

from __future__ import annotations

__all__ = ["gauge_label"]


def gauge_label(*parts: str, layers: str | None = None, seed: int = 0) -> str:
    """Write a gauge: its parts, and what was chosen besides it.

    Parameters
    ----------
    *parts
        Of the gauge; empty ones are left out.
    layers
        The regular expression that chooses weights; None chooses all.
    seed
        Of what the chart draws at random; 0, the default everywhere, is not written.

    Returns
    -------
    str
        The parts separated by commas; ``"-"`` where nothing is to be told.

    Examples
    --------
    >>> gauge_label("paper", ""), gauge_label("-"), gauge_label("rank=4", layers="^0", seed=3)
    ('paper', '-', "rank=4, seed=3, layers='^0'")
    """
    chosen = [*parts, f"seed={seed}" if seed else "", "" if layers is None else f"layers={layers!r}"]
    return ", ".join(part for part in chosen if part not in ("", "-")) or "-"
