import itertools
from collections import Counter

import numpy as np
import pytest
import webdataset

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.errors import CorruptDataError
from pipeline.sample import Sample
from preprocessing import packing, spool
from preprocessing.packing import PackJob
from preprocessing.spool import Segment, Spool, SpoolWriter


def found(scenes: int = 3, each: int = 20) -> list[Spool]:
    """Records of some scenes without their data."""
    return [
        Spool(
            f"s{k}",
            "d",
            10.0,
            "L2A",
            "r",
            "",
            "",
            (),
            {},
            tuple(
                Segment(f"s{k}_{n:05d}_00000", "val" if n % 5 == 0 else "train", n, 1) for n in range(each)
            ),
        )
        for k in range(scenes)
    ]


def keys(jobs) -> list[str]:
    return [p.segment.key for job in jobs for p in job.pieces]


@pytest.fixture
def job(tmp_path) -> PackJob:
    """Seven samples of one scene to go into one shard."""
    pixels, mask = np.zeros((2, 16, 16), np.int16), np.zeros((16, 16), np.uint8)
    writer = SpoolWriter(tmp_path / "work", "s")
    for n in range(7):
        one = Sample(f"s_{n:05d}_00000", pixels + n, mask, np.zeros((1, 2, 2, 3), np.float32), {"n": n})
        writer.add(one, "train", "lz4")
    made = Spool("s", "d", 10.0, "L2A", "r", "", "", (), {}, tuple(writer.segments))
    writer.finish(made, histograms.empty(2))
    return PackJob(packing.plan([made], 0, 10)["train"][0], tmp_path, tmp_path / "work")


def test_the_plan_holds_every_sample_once_in_equal_shards():
    plan = packing.plan(found(), 0, 7)
    assert set(plan) == {"train", "val"}
    assert [len(j.pieces) for j in plan["train"]] == [7] * 6 + [6]
    assert [j.path for j in plan["val"]] == ["val/shard-000000.tar", "val/shard-000001.tar"]
    held = Counter(keys(itertools.chain(*plan.values())))
    assert held == Counter(s.key for record in found() for s in record.segments)


def test_the_order_is_shuffled_over_all_scenes_and_depends_on_seed_and_keys_only():
    one = keys(packing.plan(found(), 0, 7)["train"])
    assert one == keys(packing.plan(found()[::-1], 0, 11)["train"])
    assert one != keys(packing.plan(found(), 1, 7)["train"])
    assert one != sorted(one)
    assert len({key.split("_")[0] for key in one[:8]}) == 3


def test_samples_of_a_shard_follow_from_the_target_size():
    assert packing.samples_per_shard(250_000, 1) == 4
    assert packing.samples_per_shard(10**9, 1) == 1


def test_a_shard_opens_in_stock_webdataset(job):
    shard = packing.work(job)
    opened = list(webdataset.WebDataset(str(job.output / shard.path), shardshuffle=False))
    assert [s["__key__"] for s in opened] == [p.segment.key for p in job.job.pieces]
    assert set(opened[0]) >= {"pixels.npy.blosc", "mask.npy.blosc", "cells.npy.blosc", "json"}
    assert (shard.samples, shard.size_bytes) == (7, (job.output / shard.path).stat().st_size)
    assert shard.sha256 == manifests.sha256(job.output / shard.path)


def test_p01_a_finished_shard_is_taken_and_an_unfinished_one_made_again(job):
    shard = packing.work(job)
    path = job.output / shard.path
    before = path.stat().st_mtime_ns
    assert packing.work(job) == shard
    assert path.stat().st_mtime_ns == before
    clean = path.read_bytes()
    path.with_name(f".{path.name}.partial").write_bytes(clean[:1000])
    path.unlink()
    assert packing.work(job) == shard
    assert path.read_bytes() == clean
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_shard_of_other_content_is_not_taken_for_this_one(job):
    packing.work(job)
    other = packing.PackJob(
        packing.ShardJob(job.job.path, "other", job.job.pieces[:3]), job.output, job.spool_folder
    )
    assert packing.work(other).samples == 3


def test_a_spool_that_ends_early_is_told(job):
    path = spool.data_path(job.spool_folder, "s")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptDataError, match=r"s\.segments ends before sample s_"):
        packing.work(job)
    assert not (job.output / job.job.path).exists()


def test_shards_of_another_run_are_removed(tmp_path):
    for name in (
        "train/shard-000000.tar",
        "train/shard-000001.tar",
        "train/.shard-000002.tar.partial",
        "val/shard-000000.tar",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train/notes.txt").touch()
    packing.remove_others(tmp_path, ["train/shard-000000.tar"])
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["notes.txt", "shard-000000.tar"]


def test_reading_back_gives_samples_in_order(job):
    path = job.output / packing.work(job).path
    assert [key for key, _ in packing.read_shard(path)] == [p.segment.key for p in job.job.pieces]


def test_p14_a_truncated_shard_is_told(job):
    path = job.output / packing.work(job).path
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CorruptDataError, match="shard-000000"):
        list(packing.read_shard(path))
