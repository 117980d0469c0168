"""Products packed as zip or tar: listed and checked, read in place, never unpacked.

A member's name must stay below the product and no member may be a link, so that what is listed is what is read; an
archive that would expand enormously is refused before anything of it is decompressed.
"""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath

from pipeline.errors import SceneError
from preprocessing import locations
from preprocessing.scenes import Checksum

MAX_EXPANSION = 200
"""Products are images that are compressed already, and XML, which shrinks about 30 times."""
SMALL_BYTES = 1 << 26
"""What expands to less than this may do so by any factor."""
PEEKED = 50
"""This many names of a tar are looked at to see what it is: each costs a seek."""
PATTERN = re.compile(r".*\.(?:zip|tar|tar\.gz|tgz)", re.IGNORECASE)

Entry = tuple[str, str, int | None]
"""Relative name, what rasterio opens, and the CRC-32 that the archive states."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    size: int
    """Bytes when unpacked."""
    packed: int
    """Bytes in the archive."""
    crc: int | None = None
    fault: str = ""
    """Why an archive with such an entry is refused."""


def is_packed(product: Path) -> bool:
    """Say whether a product is an archive file by its name."""
    return bool(PATTERN.fullmatch(product.name)) and not product.is_dir()


def find_archives(root: Path, is_product: Callable[[Path, Collection[str]], bool]) -> Iterator[Path]:
    """Yield the archives among the files `root` (a file, or a folder that is not entered) that are products.

    is_product: gets the archive and the last parts of the names in it, none where it cannot be listed.
    """
    # hidden archives are what unfinished downloads left
    candidates = [root] if root.is_file() else sorted(p for p in root.iterdir() if p.is_file())
    for path in candidates:
        if is_packed(path) and not path.name.startswith(".") and is_product(path, _peek(path)):
            yield path


def _peek(path: Path) -> list[str]:
    """Return the last parts of the first names in an archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                names = packed.namelist()
        else:
            with tarfile.open(path, "r:") as tar:
                names = [info.name for info in islice(tar, PEEKED)]
    # broken: whether it is a product is told by its own name
    except locations.UNREADABLE:
        return []
    return [PurePosixPath(name).name for name in names]


def list_packed(product: Path) -> dict[str, str]:
    """List an archive's files as relative POSIX name -> what rasterio opens, without the folder around all of them.

    Hidden files are left out. Raises `SceneError` for an archive that is damaged, or that no product would be.
    """
    return {name: location for name, location, _ in _entries(product)}


def zip_checksums(product: Path) -> dict[str, Checksum]:
    """Return the sum that a zip states of each of its files, by relative name; nothing for other products."""
    if not is_packed(product):
        return {}
    return {name: Checksum("CRC-32", f"{crc:08x}") for name, _, crc in _entries(product) if crc is not None}


def _entries(product: Path) -> tuple[Entry, ...]:
    try:
        found = product.stat()
    except OSError as error:
        raise SceneError(f"{product}: cannot be read ({error}). {_AGAIN}") from error
    return _listed(product, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _listed(product: Path, size_bytes: int, time_ns: int) -> tuple[Entry, ...]:
    """Listed once a product: several readers and members ask (size and time are there to tell a changed file)."""
    if locations.split(locations.in_zip(product, "x"))[0] != product:
        raise SceneError(f"{product}: a path with an unpaired brace cannot be read in place. Rename it.")
    is_zip = product.name.lower().endswith(".zip")
    members = _zip_members(product) if is_zip else _tar_members(product)
    _check(product, members, size_bytes)
    shown = sorted((m for m in members if not _is_hidden(m.name)), key=lambda m: m.name)
    place = locations.in_zip if is_zip else locations.in_tar
    around = _folder_around([m.name for m in shown])
    return tuple((m.name[around:], place(product, m.name), m.crc) for m in shown)


def _zip_members(product: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(product) as packed:
            return [_zip_member(info) for info in packed.infolist() if not info.is_dir()]
    except locations.UNREADABLE as error:
        raise SceneError(f"{product}: not a whole zip ({error}). {_AGAIN}") from error


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    fault = "is a link" if stat.S_ISLNK(mode) else "is encrypted" if info.flag_bits & 1 else ""
    # as it stands in the archive: zipfile cuts names at a zero byte, GDAL does not
    return Member(info.orig_filename.removeprefix("./"), info.file_size, info.compress_size, info.CRC, fault)


def _tar_members(product: Path) -> list[Member]:
    # compressed tars have no place to jump to: every band would unpack all before it
    try:
        with tarfile.open(product, "r:") as tar:
            size = product.stat().st_size
            return [_tar_member(info, size) for info in tar if not info.isdir()]
    except locations.UNREADABLE as error:
        raise SceneError(
            f"{product}: not a whole, uncompressed tar ({error}). Unpack or gunzip it, or fetch it again."
        ) from error


def _tar_member(info: tarfile.TarInfo, archive_bytes: int) -> Member:
    if info.issym() or info.islnk():
        fault = "is a link"
    elif not info.isreg() or info.issparse():
        fault = "is not a plain file"
    # GDAL reads names of this form only
    elif not info.name.isascii() or len(info.name) > tarfile.LENGTH_NAME:
        fault = "has a name of over 100 or of non-ASCII letters, which a tar cannot be read by in place"
    elif info.offset_data + info.size > archive_bytes:
        fault = "is cut off"
    else:
        fault = ""
    return Member(info.name.removeprefix("./"), info.size, info.size, fault=fault)


def _check(product: Path, members: Sequence[Member], archive_bytes: int) -> None:
    """Raise `SceneError` naming the first member that no product has."""
    for member in members:
        fault = member.fault or _name_fault(member.name)
        if fault:
            raise SceneError(f"{product}: refused, its member {member.name!r} {fault}. {_AGAIN}")
        _check_expansion(f"{product}: refused, its member {member.name!r}", member.size, member.packed)
    twice = [name for name, count in Counter(m.name for m in members).items() if count > 1]
    # which of two is read depends on who reads
    if twice:
        raise SceneError(f"{product}: refused, it holds {twice[0]!r} twice. {_AGAIN}")
    _check_expansion(f"{product}: refused, it", sum(m.size for m in members), archive_bytes)


def _name_fault(name: str) -> str:
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "leads out of the product"
    return "has a name with control characters or backslashes" if re.search(r"[\x00-\x1f\\]", name) else ""


def _check_expansion(what: str, size: int, packed: int) -> None:
    if size > SMALL_BYTES and size > MAX_EXPANSION * packed:
        raise SceneError(
            f"{what} would expand from {packed} to {size} bytes, more than {MAX_EXPANSION} times. {_AGAIN}"
        )


def _is_hidden(name: str) -> bool:
    # __MACOSX holds what macOS's own zip tool adds: same endings, no images
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder_around(names: Sequence[str]) -> int:
    """Return the length of the path that all names share."""
    shared = PurePosixPath(names[0]).parent.parts if names else ()
    for name in names[1:]:
        parts = PurePosixPath(name).parent.parts
        same = (i for i, (a, b) in enumerate(zip(shared, parts, strict=False)) if a != b)
        shared = shared[: next(same, min(len(shared), len(parts)))]
    # one slash after each part
    return sum(len(part) + 1 for part in shared)


_AGAIN = "Fetch the product again."
