"""``curvature init``: a commented configuration, and a model and data to edit, which run as they are."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from pydantic.fields import FieldInfo

from curvature.cli.configuration import KINDS, PANELS, Configuration, Shown
from curvature.cli.terminal import Terminal
from curvature.errors import ConfigurationError

__all__ = ["configuration_text", "initialize"]

_CONFIGURATION, _MODEL = "curvature.toml", "model.py"
_WIDTH = 100
_CHOSEN = {"model": f"{_MODEL}:model", "data": f"{_MODEL}:data", "loss": "cross-entropy"}
_HEAD = f"""\
# Options of curvature. A line that begins with "# name =" shows an option that is not set, with its default or the kind
# of its value. Remove the "# " to set it. The command line overrides this file.
#
#   curvature spectrum --config {_CONFIGURATION} --trust-config
#
# --trust-config allows this file to name code that is run.
"""
_TEMPLATE = '''\
"""A model and its data for curvature: put your own in their place."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def model(width: int = 16) -> nn.Module:
    """Build the model; torch is seeded before. On the command line, --arg width=32 passes an argument.

    Weights of your own are loaded into it with --weights FILE.
    """
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, one row for each example, in fixed order.

    A torch.utils.data.Dataset, or a DataLoader without shuffling and random augmentation, will do as well.
    """
    digits = load_digits()
    inputs = torch.from_numpy(digits.data / 16.0)
    targets = torch.from_numpy(digits.target).long()
    return inputs[:500], targets[:500]
'''


def initialize(folder: Path, terminal: Terminal, *, overwrite: bool = False) -> None:
    """Write the configuration and the model, and say what to do with them.

    Parameters
    ----------
    folder
        Where to; it is made if it does not exist.
    terminal
        Receives the names of the files and the next command.
    overwrite
        Whether to replace files of these names.

    Raises
    ------
    ConfigurationError
        If the folder cannot be written, or has such a file and ``overwrite`` is not set.
    """
    files = {folder / _CONFIGURATION: configuration_text(), folder / _MODEL: _TEMPLATE}
    kept = [str(path) for path in files if path.exists() or path.is_symlink()]
    if kept and not overwrite:
        verb = "exist" if len(kept) > 1 else "exists"
        raise ConfigurationError(f"{' and '.join(kept)} {verb}. Name another folder, or replace with --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}. Name another folder.") from error
    for path in files:
        terminal.note(f"written: {path}")
    go = "" if folder.resolve() == Path.cwd().resolve() else f"{shlex.join(['cd', str(folder)])} && "
    terminal.note(f"next: {go}curvature spectrum --config {_CONFIGURATION} --trust-config")


def configuration_text() -> str:
    """Write a configuration with a comment on every option.

    Returns
    -------
    str
        TOML. Model, data and loss are set; everything else is a comment.
    """
    parts = [_HEAD, _section("Every command", list(_fields(Configuration)))]
    common = set(Configuration.model_fields) - {"matrix"}  # whose default depends on the command
    for command, kind in KINDS.items():
        parts.append(_section(f"curvature {command}", [row for row in _fields(kind) if row[0] not in common]))
    return "\n".join(parts)


def _fields(kind: type[Configuration]) -> Iterator[tuple[str, FieldInfo, Shown]]:
    """Options of a configuration in the order of the help, without those that have no default in this class."""
    rows = [
        (name, field, mark)
        for name, field in kind.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Shown) and not (kind is Configuration and field.is_required())
    ]
    yield from sorted(rows, key=lambda row: PANELS.index(row[2].panel))


def _section(title: str, rows: list[tuple[str, FieldInfo, Shown]]) -> str:
    lines = [f"# {f' {title} '.center(_WIDTH - 2, '-')}"]
    for name, field, mark in rows:
        lines += ["", *(f"# {line}" for line in textwrap.wrap(mark.help, _WIDTH - 2))]
        lines.append(_assignment(name, _CHOSEN[name]) if name in _CHOSEN else f"# {_unset(name, field, mark)}")
    return "\n".join(lines) + "\n"


def _unset(name: str, field: FieldInfo, mark: Shown) -> str:
    """An assignment of the default; where there is none, of the word that the help has for the value."""
    default = None if field.default_factory is not None else field.default
    if name == "arg":
        return f"{name} = {{ width = 32 }}"
    if default is None or default == ():
        word = mark.metavar if mark.metavar in ("N", "K", "X") else f'"{mark.metavar}"'
        return f"{name} = {word}" if default is None else f"{name} = [{word}]"
    return _assignment(name, list(default) if isinstance(default, tuple) else default)


def _assignment(name: str, value: Any) -> str:
    return tomli_w.dumps({name: value}).strip().replace("\n    ", " ").replace(",\n]", " ]")
