"""One HTML page from the summary of a run and its figures: no script, nothing fetched, every text escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from curvature._version import __version__
from curvature.errors import ResourceError
from curvature.report.drawings import Drawing
from curvature.report.figures import inline_svg
from curvature.report.plain import toml_text
from curvature.report.render import page_number, table_html
from curvature.report.table import Row, Table
from curvature.report.tables import tables_of
from curvature.report.tables.spectra import rank_rules
from curvature.text import printable

__all__ = ["MAX_HTML", "checkpoints_page", "grid_page", "html_page", "runs_page"]

MAX_HTML = 5_000_000
MAX_ROWS = 120  # of one table in the page; the rest is in the CSV


def html_page(document: dict[str, Any], drawings: Sequence[Drawing], svgs: Mapping[str, str]) -> str:
    """Fill the template.

    Parameters
    ----------
    document
        The summary of the run.
    drawings
        Its figures.
    svgs
        The figures as SVG, by name.

    Returns
    -------
    str
        The page. Where it would be too large, first the numbers of the figures go, then the figures.

    Raises
    ------
    ResourceError
        If it would be too large even so.
    """
    for shown, with_numbers in ((drawings, True), (drawings, False), ((), False)):
        page = _page(document, shown, svgs, with_numbers)
        if len(page.encode()) <= MAX_HTML:
            return page
    raise ResourceError(
        f"the report would exceed {MAX_HTML / 1e6:.0f} MB even without figures. Measure fewer matrices, charts or "
        "blocks."
    )


def checkpoints_page(document: Mapping[str, Any], tables: Sequence[Table], svg: str) -> str:
    """Fill the template for the checkpoints of a training run.

    Parameters
    ----------
    document
        Model, data, notes, configuration and provenance, in plain values.
    tables
        One for each matrix.
    svg
        The figure.

    Returns
    -------
    str
        The page.
    """
    from markupsafe import Markup

    template = _environment().get_template("checkpoints.html")
    return str(
        template.render(
            doc=document,
            tables=tables,
            svg=Markup(inline_svg(svg)),
            versions=_versions(document["provenance"]),
            config=toml_text(document["config"]),
            max_rows=MAX_ROWS,
        )
    )


def grid_page(
    document: Mapping[str, Any], tables: Sequence[Table], drawings: Sequence[Drawing], svgs: Mapping[str, str]
) -> str:
    """Fill the template for a grid of networks.

    Parameters
    ----------
    document
        Verdicts, cells, warnings, configuration and provenance, in plain values.
    tables
        Of the page.
    drawings
        Its figures.
    svgs
        The figures as SVG, by name.

    Returns
    -------
    str
        The page.
    """
    from markupsafe import Markup

    template = _environment().get_template("grid.html")
    return str(
        template.render(
            doc=document,
            tables=tables,
            drawings=drawings,
            svgs={name: Markup(inline_svg(svg)) for name, svg in svgs.items()},
            versions=_versions(document["provenance"]),
            config=toml_text(document["config"]),
            max_rows=MAX_ROWS,
        )
    )


def runs_page(
    document: Mapping[str, Any], overview: Table, numbers: Sequence[Table], ratios: Table, svg: str | None
) -> str:
    """Fill the template for several runs.

    Parameters
    ----------
    document
        The runs, what differs between them, and their warnings, in plain values.
    overview, numbers, ratios
        The tables.
    svg
        The figure; None if there is none.

    Returns
    -------
    str
        The page.
    """
    from markupsafe import Markup

    template = _environment().get_template("runs.html")
    return str(
        template.render(
            doc=document,
            overview=overview,
            numbers=numbers,
            ratios=ratios,
            svg=None if svg is None else Markup(inline_svg(svg)),
            warned=any(document["warnings"].values()),
            max_rows=MAX_ROWS,
        )
    )


def _environment() -> Any:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curvature.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {
        "number": page_number,
        "table": lambda table, *most_rows: Markup(table_html(table, *most_rows)),
        "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }
    return environment


def _page(document: dict[str, Any], drawings: Sequence[Drawing], svgs: Mapping[str, str], with_numbers: bool) -> str:
    from markupsafe import Markup

    template = _environment().get_template("report.html")
    return str(
        template.render(
            doc=document,
            drawings=drawings,
            svgs={name: Markup(inline_svg(svg)) for name, svg in svgs.items()},
            with_numbers=with_numbers,
            tables=tables_of(document),
            rules=rank_rules(document),
            versions=_versions(document["provenance"]),
            config=toml_text(document["config"]),
            max_rows=MAX_ROWS,
            matrices={row["matrix"] for name in ("table", "extremes", "densities") for row in document[name]},
        )
    )


def _versions(provenance: Row) -> dict[str, str]:
    versions = provenance.get("versions", {})
    known = {str(name): str(version) for name, version in versions.items()} if isinstance(versions, Mapping) else {}
    shown = ("curvature", "torch", "python", "numpy")
    return {"curvature": __version__} | {name: version for name, version in known.items() if name in shown}
