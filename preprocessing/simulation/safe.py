"""A simulated Sentinel-2 product: a `.SAFE` folder with JPEG 2000 bands, scene classification and metadata.

The layout is the real one; left out are TCI, AOT, WVP, detector footprints, L2A's cloud masks, DATASTRIP and HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sensors import SENSORS, Band
from preprocessing.simulation import quality_masks
from preprocessing.simulation.cloud_masks import write_cloud_mask
from preprocessing.simulation.noise import Float
from preprocessing.simulation.raster import IMAGE_CODINGS, PLACE, Place, write_jp2, write_landcover
from preprocessing.simulation.safe_metadata import Description, manifest_xml, product_xml, tile_xml
from preprocessing.simulation.view import View, make_view

QUANTIFICATION = 10_000
OFFSET_DN = -1_000
"""From baseline 04.00 on."""
TILES = {"T32UPU": PLACE, "T32UQU": Place("EPSG:32632", 699_960, 5_400_000)}
"""Tile -> where it lies; the first is the usual one, the second its neighbour in the east."""
LARGEST_DN = 65_534
"""65 535 means saturated."""


@dataclass(frozen=True)
class SafeOptions:
    """Which Sentinel-2 product to simulate."""

    size_px: int
    """Side of the 10 m grid; a multiple of 6."""
    seed: int = 1
    baseline: str = "05.10"
    """Processing baseline; from 04.00 on digital numbers carry an offset."""
    level: Literal["L1C", "L2A"] = "L2A"
    tile: str = "T32UPU"
    """A key of `TILES`."""
    has_flaws: bool = False
    """Quality masks mark a lost packet, a dead column, saturated and unmeasured pixels."""

    @property
    def ground_key(self) -> int:
        """Return the key of the ground: neighbouring tiles are not the same ground."""
        return self.seed + 100_000 * list(TILES).index(self.tile)

    @property
    def offset_dn(self) -> int:
        """Return the offset of the metadata, 0 where the baseline has none."""
        return OFFSET_DN if float(self.baseline) >= 4 else 0

    @property
    def prefix(self) -> str:
        """Return what stands before names of L2A in the products of its first years, until baseline 02.06."""
        return "L2A_" if self.level == "L2A" and float(self.baseline) < 2.07 else ""


def write_safe(
    folder: Path, options: SafeOptions, written: Callable[[str], None] = lambda name: None
) -> Path:
    """Write one product and its land cover into `folder`; returns the product's path.

    written: is told each image's name when it is done.
    """
    view = make_view(options.size_px, options.ground_key, "sentinel2")
    what = _describe(options)
    product = folder / f"{what.name}.SAFE"
    # one image at a time: a whole tile's bands at three pixel sizes are gigabytes
    for name, array, gsd_m in _images(view, options):
        path = product / f"{_image_path(what.granule, options, name, gsd_m)}.jp2"
        write_jp2(path, array, gsd_m, IMAGE_CODINGS[gsd_m], what.place)
        written(f"{name} at {gsd_m} m")
    _write_masks(product / "GRANULE" / what.granule / "QI_DATA", view, options)
    (product / f"MTD_MSI{options.level}.xml").write_text(product_xml(what), encoding="utf-8")
    (product / "GRANULE" / what.granule / "MTD_TL.xml").write_text(tile_xml(what), encoding="utf-8")
    # last: it holds the checksums of all others
    (product / "manifest.safe").write_text(manifest_xml(product), encoding="utf-8")
    write_landcover(folder / f"{what.name}_landcover.tif", view.classes(10), 10, what.place)
    return product


def _write_masks(folder: Path, view: View, options: SafeOptions) -> None:
    place, has_layers = TILES[options.tile], options.offset_dn != 0
    # both changed with one baseline
    if options.level == "L1C":
        write_cloud_mask(folder, view, has_layers, place)
    for band in SENSORS["sentinel2"].bands:
        side_px = options.size_px * 10 // round(band.gsd_m)
        marked = quality_masks.marks(band, side_px, options.has_flaws)
        if has_layers:
            quality_masks.write_layers(folder, band, side_px, marked, place)
        else:
            quality_masks.write_polygons(folder, band, marked, place)


def image_count(options: SafeOptions) -> int:
    """Return how many images `write_safe` writes."""
    bands = sum(len(_resolutions(band, options)) for band in SENSORS["sentinel2"].bands)
    return bands + (options.level == "L2A")


def _describe(options: SafeOptions) -> Description:
    """Name everything; the seed moves the sensing time, so that two archives never hold one product name."""
    time = datetime(2024, 6, 1, 10, 10, 31, tzinfo=UTC) + timedelta(
        days=options.seed % 90, minutes=options.seed // 90
    )
    stamp, baseline = time.strftime("%Y%m%dT%H%M%S"), options.baseline.replace(".", "")
    granule = f"{options.level}_{options.tile}_A000001_{stamp}"
    return Description(
        name=f"S2A_MSI{options.level}_{stamp}_N{baseline}_R022_{options.tile}_{stamp}",
        level=options.level,
        baseline=options.baseline,
        time=time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        granule=granule,
        images=[
            _image_path(granule, options, band.name, gsd_m)
            for band in SENSORS["sentinel2"].bands
            for gsd_m in _resolutions(band, options)
        ],
        size_px=options.size_px,
        quantification=QUANTIFICATION,
        prefix=options.prefix,
        offset_dn=options.offset_dn,
        place=TILES[options.tile],
    )


def _image_path(granule: str, options: SafeOptions, name: str, gsd_m: int) -> str:
    # L1C holds each band once, so that its folders and names have no pixel size
    _, tile, _, stamp = granule.split("_")
    stem = f"{options.prefix}{tile}_{stamp}_{name}"
    folder = f"GRANULE/{granule}/IMG_DATA"
    return f"{folder}/{stem}" if options.level == "L1C" else f"{folder}/R{gsd_m}m/{stem}_{gsd_m}m"


def _resolutions(band: Band, options: SafeOptions) -> tuple[int, ...]:
    """Return the pixel sizes at which a product holds a band: L2A repeats fine bands on the coarser grids."""
    own = round(band.gsd_m)
    # L2A has no cirrus band, and B08 on its own grid only
    if options.level == "L1C":
        return (own,)
    if band.name == "B10":
        return ()
    if band.name == "B08":
        return (own,)
    return tuple(gsd_m for gsd_m in (10, 20, 60) if gsd_m >= own)


def _images(
    view: View, options: SafeOptions
) -> Iterator[tuple[str, NDArray[np.uint8] | NDArray[np.uint16], int]]:
    for band in SENSORS["sentinel2"].bands:
        # once a band: the coarser copies of L2A are means of the same field
        seen = view.reflectance(band.centre_nm, haze=options.level == "L1C")
        for gsd_m in _resolutions(band, options):
            measured = view.measure(seen, gsd_m, band.name)
            yield band.name, digital_numbers(measured, view.outside(gsd_m), options.offset_dn), gsd_m
    if options.level == "L2A":
        yield "SCL", view.scene_classification(20), 20


def digital_numbers(reflectance: Float, outside: NDArray[np.bool_], offset_dn: int) -> NDArray[np.uint16]:
    """Store reflectance [y, x] as the product does: quantified, without the offset, 0 where nothing was measured."""
    # 0 is kept for nodata, so the darkest measurement is stored as 1
    stored = np.rint(reflectance * QUANTIFICATION) - offset_dn
    return np.where(outside, 0, np.clip(stored, 1, LARGEST_DN)).astype(np.uint16)
