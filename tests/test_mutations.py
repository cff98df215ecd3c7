"""Planted defects: every numerical package has some, and the tests named beside each must fail.

Run them all with ``pytest -m slow tests/test_mutations.py`` (some minutes): each is planted in a copy of the package,
never in the package itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from planted import ROOT, Defect, Unplantable, plant
from planted.charts import DEFECTS as CHARTS
from planted.linalg import DEFECTS as LINALG
from planted.matrices import DEFECTS as MATRICES
from planted.models import DEFECTS as MODELS
from planted.natural_gradient import DEFECTS as NATURAL_GRADIENT
from planted.records import DEFECTS as RECORDS
from planted.report import DEFECTS as REPORT
from planted.studies import DEFECTS as STUDIES

TESTS = ROOT / "tests"
DEFECTS = [*MODELS, *CHARTS, *MATRICES, *LINALG, *RECORDS, *NATURAL_GRADIENT, *STUDIES, *REPORT]
# What a defect must not be found by: then it is no wrong number but a program that does not run.
ACCIDENTS = r"^E\s+(NameError|ImportError|ModuleNotFoundError|AttributeError|SyntaxError|UnboundLocalError|TypeError)\b"
EXAMPLE = '''
def mean(rows):
    """Mean of the rows."""
    total = 0
    for row in rows:  # one by one
        total += row
    return total / len(rows)

class Sum:
    if True:
        def of(self, first, *rest):
            return first + sum(rest)
'''


@pytest.fixture(scope="module")
def files_of_tests():
    """Files that define a test, by its name without ``test_``."""
    files = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for name in re.findall(r"^def test_(\w+)\(", path.read_text(), re.MULTILINE):
            files.setdefault(name, []).append(path)
    return files


@pytest.fixture
def package(tmp_path):
    (tmp_path / "example.py").write_text(EXAMPLE)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "source", "replacement", "changed"),
    [
        ("mean", "$sum += $x", "$sum -= $x", "        total -= row"),
        ("mean", "$a / len($b)", "$a", "    return total"),
        ("mean", "for $x in $y:\n    $$body", "$$body", "    total += row"),
        ("Sum.of", "sum($$all)", "max($$all)", "            return first + max(rest)"),
        ("", "$x + sum($y)", "$y + sum($x)", "            return rest + sum(first)"),
    ],
)
def test_an_edit_changes_the_code_it_describes_whatever_its_names(package, function, source, replacement, changed):
    path, text = plant(Defect("defect", f"example:{function}", source, replacement, ()), package)
    assert path == package / "example.py"
    compile(text, "example", "exec")
    assert changed in text.splitlines()


@pytest.mark.parametrize(
    ("function", "source", "replacement", "message"),
    [
        ("example:median", "$x", "$x", "example:median is defined 0 times"),
        ("examples:mean", "$x", "$x", "neither a module nor a package"),
        ("example:mean", "$a * $b", "$a", r"(?s)0 times.*The most similar there:\n    total / len\(rows\)"),
        ("example:mean", "$a += 1", "$a", "0 times"),
        ("example:Sum", "$a / $b", "$a", r"0 times(?s:.*)It is in example.py:mean\."),
        ("example:mean", "$a / len($a)", "$a", "0 times"),
        ("example:mean", "len(rows)", "$x", r"\$x of the new code does not occur"),
    ],
)
def test_an_edit_that_is_not_possible_exactly_once_says_why(package, function, source, replacement, message):
    with pytest.raises(Unplantable, match=message):
        plant(Defect("defect", function, source, replacement, ()), package)


def test_every_numerical_package_has_defects():
    counts = Counter(defect.package for defect in DEFECTS)
    least = {"layout": 2, "records": 7, "linalg": 29, "charts": 8, "models": 10, "matrices": 19}
    least |= {"natural_gradient": 6, "studies": 15, "report": 15, "cli": 1}
    assert {package: count for package, count in least.items() if counts[package] < count} == {}
    assert set(counts) == set(least)
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 111


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: f"{defect.function}: {defect.name}")
def test_defects_can_still_be_planted(defect, files_of_tests):
    path, text = plant(defect, ROOT / "curvature")
    compile(text, str(path), "exec")
    for test in defect.tests:
        found = [ROOT / test] if "/" in test else files_of_tests.get(test, [])
        assert len(found) == 1, f"{test} is defined in {len(found)} files of tests: {found}"
        assert found[0].is_file(), test


# The first counterexample will do: to find the simplest one takes most of the time.
UNSHRUNK = """
from hypothesis import Phase, settings

def pytest_configure():
    settings.register_profile("planted", parent=settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("planted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: f"{defect.function}: {defect.name}")
def test_defect_makes_its_tests_fail(defect, files_of_tests, tmp_path):
    shutil.copytree(ROOT / "curvature", tmp_path / "curvature", ignore=shutil.ignore_patterns("__pycache__"))
    path, text = plant(defect, tmp_path / "curvature")
    path.write_text(text)
    (tmp_path / "unshrunk.py").write_text(UNSHRUNK)
    # Tests of the repository against the copy, whose place comes first; doctests are the copy's own.
    tests = [
        str(tmp_path / test) if "/" in test else f"{files_of_tests[test][0]}::test_{test}" for test in defect.tests
    ]
    options = ["-n0", "-xq", "--tb=short", "-pno:cacheprovider", "-punshrunk", f"-c{ROOT / 'pyproject.toml'}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={ROOT}", "-o", f"pythonpath={tmp_path} {TESTS}", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    output = run.stdout[-3000:] + run.stderr[-500:]
    assert run.returncode == 1, f"the tests passed, or did not run:\n{output}"
    assert re.search(r"\d+ failed", run.stdout), output
    assert not re.search(ACCIDENTS, run.stdout, re.MULTILINE), output
