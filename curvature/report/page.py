"""One HTML page from the document and the drawings: no script, nothing fetched, every text escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curvature._version import __version__
from curvature.errors import ResourceError
from curvature.report import figures
from curvature.report.document import HEADLINE
from curvature.report.drawings import Drawing
from curvature.report.figures import chart_label, grouped, matrix_name, printable, short_number
from curvature.report.findings import arm_words, block_words, capital, point_words, signed
from curvature.report.plain import toml_text

MAX_HTML = 5_000_000
MAX_ROWS = 120  # of one table in the page; the rest is in the CSV


def html_page(document: dict[str, Any], drawings: Sequence[Drawing], svgs: Mapping[str, str]) -> str:
    """Fill the template; where the page would be too large, first the figures' numbers go, then the figures."""
    for kept, with_rows in ((drawings, True), (drawings, False), ((), False)):
        text = _page(document, kept, svgs, with_rows)
        if len(text.encode()) <= MAX_HTML:
            return text
    raise ResourceError(
        f"the report would exceed {MAX_HTML / 1e6:.0f} MB even without figures: measure fewer matrices, charts or "
        "blocks."
    )


def _page(document: dict[str, Any], drawings: Sequence[Drawing], svgs: Mapping[str, str], with_rows: bool) -> str:
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
        "number": _cell,
        "signed": signed,
        "matrix": matrix_name,
        "quantity": lambda name: figures.QUANTITY_NAMES.get(name, name),
        "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }
    environment.globals |= {"chart_label": chart_label, "arm_words": arm_words}
    shown = [
        {
            "title": drawing.title,
            "caption": drawing.caption,
            "svg": Markup(figures.inline_svg(svgs[drawing.name])),
            "header": drawing.header,
            "rows": drawing.rows if with_rows else [],
        }
        for drawing in drawings
    ]
    last = document["checkpoints"][-1] if document["checkpoints"] else ""
    return environment.get_template("report.html").render(
        doc=document,
        drawings=shown,
        versions=_versions(document["provenance"]),
        ratios=_ratio_tables(document["ratios"], last),
        tables=_tables(document, last),
        rules=_rules(document),
        efficiencies=_efficiency_table(document, last),
        checks=_check_table(document["checks"]),
        config=toml_text(document["config"]),
        max_rows=MAX_ROWS,
        last=last,
        matrices={row["matrix"] for name in ("table", "extremes", "densities") for row in document[name]},
    )


