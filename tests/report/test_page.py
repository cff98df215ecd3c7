"""The report as a reader meets it: the answer and its picture first, then on a screen of any width, light and dark."""

import base64
import html
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import browser
from curvature import report
from curvature.cli import tables
from curvature.records import Check, ConditionNumbers, Measured, Spectrum, Study, Verdict, Where
from curvature.records.conditioning import condition_numbers
from curvature.report.answer import answer_of, question_of
from curvature.report.claims import claim_words, factor_of
from curvature.report.effects import Effect, text_forest
from curvature.report.glossary import glossary, linked
from curvature.report.tables.spectra import summary_tables
from curvature.studies.evidence import THRESHOLD, adjust, decide, decompose
from curvature.studies.evidence.claims import identity, training_speed

KAPPA = {
    "sentence": "Weight norm makes the GGN better conditioned (kappa_80 smaller)",
    "unit": "log(kappa_80 standard / kappa_80 weight norm)",
    "control": "canonical gauge",
    "control_estimate": 0.0,
    "control_passed": True,
}
STEPS = {
    "sentence": "A step makes more progress",
    "unit": "log(efficiency of weight norm / of the placebo), gauge paper",
}
INDEX = {"sentence": "It resembles", "unit": "index R of the efficiency", "threshold": 0.5}
BROKEN = STEPS | {"control": "placebo", "control_passed": False}


def verdict(claim, case, effects, **fields):
    fields = {"threshold": THRESHOLD, "method": "student", "min_pairs": 3} | fields
    return decide(Verdict(claim=claim, case=case, outcome="not tested", effects=tuple(effects), **fields))


def spectra():
    random = np.random.default_rng(0)
    for seed in range(3):
        for arm, chart, gauge in (
            ("standard", "standard", "-"),
            ("weight-norm", "standard", "-"),
            ("weight-norm", "weight-norm", "checkpoint"),
        ):
            values = np.sort(10.0 ** random.uniform(-6, 0, 60))
            where = Where("ggn", chart, gauge, effective=chart != "standard", num_examples=50)
            record = Spectrum(where, values, True, "dense", 1e-14, 60, "formula")
            for item in (record, condition_numbers(record)):
                yield Measured(arm, seed, "late", 60, item)


