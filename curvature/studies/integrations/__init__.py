"""A tracker in the tools that people train with: callbacks of trainers, and loggers of experiment trackers.

Each is imported when its name is first used, and none of the other packages is needed:
``pip install 'curvature-toolkit[integrations]'`` installs them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "LightningCallback": "lightning",
    "MLflowLogger": "mlflow",
    "TensorBoardLogger": "tensorboard",
    "TransformersCallback": "transformers",
    "WandbLogger": "wandb",
}
_PACKAGES = {"mlflow": "mlflow-skinny"}  # where the distribution has another name

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curvature.studies.integrations' has no attribute {name!r}")
    home = _HOMES[name]
    try:
        module = import_module(f"curvature.studies.integrations.{home}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("curvature"):
            raise
        package = _PACKAGES.get(home, home)
        raise ImportError(
            f"{name} needs the package {package!r}, which is not installed ({error}). Run: pip install {package}, or "
            "pip install 'curvature-toolkit[integrations]' for all of them."
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
