"""Samples to batches: how a sample is cropped, flipped and turned, and what a batch holds.

Each augmentation is a pure function of (seed, sample id, epoch): the same for any number of ranks and loader
workers, and after any interruption.
Shape letters: B batch, C bands, H W pixels, S places, I indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_serializer, field_validator
from torch import Tensor

from pipeline.config import Config, UserPath
from pipeline.contract import DataContract, LabelKind, NormalisationKind
from pipeline.errors import ConfigError
from pipeline.keys import hash_text, uniform
from pipeline.reference import as_yaml
from pipeline.sample import Sample
from training import remote
from training.reader import Care, Damaged, Verify
from training.storage import Cache

PATIENCE_S = 300.0
_AUGMENT = 0x61756765  # keeps the augmentation apart from the other uses of (seed, epoch)


Address = Annotated[str, Field(pattern=remote.PATTERN)]


class ShardSet(Config):
    """A shard set among several."""

    path: Address | UserPath
    """Folder of a shard set (it holds manifest.json), or its address on object storage: s3://bucket/set,
    https://host/set. A numbered set that --grow made stands for the sets before it too: OUTPUT-003 for OUTPUT,
    OUTPUT-002 and OUTPUT-003."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the samples that a training sees, in proportion to the weights of the other sets; without weights
    each set counts by its number of samples. Give it for all sets or for none."""
    earlier: bool = True
    """Whether a numbered set stands for the sets before it."""


def _listed(given: Any) -> Any:
    """Return the sets as a list of groups of keys, where a path or a list of paths was given."""
    many = given if isinstance(given, list | tuple) else [given]
    return [{"path": one} if isinstance(one, str | Path) else one for one in many]


Given = Path | list[Path | ShardSet]
"""What people write for the sets."""


class DataConfig(Config):
    """Where the samples come from and how they are presented."""

    shards: Annotated[
        tuple[ShardSet, ...], Field(min_length=1), BeforeValidator(_listed, json_schema_input_type=Given)
    ]
    """Folder of a shard set (it holds manifest.json), or a list of folders and of sets with weights:
    [shards/a,shards/b] or [{path: shards/a, weight: 3},{path: shards/b, weight: 1}]. Sets of one sensor must hold the
    same data; each step takes its samples from one sensor."""
    split: str = "train"
    """Split of the set."""
    bands: tuple[str, ...] | dict[str, tuple[str, ...]] | None = None
    """Bands by name, in model order; null takes all that are stored. By sensor where sets have several:
    {sentinel2: [B02,B03], landsat_oli: [B2,B3]}."""
    image_px: int | None = Field(default=None, ge=8)
    """Side of the crop in pixels, on the cell grid; null takes the whole tile."""
    augment: bool = True
    """Random crop, flips and quarter turns."""
    normalise: NormalisationKind = "minmax"
    """Input normalisation, from the set's band statistics."""
    workers: int = Field(default=0, ge=0)
    """Loader processes a rank; 0 loads in the training process."""
    timeout_s: float = Field(default=PATIENCE_S, gt=0)
    """How long a loader process may take for a batch before the run saves and ends."""
    verify: Verify = "size"
    """Check of the shards at the start: file sizes, or sha256 of every byte. Those of object storage are checked in
    full whenever they come to a node."""
    damaged: Damaged = "stop"
    """What becomes of a training that meets a shard or sample that is missing or damaged: stop ends it, naming what is
    wrong; replace takes another sample of the same set, the same whatever the ranks and loader processes, and counts
    it. Storage that does not answer ends it all the same, and so do scores, which count each sample once."""
    cache: Cache = Cache()
    """What a node keeps."""

    @field_validator("shards")
    @classmethod
    def _weighted_alike(cls, sets: tuple[ShardSet, ...]) -> tuple[ShardSet, ...]:
        bare = [str(s.path) for s in sets if s.weight is None]
        if 0 < len(bare) < len(sets):
            raise ValueError(
                f"{', '.join(bare)} has no weight and others have one; give it to all or to none"
            )
        return sets

    @field_serializer("shards")
    def _as_written(self, sets: tuple[ShardSet, ...]) -> Any:
        # the shortest form that people write, so that a recorded configuration reads as they wrote it
        plain = [s.model_dump(mode="json", exclude_defaults=True) for s in sets]
        short = [s["path"] if len(s) == 1 else s for s in plain]
        return short[0] if len(short) == 1 and isinstance(short[0], str) else short

    @property
    def care(self) -> Care:
        """How the shards to train on are looked at."""
        return Care(self.verify, self.damaged)

    @property
    def names(self) -> str:
        """The folders, for people."""
        return ", ".join(str(s.path) for s in self.shards)

    @property
    def word(self) -> str:
        """The word of a command line that names the same sets."""
        return f"data.shards={as_yaml(self.model_dump()['shards'])}"

    def bands_of(self, sensor: str) -> tuple[str, ...] | None:
        """Return the bands asked for of a sensor, None for all."""
        return self.bands.get(sensor) if isinstance(self.bands, dict) else self.bands


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
    sensor: str = ""
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
    sensor: str
    """Of all samples, on all ranks."""
    keys: list[str]
    ids: NDArray[np.uint64]
    """Keys of all that is drawn for a sample; see `draw_id`."""
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
    replaced: tuple[str, ...] = ()
    """What was wrong with each sample that another stands in for."""

    def micro_batches(self, count: int) -> list[slice]:
        """Return the slices of `count` equal micro-batches."""
        size = len(self.keys) // count
        return [slice(i * size, (i + 1) * size) for i in range(count)]


