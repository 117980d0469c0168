"""The pixels of a raster file, read from the top down: every block is decoded once, and few are held.

A JPEG 2000 block takes longer to decode than everything else that is done with its pixels, so that windows over
the same blocks, which is how strips of different grids fall, must not decode them again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from pipeline.errors import SceneError
from preprocessing import checksums, locations
from preprocessing.codestream import Box
from preprocessing.scenes import Checksum

UNREAD = 0xDEAD
"""What the buffer holds before decoding: a decoder that stops early leaves it there."""
UNREAD_PX = 1024
"""This many pixels left as they were cannot be a coincidence."""
GDAL_SETTINGS: dict[str, Any] = locations.GDAL_SETTINGS | {
    # with more threads GDAL reads a truncated JP2 without any error
    "GDAL_NUM_THREADS": "1",
    # a row of blocks with all layers; by itself GDAL takes a twentieth of the machine for each worker
    "GDAL_CACHEMAX": 128_000_000,
}


class RowReader:
    """Rows of some layers of a raster file, from the top down; a context manager that closes the file."""

    def __init__(
        self, path: str, layers: tuple[int, ...], empty: float = 0, checksum: Checksum | None = None
    ) -> None:
        """Nothing is opened before rows are asked for.

        layers: from 1, of one type; empty: what stands where nothing is decoded, of types without room for a mark.
        """
        self.path = path
        self._layers, self._empty, self._checksum = layers, empty, checksum
        self._open = ExitStack()
        self._source: Any = None
        self._held: NDArray[Any] = np.zeros((len(layers), 0, 0))
        self._top = 0

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of its pixels."""
        self._open.close()
        self._source, self._held = None, np.zeros((len(self._layers), 0, 0))

    def take(self, low: int, high: int | None) -> NDArray[Any]:
        """Return rows `low` to `high` (None: the last) as [layer, y, x] in the file's own type.

        `low` must never go back.

        Raises `SceneError` naming a file that is altered or cannot be decoded to its end.
        """
        with self._decoding():
            self._start()
            high = self._source.height if high is None else high
            self._reach(low, high)
        return self._held[:, low - self._top : high - self._top]

    def window(self, box: Box) -> NDArray[Any]:
        """Return a part of the layers as [layer, y, x], for files of which most need not be decoded.

        Raises `SceneError` naming a file that is altered or cannot be decoded.
        """
        with self._decoding():
            self._start()
            return self._read_part(box)

    def release(self, low: int) -> None:
        """Let go of the rows before `low`, where nobody will ask for them."""
        end = self._top + self._held.shape[1]
        # a copy: a view would keep all of them
        self._held, self._top = self._held[:, low - self._top :].copy(), min(low, end)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            with rasterio.Env(**GDAL_SETTINGS):
                yield
        except IndexError as error:
            raise SceneError(
                f"{self.path} has no layer {max(self._layers)}; compare the settings with the file."
            ) from error
        except (RasterioError, MemoryError) as error:
            raise SceneError(
                f"{self.path} cannot be decoded ({error}); {locations.remedy(self.path)}."
            ) from error

    def _start(self) -> None:
        if self._source is not None:
            return
        checksums.verify(self.path, self._checksum)
        with warnings.catch_warnings():
            # an image without a place on Earth is nothing to warn of
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._source = self._open.enter_context(rasterio.open(self.path))
        # an index beyond the layers is the settings' fault, and told as such
        kind = self._source.dtypes[max(self._layers) - 1]
        self._held = np.zeros((len(self._layers), 0, self._source.width), kind)

    def _reach(self, low: int, high: int) -> None:
        """Hold the rows from `low` on, up to the end of the block that `high` lies in."""
        end = self._top + self._held.shape[1]
        kept = self._held[:, low - self._top :]
        self._top = low
        if high <= end:
            self._held = kept
            return
        block = int(self._source.block_shapes[0][0])
        fresh = self._read(end, min(-(-high // block) * block, self._source.height))
        # the usual case copies nothing: strips end where blocks do
        if kept.shape[1]:
            fresh = np.concatenate([kept, fresh], axis=1)
        self._held = fresh[:, max(low - end, 0) :]

    def _read(self, low: int, high: int) -> NDArray[Any]:
        return self._read_part(Box(0, low, self._source.width, high - low))

    def _read_part(self, box: Box) -> NDArray[Any]:
        source, kind = self._source, self._held.dtype
        # codes of 8 bits use every value, so only 16 bits have room for a mark
        marked = kind == np.uint16
        shape = (len(self._layers), box.height, box.width)
        buffer = np.full(shape, UNREAD if marked else self._empty, kind)
        source.read(list(self._layers), window=Window(*box), out=buffer)
        unread = int(np.count_nonzero(buffer == UNREAD)) if marked else 0
        if unread >= UNREAD_PX:
            raise SceneError(
                f"{self.path}: {unread} pixels were never decoded; the file is damaged: fetch the product again."
            )
        return buffer


def read_numbers(path: str, empty: float, layer: int | tuple[int, ...] = 1) -> NDArray[Any]:
    """Read a layer of a raster whole, [y, x] in its own type; several layers of one type as [layer, y, x].

    Raises `SceneError` naming a file that cannot be decoded to its end.
    """
    several = layer if isinstance(layer, tuple) else (layer,)
    with RowReader(path, several, empty) as reader:
        found = reader.take(0, None)
    return found if isinstance(layer, tuple) else found[0]
