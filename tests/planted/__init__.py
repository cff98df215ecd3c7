"""Planted defects: a function of the package, a small edit of its syntax tree, and the tests that must then fail.

A defect names its function by package and qualified name and its edit by two pieces of Python, so comments, docstrings,
messages, formatting and moves between the modules of a package leave it as it is. In the pieces, ``$x`` stands for any
expression, the same one wherever it occurs, and ``$$x``, as the last item of a list, for all the remaining ones: so
local variables may be renamed too.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ONE, REST = "any_one_", "all_the_rest_"  # what `$x` and `$$x` are called while they are parsed


class Unplantable(Exception):
    """The function or the expression of a defect is missing, or is there more than once."""


class Defect(NamedTuple):
    """One defect: what it is, its function, the code that is replaced there, the new code, the tests that must fail.

    ``function`` reads ``models.losses:CrossEntropy.terms``: a module or a whole package of ``curvature``, then the
    qualified name; without the name it is the module itself. Tests are named without their file and without ``test_``;
    ``curvature/linalg/norms.py`` stands for the doctests of that file.
    """

    name: str
    function: str
    source: str
    replacement: str
    tests: tuple[str, ...]

    @property
    def package(self) -> str:
        return self.function.partition(":")[0].partition(".")[0]


def plant(defect: Defect, package: Path) -> tuple[Path, str]:
    """File of the package that the defect changes, and its text with the defect in it; changes nothing itself.

    Raises
    ------
    Unplantable
        If the function, or the code to replace in it, is not there exactly once.
    """
    path, tree, function = find_function(defect.function, package)
    pattern = parse(defect.source)
    new = parse(defect.replacement, statements=isinstance(pattern, list))
    matches = list(search(function, pattern))
    if len(matches) != 1:
        raise Unplantable(
            f"{defect.function} in {path} contains the code {len(matches)} times, not once:\n    {defect.source}\n"
            + (
                elsewhere(pattern, package / defect.package)
                or f"The most similar there:\n    {nearest(function, pattern)}"
            )
        )
    siblings, position, length, names = matches[0]
    new = substitute(new, names)
    if isinstance(siblings, list):
        siblings[position : position + length] = new if isinstance(new, list) else [new]
    else:
        setattr(siblings, position, new)
    return path, ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def find_function(function: str, package: Path) -> tuple[Path, ast.Module, ast.AST]:
    """File, tree and node of the one function of this name in a module or in the modules of a package."""
    module, _, qualified = function.partition(":")
    base = package / module.replace(".", "/")
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    if not all(file.is_file() for file in files):
        raise Unplantable(f"{function}: there is neither a module nor a package {base}.")
    matches = []
    for file in files:
        tree = ast.parse(file.read_text())
        matches += [(file, tree, node) for node in named(tree, qualified)]
    if len(matches) != 1:
        raise Unplantable(
            f"{function} is defined {len(matches)} times, not once: {[str(file) for file, *_ in matches]}"
        )
    return matches[0]


def named(node: ast.AST, qualified: str) -> Iterator[ast.AST]:
    """Functions and classes of a dotted name inside a node, conditional definitions included; the node without one."""
    if not qualified:
        yield node
        return
    first, _, rest = qualified.partition(".")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            if child.name == first:
                yield from named(child, rest)
        elif isinstance(child, ast.stmt):
            yield from named(child, qualified)


def parse(code: str, *, statements: bool = False) -> ast.expr | list[ast.stmt]:
    """An expression, else statements, with ``$x`` and ``$$x`` as names of their own."""
    code = re.sub(r"\$(\w+)", rf"{ONE}\1", re.sub(r"\$\$(\w+)", rf"{REST}\1", code))
    body = ast.parse(code).body
    if len(body) == 1 and isinstance(body[0], ast.Expr) and not isinstance(body[0].value, ast.Yield) and not statements:
        return body[0].value
    return body


def wildcard(node: object, prefix: str) -> str | None:
    """Name of the ``$x`` that a node of a pattern is, if it is one; a statement or a name of an attribute may be."""
    if isinstance(node, ast.Expr):
        node = node.value
    name = node.id if isinstance(node, ast.Name) else node
    return name if isinstance(name, str) and name.startswith(prefix) else None


def search(root: ast.AST, pattern: ast.expr | list[ast.stmt]) -> Iterator[tuple]:
    """Places where a pattern occurs: what holds it, attribute or index there, number of items, names it gives."""
    for node in ast.walk(root):
        for field, value in ast.iter_fields(node):
            if not isinstance(value, list):
                if not isinstance(pattern, list) and (names := match(pattern, value, {})) is not None:
                    yield node, field, 1, names
                continue
            for index in range(len(value)):
                if not isinstance(pattern, list):
                    names, length = match(pattern, value[index], {}), 1
                else:
                    length = len(value) - index if wildcard(pattern[-1], REST) else len(pattern)
                    names = match(pattern, value[index : index + length], {})
                if names is not None:
                    yield value, index, length, names


def match(pattern: object, node: object, names: dict[str, object]) -> dict[str, object] | None:
    """What each ``$x`` stands for where the node is an instance of the pattern; None where it is not."""
    name = wildcard(pattern, ONE)
    kinds = [kind for kind in (ast.expr, ast.stmt, str) if isinstance(pattern, kind)]
    if name and isinstance(node, kinds[0]):
        if name in names:
            return names if dump(names[name]) == dump(node) else None
        return names | {name: node}
    if isinstance(pattern, list) and isinstance(node, list):
        rest = wildcard(pattern[-1], REST) if pattern else None
        if rest:
            pattern, node, names = pattern[:-1], node[: len(pattern) - 1], names | {rest: node[len(pattern) - 1 :]}
        if len(pattern) != len(node):
            return None
        pairs = list(zip(pattern, node, strict=True))
    elif isinstance(pattern, ast.AST) and type(pattern) is type(node):
        fields = [field for field in pattern._fields if field not in ("ctx", "kind", "type_comment")]
        pairs = [(getattr(pattern, field), getattr(node, field)) for field in fields]
    else:
        # A number is another one when its type is: 0 and 0.0 and False.
        return names if type(pattern) is type(node) and pattern == node else None
    for inner, part in pairs:
        names = match(inner, part, names)
        if names is None:
            return None
    return names


def substitute(node: object, names: dict[str, object]) -> object:
    """The new code with the old expressions in the place of each ``$x``."""
    if name := wildcard(node, ONE):
        if name not in names:
            raise Unplantable(f"${name.removeprefix(ONE)} of the new code does not occur in the code it replaces.")
        return names[name]
    if isinstance(node, list):
        items = []
        for item in node:
            rest = wildcard(item, REST)
            items += names[rest] if rest else [substitute(item, names)]
        return items
    if isinstance(node, ast.AST):
        for field, value in ast.iter_fields(node):
            setattr(node, field, substitute(value, names))
    return node


def dump(node: object) -> str:
    """A text of a node that is equal for equal code, read or written."""
    return re.sub(r"ctx=\w+\(\)", "", ast.dump(node)) if isinstance(node, ast.AST) else repr(node)


def elsewhere(pattern: ast.expr | list[ast.stmt], package: Path) -> str:
    """Where in the package the code of a pattern is defined, as a sentence; empty if nowhere."""
    files = sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]
    places = [
        f"{file.relative_to(package.parent)}:{node.name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and any(search(node, pattern))
    ]
    return f"It is in {', '.join(places)}." if places else ""


def nearest(function: ast.AST, pattern: ast.expr | list[ast.stmt]) -> str:
    """The code of a function that is most similar to a pattern that is not in it, for the message."""
    kind = ast.stmt if isinstance(pattern, list) else ast.expr
    wanted = ast.unparse(pattern[0] if isinstance(pattern, list) else pattern).replace(ONE, "")
    codes = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, kind)]
    return max(codes, key=lambda code: difflib.SequenceMatcher(None, code, wanted).ratio(), default="")
