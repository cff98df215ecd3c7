"""``--function``: a function of named tensors in place of a model, a loss and data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curvature.cli.configuration import Configuration
from curvature.cli.prepared import Prepared
from curvature.cli.terminal import Terminal
from curvature.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from curvature.models import Problem
    from curvature.models.losses import Loss

__all__ = ["prepare_function"]


def prepare_function(config: Configuration, terminal: Terminal, *, device: torch.device, seed: int) -> Prepared:
    """Load a function with its starting values, or call the factory of a problem.

    Parameters
    ----------
    config
        Names the function, its parameters and its data.
    terminal
        Receives a note about each file that is executed or loaded.
    device
        Of the parameters.
    seed
        Of a factory.

    Returns
    -------
    Prepared
        With the problem, whose model and data are those that are hashed.

    Raises
    ------
    ConfigurationError
        If an option does not apply to this function, or a name is unknown.
    InputError
        If the code or a file fails, or is not what it should be.
    """
    import torch

    dtype = getattr(torch, config.dtype)
    if config.parameters is None:
        problem, data = _of_factory(config, terminal, dtype, device, seed)
    else:
        problem, data = _of_function(config, terminal, dtype, device)
    return Prepared(
        lambda _: problem.model,
        problem.model,
        data,
        problem.loss,
        weight_decay=config.weight_decay,
        freeze=config.freeze,
        train_only=config.train_only,
        given=problem,
    )


def _of_factory(
    config: Configuration, terminal: Terminal, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Problem, Any]:
    from curvature.cli import loading
    from curvature.models import Problem

    assert config.function is not None
    value = loading.call_problem(config.function, config.arg, seed, terminal.say)
    if isinstance(value, Problem):
        _refuse_finished(config, value)
        _refuse_different(config, value, dtype, device)
        return value, _data_of(value)
    function, parameters, *rest = value
    return _built(config, function, parameters, rest[0] if rest else None, dtype, device)


def _refuse_finished(config: Configuration, problem: Problem) -> None:
    """Refuse options that a finished problem can no longer follow."""
    if problem.is_streamed or config.stream:
        raise ConfigurationError(
            f"{config.function} returns a finished cv.Problem, whose data cannot be streamed from here. Return "
            "(function, parameters, data) and pass --stream."
        )
    if config.weight_decay:
        raise ConfigurationError(
            f"{config.function} returns a finished cv.Problem, to which --weight-decay cannot be added. Pass "
            "weight_decay= where it is built, or return (function, parameters, data)."
        )


def _refuse_different(config: Configuration, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a problem of another precision or on another device."""
    if problem.dtype != dtype:
        named = str(problem.dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"{config.function} returns a problem in {named}, and --dtype is {config.dtype}. Build it with "
            f"dtype=torch.{config.dtype}, or pass --dtype {named}."
        )
    if problem.device.type != device.type:
        raise ConfigurationError(
            f"{config.function} is computed on {problem.device}, and --device is {config.device}. Put its tensors "
            f"there, or pass --device {problem.device}."
        )


def _data_of(problem: Problem) -> Any:
    """The data of a problem, as they are described and hashed."""
    from curvature.models.losses import ModelLoss
    from curvature.models.trees import structure_of

    if not problem.has_examples:
        return ()
    inputs = structure_of(problem.inputs)
    return inputs if isinstance(problem.loss, ModelLoss) else (inputs, structure_of(problem.targets))


def _of_function(
    config: Configuration, terminal: Terminal, dtype: torch.dtype, device: torch.device
) -> tuple[Problem, Any]:
    from curvature.cli import loading

    assert config.function is not None
    assert config.parameters is not None
    function = loading.find_function(config.function, config.arg, terminal.say)
    parameters = _moved(loading.load_parameters(config.parameters, terminal.say), device)
    loss = None if config.loss is None else loading.load_loss(config.loss, terminal.say)
    data = None
    if config.data is not None:
        load: Any = loading.load_stream if config.stream else loading.load_data
        data = load(config.data, loss, target=config.target, num_examples=config.num_examples, say=terminal.say)
    return _built(config, function, parameters, data, dtype, device, loss)


def _moved(parameters: Any, device: torch.device) -> Any:
    if isinstance(parameters, dict):
        return {name: tensor.to(device) for name, tensor in parameters.items()}
    return parameters.to(device)


def _built(
    config: Configuration,
    function: Any,
    parameters: Any,
    data: Any,
    dtype: torch.dtype,
    device: torch.device,
    loss: Loss | None = None,
) -> tuple[Problem, Any]:
    """The problem of a function, or of a loss of what it returns, and the data as they are hashed."""
    from curvature.models import Problem
    from curvature.models.data import open_stream

    if config.stream:
        if data is None:
            raise ConfigurationError(
                f"--stream reads data in parts, and {config.function} has no data. Leave out --stream, or add --data."
            )
        data = open_stream(data, with_targets=loss is not None)
    problem = Problem.from_function(
        function if loss is None else loss,
        parameters,
        data,
        outputs=None if loss is None else function,
        dtype=dtype,
        weight_decay=config.weight_decay,
        stream=config.stream,
    )
    _refuse_different(config, problem, dtype, device)
    return problem, data if config.stream else _data_of(problem)
