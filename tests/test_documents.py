"""README, CONTRIBUTING, CITATION and the pages of docs: they name what exists."""

import re
from pathlib import Path

import pytest
import typer

import curvature as cv
from curvature.cli import app
from curvature.cli.commands import EXIT_WORDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_the_documentation_lists_every_analysis_and_benchmark():
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("analyses.md", "benchmarks.md"))
    listed = set(re.findall(r"^\| `(\w+)` \|", pages, re.MULTILINE))
    scripts = {path.stem for path in (ROOT / "analyses").glob("[!_]*.py")}
    assert listed == scripts | {path.stem for path in (ROOT / "benchmarks").glob("peer_*.py") if path.stem != "peers"}


def test_citation_names_this_version():
    assert f"version: {cv.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_contributing_names_files_that_exist():
    """All but those that its examples add."""
    names = set(re.findall(r"`((?:curvature|tests|docs|benchmarks)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    missing = {name for name in names if not (ROOT / name).exists()}
    assert all(re.search(r"sinh|log_cosh|jacobian_gram|MODULE", name) for name in missing)
    assert len(names - missing) > 8


def test_architecture_names_modules_that_exist():
    """In the table of wings a file lies in the wing of its row; elsewhere it has its path in the package."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    listed = {f"{wing}/{name}" for wing, cell in rows for name in re.findall(r"`(\w+\.py)`", cell)}
    paths = set(re.findall(r"`([a-z_]+/[\w/]+\.py)`", text)) - {"tests/test_architecture.py", "tests/test_walks.py"}
    assert len(listed) > 8
    assert len(paths) > 12
    assert not [name for name in listed | paths if not (ROOT / "curvature" / name).exists()]


def test_the_page_of_commands_and_the_readme_name_every_command_and_only_options_that_exist():
    """In a command line of a page, an option is one of its command; elsewhere in the page, of any command."""
    commands = typer.main.get_command(app).commands
    options = {name: {word for p in command.params for word in p.opts} for name, command in commands.items()}
    page, readme = (ROOT / "docs" / "commands.md").read_text(), (ROOT / "README.md").read_text()
    assert set(re.findall(r"^## ([a-z]+)$", page, re.MULTILINE)) == set(commands)
    assert set(re.findall(r"^curvature (\w+)", readme, re.MULTILINE)) == set(commands)
    lines = "".join(path.read_text() for path in PAGES if path.parent.name == "how_to") + page + readme
    for command, words in re.findall(r"^(?:\$ |srun )?curvature (\w+)(.*)$", lines, re.MULTILINE):
        assert set(re.findall(r" (--?[a-z][a-z-]*)", words)) <= options[command] | {"--help"}, command
    general = {"--help", "--install-completion", "--show-completion"}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= set.union(general, *options.values())
    codes = re.findall(r"^\| ([0-9, ]+) \| ", page, re.MULTILINE)
    assert {int(code) for cell in codes for code in cell.split(",")} == set(EXIT_WORDS)
