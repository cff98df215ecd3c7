"""What every command does before it measures: load what its configuration names, and choose device and threads."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from curvature._version import __version__
from curvature.cli.configuration import Configuration
from curvature.cli.functions import prepare_function
from curvature.cli.prepared import Prepared, content_hashes
from curvature.cli.terminal import Terminal, count
from curvature.errors import ConfigurationError
from curvature.machine import num_processors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from curvature.records import Study

__all__ = [
    "add_provenance",
    "collected_provenance",
    "limited_threads",
    "note_versions",
    "prepare",
    "written_configuration",
]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def prepare(config: Configuration, terminal: Terminal, *, seed: int = 0) -> Prepared:
    """Load the model, the loss and the data, or the function in their place.

    Parameters
    ----------
    config
        Names them.
    terminal
        Receives a note about each file that is executed or loaded.
    seed
        Seed of the model; a model of images gets its data as images.

    Returns
    -------
    Prepared
        The loaded objects; the data are on the CPU.

    Raises
    ------
    ConfigurationError
        If a name is unknown or the device cannot be used.
    InputError
        If a file cannot be read or does not contain what it should.
    """
    from curvature.cli import loading

    if config.function is not None:
        return prepare_function(config, terminal, device=_device(config), seed=seed)
    assert config.loss is not None
    assert config.data is not None
    loss = loading.load_loss(config.loss, terminal.say)
    build = _model_builder(config, terminal)
    model = build(seed)
    load: Callable[..., Any] = loading.load_stream
    if not config.stream:
        load = partial(loading.load_data, image=loading.takes_images(model))
    data = load(
        config.data,
        loss,
        target=config.target,
        num_examples=config.num_examples,
        say=terminal.say,
        forward=model.forward,
    )
    output = int(config.output) if config.output and re.fullmatch(r"-?\d+", config.output) else config.output
    return Prepared(build, model, data, loss, output, config.weight_decay, config.freeze, config.train_only)


def _model_builder(config: Configuration, terminal: Terminal) -> Callable[[int], nn.Module]:
    """Build a function from a seed to the model on its device, with the user's weights."""
    from curvature.cli import loading

    assert config.model is not None
    device = _device(config)
    build = loading.load_model(config.model, config.arg, terminal.say)
    if config.weights is None:
        if config.key is not None:
            raise ConfigurationError("--key names an entry of a checkpoint: add --weights FILE.")
        if config.strip_prefix is not None:
            raise ConfigurationError("--strip-prefix names a prefix in a file of weights: add --weights FILE.")
    tensors = None if config.weights is None else loading.load_weights(config.weights, config.key, terminal.say)

    def built(seed: int) -> nn.Module:
        model = build(seed)
        if tensors is not None:
            model = loading.apply_weights(model, tensors, terminal.say, strip_prefix=config.strip_prefix)
        if config.adapter is not None:
            model = loading.load_adapter(model, config.adapter, terminal.say)
        return model.to(device)

    return built


def _device(config: Configuration) -> torch.device:
    import torch

    if config.device.partition(":")[0] not in _DEVICES:
        raise ConfigurationError(f"--device {config.device!r} is unknown; choose {', '.join(_DEVICES)}, or cuda:1.")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigurationError(f"--device {config.device!r} cannot be used: {reason}. Use --device cpu.") from error
    if device.type == "mps" and config.dtype == "float64":
        raise ConfigurationError("--device mps does not support float64: add --dtype float32, or use --device cpu.")
    return device


def note_versions(config: Configuration, terminal: Terminal) -> None:
    """Note the versions, the device, the threads and the precision.

    Parameters
    ----------
    config
        Names the device and the precision.
    terminal
        Receives the note.
    """
    import torch

    terminal.note(
        f"curvature {__version__}, python {platform.python_version()}, torch {torch.__version__}, {config.device}, "
        f"{count(torch.get_num_threads(), 'thread')}, {config.dtype}"
    )


def written_configuration(command: str, config: BaseModel) -> dict[str, Any]:
    """Write a configuration in the form that ``--config`` reads.

    Parameters
    ----------
    command
        Whose configuration it is.
    config
        What to write.

    Returns
    -------
    dict
        Plain values for TOML, which has no null: fields that are None are left out.
    """
    return {"command": command} | config.model_dump(mode="json", exclude_none=True)


def add_provenance(study: Study, config: Configuration, prepared: Prepared, *, started: float) -> Study:
    """Add versions, machine, time, and hashes of the model, the data and the named files.

    Parameters
    ----------
    study
        The result.
    config, prepared, started
        As for :func:`collected_provenance`.

    Returns
    -------
    Study
        A copy with its ``provenance`` filled in.
    """
    collected = collected_provenance(config, prepared, started=started)
    return replace(study, provenance={**study.provenance, **collected})


def collected_provenance(config: Configuration, prepared: Prepared, *, started: float) -> dict[str, Any]:
    """Collect versions, machine, time, and hashes of the model, the data and the named files.

    Parameters
    ----------
    config
        Names the files.
    prepared
        The loaded model and data.
    started
        Start of the run, as ``time.time()`` returns it.

    Returns
    -------
    dict
        Plain values.
    """
    from curvature import provenance

    return provenance.collect(
        started=started, device=config.device, dtype=config.dtype, **content_hashes(config, prepared)
    )


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Limit the threads of PyTorch and of the BLAS behind NumPy, which computes the eigenvalues on the CPU.

    Parameters
    ----------
    threads
        The limit; None: the processors that this process may use (its affinity, the quota of its container), unless the
        environment sets a number. More threads than that only wait for each other.

    Yields
    ------
    None
        The earlier limits are restored at the end.
    """
    import torch
    from threadpoolctl import threadpool_info, threadpool_limits

    if threads is None:
        allowed = num_processors()
        most = max(torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info()), 1)
        if most <= allowed or any(name in os.environ for name in _THREAD_VARIABLES):
            yield
            return
        threads = allowed

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
