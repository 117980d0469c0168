import math

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from preprocessing import resampling
from preprocessing.grids import Grid

UTM = CRS.from_epsg(32633)


def grid(pixel: float, width: int, height: int, left: float = 0, top: float = 0) -> Grid:
    return Grid(UTM, Affine(pixel, 0, left, 0, -pixel, top), width, height)


def run(values, valid, source, target, how="bilinear", strip_px=1000):
    """Resample some rows at a time, from no more than the source rows that are asked for."""
    way, parts = resampling.between(source, target, how), []
    for rows in resampling.strips(target.height_px, strip_px):
        low, high = way.span(rows)
        mixed = way.mix(values[low:high].astype(np.float32), valid[low:high], low, rows)
        parts += [part for _, part in mixed]
    return np.concatenate(parts)


def by_hand(values, valid, source, target):
    """The definition, pixel by pixel: four neighbours, clamped, weights renormalised over the valid ones."""
    result = np.full(target.shape_px, np.nan)
    height, width = values.shape
    for i, j in np.ndindex(*target.shape_px):
        x, y = (centres[k] for centres, k in zip(target.centres(), (j, i), strict=True))
        u, v = (x - source.transform.c) / source.transform.a, (y - source.transform.f) / source.transform.e
        own = (min(max(math.floor(v), 0), height - 1), min(max(math.floor(u), 0), width - 1))
        if not valid[own]:
            continue
        total = weight = 0.0
        for row in (math.floor(v - 0.5), math.floor(v - 0.5) + 1):
            for column in (math.floor(u - 0.5), math.floor(u - 0.5) + 1):
                w = (1 - abs(v - 0.5 - row)) * (1 - abs(u - 0.5 - column))
                at = (min(max(row, 0), height - 1), min(max(column, 0), width - 1))
                total, weight = total + w * values[at] * valid[at], weight + w * valid[at]
        result[i, j] = total / weight
    return result


@pytest.fixture
def scene(rng=None):
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 10_000, (13, 11))
    valid = rng.random((13, 11)) > 0.2
    return values, valid


@pytest.mark.parametrize("pixel", [10.0, 3.3, 1.66], ids=["same size", "3.03 times", "6.02 times"])
@pytest.mark.parametrize("shift", [0.0, 4.0], ids=["nested", "shifted"])
def test_bilinear_is_the_definition(scene, pixel, shift):
    values, valid = scene
    target = grid(pixel, int(105 / pixel), int(128 / pixel), left=shift, top=shift)
    source = grid(10, 11, 13)
    np.testing.assert_allclose(
        run(values, valid, source, target), by_hand(values, valid, source, target), rtol=2e-5, atol=2e-2
    )


def test_bilinear_equals_gdal_where_nothing_is_missing(scene):
    values, source, target = scene[0].astype(np.float32), grid(10, 11, 13), grid(1.66, 66, 78)
    expected = np.empty(target.shape_px, np.float32)
    places = {"src_transform": source.transform, "dst_transform": target.transform}
    reproject(values, expected, **places, src_crs=UTM, dst_crs=UTM, resampling=Resampling.bilinear)
    np.testing.assert_allclose(run(values, np.ones_like(values, bool), source, target), expected, rtol=1e-4)


@pytest.mark.parametrize("pixel", [5.0, 10.0, 20.0, 30.0])
def test_a_slope_stays_a_slope_whichever_way_it_is_resampled(pixel):
    source = grid(10, 36, 36)
    values = np.broadcast_to(np.arange(36) * 10 + 5.0, (36, 36))
    target = grid(pixel, int(360 / pixel), int(360 / pixel))
    x, _ = target.centres()
    inner = slice(2, -2)
    result = run(values, np.ones((36, 36), bool), source, target)[inner, inner]
    np.testing.assert_allclose(result, np.broadcast_to(x[inner], result.shape), rtol=1e-5)


def test_a_coarser_target_counts_every_source_pixel():
    values = np.zeros((24, 24))
    values[12, 12] = 36.0
    result = run(values, np.ones((24, 24), bool), grid(1, 24, 24), grid(6, 4, 4))
    assert result.sum() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("how", ["bilinear", "cubic"])
