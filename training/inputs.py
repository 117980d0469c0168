"""How the images of each sensor enter a model: cut into cubes, normalised. All of it follows from the data record
that every checkpoint carries.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.contract import normalisation
from training.architecture import ModelConfig
from training.checkpoint import DataRecord
from training.tokens import Layout, Normaliser, Rescale


@dataclass(frozen=True)
class SensorInput:
    """How the images of one sensor enter a model."""

    record: DataRecord
    layout: Layout
    normaliser: Normaliser
    to_unit: Rescale
    """From the input's scale to that of `minmax`, which pictures are drawn on."""

    @classmethod
    def of(cls, record: DataRecord, model: ModelConfig) -> SensorInput:
        """Fit a model's cubes to the bands of a record; raises `ConfigError` where they do not fit."""
        contract = record.contract
        bands = [contract.bands[i] for i in contract.band_positions(record.bands)]
        recorded = normalisation(record.normalise, record.statistics)
        return cls(
            record,
            model.layout(contract.sensor, bands, record.image_px),
            Normaliser(recorded),
            Rescale(recorded, normalisation("minmax", record.statistics)),
        )
