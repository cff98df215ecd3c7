"""Names of weights in a checkpoint: prefixes of wrappers and of larger modules are removed, never silently."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from curvature.cli.wording import Say, listed
from curvature.errors import ConfigurationError, InputError

__all__ = ["normalized_name", "without_prefix"]

_INTERNAL = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}  # names that only PyTorch gives
_USUAL = {"module", "model"}  # names that wrappers give, and users too


def without_prefix(
    tensors: Mapping[str, Tensor], expected: Collection[str], strip: str | None = None, say: Say = lambda _: None
) -> dict[str, Tensor]:
    """Remove the prefix that a wrapper or a larger module has put before all names.

    Parameters
    ----------
    tensors
        Of the file, by name.
    expected
        Names in the model.
    strip
        The prefix that the user names: only the tensors whose names begin with it are used.
    say
        Receives a note about each prefix, and about tensors that are not used because their names do not have it.

    Returns
    -------
    dict
        The tensors under their new names. They need not fit the model.

    Raises
    ------
    ConfigurationError
        If no name begins with ``strip``.
    InputError
        If two names become one, or the weights of the model are in the file under several prefixes.
    """
    if strip is not None:
        tensors = _under(tensors, strip if strip.endswith(".") else f"{strip}.", say)
    wanted = {_plain(name) for name in expected}
    prefix = _prefix_of_all(tensors, wanted)
    if prefix is None:
        tensors = _without_wrappers(tensors, expected, say)
        prefix = _prefix_of_all(tensors, wanted)
    if prefix is None:
        prefix = _most_fitting_prefix(tensors, wanted)
    return _removed(tensors, prefix, say) if prefix else dict(tensors)


class _Parts(NamedTuple):
    """Tensors inside and outside of a prefix; those inside without it."""

    inside: dict[str, Tensor]
    outside: dict[str, Tensor]


def _split(tensors: Mapping[str, Tensor], prefix: str) -> _Parts:
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return _Parts(inside, {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)})


def _under(tensors: Mapping[str, Tensor], prefix: str, say: Say) -> dict[str, Tensor]:
    """The tensors under the prefix that the user named."""
    inside, outside = _split(tensors, prefix)
    if not inside:
        raise ConfigurationError(
            f"--strip-prefix {prefix!r}: no weight of the file has this prefix. Their names are {listed(tensors)}."
        )
    return _announced(inside, outside, prefix, say)


def _announced(inside: dict[str, Tensor], outside: Collection[str], prefix: str, say: Say) -> dict[str, Tensor]:
    """Report the removed prefix and unused tensors; refuse a name that occurs with and without the prefix."""
    for name in outside:
        if name in inside:
            raise InputError(_clash(prefix + name, name, name))
    unused = f" Not used, because their names do not have it: {listed(outside)}." if outside else ""
    say(f"note: removed the prefix {prefix!r} from the names of the weights.{unused}")
    return inside


def _prefix_of_all(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> str | None:
    """The one prefix under which the file has every weight of the model, which may be empty; None without one."""
    if not wanted:
        return None
    last = next(iter(wanted))
    ends = (_plain(name).removesuffix(last) for name in tensors if _plain(name).endswith(last))
    candidates = sorted({end for end in ends if end == "" or end.endswith(".")})
    fitting = [prefix for prefix in candidates if _holds(_split(tensors, prefix).inside, wanted)]
    if len(fitting) > 1 and "" not in fitting:
        raise InputError(
            f"the file has weights for the whole model under several prefixes: {listed(map(repr, fitting))}. Choose "
            "those to use with --strip-prefix PREFIX."
        )
    return min(fitting, default=None)


def _holds(tensors: Collection[str], wanted: Collection[str]) -> bool:
    return {_plain(name) for name in tensors} >= set(wanted)


def _most_fitting_prefix(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> str:
    """The common prefix whose removal makes the most names match the model; empty if none does."""

    def fitting(prefix: str) -> int:
        return len({_plain(name.removeprefix(prefix)) for name in tensors} & set(wanted))

    first = min(tensors, default="")
    common = [prefix for prefix in _prefixes(first) if all(name.startswith(prefix) for name in tensors)]
    best = max(common, key=fitting, default="")
    return best if fitting(best) > fitting("") else ""


def _removed(tensors: Mapping[str, Tensor], prefix: str, say: Say) -> dict[str, Tensor]:
    """Remove a detected prefix; tensors outside it, such as the state of a metric, are reported and not used."""
    inside, outside = _split(tensors, prefix)
    inside_size, outside_size = (sum(tensor.numel() for tensor in part.values()) for part in (inside, outside))
    if outside_size > inside_size:
        raise InputError(
            f"the file has the weights of the model under the prefix {prefix!r}, but most of its tensors are "
            f"outside this prefix: {listed(outside)}. To use only the part with the prefix, add --strip-prefix {prefix}"
        )
    for name in outside:
        short = ".".join(part for part in name.split(".") if part not in _INTERNAL | _USUAL)
        if short in inside:
            raise InputError(_clash(prefix + short, name, short))
    return _announced(inside, outside, prefix, say)


def _without_wrappers(tensors: Mapping[str, Tensor], expected: Collection[str], say: Say) -> dict[str, Tensor]:
    """Remove the names of wrappers wherever they are in a name, unless the model has them too."""
    in_model = {part for name in expected for part in name.split(".")}
    removable = (_INTERNAL | _USUAL) - in_model
    renamed: dict[str, str] = {}
    for name in tensors:
        short = ".".join(part for part in name.split(".") if part not in removable)
        if short in renamed.values():
            other = next(old for old, new in renamed.items() if new == short)
            raise InputError(_clash(other, name, short))
        renamed[name] = short
    found = sorted({part for name in tensors for part in name.split(".")} & removable)
    if found:
        say(f"note: removed {' and '.join(f'{part}.' for part in found)} from the names of the weights.")
    return {renamed[name]: tensor for name, tensor in tensors.items()}


def _clash(first: str, second: str, name: str) -> str:
    return (
        f"without their prefixes, {first} and {second} of the file would both be {name}. Save a file with one of them."
    )


def _prefixes(name: str) -> Iterator[str]:
    """Beginnings of a name that end in a dot."""
    return (name[: match.end()] for match in re.finditer(r"\.", name))


def _plain(name: str) -> str:
    """The name of a weight without weight normalization."""
    normalized = normalized_name(name)
    if normalized is None:
        return name
    layer, parameter, _ = normalized
    return f"{layer}.{parameter}" if layer else parameter


def normalized_name(name: str) -> tuple[str, str, int] | None:
    """Split the name of a tensor of a weight-normalized layer.

    Parameters
    ----------
    name
        In either of PyTorch's forms of weight normalization.

    Returns
    -------
    tuple or None
        Layer, parameter and part (0 for ``g``, 1 for ``v``); None for other names.
    """
    layer, _, leaf = name.rpartition(".")
    if leaf in {"original0", "original1"}:
        match = re.fullmatch(r"(?:(.*)\.)?parametrizations\.([^.]+)", layer)
        return (match[1] or "", match[2], int(leaf[-1])) if match else None
    if leaf.endswith(("_g", "_v")):
        return layer, leaf[:-2], "gv".index(leaf[-1])
    return None
