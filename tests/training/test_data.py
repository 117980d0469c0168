"""Augmentation and batches: pure functions of (seed, sample id, epoch)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ContractError, UnknownNameError
from pipeline.indices import INDICES
from pipeline.saliency import cell_statistics
from pipeline.sample import Sample
from training.collation import Slot, collate
from training.data import DataConfig, Turn, View, draw_id, draw_ids, draw_turns, look, make_view
from training.reader import ShardReader
from training.tasks.classification import Classification

VIEW = View(bands=(0, 1, 2, 3, 4, 5), image_px=32, cell_px=8, patch_px=8, augment=True, seed=3)


@pytest.fixture(scope="module")
def reader(shards: Path) -> ShardReader:
    return ShardReader(shards, "train")


def turned(sample: Sample, view: View, epoch: int, visit: int = 0) -> Sample:
    """Look at a sample as a training does."""
    return look(sample, view, draw_turns(view, draw_ids([sample.key], [visit]), epoch)[0])


def cells_of(sample: Sample) -> np.ndarray:
    """Compute a sample's cell statistics again from its own pixels."""
    blue, green, red, nir, swir1, _ = sample.pixels.astype(np.float32) * 1e-4
    values = [INDICES["NDVI"](nir, red), INDICES["NDWI"](green, nir), INDICES["NDBI"](swir1, nir)]
    assert blue.shape == (32, 32)
    return cell_statistics(np.stack(values), sample.mask == 0, 8)


def test_augmentation_commutes_with_the_cell_statistics(reader: ShardReader) -> None:
    seen = set()
    for epoch in range(12):
        looked = turned(reader.read(7), VIEW, epoch)
        assert np.allclose(looked.cells, cells_of(looked), atol=1e-6)
        seen.add(looked.pixels.tobytes())
    assert len(seen) > 8
    assert (
        turned(reader.read(7), VIEW, 4).pixels.tobytes() == turned(reader.read(7), VIEW, 4).pixels.tobytes()
    )


def test_a_turn_is_numpys_flip_and_quarter_turns(reader: ShardReader) -> None:
    sample, view = reader.read(3), replace(VIEW, image_px=48)
    for quarters, flip in itertools.product(range(4), (False, True)):
        flipped = np.flip(sample.pixels, 2) if flip else sample.pixels
        looked = look(sample, view, Turn(None, quarters, flip))
        assert (looked.pixels == np.rot90(flipped, quarters, (1, 2))).all()


def test_every_visit_within_an_epoch_is_drawn_anew(reader: ShardReader) -> None:
    views = {turned(reader.read(7), VIEW, 4, visit).pixels.tobytes() for visit in range(12)}
    assert len(views) > 8
    ids = draw_ids(["tile_00007"] * 3, [0, 1, 2])
    assert ids.tolist() == [draw_id("tile_00007", visit) for visit in (0, 1, 2)]
    assert len(set(ids.tolist())) == 3
    # drawn for a batch at once or one by one
    together = draw_turns(VIEW, ids, 4)
    assert together == [draw_turns(VIEW, ids[i : i + 1], 4)[0] for i in range(3)]


def test_without_augmentation_the_centre_is_taken(reader: ShardReader) -> None:
    sample = reader.read(3)
    looked = turned(sample, replace(VIEW, augment=False), epoch=5)
    assert (looked.pixels == sample.pixels[:, 8:40, 8:40]).all()


def test_bands_are_chosen_by_name(reader: ShardReader) -> None:
    config = DataConfig(shards="x", bands=("B08", "B02"))
    view = make_view(reader.manifest.contract, config, patch_px=8)
    assert (look(reader.read(0), view, Turn()).pixels == reader.read(0).pixels[[3, 0]]).all()
    with pytest.raises(UnknownNameError, match="Did you mean `B08`"):
        make_view(reader.manifest.contract, DataConfig(shards="x", bands=("B80",)), patch_px=8)


@pytest.mark.parametrize(
    ("image_px", "patch_px", "key"), [(56, 8, "image_px 56"), (44, 8, "image_px 44"), (48, 12, "patch_px 12")]
)
def test_sizes_off_the_cell_grid_are_refused(
    reader: ShardReader, image_px: int, patch_px: int, key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        make_view(reader.manifest.contract, DataConfig(shards="x", image_px=image_px), patch_px)


def with_truth(sample: Sample) -> Sample:
    """Give a sample a class for every pixel that its pixels tell, and a later date."""
    truth = np.where(sample.mask, 255, sample.pixels[0] % 3).astype(np.uint8)
    return replace(sample, label=truth, after=sample.pixels + 1)


def test_a_class_of_every_pixel_and_the_later_date_turn_with_the_pixels(reader: ShardReader) -> None:
    view = replace(VIEW, bands=(2, 0), label_kind="mask", classes=3)
    for epoch in range(8):
        looked = turned(with_truth(reader.read(7)), view, epoch)
        batch = collate(
            Slot(0, epoch), [looked, replace(looked, label=None)], view, draw_ids([looked.key] * 2)
        )
        truth = np.where(looked.mask, -1, looked.pixels[1] % 3)
        assert (batch.labels_B[0].numpy() == truth).all()
        assert set(batch.labels_B[1].unique().tolist()) == {-1}
        assert batch.after_BCHW is not None
        assert torch.equal(batch.after_BCHW, batch.image_BCHW + 1)


def test_several_classes_become_a_vector_and_none_is_marked(reader: ShardReader) -> None:
    view = replace(VIEW, label_kind="classes", classes=4)
    looked = turned(reader.read(0), view, 0)
    batch = collate(
        Slot(), [replace(looked, label=label) for label in ((1, 3), (), None)], view, draw_ids(["k"] * 3)
    )
    assert batch.labels_B.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [-1] * 4]
    assert batch.after_BCHW is None


def test_the_view_knows_what_a_label_is(reader: ShardReader) -> None:
    contract = reader.manifest.contract.model_copy(update={"label_kind": "classes"})
    view = make_view(contract, DataConfig(shards="x"), patch_px=8)
    assert (view.label_kind, view.classes) == ("classes", 3)
    with pytest.raises(ContractError, match=r"kind `classes`, not one class a tile.*labels\.kind=class"):
        Classification(contract)
