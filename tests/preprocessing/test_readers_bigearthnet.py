"""BigEarthNet: both versions, 43 classes to 19, splits by the set's table."""

import json
from pathlib import Path

import pytest

from pipeline import manifest as manifests
from pipeline.config import ROOT, load
from pipeline.errors import ConfigError, MissingInputError, RejectedError
from preprocessing import shard
from preprocessing.readers.bigearthnet import CLASSES_19, LEFT_OUT, to_19
from preprocessing.settings import ShardConfig
from tests.preprocessing.patches import write_bigearthnet_patch, write_metadata
from tests.preprocessing.test_readers_geotiff import all_samples

CONFIG = str(ROOT / "configs/shard/bigearthnet.yaml")
V1 = ("S2A_MSIL2A_20170617T113321_4_55", "S2B_MSIL2A_20180502T093039_43_14")
V2 = tuple(f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_37_8{n}" for n in range(4))
ROWS = [
    {"patch_id": V2[0], "labels": ["Marine waters", "Pastures"], "split": "train"},
    {"patch_id": V2[1], "labels": ["Arable land"], "split": "validation"},
    {"patch_id": V2[2], "labels": ["Pastures"], "split": "test"},
]


def test_forty_three_classes_become_nineteen():
    olds = [old for group in CLASSES_19.values() for old in group]
    assert (len(CLASSES_19), len(set(olds) | set(LEFT_OUT)), len(olds)) == (19, 43, 32)
    assert to_19(["Water bodies", "Water courses", "Airports", "Rice fields"]) == (
        "Arable land",
        "Inland waters",
    )
    assert to_19(["Airports"]) == ()
    with pytest.raises(KeyError):
        to_19(["Airport"])


def test_the_configuration_names_the_nineteen_in_their_order():
    assert load(ShardConfig, Path(CONFIG), []).labels.classes == tuple(CLASSES_19)


def test_version_1_has_several_classes_a_patch_from_its_json(tmp_path):
    write_bigearthnet_patch(tmp_path / "in", V1[0], ["Sea and ocean", "Estuaries", "Pastures"])
    write_bigearthnet_patch(tmp_path / "in", V1[1], ["Burnt areas"])
    words = [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match=r"nothing says which split .*zenodo\.org/records/10891137"):
        shard.main(words)
    assert shard.main([*words, "split.by=scene", "split.val_share=0"]) == 0
    made = manifests.read(tmp_path / "out")
    assert (made.contract.label_kind, made.split.by) == ("classes", "scene")
    found = {s.info["scene"]: s for s in all_samples(tmp_path / "out")["train"]}
    names = {scene: [made.contract.classes[n] for n in s.label] for scene, s in found.items()}
    assert names == {V1[0]: ["Pastures", "Marine waters"], V1[1]: []}
    assert found[V1[0]].info["acquired"] == "2017-06-17T11:33:21Z"
    assert found[V1[0]].pixels.shape == (12, 120, 120)
    # a 60 m band is smooth on the 10 m grid, at its own level
    assert 500 <= found[V1[0]].pixels[0].min() <= found[V1[0]].pixels[0].max() < 600


def test_version_2_has_classes_and_official_splits_from_its_table(tmp_path):
    for name in V2:
        write_bigearthnet_patch(tmp_path / "in" / "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", name)
    table = write_metadata(tmp_path / "metadata.parquet", ROWS)
    words = [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}", f"labels.table={table}"]
    assert shard.main(words) == 0
    made = manifests.read(tmp_path / "out")
    assert {split: made.samples(split) for split in made.splits} == {"train": 1, "val": 1, "test": 1}
    assert made.split.by == "set" and set(made.split.files) == {"metadata.parquet"}
    assert {s.id: s.tiles for s in made.scenes}[V2[3]] == {"unlisted": 1}
    (one,) = all_samples(tmp_path / "out")["train"]
    assert [made.contract.classes[n] for n in one.label] == ["Pastures", "Marine waters"]
    assert str(tmp_path) not in made.model_dump_json()


def test_another_table_divides_anew(tmp_path):
    for name in V2[:2]:
        write_bigearthnet_patch(tmp_path / "in", name)
    table = write_metadata(tmp_path / "metadata.parquet", ROWS)
    words = [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}", f"labels.table={table}"]
    shard.main(words)
    write_metadata(table, [row | {"split": "train"} for row in ROWS])
    shard.main(words)
    assert manifests.read(tmp_path / "out").samples("train") == 2


def test_an_absent_or_wrong_table_says_where_to_get_it(tmp_path):
    write_bigearthnet_patch(tmp_path / "in", V2[0])
    words = [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    with pytest.raises(MissingInputError, match=r"no table at .*labels\.table.*zenodo\.org"):
        shard.main([*words, f"labels.table={tmp_path / 'none.parquet'}"])
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match=r"is no parquet file.*zenodo\.org"):
        shard.main([*words, f"labels.table={tmp_path / 'text.parquet'}"])
    write_metadata(tmp_path / "other.parquet", [{"patch": "x"}])
    with pytest.raises(ConfigError, match="patch_id, labels, split are needed"):
        shard.main([*words, f"labels.table={tmp_path / 'other.parquet'}"])


def test_damaged_labels_reject_their_patch(tmp_path):
    folder = write_bigearthnet_patch(tmp_path / "in", V1[0], ["Pastures"])
    (folder / f"{V1[0]}_labels_metadata.json").write_text(json.dumps({"labels": ["Pasture"]}))
    words = [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "split.by=scene"]
    with pytest.raises((RejectedError, ConfigError), match=r"labels_metadata\.json cannot be read as labels"):
        shard.main(words)


def test_real_patches_of_version_2(real_data, tmp_path):
    folder = real_data / "bigearthnet_v2_mini"
    words = [f"scenes={folder}", f"labels.table={folder / 'metadata.parquet'}", f"output={tmp_path / 'out'}"]
    assert shard.main([CONFIG, *words]) == 0
    made = manifests.read(tmp_path / "out")
    assert {split: made.samples(split) for split in made.splits} == {"train": 6, "val": 6}
    assert sum(s.tiles.get("unlisted", 0) for s in made.scenes) == 4
    for part in all_samples(tmp_path / "out").values():
        assert all(1 <= len(s.label) <= 8 and s.pixels.shape == (12, 120, 120) for s in part)
