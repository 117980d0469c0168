"""OSCD, the Onera Satellite Change Detection set: Sentinel-2 L1C, one tif a band, two dates a city.

Layout: `images/<city>/imgs_1|imgs_2/*_B02.tif` on each band's native grid, and `images/<city>/dates.txt`. The
images are from before processing baseline 04.00, so reflectance is DN / 10 000 without an offset.

Two readers: `oscd` makes each date a scene of its own; `oscd_pairs` makes both dates one scene on the grid of the
first, which is that of the change raster `*/<city>/cm/<city>-cm.tif` beside `images` (1 no change, 2 change; the
set's README says 0 and 1). A pair is one sample, because what learns change must see both dates in the same crop,
and samples are shuffled and split one by one.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing.readers.product import (
    Reader,
    Request,
    find_folders,
    labels_beside,
    list_members,
    missing_band,
    scene_id,
)
from preprocessing.scenes import BandSource, Given, Scene

QUANTIFICATION = 10_000
NO_CLOUD_MASK = "no cloud mask: OSCD has none"
CHANGE_LICENCE = "OSCD change maps (Caye Daudt et al., IGARSS 2018): CC BY-NC-SA."
_FOLDER = re.compile(r"imgs_[12]")
_BAND_FILE = re.compile(r".*_(B[0-9][0-9A])\.tif", re.IGNORECASE)
_DATE = re.compile(r"^date_([12])\s*:\s*(\d{4})(\d{2})(\d{2})\s*$", re.MULTILINE)


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the `imgs_1` and `imgs_2` folders at or below `root`."""
    return find_folders(root, _is_product)


def find_pairs(root: Path, request: Request) -> Sequence[Path]:
    """List the folders of cities at or below `root`."""
    return find_folders(root, lambda _, names: {"imgs_1", "imgs_2"} <= set(names))


def _is_product(folder: Path, names: Collection[str]) -> bool:
    # the name is enough: an emptied folder must be refused by `open`, not overlooked
    return bool(_FOLDER.fullmatch(folder.name))


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one date of one city; raises `SceneError` for a missing band or date."""
    scene = _one_date(product, request)
    return replace(scene, location=product, reader=READER.name, labels=labels_beside(product))


def open_pair(product: Path, request: Request) -> Scene:
    """Describe both dates of one city, with its change raster; raises `SceneError` for a missing band or date."""
    city = product.name
    # train and test labels lie in folders of their own, beside the images
    rasters = sorted(product.parent.parent.glob(f"*/{glob.escape(city)}/cm/{glob.escape(city)}-cm.tif"))
    first, second = (_one_date(product / f"imgs_{number}", request) for number in "12")
    return replace(
        first,
        id=scene_id(f"oscd_{city}"),
        after=second.bands,
        labels=str(rasters[0]) if rasters else None,
        licence=f"{request.sensor.licence} {CHANGE_LICENCE}",
        notes=(f"the later date is {second.acquired}", NO_CLOUD_MASK),
    )


def _one_date(folder: Path, request: Request) -> Scene:
    """Describe one date of a city, as a part of the pair."""
    city, date_number = folder.parent, folder.name[-1]
    return Scene(
        id=scene_id(f"oscd_{city.name}_{date_number}"),
        sensor=request.sensor.name,
        level="L1C",
        reader=PAIR_READER.name,
        location=city,
        # file names hold the time of processing, not of sensing: only dates.txt tells
        acquired=_date(city / "dates.txt", date_number),
        bands=_sources(folder, request),
        # both dates show the same ground: one split
        given=Given(city.name),
        licence=request.sensor.licence,
        notes=(NO_CLOUD_MASK,),
    )


def _sources(product: Path, request: Request) -> tuple[BandSource, ...]:
    files = _band_files(product)
    return tuple(_source(product, files, name) for name in request.bands)


def _band_files(product: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in list_members(product).items():
        match = _BAND_FILE.fullmatch(name)
        if not match:
            continue
        # the pattern takes either case, the table of bands only one
        band = match[1].upper()
        if band in found:
            raise SceneError(
                f"{product}: two files of band {band}, {Path(found[band]).name} and {name}. Keep one."
            )
        found[band] = path
    return found


def _source(product: Path, files: dict[str, str], band: str) -> BandSource:
    if band not in files:
        raise missing_band(product, band, "", list(files))
    return BandSource(band, files[band], scale=1 / QUANTIFICATION, offset=0.0)


def _date(path: Path, number: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(
            f"cannot read {path} ({error}): it holds the dates of both images. Restore it."
        ) from error
    for date_number, year, month, day in _DATE.findall(text):
        if date_number == number:
            return f"{year}-{month}-{day}"
    raise SceneError(f"{path} has no line `date_{number}: YYYYMMDD`. Restore it.")


READER = Reader(
    "oscd",
    ("sentinel2",),
    "OSCD folders `<city>/imgs_1` and `imgs_2` with one `*_B02.tif` a band and `dates.txt`",
    find,
    open_scene,
    lists_from="https://rcdaudt.github.io/oscd/ (train.txt and test.txt)",
)
PAIR_READER = Reader(
    "oscd_pairs",
    READER.sensors,
    "OSCD folders `<city>` with `imgs_1`, `imgs_2` and `dates.txt`, and `<city>/cm/<city>-cm.tif` beside `images`",
    find_pairs,
    open_pair,
    # `oscd` finds the same images
    automatic=False,
    lists_from=READER.lists_from,
)
