"""Independent jobs over Dask's worker processes, or one after the other in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Pool:
    """Runs jobs and hands results out as they come; a context manager that ends its processes."""

    def __init__(self, workers: int) -> None:
        """Prepare for `workers` processes; 0 works in this process. Nothing is started before it is entered."""
        self._workers = workers

    def __enter__(self) -> Pool:
        if self._workers:
            self._start()
        return self

    def _start(self) -> None:
        import dask
        from dask.distributed import Client, LocalCluster

        self._scratch = tempfile.TemporaryDirectory(prefix="dask-")
        settings = {"distributed.worker.memory.terminate": False, "distributed.admin.log-format": "%(message)s"}
        with dask.config.set(settings):
            self._cluster = LocalCluster(
                n_workers=self._workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                local_directory=self._scratch.name,
                silence_logs=40,
            )
        self._client = Client(self._cluster)

    def __exit__(self, *_: object) -> None:
        if self._workers:
            self._client.close()
            self._cluster.close()
            self._scratch.cleanup()

    def run(self, work: Callable[[JobT], ResultT], jobs: Sequence[JobT]) -> Iterator[ResultT]:
        """Yield the results of `work` over `jobs` as they come, in any order; a job's exception is raised here."""
        if not self._workers:
            yield from map(work, jobs)
            return
        from dask.distributed import as_completed

        futures = self._client.map(work, jobs, pure=False, retries=1)
        for future in as_completed(futures):
            yield future.result()
            future.release()
