"""Exports of encoders that nobody trained: any architecture, in no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.contract import BandStatistics, NormalisationKind
from tests.training.shard_sets import Kind, contract_of
from training.architecture import ModelConfig
from training.checkpoint import DataRecord, RunData, State
from training.export import configuration
from training.inputs import SensorInput
from training.model import Encoder
from training.model_card import Licences
from training.spectral_backbone.load import CONFIG, WEIGHTS

S2 = Kind(bands=("B02", "B03", "B04", "B08", "B11", "B12"))
OLI = Kind("landsat_oli", ("B2", "B3", "B4", "B5", "B6", "B7"), "L2SP", "oli")


def record(kind: Kind, normalise: NormalisationKind = "minmax", image_px: int = 48) -> DataRecord:
    """Return what weights expect of images, with a range of its own for each band."""
    statistics = tuple(
        BandStatistics(n=9, mean=0.1 + n / 50, std=0.05 + n / 90, low=0.01 * n, high=0.3 + n / 20)
        for n in range(len(kind.bands))
    )
    return DataRecord(
        contract=contract_of(kind),
        statistics=statistics,
        bands=kind.bands,
        image_px=image_px,
        normalise=normalise,
    )


def made(
    folder: Path, records: Sequence[DataRecord], **config: object
) -> tuple[Encoder, dict[str, SensorInput]]:
    """Write an export of an encoder with drawn weights; returns the encoder and how images enter it."""
    settings = {"size": "tiny", **config}
    model = ModelConfig.model_validate(settings)
    by_sensor = {one.contract.sensor: one for one in records}
    images = {name: SensorInput.of(one, model) for name, one in by_sensor.items()}
    torch.manual_seed(0)
    encoder = Encoder(model, {name: one.layout for name, one in images.items()}).eval()
    for parameter in encoder.parameters():
        # biases and norms begin at 0 and 1: what is left out or swapped must show
        parameter.data += 0.05 * torch.randn_like(parameter)
    data = RunData(sensors=by_sensor, digest="0" * 16)
    state = State(kind="pretrain", step=1, ranks=1, config={"model": settings}, data=data)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in encoder.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(configuration(state, "", Licences((), ()))))
    return encoder, images


def images_of(kind: Kind, px: int = 48, count: int = 2) -> torch.Tensor:
    """Return stored images with a corner that was not measured."""
    drawn = torch.randint(
        0, 5000, (count, len(kind.bands), px, px), generator=torch.Generator().manual_seed(1)
    )
    drawn[:, :, :5, :7] = -32768
    return drawn.to(torch.int16)
