"""Predict a whole scene of an archive with a fine-tuned run: overlapping windows, blended, written as a GeoTIFF in its
place on Earth.

`python training/predict.py CONFIG run=RUN scene=ARCHIVE/archive.zarr/SCENE output=FILE.tif`
Shape letters: B batch, C bands, K classes, H W pixels.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run by path: `python training/predict.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # read when torch loads: OpenMP threads that spin while they wait are 6 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import rasterio
import torch
import zarr
from numpy.typing import NDArray
from pydantic import Field
from rasterio.errors import RasterioError
from rasterio.shutil import copy
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Config, UserPath, differences, load
from pipeline.console import Command, Progress, run, say
from pipeline.errors import (
    EXIT_DONE,
    ConfigError,
    ContractError,
    CorruptDataError,
    MissingInputError,
    OutputError,
)
from pipeline.sample import NO_CLASS, NODATA
from training.downstream import Trained
from training.windows import starts
from training.world import World, to_device

COMMAND = Command(
    "Predict a whole scene with a fine-tuned run and write it as a GeoTIFF.",
    "configs/predict/default.yaml",
    """  python training/predict.py run=runs/water scene=shards/mine/archive.zarr/SCENE output=water.tif
  python training/predict.py run=runs/change scene=shards/pairs/archive.zarr/CITY output=change.tif write=scores""",
)
_MARKER = "reflectance/COMPLETE.json"
"""In an archive, what says that a scene was finished."""


class PredictConfig(Config):
    """A prediction of a scene."""

    run: UserPath
    """Run or checkpoint folder of a fine-tuning."""
    scene: UserPath
    """Folder of a scene in an archive, archive.zarr/SCENE."""
    output: UserPath
    """GeoTIFF to write."""
    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Share of a window's side that the next one covers again; the two are blended."""
    batch: int = Field(default=16, ge=1)
    """Windows that are predicted at once."""
    write: Literal["classes", "scores"] = "classes"
    """classes: one band, the number of the class, 255 where nothing was measured; scores: a band a class, 0 to 1."""


@dataclass(frozen=True)
class Scene:
    """A stored scene, opened for reading."""

    header: dict[str, Any]
    dates: tuple[Any, ...]
    """The arrays of each date, int16 [C, H, W]."""

    @classmethod
    def open(cls, folder: Path) -> Scene:
        """Open a scene; raises `MissingInputError` where there is none that was finished, and `CorruptDataError` for one
        that is not as it was then.
        """
        if not (folder / _MARKER).exists():
            raise MissingInputError(f"{folder} is no finished scene: give a folder below some archive.zarr.")
        _require_whole(folder)
        group = zarr.open_group(folder, mode="r", zarr_format=3)
        header: Any = group.attrs["scene"]
        names = ["reflectance", "after"][: header.get("dates", 1)]
        return cls(header, tuple(group[name] for name in names))

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.header["grid"]["shape_px"]
        return height, width

    def read(self, bands: Sequence[int], rows: slice) -> list[NDArray[np.int16]]:
        """Read a strip of every date, [C, rows, W]; raises `CorruptDataError` for altered data."""
        try:
            return [np.stack([np.asarray(date[b, rows]) for b in bands]) for date in self.dates]
        # a failed CRC is a ValueError, a broken blosc frame a RuntimeError
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptDataError(
                f"scene {self.header['id']} cannot be decoded ({error}): make its archive again."
            ) from error


def _require_whole(folder: Path) -> None:
    """Raise `CorruptDataError` unless all files of a finished scene are there, in their size."""
    try:
        sizes = {name: told[0] for name, told in json.loads((folder / _MARKER).read_text())["files"].items()}
    except (ValueError, KeyError) as error:
        raise CorruptDataError(f"{folder / _MARKER} cannot be read ({error}): make it again.") from error
    # Zarr takes a file that is lost for nodata: look before it does
    for name, size_bytes in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size_bytes:
            raise CorruptDataError(f"{path} is missing or cut short: make the archive of this scene again.")


