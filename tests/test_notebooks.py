"""Notebooks are found, not listed: each script runs top to bottom, and its notebook has the same cells with outputs."""

import itertools
import json
from pathlib import Path

import jupytext
import pytest

from notebooks.__main__ import FOLDER, executed, scripts

SCRIPTS = scripts()
MOST_LINES, MOST_BYTES = 12, 200_000
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def cells_of(script: Path) -> list[dict]:
    """The cells of the committed notebook."""
    return json.loads(script.with_suffix(".ipynb").read_text())["cells"]


def test_there_are_notebooks_and_each_has_its_twin():
    assert SCRIPTS
    assert {path.stem for path in SCRIPTS} == {path.stem for path in FOLDER.glob("*.ipynb")}


@each_script
def test_notebook_has_the_cells_of_its_script(script):
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in cells_of(script)]
    assert cells == [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells], (
        f"run python -m notebooks {script.name[:2]}"
    )


@each_script
def test_notebook_is_small_and_has_the_outputs_of_one_run_from_top_to_bottom(script):
    code = [cell for cell in cells_of(script) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert code[-1]["outputs"], "the last cell prints the results"
    assert script.with_suffix(".ipynb").stat().st_size < MOST_BYTES


@each_script
def test_cells_are_short_and_follow_a_question(script):
    cells = jupytext.read(script).cells
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= MOST_LINES, cell.source
            assert not any(line.startswith("class ") for line in cell.source.splitlines()), (
                "classes belong into a module"
            )
        if before.cell_type == "markdown" and before.source.startswith("## "):
            assert before.source.splitlines()[0].endswith("?"), before.source


@each_script
def test_a_section_has_one_figure_and_prints_one_number(script):
    """All but the last, which prints the numbers of the notebook."""
    sections = []
    for cell in cells_of(script):
        if cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith("## "):
            sections.append(["".join(cell["source"]).splitlines()[0], 0, 0])
        for output in cell.get("outputs", []) if sections else []:
            sections[-1][1] += "image/png" in output.get("data", {})
            sections[-1][2] += len("".join(output.get("text", "")).splitlines())
    assert len(sections) > 4
    assert [section for section in sections[:-1] if section[1:] != [1, 1]] == []


@each_script
# the kernel's sockets and event loop warn while they close, outside this project's code
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_notebook_runs_and_ends_in_assertions(script):
    assert "assert " in executed(script, fast=True, timeout=120).cells[-1].source
