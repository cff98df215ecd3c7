"""A private copy of a module: without wrappers, and with functions that cannot reach the user's objects."""

from __future__ import annotations

import copy
import dis
from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from curvature.errors import InputError
from curvature.models.behaviour import describe_layer, is_of_torch
from curvature.models.module.unregistered import unregistered
from curvature.models.module.wrappers import wrapped

__all__ = ["holding", "private_copy"]

_FUNCTIONS = FunctionType, MethodType, partial
_REFERRING = *_FUNCTIONS, nn.Module


def private_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a module in another precision, with nothing in the copy that could write into the user's objects.

    Wrappers (``torch.compile``, ``DataParallel`` and similar) are left out. Forward hooks and functions that replace a
    method of one module run as copies, which see copies of what they refer to. Backward hooks are left out: they have
    no influence on the loss. Tensors with a graph, which PyTorch refuses to copy, lose it; weight norm and
    parametrized recurrent layers leave such tensors behind.

    Parameters
    ----------
    module
        Any module; not modified.
    dtype
        Precision of the real parameters and buffers of the copy.

    Returns
    -------
    nn.Module
        The copy, without gradients.

    Raises
    ------
    InputError
        If the module, or what one of its hooks refers to, cannot be copied.
    """
    memo: dict[int, Any] = {}
    try:
        with _GraphsCut():
            for layer in reversed(list(module.modules())):
                if (inner := wrapped(layer)) is not None:
                    memo[id(layer)] = copy.deepcopy(inner, memo)
            model = copy.deepcopy(module, memo)
    except Exception as error:  # a user's module may raise anything
        raise InputError(
            f"the module cannot be copied ({type(error).__name__}: {error}). Everything is computed on a copy, to "
            "leave the original unchanged. Remove the attribute that copy.deepcopy cannot copy."
        ) from error
    with _GraphsCut():
        _isolate(module, memo)
    for parameter in model.parameters():
        parameter.grad = None
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return tensor.to(dtype)
        return tensor.to(complex_dtype) if tensor.is_complex() else tensor

    for _, tensor in unregistered(model):  # layers in a plain list, which _apply does not see
        tensor.data = convert(tensor.data)
    return model._apply(convert)  # Module.to would cast complex buffers to real ones


def holding(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy a module and put other tensors in the place of its parameters and buffers.

    Parameters
    ----------
    module
        Any module; not modified.
    tensors
        The tensors by name; the copy shares all others with the module.

    Returns
    -------
    nn.Module
        The copy, which keeps the tensors as long as it lives.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    model = copy.deepcopy(module, shared)
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        tables: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)
        next(table for table in tables if leaf in table)[leaf] = tensor
    return model


class _GraphsCut(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy a tensor that has a graph, without the graph, wherever it is kept.

    A tensor that was recorded inside ``torch.vmap`` has no values outside of it, and is replaced by an empty one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            memo[id(tensor)] = torch.empty(0)
        elif not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
        else:
            return func(*args, **(kwargs or {}))
        return memo[id(tensor)]


def _isolate(module: nn.Module, memo: dict[int, Any]) -> None:
    """Replace the functions in a copy, which ``copy.deepcopy`` shares with the original, by copies."""
    isolation = _Isolation(memo)
    for path, layer in module.named_modules():
        copied = memo.get(id(layer))
        if not isinstance(copied, nn.Module) or wrapped(layer) is not None:
            continue
        functions: list[tuple[MutableMapping, Any, Any]] = [
            (vars(copied), name, value) for name, value in vars(layer).items() if isinstance(value, _FUNCTIONS)
        ]
        functions += _hooks(layer, copied)
        for place, key, function in functions:
            try:
                place[key] = isolation.value(function)
            except Exception as error:  # what it refers to may be anything
                raise InputError(
                    f"the function {getattr(function, '__qualname__', type(function).__name__)!r}, a hook or an "
                    f"attribute of {describe_layer(path, layer)}, refers to something that cannot be copied "
                    f"({type(error).__name__}: {error}), so it would run on your own objects. Remove it first."
                ) from error
        copied._backward_hooks.clear()
        copied._backward_pre_hooks.clear()
        copied._is_full_backward_hook = None


def _hooks(layer: nn.Module, copied: nn.Module) -> Iterator[tuple[MutableMapping, int, Any]]:
    """The forward hooks of a layer, with the places for their copies."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        place = getattr(copied, kind)
        for key, hook in getattr(layer, kind).items():
            # The graph modules of torch.fx lose their hooks when they are copied, which PyTorch's own hooks allow for.
            if key in place or not is_of_torch(hook):
                for flags in (f"{kind}_with_kwargs", f"{kind}_always_called"):
                    if key in getattr(layer, flags, {}):
                        getattr(copied, flags)[key] = True
                yield place, key, hook


class _Isolation:
    """Copies functions together with the objects that they refer to, under one memo."""

    def __init__(self, memo: dict[int, Any]):
        self.memo = memo
        self.namespaces: dict[int, dict[str, Any]] = {}

    def value(self, value: Any) -> Any:
        """Copy anything; functions of PyTorch, classes and modules of Python are shared."""
        if isinstance(value, ModuleType):
            return value
        if isinstance(value, MethodType):
            return MethodType(self.value(value.__func__), self.value(value.__self__))
        if isinstance(value, partial):
            arguments = {name: self.value(part) for name, part in value.keywords.items()}
            return partial(self.value(value.func), *map(self.value, value.args), **arguments)
        if isinstance(value, FunctionType):
            return self._function(value)
        return copy.deepcopy(value, self.memo)

    def _function(self, function: FunctionType) -> Any:
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self.value(compiled)
        if id(function) in self.memo:
            return self.memo[id(function)]
        of_torch = is_of_torch(function)
        if of_torch and not function.__closure__:
            return function
        cells = tuple(CellType() for _ in function.__closure__ or ())
        namespace = function.__globals__
        if not of_torch:
            namespace = self.namespaces.setdefault(id(function.__globals__), dict(function.__globals__))
        copied = FunctionType(function.__code__, namespace, function.__name__, closure=cells)
        self.memo[id(function)] = copied  # before what it refers to, which may refer to it
        copied.__dict__.update(function.__dict__)
        copied.__qualname__, copied.__module__ = function.__qualname__, function.__module__
        copied.__defaults__, copied.__kwdefaults__ = (
            self.value(defaults) for defaults in (function.__defaults__, function.__kwdefaults__)
        )
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            if original == CellType():  # a name that is not bound yet has an empty cell
                continue
            content: Any = original.cell_contents
            shared = of_torch and not isinstance(content, _REFERRING)  # its locks, caches and callbacks
            cell.cell_contents = content if shared else self.value(content)
        for name in () if of_torch else _global_names(function.__code__):
            value = function.__globals__.get(name)
            elsewhere = isinstance(value, FunctionType) and value.__globals__ is not function.__globals__
            if name in function.__globals__ and not elsewhere:
                namespace[name] = self.value(value)
        return copied


def _global_names(code: CodeType) -> Iterator[str]:
    """Names of the module that a function uses, those in functions inside it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
