"""Fine-tune pretrained weights on a labelled shard set and score them on the whole validation split.

`python training/finetune.py CONFIG init=RUN [a.b=c ...]`
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

if not __package__:  # run by path: `python training/finetune.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # read when torch loads: OpenMP threads that spin while they wait are 6 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.guards import STOP

    # torch takes seconds to load, and a signal in that time would end a job that could be requeued
    STOP.listen()

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import UserPath
from pipeline.console import Command, run, say, table
from pipeline.contract import DataContract
from pipeline.errors import ContractError
from training import runs
from training.architecture import ModelConfig
from training.data import Batch, View, make_view
from training.engine import Engine
from training.handover import Tables
from training.inputs import SensorInput
from training.loop import Prepared, Span, train
from training.model import Encoder, count_parameters
from training.schedule import layer_decay_groups
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
from training.stream import Pass, ShardStream
from training.tasks import task
from training.tracking import Tracker
from training.weights import Weights
from training.world import World, to_device

COMMAND = Command(
    "Fine-tune a pretrained encoder (or one from scratch) and score it on the whole validation split.",
    "configs/finetune/default.yaml",
    """  python training/finetune.py init=runs/pretrain data.shards=/path/to/labelled/shards
  python training/finetune.py configs/finetune/demo.yaml init=demo/runs/random mode=linear_probe name=random-probe
  bash slurm/finetune.sh CONFIG a.b=c        the same on a laptop
  sbatch slurm/finetune.sh CONFIG a.b=c      the same on a cluster""",
)


class FinetuneConfig(runs.RunConfig):
    """A downstream run."""

    task: str = "classification"
    """A key of `TASKS`."""
    mode: Literal["linear_probe", "full"] = "full"
    """linear_probe trains the head on a frozen encoder, full trains everything with layer decay."""
    init: UserPath | None = None
    """Run or checkpoint folder of the pretrained weights; null starts from scratch."""
    handover: Tables = "exact"
    """With `init`, what becomes of position tables of another size, other bands or another sensor: exact refuses them
    with the differences, interpolate takes them over, reinit begins them anew."""
    model: ModelConfig = ModelConfig()
    """The encoder when starting from scratch; with `init` the checkpoint's own is taken and recorded instead."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """full: learning rate of a block relative to the one above it."""
    val_split: str = "val"
    """Split that is scored."""
    eval_every_epochs: int = Field(default=10, ge=1)
    """Epochs between scores on the way; the end is always scored."""