class Blend:
    """Scores of one strip of a scene, added up window by window and strip by strip."""

    def __init__(self, classes: int, width_px: int, window_px: int) -> None:
        self._window = _hill(window_px)
        self._sums = np.zeros((classes, window_px, width_px), np.float32)
        self._weights = np.zeros((window_px, width_px), np.float32)

    def add(self, left: int, scores: NDArray[np.float32]) -> None:
        """Add the scores [K, window, window] of a window of this strip."""
        side = slice(left, left + scores.shape[-1])
        self._sums[:, :, side] += scores * self._window
        self._weights[:, side] += self._window

    def take(self, count: int) -> NDArray[np.float32]:
        """Return the first rows, [K, count, W], and move on to the strip that begins below them."""
        done = self._sums[:, :count] / self._weights[:count]
        for held in (self._sums, self._weights):
            held[..., :-count, :] = held[..., count:, :].copy()
            held[..., -count:, :] = 0
        return done


def _hill(side_px: int) -> NDArray[np.float32]:
    """Return weights [side, side] that fall towards the edges, where a model knows least, and never to 0."""
    centre = (side_px - 1) / 2
    line = 1 - np.abs(np.arange(side_px) - centre) / (side_px / 2)
    weights: NDArray[np.float32] = np.outer(line, line).astype(np.float32)
    return weights


class Predictor:
    """A trained model over the windows of a scene."""

    def __init__(self, config: PredictConfig, trained: Trained, scene: Scene, world: World) -> None:
        """Fit model and scene to each other; raises `ContractError` with what differs."""
        self.config, self.trained, self.scene, self.world = config, trained, scene, world
        record, header = trained.record, scene.header
        expected = {"sensor": record.contract.sensor, "dates": 2 if trained.task.pairs else 1}
        wrong = differences(expected, {"sensor": header["sensor"], "dates": header.get("dates", 1)})
        missing = [band for band in record.bands if band not in header["bands"]]
        if header["level"] not in record.contract.level.split("+"):
            wrong.append(f"level: {record.contract.level!r} -> {header['level']!r}")
        if wrong or missing:
            lacks = [f"bands {', '.join(missing)} are not there"] if missing else []
            raise ContractError(
                f"{config.run} does not fit scene {header['id']}: {'; '.join(wrong + lacks)}."
            )
        self.bands = [header["bands"].index(band) for band in record.bands]
        self.window_px = record.image_px
        self.model = trained.model.to(world.device).eval()

    def strips(self) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
        """Yield first row, scores [K, rows, W] and where anything was measured [rows, W], from top to bottom."""
        height, width = self.scene.shape_px
        step = max(round(self.window_px * (1 - self.config.overlap)), 1)
        tops = starts(height, self.window_px, step)
        blend = Blend(len(self.trained.task.classes), max(width, self.window_px), self.window_px)
        progress = Progress("predict", len(tops), "strips")
        # longer than the scene: one that is smaller than a window is filled up
        seen = np.zeros((height + self.window_px, width), bool)
        for top, following in zip(tops, (*tops[1:], height), strict=True):
            dates = [self._padded(d) for d in self.scene.read(self.bands, slice(top, top + self.window_px))]
            measured = np.logical_and.reduce([(d != NODATA).all(0) for d in dates])
            seen[top : top + self.window_px] = measured[:, :width]
            self._add(blend, dates, starts(width, self.window_px, step))
            # what the next strip does not reach is finished; after the last one, all that is left
            yield top, blend.take(following - top)[..., :width], seen[top:following]
            progress.advance()

    def _padded(self, strip: NDArray[np.int16]) -> NDArray[np.int16]:
        """Fill a scene that is smaller than a window up with nodata."""
        more = [(0, max(self.window_px - side, 0)) for side in strip.shape[1:]]
        return np.pad(strip, [(0, 0), *more], constant_values=NODATA)

    def _add(self, blend: Blend, dates: Sequence[NDArray[np.int16]], lefts: Sequence[int]) -> None:
        for first in range(0, len(lefts), self.config.batch):
            some = lefts[first : first + self.config.batch]
            windows = [np.stack([d[..., x : x + self.window_px] for x in some]) for d in dates]
            for left, scores in zip(some, self._predict(windows), strict=True):
                blend.add(left, scores)

    @torch.no_grad()
    def _predict(self, windows: Sequence[NDArray[np.int16]]) -> NDArray[np.float32]:
        """Return the probabilities of windows of each date, [B, K, H, W]; of tasks about tiles alike in a window."""
        images = [torch.from_numpy(np.ascontiguousarray(w)) for w in windows]
        scores: Tensor = self.model(
            *(self.trained.normaliser(to_device(i, self.world.device)) for i in images)
        )
        # several classes a tile are each a yes or no; of all others one is chosen
        several = not self.trained.task.mixable and self.trained.task.pooled
        shares = scores.float().sigmoid() if several else F.softmax(scores.float(), 1)
        side = (self.window_px, self.window_px)
        found: NDArray[np.float32] = (
            (shares if shares.ndim == 4 else shares[:, :, None, None].expand(-1, -1, *side)).cpu().numpy()
        )
        return found