def draw_ids(keys: Sequence[str], visits: Sequence[int] | None = None) -> NDArray[np.uint64]:
    """Return `draw_id` of several samples; all are first visits where these are not given."""
    # unsigned: hashes fill all 64 bits
    return np.array(list(map(draw_id, keys, visits or [0] * len(keys))), np.uint64)


def draw_id(key: str, visit: int = 0) -> int:
    """Return what augmentation and mask of a sample are drawn by, beside seed and epoch: a hash of its key; of its
    further visits in an epoch each has its own.
    """
    return hash_text(key, visit) if visit else hash_text(key)


def make_view(
    contract: DataContract, config: DataConfig, patch_px: int, bands: Sequence[str] | None = None
) -> View:
    """Fit the data configuration to what sets of one sensor hold; raises `ConfigError` where it cannot.

    bands: taken where the configuration asks for none; all that are stored where neither does.
    """
    image_px, sets = config.image_px or contract.tile_px, config.names
    if image_px > contract.tile_px or image_px % contract.cell_px:
        raise ConfigError(
            f"data.image_px {image_px} must be a multiple of {contract.cell_px} up to {contract.tile_px},"
            f" the tile of {sets}."
        )
    if patch_px % contract.cell_px:
        raise ConfigError(
            f"model.patch_px {patch_px} must be a multiple of the cells of {sets}, {contract.cell_px} px."
        )
    names = config.bands_of(contract.sensor) or bands or contract.band_names
    return View(
        tuple(contract.band_positions(tuple(names))),
        image_px,
        contract.cell_px,
        patch_px,
        sensor=contract.sensor,
        augment=config.augment,
        label_kind=contract.label_kind,
        classes=len(contract.classes),
    )


@dataclass(frozen=True)
class Turn:
    """Which crop of a sample is taken, and how it lies."""

    corner: tuple[float, float] | None = None
    """Row and column in (0, 1) of the room there is; None for the crop in the centre."""
    quarters: int = 0
    """Quarter turns against the clock, after the flip."""
    flip: bool = False
    """Whether left and right change places."""

    @property
    def as_stored(self) -> bool:
        """Whether a crop of the whole changes nothing."""
        return not self.quarters and not self.flip

    @property
    def back(self) -> tuple[bool, bool]:
        """Whether y and x are gone through backwards, before they change places in an odd quarter turn."""
        return self.quarters in (2, 3), self.flip != (self.quarters in (1, 2))


def draw_turns(view: View, ids: NDArray[np.uint64], epoch: int) -> list[Turn]:
    """Draw the turn of each sample of a batch in an epoch; the centre as it lies where the view does not augment."""
    if not view.augment:
        return [Turn()] * len(ids)
    # all at once: drawn one by one they would take a third of the loader's time
    u = uniform(_AUGMENT, view.seed, ids[:, None], epoch, np.arange(4, dtype=np.uint64)).tolist()
    return [Turn((row, col), int(quarter * 4), flip < 0.5) for row, col, quarter, flip in u]


def _run(first: int, length: int, back: bool) -> slice:
    if not back:
        return slice(first, first + length)
    # -1 would mean the last
    return slice(first + length - 1, first - 1 if first else None, -1)


def look(sample: Sample, view: View, turn: Turn) -> Sample:
    """Return the sample as a turn shows it, with the view's bands: everything that has a place (pixels of both
    dates, mask, cells, class of every pixel) alike. Its arrays share the memory of the sample's where they can.
    """
    tile_px, every_band = sample.mask.shape[0], tuple(range(len(sample.pixels)))
    if turn.as_stored and tile_px == view.image_px and view.bands == every_band:
        return sample
    # whole cells: an off-grid crop would tear the statistics from their pixels
    spare = (tile_px - view.image_px) // view.cell_px
    row, col = (int(at * (spare + 1)) for at in turn.corner) if turn.corner else (spare // 2,) * 2
    back_y, back_x = turn.back

    def part(array: NDArray[Any], unit_px: int, first_axis: int) -> NDArray[Any]:
        """Cut and turn an array whose axes `first_axis` and the next are y and x in units of `unit_px`."""
        cells, length = view.cell_px // unit_px, view.image_px // unit_px
        # views by slices: numpy's flip and rot90 take longer than copying what they turn
        window = _run(row * cells, length, back_y), _run(col * cells, length, back_x)
        turned = array[(slice(None), *window) if first_axis else window]
        return turned.swapaxes(first_axis, first_axis + 1) if turn.quarters % 2 else turned

    # consecutive bands need no copy of their own
    first, last = view.bands[0], view.bands[-1]
    in_row = view.bands == tuple(range(first, last + 1))
    bands = slice(first, last + 1) if in_row else list(view.bands)
    return Sample(
        sample.key,
        part(sample.pixels, 1, 1)[bands],
        part(sample.mask, 1, 0),
        part(sample.cells, view.cell_px, 1),
        sample.info,
        part(sample.label, 1, 0) if isinstance(sample.label, np.ndarray) else sample.label,
        None if sample.after is None else part(sample.after, 1, 1)[bands],
    )
