"""A simulated Landsat Collection-2 product folder: bands, QA_PIXEL, QA_RADSAT, MTL as text, JSON and XML, and the sums.

The grid shares the upper left corner of the simulated Sentinel-2 product (real Landsat corners lie half a pixel off).
Landsat 7 has the gaps of its failed scan line corrector, with an interpolated rim. Level 1 of TM and ETM+ has 8 bits,
which bright clouds saturate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sensors import SENSORS, Sensor
from preprocessing.simulation.landsat_metadata import GSD_M, Description, write_mtl
from preprocessing.simulation.landsat_stac import write_item
from preprocessing.simulation.noise import Float
from preprocessing.simulation.raster import PLACE, Place, write_landcover, write_tif
from preprocessing.simulation.view import (
    CLASS_CIRRUS,
    CLASS_CLOUD_HIGH,
    CLASS_CLOUD_MEDIUM,
    CLASS_NODATA,
    CLASS_SHADOW,
    CLASS_WATER,
    View,
    make_view,
)

SUN_ELEVATION = 58.5
POLAR_PLACE = Place("EPSG:3031", 1_200_000, -900_000)
"""Antarctica, whose scenes come in polar stereographic instead of UTM."""
RESCALING = {"L2": (2.75e-05, -0.2), "L1": (2.0e-05, -0.1), "L1-8bit": (2.4e-03, -0.005)}
"""Kind of digital number -> factor and summand to reflectance (Level 1 before the sun's height)."""
FILL, CLEAR, CLEAR_WATER, DILATED_CLOUD = 1, 21824, 21952, 21762
QA_VALUES = {
    CLASS_NODATA: FILL,
    CLASS_SHADOW: 23888,
    CLASS_CLOUD_MEDIUM: 22280,
    CLASS_CLOUD_HIGH: 22280,
    CLASS_CIRRUS: 54596,
    CLASS_WATER: CLEAR_WATER,
}
"""Scene classification -> QA_PIXEL value as real products hold it; the rest is `CLEAR`."""
GAP_PERIOD_PX, GAP_SHARE, RIM_PX = 16, 0.5, 2
"""Gaps of Landsat 7: every so many rows, of at most so wide a share of them, with an interpolated rim."""
_SPACECRAFT = {
    "LC08": ("LANDSAT_8", "OLI_TIRS", "landsat_oli"),
    "LC09": ("LANDSAT_9", "OLI_TIRS", "landsat_oli"),
    "LE07": ("LANDSAT_7", "ETM", "landsat_tm"),
    "LT05": ("LANDSAT_5", "TM", "landsat_tm"),
    "LT04": ("LANDSAT_4", "TM", "landsat_tm"),
}
Numbers = NDArray[np.uint16] | NDArray[np.uint8]


@dataclass(frozen=True)
class LandsatOptions:
    """Which Landsat product to simulate."""

    size_px: int
    """Side of the ground's 10 m grid; a multiple of 3."""
    seed: int = 1
    satellite: Literal["LC08", "LC09", "LE07", "LT05", "LT04"] = "LC09"
    level: Literal["L2SP", "L2SR", "L1TP"] = "L2SP"
    polar: bool = False
    """In polar stereographic, as products of Antarctica are."""

    @property
    def sensor(self) -> Sensor:
        """Return the instrument."""
        return SENSORS[_SPACECRAFT[self.satellite][2]]

    @property
    def time(self) -> datetime:
        """Return the acquisition time; it moves with the seed."""
        days = timedelta(days=self.seed % 90, minutes=self.seed // 90)
        return datetime(2024, 6, 2, 10, 4, 12, tzinfo=UTC) + days

    @property
    def name(self) -> str:
        """Return the product's name."""
        return f"{self.satellite}_{self.level}_193026_{self.time:%Y%m%d}_{self.time:%Y%m%d}_02_T1"

    @property
    def place(self) -> Place:
        """Return where it lies."""
        return POLAR_PLACE if self.polar else PLACE

    @property
    def numbers(self) -> str:
        """Return the kind of its digital numbers, a key in `RESCALING`."""
        eight_bits = self.level.startswith("L1") and self.sensor.name == "landsat_tm"
        return "L1-8bit" if eight_bits else self.level[:2]


def write_landsat(
    folder: Path, options: LandsatOptions, written: Callable[[str], None] = lambda name: None
) -> Path:
    """Write one product and its land cover into `folder`; returns the product's path.

    written: is told each image's name when it is done.
    """
    view = make_view(options.size_px, options.seed, options.satellite)
    product, place = folder / options.name, options.place
    # Level 1 is seen from above the air
    haze = options.level.startswith("L1")
    outside = view.outside(GSD_M)
    gaps = scan_gaps(outside.shape[0]) if options.satellite == "LE07" else np.zeros_like(outside)
    saturated = np.zeros(outside.shape, np.uint16)
    for band in options.sensor.bands:
        measured = view.measure(view.reflectance(band.centre_nm, haze), GSD_M, band.name)
        stored = digital_numbers(interpolated(measured, gaps), outside | gaps, options.numbers)
        write_tif(product / _band_file(options, band.name), stored, GSD_M, 0, place)
        # bit n - 1 stands for band n
        saturated[stored == np.iinfo(stored.dtype).max] |= np.uint16(1 << (int(band.name[1:]) - 1))
        written(f"{options.satellite} {band.name}")
    codes = quality(view)
    codes[gaps] = FILL
    write_tif(product / f"{options.name}_QA_PIXEL.TIF", codes, GSD_M, place=place)
    write_tif(product / f"{options.name}_QA_RADSAT.TIF", saturated, GSD_M, place=place)
    write_mtl(product, _describe(options))
    # last: it holds the sums of all others
    write_item(product, options.level, f"{options.time:%Y-%m-%dT%H:%M:%SZ}")
    write_landcover(folder / f"{options.name}_landcover.tif", view.classes(GSD_M), GSD_M, place)
    return product


def image_count(options: LandsatOptions) -> int:
    """Return how many images `write_landsat` reports as written."""
    return len(options.sensor.bands)


def scan_gaps(side_px: int) -> NDArray[np.bool_]:
    """Return the gaps [y, x] of a scan line corrector that is off: wedges that widen from the middle to both edges."""
    rows, columns = np.indices((side_px, side_px))
    width = GAP_PERIOD_PX * GAP_SHARE * np.abs(columns / side_px - 0.5) * 2
    gaps: NDArray[np.bool_] = np.abs(rows % GAP_PERIOD_PX - GAP_PERIOD_PX / 2) < width / 2
    return gaps


def interpolated(measured: Float, gaps: NDArray[np.bool_]) -> Float:
    """Return reflectance [y, x] with the mean of its surroundings in the rim of every gap, as products have it."""
    rim = gaps.copy()
    for shift in range(1, RIM_PX + 1):
        rim[shift:] |= gaps[:-shift]
        rim[:-shift] |= gaps[shift:]
    return np.where(rim, np.float32(measured[~rim].mean()), measured) if gaps.any() else measured


def digital_numbers(reflectance: Float, outside: NDArray[np.bool_], kind: str) -> Numbers:
    """Store reflectance [y, x] (unit 1) as digital numbers [y, x] of a kind in `RESCALING`; 0 is fill."""
    factor, summand = RESCALING[kind]
    # Level 1 is stored without the correction for the sun's height
    sun = math.sin(math.radians(SUN_ELEVATION)) if kind.startswith("L1") else 1.0
    stored = np.rint((reflectance * sun - summand) / factor)
    # 0 is kept for fill, so the darkest measurement is stored as 1
    if kind == "L1-8bit":
        return np.where(outside, 0, np.clip(stored, 1, 255)).astype(np.uint8)
    return np.where(outside, 0, np.clip(stored, 1, 65_535)).astype(np.uint16)


def quality(view: View) -> NDArray[np.uint16]:
    """Return QA_PIXEL [y, x], with clouds dilated by a pixel."""
    classes = view.scene_classification(GSD_M)
    # a table over all codes: a class not listed is clear ground
    table = np.full(256, CLEAR, np.uint16)
    for code, value in QA_VALUES.items():
        table[code] = value
    values = table[classes]
    # real products set the dilated bit without the clear bit
    near = _dilated(np.isin(classes, (CLASS_CLOUD_HIGH, CLASS_CLOUD_MEDIUM)))
    values[near & np.isin(values, (CLEAR, CLEAR_WATER))] = DILATED_CLOUD
    return values


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # by hand: one pixel along the axes is not worth a library
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _band_file(options: LandsatOptions, band: str) -> str:
    # surface reflectance is marked in the name, Level 1 bands are not
    prefix = "SR_" if options.level.startswith("L2") else ""
    return f"{options.name}_{prefix}{band}.TIF"


def _describe(options: LandsatOptions) -> Description:
    spacecraft, instrument, _ = _SPACECRAFT[options.satellite]
    numbers = [band.name[1:] for band in options.sensor.bands]
    first = RESCALING["L1-8bit" if options.sensor.name == "landsat_tm" else "L1"]
    rescaling = {"LEVEL1_RADIOMETRIC_RESCALING": dict.fromkeys(numbers, first)}
    # both groups in a Level-2 file, as real ones have: a trap for flat parsers
    if options.level.startswith("L2"):
        second = dict.fromkeys(numbers, RESCALING["L2"])
        rescaling = {"LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": second} | rescaling
    name = options.name
    quality_files = {
        "FILE_NAME_QUALITY_L1_PIXEL": f"{name}_QA_PIXEL.TIF",
        "FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION": f"{name}_QA_RADSAT.TIF",
        "FILE_NAME_METADATA_ODL": f"{name}_MTL.txt",
        "FILE_NAME_METADATA_XML": f"{name}_MTL.xml",
    }
    files = {f"FILE_NAME_BAND_{number}": _band_file(options, f"B{number}") for number in numbers}
    return Description(
        name=name,
        level=options.level,
        spacecraft=spacecraft,
        instrument=instrument,
        time=options.time,
        sun_elevation=SUN_ELEVATION,
        side_px=options.size_px * 10 // GSD_M,
        place=options.place,
        files=files | quality_files,
        rescaling=rescaling,
    )
