"""Windows give each pixel of a tile once, at any size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.sample import NO_CLASS, Sample
from tests.training.shard_sets import Kind, make_sample
from training.windows import Windows, starts


class One:
    """A sample as a row of one."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def read(self, number: int) -> Sample:
        return self.sample


@pytest.mark.parametrize(("image_px", "count"), [(48, 1), (24, 4), (32, 4), (16, 9), (40, 4)])
def test_each_pixel_is_scored_once(image_px: int, count: int) -> None:
    sample = make_sample(8, Kind(dates=2))
    windows = Windows(One(sample), 48, image_px, 8)
    assert len(windows) == count
    scored, seen = np.zeros((48, 48), int), np.zeros((48, 48), int)
    firsts = starts(48, image_px)
    for number in range(count):
        row, column = (firsts[i] for i in divmod(number, len(firsts)))
        here = np.s_[row : row + image_px, column : column + image_px]
        window = windows.read(number)
        assert (window.pixels == sample.pixels[:, *here]).all()
        assert window.after is not None and sample.after is not None
        assert (window.after == sample.after[:, *here]).all()
        cells = np.s_[row // 8 : (row + image_px) // 8, column // 8 : (column + image_px) // 8]
        assert (window.cells == sample.cells[:, *cells]).all()
        known = window.label != NO_CLASS
        assert (window.label[known] == sample.label[here][known]).all()  # type: ignore[index]
        scored[here] += known
        seen[here] += 1
    assert (scored == 1).all()
    assert (seen >= 1).all()


@pytest.mark.parametrize(("side", "window", "step"), [(100, 32, 16), (32, 32, 8), (20, 32, 16), (65, 32, 32)])
def test_windows_cover_a_side_and_stay_inside(side: int, window: int, step: int) -> None:
    firsts = starts(side, window, step)
    covered = {px for first in firsts for px in range(first, first + window)}
    assert set(range(side)) <= covered
    assert firsts[0] == 0
    assert firsts[-1] == max(side - window, 0)
    assert all(0 < b - a <= step for a, b in pairwise(firsts))
