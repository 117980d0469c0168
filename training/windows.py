"""Tiles larger than the model's images, cut into windows that give each pixel once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sample import NO_CLASS, Sample
from training.stream import Samples


class Windows:
    """The windows of samples, row by row; where the last ones overlap others, pixels scored before have no class."""

    def __init__(self, samples: Samples, tile_px: int, image_px: int, cell_px: int) -> None:
        self.samples, self.image_px, self.cell_px = samples, image_px, cell_px
        self.starts = starts(tile_px, image_px)

    def __len__(self) -> int:
        """Return the number of windows of all samples."""
        return len(self.samples) * len(self.starts) ** 2

    def read(self, number: int) -> Sample:
        """Cut one window."""
        sample, inside = divmod(number, len(self.starts) ** 2)
        return self._cut(self.samples.read(sample), *divmod(inside, len(self.starts)))

    def _cut(self, sample: Sample, row: int, column: int) -> Sample:
        at = self.starts[row], self.starts[column]

        def part(array: NDArray[Any], unit_px: int) -> NDArray[Any]:
            y, x = (slice(s // unit_px, (s + self.image_px) // unit_px) for s in at)
            return array[..., y, x]

        # y and x to the end, where the other arrays have them: one cut serves all
        cells = part(np.moveaxis(sample.cells, -1, 0), self.cell_px)
        label = sample.label
        if isinstance(label, np.ndarray):
            label = self._once(part(label, 1), row, column)
        return replace(
            sample,
            pixels=part(sample.pixels, 1),
            mask=part(sample.mask, 1),
            cells=np.moveaxis(cells, 0, -1),
            label=label,
            after=None if sample.after is None else part(sample.after, 1),
        )

    def _once(self, codes: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
        """Return the class numbers without those of pixels that the windows before hold too."""
        once = codes.copy()
        once[: overlap(self.starts, row, self.image_px)] = NO_CLASS
        once[:, : overlap(self.starts, column, self.image_px)] = NO_CLASS
        return once


def starts(side_px: int, image_px: int, step_px: int | None = None) -> tuple[int, ...]:
    """Return the first pixels of windows that cover a side, the last one flush with its end."""
    last = max(side_px - image_px, 0)
    return (*range(0, last, step_px or image_px), last)


def overlap(firsts: tuple[int, ...], number: int, image_px: int) -> int:
    """Return how many pixels at its beginning a window shares with the one before."""
    return firsts[number - 1] + image_px - firsts[number] if number else 0
