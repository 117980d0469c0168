"""Cell statistics of indices, and the saliency that guides masking.

Statistics are stored per cell of the patch grid as `(n, mean, std)` and never as a finished saliency, so that
flips, quarter turns and crops on the cell grid commute with them exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ContractError

N, MEAN, STD = 0, 1, 2
"""Positions on the last axis of cell statistics."""


def cell_statistics(
    values: NDArray[np.float32], counted: NDArray[np.bool_], cell_px: int
) -> NDArray[np.float32]:
    """Return `(n, mean, std)` of each square cell; population deviation, zeros where n = 0.

    values: [..., y, x] index values; counted: [y, x], broadcast over the leading axes.
    Returns float32 [..., y / cell_px, x / cell_px, 3]. Raises `ContractError` where cells do not fit.
    """
    _check_fits(values.shape[-2:], cell_px)
    v = _cells(values.astype(np.float64), cell_px)
    c = _cells(np.broadcast_to(counted, values.shape), cell_px)
    # float64 until the end: merged cells must agree with larger ones to 1e-6
    n = c.sum(-1)
    safe = np.maximum(n, 1)
    mean = np.where(c, v, 0).sum(-1) / safe
    variance = np.where(c, (v - mean[..., None]) ** 2, 0).sum(-1) / safe
    return np.stack([n, mean, np.sqrt(variance)], axis=-1).astype(np.float32)


def _check_fits(shape_px: tuple[int, ...], cell_px: int) -> None:
    if cell_px < 1 or any(side % cell_px for side in shape_px):
        raise ContractError(
            f"cells of {cell_px} px do not divide an image of {'x'.join(map(str, shape_px))} px."
        )


def _cells(image: NDArray[Any], cell_px: int) -> NDArray[Any]:
    """Rearrange [..., y, x] to [..., y / c, x / c, c * c]."""
    *lead, height, width = image.shape
    split = image.reshape(*lead, height // cell_px, cell_px, width // cell_px, cell_px)
    moved = np.moveaxis(split, -3, -2)
    return moved.reshape(*lead, height // cell_px, width // cell_px, cell_px * cell_px)


def merge_cells(cells: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Merge `factor` x `factor` cells into one; in float64, exact to 1e-6.

    cells: [..., y, x, 3]; returns float32 [..., y / factor, x / factor, 3].
    """
    if factor == 1:
        return cells
    _check_fits(cells.shape[-3:-1], factor)
    n, mean, std = (_cells(cells[..., k].astype(np.float64), factor) for k in (N, MEAN, STD))
    total = n.sum(-1)
    safe = np.maximum(total, 1)
    # the variance of a union: within the parts plus between their means
    merged = (n * mean).sum(-1) / safe
    square = (n * (std**2 + (mean - merged[..., None]) ** 2)).sum(-1) / safe
    return np.stack([total, merged, np.sqrt(square)], axis=-1).astype(np.float32)


def saliency(cells: NDArray[np.float32], richness_weight: float = 0.5) -> NDArray[np.float64]:
    """Return the saliency of every cell of an image, or of each of several: ranks of richness and heterogeneity, blended.

    `R = max over indices |mean|`, `H = mean over indices of std`, `S = a rank(R) + (1 - a) rank(H)` with ranks
    within the image (ties averaged), scaled to [0, 1].
    cells: [..., index, y, x, 3]; returns float64 [..., y * x]. Cells without counted pixels rank lowest.
    """
    # a step's images at once: one by one they would cost as much as decoding them does
    rows = cells.reshape(*cells.shape[:-3], -1, 3)
    counted = (rows[..., N] > 0).any(-2)
    richness = np.abs(rows[..., MEAN]).max(-2)
    heterogeneity = rows[..., STD].mean(-2, dtype=np.float64)
    # below every real value: an empty cell is never taken for a salient one
    a = richness_weight
    return a * _ranks(np.where(counted, richness, -1.0)) + (1 - a) * _ranks(
        np.where(counted, heterogeneity, -1.0)
    )


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank each row to [0, 1], ties averaged."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, -1)
    tied = (ordered[..., 1:] == ordered[..., :-1]).any(-1)
    places = np.broadcast_to(np.arange(values.shape[-1], dtype=np.float64), values.shape)
    if tied.any():
        # few rows: equal numbers are rare where pixels were counted
        places = places.copy()
        places[tied] = _shared_places(ordered[tied])
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, places, -1)
    scaled: NDArray[np.float64] = ranks / max(values.shape[-1] - 1, 1)
    return scaled


def _shared_places(ordered: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the place of each number of sorted rows, equal ones at the mean of theirs: else the order of pixels
    would decide.
    """
    places = np.broadcast_to(np.arange(ordered.shape[-1]), ordered.shape)
    begins = np.ones(ordered.shape, bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.roll(begins, -1, -1)
    first = np.maximum.accumulate(np.where(begins, places, 0), -1)
    last = np.minimum.accumulate(np.where(ends, places, places.shape[-1])[..., ::-1], -1)[..., ::-1]
    shared: NDArray[np.float64] = (first + last) / 2
    return shared
