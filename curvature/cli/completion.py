"""Words that a shell completes after an option, known without importing torch; a test compares them with registries."""

from __future__ import annotations

from collections.abc import Callable

from curvature.cli.configuration import MATRICES

__all__ = ["CHOICES", "completion_of"]

CHOICES: dict[str, tuple[str, ...]] = {  # by the field of a configuration
    "model": ("builtin:digits-mlp", "builtin:digits-cnn", "builtin:mlp"),
    "data": (
        *("builtin:digits", "builtin:breast-cancer", "builtin:wine", "builtin:diabetes", "builtin:housing"),
        *("mnist:", "cifar10:"),
    ),
    "loss": (
        *("cross-entropy", "bce", "mse", "half-squared-error", "huber", "smooth-l1", "l1", "nll", "kl-div"),
        *("bce-of-probabilities", "poisson-nll", "gaussian-nll", "model"),
    ),
    "matrix": tuple(MATRICES),
    "chart": ("standard", "weight-norm", "scaled-standard", "placebo"),
    "gauge": ("canonical", "paper", "checkpoint"),
    "block": ("all", "layer", "neuron"),
    "method": ("auto", "exact", "dense", "factor", "gram", "lanczos", "slq"),
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
