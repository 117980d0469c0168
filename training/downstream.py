"""What all downstream runs share: their configuration, and data, task and model fitted to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.contract import DataContract
from pipeline.errors import ConfigError, ContractError
from pipeline.sample import Sample
from training import backbones, checkpoint, origins, runs
from training.architecture import ModelConfig
from training.backbones import Backbone
from training.checkpoint import DataRecord
from training.data import Batch, View, make_view
from training.fraction import Draw, draw
from training.handover import Tables
from training.inputs import SensorInput
from training.mixing import Regularisation
from training.model import Encoder
from training.scored import Scored
from training.sets import (
    WITH_LABELS,
    Family,
    Part,
    Source,
    open_families,
    open_split,
    require_distinct,
    run_data,
    warn_of_shared_ground,
)
from training.stream import Pass, Samples
from training.tasks import TASKS, Task, task
from training.tokens import Normaliser
from training.weights import Weights
from training.windows import Windows
from training.world import World, to_device

Mode = Literal["full", "linear_probe", "knn", "ridge", "logistic", "forest"]
FITTED = ("knn", "ridge", "logistic", "forest")
"""Modes without steps: what they learn they learn at once."""
PLAIN = ("logistic", "forest")
"""Modes without a model."""
BY_FEATURES = ("knn", "ridge")
"""Modes that learn from features at once."""


class FinetuneConfig(runs.RunConfig):
    """A downstream run."""

    task: str = "classification"
    """A key of `TASKS`."""
    mode: Mode = "full"
    """full trains everything with layer decay; linear_probe trains a linear head on a frozen encoder; knn lets the
    nearest neighbours by pooled features vote; ridge is linear regression from features, pooled or of cells, to the
    classes, in closed form. logistic and forest are plain baselines on band statistics."""
    backbone: Backbone = "encoder"
    """encoder, or resnet50 from scratch as the supervised baseline."""
    handover: Tables = "exact"
    """With `init`, what becomes of position tables of another size, other bands or another sensor: exact refuses them
    with the differences, interpolate takes them over, reinit begins them anew."""
    model: ModelConfig = ModelConfig()
    """The encoder when starting from scratch; with `init` the checkpoint's own is taken and recorded instead."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """full: learning rate of an encoder's block relative to the one above it."""
    regularise: Regularisation = Regularisation()
    """full: what keeps the model from learning its images by heart."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled training samples that is used, drawn by `seed`; where a tile has one class, of each class
    alike. The run folder's drawn.json tells which."""
    neighbours: int = Field(default=20, ge=1)
    """knn: neighbours that vote."""
    beside_statistics: bool = False
    """knn and ridge: put the statistics that logistic and forest read beside the features."""
    index_statistics: bool = False
    """Where band statistics are read: take those of the set's indices too."""
    val_split: str = "val"
    """Split that is scored."""
    eval_every_epochs: int = Field(default=10, ge=1)
    """Epochs between scores on the way; the end is always scored."""

    @model_validator(mode="after")
    def _sound(self) -> FinetuneConfig:
        if self.init and (self.backbone != "encoder" or self.mode in PLAIN):
            what = self.mode if self.mode in PLAIN else f"backbone: {self.backbone}"
            raise ValueError(f"{what} starts from nothing: leave `init` out (init=null)")
        if self.regularise != Regularisation() and self.mode != "full":
            raise ValueError(f"regularise is for mode: full; leave it out with mode: {self.mode}")
        if self.data.damaged == "replace" and self.mode in FITTED:
            raise ValueError(f"mode: {self.mode} reads each sample once: leave data.damaged=replace out")
        if self.beside_statistics and self.mode not in BY_FEATURES:
            raise ValueError(f"beside_statistics is for mode: knn or ridge, not for mode: {self.mode}")
        return self

    def resolved(self) -> FinetuneConfig:
        """Return the configuration with what follows from it put in, so that it is recorded as it was."""
        if self.backbone == "encoder" and self.mode not in PLAIN:
            return self
        # neither cuts images into cubes of several bands; running averages of ResNet need float32
        model = self.model.model_copy(update={"bands_per_cube": 1, "groups": None})
        precision = "fp32" if self.engine.precision == "auto" else self.engine.precision
        engine = self.engine.model_copy(update={"precision": precision})
        return self.model_copy(update={"model": model, "engine": engine})


