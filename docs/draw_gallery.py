"""Draw the figures of the gallery: ``python docs/draw_gallery.py [NAME ...]``, about three minutes for all of them.

Each file of ``docs/gallery`` begins with a title and a caption, and ends with ``ax`` or ``figure``. Its figure goes to
``docs/figures/gallery``, with a digest of the file that drew it, so that a test notices one that was not drawn again.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from curvature.report.figures import render_svg

GALLERY = Path(__file__).parent / "gallery"
FIGURES = Path(__file__).parent / "figures" / "gallery"
SHARED = {"small_study"}  # draw nothing themselves
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.figsize": (6.4, 4.2),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
}


def examples() -> dict[str, Path]:
    """Files that draw a figure, by name."""
    return {path.stem: path for path in sorted(GALLERY.glob("*.py")) if path.stem not in SHARED}


def digest(path: Path) -> str:
    """Of the title and the code that draw a figure, as the figure carries it."""
    _, text, code = path.read_text(encoding="utf-8").split('"""', 2)
    shared = [(GALLERY / f"{name}.py").read_text(encoding="utf-8") for name in sorted(SHARED) if name in code]
    return hashlib.sha256("".join([text.partition("\n")[0], code, *shared]).encode()).hexdigest()[:16]


def draw(path: Path) -> str:
    """Run one file, and return its figure as SVG."""
    draws_itself = "pyplot" in path.read_text(encoding="utf-8")  # the figures of the package have their own style
    with plt.rc_context(STYLE if draws_itself else {}):
        names = runpy.run_path(str(path))
    figure = names["figure"] if "figure" in names else names["ax"].figure
    title = names["__doc__"].partition("\n")[0]
    svg = render_svg(figure, title, salt=path.stem)
    plt.close("all")
    return f"{svg.strip()}\n<!-- drawn by {path.name} {digest(path)} -->\n"


def main(names: list[str]) -> None:
    """Draw the figures that are named, or all."""
    sys.path.insert(0, str(GALLERY))
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, path in examples().items():
        if names and name not in names:
            continue
        begun = time.perf_counter()
        svg = draw(path)
        (FIGURES / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(f"{name}: {len(svg) / 1000:.0f} kB, {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
