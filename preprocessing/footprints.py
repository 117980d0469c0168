"""Where the scenes of a set lie, for its map: each of a few, and counts in cells of many."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 1_000
"""More scenes than this are drawn as cells of a grid."""
COLUMNS, ROWS = 90, 42
"""Cells of that grid."""
CORNERS = np.array([(0, 1), (1, 1), (1, 0), (0, 0)])
DIGITS = 4
"""Of a cell's corners in degrees, ten metres, and of its share."""


@dataclass
class Footprints:
    """Scenes with their corners, as they pass by."""

    few: list[dict[str, Any]] = field(default_factory=list)
    """What is drawn of the first scenes."""
    # eight bytes a number: lists of Python's floats would take four times as much of a large set
    middles: array[float] = field(default_factory=lambda: array("d"))
    """Longitude and latitude of every scene's middle, in turn."""
    clear: array[float] = field(default_factory=lambda: array("d"))
    """Share of clear pixels of every scene."""

    def add(self, name: str, corners: Sequence[Sequence[float]], clear_share: float) -> None:
        """Add a scene by its corners [corner, (longitude, latitude)], degrees."""
        if len(self.few) < MOST:
            self.few.append({"name": name, "corners": corners, "clear_share": clear_share})
        self.middles.extend(np.mean(corners, axis=0).tolist())
        self.clear.append(clear_share)

    def drawn(self) -> list[dict[str, Any]]:
        """Return what the map draws: name, corners and clear share, of scenes or of cells that hold several."""
        if len(self.clear) <= MOST:
            return self.few
        return _cells(np.asarray(self.middles).reshape(-1, 2), np.asarray(self.clear))


def _cells(middles: NDArray[np.float64], clear: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Count scenes by the place of their middle [scene, (longitude, latitude)]."""
    low, high = middles.min(0), middles.max(0)
    # scenes of one place, time after time, span nothing: a cell must have some size all the same
    size = np.maximum((high - low) / (COLUMNS, ROWS), 1e-6)
    # the outermost middles lie on the far edge, and belong to the last cell
    places = np.minimum((middles - low) / size, np.array([COLUMNS, ROWS]) - 1).astype(np.int64)
    numbers, cell, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    shares = np.bincount(cell.ravel(), clear) / counts
    drawn = []
    for (column, row), count, share in zip(numbers.tolist(), counts.tolist(), shares.tolist(), strict=True):
        corners = np.round(low + (CORNERS + np.array((column, row))) * size, DIGITS).tolist()
        drawn.append({"name": f"{count} scenes", "corners": corners, "clear_share": round(share, DIGITS)})
    return drawn
