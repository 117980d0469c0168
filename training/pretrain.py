"""Pretrain the masked autoencoder: shards to weights.

`python training/pretrain.py CONFIG [a.b=c ...]`, in one process or in as many as RANK and WORLD_SIZE say.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run by path: `python training/pretrain.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # read when torch loads: OpenMP threads that spin while they wait are 6 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.guards import STOP

    # torch takes seconds to load, and a signal in that time would end a job that could be requeued
    STOP.listen()

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.console import Command, run, say, table
from pipeline.contract import DataContract
from training import looking, masking, origins, panels, runs, stages
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.data import Batch, View, make_view
from training.engine import Engine
from training.flops import step_flops
from training.handover import Origin, Tables, hand_over
from training.inputs import SensorInput
from training.ledger import Effort
from training.loop import Prepared, Span, train
from training.masking import Choice, MaskingConfig
from training.model import SpatialSpectralMAE, count_parameters
from training.probing import Probe, ProbeConfig
from training.schedule import decay_groups
from training.sets import Part, open_families, run_data
from training.stream import ShardStream
from training.tokens import Layout
from training.world import World, to_device

COMMAND = Command(
    "Pretrain a spectral masked autoencoder (S2MAE) on a shard set.",
    "configs/pretrain/default.yaml",
    """  python training/pretrain.py configs/pretrain/default.yaml data.shards=/path/to/shards
  python training/pretrain.py configs/pretrain/sensors.yaml 'data.shards=[{path: a, weight: 3}, {path: b, weight: 1}]'
  python training/pretrain.py configs/pretrain/demo.yaml name=trial masking.strategy=saliency
  bash slurm/pretrain.sh CONFIG        the same on a laptop
  sbatch slurm/pretrain.sh CONFIG      the same on a cluster""",
)


class PretrainConfig(runs.RunConfig):
    """A pretraining run."""

    model: ModelConfig = ModelConfig()
    """The masked autoencoder."""
    masking: MaskingConfig = MaskingConfig()
    """What is hidden."""
    handover: Tables = "exact"
    """With `init`, what becomes of position tables of another size or of other bands: exact refuses them with the
    differences, interpolate takes them over, reinit begins them anew."""
    stages: tuple[dict[str, Any], ...] = ()
    """Trainings one after the other, each from the weights of the one before: `name`, and whichever keys are other in
    that stage, [{name: fmow, data: {image_px: 96}},{name: bigearthnet, data: {image_px: 128}}]."""
    probe: ProbeConfig | None = None
    """Score the encoder on a labelled set on the way; null does not."""
    panel_images: int = Field(default=4, ge=0)
    """Images in the panels of what is shown and restored, written on the way and at the end; 0 writes none."""
    panel_every_steps: int = Field(default=5000, ge=1)
    """Steps between panels; the end always has one."""

    @model_validator(mode="after")
    def _whole_sums(self) -> PretrainConfig:
        if self.model.spectral_sum_loss and self.masking.reconstruct < 1:
            raise ValueError("model.spectral_sum_loss needs every cube predicted: set masking.reconstruct=1")
        return self

    @model_validator(mode="after")
    def _whole_chain(self) -> PretrainConfig:
        # what is wrong in a later stage is told before the first
        stages.split(self, self.stages)
        return self


class Pretraining:
    """The work of a pretraining step: choose what is shown, reconstruct the rest."""

    kind = "pretrain"

    def __init__(self, config: PretrainConfig, world: World) -> None:
        """Open the data and fit model and masking to it; all that can be wrong is found here."""
        self.config, self.world = config, world
        parts = [Part(family, self._view(family.contract)) for family in open_families(config.data)]
        self.data = run_data(parts, config.data.normalise)
        self.inputs = {s: SensorInput.of(record, config.model) for s, record in self.data.sensors.items()}
        self.shown = {s: self._check(i.layout) for s, i in self.inputs.items()}
        self.stream = ShardStream(parts, config.batch, world, config.data.damaged)
        self.span = Span.of(config, self.stream)
        # just before the model: what drew until here must not decide what it begins with
        torch.manual_seed(config.seed)
        # `minmax` input is on the unit scale already
        other_scale = self.inputs if config.data.normalise != "minmax" else {}
        self.model = SpatialSpectralMAE(
            config.model,
            {s: i.layout for s, i in self.inputs.items()},
            {s: i.to_unit for s, i in other_scale.items()},
        )
        self.probe = Probe(config.probe, config.model, self.data, world) if config.probe else None
        self.handed = self._take_over(config.init) if config.init else []

    def _take_over(self, init: Path) -> list[str]:
        """Load the weights to start from; return a line for each that was not simply copied."""
        folder = origins.find(init)
        layouts = {s: i.layout for s, i in self.inputs.items()}
        found = hand_over(Origin.of(folder), self.model, layouts, self.config.handover)
        if self.config.handover == "exact":
            found.require_exact(str(folder))
        return [f"from {folder}", *found.told()]

    def _view(self, contract: DataContract) -> View:
        config = self.config
        bands = config.model.bands(contract.sensor)
        view = make_view(contract, config.data, config.model.patch_px, bands)
        return replace(view, richness_weight=config.masking.richness_weight, seed=config.seed)

    def _check(self, layout: Layout) -> int:
        return masking.check(self.config.masking, layout.tokens, layout.groups)

    def groups(self) -> list[dict[str, object]]:
        """Return the optimiser's parameter groups."""
        return decay_groups(self.model, self.config.optimiser.weight_decay)

    def choose(self, batch: Batch) -> Choice:
        """Choose the shown cubes of a batch: a pure function of (seed, sample, epoch, saliency, lambda(step))."""
        return masking.choose(self.draw(batch), batch.valid_BS)

    def draw(self, batch: Batch) -> masking.Draw:
        """Return what decides the masks of a batch at its step."""
        config, layout = self.config.masking, self.inputs[batch.sensor].layout
        keys = masking.Keys(self.config.seed, batch.ids, batch.epoch)
        strength = masking.strength(config, batch.step, self.span.warmup, self.span.total)
        return masking.Draw(keys, batch.saliency_BS, layout.groups, strength, config)

    def flops(self) -> int:
        """Return the operations of the first step over all ranks."""
        # masks decide how many cubes are encoded: a real batch is counted
        batch = self.stream[0]
        return (
            step_flops(self.config.model, self.inputs[batch.sensor].layout, self.choose(batch))
            * self.world.size
        )

    def prepare(self, batch: Batch, engine: Engine) -> Prepared:
        """Choose the masks and make the losses ready."""
        choice = self.choose(batch)
        counted = [float(choice.counted_BM.sum())]
        if self.config.model.spectral_sum_loss:
            counted.append(float(batch.valid_BS.sum()))
        flops = step_flops(self.config.model, self.inputs[batch.sensor].layout, choice)
        effort = Effort(int((choice.shown_BK >= 0).sum()), flops)
        observed = choice.observed | self.stream.observed(batch)
        return Prepared(self._losses(batch, choice, engine), tuple(counted), observed, effort)

    def _losses(self, batch: Batch, choice: Choice, engine: Engine) -> Iterator[Tensor]:
        for part in batch.micro_batches(self.stream.accumulation):
            yield engine.module(*self._given(batch, choice, part)).loss_sums

    def _given(self, batch: Batch, choice: Choice, part: slice) -> tuple[Tensor, Chosen, str]:
        """Put one micro-batch on the device: int16 travels, normalisation happens there."""
        device, mine = self.world.device, self.inputs[batch.sensor]
        image_BCHW = mine.normaliser(to_device(batch.image_BCHW[part], device))
        chosen = Chosen.of(choice, batch.valid_BS, part, mine.layout.tokens).to(device)
        return image_BCHW, chosen, batch.sensor

    def measure(self, step: int, engine: Engine) -> dict[str, float]:
        """Probe the encoder every so many steps and at the end, where that is asked for; draw panels on the way."""
        if step % self.config.panel_every_steps == 0 and step != self.span.total:
            self._panels(engine, step, f"-step-{step:08d}")
        asked = self.config.probe
        if not (asked and self.probe) or (step % asked.every_steps and step != self.span.total):
            return {}
        return self.probe.measure(engine.module)

    def plan(self) -> str:
        """Tell what the run is going to be."""
        config, world = self.config, self.world
        precision = config.engine.resolve(world.device)
        tokens = ", ".join(f"{self.shown[s]} of {i.layout.tokens}" for s, i in self.inputs.items())
        rows = [
            ("run", str(config.folder)),
            *(("data", line) for line in self.stream.told()),
            ("model", f"{config.model.size}, {count_parameters(self.model) / 1e6:.2f} M parameters"),
            *(("weights", line) for line in self.handed),
            ("tokens", f"{tokens} cubes shown, masking {config.masking.strategy}"),
            (
                "steps",
                f"{self.span.total} of {config.batch.size} samples, {self.stream.steps_per_epoch} an epoch",
            ),
            ("engine", f"ZeRO {config.engine.stage(world)}, {precision}, {world.size} x {world.device.type}"),
        ]
        return table(("what", "this run"), rows)

    def finish(self, engine: Engine) -> str:
        """Draw what was shown, predicted and there; say what to do next."""
        config = self.config
        self._panels(engine, self.span.total)
        return (
            f"weights: {config.folder}/checkpoints\n"
            f"fine-tune: python training/finetune.py {' '.join(self._next_words())}\n"
            f"compare: python training/compare.py --output {config.output}\n"
            f"curves: {runs.tracker_hint(config.tracking.resolve(config.output))}"
        )

    def _next_words(self) -> list[str]:
        """Return the words of a fine-tuning that runs on this set, if it is labelled."""
        config, contracts = self.config, [record.contract for record in self.data.sensors.values()]
        labelled = len(contracts) == 1 and contracts[0].classes and contracts[0].label_kind == "class"
        words = [f"init={config.folder}", f"output={config.output}", f"name={config.name}-tuned"]
        words.append(shlex.quote(config.data.word) if labelled else "data.shards=/path/to/labelled/shards")
        return [*words, f"batch.size={min(config.batch.size, 256)}"]

    def _panels(self, engine: Engine, step: int, ending: str = "") -> None:
        """Draw the first images of each sensor's last step up to `step`, with the masks of that step; collective."""
        for sensor in self.inputs if self.config.panel_images else ():
            batch = self.stream[self.stream.last(sensor, step)]
            engine.module.eval()
            found = looking.look(self, engine.module, batch, self.config.panel_images)
            engine.module.train()
            name = "reconstruction" if len(self.inputs) == 1 else f"reconstruction-{sensor}"
            if self.world.main:
                panels.reconstruction(found, self.config.folder / "panels" / f"{name}{ending}.png")


def pretrain(config: PretrainConfig, world: World) -> bool:
    """Run or resume a pretraining, or a chain of them; True when it is complete, False when it was interrupted and
    saved.
    """
    chain = stages.split(config, config.stages) if config.stages else [config]
    if config.dry_run:
        # a later stage's weights to start from are still to be made
        later = [stage.model_copy(update={"init": None}) for stage in chain[1:]]
        return all(train(Pretraining(stage, world)) for stage in (chain[0], *later))
    if config.stages:
        return stages.run(config, chain, pretrain, world)
    world.connect(config.engine.timeout_s)
    with runs.held(config, world):
        if runs.prepare(config, world):
            return train(Pretraining(config, world))
    if world.main:
        say(f"{config.folder} is complete; give another name=... for a new run.")
    return True


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    return runs.main(argv, COMMAND, PretrainConfig, pretrain)


if __name__ == "__main__":
    run(main)
