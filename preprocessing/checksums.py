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

    @property
    def digest_size(self) -> int:
        """Return the bytes of the sum."""


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

    @property
    def digest_size(self) -> int:
        """Return the bytes of the sum."""
        return 4


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


def from_multihash(text: str) -> Checksum | None:
    """Read a sum with its kind and length before it, as STAC's `file:checksum` states it; None for unknown kinds."""
    for start, algorithm in MULTIHASHES.items():
        # sums may begin with the digits of another kind, but are then of another length
        value = text.lower().removeprefix(start)
        if value != text.lower() and len(value) == 2 * ALGORITHMS[algorithm]().digest_size:
            return Checksum(algorithm, value)
    return None


def _hash(stated: Checksum | None) -> _Hash | None:
    # a kind that nobody knows cannot be checked
    return ALGORITHMS[stated.algorithm]() if stated and stated.algorithm in ALGORITHMS else None


def _compare(made: _Hash, stated: Checksum, where: str) -> None:
    if made.hexdigest() != stated.value:
        raise SceneError(
            f"{where} is not what its product was published with: its {stated.algorithm} sum is"
            f" {_short(made.hexdigest())}, but {_short(stated.value)} is stated. Fetch the product again; where you"
            " changed the file yourself, take away the file that states it (manifest.safe, *_stac.json, *_MD5.txt)"
            " or the Item's file:checksum."
        )


def _short(value: str) -> str:
    # 128 digits tell nobody more than the first of them
    return value if len(value) <= _TOLD else f"{value[:_TOLD]}..."


_TOLD = 16
ALGORITHMS: dict[str, Callable[[], _Hash]] = {
    "MD5": lambda: hashlib.md5(usedforsecurity=False),
    "SHA-1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA2-256": hashlib.sha256,
    "SHA2-512": hashlib.sha512,
    "SHA3-256": hashlib.sha3_256,
    "SHA3-512": hashlib.sha3_512,
    "CRC-32": _Crc32,
}
"""As manifest.safe spells them; the last is what every zip states."""
MULTIHASHES = {
    "1114": "SHA-1",
    "1220": "SHA2-256",
    "1340": "SHA2-512",
    "1620": "SHA3-256",
    "1440": "SHA3-512",
    "d50110": "MD5",
}
"""Code of the kind and length in bytes, as multiformats.io numbers them -> key of `ALGORITHMS`."""
