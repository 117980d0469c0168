"""DeepSpeed, the only engine: the same code on one CPU process and on many GPU nodes.

Losses are sums divided by the number of counted items in the *global* batch, so that neither ranks nor
micro-batches change the result; DeepSpeed's own averaging is undone by one factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.errors import ConfigError
from training import memory, zero
from training.blocks import Stack
from training.flops import measure_peak
from training.report import Report, Told
from training.states import Holder, Snapshot
from training.update import Update
from training.world import World


class EngineConfig(Config):
    """How DeepSpeed runs the step."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """ZeRO: 1 shares the optimiser's state among the ranks, 2 also gradients, 3 also parameters; auto: 1, but 0 for one
    rank in fp32, which has nobody to share with and saves a copy of the weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, fp32 elsewhere (bf16 is several times slower on plain CPUs). fp16 is for GPUs
    without bf16: its loss is scaled, and steps that overflow are skipped."""
    recompute: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less memory, more batch, for a
    third more time."""
    compile: bool = False
    """Compile the blocks with torch.compile: a minute at the start, faster steps on GPUs; not with ZeRO 3."""
    timeout_s: float = Field(default=600.0, gt=0)
    """How long a rank waits for the others before it gives up."""

    @model_validator(mode="after")
    def _sound(self) -> EngineConfig:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile: true cannot be had with zero_stage: 3, which swaps weights inside blocks"
            )
        return self

    def stage(self, world: World) -> int:
        """Return the ZeRO stage that the ranks run."""
        alone = world.size == 1 and self.resolve(world.device) == "fp32"
        return self.zero_stage if self.zero_stage != "auto" else 0 if alone else 1

    def resolve(self, device: torch.device) -> str:
        """Return the precision used on `device`; raises `ConfigError` for what would train wrongly."""
        chosen = self.precision
        if chosen == "auto":
            chosen = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if chosen != "fp32" and self.zero_stage == 0:
            raise ConfigError(
                f"engine.zero_stage 0 with {chosen} trains wrongly in DeepSpeed: set engine.zero_stage=1."
            )
        if chosen == "fp16" and device.type == "cpu":
            raise ConfigError(
                "engine.precision fp16 needs a GPU, and there is none: set engine.precision=auto."
            )
        return chosen


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a precision multiplies in."""


@dataclass(frozen=True)
class Recipe:
    """What one optimiser step is made of."""

    groups: list[dict[str, object]]
    """AdamW's parameter groups; a group's `lr_scale` multiplies the learning rate."""
    betas: tuple[float, float]
    clip_norm: float
    micro: int
    """Samples a rank holds at once."""
    accumulation: int
    """Micro-batches of a step."""


class Sums(Protocol):
    """The losses of one rank's step."""

    @property
    def losses(self) -> Iterator[Tensor]:
        """One float32 [terms] a micro-batch: each term a *sum* over its counted items."""

    @property
    def counted(self) -> Sequence[float]:
        """Number of counted items of each term on this rank, over all micro-batches."""

    @property
    def observed(self) -> dict[str, float]:
        """What to report beside the loss; the same names on every rank."""


