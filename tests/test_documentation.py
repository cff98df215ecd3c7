"""The documentation builds without a warning, needs no network, and lists what exists; its gallery is up to date."""

import importlib.util
import re
import runpy
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from matplotlib import pyplot as plt

import browser
import curvature as cv
from curvature.cli import app

DOCS = Path(__file__).parents[1] / "docs"
BUILT = ("sphinx", "myst_nb", "furo")


def drawing():
    """The script that draws the gallery."""
    specification = importlib.util.spec_from_file_location("draw_gallery", DOCS / "draw_gallery.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def targets(page):
    """What a page refers to: links, and what the browser loads by itself."""
    text = page.read_text(encoding="utf-8")
    links = [unescape(link) for link in re.findall(r'<a [^>]*href="([^"]+)"', text)]
    loaded = re.findall(r'<(?:img|script|source|iframe)[^>]* src="([^"]+)"', text)
    loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|icon|preload)[^>]* href="([^"]+)"', text)
    return links, [unescape(path) for path in loaded if not path.startswith("data:")]


def dead(page, links):
    """Links of a page to a file or to a place that does not exist."""
    found = []
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or link == "#":
            continue
        path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        anchor = unquote(parts.fragment)
        if not path.exists() or (anchor and f'id="{anchor}"' not in path.read_text(encoding="utf-8")):
            found.append(f"{page.name}: {link}")
    return found


def test_the_documentation_builds_without_warnings_opens_offline_and_lists_every_name_and_option(tmp_path):
    for package in BUILT:
        pytest.importorskip(package, reason="pip install -e '.[docs]' brings what builds the documentation")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees", DOCS, tmp_path]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr

    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        alternatives = re.findall(r'<img alt="([^"]*)"', page.read_text(encoding="utf-8"))
        assert not [text for text in alternatives if not text or text.endswith((".png", ".svg"))], page.name
        links, loaded = targets(page)
        assert not dead(page, links + loaded)
        assert not [path for path in loaded if urlsplit(path).scheme], page.name
        assert "cdn" not in page.read_text(encoding="utf-8").lower()

    reference = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "reference").glob("*.html"))
    names = set(cv.__all__) - {"__version__", *cv._MODULES}
    assert not {name for name in names if f'id="curvature.{name}"' not in reference}
    assert not re.findall(r"~\w+\.\w*|\$\$", reference)  # annotations and formulas that were not read
    assert {f'id="curvature.figures.{name}"' in reference for name in cv.figures.__all__ if name.islower()} == {True}

    options = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, parsed in typer.main.get_command(app).commands.items():
        section = options[options.index(f'id="curvature-{name}"') :].partition("</section>")[0]
        assert not [flag for part in parsed.params for flag in part.opts if flag[0] == "-" and flag not in section]

    if browser.PROGRAM:  # headless Chromium; the checks of the text above need none
        fits_a_phone(pages, tmp_path / "profile")


def fits_a_phone(pages, profile):
    """Whether pages are shown without a message, a request to the network, or text that is cut off."""
    window = browser.Browser(profile)
    clipped = browser.CLIPPED.replace("main *, header *", "article *").replace(
        ".scroll, pre", "pre, .table-wrapper, .formula"
    )
    try:
        for page in pages:
            window.open(page, 400, 900)
            assert (page.name, window.messages, window.run(clipped)) == (page.name, [], [])
            for dark in (False, True) if browser.AXE else ():
                window.open(page, 1200, 900, dark=dark)
                assert (page.name, browser.axe_findings(window)) == (page.name, [])
        assert not [url for url in window.requests if not url.startswith(("file:", "data:"))]
    finally:
        window.close()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\tfrac12\|f\|", r"\tfrac{1}{2}\|f\|"),
        (r"\frac1N\sum_n", r"\frac{1}{N}\sum_n"),
        (r"\log 10", r"\log\, 10"),
        (r"l_1, \dots, l_d", r"l_1, \ldots, l_d"),
    ],
)
def test_a_formula_is_read_as_tex_reads_it(written, read, monkeypatch):
    pytest.importorskip("sphinx", reason="pip install -e '.[docs]' brings what builds the documentation")
    monkeypatch.syspath_prepend(DOCS / "extensions")
    from mathematics import as_mathml

    assert "".join(as_mathml(written).split()) == "".join(as_mathml(read).split())
    assert 'lspace="0" rspace="0">|' in as_mathml("|g|")


def test_the_table_of_the_readers_test_is_that_of_its_script():
    script = runpy.run_path(DOCS / "measure_reading.py")
    page = (DOCS / "reading_a_report.md").read_text()
    rows = [line.split(" | ") for line in page.partition(script["HEAD"])[2].splitlines()]
    assert [row[0].removeprefix("| ") for row in rows] == [question.text for question in script["QUESTIONS"]]
    speed = script["WORDS_PER_MINUTE"]
    assert f" {speed} words a minute" in page
    assert [row[6].removesuffix(" |") for row in rows] == [f"{60 * int(row[4]) / speed:.0f}" for row in rows]


def test_the_reference_lists_every_public_name():
    """A new name goes into the page of its topic, ``docs/reference/*.rst``."""
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.rst"))
    listed = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", pages, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    public = {*cv.__all__, *(name for name in cv.figures.__all__ if name.islower())}
    public |= {name for name in cv.zoo.__all__ if name.islower()}
    missing = public - {"__version__", *cv._MODULES, *listed}
    assert not missing


def test_every_figure_of_the_gallery_was_drawn_by_the_present_lines():
    script = drawing()
    named = re.findall(r"^% example (\w+)$", (DOCS / "gallery.md").read_text(), re.MULTILINE)
    assert len(set(named)) == len(named)
    assert set(named) == script.examples().keys() | script.SHARED
    assert len(script.examples()) >= 20
    assert {path.stem for path in script.FIGURES.glob("*.svg")} == script.examples().keys()
    drawn = {name: (script.FIGURES / f"{name}.svg").read_text() for name in script.examples()}
    stale = [name for name, path in script.examples().items() if script.digest(path) not in drawn[name]]
    assert not stale, f"draw them again: python docs/draw_gallery.py {' '.join(stale)}"


def test_every_example_of_the_gallery_is_short_and_says_how_to_read_its_figure():
    for path in drawing().examples().values():
        _, text, code = path.read_text().split('"""', 2)
        title, blank, caption = text.split("\n", 2)
        assert (len(title) < 80, blank) == (True, "")
        assert len(caption) > 80
        assert not re.search(r"^\d+\. ", caption, re.MULTILINE), f"a list, for Markdown: {path.name}"
        assert len([line for line in code.splitlines() if line]) <= 25, path.name


QUICK = ("spectrum", "charts", "layers", "kappa", "ranks", "pixels", "eigenvectors", "plane", "extremes")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(path.stem for path in (DOCS / "gallery").glob("*.py") if path.stem != "small_study")
    ],
)
def test_the_lines_of_the_gallery_still_draw_a_figure(name, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "gallery")
    script = drawing()
    try:
        assert script.draw(script.examples()[name]).startswith("<svg")
    finally:
        plt.close("all")
