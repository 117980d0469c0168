"""Entry: check a shard set and its archive against their checksums, and every sample against the manifest.

Samples are decoded, their cells are computed again by the formulas of the manifest, and its band statistics from their
pixels: what a set says of itself is what it holds.

python preprocessing/verify.py SHARDS
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run by path: `python preprocessing/verify.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from numpy.typing import NDArray

from pipeline import console, sample
from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.contract import DataContract
from pipeline.errors import EXIT_DONE, EXIT_FAILURE, CorruptDataError
from pipeline.histogram import Histogram
from pipeline.manifest import Manifest, Shard
from pipeline.saliency import cell_statistics
from pipeline.sample import NO_CLASS, Flag, Label, Sample
from preprocessing import archive, packing

NEAR = 1e-5
"""Cells were computed in a compiled pass, which differs in the last digits."""


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
    found = [*shard_problems(folder, made), *report_problems(folder, made), *archive_problems(folder, made)]
    for problem in found:
        console.say(f"wrong: {problem}")
    counts = ", ".join(f"{made.samples(split)} {split}" for split in made.splits)
    verdict = f"{len(found)} problems" if found else "everything is as it was written"
    console.say(f"{made.name}: {counts} samples, {len(made.scenes)} scenes; {verdict}.")
    return EXIT_FAILURE if found else EXIT_DONE


@dataclass
class Reread:
    """What was read of a set so far."""

    made: Manifest
    seen: set[str] = field(default_factory=set)
    """Keys of samples: none may come twice."""
    histogram: Histogram = field(init=False)
    """Of the training samples' clear pixels, [band, value]."""
    silent: frozenset[str] = field(init=False)
    """Scenes that give nothing to the statistics."""

    def __post_init__(self) -> None:
        contract = self.made.contract
        self.histogram = histograms.empty(len(contract.bands))
        # format 1 did not say, and left none out
        told = self.made.format_version > 1
        self.silent = frozenset(s.id for s in self.made.scenes if told and not s.statistics_px)
        excluded = [Flag.NODATA, *(Flag[name.upper()] for name in contract.clear_excludes)]
        self._unclear = int(np.bitwise_or.reduce([int(flag) for flag in excluded]))

    def counted(self, one: Sample) -> NDArray[np.bool_]:
        """Return which pixels [y, x] of a sample count in statistics."""
        clear: NDArray[np.bool_] = (one.mask & self._unclear) == 0
        return clear

    def count(self, one: Sample) -> None:
        """Count the clear pixels of a training sample."""
        if one.info.get("scene") in self.silent:
            return
        for pixels in (one.pixels, one.after):
            if pixels is not None:
                histograms.count(self.histogram, pixels, self.counted(one))


def shard_problems(folder: Path, made: Manifest) -> Iterator[str]:
    """Yield what is wrong with the shards of a set, naming shard and sample."""
    shards = [(split, shard) for split, part in made.splits.items() for shard in part]
    progress = console.Progress("verify", len(shards), "shards")
    so_far, sound = Reread(made), True
    for split, shard in shards:
        for problem in _shard_problems(folder / shard.path, shard, so_far, split == "train"):
            sound = False
            yield problem
        progress.advance(note=shard.path)
    # a shard that cannot be read would only be told twice
    if sound and not histograms.agree(so_far.histogram, made.statistics):
        yield f"{folder / manifests.NAME} states band statistics that are not those of the training samples"


def _shard_problems(path: Path, shard: Shard, so_far: Reread, is_train: bool) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing"
        return
    if path.stat().st_size != shard.size_bytes:
        yield f"{path} has {path.stat().st_size} bytes, not {shard.size_bytes}"
    elif manifests.sha256(path) != shard.sha256:
        yield f"{path} was altered (SHA-256 differs)"
    # keys are collected over all shards: a sample must not come twice
    before = len(so_far.seen)
    try:
        for key, members in packing.read_shard(path):
            one = sample.decode(key, members, str(path))
            yield from sample_problems(one, path, so_far)
            if is_train:
                so_far.count(one)
    except CorruptDataError as error:
        yield str(error)
        return
    if len(so_far.seen) - before != shard.samples:
        yield f"{path} holds {len(so_far.seen) - before} samples of its own, not {shard.samples}"


def sample_problems(found: Sample, path: Path, so_far: Reread) -> Iterator[str]:
    """Yield what is wrong with a sample of a shard."""
    contract = so_far.made.contract
    side, cells = contract.tile_px, contract.tile_px // contract.cell_px
    if found.key in so_far.seen:
        yield f"{path}: sample {found.key} is there twice"
    so_far.seen.add(found.key)
    # decoding alone would accept a sample of another set
    expected = ((len(contract.bands), side, side), (len(contract.indices), cells, cells, 3))
    if (found.pixels.shape, found.cells.shape) != expected:
        yield f"{path}: sample {found.key} has shapes {found.pixels.shape}, {found.cells.shape}, not {expected}"
        return
    for name in _other_cells(found, so_far):
        yield f"{path}: sample {found.key} has other cells of {name} than its pixels give"
    if (found.after is not None) != (contract.dates == 2):
        yield f"{path}: sample {found.key} does not have the {contract.dates} dates of its set"
    if found.label is not None:
        yield from (f"{path}: sample {found.key} {wrong}" for wrong in _label_problems(found.label, contract))


def _other_cells(found: Sample, so_far: Reread) -> Iterator[str]:
    """Yield the indices whose stored cells are not those of the pixels by the formula of the set."""
    contract = so_far.made.contract
    counted = so_far.counted(found)
    for name, stored in zip(contract.indices, found.cells, strict=True):
        bands = found.pixels[contract.band_positions(contract.index_bands[name])]
        values = contract.index(name)(*(bands.astype(np.float32) * np.float32(contract.scale)))
        if not np.allclose(stored, cell_statistics(values, counted, contract.cell_px), rtol=0, atol=NEAR):
            yield name


def report_problems(folder: Path, made: Manifest) -> Iterator[str]:
    """Yield what is wrong with the histogram beside a manifest; nothing where a set travels without it."""
    if not (folder / histograms.NAME).exists():
        return
    try:
        bands, histogram = histograms.read(folder)
    except CorruptDataError as error:
        yield str(error)
        return
    if bands != made.contract.band_names or not histograms.agree(histogram, made.statistics):
        yield f"{folder / histograms.NAME} is not that of the set beside it"


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
