"""Cell statistics of a scene, as its rows come into memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocessing import kernel
from preprocessing.kernel import Pixels
from preprocessing.settings import ShardConfig
from preprocessing.strips import Window


class CellSums:
    """The statistics of every cell that is wholly in memory; a rest smaller than a cell is left out."""

    def __init__(self, config: ShardConfig, shape_px: tuple[int, int]) -> None:
        """shape_px: height and width, with what tiles over the edge need."""
        self._config, self._cell = config, config.cell_px
        # no tile has a part in the rest: all begin and end on cells
        height, width = (side // self._cell for side in shape_px)
        self._bands = {
            name: [config.bands.index(band) for band in config.index_bands(name)] for name in config.indices
        }
        self._done = 0
        self.statistics: NDArray[np.float32] = np.zeros((len(config.indices), height, width, 3), np.float32)
        """[index, y / cell, x / cell, (n, mean, std)]; zeros where nothing was counted."""

    @property
    def next_px(self) -> int:
        """The first row that is needed yet."""
        return self._done * self._cell

    def grow(self, window: Window, end_px: int) -> None:
        """Add the cells that end before the row `end_px`."""
        done, self._done = self._done, min(end_px // self._cell, self.statistics.shape[1])
        top, end = (row * self._cell - window.top_px for row in (done, self._done))
        counted = (window.mask[top:end] & int(self._config.unclear_bits)) == 0
        for number, (name, bands) in enumerate(self._bands.items()):
            pixels = Pixels(window.pixels, bands, top)
            part = kernel.cell_statistics(self._config.index(name), pixels, counted, self._cell)
            self.statistics[number, done : self._done] = part
