"""What each scene gives to the band statistics of a set: which are left out, and which are unlike all others.

Statistics are robust to a few wild pixels (`pipeline.histogram`), but not to a whole scene of them in a small archive.
A scene whose values cannot be reflectance gives nothing, and one that merely differs is named, for it may be right:
the only snow, the only desert. Both are decided from the scenes' histograms, so no order or number of workers matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import histogram as exact
from pipeline.histogram import Histogram
from pipeline.sample import NODATA, SCALE
from preprocessing.profiles import BIN, HIGHEST, LOWEST

POSSIBLE = (-0.2, 1.6)
"""Reflectance that Landsat's surface product can state at all (USGS, Collection 2 Level-2 Science Product Guide); that
of Sentinel-2's brightest clouds at the top of the atmosphere is less."""
IMPOSSIBLE_SHARE = 0.1
"""A scene with more of its counted pixels outside that, in any band, gives nothing to the statistics."""
RANGE = (0.005, 0.995)
"""Quantiles of all other scenes between which a scene is expected."""
UNLIKE_SHARE = 0.5
"""A scene with more of its pixels outside that, in any band, is named."""


@dataclass(frozen=True)
class Contributions:
    """The histogram that statistics are made of, and the scenes that are not in it."""

    total: Histogram
    left_out: dict[str, str]
    """Scene -> why."""
    counted: dict[str, int]
    """Scene -> pixels a band that it gave."""


@dataclass(frozen=True)
class Unlike:
    """How far a scene lies apart from all others, in the band where that is most."""

    band: str
    share: float
    """Share of its pixels outside the range of all other scenes."""

    @property
    def is_told(self) -> bool:
        """Whether people should look at it."""
        return self.share > UNLIKE_SHARE


def gather(bands: Sequence[str], histograms: Mapping[str, Histogram]) -> Contributions:
    """Add up the histograms [band, value] of scenes, one in memory at a time."""
    total = exact.empty(len(bands))
    left_out, counted = {}, {}
    for scene, histogram in histograms.items():
        reason = impossible(bands, histogram)
        counted[scene] = 0 if reason else int(histogram[0].sum())
        if reason:
            left_out[scene] = reason
        else:
            total += histogram
    return Contributions(total, left_out, counted)


def impossible(bands: Sequence[str], histogram: Histogram) -> str:
    """Say why a scene's values cannot be reflectance; empty where they can."""
    low, high = (round(end / SCALE) - NODATA for end in POSSIBLE)
    n = histogram.sum(1)
    shares = 1 - histogram[:, low : high + 1].sum(1) / np.maximum(n, 1)
    worst = int(np.argmax(np.where(n, shares, 0)))
    if not n[worst] or shares[worst] <= IMPOSSIBLE_SHARE:
        return ""
    return (
        f"{shares[worst]:.0%} of band {bands[worst]} is no reflectance ({POSSIBLE[0]:g} to {POSSIBLE[1]:g}): its offset,"
        " scale or file is wrong"
    )


def unlike(bands: Sequence[str], total: Histogram, own: Histogram) -> Unlike:
    """Compare a scene with all others; total, own: coarse counts [band, bin] of all scenes and of this one."""
    n = own.sum(1)
    shares = [
        _outside(row, all_of_them - row) if count else 0.0
        for row, all_of_them, count in zip(own, total, n, strict=True)
    ]
    worst = int(np.argmax(shares))
    return Unlike(bands[worst], shares[worst])


def _outside(own: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Return the share of counts [bin] that lie beyond the quantiles of others."""
    # what was left out is in no total, and may exceed it
    steps = np.maximum(others, 0).cumsum()
    if not steps[-1]:
        return 0.0
    first, last = (int(np.searchsorted(steps, q * steps[-1])) for q in RANGE)
    return float(1 - own[first : last + 1].sum() / own.sum())


def coarse(histogram: Histogram) -> Histogram:
    """Sum an exact histogram [band, value] up to the bins of the page; values beyond its ends go to the last bins."""
    first, last = LOWEST - NODATA, HIGHEST - NODATA
    inner = histogram[:, first:last].reshape(len(histogram), -1, BIN).sum(-1)
    inner[:, 0] += histogram[:, :first].sum(-1)
    inner[:, -1] += histogram[:, last:].sum(-1)
    return np.asarray(inner, np.int64)
