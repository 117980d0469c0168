"""What a run found: exact band statistics, tiles kept and dropped by reason, scenes rejected.

Statistics come from one exact histogram a band over all 65 536 stored values, so they do not depend on the
order, the number of workers or rounding.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import BandStatistics
from pipeline.errors import ConfigError, ContractError, MissingInputError
from pipeline.manifest import SceneRecord, write_atomically
from pipeline.sample import NODATA, SCALE

VALUES = 1 << 16
MOST_IN_INT64 = 1 << 32
"""Pixels whose squares, of at most 2^30 each, still sum up within int64."""
LOW_QUANTILE, HIGH_QUANTILE = 0.005, 0.995
REPORT = "quality.json"
HISTOGRAM = "histogram.npz"
REJECTED = "rejected.csv"
OPENING = "opening"
"""Stands for the digest where a product could not be opened: that is tried every time."""
Histogram = NDArray[np.int64]
"""[band, stored value + 32768]"""


@dataclass(frozen=True)
class Rejection:
    """A scene that could not be used."""

    product: str
    reason: str
    tried: str = ""
    """Digest of the files and settings it was tried with; empty where a person wrote the line."""


def empty_histogram(bands: int) -> Histogram:
    """Return a histogram [band, value] without counts."""
    return np.zeros((bands, VALUES), np.int64)


def count(histogram: Histogram, pixels: NDArray[np.int16], counted: NDArray[np.bool_]) -> None:
    """Add pixels [band, y, x] where `counted` [y, x] to a histogram, in place."""
    for row, band in zip(histogram, pixels, strict=True):
        # shifted, so that -32768 counts at 0
        row += np.bincount(band[counted].astype(np.int64) - NODATA, minlength=VALUES)


def statistics(histogram: Histogram) -> tuple[BandStatistics, ...]:
    """Return the statistics of every band of a histogram [band, value], in reflectance."""
    return tuple(_statistics(row) for row in histogram)


def _statistics(row: NDArray[np.int64]) -> BandStatistics:
    n = int(row.sum())
    if n == 0:
        return BandStatistics(n=0, mean=0.0, std=0.0, low=0.0, high=0.0)
    # whole numbers until the last division: floats would lose the deviation
    first, second = _moments(row, n)
    variance = (second * n - first * first) / (n * n)
    return BandStatistics(
        n=n,
        mean=first / n * SCALE,
        std=math.sqrt(variance) * SCALE,
        low=_quantile(row, n, LOW_QUANTILE),
        high=_quantile(row, n, HIGH_QUANTILE),
    )


def _moments(row: NDArray[np.int64], n: int) -> tuple[int, int]:
    """Return the sums of all values and of their squares."""
    places = np.flatnonzero(row)
    values, times = places + NODATA, row[places]
    if n <= MOST_IN_INT64:
        return int(values @ times), int((values * values) @ times)
    # Python's own numbers have no end
    pairs = [(int(value), int(count)) for value, count in zip(values, times, strict=True)]
    return sum(v * c for v, c in pairs), sum(v * v * c for v, c in pairs)


def _quantile(row: NDArray[np.int64], n: int, q: float) -> float:
    """Return the smallest value that at least a share `q` of the pixels does not exceed."""
    # a stored value, never one between two: equal on every machine
    place = int(np.searchsorted(row.cumsum(), math.ceil(q * n)))
    return (place + NODATA) * SCALE


def write_rejected(folder: Path, rejections: Sequence[Rejection]) -> None:
    """Write `rejected.csv` (product, reason, tried), also when nothing was rejected.

    People may edit it: a product whose line is removed is tried again, one whose line is added is left out.
    """
    text = io.StringIO()
    # reasons hold commas and quotes
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["product", "reason", "tried"])
    writer.writerows([r.product, r.reason, r.tried] for r in rejections)
    write_atomically(folder / REJECTED, text.getvalue().encode())


def read_rejected(folder: Path) -> list[Rejection]:
    """Return what `rejected.csv` of an earlier run says, with what people changed in it.

    Raises `ConfigError` where it lost its header.
    """
    path = folder / REJECTED
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames is None or "product" not in rows.fieldnames:
            raise ConfigError(f"{path} has no column `product`: restore its first line, or remove the file.")
        return [Rejection(r["product"], r.get("reason") or "by hand", r.get("tried") or "") for r in rows]


def write_histogram(folder: Path, bands: Sequence[str], histogram: Histogram) -> None:
    """Write the exact histogram [band, value] that the statistics are made of, for sets that are read together."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, bands=np.array(bands), histogram=histogram)
    write_atomically(folder / HISTOGRAM, buffer.getvalue())


def merged(folders: Sequence[Path]) -> tuple[BandStatistics, ...]:
    """Return the statistics of several sets together, exactly those of one set of all their scenes.

    Raises `ContractError` where their bands differ, and `MissingInputError` where a set has no histogram.
    """
    total, known = None, None
    for folder in folders:
        try:
            with np.load(folder / HISTOGRAM, allow_pickle=False) as stored:
                bands, histogram = tuple(stored["bands"].tolist()), stored["histogram"]
        except FileNotFoundError as error:
            raise MissingInputError(f"{folder} has no {HISTOGRAM}; make the set again.") from error
        if known not in (None, bands):
            raise ContractError(f"{folder} has bands {bands}, {folders[0]} has {known}.")
        known, total = bands, histogram if total is None else total + histogram
    return () if total is None else statistics(total)


def as_reported(folder: Path) -> bool:
    """Say whether `rejected.csv` still names what the report says, or people edited it."""
    try:
        tree = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        told = {r["product"] for r in tree["rejected"]}
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return told == {r.product for r in read_rejected(folder)}


def total_tiles(scenes: Sequence[SceneRecord]) -> dict[str, int]:
    """Sum tiles over scenes, by split and by reason for dropping."""
    total: dict[str, int] = {}
    for scene in scenes:
        for name, number in scene.tiles.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))