@pytest.mark.parametrize("strip_px", [1, 5, 30])
def test_strips_do_not_show(scene, how, strip_px):
    values, valid = scene
    source, target = grid(10, 11, 13), grid(3, 36, 43)
    whole = run(values, valid, source, target, how)
    np.testing.assert_array_equal(run(values, valid, source, target, how, strip_px), whole)


@pytest.mark.parametrize("how", ["bilinear", "cubic"])
def test_strips_in_another_crs_do_not_show(how):
    source = Grid(UTM, Affine(10, 0, 420_000, 0, -10, 5_000_000), 90, 120)
    other = CRS.from_epsg(32632)
    x, y = transform(UTM, other, [420_000, 420_900], [5_000_000, 4_998_800])
    target = Grid(other, Affine(10, 0, x[0] - 60, 0, -10, y[0] + 60), 100, 130)
    values = np.add.outer(np.arange(120) * 3.0, np.arange(90) * 7.0)
    whole = run(values, values >= 0, source, target, how)
    assert np.isfinite(whole).mean() > 0.5
    parts = run(values, values >= 0, source, target, how, 32)
    # GDAL's own lines between reprojected points: a tenth of a pixel, but at the corners of the source
    assert (np.isnan(parts) == np.isnan(whole)).mean() > 0.999
    assert np.nanquantile(np.abs(parts - whole), 0.995) < 0.7


def test_rows_of_the_source_are_asked_for_in_order():
    for target in (
        grid(3, 36, 43),
        grid(25, 4, 5),
        Grid(CRS.from_epsg(32632), grid(3, 1, 1).transform, 36, 43),
    ):
        way = resampling.between(grid(10, 11, 13), target, "cubic")
        spans = [way.span(rows) for rows in resampling.strips(target.height_px, 2)]
        assert spans == sorted(spans)


def test_cubic_equals_gdal_where_nothing_is_missing():
    values = np.random.default_rng(2).uniform(0, 10_000, (40, 30)).astype(np.float32)
    source, target = grid(10, 30, 40), grid(2.5, 120, 160)
    expected = np.empty(target.shape_px, np.float32)
    places = {"src_transform": source.transform, "dst_transform": target.transform}
    reproject(values, expected, **places, src_crs=UTM, dst_crs=UTM, resampling=Resampling.cubic)
    inner = slice(12, -12)  # beyond the edge GDAL takes fewer taps
    found = run(values, np.ones_like(values, bool), source, target, "cubic")
    np.testing.assert_allclose(found[inner, inner], expected[inner, inner], rtol=1e-3, atol=2)


def test_cubic_beside_a_gap_is_bilinear_and_far_from_it_cubic():
    rng = np.random.default_rng(3)
    values, valid = rng.uniform(0, 10_000, (30, 30)), np.ones((30, 30), bool)
    source, target = grid(10, 30, 30), grid(5, 60, 60)
    cubic = run(values, valid, source, target, "cubic")
    valid[15, 15] = False
    found, bilinear = (run(values, valid, source, target, how) for how in ("cubic", "bilinear"))
    assert np.isnan(found[30:32, 30:32]).all()
    np.testing.assert_array_equal(found[29, 30:32], bilinear[29, 30:32])
    np.testing.assert_array_equal(found[:24], cubic[:24])


def test_nothing_valid_gives_nothing(scene):
    values, _ = scene
    assert np.isnan(run(values, np.zeros_like(values, bool), grid(10, 11, 13), grid(5, 22, 26))).all()


def test_classes_take_the_pixel_they_lie_in():
    codes = np.arange(4, dtype=np.uint8).reshape(2, 2)
    np.testing.assert_array_equal(
        resampling.nearest(codes, grid(20, 2, 2), grid(10, 4, 4)), np.kron(codes, np.ones((2, 2), np.uint8))
    )


def test_classes_on_a_coarser_grid_take_the_centre():
    codes = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert resampling.nearest(codes, grid(20, 3, 3), grid(60, 1, 1)).tolist() == [[4]]


def test_another_crs_leaves_zero_where_there_is_no_source():
    codes = np.ones((8, 8), np.uint8)
    source = Grid(UTM, Affine(10, 0, 500_000, 0, -10, 5_000_000), 8, 8)
    x, y = 12 + 3, 45.152
    target = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, x - 1e-3, 0, -1e-4, y + 1e-3), 20, 20)
    result = resampling.nearest(codes, source, target)
    assert set(np.unique(result)) == {0, 1}
