import numpy as np
import pytest
import rasterio

from pipeline import manifest as manifests
from pipeline.errors import MissingInputError, OutputError
from preprocessing import show


def test_a_table_and_a_picture(shard_set, tmp_path, capsys):
    picture = tmp_path / "sheet.png"
    assert show.main([str(shard_set), "--count", "7", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "NDVI from B08/B04" in out
    assert len([line for line in out.splitlines() if line.startswith("B")]) == 12
    with rasterio.open(picture) as png:
        assert (png.driver, png.count) == ("PNG", 3)
        assert png.shape == (2 * 52, 6 * 100)  # seven pairs of 48 px tiles in rows of six
        assert png.read(1).std() > 10


def test_natural_colours_are_red_green_blue_by_role(shard_set):
    made = manifests.read(shard_set)
    (tile,) = show.first_samples(shard_set, made, "train", 1)
    picture = show.natural_colours(made, tile)
    for channel, band in zip(picture, ("B04", "B03", "B02"), strict=True):
        place = made.contract.band_names.index(band)
        order = np.argsort(tile.pixels[place].ravel(), kind="stable")
        assert (np.diff(channel.ravel()[order].astype(int)) >= 0).all()


def test_heat_rises_with_saliency_by_cells(shard_set):
    made = manifests.read(shard_set)
    (tile,) = show.first_samples(shard_set, made, "train", 1)
    picture = show.heat(tile)
    assert picture.shape == (3, 48, 48)
    cells = picture.reshape(3, 6, 8, 6, 8)
    assert (cells == cells[:, :, :1, :, :1]).all()
    assert picture[0].max() == 255
    assert not picture[2].any()


def test_the_manifests_own_path_is_as_good(shard_set, tmp_path):
    picture = tmp_path / "sheet.png"
    assert show.main([str(shard_set / "manifest.json"), "--count", "1", "--picture", str(picture)]) == 0
    assert picture.exists()


@pytest.mark.parametrize("count", ["0", "-2", "many"])
def test_a_count_of_no_tiles_is_told(shard_set, capsys, count):
    with pytest.raises(SystemExit) as ended:
        show.main([str(shard_set), "--count", count])
    assert ended.value.code == 2
    assert "argument --count: " in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told(shard_set, tmp_path):
    picture = tmp_path / "none/sheet.png"
    with pytest.raises(OutputError, match=f"cannot write {picture} .*--picture"):
        show.main([str(shard_set), "--count", "1", "--picture", str(picture)])


def test_no_set_is_told(tmp_path):
    with pytest.raises(MissingInputError, match=f"no shard set at {tmp_path}"):
        show.main([str(tmp_path)])
