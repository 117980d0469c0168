"""Whether the numbers of a Sentinel-2 scene look like what its offset rule says.

Archives that have applied the offset themselves, and kept metadata that states it, cannot be told from others by
metadata. Their histograms tell: with the offset applied twice dark ground reflects less than nothing, and with it
forgotten nothing in any band is dark. Bright ground can look like the second, so that this only warns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocessing.scenes import Scene

WARNING = "warning: "
"""How a note begins that a person should be told at once."""
SENSOR = "sentinel2"
LEAST_PX = 1_000
"""Of fewer pixels nothing is said."""
BELOW, SHARE_BELOW = -200, 0.1
"""This share of a band's pixels below this (reflectance x 10 000) cannot be measurements."""
FLOOR, SHARE_FLOOR = 900, 0.001
"""The darkest band has all but this share of its pixels above this."""


def doubts(scene: Scene, histogram: NDArray[np.int64], lowest: int) -> tuple[str, ...]:
    """Return a warning where a histogram [band, value] of clear pixels contradicts the offsets of the scene's bands.

    lowest: reflectance x 10 000 of the histogram's first value.
    """
    counted = [(b, row) for b, row in zip(scene.bands, histogram, strict=True) if row.sum() >= LEAST_PX]
    if scene.sensor != SENSOR or not counted:
        return ()
    subtracted = [(b.name, _share_below(row, BELOW - lowest)) for b, row in counted if b.offset < 0]
    # in the worst band: vegetation is darkest in the visible, water beyond it
    worst = max(subtracted, key=lambda pair: pair[1], default=("", 0.0))
    if worst[1] > SHARE_BELOW:
        return (
            f"{WARNING}{worst[1]:.0%} of {worst[0]} lies below reflectance {BELOW / 1e4:g}: this archive seems to have"
            " applied the offset already; if so, set `offset: applied`",
        )
    # one dark band is enough: little ground is bright in all
    if not subtracted and all(_share_below(row, FLOOR - lowest) <= SHARE_FLOOR for _, row in counted):
        return (
            f"{WARNING}no band is darker than reflectance {FLOOR / 1e4:g} anywhere: unless this is all bright ground,"
            " an offset of -1000 was left out; look at `offset` and at the product's metadata",
        )
    return ()


def _share_below(row: NDArray[np.int64], place: int) -> float:
    return float(row[:place].sum() / row.sum())
