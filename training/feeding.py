"""Batches for the loop, also where a loader process dies or hangs: then from here, so that the run can save and end."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from training.data import Batch, DataConfig
from training.stream import ShardStream

_MOST_NAMED = 4


class Feed:
    """The batches of some steps; `problem` tells why the last one is the last, where that is before the end."""

    def __init__(self, stream: ShardStream, steps: range, config: DataConfig) -> None:
        self.problem = ""
        self._stream, self._steps, self._config = stream, steps, config
        self._waiting = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; after a loader's failure they are loaded here, until the loop has agreed to stop."""
        steps, config = self._steps, self._config
        # ours: torch's time-out does not hear of a worker that hangs while it hands a batch over
        batches = self._stream.batches(steps.start, steps.stop, config.workers, timeout_s=0)
        hear = signal.getsignal(signal.SIGCHLD)
        try:
            for step in steps:
                try:
                    batch = self._wait(batches)
                except RuntimeError as error:  # the one kind that torch has for workers that die or hang
                    self.problem = self._told(step, error)
                    yield from map(self._stream.__getitem__, range(step, steps.stop))
                    return
                yield batch
        finally:
            signal.signal(signal.SIGCHLD, hear)

    def _wait(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch; raises `RuntimeError` where a worker is dead or takes too long."""
        self._waiting = True
        try:
            hear = signal.getsignal(signal.SIGCHLD)
            if isinstance(hear, _WhileWaiting):
                hear(signal.SIGCHLD, None)  # one may have died in between
            with _at_most(self._config.timeout_s if self._config.workers else 0):
                batch = next(batches)
        finally:
            self._waiting = False
        hear = signal.getsignal(signal.SIGCHLD)
        # torch's handler raises wherever the process is, in the middle of an update too: here only while we wait
        if callable(hear) and not isinstance(hear, _WhileWaiting):
            signal.signal(signal.SIGCHLD, _WhileWaiting(hear, lambda: self._waiting))
        return batch

    def _told(self, step: int, error: RuntimeError) -> str:
        # one that hangs hears no polite signal, and would be waited for at the end
        for child in multiprocessing.active_children():
            child.kill()
        shards = [str(path) for path in self._stream.shards(step)]
        more = f" and {len(shards) - _MOST_NAMED} more" if shards[_MOST_NAMED:] else ""
        return (
            f"a loader process failed at step {step + 1}, which reads {', '.join(shards[:_MOST_NAMED])}{more}"
            f" ({str(error).splitlines()[0].rstrip('.')}). Everything is saved. Look at memory and storage, then give"
            " the same command again; data.workers=0 does without loader processes."
        )


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `RuntimeError`, as torch does, where something takes longer; 0 waits for ever."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise RuntimeError(f"it gave nothing for {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _WhileWaiting:
    """A signal handler that acts at certain times only."""

    def __init__(self, handler: Callable[[int, FrameType | None], object], now: Callable[[], bool]) -> None:
        self._handler, self._now = handler, now

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._now():
            self._handler(number, frame)
