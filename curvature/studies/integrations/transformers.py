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

    Notes
    -----
    Only the first process measures. Steps are those of ``state.global_step``.
    """

    def __init__(self, tracker: Tracker, module: Callable[[Any], nn.Module] | None = None):
        self.tracker, self.module = tracker, module

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure what is due after an optimizer step."""
        del args, control
        if state.is_world_process_zero and state.global_step > self.tracker.num_steps:
            self.tracker.step(model if self.module is None else self.module(model), step=state.global_step)
