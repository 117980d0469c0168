"""Shards by position: WebDataset tar files read through an index of member offsets.

A tar header names each member's place, so any sample of a shard is one positioned read away; nothing is streamed
past, which is what makes the order free and a resume exact.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.errors import ContractError, CorruptDataError
from pipeline.manifest import Manifest, Shard
from pipeline.sample import Label, Sample, Scratch
from training.offsets import Offsets, find_offsets, read_offsets, write_offsets
from training.storage import Cache, Folder, Storage

Verify = Literal["size", "sha256"]
_OPEN = 32
_KNOWN = 4096


class ShardReader:
    """The samples of one split of a shard set, by their number in manifest order."""

    def __init__(
        self,
        location: Path,
        split: str,
        verify: Verify = "size",
        manifest: Manifest | None = None,
        storage: Storage | None = None,
    ) -> None:
        """manifest: the one at `location`, where it was read before; storage: where its shards are, if not there."""
        self.manifest: Manifest = manifest or manifests.read(location)
        self.folder = location if location.is_dir() else location.parent
        self.storage: Storage = storage or Folder(self.folder, Cache())
        self.shards = self.manifest.shards(split)
        self.scenes = {s.id for s in self.manifest.scenes if s.tiles.get(split)}
        """Scenes that gave samples of the split."""
        self._ends = list(itertools.accumulate(s.samples for s in self.shards))
        self._files = _Files()
        self._known: OrderedDict[int, Offsets] = OrderedDict()
        if not self._ends or not self._ends[-1]:
            raise ContractError(
                f"the split `{split}` of {location} has no samples; loosen the thresholds and shard again."
            )
        for shard in self.shards:
            self.storage.check(shard, verify == "sha256")

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    @property
    def name(self) -> str:
        """Folder or address, for people."""
        return self.storage.name

    def _find(self, number: int) -> tuple[int, int]:
        """Return the place of a sample's shard among the shards, and of the sample in the shard."""
        place = bisect.bisect_right(self._ends, number)
        return place, number - (self._ends[place] - self.shards[place].samples)

    def place(self, number: int) -> str:
        """Return the shard that sample `number` lies in, for people."""
        return self.storage.told(self.shards[self._find(number)[0]])

    def key(self, number: int) -> str:
        """Return the key of sample `number`."""
        place, row = self._find(number)
        return self._offsets(place).key(row)

    def read(self, number: int, scratch: Scratch | None = None) -> Sample:
        """Read and decode sample `number`; its arrays last until the next sample is read into the same scratch."""
        place, row = self._find(number)
        shard, offsets = self.shards[place], self._offsets(place)
        members = offsets.members(row)
        # the members of a sample lie one after the other: one read, their headers with them
        first, (last, length) = min(members.values())[0], max(members.values())
        size = last + length - first
        buffer = (scratch or Scratch()).room("stored", size).data
        if os.preadv(self._descriptor(shard), [buffer], first) != size:
            raise CorruptDataError(
                f"shard {self.storage.told(shard)} ends before {offsets.key(row)} does: it was truncated while in"
                " use. Make it again."
            )
        parts = {s: buffer[at - first : at - first + length] for s, (at, length) in members.items()}
        return samples.decode(offsets.key(row), parts, self.storage.told(shard), scratch)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples; the headers of all shards are read."""
        for place in range(len(self.shards)):
            offsets = self._offsets(place)
            yield from (offsets.key(row) for row in range(len(offsets)))

    def labels(self) -> Iterator[Label | None]:
        """Yield the labels of all samples, in order; nothing else of them is read."""
        for place, shard in enumerate(self.shards):
            offsets, descriptor = self._offsets(place), self._descriptor(shard)
            for row in range(len(offsets)):
                wanted = {s: at for s, at in offsets.members(row).items() if s.startswith("label.")}
                members = {s: os.pread(descriptor, size, at) for s, (at, size) in wanted.items()}
                yield samples.decode_label(offsets.key(row), members, self.storage.told(shard))

    def _descriptor(self, shard: Shard) -> int:
        return self._files.get(shard.path) or self._files.keep(shard.path, self.storage.open(shard))

    def _offsets(self, place: int) -> Offsets:
        if place not in self._known:
            shard = self.shards[place]
            kept = self.storage.cache.made() / f"{shard.sha256}-{shard.size_bytes}.offsets-1.npz"
            offsets = read_offsets(kept) or self._find_offsets(shard, kept)
            if len(offsets) != shard.samples:
                raise CorruptDataError(
                    f"shard {self.storage.told(shard)} holds {len(offsets)} samples, not {shard.samples}. Make it"
                    " again."
                )
            if len(self._known) == _KNOWN:
                self._known.popitem(last=False)
            self._known[place] = offsets
        return self._known[place]

    def _find_offsets(self, shard: Shard, kept: Path) -> Offsets:
        # a file of its own: forks may share the others, and this one is read from a position
        with os.fdopen(self.storage.open(shard), "rb") as stream:
            offsets = find_offsets(stream, self.storage.told(shard))
        write_offsets(offsets, kept)
        return offsets


class _Files:
    """A few open files, the ones used last; positioned reads share no position, so forks may share them."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def get(self, name: str) -> int | None:
        """Return the descriptor of an open file."""
        if name in self._open:
            self._open.move_to_end(name)
        return self._open.get(name)

    def keep(self, name: str, descriptor: int) -> int:
        """Keep a file open, and close the one that was not used for longest."""
        self._open[name] = descriptor
        if len(self._open) > _OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[type[_Files], tuple[()]]:
        # descriptors mean nothing in a process that is not a fork
        return _Files, ()
