"""The report of thousands of scenes is as easy to open as that of a few; every scene has its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import config as configs
from pipeline import histogram as exact
from preprocessing import assembly, contributions, page, quality, reporting
from preprocessing.duplicates import Decision
from preprocessing.finding import Found
from preprocessing.profiles import Profile
from preprocessing.quality import Rejection
from preprocessing.rounds import Outcome
from preprocessing.settings import ShardConfig
from preprocessing.spool import Segment, Spool

MANY = 1500
PATCH_PX = 96


def patch(number: int, bands: int) -> Spool:
    """What a set of patches gives: one tile each, side by side."""
    name, split = f"p{number:06d}", "val" if number % 10 == 0 else "train"
    x, y = 300_000.0 + number % 40 * 3 * 960, 5_000_000.0 - number // 40 * 3 * 960
    profile = Profile(
        crs="EPSG:32632",
        transform=(10.0, 0.0, x, 0.0, -10.0, y),
        shape_px=(PATCH_PX, PATCH_PX),
        tile_px=PATCH_PX,
        tops=(0,),
        lefts=(0,),
        fates=(split[0],),
        flags={"0": PATCH_PX**2},
        bands=tuple((1,) * 260 for _ in range(bands)),
        indices=((5,) * 80,) * 3,
    )
    segment = Segment(f"{name}_00000_00000", split, 0, 100)
    return Spool(
        name, "", 10.0, "L2A", "bigearthnet", "2018-05-05T10:00:00Z", "", (), {}, (segment,), 1, profile
    )


def made_of(output: Path, scenes: int, others: int) -> reporting.Inputs:
    """A run of so many scenes; one more in 300 is as bright as snow."""
    request = configs.load(ShardConfig, configs.ROOT / "configs/shard/default.yaml", [f"output={output}"])
    rng = np.random.default_rng(0)
    kinds = []
    for scale in (300, 330, 3000):
        counted = exact.empty(len(request.bands))
        pixels = rng.gamma(4, scale, (len(request.bands), 32, 32)).clip(0, 15_000).astype(np.int16)
        exact.count(counted, pixels, np.ones((32, 32), bool))
        kinds.append(exact.sparse(counted))
    spools = [patch(number, len(request.bands)) for number in range(scenes)]
    histograms = {s.scene: kinds[2 if k % 300 == 7 else k % 2] for k, s in enumerate(spools)}
    given = contributions.gather(request.bands, histograms)
    rejections = [Rejection(f"/a/r{k}", "no file of band B02: fetch it again", "d") for k in range(others)]
    decisions = [Decision(f"d{k}", f"/a/d{k}", ("p000000",), 0.0, False) for k in range(others)]
    outcome = Outcome(rejections=rejections, decisions=decisions)
    for spool in spools:
        outcome.add(spool)
    # half a million scenes' counts would fill the memory
    assert not any(s.profile.bands or s.profile.indices for s in outcome.spools.values())
    output.mkdir()
    made = assembly.manifest(request, spools, {}, given)
    return reporting.Inputs(request, made, spools, outcome, Found((), ()), histograms, given)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("reports")
    for scenes in (reporting.SHOWN, MANY):
        reporting.write(made_of(root / str(scenes), scenes, scenes))
    return {scenes: root / str(scenes) for scenes in (reporting.SHOWN, MANY)}


def test_four_times_the_scenes_make_no_larger_report(folders):
    few, many = ({p.name: p.stat().st_size for p in folder.iterdir()} for folder in folders.values())
    for name in (quality.REPORT, page.NAME):
        # the map has a cell for a thousand scenes and a million
        assert many[name] < few[name] + 600_000 < 2_000_000
    assert many[quality.SCENES] > 3.5 * few[quality.SCENES]


def test_what_is_not_shown_is_counted_and_stands_in_its_own_file(folders):
    folder = folders[MANY]
    tree = json.loads((folder / quality.REPORT).read_text())
    assert tree["totals"] == {
        "scenes": MANY,
        "rejected": MANY,
        "duplicates": MANY,
        "left_out_of_statistics": 0,
        "unlike": 5,
    }
    for name in ("scenes", "rejected", "duplicates"):
        assert len(tree[name]) == reporting.SHOWN
    assert [u["scene"] for u in tree["unlike"]] == [f"p{k:06d}" for k in (1207, 907, 607, 307, 7)]
    text = (folder / page.NAME).read_text()
    for rest in ("scenes.jsonl", "rejected.csv", "duplicates.csv"):
        assert f"and {MANY - reporting.SHOWN:,} more in {rest}" in text
    assert len((folder / quality.DUPLICATES).read_text().splitlines()) == MANY + 1
    known = dict(quality.read_scenes(folder))
    assert len(known) == MANY
    assert known["p000000"] == tree["scenes"]["p000000"]
    assert sum(scene["statistics_px"] for scene in known.values()) == tree["bands"]["B02"]["n"] == MANY * 1024


def test_the_map_of_many_scenes_counts_them_in_cells(folders):
    few, many = (json.loads((folder / quality.REPORT).read_text())["map"] for folder in folders.values())
    assert [one["name"] for one in few[:2]] == ["p000000", "p000001"]
    assert sum(int(one["name"].removesuffix(" scenes")) for one in many) == MANY
    assert all(one["clear_share"] == 1 for one in many)


def test_a_report_of_many_rejections_still_tells_whether_people_edited_them(folders):
    folder = folders[MANY]
    rejections = [Rejection(f"/a/r{k}", "any", "d") for k in range(MANY)]
    quality.write_rejected(folder, rejections)
    assert quality.as_reported(folder)
    quality.write_rejected(folder, rejections[:-1])
    assert not quality.as_reported(folder)
