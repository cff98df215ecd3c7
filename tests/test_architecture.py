"""Imports point down: a wing has a floor and imports only from the floors below its own; see docs/architecture.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = (
    "_version arrays errors text < layout machine precision provenance removed < records < linalg < charts < models"
    " < matrices < natural_gradient < studies < report < cli"
)
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS.split(" < ")) for wing in wings.split()}
PACKAGE = Path(__file__).parents[1] / "curvature"
MAX_LINES = 400


def dotted(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {dotted(path): ast.parse(path.read_bytes()) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(module, nodes):
    """Yield the dotted names that a module imports, late and type-checking imports included."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def resolved(name):
    """The module of the package that an imported name comes from; None for other packages."""
    while name and name not in TREES:
        name = name.rpartition(".")[0]
    return name or None


IMPORTS = {module: set(imported(module, ast.walk(tree))) for module, tree in TREES.items()}
EDGES = {module: {resolved(name) for name in names} - {None, module} for module, names in IMPORTS.items()}


def wing(module):
    return (module + ".").split(".")[1]


@pytest.mark.parametrize("module", [module for module in TREES if wing(module) not in ("", "__main__")])
def test_module_imports_only_from_its_own_wing_and_lower_floors(module):
    assert wing(module) in FLOOR, f"give {wing(module)} a floor"
    others = {wing(other) for other in EDGES[module] if wing(other)} - {wing(module)}
    assert not {other for other in others if FLOOR.get(other, len(FLOOR)) >= FLOOR[wing(module)]}


def test_no_module_imports_itself_by_way_of_others():
    edges = {module: {other for other in EDGES[module] if other != "curvature"} for module in EDGES}

    def reachable(module):
        reached, queue = set(), set(edges[module])
        while queue:
            reached |= queue
            queue = {below for other in queue for below in edges[other]} - reached
        return reached

    assert not [module for module in edges if module in reachable(module)]


def test_matplotlib_is_imported_in_the_report_wing_alone():
    assert {wing(module) for module in TREES if any(re.match(r"matplotlib\b", name) for name in IMPORTS[module])} <= {
        "report"
    }


def test_no_module_is_named_for_want_of_a_name():
    assert not [module for module in TREES if re.search(r"([._]|^)(utils?|helpers?|misc|base)([.]|$)", module)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=dotted)
def test_module_is_short_enough_for_one_idea(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", [module for module in TREES if wing(module) in {"cli", "__main__"}])
def test_command_line_imports_torch_inside_its_commands(module):
    if module.startswith("curvature.cli.loading"):
        pytest.skip("loaded inside the commands")
    assert not [name for name in imported(module, TREES[module].body) if re.match(r"torch\b", name)]


@pytest.mark.parametrize("module", ["curvature", "curvature.cli"])
def test_import_does_not_load_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
