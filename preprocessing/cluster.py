"""Independent jobs over Dask's worker processes, here or elsewhere, or one after the other in this process."""

from __future__ import annotations

import logging
import signal
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, TypeVar

from pipeline.errors import ClusterError
from preprocessing import remote
from preprocessing.exclusive import Exclusive, Shared, code_digest
from preprocessing.remote import DaskConfig

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
LOOK_S = 30.0
"""How often it is looked whether there is a worker left at all."""
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
    """Runs jobs and hands results out as they come; a context manager that ends its processes.

    Workers of a cluster that was there before are left to it: what they have in hand they bring to its end.
    """

    def __init__(self, workers: int, shared: Shared, dask: DaskConfig | None = None) -> None:
        """Prepare for the cluster `dask` names, or else `workers` processes, 0 for this one; nothing starts yet.

        shared: what all of them must see.
        """
        self._workers, self._dask = workers, dask or DaskConfig()
        # processes that are started here load the same files
        self._shared = replace(shared, code=code_digest()) if self._dask.is_given else shared
        self._client: Any = None
        self._held = ExitStack()

    def __enter__(self) -> Pool:
        with ExitStack() as opened:
            if self._workers or self._dask.is_given:
                self._shared.open()
                opened.callback(self._shared.close)
                there = self._dask.is_given
                self._client = remote.connect(self._dask, self._shared) if there else self._start(opened)
                opened.callback(self._client.close)
            self._held = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _start(self, opened: ExitStack) -> Any:
        """Start workers on this machine and return their client."""
        # signals come to workers too; these inherit deafness, so that we end them, and not in mid-sentence
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
        try:
            dask = remote.distributed()
            cluster = dask.LocalCluster(
                n_workers=self._workers,
                # GDAL, zarr and numpy hold memory per thread: processes keep it countable
                threads_per_worker=1,
                processes=True,
                # Dask counts a scene in numpy's hands as a leak, and would kill the worker on a small machine
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # two runs on one machine must not want the same port
                local_directory=opened.enter_context(tempfile.TemporaryDirectory(prefix="dask-")),
                silence_logs=logging.CRITICAL,
            )
            opened.callback(cluster.close)
            return dask.Client(cluster)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(
        self, work: Callable[[JobT], ResultT], jobs: Sequence[JobT], name: Callable[[JobT], str]
    ) -> Iterator[ResultT]:
        """Yield the results of `work` over `jobs` as they come, in any order; a job's exception is raised here.

        name: tells a job from all others that touch other files.
        """
        if self._client is None:
            yield from map(work, jobs)
            return
        names = [name(job) for job in jobs]
        # keys of this run: equal jobs of two runs must both touch the disk
        run = uuid.uuid4().hex
        keys = [f"{one}-{run}" for one in names]
        alone = Exclusive(work, self._shared)
        packed = [remote.pack(alone, *job) for job in zip(names, jobs, strict=True)]
        futures = self._client.map(remote.caller(), packed, key=keys)
        yield from self._results(dict(zip(futures, names, strict=True)))

    def _results(self, waiting: dict[Any, str]) -> Iterator[Any]:
        """Yield results as they come; raises `ClusterError` where none can come any more."""
        dask = remote.distributed()
        ready = dask.as_completed(waiting, timeout=LOOK_S)
        while waiting:
            try:
                future = next(ready)
            except TimeoutError:
                # jobs may take longer; without any worker they would take for ever
                remote.require_workers(self._client, self._client.scheduler.address)
                ready = dask.as_completed(waiting, timeout=LOOK_S)
                continue
            yield self._result(future, waiting.pop(future))
            # else the scheduler would keep every result until the end
            future.release()

    def _result(self, future: Any, name: str) -> Any:
        dask = remote.distributed()
        try:
            return future.result()
        except dask.KilledWorker as error:
            raise ClusterError(
                f"the work on {name} ended {error.allowed_failures + 1} worker processes. Most likely memory ran out:"
                " start again with fewer `workers`, or on a cluster with more memory for each."
            ) from error
        except ModuleNotFoundError as error:
            raise ClusterError(f"a Dask worker {remote.in_words(error)}.") from error
        # Dask takes all jobs back when it has lost its scheduler
        except CancelledError as error:
            raise ClusterError(remote.GONE) from error
