"""Where the members of a shard's samples lie, found once per shard and kept under the shard's checksum.

A tar file has no table of contents: finding one means a visit to each header. Every loader process of every rank
needs it, so what one has found the others take from the node's cache.
"""

from __future__ import annotations

import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline import sample as samples
from pipeline.errors import CorruptDataError, UnsafeDataError

_EXECUTABLE = (".pickle", ".pkl", ".pyd", ".pth", ".pt")


@dataclass(frozen=True)
class Offsets:
    """The samples of a shard in file order; numbers in arrays, for a process may hold thousands of shards."""

    keys: NDArray[np.bytes_]
    suffixes: tuple[str, ...]
    places: NDArray[np.int64]
    """[sample, suffix, (offset in bytes, size in bytes)]; an offset of -1 where a sample has no such member."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def key(self, row: int) -> str:
        """Return the key of a sample."""
        return str(self.keys[row].decode())

    def members(self, row: int) -> dict[str, tuple[int, int]]:
        """Return suffix -> (offset, size) of a sample's members."""
        at: list[list[int]] = self.places[row].tolist()
        return {s: (offset, size) for s, (offset, size) in zip(self.suffixes, at, strict=True) if offset >= 0}


def find_offsets(stream: BinaryIO, path: str) -> Offsets:
    """List the samples of an open tar file, in file order; `path` is for errors.

    Raises `CorruptDataError` for a damaged tar and `UnsafeDataError` for members that no shard of ours holds.
    """
    # a dict keeps the order of the file, which is the order of the samples
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        # "r:" refuses compressed files: offsets into them would mean nothing
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                _check_member(member, path)
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise CorruptDataError(f"{path} is no complete tar file ({error}). Make this shard again.") from error
    return _in_arrays(found)


def _in_arrays(found: Mapping[str, Mapping[str, tuple[int, int]]]) -> Offsets:
    suffixes = tuple(sorted({suffix for members in found.values() for suffix in members}))
    places = np.full((len(found), len(suffixes), 2), -1, np.int64)
    for row, members in enumerate(found.values()):
        for suffix, place in members.items():
            places[row, suffixes.index(suffix)] = place
    return Offsets(np.array([key.encode() for key in found], np.bytes_), suffixes, places)


def _check_member(member: tarfile.TarInfo, path: str) -> None:
    """Refuse what other readers would follow or execute."""
    if not member.isreg() or member.name.endswith(_EXECUTABLE) or not samples.KEY_PATTERN.match(member.name):
        raise UnsafeDataError(
            f"{path} holds `{member.name}`, which is no sample of a shard set; do not use this file."
        )


def read_offsets(kept: Path, file: str) -> Offsets | None:
    """Read what `write_offsets` kept of a file; None where it is absent, damaged or of another file, which finding
    them again mends.
    """
    try:
        with np.load(kept, allow_pickle=False) as stored:
            found = Offsets(stored["keys"], tuple(stored["suffixes"].tolist()), stored["places"])
            return found if stored["found_in"].item() == file else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_offsets(offsets: Offsets, kept: Path, file: str) -> None:
    """Keep the offsets of a shard for other processes and runs; file: which of its copies they were found in."""
    buffer = BytesIO()
    suffixes = np.array(offsets.suffixes)
    np.savez(buffer, keys=offsets.keys, suffixes=suffixes, places=offsets.places, found_in=np.array(file))
    # a name of its own: several processes may find the same at once
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as stream:
        stream.write(buffer.getvalue())
    Path(stream.name).replace(kept)
