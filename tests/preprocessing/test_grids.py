import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from pipeline.errors import SceneError
from preprocessing import grids
from preprocessing.grids import Grid

UTM = CRS.from_epsg(32633)
DEGREES = CRS.from_epsg(4326)


def utm(gsd_m: float, side_px: int, left: float = 500_000, top: float = 5_000_000) -> Grid:
    return Grid(UTM, Affine(gsd_m, 0, left, 0, -gsd_m, top), side_px, side_px)


def write(path, grid: Grid, crs=UTM, transform=None):
    profile = {
        "driver": "GTiff",
        "width": grid.width_px,
        "height": grid.height_px,
        "count": 1,
        "dtype": "uint8",
    }
    with rasterio.open(path, "w", crs=crs, transform=transform or grid.transform, **profile) as raster:
        raster.write(np.zeros(grid.shape_px, np.uint8), 1)
    return str(path)


def test_native_takes_the_finest_bands_own_grid_and_crs():
    assert grids.choose(utm(10, 549), None, None) == utm(10, 549)


def test_a_number_keeps_the_upper_left_corner():
    assert grids.choose(utm(10, 600), 60, None) == utm(60, 100)


def test_a_part_of_a_pixel_at_the_edge_is_left_out():
    assert grids.choose(utm(10, 605), 60, None).shape_px == (100, 100)


@pytest.mark.parametrize("gsd_m", [9.95, 10, 10.05])
def test_a_number_within_a_percent_of_the_native_pixel_takes_the_native_grid(gsd_m):
    assert grids.choose(utm(10, 600), gsd_m, None) == utm(10, 600)


def test_metres_in_a_geographic_grid_are_those_at_its_centre():
    fine = Grid(DEGREES, Affine(1e-4, 0, 12.0, 0, -1e-4, 60.0), 1000, 500)
    coarse = grids.choose(fine, 60, None)
    assert coarse.pixel_m == pytest.approx((60, 60), rel=1e-3)
    assert (coarse.transform.c, coarse.transform.f) == (12.0, 60.0)


@pytest.mark.parametrize(
    ("latitude", "along_x", "along_y"), [(0, 111_319.5, 110_574.3), (60, 55_800.0, 111_412.3)]
)
def test_metres_per_degree_on_the_ellipsoid(latitude, along_x, along_y):
    assert grids.metres_per_degree(latitude) == pytest.approx((along_x, along_y), abs=0.5)


def test_another_crs_gives_a_grid_there():
    there = grids.choose(utm(10, 300), 10, "EPSG:32632")
    assert there.crs == CRS.from_epsg(32632)
    assert there.pixel_m == pytest.approx((10, 10))


def test_lonlat_of_the_central_meridian():
    lon, lat = utm(10, 300).lonlat(np.array([0.0]), np.array([0.0]))
    assert lon == pytest.approx(15.0)
    assert lat == pytest.approx(45.153, abs=1e-3)


def test_p07_extents_may_differ_by_half_a_coarsest_pixel():
    grids.check_together(["a", "b"], [utm(60, 100), utm(10, 600, left=500_030)])


def test_p07_more_than_half_a_coarsest_pixel_names_both_files():
    with pytest.raises(SceneError, match=r"a\.tif and b\.tif cover different ground"):
        grids.check_together(["a.tif", "b.tif"], [utm(60, 100), utm(10, 600, left=500_031)])


def test_p07_another_crs_names_both_files():
    other = Grid(CRS.from_epsg(32632), utm(10, 600).transform, 600, 600)
    with pytest.raises(
        SceneError, match=r"a\.tif and b\.tif have different coordinate systems.*32633.*32632"
    ):
        grids.check_together(["a.tif", "b.tif"], [utm(10, 600), other])


@pytest.mark.parametrize("factor", [1, 2, 6, 6.03])
def test_up_to_six_times_is_enlarged_with_slack_for_cropped_grids(factor):
    grids.check_upsampling("B01", utm(10 * factor, 100), utm(10, 600))


def test_more_than_six_times_is_refused_naming_band_and_key():
    with pytest.raises(SceneError, match=r"band B01 .* 7\.0 times .*`gsd_m`"):
        grids.check_upsampling("B01", utm(70, 100), utm(10, 700))


def test_a_files_own_grid_is_read(tmp_path):
    assert grids.read_grid(write(tmp_path / "x.tif", utm(20, 16))) == utm(20, 16)


def test_a_file_without_crs_or_rotated_is_refused(tmp_path):
    with pytest.raises(SceneError, match=r"plain\.tif has no coordinate system"):
        grids.read_grid(write(tmp_path / "plain.tif", utm(20, 16), crs=None))
    turned = Affine(10, 2, 0, 2, -10, 0)
    with pytest.raises(SceneError, match=r"turned\.tif is rotated"):
        grids.read_grid(write(tmp_path / "turned.tif", utm(20, 16), transform=turned))


def test_a_missing_or_empty_file_is_named(tmp_path):
    (tmp_path / "empty.tif").touch()
    for name in ("empty.tif", "absent.tif"):
        with pytest.raises(SceneError, match=name):
            grids.read_grid(str(tmp_path / name))
