"""What all readers share: what is asked of them, how products are found, named and looked into.

A product's members are listed once as `relative name -> what rasterio opens`; readers pick from that list and
never build a path from metadata, so a file name like `../x` in an XML cannot lead anywhere. A packed product
(zip, tar) differs only in its listing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.errors import MissingInputError, SceneError
from pipeline.sensors import Sensor
from preprocessing import locations
from preprocessing.files import FilesConfig
from preprocessing.readers import packed
from preprocessing.scenes import Scene

Offset = Literal["auto", "applied", "not_applied"]
QualityMasks = Literal["auto", "required", "off"]
_ID_LENGTH = 64
_DIGEST_LENGTH = 8
KeyT = TypeVar("KeyT")


@dataclass(frozen=True)
class Request:
    """What a run wants of every scene.

    Raises `UnknownNameError` with the nearest name for a band the sensor does not have.
    """

    sensor: Sensor
    bands: tuple[str, ...]
    """Band names of the sensor, in the order to store."""
    gsd_m: float | None = None
    """Wanted pixel size in metres; None takes each band's finest file."""
    offset: Offset = "auto"
    """`auto` adds the offset that the product states; `applied` adds none, for archives that have done so;
    `not_applied` adds the usual one, for archives whose metadata has lost it."""
    files: FilesConfig | None = None
    """Where plain image files lie, for the reader of those."""
    table: Path | None = None
    """Table in which a set tells classes and splits of its scenes, for the reader of that set."""
    quality_masks: QualityMasks = "auto"
    """What the bands of a product say of themselves in files of their own: `auto` takes those that are there,
    `required` refuses a product without, `off` takes none."""

    def __post_init__(self) -> None:
        self.sensor.select(self.bands)


@dataclass(frozen=True)
class Reader:
    """One product family."""

    name: str
    sensors: tuple[str, ...]
    """Keys in `SENSORS` this reader makes scenes of."""
    layout: str
    """What its products look like on disk, for people."""
    find: Callable[[Path, Request], Sequence[Path]]
    """List the sensor's products at or below a folder, sorted; empty where there are none."""
    open: Callable[[Path, Request], Scene]
    """Describe one product; raises `SceneError` naming the file and the reason it cannot be used."""
    automatic: bool = True
    """Whether `reader: auto` asks it; sets that need settings of their own are asked for by name."""
    lists_from: str = ""
    """Where the set's lists and tables can be had."""


def find_folders(root: Path, is_product: Callable[[Path, Collection[str]], bool]) -> list[Path]:
    """List the folders at or below `root` that are products, sorted; hidden folders and products are not entered.

    is_product: gets a folder and the names in it.
    Raises `MissingInputError` where a folder cannot be listed: skipping it would lose scenes unseen.
    """
    # asked about a packed product, which belongs to another reader
    return [] if root.is_file() else sorted(_walk(root, is_product))


def find_products(root: Path, is_product: Callable[[Path, Collection[str]], bool]) -> list[Path]:
    """List the folders and the zip and tar archives at or below `root` that are products, sorted.

    is_product: gets a folder or an archive, and the names in it, of an archive without their folders.
    Raises `MissingInputError` where a folder cannot be listed: skipping it would lose scenes unseen.
    """
    if root.is_file():
        return list(packed.find_archives(root, is_product))
    return sorted(_walk(root, is_product, with_archives=True))


def _walk(
    root: Path, is_product: Callable[[Path, Collection[str]], bool], with_archives: bool = False
) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, below, files in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        # archives are often built of links, and links may form a ring
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        if is_product(Path(folder), [*below, *files]):
            # products hold thousands of files, and some hold others of the same name
            below.clear()
            yield Path(folder)
        elif with_archives:
            yield from packed.find_archives(Path(folder), is_product)
        # hidden folders hold trash, caches and what unfinished downloads left
        below[:] = [name for name in below if not name.startswith(".")]


