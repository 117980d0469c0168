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
from pipeline.histogram import Histogram, Sparse
from pipeline.sample import SCALE
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

Counts = NDArray[np.int64]
"""[band, bin]"""


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


def gather(bands: Sequence[str], histograms: Mapping[str, Sparse]) -> Contributions:
    """Add up the histograms of scenes, one in memory at a time."""
    total = exact.empty(len(bands))
    left_out, counted = {}, {}
    for scene, counts in histograms.items():
        reason = impossible(bands, counts)
        # a pixel counts in every band or in none
        counted[scene] = 0 if reason else int(counts[0][1].sum())
        if reason:
            left_out[scene] = reason
        else:
            exact.add(total, counts)
    return Contributions(total, left_out, counted)


def impossible(bands: Sequence[str], counts: Sparse) -> str:
    """Say why a scene's values cannot be reflectance; empty where they can."""
    low, high = (round(end / SCALE) for end in POSSIBLE)
    shares = [
        float(times[(values < low) | (values > high)].sum() / max(times.sum(), 1)) for values, times in counts
    ]
    worst = int(np.argmax(shares))
    if shares[worst] <= IMPOSSIBLE_SHARE:
        return ""
    return (
        f"{shares[worst]:.0%} of band {bands[worst]} is no reflectance ({POSSIBLE[0]:g} to {POSSIBLE[1]:g}): its"
        " offset, scale or file is wrong"
    )


def unlike(bands: Sequence[str], total: Counts, own: Counts) -> Unlike:
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
    # a bin more: bands of cirrus or vapour fill hardly one
    return float(1 - own[max(first - 1, 0) : last + 2].sum() / own.sum())


def coarse(counts: Sparse) -> Counts:
    """Return a histogram in the bins of the page; values beyond its ends go to the last bins."""
    bins = (HIGHEST - LOWEST) // BIN
    rows = (
        np.bincount((np.clip(values, LOWEST, HIGHEST - 1) - LOWEST) // BIN, times, bins)
        for values, times in counts
    )
    # whole numbers below 2^53 stay whole as weights
    return np.stack([row.astype(np.int64) for row in rows])
