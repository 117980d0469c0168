"""The sharding run on real imagery, read back as a stranger would: stock webdataset, numcodecs and numpy."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - gives xarray its `.rio`
import webdataset
import xarray
from numcodecs import Blosc

from pipeline import config as configs
from pipeline import manifest as manifests
from preprocessing import archive, shard

CITIES = ("norcia", "hongkong")


def run(name: str, scenes: Path, output: Path, *words: str) -> manifests.Manifest:
    words = (str(configs.ROOT / f"configs/shard/{name}.yaml"), f"scenes={scenes}", f"output={output}", *words)
    assert shard.main(words) == 0
    return manifests.read(output)


def decode(sample: dict) -> dict:
    """The five lines the README shows."""
    for name, data in sample.items():
        if name.endswith(".npy.blosc"):
            sample[name] = np.load(io.BytesIO(Blosc().decode(data)))
    return sample


def read_back(output: Path, made: manifests.Manifest) -> list[dict]:
    paths = [str(output / s.path) for part in made.splits.values() for s in part]
    return [decode(s) for s in webdataset.WebDataset(paths, shardshuffle=False)]


def numbers(folder: Path, band: str) -> np.ndarray:
    with rasterio.open(
        next(folder.glob(f"*_{band}.tif"), None) or next(folder.glob(f"*_{band}.TIF"))
    ) as raster:
        return raster.read(1)


@pytest.fixture(scope="module")
def oscd(real_data, tmp_path_factory):
    """Two cities of the change detection set as shards: the output, its manifest and its samples."""
    scenes = tmp_path_factory.mktemp("oscd") / "images"
    scenes.mkdir()
    for city in CITIES:
        (scenes / city).symlink_to((real_data / "oscd/images" / city).resolve())
    output = tmp_path_factory.mktemp("oscd_set")
    made = run("oscd", scenes, output)
    return output, made, read_back(output, made)


def source(real_data: Path, sample: dict) -> Path:
    _, city, date = json.loads(sample["json"])["scene"].rsplit("_", 2)
    return real_data / "oscd/images" / city / f"imgs_{date}"


def window(sample: dict) -> tuple[slice, slice]:
    info = json.loads(sample["json"])
    return slice(info["row"], info["row"] + 96), slice(info["col"], info["col"] + 96)


def test_all_thirteen_bands_of_both_dates_are_there(oscd):
    _, made, samples = oscd
    assert made.contract.band_names == tuple(
        f"B{b}" for b in ["01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "10", "11", "12"]
    )
    assert {json.loads(s["json"])["scene"] for s in samples} == {
        f"oscd_{c}_{d}" for c in CITIES for d in (1, 2)
    }
    assert len(samples) == sum(made.samples(split) for split in made.splits)
    assert all(s["pixels.npy.blosc"].shape == (13, 96, 96) for s in samples)


def test_finest_bands_equal_the_source_exactly(real_data, oscd):
    _, made, samples = oscd
    for sample in samples[::5]:
        for band in ("B02", "B03", "B04", "B08"):
            stored = sample["pixels.npy.blosc"][made.contract.band_names.index(band)]
            np.testing.assert_array_equal(stored, numbers(source(real_data, sample), band)[window(sample)])


def test_ndvi_of_the_cells_is_that_of_the_source(real_data, oscd):
    _, made, samples = oscd
    place = made.contract.indices.index("NDVI")
    for sample in samples[::5]:
        red, nir = (numbers(source(real_data, sample), b)[window(sample)] / 10_000 for b in ("B04", "B08"))
        ndvi = (
            ((nir - red) / np.maximum(nir + red, 0.02))
            .reshape(12, 8, 12, 8)
            .swapaxes(1, 2)
            .reshape(12, 12, 64)
        )
        counted = (sample["mask.npy.blosc"] & 0b11111) == 0
        cells = sample["cells.npy.blosc"][place]
        assert counted.all()
        assert (cells[..., 0] == 64).all()
        np.testing.assert_allclose(cells[..., 1], ndvi.mean(-1), atol=2e-6)
        np.testing.assert_allclose(cells[..., 2], ndvi.std(-1), atol=2e-6)


@pytest.mark.parametrize("city", CITIES)
def test_the_archive_opens_in_xarray_where_the_source_lies(real_data, oscd, city):
    store = oscd[0] / archive.FOLDER
    data = xarray.open_zarr(store, group=f"oscd_{city}_2", consolidated=False)
    folder = real_data / "oscd/images" / city / "imgs_2"
    with rasterio.open(next(folder.glob("*_B08.tif"))) as raster:
        assert data.reflectance.rio.crs == raster.crs
        assert data.reflectance.rio.bounds() == pytest.approx(tuple(raster.bounds), abs=1e-9)
        expected = raster.read(1) / 10_000
    np.testing.assert_allclose(data.reflectance.sel(band="B08").values, expected, atol=1e-6)


def test_landsat_shards_are_within_half_a_step(real_data, tmp_path):
    made = run("landsat_c2", real_data / "landsat_c2", tmp_path)
    assert all(scene.tiles["train"] > 0 for scene in made.scenes)
    assert len(made.scenes) == 3
    assert made.contract.gsd_m == pytest.approx(480, rel=0.1)
    for sample in read_back(tmp_path, made)[::4]:
        folder = real_data / "landsat_c2" / json.loads(sample["json"])["scene"]
        for place, band in enumerate(made.contract.band_names):
            stored = sample["pixels.npy.blosc"][place]
            dn = numbers(folder, f"SR_{band}")[window(sample)]
            np.testing.assert_array_equal(stored == -32_768, dn == 0)
            apart = np.abs(stored * 1e-4 - (dn * 0.0000275 - 0.2))[dn > 0]
            assert apart.max() <= 0.5e-4 + 1e-12


@pytest.mark.slow
def test_the_real_safe_is_sharded_at_60_m_with_nir_from_b8a(real_data, tmp_path):
    words = ("bands=[B03,B04,B8A,B11]", "workers=0")
    made = run("sentinel2_l2a_60m", real_data / "sentinel2_safe", tmp_path, *words)
    (scene,) = made.scenes
    assert made.contract.index_bands["NDVI"] == ("B8A", "B04")
    assert any("nir is B8A" in note for note in scene.notes)
    assert sum(scene.tiles.values()) == 19 * 19
    assert scene.tiles["nodata"] > 100
    assert scene.tiles["train"] > 30
    (jp2,) = (real_data / "sentinel2_safe").rglob("*B04_60m.jp2")
    with rasterio.Env(GDAL_NUM_THREADS="1"), rasterio.open(jp2) as raster:
        dn = raster.read(1).astype(np.int32)
    for sample in read_back(tmp_path, made):
        stored, source_dn = sample["pixels.npy.blosc"][1], dn[window(sample)]
        np.testing.assert_array_equal(stored, np.where(source_dn == 0, -32_768, source_dn - 1000))
