"""Sentinel-2 `.SAFE` products, L1C and L2A.

Quantification, offset and special values come from the product's own MTD_MSIL1C.xml or MTD_MSIL2A.xml: the sensing
date says nothing about the offset, reprocessed old scenes carry it too. Specification: S2-PDGS-TAS-DI-PSD (ESA).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SceneError
from pipeline.sample import Flag
from preprocessing import markup
from preprocessing.readers.product import (
    Reader,
    Request,
    choose_gsd,
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

BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""The specification's `band_id` counts these from 0."""
SCL_FLAGS = {
    0: Flag.NODATA,
    1: Flag.SATURATED,  # saturated or defective
    3: Flag.SHADOW,
    8: Flag.CLOUD,  # medium probability
    9: Flag.CLOUD,  # high probability
    10: Flag.CIRRUS,
    11: Flag.SNOW,
}
FIRST_BASELINE_WITH_OFFSET = 4.0
NATIVE = 0.0
"""Pixel size of a file whose name has none (L1C: one file a band)."""

_PRODUCT_NAME = re.compile(r".*\.SAFE(\.zip)?|S2[A-D]_MSIL(1C|2A)_.*\.zip", re.IGNORECASE)
_LEVELS = {"MTD_MSIL2A.xml": "L2A", "MTD_MSIL1C.xml": "L1C"}
_IMAGE_FILE = re.compile(r"(GRANULE/[^/]+/IMG_DATA)/(?:R\d+m/)?[^/]*_(B[0-9][0-9A]|SCL)(?:_(\d+)m)?\.jp2")
_QUANTIFICATION = {
    "L2A": ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"),  # the second until baseline 02.06
    "L1C": ("QUANTIFICATION_VALUE",),
}
_OFFSET = {"L2A": "BOA_ADD_OFFSET", "L1C": "RADIO_ADD_OFFSET"}


@dataclass(frozen=True)
class Metadata:
    """What MTD_MSI*.xml says about the pixels."""

    level: str
    baseline: str
    acquired: str
    quantification: float
    """DN per unit of reflectance."""
    offsets: Mapping[str, float]
    """Band -> DN to add before dividing by the quantification; empty before baseline 04.00."""
    nodata_dn: int
    saturated_dn: int | None
    cloud_share: float | None = None
    generated: str = ""
    """When the product was made."""


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the product folders and zips at or below `root`, renamed ones too."""
    return find_products(root, _is_product)


def _is_product(place: Path, names: Collection[str]) -> bool:
    # a .SAFE without its metadata is still a product: it must be refused, not overlooked
    return bool(_PRODUCT_NAME.fullmatch(place.name)) or any(name in _LEVELS for name in names)


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one product; raises `SceneError` naming what is missing, refused or contradictory."""
    members = list_members(product)
    metadata = read_metadata(product, members)
    files = _image_files(product, members)
    return Scene(
        id=scene_id(product_name(product)),
        sensor=request.sensor.name,
        level=metadata.level,
        reader=READER.name,
        location=product,
        acquired=metadata.acquired,
        bands=tuple(_source(product, files, metadata, band, request) for band in request.bands),
        masks=_masks(product, files, metadata.level, request),
        labels=labels_beside(product),
        licence=request.sensor.licence,
        cloud_share=metadata.cloud_share,
        version=f"{metadata.baseline} {metadata.generated}",
        notes=_notes(metadata, request),
    )


def read_metadata(product: Path, members: Collection[str]) -> Metadata:
    """Read MTD_MSIL2A.xml or MTD_MSIL1C.xml; entities, DTDs and external references are refused."""
    # by file name, not by product name: people rename folders
    name = next((name for name in _LEVELS if name in members), None)
    if name is None:
        raise SceneError(f"{product}: neither {' nor '.join(_LEVELS)} is there. {_AGAIN}")
    level, where = _LEVELS[name], f"{product.name}/{name}"
    tree = markup.parse(read_member(product, name), where)
    special = {
        markup.text(v, "SPECIAL_VALUE_TEXT"): markup.text(v, "SPECIAL_VALUE_INDEX")
        for v in tree.iter("Special_Values")
    }
    saturated = special.get("SATURATED")
    return Metadata(
        level=level,
        baseline=markup.text(tree, "PROCESSING_BASELINE") or "unknown",
        acquired=markup.text(tree, "PRODUCT_START_TIME") or "",
        quantification=_quantification(tree, level, where),
        offsets=_offsets(tree, _OFFSET[level], where),
        nodata_dn=int(number(special.get("NODATA") or "0", "NODATA", where)),
        saturated_dn=int(number(saturated, "SATURATED", where)) if saturated else None,
        cloud_share=share(markup.text(tree, "Cloud_Coverage_Assessment"), "Cloud_Coverage_Assessment", where),
        generated=markup.text(tree, "GENERATION_TIME") or "",
    )


