"""The sample: what one entry of a shard holds, and its bytes.

Members of a sample in a WebDataset shard:
    KEY.pixels.npy.blosc   int16 [band, y, x], reflectance x 10 000, nodata -32768
    KEY.mask.npy.blosc     uint8 [y, x], bit flags (`Flag`)
    KEY.cells.npy.blosc    float32 [index, y / cell, x / cell, (n, mean, std)]
    KEY.json               scene, position, time, footprint
    KEY.after.npy.blosc    int16 [band, y, x]: the same ground at a later date (sets of pairs only)
    KEY.label.cls          class number as text
    KEY.label.json         class numbers as a list (sets with several classes a tile)
    KEY.label.npy.blosc    uint8 [y, x], class number of every pixel, 255 where it has none
A labelled set has one of the three kinds of label, which its contract names; a sample may be without.
Any WebDataset reader decodes an array with `numpy.load(BytesIO(Blosc().decode(data)))`.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from functools import lru_cache
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from numcodecs import blosc
from numcodecs.blosc import Blosc
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from pipeline.errors import CorruptDataError

FORMAT_VERSION = 1
SCALE = 1e-4
"""Reflectance per stored unit."""
NODATA = -32768
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""A dot would end the key; a member name over 100 characters makes tar write an extra header."""

NO_CLASS = 255
"""Class number of a pixel that has no class."""

_ALWAYS = ("pixels.npy.blosc", "mask.npy.blosc", "cells.npy.blosc")
_AFTER = "after.npy.blosc"
HEADER_BYTES = 128
"""Bytes before the numbers of a .npy file of up to a dozen axes."""
_SMALL = 512
"""Bytes of members that are worth remembering: masks of tiles that are clear throughout."""
_KINDS = (np.dtype(np.int16), np.dtype(np.uint8), np.dtype(np.float32))
Codec = Literal["lz4", "lz4hc", "zstd"]
Members = Mapping[str, bytes | memoryview]
"""Suffix -> bytes."""
Label = int | tuple[int, ...] | NDArray[np.uint8]
"""One class number, the sorted class numbers of a tile, or a class number for every pixel [y, x]."""
CODECS: dict[Codec, tuple[str, int, int]] = {
    "lz4": ("lz4hc", 2, Blosc.SHUFFLE),
    "lz4hc": ("lz4hc", 5, Blosc.SHUFFLE),
    "zstd": ("zstd", 1, Blosc.BITSHUFFLE),
}
"""Blosc's compressor, level and filter. What lz4hc has searched for longer is plain LZ4 to who reads it: as small with
bytes shuffled as lz4 is with bits, and read a third sooner."""
# blosc's own threads write blocks in the order they finish: equal samples would not be equal bytes
blosc.use_threads = False


class Flag(IntFlag):
    """Bits of the mask; pixels keep their clouds, only nodata is the nodata value."""

    # these numbers are in every shard: add bits, never move one

    NODATA = 1
    SATURATED = 2
    CLOUD = 4
    SHADOW = 8
    CIRRUS = 16
    SNOW = 32


@dataclass(frozen=True)
class Sample:
    """One tile on its way between the rooms."""

    key: str
    """Unique in its set; begins with the scene's identifier."""
    pixels: NDArray[np.int16]
    """[band, y, x], reflectance x 10 000."""
    mask: NDArray[np.uint8]
    """[y, x], bits of `Flag`."""
    cells: NDArray[np.float32]
    """[index, y / cell, x / cell, (n, mean, std)]."""
    info: dict[str, Any] = field(default_factory=dict)
    """Scene, position, time, footprint: for people and joins, never read by the model."""
    label: Label | None = None
    """What is known of it, in the kind that the set's contract names."""
    after: NDArray[np.int16] | None = None
    """[band, y, x]: the same pixels at a later date; `mask` and `cells` then speak of both dates and of the first."""


