"""A simulated Landsat Collection-2 product folder: bands, QA_PIXEL, QA_RADSAT and MTL as text and JSON.

The grid shares the upper left corner of the simulated Sentinel-2 product (real Landsat corners lie half a pixel off).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sensors import SENSORS, Sensor
from preprocessing.simulation.noise import Float
from preprocessing.simulation.raster import PLACE, write_landcover, write_tif
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

GSD_M = 30
SUN_ELEVATION = 58.5
RESCALING = {"L2SP": (2.75e-05, -0.2), "L1TP": (2.0e-05, -0.1)}
"""Level -> factor and summand from digital number to reflectance (Level 1 before the sun's height)."""
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
_SPACECRAFT = {
    "LC08": ("LANDSAT_8", "OLI_TIRS", "landsat_oli"),
    "LC09": ("LANDSAT_9", "OLI_TIRS", "landsat_oli"),
    "LE07": ("LANDSAT_7", "ETM", "landsat_tm"),
    "LT05": ("LANDSAT_5", "TM", "landsat_tm"),
}
Groups = dict[str, dict[str, str | int | float]]


@dataclass(frozen=True)
class LandsatOptions:
    """Which Landsat product to simulate."""

    size_px: int
    """Side of the ground's 10 m grid; a multiple of 3."""
    seed: int = 1
    satellite: Literal["LC08", "LC09", "LE07", "LT05"] = "LC09"
    level: Literal["L2SP", "L1TP"] = "L2SP"

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


def write_landsat(
    folder: Path, options: LandsatOptions, written: Callable[[str], None] = lambda name: None
) -> Path:
    """Write one product and its land cover into `folder`; returns the product's path.

    written: is told each image's name when it is done.
    """
    view = make_view(options.size_px, options.seed, options.satellite)
    product = folder / options.name
    # Level 1 is seen from above the air
    haze = options.level == "L1TP"
    outside = view.outside(GSD_M)
    for band in options.sensor.bands:
        measured = view.measure(view.reflectance(band.centre_nm, haze), GSD_M, band.name)
        write_tif(
            product / _band_file(options, band.name),
            digital_numbers(measured, outside, options.level),
            GSD_M,
            0,
        )
        written(f"{options.satellite} {band.name}")
    write_tif(product / f"{options.name}_QA_PIXEL.TIF", quality(view), GSD_M)
    write_tif(product / f"{options.name}_QA_RADSAT.TIF", np.zeros(outside.shape, np.uint16), GSD_M)
    groups = _metadata(options)
    (product / f"{options.name}_MTL.txt").write_text(mtl_text(groups), encoding="ascii")
    (product / f"{options.name}_MTL.json").write_text(
        json.dumps({"LANDSAT_METADATA_FILE": _as_text(groups)}), "ascii"
    )
    write_landcover(folder / f"{options.name}_landcover.tif", view.classes(GSD_M), GSD_M)
    return product


def image_count(options: LandsatOptions) -> int:
    """Return how many images `write_landsat` reports as written."""
    return len(options.sensor.bands)


def digital_numbers(reflectance: Float, outside: NDArray[np.bool_], level: str) -> NDArray[np.uint16]:
    """Store reflectance [y, x] (unit 1) as the product's digital numbers [y, x]; 0 is fill."""
    factor, summand = RESCALING[level]
    # Level 1 is stored without the correction for the sun's height
    sun = math.sin(math.radians(SUN_ELEVATION)) if level == "L1TP" else 1.0
    stored = np.rint((reflectance * sun - summand) / factor)
    # 0 is kept for fill, so the darkest measurement is stored as 1
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
    prefix = "SR_" if options.level == "L2SP" else ""
    return f"{options.name}_{prefix}{band}.TIF"


def _metadata(options: LandsatOptions) -> Groups:
    """Return the MTL's groups; the rescaling of Level 1 repeats the keys of Level 2 with other values."""
    groups: Groups = {
        "PRODUCT_CONTENTS": _contents(options),
        "IMAGE_ATTRIBUTES": _image_attributes(options),
        "PROJECTION_ATTRIBUTES": _projection(options),
    }
    # both groups in a Level-2 file, as real ones have: a trap for flat parsers
    if options.level == "L2SP":
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = _rescaling(options.sensor, "L2SP")
    groups["LEVEL1_RADIOMETRIC_RESCALING"] = _rescaling(options.sensor, "L1TP")
    return groups


def _contents(options: LandsatOptions) -> dict[str, str | int | float]:
    files = {f"FILE_NAME_BAND_{b.name[1:]}": _band_file(options, b.name) for b in options.sensor.bands}
    return {
        "ORIGIN": "Simulated scene: no satellite took it",
        "LANDSAT_PRODUCT_ID": options.name,
        "PROCESSING_LEVEL": options.level,
        "COLLECTION_NUMBER": 2,
        "COLLECTION_CATEGORY": "T1",
        "OUTPUT_FORMAT": "GEOTIFF",
        **files,
        "FILE_NAME_QUALITY_L1_PIXEL": f"{options.name}_QA_PIXEL.TIF",
        "FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION": f"{options.name}_QA_RADSAT.TIF",
        "FILE_NAME_METADATA_ODL": f"{options.name}_MTL.txt",
    }


def _image_attributes(options: LandsatOptions) -> dict[str, str | int | float]:
    spacecraft, instrument, _ = _SPACECRAFT[options.satellite]
    return {
        "SPACECRAFT_ID": spacecraft,
        "SENSOR_ID": instrument,
        "WRS_PATH": 193,
        "WRS_ROW": 26,
        "DATE_ACQUIRED": f"{options.time:%Y-%m-%d}",
        "SCENE_CENTER_TIME": f"{options.time:%H:%M:%S}.0000000Z",
        "SUN_ELEVATION": SUN_ELEVATION,
    }


def _projection(options: LandsatOptions) -> dict[str, str | int | float]:
    side = options.size_px * 10 // GSD_M
    return {
        "MAP_PROJECTION": "UTM",
        "DATUM": "WGS84",
        "UTM_ZONE": int(PLACE.crs[-2:]),
        "GRID_CELL_SIZE_REFLECTIVE": float(GSD_M),
        "REFLECTIVE_LINES": side,
        "REFLECTIVE_SAMPLES": side,
    }


def _rescaling(sensor: Sensor, level: str) -> dict[str, str | int | float]:
    factor, summand = RESCALING[level]
    return {
        f"REFLECTANCE_{kind}_BAND_{band.name[1:]}": value
        for kind, value in (("MULT", factor), ("ADD", summand))
        for band in sensor.bands
    }


def mtl_text(groups: Groups) -> str:
    """Write groups as an MTL.txt (ODL)."""
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for name, pairs in groups.items():
        lines.append(f"  GROUP = {name}")
        lines += [f"    {key} = {_odl(value)}" for key, value in pairs.items()]
        lines.append(f"  END_GROUP = {name}")
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END", ""])


def _odl(value: str | int | float) -> str:
    # ODL quotes texts but no dates
    bare_date = isinstance(value, str) and len(value) == 10 and value[4:5] == value[7:8] == "-"
    return f'"{value}"' if isinstance(value, str) and not bare_date else str(value)


def _as_text(groups: Groups) -> dict[str, dict[str, str]]:
    return {name: {key: str(value) for key, value in pairs.items()} for name, pairs in groups.items()}
