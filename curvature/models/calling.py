"""How the inputs are passed to ``forward``, and where the outputs are in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from curvature.errors import InputError
from curvature.models.trees import Structure, leaves_by_name

__all__ = ["OutputLike", "Reader", "arguments", "reader_of"]

OutputLike = str | int | Callable[[Any], Tensor]


def arguments(inputs: Structure, forward: Callable[..., Any]) -> tuple[tuple, dict[str, Any]]:
    """Arrange inputs as the arguments of ``forward``.

    Parameters
    ----------
    inputs
        A tensor, or a tuple, list or dictionary.
    forward
        Of the module.

    Returns
    -------
    args, kwargs
        A tensor is the only argument. A tuple or list is passed as ``forward(*inputs)`` and a dictionary as
        ``forward(**inputs)``; where the signature of ``forward`` does not allow that, as its only argument.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    try:
        inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        return (inputs,), {}
    except ValueError:  # a forward without a signature, of an extension
        pass
    return args, kwargs


@dataclass(frozen=True)
class Reader:
    """Reads the outputs, one row for each example, from what ``forward`` returns.

    Attributes
    ----------
    output
        A key or attribute, an index, or a function of what ``forward`` returns; None if it returns the outputs.
    classes_last
        Whether the classes are on the last axis. They are moved to the second, where PyTorch's cross-entropy has them.
    packed
        Whether the model gets one packed example without an axis for examples, which is added to its outputs.
    own_loss
        Whether this is the loss that the model computes.
    scalar
        Whether a pass returns one loss for all examples, so that every example needs a separate pass.
    """

    output: OutputLike | None = None
    classes_last: bool = False
    packed: bool = False
    own_loss: bool = False
    scalar: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the value of ``forward`` is used as it is."""
        return self == Reader()

    def __call__(self, returned: Any) -> Any:
        outputs = returned if self.output is None else _selected(returned, self.output)
        if self.scalar and isinstance(outputs, Tensor):
            return outputs.reshape(1)
        if self.packed and isinstance(outputs, Tensor):
            outputs = outputs[None]
        return outputs.movedim(-1, 1) if self.classes_last else outputs


def reader_of(returned: Any, output: OutputLike | None, own_loss: bool) -> tuple[OutputLike | None, str]:
    """Find the outputs in what ``forward`` returns.

    Parameters
    ----------
    returned
        What it returned.
    output
        What the user asked for; None to find a tensor or an entry that is called ``logits``, or ``loss`` if the module
        computes its own loss.
    own_loss
        Whether the loss of the module is read.

    Returns
    -------
    output, note
        The key, index or function that reads them, None if nothing needs to be read; and a sentence for the user about
        what was found, if it was not asked for.

    Raises
    ------
    InputError
        If there is no such entry, or several entries and none is asked for.
    """
    if output is not None:
        _selected(returned, output)
        return output, ""
    if isinstance(returned, Tensor):
        return None, ""
    wanted = "loss" if own_loss else "logits"
    names = _names(returned)
    if wanted in names:
        others = [name for name in names if name != wanted]
        return wanted, f"forward returns {_kind(returned, names)}; {wanted!r} is used." if others else ""
    if (only := _only_tensor(returned, own_loss)) is not None:
        note = f"forward returns {_kind(returned, names)}; entry {only!r} is used." if len(returned) > 1 else ""
        return only, note
    example = repr(names[0]) if names else "0" if isinstance(returned, tuple | list) else "lambda returned: ..."
    raise InputError(
        f"the model returns {_kind(returned, names)}, not one tensor. Name the entry that holds its "
        f"{'loss' if own_loss else 'outputs'}, for example output={example}, or pass a function that turns what "
        "forward returns into one tensor."
    )


def _only_tensor(returned: Any, own_loss: bool) -> str | int | None:
    """The place of the one tensor, or of the one scalar, in a tuple, list or dictionary."""
    if isinstance(returned, Mapping):
        entries = list(returned.items())
    elif isinstance(returned, tuple | list):
        entries = list(enumerate(returned))
    else:
        return None
    places = [k for k, part in entries if isinstance(part, Tensor) and (not own_loss or part.numel() == 1)]
    return places[0] if len(places) == 1 else None


def _selected(returned: Any, output: OutputLike) -> Any:
    """The entry of a returned value that an option names."""
    if not isinstance(output, str | int):
        return output(returned)
    try:
        if isinstance(output, str) and not isinstance(returned, Mapping):
            return getattr(returned, output)
        return returned[output]
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"output={output!r} is not in what the model returns: {_kind(returned, _names(returned))}."
        ) from error


def _names(returned: Any) -> list[str]:
    """Names of the entries of a dictionary, a named tuple, a dataclass or another object with tensors."""
    if isinstance(returned, Mapping):  # also the outputs of Hugging Face models
        return [name for name in returned if isinstance(name, str)]
    if hasattr(returned, "_fields"):
        return list(returned._fields)
    if is_dataclass(returned):
        return [field.name for field in fields(returned) if getattr(returned, field.name, None) is not None]
    if isinstance(returned, tuple | list | Tensor):
        return []
    return [name for name, value in getattr(returned, "__dict__", {}).items() if isinstance(value, Tensor)]


def _kind(returned: Any, names: list[str]) -> str:
    """Describe a returned value: its type, and its entries with their shapes."""
    kind = type(returned).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if names:
        return f"{article} {kind} with {', '.join(map(repr, names))}"
    if isinstance(returned, tuple | list):
        shapes = [
            tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            for _, leaf in leaves_by_name(returned, "")
        ]
        return f"{article} {kind} of {', '.join(map(str, shapes))}"
    return f"{article} {kind}"
