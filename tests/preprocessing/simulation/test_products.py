"""From reflectance to digital numbers and quality layers, as each product stores them."""

import math

import numpy as np
import pytest

from preprocessing.simulation import landsat, landsat_metadata, safe
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


@pytest.mark.parametrize("kind", landsat.RESCALING)
def test_landsat_numbers_come_back_as_reflectance(kind):
    dn = landsat.digital_numbers(REFLECTANCE, INSIDE, kind)
    factor, summand = landsat.RESCALING[kind]
    sun = math.sin(math.radians(landsat.SUN_ELEVATION)) if kind.startswith("L1") else 1
    fits = (dn < np.iinfo(dn.dtype).max) & (dn > 1)
    assert fits.sum() >= 2
    np.testing.assert_allclose(
        (dn[fits] * factor + summand) / sun, REFLECTANCE[fits], atol=0.51 * factor / sun
    )


def test_gaps_widen_to_both_edges_and_have_a_rim_of_invented_values():
    gaps = landsat.scan_gaps(64)
    share = gaps.mean(0)
    assert share[31:33].max() <= 1 / landsat.GAP_PERIOD_PX
    assert share[0] >= share[16] > share[30]
    assert 0.1 < gaps.mean() < 0.4
    field = np.random.default_rng(1).random((64, 64), np.float32)
    changed = landsat.interpolated(field, gaps) != field
    assert changed[gaps].all()
    assert changed.sum() > 1.5 * gaps.sum()
    assert landsat.interpolated(field, gaps & False) is field


def test_beyond_the_swath_is_fill():
    outside = ~INSIDE
    assert not safe.digital_numbers(REFLECTANCE, outside, -1000).any()
    assert not landsat.digital_numbers(REFLECTANCE, outside, "L2").any()


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
    text = landsat_metadata.mtl_text({"A": {"X": 1, "DATE": "2024-06-02", "S": "word"}, "B": {"X": 2.0}})
    assert text.count("GROUP = A") == 2  # GROUP and END_GROUP
    assert '    S = "word"' in text and "    DATE = 2024-06-02" in text
    assert text.endswith("END_GROUP = LANDSAT_METADATA_FILE\nEND\n")
