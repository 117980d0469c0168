"""A scene into tiles, row by row of them: which ones are kept, and the samples they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline import histogram as histograms
from pipeline.errors import SceneError
from pipeline.sample import Label, Sample
from preprocessing import kernel, labelling, tiling
from preprocessing.archive import SceneHeader
from preprocessing.grids import Box, Grid
from preprocessing.kernel import Pixels
from preprocessing.profiles import IndexCounts
from preprocessing.scenes import Given
from preprocessing.settings import ShardConfig
from preprocessing.spool import SpoolWriter
from preprocessing.strips import Window
from preprocessing.tiling import Choice, Ground, Lattice, SplitRule, Tile, TileRule

NOTHING_GIVEN = Given()
UNLISTED = "unlisted"
"""Why a tile is dropped whose scene no list of its set has."""


def tile_rule(config: ShardConfig) -> TileRule:
    """Return how the tiles of a run are laid and which are kept."""
    return TileRule(
        config.tile_px,
        config.step_px,
        config.cell_px,
        config.min_valid,
        config.min_clear,
        config.unclear_bits,
        config.edge,
    )


@dataclass(frozen=True)
class Cutting:
    """What the tiles of one scene are cut by."""

    config: ShardConfig
    header: SceneHeader
    given: Given = NOTHING_GIVEN
    """What the set says of the scene."""
    taken: tuple[Box, ...] = ()
    """Ground that another scene of the same acquisition gave, in the CRS of the grid."""

    @property
    def rule(self) -> TileRule:
        """How tiles are laid and which are kept."""
        return tile_rule(self.config)

    @property
    def lattice(self) -> Lattice:
        """Where tiles may lie."""
        tops, lefts = (self.rule.starts(side) for side in self.header.grid.shape_px)
        # without a place along one side there is none at all
        return Lattice(tops, lefts) if lefts.size else Lattice(tops[:0], lefts)

    @property
    def padded_px(self) -> tuple[int, int]:
        """Height and width of the scene with what tiles reach over its edges."""
        ends = [
            (int(starts[-1]) + self.config.tile_px if starts.size else 0)
            for starts in (self.lattice.tops, self.lattice.lefts)
        ]
        height, width = self.header.grid.shape_px
        return max(height, ends[0]), max(width, ends[1])

    def ground(self) -> Ground:
        """Return what decides by place; raises `SceneError` where that is to decide and the scene has none."""
        config, grid = self.config, self.header.grid
        by_ground = config.split.by == "ground"
        if by_ground and config.split.val_share and not grid.is_placed:
            raise SceneError(
                "an image without a place on Earth cannot be divided by ground: set `split.by` to `set`, with the lists"
                " of the set in `split.files`, or to `scene`."
            )
        rule = SplitRule(
            config.split.val_share if by_ground else 0.0,
            config.split.block_m,
            config.tile_px * max(grid.pixel_m) if config.split.buffer_m == "tile" else config.split.buffer_m,
            config.split.seed,
        )
        covered = grid.covered(self.taken, config.cell_px) if self.taken else None
        return Ground(rule, grid.lonlat, covered)


class Cutter:
    """Cuts a scene's tiles as its rows come into memory."""

    def __init__(self, cutting: Cutting, writer: SpoolWriter) -> None:
        """Raises `SceneError` where ground is to decide and the scene has no place on Earth."""
        self._by, self._writer, self.rule = cutting, writer, cutting.rule
        self._lattice, self._ground = cutting.lattice, cutting.ground()
        self._done = 0
        self._choices: list[Choice] = []
        self._crs = _crs_name(cutting.header.grid)
        self.index_counts = IndexCounts()
        self.histogram = histograms.empty(len(cutting.config.bands))
        """[band, value] of the clear pixels of training tiles; a pixel counts as often as tiles hold it."""

    @property
    def next_px(self) -> int | None:
        """The first row that is needed yet; None where all tiles are cut."""
        tops = self._lattice.tops
        return int(tops[self._done]) if self._done < len(tops) else None

    @property
    def choice(self) -> Choice:
        """The tiles that were cut, and what became of the others."""
        return Choice.together(self._choices)

    def cut(self, window: Window, cells: NDArray[np.float32], end_px: int) -> None:
        """Cut the tiles that end before the row `end_px`.

        cells: statistics [index, y / cell, x / cell, 3] of the scene, done so far.
        """
        tops = self._lattice.tops[self._done :]
        tops = tops[tops + self.rule.tile_px <= end_px]
        if not len(tops):
            return
        self._done += len(tops)
        first, last = int(tops[0]), int(tops[-1]) + self.rule.tile_px
        mask = window.mask[first - window.top_px : last - window.top_px]
        choice = self._split(
            tiling.choose(mask, Lattice(tops, self._lattice.lefts), self.rule, self._ground, first)
        )
        self._choices.append(choice)
        self._count(window, choice.tiles, (first, last))
        self._write(window, cells, choice.tiles)

    def _split(self, chosen: Choice) -> Choice:
        """Return the choice as the set divides it: by ground, or all tiles in the scene's own split."""
        if self._by.config.split.by == "ground":
            return chosen
        split = self._by.given.split
        # the set's lists may not have the scene
        fates = np.where(chosen.fates == "train", split or UNLISTED, chosen.fates)
        return Choice([replace(tile, split=split) for tile in chosen.tiles if split], fates)

    def _count(self, window: Window, tiles: Sequence[Tile], between: tuple[int, int]) -> None:
        first, last = between
        inside = slice(first - window.top_px, last - window.top_px)
        times = np.zeros((last - first, window.mask.shape[1]), np.uint16)
        for tile in (t for t in tiles if t.split == "train"):
            top = tile.row_px - first
            times[top : top + tile.size_px, tile.column_px : tile.column_px + tile.size_px] += 1
        times[(window.mask[inside] & int(self._by.config.unclear_bits)) != 0] = 0
        for stack in (window.pixels, window.after):
            if stack is not None:
                kernel.count(self.histogram, Pixels(stack, range(len(stack)), inside.start), times)

    def _write(self, window: Window, cells: NDArray[np.float32], tiles: Sequence[Tile]) -> None:
        cut = [self._sample(window, cells, *one) for one in zip(tiles, self._infos(tiles), strict=True)]
        for sample, tile in zip(cut, tiles, strict=True):
            self._writer.add(sample, tile.split, self._by.config.codec)
        if cut:
            # all at once: a call costs more than a tile
            self.index_counts.add(np.stack([sample.cells for sample in cut], 1))

    def _sample(
        self, window: Window, cells: NDArray[np.float32], tile: Tile, info: dict[str, object]
    ) -> Sample:
        top, left, cell = tile.row_px - window.top_px, tile.column_px, self.rule.cell_px
        rows, columns = slice(top, top + tile.size_px), slice(left, left + tile.size_px)
        # tiles lie on the cell grid, so that these divisions have no rest
        down, across = (
            slice(start // cell, (start + tile.size_px) // cell) for start in (tile.row_px, tile.column_px)
        )
        return Sample(
            key=tiling.key(self._by.header.id, tile),
            pixels=window.pixels[:, rows, columns],
            mask=window.mask[rows, columns],
            cells=cells[:, down, across],
            info=info,
            label=self._label(None if window.label is None else window.label[rows, columns]),
            after=None if window.after is None else window.after[:, rows, columns],
        )

    def _label(self, codes: NDArray[np.uint8] | None) -> Label | None:
        wanted, given = self._by.config.labels, self._by.given.classes
        if wanted is None:
            return None
        if given is not None:
            return labelling.of_scene(given, wanted)
        # a set may mix scenes with and without labels
        return None if codes is None else labelling.of_pixels(codes, wanted)

    def _infos(self, tiles: Sequence[Tile]) -> list[dict[str, object]]:
        """Return what people want to know of every tile."""
        if not tiles:
            return []
        scene, grid = self._by.header, self._by.header.grid
        t = grid.transform
        # all corners at once: a call costs more than a thousand corners
        lon, lat = tiling.corners(tiles, grid.lonlat)
        bounds = np.stack([lon.min(1), lat.min(1), lon.max(1), lat.max(1)], 1).tolist()
        return [
            {
                "scene": scene.id,
                "row": tile.row_px,
                "col": tile.column_px,
                "acquired": scene.acquired,
                "sensor": scene.sensor,
                "level": scene.level,
                "crs": self._crs,
                "transform": [t.a, 0.0, t.c + t.a * tile.column_px, 0.0, t.e, t.f + t.e * tile.row_px],
                "bounds_lonlat": box if grid.is_placed else None,
                "valid_share": tile.valid_share,
                "clear_share": tile.clear_share,
            }
            for tile, box in zip(tiles, bounds, strict=True)
        ]


def _crs_name(grid: Grid) -> str | None:
    """Return the code of a CRS, the WKT where it has none, and nothing for no place on Earth."""
    if not grid.is_placed:
        return None
    epsg = grid.crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(grid.crs.to_wkt())
