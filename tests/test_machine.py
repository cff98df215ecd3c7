"""Limits of a process: memory and processors, by control groups of both versions and by limits of the shell."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from threadpoolctl import threadpool_info

import curvature as cv
from curvature import machine
from curvature.cli import preparation
from curvature.linalg import memory

GB = 2**30
ROOT = Path(__file__).parents[1]


@pytest.fixture
def groups(tmp_path):
    """Write files below a folder of control groups; return the arguments of the functions."""

    def write(membership, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (tmp_path / "self").write_text("\n".join(membership) + "\n")
        return tmp_path / "cgroup", tmp_path / "self"

    return write


FIRST = ["7:memory:/job/task", "3:cpu,cpuacct:/job/task", "1:name=systemd:/", "0::/"]
MEMORY = {
    "version 2, a container": (["0::/"], {"memory.max": 3 * GB, "memory.current": 1 * GB}, 2 * GB),
    "version 2, its own group": (["0::/a/b"], {"a/b/memory.max": 3 * GB, "a/b/memory.current": 2 * GB}, 1 * GB),
    "version 2, a group above": (
        ["0::/a/b"],
        {"a/b/memory.max": "max", "a/b/memory.current": GB, "a/memory.max": 2 * GB, "a/memory.current": GB},
        1 * GB,
    ),
    "version 2, files in memory": (
        ["0::/"],
        {"memory.max": 3 * GB, "memory.current": 3 * GB, "memory.stat": f"anon 5\ninactive_file {GB}\nfile 9"},
        1 * GB,
    ),
    "version 1": (
        FIRST,
        {
            "memory/job/task/memory.limit_in_bytes": 2 * GB,
            "memory/job/task/memory.usage_in_bytes": GB // 2,
            "memory/job/task/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB // 4}",
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": GB,
        },
        1.75 * GB,
    ),
    "version 1 in a container": (
        FIRST,
        {"memory/memory.limit_in_bytes": GB, "memory/memory.usage_in_bytes": GB // 2},
        0.5 * GB,
    ),
    "both versions": (
        FIRST,
        {
            "unified/cgroup.procs": "",
            "memory/job/task/memory.limit_in_bytes": GB,
            "memory/job/task/memory.usage_in_bytes": 2 * GB,
        },
        0,
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_the_memory_that_a_control_group_leaves_is_the_free_memory(groups, name):
    membership, files, expected = MEMORY[name]
    free = float(psutil.virtual_memory().available)
    assert machine.available_memory(*groups(membership, files)) <= min(expected, free) * 1.0001
    if expected < free / 2:
        assert machine.available_memory(*groups(membership, files)) == expected


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        (["0::/"], {"memory.max": "max", "memory.current": GB, "cpu.max": "max 100000"}),
        (FIRST, {"memory/memory.stat": "", "cpu,cpuacct/job/task/cpu.cfs_quota_us": -1}),
        (["nonsense:x:/"], {}),
        (["0::/../../other"], {"memory.max": "not a number", "memory.current": 0}),
    ],
)
def test_without_a_limit_the_machine_decides(groups, membership, files):
    folders = groups(membership, files)
    assert machine.available_memory(*folders) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert machine.num_processors(*folders) == len(os.sched_getaffinity(0))


def test_without_control_groups_the_machine_decides(tmp_path):
    assert machine.num_processors(tmp_path, tmp_path / "missing") == len(os.sched_getaffinity(0))


PROCESSORS = {
    "version 2, two of 64": (["0::/"], {"cpu.max": "200000 100000"}, 2),
    "version 2, one and a half": (["0::/"], {"cpu.max": "150000 100000"}, 2),
    "version 2, a tenth": (["0::/"], {"cpu.max": "10000 100000"}, 1),
    "version 2, a group above": (["0::/a/b"], {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
    "version 1, two": (
        FIRST,
        {"cpu,cpuacct/job/task/cpu.cfs_quota_us": 200000, "cpu,cpuacct/job/task/cpu.cfs_period_us": 100000},
        2,
    ),
    "version 1, half": (FIRST, {"cpu/cpu.cfs_quota_us": 50000, "cpu/cpu.cfs_period_us": 100000}, 1),
    "more than there are": (["0::/"], {"cpu.max": "9900000 100000"}, 64),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_quota_of_processors_limits_their_number(groups, monkeypatch, name):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    membership, files, expected = PROCESSORS[name]
    assert machine.num_processors(*groups(membership, files)) == expected


def test_affinity_limits_the_number_of_processors():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from curvature import machine; print("
    run = subprocess.run(
        [sys.executable, "-c", code + "machine.num_processors())"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "1\n"


@pytest.mark.parametrize(("explicit", "expected"), [(None, 1), ("2", 2)])
def test_the_default_number_of_threads_is_that_of_the_processors_unless_it_is_set(monkeypatch, explicit, expected):
    for name in preparation._THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if explicit:
        monkeypatch.setenv("OMP_NUM_THREADS", explicit)
    monkeypatch.setattr(preparation, "num_processors", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with preparation.limited_threads(None):
            assert torch.get_num_threads() == expected
            if not explicit:
                assert {library["num_threads"] for library in threadpool_info()} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_free_memory_of_plans_is_that_of_the_limits(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1e6)
    operator = cv.SymmetricOperator.from_dense(torch.eye(400, dtype=torch.float64))
    with pytest.raises(cv.ResourceError, match="about 4 MB, 1 MB can be used"):
        cv.plan(operator)


LIMITED = """
import resource, torch, curvature as cv
from curvature.linalg.memory import free_memory
layer = torch.nn.Linear(100, 60)
data = torch.randn(50, 100), torch.randint(60, (50,))
hessian = cv.hessian(cv.Problem.from_module(layer, loss="cross-entropy", data=data))
limit = resource.getrlimit(resource.RLIMIT_AS)[0]
assert free_memory(torch.device("cpu")) < limit
try:
    cv.spectrum(hessian)  # 6060 x 6060: 0.8 GB
except cv.ResourceError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v has no effect elsewhere")
def test_a_limit_of_the_shell_is_respected_before_anything_is_allocated():
    unlimited = subprocess.run(
        [sys.executable, "-c", "import torch, curvature.linalg, psutil; print(psutil.Process().memory_info().vms)"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes = (int(unlimited.stdout) + GB // 2) // 1024
    run = subprocess.run(
        ["bash", "-c", f'ulimit -v {kilobytes} && exec "$0" -c "$1"', sys.executable, LIMITED],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.startswith("refused: all eigenvalues of the")
    assert "can be used" in run.stdout


def test_a_limit_of_the_data_segment_counts(monkeypatch):
    used = psutil.Process().memory_info()
    limits = {resource.RLIMIT_DATA: (used.data + GB, used.data + GB)}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: limits.get(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    )
    assert machine.available_memory() <= 1.01 * GB
