"""Completion of words by a shell, and the order of the commands."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from curvature import cli, zoo
from curvature.charts.registry import CHARTS
from curvature.cli import configuration
from curvature.cli.commands import _ORDER
from curvature.cli.configuration import KINDS, Shown
from curvature.models.losses import LOSSES


def test_words_that_a_shell_completes_are_those_of_the_registries():
    assert {name for name in LOSSES if not name.startswith(("binary-", "mean-"))} == set(configuration._LOSSES)
    assert set(zoo.DATA) == set(configuration._DATA_SETS)
    choices = {
        name: mark.choices
        for name, field in KINDS["spectrum"].model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Shown)
    }
    assert set(choices["model"]) == {f"builtin:{name}" for name in zoo.MODELS}
    assert set(choices["chart"]) == set(CHARTS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("curvature spectrum --matrix gg", ["ggn"]),
        ("curvature analyze --chart pl", ["placebo"]),
        ("curvature compare --loss mse", ["mse"]),
        ("curvature in", ["init"]),
    ],
)
def test_a_shell_completes_commands_and_values_without_torch(words, expected):
    environment = os.environ | {
        "_CURVATURE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = (
        "import sys; sys.argv = ['curvature']\nfrom curvature.cli import main\ntry:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr


def test_commands_are_listed_in_the_order_of_use():
    stdout = CliRunner().invoke(cli.app, ["--help"]).stdout
    listed = [line.split()[1] for line in stdout.partition("Commands")[2].splitlines() if line.startswith("│ ")]
    order = [word for word in listed if word in _ORDER]
    assert order == [word for word in _ORDER if word in order]
    assert {"init", "spectrum", "doctor"} <= set(order)
