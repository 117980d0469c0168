import pytest

from pipeline.errors import ConfigError
from pipeline.manifest import SceneRecord
from preprocessing import quality
from preprocessing.quality import Rejection


def scenes() -> list[SceneRecord]:
    fixed = {"reader": "r", "acquired": "", "level": "L2A"}
    return [
        SceneRecord(id="a", tiles={"train": 3, "cloud": 1}, **fixed),
        SceneRecord(id="b", tiles={"train": 2, "val": 1, "nodata": 4}, **fixed),
    ]


def test_p04_rejections_are_a_table_that_people_may_edit(tmp_path):
    assert quality.read_rejected(tmp_path) == []
    told = [
        Rejection("/a b/ü.SAFE", 'no file of "B02", fetch it', "0123"),
        Rejection("/c", "r", quality.OPENING),
    ]
    quality.write_rejected(tmp_path, told)
    assert quality.read_rejected(tmp_path) == told
    path = tmp_path / quality.REJECTED
    assert path.read_text().splitlines()[0] == "product,reason,tried"
    path.write_text("product\n/by/hand\n")
    assert quality.read_rejected(tmp_path) == [Rejection("/by/hand", "by hand")]
    path.write_text("\ufeffproduct,reason\n/by/hand,spoilt\n")
    assert quality.read_rejected(tmp_path) == [Rejection("/by/hand", "spoilt")]
    path.write_text("/by/hand,r\n")
    with pytest.raises(ConfigError, match="has no column `product`"):
        quality.read_rejected(tmp_path)


def test_tiles_are_summed_by_split_and_reason():
    assert quality.total_tiles(scenes()) == {"cloud": 1, "nodata": 4, "train": 5, "val": 1}
