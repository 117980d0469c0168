"""Checkpoints written while the training goes on: what it waits for is a copy of its state, not the disk.

One at a time: the next waits for the one before. The last one of a life is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pipeline.console import LOG
from pipeline.errors import OutputError
from training.checkpoint import State, Store
from training.engine import Engine
from training.runs import RunConfig
from training.states import Snapshot


class Saver:
    """Saves a run's state; as a context manager it waits at the end for what is being written."""

    def __init__(self, store: Store, config: RunConfig, whole: Callable[[int], None]) -> None:
        """whole: called on rank 0, by the writing thread, with the step of each checkpoint that is whole."""
        self._store, self._config, self._whole = store, config, whole
        # a thread: what writes, sums and syncs does not hold Python's lock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last write went wrong and the run is to stop; on rank 0, which is the one that writes."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def save(self, engine: Engine, state: State, last: bool) -> None:
        """Take a copy of what training has changed and write it; collective.

        last: wait until it is written, as `save_async: false` always does.
        Raises on all ranks, for this checkpoint or for the one before, `OutputError` where it cannot be written and
        `TrainingError` where weights are not finite.
        """
        self._settle()
        snapshot = engine.snapshot()
        if self._store.world.main:
            self._job = self._writer.submit(self._write, snapshot, state, last)
        # the thread has it alone: else it would stay until the next
        del snapshot
        if last or not self._config.save_async:
            self._settle()

    def _write(self, snapshot: Snapshot, state: State, last: bool) -> None:
        try:
            self._store.write(snapshot, state)
        except OutputError as error:
            # the last one is what the run is for
            if last or self._config.save_failure == "stop":
                raise
            LOG.warning("step %d is not saved, the run goes on: %s", state.step, error)
        else:
            self._whole(state.step)

    def _settle(self) -> None:
        """Wait for what is being written; raises on all ranks what became of it."""
        job, self._job = self._job, None
        # told to all: the others would wait for rank 0 until their time is over
        problem = self._store.world.gather(job and job.exception())[0]
        if isinstance(problem, BaseException):
            raise problem

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
        # only where the run ends by something else: else it was raised
        if self._job and (problem := self._job.exception()):
            LOG.warning("%s", problem)
