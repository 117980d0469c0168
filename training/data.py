"""Shards to batches: which samples a step sees, and how they are cropped, flipped and turned.

The order of samples is a pure function of (seed, epoch, position) and each augmentation of (seed, sample id,
epoch): the same for any number of ranks and loader workers, and after any interruption. An epoch has
`floor(samples / global batch)` steps; the few samples left over are others in every epoch.
Shape letters: B batch, C bands, H W pixels, S places, I indices.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.config import Config, UserPath
from pipeline.contract import DataContract, LabelKind, NormalisationKind
from pipeline.errors import ConfigError
from pipeline.keys import hash_text, permute, uniform
from pipeline.saliency import merge_cells, saliency
from pipeline.sample import NO_CLASS, Flag, Label, Sample
from training.reader import ShardReader, Verify
from training.world import World

_ORDER, _AUGMENT = 0x6F726465, 0x61756765  # keep the two uses of (seed, epoch) apart


class DataConfig(Config):
    """Where the samples come from and how they are presented."""

    shards: UserPath
    """Folder of a shard set (it holds manifest.json)."""
    split: str = "train"
    """Split of the set."""
    bands: tuple[str, ...] | None = None
    """Bands by name, in model order; null takes all that are stored."""
    image_px: int | None = Field(default=None, ge=8)
    """Side of the crop in pixels, on the cell grid; null takes the whole tile."""
    augment: bool = True
    """Random crop, flips and quarter turns."""
    normalise: NormalisationKind = "minmax"
    """Input normalisation, from the set's band statistics."""
    workers: int = Field(default=0, ge=0)
    """Loader processes a rank; 0 loads in the training process."""
    verify: Verify = "size"
    """Check of the shards at the start: file sizes, or sha256 of every byte."""


