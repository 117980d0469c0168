"""Shards by position: WebDataset tar files read through an index of member offsets.

A tar header names each member's place, so any sample of a shard is one positioned read away; nothing is streamed
past, which is what makes the order free and a resume exact.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.errors import ContractError, CorruptDataError
from pipeline.manifest import Manifest, Shard
from pipeline.sample import Label, Sample, Scratch
from training.offsets import Offsets, find_offsets, read_offsets, write_offsets
from training.storage import Cache, Folder, Storage, require_inside

Verify = Literal["size", "sha256"]
Damaged = Literal["stop", "replace"]
# a reader a set, and a process may commonly open 1 024 files
_OPEN = 32
_KNOWN = 4096
_KEPT = "{0.sha256}-{0.size_bytes}.offsets-1.npz"


@dataclass(frozen=True)
class Care:
    """How shards are looked at before they are read, and whether a set may have damaged ones."""

    verify: Verify = "size"
    damaged: Damaged = "stop"
    """stop: the first is an error; replace: reading one is, and who reads may take other samples."""


class ShardReader:
    """The samples of one split of a shard set, by their number in manifest order."""

    def __init__(
        self,
        location: Path,
        split: str,
        care: Care = Care(),
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
        self._care = care
        self.lost: dict[int, str] = {}
        """What is wrong with shards that cannot be read, by their place among the shards; as far as it is known."""
        contract = self.manifest.contract
        side, cells = contract.tile_px, contract.tile_px // contract.cell_px
        self._shapes = (len(contract.bands), side, side), (len(contract.indices), cells, cells, 3)
        if not self._ends or not self._ends[-1]:
            raise ContractError(
                f"the split `{split}` of {location} has no samples; loosen the thresholds and shard again."
            )
        for place in range(len(self.shards)):
            self._check(place)

    def _check(self, place: int) -> None:
        shard = self.shards[place]
        require_inside(shard, self.name)
        try:
            with self._noted(place):
                self.storage.check(shard, self._care.verify == "sha256")
        except CorruptDataError:
            if self._care.damaged == "stop":
                raise

    @contextmanager
    def _noted(self, place: int) -> Iterator[None]:
        """Note what is wrong with a shard: it is told of each of its samples, and not looked for again."""
        if place in self.lost:
            raise CorruptDataError(self.lost[place])
        try:
            yield
        except CorruptDataError as error:
            self.lost[place] = str(error)
            raise

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
        """Read and decode sample `number`; its arrays last until the next sample is read into the same scratch.

        Raises `CorruptDataError` naming shard and key for what cannot be had or is no sample of this set.
        """
        place, row = self._find(number)
        shard, offsets = self.shards[place], self._offsets(place)
        members = offsets.members(row)
        # the members of a sample lie one after the other: one read, their headers with them
        first, (last, length) = min(members.values())[0], max(members.values())
        size = last + length - first
        buffer = (scratch or Scratch()).room("stored", size).data
        # into memory that is there: `os.pread` would make new bytes for every sample
        if os.preadv(self._descriptor(place), [buffer], first) != size:
            raise CorruptDataError(
                f"shard {self.storage.told(shard)} ends before {offsets.key(row)} does: it was truncated while in"
                " use. Make it again."
            )
        parts = {s: buffer[at - first : at - first + length] for s, (at, length) in members.items()}
        sample = samples.decode(offsets.key(row), parts, self.storage.told(shard), scratch)
        self._require_ours(sample, shard)
        return sample

    def _require_ours(self, sample: Sample, shard: Shard) -> None:
        """Raise `CorruptDataError` for a sample that is whole, but not as the contract of the set says."""
        shapes, dates = (sample.pixels.shape, sample.cells.shape), 1 if sample.after is None else 2
        if shapes != self._shapes or dates != self.manifest.contract.dates:
            raise CorruptDataError(
                f"{self.storage.told(shard)}: sample {sample.key} has pixels and cells of {shapes[0]} and {shapes[1]}"
                f" at {dates} dates, and its set {self._shapes[0]} and {self._shapes[1]} at"
                f" {self.manifest.contract.dates}. Make this shard again."
            )

    def keys(self) -> Iterator[str | None]:
        """Yield the keys of all samples, None in shards that may be damaged and are; all headers are read."""
        for place, shard in enumerate(self.shards):
            keys: Iterable[str | None] = itertools.repeat(None, shard.samples)
            with self._spared():
                offsets = self._offsets(place)
                keys = map(offsets.key, range(len(offsets)))
            yield from keys

    def labels(self) -> Iterator[Label | None]:
        """Yield the labels of all samples, in order, None for those that may be damaged and are; nothing else of them
        is read.
        """
        for number in range(len(self)):
            label = None
            with self._spared():
                label = self._label(*self._find(number))
            yield label

    def _label(self, place: int, row: int) -> Label | None:
        offsets, descriptor = self._offsets(place), self._descriptor(place)
        wanted = {s: at for s, at in offsets.members(row).items() if s.startswith("label.")}
        members = {s: os.pread(descriptor, size, at) for s, (at, size) in wanted.items()}
        return samples.decode_label(offsets.key(row), members, self.storage.told(self.shards[place]))

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Leave the block where something is damaged and may be."""
        try:
            yield
        except CorruptDataError:
            if self._care.damaged == "stop":
                raise

    def _descriptor(self, place: int) -> int:
        shard = self.shards[place]
        descriptor = self._files.get(shard.path)
        if descriptor is None:
            with self._noted(place):
                descriptor = self._files.keep(shard.path, self.storage.open(shard))
        return descriptor

    def _offsets(self, place: int) -> Offsets:
        if place not in self._known:
            with self._noted(place):
                offsets = self._look_up(self.shards[place])
            if len(self._known) == _KNOWN:
                self._known.popitem(last=False)
            self._known[place] = offsets
        return self._known[place]

    def _look_up(self, shard: Shard) -> Offsets:
        # of this very file: what is found in a copy that is whole would hide the damage of another
        kept, file = self.storage.cache.made() / _KEPT.format(shard), self.storage.file(shard)
        known = read_offsets(kept, file)
        if known is not None:
            return known
        # a file of its own: forks may share the others, and this one is read from a position
        with os.fdopen(self.storage.open(shard), "rb") as stream:
            offsets = find_offsets(stream, self.storage.told(shard))
        if len(offsets) != shard.samples:
            raise CorruptDataError(
                f"shard {self.storage.told(shard)} holds {len(offsets)} samples, not {shard.samples}. Make it again."
            )
        write_offsets(offsets, kept, file)
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