def find_files(root: Path) -> Iterator[Path]:
    """Yield the files at or below `root`, sorted within each folder; hidden ones and hidden folders are left out.

    Raises `MissingInputError` where a folder cannot be listed: skipping it would lose scenes unseen.
    """
    for folder, below, names in os.walk(root, onerror=_unreadable, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise MissingInputError(
        f"cannot list {error.filename}: {error.strerror}. Give read permission or choose another folder."
    ) from error


def list_members(product: Path) -> dict[str, str]:
    """List a product's files as relative POSIX name -> what rasterio opens; hidden files are left out.

    Raises `SceneError` for an archive that cannot be read or must not be.
    """
    if packed.is_packed(product):
        return packed.list_packed(product)
    files = (p for p in product.rglob("*") if p.is_file())
    relative = {p.relative_to(product): p for p in files}
    # macOS leaves `._B02.jp2` beside `B02.jp2`: same ending, no image
    return {
        name.as_posix(): str(path)
        for name, path in sorted(relative.items())
        if not any(part.startswith(".") for part in name.parts)
    }


def read_member(product: Path, name: str) -> bytes:
    """Return the bytes of one member; raises `SceneError` where it cannot be read."""
    members = list_members(product) if packed.is_packed(product) else {name: str(product / name)}
    try:
        with locations.open_bytes(members[name]) as stream:
            return stream.read()
    except locations.UNREADABLE as error:
        raise SceneError(f"{product.name}: cannot read {name} ({error}). Fetch the product again.") from error


def scene_id(name: str) -> str:
    """Turn a product's name into an id that matches `[A-Za-z0-9_-]{1,64}`.

    A name that has to be changed gets a digest of itself, so that two names never become one id.
    """
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if clean == name and 0 < len(name) <= _ID_LENGTH:
        return name
    # eight hex digits: one chance in 4e9 that two odd names of an archive meet
    digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_LENGTH // 2).hexdigest()
    return f"{clean[: _ID_LENGTH - _DIGEST_LENGTH - 1]}-{digest}"


def product_name(product: Path) -> str:
    """Return a product's name without the endings of its kind: the same for X.SAFE, X.SAFE.zip, X.zip and X.tar."""
    name = re.sub(r"\.(zip|tar|tar\.gz|tgz)$", "", product.name, flags=re.IGNORECASE)
    return re.sub(r"\.SAFE$", "", name, flags=re.IGNORECASE)


def raster_beside(product: Path) -> Path:
    """Return where a product's class raster is looked for."""
    return product.parent / f"{product_name(product)}_landcover.tif"


def labels_beside(product: Path) -> str | None:
    """Return the class raster that stands beside a product, if there is one."""
    raster = raster_beside(product)
    return str(raster) if raster.is_file() else None


def choose_gsd(available: Mapping[float, KeyT], gsd_m: float | None) -> KeyT:
    """Choose among files by pixel size in metres: the coarsest that is not coarser than wanted, else the finest.

    gsd_m: None takes the finest.
    """
    # averaging many fine pixels costs their decoding; the producer has done it already
    fine_enough = [size for size in available if gsd_m is not None and size <= gsd_m]
    return available[max(fine_enough) if fine_enough else min(available)]


def missing_band(product: Path, band: str, folder: str, present: Sequence[str]) -> SceneError:
    """Build the error for a requested band that has no file."""
    there = ", ".join(present) or "no bands at all"
    where = product / folder if folder else product
    return SceneError(
        f"{product.name}: no file of band {band} in {where}; there: {there}."
        f" Fetch the product again, or take {band} out of `bands`."
    )


def number(text: str | None, what: str, where: str) -> float:
    """Read a number from metadata; `what` and `where` name key and file in the `SceneError`."""
    if text is None:
        raise SceneError(f"{where}: {what} is missing. Fetch the product again.")
    # an empty element is as bad as a missing one: nothing here has a safe default
    try:
        return float(text)
    except ValueError as error:
        raise SceneError(f"{where}: {what} is {text!r}, not a number. Fetch the product again.") from error


def share(percent: str | None, what: str, where: str) -> float | None:
    """Read a percentage from metadata as a share, 0 to 1; None where it is absent or said to be unknown."""
    # Landsat writes -1 for a cloud cover that nobody computed
    value = number(percent, what, where) / 100 if percent else -1.0
    return value if value >= 0 else None