class Downstream(nn.Module):
    """A backbone over whole images, then a task's head."""

    def __init__(self, encoder: nn.Module, head: nn.Module, pooled: bool, frozen: bool) -> None:
        """pooled: the head reads the last map only."""
        super().__init__()
        self.encoder, self.head, self.pooled = encoder, head, pooled
        if frozen:
            encoder.requires_grad_(False)

    def maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the feature maps of normalised images [B, C, H, W]."""
        return backbones.feature_maps(self.encoder, image_BCHW, self.pooled)

    def forward(self, image_BCHW: Tensor, after_BCHW: Tensor | None = None) -> Tensor:
        """Map normalised images, or pairs of them, to the head's predictions."""
        predicted: Tensor = self.head(self._read(image_BCHW, after_BCHW))
        return predicted

    def _read(self, image_BCHW: Tensor, after_BCHW: Tensor | None) -> list[Tensor]:
        """Return what heads read: the maps of an image, or how those of two dates differ."""
        if after_BCHW is None:
            return self.maps(image_BCHW)
        # both dates in one pass: the weights are shared
        both = self.maps(torch.cat([image_BCHW, after_BCHW]))
        halves = [x.chunk(2) for x in both]
        # which date comes first says nothing of whether there is change
        return [(after - before).abs() for before, after in halves]

    def embed(self, image_BCHW: Tensor, after_BCHW: Tensor | None = None) -> Tensor:
        """Return one vector a cell of the last map, [B, T * D, y, x], or an image where tasks are about whole ones,
        [B, T * D]; the groups of bands stand side by side.
        """
        last_BTDyx = self._read(image_BCHW, after_BCHW)[-1]
        return last_BTDyx.mean((3, 4)).flatten(1) if self.pooled else last_BTDyx.flatten(1, 2)


class Setup:
    """Data, task and weights of a run, fitted to each other; all that can be wrong is found here."""

    def __init__(self, config: FinetuneConfig, world: World, weights: Weights | None) -> None:
        self.config, self.world, self.weights = config, world, weights
        family, self.draw = _drawn(_only_family(config), config)
        contract = family.contract
        self.part = Part(family, _view(contract, config))
        data = run_data([self.part], config.data.normalise)
        data = weights.expected(data, contract.sensor) if weights else data
        self.data = self.draw.mark(data) if self.draw else data
        self.input = SensorInput.of(self.data.of(contract.sensor), config.model)
        self.task = task(config.task)(contract)
        self._require_possible()
        self.task.learn(label for s in family.sources for label in s.labels() if label is not None)
        self._scored = _scored(family, config)

    def _require_possible(self) -> None:
        """Raise `ConfigError` for modes that a task cannot do."""
        config = self.config
        if (config.mode == "knn" or config.beside_statistics) and not self.task.pooled:
            raise ConfigError(
                f"mode knn and beside_statistics are about whole tiles, and task {config.task} is about pixels: leave"
                " them out."
            )
        if config.regularise.mixes and not self.task.mixable:
            raise ConfigError(
                f"mixup and cutmix are for one class a tile, not for task {config.task}: set regularise.mixup=0"
                " and regularise.cutmix=0."
            )

    @property
    def sensor(self) -> str:
        """The sensor of the images."""
        return self.part.view.sensor

    def validation(self, micro: int) -> Pass:
        """Return the pass over the split to score; of tasks about pixels each pixel once."""
        return self._pass(self._scored, micro)

    def training(self, micro: int) -> Pass:
        """Return a pass over the training samples as they are, without augmentation."""
        together = Rows(self.part.family.sources)
        return self._pass(together, micro)

    def _pass(self, samples: Samples, micro: int) -> Pass:
        view, tile_px = replace(self.part.view, augment=False), self.part.family.contract.tile_px
        if not self.task.pooled and view.image_px < tile_px:
            samples = Windows(samples, tile_px, view.image_px, view.cell_px)
        return Pass(samples, view, micro, self.world)

    def model(self) -> tuple[Downstream, list[str]]:
        """Return the model, and a line for each weight that was not simply copied."""
        config = self.config
        torch.manual_seed(config.seed)
        encoder: nn.Module = backbones.build(config.backbone, config.model, self.input.layout, self.sensor)
        frozen = config.mode == "linear_probe"
        head = self.task.head(backbones.shape_of(encoder, self.input.layout), frozen)
        handed = self.weights.load(encoder) if self.weights and isinstance(encoder, Encoder) else []
        backbones.set_drop_path(encoder, config.regularise.drop_path)
        # statistics of each rank's part would let the number of ranks decide the result
        if config.backbone == "resnet50":
            encoder = backbones.synchronised(encoder, self.world)
        return Downstream(encoder, head, self.task.pooled, frozen), handed

    def images(self, batch: Batch, part: slice = slice(None)) -> tuple[Tensor, ...]:
        """Return normalised images on the device: one date or two, as the task wants."""
        dates = [batch.image_BCHW, batch.after_BCHW] if self.task.pairs else [batch.image_BCHW]
        if any(d is None for d in dates):
            raise ContractError(
                f"a sample of {self.config.data.names} has no later date: make this set again."
            )
        return tuple(
            self.input.normaliser(to_device(d[part], self.world.device)) for d in dates if d is not None
        )

    @torch.no_grad()
    def score(self, predict: Callable[[Batch], Tensor], validation: Pass) -> Scored:
        """Tally the whole split over all ranks, each sample once, scene by scene; collective."""
        mine = Scored(self.task)
        for batch in validation.batches(self.config.data.workers):
            usable = self.task.usable(batch)
            predicted = predict(batch).float().cpu()
            keys = [key for key, use in zip(batch.keys, usable.tolist(), strict=True) if use]
            mine.add(keys, predicted[usable], batch.labels_B[usable])
        # tallies can be put together; scores of ranks could not
        counted: list[Any] = self.world.gather(mine.of_scene)
        found = mine.merge(counted)
        if not found.of_scene:
            raise ContractError(
                f"no sample of split `{self.config.val_split}` of {self.config.data.names} carries a label: there is"
                " nothing to score. Shard it with `labels`."
            )
        return found

    def told(self) -> list[tuple[str, str]]:
        """Return rows of a plan that tell the data."""
        drawn = self.draw
        share = f"{len(drawn.keys)} samples, {drawn.fraction:.1%}, draw {drawn.digest}" if drawn else "all"
        return [
            ("labels", share),
            ("scored", f"{len(self._scored)} samples of split {self.config.val_split}"),
        ]


