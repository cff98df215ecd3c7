"""Where numbers come from: versions, machine, settings, code, and hashes of the inputs."""

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
    """Describe this process and machine in plain values.

    Parameters
    ----------
    started
        Start of the work, as ``time.time()`` returns it; by default the start of the process.
    device
        Where the numbers were computed.
    **extra
        Added to the description, e.g. ``model_sha256=...``.

    Returns
    -------
    dict
        Versions, git commit, command, times, peak memory in bytes, platform, device, threads, BLAS, precision.

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
    """SHA-256 of a file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    str
        In hexadecimal.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of tensors, in their order; the same on every device.

    Parameters
    ----------
    tensors
        Tensors by name, or without names.

    Returns
    -------
    str
        In hexadecimal.

    Examples
    --------
    >>> hash_tensors([torch.zeros(2)]) == hash_tensors([torch.zeros(2)])
    True
    >>> hash_tensors([torch.zeros(2)]) == hash_tensors([torch.zeros(1, 2)])
    False
    """
    if not isinstance(tensors, Mapping):
        tensors = {str(position): tensor for position, tensor in enumerate(tensors)}
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # By bytes, because numpy has no bfloat16; so -0.0 and 0.0 differ, as they do in a quotient. A copy, because a
        # column with one entry counts as contiguous and can still have a stride other than one.
        values = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checkout() -> dict[str, Any]:
    """Git commit of this package and whether it was changed; empty unless the package is in its own checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # a repository further up is not that of the package
        return {}
    # Reading the state must not run hooks and file monitors from the configuration of the repository.
    git = ["git", "-c", "core.fsmonitor=false", "-C", str(root)]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        commit, changes = (
            subprocess.run(
                [*git, *arguments], capture_output=True, text=True, timeout=10, check=True, env=environment
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "curvature"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": bool(changes)}


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
    except RuntimeError as error:  # torch raises if both its old and its new switches have been used
        return {"float32_matmul_precision": f"unknown: {str(error).splitlines()[0]}"}


def _blas() -> dict[str, str]:
    """Name the BLAS of numpy, which computes eigenvalues on the CPU, and that of torch, which computes products."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    match = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {"numpy": f"{blas.get('name')} {blas.get('version')}", "torch": match[1] if match else "unknown"}
