r"""How much does the gauge of weight norm change the conditioning of the GGN of a fixed function?

Claim tested: at stretch 1 (``||v|| = |g|``, what PyTorch's wrapper produces) weight norm changes no non-zero
eigenvalue. Any other stretch changes condition numbers, in either direction, by at most the factor of Ostrowski's bound
``max(1, rho) / min(1, rho)`` with ``rho = stretch**-2``. An answer is a curve of condition numbers against the stretch,
with a line at the standard value, which the curve meets at 1, and the bound as a cone around it.

    python -m analyses.gauge_sweep --out results/gauge_sweep [--fast]

Writes curves.json (every number in the figure) and figure.svg. About half a minute; ``--fast`` three seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, with_status, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRETCHES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SEEDS = (0, 1, 2)  # initializations; each curve is one
WIDTHS = (16,)  # small enough that every eigenvalue is computed
PERCENT = "kappa_80"  # l_1 / l_(80 % of the rank): robust, and resolved here; kappa_95 is in the JSON too


def measure(*, fast: bool = False) -> list[dict]:
    """One row per seed and stretch; ``stretch`` None is the standard chart."""
    num_examples = 200 if fast else None
    rows = []
    for seed in SEEDS[: 1 if fast else None]:
        problem = cv.zoo.digits_problem(num_examples, widths=(4,) if fast else WIDTHS, seed=seed)
        matrix = cv.ggn(problem).materialized()
        charts = [(None, cv.Standard()), *((s, cv.WeightNorm(stretch=s)) for s in STRETCHES)]
        for stretch, chart in charts:
            numbers = cv.spectrum(cv.pullback(matrix, chart)).condition_numbers()
            row = {"seed": seed, "stretch": stretch, "rank": numbers.rank, "rank_rule": numbers.rank_rule}
            rows.append(row | with_status(numbers, ("kappa_50", "kappa_80", "kappa_95")))
    return rows


def draw(rows: list[dict]) -> Figure:
    """Log condition number over the standard one, per seed, inside Ostrowski's cone."""
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    standard = {row["seed"]: row[PERCENT] for row in rows if row["stretch"] is None}
    bound = [max(s, 1 / s) ** 2 for s in STRETCHES]
    ax.fill_between(STRETCHES, [1 / b for b in bound], bound, color="0.9", label="Ostrowski's bound")
    for seed, marker in zip(standard, "osD^v", strict=False):
        curve = [row for row in rows if row["seed"] == seed and row["stretch"] is not None]
        ratios = [row[PERCENT] / standard[seed] for row in curve]
        ax.plot([row["stretch"] for row in curve], ratios, f"-{marker}", label=f"seed {seed}")
    ax.axhline(1, color="0.4", linestyle=":", label="standard")
    ax.axvline(1, color="0.4", linestyle="--", linewidth=0.8)
    ratios = [row[PERCENT] / standard[row["seed"]] for row in rows if row["stretch"] is not None]
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(0.5 * min(ratios), 2 * max(ratios)),
        xlabel=r"stretch $\|v\|\,/\,|g|$ (1 is the canonical gauge)",
        ylabel=f"{PERCENT} of the GGN, over its standard value",
        title="The gauge moves the condition number; the function does not change",
    )
    ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 200 examples, four hidden units").parse_args()
    rows = measure(fast=options.fast)
    write(options, __doc__, {"rows": rows}, draw(rows))
    standard = {row["seed"]: row[PERCENT] for row in rows if row["stretch"] is None}
    print(f"{'stretch':>8}  {PERCENT} over standard, per seed")
    for stretch in STRETCHES:
        ratios = [row[PERCENT] / standard[row["seed"]] for row in rows if row["stretch"] == stretch]
        print(f"{stretch:8g}  " + "  ".join(f"{ratio:10.4f}" for ratio in ratios))


if __name__ == "__main__":
    main()
