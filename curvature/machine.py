"""Memory and processors that this process may use, under the limits of the shell and of containers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["available_memory", "num_processors"]

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_memory(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Measure how much more memory this process can have.

    Parameters
    ----------
    cgroups, membership
        Where the system shows the control groups, and the groups of this process.

    Returns
    -------
    float
        In bytes: the least of the free memory of the machine, what ``ulimit -v`` and ``ulimit -d`` leave, and what
        every control group above this process leaves (version 1 or 2). Files that a group keeps in memory count as
        free.
    """
    amounts = [float(psutil.virtual_memory().available), *_left_by_limits()]
    for group in _groups(cgroups, membership, "memory"):
        amounts += _left_in(group)
    return max(0.0, min(amounts))


def num_processors(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Count the processors that this process may use.

    Parameters
    ----------
    cgroups, membership
        Where the system shows the control groups, and the groups of this process.

    Returns
    -------
    int
        The least of the processors of its affinity and of the quota of every control group above it, where 1.5
        processors count as 2.
    """
    affine = getattr(os, "sched_getaffinity", None)
    counts = [len(affine(0)) if affine is not None else os.cpu_count() or 1]
    for group in _groups(cgroups, membership, "cpu"):
        quota = _quota(group)
        if quota is not None:
            counts.append(max(1, math.ceil(quota)))
    return min(counts)


def _left_by_limits() -> list[float]:
    """What the limits of the process leave of its address space and of its data."""
    amounts: list[float] = []
    if resource is None:
        return amounts
    for name, field in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
        limit = resource.getrlimit(getattr(resource, name))[0] if hasattr(resource, name) else resource.RLIM_INFINITY
        if limit != resource.RLIM_INFINITY:
            amounts.append(float(limit - getattr(psutil.Process().memory_info(), field, 0)))
    return amounts


@cache
def _groups(cgroups: Path, membership: Path, controller: str) -> tuple[Path, ...]:
    """Folders of the control groups that hold this process, and of those above, for one controller with limits."""
    names = {"memory": ("memory.max", "memory.limit_in_bytes"), "cpu": ("cpu.max", "cpu.cfs_quota_us")}[controller]
    folders = dict.fromkeys(_all_groups(cgroups, membership, controller))
    return tuple(folder for folder in folders if any((folder / name).is_file() for name in names))


def _all_groups(cgroups: Path, membership: Path, controller: str) -> Iterator[Path]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has a tree for each set of controllers; version 2 one tree, or one beside those of version 1.
        roots = [cgroups / controllers, cgroups / controller] if controllers else [cgroups, cgroups / "unified"]
        for root in dict.fromkeys(root for root in roots if root.is_dir()):
            group = root / path.lstrip("/")
            # In a container the path is that of the host, and the root is the group itself.
            yield from (part for part in (group, *group.parents) if part.is_relative_to(root))


def _left_in(group: Path) -> list[float]:
    """What a memory limit of a control group leaves."""
    amounts: list[float] = []
    for limit_name, used_name, cached_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(group / limit_name)
        used = None if limit is None else _number(group / used_name)
        if limit is not None and used is not None:
            amounts.append(limit - used + _entry(group / "memory.stat", cached_name))
    return amounts


def _quota(group: Path) -> float | None:
    """Processors that a control group may use, on the average over a period; None without a limit."""
    try:
        allowed, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, length = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    else:
        quota, length = (None if allowed == "max" else float(allowed)), float(period)
    return quota / length if quota is not None and quota > 0 and length else None


def _number(file: Path) -> float | None:
    """The number in a file; None if there is no such file or it says ``max``."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None


def _entry(file: Path, name: str) -> float:
    """A number in a file with a name and a number in each line; zero without it."""
    try:
        match = re.search(rf"^{name} (\d+)$", file.read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return 0.0
    return float(match[1]) if match else 0.0
