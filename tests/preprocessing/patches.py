"""Tiny genuine files of labelled sets: small tifs with and without a place on Earth, class rasters, tables."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

UTM = {"crs": "EPSG:32633", "origin": (500_000.0, 5_300_000.0)}


def write_image(
    path: Path, layers: NDArray[np.generic], gsd_m: float | None = None, shift_px: int = 0
) -> Path:
    """Write layers [layer, y, x] as a tif; gsd_m: pixel size in metres, None leaves it without a place on Earth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {}
    if gsd_m:
        x, y = UTM["origin"]
        place = {"crs": UTM["crs"], "transform": Affine(gsd_m, 0, x + shift_px * gsd_m, 0, -gsd_m, y)}
    count, height, width = layers.shape
    driver = "PNG" if path.suffix == ".png" else "GTiff"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, count=count, height=height, width=width, dtype=layers.dtype, **place
        ) as raster:
            raster.write(layers)
    return path


def numbers(layers: int, size_px: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return plausible stored numbers [layer, y, x], another level in every layer."""
    levels = 500 + 100 * np.arange(layers)[:, None, None]
    return (levels + np.random.default_rng(seed).integers(0, 90, (layers, size_px, size_px))).astype(
        np.uint16
    )


def write_eurosat(folder: Path, classes: Sequence[str], each: int) -> Path:
    """Write an EuroSAT-like folder: `each` patches of 64 px and 13 layers a class."""
    for place, name in enumerate(classes):
        for number in range(1, each + 1):
            write_image(folder / name / f"{name}_{number}.tif", numbers(13, 64, place * 100 + number))
    return folder


def write_bigearthnet_patch(folder: Path, name: str, labels: Sequence[str] | None = None) -> Path:
    """Write a patch of twelve bands of 120, 60 and 20 px; labels: CORINE names for the json of version 1."""
    sizes = {"B01": 60, "B09": 60} | dict.fromkeys(("B02", "B03", "B04", "B08"), 10)
    for place, band in enumerate(
        ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    ):
        gsd_m = sizes.get(band, 20)
        dn = numbers(1, 1200 // gsd_m, place) + np.uint16(100 * place)
        write_image(folder / name / f"{name}_{band}.tif", dn, gsd_m if labels is not None else None)
    if labels is not None:
        (folder / name / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": list(labels)}))
    return folder / name


def write_metadata(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write a metadata.parquet of version 2."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    return path