class Downstream(nn.Module):
    """Encoder over all cubes, then a task's head."""

    def __init__(self, encoder: Encoder, head: nn.Module, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        if frozen:
            encoder.requires_grad_(False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Map normalised images [B, C, H, W] to the head's predictions."""
        predicted: Tensor = self.head(self.encoder.everything(image_BCHW))
        return predicted


class Finetuning:
    """The work of a fine-tuning step: predict, compare with the label."""

    def __init__(self, config: FinetuneConfig, world: World, weights: Weights | None) -> None:
        """Open data and weights and fit them to each other; all that can be wrong is found here."""
        self.config, self.world, self.kind = config, world, config.task
        family = _only_family(config)
        contract = family.contract
        part = Part(family, _view(contract, config))
        self.data = run_data([part], config.data.normalise)
        if weights:
            self.data = weights.expected(self.data, contract.sensor)
        self.input = SensorInput.of(self.data.of(contract.sensor), config.model)
        self.task = task(config.task)(contract)
        self.stream = ShardStream([part], config.batch, world)
        micro = config.batch.size // world.size // self.stream.accumulation
        scored = _scored(family, config)
        self.validation = Pass(scored, replace(part.view, augment=False), micro, world)
        torch.manual_seed(config.seed)
        self.model = Downstream(
            Encoder(config.model, {contract.sensor: self.input.layout}),
            self.task.head(config.model.dimensions.width),
            config.mode == "linear_probe",
        )
        self.handed = weights.load(self.model.encoder) if weights else []
        self._last: NDArray[np.int64] | None = None

    def groups(self) -> list[dict[str, object]]:
        """Return the optimiser's parameter groups: layer decay below the head."""
        return layer_decay_groups(
            self.model, self.config.optimiser.weight_decay, self.config.layer_decay, self.model.encoder.depth
        )

    def prepare(self, batch: Batch, engine: Engine) -> Prepared:
        """Make the losses ready."""
        return Prepared(self._losses(batch, engine), (float(self.task.usable(batch).sum()),), {})

    def _losses(self, batch: Batch, engine: Engine) -> Iterator[Tensor]:
        usable = self.task.usable(batch)
        for part in batch.micro_batches(self.stream.accumulation):
            # found on the host: a mask on the device would make the host wait to know how many there are
            kept = usable[part].nonzero().squeeze(1)
            labels = to_device(batch.labels_B[part][kept], self.world.device)
            predicted = engine.module(self._image(batch, part))[to_device(kept, self.world.device)]
            yield self.task.loss_sum(predicted, labels)[None]

    def _image(self, batch: Batch, part: slice) -> Tensor:
        return self.input.normaliser(to_device(batch.image_BCHW[part], self.world.device))

    def measure(self, step: int, engine: Engine) -> dict[str, float]:
        """Score the validation split every few epochs and at the end."""
        due = step % (self.config.eval_every_epochs * self.stream.steps_per_epoch) == 0
        if not due and step != Span.of(self.config, self.stream).total:
            return {}
        self._last = self.evaluate(engine)
        return {f"{self.config.val_split}_{k}": v for k, v in self.task.scores(self._last).items()}

    @torch.no_grad()
    def evaluate(self, engine: Engine) -> NDArray[np.int64]:
        """Tally the whole validation split over all ranks, each sample once; collective."""
        # the same wrapper as in training: ZeRO-3 gathers weights in its hooks
        engine.module.eval()
        tallies = []
        for batch in self.validation.batches(self.config.data.workers):
            usable = self.task.usable(batch)
            predicted = engine.module(self._image(batch, slice(None))).float()
            tallies.append(self.task.tally(predicted.cpu()[usable], batch.labels_B[usable]))
        engine.module.train()
        # tallies add up over ranks; scores would not
        mine = np.sum(tallies, axis=0)
        summed = self.world.sum(mine.ravel().astype(float).tolist())
        if not any(summed):
            raise ContractError(
                f"no sample of split `{self.config.val_split}` of {self.config.data.names} carries a label: there is"
                " nothing to score. Shard it with `labels`."
            )
        return np.array(summed, np.int64).reshape(mine.shape)

    def plan(self) -> str:
        """Tell what the run is going to be."""
        config, stream = self.config, self.stream
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        weights = f"{config.init}, which decide model and input" if config.init else "from scratch"
        size = f"{count_parameters(self.model) / 1e6:.2f} M parameters, {trained / 1e6:.3f} M trained"
        rows = [
            ("run", str(config.folder)),
            ("task", f"{config.task}, {config.mode}"),
            ("weights", weights),
            *(("weights", line) for line in self.handed),
            *(("data", line) for line in stream.told()),
            ("scored", f"{len(self.validation.samples)} samples of split {config.val_split}"),
            ("model", f"{config.model.size}, {size}"),
            ("steps", f"{Span.of(config, stream).total} of {config.batch.size} samples"),
        ]
        return table(("what", "this run"), rows)

    def finish(self, engine: Engine, tracker: Tracker) -> str:
        """Tell the scores of the whole validation split."""
        tally = self.evaluate(engine) if self._last is None else self._last
        scores = ", ".join(f"{k} {v:.4f}" for k, v in self.task.scores(tally).items())
        return (
            f"{self.task.report(tally)}\n{self.config.val_split}: {scores}\n"
            f"compare: python training/compare.py --output {self.config.output}"
        )


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


def finetune(config: FinetuneConfig, world: World) -> bool:
    """Run or resume a fine-tuning; True when it is complete, False when it was interrupted and saved."""
    world.connect(config.engine.timeout_s)
    weights = Weights.of(config.init, config.handover) if config.init else None
    if weights:
        data, model = weights.decide(config.data)
        config = config.model_copy(update={"data": data, "model": model})
    with runs.held(config, world):
        if runs.prepare(config, world):
            return train(Finetuning(config, world, weights))
    if world.main:
        say(f"{config.folder} is complete; give another name=... for a new run.")
    return True


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    return runs.main(argv, COMMAND, FinetuneConfig, finetune)


if __name__ == "__main__":
    run(main)
