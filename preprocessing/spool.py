"""A scene's finished samples on their way into shards: one file of tar segments, and a record of where each lies.

A segment is byte for byte what the shard will hold, so that packing only copies. The record is written last and
says by which settings it was made; without it the spool does not exist.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sample as samples
from pipeline.histogram import Histogram, Sparse
from pipeline.manifest import write_atomically
from pipeline.sample import NODATA, Codec, Sample
from preprocessing.grids import Box
from preprocessing.profiles import Profile

SMALL_BYTES = 16_000_000
"""A spool smaller than this is not forced to disk; sums in its record tell whether it is whole."""


@dataclass(frozen=True)
class Segment:
    """Where the samples's bytes lie in a spool."""

    key: str
    split: str
    offset: int
    size_bytes: int
    labelled: bool = False
    row_px: int = 0
    column_px: int = 0


@dataclass(frozen=True)
class Spool:
    """What one scene gave."""

    scene: str
    digest: str
    """Of everything that decides its bytes."""
    gsd_m: float
    level: str
    reader: str
    acquired: str
    licence: str
    notes: tuple[str, ...]
    dropped: dict[str, int]
    segments: tuple[Segment, ...]
    dates: int = 1
    """Images a sample holds."""
    profile: Profile = field(default_factory=Profile)
    """Where the scene lies and what it looks like, for the quality report."""

    @property
    def tiles(self) -> dict[str, int]:
        """Samples by split, and tiles dropped by reason."""
        return dict(Counter(s.split for s in self.segments)) | self.dropped

    @property
    def boxes(self) -> list[Box]:
        """The ground of every sample, in the scene's CRS."""
        grid = self.profile.grid
        return [grid.box(s.row_px, s.column_px, self.profile.tile_px) for s in self.segments]

    @property
    def unlabelled(self) -> int:
        """Samples that carry no label."""
        return sum(not s.labelled for s in self.segments)


def segment(sample: Sample, codec: Codec) -> bytes:
    """Return a sample as a piece of a tar file: sorted members without time or owner, equal for equal samples."""
    parts: list[bytes] = []
    for suffix, data in sorted(samples.encode(sample, codec).items()):
        parts += [
            tar_header(f"{sample.key}.{suffix}", len(data)),
            data,
            bytes(-len(data) % tarfile.BLOCKSIZE),
        ]
    return b"".join(parts)


# USTAR: with short names every reader knows it, and no PAX header appears. TarInfo's defaults: no time, no owner
_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)


def tar_header(name: str, size_bytes: int) -> bytes:
    """Return the tar header of a file: byte for byte `tarfile`'s, which takes longer to make it than to compress."""
    head = bytearray(_TEMPLATE)
    head[: len(name)] = name.encode("ascii")
    head[124:135] = b"%011o" % size_bytes
    # the sum is taken with blanks in its own place
    head[148:156] = b" " * 8
    head[148:155] = b"%06o\0" % sum(head)
    return bytes(head)


def data_path(folder: Path, scene: str) -> Path:
    """Return where a scene's segments lie."""
    return folder / f"{scene}.segments"


def _record_path(folder: Path, scene: str) -> Path:
    return folder / f"{scene}.json"


def _histogram_path(folder: Path, scene: str) -> Path:
    return folder / f"{scene}.histogram.npy"


class SpoolWriter:
    """Collects the samples of one scene."""

    def __init__(self, folder: Path, scene: str) -> None:
        """Start anew, replacing what an interrupted run left."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._scene = folder, scene
        # first of all: a record must never describe another file
        _record_path(folder, scene).unlink(missing_ok=True)
        self._stream = data_path(folder, scene).open("wb")
        self.segments: list[Segment] = []
        self._sum = 0

    def add(self, sample: Sample, split: str, codec: Codec) -> None:
        """Append one sample."""
        data = segment(sample, codec)
        labelled = sample.label is not None
        place = (int(sample.info.get("row", 0)), int(sample.info.get("col", 0)))
        self.segments.append(Segment(sample.key, split, self._stream.tell(), len(data), labelled, *place))
        self._sum = zlib.crc32(data, self._sum)
        self._stream.write(data)

    @property
    def _is_small(self) -> bool:
        return sum(segment.size_bytes for segment in self.segments) < SMALL_BYTES

    def close(self) -> None:
        """Force the segments to disk, or see to it that losing them will be noticed."""
        with self._stream as stream:
            stream.flush()
            if not self._is_small:
                os.fsync(stream.fileno())

    def finish(self, spool: Spool, histogram: Histogram) -> None:
        """Write the histogram [band, value] of the training tiles and, last, the record."""
        # data before record: the record is the promise that the data is there
        self.close()
        sync, counts = not self._is_small, _encode_histogram(histogram)
        # a patch is made again in less time than three waits for the disk take: its sums tell what was lost
        sums = None if sync else [self._sum, zlib.crc32(counts)]
        record = json.dumps({"sums": sums, "spool": spool}, default=_fields).encode()
        write_atomically(_histogram_path(self._folder, self._scene), counts, sync)
        write_atomically(_record_path(self._folder, self._scene), record, sync)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; `asdict` would copy every number on the way."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _encode_histogram(histogram: Histogram) -> bytes:
    """Return a histogram as a .npy of two rows: places and counts, after one column that holds the shape."""
    # of 65 536 values a small scene has some hundred
    places = np.flatnonzero(histogram)
    rows = np.array(
        [[histogram.shape[0], *places], [histogram.shape[1], *histogram.ravel()[places]]], np.int64
    )
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    return buffer.getvalue()


def read(folder: Path, scene: str) -> Spool | None:
    """Return a scene's record, or None where it is not finished."""
    try:
        record = json.loads(_record_path(folder, scene).read_text(encoding="utf-8"))
        tree: dict[str, Any] = record["spool"]
        segments = tuple(Segment(**s) for s in tree.pop("segments"))
        profile = Profile.from_tree(tree.pop("profile"))
        made = Spool(segments=segments, profile=profile, **tree | {"notes": tuple(tree["notes"])})
        size = data_path(folder, scene).stat().st_size
    # another version may have written other keys
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    # a copy of the folder may have been cut short
    if size != sum(s.size_bytes for s in made.segments):
        return None
    return made if record["sums"] in (None, _sums(folder, scene)) else None


def _sums(folder: Path, scene: str) -> list[int]:
    """Return the sums of a small spool's files as they are now."""
    histogram = _histogram_path(folder, scene)
    held = [data_path(folder, scene).read_bytes(), histogram.read_bytes() if histogram.exists() else b""]
    return [zlib.crc32(data) for data in held]


def read_histogram(folder: Path, scene: str) -> Sparse:
    """Return a scene's histogram over its training tiles."""
    rows = np.load(_histogram_path(folder, scene), allow_pickle=False)
    (bands, width), (places, counts) = rows[:, 0], rows[:, 1:]
    ends = np.searchsorted(places, np.arange(bands + 1) * width)
    parts = (slice(first, end) for first, end in itertools.pairwise(ends))
    return tuple((places[part] % width + NODATA, counts[part]) for part in parts)


class Histograms(Mapping[str, Sparse]):
    """The histograms of scenes, read when asked for: all of a large set would not fit into memory."""

    def __init__(self, folder: Path, scenes: Sequence[str]) -> None:
        self._folder, self._scenes = folder, scenes

    def __getitem__(self, scene: str) -> Sparse:
        """Read a scene's histogram."""
        return read_histogram(self._folder, scene)

    def __iter__(self) -> Iterator[str]:
        """Yield the scenes' names."""
        return iter(self._scenes)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._scenes)
