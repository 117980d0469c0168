"""From reflectance to digital numbers and quality layers, as each product stores them."""

import math

import numpy as np
import pytest

from preprocessing.simulation import landsat, safe
from preprocessing.simulation.view import make_view

REFLECTANCE = np.array([[-0.05, 0.0, 0.12345], [0.5, 1.2, 9.0]], np.float32)
INSIDE = np.zeros(REFLECTANCE.shape, bool)


@pytest.mark.parametrize("offset_dn", [0, -1000])
def test_sentinel_2_numbers_come_back_as_reflectance(offset_dn):
    dn = safe.digital_numbers(REFLECTANCE, INSIDE, offset_dn)
    assert dn.dtype == np.uint16 and dn.min() >= 1 and dn.max() == safe.LARGEST_DN
    back = (dn[dn < safe.LARGEST_DN].astype(float) + offset_dn) / safe.QUANTIFICATION
    kept = REFLECTANCE[dn < safe.LARGEST_DN]
    negative_is_lost = np.maximum(kept, 1e-4) if offset_dn == 0 else kept
    np.testing.assert_allclose(back, negative_is_lost, atol=0.5001e-4)


@pytest.mark.parametrize("level", ["L2SP", "L1TP"])
def test_landsat_numbers_come_back_as_reflectance(level):
    dn = landsat.digital_numbers(REFLECTANCE, INSIDE, level)
    factor, summand = landsat.RESCALING[level]
    sun = math.sin(math.radians(landsat.SUN_ELEVATION)) if level == "L1TP" else 1
    fits = dn < 65535
    assert fits.sum() >= 4
    np.testing.assert_allclose(
        (dn[fits] * factor + summand) / sun, REFLECTANCE[fits], atol=0.51 * factor / sun
    )


def test_beyond_the_swath_is_fill():
    outside = ~INSIDE
    assert not safe.digital_numbers(REFLECTANCE, outside, -1000).any()
    assert not landsat.digital_numbers(REFLECTANCE, outside, "L2SP").any()


def test_quality_has_a_rim_of_dilated_cloud():
    view = make_view(384, 5, "test")
    quality = landsat.quality(view)
    cloud = quality == 22280
    rim = quality == landsat.DILATED_CLOUD
    assert cloud.any() and rim.any()
    rows, columns = np.nonzero(rim)
    padded = np.pad(cloud, 1)
    beside = sum(padded[rows + i, columns + j] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2)))
    assert (beside > 0).all()


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_image_counts_are_told_right(tmp_path, level):
    options = safe.SafeOptions(192, level=level)
    told = []
    product = safe.write_safe(tmp_path, options, told.append)
    assert len(told) == safe.image_count(options) == len(list(product.rglob("IMG_DATA/**/*.jp2")))


def test_names_differ_by_seed_and_fit_the_specification():
    names = {landsat.LandsatOptions(192, seed).name for seed in range(200)}
    times = {landsat.LandsatOptions(192, seed).time for seed in range(200)}
    assert len(times) == 200
    assert all(len(name.split("_")) == 7 for name in names)


def test_metadata_text_closes_every_group():
    text = landsat.mtl_text({"A": {"X": 1, "DATE": "2024-06-02", "S": "word"}, "B": {"X": 2.0}})
    assert text.count("GROUP = A") == 2  # GROUP and END_GROUP
    assert '    S = "word"' in text and "    DATE = 2024-06-02" in text
    assert text.endswith("END_GROUP = LANDSAT_METADATA_FILE\nEND\n")
