"""Where shards are: a folder, or object storage with a bounded cache on the node, shared by all its processes."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from pydantic import Field

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.config import Config, UserPath
from pipeline.console import LOG
from pipeline.errors import ConfigError, CorruptDataError, LostDataError, MissingInputError, UnsafeDataError
from pipeline.keys import hash_text
from pipeline.manifest import Shard
from training import remote

_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_CUT_SHORT = 3


class Cache(Config):
    """What a node keeps of the shards: member offsets, and whole shards of object storage."""

    folder: UserPath | None = None
    """Folder on a fast local disk; null takes one of the user's in the system's folder for temporary files."""
    limit_gb: float = Field(default=200, gt=0)
    """Shards of object storage are kept up to this size in all; the ones not read for longest go first."""
    patience_s: float = Field(default=120, gt=0)
    """How long object storage that fails is asked again before the run ends."""

    def made(self) -> Path:
        """Return the folder, which is made where it is missing; raises `ConfigError` where it is another user's."""
        folder = self.folder or Path(tempfile.gettempdir()) / f"spectral-pretraining-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # in a folder for all, somebody else may have been there first
        if self.folder is None and folder.stat().st_uid != os.getuid():
            raise ConfigError(f"{folder} is another user's: set data.cache.folder to one of your own.")
        return folder


class Storage(Protocol):
    """The shards of a set."""

    cache: Cache

    @property
    def name(self) -> str:
        """Folder or address, for people."""

    def told(self, shard: Shard) -> str:
        """Return what to call a shard in messages."""

    def check(self, shard: Shard, checksum: bool) -> None:
        """Raise `CorruptDataError` where a shard is missing or not as its manifest says, as far as that can be told
        at the start.
        """

    def file(self, shard: Shard) -> str:
        """Return what tells the file of a shard from its other copies, and from what it was before it changed."""

    def open(self, shard: Shard) -> int:
        """Return a descriptor of a shard's file on this node, for the caller to close.

        Raises `CorruptDataError` for a shard that is missing or damaged, `MissingInputError` for storage that does not
        answer.
        """


class Folder:
    """Shards on a file system."""

    def __init__(self, folder: Path, cache: Cache) -> None:
        self.folder, self.cache = folder, cache

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    def told(self, shard: Shard) -> str:
        """Return the shard's path."""
        return f"{self.folder}/{shard.path}"

    def file(self, shard: Shard) -> str:
        """Return a hash of the shard's path and of when it was written last."""
        with self._there(shard):
            path = (self.folder / shard.path).resolve(strict=True)
            return f"{hash_text(path, path.stat().st_mtime_ns):016x}"

    def open(self, shard: Shard) -> int:
        """Open the shard; raises `LostDataError` where it is missing."""
        with self._there(shard):
            return os.open(self.told(shard), os.O_RDONLY)

    def check(self, shard: Shard, checksum: bool) -> None:
        """Raise `LostDataError` or `CorruptDataError` for a shard that is not as the manifest says."""
        path = self.folder / shard.path
        with self._there(shard):
            size_bytes = path.stat().st_size
        # the size costs nothing and finds what truncation leaves; flips need sha256
        if size_bytes != shard.size_bytes:
            raise CorruptDataError(
                f"shard {path} has {size_bytes} bytes, not {shard.size_bytes}. Make it again."
            )
        if checksum and manifests.sha256(path) != shard.sha256:
            raise CorruptDataError(f"shard {path} does not have its recorded checksum. Make it again.")

    @contextmanager
    def _there(self, shard: Shard) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise LostDataError(
                f"shard {self.told(shard)} is missing. Copy it back, or make the set again."
            ) from error


def require_inside(shard: Shard, where: str) -> None:
    """Raise `UnsafeDataError` for a shard that a manifest says lies outside of its set."""
    if PurePosixPath(shard.path).is_absolute() or ".." in PurePosixPath(shard.path).parts:
        raise UnsafeDataError(
            f"{where}: shard `{shard.path}` lies outside the set; do not use this manifest."
        )


