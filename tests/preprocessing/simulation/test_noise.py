"""Fields and parcels: smooth, bounded, and functions of their key."""

import numpy as np
import pytest

from preprocessing.simulation.noise import fractal, grid, noise, parcels


@pytest.mark.parametrize("field", [noise, fractal])
@pytest.mark.parametrize("cell_px", [1.7, 16, 500])
def test_noise_is_bounded_smooth_and_a_function_of_its_key(field, cell_px):
    points = grid(96, "a")
    values = field(points, cell_px, "name")
    assert values.dtype == np.float32 and values.shape == (96, 96)
    assert values.min() >= 0 and values.max() <= 1
    np.testing.assert_array_equal(values, field(grid(96, "a"), cell_px, "name"))
    assert (values != field(points, cell_px, "other")).any()
    assert (values != field(grid(96, "b"), cell_px, "name")).any()
    if cell_px == 500:
        assert np.abs(np.diff(values, axis=0)).max() < 0.1


def test_chosen_points_see_the_field_of_their_own_key():
    points = grid(64, "a")
    chosen = points.x > 40
    part = points.take(chosen, "right")
    assert part.x.shape == (int(chosen.sum()),)
    np.testing.assert_array_equal(noise(part, 8, "n"), noise(points.take(chosen, "right"), 8, "n"))


@pytest.mark.parametrize("angle_rad", [0.0, 0.7])
def test_every_parcel_is_one_brick_with_one_draw(angle_rad):
    laid = parcels(grid(96, "a"), angle_rad, (20, 10), "fields")
    assert laid.along.min() >= 0 and laid.along.max() <= 20
    assert laid.across.min() >= 0 and laid.across.max() <= 10
    draw = laid.draw("crop")
    bricks = np.stack([laid.row.ravel(), laid.column.ravel()])
    names, position = np.unique(bricks, axis=1, return_inverse=True)
    assert names.shape[1] > 20
    sizes = np.bincount(position.ravel())
    assert sizes.max() <= 1.15 * 20 * 10
    values = np.unique(np.stack([position.ravel().astype(np.float32), draw.ravel()]), axis=1)
    assert values.shape[1] == names.shape[1]
    assert 0.3 < draw.mean() < 0.7
    assert (draw != laid.draw("light")).any()
