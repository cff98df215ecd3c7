"""The directive ``options``: every option of a command, by panel, as its ``--help`` has it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from curvature.cli import app as application

COMMANDS = typer.main.get_command(application).commands


class Options(Directive):
    """Usage, description and options of the command that is named."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        command = COMMANDS[name]
        arguments = " ".join(f"[{p.metavar}]" for p in command.params if p.param_type_name == "argument")
        usage = " ".join(filter(None, ["curvature", name, arguments, "[OPTIONS]"]))
        described = [nodes.paragraph(text=" ".join(part.split())) for part in (command.help or "").split("\n\n")]
        panels = groupby(command.params, key=lambda p: getattr(p, "rich_help_panel", None) or "Options")
        tables = [part for panel, found in panels for part in (nodes.rubric(text=panel), definitions(list(found)))]
        return [nodes.literal_block(usage, usage, language="text"), *described, *tables]


def definitions(parameters: list[Any]) -> nodes.definition_list:
    """One entry for each option: its names and its value, then its help."""
    items = []
    for parameter in parameters:
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        names = names if parameter.param_type_name == "option" else parameter.metavar
        value = parameter.metavar if parameter.param_type_name == "option" else None
        term = nodes.term("", "", nodes.literal(text=f"{names} {value}" if value else names))
        text = nodes.paragraph(text=" ".join((getattr(parameter, "help", None) or "").split()))
        items.append(nodes.definition_list_item("", term, nodes.definition("", text)))
    return nodes.definition_list("", *items, classes=["options"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("options", Options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