def encode(sample: Sample, codec: Codec = "lz4") -> dict[str, bytes]:
    """Encode a sample to member suffix -> bytes; equal samples give equal bytes."""
    members = {
        "cells.npy.blosc": encode_array(sample.cells, codec),
        "json": json.dumps(sample.info, sort_keys=True).encode(),
        "mask.npy.blosc": encode_array(sample.mask, codec),
        "pixels.npy.blosc": encode_array(sample.pixels, codec),
    }
    if sample.after is not None:
        members["after.npy.blosc"] = encode_array(sample.after, codec)
    if sample.label is not None:
        members |= [_encode_label(sample.label, codec)]
    return members


def _encode_label(label: Label, codec: Codec) -> tuple[str, bytes]:
    if isinstance(label, np.ndarray):
        return "label.npy.blosc", encode_array(label, codec)
    if isinstance(label, tuple):
        return "label.json", json.dumps(label).encode()
    return "label.cls", str(label).encode()


def encode_array(array: NDArray[np.generic], codec: Codec = "lz4") -> bytes:
    """Encode an array as blosc over the bytes of a .npy file.

    The element size is passed as typesize: over plain bytes the filters would save next to nothing.
    """
    plain = np.ascontiguousarray(array)
    # a .npy inside: shape and type travel with the bytes
    data = b"".join((_npy_header(plain.shape, plain.dtype), plain.data))
    # what `Blosc.encode` calls, after looking at the data for longer than it takes to compress a mask
    compressor, level, shuffle = CODECS[codec]
    return bytes(blosc.compress(data, compressor.encode(), level, shuffle, typesize=array.itemsize))


@lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...], kind: np.dtype[Any]) -> bytes:
    """Return what `numpy.save` writes before the numbers: it takes longer than compressing a small array."""
    buffer = io.BytesIO()
    said = {"descr": npy_format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(buffer, said)
    return buffer.getvalue()


class Scratch:
    """Memory that is used again for each sample: arrays decoded into it last until the next sample is."""

    def __init__(self) -> None:
        self._rooms: dict[str, NDArray[np.uint8]] = {}

    def room(self, name: str, size: int) -> NDArray[np.uint8]:
        """Return the first `size` bytes of the room of that name."""
        room = self._rooms.get(name)
        if room is None or len(room) < size:
            # some to spare: sizes of compressed samples vary a little
            room = self._rooms[name] = np.empty(size + size // 8, np.uint8)
        return room[:size]


def decode(key: str, members: Members, where: str, scratch: Scratch | None = None) -> Sample:
    """Decode the members of one sample; `where` names the shard in errors.

    scratch: where the arrays shall lie, for a model, which never reads `info`: that stays empty then. None gives each
    array its own memory. Raises `CorruptDataError` naming shard, key and member for anything missing, truncated or
    misshapen.
    """
    pixels, mask, cells = (_array(members, name, key, where, scratch) for name in _ALWAYS)
    after = _array(members, _AFTER, key, where, scratch) if _AFTER in members else None
    text = _member(members, "json", key, where)
    try:
        info = {} if scratch else json.loads(bytes(text))
    except ValueError as error:
        raise CorruptDataError(
            f"{where}: json of {key} cannot be read ({error}). Make this shard again."
        ) from error
    sample = Sample(key, pixels, mask, cells, info, decode_label(key, members, where), after)
    _check_shapes(sample, where)
    return sample


def decode_label(key: str, members: Members, where: str) -> Label | None:
    """Decode the label among the members of a sample, None where there is none; raises `CorruptDataError`."""
    try:
        if "label.cls" in members:
            return int(bytes(members["label.cls"]))
        if "label.json" in members:
            return tuple(int(number) for number in json.loads(bytes(members["label.json"])))
    except (ValueError, TypeError) as error:
        raise CorruptDataError(
            f"{where}: label of {key} cannot be read ({error}). Make this shard again."
        ) from error
    if "label.npy.blosc" in members:
        return _array(members, "label.npy.blosc", key, where)
    return None


def _member(members: Members, name: str, key: str, where: str) -> bytes | memoryview:
    if name not in members:
        raise CorruptDataError(f"{where}: sample {key} has no member `{name}`. Make this shard again.")
    return members[name]


def _array(members: Members, name: str, key: str, where: str, scratch: Scratch | None = None) -> NDArray[Any]:
    data = _member(members, name, key, where)
    try:
        if scratch is None:
            return decode_array(data)
        if len(data) <= _SMALL:
            return _remembered(bytes(data))
        return decode_array(data, scratch.room(name, _plain_size(data)))
    except (ValueError, RuntimeError, EOFError) as error:
        raise CorruptDataError(
            f"{where}: {key}.{name} cannot be decoded ({error}). Make this shard again."
        ) from error


def decode_array(data: bytes | memoryview, room: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """Decode what `encode_array` wrote, shape and dtype as they were.

    room: bytes for the array to lie in. Raises `ValueError`, `RuntimeError` or `EOFError` for other bytes, as numpy
    and blosc do.
    """
    plain = np.empty(_plain_size(data), np.uint8) if room is None else room
    blosc.decompress(data, plain)
    kind, shape, size = _described(plain[:HEADER_BYTES].tobytes())
    if size != len(plain):
        raise ValueError(f"{len(plain)} bytes where its header tells of {size}")
    return np.ndarray(shape, kind, plain, HEADER_BYTES)


@lru_cache(maxsize=64)
def _remembered(data: bytes) -> NDArray[Any]:
    """Return what `decode_array` does, read-only: the masks of most tiles are the same, of nothing but clear pixels."""
    array = decode_array(data)
    array.flags.writeable = False
    return array


def _plain_size(data: bytes | memoryview) -> int:
    """Return how many bytes blosc's header states; the decoder refuses room for fewer."""
    if len(data) < blosc.MAX_OVERHEAD:
        raise EOFError(f"{len(data)} bytes are too few")
    return int.from_bytes(data[4:8], "little")


@lru_cache(maxsize=64)
def _described(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return dtype and shape that `_npy_header` states, and the bytes of the whole: parsing it takes longer than
    decompressing a small array.
    """
    stream = io.BytesIO(header)
    if npy_format.read_magic(stream) != (1, 0):
        raise ValueError("no .npy of version 1.0, as shards hold them")
    try:
        shape, by_columns, kind = npy_format.read_array_header_1_0(stream)
    # numpy reads it as Python, and lets some of what Python says of bad text through
    except (SyntaxError, TokenError) as error:
        raise ValueError(f"a header that cannot be read ({error})") from error
    # no pickles: shards come from anywhere, and a pickle can run code
    if by_columns or kind.hasobject or stream.tell() != HEADER_BYTES:
        raise ValueError(f"an array of {kind}, as no shard holds one")
    return kind, shape, HEADER_BYTES + math.prod(shape) * kind.itemsize


def _check_shapes(sample: Sample, where: str) -> None:
    # here, not in training: a message that names the sample is lost in a batch
    kinds = (sample.pixels.dtype, sample.mask.dtype, sample.cells.dtype)
    ranks = (sample.pixels.ndim, sample.mask.ndim, sample.cells.ndim)
    fits = sample.pixels.shape[1:] == sample.mask.shape and bool(np.isfinite(sample.cells).all())
    for beside, like in ((sample.after, sample.pixels), (sample.label, sample.mask)):
        if isinstance(beside, np.ndarray):
            fits = fits and (beside.shape, beside.dtype) == (like.shape, like.dtype)
    if kinds != _KINDS or ranks != (3, 2, 4) or not fits:
        shapes = f"pixels {sample.pixels.shape}, mask {sample.mask.shape}, cells {sample.cells.shape}"
        raise CorruptDataError(
            f"{where}: sample {sample.key} is misshapen ({shapes}). Make this shard again."
        )
