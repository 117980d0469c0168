import csv
import json
import re
import shutil

import pytest

from pipeline import config as configs
from pipeline import manifest as manifests
from pipeline.errors import OutputError
from preprocessing import finding, planning, quality, shard
from preprocessing.settings import ShardConfig
from tests.preprocessing.patches import write_bigearthnet_patch


def request(words: list[str], *more: str) -> ShardConfig:
    from pathlib import Path

    return configs.load(ShardConfig, Path(words[0]), [*words[1:], *more])


def test_the_plan_bounds_what_is_made(shard_words, shard_set, tmp_path):
    asked = request(shard_words, f"output={tmp_path}")
    plan = planning.estimate(asked, finding.find_scenes(asked))
    made = manifests.read(shard_set)
    size = sum(s.size_bytes for part in made.splits.values() for s in part)
    assert plan.tiles == sum(made.scenes[0].tiles.values()) == 64
    kept = made.samples("train") + made.samples("val")
    assert plan.shard_bytes * kept / plan.tiles == pytest.approx(size, rel=0.5)
    stored = planning.size_of(shard_set) - size
    assert plan.archive_bytes == pytest.approx(stored, rel=0.6)
    assert plan.worker_bytes > planning.BASE_BYTES
    without = request(shard_words, f"output={tmp_path}", "keep_zarr=false")
    assert planning.estimate(without, finding.find_scenes(without)).needed_bytes <= plan.needed_bytes


def test_the_memory_of_a_whole_tile_is_what_was_measured_and_bounded():
    """`make bench BENCH=memory` measured 1.74 GiB on 13 bands; twice the pixels cost twice the mask, not the bands."""
    bands = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    asked = ShardConfig(sensor="sentinel2", bands=bands, gsd_m=10.0)
    tile, large = (planning._worker_bytes(asked, n * 10_980**2) for n in (1, 4))
    assert tile == pytest.approx(1.74 * 2**30, rel=0.1)
    assert tile < 2 * 2**30
    assert large < 3 * tile


def test_what_lies_there_already_needs_no_room(shard_words, shard_set, tmp_path):
    asked = request(shard_words, f"output={tmp_path}")
    again = request(shard_words, f"output={shard_set}")
    plans = [planning.estimate(r, finding.find_scenes(r)) for r in (asked, again)]
    assert plans[1].needed_bytes < plans[0].needed_bytes


def test_p03_a_run_that_cannot_fit_does_not_start_and_names_the_numbers(shard_words, tmp_path, monkeypatch):
    # a full disk of any size cannot be had in a test; the numbers compared are real
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    for more in ([], ["--dry-run"]):
        with pytest.raises(
            OutputError, match=r"has 2\.0 MB free, and this run needs about .* MB: .*keep_zarr"
        ):
            shard.main([*shard_words, f"output={tmp_path / 'set'}", *more])
    assert not (tmp_path / "set/train").exists()


