"""What a band sees: averages of the ground, clouds over it, shadow on it, nothing beyond the swath."""

import numpy as np
import pytest

from preprocessing.simulation.landscape import LANDCOVER, make_ground
from preprocessing.simulation.spectra import CLOUD, MATERIALS, material_number
from preprocessing.simulation.view import SENSOR_NOISE, block_mean, factor, make_view, nearest


@pytest.fixture(scope="module")
def view():
    return make_view(384, 5, "test")


def test_block_means_and_nearest_pixels():
    field = np.arange(36, dtype=np.float32).reshape(6, 6)
    np.testing.assert_allclose(block_mean(field, 3), [[7, 10], [25, 28]])
    np.testing.assert_array_equal(nearest(field.astype(np.uint8), 3), [[7, 10], [25, 28]])
    assert block_mean(field, 1) is field
    assert [factor(gsd_m) for gsd_m in (10, 20, 30, 60)] == [1, 2, 3, 6]


def test_every_class_is_made_of_its_own_materials():
    ground = make_ground(384, 5)
    water = ground.classes == LANDCOVER.index("water")
    assert set(np.unique(ground.paint.first[water])) == {material_number("clear water")}
    assert MATERIALS[material_number("maize")].name == "maize"
    assert set(np.unique(ground.classes)) == set(range(1, len(LANDCOVER)))
    for field in (ground.paint.share, ground.paint.brightness):
        assert field.dtype == np.float32 and np.isfinite(field).all()
    assert ground.paint.share.min() >= 0 and ground.paint.share.max() <= 1
    assert ground.paint.brightness.min() > 0.5 and ground.paint.brightness.max() < 1.5


@pytest.mark.parametrize("centre_nm", [443.0, 665.0, 865.0, 1610.0, 2200.0])
def test_clouds_hide_and_shadows_darken(view, centre_nm):
    seen = view.reflectance(centre_nm)
    assert seen.dtype == np.float32 and seen.min() > 0 and seen.max() < 0.9
    np.testing.assert_allclose(seen[view.weather.cloud == 1], CLOUD.at(centre_nm), atol=1e-6)
    table = np.array([m.at(centre_nm) for m in MATERIALS])
    paint = view.ground.paint
    bare = (table[paint.first] * (1 - paint.share) + table[paint.second] * paint.share) * paint.brightness
    free = (view.weather.cloud == 0) & (view.weather.cirrus == 0)
    lit = free & (view.weather.shadow == 0)
    np.testing.assert_allclose(seen[lit], bare[lit], rtol=1e-5)
    dark = free & (view.weather.shadow == 1)
    assert dark.any()
    np.testing.assert_allclose(seen[dark], 0.4 * bare[dark], rtol=1e-4)


def test_haze_is_blue(view):
    added = {
        nm: float(np.median(view.reflectance(nm, haze=True) - view.reflectance(nm))) for nm in (443, 1610)
    }
    assert added[443] == pytest.approx(0.09, rel=1e-4)
    assert added[1610] < 0.001


@pytest.mark.parametrize("gsd_m", [10, 20, 60])
def test_a_measurement_is_the_mean_with_noise_of_the_detector(view, gsd_m):
    field = np.full((384, 384), 0.25, np.float32)
    measured = view.measure(field, gsd_m, "B04")
    assert measured.shape == (3840 // gsd_m,) * 2
    assert measured.mean() == pytest.approx(0.25, abs=3e-4)
    assert measured.std() == pytest.approx(SENSOR_NOISE, rel=0.1)
    np.testing.assert_array_equal(measured, view.measure(field, gsd_m, "B04"))
    assert (measured != view.measure(field, gsd_m, "B03")).any()


def test_beyond_the_swath_wins_over_everything(view):
    for gsd_m in (20, 30, 60):
        outside = view.outside(gsd_m)
        assert (view.scene_classification(gsd_m)[outside] == 0).all()
        assert (view.scene_classification(gsd_m)[~outside] != 0).all()
        assert (view.classes(gsd_m)[outside] == 0).all()