@pytest.fixture(scope="module")
def study():
    claims = adjust(
        [
            verdict("C1", "own training", [-0.15, 0.02, -0.08], **KAPPA),
            verdict("C1", "same weights", [0.06, 0.05, 0.055], **KAPPA),
            verdict("C7", "against random directions", [-0.9, -1.0, -1.1], **STEPS),
            verdict("C7", "index", [0.9, 0.95, 0.92], **INDEX),
            verdict("C8", "broken", [0.9, 0.95, 0.92], **BROKEN),
        ]
    )  # fmt: skip
    exact = identity("C5", [Check("one layer (seed 0)", 3e-16, 1e-10, claim="C5")])
    both = {frozenset(): [0.0] * 3, frozenset({"trajectory"}): [0.2, 0.1, 0.15],
            frozenset({"trajectory", "gauge"}): [0.1, 0.05, 0.1]}  # fmt: skip
    return Study(
        command="compare",
        model="builtin:digits-mlp",
        data="builtin:digits",
        num_weights=60,
        num_examples=50,
        measurements=tuple(spectra()),
        verdicts=(*claims, exact, training_speed([], [])),
        decompositions=(decompose(both, quantity="kappa_80", matrix="ggn"),),
        checks=(Check("symmetry", 1e-16, 1e-10),),
        config={"model": "builtin:digits-mlp"},
    )


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    return report.write_run(study, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text(encoding="utf-8")


def unfolded(page):
    """Text of the body outside of every fold, also of one within another."""
    depth, texts = 0, []
    for part in re.split(r"(</?details[^>]*>)", page[page.index("<body>") :]):
        depth += part.startswith("<details") - part.startswith("</details")
        texts += [part] if not depth else []
    return re.sub(r"<[^>]*>", "", " ".join(texts))


# --- the words


def test_the_answer_is_one_sentence_in_factors(study):
    document = report.study_document(study)
    assert document["question"] == "Does weight norm improve the conditioning of builtin:digits-mlp?"
    main, same = (row["number"] for row in document["verdicts"][:2])
    assert main.startswith(f"{math.exp(np.mean([0.15, -0.02, 0.08])):.2f} [")
    assert document["answer"]["plain"] == (
        "Undecided: after its own training, weight norm multiplies the condition number κ₈₀ of the GGN by "
        f"{main}, where below 1 is better; at the same weights an improvement of more than 10 % is excluded ({same})."
    )


def test_an_answer_without_a_number_is_a_sentence_too(study):
    (claim, *others) = study.verdicts
    bare = replace(claim, num_pairs=0, estimate=math.nan, low=math.nan, high=math.nan, outcome="undecided")
    document = report.study_document(replace(study, verdicts=(bare, *others)))
    begin = "Undecided: after its own training, for the condition number κ₈₀ of the GGN no pair has a number"
    assert document["answer"]["plain"].startswith(begin)


def test_a_factor_is_below_1_exactly_where_the_effect_favours_weight_norm():
    for unit in ("log(a / b)", "decades of learning rates, weight norm minus standard"):
        assert factor_of(unit, 0.3) < 1 == factor_of(unit, 0.0) < factor_of(unit, -0.3)
        assert factor_of(unit, math.inf) == 0.0
        assert factor_of(unit, -math.inf) == math.inf
    assert factor_of("log(a / b)", math.log(2)) == pytest.approx(0.5)
    assert factor_of("decades", 1.0) == pytest.approx(0.1)
    assert math.isnan(factor_of("|cos(w, e1)|, mean over neurons", 0.3))


def test_every_interval_on_the_page_is_at_95_percent_and_the_adjusted_one_in_the_fold(study, page):
    first, second = map(claim_words, study.verdicts[:2])
    for claim, factors in ((first, [0.15, -0.02, 0.08]), (second, [-0.06, -0.05, -0.055])):
        mean, half = np.mean(factors), 4.302652729749464 * np.std(factors, ddof=1) / 3**0.5  # Student's t
        ends = claim["factor_low"], claim["factor_high"]
        assert ends == pytest.approx((math.exp(mean - half), math.exp(mean + half)))
    assert study.verdicts[1].level > 0.96
    assert first["adjusted"].startswith(f"{100 * study.verdicts[0].level:.4g} % interval")
    assert set(re.findall(r"([\d.]+) % interval", unfolded(page))) == {"95"}
    assert f"Decided by the {first['adjusted']}" in html.unescape(page)


def test_a_control_that_failed_says_what_follows(study, page):
    (row,) = (row for row in report.study_document(study)["verdicts"] if row["case"] == "broken")
    assert row["outcome"] == "undecided"
    assert (
        "FAILED. So random directions come as near, and nearness says nothing about the weights."
        in row["control_words"]
    )
    assert unfolded(page).count("The claim stays undecided.") == 2  # at the claim and under trust


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("supported", "The whole interval shows an advantage of more than 10 %."),
        ("too small", "An advantage of more than 10 % is excluded."),
        ("opposite", "The whole interval shows a disadvantage of more than 10 %."),
    ],
)
def test_the_reason_of_a_verdict_has_its_threshold_in_percent(outcome, words):
    mean = {"supported": 0.5, "too small": 0.0, "opposite": -0.5}[outcome]
    claim = verdict("C1", "own training", mean + 0.01 * np.array([-1, 0, 1]), **KAPPA)
    assert claim.outcome == outcome
    assert claim_words(claim)["reason"] == words


def test_a_study_without_the_main_claim_has_another_question_and_no_verdict():
    assert question_of([], "net") == "How well conditioned is net?"
    assert answer_of([]) == {}


# --- the page


def test_the_order_of_the_page_is_that_of_a_reader(page):
    sections = ("spectra", "verdicts", "why", "trust", "findings", "table", "method", "provenance")
    order = ["<h1>", 'class="answer"', "Figure 1. Every claim", *(f'id="{name}"' for name in sections)]
    places = [page.index(mark) for mark in order]
    assert places == sorted(places)


def test_every_claim_is_in_the_picture_in_words_and_no_code_is_outside_of_a_fold(study, page):
    picture = page[page.index("<figure") : page.index("</figure>")]
    for row in report.study_document(study)["verdicts"]:
        assert row["label"].split(",")[0] in picture
        assert row["outcome"] in picture
    assert not re.search(r"\bC[1-8]\b", unfolded(page))


