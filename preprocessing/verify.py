"""Entry: check a shard set and its archive against their checksums, and decode every sample.

python preprocessing/verify.py SHARDS
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run by path: `python preprocessing/verify.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from pipeline import console, sample
from pipeline import manifest as manifests
from pipeline.contract import DataContract
from pipeline.errors import EXIT_DONE, EXIT_FAILURE, CorruptDataError
from pipeline.manifest import Manifest, Shard
from pipeline.sample import NO_CLASS, Label, Sample
from preprocessing import archive, packing


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns 1 where anything is wrong."""
    parser = argparse.ArgumentParser(
        description="Check every shard of a set, every sample in it, and the archive beside it.",
        epilog="example: python preprocessing/verify.py demo/shards/sentinel2",
    )
    parser.add_argument("shards", type=Path, help="folder of a shard set, or its manifest.json")
    folder = parser.parse_args(argv).shards.expanduser()
    made = manifests.read(folder)
    # shards stand beside the manifest, whatever the manifest was called by
    folder = folder if folder.is_dir() else folder.parent
    found = [*shard_problems(folder, made), *archive_problems(folder, made)]
    for problem in found:
        console.say(f"wrong: {problem}")
    counts = ", ".join(f"{made.samples(split)} {split}" for split in made.splits)
    verdict = f"{len(found)} problems" if found else "everything is as it was written"
    console.say(f"{made.name}: {counts} samples, {len(made.scenes)} scenes; {verdict}.")
    return EXIT_FAILURE if found else EXIT_DONE


def shard_problems(folder: Path, made: Manifest) -> Iterator[str]:
    """Yield what is wrong with the shards of a set, naming shard and sample."""
    shards = [shard for part in made.splits.values() for shard in part]
    progress = console.Progress("verify", len(shards), "shards")
    seen: set[str] = set()
    for shard in shards:
        yield from _shard_problems(folder / shard.path, shard, made.contract, seen)
        progress.advance(note=shard.path)


def _shard_problems(path: Path, shard: Shard, contract: DataContract, seen: set[str]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing"
        return
    if path.stat().st_size != shard.size_bytes:
        yield f"{path} has {path.stat().st_size} bytes, not {shard.size_bytes}"
    elif manifests.sha256(path) != shard.sha256:
        yield f"{path} was altered (SHA-256 differs)"
    # keys are collected over all shards: a sample must not come twice
    before = len(seen)
    try:
        for key, members in packing.read_shard(path):
            yield from _sample_problems(sample.decode(key, members, str(path)), path, contract, seen)
    except CorruptDataError as error:
        yield str(error)
        return
    if len(seen) - before != shard.samples:
        yield f"{path} holds {len(seen) - before} samples of its own, not {shard.samples}"


def _sample_problems(found: Sample, path: Path, contract: DataContract, seen: set[str]) -> Iterator[str]:
    side, cells = contract.tile_px, contract.tile_px // contract.cell_px
    if found.key in seen:
        yield f"{path}: sample {found.key} is there twice"
    seen.add(found.key)
    # decoding alone would accept a sample of another set
    expected = ((len(contract.bands), side, side), (len(contract.indices), cells, cells, 3))
    if (found.pixels.shape, found.cells.shape) != expected:
        yield f"{path}: sample {found.key} has shapes {found.pixels.shape}, {found.cells.shape}, not {expected}"
    if (found.after is not None) != (contract.dates == 2):
        yield f"{path}: sample {found.key} does not have the {contract.dates} dates of its set"
    if found.label is not None:
        yield from (f"{path}: sample {found.key} {wrong}" for wrong in _label_problems(found.label, contract))


def _label_problems(label: Label, contract: DataContract) -> Iterator[str]:
    kinds: dict[str, type] = {"class": int, "classes": tuple, "mask": np.ndarray}
    if not isinstance(label, kinds[contract.label_kind]):
        yield f"has a label of another kind than `{contract.label_kind}`, that of its set"
        return
    numbers = np.unique(np.asarray(label, np.int64))
    known = len(contract.classes)
    beyond = numbers[(numbers < 0) | ((numbers >= known) & (numbers != NO_CLASS))]
    if len(beyond):
        yield f"has class number {beyond[0]}; its set has {known} classes"


def archive_problems(folder: Path, made: Manifest) -> Iterator[str]:
    """Yield what is wrong with the stored scenes of a set; nothing where its archive was not kept."""
    # shards travel without their archive
    store = folder / archive.FOLDER
    if not store.is_dir():
        return
    for scene in made.scenes:
        yield from archive.problems(store / scene.id, deep=True)


if __name__ == "__main__":
    console.run(main)
