"""Plain image files through the whole of sharding: layers by name, class rasters, classes and splits by folder."""

import json

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.config import ROOT
from pipeline.errors import ConfigError, RejectedError
from pipeline.sample import NODATA, Flag, Sample
from preprocessing import packing, shard
from tests.preprocessing.patches import numbers, write_eurosat, write_image

CONFIGS = ROOT / "configs/shard"
EUROSAT = ("Forest", "River", "SeaLake")


def all_samples(output) -> dict[str, list[Sample]]:
    """Return the samples of a finished set by split."""
    made = manifests.read(output)
    return {
        split: [
            samples.decode(key, members, shard_file.path)
            for shard_file in shards
            for key, members in packing.read_shard(output / shard_file.path)
        ]
        for split, shards in made.splits.items()
    }


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory):
    return write_eurosat(tmp_path_factory.mktemp("EuroSAT MS é"), EUROSAT, 4)


def test_eurosat_has_its_class_by_folder_and_its_bands_by_name(eurosat, tmp_path):
    assert shard.main([str(CONFIGS / "eurosat_ms.yaml"), f"scenes={eurosat}", f"output={tmp_path}"]) == 0
    made = manifests.read(tmp_path)
    names = made.contract.classes
    assert (made.contract.label_kind, made.contract.level, made.contract.gsd_m) == ("class", "L1C", 10)
    assert (made.split.by, made.split.files) == ("scene", {})
    found = [s for part in all_samples(tmp_path).values() for s in part]
    assert len(found) == 12
    for one in found:
        assert names[one.label] == one.info["scene"].split("_")[0]
        assert (one.info["crs"], one.info["bounds_lonlat"]) == (None, None)
        # B8A is the last layer of the file and the ninth band here
        assert one.pixels.shape == (13, 64, 64)
        assert [int(b.min()) // 100 for b in one.pixels] == [5, 6, 7, 8, 9, 10, 11, 12, 17, 13, 14, 15, 16]
    assert made.notices == (
        "EuroSAT (Helber et al.), MIT licence; contains modified Copernicus Sentinel data.",
    )


def test_eurosat_divided_by_published_lists(eurosat, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(f"{n}_{i}.jpg" for n in EUROSAT for i in (1, 2)))
    (tmp_path / "val.txt").write_text("\n".join(f"{n}_3.jpg" for n in EUROSAT))
    words = [
        str(CONFIGS / "eurosat_ms.yaml"),
        f"scenes={eurosat}",
        f"output={tmp_path / 'out'}",
        "split.by=set",
    ]
    with pytest.raises(ConfigError, match=r"`split\.by` is `set` and nothing says which split"):
        shard.main(words)
    words += [f"split.files.{split}={tmp_path / split}.txt" for split in ("train", "val")]
    assert shard.main(words) == 0
    made = manifests.read(tmp_path / "out")
    assert (made.samples("train"), made.samples("val")) == (6, 3)
    assert made.split.by == "set" and set(made.split.files) == {"train.txt", "val.txt"}
    assert sum(s.tiles.get("unlisted", 0) for s in made.scenes) == 3
    assert str(tmp_path) not in made.model_dump_json()


def test_a_misspelt_class_is_refused_with_the_nearest(eurosat, tmp_path):
    words = [f"scenes={eurosat}", f"output={tmp_path}", "labels.classes=[Forests,River,SeaLake]"]
    with pytest.raises(RejectedError, match=r"class `Forest` is not in.*Did you mean `Forests`"):
        shard.main([str(CONFIGS / "eurosat_ms.yaml"), *words])


def write_chips(folder, count=4):
    """Write chips of 12 int16 layers with a nodata corner, water in a png that tells it by pixel, and groups."""
    for number in range(count):
        layers = numbers(12, 128, number).astype(np.int16)
        layers[10] = 10 * (1 + np.arange(128) // 32)[:, None]
        layers[:7, :4, :4] = -9999
        write_image(folder / "images" / f"{number}.tif", layers)
        write_image(folder / "labels" / f"{number}.png", ((layers[:1] % 2) == 0).astype(np.uint8))
    (folder / "groups.json").write_text(json.dumps({str(n): n // 2 for n in range(count)}))
    return [f"scenes={folder}", f"split.groups={folder / 'groups.json'}", "split.seed=1"]


def test_image_and_mask_folders_make_a_class_of_every_pixel(tmp_path):
    words = write_chips(tmp_path / "chips")
    assert shard.main([str(CONFIGS / "hls_water.yaml"), *words, f"output={tmp_path / 'out'}"]) == 0
    made = manifests.read(tmp_path / "out")
    assert (made.contract.label_kind, made.contract.classes) == ("mask", ("land", "water"))
    assert set(made.split.files) == {"groups.json"}
    found = [s for part in all_samples(tmp_path / "out").values() for s in part]
    assert len(found) == 4
    for one in found:
        good = one.mask == 0
        assert (one.mask[:4, :4] == Flag.NODATA).all() and (one.pixels[:, :4, :4] == NODATA).all()
        assert (one.label[good] == (one.pixels[0][good] % 2 == 0)).all()


@pytest.mark.parametrize("kind", ["class", "classes"])
def test_a_layer_of_the_image_itself_labels_tiles(tmp_path, kind):
    words = [*write_chips(tmp_path / "chips"), f"labels.kind={kind}", f"output={tmp_path / 'out'}"]
    assert shard.main([str(CONFIGS / "hls_worldcover.yaml"), *words, "min_valid=0"]) == 0
    made = manifests.read(tmp_path / "out")
    assert made.contract.label_kind == kind
    found = [s for part in all_samples(tmp_path / "out").values() for s in part]
    assert len(found) == 64
    for one in found:
        row = one.info["row"] // 32
        assert one.label == (row if kind == "class" else (row,))


def test_one_file_a_band_with_a_place_on_earth(tmp_path):
    for place, (band, gsd_m) in enumerate({"B03": 10, "B04": 10, "B08": 10, "B11": 20}.items()):
        stored = numbers(1, 640 // gsd_m, place)
        stored[0, :2, :2] = 0
        write_image(tmp_path / "in" / "tile 1" / f"{band}.tif", stored, gsd_m)
    (tmp_path / "c.yaml").write_text(
        "sensor: sentinel2\nreader: geotiff\nbands: [B03, B04, B08, B11]\ntile_px: 64\nmin_valid: 0.5\n"
        "files: {images: '{name}/{band}.tif', level: L2A, scale: 2.0e-4, offset: -0.1}\nsplit: {val_share: 0}\n"
    )
    words = [f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert shard.main([str(tmp_path / "c.yaml"), *words]) == 0
    (one,) = all_samples(tmp_path / "out")["train"]
    assert one.info["crs"] == "EPSG:32633" and 14 < one.info["bounds_lonlat"][0] < 16
    assert (one.pixels[0, 8:, 8:] == numbers(1, 64)[0, 8:, 8:].astype(int) * 2 - 1000).all()
    assert (one.mask[:4, :4] & Flag.NODATA).all()
    (tmp_path / "in" / "tile 1" / "B11.tif").unlink()
    with pytest.raises(RejectedError, match=r"no file of band B11 in .*there: B03, B04, B08"):
        shard.main([str(tmp_path / "c.yaml"), *words, "max_rejected=0"])


def test_a_mask_of_another_size_is_refused(tmp_path):
    words = write_chips(tmp_path / "chips", 1)
    write_image(tmp_path / "chips/labels/0.png", np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(RejectedError, match=r"0\.png has 64 x 64 px .* 128 x 128"):
        shard.main([str(CONFIGS / "hls_water.yaml"), *words, f"output={tmp_path / 'out'}"])


def test_images_without_a_place_are_not_divided_by_ground(tmp_path):
    words = write_chips(tmp_path / "chips", 1)
    words += ["split.by=ground", "split.groups=null", f"output={tmp_path / 'out'}"]
    with pytest.raises(RejectedError, match=r"cannot be divided by ground: set `split\.by`"):
        shard.main([str(CONFIGS / "hls_water.yaml"), *words])


@pytest.mark.parametrize("words", [["reader=auto"], ["files=null"]])
def test_the_reader_and_its_settings_belong_together(words, tmp_path):
    with pytest.raises(ConfigError, match="reader `geotiff` needs `files`"):
        shard.main([str(CONFIGS / "hls_water.yaml"), *words, f"scenes={tmp_path}"])


def test_real_flood_chip_of_thirteen_layers(real_data, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "sensor: sentinel2\nreader: geotiff\nbands: [B02, B03, B04, B08, B11, B12]\ntile_px: 128\n"
        "files: {images: '{name}_S2Hand.tif', labels: '{name}_LabelHand.tif', level: L1C,\n"
        "  layers: [B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B10, B11, B12]}\n"
        "labels: {kind: mask, classes: [dry, water]}\nsplit: {val_share: 0}\n"
    )
    words = [f"scenes={real_data / 'sen1floods11_sample'}", f"output={tmp_path / 'out'}"]
    assert shard.main([str(tmp_path / "c.yaml"), *words]) == 0
    found = all_samples(tmp_path / "out")["train"]
    assert len(found) == 16
    values = set(np.unique(np.concatenate([s.label.ravel() for s in found if s.label is not None])).tolist())
    # -1 is no class
    assert values <= {0, 1, 255} and {0, 1} <= values


def test_real_chips_that_overlap_stay_on_one_side(real_data, tmp_path):
    folder = real_data / "hls_water_worldcover"
    words = [f"scenes={folder}", f"split.groups={folder / 'groups.json'}", f"output={tmp_path / 'out'}"]
    assert shard.main([str(CONFIGS / "hls_water.yaml"), *words]) == 0
    found = all_samples(tmp_path / "out")
    groups = json.loads((folder / "groups.json").read_text())
    sides = [{groups[s.info["scene"]] for s in found[split]} for split in ("train", "val")]
    assert sum(map(len, found.values())) == 120 and sides[0] and sides[1] and not sides[0] & sides[1]
    water = [s for part in found.values() for s in part if (s.label == 1).mean() > 0.05]
    assert len(water) > 10
    # what is called water is wet by its index: green over near infrared
    index = [
        float(
            np.median((s.pixels[2] - s.pixels[4])[s.label == 1])
            - np.median((s.pixels[2] - s.pixels[4])[s.label == 0])
        )
        for s in water
        if (s.label == 0).any()
    ]
    assert np.mean(np.array(index) > 0) > 0.8


def test_real_patches_without_a_place(real_data, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for path in sorted((real_data / "s2_l2a_patches").glob("*.tif"))[:20]:
        (folder / path.name).symlink_to(path)
    words = [f"scenes={folder}", f"output={tmp_path / 'out'}"]
    assert shard.main([str(CONFIGS / "s2_l2a_patches.yaml"), *words]) == 0
    found = [s for part in all_samples(tmp_path / "out").values() for s in part]
    assert len(found) == 20 and {s.pixels.shape for s in found} == {(12, 64, 64)}
    ndvi = np.concatenate([s.cells[0, ..., 1].ravel() for s in found])
    assert 0.2 < ndvi.mean() < 0.9
