"""Where numbers come from: versions, machine, settings, code, and hashes of what went in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from curvature._version import __version__

__all__ = ["collect", "hash_file", "hash_tensors"]

_LIBRARIES = ("torch", "numpy", "scipy")
_BLOCK = 2**20


def collect(*, started: float | None = None, device: str | torch.device = "cpu", **extra: Any) -> dict[str, Any]:
    """Describe this process and machine in plain values, for a record that will outlive both.

    Parameters
    ----------
    started
        When the work began, as ``time.time()`` gives it; None: when the process did.
    device
        Where the numbers were computed.
    **extra
        Recorded beside the rest, e.g. ``model_sha256=...``.

    Examples
    --------
    >>> collect(seed=3)["versions"]["curvature"] == __version__
    True
    """
    started = psutil.Process().create_time() if started is None else started
    return {
        "versions": {
            "curvature": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        "code": _checkout(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
        "peak_memory_bytes": _peak_memory(),
        "platform": platform.platform(),
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "blas": _blas(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        **_float32_flags(),
        **extra,
    }


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order given; the same on every device.

    >>> hash_tensors([torch.zeros(2)]) == hash_tensors([torch.zeros(2)])
    True
    >>> hash_tensors([torch.zeros(2)]) == hash_tensors([torch.zeros(1, 2)])
    False
    """
    named = tensors.items() if isinstance(tensors, Mapping) else ((str(k), one) for k, one in enumerate(tensors))
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # Through bytes, since numpy has no bfloat16; -0.0 and 0.0 differ, as they do in a quotient. A copy, since a
        # column with one entry counts as contiguous and keeps a stride that is not one.
        values = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checkout() -> dict[str, Any]:
    """Git commit of this package and whether it was changed, if it runs from a checkout of its own."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # never ask git about a repository that the package merely lies in
        return {}
    # Hooks and file monitors that the repository's own configuration names stay off: this only looks.
    git = ["git", "-c", "core.fsmonitor=false", "-C", str(root)]
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        found = [
            subprocess.run(
                [*git, *arguments], capture_output=True, text=True, timeout=10, check=True, env=os.environ | quiet
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "curvature"])
        ]
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": found[0], "dirty": bool(found[1])}


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _float32_flags() -> dict[str, Any]:
    try:
        return {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        }
    except RuntimeError as error:  # torch refuses to answer where its old and new switches were both used
        return {"float32_matmul_precision": f"unknown: {str(error).splitlines()[0]}"}


def _blas() -> dict[str, str]:
    """Which BLAS multiplies: numpy's does the eigenvalues on the CPU, torch's the products."""
    about = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {"numpy": f"{about.get('name')} {about.get('version')}", "torch": found[1] if found else "unknown"}
