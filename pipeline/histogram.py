"""Exact histograms of stored values, one a band, and the band statistics they give.

One counter for each of the 65 536 stored values: statistics do not depend on order, number of workers or rounding,
and those of several sets together are exactly those of one set of all their scenes.

Mean and deviation are winsorised: values beyond the 0.1 and 99.9 % quantiles count as these (Tukey 1962, The Future of
Data Analysis, section 17). They are found in the merged histogram at the end, so nothing of its exactness is lost. Not
trimmed: the bright tail of reflectance is snow, sand and roofs, which are to count as bright and not to be dropped; and
of a normal distribution's deviation this rule takes 0.2 %, trimming 1 %. So one pixel in a thousand may be anything.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import BandStatistics
from pipeline.errors import CorruptDataError, MissingInputError
from pipeline.manifest import Manifest, write_atomically
from pipeline.sample import NODATA, SCALE

NAME = "histogram.npz"
VALUES = 1 << 16
MOST_IN_INT64 = 1 << 32
"""Pixels whose squares, of at most 2^30 each, still sum up within int64."""
LOW_QUANTILE, HIGH_QUANTILE = 0.005, 0.995
LEAST_QUANTILE, MOST_QUANTILE = 0.001, 0.999
"""Values beyond these count as these in mean and deviation."""
Histogram = NDArray[np.int64]
"""[band, stored value + 32768]"""
Sparse = tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
"""A histogram without its zeros, of which a small scene has 65 000: for each band stored values and their counts."""


def empty(bands: int) -> Histogram:
    """Return a histogram [band, value] without counts."""
    return np.zeros((bands, VALUES), np.int64)


def count(histogram: Histogram, pixels: NDArray[np.int16], counted: NDArray[np.bool_]) -> None:
    """Add pixels [band, y, x] where `counted` [y, x] to a histogram, in place."""
    for row, band in zip(histogram, pixels, strict=True):
        # shifted, so that -32768 counts at 0
        row += np.bincount(band[counted].astype(np.int64) - NODATA, minlength=VALUES)


def sparse(histogram: Histogram) -> Sparse:
    """Return the values of every band that were counted, ascending, and how often."""
    places = (np.flatnonzero(row) for row in histogram)
    return tuple((place + NODATA, row[place]) for place, row in zip(places, histogram, strict=True))


def add(histogram: Histogram, counts: Sparse) -> None:
    """Add counts to a histogram [band, value], in place."""
    for row, (values, times) in zip(histogram, counts, strict=True):
        row[values - NODATA] += times


def statistics(histogram: Histogram) -> tuple[BandStatistics, ...]:
    """Return the statistics of every band of a histogram [band, value], in reflectance."""
    return statistics_of(sparse(histogram))


def statistics_of(counts: Sparse) -> tuple[BandStatistics, ...]:
    """Return the statistics of every band, in reflectance."""
    return tuple(_statistics(values, times) for values, times in counts)


def agree(histogram: Histogram, stated: Sequence[BandStatistics]) -> bool:
    """Say whether stated statistics are those of a histogram."""
    # format 1 had another mean and deviation, of the same pixels
    found = [
        one
        if told.winsorised
        else one.model_copy(update={"mean": told.mean, "std": told.std, "winsorised": None})
        for one, told in zip(statistics(histogram), stated, strict=False)
    ]
    return len(histogram) == len(stated) and found == list(stated)


def _statistics(values: NDArray[np.int64], times: NDArray[np.int64]) -> BandStatistics:
    n = int(times.sum())
    if n == 0:
        return BandStatistics(n=0, mean=0.0, std=0.0, low=0.0, high=0.0)
    steps = times.cumsum()
    # stored values, never one between two: equal on every machine
    low, high, first, last = (
        int(values[np.searchsorted(steps, math.ceil(share * n))])
        for share in (LOW_QUANTILE, HIGH_QUANTILE, LEAST_QUANTILE, MOST_QUANTILE)
    )
    # whole numbers until the last division: floats would lose the deviation
    total, square = _moments(np.clip(values, first, last), times, n)
    return BandStatistics(
        n=n,
        mean=total / n * SCALE,
        std=math.sqrt((square * n - total * total) / (n * n)) * SCALE,
        low=low * SCALE,
        high=high * SCALE,
        winsorised=(first * SCALE, last * SCALE),
    )


def _moments(values: NDArray[np.int64], times: NDArray[np.int64], n: int) -> tuple[int, int]:
    """Return the sums of all values and of their squares."""
    if n <= MOST_IN_INT64:
        return int(values @ times), int((values * values) @ times)
    # Python's own numbers have no end
    pairs = [(int(value), int(count)) for value, count in zip(values, times, strict=True)]
    return sum(v * c for v, c in pairs), sum(v * v * c for v, c in pairs)


def write(folder: Path, bands: Sequence[str], histogram: Histogram) -> None:
    """Write a set's histogram [band, value] beside its manifest, for sets that are read together."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, bands=np.array(bands), histogram=histogram)
    write_atomically(folder / NAME, buffer.getvalue())


def read(folder: Path) -> tuple[tuple[str, ...], Histogram]:
    """Read a set's band names and its histogram [band, value].

    Raises `MissingInputError` where a set has none, and `CorruptDataError` for what cannot be read.
    """
    try:
        with np.load(folder / NAME, allow_pickle=False) as stored:
            return tuple(stored["bands"].tolist()), stored["histogram"]
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{folder} has no {NAME}, without which the statistics of several sets cannot be put together: copy it"
            " from where the set was made, or make the set again."
        ) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptDataError(f"{folder / NAME} cannot be read ({error}). Copy it again.") from error


def merged(sets: Mapping[Path, Manifest]) -> tuple[BandStatistics, ...]:
    """Return the statistics of several sets together, exactly those of one set of all their scenes.

    They are over all pixels of the training tiles: a set counts by its pixels, whatever its weight in a training.
    sets: by folder; their contracts must agree. Raises `CorruptDataError` for a histogram that is not of its set,
    and what `read` raises.
    """
    total: Histogram | int = 0
    for folder, made in sets.items():
        bands, histogram = read(folder)
        if bands != made.contract.band_names or not agree(histogram, made.statistics):
            raise CorruptDataError(f"{folder / NAME} is not that of the set beside it. Copy it again.")
        total = total + histogram
    return statistics(np.asarray(total))
