"""Full precision for every number, independent of what the caller has switched on.

Inference mode, autocast, a default device and the reduced precisions of float32 products (TF32, bfloat16) silently
change numbers or disable derivatives. They are off while this package computes, and restored afterwards.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from curvature.errors import ConvergenceError

__all__ = ["full_precision"]


_inside = threading.local()


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute as in a fresh process: no inference mode, no autocast, no TF32, factories on the CPU, nothing compiled.

    A context manager and a decorator. What was on is restored, also after an exception. Entering costs microseconds,
    and next to nothing inside another one.

    Yields
    ------
    None
        While everything is off.

    Raises
    ------
    ConvergenceError
        In place of an unhandled LAPACK failure.
    """
    if getattr(_inside, "already", False):
        yield
        return
    _inside.already = True
    try:
        with _switched_off():
            yield
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        raise ConvergenceError(
            f"LAPACK failed: {error}. In float32, compute in float64 (dtype=torch.float64); in float64, look at the "
            "scales of the model and the data, and at the damping."
        ) from error
    finally:
        _inside.already = False


@contextmanager
def _switched_off() -> Iterator[None]:
    with ExitStack() as restored:
        if torch.is_inference_mode_enabled():
            restored.enter_context(torch.inference_mode(mode=False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                restored.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            restored.enter_context(torch.device("cpu"))
        if _reduces_float32():
            restored.enter_context(_full_float32())
        # What torch.compile makes has no second derivative. Nothing is compiled where its module was never imported.
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            restored.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _switches() -> list[Any]:
    """Torch's precision switches for float32 products; empty before torch 2.9, which has other switches."""
    if not hasattr(torch.backends.cudnn, "conv"):
        return []
    on_cpu: Any = torch.backends.mkldnn  # the stubs of torch do not know its switches
    cudnn: Any = torch.backends.cudnn
    switches = [on_cpu.matmul, on_cpu.conv, on_cpu.rnn]
    # cuDNN's are on by default, and have no effect where no GPU is in use.
    return [*switches, torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn] if torch.cuda.is_initialized() else switches


def _older_switch() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to answer where its old and new switches disagree; the new ones hold
        return "highest"


def _reduces_float32() -> bool:
    switches = _switches()
    if _older_switch() != "highest" or any(switch.fp32_precision not in ("none", "ieee") for switch in switches):
        return True
    return not switches and torch.cuda.is_initialized() and torch.backends.cudnn.allow_tf32


@contextmanager
def _full_float32() -> Iterator[None]:
    switches, older = _switches(), _older_switch()
    before = [switch.fp32_precision for switch in switches]
    cudnn = not switches and torch.backends.cudnn.allow_tf32
    if older != "highest":
        torch.set_float32_matmul_precision("highest")
    if cudnn:
        torch.backends.cudnn.allow_tf32 = False
    for switch in switches:
        if switch.fp32_precision not in ("none", "ieee"):
            switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        if cudnn:
            torch.backends.cudnn.allow_tf32 = True
        for switch, precision in zip(switches, before, strict=True):
            if switch.fp32_precision != precision:
                switch.fp32_precision = "none"  # inherits from its parent switch, which may be the one that was set
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision
