"""Landsat Collection 2 product folders, Level 2 (L2SP, L2SR) and Level 1, Landsat 4 to 9.

Rescaling comes from the MTL by group: it names REFLECTANCE_MULT_BAND_1 twice, once for each level. Specification:
LSDS-1618 and LSDS-1619 (Level 2 format), LSDS-1822 (Level 1 format), USGS.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import SceneError
from pipeline.sample import Flag
from pipeline.sensors import Sensor
from preprocessing.readers.product import (
    Reader,
    Request,
    find_products,
    labels_beside,
    list_members,
    missing_band,
    number,
    product_name,
    read_member,
    scene_id,
    share,
)
from preprocessing.scenes import BandSource, MaskSource, Scene

Metadata = dict[str, dict[str, str]]
"""Group -> key -> value, all as text."""

QA_PIXEL_BITS = {
    0: Flag.NODATA,
    1: Flag.CLOUD,  # dilated cloud
    2: Flag.CIRRUS,
    3: Flag.CLOUD,
    4: Flag.SHADOW,
    5: Flag.SNOW,
}
_SENSOR_DIGITS = {"landsat_oli": "89", "landsat_tm": "457"}
_PRODUCT_NAME = re.compile(r"L[COTE]0([4-9])_L[12][A-Z]{2}_\d{6}_\d{8}_\d{8}_\d{2}_(?:T1|T2|RT).*")
_METADATA_NAME = re.compile(r"L[COTE]0([4-9])_.*_MTL\.(?:txt|json)", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"^\s*(\w+)\s*=\s*(.*?)\s*$")


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the product folders and tars of a sensor's satellites at or below `root`."""
    digits = _SENSOR_DIGITS[request.sensor.name]

    def is_product(place: Path, names: Collection[str]) -> bool:
        # a folder without its MTL is still a product: it must be refused, not overlooked
        matches = [_METADATA_NAME.fullmatch(name) for name in names] + [_PRODUCT_NAME.fullmatch(place.name)]
        return any(match and match[1] in digits for match in matches)

    return find_products(root, is_product)


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one product folder; raises `SceneError` naming what is missing or cannot be used."""
    members = list_members(product)
    metadata = _read_metadata(product, members)
    contents = _group(metadata, "PRODUCT_CONTENTS", product)
    _check_instrument(metadata, request.sensor, product)
    level = contents.get("PROCESSING_LEVEL", "")
    return Scene(
        id=scene_id(product_name(product)),
        sensor=request.sensor.name,
        level=level,
        reader=READER.name,
        location=product,
        acquired=_acquired(metadata, product),
        bands=_bands(product, members, metadata, request),
        masks=_masks(product, members, contents, request.bands),
        labels=labels_beside(product),
        licence=request.sensor.licence,
        cloud_share=share(metadata["IMAGE_ATTRIBUTES"].get("CLOUD_COVER"), "CLOUD_COVER", product.name),
        # the records of both levels hold one; the later is this product's
        version=max(group.get("DATE_PRODUCT_GENERATED", "") for group in metadata.values()),
        notes=(f"{_rescaling_group(level)} of the MTL",),
    )


def _read_metadata(product: Path, members: Collection[str]) -> Metadata:
    """Read the MTL, as text where it stands, else as JSON."""
    # both forms stand in a product and say the same; text is what all collections have
    names = [name for name in members if _METADATA_NAME.fullmatch(name)]
    texts = [name for name in names if name.lower().endswith(".txt")] or names
    if len(texts) != 1:
        found = ", ".join(texts) or "none"
        raise SceneError(
            f"{product}: one *_MTL.txt or *_MTL.json is needed, found {found}. One folder a product."
        )
    text = read_member(product, texts[0]).decode("utf-8", errors="replace")
    where = f"{product.name}/{texts[0]}"
    return parse_mtl(text, where) if texts[0].lower().endswith(".txt") else _parse_json(text, where)


def parse_mtl(text: str, where: str) -> Metadata:
    """Parse an MTL.txt (ODL) into group -> key -> value; `where` names the file in errors.

    Raises `SceneError` where it ends before its last group is closed: a truncated file must not pass.
    """
    groups: Metadata = {}
    open_groups: list[str] = []
    for match in filter(None, map(_ASSIGNMENT.match, text.splitlines())):
        key, value = match[1], match[2].strip('"')
        # the same keys occur in several groups, so a flat reading would mix the levels
        if key == "GROUP":
            open_groups.append(value)
            groups.setdefault(value, {})
        elif key == "END_GROUP":
            open_groups = open_groups[:-1]
        elif open_groups:
            groups[open_groups[-1]][key] = value
    if open_groups or not groups:
        raise SceneError(
            f"{where}: not a whole MTL file (group {' > '.join(open_groups) or '-'} is not closed). {_AGAIN}"
        )
    return groups


def _parse_json(text: str, where: str) -> Metadata:
    try:
        tree = json.loads(text)
        return {
            group: {key: str(value) for key, value in pairs.items()}
            for group, pairs in tree["LANDSAT_METADATA_FILE"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{where}: not a Collection-2 MTL ({error!r}). {_AGAIN}") from error


def _group(metadata: Metadata, name: str, product: Path) -> dict[str, str]:
    if name not in metadata:
        raise SceneError(
            f"{product.name}: the MTL has no group {name}; Collection 2 products have it. {_AGAIN}"
        )
    return metadata[name]


def _check_instrument(metadata: Metadata, sensor: Sensor, product: Path) -> None:
    image = _group(metadata, "IMAGE_ATTRIBUTES", product)
    spacecraft, instrument = image.get("SPACECRAFT_ID", ""), image.get("SENSOR_ID", "")
    # Landsat 4 and 5 also carried MSS, whose bands have the same numbers and other wavelengths
    if spacecraft[-1:] not in _SENSOR_DIGITS[sensor.name] or instrument == "MSS":
        raise SceneError(
            f"{product.name}: made by {spacecraft} {instrument}, not by {sensor.title}. Set `sensor` to match."
        )


def _acquired(metadata: Metadata, product: Path) -> str:
    # nothing hangs on the time of day, so that a scene without one is no loss
    image = _group(metadata, "IMAGE_ATTRIBUTES", product)
    date, time = image.get("DATE_ACQUIRED"), image.get("SCENE_CENTER_TIME", "")
    if not date:
        raise SceneError(f"{product.name}: the MTL has no DATE_ACQUIRED. {_AGAIN}")
    return f"{date}T{time}" if time else date


def _rescaling_group(level: str) -> str:
    return (
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS" if level.startswith("L2") else "LEVEL1_RADIOMETRIC_RESCALING"
    )


def _bands(
    product: Path, members: dict[str, str], metadata: Metadata, request: Request
) -> tuple[BandSource, ...]:
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
        return BandSource(band, members[name], scale / divisor, offset / divisor)

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


def _masks(
    product: Path, members: dict[str, str], contents: dict[str, str], bands: Sequence[str]
) -> tuple[MaskSource, ...]:
    """QA_PIXEL for fill, cloud, shadow and snow; QA_RADSAT for the saturation of the requested bands."""

    def path(key: str) -> str:
        name = contents.get(key, "")
        if name not in members:
            raise SceneError(f"{product.name}: the quality layer {name or key} is not in {product}. {_AGAIN}")
        return members[name]

    # bit n - 1 stands for band n; bits of bands that were not asked for are left alone
    saturated = {int(band.removeprefix("B")) - 1: Flag.SATURATED for band in bands}
    return (
        MaskSource(path("FILE_NAME_QUALITY_L1_PIXEL"), bits=dict(QA_PIXEL_BITS)),
        MaskSource(path("FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION"), bits=saturated),
    )


_AGAIN = "Fetch the product again."

READER = Reader(
    "landsat",
    ("landsat_oli", "landsat_tm"),
    "Landsat Collection-2 product folders or `.tar` with `*_MTL.txt` and `*_SR_B*.TIF` (Level 2) or `*_B*.TIF` (Level 1)",
    find,
    open_scene,
)
