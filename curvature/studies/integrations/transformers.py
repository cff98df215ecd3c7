"""A tracker as a callback of the ``Trainer`` of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback

from curvature.studies import Tracker

__all__ = ["TransformersCallback"]


class TransformersCallback(TrainerCallback):
    """Count the optimizer steps of a Hugging Face ``Trainer``; rows go to the loggers of the tracker.

    Parameters
    ----------
    tracker
        What is measured, and when.
    module
        Finds in the model of the trainer the module that the problem was made from; None: the model itself.
    along_update
        Measure the critical sharpness along the next update of the trainer's optimizer, instead of along the gradient.

    Notes
    -----
    Only the first process measures. Steps are those of ``state.global_step``.
    """

    def __init__(
        self, tracker: Tracker, module: Callable[[Any], nn.Module] | None = None, *, along_update: bool = False
    ):
        self.tracker, self.module, self.along_update = tracker, module, along_update

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Measure what is due after an optimizer step."""
        del args, control
        if state.is_world_process_zero and state.global_step > self.tracker.num_steps:
            module = model if self.module is None else self.module(model)
            self.tracker.step(module, step=state.global_step, optimizer=optimizer if self.along_update else None)
