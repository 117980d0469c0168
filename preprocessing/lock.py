"""One run at a time on one output folder.

The lock is held by the operating system, so it ends with the process that holds it, however that ends; the file
says for people (and for hosts that do not share locks) who that is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import OutputError

NAME = ".lock"
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; raises `OutputError` naming process and host that hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    # never truncated before the lock is held: the text belongs to the holder
    with path.open("a+", encoding="utf-8") as stream:
        free = _take(stream.fileno())
        stream.seek(0)
        holder = _parse(stream.read())
        if not free or _is_alive(holder):
            raise OutputError(_message(folder, holder))
        # not removed at the end: another run may have opened the file by then
        stream.truncate(0)
        stream.write(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                }
            )
        )
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def _take(descriptor: int) -> bool:
    try:
        # ends with the process, even when it is killed: no guessing from process numbers
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # some network file systems know no locks: the text has to do there
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def _parse(text: str) -> dict[str, str | int]:
    try:
        tree = json.loads(text or "{}")
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _is_alive(holder: dict[str, str | int]) -> bool:
    """Say whether the named holder may still run although its lock could be taken.

    On this host a free lock means it is gone. Another host's lock may simply not be visible here.
    """
    return bool(holder) and holder.get("host") != socket.gethostname()


def _message(folder: Path, holder: dict[str, str | int]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
    return (
        f"{folder} is in use by {who}. Wait for it or take another `output`;"
        f" if it is certainly gone, remove {folder / NAME}."
    )
