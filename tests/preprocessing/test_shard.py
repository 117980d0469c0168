import csv
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline import config as configs
from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.errors import ConfigError, CorruptDataError, MissingInputError, OutputError, RejectedError
from pipeline.indices import index
from pipeline.saliency import cell_statistics
from pipeline.sample import SCALE, Flag
from preprocessing import archive, assembly, packing, shard
from preprocessing.settings import ShardConfig

ENTRY = configs.ROOT / "preprocessing/shard.py"


@pytest.fixture(scope="module")
def cities(products, tmp_path_factory) -> Path:
    """Two small cities at two dates each, as the change detection set lays them out."""
    folder = tmp_path_factory.mktemp("cities of ñ")
    original = products["oscd"].parent
    for name in ("anville", "bstadt"):
        shutil.copytree(original, folder / "images" / name)
    return folder


@pytest.fixture(scope="module")
def city_words(cities) -> list[str]:
    # the cities are copies of one
    words = [
        "tile_px=48",
        "split.val_share=0",
        "shard_mb=0.2",
        "min_valid=0",
        "min_clear=0",
        "duplicates=keep",
    ]
    return [str(configs.ROOT / "configs/shard/oscd.yaml"), f"scenes={cities}", *words]


@pytest.fixture(scope="module")
def clean(city_words, tmp_path_factory) -> dict[str, bytes]:
    """Every file of a clean run in this process that a reader of the set sees."""
    output = tmp_path_factory.mktemp("clean")
    assert shard.main([*city_words, f"output={output}"]) == 0
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    names = [
        *output.glob("*/*.tar"),
        output / "manifest.json",
        output / "quality.json",
        output / "quality.html",
        output / "rejected.csv",
    ]
    return {str(p.relative_to(output)): p.read_bytes() for p in names}


def read_all(output: Path, split: str = "train") -> dict[str, samples.Sample]:
    paths = sorted((output / split).glob("*.tar"))
    return {
        key: samples.decode(key, members, str(p)) for p in paths for key, members in packing.read_shard(p)
    }


def start(*words: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ENTRY), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=configs.ROOT,
        **options,
    )


# ---- what a set holds


def test_a_set_has_a_manifest_that_counts_its_shards(shard_set):
    made = manifests.read(shard_set)
    assert set(made.splits) == {"train", "val"}
    for split in made.splits:
        held = read_all(shard_set, split)
        assert len(held) == made.samples(split) > 0
        assert all(s.path.startswith(f"{split}/shard-") for s in made.shards(split))
        assert all(manifests.sha256(shard_set / s.path) == s.sha256 for s in made.shards(split))
    assert made.scenes[0].tiles["train"] == made.samples("train")
    assert made.notices[0].startswith("Contains modified Copernicus")
    assert not (shard_set / "work").exists()


def test_the_contract_says_what_the_numbers_mean(shard_set):
    contract = manifests.read(shard_set).contract
    assert (contract.sensor, contract.level, contract.gsd_m, contract.tile_px) == ("sentinel2", "L2A", 10, 48)
    assert contract.band_names[:4] == ("B01", "B02", "B03", "B04")
    assert contract.index_bands == {"NDVI": ("B08", "B04"), "NDWI": ("B03", "B08"), "NDBI": ("B11", "B08")}
    assert contract.classes == ("water", "forest", "crop", "bare", "built-up")


def test_samples_walk_back_to_the_archive(shard_set):
    (scene,) = manifests.read(shard_set).scenes
    stored = archive.StoredScene(shard_set / archive.FOLDER / scene.id)
    for held in read_all(shard_set).values():
        row, column = held.info["row"], held.info["col"]
        window = (slice(row, row + 48), slice(column, column + 48))
        np.testing.assert_array_equal(held.pixels, stored.read("reflectance", slice(None), *window))
        np.testing.assert_array_equal(held.mask, stored.read("mask", *window))
        assert held.cells.shape == (3, 6, 6, 3)
        t = stored.header.grid.transform
        assert held.info["transform"] == [t.a, 0, t.c + column * t.a, 0, t.e, t.f + row * t.e]
        west, south, east, north = held.info["bounds_lonlat"]
        assert 0 < east - west < 0.01
        assert 0 < north - south < 0.01


