"""Files against the sums their product states: a changed byte of an image decodes without any error."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Protocol

from pipeline.errors import SceneError
from preprocessing import locations
from preprocessing.scenes import Checksum

CHUNK_BYTES = 1 << 20


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the sum of all bytes taken in."""


class _Crc32:
    """CRC-32 in the manner of hashlib, as zip archives state it."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        """Return the sum of all bytes taken in, as 8 hexadecimal digits."""
        return f"{self._value:08x}"


def verify(location: str, stated: Checksum | None) -> None:
    """Raise `SceneError` naming a file whose bytes do not sum to what its product states; None is no statement."""
    made = _hash(stated)
    if not stated or not made:
        return
    # in pieces: an image at 10 m has 100 MB
    try:
        with locations.open_bytes(location) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                made.update(chunk)
    except locations.UNREADABLE as error:
        raise SceneError(f"{location} cannot be read ({error}); fetch the product again.") from error
    _compare(made, stated, location)


def check(data: bytes, stated: Checksum | None, where: str) -> None:
    """Raise `SceneError` naming a file, given as its bytes, that does not sum to what its product states."""
    made = _hash(stated)
    if stated and made:
        made.update(data)
        _compare(made, stated, where)


def _hash(stated: Checksum | None) -> _Hash | None:
    # a kind that nobody knows cannot be checked
    return ALGORITHMS[stated.algorithm]() if stated and stated.algorithm in ALGORITHMS else None


def _compare(made: _Hash, stated: Checksum, where: str) -> None:
    if made.hexdigest() != stated.value:
        raise SceneError(
            f"{where} is not what its product was published with: its {stated.algorithm} sum is {made.hexdigest()},"
            f" the manifest states {stated.value}. Fetch the product again; where you changed the file yourself,"
            " take the manifest away."
        )


ALGORITHMS: dict[str, Callable[[], _Hash]] = {
    "MD5": lambda: hashlib.md5(usedforsecurity=False),
    "SHA3-256": hashlib.sha3_256,
    "CRC-32": _Crc32,
}
"""As manifest.safe spells them; the last is what every zip states."""
