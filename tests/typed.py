"""Check the annotations of the package while its tests run: public functions and methods, and the fields of records.

Kinds and shapes of arrays are checked by jaxtyping, whose kinds take the place of those in ``curvature.arrays``. Where
the first argument of a call, or the object of a method, has a field ``dim``, the axis ``dim`` has that size.
"""

import functools
import importlib.machinery
import inspect
import itertools
import random
import sys
from dataclasses import is_dataclass
from types import FunctionType
from typing import runtime_checkable

import beartype
import jaxtyping
import numpy as np
from beartype._check.code import codemain
from beartype.roar import BeartypeCallHintParamViolation

from curvature import arrays

# Arithmetic is not among them: it answers NotImplemented to what it does not know.
DUNDERS = ("__init__", "__call__", "__matmul__", "__getitem__")
# What a user's model or loss returns, until a trial has refused it.
SKIPPED = ("ModelFunction.predict", "Problem.predict", "PerExample.terms")
KINDS = {kind: getattr(jaxtyping, kind) for kind in arrays.__all__}
# Shapes cost twenty microseconds a call: of a function's later calls, one in EVERY is checked.
ALWAYS, EVERY = 100, 16
DIM = jaxtyping.Shaped[np.ndarray, "dim"]
# Which item of a list is looked at is drawn: from a generator of its own, as tests watch the global one.
codemain.getrandbits = random.Random(0).getrandbits
CHECKER = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float


def install():
    """Check every module of the package that is imported from now on."""
    assert "curvature.linalg" not in sys.modules, "the package was imported before its annotations could be checked"
    sys.meta_path.insert(0, _Finder)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if not f"{fullname}.".startswith("curvature."):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
        strict = {id(thing): checked(thing) for thing in own}
        tables = [table for table in vars(module).values() if type(table) is dict]
        for table in [vars(module), *tables]:  # a table of functions holds the same ones as the module
            table |= {key: strict[id(thing)] for key, thing in table.items() if id(thing) in strict}


def checked(thing):
    """A function, or a class with its public methods and its fields, whose annotations are checked at each call."""
    if isinstance(thing, FunctionType):
        return thing if thing.__name__.startswith("_") else _checked_function(thing)
    if getattr(thing, "_is_protocol", False):
        return runtime_checkable(thing)
    if not isinstance(thing, type) or thing.__name__.startswith("_"):
        return thing
    for name, member in list(vars(thing).items()):
        if (name.startswith("_") and name not in DUNDERS) or getattr(member, "__isabstractmethod__", False):
            continue
        if isinstance(member, FunctionType):
            setattr(thing, name, _checked_function(member, thing))
        elif isinstance(member, classmethod | staticmethod):
            setattr(thing, name, type(member)(_checked_function(member.__func__, thing)))
        elif isinstance(member, property):
            setattr(thing, name, property(_checked_function(member.fget, thing), member.fset, doc=member.__doc__))
        elif isinstance(member, functools.cached_property):
            member.func = _checked_function(member.func, thing)
    return thing


def _checked_function(function, owner=None):
    if function.__qualname__ in SKIPPED:
        return function
    function.__annotations__ = _resolved(function, owner)
    strict = CHECKER(function)
    shaped = any("jaxtyping" in str(kind) for kind in function.__annotations__.values())

    calls = itertools.count()

    @functools.wraps(function)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if shaped and (number := next(calls)) > ALWAYS and number % EVERY:
            return function(*args, **kwargs)
        try:
            if not shaped:
                return strict(*args, **kwargs)
            with jaxtyping.jaxtyped("context"):  # the sizes of axes hold for one call
                size = getattr(args[0], "__dict__", {}).get("dim") if args else None
                if isinstance(size, int):
                    assert isinstance(np.broadcast_to(0, size), DIM)  # which sets it
                return strict(*args, **kwargs)
        except BeartypeCallHintParamViolation as error:
            frame = error.__traceback__.tb_next
            if frame is None or frame.tb_next is not None:  # a function that this one has called complains
                raise
            violation = error
        function(*args, **kwargs)  # refuses what it does not take
        if function.__name__ == "__init__" and hasattr(args[0], "validate"):
            args[0].validate()  # what was read from a file is refused by this, once the record is made
        raise violation

    return function if strict is function else call


def _resolved(function, owner):
    """Annotations as objects; without those that only a type checker imports."""
    names = dict(vars(sys.modules[function.__module__]))
    if owner is not None:
        names |= {"Self": owner, owner.__name__: owner}
        if is_dataclass(owner) and function.__name__ == "__init__":  # fields of a base know the names of its module
            for base in owner.__mro__:
                names = dict(vars(sys.modules[base.__module__])) | names
    names = inspect.unwrap(function).__globals__ | names | KINDS
    resolved = {}
    for name, kind in function.__annotations__.items():
        try:
            resolved[name] = eval(kind, names) if isinstance(kind, str) else kind
        except (NameError, AttributeError):
            continue
    return resolved
