import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import config as configs
from pipeline.errors import ConfigError, MissingInputError
from preprocessing import selection, shard
from preprocessing.scenes import Scene
from preprocessing.selection import SelectConfig

SQUARE = np.array([(10, 50), (11, 50), (11, 49), (10, 49)], np.float64)


def scene(acquired: str = "2024-06-10T10:00:00Z", cloud: float | None = 0.3) -> Scene:
    return Scene("s1", "sentinel2", "L2A", "r", Path("/archive/s1.SAFE"), acquired, (), cloud_share=cloud)


def select(**keys) -> SelectConfig:
    return configs.build(SelectConfig, keys, "test")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, ""),
        ({"date_from": "2024-06-10", "date_to": "2024-06-10"}, ""),
        ({"date_from": "2024-06-11"}, "before date_from"),
        ({"date_to": "2024-06-09"}, "after date_to"),
        ({"max_cloud": 0.3}, ""),
        ({"max_cloud": 0.29}, "over max_cloud"),
    ],
)
def test_dates_and_clouds_select(keys, reason):
    assert selection.unwanted(select(**keys), scene()) == reason


def test_a_scene_that_states_nothing():
    assert selection.unwanted(select(max_cloud=0.1), scene(cloud=None)) == ""
    assert selection.unwanted(select(date_from="2024-01-01"), scene(acquired="")) == "no date"


@pytest.mark.parametrize(
    "text",
    [
        "s1\n",
        "# of June\ns1.SAFE  # good\n",
        "/archive/s1.SAFE/\n",
        "product,reason\n/a/s1.SAFE,x\n",
        "\ufeffproduct,reason\n/a/s1.SAFE,x\n",
    ],
)
def test_a_list_names_products_in_any_form(tmp_path, text):
    path = tmp_path / f"list-{abs(hash(text))}.txt"
    path.write_text(text)
    assert selection.unwanted(select(list=str(path)), scene()) == ""
    other = tmp_path / f"other-{abs(hash(text))}.txt"
    other.write_text(text.replace("s1", "s2"))
    assert selection.unwanted(select(list=str(other)), scene()) == "not on the list"


def test_a_box_selects_what_it_touches():
    assert not selection.outside(select(), SQUARE)
    assert not selection.outside(select(area=[10.9, 49.5, 12, 51]), SQUARE)
    assert not selection.outside(select(area=[0, 0, 90, 90]), SQUARE)
    assert not selection.outside(select(area=[10.4, 49.4, 10.6, 49.6]), SQUARE)
    assert selection.outside(select(area=[11.1, 49, 12, 50]), SQUARE)
    across = np.array([(179.4, 50), (-179.2, 50), (-179.2, 49), (179.4, 49)], np.float64)
    assert selection.outside(select(area=[0, 40, 90, 60]), across)
    assert selection.outside(select(area=[178, 40, 179, 60]), across)
    assert not selection.outside(select(area=[179, 40, 180, 60]), across)
    assert not selection.outside(select(area=[-180, 40, -179.5, 60]), across)
    with pytest.raises(ConfigError, match="is no box"):
        select(area=[11, 49, 10, 50])


def test_a_polygon_of_a_geojson_selects_what_it_touches(tmp_path):
    triangle = [[10.8, 51], [13, 51], [13, 48.9], [10.8, 51]]  # its long side passes the square's corner
    for name, kind in (("a", "Polygon"), ("b", "MultiPolygon")):
        shape = {"type": kind, "coordinates": [triangle] if kind == "Polygon" else [[triangle]]}
        features = [{"type": "Feature", "geometry": one} for one in (None, shape)]
        tree = {"type": "FeatureCollection", "features": features}
        path = tmp_path / f"{name}.geojson"
        path.write_text(json.dumps(tree))
        assert selection.outside(select(area=str(path)), SQUARE)
        assert not selection.outside(select(area=str(path)), SQUARE + np.array([1, 0]))
    (tmp_path / "c.geojson").write_text("{}")
    with pytest.raises(ConfigError, match="is no GeoJSON"):
        selection.outside(select(area=str(tmp_path / "c.geojson")), SQUARE)
    with pytest.raises(MissingInputError, match=r"set `select\.area`"):
        selection.outside(select(area=str(tmp_path / "d.geojson")), SQUARE)


def test_unselected_scenes_are_counted_in_plan_and_report(simulated_archive, shard_words, tmp_path, capsys):
    words = [*shard_words, f"output={tmp_path / 'set'}"]
    shard.main([*words, "select.date_to=2020-01-01", "--dry-run"])
    assert "not selected: 1 after date_to" in capsys.readouterr().out
    shard.main([*words, "select.area=[100,10,101,11]", "--dry-run"])
    assert "not selected: 1 outside the area" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"no scene is left.*1 after date_to.*`select`"):
        shard.main([*words, "select.date_to=2020-01-01"])
    assert not (tmp_path / "set/train").exists()