def test_cells_are_the_statistics_of_valid_and_clear_pixels(shard_set):
    made = manifests.read(shard_set)
    excluded = Flag.NODATA | Flag.SATURATED | Flag.CLOUD | Flag.SHADOW | Flag.CIRRUS
    unclear = 0
    for held in read_all(shard_set).values():
        reflectance = held.pixels.astype(np.float32) * np.float32(SCALE)
        values = [
            index(name)(*reflectance[made.contract.band_positions(bands)])
            for name, bands in ((name, made.contract.index_bands[name]) for name in made.contract.indices)
        ]
        counted = (held.mask & excluded) == 0
        unclear += int((~counted).sum())
        np.testing.assert_allclose(held.cells, cell_statistics(np.stack(values), counted, 8), atol=1e-6)
    assert unclear > 0


def test_statistics_are_those_of_clear_training_pixels(shard_set):
    made = manifests.read(shard_set)
    excluded = Flag.NODATA | Flag.SATURATED | Flag.CLOUD | Flag.SHADOW | Flag.CIRRUS
    held = list(read_all(shard_set).values())
    for place, found in enumerate(made.statistics):
        raw = np.concatenate([s.pixels[place][(s.mask & excluded) == 0] for s in held])
        values = np.clip(raw, *np.percentile(raw, [0.1, 99.9], method="inverted_cdf")) * SCALE
        assert found.n == len(values) == made.scenes[0].statistics_px
        assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()))


def test_labels_are_the_commonest_land_cover(shard_set, simulated_archive):
    import rasterio

    (raster,) = simulated_archive.glob("S2*_landcover.tif")
    with rasterio.open(raster) as source:
        codes = source.read(1)
    held = {**read_all(shard_set), **read_all(shard_set, "val")}
    labelled = 0
    for one in held.values():
        part = codes[one.info["row"] :, one.info["col"] :][:48, :48]
        counts = np.bincount(part.ravel(), minlength=6)[1:]
        expected = int(counts.argmax()) if counts.max() >= 0.4 * 48 * 48 else None
        assert one.label == expected
        labelled += one.label is not None
    assert labelled > len(held) / 2


def test_quality_report_counts_every_tile(shard_set):
    report = json.loads((shard_set / "quality.json").read_text())
    assert sum(report["tiles"].values()) == 64
    assert report["tiles"]["buffer"] > 0
    assert set(report["bands"]) == set(manifests.read(shard_set).contract.band_names)


def test_labels_without_any_class_raster_are_refused_before_the_work(products, shard_words, tmp_path):
    product = products["sentinel2-L2A"]
    shutil.copytree(product, tmp_path / "archive" / product.name)
    words = [*shard_words, f"scenes={tmp_path / 'archive'}", f"output={tmp_path / 'set'}"]
    with pytest.raises(ConfigError, match=rf"`labels` is set .* as {product.stem}_landcover\.tif beside"):
        shard.main(words)
    assert not (tmp_path / "set").exists()


def test_class_rasters_that_label_no_tile_are_refused_before_packing(shard_words, tmp_path):
    words = [*shard_words, f"output={tmp_path}"]
    with pytest.raises(
        ConfigError, match=r"no training tile .* has a label.* 200 to 204 .*`labels.first_code`"
    ):
        shard.main([*words, "labels.first_code=200"])
    assert not list(tmp_path.glob("*/*.tar"))
    assert shard.main(words) == 0


def test_tiles_without_a_label_are_counted(shard_words, tmp_path, capsys):
    shard.main([*shard_words, f"output={tmp_path}", "labels.min_share=0.8"])
    samples = [*read_all(tmp_path).values(), *read_all(tmp_path, "val").values()]
    unlabelled = sum(one.label is None for one in samples)
    assert 0 < unlabelled < len(samples)
    report = json.loads((tmp_path / "quality.json").read_text())
    assert [report["unlabelled"], *(s["unlabelled"] for s in report["scenes"].values())] == [unlabelled] * 2
    assert re.search(rf"without label +{unlabelled}\n", capsys.readouterr().out)


# ---- rerunning


