"""One HTML page from the summary of a run and its figures: no script, nothing fetched, every text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curvature._version import __version__
from curvature.errors import ResourceError
from curvature.report.answer import trust_lines, why_lines
from curvature.report.drawings import Drawing
from curvature.report.drawings.runs import runs_answer
from curvature.report.figures import inline_svg
from curvature.report.glossary import glossary, linked
from curvature.report.plain import toml_text
from curvature.report.render import page_number, table_html
from curvature.report.table import Row, Table
from curvature.report.tables import tables_of
from curvature.report.tables.league import league_answer
from curvature.report.tables.spectra import rank_rules
from curvature.text import printable

__all__ = ["MAX_HTML", "analyses_page", "checkpoints_page", "grid_page", "html_page", "runs_page"]

MAX_HTML = 5_000_000
_PLACES = {
    "first": "claims",
    "overlay": "two-spectra",
    "sources": "sources",
    "league": "league",
}  # of figures outside of their section
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
    forms = ((drawings, True), (drawings, False), ((), False))
    return _first_that_fits(
        (_page(document, shown, svgs, with_numbers) for shown, with_numbers in forms),
        "Measure fewer matrices, charts or blocks.",
    )


def analyses_page(
    document: Mapping[str, Any], parts: Sequence[tuple[Table, str]], answer: str, warnings: Sequence[str]
) -> str:
    """Fill the template for overviews by layer.

    Parameters
    ----------
    document
        Model, data, configuration and provenance, in plain values.
    parts
        A table and its figure for each matrix and chart.
    answer
        The main numbers, in a sentence.
    warnings
        What to know before reading a number.

    Returns
    -------
    str
        The page.
    """
    from markupsafe import Markup

    return _of_one_run(
        "analysis.html",
        {"command": "analyze"} | dict(document),
        question=f"Where is the curvature of {document['model']}?",
        answer=answer,
        parts=[(table, Markup(inline_svg(svg))) for table, svg in parts],
        warnings=warnings,
    )


def checkpoints_page(document: Mapping[str, Any], tables: Sequence[Table], svg: str, answer: str) -> str:
    """Fill the template for the checkpoints of a training run.

    Parameters
    ----------
    document
        Model, data, notes, configuration and provenance, in plain values.
    tables
        One for each matrix.
    svg
        The figure.
    answer
        What changes from the first checkpoint to the last, in a sentence.

    Returns
    -------
    str
        The page.
    """
    from markupsafe import Markup

    return _of_one_run(
        "checkpoints.html",
        document,
        question=f"How does the curvature of {document['model']} change along training?",
        answer=answer,
        tables=tables,
        svg=Markup(inline_svg(svg)),
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
        The page. Where it would be too large, first the numbers of the figures go, then all figures but the first.

    Raises
    ------
    ResourceError
        If it would be too large even so.
    """
    forms = ((drawings, True), (drawings, False), (drawings[:1], False))
    shared = {
        "tables": tables,
        "numbers": {drawing.name: number for number, drawing in enumerate(drawings, start=1)},
        "svgs": _inlined(svgs),
    }
    return _first_that_fits(
        (
            _of_one_run("grid.html", document, drawings=shown, with_numbers=with_numbers, **shared)
            for shown, with_numbers in forms
        ),
        "Use fewer networks, or fewer matrices.",
    )


def runs_page(
    document: Mapping[str, Any],
    overview: Table,
    numbers: Sequence[Table],
    ratios: Table,
    drawing: Drawing | None,
    svgs: Mapping[str, str],
) -> str:
    """Fill the template for several runs.

    Parameters
    ----------
    document
        The runs, what differs between them, and their warnings, in plain values.
    overview, numbers, ratios
        The tables.
    drawing
        The picture of the ratios; None without one.
    svgs
        That picture in both its forms, and ``"eigenvalues"``, by name.

    Returns
    -------
    str
        The page.
    """
    from markupsafe import Markup

    return _filled(
        "runs.html",
        document,
        question=f"How do {len(document['runs'])} runs differ in their curvature?",
        answer=runs_answer(ratios, list(document["runs"])),
        drawing=drawing,
        numbers={} if drawing is None else {drawing.name: 1},
        svgs=_inlined(svgs),
        with_numbers=True,
        overview=overview,
        numbers_tables=numbers,
        ratios=ratios,
        svg=Markup(inline_svg(svgs["eigenvalues"])) if "eigenvalues" in svgs else None,
        warned=any(document["warnings"].values()),
    )


def _first_that_fits(pages: Iterable[str], advice: str) -> str:
    """The first form of a page that is small enough; later ones are made only if they are needed."""
    for page in pages:
        if len(page.encode()) <= MAX_HTML:
            return page
    raise ResourceError(f"the report would exceed {MAX_HTML / 1e6:.0f} MB even without figures. {advice}")


def _of_one_run(name: str, document: Mapping[str, Any], **values: Any) -> str:
    """Fill a template for one run, which has a provenance and a configuration."""
    versions, config = _versions(document["provenance"]), toml_text(document["config"])
    return _filled(name, document, versions=versions, config=config, **values)


def _filled(name: str, document: Mapping[str, Any], **values: Any) -> str:
    return str(_environment().get_template(name).render(doc=document, max_rows=MAX_ROWS, **values))


def _inlined(svgs: Mapping[str, str]) -> dict[str, Any]:
    """Figures as markup that is not escaped, by name."""
    from markupsafe import Markup

    return {name: Markup(inline_svg(svg)) for name, svg in svgs.items()}


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
        "linked": lambda text: Markup(linked(printable(text))),
        "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }
    environment.globals["glossary"] = glossary()
    return environment


def _page(document: dict[str, Any], drawings: Sequence[Drawing], svgs: Mapping[str, str], with_numbers: bool) -> str:
    named = {drawing.name: drawing for drawing in drawings}
    pictures = {key: named.pop(name, None) for key, name in _PLACES.items()}
    if pictures["first"] is None and named:
        pictures["first"] = named.pop(next(iter(named)))
    in_order = [drawing for drawing in (*pictures.values(), *named.values()) if drawing is not None]
    return _of_one_run(
        "report.html",
        document,
        pictures=pictures,
        drawings=list(named.values()),
        numbers={drawing.name: number for number, drawing in enumerate(in_order, start=1)},
        svgs=_inlined(svgs),
        with_numbers=with_numbers,
        tables=tables_of(document),
        rules=rank_rules(document),
        trust=trust_lines(document),
        why=why_lines(document),
        league=league_answer(document),
        passed=sum(check["passed"] for check in document["checks"]),
        untested=[row for row in document["verdicts"] if row["outcome"] == "not tested"],
        matrices={row["matrix"] for name in ("table", "extremes", "densities") for row in document[name]},
    )


def _versions(provenance: Row) -> dict[str, str]:
    versions = provenance.get("versions", {})
    known = {str(name): str(version) for name, version in versions.items()} if isinstance(versions, Mapping) else {}
    shown = ("curvature", "torch", "python", "numpy")
    return {"curvature": __version__} | {name: version for name, version in known.items() if name in shown}
