"""OSCD as pairs: both dates of a city in one sample on the first date's grid, with the change of every pixel."""

import numpy as np
import pytest
import rasterio

from pipeline import manifest as manifests
from pipeline.config import ROOT
from pipeline.sample import NODATA, Flag
from preprocessing import shard
from tests.preprocessing.patches import numbers, write_image
from tests.preprocessing.test_readers_geotiff import all_samples

CONFIG = str(ROOT / "configs/shard/oscd_change.yaml")
BANDS = ("B02", "B03", "B04", "B08", "B11")


def write_city(folder, city, later_px=96, labelled=True):
    """Write both dates of a city; the later one is 100 DN brighter and may lack some pixels of its last columns."""
    for date in (1, 2):
        for place, band in enumerate(BANDS):
            gsd_m = 20 if band == "B11" else 10
            side, wide = 960 // gsd_m, -(-later_px * 10 // gsd_m) if date == 2 else 960 // gsd_m
            dn = numbers(1, side, place) + np.uint16(100 * (date - 1))
            write_image(folder / "images" / city / f"imgs_{date}" / f"T_{band}.tif", dn[:, :, :wide], gsd_m)
    (folder / "images" / city / "dates.txt").write_text("date_1: 20160424\ndate_2: 20171011\n")
    if labelled:
        change = np.ones((1, 96, 96), np.uint8)
        change[0, 40:60, 10:30] = 2
        write_image(folder / "labels" / city / "cm" / f"{city}-cm.tif", change)


@pytest.fixture
def words(tmp_path):
    write_city(tmp_path / "in", "alpha")
    write_city(tmp_path / "in", "beta [old]", labelled=False)
    bands = f"bands=[{','.join(BANDS)}]"
    return [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}", bands, "split.val_share=0"]


def test_a_pair_is_one_sample_with_a_class_of_every_pixel(words, tmp_path):
    assert shard.main(words) == 0
    made = manifests.read(tmp_path / "out")
    contract = made.contract
    assert (contract.dates, contract.label_kind, contract.classes) == (2, "mask", ("no change", "change"))
    found = {s.info["scene"]: s for s in all_samples(tmp_path / "out")["train"]}
    alpha = found.pop("oscd_alpha")
    assert (alpha.after == alpha.pixels + 100).all()
    assert (
        alpha.label[45, 20] == 1 and (alpha.label == 1).sum() == 400 and set(np.unique(alpha.label)) == {0, 1}
    )
    (beta,) = found.values()
    assert beta.label is None and (beta.after == beta.pixels + 100).all()
    # the statistics know both dates
    assert made.statistics[0].n == 4 * 96 * 96
    assert any("CC BY-NC-SA" in notice for notice in made.notices)


def test_where_one_date_has_no_measurement_the_pair_has_none(words, tmp_path):
    path = tmp_path / "in/images/alpha/imgs_2/T_B03.tif"
    with rasterio.open(path, "r+") as raster:
        dn = raster.read(1)
        dn[:5] = 0
        raster.write(dn, 1)
    shard.main(words)
    alpha = {s.info["scene"]: s for s in all_samples(tmp_path / "out")["train"]}["oscd_alpha"]
    assert (alpha.mask[:5] & Flag.NODATA).all() and not (alpha.mask[5:] & Flag.NODATA).any()
    assert (alpha.after[1, :5] == NODATA).all() and (alpha.pixels[1] != NODATA).all()


def test_dates_that_differ_by_a_pixel_stay_on_the_first_grid(tmp_path):
    write_city(tmp_path / "in", "alpha", later_px=95)
    words = [f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "bands=[B02,B03,B04,B08,B11]"]
    assert shard.main([CONFIG, *words, "split.val_share=0"]) == 0
    (alpha,) = all_samples(tmp_path / "out")["train"]
    assert alpha.after.shape == alpha.pixels.shape == (5, 96, 96)
    assert (alpha.after[:4, :, :90] == alpha.pixels[:4, :, :90] + 100).all()


def test_published_lists_divide_by_city(words, tmp_path):
    (tmp_path / "train.txt").write_text("alpha")
    (tmp_path / "test.txt").write_text("beta [old],gamma")
    lists = [f"split.files.{split}={tmp_path / split}.txt" for split in ("train", "test")]
    shard.main([*words, "split.by=set", *lists])
    found = all_samples(tmp_path / "out")
    assert {split: [s.info["scene"][:10] for s in part] for split, part in found.items()} == {
        "train": ["oscd_alpha"],
        "test": ["oscd_beta-"],
    }


def test_real_pairs_have_the_change_they_are_published_with(real_data, tmp_path):
    words = [f"scenes={real_data / 'oscd'}", f"output={tmp_path / 'out'}", "bands=[B02,B03,B04,B08,B11]"]
    (tmp_path / "two").mkdir()
    for city in ("bercy", "rio", "hongkong"):
        (tmp_path / "two/images").mkdir(exist_ok=True)
        (tmp_path / "two/images" / city).symlink_to(real_data / "oscd/images" / city)
    (tmp_path / "two/labels").symlink_to(real_data / "oscd/labels")
    words = [f"scenes={tmp_path / 'two'}", *words[1:], "split.val_share=0", "tile_px=48"]
    assert shard.main([CONFIG, *words]) == 0
    found = all_samples(tmp_path / "out")["train"]
    labelled = [s for s in found if s.label is not None]
    assert {s.info["scene"] for s in labelled} == {"oscd_bercy", "oscd_hongkong"}
    changed = np.mean([(s.label == 1).mean() for s in labelled])
    assert 0.002 < changed < 0.2
    correlation = [np.corrcoef(s.pixels[0].ravel(), s.after[0].ravel())[0, 1] for s in found]
    assert np.median(correlation) > 0.3
