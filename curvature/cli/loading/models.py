"""Models by their names."""

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

from curvature.cli.loading.code import call_seeded, find, parameters_of
from curvature.cli.loading.files import SAVE_WEIGHTS, existing, is_file, is_torchscript, refuse_large, unpickling_error
from curvature.cli.loading.huggingface import load_folder
from curvature.cli.wording import Say, choice, listed
from curvature.errors import ConfigurationError, InputError
from curvature.models import zoo
from curvature.models.module.wrappers import inner_module, wrapper_notes
from curvature.provenance import hash_file
from curvature.text import did_you_mean

__all__ = ["Build", "load_model", "takes_images"]

Build = Callable[[int], nn.Module]

_MODEL_FORMS = (
    "builtin:digits-mlp (or -cnn, or builtin:mlp), package.module:factory, path/file.py:factory, hf:FOLDER or model.pt2"
)
_EXPORT = (
    "torch.export.save(torch.export.export(model.eval(), (inputs,), dynamic_shapes=({0: torch.export.Dim('n')},)), "
    "'model.pt2')"
)


def load_model(spec: str, arguments: Mapping[str, Any] | None = None, say: Say = lambda _: None) -> Build:
    """Load a model by its name.

    Parameters
    ----------
    spec
        ``builtin:digits-mlp`` (or another of ``zoo.MODELS``), ``package.module:factory``, ``path/file.py:factory``
        (executed), ``hf:FOLDER`` for a local folder of transformers, or ``model.pt2``.
    arguments
        Keyword arguments of the factory. A factory with an argument ``seed`` receives the seed; any other is called
        after ``torch.manual_seed(seed)``, and the state of the global generator is restored.
    say
        Receives a message about everything that is executed or changed.

    Returns
    -------
    Callable
        Builds the model, in eval mode, from a seed.

    Raises
    ------
    ConfigurationError
        If the name is unknown or the arguments do not fit.
    InputError
        If the code or the file fails, or does not give a model.
    """
    arguments = dict(arguments or {})
    if "seed" in arguments:
        raise ConfigurationError(
            "the seed of the model is not an --arg. Use --seed, or --num-seeds for several paired seeds."
        )
    if not spec.startswith("builtin:") and Path(spec).suffix == ".pt2":
        if arguments:
            raise ConfigurationError(
                f"--arg {next(iter(arguments))}: an exported program does not take arguments. Omit --arg."
            )
        program = _load_exported(Path(spec), say)
        return lambda _seed: program.module()
    if spec.startswith("hf:"):
        if arguments:
            raise ConfigurationError(
                f"--arg {next(iter(arguments))}: hf:FOLDER reads its arguments from config.json; leave out --arg."
            )
        read = load_folder(spec, say)
        return lambda seed: _in_eval_mode(read(seed), say)
    factory = _factory(spec, arguments, say)
    parameters = parameters_of(factory)
    _refuse_arguments(spec, arguments, parameters)

    def build(seed: int) -> nn.Module:
        model = call_seeded(factory, arguments, seed, spec)
        if not isinstance(model, nn.Module):
            raise InputError(f"{spec} must return a torch.nn.Module, but it returned {type(model).__name__}.")
        for note in wrapper_notes(model):
            say(f"note: {note}")
        return _in_eval_mode(inner_module(model), say)

    return build


def takes_images(model: nn.Module) -> bool:
    """Whether the first layer with weights is a two-dimensional convolution.

    Parameters
    ----------
    model
        Its modules are examined in the order of their registration.

    Returns
    -------
    bool
        False for a model without weights.
    """
    layers = (layer for layer in model.modules() if next(layer.parameters(recurse=False), None) is not None)
    first = next(layers, None)
    return isinstance(first, nn.Conv2d | nn.ConvTranspose2d)


