"""What both commands do before they measure: load the model, the data and the loss, and choose device and threads."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curvature._version import __version__
from curvature.cli.configuration import Configuration
from curvature.cli.terminal import Terminal, count, one_line
from curvature.errors import ConfigurationError, CurvatureError, InputError
from curvature.machine import num_processors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from curvature.models import Problem
    from curvature.models.losses import Loss
    from curvature.records import Study

__all__ = [
    "Prepared",
    "add_provenance",
    "collected_provenance",
    "content_hashes",
    "describe_data",
    "describe_model",
    "limited_threads",
    "note_versions",
    "prepare",
    "written_configuration",
]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Prepared(NamedTuple):
    """Everything that a configuration names, loaded."""

    build: Callable[[int], nn.Module]  # from a seed to the model on its device
    model: nn.Module  # at the first seed
    data: Any  # inputs and targets, or inputs alone for the loss of the model
    loss: Loss
    output: str | int | None = None  # where the outputs are in what the model returns
    weight_decay: float = 0.0
    freeze: str | None = None  # pattern of parameters to freeze
    train_only: str | None = None  # pattern of the only parameters that are not frozen

    def problem(self, model: nn.Module, dtype: torch.dtype | None = None) -> Problem:
        """Build the problem of a model with these data and this loss, in double precision unless told otherwise."""
        import torch

        from curvature.models import Problem

        problem = Problem.from_module(
            model,
            loss=self.loss,
            data=self.data,
            output=self.output,
            dtype=dtype or torch.float64,
            weight_decay=self.weight_decay,
        )
        if self.train_only is not None:
            problem = _restricted(problem, self.train_only, "--train-only", keep=True)
        return problem if self.freeze is None else _restricted(problem, self.freeze, "--freeze", keep=False)


def _restricted(problem: Problem, pattern: str, option: str, *, keep: bool) -> Problem:
    """Freeze the parameters that match a pattern, or all others."""
    try:
        matching = problem.layout.select(pattern).slices
        names = [name for name in problem.layout.slices if (name in matching) == keep]
        if not names:
            raise InputError("it freezes every parameter, so nothing is left to train. Freeze fewer.")
        return problem.subset("|".join(f"^{re.escape(name)}$" for name in names))
    except CurvatureError as error:
        raise type(error)(f"{option} {pattern}: {error}") from error


def prepare(config: Configuration, terminal: Terminal, *, seed: int = 0) -> Prepared:
    """Load the loss, the model and the data.

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

    loss = loading.load_loss(config.loss, terminal.say)
    build = _model_builder(config, terminal)
    model = build(seed)
    data = loading.load_data(
        config.data,
        loss,
        target=config.target,
        num_examples=config.num_examples,
        image=loading.takes_images(model),
        say=terminal.say,
        forward=model.forward,
    )
    output = int(config.output) if config.output and re.fullmatch(r"-?\d+", config.output) else config.output
    return Prepared(build, model, data, loss, output, config.weight_decay, config.freeze, config.train_only)


def _model_builder(config: Configuration, terminal: Terminal) -> Callable[[int], nn.Module]:
    """Build a function from a seed to the model on its device, with the user's weights."""
    from curvature.cli import loading

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


def describe_model(config: Configuration, detail: str | None = None) -> str:
    """Describe the model in one line.

    Parameters
    ----------
    config
        Names the model, its arguments and its weights.
    detail
        Added at the end, e.g. ``seed 3``.

    Returns
    -------
    str
        E.g. ``builtin:digits-mlp(widths=2), seed 3``.
    """
    arguments = ", ".join(f"{name}={value}" for name, value in config.arg.items())
    text = config.model + (f"({arguments})" if arguments else "")
    added = [name for name in (config.weights, config.adapter) if name]
    text += f" with {' and '.join(added)}" if added else ""
    return one_line(text + (f", {detail}" if detail else ""))


def describe_data(config: Configuration, data: Any) -> str:
    """Describe data and loss in one line.

    Parameters
    ----------
    config
        Names them.
    data
        Inputs and targets, or inputs alone.

    Returns
    -------
    str
        E.g. ``builtin:digits: 100 examples of 64, classes 0 to 9, loss cross-entropy``.
    """
    from torch import Tensor

    inputs, targets = data if isinstance(data, tuple) and config.loss != "model" else (data, None)
    leaves = _named(inputs)
    shapes = ", ".join(f"{name} {_shape(leaf)}".strip() for name, leaf in leaves.items())
    examples = len(next(iter(leaves.values())))
    classes = ""
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        classes = f", classes {int(targets.min())} to {int(targets.max())}"
    decay = f", weight decay {config.weight_decay:g}" if config.weight_decay else ""
    return one_line(f"{config.data}: {examples} examples of {shapes}{classes}, loss {config.loss}{decay}")


def _shape(inputs: Tensor) -> str:
    return " x ".join(map(str, inputs.shape[1:])) or "1"


def written_configuration(command: str, config: Configuration) -> dict[str, Any]:
    """Write a configuration in the form that ``--config`` reads.

    Parameters
    ----------
    command
        ``spectrum`` or ``compare``.
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


def content_hashes(config: Configuration, prepared: Prepared) -> dict[str, Any]:
    """Hash the model, the data, the named files, and the files that define the model's classes.

    Parameters
    ----------
    config
        Names the files.
    prepared
        The loaded model and data.

    Returns
    -------
    dict
        ``model_sha256``, ``data_sha256``, and ``files_sha256`` by path.
    """
    from curvature.provenance import hash_file, hash_tensors

    tensors = dict(prepared.model.named_parameters()) | dict(prepared.model.named_buffers())
    return {
        "model_sha256": hash_tensors(tensors),
        "data_sha256": hash_tensors(_named(prepared.data)),
        "files_sha256": {name: hash_file(name) for name in _files(config, prepared.model)},
    }


def _files(config: Configuration, model: nn.Module) -> list[str]:
    """Files that are named, and those with the code of models, data and losses, unless it is installed."""
    named = [config.weights, config.data]
    folders = [config.model.removeprefix("hf:") if config.model.startswith("hf:") else None, config.adapter]
    named += [str(file) for name in folders if name for file in sorted(Path(name).expanduser().glob("*config.json"))]
    code = [type(module).__module__ for module in model.modules()]
    for spec in (config.model, config.data, config.loss):
        place = spec.rpartition(":")[0] or spec
        named.append(place)
        code.append(place)
    sources = [getattr(sys.modules.get(name), "__file__", None) for name in code]
    named += [source for source in sources if source and "site-packages" not in Path(source).parts]
    package = Path(__file__).parents[1]
    by_place = {Path(name).resolve(): name for name in reversed(named) if name and Path(name).is_file()}
    return sorted(name for place, name in by_place.items() if package not in place.parents)


def _named(data: Any) -> dict[str, Tensor]:
    """The tensors of the data by name; those of a plain pair are called 0 and 1."""
    from curvature.models.trees import leaves_by_name

    leaves = leaves_by_name(data, "")
    return {re.sub(r"['\]]", "", name).removeprefix("[").replace("[", "."): leaf for name, leaf in leaves}


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
