import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.saliency import MEAN, STD, N, cell_statistics, merge_cells, saliency


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (3, 48, 64)).astype(np.float32), rng.random((48, 64)) > 0.3


def test_statistics_are_population_statistics_of_counted_pixels(image):
    values, counted = image
    cells = cell_statistics(values, counted, 8)
    assert cells.shape == (3, 6, 8, 3)
    assert cells.dtype == np.float32
    part, inside = values[1, 16:24, 40:48], counted[16:24, 40:48]
    expected = (inside.sum(), part[inside].mean(dtype=np.float64), part[inside].std(dtype=np.float64))
    np.testing.assert_allclose(cells[1, 2, 5], expected, rtol=1e-6)


def test_cells_without_counted_pixels_are_zeros(image):
    values, counted = image
    counted[:8, :8] = False
    values[:, :8, :8] = np.nan
    cells = cell_statistics(values, counted, 8)
    assert (cells[:, 0, 0] == 0).all()
    assert np.isfinite(cells).all()


@pytest.mark.parametrize(
    "turn",
    [
        lambda a: a[..., ::-1, :],
        lambda a: a[..., ::-1],
        lambda a: np.rot90(a, axes=(-2, -1)),
        lambda a: a[..., 16:40, 8:56],
    ],
    ids=["flip", "mirror", "quarter turn", "crop on the grid"],
)
def test_augmentation_commutes_with_statistics_exactly(image, turn):
    values, counted = image
    on_cells = turn(np.moveaxis(cell_statistics(values, counted, 8), -1, 0))
    if on_cells.shape[-1] == 0 or on_cells.shape[-2] == 0 or turn(counted).shape != counted.shape:
        cells = np.moveaxis(cell_statistics(values, counted, 8), -1, 0)
        on_cells = np.rot90(cells, axes=(-2, -1)) if turn(counted).shape == (64, 48) else cells[..., 2:5, 1:7]
    after = np.moveaxis(cell_statistics(turn(values), turn(counted), 8), -1, 0)
    np.testing.assert_allclose(after, on_cells, atol=1e-7)
    np.testing.assert_array_equal(after[N], on_cells[N])


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_merged_cells_are_the_statistics_of_larger_ones(factor):
    rng = np.random.default_rng(1)
    values, counted = rng.uniform(-1, 1, (2, 96, 96)).astype(np.float32), rng.random((96, 96)) > 0.5
    merged = merge_cells(cell_statistics(values, counted, 8), factor)
    np.testing.assert_allclose(merged, cell_statistics(values, counted, 8 * factor), atol=1e-6)


def test_merging_empty_cells_ignores_them():
    cells = np.zeros((1, 2, 2, 3), np.float32)
    cells[0, 0, 0] = (10, 0.5, 0.1)
    np.testing.assert_allclose(merge_cells(cells, 2)[0, 0, 0], (10, 0.5, 0.1), rtol=1e-6)
    assert (merge_cells(np.zeros((1, 2, 2, 3), np.float32), 2) == 0).all()


def test_cells_that_do_not_fit_are_refused(image):
    with pytest.raises(ContractError, match="cells of 7 px do not divide an image of 48x64 px"):
        cell_statistics(*image, 7)
    with pytest.raises(ContractError, match="cells of 4 px do not divide"):
        merge_cells(np.zeros((1, 6, 8, 3), np.float32), 4)


def make_cells(mean, std, n=64):
    cells = np.zeros((1, 1, len(mean), 3), np.float32)
    cells[0, 0, :, N], cells[0, 0, :, MEAN], cells[0, 0, :, STD] = n, mean, std
    return cells


def test_saliency_ranks_richness_and_heterogeneity():
    cells = make_cells([0.1, -0.9, 0.5, 0.3], [0.3, 0.1, 0.2, 0.0])
    np.testing.assert_allclose(saliency(cells, 1.0), [0, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(saliency(cells, 0.0), [1, 1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(saliency(cells), [0.5, 2 / 3, 2 / 3, 1 / 6])


def test_ties_are_averaged_and_a_constant_image_has_no_preference():
    np.testing.assert_allclose(saliency(make_cells([0.5, 0.5, 0.9], [0, 0, 0]), 1.0), [0.25, 0.25, 1])
    assert len(set(saliency(make_cells([0.2] * 9, [0.1] * 9)))) == 1


def test_cells_without_clear_pixels_rank_lowest():
    cells = make_cells([0.0, 0.1, 0.2], [0.0, 0.0, 0.0])
    cells[0, 0, 1] = 0
    assert saliency(cells).argmin() == 1


def test_several_indices_blend_by_largest_mean_and_average_deviation():
    cells = np.concatenate([make_cells([0.1, 0.2], [0.4, 0.0]), make_cells([0.9, 0.0], [0.0, 0.2])])
    np.testing.assert_allclose(saliency(cells, 1.0), [1, 0])
    np.testing.assert_allclose(saliency(cells, 0.0), [1, 0])
