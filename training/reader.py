"""Shards by position: WebDataset tar files read through an index of member offsets.

A tar header names each member's place, so any sample of a shard is one positioned read away; nothing is streamed
past, which is what makes the order free and a resume exact.
"""

from __future__ import annotations

import bisect
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.errors import ContractError, CorruptDataError, MissingInputError
from pipeline.manifest import Manifest, Shard
from pipeline.sample import Sample

Verify = Literal["size", "sha256"]
_EXECUTABLE = (".pickle", ".pkl", ".pyd", ".pth", ".pt")


@dataclass(frozen=True)
class Entry:
    """Where one sample lies in its shard."""

    key: str
    members: dict[str, tuple[int, int]]
    """Suffix -> (offset in bytes, size in bytes)."""


def index_shard(path: Path) -> list[Entry]:
    """List the samples of a tar file, in file order.

    Raises `CorruptDataError` for a damaged tar and for members that no shard of ours holds.
    """
    # a dict keeps the order of the file, which is the order of the samples
    entries: dict[str, Entry] = {}
    try:
        # "r:" refuses compressed files: offsets into them would mean nothing
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _check_member(member, path)
                key, _, suffix = member.name.partition(".")
                entries.setdefault(key, Entry(key, {})).members[suffix] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise CorruptDataError(f"{path} is no complete tar file ({error}). Make this shard again.") from error
    return list(entries.values())


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    """Refuse what other readers would follow or execute."""
    if not member.isreg() or member.name.endswith(_EXECUTABLE) or not samples.KEY_PATTERN.match(member.name):
        raise CorruptDataError(
            f"{path} holds `{member.name}`, which is no sample of a shard set; do not use this file."
        )


class ShardReader:
    """The samples of one split of a shard set, by their number in manifest order."""

    def __init__(
        self, location: Path, split: str, verify: Verify = "size", manifest: Manifest | None = None
    ) -> None:
        """manifest: the one at `location`, where it was read before."""
        self.manifest: Manifest = manifest or manifests.read(location)
        self.folder = location if location.is_dir() else location.parent
        self.shards = self.manifest.shards(split)
        self.scenes = {s.id for s in self.manifest.scenes if s.tiles.get(split)}
        """Scenes that gave samples of the split."""
        self._ends = list(itertools.accumulate(s.samples for s in self.shards))
        if not self._ends or not self._ends[-1]:
            raise ContractError(
                f"the split `{split}` of {location} has no samples; loosen the thresholds and shard again."
            )
        for shard in self.shards:
            self._check(shard, verify)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    def _check(self, shard: Shard, verify: Verify) -> None:
        path = self.folder / shard.path
        if PurePosixPath(shard.path).is_absolute() or ".." in PurePosixPath(shard.path).parts:
            raise CorruptDataError(
                f"{self.folder}: shard `{shard.path}` lies outside the set; do not use this manifest."
            )
        if not path.exists():
            raise MissingInputError(f"shard {path} is missing. Copy it back, or make the set again.")
        # the size costs nothing and finds what truncation leaves; flips need sha256
        if path.stat().st_size != shard.size_bytes:
            raise CorruptDataError(
                f"shard {path} has {path.stat().st_size} bytes, not {shard.size_bytes}. Make it again."
            )
        if verify == "sha256" and manifests.sha256(path) != shard.sha256:
            raise CorruptDataError(f"shard {path} does not have its recorded checksum. Make it again.")

    def place(self, number: int) -> Path:
        """Return the shard that sample `number` lies in."""
        return self.folder / self.shards[bisect.bisect_right(self._ends, number)].path

    def read(self, number: int) -> Sample:
        """Read and decode sample `number`."""
        place = bisect.bisect_right(self._ends, number)
        shard = self.shards[place]
        path = self.folder / shard.path
        entries = self._entries(place)
        entry = entries[number - (self._ends[place] - shard.samples)]
        # opened for each sample: loader processes must not share a descriptor
        with path.open("rb", buffering=0) as stream:
            members = {
                s: os.pread(stream.fileno(), size, offset) for s, (offset, size) in entry.members.items()
            }
        return samples.decode(entry.key, members, str(path))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples; the headers of all shards are read."""
        for place in range(len(self.shards)):
            yield from (entry.key for entry in self._entries(place))

    def _entries(self, place: int) -> list[Entry]:
        shard = self.shards[place]
        entries = _index(self.folder / shard.path)
        if len(entries) != shard.samples:
            raise CorruptDataError(
                f"shard {shard.path} holds {len(entries)} samples, not {shard.samples}. Make it again."
            )
        return entries


@lru_cache(maxsize=4096)
def _index(path: Path) -> list[Entry]:
    return index_shard(path)
