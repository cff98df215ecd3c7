"""What a command works with: the model, the data and the loss that a configuration names, in words and as hashes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from curvature.cli.configuration import Configuration
from curvature.cli.terminal import Terminal, one_line
from curvature.errors import CurvatureError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from curvature.models import Problem
    from curvature.models.losses import Loss

__all__ = ["Prepared", "content_hashes", "describe_data", "describe_model", "with_defined_matrices"]

Measured = TypeVar("Measured", bound=Configuration)


class Prepared(NamedTuple):
    """Everything that a configuration names, loaded."""

    build: Callable[[int], nn.Module]  # from a seed to the model on its device
    model: nn.Module  # at the first seed
    data: Any  # inputs and targets, inputs alone for the loss of the model, () for none, or a stream
    loss: Loss
    output: str | int | None = None  # where the outputs are in what the model returns
    weight_decay: float = 0.0
    freeze: str | None = None  # pattern of parameters to freeze
    train_only: str | None = None  # pattern of the only parameters that are not frozen
    given: Problem | None = None  # of a function, which has one point

    def problem(self, model: nn.Module, dtype: torch.dtype | None = None) -> Problem:
        """Build the problem of a model with these data and this loss, in double precision unless told otherwise."""
        problem = self.given or self._of_module(model, dtype)
        if self.train_only is not None:
            problem = _restricted(problem, self.train_only, "--train-only", keep=True)
        return problem if self.freeze is None else _restricted(problem, self.freeze, "--freeze", keep=False)

    def _of_module(self, model: nn.Module, dtype: torch.dtype | None) -> Problem:
        import torch

        from curvature.models import Problem
        from curvature.models.data import Stream

        return Problem.from_module(
            model,
            loss=self.loss,
            data=self.data,
            output=self.output,
            dtype=dtype or torch.float64,
            weight_decay=self.weight_decay,
            stream=isinstance(self.data, Stream),
        )


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


def with_defined_matrices(config: Measured, problem: Problem, terminal: Terminal) -> Measured:
    """Replace the default matrices by the Hessian, if there are no outputs that the others need.

    Parameters
    ----------
    config
        Of a command.
    problem
        Whose loss decides.
    terminal
        Receives a note.

    Returns
    -------
    Configuration
        The same, if it names its matrices.
    """
    from curvature.models.losses import ModelLoss

    if "matrix" in config.model_fields_set or not isinstance(problem.loss, ModelLoss):
        return config
    if config.matrix != ("hessian",):
        terminal.note("note: only the Hessian is measured: the GGN needs outputs, and this is a function without them")
    return config.model_copy(update={"matrix": ("hessian",)})


def describe_model(config: Configuration, detail: str | None = None) -> str:
    """Describe the model in one line.

    Parameters
    ----------
    config
        Names the model, its arguments and its weights.
    detail
        Added at the end, e.g. ``seed 3``; the seed of weights that are not read from a file.

    Returns
    -------
    str
        E.g. ``builtin:digits-mlp(widths=2), seed 3``.
    """
    arguments = ", ".join(f"{name}={value}" for name, value in config.arg.items())
    text = (config.model or config.function or "") + (f"({arguments})" if arguments else "")
    added = [name for name in (config.weights, config.adapter, config.parameters) if name]
    text += f" with {' and '.join(added)}" if added else ""
    return one_line(text + (f", {detail}" if detail else ""))


def describe_data(config: Configuration, prepared: Prepared) -> str:
    """Describe data and loss in one line.

    Parameters
    ----------
    config
        Names them.
    prepared
        Has them. Of a stream, the first example is read.

    Returns
    -------
    str
        E.g. ``builtin:digits: 100 examples of 64, classes 0 to 9, loss cross-entropy``.
    """
    from torch import Tensor

    from curvature.models.data import Stream
    from curvature.models.losses import ModelLoss

    data, own_loss = prepared.data, isinstance(prepared.loss, ModelLoss)
    decay = f", weight decay {config.weight_decay:g}" if config.weight_decay else ""
    if isinstance(data, tuple) and not data:
        return one_line(f"none{decay}")
    streamed = isinstance(data, Stream)
    pair = data.read(slice(0, 1)) if streamed else data
    inputs, targets = pair if isinstance(pair, tuple) and (streamed or not own_loss) else (pair, None)
    leaves = _named(inputs)
    shapes = ", ".join(("" if name.isdigit() else f"{name} ").lstrip() + _shape(leaf) for name, leaf in leaves.items())
    examples = data.count() if streamed else len(next(iter(leaves.values())))
    detail = ", streamed" if streamed else ""
    if not streamed and isinstance(targets, Tensor) and not targets.is_floating_point():
        detail = f", classes {int(targets.min())} to {int(targets.max())}"
    loss = f"loss {config.loss or prepared.loss.name}{decay}"
    return one_line(f"{config.data or config.function}: {examples} examples of {shapes}{detail}, {loss}")


def _shape(inputs: Tensor) -> str:
    return " x ".join(map(str, inputs.shape[1:])) or "1"


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
        ``model_sha256``, ``data_sha256``, and ``files_sha256`` by path. Of streamed data, the checksums of the examples
        are hashed, and their file is not read once more.
    """
    from curvature.models.data import Stream
    from curvature.provenance import hash_file, hash_tensors

    tensors = dict(prepared.model.named_parameters()) | dict(prepared.model.named_buffers())
    data = prepared.data
    return {
        "model_sha256": hash_tensors(tensors),
        "data_sha256": data.sha256() if isinstance(data, Stream) else hash_tensors(_named(data)),
        "files_sha256": {name: hash_file(name) for name in _files(config, prepared.model)},
    }


def _files(config: Configuration, model: nn.Module) -> list[str]:
    """Files that are named, and those with the code of models, data and losses, unless it is installed."""
    data = None if config.stream and Path(config.data or "").suffix == ".npz" else config.data
    named = [config.weights, config.parameters, data]
    of_model = config.model or ""
    folders = [of_model.removeprefix("hf:") if of_model.startswith("hf:") else None, config.adapter]
    named += [str(file) for name in folders if name for file in sorted(Path(name).expanduser().glob("*config.json"))]
    code = [type(module).__module__ for module in model.modules()]
    for spec in filter(None, (config.model, config.function, data, config.loss)):
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