class BatchConfig(Config):
    """How many samples make a step."""

    size: int = Field(default=256, ge=1)
    """Samples of one optimiser step over all ranks and accumulation steps."""
    micro: int | None = Field(default=None, ge=1)
    """Samples a rank holds at once; null takes size / ranks."""

    def accumulation(self, ranks: int) -> int:
        """Return the number of micro-batches of a rank's step; raises `ConfigError` where it is not whole."""
        micro = self.micro or max(self.size // ranks, 1)
        if self.size % (micro * ranks):
            raise ConfigError(
                f"batch.size {self.size} is no multiple of batch.micro {micro} x {ranks} ranks; change one."
            )
        return self.size // (micro * ranks)


@dataclass(frozen=True)
class View:
    """How a sample is looked at: the same for every sample of a run."""

    bands: tuple[int, ...]
    """Stored positions of the model's bands."""
    image_px: int
    cell_px: int
    patch_px: int
    richness_weight: float = 0.5
    augment: bool = False
    seed: int = 0
    label_kind: LabelKind = "class"
    classes: int = 0
    """Classes of the set; several a tile make a vector of this length."""


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step; micro-batches are consecutive."""

    step: int
    epoch: int
    keys: list[str]
    image_BCHW: Tensor
    """int16, as stored."""
    valid_BS: NDArray[np.bool_]
    """Places with at least half of their pixels measured."""
    saliency_BS: NDArray[np.float64]
    labels_B: Tensor
    """int64, -1 where there is none. By the set's kind of label: one class [B]; several classes, 1 where present,
    [B, class]; a class a pixel [B, H, W]."""
    after_BCHW: Tensor | None = None
    """int16: the same ground at the later date, where the set holds pairs."""

    @property
    def ids(self) -> NDArray[np.uint64]:
        """Sample ids, a hash of the keys."""
        return np.array([hash_text(k) for k in self.keys], np.uint64)

    def micro_batches(self, count: int) -> list[slice]:
        """Return the slices of `count` equal micro-batches."""
        size = len(self.keys) // count
        return [slice(i * size, (i + 1) * size) for i in range(count)]


def make_view(contract: DataContract, config: DataConfig, patch_px: int) -> View:
    """Fit the data configuration to what a shard set holds; raises `ConfigError` where it cannot."""
    image_px = config.image_px or contract.tile_px
    if image_px > contract.tile_px or image_px % contract.cell_px:
        raise ConfigError(
            f"data.image_px {image_px} must be a multiple of {contract.cell_px} up to {contract.tile_px},"
            f" the tile of {config.shards}."
        )
    if patch_px % contract.cell_px:
        raise ConfigError(
            f"model.patch_px {patch_px} must be a multiple of the cells of {config.shards}, {contract.cell_px} px."
        )
    bands = contract.band_positions(config.bands or contract.band_names)
    return View(
        tuple(bands),
        image_px,
        contract.cell_px,
        patch_px,
        augment=config.augment,
        label_kind=contract.label_kind,
        classes=len(contract.classes),
    )


def look(sample: Sample, view: View, epoch: int) -> Sample:
    """Return the sample's crop, flip and turn of this epoch, with the view's bands: everything that has a place
    (pixels of both dates, mask, cells, class of every pixel) alike.
    """
    # whole cells: an off-grid crop would tear the statistics from their pixels
    spare = (sample.mask.shape[0] - view.image_px) // view.cell_px
    u = uniform(_AUGMENT, view.seed, hash_text(sample.key), epoch, np.arange(4, dtype=np.uint64))
    row, col = ((u[:2] * (spare + 1)).astype(int) if view.augment else np.full(2, spare // 2)).tolist()
    turns, flip = (int(u[2] * 4), bool(u[3] < 0.5)) if view.augment else (0, False)

    def part(array: NDArray[Any], unit_px: int, first_axis: int) -> NDArray[Any]:
        """Cut and turn an array whose axes `first_axis` and the next are y and x in units of `unit_px`."""
        first, length = (
            (row * view.cell_px // unit_px, col * view.cell_px // unit_px),
            view.image_px // unit_px,
        )
        window = tuple(slice(start, start + length) for start in first)
        cut = array[(slice(None),) * first_axis + window]
        cut = np.flip(cut, first_axis + 1) if flip else cut
        return np.rot90(cut, turns, (first_axis, first_axis + 1)) if turns else cut

    bands = list(view.bands)
    return Sample(
        sample.key,
        part(sample.pixels[bands], 1, 1),
        part(sample.mask, 1, 0),
        part(sample.cells, view.cell_px, 1),
        sample.info,
        part(sample.label, 1, 0) if isinstance(sample.label, np.ndarray) else sample.label,
        None if sample.after is None else part(sample.after[bands], 1, 1),
    )


def collate(step: int, epoch: int, looked: list[Sample], view: View) -> Batch:
    """Put samples together to a batch, with validity and saliency of every place."""
    merge = view.patch_px // view.cell_px
    salient = [saliency(merge_cells(s.cells, merge), view.richness_weight) for s in looked]
    return Batch(
        step,
        epoch,
        [s.key for s in looked],
        torch.from_numpy(np.stack([s.pixels for s in looked])),
        np.stack([_valid_places(s.mask, view.patch_px) for s in looked]),
        np.stack(salient),
        torch.from_numpy(np.stack([label_array(s.label, view) for s in looked])),
        _stack_after(looked),
    )


def _stack_after(looked: list[Sample]) -> Tensor | None:
    later = [s.after for s in looked if s.after is not None]
    # a pair without its second date is refused by who needs pairs
    return torch.from_numpy(np.stack(later)) if len(later) == len(looked) else None


def label_array(label: Label | None, view: View) -> NDArray[np.int64]:
    """Return a sample's label as numbers, -1 for none: [] one class, [class] several, [y, x] a class a pixel."""
    if view.label_kind == "mask":
        shape = (view.image_px, view.image_px)
        codes = np.full(shape, NO_CLASS) if label is None else np.asarray(label)
        return np.where(codes == NO_CLASS, -1, codes.astype(np.int64))
    if view.label_kind == "classes":
        present = np.full(view.classes, -1 if label is None else 0, np.int64)
        present[list(label) if isinstance(label, tuple) else []] = 1
        return present
    return np.asarray(-1 if label is None else label, np.int64)


def _valid_places(mask: NDArray[np.uint8], patch_px: int) -> NDArray[np.bool_]:
    measured = (mask & Flag.NODATA) == 0
    side = mask.shape[0] // patch_px
    share = measured.reshape(side, patch_px, side, patch_px).mean((1, 3))
    return np.asarray(share.ravel() >= 0.5)


class ShardStream(Dataset[Batch]):
    """The steps of a training run: `stream[step]` is this rank's batch of that step."""

    def __init__(self, reader: ShardReader, view: View, batch: BatchConfig, world: World) -> None:
        self.reader, self.view, self.world, self.size = reader, view, world, batch.size
        self.accumulation = batch.accumulation(world.size)
        self.steps_per_epoch = len(reader) // batch.size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"batch.size {batch.size} is more than the {len(reader)} samples of the split; lower it."
            )

    def positions(self, step: int) -> NDArray[np.uint64]:
        """Return the sample numbers of this rank's step, micro-batches one after the other."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first = within * self.size
        # positions of the whole step, on every rank: only then is the share of one the rest of the others
        order = permute(
            np.arange(first, first + self.size, dtype=np.uint64),
            len(self.reader),
            _ORDER,
            self.view.seed,
            epoch,
        )
        ranks = order.reshape(self.accumulation, self.world.size, -1)
        return ranks[:, self.world.rank].ravel()

    def __getitem__(self, step: int) -> Batch:
        """Load this rank's batch of a step."""
        epoch = step // self.steps_per_epoch
        looked = [look(self.reader.read(int(n)), self.view, epoch) for n in self.positions(step)]
        return collate(step, epoch, looked, self.view)

    def batches(self, start: int, stop: int, workers: int) -> Iterator[Batch]:
        """Yield the batches of steps [start, stop), loaded ahead by `workers` processes."""
        yield from _loader(self, range(start, stop), workers)


