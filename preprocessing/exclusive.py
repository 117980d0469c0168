"""One worker at a time on one job, wherever the workers are.

Dask gives a job to another worker when it takes the first for lost, and a lost worker may live: one whose connection
broke works on for half a minute, one whose node was given up for as long as that node lets it. Two in one scene's
folder would mix their files. So each holds the job's lock; the later one waits, and finds the work done.
"""

from __future__ import annotations

import hashlib
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import pipeline
import preprocessing
from pipeline.errors import ClusterError, OutputError
from pipeline.lock import locked

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
PATIENCE_S = 900.0
"""How long a job waits for a lost worker that still holds it; some file servers keep a dead node's locks."""
RETRY_S = 0.2


@dataclass(frozen=True)
class Shared:
    """What every worker must see: the locks of this run, and the files it reads."""

    locks: Path
    needed: tuple[Path, ...] = ()
    code: str = ""
    """Digest of the project's files, where workers might run others; empty compares none."""
    token: str = field(default_factory=lambda: f"run-{uuid.uuid4().hex}")
    """A file among the locks: a folder of the same name on a worker's own disk does not hold it."""

    def open(self) -> None:
        """Make the folder and the token."""
        self.locks.mkdir(parents=True, exist_ok=True)
        (self.locks / self.token).touch()

    def close(self) -> None:
        """Remove the token: whoever still looks for it belongs to a run that ended."""
        (self.locks / self.token).unlink(missing_ok=True)

    def problem(self) -> str:
        """Say what keeps this process from taking part; empty where nothing does."""
        for path in (self.locks / self.token, *self.needed):
            if not path.exists():
                seen = path.parent if path.name == self.token else path
                return f"does not see {seen}: workers need the same file system, under the same path"
        if self.code not in ("", code_digest()):
            return "has loaded another version of the project: restart the workers"
        return ""


@dataclass(frozen=True)
class Exclusive(Generic[JobT, ResultT]):
    """Work on a job, which no other process does meanwhile: what a Dask worker is given."""

    work: Callable[[JobT], ResultT]
    shared: Shared

    def __call__(self, name: str, job: JobT) -> ResultT:
        """Return the result of the work on the job of that name; raises `ClusterError` where it cannot be done here."""
        # asked each time: workers may join when the run has long begun
        problem = self.shared.problem()
        if problem:
            raise ClusterError(f"the Dask worker on {socket.gethostname()} {problem}.")
        with ExitStack() as held:
            _hold(held, self.shared.locks, f"{name.replace('/', '-')}.lock")
            return self.work(job)


def _hold(held: ExitStack, folder: Path, name: str) -> None:
    """Take a lock, waiting for a worker that was taken for lost and is not."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            # tried again and again: a lock that the system waits for knows no limit of time
            held.enter_context(locked(folder, name))
            return
        except OutputError:
            if time.monotonic() > end:
                raise
        time.sleep(RETRY_S)


@cache
def code_digest() -> str:
    """Identify the project's files as they were when this process first asked."""
    # kept by the cache: what is edited later is not what this process has loaded
    total = hashlib.sha256()
    for package in (pipeline, preprocessing):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            total.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return total.hexdigest()