def test_the_dry_run_tells_scenes_costs_and_rejections(products, shard_words, tmp_path, capsys):
    product = products["sentinel2-L2A"]
    for name in ("a", "b", "broken"):
        shutil.copytree(product, tmp_path / "archive" / f"{name}.SAFE")
    (tmp_path / "archive/broken.SAFE/MTD_MSIL2A.xml").unlink()
    words = [shard_words[0], f"scenes={tmp_path / 'archive'}", *shard_words[2:], "labels=null"]
    assert shard.main([*words, f"output={tmp_path / 'set'}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    for part in (
        "rejected: ",
        "broken.SAFE",
        "one acquisition: a, b",
        "tiles, at most",
        "GB free",
        "a worker",
    ):
        assert part in told
    assert not (tmp_path / "set").exists()


@pytest.fixture
def patches(tmp_path):
    """Many patches of one content, of which the last has lost a band; the words that shard them."""
    base, folder = "S2A_MSIL2A_20170617T113321_0_0", tmp_path / "archive"
    first = write_bigearthnet_patch(folder, base, ["Pastures"])
    for number in range(1, finding.FEW + 50):
        name = f"S2A_MSIL2A_20170617T113321_{number // 90}_{number % 90 + 1}"
        (folder / name).mkdir()
        for path in first.iterdir():
            (folder / name / path.name.replace(base, name)).hardlink_to(path)
    next((folder / name).glob("*_B11.tif")).unlink()
    words = [str(configs.ROOT / "configs/shard/bigearthnet.yaml"), f"scenes={folder}", "split.by=scene"]
    return [*words, f"output={tmp_path / 'set'}"]


def test_of_many_products_a_plan_opens_a_sample_and_says_what_is_estimated(patches, capsys):
    assert shard.main([*patches, "duplicates=drop", "--dry-run"]) == 0
    told = capsys.readouterr().out
    scenes = finding.FEW + 49
    for part in (
        f"and {scenes - planning.LISTED} more scenes",
        f"tiles, at most    {scenes}\n",
        f"tiles are estimated from the grids of 50 of {scenes} scenes; no products of one acquisition were looked for",
    ):
        assert part in told
    assert re.search("rejected: .*B11", told)
    # the run looks at all, and finds that these are one acquisition
    whole = request([*patches, "duplicates=drop"])
    found = finding.find_scenes(whole)
    assert (found.is_sampled, len(found.places), len(found.jobs)) == (False, scenes, scenes)
    exact = planning.estimate(whole, found)
    assert (exact.tiles, exact.opened) == (1, scenes)
    assert "tiles on the grid of each" in planning.describe(whole, found, exact)
    # where no ground is compared a run needs no more than its plan
    keeping = request(patches)
    assert finding.find_scenes(keeping).is_sampled
    planned = planning.estimate(keeping, finding.find_scenes(keeping))
    assert (planned.tiles, planned.opened) == (scenes, 50)
    assert planned.shard_bytes == pytest.approx(scenes * exact.shard_bytes)
    assert planned.seconds == pytest.approx(exact.seconds)
    assert planned.worker_bytes == exact.worker_bytes


def test_tiles_of_a_plan_follow_the_edge_rule(shard_words, tmp_path):
    counts = {}
    for edge in ("drop", "shift", "pad"):
        asked = request(shard_words, f"output={tmp_path}", "tile_px=56", f"edge={edge}")
        counts[edge] = planning.estimate(asked, finding.find_scenes(asked)).tiles
    # a scene of 384 px holds six tiles of 56 px a side, and a rest of 48 px
    assert counts == {"drop": 36, "shift": 49, "pad": 49}


def test_rejected_lines_that_are_removed_are_tried_again_and_added_ones_left_out(products, tmp_path, capsys):
    shutil.copytree(products["oscd"].parent, tmp_path / "archive/images/a")
    whole = next((tmp_path / "archive/images/a/imgs_1").glob("*_B04.tif"))
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    output = tmp_path / "set"
    words = [
        str(configs.ROOT / "configs/shard/oscd.yaml"),
        f"scenes={tmp_path / 'archive'}",
        f"output={output}",
    ]
    words += ["tile_px=48", "split.val_share=0", "min_valid=0", "min_clear=0", "max_rejected=1"]
    assert shard.main(words) == 0
    (line,) = quality.read_rejected(output)
    assert line.tried
    # the file is as it was, so nothing is tried; without its line it is tried, and rejected again
    for text, told in (("", "nothing was done"), ("product,reason,tried\n", "1 rejected")):
        if text:
            (output / quality.REJECTED).write_text(text)
        capsys.readouterr()
        assert shard.main(words) == 0
        assert told in capsys.readouterr().out
        assert quality.read_rejected(output) == [line]
    # a person finds the other image ugly: it is left out, and counts for no limit
    with (output / quality.REJECTED).open("a", newline="") as stream:
        csv.writer(stream).writerow([line.product.replace("imgs_1", "imgs_2"), "ugly", ""])
    whole.write_bytes(data)
    assert shard.main([*words, "max_rejected=0"]) == 0
    assert [s.id for s in manifests.read(output).scenes] == ["oscd_a_1"]
    tree = json.loads((output / "quality.json").read_text())
    assert [r["reason"] for r in tree["rejected"]] == ["ugly"]
    (output / quality.REJECTED).unlink()
    assert shard.main(words) == 0
    assert [s.id for s in manifests.read(output).scenes] == ["oscd_a_1", "oscd_a_2"]
