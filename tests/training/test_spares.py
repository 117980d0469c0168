"""Samples in place of damaged ones: which, the same however a run is cut up, and never among what is scored."""

from __future__ import annotations

import io
import itertools
import logging
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import load
from pipeline.errors import ConfigError, CorruptDataError, TrainingError, UnsafeDataError
from pipeline.sample import encode
from tests.training.shard_sets import make_sample
from training import reader as readers
from training import status, storage
from training.data import Batch, BatchConfig, DataConfig, draw_id, make_view
from training.downstream import FinetuneConfig
from training.fraction import draw
from training.journal import Journal
from training.order import Order
from training.pretrain import PretrainConfig
from training.reader import Care, ShardReader
from training.report import StepResult
from training.runs import RunConfig
from training.sets import Part, open_families, open_split
from training.spares import ATTEMPTS, Spares
from training.stream import MOST_NAMED, REPLACED, Pass, ShardStream
from training.watch import NOTED, GuardsConfig, Replaced, Watched
from training.world import World

Damage = Callable[[Path], None]
ALONE = World()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(bytes(data))


def flip_header(path: Path) -> None:
    """Flip a bit in the name of a member in the middle: tar readers take that for the end."""
    with tarfile.open(path) as tar:
        flip(path, tar.getmember("tile_00005.mask.npy.blosc").offset + 3)


def flip_payload(path: Path) -> None:
    """Flip a bit of what says how long an array is."""
    with tarfile.open(path) as tar:
        flip(path, tar.getmember("tile_00005.pixels.npy.blosc").offset_data + 5)


