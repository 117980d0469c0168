"""A scene whose histogram contradicts its offset is warned of, and only such a scene."""

import re
import shutil

import numpy as np
import pytest

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.config import ROOT
from pipeline.sample import NODATA
from pipeline.sensors import SENSORS
from preprocessing import radiometry, shard
from preprocessing.offset_check import doubts
from preprocessing.readers import Request, discover
from preprocessing.scenes import BandSource, Scene
from preprocessing.simulation.safe import SafeOptions, write_safe

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")


def scene(offset: float, sensor: str = "sentinel2", bands=("B04", "B08")) -> Scene:
    sources = tuple(BandSource(name, "", 1e-4, offset) for name in bands)
    return Scene("s", sensor, "L2A", "r", None, "2020", sources)


def histogram(*bands: tuple[int, int]) -> np.ndarray:
    """Pixels of each band, evenly from the first number to the second."""
    counts = histograms.empty(len(bands))
    for row, (low, high) in zip(counts, bands, strict=True):
        row[low - NODATA : high - NODATA] += 10
    return counts


@pytest.mark.parametrize(
    ("offset", "bands", "told"),
    [
        (-0.1, [(-700, 500), (500, 4000)], "42% of B04 lies below reflectance -0.02.*offset: applied"),
        (-0.1, [(-250, 1500), (500, 4000)], None),
        (-0.1, [(1100, 3000), (1500, 4000)], None),
        (0.0, [(1100, 3000), (1500, 4000)], "no band is darker than reflectance 0.09"),
        (0.0, [(1100, 3000), (200, 4000)], None),
        (0.0, [(-700, 500), (500, 4000)], None),
    ],
)
def test_rules(offset, bands, told):
    found = doubts(scene(offset), histogram(*bands), NODATA)
    assert len(found) == (told is not None)
    if told:
        assert re.search(told, found[0]) and found[0].startswith("warning: ")


def test_other_sensors_and_too_few_pixels_say_nothing():
    odd = histogram((-700, 500), (-700, 500))
    assert doubts(scene(-0.1, "landsat_oli"), odd, NODATA) == ()
    assert doubts(scene(-0.1), odd // 10 * (odd.cumsum(1) < 9000), NODATA) == ()
    assert doubts(scene(0.0), histograms.empty(2), NODATA) == ()


def make(archive, output, *words):
    given = [
        str(ROOT / "configs/shard/demo_sentinel2.yaml"),
        f"scenes={archive}",
        f"output={output}",
        "workers=0",
    ]
    assert shard.main([*given, "tile_px=24", "split.val_share=0", "min_valid=0", "min_clear=0", *words]) == 0
    return manifests.read(output).scenes[0].notes


def test_the_run_and_the_manifest_tell(tmp_path, capsys):
    """Numbers that have the offset applied already, under metadata that still states it; and the reverse."""
    sound = write_safe(tmp_path / "a", SafeOptions(192))
    old = write_safe(tmp_path / "b", SafeOptions(192, baseline="02.14"))
    shutil.copyfile(sound / "MTD_MSIL2A.xml", old / "MTD_MSIL2A.xml")
    (old / "manifest.safe").unlink()
    assert not any("warning" in note for note in make(tmp_path / "a", tmp_path / "1"))
    assert "warning" not in capsys.readouterr().out
    assert make(tmp_path / "b", tmp_path / "2")[-1].startswith("warning: ")
    assert "applied the offset already" in capsys.readouterr().out
    assert "-1000 was left out" in make(tmp_path / "a", tmp_path / "3", "offset=applied")[-1]
    assert not any("warning" in note for note in make(tmp_path / "b", tmp_path / "4", "offset=applied"))


def of_real(scene: Scene) -> np.ndarray:
    counts = histograms.empty(len(scene.bands))
    layout = radiometry.lay_out(scene, None, None)
    for row, image in zip(counts, radiometry.band_images(layout, "nearest"), strict=True):
        histograms.count(row[None], image.pixels[None], image.pixels != NODATA)
    return counts


def test_real_scenes_of_before_the_offset_are_not_doubted_and_doubted_when_it_is_taken_off(real_data):
    request = Request(SENSORS["sentinel2"], BANDS)
    found = discover(real_data / "oscd", request, "oscd")[::5]
    wrong = 0
    for reader, product in found:
        sound = reader.open(product, request)
        counts = of_real(sound)
        assert doubts(sound, counts, NODATA) == ()
        twice = scene(-0.1, bands=BANDS)
        wrong += bool(doubts(twice, np.roll(counts, -1000, axis=1), NODATA))
        assert doubts(sound, np.roll(counts, 1000, axis=1), NODATA)
    assert wrong >= len(found) - 1