class Engine:
    """A model under DeepSpeed."""

    def __init__(self, model: nn.Module, recipe: Recipe, config: EngineConfig, world: World) -> None:
        self.world, self.config, self.recipe = world, config, recipe
        self.precision, self.stage = config.resolve(world.device), config.stage(world)
        if world.device.type == "cpu":
            memory.keep()
        _prepare_blocks(model, config)
        world.connect(config.timeout_s)
        deepspeed = zero.load(world.device)
        # ours, not "AdamW" in the configuration: that one compiles an extension for minutes
        self._update = Update(recipe.groups, recipe.betas, recipe.clip_norm)
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=self._update.optimiser,
            config=self._deepspeed_config(),
            dist_init_required=False,
        )

    def _deepspeed_config(self) -> dict[str, object]:
        zero: dict[str, object] = {"stage": self.stage}
        if self._gated and self.stage:
            zero["compute_grad_norm"] = False
        return {
            "train_micro_batch_size_per_gpu": self.recipe.micro,
            "gradient_accumulation_steps": self.recipe.accumulation,
            "gradient_clipping": 0.0 if self._gated else self.recipe.clip_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.precision == "bf16", "check_grad_overflow": not self._gated},
            # it begins high and halves: some of the first steps are skipped
            "fp16": {"enabled": self.precision == "fp16"},
            # never: progress is told by the ledger
            "steps_per_print": 10**9,
            # it waits for the device twice a step, for a number that nobody reads
            "timers": {"throughput": {"enabled": False}},
        }

    @property
    def _gated(self) -> bool:
        """Whether clipping and the gate are the update's; DeepSpeed's own make the host wait, at stage 3 as ever.

        In fp16 the gate is DeepSpeed's too, which scales the loss by it.
        """
        return self.stage < 3 and self.precision != "fp16"

    @property
    def module(self) -> nn.Module:
        """The model DeepSpeed holds; call it for evaluation (collective under ZeRO-3)."""
        module: nn.Module = self._engine
        return module

    def peak_flops(self) -> float:
        """Measure the operations a second of a matrix product at its best, on this rank's device."""
        return measure_peak(self.world.device, DTYPES[self.precision])

    def step(self, work: Sums, lr: float, stop: bool) -> Report:
        """Run one optimiser step over the micro-batches' summed losses.

        stop: whether this rank was asked to stop; the report tells whether any was.
        """
        # stays on the device: the host need not know it before the backward pass
        total = self.world.add(self.world.pack(work.counted)).clamp(min=1)
        # DeepSpeed divides by ranks and accumulation steps; the factor undoes both
        factor = (self.world.size * self.recipe.accumulation / total).float()
        self._update.set_lr(lr)
        summed = torch.zeros_like(total)
        for number, loss in enumerate(work.losses, start=1):
            # nothing is added, or NaN: a loss that is not finite must not have finite gradients
            with self._reduction():
                self._engine.backward((loss * (factor + 0 * loss.detach())).sum())
            summed += loss.detach()
            if number < self.recipe.accumulation:
                self._engine.step()
        norm, missed = self.apply()
        return Report(Told(lr, norm, missed, stop, [*summed], work.counted, work.observed), self.world)

    def _reduction(self) -> AbstractContextManager[None]:
        """Leave out the reduction over one rank: it copies all gradients into one tensor and back."""
        alone = self.world.size == 1 and not self.stage
        without: AbstractContextManager[None] = self._engine.no_sync() if alone else nullcontext()
        return without

    def apply(self) -> tuple[float | Tensor, float | Tensor]:
        """Move the weights after the backward pass; return the gradient's norm, and 1 where they stay as they are."""
        if self._gated:
            norm = self._norm()
            missed = self._update.gate(norm)
            self._engine.step()
            return norm, missed
        self._engine.step()
        known = self._engine.get_global_grad_norm()
        return math.nan if known is None else known, float(not self._engine.was_step_applied())

    def _norm(self) -> Tensor:
        """Return the norm of the global gradient, on the device."""
        if self.stage:
            # DeepSpeed's own function of this makes the host wait, once a group
            shares = self._optimiser.averaged_gradients.values()
            gradients = [g for share in shares for g in share if g is not None]
        else:
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients])
        square = norms.square().sum()
        return (self.world.add(square) if self.stage else square).sqrt()

    def observe(self) -> dict[str, float]:
        """Return what to log of the engine itself."""
        return {"loss_scale": float(self._optimiser.loss_scale)} if self.precision == "fp16" else {}

    def snapshot(self) -> Snapshot:
        """Return everything that training has changed, on rank 0; collective."""
        held, main = self._held, self.world.main
        return Snapshot(held.weights(main), held.moments(main))

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from what `snapshot` returned, maybe on other ranks and at another ZeRO stage."""
        self._held.restore(snapshot)

    @property
    def _held(self) -> Holder:
        return Holder(self._engine.module, self._optimiser)

    def weights(self) -> dict[str, Tensor]:
        """Return the full float32 weights on the CPU, on every rank; collective."""
        return self._held.weights()


def _prepare_blocks(model: nn.Module, config: EngineConfig) -> None:
    """Let the model's blocks recompute or be compiled, as configured."""
    for stack in (m for m in model.modules() if isinstance(m, Stack)):
        stack.recompute = config.recompute
        # block by block: all of a stack are alike, so one is compiled and serves the others
        for block in stack if config.compile else ():
            block.compile(dynamic=False)
