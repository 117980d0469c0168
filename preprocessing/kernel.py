"""Cell statistics of indices in one compiled pass over stored pixels.

The plain form is `pipeline.saliency.cell_statistics` over `Index(...)`: the oracle of the tests. Here the formula of
the index is compiled into the loop, so no image of reflectance, index values or float64 is ever made. Every inner
loop runs along a row without branches, which is what lets the compiler use vector instructions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import indices
from pipeline.indices import FLOOR, Index
from pipeline.sample import SCALE

Stack = NDArray[np.int16]
Kernel = Callable[[Stack, tuple[int, ...], NDArray[np.bool_], int, NDArray[np.float32]], None]


def cell_statistics(
    index: Index, stack_BYX: Stack, which: Sequence[int], counted_YX: NDArray[np.bool_], cell_px: int
) -> NDArray[np.float32]:
    """Return `(n, mean, std)` of an index in each square cell; population deviation, zeros where n = 0.

    stack_BYX: stored int16 bands; which: positions in it, in the formula's order. A rest smaller than a cell is
    left out. Returns float32 [y / cell_px, x / cell_px, 3], equal to the plain form to 1e-6.
    """
    height, width = (side // cell_px for side in counted_YX.shape)
    result = np.zeros((height, width, 3), np.float32)
    _compiled(index.formula, len(which))(stack_BYX, tuple(which), counted_YX, cell_px, result)
    return result


@cache
def _compiled(formula: Callable[..., Any], count: int) -> Kernel:
    """Compile the pass for one formula of `count` bands: about a second, once a process."""
    numba: Any = importlib.import_module("numba")
    _teach(numba)
    value = _value(numba, numba.njit(formula), count)
    row, squares = numba.njit(_row_of(value)), numba.njit(_squares)
    return numba.njit(_pass_of(row, squares), nogil=True)  # type: ignore[no-any-return]


@cache
def _teach(numba: Any) -> None:
    """Tell the compiler what `floored` is for one pixel."""
    # numpy's maximum has rules for NaN that keep the loop from being vectorised
    numba.extending.overload(indices.floored)(
        lambda denominator: lambda denominator: max(denominator, np.float32(FLOOR))
    )


def _value(numba: Any, formula: Any, count: int) -> Any:
    """Return a compiled function of (stack, which, y, x): the index at one pixel, clipped as `Index` does."""
    scale, low, high = np.float32(SCALE), np.float32(-1), np.float32(1)

    def pixel(stack: Any, band: int, y: int, x: int) -> Any:
        return np.float32(stack[band, y, x]) * scale

    at = numba.njit(pixel)

    # written out: a tuple of arguments cannot be unpacked in a loop that is to be vectorised
    def of_two(s: Any, w: Any, y: int, x: int) -> Any:
        return formula(at(s, w[0], y, x), at(s, w[1], y, x))

    def of_three(s: Any, w: Any, y: int, x: int) -> Any:
        return formula(at(s, w[0], y, x), at(s, w[1], y, x), at(s, w[2], y, x))

    def of_four(s: Any, w: Any, y: int, x: int) -> Any:
        return formula(at(s, w[0], y, x), at(s, w[1], y, x), at(s, w[2], y, x), at(s, w[3], y, x))

    inner = numba.njit({2: of_two, 3: of_three, 4: of_four}[count])
    return numba.njit(lambda s, w, y, x: min(max(inner(s, w, y, x), low), high))


def _row_of(value: Any) -> Any:
    def row(image: Any, y: int, counted: Any, values: Any, sums: Any) -> None:
        (stack, which), n, total = image, sums[0], sums[1]
        # one row of pixels: its values are kept, the columns' counts and sums grow
        for x in range(values.shape[0]):
            found = value(stack, which, y, x)
            values[x] = found
            n[x] += counted[y, x]
            total[x] += np.float64(found) if counted[y, x] else 0.0

    return row


def _squares(values: Any, y: int, counted: Any, mean: Any, square: Any) -> None:
    for x in range(values.shape[0]):
        distance = np.float64(values[x]) - mean[x]
        square[x] += distance * distance if counted[y, x] else 0.0


def _pass_of(row: Any, squares: Any) -> Any:
    def whole(stack: Any, which: Any, counted: Any, cell: int, out: Any) -> None:
        width = out.shape[1] * cell
        values = np.empty((cell, width), np.float32)
        sums, mean, square = np.empty((2, width)), np.empty(width), np.empty(width)
        n, total = sums[0], sums[1]
        for cy in range(out.shape[0]):
            sums[:], square[:] = 0, 0
            for y in range(cell):
                row((stack, which), cy * cell + y, counted, values[y], sums)
            for cx in range(out.shape[1]):
                part = slice(cx * cell, (cx + 1) * cell)
                out[cy, cx, 0] = n[part].sum()
                mean[part] = total[part].sum() / max(n[part].sum(), 1.0)
                out[cy, cx, 1] = mean[cx * cell]
            # a second pass: a sum of squares less a square would lose the deviation of flat cells
            for y in range(cell):
                squares(values[y], cy * cell + y, counted, mean, square)
            for cx in range(out.shape[1]):
                part = slice(cx * cell, (cx + 1) * cell)
                out[cy, cx, 2] = np.sqrt(square[part].sum() / max(n[part].sum(), 1.0))

    return whole
