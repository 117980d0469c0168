"""Rows of files: every block decoded once, whatever strips are asked for, and nothing silently missing."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline.errors import SceneError
from preprocessing import rows
from preprocessing.rows import RowReader

NUMBERS = np.random.default_rng(0).integers(1, 5000, (3, 200, 150)).astype(np.uint16)


@pytest.fixture
def raster(tmp_path):
    """Three interleaved layers in blocks of 64 px."""
    path = tmp_path / "a.tif"
    shape = {"width": 150, "height": 200, "count": 3, "dtype": "uint16"}
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel", "compress": "deflate"}
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **blocks, **place) as target:
        target.write(NUMBERS)
    return str(path)


@pytest.fixture
def windows(monkeypatch):
    """Every window that is read while a test runs, as (first row, end)."""
    found = []
    read = RowReader._read
    monkeypatch.setattr(
        RowReader, "_read", lambda self, low, high: (found.append((low, high)), read(self, low, high))[1]
    )
    return found


@pytest.mark.parametrize("step", [7, 64, 90, 200])
@pytest.mark.parametrize("overlap", [0, 3, 40])
def test_rows_are_those_of_the_file_and_every_block_is_read_once(raster, windows, step, overlap):
    with RowReader(raster, (1, 3)) as reader:
        for start in range(0, 200, step):
            low, high = max(start - overlap, 0), min(start + step, 200)
            np.testing.assert_array_equal(reader.take(low, high), NUMBERS[[0, 2], low:high])
    starts, ends = zip(*windows, strict=True)
    assert starts == (0, *ends[:-1])  # one after the other, nothing twice and nothing left out
    assert ends[-1] == 200
    assert all(start % 64 == 0 for start in starts)


def test_rows_that_nobody_asks_for_are_not_returned(raster):
    with RowReader(raster, (2,)) as reader:
        np.testing.assert_array_equal(reader.take(0, 10)[0], NUMBERS[1, :10])
        np.testing.assert_array_equal(reader.take(150, 160)[0], NUMBERS[1, 150:160])


def test_few_rows_are_held(raster):
    with RowReader(raster, (1,)) as reader:
        reader.take(0, 64)
        reader.take(128, 130)
        assert reader._held.shape[1] == 64


def test_a_file_is_closed_when_nobody_needs_it(raster):
    with RowReader(raster, (1,)) as reader:
        reader.take(0, 1)
        source = reader._source
    assert source.closed


def test_a_missing_layer_is_named(raster):
    with RowReader(raster, (4,)) as reader, pytest.raises(SceneError, match=r"a\.tif has no layer 4"):
        reader.take(0, 1)


def test_one_layer_whole_and_several(raster):
    np.testing.assert_array_equal(rows.read_numbers(raster, 0, 2), NUMBERS[1])
    np.testing.assert_array_equal(rows.read_numbers(raster, 0, (1, 2)), NUMBERS[:2])


def test_rows_that_are_let_go_are_not_held_and_what_follows_is_read_on(raster, windows):
    with RowReader(raster, (1,)) as reader:
        reader.take(0, 70)
        reader.release(70)
        assert reader._held.shape[1] == 128 - 70
        assert reader._held.base is None
        reader.release(128)
        np.testing.assert_array_equal(reader.take(128, 140)[0], NUMBERS[0, 128:140])
    assert windows == [(0, 128), (128, 192)]
