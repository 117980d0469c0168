"""The order of samples, their augmentation, and batches: pure functions of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ContractError, UnknownNameError
from pipeline.indices import INDICES
from pipeline.saliency import cell_statistics
from pipeline.sample import Sample
from training.data import BatchConfig, DataConfig, Pass, ShardStream, View, collate, look, make_view
from training.reader import ShardReader
from training.tasks.classification import Classification
from training.world import World

VIEW = View(bands=(0, 1, 2, 3, 4, 5), image_px=32, cell_px=8, patch_px=8, augment=True, seed=3)


@pytest.fixture(scope="module")
def reader(shards: Path) -> ShardReader:
    return ShardReader(shards, "train")


def test_an_epoch_visits_each_sample_at_most_once_and_the_next_in_another_order(reader: ShardReader) -> None:
    stream = ShardStream(reader, VIEW, BatchConfig(size=8), World())
    assert stream.steps_per_epoch == 5
    epochs = [np.concatenate([stream.positions(e * 5 + i) for i in range(5)]) for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(40))] * 2
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (2, 4), (2, 1), (4, 2)])
def test_t08_ranks_and_micro_batches_share_out_the_same_step(
    reader: ShardReader, ranks: int, micro: int
) -> None:
    whole = ShardStream(reader, VIEW, BatchConfig(size=8), World()).positions(2)
    worlds = [World(rank, ranks) for rank in range(ranks)]
    parts = [
        ShardStream(reader, VIEW, BatchConfig(size=8, micro=micro), world).positions(2) for world in worlds
    ]
    assert sorted(np.concatenate(parts)) == sorted(whole)
    assert len({len(part) for part in parts}) == 1


def test_t18_the_tail_is_left_out_and_too_few_samples_are_refused(make_shards: Callable[..., Path]) -> None:
    few = ShardReader(make_shards("few", train=range(11)), "train")
    assert ShardStream(few, VIEW, BatchConfig(size=4), World()).steps_per_epoch == 2
    with pytest.raises(ConfigError, match=r"batch\.size 16 is more than the 11 samples"):
        ShardStream(few, VIEW, BatchConfig(size=16), World())


def test_a_batch_that_does_not_divide_is_refused(reader: ShardReader) -> None:
    with pytest.raises(ConfigError, match=r"batch\.size 8 is no multiple of batch\.micro 3"):
        ShardStream(reader, VIEW, BatchConfig(size=8, micro=3), World())


def test_loader_processes_change_nothing(reader: ShardReader) -> None:
    stream = ShardStream(reader, VIEW, BatchConfig(size=8), World())
    alone, helped = (list(stream.batches(3, 9, workers)) for workers in (0, 2))
    for ours, theirs in zip(alone, helped, strict=True):
        assert (ours.step, ours.epoch, ours.keys) == (theirs.step, theirs.epoch, theirs.keys)
        assert torch.equal(ours.image_BCHW, theirs.image_BCHW)
        assert (ours.saliency_BS == theirs.saliency_BS).all()
    assert [b.epoch for b in alone] == [0, 0, 1, 1, 1, 1]


def cells_of(sample: Sample) -> np.ndarray:
    """Compute a sample's cell statistics again from its own pixels."""
    blue, green, red, nir, swir1, _ = sample.pixels.astype(np.float32) * 1e-4
    values = [INDICES["NDVI"](nir, red), INDICES["NDWI"](green, nir), INDICES["NDBI"](swir1, nir)]
    assert blue.shape == (32, 32)
    return cell_statistics(np.stack(values), sample.mask == 0, 8)


def test_augmentation_commutes_with_the_cell_statistics(reader: ShardReader) -> None:
    seen = set()
    for epoch in range(12):
        looked = look(reader.read(7), VIEW, epoch)
        assert np.allclose(looked.cells, cells_of(looked), atol=1e-6)
        seen.add(looked.pixels.tobytes())
    assert len(seen) > 8
    assert look(reader.read(7), VIEW, 4).pixels.tobytes() == look(reader.read(7), VIEW, 4).pixels.tobytes()


