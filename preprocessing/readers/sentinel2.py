"""Sentinel-2 `.SAFE` products, L1C and L2A, as folders and zipped.

Quantification, offset and special values come from the product's own MTD_MSIL1C.xml or MTD_MSIL2A.xml: the sensing
date says nothing about the offset, reprocessed old scenes carry it too. Specification: S2-PDGS-TAS-DI-PSD (ESA).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing import checksums, markup
from preprocessing.readers import packed
from preprocessing.readers.product import (
    Reader,
    Request,
    find_products,
    list_members,
    number,
    product_name,
    read_member,
    share,
)
from preprocessing.readers.sentinel2_bands import (
    BAND_IDS,
    NATIVE,
    OFFSET_TAGS,
    Contents,
    Metadata,
    make_scene,
)
from preprocessing.scenes import Checksum, Scene

MANIFEST = "manifest.safe"
_PRODUCT_NAME = re.compile(r".*\.SAFE(\.zip)?|S2[A-D]_MSIL(1C|2A)_.*\.zip", re.IGNORECASE)
LEVELS = {"MTD_MSIL2A.xml": "L2A", "MTD_MSIL1C.xml": "L1C"}
_IMAGE_FILE = re.compile(r"(GRANULE/[^/]+/IMG_DATA)/(?:R\d+m/)?[^/]*_(B[0-9][0-9A]|SCL)(?:_(\d+)m)?\.jp2")
_QUANTIFICATION = {
    "L2A": ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"),  # the second until baseline 02.06
    "L1C": ("QUANTIFICATION_VALUE",),
}


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the product folders and zips at or below `root`, renamed ones too."""
    return find_products(root, _is_product)


def _is_product(place: Path, names: Collection[str]) -> bool:
    # a .SAFE without its metadata is still a product: it must be refused, not overlooked
    return bool(_PRODUCT_NAME.fullmatch(place.name)) or any(name in LEVELS for name in names)


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one product; raises `SceneError` naming what is missing, refused, altered or contradictory."""
    members = list_members(product)
    # a zip states sums of its own: enough where there is no manifest
    sums = packed.zip_checksums(product) | read_checksums(product, members)
    contents = Contents(
        product=product,
        metadata=read_metadata(product, members, sums),
        members=members,
        images=_images(product, members),
        folder="GRANULE/*/IMG_DATA",
        checksums=sums,
    )
    return make_scene(contents, request, product_name(product), READER.name)


def read_checksums(product: Path, members: Collection[str]) -> dict[str, Checksum]:
    """Read from manifest.safe what the files' bytes sum to, by relative name; nothing where there is no manifest."""
    if MANIFEST not in members:
        return {}
    tree = markup.parse(read_member(product, MANIFEST), f"{product.name}/{MANIFEST}")
    found: dict[str, Checksum] = {}
    for stream in tree.iter("byteStream"):
        place, stated = stream.find("fileLocation"), stream.find("checksum")
        # a file that is not here needs no sum: only requested ones must be here
        name = place.get("href", "").removeprefix("./") if place is not None else ""
        if name in members and stated is not None and stated.text:
            found[name] = Checksum(stated.get("checksumName", ""), stated.text.strip().lower())
    return found


def read_metadata(product: Path, members: Collection[str], sums: Mapping[str, Checksum]) -> Metadata:
    """Read MTD_MSIL2A.xml or MTD_MSIL1C.xml; entities, DTDs and external references are refused."""
    # by file name, not by product name: people rename folders
    name = next((name for name in LEVELS if name in members), None)
    if name is None:
        raise SceneError(f"{product}: neither {' nor '.join(LEVELS)} is there. {_AGAIN}")
    level, where = LEVELS[name], f"{product.name}/{name}"
    data = read_member(product, name)
    checksums.check(data, sums.get(name), where)
    tree = markup.parse(data, where)
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
        offsets=_offsets(tree, OFFSET_TAGS[level], where),
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


def _images(product: Path, members: Collection[str]) -> dict[str, dict[float, str]]:
    """Return layer (B02, SCL) -> pixel size in metres -> relative name."""
    images: dict[str, dict[float, str]] = {}
    granules: set[str] = set()
    for name in members:
        match = _IMAGE_FILE.fullmatch(name)
        if match:
            granules.add(match[1])
            images.setdefault(match[2], {})[float(match[3] or NATIVE)] = name
    # two granules are two grids: one of them would silently win
    if len(granules) > 1:
        raise SceneError(
            f"{product}: holds {len(granules)} granules ({', '.join(sorted(granules))}); products of before"
            " December 2016 are not read. Split it into one product a granule."
        )
    return images


_AGAIN = "Fetch the product again."

READER = Reader(
    "sentinel2",
    ("sentinel2",),
    "Sentinel-2 `*.SAFE` folders or `*.SAFE.zip` with MTD_MSIL2A.xml or MTD_MSIL1C.xml",
    find,
    open_scene,
)