class Bucket:
    """Shards of object storage, each fetched when it is first read, and verified by its checksum then."""

    def __init__(self, address: str, cache: Cache) -> None:
        self._address, self.cache = address.rstrip("/"), cache

    @property
    def name(self) -> str:
        """The address."""
        return self._address

    def told(self, shard: Shard) -> str:
        """Return the shard's address."""
        return f"{self._address}/{shard.path}"

    def check(self, shard: Shard, checksum: bool) -> None:
        """Do nothing: what comes to the node is verified on arrival."""

    def file(self, shard: Shard) -> str:
        """Return nothing that tells copies apart: all that come to a node have the recorded checksum."""
        return ""

    def open(self, shard: Shard) -> int:
        """Open the shard in the node's cache, fetched where it is not there.

        Raises `CorruptDataError` naming a shard that is missing there or damaged, and `MissingInputError` after
        `patience_s` where the storage cannot be reached.
        """
        folder = self.cache.made()
        path = folder / f"{shard.sha256}.tar"
        # the ranks of a node want a shard at the same time: one fetches it for all
        with _only_one(folder / f"{shard.sha256}.lock"):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self._fetch(shard, path)
                descriptor = os.open(path, os.O_RDONLY)
                # opened before: another process may remove the file at once, and who has it open keeps it
                self._bound(folder, path)
        with suppress(FileNotFoundError):
            os.utime(path)  # what was opened last stays longest
        return descriptor

    def _fetch(self, shard: Shard, path: Path) -> None:
        partial, address = path.with_suffix(".partial"), self.told(shard)
        try:
            fetch = _Whole(address, partial, shard.size_bytes)
            patiently(fetch, address, self.cache.patience_s)
            # before it has its name: what lies under one in the cache is read without another look
            if manifests.sha256(partial) != shard.sha256:
                raise CorruptDataError(
                    f"shard {address} does not have its recorded checksum. Copy it there again from where it was made."
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _bound(self, folder: Path, keep: Path) -> None:
        """Remove the shards not read for longest; who has one open keeps it until it is closed."""
        with _only_one(folder / "room.lock"):
            kept = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.tar"))
            spare = sum(size for _, size, _ in kept) - self.cache.limit_gb * 1e9
            for _, size, path in kept:
                if spare <= 0:
                    break
                if path != keep:
                    path.unlink()
                    spare -= size


class _Whole:
    """Fetches all of a file."""

    def __init__(self, address: str, path: Path, size_bytes: int) -> None:
        self._address, self._path, self._size_bytes = address, path, size_bytes
        self._came: list[int] = []

    def __call__(self) -> remote.Problem | None:
        """Fetch it; a size that is wrong, and the same several times, is that of what lies there."""
        problem = remote.download(self._address, self._path)
        came = self._path.stat().st_size if problem is None else self._size_bytes
        if came == self._size_bytes:
            return problem
        # some servers that stop in the middle end the file as if it were all
        self._came.append(came)
        lies_so = self._came[-_CUT_SHORT:] == [came] * _CUT_SHORT
        return remote.Problem(f"{came} of {self._size_bytes} bytes came", final=lies_so, answered=lies_so)


def beside(address: str, name: str) -> str:
    """Return the address of the set of that name beside the one at an address, which may be its manifest's."""
    base = address.removesuffix(f"/{manifests.NAME}").rstrip("/")
    return f"{base.rpartition('/')[0]}/{name}"


def fetch_series(address: str, earlier: bool, cache: Cache) -> Path:
    """Bring manifest and histogram of a set to the node, and with `earlier` of those it stands beside.

    Returns the set's folder there. Sets beside each other stay so, which is how a numbered one finds the others.
    """
    name = address.removesuffix(f"/{manifests.NAME}").rstrip("/").rpartition("/")[2]
    folder = _fetch_manifest(beside(address, name), cache)
    made = manifests.read(folder)
    first = name.removesuffix(f"-{len(made.earlier) + 1:03d}")
    for number in range(1, len(made.earlier) + 1) if earlier else ():
        _fetch_manifest(beside(address, manifests.numbered(Path(first), number).name), cache)
    return folder


def _fetch_manifest(address: str, cache: Cache) -> Path:
    # by the whole address: sets of one name may lie in several buckets
    folder = cache.made() / "sets" / address.replace("://", "/")
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder / ".lock"):
        for file, needed in ((manifests.NAME, True), (histograms.NAME, False)):
            _bring(f"{address}/{file}", folder / file, cache.patience_s, needed)
    return folder


def _bring(address: str, path: Path, patience_s: float, needed: bool) -> None:
    partial = path.with_suffix(".partial")
    try:
        patiently(lambda: remote.download(address, partial), address, patience_s)
    except LostDataError:
        if needed:
            raise
        # one of before would be taken for this manifest's
        path.unlink(missing_ok=True)
        return
    # some buckets forbid what they do not have
    except MissingInputError:
        if needed:
            raise
        return
    partial.replace(path)


def patiently(fetch: remote.Fetch, address: str, patience_s: float) -> None:
    """Fetch, again after growing pauses while the storage cannot be reached.

    Raises `LostDataError` naming the address for what is not there, `MissingInputError` when `patience_s` is over.
    """
    ends, wait_s = time.monotonic() + patience_s, _WAIT_S
    while True:
        problem = fetch()
        if problem is None:
            return
        if problem.final or time.monotonic() + wait_s > ends:
            kind = LostDataError if problem.answered else MissingInputError
            raise kind(
                f"{address} cannot be read ({problem.text})"
                f"{'' if problem.final else f', and could not be for {patience_s:g} s'}. Check the address, the"
                " credentials and the storage, then give the same command again."
            )
        LOG.warning("%s cannot be read (%s): asking again in %.0f s", address, problem.text, wait_s)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Let one process of the node after the other into the block; a process that dies lets the next one in."""
    # never removed: who waits for it would hold another file than who comes after
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