def write(predictor: Predictor) -> Path:
    """Write a scene's prediction as cloud-optimised GeoTIFF; returns its path.

    Raises `OutputError` where it cannot be written: nothing lies under the final name then.
    """
    path = predictor.config.output
    plain, partial = (path.with_name(f".{path.name}.{part}.tif") for part in ("plain", "partial"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_plain(predictor, plain)
        # the driver makes overviews and the order of tiles; it copies, it does not create
        copy(plain, partial, driver="COG", compress="DEFLATE", overview_resampling="NEAREST")
        partial.replace(path)
    except (RasterioError, OSError) as error:
        if isinstance(error, CorruptDataError):
            raise
        raise OutputError(f"cannot write {path} ({error}). Give another `output`.") from error
    finally:
        for leftover in (plain, partial):
            leftover.unlink(missing_ok=True)
    return path


def _write_plain(predictor: Predictor, path: Path) -> None:
    header, classes = predictor.scene.header, predictor.trained.task.classes
    (height, width), place = predictor.scene.shape_px, header["grid"]
    scores = predictor.config.write == "scores"
    kind = {"dtype": "float32", "nodata": np.nan} if scores else {"dtype": "uint8", "nodata": NO_CLASS}
    shape = {"height": height, "width": width, "count": len(classes) if scores else 1}
    where = {"crs": place["crs"], "transform": rasterio.Affine(*place["transform"])}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, compress="DEFLATE", bigtiff="IF_SAFER",
                       **kind, **shape, **where) as raster:  # fmt: skip
        for top, found, seen in predictor.strips():
            values = np.where(seen, found, np.nan) if scores else _numbers(found, seen)[None]
            raster.write(
                values.astype(np.float32 if scores else np.uint8), window=((top, top + len(seen)), (0, width))
            )
        for number, name in enumerate(classes if scores else ["class"], 1):
            raster.set_band_description(number, name)
        raster.update_tags(classes=", ".join(classes), scene=header["id"], acquired=header["acquired"])


def _numbers(found: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the class of the highest score, `NO_CLASS` where nothing was measured."""
    return np.where(seen, found.argmax(0), NO_CLASS).astype(np.uint8)


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    command = COMMAND.configured_by(PredictConfig)
    path, words = command.split(command.parser().parse_intermixed_args(argv).words)
    config = load(PredictConfig, path, words)
    if config.output.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"output {config.output} must end with .tif: a GeoTIFF is written.")
    trained, scene = Trained.of(config.run), Scene.open(config.scene)
    written = write(Predictor(config, trained, scene, World()))
    say(f"{written}: {config.write} of {scene.header['id']}, {', '.join(trained.task.classes)}")
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
