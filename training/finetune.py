"""Fine-tune pretrained weights on a labelled shard set and score them on the whole validation split.

`python training/finetune.py CONFIG init=RUN [a.b=c ...]`; init is a run, a checkpoint or an exported folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run by path: `python training/finetune.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # read when torch loads: OpenMP threads that spin while they wait are 6 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.guards import STOP

    # torch takes seconds to load, and a signal in that time would end a job that could be requeued
    STOP.listen()

import torch
from torch import Tensor

from pipeline.console import Command, run, say, table
from pipeline.keys import hash_text
from training import fitted, runs
from training.data import Batch
from training.downstream import FITTED, FinetuneConfig, Setup
from training.engine import Engine
from training.flops import encoder_flops
from training.ledger import Effort
from training.loop import Prepared, Span, train
from training.mixing import Mixed, mix
from training.model import Encoder, count_parameters
from training.schedule import layer_decay_groups
from training.scored import Scored
from training.stream import ShardStream
from training.weights import Weights
from training.world import World, to_device

COMMAND = Command(
    "Fine-tune a pretrained encoder (or one from scratch) and score it on the whole validation split.",
    "configs/finetune/default.yaml",
    """  python training/finetune.py init=runs/pretrain data.shards=/path/to/labelled/shards
  python training/finetune.py configs/finetune/demo.yaml init=demo/runs/random mode=linear_probe name=random-probe
  python training/finetune.py init=runs/pretrain/export data.shards=/path/to/labelled/shards    an exported encoder
  python training/finetune.py configs/finetune/demo.yaml init=null mode=logistic name=statistics
  bash slurm/finetune.sh CONFIG a.b=c        the same on a laptop
  sbatch slurm/finetune.sh CONFIG a.b=c      the same on a cluster""",
)


class Finetuning:
    """The work of a fine-tuning step: predict, compare with the label."""

    def __init__(self, setup: Setup) -> None:
        """Make the model for data and weights that fit each other."""
        self.setup, self.config, self.world = setup, setup.config, setup.world
        self.kind, self.data, self.task = setup.config.task, setup.data, setup.task
        batch, damaged = self.config.batch, self.config.data.damaged
        self.stream = ShardStream([setup.part], batch, self.world, damaged)
        micro = self.config.batch.size // self.world.size // self.stream.accumulation
        self.validation = setup.validation(micro)
        self.model, self.handed = setup.model()
        self._last: Scored | None = None

    def groups(self) -> list[dict[str, object]]:
        """Return the optimiser's parameter groups: layer decay below the head, of an encoder's blocks."""
        encoder, decay = self.model.encoder, self.config.optimiser.weight_decay
        if not isinstance(encoder, Encoder):
            return layer_decay_groups(self.model, decay, 1.0, 0)
        return layer_decay_groups(self.model, decay, self.config.layer_decay, encoder.depth)

    def flops(self) -> int:
        """Return the operations of a step over all ranks, the head's left out."""
        return self._effort(self.config.batch.size).flops

    def _effort(self, images: int) -> Effort:
        """Return what the encoder takes of a step over so many images; heads and backbones are of many kinds."""
        if not isinstance(self.model.encoder, Encoder):
            return Effort()
        layout, images = self.setup.input.layout, images * (2 if self.task.pairs else 1)
        each = encoder_flops(self.config.model, layout, layout.tokens)
        frozen = self.config.mode == "linear_probe"
        return Effort(images * layout.tokens, images * (each.forward if frozen else each.training))

    def prepare(self, batch: Batch, engine: Engine) -> Prepared:
        """Make the losses ready."""
        counted = self.task.items(batch.labels_B[self.task.usable(batch)])
        effort = self._effort(len(batch.image_BCHW))
        return Prepared(self._losses(batch, engine), (counted,), self.stream.observed(batch), effort)

    def _losses(self, batch: Batch, engine: Engine) -> Iterator[Tensor]:
        usable = self.task.usable(batch)
        for part in batch.micro_batches(self.stream.accumulation):
            images, mixed = self.setup.images(batch, part), None
            key = hash_text("regularise", self.config.seed, batch.step, part.start)
            if self.config.regularise.mixes:
                mixed = mix(images[0], usable[part], self.config.regularise, key)
                images = (mixed.image_BCHW,)
            # what is dropped in the model follows from the step too, not from how many drew before
            torch.manual_seed(hash_text(key, self.world.rank) >> 1)
            predicted = engine.module(*images)
            yield self._loss(predicted, batch.labels_B[part], usable[part], mixed)[None]

    def _loss(self, predicted: Tensor, labels: Tensor, usable: Tensor, mixed: Mixed | None) -> Tensor:
        # found on the host: a mask on the device would make the host wait to know how many there are
        kept = usable.nonzero().squeeze(1)
        there = to_device(kept, self.world.device)
        loss = self.task.loss_sum(predicted[there], to_device(labels[kept], self.world.device))
        if mixed is None:
            return loss
        # the loss is linear in the label: that of a blend is the blend of both
        other = to_device(labels, self.world.device)[mixed.partner_B][there]
        return mixed.own * loss + (1 - mixed.own) * self.task.loss_sum(predicted[there], other)

    def measure(self, step: int, engine: Engine) -> dict[str, float]:
        """Score the validation split every few epochs and at the end."""
        due = step % (self.config.eval_every_epochs * self.stream.steps_per_epoch) == 0
        if not due and step != Span.of(self.config, self.stream).total:
            return {}
        self._last = self.evaluate(engine)
        return {f"{self.config.val_split}_{k}": v for k, v in self.task.scores(self._last.tally).items()}

    def evaluate(self, engine: Engine) -> Scored:
        """Tally the whole validation split over all ranks, each sample once; collective."""
        # the same wrapper as in training: ZeRO-3 gathers weights in its hooks
        engine.module.eval()
        scored = self.setup.score(lambda batch: engine.module(*self.setup.images(batch)), self.validation)
        engine.module.train()
        return scored

    def plan(self) -> str:
        """Tell what the run is going to be."""
        config, stream = self.config, self.stream
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        weights = f"{config.init}, which decide model and input" if config.init else "from scratch"
        name = config.model.size if isinstance(self.model.encoder, Encoder) else config.backbone
        size = f"{count_parameters(self.model) / 1e6:.2f} M parameters, {trained / 1e6:.3f} M trained"
        rows = [
            ("run", str(config.folder)),
            ("task", f"{config.task}, {config.mode}"),
            ("weights", weights),
            *(("weights", line) for line in self.handed),
            *(("data", line) for line in stream.told()),
            *self.setup.told(),
            ("model", f"{name}, {size}"),
            ("steps", f"{Span.of(config, stream).total} of {config.batch.size} samples"),
        ]
        return table(("what", "this run"), rows)

    def finish(self, engine: Engine) -> str:
        """Tell the scores of the whole validation split."""
        scored = self._last or self.evaluate(engine)
        if self.world.main:
            scored.save(self.config.folder)
        tally = scored.tally
        scores = ", ".join(f"{k} {v:.4f}" for k, v in self.task.scores(tally).items())
        return (
            f"{self.task.report(tally)}\n{self.config.val_split}: {scores}\n"
            f"compare: python training/compare.py --output {self.config.output}"
        )


def finetune(config: FinetuneConfig, world: World) -> bool:
    """Run or resume a downstream run; True when it is complete, False when it was interrupted and saved."""
    weights = Weights.of(config.init, config.handover) if config.init else None
    if weights:
        data, model = weights.decide(config.data)
        config = config.model_copy(update={"data": data, "model": model})
    config = config.resolved()
    if config.dry_run:
        return train(Finetuning(Setup(config, world, weights)))
    world.connect(config.engine.timeout_s)
    with runs.held(config, world):
        if runs.prepare(config, world):
            return _work(Setup(config, world, weights))
    if world.main:
        say(f"{config.folder} is complete; give another name=... for a new run.")
    return True


def _work(setup: Setup) -> bool:
    if setup.draw and setup.world.main:
        setup.draw.record(setup.config.folder)
    return fitted.fit(setup) if setup.config.mode in FITTED else train(Finetuning(setup))


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    return runs.main(argv, COMMAND, FinetuneConfig, finetune)


if __name__ == "__main__":
    run(main)
