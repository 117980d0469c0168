"""Sentinel-2 `.SAFE` products, L1C and L2A, as folders and zipped.

Quantification, offset and special values come from the product's own MTD_MSIL1C.xml or MTD_MSIL2A.xml: the sensing
date says nothing about the offset, reprocessed old scenes carry it too. Until December 2016 products had other names,
and several granules, each a tile on a grid of its own: each is a scene, `X.SAFE/GRANULE/<granule>`, with time and
clouds of its own metadata. Specification: S2-PDGS-TAS-DI-PSD (ESA).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing import checksums, markup
from preprocessing.readers import packed
from preprocessing.readers.product import (
    Reader,
    Request,
    find_products,
    labels_beside,
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
_PRODUCT_NAME = re.compile(
    r".*\.SAFE(\.zip)?|S2[A-D]_(MSIL(1C|2A)|(OPER|USER)_PRD_MSIL(1C|2A))_.*\.zip", re.IGNORECASE
)
_METADATA = re.compile(r"(?:MTD_MSI|S2[A-D]_(?:OPER|USER)_MTD_SAF)(L1C|L2A)(?:_.*)?\.xml")
_TILE_METADATA = re.compile(r"(GRANULE/[^/]+/)(?:MTD_TL|S2[A-D]_(?:OPER|USER)_MTD_L(?:1C|2A)_TL_[^/]*)\.xml")
_IMAGE_FILE = re.compile(r"(?:R\d+m/)?[^/]*_(B[0-9][0-9A]|SCL)(?:_(\d+)m)?\.jp2")
_GRANULE = re.compile(r"L(?:1C|2A)_T\w{5}_.*|S2[A-D]_(?:OPER|USER)_MSI_L(?:1C|2A)_TL_.*")
_QUANTIFICATION = {
    "L2A": ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"),  # the second until baseline 02.06
    "L1C": ("QUANTIFICATION_VALUE",),
}


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the product folders and zips at or below `root`, renamed ones too; of several granules, each."""
    return [scene for product in find_products(root, _is_product) for scene in _scenes(product)]


def _is_product(place: Path, names: Collection[str]) -> bool:
    # a .SAFE without its metadata is still a product: it must be refused, not overlooked
    return bool(_PRODUCT_NAME.fullmatch(place.name)) or any(_METADATA.fullmatch(name) for name in names)


def _scenes(product: Path) -> Iterator[Path]:
    """Yield the product, or each of its granules where it has several."""
    try:
        parts = [name.split("/") for name in _listing(product)]
    except SceneError:
        # whoever opens it says so
        parts = []
    # more than the folder: an empty one is what an unfinished copy leaves
    granules = sorted({part[1] for part in parts if part[0] == "GRANULE" and len(part) > 2})
    if len(granules) > 1:
        yield from (product / "GRANULE" / name for name in granules)
    else:
        yield product


def _listing(product: Path) -> Collection[str]:
    # a folder's granules are seen without walking through all their files
    if packed.is_packed(product):
        return list_members(product)
    return [f"GRANULE/{path.parent.name}/{path.name}" for path in product.glob("GRANULE/*/*")]


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one product, or one granule of several; raises `SceneError` naming what cannot be used."""
    granule = product.name if _is_granule(product) else ""
    root = product.parent.parent if granule else product
    members = list_members(root)
    # a zip states sums of its own: enough where there is no manifest
    sums = packed.zip_checksums(root) | read_checksums(root, members)
    metadata = read_metadata(root, members, sums)
    if granule:
        members = {name: place for name, place in members.items() if name.startswith(f"GRANULE/{granule}/")}
        metadata = _of_granule(metadata, root, members, sums)
    contents = Contents(
        product=product,
        metadata=metadata,
        members=members,
        images=_images(product, members),
        folder="IMG_DATA" if granule else "GRANULE/*/IMG_DATA",
        labels=labels_beside(root.parent / granule) if granule else labels_beside(product),
        checksums=sums,
    )
    return make_scene(contents, request, granule or product_name(product), READER.name)


def _is_granule(place: Path) -> bool:
    # some keep whole products in a folder of this name
    return place.parent.name == "GRANULE" and bool(_GRANULE.fullmatch(place.name))


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


def metadata_of(members: Collection[str]) -> tuple[str, str] | None:
    """Return name and level of the product's own metadata, where it is there."""
    # by file name, not by product name: people rename folders
    found = {name: match[1] for name in members if (match := _METADATA.fullmatch(name))}
    # a folder of both levels is as old tools left it: the later is what it was kept for
    return max(found.items(), key=lambda pair: pair[1], default=None)


def read_metadata(product: Path, members: Collection[str], sums: Mapping[str, Checksum]) -> Metadata:
    """Read MTD_MSIL2A.xml or MTD_MSIL1C.xml; entities, DTDs and external references are refused."""
    found = metadata_of(members)
    if found is None:
        raise SceneError(f"{product}: neither MTD_MSIL2A.xml nor MTD_MSIL1C.xml is there. {_AGAIN}")
    name, level = found
    tree, where = _parse(product, name, sums), f"{product.name}/{name}"
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


def _parse(product: Path, name: str, sums: Mapping[str, Checksum]) -> markup.Element:
    where = f"{product.name}/{name}"
    data = read_member(product, name)
    checksums.check(data, sums.get(name), where)
    return markup.parse(data, where)


def _of_granule(
    metadata: Metadata, product: Path, members: Collection[str], sums: Mapping[str, Checksum]
) -> Metadata:
    """Put in what one of several granules says of itself: a product of an orbit may take minutes."""
    name = next((name for name in members if _TILE_METADATA.fullmatch(name)), None)
    if name is None:
        raise SceneError(f"{product}: one of its granules has no metadata (MTD_TL.xml). {_AGAIN}")
    acquired, cloud_share = tile_facts(_parse(product, name, sums), f"{product.name}/{name}")
    return replace(metadata, acquired=acquired or metadata.acquired, cloud_share=cloud_share)


def tile_facts(tree: markup.Element, where: str) -> tuple[str, float | None]:
    """Return sensing time and cloud share as a tile's metadata states them; `where` names the file in errors."""
    tag = "CLOUDY_PIXEL_PERCENTAGE"
    return markup.text(tree, "SENSING_TIME") or "", share(markup.text(tree, tag), tag, where)


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
        folder, _, file = name.partition("/IMG_DATA/")
        match = _IMAGE_FILE.fullmatch(file)
        if match and folder.startswith("GRANULE/"):
            images.setdefault(match[1], {})[float(match[2] or NATIVE)] = name
            granules.add(folder)
    # two granules are two grids: one of them would silently win
    if len(granules) > 1:
        raise SceneError(
            f"{product}: holds {len(granules)} granules ({', '.join(sorted(granules))}); name one."
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
