import numpy as np
import pytest

from pipeline import manifest as manifests
from preprocessing import panels, pictures
from preprocessing.archive import FOLDER, StoredScene


@pytest.fixture(scope="module")
def made(shard_set):
    return manifests.read(shard_set)


@pytest.fixture(scope="module")
def tile(shard_set, made):
    return pictures.first_samples(shard_set, made, "train", 1)[0]


def test_natural_colours_are_red_green_blue_by_role(made, tile):
    picture = pictures.natural_colours(made, tile)
    for channel, band in zip(picture, ("B04", "B03", "B02"), strict=True):
        place = made.contract.band_names.index(band)
        order = np.argsort(tile.pixels[place].ravel(), kind="stable")
        assert (np.diff(channel.ravel()[order].astype(int)) >= 0).all()


def test_a_set_without_a_colour_is_shown_in_grey():
    assert pictures.colour_places("sentinel2", ("B08", "B02", "B03", "B04")) == [3, 2, 1]
    assert pictures.colour_places("sentinel2", ("B08", "B11")) == [0, 0, 0]


def test_heat_rises_with_saliency_by_cells(tile):
    picture = pictures.heat(tile)
    assert picture.shape == (3, 48, 48)
    cells = picture.reshape(3, 6, 8, 6, 8)
    assert (cells == cells[:, :, :1, :, :1]).all()
    assert picture[0].max() == 255
    assert not picture[2].any()


def test_indices_are_coloured_from_brown_over_white_to_green():
    low, middle, high, unknown = pictures.diverging(np.array([[-2.0, 0.0, 1.0, np.nan]]))[:, 0].T
    assert low[0] > low[1] > low[2]
    assert middle.min() > 230
    assert high[1] > max(high[0], high[2])
    assert unknown.tolist() == [128] * 3


def test_panels_of_indices_are_those_of_reflectance(shard_set, made, tile):
    ndvi, *_ = panels.index_values(made.contract, tile.pixels)
    red, nir = tile.pixels[made.contract.band_positions(("B04", "B08"))] * 1e-4
    dark = nir + red < 0.02
    np.testing.assert_allclose(ndvi[~dark], np.clip((nir - red) / (nir + red), -1, 1)[~dark], atol=1e-5)
    stored = StoredScene(shard_set / FOLDER / made.scenes[0].id)
    shown = panels.of_scene(made, stored)
    assert shown.titles == ("natural colours", "NDVI", "NDWI", "NDBI", "saliency")
