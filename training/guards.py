"""Stopping in good order: signals set a flag, marker files tell how a run ended.

Standard library only: entries listen before they load torch, which takes seconds in which a signal would kill.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

COMPLETE, INTERRUPTED = "COMPLETE", "INTERRUPTED"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_HEARD = b"\nstop: the step is finished and everything saved; the same signal again ends at once\n"


class StopSignal:
    """While it listens, the first TERM, USR1 or INT sets `received`; a second one ends the process at once.

    As a context manager it stops listening at the end, unless it was listening before.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}
        self._opened: list[bool] = []

    def listen(self) -> bool:
        """Take the signals over; returns False where they were taken over already."""
        if self._before:
            return False
        self.received = False
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return True

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __enter__(self) -> Self:
        self._opened.append(self.listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened.pop():
            self._release()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            # the second time somebody means it: no more waiting for the step
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # only a flag: saving inside a handler could interrupt a save
        self.received = True
        # not print: the signal may have come in the middle of one
        os.write(2, _HEARD)


STOP = StopSignal()
"""The process's own: handlers belong to a process, not to a part of it."""


def mark(folder: Path, name: str) -> None:
    """Leave one marker in a run folder, COMPLETE or INTERRUPTED, and take away the other."""
    for other in (COMPLETE, INTERRUPTED):
        if other != name:
            (folder / other).unlink(missing_ok=True)
    (folder / name).touch()


def clear_marks(folder: Path) -> None:
    """Take both markers away: the run is going on."""
    for name in (COMPLETE, INTERRUPTED):
        (folder / name).unlink(missing_ok=True)