def test_every_term_that_is_linked_has_its_entry_and_every_name_is_unique(page):
    targets = set(re.findall(r'href="#(term-[\w-]+)"', page))
    entries = set(re.findall(r'<dt id="(term-[\w-]+)"', page))
    assert len(targets) > 12
    assert targets <= entries == {term.anchor for term in glossary().values()}
    names = [name.lower() for term in glossary().values() for name in (term.name, *term.also)]
    assert len(names) == len(set(names))


def test_a_link_changes_no_word_and_escapes_the_text():
    text = 'The <b>gauge</b> & "κ₈₀" of each pair of seeds; the noise floor, |κ|₉₅'
    links = linked(text)
    assert re.sub(r"</?a[^>]*>", "", links) == (
        "The &lt;b&gt;gauge&lt;/b&gt; &amp; &quot;κ₈₀&quot; of each pair of seeds; the noise floor, |κ|₉₅"
    )
    assert links.count("<a ") == 5


def test_runs_side_by_side_begin_with_an_answer_and_a_picture(study):
    half = tuple(
        replace(
            m, record=replace(m.record, values={k: replace(q, value=q.value / 2) for k, q in m.record.values.items()})
        )
        for m in study.measurements
        if isinstance(m.record, ConditionNumbers)
    )
    both = report.side_by_side({"a": study, "b": replace(study, measurements=half)})
    text = both.files["report.html"]
    assert "How do 2 runs differ in their curvature?" in text
    assert "Of 3 condition number κ₈₀ ratios to a, 3 are smaller by more than 10 %" in re.sub(r"<[^>]*>", "", text)
    assert text.count("0.50 [0.50, 0.50]") >= 3


def test_rows_of_the_hessian_of_other_ranks_say_why_they_cannot_be_compared(study):
    def remarks(rank):
        values = np.linspace(-1, 1, 60)
        rows = [
            Spectrum(
                Where("hessian", chart, gauge, effective=effective), values, False, "dense", 1e-14, own, "threshold"
            )
            for chart, gauge, effective, own in (("standard", "-", False, 50), ("weight-norm", "paper", True, rank))
        ]
        changed = replace(study, measurements=tuple(Measured("given", 0, "given", 0, row) for row in rows))
        (table,) = summary_tables(report.study_document(changed))
        return str(table.rows).count("other rank: not comparable"), len(table.notes)

    assert remarks(50) == (0, 0)
    assert remarks(58) == (1, 1)


# --- the terminal


def test_the_picture_in_characters_has_each_estimate_in_its_cell():
    lines = text_forest([Effect("x", 2.0, 1.0, 4.0), Effect("y", 0.25, 0.0, 0.5)], width=100)
    half = 15 / (1.12 * math.log(4))
    strips = [line[line.index(name) + 3 :][:31] for line, name in zip(lines, "xy", strict=False)]
    assert strips[0].index("●") == 15 + round(half * math.log(2))
    assert strips[1].index("●") == 15 - round(half * math.log(4))
    assert strips[1][0] == "◂"
    assert strips[1][15] == "│"


