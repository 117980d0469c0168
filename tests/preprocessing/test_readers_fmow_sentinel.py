"""fMoW-Sentinel: classes, splits and times by the set's csv files."""

import pytest

from pipeline import manifest as manifests
from pipeline.config import ROOT
from pipeline.errors import ConfigError, MissingInputError
from preprocessing import shard
from tests.preprocessing.patches import numbers, write_image
from tests.preprocessing.test_readers_geotiff import all_samples

CONFIG = str(ROOT / "configs/shard/fmow_sentinel.yaml")
HEAD = ",category,location_id,image_id,timestamp,polygon\n"


@pytest.fixture
def words(tmp_path):
    for number, (category, place, image) in enumerate(
        [("zoo", 3, 0), ("zoo", 3, 15), ("multi-unit_residential", 0, 7)]
    ):
        name = f"{category}_{place}"
        path = tmp_path / "in" / "train" / category / name / f"{name}_{image}.tif"
        write_image(path, numbers(13, 45, number), 10)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.csv").write_text(
        f'{HEAD}0,zoo,3,0,2016-02-01T00:00:00Z,"POLYGON ((0 0, 1 1))"\n'
    )
    (tmp_path / "lists/test_gt.csv").write_text(
        f"{HEAD}9,multi-unit_residential,0,7,2017-03-01T00:00:00Z,x\n"
    )
    return [CONFIG, f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]


def test_listed_images_get_class_split_and_time(words, tmp_path):
    assert shard.main([*words, f"labels.table={tmp_path / 'lists'}"]) == 0
    made = manifests.read(tmp_path / "out")
    assert len(made.contract.classes) == len(set(made.contract.classes)) == 62
    assert set(made.split.files) == {"train.csv", "test_gt.csv"} and made.split.by == "set"
    found = {
        (split, made.contract.classes[s.label], s.info["acquired"])
        for split, part in all_samples(tmp_path / "out").items()
        for s in part
    }
    assert found == {
        ("train", "zoo", "2016-02-01T00:00:00Z"),
        ("test", "multi-unit_residential", "2017-03-01T00:00:00Z"),
    }
    assert sum(s.tiles.get("unlisted", 0) for s in made.scenes) == 1
    # B8A is the ninth layer
    (one,) = all_samples(tmp_path / "out")["train"]
    assert [int(b.min()) // 100 for b in one.pixels] == list(range(5, 18))


def test_one_list_alone_and_none_at_all(words, tmp_path):
    shard.main([*words, f"labels.table={tmp_path / 'lists/train.csv'}"])
    assert set(manifests.read(tmp_path / "out").splits) == {"train"}
    with pytest.raises(ConfigError, match=r"nothing says which split .*purl\.stanford\.edu"):
        shard.main(words)


def test_lists_that_are_absent_or_others_say_where_to_get_them(words, tmp_path):
    with pytest.raises(MissingInputError, match=r"no table at .*purl\.stanford\.edu"):
        shard.main([*words, f"labels.table={tmp_path / 'in'}"])
    (tmp_path / "lists/val.csv").write_text("a,b\n")
    with pytest.raises(
        ConfigError, match=r"val\.csv .*has the columns a, b; category, .*timestamp are needed"
    ):
        shard.main([*words, f"labels.table={tmp_path / 'lists'}"])
