"""Cell statistics of indices in one compiled pass over stored pixels.

The plain form is `pipeline.saliency.cell_statistics` over `Index(...)`: the oracle of the tests. Here the formula of
the index is compiled into the loop, so no image of reflectance, index values or float64 is ever made. Every inner
loop runs along a row without branches, which is what lets the compiler use vector instructions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import formulas
from pipeline.formulas import FLOOR
from pipeline.indices import Index
from pipeline.sample import SCALE

Stack = NDArray[np.int16] | NDArray[np.uint8]
Kernel = Callable[[Stack, tuple[int, ...], int, NDArray[np.bool_], int, NDArray[np.float32]], None]


@dataclass(frozen=True)
class Pixels:
    """Some bands and rows of an array that lies in memory as a whole: a part of one would not be vectorised."""

    stack_BYX: Stack
    """Stored int16 bands, or masks."""
    which: Sequence[int]
    """Positions in it, in the formula's order."""
    top_px: int = 0
    """Row of it to begin with."""


def cell_statistics(
    index: Index, pixels: Pixels, counted_YX: NDArray[np.bool_], cell_px: int
) -> NDArray[np.float32]:
    """Return `(n, mean, std)` of an index in each square cell; population deviation, zeros where n = 0.

    A rest smaller than a cell is left out. Returns float32 [y / cell_px, x / cell_px, 3], equal to the plain form
    to 1e-6.
    """
    height, width = (side // cell_px for side in counted_YX.shape)
    result = np.zeros((height, width, 3), np.float32)
    which = tuple(pixels.which)
    pass_over = _compiled(index.formula, len(which))
    pass_over(pixels.stack_BYX, which, pixels.top_px, counted_YX, cell_px, result)
    return result


def count(histogram: NDArray[np.int64], pixels: Pixels, times_YX: NDArray[np.uint16]) -> None:
    """Add each pixel as often as `times_YX` says to the histogram [band, value + 32768] of its band, in place."""
    _counting()(histogram, pixels.stack_BYX, tuple(pixels.which), pixels.top_px, times_YX)


def bit_counts(mask_YX: NDArray[np.uint8], bits: Sequence[int], cell_px: int) -> NDArray[np.int32]:
    """Return how many pixels of each cell have any of the bits of each number in `bits`, [number, y / cell, x / cell].

    A rest smaller than a cell is left out.
    """
    height, width = (side // cell_px for side in mask_YX.shape)
    counts = np.zeros((len(bits), height, width), np.int32)
    # one look for all: which of the numbers a mask value has a part in
    table = (np.arange(256)[:, None] & np.array(bits, np.int64)[None]) != 0
    _bit_counting()(mask_YX, table.T.astype(np.uint8).copy(), cell_px, counts)
    return counts


@cache
def _bit_counting() -> Any:
    def whole(mask: Any, table: Any, cell: int, counts: Any) -> None:
        for number in range(counts.shape[0]):
            for y in range(counts.shape[1] * cell):
                for cx in range(counts.shape[2]):
                    n = 0
                    for x in range(cx * cell, (cx + 1) * cell):
                        n += table[number, mask[y, x]]
                    counts[number, y // cell, cx] += n

    return importlib.import_module("numba").njit(nogil=True)(whole)


@cache
def _counting() -> Any:
    def whole(histogram: Any, stack: Any, which: Any, top: int, times: Any) -> None:
        for place in range(len(which)):
            band = which[place]
            for y in range(times.shape[0]):
                for x in range(times.shape[1]):
                    histogram[place, np.int64(stack[band, top + y, x]) + 32768] += times[y, x]

    return importlib.import_module("numba").njit(nogil=True)(whole)


@cache
def _compiled(formula: Callable[..., Any], count: int) -> Kernel:
    """Compile the pass for one formula of `count` bands: about a second, once a process."""
    numba: Any = importlib.import_module("numba")
    _teach(numba)
    # guarded denominators are never 0, and a test for it in the loop would cost the vector instructions
    value = _value(numba, numba.njit(formula, error_model="numpy"), count)
    row, squares = numba.njit(_row_of(value)), numba.njit(_squares)
    return numba.njit(_pass_of(row, squares), nogil=True)  # type: ignore[no-any-return]


@cache
def _teach(numba: Any) -> None:
    """Tell the compiler what the helpers of formulas are for one pixel."""
    least, one, none = np.float32(FLOOR), np.float32(1), np.float32(0)
    overload = partial(numba.extending.overload, jit_options={"error_model": "numpy"})
    # numpy's maximum has rules for NaN that keep the loop from being vectorised
    overload(formulas.floored)(lambda x: lambda x: max(x, least))
    overload(formulas.positive)(lambda x: lambda x: max(x, none))
    overload(formulas.apart)(lambda x: lambda x: max(x, least) if x >= none else min(x, -least))
    overload(formulas.squashed)(lambda x: lambda x: x / (one + abs(x)))


def _value(numba: Any, formula: Any, count: int) -> Any:
    """Return a compiled function of (stack, which, y, x): the index at one pixel, clipped as `Index` does."""
    scale, low, high = np.float32(SCALE), np.float32(-1), np.float32(1)

    def pixel(stack: Any, band: int, y: int, x: int) -> Any:
        return np.float32(stack[band, y, x]) * scale

    at = numba.njit(pixel)

    # written out: a tuple of arguments cannot be unpacked in a loop that is to be vectorised
    forms: dict[int, Any] = {
        1: lambda s, w, y, x: formula(at(s, w[0], y, x)),
        2: lambda s, w, y, x: formula(at(s, w[0], y, x), at(s, w[1], y, x)),
        3: lambda s, w, y, x: formula(at(s, w[0], y, x), at(s, w[1], y, x), at(s, w[2], y, x)),
        4: lambda s, w, y, x: formula(
            at(s, w[0], y, x), at(s, w[1], y, x), at(s, w[2], y, x), at(s, w[3], y, x)
        ),
        5: lambda s, w, y, x: formula(
            at(s, w[0], y, x), at(s, w[1], y, x), at(s, w[2], y, x), at(s, w[3], y, x), at(s, w[4], y, x)
        ),
        6: lambda s, w, y, x: formula(
            at(s, w[0], y, x), at(s, w[1], y, x), at(s, w[2], y, x),
            at(s, w[3], y, x), at(s, w[4], y, x), at(s, w[5], y, x),
        ),
    }  # fmt: skip
    inner = numba.njit(forms[count])
    return numba.njit(lambda s, w, y, x: min(max(inner(s, w, y, x), low), high))


def _row_of(value: Any) -> Any:
    def row(image: Any, counted: Any, values: Any, sums: Any) -> None:
        (stack, which, y), n, total = image, sums[0], sums[1]
        # one row of pixels: its values are kept, the columns' counts and sums grow
        for x in range(values.shape[0]):
            found = value(stack, which, y, x)
            values[x] = found
            n[x] += counted[x]
            total[x] += np.float64(found) if counted[x] else 0.0

    return row


def _squares(values: Any, counted: Any, mean: Any, square: Any) -> None:
    for x in range(values.shape[0]):
        distance = np.float64(values[x]) - mean[x]
        square[x] += distance * distance if counted[x] else 0.0


def _pass_of(row: Any, squares: Any) -> Any:
    def whole(stack: Any, which: Any, top: int, counted: Any, cell: int, out: Any) -> None:
        width = out.shape[1] * cell
        values = np.empty((cell, width), np.float32)
        sums, mean, square = np.empty((2, width)), np.empty(width), np.empty(width)
        n, total = sums[0], sums[1]
        for cy in range(out.shape[0]):
            sums[:], square[:] = 0, 0
            for y in range(cell):
                place = cy * cell + y
                row((stack, which, top + place), counted[place], values[y], sums)
            for cx in range(out.shape[1]):
                part = slice(cx * cell, (cx + 1) * cell)
                out[cy, cx, 0] = n[part].sum()
                mean[part] = total[part].sum() / max(n[part].sum(), 1.0)
                out[cy, cx, 1] = mean[cx * cell]
            # a second pass: a sum of squares less a square would lose the deviation of flat cells
            for y in range(cell):
                squares(values[y], counted[cy * cell + y], mean, square)
            for cx in range(out.shape[1]):
                part = slice(cx * cell, (cx + 1) * cell)
                out[cy, cx, 2] = np.sqrt(square[part].sum() / max(n[part].sum(), 1.0))

    return whole
