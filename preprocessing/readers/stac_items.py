"""STAC Items wherever they stand: a file each, many in one collection file, or behind the links of a catalog.

An Item of a collection file is named as if it were a file in a folder: `items.json/S2B_33UUP_20240501`. Specification:
stacspec.org, STAC 1.0 and 1.1, and the ItemCollection of the STAC API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError, SceneError
from preprocessing import locations
from preprocessing.readers.product import find_files

Item = Mapping[str, Any]
ENDINGS = (".json", ".geojson")
FILE_SYSTEMS = {
    "https://": "/vsicurl/https://",
    "http://": "/vsicurl/http://",
    "s3://": "/vsis3/",
    "gs://": "/vsigs/",
}
_LEADING = ("child", "item", "items")
"""Kinds of link that lead to Items."""


def find(root: Path, fits: Callable[[Item], bool]) -> Sequence[Path]:
    """List the Items at or below a folder, in a collection file, or that the links of a catalog lead to.

    fits: whether an Item may hold scenes of the sensor; of those that cannot be read, whoever opens them tells.
    """
    if root.is_dir():
        files = (path for path in find_files(root) if path.suffix in ENDINGS)
        return [place for path in files for place, item in _below(path) if item is None or fits(item)]
    return sorted(place for place, item in _linked(root, set()) if item is None or fits(item))


def open_item(place: Path) -> tuple[Item, Path]:
    """Return an Item and the file it stands in; raises `SceneError` where it is not there or cannot be read."""
    # an Item of a collection has no file of its own
    file = place if place.is_file() else place.parent
    for known, item in _items(file):
        if known == place and item is not None:
            return item, file
    raise SceneError(f"{place} cannot be read as a STAC Item. Fetch {file.name} again.")


def location(file: Path, href: str) -> str:
    """Return what rasterio opens for a link, relative to the file it stands in."""
    for start, system in FILE_SYSTEMS.items():
        if href.startswith(start):
            return system + href.removeprefix(start)
    return str(file.parent / href.removeprefix("file://"))


def _below(path: Path) -> Iterator[tuple[Path, Item | None]]:
    # in a folder other json may lie, and a broken one may have been an Item
    try:
        yield from _items(path)
    except SceneError:
        yield path, None


def _items(path: Path) -> list[tuple[Path, Item | None]]:
    """Return the Items of one file with their names; raises `SceneError` for a file that is no json."""
    tree = _load(path)
    if tree.get("type") == "Feature" and "stac_version" in tree:
        return [(path, tree)]
    features = tree.get("features") if tree.get("type") == "FeatureCollection" else ()
    if not isinstance(features, list):
        return []
    # plain GeoJSON is no STAC
    found = [f for f in features if isinstance(f, dict) and "assets" in f]
    # a slash would be a folder, and two Items of one name one scene
    names = [re.sub(r"[/\0]", "-", str(item.get("id", number))) for number, item in enumerate(found)]
    unique = [name if names.count(name) == 1 else f"{name}-{n}" for n, name in enumerate(names)]
    return [(path / name, item) for name, item in zip(unique, found, strict=True)]


def _load(path: Path) -> Item:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} cannot be read as STAC ({error}). Fetch it again.") from error


@lru_cache(maxsize=4)
def _parsed(path: Path, changed_ns: int) -> Item:
    """Parsed once: a collection of a thousand Items is asked for each of them (the time tells a changed file)."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    return tree if isinstance(tree, dict) else {}


def _linked(path: Path, seen: set[Path]) -> Iterator[tuple[Path, Item | None]]:
    """Yield the Items a catalog leads to; a link back is not followed."""
    real = path.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        found, links = _items(path), _load(path).get("links", ())
    except SceneError as error:
        # not one scene of many: without its catalog an archive is not whole
        raise MissingInputError(str(error)) from error
    yield from found
    # an Item's own links lead up again
    for link in links if not found else ():
        if link.get("rel") in _LEADING:
            yield from _linked(_local(path, str(link.get("href"))), seen)


def _local(path: Path, href: str) -> Path:
    place = location(path, href)
    if locations.is_remote(place):
        raise MissingInputError(
            f"{path} links to {href}: Items must be local. Fetch their json; their assets may stay where they are."
        )
    return Path(place)
