"""What rasterio opens, and the file on disk behind it: a path, or a member of a zip or tar that is read in place."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_REMOTE = ("/vsicurl/", "/vsis3/", "/vsigs/")
GDAL_SETTINGS: dict[str, Any] = {
    # what lies beside a file is no part of it, and listing it takes long elsewhere
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # GDAL waits for ever by itself: a server that is down must cost a scene, and not the run
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "300",
    # bytes a second, and for how long: a slow line is none that is dead
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_LOW_SPEED_TIME": "20",
    # after 1, 2 and 4 seconds, where the server says that it is busy
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    # a worker that lives on would remember for ever that a file was not there
    "CPL_VSIL_CURL_NON_CACHED": ":".join(_REMOTE),
}
"""How files are opened, wherever they lie."""
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
)
"""What `open_bytes`, and reading what it opened, raise where a file or a member cannot be read."""
_ZIP, _TAR = "/vsizip/", "/vsitar/"


def is_remote(location: str) -> bool:
    """Say whether a location is on another machine: a web server, or a bucket."""
    return location.startswith(_REMOTE)


def remedy(location: str) -> str:
    """Say what to do about a file that cannot be read."""
    if is_remote(location):
        return (
            "its server does not give it: look whether it can be reached, take the scene out of rejected.csv, and"
            " run again"
        )
    return "the file is damaged: fetch the product again"


def in_zip(archive: Path, member: str) -> str:
    """Return what rasterio opens for a member of a zip."""
    return _inside(_ZIP, archive, member)


def in_tar(archive: Path, member: str) -> str:
    """Return what rasterio opens for a member of an uncompressed tar."""
    return _inside(_TAR, archive, member)


def _inside(prefix: str, archive: Path, member: str) -> str:
    # braces: without them GDAL guesses by its ending where the archive's own name stops
    return f"{prefix}{{{archive}}}/{member}"


def split(location: str) -> tuple[Path, str]:
    """Return the file on disk, and the member in it (empty for a plain file)."""
    if not location.startswith((f"{_ZIP}{{", f"{_TAR}{{")):
        return Path(location), ""
    start = location.index("{")
    depth = 0
    # the archive's own path may hold braces: GDAL counts them too
    for place in range(start, len(location)):
        depth += {"{": 1, "}": -1}.get(location[place], 0)
        if depth == 0:
            return Path(location[start + 1 : place]), location[place + 2 :]
    return Path(location), ""


def file_on_disk(location: str) -> Path:
    """Return the file whose change changes what is read from `location`."""
    return split(location)[0]


@contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """Open a file, or a member of an archive, for reading bytes.

    Raises what `UNREADABLE` lists.
    """
    archive, member = split(location)
    if not member:
        with archive.open("rb") as stream:
            yield stream
    elif location.startswith(_ZIP):
        with zipfile.ZipFile(archive) as packed, packed.open(_as_stored(packed.namelist(), member)) as stream:
            yield stream
    else:
        with tarfile.open(archive, "r:") as tar, _of_tar(tar, member) as stream:
            yield stream


def _as_stored(names: Collection[str], member: str) -> str:
    # `tar -C folder .` writes ./name, and GDAL leaves that out
    return member if member in names else f"./{member}"


def _of_tar(tar: tarfile.TarFile, member: str) -> IO[bytes]:
    stream = tar.extractfile(_as_stored(tar.getnames(), member))
    if stream is None:
        raise KeyError(f"{member} is not a file")
    return stream