def test_one_screen_of_the_terminal_holds_the_answer_the_picture_and_the_claims(study, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    tables.print_compare(study, report.study_document(study), verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert lines[2].startswith("Undecided: ")
    assert sum(line.startswith(("✓", "≈", "✗", "?")) for line in lines) == 6
    assert "not tested: Steps to a fixed loss" in "\n".join(lines)
    monkeypatch.setenv("COLUMNS", "80")
    tables.print_compare(study, report.study_document(study), verbose=False)
    picture = capsys.readouterr().out.splitlines()[4:-6]
    assert max(map(len, picture)) <= 80


# --- in a browser

WIDTHS = [(width, dark) for width in (400, 1000, 1400) for dark in (False, True)]


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    if browser.PROGRAM is None:
        pytest.skip("needs Chromium: `apt install chromium`, or its path in CHROMIUM")
    window = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.mark.parametrize(("width", "dark"), WIDTHS)
def test_a_page_clips_nothing_logs_nothing_and_asks_for_nothing(window, run, width, dark, tmp_path):
    window.messages.clear()
    window.requests.clear()
    window.open(run / "report.html", width, 800, dark=dark)
    window.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert window.run(browser.CLIPPED) == []
    assert window.run(browser.UNREACHABLE) == []
    assert window.run("document.documentElement.scrollWidth") <= width
    window.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert window.messages == []
    assert window.requests == [(run / "report.html").resolve().as_uri()]


def test_the_first_screen_holds_the_answer_and_the_picture(window, run):
    window.open(run / "report.html", 1000, 800)
    assert window.run("document.querySelector('.answer').getBoundingClientRect().bottom") < 300
    assert window.run("document.querySelector('figure svg').getBoundingClientRect().bottom") < 800


def test_the_page_is_dark_where_the_reader_wants_it_and_light_on_paper(window, run):
    ground = "getComputedStyle(document.body).backgroundColor"
    axis = "getComputedStyle(document.querySelector('figure svg text')).fill"
    colors = {}
    for dark, media in ((False, "screen"), (True, "screen"), (True, "print")):
        window.open(run / "report.html", 1000, 800, dark=dark, media=media)
        colors[dark, media] = window.run(ground), window.run(axis)
    assert colors[False, "screen"] == colors[True, "print"] != colors[True, "screen"]
    assert colors[True, "screen"][0] == "rgb(21, 24, 28)"


def test_on_paper_words_are_unfolded_and_tables_are_left_out_with_a_note_unless_they_are_open(window, run):
    def hidden(folds):
        return window.run(
            f"[...document.querySelectorAll('{folds} > :not(summary)')].filter(e => !e.checkVisibility()).length"
        )

    def note(selector):
        return window.run(f"getComputedStyle(document.querySelector('{selector} > summary'), '::after').content")

    words, tables, left_out = "details:not(.data)", "details.data", "document.querySelector('.paper').checkVisibility()"
    window.open(run / "report.html", 1000, 800)
    assert hidden(words) > 10
    assert (note(tables), window.run(left_out)) == ("none", False)
    window.open(run / "report.html", 1000, 800, media="print")
    folded = hidden(tables)
    assert hidden(words) == 0 < folded == window.run(f"document.querySelectorAll('{tables}').length")
    assert "not printed" in note(tables)
    assert window.run(left_out)
    short = pages_printed(window)
    window.run(f"document.querySelector('{tables}').open = true")
    assert hidden(tables) == folded - 1
    assert note(f"{tables}[open]") == "none"
    window.run(f"document.querySelectorAll('{tables}').forEach(e => e.open = true)")
    assert (hidden(tables), window.run(left_out)) == (0, False)
    assert short < pages_printed(window)


def pages_printed(window):
    return len(re.findall(rb"/Type /Page\b", base64.b64decode(window.send("Page.printToPDF")["data"])))


def test_on_paper_no_row_or_figure_is_split_and_no_table_is_wider_than_the_page(window, run):
    window.open(run / "report.html", 720, 1000, media="print")  # the width of a page between its margins
    rules = "[...document.querySelectorAll('tr, figure')].every(e => getComputedStyle(e).breakInside == 'avoid')"
    assert window.run(rules)
    assert window.run("[...document.querySelectorAll('table')].every(e => e.getBoundingClientRect().right <= 720)")


def test_the_questions_of_a_reader_are_answered_without_opening_a_fold(window, run):
    """What the table of docs/reading_a_report.md measures, for the report of a study that was made up."""
    script = runpy.run_path(Path(__file__).parents[2] / "docs" / "measure_reading.py")
    window.open(run / "report.html", script["WIDTH"], script["HEIGHT"])
    questions = [question for question in script["QUESTIONS"] if question.text != "Can I trust the numbers?"]
    answers = [script["measure"](window, question) for question in questions]
    assert {answer.click for answer in answers} <= {"none", "link"}
    assert [answer.screen for answer in answers[:6]] == [1] * 6
    assert answers[1].answer == "Undecided"
    beyond = [answer.words for answer in answers if answer.screen > 1 and answer.click == "none"]
    assert beyond
    assert max(beyond) < 60  # from the heading of its section


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(window, run, dark):
    if browser.AXE is None:
        pytest.skip("needs axe-core: the path of axe.min.js of the npm package in AXE_CORE")
    window.open(run / "report.html", 1000, 800, dark=dark)
    assert browser.axe_findings(window) == []
