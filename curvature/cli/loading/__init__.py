"""What people name on a command line, turned into objects: models, weights, data, losses, charts.

Nothing is unpickled except tensors. Code runs only where its name was given for that, and ``say`` is told which.
"""

from curvature.cli.loading.choices import build_charts, load_loss
from curvature.cli.loading.data import load_data
from curvature.cli.loading.models import load_model, takes_images
from curvature.cli.loading.weights import apply_weights, load_weights

__all__ = ["apply_weights", "build_charts", "load_data", "load_loss", "load_model", "load_weights", "takes_images"]
