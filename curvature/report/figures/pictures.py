"""A figure as SVG text, and a spectrum as a picture for a terminal."""

from __future__ import annotations

import html
import io
import re
import warnings

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from curvature.records import Spectrum
from curvature.text import one_line

__all__ = ["PAGE_COLORS", "decade_counts", "inline_svg", "render_svg", "text_picture"]

PAGE_COLORS = {  # of figures, and their names in the style sheet of a page
    "#000000": "ink", "#ffffff": "paper", "#6b6b6b": "gray", "#e2e2e2": "hair", "#e9ecef": "shade", "#f3f3f3": "band",
    "#bdbdbd": "faint", "#e69f00": "series-orange", "#56b4e9": "series-sky", "#009e73": "series-green",
    "#0072b2": "series-blue", "#d55e00": "series-red", "#cc79a7": "series-purple",
}  # fmt: skip


def text_picture(spectrum: Spectrum, *, width: int = 80, bar: str = "█") -> str:
    """Count eigenvalues per decade of their absolute value, as bars of text for a terminal.

    Negative eigenvalues are drawn left of the scale, positive ones right; all those below the noise floor share the
    last line. Runs of empty decades are cut.

    Parameters
    ----------
    spectrum
        What to draw.
    width
        Characters of a line.
    bar
        What bars are made of; ``"#"`` where only ASCII can be printed.

    Returns
    -------
    str
        A title, then one line per decade.

    Examples
    --------
    >>> from curvature.records import Where
    >>> values = np.array([-2.0, 1e-20, 0.3, 0.5, 4.0])
    >>> record = Spectrum(Where("hessian", "standard"), values, False, "dense", 1e-15, 4, "threshold")
    >>> print(text_picture(record, width=50, bar="#"))
    hessian, standard: 5 eigenvalues, rank 4
            ######### 1     1e+00 1 #########
                      .     1e-01 2 #################
                          < floor 1 (noise floor 1.0e-15)
    """
    decades, hidden = decade_counts(spectrum)
    title = f"{one_line(spectrum.label)}: {spectrum.dim} eigenvalues, rank {spectrum.rank_words}"
    lines = [title if len(title) <= width else title[: width - 1] + "…"]
    most = max((count for pair in decades.values() for count in pair), default=0)
    digits = len(str(max(most, hidden, 1)))
    two_sided = any(negative for negative, _ in decades.values())
    room = min(40, (width - 14 - 2 * digits) // 2) if two_sided else min(60, width - 13 - digits)

    def length(count: int) -> int:
        return -(-count * room // most) if count else 0  # a single eigenvalue still shows

    margin = " " * (room + 1 + digits) if two_sided else ""
    above = None
    for decade in sorted(decades, reverse=True):
        if above is not None and above - decade > 1:
            lines.append(f"{margin}{'...':>10}")
        above = decade
        negative, positive = decades[decade]
        left = f"{bar * length(negative):>{room}} {negative or '.':<{digits}}" if two_sided else ""
        scale = f"1e{decade:+03d}"
        lines.append(f"{left}{scale:>10} {positive or '.':<{digits}} {bar * length(positive)}".rstrip())
    if hidden:
        lines.append(f"{margin}   < floor {hidden:<{digits}} (noise floor {spectrum.noise_floor:.1e})")
    return "\n".join(lines)


def decade_counts(spectrum: Spectrum, per_decade: int = 1) -> tuple[dict[int, tuple[int, int]], int]:
    """Count eigenvalues by the decade of their absolute value.

    Parameters
    ----------
    spectrum
        What to count.
    per_decade
        Bins of each decade, of equal width on a logarithmic axis.

    Returns
    -------
    tuple of dict and int
        Numbers of negative and of positive eigenvalues by ``floor(per_decade log10 |eigenvalue|)``, and the number of
        those below the noise floor.
    """
    values = spectrum.eigenvalues[np.abs(spectrum.eigenvalues) > spectrum.noise_floor]
    exponents = np.floor(per_decade * np.log10(np.abs(values))).astype(int)
    counts = {
        int(decade): (int((values[exponents == decade] < 0).sum()), int((values[exponents == decade] > 0).sum()))
        for decade in np.unique(exponents)
    }
    return counts, spectrum.dim - len(values)


def render_svg(figure: Figure, title: str, *, salt: str = "curvature") -> str:
    """Turn a figure into SVG text: no prolog, no date, no metadata, the same bytes every time.

    Parameters
    ----------
    figure
        What to write.
    title
        Text for screen readers.
    salt
        Enters the identifiers, so that two figures of one page do not share them.

    Returns
    -------
    str
        An ``svg`` element.
    """
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}), warnings.catch_warnings():
        # The text stays text, so the reader's fonts draw it: what matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font", UserWarning)
        canvas = figure.canvas
        # savefig would draw twice, the first time only to find the layout, which drawing does anyway.
        try:
            FigureCanvasSVG(figure).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        finally:
            figure.set_canvas(canvas)
    text = stream.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 'DejaVu Sans', Verdana, sans-serif", text)
    name = html.escape(one_line(title))
    opening = f'<svg role="img" aria-label="{name}" style="max-width:100%;height:auto" '
    return opening + text.removeprefix("<svg ").replace(">", f">\n <title>{name}</title>", 1)


def inline_svg(text: str) -> str:
    """Fit an SVG file into a page.

    Parameters
    ----------
    text
        What :func:`render_svg` returns.

    Returns
    -------
    str
        Without namespaces, which HTML knows itself: the page then names no address at all. Its colours are those of the
        page, which differ between light and dark.
    """
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
    text = re.sub(r'fill="(#\w{6})"', r'style="fill: \1"', text)  # of the ground of a hatch
    colors = rf"(?<=: )(?:{'|'.join(PAGE_COLORS)})(?=[;\"])"
    return re.sub(colors, lambda match: f"var(--{PAGE_COLORS[match[0]]})", text)
