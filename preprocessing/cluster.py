"""Independent jobs over Dask's worker processes, or one after the other in this process."""

from __future__ import annotations

import importlib
import logging
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from pipeline.errors import PipelineError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
_ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make of TERM and USR1, which end a job under Slurm, the `KeyboardInterrupt` that Ctrl-C is.

    Later ones are ignored while worker processes end, which takes seconds; only a second Ctrl-C ends at once.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}

    def end(number: int, frame: FrameType | None) -> None:
        # Slurm may send the same signal twice, by the step and by srun
        for other in _ENDING:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        # Zarr's and Dask's loops are torn down in mid-work, and would complain of it
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")
        raise KeyboardInterrupt

    for number in _ENDING:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pool:
    """Runs jobs and hands results out as they come; a context manager that ends its processes."""

    def __init__(self, workers: int) -> None:
        """Prepare for `workers` processes; 0 works in this process. Nothing is started before it is entered."""
        self._workers = workers

    def __enter__(self) -> Pool:
        if self._workers:
            # they come to workers too; these inherit deafness, so that we end them, and not in mid-sentence
            before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
            try:
                self._start()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        return self

    def _start(self) -> None:
        distributed = _distributed()
        self._scratch = tempfile.TemporaryDirectory(prefix="dask-")
        self._cluster = distributed.LocalCluster(
            n_workers=self._workers,
            # GDAL, zarr and numpy hold memory per thread: processes keep it countable
            threads_per_worker=1,
            processes=True,
            # Dask counts a scene in numpy's hands as a leak, and would kill the worker on a small machine
            memory_limit=0,
            dashboard_address="127.0.0.1:0",  # two runs on one machine must not want the same port
            local_directory=self._scratch.name,
            silence_logs=logging.CRITICAL,
        )
        self._client = distributed.Client(self._cluster)

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
        distributed = _distributed()
        # impure: equal jobs of two runs must both touch the disk
        futures = self._client.map(work, jobs, pure=False)
        try:
            for future in distributed.as_completed(futures):
                yield future.result()
                # else the scheduler would keep every result until the end
                future.release()
        except distributed.KilledWorker as error:
            raise PipelineError(
                f"{error}. Most likely memory ran out: start again with fewer `workers`."
            ) from error


def _distributed() -> Any:
    """Import Dask's scheduler, half a second, only where worker processes are wanted; its log stays silent."""
    importlib.import_module("dask").config.set({"logging": {"distributed": "critical"}})
    module = importlib.import_module("dask.distributed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return module
