"""Splits by a set's lists and by draw."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MissingInputError, SceneError
from preprocessing import splits
from preprocessing.scenes import Given, Scene
from preprocessing.splits import SplitConfig


def scene(name: str, split: str = "") -> Scene:
    return Scene(name, "sentinel2", "L2A", "geotiff", Path(name), "", (), given=Given(name, None, split))


def placed(config: SplitConfig, *names: str) -> list[str]:
    lists = splits.read(config)
    return [lists.place(scene(name)).given.split for name in names]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.txt", "a\nc\n"),
        ("train.txt", "a,c"),
        ("train.txt", "River/a.tif\nRiver/c.jpg"),
        ("train.csv", "name,more\na,1\nc,2\n"),
        ("train.txt", "\ufeffa\nc\n"),
    ],
)
def test_a_list_gives_its_split_and_others_get_none(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (tmp_path / "validation.txt").write_text("b")
    files = {"train": tmp_path / name, "validation": tmp_path / "validation.txt"}
    assert placed(SplitConfig(by="set", files=files), "a", "b", "c", "d") == ["train", "val", "train", ""]


def test_an_absent_list_says_where_to_get_it_and_that_a_draw_is_not_official(tmp_path):
    config = SplitConfig(by="set", files={"train": tmp_path / "none.txt"})
    with pytest.raises(
        MissingInputError, match=r"split\.files\.train.*had at https://there\..*no official split"
    ) as caught:
        splits.read(config, "https://there")
    assert caught.value.exit_code == 2


def test_a_scene_in_two_lists_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x\ny")
    config = SplitConfig(by="set", files={"train": tmp_path / "a.txt", "val": tmp_path / "a.txt"})
    with pytest.raises(ConfigError, match="x is in the list of `train` and in that of `val`"):
        splits.read(config)


def test_without_lists_the_sets_own_word_counts():
    lists = splits.read(SplitConfig(by="set"))
    assert lists.place(scene("a", "validation")).given.split == "val"
    assert splits.read(SplitConfig()).place(scene("a", "test")).given.split == ""


def test_a_draw_is_seeded_and_near_its_share():
    names = [f"patch_{n}" for n in range(1000)]
    first = placed(SplitConfig(by="scene", val_share=0.2), *names)
    assert first == placed(SplitConfig(by="scene", val_share=0.2), *names)
    assert first != placed(SplitConfig(by="scene", val_share=0.2, seed=1), *names)
    assert 150 < first.count("val") < 250


def test_groups_stay_together(tmp_path):
    groups = {f"patch_{n}": n // 10 for n in range(400)}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    config = SplitConfig(by="scene", val_share=0.4, groups=tmp_path / "groups.json")
    found = dict(zip(groups, placed(config, *groups), strict=True))
    for group in range(40):
        assert len({found[name] for name in groups if groups[name] == group}) == 1
    assert set(found.values()) == {"train", "val"}
    with pytest.raises(SceneError, match="no group for stranger"):
        placed(config, "stranger")


def test_the_record_says_who_divided_with_the_checksum_of_every_list(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    made = splits.record(SplitConfig(by="set", files={"train": tmp_path / "train.txt"}))
    assert (made.by, made.files) == ("set", {"train.txt": hashlib.sha256(b"a").hexdigest()})
    assert splits.record(SplitConfig(by="scene", seed=4)).model_dump() == {
        "by": "scene",
        "seed": 4,
        "files": {},
    }