def test_without_augmentation_the_centre_is_taken(reader: ShardReader) -> None:
    sample = reader.read(3)
    looked = look(sample, replace(VIEW, augment=False), epoch=5)
    assert (looked.pixels == sample.pixels[:, 8:40, 8:40]).all()


def test_bands_are_chosen_by_name(reader: ShardReader) -> None:
    config = DataConfig(shards=Path("x"), bands=("B08", "B02"))
    view = make_view(reader.manifest.contract, config, patch_px=8)
    assert (
        look(reader.read(0), replace(view, augment=False), 0).pixels == reader.read(0).pixels[[3, 0]]
    ).all()
    with pytest.raises(UnknownNameError, match="Did you mean `B08`"):
        make_view(reader.manifest.contract, DataConfig(shards=Path("x"), bands=("B80",)), patch_px=8)


@pytest.mark.parametrize(
    ("image_px", "patch_px", "key"), [(56, 8, "image_px 56"), (44, 8, "image_px 44"), (48, 12, "patch_px 12")]
)
def test_sizes_off_the_cell_grid_are_refused(
    reader: ShardReader, image_px: int, patch_px: int, key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        make_view(reader.manifest.contract, DataConfig(shards=Path("x"), image_px=image_px), patch_px)


def test_half_nodata_places_are_invalid(reader: ShardReader) -> None:
    stream = ShardStream(reader, replace(VIEW, image_px=48, augment=False), BatchConfig(size=40), World())
    batch = stream[0]
    corner = dict(zip(batch.keys, batch.valid_BS[:, 0], strict=True))
    assert sorted(k for k, valid in corner.items() if not valid) == [f"tile_{n:05d}" for n in range(0, 40, 7)]
    assert batch.valid_BS[:, -1].all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_pass_counts_every_sample_once_in_equally_many_batches(reader: ShardReader, ranks: int) -> None:
    passes = [Pass(reader, replace(VIEW, augment=False), 6, World(rank, ranks)) for rank in range(ranks)]
    batches = [list(p.batches(0)) for p in passes]
    assert len({len(b) for b in batches}) == 1
    labelled = [
        k for b in batches for batch in b for k, x in zip(batch.keys, batch.labels_B, strict=True) if x >= 0
    ]
    assert sorted(labelled) == [f"tile_{n:05d}" for n in range(40)]


def with_truth(sample: Sample) -> Sample:
    """Give a sample a class for every pixel that its pixels tell, and a later date."""
    truth = np.where(sample.mask, 255, sample.pixels[0] % 3).astype(np.uint8)
    return replace(sample, label=truth, after=sample.pixels + 1)


def test_a_class_of_every_pixel_and_the_later_date_turn_with_the_pixels(reader: ShardReader) -> None:
    view = replace(VIEW, bands=(2, 0), label_kind="mask", classes=3)
    for epoch in range(8):
        looked = look(with_truth(reader.read(7)), view, epoch)
        batch = collate(0, epoch, [looked, replace(looked, label=None)], view)
        truth = np.where(looked.mask, -1, looked.pixels[1] % 3)
        assert (batch.labels_B[0].numpy() == truth).all()
        assert set(batch.labels_B[1].unique().tolist()) == {-1}
        assert batch.after_BCHW is not None
        assert torch.equal(batch.after_BCHW, batch.image_BCHW + 1)


def test_several_classes_become_a_vector_and_none_is_marked(reader: ShardReader) -> None:
    view = replace(VIEW, label_kind="classes", classes=4)
    looked = look(reader.read(0), view, 0)
    batch = collate(0, 0, [replace(looked, label=label) for label in ((1, 3), (), None)], view)
    assert batch.labels_B.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [-1] * 4]
    assert batch.after_BCHW is None


def test_the_view_knows_what_a_label_is(reader: ShardReader) -> None:
    contract = reader.manifest.contract.model_copy(update={"label_kind": "classes"})
    view = make_view(contract, DataConfig(shards=Path("x")), patch_px=8)
    assert (view.label_kind, view.classes) == ("classes", 3)
    with pytest.raises(ContractError, match=r"kind `classes`, not one class a tile.*labels\.kind=class"):
        Classification(contract)
