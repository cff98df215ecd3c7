"""``curvature doctor`` as a user runs it."""

import json

import pytest
import torch
from typer.testing import CliRunner

from curvature import cli
from curvature.cli.doctor import installed_extras
from curvature.errors import ExitCode
from curvature.studies import installation


def run(*arguments):
    return CliRunner().invoke(cli.app, ["doctor", *arguments])


@pytest.fixture(scope="module")
def document():
    result = run("--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_public_number_is_in_the_document_with_its_digits(document):
    assert document["schema"] == "curvature/doctor/1"
    assert {row["oracle"] for row in document["oracles"]} == {oracle.name for oracle in installation.ORACLES}
    assert all(row["passed"] for row in document["oracles"])
    assert document["machine"]["versions"]["torch"] == torch.__version__


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="names what torch 2.13 answers")
def test_known_faults_of_pytorch_are_looked_for(document):
    by_case = {row["case"]: row for row in document["derivatives"]}
    assert by_case["LayerNorm"]["func.hessian"]["outcome"] == "wrong"
    assert by_case["weight_norm of Linear, dim=0"]["double backward"]["outcome"] == "wrong"
    assert all(row["curvature"]["outcome"] == "right" for row in by_case.values())


@pytest.fixture
def one_oracle(monkeypatch):
    monkeypatch.setattr(installation, "ORACLES", [o for o in installation.ORACLES if "Spector" in o.name])


@pytest.mark.usefixtures("one_oracle")
def test_tables_show_the_machine_the_faults_and_the_numbers():
    result = run()
    assert result.exit_code == 0, result.stderr
    for words in ("This installation", torch.__version__, "Known faults of PyTorch", "wrong by", "57130.71"):
        assert words in result.stdout
    assert "all 9 published numbers are reproduced" in result.stderr
    assert "\x1b" not in result.stdout


@pytest.mark.usefixtures("one_oracle")
def test_a_number_that_is_missed_ends_with_6_and_says_which(monkeypatch):
    usual = installation.consult

    def off(oracle):
        rows = usual(oracle)
        object.__setattr__(rows[2], "computed", rows[2].computed * (1 + 1e-4))
        return rows

    monkeypatch.setattr(installation, "consult", off)
    result = run()
    assert result.exit_code == ExitCode.SELF_CHECK
    assert "MISSED" in result.stdout
    assert "Spector & Mazzeo, logistic regression: eigenvalue 3 of the Hessian" in result.stderr


@pytest.mark.usefixtures("one_oracle")
@pytest.mark.parametrize("outcome", ["wrong", "raises"])
def test_a_wrong_hessian_of_this_package_ends_with_6(monkeypatch, outcome):
    usual = installation.audit_cases

    def off(*arguments):
        rows = usual(*arguments)
        rows[0]["curvature"] |= {"outcome": outcome, "error": 0.5}
        return rows

    monkeypatch.setattr(installation, "audit_cases", off)
    result = run()
    assert result.exit_code == ExitCode.SELF_CHECK
    assert "the Hessian of LayerNorm" in result.stderr


@pytest.mark.usefixtures("one_oracle")
def test_the_audit_of_all_modules_is_asked_for_by_name(monkeypatch):
    asked = []
    usual = installation.audit_cases

    def few(names):
        asked.append(names)
        return usual(("LayerNorm", "weight_norm of Linear, dim=0", "Tanh"))

    monkeypatch.setattr(installation, "audit_cases", few)
    result = run("--derivatives", "-q")
    assert asked == [None]
    assert "The other 1 of 3 modules and losses are right by every route." in result.stdout
    assert result.stderr == ""


def test_extras_are_those_of_the_package_with_versions_or_missing(monkeypatch):
    extras = installed_extras()
    assert set(extras) == {"notebooks", "scale", "integrations", "grid", "peers", "docs"}
    monkeypatch.setattr("curvature.cli.doctor._version", lambda _: None)
    assert set(installed_extras()["peers"].values()) == {None}
