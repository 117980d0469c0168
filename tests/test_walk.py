"""One datum on its way from a product to the loss, with every shape on the way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import manifest as manifests
from pipeline.contract import normalisation
from pipeline.sample import NODATA
from pipeline.sensors import SENSORS
from preprocessing import radiometry
from preprocessing.archive import StoredScene
from preprocessing.readers import Request, discover
from training import masking
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.data import BatchConfig, DataConfig, make_view
from training.model import SpatialSpectralMAE
from training.reader import ShardReader
from training.sets import Part, open_families
from training.stream import ShardStream
from training.tokens import Layout, Normaliser, gather, to_cubes
from training.world import World

ROOT = Path(__file__).resolve().parents[1]
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scene of 384 px, sharded by the entries."""
    folder = tmp_path_factory.mktemp("walk")
    words = [f"scenes={folder}/archive", f"output={folder}/shards", "split.val_share=0"]
    for command in (
        ["preprocessing/simulate.py", f"{folder}/archive", "--size-px", "384"],
        ["preprocessing/shard.py", "configs/shard/demo_sentinel2.yaml", *words],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_walk_of_one_datum(walk: Path) -> None:
    # Scene: lazy bands at native resolution, rules from the product's metadata
    request = Request(SENSORS["sentinel2"], BANDS)
    ((reader, product),) = discover(walk / "archive", request)
    scene = reader.open(product, request)
    assert [b.name for b in scene.bands] == list(BANDS)
    assert (scene.level, scene.bands[1].scale, scene.bands[1].offset) == ("L2A", 1e-4, -0.1)

    # reflectance x 10 000 as int16 on one grid
    layout = radiometry.lay_out(scene, None, None)
    coarse = next(radiometry.band_images(layout, "bilinear"))
    assert (layout.bands[0].shape_px, layout.target.shape_px) == ((64, 64), (384, 384))
    assert (coarse.pixels.dtype, coarse.pixels.shape) == (np.int16, (384, 384))

    # the archive, with cell statistics beside the pixels
    stored = StoredScene(walk / "shards/archive.zarr" / scene.id)
    assert stored.read("reflectance").shape == (12, 384, 384)
    assert (stored.read("reflectance")[0] == coarse.pixels).all()
    assert stored.read("cells").shape == (3, 48, 48, 3)
    assert stored.read("mask").shape == (384, 384)

    # shards and manifest
    manifest = manifests.read(walk / "shards")
    assert manifest.contract.band_names == BANDS
    assert (manifest.contract.tile_px, manifest.contract.cell_px) == (96, 8)
    shards = ShardReader(walk / "shards", "train")
    sample = shards.read(0)
    assert (sample.pixels.dtype, sample.pixels.shape) == (np.int16, (12, 96, 96))
    assert (sample.mask.dtype, sample.mask.shape) == (np.uint8, (96, 96))
    assert (sample.cells.dtype, sample.cells.shape) == (np.float32, (3, 12, 12, 3))
    row, column = (int(part) for part in sample.key.rsplit("_", 2)[1:])
    assert (stored.read("reflectance")[:, row : row + 96, column : column + 96] == sample.pixels).all()

    # Batch: int16, with validity and saliency of every place
    config = DataConfig(shards=walk / "shards", image_px=64)
    (family,) = open_families(config)
    view = replace(make_view(manifest.contract, config, patch_px=8), seed=1)
    batch = ShardStream([Part(family, view)], BatchConfig(size=4), World())[0]
    assert (batch.image_BCHW.dtype, batch.image_BCHW.shape) == (torch.int16, (4, 12, 64, 64))
    assert batch.valid_BS.shape == batch.saliency_BS.shape == (4, 64)
    assert 0 <= batch.saliency_BS.min() < batch.saliency_BS.max() <= 1

    # exactly n_shown of the cubes are shown
    tokens = Layout.even(12, 64)
    keys = masking.Keys(1, batch.ids, batch.epoch)
    draw = masking.Draw(
        keys, batch.saliency_BS, tokens.groups, 0.25, masking.MaskingConfig(strategy="saliency")
    )
    choice = masking.choose(draw, batch.valid_BS)
    assert (choice.shown_BK.shape, choice.hidden_BM.shape) == ((4, 26), (4, 230))

    # normalised on the device, cubes, encoder, decoder, loss over the hidden and valid
    image = Normaliser(normalisation("minmax", manifest.statistics))(batch.image_BCHW)
    assert (image.dtype, float(image.min()) >= 0, float(image.max()) <= 1) == (torch.float32, True, True)
    assert (image[batch.image_BCHW == NODATA] == 0).all()
    cubes = to_cubes(image, tokens)
    assert cubes.shape == (4, 256, 192)
    model = SpatialSpectralMAE(ModelConfig(size="tiny"), {"sentinel2": tokens})
    chosen = Chosen.of(choice, batch.valid_BS, slice(None), tokens.tokens)
    assert model.encoder(cubes, chosen, "sentinel2").shape == (4, 26, 96)
    output = model(image, chosen)
    assert output.predicted_BMP.shape == (4, 230, 192)
    error = (output.predicted_BMP - gather(cubes, chosen.hidden_BM)).square().mean(-1)
    assert torch.allclose(output.loss_sums, (error * chosen.counted(tokens)).sum())
    assert torch.isfinite(output.loss_sums).all()
