"""Tiles of a JPEG 2000 file that are the same to the byte: what is decoded of one holds for all of them.

Eight layers of a quality mask at 10 m take as long to decode as half a band, and are empty from end to end. Nothing is
decoded here, and nothing is guessed: tiles are alike where all their bytes and everything that decides their meaning
are equal. Specification: ISO/IEC 15444-1, annexes A, B and I.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from preprocessing import locations

_SIZE, _STYLE, _TILE, _END = 0xFF51, 0xFF52, 0xFF90, 0xFFD9
_ELSEWHERE = (0xFF60, 0xFF57, 0xFF53, 0xFF5F)
"""Markers of the main header by which tiles are more than their bytes, or coded in several ways."""


class Box(NamedTuple):
    """Where a part lies in its image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Alike:
    """Tiles that decode to the same pixels."""

    boxes: tuple[Box, ...]
    digest: bytes
    """Of everything that decides those pixels: equal in other files too where they are."""


@dataclass(frozen=True)
class Layout:
    """What the main header says of all tiles."""

    size: tuple[int, int]
    """Columns and rows of the image."""
    tile: tuple[int, int]
    """Columns and rows of a tile."""
    precincts: tuple[tuple[int, int], ...]
    """Their columns and rows, of each resolution from the coarsest."""
    block: tuple[int, int]
    """Columns and rows of a code block."""

    def boxes(self) -> list[Box]:
        """Return the tiles in their order."""
        (width, height), (across, down) = self.size, self.tile
        return [
            Box(left, top, min(across, width - left), min(down, height - top))
            for top in range(0, height, down)
            for left in range(0, width, across)
        ]

    def divided(self, box: Box) -> tuple[tuple[int, int], ...]:
        """Return where a tile is cut into precincts and code blocks: equal bytes mean equal pixels only if equal."""
        levels = len(self.precincts) - 1
        # which pixels of the tile are even decides what is halved
        cuts = [(box.left % (1 << levels), box.top % (1 << levels))]
        for resolution, precinct in enumerate(self.precincts):
            cuts.append(_cuts(box, levels - resolution, precinct))
            # but for the coarsest, code blocks cut what is halved once more
            cuts.append(_cuts(box, min(levels - resolution + 1, levels), self.block))
        return tuple(cuts)


def _cuts(box: Box, halved: int, step: tuple[int, int]) -> tuple[int, int]:
    return _first_cut(box.left, box.width, halved, step[0]), _first_cut(box.top, box.height, halved, step[1])


def _first_cut(start: int, length: int, halved: int, step: int) -> int:
    """Return the first multiple of `step` inside a stretch of pixels that was halved, from its start; 0 for none."""
    low, high = -(-start >> halved), -(-(start + length) >> halved)
    cut = -low % step
    return cut if cut < high - low else 0


def alike(location: str) -> list[Alike]:
    """Group the tiles of a JPEG 2000 file by their bytes; nothing where the file has no tiles that can be compared."""
    if PurePosixPath(location).suffix.lower() != ".jp2":
        return []
    try:
        with locations.open_bytes(location) as stream:
            return _grouped(stream.read())
    # whatever is wrong with it, the decoder is asked next, and tells
    except (*locations.UNREADABLE, struct.error, IndexError):
        return []


def _grouped(data: bytes) -> list[Alike]:
    start = _codestream(data)
    layout, at = _main_header(data, start)
    boxes = layout.boxes()
    groups: dict[bytes, list[Box]] = defaultdict(list)
    for box, held in zip(boxes, _tile_bytes(data, at, len(boxes)), strict=True):
        # all of the main header: quantisation and bit depths decide too
        meaning = hashlib.blake2b(data[start:at])
        meaning.update(repr((box.width, box.height, layout.divided(box))).encode())
        meaning.update(held)
        groups[meaning.digest()].append(box)
    return [Alike(tuple(same), digest) for digest, same in groups.items()]


def _codestream(data: bytes) -> int:
    """Return where the box with the image begins."""
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, at + 8), 16
        if kind == b"jp2c":
            return at + head
        # only the last box may leave its length open
        if length < head:
            raise ValueError("no image among the boxes")
        at += length


def _main_header(data: bytes, at: int) -> tuple[Layout, int]:
    """Return what the main header says, and where the first tile begins."""
    found: dict[int, bytes] = {}
    # behind the mark of the beginning, which has no length
    at += 2
    while (marker := _marker(data, at)) != _TILE:
        (length,) = struct.unpack_from(">H", data, at + 2)
        found[marker] = data[at + 4 : at + 2 + length]
        at += 2 + length
    if any(marker in found for marker in _ELSEWHERE):
        raise ValueError("tiles cannot be compared by their bytes")
    width, height, left, top, *tile = struct.unpack_from(">8I", found[_SIZE], 2)
    if left or top or tile[2] or tile[3]:
        raise ValueError("an image that does not begin at 0")
    style, levels, *block = struct.unpack_from(">BxxxxBBB", found[_STYLE])
    # without a list precincts have the largest size there is
    sizes = found[_STYLE][10 : 11 + levels] if style & 1 else b"\xff" * (levels + 1)
    precincts = tuple((1 << (size & 15), 1 << (size >> 4)) for size in sizes)
    blocks = 4 << (block[0] & 15), 4 << (block[1] & 15)
    return Layout((width, height), (tile[0], tile[1]), precincts, blocks), at


def _marker(data: bytes, at: int) -> int:
    (marker,) = struct.unpack_from(">H", data, at)
    return int(marker)


def _tile_bytes(data: bytes, at: int, count: int) -> Sequence[bytes]:
    """Return each tile's bytes, but for its number."""
    # a tile may come in several parts, between those of others
    parts: list[list[bytes]] = [[] for _ in range(count)]
    for number, part in _tile_parts(data, at):
        parts[number].append(part)
    if not all(parts):
        raise ValueError("a tile is missing")
    return [b"".join(part) for part in parts]


def _tile_parts(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 2 <= len(data) and _marker(data, at) == _TILE:
        number, length = struct.unpack_from(">HI", data, at + 4)
        # the last one may leave its length open
        end = at + length if length else len(data) - 2
        if end > len(data) or end <= at:
            raise ValueError("a tile is cut off")
        yield number, data[at + 10 : end]
        at = end
    if _marker(data, at) != _END:
        raise ValueError("the image is cut off")