def _quantification(tree: markup.Element, level: str, where: str) -> float:
    text = next(filter(None, (markup.text(tree, tag) for tag in _QUANTIFICATION[level])), None)
    value = number(text, _QUANTIFICATION[level][0], where)
    if not value > 0:
        raise SceneError(f"{where}: {_QUANTIFICATION[level][0]} is {value}, it must be positive. {_AGAIN}")
    return value


def _offsets(tree: markup.Element, tag: str, where: str) -> dict[str, float]:
    found: dict[str, float] = {}
    # the list may be in any order and the values may differ by band
    for element in tree.iter(tag):
        band_id = int(number(element.get("band_id"), f"band_id of {tag}", where))
        if 0 <= band_id < len(BAND_IDS):
            found[BAND_IDS[band_id]] = number(element.text, f"{tag} of {BAND_IDS[band_id]}", where)
    return found


def _image_files(product: Path, members: Mapping[str, str]) -> dict[str, dict[float, str]]:
    """Return layer (B02, SCL) -> pixel size in metres -> what rasterio opens."""
    files: dict[str, dict[float, str]] = {}
    granules: set[str] = set()
    for name, path in members.items():
        match = _IMAGE_FILE.fullmatch(name)
        if match:
            granules.add(match[1])
            files.setdefault(match[2], {})[float(match[3] or NATIVE)] = path
    # two granules are two grids: one of them would silently win
    if len(granules) > 1:
        raise SceneError(
            f"{product}: holds {len(granules)} granules ({', '.join(sorted(granules))}); products of before"
            " December 2016 are not read. Split it into one product a granule."
        )
    return files


def _source(
    product: Path, files: Mapping[str, Mapping[float, str]], metadata: Metadata, band: str, request: Request
) -> BandSource:
    if band not in files:
        raise missing_band(product, band, "GRANULE/*/IMG_DATA", _present(files))
    return BandSource(
        name=band,
        path=choose_gsd(files[band], request.gsd_m),
        scale=1 / metadata.quantification,
        offset=_offset(product, metadata, band, request) / metadata.quantification,
        nodata_dn=metadata.nodata_dn,
        saturated_dn=metadata.saturated_dn,
    )


def _offset(product: Path, metadata: Metadata, band: str, request: Request) -> float:
    """Return the DN to add for one band."""
    # before 04.00 there is no list and nothing to add; from 04.00 on a missing list is damage
    if request.offset == "applied" or not (metadata.offsets or _must_have_offset(metadata)):
        return 0.0
    if band not in metadata.offsets:
        raise SceneError(
            f"{product.name}: processing baseline {metadata.baseline} has {_OFFSET[metadata.level]} for every band,"
            f" and the metadata has none for {band}. {_AGAIN} Where it was applied already, set `offset: applied`."
        )
    return metadata.offsets[band]


def _must_have_offset(metadata: Metadata) -> bool:
    try:
        return float(metadata.baseline) >= FIRST_BASELINE_WITH_OFFSET
    except ValueError:  # test data sets carry baselines like `unknown`
        return False


def _present(files: Mapping[str, Mapping[float, str]]) -> list[str]:
    return [
        f"{layer} ({', '.join(f'{size:g} m' for size in sorted(sizes))})" if NATIVE not in sizes else layer
        for layer, sizes in sorted(files.items())
        if layer in BAND_IDS
    ]


def _masks(
    product: Path, files: Mapping[str, Mapping[float, str]], level: str, request: Request
) -> tuple[MaskSource, ...]:
    if level != "L2A":
        return ()
    if "SCL" not in files:
        raise SceneError(
            f"{product.name}: no scene classification (SCL) in {product}/GRANULE/*/IMG_DATA. {_AGAIN}"
        )
    return (MaskSource(choose_gsd(files["SCL"], request.gsd_m), classes=dict(SCL_FLAGS)),)


def _notes(metadata: Metadata, request: Request) -> tuple[str, ...]:
    values = sorted(set(metadata.offsets.values()))
    stated = ", ".join(f"{value:g}" for value in values) or "none"
    used = "not used (offset: applied)" if request.offset == "applied" else "used"
    notes = [f"processing baseline {metadata.baseline}", f"{_OFFSET[metadata.level]} {stated}, {used}"]
    return (*notes, "no cloud mask: L1C has no SCL") if metadata.level == "L1C" else tuple(notes)


_AGAIN = "Fetch the product again."

READER = Reader(
    "sentinel2",
    ("sentinel2",),
    "Sentinel-2 `*.SAFE` folders or `*.SAFE.zip` with MTD_MSIL2A.xml or MTD_MSIL1C.xml",
    find,
    open_scene,
)
