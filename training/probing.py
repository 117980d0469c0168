"""What a pretraining's encoder is worth on the way: neighbours or a linear probe on a labelled set, every so many steps.

A probe draws nothing and changes nothing that is trained.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.errors import ConfigError
from training import neighbours
from training.architecture import ModelConfig
from training.checkpoint import RunData
from training.data import Batch, DataConfig, make_view
from training.inputs import SensorInput
from training.model import SpatialSpectralMAE
from training.neighbours import Way
from training.sets import WITH_LABELS, Part, Source, open_families, open_split
from training.stream import Pass
from training.tasks import task
from training.world import World, to_device


class ProbeConfig(Config):
    """A probe of the encoder while it is pretrained."""

    data: DataConfig
    """The labelled set, of a sensor and with the bands that are pretrained on; it is normalised as those are."""
    every_steps: int = Field(default=1000, ge=1)
    """Steps between probes; the end is always probed."""
    way: Way = "knn"
    """knn: votes of the nearest training samples; ridge: linear regression to the classes, in closed form."""
    task: str = "classification"
    """A key of `TASKS` about whole tiles: classification or multilabel."""
    val_split: str = "val"
    """Split that is scored."""
    neighbours: int = Field(default=20, ge=1)
    """knn: neighbours that vote."""
    batch: int = Field(default=64, ge=1)
    """Images that a rank embeds at once."""

    @model_validator(mode="after")
    def _each_once(self) -> ProbeConfig:
        if self.data.damaged == "replace":
            raise ValueError("a probe reads each sample once: leave probe.data.damaged=replace out")
        return self


class Probe:
    """A labelled set beside a pretraining; the ranks share its images evenly."""

    def __init__(self, config: ProbeConfig, model: ModelConfig, data: RunData, world: World) -> None:
        """Open the set; raises `ConfigError` or `ContractError` where it does not fit what is pretrained."""
        self.config, self.world = config, world
        family, *others = open_families(config.data, WITH_LABELS)
        if others:
            raise ConfigError(f"probe.data takes sets of one sensor, {config.data.names} are of several.")
        contract = family.contract
        record = data.of(contract.sensor)
        self.task = task(config.task)(contract)
        if not self.task.pooled:
            raise ConfigError(f"probe.task {config.task} is about pixels: set classification or multilabel.")
        view = make_view(contract, config.data, model.patch_px, record.bands)
        if view.image_px != record.image_px:
            raise ConfigError(
                f"probe.data has images of {view.image_px} px: set probe.data.image_px={record.image_px}."
            )
        self.sensor, self.input = contract.sensor, SensorInput.of(record, model)
        part = Part(family, replace(view, augment=False))
        # a probe needs no order and no weights: each sample once
        known = Source(tuple(reader for source in family.sources for reader in source.readers))
        scored = open_split(config.data, config.val_split)
        self._known, self._scored = (Pass(s, part.view, config.batch, world) for s in (known, scored))

    def measure(self, module: nn.Module) -> dict[str, float]:
        """Score the encoder of a model as it is; collective."""
        module.eval()
        known, asked = (
            neighbours.collect(
                one.batches(self.config.data.workers),
                lambda batch: self._embed(module, batch),
                self.task.usable,
                self.world,
            )
            for one in (self._known, self._scored)
        )
        module.train()
        classes, count = len(self.task.classes), self.config.neighbours
        said = neighbours.learn(self.config.way, known, classes, count)(asked.vectors_ND)
        tally = self.task.tally(said, torch.from_numpy(asked.labels))
        return {f"probe_{name}": value for name, value in self.task.scores(tally).items()}

    @torch.no_grad()
    def _embed(self, module: nn.Module, batch: Batch) -> Tensor:
        image_BCHW = self.input.normaliser(to_device(batch.image_BCHW, self.world.device))
        # past the engine: its forward pass is that of training, with masks and loss
        inner = module.module if hasattr(module, "module") else module
        if not isinstance(inner, SpatialSpectralMAE):
            raise TypeError(f"no encoder to probe in {type(inner).__name__}")
        # in bf16 the engine keeps the weights so, and nothing casts what comes in
        kind = next(inner.encoder.blocks.parameters()).dtype
        tokens_BND = inner.encoder.everything(image_BCHW.to(kind), self.sensor)
        # over places alone: how groups of bands differ is much of what a tile is
        tokens_BTSD = tokens_BND.view(len(tokens_BND), self.input.layout.groups, -1, tokens_BND.shape[2])
        return tokens_BTSD.mean(2).flatten(1)
