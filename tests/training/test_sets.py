"""Shard sets read together: which may be, what they are together, and what is refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.config import Config, dump, load
from pipeline.errors import ConfigError, ContractError, MissingInputError, PipelineError, UnknownNameError
from pipeline.reference import listing
from tests.training.shard_sets import LANDSAT, Kind, make_sample
from training.data import DataConfig, ShardSet, make_view
from training.order import RULE
from training.sets import (
    WITH_LABELS,
    Part,
    open_families,
    open_split,
    run_data,
    warn_of_shared_ground,
)

MORE = Kind(scene="more", name="more")


class Run(Config):
    """As much of a run's configuration as is needed here."""

    data: DataConfig


def data(*sets: object, **others: object) -> DataConfig:
    return DataConfig.model_validate({"shards": list(sets), **others})


def altered(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a set with another manifest."""
    shutil.copytree(folder, target)
    tree = json.loads((target / "manifest.json").read_text())
    change(tree)
    (target / "manifest.json").write_text(json.dumps(tree))
    return target


@pytest.mark.parametrize(
    ("word", "sets"),
    [
        ("a/b", [ShardSet(path=Path("a/b"))]),
        ("[a,b]", [ShardSet(path=Path("a")), ShardSet(path=Path("b"))]),
        ("{path: a, earlier: false}", [ShardSet(path=Path("a"), earlier=False)]),
        (
            "[{path: a, weight: 3},{path: b, weight: 1}]",
            [ShardSet(path=Path("a"), weight=3), ShardSet(path=Path("b"), weight=1)],
        ),
    ],
)
def test_sets_are_given_as_paths_or_with_weights(word: str, sets: list[ShardSet], tmp_path: Path) -> None:
    config = load(Run, None, [f"data.shards={word}"])
    assert list(config.data.shards) == sets
    # what is recorded, and what is told to be typed, mean the same again
    (tmp_path / "recorded.yaml").write_text(dump(config))
    assert load(Run, tmp_path / "recorded.yaml") == config
    assert load(Run, None, [config.data.word]) == config


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("[]", "the word data.shards=.*must be a path or a list of a path or a group of keys"),
        ("3", "must be a path or a list"),
        ("[{path: a, wight: 3}]", "unknown key `data.shards.0.wight`. Did you mean `weight`"),
        ("[{path: a, weight: 0}]", "`data.shards.0.weight`: must be a number greater than 0"),
        ("[{weight: 1}]", "`data.shards.0.path` is not set"),
        ("[{path: a, weight: 3}, b]", "b has no weight and others have one"),
    ],
)
def test_what_is_no_set_is_told_by_its_key(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(Run, None, [f"data.shards={word}"])


def test_t19_a_location_that_others_would_execute_is_a_path_that_is_not_there(tmp_path: Path) -> None:
    for word in (f"pipe:touch {tmp_path}/executed", f"pipe:touch {tmp_path}/executed|"):
        with pytest.raises(MissingInputError, match="no shard set at"):
            open_families(load(Run, None, [f"data.shards={word!r}"]).data)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_tells_how_sets_are_given() -> None:
    text = listing(Run)
    assert "data.shards=...  # a path or a list of a path or a group of keys (path, weight, earlier)" in text


def test_sets_of_a_sensor_are_one_family_with_exact_statistics(shards: Path, more_shards: Path) -> None:
    (family,) = open_families(data(shards, more_shards))
    assert len(family) == 64
    (source,) = family.sources
    assert [source.read(n).key for n in (0, 39, 40, 63)] == [
        "tile_00000", "tile_00039", "more_00100", "more_00123",
    ]  # fmt: skip
    counted = histograms.empty(6)
    for sample in [make_sample(n) for n in range(40)] + [make_sample(n, MORE) for n in range(100, 124)]:
        histograms.count(counted, sample.pixels, sample.mask == 0)
    assert family.statistics() == histograms.statistics(counted)
    # a set counts by its pixels, not by its weight
    weighted = [{"path": shards, "weight": 1}, {"path": more_shards, "weight": 99}]
    (heavy,) = open_families(data(*weighted))
    assert heavy.statistics() == family.statistics()
    assert [len(s) for s in heavy.sources] == [40, 24]


def test_one_set_needs_no_histogram_and_several_do(shards: Path, more_shards: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(more_shards, tmp_path / "bare"))
    (bare / histograms.NAME).unlink()
    (alone,) = open_families(data(bare))
    assert alone.statistics() == manifests.read(bare).statistics
    (both,) = open_families(data(shards, bare))
    with pytest.raises(MissingInputError, match=r"bare has no histogram\.npz"):
        both.statistics()


def test_sets_of_several_sensors_are_several_families(
    shards: Path, more_shards: Path, landsat_shards: Path
) -> None:
    families = open_families(data(landsat_shards, shards, more_shards))
    assert [(f.contract.sensor, len(f)) for f in families] == [("landsat_oli", 24), ("sentinel2", 64)]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("level", "L1C", r"level: 'L2' -> 'L1'"),
        ("cell_px", 16, r"cell_px: 8 -> 16"),
        ("scale", 1e-3, r"scale: 0\.0001 -> 0\.001"),
        ("gsd_m", 60, r"gsd_m: 10\.0 -> 60\.0"),
        ("indices", ["NDVI"], r"indices: \['NDVI', 'NDWI', 'NDBI'\] -> \['NDVI'\]"),
        ("resampling", "cubic", r"resampling: 'bilinear' -> 'cubic'"),
    ],
)
def test_sets_of_a_sensor_that_disagree_are_refused_field_by_field(
    shards: Path, more_shards: Path, tmp_path: Path, field: str, value: object, says: str
) -> None:
    other = altered(more_shards, tmp_path / "other", lambda tree: tree["contract"].update({field: value}))
    with pytest.raises(ContractError, match=f"the shard sets {shards} and {other} do not hold.*{says}"):
        open_families(data(shards, other))


def test_bands_that_disagree_are_told_by_name(shards: Path, more_shards: Path, tmp_path: Path) -> None:
    def shifted(tree: dict[str, Any]) -> None:
        tree["contract"]["bands"][2]["centre_nm"] = 660.0

    other = altered(more_shards, tmp_path / "other", shifted)
    with pytest.raises(ContractError, match=r"band\.B04\.centre_nm: 664\.6 -> 660\.0"):
        open_families(data(shards, other))
    other = altered(more_shards, tmp_path / "order", lambda tree: tree["contract"]["bands"].reverse())
    with pytest.raises(ContractError, match=r"bands: \['B02', .*\] -> \['B12'"):
        open_families(data(shards, other))


def test_tiles_of_two_sizes_give_crops_of_one(shards: Path, make_shards: Callable[..., Path]) -> None:
    larger = make_shards("larger", replace(MORE, tile_px=64), train=range(8))
    with pytest.raises(ConfigError, match=r"48 px in .*made, 64 px in .*larger\): set data\.image_px"):
        open_families(data(shards, larger))
    config = data(shards, larger, image_px=48)
    (family,) = open_families(config)
    assert family.contract.tile_px == 48
    assert make_view(family.contract, config, 8).image_px == 48


def test_labels_matter_only_where_they_are_used(shards: Path, more_shards: Path, tmp_path: Path) -> None:
    other = altered(more_shards, tmp_path / "other", lambda tree: tree["contract"].update({"classes": []}))
    (family,) = open_families(data(shards, other))
    assert family.contract.classes == ()
    with pytest.raises(ContractError, match=r"classes: \['water', 'field', 'town'\] -> \[\]"):
        open_families(data(shards, other), WITH_LABELS)


def test_a_sample_in_two_sets_is_refused_by_name(
    shards: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    again = make_shards("again", train=range(38, 50))
    with pytest.raises(ContractError, match=r"both hold the samples tile_00038, tile_00039\. Leave one"):
        open_families(data(shards, again))
    (tmp_path / "link").symlink_to(shards)
    with pytest.raises(ContractError, match=r"tile_00000, tile_00001, tile_00002 and 37 more"):
        open_families(data(shards, tmp_path / "link"))
    # one scene may give its samples to two sets
    (family,) = open_families(data(shards, make_shards("rest", train=range(52, 60))))
    assert len(family) == 48


def test_bands_are_named_by_sensor(shards: Path, landsat_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"name bands by sensor, data\.bands=\{sentinel2: \[B02,B03\]"):
        open_families(data(shards, landsat_shards, bands=["B02", "B03"]))
    with pytest.raises(UnknownNameError, match="Did you mean `landsat_oli`"):
        open_families(data(shards, landsat_shards, bands={"landsat_ol": ["B2"]}))
    config = data(shards, landsat_shards, bands={"landsat_oli": ["B4", "B2"]})
    views = [make_view(f.contract, config, 8) for f in open_families(config)]
    assert [v.bands for v in views] == [(0, 1, 2, 3, 4, 5), (2, 0)]


@pytest.fixture
def grown(make_shards: Callable[..., Path]) -> Path:
    """The second set of a growing archive; the first has no validation samples."""
    make_shards("archive", train=range(12))
    second = replace(MORE, name="made-002", earlier=("made",))
    return make_shards("archive-002", second, train=range(8), val=range(8, 12))


def test_a_numbered_set_stands_for_those_before_it(grown: Path) -> None:
    (family,) = open_families(data(grown))
    assert [f.name for f in family.sets] == ["archive", "archive-002"]
    assert len(family) == 20
    (newest,) = open_families(data({"path": grown, "earlier": False}))
    assert len(newest) == 8
    assert len(open_split(data(grown), "val")) == 4
    (first,) = open_families(data(grown.with_name("archive")))
    assert len(first) == 12
    with pytest.raises(ContractError, match="has no split `test`"):
        open_split(data(grown), "test")


def record(*sets: object) -> Any:
    config = data(*sets, image_px=32)
    parts = [Part(f, make_view(f.contract, config, 8)) for f in open_families(config)]
    return run_data(parts, "minmax")


def test_what_is_read_is_recorded_by_sensor_and_set(
    shards: Path, more_shards: Path, landsat_shards: Path
) -> None:
    weighted = [{"path": shards, "weight": 3}, {"path": landsat_shards, "weight": 1}]
    found = record(*weighted)
    assert [(s.name, s.samples, s.weight) for s in found.sets] == [("made", 40, 3), ("made", 24, 1)]
    assert found.of("landsat_oli").bands == LANDSAT.bands
    assert found.of("sentinel2").statistics == manifests.read(shards).statistics
    with pytest.raises(ContractError, match="know images of sentinel2, landsat_oli, not of landsat_tm"):
        found.of("landsat_tm")
    # weights and order of sets count, and the rule of the order of samples
    assert found.order == RULE
    digests = [
        record(shards, more_shards).digest, record(more_shards, shards).digest, found.digest,
        record(weighted[0], {"path": landsat_shards, "weight": 2}).digest, record(shards).digest,
    ]  # fmt: skip
    assert len(set(digests)) == 5


def test_sets_divided_by_other_rules_are_warned_of(
    shards: Path, more_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def divided(tree: dict[str, Any]) -> None:
        tree["settings"] = {"split": {"val_share": 0.2}}

    other = altered(more_shards, tmp_path / "other", divided)
    logging.getLogger("pipeline").propagate = True
    for sets, told in (((shards, more_shards), False), ((shards, other), True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_of_shared_ground(open_families(data(*sets))[0])
        assert ("validation tiles of one may lie on training ground" in caplog.text) == told


@pytest.mark.parametrize(
    ("sets", "kind", "says"),
    [(["nowhere"], MissingInputError, "no shard set at nowhere")],
)
def test_what_is_not_there_is_told(sets: list[object], kind: type[PipelineError], says: str) -> None:
    with pytest.raises(kind, match=says):
        open_families(data(*sets))
