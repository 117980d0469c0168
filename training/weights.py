"""Pretrained weights for a downstream run: what they decide, what they expect of their input, and their loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import differences
from pipeline.contract import DataContract
from pipeline.errors import ContractError
from training import checkpoint, origins
from training.architecture import ModelConfig
from training.checkpoint import DataRecord, RunData, State
from training.data import DataConfig
from training.handover import Origin, Tables, hand_over
from training.model import Encoder
from training.sets import first_sensor


@dataclass(frozen=True)
class Weights:
    """Weights to start from: their folder and state, and what becomes of tables that do not fit."""

    folder: Path
    state: State
    tables: Tables

    @classmethod
    def of(cls, init: Path, tables: Tables) -> Weights:
        """Find what `init`, a run, a checkpoint or an export, means."""
        folder = origins.find(init)
        return cls(folder, checkpoint.read_state(folder), tables)

    def decide(self, data: DataConfig) -> tuple[DataConfig, ModelConfig]:
        """Return the configuration with what the weights decide put in, so that it is recorded as it was.

        Raises `ContractError` where bands or size of the images were asked for and differ, unless tables may.
        """
        model = ModelConfig.model_validate(self.state.config["model"])
        # sets of other sensors are refused when they are opened
        known = self._known(first_sensor(data))
        if known is None:
            (first, *_) = self.state.data.sensors.values()
            return data.model_copy(update={"normalise": first.normalise}), model
        asked = {"bands": data.bands, "image_px": data.image_px}
        has = {"bands": known.bands, "image_px": known.image_px}
        given = {k: v for k, v in asked.items() if v}
        wrong = differences({f"data.{k}": has[k] for k in given}, {f"data.{k}": v for k, v in given.items()})
        if wrong and self.tables == "exact":
            raise ContractError(
                f"the weights in {self.folder} do not fit what is asked of `data`: {'; '.join(wrong)}. Leave it out, or"
                " set handover=interpolate."
            )
        return data.model_copy(update={**has, **given, "normalise": known.normalise}), model

    def _known(self, sensor: str) -> DataRecord | None:
        """Return what the weights know of a sensor; None for one they do not know, where tables may be new."""
        return self.state.data.of(sensor) if self.tables == "exact" else self.state.data.sensors.get(sensor)

    def expected(self, data: RunData, sensor: str) -> RunData:
        """Return a run's record with the statistics that the weights were trained with.

        Raises `ContractError` with a difference list where the shard sets do not hold what the weights expect.
        """
        known, record = self._known(sensor), data.of(sensor)
        if known is None:
            return data
        self._require_fitting(known.contract, record.contract)
        # the checkpoint's statistics, not these sets': the weights know only those
        trained = dict(zip(known.bands, known.statistics, strict=True))
        measured = zip(record.bands, record.statistics, strict=True)
        # of a band that is new to the weights there is only what is measured here
        statistics = tuple(trained.get(band, own) for band, own in measured)
        return data.model_copy(
            update={"sensors": {sensor: record.model_copy(update={"statistics": statistics})}}
        )

    def _require_fitting(self, expected: DataContract, found: DataContract) -> None:
        # what the numbers mean; tiles, cells and indices may be others
        keys = ("sensor", "level", "scale", "nodata")
        problems = differences(*({k: getattr(one, k) for k in keys} for one in (expected, found)))
        if problems:
            raise ContractError(
                f"the weights in {self.folder} do not fit these shards: {'; '.join(problems)}."
            )

    def load(self, encoder: Encoder) -> list[str]:
        """Load the encoder; return a line for each weight that was not simply copied.

        Raises `ContractError` listing the differences where tables must be exact and are not.
        """
        found = hand_over(Origin.of(self.folder, "encoder."), encoder, encoder.layouts, self.tables)
        if self.tables == "exact":
            found.require_exact(str(self.folder))
        return found.told()