def test_a_finished_set_is_left_alone_and_says_so(shard_set, shard_words, capsys):
    before = (shard_set / "manifest.json").stat().st_mtime_ns
    (shard_set / "work").mkdir()  # as a kill after the manifest leaves it
    assert shard.main([*shard_words, f"output={shard_set}", "workers=2"]) == 0
    assert "is finished; nothing was done" in capsys.readouterr().out
    assert (shard_set / "manifest.json").stat().st_mtime_ns == before
    assert not (shard_set / "work").exists()


def test_p19_other_bands_are_refused(shard_set, shard_words):
    with pytest.raises(OutputError, match="bands: "):
        shard.main([*shard_words, f"output={shard_set}", "bands=[B03,B04,B08,B11]"])
    assert (shard_set / "manifest.json").exists()


def test_p19_another_index_redoes_cells_and_shards_but_no_pixels(shard_set, shard_words, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(shard_set, output)
    pixels = sorted((output / archive.FOLDER).rglob("reflectance/c/**/[0-9]*"))
    before = {p: p.stat().st_ino for p in pixels if p.is_file()}
    assert shard.main([*shard_words, f"output={output}", "indices=[NBR]", "min_clear=0.3"]) == 0
    assert "settings changed (indices: " in capsys.readouterr().out
    assert {p: p.stat().st_ino for p in before} == before
    made = manifests.read(output)
    assert made.contract.index_bands == {"NBR": ("B08", "B12")}
    assert next(iter(read_all(output).values())).cells.shape == (1, 6, 6, 3)
    assert made.samples("train") < manifests.read(shard_set).samples("train") + 1


def test_a_new_scene_joins_a_finished_set(city_words, cities, products, tmp_path):
    scenes = tmp_path / "growing"
    shutil.copytree(cities, scenes)
    words = [*city_words[:1], f"scenes={scenes}", *city_words[2:], f"output={tmp_path / 'set'}"]
    shard.main(words)
    first = set(read_all(tmp_path / "set"))
    shutil.copytree(products["oscd"].parent, scenes / "images/dburg")
    shard.main(words)
    assert {k.rsplit("_", 2)[0] for k in set(read_all(tmp_path / "set")) - first} == {
        "oscd_dburg_1",
        "oscd_dburg_2",
    }
    assert first < set(read_all(tmp_path / "set"))


@pytest.fixture
def own_cities(cities, city_words, tmp_path):
    """Cities that a test may change, and the words that shard them."""
    scenes = tmp_path / "own"
    shutil.copytree(cities, scenes)
    return scenes, [city_words[0], f"scenes={scenes}", *city_words[2:], f"output={tmp_path / 'set'}"]


def inodes(output: Path) -> dict[str, int]:
    return {p.parts[-6]: p.stat().st_ino for p in output.glob(f"{archive.FOLDER}/*/reflectance/c/0/0/0")}


def test_a_source_altered_under_its_name_is_made_again_and_named(own_cities, cities, clean, tmp_path, capsys):
    scenes, words = own_cities
    shard.main(words)
    assert contents(tmp_path / "set") == clean
    before = inodes(tmp_path / "set")
    (band,) = (scenes / "images/bstadt/imgs_2").glob("*_B04.tif")
    original = band.stat()
    with rasterio.open(band, "r+") as raster:
        raster.write(raster.read(1) + 100, 1)
    shard.main(words)
    assert "(oscd_bstadt_2 changed)" in capsys.readouterr().out
    after = inodes(tmp_path / "set")
    assert [name for name in before if before[name] != after[name]] == ["oscd_bstadt_2"]
    assert contents(tmp_path / "set")["manifest.json"] != clean["manifest.json"]
    # repaired: another time of change, and the same bytes as ever
    shutil.copyfile(cities / band.relative_to(scenes), band)
    os.utime(band, ns=(original.st_atime_ns, original.st_mtime_ns + 10**9))
    shard.main(words)
    assert contents(tmp_path / "set") == clean


def test_a_source_that_changed_after_a_kill_is_made_again(own_cities, clean, tmp_path):
    scenes, words = own_cities
    band = next((scenes / "images/anville/imgs_1").glob("*_B02.tif"))
    whole = band.read_bytes()
    with rasterio.open(band, "r+") as raster:
        raster.write(raster.read(1) + 100, 1)
    process = start(*words)
    while process.poll() is None and not finished_scene(tmp_path / "set"):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    band.write_bytes(whole)
    shard.main(words)
    assert contents(tmp_path / "set") == clean


def test_times_of_change_stand_in_no_shard(own_cities, clean, tmp_path):
    scenes, words = own_cities
    for path in scenes.rglob("*.tif"):
        os.utime(path, (1e9, 1e9))
    shard.main(words)
    assert contents(tmp_path / "set") == clean


def test_a_class_raster_that_appears_is_seen_where_labels_are_asked_for(
    products, shard_words, tmp_path, capsys
):
    original, scenes = products["sentinel2-L2A"], tmp_path / "archive"
    shutil.copytree(original, scenes / original.name)
    words = [*shard_words, f"scenes={scenes}", f"output={tmp_path / 'set'}", "split.val_share=0"]
    shard.main([*words, "labels=null"])
    (raster,) = original.parent.glob("*_landcover.tif")
    shutil.copy(raster, scenes)
    shard.main([*words, "labels=null"])
    assert "nothing was done" in capsys.readouterr().out
    shard.main(words)
    assert any(one.label is not None for one in read_all(tmp_path / "set").values())


# ---- faults


def finished_scene(output: Path) -> bool:
    return any(output.glob(f"{archive.FOLDER}/oscd_*"))


def finished_shard(output: Path) -> bool:
    return (output / "train/shard-000001.tar").exists()


@pytest.mark.parametrize("moment", [finished_scene, finished_shard])
def test_p01_after_sigkill_a_rerun_ends_with_the_same_bytes(city_words, clean, tmp_path, moment):
    words = [*city_words, f"output={tmp_path}"]
    process = start(*words)
    while process.poll() is None and not moment(tmp_path):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {p: p.stat().st_ino for p in (tmp_path / archive.FOLDER).glob("oscd_*/reflectance/c/0/0/0")}
    assert done
    assert shard.main(words) == 0
    assert contents(tmp_path) == clean
    assert all(p.stat().st_ino == inode for p, inode in done.items())


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "codec"), [(2, "lz4"), (3, "zstd")])
def test_any_number_of_workers_gives_the_same_bytes(city_words, clean, tmp_path, workers, codec):
    words = [*city_words, f"codec={codec}"]
    process = start(*words, f"output={tmp_path / 'many'}", f"workers={workers}")
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert "tiles train" in out
    if codec == "zstd":
        shard.main([*words, f"output={tmp_path / 'one'}"])
        clean = contents(tmp_path / "one")
    assert contents(tmp_path / "many") == clean


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, 0),
        (signal.SIGINT, 0),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
    ],
)
def test_p01_a_signal_ends_a_run_in_one_line_with_its_work_kept(city_words, clean, tmp_path, number, workers):
    words = [*city_words, f"output={tmp_path}"]
    process = start(*words, f"workers={workers}", start_new_session=True)
    while process.poll() is None and not finished_scene(tmp_path):
        time.sleep(0.001)
    os.killpg(process.pid, number)  # as a terminal and Slurm do: all processes get it
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (85, "interrupted; start the same command again to go on.\n")
    before = inodes(tmp_path)
    assert before
    assert shard.main(words) == 0
    assert contents(tmp_path) == clean
    assert before.items() <= inodes(tmp_path).items()


