import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.manifest import SceneRecord
from preprocessing import quality
from preprocessing.quality import Rejection


def scenes() -> list[SceneRecord]:
    fixed = {"reader": "r", "acquired": "", "level": "L2A"}
    return [
        SceneRecord(id="a", tiles={"train": 3, "cloud": 1}, **fixed),
        SceneRecord(id="b", tiles={"train": 2, "val": 1, "nodata": 4}, **fixed),
    ]


def test_statistics_are_those_of_the_counted_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.normal(2000, 900, (3, 200, 200)).astype(np.int16)
    counted = rng.random((200, 200)) > 0.3
    histogram = quality.empty_histogram(3)
    quality.count(histogram, pixels[:, :100], counted[:100])
    quality.count(histogram, pixels[:, 100:], counted[100:])
    for found, band in zip(quality.statistics(histogram), pixels, strict=True):
        values = band[counted] * 1e-4
        assert found.n == counted.sum()
        assert found.mean == pytest.approx(values.mean(), rel=1e-12)
        assert found.std == pytest.approx(values.std(), rel=1e-9)
        low, high = np.percentile(values, [0.5, 99.5], method="inverted_cdf")
        assert (found.low, found.high) == pytest.approx((low, high))


def test_the_sum_of_parts_does_not_depend_on_their_order():
    parts = []
    for seed in range(4):
        part = quality.empty_histogram(1)
        pixels = np.random.default_rng(seed).integers(-300, 12_000, (1, 50, 50)).astype(np.int16)
        quality.count(part, pixels, np.ones((50, 50), bool))
        parts.append(part)
    assert quality.statistics(sum(parts)) == quality.statistics(sum(parts[::-1]))


def test_p12_one_wild_pixel_does_not_move_the_quantiles():
    histogram = quality.empty_histogram(1)
    pixels = np.full((1, 100, 100), 1500, np.int16)
    pixels[0, 0, 0] = 32_767
    quality.count(histogram, pixels, np.ones((100, 100), bool))
    (found,) = quality.statistics(histogram)
    assert (found.low, found.high) == pytest.approx((0.15, 0.15))


def test_extreme_values_do_not_overflow():
    histogram = quality.empty_histogram(1)
    histogram[0, [1, -1]] = 2**40
    (found,) = quality.statistics(histogram)
    assert found.mean == pytest.approx(0, abs=1e-9)
    assert found.std == pytest.approx(3.2767)


def test_no_pixels_give_zeros():
    (found,) = quality.statistics(quality.empty_histogram(1))
    assert (found.n, found.mean, found.std) == (0, 0.0, 0.0)


def test_p04_rejections_are_a_table_that_people_may_edit(tmp_path):
    assert quality.read_rejected(tmp_path) == []
    told = [
        Rejection("/a b/ü.SAFE", 'no file of "B02", fetch it', "0123"),
        Rejection("/c", "r", quality.OPENING),
    ]
    quality.write_rejected(tmp_path, told)
    assert quality.read_rejected(tmp_path) == told
    path = tmp_path / quality.REJECTED
    assert path.read_text().splitlines()[0] == "product,reason,tried"
    path.write_text("product\n/by/hand\n")
    assert quality.read_rejected(tmp_path) == [Rejection("/by/hand", "by hand")]
    path.write_text("/by/hand,r\n")
    with pytest.raises(ConfigError, match="has no column `product`"):
        quality.read_rejected(tmp_path)


def test_tiles_are_summed_by_split_and_reason():
    assert quality.total_tiles(scenes()) == {"cloud": 1, "nodata": 4, "train": 5, "val": 1}
