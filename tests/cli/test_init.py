"""``curvature init``: what it writes runs as it is, and names every option with its default."""

import re
import tomllib

import pytest
from typer.testing import CliRunner

from curvature import cli
from curvature.cli.configuration import KINDS
from curvature.cli.init import configuration_text
from curvature.cli.options import signature


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return " ".join(result.stderr.split())


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


def sections():
    """Options that are comments, by command, with the text of their values."""
    parts = re.split(r"^# -+ (.+?) -+$", configuration_text(), flags=re.MULTILINE)[1:]
    options = re.compile(r"^(?:# )?(\w+) = (.+)$", re.MULTILINE)
    return {title: dict(options.findall(text)) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def test_what_it_writes_runs_as_it_is():
    message = run("init")
    assert message.endswith("next: curvature spectrum --config curvature.toml --trust-config")
    small = ["--config", "curvature.toml", "--num-examples", "40", "--arg", "width=3", "-m", "ggn"]
    assert "--trust-config" in run("spectrum", *small, code=2)
    for command in ("spectrum", "analyze"):
        assert "model: model.py:model(width=3)" in run(command, *small, "--trust-config")


def test_every_option_of_every_command_is_there():
    written = sections()
    for command, kind in KINDS.items():
        shown = {name for name in signature(kind).parameters if name in kind.model_fields}
        assert shown == shown & (written["Every command"].keys() | written[f"curvature {command}"].keys())


@pytest.mark.parametrize("command", KINDS)
def test_the_values_are_the_defaults(command):
    kind, written = KINDS[command], sections()
    for name, text in (written["Every command"] | written[f"curvature {command}"]).items():
        field = kind.model_fields[name]
        if field.default_factory is None and field.default not in (None, (), {}) and name not in ("model", "data"):
            value = tomllib.loads(f"{name} = {text}")[name]
            assert (tuple(value) if isinstance(value, list) else value) == field.default


def test_it_writes_where_it_is_told_and_replaces_nothing_unasked(here):
    assert "next: cd 'my study' && curvature spectrum" in run("init", "my study")
    (here / "my study" / "model.py").write_text("mine")
    message = run("init", "my study", code=2)
    assert "curvature.toml and my study/model.py exist" in message
    assert (here / "my study" / "model.py").read_text() == "mine"
    run("init", "my study", "--overwrite")
    assert "def model" in (here / "my study" / "model.py").read_text()


def test_a_folder_that_cannot_be_made_is_an_error_in_words(here):
    (here / "file").write_text("")
    assert "cannot be written" in run("init", "file/folder", code=2)
