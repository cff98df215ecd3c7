"""Run the units of a grid: in this process, in processes of joblib, or on the workers of dask.distributed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from curvature._version import __version__
from curvature.errors import ConfigurationError, ResourceError
from curvature.records import Study
from curvature.studies.grid.settings import GridSettings, Unit, measure_unit
from curvature.studies.progress import Progress, part_of

__all__ = ["BACKENDS", "measured_units"]

BACKENDS = ("joblib", "dask")
_WAIT = 10  # seconds for a scheduler to answer


def measured_units(
    settings: GridSettings,
    units: Sequence[Unit],
    *,
    backend: str = "joblib",
    jobs: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Unit, Study]]:
    """Measure units, each as soon as a worker is free.

    Parameters
    ----------
    settings
        Of the grid.
    units
        Which.
    backend
        ``"joblib"``: processes of this machine. ``"dask"``: workers of dask.distributed; the unit of a worker that is
        lost is run again by another one.
    jobs
        Number of processes that are started; 1 with joblib: this process.
    scheduler
        Address of a running scheduler, such as ``"tcp://host:8786"``, for dask; None: a cluster of ``jobs`` workers on
        this machine.
    progress
        Called with a message and the share of the units that is done.

    Yields
    ------
    tuple
        A unit and its measurements, in the order in which they are finished. They do not depend on backend and number
        of workers, on machines of one kind: every unit is measured on one thread.

    Raises
    ------
    ConfigurationError
        If the backend is unknown or not installed, no scheduler answers, or a worker has another version.
    ResourceError
        If a process of joblib was killed, or a unit was lost with several workers of dask.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(f"the backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if scheduler is not None and backend != "dask":
        raise ConfigurationError(f"a scheduler belongs to the backend dask, not to {backend}.")
    if backend == "joblib" and jobs == 1:
        for number, unit in enumerate(units):
            yield unit, measure_unit(settings, unit, progress=part_of(progress, number, len(units)))
        return
    finished = _by_dask(settings, units, jobs, scheduler) if backend == "dask" else _by_joblib(settings, units, jobs)
    for number, (unit, study, workers) in enumerate(finished, start=1):
        if progress is not None:
            progress(f"{number} of {len(units)} units are done, {workers} at a time", number / len(units))
        yield unit, study


def _by_joblib(settings: GridSettings, units: Sequence[Unit], jobs: int) -> Iterator[tuple[Unit, Study, int]]:
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    workers = min(jobs, max(len(units), 1))
    parallel = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
    try:
        for unit, study in parallel(joblib.delayed(_measured_elsewhere)(settings, unit, __version__) for unit in units):
            yield unit, study, workers
    except TerminatedWorkerError as error:
        raise ResourceError("a worker process was killed, perhaps for want of memory. Use fewer --jobs.") from error


def _by_dask(
    settings: GridSettings, units: Sequence[Unit], jobs: int, scheduler: str | None
) -> Iterator[tuple[Unit, Study, int]]:
    distributed = _distributed()
    with contextlib.ExitStack() as stack:
        address: Any = scheduler
        if address is None:
            address = stack.enter_context(
                distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
            )
        try:
            client = stack.enter_context(distributed.Client(address, timeout=_WAIT))
        except OSError as error:
            raise ConfigurationError(
                f"no scheduler of dask answers at {scheduler} within {_WAIT} seconds. Start one with: dask scheduler"
            ) from error
        futures = [client.submit(_measured_elsewhere, settings, unit, __version__, pure=False) for unit in units]
        stack.callback(client.cancel, futures)  # where the run is interrupted, the workers are free again
        try:
            for _, (unit, study) in distributed.as_completed(futures, with_results=True):
                yield unit, study, len(client.scheduler_info(n_workers=-1)["workers"])
        except distributed.scheduler.KilledWorker as error:
            raise ResourceError(
                f"a unit was lost with several workers, perhaps for want of memory: {str(error).splitlines()[0]}"
            ) from error


def _distributed() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the backend dask needs the package 'distributed', which is not installed. Run: pip install "
            "'dask[distributed]', or pip install 'curvature-toolkit[scale]'."
        ) from error
    return distributed


def _measured_elsewhere(settings: GridSettings, unit: Unit, version: str) -> tuple[Unit, Study]:
    if version != __version__:
        raise ConfigurationError(
            f"a worker has version {__version__} of curvature-toolkit, but the run was started with {version}. Install "
            "the same version everywhere."
        )
    return unit, measure_unit(settings, unit)
