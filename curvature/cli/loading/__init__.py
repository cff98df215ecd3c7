"""Models, weights, data, losses and charts, from the names that a command line gives them.

Only tensors are unpickled. Code runs only if its name was given, and the argument ``say`` receives a message about it.
"""

from curvature.cli.loading.checkpoints import find_checkpoints, hash_checkpoint, natural_key, training_step
from curvature.cli.loading.choices import at_nearest, build_charts, chosen_charts, gives_rank, load_loss
from curvature.cli.loading.data import load_data
from curvature.cli.loading.functions import call_problem, find_function, load_parameters
from curvature.cli.loading.huggingface import load_adapter
from curvature.cli.loading.models import load_model, takes_images
from curvature.cli.loading.streams import load_stream
from curvature.cli.loading.weights import apply_weights, load_weights

__all__ = [
    "apply_weights",
    "at_nearest",
    "build_charts",
    "call_problem",
    "chosen_charts",
    "find_checkpoints",
    "find_function",
    "gives_rank",
    "hash_checkpoint",
    "load_adapter",
    "load_data",
    "load_loss",
    "load_model",
    "load_parameters",
    "load_stream",
    "load_weights",
    "natural_key",
    "takes_images",
    "training_step",
]
