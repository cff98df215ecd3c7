"""Models by name."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvature.cli.loading.code import call, find, parameters_of
from curvature.cli.loading.files import SAVE_WEIGHTS, existing, is_file, is_torchscript, refuse_large, unpickled
from curvature.cli.loading.wording import Say, choice, listed, near
from curvature.errors import ConfigurationError, InputError
from curvature.models import zoo
from curvature.provenance import hash_file

__all__ = ["Build", "load_model", "takes_images"]

Build = Callable[[int], nn.Module]

_MODEL_FORMS = "builtin:digits-mlp (or -cnn, or builtin:mlp), package.module:factory, path/file.py:factory or model.pt2"
_EXPORT = (
    "torch.export.save(torch.export.export(model.eval(), (inputs,), dynamic_shapes=({0: torch.export.Dim('n')},)), "
    "'model.pt2')"
)


def load_model(spec: str, arguments: Mapping[str, Any] | None = None, say: Say = lambda _: None) -> Build:
    """Find a model by name; the result builds it from a seed, in eval mode.

    Parameters
    ----------
    spec
        ``builtin:digits-mlp``, ``package.module:factory``, ``path/file.py:factory`` (executed) or ``model.pt2``.
    arguments
        Keyword arguments of the factory. One that takes ``seed`` gets the seed, any other runs right after
        ``torch.manual_seed(seed)``; the global generator is put back.
    say
        Told, in a sentence, whatever is executed or changed.
    """
    arguments = dict(arguments or {})
    if "seed" in arguments:
        raise ConfigurationError("the seed of the model is not an --arg: use --seed (or --seeds for paired runs).")
    kind, _, name = spec.partition(":")
    if kind == "builtin":
        factory = choice(name, zoo.MODELS, "built-in model", "builtin:")
        if isinstance(arguments.get("widths"), int):
            arguments["widths"] = [arguments["widths"]]
        if isinstance(arguments.get("channels"), int):
            arguments["channels"] = [arguments["channels"]]
    elif Path(spec).suffix == ".pt2":
        if arguments:
            raise ConfigurationError(f"--arg {next(iter(arguments))}: an exported program takes no arguments.")
        program = _load_exported(Path(spec), say)
        return lambda _seed: program.module()
    else:
        _refuse_saved_model(spec)
        factory = find(spec, "model", _MODEL_FORMS, say)

    parameters = parameters_of(factory)
    try:
        given = arguments | ({"seed": 0} if "seed" in parameters else {})
        inspect.Signature(parameters.values()).bind(**given)
    except TypeError as error:
        taken = ", ".join(name for name in parameters if name != "seed") or "no arguments"
        unknown = [name for name in arguments if name not in parameters]
        hint = near(unknown[0], parameters) if unknown else ""
        raise ConfigurationError(f"{spec}: {error}{hint}; it takes {taken}. Set them by --arg name=value.") from error

    def build(seed: int) -> nn.Module:
        seeded = arguments | ({"seed": seed} if "seed" in parameters else {})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = call(factory, seeded, spec)
        if not isinstance(model, nn.Module):
            raise InputError(f"{spec} must return a torch.nn.Module, it returned {type(model).__name__}.")
        return _in_eval_mode(model, say)

    return build


def takes_images(model: nn.Module) -> bool:
    """Whether the first layer with weights is a two-dimensional convolution."""
    layers = (layer for layer in model.modules() if next(layer.parameters(recurse=False), None) is not None)
    first = next(layers, None)
    return isinstance(first, nn.Conv2d | nn.ConvTranspose2d)


def _load_exported(path: Path, say: Say) -> Any:
    path = existing(path, "model").resolve()
    refuse_large(path)
    say(
        f"loading the exported program {path} (SHA-256 {hash_file(path)}): it can run code as a Python file can, so it "
        "is as trustworthy as where it comes from"
    )
    try:
        _refuse_members(path)
        with _nothing_but_tensors_unpickled():
            program = torch.export.load(path)
    except InputError:
        raise
    except Exception as error:  # the reader fails in many ways on what is not its own
        raise InputError(
            f"{path} is not an exported program that can be read here ({unpickled(error)}). Make one: {_EXPORT}."
        ) from error
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shapes = [tuple(node.meta["val"].shape) for node in inputs if isinstance(node.meta.get("val"), Tensor)]
    if shapes and shapes[0] and isinstance(shapes[0][0], int):
        raise InputError(
            f"{path} was exported for batches of exactly {shapes[0][0]} examples; curvature needs any number. Export "
            f"it with a free batch size: {_EXPORT}."
        )
    return program


def _refuse_members(path: Path) -> None:
    """Refuse what torch would unpickle as an object, and archives in the archive that unpack to more than is read."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if "custom_obj" in member.lower() or "opaque_obj" in member.lower():
                raise InputError(
                    f"{path} holds a pickled object ({member}), which is not unpickled: export without it."
                )
            with archive.open(member) as content:
                refuse_large(io.BytesIO(content.read()), f"{path}: {member}")


@contextlib.contextmanager
def _nothing_but_tensors_unpickled() -> Iterator[None]:
    """Hold ``torch.export.load`` to ``weights_only=True``, which it gives up where that fails; and to silence."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before, disabled = os.environ.get(name), logging.root.manager.disable
    os.environ[name] = "1"
    logging.disable(logging.CRITICAL)  # it logs a traceback; what matters of it is in the message
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own pytree internals
            yield
    finally:
        logging.disable(disabled)
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _refuse_saved_model(spec: str) -> None:
    path = Path(spec)
    if path.suffix == ".safetensors" or (path.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".ts"}):
        if is_file(path) and is_torchscript(path):
            raise InputError(
                f"{path} is TorchScript, which cannot be differentiated twice here. Export instead: {_EXPORT}."
            )
        remedy = "" if path.suffix == ".safetensors" else f" {SAVE_WEIGHTS}."
        raise InputError(
            f"{path} is a file of weights or of pickled objects, not a model, and is not unpickled, since that would "
            "run whatever it holds. Name the code by --model package.module:factory or path/file.py:factory, and pass "
            f"weights by --weights.{remedy}"
        )


def _in_eval_mode(model: nn.Module, say: Say) -> nn.Module:
    kinds = nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase
    switched = [name for name, layer in model.named_modules() if isinstance(layer, kinds) and layer.training]
    if switched:
        say(f"note: layers {listed(switched)} put in eval mode (no dropout, running statistics).")
    return model.eval()
