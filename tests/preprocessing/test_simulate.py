"""The simulator: genuine products, plausible ground, whole or not there, equal bytes for equal settings."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import defusedxml.ElementTree
import numpy as np
import pytest
import rasterio

from pipeline.config import ROOT
from pipeline.errors import ConfigError, OutputError
from pipeline.indices import INDICES
from pipeline.sample import NODATA
from pipeline.sensors import SENSORS
from preprocessing import masks, radiometry
from preprocessing.readers import Request, discover
from preprocessing.simulate import Simulation, image_count, main, simulate
from preprocessing.simulation.landsat import QA_VALUES
from preprocessing.simulation.landscape import LANDCOVER, make_ground
from preprocessing.simulation.products import PRODUCTS, Ground
from preprocessing.simulation.spectra import KNOTS_NM, MATERIALS
from preprocessing.simulation.view import make_view

SMALL = Simulation(size_px=192)


def read(path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1)


def scene(archive: Path, sensor: str, bands: tuple[str, ...]):
    request = Request(SENSORS[sensor], bands)
    [(reader, product)] = discover(archive, request)
    return reader.open(product, request)


def roles(archive: Path, sensor: str) -> dict[str, np.ndarray]:
    """Reflectance by role on the finest grid (coarse bands repeated), NaN where there is none."""
    wanted = [b for b in SENSORS[sensor].bands if b.role in ("green", "red", "nir", "swir1")]
    found = scene(archive, sensor, tuple(b.name for b in wanted))
    arrays = {}
    for band, source in zip(wanted, found.bands, strict=True):
        dn = read(source.path)
        arrays[band.role] = np.where(dn == source.nodata_dn, np.nan, dn * source.scale + source.offset)
    finest = max(a.shape[0] for a in arrays.values())
    return {
        role: np.kron(a, np.ones((finest // a.shape[0],) * 2)).astype(np.float32)
        for role, a in arrays.items()
    }


def clear(archive: Path, sensor: str, side: int) -> np.ndarray:
    found = scene(archive, sensor, (SENSORS[sensor].bands[1].name,))
    quality = read(found.masks[0].path)
    good = np.isin(quality, [4, 5, 6] if sensor == "sentinel2" else [21824, 21952])
    return np.kron(good, np.ones((side // good.shape[0],) * 2, bool))


@pytest.fixture(scope="module", params=["sentinel2", "landsat_oli"])
def classed(request, simulated_archive):
    """Medians of NDVI, NDWI and NDBI over the clear pixels of each class."""
    sensor = request.param
    bands = roles(simulated_archive, sensor)
    labels = read(scene(simulated_archive, sensor, (SENSORS[sensor].bands[1].name,)).labels)
    good = clear(simulated_archive, sensor, labels.shape[0])
    medians = {}
    for number, name in enumerate(LANDCOVER[1:], 1):
        chosen = good & (labels == number)
        medians[name] = {
            index: float(np.median(INDICES[index](*(bands[r][chosen] for r in INDICES[index].roles))))
            for index in ("NDVI", "NDWI", "NDBI")
        }
    return medians


def test_indices_mean_something(classed):
    assert classed["water"]["NDWI"] > 0.3
    assert all(values["NDWI"] < -0.1 for name, values in classed.items() if name != "water")
    assert classed["forest"]["NDVI"] > 0.6
    assert classed["crop"]["NDVI"] > 0.5
    assert max(classed[name]["NDVI"] for name in ("water", "bare", "built-up")) < 0.4
    assert classed["built-up"]["NDBI"] > 0 > max(classed[name]["NDBI"] for name in ("forest", "crop"))


def test_both_sensors_see_the_same_ground(simulated_archive):
    fine, coarse = (roles(simulated_archive, s) for s in ("sentinel2", "landsat_oli"))
    side = coarse["nir"].shape[0]
    both = clear(simulated_archive, "landsat_oli", side)
    merged = {r: fine[r].reshape(side, 3, side, 3).mean((1, 3)) for r in ("nir", "red")}
    both &= clear(simulated_archive, "sentinel2", side * 3).reshape(side, 3, side, 3).all((1, 3))
    ndvi = [INDICES["NDVI"](d["nir"][both], d["red"][both]) for d in (merged, coarse)]
    assert both.mean() > 0.5
    assert np.corrcoef(*ndvi)[0, 1] > 0.99


def test_clouds_shadows_and_swath_are_in_pixels_and_masks(simulated_archive):
    found = scene(simulated_archive, "sentinel2", ("B02", "B8A"))
    classes, dn = read(found.masks[0].path), read(found.bands[1].path)
    blue = read(found.bands[0].path).reshape(*classes.shape[:1], 2, -1, 2).mean((1, 3))
    assert set(np.unique(classes)) == {0, 3, 4, 5, 6, 8, 9, 10}
    np.testing.assert_array_equal(classes == 0, dn == 0)
    surface = np.isin(classes, (4, 5))
    assert np.median(blue[classes == 9]) > 6000 > 3 * np.median(blue[surface])
    assert np.median(dn[classes == 3]) < 0.75 * np.median(dn[surface])
    assert 0.02 < np.isin(classes, (8, 9)).mean() < 0.15
    quality = read(scene(simulated_archive, "landsat_oli", ("B2",)).masks[0].path)
    assert set(np.unique(quality)) <= {*QA_VALUES.values(), 21824, 21762}
    assert (quality == 22280).mean() > 0.02


def test_land_cover_names_its_classes(simulated_archive):
    for path in simulated_archive.glob("*_landcover.tif"):
        with rasterio.open(path) as raster:
            assert raster.tags()["CLASSES"].split(",") == list(LANDCOVER)
            assert set(np.unique(raster.read(1))) == set(range(6))
            with rasterio.open(scene(simulated_archive, "sentinel2", ("B02",)).bands[0].path) as band:
                assert raster.bounds == band.bounds


def test_tiles_of_the_default_archive_have_balanced_majority_classes():
    classes = make_ground(Simulation().size_px, Simulation().seed).classes
    tiles = classes.reshape(16, 96, 16, 96).swapaxes(1, 2).reshape(256, -1)
    counts = np.stack([np.bincount(tile, minlength=len(LANDCOVER)) for tile in tiles])
    majority = np.bincount(counts.argmax(1), minlength=len(LANDCOVER))
    assert majority[0] == 0
    assert majority[1:].min() > 256 / 5 * 0.7
    assert (counts.max(1) > 0.6 * 96 * 96).mean() > 0.75


def test_another_seed_is_another_ground_and_another_day():
    one, two = make_ground(192, 1).classes, make_ground(192, 2).classes
    assert (one != two).mean() > 0.3
    assert (make_view(192, 1, "sentinel2").weather.cloud != make_view(192, 1, "LC09").weather.cloud).any()


def test_spectra_are_tables_of_reflectance():
    for material in MATERIALS:
        assert len(material.reflectance) == len(KNOTS_NM)
        assert all(0 < value < 1 for value in material.reflectance)
        assert material.at(KNOTS_NM[3]) == pytest.approx(material.reflectance[3])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_reads_the_product_as_sentinel_2(simulated_archive):
    product = next(simulated_archive.glob("*.SAFE"))
    with rasterio.open(product / "MTD_MSIL2A.xml") as container:
        assert container.driver == "SENTINEL2"
        assert container.tags()["BOA_QUANTIFICATION_VALUE"] == "10000"
        finest = next(name for name in container.subdatasets if ":10m:" in name)
    with rasterio.open(finest) as raster:
        assert (raster.shape, raster.res, raster.crs.to_epsg()) == ((384, 384), (10, 10), 32632)
        red = raster.read(1)
    np.testing.assert_array_equal(red, read(scene(simulated_archive, "sentinel2", ("B04",)).bands[0].path))


def test_manifest_lists_every_file_with_its_checksum(simulated_archive):
    product = next(simulated_archive.glob("*.SAFE"))
    tree = defusedxml.ElementTree.parse(product / "manifest.safe")
    listed = {}
    for stream in tree.iter("byteStream"):
        name = stream.find("fileLocation").get("href").removeprefix("./")
        data = (product / name).read_bytes()
        assert int(stream.get("size")) == len(data)
        listed[name] = stream.find("checksum").text
        assert listed[name] == hashlib.sha3_256(data).hexdigest().upper()
    files = {p.relative_to(product).as_posix() for p in product.rglob("*") if p.is_file()}
    assert files - set(listed) == {"manifest.safe"}


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_equal_settings_give_equal_bytes(tmp_path):
    told = []
    assert simulate(tmp_path / "one", SMALL, told.append)
    make_ground.cache_clear()
    assert simulate(tmp_path / "two", SMALL)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(told) == image_count(SMALL)
    assert (tmp_path / "one").stat().st_mode & 0o755 == 0o755


def test_a_whole_archive_is_left_alone_and_a_damaged_one_mended(tmp_path):
    archive = tmp_path / "archive"
    simulate(archive, SMALL)
    before = digests(archive)
    assert not simulate(archive, SMALL)
    (archive / "notes of mine.txt").write_text("kept")
    next(archive.rglob("*_B04_10m.jp2")).write_bytes(b"")
    next(archive.rglob("*_SR_B2.TIF")).unlink()
    assert simulate(archive, SMALL)
    after = digests(archive)
    assert after.pop("notes of mine.txt")
    assert after == before


class KilledError(Exception):
    """Stands for anything that ends a run half way."""


def test_nothing_partial_stands_under_the_final_name(tmp_path):
    def die(name: str) -> None:
        raise KilledError(name)

    with pytest.raises(KilledError):
        simulate(tmp_path / "archive", SMALL, die)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_one_line_and_nothing_else(tmp_path):
    command = f"ulimit -f 20; {sys.executable} {ROOT}/preprocessing/simulate.py archive --size-px 192"
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert re.fullmatch(r"error: cannot write archive: .*File too large.*\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    leftover = tmp_path / f".archive.partial-{finished.pid}-abc"
    leftover.mkdir()
    running = tmp_path / ".archive.partial-1-abc"
    running.mkdir()
    simulate(tmp_path / "archive", SMALL)
    assert not leftover.exists()
    assert running.exists()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="holds no simulated archive"):
        simulate(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_archives_of_other_settings_are_refused(tmp_path):
    record = {"format_version": 1, "settings": Simulation(seed=3).model_dump(), "files": {}}
    (tmp_path / "archive.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match=r"'seed': 3.*Choose another folder"):
        simulate(tmp_path, SMALL)


def test_grids_must_nest(tmp_path):
    with pytest.raises(ConfigError, match=r"size_px.*200 is not a multiple of 6; take 198 or 204"):
        main([str(tmp_path / "archive"), "--size-px", "200"])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_command_line(tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "preprocessing" / "simulate.py"), "my árchive", "--size-px", "192"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "images (100 %)" in first.stdout
    assert first.stderr == ""
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "is there already" in again.stdout
    other = subprocess.run(
        [*command, "--seed", "9"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert other.stderr.startswith("error: ") and "Traceback" not in other.stderr
    with rasterio.open(tmp_path / "my árchive" / "quicklook.png") as picture:
        assert (picture.count, picture.shape) == (3, (192, 192))
        assert picture.read().std() > 20


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_is_found_and_read_by_one_reader(name, tmp_path):
    kind, told = PRODUCTS[name], []
    product = kind.write(tmp_path / "new folder", Ground(192), told.append)
    assert len(told) == kind.image_count(Ground(192))
    request = Request(SENSORS[kind.sensor], tuple(SENSORS[kind.sensor].bands[n].name for n in (1, 4)))
    scenes = discover(tmp_path, request)
    assert len(scenes) == kind.scenes
    for reader, found in scenes:
        assert found == product or product in found.parents
        check_scene(reader.open(found, request))


def check_scene(opened):
    """Look at labels, bands and masks of a scene that was opened."""
    assert opened.labels is not None and read(opened.labels).max() == 5
    layout = radiometry.lay_out(opened, None, None)
    for image in radiometry.band_images(layout, "bilinear"):
        assert 0 < np.median(image.pixels[image.pixels != NODATA]) < 5000
    for mask, grid in zip(opened.masks, layout.masks, strict=True):
        masks.mask_flags(mask, grid, layout.target)
    assert len(opened.masks) >= 1


def test_other_products_are_made_when_asked_for(tmp_path):
    assert (
        main([str(tmp_path / "a"), "--size-px", "192", "--products", "sentinel2-l1c-zip,landsat7-l2sr"]) == 0
    )
    assert sorted(path.suffix for path in (tmp_path / "a").iterdir()) == [
        "", ".json", ".png", ".tif", ".tif", ".zip"
    ]  # fmt: skip
    assert (
        main([str(tmp_path / "a"), "--size-px", "192", "--products", "sentinel2-l1c-zip,landsat7-l2sr"]) == 0
    )
    with pytest.raises(OutputError, match="archive of other settings"):
        main([str(tmp_path / "a"), "--size-px", "192"])


@pytest.mark.parametrize(
    ("products", "told"),
    [
        ("sentinel2-l2b", "Did you mean `sentinel2-l2a`"),
        ("landsat9-l2sp,landsat9-l2sp-tar", "two products of one kind"),
    ],
)
def test_products_that_cannot_be_made_are_refused(products, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        main([str(tmp_path / "a"), "--products", products])


def test_an_archive_of_before_products_could_be_chosen_is_known(tmp_path):
    archive = tmp_path / "a"
    assert simulate(archive, SMALL)
    record = json.loads((archive / "archive.json").read_text())
    del record["settings"]["products"]
    (archive / "archive.json").write_text(json.dumps(record))
    assert not simulate(archive, SMALL)
