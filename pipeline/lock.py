"""One run at a time on one output folder.

The operating system holds the lock, so it ends with the process that holds it, however that ends, and a lock that
could be taken is ours. Two kinds of file system need more: those that share no locks between hosts (Lustre's
`localflock`) and those that know none. There the text of the file counts: it names the holder, who touches the
file every `BEAT_S` seconds. A holder on another host is believed if the file is touched while we watch it for
`WATCH_S` seconds; what it left behind when it was killed never is. No clocks of two hosts are compared. A later
life of the same Slurm job need not watch: Slurm starts it when the former one is dead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pipeline import console
from pipeline.errors import OutputError

NAME = ".lock"
BEAT_S = 10.0
WATCH_S = 45.0
"""Several beats: a holder may be busy, and network file systems tell of changes late."""
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
Holder = dict[str, str | int]
"""pid, host, since; job and life where Slurm runs it."""


@contextmanager
def locked(folder: Path, name: str = NAME) -> Iterator[None]:
    """Hold the lock of `folder`, or one of another name in it; raises `OutputError` naming who holds it, and where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    # never truncated before the lock is held: the text belongs to the holder
    with path.open("a+", encoding="utf-8") as stream:
        shared = _take(stream.fileno())
        stream.seek(0)
        holder = _parse(stream.read())
        if shared is False or (_may_live(holder, shared) and _is_touched(path, holder)):
            raise OutputError(_message(path, holder))
        # not removed at the end: another run may have opened the file by then
        stream.truncate(0)
        stream.write(json.dumps(_ourselves()))
        stream.flush()
        try:
            with _beating(stream):
                yield
        finally:
            stream.truncate(0)


def _take(descriptor: int) -> bool | None:
    """Take the system's lock; None where the file system knows none."""
    try:
        # ends with the process, even when it is killed: no guessing from process numbers
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # some network file systems know no locks: the text has to do there
        if error.errno not in _UNSUPPORTED:
            raise
        return None
    return True


def _parse(text: str) -> Holder:
    try:
        tree = json.loads(text or "{}")
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _ourselves() -> Holder:
    found: Holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    if "SLURM_JOB_ID" in os.environ:
        found |= {"job": os.environ["SLURM_JOB_ID"], "life": os.environ.get("SLURM_RESTART_COUNT", "0")}
    return found


def _may_live(holder: Holder, locks: bool | None) -> bool:
    """Say whether the named holder may still run although no lock kept us out."""
    ours = _ourselves()
    # two lives of one job never run at once, two runs in one life could
    if "job" in ours and holder.get("job") == ours["job"] and holder.get("life") != ours["life"]:
        return False
    # on one host every lock is seen, where there are locks at all
    return bool(holder) and (locks is None or holder.get("host") != ours["host"])


def _is_touched(path: Path, holder: Holder) -> bool:
    """Watch the file for a while; says whether its holder still touches it."""
    console.say(f"{path} names {_who(holder)}: watching for {WATCH_S:g} s whether it still works ...")
    end, first = time.monotonic() + WATCH_S, _time_of_change(path)
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_S))
        if _time_of_change(path) != first:
            return True
    return False


def _time_of_change(path: Path) -> int:
    # opened anew: on NFS that asks the server instead of a memory of up to a minute
    with path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime_ns


@contextmanager
def _beating(stream: TextIO) -> Iterator[None]:
    """Touch the file every now and then, for other hosts to see that we live."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            # a server that is away for a moment must not end the beat
            with suppress(OSError):
                os.utime(stream.fileno())

    # a thread: the work itself may be in one long call for minutes
    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _who(holder: Holder) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"


def _message(path: Path, holder: Holder) -> str:
    return (
        f"{path.parent} is in use by {_who(holder)}. Wait for it or take another `output`;"
        f" if it is certainly gone, remove {path}."
    )
