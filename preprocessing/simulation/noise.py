"""Random fields and parcels as pure functions of a key: the same ground at any time, on any machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.keys import hash_text, uniform

Float = NDArray[np.float32]
_POSITIVE = 1 << 20
"""Added to parcel coordinates, which may be negative, before they are hashed."""


@dataclass(frozen=True)
class Points:
    """Pixels of a square ground, as coordinates: all of it, or those of one class."""

    y: Float
    x: Float
    size_px: int
    key: str
    """What every random number here depends on."""

    def take(self, chosen: NDArray[np.bool_], key: str) -> Points:
        """Return the pixels where `chosen` (of their shape) as points [n] of their own key."""
        return Points(self.y[chosen], self.x[chosen], self.size_px, f"{self.key}/{key}")


def grid(size_px: int, key: str) -> Points:
    """Return all pixels of a square ground; arrays of shape [size_px, size_px]."""
    axis = np.arange(size_px, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return Points(y, x, size_px, key)


def generator(*key: object) -> np.random.Generator:
    """Return a generator that depends on the key alone."""
    return np.random.default_rng(hash_text(*key))


def noise(points: Points, cell_px: float, name: str) -> Float:
    """Return smooth noise in [0, 1] that varies over about `cell_px` pixels (value noise)."""
    # three more than fit: one at each end, one for the interpolation
    knots = int(points.size_px / cell_px) + 3
    lattice = generator(points.key, name, "noise").random((knots, knots), dtype=np.float32)
    row, v = _split(points.y / np.float32(cell_px))
    column, u = _split(points.x / np.float32(cell_px))
    top = lattice[row, column] * (1 - u) + lattice[row, column + 1] * u
    bottom = lattice[row + 1, column] * (1 - u) + lattice[row + 1, column + 1] * u
    return np.asarray(top * (1 - v) + bottom * v, np.float32)


def _split(position: Float) -> tuple[NDArray[np.int32], Float]:
    """Split into the lattice line before and the smoothed way to the next."""
    # smoothstep: straight interpolation would show the lattice as a grid of creases
    line = position.astype(np.int32)
    rest = position - line
    return line, rest * rest * (3 - 2 * rest)


def fractal(points: Points, cell_px: float, name: str, octaves: int = 3) -> Float:
    """Return noise in [0, 1] with finer and weaker detail on top, each octave half the size of the one before."""
    weights = [0.5**k for k in range(octaves)]
    layers = (
        np.float32(w / sum(weights)) * noise(points, max(cell_px * w, 1.0), f"{name} {k}")
        for k, w in enumerate(weights)
    )
    return np.asarray(sum(layers), np.float32)


@dataclass(frozen=True)
class Parcels:
    """Bricks of a rotated wall: fields, blocks, houses."""

    along: Float
    """Distance in px to the parcel's edge along the wall, from its start."""
    across: Float
    """Distance in px across the wall, from its start."""
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    key: str

    def draw(self, name: str) -> Float:
        """Return a random number in (0, 1) for every pixel, of the points' shape; a parcel's pixels share it."""
        parts = ((k + _POSITIVE).astype(np.uint64) for k in (self.row, self.column))
        return uniform(hash_text(self.key, name), *parts).astype(np.float32)


def parcels(points: Points, angle_rad: Float | float, size_px: tuple[float, float], name: str) -> Parcels:
    """Lay parcels over the points.

    angle_rad: one for all or one a point; size_px: along and across the wall. Rows are shifted against each other.
    """
    # float32 throughout: at 1536 px a field of float64 costs twice the time for nothing
    cosine, sine = np.cos(angle_rad, dtype=np.float32), np.sin(angle_rad, dtype=np.float32)
    along, across = points.x * cosine + points.y * sine, points.y * cosine - points.x * sine
    row = np.floor(across / np.float32(size_px[1])).astype(np.int64)
    key = f"{points.key}/{name}"
    shift = uniform(hash_text(key, "shift"), (row + _POSITIVE).astype(np.uint64)).astype(np.float32)
    # shifted rows make T junctions, as land that was divided by inheritance has
    along = along + shift * np.float32(size_px[0])
    column = np.floor(along / np.float32(size_px[0])).astype(np.int64)
    return Parcels(
        along=(along - column * np.float32(size_px[0])).astype(np.float32),
        across=(across - row * np.float32(size_px[1])).astype(np.float32),
        row=row,
        column=column,
        key=key,
    )
