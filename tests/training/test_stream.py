"""The batches of a run: the same samples for any ranks, workers and micro-batches, and from any step on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import parse_yaml
from pipeline.errors import ConfigError, CorruptDataError
from training.collation import Slot, collate
from training.data import Batch, BatchConfig, DataConfig, draw_id, draw_turns, look, make_view
from training.reader import ShardReader
from training.sets import Part, open_families
from training.stream import Pass, ShardStream
from training.world import World

Sets = Path | Sequence[object]
ALONE = World()


def parts(sets: Sets, **changes: object) -> list[Part]:
    """Open sets as a training does; `changes` are of the view."""
    config = DataConfig.model_validate({"shards": sets, "image_px": 32})
    views = {"seed": 3, **changes}
    return [
        Part(f, replace(make_view(f.contract, config, 8), **views))  # type: ignore[arg-type]
        for f in open_families(config)
    ]


def stream(sets: Sets, size: int = 8, world: World = ALONE, micro: int | None = None) -> ShardStream:
    return ShardStream(parts(sets), BatchConfig(size=size, micro=micro), world)


@pytest.fixture(name="mixed")
def mixed_sets(mixed: str) -> list[object]:
    """The sets that the word of that name gives."""
    return list(parse_yaml(mixed.partition("=")[2], "the word"))


def told(batch: Batch) -> tuple[object, ...]:
    return batch.step, batch.epoch, batch.sensor, batch.keys, batch.ids.tolist()


def test_an_epoch_visits_each_sample_at_most_once_and_the_next_in_another_order(shards: Path) -> None:
    made = stream(shards)
    assert made.steps_per_epoch == 5
    epochs = [np.concatenate([made.mine(e * 5 + i).sample for i in range(5)]) for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(40))] * 2
    assert (epochs[0] != epochs[1]).any()


def test_sets_of_a_sensor_without_weights_are_as_one_set(
    shards: Path, more_shards: Path, landsat_shards: Path
) -> None:
    made = stream([shards, landsat_shards, more_shards], size=4)
    assert made.steps_per_epoch == (40 + 24) // 4 + 24 // 4
    batches = [made[step] for step in range(made.steps_per_epoch)]
    seen = Counter(key for batch in batches for key in batch.keys)
    assert set(seen.values()) == {1}
    assert Counter(key.split("_")[0] for key in seen) == {"tile": 40, "more": 24, "oli": 24}


@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (2, 4), (2, 1), (4, 2)])
def test_t08_ranks_and_micro_batches_share_out_the_same_step(
    mixed: list[object], ranks: int, micro: int
) -> None:
    whole = stream(mixed)
    shared = [stream(mixed, world=World(rank, ranks), micro=micro) for rank in range(ranks)]
    for step in (0, 5, 17):
        once, batches = whole[step], [s[step] for s in shared]
        # one sensor a step, on every rank
        assert {b.sensor for b in batches} == {once.sensor}
        assert sorted(k for b in batches for k in b.keys) == sorted(once.keys)
        assert len({len(b.keys) for b in batches}) == 1
        pixels = {k: x for b in (once,) for k, x in zip(b.keys, b.image_BCHW, strict=True)}
        assert all(
            torch.equal(pixels[k], x) for b in batches for k, x in zip(b.keys, b.image_BCHW, strict=True)
        )


def test_t18_the_tail_is_left_out_and_too_few_samples_are_refused(make_shards: Callable[..., Path]) -> None:
    few = make_shards("few", train=range(11))
    assert stream(few, size=4).steps_per_epoch == 2
    with pytest.raises(ConfigError, match=r"batch\.size 16 is more than the 11 samples of .*few; lower it"):
        stream(few, size=16)


def test_t18_fewer_shards_than_ranks_and_workers_give_every_rank_as_much(
    make_shards: Callable[..., Path],
) -> None:
    one = make_shards("one", train=range(11))
    ranks = [stream(one, world=World(rank, 4)) for rank in range(4)]
    assert len(ranks[0].parts[0].family.sources[0].readers[0].shards) < 4
    seen = [[b.keys for b in rank.batches(0, 2, workers=2 * (n == 0))] for n, rank in enumerate(ranks)]
    assert [[len(keys) for keys in batches] for batches in seen] == [[2, 2]] * 4
    # each at most once an epoch, which is one step here
    assert [len({k for batches in seen for k in batches[epoch]}) for epoch in range(2)] == [8, 8]


def test_a_batch_that_does_not_divide_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch\.size 8 is no multiple of batch\.micro 3"):
        stream(shards, micro=3)


@pytest.mark.parametrize("augment", [False, True])
def test_samples_decoded_where_they_lie_in_the_batch_are_as_read_one_by_one(
    shards: Path, augment: bool
) -> None:
    (part,) = parts(shards, image_px=48, augment=augment)
    made, (reader,) = ShardStream([part], BatchConfig(size=20), ALONE), part.family.sources[0].readers
    # held, so that the second batch may not lie in the memory of the first
    batches = [made[step] for step in range(2)]
    turns_of = [draw_turns(part.view, batch.ids, batch.epoch) for batch in batches]
    as_stored = sum(turn.as_stored for turns in turns_of for turn in turns)
    assert 0 < as_stored < 12 if augment else as_stored == 40
    for batch, turns in zip(batches, turns_of, strict=True):
        numbers = [int(key.removeprefix("tile_")) for key in batch.keys]
        looked = [look(reader.read(n), part.view, t) for n, t in zip(numbers, turns, strict=True)]
        alone = collate(Slot(), looked, part.view, batch.ids)
        assert torch.equal(batch.image_BCHW, alone.image_BCHW)
        assert (batch.valid_BS == alone.valid_BS).all()
        assert (batch.saliency_BS == alone.saliency_BS).all()


def test_loader_processes_change_nothing(mixed: list[object]) -> None:
    made = stream(mixed)
    assert made.steps_per_epoch == 11
    alone, helped = (list(made.batches(8, 14, workers)) for workers in (0, 2))
    for ours, theirs in zip(alone, helped, strict=True):
        assert told(ours) == told(theirs)
        assert torch.equal(ours.image_BCHW, theirs.image_BCHW)
        assert (ours.saliency_BS == theirs.saliency_BS).all()
    assert [b.epoch for b in alone] == [0, 0, 0, 1, 1, 1]


def test_batches_of_loader_processes_stay_as_they_are_as_long_as_they_are_held(mixed: list[object]) -> None:
    made = stream(mixed)
    # more are held than the processes share memory for, and half of them are let go in between
    held = {batch.step: batch for batch in made.batches(0, 20, 1) if batch.step < 14}
    held |= {batch.step: batch for batch in made.batches(20, 60, 2) if batch.step % 2}
    for step, batch in held.items():
        assert torch.equal(batch.image_BCHW, made[step].image_BCHW)
    assert len(held) == 34


def test_loader_processes_that_are_kept_up_with_use_the_same_memory_again(shards: Path) -> None:
    places = {batch.image_BCHW.data_ptr() for batch in stream(shards).batches(0, 60, 1)}
    # a copy of its own for each would lie anywhere
    assert len(places) <= 4


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        (0, r"shard .*few/train/shard-000000\.tar ends before tile_\d+ does.*again\."),
        # a process that has not read of it yet looks at all of it first
        (1, r".*few/train/shard-000000\.tar is no complete tar file.*again\."),
    ],
)
def test_t16_a_shard_that_shrinks_while_in_use_is_named_also_by_loader_processes(
    make_shards: Callable[..., Path], workers: int, says: str
) -> None:
    folder = make_shards("few", train=range(12))
    made = stream(folder, size=4)
    assert [len(b.keys) for b in made.batches(0, 1, workers)] == [4]
    (shard,) = (folder / "train").glob("*.tar")
    os.truncate(shard, 9000)
    with pytest.raises(CorruptDataError, match=f"^{says}$"):
        list(made.batches(0, 3, workers))


def test_a_mix_goes_on_in_the_middle_of_an_epoch_as_if_never_stopped(mixed: list[object]) -> None:
    whole = [told(b) for b in stream(mixed).batches(0, 30, 0)]
    resumed = [told(b) for b in stream(mixed).batches(16, 30, 0)]
    assert resumed == whole[16:]


def test_weights_are_exact_in_every_epoch_and_step(mixed: list[object]) -> None:
    made = stream(mixed)
    for epoch in range(3):
        batches = [made[epoch * 11 + i] for i in range(11)]
        sensors = Counter(b.sensor for b in batches)
        assert sensors == {"sentinel2": 6, "landsat_oli": 5}  # 5.5 each, rounded
        for batch in batches:
            scenes = Counter(k.split("_")[0] for k in batch.keys)
            assert scenes == ({"tile": 6, "more": 2} if batch.sensor == "sentinel2" else {"oli": 8})


def test_a_sample_that_comes_again_in_an_epoch_looks_different(shards: Path, more_shards: Path) -> None:
    made = stream([{"path": more_shards, "weight": 7}, {"path": shards, "weight": 1}])
    batches = [made[step] for step in range(made.steps_per_epoch)]
    again = Counter(k for b in batches for k in b.keys if k.startswith("more"))
    assert set(again.values()) == {2, 3}
    drawn = [(k, int(i)) for b in batches for k, i in zip(b.keys, b.ids, strict=True)]
    # augmentation and mask are drawn by the id
    assert len(set(drawn)) == len(drawn)
    first = {k for k, i in drawn if i == draw_id(k)}
    assert first == {k for k, _ in drawn}


def test_the_plan_tells_what_an_epoch_is_made_of(mixed: list[object], shards: Path) -> None:
    assert list(stream(shards).told()) == [f"40 samples of {shards}, 6 bands, 32 px"]
    sentinel, landsat = stream(mixed).told()
    assert f"{shards} (75.0%)" in sentinel
    assert "64 samples of" in sentinel
    assert sentinel.endswith("54.5% of the steps")
    assert landsat.endswith("45.5% of the steps")


def test_the_last_step_of_each_sensor_is_found(mixed: list[object]) -> None:
    made = stream(mixed)
    for sensor in ("sentinel2", "landsat_oli"):
        last = made.last(sensor, 25)
        assert made[last].sensor == sensor
        assert all(made[s].sensor != sensor for s in range(last + 1, 25))
    first = made.last("landsat_oli", 0)
    assert made[first].sensor == "landsat_oli"


def test_half_nodata_places_are_invalid(shards: Path) -> None:
    family = parts(shards, image_px=48, augment=False)
    batch = ShardStream(family, BatchConfig(size=40), World())[0]
    corner = dict(zip(batch.keys, batch.valid_BS[:, 0], strict=True))
    assert sorted(k for k, valid in corner.items() if not valid) == [f"tile_{n:05d}" for n in range(0, 40, 7)]
    assert batch.valid_BS[:, -1].all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_pass_counts_every_sample_once_in_equally_many_batches(shards: Path, ranks: int) -> None:
    (part,) = parts(shards, augment=False)
    passes = [Pass(ShardReader(shards, "train"), part.view, 6, World(rank, ranks)) for rank in range(ranks)]
    batches = [list(p.batches(0)) for p in passes]
    assert len({len(b) for b in batches}) == 1
    labelled = [
        k for b in batches for batch in b for k, x in zip(batch.keys, batch.labels_B, strict=True) if x >= 0
    ]
    assert sorted(labelled) == [f"tile_{n:05d}" for n in range(40)]