class Pass(Dataset[Batch]):
    """One pass over a split in stored order, shared out to the ranks in equally many batches; for evaluation.

    The last batches are filled up with unlabelled repetitions, so that each sample counts once and no rank waits
    for another.
    """

    def __init__(self, reader: ShardReader, view: View, batch_size: int, world: World) -> None:
        self.reader, self.view, self.batch_size, self.world = reader, view, batch_size, world

    def __len__(self) -> int:
        """Return the number of batches of a rank."""
        return math.ceil(len(self.reader) / (self.batch_size * self.world.size))

    def __getitem__(self, step: int) -> Batch:
        """Load one batch."""
        first = (step * self.world.size + self.world.rank) * self.batch_size
        # every rank gets as many batches: one that waits for another under ZeRO-3 waits for ever
        looked = [self._look(n) for n in range(first, first + self.batch_size)]
        return collate(step, 0, looked, self.view)

    def _look(self, number: int) -> Sample:
        last = len(self.reader) - 1
        sample = look(self.reader.read(min(number, last)), self.view, epoch=0)
        return sample if number <= last else replace(sample, label=None)

    def batches(self, workers: int) -> Iterator[Batch]:
        """Yield all batches of this rank."""
        yield from _loader(self, range(len(self)), workers)


def _loader(dataset: Dataset[Batch], steps: range, workers: int) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_ignore_signals if workers else None,
        generator=torch.Generator(),  # its own: the loader must not draw from the global one
        timeout=300 if workers else 0,
    )


def _ignore_signals(_worker: int) -> None:
    """Loader workers are in the signalled process group, but only the training process decides to stop."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
