"""Check the annotations of the package while its tests run: public functions and methods, and the fields of records.

What an annotation forbids must not happen: a call with such an argument has to be refused by the function itself, with
its own message. So the function is called all the same, and the check complains only if it then returns. What a
function returns, and what a record is made of, must always be as annotated.
"""

import functools
import importlib.machinery
import inspect
import random
import sys
from dataclasses import is_dataclass
from types import FunctionType
from typing import runtime_checkable

import beartype
import jaxtyping
from beartype._check.code import codemain
from beartype.roar import BeartypeCallHintParamViolation

# Arithmetic is not among them: it answers NotImplemented to what it does not know.
DUNDERS = ("__init__", "__call__", "__matmul__", "__getitem__")
# Compared by identity in a table of their own module; and what a user's model returns, until its trial has refused it.
SKIPPED_MODULES, SKIPPED = ("curvature.cli", "curvature.models.zoo"), ("ModelFunction.predict", "Problem.predict")
# Which item of a list is looked at is drawn: from a generator of its own, as tests watch the global one.
codemain.getrandbits = random.Random(0).getrandbits
CHECKER = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float


def install():
    """Check every module of the package that is imported from now on, but the skipped ones."""
    assert "curvature.linalg" not in sys.modules, "the package was imported before its annotations could be checked"
    sys.meta_path.insert(0, _Finder)


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if not f"{fullname}.".startswith("curvature.") or fullname.startswith(SKIPPED_MODULES):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        for name, thing in list(vars(module).items()):
            if getattr(thing, "__module__", None) == module.__name__:
                setattr(module, name, checked(thing))


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
    if any("jaxtyping" in str(kind) for kind in function.__annotations__.values()):
        strict = jaxtyping.jaxtyped(function, typechecker=CHECKER)
    else:
        strict = CHECKER(function)  # takes a microsecond, and the other a hundred

    @functools.wraps(function)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        try:
            return strict(*args, **kwargs)
        except (jaxtyping.TypeCheckError, BeartypeCallHintParamViolation) as error:
            if not _is_about_parameters(error):
                raise
            violation = error
        function(*args, **kwargs)  # refuses what it does not take
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
    names = inspect.unwrap(function).__globals__ | names
    resolved = {}
    for name, kind in function.__annotations__.items():
        try:
            resolved[name] = eval(kind, names) if isinstance(kind, str) else kind
        except (NameError, AttributeError):
            continue
    return resolved


def _is_about_parameters(error):
    """Whether a check complains about the arguments of the function itself, rather than of one that it has called."""
    wrapper = error.__traceback__.tb_next
    if isinstance(error, jaxtyping.TypeCheckError):
        wrapper = wrapper.tb_next  # which has two of them
        if "checking the parameters of" not in str(error):
            return False
    return wrapper is not None and wrapper.tb_next is None
