"""A small scene held in memory: what labelled sets have by the hundred thousand needs no place in the archive."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sample import NODATA, Flag
from preprocessing.archive import SceneHeader

MOST_PX = 512 * 512
"""Pixels of the largest scene that is held in memory."""


class SceneArrays(Protocol):
    """A scene's arrays while they are filled."""

    def array(self, name: str) -> Any:
        """Return `reflectance`, `after` or `mask` for writing and reading back."""

    def write_labels(self, codes: NDArray[np.uint8]) -> None:
        """Keep class codes [y, x]."""


class SceneData(Protocol):
    """A finished scene, for reading."""

    header: SceneHeader

    @property
    def has_labels(self) -> bool:
        """Whether class codes are stored."""

    def read(self, name: str, *where: slice | int) -> NDArray[Any]:
        """Read a part of an array."""


class MemoryScene:
    """A scene's arrays in memory, written and read as those of the archive are."""

    def __init__(self, header: SceneHeader) -> None:
        """Lay out arrays without measurements."""
        self.header = header
        shape = (len(header.bands), *header.grid.shape_px)
        self._arrays: dict[str, NDArray[Any]] = {
            "reflectance": np.full(shape, NODATA, np.int16),
            "mask": np.full(shape[1:], int(Flag.NODATA), np.uint8),
        }
        if header.dates == 2:
            self._arrays["after"] = np.full(shape, NODATA, np.int16)

    @property
    def has_labels(self) -> bool:
        """Whether class codes are held."""
        return "label" in self._arrays

    def array(self, name: str) -> NDArray[Any]:
        """Return `reflectance`, `after` or `mask` for writing and reading back."""
        return self._arrays[name]

    def write_labels(self, codes: NDArray[np.uint8]) -> None:
        """Keep class codes [y, x]."""
        self._arrays["label"] = codes

    def write_cells(self, cells: NDArray[np.float32]) -> None:
        """Keep cell statistics [index, y / cell, x / cell, (n, mean, std)]."""
        self._arrays["cells"] = cells

    def read(self, name: str, *where: slice | int) -> NDArray[Any]:
        """Return a part of an array, as `StoredScene.read` does."""
        return self._arrays[name][where or ...]
