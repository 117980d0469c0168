"""Pretrain the masked autoencoder: shards to weights.

`python training/pretrain.py CONFIG [a.b=c ...]`, in one process or in as many as RANK and WORLD_SIZE say.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by path: `python training/pretrain.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # read when torch loads: OpenMP threads that spin while they wait are 6 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.guards import STOP

    # torch takes seconds to load, and a signal in that time would end a job that could be requeued
    STOP.listen()

import torch
from pydantic import Field
from torch import Tensor

from pipeline.console import Command, run, say, table
from pipeline.contract import normalisation
from training import masking, panels, runs
from training.architecture import ModelConfig
from training.checkpoint import DataRecord
from training.chosen import Chosen
from training.data import Batch, ShardStream, make_view
from training.engine import Engine
from training.loop import Prepared, Span, train
from training.masking import Choice, MaskingConfig
from training.model import SpatialSpectralMAE, count_parameters
from training.reader import ShardReader
from training.schedule import decay_groups
from training.targets import picture
from training.tokens import Normaliser, Rescale, to_cubes
from training.tracking import Tracker
from training.world import World

COMMAND = Command(
    "Pretrain a spectral masked autoencoder (S2MAE) on a shard set.",
    "configs/pretrain/default.yaml",
    """  python training/pretrain.py configs/pretrain/default.yaml data.shards=/path/to/shards
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
    panel_images: int = Field(default=4, ge=0)
    """Images in the reconstruction panel written at the end; 0 writes none."""