class Rows:
    """The samples of several sources one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._samples = [(source, number) for source in sources for number in range(len(source))]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def read(self, number: int) -> Sample:
        """Read sample `number` of the row."""
        source, inside = self._samples[number]
        return source.read(inside)


def _drawn(family: Family, config: FinetuneConfig) -> tuple[Family, Draw | None]:
    return draw(family, config.fraction, config.seed) if config.fraction < 1 else (family, None)


def _only_family(config: FinetuneConfig) -> Family:
    families = open_families(config.data, WITH_LABELS)
    if len(families) > 1:
        names = ", ".join(f"{f.contract.sensor} ({', '.join(s.name for s in f.sources)})" for f in families)
        raise ContractError(f"fine-tuning takes sets of one sensor, these are of several: {names}.")
    return families[0]


def _view(contract: DataContract, config: FinetuneConfig) -> View:
    bands = config.model.bands(contract.sensor)
    return replace(make_view(contract, config.data, config.model.patch_px, bands), seed=config.seed)


def _scored(family: Family, config: FinetuneConfig) -> Source:
    """Open the split to score, of all sets; raises `ContractError` where another set trains on its samples."""
    scored = open_split(config.data, config.val_split)
    require_distinct([*(r for s in family.sources for r in s.readers), *scored.readers])
    warn_of_shared_ground(family)
    return scored


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model as its run left it."""

    model: Downstream
    task: Task
    record: DataRecord
    """What it expects of its input."""
    normaliser: Normaliser

    @classmethod
    def of(cls, location: Path) -> Trained:
        """Load the model of a run or checkpoint; raises `ContractError` for one that is no fine-tuning's."""
        folder = origins.find(location)
        state = checkpoint.read_state(folder)
        if state.kind not in TASKS:
            raise ContractError(f"{location} is a {state.kind} run: give one of training/finetune.py.")
        config = FinetuneConfig.model_validate(state.config)
        ((sensor, record),) = state.data.sensors.items()
        data, chosen = SensorInput.of(record, config.model), task(state.kind)(record.contract)
        encoder = backbones.build(config.backbone, config.model, data.layout, sensor)
        head = chosen.head(backbones.shape_of(encoder, data.layout), config.mode == "linear_probe")
        # nothing is trained any more: nothing need be frozen
        model = Downstream(encoder, head, chosen.pooled, frozen=False)
        model.load_state_dict(origins.read_weights(folder))
        return cls(model, chosen, record, data.normaliser)
