"""Randomness as a pure function of a key: the same on every machine, for any number of workers or ranks.

No generator state exists anywhere, so nothing of it has to be saved.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash_text(*parts: object) -> int:
    """Hash any printable parts to an unsigned 64-bit number (BLAKE2b)."""
    # a separator that no part holds: ("a", "bc") must differ from ("ab", "c")
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(*parts: int | UInt64) -> UInt64:
    """Hash unsigned integers (or arrays of them, broadcast) to uint64: splitmix64's finaliser, chained."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _absorb(state, part)
    return state


def _absorb(state: UInt64, part: int | UInt64) -> UInt64:
    # arrays of integers wrap without a warning, which is the point
    x = (state ^ np.asarray(part, np.uint64)) + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniform(*parts: int | UInt64) -> NDArray[np.float64]:
    """Return numbers in the open interval (0, 1), one for each element of the broadcast parts."""
    # half a step off zero: the logarithm of 0 must not occur
    return ((mix(*parts) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def permute(position: UInt64, size: int, *key: int) -> UInt64:
    """Return where a keyed permutation of range(size) sends each position, without holding it in memory.

    A 4-round Feistel network over the next even power of two, walked until the result is inside.
    position: any shape, values below size; key: what the permutation depends on (seed, epoch).
    """
    # two equal halves cover at most four times the range, so the walk is short
    half = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
    # what does not depend on the position, once for the whole walk
    states = [mix(*key, round_number) for round_number in range(4)]
    result = np.asarray(position, np.uint64).copy()
    outside = np.ones(result.shape, bool)
    while outside.any():
        result[outside] = _feistel(result[outside], half, states)
        outside = result >= np.uint64(size)
    return result


def _feistel(x: UInt64, half_bits: int, states: list[UInt64]) -> UInt64:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = x >> shift, x & mask
    for state in states:
        left, right = right, left ^ (_absorb(state, right) & mask)
    return (left << shift) | right