class Pretraining:
    """The work of a pretraining step: choose what is shown, reconstruct the rest."""

    kind = "pretrain"

    def __init__(self, config: PretrainConfig, world: World) -> None:
        """Open the data and fit model and masking to it; all that can be wrong is found here."""
        self.config, self.world = config, world
        reader = ShardReader(config.data.shards, config.data.split, config.data.verify)
        contract = reader.manifest.contract
        asked = config.data.bands or config.model.bands(contract.sensor)
        view = make_view(contract, config.data.model_copy(update={"bands": asked}), config.model.patch_px)
        view = replace(view, richness_weight=config.masking.richness_weight, seed=config.seed)
        names = tuple(contract.band_names[i] for i in view.bands)
        statistics = tuple(reader.manifest.statistics[i] for i in view.bands)
        bands = [contract.bands[i] for i in view.bands]
        self.layout = config.model.layout(contract.sensor, bands, view.image_px)
        masking.check(config.masking, self.layout.tokens, self.layout.groups)
        self.normaliser = Normaliser(normalisation(config.data.normalise, statistics))
        # also what pictures are drawn on
        self.to_unit = Rescale(self.normaliser.recorded, normalisation("minmax", statistics))
        self.stream = ShardStream(reader, view, config.batch, world)
        self.span = Span.of(config, self.stream)
        self.data = DataRecord(
            contract=contract,
            statistics=statistics,
            bands=names,
            image_px=view.image_px,
            normalise=config.data.normalise,
            digest=reader.manifest.digest(),
        )
        torch.manual_seed(config.seed)
        on_unit = config.data.normalise == "minmax"
        sensor = contract.sensor
        self.model = SpatialSpectralMAE(
            config.model, {sensor: self.layout}, {} if on_unit else {sensor: self.to_unit}
        )

    def groups(self) -> list[dict[str, object]]:
        """Return the optimiser's parameter groups."""
        return decay_groups(self.model, self.config.optimiser.weight_decay)

    def choose(self, batch: Batch) -> Choice:
        """Choose the shown cubes of a batch: a pure function of (seed, sample, epoch, saliency, lambda(step))."""
        config = self.config.masking
        keys = masking.Keys(self.config.seed, batch.ids, batch.epoch)
        strength = masking.strength(config, batch.step, self.span.warmup, self.span.total)
        return masking.choose(
            masking.Draw(keys, batch.saliency_BS, self.layout.groups, strength, config), batch.valid_BS
        )

    def prepare(self, batch: Batch, engine: Engine) -> Prepared:
        """Choose the masks and make the losses ready."""
        choice = self.choose(batch)
        counted = [float(choice.counted_BM.sum())]
        if self.config.model.spectral_sum_loss:
            counted.append(float(batch.valid_BS.sum()))
        return Prepared(self._losses(batch, choice, engine), tuple(counted), choice.observed)

    def _losses(self, batch: Batch, choice: Choice, engine: Engine) -> Iterator[Tensor]:
        for part in batch.micro_batches(self.stream.accumulation):
            yield engine.module(*self._inputs(batch, choice, part)).loss_sums

    def _inputs(self, batch: Batch, choice: Choice, part: slice) -> tuple[Tensor, Chosen]:
        """Put one micro-batch on the device: int16 travels, normalisation happens there."""
        device = self.world.device
        image_BCHW = self.normaliser(batch.image_BCHW[part].to(device, non_blocking=True))
        return image_BCHW, Chosen.of(choice, batch.valid_BS, part, self.layout.tokens).to(device)

    def measure(self, step: int, engine: Engine) -> dict[str, float]:
        """Nothing but the loss is measured on the way."""
        return {}

    def plan(self) -> str:
        """Tell what the run is going to be."""
        config, world = self.config, self.world
        shown = masking.check(config.masking, self.layout.tokens, self.layout.groups)
        samples, precision = len(self.stream.reader), config.engine.resolve(world.device)
        size = f"{len(self.data.bands)} bands, {self.data.image_px} px"
        rows = [
            ("run", str(config.folder)),
            ("data", f"{samples} samples of {config.data.shards}, {size}"),
            ("model", f"{config.model.size}, {count_parameters(self.model) / 1e6:.2f} M parameters"),
            ("tokens", f"{shown} of {self.layout.tokens} cubes shown, masking {config.masking.strategy}"),
            (
                "steps",
                f"{self.span.total} of {config.batch.size} samples, {self.stream.steps_per_epoch} an epoch",
            ),
            ("engine", f"ZeRO {config.engine.zero_stage}, {precision}, {world.size} x {world.device.type}"),
        ]
        return table(("what", "this run"), rows)

    def finish(self, engine: Engine, tracker: Tracker) -> str:
        """Draw what was shown, predicted and there; say what to do next."""
        config = self.config
        if config.panel_images:
            path = config.folder / "panels" / "reconstruction.png"
            rows = self._panel_rows(engine)
            if self.world.main:
                tracker.artifact(panels.reconstruction(rows, path), "panels")
        return (
            f"weights: {config.folder}/checkpoints\n"
            f"fine-tune: python training/finetune.py {' '.join(self._next_words())}\n"
            f"compare: python training/compare.py --output {config.output}\n"
            f"curves: {runs.tracker_hint(config.tracking.resolve(config.output))}"
        )

    def _next_words(self) -> list[str]:
        """Return the words of a fine-tuning that runs on this set, if it is labelled."""
        config, contract = self.config, self.data.contract
        labelled = contract.classes and contract.label_kind == "class"
        words = [f"init={config.folder}", f"output={config.output}", f"name={config.name}-tuned"]
        words.append(f"data.shards={config.data.shards if labelled else '/path/to/labelled/shards'}")
        return [*words, f"batch.size={min(config.batch.size, 256)}"]

    @torch.no_grad()
    def _panel_rows(self, engine: Engine) -> list[panels.Row]:
        """Reconstruct the first images of the run's last step; colours are on the `minmax` scale."""
        # the last step's: its masks are those of the curriculum's end
        batch = self.stream[self.span.total - 1]
        image, chosen = self._inputs(batch, self.choose(batch), slice(0, self.config.panel_images))
        predicted = engine.module(image, chosen).predicted_BMP
        target, source = self.config.model.target, self.model.source(image)
        reconstructed = picture(source, chosen, predicted, target, self.layout)
        columns = {
            "shown": picture(to_cubes(self.to_unit(image), self.layout), chosen, None, target, self.layout),
            # targets of unit scale are made from images of unit scale
            "reconstructed": reconstructed if self.model.to_unit else self.to_unit(reconstructed),
            "original": self.to_unit(image),
        }
        bands = self.data.rgb()
        return [
            {k: v[i][bands].permute(1, 2, 0).cpu().numpy() for k, v in columns.items()}
            for i in range(len(image))
        ]


def pretrain(config: PretrainConfig, world: World) -> bool:
    """Run or resume a pretraining; True when it is complete, False when it was interrupted and saved."""
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
