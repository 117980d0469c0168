"""Stopping in good order: signals set a flag, marker files tell how a run ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from pipeline.manifest import write_atomically

COMPLETE, INTERRUPTED = "COMPLETE", "INTERRUPTED"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """While open, the first TERM, USR1 or INT sets `received`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            # the second time somebody means it: no more waiting for the step
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # only a flag: saving inside a handler could interrupt a save
        self.received = True


def mark(folder: Path, name: str) -> None:
    """Leave one marker in a run folder, COMPLETE or INTERRUPTED, and take away the other."""
    for other in (COMPLETE, INTERRUPTED):
        if other != name:
            (folder / other).unlink(missing_ok=True)
    write_atomically(folder / name, b"")


def clear_marks(folder: Path) -> None:
    """Take both markers away: the run is going on."""
    for name in (COMPLETE, INTERRUPTED):
        (folder / name).unlink(missing_ok=True)
