"""Completion of words by a shell, and the order of the commands."""

import os
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from curvature import cli, zoo
from curvature.charts.registry import CHARTS
from curvature.cli.commands import _ORDER
from curvature.cli.completion import CHOICES
from curvature.cli.configuration import SpectrumConfiguration
from curvature.cli.loading.choices import GAUGES
from curvature.models.losses import LOSSES


def test_words_that_a_shell_completes_are_those_of_the_registries():
    losses = {name for name in LOSSES if not name.startswith(("binary-", "mean-"))}  # the short names of the help
    assert set(CHOICES["loss"]) == losses | {"model"}
    assert {word for word in CHOICES["data"] if word.startswith("builtin:")} == {f"builtin:{name}" for name in zoo.DATA}
    assert set(CHOICES["model"]) == {f"builtin:{name}" for name in zoo.MODELS}
    assert set(CHOICES["chart"]) == set(CHARTS)
    assert set(CHOICES["gauge"]) == set(GAUGES)
    for name in ("method", "dtype"):
        assert CHOICES[name] == get_args(SpectrumConfiguration.model_fields[name].annotation)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("curvature spectrum --matrix gg", ["ggn"]),
        ("curvature analyze --chart pl", ["placebo"]),
        ("curvature compare --loss mse", ["mse"]),
        ("curvature in", ["init"]),
        ("curvature spectrum --model builtin : digits-m", ["digits-mlp"]),  # as bash splits builtin:digits-m
        ("curvature spectrum --model builtin :", ["digits-mlp", "digits-cnn", "mlp"]),
        ("curvature spectrum --model = builtin : digits-m", ["digits-mlp"]),
        ("curvature spectrum --model builtin : mlp --matrix = gg", ["ggn"]),
        ("curvature spectrum --data mnist", ["mnist:"]),
    ],
)
def test_a_shell_completes_commands_and_values_without_torch(words, expected):
    environment = os.environ | {
        "_CURVATURE_COMPLETE": "complete_bash",
        "COMP_WORDS": words.replace(" ", "\n"),
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = (
        "import sys; sys.argv = ['curvature']\nfrom curvature.cli import main\ntry:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr


def test_a_command_without_a_place_in_the_order_is_listed_last(monkeypatch):
    monkeypatch.setattr("curvature.cli.commands._ORDER", _ORDER[1:])
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert result.stdout.index("│ doctor") < result.stdout.index("│ init")


def test_commands_are_listed_in_the_order_of_use():
    stdout = CliRunner().invoke(cli.app, ["--help"]).stdout
    listed = [line.split()[1] for line in stdout.partition("Commands")[2].splitlines() if line.startswith("│ ")]
    order = [word for word in listed if word in _ORDER]
    assert order == [word for word in _ORDER if word in order]
    assert {"init", "spectrum", "doctor"} <= set(order)
