"""STAC Items whose assets lie on a web server: a real one, that is slow, busy or gone."""

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy

from pipeline import manifest as manifests
from pipeline.config import ROOT
from preprocessing import locations, rows, shard
from tests.preprocessing.patches import write_image
from tests.preprocessing.test_readers_geotiff import all_samples
from tests.preprocessing.web import HANG_S, serving

KEYS = {"blue": 10, "green": 10, "red": 10, "nir": 10, "nir08": 20, "scl": 20}
RASTER = [{"scale": 1e-4, "offset": -0.1, "nodata": 0}]
SIDE_M = 6400


def write_cogs(folder: Path) -> dict[str, np.ndarray]:
    """Write a scene's assets as COGs of several blocks; returns their numbers."""
    stored = {}
    for place, (key, gsd_m) in enumerate(KEYS.items()):
        shape = (1, SIDE_M // gsd_m, SIDE_M // gsd_m)
        random = np.random.default_rng(place)
        stored[key] = random.integers(1200, 4000, shape, np.uint16)
        if key == "scl":
            stored[key] = np.full(shape, 4, np.uint8)
        write_image(folder / "plain" / f"{key}.tif", stored[key], gsd_m)
        copy(
            folder / "plain" / f"{key}.tif",
            folder / f"{key}.tif",
            driver="COG",
            compress="DEFLATE",
            blocksize=256,
        )
    return stored


def write_item(folder: Path, name: str, base: str, with_grid: bool = False) -> None:
    """Write an Item of the assets below a URL."""
    assets = {key: {"href": f"{base}/{key}.tif", "raster:bands": RASTER} for key in KEYS}
    for key, gsd_m in KEYS.items() if with_grid else ():
        side = SIDE_M // gsd_m
        assets[key] |= {
            "proj:shape": [side, side],
            "proj:transform": [gsd_m, 0, 500_000, 0, -gsd_m, 5_300_000],
        }
    said = {"datetime": "2024-05-01T10:00:00Z", "platform": "sentinel-2a", "proj:code": "EPSG:32633"}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a"}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps(item | {"properties": said, "assets": assets, "links": []})
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of COGs, and their numbers."""
    folder = tmp_path_factory.mktemp("site")
    return folder, write_cogs(folder)


@pytest.fixture
def impatient(monkeypatch):
    """Wait for seconds, not for minutes."""
    for name, value in {
        "LOW_SPEED_TIME": "1",
        "TIMEOUT": "4",
        "MAX_RETRY": "2",
        "RETRY_DELAY": "0.1",
    }.items():
        monkeypatch.setitem(locations.GDAL_SETTINGS, f"GDAL_HTTP_{name}", value)
        monkeypatch.setitem(rows.GDAL_SETTINGS, f"GDAL_HTTP_{name}", value)


def run(scenes: Path, output: Path, *more: str) -> int:
    words = ["bands=[B02,B03,B04,B08,B8A]", "indices=[NDVI]", "tile_px=64", "split.val_share=0", "workers=0"]
    given = [f"scenes={scenes}", f"output={output}", "reader=stac", *words, *more]
    return shard.main([str(ROOT / "configs/shard/default.yaml"), *given])


def reasons(output: Path) -> dict[str, str]:
    with (output / "rejected.csv").open() as stream:
        return {Path(row["product"]).stem: row["reason"] for row in csv.DictReader(stream)}


def test_remote_assets_give_the_pixels_that_local_ones_give(site, tmp_path):
    folder, stored = site
    with serving(folder) as url:
        write_item(tmp_path / "items", "far", url)
        assert run(tmp_path / "items", tmp_path / "far") == 0
    write_item(tmp_path / "local", "far", str(folder))
    assert run(tmp_path / "local", tmp_path / "near") == 0
    far, near = (sorted(all_samples(tmp_path / one)["train"], key=lambda s: s.key) for one in ("far", "near"))
    assert len(far) == len(near) == 100
    for one, other in zip(far, near, strict=True):
        assert one.key == other.key
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert any(sample.pixels[0, 0, 0] == stored["blue"][0, 0, 0] - 1000 for sample in far)
    asked = (folder / "requests.log").read_text().splitlines()
    # in parts: headers and blocks, and nothing of what lies beside
    assert all(" bytes=" in line for line in asked if line.startswith("GET"))
    assert not any("plain" in line or ".aux" in line or line.split()[1] == "/" for line in asked)


def test_a_plan_of_stated_grids_asks_no_server(site, tmp_path, capsys):
    folder, _ = site
    with serving(folder) as url:
        (folder / "requests.log").unlink(missing_ok=True)
        write_item(tmp_path / "items", "far", url, with_grid=True)
        assert run(tmp_path / "items", tmp_path / "plan", "--dry-run") == 0
        assert not (folder / "requests.log").exists()
        assert "100" in capsys.readouterr().out
        assert run(tmp_path / "items", tmp_path / "set") == 0


def test_a_server_that_fails_costs_its_scene_and_not_the_run(site, tmp_path, impatient):
    folder, _ = site
    with serving(folder) as gone:
        pass
    with serving(folder) as url:
        bases = {
            "sound": url,
            "gone": gone,
            "busy": f"{url}/busy",
            "cut": f"{url}/cut",
            "hang": f"{url}/hang",
        }
        for name, base in {**bases, "none": f"{url}/elsewhere"}.items():
            write_item(tmp_path / "items", name, base)
        began = time.monotonic()
        assert run(tmp_path / "items", tmp_path / "set", "max_rejected=9", "duplicates=keep") == 0
        assert time.monotonic() - began < HANG_S / 2
    assert [scene.id for scene in manifests.read(tmp_path / "set").scenes] == ["sound"]
    told = reasons(tmp_path / "set")
    expected = {
        "gone": "Could not connect|Failed to connect",
        "busy": "503",
        "cut": "cannot be decoded",
        "hang": "Operation too slow|timed out",
        "none": "404",
    }
    assert sorted(told) == sorted(expected)
    for name, words in expected.items():
        assert any(word in told[name] for word in words.split("|")), told[name]
        assert f"/vsicurl/{bases.get(name, url)}/" in told[name]
        assert "its server does not give it" in told[name] and "rejected.csv" in told[name]


def test_a_scene_is_tried_again_when_its_line_is_taken_out(site, tmp_path):
    folder, _ = site
    with serving(folder) as url:
        write_item(tmp_path / "items", "one", url)
        write_item(tmp_path / "items", "two", f"{url}/late")
        words = ["max_rejected=1", "duplicates=keep"]
        assert run(tmp_path / "items", tmp_path / "set", *words) == 0
        assert list(reasons(tmp_path / "set")) == ["two"]
        (folder / "late").mkdir()
        for key in KEYS:
            shutil.copy(folder / f"{key}.tif", folder / "late")
        # what was not there is asked for again, though this process remembers its answer
        (tmp_path / "set/rejected.csv").unlink()
        assert run(tmp_path / "items", tmp_path / "set", *words) == 0
    assert len(manifests.read(tmp_path / "set").scenes) == 2


def test_the_images_are_cogs_of_several_blocks(site):
    with rasterio.open(site[0] / "blue.tif") as raster:
        assert raster.block_shapes == [(256, 256)] and raster.overviews(1)