def _cell(value: Any) -> str:
    """Print a number in a table: integers whole, the rest with three digits, nothing as a dash."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return str(int(value)).replace("-", "−") if value.is_integer() and abs(value) < 1e6 else short_number(value)
    return str(value)


def _versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    found = provenance.get("versions", {})
    kept = {str(k): str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}
    return {"curvature": __version__} | {
        k: v for k, v in kept.items() if k in ("curvature", "torch", "python", "numpy")
    }


def _ratio_tables(ratios: list[dict[str, Any]], last: str) -> list[dict[str, Any]]:
    """Lay log-ratios out by checkpoint, the last one first; what is equal or not comparable is named, not tabulated."""
    tables = []
    key = ("design", "arm", "matrix", "block", "chart", "gauge", "form")
    for checkpoint, members in grouped(ratios, lambda row: row["checkpoint"]).items():
        groups: dict[str, list[dict[str, Any]]] = {}
        left_out: dict[str, list[str]] = {}
        members = [row for row in members if not row["gauge"].startswith("stretch=")]
        for place, cells in grouped(members, lambda row: tuple(row[name] for name in key)).items():
            row = dict(zip(key, place, strict=True))
            row["cells"] = {cell["quantity"].removeprefix("abs_"): cell for cell in cells}
            row["absolute"] = any(cell["quantity"].startswith("abs_") for cell in cells)
            row["name"] = ", ".join(filter(None, (matrix_name(row["matrix"]), block_words(row["block"]), row["form"])))
            if all(cell["reading"] in ("equal", "not comparable") for cell in cells):
                reason = "equal to rounding" if cells[0]["compared"] else f"not comparable ({cells[0]['excluded']})"
                left_out.setdefault(reason, []).append(f"{row['name']} in {chart_label(row['chart'], row['gauge'])}")
            else:
                groups.setdefault(_comparison_words(row["design"], row["arm"]), []).append(row)
        names = [name for name in HEADLINE[:4] if any(name in r["cells"] for rows in groups.values() for r in rows)]
        notes = [f"{capital(reason)}: {'; '.join(dict.fromkeys(where))}." for reason, where in left_out.items()]
        tables.append({"checkpoint": checkpoint, "groups": groups, "names": names, "notes": notes})
    return sorted(tables, key=lambda table: table["checkpoint"] != last)


def _tables(document: dict[str, Any], last: str) -> list[dict[str, Any]]:
    """Cut the table into parts, one per point, and each of those into matrices; the gauge sweep apart."""
    rules = _rules(document)
    sweep = len({row["gauge"] for row in document["table"] if row["gauge"].startswith("stretch=")}) > 1
    parts = []
    for (arm, checkpoint, swept), rows in grouped(
        document["table"],
        lambda row: (row["arm"], row["checkpoint"], sweep and row["gauge"].startswith("stretch=")),
    ).items():
        step = f" (step {rows[0]['steps'][0]})" if len(rows[0]["steps"]) == 1 and checkpoint != "given" else ""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows[:MAX_ROWS]:
            several = len({r["form"] for r in rows if r["matrix"] == row["matrix"]} - {""}) > 1
            form = (row["form"] or "on the weights") if several else ""
            form = "in all coordinates of the chart" if form == "all coordinates" else form
            name = ", ".join(filter(None, (capital(matrix_name(row["matrix"])), block_words(row["block"]), form)))
            kappas = {name: row["numbers"].get(f"abs_{name}", row["numbers"].get(name)) for name in HEADLINE[:4]}
            tags = {name: f"abs_{name}" in row["numbers"] for name in HEADLINE[:4]}
            numbers = [rules.index(rule) + 1 for rule in row["rank_rules"]]
            groups.setdefault(name, []).append(row | {"kappas": kappas, "absolute": tags, "rules": numbers})
        parts.append(
            {
                "title": point_words(arm, checkpoint) + step + (": gauge sweep" if swept else ""),
                "open": checkpoint == last and not swept,
                "groups": groups,
                "names": [n for n in HEADLINE[:4] if any(r["kappas"][n] for rs in groups.values() for r in rs)],
                "hidden": max(0, len(rows) - MAX_ROWS),
            }
        )
    return sorted(parts, key=lambda part: not part["open"])


def _comparison_words(design: str, arm: str) -> str:
    if design == "own training":
        return f"{capital(arm)} arm in its own chart, against the standard arm in the standard chart"
    where = "Given weights" if arm == "given" else f"Weights of the {arm} arm"
    return f"{where}: other charts against the standard chart"


def _rules(document: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(rule for row in document["table"] for rule in row["rank_rules"]))


def _efficiency_table(document: dict[str, Any], last: str) -> dict[str, Any] | None:
    rows = [row for row in document["efficiencies"] if row["checkpoint"] == last and row["block"] == "all"]
    if not rows:
        return None
    damping = figures.nearest_damping({row["relative_damping"] for row in rows})
    rows = [row for row in rows if row["relative_damping"] == damping]
    charts = grouped(rows, lambda row: (row["chart"], row["gauge"]))
    lines = [{"chart": chart_label(*key), "cells": {row["arm"]: row for row in found}} for key, found in charts.items()]
    lines.sort(key=lambda line: max(row["efficiency"]["median"] or 0 for row in line["cells"].values()))
    return {"damping": damping, "arms": list(dict.fromkeys(row["arm"] for row in rows)), "lines": lines}


def _check_table(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join checks of one kind, told apart by the place in parentheses, in one row with the worst of them."""

    def badness(check: dict[str, Any]) -> float:
        return math.inf if check["value"] is None else check["value"] / max(check["tolerance"] or 0, 1e-300)

    rows = []
    for name, members in grouped(checks, lambda check: re.sub(r" \([^()]*\)$", "", check["name"])).items():
        failed = sum(not check["passed"] for check in members)
        rows.append({"name": name, "count": len(members), "failed": failed, "worst": max(members, key=badness)})
    return sorted(rows, key=lambda row: -row["failed"])
