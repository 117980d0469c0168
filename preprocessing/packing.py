"""Samples of all scenes to shards: one global order, equal counts, and files that are complete or absent.

The order is a pure function of the seed and the keys, and a segment's bytes do not depend on who wrote it: the
shards are byte for byte the same for any number of workers and after any interruption.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.errors import CorruptDataError, unknown
from pipeline.keys import hash_text
from pipeline.manifest import Manifest, Shard
from pipeline.sample import Sample
from preprocessing import spool as spools
from preprocessing.settings import digest
from preprocessing.spool import Segment, Spool

_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Piece:
    """One sample on its way into a shard."""

    scene: str
    segment: Segment


@dataclass(frozen=True)
class ShardJob:
    """One shard to write."""

    path: str
    """Relative to the output, with forward slashes."""
    digest: str
    """Of the settings and scenes its bytes come from."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PackJob:
    """A shard to write, with the folders it goes between: one Dask task."""

    job: ShardJob
    output: Path
    spool_folder: Path


def work(job: PackJob) -> Shard:
    """Write one shard of a run."""
    return write_shard(job.job, job.output, job.spool_folder)


def samples_per_shard(sample_bytes: int, shard_mb: float) -> int:
    """Return how many samples of an uncompressed size make a shard."""
    return max(int(shard_mb * 1e6 / sample_bytes), 1)


def plan(found: Iterable[Spool], seed: int, per_shard: int) -> dict[str, list[ShardJob]]:
    """Lay all samples out in shards: split -> jobs, in order."""
    records = list(found)
    made_by = {r.scene: r.digest for r in records}
    pieces = [Piece(r.scene, s) for r in records for s in r.segments]
    # the key breaks ties, so that the order is total
    pieces.sort(key=lambda p: (hash_text(seed, p.segment.key), p.segment.key))
    return {
        split: list(_jobs(split, [p for p in pieces if p.segment.split == split], per_shard, made_by))
        for split in sorted({p.segment.split for p in pieces})
    }


def _jobs(split: str, pieces: list[Piece], per_shard: int, made_by: dict[str, str]) -> Iterator[ShardJob]:
    for number, start in enumerate(range(0, len(pieces), per_shard)):
        part = tuple(pieces[start : start + per_shard])
        # the scene's own digest covers pixels: its segments' bytes need not be hashed here
        content = digest([[p.segment.key, p.segment.size_bytes, made_by[p.scene]] for p in part])
        yield ShardJob(f"{split}/shard-{number:06d}.tar", content, part)


def write_shard(job: ShardJob, output: Path, spool_folder: Path) -> Shard:
    """Write one shard, or take the finished one an interrupted run left."""
    path, record = output / job.path, spool_folder / f"{job.path.replace('/', '-')}.json"
    done = _finished(job, path, record)
    if done:
        return done
    path.parent.mkdir(parents=True, exist_ok=True)
    # hidden: a reader that lists *.tar must not find it
    partial = path.with_name(f".{path.name}.partial")
    # of what is meant, while it is in memory, not of what is found later
    summed, size = hashlib.sha256(), 0
    with partial.open("wb") as stream:
        for data in _parts(job.pieces, spool_folder):
            stream.write(data)
            summed.update(data)
            size += len(data)
        stream.flush()
        os.fsync(stream.fileno())
    shard = Shard(path=job.path, samples=len(job.pieces), size_bytes=size, sha256=summed.hexdigest())
    partial.replace(path)
    tree = {"digest": job.digest, "shard": shard.model_dump()}
    manifests.write_atomically(record, json.dumps(tree).encode())
    return shard


def _parts(pieces: Iterable[Piece], folder: Path) -> Iterator[bytes]:
    """Yield what a tar file is made of, in order."""
    size = len(_END)
    for data in _segments(pieces, folder):
        size += len(data)
        yield data
    # whole records, as tar itself writes them
    yield _END + bytes(-size % tarfile.RECORDSIZE)


def _finished(job: ShardJob, path: Path, record: Path) -> Shard | None:
    try:
        tree = json.loads(record.read_text(encoding="utf-8"))
        shard = Shard.model_validate(tree["shard"])
        return shard if tree["digest"] == job.digest and path.stat().st_size == shard.size_bytes else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _segments(pieces: Iterable[Piece], folder: Path) -> Iterator[bytes]:
    """Yield the bytes of every piece; one file is open at a time, for any number of scenes."""
    for piece in pieces:
        path = spools.data_path(folder, piece.scene)
        # opened for each piece: a thousand scenes must not mean a thousand open files
        with path.open("rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), piece.segment.size_bytes, piece.segment.offset)
        if len(data) != piece.segment.size_bytes:
            raise CorruptDataError(f"{path} ends before sample {piece.segment.key}. Remove it and run again.")
        yield data


def remove_others(output: Path, keep: Iterable[str]) -> None:
    """Remove shard files that are not in the set, left by a run with other settings."""
    kept = {output / path for path in keep}
    # unfinished ones too
    for path in output.glob("*/*shard-*.tar*"):
        if path not in kept:
            path.unlink()


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, member suffix -> bytes) of every sample of a shard, in its order.

    Raises `CorruptDataError` for a file that is no complete tar of samples.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = ((m.name.partition("."), m, tar) for m in tar)
            for key, group in itertools.groupby(members, key=lambda m: m[0][0]):
                yield key, {name[2]: _data(archive, member) for name, member, archive in group}
    except (tarfile.TarError, OSError) as error:
        raise CorruptDataError(f"{path} is no complete tar file ({error}). Make this shard again.") from error


def find(folder: Path, made: Manifest, key: str) -> Sample:
    """Return one sample of a set by its key; raises `UnknownNameError` where it has none of that name."""
    known: list[str] = []
    for shard in (s for part in made.splits.values() for s in part):
        for found, members in read_shard(folder / shard.path):
            if found == key:
                return samples.decode(found, members, shard.path)
            known.append(found)
    raise unknown("sample", key, known[:1000], f"the shard set {made.name}")


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    return stream.read()
