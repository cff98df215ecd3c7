"""Words that a shell completes after an option, known without importing torch; a test compares them with registries."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from curvature.cli.configuration import MATRICES

__all__ = ["CHOICES", "completion_of", "whole_words"]

CHOICES: dict[str, tuple[str, ...]] = {  # by the field of a configuration
    "model": ("builtin:digits-mlp", "builtin:digits-cnn", "builtin:mlp"),
    "data": (
        *("builtin:digits", "builtin:breast-cancer", "builtin:wine", "builtin:diabetes", "builtin:characters"),
        *("builtin:housing", "mnist:", "cifar10:"),
    ),
    "loss": (
        *("cross-entropy", "bce", "mse", "half-squared-error", "huber", "smooth-l1", "l1", "nll", "kl-div"),
        *("bce-of-probabilities", "poisson-nll", "gaussian-nll", "model"),
    ),
    "matrix": tuple(MATRICES),
    "chart": (
        *("standard", "weight-norm", "scaled-standard", "placebo", "sphere", "random-weight-factorization"),
        *("weight-standardization", "spectral-norm", "lora", "dora", "deep-linear"),
    ),
    "gauge": ("canonical", "paper", "checkpoint"),
    "block": ("all", "layer", "neuron"),
    "method": ("auto", "exact", "dense", "factor", "gram", "lanczos", "slq"),
    "derivatives": ("autograd", "finite-differences"),
    "dtype": ("float64", "float32"),
    "device": ("cpu", "cuda", "mps", "xpu"),
}


def completion_of(field: str) -> Callable[[str], list[str]] | None:
    """Completion of the values of an option.

    Parameters
    ----------
    field
        Its name in the configuration.

    Returns
    -------
    Callable or None
        From the beginning of a word to the words that begin so; None if the option has no fixed values.
    """
    choices = CHOICES.get(field)
    if choices is None:
        return None
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """Let bash complete the words that it splits at ``:`` and ``=``, such as ``builtin:digits``.

    The parts are joined before the answers are sought. Bash inserts an answer after the last colon, so what is typed
    up to there is left out of it.
    """
    if os.environ.get("_CURVATURE_COMPLETE") != "complete_bash":
        yield
        return
    line = os.environ.get("COMP_WORDS", "")
    split = line.split("\n") if "\n" in line else line.split()
    split, typed = _joined(split[: int(os.environ.get("COMP_CWORD", "0")) + 1])
    os.environ |= {"COMP_WORDS": "\n".join(split), "COMP_CWORD": str(len(split) - 1)}
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            yield
    finally:
        for answer in answers.getvalue().splitlines():
            if rest := answer.removeprefix(typed):
                sys.stdout.write(f"{rest}\n")


def _joined(parts: Sequence[str]) -> tuple[list[str], str]:
    """Words from the parts that bash makes of them, and the value in the last one up to its last part."""
    joined: list[str] = []
    continues = False  # whether the last word ends in a sign at which bash splits
    for part in parts:
        is_sign = part in (":", "=")
        if joined and (is_sign or continues):
            joined[-1] += part
        else:
            joined.append(part)
        continues = is_sign
    if not joined:
        return [], ""
    before = joined[-1] if continues else joined[-1].removesuffix(parts[-1])
    return joined, before.partition("=")[2] if before.startswith("-") else before
