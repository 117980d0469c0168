"""Landsat Collection 2 products, folders and tars, Level 2 (L2SP, L2SR) and Level 1, Landsat 4 to 9.

Rescaling comes from the MTL by group: it names REFLECTANCE_MULT_BAND_1 twice, once for each level. Specification:
LSDS-1618 and LSDS-1619 (Level 2 format), LSDS-1822 (Level 1 format), USGS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SceneError
from pipeline.sample import Flag
from pipeline.sensors import Sensor
from preprocessing.readers import landsat_mtl, landsat_sums
from preprocessing.readers.landsat_mtl import AGAIN, Metadata
from preprocessing.readers.product import (
    Reader,
    Request,
    find_products,
    labels_beside,
    list_members,
    missing_band,
    number,
    product_name,
    scene_id,
    share,
)
from preprocessing.scenes import BandSource, Checksum, MaskSource, Scene

QA_PIXEL_BITS = {
    0: Flag.NODATA,
    1: Flag.CLOUD,  # dilated cloud
    2: Flag.CIRRUS,
    3: Flag.CLOUD,
    4: Flag.SHADOW,
    5: Flag.SNOW,
}
SATELLITES = {"landsat_oli": "89", "landsat_tm": "457"}
"""Sensor -> digits of the satellites that carry it."""
_PRODUCT_NAME = re.compile(r"L[COTE]0([4-9])_L[12][A-Z]{2}_\d{6}_\d{8}_\d{8}_\d{2}_(?:T1|T2|RT).*")
DROPPED_PIXEL_BIT = 9
"""Of the saturation layer of TM and ETM+: the detector has no value."""
SLC_FAILED = "2003-05-31"
"""From then on Landsat 7 images have wedge-shaped gaps."""
FRINGE_PX = 2
"""Pixels round those gaps are interpolated across them."""


@dataclass(frozen=True)
class Files:
    """The files of a product."""

    product: Path
    members: Mapping[str, str]
    """Relative name -> what rasterio opens."""
    sums: Mapping[str, Checksum]
    """Relative name -> what the product says its bytes sum to."""


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the product folders and tars of a sensor's satellites at or below `root`."""
    digits = SATELLITES[request.sensor.name]

    def is_product(place: Path, names: Collection[str]) -> bool:
        # a folder without its MTL is still a product: it must be refused, not overlooked
        matches = [landsat_mtl.NAME.fullmatch(name) for name in names] + [_PRODUCT_NAME.fullmatch(place.name)]
        return any(match and match[1] in digits for match in matches)

    return find_products(root, is_product)


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one product folder; raises `SceneError` naming what is missing or cannot be used."""
    members = list_members(product)
    files = Files(product, members, landsat_sums.read(product, members))
    metadata = landsat_mtl.read(product, members, files.sums)
    contents = _group(metadata, "PRODUCT_CONTENTS", product)
    _check_instrument(metadata, request.sensor, product)
    level = contents.get("PROCESSING_LEVEL", "")
    if level[:2] not in ("L1", "L2"):
        raise SceneError(
            f"{product.name}: the MTL's PROCESSING_LEVEL is {level!r}, not Level 1 or 2. {AGAIN}"
        )
    return Scene(
        id=scene_id(product_name(product)),
        sensor=request.sensor.name,
        level=level,
        reader=READER.name,
        location=product,
        acquired=_acquired(metadata, product),
        bands=_bands(files, metadata, request),
        masks=_masks(files, metadata, request),
        labels=labels_beside(product),
        licence=request.sensor.licence,
        cloud_share=share(metadata["IMAGE_ATTRIBUTES"].get("CLOUD_COVER"), "CLOUD_COVER", product.name),
        # the records of both levels hold one; the later is this product's
        version=max(group.get("DATE_PRODUCT_GENERATED", "") for group in metadata.values()),
        notes=_notes(metadata),
    )


def _group(metadata: Metadata, name: str, product: Path) -> dict[str, str]:
    if name not in metadata:
        raise SceneError(
            f"{product.name}: the MTL has no group {name}; Collection 2 products have it. {AGAIN}"
        )
    return metadata[name]


def _check_instrument(metadata: Metadata, sensor: Sensor, product: Path) -> None:
    image = _group(metadata, "IMAGE_ATTRIBUTES", product)
    spacecraft, instrument = image.get("SPACECRAFT_ID", ""), image.get("SENSOR_ID", "")
    # Landsat 4 and 5 also carried MSS, whose bands have the same numbers and other wavelengths
    if spacecraft[-1:] not in SATELLITES[sensor.name] or instrument == "MSS":
        raise SceneError(
            f"{product.name}: made by {spacecraft} {instrument}, not by {sensor.title}. Set `sensor` to match."
        )


def _acquired(metadata: Metadata, product: Path) -> str:
    # nothing hangs on the time of day, so that a scene without one is no loss
    image = _group(metadata, "IMAGE_ATTRIBUTES", product)
    date, time = image.get("DATE_ACQUIRED"), image.get("SCENE_CENTER_TIME", "")
    if not date:
        raise SceneError(f"{product.name}: the MTL has no DATE_ACQUIRED. {AGAIN}")
    return f"{date}T{time}" if time else date


def _rescaling_group(level: str) -> str:
    return (
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS" if level.startswith("L2") else "LEVEL1_RADIOMETRIC_RESCALING"
    )


def _bands(files: Files, metadata: Metadata, request: Request) -> tuple[BandSource, ...]:
    product, members = files.product, files.members
    contents = metadata["PRODUCT_CONTENTS"]
    level = contents.get("PROCESSING_LEVEL", "")
    rescaling = _group(metadata, _rescaling_group(level), product)
    # Level 1 reflectance is stored without the correction for the sun's height
    divisor = 1.0 if level.startswith("L2") else _sine_of_sun(metadata, product)

    def source(band: str) -> BandSource:
        digit = band.removeprefix("B")
        # the MTL is the authority on names; what it names must be a member of this folder
        name = contents.get(f"FILE_NAME_BAND_{digit}", "")
        if name not in members:
            raise missing_band(product, band, "", _present(members))
        scale, offset = (
            number(rescaling.get(key), key, f"{product.name} ({_rescaling_group(level)})")
            for key in (f"REFLECTANCE_MULT_BAND_{digit}", f"REFLECTANCE_ADD_BAND_{digit}")
        )
        return BandSource(
            band, members[name], scale / divisor, offset / divisor, checksum=files.sums.get(name)
        )

    return tuple(source(band) for band in request.bands)


def _sine_of_sun(metadata: Metadata, product: Path) -> float:
    elevation = number(metadata["IMAGE_ATTRIBUTES"].get("SUN_ELEVATION"), "SUN_ELEVATION", product.name)
    if elevation <= 0:
        raise SceneError(
            f"{product.name}: taken at night (SUN_ELEVATION {elevation}); there is no reflectance in it."
        )
    return math.sin(math.radians(elevation))


def _present(members: Collection[str]) -> list[str]:
    return sorted(match[1] for match in (re.search(r"_(B\d+)\.TIF$", name) for name in members) if match)


def _masks(files: Files, metadata: Metadata, request: Request) -> tuple[MaskSource, ...]:
    """QA_PIXEL for fill, cloud, shadow and snow; QA_RADSAT for the saturation of the requested bands."""

    def source(key: str, bits: Mapping[int, Flag], grow_px: int = 0) -> MaskSource:
        name = metadata["PRODUCT_CONTENTS"].get(key, "")
        if name not in files.members:
            raise SceneError(
                f"{files.product.name}: the quality layer {name or key} is not in {files.product}. {AGAIN}"
            )
        stated = files.sums.get(name)
        return MaskSource(files.members[name], bits=dict(bits), grow_nodata_px=grow_px, checksum=stated)

    fringe_px = FRINGE_PX if _has_gaps(metadata) else 0
    return (
        source("FILE_NAME_QUALITY_L1_PIXEL", QA_PIXEL_BITS, fringe_px),
        source("FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION", saturation_bits(request)),
    )


def saturation_bits(request: Request) -> dict[int, Flag]:
    """Return what the bits of QA_RADSAT mean for the requested bands."""
    # bit n - 1 stands for band n; bits of bands that were not asked for are left alone
    bits = {int(band.removeprefix("B")) - 1: Flag.SATURATED for band in request.bands}
    return bits | ({DROPPED_PIXEL_BIT: Flag.NODATA} if request.sensor.name == "landsat_tm" else {})


def _has_gaps(metadata: Metadata) -> bool:
    image = metadata["IMAGE_ATTRIBUTES"]
    return has_gaps(image.get("SPACECRAFT_ID", ""), image.get("DATE_ACQUIRED", ""))


def has_gaps(satellite: str, acquired: str) -> bool:
    """Say whether an image has the gaps of the failed scan line corrector; `acquired` begins with an ISO date."""
    # ISO dates sort as texts
    return bool(re.fullmatch(r"landsat\D*7", satellite.lower())) and acquired >= SLC_FAILED


def _notes(metadata: Metadata) -> tuple[str, ...]:
    level = metadata["PRODUCT_CONTENTS"].get("PROCESSING_LEVEL", "")
    notes = [f"{_rescaling_group(level)} of the MTL"]
    if not level.startswith("L2"):
        notes.append(
            f"divided by the sine of the sun's elevation {metadata['IMAGE_ATTRIBUTES']['SUN_ELEVATION']}"
        )
    if _has_gaps(metadata):
        notes.append(f"gaps of the failed scan line corrector widened by {FRINGE_PX} px")
    return tuple(notes)


READER = Reader(
    "landsat",
    ("landsat_oli", "landsat_tm"),
    "Landsat Collection-2 product folders or `.tar` with `*_MTL.txt` (or .json, .xml) and `*_SR_B*.TIF` (Level 2)"
    " or `*_B*.TIF` (Level 1)",
    find,
    open_scene,
)
