"""What hides the simulated ground in one acquisition: clouds, their shadows, cirrus, and the edge of the swath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.simulation.noise import Float, Points, fractal, grid

CLOUD_COVER = 0.06
CIRRUS_COVER = 0.04
CIRRUS_OPACITY = 0.12
SHADOW_SHIFT_PX = (-24, -14)
"""Rows and columns (10 m) from a cloud to its shadow: the sun stands in the south-south-east."""
DENSE, THIN = 0.6, 0.15
"""Opacity from which a pixel is called cloud with high and with medium probability."""


@dataclass(frozen=True)
class Weather:
    """One acquisition's obstacles on the ground's 10 m grid, all [y, x]."""

    cloud: Float
    """Opacity 0 to 1."""
    shadow: Float
    """Depth 0 to 1."""
    cirrus: Float
    """Opacity 0 to 1."""
    outside: NDArray[np.bool_]
    """Beyond the swath: no measurement."""


def make_weather(size_px: int, key: str) -> Weather:
    """Make the weather of one acquisition; another key is another day."""
    points = grid(size_px, f"weather {key}")
    cloud = _patches(points, "cloud", CLOUD_COVER, softness=0.06)
    high = _patches(points, "cirrus", CIRRUS_COVER, softness=0.1)
    return Weather(
        cloud=cloud,
        # a cloud hides what shadow falls under it
        shadow=_shifted(cloud, *SHADOW_SHIFT_PX) * (1 - cloud),
        cirrus=CIRRUS_OPACITY * high * (cloud == 0),
        # slanting, as the edge of an orbit crosses a tile
        outside=points.x < 0.02 * size_px + 0.03 * points.y,
    )


def _patches(points: Points, name: str, cover: float, softness: float) -> Float:
    field = fractal(points, points.size_px / 5, name, octaves=5)
    # a quantile, not a threshold: every seed gets the same cover
    edge = np.quantile(field, 1 - cover)
    return np.asarray(np.clip((field - edge) / softness, 0, 1), np.float32)


def _shifted(field: Float, rows: int, columns: int) -> Float:
    """Move a field up and to the left; what comes in from outside is 0."""
    moved = np.zeros_like(field)
    moved[:rows, :columns] = field[-rows:, -columns:]
    return moved
