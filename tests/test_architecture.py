"""Imports point down: every room has a floor and imports only from the floors below its own."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = (
    "_version errors < arithmetic certificates lapack norms < layout provenance records < checks < operators <"
    " parameterization losses < problem < differences layers structured krylov < estimators spectra < nullspace <"
    " zoo matrices < conditioning < planning preconditioners < steps noise < evidence training < study < figures <"
    " report < loading < cli"
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS.split(" < ")) for room in rooms.split()}
MATRIX_WING = {
    "operators",
    "checks",
    "certificates",
    "krylov",
    "estimators",
    "spectra",
    "conditioning",
    "lapack",
    "norms",
    "planning",
}
# A record opens these rooms when it is asked to draw or to summarize itself; nothing is imported before that.
DOORS = {("records", "conditioning"), ("records", "figures")}
MODEL_WING = {"parameterization", "losses", "problem", "training"}  # layout is shared ground
PACKAGE = Path(__file__).parents[1] / "curvature"
TREES = {
    path.relative_to(PACKAGE).with_suffix("").parts: ast.parse(path.read_bytes()) for path in PACKAGE.rglob("*.py")
}


def imports(nodes, parts):
    """Yield dotted names: ``from a import b`` as ``a.b``, relative ones made absolute from the module ``parts``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["curvature", *parts][: -node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


ROOMS = {room: set() for room in sorted({parts[0] for parts in TREES} - {"__init__", "__main__"})}
for parts, tree in TREES.items():  # a folder is one room
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    ROOMS.get(parts[0], set()).update(imports(ast.walk(tree), parts))
# What a room imports from the package; ``from curvature import name`` counts as the room ``name``.
BELOW = {room: {(name + ".").split(".")[1] for name in ROOMS[room] if re.match(r"curvature\b", name)} for room in ROOMS}
for room, other in DOORS:
    assert not {name for name in imports(TREES[room,].body, (room,)) if name.startswith(f"curvature.{other}")}
    BELOW[room].discard(other)


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_from_lower_floors(room):
    assert room in FLOOR, f"give {room} a floor"
    assert not {other for other in BELOW[room] - {room} if FLOOR.get(other, len(FLOOR)) >= FLOOR[room]}


@pytest.mark.parametrize("room", sorted(MATRIX_WING & ROOMS.keys()))
def test_matrix_wing_never_reaches_the_model_wing(room):
    reached, queue = set(), {room}
    while queue:
        reached |= queue
        queue = {below for other in queue for below in BELOW.get(other, ())} - reached
    assert not reached & MODEL_WING


def test_matplotlib_is_imported_in_figures_and_report_alone():
    assert {room for room in ROOMS if any(re.match(r"matplotlib\b", name) for name in ROOMS[room])} <= {
        "figures",
        "report",
    }


def test_no_module_is_named_for_want_of_a_name():
    assert not [parts for parts in TREES if re.search(r"([._]|^)(utils?|helpers?|misc|base)([.]|$)", ".".join(parts))]


@pytest.mark.parametrize("parts", [parts for parts in TREES if parts[0] in {"cli", "__main__"}])
def test_command_line_imports_torch_inside_its_commands(parts):
    assert not [name for name in imports(TREES[parts].body, parts) if re.match(r"torch\b", name)]


@pytest.mark.parametrize("module", ["curvature", *("curvature.cli" for room in ROOMS if room == "cli")])
def test_import_does_not_load_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