def _factory(spec: str, arguments: dict[str, Any], say: Say) -> Callable[..., Any]:
    """Find the function that builds the model; a built-in one takes a single size in place of a list."""
    kind, _, name = spec.partition(":")
    if kind != "builtin":
        _refuse_saved_model(spec)
        return find(spec, "model", _MODEL_FORMS, say)
    for sizes in ("widths", "channels"):
        if isinstance(arguments.get(sizes), int):
            arguments[sizes] = [arguments[sizes]]
    return choice(name, zoo.MODELS, "built-in model", "builtin:")


def _refuse_arguments(spec: str, arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse missing and unknown arguments of a factory before anything is built."""
    try:
        signature = inspect.Signature(list(parameters.values()))
        signature.bind(**arguments, **({"seed": 0} if "seed" in parameters else {}))
    except TypeError as error:
        names = ", ".join(name for name in parameters if name != "seed")
        takes = f"It takes {names}: set them with --arg NAME=VALUE." if names else "It takes no arguments: omit --arg."
        unknown = [name for name in arguments if name not in parameters]
        hint = did_you_mean(unknown[0], parameters) if unknown else ""
        raise ConfigurationError(f"{spec}: {error}{hint}. {takes}") from error


def _load_exported(path: Path, say: Say) -> Any:
    path = existing(path, "model").resolve()
    refuse_large(path)
    say(
        f"loading the exported program {path} (SHA-256 {hash_file(path)}). Like a Python file it can run code: load "
        "only programs that you trust."
    )
    try:
        _refuse_members(path)
        with _nothing_but_tensors_unpickled():
            program = torch.export.load(path)
    except InputError:
        raise
    except Exception as error:  # the reader raises many kinds of errors on files of another format
        raise InputError(
            f"{path} is not an exported program that can be read ({unpickling_error(error)}). Save one with {_EXPORT}."
        ) from error
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shapes = [tuple(node.meta["val"].shape) for node in inputs if isinstance(node.meta.get("val"), Tensor)]
    if shapes and shapes[0] and isinstance(shapes[0][0], int):
        raise InputError(
            f"{path} was exported for batches of exactly {shapes[0][0]} examples, but curvature needs batches of any "
            f"size. Export it with a free batch size: {_EXPORT}."
        )
    return program


def _refuse_members(path: Path) -> None:
    """Refuse members that torch would unpickle as objects, and archives in the archive that are too large."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if "custom_obj" in member.lower() or "opaque_obj" in member.lower():
                raise InputError(
                    f"{path} contains a pickled object ({member}), which is not unpickled because that runs code. "
                    "Export the program without it."
                )
            with archive.open(member) as content:
                refuse_large(io.BytesIO(content.read()), f"{path}: {member}")


@contextlib.contextmanager
def _nothing_but_tensors_unpickled() -> Iterator[None]:
    """Keep ``torch.export.load`` at ``weights_only=True``, which it drops after a failure, and silence its log."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before, disabled = os.environ.get(name), logging.root.manager.disable
    os.environ[name] = "1"
    logging.disable(logging.CRITICAL)  # it logs a traceback; the message has its first line
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
    if path.suffix in {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".ts"}:
        if is_file(path) and is_torchscript(path):
            raise InputError(
                f"{path} is a TorchScript model, which cannot be differentiated twice. Export it instead: {_EXPORT}."
            )
        remedy = "" if path.suffix == ".safetensors" else f" {SAVE_WEIGHTS}."
        raise InputError(
            f"{path} is not a model: a {path.suffix} file contains weights or pickled objects and is not unpickled, "
            "because that would run any code in it. Name the code with --model package.module:factory or "
            f"path/file.py:factory, and the weights with --weights.{remedy}"
        )


def _in_eval_mode(model: nn.Module, say: Say) -> nn.Module:
    kinds = nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase
    switched = [name for name, layer in model.named_modules() if isinstance(layer, kinds) and layer.training]
    if switched:
        say(f"note: switched these layers to eval mode (no dropout, running statistics): {listed(switched)}.")
    return model.eval()