def rewrite(path: Path, key: str, members: Mapping[str, bytes]) -> None:
    """Write other members of one sample into a shard, filled up to the size that it had."""
    size = path.stat().st_size
    with tarfile.open(path) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    kept = {name: data for name, data in found.items() if not name.startswith(f"{key}.")}
    new = {f"{key}.{suffix}": data for suffix, data in members.items()}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted({**kept, **new}.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with path.open("ab") as stream:
        stream.write(bytes(max(size - path.stat().st_size, 0)))
        stream.truncate(size)


def lacks_a_member(path: Path) -> None:
    whole = encode(make_sample(5))
    rewrite(path, "tile_00005", {s: data for s, data in whole.items() if s != "mask.npy.blosc"})


def is_smaller(path: Path) -> None:
    sample = make_sample(5)
    less = replace(
        sample,
        pixels=sample.pixels[:, :40, :40],
        mask=sample.mask[:40, :40],
        cells=sample.cells[:, :5, :5],
    )
    rewrite(path, "tile_00005", encode(less))


def has_nan_statistics(path: Path) -> None:
    sample = make_sample(5)
    rewrite(path, "tile_00005", encode(replace(sample, cells=np.full_like(sample.cells, np.nan))))


ONE = {
    "payload": flip_payload,
    "member": lacks_a_member,
    "shape": is_smaller,
    "nan": has_nan_statistics,
}
"""What costs one sample."""
ALL = {"missing": Path.unlink, "cut": cut, "empty": empty, "header": flip_header}
"""What costs a shard."""


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shard set that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def first(folder: Path) -> Path:
    return folder / "train/shard-000000.tar"


def opened(folder: Path, **data: object) -> Part:
    """Open a set as a training does that goes on without what is damaged."""
    config = DataConfig.model_validate({"shards": folder, "image_px": 32, "damaged": "replace", **data})
    (family,) = open_families(config)
    return Part(family, replace(make_view(family.contract, config, 8), seed=3))


def stream(part: Part, world: World = ALONE) -> ShardStream:
    return ShardStream([part], BatchConfig(size=8), world, "replace")


def told(batch: Batch) -> tuple[object, ...]:
    return batch.step, batch.keys, batch.ids.tolist(), batch.replaced


@pytest.mark.parametrize("what", [*ONE, *ALL])
def test_t16_t17_what_is_damaged_is_replaced_alike_however_a_run_is_cut_up(copy: Path, what: str) -> None:
    (ONE | ALL)[what](first(copy))
    lost = {f"tile_{n:05d}" for n in ((5,) if what in ONE else range(16))}
    whole = list(stream(opened(copy)).batches(0, 15, 0))
    keys = [key for batch in whole for key in batch.keys]
    assert not lost & set(keys)
    assert sum(len(b.replaced) for b in whole) == 3 * len(lost)  # in each of three epochs
    assert all("train/shard-000000.tar" in text for batch in whole for text in batch.replaced)
    assert what not in ONE or all("tile_00005" in text for batch in whole for text in batch.replaced)
    # by other processes, by other ranks, and from the middle
    for ours, theirs in zip(whole[7:], stream(opened(copy)).batches(7, 15, 2), strict=True):
        assert told(ours) == told(theirs)
        assert torch.equal(ours.image_BCHW, theirs.image_BCHW)
    ranks = [stream(opened(copy), World(rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [made[step] for made in ranks]
        assert [key for part in parts for key in part.keys] == batch.keys
        assert torch.equal(torch.cat([part.image_BCHW for part in parts]), batch.image_BCHW)
        assert sum(made.observed(part)[REPLACED] for made, part in zip(ranks, parts, strict=True)) / 2 == (
            len(batch.replaced) / 8
        )


def test_t16_all_else_stays_where_it_was(shards: Path, copy: Path) -> None:
    flip_payload(first(copy))
    before, after = stream(opened(shards)), stream(opened(copy))
    for step in range(5):
        ours, theirs = before[step], after[step]
        same = [n for n, key in enumerate(ours.keys) if key != "tile_00005"]
        assert ours.replaced == ()
        assert len(same) == 8 - len(theirs.replaced)
        assert [ours.keys[n] for n in same] == [theirs.keys[n] for n in same]
        assert torch.equal(ours.image_BCHW[same], theirs.image_BCHW[same])
        assert (ours.valid_BS[same] == theirs.valid_BS[same]).all()
        # what stands in looks another way than where it is drawn itself
        for n in set(range(8)) - set(same):
            assert theirs.ids[n] != draw_id(theirs.keys[n])


def test_t16_flips_that_still_decode_need_checksums(copy: Path) -> None:
    with tarfile.open(first(copy)) as tar:
        flip(first(copy), tar.getmember("tile_00005.json").offset_data + 3)
    assert not any(b.replaced for b in stream(opened(copy)).batches(0, 5, 0))
    assert sum(len(b.replaced) for b in stream(opened(copy, verify="sha256")).batches(0, 5, 0)) == 16


def test_t16_what_was_found_in_a_whole_copy_hides_no_damage(shards: Path, copy: Path, tmp_path: Path) -> None:
    cache = {"folder": tmp_path / "cache"}
    assert ShardReader(shards, "train", storage=storage.Folder(shards, storage.Cache(**cache))).key(5)
    flip_header(first(copy))
    assert opened(copy, cache=cache).family.sources[0].lost == 0  # not before it is read
    with pytest.raises(CorruptDataError, match=r"copy/train/shard-000000\.tar holds 6 samples, not 16"):
        opened(copy, cache=cache).family.sources[0].read(0)
    # and once it is repaired nothing of the damage is left
    shutil.copy(first(shards), first(copy))
    assert opened(copy, cache=cache).family.sources[0].read(5).key == "tile_00005"


def test_t16_stopping_is_the_default(copy: Path) -> None:
    flip_payload(first(copy))
    made = ShardStream([opened(copy, damaged="stop")], BatchConfig(size=8), ALONE)
    with pytest.raises(CorruptDataError, match=r"shard-000000\.tar: tile_00005\.pixels\.npy\.blosc"):
        list(made.batches(0, 5, 0))
    assert made.observed(made[0]) == {}
    first(copy).unlink()
    with pytest.raises(CorruptDataError, match=r"shard-000000\.tar is missing"):
        opened(copy, damaged="stop")


def test_t16_stand_ins_are_of_one_other_shard_and_within_the_source(shards: Path, more_shards: Path) -> None:
    parts = [opened(shards), opened(more_shards)]
    spares, again, other = Spares(parts, 3), Spares(parts, 3), Spares(parts, 4)
    found = [list(spares.numbers(0, 0, n)) for n in range(16)]
    assert found == [list(again.numbers(0, 0, n)) for n in range(16)]
    assert found != [list(other.numbers(0, 0, n)) for n in range(16)]
    assert [len(row) for row in found] == [ATTEMPTS] * 16
    assert {n // 16 for n in itertools.chain(*found)} == {0, 1, 2}
    for attempt in range(10):
        # samples of one shard, each from another place of one shard
        assert len({row[attempt] // 16 for row in found}) == 1
    assert len({row[0] for row in found}) > 4
    assert max(itertools.chain(*(spares.numbers(1, 0, n) for n in range(24)))) < 24


def test_t16_a_set_of_which_nothing_is_left_is_an_error(copy: Path) -> None:
    for path in (copy / "train").glob("*.tar"):
        path.unlink()
    made = stream(opened(copy))
    assert made.lost_share == 1
    with pytest.raises(CorruptDataError, match=rf"is missing.*None of {ATTEMPTS} samples of .*copy"):
        made[0]


def test_t19_what_may_do_harm_is_not_got_round(copy: Path) -> None:
    rewrite(first(copy), "tile_00005", {"pickle": b"cos\nsystem\n"})
    with pytest.raises(UnsafeDataError, match=r"tile_00005\.pickle.*do not use this file"):
        list(stream(opened(copy)).batches(0, 5, 0))


def test_t16_nothing_that_is_scored_is_replaced(copy: Path) -> None:
    (val,) = (copy / "val").glob("*.tar")
    config = DataConfig.model_validate({"shards": copy, "damaged": "replace"})
    flip_payload(first(copy))
    part = opened(copy)
    with pytest.raises(CorruptDataError, match=r"tile_00005\.pixels"):
        list(Pass(part.family.sources[0], part.view, 8, ALONE).batches(0))
    cut(val)
    with pytest.raises(CorruptDataError, match=r"val/shard-000000\.tar has .* bytes"):
        open_split(config, "val")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("mode: ridge", ["data={shards: a, damaged: replace}", "mode=ridge"]),
        ("a probe", ["data.shards=a", "probe.data={shards: a, damaged: replace}"]),
    ],
)
def test_t16_what_reads_each_sample_once_refuses_to_replace(key: str, words: list[str]) -> None:
    model: type[RunConfig] = FinetuneConfig if key.startswith("mode") else PretrainConfig
    with pytest.raises(ConfigError, match=f"{key} reads each sample once"):
        load(model, None, ["name=once", *words])


def test_t16_few_labels_are_drawn_from_what_is_whole(copy: Path) -> None:
    first(copy).unlink()
    family, drawn = draw(opened(copy).family, 0.5, seed=0)
    assert len(drawn.keys) == 12  # half of the 24 that are left
    assert all(int(key[-5:]) >= 16 for key in drawn.keys)
    assert family.sources[0].lost == 0
    assert all(drawn.keys)


def result(share: float) -> StepResult:
    return StepResult(1.0, 1.0, 0.1, True, False, 8.0, {REPLACED: share})


def counting(part: Part, run: Path, limit: float) -> Replaced:
    return Replaced(GuardsConfig(max_replaced=limit), stream(part), run)


def test_t16_replaced_samples_are_counted_over_lives_and_end_the_run_past_a_share(
    shards: Path, tmp_path: Path
) -> None:
    part, journal = opened(shards), Journal(tmp_path, 0)
    counted = counting(part, tmp_path, 0.1)
    # an epoch is 5 steps of 8: 4 are allowed in it, and a tenth later on
    for step, (share, count) in enumerate([(0.25, 2.0), (0.0, 2.0), (0.125, 3.0)], start=1):
        metrics = counted.see(Watched(step, result(share), ()))
        assert metrics == {"replaced_samples": count}
        journal.append(step, metrics)
    journal.close()
    # the last step is done again
    Journal(tmp_path, 2).close()
    resumed = counting(part, tmp_path, 0.1)
    assert resumed.count == 2
    assert resumed.see(Watched(3, result(0.25), ()))["replaced_samples"] == 4
    with pytest.raises(TrainingError, match=r"5 of 32 samples up to step 4 were .*guards\.max_replaced=0\.1"):
        resumed.see(Watched(4, result(0.125), ()))
    assert counting(part, tmp_path, 0.1).see(Watched(20, result(1.0), ()))["replaced_samples"] == 10
    # where nothing may be replaced nothing is told
    stopping = ShardStream([part], BatchConfig(size=8), ALONE)
    assert Replaced(GuardsConfig(), stopping, tmp_path).see(Watched(1, result(0.5), ())) == {}


def test_t16_a_set_that_lacks_more_than_is_allowed_does_not_start(copy: Path, tmp_path: Path) -> None:
    first(copy).unlink()
    with pytest.raises(
        TrainingError, match=r"40\.0% of the samples are missing.*shard-000000\.tar is missing"
    ):
        counting(opened(copy), tmp_path, 0.39)
    assert counting(opened(copy), tmp_path, 0.4).count == 0


def test_t16_each_damage_is_named_once_and_not_without_end(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first(copy).unlink()
    with caplog.at_level(logging.WARNING):
        counted = counting(opened(copy), tmp_path, 1.0)
        for step in range(1, 50):
            damage = (
                f"shard {copy}/train/shard-000000.tar is missing. Copy it back, or make the set again.",
            )
            counted.see(
                Watched(step, result(0.25), (), (*damage, "sample a is bad", f"sample {step // 2} is bad"))
            )
    lines = caplog.text.splitlines()
    assert sum("shard-000000.tar is missing" in line for line in lines) == 1
    assert sum("sample a is bad" in line for line in lines) == 1
    assert sum("is bad" in line for line in lines) == MOST_NAMED - 1
    assert sum("not named" in line for line in lines) == 1
    assert (tmp_path / NOTED).read_text().count("sample a is bad") == 1


def test_the_order_does_not_change_with_damage(shards: Path, copy: Path) -> None:
    first(copy).unlink()
    orders: list[Order] = [stream(opened(folder)).order for folder in (shards, copy)]
    for step in range(10):
        drawn = [order.draws(step) for order in orders]
        assert (drawn[0].sample == drawn[1].sample).all()


def test_a_damaged_shard_is_looked_for_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    find = readers.find_offsets
    monkeypatch.setattr(readers, "find_offsets", lambda s, path: looked.append(path) or find(s, path))
    flip_header(first(copy))
    found = ShardReader(copy, "train", Care(damaged="replace"), storage=storage.Folder(copy, storage.Cache()))
    for number in range(16):
        with pytest.raises(CorruptDataError):
            found.read(number)
    assert list(found.keys())[:16] == [None] * 16
    assert list(found.labels())[15:17] == [None, 16 % 3]
    assert sum("shard-000000" in path for path in looked) == 1


def test_a_status_tells_how_many_were_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: run\n")
    journal = Journal(tmp_path, 0)
    journal.append(1, {"loss": 1.0, "replaced_samples": 0.0})
    assert "replaced" not in dict(status.status(tmp_path))
    journal.append(2, {"loss": 1.0, "replaced_samples": 7.0})
    journal.close()
    assert dict(status.status(tmp_path))["replaced"].startswith("7 samples")
