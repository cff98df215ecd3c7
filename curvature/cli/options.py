"""The options of the commands: one for each field of a configuration, and those that change no number."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from curvature.cli.completion import completion_of
from curvature.cli.configuration import DATA, MODEL, PANELS, Argument, Configuration, Shown, option_name

__all__ = ["RunOptions", "model_and_data", "option_words", "signature"]

_OUTPUT, _RUN = "Output", "Run"


def _option(panel: str, metavar: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text, **more)


@dataclass(frozen=True)
class RunOptions:
    """Options that change no number: where results go, what is shown, and where other options come from."""

    out: Annotated[
        Path | None,
        _option(
            _OUTPUT,
            "DIR",
            "Write a run directory with the result, tables, figures and the configuration; except for analyze, also "
            "report.html.",
            "--out",
        ),
    ] = None
    overwrite: Annotated[
        bool, _option(_OUTPUT, "", "Replace an earlier run in --out, finished or not.", "--overwrite")
    ] = False
    resume: Annotated[
        bool,
        _option(
            _OUTPUT,
            "",
            "Continue the interrupted run in --out from its finished parts, after a check that model, weights, data "
            "and options are those it was started with. Begins a run that was never started.",
            "--resume",
        ),
    ] = False
    as_json: Annotated[bool, _option(_OUTPUT, "", "Print one JSON document instead of tables.", "--json")] = False
    quiet: Annotated[
        bool,
        _option(_OUTPUT, "", "Print only warnings, errors and the names of executed files to stderr.", "--quiet", "-q"),
    ] = False
    verbose: Annotated[
        bool, _option(_OUTPUT, "", "Show all quantities, pictures and self-checks.", "--verbose", "-v")
    ] = False
    debug: Annotated[bool, _option(_OUTPUT, "", "Show the traceback of an error.", "--debug")] = False
    config: Annotated[
        Path | None,
        _option(_RUN, "FILE", "TOML file with these options, e.g. config.toml of an earlier run.", "--config"),
    ] = None
    settings: Annotated[
        list[str] | None,
        _option(_RUN, "KEY=VALUE", "Set any key of the configuration, e.g. momentum=0.9. Repeatable.", "--set"),
    ] = None
    trust_config: Annotated[
        bool,
        _option(_RUN, "", "Run the code that --config FILE names as model, data or loss.", "--trust-config"),
    ] = False
    strict: Annotated[
        bool,
        _option(
            _RUN,
            "",
            "Exit with code 3 unless every headline number is resolved (a bound does not suffice) and every claim is "
            "decided.",
            "--strict",
        ),
    ] = False
    fail_on: Annotated[
        list[str] | None,
        _option(
            _RUN,
            "RULE",
            "Exit with code 4 if a number passes a limit, e.g. 'kappa_95 > 1e8' or 'ggn/weight-norm: kappa_95 > 1e8'. "
            "The result is written all the same. Repeatable.",
            "--fail-on",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        _option(_RUN, "", "Print the plan: the work, its memory, and its time where known. Then stop.", "--dry-run"),
    ] = False


def signature(kind: type[Configuration], *, without: Collection[str] = ()) -> inspect.Signature:
    """Signature from which typer makes the options of a command.

    Parameters
    ----------
    kind
        Its configuration: one option for each field that is :class:`Shown`.
    without
        Fields that are no options of the command.

    Returns
    -------
    inspect.Signature
        Keyword arguments only, with the names of the fields.
    """
    hints = typing.get_type_hints(RunOptions, include_extras=True)
    run_options = [_keyword(name, hint, getattr(RunOptions, name)) for name, hint in hints.items()]
    kept = [option for option in run_options if option.name not in without]
    shown = [option for option in _configuration_options(kind) if option.name not in without]
    return inspect.Signature([*shown, *kept])


def model_and_data(config: Configuration) -> list[str]:
    """Options that name the model and the data of a configuration; those with their defaults are left out.

    Parameters
    ----------
    config
        Of any command.

    Returns
    -------
    list of str
        Words of a command line, e.g. ``["--model", "net.py:make", "--arg", "widths=2"]``.
    """
    arguments = []
    for name, field, mark in _shown_fields(type(config)):
        value = getattr(config, name)
        if mark.panel not in (MODEL, DATA) or value is None or value == field.default:
            continue
        values = [f"{key}={_argument_text(entry)}" for key, entry in value.items()] if name == "arg" else [value]
        arguments += option_words(name, values)
    return arguments


def option_words(field: str, values: Iterable[object]) -> list[str]:
    """Write an option as it is typed: repeated for several values, alone for a switch that is on.

    Parameters
    ----------
    field
        Its name in the configuration.
    values
        Of the option.

    Returns
    -------
    list of str
        Words of a command line.
    """
    return [
        word
        for value in values
        for word in ([option_name(field)] if value is True else [option_name(field), str(value)])
    ]


def _argument_text(value: Argument | list[Argument]) -> str:
    """Write an argument of the model in the form that ``--arg`` reads; a list of one ends in a comma."""
    if not isinstance(value, list):
        return str(value)
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "")


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _shown_fields(kind: type[Configuration]) -> list[tuple[str, FieldInfo, Shown]]:
    """Fields of a configuration that are options, in the order of their panels."""
    fields = [
        (name, field, mark)
        for name, field in kind.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Shown)
    ]
    return sorted(fields, key=lambda row: PANELS.index(row[2].panel))


def _configuration_options(kind: type[Configuration]) -> Iterator[inspect.Parameter]:
    for name, field, mark in _shown_fields(kind):
        if mark.argument:
            argument = typer.Argument(metavar=mark.metavar, help=mark.help, show_default=False)
            yield _keyword(name, Annotated[str | None, argument], None)
            continue
        names = [option_name(name), *([mark.short] if mark.short else [])]
        option = _option(
            mark.panel,
            mark.metavar,
            mark.help + _default_text(field),
            *names,
            autocompletion=completion_of(name),
            hidden=name in kind.refused,  # its use ends in the reason
        )
        # None, so that an option that was not used does not hide the value of a file.
        yield _keyword(name, Annotated[_parsed_type(field.annotation), option], None)


def _default_text(field: FieldInfo) -> str:
    if field.default_factory is not None or field.default in (None, False, (), {}):
        return ""
    shown = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    return f" Default: {shown}."


def _parsed_type(annotation: Any) -> Any:
    """Type that typer parses a field as; the configuration validates the rest."""
    kind = _plain_type(annotation)
    return kind if kind is bool else kind | None


def _plain_type(annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _plain_type(next(argument for argument in arguments if argument is not NoneType))
    if origin is Annotated:
        return _plain_type(arguments[0])
    if origin in (tuple, dict):
        return list[str]
    return str if origin is Literal else annotation