def test_p02_two_runs_on_one_output(city_words, tmp_path):
    words = [*city_words, f"output={tmp_path}"]
    process = start(*words)
    while not (tmp_path / "settings.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(OutputError, match=f"in use by process {process.pid} on "):
        shard.main(words)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0


def test_p03_a_full_disk_leaves_nothing_half_written_and_a_rerun_completes(city_words, clean, tmp_path):
    words = [*city_words, f"output={tmp_path}"]
    limit = 100_000  # bytes a file: the archive's arrays fit, the spooled samples do not
    process = start(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, err = process.communicate()
    assert process.returncode != 0
    assert "cannot write to" in err
    assert "Traceback" not in err
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("train/*.tar"))
    assert shard.main(words) == 0
    assert contents(tmp_path) == clean


def damage(cities: Path, folder: Path) -> Path:
    """Copy the cities, truncate one band and remove another."""
    shutil.copytree(cities, folder)
    one = next((folder / "images/anville/imgs_1").glob("*_B04.tif"))
    one.write_bytes(one.read_bytes()[: one.stat().st_size // 2])
    next((folder / "images/bstadt/imgs_2").glob("*_B11.tif")).unlink()
    return folder


def test_p04_damaged_scenes_are_quarantined_and_join_once_repaired(
    city_words, cities, clean, tmp_path, capsys
):
    scenes = damage(cities, tmp_path / "damaged")
    words = [*city_words[:1], f"scenes={scenes}", *city_words[2:], f"output={tmp_path / 'set'}"]
    with pytest.raises(RejectedError, match="2 of 4 scenes were rejected") as error:
        shard.main([*words, "max_rejected=1"])
    assert error.value.exit_code == 3
    assert len(list((tmp_path / "set" / archive.FOLDER).glob("oscd_*"))) == 2
    assert shard.main([*words, "max_rejected=2"]) == 0
    with (tmp_path / "set/rejected.csv").open() as stream:
        rows = {
            Path(r["product"]).relative_to(scenes / "images").as_posix(): r["reason"]
            for r in csv.DictReader(stream)
        }
    assert set(rows) == {"anville/imgs_1", "bstadt/imgs_2"}
    assert "_B04.tif cannot be decoded" in rows["anville/imgs_1"]
    assert "no file of band B11" in rows["bstadt/imgs_2"]
    assert {s.id for s in manifests.read(tmp_path / "set").scenes} == {
        "oscd_anville_2",
        "oscd_bstadt_1",
    }
    capsys.readouterr()
    assert shard.main([*words, "max_rejected=2"]) == 0
    assert "2 scenes were rejected; once their files are repaired, start again" in capsys.readouterr().out
    for name in ("images/anville/imgs_1", "images/bstadt/imgs_2"):
        shutil.copytree(cities / name, scenes / name, dirs_exist_ok=True)
    assert shard.main([*words, "max_rejected=2"]) == 0
    assert contents(tmp_path / "set") == clean


def test_p14_an_altered_archive_is_not_packed(shard_set, shard_words, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(shard_set, output)
    (output / "manifest.json").unlink()
    (path,) = output.glob(f"{archive.FOLDER}/*/reflectance/c/3/0/0")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match="cannot be decoded"):
        shard.main([*shard_words, f"output={output}"])
    assert not (output / "manifest.json").exists()
    path.unlink()  # missing, and so noticed before reading: the scene is made again
    assert shard.main([*shard_words, f"output={output}"]) == 0
    assert (output / "manifest.json").read_bytes() == (shard_set / "manifest.json").read_bytes()


def test_p16_paths_with_spaces_and_home(city_words, cities, tmp_path, monkeypatch):
    assert " " in str(cities)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shard.main([*city_words, "output=~/ein Ausgabe-Ördner"]) == 0
    assert (tmp_path / "ein Ausgabe-Ördner/manifest.json").exists()


# ---- the command line


def test_no_archive_says_what_to_do(tmp_path):
    process = start(f"scenes={tmp_path / 'none'}")
    out, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith("error: there is no ")
    assert "scenes=/path/to/archive" in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_an_empty_archive_says_what_was_looked_for(tmp_path):
    with pytest.raises(MissingInputError, match=r"no Sentinel-2 MSI product .*\.SAFE"):
        shard.main([f"scenes={tmp_path}"])


def test_nothing_left_names_the_keys_to_change(shard_words, tmp_path):
    with pytest.raises(ConfigError, match=r"no training tile is left .*'nodata'.*`min_valid`"):
        shard.main([*shard_words, f"output={tmp_path}", "tile_px=192", "min_valid=1", "min_clear=1"])


def test_zstd_is_smaller_and_holds_the_same(shard_set, shard_words, tmp_path):
    shard.main([*shard_words, f"output={tmp_path}", "codec=zstd"])
    sizes = [sum(s.size_bytes for s in manifests.read(f).shards("train")) for f in (tmp_path, shard_set)]
    assert sizes[0] < sizes[1]
    for key, one in read_all(tmp_path).items():
        np.testing.assert_array_equal(one.pixels, read_all(shard_set)[key].pixels)
        break


def test_reflectance_of_two_kinds_is_not_mixed(products, shard_words, tmp_path):
    for kind in ("sentinel2-L1C", "sentinel2-L2A"):
        shutil.copytree(products[kind], tmp_path / "mixed" / kind / products[kind].name)
    words = [shard_words[0], f"scenes={tmp_path / 'mixed'}", f"output={tmp_path / 'set'}"]
    with pytest.raises(ConfigError, match=r"toa_.* and surface_.*|surface_.* and toa_.*"):
        shard.main(words)


def test_a_first_try_with_wrong_bands_does_not_block_the_output(products, shard_words, tmp_path):
    scenes = products["sentinel2-L2A"].parent
    words = [
        *shard_words[:1],
        f"scenes={scenes}",
        *shard_words[2:],
        f"output={tmp_path}",
        "split.val_share=0",
    ]
    with pytest.raises(RejectedError, match="no file of band B10"):
        shard.main([*words, "bands=[B03,B04,B08,B10,B11]"])
    assert shard.main([*words, "bands=[B03,B04,B08,B11]"]) == 0


def test_a_damaged_manifest_is_made_again(shard_set, shard_words, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(shard_set, output)
    (output / "manifest.json").write_text("{")
    assert shard.main([*shard_words, f"output={output}"]) == 0
    assert (output / "manifest.json").read_bytes() == (shard_set / "manifest.json").read_bytes()


def test_dry_run_writes_nothing(shard_words, tmp_path, capsys):
    assert shard.main([*shard_words, f"output={tmp_path / 'set'}", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 scenes of Sentinel-2 MSI would go to" in out
    # what it lists is a configuration, with defaults and words in it
    settings = configs.parse_yaml(out.partition("\n\n")[0], "the listing")
    request = configs.build(ShardConfig, settings, "the listing")
    assert (request.tile_px, request.resampling, request.labels.first_code) == (48, "bilinear", 1)
    assert not (tmp_path / "set").exists()


def test_a_run_ends_with_a_table_and_the_next_command(city_words, tmp_path, capsys):
    shard.main([*city_words, f"output={tmp_path}"])
    out = capsys.readouterr().out
    assert "4/4 scenes (100 %)" in out
    assert "tiles train" in out
    assert "without label" not in out
    # 13 bands hold the 12 of that configuration
    told = f"Next: python training/pretrain.py configs/pretrain/laptop.yaml name=oscd data.shards={tmp_path}"
    assert out.splitlines()[-1] == told


@pytest.mark.slow
def test_the_next_command_works_on_a_set_of_few_samples_and_other_bands(shard_words, tmp_path, capsys):
    output = tmp_path / "a set"
    words = [*shard_words, f"output={output}", "bands=[B01,B03,B04,B08,B11]", "cell_px=12"]
    shard.main([*words, "min_clear=0.9"])
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("Next: ")
    assert "data.bands=[B03,B04,B08]" in told
    size = int(re.search(r"batch\.size=(\d+)", told)[1])
    assert size <= manifests.read(output).samples("train") < 2 * size
    command = shlex.split(told)
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:], "steps=2", f"output={tmp_path / 'runs'}"],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/demo-sentinel2/COMPLETE").exists()


def test_a_pixel_size_in_metres_is_a_choice(shard_words, tmp_path):
    words = [*shard_words, f"output={tmp_path}", "gsd_m=20", "tile_px=24", "split.val_share=0"]
    assert shard.main(words) == 0
    made = manifests.read(tmp_path)
    (scene,) = made.scenes
    stored = archive.StoredScene(tmp_path / archive.FOLDER / scene.id)
    assert made.contract.gsd_m == 20
    assert stored.header.grid.shape_px == (192, 192)
    assert stored.header.grid.transform.a == 20


def test_measured_pixel_size_is_told_where_it_is_not_the_instruments():
    request = configs.build(ShardConfig, {"sensor": "landsat_oli", "bands": ["B3", "B4", "B5", "B6"]}, "test")

    class Made:
        def __init__(self, gsd_m):
            self.gsd_m = gsd_m

    assert assembly.nominal_gsd_m(request, [Made(29.4), Made(30.1)]) == 30
    assert assembly.nominal_gsd_m(request, [Made(449.1), Made(480), Made(515)]) == 480
