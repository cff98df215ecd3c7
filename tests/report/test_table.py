import csv
import html
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvature.records import Quantity
from curvature.report.render import table_csv, table_html, table_text
from curvature.report.table import Cell, Table, quantity_cell, spread_cell

HOSTILE = 'a\x1b[31m\u202e\n<b>&"=1'


def table(*rows, header=("chart", "rank", "kappa_95"), **fields):
    return Table("title", header, rows, **fields)


def cells(markup):
    """Texts of a rendered table, row by row."""
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", markup)]
    return [[html.unescape(re.sub(r"<[^>]*>", " ", cell)).split() for cell in row] for row in rows]


def test_the_same_table_is_text_html_and_csv():
    shown = table(("standard", 12, 0.5), ("weight-norm", 3, Cell(9.5, 8.0, 11.0)), notes=("how to read it",))
    assert table_text(shown).splitlines() == [
        "title",
        "chart        rank     kappa_95",
        "standard       12          0.5",
        "weight-norm     3  9.5 [8, 11]",
        "",
        "how to read it",
    ]
    page = table_html(shown)
    assert cells(page)[0] == [["chart"], ["rank"], ["κ₉₅"]]
    assert cells(page)[2] == [["weight-norm"], ["3"], ["9.5", "8", "to", "11"]]
    assert "<caption>how to read it</caption>" in page
    rows = list(csv.reader(io.StringIO(table_csv(shown))))
    assert rows == [["chart", "rank", "kappa_95"], ["standard", "12", "0.5"], ["weight-norm", "3", "9.5"]]


def test_a_row_of_one_entry_is_a_heading():
    shown = table(("GGN",), ("standard", 12, 0.5))
    assert table_text(shown).splitlines()[2:] == ["GGN", "  standard    12       0.5"]
    assert '<th class="text" scope="rowgroup" colspan="3">GGN</th>' in table_html(shown)
    assert "GGN" not in table_csv(shown)


@pytest.mark.parametrize(
    ("status", "text", "page"),
    [
        ("resolved", "2", "2"),
        ("lower_bound", "> 2 (1 of 3)", "&gt; 2"),
        ("unresolved", "(2) (1 of 3)", "2"),
        ("below_noise_floor", "< 2 (1 of 3)", "&lt; 2"),
    ],
)
def test_statuses_are_signs_in_a_terminal_and_words_in_the_page(status, text, page):
    share = "" if status == "resolved" else "1 of 3"
    shown = table(("standard", 1, Cell(2.0, status=status, share=share)))
    assert table_text(shown).splitlines()[2].endswith(f" {text}")
    assert f"<td>{page}" in table_html(shown)
    words = {"lower_bound": "lower bound (1 of 3)", "unresolved": "unresolved (1 of 3)"}
    assert status not in words or f'<small class="word">{words[status]}</small>' in table_html(shown)


def test_a_number_that_does_not_exist_is_its_status_or_a_dash():
    shown = table(("standard", None, Cell(None, status="indefinite")), ("other", 1, Cell(None)))
    assert [line.split()[1:] for line in table_text(shown).splitlines()[2:]] == [["-", "indefinite"], ["1", "-"]]
    assert cells(table_html(shown))[1:] == [[["standard"], ["–"], ["indefinite"]], [["other"], ["1"], ["–"]]]


def test_columns_that_exceed_the_terminal_follow_below():
    shown = table(*((f"row {k}", 10.0**k, 2.0**k) for k in range(3)))
    lines = table_text(shown, width=12).splitlines()
    assert lines[1].split() == ["chart", "rank"]
    assert lines[6].split() == ["chart", "kappa_95"]
    assert max(map(len, lines)) <= len("row 0  kappa_95")


def test_a_column_without_numbers_is_left_out_in_a_terminal():
    assert "rank" not in table_text(table(("standard", None, 1.0)))
    assert "rank" in table_html(table(("standard", None, 1.0)))


def test_the_page_counts_the_rows_it_leaves_out():
    page = table_html(table(*((f"row {k}", k, k) for k in range(5))), 3)
    assert len(cells(page)) == 1 + 3
    assert "2 more rows are in" in page


def test_names_are_escaped_everywhere():
    shown = table(
        (HOSTILE, HOSTILE, Cell(1.0, details=(HOSTILE,))), (HOSTILE,), notes=(HOSTILE,), header=(HOSTILE,) * 3
    )
    text, html, sheet = table_text(shown), table_html(shown), table_csv(table((f"={HOSTILE}", 1, 2)))
    for output in (text, html, sheet):
        assert not set(output) & set("\x1b\u202e")
    assert "<b>" not in html
    assert "\n<b>" not in text  # nor does a name begin a line
    assert list(csv.reader(io.StringIO(sheet, newline="")))[1][0].startswith("'=")


def test_fewer_columns_keep_headings():
    shown = table(("GGN",), ("standard", 12, 0.5)).without({"rank", "unknown"})
    assert (shown.header, shown.rows) == (("chart", "kappa_95"), (("GGN",), ("standard", 0.5)))


def test_a_spread_of_one_seed_has_no_range():
    item = {"median": 2.0, "low": 2.0, "high": 2.0, "count": 1, "status": "resolved", "affected": 0}
    assert spread_cell(item) == Cell(2.0, status="resolved")
    assert spread_cell(item | {"low": 1.0, "count": 3}) == Cell(2.0, 1.0, 2.0, status="resolved")
    assert spread_cell(item | {"median": None, "status": "indefinite"}) == Cell(None, status="indefinite")
    assert spread_cell(None) == quantity_cell(None) == Cell(None)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_quantity_is_printed_as_the_record_prints_it(value):
    item = {"value": value, "low": None, "high": None, "status": "resolved"}
    assert table_text(table(("x", 1, quantity_cell(item)))).splitlines()[2].split()[-1] == str(Quantity(value))
