"""``curvature doctor``: what is installed, what this machine has, and whether it reproduces published numbers."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from curvature.cli.execution import libraries_are_loaded
from curvature.cli.tables import print_table
from curvature.cli.terminal import Terminal
from curvature.errors import ExitCode

if TYPE_CHECKING:
    from curvature.report.table import Table

__all__ = ["doctor", "installed_extras"]

_DISTRIBUTION = "curvature-toolkit"
_KNOWN_FAULTS = {
    "LayerNorm": "torch.func.hessian of LayerNorm",
    "weight_norm of Linear, dim=0": "double backward of PyTorch's own weight norm",
}
_ROUTES = {"LayerNorm": "func.hessian", "weight_norm of Linear, dim=0": "double backward"}


def doctor(terminal: Terminal, *, derivatives: bool, as_json: bool) -> None:
    """Check the installation and print the results.

    Parameters
    ----------
    terminal
        Receives progress and errors.
    derivatives
        Whether to audit every module of ``torch.nn``, which takes about a minute.
    as_json
        Print one JSON document instead of tables.

    Raises
    ------
    typer.Exit
        With the code of a failed self-check if a public number is missed, or a Hessian of this package is wrong.
    """
    from curvature import provenance
    from curvature.studies import installation

    libraries_are_loaded()
    machine = provenance.collect()
    terminal.note("public oracles ...")
    oracles = [row for oracle in installation.ORACLES for row in installation.consult(oracle)]
    terminal.note("second derivatives of PyTorch ...")
    audited = installation.audit_cases(None if derivatives else tuple(_KNOWN_FAULTS))
    extras = installed_extras()
    missed = [row for row in oracles if not row.passed]
    wrong = [row["case"] for row in audited if row["curvature"]["outcome"] in (installation.WRONG, installation.RAISES)]
    if as_json:
        numbers = [
            {name: getattr(row, name) for name in ("oracle", "quantity", "published", "computed", "digits", "passed")}
            for row in oracles
        ]
        document = {"schema": "curvature/doctor/1", "machine": machine, "extras": extras, "oracles": numbers}
        typer.echo(json.dumps(document | {"derivatives": audited}, allow_nan=False, default=str))
    else:
        tables = [_machine_table(machine), _extras_table(extras), _faults_table(audited), _oracles_table(oracles)]
        for table in [*tables, *([_derivatives_table(audited)] if derivatives else [])]:
            print_table(table, digits=10)
    if missed or wrong:
        first = f"{missed[0].oracle}: {missed[0].quantity}" if missed else f"the Hessian of {wrong[0]}"
        terminal.error(
            f"{len(missed) + len(wrong)} numbers are wrong, the first: {first}. Do not trust results "
            "of this installation. Install the versions of constraints.txt and run this command again."
        )
        raise typer.Exit(int(ExitCode.SELF_CHECK))
    terminal.note(f"all {len(oracles)} published numbers are reproduced")


def installed_extras() -> dict[str, dict[str, str | None]]:
    """Look up the optional packages.

    Returns
    -------
    dict
        For each extra, the version of each of its packages; None where it is not installed.
    """
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was not installed
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if match and match[2] != "dev":
            extras.setdefault(match[2], {})[match[1]] = _version(match[1])
    return extras


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine_table(machine: Mapping[str, Any]) -> Table:
    import torch

    from curvature.report.table import Table

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    rows: list[tuple[str, str]] = [(name, str(version)) for name, version in machine["versions"].items()]
    rows += [
        ("platform", str(machine["platform"])),
        ("CPU threads", str(machine["threads"])),
        ("CUDA", cuda),
        ("BLAS", ", ".join(f"{who}: {name}" for who, name in machine["blas"].items())),
        ("default dtype", f"{machine['default_dtype']} (matrices are float64 unless asked otherwise)"),
        ("float32 products", str(machine["float32_matmul_precision"])),
    ]
    if code := machine["code"]:
        rows.append(("checkout", f"{code['commit'][:12]}{', with changes' if code['dirty'] else ''}"))
    return Table("This installation", ("", "found"), tuple(rows))


def _extras_table(extras: Mapping[str, Mapping[str, str | None]]) -> Table:
    from curvature.report.table import Table

    rows = tuple(
        (extra, ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items()))
        for extra, packages in extras.items()
    )
    return Table("Optional packages", ("extra", "packages"), rows or (("-", "not installed from a package"),))


def _faults_table(audited: Sequence[Mapping[str, Any]]) -> Table:
    from curvature.report.table import Table

    by_name = {row["case"]: row for row in audited}
    rows = []
    for case, words in _KNOWN_FAULTS.items():
        there, here = by_name[case][_ROUTES[case]], by_name[case]["curvature"]
        rows.append((words, _answer(there), _answer(here)))
    return Table("Known faults of PyTorch", ("Hessian", "PyTorch", "curvature"), tuple(rows))


def _derivatives_table(audited: Sequence[Mapping[str, Any]]) -> Table:
    from curvature.report.table import Table
    from curvature.studies.installation import RIGHT, ROUTES

    notable = [row for row in audited if any(row[name]["outcome"] != RIGHT for name in ROUTES)]
    rows = tuple((row["case"], *(_answer(row[name]) for name in ROUTES)) for row in notable)
    note = f"The other {len(audited) - len(notable)} of {len(audited)} modules and losses are right by every route."
    return Table("Second derivatives of torch.nn, by route", ("module", *ROUTES), rows, (note,))


def _answer(answer: Mapping[str, Any]) -> str:
    return f"wrong by {answer['error']:.0%}" if answer["outcome"] == "wrong" else str(answer["outcome"])


def _oracles_table(oracles: Sequence[Any]) -> Table:
    from curvature.report.table import Table

    rows: list[tuple[Any, ...]] = []
    previous = None
    for row in oracles:
        if row.oracle != previous:
            rows.append((row.oracle,))
            previous = row.oracle
        rows.append(
            (row.quantity, f"{row.published:.10g}", row.shown, f"{row.digits:.0f}", "" if row.passed else "MISSED")
        )
    return Table("Public numbers", ("number", "published", "here", "digits", ""), tuple(rows))
