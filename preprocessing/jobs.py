"""One scene's job: what is to be made of it, and the digests that tell what need not be made again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from preprocessing import archive, locations
from preprocessing.grids import Box
from preprocessing.scenes import Scene
from preprocessing.settings import ShardConfig, digest

WORK_FOLDER = "work"
LISTS: Any = {"split": {"files", "groups"}, "labels": {"table"}}
"""Keys that name lists and tables of a set."""


@dataclass(frozen=True)
class SceneJob:
    """One scene to bring from its product to samples."""

    scene: Scene
    config: ShardConfig
    taken: tuple[Box, ...] = ()
    """Ground another scene of the same acquisition has given, in this scene's CRS: no tile is cut there."""

    @property
    def store(self) -> Path:
        """The archive."""
        return self.config.output / archive.FOLDER

    @property
    def folder(self) -> Path:
        """Where unfinished work of the run lies."""
        return self.config.output / WORK_FOLDER

    @cached_property
    def source_digest(self) -> str:
        """Identify the product: what its metadata says, and size and time of change of every file that is read.

        It decides what is made again, and stands in no shard: a copy with other times gives the same shards.
        """
        scene = self.scene
        # a raster that nobody asks for may come and go
        labels = scene.labels if self.config.labels else None
        images = [band.path for band in (*scene.bands, *scene.after)]
        files = images + [mask.path for mask in scene.masks] + [labels or ""]
        said = replace(
            scene,
            # names without folders: an archive that was moved is still the same
            location=Path(scene.location.name),
            bands=tuple(replace(b, path=Path(b.path).name) for b in scene.bands),
            masks=tuple(replace(m, path=Path(m.path).name) for m in scene.masks),
            labels=labels and Path(labels).name,
            after=tuple(replace(b, path=Path(b.path).name) for b in scene.after),
            # which split it goes to changes no pixel
            given=replace(scene.given, split=""),
        )
        return digest([said, [_size_and_time(locations.file_on_disk(f)) for f in files]])

    def pixel_digest(self) -> str:
        """Identify everything that decides the stored pixels."""
        keys = {"sensor", "bands", "gsd_m", "crs", "offset", "quality_masks", "resampling", "labels"}
        tree = self.config.model_dump(mode="json", include=keys)
        # only what decides stored numbers: class names and shares do not
        tree["labels"] = tree["labels"] and [tree["labels"]["first_code"], tree["labels"]["codes"]]
        return digest([archive.FORMAT_VERSION, self.source_digest, tree])

    def cell_digest(self) -> str:
        """Identify everything that decides the stored cell statistics."""
        return digest(
            [
                self.pixel_digest(),
                self.config.model_dump(mode="json", include={"cell_px", "clear_excludes"}),
                # by their formulas: another release of spyndex may mean something else by a name
                [(name, self.config.index(name).text) for name in self.config.indices],
            ]
        )

    def sample_digest(self) -> str:
        """Identify everything that decides the samples."""
        keys = {"tile_px", "stride_px", "edge", "min_valid", "min_clear", "split", "labels", "codec"}
        # what lists say of this scene, not where they lie
        tree = self.config.model_dump(mode="json", include=keys, exclude=LISTS)
        return digest([self.cell_digest(), tree, self.scene.given.split, self.taken])


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return bytes and time of change in ns; a file that is gone is told by who reads it."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns
