"""The Zarr v3 archive: one group a scene, complete or absent.

A group is written into a folder of its own and renamed when its completeness marker, which lists every file
with size and checksum, is on disk. Readers check the marker first: Zarr itself takes a missing chunk for an
empty one. Attributes follow CF and GeoZarr, so xarray and rioxarray open a group with CRS and band names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.errors import ContractError, CorruptDataError
from pipeline.manifest import write_atomically
from pipeline.sample import NO_CLASS, NODATA, Codec, Flag
from preprocessing.conventions import (
    axis_attributes,
    crs_attributes,
    group_attributes,
    label_attributes,
    mask_attributes,
    reflectance_attributes,
)
from preprocessing.grids import Grid

FORMAT_VERSION = 1
FOLDER = "archive.zarr"
MARKER = "reflectance/COMPLETE.json"
"""Inside an array's folder: beside the arrays Zarr would warn of a file that is none of its own."""
CHUNK_PX = 1024
"""Each chunk costs Zarr about a millisecond, whatever it holds."""
SHARD_PX = 2048
_CELL_ARRAYS = ("cells", "index", "statistic")
NO_LABEL = NO_CLASS
"""Stored where a pixel has no class."""


@dataclass(frozen=True)
class SceneHeader:
    """What a stored scene says about itself."""

    id: str
    sensor: str
    level: str
    reader: str
    acquired: str
    bands: tuple[str, ...]
    indices: tuple[str, ...]
    grid: Grid
    notes: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    dates: int = 1
    """Of two, `reflectance` is the earlier and `after` the later."""


def create(store: Path) -> None:
    """Make the empty store, or check that this version can read the one that is there."""
    if not (store / "zarr.json").exists():
        zarr.create_group(store, zarr_format=3, attributes={"format_version": FORMAT_VERSION})
        return
    version = zarr.open_group(store, mode="r", zarr_format=3).attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise ContractError(
            f"{store} has format {version}; this version writes {FORMAT_VERSION}. Take another `output`."
        )


def is_empty(store: Path) -> bool:
    """Say whether a store holds no scene yet."""
    return not any(store.glob("*/zarr.json"))


def remove(folder: Path) -> None:
    """Remove a stored scene, its marker first: what a kill leaves of it must not look finished."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class SceneWriter:
    """Writes one scene's group into a folder that only `finish` turns into part of the archive."""

    def __init__(self, folder: Path, header: SceneHeader, codec: Codec) -> None:
        """Start an empty group in `folder`, replacing what an interrupted run left there."""
        # what an interrupted run left there cannot be trusted
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._header = header
        attributes = group_attributes(header.grid) | {"scene": _header_tree(header)}
        self._group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
        self._arrays: dict[str, Any] = {}
        self._codec = codec

    def start(self, has_labels: bool) -> None:
        """Lay out empty arrays and the coordinates."""
        header = self._header
        shape = (len(header.bands), *header.grid.shape_px)
        self._image("reflectance", shape, (np.int16, NODATA), reflectance_attributes(header.level))
        if header.dates == 2:
            self._image("after", shape, (np.int16, NODATA), reflectance_attributes(header.level))
        self._image("mask", shape[1:], (np.uint8, int(Flag.NODATA)), mask_attributes())
        if has_labels:
            self._image("label", shape[1:], (np.uint8, NO_LABEL), label_attributes())
        for name, centres in zip(("x", "y"), header.grid.centres(), strict=True):
            self._plain(name, centres, (name,), axis_attributes(name, header.grid.crs))
        self._names("band", header.bands)
        self._plain("spatial_ref", np.array(0, np.int32), (), crs_attributes(header.grid))

    def take_over(self, stored: Path) -> None:
        """Take everything but the cell statistics from a finished scene, without copying pixels."""
        for path in _files(stored):
            relative = path.relative_to(stored)
            # the group's own zarr.json is new: it names the indices
            if len(relative.parts) > 1 and relative.parts[0] not in _CELL_ARRAYS:
                target = self.folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                # links: tens of gigabytes must not be copied to change some statistics
                _link(path, target)

    def write(self, name: str, rows: slice, part: NDArray[Any]) -> None:
        """Store rows [band, y, x] or [y, x] of `reflectance`, `after`, `mask` or `label`: whole shards of `SHARD_PX`."""
        array, height = self._arrays[name], rows.stop - rows.start
        if rows.start % SHARD_PX or (height % SHARD_PX and rows.stop != array.shape[-2]):
            raise ValueError(
                f"rows {rows.start} to {rows.stop} are no whole shards; what shares a shard would be lost"
            )
        if part.ndim == 2:
            array[rows] = part
            return
        # band by band: Zarr holds what it is given a second time
        for number, band in enumerate(part):
            array[number, rows] = band

    def _image(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: tuple[type[np.generic], int],
        attributes: dict[str, Any],
    ) -> None:
        """Lay out a sharded raster of a type and its fill value."""
        # small scenes get one small chunk, not a padded large one
        lead, sides = shape[:-2], shape[-2:]
        chunk = tuple(min(CHUNK_PX, side) for side in sides)
        shard = tuple(min(SHARD_PX, -(-side // c) * c) for side, c in zip(sides, chunk, strict=True))
        self._arrays[name] = self._group.create_array(
            name,
            shape=shape,
            dtype=kind[0],
            # one band a shard: a scene is written band by band, and a shard must have one writer
            chunks=(1,) * len(lead) + chunk,
            shards=(1,) * len(lead) + shard,
            compressors=_codecs(self._codec, np.dtype(kind[0]).itemsize),
            fill_value=kind[1],
            dimension_names=("band", "y", "x")[-len(shape) :],
            attributes=attributes,
            # a chunk that was never written would look like one that is lost
            config={"write_empty_chunks": True},
        )

    def _plain(
        self, name: str, data: NDArray[Any], dimensions: tuple[str, ...], attributes: dict[str, Any]
    ) -> None:
        array = self._group.create_array(
            name,
            shape=data.shape,
            dtype=data.dtype,
            chunks=data.shape,
            compressors=_codecs(self._codec, data.dtype.itemsize),
            dimension_names=dimensions,
            attributes=attributes,
            config={"write_empty_chunks": True},
        )
        array[...] = data

    def _names(self, name: str, values: Sequence[str]) -> None:
        array = self._group.create_array(
            name,
            shape=(len(values),),
            dtype=str,
            chunks=(len(values),),
            compressors=[Crc32cCodec()],
            dimension_names=(name,),
        )
        array[...] = np.array(values, object)

    def write_cells(self, cells: NDArray[np.float32]) -> None:
        """Store cell statistics [index, y / cell, x / cell, (n, mean, std)]."""
        self._plain("cells", cells, ("index", "cell_y", "cell_x", "statistic"), {"units": "1"})
        self._names("index", self._header.indices)
        self._names("statistic", ("n", "mean", "std"))

    def finish(self, store: Path, digests: dict[str, str]) -> None:
        """Write the marker and make the group part of `store` in one step."""
        files = {
            str(p.relative_to(self.folder).as_posix()): _fingerprint(p, sync=True)
            for p in _files(self.folder)
        }
        tree = {"format_version": FORMAT_VERSION, "digests": digests, "files": files}
        write_atomically(self.folder / MARKER, json.dumps(tree, indent=0, sort_keys=True).encode())
        # the old scene goes only now that the new one is complete on disk
        final = store / self._header.id
        shutil.rmtree(final, ignore_errors=True)
        self.folder.rename(final)


def _codecs(codec: Codec, itemsize: int) -> list[Any]:
    # scenes are read once or twice: what takes longer to compress would not be earned back
    name: Literal["zstd", "lz4"] = "zstd" if codec == "zstd" else "lz4"
    blosc = BloscCodec(
        cname=name,
        clevel=1 if codec == "zstd" else 5,
        shuffle="bitshuffle",
        typesize=itemsize,
    )
    return [blosc, Crc32cCodec()]


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(path, target)


def _files(folder: Path) -> list[Path]:
    # sorted, so that equal scenes have equal markers
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MARKER)


def _fingerprint(path: Path, sync: bool = False) -> list[Any]:
    """Return [bytes, SHA-256] of a file, after forcing it to disk where asked."""
    with path.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return [path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def _header_tree(header: SceneHeader) -> dict[str, Any]:
    grid = header.grid
    # through JSON once: what is read back equals what was written, tuples aside
    plain = {k: v for k, v in header.__dict__.items() if k != "grid"}
    place = {"crs": grid.crs.to_wkt(), "transform": list(grid.transform)[:6], "shape_px": list(grid.shape_px)}
    tree: dict[str, Any] = json.loads(json.dumps(plain | {"grid": place}))
    return tree


def _header_from(tree: dict[str, Any]) -> SceneHeader:
    place = tree["grid"]
    grid = Grid(
        CRS.from_wkt(place["crs"]), Affine(*place["transform"]), place["shape_px"][1], place["shape_px"][0]
    )
    rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
    return SceneHeader(**rest | {"grid": grid})


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return a scene's completeness marker, or None where the scene is not finished."""
    try:
        tree: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CorruptDataError(
            f"{folder / MARKER} cannot be read ({error}). Remove {folder} and run again."
        ) from error
    return tree


def problems(folder: Path, deep: bool = False) -> list[str]:
    """List what is wrong with a stored scene; `deep` compares checksums as well as sizes."""
    marker = read_marker(folder)
    if marker is None:
        return [f"{folder} was never finished"]
    return [p for name, expected in marker["files"].items() if (p := _problem(folder / name, expected, deep))]


def _problem(path: Path, expected: list[Any], deep: bool) -> str:
    if not path.is_file():
        return f"{path} is missing"
    # the size costs nothing; the checksum reads everything
    if path.stat().st_size != expected[0]:
        return f"{path} has {path.stat().st_size} bytes, not {expected[0]}"
    if deep and _fingerprint(path)[1] != expected[1]:
        return f"{path} was altered (SHA-256 differs)"
    return ""


class StoredScene:
    """A finished scene of the archive, opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Open a scene; raises `CorruptDataError` naming what is missing, truncated or unfinished."""
        # Zarr takes a missing chunk for one of nodata: look before it does
        found = problems(folder)
        if found:
            raise CorruptDataError(f"{found[0]}. Remove {folder} and run again: the scene is made anew.")
        self.folder = folder
        self._group = zarr.open_group(folder, mode="r", zarr_format=3)
        tree: Any = self._group.attrs["scene"]
        self.header = _header_from(tree)

    @property
    def has_labels(self) -> bool:
        """Whether class codes are stored."""
        return "label" in self._group

    def read(self, name: str, *where: slice | int) -> NDArray[Any]:
        """Read a part of `reflectance`, `after` (int16 [band, y, x]), `mask`, `label` (uint8 [y, x]) or `cells`
        (float32 [index, y / cell, x / cell, 3]), as stored.

        Raises `CorruptDataError` for altered data instead of returning it.
        """
        array: Any = self._group[name]
        try:
            return np.asarray(array[where or ...])
        # a failed CRC is a ValueError, a broken blosc frame a RuntimeError
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptDataError(
                f"{self.folder / name} cannot be decoded ({error}). Remove {self.folder} and run again."
            ) from error
