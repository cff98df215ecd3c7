"""Models and adapters from local folders that transformers and peft wrote; nothing is downloaded."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from curvature.cli.loading.files import existing, expanded, load_json
from curvature.cli.wording import Say, first_line, listed
from curvature.errors import ConfigurationError, InputError

__all__ = ["ADAPTER", "load_adapter", "load_folder"]

ADAPTER = "adapter_config.json"  # marks the folder of an adapter
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def load_folder(spec: str, say: Say) -> Callable[[int], nn.Module]:
    """Load a model from a folder that ``save_pretrained`` of transformers wrote.

    Parameters
    ----------
    spec
        ``hf:FOLDER``. The folder contains ``config.json``, which names the class of the model, and its weights in one
        file or in shards.
    say
        Receives a note about weights in the folder that the model does not have.

    Returns
    -------
    Callable
        Builds the model from a seed, which has no influence.

    Raises
    ------
    ConfigurationError
        If there is no such folder.
    InputError
        If transformers cannot be imported or does not have the class, or the weights do not fit the model.
    """
    folder = _folder(spec.partition(":")[2], spec)
    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder} contains a peft adapter, not a model. Name the model that it adapts with --model, and add "
            f"--adapter {folder}."
        )
    name = _class_name(folder)
    if not any((folder / file).is_file() for file in _WEIGHTS):
        raise InputError(
            f"{folder} contains no weights ({', '.join(_WEIGHTS[:2])}, ...), so the model would be random. Write them "
            "with model.save_pretrained(folder)."
        )
    kind = getattr(_imported("transformers"), name, None)
    if kind is None:
        raise InputError(
            f"transformers has no class {name!r}, which {folder / 'config.json'} names. Code that comes with a model "
            "is not run: build the model in a file, --model path/file.py:factory."
        )

    def build(_seed: int) -> nn.Module:
        with _quiet(), _translated(folder):
            model, report = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype="auto", output_loading_info=True
            )
        _refuse_incomplete(folder, report, say)
        return model

    return build


def load_adapter(model: nn.Module, path: str, say: Say) -> nn.Module:
    """Add a peft adapter, such as LoRA or DoRA, to a model. Its parameters are trainable, and no others.

    Parameters
    ----------
    model
        The model that the adapter was made for; changed in place.
    path
        A folder with ``adapter_config.json`` and the weights of the adapter.
    say
        Receives a note about the adapter.

    Returns
    -------
    nn.Module
        The adapted model.

    Raises
    ------
    ConfigurationError
        If there is no such folder.
    InputError
        If peft cannot be imported, or the adapter does not fit the model.
    """
    folder = _folder(path, f"--adapter {path}")
    config = load_json(existing(folder / ADAPTER, "adapter"))
    peft = _imported("peft")
    with _quiet(), _translated(folder), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True, local_files_only=True)
    texts = [str(warning.message).splitlines()[0].rstrip(".") for warning in caught]
    missing = [text for text in texts if "missing adapter keys" in text]
    if missing:
        raise InputError(f"the adapter in {folder} is incomplete, so the rest of it would be random: {missing[0]}.")
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    kind = str(config.get("peft_type", "peft")) + (" with DoRA" if config.get("use_dora") else "")
    say(f"note: added the adapter in {folder} ({kind}): its {trainable} parameters are trainable, all others frozen.")
    return adapted.eval()


def _folder(path: str, spec: str) -> Path:
    if not path:
        raise ConfigurationError(f"{spec!r} names no folder: write hf:FOLDER.")
    folder = expanded(path, "model")
    if not folder.is_dir():
        raise ConfigurationError(
            f"{spec}: {folder} is not a folder. Models are not downloaded: save one with model.save_pretrained(folder)."
        )
    return folder


def _class_name(folder: Path) -> str:
    file = folder / "config.json"
    config = load_json(existing(file, "model"))
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InputError(
            f"{file} does not name the class of the model (architectures). Write it with model.save_pretrained(folder)."
        )
    return names[0]


def _imported(name: str) -> Any:
    """Import an optional package; its error can be that of a package which it imports itself."""
    try:
        module = importlib.import_module(name)
        if name == "transformers":
            importlib.import_module("transformers.modeling_utils")  # the package itself is imported lazily
    except Exception as error:  # an import may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise InputError(
                f"{name} is not installed, and this needs it. Install it with pip install "
                "'curvature-toolkit[integrations]'."
            ) from error
        raise InputError(f"{name} is installed but cannot be imported: {_root(error)}.") from error
    return module


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def _refuse_incomplete(folder: Path, report: dict[str, Any], say: Say) -> None:
    """Refuse weights that transformers would fill with random numbers."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    misshapen = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    if missing or misshapen:
        parts = [f"missing: {listed(missing)}"] if missing else []
        parts += [f"of another shape: {listed(misshapen)}"] if misshapen else []
        raise InputError(
            f"the weights in {folder} do not fit the model, and transformers would draw these at random: "
            f"{'; '.join(parts)}. Save the whole model with model.save_pretrained(folder)."
        )
    unused = sorted(map(str, report.get("unexpected_keys", ())))
    if unused:
        say(f"note: these weights in {folder} are not in the model and are not used: {listed(unused)}.")


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Convert an exception of the readers into an error with the name of the folder."""
    try:
        yield
    except Exception as error:  # the readers raise many kinds of errors on files of another format
        raise InputError(f"{folder} cannot be loaded: {_root(error)}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log and the progress bars of transformers; what matters is reported by its loading report."""
    try:
        log = importlib.import_module("transformers.utils.logging")
    except ImportError:
        yield
        return
    level = log.get_verbosity()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        log.enable_progress_bar()
