import json

import pytest

from pipeline.config import ROOT, build, load, read_yaml
from pipeline.errors import ConfigError, CorruptDataError, OutputError
from pipeline.sample import Flag
from preprocessing import settings
from preprocessing.settings import ShardConfig

BANDS = ["B02", "B03", "B04", "B08", "B11"]


def config(**changes) -> ShardConfig:
    return build(ShardConfig, {"sensor": "sentinel2", "bands": BANDS} | changes, "test")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/shard").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_loads_and_says_what_it_is(path):
    loaded = load(ShardConfig, path)
    head = path.read_text().splitlines()
    assert all(line.startswith("# ") for line in head[:3])
    assert f"configs/shard/{path.name}" in "".join(head[:5]) or path.stem == "default"
    assert loaded.indices == ("NDVI", "NDWI", "NDBI")


def test_the_default_set_is_the_one_that_default_pretraining_reads():
    made = load(ShardConfig, ROOT / "configs/shard/default.yaml")
    data = read_yaml(ROOT / "configs/pretrain/default.yaml")["data"]
    assert str(made.output) == data["shards"]
    assert list(made.bands) == data["bands"]
    assert (made.tile_px, 8 % made.cell_px) == (data["image_px"], 0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"bands": [*BANDS[:-1], "b11"]},
            "`bands`: unknown band `b11` in sensor sentinel2. Did you mean `B11`",
        ),
        ({"bands": [*BANDS, "B11"]}, "`bands`: bands B11 are listed twice"),
        ({"indices": ["NDVIX"]}, "`indices`: unknown index `NDVIX`. Did you mean `NDVI`"),
        ({"bands": ["B02", "B03"]}, "`indices`: no `nir` band among B02, B03"),
        ({"sensor": "sentinel3"}, "`sensor`: unknown sensor `sentinel3`. Did you mean `sentinel2`"),
        ({"clear_excludes": ["clouds"]}, "unknown flag `clouds`. Did you mean `cloud`"),
        ({"indices": []}, "`indices`: "),
        ({"indices": ["NDVI", "NDVI"]}, "`indices`: NDVI listed twice"),
        ({"tile_px": 100}, "`tile_px`: 100 is no multiple of cell_px 8"),
        ({"cell_px": 10}, "`tile_px`: 96 is no multiple of cell_px 10"),
        ({"stride_px": 50}, "`stride_px`: 50 is no multiple of cell_px 8"),
        ({"offset": "unknown"}, "`offset`"),
        ({"crs": "EPSG:4326"}, "`crs`: `EPSG:4326` has no metres; take a projected one"),
        (
            {"gsd_m": 5, "bands": [*BANDS, "B01"]},
            "`gsd_m`: band B01 has 60 m pixels: 5 m would enlarge it more than 6",
        ),
        ({"min_clear": 1.5}, "`min_clear`"),
        ({"split": {"val_shore": 0.1}}, "unknown key `split.val_shore`. Did you mean `val_share`"),
        ({"gsd_m": 0}, "greater than 0"),
        ({"gsd_m": "finest"}, "`gsd_m"),
        ({"crs": "EPSG:99999999"}, "`crs`: `EPSG:99999999` is no coordinate system"),
        ({"labels": {"classes": []}}, "`labels.classes`"),
    ],
)
def test_p09_what_does_not_fit_is_told_with_the_key_to_change(changes, told):
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        config(**changes)


def test_p09_bands_keep_the_order_they_are_asked_for():
    assert config(bands=BANDS[::-1]).bands == tuple(BANDS[::-1])


def test_a_stand_in_for_a_missing_band_is_recorded():
    narrow = config(bands=["B03", "B04", "B8A", "B11"])
    assert narrow.index_bands("NDVI") == ("B8A", "B04")
    assert narrow.fallbacks() == ("nir is B8A (nir_narrow): no nir band was asked for",)
    assert config().fallbacks() == ()


def test_unclear_bits_hold_nodata_always():
    assert config(clear_excludes=["snow"]).unclear_bits == Flag.NODATA | Flag.SNOW


@pytest.mark.parametrize(("limit", "allowed"), [(0, 0), (3, 3), (0.1, 2), (0.5, 14), (1.0, 1)])
def test_rejections_are_limited_by_count_or_share(limit, allowed):
    assert config(max_rejected=limit).allowed_rejections(28) == allowed


def test_an_output_remembers_its_settings(tmp_path):
    first = config(output=tmp_path / "set")
    assert settings.agree(first) == []
    other = config(output=tmp_path / "set", workers=3, max_rejected=5, dask={"address": "host:8786"})
    assert settings.agree(other) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bands": [*BANDS, "B12"]}, "bands: "),
        ({"gsd_m": 20}, "gsd_m: 'native' -> 20"),
        ({"cell_px": 16}, "cell_px: 8 -> 16"),
        ({"tile_px": 128}, "tile_px: 96 -> 128"),
        ({"offset": "applied"}, "offset: 'auto' -> 'applied'"),
    ],
)
def test_p19_what_the_numbers_mean_cannot_change(tmp_path, changes, told):
    settings.agree(config(output=tmp_path))
    with pytest.raises(OutputError, match="was made with other settings") as error:
        settings.agree(config(output=tmp_path, **changes))
    assert told in str(error.value)
    assert settings.agree(config(output=tmp_path)) == []  # the refusal changed nothing


def test_p19_another_format_is_refused(tmp_path):
    settings.agree(config(output=tmp_path))
    path = tmp_path / settings.NAME
    tree = json.loads(path.read_text())
    tree["format_versions"]["sample"] = 0
    path.write_text(json.dumps(tree))
    with pytest.raises(OutputError, match=r"format_versions\.sample: 0 -> 1"):
        settings.agree(config(output=tmp_path))


def test_p19_thresholds_and_indices_may_change_and_are_told(tmp_path):
    settings.agree(config(output=tmp_path))
    changed = settings.agree(config(output=tmp_path, min_clear=0.1, indices=["NDVI"]))
    assert changed == ["indices: ['NDVI', 'NDWI', 'NDBI'] -> ['NDVI']", "min_clear: 0.7 -> 0.1"]


def test_damaged_settings_are_told(tmp_path):
    (tmp_path / settings.NAME).write_text("{")
    with pytest.raises(CorruptDataError, match=settings.NAME):
        settings.agree(config(output=tmp_path))


def test_changed_sources_are_told_in_one_line(tmp_path):
    assert settings.read_sources(tmp_path) == {}
    settings.write_sources(tmp_path, {"a": "1", "b": "2", "c": "3"})
    old = settings.read_sources(tmp_path)
    assert settings.source_changes(old, old) == ""
    assert settings.source_changes(old, {"b": "2", "c": "4", "d": "5"}) == "d is new, c changed, a is gone"
    many = {f"s{n}": "" for n in range(9)}
    assert (
        settings.source_changes({}, many)
        == "s0 is new, s1 is new, s2 is new, s3 is new, s4 is new, and 4 more"
    )
